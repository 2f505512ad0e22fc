"""`swarm status`, `log`, `show`, `leaderboard`, `export`: tables for people, JSON for programs, from the ledger."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from coordinator.press import pages
from swarm.cli.options import JSON, STUDY
from swarm.cli.studies import facts_of, find
from swarm.cli.tables import experiment_page, leaderboard_page, status_table
from swarm.cli.words import Teller
from swarm.codec import fact_to_json
from swarm.config import config_from_json
from swarm.errors import PrerequisiteError
from swarm.history import Experiment, History, history
from swarm.ledger import Ledger, Row
from swarm.records import Measurement
from swarm.source import describe_edit

REJECTED = ("dropped", "rejected", "failed")


@click.command()
@STUDY
@JSON
def status(study: Path | None, as_json: bool) -> None:
    """How the study stands: champion, ideas, trials, nodes, cost."""
    place = find(study)
    told = history(facts_of(place))
    if as_json:
        click.echo(json.dumps(_summary(place, told)))
    else:
        Console().print(status_table(place.name, told))


def _summary(place: Path, told: History) -> dict[str, object]:
    counts = Counter(experiment.status for experiment in told.experiments)
    failed = sum(not isinstance(trial.outcome, Measurement) for trial in told.trials.values())
    champion = told.line[-1] if told.line else None
    promoted = told.by_idea[champion.experiment] if champion else None
    gain = sum(verdict.effect for p in told.line if (verdict := told.verdict_on(p)))
    return {
        "study": place.name,
        "metric": told.metric,
        "direction": told.direction,
        "state": f"finished: {told.finished.reason}" if told.finished else "open" if told.opened else "not begun",
        "champion": f"experiment {promoted.number}: {promoted.hypothesis}" if promoted else "the baseline",
        "confirmed_gain_over_baseline": gain,
        "final_gain": told.finished.final_gain if told.finished else None,
        "trials": len(told.trials),
        "failed_trials": failed,
        "experiments": dict(counts),
        "claims_open": counts["claimed"],
        "refused_as_duplicates": len(told.refused),
        "promotions": len(told.promotions),
        "demotions": len(told.demotions),
        "shams_tried": len(told.shams),
        "shams_accepted": sum(sham.verdict.accepted for sham in told.shams),
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
@click.option("-n", "last", default=40, show_default=True, type=click.IntRange(0), help="Newest lines; 0 = all.")
@click.option("--rejected", is_flag=True, help="Only what was dropped or rejected, and why.")
@click.option("--follow", is_flag=True, help="Go on as facts arrive, until Ctrl-C.")
def log(study: Path | None, as_json: bool, last: int, rejected: bool, follow: bool) -> None:
    """What happened, fact by fact. With --json, the facts themselves."""
    place = find(study)
    with Ledger(place / "ledger.sqlite", read_only=True) as ledger:
        rows = list(ledger.rows())
        printer = _Printer(rows, as_json, rejected)
        for line in printer.lines(rows)[-last:]:
            click.echo(line)
        seen = len(rows)
        while follow:
            for row in ledger.rows(after=seen):
                seen += 1
                for line in printer.lines([row]):
                    click.echo(line)
            time.sleep(0.5)


class _Printer:
    """Rows of a ledger as lines of `swarm log`."""

    def __init__(self, rows: list[Row], as_json: bool, rejected: bool) -> None:
        self._teller = Teller()
        self._as_json, self._rejected = as_json, rejected
        days = {time.strftime("%F", time.localtime(row.at)) for row in (*rows[:1], *rows[-1:])}
        self._clock = "%F %T" if len(days) > 1 else "%T"

    def lines(self, rows: list[Row]) -> list[str]:
        return list(self._lines(rows))

    def _lines(self, rows: list[Row]) -> Iterator[str]:
        for row in rows:
            line = self._teller.line(row.fact)
            if self._rejected and not line.startswith(REJECTED):
                continue
            if self._as_json:
                yield fact_to_json(row.fact)
            elif line:
                yield f"{time.strftime(self._clock, time.localtime(row.at))} {line}"


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
    console = Console(highlight=False)
    for part in experiment_page(told, experiment):
        console.print(part, soft_wrap=isinstance(part, Text) and bool(part.no_wrap))  # else print() forgets no_wrap


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
        "holdout": json.loads(fact_to_json(experiment.holdout)) if experiment.holdout else None,
    }


@click.command()
@STUDY
@JSON
def leaderboard(study: Path | None, as_json: bool) -> None:
    """The champions, what stands behind each, what did not hold."""
    told = history(facts_of(find(study)))
    if not as_json:
        console = Console(highlight=False)
        for part in leaderboard_page(told):
            console.print(part)
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
                "undone_by": undone.number if (undone := told.demotion_of(promotion)) else None,
            }
        )
    click.echo(json.dumps(rows))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("export"))
@STUDY
def export(folder: Path, study: Path | None) -> None:
    """Write facts, tables, report and picture into FOLDER.

    FOLDER is made where it is missing; the default is export/. Files of an earlier export are replaced.
    """
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
