"""The study's own prepared data on a Node whose preparation gave another one, such as that of another Python.

Owns asking for it piece by piece, refusing what does not match its hash, and where it is kept. A folder that was
received appears whole or not at all; what a killed transfer left is used as far as its hashes hold.
"""

import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Condition
from typing import TypeVar

from node.data import Data, prepare_data, read_data
from node.scratch import remove
from swarm.corpus import (
    MANIFEST,
    MOST_MANIFEST_BYTES,
    MOST_SENT_BYTES,
    PIECE_BYTES,
    Listed,
    Manifest,
    holds,
    parse_manifest,
    read_manifest,
)
from swarm.errors import SwarmError, TaskError
from swarm.records import Piece, PieceWanted, Setup
from swarm.task import Task

ATTEMPTS = 3  # of one file; damage on the way is rare, damage at the source is for ever
MB = 1_000_000

T = TypeVar("T")
Fetch = Callable[[PieceWanted], Piece]


class NotReceived(SwarmError):
    """The study's data can not be had in this way; the message says why."""


class _DamagedError(Exception):
    """What came is not what was listed."""


class Inbox:
    """Where the worker waits for the pieces that come with the coordinator's calls."""

    def __init__(self, work: Condition) -> None:
        self._work = work
        self._piece: Piece | None = None
        self.wants: PieceWanted | None = None
        self.words = ""

    def fetch(self, wanted: PieceWanted) -> Piece:
        """Ask in every report until it comes; how long that takes is the coordinator's affair."""
        with self._work:
            self.wants, self._piece = wanted, None
            self.words = f"receiving the study's data: {wanted.path}, {wanted.offset / MB:.0f} MB so far"
            self._work.wait_for(lambda: self._piece is not None)
            piece, self.wants, self.words = self._piece, None, ""
        assert piece is not None
        return piece

    def deliver(self, piece: Piece | None) -> None:
        """Take what is wanted; anything else came twice."""
        if piece is not None and self.wants == PieceWanted(piece.path, piece.offset):
            self._piece = piece


def data_for(
    task: Task, folder: Path, setup: Setup, home: Path, fetch: Fetch, tell: Callable[[str], None]
) -> Data | None:
    """The data that this Node works with: the study's where it can be had, else its own. None when the Task has none.

    Raises:
        TaskError: the Task's script failed or left no manifest with a fingerprint, and the study's can not be had.
    """
    wanted = setup.fingerprint
    received = home / f"received-{wanted[:16]}"
    if wanted and task.has_data and _is_whole(received, wanted):
        return read_data(received)
    own, lacks = _own_data(task, folder, setup, home)
    if not lacks:
        return own
    try:
        data = receive_data(fetch, wanted, received)
    except NotReceived as error:
        copy = f"copy {setup.data} of the coordinator's machine to the same path here"
        advice = f"{copy}, or set nodes.data to a folder that both machines see, and join again"
        if own is None:
            raise TaskError(f"{lacks}; the study's was not received ({error}): {advice}") from error
        tell(f"{lacks}: scores compare only under one, so its own are kept apart ({error}); {advice}")
        return own
    tell(f"it received the study's and works with that, in {received} ({lacks})")
    return data


def _own_data(task: Task, folder: Path, setup: Setup, home: Path) -> tuple[Data | None, str]:
    """What this Node makes itself, and in words why that will not do; no words when it does, or nothing is asked."""
    try:
        own = prepare_data(task, folder, setup.data, home)
    except TaskError as error:  # no network, no such folder of texts, a package that is missing
        if not setup.fingerprint:
            raise
        return None, str(error)
    if own is None or setup.fingerprint in ("", own.fingerprint):
        return own, ""
    return own, f"its own data has fingerprint {own.fingerprint[:12]}, the study's {setup.fingerprint[:12]}"


def receive_data(fetch: Fetch, fingerprint: str, out: Path) -> Data:
    """Have the data with this fingerprint in `out`, checked against its manifest.

    Raises:
        NotReceived: it is too large, is not sent, or arrives damaged again and again.
        OSError: no room here.
    """
    remove(out)  # it is not whole, else nobody would ask
    aside = out.with_name(f".{out.name}.partial")
    aside.mkdir(parents=True, exist_ok=True)
    manifest = _repeated(MANIFEST, lambda path: _receive_manifest(fetch, aside / path, fingerprint))
    for name, listed in manifest.files.items():
        if not holds(aside / name, listed):
            _repeated(name, partial(_receive_listed, fetch, aside, listed))
    aside.rename(out)
    return read_data(out)


def _repeated(name: str, receive: Callable[[str], T]) -> T:
    for _ in range(ATTEMPTS - 1):
        with suppress(_DamagedError):
            return receive(name)
    try:
        return receive(name)
    except _DamagedError as error:
        raise NotReceived(f"{name} arrived damaged {ATTEMPTS} times ({error})") from error


def _receive_manifest(fetch: Fetch, path: Path, fingerprint: str) -> Manifest:
    _receive(fetch, MANIFEST, path, MOST_MANIFEST_BYTES)
    try:
        manifest = parse_manifest(path.read_bytes())
    except ValueError as error:
        raise _DamagedError(str(error)) from error
    if manifest.fingerprint != fingerprint:
        raise NotReceived(f"the coordinator's folder now has fingerprint {manifest.fingerprint[:12]}")
    if not manifest.files:
        raise NotReceived("its manifest lists no files with their hashes, so it is not sent")
    if manifest.bytes > MOST_SENT_BYTES:
        raise NotReceived(f"it has {manifest.bytes / MB:.0f} MB, and {MOST_SENT_BYTES / MB:.0f} MB are sent at most")
    return manifest


def _receive_listed(fetch: Fetch, aside: Path, listed: Listed, name: str) -> None:
    (aside / name).parent.mkdir(parents=True, exist_ok=True)
    _receive(fetch, name, aside / name, listed.bytes)
    if not holds(aside / name, listed):
        raise _DamagedError("its hash is another one")


def _receive(fetch: Fetch, name: str, path: Path, most_bytes: int) -> None:
    """Write a file as its pieces come: at most so much, whatever is sent."""
    size, offset = 1, 0
    with path.open("wb") as stream:
        while offset < size:
            piece = fetch(PieceWanted(name, offset))
            if piece.refused:
                raise NotReceived(piece.refused)
            raw, size = _unpacked(piece), piece.size
            if size > most_bytes or size and not raw:
                raise _DamagedError(f"{size} bytes, {offset + len(raw)} of them sent")
            stream.write(raw)
            offset += len(raw)


def _unpacked(piece: Piece) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(piece.packed, PIECE_BYTES)
    except zlib.error as error:
        raise _DamagedError(str(error)) from error
    if not unpacker.eof:
        raise _DamagedError("a piece is cut short, or larger than pieces are")
    return raw


def _is_whole(folder: Path, fingerprint: str) -> bool:
    """Whether an earlier transfer is here, every byte of it as it was listed."""
    try:
        manifest = read_manifest(folder)
    except TaskError:  # none, or a damaged one: then it is received again
        return False
    return manifest.fingerprint == fingerprint and all(holds(folder / name, of) for name, of in manifest.files.items())
