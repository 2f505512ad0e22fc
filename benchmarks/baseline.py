"""Measure the shipped train.py against two references, with the same data and the same CPU-seconds of one thread.

    .venv/bin/python benchmarks/baseline.py             # about 13 CPU-minutes; --jobs 2 on two free cores
    .venv/bin/python benchmarks/baseline.py --quick     # 2 CPU-seconds and one seed: does it run?

Each run is a process of its own, with the memory settings of a node's trials (they speed up every trainer); its budget
is CPU-seconds of training (start-up and scoring are free for all). The references' schedules follow the share of the
budget used. train.py has a stream of fixed length instead: its speed is measured first, over a tenth of the budget, and
the stream made to fit 98 % of it; the table says what was really used.
The references' settings are swept on seed 0, the best two of each run on every seed, and the better of these counts.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import islice
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from opponents import autoresearch, nanogpt
from opponents.measuring import execute, peak_gflops, prepare, script, val_bpb

from node.trial import MALLOC

WINDOW = 256  # context at which all are scored, but for a reference with learned positions that was trained on less
BATCH_TOKENS = 1024  # a step of the references, and of train.py: in 20 CPU-seconds everything is short of steps
FIT = 0.98  # train.py aims at this share of the budget, so that a slower minute does not give it more than the others
SIZE = {"WIDTH": 96, "DEPTH": 2, "HEAD_DIM": 48}  # of all trainers; what 20 CPU-seconds can use
OURS: dict[str, dict[str, Any]] = {
    "train.py, as shipped (bigram, smear, ALiBi off)": {"BIGRAM": False, "SMEAR": False, "ALIBI": False},
    # At this many tokens attention should reach further back than at a trial's.
    "train.py, bigram, smear, ALiBi on": {"BIGRAM": True, "SMEAR": True, "ALIBI": True, "SLOPE": 0.06},
    "train.py, every switch off": {
        **{"BIGRAM": False, "SMEAR": False, "ALIBI": False},
        **{"VALUE_EMBEDDING": False, "SOFTCAP": 0.0, "ACTIVATION": "gelu"},
    },
}
BARS = {"nanogpt": (0.93, 0.84), "autoresearch": (0.98, 0.90)}  # as shipped; with the three on


class Entry(NamedTuple):
    """One trainer with its settings."""

    kind: str  # ours, nanogpt, autoresearch
    name: str
    lr: float = 1.0  # autoresearch: multiplies its default step sizes
    warmup: float = 0.0  # share of the budget
    context: int = 128  # tokens of a sequence in training
    constants: tuple[tuple[str, Any], ...] = ()  # of train.py

    @property
    def window(self) -> int:
        """Context of its score."""
        return self.context if self.kind == "nanogpt" else WINDOW


class Result(NamedTuple):
    """What one run gave."""

    entry: Entry
    seed: int
    val_bpb: float
    cpu_s: float
    tokens: int
    flops_per_token: float


def sweep(quick: bool) -> dict[str, list[Entry]]:
    """The settings that each reference is tried with."""
    # lr, warm-up, context
    plain = [(5e-3, 0.1, 128), (2.5e-3, 0.1, 128), (1e-2, 0.1, 128)]
    plain += [(5e-3, 0.3, 128), (5e-3, 0.5, 128), (5e-3, 0.1, 256)]
    strong = [(1.0, 0.0, 128), (0.5, 0.0, 128), (2.0, 0.0, 128), (4.0, 0.0, 128), (1.0, 0.05, 128)]
    entries = {
        "nanogpt": [Entry("nanogpt", f"lr {lr:g}, warm-up {w:.0%}, context {c}", lr, w, c) for lr, w, c in plain],
        "autoresearch": [Entry("autoresearch", f"lr x {lr:g}, warm-up {w:.0%}", lr, w, c) for lr, w, c in strong],
    }
    return {kind: tried[:1] if quick else tried for kind, tried in entries.items()}


def shipped(extra: dict[str, Any]) -> list[Entry]:
    """Our own script, three ways."""
    return [Entry("ours", name, constants=tuple({**SIZE, **on, **extra}.items())) for name, on in OURS.items()]


# --- one run, in a process of its own --------------------------------------------------------------------


def run(entry: Entry, seed: int, cpu_s: float, data: Path) -> Result:
    """Train within the budget, then score."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    return (run_ours if entry.kind == "ours" else run_reference)(entry, seed, cpu_s, data)


