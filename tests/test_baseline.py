"""The shipped task keeps its contracts: the corpus, the training trial, and the frames that the scorer speaks.

Everything in `baseline/` is executed by path, as the swarm does it.
"""

import hashlib
import importlib.util
import json
import os
import re
import struct
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node import scoring

BASELINE = Path(__file__).parents[1] / "baseline"
QUESTION, ANSWER = 0x53574D51, 0x53574D41
VOCAB = 1025


def load_file(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sys.path.append(str(BASELINE))  # prepare.py finds its two neighbours as a script does
prepare = load_file(BASELINE / "prepare.py", "baseline_prepare")
sources = load_file(BASELINE / "sources.py", "baseline_sources")
tokenizer = prepare.Tokenizer()


def run(script: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("baseline") / "data"
    done = run(BASELINE / "prepare.py", "--out", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def stream(corpus: Path) -> Path:
    """A budget of 4096 tokens, as a runner writes it."""
    path = corpus.parent / "stream.bin"
    np.fromfile(corpus / "train" / "tokens.bin", dtype="<u2")[:4096].tofile(path)
    return path


def train(code: Path, corpus: Path, out: Path, seed: int, stream: Path) -> subprocess.CompletedProcess[str]:
    return run(code, "--data", corpus / "train", "--out", out, "--seed", seed, "--budget", stream)


@pytest.fixture(scope="session")
def artifact(corpus: Path, stream: Path) -> Path:
    out = corpus.parent / "artifact"
    done = train(BASELINE / "train.py", corpus, out, 0, stream)
    assert done.returncode == 0, done.stderr
    assert "step 4/4 tokens 4096 loss " in done.stdout
    assert "\n---\ntrain_loss:" in done.stdout
    return out


class Driver:
    """A running score.py and the scorer's side of its frames."""

    def __init__(self, code: Path, artifact: Path) -> None:
        command = [sys.executable, str(BASELINE / "score.py"), "--code", str(code), "--artifact", str(artifact)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)

    def ask(self, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(struct.pack("<III", QUESTION, *tokens.shape) + tokens.astype("<u2").tobytes())
        self.process.stdin.flush()
        magic, *shape = struct.unpack("<IIII", self.process.stdout.read(16))
        assert magic == ANSWER
        return np.frombuffer(self.process.stdout.read(4 * int(np.prod(shape))), dtype="<f4").reshape(shape)

    def end(self) -> tuple[int, str]:
        rest, stderr = self.process.communicate(struct.pack("<III", QUESTION, 0, 0), timeout=60)
        assert rest == b""
        return self.process.returncode, stderr.decode()


@pytest.fixture
def driver(artifact: Path) -> Iterator[Driver]:
    driver = Driver(BASELINE / "train.py", artifact)
    yield driver
    driver.process.kill()
    driver.process.communicate()


def windows(corpus: Path, rows: int, columns: int) -> np.ndarray[Any, Any]:
    return np.fromfile(corpus / "val" / "tokens.bin", dtype="<u2")[: rows * columns].reshape(rows, columns)


# ---- prepare.py


def test_corpus_is_the_same_every_time(corpus: Path, tmp_path: Path) -> None:
    again: dict[str, Any] = prepare.prepare(tmp_path / "again")
    assert again == json.loads((corpus / "manifest.json").read_text())
    for split in again["splits"]:
        raw = (corpus / split / "tokens.bin").read_bytes()
        assert hashlib.sha256(raw).hexdigest() == again["splits"][split]["sha256"]
        assert len(raw) == 2 * again["splits"][split]["tokens"]


def test_second_preparation_changes_nothing(corpus: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    done = run(BASELINE / "prepare.py", "--out", corpus)
    assert (done.returncode, "already prepared" in done.stdout) == (0, True)
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before


def test_killed_preparation_is_started_again(tmp_path: Path) -> None:
    leftover = tmp_path / ".data.partial-killed"
    (leftover / "train").mkdir(parents=True)
    os.utime(leftover, (0, 0))
    prepare.prepare(tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("damage", ["foreign", "cut short"])
def test_folder_that_is_not_a_corpus_is_refused(tmp_path: Path, corpus: Path, damage: str) -> None:
    if damage == "foreign":
        (tmp_path / "thesis.tex").write_text("years of work")
    else:
        (tmp_path / "manifest.json").write_bytes((corpus / "manifest.json").read_bytes())
    done = run(BASELINE / "prepare.py", "--out", tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "choose another --out" in done.stderr


def test_splits_share_no_top_level_name(corpus: Path) -> None:
    homes: dict[str, set[str]] = {}
    for document in sources.standard_library():
        top_level = document.name.split("/")[0].removesuffix(".py")
        homes.setdefault(top_level, set()).add(sources.split_of(document.name))
    assert all(len(splits) == 1 for splits in homes.values())
    assert set.union(*homes.values()) == {"train", "val", "holdout"}


def test_splits_are_large_enough_to_score(corpus: Path) -> None:
    splits = json.loads((corpus / "manifest.json").read_text())["splits"]
    scored: int = tomllib.loads((BASELINE / "task.toml").read_text())["budget"]["val_tokens"]
    assert min(splits["val"]["tokens"], splits["holdout"]["tokens"]) > scored


def test_trial_is_shown_nothing_but_training_text(corpus: Path) -> None:
    assert {path.name for path in (corpus / "train").iterdir()} == {"tokens.bin", "documents.npy", "meta.json"}
    assert json.loads((corpus / "train" / "meta.json").read_text()) == {"vocab_size": VOCAB, "bos": VOCAB - 1}


@given(st.one_of(st.binary(), st.text().map(str.encode), st.text("aeinrst_ =(\n\r\t 09é漢").map(str.encode)))
def test_tokens_stand_for_exactly_their_bytes(data: bytes) -> None:
    ids = tokenizer.encode(data)
    assert tokenizer.decode(ids) == data
    assert sum(len(tokenizer.token_bytes[i]) for i in ids) == len(data)


def test_token_bytes_add_up_to_the_text(corpus: Path) -> None:
    lengths = np.load(corpus / "token_bytes.npy")
    assert (lengths.dtype, lengths.shape, lengths[VOCAB - 1]) == (np.int32, (VOCAB,), 0)
    for split, facts in json.loads((corpus / "manifest.json").read_text())["splits"].items():
        tokens = np.fromfile(corpus / split / "tokens.bin", dtype="<u2")
        assert lengths[tokens].sum() == facts["bytes"]
        assert (tokens == VOCAB - 1).sum() == facts["documents"]


# ---- train.py


def tensors_hash(artifact: Path) -> str:
    digest = hashlib.sha256()
    for name, tensor in torch.load(artifact / "model.pt", weights_only=True).items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def test_seed_decides_every_bit(artifact: Path, corpus: Path, stream: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        assert train(BASELINE / "train.py", corpus, tmp_path / str(seed), seed, stream).returncode == 0
    assert tensors_hash(tmp_path / "0") == tensors_hash(artifact)
    assert tensors_hash(tmp_path / "1") != tensors_hash(artifact)


def test_every_token_is_a_target_once() -> None:
    module = load_file(BASELINE / "train.py", "candidate")
    stream = np.arange(1, 2049, dtype="<u2")
    steps = module.Batches(stream, bos=0)
    targets = torch.cat([targets.flatten() for _, targets in steps])
    assert sorted(targets.tolist()) == stream.tolist()
    assert all(torch.equal(targets - 1, inputs) for inputs, targets in steps)  # each input is the token before


CONSTANTS: list[Mapping[str, object]] = [
    *({"BIGRAM": b, "SMEAR": s, "ALIBI": a} for b in (False, True) for s in (False, True) for a in (False, True)),
    {"VALUE_EMBEDDING": False, "SOFTCAP": 0.0, "WARMDOWN": 0.0},
    {"ACTIVATION": "gelu", "DEPTH": 1, "WARMDOWN": 1.0},
    {"ACTIVATION": "silu", "DEPTH": 4, "WIDTH": 128, "ALIBI": True},
    {"WIDTH": 96, "HEAD_DIM": 16, "DEPTH": 3, "MLP_RATIO": 1},
    {"WIDTH": 32, "SEQ_LEN": 256, "BATCH": 16, "BIGRAM": True, "BIGRAM_ROWS": 1000, "SMEAR": True},
    {"DTYPE": torch.float32, "BIGRAM": True, "SMEAR": True, "ALIBI": True},
    {"DTYPE": torch.float32},
    {"DTYPE": torch.bfloat16},
]


@pytest.mark.parametrize("constants", CONSTANTS, ids=str)
def test_every_switch_trains_and_no_position_sees_the_future(constants: Mapping[str, object], corpus: Path) -> None:
    module = load_file(BASELINE / "train.py", "candidate")
    vars(module).update(constants)
    torch.manual_seed(0)
    tokens = np.fromfile(corpus / "train" / "tokens.bin", dtype="<u2")[:4096]
    model = module.GPT(VOCAB)
    losses = list(module.losses(model, module.Batches(tokens, VOCAB - 1)))
    assert np.isfinite(losses).all()
    assert losses[0] == pytest.approx(np.log(VOCAB), abs=0.02)
    question = torch.from_numpy(windows(corpus, 2, 256).astype(np.int64))
    with torch.no_grad():
        answer = model(question)
        question[0, 100:] = question[1, :156]
        changed = model(question)
    assert answer.shape == (2, 256, VOCAB)
    assert torch.equal(answer[0, :100], changed[0, :100])
    assert not torch.equal(answer[0, 100], changed[0, 100])


@pytest.mark.parametrize("softcap", [15.0, 0.0, 2.0])
def test_the_loss_by_hand_is_the_cross_entropy_of_what_the_model_predicts(softcap: float) -> None:
    module = load_file(BASELINE / "train.py", "candidate")
    vars(module).update(DTYPE=torch.float32, SOFTCAP=softcap)
    torch.manual_seed(0)
    model, tokens, targets = module.GPT(VOCAB), torch.randint(VOCAB, (2, 64)), torch.randint(VOCAB, (2, 64))
    torch.nn.init.normal_(model.head.weight)  # far from the start, where no logit is near the cap
    expected = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
    by_hand = module.CappedLoss.apply(model(tokens, capped=False).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(by_hand, expected)
    parameters = [model.head.weight, model.token.weight]
    torch.testing.assert_close(
        torch.autograd.grad(3 * by_hand, parameters), torch.autograd.grad(3 * expected, parameters)
    )


@pytest.mark.parametrize(("alibi", "reaches"), [(False, False), (True, True)])
def test_rotary_attention_reaches_no_further_than_it_was_trained(alibi: bool, reaches: bool) -> None:
    module = load_file(BASELINE / "train.py", "candidate")
    vars(module).update(DEPTH=1, ALIBI=alibi, DTYPE=torch.float32)
    torch.manual_seed(0)
    model, tokens = module.GPT(VOCAB), torch.randint(VOCAB - 1, (1, 256))
    torch.nn.init.normal_(model.attention[0].out.weight)
    before = model(tokens)
    tokens[0, 0] += 1
    changed = (model(tokens) != before).any(dim=2)[0]
    assert changed[: module.SEQ_LEN].all()
    assert bool(changed[module.SEQ_LEN :].any()) is reaches


def test_longer_training_learns(corpus: Path) -> None:
    module = load_file(BASELINE / "train.py", "candidate")
    torch.manual_seed(0)
    losses = list(
        module.losses(module.GPT(VOCAB), module.Batches(module.read_stream(40_000, corpus / "train", 0), 1024))
    )
    assert losses[-1] < losses[0] - 1.5


@pytest.mark.parametrize(
    ("constant", "value", "exit_code", "told"),
    [
        ("EMBED_LR", 'float("inf")', 1, "train: loss is nan at step 2 of 4"),
        ("HEAD_DIM", "48", 1, "WIDTH 64 must be a multiple of HEAD_DIM 48"),
        ("BATCH", "64", 2, "--budget has 4096 tokens, less than one step of 8192"),
    ],
)
def test_what_goes_wrong_is_told_in_the_last_line(
    constant: str, value: str, exit_code: int, told: str, corpus: Path, stream: Path, tmp_path: Path
) -> None:
    code = tmp_path / "train.py"
    source, edits = re.subn(rf"(?m)^{constant} = \S+", f"{constant} = {value}", (BASELINE / "train.py").read_text())
    assert edits == 1
    code.write_text(source)
    done = train(code, corpus, tmp_path / "out", 0, stream)
    assert done.returncode == exit_code
    assert told in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out" / "model.pt").exists()


def by_hand(out: Path, *arguments: object) -> dict[str, float]:
    """What the summary block of a run says."""
    done = run(BASELINE / "train.py", "--out", out, *arguments)
    assert done.returncode == 0, done.stderr
    block = done.stdout.split("\n---\n")[1]
    return {name: float(value) for name, value in re.findall(r"(?m)^(\w+): +(\S+)$", block)}


def test_a_run_by_hand_tells_the_score_that_the_swarm_would_give(corpus: Path, tmp_path: Path) -> None:
    told = by_hand(tmp_path / "out", "--data", corpus / "train", "--budget", "8192")
    questions = scoring.read_questions(corpus, "val", 256, 65536)
    driver = Driver(BASELINE / "train.py", tmp_path / "out")
    bits = []
    for inputs, targets in zip(*(np.split(x, 16) for x in (questions.inputs, questions.targets)), strict=True):
        logits = driver.ask(inputs).reshape(targets.size, -1).copy()
        bits.append(scoring.surprise(logits, targets.ravel()).reshape(targets.shape))
    assert driver.end()[0] == 0
    assert told["val_bpb"] == pytest.approx(scoring.bits_per_byte(np.concatenate(bits), questions), abs=2e-6)
    assert told["num_steps"] == 8
    # Two layers of 4 and 8 x 64^2 weights, and the head; 6 operations per weight and token; causal attention itself.
    weights = 24 * 64**2 + 64 * VOCAB
    assert told["total_tflops"] == pytest.approx(8192 * (6 * weights + 6 * 2 * 64 * 128) / 1e12, abs=0.0006)
    assert 0 < told["mfu_percent"] < 100


def test_a_trial_is_not_shown_a_score(corpus: Path, stream: Path, tmp_path: Path) -> None:
    assert "val_bpb" not in by_hand(tmp_path / "out", "--data", corpus / "train", "--budget", stream)


def test_the_same_script_trains_deeper_and_longer(corpus: Path, tmp_path: Path) -> None:
    hand = ("--data", corpus / "train", "--budget", "4096")
    deep = by_hand(tmp_path / "deep", *hand, "--scale", "depth=2")
    long = by_hand(tmp_path / "long", *hand, "--scale", "tokens=3")
    assert (deep["depth"], deep["num_steps"]) == (4, 4)
    assert (long["depth"], long["num_steps"]) == (2, 12)
    module = load_file(BASELINE / "train.py", "candidate")
    question = torch.from_numpy(windows(corpus, 1, 16).astype(np.int64))
    assert module.load(str(tmp_path / "deep"))(question).shape == (1, 16, VOCAB)  # depth is read from the artifact


@pytest.mark.parametrize("scale", ["width=2", "depth", "tokens=0", "depth=1.5"])
def test_scale_that_means_nothing_is_refused(scale: str, tmp_path: Path) -> None:
    done = run(BASELINE / "train.py", "--out", tmp_path / "out", "--scale", scale)
    assert done.returncode == 2
    assert "neither depth=N nor tokens=N" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("odd", "holds 8191 bytes: cut short"),
        ("empty", "holds 0 bytes: cut short"),
        ("vocabulary", "is outside the vocabulary of 300"),
    ],
)
def test_damaged_tokens_are_told_in_one_sentence(
    damage: str, told: str, corpus: Path, stream: Path, tmp_path: Path
) -> None:
    data, budget = tmp_path / "train", tmp_path / "stream.bin"
    data.mkdir()
    (data / "meta.json").write_text(json.dumps({"vocab_size": 300 if damage == "vocabulary" else VOCAB, "bos": 299}))
    raw = stream.read_bytes()
    budget.write_bytes({"odd": raw[:-1], "empty": b"", "vocabulary": raw}[damage])
    done = run(BASELINE / "train.py", "--data", data, "--out", tmp_path / "out", "--budget", budget)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert told in done.stderr


def test_running_out_of_memory_names_what_to_lower(corpus: Path, stream: Path, tmp_path: Path) -> None:
    code = tmp_path / "train.py"
    source = (BASELINE / "train.py").read_text()
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))\n"
    code.write_text(
        source.replace("MLP_RATIO = 4", "MLP_RATIO = 4000000").replace(
            "import argparse\n", f"{limit}import argparse\n", 1
        )
    )
    done = train(code, corpus, tmp_path / "out", 0, stream)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("train: out of memory: lower BATCH (now 8)")


def test_tokens_are_looked_at_to_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    module = load_file(BASELINE / "train.py", "candidate")
    stream = np.zeros(2**24 + 2048, dtype="<u2")
    stream[-1] = VOCAB
    steps = module.Batches(stream, VOCAB - 1, VOCAB)
    steps[0]
    with pytest.raises(SystemExit):
        steps[len(steps) - 1]
    assert "token 1025 is outside the vocabulary of 1025" in capsys.readouterr().err


def test_a_model_that_does_not_fit_on_the_disk_is_told_in_one_sentence(
    corpus: Path, stream: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands in for the disk: torch is told the same way."""
    code = tmp_path / "train.py"
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))\nimport argparse\n"
    code.write_text((BASELINE / "train.py").read_text().replace("import argparse\n", limit, 1))
    done = train(code, corpus, tmp_path / "out", 0, stream)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "the model can not be written to" in done.stderr and "free some space" in done.stderr


def test_a_model_that_would_have_no_place_is_refused_before_it_is_trained(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run(BASELINE / "train.py", "--data", corpus / "train", "--out", tmp_path / "file", "--budget", "4096")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--out a folder for the model" in done.stderr and done.stderr.count("\n") == 1


def test_a_trained_model_writes(artifact: Path, tmp_path: Path) -> None:
    again = [run(BASELINE / "sample.py", "--artifact", artifact, "--tokens", 8, "--seed", 3) for _ in range(2)]
    assert [done.returncode for done in again] == [0, 0]
    assert again[0].stdout == again[1].stdout
    assert again[0].stdout.startswith("def ") and len(again[0].stdout) > len("def \n")
    nothing = run(BASELINE / "sample.py", "--artifact", tmp_path)
    assert nothing.returncode == 2
    assert "train first" in nothing.stderr.splitlines()[-1]


# ---- score.py


def test_driver_answers_with_the_models_own_logits(driver: Driver, artifact: Path, corpus: Path) -> None:
    module = load_file(BASELINE / "train.py", "candidate")
    predict = module.load(str(artifact))
    for rows, columns in ((16, 256), (1, 7)):
        question = windows(corpus, rows, columns)
        answer = driver.ask(question)
        assert answer.shape == (rows, columns, VOCAB)
        assert np.isfinite(answer).all()
        assert np.array_equal(answer, predict(torch.from_numpy(question.astype(np.int64))).numpy())
    assert driver.end()[0] == 0


NOISY = """
import os, sys
print("at import")
def load(artifact):
    print("at load", flush=True)
    assert sys.stdin.read() == ""
    def predict(tokens):
        print("while predicting", flush=True)
        os.write(1, b"straight to the descriptor")
        os.system("echo from a child")
        return torch.nn.functional.one_hot(tokens, 1025).float()
    return predict
import torch
"""


def test_prints_of_a_candidate_can_not_disturb_the_frames(tmp_path: Path, corpus: Path) -> None:
    code = tmp_path / "train.py"
    code.write_text(NOISY)
    driver = Driver(code, tmp_path)
    question = windows(corpus, 2, 16)
    for _ in range(2):
        assert np.array_equal(driver.ask(question).argmax(-1), question)
    exit_code, stderr = driver.end()
    assert exit_code == 0
    said = ("at import", "at load", "while predicting", "straight to the descriptor", "from a child")
    assert all(words in stderr for words in said)
    assert not (tmp_path / "__pycache__").exists()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("def load(artifact):\n    raise KeyError('lost')", "score: KeyError: 'lost'"),
        ("def load(artifact):\n    return lambda tokens: tokens", "score: CandidateError: logits of shape (1, 4)"),
        ("nothing = 0", "score: AttributeError"),
        ("import sys\nsys.exit(0)", "score: SystemExit"),
    ],
)
def test_failing_candidate_is_told_in_the_last_line(tmp_path: Path, body: str, told: str) -> None:
    code = tmp_path / "train.py"
    code.write_text(body)
    driver = Driver(code, tmp_path)
    question = struct.pack("<III", QUESTION, 1, 4) + bytes(8)
    answered, stderr = driver.process.communicate(question, timeout=60)
    assert (driver.process.returncode, answered) == (1, b"")
    assert stderr.decode().splitlines()[-1].startswith(told)


# ---- task.toml


def test_frozen_files_are_the_ones_that_were_frozen() -> None:
    task = tomllib.loads((BASELINE / "task.toml").read_text())
    assert set(task["frozen"]) == {"prepare.py", "sources.py", "tokenise.py", "score.py", "bpe1024.txt"}
    for name, digest in task["frozen"].items():
        assert hashlib.sha256((BASELINE / name).read_bytes()).hexdigest() == digest, f"{name}: update task.toml"
