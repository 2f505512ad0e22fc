"""The causal audit: cheats that a score alone rewards are refused, honest candidates never."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy_task as toy
from hypothesis import given
from hypothesis import strategies as st

from node.audit import LATE_CPU_S, LATE_WALL_S, Others, Passed, chances, draw_cuts, in_time, plain_bits
from node.data import prepare_data
from node.sandbox.bare import Bare
from node.scoring import Questions
from node.trial import TrialRun, Workshop, run_trial
from swarm.records import Failure, Limits, Measurement, Outcome, Purpose
from swarm.task import bundle, load_task, unbundle

BASELINE = Path(__file__).parents[1] / "baseline"
AUDITED: tuple[Purpose, ...] = ("calibrate", "confirm", "transfer", "final", "reproduce")


def outcome_of(tmp_path: Path, score: str, purpose: Purpose) -> Outcome:
    folder = tmp_path / "task"
    workshop = toy.workshop_at(tmp_path, folder if folder.exists() else toy.answers_task(folder, score))
    return run_trial(replace(toy.spec_of(toy.HONEST), purpose=purpose), workshop=workshop).outcome


# --- who is audited ---


@pytest.mark.parametrize("score", [toy.UNIFORM, toy.FAVOURS_NEXT])
@pytest.mark.parametrize("purpose", AUDITED)
def test_an_honest_candidate_passes_and_its_score_stays(tmp_path: Path, score: str, purpose: Purpose) -> None:
    audited = outcome_of(tmp_path, score, purpose)
    screened = outcome_of(tmp_path / "again", score, "screen")
    assert isinstance(audited, Measurement) and isinstance(screened, Measurement), audited
    assert (audited.audited, screened.audited) == (True, False)
    assert audited.score == screened.score


def test_a_split_with_nothing_to_replace_is_no_fault_of_the_candidate(tmp_path: Path) -> None:
    workshop = toy.workshop_at(tmp_path, toy.answers_task(tmp_path / "task"))
    assert workshop.data is not None
    tokens = workshop.data.folder / "val" / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[: 2 * (toy.VAL_TOKENS + toy.WINDOW)])  # one token less than a window
    outcome = run_trial(replace(toy.spec_of(toy.HONEST), purpose="confirm"), workshop=workshop).outcome
    assert isinstance(outcome, Failure)
    assert outcome.blame == "machinery"
    assert "lower val_tokens" in outcome.message


# --- cheats, each on top of the same model: odds of 3 for the next token being this one plus 1 ---

_CHEAT = (
    toy.ASKED.replace(
        "while True:", "import os\nfrom collections import Counter\ncalls, seen, said = 0, Counter(), {}\nwhile True:"
    )
    + """
    logits = [[math.log(3) if v == (t + 1) % V else 0.0 for v in range(V)] for t in tokens]
    places = [i for i in range(len(tokens) - 1) if (i + 1) % window]  # whose next token was sent, too
    def peek(places, weight=9.0):
        for i in places:
            logits[i][tokens[i + 1]] += weight
{cheat}
    calls += 1
    answer(rows, window, [logit for row in logits for logit in row])
