"""Control groups (cgroups): one for each box, in which the kernel counts memory and processes and refuses what is more.

Owns where a group is made, its limits, whether somebody was ended at them, the CPU time that was used in it, and that
no group stays. Version 1 has a hierarchy for each resource, a box then one folder in each, within the groups that the
node is in. Version 2 has one hierarchy of all, where a group with processes of its own hands nothing on: a box's is
made beside the node's. Knows no box. NOT tried on a machine: limits of version 2; none of ours hands them on.

A group is locked by its owner while it is in use, as a trial's folder is, so that what a killed owner left is known.
"""

import errno
import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from node.scratch import locked
from swarm.records import Limits

PREFIX = "swarm-box-"
REMOVE_S = 1.0  # a group is empty a moment after its last process is dead
ATTEMPTS = 3  # a node that starts just now may take a group for left, between its making and its locking
CHARGED = 64 * os.sysconf("SC_PAGE_SIZE")  # the kernel asks for so much at once
TOLD = Path("/proc/self/cgroup"), Path("/proc/self/mountinfo")


class Group:
    """A group of one box, until it is removed."""

    def __init__(self, limits: Limits) -> None:
        """Make it, and see that its limits stand.

        Raises:
            OSError: no group can be made here, or not with these limits.
        """
        name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
        self._folders = [folder / name for folder in parents(*(path.read_text() for path in TOLD))]
        self._locks, self._starved, self._used_s = ExitStack(), False, 0.0
        try:
            self._make(limits)
        except BaseException:
            self.remove()
            raise

    def _make(self, limits: Limits) -> None:
        for folder in self._folders:
            folder.mkdir()
            self._locks.enter_context(locked(folder))
            folder.stat()  # still there: from now on nobody takes it
        stand = {name for folder in self._folders for name in _limit(folder, limits)}
        if "pids.max" not in stand or not stand & {"memory.max", "memory.limit_in_bytes"}:
            raise OSError(f"{self._folders[0].parent} hands on no control of memory and processes")

    @contextmanager
    def doors(self) -> Iterator[tuple[int, ...]]:
        """Descriptors: a process of one thread that writes `0` to all is in the group, with all that it starts."""
        with ExitStack() as opened:
            yield tuple(opened.enter_context(open(_door(folder), "wb")).fileno() for folder in self._folders)

    def starved(self) -> bool:
        """Whether the kernel ended somebody because the group, not the machine, had no memory left."""
        with suppress(FileNotFoundError):  # gone: it stays as it was
            self._starved = self._starved or _starved(self._folders[0])
        return self._starved

    def used_s(self) -> float:
        """CPU seconds of everybody who was ever in it, whoever collected them; 0 where groups do not count them."""
        with suppress(FileNotFoundError):  # gone: it stays as it was
            self._used_s = max([self._used_s, *(_used_s(folder) for folder in self._folders)])
        return self._used_s

    def remove(self) -> None:
        """End whoever is left in it, and remove it. Harmless when it is gone.

        Raises:
            OSError: somebody in it cannot be ended.
        """
        self.starved()  # the last moment to know
        with self._locks:
            for folder in self._folders:
                _remove(folder)


def make_group(limits: Limits) -> Group:
    """A group, at the next attempt where somebody swept the first away.

    Raises:
        OSError: no group can be made here, or not with these limits.
    """
    for _ in range(ATTEMPTS - 1):
        with suppress(BlockingIOError, FileNotFoundError):
            return Group(limits)
    return Group(limits)


def parents(groups: str, mounts: str) -> tuple[Path, ...]:
    """Where groups are made, that of memory first: from what the kernel tells a process of its groups and mounts.

    Raises:
        OSError: nowhere.
    """
    found = _own_folders(groups, mounts)
    if "memory" in found and "pids" in found:
        return tuple(dict.fromkeys(found[name] for name in ("memory", "pids", "cpuacct") if name in found))
    if "" not in found:
        raise FileNotFoundError(errno.ENOENT, "no control groups are mounted", "/sys/fs/cgroup")
    own = found[""]
    return (next(filter(_hands_on, (own, own.parent)), own),)


