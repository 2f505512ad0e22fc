"""Which of several accepted ideas to land together: all, and each left out, are measured, then what promises most.

Pure and without memory: the same ideas and measurements give the same next step, so it can be asked again after a
restart. It knows nothing of files, nodes or claims; gains are over the champion that all ideas start from.

A measured set teaches about every set that it shares ideas with. What a set gains is taken as the sum of its claims,
plus an error of each claim, plus an interaction of each two ideas; all of these are normal, so what to expect of every
set follows from what was measured by linear algebra (kriging), and most sets need not be measured to be ruled out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

SHRINK = 0.85  # expected of a confirmed claim: the winner's curse that the early stop leaves
CLAIM_ERROR = 0.3  # of a claim, in noise sd of a pair: what some six pairs leave
INTERACTION = 0.65  # of two ideas, in mean claims; 0.4 and 1.0 keep the same share of the gain within 0.4 %
LEAST_SD = 1e-4  # in mean claims: below it elimination would lose its digits
PAIRS = 2  # of one set
GROUP = 4  # sets measured at once: they share the champion's runs in a block, whose noise cancels between them
MOST_SETS = 12  # six ideas take at most 32 runs

Set = frozenset[str]


@dataclass(frozen=True)
class Idea:
    """An accepted claim: its name and the gain that was confirmed for it alone."""

    name: str
    claimed: float


@dataclass(frozen=True)
class Measure:
    """Measure these sets of ideas next, side by side."""

    sets: tuple[Set, ...]


@dataclass(frozen=True)
class Final:
    """Land these, in this order: largest claim first."""

    order: tuple[str, ...]


def plan(ideas: Sequence[Idea], measured: Mapping[Set, float], sd: float = 1.0) -> Measure | Final:
    """The sets to measure next, or the one to land when it is known, or has cost enough; `sd` is that of a pair."""
    claims = {idea.name: SHRINK * idea.claimed for idea in ideas}
    order = sorted(claims, key=lambda name: (-claims[name], name))
    if missing := [some for some in _first(order) if some not in measured]:
        return Measure(tuple(missing))
    sets = [frozenset(some) for size in range(1, len(order) + 1) for some in combinations(order, size)]
    expected = _expected(sets, claims, measured, sd)
    best_first = sorted(sets, key=lambda some: -expected[some])
    unknown = [some for some in best_first if len(some) > 1 and some not in measured]
    room = min(GROUP, min(MOST_SETS, len(order) * (len(order) - 1) // 2) - len(measured))
    if unknown and best_first[0] == unknown[0] and room > 0:
        return Measure(tuple(unknown[:room]))
    final = next((some for some in best_first if some not in unknown), frozenset())
    return Final(tuple(name for name in order if name in final))


def _first(order: Sequence[str]) -> list[Set]:
    """The whole, and each idea but the largest left out; one alone is known from its claim."""
    whole = frozenset(order)
    return [some for some in (whole, *(whole - {name} for name in reversed(order[1:]))) if len(some) > 1]


def _expected(
    sets: Sequence[Set], claims: Mapping[str, float], measured: Mapping[Set, float], sd: float
) -> dict[Set, float]:
    """What every set gains, as far as can be told: its claims, moved by what similar sets gained more or less."""
    mean = fmean(claims.values() or [0.0])
    sd = max(sd, LEAST_SD * mean)
    alone, pair = (CLAIM_ERROR * sd) ** 2, (INTERACTION * mean) ** 2
    own = champion = sd**2 / PAIRS / 2  # half of a pair's noise each

    def shared(one: Set, other: Set) -> float:
        common = len(one & other)
        return alone * common + pair * common * (common - 1) / 2

    def claimed(some: Set) -> float:
        return sum(claims[name] for name in sorted(some))

    known = sorted(measured, key=sorted)
    matrix = [[shared(a, b) + champion + own * (a == b) for b in known] for a in known]
    weights = _solved(matrix, [measured[some] - claimed(some) for some in known])
    return {
        some: claimed(some) + sum(shared(some, one) * weight for one, weight in zip(known, weights, strict=True))
        for some in sets
    }


def _solved(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """Of linear equations, by elimination; a covariance with noise on its diagonal needs no pivots."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i, row in enumerate(rows):
        for j in range(i + 1, len(rows)):
            factor = rows[j][i] / row[i]
            rows[j] = [below - factor * above for below, above in zip(rows[j], row, strict=True)]
    found: list[float] = []
    for i in reversed(range(len(rows))):
        rest = sum(a * x for a, x in zip(rows[i][i + 1 : -1], reversed(found), strict=True))
        found.append((rows[i][-1] - rest) / rows[i][i])
    return found[::-1]
