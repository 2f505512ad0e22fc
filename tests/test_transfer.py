"""Whether a gain holds at a larger scale: the rule, its error rates by simulation, and when a check is owed."""

import math
from collections.abc import Mapping

import luck
import numpy as np
import pytest
from desk import BASELINE, CRASH, Desk, edited, measured, proposal
from hypothesis import given
from hypothesis import strategies as st

from coordinator.reproduction import moderated_interval
from coordinator.transfer import IN_VAIN, PRIOR_DF, Relative, mark_of, mark_of_simplification, share_kept
from swarm.records import BlockDrawn, BlockLost, Outcome, Promotion, TransferChecked, candidate_id
from swarm.scale import Scale

A1, B1 = edited(BASELINE, A=1), edited(BASELINE, B=1)
GOOD, FINE = proposal(A1), proposal(B1)
AT_HOME = {candidate_id(A1): 1.5, candidate_id(B1): 1.5}
LESS = {"train.py": BASELINE["train.py"].replace("D = 0\n", "")}

halves = st.floats(0.0, 5.0).map(lambda x: round(x, 9))  # squares of smaller ones are rounded to nothing
gains = st.floats(-10.0, 10.0).map(lambda x: round(x, 9))


# --- the rule --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("home", "there", "mark"),
    [
        ((2.0, 0.2), (2.0, 0.2), "transfers"),
        ((2.0, 0.2), (1.5, 0.1), "transfers"),  # less, but surely more than half
        ((2.0, 0.2), (0.8, 0.2), "fades"),
        ((2.0, 0.2), (0.0, 0.2), "fades"),
        ((2.0, 0.2), (-0.5, 0.2), "reverses"),
        ((2.0, 0.2), (1.5, 2.0), "unknown"),
        ((2.0, 2.1), (2.0, 0.1), "unknown"),  # nobody knows of what it would be a share
        ((-1.0, 0.1), (1.0, 0.1), "unknown"),
    ],
)
def test_marks(home: tuple[float, float], there: tuple[float, float], mark: str) -> None:
    assert mark_of(share_kept(Relative(*home), Relative(*there))) == mark


@pytest.mark.parametrize(("there", "mark"), [(0.0, "transfers"), (-2.0, "reverses"), (-1.0, "unknown")])
def test_a_simplification_transfers_where_it_loses_less_than_its_margin(there: float, mark: str) -> None:
    assert mark_of_simplification(Relative(there, 0.5), margin=1.0) == mark


def test_the_interval_of_a_share_is_the_one_of_the_books() -> None:
    """Fieller's limits solve (there - k home)^2 = there_half^2 + k^2 home_half^2: for 4 +- 1 and 2 +- 1 by hand."""
    share = share_kept(Relative(4.0, 1.0), Relative(2.0, 1.0))
    assert share is not None
    assert share == pytest.approx((0.5, (8 - math.sqrt(19)) / 15, (8 + math.sqrt(19)) / 15))


@given(st.floats(0.1, 10.0), halves, gains, halves)
def test_a_share_lies_in_its_interval_and_both_limits_solve_the_equation(
    home: float, home_half: float, there: float, there_half: float
) -> None:
    share = share_kept(Relative(home, home_half), Relative(there, there_half))
    if share is None:
        assert home_half >= home
        return
    slack = 1e-6 * (1.0 + abs(share.low) + abs(share.high))
    assert share.low - slack <= share.value <= share.high + slack
    if home - home_half > 1e-3:
        for k in (share.low, share.high):
            assert (there - k * home) ** 2 == pytest.approx(
                there_half**2 + (k * home_half) ** 2, abs=1e-3 * (1 + k * k)
            )


@given(st.floats(0.1, 10.0), halves, gains, halves, st.integers(-10, 10))
def test_the_unit_of_gains_changes_no_mark(home: float, a: float, there: float, b: float, power: int) -> None:
    unit = 2.0**power
    here = mark_of(share_kept(Relative(home, a), Relative(there, b)))
    assert mark_of(share_kept(Relative(home * unit, a * unit), Relative(there * unit, b * unit))) == here


@given(st.floats(0.1, 10.0), halves, halves, gains, st.floats(0.0, 5.0))
def test_a_larger_gain_there_never_makes_the_mark_worse(
    home: float, a: float, b: float, there: float, more: float
) -> None:
    order = {"reverses": 0, "fades": 1, "unknown": 2, "transfers": 3}
    low = mark_of(share_kept(Relative(home, a), Relative(there, b)))
    high = mark_of(share_kept(Relative(home, a), Relative(there + more, b)))
    assert order[low] <= order[high]


def marks(true_share: float, spread: float, runs: int = 4_000) -> Mapping[str, float]:
    """How often each mark is given: a gain of 6 s at home, known from 4 Pairs; two Pairs there, `spread` as noisy."""
    rng = np.random.default_rng(luck.seed(13))
    found = dict.fromkeys(("transfers", "fades", "reverses", "unknown"), 0.0)
    for _ in range(runs):
        home = moderated_interval(rng.normal(6.0, 1.0, 4).tolist(), math.sqrt(rng.chisquare(7) / 7), 7)
        there = moderated_interval((6.0 * true_share + spread * rng.normal(0.0, 1.0, 2)).tolist(), 1.0, PRIOR_DF)
        half = (home.high - home.low) / 2, (there.high - there.low) / 2
        found[mark_of(share_kept(Relative(home.mean, half[0]), Relative(there.mean, half[1])))] += 1 / runs
    return found


def four_sd(share: float, runs: int = 4_000) -> float:
    return 4.0 * math.sqrt(share * (1.0 - share) / runs)


