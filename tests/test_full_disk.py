"""A disk that fills up while the swarm works: nothing that finished is lost, and it goes on once there is room."""

import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy_task as toy
from simulation import Swarm, World

from node.agent import Agent
from swarm.codec import pack, unpack
from swarm.errors import PrerequisiteError
from swarm.records import Block, Fact, Orders, Report, Setup, TrialDisturbed, TrialFinished
from swarm.task import bundle

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "swarm-test", str(place)]).returncode:
        pytest.skip("mounting a small disk takes more rights than these tests have")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> None:
    """Take every byte that is left."""
    with (disk / "fill").open("ab", buffering=0) as file:
        for size in (2**20, 4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


def test_a_study_whose_disk_fills_up_ends_and_is_resumed_by_the_same_command(disk: Path) -> None:
    def faults(swarm: Swarm, tick: int) -> None:
        if tick == 60:
            fill(disk)

    settings = {"stop": {"wall_minutes": 6, "final_minutes": 1.5}}
    world = World({"GOOD": 0.09, "NULL": 0.0, "BAD": -0.03})
    swarm = Swarm(disk / "studies", world, settings=settings, faults=faults)
    with pytest.raises((OSError, PrerequisiteError), match=r"No space left|is full"):
        swarm.run()
    before = swarm.facts()
    assert any(isinstance(fact, TrialFinished) for fact in before)
    (disk / "fill").unlink()
    service = swarm.run()
    assert service.mind.state.finished is not None
    facts = swarm.facts()
    assert facts[: len(before)] == before
    assert Counter(fact.key for fact in facts if isinstance(fact, TrialFinished)) == Counter(swarm.produced())


def test_a_node_whose_disk_is_full_says_so_and_goes_on_when_there_is_room(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWARM_NODE_HOME", str(disk / "node"))
    task = toy.printed_task(tmp_path / "task")
    setup = Setup("toy-1", 0, "minimize", bundle(task), "tuner")
    agent = Agent(pack(setup))
    arrived: list[Fact] = []

    def exchange(*blocks: Block) -> Report:
        acks = tuple(fact.key for fact in arrived)
        report = unpack(agent.exchange(pack(Orders(epoch=1, acks=acks, blocks=blocks))), Report)
        arrived.extend(fact for fact in report.facts if fact.key not in acks)
        return report

    def block(name: str) -> Block:
        return Block(name, 1, (toy.spec_of(toy.PRINTED, seed=len(name)),))

    assert toy.eventually(lambda: exchange().ready, 30)
    fill(disk)
    exchange(block("first"))
    assert toy.eventually(lambda: "free some space" in exchange().idle, 30), "it answers, and says what is wrong"
    assert not arrived
    (disk / "fill").unlink()
    assert toy.eventually(lambda: any(isinstance(fact, TrialDisturbed) for fact in (exchange(), arrived)[1]), 30)
    exchange(block("second one"))
    assert toy.eventually(lambda: any(isinstance(fact, TrialFinished) for fact in (exchange(), arrived)[1]), 30)
    assert len({fact.key for fact in arrived}) == len(arrived)
    exchange()
    unpack(agent.exchange(pack(Orders(epoch=1, drain=True))), Report)
