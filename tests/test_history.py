"""The reading of facts: numbers, fates, the line of champions, and how busy the nodes were."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from factories import CRASH, Scribe, finished_study, long_study, small_study
from hypothesis import given
from hypothesis import strategies as st

from coordinator.leaderboard import leaderboard_md, results_tsv
from coordinator.report import report_md
from swarm.busy import busy_share
from swarm.history import History, history
from swarm.records import (
    Carried,
    CoordinatorStarted,
    Fact,
    HoldoutAnswered,
    NodeLost,
    Screened,
    TrialFinished,
)


def statuses(told: History) -> list[str]:
    return [experiment.status for experiment in told.experiments]


def opened_study() -> Scribe:
    scribe = Scribe()
    scribe.open()
    return scribe


# --- experiments -----------------------------------------------------------------------------------------


def test_experiments_are_numbered_by_admission_and_their_fate_is_computed() -> None:
    told = history(small_study().facts)
    assert [e.number for e in told.experiments] == [1, 2, 3, 4, 5, 6, 7]
    assert statuses(told) == ["dropped", "promoted", "failed", "dropped", "rejected", "kept", "claimed"]


def test_a_node_tries_one_idea_at_a_time_and_none_once_the_study_ended() -> None:
    scribe = opened_study()
    for number in range(3):
        scribe.admit(f"idea {number}", f"X{number} = 1")
    scribe.admit("elsewhere", "Y = 1", node="uid-bee")
    assert statuses(history(scribe.facts)) == ["running", "waiting", "waiting", "running"]
    scribe.finish()
    assert statuses(history(scribe.facts)) == ["waiting"] * 4


def test_nothing_runs_on_a_lost_node_until_it_is_heard_of_again() -> None:
    scribe = opened_study()
    first = scribe.admit("an idea", "X = 1")
    scribe.admit("the next", "Y = 1")
    scribe.facts.append(NodeLost("uid-ant", "silent for 90 s", scribe.now))
    assert statuses(history(scribe.facts)) == ["waiting", "waiting"]
    scribe.screen(first, -0.1)
    assert statuses(history(scribe.facts)) == ["dropped", "running"]


def test_an_accepted_idea_that_was_carried_over_is_claimed_again() -> None:
    scribe = opened_study()
    idea = scribe.admit("an idea", "X = 1")
    scribe.screen(idea, 0.02)
    scribe.claim(idea, 0.02)
    scribe.judge(idea, (), 0.02, 0.01, 0.03, accepted=True)
    assert statuses(history(scribe.facts)) == ["accepted"]
    scribe.facts.append(Carried(idea.proposal.idea, "c" * 32, "d" * 32, {"train.py": "1\n"}, scribe.now))
    told = history(scribe.facts)
    assert statuses(told) == ["claimed"]
    assert told.experiments[0].claim == scribe.facts[-1]
    scribe.promote(idea)
    assert statuses(history(scribe.facts)) == ["promoted"]


def test_an_accepted_idea_that_the_holdout_refused_is_rejected_for_its_reason() -> None:
    scribe = opened_study()
    idea = scribe.admit("an idea", "X = 1")
    scribe.screen(idea, 0.02)
    scribe.claim(idea, 0.02)
    scribe.judge(idea, (), 0.02, 0.01, 0.03, accepted=True)
    scribe.answer(idea, None)
    told = history(scribe.facts)
    assert statuses(told) == ["rejected"]
    assert told.experiments[0].why_rejected.startswith("did not keep two thirds")
    assert "did not keep two thirds" in leaderboard_md(told)


def test_an_idea_that_was_set_aside_untried_is_dropped_without_a_trial() -> None:
    scribe = opened_study()
    scribe.screen(scribe.admit("an idea", "X = 1"), -0.1)
    facts = [fact for fact in scribe.facts if not isinstance(fact, TrialFinished)]
    aside = [replace(f, gain=None, reason="the branch moved") if isinstance(f, Screened) else f for f in facts]
    (experiment,) = history(aside).experiments
    assert (experiment.status, experiment.trial, experiment.score) == ("dropped", None, None)


def test_a_crash_is_a_failure_before_and_after_the_researcher_says_so() -> None:
    scribe = opened_study()
    scribe.screen(scribe.admit("an idea", "X = 1"), CRASH)
    assert statuses(history(scribe.facts)) == ["failed"]
    assert statuses(history(scribe.facts[:-1])) == ["failed"]


def test_lines_are_counted_against_the_branch_tip_that_was_edited() -> None:
    scribe = opened_study()
    first = scribe.admit("two lines", "X = 1\nY = 2")
    scribe.admit("one more", "Z = 3", parent=first.candidate)
    assert [tuple(e.lines) for e in history(scribe.facts).experiments] == [(2, 0), (1, 0)]


def test_experiments_are_found_by_number_idea_and_candidate() -> None:
    told = history(small_study().facts)
    third = told.experiments[2]
    assert told.find("3") == (third,)
    assert told.find(third.idea[:10]) == (third,)
    assert told.find(third.candidate[:10].upper()) == (third,)
    assert told.find("") == told.find("999") == told.find("no such") == ()


# --- the line of champions -------------------------------------------------------------------------------


def test_a_promotion_knows_its_verdict_its_pairs_and_the_ideas_it_stacks() -> None:
    scribe = opened_study()
    below = scribe.admit("the first half", "X = 1")
    scribe.screen(below, 0.01)
    idea = scribe.admit("the second half", "Y = 1", parent=below.candidate)
    scribe.screen(idea, 0.03)
    scribe.claim(idea, 0.03)
    evidence = scribe.pairs(
        "confirm", idea.proposal.idea, idea.candidate, scribe.champion, [(2.2, 2.17), (2.21, CRASH)]
    )
    scribe.judge(idea, evidence, 0.0255, 0.01, 0.05, accepted=True)
    scribe.promote(idea)
    told = history(scribe.facts)
    (promotion,) = told.promotions
    verdict = told.verdict_on(promotion)
    assert verdict is not None and verdict.effect == 0.0255
    assert [experiment.hypothesis for experiment in told.stacked(promotion)] == ["the second half", "the first half"]
    good, bad = told.pairs(verdict)
    assert good.champion is not None and good.candidate is not None and bad.candidate is not None
    assert good.champion.seed == good.candidate.seed
    assert bad.candidate.outcome == CRASH
    assert told.champion == idea.candidate


def test_what_a_promotion_stacks_ends_at_the_champion_that_its_idea_was_made_on() -> None:
    scribe = opened_study()
    first = scribe.admit("X", "X = 1")
    scribe.screen(first, 0.02)
    late = scribe.admit("Y, made on the baseline", "Y = 1")
    scribe.screen(late, 0.02)
    again, baseline = scribe.admit("the baseline again", "Z = 1", parent=first.candidate), scribe.champion
    files = scribe.files[baseline]
    scribe.facts[-1] = replace(again, candidate=baseline, proposal=replace(again.proposal, files=files))
    for idea in (first, late):
        scribe.claim(idea, 0.02)
        scribe.promote(idea)
    told = history(scribe.facts)
    assert [[e.hypothesis for e in told.stacked(p)] for p in told.promotions] == [["X"], ["Y, made on the baseline"]]


def test_the_final_pairs_put_the_baseline_first_whatever_ran_first() -> None:
    told = history(finished_study().facts)
    pairs = told.final_pairs()
    assert len(pairs) == 3
    assert all(p.champion and p.candidate and p.champion.candidate == told.baseline for p in pairs)
    assert all(p.candidate and p.candidate.candidate == told.champion for p in pairs)


def test_gains_are_positive_for_better_in_both_directions() -> None:
    assert history(small_study().facts).gain(2.1, than=2.2) == pytest.approx(0.1)
    assert history(small_study(direction="maximize").facts).gain(2.3, than=2.2) == pytest.approx(0.1)


def test_the_baseline_is_its_mean_over_the_calibration() -> None:
    scribe = opened_study()
    assert history(scribe.facts).baseline_score() is None
    scribe.calibrate([2.1, 2.2, 2.3])
    assert history(scribe.facts).baseline_score() == pytest.approx(2.2)


# --- how busy the nodes were -----------------------------------------------------------------------------


def spans(*told: tuple[str, float, float]) -> list[Fact]:
    """Trials as (node, start, end)."""
    scribe = opened_study()
    scribe.trial("screen", "c", 1, 2.0)
    (trial,) = [fact for fact in scribe.facts if isinstance(fact, TrialFinished)]
    return [replace(trial, node=n, started_at=a, ended_at=b, trial=f"{n}{a}") for n, a, b in told]


def test_busy_is_the_share_of_time_inside_trials() -> None:
    assert busy_share([]) == 0.0
    assert busy_share(spans(("a", 0, 10))) == 1.0
    assert busy_share(spans(("a", 0, 10), ("a", 20, 30))) == pytest.approx(20 / 30)


def test_scoring_on_the_holdout_between_trials_is_no_idleness() -> None:
    asked = HoldoutAnswered(1, "e", "c", "b", True, 0.1, 0.1, 3, "kept", 25.0, node_s=6.0)
    assert busy_share([*spans(("a", 0, 10), ("a", 20, 30)), asked]) == pytest.approx(26 / 30)
    assert busy_share([asked]) == 0.0
    assert busy_share([*spans(("a", 0, 10)), asked]) == 1.0


def test_a_node_that_joins_late_is_not_blamed_but_one_that_leaves_early_is() -> None:
    assert busy_share(spans(("a", 0, 100), ("b", 80, 100))) == 1.0
    assert busy_share(spans(("a", 0, 100), ("b", 0, 50))) == pytest.approx(150 / 200)


def test_overlapping_trials_of_one_node_do_not_count_twice() -> None:
    assert busy_share(spans(("a", 0, 10), ("a", 5, 15), ("a", 20, 25))) == pytest.approx(20 / 25)


def test_a_pause_between_two_coordinators_does_not_count_but_work_done_in_it_does() -> None:
    before, after, meanwhile = spans(("a", 0, 10), ("a", 1000, 1010), ("a", 500, 520))
    resumed = CoordinatorStarted(2, 1000)
    assert busy_share([before, resumed, after]) == 1.0
    assert busy_share([before, after]) == pytest.approx(20 / 1010)
    assert busy_share([before, resumed, after, meanwhile]) == 1.0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1e6), st.floats(0, 1e4)), max_size=20))
def test_busy_is_always_a_share(told: list[tuple[str, float, float]]) -> None:
    assert 0.0 <= busy_share(spans(*((n, a, a + d) for n, a, d in told))) <= 1.0


# --- any ledger ------------------------------------------------------------------------------------------

WHOLE = (*finished_study().facts, *long_study(12, seed=2).facts[2:])


@given(st.sets(st.integers(0, len(WHOLE) - 1)))
def test_no_part_of_a_ledger_breaks_the_reading_or_the_pages(kept: set[int]) -> None:
    told = history(WHOLE[number] for number in sorted(kept))
    assert len(told.experiments) == len({e.idea for e in told.experiments})
    assert all(page for page in (leaderboard_md(told), results_tsv(told), report_md(told)))


def test_a_long_ledger_is_read_in_one_pass() -> None:
    passes = 0

    def once() -> Iterator[Fact]:
        nonlocal passes
        passes += 1
        yield from long_study(60).facts

    assert len(history(once()).experiments) == 60
    assert passes == 1
