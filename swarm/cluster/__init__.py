"""The Ray cluster: who is a member, and bytes to and from the agents. The only home of `ray`.

It moves bytes and starts and ends processes; it knows nothing of trials, facts or studies. Where to read:

* `port`       what the rest of the swarm sees: `Cluster`, `Member`, `Silence`
* `proxy`      `RayCluster`, the coordinator's side; never imports ray
* `bridge`     the process that talks to Ray, and holds nothing else; `frames` is what runs between the two
* `host`       the actor on every node that holds the agent
* `inprocess`  `InProcessCluster`, the same port without Ray, for scenario tests and for debugging
* `starting`   `ray start` for a head or a node, and adopting one that still runs; `joining` keeps a node joined
* `local`      a head and nodes on this machine, mended whenever something of them was killed
* `processes`  which processes are ours, and how all of them are ended
"""

from swarm.cluster.inprocess import InProcessCluster
from swarm.cluster.joining import join_loop
from swarm.cluster.local import LocalCluster
from swarm.cluster.port import AgentLike, Cluster, Member, Silence
from swarm.cluster.processes import HOME_MARK, Started, sweep
from swarm.cluster.proxy import RayCluster
from swarm.cluster.starting import (
    PRODUCTION,
    QUICK,
    THIS_MACHINE,
    Timing,
    adopt_head,
    adopt_node,
    ensure_token,
    start_head,
    start_node,
)

__all__ = [
    "HOME_MARK",
    "PRODUCTION",
    "QUICK",
    "THIS_MACHINE",
    "AgentLike",
    "Cluster",
    "InProcessCluster",
    "LocalCluster",
    "Member",
    "RayCluster",
    "Silence",
    "Started",
    "Timing",
    "adopt_head",
    "adopt_node",
    "ensure_token",
    "join_loop",
    "start_head",
    "start_node",
    "sweep",
]
