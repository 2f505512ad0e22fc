"""Candidates that try to leave their box, one way each: every way is open at level 0, and closed behind walls.

An attack prints `got it` when it worked. Each also runs in the bare sandbox, where it has to work: a test that cannot
fail would prove nothing. None changes anything of the machine, also where it works.
"""

import ctypes
import os
import re
import select
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from subprocess import Popen
from typing import NamedTuple

import pytest
from attacks import ATTACKS, CARRIES, FAMILIES, HIDERS, RARE, ROOT_ONLY, SECRET
from test_sandbox import Kind, available, lacks, old_landlock
from toy_task import HONEST, answers_task, printed_task, spec_of, workshop_at

from node.sandbox import Box, Sandbox
from node.sandbox.bare import Bare
from node.sandbox.bwrap import Bwrap
from node.sandbox.cgroup import Cgroup
from node.sandbox.landlock import Landlock
from node.sandbox.promises import NOT_ROOT, promises
from node.sandbox.seccomp import (
    CHECKED,
    CHECKED_ALONE,
    DENIED,
    DENIED_ALONE,
    FORKS,
    IDLE_ALONE,
    LIMITING,
    NEVER,
    OWN_ALONE,
    UNSUPPORTED,
    seccomp_filter,
)
from node.trial import run_trial
from swarm.records import Failure, Limits, Measurement

LIMITS = Limits(cpu_s=20, wall_s=20)


class Place(NamedTuple):
    """What an attack may aim at, all of it of this test."""

    secret: Path  # a file outside
    code: Path  # a file that the box shows
    port: int  # somebody listens there
    unix: Path  # and there
    neighbour: Path  # the scratch of another trial
    victim: int  # a process outside
    shared: int  # memory that any process of the user may attach to


