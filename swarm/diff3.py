"""A textual three-way join of two edited sequences: lines of a file, or pieces of a line.

Pure, and as careful as `git merge-file`: edits that overlap or touch are not joined. It knows nothing of Python.
"""

import difflib
import re
from collections.abc import Sequence
from typing import NamedTuple

PIECES_JOINED = 5_000  # of a side; difflib takes quadratic time, 5,000 lines are compared within about a second

_PIECE = re.compile(r"#.*|[\w.]+|\s+|.")  # comments, words, blank space, single signs: together every character


class _Edit(NamedTuple):
    start: int  # in the base
    stop: int
    pieces: tuple[str, ...]


def join_lines(base: str, ours: str, theirs: str) -> str | None:
    """Both edits of a text, line by line; None when they overlap or touch."""
    return _joined(*(text.splitlines(keepends=True) for text in (base, ours, theirs)))


def join_pieces(base: str, ours: str, theirs: str) -> str | None:
    """Both edits of a short text, also on one line; None when they overlap or touch."""
    return _joined(*(_PIECE.findall(text) for text in (base, ours, theirs)))


def _joined(base: list[str], ours: list[str], theirs: list[str]) -> str | None:
    if max(len(base), len(ours), len(theirs)) > PIECES_JOINED:
        return None
    edits = sorted({*_edits(base, ours), *_edits(base, theirs)})  # what both did alike is there once
    if any(before.stop >= after.start for before, after in zip(edits, edits[1:], strict=False)):
        return None
    pieces: list[str] = []
    done = 0
    for edit in edits:
        pieces += [*base[done : edit.start], *edit.pieces]
        done = edit.stop
    return "".join([*pieces, *base[done:]])


def _edits(base: Sequence[str], side: Sequence[str]) -> list[_Edit]:
    codes = difflib.SequenceMatcher(None, base, side, autojunk=False).get_opcodes()
    return [_Edit(i, j, tuple(side[k:m])) for tag, i, j, k, m in codes if tag != "equal"]
