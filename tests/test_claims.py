"""Claims of what each token cost: the honest pass the audit, and what is claimed and not so does not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy_task as toy

from node.audit import CUTS, Others, Passed, chances, plain_bits, too_low
from node.scoring import Bits, read_questions
from node.trial import Workshop, run_trial
from swarm.records import Failure, Limits, Measurement, Outcome, Purpose

TOLERANCE_BITS = 0.07
SHAPE = (toy.VAL_TOKENS // toy.WINDOW, toy.WINDOW)


def workshop_of(root: Path, script: str) -> Workshop:
    return toy.workshop_at(root, toy.answers_task(root / "task", script, tolerance_bits=TOLERANCE_BITS))


def outcome_of(workshop: Workshop, purpose: Purpose = "confirm", wall_s: float = 20.0) -> Outcome:
    spec = toy.spec_of(toy.HONEST)
    limits: Limits = replace(spec.limits, wall_s=wall_s)
    return run_trial(replace(spec, purpose=purpose, limits=limits), workshop=workshop).outcome


def odds(token: int, following: int) -> float:
    return 3 / 7 if following == (token + 1) % toy.VOCABULARY else 1 / 7


@pytest.mark.parametrize("purpose", ["screen", "confirm"])
def test_an_honest_claim_is_the_score(tmp_path: Path, purpose: Purpose) -> None:
    outcome = outcome_of(workshop_of(tmp_path, toy.claims()), purpose)
    assert isinstance(outcome, Measurement), outcome
    assert outcome.audited == (purpose == "confirm")
    assert outcome.score == pytest.approx(toy.bits_per_byte(2, odds), rel=1e-6)


def test_noise_within_the_tolerance_is_no_fault(tmp_path: Path) -> None:
    # Of a mean over 150 cuts; at 0.02, a bit more than a tenth of the tolerance is met once in a hundred times.
    noisy = "costs = [cost + (0.005 if (told + i) % 2 else -0.005) for i, cost in enumerate(costs)]"
    assert isinstance(outcome_of(workshop_of(tmp_path, toy.claims(noisy))), Measurement)


ALL_LIE = {
    "each a little": "costs = [cost - 0.05 for cost in costs]",
    "each a thousandth": "costs = [cost * 0.999 for cost in costs]",
    "unnormalised": "costs = [1.6 - logits(a)[b] / math.log(2) for a, b in pairs]",
    "half of each": "costs = [cost / 2 for cost in costs]",
}


@pytest.mark.parametrize("lie", ALL_LIE.values(), ids=ALL_LIE.keys())
def test_a_lie_about_all_tokens_is_found(tmp_path: Path, lie: str) -> None:
    workshop = workshop_of(tmp_path, toy.claims(lie))
    believed = outcome_of(workshop, "screen")
    assert isinstance(believed, Measurement)
    # Of 50 windows one audit misses a thousandth in 23 of 100 runs (35 of 150), so nine all do in 2 of a million; the
    # others in none of 25.
    audits = (outcome_of(workshop) for _ in range(9))
    refused = next((outcome for outcome in audits if isinstance(outcome, Failure)), None)
    assert believed.score < toy.bits_per_byte(2, odds)
    assert isinstance(refused, Failure), refused
    assert (refused.blame, refused.reason) == ("candidate", "rule")
    assert refused.message.startswith("audit: it claimed ")


def honest_bits() -> Bits:
    tokens = np.array(toy.stream(toy.VAL_TOKENS + 1, 2))
    return np.array([-np.log2(odds(a, b)) for a, b in zip(tokens, tokens[1:], strict=False)]).reshape(SHAPE)


# Four of 400, each in a window of its own. In toy text a token costs 1.2 or 2.8 bits.
FOUR = "costs = [0.0 if (told + i) % 100 == 45 else cost for i, cost in enumerate(costs)]"


def test_a_lie_about_one_token_in_a_hundred_is_found_where_others_are_known(tmp_path: Path) -> None:
    workshop = workshop_of(tmp_path, toy.claims(FOUR))
    others = honest_bits()
    for _ in range(5):
        workshop.others.remember(("val", False), "another", Passed(others, 5.0))
        refused = outcome_of(workshop)
        assert isinstance(refused, Failure), refused
        assert "cost 0 bits; it cost " in refused.message


def test_where_nobody_is_known_one_lie_is_found_as_often_as_the_cuts_fall_on_it(tmp_path: Path) -> None:
    workshop = workshop_of(tmp_path, toy.claims("costs = [0.0 if told + i == 345 else c for i, c in enumerate(costs)]"))
    assert workshop.data is not None
    questions = read_questions(workshop.data.folder, "val", toy.WINDOW, toy.VAL_TOKENS)
    bits = honest_bits()
    bits.ravel()[345] = 0
    chance = chances(bits, [plain_bits(workshop.data.folder, questions)], questions).ravel()[345]
    caught = 1 - (1 - chance) ** CUTS  # 92 %; 33 % if the cuts were even
    runs = 20
    found = sum(isinstance(outcome_of(replace(workshop, others=Others())), Failure) for _ in range(runs))
    assert abs(found - runs * caught) < 5.5 * (runs * caught * (1 - caught)) ** 0.5


@pytest.mark.parametrize(
    ("script", "reason", "words"),
    [
        (toy.claims("costs[3] = math.nan"), "nan", "no number of bits"),
        (toy.claims("costs[3] = math.inf"), "nan", "no number of bits"),
        (toy.claims("costs[3] = -50.0"), "nan", "no number of bits"),
        (toy.claims("window -= 1; costs = costs[:rows * (window - 1)]"), "scoring", "[16, ?, 1], not [16, 8, 1]"),
        (toy.claims("sys.exit('no more')"), "scoring", "score: exit code 1"),
        (toy.claims("time.sleep(60)"), "timeout", "score: ran longer"),
        (toy.claims(predict="found[0][2] = math.nan"), "nan", "not finite"),
        (toy.claims(predict="found = [row[:4] for row in found]; V = 4"), "scoring", "[16, 1, ?], not [16, 1, 5]"),
        (toy.claims(predict="sys.exit('no more')"), "scoring", "score: exit code 1"),
    ],
)
def test_what_is_no_answer_is_refused(tmp_path: Path, script: str, reason: str, words: str) -> None:
    outcome = outcome_of(workshop_of(tmp_path, script), wall_s=2.0)
    assert isinstance(outcome, Failure)
    assert (outcome.blame, outcome.reason) == ("candidate", reason)
    assert words in outcome.message


def test_claims_that_are_low_where_nobody_looks_are_told_from_noise() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        seldom = random.random(768) < 0.05  # cuts fall there ten times less often than even ones would
        weights = np.where(seldom, 10.0, 0.526)
        noise = random.normal(0, TOLERANCE_BITS / 10, 768)
        assert too_low(noise, weights, TOLERANCE_BITS) == 0
        assert too_low(noise / 1000 + 1e-3, weights, TOLERANCE_BITS) > 0
        assert too_low(noise + 0.05 * seldom, weights, TOLERANCE_BITS) > 0
