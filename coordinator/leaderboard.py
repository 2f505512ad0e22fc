"""LEADERBOARD.md and results.tsv, from the facts of a study. Pure text.

Nobody edits these pages: they are written again whenever the ledger has grown. They know nothing of SQLite, git or the
forge that shows them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import fmean

from coordinator.wording import (
    SELF_REPORTED,
    TOGETHER,
    Step,
    author,
    change,
    code,
    count,
    date,
    demotion,
    direction,
    lines,
    machinery_failures,
    noise,
    numbers,
    panel,
    percent,
    platforms,
    recheck,
    steps,
    table,
    together,
    transfer,
    words,
)
from swarm.history import Experiment, History, failure_of, score_of
from swarm.records import Carried, Measurement, TrialFinished

WORST_SHOWN = 5  # negative results with a row of their own; `swarm log --rejected` lists all
REJECTED_SHOWN = 30
TSV_HEAD = (
    *("commit", "val_bpb", "memory_gb", "status", "description"),  # the five that autoresearch tools know
    *("experiment", "node", "seed", "gain", "claim", "verdict", "self_reported", "promoted_as"),
)


def leaderboard_md(history: History) -> str:
    """The page on the shared branch: the line of champions, what waits, what failed, who did what."""
    line = steps(history)
    parts = (
        _header(history, line),
        _frontier(history, line),
        _demotions(history),
        _together(history),
        _pending(history),
        _rejected(history),
        _negative(history),
        _nodes(history),
        _notes(history),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


# --- header and frontier ---------------------------------------------------------------------------------


def _header(history: History, line: Sequence[Step]) -> str:
    study = words(history.opened.study if history.opened else "no study yet")
    lines_ = [
        f"# Leaderboard of {study}",
        "",
        f"`{words(history.metric)}`, {direction(history)}. Written from the ledger at {date(history.last_at)} UTC; "
        "edits made here are overwritten.",
        "",
        f"- **Champion:** {_champion(history, line)}",
        f"- **Baseline:** {_baseline(history)}",
        f"- **Total gain:** {_total(history, line)}",
        f"- **Noise:** {_noise(history)}",
        f"- **Panel:** {panel(history)}",
        f"- **Platforms compared:** {' · '.join(platforms(history)) or 'none yet'}",
    ]
    if history.rechecks:
        lines_.append(f"- **Against an earlier champion:** {recheck(history, history.rechecks[-1])}")
    if history.self_reported:
        lines_.append(
            f"- **Scores are {SELF_REPORTED.upper()}:** the candidate's own word, as this task asks for; not checked."
        )
    return "\n".join(lines_)


def _champion(history: History, line: Sequence[Step]) -> str:
    if not line:
        return "the baseline; nothing has reproduced yet"
    newest = line[-1]
    found = "".join(f"experiment {experiment.number}, " for experiment in newest.experiments)
    score = numbers(history).mean(newest.scores)
    return f"promotion {newest.promotion.number}, {found}{code(newest.promotion.candidate)}: {score}{_mark(history)}"


def _baseline(history: History) -> str:
    scores = history.calibration_scores(history.home_platform)
    return f"{code(history.baseline)}: {numbers(history).mean(scores)}{_mark(history)}"


def _mark(history: History) -> str:
    return f", {SELF_REPORTED}" if history.self_reported else ""


def _total(history: History, line: Sequence[Step]) -> str:
    if not line:
        return "none yet"
    write, end = numbers(history), history.finished
    share = percent(line[-1].total, history.baseline_score())
    told = f"{write.gain(line[-1].total)}{f' ({share})' if share else ''}, the published gains along the line summed up"
    if end is None or end.final_gain is None:
        return told
    seeds = f"{end.pairs} fresh seeds at the end"
    return f"{told}; measured at once on {seeds}: {write.gain(end.final_gain)} {write.interval(end.low, end.high)}"


def _noise(history: History) -> str:
    told = noise(history)
    return f"s = {told.sd:.2g}, the sd of a paired gain ({told.source})" if told else "not measured yet"


def _frontier(history: History, line: Sequence[Step]) -> str:
    head = (
        "-#",
        f"-{words(history.metric)}",
        "-gain vs parent",
        "-gain vs baseline",
        "change",
        "-lines",
        "-nodes",
        "larger scale",
    )
    rows = [_step(history, step) for step in reversed(line)]
    scores = history.calibration_scores(history.home_platform)
    opened = date(history.opened.at) if history.opened else "–"
    rows.append(
        ("0", numbers(history).mean(scores) + _mark(history), "–", "–", "baseline", "–", "–", "–", opened, "–", "–")
    )
    told = (
        "Scores are those of the confirmation runs: fresh seeds, mean ± sd. A gain is published smaller than it was "
        "measured, as it was selected for being large; its 95 % interval is that of the measurement. The gain over the "
        "baseline is the sum of the published gains along the line."
    )
    return f"## Frontier\n\n{table((*head, 'date (UTC)', 'author', 'request'), rows)}\n\n{told}"


def _demotions(history: History) -> str:
    if not history.demotions:
        return ""
    told = (
        "A champion that is no better than an earlier one on fresh seeds steps down, and with it what landed on "
        "top. The earlier tree landed again; each idea has to be confirmed there anew."
    )
    lines_ = [f"- {demotion(history, found)[:1].upper()}{demotion(history, found)[1:]}" for found in history.demotions]
    return "## Demoted\n\n" + told + "\n\n" + "\n".join(lines_)


def _step(history: History, step: Step) -> tuple[str, ...]:
    write, verdict = numbers(history), step.verdict
    interval = f" {write.interval(verdict.low, verdict.high)}" if verdict else ""
    return (
        str(step.promotion.number),
        write.mean(step.scores) + _mark(history),
        f"{write.gain(step.gain)}{interval}",
        write.gain(step.total),
        words(step.change, 120) or "(no words)",
        lines(step.lines),
        str(verdict.nodes) if verdict else "–",
        transfer(step),
        date(step.promotion.at),
        author(history, *step.experiments),
        words(step.promotion.request, 60) or "–",
    )


def _together(history: History) -> str:
    told = (
        "Ideas that were accepted one by one and waited for the same champion, measured as one tree. Where they gain "
        "less together than alone, they overlap or are in each other's way."
    )
    rows = together(history)
    return f"## Ideas that were joined\n\n{table(TOGETHER, rows)}\n\n{told}" if rows else ""


# --- claims and negative results -------------------------------------------------------------------------


def _pending(history: History) -> str:
    open_ = [e for e in history.experiments if e.status in ("claimed", "accepted")]
    if not open_:
        return ""
    write = numbers(history)
    rows = [
        (str(e.number), change(e), write.gain(_claimed_gain(e)), author(history, e), _waits_for(history, e))
        for e in open_
    ]
    return (
        f"## Claims without an end yet\n\n{table(('-#', 'change', '-gain at screening', 'author', 'waits for'), rows)}"
    )


def _claimed_gain(experiment: Experiment) -> float | None:
    gains = [claim.gain for claim in experiment.claims if not isinstance(claim, Carried)]
    return gains[-1] if gains else None


def _waits_for(history: History, experiment: Experiment) -> str:
    claim = experiment.claim
    onto = "; it was carried onto a champion that had moved" if isinstance(claim, Carried) else ""
    if history.finished is not None:
        return f"nothing: the study ended first{onto}"
    if experiment.status == "accepted":
        return f"its promotion; it reproduced{onto}"
    ran = sum(
        trial.candidate == (claim.candidate if claim else experiment.candidate)
        for trial in history.of_purpose("confirm")
        if trial.experiment == experiment.idea
    )
    return f"{'more ' if ran else ''}fresh seeds; {count(ran, 'confirmation run')} so far{onto}"


def _rejected(history: History) -> str:
    rejected = [e for e in history.experiments if e.status == "rejected"]
    if not rejected:
        return ""
    head = ("-#", "change", "-gain at screening", "-gain on fresh seeds", "-pairs", "author", "reason")
    older = len(rejected) - REJECTED_SHOWN
    more = f"\n\n{older} older ones are left out here." if older > 0 else ""
    rows = [_rejection(history, e) for e in reversed(rejected[-REJECTED_SHOWN:])]
    return f"## Claims that did not reproduce\n\n{table(head, rows)}{more}"


def _rejection(history: History, experiment: Experiment) -> tuple[str, ...]:
    write, verdict = numbers(history), experiment.verdict
    measured = verdict is not None and verdict.pairs > 0
    return (
        str(experiment.number),
        change(experiment),
        write.gain(_claimed_gain(experiment)),
        f"{write.gain(verdict.effect)} {write.interval(verdict.low, verdict.high)}" if verdict and measured else "–",
        str(verdict.pairs) if verdict else "–",
        author(history, experiment),
        words(experiment.why_rejected, 200) or "–",
    )


def _negative(history: History) -> str:
    dropped = [e for e in history.experiments if e.status == "dropped"]
    tried = [e for e in dropped if e.screened is not None and e.screened.gain is not None]
    failed = [e for e in history.experiments if e.status == "failed"]
    told = [
        f"{count(len(tried), 'idea')} tried and dropped, {count(len(failed), 'idea')} failed{_reasons(failed)}, "
        f"{len(dropped) - len(tried)} set aside before they were tried; "
        f"{count(len(history.refused), 'proposal')} refused before admission."
    ]
    worst = sorted(tried, key=lambda e: e.screened.gain if e.screened and e.screened.gain is not None else 0.0)
    if worst:
        rows = [_loss(history, e) for e in worst[:WORST_SHOWN]]
        told += ["The most harmful, by their own screening (one seed, no evidence):"]
        told += [table(("-#", "change", "-gain over its tip", "author"), rows)]
    return "## Negative results\n\n" + "\n\n".join(told)


def _loss(history: History, experiment: Experiment) -> tuple[str, ...]:
    gain = experiment.screened.gain if experiment.screened else None
    return str(experiment.number), change(experiment), numbers(history).gain(gain), author(history, experiment)


def _reasons(failed: Sequence[Experiment]) -> str:
    kinds = Counter(failure.reason for e in failed if (failure := failure_of(e.trial)))
    return f" ({', '.join(f'{number} {kind}' for kind, number in kinds.most_common())})" if kinds else ""


# --- nodes and notes -------------------------------------------------------------------------------------


def _nodes(history: History) -> str:
    if not history.nodes:
        return ""
    head = ("node", "-trials", "-scored", "-ideas", "-promoted", "-refuted claims", "-machinery failures", "sandbox")
    trials = Counter(trial.node for trial in history.trials.values())
    scored = Counter(trial.node for trial in history.trials.values() if isinstance(trial.outcome, Measurement))
    status = Counter((e.node, e.status) for e in history.experiments)
    ideas = Counter(e.node for e in history.experiments)
    failures = machinery_failures(history)
    rows = [
        (
            words(info.name, 40),
            *map(str, (trials[uid], scored[uid], ideas[uid], status[uid, "promoted"], status[uid, "rejected"])),
            str(failures[uid]),
            words(f"level {info.sandbox_level}, {info.sandbox}{', code trusted' if info.trusting else ''}", 60),
        )
        for uid, info in history.nodes.items()
    ]
    return f"## Nodes\n\n{table(head, rows)}"


def _notes(history: History) -> str:
    hosts = {info.host for info in history.nodes.values()}
    notes = [
        "A gain at screening chose the candidate; it is never evidence. Evidence is Pairs on fresh seeds.",
        "Scores are compared within one Platform only.",
        "The gain over the baseline is a sum, not a measurement: gains may overlap.",
    ]
    if len(hosts) == 1:
        notes.append("All nodes are on one machine: a result that depends on this machine would look reproduced.")
    if any(info.sandbox_level == 0 for info in history.nodes.values()):
        notes.append("Some trials ran at sandbox level 0, which isolates nothing: candidates were trusted.")
    return "## How to read this\n\n" + "\n".join(f"- {note}" for note in notes)


# --- results.tsv -----------------------------------------------------------------------------------------


def results_tsv(history: History) -> str:
    """Every experiment that ran, one row each, the baseline first; opens with the columns of autoresearch."""
    rows = [TSV_HEAD, *_tsv_rows(history)]
    return "".join("\t".join(row) + "\n" for row in rows)


def _tsv_rows(history: History) -> Iterator[tuple[str, ...]]:
    runs = [t for t in history.of_purpose("calibrate") if t.candidate == history.baseline]
    if runs:
        yield _tsv_baseline(history, runs)
    for experiment in history.experiments:
        if experiment.trial is not None:
            yield _tsv_row(history, experiment, experiment.trial)


def _tsv_baseline(history: History, runs: Sequence[TrialFinished]) -> tuple[str, ...]:
    scored = [run for run in runs if isinstance(run.outcome, Measurement) and run.platform == runs[0].platform]
    memory = max((_memory_gb(run) for run in scored), default=0.0)
    score = fmean(s for run in scored if (s := score_of(run)) is not None) if scored else None
    told = f"baseline, mean of {count(len(scored), 'seed')}"
    start = _tsv_start(history.baseline, score, memory, "keep" if scored else "crash", told)
    return (*start, "0", _tsv_text(history.node_name(runs[0].node)), "", "", "", "", _self_reported(runs[0]), "")


def _tsv_row(history: History, experiment: Experiment, trial: TrialFinished) -> tuple[str, ...]:
    score, screened, verdict = experiment.score, experiment.screened, experiment.verdict
    status = "crash" if score is None else "keep" if experiment.kept else "discard"
    gain = screened.gain if screened else None
    return (
        *_tsv_start(experiment.candidate, score, _memory_gb(trial), status, experiment.hypothesis),
        str(experiment.number),
        _tsv_text(history.node_name(experiment.node)),
        str(trial.seed),
        "" if gain is None else f"{gain:.6f}",
        "claimed" if experiment.claims else "",
        ("rejected" if experiment.why_rejected and experiment.status == "rejected" else "accepted") if verdict else "",
        _self_reported(trial),
        experiment.promotion.commit[:7] if experiment.promotion else "",
    )


def _tsv_start(candidate: str, score: float | None, memory_gb: float, status: str, told: str) -> tuple[str, ...]:
    """The first column is a commit there; here the candidate's identity, which is the same on every machine."""
    return candidate[:7], f"{score or 0.0:.6f}", f"{memory_gb:.1f}", status, _tsv_text(told)


def _tsv_text(text: str) -> str:
    """One field: no tab, no line end, no quote, nothing that a spreadsheet would take for a formula."""
    shown = words(text, 200).replace('"', "'") or "(no words)"
    return f"'{shown}" if shown[0] in "=+-@" else shown


def _memory_gb(trial: TrialFinished) -> float:
    return trial.outcome.peak_memory_mb / 1024 if isinstance(trial.outcome, Measurement) else 0.0


def _self_reported(trial: TrialFinished) -> str:
    return "yes" if isinstance(trial.outcome, Measurement) and trial.outcome.self_reported else "no"
