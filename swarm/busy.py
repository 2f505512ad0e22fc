"""How busy the nodes were: one number, defined once, for `status`, the report and the last fact of a study. Pure."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from swarm.records import CoordinatorStarted, Fact, HoldoutAnswered, TrialFinished


class _Span(NamedTuple):
    start: float
    end: float


def time_of(fact: Fact) -> float:
    """When a fact became true, on the clock of whoever wrote it."""
    return fact.ended_at if isinstance(fact, TrialFinished) else fact.at


def busy_share(facts: Iterable[Fact]) -> float:
    """Share of the nodes' time that they spent inside trials and at scoring on the holdout, from 0 to 1.

    Inside a trial is from the start of its training process to the end of its scoring, by the node's clock. What is
    scored on the holdout runs between trials; how long it took is known for all nodes together only. A node
    counts from the start of its first trial to the end of the study's last one, on whatever node that ran: a node that
    joins late is not blamed for its absence, one that leaves early or waits is. The time from a coordinator's last fact
    to the start of the next coordinator is a pause and does not count, except where trials ran in it. Attempts that
    were disturbed leave no start time; they count as idle. 0 without any trial.
    """
    by_node: defaultdict[str, list[_Span]] = defaultdict(list)
    pauses: list[_Span] = []
    newest = there = 0.0
    for fact in facts:
        if isinstance(fact, HoldoutAnswered):
            there += max(0.0, fact.node_s)
        if isinstance(fact, TrialFinished) and fact.ended_at > fact.started_at:
            by_node[fact.node].append(_Span(fact.started_at, fact.ended_at))
        if isinstance(fact, CoordinatorStarted) and newest and fact.at > newest:
            pauses.append(_Span(newest, fact.at))
        newest = max(newest, time_of(fact))
    if not by_node:
        return 0.0
    last = max(span.end for spans in by_node.values() for span in spans)
    shares = [_busy_of_node(spans, pauses, last) for spans in by_node.values()]
    return min(1.0, (there + sum(busy for busy, _ in shares)) / sum(total for _, total in shares))


def _busy_of_node(spans: list[_Span], pauses: list[_Span], last: float) -> tuple[float, float]:
    """Seconds inside trials, and seconds that count."""
    inside = _union(spans)
    window = _Span(inside[0].start, last)
    off = [_Span(max(p.start, window.start), min(p.end, window.end)) for p in pauses]
    counted = [*inside, *(span for span in off if span.end > span.start)]
    busy = _length(inside)
    return busy, window.end - window.start - (_length(_union(counted)) - busy)


def _union(spans: Iterable[_Span]) -> list[_Span]:
    """The same time without overlaps, in order."""
    merged: list[_Span] = []
    for span in sorted(spans):
        if merged and span.start <= merged[-1].end:
            merged[-1] = _Span(merged[-1].start, max(merged[-1].end, span.end))
        else:
            merged.append(span)
    return merged


def _length(spans: Iterable[_Span]) -> float:
    return sum(span.end - span.start for span in spans)
