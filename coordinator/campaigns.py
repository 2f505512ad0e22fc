"""Campaigns of known truth: what the rule of coordinator/reproduction.py believes where the true gains are known.

Owns the worlds that edits and runs are drawn from, the order in which a campaign buys runs, two rival rules, and the
tally. Decides nothing itself: every screen, bar, Verdict and noise estimate comes from the engine that studies use.
Must not know Nodes, Trials, files or clocks; the same seed gives the same campaign.

The unit is the sd of one training run, and a larger score is better. A campaign buys as a study does: eight champion
seeds measure the noise, each edit is screened by one run against a champion run that its node keeps until the champion
changes, up to four Claims share the champion's run of a block, and what was accepted against a base that is no longer
the champion is confirmed again from nothing.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from coordinator.reproduction import (
    Accepted,
    Campaign,
    Decision,
    Noise,
    Rule,
    Undecided,
    bar,
    decide,
    paired_interval,
    screen_passes,
    survives_holdout,
)

PROPOSALS = 500
PROBED_SD = (1.0, 2.0, 3.0)  # true gains whose chance of promotion is asked for
_PROBE_EVERY = 25  # proposals: 20 probes of each size in a campaign, none of which teaches the engine anything
CALIBRATION_RUNS = 8
_NODES = 8
_SHARED_BY = 4
LEVEL = 1_000.0  # the baseline's score: far from 0, as real metrics are
_BROKEN_SD = 8.0
_SPLIT_SD, _SPLIT_CORRELATION = 0.3, 0.9  # of an edit's gain between two splits; of one run's noise on both
_TUNED_SD = 1.5


@dataclass(frozen=True)
class World:
    """Where edits come from and how runs scatter; shares are of all edits or runs."""

    name: str
    good: float = 0.10
    """True gains of mean 1.3, 19 % of them above 2, none above 4."""
    harmful: float = 0.35
    """True losses of mean 2.4."""
    correlation: float = 0.0
    """Of the two runs of a Pair, which share a seed."""
    heavy_tails: bool = False
    """Student t with 4 degrees of freedom instead of a normal, at the same sd."""
    broken: float = 0.0
    """Runs, of champion and candidate alike, that lose 8 sd."""
    noisy: float = 0.0
    """Edits whose runs scatter twice as much as the champion's."""
    tuned: float = 0.0
    """Edits that gain 1.5 on the search split and nothing elsewhere."""
    holdout: bool = False
    """Whether accepted edits must also hold on a second split."""
    drift: float = 0.0
    """By how much the level of all runs wanders per proposal."""
    node_sd: float = 0.0
    """Of the levels of Nodes; Pairs and screening cells lie within one Node and do not notice."""
    node_drift: float = 0.0
    """By how much the level of each Node wanders per proposal."""


class Edit(NamedTuple):
    """A proposal and the truth about it."""

    gain: float
    search_gain: float
    """What it gains on the split that is searched."""
    holdout_gain: float
    spread: float = 1.0


@dataclass
class Tally:
    """What campaigns came to, summed."""

    campaigns: int = 0
    proposals: int = 0
    runs: float = 0.0
    nulls: int = 0
    null_runs: float = 0.0
    promoted: int = 0
    false: int = 0
    offered: float = 0.0
    kept: float = 0.0
    claimed: float = 0.0
    probes: dict[float, list[bool]] = field(default_factory=lambda: {gain: [] for gain in PROBED_SD})

    def spent(self, edit: Edit, runs: float) -> None:
        """Book runs on an edit."""
        self.runs += runs
        self.null_runs += runs if edit.gain == 0.0 else 0.0

    def propose(self, edit: Edit) -> None:
        """Count an edit that was offered."""
        self.proposals += 1
        self.nulls += edit.gain == 0.0
        self.offered += max(0.0, edit.gain)

    def promote(self, edit: Edit, claimed: float) -> None:
        """Count an edit that is now believed to gain so much."""
        self.promoted += 1
        self.false += edit.gain <= 0.0
        self.kept += edit.gain
        self.claimed += claimed

    @property
    def false_share(self) -> float:
        return self.false / max(1, self.promoted)

    @property
    def false_per_campaign(self) -> float:
        return self.false / max(1, self.campaigns)

    @property
    def kept_share(self) -> float:
        return self.kept / self.offered if self.offered else 0.0

    @property
    def runs_per_proposal(self) -> float:
        return self.runs / max(1, self.proposals)

    @property
    def runs_per_null(self) -> float:
        return self.null_runs / max(1, self.nulls)

    @property
    def claimed_over_true(self) -> float:
        """Reported over true gain of what was promoted."""
        return self.claimed / self.kept if self.kept > 0.0 else math.inf if self.claimed else 0.0

    def power(self, gain: float) -> float:
        """The share of edits of this true gain that ended in a Promotion."""
        return sum(self.probes[gain]) / max(1, len(self.probes[gain]))


