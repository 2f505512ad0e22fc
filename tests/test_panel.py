"""The reference panel: closed forms, what no data may break, when it is trusted, and whole campaigns on it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import luck
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.campaigns import World
from coordinator.mixed import Nodes, Panel, Run, Spread, by_script, panel_of
from coordinator.panel import (
    RUNS_BEFORE_TRUST,
    STAKES,
    SURPRISES_BEFORE_TRUST,
    Past,
    decide_on,
    rule_on_panel,
    screen_gain,
    surprise_sd,
    surprises,
    trusted,
)
from coordinator.panel_campaigns import PanelTally, believe_on_panel
from coordinator.reproduction import LARGEST_GAIN, Decision, Noise, Undecided, decide, rule_for

PAIRED, ON_PANEL = rule_for("standard"), rule_on_panel("standard")
PATIENT = replace(PAIRED, reject_below=1e-300, max_pairs=99)  # weighs all that there is
UNIT = Noise(sum_squares=80.0, df=40, floor=1e-6)  # s of a Pair for which a single run has sd 1
ALONE = Spread(noise=1.0, node=0.0, seed=0.0, df=40)

gains = st.floats(-6.0, 6.0, allow_subnormal=False)
few = settings(max_examples=40, deadline=None)
some_gains = st.lists(gains, min_size=1, max_size=12)


def champions(scores: Sequence[float], nodes: Sequence[str] = ("a",), first_seed: int = 0) -> list[Run]:
    return [Run("champion", nodes[i % len(nodes)], first_seed + i, score) for i, score in enumerate(scores)]


def candidates(scores: Sequence[float], nodes: Sequence[str] = ("a",), first_seed: int = 1_000) -> list[Run]:
    return [Run("candidate", nodes[i % len(nodes)], first_seed + i, score) for i, score in enumerate(scores)]


def study(rng: np.random.Generator, spread: Spread, changes: int = 12, drift: float = 0.0) -> list[Run]:
    """Ten runs of each champion in Blocks of two; every Node wanders by `drift` between Blocks."""
    levels, runs = spread.node * rng.normal(size=8), list[Run]()
    for block in range(5 * changes):
        levels += drift * rng.normal(size=8)
        for _ in range(2):
            found = levels[block % 8] + math.sqrt(spread.run_variance) * rng.normal()
            runs.append(Run(f"champion {block // 5}", str(block % 8), len(runs), block // 5 + found, str(block)))
    return runs


def told(runs: Sequence[Run], noise: Noise = UNIT) -> tuple[Past, list[Run]]:
    """What earlier champions taught, and the runs of the last one."""
    past, (*earlier, own) = Past(), by_script(runs)
    for one in earlier:
        past = past.after(one, noise)
    return past, own


def missed(runs: Sequence[Run], spread: Spread) -> list[float]:
    past, own = told(runs)
    return past.surprises(own, spread)


def measured(runs: Sequence[Run]) -> Spread:
    past, own = told(runs)
    return past.spread(own, UNIT)


# --- closed forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 10])
def test_without_nodes_the_champions_level_is_all_that_gains_share(k: int) -> None:
    scores = [5.0 + 0.1 * i for i in range(k)]
    mean, covariance = panel_of("champion", champions(scores), ALONE).expected(candidates([0.0] * 3))
    assert mean == pytest.approx([sum(scores) / k] * 3)
    assert covariance == pytest.approx(np.eye(3) + np.ones((3, 3)) / k)


def test_shared_seeds_cancel_their_part() -> None:
    rho, scores = 0.36, [5.0, 6.0, 7.0, 8.0]
    panel = panel_of("champion", champions(scores), Spread(noise=0.8, node=0.0, seed=0.6, df=40))
    mean, covariance = panel.expected(candidates([0.0] * 3, first_seed=0))
    assert mean == pytest.approx([rho * score + (1.0 - rho) * 6.5 for score in scores[:3]])
    assert covariance == pytest.approx((1.0 - rho**2) * np.eye(3) + (1.0 - rho) ** 2 / 4 * np.ones((3, 3)))


def agree(ours: Decision, theirs: Decision, rel: float = 1e-5) -> None:
    assert type(ours) is type(theirs)
    assert ours.pairs == theirs.pairs
    assert ours.effect == pytest.approx(theirs.effect, rel=rel, abs=1e-6)
    assert ours.interval == pytest.approx(theirs.interval, rel=rel, abs=1e-6)
    assert ours.likelihood_ratio == pytest.approx(theirs.likelihood_ratio, rel=rel)
    assert (ours.sd, ours.bar) == pytest.approx((theirs.sd, theirs.bar))


@given(some_gains)
@few
def test_pairs_alone_are_judged_as_pairs(found: list[float]) -> None:
    nodes = [f"node {i}" for i in range(len(found))]
    unlike = Spread(noise=1.0, node=3e3, seed=0.0, df=40)  # what another Node says is worth nothing
    panel = panel_of("champion", champions([5.0] * len(found), nodes), unlike)
    runs = candidates([5.0 + gain for gain in found], nodes)
    agree(decide_on(panel, runs, 148.0, PAIRED), decide(found, UNIT, STAKES * 148.0, PAIRED))


@given(some_gains)
@few
def test_known_level_leaves_the_noise_of_the_candidate(found: list[float]) -> None:
    single = replace(PATIENT, d1=ON_PANEL.d1)
    ours = decide_on(ENDLESS, candidates([5.0 + gain for gain in found]), 1e9, single)
    theirs = decide(found, replace(UNIT, sum_squares=40.0), 1e9, PATIENT)  # as if a Pair scattered as one run does
    assert ours.effect == pytest.approx(theirs.effect, abs=1e-6)
    assert math.log(ours.likelihood_ratio) == pytest.approx(math.log(theirs.likelihood_ratio), abs=0.1)
    assert ours.interval == pytest.approx(theirs.interval, abs=0.05)


ENDLESS = panel_of("champion", champions([5.0] * 1_500), ALONE)


# --- what changes nothing ---------------------------------------------------------------------------------------------

SPREAD = Spread(noise=0.9, node=2.0, seed=0.4, df=30)
runs_anywhere = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 5), gains), min_size=1, max_size=9)
Cells = list[tuple[str, int, float]]


def weighed(earlier: Cells, own: Cells, candidate: Cells, spread: Spread = SPREAD, shift: float = 0.0) -> Decision:
    told = [Run("first", node, 100 + seed, score + shift) for node, seed, score in earlier]
    told += [Run("champion", node, seed, score + shift) for node, seed, score in own]
    runs = [Run("candidate", node, seed, score + shift) for node, seed, score in candidate]
    return decide_on(panel_of("champion", told, spread), runs, 1e99, PATIENT)


def same(one: Decision, other: Decision, tolerance: float = 1e-6) -> None:
    assert math.log(one.likelihood_ratio) == pytest.approx(math.log(other.likelihood_ratio), abs=tolerance)
    assert one.interval == pytest.approx(other.interval, abs=tolerance)


@few
@given(runs_anywhere, runs_anywhere, runs_anywhere, st.randoms(use_true_random=False))
def test_order_of_runs_changes_no_evidence(earlier: Cells, own: Cells, candidate: Cells, random: Random) -> None:
    def shuffled(cells: Cells) -> Cells:
        return random.sample(cells, len(cells))

    same(weighed(earlier, own, candidate), weighed(shuffled(earlier), shuffled(own), shuffled(candidate)))


@few
@given(runs_anywhere, runs_anywhere, runs_anywhere, st.floats(-1e3, 1e3))
def test_a_constant_added_to_everything_changes_nothing(
    earlier: Cells, own: Cells, candidate: Cells, shift: float
) -> None:
    same(weighed(earlier, own, candidate), weighed(earlier, own, candidate, shift=shift))


@few
@given(runs_anywhere, runs_anywhere, runs_anywhere, st.floats(-20.0, 20.0))
def test_what_a_node_adds_to_all_its_runs_cancels(earlier: Cells, own: Cells, candidate: Cells, shift: float) -> None:
    unlike = SPREAD._replace(node=1e3)
    met = [(node, seed, score) for node, seed, score in candidate if node in {cell[0] for cell in own}] or [own[0]]

    def moved(cells: Cells) -> Cells:
        return [(node, seed, score + shift * (node == "a")) for node, seed, score in cells]

    same(weighed(earlier, own, met, unlike), weighed(moved(earlier), moved(own), moved(met), unlike), 0.1)


# --- robustness, refusals ---------------------------------------------------------------------------------------------


def test_one_wild_run_of_the_champion_moves_its_level_little() -> None:
    usual = [4.0, 4.5, 5.0, 5.5, 6.0, 4.2, 5.8, 4.8, 5.2]
    level = panel_of("champion", champions([*usual, 5.0]), ALONE).level
    assert panel_of("champion", champions([*usual, -50.0]), ALONE).level == pytest.approx(level, abs=0.35)


def test_breakthrough_is_accepted_and_told_with_its_size() -> None:
    panel = panel_of("champion", champions([5.0, 6.0, 4.0] * 4), ALONE)
    decision = decide_on(panel, candidates([11.0, 12.0, 10.5, 11.5]), 148.0, ON_PANEL)
    assert decision.reason.startswith("accepted: better than the panel on 4 of 4 fresh runs, gain 6.25")


def test_nothing_is_judged_on_what_is_no_score_or_no_panel() -> None:
    panel = panel_of("champion", champions([5.0]), ALONE)
    with pytest.raises(ValueError, match="no usable score"):
        decide_on(panel, candidates([math.nan]), 148.0, ON_PANEL)
    with pytest.raises(ValueError, match="no usable score"):
        panel_of("champion", champions([2 * LARGEST_GAIN]), ALONE)
    with pytest.raises(ValueError, match="lie above 1"):
        decide_on(panel, [], 1.0, ON_PANEL)
    with pytest.raises(ValueError, match="needs a run of the champion"):
        panel_of("another", champions([5.0]), ALONE)


def test_without_a_run_nothing_is_decided() -> None:
    undecided = decide_on(panel_of("champion", champions([5.0]), ALONE), [], 148.0, ON_PANEL)
    assert isinstance(undecided, Undecided) and undecided.more == ON_PANEL.min_pairs


def test_screening_subtracts_what_is_known_of_the_node() -> None:
    earlier = [Run("first", "ab"[i % 2], i, 10.0 * (i % 2)) for i in range(40)]
    panel = panel_of("champion", [*earlier, *champions([50.0] * 10)], Spread(1.0, 5.0, 0.0, 40))
    assert screen_gain(panel, Run("candidate", "b", 999, 61.0)) == pytest.approx(1.0, abs=0.1)


# --- what scatters scores ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node", [0.0, 1.0, 2.0, 8.0])
def test_spread_of_nodes_is_found_within_its_grid(node: float) -> None:
    rng = np.random.default_rng(luck.seed(3))
    found = np.mean([measured(study(rng, ALONE._replace(node=node))).node for _ in range(12)])
    assert found == pytest.approx(node, rel=0.5, abs=0.2)


def test_seeds_are_found_to_matter_only_where_they_do() -> None:
    rng = np.random.default_rng(luck.seed(4))
    shared = Spread(noise=1.0, node=2.0, seed=1.2, df=40)  # pairs correlate by 0.59
    found = [measured(study(rng, shared)).seed for _ in range(20)]
    assert np.mean(found) == pytest.approx(1.2, abs=0.2)
    found = [measured(study(rng, shared._replace(seed=0.0))).seed for _ in range(40)]
    assert sum(sd > 0.0 for sd in found) <= 6  # 2.3 % are expected: more than 6 of 40 come once in 10 000


# --- the switch -------------------------------------------------------------------------------------------------------


def test_surprises_are_those_of_runs_foretold_one_by_one() -> None:
    runs, singly, nodes = study(np.random.default_rng(5), SPREAD, changes=3), list[float](), Nodes.unknown()
    for own in by_script(runs):
        for n in range(2, len(own), 2):  # a Block has two runs, and the second one of it does not count
            singly += surprises(Panel.of_champion(nodes, own[:n], SPREAD), [own[n]])
        nodes = nodes.after(own, Spread.known(UNIT, (0.0, 0)))
    assert missed(runs, SPREAD) == pytest.approx(singly, abs=1e-3)  # wild runs are clipped by another s there


def test_surprises_are_unit_normals_unless_nodes_drift() -> None:
    rng = np.random.default_rng(luck.seed(6))
    spread = Spread(noise=1.0, node=2.0, seed=0.0, df=40)

    def sd_of(drift: float) -> list[float]:
        studies = (study(rng, spread, drift=drift) for _ in range(20))
        return [surprise_sd(missed(runs, spread)) for runs in studies]

    assert np.mean(sd_of(0.0)) == pytest.approx(1.0, abs=0.07)  # 20 of 48 surprises: a standard error of 0.023
    assert min(sd_of(0.3)) > 1.1


def test_trust_takes_runs_and_calm_and_ends_in_alarm() -> None:
    def of_sd(sd: float, count: int = SURPRISES_BEFORE_TRUST) -> list[float]:
        return [sd * sign for sign in (1.0, -1.0) * (count // 2)]

    assert trusted(of_sd(1.0), RUNS_BEFORE_TRUST, already=False)
    assert not trusted(of_sd(1.0), RUNS_BEFORE_TRUST - 1, already=False)
    assert not trusted(of_sd(1.0, SURPRISES_BEFORE_TRUST - 2), RUNS_BEFORE_TRUST, already=False)
    assert not trusted(of_sd(1.2), RUNS_BEFORE_TRUST, already=False)
    assert trusted(of_sd(1.2), RUNS_BEFORE_TRUST, already=True)
    assert not trusted(of_sd(1.4), RUNS_BEFORE_TRUST, already=True)
    assert not trusted(of_sd(0.6), RUNS_BEFORE_TRUST, already=True)  # runs that repeat themselves teach nothing


# --- whole campaigns --------------------------------------------------------------------------------------------------

CAMPAIGNS = 16


def replay(world: World) -> PanelTally:
    return believe_on_panel(world, PAIRED, ON_PANEL, campaigns=CAMPAIGNS, seed=luck.seed(43))


def above(share: float, trials: int) -> float:
    """Three binomial standard deviations above what is allowed."""
    return share + 3.0 * math.sqrt(share * (1.0 - share) / max(1, trials))


def test_campaign_goes_over_to_the_panel_and_keeps_more() -> None:
    tally = replay(World("base", node_sd=2.0))
    assert tally.panel_share > 0.5
    assert tally.false_share <= above(0.05, tally.promoted)
    errors = 3.0 / math.sqrt(CAMPAIGNS)  # three standard errors, in sd of what one campaign shows
    assert tally.runs_per_proposal <= 2.3 + 0.15 * errors
    assert tally.power(2.0) >= 0.78 - 0.12 * errors
    assert tally.kept_share >= 0.58 - 0.10 * errors


def test_campaign_on_drifting_nodes_stays_with_pairs() -> None:
    tally = replay(World("drift", node_sd=2.0, node_drift=0.3))
    assert tally.panel_share < 0.15  # 0.03 over 60 campaigns: most never, some for a few dozen proposals
    assert tally.false_share <= above(0.05, tally.promoted)
