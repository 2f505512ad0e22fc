"""Process trees seen from outside: who belongs to one, what it uses, and its end.

Owns every look into the process table. Knows nothing of trials. A tree is its first process, all descendants, and
every process that carries the same mark in its environment: a daemon that forked twice has no parent left that
would name it, but it inherited the mark. Not covered: a process that forks twice AND wipes its environment gets away;
only a process namespace holds that one. Away from Linux other users' environments may not be readable, and marks
of daemons are then not found.
"""

import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

MARK = "SWARM_TRIAL"  # the environment variable; its value is unique to one tree
REFRESH_S = 0.5  # a look at the whole process table (2 ms among 100 processes) at most this often ...
REFRESH_SHARE = 0.02  # ... and never for more than this share of the time: a busy desktop has 400 processes
KILL_ROUNDS_S = 0.9  # a tree that forks faster than we kill is given up after this


class Usage(NamedTuple):
    """What a tree has used since its start (CPU) and holds now (memory, processes)."""

    cpu_s: float
    memory_mb: float
    processes: int  # as the kernel counts them: each thread is one


class Tree:
    """A running tree: its members, looked up now and then, and what they use, whenever asked."""

    def __init__(self, pid: int, mark: str) -> None:
        """Follow the tree that began with `pid`, a child of ours that nobody collected yet."""
        self.pid = pid
        self.mark = mark
        self._members = _family(pid)
        if not self._members:
            raise ProcessLookupError(f"process {pid} was collected by somebody else")
        self._strays: dict[int, float] = {}  # CPU of those without a parent in the tree: nobody collects theirs
        self._refresh_at = time.monotonic() + REFRESH_S / 2
        self._cpu_s = 0.0

    def usage(self) -> Usage:
        """CPU and memory of all members. CPU time of children that ended is in their parents'."""
        # Not after the end: orphans of the first process would be taken for strays, and counted twice.
        if time.monotonic() >= self._refresh_at and not has_ended(self.pid):
            self._refresh()
        family_s, memory, threads = 0.0, 0, 0
        for process in self._members:
            with suppress(psutil.Error), process.oneshot():
                times = process.cpu_times()
                cpu_s = times.user + times.system + times.children_user + times.children_system
                memory += process.memory_info().rss + _page_tables(process.pid)
                threads += process.num_threads()
                if process.pid in self._strays:
                    self._strays[process.pid] = cpu_s
                else:
                    family_s += cpu_s
        # Between a child's end and its collection its time is in neither table: never count backwards.
        self._cpu_s = max(self._cpu_s, family_s)
        return Usage(self._cpu_s + sum(self._strays.values()), memory / 2**20, threads)

    def _refresh(self) -> None:
        started = time.monotonic()
        family = _family(self.pid)
        known = {process.pid for process in family}
        strays = [process for process in _marked(self.mark) if process.pid not in known]
        for process in strays:
            self._strays.setdefault(process.pid, 0.0)
        self._members = [*family, *strays]
        cost = time.monotonic() - started
        self._refresh_at = started + max(REFRESH_S, cost / REFRESH_SHARE)


def kill_tree(pid: int, mark: str) -> None:
    """End the tree that began with our child `pid`, which is not collected yet."""
    _kill_group(pid)
    _kill_all(lambda: {*_family(pid), *_marked(mark)})


def kill_marked(mark: str) -> None:
    """End what is left of a tree whose first process is gone."""
    _kill_all(lambda: set(_marked(mark)))


def _kill_all(find: Callable[[], set[psutil.Process]]) -> None:
    """SIGKILL whom `find` finds, again and again until nobody is left who could fork."""
    deadline = time.monotonic() + KILL_ROUNDS_S
    while alive := [process for process in find() if _runs(process)]:
        for process in alive:
            with suppress(psutil.Error):
                process.kill()
        if time.monotonic() > deadline:
            return
        time.sleep(0.002)  # the kernel needs a moment to end them


def has_ended(pid: int) -> bool:
    """Whether a child of ours ended, without collecting it: its last CPU time stays readable."""
    if not hasattr(os, "waitid"):
        with suppress(psutil.Error):
            return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        return True
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True  # somebody collected it


def _family(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def _marked(mark: str) -> list[psutil.Process]:
    if not Path("/proc/self/environ").exists():
        return _marked_without_proc(mark)
    sought = f"{MARK}={mark}".encode()
    found = []
    for entry in os.listdir("/proc"):
        with suppress(OSError, psutil.Error):  # ended meanwhile, or another user's
            if entry.isdigit() and sought in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                found.append(psutil.Process(int(entry)))
    return found


def _marked_without_proc(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


def _page_tables(pid: int) -> int:
    """Bytes that the kernel holds to know a process's memory: much, where it has mapped and read what is not there."""
    with suppress(OSError):
        with open(f"/proc/{pid}/status", "rb") as file:
            return 1024 * int((re.findall(rb"^VmPTE:\s+(\d+)", file.read(), re.MULTILINE) or [0])[0])
    return 0


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD))
    return False


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        if os.getpgid(pid) == pid:  # only a group of its own
            os.killpg(pid, signal.SIGKILL)
