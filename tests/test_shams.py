"""Sham edits: the chain is audited with claims that are known to be worth nothing, and nobody else is touched by it."""

from pathlib import Path
from random import Random

import pytest
from desk import BASELINE, OTHER_PLATFORM, Desk, edited, info, measured, proposal, trial_of
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import Swarm, World

from coordinator.report import report_md
from coordinator.reproduction import Accepted, Noise, Undecided, bar, decide, rule_for
from coordinator.shams import raised, reseeded
from coordinator.state import State
from swarm.history import history
from swarm.records import Fact, HoldoutAnswered, Promotion, Report, ShamJudged, ShamRaised, StudyOpened, candidate_id
from swarm.source import lines_changed

SEEDED = {"train.py": BASELINE["train.py"] + "random.seed(7)\n"}
SHIPPED = Path(__file__).parents[1] / "baseline" / "train.py"
NAMES = ("ant", "bee", "cat")


def shams(desk: Desk) -> list[ShamJudged]:
    return [fact for fact in desk.of(ShamJudged) if isinstance(fact, ShamJudged)]


def ready(share: float = 0.2) -> Desk:
    desk = Desk({"decision": {"calibration_pairs": 2, "sham_share": share}}, baseline=SEEDED)
    desk.calibrate(*NAMES)
    return desk


def with_a_sham(share: float = 0.0) -> tuple[Desk, ShamRaised]:
    """The calibrated study of which one sham is under confirmation."""
    desk = ready(share)
    sham = made(desk, 1)
    desk.commit([sham])
    desk.report(*(desk.heard(f"uid-{name}") for name in NAMES))
    return desk, sham


def made(desk: Desk, number: int) -> ShamRaised:
    files = reseeded(SEEDED, number)
    assert files is not None
    platform = next(iter(desk.state.noise))
    base = desk.state.champion
    return ShamRaised(number, number, f"sham-{number}", candidate_id(files), base, files, platform, desk.now)


