"""A mixed model of scores: level of the script + Node + seed + noise. Pure.

Owns what scatters the scores of champions, what their runs teach of the Nodes, and what is known of the present one. It
must not know Claims, bars, Trials, files, clocks or random numbers: coordinator/panel.py decides.

Lengths of arrays: k runs of the champion, n runs that are asked about, m Nodes.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordinator.reproduction import LARGEST_GAIN, RESIDUAL_CLIP, Noise

Array = NDArray[np.floating[Any]]

_NODE_GRID = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # sd of Nodes in sd of a run; finer ones change no Verdict
_CLIP_ROUNDS = 3  # the fourth moves a level by less than 0.01 sd
_VAGUE_LEVEL = 1e4  # its square leaves eight digits of a unit variance
_VAGUE_NODE = 16.0  # while runs are clipped, before the sd of Nodes is known


class Run(NamedTuple):
    """One scored run of a script."""

    script: str
    """Id of the Candidate that ran; every script has its own free level."""
    node: str
    seed: int
    score: float
    """Oriented: larger is better."""
    block: str = ""
    """Runs of one Block ran back to back on one Node: what they differ by is no drift. Empty: unknown."""


class Spread(NamedTuple):
    """What scatters scores, each as an sd in units of the metric."""

    noise: float
    """What is left when script, Node and seed are the same: s of a Pair divided by the square root of 2."""
    node: float
    """Of the level of Nodes."""
    seed: float
    """Of what two scripts share that run on one seed."""
    df: int
    """Degrees of freedom of `noise`."""

    @property
    def s(self) -> float:
        """The sd of the gain of one Pair, the unit of every `Rule`."""
        return self.noise * math.sqrt(2.0)

    @property
    def run_variance(self) -> float:
        """Of one run on a fresh seed around its script's level on its Node."""
        return self.noise**2 + self.seed**2

    @classmethod
    def known(cls, noise: Noise, twins: tuple[float, int], nodes: "Nodes | None" = None) -> "Spread":
        """What is known by now. Only what ran back to back may tell noise from drift.

        The noise is that of Pairs. What seeds add to it is taken from `twins`, runs of one script within one Block,
        and is 0 until they show it at two standard errors; until then they tell of the noise as Pairs do. Only the sd
        of Nodes comes from runs at other times.
        """
        (sum_squares, df), paired = twins, noise.df * noise.sd**2 / 2.0
        pairs = cls(noise.sd / math.sqrt(2.0), 0.0, 0.0, noise.df)
        ratio = sum_squares / max(1, df) / pairs.noise**2
        if ratio > 1.0 + 2.0 * math.sqrt(2.0 / max(1, df) + 2.0 / max(1, noise.df)):
            spread = pairs._replace(seed=pairs.noise * math.sqrt(ratio - 1.0))
        elif paired > 0.0:
            spread = pairs._replace(noise=math.sqrt((paired + sum_squares) / (noise.df + df)), df=noise.df + df)
        else:
            spread = pairs
        return spread._replace(node=nodes.sd(spread)) if nodes is not None else spread


def twins(champion_runs: Iterable[Run]) -> tuple[float, int]:
    """Sum of squares and degrees of freedom of what differs within Blocks: one script and Node, different seeds."""
    total, df = 0.0, 0
    for runs in _grouped(champion_runs, lambda run: (run.script, run.node, run.block)):
        scores = list({run.seed: run.score for run in runs}.values())
        if runs[0].block and len(scores) > 1:
            mean = math.fsum(scores) / len(scores)
            total += math.fsum((score - mean) ** 2 for score in scores)
            df += len(scores) - 1
    return total, df


