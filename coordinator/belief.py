"""What the coordinator takes from a node, and what not. Pure.

A node may speak of itself, of its own ideas, and of blocks that it was leased: never of another's. Texts are cut,
times and numbers that cannot be are refused. One cluster is one trust domain, so this is no defence against a node
that lies with skill (it can send any score): it keeps a node that is confused, cloned or of another version from
ending the study, stopping the coordinator, or taking another node's result away.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from coordinator.leases import trial_id
from coordinator.state import State
from swarm.errors import ProposalError
from swarm.records import (
    ClaimRaised,
    ExperimentAdmitted,
    Fact,
    Failure,
    Measurement,
    NodeInfo,
    Proposal,
    Report,
    Screened,
    Spent,
    TrialDisturbed,
    TrialFinished,
    Trouble,
    candidate_id,
    researcher_branch,
)
from swarm.scrub import HOLDS_ONE, credentials
from swarm.source import idea_hash

NAME_CHARS = 200  # ids are 32 hex digits; names of nodes and places are words
WORDS_CHARS = 4_000  # a hypothesis, a reason, a message
LOG_CHARS = 12_000  # twice 4 kB of what a candidate printed, with room
FILES_CHARS = 1_000_000  # all editable files of a candidate
SLACK_S = 120.0  # beyond the limits of training and scoring: to set up, to clean up


class Heard(NamedTuple):
    """What is left of a report's facts, and what was said that is not the node's to say."""

    facts: list[Fact]
    refused: list[str]


@dataclass
class Border:
    """Judges the reports of one round, before any of their facts is committed."""

    state: State
    trial_wall_s: float
    printed: bool = False
    """Whether the Task takes a script's own word for its score."""
    _admitted: dict[str, ExperimentAdmitted] = field(default_factory=dict)  # in this round, not yet in the state

    def hear(self, report: Report) -> Heard:
        """Sort the facts of one report."""
        heard = Heard([], [])
        for fact in report.facts:
            taken = self._take(fact, report.node)
            if isinstance(taken, str):
                heard.refused.append(f"{fact.kind} refused: {taken}")
            else:
                heard.facts.append(taken)
        return heard

    def _take(self, fact: Fact, node: NodeInfo) -> Fact | str:
        if getattr(fact, "node", node.uid) != node.uid:
            return "it speaks of another node"
        match fact:
            case TrialFinished():
                return self._trial(fact)
            case TrialDisturbed():
                failure = replace(fact.failure, message=fact.failure.message[:WORDS_CHARS])
                return _named(fact.trial) or replace(fact, failure=failure)
            case ExperimentAdmitted():
                return self._admission(fact, node)
            case Screened():
                return self._screening(fact)
            case ClaimRaised():  # whether it is opened is decided when it is absorbed, and answered
                return _named(fact.experiment, fact.candidate, fact.base) or fact
            case Spent():
                usage = fact.usage
                owed = min(usage.input_tokens, usage.output_tokens, usage.dollars)
                return "nobody is paid for asking" if owed < 0 else fact
            case Trouble():
                return replace(fact, where=fact.where[:NAME_CHARS], message=fact.message[:WORDS_CHARS])
        return "only the coordinator says so"

    def _trial(self, fact: TrialFinished) -> Fact | str:
        wrong = _named(fact.trial, fact.candidate, fact.experiment, fact.platform, fact.block) or _impossible(fact)
        wrong = wrong or (self._leased(fact) if fact.block else self._explored(fact))
        return wrong or self._cut(fact)

    def _leased(self, fact: TrialFinished) -> str:
        drawn = self.state.blocks.get(fact.block)
        if drawn is None or drawn.fact.node != fact.node or drawn.fact.fence != fact.fence:
            return f"it was not leased block {fact.block[:8]}"
        bound = trial_id(fact.candidate, fact.seed, fact.platform, drawn.fact.purpose, drawn.fact.number)
        if fact.purpose != drawn.fact.purpose or fact.trial != bound or fact.trial not in drawn.fact.trials:
            return f"trial {fact.trial[:8]} is not as it was drawn for block {fact.block[:8]}"
        return self._unfounded(fact)

    def _unfounded(self, fact: TrialFinished) -> str:
        """Whatever was leased decides something: a score that nobody audited does not count, whoever brings it."""
        outcome = fact.outcome
        if not isinstance(outcome, Measurement) or outcome.audited or (self.printed and outcome.self_reported):
            return ""
        return f"the score of trial {fact.trial[:8]} was not audited: update the swarm on that node"

    def _explored(self, fact: TrialFinished) -> str:
        if fact.purpose not in ("reference", "screen"):
            return f"a trial to {fact.purpose} is leased, never a node's own"
        return f"trial {fact.trial[:8]} belongs to a block" if fact.trial in self.state.block_of else ""

    def _cut(self, fact: TrialFinished) -> TrialFinished:
        """Texts to their length, and times to a length that a trial can have: a node's clock may have jumped."""
        longest = 2 * self.trial_wall_s * self.state.times_longer(fact.purpose) + SLACK_S
        started = min(max(fact.started_at, fact.ended_at - longest), fact.ended_at)
        outcome = fact.outcome
        if isinstance(outcome, Failure):
            outcome = replace(outcome, message=outcome.message[:WORDS_CHARS])
        return replace(fact, started_at=started, outcome=outcome, log=fact.log[-LOG_CHARS:])

    def _admission(self, fact: ExperimentAdmitted, node: NodeInfo) -> Fact | str:
        wrong = flaw(fact.proposal, self.state)
        if wrong or self.state.opened is None:
            return wrong or "no study is open"
        candidate = candidate_id(fact.proposal.files)
        own = replace(fact, candidate=candidate, branch=researcher_branch(self.state.opened.study, node.name))
        self._admitted.setdefault(fact.proposal.idea, own)
        return own

    def _screening(self, fact: Screened) -> Fact | str:
        known = self.state.experiments.get(fact.experiment)
        admitted = known.admitted if known is not None else self._admitted.get(fact.experiment)
        if admitted is None or admitted.node != fact.node:
            return f"experiment {fact.experiment[:8]} is not its own"
        if admitted.candidate != fact.candidate or fact.kept and fact.gain is None:
            return f"experiment {fact.experiment[:8]} is another candidate, or was kept without a gain"
        return _named(fact.tip, fact.champion) or replace(fact, reason=fact.reason[:WORDS_CHARS])


