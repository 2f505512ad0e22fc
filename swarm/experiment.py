"""One idea and everything that became of it; its status is computed from facts, never stored. Pure.

Knows nothing of other experiments, of who is alive, or of how it is shown.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, TypeVar

from swarm.records import (
    Carried,
    ClaimRaised,
    Demotion,
    ExperimentAdmitted,
    Fact,
    Failure,
    Files,
    HoldoutAnswered,
    Measurement,
    Promotion,
    PromotionVetoed,
    Screened,
    TransferChecked,
    TrialFinished,
    Verdict,
)

F = TypeVar("F", bound=Fact)
# Facts that name an experiment.
Fate = (
    TrialFinished
    | Screened
    | ClaimRaised
    | Carried
    | Verdict
    | TransferChecked
    | HoldoutAnswered
    | Promotion
    | PromotionVetoed
)

Status = Literal[
    "waiting",  # admitted, not yet tried
    "running",  # the next in line on its node: a node tries its ideas in the order of their admission
    "failed",  # its screening trial gave no score
    "dropped",  # no better than its branch tip, or set aside before it was tried
    "kept",  # its branch advanced; nobody has claimed it
    "claimed",  # under confirmation, or still without a verdict when the study ended
    "accepted",  # reproduced, not yet landed
    "rejected",  # did not reproduce, not hold on the holdout split, or not transfer where the study requires it
    "promoted",  # became the champion
]


class Lines(NamedTuple):
    """Size of an edit."""

    added: int
    removed: int


@dataclass(frozen=True)
class Experiment:
    """One idea and everything that became of it."""

    number: int
    """1 for the first that was admitted."""
    admitted: ExperimentAdmitted
    parent_files: Files
    """The branch tip that it edits; empty when no fact holds it."""
    trial: TrialFinished | None = None
    """Its screening."""
    screened: Screened | None = None
    claims: tuple[ClaimRaised | Carried, ...] = ()
    """Oldest first; a Carried is the same claim on a champion that had moved."""
    verdicts: tuple[Verdict, ...] = ()
    transfer: TransferChecked | None = None
    """The newest."""
    holdout: HoldoutAnswered | None = None
    """The newest; one that did not pass is the last word."""
    veto: PromotionVetoed | None = None
    promotion: Promotion | None = None
    """That stands; None where it was undone."""
    status: Status = "waiting"

    @property
    def idea(self) -> str:
        return self.admitted.proposal.idea

    @property
    def hypothesis(self) -> str:
        """Untrusted text."""
        return self.admitted.proposal.hypothesis

    @property
    def proposer(self) -> str:
        return self.admitted.proposal.proposer

    @property
    def parent(self) -> str:
        return self.admitted.proposal.parent

    @property
    def candidate(self) -> str:
        return self.admitted.candidate

    @property
    def node(self) -> str:
        return self.admitted.node

    @property
    def branch(self) -> str:
        return self.admitted.branch

    @property
    def kept(self) -> bool:
        """Whether its branch advanced."""
        return self.screened is not None and self.screened.kept

    @property
    def score(self) -> float | None:
        """Of its screening; None when that failed or has not ended."""
        return score_of(self.trial)

    @property
    def claim(self) -> ClaimRaised | Carried | None:
        """The newest."""
        return self.claims[-1] if self.claims else None

    @property
    def verdict(self) -> Verdict | None:
        """The newest."""
        return self.verdicts[-1] if self.verdicts else None

    @property
    def why_rejected(self) -> str:
        """In the words of what rejected it; empty where nothing did."""
        if self.veto is not None:
            return self.veto.reason
        if self.holdout is not None and not self.holdout.passed:
            return self.holdout.reason
        if self.transfer is not None and self.transfer.bars:
            return self.transfer.reason
        return self.verdict.reason if self.verdict is not None and not self.verdict.accepted else ""

    @cached_property
    def lines(self) -> Lines:
        """Lines added and removed against its parent; computed when asked for, as a diff costs a millisecond."""
        return lines_changed(self.parent_files, self.admitted.proposal.files)


def read_experiment(
    number: int, admitted: ExperimentAdmitted, parent: Files, fates: Sequence[Fate | Demotion]
) -> Experiment:
    """Tell one idea from the facts that name it, in ledger order; of its trials, the screening only."""
    trials, screenings = only(fates, TrialFinished), only(fates, Screened)
    promotions, transfers = only(_since_demotion(fates), Promotion), only(fates, TransferChecked)
    holdout, vetoes = only(fates, HoldoutAnswered), only(fates, PromotionVetoed)
    return Experiment(
        number=number,
        admitted=admitted,
        parent_files=parent,
        trial=trials[-1] if trials else None,
        screened=screenings[-1] if screenings else None,
        claims=tuple(fact for fact in fates if isinstance(fact, ClaimRaised | Carried)),
        verdicts=only(fates, Verdict),
        transfer=transfers[-1] if transfers else None,
        holdout=holdout[-1] if holdout else None,
        veto=vetoes[-1] if vetoes else None,
        promotion=promotions[-1] if promotions else None,
        status=_status(fates),
    )


def _status(fates: Sequence[Fate | Demotion]) -> Status:
    """The strongest fact decides; among claims and verdicts the newest, as a carried claim is an open one again."""
    if any(isinstance(fact, Promotion) for fact in _since_demotion(fates)):
        return "promoted"
    for fact in reversed(fates):
        if isinstance(fact, TransferChecked) and fact.bars or isinstance(fact, HoldoutAnswered) and not fact.passed:
            return "rejected"
        if isinstance(fact, PromotionVetoed):
            return "rejected"
        if isinstance(fact, Verdict):
            return "accepted" if fact.accepted else "rejected"
        if isinstance(fact, ClaimRaised | Carried | Demotion):
            return "claimed"
    return _status_of_screening(fates)


def _since_demotion(fates: Sequence[Fate | Demotion]) -> Sequence[Fate | Demotion]:
    """What came after the last time that its promotion was undone."""
    last = max((place for place, fact in enumerate(fates) if isinstance(fact, Demotion)), default=-1)
    return fates[last + 1 :]


def _status_of_screening(fates: Sequence[Fate | Demotion]) -> Status:
    screened = only(fates, Screened)
    if not screened:
        return "failed" if any(failure_of(trial) for trial in only(fates, TrialFinished)) else "waiting"
    if screened[-1].kept:
        return "kept"
    return "failed" if screened[-1].reason.startswith("failed") else "dropped"


def only(facts: Sequence[Fact], kind: type[F]) -> tuple[F, ...]:
    """Facts of one kind, in their order."""
    return tuple(fact for fact in facts if isinstance(fact, kind))


def score_of(trial: TrialFinished | None) -> float | None:
    """The score that our scorer computed; None when there is none."""
    return trial.outcome.score if trial is not None and isinstance(trial.outcome, Measurement) else None


def failure_of(trial: TrialFinished | None) -> Failure | None:
    """Why a trial has no score."""
    return trial.outcome if trial is not None and isinstance(trial.outcome, Failure) else None


def lines_changed(old: Files, new: Files) -> Lines:
    """Lines added and removed over all files."""
    added = removed = 0
    for path in sorted(old.keys() | new.keys()):
        before, after = old.get(path, "").splitlines(), new.get(path, "").splitlines()
        for line in list(difflib.unified_diff(before, after, n=0, lineterm=""))[2:]:
            added, removed = added + line.startswith("+"), removed + line.startswith("-")
    return Lines(added, removed)
