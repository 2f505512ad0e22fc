"""`swarm run`, `coordinator`, `join` and `leave`: wiring of ledger, cluster, forge and mind into processes."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from coordinator.forges import Forge
from coordinator.forges.local import LocalForge
from coordinator.service import Service, Study
from node.data import prepare_data
from node.hardware import gpu_name, node_uid
from swarm.cli import studies
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
from swarm.errors import ClusterError, ConfigError, PrerequisiteError
from swarm.ledger import Ledger
from swarm.records import StudyFinished
from swarm.task import load_task

LEAVING_S = 3.0  # Ctrl-C waits this long for the nodes to hand over what they finished
HEAL_EVERY_S = 5.0


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
    address: str = ""
    _heal_at: float = field(default=0.0)

    def start(self, say: Callable[[str], None]) -> None:
        """Adopt what an earlier coordinator left running, start the rest."""
        ensure_token(self.token_file)
        head = adopt_head(self.study)
        if head is None:
            sweep(self.study)  # leftovers without a head are of no use; what they finished is on disk
            say("starting Ray: the head")
            head = start_head(self.study, token_file=self.token_file, ip=self.ip, port=self.port, timing=self.timing)
        self.address, self.port = head.address, int(head.address.rpartition(":")[2])
        for number in range(1, self.local + 1):
            self._node(number, say)

    def _node(self, number: int, say: Callable[[str], None]) -> Started:
        name = f"node-{number}"
        home = self.study / "nodes" / name
        running = adopt_node(home, self.address)
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
        )

    def heal(self, reason: str) -> None:
        """Whatever of ours has died is started again. At most every few seconds."""
        if time.monotonic() < self._heal_at:
            return
        self._heal_at = time.monotonic() + HEAL_EVERY_S
        self.start(lambda text: None)

    def end(self) -> None:
        """No process of this study is left on this machine."""
        for number in range(1, self.local + 1):
            sweep(self.study / "nodes" / f"node-{number}")
        sweep(self.study)


def run_study(
    config: Config, console: Console, *, local: int, port: int = 0, host: str = "", plain: bool = False
) -> StudyFinished | None:
    """Open or resume a study and work on it to its end. None when it was interrupted."""
    found, before = studies.to_run(config)
    if before is not None and before.finished is not None:
        console.print(
            f"{before.name} has finished; its report is {before.folder}/report.md. Starting {found.name}.",
            highlight=False,
        )
    used = studies.frozen_config(found, config)
    if found.opened is not None:
        _say_resumed(console, found, config, used)
    task_folder = Path(used.task)
    task = load_task(task_folder)
    forge = make_forge(used, found.folder)
    with Ledger(found.folder / "ledger.sqlite") as ledger:
        if task.has_data:
            console.print("preparing the data (once)", highlight=False)
        data = prepare_data(task, task_folder, "", Path(".cache") / "data")
        study = Study(
            found.folder, found.name, used, task, task_folder.absolute(), str(data.folder.absolute()) if data else ""
        )
        machines = _machines(found.folder, used, local, port, host)
        return _work(study, ledger, forge, machines, console, plain=plain)


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
    )


def _work(
    study: Study, ledger: Ledger, forge: Forge, machines: Machines, console: Console, *, plain: bool
) -> StudyFinished | None:
    view = PlainView(console) if plain or not console.is_terminal else LiveView(console)
    cluster = None
    try:
        machines.start(lambda text: console.print(text, highlight=False))
        if not machines.local:
            _say_join(console, machines)
        cluster = RayCluster(
            machines.address, home=study.folder, token_file=machines.token_file, timing=machines.timing
        )
        service = Service(study, ledger, cluster, forge, view, heal=machines.heal)
        with _interruptible(service), view:
            finished = service.run()
            if finished is None:
                service.collect(LEAVING_S)
    finally:
        if cluster is not None:
            cluster.close()
        machines.end()
    _say_end(console, study, finished)
    return finished


@contextmanager
def _interruptible(service: Service) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the round in progress, then everything else; a second one ends at once."""

    def interrupt(number: int, frame: object) -> None:
        service.stop()
        signal.signal(number, signal.default_int_handler)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    for line in final_words(finished, study.task.metric, os.path.relpath(study.folder)):
        console.print(line, highlight=False, soft_wrap=True)


