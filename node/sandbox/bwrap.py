"""Level 2: a box with walls, built by bubblewrap (`bwrap`, 0.7 or newer) from the kernel's namespaces, on Linux.

Owns what is mounted, and that nothing else is. A tree sees the system's programs and libraries, this Python, what its
Box names, all of it read-only; its scratch; memory-backed /tmp and /dev/shm of limited size. It has no network, no
capability, no way to gain one, and no process beside its own; `seccomp.py` lists the system calls that it may not make.

Where the node is root, bubblewrap builds the walls as root, and the tree is a user of this node's own (`slots.py`).
Where that cannot be, as for an ordinary user, the walls are in a user namespace: the tree is the node's own user,
without any of its rights.

NOT covered: faults of the kernel or of a GPU's driver; how much it writes to its scratch and, where it is root without
rights (whom the kernel exempts from its limit), how many processes it starts: both are watched (`node/watch.py`).
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

from node.sandbox import Box
from node.sandbox.bare import FIRST, Bare, first, private
from node.sandbox.needs import LIBRARIES, LIBRARY, PACKAGES, SYSTEM, gpu_devices, other_libraries, own, python_folders
from node.sandbox.seccomp import last_filter, seccomp_filter
from node.sandbox.slots import Slot, as_user
from node.sandbox.tell import Told, begun, files

INSIDE_FIRST = "/first.py"
UID = 1000  # inside, in a user namespace; outside it is the node's own user
TMPFS_BYTES = 2**30  # inductor's precompiled header alone needs more than 64 MB
ACCOUNTS = {"/etc/passwd": "trial:x:{0}:{0}::/:/bin/sh\n", "/etc/group": "trial:x:{0}:\n"}
IN_A_NAMESPACE = ("--unshare-all", "--unshare-user", "--uid", str(UID), "--gid", str(UID), "--cap-drop", "ALL")
SEPARATE = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
# The first process needs two rights to turn the program into the slot's user, and gives them up when it has.
AS_ROOT = (*SEPARATE, "--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
OUTSIDE = ("SWARM_HOME",)  # for the process that builds the walls: a killed agent's trials are found by it
INSIDE = ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")


class Bwrap:
    """Starts and ends process trees behind walls."""

    level: int = 2
    name: str = "bwrap"

    def __init__(self) -> None:
        """Find the program that builds walls.

        Raises:
            ValueError: it is not here, or this is a machine whose system calls we do not know.
        """
        program = shutil.which("bwrap")
        if program is None:
            raise ValueError("bwrap is not installed (apt install bubblewrap, or dnf install bubblewrap)")
        self._program = program
        self._filter = seccomp_filter()
        self._trees = Bare()
        self.slot = Slot(by_path=False)

    def start(self, box: Box) -> Popen[bytes]:
        """Build the walls, and start the tree behind them.

        Raises:
            OSError: no such program, or the walls could not be built.
        """
        return self.begin(box)

    def begin(self, box: Box, doors: tuple[int, ...] = ()) -> Popen[bytes]:
        """The same, with descriptors through which the first process enters its control group.

        Raises:
            OSError: no such program, or the walls could not be built.
        """
        return self.slot.start(box, lambda user: self._begin(box, doors, user))

    def _begin(self, box: Box, doors: tuple[int, ...], user: int | None) -> Popen[bytes]:
        last = last_filter(threads_only=box.threads_only)
        accounts = (text.format(user or UID).encode() for text in ACCOUNTS.values())
        with files(self._filter, last, *accounts) as descriptors:

            def start(ready: int) -> Popen[bytes]:
                outside = {name: os.environ[name] for name in OUTSIDE if name in os.environ} | dict(box.environment)
                argv = self._command(box, ready, descriptors, doors, user)
                return self._trees.launch(box, argv, outside, Told, (ready, *descriptors, *doors))

            return begun(start, self.kill)

    def kill(self, process: Popen[bytes]) -> None:
        """End the whole tree within a second and reap it. Harmless when it has ended already.

        Raises:
            OSError: the kernel does not let go of it (a hung driver); the machine needs a person.
        """
        self._trees.kill(process)

    def starved(self, process: Popen[bytes]) -> bool:
        """Nobody but the trial's watch holds memory here."""
        return False

    def used_s(self, process: Popen[bytes]) -> float:
        """The kernel counts for each process alone."""
        return 0.0

    def _command(
        self, box: Box, ready: int, descriptors: list[int], doors: tuple[int, ...], user: int | None
    ) -> tuple[str, ...]:
        filter_fd, last_fd, *accounts = descriptors
        # A group counts its own processes; this limit counts all of a user's.
        bound = [f"group={door}" for door in doors] or [f"nproc={box.limits.processes}"]
        steps = (*bound, f"last={last_fd}", f"ready={ready}", *as_user(user, box))
        return (
            *(self._program, *_walls(user), *_mounts(box), *_accounts(accounts), "--remount-ro", "/"),
            *("--seccomp", str(filter_fd), "--chdir", str(box.scratch if user is None else "/"), *_environment(box)),
            *("--", *first(INSIDE_FIRST), *steps, "--", *box.argv),
        )


