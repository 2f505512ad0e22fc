"""A desk for the mind alone: facts are kept as a ledger keeps them, nodes are reports that a test makes up.

Nothing is simulated here: whatever happens, a test (or hypothesis) says so.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from coordinator.belief import Border
from coordinator.mind import Action, Demote, Mind, Promote
from coordinator.rechecks import undone_by
from coordinator.state import State
from swarm.config import parse_config
from swarm.records import (
    BlockDrawn,
    BlockLost,
    ClaimKind,
    ClaimRaised,
    CoordinatorStarted,
    Demotion,
    ExperimentAdmitted,
    Fact,
    Failure,
    Measurement,
    NodeInfo,
    Orders,
    Outcome,
    Platform,
    Promotion,
    Proposal,
    Report,
    Screened,
    StudyOpened,
    TrialFinished,
    candidate_id,
    researcher_branch,
)
from swarm.scale import Scale
from swarm.source import idea_hash

PLATFORM = Platform("cpu", "none", "none", "1 token")
OTHER_PLATFORM = Platform("gpu", "none", "none", "1 token")
BASELINE = {"train.py": "A = 0\nB = 0\nC = 0\nD = 0\n"}
START = 1_000_000.0
STUDY = "toy-1"


def info(name: str, platform: Platform = PLATFORM) -> NodeInfo:
    return NodeInfo(f"uid-{name}", name, "localhost", platform, 0, "none")


def edited(files: Mapping[str, str], **values: int) -> dict[str, str]:
    """The same script with other constants."""
    text = files["train.py"]
    for name, value in values.items():
        text = "".join(
            f"{name} = {value}\n" if line.startswith(f"{name} =") else line for line in text.splitlines(keepends=True)
        )
    return {"train.py": text}


def proposal(files: Mapping[str, str], parent: Mapping[str, str] = BASELINE, hypothesis: str = "An idea") -> Proposal:
    return Proposal(idea_hash(files), candidate_id(parent), hypothesis, "better", files, "test")


def measured(score: float, cpu_s: float = 5.0) -> Measurement:
    return Measurement(score, cpu_s, 100.0, 1.0, "artifact", audited=True)


CRASH = Failure("candidate", "crash", "RuntimeError: no")


def trial_of(
    block: BlockDrawn, place: int, outcome: Outcome, at: float, platform: Platform = PLATFORM
) -> TrialFinished:
    """What a node says of one trial of a block that it was leased."""
    return TrialFinished(
        trial=block.trials[place],
        candidate=block.candidates[place],
        experiment="",
        seed=block.seeds[place],
        purpose=block.purpose,
        node=block.node,
        platform=platform.id,
        sandbox_level=0,
        block=block.block,
        fence=block.fence,
        started_at=at - 8,
        ended_at=at,
        outcome=outcome,
        log="",
    )


def seeded(block: BlockDrawn, place: int, given: float | Outcome) -> Outcome:
    """A score with a little noise of the seed."""
    return measured(given + block.seeds[place] % 97 * 1e-4) if isinstance(given, float) else given


@dataclass
class Desk:
    """A mind, its ledger, and what its nodes last said."""

    settings: Mapping[str, object] = field(default_factory=dict)
    cpu_limit: float = 2.0
    scale: Scale | None = None
    baseline: Mapping[str, str] = field(default_factory=lambda: BASELINE)
    now: float = START
    holdout: dict[str, float | Outcome] = field(default_factory=dict)  # scores there by candidate; else as confirmed
    paced: bool = False  # a busy machine may score worse
    printed: bool = False  # the task takes a script's own word for its score
    silent: set[str] = field(default_factory=set)  # nodes that do not answer what they are asked about the holdout
    vault: dict[str, dict[str, Outcome]] = field(default_factory=dict)  # node -> trial -> what the holdout would say
    facts: list[tuple[Fact, float]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        plain: dict[str, object] = {"study": STUDY, "seed": 3, "stop": {"wall_minutes": 600, "final_minutes": 100}}
        plain["decision"] = {"calibration_pairs": 2}
        self.config = parse_config({**plain, **self.settings}, "test")
        self.mind = Mind(self.config, cpu_limit=self.cpu_limit, scale=self.scale, paced=self.paced)
        self.keys: set[str] = set()
        self.commit([
            StudyOpened(STUDY, 3, "score", "minimize", candidate_id(self.baseline), self.baseline, "{}", self.now),
            CoordinatorStarted(1, self.now),
        ])  # fmt: skip

    @property
    def state(self) -> State:
        return self.mind.state

    # --- what a service does ---

    def commit(self, facts: Iterable[Fact]) -> list[Fact]:
        """As the ledger: a key that is there already changes nothing."""
        fresh = []
        for fact in facts:
            if fact.key not in self.keys:
                self.keys.add(fact.key)
                self.facts.append((fact, self.now))
                self.mind.absorb(fact, self.now)
                fresh.append(fact)
        return fresh

    def report(self, *reports: Report) -> list[Fact]:
        """One round: what nodes say, and everything that follows from it."""
        border = Border(self.state, self.config.nodes.trial_wall_s, self.printed)
        before = len(self.facts)
        for report in reports:
            heard = border.hear(report)
            self.refused += heard.refused
            self.commit(heard.facts)
            self.mind.observe(report, self.now)
        self.think()
        return [fact for fact, _ in self.facts[before:]]

    def think(self) -> None:
        """Ask the mind until it has nothing more to say."""
        for _ in range(50):
            actions = self.mind.decide(self.now)
            if not self.commit(self.carried_out(actions)):
                assert not actions, f"it says the same again and again: {actions[:2]}"
                return
        raise AssertionError("the mind never comes to rest")

    def carried_out(self, actions: Iterable[Action]) -> list[Fact]:
        return [self._landed(action) if isinstance(action, Promote | Demote) else action for action in actions]

    def _landed(self, action: Promote | Demote) -> Fact:
        if isinstance(action, Promote):
            return self._promotion(action)
        found, undone = action.found, tuple(p.number for p in undone_by(self.state, action.found))
        demoted = found.number, self.state.champion, found.ancestor, undone
        return Demotion(action.number, *demoted, "sha", "local#1", self.now)

    def _promotion(self, action: Promote) -> Promotion:
        claim = self.state.claims[action.claim]
        assert not claim.awaits_holdout, "nothing lands before it was asked about"
        claimed = claim.experiment, claim.candidate, claim.base
        return Promotion(action.number, *claimed, "sha", "local#1", self.now, claim.kind, claim.ideas)

    def orders(self, name: str) -> Orders:
        return self.mind.orders(f"uid-{name}", (), self.now)

    def replayed(self) -> Mind:
        """Another mind that has read the same ledger."""
        again = Mind(self.config, cpu_limit=self.cpu_limit, scale=self.scale, paced=self.paced)
        for fact, at in self.facts:
            again.absorb(fact, at)
        return again

    # --- what happens on nodes ---

    def outstanding(self, purpose: str = "") -> list[BlockDrawn]:
        return [d.fact for d in self.state.outstanding.values() if purpose in ("", d.fact.purpose)]

    def of(self, kind: type[Fact]) -> list[Fact]:
        return [fact for fact, _ in self.facts if isinstance(fact, kind)]

    def run(self, block: BlockDrawn, scores: Mapping[str, float | Outcome], default: float = 2.0) -> list[Fact]:
        """A node finishes a block, and then answers about the holdout what it is asked; scores by candidate."""
        finished: list[Fact] = []
        for place, candidate in enumerate(block.candidates):
            given = scores.get(candidate, default)
            outcome = seeded(block, place, given)
            finished.append(trial_of(block, place, outcome, self.now))
            if block.purpose in ("calibrate", "confirm"):
                there = seeded(block, place, self.holdout.get(candidate, given))
                self.vault.setdefault(block.node, {})[block.trials[place]] = there
        before = len(self.facts)
        self.report(self.heard(block.node, facts=tuple(finished), holding=(block.block,)), self.heard(block.node))
        self.report(*map(self.heard, self.vault))
        return [fact for fact, _ in self.facts[before:]]

    def heard(self, uid: str, **changes: object) -> Report:
        """A node's report; nothing new unless said."""
        known = self.mind.presence.get(uid)
        node = known.report.node if known else info(uid.removeprefix("uid-"))
        kept = self.vault.get(uid, {})
        orders = self.mind.orders(uid, (), self.now)
        for trial in orders.release:
            kept.pop(trial, None)
        told = dict(known.report.holdout) if known else {}
        asked = () if uid in self.silent else orders.holdout
        answers = {trial: kept[trial] for trial in (*told, *asked) if trial in kept}
        plain = Report(node=node, brief="", kept=tuple(kept), holdout=answers)
        return replace(plain, **changes)  # type: ignore[arg-type]  # replace() checks the names

    def calibrate(self, *names: str) -> None:
        """Nodes join and measure the noise."""
        self.report(*(self.heard(f"uid-{name}") for name in names))
        while blocks := self.outstanding("calibrate"):
            self.run(blocks[0], {})

    def admit(self, name: str, idea: Proposal) -> ExperimentAdmitted:
        """A node brings an idea, and it is admitted."""
        facts = self.report(self.heard(f"uid-{name}", proposals=(idea,)))
        self.report(self.heard(f"uid-{name}"))
        return next(fact for fact in facts if isinstance(fact, ExperimentAdmitted))

    def claim(
        self, name: str, idea: Proposal, base: Mapping[str, str] = BASELINE, kind: ClaimKind = "gain"
    ) -> list[Fact]:
        """A node admits, keeps and claims an idea."""
        self.admit(name, idea)
        claim = replace(self.claims(name, idea, base), claim_kind=kind)
        return self.report(self.heard(f"uid-{name}", facts=(self.kept(name, idea), claim)))

    def kept(self, name: str, idea: Proposal) -> Screened:
        candidate, branch = candidate_id(idea.files), researcher_branch(STUDY, name)
        return Screened(
            idea.idea, f"uid-{name}", branch, candidate, idea.parent, True, 0.1, 0.1, self.state.champion, "", self.now
        )

    def claims(self, name: str, idea: Proposal, base: Mapping[str, str] = BASELINE) -> ClaimRaised:
        branch = researcher_branch(STUDY, name)
        return ClaimRaised(
            idea.idea, candidate_id(idea.files), candidate_id(base), f"uid-{name}", branch, 0.1, self.now
        )

    def confirm(self, scores: Mapping[str, float | Outcome], default: float = 2.0) -> None:
        """Run every confirmation until none is wanted any more."""
        while blocks := self.outstanding("confirm"):
            self.run(blocks[0], scores, default)

    def lost(self) -> list[BlockLost]:
        return [fact for fact, _ in self.facts if isinstance(fact, BlockLost)]
