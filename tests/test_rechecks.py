"""The champion against an earlier champion: due after so many promotions, on fresh seeds; no better means demoted."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from desk import BASELINE, CRASH, Desk, edited, proposal
from simulation import Swarm, World

from coordinator.leaderboard import leaderboard_md
from coordinator.rechecks import IN_VAIN
from coordinator.report import report_md
from swarm.history import history
from swarm.records import BlockDrawn, BlockLost, ChampionRechecked, Files, Outcome, TrialFinished, Verdict, candidate_id

STEP = 0.5  # that each promotion gains


def study(every: int = 2) -> Desk:
    desk = Desk({"decision": {"calibration_pairs": 2, "final_seeds": 3, "recheck_every": every, "sham_share": 0.0}})
    desk.calibrate("ant", "bee")
    return desk


def promote(desk: Desk, files: Files) -> None:
    """An idea on top of the champion is claimed, confirmed, and lands."""
    before = desk.state.files[desk.state.champion]
    desk.claim("ant", proposal(files, before), before)
    desk.confirm({candidate_id(files): 2.0 - STEP})
    assert desk.state.champion == candidate_id(files)


A1 = edited(BASELINE, A=1)
B1 = edited(A1, B=1)


def compare(desk: Desk, scores: Mapping[str, float | Outcome]) -> list[ChampionRechecked]:
    while blocks := desk.outstanding("recheck"):
        assert len(blocks) == 1, "one at a time"
        desk.run(blocks[0], scores)
    return [fact for fact in desk.of(ChampionRechecked) if isinstance(fact, ChampionRechecked)]


def due() -> Desk:
    desk = study()
    promote(desk, A1)
    assert not desk.outstanding("recheck"), "one promotion of two"
    promote(desk, B1)
    return desk


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (1.0, "it is better"),
        (1.7, "it is better, but by less than was published"),
        (2.0, "it is not better, and the champion before is restored"),
        (2.5, "it is worse, and the champion before is restored"),
    ],
)
def test_what_is_left_of_the_published_gains_is_measured_and_told(score: float, words: str) -> None:
    desk = due()
    champion = desk.state.champion
    (found,) = compare(desk, {champion: score})
    assert (found.number, found.champion, found.ancestor) == (2, champion, candidate_id(BASELINE))
    assert 3 <= found.pairs <= 12 and len(found.evidence) == 2 * found.pairs
    assert found.gain == pytest.approx(2.0 - score) and found.reason == words
    effects = [fact.effect for fact in desk.of(Verdict) if isinstance(fact, Verdict)]
    assert found.published == pytest.approx(sum(effects))
    assert found.demotes == (score >= 2.0) == (desk.state.champion == candidate_id(BASELINE))
    assert desk.replayed().state == desk.state
    told = history(fact for fact, _ in desk.facts)
    assert words in report_md(told) and words in leaderboard_md(told)
    assert told.champion == desk.state.champion


def test_it_is_made_once_and_on_seeds_that_nothing_else_used() -> None:
    desk = due()
    better = {desk.state.champion: 1.0}
    compare(desk, better)
    promote(desk, edited(B1, C=1))
    assert not desk.outstanding("recheck") and len(compare(desk, {})) == 1
    blocks = [fact for fact in desk.of(BlockDrawn) if isinstance(fact, BlockDrawn)]
    ours = {seed for block in blocks if block.purpose == "recheck" for seed in block.seeds}
    others = {seed for block in blocks if block.purpose != "recheck" for seed in block.seeds}
    assert len(ours) >= 3 and ours.isdisjoint(others)
    promote(desk, edited(B1, C=1, D=1))
    first, second = compare(desk, {desk.state.champion: 1.0})
    assert (second.number, second.ancestor) == (4, first.champion)


def test_it_moves_no_noise_no_bar_and_no_final_comparison() -> None:
    desk = due()
    before = desk.state.campaign, dict(desk.state.noise), list(desk.state.final)
    compare(desk, {desk.state.champion: 1.0})
    assert before == (desk.state.campaign, desk.state.noise, desk.state.final)


def test_confirmations_come_first() -> None:
    desk = due()
    desk.run(desk.outstanding("recheck")[0], {})
    champion = desk.state.files[desk.state.champion]
    desk.claim("ant", proposal(edited(champion, C=1), champion), champion)
    assert desk.outstanding("confirm")


def test_a_comparison_that_never_gives_a_pair_is_given_up_and_says_so() -> None:
    crashed = due()
    (found,) = compare(crashed, {crashed.state.champion: CRASH})
    assert found.pairs == 0 and found.gain is None and found.reason == "too few of its pairs gave two scores"
    lost = due()
    for _ in range(IN_VAIN):
        (block,) = lost.outstanding("recheck")
        lost.commit([BlockLost(block.block, "the node is gone", lost.now)])
        lost.think()
    (found,) = compare(lost, {})
    assert found.pairs == 0 and not found.evidence


def test_a_comparison_that_lost_its_blocks_demotes_nobody() -> None:
    desk = due()
    champion = desk.state.champion
    for score in (2.5, 1.0, 2.5, 1.2, 2.4):  # either way is open, and the ratio is below 1
        (block,) = desk.outstanding("recheck")
        desk.run(block, {champion: score})
    while blocks := desk.outstanding("recheck"):
        desk.commit([BlockLost(blocks[0].block, "the node is gone", desk.now)])
        desk.think()
    (found,) = compare(desk, {})
    assert found.likelihood_ratio is not None and found.likelihood_ratio < 1.0 and found.pairs == 5
    assert not found.demotes and desk.state.champion == champion


def test_a_study_may_do_without() -> None:
    desk = study(every=0)
    promote(desk, A1)
    promote(desk, B1)
    assert not desk.outstanding("recheck")


def test_a_whole_study_compares_its_champions_on_the_way(tmp_path: Path) -> None:
    world = World({"WIDER": 0.05, "DEEPER": 0.04, "OTHER": 0.0})
    settings = {"decision": {"recheck_every": 2, "final_seeds": 3}, "stop": {"wall_minutes": 60, "final_minutes": 5}}
    swarm = Swarm(tmp_path, world, nodes=2, settings=settings)
    swarm.run()
    told = history(swarm.facts())
    assert len(told.promotions) == 2
    (found,) = told.rechecks
    assert found.ancestor == told.baseline and found.champion == told.champion
    assert found.low is not None and 0 < found.low < 0.09 and found.reason.startswith("it is better")
    compared = [run for run in swarm.facts() if isinstance(run, TrialFinished) and run.purpose == "recheck"]
    assert len(compared) == 2 * found.pairs and not told.demotions
