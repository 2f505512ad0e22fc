"""What `swarm status`, `show` and `leaderboard` print for people: tables that fit 80 columns. Pure; from a History.

Everything that a node, a proposer or a candidate wrote passes through `plain` and `escape` before it is shown.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from coordinator.wording import (
    TOGETHER,
    Step,
    count,
    demotion,
    direction,
    duration,
    holdout,
    numbers,
    panel,
    proxy,
    shams,
    steps,
    together,
)
from swarm.cli.words import plain
from swarm.history import Experiment, History, Pair, Status, failure_of, score_of
from swarm.proxy import proxy_health
from swarm.records import Failure, Measurement, TrialFinished, Verdict
from swarm.source import describe_edit

LOG_LINES = 8  # of what died; the whole tail stands in `swarm show --json`
STATUSES: tuple[Status, ...] = (
    "promoted",
    "accepted",
    "claimed",
    "rejected",
    "kept",
    "dropped",
    "failed",
    "running",
    "waiting",
)


# --- status ----------------------------------------------------------------------------------------------


def status_table(name: str, told: History) -> Table:
    """How the study stands, one line per question."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for question, answer in _answers(name, told):
        table.add_row(question, escape(plain(answer)))
    return table


def _answers(name: str, told: History) -> Iterator[tuple[str, str]]:
    yield "study", f"{name}, {_state(told)}"
    if told.opened is None:
        return
    yield "score", f"{told.metric}, {direction(told)}{', self-reported' if told.self_reported else ''}"
    yield "champion", _champion(told)
    if told.line:
        yield "gain", _gain(told)
    for found in told.demotions[-1:]:
        yield "demoted", demotion(told, found)
    yield "ideas", _ideas(told)
    yield "trials", _trials(told)
    yield "nodes", _nodes(told)
    if proxy_health(told).claims:
        yield "screening", proxy(told)
    yield "panel", panel(told)
    if told.shams:
        yield "shams", f"{shams(told)}; edits that change nothing, to audit the chain"
    yield "cost", _cost(told)


def _state(told: History) -> str:
    if told.opened is None:
        return "not begun: its coordinator ended before the first fact; the same `swarm run` begins it"
    lasted = duration(told.last_at - told.opened.at)
    again = f", {count(told.sessions, 'coordinator')} so far" if told.sessions > 1 else ""
    return f"finished after {lasted}: {told.finished.reason}" if told.finished else f"open for {lasted}{again}"


def _champion(told: History) -> str:
    line = steps(told)
    if not line:
        return "the baseline; nothing has reproduced yet"
    newest = line[-1]
    about = f"experiment {newest.experiment.number}" if newest.experiment else newest.promotion.experiment[:8]
    return f"{about}: {newest.change} ({count(len(line), 'promotion')})"


def _gain(told: History) -> str:
    write, end = numbers(told), told.finished
    summed = f"{write.gain(steps(told)[-1].total)} over the baseline, the published gains summed up"
    if end is None or end.final_gain is None:
        return summed
    seeds = count(end.pairs, "fresh seed")
    return f"{summed}; {write.gain(end.final_gain)} {write.interval(end.low, end.high)} measured at the end on {seeds}"


def _ideas(told: History) -> str:
    found = Counter(experiment.status for experiment in told.experiments)
    parts = ", ".join(f"{found[status]} {status}" for status in STATUSES if found[status])
    refused = f"; {count(len(told.refused), 'proposal')} refused as tried before" if told.refused else ""
    return f"{len(told.experiments)}{f': {parts}' if parts else ''}{refused}"


def _trials(told: History) -> str:
    failed = sum(failure_of(trial) is not None for trial in told.trials.values())
    disturbed = f", {len(told.disturbed)} disturbed and run again" if told.disturbed else ""
    return f"{len(told.trials)} finished, {failed} of them failed{disturbed}"


