"""What the facts of a ledger tell: experiments and their fate, the line of champions, what it cost.

A pure reading of the facts in ledger order. It decides nothing (the mind does, from its own state) and knows
nothing of SQLite, git or Markdown. Facts that speak of something unknown are passed over: a page about half a ledger
is better than none.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import NamedTuple

from swarm.busy import busy_share, time_of
from swarm.experiment import Experiment, Fate, Lines, Status, failure_of, only, read_experiment, score_of
from swarm.records import (
    BlockDrawn,
    BlockLost,
    Carried,
    ChampionRechecked,
    ClaimRaised,
    CoordinatorStarted,
    Demotion,
    DemotionVetoed,
    Direction,
    ExperimentAdmitted,
    Fact,
    Files,
    HoldoutAnswered,
    Interaction,
    Measurement,
    NodeInfo,
    NodeJoined,
    NodeLost,
    PanelSwitched,
    Platform,
    Promotion,
    ProposalRefused,
    Purpose,
    Screened,
    ShamJudged,
    ShamRaised,
    Spent,
    Stacked,
    StudyFinished,
    StudyOpened,
    TrialDisturbed,
    TrialFinished,
    Trouble,
    Usage,
    Verdict,
)

__all__ = ["Experiment", "History", "Lines", "Pair", "Status", "busy_share", "failure_of", "history", "score_of"]


class Pair(NamedTuple):
    """The champion's and the candidate's trial on one fresh seed; None where one has not finished."""

    champion: TrialFinished | None
    candidate: TrialFinished | None


@dataclass(frozen=True)
class History:
    """One study, told from its facts."""

    opened: StudyOpened | None
    experiments: tuple[Experiment, ...]
    promotions: tuple[Promotion, ...]
    """All that ever landed; `line` leaves out what was undone."""
    interactions: tuple[Interaction, ...]
    holdout_answers: tuple[HoldoutAnswered, ...]
    rechecks: tuple[ChampionRechecked, ...]
    demotions: tuple[Demotion, ...]
    demotions_vetoed: tuple[DemotionVetoed, ...]
    shams: tuple[ShamJudged, ...]
    """Sham edits that the chain has judged; those of which no pair had run say nothing, and are left out."""
    switches: tuple[PanelSwitched, ...]
    trials: Mapping[str, TrialFinished]
    blocks: Mapping[str, BlockDrawn]
    nodes: Mapping[str, NodeInfo]
    """By uid, as each last described itself."""
    platforms: Mapping[str, Platform]
    """By id."""
    files: Mapping[str, Files]
    """By candidate."""
    refused: tuple[ProposalRefused, ...]
    disturbed: tuple[TrialDisturbed, ...]
    lost_blocks: tuple[BlockLost, ...]
    troubles: tuple[Trouble, ...]
    spent: Usage
    sessions: int
    """How often a coordinator took over."""
    finished: StudyFinished | None
    last_at: float
    busy: float
    """See `busy_share`."""

    @property
    def metric(self) -> str:
        return self.opened.metric if self.opened else "score"

    @property
    def direction(self) -> Direction:
        return self.opened.direction if self.opened else "minimize"

    @property
    def baseline(self) -> str:
        return self.opened.baseline if self.opened else ""

    @property
    def champion(self) -> str:
        return self.line[-1].candidate if self.line else self.baseline

    @cached_property
    def line(self) -> tuple[Promotion, ...]:
        """The promotions between baseline and champion, oldest first."""
        return tuple(promotion for promotion in self.promotions if self.demotion_of(promotion) is None)

    def demotion_of(self, promotion: Promotion) -> Demotion | None:
        """What undid a promotion."""
        return next((d for d in self.demotions if promotion.number in d.undone), None)

    @property
    def self_reported(self) -> bool:
        """Whether any score is the candidate's own word."""
        return any(isinstance(t.outcome, Measurement) and t.outcome.self_reported for t in self.trials.values())

    def gain(self, score: float, than: float) -> float:
        """Oriented so that positive is better."""
        return than - score if self.direction == "minimize" else score - than

    def node_name(self, uid: str) -> str:
        """Untrusted text: a node names itself."""
        return self.nodes[uid].name if uid in self.nodes else uid[:8]

    def find(self, name: str) -> tuple[Experiment, ...]:
        """Experiments that people may mean: by number, or by the beginning of idea or candidate."""
        if name.isdigit() and 1 <= int(name) <= len(self.experiments):
            return (self.experiments[int(name) - 1],)
        wanted = name.lower()
        return tuple(
            e for e in self.experiments if wanted and (e.idea.startswith(wanted) or e.candidate.startswith(wanted))
        )

    @cached_property
    def by_idea(self) -> Mapping[str, Experiment]:
        """Ideas that landed together are found by the name of their set, too: the first of them."""
        found = {experiment.idea: experiment for experiment in self.experiments}
        sets = {p.experiment: found[p.ideas[0]] for p in self.promotions if p.ideas and p.ideas[0] in found}
        return {**sets, **found}

    @cached_property
    def by_candidate(self) -> Mapping[str, Experiment]:
        return {experiment.candidate: experiment for experiment in reversed(self.experiments)}  # the first one wins

    def verdict_on(self, promotion: Promotion) -> Verdict | None:
        """The verdict that a promotion rests on."""
        experiment = self.by_idea.get(promotion.experiment)
        verdicts = experiment.verdicts if experiment else ()
        known = [v for v in verdicts if v.accepted and v.base == promotion.base and v.at <= promotion.at]
        return known[-1] if known else None  # an idea may be promoted, undone and promoted again on the same base

    def holdout_on(self, promotion: Promotion) -> HoldoutAnswered | None:
        """What the holdout said of the tree that landed; None where it was not asked."""
        keys = (promotion.experiment, promotion.base)
        return next((a for a in self.holdout_answers if (a.experiment, a.base) == keys), None)

    def pairs(self, verdict: Verdict | ChampionRechecked) -> tuple[Pair, ...]:
        """The evidence of a verdict, also the bad ones."""
        trials = [self.trials.get(trial) for trial in verdict.evidence]
        return tuple(Pair(*both) for both in zip(trials[::2], trials[1::2], strict=False))

    def final_pairs(self) -> tuple[Pair, ...]:
        """Baseline and champion on the fresh seeds of the end."""
        found = []
        for block in self.blocks.values():
            if block.purpose == "final":
                runs = dict(zip(block.candidates, (self.trials.get(t) for t in block.trials), strict=False))
                reference = runs.pop(block.reference, None)
                found += [Pair(reference, run) for run in runs.values() if reference or run]
        return tuple(found)

    def stacked(self, promotion: Promotion) -> tuple[Experiment, ...]:
        """The ideas that a promotion brings, newest first: the claimed one and those kept below it since its base."""
        found: dict[str, Experiment] = {}
        bases = {earlier.base for earlier in self.promotions}  # below them lies nothing that was still to land
        for idea in promotion.landed:
            experiment = self.by_idea.get(idea)
            while experiment is not None and experiment.idea not in found:
                found[experiment.idea] = experiment
                ends = promotion.ideas or experiment.parent in bases
                experiment = None if ends else self.by_candidate.get(experiment.parent)
        return tuple(found.values())

    @property
    def home_platform(self) -> str:
        """Where the baseline was measured first; the key of `platforms`."""
        first = next(iter(self._by_purpose.get("calibrate", ())), None)
        return first.platform if first else next(iter(self.platforms), "")

    def calibration_scores(self, platform: str) -> tuple[float, ...]:
        """The baseline on different seeds of one Platform."""
        return tuple(
            trial.outcome.score
            for trial in self._by_purpose.get("calibrate", ())
            if trial.platform == platform
            and trial.candidate == self.baseline
            and isinstance(trial.outcome, Measurement)
        )

    def baseline_score(self, platform: str = "") -> float | None:
        """The baseline's mean over its calibration; on the home Platform unless another is named."""
        scores = self.calibration_scores(platform or self.home_platform)
        return fmean(scores) if scores else None

    def of_purpose(self, purpose: Purpose) -> Sequence[TrialFinished]:
        """Finished trials of one purpose, in ledger order."""
        return self._by_purpose.get(purpose, ())

    @cached_property
    def _by_purpose(self) -> Mapping[str, Sequence[TrialFinished]]:
        found: defaultdict[str, list[TrialFinished]] = defaultdict(list)
        for trial in self.trials.values():
            found[trial.purpose].append(trial)
        return found