def _walls(user: int | None) -> tuple[str, ...]:
    size = str(TMPFS_BYTES)
    return (
        *(IN_A_NAMESPACE if user is None else AS_ROOT),
        *("--hostname", "box", "--die-with-parent", "--as-pid-1", "--clearenv"),
        # Root of the machine may write below /proc/sys whatever its namespaces; bwrap leaves that open.
        *("--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev", *_gpu()),
        *("--size", size, "--perms", "1777", "--tmpfs", "/dev/shm", "--remount-ro", "/dev"),  # noqa: S108
        *("--size", size, "--perms", "1777", "--tmpfs", "/tmp"),  # noqa: S108
    )


def _gpu() -> Iterator[str]:
    devices = gpu_devices()
    for path in devices:
        yield from ("--dev-bind", path, path)
    if devices:  # the driver looks its devices up there
        yield from ("--ro-bind", "/sys", "/sys")


def _mounts(box: Box) -> Iterator[str]:
    yield from ("--ro-bind", "/usr", "/usr", "--ro-bind", str(FIRST), INSIDE_FIRST)
    for path in SYSTEM:
        if os.path.islink(path):
            yield from ("--symlink", os.readlink(path), path)
        else:
            yield from ("--ro-bind-try", path, path)
    for path in filter(os.path.exists, LIBRARIES):
        yield from (*_parents(Path(path)), "--ro-bind", path, path)
    shown = {path: False for path in python_folders()}
    shown |= {own(path): False for path in box.readable} | {own(box.scratch): True}
    for folder in sorted(shown):  # before what lies in it
        yield from _parents(folder)
        yield from ("--bind" if shown[folder] else "--ro-bind", str(folder), str(folder))
    if box.library is not None:
        yield from _library(box.library)


def _library(library: Path) -> Iterator[str]:
    """Another standard library over this Python's, nothing over all others."""
    yield from ("--ro-bind", str(own(library)), str(LIBRARY))
    for package in (LIBRARY / name for name in PACKAGES):
        if package.is_dir():
            yield from ("--ro-bind", str(package), str(package))
    for other in map(str, other_libraries()):
        yield from ("--size", "4096", "--perms", "0555", "--tmpfs", other, "--remount-ro", other)


def _parents(path: Path) -> Iterator[str]:
    """Without this bwrap makes them for its own eyes only."""
    for parent in reversed(path.parents[:-1]):
        if parent.parts[1] not in ("usr", "proc", "dev"):
            yield from ("--perms", "0755", "--dir", str(parent))


def _accounts(descriptors: list[int]) -> Iterator[str]:
    for path, descriptor in zip(ACCOUNTS, descriptors, strict=True):
        yield from ("--perms", "0444", "--ro-bind-data", str(descriptor), path)


def _environment(box: Box) -> Iterator[str]:
    ours = {name: os.environ[name] for name in INSIDE if name in os.environ}
    path = {"PATH": f"{sys.prefix}/bin:{sys.base_prefix}/bin:/usr/local/bin:/usr/bin:/bin", "LOGNAME": "trial"}
    for name, value in {**ours, **path, **private(box), **box.environment}.items():
        yield from ("--setenv", name, value)
