"""What a tree has written below its scratch: bytes and files, looked up now and then.

Owns the walk, which ends as soon as a limit is passed: a million files cost no more than the limit's worth. What was
written is hostile: links are not followed, and a folder that cannot be looked into counts as everything.
NOT covered: files that were deleted and are still held open; what is written and removed between two looks.
"""

import math
import os
import stat
import time
from pathlib import Path
from typing import NamedTuple

from node.scratch import opened

LOOK_S = 0.5  # a disk takes 1 GB in that time at most
LOOK_SHARE = 0.02  # and never for more than this share of the time: 20 000 files take 60 ms


class Footprint(NamedTuple):
    """So much lies there; of a tree above its limits, what was seen until then."""

    written_mb: float
    files: int
    hidden: str = ""  # a folder that cannot be looked into


def footprint(folder: Path, most_mb: float, most_files: int) -> Footprint:
    """Look at everything below a folder, until it is too much."""
    size, files, waiting = 0, 0, [str(folder)]
    while waiting:
        place = waiting.pop()
        try:
            with opened(place) as at, os.scandir(at) as entries:
                for entry in entries:
                    files += 1
                    size += _size(entry)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(os.path.join(place, entry.name))
                    if files > most_files or size > most_mb * 2**20:
                        return Footprint(size / 2**20, files)
        except (FileNotFoundError, NotADirectoryError):
            continue  # removed meanwhile
        except OSError as error:  # no permission, or a path longer than the system takes
            return Footprint(size / 2**20, files, f"a folder of its scratch cannot be looked into: {error.strerror}")
    return Footprint(size / 2**20, files)


def _size(entry: os.DirEntry[str]) -> int:
    """What it takes of the disk: a sparse file takes less than it seems."""
    try:
        found = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return 0
    return 512 * found.st_blocks if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode) else 0


class Footprints:
    """The looks at one folder, at times of a clock that is never set back."""

    def __init__(self, folder: Path, most_mb: float, most_files: int) -> None:
        """Nothing looked at yet."""
        self._folder, self._most_mb, self._most_files = folder, most_mb, most_files
        self._next_at = -math.inf

    def excess(self, now: float) -> str:
        """What is too much, in words; empty when nothing is, or when it is not yet time to look."""
        if now < self._next_at:
            return ""
        before = time.monotonic()
        found = footprint(self._folder, self._most_mb, self._most_files)
        self._next_at = now + max(LOOK_S, (time.monotonic() - before) / LOOK_SHARE)
        if found.hidden:
            return found.hidden
        if found.files > self._most_files:
            return f"wrote more than {self._most_files} files"
        return f"wrote more than {self._most_mb:g} MB" if found.written_mb > self._most_mb else ""
