"""The scorer: its arithmetic against the obvious way, and what it does with answers that nobody should believe."""

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy_task as toy

from node.scoring import Questions, bits_per_byte, printed_score, read_questions, surprise
from node.trial import run_trial
from node.watch import TrialFailed
from swarm.records import Failure, Measurement, Outcome, Purpose


def outcome_of(tmp_path: Path, score: str, wall_s: float = 20.0) -> Outcome:
    workshop = toy.workshop_at(tmp_path, toy.answers_task(tmp_path / "task", score))
    return run_trial(toy.spec_of(toy.HONEST, wall_s=wall_s), workshop=workshop).outcome


def failure_of(tmp_path: Path, score: str, wall_s: float = 20.0) -> Failure:
    outcome = outcome_of(tmp_path, score, wall_s)
    assert isinstance(outcome, Failure)
    return outcome


# --- arithmetic ---


def test_uniform_predictions_cost_log2_of_the_vocabulary(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, toy.UNIFORM)
    assert isinstance(outcome, Measurement)
    assert outcome.score == pytest.approx(toy.bits_per_byte(2, lambda a, b: 1 / toy.VOCABULARY), abs=1e-9)
    assert not outcome.self_reported


def test_a_prediction_is_compared_with_the_token_after_it(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, toy.FAVOURS_NEXT)
    assert isinstance(outcome, Measurement)
    assert outcome.score == pytest.approx(favoured(2), abs=1e-7)


def favoured(start: int) -> float:
    return toy.bits_per_byte(start, lambda a, b: 3 / 7 if b == (a + 1) % toy.VOCABULARY else 1 / 7)


def test_every_target_is_asked_once_and_in_order(tmp_path: Path) -> None:
    data = toy.write_data(tmp_path)
    questions = read_questions(data.folder, "val", toy.WINDOW, toy.VAL_TOKENS)
    tokens = toy.stream(toy.VAL_TOKENS + 1, 2)
    assert questions.inputs.ravel().tolist() == tokens[:-1]
    assert questions.targets.ravel().tolist() == tokens[1:]


