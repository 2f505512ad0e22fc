"""Level 3: memory and processes end at their limits also where nobody watches, neighbours live, and no group stays."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from subprocess import Popen

import pytest
from test_sandbox import OWNER, available
from toy_task import PRINTED, eventually, is_running, printed_task, spec_of, workshop_at

from node.sandbox import Box
from node.sandbox.bwrap import Bwrap
from node.sandbox.cgroup import Cgroup
from node.sandbox.choice import best, choose_sandbox
from node.sandbox.groups import PREFIX, TOLD, Group, make_group, parents
from node.trial import Workshop, run_trial
from swarm.errors import ConfigError
from swarm.records import Failure, Limits, Measurement

FEW = Limits(cpu_s=20, wall_s=20, memory_mb=150, processes=30)
ROOT = Path(__file__).resolve().parent.parent

# Each process takes less than the limit, both together more.
OVER_TWO = """
import os, signal
mine, theirs = os.pipe()
if os.fork() == 0:
    taken = b'x' * (90 * 2**20)
    os.write(theirs, b'!')
    signal.pause()
os.close(theirs)
taken = b'x' * (90 * 2**20)
os.read(mine, 1)
"""
IN_MEMORY_FILES = (
    "open('/dev/shm/a', 'wb').write(b'x' * (90 * 2**20))\nopen('/tmp/b', 'wb').write(b'x' * (90 * 2**20))\n"
)
# It sees that a child was killed, and goes on as if nothing was.
GREEDY_CHILD = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'x = b\"x\" * (2**29)'])\n"
# What each child used is in nobody's table once it ended: its parent said that it will collect none.
HIDES = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(8):
    if os.fork() == 0:
        while time.process_time() < 0.05: pass
        os._exit(0)
    try: os.wait()
    except ChildProcessError: pass
print('val_bpb: 1')
"""
BOMB = """
import os, signal, sys
started = 0
try:
    while started < 200:
        if os.fork() == 0:
            signal.pause()
        started += 1
except BlockingIOError:
    pass
"""


@pytest.fixture
def bounded() -> Cgroup:
    sandbox = available(Cgroup)
    assert isinstance(sandbox, Cgroup)
    return sandbox


@pytest.fixture
def workshop(tmp_path: Path, bounded: Cgroup) -> Workshop:
    """Of a task whose candidates may make processes."""
    return replace(workshop_at(tmp_path, printed_task(tmp_path / "task")), sandbox=bounded)


def groups(owner: int | None = None) -> set[Path]:
    """Every group of a process, or of this one, that is here now: others may run tests beside us."""
    folders = parents(*(path.read_text() for path in TOLD))
    return {path for folder in folders for path in folder.glob(f"{PREFIX}{owner or os.getpid()}-*")}


@contextmanager
def box(sandbox: Bwrap, scratch: Path, code: str, limits: Limits = FEW) -> Iterator[Popen[bytes]]:
    """A box that nobody watches."""
    with sandbox.start(Box((sys.executable, "-c", code), (), scratch, limits)) as process:
        try:
            yield process
        finally:
            sandbox.kill(process)


def said(process: Popen[bytes]) -> str:
    """The next line of its log."""
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


@pytest.mark.parametrize("attack", [OVER_TWO, IN_MEMORY_FILES])
def test_memory_ends_at_its_limit_and_the_neighbour_lives(bounded: Cgroup, tmp_path: Path, attack: str) -> None:
    calm = "import sys\nprint('here', flush=True)\nheld = b'x' * (50 * 2**20)\nsys.stdin.read()\nprint(len(held))"
    attack = f"{attack}\nprint('had it', flush=True)"
    with box(Bwrap(), tmp_path, attack) as process:
        assert said(process) == "had it"  # walls alone do not stop it
    with box(bounded, tmp_path, "import time\nprint('here', flush=True)\ntime.sleep(60)") as neighbour:
        assert said(neighbour) == "here"
        with box(bounded, tmp_path, attack) as process:
            assert eventually(lambda: bounded.starved(process), 10)
        assert bounded.starved(process)  # also when its group is gone
        assert is_running(neighbour.pid) and not bounded.starved(neighbour)
    with box(bounded, tmp_path, calm) as process:
        assert (said(process), said(process), process.wait(10)) == ("here", str(50 * 2**20), 0)


def test_cpu_time_of_children_that_nobody_collects_is_counted(workshop: Workshop) -> None:
    outcome = run_trial(spec_of(HIDES), workshop=workshop).outcome
    assert isinstance(outcome, Measurement) and outcome.cpu_s >= 0.4


@pytest.mark.parametrize("attack", [OVER_TWO, IN_MEMORY_FILES, GREEDY_CHILD])
def test_a_trial_that_met_its_limit_failed_for_memory(workshop: Workshop, attack: str) -> None:
    # The honest rest follows: that one process was killed must not be forgotten.
    outcome = run_trial(replace(spec_of(f"{attack}\n{PRINTED}"), limits=FEW), workshop=workshop).outcome
    assert isinstance(outcome, Failure)
    assert (outcome.blame, outcome.reason) == ("candidate", "memory")
    assert "of 150 MB" in outcome.message
    assert groups() == set()


def test_a_killed_child_is_not_taken_for_want_of_memory(workshop: Workshop) -> None:
    suicide = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import os; os.kill(os.getpid(), 9)'])\n"
    assert isinstance(run_trial(spec_of(suicide + PRINTED), workshop=workshop).outcome, Measurement)


