"""What the generated pages share: how numbers, times and other people's words are written, and the line of champions.

Pure. Knows nothing of which page it serves, of files or of a forge. Words from proposers, candidates and nodes pass
through `words`, wherever they are shown.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from math import floor, isfinite, log10
from statistics import fmean, stdev
from typing import NamedTuple

from coordinator.panel import RUNS_BEFORE_TRUST, SURPRISES_BEFORE_TRUST
from coordinator.quoting import inline
from coordinator.reproduction import Noise
from swarm.experiment import lines_changed
from swarm.history import Experiment, History, Lines, Pair, failure_of, score_of
from swarm.proxy import proxy_health
from swarm.records import (
    ChampionRechecked,
    Demotion,
    HoldoutAnswered,
    Interaction,
    Platform,
    Promotion,
    TransferChecked,
    Verdict,
)

SELF_REPORTED = "self-reported"


class Step(NamedTuple):
    """One promotion on the line from the baseline to the champion."""

    promotion: Promotion
    experiment: Experiment | None
    """The first, where several landed together."""
    experiments: tuple[Experiment, ...]
    verdict: Verdict | None
    scores: tuple[float, ...]
    """Of its confirmation runs."""
    gain: float
    """Over its parent, as published."""
    total: float
    """Published gains summed up to here."""
    change: str
    """Untrusted text: every idea that it brings, the claimed one first, behind the kind where it is no gain."""
    lines: Lines
    transfer: TransferChecked | None


def steps(history: History) -> tuple[Step, ...]:
    """The line of champions, oldest first; without the promotions that were undone."""
    found: list[Step] = []
    for promotion in history.line:
        verdict = history.verdict_on(promotion)
        gain = verdict.effect if verdict else 0.0
        experiment = history.by_idea.get(promotion.experiment)
        found.append(
            Step(
                promotion=promotion,
                experiment=experiment,
                experiments=_landed(history, promotion),
                verdict=verdict,
                scores=_candidate_scores(history.pairs(verdict)) if verdict else (),
                gain=gain,
                total=gain + (found[-1].total if found else 0.0),
                change=_kind(promotion) + "; ".join(e.hypothesis for e in history.stacked(promotion)),
                lines=lines_changed(history.files.get(promotion.base, {}), history.files.get(promotion.candidate, {})),
                transfer=_transfer(experiment, promotion),
            )
        )
    return tuple(found)


def _landed(history: History, promotion: Promotion) -> tuple[Experiment, ...]:
    ideas = promotion.landed
    return tuple(history.by_idea[idea] for idea in ideas if idea in history.by_idea)


def _transfer(experiment: Experiment | None, promotion: Promotion) -> TransferChecked | None:
    """The check of the very tree that landed."""
    found = experiment.transfer if experiment else None
    return found if found is not None and found.base == promotion.base else None


def transfer(step: Step) -> str:
    """What became of a promotion at a larger scale, in a table's cell."""
    return f"{step.transfer.mark} ({words(step.transfer.scale, 20)})" if step.transfer else "–"


def _kind(promotion: Promotion) -> str:
    return "" if promotion.claim_kind == "gain" else f"{promotion.claim_kind}: "


def _candidate_scores(pairs: Iterable[Pair]) -> tuple[float, ...]:
    return tuple(score for pair in pairs if (score := score_of(pair.candidate)) is not None)


# --- ideas that were joined ------------------------------------------------------------------------------

TOGETHER = ("on promotion", "experiments", "-together", "-alone, in all", "-pairs", "what came of it")


def together(history: History) -> list[tuple[str, ...]]:
    """What sets of accepted ideas gained on which champion, oldest first: the cells under `TOGETHER`."""
    write, champions = numbers(history), {p.candidate: p for p in history.promotions}
    landed = {(p.experiment, p.base): p.number for p in history.promotions}
    return [
        (
            str(champions[told.onto].number) if told.onto in champions else "0",
            numbered(history, told.ideas),
            write.gain(told.gain) if told.pairs else "–",
            write.gain(told.expected),
            str(told.pairs),
            _end_of(told, landed.get((told.experiment, told.onto))),
        )
        for told in history.interactions
    ]


def _end_of(told: Interaction, landed: int | None) -> str:
    if landed is not None:
        return f"landed as promotion {landed}"
    return "did not land" if told.pairs else words(told.reason, 200)


def numbered(history: History, ideas: Iterable[str]) -> str:
    """Experiments by number."""
    return ", ".join(str(history.by_idea[idea].number) if idea in history.by_idea else "–" for idea in ideas)


