"""When does a Candidate reproduce? The statistics behind every Verdict, as pure functions.

Owns the noise of a paired gain, the screen, the sequential test of a confirmation, the bar that it must clear, and the
interval that a study prints at its end. Must not know Nodes, Trials, files, clocks or random numbers.

A gain is oriented by the caller: positive means that the Candidate is better. `s` is the sd of the gain of one Pair on
one Platform. The test is a likelihood ratio of "the gain is d1 * s" against "the gain is 0" in which the variance is
integrated out over what is known of it (a moderated Student t). It stops at the first crossing of either boundary.

Not covered here: gains that were chosen before they arrived (a screening gain is never evidence, it picked the
Candidate), Pairs that all ran on one Node (an edit that suits one machine looks real there), and a wild run of the
champion, which the test clips but the reported mean gain does not.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, NamedTuple

Dial = Literal["economy", "standard", "thorough"]

SHRINKAGE = 0.85  # accepted gains were selected for being large: unshrunken they claim 1.2x the true gain
RESIDUAL_CLIP = 2.5  # in s; one bad run of 8 s would otherwise double s for the next dozen confirmations
CLIPPED_VARIANCE = 0.978  # what is left of a unit normal's variance after clipping at 2.5
SEED_SCORES_MAX_DF = 7  # what 8 seeds earn; more would only slow down the residuals, which know what pairing saves
RELATIVE_FLOOR = 1e-6  # a float32 mean carries 6e-8 and a printed score six decimals: below is rounding, not noise
SMALLEST_FLOOR = 1e-12  # for Tasks whose typical score is 0
LARGEST_GAIN = 1e100  # squares stay finite; a larger "gain" is a broken score

HOLDOUT_SHARE = 2.0 / 3.0  # at 1/2 every fifth promotion is false where 1 of 10 edits fits only the search split

LOWEST_BAR = 30.0  # even where every idea is good, 30:1 is the least we call reproduced
PRIOR_ODDS_FACTOR = 4.0  # (1 - l) / l for a local false-discovery rate of l = 0.2 at the boundary
# A new study behaves as if 1 of 38 confirmations had won. At 1 of 20, where 2 % of the ideas are good, 4.4 % of the
# promotions are false (1000 campaigns); here 2.9 %, for a point or two of power at 2 sd. At 1 of 39 four of the largest
# gains would no longer be enough, where the noise is known from eight seeds (152:1).
PRIOR_PROMOTIONS, PRIOR_CONFIRMATIONS = 1.0, 38.0
NOT_WORSE_BAR = 20.0  # a fair bet on "it loses the margin" grows so much with a chance of at most 1 in 20
NOT_WORSE_REJECT = 0.1  # at 0.5, as for gains, half of the edits that change nothing would be turned away
FORGETTING = 1.0 - 1.0 / 150.0  # per confirmation: ideas get harder to find as a study ages


@dataclass(frozen=True)
class Rule:
    """The boundaries of screening and confirmation, in units of s unless said otherwise."""

    screen_margin: float = 0.35
    """A screening gain must exceed this to raise a Claim."""
    reject_below: float = 0.5
    """Reject at this likelihood ratio or less; the textbook 0.2 costs 1.9x the runs for 1.2x the gain."""
    min_pairs: int = 3
    """No acceptance on fewer Pairs: below 3, one wild run decides."""
    max_pairs: int = 12
    """Reject what has not been accepted by then."""
    d0: int = 12
    """Degrees of freedom given to s when it is well measured; infinitely many break on noisy Candidates."""
    d1: float = 1.4
    """The gain that is tested against 0: 2 sd of a single run when seeds do not correlate."""
    clip: float = 3.0
    """Larger paired gains count as this, so that no single run carries a Verdict."""
    null: float = 0.0
    """The gain that `d1` is tested against; an acceptance says that the true gain is larger."""
    margin: float = 0.75
    """What a simplification must be shown not to lose."""
    margin_pairs: int = 20
    """Pairs that this may take: 9 to 12 on average, and the smaller the margin, the more."""


_RULES: dict[Dial, Rule] = {
    "economy": Rule(screen_margin=0.8, reject_below=0.6, margin=1.0, margin_pairs=12),
    "standard": Rule(),
    "thorough": Rule(screen_margin=0.0, reject_below=0.25, max_pairs=16, d1=1.2, margin=0.5, margin_pairs=40),
}


def rule_for(dial: Dial) -> Rule:
    """The rule at a setting of the study's dial."""
    return _RULES[dial]


