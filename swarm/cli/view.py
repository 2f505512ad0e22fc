"""What `swarm run` shows: a live view in a terminal, plain lines elsewhere. Looks on, changes nothing."""

import time
from collections import deque
from collections.abc import Iterable, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from coordinator.leases import Presence
from coordinator.mind import Mind
from coordinator.state import Claim, State
from swarm.cli.words import Teller, plain
from swarm.records import Fact, HoldoutAnswered, Measurement, StudyFinished, TrialFinished
from swarm.task import Task

NEWEST = 8
TYPICAL_OF = 30  # trials over which a typical duration is taken


class PlainView:
    """One line per fact, with the time; for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._teller = Teller()
        self._idle_told = 0.0

    def __enter__(self) -> "PlainView":
        return self

    def __exit__(self, *_: object) -> None: ...

    def remember(self, facts: Iterable[Fact]) -> None:
        """Facts of earlier coordinators: not told again, but numbers and names come from them."""
        self._teller.lines(facts)

    def facts(self, facts: Iterable[Fact]) -> None:
        for line in self._teller.lines(facts):
            self._console.print(f"{time.strftime('%H:%M:%S')} {line}", markup=False, highlight=False, soft_wrap=True)

    def tick(self, mind: Mind, now: float) -> None: ...


class LiveView:
    """Nodes with progress bars, newest experiments, champion against baseline, claims under confirmation."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=4, transient=False)
        self._teller = Teller()
        self._lines: deque[str] = deque(maxlen=NEWEST)
        self._durations: deque[float] = deque(maxlen=TYPICAL_OF)
        self._busy = Busy()

    def __enter__(self) -> "LiveView":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def remember(self, facts: Iterable[Fact]) -> None:
        """Facts of earlier coordinators."""
        self.facts(facts)

    def facts(self, facts: Iterable[Fact]) -> None:
        for fact in facts:
            self._busy.add(fact)
            if isinstance(fact, TrialFinished) and isinstance(fact.outcome, Measurement):
                self._durations.append(fact.ended_at - fact.started_at)
            elif line := self._teller.line(fact):
                self._lines.append(line)

    def tick(self, mind: Mind, now: float) -> None:
        self._live.update(self._draw(mind, now))

    def _draw(self, mind: Mind, now: float) -> Group:
        parts: list[Text | Table] = [self._head(mind, now), self._nodes(mind), _champion(mind.state)]
        claims = [claim for claim in mind.state.open_claims.values() if not claim.sham]
        if claims:
            parts.append(_claims(claims, mind.state))
        news = Text("\n".join(self._lines), no_wrap=True, overflow="ellipsis")
        return Group(*parts, Panel(news, title="newest", border_style="dim"))

    def _head(self, mind: Mind, now: float) -> Text:
        state = mind.state
        spent, wall = state.elapsed_s(now), 60 * mind.config.stop.wall_minutes
        money = f", {state.spent.dollars:.2f} dollars" if state.spent.dollars else ""
        ending = mind.stop_reason(now)
        phase = f"final comparison ({ending})" if ending else "exploring" if state.noise else "calibrating"
        return Text(
            f"{mind.config.study}: {phase}, {spent / 60:.1f} of {wall / 60:g} min, {state.trials} trials, "
            f"{len(state.experiments)} experiments, {len(state.promotions)} promoted, "
            f"nodes busy {self._busy.share:.0%}{money}",
            style="bold",
        )

    def _nodes(self, mind: Mind) -> Table:
        table = Table(box=None, pad_edge=False, expand=True)
        for name in ("node", "trial", "progress", ""):
            table.add_column(name, ratio=3 if name == "trial" else 1, no_wrap=True)
        typical = sorted(self._durations)[len(self._durations) // 2] if self._durations else 10.0
        for presence in list(mind.presence.values())[:16]:
            table.add_row(*_node_row(presence, mind.state, typical))
        return table


class Busy:
    """Share of node time spent inside trials and at the holdout so far, kept as facts come in."""

    def __init__(self) -> None:
        self._inside: dict[str, float] = {}
        self._first: dict[str, float] = {}
        self._last = self._there = 0.0

    def add(self, fact: Fact) -> None:
        if isinstance(fact, TrialFinished):
            self._inside[fact.node] = self._inside.get(fact.node, 0.0) + fact.ended_at - fact.started_at
            self._first.setdefault(fact.node, fact.started_at)
            self._last = max(self._last, fact.ended_at)
        elif isinstance(fact, HoldoutAnswered):
            self._there += max(0.0, fact.node_s)

    @property
    def share(self) -> float:
        span = sum(self._last - first for first in self._first.values())
        return min(1.0, (self._there + sum(self._inside.values())) / span) if span > 0 else 0.0


def _node_row(presence: Presence, state: State, typical: float) -> tuple[str, str, ProgressBar | str, str]:
    report = presence.report
    if not presence.alive:
        return report.node.name, "[red]gone[/red]", "", ""
    running = report.running
    if running is None:
        return report.node.name, f"[dim]{escape(plain(report.idle)[:60])}[/dim]", "", ""
    experiment = state.experiments.get(running.experiment)
    about = f"experiment {experiment.number}: {experiment.admitted.proposal.hypothesis}" if experiment else "champion"
    bar = ProgressBar(total=typical, completed=min(running.elapsed_s, typical), width=18)
    return (
        report.node.name,
        escape(plain(f"{running.purpose} {about}")[:70]),
        bar,
        f"{running.phase} {running.elapsed_s:.0f} s",
    )


def _champion(state: State) -> Text:
    if not state.line:
        return Text("champion: the baseline")
    last = state.line[-1]
    gain = sum(claim.verdict.effect for claim in promoted_claims(state) if claim.verdict)
    text = f"champion: {_about(state, last.landed)}, "
    return Text(plain(text + f"sum of confirmed gains over the baseline {gain:.4f}"), style="green")


def promoted_claims(state: State) -> list[Claim]:
    """The claims behind the promotions that stand, in their order."""
    return [state.claims[(p.experiment, p.base)] for p in state.line if (p.experiment, p.base) in state.claims]


def _claims(claims: list[Claim], state: State) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("under confirmation", "pairs", "mean gain", "noise s", "bar"):
        table.add_column(name, no_wrap=True)
    for claim in claims[:6]:
        gains = [pair.gain for pair in claim.pairs]
        mean = f"{sum(gains) / len(gains):+.4f}" if gains else "-"
        about = escape(plain(_about(state, claim.ideas or (claim.experiment,)))[:70])
        table.add_row(about, str(len(gains)), mean, f"{claim.noise.sd:.4f}", f"{claim.bar:.0f}:1")
    return table


def _about(state: State, ideas: Sequence[str]) -> str:
    """One experiment with its words, or the numbers of those that were joined."""
    found = [state.experiments[idea] for idea in ideas]
    if len(found) > 1:
        return f"experiments {', '.join(str(one.number) for one in found)} together"
    return f"experiment {found[0].number}: {found[0].admitted.proposal.hypothesis}"


def final_words(finished: StudyFinished, task: Task, folder: str) -> list[str]:
    """What the last lines of a study say."""
    lines = [f"study finished: {finished.reason}"]
    if finished.final_gain is None or finished.low is None or finished.high is None:
        lines.append(
            "no promotion: nothing that was proposed reproduced as better than the baseline; the report says why"
        )
    else:
        lines.append(
            f"champion against baseline on {finished.pairs} fresh seeds: {task.metric} better by "
            f"{finished.final_gain:.4f} (95 % interval {finished.low:.4f} to {finished.high:.4f}), "
            f"{'self-reported' if task.score == 'printed' else 'validation split'}"
        )
    lines.append(f"nodes were busy {finished.busy:.1%} of the time between the first and the last trial")
    lines.append(f"read {folder}/report.md, {folder}/LEADERBOARD.md and {folder}/progress.png")
    return lines
