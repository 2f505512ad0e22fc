"""A whole cluster on this machine: a head and some nodes, each with its own home, mended when something is killed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from swarm.cluster.processes import Started, sweep
from swarm.cluster.starting import QUICK, THIS_MACHINE, Timing, adopt_head, adopt_node, start_head, start_node


class LocalCluster:
    """`mend` it at the beginning and as often as you like; `end` it once. Between the two it needs no process of ours.

    Args:
        home: directory of the study; the node called `n` lives in `nodes/n` below it.
        names: of the nodes.
        port: of the head; 0 picks a free one, which is kept as long as any head of this study is remembered.
        ip: where nodes find the head; other machines can join unless it is a loopback address.
        gpus: names of the nodes that lend a GPU; the others lend a slot.
        env: further environment of the agents.
        timing: how patient Ray is.
        die_with_parent: end all with the *thread* that mends.
    """

    def __init__(
        self,
        home: Path,
        names: Sequence[str],
        *,
        port: int = 0,
        ip: str = THIS_MACHINE,
        gpus: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        timing: Timing = QUICK,
        die_with_parent: bool = False,
    ) -> None:
        self.home = home.absolute()
        self.token_file = self.home / "run" / "token"
        self.node_homes = {name: self.home / "nodes" / name for name in names}
        self._port = port
        self._ip = ip
        self._gpus = frozenset(gpus)
        self._env = dict(env or {})
        self._timing = timing
        self._die_with_parent = die_with_parent

    def mend(self) -> Started:
        """Adopt what runs, start what does not, one after another; 10 ms when nothing is missing. Returns the head.

        Raises:
            PrerequisiteError: the port is in use.
            ClusterError: Ray does not start.
        """
        head = adopt_head(self.home) or self._start_head()
        self._port = int(head.address.rpartition(":")[2])  # a bridge and nodes elsewhere expect it there again
        for name, home in self.node_homes.items():
            if not adopt_node(home, head.address, head=head):
                self._start_node(head.address, name)
        return head

    def end(self) -> list[int]:
        """End the nodes, then the head and the bridge. Returns the pids that were ended."""
        return [pid for home in (*self.node_homes.values(), self.home) for pid in sweep(home)]

    def _start_head(self) -> Started:
        return start_head(
            self.home,
            token_file=self.token_file,
            ip=self._ip,
            port=self._port,
            timing=self._timing,
            die_with_parent=self._die_with_parent,
        )

    def _start_node(self, address: str, name: str) -> Started:
        return start_node(
            address,
            self.node_homes[name],
            token_file=self.token_file,
            name=name,
            gpu=name in self._gpus,
            timing=self._timing,
            env=self._env,
            die_with_parent=self._die_with_parent,
        )
