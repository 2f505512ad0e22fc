"""`swarm pull`, `reproduce`, `init` and `doctor`: for people who use what was found, or begin."""

import json
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coordinator.reproduction import Interval, paired_interval
from node.data import prepare_data
from node.hardware import doctor as examine
from node.hardware import gpu_name, platform_of
from node.sandbox.choice import tried_sandbox
from node.trial import Workshop, run_trial
from swarm.adoption import init_task
from swarm.cli.options import JSON, STUDY, TRUST
from swarm.cli.read import find_experiment
from swarm.cli.run import make_forge
from swarm.cli.studies import facts_of, find, opened_in
from swarm.cli.tables import LOG_LINES
from swarm.cli.words import plain
from swarm.config import Config, Nodes, config_from_json
from swarm.errors import PrerequisiteError
from swarm.history import History, history
from swarm.records import (
    Files,
    Limits,
    Measurement,
    Platform,
    StudyOpened,
    TrialSpec,
    candidate_id,
    digest,
)
from swarm.task import TASK_FILE, Task, load_task, place_of
from swarm.trust import level_needed


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("champion"))
@STUDY
def pull(folder: Path, study: Path | None) -> None:
    """Fetch the champion from the forge into FOLDER.

    FOLDER is made, or has to be empty; the default is champion/.
    """
    place = find(study)
    opened = opened_in(place)
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
@TRUST
def reproduce(
    identity: str, seeds: int, task_folder: Path | None, study: Path | None, as_json: bool, trust: bool
) -> None:
    """Run a promoted result again here; say whether it holds.

    ID is an experiment's number or the beginning of its hash. Candidate and base are trained on the same fresh seeds.
    Exit code 0: it holds; 1: it does not, or not clearly.
    """
    place = find(study)
    opened = opened_in(place)
    config = config_from_json(opened.config)
    named = task_folder or Path(config.task)
    folder = _task_folder(place_of(named)[0])
    task = load_task(named)
    told = history(facts_of(place))
    claimed = _find_claimed(told, identity, place)
    console = Console(stderr=as_json)
    console.print(f"experiment {claimed.number}: {claimed.hypothesis}", markup=False, highlight=False)
    with tempfile.TemporaryDirectory(prefix="swarm-reproduce-") as scratch:
        workshop = _workshop(task, folder, Path(scratch), config.model_copy(update={"task": str(named)}), trust)
        _say_platform(console, workshop, told)
        gains = list(_pairs(workshop, claimed, opened, seeds, config.nodes, console))
    interval = paired_interval(gains)
    holds = interval.low > 0
    if as_json:
        click.echo(json.dumps({"experiment": claimed.number, "gains": gains, **interval._asdict(), "holds": holds}))
    else:
        console.print(_sentence(interval, claimed, task), markup=False, highlight=False, soft_wrap=True)
    sys.exit(0 if holds else 1)


def _task_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise PrerequisiteError(f"no task folder at {folder}, where the study had it; name it with --task")
    return folder.absolute()


def _find_claimed(told: History, identity: str, place: Path) -> Claimed:
    experiment = find_experiment(told, identity, place)
    promotion = experiment.promotion
    if promotion is None:
        known = ", ".join(str(told.by_idea[p.experiment].number) for p in told.line) or "none"
        raise PrerequisiteError(
            f"experiment {experiment.number} was not promoted ({experiment.status}); promoted: {known}"
        )
    verdict, files = told.verdict_on(promotion), told.files
    published = verdict.effect if verdict else 0.0
    return Claimed(
        experiment.number, files[promotion.base], files[promotion.candidate], experiment.hypothesis, published
    )


def _workshop(task: Task, folder: Path, scratch: Path, config: Config, trust: bool) -> Workshop:
    (sandbox, _), threads = tried_sandbox("auto", 0 if trust else level_needed(config)), config.nodes.threads
    data = prepare_data(task, folder, config.nodes.data, Path(".cache") / "data")
    return Workshop(task, folder, data, sandbox, scratch, threads)


def _say_platform(console: Console, workshop: Workshop, told: History) -> None:
    """Where this is measured, and whether the study was measured there, too."""
    here = platform_of(workshop.task, workshop.data.fingerprint if workshop.data else "", workshop.threads)
    console.print(f"platform: {_words(here)}", markup=False, highlight=False, soft_wrap=True)
    if here.id not in told.platforms:
        there = " and ".join(map(_words, told.platforms.values()))
        note = f"the study ran on {there}: gains compare with its own, scores do not"
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def _words(platform: Platform) -> str:
    return f"{platform.device}; {platform.software}; data {platform.data[:12] or 'none'}; {platform.budget}"