def test_the_arithmetic_agrees_with_float64(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    logits = (random.standard_normal((700, 1025)) * 8).astype(np.float32)
    targets = random.integers(0, 1025, 700).astype(np.uint16)
    token_bytes = np.arange(1025) % 5  # one in five is not scored
    wide = logits.astype(np.float64)
    expected = np.log2(np.exp(wide).sum(axis=1)) - wide[np.arange(700), targets] / math.log(2)
    bits = surprise(logits, targets)
    assert bits == pytest.approx(expected, rel=1e-6)
    questions = Questions(targets, targets, targets[:0], token_bytes)
    scored = token_bytes[targets] > 0
    assert bits_per_byte(bits, questions) == pytest.approx(
        expected[scored].sum() / token_bytes[targets].sum(), rel=1e-8
    )


def test_adding_a_constant_to_all_logits_gains_nothing() -> None:
    logits = np.random.default_rng(1).standard_normal((50, 10)).astype(np.float32)
    targets = np.zeros(50, dtype=np.uint16)
    plain = surprise(logits.copy(), targets)
    assert surprise(logits + 64, targets) == pytest.approx(plain, rel=1e-4)


def test_boundless_confidence_is_no_gain() -> None:
    logits = np.full((4, 3), -1e30, dtype=np.float32)
    logits[:, 0] = 1e30
    targets = np.array([0, 0, 0, 1], dtype=np.uint16)
    assert surprise(logits, targets).sum() > 1e30  # one error outweighs everything


# --- answers nobody should believe ---


@pytest.mark.parametrize(
    ("script", "reason", "words"),
    [
        (toy.WRONG_SHAPE, "scoring", "[16, ?, 5], not [16, 8, 5]"),
        (toy.WRONG_VOCABULARY, "scoring", "[16, 8, ?], not [16, 8, 5]"),
        (toy.WRONG_MAGIC, "scoring", "something else than an answer"),
        (toy.NOT_FINITE, "nan", "not finite"),
        (toy.INFINITE, "nan", "not finite"),
        (toy.HUGE, "nan", "probability of 0"),
        (toy.ENDS_EARLY, "scoring", "score: exit code 1"),
        ("raise SystemExit(0)", "scoring", "stopped answering"),
        ("import nothing_here", "scoring", "score: exit code 1: ModuleNotFoundError"),
    ],
)
def test_a_bad_answer_fails_the_candidate_at_once(tmp_path: Path, script: str, reason: str, words: str) -> None:
    before = time.monotonic()
    failure = failure_of(tmp_path, script)
    assert (failure.blame, failure.reason) == ("candidate", reason)
    assert words in failure.message
    assert time.monotonic() - before < 5


@pytest.mark.parametrize("script", [toy.NEVER_ANSWERS, toy.NEVER_READS])
def test_a_scoring_that_hangs_ends_at_its_limit(tmp_path: Path, script: str) -> None:
    before = time.monotonic()
    failure = failure_of(tmp_path, script, wall_s=1.0)
    assert (failure.blame, failure.reason) == ("candidate", "timeout")
    assert failure.message.startswith("score: ran longer")
    assert time.monotonic() - before < 4


HOLDS_UP = {
    # The question is longer than the pipe now: a write that waits for room would wait as long as the candidate likes.
    "by a pipe too short for a question": toy.ASKED + "    import fcntl\n"
    "    fcntl.fcntl(0, fcntl.F_SETPIPE_SZ, 4096)\n    answer(rows, window, [0.0] * (len(tokens) * V))\n"
    "    time.sleep(9)\n",
    # Whoever reads after it was told that there is something finds nothing, most of the time.
    "by taking back what it answers": "import os\nback = os.open('/proc/self/fd/1', os.O_RDONLY)\n"
    "for _ in range(10**6): os.write(1, b'x'); os.read(back, 1)\n",
}


@pytest.mark.parametrize("script", HOLDS_UP.values(), ids=HOLDS_UP.keys())
def test_nobody_holds_up_the_scorer_beyond_its_limit(tmp_path: Path, script: str) -> None:
    folder = toy.answers_task(tmp_path / "task", script)
    settings = (folder / "task.toml").read_text().replace("window = 8", "window = 256")
    (folder / "task.toml").write_text(settings.replace(f"val_tokens = {toy.VAL_TOKENS}", "val_tokens = 8192"))
    workshop = toy.workshop_at(tmp_path, folder)
    assert workshop.data is not None
    text = np.array(toy.stream(9000, 2), dtype="<u2")
    (workshop.data.folder / "val" / "tokens.bin").write_bytes(text.tobytes())
    before = time.monotonic()
    outcome = run_trial(toy.spec_of(toy.HONEST, wall_s=1.0), workshop=workshop).outcome
    assert isinstance(outcome, Failure) and outcome.blame == "candidate"
    assert time.monotonic() - before < 5


def test_a_scoring_that_leaves_its_pipe_to_a_child_is_not_waited_for(tmp_path: Path) -> None:
    leaves = "import os, time\nif os.fork() == 0:\n    time.sleep(60)\nos._exit(0)\n"
    before = time.monotonic()
    assert failure_of(tmp_path, leaves).reason == "scoring"
    assert time.monotonic() - before < 5


def test_the_answering_side_sees_no_target(tmp_path: Path) -> None:
    looks = (
        "import pathlib, sys\n"
        "here = {p.name for a in sys.argv[1:] if a[0] != '-' for p in pathlib.Path(a).parent.rglob('*')}\n"
        "targets = {'tokens.bin', 'token_bytes.npy'} & here\n"
        "raise KeyError if targets else EOFError if 'model.pt' in here else ValueError\n"
    )
    assert failure_of(tmp_path, looks).message == "score: exit code 1: EOFError"


TELLS = (
    "    print(f'leaked {tokens[:9]}', file=sys.stderr)\n",
    "    sys.exit(f'leaked {tokens[:9]}')\n",
    "    sys.exit(f'score: CandidateError: logits of shape (leaked, {tokens[0]})')\n",
    "    raise type(f'leaked{tokens[0]}Error', (Exception,), {})\n",
    "    answers.write(struct.pack('<IIII', tokens[0], *b'lea'))\n    sys.exit()\n",
    "    answers.write(struct.pack('<IIII', 0x53574D41, 123456, tokens[0], V))\n    sys.exit()\n",
)


@pytest.mark.parametrize("tells", TELLS)
@pytest.mark.parametrize("purpose", ["screen", "confirm"])
def test_nothing_of_the_scored_text_gets_into_what_proposers_read(tmp_path: Path, tells: str, purpose: Purpose) -> None:
    script = toy.UNIFORM.replace("    answer(rows", f"{tells}    answer(rows", 1)
    workshop = toy.workshop_at(tmp_path, toy.answers_task(tmp_path / "task", script))
    run = run_trial(replace(toy.spec_of(toy.HONEST), purpose=purpose), workshop=workshop)
    assert run.log.startswith("trained on") and len(run.log.splitlines()) == 1
    told = run.outcome.message if isinstance(run.outcome, Failure) else ""
    assert not any(word in told for word in ("leaked", "123456", "lea", "b'"))
    assert isinstance(run.outcome, Measurement) == ("print" in tells), run.outcome


def test_the_audit_finds_nothing_that_scoring_left_and_no_other_name(tmp_path: Path) -> None:
    looks = (
        "import os\nif os.path.exists('left') or os.path.basename(os.environ['HOME']) != 'answers': raise EOFError\n"
    )
    looks += "open('left', 'w').close()\nos.mkdir('locked')\nos.chmod('locked', 0)\n"
    workshop = toy.workshop_at(tmp_path, toy.answers_task(tmp_path / "task", looks + toy.UNIFORM))
    outcome = run_trial(replace(toy.spec_of(toy.HONEST), purpose="confirm"), workshop=workshop).outcome
    assert isinstance(outcome, Measurement) and outcome.audited, outcome


# --- printed scores ---


def test_the_last_printed_score_counts() -> None:
    assert printed_score("val_bpb: 9.5\nval_bpb: 1.25\nend\n", r"^val_bpb:\s*([0-9.]+)") == 1.25


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("no score here\n", "rule"),
        ("val_bpb: nan\n", "nan"),
        ("val_bpb: inf\n", "nan"),
        ("val_bpb: much\n", "rule"),
        ("", "rule"),
    ],
)
def test_a_printed_score_must_be_a_finite_number(log: str, reason: str) -> None:
    with pytest.raises(TrialFailed) as caught:
        printed_score(log, r"^val_bpb:\s*(\S+)")
    assert caught.value.reason == reason


def test_a_number_that_cannot_match_the_pattern_is_not_a_score() -> None:
    with pytest.raises(TrialFailed) as caught:
        printed_score("val_bpb: nan\n", r"^val_bpb:\s*([0-9.]+)")
    assert caught.value.reason == "nan"
