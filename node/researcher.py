"""The loop that explores one branch, as a machine without threads, clock or disk.

Asks for ideas ahead of time, screens each against its own branch tip on one seed, keeps or drops, and raises a
Claim when the tip beats the node's cached run of the champion by more than noise. Its whole memory is one frozen
record, stored together with the facts it produced, so a killed node goes on where it was.

It decides nothing that the swarm believes: screening results chose the candidate and are never evidence.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

from pydantic import ConfigDict

from node.screening import claimable, level, reason, simplifies
from node.trial import TrialRun
from swarm.errors import ProposalError
from swarm.merge import MergeConflict, merge_files
from swarm.records import (
    STRICT,
    Admission,
    Brief,
    ClaimRaised,
    Direction,
    ExperimentAdmitted,
    Fact,
    Failure,
    Files,
    Limits,
    Measurement,
    Proposal,
    Screened,
    TrialDisturbed,
    TrialSpec,
    Trouble,
    candidate_id,
    digest,
)
from swarm.source import idea_hash

AHEAD = 2  # proposals kept ready: one runs next, one covers a refusal
MAX_ATTEMPTS = 3  # of a trial that the machinery disturbed
LARGEST = 1e100  # a gain beyond it is no gain; the difference of two finite scores need not be finite
MOVED = "the branch moved before it was judged; carried onto the new tip where that is possible"


class Heard(NamedTuple):
    """How an idea fared here, for the proposer. None: failed, refused or never run."""

    idea: str
    gain: float | None


@dataclass(frozen=True)
class Memory:
    """All that a researcher knows. Replaced as a whole at every step."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    node: str
    branch: str
    champion: str = ""
    champion_files: Files = field(default_factory=dict)
    tip: str = ""
    tip_files: Files = field(default_factory=dict)
    lineage: tuple[str, ...] = ()  # candidates kept since the champion, oldest first, the tip last
    tip_experiment: str = ""
    tip_hypothesis: str = ""
    cell_seed: int = 0
    champion_score: float | None = None  # on the cell's seed
    champion_failures: int = 0  # of the champion's own run here; at MAX_ATTEMPTS this node stops exploring
    tip_score: float | None = None  # on the cell's seed
    sequence: int = 0  # trials issued, ever
    waiting: tuple[Proposal, ...] = ()  # sent to the coordinator
    admitted: tuple[Proposal, ...] = ()  # to be run, in this order
    attempts: int = 0  # of what runs next, disturbed so far
    issued: str = ""  # trial that was started and not finished
    claim: str = ""  # experiment whose claim is open
    claimed: tuple[str, ...] = ()  # experiments claimed against this champion


