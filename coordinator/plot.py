"""progress.png: every experiment, what was claimed, and what was confirmed, told apart. Pure: facts in, bytes out.

Two lines that people confuse elsewhere are kept apart here. "Claimed" is the best screening score of any claim so far:
one seed, selected for being good, so it flatters. "Confirmed" is the baseline moved by the published gain of each
promotion. Knows nothing of files and of matplotlib's global state, so that it may be called from any thread.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from textwrap import shorten
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from coordinator.wording import Step, numbers, steps
from swarm.history import Experiment, History
from swarm.records import Promotion

WIDTH_PX, HEIGHT_PX, DPI = 1200, 700, 100
INK, PALE, GRID = "#22282e", "#6b747d", "#e4e7ea"
DROPPED, KEPT, CLAIMED, CONFIRMED, FAILED = "#a9b0b7", "#009e73", "#e69f00", "#0072b2", "#d55e00"  # Okabe and Ito: safe
LISTED = 9  # promotions in words beside the plot: as many as fit
NUMBERED = 24  # more promotions than this would hide the plot behind their numbers
CHANGE_CHARACTERS = 33  # what fits into the column beside the plot
BODY: Final = 10.0
SMALL: Final = 9.0


@dataclass(frozen=True)
class _Point:
    """An experiment with a score."""

    x: int
    y: float
    experiment: Experiment


@dataclass(frozen=True)
class _Drawing:
    """All numbers of the picture, before any of it is drawn."""

    history: History
    baseline: float | None
    points: tuple[_Point, ...]
    failed: tuple[int, ...]  # experiment numbers
    line: tuple[Step, ...]
    at: tuple[int, ...]  # of each promotion: how many experiments had been admitted by then
    claimed: tuple[tuple[int, float], ...]  # where the best claim so far improves

    def level(self, gain: float) -> float:
        """The score that a gain over the baseline means."""
        sign = -1.0 if self.history.direction == "minimize" else 1.0
        return (self.baseline or 0.0) + sign * gain

    @property
    def right(self) -> int:
        return max([1, *(e.number for e in self.history.experiments)])


def progress_png(history: History) -> bytes:
    """The picture, 1200 x 700."""
    drawing = _drawing(history)
    figure = Figure(figsize=(WIDTH_PX / DPI, HEIGHT_PX / DPI), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0.068, 0.09, 0.607, 0.765))
    _style(axes, drawing)
    _draw_experiments(axes, drawing)
    _draw_lines(axes, drawing)
    _draw_margin(axes, drawing)
    _draw_percent(axes, drawing)
    _write_head(figure, drawing)
    _write_side(figure, drawing)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


# --- numbers ---------------------------------------------------------------------------------------------


def _drawing(history: History) -> _Drawing:
    points = tuple(_points(history))
    line = steps(history)
    return _Drawing(
        history=history,
        baseline=history.baseline_score(),
        points=points,
        failed=tuple(e.number for e in history.experiments if e.status == "failed"),
        line=line,
        at=tuple(_admitted_by(history, step.promotion) for step in line),
        claimed=_running_best(history, [p for p in points if p.experiment.claims]),
    )


def _points(history: History) -> list[_Point]:
    """Screening scores; those of other Platforms shifted by the difference of the baselines."""
    home, found = history.baseline_score(), []
    for experiment in history.experiments:
        if experiment.trial is None or experiment.score is None:
            continue
        there = history.baseline_score(experiment.trial.platform)
        shift = home - there if home is not None and there is not None else 0.0
        found.append(_Point(experiment.number, experiment.score + shift, experiment))
    return found


def _admitted_by(history: History, promotion: Promotion) -> int:
    """Where a promotion stands on the axis of experiments."""
    return max(1, sum(experiment.admitted.at <= promotion.at for experiment in history.experiments))


def _running_best(history: History, points: Sequence[_Point]) -> tuple[tuple[int, float], ...]:
    best: list[tuple[int, float]] = []
    for point in points:
        if not best or history.gain(point.y, best[-1][1]) > 0:
            best.append((point.x, point.y))
    return tuple(best)


def _limits(drawing: _Drawing) -> tuple[float, float]:
    """A window on what matters: the lines and the bulk of the points; the far worse ones are marked at the edge."""
    gains = [drawing.history.gain(p.y, drawing.level(0.0)) for p in drawing.points]
    losses = [-gain for gain in gains if gain < 0]
    best = max([*gains, *(step.total for step in drawing.line), *_tops(drawing.line), 0.0])
    usual = 2.0 * median(losses or [0.0])
    worst = -min(max(losses, default=0.0), max(0.6 * best, min(usual, 1.5 * best) if best > 0 else usual))
    margin = 0.09 * (best - worst) or 0.01 * abs(drawing.level(0.0)) or 1.0
    ends = sorted((drawing.level(worst - margin), drawing.level(best + margin)))
    return ends[0], ends[1]


def _tops(line: Sequence[Step]) -> list[float]:
    """The good ends of the error bars."""
    return [step.total - step.gain + step.verdict.high for step in line if step.verdict]


# --- the plot --------------------------------------------------------------------------------------------


def _style(axes: Axes, drawing: _Drawing) -> None:
    axes.set_ylim(*_limits(drawing))
    axes.set_xlim(0.2 if drawing.right < 30 else -0.01 * drawing.right, 1.025 * drawing.right + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8))
    axes.yaxis.set_major_formatter(f"{{x:.{min(numbers(drawing.history).decimals, 4)}f}}")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=PALE, labelcolor=INK, labelsize=SMALL, length=3)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(side == "bottom")
    axes.spines["bottom"].set_color(PALE)
    axes.set_xlabel("experiment", color=INK, fontsize=BODY, labelpad=4)
    if not drawing.history.experiments:
        axes.text(0.5, 0.5, "no experiment yet", transform=axes.transAxes, ha="center", color=PALE, fontsize=14)
        axes.set_xticks([])
        axes.set_yticks([])


def _draw_experiments(axes: Axes, drawing: _Drawing) -> None:
    small = 34 if drawing.right <= 150 else 16
    _scatter(axes, drawing, lambda e: not e.kept, color=DROPPED, s=0.7 * small, linewidths=0, zorder=2)
    _scatter(axes, drawing, lambda e: e.kept and not e.claims, color=KEPT, s=small, linewidths=0, zorder=3)
    unconfirmed = {"facecolors": "white", "edgecolors": KEPT, "s": 1.15 * small, "linewidths": 1.5, "zorder": 4}
    _scatter(axes, drawing, lambda e: bool(e.claims) and not e.promotion, **unconfirmed)
    promoted = {"facecolors": KEPT, "edgecolors": CONFIRMED, "s": 1.3 * small, "linewidths": 1.6, "zorder": 5}
    _scatter(axes, drawing, lambda e: e.promotion is not None, **promoted)


def _scatter(axes: Axes, drawing: _Drawing, wanted: Callable[[Experiment], bool], **look: object) -> None:
    points = [p for p in drawing.points if wanted(p.experiment)]
    axes.scatter([p.x for p in points], [p.y for p in points], **look)  # type: ignore[arg-type]  # styles are mixed


def _draw_lines(axes: Axes, drawing: _Drawing) -> None:
    if drawing.baseline is None:
        return
    axes.axhline(drawing.baseline, color=PALE, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1)
    if drawing.claimed:
        xs, ys = zip(*drawing.claimed, strict=True)
        xs, ys = (0, *xs, axes.get_xlim()[1]), (drawing.baseline, *ys, ys[-1])
        axes.plot(xs, ys, drawstyle="steps-post", color=CLAIMED, linewidth=1.2, linestyle=(0, (5, 3)), zorder=2.5)
    levels = [drawing.level(0.0), *(drawing.level(step.total) for step in drawing.line)]
    xs, ys = (0, *drawing.at, axes.get_xlim()[1]), (*levels, levels[-1])
    axes.plot(xs, ys, drawstyle="steps-post", color=CONFIRMED, linewidth=2.4, zorder=3.5, solid_capstyle="butt")
    for step, x in zip(drawing.line, drawing.at, strict=True):
        _draw_promotion(axes, drawing, step, x)
        if len(drawing.line) <= NUMBERED:
            _draw_badge(axes, drawing, step, x)


def _draw_promotion(axes: Axes, drawing: _Drawing, step: Step, x: int) -> None:
    """The confirmed level with the interval of its gain."""
    level, before = drawing.level(step.total), step.total - step.gain
    axes.plot([x], [level], marker="o", markersize=4, color=CONFIRMED, zorder=6)
    if step.verdict is not None:
        ends = [drawing.level(before + step.verdict.low), drawing.level(before + step.verdict.high)]
        axes.plot([x, x], ends, color=INK, linewidth=1.2, marker="_", markersize=8, markeredgewidth=1.2, zorder=5.5)


def _draw_badge(axes: Axes, drawing: _Drawing, step: Step, x: int) -> None:
    """The number under which the promotion is told beside the plot, tied to its own screening, which flattered."""
    level = drawing.level(step.total)
    for point in drawing.points:
        if point.experiment is step.experiment:
            axes.plot([point.x, x], [point.y, level], color=CONFIRMED, linewidth=0.8, linestyle=(0, (1, 1)), zorder=3)
    axes.plot([x], [level], marker="o", markersize=13, color=CONFIRMED, markeredgecolor="white", zorder=7)
    number = axes.text(x, level, str(step.promotion.number), color="white", fontsize=8, fontweight="bold", zorder=8)
    number.set_horizontalalignment("center")
    number.set_verticalalignment("center_baseline")


def _draw_margin(axes: Axes, drawing: _Drawing) -> None:
    """What has no place inside: scores beyond the window as arrows at their edge, failures as crosses at the bottom."""
    low, high = axes.get_ylim()
    for outside, edge, marker in (
        ([p.x for p in drawing.points if p.y > high], 0.988, "^"),
        ([p.x for p in drawing.points if p.y < low], 0.035, "v"),
    ):
        axes.scatter(
            outside, [edge] * len(outside), transform=axes.get_xaxis_transform(), marker=marker, color=DROPPED, s=22
        )
    places = [0.012] * len(drawing.failed)
    transform = axes.get_xaxis_transform()
    axes.scatter(drawing.failed, places, transform=transform, marker="x", color=FAILED, s=22, linewidths=1.3)


def _draw_percent(axes: Axes, drawing: _Drawing) -> None:
    """The same axis as gain over the baseline."""
    baseline, sign = drawing.baseline, -1.0 if drawing.history.direction == "minimize" else 1.0
    if not baseline:
        return

    def to_percent(score: float) -> float:
        return sign * 100 * (score - baseline) / abs(baseline)

    def to_score(share: float) -> float:
        return baseline + sign * share / 100 * abs(baseline)

    other = axes.secondary_yaxis("right", functions=(to_percent, to_score))  # type: ignore[arg-type]  # asks for arrays too
    other.yaxis.set_major_locator(MaxNLocator(nbins=8))
    other.yaxis.set_major_formatter(PercentFormatter(decimals=None, symbol=" %"))
    other.tick_params(colors=PALE, labelcolor=PALE, labelsize=SMALL, length=0)
    other.spines["right"].set_visible(False)


# --- words -----------------------------------------------------------------------------------------------


def _write_head(figure: Figure, drawing: _Drawing) -> None:
    history = drawing.history
    study = history.opened.study if history.opened else "no study yet"
    best = drawing.line[-1].total if drawing.line else 0.0
    share = f" ({100 * best / abs(drawing.baseline):.2f} %)" if drawing.baseline else ""
    promotions = f"{len(drawing.line)} promotion{'' if len(drawing.line) == 1 else 's'}"
    told = f"confirmed {numbers(history).gain(best)}{share} by {promotions}" if drawing.line else "nothing promoted"
    figure.text(0.068, 0.948, _glyphs(study), fontsize=15, fontweight="bold", color=INK, parse_math=False)
    summary = f"{len(history.experiments)} experiments, {len(history.trials)} trials, {told}"
    figure.text(0.068, 0.914, summary, fontsize=BODY + 0.5, color=PALE)
    marked = ", self-reported" if history.self_reported else ""
    way = "lower is better" if history.direction == "minimize" else "higher is better"
    axis = f"{_glyphs(history.metric)}{marked}, {way}"
    figure.text(0.022, 0.872, axis, fontsize=SMALL, color=INK, parse_math=False)
    if drawing.baseline:
        figure.text(0.724, 0.872, "gain over the baseline", fontsize=SMALL, color=PALE, ha="right")


def _write_side(figure: Figure, drawing: _Drawing) -> None:
    left = 0.747
    handles = [_handle(*look) for look in _legend(drawing)]
    legend = figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(left - 0.012, 0.965), frameon=False)
    for text in legend.get_texts():
        text.set_color(INK)
        text.set_fontsize(SMALL + 0.5)
    figure.text(left, 0.585, "Promotions", fontsize=BODY + 1, fontweight="bold", color=INK)
    if not drawing.line:
        figure.text(left, 0.545, "none: nothing has reproduced", fontsize=SMALL + 0.5, color=PALE)
    earlier = len(drawing.line) - LISTED
    if earlier > 0:
        figure.text(left + 0.09, 0.585, f"({earlier} earlier ones not listed)", fontsize=SMALL - 0.5, color=PALE)
    for place, step in enumerate(drawing.line[-LISTED:]):
        _write_promotion(figure, drawing, step, left, 0.545 - 0.05 * place)


def _write_promotion(figure: Figure, drawing: _Drawing, step: Step, left: float, y: float) -> None:
    change = shorten(_glyphs(step.change) or "(no words)", CHANGE_CHARACTERS, placeholder=" ...")
    number = str(step.promotion.number)
    figure.text(left + 0.016, y, number, fontsize=SMALL, fontweight="bold", color=CONFIRMED, ha="right")
    figure.text(left + 0.024, y, change, fontsize=SMALL, color=INK, parse_math=False)
    interval, write = "", numbers(drawing.history)
    if step.verdict is not None:
        interval = f"   95 %: {write.gain(step.verdict.low)} to {write.gain(step.verdict.high)}"
    figure.text(left + 0.024, y - 0.022, f"{write.gain(step.gain)}{interval}", fontsize=SMALL - 1, color=PALE)


_Look = tuple[str, dict[str, object]]


def _legend(drawing: _Drawing) -> list[_Look]:
    dot: dict[str, object] = {"marker": "o", "linestyle": ""}
    return [
        (
            "confirmed champion, 95 % interval",
            {"color": CONFIRMED, "linewidth": 2.4, "marker": "o", "markersize": 8},
        ),
        ("claimed: best screening, one seed", {"color": CLAIMED, "linewidth": 1.3, "linestyle": (0, (5, 3))}),
        ("baseline", {"color": PALE, "linewidth": 1.0, "linestyle": (0, (1, 2))}),
        ("promoted", {**dot, "color": KEPT, "markeredgecolor": CONFIRMED, "markersize": 7, "markeredgewidth": 1.6}),
        ("claimed, not confirmed", {**dot, "color": "white", "markeredgecolor": KEPT, "markeredgewidth": 1.5}),
        ("kept on its branch", {**dot, "color": KEPT, "markeredgewidth": 0}),
        ("dropped; arrow: beyond the edge", {**dot, "color": DROPPED, "markeredgewidth": 0, "markersize": 5}),
        ("failed: no score", {"marker": "x", "linestyle": "", "color": FAILED, "markersize": 5}),
    ]


def _handle(label: str, look: dict[str, object]) -> Line2D:
    return Line2D([], [], label=label, **look)  # type: ignore[arg-type]  # styles are mixed


def _glyphs(text: str) -> str:
    """Words that the shipped font can draw, on one line."""
    return " ".join("".join(c if c.isprintable() and c < "\u0250" else " " for c in text).split())
