"""Kill anything, at any moment: real studies by the real command line, on real Ray, with a task that takes 0.3 s.

Only processes that carry the mark of the study's own folder are ever signalled, and the coordinator that was started
here. Every wait is a poll with a deadline; kills follow the study's progress.
"""

import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest

from swarm.ledger import Ledger
from swarm.records import Fact, Failure, Measurement, StudyFinished, TrialFinished

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SWARM = Path(sys.executable).with_name("swarm")
MARKS = ("SWARM_HOME", "SWARM_TRIAL")
F = TypeVar("F", bound=Fact)
T = TypeVar("T")

TASK = """
name = "quick"
editable = ["train.py"]
[commands]
train = "train.py"
[metric]
name = "score"
score = "printed"
pattern = '^score: (\\S+)'
[budget]
cpu_limit = 50.0  # 0.05 s of CPU time, mostly the start of Python: a share of it says nothing
"""
TRAIN = """
import os, random, time

WIDTH = 32  # choices: 16, 32, 64
GATE = False
DECAY = 0.1  # range: 0.01..0.5 log
DROPOUT = 0.0  # range: 0.0..0.5
ORDER = "given"  # choices: given, sorted, mixed

luck = random.Random(f"{os.environ['SWARM_SEED']} {WIDTH} {GATE} {DECAY} {DROPOUT} {ORDER}").gauss(0, 0.01)
time.sleep(0.25)
print("trained with seed", os.environ["SWARM_SEED"])
print("score:", 1.0 - {16: -0.05, 32: 0.0, 64: 0.08}[WIDTH] - 0.1 * GATE + 0.05 * DROPOUT + luck)
"""
CONFIG = """
study = "kill"
task = "task"
[stop]
trials = {trials}
wall_minutes = {wall_minutes}
final_minutes = 0.05
[nodes]
local = 2
trial_wall_s = {trial_wall_s}
poll_s = 0.2
[decision]
calibration_pairs = 2
final_seeds = 2
cpu_ratio = 50.0
"""


def until(holds: Callable[[], T], what: str, timeout_s: float = 40.0) -> T:
    """Poll until it is true; the last value."""
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)
    return value


