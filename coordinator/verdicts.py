"""What closes a Claim, in words and numbers, and what carries it onto a champion that moved. Pure.

Which of them a Claim gets, and when, is up to the mind.
"""

from dataclasses import replace

from coordinator.merging import Refusal, carry
from coordinator.reproduction import Accepted, Rejected, rejected_for
from coordinator.state import Claim, State
from swarm.records import Carried, Fact, Verdict
from swarm.source import is_simpler

FALLS = 2  # of one idea, after which it is closed for good


def verdict_of(claim: Claim, decision: Accepted | Rejected, now: float) -> Verdict:
    """What its Pairs say; it rests on those that decided, whatever else was on its way."""
    rests_on = replace(claim, pairs=claim.pairs[: decision.pairs])
    return replace(_verdict(rests_on, decision, decision.reason + _where(rests_on), now), panel=claim.against)


def closed(claim: Claim, reason: str, now: float) -> Verdict:
    """Rejected for another reason than its Pairs."""
    gains = [pair.gain for pair in claim.pairs]
    return _verdict(claim, rejected_for(reason, gains, claim.noise, claim.bar, claim.rule), reason, now)


def _verdict(claim: Claim, decision: Accepted | Rejected, reason: str, now: float) -> Verdict:
    trials = tuple(t for pair in claim.pairs for t in (pair.champion_trial, pair.candidate_trial))
    finite = bool(claim.pairs)
    return Verdict(
        experiment=claim.experiment,
        candidate=claim.candidate,
        base=claim.base,
        accepted=isinstance(decision, Accepted),
        effect=decision.effect,
        low=decision.interval.low if finite else 0.0,
        high=decision.interval.high if finite else 0.0,
        pairs=len(claim.pairs),
        likelihood_ratio=decision.likelihood_ratio,
        bar=decision.bar,
        noise=decision.sd,
        evidence=trials,
        nodes=len({pair.node for pair in claim.pairs}),
        reason=reason,
        at=now,
        claim_kind=claim.kind,
        after_demotion=claim.after_demotion,
    )


def _where(claim: Claim) -> str:
    nodes = {pair.node for pair in claim.pairs}
    own = ", the proposer's own among them" if claim.node in nodes else ""
    few = " (three other nodes were not there)" if len(nodes - {claim.node}) < 3 else ""
    panel = f"; the panel holds {claim.against} runs of the champion" if claim.against else ""
    return f"{panel}; confirmed on {len(nodes)} node{'s' if len(nodes) > 1 else ''}{own}{few}"


def carry_over(state: State, claim: Claim, now: float) -> Fact:
    """Nothing has been measured against a base that is no longer the champion: start again on the new one."""
    carried = _carried(state, claim, now)
    if isinstance(carried, Refusal):
        return replace(closed(claim, carried.reason, now), to_port=carried.to_port)
    return carried


def carry_accepted(state: State, claim: Claim, now: float) -> Fact:
    """What was accepted against an earlier champion is a claim against this one."""
    carried = _carried(state, claim, now)
    if not isinstance(carried, Refusal):
        return carried
    fresh = replace(claim, base=state.champion, pairs=[], verdict=None)
    told = closed(replace(fresh, after_demotion=len(state.demotions)), carried.reason, now)
    return replace(told, to_port=carried.to_port)


def _fell_twice(state: State, experiment: str) -> bool:
    """Whether to examine an idea no further: what passes by luck, and falls, could come back for ever."""
    standing = {promotion.number for promotion in state.line}
    return sum(experiment in p.landed and p.number not in standing for p in state.promotions) >= FALLS


def _carried(state: State, claim: Claim, now: float) -> Fact | Refusal:
    files, champion = state.files, state.champion
    if claim.sham:
        return Refusal("the champion moved before a pair of it had run")
    if _fell_twice(state, claim.experiment):
        return Refusal("it was promoted twice, and each time its champion stepped down")
    carried = carry(claim.experiment, files[claim.base], files[claim.candidate], files[champion], champion, now)
    if isinstance(carried, Carried):
        carried = replace(carried, after_demotion=len(state.demotions))
    if claim.kind == "simplification" and isinstance(carried, Carried):
        simpler = is_simpler(carried.files, files[champion])
        return carried if simpler else Refusal("the moved champion has as little code")
    return carried
