"""What a folder of prepared data says of itself: its manifest, and whether the files are as the manifest lists them.

Knows nothing of what the tokens mean or how they were made: that is the Task's. A manifest without `files` is valid,
but such a folder cannot be checked, so it is not sent from one machine to another.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from swarm.errors import TaskError

MANIFEST = "manifest.json"
PIECE_BYTES = 1_000_000  # of a file, before it is packed; at two polls a second a node gets 2 MB/s
MOST_SENT_BYTES = 256_000_000  # two minutes at that speed; the standard library has 12 MB
MOST_MANIFEST_BYTES = 4_000_000  # some 20,000 files


class Listed(NamedTuple):
    """A file as the manifest lists it."""

    bytes: int
    sha256: str


class Manifest(NamedTuple):
    """Which data it is, and of what files it consists, the manifest itself aside."""

    fingerprint: str
    files: Mapping[str, Listed]
    source: str = ""  # what kind of text it was made of, as far as it says

    @property
    def bytes(self) -> int:
        """Of all listed files."""
        return sum(listed.bytes for listed in self.files.values())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder with prepared data.

    Raises:
        TaskError: it cannot be read, or names no fingerprint.
    """
    path = folder / MANIFEST
    try:
        return parse_manifest(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TaskError(f"{path} cannot be read: {error}; remove {folder} and prepare again") from error


def parse_manifest(raw: bytes) -> Manifest:
    """The parts of a manifest that are not the Task's own business.

    Raises:
        ValueError: it is none.
    """
    manifest = json.loads(raw.decode("utf-8"))
    fingerprint = manifest.get("fingerprint") if isinstance(manifest, dict) else None
    if not isinstance(fingerprint, str) or not fingerprint:
        raise ValueError("it has no fingerprint")
    files = manifest.get("files", {})
    if not isinstance(files, dict):
        raise ValueError("it lists its files in a form that is not known here")
    listed = {name: _listed(name, facts) for name, facts in files.items()}
    return Manifest(fingerprint, listed, str(manifest.get("source", "")))


def _listed(name: str, facts: object) -> Listed:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or name == MANIFEST:
        raise ValueError(f"it lists {name!r}, which is no file of its folder")
    match facts:
        case {"bytes": int(size), "sha256": str(digest)} if size >= 0:
            return Listed(size, digest)
    raise ValueError(f"it lists {name!r} without bytes and sha256")


def holds(path: Path, listed: Listed) -> bool:
    """Whether a file is there and is the very one that was listed."""
    if not path.is_file() or path.stat().st_size != listed.bytes:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == listed.sha256
