"""How often does a champion step down that should not, and how often one that should? In simulation, by the real rules.

    .venv/bin/python -m benchmarks.demotions [--lines 2000] [--seed 20264]

Honest promotions come through the real screen, test and bar from the ideas of `coordinator.campaigns` (10 % good);
then each is compared with its parent, or ten of them at once, by the rule of `coordinator.rechecks`. The unit is the sd
of one run; s, the sd of a paired gain, is 1.41.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from coordinator.campaigns import Lab, World
from coordinator.rechecks import answer, is_open, no_gain
from coordinator.reproduction import Accepted, Campaign, Noise, Undecided, bar, decide, rule_for, screen_passes
from swarm.records import Promotion

RULE = rule_for("standard")
LEAST = 5  # the default of decision.final_seeds
SEEDS, PAIRS = 8, 24  # baseline runs, and pairs of closed confirmations, by which a study knows its noise
LINE = 10
GAIN = Promotion(1, "", "", "", "", "", 0.0)


class Outcome(NamedTuple):
    """What became of one comparison."""

    fallen: bool
    pairs: int


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=20264)
    options = parser.parse_args()
    honest = promoted(options.lines, options.seed)
    tens = [sum(honest[i : i + LINE]) for i in range(0, len(honest) - LINE + 1, LINE)]
    print("true gain                      lines   demoted   pairs")
    print(_row(f"honest, {fmean(honest):.1f} sd on average", honest, options.seed))
    print(_row(f"ten honest, {fmean(tens):.0f} sd on average", tens, options.seed))
    for gain in (-1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 1.3, 2.0):
        print(_row(f"{gain:+g} sd", [gain] * options.lines, options.seed))


def _row(name: str, gains: Sequence[float], seed: int) -> str:
    found = list(compared(gains, seed))
    return f"{name:28} {len(found):7} {fmean(o.fallen for o in found):9.1%} {fmean(o.pairs for o in found):7.1f}"


def fallen_share(gains: Sequence[float], seed: int) -> float:
    """Of champions with these true gains over their parents."""
    return fmean(outcome.fallen for outcome in compared(gains, seed))


def compared(gains: Sequence[float], seed: int) -> Iterator[Outcome]:
    """Each against its parent, until the rule has an answer."""
    lab, rng = Lab(World("base"), [seed]), np.random.default_rng([seed, 1])
    for gain in gains:
        noise, runs = _noise(lab, rng), list[float]()
        while is_open(runs, [GAIN], noise, RULE, LEAST):
            runs.append(_pair(lab, gain))
        yield Outcome(no_gain(answer(runs, [GAIN], noise, RULE)), len(runs))


def promoted(number: int, seed: int) -> list[float]:
    """True gains of so many promotions that the chain was right about."""
    lab, rng = Lab(World("base"), [seed, 2]), np.random.default_rng([seed, 3])
    noise, found = _noise(lab, rng), list[float]()
    while len(found) < number:
        edit = lab.edit()
        if edit.gain > 0.0 and screen_passes(_pair(lab, edit.gain), noise, RULE) and _confirmed(lab, edit.gain, noise):
            found.append(edit.gain)
            noise = _noise(lab, rng)
    return found


def _confirmed(lab: Lab, gain: float, noise: Noise) -> bool:
    gains: list[float] = []
    while isinstance(decision := decide(gains, noise, bar(Campaign()), RULE), Undecided):
        gains.append(_pair(lab, gain))
    return isinstance(decision, Accepted)


def _pair(lab: Lab, gain: float) -> float:
    effect = lab.seed_effect()
    return gain + lab.run(effect) - lab.run(effect)


def _noise(lab: Lab, rng: np.random.Generator) -> Noise:
    """What a study knows of it after some confirmations."""
    noise = Noise.from_seed_scores([1000.0 + lab.run(lab.seed_effect()) for _ in range(SEEDS)])
    return noise.pooled([math.sqrt(2.0) * float(x) for x in rng.normal(size=PAIRS)])


if __name__ == "__main__":
    main()
