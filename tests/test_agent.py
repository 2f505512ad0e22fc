"""The real agent with real trials of a tiny script: what it runs, offers, survives and refuses."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

import pytest
from standins.agents import host
from toy_task import any_running, read_pids

from node.agent import BYTES_PER_REPORT, Agent
from node.home import study_home
from node.researcher import Memory
from swarm.codec import pack, unpack
from swarm.errors import StaleEpoch
from swarm.ledger import Spool
from swarm.records import (
    Admission,
    Block,
    Brief,
    ExperimentAdmitted,
    Fact,
    Limits,
    Measurement,
    Orders,
    Report,
    Screened,
    Setup,
    Spent,
    TrialDisturbed,
    TrialFinished,
    TrialSpec,
    Trouble,
    candidate_id,
)

TRAIN = "STEP = 0\nimport os\nprint('score:', 2.0 - STEP * 1e-6)\n"
SLOW = f"import os, time\nopen({{pids!r}}, 'a').write(f'{{{{os.getpid()}}}}\\n')\ntime.sleep(60)\n{TRAIN}"
KILLED = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
TASK = """
name = "tiny"
editable = ["train.py"]
[commands]
train = "train.py"
[metric]
name = "score"
score = "printed"
pattern = '^score: (\\S+)'
[budget]
seconds = 20.0
"""
PATIENCE_S = 30.0
F = TypeVar("F", bound=Fact)


class Answers(Protocol):
    """An agent, here or in another process."""

    def exchange(self, orders: bytes) -> bytes:
        """Carry out the orders, report."""


@dataclass
class Boss:
    """A coordinator as an agent sees one: admits everything, acknowledges what it was told to."""

    agent: Answers
    epoch: int = 1
    brief: Brief | None = None
    acks: bool = True
    admits: bool = True
    drain: bool = False
    facts: dict[str, Fact] = field(default_factory=dict)
    last: Report | None = None

    def call(self, **changes: object) -> Report:
        """One exchange."""
        known = self.last
        orders = Orders(self.epoch, drain=self.drain)
        if known is not None and self.acks:
            orders = replace(orders, acks=tuple(fact.key for fact in known.facts))
        if known is not None and self.admits:
            orders = replace(orders, admissions=tuple(Admission(p.idea, True) for p in known.proposals))
        if self.brief is not None and known is not None and known.ready and self.brief.version != known.brief:
            orders = replace(orders, brief=self.brief)
        self.last = unpack(self.agent.exchange(pack(replace(orders, **changes))), Report)  # type: ignore[arg-type]
        self.facts.update((fact.key, fact) for fact in self.last.facts)
        return self.last

    def until_judged(self, count: int) -> None:
        """Until so many ideas were judged."""
        self.until(lambda report: len(self.of(Screened)) >= count, f"{count} ideas are judged")

    def until(self, holds: Callable[[Report], object], what: str) -> Report:
        """Call until it is true."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds(report := self.call()):
            assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}; {report.idle}; {self.facts}"
            time.sleep(0.02)
        return report

    def of(self, kind: type[F]) -> list[F]:
        return [fact for fact in self.facts.values() if isinstance(fact, kind)]


def brief(train: str = TRAIN, version: str = "1") -> Brief:
    files = {"train.py": train}
    return Brief(version, candidate_id(files), files, "", 1e-9, 0.35, 20.0, (), {}, (), (), True)


def setup(train: str = TRAIN, proposer: str = "Counter", **changes: object) -> bytes:
    files = {"train.py": train.encode(), "task.toml": TASK.encode()}
    plain = Setup(
        study="toy-1",
        seed=3,
        direction="minimize",
        opened_at=1.0,
        task_files=files,
        proposer=f"standins.agents:{proposer}",
        sandbox="bare",
        wall_limit_s=20.0,
        memory_mb=500,
    )
    return pack(replace(plain, **changes))  # type: ignore[arg-type]  # replace() checks the names


def block(*trains: str, purpose: str = "confirm") -> Block:
    limits = Limits(cpu_s=20, wall_s=20, memory_mb=500)
    specs = tuple(
        TrialSpec(f"trial-{n}", candidate_id({"train.py": t}), 7, purpose, {"train.py": t}, limits)  # type: ignore[arg-type]
        for n, t in enumerate(trains)
    )
    return Block("block-1", 5, specs)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SWARM_NODE_NAME", "ant")
    return tmp_path / "home"


@pytest.fixture
def hire(home: Path) -> Iterator[Callable[..., Boss]]:
    """Agents in this process; afterwards they are told to run nothing more."""
    bosses: list[Boss] = []

    def make(train: str = TRAIN, proposer: str = "Counter", **changes: object) -> Boss:
        boss = Boss(Agent(setup(train, proposer, **changes)), brief=brief(train))
        bosses.append(boss)
        return boss

    yield make
    for boss in bosses:
        boss.drain, boss.epoch = True, 99
        boss.until(lambda report: report.drained, "the agent drains")


