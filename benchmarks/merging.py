"""How well several accepted ideas are merged: made-up gains and conflicts, planned by `coordinator.batches`.

    python benchmarks/merging.py [--worlds 2000]

The world is assumed: true gains of 1 to 3 noise sd, claims with an error of 0.5, every pair of ideas interacting with
sd 0.3; a conflicting pair (10 %) is together worth nothing. A run's noise is 1 sd; a set is measured by two
runs beside the champion's two, which the sets share.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from coordinator.batches import PAIRS, Final, Idea, Set, plan  # noqa: E402

CONFLICTS = 0.1  # of pairs
INTERACTION = 0.3  # sd of a pair


@dataclass(frozen=True)
class World:
    """What ideas are truly worth, alone and in pairs."""

    gains: dict[str, float]
    pairs: dict[Set, float]

    def worth(self, ideas: Set) -> float:
        """Of a set."""
        return sum(self.gains[i] for i in ideas) + sum(self.pairs[frozenset(p)] for p in combinations(ideas, 2))


@dataclass(frozen=True)
class Outcome:
    """Of one batch."""

    runs: int
    gain: float
    best: float
    harmful: bool


def world(count: int, random_: random.Random, conflicts: float, sd: float) -> World:
    """Ideas with made-up gains and conflicts."""
    gains = {f"i{n}": random_.uniform(1, 3) for n in range(count)}
    pairs = {frozenset(p): random_.gauss(0, sd) for p in combinations(gains, 2)}
    for pair in sorted(pairs, key=sorted):
        if random_.random() < conflicts:
            pairs[pair] = -sum(gains[idea] for idea in pair)
    return World(gains, pairs)


def subsets(names: Sequence[str]) -> list[Set]:
    """Every set of these ideas, the empty one too."""
    return [frozenset(some) for size in range(len(names) + 1) for some in combinations(names, size)]


def batch(count: int, seed: int, conflicts: float = CONFLICTS, sd: float = INTERACTION) -> Outcome:
    """Plan one batch to its end."""
    random_ = random.Random(seed)
    true = world(count, random_, conflicts, sd)
    ideas = [Idea(name, gain / 0.85 + random_.gauss(0, 0.5)) for name, gain in true.gains.items()]
    champion = random_.gauss(0, PAIRS**-0.5)
    measured: dict[Set, float] = {}
    while not isinstance(step := plan(ideas, measured), Final):
        measured[step.ideas] = true.worth(step.ideas) + random_.gauss(0, PAIRS**-0.5) - champion
    final = frozenset(step.order)
    best = max(map(true.worth, subsets(list(true.gains))))
    harmful = any(true.worth(final - {idea}) > true.worth(final) for idea in final)
    return Outcome(PAIRS * (len(measured) + 1), true.worth(final), best, harmful)


def summary(done: Sequence[Outcome]) -> tuple[float, float, float]:
    """Mean runs, share of the best subset's gain, share of final sets with a harmful idea."""
    kept = sum(o.gain for o in done) / sum(o.best for o in done)
    return fmean(o.runs for o in done), kept, fmean(o.harmful for o in done)


def main() -> None:
    """Print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=2_000)
    worlds = parser.parse_args().worlds
    print("ideas  conflicts  sd   runs  most  kept of the best subset  with a harmful idea")
    for count, conflicts, sd in ((3, CONFLICTS, INTERACTION), (6, CONFLICTS, INTERACTION), (6, 0.2, 0.6)):
        done = [batch(count, seed, conflicts, sd) for seed in range(worlds)]
        runs, kept, harmful = summary(done)
        most = max(outcome.runs for outcome in done)
        print(f"{count:5d} {conflicts:10.0%} {sd:3.1f} {runs:6.1f} {most:5d} {kept:24.1%} {harmful:20.1%}")


if __name__ == "__main__":
    main()
