"""The reference panel: what one run of a Candidate says where the champion's level is known from many runs. Pure.

Owns a mixed model of scores (level of the script + Node + seed + noise), the test of a Claim on it, the screen, and the
checks by which a study may trust it. Must not know Trials, leases, files, clocks or random numbers. Boundaries, bar and
Verdicts are those of coordinator/reproduction.py.

A Pair buys a champion run with each candidate run and so cancels whatever a Node or a seed adds. The panel buys the
champion's runs once, for all Claims against it, and subtracts what it has learnt of the Node instead: a gain then costs
one run, with a variance of 1 + 1/10 instead of 2. The price: evidence is no longer self-contained. It rests on what
other runs said, and on Nodes that stay as they were; `trusted` is what a study has to ask before each Claim.

Lengths of arrays: k runs of the champion, n of the Candidate, m Nodes. Scores are oriented: larger is better.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from coordinator.mixed import Array, Nodes, Panel, Run, Spread, check_scores, twins
from coordinator.reproduction import (
    CLIPPED_VARIANCE,
    RESIDUAL_CLIP,
    Decision,
    Dial,
    Interval,
    Noise,
    Rule,
    Undecided,
    rule_for,
    settled,
    t_quantile,
)

LEAST_RUNS = 4  # of a Candidate: fewer would lean too much on the error that they share, that of the champion's level
FRESH_RUNS = 10  # of the champion after each promotion: five Blocks as in calibration, each two seeds on one Node
STAKES = 1.5  # times the bar of Pairs: Claims share the error of a level; 2 % good: 4 instead of 5 % false
CLAIMS_PER_CHECK = 8  # judged on the panel, before one more champion run is bought
RUNS_BEFORE_TRUST = 100  # of any kind, as the Nodes are not known before
SURPRISES_BEFORE_TRUST = 40  # the sd of so many unit normals lies within 0.9..1.1 in 63 %; see `trusted`
RECENT = 60  # surprises that count: of older ones a Node that has begun to drift knows nothing
CALM = (0.9, 1.1)  # sd of surprises for which the panel is switched on
ALARMED = (0.75, 1.25)  # outside of this it is switched off again


# --- the decision -----------------------------------------------------------------------------------------------------


def rule_on_panel(dial: Dial) -> Rule:
    """The boundaries on a panel: `min_pairs` and `max_pairs` count runs of the Candidate, all others are in s.

    A gain is looked for that is as large against the sd of one run as it is elsewhere against that of one Pair.
    """
    paired = rule_for(dial)
    most = paired.max_pairs + LEAST_RUNS
    return replace(paired, d1=paired.d1 / math.sqrt(2.0), min_pairs=LEAST_RUNS, max_pairs=most)


def screen_gain(panel: Panel, run: Run) -> float:
    """The gain that one run shows, in units of the metric; whether it raises a Claim says `screen_passes`."""
    mean, _ = panel.expected([run])
    return run.score - float(mean[0])


def decide_on(panel: Panel, candidate_runs: Sequence[Run], bar: float, rule: Rule) -> Decision:
    """Decide on a Candidate's fresh runs, in the order in which they became known, at the first boundary they cross.

    As `reproduction.decide`, with runs in place of Pairs: for gains x with error covariance R, in units of s, sums of
    squares become quadratic forms, Q = x'R^-1 x, S = 1'R^-1 x and n_eff = 1'R^-1 1, and
    L = [(d0 + Q) / (d0 + Q - 2 d1 S + d1^2 n_eff)]^((d0 + n) / 2). A gain counts as at most `rule.clip` of its own sd.
    The screening run is no evidence. An acceptance needs `STAKES` times the bar. `pairs` of the Decision counts runs.

    Raises:
        ValueError: a score that is no usable number, or a bar that does not lie above 1.
    """
    check_scores(candidate_runs)
    if not bar > 1.0:
        raise ValueError(f"the bar must lie above 1, got {bar}: take it from bar(campaign)")
    evidence = _Evidence.of(panel, candidate_runs, rule)
    decision = evidence.settled(0, STAKES * bar, rule)
    for n in range(1, len(candidate_runs) + 1):
        if not isinstance(decision, Undecided):
            break
        decision = evidence.settled(n, STAKES * bar, rule)
    return decision


@dataclass(frozen=True)
class _Evidence:
    """Running sums over the runs of a Claim, whitened by the Cholesky factor of R; entry n belongs to n runs."""

    s: float
    d0: int
    gains: Array
    ratios: Array
    means: Array
    residuals: Array
    """Sums of squares around the mean, in s^2."""
    weights: Array
    """n_eff."""

    @classmethod
    def of(cls, panel: Panel, runs: Sequence[Run], rule: Rule) -> "_Evidence":
        s, d0 = float(panel.spread.s), min(rule.d0, max(1, panel.spread.df))
        mean, covariance = panel.expected(runs)
        xs = (np.array([run.score for run in runs]) - mean) / s
        reach = rule.clip * np.sqrt(np.diag(covariance)) / s
        columns = np.column_stack([np.ones(len(runs)), xs, np.clip(xs, -reach, reach)])
        ones, raw, clipped = np.linalg.solve(np.linalg.cholesky(covariance / s**2), columns).T
        weights = _running(ones * ones)
        sums, squares = _running(ones * raw), _running(raw * raw)
        means = np.divide(sums, weights, out=np.zeros_like(sums), where=weights > 0.0)
        around_null = d0 + _running((clipped - rule.null * ones) ** 2)
        around_gain = d0 + _running((clipped - rule.d1 * ones) ** 2)
        ratios = np.exp((d0 + np.arange(len(runs) + 1)) / 2.0 * np.log(around_null / around_gain))
        return cls(s, d0, xs * s, ratios, means, squares - sums * means, weights)

    def settled(self, n: int, bar: float, rule: Rule) -> Decision:
        """The Decision on the first n runs, whatever fewer said."""
        interval = self.interval(n)
        return settled(float(self.ratios[n]), interval, self._described(interval), self.s, bar, rule, unit="run")

    def interval(self, n: int) -> Interval:
        """The moderated t interval of the gain that explains the first n runs best."""
        if not n:
            return Interval(0.0, -math.inf, math.inf, 0)
        df, mean = self.d0 + n - 1, float(self.means[n]) * self.s
        variance = (self.d0 + max(0.0, float(self.residuals[n]))) / df / float(self.weights[n])
        half = t_quantile(df, 0.95) * self.s * math.sqrt(variance)
        return Interval(mean, mean - half, mean + half, n)

    def _described(self, interval: Interval) -> str:
        if not interval.n:
            return "no fresh run has ended"
        better = int((self.gains[: interval.n] > 0.0).sum())
        ran = f"better than the panel on {better} of {interval.n} fresh {'run' if interval.n == 1 else 'runs'}"
        return f"{ran}, gain {interval.mean:.3g} (95% {interval.low:.3g}..{interval.high:.3g})"


# --- the switch -------------------------------------------------------------------------------------------------------


def surprises(panel: Panel, runs: Sequence[Run]) -> list[float]:
    """By how many sd each run missed what the panel and the runs before it foretold.

    For runs whose script is as good as the champion: sham edits, or the champion itself. Where the model holds these
    are independent unit normals, whatever the order.
    """
    mean, covariance = panel.expected(runs)
    gains = np.array([run.score for run in runs]) - mean
    return [float(z) for z in np.linalg.solve(np.linalg.cholesky(covariance), gains)]


@dataclass(frozen=True)
class Past:
    """What scripts that will not run again have taught: earlier champions, and Claims that are closed.

    Each has a free level of its own, so that whether it was good does not matter: only what its runs say of Nodes does.
    A Claim's runs stand under the Claim's name, also once its Candidate is the champion; a champion's are those that it
    ran as a reference, in calibration, in Pairs or for its panel.
    """

    nodes: Nodes = field(default_factory=Nodes.unknown)
    twins: tuple[float, int] = (0.0, 0)
    _newest: tuple[tuple[Nodes, tuple[Run, ...]], ...] = ()

    def after(self, runs: Sequence[Run], noise: Noise) -> "Past":
        """With one more script.

        Raises:
            ValueError: a score that is no usable number.
        """
        if len(runs) < 2:  # one run says nothing where the level is free
            return self
        check_scores(runs)
        squares, df = twins(runs)
        seen = self.twins[0] + squares, self.twins[1] + df
        nodes = self.nodes.after(runs, Spread.known(noise, seen))
        return Past(nodes, seen, (*self._newest, (self.nodes, tuple(runs)))[-RECENT:])

    def spread(self, own: Sequence[Run], noise: Noise) -> Spread:
        """What scatters scores, as it is known with the present champion's own runs."""
        ending = self.after(own, noise)
        return Spread.known(noise, ending.twins, ending.nodes)

    def panel(self, own: Sequence[Run], spread: Spread) -> Panel:
        """The panel of the present champion.

        Raises:
            ValueError: it has no run.
        """
        return Panel.of_champion(self.nodes, own, spread)

    def surprises(self, own: Sequence[Run], spread: Spread) -> list[float]:
        """By how many sd the newest runs missed what those before them foretold; the champion's own come last.

        Reckoned anew under the present spread, since early ones knew little of it. Of a Block only the first run of a
        script counts: the others follow it at once, and would not notice a Node that drifts. A script's first run
        meets a free level and has none.
        """
        found, scripts = list[list[float]](), [*self._newest, (self.nodes, tuple(own))]
        for nodes, runs in reversed(scripts):
            if sum(map(len, found)) >= RECENT:
                break
            found.append(_surprises_of(Panel.of_champion(nodes, runs, spread)) if len(runs) > 1 else [])
        return [z for one in reversed(found) for z in one][-RECENT:]


