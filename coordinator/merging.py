"""What to do with an accepted idea when the champion has moved: carry it over and measure the very tree that will land.

Pure. The syntax-aware three-way merge itself is `swarm.merge`; here stands what its result means for a Claim.
"""

from typing import NamedTuple

from swarm.merge import Clash, MergeConflict, merge_files
from swarm.records import Carried, Files, candidate_id

CLASHES_TOLD = 3  # of one conflict; a verdict's reason is shown to 200-300 characters
SIDE_CHARS = 60  # of each side: a constant's whole line, the first changed line of a function


class Refusal(NamedTuple):
    """Why an idea is not carried, in a sentence; whether its author could still port it."""

    reason: str
    to_port: bool = False


def carry(experiment: str, base: Files, idea: Files, champion: Files, onto: str, now: float) -> Carried | Refusal:
    """Carry an idea (made on `base`) onto the moved champion, or say why that is not possible.

    The result is another tree than the one that was confirmed: it has to be confirmed itself.
    """
    try:
        merged = merge_files(base, idea, champion)
    except MergeConflict as conflict:
        told = f"in conflict with the moved champion: {_told(conflict.clashes)}; its author is asked to port it"
        return Refusal(told, to_port=True)
    candidate = candidate_id(merged)
    if candidate == onto:
        return Refusal("the moved champion already contains this idea")
    return Carried(experiment=experiment, candidate=candidate, onto=onto, files=merged, at=now)


def _told(clashes: tuple[Clash, ...]) -> str:
    parts = [
        f"both changed {clash.name} (idea: {_change(clash.base, clash.ours)}; "
        f"champion: {_change(clash.base, clash.theirs)})"
        for clash in clashes[:CLASHES_TOLD]
    ]
    more = len(clashes) - len(parts)
    return ", ".join(parts) + (f" and {more} more" if more else "")


def _change(base: str, side: str) -> str:
    """The first line that a side wrote into a unit."""
    if not side:
        return "removed"
    known = {line.strip() for line in base.splitlines()}
    new = next((line.strip() for line in side.splitlines() if line.strip() not in known), "lines removed")
    return new if len(new) <= SIDE_CHARS else new[: SIDE_CHARS - 1] + "…"
