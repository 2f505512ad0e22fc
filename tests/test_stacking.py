"""Several accepted ideas wait for one champion: they are joined, measured together and landed as one promotion."""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from random import Random

import pytest
from desk import BASELINE, CRASH, Desk, edited, proposal
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import Killed, Swarm, World

from coordinator.service import Service
from swarm.history import history
from swarm.records import (
    BlockDrawn,
    Carried,
    Files,
    HoldoutAnswered,
    Interaction,
    Outcome,
    Promotion,
    Proposal,
    Stacked,
    Verdict,
    candidate_id,
)

NAMES = ("A", "B", "C", "D")
GAINS = {"A": 0.5, "B": 0.4, "C": 0.3, "D": 0.2}
IDEAS = {name: proposal(edited(BASELINE, **{name: 1}), hypothesis=f"Raise {name}") for name in NAMES}


@dataclass
class Truth:
    """What every tree is worth: gains of the constants that are raised, and of pairs of them."""

    gains: Mapping[str, float]
    pairs: Mapping[str, float] = field(default_factory=dict)
    crash: frozenset[str] = frozenset()  # raised together, these crash
    twice: float = 0.0  # of B raised to 2

    def __call__(self, files: Files) -> float | Outcome:
        on = {name for name in NAMES if f"{name} = 1" in files["train.py"]}
        if self.crash and self.crash <= on:
            return CRASH
        gain = sum(self.gains[name] for name in on) + self.twice * ("B = 2" in files["train.py"])
        return 2.0 - gain - sum(self.pairs.get(a + b, 0.0) for a, b in combinations(sorted(on), 2))


def waiting(desk: Desk, ideas: Mapping[str, Proposal] = IDEAS) -> None:
    """One claim per node, all against the baseline."""
    desk.calibrate(*(f"n{name}" for name in ideas))
    for name, idea in ideas.items():
        desk.claim(f"n{name}", idea)


def finish(desk: Desk, truth: Truth, *, restart: bool = False) -> None:
    """Nodes run whatever confirmation is wanted; the coordinator may be another one before each block."""
    while blocks := desk.outstanding("confirm"):
        if restart:
            presence = desk.mind.presence
            desk.mind = desk.replayed()
            desk.mind.presence = presence
        scores = {candidate: truth(desk.state.files[candidate]) for candidate in blocks[0].candidates}
        desk.run(blocks[0], scores)


def settled(truth: Truth, ideas: Mapping[str, Proposal] = IDEAS, *, restart: bool = False) -> Desk:
    desk = Desk()
    waiting(desk, ideas)
    finish(desk, truth, restart=restart)
    return desk


def named(ideas: tuple[str, ...]) -> str:
    return "".join(name for idea in ideas for name in NAMES if IDEAS[name].idea == idea)


def promotions(desk: Desk) -> list[Promotion]:
    return [fact for fact, _ in desk.facts if isinstance(fact, Promotion)]


def landed(desk: Desk) -> list[str]:
    return [named(p.landed) for p in promotions(desk)]


def interactions(desk: Desk) -> dict[str, Interaction]:
    return {named(fact.ideas): fact for fact, _ in desk.facts if isinstance(fact, Interaction)}


def last_verdict(desk: Desk, name: str) -> Verdict:
    told = [f for f, _ in desk.facts if isinstance(f, Verdict) and f.experiment == IDEAS[name].idea]
    return told[-1]


def test_ideas_that_get_along_land_together_and_none_is_measured_alone_again() -> None:
    desk = settled(Truth(GAINS))
    first, rest = landed(desk)
    assert first + rest == first + "".join(n for n in NAMES if n != first), "largest gain first"
    assert not desk.of(Carried) and len(desk.of(Stacked)) == 1
    (told,) = interactions(desk).values()
    assert told.gain == pytest.approx(sum(GAINS[n] for n in rest), abs=0.02) and told.pairs == 2
    assert all(f"{name} = 1" in desk.state.files[desk.state.champion]["train.py"] for name in NAMES)
    champion = promotions(desk)[0].candidate
    blocks = [f for f, _ in desk.facts if isinstance(f, BlockDrawn) and f.reference == champion]
    assert len(blocks) == 3, "one confirmation for three ideas"


