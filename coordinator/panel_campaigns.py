"""Campaigns on the reference panel: paired like those of coordinator/campaigns.py until the panel may be trusted.

Owns what a campaign buys while the panel is on: champion runs after a promotion and every few Claims, and candidate
runs singly. Every run is counted. Decides nothing itself: model, test and switch are those of coordinator/panel.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from coordinator.campaigns import (
    CALIBRATION_RUNS,
    LEVEL,
    PROPOSALS,
    Believer,
    Edit,
    Lab,
    OpenClaim,
    Tally,
    World,
    labs,
)
from coordinator.mixed import Panel, Run
from coordinator.panel import CLAIMS_PER_CHECK, FRESH_RUNS, Past, decide_on, screen_gain, trusted
from coordinator.reproduction import Decision, Rule, Undecided, bar


@dataclass
class PanelTally(Tally):
    """What campaigns came to, and how much of them was judged on the panel."""

    on_panel: int = 0
    """Proposals that came while it was on."""
    champion_runs: int = 0

    @property
    def panel_share(self) -> float:
        """Of the proposals."""
        return self.on_panel / max(1, self.proposals)


@dataclass
class _PanelClaim(OpenClaim):
    name: str = ""
    panel: Panel | None = None
    runs: list[Run] = field(default_factory=list)
    weighed_at: tuple[int, Decision] | None = None

    def weighed(self, rule: Rule) -> Decision:
        if self.panel is None:
            return super().weighed(rule)
        if self.weighed_at is None or self.weighed_at[0] != len(self.runs):
            self.weighed_at = len(self.runs), decide_on(self.panel, self.runs, self.bar, rule)
        return self.weighed_at[1]


class PanelBeliever(Believer):
    """One campaign that goes over to the panel, and back, as `trusted` says."""

    _tally: PanelTally

    def __init__(self, lab: Lab, rule: Rule, on_panel: Rule, tally: PanelTally) -> None:
        self._on, self._rules, self._began = False, {False: rule, True: on_panel}, tally.runs
        self._champion, self._truth = 0, 0.0
        self._past = Past()
        self._own: list[Run] = []  # of the champion
        self._effects: list[float] = []  # of seeds
        self._known: Panel | None = None
        self._judged = self._named = self._turn = 0
        super().__init__(lab, rule, tally)

    # --- runs ---

    def _calibration(self) -> list[float]:
        lab = self._lab
        return [LEVEL + self._champion_run(0, lab.seed_effect(), "calibration") for _ in range(CALIBRATION_RUNS)]

    def _champion_run(self, node: int, effect: float, block: str = "") -> float:
        lab = self._lab
        self._effects.append(effect)
        found = self._level + lab.nodes[node] + lab.run(effect)
        name, seed = f"champion {self._champion}", len(self._effects) - 1
        self._learn(Run(name, str(node), seed, LEVEL + self._truth + found, block))
        return found

    def _learn(self, run: Run) -> None:
        self._own.append(run)
        self._known = None
        self._tally.champion_runs += 1

    def _panel(self) -> Panel:
        if self._known is None:
            self._known = self._past.panel(self._own, self._past.spread(self._own, self._noise))
        return self._known

    def _candidate_run(self, edit: Edit, cell: Run, name: str = "") -> Run:
        lab = self._lab
        found = self._level + lab.nodes[int(cell.node)] + lab.run(self._effects[cell.seed], edit.spread)
        return Run(name, cell.node, cell.seed, LEVEL + self._truth + edit.search_gain + found)

    def _cell(self, place: int) -> Run:
        """The Node and seed of a champion run, or, when all are used up, a fresh one."""
        if place < len(self._own):
            return self._own[place]
        self._effects.append(self._lab.seed_effect())
        return Run("", str(self._lab.shuffled(len(self._lab.nodes))[0]), len(self._effects) - 1, 0.0)

    def _buy_blocks(self, count: int, runs: int = 2) -> None:
        """Of so many champion runs each; calibration takes two."""
        for _ in range(count):
            self._turn += 1
            for _ in range(runs):
                node = self._turn % len(self._lab.nodes)
                self._champion_run(node, self._lab.seed_effect(), f"block {self._turn}")
                self._tally.runs += 1

    # --- decisions ---

    def _screening(self, edit: Edit, node: int) -> float:
        if not self._on:
            return super()._screening(edit, node)
        self._tally.on_panel += 1
        self._tally.spent(edit, 1)
        return self._probing(edit)

    def _probing(self, edit: Edit) -> float:
        if not self._on:
            return super()._probing(edit)
        cell = self._cell(self._lab.shuffled(len(self._own))[0])
        return screen_gain(self._panel(), self._candidate_run(edit, cell))

    def _company(self) -> int:
        """On the panel champion runs are there already, and nobody waits."""
        return 1 if self._on else super()._company()

    def _claim(self, edit: Edit) -> OpenClaim:
        self._named += 1
        return _PanelClaim(edit, self._noise, bar(self._campaign), name=f"claim {self._named}")

    def _confirm(self) -> None:
        self._look()
        super()._confirm()

    def _look(self) -> None:
        """Ask whether the panel may be trusted, before the next Claims are judged."""
        was, self._on = self._on, self._is_trusted()
        if self._on and not was:
            self._buy_blocks(FRESH_RUNS // 2)
            self._on = self._is_trusted()
        if was != self._on:
            self._cells.clear()
        self._rule = self._rules[self._on]

    def _is_trusted(self) -> bool:
        spread = self._past.spread(self._own, self._noise)
        missed = self._past.surprises(self._own, spread)
        return trusted(missed, int(self._tally.runs - self._began), already=self._on)

    def _settle(self, group: Sequence[OpenClaim], tally: Tally) -> None:
        claims = [claim for claim in group if isinstance(claim, _PanelClaim)]
        if self._on:
            for claim in claims:
                self._settle_on_panel(claim, tally)
            return
        first = len(self._own)
        super()._settle(group, tally)
        for claim in claims:  # the j-th Pair of each lies in the j-th Block
            pairs = zip(self._own[first:], claim.gains, strict=False)
            claim.runs = [run._replace(script=claim.name, score=run.score + gain) for run, gain in pairs]

    def _settle_on_panel(self, claim: _PanelClaim, tally: Tally) -> None:
        claim.panel, order = self._panel(), self._lab.shuffled(len(self._own))
        while isinstance(claim.weighed(self._rule), Undecided):
            place = order[len(claim.runs)] if len(claim.runs) < len(order) else len(order)
            claim.runs.append(self._candidate_run(claim.edit, self._cell(place), claim.name))
            tally.spent(claim.edit, 1.0)

    def _block(self, tally: Tally) -> tuple[float, float]:
        if tally is not self._tally:  # a probe teaches nothing
            return super()._block(tally)
        node, effect = self._lab.shuffled(len(self._lab.nodes))[0], self._lab.seed_effect()
        return effect, self._champion_run(node, effect) - self._level - self._lab.nodes[node]

    def _close(self, claim: OpenClaim) -> bool:
        assert isinstance(claim, _PanelClaim)
        holds = super()._close(claim)
        self._past, self._known = self._past.after(claim.runs, self._noise), None
        self._judged += claim.panel is not None
        if holds:
            self._succeed(claim.edit)
        elif self._on and self._judged % CLAIMS_PER_CHECK == 0:
            self._buy_blocks(1, runs=1)
        return holds

    def _succeed(self, edit: Edit) -> None:
        """A new champion: nothing is known of its level."""
        self._past, self._known = self._past.after(self._own, self._noise), None
        self._own, self._champion, self._truth = [], self._champion + 1, self._truth + edit.search_gain
        if self._on:
            self._buy_blocks(FRESH_RUNS // 2)


def believe_on_panel(
    world: World, rule: Rule, on_panel: Rule, *, campaigns: int, seed: int, proposals: int = PROPOSALS
) -> PanelTally:
    """Replay campaigns in which the engine decides, on the panel wherever it may be trusted."""
    tally = PanelTally()
    for lab in labs(world, campaigns, seed):
        tally.campaigns += 1
        PanelBeliever(lab, rule, on_panel, tally).run(proposals)
    return tally
