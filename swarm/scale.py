"""A larger scale at which a gain is checked again: `depth=2`, `tokens=3`. Pure words and what they multiply."""

import re
from typing import NamedTuple

PATTERN = r"[a-z][a-z_]*=[1-9][0-9]?"


class Scale(NamedTuple):
    """What is multiplied, and by how much; the time that a trial may take grows with it."""

    what: str
    factor: int

    def __str__(self) -> str:
        return f"{self.what}={self.factor}"

    @property
    def tokens(self) -> int:
        """How many times longer the runner's stream is."""
        return self.factor if self.what == "tokens" else 1

    @property
    def arguments(self) -> tuple[str, ...]:
        """What the training command is told beside its own arguments."""
        return () if self.what == "tokens" else ("--scale", str(self))


def parse_scale(text: str) -> Scale | None:
    """`depth=2` as a Scale; None for an empty text.

    Raises:
        ValueError: it is neither.
    """
    if not text:
        return None
    if not re.fullmatch(PATTERN, text) or text.endswith("=1"):
        raise ValueError(f"{text!r} is no scale: write it as depth=2 or tokens=3, with a whole number from 2 to 99")
    what, _, factor = text.partition("=")
    return Scale(what, int(factor))
