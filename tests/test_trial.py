"""One Trial with real processes: candidates of every habit, and whom the outcome blames."""

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
import toy_task as toy

from node.data import PIECE, prepare_data, write_stream
from node.processes import MARK
from node.sandbox import Box
from node.sandbox.bare import Bare
from node.scratch import sweep_scratch
from node.trial import TrialRun, Workshop, run_trial
from node.watch import TrialFailed, plain, running
from swarm.errors import TaskError
from swarm.records import Failure, Limits, Measurement


@pytest.fixture
def answers(tmp_path: Path) -> Workshop:
    return toy.workshop_at(tmp_path, toy.answers_task(tmp_path / "task"))


@pytest.fixture
def printed(tmp_path: Path) -> Workshop:
    return toy.workshop_at(tmp_path, toy.printed_task(tmp_path / "printed"))


def failure_of(run: TrialRun) -> Failure:
    assert isinstance(run.outcome, Failure), run.outcome
    return run.outcome


def leftovers(workshop: Workshop) -> list[Path]:
    return list(workshop.scratch.iterdir())


# --- what goes well ---


def test_an_honest_candidate_is_measured(answers: Workshop) -> None:
    phases: list[str] = []
    before = time.time()
    run = run_trial(toy.spec_of(toy.HONEST), workshop=answers, on_phase=lambda phase, cpu_s: phases.append(phase))
    assert isinstance(run.outcome, Measurement), run.outcome
    assert run.log == f"trained on {toy.TOKENS} tokens with seed 0\n"
    assert 0 < run.outcome.cpu_s < 5
    assert run.outcome.peak_memory_mb > 1
    assert len(run.outcome.artifact) == 64
    assert before <= run.started_at <= run.ended_at <= time.time()
    assert phases == sorted(phases, reverse=True)  # train, then score
    assert set(phases) == {"train", "score"}
    assert leftovers(answers) == []


LONGER = f"trained on {3 * toy.TOKENS} tokens with seed 4\n"


@pytest.mark.parametrize(("scale", "told"), [("tokens=3", LONGER), ("depth=2", "--scale depth=2")])
def test_a_check_of_transfer_trains_at_the_larger_scale_and_nothing_else_does(
    tmp_path: Path, scale: str, told: str
) -> None:
    workshop = toy.workshop_at(tmp_path, toy.answers_task(tmp_path / "task", scale=scale))
    train = toy.HONEST + "print('--scale', options.get('--scale'))\n"
    ordinary = run_trial(toy.spec_of(train, seed=4), workshop=workshop)
    scaled = run_trial(replace(toy.spec_of(train, seed=4), purpose="transfer"), workshop=workshop)
    assert isinstance(scaled.outcome, Measurement) and scaled.outcome.audited, scaled.outcome
    assert told in scaled.log and told not in ordinary.log


def test_one_seed_is_one_run(answers: Workshop) -> None:
    outcomes = [run_trial(toy.spec_of(toy.HONEST, seed=seed), workshop=answers).outcome for seed in (5, 5, 6)]
    hashes = [outcome.artifact for outcome in outcomes if isinstance(outcome, Measurement)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_printed_score_is_taken_and_marked(printed: Workshop) -> None:
    run = run_trial(toy.spec_of(toy.PRINTED, seed=3), workshop=printed)
    assert isinstance(run.outcome, Measurement), run.outcome
    assert (run.outcome.score, run.outcome.self_reported, run.outcome.artifact) == (1.25, True, "")
    assert "seed 3" in run.log


def test_a_printed_task_runs_in_a_copy_of_its_folder(printed: Workshop) -> None:
    train = "import helper\nopen('notes', 'w').write(open('helper.py').read())\nprint('val_bpb:', helper.VALUE)\n"
    run = run_trial(toy.spec_of(train), workshop=printed)
    assert isinstance(run.outcome, Measurement), run.outcome
    assert run.outcome.score == 2.5
    assert not (printed.folder / "notes").exists()


def test_a_printed_task_may_have_data_in_a_layout_of_its_own(tmp_path: Path) -> None:
    folder = toy.printed_task(tmp_path / "task")
    (folder / "prepare.py").write_text("")
    text = (folder / "task.toml").read_text()
    (folder / "task.toml").write_text(
        text.replace('train = "train.py"', 'prepare = "prepare.py"\ntrain = "train.py {data}"')
    )
    workshop = toy.workshop_at(tmp_path, folder)
    train = "import os, sys\nprint('val_bpb:', len(os.listdir(sys.argv[1])))\n"
    outcome = run_trial(toy.spec_of(train), workshop=workshop).outcome
    assert isinstance(outcome, Measurement), outcome
    assert outcome.score == 5


def test_cpu_time_of_finished_children_counts(printed: Workshop) -> None:
    burn = "import time\nwhile time.process_time() < 0.4: pass\n"
    train = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])\nprint('val_bpb: 1')\n"
    outcome = run_trial(toy.spec_of(train), workshop=printed).outcome
    assert isinstance(outcome, Measurement)
    assert 0.35 <= outcome.cpu_s < 2  # 0.4, counted in ticks


