"""Level 2: a box with walls, built by bubblewrap (`bwrap`, 0.7 or newer) from the kernel's namespaces, on Linux.

Owns what is mounted, and that nothing else is. A tree sees the system's programs and libraries, this Python, what its
Box names, all of it read-only; its scratch; memory-backed /tmp and /dev/shm of limited size. It has no network, no
capability, no way to gain one, and no process beside its own; `seccomp.py` lists the system calls that it may not make.

NOT covered: faults of the kernel or of a GPU's driver; how much it writes to its scratch in many files; a fork bomb
when the node itself runs as root (the kernel exempts root from its limit of processes; the memory limit ends it).
"""

import glob
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

from node.sandbox import Box
from node.sandbox.bare import Bare, private
from node.sandbox.init import SIGNALLED
from node.sandbox.seccomp import seccomp_filter

INIT = Path(__file__).with_name("init.py")
INSIDE_INIT = "/init.py"
UID = "1000"  # inside; outside it is the node's own user, without any of its rights
PROCESSES = 1024  # a data loader and a compiler with 16 workers of 30 threads each: 500
TMPFS_BYTES = 2**30  # inductor's precompiled header alone needs more than 64 MB
ACCOUNTS = {
    "/etc/passwd": f"trial:x:{UID}:{UID}::/:/bin/sh\n".encode(),
    "/etc/group": f"trial:x:{UID}:\n".encode(),
}
SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")  # links into /usr, or folders of their own
LIBRARIES = ("/etc/ld.so.cache", "/etc/alternatives", "/sys/devices/system/cpu")
OUTSIDE = ("SWARM_HOME",)  # for the process that builds the walls: a killed agent's trials are found by it
INSIDE = ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
GPU_DEVICES = ("/dev/nvidia*", "/dev/nvidia-caps/*", "/dev/dri/renderD*", "/dev/kfd")


class Boxed(Popen[bytes]):
    """A tree behind walls; the signal that ended its program comes back as it does without walls: as -signal."""

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        super().poll()
        return self._told()

    def wait(self, timeout: float | None = None) -> int:
        """The exit code."""
        super().wait(timeout)
        code = self._told()
        assert code is not None, "it has ended"
        return code

    def _told(self) -> int | None:
        code: int | None = self.returncode
        if code is not None and SIGNALLED < code <= SIGNALLED + signal.NSIG:
            self.returncode = SIGNALLED - code
        result: int | None = self.returncode
        return result


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

    def start(self, box: Box) -> Popen[bytes]:
        """Build the walls, and start the tree behind them.

        Raises:
            OSError: no such program, or the walls could not be built.
        """
        told, ready = os.pipe()
        try:
            with _files(self._filter, *ACCOUNTS.values()) as (filter_fd, *accounts):
                argv = (
                    *(self._program, *_walls(), *_mounts(box), *_accounts(accounts), "--remount-ro", "/"),
                    *("--seccomp", str(filter_fd), "--chdir", str(box.scratch), *_environment(box), "--"),
                    *(sys.executable, "-I", "-S", INSIDE_INIT, str(ready), str(PROCESSES), "--", *box.argv),
                )
                outside = {name: os.environ[name] for name in OUTSIDE if name in os.environ} | dict(box.environment)
                process = self._trees.launch(box, argv, outside, Boxed, (ready, filter_fd, *accounts))
            os.close(ready)
            ready = -1
            self._stands(process, told)
        finally:
            os.close(told)
            if ready >= 0:
                os.close(ready)
        return process

    def kill(self, process: Popen[bytes]) -> None:
        """End the whole tree within a second and reap it. Harmless when it has ended already.

        Raises:
            OSError: the kernel does not let go of it (a hung driver); the machine needs a person.
        """
        self._trees.kill(process)

    def _stands(self, process: Popen[bytes], told: int) -> None:
        """Wait until the program runs: what goes wrong before that is not the candidate's fault."""
        with os.fdopen(os.dup(told), "rb") as note:
            word = note.read()
        if word == b"+":
            return
        self.kill(process)
        log = process.stderr or process.stdout
        said = word.removeprefix(b"+") or (log.read() if log else b"")
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        raise OSError(f"the box could not be built: {said.decode('utf-8', 'replace').strip() or 'bwrap said nothing'}")


def _walls() -> tuple[str, ...]:
    size = str(TMPFS_BYTES)
    return (
        *("--unshare-all", "--unshare-user", "--uid", UID, "--gid", UID, "--hostname", "box"),
        *("--die-with-parent", "--as-pid-1", "--cap-drop", "ALL", "--clearenv"),
        # Root of the machine may write below /proc/sys whatever its namespaces; bwrap leaves that open.
        *("--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev", *_gpu()),
        *("--size", size, "--perms", "1777", "--tmpfs", "/dev/shm", "--remount-ro", "/dev"),  # noqa: S108
        *("--size", size, "--perms", "1777", "--tmpfs", "/tmp"),  # noqa: S108
    )


def _gpu() -> Iterator[str]:
    devices = [path for pattern in GPU_DEVICES for path in glob.glob(pattern) if not os.path.isdir(path)]
    for path in devices:
        yield from ("--dev-bind", path, path)
    if devices:  # the driver looks its devices up there
        yield from ("--ro-bind", "/sys", "/sys")


def _mounts(box: Box) -> Iterator[str]:
    yield from ("--ro-bind", "/usr", "/usr", "--ro-bind", str(INIT), INSIDE_INIT)
    for path in SYSTEM:
        if os.path.islink(path):
            yield from ("--symlink", os.readlink(path), path)
        else:
            yield from ("--ro-bind-try", path, path)
    for path in LIBRARIES:
        yield from ("--ro-bind-try", path, path)
    python = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.base_exec_prefix)}
    shown = {path: False for path in python if not path.is_relative_to("/usr")}
    shown |= {_own(path): False for path in box.readable} | {_own(box.scratch): True}
    for folder in sorted(shown):  # before what lies in it
        yield from _parents(folder)
        yield from ("--bind" if shown[folder] else "--ro-bind", str(folder), str(folder))


def _own(path: Path) -> Path:
    """A path that a candidate had no hand in: a link of its making would show it what it points to."""
    if path.is_symlink():
        raise OSError(f"{path} is a symbolic link; a box takes the folder itself")
    return path.absolute()


def _parents(path: Path) -> Iterator[str]:
    """Without this bwrap makes them for its own eyes only."""
    for parent in reversed(path.parents[:-1]):
        if parent.parts[1] not in ("usr", "sys", "proc", "dev"):
            yield from ("--perms", "0755", "--dir", str(parent))


def _accounts(descriptors: list[int]) -> Iterator[str]:
    for path, descriptor in zip(ACCOUNTS, descriptors, strict=True):
        yield from ("--perms", "0444", "--ro-bind-data", str(descriptor), path)


def _environment(box: Box) -> Iterator[str]:
    ours = {name: os.environ[name] for name in INSIDE if name in os.environ}
    path = {"PATH": f"{sys.prefix}/bin:{sys.base_prefix}/bin:/usr/local/bin:/usr/bin:/bin", "LOGNAME": "trial"}
    for name, value in {**ours, **path, **private(box), **box.environment}.items():
        yield from ("--setenv", name, value)


@contextmanager
def _files(*contents: bytes) -> Iterator[list[int]]:
    """Bytes as descriptors that a child may read from their beginning."""
    descriptors: list[int] = []
    try:
        for content in contents:
            descriptors.append(os.memfd_create("box"))
            os.write(descriptors[-1], content)
            os.lseek(descriptors[-1], 0, os.SEEK_SET)
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
