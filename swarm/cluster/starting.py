"""Starting Ray on a machine: a head for a study, a node for a machine that lends itself; and adopting what still runs.

Each is one `ray start --block` in its own session with its own temp dir and explicit ports, so that several fit on one
machine (one after another: two that start at once can draw the same ports). They outlive the process that started
them on purpose: agents go on exploring without a coordinator, and the next one adopts or sweeps them.
"""

import ctypes
import json
import logging
import os
import re
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from swarm.cluster import processes
from swarm.cluster.ports import RAY_WORKERS, answers, free_ports, is_free
from swarm.cluster.processes import HOME_MARK, Started, last_lines
from swarm.errors import ClusterError, PrerequisiteError

log = logging.getLogger(__name__)

#: The address for a cluster on one machine. Ray replaces 127.0.0.1 by the address of the outer network, which changes
#: when a laptop does; it leaves the other loopback addresses of Linux alone.
THIS_MACHINE = "127.0.0.2"

_START_S = 90.0  # 2 s on an idle machine, 11 s on a loaded one, 24 s with an unreachable name server
_OBJECT_STORE_BYTES = 80_000_000  # just above the least that Ray takes; replies are small
_VITAL = {"gcs_server", "raylet"}
_RAY = "r"  # Ray's folder inside our temp dir
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Timing:
    """How soon Ray gives up on a silent node, and a node on a silent head."""

    period_s: float  # between two health checks
    timeout_s: float  # of one health check
    threshold: int  # failed checks until a node is dead
    reconnect_s: int  # a node or bridge without head ends itself after this long
    self_check_s: float  # a node asks this often whether the head still knows it


#: A false death costs minutes of GPU, a late one little: a node is dead after about 30 s.
PRODUCTION = Timing(period_s=3, timeout_s=5, threshold=4, reconnect_s=600, self_check_s=10)
#: One machine, and tests: a killed node is dead after about 2 s, a frozen one after 8 s.
QUICK = Timing(period_s=1, timeout_s=2, threshold=3, reconnect_s=20, self_check_s=3)