def _nodes(told: History) -> str:
    names = ", ".join(f"{node.name} ({node.sandbox})" for node in list(told.nodes.values())[:8])
    more = f" and {len(told.nodes) - 8} more" if len(told.nodes) > 8 else ""
    return f"{names}{more}; busy {told.busy:.1%} of the time" if names else "none yet"


def _cost(told: History) -> str:
    tokens = told.spent.input_tokens + told.spent.output_tokens
    inside = sum(trial.ended_at - trial.started_at for trial in told.trials.values())
    hours = (inside + sum(answer.node_s for answer in told.holdout_answers)) / 3600
    money = f", {tokens:,} tokens, {told.spent.dollars:.2f} dollars" if tokens or told.spent.dollars else ""
    return f"{hours:.2g} node-hours in trials and at the holdout{money}"


# --- one experiment --------------------------------------------------------------------------------------


def experiment_page(told: History, experiment: Experiment) -> Iterator[RenderableType]:
    """Hypothesis, diff, every trial, what failed, verdicts with their Pairs."""
    request = f" as {experiment.promotion.request}" if experiment.promotion else ""
    yield Text(f"experiment {experiment.number}: {plain(experiment.hypothesis)}", style="bold")
    where = f"by {experiment.proposer} on {told.node_name(experiment.node)}, branch {experiment.branch}"
    yield Text(plain(f"{experiment.status}{request}; {where}"))
    yield Text(plain(f"candidate {experiment.candidate}, parent {experiment.parent[:8]}"))
    yield Text("")
    yield from _diff(experiment)
    if experiment.screened is not None:
        gain = "" if experiment.screened.gain is None else f" ({experiment.screened.gain:+.4f})"
        yield Text(plain(f"screening: {experiment.screened.reason}{gain}"))
    trials = [trial for trial in told.trials.values() if trial.experiment == experiment.idea]
    if trials:
        yield _trial_table(told, trials)
    for trial in trials:
        yield from _failure(trial)
    for verdict in experiment.verdicts:
        yield Text("")
        against = "the baseline" if verdict.base == told.baseline else f"champion {verdict.base[:8]}"
        told_so = f"verdict against {against}: {verdict.reason}"  # an idea that was carried has one for each champion
        yield Text(plain(told_so), style="green" if verdict.accepted else "yellow")
        if verdict.evidence:
            yield _pair_table(told, verdict)
    if experiment.holdout is not None:
        yield Text("")
        yield Text(plain(holdout(experiment.holdout)), style="green" if experiment.holdout.passed else "yellow")


def _diff(experiment: Experiment) -> Iterator[Text]:
    colours = {"+": "green", "-": "red", "@": "cyan"}
    diff = describe_edit(experiment.parent_files, experiment.admitted.proposal.files)
    for line in diff.expandtabs(4).splitlines():
        yield _code(line, colours.get(line[:1], ""))
    yield Text("")


def _trial_table(told: History, trials: Iterable[TrialFinished]) -> Table:
    table = _table("trial", "purpose", "-seed", "node", f"-{told.metric}", "-CPU-s", "-MB")
    for trial in trials:
        out = trial.outcome
        cells = (
            (f"{out.score:.4f}", f"{out.cpu_s:.1f}", f"{out.peak_memory_mb:.0f}")
            if isinstance(out, Measurement)
            else (f"failed: {out.reason}", f"{out.cpu_s:.1f}", "")
        )
        _row(table, trial.trial[:8], trial.purpose, str(trial.seed), told.node_name(trial.node), *cells)
    return table


def _failure(trial: TrialFinished) -> Iterator[Text]:
    """Why it has no score, and the last lines of what it printed."""
    if isinstance(trial.outcome, Failure):
        yield Text("")
        yield Text(plain(f"trial {trial.trial[:8]} failed: {trial.outcome.reason}: {trial.outcome.message}"))
        for line in trial.log.expandtabs(4).splitlines()[-LOG_LINES:]:
            yield _code(f"  | {line}", "dim")