def _own_folders(groups: str, mounts: str) -> dict[str, Path]:
    """The folder of the group that we are in, for each resource; of version 2 for the empty word."""
    own = {
        name: path
        for line in groups.splitlines()
        for _, names, path in [line.split(":", 2)]
        for name in names.split(",")
    }
    found: dict[str, Path] = {}
    for line in mounts.splitlines():
        place, _, kind = line.partition(" - ")
        system, _, options = kind.split(" ", 2)
        root, folder = (Path(word) for word in place.split()[3:5])
        for name in [""] if system == "cgroup2" else options.split(",") if system == "cgroup" else []:
            path = Path(own.get(name, ".."))
            if path.is_relative_to(root) and ".." not in path.parts:
                found.setdefault(name, folder / path.relative_to(root))
    return found


def _hands_on(folder: Path) -> bool:
    with suppress(FileNotFoundError):
        return {"memory", "pids"} <= set((folder / "cgroup.subtree_control").read_text().split())
    return False


def _limit(folder: Path, limits: Limits) -> Iterator[str]:
    """Set every limit that is known here, and read it back. What holds memory is not swapped out instead."""
    memory = limits.memory_mb * 2**20
    wanted = {"memory.limit_in_bytes": memory, "memory.memsw.limit_in_bytes": memory, "memory.swappiness": 0}
    wanted |= {"memory.max": memory, "memory.swap.max": 0, "memory.oom.group": 1}
    wanted |= {"pids.max": limits.processes + 1}  # and the first process, which is ours
    for name, value in wanted.items():
        if (folder / name).exists():
            (folder / name).write_text(str(value))
            if int((folder / name).read_text()) != value:
                raise OSError(f"{folder / name} does not take {value}")
            yield name


def _door(folder: Path) -> Path:
    """A single thread may enter version 1 without waiting, up to 15 ms, for every process that forks just now."""
    return folder / "tasks" if (folder / "tasks").exists() else folder / "cgroup.procs"


def _starved(folder: Path) -> bool:
    """A process that was ended for want of memory counts only where the limit was met: else the machine had none."""
    if (folder / "memory.events").exists():
        counts = _counts(folder / "memory.events")
        return min(counts["oom_kill"], counts["oom"]) > 0
    if _counts(folder / "memory.oom_control")["oom_kill"] == 0:
        return False
    # memory.failcnt would be the word for it, but stays 0 in Linux 6.18.
    most, limit = (int((folder / f"memory.{name}_in_bytes").read_text()) for name in ("max_usage", "limit"))
    return most > limit - CHARGED


def _used_s(folder: Path) -> float:
    if (folder / "cpuacct.usage").exists():
        return int((folder / "cpuacct.usage").read_text()) / 1e9
    return _counts(folder / "cpu.stat").get("usage_usec", 0) / 1e6 if (folder / "cpu.stat").exists() else 0.0


def _counts(file: Path) -> dict[str, int]:
    return {name: int(count) for name, count in (line.split() for line in file.read_text().splitlines())}


def _remove(folder: Path) -> None:
    late = time.monotonic() + REMOVE_S
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > late:
                raise
            _end_all(folder)
            time.sleep(0.002)


def _end_all(folder: Path) -> None:
    with suppress(FileNotFoundError, ProcessLookupError):
        for word in (folder / "cgroup.procs").read_text().split():
            if word != "0":  # another container's: 0 would be ourselves
                os.kill(int(word), signal.SIGKILL)


def sweep() -> None:
    """Remove the groups of killed owners. What stays is in use, another user's, or of the next start."""
    mounts = TOLD[1].read_text().splitlines() if TOLD[1].exists() else ()  # only Linux has groups
    for line in (line for line in mounts if " - cgroup" in line):
        for folder, names, _ in os.walk(line.split()[4]):
            for name in names:
                if name.startswith(PREFIX):
                    with suppress(OSError), locked(Path(folder, name)):
                        _remove(Path(folder, name))