class Study:
    """One study in a folder of its own, its coordinator as often as it takes, and every process it has."""

    def __init__(
        self, root: Path, *, train: str = TRAIN, trials: int = 60, wall_s: float = 600.0, trial_wall_s: float = 10.0
    ) -> None:
        self.root, self.folder = root, root / "studies" / "kill-1"
        (root / "task").mkdir(parents=True)
        (root / "task" / "task.toml").write_text(TASK)
        (root / "task" / "train.py").write_text(train)
        numbers = {"trials": trials, "wall_minutes": wall_s / 60, "trial_wall_s": trial_wall_s}
        (root / "study.toml").write_text(CONFIG.format(**numbers))
        self.environment: dict[str, str] = {}
        self.coordinator: subprocess.Popen[bytes] | None = None
        self.starts: list[float] = []

    def start(self) -> None:
        """`swarm run`, always the same command."""
        with (self.root / "output.log").open("ab") as output:
            self.coordinator = subprocess.Popen(
                [str(SWARM), "run", "study.toml", "--plain"],
                cwd=self.root,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.starts.append(time.monotonic())

    def leave(self) -> None:
        """`swarm leave`, in another process."""
        subprocess.run([str(SWARM), "leave", "--study", "kill-1"], cwd=self.root, check=True, timeout=60)

    def ended(self) -> int | None:
        """The exit code of the coordinator; None while it runs."""
        assert self.coordinator is not None
        return self.coordinator.poll()

    def interrupt(self) -> int:
        """Ctrl-C; the exit code."""
        assert self.coordinator is not None
        self.coordinator.send_signal(signal.SIGINT)
        return self.coordinator.wait(30)

    def processes(self) -> dict[int, str]:
        """Every process of the study and what it is."""
        found = {}
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and (mark := self._mark(int(entry.name))):
                found[int(entry.name)] = _kind(int(entry.name), mark, self.folder)
        if self.coordinator is not None and self.coordinator.poll() is None:
            found[self.coordinator.pid] = "coordinator"
        return found

    def _mark(self, pid: int) -> str:
        """NAME=FOLDER of what this process belongs to, if that is ours."""
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return ""
        ours = [f"{name}={self.folder}" for name in MARKS]
        marks = [v.decode() for v in variables if any(v == m.encode() or v.startswith(f"{m}/".encode()) for m in ours)]
        return max(marks, default="") if state not in "ZX" else ""  # SWARM_TRIAL before SWARM_HOME

    def facts(self) -> tuple[Fact, ...]:
        if not (self.folder / "ledger.sqlite").exists():
            return ()
        with Ledger(self.folder / "ledger.sqlite", read_only=True) as ledger:
            return ledger.facts()

    def length(self) -> int:
        """How many facts there are."""
        if not (self.folder / "ledger.sqlite").exists():
            return 0
        with closing(sqlite3.connect(f"file:{self.folder}/ledger.sqlite?mode=ro", uri=True, timeout=10)) as db:
            known: int = db.execute("SELECT max(seq) FROM fact").fetchone()[0] or 0
        return known

    def of(self, kind: type[F]) -> list[F]:
        return [fact for fact in self.facts() if isinstance(fact, kind)]

    def trials(self) -> int:
        return len(self.of(TrialFinished))

    def produced(self) -> set[str]:
        """Keys of the trials that the nodes finished, by their own books."""
        keys: set[str] = set()
        for spool in self.folder.glob("nodes/*/kill-1/spool.sqlite"):
            with closing(sqlite3.connect(spool)) as db:
                keys |= {key for (key,) in db.execute("SELECT key FROM produced WHERE key LIKE 'trial:%'")}
        return keys

    def assert_complete(self) -> None:
        """It is finished once, every trial that a node finished is in the ledger once, and no process is left."""
        assert len(self.of(StudyFinished)) == 1
        ledger = Counter(fact.key for fact in self.of(TrialFinished))
        assert set(ledger.values()) == {1}
        assert set(ledger) == self.produced()
        assert not self.processes()

    def tells(self, secrets: Iterable[str]) -> list[tuple[str, str]]:
        """Where which of them stands: in files of the study, what was printed, and git's packed objects."""
        token = self.folder / "run" / "token"  # the one place where the cluster's token belongs
        files = [path for path in self.folder.rglob("*") if path.is_file() and path != token]
        texts = {str(path): path.read_bytes() for path in (*files, self.root / "output.log")}
        for git in {head.parent for head in self.folder.rglob("HEAD") if (head.parent / "objects").is_dir()}:
            packed = ["git", "--git-dir", str(git), "cat-file", "--batch-all-objects", "--batch"]
            texts[f"objects of {git}"] = subprocess.run(packed, check=True, capture_output=True, timeout=60).stdout
        return [(secret, place) for secret in secrets for place, text in texts.items() if secret.encode() in text]

    def output(self) -> str:
        return (self.root / "output.log").read_text(errors="replace")


def _kind(pid: int, mark: str, study: Path) -> str:
    if mark.startswith("SWARM_TRIAL"):
        return "trial"
    where = "head" if mark == f"SWARM_HOME={study}" else "node"
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "gone"
    known = {
        r"swarm\.cluster\.bridge": "bridge",
        r"gcs_server": "gcs",
        r"raylet/raylet": f"{where} raylet",
        r"ray\.scripts\.scripts": f"{where} supervisor",
        r"ray::Host|default_worker": "agent",
    }
    return next((kind for pattern, kind in known.items() if re.search(pattern, command)), f"{where} helper")


@pytest.fixture
def made(tmp_path: Path) -> Iterator[list[Study]]:
    """Studies that a test makes; whatever is left of them afterwards is ended, also when it failed."""
    studies: list[Study] = []
    yield studies
    for study in studies:
        for pid in study.processes():
            _kill(pid)
        if study.coordinator is not None:
            study.coordinator.wait(10)


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


# --- twenty kills ----------------------------------------------------------------------------------------

DECK = [
    *["coordinator"] * 4,
    *["agent"] * 3,
    *["trial"] * 3,
    *["bridge"] * 2,
    *["node raylet"] * 2,
    *["node supervisor"] * 2,
    *["gcs", "head raylet", "head supervisor", "node helper"],
]


def test_twenty_kills_lose_nothing_and_double_nothing(made: list[Study], tmp_path: Path) -> None:
    study = Study(tmp_path)
    made.append(study)
    dice = random.Random(20)
    deck = dice.sample(DECK, len(DECK))
    study.start()
    for kind in deck:
        pid = _victim(study, kind, dice)
        _kill(pid)
        print(time.strftime("%H:%M:%S"), "killed", kind, pid, "after", study.length(), "facts")
        _progress(study, dice)
    until(lambda: _finished(study), "the study finishes", 120)
    study.assert_complete()


def _victim(study: Study, kind: str, dice: random.Random) -> int:
    """Wait for a process of this kind; the coordinator is started again whenever it is gone."""

    def found() -> list[int]:
        _keep_running(study)
        return sorted(pid for pid, one in study.processes().items() if one == kind)

    return dice.choice(until(found, f"there is a {kind}"))


def _progress(study: Study, dice: random.Random) -> None:
    """Let the study commit some facts, or a moment pass: some kills have to meet it while it mends itself."""
    facts, wanted, patience_s = study.length(), dice.randrange(12), dice.uniform(0.2, 3.0)
    deadline = time.monotonic() + patience_s
    while study.length() < facts + wanted and time.monotonic() < deadline:
        time.sleep(0.05)


def _keep_running(study: Study) -> None:
    code = study.ended()
    if code is not None and not study.of(StudyFinished):
        assert code in (-signal.SIGKILL, 1), study.output()  # 1: Ray was killed at every attempt to start it
        study.start()


def _finished(study: Study) -> bool:
    _keep_running(study)
    return study.ended() == 0


# --- ending ----------------------------------------------------------------------------------------------


def test_ctrl_c_ends_in_seconds_and_the_same_command_resumes(made: list[Study], tmp_path: Path) -> None:
    study = Study(tmp_path, train=TRAIN + TALKATIVE, trials=16)
    made.append(study)
    secrets = plant_secrets(study)
    study.start()
    until(lambda: study.trials() >= 4, "four trials have finished")
    began = time.monotonic()
    assert study.interrupt() == 130
    assert time.monotonic() - began < 8
    assert not study.processes()
    study.start()
    until(lambda: study.ended() is not None, "the resumed study ends", 60)
    assert study.ended() == 0
    study.assert_complete()
    assert study.tells(["trained with seed"])  # what a trial prints is kept, and found
    assert not study.tells([*secrets, (study.folder / "run" / "token").read_text().strip()])


# It prints all that it was given and where it could look. The token of the cluster lies above its folder.
TALKATIVE = """
from pathlib import Path
print(dict(os.environ), Path("/proc/self/environ").read_bytes())
for folder in Path.cwd().parents:
    for path in (folder / "run" / "token", folder / ".git" / "config"):
        try:
            print(path.read_text())
        except OSError:
            pass
"""


def plant_secrets(study: Study) -> list[str]:
    """In the environment, under names that tell and one that does not, and in the remote of a git checkout."""
    names = ("ANTHROPIC_API_KEY", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN_COPY", "MY_OWN_PASSWORD")
    study.environment = {name: f"planted{number}in{name.lower()}" for number, name in enumerate(names)}
    subprocess.run(["git", "init", "--quiet", str(study.root)], check=True)
    remote = "https://me:plantedinremote@example.org/x.git"
    subprocess.run(["git", "-C", str(study.root), "remote", "add", "origin", remote], check=True)
    return [*study.environment.values(), "plantedinremote"]


def test_leave_ends_a_study_of_another_process(made: list[Study], tmp_path: Path) -> None:
    study = Study(tmp_path)
    made.append(study)
    study.start()
    until(study.trials, "a trial has finished")
    study.leave()
    assert until(study.ended, "the coordinator has ended") == 130
    assert not study.processes()
    assert not study.of(StudyFinished)
    study.start()
    until(lambda: "agent" in study.processes().values(), "an agent runs")
    _kill(study.coordinator.pid if study.coordinator else -1)
    until(study.ended, "the coordinator is dead")
    assert "agent" in study.processes().values()
    study.leave()
    assert not study.processes()


# --- bad candidates --------------------------------------------------------------------------------------

HABITS = (
    TRAIN
    + """
HABIT = "none"  # choices: none, hang, flood, crash, nan
if HABIT != "none":
    import subprocess, sys
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print("the habit is", HABIT, flush=True)
if HABIT == "hang":
    time.sleep(600)
while HABIT == "flood":
    print("and on" * 1000)
if HABIT == "crash":
    raise RuntimeError("out of ideas")
if HABIT == "nan":
    print("score: nan")
"""
)
WALL_S = 2.0


def test_a_bad_candidate_costs_its_own_slot_and_nothing_else(made: list[Study], tmp_path: Path) -> None:
    study = Study(tmp_path, train=HABITS, trials=70, trial_wall_s=WALL_S)
    made.append(study)
    study.start()
    until(lambda: study.ended() is not None, "the study ends", 90)
    assert study.ended() == 0
    study.assert_complete()
    failed = {str(f.outcome.reason): f for f in study.of(TrialFinished) if isinstance(f.outcome, Failure)}
    assert WALL_S <= failed["timeout"].ended_at - failed["timeout"].started_at < WALL_S + 1
    last_words = {"timeout": "hang", "crash": "RuntimeError: out of ideas", "nan": "nan", "log": "and on"}
    assert last_words.keys() == failed.keys()
    assert all(words in failed[reason].log for reason, words in last_words.items())
    after = max(f.ended_at for f in failed.values())
    for node in {f.node for f in failed.values()}:
        later = [f for f in study.of(TrialFinished) if f.node == node and f.started_at >= after]
        assert any(isinstance(f.outcome, Measurement) for f in later)
