"""Draw docs/believing.svg from docs/data/ and print the numbers that docs/believing.md tells.

.venv/bin/python -m benchmarks.believing
"""

import csv
import statistics
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from coordinator.reproduction import (  # noqa: E402
    Accepted,
    Campaign,
    Decision,
    Noise,
    bar,
    decide,
    likelihood_ratio,
    rule_for,
    screen_passes,
)

DOCS = Path("docs")
RULE = rule_for("standard")
SEED_SWAP = "889dbed"  # the one row whose code is the incumbent's: only the seed changed
FEWEST_RUNS = 10
EQUAL_STEPS = (  # records whose folders name one number of steps for baseline and change: (folder, baseline, change)
    ("2026-04-29_XSAGatedLayers", "baseline-s1410", "this_pr_v1-s1410"),
    ("2026-07-13_PrefixTokenPrediction", "baseline-1375", "prefix-1375"),
)
GREY, GREEN, RED = "#9a9a9a", "#1a7f4b", "#c0392b"


class Keep(NamedTuple):
    """A row of the log that was kept."""

    at: int
    score: float
    gain: float


class Comparison(NamedTuple):
    """Two series of runs, one by one, and what is believed of them."""

    name: str
    gains: list[float]
    decision: Decision

    @property
    def greedy(self) -> bool:
        """What one run each says."""
        return self.gains[0] > 0.0


def main() -> None:
    """Compute, print, draw."""
    keeps, noise = read_log()
    comparisons, changes = read_seeds()
    plt.rcParams.update({"svg.hashsalt": "believing", "font.size": 9})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    draw_log(left, keeps, noise)
    draw_seeds(right, comparisons, changes)
    figure.savefig(DOCS / "believing.svg", metadata={"Date": None})
    tell(keeps, noise, comparisons)
    for change in changes:
        print(f"{change.name}: {change.decision.reason}")


def read_log() -> tuple[list[Keep], Noise]:
    """The keeps, each with its gain over the keep before, and s from the one swap of the seed."""
    with (DOCS / "data/autoresearch_mar8.csv").open(encoding="utf-8") as file:
        rows = [(row["commit"], float(row["val_bpb"]), row["status"]) for row in csv.DictReader(file)]
    keeps: list[Keep] = []
    for at, (commit, score, status) in enumerate(rows):
        if commit == SEED_SWAP:
            noise = Noise.from_seed_scores([keeps[-1].score, score])
        if status == "keep":
            keeps.append(Keep(at, score, keeps[-1].score - score if keeps else 0.0))
    return keeps, noise


def read_seeds() -> tuple[list[Comparison], list[Comparison]]:
    """Codes against themselves, odd against even runs, so that every gain is noise; and real changes."""
    with (DOCS / "data/modded_nanogpt_seeds.csv").open(encoding="utf-8") as file:
        rows = [(row["record_folder"], row["arm"], row["code_hash"], row["val_loss"]) for row in csv.DictReader(file)]
    groups = [(key, [float(row[3]) for row in same]) for key, same in groupby(rows, key=lambda row: row[:3])]
    many = [losses for _, losses in groups if len(losses) >= FEWEST_RUNS]
    squares = sum((len(losses) - 1) * statistics.variance(losses) for losses in many)
    noise = Noise(2.0 * squares, sum(len(losses) - 1 for losses in many), floor=1e-6)
    arms = {key[:2]: losses for key, losses in groups}
    changes = [compare(folder, arms[folder, base], arms[folder, arm], noise) for folder, base, arm in EQUAL_STEPS]
    return [compare("itself", losses[::2], losses[1::2], noise) for losses in many], changes


def compare(name: str, champion: list[float], candidate: list[float], noise: Noise) -> Comparison:
    """Decide on the runs in the order of their logs; the last of a longer series has no partner."""
    gains = [a - b for a, b in zip(champion, candidate, strict=False)]
    return Comparison(name, gains, decide(gains, noise, bar(Campaign()), RULE))


def draw_log(axes: Axes, keeps: list[Keep], noise: Noise) -> None:
    """The greedy staircase; green where a screen would have raised a Claim."""
    late = keeps[1:]
    axes.step([keep.at for keep in keeps], [keep.score for keep in keeps], where="post", color=GREY, linewidth=1)
    for passed, colour in ((True, GREEN), (False, RED)):
        dots = [keep for keep in late if screen_passes(keep.gain, noise, RULE) is passed]
        word = "worth a Claim" if passed else "below the screen"
        axes.plot([d.at for d in dots], [d.score for d in dots], "o", color=colour, label=f"{len(dots)} kept, {word}")
    axes.set(title=f"autoresearch: {len(late)} keeps, 0 Verdicts", xlabel="experiment", ylabel="val_bpb, one run")
    axes.legend(frameon=False)


def draw_seeds(axes: Axes, comparisons: list[Comparison], changes: list[Comparison]) -> None:
    """The first gain of each comparison, which is all that greedy keep sees; green where the engine accepts."""
    ordered = sorted(comparisons, key=lambda comparison: comparison.gains[0])
    for greedy, colour, word in ((True, RED, "kept on one run"), (False, GREY, "dropped on one run")):
        dots = [(at, c.gains[0]) for at, c in enumerate(ordered) if c.greedy is greedy]
        axes.plot(*zip(*dots, strict=True), "o", color=colour, markersize=4, label=f"{len(dots)} same code, {word}")
    places = [(len(ordered) + 3 * at, change.gains[0]) for at, change in enumerate(changes, 1)]
    axes.plot(*zip(*places, strict=True), "D", color="black", label=f"{len(changes)} real changes")
    everything = [
        *((at, c) for at, c in enumerate(ordered)),
        *((place[0], c) for place, c in zip(places, changes, strict=True)),
    ]
    accepted = [(at, c.gains[0]) for at, c in everything if isinstance(c.decision, Accepted)]
    for at, gain in accepted:
        axes.plot([at], [gain], "o", color=GREEN, markersize=13, fillstyle="none", markeredgewidth=2)
    axes.axhline(0.0, color=GREY, linewidth=0.8)
    axes.set(title=f"modded-nanogpt: the engine accepts {len(accepted)} (ringed)", xlabel="comparison")
    axes.set_ylabel("gain of the first pair (val_loss)")
    axes.legend(frameon=False)


def tell(keeps: list[Keep], noise: Noise, comparisons: list[Comparison]) -> None:
    """The numbers of the page."""
    gains = [keep.gain for keep in keeps[1:]]
    small = [gain for gain in gains if gain < noise.sd]
    print(f"log: s = {noise.sd:.6f}, {len(gains)} keeps, {len(small)} gain less than s ({sum(small) / sum(gains):.0%})")
    print(f"log: {sum(screen_passes(gain, noise, RULE) for gain in gains)} pass the screen")
    print(f"one Pair gives at most {likelihood_ratio([100.0], RULE):.1f}:1, the bar is {bar(Campaign()):.0f}:1")
    words = [type(comparison.decision).__name__ for comparison in comparisons]
    print(f"seeds: {len(words)} codes, greedy keeps {sum(c.greedy for c in comparisons)}")
    print("seeds: " + ", ".join(f"{words.count(word)} {word.lower()}" for word in sorted(set(words))))
    print(f"seeds: {statistics.fmean(comparison.decision.pairs for comparison in comparisons):.1f} Pairs on average")


if __name__ == "__main__":
    main()
