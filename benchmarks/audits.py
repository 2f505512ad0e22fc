"""What the audit of answers costs, whether it spares the honest, and which cheats it catches.

    python benchmarks/audits.py [--audits 200] [--draws 300]

It trains small models of the shipped task (bf16 and fp32, switches on and off), scores each once, and audits it with
many secrets. Cheats are then laid on top of the real costs of each token: a peek at the next token alone, at just so
many places that the score gains half of what a study may promote (`margin` of the decision rule, times s). Whether a
cut falls behind one is counted; that a cut behind one shows it is what `tests/test_audit.py` holds.
"""

import argparse
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from coordinator.reproduction import rule_for  # noqa: E402
from node.audit import CUTS, SPREAD, Audit, chances, draw_cuts  # noqa: E402
from node.data import prepare_data  # noqa: E402
from node.sandbox import Box  # noqa: E402
from node.sandbox.bare import Bare  # noqa: E402
from node.scoring import Bits, Logits, Questions, bits_per_byte, finish, read_questions, token_bits  # noqa: E402
from node.trial import MALLOC, Workshop, run_trial  # noqa: E402
from node.watch import TrialFailed, Watch, running  # noqa: E402
from swarm.records import Limits, TrialSpec  # noqa: E402
from swarm.task import command, load_task  # noqa: E402

Peeked = NDArray[np.bool_]
NOISE = 0.014  # s of the shipped task: the sd of one run, 0.01, times the root of 2
TRIAL_CPU_S = 60.0
LIMITS = Limits(600, 600)
ON = {
    "bf16": ("DTYPE, DTYPE_REASON = pick_dtype()", 'DTYPE, DTYPE_REASON = torch.bfloat16, "chosen"'),
    "fp32": ("DTYPE, DTYPE_REASON = pick_dtype()", 'DTYPE, DTYPE_REASON = torch.float32, "chosen"'),
    **{name: (f"{name} = False", f"{name} = True") for name in ("SMEAR", "BIGRAM", "ALIBI")},
}
MODELS = ("bf16", "fp32", "bf16 BIGRAM", "fp32 SMEAR ALIBI")
CHEATS = ("anywhere", "where it pays most", "in few windows", "there where it pays most")


class Model(NamedTuple):
    """A trained model: its code and what training left."""

    name: str
    code: Path
    artifact: Path


def edited(name: str) -> str:
    """The shipped script with some of its switches on."""
    text = (ROOT / "baseline" / "train.py").read_text()
    for old, _ in (ON[word] for word in name.split()):
        assert old in text, old
    return reduce(lambda text, word: text.replace(*ON[word]), name.split(), text)


def trained(workshop: Workshop, name: str, seed: int) -> Model:
    """Train one model as a trial does."""
    folder = workshop.scratch / f"model {seed}"
    folder.mkdir(parents=True)
    code = folder / "train.py"
    code.write_text(edited(name))
    spec = TrialSpec(f"{seed}", name, seed, "screen", {"train.py": code.read_text()}, LIMITS)
    run = run_trial(spec, workshop=workshop, keep=folder / "artifact")
    print(f"{name:<18} {run.outcome.kind}, {run.outcome.cpu_s:.1f} CPU-s of training", flush=True)
    return Model(name, code, folder / "artifact")


@contextmanager
def answering(workshop: Workshop, model: Model) -> Iterator[Watch]:
    """A process that answers from a model."""
    argv = command(workshop.task.commands.score, workshop.folder, {"code": model.code, "artifact": model.artifact})
    with tempfile.TemporaryDirectory(dir=workshop.scratch) as scratch:
        box = Box(argv, (), Path(scratch), LIMITS, {"OMP_NUM_THREADS": "1", **MALLOC}, answers=True)
        with running(
            workshop.sandbox,
            box,
            mark=scratch,
            phase="score",
            stop=threading.Event(),
            monotonic=time.monotonic,
            on_phase=lambda phase, cpu_s: None,
        ) as watch:
            yield watch