# --- the token stream ---


def test_the_stream_is_exact_and_drawn_by_the_seed(tmp_path: Path) -> None:
    tokens = toy.write_data(tmp_path).folder / "train" / "tokens.bin"
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_stream(tmp_path / name, tokens, seed, 1300)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert len(a) == 2 * 1300
    assert a == b != c
    everything = tokens.read_bytes()
    pieces = [a[start : start + 2 * PIECE] for start in range(0, len(a), 2 * PIECE)]
    assert all(piece in everything for piece in pieces)


# --- what a candidate does wrong ---

CRASHES = "def deep():\n    raise ValueError('width must be even')\ndeep()\n"
HANGS = "print('before the silence')\nimport time\ntime.sleep(60)\n"
BURNS = "while True: pass\n"
FLOODS = "while True: print('x' * 1000)\n"
HOARDS = "hoard = []\nwhile True: hoard.append(bytearray(b'x' * 2**22))\n"
MANY_FILES = "import time\nfor n in range(900): open(str(n), 'w').close()\ntime.sleep(60)\n"
MUCH_DISK = "import time\nfor n in range(9): open(str(n), 'wb').write(bytes(2**20))\ntime.sleep(60)\n"
MULTIPLIES = "import os, time\nfor _ in range(5): os.fork()\ntime.sleep(60)\n"
PAGES = """
import mmap, time
where = mmap.mmap(-1, 2**36, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
where.madvise(mmap.MADV_NOHUGEPAGE)
for place in range(0, 2**36, 2**21): where[place]
time.sleep(60)
"""
THREADS = """
import threading, time
for _ in range(30): threading.Thread(target=time.sleep, args=(60,)).start()
"""
BURIES = """
import os, time
for _ in range(1500):
    os.mkdir('deep'); os.chdir('deep')
time.sleep(60)
"""
DIVERGES = "import sys\nprint('step 1 loss 7.0')\nsys.exit('loss is nan at step 2: stopped')\n"
NO_ARTIFACT = "print('done')\n"
SEGFAULTS = "import os\nos.kill(os.getpid(), 11)\n"
HOSTILE_ARTIFACT = """
import os, sys
out = dict(zip(sys.argv[1::2], sys.argv[2::2]))["--out"]
os.symlink("/etc/passwd", out + "/model.pt")
"""


ROOMY = toy.spec_of("").limits


@pytest.mark.parametrize(
    ("train", "limits", "reason", "words"),
    [
        (CRASHES, ROOMY, "crash", "ValueError: width must be even"),
        (SEGFAULTS, ROOMY, "crash", "SIGSEGV"),
        ("def broken(", ROOMY, "crash", "SyntaxError"),
        (HANGS, replace(ROOMY, wall_s=0.5), "timeout", "ran longer than 0.5 s"),
        (BURNS, replace(ROOMY, cpu_s=0.5), "timeout", "more than 0.5 s of CPU"),
        (FLOODS, ROOMY, "log", "more than 100000 bytes"),
        (HOARDS, replace(ROOMY, memory_mb=200), "memory", "of 200 MB"),
        (PAGES, replace(ROOMY, memory_mb=100), "memory", "of 100 MB"),
        (DIVERGES, ROOMY, "nan", "loss is nan"),
        (MANY_FILES, replace(ROOMY, files=500), "disk", "more than 500 files"),
        (MUCH_DISK, replace(ROOMY, disk_mb=8), "disk", "more than 8 MB"),
        (BURIES, replace(ROOMY, disk_mb=8), "disk", "cannot be looked into"),
        (MULTIPLIES, replace(ROOMY, processes=20), "rule", "20 are allowed"),
        (THREADS, replace(ROOMY, processes=20), "rule", "20 are allowed"),
        (NO_ARTIFACT, ROOMY, "rule", "left no file"),
        (HOSTILE_ARTIFACT, ROOMY, "rule", "model.pt"),
    ],
)
def test_a_bad_candidate_costs_its_own_slot(
    answers: Workshop, train: str, limits: Limits, reason: str, words: str
) -> None:
    before = time.monotonic()
    failure = failure_of(run_trial(replace(toy.spec_of(train), limits=limits), workshop=answers))
    assert (failure.blame, failure.reason) == ("candidate", reason)
    assert words in failure.message
    assert time.monotonic() - before < 20  # left alone, some of them would sleep for a minute
    assert leftovers(answers) == []


