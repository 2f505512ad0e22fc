"""Candidates that try to leave their box, one way each: every way is open at level 0, and closed behind walls.

An attack prints `got it` when it worked. Each also runs in the bare sandbox, where it has to work: a test that cannot
fail would prove nothing. None changes anything of the machine, also where it works.
"""

import ctypes
import os
import re
import select
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from subprocess import Popen
from typing import NamedTuple

import pytest
from test_sandbox import Kind, available, lacks, old_landlock
from toy_task import HONEST, answers_task, printed_task, spec_of, workshop_at

from node.sandbox import Box, Sandbox
from node.sandbox.bare import Bare
from node.sandbox.bwrap import Bwrap
from node.sandbox.cgroup import Cgroup
from node.sandbox.landlock import Landlock
from node.sandbox.promises import NOT_ROOT, promises
from node.sandbox.seccomp import (
    CHECKED,
    CHECKED_ALONE,
    DENIED,
    DENIED_ALONE,
    FORKS,
    IDLE_ALONE,
    NEVER,
    OWN_ALONE,
    seccomp_filter,
)
from node.trial import run_trial
from swarm.records import Failure, Limits, Measurement

LIMITS = Limits(cpu_s=20, wall_s=20)
SECRET = "planted-secret"  # noqa: S105

CALL = "import ctypes; libc = ctypes.CDLL(None, use_errno=True); n = ctypes.c_long\n"


class Place(NamedTuple):
    """What an attack may aim at, all of it of this test."""

    secret: Path  # a file outside
    code: Path  # a file that the box shows
    port: int  # somebody listens there
    unix: Path  # and there
    victim: int  # a process outside
    shared: int  # memory that any process of the user may attach to


