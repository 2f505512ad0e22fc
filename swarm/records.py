"""The words of the swarm as frozen records. No I/O, no behaviour beyond computed properties.

Three families:

* **things** - Platform, Candidate files, TrialSpec, Block, Outcome ...
* **facts** - what the ledger holds, append-only, each with a `key` that makes a second arrival harmless
* **messages** - what coordinator and agent exchange in one short call: Orders one way, Report the other

Scores are kept as the metric gives them; a *gain* is oriented so that positive is better.
All times are seconds; `*_at` are Unix times on the clock of whoever wrote them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Discriminator

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

Purpose = Literal["calibrate", "reference", "screen", "confirm", "transfer", "recheck", "final", "reproduce"]
Direction = Literal["minimize", "maximize"]
Mark = Literal["transfers", "fades", "reverses", "unknown"]
ClaimKind = Literal["gain", "simplification"]  # it is better; or it has less code and is not worse by a margin
Files = Mapping[str, str]  # path inside the task folder -> text


def digest(*parts: object) -> str:
    """Identity of a thing: 32 hex digits of SHA-256 over its parts, which may not contain NUL."""
    return sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


def candidate_id(files: Files) -> str:
    """Identity of a Candidate: hash of all its editable files, byte for byte."""
    return digest("candidate", *(part for path in sorted(files) for part in (path, files[path])))


def researcher_branch(study: str, node: str) -> str:
    """The branch of the researcher on a node, for any name that a node may have: always one that git takes."""
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", node)[:40].strip("-") or "node"
    own = slug == "baseline" or slug.startswith("promotion-")  # these branches are the coordinator's
    return f"swarm/{study}/{'node-' if own else ''}{slug}"


# --- things ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Platform:
    """Where scores may be compared."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    device: str  # e.g. "cpu AMD EPYC 9B45, 1 thread" or "NVIDIA H200"
    software: str  # e.g. "torch 2.13.0+cpu, python 3.11"
    data: str  # fingerprint of the prepared data
    budget: str  # e.g. "204800 tokens"

    @property
    def id(self) -> str:
        return digest("platform", self.device, self.software, self.data, self.budget)


@dataclass(frozen=True)
class NodeInfo:
    """A Node as its agent describes it."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    uid: str  # persisted on the node's disk, survives every restart
    name: str
    host: str
    platform: Platform
    sandbox_level: int  # 0 none, 1 Landlock, 2 bubblewrap, 3 bubblewrap with cgroup
    sandbox: str
    trusting: bool = False  # its owner said --i-trust-this-code: it runs code below the level that this asks for


@dataclass(frozen=True)
class Limits:
    """When a trial is killed."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    cpu_s: float
    wall_s: float
    memory_mb: int = 4096
    log_bytes: int = 1_000_000
    disk_mb: int = 4096  # of its scratch
    files: int = 20_000  # there
    processes: int = 1024  # a data loader and a compiler with 16 workers of 30 threads each: 500


@dataclass(frozen=True)
class TrialSpec:
    """One run to be made: these editable files, this seed."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    id: str
    candidate: str
    seed: int
    purpose: Purpose
    files: Files
    limits: Limits
    experiment: str = ""  # the idea under test; empty for the champion's own runs


@dataclass(frozen=True)
class Block:
    """Trials that one Node runs without interruption, in this order. The unit of a lease."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    id: str
    fence: int
    trials: tuple[TrialSpec, ...]


@dataclass(frozen=True)
class Measurement:
    """A trial that ended with a score which our scorer computed."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    score: float
    cpu_s: float  # of training, process start to exit, and what scoring took beyond others
    peak_memory_mb: float
    scoring_s: float
    artifact: str  # sha256 of what was scored
    self_reported: bool = False  # the task says `score = "printed"`: the candidate's own word
    audited: bool = False  # asked again with another future, it answered the same
    kind: Literal["measurement"] = "measurement"


@dataclass(frozen=True)
class Failure:
    """A trial that ended without a score."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    blame: Literal["candidate", "machinery"]
    # `killed` by a signal that anybody may have sent, itself, too: forgiven once
    reason: Literal["crash", "timeout", "nan", "rule", "log", "memory", "lost", "killed", "disk", "scoring", "stopped"]
    message: str
    cpu_s: float = 0.0
    kind: Literal["failure"] = "failure"