@contextmanager
def shared_memory() -> Iterator[int]:
    """A page that outlives whoever made it, as long as nobody removes it."""
    libc = ctypes.CDLL(None)
    identity: int = libc.shmget(0, 4096, 0o1600)
    try:
        yield identity
    finally:
        libc.shmctl(identity, 0, None)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "shown").mkdir()
    (tmp_path / "neighbour").mkdir()
    (tmp_path / "neighbour" / "model.pt").write_text("weights")
    place = Place(
        tmp_path / "secret", tmp_path / "shown" / "code.py", 0, tmp_path / "socket", tmp_path / "neighbour", 0, 0
    )
    place.secret.write_text(SECRET)
    place.code.write_text("pass\n")
    argv = (sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)")
    victim = Popen(argv, env={"KEY": SECRET}, cwd=tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix, victim:
        unix.bind(str(place.unix))
        unix.listen()
        with socket.socket(socket.AF_UNIX) as nameless, shared_memory() as shared:
            nameless.bind(b"\0" + str(place.unix).encode())
            nameless.listen()
            yield place._replace(port=tcp.getsockname()[1], victim=victim.pid, shared=shared)
        victim.kill()


def got_it(sandbox: Sandbox, place: Place, attack: str) -> bool:
    """Whether an attack worked, by its own word."""
    names = {name: str(value) if isinstance(value, Path) else value for name, value in place._asdict().items()}
    code = f"{''.join(f'{name} = {value!r}' + chr(10) for name, value in names.items())}{attack}\nprint('got it')\n"
    scratch = Path(tempfile.mkdtemp(dir=place.secret.parent))  # a link of the last attack would stop this one
    os.utime(place.code, (1, place.code.stat().st_mtime))  # as if nobody had read it
    process = sandbox.start(Box((sys.executable, "-c", code), (place.code.parent,), scratch, LIMITS))
    with process:
        assert process.stdout is not None
        said = process.stdout.read().decode()
        sandbox.kill(process)
    assert "got it" in said or "Error" in said, said  # an attack that never ran proves nothing
    return "got it" in said


# What works at level 1, and why; `old` before Landlock's version 6. Everything else has to fail there, too.
LEVEL_1 = {
    "see who listens": "a process reads of itself what it likes, and its list of sockets is that of the machine",
    "leave a bit in a file's access time": "the kernel notes it where the machine's mounts are not `noatime`",
}
OLD_LEVEL_1 = {
    "see another process": "no version of Landlock before 6 looks at signals between processes of one user",
}
EXEMPT: dict[Kind, dict[str, str]] = {
    Landlock: LEVEL_1,
    old_landlock: {**LEVEL_1, **OLD_LEVEL_1},
    Bwrap: {},
    Cgroup: {},
}
WALLED = tuple(EXEMPT)


@pytest.mark.parametrize("name", ATTACKS)
def test_walls_stop_what_level_0_does_not(name: str, place: Place) -> None:
    if name in ROOT_ONLY and os.getuid() != 0:
        pytest.skip("level 0 stops this, too, unless it runs as root")
    open_here = got_it(Bare(), place, ATTACKS[name])
    if name in RARE and not open_here:
        pytest.skip("no process of this machine may do it")
    assert open_here
    got = {kind.__name__ for kind in WALLED if not lacks(kind) and got_it(kind(), place, ATTACKS[name])}
    exempt = {kind.__name__ for kind in WALLED if not lacks(kind) and name in EXEMPT[kind]}
    assert got == exempt


# Promises of the self-test that a level does not make.
WATCHED = {"memory has a hard limit", "processes have a hard limit"}
UNPROMISED: dict[Kind, set[str]] = {
    Cgroup: set(),
    Bwrap: {"memory has a hard limit"},
    Landlock: {"other files are hidden", *WATCHED},  # that they are there can be seen, not what they hold
    old_landlock: {"other files are hidden", *WATCHED},
}


def unpromised(kind: Kind, sandbox: Sandbox) -> set[str]:
    """The same, after a box: where root's box is another user, processes have a limit; as root only by a group."""
    if os.getuid() != 0 or not isinstance(sandbox, Bwrap | Landlock):
        return UNPROMISED[kind]
    if sandbox.slot.lacks:
        return UNPROMISED[kind] | {NOT_ROOT} | (WATCHED if kind is Bwrap else set())
    return UNPROMISED[kind] - {"processes have a hard limit"}


@pytest.mark.parametrize("kind", WALLED)
def test_every_promise_holds_behind_walls_and_level_0_makes_none(kind: Kind) -> None:
    sandbox = available(kind)
    walls = promises(sandbox)
    assert len(walls) == 18
    assert {promise for promise, held in walls.items() if not held} == unpromised(kind, sandbox)
    bare = promises(Bare())
    assert set(bare) == set(walls)
    assert not any(bare[promise] for promise in WATCHED)
    assert not bare["no network"] and not bare["other files cannot be read"] and not bare["the whole tree dies"]


@pytest.mark.parametrize("kind", WALLED)
def test_the_node_does_not_show_its_environment_through_the_first_process(
    kind: Kind, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", SECRET)
    look = "for p in (*glob.glob('/proc/[0-9]*/environ'), f'/proc/{os.getppid()}/environ'):\n"
    attack = (
        f"import glob, os\nfound = False\n{look} try: found |= {SECRET!r} in open(p).read()\n except OSError: pass\n"
    )
    assert not got_it(available(kind), place, f"{attack}assert found, OSError('Error')")


@pytest.mark.parametrize("kind", WALLED)
def test_compilers_of_torch_find_that_they_are_one(kind: Kind, place: Place) -> None:
    told = "import os; assert os.environ.get('TORCHINDUCTOR_COMPILE_THREADS') == '1', 'Error'"
    many = kind in (Bwrap, Cgroup)  # where there is /dev/shm they may be more
    assert got_it(available(kind), place, told) != many


@pytest.mark.parametrize("what", CARRIES)
def test_nothing_is_carried_over_from_box_to_box(what: str, place: Place) -> None:
    leave, find = (code.replace("{word}", f"{os.getpid():08x}") for code in CARRIES[what])
    if not got_it(Bare(), place, leave):
        pytest.skip("no process of this machine may leave it")
    assert got_it(Bare(), place, find)
    for kind in (kind for kind in WALLED if not lacks(kind)):
        got_it(kind(), place, leave)
        assert not got_it(kind(), place, find)


def test_no_family_of_sockets_opens_a_door(place: Place) -> None:
    assert got_it(Bare(), place, FAMILIES)
    assert not [kind.__name__ for kind in WALLED if not lacks(kind) and got_it(kind(), place, FAMILIES)]


def test_shared_folders_of_memory_have_a_limit(place: Place) -> None:
    attack = (
        "import os\nfor p in ('/tmp', '/dev/shm'):\n assert os.statvfs(p).f_blocks * os.statvfs(p).f_frsize > 2**30"
    )
    assert not got_it(available(Bwrap), place, attack)


@pytest.mark.parametrize("kind", WALLED)
def test_a_daemon_without_parent_session_or_environment_dies(kind: Kind, place: Place) -> None:
    stray = "import os, sys\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n"
    stray += (
        "  os.execve(sys.executable, (sys.executable, '-c', 'import time; time.sleep(3)'), {})\n os._exit(0)\nos.wait()"
    )
    alive = {}
    for sandbox in (Bare(), available(kind)):
        scratch = place.secret.parent / "scratch"
        process = sandbox.start(Box((sys.executable, "-c", stray), (), scratch, LIMITS))
        with process:
            process.wait(10)
            sandbox.kill(process)
            assert process.stdout is not None
            alive[sandbox.name] = not select.select([process.stdout], [], [], 1)[0]
    assert alive == {"bare": True, available(kind).name: False}


@pytest.mark.parametrize("kind", WALLED)
def test_a_folder_that_a_candidate_swapped_for_a_link_is_not_shown(kind: Kind, place: Place) -> None:
    link = place.secret.parent / "artifact"
    link.symlink_to(place.secret.parent / "shown")
    with pytest.raises(OSError, match="symbolic link"):
        available(kind).start(Box((sys.executable, "-c", ""), (link,), place.secret.parent / "scratch", LIMITS))


@pytest.mark.parametrize("kind", [Bare, *WALLED])
def test_an_out_folder_swapped_for_a_link_breaks_a_rule(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "model.pt").write_text(SECRET)
    train = f"{HONEST}\nimport os, shutil\nshutil.rmtree(options['--out'])\n"
    train += f"os.symlink({str(tmp_path / 'secrets')!r}, options['--out'])\n"
    workshop = replace(workshop_at(tmp_path, answers_task(tmp_path / "task")), sandbox=available(kind))
    outcome = run_trial(spec_of(train), workshop=workshop).outcome
    assert isinstance(outcome, Failure)
    assert (outcome.blame, outcome.reason) == ("candidate", "rule")


def test_a_box_that_cannot_be_built_is_no_fault_of_the_candidate(place: Place) -> None:
    missing = place.secret.parent / "missing"
    with pytest.raises(OSError, match="missing"):
        available(Bwrap).start(Box((sys.executable, "-c", ""), (missing,), place.secret.parent / "scratch", LIMITS))


@pytest.mark.parametrize(
    ("column", "header"),
    [(0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), (1, "/usr/include/asm-generic/unistd.h")],
)
def test_the_numbers_of_calls_are_the_kernels(column: int, header: str) -> None:
    if not Path(header).exists():
        pytest.skip(f"{header} is not installed (apt install linux-libc-dev)")
    found = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text(), re.MULTILINE)
    kernel = {name: int(number) for name, number in found if name != "syscalls"}  # that is how many there are
    tables = {
        **DENIED,
        **UNSUPPORTED,
        **LIMITING,
        **CHECKED,
        **DENIED_ALONE,
        **IDLE_ALONE,
        **OWN_ALONE,
        **CHECKED_ALONE,
        **FORKS,
    }
    ours = {name: numbers[column] for name, numbers in tables.items() if numbers[column] != NEVER}
    younger = {name for name, number in ours.items() if number > max(kernel.values())}  # than this header
    assert {name: kernel.get(name) for name in ours.keys() - younger} == {n: ours[n] for n in ours.keys() - younger}


def test_a_processor_that_nobody_looked_at_gets_no_filter() -> None:
    with pytest.raises(ValueError, match="riscv64"):
        seccomp_filter("riscv64")


@pytest.mark.parametrize("kind", WALLED)
def test_a_trial_scores_the_same_behind_walls(kind: Kind, tmp_path: Path) -> None:
    workshop = workshop_at(tmp_path, answers_task(tmp_path / "task"))
    outcomes = []
    for sandbox in (Bare(), available(kind)):
        outcomes.append(run_trial(spec_of(HONEST), workshop=replace(workshop, sandbox=sandbox)).outcome)
    bare, walled = outcomes
    assert isinstance(bare, Measurement) and isinstance(walled, Measurement), outcomes
    assert (bare.score, bare.artifact) == (walled.score, walled.artifact)


@pytest.mark.parametrize("kind", WALLED)
def test_cpu_time_is_counted_behind_walls(kind: Kind, tmp_path: Path) -> None:
    burn = "import time\nwhile time.process_time() < 0.4: pass\n"
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])\nprint('val_bpb: 1')\n"
    thread = (
        f"import threading\nt = threading.Thread(target=exec, args=({burn!r}, {{}}))\nt.start()\nt.join()\n{HONEST}"
    )
    workshop = replace(workshop_at(tmp_path, answers_task(tmp_path / "task")), sandbox=available(kind))
    printed = replace(workshop_at(tmp_path, printed_task(tmp_path / "printed")), sandbox=available(kind))
    for train, place in ((thread, workshop), (child, printed)):
        outcome = run_trial(spec_of(train), workshop=place).outcome
        assert isinstance(outcome, Measurement), outcome
        assert 0.35 <= outcome.cpu_s < 2  # 0.4, counted in ticks