def test_every_author_of_what_landed_together_is_told() -> None:
    desk = settled(Truth(GAINS))
    for name in NAMES:
        assert desk.state.answers[f"uid-n{name}"][IDEAS[name].idea] == "accepted"
        assert desk.state.experiments[IDEAS[name].idea].status == "promoted"


def test_the_set_is_asked_about_on_the_holdout_before_it_lands() -> None:
    desk = settled(Truth(GAINS))
    last = promotions(desk)[-1]
    asked = [f for f, _ in desk.facts if isinstance(f, HoldoutAnswered) and f.experiment == last.experiment]
    assert [answer.passed for answer in asked] == [True]


def test_of_two_that_do_not_go_together_the_larger_lands_and_the_other_is_judged_by_itself() -> None:
    desk = settled(Truth(GAINS, pairs={"BC": -0.7}))
    assert landed(desk) == ["A", "BD"]
    assert interactions(desk)["BCD"].gain == pytest.approx(0.2, abs=0.02)
    assert interactions(desk)["BCD"].expected == pytest.approx(0.85 * 0.9, abs=0.02)
    told = last_verdict(desk, "C")
    assert not told.accepted and told.base == promotions(desk)[-1].candidate and told.pairs > 0
    assert desk.state.answers["uid-nC"][IDEAS["C"].idea].startswith("rejected")


def test_ideas_that_changed_the_same_line_drop_out_with_both_sides_named() -> None:
    clash = {**IDEAS, "D": proposal(edited(BASELINE, B=2), hypothesis="Raise B more")}
    truth = Truth(GAINS, twice=0.35)
    desk = settled(truth, clash)
    assert landed(desk) == ["A", "BC"]
    told = [f.reason for f, _ in desk.facts if isinstance(f, Verdict) and f.experiment == clash["D"].idea]
    assert told[0].startswith("accepted"), "alone it was good"
    assert "both changed train.py:B (idea: B = 2; champion: B = 1)" in told[-1]


def test_a_set_that_crashes_leaves_its_ideas_to_smaller_sets() -> None:
    desk = settled(Truth(GAINS, crash=frozenset("CD")))
    assert landed(desk) == ["A", "BC"]
    assert interactions(desk)["BCD"].gain == 0.0 and "crash" in interactions(desk)["BCD"].reason
    assert "crash" in last_verdict(desk, "D").reason


def test_a_set_that_fails_on_the_holdout_is_taken_apart() -> None:
    desk = Desk()
    tree = edited(BASELINE, A=1, B=1, C=1, D=1)
    desk.holdout[candidate_id(tree)] = 2.0
    waiting(desk)
    finish(desk, Truth(GAINS))
    assert all(not promotion.ideas or len(promotion.ideas) < 3 for promotion in promotions(desk))
    assert {"A", "B"} <= set("".join(landed(desk)))


def test_nothing_else_lands_while_a_set_is_measured() -> None:
    desk = Desk()
    waiting(desk)
    truth = Truth(GAINS)
    while not desk.of(Stacked):
        block = desk.outstanding("confirm")[0]
        desk.run(block, {c: truth(desk.state.files[c]) for c in block.candidates})
    (stacked,) = (fact for fact in desk.of(Stacked) if isinstance(fact, Stacked))
    finish(desk, truth)
    after = [promotion for promotion in promotions(desk) if promotion.base == stacked.onto]
    assert [promotion.experiment for promotion in after] == [stacked.experiment]


