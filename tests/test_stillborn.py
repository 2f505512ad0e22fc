"""Agents that never start, never speak, or die at the very end: the study says so, goes on, and loses nothing."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from simulation import SimulatedCluster, Swarm, World

from coordinator.mind import NO_NODE
from swarm.cluster import Silence
from swarm.records import StudyFinished, TrialFinished, Trouble

SHORT = {"stop": {"wall_minutes": 6, "final_minutes": 1}}


class Faulty(SimulatedCluster):
    """Some agents do not start for a while; counts the attempts."""

    def __init__(self, healthy: SimulatedCluster, silences: dict[str, tuple[int, Silence]]) -> None:
        self.__dict__ = healthy.__dict__
        self.silences = silences  # member -> for how many attempts, and how
        self.attempts: Counter[str] = Counter()

    def appoint(self, node_id: str, setup: bytes) -> None:
        self.attempts[node_id] += 1
        super().appoint(node_id, setup)

    def _call(self, member: str, data: bytes) -> bytes | Silence:
        attempts, silence = self.silences.get(member, (0, Silence("", dead=True)))
        return silence if self.attempts[member] <= attempts else super()._call(member, data)


def faulty(folder: Path, silences: dict[str, tuple[int, Silence]]) -> tuple[Swarm, Faulty]:
    swarm = Swarm(folder, World({"GOOD": 0.09, "NULL": 0.0}), settings=SHORT)
    swarm.cluster = cluster = Faulty(swarm.cluster, silences)
    return swarm, cluster


def test_agents_that_can_never_start_are_tried_ever_more_seldom_and_end_the_study_with_the_reason(
    tmp_path: Path,
) -> None:
    broken = Silence("ImportError: no module named moon", dead=True)
    swarm, cluster = faulty(tmp_path, {"ray-n0-0": (1000, broken), "ray-n1-0": (1000, broken)})
    swarm.run()
    (finished,) = [f for f in swarm.facts() if isinstance(f, StudyFinished)]
    assert finished.reason.startswith(NO_NODE)
    assert "ImportError: no module named moon" in finished.reason
    assert 5 <= cluster.attempts["ray-n0-0"] <= 12  # in 5 minutes: 2, 4, 8, 16, 32, 60, 60 ... seconds apart
    assert any("no module named moon" in f.message for f in swarm.facts() if isinstance(f, Trouble))


def test_one_broken_node_costs_the_others_nothing(tmp_path: Path) -> None:
    swarm, _ = faulty(tmp_path, {"ray-n0-0": (1000, Silence("ImportError", dead=True))})
    swarm.run()
    (finished,) = [f for f in swarm.facts() if isinstance(f, StudyFinished)]
    assert finished.reason.startswith("wall time")
    assert {f.node for f in swarm.facts() if isinstance(f, TrialFinished)} == {"uid-n1"}


def test_an_agent_that_never_says_a_word_is_replaced(tmp_path: Path) -> None:
    swarm, cluster = faulty(tmp_path, {"ray-n0-0": (2, Silence("still busy with the last call", dead=False))})
    swarm.run()
    assert cluster.attempts["ray-n0-0"] == 3
    assert {f.node for f in swarm.facts() if isinstance(f, TrialFinished)} == {"uid-n0", "uid-n1"}


def test_what_agents_spooled_before_they_died_at_the_end_is_waited_for(tmp_path: Path) -> None:
    last: list[TrialFinished] = []

    def die_at_the_end(swarm: Swarm, tick: int) -> None:
        briefs = [node.researcher.brief for node in swarm.sim_nodes]
        if last or any(brief is None or brief.explore for brief in briefs):
            return
        for member, node in swarm.cluster.by_id.items():
            before = [f for f in swarm.facts() if isinstance(f, TrialFinished) and f.node == node.info.uid][-1]
            last.append(replace(before, trial=f"after the last report of {node.name}", block="", purpose="screen"))
            node.spool[last[-1].key] = last[-1]
            swarm.cluster.kill_agent(member)

    swarm = Swarm(tmp_path, World({f"NULL_{i}": 0.0 for i in range(12)}), settings=SHORT, faults=die_at_the_end)
    swarm.run()
    assert len(last) == 2
    assert {f.key for f in last} <= {f.key for f in swarm.facts()}
