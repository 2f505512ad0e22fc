"""The actor on a node: holds the agent and hands it bytes. Runs in Ray's worker process; imports no ray itself.

Ray pickles an actor's class by reference to this module, so a node runs its own checkout; anything that depends on
the machine has to happen in `__init__`, which runs there (module globals would be read on the coordinator's side).
"""

from importlib import import_module
from threading import Lock

from swarm.cluster.port import AgentLike


class Host:
    """Builds the agent from `module:Class` and its setup, and serves one call at a time."""

    def __init__(self, agent: str, setup: bytes) -> None:
        module, _, name = agent.partition(":")
        self._agent: AgentLike = getattr(import_module(module), name)(setup)
        # Calls of an old and a new bridge can overlap; the agent is spared that.
        self._one_at_a_time = Lock()

    def exchange(self, orders: bytes) -> bytes:
        """Forward one call."""
        with self._one_at_a_time:
            return self._agent.exchange(orders)
