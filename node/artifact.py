"""What training left, taken over from a folder that a candidate wrote.

Owns which files are taken and the copy of them, which is ours: everything is opened below a descriptor that was had
before any code of the candidate ran, so no link, no folder in another's place and no process that is still there leads
elsewhere, and the bytes that are hashed are the bytes that are scored. They are never opened as what they claim to be.
"""

import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from node.scratch import opened
from node.watch import TrialFailed

ENTRIES = 16
BYTES = 512 * 2**20
CHUNK = 2**20
NO_FOLDER = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES}


def take_artifact(name: str, at: int, to: Path) -> str:
    """Copy the files of a folder, named below a descriptor, into a new folder of ours; their identity.

    It is the hash of their names and bytes, and the empty string when there are none.

    Raises:
        TrialFailed: no such folder; links, folders, devices, too many or too much: nothing was followed or waited for.
        OSError: the copy could not be written.
    """
    with _left(name, at) as folder:
        to.mkdir()
        to.chmod(0o755)
        return _identity(folder, to)


def hash_artifact(folder: Path) -> str:
    """The same identity, of a folder that stays where it is.

    Raises:
        TrialFailed: as above.
    """
    with opened(folder.parent) as above, _left(folder.name, above) as found:
        return _identity(found, None)


def take_again(artifact: Path, to: Path) -> str:
    """Copy what was taken once and kept; its identity, empty where it is no artifact any more.

    Whoever changed it since: not the code that is on trial now.
    """
    try:
        with opened(artifact.parent) as place:
            return take_artifact(artifact.name, place, to)
    except TrialFailed:
        return ""


@contextmanager
def _left(name: str, at: int) -> Iterator[int]:
    try:
        folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
    except OSError as error:
        if error.errno not in NO_FOLDER:
            raise
        raise TrialFailed("candidate", "rule", f"took its --out folder away: {error.strerror}") from error
    try:
        yield folder
    finally:
        os.close(folder)


def _identity(folder: int, to: Path | None) -> str:
    with os.scandir(folder) as entries:
        names = sorted((entry.name for entry in entries), key=os.fsencode)
    if len(names) > ENTRIES:
        raise TrialFailed("candidate", "rule", f"left {len(names)} files; at most {ENTRIES} are taken")
    total, room = sha256(), BYTES
    for name in names:
        size, digest = _take_file(name, folder, room, to)
        room -= size
        total.update(struct.pack("<IQ", len(os.fsencode(name)), size) + os.fsencode(name) + digest)
    return total.hexdigest() if names else ""


def _take_file(name: str, folder: int, room: int, to: Path | None) -> tuple[int, bytes]:
    try:
        # No following of links, no waiting for the other end of a FIFO.
        source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        raise TrialFailed("candidate", "rule", f"artifact {name!r} is not a readable file: {error.strerror}") from error
    try:
        facts = os.fstat(source)
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
            raise TrialFailed("candidate", "rule", f"artifact {name!r} is not an ordinary file of its own")
        if facts.st_size > room:
            raise TrialFailed("candidate", "rule", f"left more than the {BYTES // 2**20} MB that are taken")
        copy = None if to is None else os.open(to / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            return _copy(source, facts.st_size, copy)
        finally:
            if copy is not None:
                os.fchmod(copy, 0o644)  # others may read it: a box may be another user
                os.close(copy)
    finally:
        os.close(source)


def _copy(source: int, size: int, copy: int | None) -> tuple[int, bytes]:
    """As many bytes as there were, should somebody still write to it; how many, and their hash."""
    digest, left = sha256(), size
    while left and (chunk := os.read(source, min(CHUNK, left))):
        left -= len(chunk)
        digest.update(chunk)
        rest = memoryview(chunk)
        while copy is not None and rest:
            rest = rest[os.write(copy, rest) :]
    return size - left, digest.digest()
