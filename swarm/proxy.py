"""Does screening predict confirmation? The health of the cheap proxy that chooses what is confirmed.

A pure reading of a History. One claim is one point: the gain that its branch saw on the screening seed, and the mean
gain of its first confirmation on fresh seeds. Their rank correlation (Spearman 1904) is near 1 when screening ranks
ideas as confirmation does, and near 0 when it only picks lucky seeds. Only what was claimed is confirmed, so weak ideas
are missing and the correlation is an underestimate; with few points it says nothing, and then it is not told. The same
is asked of confirmation: does it rank as the check at a larger scale does?
"""

from collections.abc import Iterator, Sequence
from statistics import StatisticsError, correlation, fmean
from typing import NamedTuple

from swarm.history import Experiment, History, score_of
from swarm.records import ClaimRaised, Verdict

FEWEST = 5  # points; with four, chance alone ranks them perfectly in 1 of 24 studies
ALARM = 0.0  # a proxy at or below this has stopped predicting
ALARM_POINTS = 10  # and this many points have to say so: chance is below 0 then in half, below -0.45 in a tenth


class Health(NamedTuple):
    """How well screening ranked the claims that were confirmed."""

    claims: int
    """Points: claims with a verdict and both gains."""
    rho: float | None
    """Spearman's rank correlation, -1..1; None for fewer than FEWEST points, or when all are equal."""
    screened: float
    """Mean gain at screening over those claims, positive is better."""
    confirmed: float
    """Mean gain on their fresh seeds: how much of the screened gain was the luck of the seed."""
    scaled: int
    """Accepted claims that were also measured at a larger scale."""
    scale_rho: float | None
    """Rank correlation of their confirmed gains with those at that scale; None as for `rho`."""

    @property
    def failing(self) -> bool:
        """Whether people should look: enough claims, and their order at screening was no help."""
        return self.rho is not None and self.claims >= ALARM_POINTS and self.rho <= ALARM


def proxy_health(told: History) -> Health:
    """Read from every claim that has a verdict; the first verdict of each, as a carried claim is another tree."""
    points = [point for experiment in told.experiments for point in _points(told, experiment)]
    screened, confirmed = [before for before, _ in points], [after for _, after in points]
    scaled = [point for experiment in told.experiments for point in _scaled(told, experiment)]
    return Health(
        claims=len(points),
        rho=_rho(points),
        screened=fmean(screened) if points else 0.0,
        confirmed=fmean(confirmed) if points else 0.0,
        scaled=len(scaled),
        scale_rho=_rho(scaled),
    )


def _rho(points: Sequence[tuple[float, float]]) -> float | None:
    first, second = [before for before, _ in points], [after for _, after in points]
    return rank_correlation(first, second) if len(points) >= FEWEST else None


def _points(told: History, experiment: Experiment) -> Iterator[tuple[float, float]]:
    claim = next((claim for claim in experiment.claims if isinstance(claim, ClaimRaised)), None)
    if claim is None or claim.claim_kind != "gain":
        return
    for verdict in experiment.verdicts:
        gains = _gains(told, verdict)
        if verdict.candidate == claim.candidate and gains:
            yield claim.gain, fmean(gains)
            return


def _scaled(told: History, experiment: Experiment) -> Iterator[tuple[float, float]]:
    check = experiment.transfer
    if check is None or check.gain is None:
        return
    for verdict in experiment.verdicts:
        gains = _gains(told, verdict)
        if (verdict.candidate, verdict.base) == (check.candidate, check.base) and verdict.accepted and gains:
            yield fmean(gains), check.gain
            return


def _gains(told: History, verdict: Verdict) -> list[float]:
    scores = ((score_of(pair.candidate), score_of(pair.champion)) for pair in told.pairs(verdict))
    return [told.gain(after, before) for after, before in scores if after is not None and before is not None]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rho, ties at their mean rank; None where one side is all equal."""
    try:
        return correlation(_ranks(first), _ranks(second))
    except StatisticsError:  # nothing varies
        return None


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]
