"""A champion that is no better than the champion before steps down: on top, in public, and its ideas start again."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random

import luck
import pytest
from desk import BASELINE, Desk, edited, proposal
from simulation import Killed, MoodyForge, Swarm, World

from benchmarks.demotions import fallen_share, promoted
from coordinator.forges import SHARED_BRANCH, Request
from coordinator.leaderboard import leaderboard_md
from coordinator.mind import Demote
from coordinator.rechecks import answer, no_gain
from coordinator.report import report_md
from coordinator.reproduction import Noise, rule_for
from swarm.history import history
from swarm.records import (
    Carried,
    ChampionRechecked,
    Demotion,
    Files,
    HoldoutAnswered,
    Promotion,
    Spent,
    StudyFinished,
    Usage,
    Verdict,
    candidate_id,
)
from swarm.repo import Repo
from swarm.scale import Scale

EVERY = {"decision": {"calibration_pairs": 2, "final_seeds": 3, "recheck_every": 1, "sham_share": 0.0}}
BASE = candidate_id(BASELINE)
A1, B1 = edited(BASELINE, A=1), edited(BASELINE, B=1)
BOTH = edited(A1, B=1)


def promote(desk: Desk, files: Files, score: float = 1.5) -> Promotion:
    """An idea on top of the champion is claimed, confirmed, and lands."""
    before = desk.state.files[desk.state.champion]
    desk.claim("ant", proposal(files, before), before)
    desk.confirm({candidate_id(files): score, desk.state.champion: 2.0})
    assert desk.state.champion == candidate_id(files)
    return desk.state.promotions[-1]


def recheck(desk: Desk, score: float) -> None:
    """Run what is out: the champion gets this score, the one before 2."""
    while blocks := desk.outstanding("recheck"):
        (newer,) = set(blocks[0].candidates) - {blocks[0].reference}
        desk.run(blocks[0], {newer: score})


def study(*more: str) -> Desk:
    desk = Desk(EVERY)
    desk.calibrate("ant", "bee", *more)
    return desk


def fallen() -> Desk:
    """A worthless promotion, a second one on top of it, and then the first is found out."""
    desk = study()
    promote(desk, A1)
    promote(desk, BOTH)
    recheck(desk, 2.0)
    return desk


def demotions(desk: Desk) -> list[Demotion]:
    return [fact for fact in desk.of(Demotion) if isinstance(fact, Demotion)]


def test_the_champion_before_is_restored_and_what_landed_on_top_falls_too() -> None:
    desk = fallen()
    (demotion,) = demotions(desk)
    assert (demotion.number, demotion.rechecked, demotion.undone) == (1, 1, (1, 2))
    assert (demotion.champion, demotion.restored) == (candidate_id(BOTH), BASE)
    assert desk.state.champion == BASE and not desk.state.line
    assert [p.number for p in desk.state.promotions] == [1, 2], "what happened stays told"
    assert desk.replayed().state == desk.state


def test_each_idea_is_carried_onto_the_restored_champion_and_confirmed_anew() -> None:
    desk = fallen()
    carried = [fact for fact in desk.of(Carried) if isinstance(fact, Carried)]
    assert [(c.candidate, c.onto, c.after_demotion) for c in carried] == [
        (candidate_id(A1), BASE, 1),
        (candidate_id(B1), BASE, 1),
    ]
    assert len(desk.state.open_claims) == 2 and all(not claim.pairs for claim in desk.state.open_claims.values())
    desk.confirm({candidate_id(B1): 1.5})
    third = desk.state.promotions[-1]
    assert (third.number, third.candidate, third.base) == (3, candidate_id(B1), BASE)
    assert [p.number for p in desk.state.line] == [3]
    first = desk.state.promotions[0].experiment
    assert desk.state.experiments[first].status == "rejected"
    verdicts = [fact for fact in desk.of(Verdict) if isinstance(fact, Verdict) and fact.experiment == first]
    assert [(v.accepted, v.base, v.after_demotion) for v in verdicts] == [(True, BASE, 0), (False, BASE, 1)]
    assert not set(verdicts[0].evidence) & set(verdicts[1].evidence), "old runs are no evidence any more"
    assert desk.replayed().state == desk.state


def test_an_idea_that_was_demoted_by_mistake_lands_again_on_the_very_same_champion() -> None:
    desk = study()
    once = promote(desk, A1)
    recheck(desk, 2.0)
    desk.confirm({candidate_id(A1): 1.5})
    again = desk.state.promotions[-1]
    assert (again.number, again.experiment, again.candidate, again.base) == (2, once.experiment, once.candidate, BASE)
    answers = [fact for fact in desk.of(HoldoutAnswered) if isinstance(fact, HoldoutAnswered)]
    assert [(a.number, a.after_demotion) for a in answers] == [(1, 0), (1, 1)], "the holdout is not asked twice"
    assert desk.outstanding("recheck"), "it is compared again, on other seeds"
    recheck(desk, 1.5)
    rechecks = [fact for fact in desk.of(ChampionRechecked) if isinstance(fact, ChampionRechecked)]
    assert [r.demotes for r in rechecks] == [True, False]
    assert not set(rechecks[0].evidence) & set(rechecks[1].evidence)
    told = history(fact for fact, _ in desk.facts)
    first, second = (told.verdict_on(promotion) for promotion in told.promotions)
    assert first is not None and second is not None and first.at <= once.at and second.after_demotion == 1


def test_an_idea_that_cannot_be_carried_back_is_refused_with_both_sides() -> None:
    desk = study()
    promote(desk, A1)
    promote(desk, edited(A1, A=2))  # an edit of the very line that falls
    recheck(desk, 2.0)
    desk.confirm({})
    verdicts = [fact for fact in desk.of(Verdict) if isinstance(fact, Verdict)]
    (refused,) = [verdict for verdict in verdicts if "(idea: A = 2; champion: A = 0)" in verdict.reason]
    assert (refused.accepted, refused.base, refused.after_demotion) == (False, BASE, 1)
    assert not desk.state.undone and not desk.state.open_claims and desk.state.champion == BASE


def test_ideas_that_landed_together_are_confirmed_one_by_one_when_their_promotion_falls() -> None:
    desk = study("cat", "dog")
    c1, joined = edited(BASELINE, C=1), edited(BOTH, C=1)
    scores = {candidate_id(A1): 1.4, candidate_id(B1): 1.5, candidate_id(c1): 1.6, candidate_id(joined): 0.9}
    for name, files in (("ant", A1), ("bee", B1), ("cat", c1)):
        desk.claim(name, proposal(files))
    desk.confirm(scores)
    first, second = desk.state.promotions
    assert first.candidate == candidate_id(A1) and len(second.ideas) == 2, "the other two landed as one"
    recheck(desk, 2.0)
    (demotion,) = demotions(desk)
    assert demotion.undone == (1, 2)
    again = {claim.candidate for claim in desk.state.open_claims.values() if claim.after_demotion == 1}
    assert again == {candidate_id(A1), candidate_id(B1), candidate_id(c1)}
    desk.confirm({candidate_id(B1): 1.5, candidate_id(c1): 1.6, candidate_id(edited(B1, C=1)): 1.1})
    assert desk.state.files[desk.state.champion] == edited(B1, C=1)
    assert desk.replayed().state == desk.state


def test_a_set_that_waits_for_its_landing_does_not_outlive_the_champion_that_it_was_joined_on() -> None:
    desk = study("cat", "dog")
    c1, joined = edited(BASELINE, C=1), edited(BOTH, C=1)
    scores = {candidate_id(A1): 1.4, candidate_id(B1): 1.5, candidate_id(c1): 1.6, candidate_id(joined): 0.9}
    for name, files in (("ant", A1), ("bee", B1), ("cat", c1)):
        desk.claim(name, proposal(files))
    while not desk.state.promotions:
        desk.run(desk.outstanding("confirm")[0], scores)
    desk.silent |= set(desk.state.nodes)  # nobody answers for the holdout
    desk.confirm(scores)
    assert any(claim.ideas for claim in desk.state.accepted.values())
    recheck(desk, 2.0)
    assert [demotion.undone for demotion in demotions(desk)] == [(1,)]
    going_on = [*desk.state.accepted.values(), *desk.state.open_claims.values()]
    assert going_on and all(claim.experiment in desk.state.experiments for claim in going_on), "ideas, and no set"
    desk.silent.clear()
    desk.confirm({candidate_id(B1): 1.5, candidate_id(c1): 1.6, candidate_id(edited(B1, C=1)): 1.1})
    assert desk.state.files[desk.state.champion] == edited(B1, C=1)
    assert not desk.state.accepted and desk.replayed().state == desk.state


def test_a_claim_against_the_fallen_champion_goes_on_against_the_restored_one() -> None:
    desk = study("cat", "dog", "eel")
    promote(desk, A1)
    idea = proposal(edited(A1, C=1), A1)
    desk.claim("bee", idea, A1)
    scores = {candidate_id(edited(A1, C=1)): 1.5, candidate_id(edited(BASELINE, C=1)): 1.5}
    desk.run(desk.outstanding("confirm")[0], scores)
    assert any(claim.pairs for claim in desk.state.open_claims.values())
    recheck(desk, 2.0)
    assert desk.state.champion == BASE and desk.state.open_claims
    desk.confirm(scores)
    assert desk.state.champion == candidate_id(edited(BASELINE, C=1))


def test_a_promotion_that_could_land_before_the_comparison_was_over_lands_first_and_falls_with_it() -> None:
    desk = study()
    promote(desk, A1)
    desk.mind.postpone_promotion(desk.now + 100)  # the forge is away
    idea = proposal(BOTH, A1)
    desk.claim("bee", idea, A1)
    desk.confirm({candidate_id(BOTH): 1.5, candidate_id(A1): 2.0})
    assert desk.state.accepted and len(desk.state.promotions) == 1
    recheck(desk, 2.0)
    assert not demotions(desk)
    desk.now += 100
    desk.think()
    (demotion,) = demotions(desk)
    assert demotion.undone == (1, 2), "it may have landed already when a coordinator was killed"


def test_a_restart_asks_for_the_same_demotion() -> None:
    desk = study()
    promote(desk, A1)
    desk.mind.postpone_promotion(desk.now + 100)
    recheck(desk, 2.0)
    desk.now += 100
    asked = [a for a in desk.mind.decide(desk.now) if isinstance(a, Demote)]
    again = [a for a in desk.replayed().decide(desk.now) if isinstance(a, Demote)]
    assert asked == again and len(asked) == 1


def test_the_base_rate_of_good_ideas_forgets_what_was_undone() -> None:
    desk = study()
    before = desk.state.campaign.promotions
    promote(desk, A1)
    recheck(desk, 2.0)
    assert desk.state.campaign.promotions == pytest.approx(before)


def test_a_simplification_may_have_cost_its_margin() -> None:
    noise, rule = Noise(24.0, 24, 1e-9), rule_for("standard")
    gain = Promotion(1, "a", "b", "c", "sha", "#1", 0.0)
    lost = [-0.4, 0.3, -0.6, 0.5, -0.3, -0.2, 0.4, -0.5, 0.2, -0.4] * 2
    assert no_gain(answer(lost, [gain], noise, rule))
    assert not no_gain(answer(lost, [replace(gain, claim_kind="simplification")], noise, rule))
    assert no_gain(answer([x - 1.0 for x in lost], [replace(gain, claim_kind="simplification")], noise, rule))


def test_a_tree_is_champion_once_and_only_a_demotion_brings_it_back() -> None:
    desk = Desk({"decision": {"calibration_pairs": 2, "recheck_every": 0, "sham_share": 0.0}})
    desk.calibrate("ant", "bee", "cat", "dog")
    waits = proposal(B1)
    desk.claim("ant", proposal(A1))
    desk.claim("bee", waits)
    both = proposal(edited(A1, B=1), hypothesis="A and B at once")
    desk.admit("cat", both)
    scores = {candidate_id(A1): 1.5, candidate_id(B1): 1.6, candidate_id(BOTH): 1.2}
    while not desk.of(Carried):
        desk.run(desk.outstanding("confirm")[0], scores)
    back = proposal(BASELINE, A1, "Take A back")
    desk.report(desk.heard("uid-dog", proposals=(back,)))
    assert [answer.admitted for answer in desk.orders("dog").admissions] == [False]
    desk.confirm({**scores, candidate_id(A1): 2.0, BASE: 1.0})
    assert desk.state.champion == candidate_id(BOTH)
    promote(desk, edited(BOTH, C=1))
    desk.report(desk.heard("uid-cat", facts=(desk.kept("cat", both), desk.claims("cat", both, edited(BOTH, C=1)))))
    assert desk.state.answers["uid-cat"][both.idea].startswith("rejected: it was the champion before")
    assert not desk.state.open_claims and not desk.state.accepted and desk.replayed().state == desk.state


def test_an_idea_that_fell_twice_is_closed() -> None:
    desk = study()
    idea = promote(desk, A1).experiment
    recheck(desk, 2.0)
    desk.confirm({candidate_id(A1): 1.5})
    recheck(desk, 2.0)
    assert len(demotions(desk)) == 2 and not desk.state.open_claims and not desk.state.undone
    assert desk.state.experiments[idea].status == "rejected"
    assert "promoted twice" in desk.state.answers["uid-ant"][idea]
    assert desk.replayed().state == desk.state


def test_what_was_undone_is_not_checked_at_the_larger_scale_any_more() -> None:
    desk = Desk(EVERY, scale=Scale("tokens", 2))
    desk.calibrate("ant")
    desk.claim("ant", proposal(A1))
    while not desk.state.promotions:
        desk.run(desk.outstanding("confirm")[0], {candidate_id(A1): 1.5})
    recheck(desk, 2.0)
    assert demotions(desk)
    desk.confirm({})
    assert not desk.outstanding("transfer")


def test_promotions_that_were_undone_do_not_stop_a_study() -> None:
    desk = Desk({**EVERY, "stop": {"promotions": 2}})
    desk.calibrate("ant", "bee")
    promote(desk, A1)
    recheck(desk, 2.0)
    desk.confirm({candidate_id(A1): 1.5})
    assert len(desk.state.promotions) == 2 and not desk.mind.stop_reason(desk.now)


def test_a_demotion_that_a_person_stopped_does_not_keep_a_stopped_study() -> None:
    desk = Desk({**EVERY, "caps": {"dollars": 1.0}, "stop": {"wall_minutes": 600, "final_minutes": 10}})
    desk.calibrate("ant", "bee")
    promote(desk, A1)
    desk.mind.postpone_promotion(desk.now + 10**9)
    recheck(desk, 2.0)
    desk.report(desk.heard("uid-ant", facts=(Spent("uid-ant", 1, Usage(0, 0, 2.0), desk.now),)))
    desk.now += 590
    desk.report(desk.heard("uid-ant"), desk.heard("uid-bee"))
    assert desk.mind.stop_reason(desk.now) and not desk.outstanding("final")
    desk.now += 11
    desk.report(desk.heard("uid-ant"), desk.heard("uid-bee"))
    assert desk.outstanding("final") and not demotions(desk)


# --- how often -------------------------------------------------------------------------------------------


def test_honest_champions_stay_and_worthless_ones_fall() -> None:
    """The rates of docs/believing.md, within three standard errors: 1.1 % and 92 % of 2000."""
    honest = fallen_share(promoted(500, seed=luck.seed(11)), seed=luck.seed(12))
    assert honest <= 0.011 + 3 * (0.011 * 0.989 / 500) ** 0.5
    worthless = fallen_share([0.0] * 300, seed=luck.seed(13))
    assert worthless >= 0.92 - 3 * (0.92 * 0.08 / 300) ** 0.5


# --- a whole study ---------------------------------------------------------------------------------------


def planted(swarm: Swarm, tick: int) -> None:
    """Once the lucky idea has been promoted, its luck is over."""
    if tick % 5 == 0 and any(isinstance(fact, Promotion) for fact in swarm.facts()):
        swarm.world.seen_through.add("LUCKY")


def lucky_study(folder: Path) -> Swarm:
    """LUCKY reproduces until it has landed; GOOD lands on top of it, from a node that thinks of nothing else."""
    world = World({"LUCKY": 0.0, "GOOD": 0.08}, lucky={"LUCKY": 0.05}, ideas={"n0": ("LUCKY",), "n1": ("GOOD",)})
    decision = {"recheck_every": 1, "final_seeds": 3, "sham_share": 0.0}
    settings = {"decision": decision, "stop": {"wall_minutes": 60, "final_minutes": 5}}
    return Swarm(folder, world, nodes=2, settings=settings, faults=planted)


def check(swarm: Swarm) -> None:
    """LUCKY has fallen, GOOD is the champion."""
    told = history(swarm.facts())
    (demotion,) = told.demotions
    assert told.line and "GOOD = True" in told.files[told.champion]["train.py"]
    assert "LUCKY = False" in told.files[told.champion]["train.py"]
    status = {e.hypothesis: e.status for e in told.experiments}
    assert status["Switch LUCKY on"] == "rejected"
    page, report = leaderboard_md(told), report_md(told)
    assert "## Demoted" in page and "back to the baseline" in page and "not confirmed again" in page
    assert demotion.undone[0] == 1 and "back to the baseline: undone promotion 1 (not confirmed again)" in report
    assert told.finished is not None and told.finished.low is not None and told.finished.low > 0


def test_a_planted_champion_falls_and_what_truly_helped_on_top_of_it_lands_again(tmp_path: Path) -> None:
    swarm = lucky_study(tmp_path)
    swarm.run()
    check(swarm)
    told = history(swarm.facts())
    assert told.demotions[0].undone == (1, 2) and [p.number for p in told.line] == [3]
    shared = Repo(tmp_path / "toy-1" / "repo.git")
    head = shared.ref(SHARED_BRANCH)
    assert head is not None
    landed = [fact.commit for fact in told.promotions] + [fact.commit for fact in told.demotions]
    assert all(shared.is_ancestor(commit, head) for commit in landed), "nothing is taken out of the history"
    fallen_tree = shared.tree(told.demotions[0].commit)
    assert fallen_tree["train.py"].decode() == swarm.world.source()
    assert "records/toy-1/demotion-1.json" in fallen_tree


def test_a_demotion_that_a_person_closed_leaves_the_champion_where_it_is(tmp_path: Path) -> None:
    swarm = lucky_study(tmp_path)
    swarm.forge.unwanted = lambda request: request.title.startswith("[demotion]")
    swarm.run()
    told = history(swarm.facts())
    assert told.demotions_vetoed and not told.demotions
    assert "LUCKY = True" in told.files[told.champion]["train.py"]
    assert "it stays: local#" in report_md(told)
    assert told.finished is not None and "wall time" in told.finished.reason
    assert told.last_at - told.demotions_vetoed[-1].at > 60, "and the study went on"


class Deadly(MoodyForge):
    """Kills the coordinator right after the demotion has landed."""

    armed = True

    def merge(self, repo: Path, request: Request) -> str:
        landed = super().merge(repo, request)
        if self.armed and "demotion" in request.branch:
            self.armed = False
            raise Killed
        return landed


def test_killed_between_the_landing_and_the_ledger_it_is_the_same_demotion(tmp_path: Path) -> None:
    swarm = lucky_study(tmp_path)
    swarm.forge = Deadly(tmp_path / "toy-1" / "repo.git", clock=swarm.world.clock)
    with pytest.raises(Killed):
        swarm.run()
    assert not history(swarm.facts()).demotions
    swarm.run()
    check(swarm)


def test_whoever_is_killed_whenever_the_same_promotions_fall_and_stand(tmp_path: Path) -> None:
    random = Random(20264)

    def faults(swarm: Swarm, tick: int) -> None:
        planted(swarm, tick)
        swarm.forge.away = swarm.forge.away != (random.random() < 0.05)
        if random.random() < 0.01:
            swarm.cluster.kill_agent(random.choice(sorted(swarm.cluster.by_id)))
        if random.random() < 0.02:
            raise Killed

    swarm, kills = replace(lucky_study(tmp_path / "first"), folder=tmp_path / "second", faults=faults), 0
    while not any(isinstance(fact, StudyFinished) for fact in (swarm.facts() if kills else ())):
        with suppress(Killed):
            swarm.run()
        kills += 1
    told = history(swarm.facts())
    assert kills > 20 and [demotion.undone for demotion in told.demotions] == [(1, 2)]
    assert [promotion.number for promotion in told.line] == [3]
    assert "GOOD = True" in told.files[told.champion]["train.py"]
