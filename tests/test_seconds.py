"""A budget in wall seconds: get ready without a token in sight, then the clock. Real processes of a toy task."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy_task as toy
from hypothesis import given
from hypothesis import strategies as st
from test_sandbox import available

from node.data import write_documents
from node.hardware import platform_of
from node.sandbox.bwrap import Bwrap
from node.trial import GRACE_S, TrialRun, Workshop, run_trial
from swarm.errors import TaskError
from swarm.records import Failure, Measurement
from swarm.task import load_task

SECONDS, COMPILE_SECONDS = 0.1, 20.0
DOCUMENTS = np.array([0, 1, 700, 1000, 2999], dtype="<u8")  # of the toy's 3000 training tokens

GETS_READY = """
import os, sys, time
from pathlib import Path
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
out, budget = Path(options["--out"]), Path(options["--budget"])
print("shown before:", sorted(os.listdir(options["--data"])), sorted(os.listdir(budget.parent)), flush=True)
"""
TRAINS = """
(out / "ready").touch()
while not budget.exists():
    time.sleep(0.002)
(out / "model.pt").write_bytes(budget.read_bytes()[:64])
print("trained on", budget.stat().st_size // 2, "tokens")
"""
HONEST = GETS_READY + TRAINS


@pytest.fixture
def timed(tmp_path: Path) -> Workshop:
    folder = toy.answers_task(tmp_path / "task")
    edit(folder, "[budget]", f"[budget]\nseconds = {SECONDS}\ncompile_seconds = {COMPILE_SECONDS}")
    workshop = toy.workshop_at(tmp_path, folder)
    assert workshop.data is not None
    np.save(workshop.data.folder / "train" / "documents.npy", DOCUMENTS)
    (workshop.data.folder / "train" / "meta.json").write_text("{}")
    return workshop


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "task.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def run(workshop: Workshop, train: str, cpu_s: float = 20.0) -> TrialRun:
    return run_trial(toy.spec_of(train, cpu_s=cpu_s), workshop=workshop)


# --- ready, late, never ready, overrun ---


def test_who_is_ready_gets_its_tokens_and_sees_none_before(timed: Workshop) -> None:
    done = run(timed, HONEST)
    assert isinstance(done.outcome, Measurement), done.outcome
    assert done.log == f"shown before: ['meta.json'] []\ntrained on {toy.TOKENS} tokens\n"
    again = run(timed, HONEST + "(out / 'ready').unlink(missing_ok=True)\n").outcome
    assert isinstance(again, Measurement)
    assert again.artifact == done.outcome.artifact  # the sign is no part of what training left


def test_walls_hide_the_stream_until_the_clock_starts(timed: Workshop) -> None:
    walls = replace(timed, sandbox=available(Bwrap))
    look = "print(sorted(os.listdir(budget.parent.parent)), flush=True)\n"
    done = run(walls, GETS_READY + look + TRAINS)
    assert isinstance(done.outcome, Measurement), done.outcome
    assert "['box', 'code', 'facts', 'released']" in done.log
    assert f"trained on {toy.TOKENS} tokens" in done.log


def test_getting_ready_takes_nothing_from_the_seconds(timed: Workshop) -> None:
    compiles = f"time.sleep({SECONDS + GRACE_S + 0.2})\n"
    done = run(timed, GETS_READY + compiles + TRAINS)
    assert isinstance(done.outcome, Measurement), done.outcome


def test_cpu_time_is_no_limit_where_the_wall_clock_is(timed: Workshop) -> None:
    burns = "while time.process_time() < 0.6: pass\n"
    outcome = run(timed, GETS_READY + burns + TRAINS, cpu_s=0.3).outcome
    assert isinstance(outcome, Measurement), outcome
    assert outcome.cpu_s > 0.5


LATE = GETS_READY + "time.sleep(60)\n"
OVERRUN = HONEST + "time.sleep(60)\n"


@pytest.mark.parametrize(
    ("train", "compile_seconds", "reason", "words"),
    [
        (LATE, 0.5, "timeout", "not ready for its tokens within 0.5 s"),
        (OVERRUN, COMPILE_SECONDS, "timeout", f"ran longer than {SECONDS + GRACE_S:.1f} s"),
        (GETS_READY, COMPILE_SECONDS, "rule", "ended without the file ready"),
        (GETS_READY + "sys.exit('no compiler')\n", COMPILE_SECONDS, "crash", "no compiler"),
        (HONEST + "sys.exit('out of memory')\n", COMPILE_SECONDS, "crash", "out of memory"),
    ],
    ids=["late", "overrun", "never ready", "crash before", "crash after"],
)
def test_who_fails_is_told_in_which_of_the_two_times(
    timed: Workshop, train: str, compile_seconds: float, reason: str, words: str
) -> None:
    shop = replace(timed, task=replace(timed.task, compile_seconds=compile_seconds))
    done = run(shop, train)
    assert isinstance(done.outcome, Failure), done.outcome
    assert (done.outcome.blame, done.outcome.reason) == ("candidate", reason)
    assert words in done.outcome.message
    assert list(timed.scratch.iterdir()) == []


def test_a_sign_that_is_no_file_breaks_a_rule_and_nothing_else(timed: Workshop) -> None:
    outcome = run(timed, HONEST.replace('(out / "ready").touch()', '(out / "ready").mkdir()')).outcome
    assert isinstance(outcome, Failure)
    assert (outcome.blame, outcome.reason) == ("candidate", "rule")


def test_data_without_documents_is_not_the_candidates_fault(timed: Workshop) -> None:
    assert timed.data is not None
    (timed.data.folder / "train" / "documents.npy").unlink()
    outcome = run(timed, HONEST).outcome
    assert isinstance(outcome, Failure)
    assert outcome.blame == "machinery"


# --- the stream ---


@given(
    seed=st.integers(0, 2**63), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8), count=st.integers(1, 60)
)
def test_documents_come_whole_each_once_before_any_comes_again(
    tmp_path_factory: pytest.TempPathFactory, seed: int, lengths: list[int], count: int
) -> None:
    folder = tmp_path_factory.mktemp("documents")
    # Document d is d, d + 100, d + 200, ...: the tokens tell where they are from.
    documents = [[d + 100 * i for i in range(length)] for d, length in enumerate(lengths)]
    np.array(sum(documents, []), dtype="<u2").tofile(folder / "tokens.bin")
    np.save(folder / "documents.npy", np.cumsum([0, *lengths[:-1]]).astype("<u8"))
    write_documents(folder / "stream.bin", folder, seed, count)
    stream = np.fromfile(folder / "stream.bin", dtype="<u2").tolist()
    assert len(stream) == count
    order = [token for token in stream if token < 100]  # the first token of each document
    assert stream == sum((documents[d] for d in order), [])[:count]
    for start in range(0, len(order), len(documents)):
        turn = order[start : start + len(documents)]
        assert len(set(turn)) == len(turn)


def test_the_seed_draws_the_order(timed: Workshop, tmp_path: Path) -> None:
    assert timed.data is not None
    streams = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_documents(tmp_path / name, timed.data.folder / "train", seed, 1300)
        streams.append((tmp_path / name).read_bytes())
    assert streams[0] == streams[1] != streams[2]


# --- the task ---


def test_a_platform_names_the_seconds(timed: Workshop) -> None:
    assert platform_of(timed.task, "", 1).budget == f"{SECONDS:g} s"
    assert timed.task.cpu_limit == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("compile_seconds = 20.0\n", ""), "budget.seconds needs budget.compile_seconds"),
        (lambda text: text.replace("seconds = 0.1\n", "", 1), "budget.compile_seconds belongs to budget.seconds"),
        (lambda text: text.replace(" --budget {budget}", ""), "budget.seconds needs {budget} in commands.train"),
    ],
    ids=["no allowance", "allowance alone", "no stream"],
)
def test_half_a_budget_in_seconds_is_refused(timed: Workshop, change: Callable[[str], str], words: str) -> None:
    path = timed.folder / "task.toml"
    path.write_text(change(path.read_text()))
    with pytest.raises(TaskError, match=words.replace("{", r"\{")):
        load_task(timed.folder)