def machinery_failures(history: History) -> Counter[str]:
    """By node: attempts that the machinery failed, without those that a person or the end of the study stopped."""
    failures = Counter(d.node for d in history.disturbed if d.failure.reason != "stopped")
    failures.update(t.node for t in history.trials.values() if (f := failure_of(t)) and f.blame == "machinery")
    return failures


# --- noise -----------------------------------------------------------------------------------------------


class NoiseTold(NamedTuple):
    """s, the sd of a paired gain, and where the number comes from."""

    sd: float
    source: str


def noise(history: History) -> NoiseTold | None:
    """The newest s that a decision used, else the one that the calibration gives; None before that."""
    verdicts = [verdict for experiment in history.experiments for verdict in experiment.verdicts]
    if verdicts:
        newest = max(verdicts, key=lambda verdict: verdict.at)
        told = "calibration on the baseline, moved since by the spread within closed confirmations"
        return NoiseTold(newest.noise, told)
    scores = history.calibration_scores(history.home_platform)
    if len(scores) < 2:
        return None
    told = f"calibration: {len(scores)} baseline trials on different seeds, times sqrt 2, which is cautious"
    return NoiseTold(Noise.from_seed_scores(scores).sd, told)


# --- numbers, times and words ----------------------------------------------------------------------------


class Numbers(NamedTuple):
    """How many decimals scores get in one study: two digits of its noise, as more would be made up."""

    decimals: int

    def score(self, value: float | None) -> str:
        return "–" if value is None else f"{value:.{self.decimals}f}"

    def gain(self, value: float | None) -> str:
        return "–" if value is None else f"{value:+.{self.decimals}f}"

    def interval(self, low: float | None, high: float | None) -> str:
        return "" if low is None or high is None else f"[{self.gain(low)}, {self.gain(high)}]"

    def mean(self, scores: Sequence[float]) -> str:
        """Mean, spread and count."""
        if not scores:
            return "–"
        spread = f" ± {stdev(scores):.{self.decimals}f}" if len(scores) > 1 else ""
        return f"{fmean(scores):.{self.decimals}f}{spread} (n = {len(scores)})"


def numbers(history: History) -> Numbers:
    """The number format of one study."""
    told = noise(history)
    return numbers_at(told.sd if told else 0.0)


def numbers_at(sd: float) -> Numbers:
    """The number format where this is the noise; 0: nobody knows."""
    return Numbers(min(max(1 - floor(log10(sd)), 2), 6) if isfinite(sd) and sd > 0 else 4)


def percent(gain: float, baseline: float | None) -> str:
    """A gain as a share of the baseline's score; empty where that says nothing."""
    return f"{100 * gain / abs(baseline):.2f} %" if baseline else ""


def date(at: float) -> str:
    """A moment, in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def duration(seconds: float) -> str:
    """A span of time that people can read."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def count(number: int, noun: str) -> str:
    """1 node, 2 nodes."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def holdout(answer: HoldoutAnswered | None) -> str:
    """What the split that no search sees said of a tree: pass or fail, and a gain as coarse as it was told."""
    if answer is None:
        return "holdout: not asked"
    if answer.gain is None:
        return f"holdout: refused: {answer.reason}"
    return f"holdout: passed, gain about {answer.gain:+g} in steps of {answer.step:g}: {answer.reason}"


def proxy(history: History) -> str:
    """How well screening predicted confirmation, in one sentence."""
    health, write = proxy_health(history), numbers(history)
    gains = f"screened {write.gain(health.screened)}, confirmed {write.gain(health.confirmed)} on average"
    told = f"{count(health.claims, 'claim')} confirmed or refuted: {gains}"
    scaled = f"; {health.scaled} of them at a larger scale, {_ranked(health.scale_rho)}" if health.scaled else ""
    alarm = "; screening does not predict confirmation here" if health.failing else ""
    return f"{told}; {_ranked(health.rho)}{alarm}{scaled}"


def _ranked(rho: float | None) -> str:
    return "too few, or too alike, to rank" if rho is None else f"rank correlation {rho:+.2f}"


def shams(history: History) -> str:
    """What the chain made of edits that change nothing."""
    accepted = sum(sham.verdict.accepted for sham in history.shams)
    return f"{len(history.shams)} tried, {accepted} accepted"


def panel(history: History) -> str:
    """Whether claims are weighed on the panel of the champion's runs on the home Platform, or why not."""
    home = history.home_platform
    verdicts = [verdict for experiment in history.experiments for verdict in experiment.verdicts]
    weighed = f"; {sum(v.panel > 0 for v in verdicts)} of {count(len(verdicts), 'verdict')} rest on it"
    last = next((switch for switch in reversed(history.switches) if switch.platform == home), None)
    if last is not None:
        return f"{'on' if last.on else 'off'} since {date(last.at)} UTC: {last.reason}{weighed}"
    if _setting(history, "decision", "panel") == "off":
        return 'off: decision.panel = "off"'
    seen = sum(trial.platform == home for trial in history.trials.values())
    needed = f"{RUNS_BEFORE_TRUST} trials, {SURPRISES_BEFORE_TRUST} of them foretold by earlier ones"
    return f"off: it cannot be judged before {needed}, and pairs that tell the noise; {count(seen, 'trial')} so far"


