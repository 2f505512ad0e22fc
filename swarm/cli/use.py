"""`swarm pull`, `reproduce`, `init` and `doctor`: for people who use what was found, or begin."""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console
from rich.table import Table

from coordinator.reproduction import Interval, paired_interval
from node.data import prepare_data
from node.hardware import doctor as examine
from node.hardware import platform_of
from node.sandbox.choice import choose_sandbox
from node.trial import Workshop, run_trial
from swarm.cli.options import JSON, STUDY
from swarm.cli.read import find_experiment
from swarm.cli.run import make_forge
from swarm.cli.studies import facts_of, find
from swarm.config import config_from_json
from swarm.errors import PrerequisiteError
from swarm.history import history
from swarm.records import (
    Files,
    Limits,
    Measurement,
    StudyOpened,
    TrialSpec,
    candidate_id,
    digest,
)
from swarm.task import Task, init_task, load_task


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("champion"))
@STUDY
def pull(folder: Path, study: Path | None) -> None:
    """Fetch the champion from the forge into FOLDER (default: champion/)."""
    place = find(study)
    opened = next((f for f in facts_of(place) if isinstance(f, StudyOpened)), None)
    if opened is None:
        raise PrerequisiteError(f"{place} has not been opened yet; run it first")
    if folder.exists() and any(folder.iterdir()):
        raise PrerequisiteError(f"{folder} is not empty; name another folder, so that nothing of yours is overwritten")
    commit = make_forge(config_from_json(opened.config), place).fetch(folder)
    click.echo(f"{folder}: the champion of {place.name}, commit {commit[:12]}")


class Claimed(NamedTuple):
    """A promoted result, as it is to be run again."""

    number: int
    base: Files
    candidate: Files
    hypothesis: str
    published: float


@click.command()
@click.argument("identity", metavar="ID")
@click.option(
    "--seeds",
    default=3,
    show_default=True,
    type=click.IntRange(2, 100),
    help="Fresh seeds; each runs candidate and base.",
)
@click.option(
    "--task", "task_folder", type=click.Path(path_type=Path), help="Task folder; default: the one the study ran on."
)
@STUDY
@JSON
def reproduce(identity: str, seeds: int, task_folder: Path | None, study: Path | None, as_json: bool) -> None:
    """Run a promoted result again here, on fresh seeds, and say whether it holds.

    ID is an experiment's number or the beginning of its hash. Exit code 0: it holds; 1: it does not, or not clearly.
    """
    place = find(study)
    opened = next(f for f in facts_of(place) if isinstance(f, StudyOpened))
    config = config_from_json(opened.config)
    folder = (task_folder or Path(config.task)).absolute()
    task = load_task(folder)
    claimed = _find_claimed(place, identity)
    console = Console(stderr=as_json)
    console.print(f"experiment {claimed.number}: {claimed.hypothesis}", markup=False, highlight=False)
    with tempfile.TemporaryDirectory(prefix="swarm-reproduce-") as scratch:
        workshop = _workshop(task, folder, Path(scratch), config.nodes.threads, console)
        gains = list(_pairs(workshop, claimed, opened, seeds, config.nodes.trial_wall_s, console))
    interval = paired_interval(gains)
    holds = interval.low > 0
    if as_json:
        click.echo(json.dumps({"experiment": claimed.number, "gains": gains, **interval._asdict(), "holds": holds}))
    else:
        console.print(_sentence(interval, claimed, task.metric), highlight=False)
    sys.exit(0 if holds else 1)


def _find_claimed(place: Path, identity: str) -> Claimed:
    told = history(facts_of(place))
    experiment = find_experiment(told, identity, place)
    promotion = experiment.promotion
    if promotion is None:
        known = ", ".join(str(told.by_idea[p.experiment].number) for p in told.promotions) or "none"
        raise PrerequisiteError(
            f"experiment {experiment.number} was not promoted ({experiment.status}); promoted: {known}"
        )
    verdict, files = told.verdict_on(promotion), told.files
    published = verdict.effect if verdict else 0.0
    return Claimed(
        experiment.number, files[promotion.base], files[promotion.candidate], experiment.hypothesis, published
    )


def _workshop(task: Task, folder: Path, scratch: Path, threads: int, console: Console) -> Workshop:
    data = prepare_data(task, folder, "", Path(".cache") / "data")
    platform = platform_of(task, data.fingerprint if data else "", threads)
    console.print(f"platform: {platform.device}; {platform.software}; data {platform.data[:12]}", highlight=False)
    return Workshop(task, folder, data, choose_sandbox("auto"), scratch, threads)