@dataclass(frozen=True)
class Nodes:
    """What other scripts, each with a free level, teach of the Nodes: counts and sums, no estimates yet."""

    index: dict[str, int]
    information: Array
    """m x m: runs of each Node, less what the free levels take."""
    weighted: Array
    """m: sums of scores around their script's mean."""

    @classmethod
    def unknown(cls) -> "Nodes":
        """Before any champion has run."""
        return cls({}, np.zeros((0, 0)), np.zeros(0))

    @classmethod
    def of(cls, runs_of_all: Sequence[Run], spread: Spread) -> "Nodes":
        """From all runs of these scripts, in the order in which the scripts came."""
        nodes = cls.unknown()
        for runs in by_script(runs_of_all):
            nodes = nodes.after(runs, spread)
        return nodes

    def after(self, runs: Sequence[Run], spread: Spread) -> "Nodes":
        """With one more script's runs, wild ones clipped."""
        wider = self.covering(run.node for run in runs)
        vague = spread._replace(node=_VAGUE_NODE * math.sqrt(spread.run_variance))
        scores = Panel.of_champion(wider, runs, vague).scores
        at = np.zeros((len(runs), len(wider.index)))
        at[np.arange(len(runs)), [wider.index[run.node] for run in runs]] = 1.0
        around = at - at.mean(axis=0)
        return Nodes(
            wider.index, wider.information + at.T @ around, wider.weighted + around.T @ (scores - scores.mean())
        )

    def covering(self, names: Iterable[str]) -> "Nodes":
        """With Nodes of these names, too, of which nothing may be known."""
        index = dict(self.index)
        for name in names:
            index.setdefault(name, len(index))
        new = len(index) - len(self.index)
        if not new:
            return self
        return Nodes(index, np.pad(self.information, (0, new)), np.pad(self.weighted, (0, new)))

    def sd(self, spread: Spread) -> float:
        """The sd of Nodes under which these runs are likeliest (REML on a grid)."""
        unit = spread.run_variance
        values, vectors = np.linalg.eigh(self.information)
        along = (vectors.T @ self.weighted) ** 2 / unit
        ratios = np.array(_NODE_GRID)[:, None] ** 2
        grown = 1.0 + ratios * np.maximum(values, 0.0)
        likelihood = (ratios * along / grown - np.log(grown)).sum(axis=1)
        return _NODE_GRID[int(np.argmax(likelihood))] * math.sqrt(unit)

    def believed(self, spread: Spread) -> tuple[Array, Array]:
        """Mean (m) and covariance (m x m) of the Nodes' levels."""
        if not spread.node:
            return np.zeros(len(self.index)), np.zeros_like(self.information)
        precision = self.information / spread.run_variance + np.eye(len(self.index)) / spread.node**2
        covariance: Array = np.linalg.inv(precision)
        return covariance @ self.weighted / spread.run_variance, covariance


@dataclass(frozen=True)
class Panel:
    """What is known of one champion. Immutable: a Claim is judged on the panel of its beginning.

    Build it with `panel_of`; the runs of a Candidate never enter it, also not after its promotion.
    """

    spread: Spread
    runs: tuple[Run, ...]
    """Of the champion, at least one."""
    scores: Array
    """k: theirs, wild ones clipped."""
    level: float
    _nodes: Nodes
    _believed: tuple[Array, Array]
    _covariance: Array
    _precision: Array
    _residuals: Array
    _level_variance: float

    @classmethod
    def of_champion(cls, nodes: Nodes, champion_runs: Sequence[Run], spread: Spread) -> "Panel":
        """From one champion's runs, and from what earlier ones taught of the Nodes."""
        if not champion_runs:
            raise ValueError("a panel needs a run of the champion: lease its Blocks before anything is judged on it")
        nodes = nodes.covering(run.node for run in champion_runs)
        mean, of_nodes = believed = nodes.believed(spread)
        at = _places(nodes, champion_runs)
        between = of_nodes[np.ix_(at, at)] + spread.seed**2 * _same_seed(champion_runs, champion_runs)
        covariance = between + spread.noise**2 * np.eye(len(at))
        precision: Array = np.linalg.inv(covariance)
        raw = np.array([run.score for run in champion_runs])
        sums = precision.sum(axis=1)
        projected = precision - np.outer(sums, sums) / sums.sum()
        scores = _clipped(raw, mean[at], projected)
        level = float(sums @ (scores - mean[at]) / sums.sum())
        residuals = scores - mean[at] - level
        return cls(
            spread,
            tuple(champion_runs),
            scores,
            level,
            nodes,
            believed,
            covariance,
            precision,
            residuals,
            1.0 / float(sums.sum()),
        )

    def surprises(self) -> Array:
        """By how many sd each champion run but the first missed what those before it foretold (k - 1).

        In one go: where nothing is known of the level (its variance is huge) these are the whitened residuals. Wild
        runs foretell as clipped ones, and surprise as they are.
        """
        factor = np.linalg.cholesky(self._covariance + _VAGUE_LEVEL**2 * self.spread.run_variance)
        raw = np.array([run.score for run in self.runs])
        missed: Array = np.linalg.solve(factor, self._residuals) + (raw - self.scores) / np.diag(factor)
        return missed[1:]

    def expected(self, runs: Sequence[Run]) -> tuple[Array, Array]:
        """Mean (n) and covariance (n x n, noise included) of these runs' scores if their script is the champion's."""
        wider = self._nodes.covering(run.node for run in runs)
        mean, covariance = self._believed if wider is self._nodes else wider.believed(self.spread)
        at, theirs = _places(wider, runs), _places(wider, self.runs)
        seed = self.spread.seed**2
        shared = covariance[np.ix_(at, theirs)] + (seed * _same_seed(runs, self.runs) if seed else 0.0)
        own = covariance[np.ix_(at, at)] + (seed * _same_seed(runs, runs) if seed else 0.0)
        weights = shared @ self._precision
        unexplained = 1.0 - weights.sum(axis=1)
        spread = own - weights @ shared.T + self._level_variance * np.outer(unexplained, unexplained)
        spread[np.diag_indices(len(at))] += self.spread.noise**2
        return mean[at] + self.level + weights @ self._residuals, spread


