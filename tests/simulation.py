"""A swarm without Ray, processes or time: simulated nodes behind the real port, a fake clock, planned faults.

The researcher, the mind, the service, the ledger, git and the local forge are the real ones. A trial is a number:
its score is the baseline's minus the true gains of the switches that are on, plus seed noise that is the same for
the same candidate and seed, as on a deterministic Platform.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from random import Random

from coordinator.forges import Opened, Request
from coordinator.forges.local import LocalForge
from coordinator.mind import Mind
from coordinator.service import Service, Study
from node.researcher import Memory, Researcher
from node.trial import TrialRun
from swarm.cluster.port import Member, Silence
from swarm.codec import pack, unpack
from swarm.config import Config, parse_config
from swarm.errors import ClusterError, ForgeError
from swarm.ledger import Ledger
from swarm.records import (
    Block,
    Fact,
    Failure,
    Measurement,
    NodeInfo,
    Orders,
    Outcome,
    Platform,
    Proposal,
    Report,
    Running,
    Setup,
    TrialDisturbed,
    TrialFinished,
    TrialSpec,
)
from swarm.repo import Repo
from swarm.source import idea_hash
from swarm.task import load_task

PLATFORM = Platform("simulated", "none", "none", "1 token")
START = 1_000_000.0
TRIAL_S = 8.0
ADMISSION_GRACE_S = 20.0
PAGES_EVERY_S = 500.0  # drawing the picture costs more than simulating the study


@cache
def idea_of(train: str) -> str:
    """A node asks for the same few texts over and over."""
    return idea_hash({"train.py": train})


@dataclass
class World:
    """What is true, and what time it is."""

    effects: Mapping[str, float]  # switch -> true gain when it is on
    lines: Mapping[str, float] = field(default_factory=dict)  # a line that may be cut -> true gain without it
    together: Mapping[tuple[str, str], float] = field(default_factory=dict)  # two switches -> gain beyond their sum
    at_scale: Mapping[str, float] = field(default_factory=dict)  # switch -> true gain at the larger scale
    seed_sd: float = 0.012  # common to all candidates with one seed
    own_sd: float = 0.004  # of one candidate's run
    lucky: Mapping[str, float] = field(default_factory=dict)  # switch -> gain that is gone once it has been promoted
    search_only: Mapping[str, float] = field(default_factory=dict)  # switch -> gain on the searched split alone
    slow: Mapping[str, float] = field(default_factory=dict)  # switch -> factor on CPU time
    crash: frozenset[str] = frozenset()  # switches that crash
    too_large: frozenset[str] = frozenset()  # switches that crash at the larger scale
    ideas: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # node -> the switches it thinks of; else all
    nodes: Callable[[str, float], float] = lambda name, now: 0.0  # what a node adds to its scores
    seeds: bool = False  # the script sets its seed, so that a sham can be made of it
    now: float = START
    seen_through: set[str] = field(default_factory=set)  # switches whose luck is over

    def clock(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def source(self) -> str:
        """A baseline whose switches are all off."""
        lines = "".join(f"{name} = 0\n" for name in self.lines)
        return "".join(f"{name} = False\n" for name in self.effects) + lines + self._tail()

    def _tail(self) -> str:
        return "random.seed(0)\n" * self.seeds + "print('hello')\n"

    def on_holdout(self, spec: TrialSpec) -> Outcome:
        """What the same artifact scores on the split that no search sees."""
        measured = replace(self, search_only={}).outcome(spec)
        if isinstance(measured, Failure):
            return measured
        return replace(measured, score=measured.score + Random(f"holdout {spec.id}").gauss(0, self.own_sd))

    def outcome(self, spec: TrialSpec) -> Outcome:
        on = [name for name in self.effects if f"{name} = True" in spec.files["train.py"]]
        if self.crash.intersection(on) or spec.purpose == "transfer" and self.too_large.intersection(on):
            return Failure("candidate", "crash", "RuntimeError: no")
        scaled = spec.purpose == "transfer"
        luck = sum(self.lucky.get(name, 0.0) for name in on if name not in self.seen_through)
        effects, level = ({**self.effects, **self.at_scale}, 1.6) if scaled else (self.effects, 2.0)
        score = level - sum(effects[name] + self.search_only.get(name, 0.0) for name in on)
        score -= sum(gain for name, gain in self.lines.items() if f"{name} = 0" not in spec.files["train.py"])
        score -= sum(gain for both, gain in self.together.items() if set(both) <= set(on))
        score += Random(f"seed {spec.seed}").gauss(0, self.seed_sd) - luck
        score += Random(f"{spec.candidate} {spec.seed}").gauss(0, self.own_sd)
        cpu = 5.0
        for name in on:
            cpu *= self.slow.get(name, 1.0)
        return Measurement(score, cpu, 100.0, 1.0, f"{spec.candidate[:8]}{spec.seed}", audited=True)


class SimulatedNode:
    """One node: the real researcher, a proposer that flips one switch, trials that take simulated time."""

    def __init__(self, world: World, name: str, study: str, seed: int) -> None:
        self.world, self.name, self.study, self.seed = world, name, study, seed
        self.info = NodeInfo(f"uid-{name}", name, "localhost", PLATFORM, 2, "simulated")
        self.memory: Memory | None = None
        self.spool: dict[str, Fact] = {}
        self.produced: list[str] = []
        self.kept: dict[str, TrialSpec] = {}  # artifacts on its disk
        self.scored: list[str] = []  # trials that it ever scored on the holdout
        self.last_seen = self.heard_at = world.now
        self.restart()

    def restart(self) -> None:
        """The agent was killed: leases and the running trial are gone, spool and memory are on disk."""
        self.leases: dict[str, tuple[Block, list[TrialSpec]]] = {}
        self.current: tuple[TrialSpec, Block | None, float] | None = None
        self.answers: dict[str, Outcome] = {}
        self.epoch = 0
        self.draining = False
        memory = self.memory or Memory(node=self.info.uid, branch=f"swarm/{self.study}/{self.name}")
        self.researcher = Researcher(memory, study_seed=1, direction="minimize", wall_s=60, memory_mb=100)
        self.random = Random(f"{self.seed} {self.name} {memory.sequence}")
        self._keep(self.researcher.interrupted(self.world.now))

    def exchange(self, data: bytes) -> bytes:
        orders = unpack(data, Orders)
        self.epoch, self.heard_at = orders.epoch, self.world.now
        for key in orders.acks:
            self.spool.pop(key, None)
        self.draining = orders.drain
        for block in orders.blocks:
            self.leases.setdefault(block.id, (block, list(block.trials)))
        self._release()
        for trial in orders.release:
            self.kept.pop(trial, None)
            self.answers.pop(trial, None)
        for trial in orders.holdout.keys() & self.kept.keys():
            self.scored.append(trial)
            self.answers[trial] = self.world.on_holdout(self.kept[trial])
        self._keep(self.researcher.settle(orders.admissions, self.world.now))
        if orders.brief is not None:
            self._keep(self.researcher.hear(orders.brief, self.world.now))
        brief = self.researcher.brief
        facts = tuple(self.spool.values())[:40]
        running = None
        if self.current is not None:
            spec, _, ends = self.current
            running = Running(
                spec.id, spec.experiment, spec.purpose, "train", ends - TRIAL_S, TRIAL_S - (ends - self.world.now), 1
            )
        report = Report(
            node=self.info,
            brief=brief.version if brief else "",
            facts=facts,
            proposals=self.researcher.memory.waiting,
            holding=tuple(self.leases),
            running=running,
            kept=tuple(self.kept),
            holdout=self.answers,
            drained=self.draining and running is None and not facts,
        )
        return pack(report)

    def live(self) -> None:
        """Let simulated time pass up to now."""
        while True:
            self._think()
            if self.current is None and not self._start(self.last_seen):
                break
            assert self.current is not None
            if self.current[2] > self.world.now:
                break
            self.last_seen = self.current[2]
            self._finish()
        self.last_seen = self.world.now

    def _think(self) -> None:
        tries = 0
        while self.researcher.wants_idea() and tries < 10:
            tries += 1
            tip = self.researcher.memory.tip_files["train.py"]
            known = self.world.ideas.get(self.name, tuple(self.world.effects))
            edits = {f"Switch {name} on": (f"{name} = False\n", f"{name} = True\n") for name in known}
            edits |= {f"Cut {name}": (f"{name} = 0\n", "") for name in self.world.lines}
            left = [hypothesis for hypothesis, (before, _) in edits.items() if before in tip]
            if not left:
                return
            hypothesis = self.random.choice(left)
            files = {"train.py": tip.replace(*edits[hypothesis])}
            parent = self.researcher.memory.tip
            self.researcher.offer(Proposal(idea_of(files["train.py"]), parent, hypothesis, "", files, "scripted"))

    def _start(self, at: float) -> bool:
        if self.draining:
            return False
        for block, left in self.leases.values():
            if left:
                self.current = (left[0], block, at + TRIAL_S)
                return True
        if self.researcher.memory.waiting and at - self.heard_at > ADMISSION_GRACE_S:
            self._keep(self.researcher.admit_alone(at))
        spec = self.researcher.next_trial()
        if spec is None:
            return False
        self._keep([])
        self.current = (spec, None, at + TRIAL_S)
        return True

    def _finish(self) -> None:
        assert self.current is not None
        spec, block, ends = self.current
        self.current = None
        outcome = self.world.outcome(spec)
        if isinstance(outcome, Measurement):
            outcome = replace(outcome, score=outcome.score + self.world.nodes(self.name, ends))
        run = TrialRun(outcome, ends - TRIAL_S, ends, "log")
        fact = TrialFinished(
            spec.id, spec.candidate, spec.experiment, spec.seed, spec.purpose, self.info.uid, PLATFORM.id, 2,
            block.id if block else "", block.fence if block else 0, run.started_at, run.ended_at, run.outcome, run.log,
        )  # fmt: skip
        self.produced.append(fact.key)
        if block is None:
            self._keep([fact, *self.researcher.finished(spec, run, ends)])
        else:
            self.leases[block.id][1].pop(0)
            if spec.purpose in ("calibrate", "confirm") and isinstance(run.outcome, Measurement):
                self.kept[spec.id] = spec
            self._keep([fact])

    def disturb(self) -> None:
        """Something outside kills the running trial."""
        if self.current is None:
            return
        spec, block, _ = self.current
        self.current = None
        failure = Failure("machinery", "lost", "killed from outside")
        if block is None:
            self._keep(
                self.researcher.finished(spec, TrialRun(failure, self.world.now, self.world.now, ""), self.world.now)
            )
        else:
            del self.leases[block.id]
            self._keep([TrialDisturbed(spec.id, self.info.uid, 1, failure, self.world.now)])

    def _release(self) -> None:
        for key, (block, left) in list(self.leases.items()):
            if not left and not any(f"trial:{spec.id}" in self.spool for spec in block.trials):
                del self.leases[key]

    def _keep(self, facts: list[Fact]) -> None:
        for fact in facts:
            self.spool[fact.key] = fact
        self.memory = self.researcher.memory


class SimulatedCluster:
    """The Cluster port over simulated nodes."""

    def __init__(self, nodes: list[SimulatedNode]) -> None:
        self.by_id = {f"ray-{node.name}-0": node for node in nodes}
        self.away: set[str] = set()  # partitioned: silent, but alive
        self.dead_agents: set[str] = set()
        self.head_away = False
        self.appointed: set[str] = set()

    def nodes(self) -> list[Member]:
        if self.head_away:
            raise ClusterError("the head does not answer")
        return [
            Member(member, node.name, "127.0.0.1") for member, node in self.by_id.items() if member not in self.away
        ]

    def exchange(self, orders: Mapping[str, bytes], timeout_s: float) -> dict[str, bytes | Silence]:
        if self.head_away:
            raise ClusterError("the head does not answer")
        return {member: self._call(member, data) for member, data in orders.items()}

    def _call(self, member: str, data: bytes) -> bytes | Silence:
        if member not in self.by_id or member in self.dead_agents:
            self.appointed.discard(member)
            return Silence("the agent died", dead=True)
        if member in self.away:
            return Silence("no answer", dead=False)
        assert member in self.appointed
        return self.by_id[member].exchange(data)

    def appoint(self, node_id: str, setup: bytes) -> None:
        unpack(setup, Setup)
        self.dead_agents.discard(node_id)
        self.appointed.add(node_id)

    def dismiss(self, node_id: str) -> None:
        self.appointed.discard(node_id)

    def close(self) -> None: ...

    def kill_agent(self, member: str) -> None:
        self.by_id[member].restart()
        self.dead_agents.add(member)

    def rejoin(self, member: str) -> str:
        """The machine came back: the same disk, a new Ray node id."""
        node = self.by_id.pop(member)
        name, _, count = member.rpartition("-")
        node.restart()
        fresh = f"{name}-{int(count) + 1}"
        self.by_id[fresh] = node
        self.away.discard(member)
        return fresh


class Silent:
    """A watcher that only looks."""

    def facts(self, facts: object) -> None: ...

    def tick(self, mind: Mind, now: float) -> None: ...


class MoodyForge(LocalForge):
    """A forge that is sometimes away."""

    away = False
    unwanted: Callable[[Request], bool] = staticmethod(lambda request: False)
    """Whose requests a person closes before they are merged."""

    def prepare(self, repo: Path, commit: str) -> None:
        self._answer()
        super().prepare(repo, commit)

    def open(self, repo: Path, request: Request) -> Opened:
        self._answer()
        opened = super().open(repo, request)
        if self.unwanted(request):
            self._close(opened.name)
        return opened

    def _close(self, name: str) -> None:
        """As docs/forges.md tells people to."""
        behind = Repo(self._path)
        tip, path = behind.ref("swarm/requests") or "", f"{int(name.partition('#')[2]):04d}.json"
        page = json.loads(behind.read(tip, path) or "")
        closed = {path: json.dumps({**page, "state": "closed"})}
        veto = behind.commit(closed, parents=[tip], message="Veto", author="x <x@x>", at=1.0)
        behind.set_ref("swarm/requests", veto)

    def merge(self, repo: Path, request: Request) -> str:
        self._answer()
        return super().merge(repo, request)

    def publish(self, files: Mapping[str, str], message: str) -> str:
        self._answer()
        return super().publish(files, message)

    def _answer(self) -> None:
        if self.away:
            raise ForgeError("the forge does not answer")


class Killed(BaseException):
    """The coordinator dies here."""


@dataclass
class Swarm:
    """A whole study in a folder, to be run, killed and resumed."""

    folder: Path
    world: World
    nodes: int = 2
    scale: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)
    faults: Callable[["Swarm", int], None] = lambda swarm, tick: None

    def __post_init__(self) -> None:
        self.task_folder = self.folder / "task"
        self.task_folder.mkdir(parents=True)
        (self.task_folder / "train.py").write_text(self.world.source())
        (self.task_folder / "task.toml").write_text(
            'name = "toy"\neditable = ["train.py"]\n[commands]\ntrain = "train.py"\n'
            '[metric]\nname = "val_bpb"\ndirection = "minimize"\nscore = "printed"\n'
            f"pattern = '^val_bpb:\\s*(\\S+)'\n[budget]\nseconds = 10.0\n[transfer]\nscale = \"{self.scale}\"\n"
        )
        nodes = [SimulatedNode(self.world, f"n{i}", "toy-1", i) for i in range(self.nodes)]
        self.cluster = SimulatedCluster(nodes)
        self.sim_nodes = nodes
        self.forge = MoodyForge(self.folder / "toy-1" / "repo.git", clock=self.world.clock)
        self.ticks = 0

    def config(self) -> Config:
        plain: dict[str, object] = {"study": "toy", "seed": 3, "stop": {"wall_minutes": 20, "final_minutes": 3}}
        plain["nodes"] = {"poll_s": 1.0}
        return parse_config({**plain, **self.settings}, "test")

    def run(self) -> Service:
        """One coordinator's life: to the end of the study, or until a fault raises Killed."""
        study = Study(self.folder / "toy-1", "toy-1", self.config(), load_task(self.task_folder), self.task_folder)
        ledger = Ledger(study.ledger_path)
        service = Service(
            study=study,
            ledger=ledger,
            cluster=self.cluster,
            forge=self.forge,
            watcher=Silent(),
            clock=self.world.clock,
            pause=self._pause,
            pages_every_s=PAGES_EVERY_S,
        )
        try:
            service.run()
        finally:
            ledger.close()
        return service

    def _pause(self, seconds: float) -> None:
        self.ticks += 1
        self.world.pause(seconds)
        for node in self.sim_nodes:
            node.live()
        self.faults(self, self.ticks)

    def facts(self) -> tuple[Fact, ...]:
        with Ledger(self.folder / "toy-1" / "ledger.sqlite", read_only=True) as ledger:
            return ledger.facts()

    def produced(self) -> list[str]:
        """Keys of every trial that any node finished."""
        return [key for node in self.sim_nodes for key in node.produced]


__all__ = ["Killed", "Swarm", "World", "replace"]
