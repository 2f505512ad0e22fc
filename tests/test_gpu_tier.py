"""The GPU tier of baseline/train.py, its code run on the CPU at toy sizes; benchmarks/gpu.sh tells what only a GPU can.

The kernel package of FlashAttention-3 is stood in for by the slow and obvious way to compute the same.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from itertools import count
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from test_baseline import BASELINE, load_file, prepare, run

from benchmarks import gpu
from node.data import Data
from node.sandbox.bare import Bare
from node.trial import Workshop, run_trial
from swarm.cli.checks import check_choices
from swarm.config import load_config
from swarm.records import Limits, Measurement, TrialSpec, candidate_id
from swarm.task import load_task

TRAIN = BASELINE / "train.py"
VOCAB, BOS = 300, 299


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As a trial has it; two of them wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu-tier") / "data"
    prepare.prepare(out)
    return out


def tiny(**constants: object) -> ModuleType:
    """train.py as `--tier tiny` makes it, in fp32: what is compared here is not the rounding."""
    module = load_file(TRAIN, "candidate")
    module.use_tier("tiny")
    vars(module).update({"DTYPE": torch.float32, "SEQ_LEN": 64, "WINDOW": 16, **constants})
    torch.manual_seed(0)
    return module


def documents(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Tokens with a border every 24 or so, also on the first and on two neighbouring places."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, BOS, size=(rows, length))
    tokens[random.random(tokens.shape) < 1 / 24] = BOS
    tokens[0, 0] = tokens[-1, 5] = tokens[-1, 6] = BOS
    return torch.from_numpy(tokens)


def alive(module: ModuleType) -> torch.nn.Module:
    """A model whose blocks do something: they start as the identity."""
    model: torch.nn.Module = module.GPT(VOCAB)
    for block in (*model.attention, *model.mlp):  # type: ignore[misc]
        torch.nn.init.normal_((block.out if hasattr(block, "out") else block.down).weight, std=0.1)
    torch.nn.init.normal_(model.head.weight, std=0.1)  # type: ignore[union-attr,arg-type]
    return model


def slow_varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_q: torch.Tensor, cu_k: torch.Tensor, max_q: int, max_k: int,
    causal: bool, window_size: tuple[int, int],
) -> torch.Tensor:  # fmt: skip
    """Attention of packed sequences [tokens, heads, channels], one sequence, head and query at a time."""
    assert causal and torch.equal(cu_q, cu_k) and cu_q.dtype == torch.int32 and cu_q[0] == 0 and cu_q[-1] == len(q)
    rows = []
    for start, end in zip(cu_q.tolist(), cu_q.tolist()[1:], strict=False):
        assert end - start <= max_q == max_k
        for i in range(start, end):
            first = max(start, i - window_size[0])
            logits = torch.einsum("hc,khc->hk", q[i], k[first : i + 1]) * q.size(-1) ** -0.5
            rows.append(torch.einsum("hk,khc->hc", logits.softmax(-1), v[first : i + 1]))
    return torch.stack(rows)


# --- attention ---


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kernel", ["fa3", "flex"])
@pytest.mark.parametrize(("window", "apart"), [(0, True), (1, True), (16, True), (16, False)])
def test_every_kernel_computes_the_same(kernel: str, window: int, apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("flash_attn_interface")
    vars(package)["flash_attn_varlen_func"] = slow_varlen
    monkeypatch.setitem(sys.modules, "flash_attn_interface", package)
    module = tiny(WINDOW=window, DOCUMENTS=apart)
    model, tokens = alive(module), documents(3, 64)
    with torch.no_grad():
        expected = model(tokens)
        module.use_kernel(kernel)
        assert torch.allclose(model(tokens), expected, atol=2e-5)


def test_more_documents_than_there_is_room_for_are_joined_within_their_rows() -> None:
    module = tiny()
    vars(module)["KERNEL"] = "fa3"
    (borders,) = module.look_back(torch.full((3, 64), BOS), BOS, {16}).values()
    assert borders.unique().tolist() == [0, 64, 128, 192]
    (few,) = module.look_back(documents(3, 64), BOS, {16}).values()
    assert len(few) == len(borders)  # one shape: nothing is compiled twice


@pytest.mark.parametrize("apart", [True, False])
def test_a_position_sees_its_window_its_document_and_no_future(apart: bool) -> None:
    module = tiny(DOCUMENTS=apart)
    tokens = documents(2, 64)
    seen = module.look_back(tokens, BOS, {16, 64})
    for window, mask in seen.items():
        for row, line in enumerate(tokens.tolist()):
            for q in range(64):
                start = max((i for i in range(q + 1) if apart and line[i] == BOS), default=0)
                expected = list(range(max(start, q - window + 1), q + 1))
                assert mask[row, 0, q].nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("apart", [True, False])
def test_a_longer_context_than_that_of_training_is_not_looked_back_into(apart: bool) -> None:
    module = tiny(DEPTH=1, WINDOW=0, DOCUMENTS=apart, BIGRAM=False, SMEAR=False)
    model, tokens = alive(module), torch.arange(256)[None]
    before = model(tokens)
    tokens[0, 0] += 1
    changed = (model(tokens) != before).any(dim=2)[0]
    assert changed[:64].all() and not changed[64:].any()


def test_answers_do_not_look_ahead_nor_at_other_rows(tmp_path: Path) -> None:
    module = tiny()
    module.save(alive(module), tmp_path)
    predict = load_file(TRAIN, "scored").load(str(tmp_path))
    tokens, others = documents(3, 256), documents(3, 256, seed=1)
    answer = predict(tokens)
    assert answer.shape == (3, 256, VOCAB) and answer.dtype == torch.float32
    changed = torch.cat((tokens[:, :100], others[:, 100:]), dim=1)
    assert torch.equal(predict(changed)[:, :100], answer[:, :100])
    assert not torch.equal(predict(changed)[:, 100], answer[:, 100])
    assert torch.equal(predict(tokens.flip(0)), answer.flip(0))


# --- training ---

SWITCHES: list[Mapping[str, object]] = [
    {},
    {"BIGRAM": False, "SMEAR": False, "VALUE_EMBEDDING": False, "SOFTCAP": 0.0},
    {"WINDOW": 0, "BATCH_RAMP": False, "PASSES": 1, "TAIL_EMA": 0.0, "LR_FLOOR": 0.0, "WARMDOWN": 0.0},
    {"DOCUMENTS": False, "WINDOW": 0, "ALIBI": True, "PAD_VOCAB": 1},
    {"DOCUMENTS": False, "WINDOW": 0},
    {"DOCUMENTS": False, "ACTIVATION": "gelu", "DEPTH": 1},
    {"DTYPE": torch.bfloat16},
]


@pytest.mark.parametrize("constants", SWITCHES, ids=str)
def test_every_switch_trains(constants: Mapping[str, object]) -> None:
    module = tiny(**constants)
    model = module.GPT(VOCAB)
    stream = (np.arange(64 * 2 * 24) % 13).astype("<u2")  # easy, so that a few steps show it
    losses = list(module.losses(model, module.Batches(stream, BOS), module.get_ready(model)))
    assert np.isfinite(losses).all()
    assert losses[0] == pytest.approx(np.log(VOCAB), abs=0.02)
    assert losses[-1] < losses[0] - 1


def test_no_token_is_thrown_away_whatever_the_passes() -> None:
    module = tiny(PASSES=8)
    steps = module.Batches(np.arange(1, 64 * 2 * 30 + 1, dtype="<u2") % BOS, BOS)
    model, clock, taken = module.GPT(VOCAB), module.Clock(), []

    def spy(model: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor, around: object) -> torch.Tensor:
        taken.append(targets)
        loss: torch.Tensor = module.plain_loss(model, inputs, targets, around)
        return loss

    count = len(list(module.losses(model, steps, spy, clock)))
    assert clock.used == len(taken) == len(steps) == 30
    assert count == 9  # 2 at a time up to 10, 4 up to 22, then 8
    assert all(torch.equal(a, b) for a, (_, b) in zip(taken, steps, strict=True))


def test_passes_add_up_to_the_gradient_of_one_larger_batch() -> None:
    stream = documents(1, 64 * 4)[0].numpy().astype("<u2")
    gradients = []
    for batch, passes in ((4, 1), (1, 4)):
        module = tiny(BATCH=batch, PASSES=passes, BATCH_RAMP=False, TAIL_EMA=0.0)
        model = alive(module)
        kept: list[torch.Tensor] = []
        module.Optimizer.step = lambda self, progress, m=model, k=kept: k.extend(p.grad.clone() for p in m.parameters())
        next(module.losses(model, module.Batches(stream, BOS)))
        gradients.append(kept)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_the_model_that_is_kept_is_the_average_of_its_tail() -> None:
    module = tiny(TAIL_EMA=0.5)
    model = module.GPT(VOCAB)
    optimizer = module.Optimizer(model)
    weights = list(model.parameters())
    for progress, value in ((0.5, 100.0), (0.8, 0.0), (0.9, 1.0), (1.0, 3.0)):
        for p in weights:
            p.data.fill_(value)
            p.grad = torch.zeros_like(p)  # a step that leaves them as they are
        optimizer.step(progress)
    optimizer.finish()
    assert all(torch.equal(p, torch.full_like(p, 1.75)) for p in weights)


def test_a_clock_stops_before_its_seconds_and_moves_the_schedule() -> None:
    module = tiny(PASSES=1)
    seen: list[float] = []
    module.Optimizer.step = lambda self, progress: seen.append(progress)
    stream = np.resize(documents(1, 4096)[0].numpy().astype("<u2"), 64 * 2 * 100)
    clock = module.Clock(8.0, now=map(float, count()).__next__)  # each look at it is a second later
    list(module.losses(module.GPT(VOCAB), module.Batches(stream, BOS), module.plain_loss, clock))
    assert seen == [i / 8 for i in range(7)]  # an eighth step of 1.1 s would end after 8.1
    assert clock.used == 7


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecates
def test_compiled_is_the_same_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    steps = documents(1, 64 * 2 * 8)[0].numpy().astype("<u2")
    losses = []
    for compiles in (False, True):
        module = tiny(DEPTH=1, COMPILE=compiles, PASSES=1)
        model = module.GPT(VOCAB)
        losses.append(list(module.losses(model, module.Batches(steps, BOS), module.get_ready(model))))
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


# --- what falls back, and says so ---


def test_a_kernel_that_fails_is_left_out_aloud(capfd: pytest.CaptureFixture[str]) -> None:
    module = tiny(COMPILE=True)

    def no_compiler(*arguments: object, **options: object) -> Callable[..., None]:
        raise RuntimeError("no working C++ compiler")

    original, torch.compile = torch.compile, no_compiler  # type: ignore[assignment]
    try:
        loss_of = module.get_ready(module.GPT(VOCAB))
    finally:
        torch.compile = original
    assert loss_of is module.plain_loss
    told = capfd.readouterr().out
    assert "attention sdpa, compiled: not here (no working C++ compiler)" in told
    assert "attention sdpa, not compiled" in told


def test_flash_attention_3_is_imported_by_nobody_else() -> None:
    with pytest.raises(ImportError):
        tiny().use_kernel("fa3")


def test_without_cuda_the_cpu_tier_runs_and_says_so(corpus: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    done = run(TRAIN, "--tier", "gpu", "--data", corpus / "train", "--budget", 2048, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("no CUDA here: the CPU tier")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.pt"]


def test_running_out_of_memory_names_the_constants_of_its_tier(corpus: Path, tmp_path: Path) -> None:
    code = tmp_path / "train.py"
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))\nimport argparse\n"
    source = TRAIN.read_text().replace('"BATCH": 2', '"BATCH": 200000').replace("import argparse\n", limit, 1)
    code.write_text(source)
    options = ("--tier", "tiny", "--data", corpus / "train", "--budget", "30M", "--out", tmp_path / "out")
    done = run(code, *options)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("train: out of memory: lower GPU_BATCH (now 200000), GPU_SEQ_LEN")


# --- by hand, and as a trial with a budget in seconds ---


def test_a_run_by_hand_sums_up(corpus: Path, tmp_path: Path) -> None:
    done = run(TRAIN, "--tier", "tiny", "--data", corpus / "train", "--budget", "30k", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    block = dict(line.split(":") for line in done.stdout.split("\n---\n")[1].splitlines())
    for name in ("val_bpb", "mfu_percent", "total_tflops", "total_tokens_M", "tokens_per_s", "startup_seconds"):
        assert float(block[name]) >= 0
    assert float(block["total_tokens_M"]) == pytest.approx(0.03, abs=0.001)
    # 4 layers of 12 x 64^2, a head of 1088 rows; three windows of 32 and one of 128.
    weights, visible = 48 * 64**2 + 1088 * 64, 3 * (32 - 32**2 / 256) + 64
    tokens = 30000 // 256 * 256
    assert float(block["total_tflops"]) == pytest.approx(tokens * (6 * weights + 12 * 64 * visible) / 1e12, abs=6e-4)


GPU_TASK = """
name = "timed"
editable = ["train.py"]
[frozen]
[commands]
prepare = "prepare.py --out {data}"
train = "train.py --tier tiny --data {data} --out {out} --seed {seed} --budget {budget} --seconds 3"
score = "score.py --code {code} --artifact {artifact}"
[metric]
name = "val_bpb"
score = "answers"
[budget]
tokens = 2000000
seconds = 3
compile_seconds = 60
window = 256
val_tokens = 8192
tolerance_bits = 0.07
"""


def test_a_trial_trains_within_its_seconds_and_passes_the_audit(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "task"
    folder.mkdir()
    for name in ("train.py", "prepare.py", "score.py"):
        (folder / name).write_bytes((BASELINE / name).read_bytes())
    frozen = sha256((folder / "score.py").read_bytes()).hexdigest()
    (folder / "task.toml").write_text(GPU_TASK.replace("[frozen]", f'[frozen]\n"score.py" = "{frozen}"'))
    fingerprint = json.loads((corpus / "manifest.json").read_text())["fingerprint"]
    workshop = Workshop(load_task(folder), folder, Data(corpus, fingerprint), Bare(), tmp_path / "scratch")
    files = {"train.py": TRAIN.read_text()}
    limits = Limits(cpu_s=60, wall_s=60, memory_mb=4096)
    spec = TrialSpec("t", candidate_id(files), 0, "confirm", files, limits)
    done = run_trial(spec, workshop=workshop)
    assert isinstance(done.outcome, Measurement), (done.outcome, done.log)
    assert done.outcome.audited
    assert 2 < done.outcome.score < 4
    assert "startup_seconds" in done.log and "val_bpb" not in done.log


# --- the task, the configuration, the benchmark ---


def test_the_gpu_task_is_the_cpu_task_with_another_budget() -> None:
    config = load_config(BASELINE.parent / "configs" / "gpu.toml")
    assert config.task == "baseline/task-gpu.toml"
    task, small = load_task(BASELINE.parent / config.task), load_task(BASELINE)
    assert task.timed and not small.timed
    assert (task.editable, task.frozen, task.commands.score) == (small.editable, small.frozen, small.commands.score)
    assert (
        f"--tier gpu --data {{data}} --out {{out}} --seed {{seed}} --budget {{budget}} --seconds {task.seconds:g}"
        in (task.commands.train)
    )
    assert config.proposer.options == {"tier": "gpu"}
    check_choices(config, task, local=1)
    module = load_file(TRAIN, "candidate")
    assert module.by_hand.SCORED["gpu"] == (task.window, task.val_tokens) and module.GPU_SEQ_LEN == task.window
    assert module.by_hand.SCORED["cpu"] == (small.window, small.val_tokens)


def test_the_gpu_tier_has_about_50_million_parameters() -> None:
    module = load_file(TRAIN, "candidate")
    module.use_tier("gpu")
    with torch.device("meta"):
        millions = sum(p.numel() for p in module.GPT(8192).parameters()) / 1e6
    assert 45 < millions < 60


def benchmark(corpus: Path, log: Path, *options: object, status: int = 0) -> str:
    done = run(BASELINE.parent / "benchmarks" / "gpu.py", "--data", corpus, "--log", log, *options)
    assert done.returncode == status, done.stderr
    return done.stdout


def test_the_benchmark_says_that_it_was_skipped(corpus: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    assert benchmark(corpus, tmp_path / "log").startswith("skipped: no GPU")
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ({}, None),
        ({"fa3": True, "flex": True, "sdpa": False}, True),
        ({"fa3": False, "flex": True, "sdpa": True}, False),
        ({"fa3": None, "flex": False, "sdpa": True}, True),
        ({"fa3": None, "flex": False, "sdpa": False}, False),
        ({"fa3": None, "flex": None, "sdpa": None}, None),
    ],
)
def test_the_bars_hold_with_the_best_kernel_and_with_one_of_the_others(
    held: Mapping[str, bool | None], expected: bool | None
) -> None:
    assert gpu.bars_hold({name: {"holds": one} for name, one in held.items()}) is expected


def test_the_benchmark_takes_all_its_steps_and_none_twice(corpus: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    asked = ("--tier", "tiny", "--parts", "kernels,short,effects", "--short", 1, "--seeds", 2, "--only", "smear off")
    soon = json.loads(benchmark(corpus, log, *asked, "--minutes", 0.1, status=3).splitlines()[-1])
    assert not soon["done"] and not log.exists()
    told = benchmark(corpus, log, *asked).splitlines()
    assert "the numbers mean nothing" in told[0]
    assert told[2].startswith("fa3          not here: No module named")
    assert told[3].startswith("flex         not here: FlexAttention does not support backward on CPU")
    assert [line.split()[0] for line in told[4:8]] == ["sdpa", "sdpa,", "short,", "edit"]
    found = json.loads(told[-1])
    assert found["done"] and found["bars_hold"] is None
    assert found["kernels"]["sdpa"]["tokens_per_s"] > 0
    assert found["effects"]["smear off"]["change_percent"] != 0
    runs = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(one["name"], one["seed"]) for one in runs] == [
        *(("fa3", 0), ("flex", 0), ("sdpa, whole", 0)),  # in the place of both torch's own kernel ran
        *(("short", 0), ("short", 1), ("smear off", 0), ("smear off", 1)),
    ]
    assert benchmark(corpus, log, *asked, "--minutes", 0).splitlines() == told
