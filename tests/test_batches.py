"""Several accepted ideas are planned into one batch: what is measured next, and what lands."""

from itertools import combinations

import luck
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.merging import batch
from coordinator.batches import MOST_SETS, SHRINK, Final, Idea, Measure, Set, plan

WORLDS = 1_000
FIRST_SEED = 1_000_000  # none of these worlds was looked at when the thresholds were chosen


def finished(ideas: list[Idea], worth: dict[Set, float]) -> tuple[Final, list[tuple[Set, ...]]]:
    """Follow the plan where measurements are exact; the sets of each step."""
    measured: dict[Set, float] = {}
    steps: list[tuple[Set, ...]] = []
    while not isinstance(step := plan(ideas, measured), Final):
        assert measured.keys().isdisjoint(step.sets), "nothing is measured twice"
        measured |= {some: worth[some] for some in step.sets}
        steps.append(step.sets)
    return step, steps


def additive(gains: dict[str, float], **pairs: float) -> dict[Set, float]:
    """Worth of every set; a pair is named by its two letters."""
    return {
        some: sum(gains[i] for i in some) + sum(v for pair, v in pairs.items() if set(pair) <= some)
        for size in range(len(gains) + 1)
        for some in map(frozenset, combinations(gains, size))
    }


GAINS = {"a": 3.0, "b": 2.0, "c": 1.0}
IDEAS = [Idea(name, gain) for name, gain in GAINS.items()]


def test_ideas_that_get_along_land_after_one_step_largest_first() -> None:
    final, steps = finished(IDEAS[::-1], additive(GAINS))
    assert final.order == ("a", "b", "c")
    assert steps == [(frozenset("abc"), frozenset("ab"), frozenset("ac"))], "all, and each but the largest left out"


def test_of_two_in_conflict_the_larger_lands() -> None:
    final, _ = finished(IDEAS, additive(GAINS, ab=-5.0))
    assert final.order == ("a", "c")


def test_one_idea_needs_no_measurement_and_none_lands_nothing() -> None:
    assert plan(IDEAS[:1], {}) == Final(("a",))
    assert plan([], {}) == Final(())


def test_with_many_ideas_the_harmful_one_hidden_by_the_others_is_left_out() -> None:
    gains = dict.fromkeys("abcdef", 2.0)
    final, _ = finished([Idea(name, 2.0) for name in gains], additive(gains, ef=-4.0, de=1.0))
    worth = additive(gains, ef=-4.0, de=1.0)
    assert worth[frozenset(final.order)] == max(worth.values())


@given(
    gains=st.lists(st.floats(0.5, 4), min_size=1, max_size=6),
    noise=st.lists(st.floats(-5, 5), min_size=64, max_size=64),
)
@settings(max_examples=200)
def test_every_plan_ends_and_can_be_taken_up_again(gains: list[float], noise: list[float]) -> None:
    named = {f"i{n}": gain for n, gain in enumerate(gains)}
    ideas = [Idea(name, gain) for name, gain in named.items()]
    worth = {some: value + noise[n] for n, (some, value) in enumerate(additive(named).items())}
    final, steps = finished(ideas, worth)
    assert set(final.order) <= set(named) and sum(map(len, steps)) <= MOST_SETS
    assert len(final.order) < 2 or any(frozenset(final.order) in step for step in steps), "what lands was measured"
    measured: dict[Set, float] = {}
    for step in steps:  # only what was measured decides, not how one got there
        assert plan(ideas[::-1], measured) == Measure(step)
        measured = {some: worth[some] for some in step} | measured


@given(gains=st.lists(st.floats(0.5, 4), min_size=2, max_size=6), sd=st.sampled_from([1e-9, 0.01, 0.1]))
@settings(max_examples=100)
def test_what_is_measured_exactly_is_believed(gains: list[float], sd: float) -> None:
    """Of what was measured, the best lands, whatever had been claimed."""
    named = {f"i{n}": gain for n, gain in enumerate(gains)}
    worth = additive(named)
    rivals = {some: value - 3 * sum(gains) * ({"i0", "i1"} <= some) for some, value in worth.items()}
    measured: dict[Set, float] = {}
    ideas = [Idea(name, gain / SHRINK) for name, gain in named.items()]
    while not isinstance(step := plan(ideas, measured, sd * min(gains)), Final):
        measured |= {some: rivals[some] for some in step.sets}
    assert not {"i0", "i1"} <= set(step.order)
    assert rivals[frozenset(step.order)] >= max(measured.values()) - 0.05 * max(gains)


@pytest.mark.parametrize(("count", "kept", "runs"), [(3, 0.97, 8), (6, 0.95, 34)])
def test_batches_keep_the_gain_at_few_runs(count: int, kept: float, runs: int) -> None:
    first = luck.seed(FIRST_SEED)
    done = [batch(count, first + n) for n in range(WORLDS)]
    harmful = sum(outcome.harmful for outcome in done) / WORLDS
    losses = [o.gain - kept * o.best for o in done]
    mean = sum(losses) / WORLDS
    error = (sum((loss - mean) ** 2 for loss in losses) / WORLDS / WORLDS) ** 0.5
    assert mean > -3 * error
    assert max(o.runs for o in done) <= runs
    assert harmful <= 0.12 + 3 * (0.12 * 0.88 / WORLDS) ** 0.5
