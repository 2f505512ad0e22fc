"""Replay campaigns of known truth under the real decision engine and print what it promises beside what it does.

    .venv/bin/python -m benchmarks.decisions [--campaigns 100] [--seed 20261]

One row a world and rule; below the table every bar with the number seen; then the same for the reference panel on Nodes
that differ, and for ideas that are merged. Exit code 1 when a bar does not hold; those of the panel are a stretch, and
do not count.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from benchmarks import merging
from coordinator.campaigns import Tally, World, believe, five_pairs_each, keep_greedily
from coordinator.panel import rule_on_panel
from coordinator.panel_campaigns import PanelTally, believe_on_panel
from coordinator.reproduction import rule_for

BASE = World("base")
CORRELATED = World("correlation 0.6", correlation=0.6)
FEW_GOOD = World("2 % good", good=0.02, harmful=0.38)
NONE_GOOD = World("no good ideas", good=0.0, harmful=0.0)
TAILS = World("heavy tails", heavy_tails=True)
BROKEN = World("1 % broken runs", broken=0.01)
NOISY = World("20 % noisy edits", noisy=0.2)
TUNED = World("10 % fit the search split", tuned=0.1, holdout=True)
DRIFT = World("drift 0.1 sd a proposal", drift=0.1)
P_BASE, P_FEW_GOOD = World("base", node_sd=2.0), World("2 % good", good=0.02, harmful=0.38, node_sd=2.0)
P_DRIFT = World("nodes drift 0.3 a proposal", node_sd=2.0, node_drift=0.3)
PANEL_WORLDS = (
    P_BASE,
    P_FEW_GOOD,
    World("correlation 0.6", correlation=0.6, node_sd=2.0),
    P_DRIFT,
    World("1 % broken runs", broken=0.01, node_sd=2.0),
    World("20 % noisy edits", noisy=0.2, node_sd=2.0),
    World("no good ideas", good=0.0, harmful=0.0, node_sd=2.0),
)
WORLDS = (BASE, CORRELATED, FEW_GOOD, NONE_GOOD, TAILS, BROKEN, NOISY, TUNED, DRIFT)


class Bar(NamedTuple):
    """One promise."""

    world: World
    what: str
    seen: Callable[[Tally], float]
    limit: float
    at_most: bool = True

    def holds(self, tally: Tally) -> bool:
        """Whether the number seen is on the right side."""
        return self.seen(tally) <= self.limit if self.at_most else self.seen(tally) >= self.limit


def _false(tally: Tally) -> float:
    return tally.false_share


def _power2(tally: Tally) -> float:
    return tally.power(2.0)


def _kept(tally: Tally) -> float:
    return tally.kept_share


def _on_panel(tally: Tally) -> float:
    return tally.panel_share if isinstance(tally, PanelTally) else 0.0


BARS = (
    Bar(BASE, "false share of promotions", _false, 0.05),
    Bar(BASE, "runs per null proposal", lambda t: t.runs_per_null, 2.4),
    Bar(BASE, "runs per proposal", lambda t: t.runs_per_proposal, 2.6),
    Bar(BASE, "power at 2 sd", _power2, 0.55, at_most=False),
    Bar(BASE, "power at 3 sd", lambda t: t.power(3.0), 0.85, at_most=False),
    Bar(BASE, "share of gain kept", _kept, 0.45, at_most=False),
    Bar(BASE, "reported over true gain", lambda t: t.claimed_over_true, 1.3),
    Bar(CORRELATED, "power at 2 sd", _power2, 0.88, at_most=False),
    Bar(CORRELATED, "share of gain kept", _kept, 0.68, at_most=False),
    Bar(FEW_GOOD, "false share of promotions", _false, 0.05),
    Bar(NONE_GOOD, "false promotions per 500", lambda t: t.false_per_campaign, 0.25),
    Bar(TAILS, "false share of promotions", _false, 0.05),
    Bar(BROKEN, "false share of promotions", _false, 0.05),
    Bar(NOISY, "false share of promotions", _false, 0.08),
    Bar(TUNED, "false share of promotions", _false, 0.10),
)
PANEL_BARS = (
    Bar(P_BASE, "false share of promotions", _false, 0.05),
    Bar(P_BASE, "runs per proposal", lambda t: t.runs_per_proposal, 2.3),
    Bar(P_BASE, "power at 2 sd", _power2, 0.78, at_most=False),
    Bar(P_BASE, "share of gain kept", _kept, 0.58, at_most=False),
    Bar(P_FEW_GOOD, "false share of promotions", _false, 0.05),
    Bar(P_DRIFT, "false share of promotions", _false, 0.05),
    Bar(P_DRIFT, "share of proposals on the panel", _on_panel, 0.05),
)
HEAD = f"{'world':27}{'rule':13}" + "".join(f"{name:>7}" for name in ("false", "/500", "kept", "runs", "null"))
HEAD += "    p1    p2    p3  claim"


def main() -> int:
    """Print the table and the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--campaigns", type=int, default=100)
    parser.add_argument("--seed", type=int, default=20261)
    parser.add_argument("--no-rivals", action="store_true")
    options = parser.parse_args()
    began, found = time.monotonic(), {}
    print(HEAD)
    for world in WORLDS:
        many = options.campaigns * (5 if world is FEW_GOOD else 1)  # a fifth of the promotions of other worlds
        found[world] = believe(world, rule_for("standard"), campaigns=many, seed=options.seed)
        print(row(world.name, "engine", found[world]), flush=True)
        if not options.no_rivals:
            few = max(1, options.campaigns // 5)
            print(row("", "greedy keep", keep_greedily(world, campaigns=few, seed=options.seed)))
            print(row("", "t, 5 pairs", five_pairs_each(world, campaigns=few, seed=options.seed)), flush=True)
    print(f"\n{options.campaigns} campaigns of 500 a world, seed {options.seed}, {time.monotonic() - began:.0f} s\n")
    for bar in BARS:
        print(promise(bar, found[bar.world]))
    print()
    report_panel(options.campaigns, options.seed)
    merges = merging.report(2_000)
    return 0 if merges and all(bar.holds(found[bar.world]) for bar in BARS) else 1


def report_panel(campaigns: int, seed: int) -> None:
    """Print the rows and the bars of the panel, beside Pairs alone."""
    began, found = time.monotonic(), {}
    paired, on_panel = rule_for("standard"), rule_on_panel("standard")
    print(HEAD)
    for world in PANEL_WORLDS:
        many = campaigns * (5 if world is P_FEW_GOOD else 1)
        tally = found[world] = believe_on_panel(world, paired, on_panel, campaigns=many, seed=seed)
        print(row(world.name, f"panel {tally.panel_share:.0%}", tally), flush=True)
        print(row("", "pairs", believe(world, paired, campaigns=many, seed=seed)), flush=True)
    print(f"\npanel n%: the share of proposals that came while it was on; {time.monotonic() - began:.0f} s\n")
    for bar in PANEL_BARS:
        print(promise(bar, found[bar.world]))
    print()


def row(world: str, rule: str, tally: Tally) -> str:
    """One line of the table."""
    shares = f"{tally.false_share:7.1%}{tally.false_per_campaign:7.2f}{tally.kept_share:7.0%}"
    runs = f"{tally.runs_per_proposal:7.2f}{tally.runs_per_null:7.2f}"
    power = "".join(f"{tally.power(gain):6.0%}" for gain in tally.probes)
    return f"{world:27}{rule:13}{shares}{runs}{power}{tally.claimed_over_true:7.2f}"


def promise(bar: Bar, tally: Tally) -> str:
    """One bar and the number seen."""
    sign, word = ("<=" if bar.at_most else ">="), ("holds" if bar.holds(tally) else "FAILS")
    return f"{word}  {bar.world.name:27}{bar.what:28}{bar.seen(tally):7.3f} {sign} {bar.limit:g}"


if __name__ == "__main__":
    sys.exit(main())
