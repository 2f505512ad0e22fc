"""`swarm run`, `coordinator`, `join` and `leave`: wiring of ledger, cluster, forge and mind into processes."""

import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from coordinator.forges import Forge
from coordinator.forges.choice import load
from coordinator.service import Service, Study
from node.data import prepare_data
from node.hardware import gpu_name, node_uid
from node.sandbox.choice import AUTO
from node.sandbox.groups import sweep as sweep_groups
from swarm.cli import studies
from swarm.cli.checks import check_address, check_choices, check_credentials, check_text, check_token, sandbox_words
from swarm.cli.view import LiveView, PlainView, final_words
from swarm.cluster import (
    PRODUCTION,
    QUICK,
    THIS_MACHINE,
    RayCluster,
    Started,
    Timing,
    adopt_head,
    adopt_node,
    ensure_token,
    join_loop,
    start_head,
    start_node,
    sweep,
)
from swarm.config import Config
from swarm.errors import ClusterError, PrerequisiteError
from swarm.ledger import Ledger
from swarm.records import StudyFinished
from swarm.task import Task, load_task, place_of

LEAVING_S = 3.0  # Ctrl-C waits this long for the nodes to hand over what they finished
LEAVE_PATIENCE_S = 15.0
HEAL_PAUSE_S = 5.0
START_ATTEMPTS = 5


@dataclass
class Machines:
    """The Ray processes that this coordinator owns: the head, and the nodes that `swarm run` starts beside it."""

    study: Path
    local: int
    token_file: Path
    ip: str = THIS_MACHINE
    port: int = 0
    timing: Timing = QUICK
    gpu: bool = False
    trust: bool = False  # in this study's code: whoever starts local nodes owns them
    address: str = ""
    healing: bool = False
    _heal_at: float = field(default=0.0)

    def start(self, say: Callable[[str], None]) -> None:
        """Adopt what an earlier coordinator left running, start the rest; 10 ms when nothing is missing."""
        ensure_token(self.token_file)
        head = adopt_head(self.study)
        if head is None:
            sweep(self.study)  # leftovers without a head are of no use; what they finished is on disk
            say("starting Ray: the head")
            head = start_head(self.study, token_file=self.token_file, ip=self.ip, port=self.port, timing=self.timing)
        self.address, self.port = head.address, int(head.address.rpartition(":")[2])
        for number in range(1, self.local + 1):
            self._node(head, number, say)

    def start_patiently(self, say: Callable[[str], None]) -> None:
        """Start, again when something died meanwhile.

        Raises:
            ClusterError: Ray did not start, several times in a row.
        """
        for _ in range(START_ATTEMPTS - 1):
            try:
                return self.start(say)
            except ClusterError as error:
                say(f"{str(error).splitlines()[0]}; trying again")
        self.start(say)

    def _node(self, head: Started, number: int, say: Callable[[str], None]) -> Started:
        name = f"node-{number}"
        home = self.study / "nodes" / name
        running = adopt_node(home, self.address, head=head)
        if running is not None:
            return running
        sweep(home)
        say(f"starting Ray: {name}")
        return start_node(
            self.address,
            home,
            token_file=self.token_file,
            name=name,
            uid=node_uid(home),
            timing=self.timing,
            gpu=self.gpu,
            env=_trusting(self.trust),
        )

    def heal(self) -> None:
        """Whatever of ours has died is started again; after a failure not before a few seconds.

        Raises:
            ClusterError: something could not be started.
        """
        if time.monotonic() < self._heal_at:
            return
        self._heal_at, self.healing = time.monotonic() + HEAL_PAUSE_S, True
        try:
            self.start(lambda text: None)
        except PrerequisiteError as error:  # it ran before, so this passes: a port that is not free yet
            raise ClusterError(str(error)) from error
        finally:
            self.healing = False
        self._heal_at = 0.0


def end_all(study: Path) -> list[int]:
    """No process of this study is left here, and no control group of a dead one. Returns the pids that were ended."""
    ended = sweep(*sorted(study.glob("nodes/*")), study)
    sweep_groups()
    return ended