def _code(line: str, style: str) -> Text:
    """A line that stands as it is, however long."""
    return Text(plain(line), style=style, no_wrap=True, overflow="ignore")


def _pair_table(told: History, verdict: Verdict) -> Table:
    write = numbers(told)
    table = _table("-seed", "node", "-champion then", "-candidate", "-gain")
    for pair in told.pairs(verdict):
        before, after = score_of(pair.champion), score_of(pair.candidate)
        gain = None if before is None or after is None else told.gain(after, than=before)
        one = pair.candidate or pair.champion
        seed, node = (str(one.seed), told.node_name(one.node)) if one else ("?", "?")
        _row(table, seed, node, write.score(before), _score(pair, write.score(after)), write.gain(gain))
    return table


def _score(pair: Pair, shown: str) -> str:
    failure = failure_of(pair.candidate)
    return failure.reason if failure else shown


# --- leaderboard -----------------------------------------------------------------------------------------


def leaderboard_page(told: History) -> Iterator[RenderableType]:
    """The line of champions, newest first, and the claims that did not reproduce."""
    line, write = steps(told), numbers(told)
    base = write.mean(told.calibration_scores(told.home_platform))
    mark = "; scores are self-reported" if told.self_reported else ""
    yield Text(plain(f"{told.metric}, {direction(told)}{mark}; baseline {base}"))
    yield Text("")
    if line:
        yield _champions(told, line)
        yield Text("a gain is published smaller than measured, as it was selected; the interval is the measured one's")
    else:
        yield Text("no champion but the baseline: nothing has reproduced yet")
    if told.finished and told.finished.final_gain is not None:
        yield Text("")
        yield Text(_gain(told))
    if told.interactions:
        yield Text("")
        yield Text("accepted ideas that were joined and measured as one tree", style="bold")
        joined = _table(*TOGETHER)
        for row in together(told):
            _row(joined, *row)
        yield joined
    refuted = [e for e in told.experiments if e.status == "rejected"]
    if refuted:
        yield Text("")
        yield Text("claims that did not reproduce, newest first", style="bold")
        yield _refuted(told, refuted)


def _champions(told: History, line: Sequence[Step]) -> Table:
    write = numbers(told)
    table = _table("-#", "-experiment", f"-{told.metric}", "-gain, 95 % interval", "-in all", "change")
    for step in reversed(line):
        number = ", ".join(str(experiment.number) for experiment in step.experiments) or "?"
        bounds = write.interval(step.verdict.low, step.verdict.high) if step.verdict else ""
        scores, total = write.mean(step.scores).partition(" ")[0], write.gain(step.total)
        _row(table, str(step.promotion.number), number, scores, f"{write.gain(step.gain)} {bounds}", total, step.change)
    return table


def _refuted(told: History, experiments: Sequence[Experiment]) -> Table:
    write = numbers(told)
    table = _table("-experiment", "-screening", "-fresh seeds, 95 % interval", "-pairs", "change")
    for experiment in reversed(experiments):
        verdict, screened = experiment.verdict, experiment.screened
        fresh = f"{write.gain(verdict.effect)} {write.interval(verdict.low, verdict.high)}" if verdict else "–"
        shown = write.gain(screened.gain_over_champion if screened else None)
        pairs = str(verdict.pairs) if verdict else "–"
        _row(table, str(experiment.number), shown, fresh if pairs != "0" else "–", pairs, experiment.hypothesis)
    return table


# --- cells -----------------------------------------------------------------------------------------------


def _table(*heads: str) -> Table:
    """A head that begins with a minus stands to the right, as numbers do; the last column takes what room is left."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, head in enumerate(heads, start=1):
        text = escape(plain(head.removeprefix("-")))
        last = number == len(heads) and not head.startswith("-")
        table.add_column(text, justify="right" if head.startswith("-") else "left", no_wrap=not last)
    return table


def _row(table: Table, *cells: str) -> None:
    table.add_row(*(escape(plain(cell)) for cell in cells))