class Lab:
    """Draws edits and runs of one world."""

    def __init__(self, world: World, seed: Sequence[int]) -> None:
        self.world = world
        self._rng = np.random.default_rng(seed)
        self._own = math.sqrt(1.0 - world.correlation)
        self._shared = math.sqrt(world.correlation)
        self._node_rng = np.random.default_rng([*seed, 1])
        self.nodes: list[float] = (world.node_sd * self._node_rng.normal(size=_NODES)).tolist()

    def edit(self) -> Edit:
        """The next proposal."""
        world, kind = self.world, self._rng.random()
        if kind < world.tuned:
            return self._split(0.0, _TUNED_SD)
        if kind < world.tuned + world.good:
            return self._split(min(4.0, self._rng.gamma(2.0, 0.65)))
        harmful = kind < world.tuned + world.good + world.harmful
        return self._split(-self._rng.gamma(2.0, 1.2) if harmful else 0.0)

    def _split(self, gain: float, on_search: float = 0.0) -> Edit:
        spread = 2.0 if self._rng.random() < self.world.noisy else 1.0
        apart = self._rng.normal(0.0, _SPLIT_SD, 2) if self.world.holdout or self.world.tuned else (0.0, 0.0)
        return Edit(gain, gain + on_search + float(apart[0]), gain + float(apart[1]), spread)

    def seed_effect(self) -> float:
        """What the runs of a block have in common."""
        return self._shared * self._unit()

    def run(self, seed_effect: float, spread: float = 1.0) -> float:
        """The deviation of one run from its script's true score."""
        broken = self.world.broken and self._rng.random() < self.world.broken
        return spread * (seed_effect + self._own * self._unit()) - (_BROKEN_SD if broken else 0.0)

    def on_holdout(self, run: float) -> float:
        """The same run's deviation on the second split."""
        return _SPLIT_CORRELATION * run + math.sqrt(1.0 - _SPLIT_CORRELATION**2) * float(self._rng.normal())

    def step(self) -> float:
        """How far the level of all runs moves until the next proposal; Nodes move as well."""
        if self.world.node_drift:
            moves = self.world.node_drift * self._node_rng.normal(size=len(self.nodes))
            self.nodes = [level + float(move) for level, move in zip(self.nodes, moves, strict=True)]
        return self.world.drift * float(self._rng.normal()) if self.world.drift else 0.0

    def node(self) -> int:
        """Where the next screening happens."""
        return int(self._rng.integers(_NODES))

    def shuffled(self, count: int) -> list[int]:
        """An order of so many things."""
        return [int(place) for place in self._node_rng.permutation(count)]

    def _unit(self) -> float:
        if self.world.heavy_tails:
            return float(self._rng.standard_t(4)) / math.sqrt(2.0)
        return float(self._rng.normal())


@dataclass
class OpenClaim:
    """An edit that passed its screening, and what its Pairs said."""

    edit: Edit
    noise: Noise
    bar: float
    gains: list[float] = field(default_factory=list)
    holdout: list[float] = field(default_factory=list)

    def weighed(self, rule: Rule) -> Decision:
        return decide(self.gains, self.noise, self.bar, rule)