def test_a_fork_bomb_ends_at_its_limit_and_the_neighbour_may_fork(bounded: Cgroup, tmp_path: Path) -> None:
    count = f"{BOMB}\nprint(started, flush=True)\nsignal.pause()"
    with box(bounded, tmp_path, count) as bomb:
        assert int(said(bomb)) == FEW.processes - 1  # with itself: the limit
        with box(bounded, tmp_path, count) as neighbour:
            assert int(said(neighbour)) == FEW.processes - 1
    assert groups() == set()


def test_a_fork_bomb_in_a_trial_breaks_a_rule(workshop: Workshop) -> None:
    few = replace(FEW, memory_mb=2048)  # each of them is counted with all that it shares with the others
    outcome = run_trial(replace(spec_of(f"{BOMB}\nsignal.pause()"), limits=few), workshop=workshop).outcome
    assert isinstance(outcome, Failure)
    assert (outcome.blame, outcome.reason) == ("candidate", "rule")


def test_what_a_killed_owner_left_is_swept_at_the_next_start_and_no_other(bounded: Cgroup, tmp_path: Path) -> None:
    argv = (sys.executable, "-c", OWNER, str(tmp_path), "cgroup")
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    with box(bounded, tmp_path, "import time\nprint(1, flush=True)\ntime.sleep(60)") as mine:
        assert said(mine) == "1"
        ours = groups()
        with Popen(argv, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}) as owner:
            assert owner.stdout is not None
            pid = int(owner.stdout.readline())
            Cgroup()  # a start beside it
            assert groups(owner.pid) and is_running(pid) and is_running(mine.pid)
            owner.kill()
        Cgroup()
        assert groups(owner.pid) == set()
        assert groups() == ours and is_running(mine.pid)
    assert ours and groups() == set()


def test_a_box_that_cannot_be_built_leaves_no_group(bounded: Cgroup, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        bounded.start(Box((sys.executable, "-c", ""), (tmp_path / "missing",), tmp_path, FEW))
    with pytest.raises(OSError, match="not-there"):
        bounded.start(Box((str(tmp_path / "not-there"),), (), tmp_path, FEW))
    assert groups() == set()


@pytest.mark.usefixtures("bounded")
def test_a_limit_that_does_not_stand_makes_no_group() -> None:
    with pytest.raises(OSError):
        make_group(replace(FEW, memory_mb=2**50))
    assert groups() == set()


@pytest.mark.usefixtures("bounded")
def test_whoever_is_left_in_a_group_ends_with_it() -> None:
    group = Group(FEW)
    with group.doors() as doors:
        enter = (
            f"import os, signal\nfor door in {doors!r}: os.write(door, b'0')\nprint('in', flush=True)\nsignal.pause()"
        )
        with Popen((sys.executable, "-c", enter), stdout=subprocess.PIPE, pass_fds=doors) as process:
            assert said(process) == "in"
            group.remove()
            assert process.wait(5) == -9
    assert groups() == set()
    group.remove()


@pytest.mark.usefixtures("bounded")
def test_where_no_group_can_be_made_auto_is_level_2_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").touch()
    monkeypatch.setattr("node.sandbox.groups.TOLD", (tmp_path / "empty", tmp_path / "empty"))
    best.cache_clear()
    try:
        assert choose_sandbox("auto").level == 2
        assert best().lacks.startswith("no control group can be made")
        with pytest.raises(ConfigError, match="no control group can be made"):
            choose_sandbox("cgroup")
    finally:
        best.cache_clear()


MOUNT = "31 30 0:27 {root} {folder} rw,relatime - {kind} {kind} rw,{options}"


def mount(folder: str | Path, options: str = "", root: str = "/") -> str:
    """A line of /proc/self/mountinfo."""
    return MOUNT.format(
        root=root, folder=folder, kind="cgroup" if options else "cgroup2", options=options or "nsdelegate"
    )


V1 = "\n".join((mount("/c/memory", "memory"), mount("/c/pids", "pids"), mount("/c/unified")))
TOGETHER = mount("/c/all", "memory,pids")


@pytest.mark.parametrize(
    ("own", "mounts", "expected"),
    [
        ("8:pids:/\n4:memory:/user/one\n0::/", V1, ("/c/memory/user/one", "/c/pids")),
        ("4:pids,memory:/user\n", TOGETHER, ("/c/all/user",)),
        (
            "2:cpuacct:/\n8:pids:/\n4:memory:/a\n",
            f"{V1}\n{mount('/c/cpu', 'cpuacct')}",
            ("/c/memory/a", "/c/pids", "/c/cpu"),
        ),
        ("4:memory,pids:/docker/1/user\n", mount("/c/all", "memory,pids", "/docker/1"), ("/c/all/user",)),
    ],
)
def test_groups_of_version_1_are_made_within_the_nodes_own(own: str, mounts: str, expected: tuple[str, ...]) -> None:
    assert parents(own, f"22 1 8:1 / / rw - ext4 /dev/a rw\n{mounts}\n") == tuple(Path(path) for path in expected)


@pytest.mark.parametrize(("hands_on", "expected"), [("app", "app"), ("app/node", "app/node"), ("", "app/node")])
def test_a_group_of_version_2_is_made_where_its_controls_are_handed_on(
    tmp_path: Path, hands_on: str, expected: str
) -> None:
    (tmp_path / "app" / "node").mkdir(parents=True)
    if hands_on:
        (tmp_path / hands_on / "cgroup.subtree_control").write_text("cpu memory pids\n")
    assert parents("0::/app/node\n", mount(tmp_path)) == (tmp_path / expected,)


@pytest.mark.parametrize("own", ["0::/../elsewhere\n", "1:name=systemd:/\n", ""])
def test_where_no_group_is_ours_none_is_made(own: str) -> None:
    with pytest.raises(OSError, match="no control groups"):
        parents(own, mount("/c/unified"))
