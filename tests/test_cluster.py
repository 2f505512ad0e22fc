"""The cluster port: one contract for Ray and for its stand-in, then what happens when processes are killed.

The Ray half runs a real head and two nodes on this machine, each in its own home. Only processes that carry the mark
of these homes are ever signalled.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_agent import Toy

from swarm import cluster as clusters
from swarm.cluster import Cluster, InProcessCluster, LocalCluster, Member, RayCluster, Silence, Started, processes
from swarm.cluster.starting import ray_environment
from swarm.errors import ClusterError, PrerequisiteError

TESTS = Path(__file__).parent
ANSWER_S = 20.0  # an agent starts within 1 s on an idle machine


def until(holds: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
    """Poll until it is true; the last value."""
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)
    return value


JOINS = """
import sys, ray
from ray._private.utils import check_version_info
check_version_info({"ray_version": ray.__version__, "python_version": sys.argv[1]}, "this test")
"""


@pytest.mark.parametrize(("other", "joins"), [("{}.{}.99", True), ("{}.99.{}", False)])
def test_a_node_joins_whose_python_differs_in_the_patch_only(other: str, joins: bool, tmp_path: Path) -> None:
    env = ray_environment(tmp_path, tmp_path / "token", clusters.QUICK)
    asked = [sys.executable, "-c", JOINS, other.format(*sys.version_info)]
    assert (subprocess.run(asked, env=env, capture_output=True, check=False).returncode == 0) is joins


class Lab:
    """A head and two nodes on this machine, mended before every test. To Ray a GPU is a number."""

    def __init__(self, home: Path) -> None:
        self.local = LocalCluster(
            home, ["one", "node two"], gpus=["node two"], env={"PYTHONPATH": str(TESTS)}, die_with_parent=True
        )
        self.study, self.token = self.local.home, self.local.token_file
        self.one, self.two = self.local.node_homes.values()
        self.head = self.local.mend()
        self.cluster = self.connect()

    def connect(self) -> RayCluster:
        return RayCluster(self.head.address, home=self.study, token_file=self.token, agent="toy_agent:Toy")

    def mend(self) -> None:
        self.head = self.local.mend()
        until(lambda: self.names() == ["node-two", "one"], "both nodes are members")

    def start_node(self, home: Path, token: Path) -> Started:
        return clusters.start_node(
            self.head.address, home, token_file=token, name=home.name, gpu=True, die_with_parent=True
        )

    def names(self) -> list[str]:
        return sorted(member.name for member in self.cluster.nodes())

    def member(self, name: str) -> Member:
        return next(member for member in self.cluster.nodes() if member.name == name)

    def find(self, home: Path, pattern: str) -> int:
        """The one marked process whose command line matches."""
        (pid,) = [pid for pid in processes.marked(home) if re.search(pattern, command_line(pid))]
        return pid

    def end(self) -> None:
        self.cluster.close()
        self.local.end()


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def told(reply: bytes | Silence) -> dict[str, Any]:
    """What the toy says about itself."""
    assert isinstance(reply, bytes), reply
    answer: dict[str, Any] = json.loads(reply)
    return answer


def ask(cluster: Cluster, node: Member, orders: bytes = b"hello") -> dict[str, Any]:
    return told(cluster.exchange({node.id: orders}, ANSWER_S)[node.id])


def ask_new(cluster: Cluster, node: Member) -> dict[str, Any]:
    """Appoint, and again when Ray drops the actor before it has run, as the coordinator does."""

    def answer() -> bytes | Silence | None:
        cluster.appoint(node.id, b"")
        reply = cluster.exchange({node.id: b"hello"}, ANSWER_S)[node.id]
        return None if isinstance(reply, Silence) and reply.dead else reply

    return told(until(answer, "its agent answers"))


@pytest.fixture(scope="module")
def whole_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.end()


@pytest.fixture
def lab(whole_lab: Lab) -> Iterator[Lab]:
    whole_lab.mend()
    yield whole_lab
    for member in whole_lab.cluster.nodes():
        whole_lab.cluster.dismiss(member.id)


@pytest.fixture(params=["in process", pytest.param("ray", marks=pytest.mark.ray)])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    if request.param == "in process":
        members = [Member("id-1", "one", "here"), Member("id-2", "node-two", "here")]
        return InProcessCluster(members, lambda member, setup: Toy(setup))
    found: Cluster = request.getfixturevalue("lab").cluster
    return found


# --- the contract ----------------------------------------------------------------------------------------


def test_every_agent_answers_its_own_orders(cluster: Cluster) -> None:
    nodes = cluster.nodes()
    assert sorted(node.name for node in nodes) == ["node-two", "one"]
    for node in nodes:
        cluster.appoint(node.id, node.name.encode())
    replies = cluster.exchange({node.id: b"x" * len(node.name) for node in nodes}, ANSWER_S)
    assert {told(replies[node.id])["setup"] for node in nodes} == {"one", "node-two"}


def test_megabytes_pass_in_both_directions(cluster: Cluster) -> None:
    node = cluster.nodes()[0]
    cluster.appoint(node.id, b"s" * 3_000_000)
    answer = ask(cluster, node, b"o" * 5_000_000)
    assert (answer["echo"], len(answer["setup"])) == (5_000_000, 3_000_000)


def test_an_appointed_agent_is_kept_and_one_with_another_setup_replaced(cluster: Cluster) -> None:
    node = cluster.nodes()[0]
    for _ in range(2):
        cluster.appoint(node.id, b"first")
        ask(cluster, node)
    assert ask(cluster, node)["calls"] == 3
    cluster.appoint(node.id, b"second")
    answer = ask(cluster, node)
    assert (answer["setup"], answer["calls"]) == ("second", 1)


def test_nobody_appointed_is_dead_silence(cluster: Cluster) -> None:
    node = cluster.nodes()[0]
    before = cluster.exchange({node.id: b""}, ANSWER_S)[node.id]
    cluster.appoint(node.id, b"")
    ask(cluster, node)
    cluster.dismiss(node.id)
    cluster.dismiss(node.id)
    after = cluster.exchange({node.id: b"", "unknown": b""}, ANSWER_S)
    assert all(isinstance(s, Silence) and s.dead for s in (before, after[node.id], after["unknown"]))


def test_an_agent_that_raises_is_silent_but_alive(cluster: Cluster) -> None:
    node = cluster.nodes()[0]
    cluster.appoint(node.id, b"")
    silence = cluster.exchange({node.id: b"raise too late"}, ANSWER_S)[node.id]
    assert isinstance(silence, Silence) and not silence.dead
    assert "ValueError: too late" in silence.reason
    assert ask(cluster, node)["calls"] == 2


def test_only_a_member_can_be_appointed(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match="not a member"):
        cluster.appoint("0123456789", b"")


# --- Ray: everything that can be killed ------------------------------------------------------------------


@pytest.mark.ray
def test_the_coordinator_never_imports_ray() -> None:
    code = "import sys, swarm.cluster; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.ray
def test_agents_find_their_home_and_name(lab: Lab) -> None:
    node = lab.member("one")
    lab.cluster.appoint(node.id, b"")
    told_env = {name: ask(lab.cluster, node, b"env " + name.encode())["env"] for name in ENVIRONMENT}
    home = str(lab.one)
    assert told_env == {"SWARM_HOME": home, "SWARM_NODE_HOME": home, "SWARM_NODE_NAME": "one"}


ENVIRONMENT = ("SWARM_HOME", "SWARM_NODE_HOME", "SWARM_NODE_NAME")


@pytest.mark.ray
def test_an_agent_that_can_not_start_is_dead_and_says_why(lab: Lab) -> None:
    node = lab.member("one")
    lab.cluster.appoint(node.id, b"broken")
    silence = lab.cluster.exchange({node.id: b""}, ANSWER_S)[node.id]
    assert isinstance(silence, Silence) and silence.dead
    assert "born broken" in silence.reason


@pytest.mark.ray
def test_a_slow_agent_is_silent_and_not_asked_twice(lab: Lab) -> None:
    slow, quick = lab.member("one"), lab.member("node-two")
    for node in (slow, quick):
        lab.cluster.appoint(node.id, b"")
        ask(lab.cluster, node)
    replies = lab.cluster.exchange({slow.id: b"sleep 1.5", quick.id: b""}, 0.3)
    assert replies[slow.id] == Silence("no answer within 0.3 s", dead=False)
    assert told(replies[quick.id])["calls"] == 2
    assert lab.cluster.exchange({slow.id: b""}, 0.3)[slow.id] == Silence("still busy with the last call", dead=False)
    reply = until(lambda: answered(lab.cluster, slow), "the slow agent answers again")
    assert told(reply)["calls"] == 3


def answered(cluster: Cluster, node: Member) -> bytes | None:
    reply = cluster.exchange({node.id: b""}, 1.0)[node.id]
    return reply if isinstance(reply, bytes) else None


@pytest.mark.ray
def test_a_killed_agent_is_dead_and_can_be_appointed_again(lab: Lab) -> None:
    node = lab.member("one")
    lab.cluster.appoint(node.id, b"")
    pid = ask(lab.cluster, node)["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: is_dead(lab.cluster, node), "the agent is known to be dead")
    lab.cluster.appoint(node.id, b"")
    assert ask(lab.cluster, node)["pid"] != pid


def is_dead(cluster: Cluster, node: Member) -> bool:
    reply = cluster.exchange({node.id: b""}, 2.0)[node.id]
    return isinstance(reply, Silence) and reply.dead


@pytest.mark.ray
def test_a_killed_bridge_is_replaced_unnoticed(lab: Lab) -> None:
    node = lab.member("one")
    lab.cluster.appoint(node.id, b"")
    before = ask(lab.cluster, node)
    os.kill(lab.find(lab.study, "swarm.cluster.bridge"), signal.SIGKILL)
    after = ask(lab.cluster, node)
    assert (after["pid"], after["calls"]) == (before["pid"], before["calls"] + 1)


COORDINATOR = """
import sys, time
from pathlib import Path
from swarm.cluster import RayCluster
address, home, token = sys.argv[1:]
cluster = RayCluster(address, home=Path(home), token_file=Path(token), agent="toy_agent:Toy")
(node,) = [node for node in cluster.nodes() if node.name == "one"]
cluster.appoint(node.id, b"mine")
print(cluster.exchange({node.id: b""}, 20)[node.id].decode(), flush=True)
time.sleep(600)
"""


@pytest.mark.ray
def test_agents_outlive_a_killed_coordinator_and_its_bridge_does_not(lab: Lab) -> None:
    lab.cluster.close()
    arguments = [sys.executable, "-c", COORDINATOR, lab.head.address, str(lab.study), str(lab.token)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as coordinator:
        assert coordinator.stdout
        before = json.loads(coordinator.stdout.readline())
        bridge = lab.find(lab.study, "swarm.cluster.bridge")
        coordinator.kill()
    until(lambda: bridge not in processes.marked(lab.study), "the bridge follows its parent", 5)
    node = lab.member("one")
    lab.cluster.appoint(node.id, b"mine")
    after = ask(lab.cluster, node)
    assert (after["pid"], after["calls"]) == (before["pid"], 2)


@pytest.mark.ray
def test_a_killed_raylet_is_no_member_and_its_agent_dead(lab: Lab) -> None:
    node = lab.member("one")
    lab.cluster.appoint(node.id, b"")
    ask(lab.cluster, node)
    os.kill(lab.find(lab.one, "raylet/raylet"), signal.SIGKILL)
    until(lambda: lab.names() == ["node-two"], "the member is gone", 15)
    until(lambda: is_dead(lab.cluster, node), "its agent is dead")


@pytest.mark.ray
@pytest.mark.parametrize("pattern", ["raylet/raylet", "ray.scripts.scripts", "ray::RuntimeEnvAgent"])
def test_a_node_that_lost_any_process_is_mended(lab: Lab, pattern: str) -> None:
    node = lab.member("one")
    os.kill(lab.find(lab.one, pattern), signal.SIGKILL)
    until(lambda: clusters.adopt_node(lab.one, lab.head.address) is None, "it counts as broken")
    lab.mend()
    again = lab.member("one")
    assert again.id != node.id
    lab.cluster.appoint(again.id, b"")
    ask(lab.cluster, again)


@pytest.mark.ray
def test_without_a_head_calls_fail_at_once_and_the_same_port_serves_again(lab: Lab) -> None:
    os.kill(lab.find(lab.study, "gcs_server"), signal.SIGKILL)
    asked_at = time.monotonic()
    with pytest.raises(ClusterError, match="does not answer"):
        lab.cluster.nodes()
    assert time.monotonic() - asked_at < 5
    until(lambda: not lab.head.alive(), "the head ends when its GCS does", 10)
    address = lab.head.address
    lab.mend()
    assert lab.head.address == address
    for node in lab.cluster.nodes():
        lab.cluster.appoint(node.id, b"")
        ask(lab.cluster, node)


@pytest.mark.ray
def test_a_wrong_token_is_refused_in_a_sentence(lab: Lab, tmp_path: Path) -> None:
    clusters.sweep(lab.two)
    wrong = clusters.ensure_token(tmp_path / "wrong")
    assert wrong.stat().st_mode & 0o777 == 0o600
    with pytest.raises(PrerequisiteError, match=r"refuses this machine's token\. Copy the token file"):
        lab.start_node(lab.two, wrong)
    assert not processes.marked(lab.two)
    with pytest.raises(PrerequisiteError, match="refuses this machine's token"):
        RayCluster(lab.head.address, home=tmp_path, token_file=wrong).nodes()
    assert not processes.marked(tmp_path)


@pytest.mark.ray
def test_join_loop_joins_again_until_it_is_stopped(lab: Lab) -> None:
    home, stop = lab.two, threading.Event()
    clusters.sweep(home)
    loop = threading.Thread(
        target=clusters.join_loop, args=(lambda: lab.start_node(home, lab.token), home), kwargs={"stop": stop}
    )
    loop.start()
    try:
        first = until(lambda: clusters.adopt_node(home, lab.head.address), "the node has joined")
        os.kill(first.process.pid, signal.SIGKILL)
        until(lambda: (clusters.adopt_node(home, lab.head.address) or first) != first, "it has joined again")
    finally:
        stop.set()
        loop.join(15)
    assert not processes.marked(home)


@pytest.mark.ray
def test_sweep_ends_everything_with_the_mark_and_nothing_else(lab: Lab) -> None:
    node = lab.member("one")
    agent, other = ask_new(lab.cluster, node)["pid"], lab.find(lab.two, "raylet/raylet")
    temp_dir = Path(processes.remembered(lab.one)[0].temp_dir)
    assert temp_dir.stat().st_mode & 0o777 == 0o700, "Ray's sockets are nobody else's"
    began_at = time.monotonic()
    ended = clusters.sweep(lab.one)
    assert time.monotonic() - began_at < 5
    assert agent in ended and len(ended) >= 5  # start, raylet, Ray's two helpers, agent
    assert not processes.marked(lab.one)
    assert not temp_dir.exists()
    assert lab.find(lab.two, "raylet/raylet") == other


# --- processes and ports, without Ray --------------------------------------------------------------------


@pytest.fixture
def sleeper(tmp_path: Path) -> Started:
    """A process that ignores SIGTERM, with a child that dropped the mark."""
    child = "import subprocess, time; subprocess.Popen(['sleep', '100'], env={}); "
    code = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        + child
        + "print('up', flush=True); time.sleep(100)"
    )
    environment = {"SWARM_HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    process = processes.launch([sys.executable, "-c", code], environment, tmp_path / "log")
    until(lambda: (tmp_path / "log").read_text(), "it runs")
    vital = processes.children(process)
    started = Started("node", "n", process, str(tmp_path), "nowhere:1", str(tmp_path / "temp"), vital)
    processes.remember(started)
    return started


def test_sweep_ends_the_stubborn_and_their_unmarked_children(sleeper: Started, tmp_path: Path) -> None:
    assert len(processes.marked(tmp_path)) == 2
    assert not processes.marked(tmp_path.parent), "the mark is compared as a whole"
    assert sleeper.alive()
    assert len(clusters.sweep(tmp_path)) == 2
    assert not sleeper.alive()
    assert processes.remembered(tmp_path) == []


def test_a_pid_that_was_used_again_is_not_adopted(sleeper: Started, tmp_path: Path) -> None:
    assert clusters.adopt_node(tmp_path, "nowhere:1") == sleeper
    assert clusters.adopt_node(tmp_path, "elsewhere:1") is None
    registry = tmp_path / "run" / "processes.json"
    registry.write_text(registry.read_text().replace(str(sleeper.process.created), str(sleeper.process.created - 1)))
    assert clusters.adopt_node(tmp_path, "nowhere:1") is None
    clusters.sweep(tmp_path)


JOIN = """
import os, sys
from pathlib import Path
from swarm.cluster import Started, join_loop, processes
home = Path(sys.argv[1])
def start():
    process = processes.launch(["sleep", "100"], os.environ | {"SWARM_HOME": str(home)}, home / "log")
    print("joined", flush=True)
    return Started("node", "n", process, str(home), "nowhere:1", str(home / "temp"), (process,))
