"""Several accepted ideas wait for one champion: joined, measured and landed together, not one after another. Pure.

An idea *waits* when it was accepted on a champion that has moved since; the tree that would land is another one now,
so it has to be measured again. One by one, each would be measured again for every other that lands before it. Instead:

1. The ideas that wait, and merge with each other, are the *batch* of this champion. The first `Stacked` fixes it.
2. `coordinator/batches` plans which *sets* of them are measured next, side by side: in a block they share the
   champion's run, so its noise cancels between them. A set is a Claim that names its ideas; what it gained on its first
   `PAIRS` pairs is told as an `Interaction`. When all of them are told, the plan goes on.
3. The set that the plan ends with is *final*: it gets pairs until the ordinary test decides, is asked about on the
   holdout, and lands as one Promotion. All others are closed. Meanwhile nothing else lands.
   A single idea is carried by itself, and the others wait until it has its end.
4. Whatever goes wrong (they do not join, the set crashes, is rejected, refused by the holdout, loses its blocks, or its
   Platform) leaves the ideas where they were: accepted, and carried one by one. A champion has one batch, so no idea is
   joined twice without one that landed between; that is why it ends.

All of it is read from the State, which is made of facts: a restart changes nothing.

Pairs of a set decide twice, which set is final and what its verdict is. Where all of six ideas gain nothing, the final
set is accepted in 0.4 % of the cases, where one that nobody chose is in 0.1 % (simulated at a bar of 148:1); each idea
would have to have been accepted falsely before, and the holdout is still to come.
"""

from collections.abc import Collection, Iterator, Sequence
from math import inf
from statistics import fmean

from coordinator.batches import PAIRS, Final, Idea, Measure, Set, plan
from coordinator.reproduction import SHRINKAGE
from coordinator.state import Claim, State
from coordinator.verdicts import carry_accepted
from swarm.merge import MergeConflict, merge_files
from swarm.records import Fact, Files, Interaction, Stacked, candidate_id, digest

MOST_IDEAS = 6  # of one batch: as many as its runs were simulated for; more wait for the next one


# --- what the mind asks ----------------------------------------------------------------------------------


def step(state: State, gone: Collection[str], now: float) -> list[Fact] | None:
    """What is to be recorded next about a batch; empty: wait for runs; None: go on with claims one by one.

    `gone` are Platforms without a node: nobody waits for them.
    """
    sets = _sets(state)
    if not sets and any(claim.base == state.champion for claim in state.accepted.values()):
        return None  # it has been measured where it lands: first this one
    if not sets and _more_to_come(state, gone):
        return []
    batch = _batch(state)
    if len(batch) < 2 or batch[0].platform in gone:
        return None
    if told := [*_measured(state, batch, now)]:
        return [*told]
    following = _plan(state, batch)
    if following is None:
        return []
    if isinstance(following, Measure):
        return [_joined(state, batch, ideas, now) for ideas in following.sets]
    if len(following.order) == 1:  # the larger of rivals: it goes first, whoever is older
        return [carry_accepted(state, state.latest[following.order[0]], now)]
    final = _set_of(state, frozenset(following.order))
    return [] if final is not None and final.verdict is None else None


def waits_for_rival(state: State, claim: Claim, gone: Collection[str]) -> bool:
    """Whether an idea stays where it was accepted, as another one of its batch is on the champion, without its end."""
    ideas = next((joined.ideas for joined in _sets(state)), ())
    others = [*state.open_claims.values(), *state.accepted.values()]
    alone = [other for other in others if other.base == state.champion and other.experiment in ideas]
    return claim.experiment in ideas and any(other.platform not in gone for other in alone)


def is_final(state: State, claim: Claim) -> bool:
    """Whether a set is the one to be judged: all that the plan asks for has been measured."""
    batch = _batch(state)
    if len(batch) < 2:
        return False
    following = _plan(state, batch)
    return isinstance(following, Final) and set(following.order) == set(claim.ideas)


def pairs_missing(state: State, claim: Claim) -> float:
    """How many more an open set is to get: what it is measured by; without end if it is the one that is judged."""
    missing = PAIRS - len(claim.pairs)
    return inf if missing <= 0 and is_final(state, claim) else missing


def why_closed(state: State, claim: Claim) -> str:
    """Why an open set will not land; empty while it may."""
    if claim.base != state.champion:
        return "the champion moved before these ideas were judged together"
    batch = _batch(state)
    if len(batch) < 2:
        return "its ideas go on one by one"
    if not isinstance(_plan(state, batch), Final) or is_final(state, claim):
        return ""
    told = _interactions(state).get(frozenset(claim.ideas))
    return f"another set of these ideas is better{f': {told.reason}' if told else ''}"


def landing_trees(state: State, claim: Claim) -> tuple[Files, ...]:
    """The champion with the first idea of a set, with the first two, and so on."""
    return tuple(_trees(state, [state.latest[idea] for idea in claim.ideas]))


