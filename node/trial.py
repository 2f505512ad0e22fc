"""One Trial, from files and a seed to an outcome.

Owns the order of things: a fresh scratch, the token stream, training in one box, scoring in another, the audit of its
answers in a third, and nothing left behind. It decides who is to blame when something goes wrong. It does not know why
the Trial is made (only whether anything will rest on its score), what it is compared with, or who asked.

At isolation level 0 the folders below are a convention that a candidate may break; the sandbox makes them walls.
"""

import errno
import math
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from node.artifact import hash_artifact, take_again, take_artifact
from node.audit import CUTS, Others, Passed, audit_of, in_time, plain_bits
from node.data import Data, write_documents, write_stream
from node.library import library_for
from node.processes import MARK
from node.sandbox import Box, Sandbox
from node.scoring import (
    Split,
    bits_per_byte,
    claimed_bits,
    finish,
    printed_score,
    read_questions,
    token_bits,
)
from node.scratch import new_home, opened, remove, sweep_scratch
from node.watch import Phase, TrialFailed, Watch, check_exit, running
from swarm.errors import TaskError
from swarm.records import (
    Block,
    Failure,
    Limits,
    Measurement,
    NodeInfo,
    Outcome,
    Purpose,
    TrialDisturbed,
    TrialFinished,
    TrialSpec,
)
from swarm.task import Task, bundle, command, editable_only, read_frozen, unbundle

READY = "ready"  # the file in --out by which a trial with a budget in seconds asks for its tokens
GRACE_S = 2.0  # a trial paces itself to end within its seconds; this long after them it is killed
FULL_DISK_BYTES = 16 * 2**20  # below this a candidate that failed gets no blame
# glibc gives large blocks back to the kernel and takes them again at every step: 6 to 13 % of a CPU trial.
MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "MALLOC_TOP_PAD_": "67108864",
}
# A screening is evidence of nothing: it saves the price of the audit, 2.6 to 4.2 CPU-s beside 4 to 6 of training and
# 1.7 to 2.3 of scoring (one of each is `import torch`). Every run that decides about a claim pays it.
NOT_AUDITED: frozenset[Purpose] = frozenset({"reference", "screen"})
OnPhase = Callable[[Phase, float], None]
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Workshop:
    """What a Node needs to run Trials of one Task, one at a time."""

    task: Task
    folder: Path  # the task folder, unbundled
    data: Data | None  # None when the Task has none
    sandbox: Sandbox
    scratch: Path  # a folder of each Trial is made here, and removed
    threads: int = 1
    others: Others = field(default_factory=Others)  # whose scores were believed here
    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic


@dataclass(frozen=True)
class TrialRun:
    """What came of a Trial, and when."""

    outcome: Outcome
    started_at: float
    ended_at: float
    log: str  # the last 4 kB of what training printed; of scoring nothing, it could be the text that is asked about

    def fact(self, spec: TrialSpec, node: NodeInfo, block: Block | None) -> TrialFinished | TrialDisturbed:
        """What a Node tells of it."""
        if isinstance(self.outcome, Failure) and self.outcome.blame == "machinery":
            return TrialDisturbed(spec.id, node.uid, 1, self.outcome, time.time())
        return TrialFinished(
            trial=spec.id,
            candidate=spec.candidate,
            experiment=spec.experiment,
            seed=spec.seed,
            purpose=spec.purpose,
            node=node.uid,
            platform=node.platform.id,
            sandbox_level=node.sandbox_level,
            block=block.id if block else "",
            fence=block.fence if block else 0,
            started_at=self.started_at,
            ended_at=self.ended_at,
            outcome=self.outcome,
            log=self.log,
        )


def run_trial(
    spec: TrialSpec,
    *,
    workshop: Workshop,
    on_phase: OnPhase = lambda phase, cpu_s: None,
    stop: threading.Event | None = None,
    keep: Path | None = None,
) -> TrialRun:
    """Train and score one Candidate with one seed. Never raises for what a candidate or a machine does.

    Call it from a thread that lives as long as the Node: a Trial dies with the thread that started it.
    `on_phase` hears the phase and its CPU seconds about 20 times a second, in this thread. `stop` ends the Trial
    within 0.1 s. If it is measured, its artifact becomes the folder `keep`, on the disk of the workshop's scratch.
    """
    trial = _Trial(spec, workshop, "val", on_phase, stop or threading.Event())
    return _settled(trial, lambda home: trial.train_and_score(home, keep))


