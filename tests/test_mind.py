"""The coordinator's mind on made-up facts: what it decides, what it believes, and that it never contradicts itself."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import pytest
from desk import (
    BASELINE,
    CRASH,
    OTHER_PLATFORM,
    PLATFORM,
    START,
    Desk,
    edited,
    info,
    measured,
    proposal,
    trial_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.leases import QUARANTINE_AFTER, QUARANTINE_S
from coordinator.mind import Promote
from coordinator.state import SET_ASIDE
from swarm.records import (
    BlockDrawn,
    BlockLost,
    Carried,
    ClaimRaised,
    ExperimentAdmitted,
    Fact,
    Failure,
    NodeJoined,
    NodeLost,
    PanelSwitched,
    Promotion,
    Proposal,
    ProposalRefused,
    Purpose,
    Report,
    Screened,
    Spent,
    StudyFinished,
    TrialDisturbed,
    TrialFinished,
    Trouble,
    Usage,
    Verdict,
    candidate_id,
)

A1, B1, C1 = edited(BASELINE, A=1), edited(BASELINE, B=1), edited(BASELINE, C=1)
GOOD, FINE, LATER = proposal(A1), proposal(B1), proposal(C1)
BETTER = {candidate_id(A1): 1.5, candidate_id(B1): 1.5, candidate_id(edited(A1, B=1)): 1.0}


def ready(*names: str, **settings: object) -> Desk:
    desk = Desk(settings)
    desk.calibrate(*names)
    return desk


def verdicts(desk: Desk) -> list[Verdict]:
    return [fact for fact, _ in desk.facts if isinstance(fact, Verdict)]


# --- membership ------------------------------------------------------------------------------------------


def test_a_node_that_goes_back_to_an_earlier_platform_joins_again() -> None:
    desk = Desk()
    for platform in (PLATFORM, OTHER_PLATFORM, PLATFORM):
        desk.now += 10
        desk.report(Report(node=info("ant", platform), brief=""))
    assert [fact.node.platform for fact in desk.of(NodeJoined) if isinstance(fact, NodeJoined)] == [
        PLATFORM, OTHER_PLATFORM, PLATFORM,
    ]  # fmt: skip
    assert desk.state.platform_of("uid-ant") == PLATFORM.id


def test_a_silent_node_is_lost_once_and_its_block_with_it() -> None:
    desk = Desk()
    desk.report(desk.heard("uid-ant"))
    block = desk.outstanding()[0]
    desk.now += desk.config.nodes.lost_after_s + 1
    assert desk.mind.decide(desk.now) == desk.mind.decide(desk.now), "deciding alone changes nothing"
    desk.think()
    assert len(desk.of(NodeLost)) == 1
    assert [lost.block for lost in desk.lost()] == [block.block]


def test_a_block_that_its_node_came_back_without_is_lost() -> None:
    desk = Desk()
    desk.report(desk.heard("uid-ant"))
    block = desk.outstanding()[0]
    desk.report(desk.heard("uid-ant", holding=(block.block,)))
    assert not desk.lost()
    desk.report(desk.heard("uid-ant"))
    assert [lost.block for lost in desk.lost()] == [block.block]


def test_a_block_that_is_held_for_ever_is_given_up() -> None:
    desk = Desk()
    desk.report(desk.heard("uid-ant"))
    block = desk.outstanding()[0]
    for _ in range(60):
        desk.now += 30
        desk.report(desk.heard("uid-ant", holding=(block.block,)))
    assert [lost.block for lost in desk.lost()] == [block.block]
    assert not desk.outstanding(), "a node that still holds a block gets no other"


def test_a_late_result_of_a_lost_block_counts() -> None:
    desk = ready("ant", "bee")
    desk.claim("ant", GOOD)
    block = desk.outstanding("confirm")[0]
    desk.mind.gone(block.node)
    desk.think()
    assert block.block in {lost.block for lost in desk.lost()}
    desk.run(block, BETTER)
    assert len(desk.state.claims[GOOD.idea, candidate_id(BASELINE)].pairs) == 1


def test_a_disturbed_node_is_quarantined_and_comes_back() -> None:
    desk = ready("ant", "bee")
    failure = Failure("machinery", "disk", "full")
    disturbed = [
        TrialDisturbed(f"t{n}", "uid-ant", 1, failure, START + n) for n in range(QUARANTINE_AFTER)
    ]  # fmt: skip
    desk.report(desk.heard("uid-ant", facts=tuple(disturbed)))
    desk.claim("bee", GOOD)
    assert {block.node for block in desk.outstanding("confirm")} == {"uid-bee"}
    desk.now += QUARANTINE_S + 1
    desk.report(desk.heard("uid-ant"), desk.heard("uid-bee", holding=(desk.outstanding()[0].block,)))
    assert {block.node for block in desk.outstanding("confirm")} == {"uid-ant", "uid-bee"}


# --- admission -------------------------------------------------------------------------------------------


def test_an_idea_belongs_to_the_node_that_brought_it_first() -> None:
    desk = Desk()
    facts = desk.report(desk.heard("uid-ant", proposals=(GOOD,)), desk.heard("uid-bee", proposals=(GOOD,)))
    admitted = [fact for fact in facts if isinstance(fact, ExperimentAdmitted)]
    assert [fact.node for fact in admitted] == ["uid-ant"]
    assert [fact.node for fact in facts if isinstance(fact, ProposalRefused)] == ["uid-bee"]
    assert [answer.admitted for answer in desk.orders("ant").admissions] == [True]
    assert [answer.admitted for answer in desk.orders("bee").admissions] == [False]


@pytest.mark.parametrize(
    "broken",
    [
        replace(GOOD, files={**A1, "../../etc/passwd": "x"}),
        replace(GOOD, files={"other.py": A1["train.py"]}),
        replace(GOOD, idea="0" * 32),
        replace(GOOD, files={"train.py": "def ("}),
        replace(GOOD, hypothesis="x" * 10_000),
        replace(GOOD, files={"train.py": "x = 1\n" * 1_000_000}),
        proposal(BASELINE, A1),
    ],
    ids=["foreign path", "another file", "wrong hash", "does not parse", "a novel", "too large", "the baseline"],
)
def test_a_proposal_that_could_never_be_tried_is_refused(broken: Proposal) -> None:
    desk = Desk()
    desk.report(desk.heard("uid-ant", proposals=(broken,)))
    assert not desk.state.experiments
    assert [answer.admitted for answer in desk.orders("ant").admissions] == [False]
    alone = ExperimentAdmitted(broken, candidate_id(broken.files), "uid-ant", "main", desk.now)
    desk.report(desk.heard("uid-ant", facts=(alone,)))
    assert not desk.state.experiments, "nor may the node admit it by itself"


def test_an_idea_that_was_set_aside_may_be_brought_again_by_its_own_node() -> None:
    desk = Desk()
    desk.admit("ant", GOOD)
    aside = replace(desk.kept("ant", GOOD), kept=False, gain=None, reason="the branch moved before it was judged")
    desk.report(desk.heard("uid-ant", facts=(aside,)))
    assert desk.state.experiments[GOOD.idea].status == SET_ASIDE
    desk.report(desk.heard("uid-ant", proposals=(GOOD,)))
    assert [answer.admitted for answer in desk.orders("ant").admissions] == [True]
    desk.report(desk.heard("uid-ant", facts=(replace(desk.kept("ant", GOOD), tip="the tip it came back to"),)))
    assert desk.state.experiments[GOOD.idea].status == "kept"
    desk.report(desk.heard("uid-bee", proposals=(GOOD,)))
    assert [answer.admitted for answer in desk.orders("bee").admissions] == [False]


def test_node_names_that_git_would_refuse_get_a_branch_of_their_own() -> None:
    desk = Desk()
    node = replace(info("ant"), name="Bob's box: ~/lab^1..2.lock ")
    desk.report(Report(node=node, brief="", proposals=(GOOD,)))
    assert desk.state.experiments[GOOD.idea].admitted.branch == "swarm/toy-1/Bob-s-box-lab-1-2-lock"
    desk.report(Report(node=replace(info("bee"), name="baseline"), brief="", proposals=(FINE,)))
    assert desk.state.experiments[FINE.idea].admitted.branch == "swarm/toy-1/node-baseline"


# --- claims ----------------------------------------------------------------------------------------------


def test_a_winner_is_confirmed_promoted_and_told() -> None:
    desk = ready("ant", "bee")
    desk.claim("ant", GOOD)
    desk.confirm(BETTER)
    assert desk.state.champion == candidate_id(A1)
    assert desk.orders("ant").brief is not None
    brief = desk.orders("ant").brief
    assert brief is not None and brief.champion == candidate_id(A1) and brief.verdicts == {GOOD.idea: "accepted"}


def test_a_loser_is_rejected_and_told() -> None:
    desk = ready("ant", "bee")
    desk.claim("ant", GOOD)
    desk.confirm({}, default=2.0)
    assert [verdict.accepted for verdict in verdicts(desk)] == [False]
    brief = desk.orders("ant").brief
    assert brief is not None and brief.verdicts[GOOD.idea].startswith("rejected")


def test_one_crash_on_a_fresh_seed_rejects_and_counts_as_a_closed_confirmation() -> None:
    desk = ready("ant", "bee")
    desk.claim("ant", GOOD)
    desk.confirm({candidate_id(A1): CRASH})
    assert "crash" in verdicts(desk)[0].reason
    assert desk.state.campaign.confirmations == 1


@pytest.mark.parametrize("score", [1e200, -1e200, 1e101])
def test_a_score_beyond_all_numbers_rejects_and_stops_nothing(score: float) -> None:
    desk = ready("ant", "bee")
    desk.claim("ant", GOOD)
    block = desk.outstanding("confirm")[0]
    desk.run(block, {candidate_id(A1): measured(score)})
    assert [verdict.accepted for verdict in verdicts(desk)] == [False]


def test_a_claim_whose_blocks_are_lost_again_and_again_is_closed() -> None:
    desk = ready("ant", "bee")
    desk.claim("ant", GOOD)
    while blocks := desk.outstanding("confirm"):
        assert len(desk.of(BlockDrawn)) < 60
        desk.report(desk.heard(blocks[0].node, holding=(blocks[0].block,)))
        desk.report(desk.heard(blocks[0].node))  # its machine was killed by it
    assert "were lost" in verdicts(desk)[0].reason and not desk.state.open_claims


def test_a_champion_that_fails_in_every_block_does_not_keep_a_claim_open() -> None:
    desk = ready("ant", "bee")
    desk.claim("ant", GOOD)
    desk.confirm({candidate_id(BASELINE): CRASH})
    assert [verdict.accepted for verdict in verdicts(desk)] == [False]


def test_a_claim_that_is_raised_again_after_it_was_carried_keeps_its_evidence() -> None:
    desk = ready("ant", "bee")
    both = edited(A1, B=1)
    on_top = proposal(both, A1)
    desk.mind.postpone_promotion(desk.now + 100)
    desk.claim("ant", GOOD)
    desk.confirm(BETTER)
    desk.report(desk.heard("uid-ant", ready=False), desk.heard("uid-bee", ready=False))
    desk.admit("ant", on_top)
    desk.report(desk.heard("uid-ant", facts=(desk.claims("ant", on_top),), ready=False))
    desk.now += 101
    desk.report(desk.heard("uid-ant", holding=("busy",)), desk.heard("uid-bee"))
    desk.confirm({candidate_id(A1): 1.5}, default=1.5)
    assert desk.state.champion == candidate_id(A1)
    claim = desk.state.claims[on_top.idea, candidate_id(A1)]
    assert claim.verdict is not None and not claim.verdict.accepted
    desk.report(desk.heard("uid-ant", facts=(desk.claims("ant", on_top, A1),)))
    assert desk.state.claims[on_top.idea, candidate_id(A1)] is claim, "a second chance would be a second test"
    assert not desk.outstanding("confirm")
    assert desk.state.answers["uid-ant"][on_top.idea].startswith("rejected")


def test_the_loser_of_a_race_is_carried_onto_the_new_champion_and_confirmed_there() -> None:
    desk = ready("ant", "bee", "cat")
    desk.claim("ant", GOOD)
    desk.claim("bee", FINE)
    desk.confirm(BETTER)
    carried = [fact for fact, _ in desk.facts if isinstance(fact, Carried)]
    assert [fact.onto for fact in carried] == [desk.state.promotions[0].candidate]
    assert desk.state.champion == candidate_id(edited(A1, B=1))
    assert len(desk.state.promotions) == 2
    last = verdicts(desk)[-1]
    assert (last.candidate, last.base) == (desk.state.champion, desk.state.promotions[0].candidate)


def test_a_claim_in_conflict_with_the_moved_champion_is_closed() -> None:
    desk = ready("ant", "bee", "cat")
    rival = proposal(edited(BASELINE, A=2))
    desk.claim("ant", GOOD)
    desk.claim("bee", rival)
    desk.confirm({candidate_id(A1): 1.5, candidate_id(rival.files): 1.5})
    assert len(desk.state.promotions) == 1
    reason = verdicts(desk)[-1].reason
    assert "both changed train.py:A (idea: A = 2; champion: A = 1)" in reason, "both sides, by name"
    assert not desk.state.open_claims and not desk.state.accepted


def test_a_carried_claim_survives_that_its_node_changed_platform() -> None:
    desk = ready("ant", "bee", "cat")
    desk.claim("ant", GOOD)
    desk.claim("bee", FINE)
    desk.report(Report(node=info("bee", OTHER_PLATFORM), brief=""))
    desk.confirm(BETTER)
    assert {claim.platform for claim in desk.state.claims.values()} == {PLATFORM.id}
    assert len(desk.state.promotions) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"experiment": "unheard of"},
        {"candidate": candidate_id(B1)},
        {"base": "never"},
        {"base": candidate_id(A1)},
        {"node": "uid-bee"},
    ],
    ids=["experiment", "candidate", "base", "unpromoted base", "another's"],
)
def test_a_claim_that_is_not_opened_is_answered(wrong: dict[str, str]) -> None:
    desk = ready("ant", "bee")
    desk.admit("ant", GOOD)
    claim = replace(desk.claims("ant", GOOD), **wrong)  # type: ignore[arg-type]  # replace() checks the names
    desk.report(desk.heard(claim.node, facts=(claim,)))
    assert not desk.state.open_claims
    assert desk.state.answers[claim.node][claim.experiment].startswith("rejected")
    brief = desk.mind.orders(claim.node, (), desk.now).brief
    assert brief is not None and claim.experiment in brief.verdicts
    if "candidate" not in wrong:  # the same claim again is the same fact
        desk.report(desk.heard("uid-ant", facts=(desk.claims("ant", GOOD),)))
        assert list(desk.state.open_claims) == [(GOOD.idea, candidate_id(BASELINE))], "it stands in nobody's way"


def test_a_branch_has_one_open_claim_at_a_time() -> None:
    desk = ready("ant", "bee")
    desk.claim("ant", GOOD)
    desk.claim("ant", FINE)
    assert list(desk.state.open_claims) == [(GOOD.idea, candidate_id(BASELINE))]
    assert "open claim already" in desk.state.answers["uid-ant"][FINE.idea]


def test_an_author_who_carried_its_idea_over_itself_is_not_measured_twice() -> None:
    desk = ready("ant", "bee")
    whole = proposal(edited(A1, B=1))
    desk.claim("ant", GOOD)
    desk.claim("bee", FINE)
    desk.confirm({candidate_id(A1): 1.5, candidate_id(B1): 2.0})
    desk.commit([Carried(FINE.idea, candidate_id(whole.files), candidate_id(A1), whole.files, desk.now)])
    desk.admit("bee", replace(whole, parent=candidate_id(A1)))
    desk.report(desk.heard("uid-bee", facts=(desk.claims("bee", whole, A1),)))
    assert [claim.experiment for claim in desk.state.open_claims.values()] == [FINE.idea]
    assert "is being confirmed" in desk.state.answers["uid-bee"][whole.idea]


def test_two_ideas_that_became_the_same_tree_both_get_their_pairs() -> None:
    desk = ready("ant", "bee", "cat")
    whole = proposal(edited(A1, B=1))
    desk.claim("ant", GOOD)
    desk.claim("bee", FINE)
    desk.confirm({candidate_id(A1): 1.5, candidate_id(B1): 2.0})
    assert desk.state.champion == candidate_id(A1)
    late = desk.admit("cat", replace(whole, parent=candidate_id(A1)))
    twin = Carried(FINE.idea, late.candidate, candidate_id(A1), whole.files, desk.now)
    desk.commit([twin])
    desk.report(desk.heard("uid-cat", facts=(desk.claims("cat", whole, A1),)))
    assert [claim.candidate for claim in desk.state.open_claims.values()] == [late.candidate] * 2
    desk.confirm({late.candidate: 2.0})
    assert not desk.state.open_claims


def test_an_accepted_idea_that_is_too_slow_is_rejected() -> None:
    desk = ready("ant", "bee")
    desk.claim("ant", GOOD)
    desk.confirm({candidate_id(A1): measured(1.5, cpu_s=5.0 * 1.3)})
    assert "CPU time" in verdicts(desk)[0].reason and not desk.state.promotions


def test_cpu_time_decides_nothing_where_wall_seconds_are_the_budget() -> None:
    desk = Desk(cpu_limit=0.0)
    desk.calibrate("ant", "bee")
    desk.claim("ant", GOOD)
    desk.confirm({candidate_id(A1): measured(1.5, cpu_s=5.0 * 1.3)})
    assert verdicts(desk)[0].accepted and desk.state.champion == candidate_id(A1)


def test_slowness_is_reckoned_from_the_baseline_along_the_line_of_champions() -> None:
    desk = ready("ant", "bee")
    both = edited(A1, B=1)
    desk.claim("ant", GOOD)
    desk.confirm({candidate_id(A1): measured(1.5, cpu_s=6.0)})
    assert desk.state.champion == candidate_id(A1)
    desk.claim("ant", proposal(both, A1), A1)
    desk.confirm({candidate_id(A1): measured(1.5, cpu_s=6.0), candidate_id(both): measured(1.0, cpu_s=7.2)})
    assert "1.44x the baseline" in verdicts(desk)[-1].reason


def test_nothing_is_promoted_while_the_forge_is_away_and_everything_when_it_is_back() -> None:
    desk = ready("ant", "bee")
    desk.mind.postpone_promotion(desk.now + 100)
    desk.claim("ant", GOOD)
    desk.confirm(BETTER)
    assert not desk.state.promotions and list(desk.state.accepted)
    desk.now += 101
    assert any(isinstance(action, Promote) for action in desk.mind.decide(desk.now))
    desk.think()
    assert desk.state.champion == candidate_id(A1) and not desk.state.accepted


# --- leases ----------------------------------------------------------------------------------------------


def test_a_claim_is_confirmed_on_three_other_nodes_where_there_are_three() -> None:
    desk = ready("ant", "bee", "cat", "dog", "eel")
    desk.claim("ant", GOOD)
    desk.confirm(BETTER)
    verdict = verdicts(desk)[0]
    claim = desk.state.claims[GOOD.idea, candidate_id(BASELINE)]
    assert verdict.accepted and verdict.nodes >= 3
    assert "uid-ant" not in {pair.node for pair in claim.pairs}


def test_work_is_spread_over_the_nodes() -> None:
    desk = ready("ant", "bee", "cat", "dog", "eel")
    for number in range(12):
        desk.claim("ant", proposal(edited(BASELINE, D=number + 1)))
        desk.confirm({})
    drawn = Counter(block.node for block in desk.of(BlockDrawn) if isinstance(block, BlockDrawn))
    assert max(drawn[f"uid-{name}"] for name in ("bee", "cat", "dog", "eel")) <= 2 + min(
        drawn[f"uid-{name}"] for name in ("bee", "cat", "dog", "eel")
    )


def test_candidates_of_one_base_share_the_champions_run() -> None:
    desk = ready("ant", "bee", "cat")
    brought = (("ant", GOOD), ("bee", FINE), ("cat", LATER))
    desk.report(*(desk.heard(f"uid-{name}", proposals=(idea,), ready=False) for name, idea in brought))
    claims = {name: desk.claims(name, idea) for name, idea in brought}
    desk.report(*(desk.heard(f"uid-{name}", facts=(claim,), ready=False) for name, claim in claims.items()))
    desk.report(desk.heard("uid-ant"))
    block = desk.outstanding("confirm")[0]
    assert len(block.experiments) == 3 and len(set(block.candidates)) == 4
    assert len(set(block.seeds)) == 1 and len(set(block.trials)) == 4
    specs = desk.orders("ant").blocks[0].trials
    assert {spec.experiment for spec in specs} == {"", GOOD.idea, FINE.idea, LATER.idea}


def test_no_seed_is_ever_drawn_twice() -> None:
    desk = ready("ant", "bee")
    for number in range(10):
        desk.claim("ant", proposal(edited(BASELINE, D=number + 1)))
        desk.confirm({})
    blocks = [block for block in desk.of(BlockDrawn) if isinstance(block, BlockDrawn)]
    seeds = [seed for block in blocks for seed in set(block.seeds)]
    assert len(set(seeds)) == len(seeds)


def test_one_bad_run_of_the_baseline_is_not_the_end() -> None:
    desk = Desk()
    desk.report(desk.heard("uid-ant"), desk.heard("uid-bee"))
    desk.run(desk.outstanding("calibrate")[0], {candidate_id(BASELINE): 2.0})
    block = desk.outstanding("calibrate")[0]
    first, second = trial_of(block, 0, CRASH, desk.now), trial_of(block, 1, measured(2.0), desk.now)
    desk.report(desk.heard(block.node, facts=(first, second)))
    assert not desk.mind.stop_reason(desk.now)
    while blocks := desk.outstanding("calibrate"):
        desk.run(blocks[0], {})
    assert desk.state.noise


def test_a_baseline_that_fails_on_one_platform_only_leaves_the_other_at_work() -> None:
    desk = Desk()
    desk.report(desk.heard("uid-ant"), Report(node=info("gpu", OTHER_PLATFORM), brief=""))
    block = next(b for b in desk.outstanding() if b.node == "uid-gpu")
    facts = tuple(trial_of(block, place, CRASH, desk.now, OTHER_PLATFORM) for place in range(2))
    desk.report(desk.heard("uid-gpu", facts=facts))
    assert not desk.mind.stop_reason(desk.now)
    assert not [b for b in desk.outstanding() if b.node == "uid-gpu"]


# --- what a verdict says ---------------------------------------------------------------------------------


def at_once(desk: Desk, gains: Iterable[float]) -> None:
    """All that is out is told in one round, in the order of its blocks."""
    reports = []
    for block, gain in zip(desk.outstanding("confirm"), gains, strict=True):
        scores = [2.0 if candidate == block.reference else 2.0 - gain for candidate in block.candidates]
        facts = tuple(trial_of(block, place, measured(score), desk.now) for place, score in enumerate(scores))
        reports.append(desk.heard(block.node, facts=facts, holding=(block.block,)))
    desk.report(*reports)


def test_a_verdict_counts_the_pairs_that_it_rests_on_and_no_others() -> None:
    desk = ready("ant", "bee", "cat", "dog", decision={"calibration_pairs": 4})
    desk.claim("ant", GOOD)
    at_once(desk, [-0.002, 0.03, 0.03])
    (told,) = verdicts(desk)
    assert (told.accepted, told.pairs, told.nodes, len(told.evidence)) == (False, 1, 1, 2)
    assert told.effect == pytest.approx(-0.002) and "on 0 of 1 fresh pair" in told.reason
    assert told.low <= told.effect <= told.high


# --- the end ---------------------------------------------------------------------------------------------


def at_the_end(*names: str) -> Desk:
    desk = ready(*names)
    desk.claim("ant", GOOD)
    desk.confirm(BETTER)
    desk.now += 60 * 501
    desk.report(*(desk.heard(f"uid-{name}") for name in names))
    return desk


def test_the_end_compares_champion_and_baseline_on_fresh_seeds_and_drains_first() -> None:
    desk = at_the_end("ant", "bee")
    before = {b.seeds for b in desk.of(BlockDrawn) if isinstance(b, BlockDrawn) and b.purpose != "final"}
    while blocks := desk.outstanding("final"):
        assert not {block.seeds for block in blocks} & before
        desk.run(blocks[0], {candidate_id(A1): 1.5})
    assert desk.orders("ant").drain and not desk.of(StudyFinished)
    desk.report(desk.heard("uid-ant", drained=True), desk.heard("uid-bee", drained=True))
    (finished,) = desk.of(StudyFinished)
    assert isinstance(finished, StudyFinished)
    assert finished.pairs == 5 and finished.final_gain == pytest.approx(0.5)
    assert finished.champion == candidate_id(A1)


def test_a_promotion_during_the_final_comparison_starts_it_again() -> None:
    desk = at_the_end("ant", "bee", "cat")
    desk.run(desk.outstanding("final")[0], {candidate_id(A1): 1.5})
    assert desk.state.final
    old = desk.outstanding("final")[0]
    late = edited(A1, B=1)
    desk.commit([Promotion(2, FINE.idea, candidate_id(late), candidate_id(A1), "sha", "local#2", desk.now)])
    desk.commit([Carried(FINE.idea, candidate_id(late), candidate_id(A1), late, desk.now)])
    assert not desk.state.final
    desk.run(old, {candidate_id(A1): 1.5})
    assert not desk.state.final, "a block of the champion before says nothing of this one"
    while blocks := desk.outstanding("final"):
        desk.run(blocks[0], {candidate_id(late): 1.0, candidate_id(A1): 1.5})
    assert len(desk.state.final) == 5
    assert [pair.gain for pair in desk.state.final] == pytest.approx([1.0] * 5)


def stopped_by_a_cap(desk: Desk, name: str) -> None:
    desk.report(desk.heard(f"uid-{name}", facts=(Spent(f"uid-{name}", 1, Usage(0, 0, 2.0), desk.now),)))
    assert desk.mind.stop_reason(desk.now) == "cap of 1 dollars"


def drained(desk: Desk, *names: str) -> StudyFinished:
    desk.report(*(desk.heard(f"uid-{name}", drained=True) for name in names))
    (finished,) = desk.of(StudyFinished)
    assert isinstance(finished, StudyFinished)
    return finished


def test_what_the_forge_does_not_take_keeps_a_stopped_study_only_as_long_as_its_comparison_may() -> None:
    desk = ready("ant", "bee", caps={"dollars": 1.0})
    desk.claim("ant", GOOD)
    desk.confirm(BETTER)
    desk.mind.postpone_promotion(desk.now + 10**9)  # a person has closed the second request
    desk.claim("bee", proposal(edited(A1, B=1), A1), A1)
    desk.confirm({**BETTER, candidate_id(A1): 2.0})
    stopped_by_a_cap(desk, "ant")
    desk.now += 60 * 99
    desk.report(desk.heard("uid-ant"), desk.heard("uid-bee"))
    assert desk.state.accepted and not desk.outstanding("final")
    desk.now += 60 * 2
    desk.report(desk.heard("uid-ant"), desk.heard("uid-bee"))
    while blocks := desk.outstanding("final"):
        desk.run(blocks[0], {candidate_id(A1): 1.5})
    desk.now += 60 * 420  # the wall time is over as well
    finished = drained(desk, "ant", "bee")
    assert (finished.pairs, finished.reason, finished.champion) == (5, "cap of 1 dollars", candidate_id(A1))


def test_a_stopped_study_ends_without_its_comparison_when_no_node_of_that_platform_comes_back() -> None:
    desk = ready("ant", caps={"dollars": 1.0})
    desk.claim("ant", GOOD)
    desk.confirm(BETTER)
    desk.now += desk.config.nodes.lost_after_s + 1
    desk.report(Report(node=info("gpu", OTHER_PLATFORM), brief=""))
    stopped_by_a_cap(desk, "gpu")
    desk.now += 60 * 99
    desk.report(desk.heard("uid-gpu", drained=True))
    assert not desk.of(StudyFinished), "it may still come back"
    desk.now += 60 * 2
    finished = drained(desk, "gpu")
    assert (finished.pairs, finished.reason) == (0, "cap of 1 dollars")


@pytest.mark.parametrize(
    ("caps", "usage", "said"),
    [
        ({"dollars": 2.0}, Usage(0, 0, 2.5), "cap of 2 dollars"),
        ({"tokens": 100}, Usage(60, 50, 0.0), "cap of 100 tokens"),
        ({"node_hours": 0.01}, Usage(), "cap of 0.01 node-hours"),
    ],
)
def test_a_cap_ends_exploration_and_says_so(caps: dict[str, float], usage: Usage, said: str) -> None:
    desk = ready("ant", caps=caps)
    desk.report(desk.heard("uid-ant", facts=(Spent("uid-ant", 1, usage, desk.now),)))
    desk.claim("ant", GOOD)
    desk.confirm({})
    brief = desk.orders("ant").brief
    assert desk.mind.stop_reason(desk.now) == said
    assert brief is not None and not brief.explore


# --- what is believed ------------------------------------------------------------------------------------


def leased(desk: Desk) -> TrialFinished:
    desk.claim("ant", GOOD)
    return trial_of(desk.outstanding("confirm")[0], 0, measured(1.0), desk.now)


@pytest.mark.parametrize(
    "lie",
    [
        {"node": "uid-bee"},
        {"fence": 7},
        {"candidate": "another"},
        {"seed": 7},
        {"purpose": "final"},
        {"trial": "invented"},
        {"platform": OTHER_PLATFORM.id},
        {"block": ""},
        {"block": "unknown"},
        {"outcome": measured(1.0, cpu_s=-1.0)},
        {"outcome": replace(measured(1.0), audited=False)},
        {"outcome": replace(measured(1.0), audited=False, self_reported=True)},
        {"experiment": "x" * 100_000},
    ],
    ids=lambda lie: next(iter(lie)),
)
def test_a_result_that_is_not_as_it_was_leased_is_not_believed(lie: dict[str, object]) -> None:
    desk = ready("ant", "bee")
    honest = leased(desk)
    liar = "uid-bee" if honest.node == "uid-ant" and "node" in lie else honest.node
    false = replace(honest, **lie)  # type: ignore[arg-type]
    other = "uid-ant" if honest.node == "uid-bee" else "uid-bee"
    false = replace(false, node=other) if "node" in lie else false
    desk.report(desk.heard(other if "node" in lie else liar, facts=(false,)))
    assert desk.refused
    assert not desk.state.blocks[honest.block].finished
    desk.report(desk.heard(honest.node, facts=(honest,), holding=(honest.block,)))
    assert desk.state.blocks[honest.block].finished, "the true result still counts"


def test_where_a_task_takes_the_scripts_word_a_score_need_not_be_audited() -> None:
    desk = ready("ant", "bee")
    desk.printed = True
    honest = leased(desk)
    own_word = replace(honest, outcome=replace(measured(1.0), audited=False, self_reported=True))
    desk.report(desk.heard(honest.node, facts=(own_word,), holding=(honest.block,)))
    assert not desk.refused and desk.state.blocks[honest.block].finished


def test_a_node_that_does_not_audit_decides_nothing_and_is_not_asked_for_ever() -> None:
    desk = ready("ant", "bee")
    desk.claim("ant", GOOD)
    lazy = {candidate_id(f): replace(measured(s), audited=False) for f, s in ((A1, 1.5), (BASELINE, 2.0))}
    desk.confirm(lazy)
    assert "gave no pair" in verdicts(desk)[0].reason and not desk.state.promotions


def test_what_a_node_may_not_say_is_refused() -> None:
    desk = ready("ant", "bee")
    desk.admit("bee", GOOD)
    lies: tuple[Fact, ...] = (
        Verdict("e", "c", "b", True, 1, 0, 2, 3, 99, 30, 0.1, (), 3, "me", desk.now),
        Promotion(1, GOOD.idea, candidate_id(A1), candidate_id(BASELINE), "sha", "x", desk.now),
        BlockLost("b", "so there", desk.now),
        NodeLost("uid-bee", "gone", desk.now),
        replace(desk.kept("bee", GOOD), node="uid-ant"),
        desk.kept("bee", GOOD),
        replace(desk.kept("ant", FINE)),
        Spent("uid-ant", 1, Usage(0, 0, -5.0), desk.now),
        TrialFinished(
            "t", "c", "", 1, "calibrate", "uid-ant", PLATFORM.id, 0, "", 0, 0, 1, CRASH, ""
        ),
    )  # fmt: skip
    before = len(desk.facts)
    desk.report(desk.heard("uid-ant", facts=lies))
    assert len(desk.refused) == len(lies)
    assert len(desk.facts) == before


def test_a_jumping_clock_and_a_talkative_node_cost_nothing() -> None:
    desk = ready("ant", caps={"node_hours": 100})
    trial = TrialFinished(
        "t", "c", "", 1, "screen", "uid-ant", PLATFORM.id, 0, "", 0, 0.0, desk.now, CRASH, "x" * 1_000_000
    )
    backwards = replace(trial, trial="u", started_at=desk.now + 1e6)
    told = Trouble("y" * 1000, "z" * 1_000_000, desk.now)
    desk.report(desk.heard("uid-ant", facts=(trial, backwards, told)))
    assert desk.state.trial_s < 1000
    assert max(len(repr(fact)) for fact, _ in desk.facts) < 20_000


def test_a_brief_stays_small_whatever_was_tried() -> None:
    desk = ready("ant")
    for number in range(40):
        desk.admit("ant", proposal(edited(BASELINE, D=number + 1), hypothesis="w" * 3000))
        aside = replace(desk.kept("ant", proposal(edited(BASELINE, D=number + 1))), reason="failed: " + "r" * 3000)
        desk.report(desk.heard("uid-ant", facts=(aside,)))
    brief = desk.orders("ant").brief
    assert brief is not None and len(repr(brief)) < 60_000


def test_a_brief_is_sent_once_and_again_when_the_program_changes() -> None:
    desk = ready("ant")
    first = desk.orders("ant").brief
    assert first is not None
    desk.report(desk.heard("uid-ant", brief=first.version))
    assert desk.orders("ant").brief is None
    desk.mind.program = "be bold"
    second = desk.orders("ant").brief
    assert second is not None and second.program == "be bold"


# --- any interleaving ------------------------------------------------------------------------------------

NAMES = ("ant", "bee", "cat")
WORDS = st.sampled_from(["", "x", GOOD.idea, candidate_id(A1), candidate_id(BASELINE), "uid-ant", "uid-bee"])
NUMBERS = st.sampled_from([0.0, -1.0, 1.5, 2.0, 2.01, 1e200, -1e308])
OUTCOMES = st.one_of(
    NUMBERS.map(measured),
    st.just(CRASH),
    st.just(Failure("machinery", "lost", "", -1.0)),
    NUMBERS.map(lambda n: measured(2.0, n)),
)


class Interleaving:
    """Nodes that do whatever is drawn: honest work, half of it, none of it, and nonsense."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.desk = Desk({"decision": {"calibration_pairs": 2, "final_seeds": 2}, "caps": {"node_hours": 20}})
        self.ideas: dict[str, list[Proposal]] = {f"uid-{name}": [] for name in NAMES}

    def step(self) -> None:
        """One thing happens."""
        desk = self.desk
        desk.now += self.draw(st.sampled_from([0.5, 10.0, 100.0, 3000.0]))
        uid = self.draw(st.sampled_from(sorted(self.ideas)))
        verb = self.draw(
            st.sampled_from(
                ["work"] * 4 + ["propose", "claim", "claim", "nonsense", "move", "vanish", "quiet", "switch"]
            )
        )
        getattr(self, verb)(uid)
        assert desk.mind.decide(desk.now) == desk.mind.decide(desk.now)
        for name in NAMES:
            desk.orders(name)

    def work(self, uid: str) -> None:
        for block in [b for b in self.desk.outstanding() if b.node == uid]:
            size = self.draw(st.integers(0, len(block.trials)))
            platform = self.desk.state.nodes[uid].platform
            facts = tuple(trial_of(block, place, self.draw(OUTCOMES), self.desk.now, platform) for place in range(size))
            self.say(uid, facts=facts, holding=(block.block,))
        self.say(uid)

    def propose(self, uid: str) -> None:
        known = self.desk.state.files.get(self.desk.state.champion, BASELINE)
        letter, value = self.draw(st.sampled_from("ABCD")), self.draw(st.integers(0, 2))
        idea = proposal(edited(known, **{letter: value}), known)
        self.ideas[uid].append(idea)
        self.say(uid, proposals=(idea,))

    def claim(self, uid: str) -> None:
        if not self.ideas[uid]:
            return
        idea, name = self.draw(st.sampled_from(self.ideas[uid])), uid.removeprefix("uid-")
        base = self.desk.state.files[self.draw(st.sampled_from(sorted(self.desk.state.champions)))]
        self.say(uid, facts=(self.desk.kept(name, idea), self.desk.claims(name, idea, base)))

    def nonsense(self, uid: str) -> None:
        block = self.draw(st.sampled_from(["", *self.desk.state.blocks]))
        trial = self.draw(st.sampled_from(["", "x", *self.desk.state.block_of]))
        purposes: list[Purpose] = ["screen", "confirm", "calibrate", "final"]
        purpose = self.draw(st.sampled_from(purposes))
        facts: list[Fact] = [
            TrialFinished(
                trial, self.draw(WORDS), self.draw(WORDS), 1, purpose, uid, self.draw(WORDS), 0, block, 1,
                self.draw(NUMBERS), self.draw(NUMBERS), self.draw(OUTCOMES), "",
            ),
            Screened(self.draw(WORDS), uid, "", self.draw(WORDS), self.draw(WORDS), True, None, None, "", "", 0.0),
            ClaimRaised(self.draw(WORDS), self.draw(WORDS), self.draw(WORDS), uid, "", self.draw(NUMBERS), 0.0),
            TrialDisturbed(trial, uid, 1, Failure("machinery", "lost", ""), self.draw(NUMBERS)),
            Spent(uid, 1, Usage(-1, 0, self.draw(NUMBERS)), 0.0),
        ]  # fmt: skip
        self.say(uid, facts=tuple(facts), holding=(block,) if block else ())

    def move(self, uid: str) -> None:
        platform = self.draw(st.sampled_from([PLATFORM, OTHER_PLATFORM]))
        self.desk.report(Report(node=info(uid.removeprefix("uid-"), platform), brief=""))

    def vanish(self, uid: str) -> None:
        self.desk.mind.gone(uid)
        self.desk.think()

    def quiet(self, uid: str) -> None:
        self.say(uid, drained=True)

    def switch(self, uid: str) -> None:
        """The panel of a Platform is trusted, or no longer."""
        for platform, references in self.desk.state.references.items():
            number, on = len(references.switches) + 1, self.draw(st.booleans())
            self.desk.commit([PanelSwitched(platform, number, on, 40, "", self.desk.now)])
        self.desk.think()

    def say(self, uid: str, **changes: object) -> None:
        self.desk.report(self.desk.heard(uid, **changes))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_whatever_happens_the_mind_comes_to_rest_and_its_ledger_tells_the_same(data: st.DataObject) -> None:
    story = Interleaving(data)
    for _ in range(data.draw(st.integers(5, 40))):
        story.step()
    desk = story.desk
    again = desk.replayed()
    assert again.state == desk.state
    assert {key: claim.against for key, claim in again.state.claims.items()} == {
        key: claim.against for key, claim in desk.state.claims.items()
    }
    assert len(desk.of(StudyFinished)) <= 1
    open_keys = {key for key, claim in desk.state.claims.items() if claim.verdict is None}
    assert open_keys == set(desk.state.open_claims)
    assert len({f.key for f in desk.of(Verdict)}) == len(desk.of(Verdict))


