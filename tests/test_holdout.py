"""The holdout gate: what fits only the searched split does not land, and only coarse answers leave the nodes."""

from dataclasses import replace

import pytest
from desk import BASELINE, CRASH, Desk, edited, measured, proposal
from hypothesis import given
from hypothesis import strategies as st

from coordinator.holdout import REPLACED, ladder_step, rounded
from swarm.codec import fact_to_json
from swarm.records import Carried, Failure, Files, HoldoutAnswered, Promotion, Verdict, candidate_id

A1, B1 = edited(BASELINE, A=1), edited(BASELINE, B=1)
BOTH = edited(A1, B=1)
GOOD, FINE = proposal(A1), proposal(B1)
BETTER = {candidate_id(A1): 1.5, candidate_id(B1): 1.5, candidate_id(BOTH): 1.0}
LOST = Failure("machinery", "lost", "killed from outside")
NAMES = ("ant", "bee", "cat")


def ready(**settings: object) -> Desk:
    desk = Desk(settings)
    desk.calibrate(*NAMES)
    return desk


def claimed(**settings: object) -> Desk:
    """A good idea is under confirmation."""
    desk = ready(**settings)
    desk.claim("ant", GOOD)
    return desk


def undecided(*more: str) -> Desk:
    """It was accepted, and no node has answered yet what it is asked about the holdout."""
    desk = Desk()
    desk.calibrate(*NAMES, *more)
    desk.silent = {f"uid-{name}" for name in (*NAMES, *more)}
    desk.claim("ant", GOOD)
    desk.confirm(BETTER)
    return desk


def speak(desk: Desk, *names: str) -> None:
    """These nodes answer now; all of them unless said."""
    desk.silent -= {f"uid-{name}" for name in names or NAMES}
    for _ in range(2):  # asked, and answered
        desk.report(*(desk.heard(f"uid-{name}") for name in names or NAMES))


def answers(desk: Desk) -> list[HoldoutAnswered]:
    return [fact for fact in desk.of(HoldoutAnswered) if isinstance(fact, HoldoutAnswered)]


def accepted(desk: Desk) -> list[Verdict]:
    return [fact for fact in desk.of(Verdict) if isinstance(fact, Verdict) and fact.accepted]


def files_of(desk: Desk) -> Files:
    return desk.state.files[desk.state.champion]


def told(desk: Desk, name: str = "ant") -> str:
    """What a node was last told of its claim."""
    return desk.state.answers.get(f"uid-{name}", {}).get(GOOD.idea, "")


# --- pass and fail ---------------------------------------------------------------------------------------


def test_a_gain_that_holds_there_lands() -> None:
    desk = claimed()
    desk.confirm(BETTER)
    (answer,) = answers(desk)
    assert answer.passed and answer.number == 1 and answer.pairs == accepted(desk)[0].pairs
    assert answer.gain == pytest.approx(0.5, abs=answer.step)
    assert files_of(desk) == A1


def test_a_gain_on_the_searched_split_alone_is_refused_and_told() -> None:
    desk = claimed()
    desk.holdout = {candidate_id(A1): 2.0}
    desk.confirm(BETTER)
    (answer,) = answers(desk)
    assert len(accepted(desk)) == 1, "it reproduces there as well as any"
    assert not answer.passed and answer.gain is None
    assert files_of(desk) == BASELINE and not desk.of(Promotion)
    assert told(desk).startswith("rejected: did not keep two thirds of its gain")
    assert desk.state.experiments[GOOD.idea].status == "rejected"
    assert desk.state.campaign.promotions == 0 and desk.state.campaign.confirmations == 1


def test_half_of_the_gain_is_too_little_and_three_quarters_are_enough() -> None:
    for share, lands in ((0.5, False), (0.75, True)):
        desk = claimed()
        desk.holdout = {candidate_id(A1): 2.0 - share * 0.5}
        desk.confirm(BETTER)
        assert [answer.passed for answer in answers(desk)] == [lands]


def test_its_node_hears_nothing_before_the_holdout_has_answered() -> None:
    desk = undecided()
    assert accepted(desk) and not answers(desk) and not told(desk)
    assert files_of(desk) == BASELINE
    speak(desk)
    assert told(desk) == "accepted" and files_of(desk) == A1


