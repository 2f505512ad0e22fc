"""Runs in a box and tries to leave it: prints what held, as JSON. Imports nothing of ours.

    python -I inside.py HIDDEN_FILE PORT NONCE

HIDDEN_FILE is a file that the box does not name, PORT one where somebody listens outside, NONCE a word in the
environment of this box alone. Ends with a child that left its session and its environment, and holds the log.
"""

import ctypes
import json
import os
import socket
import sys
from collections.abc import Callable
from glob import glob
from pathlib import Path

CLONE_NEWUSER = 0x10000000
KEYCTL = {"x86_64": 250, "aarch64": 219}
FAMILIES = (socket.AF_NETLINK, socket.AF_PACKET)
MADE = "made"  # in its scratch: whose it is, is seen from outside
STRAY_S = 5  # longer than anybody waits for its end


def refused(attempt: Callable[[], object]) -> bool:
    """Whether the system said no."""
    try:
        attempt()
    except OSError:
        return True
    return False


def failed(call: str, *arguments: int) -> bool:
    """Whether a call of the C library, made in a child of its own, returned an error."""
    child = os.fork()
    if child == 0:
        os._exit(ctypes.CDLL(None)[call](*(ctypes.c_long(argument) for argument in arguments)) == -1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def only_ours(nonce: str) -> bool:
    """Whether every environment that can be read here is of this box."""
    for path in glob("/proc/[0-9]*/environ"):
        try:
            content = Path(path).read_bytes()
        except OSError:
            continue
        if content and nonce.encode() not in content:
            return False
    return True


def family_opens(family: int) -> bool:
    """Whether a raw socket of this family can be had."""
    return not refused(lambda: socket.socket(family, socket.SOCK_RAW, 0).close())


def no_privileges() -> bool:
    """Whether this process has no capability and cannot gain one."""
    lines = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    return lines["NoNewPrivs"] == "1" and int(lines["CapEff"], 16) == 0 and int(lines["CapPrm"], 16) == 0


def results(hidden: Path, port: int, nonce: str) -> dict[str, bool]:
    """Every promise that is tried from inside, and whether it held."""
    kernel = "/proc/sys/kernel/core_pattern"
    return {
        "no network": refused(lambda: socket.create_connection(("127.0.0.1", port), 1).close()),
        "no socket of another family": not any(family_opens(family) for family in FAMILIES),
        "other files cannot be read": refused(lambda: open(hidden).close()),
        "other files are hidden": not hidden.exists() and not Path("/etc/shadow").exists(),
        "code cannot be written": refused(lambda: open(__file__, "a").close()),
        "Python cannot be written": refused(lambda: open(os.__file__, "r+").close()),
        "other processes are hidden": len(glob("/proc/[0-9]*")) <= 2,
        "other environments are hidden": only_ours(nonce),
        "no ptrace": failed("ptrace", 0, 0, 0, 0),
        "no new namespaces": failed("unshare", CLONE_NEWUSER),
        "no kernel keys": failed("syscall", KEYCTL.get(os.uname().machine, -1), 0, -3, 1),
        "kernel settings cannot be written": refused(lambda: open(kernel, "r+").close()),
        "no privileges": no_privileges(),
    }


def leave_a_stray() -> None:
    """Leave a process without parent, session and environment; only walls find it."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execve(sys.executable, (sys.executable, "-I", "-S", "-c", f"import time; time.sleep({STRAY_S})"), {})
        os._exit(0)
    os.wait()


if __name__ == "__main__":
    hidden = Path(sys.argv[1])
    open(MADE, "w").close()
    told = results(hidden, int(sys.argv[2]), sys.argv[3])
    refused(lambda: hidden.write_text("changed"))  # looked at from outside: a box may have a /tmp of its own
    print(json.dumps(told), flush=True)
    leave_a_stray()
