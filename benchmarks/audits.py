"""What the audit of answers costs, whether it spares the honest, and which cheats it catches.

    python benchmarks/audits.py [--audits 200] [--runs 100] [--draws 300]

It trains small models of the shipped task (bf16 and fp32, switches on and off), and the first once more for about 60
CPU seconds, scores each once, and audits them with many secrets. The honest ones must pass. Two of the cheats run as
programs, `--runs` audits each; of all kinds `--draws` are laid on top of the real costs of each token, and it is
counted whether a cut falls behind a peek (that such a cut shows it is what `tests/test_audit.py` holds). Each peeks at
the next token alone, at just so many places that the score gains half of what a study may promote (`margin` of the
decision rule, times s): all else that looks ahead shows at more cuts.

Each audit is of one run, and draws anew; a Verdict that accepts rests on three Pairs at least. Zero of `--audits`,
`--runs` or `--draws` leaves that part out.
"""

import argparse
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from coordinator.reproduction import rule_for  # noqa: E402
from node.audit import CUTS, SPREAD, Audit, chances, draw_cuts, plain_bits  # noqa: E402
from node.data import prepare_data  # noqa: E402
from node.sandbox import Box  # noqa: E402
from node.sandbox.bare import Bare  # noqa: E402
from node.scoring import Bits, Logits, Questions, bits_per_byte, finish, read_questions, token_bits  # noqa: E402
from node.trial import MALLOC, Workshop, run_trial  # noqa: E402
from node.watch import TrialFailed, Watch, running  # noqa: E402
from swarm.records import Limits, TrialSpec  # noqa: E402
from swarm.task import command, load_task  # noqa: E402

Places = NDArray[np.bool_]
Rank = Callable[[Bits, Generator], Bits]
NOISE = 0.014  # s of the shipped task: the sd of one run, 0.01, times the root of 2
TRIAL_CPU_S, LONGER = 60.0, 24  # so many times the shipped task's tokens take about as long
LIMITS = Limits(600, 600)
CHOICE = "DTYPE = torch.bfloat16 if NATIVE else torch.float32"
ON = {
    "bf16": (CHOICE, "DTYPE = torch.bfloat16"),
    "fp32": (CHOICE, "DTYPE = torch.float32"),
    **{name: (f"{name} = False", f"{name} = True") for name in ("SMEAR", "BIGRAM", "ALIBI")},
}
MODELS = ("bf16", "fp32", "bf16 BIGRAM", "fp32 SMEAR ALIBI")


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
    print(f"{name:<18} {run.outcome.kind}, {workshop.task.tokens} tokens, {run.outcome.cpu_s:.1f} CPU-s", flush=True)
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
        audit.ask_again(watch, bits, [bits])
        finish(watch)
        watch.until_end()
    return Work(bits, between - before, cpu_s() - between)


def refused(
    workshop: Workshop, model: Model, questions: Questions, measures: list[Bits], times: int
) -> tuple[Bits, int]:
    """Its bits, and how many audits, each with a secret of its own, refuse it; one process answers them all."""
    audits = [Audit(questions, np.random.default_rng()) for _ in range(times)]

    def keep(logits: Logits) -> None:
        for audit in audits:
            audit.keep(logits)

    with answering(workshop, model) as watch:
        bits = token_bits(watch, questions, keep)
        watch.until_end()
    with answering(workshop, model) as watch:
        found = sum(refuses(audit, watch, bits, measures) for audit in audits)
        finish(watch)
    return bits, found


def refuses(audit: Audit, watch: Watch, bits: Bits, measures: list[Bits]) -> bool:
    """Whether this audit finds something. It ends after a whole frame, so that the next one may begin."""
    try:
        audit.ask_again(watch, bits, measures)
    except TrialFailed as failed:
        assert failed.reason == "rule", failed
        return True
    return False


# --- cheats that run ---


PEEKS = """
_honest = load


def load(path):
    predict = _honest(path)

    def peeking(tokens):
        logits = predict(tokens)
        following = tokens[:, 1:, None]
        cost = logits[:, :-1].logsumexp(2) - logits[:, :-1].gather(2, following)[..., 0]
        places = {places}
        return logits.scatter_add(2, following, 40.0 * places[..., None])

    return peeking
"""