def _pairs(
    workshop: Workshop, claimed: Claimed, opened: StudyOpened, seeds: int, nodes: Nodes, console: Console
) -> Iterator[float]:
    for number in range(seeds):
        seed = int(digest("reproduce", opened.seed, candidate_id(claimed.candidate), number)[:8], 16) & 0x7FFFFFFF
        scores = [_score(workshop, files, seed, nodes) for files in (claimed.base, claimed.candidate)]
        gain = (scores[0] - scores[1]) * (1 if opened.direction == "minimize" else -1)
        console.print(
            f"seed {seed:>10}: base {scores[0]:.4f}, candidate {scores[1]:.4f}, gain {gain:+.4f}", highlight=False
        )
        yield gain


def _score(workshop: Workshop, files: Files, seed: int, nodes: Nodes) -> float:
    candidate = candidate_id(files)
    limits = Limits(nodes.trial_wall_s * nodes.threads, nodes.trial_wall_s, nodes.memory_mb, disk_mb=nodes.disk_mb)
    run = run_trial(TrialSpec(digest(candidate, seed), candidate, seed, "reproduce", files, limits), workshop=workshop)
    if not isinstance(run.outcome, Measurement):
        said = "".join(f"\n  | {plain(line)}" for line in run.log.expandtabs(4).splitlines()[-LOG_LINES:])
        raise PrerequisiteError(f"the trial failed here: {run.outcome.reason}: {plain(run.outcome.message)}{said}")
    return run.outcome.score


def _sentence(interval: Interval, claimed: Claimed, task: Task) -> str:
    told = (
        f"{task.metric} better by {interval.mean:.4f} (95 % interval {interval.low:.4f} to {interval.high:.4f}, "
        f"{interval.n} seeds{', self-reported' if task.score == 'printed' else ''}); published {claimed.published:.4f}"
    )
    if interval.low > 0:
        return f"it holds: {told}"
    if interval.high < 0:
        return f"it does not hold: {told}"
    return f"not shown with {interval.n} seeds: {told}; try more with --seeds"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--metric", default="val_bpb", show_default=True, help="Name of the score that the script prints.")
@click.option("--maximize", is_flag=True, help="Higher is better; default: lower.")
@click.option(
    "--seconds",
    default=300.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True, max=1e6),
    help="Wall time of one training.",
)
def init(folder: Path, metric: str, maximize: bool, seconds: float) -> None:
    """Make FOLDER a Task; where it is empty, with an example.

    Writes task.toml for a train.py that prints its score, and study.toml, which says for how long to run.
    """
    if not re.fullmatch(r"[A-Za-z_][\w.-]*", metric):
        raise PrerequisiteError(f"--metric {metric!r} is no name; use letters, digits and _, as the script prints it")
    if not isfinite(seconds):
        raise PrerequisiteError(f"--seconds {seconds} is no time; give a number of seconds")
    if not (folder / "train.py").exists() and not (folder / TASK_FILE).exists():
        seconds = min(seconds, EXAMPLE_S)
        _write_new(folder / "train.py", _EXAMPLE.format(metric=metric, sign="-" if maximize else ""))
        _write_new(folder / "program.md", _PROGRAM)
        click.echo(f"{folder}: a small example; replace its train.py and program.md by your own")
    init_task(folder, metric=metric, direction="maximize" if maximize else "minimize", seconds=seconds)
    _write_new(folder / "study.toml", _study_toml(folder, seconds))
    click.echo(f"{folder}: task.toml and study.toml written; look at them, then run it with:")
    click.echo(f"swarm run {shlex.quote(str(folder / 'study.toml'))}")


def _write_new(path: Path, text: str) -> None:
    """What is there already stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(text, "utf-8")


def _study_toml(folder: Path, seconds: float) -> str:
    """A night of trainings, of which two per seed belong to the final comparison."""
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")[:40] or "study"
    local = 1 if gpu_name() else 2
    final = max(1.0, 1.5 * 2 * FINAL_SEEDS * seconds / 60 / local)
    wall = max(8.0, TRAININGS * seconds / 60 / local)
    return _STUDY.format(
        name=name, task=json.dumps(str(folder)), wall=wall, final=final, local=local, limit=max(30.0, 2 * seconds)
    )


EXAMPLE_S = 5.0  # the example trains for a moment
FINAL_SEEDS = 5
TRAININGS = 100  # of the autoresearch kind, 5 minutes each, in a night on one GPU

_STUDY = """\
# How long this Task is worked on, and where. Every key that may stand here: docs/config.md.
study = "{name}"
task = {task}

[stop]
wall_minutes = {wall:.1f}    # the whole study; longer finds more
final_minutes = {final:.1f}   # of which reserved: champion against baseline on 5 fresh seeds

[nodes]
local = {local}             # nodes on this machine, one trial each
trial_wall_s = {limit:.0f}    # a trial that takes longer is killed
"""

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
print(f"{metric}: {{{sign}loss:.6f}}")
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
            *(escape(cell) for cell in (check.name, check.detail, "" if check.ok else check.fix)),
        )
    Console().print(table)