# --- simplifications -------------------------------------------------------------------------------------

SHORT = {"train.py": BASELINE["train.py"].replace("D = 0\n", "")}
LESS = proposal(SHORT)


def decided(desk: Desk) -> Verdict:
    verdict = desk.of(Verdict)[-1]
    assert isinstance(verdict, Verdict)
    return verdict


def test_less_code_that_loses_nothing_is_promoted_as_a_simplification() -> None:
    desk = ready("ant", "bee")
    campaign = desk.state.campaign
    desk.claim("ant", LESS, kind="simplification")
    desk.confirm({})
    assert decided(desk).accepted and decided(desk).claim_kind == "simplification"
    assert [fact.claim_kind for fact in desk.of(Promotion) if isinstance(fact, Promotion)] == ["simplification"]
    assert desk.state.champion == candidate_id(SHORT)
    assert desk.state.campaign == campaign  # it says nothing of how rare gains are


@pytest.mark.parametrize(("share", "lands"), [(0.5, True), (1.5, False)])
def test_less_code_may_lose_less_than_the_margin_on_the_holdout_too(share: float, lands: bool) -> None:
    desk = ready("ant", "bee")
    desk.claim("ant", LESS, kind="simplification")
    (claim,) = desk.state.open_claims.values()
    margin = claim.rule.margin * claim.noise.sd
    desk.holdout = {candidate_id(SHORT): 2.0 + share * margin, desk.state.champion: 2.0}
    desk.confirm({})
    assert decided(desk).accepted
    assert (desk.state.champion == candidate_id(SHORT)) is lands


def test_less_code_that_loses_more_than_the_margin_is_rejected() -> None:
    desk = ready("ant", "bee")
    desk.claim("ant", LESS, kind="simplification")
    desk.confirm({candidate_id(SHORT): 2.05})
    assert not decided(desk).accepted and not desk.of(Promotion)


def test_a_simplification_without_less_code_is_refused_at_once_whatever_its_gain() -> None:
    desk = ready("ant", "bee")
    desk.claim("ant", GOOD, kind="simplification")
    assert not desk.outstanding("confirm")
    assert desk.state.answers["uid-ant"][GOOD.idea] == (
        "rejected: it has no less code than the champion that it simplifies"
    )


def test_a_simplification_of_which_the_moved_champion_leaves_no_less_code_is_closed() -> None:
    also = proposal(edited(SHORT, A=1))
    desk = ready("ant", "bee")
    desk.claim("ant", LESS, kind="simplification")
    desk.claim("bee", also, kind="simplification")
    desk.confirm({})
    assert desk.state.champion == candidate_id(SHORT)  # onto it, the other one only changes A
    assert not desk.of(Carried)
    assert "the moved champion has as little code" in desk.state.answers["uid-bee"][also.idea]
    assert desk.replayed().state == desk.state