def ensure_token(path: Path) -> Path:
    """The cluster's token: whoever holds it can run anything on every node. Made on first use, readable by us only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        path.chmod(0o600)
        return path
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    return path


def start_head(
    home: Path,
    *,
    token_file: Path,
    ip: str = THIS_MACHINE,
    port: int = 0,
    timing: Timing = QUICK,
    env: Mapping[str, str] | None = None,
    die_with_parent: bool = False,
) -> Started:
    """Start the head of a cluster and wait until it answers. An earlier head of this home is ended first.

    Args:
        home: directory of the study.
        token_file: made if it is missing.
        ip: where nodes find it.
        port: 0 picks a free one.
        timing: how patient Ray is.
        env: further environment.
        die_with_parent: end it with the *thread* that called this.

    Raises:
        PrerequisiteError: the port is in use, or one of those that Ray gives to its workers.
        ClusterError: Ray does not start; the message ends with its last lines.
    """
    if port in RAY_WORKERS:
        first, last = RAY_WORKERS[0], RAY_WORKERS[-1]
        raise PrerequisiteError(
            f"port {port} can not be the head's: Ray gives {first} to {last} to its workers. Choose another one with "
            "--port."
        )
    _end_predecessors("head", home)
    if port and not is_free(port):
        raise PrerequisiteError(
            f"port {port} on this machine is in use. Choose another one with --port, or end what listens there "
            f"(`ss -ltnp 'sport = :{port}'` names it)."
        )
    port = port or free_ports(1)[0]
    options = [
        "--head",
        f"--port={port}",
        "--include-dashboard=false",
        "--no-monitor",  # the autoscaler, 80 MB; clusters that scale bring their own head
    ]
    environment = ray_environment(home.absolute(), ensure_token(token_file), timing) | dict(env or {})
    return _start(
        "head", "head", home, f"{ip}:{port}", [*options, f"--node-ip-address={ip}"], environment, die_with_parent
    )


def start_node(
    address: str,
    home: Path,
    *,
    token_file: Path,
    name: str,
    uid: str = "",
    ip: str = "",
    slots: int = 1,
    gpu: bool = False,
    timing: Timing = QUICK,
    env: Mapping[str, str] | None = None,
    die_with_parent: bool = False,
) -> Started:
    """Join this machine to the cluster and wait until it is a member. An earlier node of this home is ended first.

    Args:
        address: the head, `host:port`.
        home: directory of the node; its agent finds it as SWARM_NODE_HOME.
        token_file: the cluster's token.
        name: shown to people; its agent finds it as SWARM_NODE_NAME.
        uid: the node's lasting identity, shown by `ray list nodes`.
        ip: under which others reach this node; empty: found by Ray, or the head's when that is this machine's loopback.
        slots: CPU slots lent, each for one trial at a time; an agent takes one.
        gpu: lend one GPU instead.
        timing: how patient Ray is; has to be the head's.
        env: further environment for the agent. PYTHONPATH is put before ours.
        die_with_parent: end it with the *thread* that called this.

    Raises:
        PrerequisiteError: the token or the version does not fit.
        ClusterError: the head does not answer, or Ray does not start; the message ends with its last lines.
    """
    if not answers(address):
        raise ClusterError(f"no head answers at {address}")
    if not token_file.is_file():
        raise PrerequisiteError(f"there is no token at {token_file}. Copy it from the machine that runs the head.")
    _end_predecessors("node", home)
    host = address.rpartition(":")[0]
    ip = ip or (host if host.startswith("127.") else "")
    labels = {"swarm/name": _label(name), "swarm/node-uid": _label(uid)}
    options = [
        f"--address={address}",
        f"--num-gpus={int(gpu)}",
        f"--resources={json.dumps({} if gpu else {'swarm_slot': slots})}",
        "--labels=" + ",".join(f"{key}={value}" for key, value in labels.items() if value),
        *([f"--node-ip-address={ip}"] if ip else []),
    ]
    environment = ray_environment(home.absolute(), token_file, timing)
    environment |= {"SWARM_NODE_HOME": str(home.absolute()), "SWARM_NODE_NAME": name} | dict(env or {})
    environment["PYTHONPATH"] = _python_path((env or {}).get("PYTHONPATH", ""))
    return _start("node", name, home, address, options, environment, die_with_parent)


def adopt_head(home: Path) -> Started | None:
    """The head that an earlier process started for this study, if it still runs and answers."""
    heads = [started for started in processes.remembered(home) if started.role == "head"]
    return next((head for head in heads if head.alive() and answers(head.address)), None)


def adopt_node(home: Path, address: str, *, head: Started | None = None) -> Started | None:
    """The node that an earlier process started in this home, if it still runs and belongs to the head at this address.

    A head that came back on its old port does not know the nodes of the old one; they end themselves within a second
    or so. Pass the head, when it runs on this machine, and such a node is not adopted.
    """
    nodes = [started for started in processes.remembered(home) if started.role == "node" and started.address == address]
    return next(
        (node for node in nodes if node.alive() and (head is None or node.process.created > head.process.created)), None
    )


def ray_environment(home: Path, token_file: Path, timing: Timing) -> dict[str, str]:
    """The environment of every process that runs Ray for us."""
    kept = ("RAY_USE_TLS", "RAY_TLS_", "RAY_gcs_storage")  # what an operator may set; the rest is ours
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_") or key.startswith(kept)}
    return inherited | {
        HOME_MARK: str(home),
        "SPT_NOENV": "1",  # or Ray's setproctitle overwrites the environment in /proc, and the mark with it
        "PYTHONPATH": _python_path(""),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file.absolute()),
        "RAY_health_check_initial_delay_ms": str(int(timing.period_s * 1000)),
        "RAY_health_check_period_ms": str(int(timing.period_s * 1000)),
        "RAY_health_check_timeout_ms": str(int(timing.timeout_s * 1000)),
        "RAY_health_check_failure_threshold": str(timing.threshold),
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(timing.reconnect_s),
        "RAY_raylet_liveness_self_check_interval_ms": str(int(timing.self_check_s * 1000)),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # else a node takes 30 s to obey SIGTERM
        # 3.11.2 and 3.11.7 get along: what travels are bytes of our own, and both sides import the same checkout.
        "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL": "minor",
        "RAY_memory_monitor_refresh_ms": "0",  # Ray would end the agent; the limit on a trial is ours
        "RAY_worker_niceness": "0",  # 15 by default, which trials would inherit
        # A worker that is killed while it starts counts as starting for 60 s; by default nothing else would start then.
        "RAY_worker_maximum_startup_concurrency": "8",
        "RAY_task_events_report_interval_ms": "0",  # nobody reads them
        "RAY_ROTATION_MAX_BYTES": "10000000",
    }


def _start(
    role: Literal["head", "node"],
    name: str,
    home: Path,
    address: str,
    options: list[str],
    environment: dict[str, str],
    die_with_parent: bool,
) -> Started:
    # Sockets lie below it, and the path of a socket may have 107 characters: no long TMPDIR. Ray opens its own folder
    # to everybody on the machine (0777, and the object store asks for no token); the one around it stays ours (0700).
    temp_dir = Path(tempfile.mkdtemp(prefix="swarm-", dir="/tmp"))
    log_file = home / "run" / f"{role}.log"
    log_file.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-P",
        "-m",
        "ray.scripts.scripts",
        "start",
        "--block",
        *options,
        *_common(temp_dir / _RAY),
    ]
    process = processes.launch(command, environment, log_file, _die_with_parent() if die_with_parent else None)
    started = Started(role, name, process, str(home.absolute()), address, str(temp_dir))
    processes.remember(started)  # already: a crash from here on leaves nothing that can not be found
    try:
        _wait_until_ready(started, log_file)
    except BaseException:
        processes.end(started)
        raise
    started = replace(started, vital=processes.children(process))
    processes.remember(started)
    return started


def _end_predecessors(role: str, home: Path) -> None:
    for earlier in processes.remembered(home):
        if earlier.role == role:
            processes.end(earlier)


def _common(temp_dir: Path) -> list[str]:
    manager, objects, runtime_env, metrics, http, grpc = free_ports(6)
    return [
        "--num-cpus=0",  # agents ask for a slot or a GPU, and Ray starts no workers in advance
        f"--object-store-memory={_OBJECT_STORE_BYTES}",
        "--disable-usage-stats",
        "--include-log-monitor=false",  # 79 MB; workers' logs stay where they are
        f"--temp-dir={temp_dir}",
        f"--node-manager-port={manager}",
        f"--object-manager-port={objects}",
        f"--runtime-env-agent-port={runtime_env}",
        f"--metrics-export-port={metrics}",
        f"--dashboard-agent-listen-port={http}",
        f"--dashboard-agent-grpc-port={grpc}",
        "--log-style=record",
        "--log-color=false",
    ]


def _wait_until_ready(started: Started, log_file: Path) -> None:
    """Ray writes the head's address into its temp dir as the last act before it blocks."""
    ready = Path(started.temp_dir) / _RAY / "ray_current_cluster"
    deadline = time.monotonic() + _START_S
    while not ready.exists():
        output = log_file.read_text(errors="replace")
        refuse_known_mistakes(started.address, output)
        # `ray start` would wait 30 s for a GCS or raylet that was killed meanwhile.
        if not started.process.runs() or _VITAL & processes.names_of_ended_children(started.process):
            raise ClusterError(f"Ray did not start as {started.role} of {started.address}\n{last_lines(log_file)}")
        if started.role == "node" and not answers(started.address):
            raise ClusterError(f"the head at {started.address} went away while {started.name} started")
        if time.monotonic() > deadline:
            raise ClusterError(f"Ray took more than {_START_S:g} s to start\n{last_lines(log_file)}")
        time.sleep(0.1)


def refuse_known_mistakes(address: str, output: str) -> None:
    """Raise what a person has to mend. Ray retries these for 20 s and more before it gives up with a traceback."""
    if "InvalidAuthToken" in output:
        raise PrerequisiteError(
            f"the head at {address} refuses this machine's token. "
            "Copy the token file again from the machine that runs the head."
        )
    if mismatch := re.search(r"Version mismatch.*?(?:\n\n|\Z)", output, re.DOTALL):
        raise PrerequisiteError(f"{mismatch.group().strip()}\nInstall the same versions on head and nodes.")


def _die_with_parent() -> Callable[[], None]:
    """SIGTERM, not SIGKILL: `ray start` then ends what runs below it."""
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork, where only the call is safe
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _label(text: str) -> str:
    """Ray's rule for the value of a label."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:63].strip("._-")


def _python_path(first: str) -> str:
    """Where the workers find `swarm` and `node`: the checkout or site-packages that this process runs from."""
    here = str(Path(__file__).parents[2])
    parts = [*first.split(os.pathsep), here, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.pathsep.join(dict.fromkeys(part for part in parts if part))
