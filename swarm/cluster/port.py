"""What the swarm sees of a cluster: members, and bytes to and from the agent of each. No Ray, no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Member:
    """A living node that lends a GPU or a slot. `id` is new at every rejoin; the agent knows its lasting uid."""

    id: str
    name: str
    address: str


@dataclass(frozen=True)
class Silence:
    """An agent did not answer. Unless `dead`, it may live, and may have carried out what it was told."""

    reason: str
    dead: bool


class AgentLike(Protocol):
    """What a host holds: an object that answers bytes with bytes."""

    def exchange(self, orders: bytes) -> bytes:
        """Carry out the orders, report."""
        ...


class Cluster(Protocol):
    """Membership and transport. Every method may be called again after any error."""

    def nodes(self) -> list[Member]:
        """The members that are alive now.

        Raises:
            ClusterError: the head does not answer.
        """
        ...

    def exchange(self, orders: Mapping[str, bytes], timeout_s: float) -> dict[str, bytes | Silence]:
        """One short call to the agent of each node named, all at once; one answer or `Silence` per node.

        Orders may arrive twice when the bridge dies half-way, so they must be harmless when repeated.

        Raises:
            ClusterError: no agent could be asked, because the head does not answer.
        """
        ...

    def appoint(self, node_id: str, setup: bytes) -> None:
        """Make sure that an agent born with this setup runs on the node; one with another setup is ended first.

        Returns before the agent is up: until then it is silent, and if it can not start, it is dead and says why.

        Raises:
            ClusterError: the head does not answer, or the node is no member.
        """
        ...

    def dismiss(self, node_id: str) -> None:
        """End the agent of the node, with everything it runs. None there is fine.

        Raises:
            ClusterError: the head does not answer.
        """
        ...

    def close(self) -> None:
        """Let go of the cluster. Agents stay and go on."""
        ...