@pytest.mark.parametrize("kind", WALLED)
def test_training_finds_no_text_beyond_its_stream(kind: Kind, tmp_path: Path) -> None:
    workshop = replace(workshop_at(tmp_path, answers_task(tmp_path / "task")), sandbox=available(kind))
    assert workshop.data is not None
    text = workshop.data.folder / "train"
    (text / "meta.json").write_text("{}")
    look = f"import os\nprint(sorted(os.listdir(options['--data'])))\nopen({str(text / 'tokens.bin')!r})\n"
    run = run_trial(spec_of(f"{HONEST}\n{look}"), workshop=workshop)
    assert "['meta.json']" in run.log
    assert isinstance(run.outcome, Failure) and "Error" in run.outcome.message


@pytest.mark.parametrize("name", HIDERS)
def test_where_cpu_time_is_the_budget_there_are_threads_only(name: str, tmp_path: Path) -> None:
    train = f"import os, signal, sys\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n{HIDERS[name]}\n{HONEST}"
    workshop = workshop_at(tmp_path, answers_task(tmp_path / "task"))
    if name != "clone3":  # which a container's own filter may refuse
        assert isinstance(run_trial(spec_of(train), workshop=workshop).outcome, Measurement)
    for kind in WALLED:
        if lacks(kind):
            continue
        outcome = run_trial(spec_of(train), workshop=replace(workshop, sandbox=kind())).outcome
        assert isinstance(outcome, Failure), outcome
        assert (outcome.blame, outcome.reason) == ("candidate", "crash") and "Error" in outcome.message


@pytest.mark.parametrize("kind", WALLED)
def test_a_secret_outside_cannot_be_put_into_the_artifact(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    train = (
        f"{HONEST}\n(Path(options['--out']) / 'stolen').write_bytes(open({str(tmp_path / 'secret')!r}, 'rb').read())"
    )
    workshop = workshop_at(tmp_path, answers_task(tmp_path / "task"))
    assert isinstance(run_trial(spec_of(train), workshop=workshop).outcome, Measurement)
    outcome = run_trial(spec_of(train), workshop=replace(workshop, sandbox=available(kind))).outcome
    assert isinstance(outcome, Failure)
    assert (outcome.blame, "stolen" not in outcome.message and "Error" in outcome.message) == ("candidate", True)