class Believer:
    """One campaign under the engine."""

    def __init__(self, lab: Lab, rule: Rule, tally: Tally) -> None:
        self._lab, self._rule, self._tally = lab, rule, tally
        self._campaign = Campaign()
        self._cells: dict[int, tuple[float, float]] = {}  # node -> seed effect and score of its champion run
        self._level = 0.0
        self._waiting: list[OpenClaim] = []
        tally.runs += CALIBRATION_RUNS
        self._noise = Noise.from_seed_scores(self._calibration())

    def _calibration(self) -> list[float]:
        return [LEVEL + self._lab.run(self._lab.seed_effect()) for _ in range(CALIBRATION_RUNS)]

    def run(self, proposals: int) -> None:
        """The whole campaign."""
        for number in range(proposals):
            self._screen(self._lab.edit())
            if number % _PROBE_EVERY == 0:
                self._probe()
            if len(self._waiting) >= self._company():
                self._confirm()
        self._confirm()

    def _company(self) -> int:
        """Claims that wait for each other, to share champion runs."""
        return _SHARED_BY

    def _screen(self, edit: Edit) -> None:
        node = self._lab.node()
        self._level += self._lab.step()
        self._tally.propose(edit)
        if screen_passes(self._screening(edit, node), self._noise, self._rule):
            self._waiting.append(self._claim(edit))

    def _screening(self, edit: Edit, node: int) -> float:
        """The gain against the champion run of a node, which is bought unless it is there."""
        lab, cost = self._lab, 1
        if node not in self._cells:
            effect = lab.seed_effect()
            self._cells[node] = (effect, self._champion_run(node, effect))
            cost = 2
        effect, champion = self._cells[node]
        self._tally.spent(edit, cost)
        return self._level + lab.nodes[node] + edit.search_gain + lab.run(effect, edit.spread) - champion

    def _champion_run(self, node: int, effect: float) -> float:
        """Its score, less what champion and candidates have in common."""
        return self._level + self._lab.nodes[node] + self._lab.run(effect)

    def _claim(self, edit: Edit) -> OpenClaim:
        return OpenClaim(edit, self._noise, bar(self._campaign))

    def _confirm(self) -> None:
        """Settle what waits; a second winner of one base is confirmed again on the new champion."""
        group, self._waiting = self._waiting, []
        self._settle(group, self._tally)
        promoted = False
        for claim in group:
            if promoted and self._holds(claim):
                claim = self._claim(claim.edit)
                self._settle([claim], self._tally)
            promoted = self._close(claim) or promoted

    def _close(self, claim: OpenClaim) -> bool:
        decision, holds = claim.weighed(self._rule), self._holds(claim)
        self._campaign = self._campaign.closed(promoted=holds)
        self._noise = self._noise.pooled(claim.gains)
        if holds:
            self._tally.promote(claim.edit, decision.effect)
            self._cells.clear()
        return holds

    def _holds(self, claim: OpenClaim) -> bool:
        if not isinstance(claim.weighed(self._rule), Accepted):
            return False
        return not self._lab.world.holdout or survives_holdout(claim.gains, claim.holdout)

    def _settle(self, group: Sequence[OpenClaim], tally: Tally) -> None:
        """Buy one Pair after the other for each open Claim; those of a block share the champion's run."""
        lab = self._lab
        while still := [claim for claim in group if isinstance(claim.weighed(self._rule), Undecided)]:
            effect, champion = self._block(tally)
            on_holdout = lab.on_holdout(champion) if lab.world.holdout else 0.0
            for claim in still:
                run = lab.run(effect, claim.edit.spread)
                claim.gains.append(claim.edit.search_gain + run - champion)
                if lab.world.holdout:
                    claim.holdout.append(claim.edit.holdout_gain + lab.on_holdout(run) - on_holdout)
                tally.spent(claim.edit, 1.0 + 1.0 / len(still))

    def _block(self, tally: Tally) -> tuple[float, float]:
        """What a Block's seed does, and the champion's run on it; a probe's tally is not the campaign's."""
        effect = self._lab.seed_effect()
        return effect, self._lab.run(effect)

    def _probe(self) -> None:
        for gain in PROBED_SD:
            edit = Edit(gain, gain, gain)
            passed = screen_passes(self._probing(edit), self._noise, self._rule)
            claim = self._claim(edit)
            if passed:
                self._settle([claim], Tally())
            self._tally.probes[gain].append(passed and self._holds(claim))

    def _probing(self, edit: Edit) -> float:
        """A screening that nobody pays for."""
        effect = self._lab.seed_effect()
        return edit.gain + self._lab.run(effect) - self._lab.run(effect)


def believe(world: World, rule: Rule, *, campaigns: int, seed: int, proposals: int = PROPOSALS) -> Tally:
    """Replay campaigns in which the engine decides."""
    tally = Tally()
    for lab in labs(world, campaigns, seed):
        tally.campaigns += 1
        Believer(lab, rule, tally).run(proposals)
    return tally


def keep_greedily(world: World, *, campaigns: int, seed: int, proposals: int = PROPOSALS) -> Tally:
    """The rival that keeps what scored better than the best score so far, one run each, all on one machine."""
    tally = Tally()
    for lab in labs(world, campaigns, seed):
        tally.campaigns += 1
        truth, level, record = 0.0, 0.0, lab.run(lab.seed_effect())
        for number in range(proposals):
            edit = lab.edit()
            level += lab.step()
            tally.propose(edit)
            tally.spent(edit, 1)
            if number % _PROBE_EVERY == 0:
                for gain, seen in tally.probes.items():
                    seen.append(level + truth + gain + lab.run(lab.seed_effect()) > record)
            score = level + truth + edit.search_gain + lab.run(lab.seed_effect(), edit.spread)
            if score > record:
                tally.promote(edit, score - record)
                truth, record = truth + edit.search_gain, score
    return tally


def five_pairs_each(world: World, *, campaigns: int, seed: int, proposals: int = PROPOSALS) -> Tally:
    """The rival that buys five Pairs for every edit and keeps what a one-sided t test calls better at 5 %."""
    tally = Tally()
    for lab in labs(world, campaigns, seed):
        tally.campaigns += 1
        for number in range(proposals):
            edit = lab.edit()
            tally.propose(edit)
            tally.spent(edit, 10)
            if number % _PROBE_EVERY == 0:
                for gain, seen in tally.probes.items():
                    seen.append(_five_pairs(lab, Edit(gain, gain, gain))[0] > 0.0)
            low, mean = _five_pairs(lab, edit)
            if low > 0.0:
                tally.promote(edit, mean)
    return tally


def _five_pairs(lab: Lab, edit: Edit) -> tuple[float, float]:
    gains = []
    for _ in range(5):
        effect = lab.seed_effect()
        gains.append(edit.search_gain + lab.run(effect, edit.spread) - lab.run(effect))
    interval = paired_interval(gains, confidence=0.90)
    return interval.low, interval.mean


def labs(world: World, campaigns: int, seed: int) -> Iterator[Lab]:
    """One for each campaign; the same seed draws the same ones."""
    for number in range(campaigns):
        yield Lab(world, (seed, number))