def not_worse(rule: Rule) -> Rule:
    """The same test for a simplification: it gains nothing, against it loses the margin. Its bar: `NOT_WORSE_BAR`."""
    return replace(rule, null=-rule.margin, d1=0.0, reject_below=NOT_WORSE_REJECT, max_pairs=rule.margin_pairs)


@dataclass(frozen=True)
class Noise:
    """What is known of s on one Platform: a pooled sum of squared deviations with its degrees of freedom.

    The calibration and every closed confirmation add to the same two numbers, so s moves from the first to the second
    as evidence arrives. Build it with `from_blocks` or `from_seed_scores`; `pooled` returns the next one.
    """

    sum_squares: float
    df: int
    floor: float
    """s is never taken smaller than this; in units of the metric."""

    @classmethod
    def from_blocks(cls, gains: Sequence[float], typical_score: float = 1.0) -> "Noise":
        """Calibrate with gains of the champion against itself, whose true mean is 0.

        On a Platform where one seed gives the same bits twice these gains are all 0 and say nothing: use
        `from_seed_scores` there.

        Raises:
            ValueError: fewer than two gains, or one that is no usable number.
        """
        _check_count("gain of the champion against itself", "blocks", gains)
        sum_squares = math.fsum(gain * gain for gain in gains)
        return cls._calibrated(sum_squares, len(gains), typical_score)

    @classmethod
    def from_seed_scores(cls, scores: Sequence[float]) -> "Noise":
        """Calibrate with champion scores on different seeds: s0 = sd * sqrt(2), as if pairing saved nothing.

        That is too large wherever a shared seed correlates the two Trials of a Pair. However many seeds there are, they
        count as at most `SEED_SCORES_MAX_DF` degrees of freedom, so the residuals of real Pairs soon pull s down.

        Raises:
            ValueError: fewer than two scores, or one that is no usable number.
        """
        _check_count("champion score on its own seed", "seeds", scores)
        df = min(len(scores) - 1, SEED_SCORES_MAX_DF)
        sum_squares = df * 2.0 * statistics.variance(scores)
        return cls._calibrated(sum_squares, df, typical_score=math.fsum(scores) / len(scores))

    @classmethod
    def _calibrated(cls, sum_squares: float, df: int, typical_score: float) -> "Noise":
        floor = max(RELATIVE_FLOOR * abs(typical_score), SMALLEST_FLOOR)
        measured = sum_squares > df * floor * floor
        # A floored calibration has measured nothing: 0 df, so that the first real residuals replace it whole.
        return cls(sum_squares if measured else 0.0, df if measured else 0, floor)

    @property
    def sd(self) -> float:
        """The estimate of s."""
        measured = math.sqrt(self.sum_squares / self.df) if self.df else 0.0
        return max(measured, self.floor)

    @property
    def reason(self) -> str:
        """One sentence: what s is and why."""
        if self.df == 0:
            return f"s = {self.sd:.3g}, the floor: the calibration showed no spread and no Pair has measured any yet"
        if self.sd == self.floor:
            return f"s = {self.sd:.3g}, the floor: {self.df} degrees of freedom show less spread than rounding"
        return f"s = {self.sd:.3g}, measured with {self.df} degrees of freedom"

    def pooled(self, gains: Sequence[float]) -> "Noise":
        """Add the spread of a closed confirmation's gains around their own mean.

        Pass every Pair that ran, also those beyond the one that decided: a stopped sequence alone is a selected one.
        A single gain has no spread and changes nothing.

        Raises:
            ValueError: a gain that is no usable number.
        """
        _check_usable(gains)
        if len(gains) < 2:
            return self
        mean = math.fsum(gains) / len(gains)
        # The floor is no scale to clip by: clipped at it, s would need dozens of confirmations to rise to the truth.
        reach, kept = (RESIDUAL_CLIP * self.sd, CLIPPED_VARIANCE) if self.sd > self.floor else (math.inf, 1.0)
        added = math.fsum(min(abs(gain - mean), reach) ** 2 for gain in gains) / kept
        return replace(self, sum_squares=self.sum_squares + added, df=self.df + len(gains) - 1)


