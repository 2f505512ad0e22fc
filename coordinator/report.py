"""report.md: one page that tells what happened in a study, in plain words. Pure text from facts.

Says what was measured and by whom, also the bad trials, and what was not verified. Knows nothing of the Task beyond
what the facts hold; what else is to be said of it comes in as `notes`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

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
    duration,
    holdout,
    lines,
    machinery_failures,
    noise,
    numbered,
    numbers,
    panel,
    percent,
    platforms,
    proxy,
    recheck,
    shams,
    steps,
    table,
    task,
    together,
    words,
)
from swarm.history import Experiment, History, Pair, failure_of, score_of
from swarm.proxy import proxy_health
from swarm.records import Failure, Measurement, Purpose, TrialFinished, Verdict

REJECTED_SHOWN = 10
DECIDING: tuple[Purpose, ...] = ("calibrate", "confirm", "final")
NO_CLAIM = "Ideas were kept on their branches, but none was so much better that it was worth a claim."


def report_md(history: History, *, notes: str = "", picture: str = "progress.png") -> str:
    """The page. `notes` is a paragraph of the study's owner; `picture` the address of the plot, empty for none."""
    line = steps(history)
    parts = (
        _head(history, line),
        f"![Every experiment, what was claimed and what was confirmed]({picture})" if picture else "",
        f"**Note.** {notes.strip()}" if notes.strip() else "",
        _final(history, line),
        _promotions(history, line),
        _together(history),
        _rechecks(history),
        _why_none(history) if not line else _refuted(history),
        _proxy(history),
        _shams(history),
        _trials(history),
        _costs(history),
        _unverified(history, line),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


# --- what happened ---------------------------------------------------------------------------------------


def _head(history: History, line: Sequence[Step]) -> str:
    study = words(history.opened.study if history.opened else "no study yet")
    facts = [
        f"- **Task:** {words(task(history))}; `{words(history.metric)}`, {direction(history)}",
        f"- **Platform:** {' · '.join(platforms(history)) or 'none yet'}",
        f"- **Nodes:** {_nodes(history)}",
        f"- **Time:** {_time(history)}",
        f"- **Nodes busy:** {100 * history.busy:.1f} % of the time between first and last trial",
        f"- **Panel:** {panel(history)}",
        f"- **Ended:** {_ended(history)}",
    ]
    return "\n".join([f"# Report of study {study}", "", _summary(history, line), "", *facts])


def _summary(history: History, line: Sequence[Step]) -> str:
    ideas, trials = count(len(history.experiments), "idea"), count(len(history.trials), "trial")
    told = f"{ideas}, {trials}: {_fates(history)}."
    if not line:
        so_far = "" if history.finished else " so far"
        return f"{told} **Nothing was promoted{so_far}: the baseline is still the champion.**"
    share = percent(line[-1].total, history.baseline_score())
    gain = f"{numbers(history).gain(line[-1].total)}{f' ({share})' if share else ''}"
    return f"{told} **{count(len(line), 'promotion')}: a published gain of {gain} over the baseline.**"


def _fates(history: History) -> str:
    fates = Counter(experiment.status for experiment in history.experiments)
    return ", ".join(f"{number} {status}" for status, number in fates.most_common()) or "none was admitted"


def _nodes(history: History) -> str:
    infos = history.nodes.values()
    if not infos:
        return "none joined"
    hosts = len({info.host for info in infos})
    sandboxes = sorted({f"{info.sandbox} (level {info.sandbox_level})" for info in infos})
    return f"{len(infos)} on {count(hosts, 'machine')}; sandbox: {words(', '.join(sandboxes))}"


def _time(history: History) -> str:
    if history.opened is None:
        return "unknown"
    sessions = f" in {history.sessions} sessions, pauses included" if history.sessions > 1 else ""
    return f"{date(history.opened.at)} UTC, {duration(history.last_at - history.opened.at)}{sessions}"


def _ended(history: History) -> str:
    return words(history.finished.reason, 200) or "no reason given" if history.finished else "not yet"


# --- evidence --------------------------------------------------------------------------------------------


def _final(history: History, line: Sequence[Step]) -> str:
    end, pairs = history.finished, history.final_pairs()
    if not line or (end is None and not pairs):
        return ""
    told = ["## Champion against baseline", "Fresh seeds drawn at the end. **Validation split, not holdout.**"]
    if end is not None and end.final_gain is not None:
        write, share = numbers(history), percent(end.final_gain, history.baseline_score())
        told.append(
            f"**Gain {write.gain(end.final_gain)}{f' ({share})' if share else ''}, "
            f"95 % interval {write.interval(end.low, end.high)}, {count(end.pairs, 'pair')}.** {_meaning(end.low)}"
        )
    elif end is not None:
        told.append("It could not be completed: too few of its pairs gave two scores.")
    if pairs:
        told.append(_evidence(history, pairs, "baseline", "champion"))
    return "\n\n".join(told)


def _meaning(low: float | None) -> str:
    if low is not None and low > 0:
        return "The interval lies above zero."
    return "The interval holds zero: on these seeds alone the gain is not certain."


def _promotions(history: History, line: Sequence[Step]) -> str:
    if not line:
        return ""
    return "\n\n".join(["## Promotions", *(_promotion(history, step) for step in line)])


def _promotion(history: History, step: Step) -> str:
    write, found = numbers(history), numbered(history, [experiment.idea for experiment in step.experiments])
    told = [
        f"### {step.promotion.number}. {words(step.change, 120) or '(no words)'}",
        f"Experiment{'s' * (len(step.experiments) > 1)} {found or '–'} by {author(history, *step.experiments)}; "
        f"{lines(step.lines)} lines; {date(step.promotion.at)} UTC; "
        f"landed as {words(step.promotion.request, 80) or '–'}; commit {code(step.promotion.commit, 12)}.",
    ]
    if step.verdict is not None:
        told.append(f"Published gain {write.gain(step.verdict.effect)}. {_verdict(step.verdict)}")
        if not history.self_reported:
            told.append(f"{words(holdout(history.holdout_on(step.promotion)), 200).capitalize()}.")
        told.append(_evidence(history, history.pairs(step.verdict), "champion then", "candidate"))
    if step.transfer is not None:
        told.append(f"At a larger scale: {words(step.transfer.reason, 200)}.")
    return "\n\n".join(told)


def _together(history: History) -> str:
    rows = together(history)
    limits = "Two pairs each: enough to choose between sets, no evidence that two ideas act on each other."
    return f"## Ideas that were joined\n\n{table(TOGETHER, rows)}\n\n{limits}" if rows else ""


def _verdict(verdict: Verdict) -> str:
    reason = words(verdict.reason, 300).rstrip(".")
    return f"{reason[:1].upper()}{reason[1:]}. Noise s = {verdict.noise:.2g}."


def _evidence(history: History, pairs: Sequence[Pair], before: str, after: str) -> str:
    head = ("-seed", "node", f"-{before}", f"-{after}", "-gain")
    return table(head, [_pair(history, pair) for pair in pairs])


def _pair(history: History, pair: Pair) -> tuple[str, ...]:
    run, write = pair.candidate or pair.champion, numbers(history)
    before, after = score_of(pair.champion), score_of(pair.candidate)
    gain = history.gain(after, before) if before is not None and after is not None else None
    return (
        str(run.seed) if run else "–",
        words(history.node_name(run.node), 40) if run else "–",
        _outcome(history, pair.champion),
        _outcome(history, pair.candidate),
        write.gain(gain),
    )


def _outcome(history: History, trial: TrialFinished | None) -> str:
    failure = failure_of(trial)
    if failure is not None:
        return f"failed: {failure.reason}"
    return numbers(history).score(score_of(trial)) if trial else "did not finish"


def _rechecks(history: History) -> str:
    if not history.rechecks:
        return ""
    told = ["## Champions against earlier champions", "Fresh seeds; a champion that is no better steps down."]
    for found in history.rechecks:
        told.append(f"After {recheck(history, found)}.")
        told.append(_evidence(history, history.pairs(found), "champion before", "champion"))
    for undone in history.demotions:
        words_ = demotion(history, undone)
        told.append(f"**{words_[:1].upper()}{words_[1:]}.** It landed as {words(undone.request, 80) or '–'}.")
    return "\n\n".join(told)


# --- what did not work -----------------------------------------------------------------------------------


def _why_none(history: History) -> str:
    return f"## Why nothing was promoted{'' if history.finished else ' so far'}\n\n{_reason_for_none(history)}"


def _reason_for_none(history: History) -> str:
    status = Counter(experiment.status for experiment in history.experiments)
    if not history.experiments:
        return "No idea was admitted; there was nothing to try."
    if any(experiment.claims for experiment in history.experiments):
        return f"Ideas were claimed, and none of the claims ended in a promotion.\n\n{_claims(history)}"
    if status["kept"]:
        return f"{NO_CLAIM} A claim needs a clear gain over the champion on one seed; {_noise(history)}."
    if status["failed"] == len(history.experiments):
        return "Every idea failed: none of their trials gave a score."
    return "No idea was better than its branch tip. That is a result too."


def _noise(history: History) -> str:
    told = noise(history)
    return f"the noise of a paired gain is s = {told.sd:.2g}" if told else "the noise was never measured"


def _refuted(history: History) -> str:
    ended = _unpromoted(history)
    return f"## Claims that were not promoted\n\n{_claims(history)}" if ended else ""


def _unpromoted(history: History) -> list[Experiment]:
    return [e for e in history.experiments if e.status in ("rejected", "claimed", "accepted")]


def _claims(history: History) -> str:
    ended = _unpromoted(history)
    left = f"\n\n{len(ended) - REJECTED_SHOWN} more are in `LEADERBOARD.md`." if len(ended) > REJECTED_SHOWN else ""
    return "\n".join(f"- {_claim(history, experiment)}" for experiment in ended[-REJECTED_SHOWN:]) + left


def _claim(history: History, experiment: Experiment) -> str:
    verdict = experiment.verdict
    if experiment.status == "rejected" and verdict is not None:
        reason = words(experiment.why_rejected, 240)
    elif experiment.status == "accepted":
        reason = "reproduced, but was not promoted" + (" before the end" if history.finished else " yet")
    else:
        reason = "still undecided" + (" when the study ended" if history.finished else "")
    return f"experiment {experiment.number}, {change(experiment, 80)}: {reason}"


def _proxy(history: History) -> str:
    if not proxy_health(history).claims:
        return ""
    told = proxy(history)
    limits = (
        "Screening is one seed and chooses what is claimed, so its gains are inflated by luck. Only claims were "
        "confirmed, so the correlation is an underestimate."
    )
    return f"## Does screening predict confirmation?\n\n{told[:1].upper()}{told[1:]}. {limits}"


def _shams(history: History) -> str:
    """What the chain believed of edits that it made itself, and that change nothing."""
    if not history.shams:
        return ""
    told = [
        f"## Does the chain believe what is not so?\n\nShams: {shams(history)}. A sham is the champion with another "
        "random stream, claimed by the coordinator and confirmed as any claim; it never lands."
    ]
    for sham in history.shams:
        if sham.verdict.accepted:
            told.append(f"Sham {sham.number}: {_verdict(sham.verdict)}")
            told.append(_evidence(history, history.pairs(sham.verdict), "champion then", "sham"))
    return "\n\n".join(told)


# --- counts, costs, limits -------------------------------------------------------------------------------


def _trials(history: History) -> str:
    rows = [row for purpose in get_args(Purpose) if (row := _purpose(history, purpose))]
    if not rows:
        return ""
    again = sum(machinery_failures(history).values())
    lost = f" {count(len(history.lost_blocks), 'block')} lost." if history.lost_blocks else ""
    trouble = f" {len(history.troubles)} other troubles were survived." if history.troubles else ""
    told = f"Attempts that the machinery failed, run again where possible: {again}.{lost}{trouble}"
    head = ("purpose", "-scored", "-candidate failed", "-machinery failed", "-all")
    return f"## Trials\n\n{table(head, rows)}\n\n{told}"


def _purpose(history: History, purpose: Purpose) -> tuple[str, ...]:
    trials = history.of_purpose(purpose)
    blames = Counter(trial.outcome.blame if isinstance(trial.outcome, Failure) else "" for trial in trials)
    cells = (blames[""], blames["candidate"], blames["machinery"], len(trials))
    return (purpose, *map(str, cells)) if trials else ()


def _costs(history: History) -> str:
    spent = history.spent
    inside = sum(max(0.0, trial.ended_at - trial.started_at) for trial in history.trials.values())
    there = sum(answer.node_s for answer in history.holdout_answers)
    cpu = sum(trial.outcome.cpu_s for trial in history.trials.values())
    return "\n".join(
        [
            "## Costs",
            "",
            f"- Nodes inside trials: {inside / 3600:.2f} h; CPU time of training: {cpu / 3600:.2f} h; "
            f"scoring on the holdout: {there / 3600:.2f} h.",
            f"- Proposals: {spent.input_tokens} tokens read, {spent.output_tokens} written, {spent.dollars:.2f} USD.",
        ]
    )


def _unverified(history: History, line: Sequence[Step]) -> str:
    return "## What was not verified\n\n" + "\n".join(f"- {limit}" for limit in _limits(history, line))


def _limits(history: History, line: Sequence[Step]) -> Iterator[str]:
    yield _limit_of_holdout(history)
    yield from _limits_of_nodes(history)
    if history.self_reported:
        yield f"The scores themselves: they are {SELF_REPORTED}, the candidate's own word."
    else:
        yield from _limits_of_audits(history)
    if not history.shams:
        yield "The chain itself: no sham edit, which changes nothing, was claimed and judged."
    kept = sum(experiment.status == "kept" for experiment in history.experiments)
    if kept:
        yield f"{count(kept, 'idea')} kept on a branch without a claim: one seed each, which is no evidence."
    unchecked = sum(step.transfer is None for step in line)
    if unchecked:
        yield f"Larger scales: {unchecked} of {count(len(line), 'promotion')} had no check at one."
    if len(line) > 1:
        yield "What each promotion adds to the whole: gains may overlap, and only the last comparison is of them all."


def _limit_of_holdout(history: History) -> str:
    told = "All scores on this page are of the validation split, which the search has seen."
    if history.self_reported:
        return f"The holdout split: the scores are the scripts' own word, so there is nothing to score on it. {told}"
    asked = {answer.number: answer.passed for answer in history.holdout_answers}
    if not asked:
        return f"The holdout split: it was never asked, as no tree was about to land. {told}"
    trees = f"it was asked about {count(len(asked), 'tree')}, {sum(asked.values())} passed"
    return f"Scores on the holdout split: {trees}; only that, and gains rounded to about the noise, were kept. {told}"


def _limits_of_audits(history: History) -> Iterator[str]:
    deciding = [trial.outcome for purpose in DECIDING for trial in history.of_purpose(purpose)]
    measured = [outcome for outcome in deciding if isinstance(outcome, Measurement)]
    missing = sum(not outcome.audited for outcome in measured)
    if missing:
        yield (
            f"That predictions rest on the past alone: {missing} of {count(len(measured), 'deciding trial')} were not "
            "audited by a second process that was asked about other futures."
        )


def _limits_of_nodes(history: History) -> Iterable[str]:
    infos = history.nodes.values()
    if len(history.platforms) == 1:
        yield "Other Platforms: everything was measured on one."
    if len({info.host for info in infos}) == 1:
        yield "Other machines: all nodes share one."
    if any(info.sandbox_level == 0 for info in infos):
        yield "That candidates stayed in their place: the sandbox was at level 0, which isolates nothing."