def history(facts: Iterable[Fact]) -> History:
    """Read the facts of one ledger, in its order."""
    told = tuple(facts)
    opened, finished = only(told, StudyOpened), only(told, StudyFinished)
    joined = only(told, NodeJoined)
    files = _files(told)
    return History(
        opened=opened[0] if opened else None,
        experiments=tuple(_experiments(told, files, over=bool(finished))),
        promotions=only(told, Promotion),
        interactions=only(told, Interaction),
        holdout_answers=only(told, HoldoutAnswered),
        rechecks=only(told, ChampionRechecked),
        demotions=only(told, Demotion),
        demotions_vetoed=only(told, DemotionVetoed),
        shams=tuple(sham for sham in only(told, ShamJudged) if sham.verdict.pairs),
        switches=only(told, PanelSwitched),
        trials={fact.trial: fact for fact in only(told, TrialFinished)},
        blocks={fact.block: fact for fact in only(told, BlockDrawn)},
        nodes={fact.node.uid: fact.node for fact in joined},
        platforms={fact.node.platform.id: fact.node.platform for fact in joined},
        files=files,
        refused=only(told, ProposalRefused),
        disturbed=only(told, TrialDisturbed),
        lost_blocks=only(told, BlockLost),
        troubles=only(told, Trouble),
        spent=sum((fact.usage for fact in only(told, Spent)), Usage()),
        sessions=len(only(told, CoordinatorStarted)),
        finished=finished[-1] if finished else None,
        last_at=max((time_of(fact) for fact in told), default=0.0),
        busy=busy_share(told),
    )


