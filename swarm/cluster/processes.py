"""Which processes are ours, and how all of them are ended.

Every process that the swarm starts carries `SWARM_HOME=<directory of the study or node>` in its environment, and so
does all that it starts in turn. That mark alone decides: no process is ever ended by its name. `run/processes.json`
in the same directory says what was started last, so that a later process can find and adopt it.

Not covered: a process that drops the mark from its environment *and* outlives its parent (trials are bound to the
life of theirs), and processes of other users, whose environment can not be read.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError

#: Set by the swarm only. Nobody may export it in a shell: all that runs below would be ended with the swarm.
HOME_MARK = "SWARM_HOME"

_TERM_S = 2.0  # between SIGTERM and SIGKILL
_SWEEP_S = 5.0
_EXEC_S = 1.0  # microseconds on an idle machine; until then a process carries no mark

# Children of this process, kept so that they are reaped when they end; Popen complains when dropped alive.
_children: dict[int, subprocess.Popen[bytes]] = {}


class Process(NamedTuple):
    """One process for ever: a pid is used again, together with its start it is not."""

    pid: int
    created: int  # clock ticks from boot to its start

    def runs(self) -> bool:
        """Whether it lives. A zombie does not."""
        return _created(self.pid) == self.created


@dataclass(frozen=True)
class Started:
    """One `ray start --block` and what it started: everything of that head or node runs in its session."""

    role: Literal["head", "node"]
    name: str
    process: Process
    home: str
    address: str  # of the head
    temp_dir: str
    vital: tuple[Process, ...] = ()  # its children, known once it is ready: the raylet, of a head also the GCS

    def alive(self) -> bool:
        """Whether it became ready and all of it still runs.

        `ray start` alone is no proof: it stays when its raylet ends in good order, as one does that lost a helper.
        """
        _reap()
        everything = (self.process, *self.vital)
        return bool(self.vital) and all(one.runs() for one in everything) and _carries(self.process.pid, self.home)


_REGISTRY = TypeAdapter(list[Started])


def launch(
    command: list[str], environment: dict[str, str], log_file: Path, preexec: Callable[[], None] | None = None
) -> Process:
    """Start a process in its own session, its output appended to the log."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=preexec,
        )
    _children[child.pid] = child
    _wait_for_environment(child.pid)
    return Process(child.pid, _created(child.pid) or 0)


def _wait_for_environment(pid: int) -> None:
    """Popen returns when the pipe to it closes, which the kernel does a moment before /proc shows the environment."""
    deadline = time.monotonic() + _EXEC_S
    while time.monotonic() < deadline and _created(pid) is not None and not _environment(pid):
        time.sleep(0.001)


def children(of: Process) -> tuple[Process, ...]:
    """The processes that it started itself, and that live."""
    return tuple(Process(pid, created) for pid, (parent, created) in _table().items() if parent == of.pid)


def names_of_ended_children(of: Process) -> set[str]:
    """The programs, cut to 15 characters, of children that ended and that it has not asked about: zombies."""
    names = set()
    for entry in os.scandir("/proc"):
        try:
            text = Path(entry.path, "stat").read_text(errors="replace") if entry.name.isdigit() else ""
        except (FileNotFoundError, ProcessLookupError):
            continue
        before, _, after = text.rpartition(")")
        if after.split()[:2] == ["Z", str(of.pid)]:
            names.add(before.partition("(")[2])
    return names


def remember(started: Started) -> None:
    """Write it into the registry of its home, in place of what was known about it."""
    home = Path(started.home)
    _write(home, [*(other for other in remembered(home) if other.process != started.process), started])


def remembered(home: Path) -> list[Started]:
    """What the registry of this home holds; empty when it is missing or damaged."""
    try:
        return _REGISTRY.validate_json(_registry(home).read_bytes())
    except (FileNotFoundError, ValidationError):
        return []


def marked(home: Path) -> set[int]:
    """The living processes that carry the mark of this home, and their descendants; never this one or its ancestors."""
    parents = {pid: parent for pid, (parent, _) in _table().items()}
    ours = {pid for pid in parents if _carries(pid, str(home.absolute()))}
    grown = True
    while grown:
        below = {pid for pid, parent in parents.items() if parent in ours} - ours
        ours |= below
        grown = bool(below)
    return ours - _ancestors(parents)


def sweep(*homes: Path) -> list[int]:
    """End every process with the mark of these homes and remove what it left in /tmp. Takes at most 5 s.

    Returns the pids that were ended.
    """
    ended = _end(lambda: {pid for home in homes for pid in marked(home)})
    for home in homes:
        for started in remembered(home):
            shutil.rmtree(started.temp_dir, ignore_errors=True)
        _registry(home).unlink(missing_ok=True)
    return ended


def end(started: Started) -> list[int]:
    """End one head or node, with all that runs in its session, and remove its temp dir."""
    home = Path(started.home)
    ended = _end(lambda: {pid for pid in marked(home) if _session(pid) == started.process.pid})
    shutil.rmtree(started.temp_dir, ignore_errors=True)
    _write(home, [other for other in remembered(home) if other.process != started.process])
    return ended


def last_lines(path: Path, count: int = 15) -> str:
    """The end of a log, for the message about what died."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-count:])
    except FileNotFoundError:
        return f"({path} does not exist)"


def _registry(home: Path) -> Path:
    return home / "run" / "processes.json"


def _write(home: Path, entries: list[Started]) -> None:
    target = _registry(home)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}")
    with partial.open("wb") as file:
        file.write(_REGISTRY.dump_json(entries, indent=1))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)


def _end(find: Callable[[], set[int]]) -> list[int]:
    """SIGTERM to all that is found, SIGKILL to what is still there 2 s later, until nothing is found."""
    start = time.monotonic()
    seen: set[int] = set()
    while found := find():
        waited = time.monotonic() - start
        if waited > _SWEEP_S:
            break
        for pid in found:
            if pid not in seen or waited > _TERM_S:
                _signal(pid, signal.SIGKILL if waited > _TERM_S else signal.SIGTERM)
        seen |= found
        time.sleep(0.05)
        _reap()
    return sorted(seen)


def _table() -> dict[int, tuple[int, int]]:
    """Every living process: pid -> (parent, created)."""
    table = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            table[int(entry.name)] = stat
    return table


def _stat(pid: int) -> tuple[int, int] | None:
    """(parent, created) of a living process; None for a zombie or none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    return None if fields[0] in "ZX" else (int(fields[1]), int(fields[19]))


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def _created(pid: int) -> int | None:
    stat = _stat(pid)
    return stat[1] if stat else None


def _carries(pid: int, home: str) -> bool:
    return f"{HOME_MARK}={home}".encode() in _environment(pid).split(b"\0")


def _environment(pid: int) -> bytes:
    """As the process was started with; empty for none, for one of other users, and for one that is being started."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def _ancestors(parents: dict[int, int]) -> set[int]:
    pid, line = os.getpid(), set()
    while pid and pid not in line:
        line.add(pid)
        pid = parents.get(pid, 0)
    return line


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _reap() -> None:
    for pid, child in list(_children.items()):
        if child.poll() is not None:
            del _children[pid]