def _surprises_of(panel: Panel) -> list[float]:
    missed = enumerate(panel.surprises().tolist(), start=1)
    return [z for n, z in missed if _opens_block(panel.runs[:n], panel.runs[n])]


def _opens_block(earlier: Sequence[Run], run: Run) -> bool:
    return not run.block or all(other.block != run.block for other in earlier)


def trusted(surprises: Sequence[float], runs_seen: int, *, already: bool) -> bool:
    """Whether Claims may be judged on the panel from now on.

    `surprises` are those of `Past`, oldest first; the newest `RECENT` count, clipped as residuals are.
    A level that wanders on all Nodes alike is not noticed: a Claim is over before that, and the champion runs seldom.
    """
    if runs_seen < RUNS_BEFORE_TRUST or len(surprises) < SURPRISES_BEFORE_TRUST:
        return False
    low, high = ALARMED if already else CALM
    return low <= surprise_sd(surprises) <= high


def surprise_sd(surprises: Sequence[float]) -> float:
    """Root mean square of the newest surprises: 1 where the model holds; robust against one wild run."""
    recent = [min(abs(z), RESIDUAL_CLIP) for z in surprises[-RECENT:]]
    return math.sqrt(math.fsum(z * z for z in recent) / max(1, len(recent)) / CLIPPED_VARIANCE)


def _running(values: Array) -> Array:
    return np.concatenate([[0.0], np.cumsum(values)])