def _setting(history: History, *path: str) -> object:
    """A value of the frozen configuration; None where there is none."""
    found: object = None
    try:
        found = json.loads(history.opened.config) if history.opened else None
    except ValueError:  # a ledger from elsewhere; the page is still worth having
        return None
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def task(history: History) -> str:
    """The task folder as the frozen configuration names it."""
    return str(_setting(history, "task") or "unknown")


def recheck(history: History, found: ChampionRechecked) -> str:
    """How a champion stood against an earlier one."""
    write = numbers(history)
    if found.gain is None:
        return f"promotion {found.number}: {found.reason}"
    measured = f"{write.gain(found.gain)} {write.interval(found.low, found.high)} on {count(found.pairs, 'fresh seed')}"
    stays = "".join(f"; it stays: {v.reason}" for v in history.demotions_vetoed if v.rechecked == found.number)
    return f"promotion {found.number}: {measured}, published {write.gain(found.published)}; {found.reason}{stays}"


def demotion(history: History, found: Demotion) -> str:
    """Which promotions a demotion undid, and why."""
    undone = [p for p in history.promotions if p.number in found.undone]
    told = next((recheck(history, r) for r in history.rechecks if r.number == found.rechecked), "")
    fallen = ", ".join(f"promotion {p.number} ({_now(history, p)})" for p in undone)
    restored = next((f"promotion {p.number}" for p in history.promotions if p.candidate == found.restored), "baseline")
    return f"demotion {found.number}, back to the {restored}: undone {fallen}; {told}"


def _now(history: History, promotion: Promotion) -> str:
    """What became of the idea of a promotion that was undone."""
    experiment = history.by_idea.get(promotion.experiment)
    words_ = {"claimed": "being confirmed again", "accepted": "confirmed again", "rejected": "not confirmed again"}
    if experiment is not None and experiment.promotion is not None:
        return f"now promotion {experiment.promotion.number}"
    return words_.get(experiment.status, experiment.status) if experiment is not None else "unknown"


def words(text: str, limit: int = 100) -> str:
    """Other people's text as one inert line, safe in a table cell."""
    return inline(text, limit)


def change(experiment: Experiment | None, limit: int = 100) -> str:
    """What an experiment tries, in its proposer's words."""
    return words(experiment.hypothesis if experiment else "", limit) or "(no words)"


def code(identity: str, length: int = 8) -> str:
    """A hash, as code."""
    return f"`{words(identity[:length])}`" if identity else "–"


def lines(size: Lines) -> str:
    """+3 -1."""
    return f"+{size.added} -{size.removed}"


def author(history: History, *experiments: Experiment) -> str:
    """Who thought of it, and where. Written without an at sign, which would call somebody."""
    names = (f"{words(e.proposer, 40)} on {words(history.node_name(e.node), 40)}" for e in experiments)
    return "; ".join(dict.fromkeys(names)) or "–"


def platforms(history: History) -> list[str]:
    """Those that scores were measured on, in words."""
    used = {trial.platform for trial in history.trials.values()}
    return [_platform(where) for key, where in history.platforms.items() if key in used]


def _platform(where: Platform) -> str:
    return words(f"{where.device}; {where.software}; {where.budget}", 160)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a column whose head begins with a minus is aligned to the right."""
    names = [name.removeprefix("-") for name in head]
    rules = ["---:" if name.startswith("-") else "---" for name in head]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [names, rules, *rows])


def direction(history: History) -> str:
    """Which way is better."""
    return "lower is better" if history.direction == "minimize" else "higher is better"
