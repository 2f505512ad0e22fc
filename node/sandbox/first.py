"""The first moments of a trial's process tree: bind its life to its owner's, take rights away, become the program.

    python -I -S first.py KEY=VALUE... -- PROGRAM ARGUMENT...

What is not named is not done, and it is done in the order of this file. `owner` is the process that this one dies with;
`group` a descriptor (any number of them) through which it enters a control group, before anything else is started;
`ready` a descriptor, and with it the first process stays as the parent of all others: it collects the program and every
orphan, so that their CPU time is known outside, and ends when the program does. What the program's own children used is
known only if it collects them itself. `ready` gets `+` when all stands, and a sentence when the program could not be
started; it is closed when the program runs. `user` is whom the program becomes, where we are root; `also` (any number
of times) a group that it is in, `at` its working directory, which root without rights may not enter. `core`, `fsize`,
`nofile` and `nproc` are limits. `abi` is the version of Landlock to use, `list`, `read`, `write` and `device` (each any
number of times) the paths that it leaves open, `filter` a descriptor with a filter of system calls, `last` one with a
filter that may refuse what was needed until then.

A program of its own, because the alternative, Python code between fork and exec (`preexec_fn`), may hang in an owner
with many threads, and an agent under Ray has dozens. Costs about 10 ms. Knows no trial, and imports nothing of ours.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from contextlib import suppress
from functools import cache

TYPE_CHECKING = False  # to import `typing` costs every box 3 ms
if TYPE_CHECKING:
    from ctypes import CDLL
    from typing import NoReturn

SIGNALLED = 128  # as shells do it: 128 + the signal's number; this alone is an exit code of the program's own above it
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
SECCOMP_MODE_FILTER = 2
CAPABILITIES_V3 = 0x20080522
CAPSET = {"x86_64": 126, "aarch64": 91}
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
PATH_BENEATH = 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
MAKE_DEVICE, TRUNCATE, IOCTL_DEV = 1 << 6 | 1 << 11, 1 << 14, 1 << 15
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
HANDLED_BITS = {1: 13, 2: 14, 3: 15, 4: 15}  # rights over files that a version of Landlock knows; 16 since the fifth
TCP, SCOPES = 0b11, 0b11  # bind and connect since the fourth; abstract sockets and signals since the sixth


@cache
def library() -> CDLL:
    """The C library. To open it anew for each of 400 rules took 16 ms."""
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def call(what: str, *arguments: object) -> int:
    """Call the C library; an error is raised, and says what was tried."""
    import ctypes  # 4 ms, and a box of bubblewrap needs none of it

    result: int = library()[what.split()[0]](*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result == -1:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def die_with(owner: int, number: int) -> None:
    """Get a signal when the owner dies.

    The kernel means the THREAD that started us: an owner starts trials from one thread that lives as long as it does.
    """
    if not sys.platform.startswith("linux"):
        return  # elsewhere a killed agent leaves its trial running; the next start sweeps it
    call("prctl", PR_SET_PDEATHSIG, number)
    if os.getppid() != owner:  # it died before we asked
        os._exit(1)


def enter(doors: list[str]) -> None:
    """Be in these control groups, with all that comes after, and shut the doors."""
    for door in doors:
        os.write(int(door), b"0")
        os.close(int(door))


def limit(kind: int, value: int) -> None:
    """Lower a limit, never raise it."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def turn_into(user: int, groups: list[int]) -> None:
    """Be this user for ever, with all that comes after: whoever is not root has none of root's rights."""
    os.setgroups(groups)
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def drop_privileges() -> None:
    """Give up what root may, for ever: with no_new_privs no program gives it back."""
    import ctypes

    call("prctl no_new_privs", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header, nothing = (ctypes.c_uint32 * 2)(CAPABILITIES_V3, 0), (ctypes.c_uint32 * 6)()
    call("syscall capset", CAPSET[os.uname().machine], header, nothing)


def confine(abi: int, given: dict[str, list[str]]) -> None:
    """Close the file system and the network, but for what is given."""
    import ctypes

    handled = (1 << HANDLED_BITS.get(abi, 16)) - 1
    attributes = (ctypes.c_uint64 * 3)(handled, TCP if abi >= 4 else 0, SCOPES if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = call("syscall landlock_create_ruleset", CREATE_RULESET, attributes, size, 0)
    rights = {
        "list": READ_DIR,
        "read": EXECUTE | READ_FILE | READ_DIR,
        "write": handled & ~MAKE_DEVICE & ~IOCTL_DEV,
        "device": WRITE_FILE | READ_FILE | handled & IOCTL_DEV,
    }
    for key, allowed in rights.items():
        for path in given.get(key, ()):
            leave_open(ruleset, path, allowed)
    leave_open(ruleset, f"/proc/{os.getpid()}", READ_FILE | READ_DIR)
    call("syscall landlock_restrict_self", RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def leave_open(ruleset: int, path: str, allowed: int) -> None:
    """Add a path, and all below it, to what stays open."""
    found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        allowed = allowed if os.path.isdir(path) else allowed & OF_A_FILE
        rule = allowed.to_bytes(8, sys.byteorder) + found.to_bytes(4, sys.byteorder)
        call(f"syscall landlock_add_rule {path}", ADD_RULE, ruleset, PATH_BENEATH, rule, 0)
    finally:
        os.close(found)


def filter_calls(descriptor: int) -> None:
    """Install a filter of system calls, which holds for all that comes after."""
    import ctypes

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))

    with os.fdopen(descriptor, "rb") as file:
        steps = file.read()
    program = Program(len(steps) // 8, steps)
    call("prctl seccomp", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)


def become(program: list[str], given: dict[str, list[str]]) -> NoReturn:
    """Within its limits and walls, turn into the program.

    Raises:
        OSError: there is no such program, or a wall could not be built.
    """
    for name in ("core", "fsize", "nofile", "nproc"):
        if name in given:
            limit(getattr(resource, f"RLIMIT_{name.upper()}"), int(given[name][0]))
    if "abi" in given:
        confine(int(given["abi"][0]), given)
        filter_calls(int(given["filter"][0]))
    if "last" in given:
        filter_calls(int(given["last"][0]))
    os.execv(program[0], program)


def stay(program: list[str], given: dict[str, list[str]]) -> NoReturn:
    """Start the program as a child, and collect it and every orphan of its tree; end as it ends."""
    ready, alone, us = int(given["ready"][0]), "abi" in given, os.getpid()
    os.set_inheritable(ready, False)
    if not alone:  # our memory is a file that the program could write to, and we may start processes; exec resets it
        call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    if alone:  # no process namespace ends the tree with us: adopt whoever is left, and end them ourselves
        call("prctl", PR_SET_CHILD_SUBREAPER, 1)
    os.write(ready, b"+")
    child = os.fork()
    if child == 0:
        begin(program, given, ready, us)
    if alone:
        signal.signal(signal.SIGTERM, lambda number, frame: leave(child, SIGNALLED + signal.SIGKILL))
    elif "user" in given:
        drop_privileges()  # as another user we would lose the signal of our owner's death
    for descriptor in (ready, *(int(given[key][0]) for key in ("filter", "last") if key in given)):
        os.close(descriptor)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # the pipes are the candidate's: they end when it closes them
        os.dup2(nothing, descriptor)
    code = collect(child)
    if alone:
        leave(child, code)
    os._exit(code)


def begin(program: list[str], given: dict[str, list[str]], ready: int, first: int) -> NoReturn:
    """In the child: become the program, or say why not."""
    try:
        if "abi" in given:
            os.setsid()  # a group of its own, which is ended at one blow
        if "user" in given:
            turn_into(int(given["user"][0]), [int(group) for group in given.get("also", ())])
            os.chdir(given["at"][0])
        if "abi" in given:
            drop_privileges()
            die_with(first, signal.SIGKILL)
        become(program, given)
    except OSError as error:
        os.write(ready, f"{error.filename or program[0]}: {error.strerror}".encode())
        os._exit(1)


def collect(child: int) -> int:
    """Wait for the program, and for every orphan before it; what it returned.

    Only a signal is told as one: a program that returns 137 was not killed.
    """
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return min(code, SIGNALLED) if code >= 0 else SIGNALLED - code


def leave(child: int, code: int) -> NoReturn:
    """End everybody below us, and then ourselves. Whoever ends here leaves its children to us."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with suppress(OSError):  # nobody is left in it
        os.killpg(child, signal.SIGKILL)
    while True:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            ours = file.read().split()
        for pid in ours:
            os.kill(int(pid), signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            os._exit(code)


def arguments(words: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """What is to be done, and the program."""
    end = words.index("--")
    given: dict[str, list[str]] = {}
    for word in words[:end]:
        key, _, value = word.partition("=")
        given.setdefault(key, []).append(value)
    return given, words[end + 1 :]


if __name__ == "__main__":
    given, program = arguments(sys.argv[1:])
    if "owner" in given:
        die_with(int(given["owner"][0]), signal.SIGTERM if "abi" in given else signal.SIGKILL)
    enter(given.get("group", []))
    if "ready" in given:
        stay(program, given)
    become(program, given)