@contextmanager
def shared_memory() -> Iterator[int]:
    """A page that outlives whoever made it, as long as nobody removes it."""
    libc = ctypes.CDLL(None)
    identity: int = libc.shmget(0, 4096, 0o1600)
    try:
        yield identity
    finally:
        libc.shmctl(identity, 0, None)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "shown").mkdir()
    place = Place(tmp_path / "secret", tmp_path / "shown" / "code.py", 0, tmp_path / "socket", 0, 0)
    place.secret.write_text(SECRET)
    place.code.write_text("pass\n")
    victim = Popen((sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"), env={"KEY": SECRET})
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix, victim:
        unix.bind(str(place.unix))
        unix.listen()
        with socket.socket(socket.AF_UNIX) as nameless, shared_memory() as shared:
            nameless.bind(b"\0" + str(place.unix).encode())
            nameless.listen()
            yield place._replace(port=tcp.getsockname()[1], victim=victim.pid, shared=shared)
        victim.kill()


def got_it(sandbox: Sandbox, place: Place, attack: str) -> bool:
    """Whether an attack worked, by its own word."""
    names = {name: str(value) if isinstance(value, Path) else value for name, value in place._asdict().items()}
    code = f"{''.join(f'{name} = {value!r}' + chr(10) for name, value in names.items())}{attack}\nprint('got it')\n"
    scratch = place.secret.parent / "scratch"
    process = sandbox.start(Box((sys.executable, "-c", code), (place.code.parent,), scratch, LIMITS))
    with process:
        assert process.stdout is not None
        said = process.stdout.read().decode()
        sandbox.kill(process)
    assert "got it" in said or "Error" in said, said  # an attack that never ran proves nothing
    return "got it" in said


ATTACKS = {
    "read a file outside": f"assert open(secret).read() == {SECRET!r}",
    "read it through a link": f"import os; os.symlink(secret, 'l'); assert open('l').read() == {SECRET!r}",
    "read it from an outsider's root": f"assert open(f'/proc/{{victim}}/root{{secret}}').read() == {SECRET!r}",
    "see the folder of the tests": "import os; assert 'secret' in os.listdir(os.path.dirname(secret))",
    "read the machine's accounts": "open('/etc/shadow').close()",
    "list the machine's users": "import os, pwd; assert len(open('/etc/passwd').readlines()) > 1",
    "cut a file outside": "import os; os.truncate(secret, os.path.getsize(secret))",
    "link a file outside into its scratch": "import os; os.link(secret, f'hard-{os.getpid()}')",
    "watch a file outside": f"{CALL}assert libc.inotify_add_watch(libc.inotify_init(), secret.encode(), 0xfff) > 0, "
    "OSError('Error')",
    "cut shown code by reading it": "import os; os.open(code, os.O_RDONLY | os.O_TRUNC)",
    "change the times of shown code": "import os; before = os.stat(code).st_mtime\n"
    "os.utime(code, (1, before + 9)); assert os.stat(code).st_mtime != before, OSError('Error')",
    "write to shown code": "open(code, 'a').close()",
    "change the mode of shown code": "import os; mode = lambda: os.stat(code).st_mode & 0o777; before = mode()\n"
    "os.chmod(code, before ^ 0o022); assert mode() != before, OSError('Error')",
    "replace shown code": "import os; open('new', 'w').close(); os.replace('new', code)",
    "write to Python": "import os; open(os.__file__, 'r+').close()",
    "plant a module": "import os, tempfile; tempfile.TemporaryFile(dir=os.path.dirname(os.__file__)).close()",
    "write to kernel settings": "open('/proc/sys/kernel/core_pattern', 'r+').close()",
    "call this machine": "import socket; socket.create_connection(('127.0.0.1', port), 2)",
    "send a datagram": "import socket; socket.socket(2, 2).sendto(b'x', ('127.0.0.1', port))",
    "call a unix socket": "import socket; socket.socket(1).connect(unix)",
    "call a socket without a file": "import socket; socket.socket(1).connect(b'\\0' + unix.encode())",
    "listen on a port": "import socket; socket.create_server(('127.0.0.1', 0))",
    "see who listens": "assert unix in open('/proc/net/unix').read(), OSError('Error')",
    "open a socket to the wire": "import socket; socket.socket(17, 3, 0)",
    "open a netlink socket": "import socket; socket.socket(16, 3, 0)",
    "see another process": "import os; os.stat(f'/proc/{victim}/cmdline'); os.kill(victim, 0)",
    "read its command": "assert 'sleep' in open(f'/proc/{victim}/cmdline').read()",
    "read its memory": "open(f'/proc/{victim}/mem', 'rb').close()",
    "signal everybody": "import os; os.kill(-1, 0)",
    "change its limits": "import resource as r; r.prlimit(victim, r.RLIMIT_CPU, r.prlimit(victim, r.RLIMIT_CPU))",
    "move it to other cores": "import os; os.sched_setaffinity(victim, os.sched_getaffinity(victim))",
    "find its shared memory": f"{CALL}libc.shmat.restype = n; assert libc.shmat(shared, None, 0) != -1, "
    "OSError('Error')",
    "read its environment": f"assert {SECRET!r} in open(f'/proc/{{victim}}/environ').read()",
    "lower its priority": "import os; os.setpriority(0, victim, min(19, os.getpriority(0, victim) + 1))",
    "trace a process": f"{CALL}assert libc.ptrace(n(0), n(0), n(0), n(0)) == 0, OSError('Error')",
    "change its root": "import os; os.chroot('.')",
    "make a device": "import os; os.mknod('null', 0o20600, os.makedev(1, 3)); os.unlink('null')",
    "become another user": "import os; os.setuid(12345)",
    "run before all others": "import os; os.nice(-1)",
    "name the machine": "import socket; socket.sethostname(socket.gethostname())",
    "ask what others have read": "import os; f = os.open(code, os.O_RDONLY); os.read(f, 9)\n"
    "os.preadv(f, [bytearray(9)], 0, os.RWF_NOWAIT)",
    "tell others by what it drops from the cache": "import os; f = os.open(code, os.O_RDONLY)\n"
    "os.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED)",
    "look into the cache through a map": f"{CALL}import mmap; m = mmap.mmap(-1, 4096)\n"
    "at = ctypes.addressof(ctypes.c_char.from_buffer(m)); v = ctypes.create_string_buffer(1)\n"
    "assert libc.mincore(n(at), n(4096), v) == 0, OSError('Error')",
    "make a user namespace": "import os, ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0, OSError('Error')",
    "read kernel keys": f"{CALL}import os\nnumber = {{'x86_64': 250, 'aarch64': 219}}[os.uname().machine]\n"
    "assert libc.syscall(n(number), n(0), n(-3), n(1)) > 0, OSError('Error')",
}
ROOT_ONLY = {
    "read the machine's accounts",
    "write to kernel settings",
    "write to Python",
    "plant a module",
    "open a socket to the wire",
    "read its memory",
    "change its root",
    "make a device",
    "become another user",
    "run before all others",
    "name the machine",
}
# What works at level 1, and why; `old` before Landlock's version 6. Everything else has to fail there, too.
LEVEL_1 = {
    "see who listens": "a process reads of itself what it likes, and its list of sockets is that of the machine",
}
OLD_LEVEL_1 = {
    "see another process": "no version of Landlock before 6 looks at signals between processes of one user",
}
EXEMPT: dict[Kind, dict[str, str]] = {
    Landlock: LEVEL_1,
    old_landlock: {**LEVEL_1, **OLD_LEVEL_1},
    Bwrap: {},
    Cgroup: {},
}
WALLED = tuple(EXEMPT)


@pytest.mark.parametrize("name", ATTACKS)
def test_walls_stop_what_level_0_does_not(name: str, place: Place) -> None:
    if name in ROOT_ONLY and os.getuid() != 0:
        pytest.skip("level 0 stops this, too, unless it runs as root")
    assert got_it(Bare(), place, ATTACKS[name])
    got = {kind.__name__ for kind in WALLED if not lacks(kind) and got_it(kind(), place, ATTACKS[name])}
    exempt = {kind.__name__ for kind in WALLED if not lacks(kind) and name in EXEMPT[kind]}
    assert got == exempt


# Promises of the self-test that a level does not make.
WATCHED = {"memory has a hard limit", "processes have a hard limit"}
UNPROMISED: dict[Kind, set[str]] = {
    Cgroup: set(),
    Bwrap: {"memory has a hard limit"},
    Landlock: {"other files are hidden", *WATCHED},  # that they are there can be seen, not what they hold
    old_landlock: {"other files are hidden", *WATCHED},
}


def unpromised(kind: Kind, sandbox: Sandbox) -> set[str]:
    """The same, after a box: where root's box is another user, processes have a limit; as root only by a group."""
    if os.getuid() != 0 or not isinstance(sandbox, Bwrap | Landlock):
        return UNPROMISED[kind]
    if sandbox.slot.lacks:
        return UNPROMISED[kind] | {NOT_ROOT} | (WATCHED if kind is Bwrap else set())
    return UNPROMISED[kind] - {"processes have a hard limit"}


@pytest.mark.parametrize("kind", WALLED)
def test_every_promise_holds_behind_walls_and_level_0_makes_none(kind: Kind) -> None:
    sandbox = available(kind)
    walls = promises(sandbox)
    assert len(walls) == 18
    assert {promise for promise, held in walls.items() if not held} == unpromised(kind, sandbox)
    bare = promises(Bare())
    assert set(bare) == set(walls)
    assert not any(bare[promise] for promise in WATCHED)
    assert not bare["no network"] and not bare["other files cannot be read"] and not bare["the whole tree dies"]


@pytest.mark.parametrize("kind", WALLED)
def test_the_node_does_not_show_its_environment_through_the_first_process(
    kind: Kind, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", SECRET)
    look = "for p in (*glob.glob('/proc/[0-9]*/environ'), f'/proc/{os.getppid()}/environ'):\n"
    attack = (
        f"import glob, os\nfound = False\n{look} try: found |= {SECRET!r} in open(p).read()\n except OSError: pass\n"
    )
    assert not got_it(available(kind), place, f"{attack}assert found, OSError('Error')")


@pytest.mark.parametrize("kind", WALLED)
def test_compilers_of_torch_find_that_they_are_one(kind: Kind, place: Place) -> None:
    told = "import os; assert os.environ.get('TORCHINDUCTOR_COMPILE_THREADS') == '1', 'Error'"
    many = kind in (Bwrap, Cgroup)  # where there is /dev/shm they may be more
    assert got_it(available(kind), place, told) != many


@pytest.mark.parametrize("kind", WALLED)
def test_nothing_is_carried_over_from_box_to_box(kind: Kind, place: Place) -> None:
    leave = "import pathlib\nfor p in ('/tmp', '/dev/shm'):\n try: pathlib.Path(p, 'left').write_text('x')\n"
    leave += " except OSError: pass"
    find = "import pathlib; assert any(pathlib.Path(p, 'left').exists() for p in ('/tmp', '/dev/shm')), 'Error'"
    sandbox = available(kind)
    assert got_it(sandbox, place, leave)
    assert got_it(sandbox, place, f"{leave}\n{find}") == (
        kind in (Bwrap, Cgroup)
    )  # at level 1 there are no such folders
    assert not got_it(sandbox, place, find)


def test_shared_folders_of_memory_have_a_limit(place: Place) -> None:
    attack = (
        "import os\nfor p in ('/tmp', '/dev/shm'):\n assert os.statvfs(p).f_blocks * os.statvfs(p).f_frsize > 2**30"
    )
    assert not got_it(available(Bwrap), place, attack)


@pytest.mark.parametrize("kind", WALLED)
def test_a_daemon_without_parent_session_or_environment_dies(kind: Kind, place: Place) -> None:
    stray = "import os, sys\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n"
    stray += (
        "  os.execve(sys.executable, (sys.executable, '-c', 'import time; time.sleep(3)'), {})\n os._exit(0)\nos.wait()"
    )
    alive = {}
    for sandbox in (Bare(), available(kind)):
        scratch = place.secret.parent / "scratch"
        process = sandbox.start(Box((sys.executable, "-c", stray), (), scratch, LIMITS))
        with process:
            process.wait(10)
            sandbox.kill(process)
            assert process.stdout is not None
            alive[sandbox.name] = not select.select([process.stdout], [], [], 1)[0]
    assert alive == {"bare": True, available(kind).name: False}


@pytest.mark.parametrize("kind", WALLED)
def test_a_folder_that_a_candidate_swapped_for_a_link_is_not_shown(kind: Kind, place: Place) -> None:
    link = place.secret.parent / "artifact"
    link.symlink_to(place.secret.parent / "shown")
    with pytest.raises(OSError, match="symbolic link"):
        available(kind).start(Box((sys.executable, "-c", ""), (link,), place.secret.parent / "scratch", LIMITS))


@pytest.mark.parametrize("kind", [Bare, *WALLED])
def test_an_out_folder_swapped_for_a_link_breaks_a_rule(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "model.pt").write_text(SECRET)
    train = f"{HONEST}\nimport os, shutil\nshutil.rmtree(options['--out'])\n"
    train += f"os.symlink({str(tmp_path / 'secrets')!r}, options['--out'])\n"
    workshop = replace(workshop_at(tmp_path, answers_task(tmp_path / "task")), sandbox=available(kind))
    outcome = run_trial(spec_of(train), workshop=workshop).outcome
    assert isinstance(outcome, Failure)
    assert (outcome.blame, outcome.reason) == ("candidate", "rule")


def test_a_box_that_cannot_be_built_is_no_fault_of_the_candidate(place: Place) -> None:
    missing = place.secret.parent / "missing"
    with pytest.raises(OSError, match="missing"):
        available(Bwrap).start(Box((sys.executable, "-c", ""), (missing,), place.secret.parent / "scratch", LIMITS))


@pytest.mark.parametrize(
    ("column", "header"),
    [(0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), (1, "/usr/include/asm-generic/unistd.h")],
)
def test_the_numbers_of_calls_are_the_kernels(column: int, header: str) -> None:
    if not Path(header).exists():
        pytest.skip(f"{header} is not installed (apt install linux-libc-dev)")
    found = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text(), re.MULTILINE)
    kernel = {name: int(number) for name, number in found if name != "syscalls"}  # that is how many there are
    tables = {**DENIED, **CHECKED, **DENIED_ALONE, **IDLE_ALONE, **OWN_ALONE, **CHECKED_ALONE, **FORKS}
    ours = {name: numbers[column] for name, numbers in tables.items() if numbers[column] != NEVER}
    younger = {name for name, number in ours.items() if number > max(kernel.values())}  # than this header
    assert {name: kernel.get(name) for name in ours.keys() - younger} == {n: ours[n] for n in ours.keys() - younger}


def test_a_processor_that_nobody_looked_at_gets_no_filter() -> None:
    with pytest.raises(ValueError, match="riscv64"):
        seccomp_filter("riscv64")


@pytest.mark.parametrize("kind", WALLED)
def test_a_trial_scores_the_same_behind_walls(kind: Kind, tmp_path: Path) -> None:
    workshop = workshop_at(tmp_path, answers_task(tmp_path / "task"))
    outcomes = []
    for sandbox in (Bare(), available(kind)):
        outcomes.append(run_trial(spec_of(HONEST), workshop=replace(workshop, sandbox=sandbox)).outcome)
    bare, walled = outcomes
    assert isinstance(bare, Measurement) and isinstance(walled, Measurement), outcomes
    assert (bare.score, bare.artifact) == (walled.score, walled.artifact)


@pytest.mark.parametrize("kind", WALLED)
def test_cpu_time_is_counted_behind_walls(kind: Kind, tmp_path: Path) -> None:
    burn = "import time\nwhile time.process_time() < 0.4: pass\n"
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])\nprint('val_bpb: 1')\n"
    thread = (
        f"import threading\nt = threading.Thread(target=exec, args=({burn!r}, {{}}))\nt.start()\nt.join()\n{HONEST}"
    )
    workshop = replace(workshop_at(tmp_path, answers_task(tmp_path / "task")), sandbox=available(kind))
    printed = replace(workshop_at(tmp_path, printed_task(tmp_path / "printed")), sandbox=available(kind))
    for train, place in ((thread, workshop), (child, printed)):
        outcome = run_trial(spec_of(train), workshop=place).outcome
        assert isinstance(outcome, Measurement), outcome
        assert 0.35 <= outcome.cpu_s < 2  # 0.4, counted in ticks