def twin_of(state: State, candidate: str) -> Claim | None:
    """The claim on an old champion that comes to this very tree on the new one: its author carried it over as well."""
    for claim in [*state.accepted.values(), *state.open_claims.values()]:
        try:
            if _waits(state, claim) and candidate_id(_onto(state, state.files[state.champion], claim)) == candidate:
                return claim
        except MergeConflict:
            continue
    return None


# --- the batch -------------------------------------------------------------------------------------------


def _waits(state: State, claim: Claim) -> bool:
    """For a batch. A simplification promises no gain that a set could be measured by; a sham never lands."""
    return claim.base != state.champion and claim.kind == "gain" and not claim.ideas and not claim.sham


def _more_to_come(state: State, gone: Collection[str]) -> bool:
    """Whether claims that are still confirmed against an old champion may join those that wait: a few blocks more.

    Carried now, those that wait would each be measured once for this champion and once more for the next.
    """
    platforms = {claim.platform for claim in state.accepted.values() if _waits(state, claim)} - {*gone}
    return any(claim.platform in platforms and _waits(state, claim) for claim in state.open_claims.values())


def _batch(state: State) -> list[Claim]:
    """Of this champion, largest published gain first; empty when one of its ideas waits no longer."""
    waiting = {claim.experiment: claim for claim in state.accepted.values() if _waits(state, claim)}
    if sets := _sets(state):
        ideas = sets[0].ideas
        return [waiting[idea] for idea in ideas] if waiting.keys() >= set(ideas) else []
    first = next(iter(waiting.values()), None)
    mine = [claim for claim in waiting.values() if first is not None and claim.platform == first.platform]
    return _that_join(state, sorted(mine, key=lambda claim: (-_published(claim), claim.experiment)))


def _that_join(state: State, claims: Sequence[Claim]) -> list[Claim]:
    """Those of these that merge with the champion and the ones before; the others are told of both sides later."""
    found: list[Claim] = []
    tree = state.files[state.champion]
    for claim in claims[:MOST_IDEAS]:
        try:
            joined = _onto(state, tree, claim)
        except MergeConflict:
            continue
        if joined != tree:
            found.append(claim)
            tree = joined
    return found


def _plan(state: State, batch: Sequence[Claim]) -> Measure | Final | None:
    """None while sets are being measured: what is known of half of them is not what the plan was made for."""
    measured = {ideas: told.gain for ideas, told in _interactions(state).items()}
    if any(frozenset(claim.ideas) not in measured for claim in _sets(state)):
        return None
    ideas = [Idea(claim.experiment, _published(claim) / SHRINKAGE) for claim in batch]
    return plan(ideas, measured, batch[0].noise.sd)


def _published(claim: Claim) -> float:
    return claim.verdict.effect if claim.verdict is not None else 0.0


# --- its sets --------------------------------------------------------------------------------------------


def _sets(state: State) -> list[Claim]:
    """That were joined on this champion, the whole batch first."""
    return [claim for claim in state.stacks if claim.base == state.champion]


def _set_of(state: State, ideas: Set) -> Claim | None:
    return next((claim for claim in _sets(state) if frozenset(claim.ideas) == ideas), None)


def _interactions(state: State) -> dict[Set, Interaction]:
    return {frozenset(told.ideas): told for told in state.interactions if told.onto == state.champion}


def _joined(state: State, batch: Sequence[Claim], ideas: Set, now: float) -> Fact:
    """A set as one tree. One that does not join has gained nothing."""
    claims = [claim for claim in batch if claim.experiment in ideas]
    order = tuple(claim.experiment for claim in claims)
    name = digest("stack", state.champion, *order)
    try:
        *_, files = _trees(state, claims)
    except MergeConflict as conflict:
        return Interaction(name, order, state.champion, 0.0, _alone(claims), 0, f"they do not join: {conflict}", now)
    return Stacked(name, order, candidate_id(files), state.champion, files, now)


def _measured(state: State, batch: Sequence[Claim], now: float) -> Iterator[Interaction]:
    """What the sets gained that have their pairs, or will never have them."""
    known = _interactions(state)
    for claim in _sets(state):
        over = bool(claim.failed) or claim.verdict is not None
        if frozenset(claim.ideas) in known or not over and len(claim.pairs) < PAIRS:
            continue
        gain = 0.0 if over else fmean(pair.gain for pair in claim.pairs[:PAIRS])
        alone = _alone([member for member in batch if member.experiment in claim.ideas])
        together = f"together they gain {gain:+.3g}, alone {alone:+.3g} in all"
        told = claim.failed or (claim.verdict.reason if claim.verdict is not None else together)
        pairs = min(PAIRS, len(claim.pairs))
        yield Interaction(claim.experiment, claim.ideas, claim.base, gain, alone, pairs, told, now)


def _alone(claims: Sequence[Claim]) -> float:
    """The published gains summed up."""
    return sum(map(_published, claims))


def _trees(state: State, claims: Sequence[Claim]) -> Iterator[Files]:
    tree = state.files[state.champion]
    for claim in claims:
        tree = _onto(state, tree, claim)
        yield tree


def _onto(state: State, tree: Files, claim: Claim) -> Files:
    return merge_files(state.files[claim.base], state.files[claim.candidate], tree)
