"""What every sandbox promises. A new one joins the list in the `sandbox` fixture."""

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from subprocess import Popen

import pytest
from toy_task import eventually, is_running

from node.sandbox import Box, Sandbox
from node.sandbox.bare import Bare
from node.sandbox.bwrap import Bwrap
from node.sandbox.cgroup import Cgroup
from node.sandbox.choice import best, choose_sandbox, starts, tried_sandbox
from node.sandbox.landlock import Landlock, kernel_abi
from node.sandbox.promises import BOUND, NOT_ROOT, level_of
from node.sandbox.slots import USERS
from swarm.errors import ConfigError
from swarm.records import Limits

LIMITS = Limits(cpu_s=10, wall_s=10)

# A parent, a child, and a grandchild that left the session and whose parent is gone.
# Each holds the log's pipe: it ends when nobody is left, which is seen from outside whatever the box hides.
FAMILY = """
import os, time
def tell():
    os.write(1, b"here\\n")
tell()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        tell()
        time.sleep(60)
    os._exit(0)
if os.fork() == 0:
    tell()
    time.sleep(60)
time.sleep(60)
"""


def old_landlock() -> Landlock:
    """Level 1 as the oldest kernel that has it gives it: Linux 5.13."""
    return Landlock(abi=1)


Kind = Callable[[], Sandbox]
KINDS: tuple[Kind, ...] = (Bare, Landlock, old_landlock, Bwrap, Cgroup)


@cache
def lacks(kind: Kind) -> str:
    """Why this machine has no sandbox of this kind; empty when it has."""
    try:
        starts(kind())
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def available(kind: Kind) -> Sandbox:
    """A sandbox of this kind; skips the test where this machine has none."""
    if lacks(kind):
        pytest.skip(f"not here: {lacks(kind)}")
    return kind()


def met(process: Popen[bytes], count: int) -> bool:
    """Whether `count` members of a family came."""
    assert process.stdout is not None
    return all(process.stdout.readline() == b"here\n" for _ in range(count))