def score_on_holdout(
    spec: TrialSpec,
    artifact: Path,
    identity: str,
    *,
    workshop: Workshop,
    on_phase: OnPhase = lambda phase, cpu_s: None,
    stop: threading.Event | None = None,
) -> TrialRun:
    """Score, with an audit, the artifact that a Trial left, on the split that no Trial sees. Nothing is trained."""
    trial = _Trial(spec, workshop, "holdout", on_phase, stop or threading.Event())
    return _settled(trial, lambda home: trial.score_again(home, artifact, identity))


def _settled(trial: "_Trial", work: Callable[[Path], Measurement]) -> TrialRun:
    """Do it in a scratch of its own, and say who is to blame if it fails."""
    workshop, started_at = trial.workshop, trial.workshop.now()
    outcome: Outcome
    try:
        sweep_scratch(workshop.scratch)
        with new_home(workshop.scratch) as home:
            outcome = work(home)
    except TrialFailed as failed:
        outcome = failed.failure(trial.cpu_s)
    except TaskError as error:
        outcome = Failure(blame="machinery", reason="lost", message=str(error), cpu_s=trial.cpu_s)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        outcome = Failure(blame="machinery", reason="disk" if full else "lost", message=str(error), cpu_s=trial.cpu_s)
    return TrialRun(outcome, trial.started_at or started_at, workshop.now(), trial.log)