def test_a_candidate_that_fails_there_is_refused_in_one_word_of_ours() -> None:
    desk = claimed()
    desk.holdout = {candidate_id(A1): replace(CRASH, message="def secret_of_the_holdout(): ...")}
    desk.confirm(BETTER)
    (answer,) = answers(desk)
    assert answer.reason == "failed on the holdout split: crash"
    assert "secret" not in "".join(fact_to_json(fact) for fact, _ in desk.facts)


def test_a_score_that_is_the_scripts_own_word_is_not_asked_about() -> None:
    desk = claimed()
    desk.printed = True
    own = {c: replace(measured(score), self_reported=True, audited=False) for c, score in BETTER.items()}
    champion = replace(measured(2.0), self_reported=True, audited=False)
    while blocks := desk.outstanding("confirm"):
        desk.run(blocks[0], {candidate_id(BASELINE): champion, **own})
    assert files_of(desk) == A1 and not answers(desk)


# --- once, for the tree that lands -----------------------------------------------------------------------


def test_every_tree_that_lands_is_asked_about_once_and_no_other() -> None:
    desk = ready()
    desk.claim("ant", GOOD)
    desk.claim("bee", FINE)
    desk.confirm(BETTER)
    assert files_of(desk) == BOTH
    assert [(answer.number, answer.candidate) for answer in answers(desk)] == [
        (1, candidate_id(A1)),
        (2, candidate_id(BOTH)),
    ], "the carried tree, never the one that lost the race"


def test_a_tree_that_two_ideas_came_to_is_asked_about_once() -> None:
    desk = ready()
    whole = proposal(BOTH, A1)
    desk.claim("ant", GOOD)
    desk.claim("bee", FINE)
    desk.confirm({candidate_id(A1): 1.5, candidate_id(B1): 2.0})
    desk.admit("cat", whole)
    desk.commit([Carried(FINE.idea, candidate_id(BOTH), candidate_id(A1), BOTH, desk.now)])
    desk.report(desk.heard("uid-cat", facts=(desk.claims("cat", whole, A1),)))
    desk.holdout = {candidate_id(A1): 1.5, candidate_id(BOTH): 1.5}
    desk.confirm({candidate_id(A1): 1.5, candidate_id(BOTH): 1.0})
    assert [answer.experiment for answer in answers(desk)[1:]] == [FINE.idea, whole.idea]
    assert [(answer.number, answer.passed) for answer in answers(desk)] == [(1, True), (2, False), (2, False)]
    assert files_of(desk) == A1


def test_a_rejected_claim_costs_no_query_and_its_artifacts_are_released() -> None:
    desk = claimed()
    desk.confirm({}, default=2.0)
    desk.report(*(desk.heard(f"uid-{name}") for name in NAMES))
    assert not answers(desk)
    assert not any(desk.vault.values())


def test_artifacts_are_released_once_the_tree_has_landed() -> None:
    desk = claimed()
    desk.confirm(BETTER)
    desk.report(*(desk.heard(f"uid-{name}") for name in NAMES))
    assert not any(desk.vault.values())


# --- what is told ----------------------------------------------------------------------------------------


def test_scores_of_the_holdout_stand_in_no_fact_and_no_brief() -> None:
    desk = claimed()
    desk.holdout = {candidate_id(A1): 1.4567891, candidate_id(BASELINE): 2.1234567}
    desk.confirm(BETTER)
    known = "".join(fact_to_json(fact) for fact, _ in desk.facts) + repr([desk.orders(name) for name in NAMES])
    assert answers(desk)[0].passed
    assert "1.456" not in known and "2.123" not in known


@given(st.floats(1e-9, 1e9))
def test_the_step_reaches_the_noise_and_is_at_most_five_times_as_large(sd: float) -> None:
    assert sd <= ladder_step(sd) <= 2.5 * sd * (1 + 1e-9)


@given(st.floats(-1e3, 1e3), st.sampled_from([0.0005, 0.002, 0.01, 0.5, 1.0]))
def test_a_told_gain_is_a_whole_number_of_steps_near_the_truth(gain: float, step: float) -> None:
    said = rounded(gain, step)
    assert abs(said - gain) <= step / 2 + 1e-5 * abs(gain) + 1e-12
    assert said / step == pytest.approx(round(said / step), abs=1e-3 + 1e-5 * abs(gain / step))


# --- artifacts that are gone -----------------------------------------------------------------------------


def lose(desk: Desk, name: str) -> None:
    """A node dies and does not come back."""
    desk.vault.pop(f"uid-{name}", None)
    desk.mind.gone(f"uid-{name}")