# --- how one is made -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "import random\nrandom.seed(7)\nprint(random.random())\n",
        "import random\nwords = 'größe'; random.seed(7)\nprint(random.random())\n",
        "import random\nrandom.seed(\n    3\n    + 4,  # a comment\n)\nprint(random.random())\n",
        "import random\nprint(random.Random(3 if 0 else 7).random())\n",
    ],
    ids=["plain", "not ASCII", "many lines", "an object of its own"],
)
def test_a_sham_draws_other_numbers_by_an_edit_of_its_seed_alone(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    sham = reseeded({"train.py": text, "notes.txt": "seed(7)"}, 5)
    assert sham is not None and sham["notes.txt"] == "seed(7)"
    exec(text, {})  # noqa: S102  # a text of ours
    exec(sham["train.py"], {})  # noqa: S102
    exec(text.replace("4,", "9,").replace("seed(7)", "seed(12)").replace("else 7", "else 12"), {})  # noqa: S102
    before, after, expected = capsys.readouterr().out.split()
    assert before != after == expected


def test_a_sham_of_the_shipped_script_changes_the_weights_and_nothing_else() -> None:
    before = {"train.py": SHIPPED.read_text()}
    sham = reseeded(before, 5)
    assert sham is not None and lines_changed(before, sham) == (1, 1)
    (line,) = set(sham["train.py"].splitlines()) - set(before["train.py"].splitlines())
    assert line.strip() == "torch.manual_seed((arguments.seed) + 5)"


@pytest.mark.parametrize("text", ["print('seed(7)')\n", "random.seed()\n", "def broken(:\n", "x = 1\n"])
def test_no_sham_is_made_of_what_sets_no_seed(text: str) -> None:
    assert reseeded({"train.py": text, "data.txt": "seed(7)"}, 5) is None


# --- when one is drawn -----------------------------------------------------------------------------------


def drawn_over(claims: int, share: float, seed: int = 3) -> list[int]:
    """The real claims after which a sham was raised, where each is judged before the next claim."""
    state = State(rule=rule_for("standard"), champion="c", files={"c": SEEDED})
    state.opened = StudyOpened("toy-1", seed, "score", "minimize", "c", SEEDED, "{}", 0.0)
    for _ in range(claims):
        state.claimed_on.append("platform")
        state.shams += list(raised(state, share, 0.0))
    return [sham.claim for sham in state.shams]


@pytest.mark.parametrize("share", [0.02, 0.03, 0.05, 0.2])
def test_of_all_claims_the_share_that_is_asked_for_are_shams(share: float) -> None:
    claims = 20_000
    found = len(drawn_over(claims, share))
    expected = claims * share / (1 - share)
    assert abs(found - expected) < 4 * expected**0.5, "four standard deviations of a count"


def test_the_draw_belongs_to_the_study_and_may_be_switched_off() -> None:
    assert drawn_over(500, 0.05) == drawn_over(500, 0.05) != drawn_over(500, 0.05, seed=4)
    assert drawn_over(500, 0.0) == drawn_over(0, 0.2) == []


def test_one_is_raised_after_a_real_claim_and_one_at_a_time() -> None:
    desk = ready()
    assert not desk.state.shams
    for number in range(1, 13):
        idea = proposal(edited(SEEDED, A=number), SEEDED)
        desk.claim("ant", idea, SEEDED)
        assert sum(claim.sham > 0 for claim in desk.state.open_claims.values()) <= 1
        if number % 3 == 0:
            desk.confirm({}, default=2.0)
    assert desk.state.shams and all(sham.claim <= 12 for sham in desk.state.shams)
    assert len({sham.candidate for sham in desk.state.shams}) == len(desk.state.shams), "no tree twice"
    assert desk.replayed().state == desk.state


# --- what it touches, and what not -----------------------------------------------------------------------


def test_a_sham_is_confirmed_and_moves_neither_bar_nor_noise_and_no_brief_tells_of_it() -> None:
    desk, sham = with_a_sham()
    campaign, noise = desk.state.campaign, dict(desk.state.noise)
    told = [desk.mind.orders(f"uid-{name}", (), desk.now).brief for name in NAMES]
    desk.confirm({}, default=2.0)
    (judged,) = shams(desk)
    assert not judged.verdict.accepted and judged.verdict.pairs > 0 and judged.verdict.candidate == sham.candidate
    assert (desk.state.campaign, desk.state.noise) == (campaign, noise)
    assert [desk.mind.orders(f"uid-{name}", (), desk.now).brief for name in NAMES] == told
    assert not desk.state.answers and not desk.state.experiments
    assert sham.name not in repr(told)


def test_an_accepted_sham_is_told_and_never_lands() -> None:
    desk, sham = with_a_sham()
    desk.confirm({sham.candidate: 1.0}, default=2.0)
    (judged,) = shams(desk)
    assert judged.verdict.accepted and "the chain accepted a no-op" in judged.verdict.reason
    assert desk.state.champion == candidate_id(SEEDED)
    assert not desk.of(Promotion) and not desk.of(HoldoutAnswered) and not desk.state.accepted
    page = report_md(history(fact for fact, _ in desk.facts))
    assert "Shams: 1 tried, 1 accepted" in page and "accepted a no-op" in page
    assert "no sham edit" not in page


def test_a_sham_of_which_nothing_ran_before_the_champion_moved_says_nothing() -> None:
    desk = ready(0.0)
    better = edited(SEEDED, A=1)
    desk.claim("ant", proposal(better, SEEDED), SEEDED)
    late = made(desk, 1)
    desk.confirm({candidate_id(better): 1.0})
    assert desk.state.champion == candidate_id(better)
    desk.commit([late])
    desk.think()
    (judged,) = shams(desk)
    assert judged.verdict.pairs == 0 and not judged.verdict.accepted
    told = history(fact for fact, _ in desk.facts)
    assert not told.shams and "no sham edit" in report_md(told)


def test_a_sham_whose_platform_lost_its_nodes_makes_way_for_the_next() -> None:
    desk, sham = with_a_sham()
    block = next(block for block in desk.outstanding("confirm") if sham.name in block.experiments)
    desk.run(block, {sham.candidate: 1.985})
    assert not shams(desk)
    desk.now += desk.config.nodes.lost_after_s + 1
    desk.report(Report(node=info("far", OTHER_PLATFORM), brief=""))
    (judged,) = shams(desk)
    assert judged.verdict.pairs == 0 and "no nodes" in judged.verdict.reason
    assert not history(fact for fact, _ in desk.facts).shams, "what decided nothing is not told as tried"
    assert not any(claim.sham for claim in desk.state.open_claims.values())


# --- what the chain makes of them ------------------------------------------------------------------------


def judge(desk: Desk, number: int, gains: list[float]) -> ShamJudged:
    """What the mind makes of a sham whose pairs gain this, in their order."""
    desk.commit([made(desk, number)])
    left = iter(gains)
    while len(shams(desk)) < number:
        desk.report(*(desk.heard(f"uid-{name}") for name in NAMES))
        for block in desk.outstanding("confirm"):
            if len(shams(desk)) == number:
                break
            ours = {block.reference: 2.0}
            scores = [ours.get(candidate) or 2.0 - next(left, 0.0) for candidate in block.candidates]
            facts = tuple(trial_of(block, place, measured(score), desk.now) for place, score in enumerate(scores))
            desk.report(desk.heard(block.node, facts=facts, holding=(block.block,)), desk.heard(block.node))
    return shams(desk)[-1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-0.02, 0.04), min_size=12, max_size=12))
