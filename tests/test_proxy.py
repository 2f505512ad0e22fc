"""Proxy health: does the cheap screening rank ideas as confirmation on fresh seeds does?"""

from collections.abc import Sequence

import pytest
from factories import Scribe
from hypothesis import given
from hypothesis import strategies as st

from coordinator.report import report_md
from swarm.cli.tables import status_table
from swarm.history import history
from swarm.proxy import Health, proxy_health, rank_correlation
from swarm.records import TransferChecked


def study(points: Sequence[tuple[float, float]]) -> Scribe:
    """Claims with a gain at screening each, and one on every fresh seed of their confirmation."""
    scribe = Scribe()
    scribe.open()
    for number, (screened, confirmed) in enumerate(points):
        idea = scribe.admit(f"idea {number}", f"X{number} = 1")
        scribe.screen(idea, screened, kept=True)
        scribe.claim(idea, screened)
        after = scribe.baseline + scribe.better * confirmed
        runs = [(scribe.baseline, after)] * 2
        evidence = scribe.pairs("confirm", idea.proposal.idea, idea.candidate, scribe.champion, runs)
        scribe.judge(idea, evidence, confirmed, confirmed - 0.01, confirmed + 0.01, accepted=False)
    return scribe


def health(points: Sequence[tuple[float, float]]) -> Health:
    return proxy_health(history(study(points).facts))


@pytest.mark.parametrize(("sign", "rho"), [(1, 1.0), (-1, -1.0)])
def test_the_order_of_confirmed_gains_decides(sign: int, rho: float) -> None:
    told = health([(0.01 * n, sign * 0.001 * n**2) for n in range(1, 7)])
    assert told.claims == 6
    assert told.rho == pytest.approx(rho)
    assert told.screened == pytest.approx(0.035)
    assert told.confirmed == pytest.approx(sign * 0.091 / 6)


def test_few_claims_are_not_ranked_and_none_are_not_told() -> None:
    assert health([(0.01, 0.01), (0.02, 0.02)]).rho is None
    assert health([(0.01, 0.01)] * 6).rho is None  # nothing varies
    page = report_md(history(study([]).facts))
    assert "predict" not in page


def test_a_proxy_that_stopped_predicting_is_seen_in_report_and_status() -> None:
    good, bad = ([(0.01 * n, sign * 0.002 * n) for n in range(1, 11)] for sign in (1, -1))
    for points, failing in ((good, False), (bad, True)):
        told = history(study(points).facts)
        assert proxy_health(told).failing is failing
        cells = [str(cell) for column in status_table("laptop-1", told).columns for cell in column.cells]
        assert any("does not predict" in cell for cell in cells) is failing
        assert ("does not predict" in report_md(told)) is failing


def test_unconfirmed_claims_are_no_points() -> None:
    scribe = study([(0.01 * n, 0.01 * n) for n in range(1, 6)])
    waiting = scribe.admit("still open", "Z = 1")
    scribe.claim(waiting, 9.0)
    assert proxy_health(history(scribe.facts)).claims == 5


@pytest.mark.parametrize("sign", [1, -1])
def test_confirmed_gains_are_ranked_against_those_at_a_larger_scale(sign: int) -> None:
    scribe = study([])
    for number in range(1, 7):
        idea = scribe.admit(f"idea {number}", f"Y{number} = 1")
        scribe.claim(idea, 0.02)
        runs = [(scribe.baseline, scribe.baseline + scribe.better * 0.01 * number)] * 2
        evidence = scribe.pairs("confirm", idea.proposal.idea, idea.candidate, scribe.champion, runs)
        scribe.judge(idea, evidence, 0.01, 0.005, 0.015, accepted=True)
        base, gain = scribe.champion, sign * 0.001 * number
        tree = (idea.proposal.idea, idea.candidate, base)
        scribe.facts.append(TransferChecked(*tree, "depth=2", "fades", 0.1, 0.0, 0.2, gain, (), False, "", scribe.now))
    told = history(scribe.facts)
    assert proxy_health(told).scaled == 6 and proxy_health(told).scale_rho == pytest.approx(sign)
    assert f"6 of them at a larger scale, rank correlation {sign:+d}.00" in report_md(told)


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=2, max_size=30))
def test_only_ranks_count(points: list[tuple[int, int]]) -> None:
    first, second = [float(a) for a, _ in points], [float(b) for _, b in points]
    rho = rank_correlation(first, second)
    assert rho == rank_correlation([x**3 for x in first], [5 * y - 2 for y in second])
    if rho is not None:
        assert -1.000001 <= rho <= 1.000001
        assert rank_correlation(first, [-y for y in second]) == pytest.approx(-rho)
