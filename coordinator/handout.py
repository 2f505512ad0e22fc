"""The prepared data of a study, piece by piece, for nodes whose own preparation gave other data.

Owns reading the coordinator's folder, and that nothing leaves it but the files that its manifest lists. It remembers
nothing of who asked for what: every piece is asked for by name, and may be asked for again.
"""

import zlib
from pathlib import Path

from swarm.corpus import MANIFEST, PIECE_BYTES, read_manifest
from swarm.errors import TaskError
from swarm.records import Piece, PieceWanted

LEVEL = 1  # of zlib: 1 MB of tokens takes about 30 ms; higher levels save a few per cent more and take seconds


def piece_of(folder: str, wanted: PieceWanted) -> Piece:
    """The piece that a node wants, or a word why it can not be had."""
    try:
        return _piece(folder, wanted)
    except (OSError, TaskError) as error:
        return Piece(wanted.path, wanted.offset, 0, b"", refused=f"the coordinator cannot send {wanted.path}: {error}")


def _piece(folder: str, wanted: PieceWanted) -> Piece:
    if not folder or wanted.path != MANIFEST and wanted.path not in read_manifest(Path(folder)).files:
        raise TaskError("it is no file of the study's data")
    path = Path(folder) / wanted.path
    with path.open("rb") as stream:
        stream.seek(wanted.offset)
        packed = zlib.compress(stream.read(PIECE_BYTES), LEVEL)
    return Piece(wanted.path, wanted.offset, path.stat().st_size, packed)