Outcome = Measurement | Failure


@dataclass(frozen=True)
class Proposal:
    """An idea, not yet admitted. Untrusted."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    idea: str  # hash of the normalised syntax tree of all editable files
    parent: str  # candidate id of the branch tip it edits
    hypothesis: str
    expected: str
    files: Files  # all editable files after the edit
    proposer: str


@dataclass(frozen=True)
class Usage:
    """What asking a proposer has cost."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.dollars + other.dollars,
        )


# --- facts -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StudyOpened:
    """The first fact of every ledger: the Task and the frozen configuration."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    study: str
    seed: int
    metric: str
    direction: Direction
    baseline: str  # candidate id
    files: Files  # the baseline's editable files
    config: str  # resolved configuration as JSON
    at: float
    kind: Literal["study_opened"] = "study_opened"

    @property
    def key(self) -> str:
        return "study"


@dataclass(frozen=True)
class CoordinatorStarted:
    """A coordinator took over. Its epoch fences every older one."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    epoch: int
    at: float
    kind: Literal["coordinator_started"] = "coordinator_started"

    @property
    def key(self) -> str:
        return f"epoch:{self.epoch}"


@dataclass(frozen=True)
class StillAtWork:
    """Nothing else was worth a fact for a while; keeps the study's working time true across kills."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    epoch: int
    at: float
    kind: Literal["still_at_work"] = "still_at_work"

    @property
    def key(self) -> str:
        return f"at_work:{self.epoch}:{self.at:.0f}"


@dataclass(frozen=True)
class NodeJoined:
    """A Node was seen for the first time, or came back with another Platform."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    node: NodeInfo
    at: float
    kind: Literal["node_joined"] = "node_joined"

    @property
    def key(self) -> str:
        return f"node:{self.node.uid}:{self.node.platform.id}:{self.at:.3f}"  # it may come back to a Platform it had


@dataclass(frozen=True)
class NodeLost:
    """A Node stopped answering, or said goodbye."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    node: str
    reason: str
    at: float
    kind: Literal["node_lost"] = "node_lost"

    @property
    def key(self) -> str:
        return f"lost:{self.node}:{self.at:.3f}"


@dataclass(frozen=True)
class ExperimentAdmitted:
    """A Proposal became an Experiment: the swarm holds no other with this syntax tree."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    proposal: Proposal
    candidate: str
    node: str
    branch: str
    at: float
    kind: Literal["experiment_admitted"] = "experiment_admitted"

    @property
    def key(self) -> str:
        return f"experiment:{self.proposal.idea}"


@dataclass(frozen=True)
class ProposalRefused:
    """A Proposal that was not admitted, and why."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    idea: str
    node: str
    hypothesis: str
    reason: str
    at: float
    kind: Literal["proposal_refused"] = "proposal_refused"

    @property
    def key(self) -> str:
        return f"refused:{self.node}:{self.idea}"


@dataclass(frozen=True)
class BlockDrawn:
    """The coordinator drew a fresh seed and leased a Block to a Node. Drawn means counted, also when it is lost."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    block: str
    number: int
    fence: int
    node: str
    purpose: Purpose
    seeds: tuple[int, ...]  # one per trial
    candidates: tuple[str, ...]  # in the order they run
    reference: str  # the candidate that the others are compared with
    experiments: tuple[str, ...]  # the ideas confirmed here; empty for calibration and final
    trials: tuple[str, ...]
    at: float
    reference_trial: str = ""  # of an earlier block with this seed on this node; the reference does not run here again
    kind: Literal["block_drawn"] = "block_drawn"

    @property
    def key(self) -> str:
        return f"block:{self.block}"


@dataclass(frozen=True)
class BlockLost:
    """The Node that held a Block will not finish it."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    block: str
    reason: str
    at: float
    kind: Literal["block_lost"] = "block_lost"

    @property
    def key(self) -> str:
        return f"block_lost:{self.block}"


@dataclass(frozen=True)
class TrialFinished:
    """One finished Trial. The first arrival counts; the id makes every later one harmless."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    trial: str
    candidate: str
    experiment: str
    seed: int
    purpose: Purpose
    node: str
    platform: str
    sandbox_level: int
    block: str
    fence: int
    started_at: float  # process start of training, the node's clock
    ended_at: float  # end of scoring, the node's clock
    outcome: Outcome
    log: str  # last lines of what the candidate printed; shown, never believed
    kind: Literal["trial_finished"] = "trial_finished"

    @property
    def key(self) -> str:
        return f"trial:{self.trial}"


