"""`swarm simulate decisions` and `swarm verdict`: the decision rule where the truth is known, and on a table of scores.

Owns the reading of a user's table and the words of the two answers. The rule itself is coordinator/reproduction.py.
"""

import csv
import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import click
from rich.console import Console
from rich.table import Table

from coordinator.campaigns import PROBED_SD, PROPOSALS, Tally, World, believe, five_pairs_each, keep_greedily
from coordinator.panel import rule_on_panel
from coordinator.panel_campaigns import believe_on_panel
from coordinator.reproduction import (
    LARGEST_GAIN,
    RELATIVE_FLOOR,
    SMALLEST_FLOOR,
    Accepted,
    Campaign,
    Decision,
    Dial,
    Noise,
    Rejected,
    Rule,
    bar,
    decide,
    rule_for,
)
from swarm.cli.options import CONFIG, JSON, SET
from swarm.config import load_config
from swarm.errors import PrerequisiteError
from swarm.records import Direction

_LARGEST_TABLE_BYTES = 10_000_000  # a few hundred thousand pairs; the rule looks at 16 at most


@click.group()
def simulate() -> None:
    """Replay what the swarm does where the truth is known."""


@simulate.command()
@CONFIG
@SET
@click.option("--campaigns", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many of each.")
@click.option("--proposals", type=click.IntRange(1, 10_000), default=PROPOSALS, show_default=True, help="In each.")
@click.option("--good", type=click.FloatRange(0.0, 0.5), default=0.10, show_default=True, help="Share of good edits.")
@click.option("--correlation", type=click.FloatRange(0.0, 0.99), default=0.0, show_default=True, help="In a pair.")
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Same seed, same campaigns.")
@JSON
def decisions(
    config: Path | None,
    overrides: tuple[str, ...],
    campaigns: int,
    proposals: int,
    good: float,
    correlation: float,
    seed: int,
    as_json: bool,
) -> None:
    """Replay campaigns of known truth under the configured rule, beside two rival rules.

    Of the edits 35 % do harm and the rest that is not good does nothing. Gains are in sd of a single run. On a panel:
    in pairs until the reference panel may be trusted, and on it from then on.
    """
    dial = load_config(config, overrides).decision.dial
    world = World("asked for", good=good, correlation=correlation)
    tallies = {
        f"the swarm, {dial}": believe(world, rule_for(dial), campaigns=campaigns, seed=seed, proposals=proposals),
        f"on a panel, {dial}": believe_on_panel(
            world, rule_for(dial), rule_on_panel(dial), campaigns=campaigns, seed=seed, proposals=proposals
        ),
        "greedy keep": keep_greedily(world, campaigns=campaigns, seed=seed, proposals=proposals),
        "t test, 5 pairs": five_pairs_each(world, campaigns=campaigns, seed=seed, proposals=proposals),
    }
    if as_json:
        click.echo(json.dumps({name: _numbers(tally) for name, tally in tallies.items()}, indent=2))
        return
    click.echo(f"{campaigns} x {proposals} proposals, {good:.0%} good; power: share of edits worth 1, 2, 3 sd promoted")
    Console(width=100).print(_table(tallies))


def _numbers(tally: Tally) -> dict[str, float | None]:
    ratio = tally.claimed_over_true
    return {
        "promoted": tally.promoted / tally.campaigns,
        "false_promotions": tally.false_per_campaign,
        "false_share": tally.false_share,
        "gain_kept": tally.kept_share,
        "runs_per_proposal": tally.runs_per_proposal,
        "runs_per_null": tally.runs_per_null,
        **{f"power_{gain:g}_sd": tally.power(gain) for gain in PROBED_SD},
        "claimed_over_true": ratio if math.isfinite(ratio) else None,
    }


def _table(tallies: dict[str, Tally]) -> Table:
    table = Table(box=None)
    table.add_column("rule")
    for name in ("promoted", "false", "false share", "gain kept", "runs/idea", "power 1/2/3", "claimed/true"):
        table.add_column(name, justify="right")
    for name, tally in tallies.items():
        table.add_row(name, *_cells(tally))
    return table


def _cells(tally: Tally) -> Iterator[str]:
    yield f"{tally.promoted / tally.campaigns:.1f}"
    yield f"{tally.false_per_campaign:.2f}"
    yield f"{tally.false_share:.1%}"
    yield f"{tally.kept_share:.0%}"
    yield f"{tally.runs_per_proposal:.2f}"
    yield "/".join(f"{tally.power(gain):.0%}" for gain in PROBED_SD)
    yield f"{tally.claimed_over_true:.2f}" if math.isfinite(tally.claimed_over_true) else "-"


@click.command()
@click.option("--csv", "path", required=True, type=click.Path(path_type=Path), help="Two columns, one pair a line.")
@click.option(
    "--direction",
    type=click.Choice(get_args(Direction)),
    default="minimize",
    show_default=True,
    help="Which is better.",
)
@click.option("--noise", type=float, help="sd of a paired gain where nothing changed; default: from these pairs.")
@click.option("--dial", type=click.Choice(get_args(Dial)), default="standard", show_default=True, help="How sure.")
@JSON
def verdict(path: Path, direction: Direction, noise: float | None, dial: Dial, as_json: bool) -> None:
    """Decide on a table of your own paired scores.

    The champion's scores stand in the first column, the candidate's in the second.

    Pairs count in the order of the file, up to the first that decides. A line of column names may come first. Exit
    code 0: accepted; 1: rejected or undecided.
    """
    scores = read_pairs(path)
    sign = 1.0 if direction == "maximize" else -1.0
    gains = [sign * (candidate - champion) for champion, candidate in scores]
    typical = statistics.fmean(champion for champion, _ in scores)
    decision = decide(gains, _noise(gains, typical, noise, rule_for(dial)), bar(Campaign()), rule_for(dial))
    click.echo(json.dumps(_told(decision), indent=2) if as_json else _said(decision, measured=noise is not None))
    raise SystemExit(0 if isinstance(decision, Accepted) else 1)


def _noise(gains: list[float], typical: float, given: float | None, rule: Rule) -> Noise:
    """The sd that was given, as well measured; else that of the gains themselves, worth the least that can be."""
    floor = max(RELATIVE_FLOOR * abs(typical), SMALLEST_FLOOR)
    if given is None and len(gains) < 2:
        raise PrerequisiteError("one pair says nothing of its own noise: add pairs, or give the sd with --noise")
    if given is None:
        # One degree of freedom: the likelihood ratio sees the same spread again, and must not count it twice.
        return Noise(statistics.variance(gains), 1, floor)
    if not 0.0 < given <= LARGEST_GAIN:
        raise PrerequisiteError(
            f"--noise {given:g} is no sd of a paired gain: give a number above 0, in the score's unit"
        )
    return Noise(rule.d0 * given * given, rule.d0, floor)


def _word(decision: Decision) -> str:
    return type(decision).__name__.lower()


def _told(decision: Decision) -> dict[str, object]:
    numbers = asdict(decision) | {"interval": decision.interval._asdict()}
    return {"verdict": _word(decision), "pairs": decision.pairs, **numbers}


def _said(decision: Decision, *, measured: bool) -> str:
    lines = [decision.reason, f"s = {decision.sd:.3g}, {'as given' if measured else 'from the spread of these pairs'}"]
    if isinstance(decision, Accepted):
        lines.append(f"gain to report: {decision.effect:.3g} (the mean, shrunken for having been selected)")
    if not measured and not isinstance(decision, Rejected):
        lines.append("more sensitive with --noise: the sd of the champion's gains against itself")
    return "\n".join(lines)


def read_pairs(path: Path) -> list[tuple[float, float]]:
    """Champion's and candidate's scores, in the order of the file.

    Raises:
        PrerequisiteError: it cannot be read, holds no pair, or a line is no pair of numbers.
    """
    rows = _rows(path)
    if rows and _is_heading(rows[0][1]):
        rows = rows[1:]
    if not rows:
        raise PrerequisiteError(f"{path} holds no pair: write the champion's and the candidate's score on each line")
    return [_pair(path, number, cells) for number, cells in rows]


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    if not path.is_file():
        raise PrerequisiteError(f"no file {path}: name a CSV file with --csv")
    if path.stat().st_size > _LARGEST_TABLE_BYTES:
        raise PrerequisiteError(f"{path} is larger than {_LARGEST_TABLE_BYTES} bytes: name a table of paired scores")
    try:
        text = path.read_text("utf-8-sig")
        reader = csv.reader(text.splitlines(), strict=True)
        return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise PrerequisiteError(f"{path} is no CSV text ({error}): save it as UTF-8 with commas") from None


def _is_heading(cells: list[str]) -> bool:
    return len(cells) == 2 and all(_number(cell) is None for cell in cells)


def _pair(path: Path, line: int, cells: list[str]) -> tuple[float, float]:
    if len(cells) != 2:
        raise PrerequisiteError(f"{path}, line {line}: {len(cells)} columns; write champion,candidate and no more")
    champion, candidate = map(_number, cells)
    if champion is None or candidate is None:
        wrong = cells[0] if champion is None else cells[1]
        raise PrerequisiteError(
            f"{path}, line {line}: {wrong.strip()[:40]!r} is no finite score; leave out failed pairs"
        )
    return champion, candidate


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if abs(value) <= LARGEST_GAIN / 2.0 else None
