"""The champion's runs that a panel is made of, kept fact by fact, and whether they may be trusted. Pure.

Part of the fold: owns which runs enter a panel, which of them a candidate may be compared with again, and the switch of
each Platform. The model and the test are those of `coordinator/mixed` and `coordinator/panel`. It does not know leases
or Nodes' states.

Only what the coordinator leased counts, since a Node's own runs are not audited: the champion's runs as the reference
of confirmations and calibrations. Its runs as a candidate never count: it was promoted because they were good. What
closed Claims ran tells of Nodes, under a name and a level of their own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from coordinator.mixed import Panel, Run, Spread
from coordinator.panel import (
    ALARMED,
    CALM,
    CLAIMS_PER_CHECK,
    FRESH_RUNS,
    RUNS_BEFORE_TRUST,
    SURPRISES_BEFORE_TRUST,
    Past,
    surprise_sd,
    trusted,
)
from coordinator.reproduction import Noise
from swarm.records import PanelSwitched

RUNS_KEPT = 60  # of a champion, the newest: its level is known to 0.13 sd then, and a panel of so many costs 0.7 ms
SECONDS = "seconds are the budget, and what slows all nodes alike would move every score unnoticed"
NO_SEED = -1  # that nothing ran on
PAIRS_DF = 8  # of s from Pairs alone, before it is used: s from seed scores holds what Nodes and seeds differ by, too
IN_VAIN = 2  # times the runs that a panel wants are drawn; a champion that crashes has no level
MOST_NODES = 100  # that the model was tried with; with so many a look takes 0.15 s, and it grows with their third power


class Cell(NamedTuple):
    """A Node and a seed on which the champion has run, for candidates to run there as well."""

    node: str
    seed: int
    trial: str  # of the champion


class Weighing(NamedTuple):
    """What a Claim on the panel is weighed against: fixed when its first Block is drawn."""

    panel: Panel
    cells: tuple[Cell, ...]


class Foretold(NamedTuple):
    """What the champion will score on a Node and a fresh seed."""

    score: float  # oriented: larger is better
    own_weight: float  # from 0 to 1: of one run of it there, against all the others


class Trust(NamedTuple):
    """Whether a panel may be used now, and why."""

    on: bool
    surprises: int
    reason: str


@dataclass
class References:
    """The runs of the present champion on one Platform, and what earlier ones left."""

    champion: str
    runs: tuple[Run, ...] = ()
    cells: tuple[Cell, ...] = ()  # of the newest since the panel was first on, as only of those artifacts are kept
    fresh: int = 0  # runs of this champion since then
    bought: int = 0  # runs that were drawn for its panel alone
    judged: int = 0  # Claims on it
    noise: Noise = Noise(0.0, 0, 0.0)  # from Pairs alone
    past: Past = field(default_factory=Past, compare=False)
    seen: int = 0  # Trials of any kind that ended on this Platform
    switches: list[PanelSwitched] = field(default_factory=list)
    told: dict[str, Foretold] = field(default_factory=dict, compare=False)  # a cache of `foretold`, by Node
    looked: tuple[tuple[object, ...], Trust | None] = field(default=((), None), compare=False)  # a cache of `trust`

    @property
    def on(self) -> bool:
        """Whether Claims may be weighed on it from now on."""
        return bool(self.switches) and self.switches[-1].on

    @property
    def ready(self) -> bool:
        """Whether the next Claim against this champion is weighed on its panel; if not, it takes Pairs."""
        return self.on and self.noise.df >= PAIRS_DF and len(self.cells) >= FRESH_RUNS

    @property
    def hopeless(self) -> bool:
        """Whether no more runs are bought: twice as many were drawn as are wanted, and failed or were lost."""
        return self.bought >= IN_VAIN * self.wanted()

    # --- what facts do ---

    def ran(self, run: Run, trial: str) -> None:
        """One more run of the champion."""
        self.runs = (*self.runs, run)[-RUNS_KEPT:]
        if any(switch.on for switch in self.switches):
            self.fresh += 1
            self.cells = (*self.cells, Cell(run.node, run.seed, trial))[-RUNS_KEPT:]

    def paired(self, before: Noise, after: Noise) -> None:
        """The Pairs of a Claim have moved the noise."""
        squares, df = after.sum_squares - before.sum_squares, after.df - before.df
        self.noise = Noise(self.noise.sum_squares + squares, self.noise.df + df, after.floor)

    def closed(self, runs: Sequence[Run]) -> None:
        """What a script ran that runs no more; before the noise is known, nobody can say what is wild in it."""
        if self.noise.df >= PAIRS_DF and not self._is_crowded:
            self.past = self.past.after(runs, self.noise)

    def judge(self) -> None:
        """A Claim on it is closed."""
        self.judged += 1
        if self.judged % CLAIMS_PER_CHECK == 0:
            self.told = {}

    def moved(self, champion: str) -> None:
        """Another champion: nothing is known of its level, and something of the Nodes."""
        self.closed(self.runs)
        self.champion, self.runs, self.cells, self.told = champion, (), (), {}
        self.fresh = self.bought = self.judged = 0

    # --- what is asked of it ---

    def weighing(self) -> Weighing | None:
        """What a Claim is weighed against from now on; None where it takes Pairs."""
        return Weighing(self.past.panel(self.runs, self._spread), self.cells) if self.ready else None

    def foretold(self, node: str) -> Foretold | None:
        """For screening, which is no evidence; as it was when the champion was last looked at, so that Briefs stay."""
        if not self.ready:
            return None
        if node not in self.told:
            spread = self._spread
            mean, variance = self.past.panel(self.runs, spread).expected([Run("", node, NO_SEED, 0.0)])
            self.told[node] = Foretold(float(mean[0]), 1.0 - spread.noise**2 / float(variance[0, 0]))
        return self.told[node]

    def wanted(self) -> int:
        """Runs of the champion for the panel alone, to be drawn since it is on: some at first, then as checks."""
        return FRESH_RUNS + self.judged // CLAIMS_PER_CHECK if self.on else 0

    def trust(self, drifts_as_one: str) -> Trust | None:
        """Whether it may be used now; None while too little is known to say. `drifts_as_one`: why all Nodes may."""
        asked = (self.runs, self.past, self.noise, self.seen >= RUNS_BEFORE_TRUST, self.on, drifts_as_one)
        if not self.looked[0] or any(new is not old for new, old in zip(asked, self.looked[0], strict=True)):
            self.looked = asked, self._look(drifts_as_one)
        return self.looked[1]

    def _look(self, drifts_as_one: str) -> Trust | None:
        if self._is_crowded:
            return Trust(False, 0, f"more than {MOST_NODES} nodes measure here, and it was tried with fewer")
        if self.seen < RUNS_BEFORE_TRUST or self.noise.df < PAIRS_DF or not self.runs:
            return None
        missed = self.past.surprises(self.runs, self._spread)
        if len(missed) < SURPRISES_BEFORE_TRUST:
            return None
        if drifts_as_one:  # which its surprises would not show: a claim is too short to see it
            return Trust(False, len(missed), drifts_as_one)
        low, high = ALARMED if self.on else CALM
        told = f"the newest {len(missed)} runs that earlier ones foretold lie {surprise_sd(missed):.2f} sd from it"
        return Trust(trusted(missed, self.seen, already=self.on), len(missed), f"{told}; {low:g} to {high:g} is calm")

    @property
    def _spread(self) -> Spread:
        return self.past.spread(self.runs, self.noise)

    @property
    def _is_crowded(self) -> bool:
        return len(self.past.nodes.index) > MOST_NODES


def switches(platforms: Mapping[str, References], drifts_as_one: str, now: float) -> Iterator[PanelSwitched]:
    """The switches to be recorded: of each Platform the first that can be told, and every other one after it.

    `drifts_as_one`: why the scores of all Nodes may wander together, which no check would show; empty: they may not.
    """
    for platform, references in platforms.items():
        found = references.trust(drifts_as_one)
        if found is not None and (not references.switches or found.on != references.on):
            number = len(references.switches) + 1
            yield PanelSwitched(platform, number, found.on, found.surprises, found.reason, now)