@dataclass(frozen=True)
class TrialDisturbed:
    """A Trial that the machinery failed (killed from outside, disk full, node restarted). It will be run again."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    trial: str
    node: str
    attempt: int
    failure: Failure
    at: float
    kind: Literal["trial_disturbed"] = "trial_disturbed"

    @property
    def key(self) -> str:
        return f"disturbed:{self.trial}:{self.node}:{self.attempt}:{self.at:.3f}"


@dataclass(frozen=True)
class Screened:
    """The researcher compared an Experiment with its own branch tip on one seed."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    experiment: str
    node: str
    branch: str
    candidate: str
    tip: str  # the branch tip it was compared with
    kept: bool
    gain: float | None  # over the tip, same seed; None when the trial failed
    gain_over_champion: float | None
    champion: str
    reason: str
    at: float
    kind: Literal["screened"] = "screened"

    @property
    def key(self) -> str:
        return f"screened:{self.experiment}:{self.tip}"  # set aside, it may come back and be judged on another tip


@dataclass(frozen=True)
class ClaimRaised:
    """A researcher says: my branch tip beats the champion."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    experiment: str
    candidate: str
    base: str  # the champion it claims to beat
    node: str
    branch: str
    gain: float  # of screening; shown, never evidence
    at: float
    claim_kind: ClaimKind = "gain"
    kind: Literal["claim_raised"] = "claim_raised"

    @property
    def key(self) -> str:
        return f"claim:{self.experiment}:{self.base}:{self.node}"


def _again(after_demotion: int) -> str:
    return f":{after_demotion}" if after_demotion else ""


@dataclass(frozen=True)
class Carried:
    """An idea was carried onto a champion that had moved meanwhile; the new tree has to be confirmed itself."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    experiment: str
    candidate: str
    onto: str
    files: Files
    at: float
    after_demotion: int = 0  # number of the newest one; a champion that came back is carried onto anew
    kind: Literal["carried"] = "carried"

    @property
    def key(self) -> str:
        return f"carried:{self.experiment}:{self.onto}{_again(self.after_demotion)}"


@dataclass(frozen=True)
class Stacked:
    """Several accepted ideas, joined into one tree on the champion: a claim of its own, measured and landed as one."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    experiment: str  # name of the set; blocks, verdicts and the promotion carry it where an idea's name stands
    ideas: tuple[str, ...]  # experiments, in the order in which they land: largest published gain first
    candidate: str
    onto: str
    files: Files
    at: float
    kind: Literal["stacked"] = "stacked"

    @property
    def key(self) -> str:
        return f"stacked:{self.experiment}:{self.onto}"


@dataclass(frozen=True)
class Interaction:
    """What accepted ideas gained together, against the sum of what each had gained alone."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    experiment: str  # name of the set
    ideas: tuple[str, ...]
    onto: str  # the champion that they were measured against
    gain: float  # mean over its first pairs; 0 where they do not join or do not run
    expected: float  # sum of the published gains
    pairs: int
    reason: str
    at: float
    kind: Literal["interaction"] = "interaction"

    @property
    def key(self) -> str:
        return f"interaction:{self.experiment}:{self.onto}"


@dataclass(frozen=True)
class Verdict:
    """What the coordinator believes of a Claim, and why."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    experiment: str
    candidate: str
    base: str
    accepted: bool
    effect: float  # gain in metric units, positive is better (shrunken when accepted)
    low: float
    high: float
    pairs: int
    likelihood_ratio: float
    bar: float
    noise: float  # s, sd of a paired gain
    evidence: tuple[str, ...]  # trial ids, champion and candidate alternating, also the bad ones
    nodes: int
    reason: str
    at: float
    claim_kind: ClaimKind = "gain"
    after_demotion: int = 0  # as of the Carried that it answers; 0 for a claim that a node raised
    to_port: bool = False  # in conflict with a champion that had moved; its author is asked to write it anew
    panel: int = 0  # runs of the champion that it was weighed against; 0: each pair by itself
    kind: Literal["verdict"] = "verdict"

    @property
    def key(self) -> str:
        return f"verdict:{self.experiment}:{self.base}{_again(self.after_demotion)}"


@dataclass(frozen=True)
class PanelSwitched:
    """Whether claims on a Platform may be weighed on the panel of the champion's runs; they take pairs before."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    platform: str
    number: int  # of the switches of this Platform, from 1
    on: bool
    surprises: int  # runs of champions that were foretold from those before them
    reason: str
    at: float
    kind: Literal["panel_switched"] = "panel_switched"

    @property
    def key(self) -> str:
        return f"panel:{self.platform}:{self.number}"


