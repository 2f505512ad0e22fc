"""What the coordinator knows, made from nothing but the facts of the ledger by `coordinator/fold`.

What is open now (claims, blocks, landings) is kept beside what ever was, so that a round costs the same after ten
thousand experiments as after ten. Who is alive right now is not a fact and is not here.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from coordinator.mixed import Run
from coordinator.references import PAIRS_DF, References, Weighing
from coordinator.reproduction import Campaign, Noise, Rule
from swarm.records import (
    BlockDrawn,
    ChampionRechecked,
    ClaimKind,
    Demotion,
    Direction,
    ExperimentAdmitted,
    Files,
    HoldoutAnswered,
    Interaction,
    Measurement,
    NodeInfo,
    Promotion,
    Purpose,
    ShamRaised,
    StudyFinished,
    StudyOpened,
    TransferChecked,
    TrialFinished,
    Usage,
    Verdict,
)
from swarm.scale import Scale

SET_ASIDE = "set aside"  # the branch moved before an idea was judged; its node may bring it again
BASELINE_FAILURES = 2  # runs on fresh seeds; a single one may be a bad machine

ClaimKey = tuple[str, str]


class Pair(NamedTuple):
    """One seed that is fresh to the candidate, and both on one node. Positive gain: the candidate is better.

    In one block, but for a Claim on the panel: there the champion's run may be one of an earlier block.
    """

    gain: float
    candidate_cpu_s: float
    champion_cpu_s: float
    candidate_trial: str
    champion_trial: str
    node: str
    candidate_artifact: str
    champion_artifact: str
    self_reported: bool  # a printed score: nothing of ours could be scored again
    sandbox_level: int  # the lower one of its two runs


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
    rule: Rule  # likewise
    kind: ClaimKind = "gain"
    sham: int = 0  # its number, if the coordinator raised it to audit itself; then there is no such experiment
    carried: bool = False  # by the coordinator, onto a champion that had moved; no longer anybody's branch tip
    twin: int = 0  # number of an earlier experiment that comes to the same tree on this base
    ideas: tuple[str, ...] = ()  # of a set of accepted ideas: their experiments, in the order in which they land
    pairs: list[Pair] = field(default_factory=list)
    drawn: Counter[str] = field(default_factory=Counter)  # node -> blocks that it was given for this claim
    weighing: Weighing | None = field(default=None, compare=False)  # on the panel; fixed with the first of them
    failed: str = ""  # why the candidate failed on a fresh seed, if it did
    counted: bool = False  # its idea was accepted on an earlier champion, and moved the base rate then
    killed: int = 0  # of the candidate's runs; by whom, nobody can know
    verdict: Verdict | None = None
    holdout: HoldoutAnswered | None = None
    after_demotion: int = 0  # that it was carried in the wake of: one idea may come to one champion twice
    weighed: int = field(default=0, compare=False)  # a cache of the mind: so many pairs left it undecided

    @property
    def key(self) -> ClaimKey:
        return (self.experiment, self.base)

    @property
    def against(self) -> int:
        """Runs of the champion that it is weighed against on the panel; 0: each Pair by itself."""
        return len(self.weighing.panel.runs) if self.weighing is not None else 0

    @property
    def awaits_holdout(self) -> bool:
        """Whether it reproduced, and the split that no search sees has still to be asked about it."""
        accepted = self.verdict is not None and self.verdict.accepted
        return accepted and self.holdout is None and not any(pair.self_reported for pair in self.pairs)

    @property
    def answer(self) -> str:
        """What the node that raised it is told; empty while it is open, or waits for the holdout."""
        if self.verdict is None or self.awaits_holdout:
            return ""
        if self.holdout is not None and not self.holdout.passed:
            return f"rejected: {self.holdout.reason}"
        return "accepted" if self.verdict.accepted else f"rejected: {self.verdict.reason}"


class Conflict(NamedTuple):
    """An idea that no merge could carry onto a champion."""

    base: str  # that it was made on
    candidate: str
    onto: str  # the champion then
    sides: str


@dataclass
class Transfer:
    """An accepted claim at the larger scale: what was measured, and what came of it."""

    pairs: list[Pair] = field(default_factory=list)
    drawn: int = 0
    failed: str = ""
    killed: int = 0  # as of a Claim
    checked: TransferChecked | None = None


@dataclass
class Recheck:
    """A champion against an earlier one: what was measured so far."""

    pairs: list[Pair] = field(default_factory=list)
    drawn: int = 0


@dataclass
class Drawn:
    """A block and what has come of it."""

    fact: BlockDrawn
    finished: dict[str, TrialFinished] = field(default_factory=dict)
    lost: bool = False


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
    champions: set[str] = field(default_factory=set)  # the baseline, and every candidate that was promoted
    promotions: list[Promotion] = field(default_factory=list)
    promotions_vetoed: int = 0
    demotions_vetoed: set[int] = field(default_factory=set)  # by the number of the comparison that asked for one
    files: dict[str, Files] = field(default_factory=dict)  # candidate -> editable files
    nodes: dict[str, NodeInfo] = field(default_factory=dict)
    experiments: dict[str, Experiment] = field(default_factory=dict)  # by idea
    numbered: list[Experiment] = field(default_factory=list)  # the same in their order
    blocks: dict[str, Drawn] = field(default_factory=dict)
    outstanding: dict[str, Drawn] = field(default_factory=dict)  # those that somebody still has to finish
    leased: dict[str, dict[str, Drawn]] = field(default_factory=dict)  # the same by node
    drawn_for: Counter[str] = field(default_factory=Counter)  # node -> blocks it was ever given
    block_of: dict[str, str] = field(default_factory=dict)  # trial -> block
    claims: dict[ClaimKey, Claim] = field(default_factory=dict)
    open_claims: dict[ClaimKey, Claim] = field(default_factory=dict)  # without a verdict, oldest first
    claimed_on: list[str] = field(default_factory=list)  # the Platform of each claim that a node raised, in their order
    shams: list[ShamRaised] = field(default_factory=list)
    latest: dict[str, Claim] = field(default_factory=dict)  # experiment -> the claim that stands for it now
    accepted: dict[ClaimKey, Claim] = field(default_factory=dict)  # on their way to the forge, oldest first
    stacks: list[Claim] = field(default_factory=list)  # sets of accepted ideas, in the order in which they were joined
    interactions: list[Interaction] = field(default_factory=list)  # what was measured of them
    transfers: dict[ClaimKey, Transfer] = field(default_factory=dict)
    rechecks: dict[tuple[str, str], Recheck] = field(default_factory=dict)  # by champion and ancestor
    rechecked: list[ChampionRechecked] = field(default_factory=list)
    demotions: list[Demotion] = field(default_factory=list)
    undone: dict[str, Claim] = field(default_factory=dict)  # by experiment: promoted once, to be carried and confirmed
    answers: dict[str, dict[str, str]] = field(default_factory=dict)  # node -> experiment -> what came of its claim
    answered: Counter[str] = field(default_factory=Counter)  # node -> how often that changed
    to_port: dict[str, dict[str, Conflict]] = field(default_factory=dict)  # node -> experiment -> with what
    verdicts: int = 0
    holdout: dict[tuple[str, str], HoldoutAnswered] = field(default_factory=dict)  # by candidate and base
    calibration: dict[str, dict[str, list[Measurement]]] = field(default_factory=dict)  # platform -> candidate -> runs
    baseline_failures: dict[str, list[str]] = field(default_factory=dict)  # by platform
    noise: dict[str, Noise] = field(default_factory=dict)  # by platform
    references: dict[str, References] = field(default_factory=dict)  # by platform
    again: dict[str, list[BlockDrawn]] = field(default_factory=dict)  # a champion's trial -> blocks that used it again
    baseline_cpu_s: dict[str, float] = field(default_factory=dict)  # by platform
    cpu_ratio: dict[str, float] = field(default_factory=dict)  # champions' CPU time over the baseline's
    campaign: Campaign = field(default_factory=Campaign)
    final: list[Pair] = field(default_factory=list)
    final_failures: int = 0
    spent: Usage = field(default_factory=Usage)
    trial_s: float = 0.0  # node time inside trials, and at scoring on the holdout
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
    scale: Scale | None = None  # that the Task names

    # --- reading ---

    @property
    def line(self) -> list[Promotion]:
        """The promotions between baseline and champion, oldest first; those that were undone are no part of it."""
        undone = {number for demotion in self.demotions for number in demotion.undone}
        return [promotion for promotion in self.promotions if promotion.number not in undone]

    @property
    def next_promotion(self) -> int:
        """The number of the next promotion's request; that of a vetoed one is used up."""
        return len(self.promotions) + self.promotions_vetoed + 1

    @property
    def next_demotion(self) -> int:
        """Likewise."""
        return len(self.demotions) + len(self.demotions_vetoed) + 1

    def was_champion(self, candidate: str) -> bool:
        """Whether it is, or was on the way to, the champion: a tree is champion once, unless a demotion undid that."""
        return candidate == self.baseline or any(promotion.candidate == candidate for promotion in self.line)

    @property
    def direction(self) -> Direction:
        return self.opened.direction if self.opened else "minimize"

    @property
    def baseline(self) -> str:
        return self.opened.baseline if self.opened else ""

    def gain(self, candidate: float, champion: float) -> float:
        """Oriented so that positive is better."""
        return champion - candidate if self.direction == "minimize" else candidate - champion

    def in_turn(self) -> list[Claim]:
        """Accepted claims as they land: first a set, then what was measured on this champion, then the rest."""
        return sorted(self.accepted.values(), key=lambda claim: (claim.base != self.champion, not claim.ideas))

    def times_longer(self, purpose: Purpose) -> int:
        """What a trial may take, in multiples of the ordinary limits."""
        return self.scale.factor if self.scale is not None and purpose == "transfer" else 1

    def elapsed_s(self, now: float) -> float:
        """Time that a coordinator was at work on this study; pauses between sessions do not count."""
        return self.earlier_sessions_s + max(0.0, now - self.session_started) if self.session_started else 0.0

    def baseline_fails(self, platform: str) -> str:
        """Why a Platform cannot be calibrated; empty while that is not certain."""
        failures = self.baseline_failures.get(platform, [])
        return failures[-1] if len(failures) >= BASELINE_FAILURES else ""

    def finished_trial(self, trial: str) -> TrialFinished:
        """A leased trial that is known to have ended."""
        return self.blocks[self.block_of[trial]].finished[trial]

    def runs_of(self, claim: Claim) -> list[Run]:
        """What its candidate scored, oriented so that more is better, in the order in which its Pairs came to be."""
        finished = [self.finished_trial(pair.candidate_trial) for pair in claim.pairs]
        measured = [(one, one.outcome) for one in finished if isinstance(one.outcome, Measurement)]
        name = f"claim {claim.experiment} {claim.base}"  # its candidate may be champion one day, whose runs are others
        return [Run(name, one.node, one.seed, self.gain(found.score, 0.0)) for one, found in measured]

    def noise_of(self, platform: str) -> Noise | None:
        """What is known of s there: while its panel is on, from Pairs alone; None before it is calibrated."""
        references = self.references.get(platform)
        on = references is not None and references.on and references.noise.df >= PAIRS_DF
        return references.noise if references is not None and on else self.noise.get(platform)

    def panel_of(self, claim: Claim) -> References | None:
        """The champion's runs that a claim without a block is for, once there are enough; None where it takes Pairs.

        Sets and simplifications always do: on a panel they were not simulated.
        """
        references = self.references.get(claim.platform)
        fits = references is not None and references.on and references.champion == claim.base
        return references if fits and claim.kind == "gain" and not claim.ideas else None

    def platform_of(self, node: str) -> str:
        """Id of the Platform that a node last joined with; empty for a stranger."""
        return self.nodes[node].platform.id if node in self.nodes else ""