@pytest.mark.parametrize("kind", WALLED)
def test_training_finds_no_text_beyond_its_stream(kind: Kind, tmp_path: Path) -> None:
    workshop = replace(workshop_at(tmp_path, answers_task(tmp_path / "task")), sandbox=available(kind))
    assert workshop.data is not None
    text = workshop.data.folder / "train"
    (text / "meta.json").write_text("{}")
    look = f"import os\nprint(sorted(os.listdir(options['--data'])))\nopen({str(text / 'tokens.bin')!r})\n"
    run = run_trial(spec_of(f"{HONEST}\n{look}"), workshop=workshop)
    assert "['meta.json']" in run.log
    assert isinstance(run.outcome, Failure) and "Error" in run.outcome.message


# Ways to a process whose CPU time nobody would add up: a parent that ignores its children leaves them to no table.
HIDERS = {
    "fork": "if os.fork() == 0: os._exit(0)",
    "a daemon": "pid = os.fork()\nif pid == 0: os.setsid(); os._exit(0)",
    "vfork": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', ''], check=True)",
    "posix_spawn": "os.posix_spawn(sys.executable, [sys.executable, '-c', ''], {})",
    "a shell": "signal.signal(signal.SIGCHLD, signal.SIG_DFL)\nassert os.system('true') == 0, OSError('Error')",
    "clone": f"{CALL}import signal\nnumber = {{'x86_64': 56, 'aarch64': 220}}[os.uname().machine]\n"
    "pid = libc.syscall(n(number), n(signal.SIGCHLD), n(0), n(0), n(0), n(0))\n"
    "if pid == 0: os._exit(0)\nassert pid > 0, OSError('Error')",
    "clone3": f"{CALL}import struct\nwanted = struct.pack('<8Q', 0, 0, 0, 0, 17, 0, 0, 0)\n"
    "pid = libc.syscall(n(435), wanted, n(len(wanted)))\n"
    "if pid == 0: os._exit(0)\nassert pid > 0, OSError('Error')",
}