def run_ours(entry: Entry, seed: int, cpu_s: float, data: Path) -> Result:
    """train.py on as many tokens as its own speed makes of the budget."""
    with tempfile.TemporaryDirectory() as folder:
        train = execute(script(dict(entry.constants), Path(folder) / "train.py"))
    meta = json.loads((data / "train" / "meta.json").read_text())
    step_tokens = train.SEQ_LEN * train.BATCH
    count = int(FIT * cpu_s * speed(train, seed, cpu_s / 10, data, meta)) // step_tokens * step_tokens
    torch.manual_seed(seed)
    steps = train.Batches(train.read_stream(count, data / "train", seed), meta["bos"])
    started = time.process_time()
    model = train.GPT(meta["vocab_size"])
    for _ in train.losses(model, steps):
        pass
    used = time.process_time() - started
    flops = flops_per_token(train.WIDTH, train.DEPTH, meta["vocab_size"], train.SEQ_LEN)
    return Result(entry, seed, val_bpb(model, data, entry.window), used, count, flops)


def speed(train: Any, seed: int, cpu_s: float, data: Path, meta: dict[str, int]) -> float:
    """Tokens per CPU-second, once warm."""
    steps = train.Batches(train.read_stream(400_000, data / "train", seed), meta["bos"])
    losses = train.losses(train.GPT(meta["vocab_size"]), steps)
    list(islice(losses, 3))
    started, done = time.process_time(), 0
    while time.process_time() - started < cpu_s and next(losses, None) is not None:
        done += 1
    return float(done * train.SEQ_LEN * train.BATCH / (time.process_time() - started))


