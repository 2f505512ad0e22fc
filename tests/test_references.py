"""The panel in the mind: which runs of the champion make it, which Claims it weighs, and what a Block then holds."""

from collections import Counter

import pytest
from desk import BASELINE, CRASH, PLATFORM, Desk, edited, measured, proposal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_mind import Interleaving

from coordinator.mixed import Run
from coordinator.panel import CLAIMS_PER_CHECK, FRESH_RUNS
from coordinator.references import References
from coordinator.state import ClaimKey
from swarm.records import BlockDrawn, PanelSwitched, Proposal, Verdict, candidate_id

A1, B1 = edited(BASELINE, A=1), edited(BASELINE, B=1)
GOOD, FINE = proposal(A1), proposal(B1)
BETTER: dict[str, float] = {candidate_id(A1): 1.5, candidate_id(B1): 1.5, candidate_id(edited(A1, B=1)): 1.0}
NODES = ("ant", "bee", "cat", "dog")


def ready(*, paced: bool = False, **settings: object) -> Desk:
    desk = Desk(settings, paced=paced)
    desk.calibrate(*NODES)
    for number in (101, 102):
        undecided(desk, proposal(edited(BASELINE, D=number)))
    return desk


def undecided(desk: Desk, idea: Proposal) -> None:
    """A claim that takes as many pairs as it may, which tells a panel of the noise."""
    desk.claim("ant", idea)
    (claim,) = desk.state.open_claims.values()
    while claim.verdict is None:
        gain = claim.noise.sd * (0.7 + 0.6 * (-1) ** len(claim.pairs))
        scores = {claim.candidate: measured(2.0 - gain), claim.base: measured(2.0)}
        desk.run(desk.outstanding("confirm")[0], scores)


def switch(desk: Desk, *, on: bool = True) -> None:
    """As if the checks had held, or failed."""
    number = len(panel(desk).switches) + 1
    desk.commit([PanelSwitched(PLATFORM.id, number, on, 40, "a test says so", desk.now)])
    desk.think()


def panel(desk: Desk) -> References:
    return desk.state.references[PLATFORM.id]


def on_panel() -> Desk:
    """The panel is on, and the runs that it needs are there."""
    desk = ready()
    switch(desk)
    run_panel(desk)
    return desk


def run_panel(desk: Desk) -> None:
    while blocks := desk.outstanding("calibrate"):
        desk.run(blocks[0], BETTER)


def drawn(desk: Desk, purpose: str) -> list[BlockDrawn]:
    return [fact for fact in desk.of(BlockDrawn) if isinstance(fact, BlockDrawn) and fact.purpose == purpose]


def confirming(desk: Desk) -> list[BlockDrawn]:
    return [block for block in drawn(desk, "confirm") if GOOD.idea in block.experiments]


def verdict_on(desk: Desk, idea: Proposal) -> Verdict:
    return next(f for f in desk.of(Verdict) if isinstance(f, Verdict) and f.experiment == idea.idea)