class _Trial:
    """The state of one Trial while it runs; what is known of it survives its failure."""

    def __init__(
        self,
        spec: TrialSpec,
        workshop: Workshop,
        split: Split,
        on_phase: OnPhase,
        stop: threading.Event,
    ) -> None:
        self.spec, self.workshop, self.split = spec, workshop, split
        self.on_phase, self.stop = on_phase, stop
        self.scale = workshop.task.scale if spec.purpose == "transfer" else None
        self.started_at = 0.0
        self.cpu_s = 0.0
        self.log = ""

    def train_and_score(self, home: Path, keep: Path | None) -> Measurement:
        """Everything, in its order."""
        self._lay_out(home)
        with opened(home / "box") as box:
            train = self._train(home, box)
            identity = take_artifact("out", box, home / "artifact")
        measured = self._score(home, train, identity)
        if keep is not None:
            (home / "artifact").rename(keep)
        return measured

    def score_again(self, home: Path, artifact: Path, identity: str) -> Measurement:
        """From what training left."""
        self.started_at, started = self.workshop.now(), self.workshop.monotonic()
        self._lay_out(home)
        if take_again(artifact, home / "artifact") != identity:
            raise OSError(f"{artifact} is not the artifact any more that its trial left")
        score, _ = self._ask(home, identity)
        return Measurement(score, 0.0, 0.0, self.workshop.monotonic() - started, identity, audited=self._audited)

    def _lay_out(self, home: Path) -> None:
        task, spec, data = self.workshop.task, self.spec, self.workshop.data
        try:
            editable_only(spec.files, task)
            own = {path: text.encode() for path, text in spec.files.items()}
        except (TaskError, UnicodeEncodeError) as error:
            raise TrialFailed("candidate", "rule", str(error)) from error
        if task.has_data and data is None:
            raise OSError(f"the Task {task.name} needs prepared data; this node has none")
        for name in ("box", "box/out"):
            (home / name).mkdir()
        frozen = read_frozen(self.workshop.folder, task)
        # A script that reads its neighbours by relative paths finds them: its folder is its working directory.
        others = bundle(self.workshop.folder) if task.score == "printed" else {}
        code = self._code(home)
        unbundle({**others, **frozen, **own}, code)
        if data is not None and task.tokens:
            self._give(home, data.folder / "train")
        for path in (*frozen, *own):
            (code / path).chmod(0o444)

    def _give(self, home: Path, train: Path) -> None:
        """The stream, and of the text that it was drawn from only the facts that shape a model."""
        task, seed = self.workshop.task, self.spec.seed
        for name in ("facts", "released"):
            (home / name).mkdir()
        if (train / "meta.json").is_file():
            shutil.copyfile(train / "meta.json", home / "facts" / "meta.json")
        if task.timed:  # out of sight until the clock starts
            write_documents(home / "stream.bin", train, seed, task.tokens)
        else:
            count = task.tokens * (self.scale.tokens if self.scale else 1)
            write_stream(home / "released" / "stream.bin", train / "tokens.bin", seed, count)

    def _code(self, home: Path) -> Path:
        return home / "box" if self.workshop.task.score == "printed" else home / "code"

    def _train(self, home: Path, scratch: int) -> Watch:
        task, code = self.workshop.task, self._code(home)
        values, readable = self._shown(home)
        values |= {"out": home / "box" / "out", "seed": self.spec.seed}
        argv = command(task.commands.train, code, values) + (self.scale.arguments if self.scale else ())
        box = self._box(argv, (code, *readable), home / "box", home)
        if task.timed:  # its wall clock pays for everything
            box = replace(box, limits=replace(box.limits, cpu_s=math.inf))
        self.started_at = self.workshop.now()
        with self._running(box, "train", home) as watch:
            released = not task.timed or self._release(watch, home, scratch)
            watch.until_end()
        self._judge(watch, home)
        if not released:
            raise TrialFailed("candidate", "rule", f"ended without the file {READY} in --out that asks for its tokens")
        return watch

    def _shown(self, home: Path) -> tuple[dict[str, object], tuple[Path, ...]]:
        """What training is told of data, and which paths it may read for it."""
        task, data = self.workshop.task, self.workshop.data
        if data is None:
            return {}, ()
        # Data of a printed score has a layout of its own, and nothing of ours to hide.
        shown, released = home / "facts" if task.score == "answers" else data.folder, home / "released"
        return {"data": shown, "budget": released / "stream.bin"}, (shown, released) if task.tokens else (shown,)

    def _release(self, watch: Watch, home: Path, scratch: int) -> bool:
        """Let it build and compile, hand over the tokens, start the clock; False when it ended before it was ready."""
        task = self.workshop.task
        watch.start_clock(task.compile_seconds, "was not ready for its tokens within")
        if not watch.until(lambda: _is_ready(scratch)):
            return False
        with suppress(OSError), opened("out", scratch) as out:  # whatever it is; it would be part of the artifact
            os.unlink(READY, dir_fd=out)
        watch.start_clock(task.seconds + GRACE_S, "ran longer than")
        (home / "stream.bin").rename(home / "released" / "stream.bin")
        return True

    def _judge(self, watch: Watch, home: Path) -> None:
        try:
            check_exit(watch, "crash")
        except TrialFailed as failed:
            if shutil.disk_usage(home).free < FULL_DISK_BYTES:
                raise TrialFailed("machinery", "disk", f"the disk of {home.parent} is full: free some") from failed
            raise

    def _score(self, home: Path, train: Watch, identity: str) -> Measurement:
        task, started = self.workshop.task, self.workshop.monotonic()
        printed = task.score == "printed"
        score, owed_s = (printed_score(train.log.text, task.pattern), 0.0) if printed else self._ask(home, identity)
        return Measurement(
            score=score,
            cpu_s=train.cpu_s + owed_s,
            peak_memory_mb=train.peak_memory_mb,
            scoring_s=self.workshop.monotonic() - started,
            artifact=identity,
            self_reported=printed,
            audited=not printed and self._audited,
        )

    def _ask(self, home: Path, identity: str) -> tuple[float, float]:
        """The score, and the CPU seconds that it took beyond what others needed."""
        task, data = self.workshop.task, self.workshop.data
        if not identity:
            raise TrialFailed("candidate", "rule", "training ended well but left no file in its --out folder")
        assert data is not None, f"{task.name} has data: _lay_out made sure"
        questions = read_questions(data.folder, self.split, task.window, task.val_tokens)
        others = self.workshop.others.besides(self._comparable, self.spec.candidate)
        # Not from the seed: a candidate knows that one.
        random, tolerance = np.random.default_rng(secrets.randbits(128)), task.tolerance_bits
        audit = audit_of(questions, random, tolerance) if self._audited else None
        limits = in_time(self.spec.limits, others)
        with self._answering(home, limits) as watch:
            bits = audit.score(watch) if audit else (claimed_bits if tolerance else token_bits)(watch, questions)
        score, passed = bits_per_byte(bits, questions), Passed(bits, watch.cpu_s, watch.elapsed_s)
        if audit:
            if hash_artifact(home / "artifact") != identity:
                raise TrialFailed("candidate", "rule", "changed its artifact while it was scored")
            more = replace(limits, cpu_s=CUTS * limits.cpu_s, wall_s=CUTS * limits.wall_s)
            with self._answering(home, more) as watch:
                audit.ask_again(watch, bits, [plain_bits(data.folder, questions), *([others.bits] if others else [])])
                finish(watch)
        if self.spec.purpose != "screen":
            self.workshop.others.remember(self._comparable, self.spec.candidate, passed)
        return score, passed.owed_s(others)

    @property
    def _comparable(self) -> tuple[Split, bool]:
        """Token for token: the same text, at the same scale."""
        return self.split, self.scale is not None

    @property
    def _audited(self) -> bool:
        return self.spec.purpose not in NOT_AUDITED

    @contextmanager
    def _answering(self, home: Path, limits: Limits) -> Iterator[Watch]:
        """A new process that answers from the artifact, and sees nothing of what others answered, nor that any did."""
        task, code, scratch = self.workshop.task, self._code(home), home / "answers"
        if scratch.exists():
            remove(scratch.rename(home / secrets.token_hex(8)))
        scratch.mkdir()
        argv = command(task.commands.score, code, {"code": code / task.train_script, "artifact": home / "artifact"})
        box = self._box(argv, (code, home / "artifact"), scratch, home, answers=True)
        with self._running(replace(box, limits=limits), "score", home) as watch:
            yield watch

    def _box(
        self, argv: tuple[str, ...], readable: tuple[Path, ...], scratch: Path, home: Path, answers: bool = False
    ) -> Box:
        seed, threads = self.spec.seed, str(self.workshop.threads)
        environment = {
            **dict.fromkeys(THREAD_VARIABLES, threads),
            "PYTHONUNBUFFERED": "1",  # the last lines of what is killed are the ones that matter
            "PYTHONHASHSEED": str(seed % 2**32),  # one seed, one run: the order of sets, too
            "SWARM_SEED": str(seed),
            **MALLOC,
            MARK: str(home),
        }
        task, walled, data = self.workshop.task, self.workshop.sandbox.level > 0, self.workshop.data
        library = library_for(data.folder, self.workshop.folder, self.workshop.scratch) if walled and data else None
        counted = task.score == "answers" and not task.timed  # in CPU time, and a child's can be hidden
        limits = self.spec.limits
        return Box(argv, readable, scratch, limits, environment, answers, threads_only=counted, library=library)

    @contextmanager
    def _running(self, box: Box, phase: Phase, home: Path) -> Iterator[Watch]:
        watch: Watch | None = None
        try:
            with running(
                self.workshop.sandbox,
                box,
                mark=str(home),
                phase=phase,
                stop=self.stop,
                monotonic=self.workshop.monotonic,
                on_phase=self.on_phase,
            ) as watch:
                yield watch
        finally:
            if watch is not None:
                self._remember(watch, phase)

    def _remember(self, watch: Watch, phase: Phase) -> None:
        if phase == "train":
            self.cpu_s = watch.cpu_s
            self.log = watch.log.tail


def _is_ready(scratch: int) -> bool:
    with suppress(OSError), opened("out", scratch) as out:
        os.stat(READY, dir_fd=out, follow_symlinks=False)
        return True
    return False