@dataclass(frozen=True)
class ShamRaised:
    """The coordinator claims an edit that changes nothing but the random stream, to see what its own chain believes."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    number: int
    claim: int  # of a node, counted from 1, after which it was drawn
    name: str  # in the place of an experiment, in blocks and trials
    candidate: str
    base: str  # the champion that it was made of
    files: Files
    platform: str
    at: float
    kind: Literal["sham_raised"] = "sham_raised"

    @property
    def key(self) -> str:
        return f"sham:{self.number}"


@dataclass(frozen=True)
class ShamJudged:
    """What the chain made of a sham. An acceptance is a false one, and known to be; it never lands."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    number: int
    verdict: Verdict  # as for any claim; without pairs where the champion moved first
    at: float
    kind: Literal["sham_judged"] = "sham_judged"

    @property
    def key(self) -> str:
        return f"sham_judged:{self.number}"


@dataclass(frozen=True)
class HoldoutAnswered:
    """The one answer that the holdout split gave about an accepted tree. The scores behind it are kept nowhere."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    number: int  # of the question, from 1: each one wears the split a little. A tree that comes back is not asked again
    experiment: str
    candidate: str
    base: str
    passed: bool
    gain: float | None  # mean over its Pairs, rounded to the step; None when it did not pass
    step: float
    pairs: int  # scored there; of a Pair whose artifacts are gone nothing is known
    reason: str
    at: float
    node_s: float = 0.0  # node time that the scoring took
    after_demotion: int = 0  # as of the Verdict that it is about
    kind: Literal["holdout_answered"] = "holdout_answered"

    @property
    def key(self) -> str:
        return f"holdout:{self.experiment}:{self.base}{_again(self.after_demotion)}"


@dataclass(frozen=True)
class Promotion:
    """An accepted Candidate became the champion."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    number: int
    experiment: str
    candidate: str
    base: str
    commit: str
    request: str  # the forge's name for the pull request
    at: float
    claim_kind: ClaimKind = "gain"
    ideas: tuple[str, ...] = ()  # where several landed together: their experiments, in that order
    kind: Literal["promotion"] = "promotion"

    @property
    def key(self) -> str:
        return f"promotion:{self.number}"

    @property
    def landed(self) -> tuple[str, ...]:
        """The experiments that it brings."""
        return self.ideas or (self.experiment,)


@dataclass(frozen=True)
class PromotionVetoed:
    """A person closed the request of a Promotion, which does not land; that it reproduced stays true."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    number: int  # of the request; none carries it again
    experiment: str
    base: str
    reason: str  # which request it was
    at: float
    kind: Literal["promotion_vetoed"] = "promotion_vetoed"

    @property
    def key(self) -> str:
        return f"promotion_vetoed:{self.number}"


@dataclass(frozen=True)
class TransferChecked:
    """How much of an accepted gain is left at a larger scale: the candidate against its base, on fresh seeds."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    experiment: str
    candidate: str
    base: str
    scale: str  # "depth=2"
    mark: Mark
    share: float | None  # of the relative gain that is kept; None where there is no such number
    low: float | None
    high: float | None
    gain: float | None  # mean paired gain at that scale, in units of the metric
    evidence: tuple[str, ...]  # trial ids, base and candidate alternating
    required: bool  # the study promotes only what transfers
    reason: str
    at: float
    kind: Literal["transfer_checked"] = "transfer_checked"

    @property
    def key(self) -> str:
        return f"transfer:{self.experiment}:{self.base}"

    @property
    def bars(self) -> bool:
        """Whether it keeps the candidate from becoming the champion."""
        return self.required and self.mark != "transfers"