join_loop(start, home)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_join_loop_ends_all_on_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", JOIN, str(tmp_path)], stdout=subprocess.PIPE) as loop:
        assert loop.stdout and loop.stdout.readline() == b"joined\n"
        assert len(processes.marked(tmp_path)) == 1
        loop.send_signal(number)
        assert loop.wait(5) == 0
    assert not processes.marked(tmp_path)


def test_a_registry_cut_short_is_no_registry(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "processes.json").write_text('[{"role": "he')
    assert clusters.adopt_head(tmp_path) is None


def test_a_port_in_use_is_named_with_the_fix(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PrerequisiteError, match=f"port {port} .* in use.*--port"):
            clusters.start_head(tmp_path, token_file=tmp_path / "token", port=port)


def test_without_a_head_nothing_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    token = clusters.ensure_token(tmp_path / "token")
    with pytest.raises(ClusterError, match="no head answers"):
        clusters.start_node(address, tmp_path, token_file=token, name="n")
    with pytest.raises(ClusterError, match="does not answer"):
        RayCluster(address, home=tmp_path, token_file=token).nodes()
    assert not processes.marked(tmp_path)


def test_a_lost_node_takes_its_agent_with_it() -> None:
    node = Member("id-1", "one", "here")
    cluster = InProcessCluster([node], lambda member, setup: Toy(setup))
    cluster.appoint(node.id, b"")
    cluster.lose(node.id)
    assert cluster.nodes() == [] and is_dead(cluster, node)
    cluster.join(node)
    cluster.appoint(node.id, b"")
    assert ask(cluster, node)["calls"] == 1