def run_study(
    config: Config, console: Console, *, local: int, port: int = 0, host: str = "", plain: bool = False
) -> StudyFinished | None:
    """Open or resume a study and work on it to its end. None when it was interrupted."""
    found, before = studies.to_run(config)
    if before is not None and before.finished is not None:
        end_all(before.folder)  # its coordinator may have been killed between the last fact and the end
        console.print(
            f"{before.name} has finished; its report is {before.folder}/report.md. Starting {found.name}.",
            highlight=False,
        )
    used = studies.frozen_config(found, config)
    if found.opened is not None:
        _say_resumed(console, found, config, used)
    task_folder, task_file = place_of(Path(used.task))
    task = load_task(Path(used.task))
    check_choices(used, task, local=local)
    check_credentials(used, task_folder, task_file)
    forge = make_forge(used, found.folder)
    if local:
        for line in sandbox_words(used.nodes.sandbox):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    prepared = _prepared(task, task_folder, used, console)
    study = Study(found.folder, found.name, used, task, task_folder.absolute(), *prepared, task_file)
    with Ledger(found.folder / "ledger.sqlite") as ledger:
        machines = _machines(found.folder, used, local, port, host)
        return _work(study, ledger, forge, machines, console, plain=plain)


def _prepared(task: Task, folder: Path, config: Config, console: Console) -> tuple[str, str]:
    """Where this machine's prepared data lies, and its fingerprint; empty when the Task has none."""
    if task.has_data:
        console.print("preparing the data (once)", highlight=False)
    data = prepare_data(task, folder, config.nodes.data, Path(".cache") / "data", shown=True)
    if data is None:
        return "", ""
    check_text(data.folder, task)
    return str(data.folder.absolute()), data.fingerprint


def _machines(folder: Path, config: Config, local: int, port: int, host: str) -> Machines:
    gpu = gpu_name() is not None and local == 1
    return Machines(
        study=folder,
        local=local,
        token_file=folder / "run" / "token",
        ip=host or THIS_MACHINE,
        port=port,
        timing=PRODUCTION if host else QUICK,
        gpu=gpu,
        trust=config.nodes.trust_code,
    )


def _work(
    study: Study, ledger: Ledger, forge: Forge, machines: Machines, console: Console, *, plain: bool
) -> StudyFinished | None:
    view = PlainView(console) if plain or not console.is_terminal else LiveView(console)
    view.remember(ledger.facts())
    cluster = None
    with _on_signals(signal.default_int_handler):
        try:
            machines.start_patiently(lambda text: console.print(text, highlight=False))
            if not machines.local:
                _say_join(console, machines)
            cluster = RayCluster(
                machines.address, home=study.folder, token_file=machines.token_file, timing=machines.timing
            )
            service = Service(study, ledger, cluster, forge, view, heal=machines.heal)
            with _interruptible(service, machines), view:
                finished = service.run()
                if finished is None:
                    service.collect(LEAVING_S)
        finally:
            with _on_signals(signal.SIG_IGN):  # seconds at most, and who presses Ctrl-C again wants just this
                if cluster is not None:
                    cluster.close()
                end_all(study.folder)
    _say_end(console, study, finished)
    return finished