def pairs_of(desk: Desk) -> list[str]:
    """The nodes of the pairs of the good idea."""
    return [pair.node for pair in desk.state.claims[(GOOD.idea, candidate_id(BASELINE))].pairs]


def test_pairs_of_a_node_that_died_are_replaced_by_fresh_ones() -> None:
    desk = undecided()
    verdict, before = accepted(desk)[0], pairs_of(desk)
    left = before.count("uid-ant")
    assert left < 3, "fewer than an acceptance needs"
    lose(desk, "bee")
    lose(desk, "cat")
    speak(desk, "ant")
    desk.confirm(BETTER)
    speak(desk, "ant")
    (answer,) = answers(desk)
    assert answer.passed and answer.pairs == 3 and files_of(desk) == A1
    assert pairs_of(desk) == before + ["uid-ant"] * (3 - left)
    assert len(verdict.evidence) == 2 * len(before), "it rests on what it rested on"


def test_a_node_that_died_and_is_back_with_its_disk_answers() -> None:
    desk = undecided()
    before = len(pairs_of(desk))
    desk.mind.gone("uid-bee")
    speak(desk, "bee", "ant", "cat")
    assert [answer.pairs for answer in answers(desk)] == [before]


def test_what_can_never_be_scored_does_not_land_and_is_not_tried_for_ever() -> None:
    desk = claimed()
    desk.holdout = {candidate_id(A1): LOST}
    desk.confirm(BETTER)
    (answer,) = answers(desk)
    assert not answer.passed and "none of its pairs could be scored" in answer.reason and "lost" in answer.reason
    assert len(pairs_of(desk)) == accepted(desk)[0].pairs + REPLACED
    assert files_of(desk) == BASELINE


@pytest.mark.parametrize(
    "wrong",
    [{"audited": False}, {"artifact": "another"}, {"score": -1e200}],
    ids=["not audited", "another artifact", "no number"],
)
def test_an_answer_that_cannot_be_believed_counts_as_none(wrong: dict[str, object]) -> None:
    desk = claimed()
    desk.holdout = {candidate_id(A1): replace(measured(1.0), **wrong)}  # type: ignore[arg-type]  # names are checked
    desk.confirm(BETTER)
    (answer,) = answers(desk)
    assert not answer.passed and answer.pairs == 0


def test_a_node_may_only_speak_of_pairs_that_it_ran() -> None:
    desk = undecided("dog")
    assert "uid-ant" not in pairs_of(desk), "three others are there"
    lies = dict.fromkeys(desk.state.block_of, measured(0.1))
    desk.report(desk.heard("uid-ant", kept=tuple(lies), holdout=lies))
    assert not answers(desk)
    desk.holdout = {candidate_id(A1): 2.0}
    for trials in desk.vault.values():
        trials.update(dict.fromkeys(trials, measured(2.0)))
    speak(desk, "ant", "bee", "cat", "dog")
    assert [answer.passed for answer in answers(desk)] == [False]


def test_a_node_that_never_answers_holds_up_the_others_only_for_a_while() -> None:
    desk = Desk()
    desk.calibrate(*NAMES, "dog")
    desk.silent = {"uid-bee"}
    desk.claim("ant", GOOD)
    desk.confirm(BETTER)
    ran, began = pairs_of(desk), desk.now
    assert accepted(desk) and "uid-bee" in ran
    while not answers(desk):
        desk.now += 30
        desk.report(*(desk.heard(f"uid-{name}") for name in (*NAMES, "dog")))
        desk.confirm(BETTER)
    (answer,) = answers(desk)
    block_s = 6 * 8  # five trials of 8 s and one of its own
    assert block_s < desk.now - began < 600, "it may be in the middle of a block; never longer than ten minutes"
    assert answer.passed and answer.pairs == len(pairs_of(desk)) - ran.count("uid-bee") >= 3


def test_scoring_there_counts_as_node_time() -> None:
    desk = undecided()
    before = desk.state.trial_s
    speak(desk)
    (answer,) = answers(desk)
    assert desk.state.trial_s == before + 2 * answer.pairs * measured(1.0).scoring_s


def test_another_coordinator_in_the_middle_gets_the_same_answer() -> None:
    desk = undecided()
    speak(desk, "bee")
    assert not answers(desk), "one of two has spoken"
    mind = desk.replayed()
    assert mind.state == desk.state
    desk.mind = mind
    speak(desk)
    speak(desk)
    (answer,) = answers(desk)
    assert answer.passed and answer.number == 1 and files_of(desk) == A1
    assert desk.replayed().state == desk.state