def run_reference(entry: Entry, seed: int, cpu_s: float, data: Path) -> Result:
    """A reference on random pieces of the same tokens, until the budget is used."""
    vocabulary = json.loads((data / "train" / "meta.json").read_text())["vocab_size"]
    shape = (vocabulary, SIZE["WIDTH"], SIZE["DEPTH"], SIZE["WIDTH"] // SIZE["HEAD_DIM"])
    model, optimizer = reference(entry, shape)
    corpus = np.fromfile(data / "train" / "tokens.bin", dtype="<u2").astype(np.int64)
    rng, within = np.random.default_rng(seed), np.arange(entry.context + 1)
    steps, started = 0, time.process_time()
    while (used := time.process_time() - started) < cpu_s:
        starts = rng.integers(0, len(corpus) - entry.context - 1, size=BATCH_TOKENS // entry.context)
        pieces = torch.from_numpy(corpus[starts[:, None] + within])
        loss = F.cross_entropy(model(pieces[:, :-1]).float().flatten(0, 1), pieces[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not say
        optimizer.step(used / cpu_s)
        steps += 1
    flops = flops_per_token(SIZE["WIDTH"], SIZE["DEPTH"], vocabulary, entry.context)
    return Result(entry, seed, val_bpb(model, data, entry.window), used, steps * BATCH_TOKENS, flops)


def reference(entry: Entry, shape: tuple[int, int, int, int]) -> tuple[torch.nn.Module, Any]:
    """Model and optimizer."""
    if entry.kind == "nanogpt":
        plain = nanogpt.GPT(nanogpt.Size(*shape, context=entry.context))
        return plain, nanogpt.Optimizer(plain, entry.lr, entry.warmup)
    strong = autoresearch.GPT(autoresearch.Size(*shape))
    return strong, autoresearch.Optimizer(strong, entry.lr, entry.warmup)


def flops_per_token(width: int, depth: int, vocabulary: int, context: int) -> float:
    """6 per weight that multiplies, and 12 x depth x width x context for attention, as PaLM counts them."""
    return 6 * (depth * 12 * width**2 + vocabulary * width) + 12 * depth * width * context


# --- all runs --------------------------------------------------------------------------------------------


def run_all(wanted: Sequence[tuple[Entry, int]], cpu_s: float, data: Path, jobs: int) -> list[Result]:
    """Every run in a fresh process, in the order asked for."""
    results = {}
    os.environ.update(MALLOC)  # read by the C library when a process starts
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        asked = {pool.submit(run, entry, seed, cpu_s, data): (entry, seed) for entry, seed in wanted}
        for number, future in enumerate(as_completed(asked), start=1):
            entry, seed = asked[future]
            result = results[entry, seed] = future.result()
            told = f"{entry.kind}: {entry.name}, seed {seed}: {result.val_bpb:.4f} in {result.cpu_s:.1f} CPU-s"
            print(f"[{number}/{len(asked)}] {told}", file=sys.stderr, flush=True)
    return [results[key] for key in wanted]


def best(results: Sequence[Result], kind: str, count: int) -> list[Entry]:
    """The entries of a kind with the lowest mean."""
    entries = list(dict.fromkeys(result.entry for result in results if result.entry.kind == kind))
    return sorted(entries, key=lambda entry: mean_of(results, entry))[:count]


def mean_of(results: Sequence[Result], entry: Entry) -> float:
    """val_bpb over all seeds of an entry."""
    return fmean(result.val_bpb for result in results if result.entry == entry)


def row(results: Sequence[Result], entry: Entry, peak: float) -> str:
    """One line of the table."""
    mine = [result for result in results if result.entry == entry]
    scores = [result.val_bpb for result in mine]
    rate = fmean(result.tokens / result.cpu_s for result in mine)
    cells = (
        *(entry.kind, entry.name, " ".join(f"{score:.4f}" for score in scores), f"{fmean(scores):.4f}"),
        *(f"{stdev(scores) / fmean(scores):.2%}" if len(scores) > 1 else "-", f"{entry.window}"),
        *(f"{fmean(result.cpu_s for result in mine):.1f}", f"{rate / 1000:.1f} k"),
        f"{rate * mine[0].flops_per_token / (peak * 1e9):.0%}",
    )
    return "| " + " | ".join(cells) + " |"


def table(results: Sequence[Result], entries: Sequence[Entry], peak: float) -> str:
    """Rows under their head."""
    head = "trainer|setting|val_bpb by seed|mean|sd|scored at|CPU-s|tokens/CPU-s|MFU".split("|")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + [row(results, entry, peak) for entry in entries])


def ratios(results: Sequence[Result], ours: Sequence[Entry]) -> tuple[str, bool]:
    """Our means over the better setting of each reference, against the bars; do all hold?"""
    lines, held = [], True
    for kind, bars in BARS.items():
        rival = best(results, kind, 1)[0]
        for entry, bar in zip(ours, (*bars, None), strict=True):
            ratio = mean_of(results, entry) / mean_of(results, rival)
            verdict = "no bar" if bar is None else f"bar {bar}: {'holds' if ratio <= bar else 'FAILS'}"
            held = held and (bar is None or ratio <= bar)
            lines.append(f"{entry.name} / {kind} ({rival.name}): {ratio:.3f}  ({verdict})")
    return "\n".join(lines), held


def measure(arguments: argparse.Namespace, data: Path) -> bool:
    """Sweep, choose, run on all seeds, print."""
    dtype = nanogpt.DTYPE
    peak = peak_gflops(dtype)
    cpu_s, seeds = (2.0, [0]) if arguments.quick else (arguments.cpu_seconds, list(range(arguments.seeds)))
    ours, swept = shipped(dict(arguments.set)), sweep(arguments.quick)
    first = [(entry, 0) for entry in (*swept["nanogpt"], *swept["autoresearch"], *ours)]
    results = run_all(first, cpu_s, data, arguments.jobs)
    finalists = [entry for kind in swept for entry in best(results, kind, 2)]
    print(f"{cpu_s:g} CPU-seconds of training each, one thread, {SIZE}; peak {peak:.0f} GFLOP/s ({dtype})\n")
    print("Sweep of the references on seed 0:\n")
    print(table(results, [entry for kind in swept for entry in swept[kind]], peak), flush=True)
    later = [(entry, seed) for seed in seeds[1:] for entry in (*ours, *finalists)]
    results += run_all(later, cpu_s, data, arguments.jobs)
    print(f"\nSeeds {seeds}:\n\n{table(results, [*finalists, *ours], peak)}\n")
    text, held = ratios(results, ours)
    print(text)
    return held or arguments.quick


def constant(text: str) -> tuple[str, Any]:
    """NAME=VALUE of the command line."""
    name, _, value = text.partition("=")
    return name, json.loads(value)


def main() -> int:
    """0 when every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 CPU-seconds, one seed, one setting, no verdict")
    parser.add_argument("--cpu-seconds", type=float, default=20.0, help="of training, for each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one core each")
    parser.add_argument("--set", type=constant, action="append", default=[], help="NAME=VALUE in train.py")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return 0 if measure(arguments, prepare(Path(folder) / "data")) else 1


if __name__ == "__main__":
    sys.exit(main())