@pytest.mark.parametrize("name", HIDERS)
def test_where_cpu_time_is_the_budget_there_are_threads_only(name: str, tmp_path: Path) -> None:
    train = f"import os, signal, sys\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n{HIDERS[name]}\n{HONEST}"
    workshop = workshop_at(tmp_path, answers_task(tmp_path / "task"))
    if name != "clone3":  # which a container's own filter may refuse
        assert isinstance(run_trial(spec_of(train), workshop=workshop).outcome, Measurement)
    for kind in WALLED:
        if lacks(kind):
            continue
        outcome = run_trial(spec_of(train), workshop=replace(workshop, sandbox=kind())).outcome
        assert isinstance(outcome, Failure), outcome
        assert (outcome.blame, outcome.reason) == ("candidate", "crash") and "Error" in outcome.message


@pytest.mark.parametrize("kind", WALLED)
def test_a_secret_outside_cannot_be_put_into_the_artifact(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    train = (
        f"{HONEST}\n(Path(options['--out']) / 'stolen').write_bytes(open({str(tmp_path / 'secret')!r}, 'rb').read())"
    )
    workshop = workshop_at(tmp_path, answers_task(tmp_path / "task"))
    assert isinstance(run_trial(spec_of(train), workshop=workshop).outcome, Measurement)
    outcome = run_trial(spec_of(train), workshop=replace(workshop, sandbox=available(kind))).outcome
    assert isinstance(outcome, Failure)
    assert (outcome.blame, "stolen" not in outcome.message and "Error" in outcome.message) == ("candidate", True)
