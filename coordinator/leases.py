"""Which Node is given which Block next. Pure: `(state, presence, now) -> blocks to draw`.

Every block gets a seed that nothing else used, from the study's seed and the block's number; one for claims on a panel
gets that of a run of the champion, which they have not run with. Drawn means counted:
whoever draws a block commits it before anything else is asked here. It does not know what a block is evidence for.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from coordinator.panel import FRESH_RUNS
from coordinator.rechecks import owed as owed_recheck
from coordinator.rechecks import wants_pair
from coordinator.references import Cell, References, Weighing
from coordinator.stacking import pairs_missing
from coordinator.state import Claim, State
from coordinator.transfer import owed
from swarm.config import Config
from swarm.records import BlockDrawn, Measurement, Purpose, Report, digest
from swarm.trust import level_needed

SHARED_BY = 4  # candidates that may share one champion run in a block: above it false verdicts come in clusters
SPREAD = 3  # other nodes that a claim is confirmed on, where there are so many
EARLY_DF = 12  # below it the first pairs of a claim are bought at once: one-pair losers teach the noise nothing
BLOCKS_IN_VAIN = 12  # of one claim: what keeps killing its machine, or cannot be compared, is not tried for ever
QUARANTINE_AFTER, QUARANTINE_S = 3, 60.0  # disturbances in a row; doubled for each further one


@dataclass
class Presence:
    """What is known of a node right now. Not a fact: it may vanish."""

    report: Report
    heard_at: float
    ready_at: float = -math.inf  # when it last said that it could run something
    alive: bool = True
    held: set[str] = field(default_factory=set)  # blocks it was seen holding that are still outstanding


def trial_id(candidate: str, seed: int, platform: str, purpose: Purpose, number: int) -> str:
    """Name of a trial that the coordinator leases: it binds all that a node must not change."""
    return digest(candidate, seed, platform, purpose, number)


def least_level(config: Config) -> int:
    """Of the sandbox of a node that is given Blocks."""
    return 0 if config.nodes.trust_code else level_needed(config)


def leasable(state: State, presence: Mapping[str, Presence], config: Config, now: float) -> list[str]:
    """Nodes that may be given Blocks, now or once they are free; those that are starting again count for a while."""
    least, nodes = least_level(config), state.nodes
    ready = [uid for uid, known in presence.items() if now - known.ready_at <= config.nodes.lost_after_s]
    return [uid for uid in ready if uid in nodes and nodes[uid].sandbox_level >= least]


def platforms_gone(state: State, presence: Mapping[str, Presence], config: Config, now: float) -> set[str]:
    """Platforms that measured claims, and of whose nodes none may be given a Block any more, while others may."""
    if now - state.session_started <= config.nodes.lost_after_s:
        return set()
    here = {state.platform_of(uid) for uid in leasable(state, presence, config, now)}
    return state.noise.keys() - here if here else set()


def in_vain(claim: Claim) -> bool:
    """Whether too many blocks of a claim gave no pair; counts those still out, which their results may redeem."""
    return claim.drawn.total() >= len(claim.pairs) + BLOCKS_IN_VAIN


class Leases:
    """One look at who is free and what is wanted. Drawing a block uses up its node, and what it was wanted for."""

    def __init__(self, state: State, presence: Mapping[str, Presence], config: Config, now: float) -> None:
        self._state, self._config, self._now = state, config, now
        self._least_level = least_level(config)
        self._number = len(state.blocks)
        self._kept = {uid: {*known.report.kept} for uid, known in presence.items()}
        there = leasable(state, presence, config, now)
        self._alive = Counter(state.platform_of(uid) for uid in there if presence[uid].alive)
        self._free = {uid: None for uid in sorted(presence) if self._is_free(uid, presence[uid])}  # an ordered set
        self._in_flight = Counter(
            (experiment, drawn.fact.reference)
            for drawn in state.outstanding.values()
            for experiment in drawn.fact.experiments
        )

    def for_exploration(self) -> list[BlockDrawn]:
        """While ideas are being tried: what measures the noise, what confirms claims, then what checks champions."""
        measured = [*self._calibrations(), *self._panels()]
        return [*measured, *self._confirmations(), *self._rechecks(), *self._transfers()]

    def for_holdout(self, claim: Claim) -> list[BlockDrawn]:
        """A fresh Pair of an accepted claim, as the artifacts of earlier ones are gone."""
        uid = None if self._in_flight[claim.key] else self._best_node(claim)
        if uid is None:
            return []
        return [self._draw(uid, "confirm", claim.base, [claim.candidate], [claim.experiment])]

    def for_the_end(self, platform: str) -> list[BlockDrawn]:
        """The final comparison of champion and baseline, on one Platform."""
        state, wanted = self._state, self._config.decision.final_seeds
        planned = sum(
            d.fact.purpose == "final" and state.champion in d.fact.candidates for d in state.outstanding.values()
        )
        missing = wanted - planned - len(state.final) if state.final_failures < wanted else 0
        nodes = self._least_used(platform)[: max(0, missing)]
        return [self._draw(uid, "final", state.baseline, [state.champion], []) for uid in nodes]

    # --- who ---

    def _is_free(self, uid: str, presence: Presence) -> bool:
        if not presence.alive or not presence.report.ready or presence.report.holding:
            return False
        if uid not in self._state.nodes or self._state.nodes[uid].sandbox_level < self._least_level:
            return False
        return uid not in self._state.leased and not self._quarantined(uid)

    def _quarantined(self, uid: str) -> bool:
        count = self._state.disturbances.get(uid, 0) - QUARANTINE_AFTER
        since = self._now - self._state.disturbed_at.get(uid, 0.0)
        return count >= 0 and since < QUARANTINE_S * 2 ** min(count, 6)

    def _least_used(self, platform: str) -> list[str]:
        mine = [uid for uid in self._free if self._state.platform_of(uid) == platform]
        return sorted(mine, key=lambda uid: (self._state.drawn_for[uid], uid))

    # --- calibration ---

    def _calibrations(self) -> Iterator[BlockDrawn]:
        state = self._state
        platforms = {state.platform_of(uid): None for uid in self._free if state.platform_of(uid) not in state.noise}
        for platform in platforms:
            if state.baseline_fails(platform):
                continue
            done = len(state.calibration.get(platform, {}).get(state.champion, []))
            yield from self._champion_runs(self._least_used(platform), state.calibration_runs - done, platform)

    def _champion_runs(self, nodes: Sequence[str], missing: int, platform: str, runs: int = 2) -> Iterator[BlockDrawn]:
        """Blocks of so many runs each on fresh seeds, until none is missing that is not on its way."""
        champion, left = self._state.champion, missing - self._calibrating(platform)
        for uid in nodes[: max(0, (left + runs - 1) // runs)]:
            yield self._draw(uid, "calibrate", champion, [champion] * (runs - 1), [], fresh_seed_each=True)

    def _calibrating(self, platform: str) -> int:
        """Runs of the champion that are on their way."""
        state = self._state
        return sum(
            len(drawn.fact.trials) - len(drawn.finished)
            for drawn in state.outstanding.values()
            if drawn.fact.purpose == "calibrate"
            and drawn.fact.reference == state.champion
            and state.platform_of(drawn.fact.node) == platform
        )

    # --- panels ---

    def _panels(self) -> Iterator[BlockDrawn]:
        """The champion's runs that a panel lacks, on the Nodes that have the fewest; a crash is not tried for ever.

        At first two in a Block, which tells what seeds add; then singly, as the second says nothing of a drift.
        """
        for platform, references in self._state.references.items():
            if not references.hopeless:
                on = Counter(cell.node for cell in references.cells)
                nodes = sorted(self._least_used(platform), key=lambda uid: on[uid])
                missing, first = references.wanted() - references.fresh, references.fresh < FRESH_RUNS
                yield from self._champion_runs(nodes, missing, platform, runs=2 if first else 1)

    def _panel_comes(self, claim: Claim) -> bool:
        """Whether a claim waits a little: the runs that it will be weighed against are being made."""
        panel = self._state.panel_of(claim)
        if claim.drawn or panel is None or panel.fresh >= FRESH_RUNS:
            return False
        return not panel.hopeless or self._calibrating(claim.platform) > 0

    def _cell(self, uid: str, claim: Claim) -> Cell | None:
        """Where the champion has run and a claim on its panel has not: the seed that the fewest candidates share.

        What they have in common makes false verdicts come in clusters.
        """
        panel = self._panel(claim)
        cells = panel.cells if panel is not None else ()
        mine = (cell for cell in cells if cell.node == uid and self._is_whole(cell))
        return min((cell for cell in mine if self._is_fresh(cell, claim)), key=self._shared, default=None)

    def _is_whole(self, cell: Cell) -> bool:
        """Whether the holdout can be asked about the champion's run there: its node has the artifact, or none is."""
        outcome = self._state.finished_trial(cell.trial).outcome
        printed = isinstance(outcome, Measurement) and outcome.self_reported
        return printed or cell.trial in self._kept[cell.node]

    def _panel(self, claim: Claim) -> References | Weighing | None:
        """What a claim is weighed against, or will be with its first block; None where it takes Pairs."""
        panel = self._state.panel_of(claim)
        return claim.weighing if claim.drawn else panel if panel is not None and panel.ready else None

    def _is_fresh(self, cell: Cell, claim: Claim) -> bool:
        """Whether a claim's panel has this run of the champion, and its candidate never ran beside it."""
        panel = self._panel(claim)
        blocks = (self._state.blocks[self._state.block_of[cell.trial]].fact, *self._state.again.get(cell.trial, ()))
        ran = any(claim.candidate in block.candidates for block in blocks)
        return panel is not None and cell in panel.cells and not ran

    def _shared(self, cell: Cell) -> int:
        return sum(len(block.candidates) for block in self._state.again.get(cell.trial, ()))

    # --- confirmation ---

    def _confirmations(self) -> Iterator[BlockDrawn]:
        """Oldest claims first; each on the node that has measured it least."""
        for claim in list(self._state.open_claims.values()):
            while self._wants_pair(claim) and (uid := self._best_node(claim)) is not None:
                cell = self._cell(uid, claim)
                claims = [claim, *self._company(claim, uid, cell)][:SHARED_BY]
                self._in_flight.update((c.experiment, c.base) for c in claims)
                candidates, experiments = [c.candidate for c in claims], [c.experiment for c in claims]
                yield self._draw(uid, "confirm", claim.base, candidates, experiments, cell=cell)

    def _wants_pair(self, claim: Claim) -> bool:
        if claim.failed or in_vain(claim) or claim.base != self._state.champion and not claim.pairs:
            return False
        if self._panel_comes(claim):
            return False
        missing = max(1, self._state.rule.min_pairs - len(claim.pairs))
        early = claim.noise.df < EARLY_DF and self._panel(claim) is None  # a claim on a panel teaches the noise nothing
        allowed = missing if early else 1
        most = pairs_missing(self._state, claim) if claim.ideas else allowed
        return self._in_flight[(claim.experiment, claim.base)] < min(allowed, most)

    def _best_node(self, claim: Claim) -> str | None:
        free = [uid for uid in self._free if self._may_measure(uid, claim)]
        return min(
            free,
            key=lambda uid: (
                self._is_dear(uid, claim),
                claim.drawn[uid],
                uid == claim.node,
                self._state.drawn_for[uid],
                uid,
            ),
            default=None,
        )

    def _is_dear(self, uid: str, claim: Claim) -> bool:
        """Whether a claim on a panel would cost a run of the champion there, or its spread."""
        if self._panel(claim) is None:
            return False
        return not self._spreads(uid, claim) or self._cell(uid, claim) is None

    def _spreads(self, uid: str, claim: Claim) -> bool:
        return not claim.drawn[uid] or len(claim.drawn) >= min(SPREAD, self._others(claim))

    def _may_measure(self, uid: str, claim: Claim) -> bool:
        """On its Platform; not where the idea comes from, if there are enough others."""
        own = uid == claim.node and self._others(claim) >= SPREAD
        return self._state.platform_of(uid) == claim.platform and not own

    def _others(self, claim: Claim) -> int:
        return self._alive[claim.platform] - (self._state.platform_of(claim.node) == claim.platform)

    def _company(self, first: Claim, uid: str, cell: Cell | None) -> Iterator[Claim]:
        """Claims that may share the champion's run of a block, where that does not cost them their spread."""
        seen = {first.candidate}
        for claim in self._state.open_claims.values():
            if claim.base != first.base or claim.platform != first.platform or claim.candidate in seen:
                continue
            if bool(claim.ideas) != bool(first.ideas):  # sets are compared with each other, so they stay together
                continue
            fits = self._panel(claim) is None if cell is None else self._is_fresh(cell, claim)
            if fits and self._spreads(uid, claim) and self._may_measure(uid, claim) and self._wants_pair(claim):
                seen.add(claim.candidate)
                yield claim

    # --- champions ---

    def _rechecks(self) -> Iterator[BlockDrawn]:
        """One pair at a time, as a check of transfer."""
        due = owed_recheck(self._state, self._config.decision)
        if due is None or not wants_pair(due, self._config.decision, self._state.rule):
            return
        if not any(drawn.fact.purpose == "recheck" for drawn in self._state.outstanding.values()):
            for uid in self._least_used(due.claim.platform)[:1]:
                yield self._draw(uid, "recheck", due.ancestor, [due.champion], [])

    def _transfers(self) -> Iterator[BlockDrawn]:
        """One pair at a time, on a node that nothing else of ours needs; it would be exploring."""
        if any(drawn.fact.purpose == "transfer" for drawn in self._state.outstanding.values()):
            return
        for claim in owed(self._state, self._config.decision):
            for uid in self._least_used(claim.platform)[:1]:
                yield self._draw(uid, "transfer", claim.base, [claim.candidate], [claim.experiment])
                return

    # --- drawing ---

    def _draw(
        self,
        uid: str,
        purpose: Purpose,
        reference: str,
        candidates: Sequence[str],
        experiments: Sequence[str],
        *,
        fresh_seed_each: bool = False,
        cell: Cell | None = None,
    ) -> BlockDrawn:
        """A block with a fresh seed, its trials in random order; in a cell with its seed, without the reference."""
        del self._free[uid]
        self._number += 1
        name = digest("block", self._config.seed, self._config.study, self._number)
        platform = self._state.platform_of(uid)
        order = [reference, *candidates] if cell is None else [*candidates]
        Random(name).shuffle(order)
        fresh = (int(digest(name, i if fresh_seed_each else 0)[:8], 16) & 0x7FFFFFFF for i in range(len(order)))
        seeds = tuple(fresh) if cell is None else (cell.seed,) * len(order)
        trials = tuple(trial_id(c, s, platform, purpose, self._number) for c, s in zip(order, seeds, strict=True))
        return BlockDrawn(
            block=name,
            number=self._number,
            fence=self._state.epoch * 1_000_000 + self._number,
            node=uid,
            purpose=purpose,
            seeds=seeds,
            candidates=tuple(order),
            reference=reference,
            experiments=tuple(experiments),
            trials=trials,
            at=self._now,
            reference_trial="" if cell is None else cell.trial,
        )