def test_an_idea_that_its_author_carries_over_while_it_waits_is_not_measured_twice() -> None:
    desk, truth = Desk(), Truth(GAINS)
    waiting(desk)
    while not desk.of(Stacked):
        block = desk.outstanding("confirm")[0]
        desk.run(block, {c: truth(desk.state.files[c]) for c in block.candidates})
    champion = desk.state.files[desk.state.champion]
    again = proposal(edited(champion, B=1, C=0, D=0), parent=champion)
    desk.claim("nB", again, base=champion)
    assert "about to land" in desk.state.answers["uid-nB"][again.idea]
    assert all(claim.ideas for claim in desk.state.open_claims.values())


@pytest.mark.parametrize("pairs", [{}, {"BC": -0.7}, {"CD": -0.5, "BD": -0.6}], ids=["additive", "one", "two"])
def test_a_restart_before_any_block_changes_nothing(pairs: Mapping[str, float]) -> None:
    straight = settled(Truth(GAINS, pairs))
    broken = settled(Truth(GAINS, pairs), restart=True)
    assert [fact.key for fact, _ in broken.facts] == [fact.key for fact, _ in straight.facts]


@given(
    gains=st.lists(st.floats(0.03, 0.6), min_size=4, max_size=4),
    pairs=st.lists(st.sampled_from([0.0, 0.0, 0.1, -0.3, -0.9]), min_size=6, max_size=6),
)
@settings(max_examples=25, deadline=None)
def test_whatever_the_interactions_are_every_idea_gets_its_end(gains: list[float], pairs: list[float]) -> None:
    names = [a + b for a, b in combinations(NAMES, 2)]
    truth = Truth(dict(zip(NAMES, gains, strict=True)), dict(zip(names, pairs, strict=True)))
    desk = settled(truth)
    assert not desk.state.open_claims and not desk.state.accepted
    files = desk.state.files
    for promotion in promotions(desk):
        before, after = truth(files[promotion.base]), truth(files[promotion.candidate])
        assert isinstance(before, float) and isinstance(after, float) and after < before, "each step is an advance"
    champion = files[desk.state.champion]["train.py"]
    assert {name for name in NAMES if f"{name} = 1" in champion} == set("".join(landed(desk)))


# --- the whole loop ---------------------------------------------------------------------------------------

TOGETHER = {("GOOD_1", "GOOD_2"): -0.16}  # the two are the same gain, had twice


def swarm(folder: Path, **changes: object) -> Swarm:
    """Five nodes with an idea each: three gains that add up, and a pair of which only one may stay."""
    gains = {"GOOD_0": 0.09, "GOOD_1": 0.09, "GOOD_2": 0.08, "GOOD_3": 0.08, "NULL": 0.0}
    ideas = {f"n{i}": (name,) for i, name in enumerate(gains)}
    world = World(gains, together=TOGETHER, ideas=ideas)
    settings = {"stop": {"wall_minutes": 40, "final_minutes": 3}}
    return Swarm(folder, world, nodes=5, settings=settings, **changes)  # type: ignore[arg-type]


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


@pytest.mark.parametrize("kills", [0.0, 0.02], ids=["straight", "killed"])
def test_three_gains_and_a_conflicting_pair_end_in_the_best_champion(tmp_path: Path, kills: float) -> None:
    random = Random(1)

    def faults(swarm: Swarm, tick: int) -> None:
        if random.random() < kills:
            raise Killed

    study = swarm(tmp_path, faults=faults)
    service = run_to_the_end(study)
    assert switches(service) in ({"GOOD_0", "GOOD_1", "GOOD_3"}, {"GOOD_0", "GOOD_2", "GOOD_3"})
    facts = study.facts()
    stacks = [f for f in facts if isinstance(f, Promotion) and f.ideas]
    assert stacks and any(isinstance(f, Interaction) for f in facts)
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
        words = "; ".join(told.by_idea[idea].hypothesis for idea in promotion.ideas)
        assert words in (service.study.folder / "LEADERBOARD.md").read_text()
    tip = service.repo.ref("refs/heads/swarm/best")
    assert tip is not None
    assert service.repo.read(tip, "train.py") == service.mind.state.files[service.mind.state.champion]["train.py"]


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