def panel_of(champion: str, runs: Sequence[Run], spread: Spread) -> Panel:
    """The panel of a champion, from its runs and from those of other scripts, which only teach the Nodes.

    Within one script the order of runs changes nothing. What the champion ran as a Candidate must not be among its
    own runs, for ever: it was promoted because they were good. Give them the Claim's name.

    Raises:
        ValueError: no run of this champion, or a score that is no usable number.
    """
    check_scores(runs)
    nodes = Nodes.of([run for run in runs if run.script != champion], spread)
    return Panel.of_champion(nodes, [run for run in runs if run.script == champion], spread)


def _clipped(raw: Array, known: Array, projected: Array) -> Array:
    """Pull runs to within `RESIDUAL_CLIP` sd of what the other runs of the champion foretell of them.

    Row i of `projected` times the scores, over its diagonal, is how far run i lies from what the others say, and one
    over the diagonal is that distance's variance (leave one out, in closed form).
    """
    information = np.diag(projected)
    if len(raw) < 3:  # of two that disagree nobody knows which one is wild
        return raw
    sd, scores = 1.0 / np.sqrt(information), raw
    for _ in range(_CLIP_ROUNDS):
        foretold = scores - projected @ (scores - known) / information
        scores = foretold + np.clip(raw - foretold, -RESIDUAL_CLIP * sd, RESIDUAL_CLIP * sd)
    return scores


def _places(nodes: Nodes, runs: Sequence[Run]) -> list[int]:
    return [nodes.index[run.node] for run in runs]


def _same_seed(left: Sequence[Run], right: Sequence[Run]) -> Array:
    return np.equal.outer([run.seed for run in left], [run.seed for run in right]).astype(np.float64)


def by_script(runs: Iterable[Run]) -> list[list[Run]]:
    """The runs of each script, in the order in which the scripts first appear."""
    return _grouped(runs, lambda run: run.script)


def _grouped(runs: Iterable[Run], key: Callable[[Run], object]) -> list[list[Run]]:
    groups: dict[object, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return list(groups.values())


def check_scores(runs: Sequence[Run]) -> None:
    """Refuse what is no score.

    Raises:
        ValueError: a score that is no usable number.
    """
    for run in runs:
        if not abs(run.score) <= LARGEST_GAIN:  # also true of NaN
            raise ValueError(f"a run of {run.script} on {run.node}, seed {run.seed}: {run.score} is no usable score")