def make_forge(config: Config, folder: Path) -> Forge:
    """The forge that the configuration names.

    Raises:
        ConfigError: unknown, or something it needs is missing.
    """
    choice = config.forge
    if choice.use == "local":
        return LocalForge(Path(choice.path) if choice.path else folder / "repo.git")
    if choice.use == "github":
        from coordinator.forges.github import GitHubForge  # PyGithub takes 0.3 s to import

        token = os.environ.get("GITHUB_TOKEN", "")
        if not token or not choice.repository:
            missing = "forge.repository = owner/name" if token else "the environment variable GITHUB_TOKEN"
            raise ConfigError(f'forge "github" needs {missing}; without a token use forge "local"')
        return GitHubForge(choice.repository, token, base_url=choice.base_url, git_url=choice.git_url or None)
    raise ConfigError(f'forge.use = {choice.use!r} is unknown; choose "local" or "github"')


def join(
    address: str, home: Path, token_file: Path, name: str, *, gpu: bool | None, timing: Timing = PRODUCTION
) -> None:
    """Lend this machine to a cluster until it is told to leave.

    Raises:
        PrerequisiteError: no token, another join in the same home, or nothing answers at the address.
    """
    if not token_file.exists():
        raise PrerequisiteError(
            f"no token at {token_file}: copy run/token from the coordinator's study folder, mode 600"
        )
    if address.count(":") != 1 or not address.rpartition(":")[2].isdigit():
        raise PrerequisiteError(f"{address!r} is no address; write it as HOST:PORT, as `swarm coordinator` prints it")
    _refuse_second_join(home)
    os.environ["SWARM_NODE_NAME"] = name
    uses_gpu = gpu_name() is not None if gpu is None else gpu
    uid = node_uid(home)

    def start() -> Started:
        return start_node(address, home, token_file=token_file, name=name, uid=uid, gpu=uses_gpu, timing=timing)

    try:
        join_loop(start, home)
    finally:
        _pid_file(home).unlink(missing_ok=True)


def _pid_file(home: Path) -> Path:
    return home / "run" / "join.pid"


def _refuse_second_join(home: Path) -> None:
    path = _pid_file(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and _is_join(int(path.read_text() or 0)):
        raise PrerequisiteError(
            f"this machine has joined already from {home} (process {path.read_text()}); use --home for another node"
        )
    path.write_text(str(os.getpid()))


def _is_join(pid: int) -> bool:
    try:
        return b"join" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def leave(home: Path) -> list[str]:
    """End the join loop of a node, or the coordinator of a study, and every process that belongs to it."""
    told: list[str] = []
    for path in (_pid_file(home), home / "ledger.lock"):
        pid = int(path.read_text() or 0) if path.exists() else 0
        if pid and _alive(pid) and _is_swarm(pid):
            os.kill(pid, signal.SIGTERM)
            told.append(f"process {pid} was asked to end")
            _wait_for_end(pid, 15.0)
    for place in (*sorted(home.glob("nodes/*")), home):
        ended = sweep(place)
        if ended:
            told.append(f"{len(ended)} processes of {place} ended")
    return told or ["nothing was running"]


def _is_swarm(pid: int) -> bool:
    try:
        return b"swarm" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _wait_for_end(pid: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)


def default_node_home() -> Path:
    """Where `swarm join` keeps a node's identity and spool."""
    return Path(os.environ.get("SWARM_NODE_HOME") or Path.home() / ".cache" / "swarm" / "node")


def default_node_name() -> str:
    """This machine's name."""
    return socket.gethostname().split(".")[0].lower()


__all__ = ["ClusterError", "default_node_home", "default_node_name", "join", "leave", "make_forge", "run_study"]