def flaw(proposal: Proposal, state: State) -> str:
    """Why a proposal can never become an experiment of this study; empty when it can."""
    if state.opened is None or set(proposal.files) != set(state.opened.files):
        return "it must bring every editable file, and no other"
    if state.was_champion(candidate_id(proposal.files)):
        return "it is the baseline, or was the champion before"
    if sum(map(len, proposal.files.values())) > FILES_CHARS:
        return f"its files are longer than {FILES_CHARS} characters"
    if max(len(proposal.hypothesis), len(proposal.expected)) > WORDS_CHARS:
        return f"it says more than {WORDS_CHARS} characters"
    if credentials(proposal.files.values()) - credentials(state.opened.files.values()):
        return HOLDS_ONE
    try:
        return "" if idea_hash(proposal.files) == proposal.idea else "its hash is not that of its files"
    except ProposalError as error:
        return str(error)[:WORDS_CHARS]


def named(proposals: Iterable[Proposal]) -> list[Proposal]:
    """Proposals whose names can be kept and answered."""
    return [p for p in proposals if not _named(p.idea, p.parent, p.proposer)]


def _named(*names: str) -> str:
    return "a name is longer than a name is" if any(len(name) > NAME_CHARS for name in names) else ""


def _impossible(fact: TrialFinished) -> str:
    outcome = fact.outcome
    if isinstance(outcome, Measurement):
        least = min(outcome.cpu_s, outcome.peak_memory_mb, outcome.scoring_s)
        return "it used less than nothing" if least < 0 else _named(outcome.artifact)
    return "it used less than nothing" if outcome.cpu_s < 0 else ""