class Researcher:
    """Explores one branch of one Study on one Node."""

    def __init__(
        self, memory: Memory, *, study_seed: int, direction: Direction, wall_s: float, memory_mb: int, disk_mb: int = 0
    ) -> None:
        self.memory = memory
        self.brief: Brief | None = None
        self._study_seed = study_seed
        self._sign = -1.0 if direction == "minimize" else 1.0
        self._wall_s = wall_s
        self._memory_mb, self._disk_mb = memory_mb, disk_mb or Limits.disk_mb
        self._heard: list[Heard] = []
        self._parents: dict[str, Files] = {memory.tip: memory.tip_files}  # recent tips, for proposals made on them
        self._left: dict[str, Proposal] = {}  # carried elsewhere while the coordinator was asked about them

    # --- what the coordinator says ---

    def hear(self, brief: Brief, now: float) -> list[Fact]:
        """Work from a new Brief; returns the facts that follow from it."""
        self.brief = brief
        facts: list[Fact] = []
        if brief.champion != self.memory.champion:
            facts += self._move_to(brief, now)
        facts += self._close_claim(brief.verdicts, now)
        return facts + self._claim_if_due(now)

    def settle(self, admissions: Iterable[Admission], now: float) -> list[Fact]:
        """The coordinator's answers to what was proposed; returns the facts that follow from them."""
        answers = {admission.idea: admission.admitted for admission in admissions}
        waiting = self.memory.waiting
        accepted = tuple(p for p in waiting if answers.get(p.idea))
        self._heard += [Heard(p.idea, None) for p in waiting if answers.get(p.idea) is False]
        self._update(
            waiting=tuple(p for p in waiting if p.idea not in answers), admitted=self.memory.admitted + accepted
        )
        late = [left for idea in answers if (left := self._left.pop(idea, None)) is not None and answers[idea]]
        return [self._set_aside(proposal, MOVED, now) for proposal in late]

    def admit_alone(self, now: float) -> list[Fact]:
        """No coordinator for a while: go on with the own ideas. Its ledger sorts out doubles when it is back."""
        waiting = self.memory.waiting
        self._update(waiting=(), admitted=self.memory.admitted + waiting)
        return [
            ExperimentAdmitted(p, candidate_id(p.files), self.memory.node, self.memory.branch, now) for p in waiting
        ]

    # --- what the proposer says ---

    def wants_idea(self) -> bool:
        """Whether the proposer should think now; true while the GPU is busy with an earlier idea."""
        ready = len(self.memory.waiting) + len(self.memory.admitted)
        return self.brief is not None and self.brief.explore and bool(self.memory.tip) and ready < AHEAD

    def offer(self, proposal: Proposal) -> bool:
        """Take a proposal, carried onto the tip if that moved meanwhile. False: it is known here or changes nothing."""
        carried = proposal if proposal.parent == self.memory.tip else self._carry(proposal)
        known = {p.idea for p in (*self.memory.waiting, *self.memory.admitted)}
        if carried is None or carried.idea in known or candidate_id(carried.files) == self.memory.tip:
            return False
        self._update(waiting=(*self.memory.waiting, carried))
        return True

    def take_heard(self) -> list[Heard]:
        """Results that the proposer has not been told yet."""
        heard, self._heard = self._heard, []
        return heard

    # --- trials ---

    def next_trial(self) -> TrialSpec | None:
        """The trial to run now: the champion on the cell's seed first, then the tip, then ideas in their order."""
        memory, brief = self.memory, self.brief
        if brief is None or not brief.explore or not memory.champion:
            return None
        if memory.champion_failures >= MAX_ATTEMPTS:
            return None
        if memory.champion_score is None:
            return self._issue(memory.champion_files, "reference", "")
        if memory.tip_score is None:
            return self._issue(memory.tip_files, "screen", memory.tip_experiment)
        if idea := self._next_idea():
            return self._issue(memory.admitted[0].files, "screen", idea)
        return None

    def finished(self, spec: TrialSpec, run: TrialRun, now: float) -> list[Fact]:
        """Draw the consequences of a trial. The agent adds the TrialFinished fact itself."""
        self._update(issued="")
        outcome = run.outcome
        if isinstance(outcome, Failure) and outcome.blame == "machinery":
            return self._disturbed(spec.id, spec.experiment, outcome, now)
        self._update(attempts=0)
        if spec.seed != self.memory.cell_seed:  # the champion moved while it ran: the seed is another one now
            return []
        score = outcome.score if isinstance(outcome, Measurement) else None
        if spec.purpose == "reference":
            return self._reference(score, now)
        if spec.candidate == self.memory.tip:
            return self._tip_again(score, now)
        return self._screen(spec, score, outcome, now)

    def interrupted(self, now: float) -> list[Fact]:
        """After a restart: the trial that was running is run again, and the disturbance is a fact."""
        if not self.memory.issued:
            return []
        lost = Failure("machinery", "lost", "the agent was killed while this trial ran; the trial is run again")
        trial = self.memory.issued
        self._update(issued="")
        return self._disturbed(trial, self._next_idea(), lost, now)

    # --- inside ---

    def _update(self, **changes: object) -> None:
        self.memory = replace(self.memory, **changes)  # type: ignore[arg-type]  # replace() checks the names
        if "tip" in changes:
            self._parents[self.memory.tip] = self.memory.tip_files
            while len(self._parents) > 2 * AHEAD:
                self._parents.pop(next(iter(self._parents)))

    def _next_idea(self) -> str:
        """The idea whose turn it is; empty while champion or tip come first."""
        memory = self.memory
        due = memory.champion_score is not None and memory.tip_score is not None and memory.admitted
        return memory.admitted[0].idea if due else ""

    def _issue(self, files: Files, purpose: str, experiment: str) -> TrialSpec:
        memory = self.memory
        assert self.brief is not None
        trial = digest("exploration", memory.node, memory.branch, memory.sequence)
        self._update(sequence=memory.sequence + 1, issued=trial)
        limits = Limits(self.brief.cpu_limit_s, self._wall_s, memory_mb=self._memory_mb, disk_mb=self._disk_mb)
        return TrialSpec(
            id=trial,
            candidate=candidate_id(files),
            seed=memory.cell_seed,
            purpose="reference" if purpose == "reference" else "screen",
            files=files,
            limits=limits,
            experiment=experiment,
        )

    def _reference(self, score: float | None, now: float) -> list[Fact]:
        memory = self.memory
        if score is None:
            self._update(champion_failures=memory.champion_failures + 1)
            message = f"the champion {memory.champion[:8]} failed here {memory.champion_failures + 1} times"
            return [Trouble(f"node {memory.node}", message, now)]
        self._update(champion_score=score, tip_score=score if memory.tip == memory.champion else memory.tip_score)
        return []

    def _tip_again(self, score: float | None, now: float) -> list[Fact]:
        """The own tip on the cell's new seed."""
        if score is None:
            return self._reset_tip(now)
        self._update(tip_score=score)
        return self._claim_if_due(now)

    def _screen(self, spec: TrialSpec, score: float | None, outcome: Measurement | Failure, now: float) -> list[Fact]:
        proposal = next((p for p in self.memory.admitted if p.idea == spec.experiment), None)
        if proposal is None:  # the branch moved while it ran; the carried idea is queued under another hash
            return []
        memory = self.memory
        self._update(admitted=tuple(p for p in memory.admitted if p.idea != proposal.idea))
        champion = self._champion()
        gain = self._gain(score, champion if memory.tip == memory.champion else memory.tip_score)
        over = self._gain(score, champion)
        better = gain is not None and gain > 0
        kept = better or simplifies(proposal.files, memory.tip_files, over, self.brief)
        told = reason(outcome, better=better, kept=kept)
        fact = self._fate(proposal, told, now, kept=kept, gain=gain, over=over)
        self._heard.append(Heard(proposal.idea, gain))
        if not kept:
            return [fact]
        return [fact, *self._advance(proposal, spec.candidate, score, now)]

    def _advance(self, proposal: Proposal, candidate: str, score: float | None, now: float) -> list[Fact]:
        self._update(
            tip=candidate,
            tip_files=proposal.files,
            tip_experiment=proposal.idea,
            tip_hypothesis=proposal.hypothesis,
            tip_score=score,
            lineage=(*self.memory.lineage, candidate),
        )
        return self._rebase_queue(now) + self._claim_if_due(now)

    def _disturbed(self, trial: str, experiment: str, failure: Failure, now: float) -> list[Fact]:
        """Run again what the machinery failed, an idea at most so often: it may be what kills this machine."""
        attempts = self.memory.attempts + 1
        fact = TrialDisturbed(trial, self.memory.node, attempts, failure, now)
        self._update(attempts=attempts)
        given_up = [p for p in self.memory.admitted if p.idea == experiment and attempts >= MAX_ATTEMPTS]
        if not given_up:
            return [fact]
        self._update(attempts=0, admitted=tuple(p for p in self.memory.admitted if p not in given_up))
        reason = f"the machinery failed {MAX_ATTEMPTS} times: {failure.message}"
        return [fact, *(self._set_aside(p, reason, now) for p in given_up)]

    def _claim_if_due(self, now: float) -> list[Fact]:
        memory, brief = self.memory, self.brief
        gain = self._gain(memory.tip_score, self._champion())
        if brief is None or memory.claim or gain is None or memory.tip == memory.champion:
            return []
        kind = claimable(memory.tip_files, brief, gain)
        if kind is None or memory.tip_experiment in memory.claimed:
            return []
        self._update(claim=memory.tip_experiment, claimed=(*memory.claimed, memory.tip_experiment))
        claimed = memory.tip_experiment, memory.tip, memory.champion
        return [ClaimRaised(*claimed, memory.node, memory.branch, gain, now, kind)]

    def _champion(self) -> float | None:
        return level(self.memory.champion_score, self.memory.champion, self.brief)

    def _close_claim(self, verdicts: Mapping[str, str], now: float) -> list[Fact]:
        """A tip that is rejected is left, also when that comes after it was accepted, as a veto does."""
        tip = self.memory.tip_experiment
        rejected = tip in self.memory.claimed and verdicts.get(tip, "").startswith("rejected")
        if verdicts.get(self.memory.claim):
            self._update(claim="")
        return self._reset_tip(now) if rejected else []

    def _reset_tip(self, now: float) -> list[Fact]:
        """Back to the champion, and what was queued on the old tip with it."""
        memory = self.memory
        self._update(
            tip=memory.champion,
            tip_files=memory.champion_files,
            tip_experiment="",
            tip_hypothesis="",
            tip_score=memory.champion_score,
            lineage=(),
        )
        return self._rebase_queue(now)

    def _move_to(self, brief: Brief, now: float) -> list[Fact]:
        """The champion moved. Keep what was built on top of it, or carry the own gains over as a new idea."""
        old, kept_on = self.memory, brief.champion in self.memory.lineage
        seed = int(digest("cell", self._study_seed, old.node, brief.champion)[:8], 16) & 0x7FFFFFFF
        self._update(
            champion=brief.champion,
            champion_files=brief.champion_files,
            cell_seed=seed,
            champion_score=None,
            champion_failures=0,
            tip_score=None,
            claim="",
            claimed=(),
        )
        if kept_on:
            self._update(lineage=old.lineage[old.lineage.index(brief.champion) + 1 :])
            return []
        facts = self._reset_tip(now)
        claimed = old.tip_experiment in old.claimed  # the coordinator carries a claim over itself
        if old.champion and old.tip != old.champion and not claimed:
            self._offer_old_tip(old)
        return facts

    def _offer_old_tip(self, old: Memory) -> None:
        proposal = Proposal(
            idea="",
            parent=old.tip,
            hypothesis=f"Carry over onto the new champion: {old.tip_hypothesis}",
            expected="the gain seen on the old champion, if the two do not overlap",
            files=old.tip_files,
            proposer="researcher",
        )
        carried = _carried(proposal, old.champion_files, self.memory.tip_files, self.memory.tip)
        if carried is not None and candidate_id(carried.files) != self.memory.tip:
            self._update(waiting=(carried, *self.memory.waiting))

    def _rebase_queue(self, now: float) -> list[Fact]:
        """The tip moved: what was queued on the old one is carried onto it and admitted anew."""
        admitted, waiting = self.memory.admitted, self.memory.waiting
        self._update(admitted=(), waiting=())
        for proposal in admitted + waiting:
            self.offer(proposal)
        still = {p.idea for p in self.memory.waiting}
        self._left = {p.idea: p for p in waiting if p.idea not in still}
        return [self._set_aside(p, MOVED, now) for p in admitted if p.idea not in still]

    def _carry(self, proposal: Proposal) -> Proposal | None:
        parent = self._parents.get(proposal.parent)
        if parent is None:
            self._heard.append(Heard(proposal.idea, None))
            return None
        return _carried(proposal, parent, self.memory.tip_files, self.memory.tip)

    def _set_aside(self, proposal: Proposal, reason: str, now: float) -> Screened:
        self._heard.append(Heard(proposal.idea, None))
        return self._fate(proposal, reason, now)

    def _fate(
        self,
        proposal: Proposal,
        reason: str,
        now: float,
        *,
        kept: bool = False,
        gain: float | None = None,
        over: float | None = None,
    ) -> Screened:
        memory, candidate = self.memory, candidate_id(proposal.files)
        node, branch, tip, champion = memory.node, memory.branch, memory.tip, memory.champion
        return Screened(proposal.idea, node, branch, candidate, tip, kept, gain, over, champion, reason, now)

    def _gain(self, score: float | None, than: float | None) -> float | None:
        if score is None or than is None:
            return None
        return max(-LARGEST, min(LARGEST, self._sign * (score - than)))


def _carried(proposal: Proposal, base: Files, onto: Files, parent: str) -> Proposal | None:
    try:
        files = merge_files(base, proposal.files, onto)
        return replace(proposal, files=files, parent=parent, idea=idea_hash(files))
    except (MergeConflict, ProposalError):
        return None
