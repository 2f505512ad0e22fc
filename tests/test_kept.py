"""Artifacts on a node: kept until nobody asks for them, bounded, and scored on the holdout without a trace."""

import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import toy_task as toy

from node import kept as kept_module
from node.agent import Agent
from node.kept import Kept
from node.trial import Workshop, run_trial, score_on_holdout
from swarm.codec import pack, unpack
from swarm.records import Block, Failure, Measurement, Orders, Report, Setup, TrialFinished, TrialSpec
from swarm.task import bundle

PATIENCE_S = 30.0


def favoured(start: int) -> float:
    """What `toy.FAVOURS_NEXT` scores on the split whose tokens begin with `start`."""
    return toy.bits_per_byte(start, lambda a, b: 3 / 7 if b == (a + 1) % toy.VOCABULARY else 1 / 7)


def confirming(trial: str = "trial-1", train: str = toy.HONEST) -> TrialSpec:
    return replace(toy.spec_of(train), id=trial, purpose="confirm")


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return toy.workshop_at(tmp_path, toy.answers_task(tmp_path / "task", toy.FAVOURS_NEXT))


def left_by(spec: TrialSpec, kept: Kept, workshop: Workshop) -> Measurement:
    """Run a trial that keeps its artifact."""
    outcome = run_trial(spec, workshop=workshop, keep=kept.place(spec)).outcome
    kept.settle(spec)
    assert isinstance(outcome, Measurement), outcome
    return outcome


# --- scoring it again ------------------------------------------------------------------------------------


def test_what_a_trial_left_is_scored_on_the_split_that_no_trial_sees(tmp_path: Path, workshop: Workshop) -> None:
    kept = Kept(tmp_path / "kept")
    measured = left_by(confirming(), kept, workshop)
    assert measured.score == pytest.approx(favoured(2), abs=1e-7)
    kept.obey({"trial-1": measured.artifact}, ())
    asked = kept.next()
    assert asked is not None
    run = score_on_holdout(asked.spec, asked.artifact, asked.identity, workshop=workshop)
    assert isinstance(run.outcome, Measurement) and run.outcome.audited and run.outcome.artifact == measured.artifact
    assert run.outcome.score == pytest.approx(favoured(3), abs=1e-7)


def test_what_was_changed_since_is_nobodys_fault_but_is_not_scored(tmp_path: Path, workshop: Workshop) -> None:
    kept = Kept(tmp_path / "kept")
    measured = left_by(confirming(), kept, workshop)
    (tmp_path / "kept" / "trial-1" / "artifact" / "model.pt").write_bytes(b"better weights")
    outcome = score_on_holdout(
        confirming(), tmp_path / "kept" / "trial-1" / "artifact", measured.artifact, workshop=workshop
    ).outcome
    assert isinstance(outcome, Failure) and outcome.blame == "machinery"


def test_what_it_prints_about_the_holdout_is_thrown_away(tmp_path: Path) -> None:
    tells = toy.UNIFORM.replace("    answer(", "    print(tokens, file=sys.stderr)\n    answer(", 1)
    workshop = toy.workshop_at(tmp_path, toy.answers_task(tmp_path / "task", tells))
    kept = Kept(tmp_path / "kept")
    spec = confirming()
    first = run_trial(spec, workshop=workshop, keep=kept.place(spec))
    assert isinstance(first.outcome, Measurement)
    artifact = tmp_path / "kept" / spec.id / "artifact"
    again = score_on_holdout(spec, artifact, first.outcome.artifact, workshop=workshop)
    assert isinstance(again.outcome, Measurement) and again.log == ""


# --- keeping ---------------------------------------------------------------------------------------------


def put(kept: Kept, *trials: str) -> None:
    """Something small is kept of each."""
    for trial in trials:
        spec = confirming(trial)
        artifact = kept.place(spec)
        artifact.mkdir()
        (artifact / "model.pt").write_bytes(b"x" * 100)
        kept.settle(spec)