def test_the_last_lines_of_what_was_killed_are_kept(answers: Workshop) -> None:
    run = run_trial(toy.spec_of(HANGS, wall_s=0.5), workshop=answers)
    assert run.log == "before the silence\n"


def test_a_flood_keeps_its_last_4_kb(answers: Workshop) -> None:
    assert 1000 < len(run_trial(toy.spec_of(FLOODS), workshop=answers).log) <= 4096


def test_it_is_killed_within_a_second_after_its_limit(answers: Workshop) -> None:
    run = run_trial(toy.spec_of(HANGS, wall_s=0.3), workshop=answers)
    assert failure_of(run).reason == "timeout"
    assert run.ended_at - run.started_at < 0.3 + 1.0


def test_cpu_time_of_the_killed_is_told(answers: Workshop) -> None:
    failure = failure_of(run_trial(toy.spec_of(BURNS, cpu_s=0.5), workshop=answers))
    assert 0.5 <= failure.cpu_s < 1.0


SPREADS = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        fd = os.open({path!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(fd, b"%d\\n" % os.getpid())
        while True: pass
    os._exit(0)
os.wait()
time.sleep({patience})
"""


def test_a_daemon_is_counted_and_dies_with_its_trial(answers: Workshop, tmp_path: Path) -> None:
    train = SPREADS.format(path=str(tmp_path / "pids"), patience=60)
    failure = failure_of(run_trial(toy.spec_of(train, cpu_s=0.8), workshop=answers))
    assert failure.reason == "timeout"
    assert not toy.any_running(toy.read_pids(tmp_path / "pids"))


def test_a_daemon_does_not_outlive_a_good_trial(answers: Workshop, tmp_path: Path) -> None:
    train = toy.HONEST + SPREADS.format(path=str(tmp_path / "pids"), patience=0.2)
    run = run_trial(toy.spec_of(train), workshop=answers)
    assert isinstance(run.outcome, Measurement), run.outcome
    pids = toy.read_pids(tmp_path / "pids")
    assert len(pids) == 1
    assert not toy.any_running(pids)


def test_files_that_are_not_editable_are_refused_unrun(answers: Workshop) -> None:
    spec = toy.spec_of(toy.HONEST)
    run = run_trial(replace(spec, files={**spec.files, "score.py": "print(1)"}), workshop=answers)
    failure = failure_of(run)
    assert (failure.blame, failure.reason) == ("candidate", "rule")
    assert "score.py may not be edited" in failure.message
    assert run.log == ""


def test_a_folder_without_permissions_is_removed_all_the_same(answers: Workshop) -> None:
    train = toy.HONEST + "import os\nos.makedirs('locked/inner')\nos.chmod('locked', 0)\n"
    run_trial(toy.spec_of(train), workshop=answers)
    assert leftovers(answers) == []


def test_a_log_cannot_steer_a_terminal() -> None:
    assert plain(b"a\x1b[2J\x1b[31mb\x07\rc\r\nd\x00\xff\te\n") == "ab\nc\nd\ufffd\te\n"


# --- what the machinery does wrong ---


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_from_outside_blames_nobody(answers: Workshop, tmp_path: Path, number: signal.Signals) -> None:
    pids = tmp_path / "pids"
    train = f"import os, time\nopen({str(pids)!r}, 'w').write(f'{{os.getpid()}}\\n')\ntime.sleep(60)\n"

    def shoot(phase: str, cpu_s: float) -> None:
        for pid in toy.read_pids(pids):
            os.kill(pid, number)

    failure = failure_of(run_trial(toy.spec_of(train), workshop=answers, on_phase=shoot))
    assert (failure.blame, failure.reason) == ("machinery", "killed")
    assert number.name in failure.message


def test_stop_ends_it_at_once(answers: Workshop) -> None:
    stop = threading.Event()
    run = run_trial(toy.spec_of(HANGS), workshop=answers, stop=stop, on_phase=lambda phase, cpu_s: stop.set())
    failure = failure_of(run)
    assert (failure.blame, failure.reason) == ("machinery", "stopped")
    assert run.ended_at - run.started_at < 1
    assert leftovers(answers) == []


class Broken(Bare):
    """A sandbox on a machine that is out of something."""

    number = errno.ENOSPC

    def start(self, box: Box) -> Popen[bytes]:
        raise OSError(self.number, os.strerror(self.number))


class Exhausted(Broken):
    """Out of processes."""

    number = errno.EAGAIN


@pytest.mark.parametrize(("sandbox", "reason"), [(Broken, "disk"), (Exhausted, "lost")])
def test_a_machine_in_need_is_not_the_candidates_fault(
    answers: Workshop, sandbox: Callable[[], Bare], reason: str
) -> None:
    failure = failure_of(run_trial(toy.spec_of(toy.HONEST), workshop=replace(answers, sandbox=sandbox())))
    assert (failure.blame, failure.reason) == ("machinery", reason)


def test_missing_data_is_not_the_candidates_fault(answers: Workshop) -> None:
    assert answers.data is not None
    (answers.data.folder / "val" / "tokens.bin").unlink()
    assert failure_of(run_trial(toy.spec_of(toy.HONEST), workshop=answers)).blame == "machinery"


def test_a_changed_frozen_file_is_never_run(answers: Workshop) -> None:
    (answers.folder / "score.py").write_text("print('mine')")
    failure = failure_of(run_trial(toy.spec_of(toy.HONEST), workshop=answers))
    assert failure.blame == "machinery"
    assert "frozen files may not be edited" in failure.message


# --- scratch ---


def test_what_a_killed_owner_left_is_swept(tmp_path: Path) -> None:
    home = tmp_path / "trial-dead"
    (home / "box").mkdir(parents=True)
    environment = {**os.environ, MARK: str(home)}
    argv = (sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)")
    with Popen(argv, env=environment, stdout=PIPE, start_new_session=True) as orphan:
        assert orphan.stdout is not None
        orphan.stdout.read(1)
        sweep_scratch(tmp_path)
        assert orphan.wait(5) == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_a_trial_in_progress_is_not_swept(answers: Workshop) -> None:
    def sweep(phase: str, cpu_s: float) -> None:
        sweep_scratch(answers.scratch)

    run = run_trial(toy.spec_of(toy.HONEST), workshop=answers, on_phase=sweep)
    assert isinstance(run.outcome, Measurement), run.outcome


# --- prepared data ---

PREPARES = """
import json, os, sys
out = sys.argv[2]
os.makedirs(out, exist_ok=True)
open(out + "/runs", "a").write("x")
open(out + "/manifest.json", "w").write(json.dumps({"fingerprint": "f1"}))
"""


def test_data_is_prepared_by_the_task_or_taken_as_given(answers: Workshop, printed: Workshop, tmp_path: Path) -> None:
    (answers.folder / "prepare.py").write_text(PREPARES)
    made = prepare_data(answers.task, answers.folder, "", tmp_path / "home")
    assert made is not None
    assert made.fingerprint == "f1"
    assert made == prepare_data(answers.task, answers.folder, str(tmp_path / "absent"), tmp_path / "home")
    assert answers.data is not None
    given = prepare_data(answers.task, answers.folder, str(answers.data.folder), tmp_path / "home")
    assert given is not None
    assert given.fingerprint == "toy"
    assert prepare_data(printed.task, printed.folder, "", tmp_path / "home") is None


class Noting(Bare):
    """Remembers what each box may read."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes: list[Box] = []

    def start(self, box: Box) -> Popen[bytes]:
        self.boxes.append(box)
        return super().start(box)


def test_no_box_of_a_trial_may_read_a_split_that_is_scored(answers: Workshop) -> None:
    assert answers.data is not None
    sandbox = Noting()
    spec = replace(toy.spec_of(toy.HONEST), purpose="confirm")
    run = run_trial(spec, workshop=replace(answers, sandbox=sandbox))
    assert isinstance(run.outcome, Measurement) and run.outcome.audited
    assert len(sandbox.boxes) == 3, "training, scoring and the audit"
    for split in ("val", "holdout"):
        hidden = answers.data.folder / split
        assert not {hidden, *hidden.parents} & {path for box in sandbox.boxes for path in box.readable}


def test_a_preparation_that_fails_says_why(answers: Workshop, tmp_path: Path) -> None:
    (answers.folder / "prepare.py").write_text("raise SystemExit('prepare: disk full, free some space')")
    with pytest.raises(TaskError, match="free some space"):
        prepare_data(answers.task, answers.folder, "", tmp_path / "home")


def test_its_disk_is_looked_at_after_its_clock_began_anew(tmp_path: Path) -> None:
    box = Box((sys.executable, "-c", "import time; time.sleep(60)"), (), tmp_path, Limits(60, 60, disk_mb=1))
    now = 100.0
    with running(
        Bare(), box, mark="anew", phase="train", stop=threading.Event(), monotonic=lambda: now, on_phase=print
    ) as watch:
        now += 30  # of compiling
        watch.step()
        watch.start_clock(20, "ran longer than")
        (tmp_path / "big").write_bytes(b"x" * 2**21)
        now += 1
        with pytest.raises(TrialFailed, match="wrote more than 1 MB"):
            watch.step()