def nobody_left(process: Popen[bytes], within_s: float) -> bool:
    """Whether all who hold the log are gone within this time."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], within_s)
    return bool(ready) and process.stdout.read(1) == b""


class TestSandboxContract:
    @pytest.fixture(params=KINDS)
    def sandbox(self, request: pytest.FixtureRequest) -> Sandbox:
        return available(request.param)

    @pytest.fixture
    def started(self, sandbox: Sandbox) -> Iterator[list[Popen[bytes]]]:
        processes: list[Popen[bytes]] = []
        yield processes
        for process in processes:
            sandbox.kill(process)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

    def start(
        self, sandbox: Sandbox, started: list[Popen[bytes]], scratch: Path, code: str, answers: bool = False
    ) -> Popen[bytes]:
        box = Box((sys.executable, "-c", code), (), scratch, LIMITS, {"GIVEN": "yes"}, answers)
        started.append(sandbox.start(box))
        return started[-1]

    def said(self, sandbox: Sandbox, started: list[Popen[bytes]], scratch: Path, code: str) -> str:
        process = self.start(sandbox, started, scratch, code)
        assert process.stdout is not None
        return process.stdout.read().decode()

    def test_the_exit_code_comes_back(self, sandbox: Sandbox, started: list[Popen[bytes]], tmp_path: Path) -> None:
        assert self.start(sandbox, started, tmp_path, "raise SystemExit(7)").wait(10) == 7

    def test_a_signal_comes_back_as_a_negative_code(
        self, sandbox: Sandbox, started: list[Popen[bytes]], tmp_path: Path
    ) -> None:
        process = self.start(sandbox, started, tmp_path, "import os; os.kill(os.getpid(), 11)")
        assert process.wait(10) == -signal.SIGSEGV

    def test_both_outputs_are_one_log(self, sandbox: Sandbox, started: list[Popen[bytes]], tmp_path: Path) -> None:
        code = "import sys; print('one', flush=True); print('two', file=sys.stderr)"
        assert self.said(sandbox, started, tmp_path, code) == "one\ntwo\n"

    def test_answers_are_apart_from_the_log(
        self, sandbox: Sandbox, started: list[Popen[bytes]], tmp_path: Path
    ) -> None:
        code = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read()[::-1]); print('log', file=sys.stderr)"
        process = self.start(sandbox, started, tmp_path, code, answers=True)
        answer, log = process.communicate(b"\x00\x01\xff", timeout=10)
        assert (answer, log) == (b"\xff\x01\x00", b"log\n")

    def test_it_works_in_its_scratch(self, sandbox: Sandbox, started: list[Popen[bytes]], tmp_path: Path) -> None:
        code = "import os, pathlib, tempfile; print(os.getcwd(), pathlib.Path.home(), tempfile.gettempdir())"
        assert self.said(sandbox, started, tmp_path, code).split() == [str(tmp_path)] * 3

    def test_it_reads_nothing_of_ours_from_stdin(
        self, sandbox: Sandbox, started: list[Popen[bytes]], tmp_path: Path
    ) -> None:
        assert self.said(sandbox, started, tmp_path, "import sys; print(repr(sys.stdin.read()))") == "''\n"

    def test_secrets_of_the_node_are_not_in_its_environment(
        self, sandbox: Sandbox, started: list[Popen[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in (
            "ANTHROPIC_API_KEY",
            "GITHUB_TOKEN",
            "RAY_ADDRESS",
            "SSH_AUTH_SOCK",
            "PYTHONPATH",
            "SOMETHING_ELSE",
        ):
            monkeypatch.setenv(name, "planted-secret")
        code = "import os; print(dict(os.environ), open('/proc/self/environ').read())"
        said = self.said(sandbox, started, tmp_path, code)
        assert "planted-secret" not in said
        assert "'GIVEN': 'yes'" in said

    def test_it_inherits_no_descriptor(self, sandbox: Sandbox, started: list[Popen[bytes]], tmp_path: Path) -> None:
        with open(tmp_path / "secret", "w") as file:
            os.set_inheritable(file.fileno(), True)
            # listdir holds one itself while it looks
            said = self.said(sandbox, started, tmp_path, "import os; print(len(os.listdir('/proc/self/fd')))")
        assert said == "4\n"

    def test_it_leaves_no_core_file_and_writes_no_endless_one(
        self, sandbox: Sandbox, started: list[Popen[bytes]], tmp_path: Path
    ) -> None:
        code = "import resource as r; print([r.getrlimit(x)[0] for x in (r.RLIMIT_CORE, r.RLIMIT_FSIZE)])"
        assert self.said(sandbox, started, tmp_path, code) == f"[1, {2**30}]\n"

    def test_it_opens_so_many_files_and_no_more(
        self, sandbox: Sandbox, started: list[Popen[bytes]], tmp_path: Path
    ) -> None:
        code = "import os\ncount = 0\ntry:\n while count < 3000: os.dup(1); count += 1\nexcept OSError: print(count)"
        assert 1000 < int(self.said(sandbox, started, tmp_path, code)) < 1024

    def test_the_whole_tree_dies_within_a_second(
        self, sandbox: Sandbox, started: list[Popen[bytes]], tmp_path: Path
    ) -> None:
        process = self.start(sandbox, started, tmp_path, FAMILY)
        assert met(process, 3)
        before = time.monotonic()
        sandbox.kill(process)
        assert time.monotonic() - before < 1
        assert process.returncode == -signal.SIGKILL
        assert nobody_left(process, 1)

    def test_what_outlives_its_parent_is_killed_too(
        self, sandbox: Sandbox, started: list[Popen[bytes]], tmp_path: Path
    ) -> None:
        process = self.start(sandbox, started, tmp_path, FAMILY)
        assert met(process, 3)
        process.kill()
        process.wait(10)
        sandbox.kill(process)
        assert nobody_left(process, 1)

    def test_killing_twice_is_harmless(self, sandbox: Sandbox, started: list[Popen[bytes]], tmp_path: Path) -> None:
        process = self.start(sandbox, started, tmp_path, "pass")
        assert process.wait(10) == 0
        sandbox.kill(process)
        sandbox.kill(process)
        assert process.returncode == 0

    def test_a_finished_one_keeps_its_exit_code(
        self, sandbox: Sandbox, started: list[Popen[bytes]], tmp_path: Path
    ) -> None:
        process = self.start(sandbox, started, tmp_path, "raise SystemExit(3)")
        assert eventually(lambda: not is_running(process.pid), 10)
        sandbox.kill(process)
        assert process.returncode == 3

    def test_a_tree_that_ended_by_itself_was_not_starved(
        self, sandbox: Sandbox, started: list[Popen[bytes]], tmp_path: Path
    ) -> None:
        process = self.start(sandbox, started, tmp_path, "raise SystemExit(3)")
        assert process.wait(10) == 3 and not sandbox.starved(process)
        sandbox.kill(process)
        assert not sandbox.starved(process)

    def test_no_such_program_is_an_oserror(self, sandbox: Sandbox, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="not-there"):
            sandbox.start(Box((str(tmp_path / "not-there"),), (), tmp_path, LIMITS))

    def test_two_do_not_end_each_other(self, sandbox: Sandbox, started: list[Popen[bytes]], tmp_path: Path) -> None:
        one = self.start(sandbox, started, tmp_path, "import time; time.sleep(60)")
        two = self.start(sandbox, started, tmp_path, "import time; time.sleep(60)")
        sandbox.kill(one)
        assert is_running(two.pid)


OWNER = """
import sys, time
from pathlib import Path
from node.sandbox import Box
from node.sandbox.choice import choose_sandbox
from swarm.records import Limits
code = "import time; print(1, flush=True); time.sleep(60)"
box = Box((sys.executable, "-c", code), (), Path(sys.argv[1]), Limits(9, 9))
sandbox = choose_sandbox(sys.argv[2])
process = sandbox.start(box)
process.stdout.read(1)
print(process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a child of its parent's death")
@pytest.mark.parametrize("kind", [Bare, Landlock, Bwrap, Cgroup])
def test_a_trial_dies_with_its_owner(kind: Kind, tmp_path: Path) -> None:
    name = available(kind).name
    root = Path(__file__).resolve().parent.parent
    argv = (sys.executable, "-c", OWNER, str(tmp_path), name)
    path = os.pathsep.join((str(root), os.environ.get("PYTHONPATH", "")))
    with Popen(argv, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert is_running(pid)
        owner.kill()
    assert eventually(lambda: not is_running(pid), 1)


@pytest.fixture
def no_bwrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without bubblewrap."""
    monkeypatch.setenv("PATH", str(tmp_path))
    best.cache_clear()
    yield
    best.cache_clear()


def next_best() -> str:
    """What is left of a machine without bubblewrap."""
    return "bare" if lacks(Landlock) else "landlock"


@pytest.mark.usefixtures("no_bwrap")
def test_without_bubblewrap_auto_is_the_next_best_and_says_what_is_missing() -> None:
    assert choose_sandbox("auto").name == next_best()
    assert "install bubblewrap" in best().lacks or "Linux" in best().lacks


@pytest.mark.usefixtures("no_bwrap")
def test_walls_that_were_asked_for_are_not_left_out() -> None:
    with pytest.raises(ConfigError, match="install bubblewrap"):
        choose_sandbox("bwrap")


def test_walls_that_do_not_stand_are_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    best.cache_clear()
    try:
        assert choose_sandbox("auto").name == next_best()
        assert "No permissions" in best().lacks or "Linux" in best().lacks
    finally:
        best.cache_clear()


def test_a_door_that_cannot_be_shut_is_no_fault_of_the_candidate(tmp_path: Path) -> None:
    box = Box((sys.executable, "-c", ""), (tmp_path / "missing",), tmp_path, LIMITS)
    with pytest.raises(OSError, match="missing"):
        available(Landlock).start(box)


def test_a_machine_says_which_landlock_it_has() -> None:
    if lacks(Landlock):
        with pytest.raises(ValueError, match="Landlock"):
            kernel_abi()
    else:
        assert kernel_abi() >= 1


# --- whom a box's processes are, where the node is root ---

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="of a node that is root")
TELLS = "open('made', 'w').close()"


def made_by(sandbox: Sandbox, scratch: Path, *readable: Path) -> int:
    """Whose a file is that a box made, seen from outside."""
    process = sandbox.start(Box((sys.executable, "-c", TELLS), readable, scratch, LIMITS))
    with process:
        assert process.stdout is not None
        said, code = process.stdout.read().decode(), process.wait(10)
        sandbox.kill(process)
    assert code == 0, said
    return (scratch / "made").stat().st_uid


@AS_ROOT
@pytest.mark.parametrize("kind", [Bwrap, Cgroup])
def test_a_box_of_root_is_another_user_who_has_its_scratch(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir(mode=0o700)
    assert made_by(available(kind), tmp_path) in USERS
    assert (tmp_path / "given").stat().st_uid == (tmp_path / "made").stat().st_uid


@AS_ROOT
def test_at_level_1_too_where_others_may_reach_what_it_shows() -> None:
    sandbox = available(Landlock)
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # noqa: S108  # pytest's own folder is root's alone
        Path(name).chmod(0o711)
        (Path(name) / "scratch").mkdir()
        user = made_by(sandbox, Path(name) / "scratch")
    assert isinstance(sandbox, Landlock)
    if sandbox.slot.lacks:
        pytest.skip(sandbox.slot.lacks)
    assert user in USERS


@AS_ROOT
def test_no_two_nodes_have_one_user(tmp_path: Path) -> None:
    code = "from node.sandbox.slots import _free_user; print(_free_user())"
    path = os.pathsep.join((str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")))
    told = subprocess.run((sys.executable, "-c", code), capture_output=True, env={**os.environ, "PYTHONPATH": path})
    ours = made_by(available(Bwrap), tmp_path)
    assert {ours, int(told.stdout)} <= set(USERS) and int(told.stdout) != ours


@AS_ROOT
@pytest.mark.parametrize("kind", [Bwrap, Cgroup, Landlock])
def test_what_only_root_may_read_makes_a_box_roots_and_is_told(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "secret").touch(mode=0o600)
    (tmp_path / "scratch").mkdir()
    sandbox = available(kind)
    assert made_by(sandbox, tmp_path / "scratch", tmp_path / "shown") == 0
    assert isinstance(sandbox, Bwrap | Landlock) and "only root may" in sandbox.slot.lacks


# --- what a sandbox keeps of its promises ---


@pytest.mark.parametrize(
    ("level", "broken", "keeps"),
    [
        (3, set(), 3),
        (3, {"memory has a hard limit"}, 2),
        (3, {"no network"}, 0),
        (2, set(BOUND), 2),
        (2, {"other files are hidden"}, 1),
        (2, {NOT_ROOT}, 2),
        (1, {"other files are hidden", *BOUND}, 1),
        (1, {"the whole tree dies"}, 0),
        (0, set(), 0),
    ],
)
def test_a_promise_that_does_not_hold_lowers_the_level(level: int, broken: set[str], keeps: int) -> None:
    promised = ("no network", "other files are hidden", "the whole tree dies", NOT_ROOT, *BOUND)
    assert level_of(level, {promise: promise not in broken for promise in promised}) == keeps


def test_a_sandbox_that_was_named_and_keeps_less_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "boast.py").write_text("from node.sandbox.bare import Bare\nclass Boast(Bare):\n    level = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="no network.* asks for level 1"):
        tried_sandbox("boast:Boast")