"""
)
CHEATS: Mapping[str, str] = {
    "copies the next token": "peek(places)",
    "leaks a millionth": "peek(places, 1e-6)",
    "leaks at every second place": "peek([i for i in places if i % 2])",
    "leaks in later windows only": "peek(places if calls >= 2 else [])",
    "leaks in every second window of a batch": "peek([i for i in places if i // window % 2])",
    "leaks by chance": "peek([i for i in places if os.urandom(1)[0] < 128])",
    "copies from the window beside it": "peek([i for i in range(len(tokens) - 1) if (i + 1) % window == 0])",
    "looks two tokens ahead": (  # the stream is made of squares: its second difference is 2
        "for i in places[:-1]:\n"
        "        if (i + 2) % window > 1: logits[i][3 * (tokens[i] + tokens[i + 2] - 2) % V] += 2.0"
    ),
    "learns from the windows before": (
        "for i, t in enumerate(tokens):\n"
        "        for v in range(V): logits[i][v] += math.log(1 + seen[t, v])\n"
        "    seen.update(zip(tokens, tokens[1:]))"
    ),
    "takes statistics over the batch": (
        "seen = Counter(zip(tokens, tokens[1:]))\n"
        "    for i, t in enumerate(tokens):\n"
        "        for v in range(V): logits[i][v] += math.log(1 + seen[t, v])"
    ),
    "remembers what followed": (
        "for i in range(2, len(tokens)):\n"
        "        for v in range(V): logits[i][v] += seen[tokens[i - 2], tokens[i - 1], tokens[i], v]\n"
        "    seen.update(zip(tokens, tokens[1:], tokens[2:], tokens[3:]))"
    ),
    "peeks only where the text looks natural": (  # decoys seldom go on as squares do
        "for s in range(0, len(tokens), window):\n"
        "        steps = [tokens[i + 1] - 2 * tokens[i] + tokens[i - 1] for i in range(s + 1, s + window - 1)]\n"
        "        if sum(step % V in (2, 3, 1) for step in steps) >= window - 2:\n"
        "            peek([i for i in places if s <= i < s + window])"
    ),
    "repeats what it said of a window that begins alike": (
        "for s in range(0, len(tokens), window):\n"
        "        kept = said.setdefault(tokens[s:s + 2], tokens[s:s + window])\n"
        "        for i in range(s, s + window - 1): logits[i][kept[i + 1 - s]] += 2.0"
    ),
    "knows the order of the questions": (
        "for i in range(len(tokens)):\n"
        "        n = calls * 16 * window + i + 1\n"
        "        logits[i][(2 + n * n + n // 7) % V] += 9.0"
    ),
}


@pytest.mark.parametrize("cheat", CHEATS.values(), ids=CHEATS.keys())
def test_a_cheat_scores_well_and_is_refused(tmp_path: Path, cheat: str) -> None:
    script = _CHEAT.replace("{cheat}", "    " + cheat)
    honest = outcome_of(tmp_path / "honest", _CHEAT.replace("{cheat}", ""), "confirm")
    believed = outcome_of(tmp_path, script, "screen")
    refused = outcome_of(tmp_path / "again", script, "confirm")
    assert isinstance(honest, Measurement) and isinstance(believed, Measurement), believed
    assert believed.score < honest.score
    assert isinstance(refused, Failure), refused
    assert (refused.blame, refused.reason) == ("candidate", "rule")
    assert re.match(r"audit: in window \d+ its predictions from the first [1-8] tokens changed when", refused.message)


def test_an_artifact_that_changes_while_it_is_scored_is_refused(tmp_path: Path) -> None:
    notes = "import pathlib; pathlib.Path(sys.argv[sys.argv.index('--artifact') + 1], 'notes').write_text(str(tokens))"
    refused = outcome_of(tmp_path, _CHEAT.replace("{cheat}", "    " + notes), "confirm")
    assert isinstance(refused, Failure), refused
    assert (refused.blame, refused.reason) == ("candidate", "rule")
    assert "changed its artifact" in refused.message


# --- where is looked ---


def text(random: np.random.Generator, rows: int = 64, window: int = 32) -> Questions:
    tokens = random.integers(0, 50, (rows, window)).astype(np.uint16)
    return Questions(tokens, tokens, tokens[:1], np.ones(50, dtype=np.int64))


def test_a_gain_that_nobody_else_had_is_looked_at_in_nearly_every_window_that_has_one() -> None:
    random = np.random.default_rng(0)
    questions = text(random)
    others = random.gamma(2.0, 3.0, questions.targets.shape)
    bits = others + random.normal(0, 0.01, others.shape)  # as good as the others, but for noise
    peeked = np.arange(len(bits)), random.integers(0, 31, len(bits))
    bits[peeked] = 0.0
    cuts = draw_cuts(chances(bits, [others], questions), random)
    assert (cuts == peeked[1] + 1).any(axis=0).mean() > 0.9
    unaware = draw_cuts(chances(bits, [], questions), random)
    assert (unaware == peeked[1] + 1).any(axis=0).mean() < 0.3


def test_the_plain_measure_counts_pairs_and_falls_back_on_single_tokens(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    np.array([0, 1, 0, 1, 0, 2], dtype="<u2").tofile(tmp_path / "train" / "tokens.bin")
    inputs, targets = np.array([[0, 1, 2]], dtype=np.uint16), np.array([[1, 0, 3]], dtype=np.uint16)
    bits = plain_bits(tmp_path, Questions(inputs, targets, inputs, np.ones(4, dtype=np.int64)))
    zero, one, three = 4 / 10, 3 / 10, 1 / 10  # one more each than there are
    expected = [(2 + 8 * one) / (3 + 8), (2 + 8 * zero) / (2 + 8), (0 + 8 * three) / (0 + 8)]
    assert bits == pytest.approx(-np.log2([expected]))


@given(st.integers(0, 2**32), st.booleans())
def test_each_cut_leaves_something_before_it_and_the_earlier_is_asked_first(seed: int, alone: bool) -> None:
    random = np.random.default_rng(seed)
    questions = text(random, 8, 6)
    bits, others = random.random((2, 8, 6))
    bits[0] = np.inf  # a text without any probability
    chance = chances(bits, [] if alone else [others, others[::-1]], questions)
    assert np.allclose(chance.sum(axis=1), 1)
    cuts = draw_cuts(chance, random)
    assert cuts.min() >= 1 and cuts.max() <= 6
    assert (np.diff(cuts, axis=0) >= 0).all()


def test_a_candidate_is_compared_with_others_and_the_oldest_are_forgotten() -> None:
    others = Others()
    assert others.besides("val", "a") is None
    for number in range(6):
        others.remember("val", str(number), Passed(np.full(2, float(number)), 9.0 - number, 2.0 * number))
    assert others.besides("holdout", "a") is None
    for candidate, mean in (("a", 3.5), ("5", 3.0), ("2", 4.0), ("0", 3.5)):
        known = others.besides("val", candidate)
        assert known is not None
        assert (known.bits.tolist(), known.cpu_s, known.wall_s) == ([mean, mean], 9.0 - mean, 2.0 * mean)


LIMITS = Limits(cpu_s=60.0, wall_s=90.0)


def test_scoring_has_half_more_than_others_took_and_a_start() -> None:
    assert in_time(LIMITS, None) == LIMITS
    for took in (Passed(np.zeros(1), 2.0, 4.0), Passed(np.zeros(1), 30.0, 50.0)):
        within = in_time(LIMITS, took)
        assert (within.cpu_s, within.wall_s) == (1.5 * took.cpu_s + LATE_CPU_S, 1.5 * took.wall_s + LATE_WALL_S)
    assert in_time(LIMITS, Passed(np.zeros(1), 50.0, 60.0)) == LIMITS  # never more than a trial has


def test_what_scoring_takes_beyond_others_is_paid_for(tmp_path: Path) -> None:
    slow = f"import time\nwhile time.process_time() < 0.8: pass\n{toy.UNIFORM}"
    workshop = toy.workshop_at(tmp_path, toy.answers_task(tmp_path / "task", slow))
    spec = replace(toy.spec_of(toy.HONEST), purpose="confirm")
    alone = run_trial(spec, workshop=workshop).outcome
    assert isinstance(alone, Measurement) and alone.cpu_s < 0.4, "training itself takes no time"
    bits = np.full((toy.VAL_TOKENS // toy.WINDOW, toy.WINDOW), math.log2(toy.VOCABULARY))
    workshop.others.remember(("val", False), "another", Passed(bits, 0.1, 0.2))
    late = run_trial(spec, workshop=workshop).outcome
    assert isinstance(late, Measurement), late
    assert 0.6 <= late.cpu_s < 1.7  # 0.7, but for ticks and what training takes


def test_answers_that_take_far_longer_than_those_of_others_are_late(tmp_path: Path) -> None:
    slow = "import time\nwhile time.process_time() < 60: pass\n"
    workshop = toy.workshop_at(tmp_path, toy.answers_task(tmp_path / "task", slow))
    passed = Passed(
        np.zeros((toy.VAL_TOKENS // toy.WINDOW, toy.WINDOW)), -0.75, 0.0
    )  # so that the limit is below a second
    workshop.others.remember(("val", False), "another", passed)
    outcome = run_trial(toy.spec_of(toy.HONEST, cpu_s=50), workshop=workshop).outcome
    assert isinstance(outcome, Failure)
    assert (outcome.blame, outcome.reason) == ("candidate", "timeout")
    assert re.match(r"score: used more than 0\.9 s of CPU time", outcome.message)


# --- the shipped model, and torch's own arithmetic ---


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """The shipped task, made small: 8 steps of training, 40 windows scored, the last frame of 8."""
    root = tmp_path_factory.mktemp("shipped")
    unbundle(bundle(BASELINE), root / "task")
    small = {"tokens = 204800": "tokens = 8192", "val_tokens = 65536": "val_tokens = 10240"}
    text = (root / "task" / "task.toml").read_text()
    for old, new in small.items():
        assert old in text
        text = text.replace(old, new)
    (root / "task" / "task.toml").write_text(text)
    task = load_task(root / "task")
    return Workshop(task, root / "task", prepare_data(task, root / "task", "", root), Bare(), root / "scratch")


def shipped_run(shipped: Workshop, purpose: Purpose, seed: int, *edits: tuple[str, str]) -> TrialRun:
    text = (BASELINE / "train.py").read_text()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    spec = replace(toy.spec_of(text, seed=seed, cpu_s=60, wall_s=120), purpose=purpose)
    return run_trial(spec, workshop=shipped)


def shipped_outcome(shipped: Workshop, purpose: Purpose, seed: int, *edits: tuple[str, str]) -> Outcome:
    return shipped_run(shipped, purpose, seed, *edits).outcome


CHOICE = "DTYPE = torch.bfloat16 if NATIVE else torch.float32"
FP32 = (CHOICE, "DTYPE = torch.float32")
BF16 = (CHOICE, "DTYPE = torch.bfloat16")
SMEAR, BIGRAM = ("SMEAR = False", "SMEAR = True"), ("BIGRAM = False", "BIGRAM = True")
ALIBI, WIDER = ("ALIBI = False", "ALIBI = True"), ("WIDTH = 64 ", "WIDTH = 96 ")


@pytest.mark.parametrize("edits", [(BF16,), (FP32, WIDER), (BF16, SMEAR, BIGRAM), (FP32, ALIBI)])
def test_honest_models_agree_with_themselves_bit_for_bit(shipped: Workshop, edits: tuple[tuple[str, str], ...]) -> None:
    outcome = shipped_outcome(shipped, "confirm", len(edits), *edits)
    assert isinstance(outcome, Measurement), outcome
    assert outcome.audited


def test_a_check_at_twice_the_depth_is_scored_and_audited(shipped: Workshop) -> None:
    run = shipped_run(shipped, "transfer", 0)
    assert isinstance(run.outcome, Measurement) and run.outcome.audited, run.outcome
    assert re.search(r"^depth: +4$", run.log, re.MULTILINE)


LEAK = """
honest_load = load
def load(artifact_dir):
    honest = honest_load(artifact_dir)
    def predict(tokens):
        logits = honest(tokens)
        return logits[:, :-1].scatter_add_(2, tokens[:, 1:, None], torch.full((*tokens.shape,), {weight})[:, 1:, None])
    return lambda tokens: torch.cat((predict(tokens), honest(tokens)[:, -1:]), 1)
"""


@pytest.mark.parametrize("weight", [1e-6, 10.0])
def test_a_leak_in_torch_is_refused_however_small(shipped: Workshop, weight: float) -> None:
    leak = ("def main()", LEAK.replace("{weight}", str(weight)) + "\n\ndef main()")
    honest, believed = shipped_outcome(shipped, "screen", 0), shipped_outcome(shipped, "screen", 0, leak)
    assert isinstance(honest, Measurement) and isinstance(believed, Measurement), believed
    assert believed.score < honest.score
    refused = shipped_outcome(shipped, "confirm", 0, leak)
    assert isinstance(refused, Failure) and refused.reason == "rule", refused
    assert refused.message.startswith("audit: in window")