@contextmanager
def _on_signals(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> Iterator[None]:
    """Meet Ctrl-C and SIGTERM with this handler for a while."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def _interruptible(service: Service, machines: Machines) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the round in progress, then everything else; a second one ends at once."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        service.stop()
        signal.signal(number, signal.default_int_handler)
        if machines.healing:  # that may take long, and is of no use any more
            raise KeyboardInterrupt

    with _on_signals(interrupt):
        yield


def _say_resumed(console: Console, found: studies.Found, asked: Config, used: Config) -> None:
    console.print(f"resuming {found.name}", highlight=False)
    changed = studies.differences(asked, used)
    if changed:
        console.print(
            f"its configuration is frozen; changes of {', '.join(changed)} hold for the next study",
            style="yellow",
            highlight=False,
        )


def _say_join(console: Console, machines: Machines) -> None:
    console.print(
        f"the head is at {machines.address}; on each machine that joins:\n"
        f"  copy {machines.token_file} there (mode 600), then\n"
        f"  swarm join {machines.address} --token-file token",
        highlight=False,
        soft_wrap=True,
    )


def _say_end(console: Console, study: Study, finished: StudyFinished | None) -> None:
    if finished is None:
        console.print("interrupted; the same command resumes this study", highlight=False)
        return
    for line in final_words(finished, study.task, os.path.relpath(study.folder)):
        console.print(line, highlight=False, soft_wrap=True)


def make_forge(config: Config, folder: Path) -> Forge:
    """The forge that the configuration names.

    Raises:
        ConfigError: unknown, or something it needs is missing.
    """
    return load(config.forge, folder, os.environ)


def join(
    address: str,
    home: Path,
    token_file: Path,
    name: str,
    *,
    gpu: bool | None,
    trust: bool = False,
    timing: Timing = PRODUCTION,
) -> None:
    """Lend this machine to a cluster until it is told to leave.

    Raises:
        PrerequisiteError: no token, another join in the same home, or the address does not answer now. Once joined, a
            head that goes away is waited for.
    """
    check_address(address)
    check_token(token_file)
    lock = _refuse_second_join(home)
    os.environ["SWARM_NODE_NAME"] = name
    for line in sandbox_words(AUTO):  # a study may name another
        click.echo(line)
    uses_gpu = gpu_name() is not None if gpu is None else gpu
    uid = node_uid(home)

    joined: list[Started] = []

    def start() -> Started:
        try:
            joined[:] = [
                start_node(
                    address,
                    home,
                    token_file=token_file,
                    name=name,
                    uid=uid,
                    gpu=uses_gpu,
                    timing=timing,
                    env=_trusting(trust),
                )
            ]
        except ClusterError as error:
            if joined:
                raise
            raise PrerequisiteError(
                f"could not join {address}: {error}\n"
                "start `swarm coordinator` there first; it prints the address to join, and this machine must reach it"
            ) from error
        return joined[0]

    try:
        join_loop(start, home)
    finally:
        os.close(lock)


def _trusting(trust: bool) -> dict[str, str]:
    """How an agent is told that its machine's owner trusts the code."""
    return {"SWARM_TRUST_CODE": "1" if trust else ""}  # also when not: ours may come from another node


def _join_lock(home: Path) -> Path:
    return home / "run" / "join.lock"


def _refuse_second_join(home: Path) -> int:
    """Hold the lock of a node's home; the kernel gives it back when the process dies, so it can never be stale."""
    path = _join_lock(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise PrerequisiteError(
            f"this machine has joined already from {home} (process {path.read_text()}); use --home for another node"
        ) from error
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock


def leave(home: Path) -> list[str]:
    """End the join loop of a node, or the coordinator of a study, and every process that belongs to it."""
    told: list[str] = []
    for path in (_join_lock(home), home / "ledger.lock"):
        pid = _holder(path)
        if pid:
            _signal(pid, signal.SIGTERM)
            told.append(f"process {pid} was asked to end")
            _wait_for_end(path, pid)
    ended = end_all(home)
    if ended:
        told.append(f"{len(ended)} processes of {home} ended")
    return told or ["nothing was running"]


def _holder(path: Path) -> int:
    """The process that holds this lock; 0 when none does, whatever a killed one left in the file."""
    try:
        lock = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return 0
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.read(lock, 32) or 0)
    else:
        return 0
    finally:
        os.close(lock)


def _wait_for_end(path: Path, pid: int) -> None:
    """Until it is gone; one that is stuck is killed, the ledger does not mind."""
    deadline = time.monotonic() + LEAVE_PATIENCE_S
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    if _holder(path) == pid:
        _signal(pid, signal.SIGKILL)


def _runs(pid: int) -> bool:
    """Whether it lives; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it ended meanwhile
        os.kill(pid, number)


def default_node_home() -> Path:
    """Where `swarm join` keeps a node's identity and spool."""
    return Path(os.environ.get("SWARM_NODE_HOME") or Path.home() / ".cache" / "swarm" / "node")


def default_node_name() -> str:
    """This machine's name."""
    return socket.gethostname().split(".")[0].lower()


__all__ = ["ClusterError", "default_node_home", "default_node_name", "join", "leave", "make_forge", "run_study"]
