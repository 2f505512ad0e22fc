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
    lock = os.open(home, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield home
    finally:
        remove(home)
        os.close(lock)


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
    lock = os.open(home, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)


def remove(home: Path) -> None:
    """Remove a folder, also where a candidate took our permissions away. What stays is swept at the next start.

    A candidate's folders may lie deeper than a path is long, or than Python recurses: each is moved up here first.
    """
    waiting = [home]
    while waiting:
        folder = waiting.pop()
        with suppress(OSError):
            os.chmod(folder, 0o700)
            for entry in list(os.scandir(folder)):
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(_move_up(Path(entry.path), home))
                    else:
                        os.unlink(entry.path)
            if folder != home:
                os.rmdir(folder)
    with suppress(OSError):
        os.rmdir(home)


def _move_up(folder: Path, home: Path) -> Path:
    above = home / secrets.token_hex(8)
    os.chmod(folder, 0o700)  # who may not write to a folder may not move it
    os.rename(folder, above)
    return above