@dataclass(frozen=True)
class ChampionRechecked:
    """The champion against the champion of some promotions before, on fresh seeds. One that is no better is demoted."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    number: int  # of the promotion that made it due
    champion: str  # as of that promotion
    ancestor: str
    published: float  # the gains published along the line between them, summed up
    gain: float | None  # mean paired gain; None with fewer than two pairs
    low: float | None  # of its 95 % interval
    high: float | None
    pairs: int
    evidence: tuple[str, ...]  # trial ids, ancestor and champion alternating
    noise: float  # s, sd of a paired gain
    likelihood_ratio: float  # of a gain worth having against none
    demotes: bool  # the ancestor is to be the champion again
    reason: str
    at: float
    kind: Literal["champion_rechecked"] = "champion_rechecked"

    @property
    def key(self) -> str:
        return f"rechecked:{self.number}"


@dataclass(frozen=True)
class Demotion:
    """A champion was no better than an earlier one, whose tree landed again on top. Its ideas are examined anew."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    number: int
    rechecked: int  # number of the promotion whose comparison found it
    champion: str  # that stepped down
    restored: str  # candidate that is the champion again
    undone: tuple[int, ...]  # numbers of the promotions that it undoes
    commit: str
    request: str  # the forge's name for the pull request
    at: float
    kind: Literal["demotion"] = "demotion"

    @property
    def key(self) -> str:
        return f"demotion:{self.number}"


@dataclass(frozen=True)
class DemotionVetoed:
    """A person closed the request of a Demotion: the champion stays, whatever its comparison said."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    number: int  # of the request; none carries it again
    rechecked: int  # number of the promotion whose comparison found it
    reason: str  # which request it was
    at: float
    kind: Literal["demotion_vetoed"] = "demotion_vetoed"

    @property
    def key(self) -> str:
        return f"demotion_vetoed:{self.number}"


@dataclass(frozen=True)
class Spent:
    """Tokens and money that a researcher spent on proposals since its last report of this kind."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    node: str
    sequence: int
    usage: Usage
    at: float
    kind: Literal["spent"] = "spent"

    @property
    def key(self) -> str:
        return f"spent:{self.node}:{self.sequence}"


@dataclass(frozen=True)
class Trouble:
    """Something failed and was survived: a proposer that could not answer, a forge that was away."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    where: str
    message: str
    at: float
    kind: Literal["trouble"] = "trouble"

    @property
    def key(self) -> str:
        return f"trouble:{self.where}:{self.at:.3f}"


@dataclass(frozen=True)
class StudyFinished:
    """The last fact: why the study ended, and the champion against the baseline on fresh seeds."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    reason: str
    champion: str
    final_gain: float | None  # mean paired gain over the baseline; None without a promotion
    low: float | None
    high: float | None
    pairs: int
    busy: float  # share of node time between first and last trial spent inside trials or scoring on the holdout
    at: float
    kind: Literal["study_finished"] = "study_finished"

    @property
    def key(self) -> str:
        return "finished"


Fact = Annotated[
    StudyOpened
    | CoordinatorStarted
    | StillAtWork
    | NodeJoined
    | NodeLost
    | ExperimentAdmitted
    | ProposalRefused
    | BlockDrawn
    | BlockLost
    | TrialFinished
    | TrialDisturbed
    | Screened
    | ClaimRaised
    | Carried
    | Stacked
    | Interaction
    | Verdict
    | PanelSwitched
    | ShamRaised
    | ShamJudged
    | HoldoutAnswered
    | Promotion
    | PromotionVetoed
    | TransferChecked
    | ChampionRechecked
    | Demotion
    | DemotionVetoed
    | Spent
    | Trouble
    | StudyFinished,
    Discriminator("kind"),  # read by its kind, 30 times as fast as trying one after another
]


# --- messages --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tried:
    """One line of the swarm's memory in a Brief."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    hypothesis: str
    status: str  # "running", "dropped", "kept", "claimed", "rejected", "promoted", "failed: ..."
    gain: float | None
    diff: str  # unified diff against its parent, cut to 2 000 characters; quoted data, not instructions


@dataclass(frozen=True)
class ToPort:
    """An idea of this node that was claimed, and that no merge can carry onto the champion."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    experiment: str
    hypothesis: str
    diff: str  # what it changes, cut to 2 000 characters; quoted data, not instructions
    sides: str  # what idea and champion made of what both changed; likewise