def programs(honest: Bits, questions: Questions, gain: float) -> dict[str, str]:
    """Places of cheats that are worth about `gain`: by what stands there, and by what it costs."""
    worth = places_worth(honest, questions)[:, :-1]
    bits = np.sort(worth[worth > 0])[::-1]
    wanted = gain * questions.token_bytes[questions.targets].sum()
    every = int(bits.sum() / wanted)
    least = bits[int(bits.cumsum().searchsorted(wanted))] * np.log(2)
    return {
        "anywhere": f"(tokens[:, :-1] * 7919 + torch.arange(tokens.shape[1] - 1) * 104729) % {every} == 0",
        "where it pays most": f"cost >= {least}",
    }


def peeking(model: Model, places: str) -> Model:
    """The model with a cheat around it."""
    code = model.code.with_name("cheat.py")
    code.write_text(model.code.read_text() + PEEKS.format(places=places))
    return model._replace(code=code)


# --- cheats that are laid on top of what tokens cost ---


def anywhere(worth: Bits, random: Generator) -> Bits:
    """Wherever it happens to be."""
    return random.random(worth.shape)


def dear(worth: Bits, random: Generator) -> Bits:
    """Where it gains most, so that the places are few."""
    return -worth


def cheap(worth: Bits, random: Generator) -> Bits:
    """Where nobody would look for a gain; below 0.3 bits all the places would not do."""
    return np.where(worth > 0.3, worth, np.inf)


def beside(worth: Bits, random: Generator) -> Bits:
    """At the ends of windows."""
    return np.where(np.arange(worth.shape[1]) == worth.shape[1] - 1, anywhere(worth, random), np.inf)