def cpu_s() -> float:
    """Of this process and of those that it has ended."""
    return sum(
        use.ru_utime + use.ru_stime for use in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def started_s(workshop: Workshop, model: Model, questions: Questions) -> float:
    """CPU seconds of a process that answers about one window."""
    before = cpu_s()
    one = Questions(questions.inputs[:1], questions.targets[:1], questions.spare[:1], questions.token_bytes)
    with answering(workshop, model) as watch:
        token_bits(watch, one)
        watch.until_end()
    return cpu_s() - before


class Work(NamedTuple):
    """What scoring a model and auditing it took, in CPU seconds, each with the start of its process."""

    bits: Bits
    scoring_s: float
    audit_s: float


def worked(workshop: Workshop, model: Model, questions: Questions) -> Work:
    """As a trial that decides does it, without the training."""
    audit, before = Audit(questions, np.random.default_rng()), cpu_s()
    with answering(workshop, model) as watch:
        bits = token_bits(watch, questions, audit.keep)
        watch.until_end()
    between = cpu_s()
    with answering(workshop, model) as watch:
        audit.ask_again(watch, bits, bits)
        finish(watch)
        watch.until_end()
    return Work(bits, between - before, cpu_s() - between)


def refused(workshop: Workshop, model: Model, questions: Questions, times: int) -> int:
    """How many of these audits, each with a secret of its own, refuse an honest model; one process answers them all."""
    audits = [Audit(questions, np.random.default_rng()) for _ in range(times)]

    def keep(logits: Logits) -> None:
        for audit in audits:
            audit.keep(logits)

    with answering(workshop, model) as watch:
        bits = token_bits(watch, questions, keep)
        watch.until_end()
    with answering(workshop, model) as watch:
        found = sum(_refuses(audit, watch, bits) for audit in audits)
        finish(watch)
    return found


def _refuses(audit: Audit, watch: Watch, bits: Bits) -> bool:
    try:
        audit.ask_again(watch, bits, None)
    except TrialFailed as failed:
        print(f"REFUSED: {failed}", flush=True)
        return True
    return False


def cheat(kind: str, honest: Bits, questions: Questions, gain: float, random: Generator) -> tuple[Bits, Peeked]:
    """Peek at the next token, which then costs nothing, at just so many places that the score gains `gain`."""
    lengths = questions.token_bytes[questions.targets]
    worth = np.where(lengths > 0, honest, 0.0)
    worth[:, -1] = 0  # its next token is not sent
    rank = random.random(worth.shape) if kind in ("anywhere", "in few windows") else -worth
    if "few" in kind or "there" in kind:  # windows one after the other, half of each
        best = rank.argsort(axis=1).argsort(axis=1)
        rank = np.where(best < worth.shape[1] // 2, random.permutation(len(worth))[:, None], len(worth))
    order = rank.ravel().argsort(kind="stable")
    count = int(worth.ravel()[order].cumsum().searchsorted(gain * lengths.sum())) + 1
    peeked = np.zeros(worth.size, dtype=bool)
    peeked[order[:count]] = True
    peeked = peeked.reshape(worth.shape) & (worth > 0)
    return np.where(peeked, 0.0, honest), peeked


def caught(kind: str, honest: Bits, others: Bits | None, questions: Questions, gain: float, draws: int) -> str:
    """How often a cut falls behind a peek, and the share of places that were peeked at."""
    random, hits, share = np.random.default_rng(1), 0, 0.0
    for _ in range(draws):
        bits, peeked = cheat(kind, honest, questions, gain, random)
        cuts = draw_cuts(chances(bits, others, questions), random)
        hits += bool(peeked[np.arange(len(bits)), cuts - 1].any())
        share += float(peeked.mean()) / draws
    return f"{hits / draws:>9.1%} ({share:.2%})"


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audits", type=int, default=200)
    parser.add_argument("--draws", type=int, default=300)
    options = parser.parse_args()
    folder = ROOT / "baseline"
    task = load_task(folder)
    with tempfile.TemporaryDirectory() as root:
        data = prepare_data(task, folder, "", Path(root) / "data")
        assert data is not None
        workshop = Workshop(task, folder, data, Bare(), Path(root) / "scratch")
        models = [trained(workshop, name, seed) for seed, name in enumerate(MODELS)]
        whole = read_questions(data.folder, "val", task.window, task.val_tokens)
        part = read_questions(data.folder, "val", task.window, 67 * task.window)  # the last frame holds 3 windows
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {CUTS} cuts a window, {SPREAD:.0%} of them even")
        works = [worked(workshop, model, whole) for model in models]
        start = min(started_s(workshop, model, part) for model in models)
        false = [refused(workshop, model, part, options.audits // len(models)) for model in models]
    for model, work in zip(models, works, strict=True):
        net = work.scoring_s + work.audit_s - 2 * start
        print(
            f"{model.name:<18} {bits_per_byte(work.bits, whole):.4f} scoring {work.scoring_s:.2f} + audit"
            f" {work.audit_s:.2f} CPU-s; without two starts of {start:.2f}: {net:.2f}, {net / TRIAL_CPU_S:.1%} of 60 s"
        )
    print(f"honest models refused: {sum(false)} of {options.audits // len(models) * len(models)} audits of 67 windows")
    champion, same, better = works[0].bits, works[1].bits, works[2].bits
    print("cheats caught (places peeked at)   gain  " + "  ".join(f"{kind:>18}" for kind in CHEATS))
    for words, honest, others in (
        ("like the champion", same, champion),
        ("better than it", better, champion),
        ("nobody known", same, None),
    ):
        for dial in ("economy", "standard", "thorough"):
            gain = rule_for(dial).margin * NOISE / 2
            row = "  ".join(caught(kind, honest, others, whole, gain, options.draws) for kind in CHEATS)
            print(f"{words:<18} {dial:<12} {gain:>7.4f}  {row}", flush=True)


if __name__ == "__main__":
    main()