def test_it_explores_by_itself(hire: Callable[..., Boss]) -> None:
    boss = hire()
    boss.until(lambda report: len(boss.of(Screened)) >= 3, "three ideas are judged")
    trials = boss.of(TrialFinished)
    assert trials[0].purpose == "reference" and {t.purpose for t in trials[1:]} == {"screen"}
    assert all(isinstance(t.outcome, Measurement) and t.outcome.self_reported for t in trials)
    assert len({t.seed for t in trials}) == 1
    assert boss.of(Spent), "what asking cost is told"


def test_code_that_asks_for_more_than_its_sandbox_keeps_does_not_run_on_a_node(hire: Callable[..., Boss]) -> None:
    boss = hire(level_needed=1)
    boss.until(lambda report: boss.of(Trouble), "the node says why")
    assert "level 0" in boss.of(Trouble)[0].message and boss.last is not None and not boss.last.ready


def test_unless_the_owner_of_the_node_trusts_it_which_is_on_record(
    hire: Callable[..., Boss], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWARM_TRUST_CODE", "1")
    boss = hire(level_needed=1)
    node = boss.until(lambda report: report.ready, "the agent is ready").node
    assert (node.sandbox_level, node.trusting) == (0, True)


def test_a_block_comes_before_own_exploration_and_is_not_interrupted(hire: Callable[..., Boss]) -> None:
    boss = hire()
    boss.brief = None
    boss.until(lambda report: report.ready, "the agent is ready")
    boss.call(brief=brief(), blocks=(block(TRAIN, TRAIN + "#\n", TRAIN + "##\n"),))
    boss.until(lambda report: len(boss.of(TrialFinished)) >= 5, "the block and some ideas")
    in_order = sorted(boss.of(TrialFinished), key=lambda t: t.started_at)
    assert [t.trial for t in in_order[:3]] == ["trial-0", "trial-1", "trial-2"]
    assert {t.fence for t in in_order[:3]} == {5} and {t.block for t in in_order[:3]} == {"block-1"}
    assert in_order[3].purpose == "reference"


def test_facts_are_offered_and_a_block_is_held_until_they_are_acknowledged(hire: Callable[..., Boss]) -> None:
    boss = hire()
    boss.brief, boss.acks = None, False
    boss.until(lambda report: report.ready, "the agent is ready")
    boss.call(blocks=(block(TRAIN),))
    first = boss.until(lambda report: report.facts, "the trial ends")
    again = boss.call()
    assert again.facts == first.facts and again.holding == ("block-1",)
    boss.acks = True
    boss.call()
    assert boss.call().facts == () and boss.call().holding == ()
    boss.call(blocks=(block(TRAIN),))  # the answer to an earlier call was lost: the same orders again
    boss.until(lambda report: not report.holding, "it is given back")
    assert len(boss.of(TrialFinished)) == 1


def test_a_disturbed_trial_ends_its_block(hire: Callable[..., Boss]) -> None:
    boss = hire()
    boss.brief = None
    boss.until(lambda report: report.ready, "the agent is ready")
    boss.call(blocks=(block(TRAIN, KILLED, TRAIN),))
    boss.until(lambda report: boss.of(TrialDisturbed) and not report.holding, "it is given back")
    assert [t.trial for t in boss.of(TrialFinished)] == ["trial-0"]


def test_an_older_coordinator_is_refused(hire: Callable[..., Boss]) -> None:
    boss = hire()
    boss.epoch = 2
    boss.call()
    with pytest.raises(StaleEpoch):
        boss.call(epoch=1, drain=True)
    assert not boss.call().drained, "its orders had no effect"


def test_drain_stops_the_running_trial_within_a_second(hire: Callable[..., Boss], tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    boss = hire(SLOW.format(pids=str(pids)))
    boss.until(lambda report: read_pids(pids), "the trial runs")
    began = time.monotonic()
    boss.drain = True
    boss.until(lambda report: report.drained, "the agent drains")
    assert time.monotonic() - began < 1.0
    assert not any_running(read_pids(pids))
    boss.drain = False
    boss.until(lambda report: len(read_pids(pids)) > 1, "it goes on when the coordinator is back")


def test_drained_means_that_nothing_follows(hire: Callable[..., Boss]) -> None:
    boss = hire()
    for number in range(4):
        boss.drain = False
        boss.until_judged(2 * number)
        boss.drain = True
        boss.until(lambda report: report.drained, "the agent drains")
        told = len(boss.facts)
        for _ in range(10):
            assert boss.call().drained
        assert len(boss.facts) == told


def test_it_goes_on_while_nobody_calls(hire: Callable[..., Boss]) -> None:
    boss = hire(admission_grace_s=0.2)
    boss.admits = False
    boss.until(lambda report: report.brief, "it has heard a brief")
    spool = Spool(study_home(unpack(setup(), Setup)) / "spool.sqlite")
    deadline = time.monotonic() + PATIENCE_S
    while sum(key.startswith("screened:") for key in spool.produced()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    spool.close()
    boss.until(lambda report: len(boss.of(Screened)) >= 3, "it tells afterwards")
    alone = {fact.proposal.idea for fact in boss.of(ExperimentAdmitted)}
    assert {fact.experiment for fact in boss.of(Screened)[:3]} <= alone


def test_a_proposer_that_fails_is_told_of_and_asked_again(hire: Callable[..., Boss]) -> None:
    boss = hire(proposer="Moody")
    boss.until(lambda report: boss.of(Screened), "an idea is judged")
    told = [fact.message for fact in boss.of(Trouble)]
    assert told[0] == "no idea today" and told[1].startswith("ZeroDivisionError: a bug of its own")


@pytest.mark.parametrize("proposer", ["Babbler", "Parrot", "Missing"])
def test_a_hopeless_proposer_costs_no_trial_and_no_more_than_a_word(proposer: str, hire: Callable[..., Boss]) -> None:
    boss = hire(proposer=proposer)
    boss.until(lambda report: boss.of(Trouble) and boss.of(TrialFinished), "it is told of")
    assert {trial.purpose for trial in boss.of(TrialFinished)} == {"reference"}
    assert len(boss.of(Trouble)) == 1
    assert boss.call(blocks=(block(TRAIN),)).holding == ("block-1",)
    boss.until(lambda report: not report.holding, "the node still works for others")


def test_a_machine_that_fails_again_and_again_is_given_a_rest(hire: Callable[..., Boss]) -> None:
    boss = hire(KILLED)
    boss.until(lambda report: report.idle.startswith("resting"), "the node rests")
    assert 2 <= len(boss.of(TrialDisturbed)) <= 4


def test_a_broken_task_is_told_of_and_the_node_is_never_ready(hire: Callable[..., Boss]) -> None:
    boss = hire(task_files={"task.toml": b"name = 'tiny'"})
    boss.until(lambda report: boss.of(Trouble), "it is told of")
    assert not boss.call().ready
    assert boss.of(Trouble)[0].where == "worker on ant"


def test_a_report_is_cut_to_what_travels_well(hire: Callable[..., Boss]) -> None:
    boss = hire("print('x' * 100_000)\n" + TRAIN)
    boss.acks = False
    boss.until(lambda report: len(boss.of(TrialFinished)) >= 3, "trials run")
    spool = Spool(study_home(unpack(setup(), Setup)) / "spool.sqlite")
    long = [replace(boss.of(TrialFinished)[0], trial=f"long-{n}", log="y" * 8000) for n in range(30)]
    spool.put(long)
    spool.close()
    report = boss.call()
    assert 0 < sum(len(pack(fact)) for fact in report.facts) <= BYTES_PER_REPORT
    boss.acks = True
    boss.until(lambda report: sum(t.trial.startswith("long") for t in boss.of(TrialFinished)) == 30, "all arrive")


def test_another_study_of_the_same_name_begins_anew(home: Path) -> None:
    first = study_home(unpack(setup(), Setup))
    (first / "spool.sqlite").write_text("what the first study left")
    assert study_home(unpack(setup(), Setup)) == first
    assert (first / "spool.sqlite").exists()
    second = study_home(unpack(setup(opened_at=2.0), Setup))
    assert second == first and not (second / "spool.sqlite").exists()
    assert [path.read_text() for path in home.glob("*/spool.sqlite")] == ["what the first study left"]


def test_a_memory_that_cannot_be_read_is_replaced_and_trial_ids_stay_new(hire: Callable[..., Boss]) -> None:
    spool = Spool(study_home(unpack(setup(), Setup)) / "spool.sqlite")
    spool.put([], memory=b"of another version")
    spool.close()
    boss = hire()
    boss.until(lambda report: boss.of(Screened), "it explores")
    spool = Spool(study_home(unpack(setup(), Setup)) / "spool.sqlite")
    memory = unpack(spool.memory() or b"", Memory)
    spool.close()
    assert memory.sequence > 1_000_000


class Hosted:
    """An agent in a process of its own."""

    def __init__(self, data: bytes, environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=host, args=(there, data, environment), daemon=True)
        self.process.start()
        there.close()

    def exchange(self, orders: bytes) -> bytes:
        self.pipe.send_bytes(orders)
        return self.pipe.recv_bytes()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def test_killed_at_any_moment_it_goes_on_and_tells_everything_once(home: Path, tmp_path: Path) -> None:
    environment = {"SWARM_NODE_HOME": str(home), "SWARM_NODE_NAME": "ant"}
    told: dict[str, Fact] = {}
    judged = 0
    for life in range(4):
        agent = Hosted(setup(), environment)
        boss = Boss(agent, epoch=life + 1, brief=brief(), facts=told, acks=life != 1)
        boss.until_judged(judged + 1)
        judged = len(boss.of(Screened))
        agent.kill()
    spool = Spool(study_home(unpack(setup(), Setup)) / "spool.sqlite")
    left = {fact.key for fact in spool.offered(1000, 10**9)}
    assert set(told) | left == spool.produced()
    spool.close()
    trials = [fact.trial for fact in told.values() if isinstance(fact, TrialFinished)]
    assert len(set(trials)) == len(trials)
    references = [fact for fact in told.values() if isinstance(fact, TrialFinished) and fact.purpose == "reference"]
    assert len(references) == 1, "what it knew of the champion survived"
