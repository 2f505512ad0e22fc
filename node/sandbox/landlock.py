"""Level 1: no walls of its own, but most doors shut, by the kernel's Landlock and a filter of system calls, on Linux.

For where bubblewrap may not make namespaces, as in a container of default settings: this needs no privilege, no program
and no setting. A tree can open the system's programs and libraries, this Python, what its Box names (to read) and its
scratch; no socket, no queue or memory that other processes could share, nothing of other processes, no capability.

NOT covered, beside what level 2 does not cover: that a file or a process exists can be seen, not what it holds; nor is
the machine's list of sockets hidden, which every process reads in its own folder of /proc. The end of the tree is
brought about by us and not by the kernel; one that forks faster than it is killed may survive it. There is no /dev/shm,
which torch's data loaders with several workers need. Modes and times of files cannot be changed: the calls return as if
they had. Before Landlock's version 6 (Linux 6.12) other processes of the user can be signalled.
"""

import ctypes
import errno
import glob
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import Popen, TimeoutExpired

from node.sandbox import Box
from node.sandbox.bare import REAP_S, Bare, first, inherited, private
from node.sandbox.first import CREATE_RULESET
from node.sandbox.needs import LIBRARIES, LIBRARY, PACKAGES, SYSTEM, gpu_devices, other_libraries, own, python_folders
from node.sandbox.seccomp import last_filter, seccomp_filter
from node.sandbox.slots import Slot, as_user
from node.sandbox.tell import Told, begun, files

VERSION = 1  # a flag of the call that makes a ruleset: only say which version of Landlock this kernel has
KNOWN = 6  # of later versions we use what the sixth had
# What numerical libraries ask for when they start. Nothing of other processes: of those it has its own folder alone.
MACHINE = ("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/loadavg", "/proc/sys/vm", "/proc/filesystems")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
ONE_COMPILER = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}  # more need /dev/shm, and wait for it without an end
END_S = 1.0


class Landlock:
    """Starts and ends process trees behind shut doors."""

    level: int = 1
    name: str = "landlock"

    def __init__(self, abi: int = KNOWN) -> None:
        """Ask the kernel; `abi` holds it to an older version than it has.

        Raises:
            ValueError: it has no Landlock, or this is a machine whose system calls we do not know.
        """
        self._abi = min(abi, kernel_abi(), KNOWN)
        self._filter = seccomp_filter(alone=True)
        self._trees = Bare()
        self.slot = Slot(by_path=True)

    def start(self, box: Box) -> Popen[bytes]:
        """Start the tree.

        Raises:
            OSError: no such program, or a door could not be shut.
        """
        return self.slot.start(box, lambda user: self._begin(box, user))

    def _begin(self, box: Box, user: int | None) -> Popen[bytes]:
        with files(self._filter, last_filter(threads_only=box.threads_only)) as descriptors:

            def start(ready: int) -> Popen[bytes]:
                filters = [f"{key}={fd}" for key, fd in zip(("filter", "last"), descriptors, strict=True)]
                # Of a user who has other processes, too, they would count.
                bound = () if user is None else (f"nproc={box.limits.processes}", *as_user(user, box))
                steps = (f"owner={os.getpid()}", f"ready={ready}", f"abi={self._abi}", *filters, *bound)
                argv = (*first(), *steps, *_paths(box), "--", *box.argv)
                environment = {**inherited(), **private(box), **box.environment, **_of_its_own(box)}
                return self._trees.launch(box, argv, environment, Told, (ready, *descriptors))

            return begun(start, self.kill)

    def kill(self, process: Popen[bytes]) -> None:
        """End the whole tree within a second and reap it. Harmless when it has ended already.

        Raises:
            OSError: the kernel does not let go of it (a hung driver); the machine needs a person.
        """
        if process.poll() is None:  # its first process knows every orphan: let it end them all
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            with suppress(TimeoutExpired):
                process.wait(min(END_S, REAP_S))
        self._trees.kill(process)

    def starved(self, process: Popen[bytes]) -> bool:
        """Nobody but the trial's watch holds memory here."""
        return False

    def used_s(self, process: Popen[bytes]) -> float:
        """The kernel counts for each process alone."""
        return 0.0


def kernel_abi() -> int:
    """The version of Landlock that this kernel has.

    Raises:
        ValueError: it has none.
    """
    if not sys.platform.startswith("linux"):
        raise ValueError("Landlock is of Linux")
    libc = ctypes.CDLL(None, use_errno=True)
    version: int = libc.syscall(*(ctypes.c_long(number) for number in (CREATE_RULESET, 0, 0, VERSION)))
    if version < 1:
        code = ctypes.get_errno()
        why = "was switched off at boot (add landlock to the lsm= of the kernel's command line)"
        older = "is not in this kernel (Linux 5.13 or newer has it)"
        raise ValueError(f"Landlock {why if code == errno.EOPNOTSUPP else older}: {os.strerror(code)}")
    return version


def _paths(box: Box) -> Iterator[str]:
    system = [Path(path) for path in ("/usr", *SYSTEM, *LIBRARIES, *MACHINE) if os.path.exists(path)]
    yield from _all_but((*system, *python_folders()), () if box.library is None else (LIBRARY, *other_libraries()))
    packages = () if box.library is None else (LIBRARY / name for name in PACKAGES if (LIBRARY / name).is_dir())
    library = () if box.library is None else (box.library, *packages)
    for path in (own(path) for path in (*box.readable, *library)):
        yield f"read={path}"
    devices = gpu_devices()
    for device in (*filter(os.path.exists, DEVICES), *devices):
        yield f"device={device}"
    if devices:  # the driver looks its devices up there
        yield from (f"read={path}" for path in ("/sys", *glob.glob("/proc/driver/nvidia")))
    yield f"write={own(box.scratch)}"


def _all_but(shown: Iterable[Path], hidden: Iterable[Path]) -> Iterator[str]:
    """What may be read; where something below it may not, all that lies beside that. Each path once."""
    closed = {os.path.realpath(path) for path in hidden}
    above = {str(parent) for path in closed for parent in Path(path).parents}
    waiting, met = [os.path.realpath(path) for path in shown], set(closed)
    while waiting:
        path = waiting.pop()
        if path in met:
            continue
        met.add(path)
        yield f"{'list' if path in above else 'read'}={path}"
        if path in above:
            with os.scandir(path) as entries:  # what a link points to is open if it lies in a folder that is
                waiting += [entry.path for entry in entries if not entry.is_symlink()]


def _of_its_own(box: Box) -> dict[str, str]:
    """What programs have to be told here. Nothing can be put in another's place: Python looks elsewhere first."""
    library = {} if box.library is None else {"PYTHONPATH": str(box.library)}
    return {**ONE_COMPILER, **library}