def _pairs(
    workshop: Workshop, claimed: Claimed, opened: StudyOpened, seeds: int, wall_s: float, console: Console
) -> Iterator[float]:
    for number in range(seeds):
        seed = int(digest("reproduce", opened.seed, candidate_id(claimed.candidate), number)[:8], 16) & 0x7FFFFFFF
        scores = [_score(workshop, files, seed, wall_s) for files in (claimed.base, claimed.candidate)]
        gain = (scores[0] - scores[1]) * (1 if opened.direction == "minimize" else -1)
        console.print(
            f"seed {seed:>10}: base {scores[0]:.4f}, candidate {scores[1]:.4f}, gain {gain:+.4f}", highlight=False
        )
        yield gain


def _score(workshop: Workshop, files: Files, seed: int, wall_s: float) -> float:
    candidate = candidate_id(files)
    limits = Limits(cpu_s=wall_s, wall_s=wall_s)
    run = run_trial(TrialSpec(digest(candidate, seed), candidate, seed, "reproduce", files, limits), workshop=workshop)
    if not isinstance(run.outcome, Measurement):
        raise PrerequisiteError(f"the trial failed here: {run.outcome.reason}: {run.outcome.message}\n{run.log[-800:]}")
    return run.outcome.score


def _sentence(interval: Interval, claimed: Claimed, metric: str) -> str:
    told = (
        f"{metric} better by {interval.mean:.4f} (95 % interval {interval.low:.4f} to {interval.high:.4f}, "
        f"{interval.n} seeds); published {claimed.published:.4f}"
    )
    if interval.low > 0:
        return f"it holds: {told}"
    if interval.high < 0:
        return f"it does not hold: {told}"
    return f"not shown with {interval.n} seeds: {told}; try more with --seeds"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--metric", default="val_bpb", show_default=True, help="Name of the score that the script prints.")
@click.option("--maximize", is_flag=True, help="Higher is better; default: lower.")
@click.option("--seconds", default=300.0, show_default=True, help="Wall time of one training.")
def init(folder: Path, metric: str, maximize: bool, seconds: float) -> None:
    """Make FOLDER a Task: for a train.py that prints its score, or from scratch where there is none."""
    if not (folder / "train.py").exists():
        _write_example(folder, metric)
        click.echo(f"{folder}/train.py and program.md: a small example; replace them by your own")
    init_task(folder, metric=metric, direction="maximize" if maximize else "minimize", seconds=seconds)
    name = folder.resolve().name.lower()
    click.echo(f"{folder}/task.toml written; run it with: swarm run --set task={folder} --set study={name}")


def _write_example(folder: Path, metric: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.py").write_text(_EXAMPLE.format(metric=metric))
    (folder / "program.md").write_text(_PROGRAM)


_EXAMPLE = '''"""Fits a line to noisy points by gradient descent; prints how far off it is."""

import os
import random

LEARNING_RATE = 0.02  # range: 0.001..0.5 log
STEPS = 200
MOMENTUM = False  # keep a running mean of the gradients

random.seed(int(os.environ.get("SWARM_SEED", "0")))
points = [(x / 50, 3 * x / 50 + 1 + random.gauss(0, 0.3)) for x in range(50)]
slope, offset, v_slope, v_offset = 0.0, 0.0, 0.0, 0.0
for _ in range(STEPS):
    x, y = random.choice(points)
    error = slope * x + offset - y
    keep = 0.9 if MOMENTUM else 0.0
    v_slope, v_offset = keep * v_slope + error * x, keep * v_offset + error
    slope, offset = slope - LEARNING_RATE * v_slope, offset - LEARNING_RATE * v_offset
loss = sum((3 * x / 50 + 1 - slope * x / 50 - offset) ** 2 for x in range(50)) / 50
print(f"{metric}: {{loss:.6f}}")
'''

_PROGRAM = """# Goal

**Lower the score that `train.py` prints.**

CAN: change anything in `train.py`. CANNOT: read the clock, the network, or anything outside the folder.

Simplicity: a change that adds twenty lines for a thousandth is not worth it; one that deletes code at the same
score is.
"""


@click.command()
@JSON
def doctor(as_json: bool) -> None:
    """What this machine has, what is missing, and how to mend it."""
    checks = examine()
    if as_json:
        click.echo(json.dumps([{"name": c.name, "ok": c.ok, "detail": c.detail, "fix": c.fix} for c in checks]))
        return
    table = Table(box=None)
    for name in ("", "what", "found", "how to mend it"):
        table.add_column(name)
    for check in checks:
        table.add_row(
            "[green]ok[/green]" if check.ok else "[yellow]--[/yellow]",
            check.name,
            check.detail,
            "" if check.ok else check.fix,
        )
    Console().print(table)
