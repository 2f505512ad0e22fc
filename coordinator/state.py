"""What the coordinator knows: a fold over the facts of the ledger, `(state, fact) -> state`.

Pure: no clock, no disk, no randomness; the same facts in the same order give the same State. It is updated in
place by its one owner, the mind. Who is alive right now is not a fact and is not here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, NamedTuple

from coordinator.reproduction import Campaign, Noise, Rule, bar
from swarm.records import (
    BlockDrawn,
    BlockLost,
    Carried,
    ClaimRaised,
    CoordinatorStarted,
    Direction,
    ExperimentAdmitted,
    Fact,
    Files,
    Measurement,
    NodeInfo,
    NodeJoined,
    Promotion,
    Screened,
    Spent,
    StudyFinished,
    StudyOpened,
    TrialDisturbed,
    TrialFinished,
    Trouble,
    Usage,
    Verdict,
)


class Pair(NamedTuple):
    """One fresh seed, candidate and champion in one block. Positive gain: the candidate is better."""

    gain: float
    candidate_cpu_s: float
    champion_cpu_s: float
    candidate_trial: str
    champion_trial: str
    node: str


@dataclass
class Claim:
    """An experiment under confirmation against one base."""

    experiment: str
    candidate: str
    base: str
    node: str  # whose branch it is; confirmation prefers other nodes
    platform: str
    noise: Noise  # frozen when the claim was raised
    bar: float  # likewise
    pairs: list[Pair] = field(default_factory=list)
    failed: str = ""  # why the candidate failed on a fresh seed, if it did
    verdict: Verdict | None = None

    @property
    def key(self) -> tuple[str, str]:
        return (self.experiment, self.base)


@dataclass
class Drawn:
    """A block and what has come of it."""

    fact: BlockDrawn
    finished: dict[str, TrialFinished] = field(default_factory=dict)
    lost: bool = False

    @property
    def outstanding(self) -> bool:
        return not self.lost and len(self.finished) < len(set(self.fact.trials))


@dataclass
class Experiment:
    """One idea under test, as far as the mind needs it."""

    number: int
    admitted: ExperimentAdmitted
    status: str = "open"
    gain: float | None = None


@dataclass
class State:
    """Everything the swarm believes, rebuilt from the ledger at every start."""

    rule: Rule
    opened: StudyOpened | None = None
    epoch: int = 0
    champion: str = ""
    promotions: list[Promotion] = field(default_factory=list)
    files: dict[str, Files] = field(default_factory=dict)  # candidate -> editable files
    nodes: dict[str, NodeInfo] = field(default_factory=dict)
    experiments: dict[str, Experiment] = field(default_factory=dict)  # by idea
    blocks: dict[str, Drawn] = field(default_factory=dict)
    claims: dict[tuple[str, str], Claim] = field(default_factory=dict)
    calibration: dict[str, dict[str, list[Measurement]]] = field(default_factory=dict)  # platform -> candidate -> runs
    baseline_failure: str = ""
    noise: dict[str, Noise] = field(default_factory=dict)  # by platform
    baseline_cpu_s: dict[str, float] = field(default_factory=dict)  # by platform
    cpu_ratio: dict[str, float] = field(default_factory=dict)  # champions' CPU time over the baseline's
    campaign: Campaign = field(default_factory=Campaign)
    final: list[Pair] = field(default_factory=list)
    final_failures: int = 0
    spent: Usage = field(default_factory=Usage)
    trial_s: float = 0.0  # node time inside trials
    trials: int = 0
    disturbances: dict[str, int] = field(default_factory=dict)  # per node, in a row
    disturbed_at: dict[str, float] = field(default_factory=dict)
    trouble: str = ""  # the last one
    finished: StudyFinished | None = None
    session_started: float = 0.0
    last_at: float = 0.0
    earlier_sessions_s: float = 0.0
    revision: int = 0
    calibration_runs: int = 8

    # --- reading ---

    @property
    def direction(self) -> Direction:
        return self.opened.direction if self.opened else "minimize"

    @property
    def baseline(self) -> str:
        return self.opened.baseline if self.opened else ""

    def gain(self, candidate: float, champion: float) -> float:
        """Oriented so that positive is better."""
        return champion - candidate if self.direction == "minimize" else candidate - champion

    def elapsed_s(self, now: float) -> float:
        """Time that a coordinator was at work on this study; pauses between sessions do not count."""
        return self.earlier_sessions_s + max(0.0, now - self.session_started) if self.session_started else 0.0

    def open_claims(self) -> list[Claim]:
        return [claim for claim in self.claims.values() if claim.verdict is None]

    def latest_claim(self, experiment: str) -> Claim | None:
        """The claim that stands for an experiment now; earlier ones were made against champions that moved."""
        return next((c for c in reversed(self.claims.values()) if c.experiment == experiment), None)

    def landing(self) -> list[Claim]:
        """Accepted and not yet promoted, oldest first."""
        promoted = {promotion.experiment for promotion in self.promotions}
        accepted = [
            c for c in self.claims.values() if c.verdict and c.verdict.accepted and c.experiment not in promoted
        ]
        return [claim for claim in accepted if self.latest_claim(claim.experiment) is claim]

    # --- folding ---

    def absorb(self, fact: Fact, at: float) -> None:
        """Take one fact, committed at `at`."""
        self.revision += 1
        handler = _HANDLERS.get(type(fact))
        if handler is not None:
            handler(self, fact, at)
        self.last_at = max(self.last_at, at)


def _opened(state: State, fact: StudyOpened, at: float) -> None:
    state.opened = fact
    state.champion = fact.baseline
    state.files[fact.baseline] = fact.files
    state.cpu_ratio[fact.baseline] = 1.0


def _started(state: State, fact: CoordinatorStarted, at: float) -> None:
    if state.session_started:
        state.earlier_sessions_s += max(0.0, state.last_at - state.session_started)
    state.epoch, state.session_started = fact.epoch, at


def _joined(state: State, fact: NodeJoined, at: float) -> None:
    state.nodes[fact.node.uid] = fact.node


def _admitted(state: State, fact: ExperimentAdmitted, at: float) -> None:
    state.experiments[fact.proposal.idea] = Experiment(len(state.experiments) + 1, fact)
    state.files[fact.candidate] = fact.proposal.files


def _screened(state: State, fact: Screened, at: float) -> None:
    experiment = state.experiments.get(fact.experiment)
    if experiment is not None:
        experiment.gain = fact.gain
        failed = fact.reason.startswith("failed")
        experiment.status = "kept" if fact.kept else fact.reason if failed else "dropped"


def _claimed(state: State, fact: ClaimRaised, at: float) -> None:
    experiment = state.experiments.get(fact.experiment)
    if experiment is not None and fact.base in state.files and fact.candidate in state.files:
        experiment.status = "claimed"
        _open_claim(state, fact.experiment, fact.candidate, fact.base, fact.node)


def _carried(state: State, fact: Carried, at: float) -> None:
    state.files[fact.candidate] = fact.files
    for claim in state.open_claims():
        if claim.experiment == fact.experiment:  # nothing was measured against its old base
            del state.claims[claim.key]
    _open_claim(state, fact.experiment, fact.candidate, fact.onto, state.experiments[fact.experiment].admitted.node)


def _open_claim(state: State, experiment: str, candidate: str, base: str, node: str) -> None:
    platform = state.nodes[node].platform.id if node in state.nodes else ""
    noise = state.noise.get(platform)
    if noise is not None:
        claim = Claim(experiment, candidate, base, node, platform, noise, bar(state.campaign))
        state.claims[claim.key] = claim


def _drawn(state: State, fact: BlockDrawn, at: float) -> None:
    state.blocks[fact.block] = Drawn(fact)


def _lost(state: State, fact: BlockLost, at: float) -> None:
    if fact.block in state.blocks:
        state.blocks[fact.block].lost = True


def _trial(state: State, fact: TrialFinished, at: float) -> None:
    state.trials += 1
    state.trial_s += max(0.0, fact.ended_at - fact.started_at)
    state.disturbances[fact.node] = 0
    drawn = state.blocks.get(fact.block)
    if drawn is None:
        return
    drawn.finished[fact.trial] = fact
    if fact.purpose == "calibrate":
        _calibrate(state, fact)
    elif fact.purpose in ("confirm", "final"):
        _pair_up(state, drawn, fact)


def _calibrate(state: State, fact: TrialFinished) -> None:
    if not isinstance(fact.outcome, Measurement):
        state.baseline_failure = f"{fact.outcome.reason}: {fact.outcome.message}"
        return
    runs = state.calibration.setdefault(fact.platform, {}).setdefault(fact.candidate, [])
    runs.append(fact.outcome)
    if len(runs) == state.calibration_runs and fact.platform not in state.noise:
        state.noise[fact.platform] = Noise.from_seed_scores([run.score for run in runs])
        state.baseline_cpu_s[fact.platform] = fmean(run.cpu_s for run in runs) / state.cpu_ratio.get(
            fact.candidate, 1.0
        )


def _pair_up(state: State, drawn: Drawn, fact: TrialFinished) -> None:
    """A pair exists as soon as both of its trials are known; its place in the evidence is that moment."""
    champion_trial = drawn.fact.trials[drawn.fact.candidates.index(drawn.fact.reference)]
    others = [trial for trial in drawn.fact.trials if trial != champion_trial]
    completed = others if fact.trial == champion_trial else [fact.trial]
    champion = drawn.finished.get(champion_trial)
    for trial in completed:
        candidate = drawn.finished.get(trial)
        if candidate is not None and champion is not None:
            _add_pair(state, drawn.fact, candidate, champion)


def _add_pair(state: State, block: BlockDrawn, candidate: TrialFinished, champion: TrialFinished) -> None:
    claim = None
    if block.purpose == "confirm":
        claim = next(
            (c for c in state.claims.values() if c.candidate == candidate.candidate and c.base == champion.candidate),
            None,
        )
        if claim is None or claim.verdict is not None:
            return
    if not isinstance(champion.outcome, Measurement) or not isinstance(candidate.outcome, Measurement):
        if claim is not None and not isinstance(candidate.outcome, Measurement):
            claim.failed = (
                f"it failed on fresh seed {candidate.seed}: {candidate.outcome.reason}: {candidate.outcome.message}"
            )
        state.final_failures += block.purpose == "final"
        return
    pair = Pair(
        gain=state.gain(candidate.outcome.score, champion.outcome.score),
        candidate_cpu_s=candidate.outcome.cpu_s,
        champion_cpu_s=champion.outcome.cpu_s,
        candidate_trial=candidate.trial,
        champion_trial=champion.trial,
        node=candidate.node,
    )
    (claim.pairs if claim is not None else state.final).append(pair)


def _disturbed(state: State, fact: TrialDisturbed, at: float) -> None:
    if fact.failure.reason != "stopped":
        state.disturbances[fact.node] = state.disturbances.get(fact.node, 0) + 1
        state.disturbed_at[fact.node] = at


def _verdict(state: State, fact: Verdict, at: float) -> None:
    claim = state.claims.get((fact.experiment, fact.base)) or _unmeasured(state, fact)
    if fact.experiment in state.experiments:
        state.experiments[fact.experiment].status = "accepted" if fact.accepted else "rejected"
    if claim is None:
        return
    claim.verdict = fact
    if claim.pairs:  # a claim that was closed without a pair (a merge conflict) says nothing about the base rate
        state.campaign = state.campaign.closed(promoted=fact.accepted)
        state.noise[claim.platform] = state.noise[claim.platform].pooled([pair.gain for pair in claim.pairs])
    if fact.accepted and claim.pairs:
        ratio = sum(p.candidate_cpu_s for p in claim.pairs) / max(1e-9, sum(p.champion_cpu_s for p in claim.pairs))
        state.cpu_ratio[claim.candidate] = ratio * state.cpu_ratio.get(claim.base, 1.0)


def _unmeasured(state: State, fact: Verdict) -> Claim | None:
    """An accepted idea that cannot be carried onto the moved champion gets its verdict there without a claim."""
    twin = state.latest_claim(fact.experiment)
    if twin is None:
        return None
    claim = replace(twin, base=fact.base, pairs=[], verdict=None)
    state.claims[claim.key] = claim
    return claim


def _promoted(state: State, fact: Promotion, at: float) -> None:
    state.promotions.append(fact)
    state.champion = fact.candidate
    if fact.experiment in state.experiments:
        state.experiments[fact.experiment].status = "promoted"


def _spent(state: State, fact: Spent, at: float) -> None:
    state.spent = state.spent + fact.usage


def _trouble(state: State, fact: Trouble, at: float) -> None:
    state.trouble = f"{fact.where}: {fact.message}"


def _finished(state: State, fact: StudyFinished, at: float) -> None:
    state.finished = fact


_HANDLERS: Mapping[type, Callable[[State, Any, float], None]] = {
    StudyOpened: _opened,
    CoordinatorStarted: _started,
    NodeJoined: _joined,
    ExperimentAdmitted: _admitted,
    Screened: _screened,
    ClaimRaised: _claimed,
    Carried: _carried,
    BlockDrawn: _drawn,
    BlockLost: _lost,
    TrialFinished: _trial,
    TrialDisturbed: _disturbed,
    Verdict: _verdict,
    Promotion: _promoted,
    Spent: _spent,
    Trouble: _trouble,
    StudyFinished: _finished,
}
