"""What one round of the coordinator costs: 10 to 1,000 nodes, after 1,000 and after 10,000 experiments.

    .venv/bin/python benchmarks/rounds.py

No Ray, disk or git: the reports of simulated nodes go through what the service does with them (parse, believe, absorb,
decide, write Orders, pack), with candidates as long as the shipped train.py. A round is what happens every
`nodes.poll_s`; nodes finish a trial every 60 rounds (300 s at 5 s). Growth is
what ten times the history costs.
"""

import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from coordinator.belief import Border  # noqa: E402
from coordinator.leases import trial_id  # noqa: E402
from coordinator.mind import Mind, Promote  # noqa: E402
from swarm.codec import pack, unpack  # noqa: E402
from swarm.config import parse_config  # noqa: E402
from swarm.records import (  # noqa: E402
    BlockDrawn,
    ClaimRaised,
    CoordinatorStarted,
    ExperimentAdmitted,
    Fact,
    Measurement,
    NodeInfo,
    NodeJoined,
    Platform,
    Promotion,
    Proposal,
    Purpose,
    Report,
    Screened,
    StudyOpened,
    TrialFinished,
    Verdict,
    candidate_id,
    digest,
    researcher_branch,
)
from swarm.source import idea_hash  # noqa: E402

NODES, HISTORIES = (10, 100, 1000), (1_000, 10_000)
ROUNDS = 20
TRIAL_ROUNDS = 60  # rounds in which a node finishes one trial
CLAIMS_EVERY, PROMOTIONS_EVERY = 8, 200  # experiments
STUDY = "bench-1"
PLATFORM = Platform("cpu", "none", "none", "1 token")
TRAIN = (ROOT / "baseline" / "train.py").read_text()
LEARNING_RATE = re.search(r"^LEARNING_RATE = .*$", TRAIN, re.MULTILINE) or re.search(
    r"^[A-Z_]+ = \d.*$", TRAIN, re.MULTILINE
)


def candidate(number: int) -> dict[str, str]:
    """The shipped script with one constant changed."""
    assert LEARNING_RATE is not None
    name = LEARNING_RATE.group().split(" = ")[0]
    return {"train.py": TRAIN.replace(LEARNING_RATE.group(), f"{name} = {number + 1}e-6")}


