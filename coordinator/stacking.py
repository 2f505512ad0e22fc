"""Several accepted ideas wait for one champion: joined, measured and landed together, not one after another. Pure.

Owns which of them are joined, what a set has gained, and when a set is judged; which set comes next is the choice of
`coordinator/batches`. A set is a Claim that names its ideas, so it is leased, judged, asked about on the holdout and
promoted as any other. While one is measured nothing else lands: the champion does not move under it. Whatever goes
wrong with a set leaves its ideas where they were, to be carried one by one.

Its pairs decide twice, on the choice of the set and on its verdict: each set is fixed before its pairs are drawn, and
passes the ordinary test on its own, so that choosing among the passed ones accepts no more of what gains nothing.
"""

from collections.abc import Iterator, Sequence
from statistics import fmean

from coordinator.batches import PAIRS, Final, Idea, Measure, Set, plan
from coordinator.reproduction import SHRINKAGE
from coordinator.state import Claim, State
from swarm.merge import MergeConflict, merge_files
from swarm.records import Fact, Files, Interaction, Stacked, candidate_id, digest

MOST_IDEAS = 6  # of one batch: as many as its runs were simulated for; more wait for the next one


def step(state: State, now: float) -> list[Fact] | None:
    """What is to be recorded next about ideas that land together; empty: wait for runs; None: nothing lands so."""
    if not state.stacks and any(claim.base == state.champion for claim in state.accepted.values()):
        return None  # it has been measured where it lands: first this one
    if _will_grow(state):
        return []
    batch = _batch(state)
    if len(batch) < 2:
        return None
    if told := [*_measured(state, batch, now)]:
        return [*told]
    following = _plan(state, batch)
    if isinstance(following, Measure):
        return [] if _of(state, following.ideas) else [_joined(state, batch, following.ideas, now)]
    final = _of(state, frozenset(following.order))
    return [] if final is not None and final.verdict is None else None


def is_final(state: State, claim: Claim) -> bool:
    """Whether a set is the one to land: all that matters has been measured."""
    batch = _batch(state)
    if len(batch) < 2 or frozenset(claim.ideas) not in state.interactions:
        return False
    following = _plan(state, batch)
    return isinstance(following, Final) and set(following.order) == set(claim.ideas)


def wants_pair(state: State, claim: Claim) -> bool:
    """Whether an open set is still to be measured, or is the one that is judged."""
    return len(claim.pairs) < PAIRS or is_final(state, claim)


def why_closed(state: State, claim: Claim) -> str:
    """Why an open set will not land; empty while it may."""
    if claim.base != state.champion:
        return "the champion moved before these ideas were judged together"
    batch = _batch(state)
    if len(batch) < 2:
        return "its ideas go on one by one"
    following = _plan(state, batch)
    if isinstance(following, Measure) or set(following.order) == set(claim.ideas):
        return ""
    told = state.interactions.get(frozenset(claim.ideas))
    return f"another set of these ideas is better{f': {told.reason}' if told else ''}"


def landing_trees(state: State, claim: Claim) -> tuple[Files, ...]:
    """The champion with the first idea of a set, with the first two, and so on.

    Raises:
        MergeConflict: they do not join.
    """
    return tuple(_trees(state, [state.latest[idea] for idea in claim.ideas]))


def twin_of(state: State, candidate: str) -> Claim | None:
    """The waiting claim that comes to this very tree on the champion: its author carried it over as well."""
    for claim in state.accepted.values():
        try:
            if _may_join(state, claim) and candidate_id(_onto(state, state.files[state.champion], claim)) == candidate:
                return claim
        except MergeConflict:
            continue
    return None


def _will_grow(state: State) -> bool:
    """Whether claims that are still confirmed against an old champion may join those that wait: a few blocks more.

    Carried now, those that wait would each be measured once for this champion and once more for the next.
    """
    waiting = {claim.platform for claim in state.accepted.values() if _may_join(state, claim)}
    return not state.stacks and any(_may_join(state, c) and c.platform in waiting for c in state.open_claims.values())


def _batch(state: State) -> list[Claim]:
    """The accepted claims that are to land together, largest gain first; the same ones until the champion moves."""
    waiting = {claim.experiment: claim for claim in state.accepted.values() if _may_join(state, claim)}
    if state.stacks:
        ideas = state.stacks[0].ideas
        return [waiting[idea] for idea in ideas] if waiting.keys() >= set(ideas) else []
    first = next(iter(waiting.values()), None)
    mine = [claim for claim in waiting.values() if first is not None and claim.platform == first.platform]
    return _that_join(state, sorted(mine, key=lambda claim: (-_published(claim), claim.experiment)))


def _may_join(state: State, claim: Claim) -> bool:
    """A simplification promises no gain that a set could be measured by."""
    return claim.base != state.champion and claim.kind == "gain" and not claim.ideas and not claim.alone


def _published(claim: Claim) -> float:
    return claim.verdict.effect if claim.verdict is not None else 0.0


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


def _trees(state: State, claims: Sequence[Claim]) -> Iterator[Files]:
    tree = state.files[state.champion]
    for claim in claims:
        tree = _onto(state, tree, claim)
        yield tree


def _onto(state: State, tree: Files, claim: Claim) -> Files:
    return merge_files(state.files[claim.base], state.files[claim.candidate], tree)


def _plan(state: State, batch: Sequence[Claim]) -> Measure | Final:
    ideas = [Idea(claim.experiment, _published(claim) / SHRINKAGE) for claim in batch]
    return plan(ideas, {ideas: told.gain for ideas, told in state.interactions.items()})


def _of(state: State, ideas: Set) -> Claim | None:
    return next((claim for claim in state.stacks if frozenset(claim.ideas) == ideas), None)


def _joined(state: State, batch: Sequence[Claim], ideas: Set, now: float) -> Fact:
    """The set as one tree. One that does not join has gained nothing."""
    claims = [claim for claim in batch if claim.experiment in ideas]
    order = tuple(claim.experiment for claim in claims)
    name = digest("stack", state.champion, *order)
    try:
        *_, files = _trees(state, claims)
    except MergeConflict as conflict:
        return Interaction(name, order, state.champion, 0.0, _sum(claims), 0, f"they do not join: {conflict}", now)
    return Stacked(name, order, candidate_id(files), state.champion, files, now)


def _measured(state: State, batch: Sequence[Claim], now: float) -> Iterator[Interaction]:
    """What the sets gained that have their pairs, or will never have them."""
    for claim in state.stacks:
        over = bool(claim.failed) or claim.verdict is not None
        if frozenset(claim.ideas) in state.interactions or not over and len(claim.pairs) < PAIRS:
            continue
        gain = 0.0 if over else fmean(pair.gain for pair in claim.pairs[:PAIRS])
        expected = _sum([member for member in batch if member.experiment in claim.ideas])
        told = claim.failed or f"together they gain {gain:+.3g}, alone {expected:+.3g} in all"
        pairs = min(PAIRS, len(claim.pairs))
        yield Interaction(claim.experiment, claim.ideas, claim.base, gain, expected, pairs, told, now)


def _sum(claims: Sequence[Claim]) -> float:
    return sum(map(_published, claims))