@pytest.mark.parametrize("spread", [0.5, 1.0])
def test_each_mark_is_given_wrongly_once_in_forty_at_most(spread: float) -> None:
    assert marks(0.5, spread)["transfers"] <= 0.025 + four_sd(0.025)  # half is kept, and no more
    assert marks(0.0, spread)["reverses"] <= 0.025 + four_sd(0.025)  # nothing is kept, and no harm is done
    assert marks(1.0, spread)["fades"] + marks(1.0, spread)["reverses"] <= 0.025 + four_sd(0.025)


def test_two_pairs_tell_a_clear_gain_that_holds_from_one_that_is_gone() -> None:
    assert marks(1.0, 1.0)["transfers"] > 0.8
    assert marks(0.0, 1.0)["fades"] > 0.9


# --- when a check is owed --------------------------------------------------------------------------------


def ready(**settings: object) -> Desk:
    desk = Desk(settings, scale=Scale("depth", 2))
    desk.calibrate("ant", "bee")
    return desk


def run_checks(desk: Desk, scores: Mapping[str, float | Outcome]) -> list[TransferChecked]:
    while blocks := desk.outstanding("transfer"):
        assert len(blocks) == 1, "one at a time"
        desk.run(blocks[0], scores)
    return [fact for fact in desk.of(TransferChecked) if isinstance(fact, TransferChecked)]


def test_a_promotion_is_checked_after_it_with_twice_the_time() -> None:
    desk = ready()
    desk.claim("ant", GOOD)
    desk.confirm(AT_HOME)
    assert desk.state.champion == candidate_id(A1)
    (block,) = desk.outstanding("transfer")
    assert block.reference == candidate_id(BASELINE) and set(block.candidates) == {block.reference, candidate_id(A1)}
    orders = desk.orders(block.node.removeprefix("uid-"))
    assert orders.brief is not None
    (lease,) = orders.blocks
    assert {trial.limits.cpu_s for trial in lease.trials} == {2 * orders.brief.cpu_limit_s}
    assert {trial.limits.wall_s for trial in lease.trials} == {2 * desk.config.nodes.trial_wall_s}
    (check,) = run_checks(desk, AT_HOME)
    assert check.mark == "transfers" and not check.bars
    assert check.share is not None and check.low is not None and 0.5 < check.low < check.share
    assert desk.replayed().state == desk.state


def test_confirmations_come_first() -> None:
    desk = ready()
    desk.claim("ant", GOOD)
    desk.confirm(AT_HOME)
    desk.run(desk.outstanding("transfer")[0], AT_HOME)
    desk.claim("ant", proposal(edited(A1, B=1), A1), A1)
    assert len(desk.outstanding("confirm")) >= 1


def test_where_it_is_required_nothing_lands_before_its_check() -> None:
    desk = ready(decision={"calibration_pairs": 2, "transfer_required": True})
    desk.claim("ant", GOOD)
    desk.confirm(AT_HOME)
    assert not desk.of(Promotion) and desk.outstanding("transfer")
    (check,) = run_checks(desk, {})  # nothing is left of it
    assert check.bars and not desk.of(Promotion)
    assert desk.state.experiments[GOOD.idea].status == "rejected"
    assert desk.state.answers["uid-ant"][GOOD.idea].startswith("rejected: fades at depth=2")
    desk.claim("bee", FINE)
    desk.confirm(AT_HOME)
    run_checks(desk, AT_HOME)
    assert desk.state.champion == candidate_id(B1)
    assert desk.replayed().state == desk.state


def test_a_failure_there_ends_the_check() -> None:
    desk = ready()
    desk.claim("ant", GOOD)
    desk.confirm(AT_HOME)
    (check,) = run_checks(desk, {candidate_id(A1): CRASH})
    assert check.mark == "unknown" and check.share is None and "it failed there: crash" in check.reason


def test_a_check_whose_blocks_are_lost_again_and_again_is_given_up() -> None:
    desk = ready()
    desk.claim("ant", GOOD)
    desk.confirm(AT_HOME)
    for _ in range(2 + IN_VAIN):
        (block,) = desk.outstanding("transfer")
        desk.commit([BlockLost(block.block, "the node is gone", desk.now)])
        desk.think()
    (check,) = run_checks(desk, {})
    assert check.mark == "unknown" and "8 blocks for it gave 0 pairs" in check.reason


def test_scores_of_nothing_have_no_shares() -> None:
    desk = ready()
    desk.claim("ant", GOOD)
    desk.confirm(AT_HOME)
    nothing: dict[str, float | Outcome] = dict.fromkeys((candidate_id(A1), candidate_id(BASELINE)), measured(0.0))
    (check,) = run_checks(desk, nothing)
    assert check.mark == "unknown" and "the score is 0" in check.reason


def test_a_simplification_is_checked_too() -> None:
    desk = ready()
    desk.claim("ant", proposal(LESS), kind="simplification")
    desk.confirm({})
    (check,) = run_checks(desk, {candidate_id(LESS): 2.5})
    assert check.mark == "reverses" and check.share is None


@pytest.mark.parametrize("settings", [{"decision": {"calibration_pairs": 2, "transfer_seeds": 0}}])
def test_a_study_may_do_without(settings: Mapping[str, object]) -> None:
    desk = ready(**settings)
    desk.claim("ant", GOOD)
    desk.confirm(AT_HOME)
    assert desk.of(Promotion)
    assert not [block for block in desk.of(BlockDrawn) if isinstance(block, BlockDrawn) and block.purpose == "transfer"]
