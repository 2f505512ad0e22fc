"""`swarm status`, `log`, `show`, `leaderboard`, `export`: tables for people, JSON for programs, from the ledger."""

import json
import time
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coordinator.leaderboard import leaderboard_md
from coordinator.press import pages
from swarm.cli.options import JSON, STUDY
from swarm.cli.studies import facts_of, find
from swarm.cli.words import Teller, plain
from swarm.codec import fact_to_json
from swarm.config import config_from_json
from swarm.errors import PrerequisiteError
from swarm.history import Experiment, History, history
from swarm.ledger import Ledger
from swarm.records import Measurement, Screened
from swarm.source import describe_edit

REJECTED = ("dropped", "rejected", "failed")


@click.command()
@STUDY
@JSON
def status(study: Path | None, as_json: bool) -> None:
    """How the study stands: champion, trials, busy nodes, claims, costs."""
    place = find(study)
    told = history(facts_of(place))
    summary = _summary(place, told)
    if as_json:
        click.echo(json.dumps(summary))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in summary.items():
        table.add_row(key.replace("_", " "), escape(plain(_words(value))))
    Console().print(table)


def _words(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _summary(place: Path, told: History) -> dict[str, object]:
    counts: dict[str, int] = {}
    for experiment in told.experiments:
        counts[experiment.status] = counts.get(experiment.status, 0) + 1
    failed = sum(not isinstance(trial.outcome, Measurement) for trial in told.trials.values())
    champion = told.promotions[-1] if told.promotions else None
    promoted = told.by_idea[champion.experiment] if champion else None
    gain = sum(verdict.effect for p in told.promotions if (verdict := told.verdict_on(p)))
    return {
        "study": place.name,
        "state": f"finished: {told.finished.reason}" if told.finished else "open",
        "champion": f"experiment {promoted.number}: {promoted.hypothesis}" if promoted else "the baseline",
        "confirmed_gain_over_baseline": gain,
        "final_gain": told.finished.final_gain if told.finished else None,
        "trials": len(told.trials),
        "failed_trials": failed,
        "experiments": counts,
        "refused_as_duplicates": len(told.refused),
        "promotions": len(told.promotions),
        "nodes": {node.name: node.sandbox for node in told.nodes.values()},
        "busy": round(told.busy, 4),
        "disturbed_trials": len(told.disturbed),
        "coordinator_starts": told.sessions,
        "tokens": told.spent.input_tokens + told.spent.output_tokens,
        "dollars": round(told.spent.dollars, 4),
        "self_reported": told.self_reported,
    }


@click.command()
@STUDY
@JSON
@click.option("-n", "last", default=40, show_default=True, help="Newest lines shown; 0 = all.")
@click.option("--rejected", is_flag=True, help="Only what was dropped or rejected, and why.")
@click.option("--follow", is_flag=True, help="Go on as facts arrive, until Ctrl-C.")
def log(study: Path | None, as_json: bool, last: int, rejected: bool, follow: bool) -> None:
    """What happened, fact by fact. With --json, the facts themselves."""
    place = find(study)
    with Ledger(place / "ledger.sqlite", read_only=True) as ledger:
        rows = list(ledger.rows())
        teller = Teller()
        lines = []
        for row in rows:
            line = teller.line(row.fact)
            text = fact_to_json(row.fact) if as_json else _stamped(row.at, line)
            if (line or as_json) and (not rejected or line.startswith(REJECTED)):
                lines.append(text)
        click.echo("\n".join(lines[-last:] if last else lines))
        seen = len(rows)
        while follow:
            for row in ledger.rows(after=seen):
                seen += 1
                line = teller.line(row.fact)
                if line:
                    click.echo(fact_to_json(row.fact) if as_json else _stamped(row.at, line))
            time.sleep(0.5)


def _stamped(at: float, line: str) -> str:
    return f"{time.strftime('%H:%M:%S', time.localtime(at))} {line}"


@click.command()
@click.argument("identity", metavar="ID")
@STUDY
@JSON
def show(identity: str, study: Path | None, as_json: bool) -> None:
    """One experiment: hypothesis, diff, every trial, verdict. ID is its number or the beginning of its hash."""
    place = find(study)
    told = history(facts_of(place))
    experiment = find_experiment(told, identity, place)
    if as_json:
        click.echo(json.dumps(_experiment_json(told, experiment)))
        return
    console = Console()
    console.print(
        f"[bold]experiment {experiment.number}[/bold] ({experiment.status}), {escape(plain(experiment.hypothesis))}"
    )
    console.print(
        f"by {escape(experiment.proposer)} on {escape(told.node_name(experiment.node))}, branch {experiment.branch}",
        highlight=False,
    )
    console.print(f"candidate {experiment.candidate}", highlight=False)
    console.print(
        describe_edit(experiment.parent_files, experiment.admitted.proposal.files), markup=False, highlight=False
    )
    _print_screening(console, experiment.screened)
    _print_trials(console, told, experiment)
    for verdict in experiment.verdicts:
        console.print(f"verdict: {verdict.reason}", markup=False, highlight=False, soft_wrap=True)


def find_experiment(told: History, identity: str, place: Path) -> Experiment:
    """The experiment that people mean.

    Raises:
        PrerequisiteError: none, or several.
    """
    found = told.find(identity)
    if len(found) == 1:
        return found[0]
    if not found:
        raise PrerequisiteError(
            f"{place.name} has no experiment {identity!r}; `swarm log` and `swarm leaderboard` show their numbers"
        )
    raise PrerequisiteError(f"{identity!r} fits experiments {', '.join(str(e.number) for e in found)}; give more of it")


def _print_screening(console: Console, screened: Screened | None) -> None:
    if screened is not None:
        gain = "" if screened.gain is None else f" ({screened.gain:+.4f})"
        console.print(f"screening: {screened.reason}{gain}", markup=False, highlight=False)


def _print_trials(console: Console, told: History, experiment: Experiment) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("trial", "purpose", "seed", "node", told.metric, "CPU-s", "MB"):
        table.add_column(name)
    for trial in told.trials.values():
        if trial.experiment != experiment.idea:
            continue
        out = trial.outcome
        cells = (
            (f"{out.score:.4f}", f"{out.cpu_s:.1f}", f"{out.peak_memory_mb:.0f}")
            if isinstance(out, Measurement)
            else (out.reason, f"{out.cpu_s:.1f}", "")
        )
        table.add_row(trial.trial[:8], trial.purpose, str(trial.seed), escape(told.node_name(trial.node)), *cells)
    console.print(table)


def _experiment_json(told: History, experiment: Experiment) -> dict[str, object]:
    trials = [json.loads(fact_to_json(t)) for t in told.trials.values() if t.experiment == experiment.idea]
    return {
        "number": experiment.number,
        "idea": experiment.idea,
        "status": experiment.status,
        "hypothesis": experiment.hypothesis,
        "proposer": experiment.proposer,
        "candidate": experiment.candidate,
        "parent": experiment.parent,
        "diff": describe_edit(experiment.parent_files, experiment.admitted.proposal.files),
        "screened": json.loads(fact_to_json(experiment.screened)) if experiment.screened else None,
        "trials": trials,
        "verdicts": [json.loads(fact_to_json(verdict)) for verdict in experiment.verdicts],
    }


@click.command()
@STUDY
@JSON
def leaderboard(study: Path | None, as_json: bool) -> None:
    """The champions so far, what stands behind each, and what did not hold."""
    told = history(facts_of(find(study)))
    if not as_json:
        click.echo(leaderboard_md(told))
        return
    rows = []
    for promotion in told.promotions:
        verdict, experiment = told.verdict_on(promotion), told.by_idea[promotion.experiment]
        rows.append(
            {
                "number": promotion.number,
                "experiment": experiment.number,
                "change": experiment.hypothesis,
                "gain": verdict.effect if verdict else None,
                "interval": [verdict.low, verdict.high] if verdict else None,
                "pairs": verdict.pairs if verdict else None,
                "request": promotion.request,
                "commit": promotion.commit,
            }
        )
    click.echo(json.dumps(rows))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("export"))
@STUDY
def export(folder: Path, study: Path | None) -> None:
    """Write everything that can be read elsewhere into FOLDER: facts as JSON lines, tables, report, picture."""
    place = find(study)
    facts = facts_of(place)
    told = history(facts)
    notes = config_from_json(told.opened.config).notes if told.opened else ""
    lines = "".join(fact_to_json(fact) + "\n" for fact in facts)
    written: dict[str, str | bytes] = {"facts.jsonl": lines, **pages(told, notes)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in written.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    click.echo(f"{folder}: {', '.join(written)}")