@dataclass
class Study:
    """A mind with a past, and nodes that report."""

    nodes: int
    now: float = 1e6
    drawn: int = 0
    proposed: int = 0
    ready: dict[str, Report] = field(default_factory=dict)
    running: dict[str, Proposal] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settings = {"study": STUDY, "stop": {"wall_minutes": 1e6}, "nodes": {"trial_wall_s": 600}}
        self.mind = Mind(parse_config(settings, "benchmark"), cpu_limit=2.0)
        self.infos = [NodeInfo(f"uid-{n}", f"node-{n}", "host", PLATFORM, 2, "bubblewrap") for n in range(self.nodes)]

    # --- the past ---

    def live_through(self, experiments: int) -> None:
        """Facts as a ledger of that length would hold them."""
        files = candidate(0)
        self.absorb(StudyOpened(STUDY, 0, "val_bpb", "minimize", candidate_id(files), files, "{}", self.now))
        self.absorb(CoordinatorStarted(1, self.now))
        for info in self.infos:
            self.absorb(NodeJoined(info, self.now))
        for _ in range(4):
            self.block("calibrate", self.mind.state.champion, [self.mind.state.champion], [])
        for number in range(1, experiments + 1):
            self.experiment(number)
        self.proposed = experiments

    def absorb(self, fact: Fact) -> None:
        self.now += 0.01
        self.mind.absorb(fact, self.now)

    def experiment(self, number: int) -> None:
        """Admitted, tried, judged; some are claimed, few promoted."""
        state, node = self.mind.state, self.infos[number % self.nodes]
        files = candidate(number)
        proposal = Proposal(digest("idea", number), state.champion, f"Idea {number}", "better", files, "benchmark")
        name, branch = candidate_id(proposal.files), researcher_branch(STUDY, node.name)
        self.absorb(ExperimentAdmitted(proposal, name, node.uid, branch, self.now))
        self.absorb(self.trial("screen", name, 7, node.uid, experiment=proposal.idea))
        kept = number % CLAIMS_EVERY == 0
        self.absorb(self.screened(proposal, node, kept=kept))
        if not kept:
            return
        base = state.champion
        self.absorb(ClaimRaised(proposal.idea, name, base, node.uid, branch, 0.01, self.now))
        pairs = [self.block("confirm", base, [name], [proposal.idea]) for _ in range(3)]
        accepted = number % PROMOTIONS_EVERY == 0
        evidence = tuple(trial for block in pairs for trial in block.trials)
        self.absorb(
            Verdict(
                proposal.idea, name, base, accepted, 0.01, 0.0, 0.02, 3, 99.0, 30.0, 0.01, evidence, 3, "", self.now
            )
        )  # fmt: skip
        if accepted:
            self.absorb(Promotion(len(state.promotions) + 1, proposal.idea, name, base, "0" * 40, "local#1", self.now))

    def block(self, purpose: Purpose, base: str, candidates: list[str], experiments: list[str]) -> BlockDrawn:
        """A block that was drawn and finished."""
        self.drawn = len(self.mind.state.blocks) + 1
        order, node = (base, *candidates), self.infos[self.drawn % self.nodes].uid
        seeds = tuple(self.drawn * 10 + place * (purpose == "calibrate") for place in range(len(order)))
        trials = tuple(trial_id(c, s, PLATFORM.id, purpose, self.drawn) for c, s in zip(order, seeds, strict=True))
        block = BlockDrawn(
            f"b{self.drawn}", self.drawn, 1, node, purpose, seeds, order, base, tuple(experiments), trials, self.now
        )
        self.absorb(block)
        for trial, name, seed in zip(trials, order, seeds, strict=True):
            self.absorb(self.trial(purpose, name, seed, node, trial=trial, block=block.block))
        return block

    def trial(
        self,
        purpose: Purpose,
        name: str,
        seed: int,
        node: str,
        *,
        trial: str = "",
        block: str = "",
        experiment: str = "",
    ) -> TrialFinished:
        outcome = Measurement(2.0 + seed % 13 * 1e-3, 5.0, 100.0, 1.0, "artifact")
        key = trial or digest(name, seed, node)
        return TrialFinished(
            key, name, experiment, seed, purpose, node, PLATFORM.id, 2, block, 1, self.now - 8, self.now, outcome, "log"
        )

    # --- the present ---

    def proposal(self, number: int) -> Proposal:
        files = candidate(number)
        return Proposal(idea_hash(files), self.mind.state.champion, f"Idea {number}", "better", files, "benchmark")

    def screened(self, proposal: Proposal, node: NodeInfo, *, kept: bool = False) -> Screened:
        branch, name = researcher_branch(STUDY, node.name), candidate_id(proposal.files)
        tip = self.mind.state.champion
        return Screened(proposal.idea, node.uid, branch, name, tip, kept, 0.01, 0.01, tip, "judged", self.now)

    def reports(self, number: int) -> Iterator[bytes]:
        """What the nodes answer in one round: most are busy, one in sixty has finished an idea and has another."""
        for place, info in enumerate(self.infos):
            facts: tuple[Fact, ...] = ()
            proposals: tuple[Proposal, ...] = ()
            if (place + number) % TRIAL_ROUNDS == 0:
                if (mine := self.running.get(info.uid)) is not None:
                    screen = self.trial("screen", candidate_id(mine.files), 7, info.uid, experiment=mine.idea)
                    facts = (screen, self.screened(mine, info))
                self.proposed += 1
                self.running[info.uid] = self.proposal(self.proposed)
                proposals = (self.running[info.uid],)
            known = self.ready.get(info.uid)
            yield pack(Report(info, known.brief if known else "", facts, proposals))

    def round(self, replies: list[bytes]) -> int:
        """What the service does with them, its disks aside. Returns the bytes that go out."""
        border = Border(self.mind.state, 600.0)
        for reply in replies:
            report = unpack(reply, Report)
            for fact in border.hear(report).facts:
                self.mind.absorb(fact, self.now)
            self.mind.observe(report, self.now)
        while actions := self.mind.decide(self.now):
            for action in actions:
                if not isinstance(action, Promote):
                    self.mind.absorb(action, self.now)
        return sum(self.order(info) for info in self.infos)

    def order(self, info: NodeInfo) -> int:
        orders = self.mind.orders(info.uid, (), self.now)
        if orders.brief is not None:
            known = self.mind.presence[info.uid].report
            self.ready[info.uid] = replace(known, brief=orders.brief.version)
        return len(pack(orders))


def measure(nodes: int, history: int) -> tuple[float, float]:
    """Mean milliseconds and kilobytes of a round."""
    study = Study(nodes)
    study.live_through(history)
    study.round(list(study.reports(1)))  # the first one writes every Brief
    times, sizes = [], []
    for number in range(2, ROUNDS + 2):
        replies = list(study.reports(number))
        study.now += 5
        began = time.perf_counter()
        sizes.append(study.round(replies))
        times.append(time.perf_counter() - began)
    return 1000 * fmean(times), fmean(sizes) / 1000


def main() -> None:
    """Print the table."""
    print(f"{'nodes':>6} {'after 1,000':>14} {'after 10,000':>14} {'growth':>7} {'sent per round':>15}")
    for nodes in NODES:
        (short, _), (long, size) = (measure(nodes, history) for history in HISTORIES)
        print(f"{nodes:>6} {short:>11.1f} ms {long:>11.1f} ms {long / short:>7.2f} {size:>12.0f} kB", flush=True)


if __name__ == "__main__":
    main()
