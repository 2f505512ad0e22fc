"""How well several accepted ideas are merged: made-up gains and conflicts, planned by `coordinator.batches`.

    .venv/bin/python -m benchmarks.merging [--worlds 2000]

The world is assumed: true gains of 1 to 3 noise sd, claims with an error of 0.5, every pair of ideas interacting with
sd 0.3; a conflicting pair (10 %) is together worth nothing. A run's noise is 1 sd. As in a study, a set is measured by
two runs, beside two runs of the champion that at most four sets of one step share; the next step has its own.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import NamedTuple

from coordinator.batches import PAIRS, Final, Idea, Set, plan
from coordinator.leases import SHARED_BY

RUN_SD = 1.0
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
    runs, measured = 0, dict[Set, float]()
    while not isinstance(step := plan(ideas, measured, RUN_SD * 2**0.5), Final):
        for at in range(0, len(step.sets), SHARED_BY):
            together = step.sets[at : at + SHARED_BY]
            champion = random_.gauss(0, RUN_SD * PAIRS**-0.5)
            runs += PAIRS * (1 + len(together))
            for some in together:
                measured[some] = true.worth(some) + random_.gauss(0, RUN_SD * PAIRS**-0.5) - champion
    final = frozenset(step.order)
    best = max(map(true.worth, subsets(list(true.gains))))
    harmful = any(true.worth(final - {idea}) > true.worth(final) for idea in final)
    return Outcome(runs, true.worth(final), best, harmful)


class Batches(NamedTuple):
    """Many batches of one kind."""

    name: str
    mean_runs: float
    most_runs: int
    kept: float  # share of the best subset's gain
    harmful: float  # share of final sets with an idea that harms

    def row(self) -> str:
        """A line of the table."""
        return f"{self.name:32}{self.mean_runs:6.1f}{self.most_runs:6d}{self.kept:8.1%}{self.harmful:9.1%}"


HEAD = f"{'accepted ideas that are joined':32}{'runs':>6}{'most':>6}{'kept':>8}{'harmful':>9}"
# ideas: most runs, least share kept, most final sets with a harmful idea
BARS = {3: (8, 0.97, 1.0), 6: (34, 0.95, 0.12)}


def batches(count: int, worlds: int, conflicts: float = CONFLICTS, sd: float = INTERACTION) -> Batches:
    """Plan that many."""
    done = [batch(count, seed, conflicts, sd) for seed in range(worlds)]
    kept = sum(o.gain for o in done) / sum(o.best for o in done)
    name = f"{count}, {conflicts:.0%} in conflict, sd {sd}"
    return Batches(name, fmean(o.runs for o in done), max(o.runs for o in done), kept, fmean(o.harmful for o in done))


def report(worlds: int) -> bool:
    """Print the table and the bars; whether they hold."""
    found = {count: batches(count, worlds) for count in BARS}
    print("\n".join([HEAD, *(one.row() for one in found.values()), batches(6, worlds, 0.2, 0.6).row(), ""]))
    good = True
    for count, (runs, kept, harmful) in BARS.items():
        seen = found[count]
        holds = seen.most_runs <= runs and seen.kept >= kept and seen.harmful <= harmful
        bars = (
            f"{seen.most_runs} <= {runs} runs, {seen.kept:.3f} >= {kept} kept, {seen.harmful:.3f} <= {harmful} harmful"
        )
        print(f"{'holds' if holds else 'FAILS'}  {count} ideas{bars:>70}")
        good = good and holds
    return good


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=2_000)
    return 0 if report(parser.parse_args().worlds) else 1


if __name__ == "__main__":
    sys.exit(main())
