"""Which of several accepted ideas to land together: the whole batch, halves where it disappoints, then each left out.

Pure and without memory: the same ideas and measurements give the same next step, so it can be asked again after a
restart. It knows nothing of files, nodes or claims; gains are in noise sd, over the champion that all ideas start from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

KEEP = 0.6  # a set stays when it gains this share of what is expected of it
KEEP_ONE = 0.0  # of a single idea: in a conflict it costs about what the other one gains, far below zero
SHRINK = 0.85  # expected of a confirmed claim: the winner's curse that the early stop leaves
PAIRS = 2  # of one set: at most 8 runs for three ideas and 26 for six; with 3 pairs 12 and 39, for 1 % more of the gain
LEAVE_ONE_OUT_FROM = 5  # ideas; with fewer, a conflict is rare and bisecting finds it

Set = frozenset[str]


@dataclass(frozen=True)
class Idea:
    """An accepted claim: its name and the gain that was confirmed for it alone."""

    name: str
    claimed: float


@dataclass(frozen=True)
class Measure:
    """Measure these ideas together next."""

    ideas: Set


@dataclass(frozen=True)
class Final:
    """Land these, in this order: largest claim first."""

    order: tuple[str, ...]


@dataclass(eq=False)
class _Unknown(Exception):  # noqa: N818  # not an error: the plan stops where a measurement is missing
    ideas: Set


def plan(ideas: Sequence[Idea], measured: Mapping[Set, float]) -> Measure | Final:
    """The next set to measure, or the set to land when everything that matters has been measured."""
    claims = {idea.name: SHRINK * idea.claimed for idea in ideas}
    order = sorted(claims, key=lambda name: (-claims[name], name))
    try:
        kept = _bisected(order, frozenset(), claims, measured)
        if len(ideas) >= LEAVE_ONE_OUT_FROM:
            kept = _without_the_harmful(kept, measured)
    except _Unknown as missing:
        return Measure(missing.ideas)
    return Final(tuple(name for name in order if name in kept))


def _gain(ideas: Set, measured: Mapping[Set, float]) -> float:
    if not ideas:
        return 0.0
    if ideas not in measured:
        raise _Unknown(ideas)
    return measured[ideas]


def _bisected(names: Sequence[str], kept: Set, claims: Mapping[str, float], measured: Mapping[Set, float]) -> Set:
    """`kept` and those of `names` that go with it."""
    both = kept | set(names)
    if len(both) == 1:  # confirmed already, by its own claim
        return both
    base = _gain(kept, measured) if len(kept) != 1 else sum(claims[name] for name in kept)
    share = KEEP if len(names) > 1 else KEEP_ONE
    if _gain(both, measured) - base >= share * sum(claims[name] for name in names):
        return both
    if len(names) == 1:
        return kept
    half = (len(names) + 1) // 2
    first = _bisected(names[:half], kept, claims, measured)
    return _bisected(names[half:], first, claims, measured)


def _without_the_harmful(kept: Set, measured: Mapping[Set, float]) -> Set:
    """One pass: every idea left out once; the one that is missed least goes, if the rest gains as much without it."""
    if len(kept) < 3:  # two were measured together as a pair above
        return kept
    whole = _gain(kept, measured)
    losses = {name: whole - _gain(kept - {name}, measured) for name in sorted(kept)}
    worst = min(losses, key=lambda name: losses[name])
    return kept - {worst} if losses[worst] <= 0 else kept
