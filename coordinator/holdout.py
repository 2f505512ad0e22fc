"""The holdout gate: what nodes are asked about the Claim that lands next, and the one answer that comes of it. Pure.

The split that no search sees is scored on the artifacts that the Claim's own Pairs left on their nodes, once, and only
for the tree that would land. The scores travel in Reports and are weighed here; only pass or fail, and a gain rounded
to about the noise, become a fact. It does not know how a node keeps or scores an artifact.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import NamedTuple

from coordinator.leases import SHARED_BY, Presence, in_vain
from coordinator.pairs import FORGIVEN_KILLS
from coordinator.panel import LEAST_RUNS
from coordinator.reproduction import LARGEST_GAIN, survives_holdout
from coordinator.state import Claim, Drawn, Pair, State
from swarm.config import Nodes
from swarm.records import Failure, HoldoutAnswered, Measurement, Outcome, Report

REPLACED = 3  # fresh Pairs at most, in the place of those whose artifacts are gone
SLOWER = 3  # times as long as the Claim's own Trials: a busy machine, and the scoring itself, which has an audit
LATE = "its node did not answer in time"


class Gone(NamedTuple):
    """A Pair that cannot be scored there, and why."""

    reason: str


class Scored(NamedTuple):
    """What a Pair gained on the split that was searched, and on the one that was not."""

    search: float
    holdout: float


Look = Scored | Failure | Gone | None  # None: the answer is still to come


def ladder_step(sd: float) -> float:
    """How finely a gain on the holdout is told: the least of 1, 2 or 5 times a power of ten that reaches s.

    An answer as fine as the noise can be searched against; one that moves only in steps of it hardly (Blum & Hardt
    2015, The Ladder).
    """
    power = math.floor(math.log10(sd))
    return next(step for times in (1, 2, 5, 10, 20) if (step := float(f"{times}e{power}")) >= sd)


def rounded(gain: float, step: float) -> float:
    """A gain to the nearest step, without the dust of binary fractions."""
    return float(f"{round(gain / step) * step:.6g}")


def asked_of(claim: Claim | None, report: Report) -> dict[str, str]:
    """Trials of the Claim that lands next that a node should score on the holdout, and the artifacts that they left."""
    if claim is None:
        return {}
    pairs = [pair for pair in claim.pairs if pair.node == report.node.uid]
    wanted = {trial: artifact for pair in pairs for trial, artifact in _artifacts(pair).items()}
    return {t: a for t, a in wanted.items() if t in report.kept and t not in report.holdout}


def released(state: State, report: Report) -> tuple[str, ...]:
    """Trials that a node keeps, and that no Claim which may still land rests on."""
    return tuple(trial for trial in report.kept if not _is_needed(state, trial))


def _is_needed(state: State, trial: str) -> bool:
    drawn = state.blocks.get(state.block_of.get(trial, ""))
    if drawn is None:
        return False
    blocks = (drawn.fact, *state.again.get(trial, ()))
    keys = [(experiment, block.reference) for block in blocks for experiment in block.experiments]
    return any(key in state.open_claims or key in state.accepted for key in keys) or _is_cell(state, drawn, trial)


def _is_cell(state: State, drawn: Drawn, trial: str) -> bool:
    """Whether candidates may still run where this run of the champion did."""
    run, where = drawn.finished.get(trial), state.references.get(state.platform_of(drawn.fact.node))
    if where is None or drawn.fact.reference != where.champion:
        return False
    if run is None:  # the node has it on its disk already, and its fact is on the way
        return where.on and drawn.fact.purpose == "calibrate"
    return run.candidate == where.champion and any(cell.trial == trial for cell in where.cells)


def _artifacts(pair: Pair) -> dict[str, str]:
    return {pair.champion_trial: pair.champion_artifact, pair.candidate_trial: pair.candidate_artifact}


@dataclass(frozen=True)
class Gate:
    """One look at the answers about one Claim."""

    state: State
    presence: Mapping[str, Presence]
    claim: Claim
    nodes: Nodes
    since: float
    """When its turn came."""
    now: float

    def wants_pair(self) -> bool:
        """Whether a fresh Pair should be drawn: fewer can be scored than an acceptance needs.

        Bounded, as machines that lose every artifact would be asked for ever.
        """
        verdict = self.claim.verdict
        fresh = len(self.claim.pairs) - (verdict.pairs if verdict else 0)
        there = sum(not isinstance(look, Gone) for look in self._looks())
        least = LEAST_RUNS if verdict is not None and verdict.panel else self.state.rule.min_pairs
        few = there < least and fresh < REPLACED
        return few and self._waits(rounds=2) and not in_vain(self.claim)

    def answer(self) -> HoldoutAnswered | None:
        """Pass or fail; None while answers are to come. Two ideas may have come to one tree: it is not asked twice."""
        known = self.state.holdout.get((self.claim.candidate, self.claim.base))
        if known is not None:
            claim = self.claim
            again = replace(known, experiment=claim.experiment, after_demotion=claim.after_demotion)
            return replace(again, at=self.now, node_s=0.0)
        looks = list(self._looks())
        failed = next((look for look in looks if isinstance(look, Failure)), None)
        if failed is not None:  # in one word: its own words could carry the text that it was asked about
            return self._answered(reason=f"failed on the holdout split: {failed.reason}")
        if (killed := sum(self._was_killed(pair) for pair in self.claim.pairs)) > FORGIVEN_KILLS:
            return self._answered(reason=f"was killed on the holdout split on {killed} pairs")
        if None in looks or self.wants_pair():
            return None
        scored = [look for look in looks if isinstance(look, Scored)]
        if scored:
            return self._weighed(scored, len(looks))
        why = next((look.reason for look in looks if isinstance(look, Gone)), LATE)
        return self._answered(reason=f"none of its pairs could be scored on the holdout split: {why}")

    def _weighed(self, scored: list[Scored], of: int) -> HoldoutAnswered:
        there = f"on the holdout split, on {len(scored)} of {of} pairs"
        mean = fmean(pair.holdout for pair in scored)
        if self.claim.kind == "simplification":  # it promises no gain, only not to lose the margin
            holds, told = mean > -self.claim.rule.margin * self.claim.noise.sd, ("lost less", "lost more")
            words = f"than the margin {there}"
        else:
            holds = survives_holdout([pair.search for pair in scored], [pair.holdout for pair in scored])
            told, words = ("kept", "did not keep"), f"two thirds of its gain {there}"
        gain = rounded(mean, ladder_step(self.claim.noise.sd)) if holds else None
        return self._answered(pairs=len(scored), gain=gain, reason=f"{told[not holds]} {words}")

    def _answered(self, *, reason: str, pairs: int = 0, gain: float | None = None) -> HoldoutAnswered:
        claim = self.claim
        return HoldoutAnswered(
            number=len(self.state.holdout) + 1,
            experiment=claim.experiment,
            candidate=claim.candidate,
            base=claim.base,
            passed=gain is not None,
            gain=gain,
            step=ladder_step(claim.noise.sd),
            pairs=pairs,
            reason=reason,
            at=self.now,
            node_s=sum(outcome.scoring_s for outcome in self._heard() if isinstance(outcome, Measurement)),
            after_demotion=claim.after_demotion,
        )

    def _was_killed(self, pair: Pair) -> bool:
        told = self.presence[pair.node].report.holdout if pair.node in self.presence else {}
        outcome = told.get(pair.candidate_trial)
        return isinstance(outcome, Failure) and outcome.reason == "killed"

    def _heard(self) -> Iterator[Outcome]:
        """What nodes that are there have said about its Pairs."""
        for pair in self.claim.pairs:
            told = self.presence[pair.node].report.holdout if pair.node in self.presence else {}
            yield from (told[trial] for trial in _artifacts(pair) if trial in told)

    def _waits(self, *, rounds: int) -> bool:
        """Whether so many rounds of answers may still be under way: one for the first Pairs, another for fresh ones.

        Before a node answers it may finish a Block and a Trial of its own. With Trials of 20 s it has 7.5 minutes.
        """
        work = SHARED_BY + 2
        longest, usual = 2 * work * self.nodes.trial_wall_s, SLOWER * work * self._slowest_s()
        return self.now - self.since < rounds * (self.nodes.lost_after_s + min(longest, usual))

    def _slowest_s(self) -> float:
        """The longest that a Trial of this Claim took."""
        trials = [trial for pair in self.claim.pairs for trial in (pair.champion_trial, pair.candidate_trial)]
        runs = map(self.state.finished_trial, trials)
        return max((run.ended_at - run.started_at for run in runs), default=0.0)

    def _looks(self) -> Iterator[Look]:
        decided = self.claim.verdict.pairs if self.claim.verdict else 0
        for number, pair in enumerate(self.claim.pairs):
            look = self._look(pair)
            late = look is None and not self._waits(rounds=1 if number < decided else 2)
            yield Gone(LATE) if late else look

    def _look(self, pair: Pair) -> Look:
        presence = self.presence.get(pair.node)
        if presence is None:
            returning = self.now - self.state.session_started < self.nodes.lost_after_s
            return None if returning else Gone("its node did not come back")
        if not presence.alive:
            return Gone("its node died")
        report = presence.report
        candidate, champion = report.holdout.get(pair.candidate_trial), report.holdout.get(pair.champion_trial)
        if candidate is not None and champion is not None:
            return self._compare(pair, candidate, champion)
        if not _artifacts(pair).keys() <= set(report.kept):
            return Gone("its node keeps the artifacts no longer")
        return None

    def _compare(self, pair: Pair, candidate: Outcome, champion: Outcome) -> Look:
        if isinstance(candidate, Failure) and candidate.blame == "candidate":
            return candidate
        ours, theirs = _score(candidate, pair.candidate_artifact), _score(champion, pair.champion_artifact)
        if isinstance(ours, Gone):
            return ours
        return theirs if isinstance(theirs, Gone) else Scored(pair.gain, self.state.gain(ours, theirs))


def _score(outcome: Outcome, artifact: str) -> float | Gone:
    """A node may only tell of the very artifact that was confirmed, with an audited score of ours."""
    if not isinstance(outcome, Measurement):
        return Gone(f"scoring it failed: {outcome.reason}")
    sound = outcome.audited and outcome.artifact == artifact and abs(outcome.score) <= LARGEST_GAIN / 2
    return outcome.score if sound else Gone("its node's answer is no audited score of that artifact")