def few(rank: Rank) -> Rank:
    """In window after window, half of each: as few windows as it can be done in."""

    def ranked(worth: Bits, random: Generator) -> Bits:
        best = rank(worth, random).argsort(axis=1).argsort(axis=1)
        return np.where(best < worth.shape[1] // 2, random.permutation(len(worth))[:, None], len(worth)).astype(float)

    return ranked


CHEATS: dict[str, tuple[Rank, str]] = {  # which places, and down to what: 0 bits, half, or what another model needs
    "anywhere": (anywhere, "0"),
    "dear": (dear, "0"),
    "few windows": (few(anywhere), "0"),
    "few, dear": (few(dear), "0"),
    "halves": (anywhere, "half"),
    "halves, dear": (dear, "half"),
    "cheap": (cheap, "0"),
    "beside": (beside, "0"),
    "as another": (anywhere, "another"),
    "as another, dear": (dear, "another"),
}


def places_worth(honest: Bits, questions: Questions, floor: Bits | float = 0.0) -> Bits:
    """What a peek could gain at each place: also at the last, whose next token begins the window beside it."""
    worth: Bits = np.where(questions.token_bytes[questions.targets] > 0, np.maximum(0, honest - floor), 0)
    return worth


def cheat(rank: Rank, honest: Bits, floor: Bits, questions: Questions, gain: float, random: Generator) -> Places:
    """Just so many places, those of the lowest rank first, that the score gains `gain`."""
    worth = places_worth(honest, questions, floor)
    order = rank(worth, random).ravel().argsort(kind="stable")
    order = order[worth.ravel()[order] > 0]
    wanted = gain * questions.token_bytes[questions.targets].sum()
    peeked = np.zeros(worth.size, dtype=bool)
    peeked[order[: int(worth.ravel()[order].cumsum().searchsorted(wanted)) + 1]] = True
    return peeked.reshape(worth.shape)


class Situation(NamedTuple):
    """Whose costs a cheat is laid on, what the audit measures by, and what the cheat knows of it."""

    words: str
    honest: Bits
    measures: list[Bits]
    another: Bits


def caught(kind: str, at: Situation, questions: Questions, gain: float, draws: int) -> str:
    """How often a cut falls behind a peek, and how many places were peeked at."""
    rank, down_to = CHEATS[kind]
    floor = {"0": np.zeros_like(at.honest), "half": at.honest / 2, "another": at.another}[down_to]
    random, hits, places = np.random.default_rng(1), 0, 0.0
    for _ in range(draws):
        peeked = cheat(rank, at.honest, floor, questions, gain, random)
        bits = np.where(peeked, floor, at.honest)
        cuts = draw_cuts(chances(bits, at.measures, questions), random)
        hits += bool(peeked[np.arange(len(bits)), cuts - 1].any())
        places += float(peeked.sum()) / draws
    return f"{hits / draws:.1%} ({places:.0f})"


# --- what is printed ---


def tell_cost(workshop: Workshop, models: list[Model], questions: Questions) -> list[Bits]:
    """CPU seconds of scoring and audit, this process and the candidate's together. Returns the bits of each model."""
    works = [worked(workshop, model, questions) for model in models]
    start = min(started_s(workshop, model, questions) for model in models)
    for model, work in zip(models, works, strict=True):
        net = work.scoring_s + work.audit_s - 2 * start
        print(
            f"{model.name:<18} {bits_per_byte(work.bits, questions):.4f} scoring {work.scoring_s:.2f} + audit"
            f" {work.audit_s:.2f} CPU-s; without two starts of {start:.2f}: {net:.2f}, {net / TRIAL_CPU_S:.1%} of 60 s",
            flush=True,
        )
    return [work.bits for work in works]


def tell_honest(workshop: Workshop, models: list[Model], part: Questions, measure: Bits, audits: int) -> None:
    """The honest must pass."""
    each = audits // len(models)
    found = [refused(workshop, model, part, [measure[: len(part.inputs)]], each)[1] for model in models]
    print(
        f"honest models refused: {sum(found)} of {each * len(models)} audits of {len(part.inputs)} windows", flush=True
    )


def tell_programs(
    workshop: Workshop, model: Model, questions: Questions, honest: Bits, measures: list[Bits], runs: int
) -> None:
    """Cheats that run must not."""
    gain = rule_for("standard").margin * NOISE / 2
    for kind, places in programs(honest, questions, gain).items():
        bits, found = refused(workshop, peeking(model, places), questions, measures, runs)
        won = bits_per_byte(honest, questions) - bits_per_byte(bits, questions)
        print(f"a program that peeks {kind} gains {won:.4f}: caught in {found} of {runs} audits", flush=True)


def tell_cheats(situations: list[Situation], questions: Questions, draws: int) -> None:
    """All kinds, in all situations, for all dials."""
    print("caught (places peeked at)              gain  " + "  ".join(f"{kind:>16}" for kind in CHEATS))
    for at in situations:
        for dial in ("economy", "standard", "thorough"):
            gain = rule_for(dial).margin * NOISE / 2
            row = "  ".join(f"{caught(kind, at, questions, gain, draws):>16}" for kind in CHEATS)
            print(f"{at.words:<26} {dial:<10} {gain:.4f}  {row}", flush=True)


def report(audits: int, runs: int, draws: int) -> None:
    """Train the models, measure, and print what was found."""
    folder = ROOT / "baseline"
    task = load_task(folder)
    with tempfile.TemporaryDirectory() as root:
        data = prepare_data(task, folder, "", Path(root) / "data")
        assert data is not None
        workshop = Workshop(task, folder, data, Bare(), Path(root) / "scratch")
        longer = replace(workshop, task=replace(task, tokens=LONGER * task.tokens))
        models = [trained(workshop, name, seed) for seed, name in enumerate(MODELS)]
        models.append(trained(longer, MODELS[0], len(MODELS)))
        whole = read_questions(data.folder, "val", task.window, task.val_tokens)
        part = read_questions(data.folder, "val", task.window, 67 * task.window)  # the last frame holds 3 windows
        print(
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {len(whole.inputs)} windows of {task.window}"
            f" tokens, {CUTS} cuts in each, {SPREAD:.0%} of them even"
        )
        champion, same, better, other, _ = tell_cost(workshop, models, whole)
        plain = plain_bits(data.folder, whole)
        if audits:
            tell_honest(workshop, models, part, champion, audits)
        if runs:
            tell_programs(workshop, models[1], whole, same, [plain, champion], runs)
    if draws:
        situations = [
            Situation("like the champion", same, [plain, champion], better),
            Situation("better than it", better, [plain, champion], same),
            Situation("two others known", same, [plain, (champion + other) / 2], better),
            Situation("nobody known", same, [plain], better),
            Situation("knows the pairs", same, [plain, champion], plain),
            Situation("knows the only other", same, [plain, champion], champion),
            Situation("knows all there is", same, [plain, champion], np.maximum(plain, champion)),
        ]
        tell_cheats(situations, whole, draws)


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audits", type=int, default=200)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--draws", type=int, default=300)
    report(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
