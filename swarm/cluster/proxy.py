"""The coordinator's side of the cluster: keeps a bridge process running and asks it. Imports no ray.

A bridge may die at any moment (killed, or ended by Ray because the head stayed away); the next call starts another.
Not covered: a head that is frozen while its machine still accepts connections; a call to it takes 10 to 30 s to fail.
"""

import logging
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

from swarm.cluster import frames
from swarm.cluster.port import Member, Silence
from swarm.cluster.ports import answers, own_address
from swarm.cluster.processes import last_lines
from swarm.cluster.starting import QUICK, Timing, ray_environment, refuse_known_mistakes
from swarm.codec import DecodeError
from swarm.errors import ClusterError

log = logging.getLogger(__name__)

_START_S = 60.0  # import and connect take 1 s on an idle machine; 30 s with an unreachable name server
_CALL_S = 10.0  # calls that ask the head, not an agent, take milliseconds
_GRACE_S = 5.0  # on top of the time an exchange was given
_LOOK_S = 1.0  # while waiting, look this often whether the head is still there


class RayCluster:
    """The cluster port over Ray."""

    def __init__(
        self,
        address: str,
        *,
        home: Path,
        token_file: Path,
        agent: str = "node.agent:Agent",
        timing: Timing = QUICK,
    ) -> None:
        """Nothing is started yet; the first call does.

        Args:
            address: the head, `host:port`.
            home: the study's directory; marks the bridge as ours and holds its log.
            token_file: the cluster's token.
            agent: `module:Class` to run on every node, importable there.
            timing: how patient Ray is.
        """
        self._address = address
        self._home = home.absolute()
        self._token_file = token_file
        self._agent = agent
        self._timing = timing
        self._agents: dict[str, str] = {}  # node id -> name of the actor appointed there
        self._bridge: _BridgeProcess | None = None

    def nodes(self) -> list[Member]:
        answer = self._call(frames.ListNodes(), _CALL_S)
        assert isinstance(answer, frames.Nodes)
        return list(answer.members)

    def exchange(self, orders: Mapping[str, bytes], timeout_s: float) -> dict[str, bytes | Silence]:
        nobody = Silence("no agent was appointed there", dead=True)
        result: dict[str, bytes | Silence] = {node_id: nobody for node_id in orders if node_id not in self._agents}
        names = {self._agents[node_id]: node_id for node_id in orders if node_id in self._agents}
        if names:
            call = frames.Exchange({name: orders[node_id] for name, node_id in names.items()}, timeout_s)
            answer = self._call(call, timeout_s + _GRACE_S)
            assert isinstance(answer, frames.Replies)
            result |= {names[name]: reply for name, reply in answer.answers.items()}
            result |= {names[name]: silence for name, silence in answer.silent.items()}
        return result

    def appoint(self, node_id: str, setup: bytes) -> None:
        name = f"agent-{node_id}-{sha256(self._agent.encode() + setup).hexdigest()[:16]}"
        self._call(frames.Appoint(node_id, name, self._agent, setup), _CALL_S)
        self._agents[node_id] = name

    def dismiss(self, node_id: str) -> None:
        self._agents.pop(node_id, None)
        self._call(frames.Dismiss(node_id), _CALL_S)

    def close(self) -> None:
        if self._bridge:
            self._bridge.end()
            self._bridge = None

    def _call(self, call: frames.Call, timeout_s: float) -> frames.Answer:
        """Ask the bridge; a bridge that dies over it is replaced once."""
        for _ in range(2):
            self._require_head()
            try:
                answer = self._ask(call, timeout_s)
            except TimeoutError as error:
                raise ClusterError(f"Ray gave no answer within {timeout_s:g} s") from error
            except _BridgeLostError as error:
                log.warning("bridge lost: %s\n%s", error, last_lines(self._log_file, 5))
                continue
            if isinstance(answer, frames.Failed):
                raise ClusterError(answer.message)
            return answer
        raise ClusterError(f"the bridge to Ray died twice over one call\n{last_lines(self._log_file)}")

    def _ask(self, call: frames.Call, timeout_s: float) -> frames.Answer:
        """Whatever interrupts it ends the bridge: a late answer would be taken for the one to the next call."""
        try:
            bridge = self._bridge or self._start()
            return bridge.ask(call, timeout_s, self._require_head)
        except BaseException:
            self.close()
            raise

    def _require_head(self) -> None:
        """Ray itself would wait for minutes; a new head is a new cluster, which an old bridge can not join."""
        if not answers(self._address):
            self.close()
            raise ClusterError(f"the head of the cluster at {self._address} does not answer")

    def _start(self) -> "_BridgeProcess":
        own = own_address(self._address.rpartition(":")[0])
        command = [sys.executable, "-P", "-m", "swarm.cluster.bridge", self._address, own]
        environment = ray_environment(self._home, self._token_file, self._timing)
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        self._log_file.unlink(missing_ok=True)
        self._bridge = _BridgeProcess(command, environment, self._log_file)
        try:
            self._bridge.wait_until_connected(_START_S, self._look_at_start)
        except (_BridgeLostError, TimeoutError) as error:
            raise ClusterError(f"the bridge to Ray does not start: {error}\n{last_lines(self._log_file)}") from error
        return self._bridge

    def _look_at_start(self) -> None:
        self._require_head()
        refuse_known_mistakes(self._address, self._log_file.read_text(errors="replace"))

    @property
    def _log_file(self) -> Path:
        return self._home / "run" / "bridge.log"


class _BridgeLostError(Exception):
    """The bridge ended, or talks nonsense."""


class _BridgeProcess:
    """One bridge and the pipe to it."""

    def __init__(self, command: list[str], environment: Mapping[str, str], log_file: Path) -> None:
        with log_file.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment,
                start_new_session=True,  # Ctrl-C in the terminal is for the coordinator
                bufsize=0,
            )
        assert self._process.stdin and self._process.stdout
        self._stdin = self._process.stdin
        self._stdout = self._process.stdout
        self._buffer = bytearray()

    def wait_until_connected(self, timeout_s: float, look: Callable[[], None]) -> None:
        """The bridge says so in its first frame. Raises as `ask` does."""
        self._receive(timeout_s, look)

    def ask(self, call: frames.Call, timeout_s: float, look: Callable[[], None]) -> frames.Answer:
        """One call, one answer. `look` is called every second meanwhile and ends the wait by raising.

        Raises:
            _BridgeLostError: the bridge ended.
            TimeoutError: it did not answer in time; it has to be ended, or its late answer would be taken for the next.
        """
        data = memoryview(frames.frame(call))
        try:
            while data:
                data = data[os.write(self._stdin.fileno(), data) :]
        except OSError as error:
            raise _BridgeLostError(f"it ended ({error.strerror})") from error
        return self._receive(timeout_s, look)

    def end(self) -> None:
        self._process.kill()  # it holds nothing
        self._process.wait()
        self._stdin.close()
        self._stdout.close()

    def _receive(self, timeout_s: float, look: Callable[[], None]) -> frames.Answer:
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while (answer := self._take()) is None:
                if time.monotonic() > deadline:
                    raise TimeoutError
                if selector.select(_LOOK_S):
                    self._read()
                else:
                    look()
        return answer

    def _read(self) -> None:
        chunk = os.read(self._stdout.fileno(), 1 << 20)
        if not chunk:
            raise _BridgeLostError("it ended")
        self._buffer += chunk

    def _take(self) -> frames.Answer | None:
        try:
            return frames.take_answer(self._buffer)
        except DecodeError as error:
            raise _BridgeLostError(str(error)) from error