def test_what_a_panel_needs_is_bought_once_and_on_all_nodes() -> None:
    desk = ready()
    before, earlier = len(panel(desk).runs), len(drawn(desk, "calibrate"))
    switch(desk)
    run_panel(desk)
    bought = drawn(desk, "calibrate")[earlier:]
    assert [len(set(block.seeds)) for block in bought] == [2] * (FRESH_RUNS // 2)
    assert {block.node for block in bought} == {f"uid-{name}" for name in NODES}
    assert len(panel(desk).runs) == before + FRESH_RUNS


def test_a_claim_on_the_panel_runs_alone_where_the_champion_ran_and_is_promoted() -> None:
    desk = on_panel()
    champion_runs = {(run.node, run.seed) for run in panel(desk).runs}
    held = len(champion_runs)
    desk.claim("ant", GOOD)
    desk.confirm(BETTER)
    blocks = confirming(desk)
    assert [block.candidates for block in blocks] == [(candidate_id(A1),)] * len(blocks)
    assert {(block.node, block.seeds[0]) for block in blocks} <= champion_runs
    assert max(Counter(block.seeds for block in blocks).values()) == 1, "each seed is fresh to it"
    assert len({block.node for block in blocks}) >= 3
    told = verdict_on(desk, GOOD)
    assert told.accepted and told.panel == held and f"holds {held} runs of the champion" in told.reason
    assert desk.state.champion == candidate_id(A1), "its Pairs could be asked about on the holdout"
    champions = desk.state.blocks
    runs = [champions[desk.state.block_of[trial]].finished[trial] for trial in told.evidence]
    assert [run.candidate for run in runs[::2]] == [candidate_id(BASELINE)] * told.pairs
    assert all((a.node, a.seed) == (b.node, b.seed) for a, b in zip(runs[::2], runs[1::2], strict=True))


def test_nodes_are_told_what_the_champion_will_score_once_its_runs_are_there() -> None:
    desk = ready()
    brief = desk.orders("ant").brief
    assert brief is not None and (brief.foretold, brief.own_weight) == (None, 1.0)
    switch(desk)
    run_panel(desk)
    told = desk.orders("ant").brief
    assert told is not None and told.foretold is not None and told.version != brief.version
    scores = [-run.score for run in panel(desk).runs]
    assert min(scores) < told.foretold < max(scores) and 0.0 <= told.own_weight < 0.5
    assert told.noise == panel(desk).noise.sd, "s of pairs alone"
    switch(desk, on=False)
    silent = desk.orders("ant").brief
    assert silent is not None and (silent.foretold, silent.noise) == (None, brief.noise)


def test_a_claim_that_gains_nothing_is_rejected_on_the_panel() -> None:
    desk = on_panel()
    desk.claim("ant", GOOD)
    desk.confirm({})
    assert not verdict_on(desk, GOOD).accepted and verdict_on(desk, GOOD).panel
    assert sum(len(block.trials) for block in confirming(desk)) == verdict_on(desk, GOOD).pairs


def test_without_the_switch_every_block_holds_the_champion() -> None:
    desk = ready()
    desk.claim("ant", GOOD)
    desk.confirm({})
    assert all(block.reference in block.candidates and not block.reference_trial for block in confirming(desk))
    assert verdict_on(desk, GOOD).panel == 0


def test_how_a_claim_is_weighed_is_settled_with_its_first_block() -> None:
    desk = ready()
    desk.claim("ant", GOOD)
    (key,) = desk.state.open_claims
    switch(desk)
    run_panel(desk)
    desk.confirm({})
    assert not desk.state.claims[key].against, "its first block was drawn before"
    desk.claim("bee", FINE)
    (key,) = desk.state.open_claims
    against = desk.state.claims[key].against
    switch(desk, on=False)
    desk.confirm(BETTER)
    assert against and verdict_on(desk, FINE).panel == against


def test_a_new_champion_has_a_new_panel_in_which_none_of_its_own_runs_as_a_candidate_counts() -> None:
    desk = on_panel()
    desk.claim("ant", GOOD)
    while desk.state.champion == candidate_id(BASELINE):
        desk.run(desk.outstanding("confirm")[0], BETTER)
    assert not panel(desk).runs and not panel(desk).cells
    run_panel(desk)
    assert {run.script for run in panel(desk).runs} == {candidate_id(A1)}
    assert len(panel(desk).runs) == FRESH_RUNS
    desk.claim("bee", proposal(edited(A1, B=1), A1), A1)
    desk.confirm(BETTER, 1.5)
    assert desk.state.champion == candidate_id(edited(A1, B=1))
    assert verdict_on(desk, proposal(edited(A1, B=1), A1)).panel == FRESH_RUNS


def test_a_seed_whose_block_was_lost_is_not_given_to_the_claim_again() -> None:
    desk = on_panel()
    desk.claim("ant", GOOD)
    lost = desk.outstanding("confirm")[0]
    desk.report(desk.heard(lost.node, holding=(lost.block,)))
    desk.report(desk.heard(lost.node))
    assert [fact.block for fact in desk.lost()] == [lost.block]
    desk.confirm({}, 2.01)
    assert sum(block.seeds == lost.seeds for block in confirming(desk)) == 1


def test_a_claim_that_has_used_up_the_champions_runs_gets_one_of_its_own() -> None:
    desk = on_panel()
    desk.claim("ant", GOOD)
    (claim,) = desk.state.open_claims.values()
    assert claim.weighing is not None
    elsewhere = [cell for cell in claim.weighing.cells if cell.node != "uid-ant"]
    while len(confirming(desk)) <= len(elsewhere):  # half of what is tested for: the evidence stays at 1:1
        block = desk.outstanding("confirm")[0]
        foretold, _ = claim.weighing.panel.expected([Run("", block.node, block.seeds[0], 0.0)])
        desk.run(block, {candidate_id(A1): measured(-float(foretold[0]) - 0.7 * claim.noise.sd)})
    assert [bool(block.reference_trial) for block in confirming(desk)] == [True] * len(elsewhere) + [False]


def test_claims_share_the_champions_runs_evenly() -> None:
    desk = on_panel()
    for number in range(1, 12):
        idea = proposal(edited(BASELINE, D=number))
        desk.claim("ant", idea)
        desk.confirm({}, 2.3)
        run_panel(desk)
    uses = Counter(block.reference_trial for block in drawn(desk, "confirm") if block.reference_trial)
    assert sum(uses.values()) >= 11 and max(uses.values()) <= 2


def test_every_few_claims_the_champion_is_looked_at_again() -> None:
    desk = on_panel()
    runs = len(panel(desk).runs)
    for number in range(1, CLAIMS_PER_CHECK + 1):
        desk.claim("ant", proposal(edited(BASELINE, D=number)))
        desk.confirm({}, 2.3)
    assert len(desk.outstanding("calibrate")) == 1
    run_panel(desk)
    assert len(panel(desk).runs) == runs + 1


def test_a_champion_that_only_crashes_is_not_bought_for_ever_and_claims_take_pairs() -> None:
    desk = ready()
    switch(desk)
    while blocks := desk.outstanding("calibrate"):
        assert len(desk.of(BlockDrawn)) < 60
        desk.run(blocks[0], {candidate_id(BASELINE): CRASH})
    desk.claim("ant", GOOD)
    desk.confirm(BETTER)
    assert verdict_on(desk, GOOD).panel == 0 and not desk.mind.stop_reason(desk.now)


def looked_at(desk: Desk) -> Desk:
    """As if enough had run to say whether the panel may be trusted."""
    references = panel(desk)
    references.seen = 1000
    references.runs = tuple(Run("champion", f"uid-{NODES[n % 4]}", n, n % 3 * 0.001) for n in range(60))
    desk.think()
    return desk


@pytest.mark.parametrize(("setting", "looks"), [("auto", True), ("on", True), ("off", False)])
def test_off_never_switches(setting: str, looks: bool) -> None:
    desk = looked_at(ready(decision={"panel": setting, "calibration_pairs": 2}))
    assert len(desk.of(PanelSwitched)) == looks


@pytest.mark.parametrize("setting", ["auto", "on"])
def test_where_seconds_are_the_budget_the_panel_needs_a_persons_word(setting: str) -> None:
    desk = looked_at(ready(paced=True, decision={"panel": setting, "calibration_pairs": 2}))
    (switch,) = desk.of(PanelSwitched)
    assert isinstance(switch, PanelSwitched)
    assert ("seconds are the budget" in switch.reason and not switch.on) == (setting == "auto")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_whatever_happens_on_a_panel_no_verdict_changes_and_the_ledger_tells_the_same(data: st.DataObject) -> None:
    story, reached = Interleaving(data), dict[ClaimKey, Verdict]()
    story.desk = on_panel()
    for _ in range(data.draw(st.integers(5, 30))):
        story.step()
        for key, claim in story.desk.state.claims.items():
            if claim.verdict is not None:
                assert reached.setdefault(key, claim.verdict) == claim.verdict
    again = story.desk.replayed()
    assert again.state == story.desk.state
    for key, claim in story.desk.state.claims.items():
        replayed = again.state.claims[key].weighing
        assert (claim.weighing is None) is (replayed is None)
        if claim.weighing is not None and replayed is not None:
            assert replayed.cells == claim.weighing.cells and replayed.panel.level == claim.weighing.panel.level
