"""Several accepted ideas wait for one champion: they are joined, measured together and landed as one promotion."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from itertools import combinations
from random import Random

import pytest
from desk import BASELINE, CRASH, OTHER_PLATFORM, Desk, edited, info, measured, proposal, seeded, trial_of
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from coordinator.state import Transfer
from swarm.cli.view import LiveView
from swarm.records import (
    BlockDrawn,
    Carried,
    Demotion,
    Fact,
    Files,
    HoldoutAnswered,
    Interaction,
    NodeLost,
    Outcome,
    Promotion,
    Proposal,
    Report,
    Spent,
    Stacked,
    StudyFinished,
    Usage,
    Verdict,
    candidate_id,
)
from swarm.scale import Scale

NAMES = ("A", "B", "C", "D")
GAINS = {"A": 0.5, "B": 0.4, "C": 0.3, "D": 0.2}
IDEAS = {name: proposal(edited(BASELINE, **{name: 1}), hypothesis=f"Raise {name}") for name in NAMES}


@dataclass
class Truth:
    """What every tree is worth: gains of the constants that are raised, and of pairs of them."""

    gains: Mapping[str, float]
    pairs: Mapping[str, float] = field(default_factory=dict)
    crash: frozenset[str] = frozenset()  # raised together, these crash
    twice: Mapping[str, float] = field(default_factory=dict)  # of those raised to 2

    def __call__(self, files: Files) -> float | Outcome:
        on = {name for name in NAMES if f"{name} = 1" in files["train.py"]}
        if self.crash and self.crash <= on:
            return CRASH
        gain = sum(self.gains[name] for name in on)
        gain += sum(more for name, more in self.twice.items() if f"{name} = 2" in files["train.py"])
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


def joined(truth: Truth | None = None, **settings: object) -> tuple[Desk, Truth]:
    """One idea has landed, and the others have just been joined; no run of their set has begun."""
    desk, truth = Desk(settings), truth or Truth(GAINS)
    waiting(desk)
    while not desk.of(Stacked):
        block = desk.outstanding("confirm")[0]
        desk.run(block, {c: truth(desk.state.files[c]) for c in block.candidates})
    return desk, truth


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
    assert not desk.of(Carried) and len(desk.of(Stacked)) == 3
    told = interactions(desk)[rest]
    assert told.gain == pytest.approx(sum(GAINS[n] for n in rest), abs=0.02) and told.pairs == 2
    assert all(f"{name} = 1" in desk.state.files[desk.state.champion]["train.py"] for name in NAMES)
    champion = promotions(desk)[0].candidate
    blocks = [f for f, _ in desk.facts if isinstance(f, BlockDrawn) and f.reference == champion]
    sets = [len(block.experiments) for block in blocks]
    assert sets == [3, 3, 1], "all, and each of two left out, on the same two runs of the champion; then what lands"


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
    assert not named_sets(desk) & set().union(*desk.state.answers.values()), "a set is nobody's claim"


def test_of_two_rivals_the_larger_goes_first_though_the_other_is_older() -> None:
    gains = {"A": 0.5, "B": 0.3, "C": 0.45, "D": 0.2}
    desk = settled(Truth(gains, pairs={"BC": -0.75}), {name: IDEAS[name] for name in "ABC"})
    assert landed(desk) == ["A", "C"]
    assert last_verdict(desk, "B").base == promotions(desk)[-1].candidate and not last_verdict(desk, "B").accepted


@pytest.mark.parametrize(("pairs", "kept"), [({}, 2), ({"AB": -0.8}, 1)], ids=["both land", "rivals"])
def test_an_idea_that_was_carried_is_one_confirmation(pairs: Mapping[str, float], kept: int) -> None:
    desk = settled(Truth(GAINS, pairs), {name: IDEAS[name] for name in "AB"})
    assert desk.of(Carried) and len(promotions(desk)) == kept
    assert desk.state.campaign.confirmations == pytest.approx(2, abs=0.02)
    assert desk.state.campaign.promotions == pytest.approx(kept, abs=0.02)


def test_ideas_that_changed_the_same_line_drop_out_with_both_sides_named() -> None:
    clash = {**IDEAS, "D": proposal(edited(BASELINE, B=2), hypothesis="Raise B more")}
    truth = Truth(GAINS, twice={"B": 0.35})
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


def test_a_simplification_is_judged_by_itself() -> None:
    desk, truth = Desk(), Truth(GAINS)
    waiting(desk, {name: IDEAS[name] for name in "ABC"})
    short = {"train.py": BASELINE["train.py"].replace("D = 0\n", "")}
    desk.claim("nD", proposal(short), kind="simplification")
    finish(desk, truth)
    assert [len(fact.ideas) for fact in desk.of(Stacked) if isinstance(fact, Stacked)] == [2]
    assert [(len(p.ideas), p.claim_kind) for p in promotions(desk)] == [(0, "gain"), (2, "gain"), (0, "simplification")]


def test_a_set_that_does_harm_is_told_as_it_was_measured() -> None:
    desk = settled(Truth(GAINS, pairs={"CD": -1.5}))
    assert landed(desk)[:2] == ["A", "BC"]
    told = interactions(desk)["BCD"]
    assert told.gain == pytest.approx(0.9 - 1.5, abs=0.02) and told.pairs == 2


def test_the_next_champion_has_a_batch_of_its_own() -> None:
    more = {name: gain + 0.4 for name, gain in GAINS.items()}
    desk, truth = settled(Truth(GAINS, twice=more)), Truth(GAINS, twice=more)
    champion = desk.state.files[desk.state.champion]
    for name in NAMES:
        desk.claim(f"n{name}", proposal(edited(champion, **{name: 2}), parent=champion), base=champion)
    finish(desk, truth)
    assert [len(promotion.ideas) for promotion in promotions(desk)] == [0, 3, 0, 3]
    assert all(f"{name} = 2" in desk.state.files[desk.state.champion]["train.py"] for name in NAMES)


def test_a_set_that_fails_on_the_holdout_is_taken_apart() -> None:
    desk = Desk()
    tree = edited(BASELINE, A=1, B=1, C=1, D=1)
    desk.holdout[candidate_id(tree)] = 2.0
    waiting(desk)
    finish(desk, Truth(GAINS))
    assert all(not promotion.ideas or len(promotion.ideas) < 3 for promotion in promotions(desk))
    assert {"A", "B"} <= set("".join(landed(desk)))


def test_nothing_else_lands_while_a_set_is_measured() -> None:
    desk, truth = joined()
    stacked = next(fact for fact in desk.of(Stacked) if isinstance(fact, Stacked))
    champion = desk.state.files[stacked.onto]
    fresh = proposal(edited(champion, D=2), parent=champion)
    desk.claim("nA", fresh, base=champion)
    scores = {c: truth(files) for c, files in desk.state.files.items()} | {candidate_id(fresh.files): 1.0}
    while (fresh.idea, stacked.onto) not in desk.state.accepted:
        block = next(b for b in desk.outstanding("confirm") if fresh.idea in b.experiments)
        desk.run(block, scores)
    rests = {pair.candidate_trial for pair in desk.state.accepted[(fresh.idea, stacked.onto)].pairs}
    asked = {trial for name in NAMES for trial in desk.orders(f"n{name}").holdout}
    answered = {trial for seen in desk.mind.presence.values() for trial in seen.report.holdout}
    assert not rests & (asked | answered), "the holdout is not asked about what may never land"
    finish(desk, truth)
    after = [promotion for promotion in promotions(desk) if promotion.base == stacked.onto]
    assert [promotion.experiment for promotion in after] == [stacked.experiment]


def test_an_idea_that_its_author_carries_over_while_it_waits_is_not_measured_twice() -> None:
    desk, _ = joined()
    champion = desk.state.files[desk.state.champion]
    again = proposal(edited(champion, B=1, C=0, D=0), parent=champion)
    desk.claim("nB", again, base=champion)
    assert "experiment 2 comes to the same tree" in desk.state.answers["uid-nB"][again.idea]
    (told,) = (f for f, _ in desk.facts if isinstance(f, Verdict) and f.experiment == again.idea)
    assert not told.accepted and not told.pairs
    assert all(claim.ideas for claim in desk.state.open_claims.values())


def test_the_live_view_names_the_experiments_of_a_set() -> None:
    desk, truth = joined()
    assert "experiments 2, 3, 4 together" in shown(desk)
    finish(desk, truth)
    assert "champion: experiments 2, 3, 4 together" in shown(desk)


def shown(desk: Desk) -> str:
    paper = StringIO()
    with LiveView(Console(file=paper, width=120, force_terminal=True)) as view:
        view.facts(fact for fact, _ in desk.facts)
        view.tick(desk.mind, desk.now)
    return paper.getvalue()


# --- whatever goes wrong, its ideas go on one by one -----------------------------------------------------


def test_sets_whose_blocks_are_all_lost_give_way_to_their_ideas() -> None:
    desk, truth = joined()
    while any(claim.ideas for claim in desk.state.open_claims.values()):
        block = next(b for b in desk.outstanding("confirm") if set(b.experiments) & named_sets(desk))
        desk.report(desk.heard(block.node, holding=(block.block,)))
        desk.report(desk.heard(block.node))  # its machine was killed by it
        assert len(desk.of(BlockDrawn)) < 300
    finish(desk, truth)
    assert sorted("".join(landed(desk))) == sorted(NAMES) and not any(p.ideas for p in promotions(desk)[:2])


def named_sets(desk: Desk) -> set[str]:
    return {fact.experiment for fact in desk.of(Stacked) if isinstance(fact, Stacked)}


@pytest.mark.parametrize("unready", [False, True], ids=["silent", "there, but never ready"])
def test_a_platform_that_lost_its_nodes_holds_up_nobody_else(unready: bool) -> None:
    desk, truth = joined()
    desk.now += desk.config.nodes.lost_after_s + 1
    elsewhere = Report(node=info("far", OTHER_PLATFORM), brief="")
    still = [desk.heard(f"uid-n{name}", ready=False) for name in NAMES] if unready else []
    desk.report(*still, elsewhere)
    assert bool(desk.of(NodeLost)) != unready and desk.state.open_claims
    while blocks := desk.outstanding("calibrate"):
        far_away(desk, blocks[0], {})
    champion = desk.state.files[desk.state.champion]
    idea = proposal(edited(champion, D=5), parent=champion)
    desk.claim("far", idea, base=champion)
    while blocks := [b for b in desk.outstanding("confirm") if b.node == "uid-far"]:
        far_away(desk, blocks[0], {candidate_id(idea.files): 1.0})
    assert promotions(desk)[-1].experiment == idea.idea
    desk.now += 1
    desk.report(*(desk.heard(f"uid-n{name}") for name in NAMES))  # they are back
    finish(desk, truth)
    assert {"A", "B", "C"} <= set("".join(landed(desk))) and not desk.state.open_claims and not desk.state.accepted


def far_away(desk: Desk, block: BlockDrawn, scores: Mapping[str, float]) -> None:
    outcomes = [measured(scores.get(candidate, 2.0)) for candidate in block.candidates]
    desk.vault.setdefault(block.node, {}).update(zip(block.trials, outcomes, strict=True))
    facts = tuple(trial_of(block, i, outcome, desk.now, OTHER_PLATFORM) for i, outcome in enumerate(outcomes))
    desk.report(desk.heard(block.node, facts=facts, holding=(block.block,)), desk.heard(block.node))
    desk.report(desk.heard(block.node))


def test_a_study_that_stops_while_a_set_is_measured_ends() -> None:
    desk, truth = joined(stop={"wall_minutes": 60, "final_minutes": 10})
    desk.now += 51 * 60
    desk.report(*(desk.heard(f"uid-n{name}") for name in NAMES))
    while blocks := desk.outstanding():
        desk.run(blocks[0], {c: truth(desk.state.files[c]) for c in blocks[0].candidates})
    desk.report(*(desk.heard(f"uid-n{name}", drained=True) for name in NAMES))
    (finished,) = desk.of(StudyFinished)
    assert isinstance(finished, StudyFinished) and finished.champion == desk.state.champion and finished.pairs >= 2


def test_a_study_that_stops_while_a_set_awaits_its_check_lands_what_needs_none_any_more() -> None:
    decision = {"calibration_pairs": 2, "transfer_required": True, "transfer_seeds": 1, "sham_share": 0.0}
    desk, truth = Desk({"decision": decision, "caps": {"dollars": 1.0}}, scale=Scale("tokens", 2)), Truth(GAINS)
    waiting(desk)
    while not desk.of(Stacked):
        desk.run(desk.outstanding()[0], {c: truth(files) for c, files in desk.state.files.items()})
    champion = desk.state.champion
    fresh = proposal(edited(desk.state.files[champion], D=2), desk.state.files[champion])
    desk.claim("nA", fresh, base=desk.state.files[champion])
    scores = {c: truth(files) for c, files in desk.state.files.items()} | {candidate_id(fresh.files): 0.5}
    while not desk.state.transfers.get((fresh.idea, champion), Transfer()).checked:
        mine = [block for block in desk.outstanding() if fresh.idea in block.experiments]
        desk.run((mine or desk.outstanding("confirm"))[0], scores)
    while blocks := desk.outstanding("confirm"):
        desk.run(blocks[0], scores)
    assert [bool(claim.ideas) for claim in desk.state.in_turn()][:2] == [True, False]
    desk.report(desk.heard("uid-nA", facts=(Spent("uid-nA", 1, Usage(0, 0, 2.0), desk.now),)))
    desk.report(*map(desk.heard, desk.vault))
    assert promotions(desk)[-1].experiment == fresh.idea


def test_a_forge_that_is_away_when_a_set_would_land_gets_it_later() -> None:
    desk, truth = joined()
    desk.mind.postpone_promotion(desk.now + 100)
    finish(desk, truth)
    assert len(promotions(desk)) == 1 and not desk.of(Carried)
    desk.now += 101
    desk.report(desk.heard("uid-nA"))
    assert len(promotions(desk)) == 2 and len(promotions(desk)[-1].ideas) == 3


def test_a_set_whose_champion_moved_before_it_landed_is_forgotten() -> None:
    desk, truth = joined()
    desk.mind.postpone_promotion(desk.now + 100)
    finish(desk, truth)
    stacked, best = promotions(desk)[0], edited(desk.state.files[desk.state.champion], A=2)
    desk.commit([Carried(stacked.experiment, candidate_id(best), desk.state.champion, best, desk.now)])
    desk.commit([Promotion(2, stacked.experiment, candidate_id(best), desk.state.champion, "sha", "by hand", desk.now)])
    assert not any(claim.ideas for claim in desk.state.accepted.values())
    desk.now += 101
    desk.report(desk.heard("uid-nA"))
    finish(desk, truth)
    assert not desk.state.open_claims and not desk.state.accepted and landed(desk)[-1] == "BCD"
    again = Counter(fact.ideas for fact, _ in desk.facts if isinstance(fact, Interaction))
    assert set(again.values()) == {2}, "measured anew, on the champion that it lands on"


def test_a_set_whose_champion_stepped_down_is_forgotten_and_every_idea_still_gets_its_end() -> None:
    desk, truth = joined()
    desk.mind.postpone_promotion(desk.now + 100)
    finish(desk, truth)
    assert any(claim.ideas for claim in desk.state.accepted.values())
    fallen, baseline = desk.state.champion, candidate_id(BASELINE)
    desk.commit([Demotion(1, 1, fallen, baseline, (1,), "sha", "by hand", desk.now)])
    assert desk.state.champion == baseline and not any(claim.ideas for claim in desk.state.accepted.values())
    desk.now += 101
    desk.report(desk.heard("uid-nA"))
    finish(desk, truth)
    assert not desk.state.open_claims and not desk.state.accepted
    assert all(f"{name} = 1" in desk.state.files[desk.state.champion]["train.py"] for name in NAMES)
    assert desk.replayed().state == desk.state


# --- a function of the ledger ----------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_order_of_arrival_duplicates_losses_and_restarts_change_nothing_that_is_believed(seed: int) -> None:
    random, desk, truth = Random(seed), Desk(), Truth(GAINS, pairs={"BC": -0.7})
    waiting(desk)
    told: list[Fact] = []
    while blocks := desk.outstanding("confirm"):
        block, verdicts = random.choice(blocks), [fact for fact, _ in desk.facts if isinstance(fact, Verdict)]
        if random.random() < 0.1:
            desk.mind.gone(block.node)
            desk.report(desk.heard(block.node))
            continue
        if random.random() < 0.3:
            again = desk.replayed()
            assert again.state == desk.state, "it is a function of the ledger"
            again.presence = desk.mind.presence
            desk.mind = again
        told += arrive(desk, block, truth, random)
        desk.commit(random.sample(told, min(5, len(told))))  # what arrives twice
        assert [fact for fact, _ in desk.facts if isinstance(fact, Verdict)][: len(verdicts)] == verdicts
    assert desk.replayed().state == desk.state
    assert not desk.state.open_claims and not desk.state.accepted
    champion = desk.state.files[desk.state.champion]["train.py"]
    assert {name for name in NAMES if f"{name} = 1" in champion} in ({"A", "B", "D"}, {"A", "C", "D"})


def arrive(desk: Desk, block: BlockDrawn, truth: Truth, random: Random) -> list[Fact]:
    """The trials of a block, one report each, in any order."""
    places, finished = list(range(len(block.trials))), []
    random.shuffle(places)
    for number, place in enumerate(places):
        outcome = seeded(block, place, truth(desk.state.files[block.candidates[place]]))
        desk.vault.setdefault(block.node, {})[block.trials[place]] = outcome
        finished.append(trial_of(block, place, outcome, desk.now))
        held = (block.block,) if number + 1 < len(places) else ()
        desk.report(desk.heard(block.node, facts=(finished[-1],), holding=held))
    desk.report(*map(desk.heard, desk.vault))
    return [*finished]


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
