"""Does the champion still beat the champion of ten promotions ago? Which comparison is owed, and what came of it. Pure.

Each promotion was a selection, and each publishes a gain; along a line of them small errors may add up, or gains
overlap. So after every tenth promotion both trees are run on fresh seeds, as many Pairs as the comparison at the end,
and all of it is told. It decides nothing, and does not know nodes, leases or clocks.
"""

from typing import NamedTuple

from coordinator.reproduction import Interval, paired_interval
from coordinator.state import Claim, Recheck, State
from swarm.config import Decision
from swarm.records import ChampionRechecked

IN_VAIN = 6  # blocks of one comparison beyond its seeds that may be lost, or give no pair


class Owed(NamedTuple):
    """A comparison that is not complete."""

    number: int  # of the promotion that made it due
    champion: str
    ancestor: str
    platform: str  # where that promotion was confirmed

    def of(self, state: State) -> Recheck:
        return state.rechecks.get((self.champion, self.ancestor), Recheck())


def owed(state: State, decision: Decision) -> Owed | None:
    """The oldest comparison that is due; each is made once, in the order of promotions."""
    every, number = decision.recheck_every, decision.recheck_every * (len(state.rechecked) + 1)
    if not 0 < number <= len(state.promotions):
        return None
    newest, first = state.promotions[number - 1], state.promotions[number - every]
    claim = state.claims.get((newest.experiment, newest.base))
    return Owed(number, newest.candidate, first.base, claim.platform if claim else "")


def wants_pair(recheck: Recheck, decision: Decision) -> bool:
    """Whether another block is to be drawn for it."""
    return len(recheck.pairs) < decision.final_seeds and recheck.drawn < decision.final_seeds + IN_VAIN


def rechecked(state: State, decision: Decision, now: float) -> ChampionRechecked | None:
    """What came of the comparison that is due, once nothing more is wanted or on its way."""
    due = owed(state, decision)
    if due is None or wants_pair(due.of(state), decision):
        return None
    if any(drawn.fact.purpose == "recheck" for drawn in state.outstanding.values()):
        return None
    pairs, published = due.of(state).pairs, _published(state, due.number, decision.recheck_every)
    interval = paired_interval([pair.gain for pair in pairs]) if len(pairs) >= 2 else None
    return ChampionRechecked(
        number=due.number,
        champion=due.champion,
        ancestor=due.ancestor,
        published=published,
        gain=interval.mean if interval else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        pairs=len(pairs),
        evidence=tuple(trial for pair in pairs for trial in (pair.champion_trial, pair.candidate_trial)),
        reason=_told(interval, published),
        at=now,
    )


def _published(state: State, number: int, every: int) -> float:
    """The gains that were published along the line between the two."""
    line = [state.claims.get((p.experiment, p.base)) for p in state.promotions[number - every : number]]
    return sum(map(_effect, line))


def _effect(claim: Claim | None) -> float:
    return claim.verdict.effect if claim is not None and claim.verdict is not None else 0.0


def _told(interval: Interval | None, published: float) -> str:
    if interval is None:
        return "too few of its pairs gave two scores"
    if interval.high < 0.0:
        return "it is worse"
    if interval.low <= 0.0:
        return "on these seeds alone it is not certain to be better"
    return "it is better, but by less than was published" if interval.high < published else "it is better"