def test_the_chain_decides_on_a_sham_as_the_rule_decides_on_its_gains(gains: list[float]) -> None:
    desk = ready(0.0)
    noise = next(iter(desk.state.noise.values()))
    verdict = judge(desk, 1, gains).verdict
    expected = decide([2.0 - (2.0 - gain) for gain in gains], noise, bar(desk.state.campaign), desk.mind.rule)
    assert not isinstance(expected, Undecided)
    assert verdict.accepted is isinstance(expected, Accepted)
    assert verdict.noise == noise.sd and verdict.likelihood_ratio == pytest.approx(expected.likelihood_ratio)


def test_the_chain_accepts_shams_as_seldom_as_the_rule_says() -> None:
    """0.23 % of edits that change nothing: 0.9 of 400 are expected, and more than 5 once in a thousand studies."""
    desk, random, number = ready(0.0), Random(5), 400
    platform = next(iter(desk.state.noise))
    known = Noise(sum_squares=40 * 0.01**2, df=40, floor=1e-6)
    desk.state.noise[platform] = known  # as if 40 pairs had measured it
    by_rule = 0
    for n in range(1, number + 1):
        gains = [random.gauss(0.0, 0.01) for _ in range(12)]
        by_rule += isinstance(decide(gains, known, bar(desk.state.campaign), desk.mind.rule), Accepted)
        judge(desk, n, gains)
    accepted = sum(sham.verdict.accepted for sham in shams(desk))
    assert accepted == by_rule <= 5
    assert desk.state.noise[platform] == known and desk.state.campaign.confirmations == 0


def test_a_whole_study_judges_its_shams_and_promotes_what_is_true(tmp_path: Path) -> None:
    effects = {"WIDER": 0.05, **{f"IDEA_{number}": 0.0 for number in range(14)}}
    world = World(effects, seeds=True)
    plain = {"decision": {"sham_share": 0.2}, "stop": {"wall_minutes": 120, "final_minutes": 5}}
    swarm = Swarm(tmp_path, world, nodes=3, settings=plain)
    swarm.run()
    facts: list[Fact] = list(swarm.facts())
    told = history(facts)
    assert told.shams, "of its claims some were shams"
    assert not any(sham.verdict.accepted for sham in told.shams)
    assert "WIDER = True" in told.files[told.champion]["train.py"]
    made_of = {fact.candidate for fact in facts if isinstance(fact, ShamRaised)}
    assert made_of.isdisjoint(promotion.candidate for promotion in told.promotions)