@dataclass(frozen=True)
class Brief:
    """What a researcher works from. A new version is sent whenever any of it changes."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    version: str
    champion: str
    champion_files: Files
    program: str
    noise: float | None  # s on this node's Platform; None before calibration
    screen_margin: float  # in units of s
    cpu_limit_s: float  # a trial is killed here
    open_claims: tuple[str, ...]  # experiments under confirmation
    verdicts: Mapping[str, str]  # this branch's recent claims: experiment -> "accepted" | "rejected: why"
    tried: tuple[Tried, ...]
    in_flight: tuple[str, ...]  # hypotheses that others are testing now
    explore: bool  # False near the end: confirmations and the final comparison only
    margin: float = 0.0  # in units of s; what a tip with less code may lose and still be claimed
    to_port: tuple[ToPort, ...] = ()  # oldest first
    foretold: float | None = None  # the champion's score on this node and a fresh seed, says the panel of its runs
    own_weight: float = 1.0  # of this node's own run of the champion against that; 1: it alone counts


@dataclass(frozen=True)
class Admission:
    """The coordinator's answer to a Proposal."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    idea: str
    admitted: bool
    reason: str = ""


@dataclass(frozen=True)
class PieceWanted:
    """What a node lacks of the study's prepared data; asked in every report until it comes."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    path: str  # in the folder of that data
    offset: int


@dataclass(frozen=True)
class Piece:
    """The answer: a part of one file, which may come twice."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    path: str
    offset: int
    size: int  # of the whole file
    packed: bytes  # zlib
    refused: str = ""  # why it can not be had, in words


@dataclass(frozen=True)
class Orders:
    """Coordinator to agent, one call."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    epoch: int
    acks: tuple[str, ...] = ()  # fact keys that are committed; the agent may forget them
    admissions: tuple[Admission, ...] = ()
    blocks: tuple[Block, ...] = ()
    brief: Brief | None = None
    holdout: Mapping[str, str] = field(default_factory=dict)  # kept trials to score there now: trial -> its artifact
    release: tuple[str, ...] = ()  # kept trials whose artifacts nobody will ask for any more
    drain: bool = False  # finish nothing new, stop what runs, keep offering what is spooled
    piece: Piece | None = None  # of prepared data, as the last report wanted


@dataclass(frozen=True)
class Running:
    """The trial that a node is busy with, for the live view."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    trial: str
    experiment: str
    purpose: Purpose
    phase: Literal["train", "score"]
    started_at: float
    elapsed_s: float
    cpu_s: float


@dataclass(frozen=True)
class Report:
    """Agent to coordinator, the answer to Orders. Offered facts are repeated until acknowledged."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    node: NodeInfo
    brief: str  # version it works from; empty before the first
    facts: tuple[Fact, ...] = ()
    proposals: tuple[Proposal, ...] = ()
    holding: tuple[str, ...] = ()  # blocks leased to it and not finished
    running: Running | None = None
    idle: str = ""  # why nothing runs, in words; empty while something does
    kept: tuple[str, ...] = ()  # confirmation trials whose artifacts lie on its disk
    holdout: Mapping[str, Outcome] = field(default_factory=dict)  # answers by trial: never facts, never written down
    ready: bool = True  # False while it prepares data; its Platform is not known yet
    drained: bool = False
    wants: PieceWanted | None = None  # while it receives data


@dataclass(frozen=True)
class Setup:
    """What an agent is born with: the Task as files, and how this study wants it run."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    study: str
    seed: int
    direction: Direction
    task_files: Mapping[str, bytes]  # the whole task folder, path -> bytes
    proposer: str  # "package.module:Class" or a short name
    proposer_options: Mapping[str, str] = field(default_factory=dict)
    opened_at: float = 0.0  # tells this study from an earlier one of the same name
    sandbox: str = "auto"
    level_needed: int = 0  # below this sandbox level a node runs nothing, unless its owner trusts the code
    data: str = ""  # a folder with prepared data, used where it exists; else the node prepares its own
    fingerprint: str = ""  # of the coordinator's data; a node whose own differs is told so, and receives it
    threads: int = 1
    wall_limit_s: float = 300.0
    memory_mb: int = 4096
    disk_mb: int = 4096
    admission_grace_s: float = 20.0  # after this long without a coordinator a researcher admits its own ideas