def test_what_is_kept_survives_a_restart_and_answers_do_not(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    put(kept, "a", "b")
    kept.answer("a", Failure("machinery", "lost", ""))
    again = Kept(tmp_path)
    assert again.trials() == ("a", "b") and not again.answers()


def test_what_a_killed_trial_began_to_keep_is_swept(tmp_path: Path) -> None:
    Kept(tmp_path).place(confirming("killed"))
    assert Kept(tmp_path).trials() == () and not any(tmp_path.iterdir())


def test_a_trial_that_left_nothing_is_not_kept(tmp_path: Path) -> None:
    kept, spec = Kept(tmp_path), confirming()
    kept.place(spec)
    kept.settle(spec)
    assert kept.trials() == () and not any(tmp_path.iterdir())


def test_a_released_trial_is_gone_with_its_answer(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    put(kept, "a", "b")
    kept.answer("a", Failure("machinery", "lost", ""))
    kept.obey({}, ("a", "never kept"))
    assert kept.trials() == ("b",) and not kept.answers()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_the_oldest_go_when_there_are_too_many_or_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_module, "MOST_TRIALS", 3)
    kept = Kept(tmp_path / "many")
    put(kept, "d", "c", "b", "a")
    assert kept.trials() == ("a", "b", "c")
    monkeypatch.setattr(kept_module, "MOST_BYTES", 250)
    put(kept, "z")
    assert kept.trials() == ("a", "z")


def test_only_what_is_asked_about_kept_and_unanswered_comes_next(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    put(kept, "a", "b")
    assert kept.next() is None
    kept.obey({"gone": "1", "b": "2"}, ())
    asked = kept.next()
    assert asked is not None and (asked.spec, asked.identity) == (confirming("b"), "2")
    kept.answer("b", Failure("machinery", "lost", ""))
    assert kept.next() is None


# --- the agent -------------------------------------------------------------------------------------------


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """An agent of a task whose scores are ours; afterwards it is told to run nothing more."""
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SWARM_NODE_NAME", "ant")
    agent = Agent(pack(setup(tmp_path)))
    yield agent
    until(agent, Orders(9, drain=True), lambda report: report.running is None)


def setup(tmp_path: Path) -> Setup:
    toy.write_data(tmp_path / "data")
    return Setup(
        study="toy-1",
        seed=3,
        direction="minimize",
        task_files=bundle(toy.answers_task(tmp_path / "task", toy.FAVOURS_NEXT)),
        proposer="standins.agents:Counter",
        sandbox="bare",
        data=str(tmp_path / "data"),
        wall_limit_s=20.0,
    )


def until(agent: Agent, orders: Orders, holds: Callable[[Report], object]) -> Report:
    """Say the same until it is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds(report := unpack(agent.exchange(pack(orders)), Report)):
        assert time.monotonic() < deadline, report
        time.sleep(0.02)
    return report


def test_an_agent_keeps_answers_when_asked_and_lets_go_when_released(agent: Agent, tmp_path: Path) -> None:
    until(agent, Orders(1), lambda report: report.ready)
    own, champion = replace(confirming("two"), purpose="screen"), replace(confirming("three"), purpose="calibrate")
    block = Block("block-1", 1, (confirming("one"), own, champion))
    finished = until(agent, Orders(1, blocks=(block,)), lambda report: len(report.facts) == 3)
    assert finished.kept == ("one", "three"), "a screening leaves nothing"
    assert not finished.holdout, "nobody has asked"
    trial = next(fact for fact in finished.facts if isinstance(fact, TrialFinished) and fact.trial == "one")
    assert isinstance(trial.outcome, Measurement)
    told = until(agent, Orders(1, holdout={"one": trial.outcome.artifact}), lambda report: report.holdout)
    answer = told.holdout["one"]
    assert isinstance(answer, Measurement) and answer.audited and answer.artifact == trial.outcome.artifact
    assert answer.score == pytest.approx(favoured(3), abs=1e-7)
    assert told.facts == finished.facts, "it is no fact"
    written = b"".join(path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file())
    assert struct.pack(">d", trial.outcome.score) in written
    assert struct.pack(">d", answer.score) not in written, "nor written down anywhere"
    gone = until(agent, Orders(1, release=("one", "three")), lambda report: not report.kept)
    assert not gone.holdout