@dataclass(frozen=True)
class Campaign:
    """How often confirmations of this study end in a Promotion, forgetting the old ones."""

    promotions: float = 0.0
    confirmations: float = 0.0

    def closed(self, *, promoted: bool) -> "Campaign":
        """The counters after one more closed confirmation."""
        return Campaign(self.promotions * FORGETTING + promoted, self.confirmations * FORGETTING + 1.0)

    def taken_back(self) -> "Campaign":
        """The counters when a confirmation that closed as a Promotion was refused after all."""
        return replace(self, promotions=max(0.0, self.promotions - 1.0))


def bar(campaign: Campaign) -> float:
    """The likelihood ratio that an acceptance needs: the rarer good ideas are, the higher. Fixed at a Claim's start."""
    good = (PRIOR_PROMOTIONS + campaign.promotions) / (PRIOR_CONFIRMATIONS + campaign.confirmations)
    return max(LOWEST_BAR, PRIOR_ODDS_FACTOR * (1.0 - good) / good)


class Interval(NamedTuple):
    """A mean gain of `n` Pairs and the range that holds the true one; unbounded while there is no spread to go by."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class _Evidence:
    effect: float
    """The gain to report, in units of the metric: the mean gain, shrunken by `SHRINKAGE` when accepted."""
    interval: Interval
    """The unshrunken mean gain with its 95 % range, as if the number of Pairs had been fixed beforehand."""
    likelihood_ratio: float
    bar: float
    sd: float
    """The s that was used, frozen when the confirmation started."""
    reason: str
    """One sentence for a person."""

    @property
    def pairs(self) -> int:
        """How many Pairs the decision rests on; later ones were not looked at."""
        return self.interval.n


@dataclass(frozen=True)
class Accepted(_Evidence):
    """It reproduced."""


@dataclass(frozen=True)
class Rejected(_Evidence):
    """It did not reproduce, or not soon enough to be worth more Pairs."""


@dataclass(frozen=True)
class Undecided(_Evidence):
    """The evidence lies between the boundaries."""

    more: int
    """How many Pairs an acceptance still needs at the least.

    Buying the first ones singly reaches the same Decision and spends 1.9 instead of 3.3 Pairs on a null edit, but
    leaves one-Pair losers that teach `Noise` nothing.
    """


Decision = Accepted | Rejected | Undecided


def screen_passes(gain: float, noise: Noise, rule: Rule) -> bool:
    """Whether one screening gain is large enough to raise a Claim.

    Raises:
        ValueError: the gain is no usable number.
    """
    _check_usable([gain])
    return gain > rule.screen_margin * noise.sd


def likelihood_ratio(xs: Sequence[float], rule: Rule) -> float:
    """How much better a gain of d1 explains the paired gains `xs` (in units of s) than the null gain does."""
    clipped = [max(-rule.clip, min(rule.clip, x)) for x in xs]
    around_null = rule.d0 + math.fsum((x - rule.null) ** 2 for x in clipped)
    around_gain = rule.d0 + math.fsum((x - rule.d1) ** 2 for x in clipped)
    return math.exp((rule.d0 + len(clipped)) / 2 * math.log(around_null / around_gain))


def decide(gains: Sequence[float], noise: Noise, bar: float, rule: Rule) -> Decision:
    """Decide on a confirmation's gains, in the order in which they became known, at the first boundary they cross.

    In a study that is the order in which the second run of each Pair reached the ledger: another order may decide
    otherwise, and a restart reads the same one. Gains after that crossing never change the Decision. `noise` and `bar`
    are those of the confirmation's start.

    Raises:
        ValueError: a gain that is no usable number, or a bar that does not lie above 1.
    """
    _check_usable(gains)
    if not bar > 1.0:
        raise ValueError(f"the bar must lie above 1, got {bar}: take it from bar(campaign)")
    decision = _settle(gains[:0], noise, bar, rule)
    for n in range(1, len(gains) + 1):
        if not isinstance(decision, Undecided):
            break
        decision = _settle(gains[:n], noise, bar, rule)
    return decision


def survives_holdout(search_gains: Sequence[float], holdout_gains: Sequence[float]) -> bool:
    """Whether an accepted Candidate keeps enough of its mean gain on the split that no search has seen.

    More seeds cannot replace this: an edit that fits the search split reproduces there as well as any.

    Raises:
        ValueError: no gain, not as many of one as of the other, or one that is no usable number.
    """
    if not search_gains or len(search_gains) != len(holdout_gains):
        raise ValueError(f"got {len(search_gains)} search and {len(holdout_gains)} holdout gains: pass one per Pair")
    _check_usable([*search_gains, *holdout_gains])
    kept = math.fsum(holdout_gains)
    return kept > 0.0 and kept >= HOLDOUT_SHARE * math.fsum(search_gains)


def rejected_for(reason: str, gains: Sequence[float], noise: Noise, bar: float, rule: Rule) -> Rejected:
    """Reject for something that is no gain, such as a crash of the Candidate in one of its Pairs.

    Raises:
        ValueError: a gain that is no usable number.
    """
    _check_usable(gains)
    believed = _believed(rule, noise)
    interval = moderated_interval(gains, noise.sd, believed.d0)
    ratio = likelihood_ratio([gain / noise.sd for gain in gains], believed)
    told = f"rejected: {reason}; until then {_described(gains, interval)}"
    return Rejected(interval.mean, interval, ratio, bar, noise.sd, told)


def paired_interval(gains: Sequence[float], confidence: float = 0.95) -> Interval:
    """The ordinary paired t interval, for a comparison whose number of Pairs was fixed beforehand.

    Raises:
        ValueError: fewer than two gains, one that is no usable number, or a confidence outside 0 to 1.
    """
    _check_count("paired gain", "Pairs", gains)
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}: 0.95 is usual")
    return moderated_interval(gains, prior_sd=0.0, prior_df=0, confidence=confidence)


def _settle(gains: Sequence[float], noise: Noise, bar: float, rule: Rule) -> Decision:
    """The Decision on exactly these gains, whatever their beginnings said."""
    believed = _believed(rule, noise)
    interval = moderated_interval(gains, noise.sd, believed.d0)
    ratio = likelihood_ratio([gain / noise.sd for gain in gains], believed)
    return settled(ratio, interval, _described(gains, interval), noise.sd, bar, rule)


def settled(
    ratio: float, interval: Interval, described: str, s: float, bar: float, rule: Rule, unit: str = "pair"
) -> Decision:
    """The Decision where `interval.n` Pairs, or runs on a panel, came to this likelihood ratio."""
    n = interval.n
    question = f" that it loses less than {-rule.null * s:.3g}" if rule.null else ""
    found = f"{described}, evidence {ratio:.3g}:1{question}"
    if ratio <= rule.reject_below:
        told = f"rejected: {found}, and {rule.reject_below:g}:1 or less ends it"
        return Rejected(interval.mean, interval, ratio, bar, s, told)
    # The clip hides how bad a wild run was: what lost more than it gained is not accepted, whatever the ratio says.
    if ratio >= bar and n >= rule.min_pairs and interval.mean > rule.null * s:
        told = f"accepted: {found} against a bar of {bar:.3g}"
        effect = interval.mean * (SHRINKAGE if interval.mean > 0.0 else 1.0)  # a simplification's loss is told whole
        return Accepted(effect, interval, ratio, bar, s, told)
    if n >= rule.max_pairs:
        told = f"rejected: {found} against a bar of {bar:.3g}, and {n} {unit}s are the most"
        return Rejected(interval.mean, interval, ratio, bar, s, told)
    more = max(1, rule.min_pairs - n)
    told = f"undecided: {found} against a bar of {bar:.3g}, {more} more {unit if more == 1 else unit + 's'} to run"
    return Undecided(interval.mean, interval, ratio, bar, s, told, more)


def _believed(rule: Rule, noise: Noise) -> Rule:
    """The rule with no more trust in s than its degrees of freedom earn.

    With s from two seeds, d0 = 12 would accept 4.3 % of null edits at a bar of 76; this way it is 0.9 %, and 0.2 % once
    s is well measured. The price is about one Pair more per true gain until then.
    """
    return replace(rule, d0=min(rule.d0, max(1, noise.df)))


def _described(gains: Sequence[float], interval: Interval) -> str:
    if not gains:
        return "no fresh pair has run"
    better = sum(gain > 0.0 for gain in gains)
    ran = f"better on {better} of {interval.n} fresh {'pair' if interval.n == 1 else 'pairs'}"
    return f"{ran}, mean gain {interval.mean:.3g} (95% {interval.low:.3g}..{interval.high:.3g})"


def moderated_interval(gains: Sequence[float], prior_sd: float, prior_df: int, confidence: float = 0.95) -> Interval:
    """The t interval of the mean gain, its variance pooled from the gains and a prior sd worth `prior_df`."""
    n, df = len(gains), prior_df + len(gains) - 1
    if n == 0:
        return Interval(0.0, -math.inf, math.inf, 0)
    mean = math.fsum(gains) / n
    sum_squares = prior_df * prior_sd * prior_sd + math.fsum((gain - mean) ** 2 for gain in gains)
    half = t_quantile(df, confidence) * math.sqrt(sum_squares / df / n)
    return Interval(mean, mean - half, mean + half, n)


@cache  # a campaign asks for a few dozen of them, thousands of times
def t_quantile(df: int, confidence: float) -> float:
    """The t for which a Student t with `df` degrees of freedom lies within -t..t with this probability."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # halves the range below the spacing of doubles
        middle = (low + high) / 2
        low, high = (middle, high) if _central_mass(middle, df) < confidence else (low, middle)
    return math.sqrt(df) * math.tan((low + high) / 2)


def _central_mass(theta: float, df: int) -> float:
    """P(|T| < sqrt(df) tan(theta)): a finite trigonometric series, since df is a whole number."""
    odd = df % 2
    term, total = math.cos(theta) if odd else 1.0, 0.0
    for power in range(odd, df - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * math.cos(theta) ** 2
    mass = math.sin(theta) * total
    return (theta + mass) * 2 / math.pi if odd else mass


def _check_count(what: str, more_of: str, values: Sequence[float]) -> None:
    if len(values) < 2:
        raise ValueError(f"needs at least 2 of: {what}; got {len(values)}. Run {2 - len(values)} more {more_of}")
    _check_usable(values)


def _check_usable(values: Sequence[float]) -> None:
    for index, value in enumerate(values):
        if not abs(value) <= LARGEST_GAIN:  # also true of NaN
            raise ValueError(f"number {index} of {len(values)} is {value}, which is no usable gain or score")
