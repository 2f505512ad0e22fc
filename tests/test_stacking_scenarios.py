"""A study of six ideas in the simulator: the good ones land together, and two that do harm together are told apart."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from io import StringIO
from itertools import combinations, pairwise
from pathlib import Path
from random import Random

import pytest
from rich.console import Console
from simulation import Killed, Swarm, World

from coordinator.service import Service
from coordinator.wording import together
from swarm.cli.tables import leaderboard_page
from swarm.history import History, history
from swarm.records import BlockDrawn, Fact, Interaction, Promotion, Stacked, Verdict

SIX = {"GOOD_0": 0.12, "GOOD_1": 0.09, "GOOD_2": 0.09, "GOOD_3": 0.08, "GOOD_4": 0.08, "RIVAL": 0.07}
TOGETHER = {("GOOD_2", "RIVAL"): -0.20}  # alone each is good, together they do harm


def swarm(folder: Path, **changes: object) -> Swarm:
    """Six nodes with an idea each: four gains that add up, and a pair of which only one may stay."""
    ideas = {f"n{i}": (name,) for i, name in enumerate(SIX)}
    world = World(SIX, together=TOGETHER, ideas=ideas)
    settings = {"stop": {"wall_minutes": 40, "final_minutes": 3}}
    return Swarm(folder, world, nodes=6, settings=settings, **changes)  # type: ignore[arg-type]


def run_to_the_end(swarm: Swarm) -> Service:
    for _ in range(200):
        try:
            return swarm.run()
        except Killed:
            continue
    raise AssertionError("the study did not end within 200 lives")


def switches(service: Service) -> set[str]:
    text = service.mind.state.files[service.mind.state.champion]["train.py"]
    return {line.split()[0] for line in text.splitlines() if line.endswith("True")}


class Faults:
    """The coordinator is killed, agents and nodes come and go, head and forge are away."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def __call__(self, swarm: Swarm, tick: int) -> None:
        cluster, member = swarm.cluster, self.random.choice(sorted(swarm.cluster.by_id))
        chance = self.random.random()
        if chance < 0.010:
            raise Killed
        if chance < 0.014:
            cluster.kill_agent(member)
        elif chance < 0.018:
            cluster.by_id[member].disturb()
        elif chance < 0.020:
            cluster.rejoin(member)
        elif chance < 0.022:
            cluster.away.add(member)
        elif chance < 0.024:
            cluster.head_away = True
        elif chance < 0.026:
            swarm.forge.away = True
        elif chance < 0.036:
            cluster.away.clear()
            cluster.head_away = swarm.forge.away = False


@pytest.mark.parametrize("faults", [lambda swarm, tick: None, Faults(0), Faults(1)], ids=["none", "some", "others"])
def test_of_six_ideas_the_good_ones_land_and_the_two_that_do_harm_together_are_told_apart(
    tmp_path: Path, faults: Callable[[Swarm, int], None]
) -> None:
    study = swarm(tmp_path, faults=faults)
    service = run_to_the_end(study)
    assert SIX.keys() - switches(service) in ({"RIVAL"}, {"GOOD_2"}), "whichever of the two lands first"
    assert not service.mind.state.open_claims and not service.mind.state.accepted, "every idea got its end"
    facts = study.facts()
    assert_sets_are_planned_together(facts)
    stacks = [f for f in facts if isinstance(f, Promotion) and f.ideas]
    assert stacks
    for promotion in stacks:
        verdict = next(f for f in facts if isinstance(f, Verdict) and f.experiment == promotion.experiment)
        assert verdict.candidate == promotion.candidate and verdict.base == promotion.base, "the very tree was measured"
    for promotion in stacks:
        assert_one_commit_per_idea(service, promotion)
    told = history(facts)
    with closing(sqlite3.connect(study.folder / "toy-1" / "ledger.sqlite")) as client:
        status = dict(client.execute("SELECT idea, status FROM experiment"))
    for promotion in stacks:
        assert {told.by_idea[idea].status for idea in promotion.ideas} == {"promoted"}
        assert {status[idea] for idea in promotion.ideas} == {"promoted"}
        assert [experiment.idea for experiment in told.stacked(promotion)] == list(promotion.ideas)
    assert_harm_is_told(service, told)
    tip = service.repo.ref("refs/heads/swarm/best")
    assert tip is not None
    assert service.repo.read(tip, "train.py") == service.mind.state.files[service.mind.state.champion]["train.py"]


def assert_sets_are_planned_together(facts: Sequence[Fact]) -> None:
    """No set is planned while another one is measured; those of one step share the champion's runs."""
    waiting: set[str] = set()
    for before, fact in pairwise(facts):
        match fact:
            case Stacked(experiment=name):
                assert not waiting or isinstance(before, Stacked)
                waiting.add(name)
            case Interaction(experiment=name):
                waiting.discard(name)
            case Promotion():
                waiting.clear()
    sets = {fact.experiment for fact in facts if isinstance(fact, Stacked)}
    shared = [block for block in facts if isinstance(block, BlockDrawn) and sets & {*block.experiments}]
    assert max(len(block.experiments) for block in shared) > 1
    assert all(sets >= {*block.experiments} for block in shared), "sets are compared with sets"


def assert_harm_is_told(service: Service, told: History) -> None:
    """Where both rivals met, among the ideas of a set or in its champion, less came than was expected."""
    met = {told.interactions.index(one) for one in told.interactions if TOGETHER.keys() <= {*pairs_of(told, one)}}
    assert met
    for number, found in enumerate(told.interactions):
        assert (found.gain < found.expected - 0.1) == (number in met)
    console = Console(file=StringIO(), width=100)
    for part in leaderboard_page(told):
        console.print(part)
    assert isinstance(console.file, StringIO)
    for page in (service.study.folder / "LEADERBOARD.md", service.study.folder / "report.md"):
        for row in together(told):
            assert f"| {' | '.join(row)} |" in page.read_text()
    for promotion in told.promotions:
        words = "; ".join(e.hypothesis for e in told.stacked(promotion))
        assert words in (service.study.folder / "LEADERBOARD.md").read_text()
        assert f"landed as promotion {promotion.number}" in console.file.getvalue() or not promotion.ideas


def pairs_of(told: History, interaction: Interaction) -> Iterator[tuple[str, str]]:
    """Switches that were on together."""
    words = " ".join(told.by_idea[idea].hypothesis for idea in interaction.ideas)
    champion = told.files[interaction.onto]["train.py"]
    on = [name for name in SIX if f"{name} = True" in champion or name in words]
    return combinations(on, 2)


def assert_one_commit_per_idea(service: Service, promotion: Promotion) -> None:
    experiments = [service.mind.state.experiments[idea].admitted for idea in promotion.ideas]
    (landed,) = service.repo.log(promotion.commit, 1)
    commits = service.repo.log(landed.parents[1], len(experiments))[::-1]
    assert [commit.trailer("Swarm-Experiment") for commit in commits] == list(promotion.ideas)
    assert [commit.subject for commit in commits] == [e.proposal.hypothesis for e in experiments]
    nodes = {node.uid: node.name for node in service.mind.state.nodes.values()}
    assert [c.trailer("Swarm-Author") for c in commits] == [f"scripted on {nodes[e.node]}" for e in experiments]
    assert commits[0].parents == landed.parents[:1], "they begin at the champion before"
    files = service.mind.state.files[promotion.candidate]
    assert service.repo.read(commits[-1].sha, "train.py") == files["train.py"]
    assert service.repo.read(landed.sha, "train.py") == files["train.py"]
    assert all(f"Swarm-Experiment: {idea}" in landed.message for idea in promotion.ideas)
