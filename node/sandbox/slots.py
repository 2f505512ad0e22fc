"""Whom a box's processes are where the node is root: a user of this node alone, without a name or any right.

Owns which user that is, and that it may read what a box shows. Another node of this machine has another one: limits
that the kernel keeps for each user are of one box, and no box owns what another wrote. A node that is not root has
nothing to choose: its boxes are the user that it is. Knows no walls.
"""

import os
import pwd
import socket
import stat
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from subprocess import Popen

from node.sandbox import Box
from node.sandbox.needs import LIBRARY, gpu_devices, python_folders

# Between the ranges that systemd gives to others, and below 2^16: many a container has no more.
USERS = range(60600, 61184)
READ, ENTER = stat.S_IROTH, stat.S_IXOTH
INSTEAD = "start the node as an ordinary user, or put it elsewhere"


class Slot:
    """Who the boxes of one sandbox are. `lacks` says why one was root's, where the node is root and one was."""

    def __init__(self, *, by_path: bool) -> None:
        """`by_path`: nothing is mounted, so each path has to be open to others from the root on."""
        self.lacks = ""
        self._by_path = by_path
        self._may: bool | None = None  # start boxes of another user; None until one was started

    def start(self, box: Box, start: Callable[[int | None], Popen[bytes]]) -> Popen[bytes]:
        """Start a box as this node's user where that can be, else (None) as the user that the node is.

        Raises:
            OSError: it starts in neither way; or in this one no more, in which another box did.
        """
        if os.geteuid() != 0:
            return start(None)
        user = None if self._may is False else self._user(box)
        if user is None or self._may:
            return self._start(box, user, start)
        try:
            process = self._start(box, user, start)
        except OSError as error:
            process = self._start(box, None, start)
            self._may, self.lacks = False, f"root may not start another user's box here ({error})"
        else:
            self._may = True
        return process

    def _start(self, box: Box, user: int | None, start: Callable[[int | None], Popen[bytes]]) -> Popen[bytes]:
        """No process of a candidate is there yet: what lies in the scratch is ours to give, and to take back."""
        if user is not None or os.stat(box.scratch).st_uid in USERS:
            for folder, folders, files in os.walk(box.scratch):
                for name in (".", *folders, *files):
                    os.chown(os.path.join(folder, name), user or 0, user or 0, follow_symlinks=False)
        return start(user)

    def _user(self, box: Box) -> int | None:
        user = _free_user()
        closed = (
            self._closed(box) if user else f"each user from {USERS[0]} to {USERS[-1]} has an account or a node here"
        )
        self.lacks = closed or self.lacks
        return None if closed else user

    def _closed(self, box: Box) -> str:
        """Why this node's user can not read what a box shows; empty when it can."""
        shown = (*box.readable, *([box.library] if box.library else []))
        for path in (*shown, *_python(), box.scratch) if self._by_path else ():
            if shut := next(filter(None, map(_shut, path.parents)), ""):
                return f"only root may enter {shut}, on the way to {path}; {INSTEAD}"
        closed = next(filter(None, (_closed_python(), *map(closed_to_others, shown))), "")
        return f"only root may read {closed} (umask 022 makes files that others may read); {INSTEAD}" if closed else ""


@lru_cache(maxsize=64)
def closed_to_others(path: Path) -> str:
    """The first file or folder, of this one and all below it, that others may not read; empty when there is none."""
    return next(_closed(path, deep=True), "")


@cache
def _closed_python() -> str:
    """The same for this Python and its packages. What lies in a package is taken to be as open as the package."""
    within = [(path, parent) for path in _python() for parent in path.parents]
    ways = (_shut(parent) for _, parent in within if any(parent.is_relative_to(top) for top in python_folders()))
    return next(filter(None, (*ways, *(shut for path in _python() for shut in _closed(path, deep=False)))), "")


def _python() -> set[Path]:
    packages = (Path(sysconfig.get_paths()[name]) for name in ("purelib", "platlib"))
    return {Path(os.path.realpath(sys.executable)), LIBRARY, *packages}


def _shut(folder: Path) -> str:
    return "" if os.stat(folder).st_mode & ENTER else str(folder)


def _closed(path: Path, *, deep: bool) -> Iterator[str]:
    waiting = [str(path)]
    while waiting:
        place = waiting.pop()
        mode = os.lstat(place).st_mode
        needed = READ | ENTER if stat.S_ISDIR(mode) else 0 if stat.S_ISLNK(mode) else READ
        if mode & needed != needed:
            yield place
        elif stat.S_ISDIR(mode) and (deep or place == str(path)):
            waiting += [entry.path for entry in os.scandir(place)]


@cache
def _free_user() -> int | None:
    """One that has no account, and that no other node of this machine took; None where none is left."""
    for user in USERS:  # taken by a name of the kernel's, which it gives back when this process ends
        with suppress(KeyError):
            pwd.getpwuid(user)
            continue
        name = socket.socket(socket.AF_UNIX)
        try:
            name.bind(f"\0swarm-slot-{user}")
        except OSError:
            name.close()
        else:
            name.detach()
            return user
    return None


def as_user(user: int | None, box: Box) -> tuple[str, ...]:
    """What the first process is told (`first.py`): the user, and the groups that alone may use some drivers' GPUs."""
    if user is None:
        return ()
    groups = {os.stat(device).st_gid for device in gpu_devices()} - {0}
    return (f"user={user}", *(f"also={group}" for group in sorted(groups)), f"at={box.scratch}")