def _files(facts: Sequence[Fact]) -> dict[str, Files]:
    found: dict[str, Files] = {}
    for fact in facts:
        if isinstance(fact, StudyOpened):
            found.setdefault(fact.baseline, fact.files)
        elif isinstance(fact, ExperimentAdmitted):
            found.setdefault(fact.candidate, fact.proposal.files)
        elif isinstance(fact, Carried | ShamRaised | Stacked):
            found.setdefault(fact.candidate, fact.files)
    return found


def _experiments(facts: Sequence[Fact], files: Mapping[str, Files], *, over: bool) -> Iterator[Experiment]:
    """Numbered by admission; a node without anything further to try has nothing running."""
    fates: defaultdict[str, list[Fate | Demotion]] = defaultdict(list)
    together = {fact.experiment: fact.ideas for fact in only(facts, Promotion) if fact.ideas}
    for fact in facts:
        if isinstance(fact, Demotion):
            for idea in _undone(fact, facts):
                fates[idea].append(fact)
        if isinstance(fact, Fate) and not (isinstance(fact, TrialFinished) and fact.purpose != "screen"):
            for idea in together.get(fact.experiment, (fact.experiment,)):
                fates[idea].append(fact)
    admitted: dict[str, ExperimentAdmitted] = {}
    for first in only(facts, ExperimentAdmitted):
        admitted.setdefault(first.proposal.idea, first)
    occupied = _lost(facts)
    for number, (idea, fact) in enumerate(admitted.items(), start=1):
        experiment = read_experiment(number, fact, files.get(fact.proposal.parent, {}), fates[idea])
        if experiment.status == "waiting" and not over and fact.node not in occupied:
            experiment = replace(experiment, status="running")
            occupied.add(fact.node)
        yield experiment


def _undone(demotion: Demotion, facts: Sequence[Fact]) -> Iterator[str]:
    """The ideas that fall with it."""
    undone = (promotion for promotion in only(facts, Promotion) if promotion.number in demotion.undone)
    return (idea for promotion in undone for idea in promotion.landed)


def _lost(facts: Sequence[Fact]) -> set[str]:
    """Nodes that have not been heard of since they were lost."""
    lost: set[str] = set()
    for fact in facts:
        if isinstance(fact, NodeLost):
            lost.add(fact.node)
        elif isinstance(
            fact, TrialFinished | TrialDisturbed | ExperimentAdmitted | Screened | ClaimRaised | BlockDrawn
        ):
            lost.discard(fact.node)
    return lost
