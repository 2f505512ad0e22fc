"""The holdout gate over whole simulated studies: what it keeps out, and what survives a kill between two steps."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from simulation import Killed, Swarm, World

from swarm.records import BlockDrawn, Fact, HoldoutAnswered, Promotion, TrialFinished, Verdict

NULLS = {f"NULL_{i}": 0.0 for i in range(4)}
SETTINGS: dict[str, object] = {"stop": {"wall_minutes": 14, "final_minutes": 3}}


def good_world() -> World:
    return World({"GOOD": 0.09, "FINE": 0.08, **NULLS})


def answers(facts: tuple[Fact, ...]) -> list[HoldoutAnswered]:
    return [fact for fact in facts if isinstance(fact, HoldoutAnswered)]


def accepted(facts: tuple[Fact, ...]) -> list[Verdict]:
    return [fact for fact in facts if isinstance(fact, Verdict) and fact.accepted]


def assert_the_gate_was_passed(swarm: Swarm) -> None:
    """Every promotion stands behind an answer that passed; questions are counted, and no tree got two answers."""
    facts = swarm.facts()
    told = answers(facts)
    trees = {answer.number: (answer.candidate, answer.base) for answer in told}
    assert list(trees) == list(range(1, len(trees) + 1))
    assert len(set(trees.values())) == len(trees)
    passed = {(answer.candidate, answer.base) for answer in told if answer.passed}
    assert all((p.candidate, p.base) in passed for p in facts if isinstance(p, Promotion))


def run_to_the_end(swarm: Swarm) -> None:
    for _ in range(200):
        try:
            swarm.run()
            return
        except Killed:
            continue
    raise AssertionError("the study did not end within 200 lives")


def at_the_first_accept(strike: Callable[[Swarm, Verdict], None]) -> Callable[[Swarm, int], None]:
    """Something happens once, between a verdict and what the holdout says of it."""
    struck: list[int] = []

    def faults(swarm: Swarm, tick: int) -> None:
        if struck:
            return
        facts = swarm.facts()
        if accepted(facts) and not answers(facts):
            struck.append(tick)
            strike(swarm, accepted(facts)[0])

    return faults


def test_an_edit_that_fits_only_the_searched_split_reproduces_and_does_not_land(tmp_path: Path) -> None:
    ideas = {"n0": ("TUNED",), "n1": ("GOOD", "NULL_0"), "n2": ("NULL_1", "NULL_2")}
    world = World({"GOOD": 0.09, "TUNED": 0.0, **NULLS}, search_only={"TUNED": 0.09}, ideas=ideas)
    swarm = Swarm(tmp_path, world, nodes=3, settings=SETTINGS)
    state = swarm.run().mind.state
    tuned = [v for v in accepted(swarm.facts()) if "TUNED = True" in state.files[v.candidate]["train.py"]]
    assert tuned, "more seeds cannot tell it from a real gain"
    refused = [answer for answer in answers(swarm.facts()) if not answer.passed]
    assert refused and all(answer.gain is None for answer in refused)
    champion = state.files[state.champion]["train.py"]
    assert "GOOD = True" in champion and "TUNED = True" not in champion
    assert_the_gate_was_passed(swarm)


def test_each_artifact_is_scored_there_once_and_only_for_trees_that_were_accepted(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, good_world(), nodes=3, settings=SETTINGS)
    swarm.run()
    scored = [trial for node in swarm.sim_nodes for trial in node.scored]
    evidence = {trial for verdict in accepted(swarm.facts()) for trial in verdict.evidence}
    assert scored and len(scored) == len(set(scored))
    late = {t.trial for t in swarm.facts() if isinstance(t, TrialFinished) and t.purpose == "confirm"} - evidence
    assert len(set(scored) & late) <= 2 * len(answers(swarm.facts())), "a pair that was in flight at the verdict"
    assert_the_gate_was_passed(swarm)
    assert not any(node.kept for node in swarm.sim_nodes), "nothing is kept at the end"


def test_nodes_that_die_between_the_verdict_and_the_holdout_cost_fresh_pairs_only(tmp_path: Path) -> None:
    gone: list[str] = []

    def strike(swarm: Swarm, verdict: Verdict) -> None:
        ran = {t.trial: t.node for t in swarm.facts() if isinstance(t, TrialFinished)}
        stays = ran[verdict.evidence[0]]
        gone.extend(node.info.uid for node in swarm.sim_nodes if node.info.uid != stays)
        swarm.cluster.away.update(m for m, node in swarm.cluster.by_id.items() if node.info.uid != stays)

    swarm = Swarm(tmp_path, good_world(), nodes=3, settings=SETTINGS, faults=at_the_first_accept(strike))
    swarm.run()
    facts = swarm.facts()
    first, verdict = answers(facts)[0], accepted(facts)[0]
    assert gone and first.candidate == verdict.candidate and first.passed
    fresh = [
        b for b in facts if isinstance(b, BlockDrawn) and b.purpose == "confirm" and verdict.at < b.at < first.at
        and verdict.experiment in b.experiments
    ]  # fmt: skip
    assert first.pairs >= 3 and fresh and all(b.node not in gone for b in fresh)
    assert_the_gate_was_passed(swarm)


def test_a_node_that_restarts_in_between_answers_from_its_disk(tmp_path: Path) -> None:
    def strike(swarm: Swarm, verdict: Verdict) -> None:
        for member in list(swarm.cluster.by_id):
            swarm.cluster.kill_agent(member)

    swarm = Swarm(tmp_path, good_world(), nodes=3, settings=SETTINGS, faults=at_the_first_accept(strike))
    swarm.run()
    verdict, first = accepted(swarm.facts())[0], answers(swarm.facts())[0]
    assert first.candidate == verdict.candidate and first.passed and first.pairs >= verdict.pairs
    assert_the_gate_was_passed(swarm)


def test_a_coordinator_that_is_killed_in_between_asks_again_and_counts_once(tmp_path: Path) -> None:
    def strike(swarm: Swarm, verdict: Verdict) -> None:
        raise Killed

    swarm = Swarm(tmp_path, good_world(), nodes=3, settings=SETTINGS, faults=at_the_first_accept(strike))
    with pytest.raises(Killed):
        swarm.run()
    assert accepted(swarm.facts()) and not answers(swarm.facts())
    swarm.run()
    assert answers(swarm.facts())[0].candidate == accepted(swarm.facts())[0].candidate
    assert_the_gate_was_passed(swarm)


@pytest.mark.parametrize("seed", range(3))
def test_kills_of_anything_at_any_moment_pass_no_tree_by_the_gate(tmp_path: Path, seed: int) -> None:
    random = Random(seed)

    def faults(swarm: Swarm, tick: int) -> None:
        member, chance = random.choice(sorted(swarm.cluster.by_id)), random.random()
        if chance < 0.01:
            swarm.cluster.kill_agent(member)
        elif chance < 0.015:
            swarm.cluster.away.add(member)
        elif chance < 0.03:
            swarm.cluster.away.clear()
        elif chance < 0.035:
            swarm.cluster.by_id[member].kept.clear()  # somebody tidied its disk
        elif chance < 0.04:
            raise Killed

    world = World({"GOOD": 0.09, "TUNED": 0.0, **NULLS}, search_only={"TUNED": 0.09})
    swarm = Swarm(tmp_path, world, nodes=3, settings=SETTINGS, faults=faults)
    run_to_the_end(swarm)
    state = swarm.run().mind.state
    assert answers(swarm.facts())
    assert "TUNED = True" not in state.files[state.champion]["train.py"]
    assert_the_gate_was_passed(swarm)
