"""Is the champion still better than an earlier champion? Which comparison is owed, what came of it, what follows. Pure.

Each promotion was a selection, and each publishes a gain; along a line of them small errors may add up, or gains
overlap. So after every tenth promotion both trees are run on fresh seeds. The question is that of a Claim, with a
smaller gain and even stakes: is there a gain worth having, or none? 20:1 either way is the answer; after four times as
many Pairs as are run at least, the likelier of the two. A champion that gains nothing is demoted: the earlier tree
lands again. It does not know nodes, leases or clocks.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from coordinator.reproduction import Decision as Found
from coordinator.reproduction import Interval, Noise, Rejected, Rule, Undecided, decide, paired_interval
from coordinator.state import Claim, Recheck, State
from swarm.config import Decision
from swarm.records import ChampionRechecked, Promotion

WORTH = 0.7  # in s, the gain that none is tested against: half of what a Claim is tested for
EITHER_WAY = 20.0  # the likelihood ratio that ends it; of those that gain WORTH, about 1 in 20 is demoted
MOST = 4  # times the seeds that are run at least; four of five comparisons with no gain are over before
IN_VAIN = 6  # blocks of one comparison that may be lost, or give no pair


class Owed(NamedTuple):
    """A comparison that is not complete."""

    line: tuple[Promotion, ...]  # that it is about, oldest first; the last one made it due
    claim: Claim  # of the last one
    recheck: Recheck

    @property
    def champion(self) -> str:
        return self.line[-1].candidate

    @property
    def ancestor(self) -> str:
        return self.line[0].base

    @property
    def gains(self) -> list[float]:
        return [pair.gain for pair in self.recheck.pairs]


def owed(state: State, decision: Decision) -> Owed | None:
    """The oldest comparison that is due; each is made once, in the order of promotions, and none before a demotion."""
    every, line = decision.recheck_every, state.line
    if not every or due_demotion(state) is not None:
        return None
    known = {found.number for found in state.rechecked}
    for end in range(every, len(line) + 1, every):
        newest = line[end - 1]
        claim = state.claims.get((newest.experiment, newest.base))
        between = tuple(line[end - every : end])
        differ = newest.candidate != between[0].base  # as ever, since a tree is champion once
        if newest.number not in known and claim is not None and differ:
            return Owed(between, claim, state.rechecks.get((newest.candidate, between[0].base), Recheck()))
    return None


def wants_pair(due: Owed, decision: Decision, rule: Rule) -> bool:
    """Whether another block is to be drawn for it."""
    in_vain = due.recheck.drawn - len(due.recheck.pairs) >= IN_VAIN
    return not in_vain and is_open(due.gains, due.line, due.claim.noise, rule, decision.final_seeds)


def is_open(gains: Sequence[float], line: Sequence[Promotion], noise: Noise, rule: Rule, least: int) -> bool:
    """Whether more Pairs are to be run."""
    if len(gains) < least:
        return True
    return len(gains) < MOST * least and isinstance(answer(gains, line, noise, rule), Undecided)


def answer(gains: Sequence[float], line: Sequence[Promotion], noise: Noise, rule: Rule) -> Found:
    """Whether there is a gain worth having; a simplification on the line may have cost its margin."""
    null = -rule.margin * sum(promotion.claim_kind == "simplification" for promotion in line)
    most = len(gains) + 1  # the end is set by `is_open`
    asked = replace(rule, null=null, d1=null + WORTH, reject_below=1.0 / EITHER_WAY, min_pairs=1, max_pairs=most)
    return decide(gains, noise, EITHER_WAY, asked)


def rechecked(state: State, decision: Decision, now: float) -> ChampionRechecked | None:
    """What came of the comparison that is due, once nothing more is wanted or on its way."""
    due = owed(state, decision)
    if due is None or wants_pair(due, decision, state.rule):
        return None
    if any(drawn.fact.purpose == "recheck" for drawn in state.outstanding.values()):
        return None
    pairs, published = due.recheck.pairs, _published(state, due.line)
    interval = paired_interval(due.gains) if len(pairs) >= 2 else None
    found = answer(due.gains, due.line, due.claim.noise, state.rule)
    given_up = is_open(due.gains, due.line, due.claim.noise, state.rule, decision.final_seeds)
    demotes = not given_up and no_gain(found)
    return ChampionRechecked(
        number=due.line[-1].number,
        champion=due.champion,
        ancestor=due.ancestor,
        published=published,
        gain=interval.mean if interval else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        pairs=len(pairs),
        evidence=tuple(trial for pair in pairs for trial in (pair.champion_trial, pair.candidate_trial)),
        noise=due.claim.noise.sd,
        likelihood_ratio=found.likelihood_ratio,
        demotes=demotes,
        reason=_demoted(interval) if demotes else _told(interval, published),
        at=now,
    )


def no_gain(found: Found) -> bool:
    """What the answer says when no more Pairs are to come."""
    return isinstance(found, Rejected) or isinstance(found, Undecided) and found.likelihood_ratio <= 1.0


def due_demotion(state: State) -> ChampionRechecked | None:
    """The comparison whose champion has still to step down."""
    open_ = {promotion.number for promotion in state.line} - state.demotions_vetoed
    return next((found for found in state.rechecked if found.demotes and found.number in open_), None)


def undone_by(state: State, found: ChampionRechecked) -> tuple[Promotion, ...]:
    """The promotions that fall with it, oldest first: also those that landed on top of it since."""
    line = state.line
    first = next(place for place, promotion in enumerate(line) if promotion.base == found.ancestor)
    return tuple(line[first:])


def _published(state: State, line: Sequence[Promotion]) -> float:
    """The gains that were published along the line between the two."""
    return sum(_effect(state.claims.get((p.experiment, p.base))) for p in line)


def _effect(claim: Claim | None) -> float:
    return claim.verdict.effect if claim is not None and claim.verdict is not None else 0.0


def _demoted(interval: Interval | None) -> str:
    worse = interval is not None and interval.high < 0.0
    return f"it is {'worse' if worse else 'not better'}, and the champion before is restored"


def _told(interval: Interval | None, published: float) -> str:
    if interval is None:
        return "too few of its pairs gave two scores"
    if interval.low <= 0.0:
        return "on these seeds alone it is not certain to be better"
    return "it is better, but by less than was published" if interval.high < published else "it is better"
