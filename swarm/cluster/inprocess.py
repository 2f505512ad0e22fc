"""The cluster port without Ray: agents are plain objects in this process.

For scenario tests, and for people who want a breakpoint inside an agent. Not covered: an agent that hangs hangs its
caller (`timeout_s` is not enforced), and all agents share one environment and one interpreter.
"""

from collections.abc import Callable, Iterable, Mapping

from swarm.cluster.port import AgentLike, Member, Silence
from swarm.errors import ClusterError


class InProcessCluster:
    """Members are given; `hire` builds the agent of one from its setup. `lose` and `join` are the faults to inject."""

    def __init__(self, members: Iterable[Member], hire: Callable[[Member, bytes], AgentLike]) -> None:
        self._members = {member.id: member for member in members}
        self._hire = hire
        self._agents: dict[str, tuple[bytes, AgentLike]] = {}

    def nodes(self) -> list[Member]:
        return list(self._members.values())

    def exchange(self, orders: Mapping[str, bytes], timeout_s: float) -> dict[str, bytes | Silence]:
        return {node_id: self._ask(node_id, data) for node_id, data in orders.items()}

    def appoint(self, node_id: str, setup: bytes) -> None:
        if node_id not in self._members:
            raise ClusterError(f"node {node_id[:8]} is not a member of the cluster")
        if node_id not in self._agents or self._agents[node_id][0] != setup:
            self._agents[node_id] = setup, self._hire(self._members[node_id], setup)

    def dismiss(self, node_id: str) -> None:
        self._agents.pop(node_id, None)

    def close(self) -> None:
        """Nothing is held; agents stay."""

    def lose(self, node_id: str) -> None:
        """The node vanishes, and its agent with it."""
        self._members.pop(node_id, None)
        self._agents.pop(node_id, None)

    def join(self, member: Member) -> None:
        """A node appears."""
        self._members[member.id] = member

    def _ask(self, node_id: str, data: bytes) -> bytes | Silence:
        if node_id not in self._agents:
            return Silence("no agent was appointed there, or it is gone", dead=True)
        try:
            return self._agents[node_id][1].exchange(data)
        except Exception as error:  # noqa: BLE001 - the border to foreign code, as Ray's worker is one
            return Silence(f"{type(error).__name__}: {error}", dead=False)
