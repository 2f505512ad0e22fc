"""The folders in which Trials run: one for each, locked while it is in use, and gone afterwards.

Owns how they are told from those that killed owners left, and how they are removed against a candidate's will. Knows
nothing of what runs in them.
"""

import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from node.processes import kill_marked

PREFIX = "trial-"


@contextmanager
def new_home(scratch: Path) -> Iterator[Path]:
    """A new folder for one Trial, locked while it is in use and gone afterwards."""
    scratch.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix=PREFIX, dir=scratch.resolve()))
    if os.geteuid() == 0:
        home.chmod(0o711)  # its boxes may be another user (`sandbox/slots.py`), who has to pass
    with opened(home) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield home
        finally:
            remove(home)


def sweep_scratch(scratch: Path) -> None:
    """End and remove what Trials of killed owners left. Folders in use are locked, and left alone."""
    if not scratch.is_dir():
        return
    for home in scratch.resolve().glob(PREFIX + "*"):
        with suppress(BlockingIOError, FileNotFoundError), locked(home):
            kill_marked(str(home))
            remove(home)


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold a folder against who sweeps. Raises OSError where another process holds it, or it is gone."""
    with opened(home) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextmanager
def opened(folder: str | Path, at: int | None = None) -> Iterator[int]:
    """A descriptor of a folder, named below another one or by its path: of itself, never of what a link leads to.

    What a candidate wrote is reached through these: whatever it puts in a folder's place meanwhile, they stay with what
    they were opened for.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def remove(home: Path) -> None:
    """Remove a folder, also where a candidate took our permissions away. What stays is swept at the next start.

    A candidate's folders may lie deeper than a path is long, or than Python recurses: each is moved up here first.
    """
    waiting = [home]
    while waiting:
        folder = waiting.pop()
        with suppress(OSError):
            _open_up(folder)
            with opened(folder) as at:
                for entry in list(os.scandir(at)):
                    with suppress(OSError):
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(_move_up(entry.name, at, home))
                        else:
                            os.unlink(entry.name, dir_fd=at)
            if folder != home:
                os.rmdir(folder)
    with suppress(OSError):
        os.rmdir(home)


def _move_up(name: str, at: int, home: Path) -> Path:
    above = home / secrets.token_hex(8)
    _open_up(name, at)  # who may not write to a folder may not move it
    os.rename(name, above, src_dir_fd=at)
    return above


def _open_up(folder: str | Path, at: int | None = None) -> None:
    """Have all rights to a folder of ours, and to nothing that a link leads to."""
    if os.chmod in os.supports_follow_symlinks:
        os.chmod(folder, 0o700, dir_fd=at, follow_symlinks=False)
        return
    found = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)  # Linux cannot; but it can this
    try:
        os.chmod(f"/proc/self/fd/{found}", 0o700)
    finally:
        os.close(found)
