"""The life of a Claim, fact by fact: raised, carried, joined with others, decided, asked about, landed, undone. Pure.

Part of the fold: each function takes one fact into the State, at its word. What runs say is turned into Pairs in
`coordinator/pairs`.
"""

from collections import Counter
from dataclasses import replace

from coordinator.reproduction import NOT_WORSE_BAR, bar, not_worse
from coordinator.stacking import twin_of
from coordinator.state import Claim, Conflict, State, Transfer
from swarm.records import (
    Carried,
    ClaimKind,
    ClaimRaised,
    Demotion,
    DemotionVetoed,
    HoldoutAnswered,
    Interaction,
    PanelSwitched,
    Promotion,
    PromotionVetoed,
    ShamJudged,
    ShamRaised,
    Stacked,
    TransferChecked,
    Verdict,
)
from swarm.source import is_simpler

ANSWERS_KEPT = 20  # verdicts on a node's claims that it is told of; it has at most one open, so it needs the newest
TO_PORT_KEPT = 3  # ideas of one node that it is asked to write anew


def claimed(state: State, fact: ClaimRaised, at: float) -> None:
    """Whatever a node claims gets an answer: a claim that is not opened is answered at once."""
    known = state.claims.get((fact.experiment, fact.base))
    if known is not None and known.node == fact.node:  # it was carried here meanwhile, or even decided
        if known.answer:
            _answer(state, fact.node, fact.experiment, known.answer)
        return
    before = state.latest.get(fact.experiment)
    if before is not None and before.node == fact.node and before.key in state.accepted:  # it lands from there
        return
    reason = _why_not(state, fact)
    if reason:
        _answer(state, fact.node, fact.experiment, f"rejected: {reason}")
        return
    state.experiments[fact.experiment].status = "claimed"
    where = state.platform_of(fact.node)
    state.claimed_on.append(where)
    _open_claim(state, fact.experiment, fact.candidate, fact.base, fact.node, where, fact.claim_kind)
    if fact.base == state.champion and (twin := twin_of(state, fact.candidate)) is not None:
        state.latest[fact.experiment].twin = state.experiments[twin.experiment].number


def _why_not(state: State, fact: ClaimRaised) -> str:
    """Why a claim is not opened; empty when it is."""
    experiment = state.experiments.get(fact.experiment)
    if experiment is None:
        return "no such experiment was admitted"
    if experiment.admitted.node != fact.node:
        return f"the same idea is experiment {experiment.number} of another node"
    if experiment.admitted.candidate != fact.candidate:
        return f"candidate {fact.candidate[:8]} is not that of experiment {experiment.number}"
    if fact.base not in state.champions:
        return f"its base {fact.base[:8]} was never the champion"
    if state.platform_of(fact.node) not in state.noise:
        return "the noise of its Platform is not known yet"
    if fact.claim_kind == "simplification" and not is_simpler(state.files[fact.candidate], state.files[fact.base]):
        return "it has no less code than the champion that it simplifies"
    mine = [c for c in state.open_claims.values() if c.node == fact.node and c.base == fact.base and not c.ideas]
    for claim in mine:  # one that was carried over, while its author did the same
        if claim.candidate == fact.candidate:
            return f"the same tree is experiment {state.experiments[claim.experiment].number}, and is being confirmed"
    return "" if all(claim.carried for claim in mine) else "its branch has an open claim already"


def _answer(state: State, node: str, experiment: str, words: str) -> None:
    answers = state.answers.setdefault(node, {})
    answers.pop(experiment, None)
    answers[experiment] = words
    state.answered[node] += 1
    if len(answers) > ANSWERS_KEPT:
        del answers[next(iter(answers))]


def carried(state: State, fact: Carried, at: float) -> None:
    """The idea is a claim on the new champion, in the place of the one before."""
    state.files[fact.candidate] = fact.files
    before = state.latest.get(fact.experiment)
    if before is None:
        return
    if state.open_claims.pop(before.key, None) is not None:  # nothing was measured against its old base
        del state.claims[before.key]
    known = state.claims.get((fact.experiment, fact.onto))
    if known is None or known.after_demotion != fact.after_demotion:
        node, platform, kind = before.node, before.platform, before.kind
        counted = fact.experiment not in state.undone and (before.counted or before.key in state.accepted)
        _open_claim(state, fact.experiment, fact.candidate, fact.onto, node, platform, kind, carried=True)
        state.latest[fact.experiment].after_demotion = fact.after_demotion
        state.latest[fact.experiment].counted = counted


def _open_claim(
    state: State,
    experiment: str,
    candidate: str,
    base: str,
    node: str,
    platform: str,
    kind: ClaimKind,
    *,
    carried: bool = False,
    ideas: tuple[str, ...] = (),
) -> None:
    simpler = kind == "simplification"
    rule, least = (not_worse(state.rule), NOT_WORSE_BAR) if simpler else (state.rule, bar(state.campaign))
    noise = state.noise_of(platform) or state.noise[platform]
    claim = Claim(experiment, candidate, base, node, platform, noise, least, rule, kind, carried=carried, ideas=ideas)
    _stand_for(state, claim)
    state.answers.get(node, {}).pop(experiment, None)


def sham(state: State, fact: ShamRaised, at: float) -> None:
    """A claim like any other to those who confirm it, without a node to be told of it."""
    state.shams.append(fact)
    state.files[fact.candidate] = fact.files
    noise, least = state.noise_of(fact.platform) or state.noise[fact.platform], bar(state.campaign)
    claim = Claim(fact.name, fact.candidate, fact.base, "", fact.platform, noise, least, state.rule, sham=fact.number)
    state.claims[claim.key] = state.open_claims[claim.key] = claim


def sham_judged(state: State, fact: ShamJudged, at: float) -> None:
    """It stays out of what is believed: no base rate, no noise, no landing."""
    claim = state.open_claims.pop((fact.verdict.experiment, fact.verdict.base), None)
    if claim is not None:
        claim.verdict = fact.verdict
        _refer(state, claim)


def stacked(state: State, fact: Stacked, at: float) -> None:
    """The set is a claim of its own; those of its ideas stay accepted until it has landed."""
    lead = state.latest.get(fact.ideas[0])
    if lead is None:
        return
    state.files[fact.candidate] = fact.files
    node, platform, name = lead.node, lead.platform, fact.experiment
    _open_claim(state, name, fact.candidate, fact.onto, node, platform, "gain", carried=True, ideas=fact.ideas)
    state.stacks.append(state.latest[name])


def interacted(state: State, fact: Interaction, at: float) -> None:
    """What a set gained, for the plan of its batch."""
    state.interactions.append(fact)


def _stand_for(state: State, claim: Claim) -> None:
    """From now on this claim is the one of its experiment."""
    before = state.latest.get(claim.experiment)
    if before is not None:
        state.accepted.pop(before.key, None)
    state.undone.pop(claim.experiment, None)
    state.claims[claim.key] = state.open_claims[claim.key] = state.latest[claim.experiment] = claim


def verdict(state: State, fact: Verdict, at: float) -> None:
    """A claim is closed; what was measured tells of the noise, and of how rare good ideas are."""
    if fact.to_port:
        _to_port(state, fact)
    claim = state.claims.get((fact.experiment, fact.base))
    if claim is None or claim.after_demotion != fact.after_demotion:
        claim = _unmeasured(state, fact)
    if fact.experiment in state.experiments:
        state.experiments[fact.experiment].status = "accepted" if fact.accepted else "rejected"
    if claim is None:
        return
    claim.verdict = fact
    state.verdicts += 1
    state.open_claims.pop(claim.key, None)
    if state.latest[claim.experiment] is claim:
        if claim.answer and not claim.ideas:
            _answer(state, claim.node, claim.experiment, claim.answer)
        if fact.accepted:
            state.accepted[claim.key] = claim
    if claim.pairs or claim.failed:  # one closed without a run (a merge conflict) says nothing of the base rate
        if claim.kind == "gain" and not claim.ideas:  # nor does a simplification, or a set of what was counted already
            _count(state, claim, accepted=fact.accepted)
        _learn(state, claim)
    claim.weighing = None
    if fact.accepted and claim.pairs:
        ratio = sum(p.candidate_cpu_s for p in claim.pairs) / max(1e-9, sum(p.champion_cpu_s for p in claim.pairs))
        state.cpu_ratio[claim.candidate] = ratio * state.cpu_ratio.get(claim.base, 1.0)


def _learn(state: State, claim: Claim) -> None:
    """What a closed confirmation tells of the noise, and what it tells a panel of Nodes.

    On a panel the champion's run may be an old one: a Node that drifted meanwhile would pass for noise, and hide.
    """
    if claim.weighing is None:
        before = state.noise[claim.platform]
        after = state.noise[claim.platform] = before.pooled([pair.gain for pair in claim.pairs])
        state.references[claim.platform].paired(before, after)
    _refer(state, claim)


def _refer(state: State, claim: Claim) -> None:
    """A claim is closed: its panel is needed no more, and would take 100 kB for ever."""
    references = state.references[claim.platform]
    references.closed(state.runs_of(claim))
    if claim.weighing is not None and claim.base == references.champion:
        references.judge()
    claim.weighing = None


def _count(state: State, claim: Claim, *, accepted: bool) -> None:
    """An idea is one confirmation, however often it is carried: a promotion, unless it is refused in the end."""
    if not claim.counted:
        state.campaign = state.campaign.closed(promoted=accepted)
    elif not accepted:
        state.campaign = state.campaign.taken_back()


def _to_port(state: State, fact: Verdict) -> None:
    claim = state.latest.get(fact.experiment)
    if claim is not None:
        asked = state.to_port.setdefault(claim.node, {})
        asked[fact.experiment] = Conflict(claim.base, claim.candidate, state.champion, fact.reason)
        if len(asked) > TO_PORT_KEPT:
            del asked[next(iter(asked))]


def _unmeasured(state: State, fact: Verdict) -> Claim | None:
    """An accepted idea that cannot be carried onto the moved champion gets its verdict there without a claim."""
    twin = state.latest.get(fact.experiment)
    if twin is None:
        return None
    claim = replace(twin, base=fact.base, pairs=[], drawn=Counter(), failed="", verdict=None, holdout=None, weighed=0)
    claim.after_demotion, claim.weighing = fact.after_demotion, None
    _stand_for(state, claim)
    return claim


def holdout(state: State, fact: HoldoutAnswered, at: float) -> None:
    """A claim that does not hold there counts as never accepted; its node hears of it as of any rejection."""
    state.holdout.setdefault((fact.candidate, fact.base), fact)
    state.trial_s += max(0.0, fact.node_s)
    claim = state.accepted.get((fact.experiment, fact.base))
    if claim is None:
        return
    claim.holdout = fact
    if not fact.passed:
        del state.accepted[claim.key]
    if claim.ideas:  # of a set that did not hold each idea goes on by itself
        return
    _answer(state, claim.node, claim.experiment, claim.answer)
    if not fact.passed:
        state.experiments[fact.experiment].status = "rejected"
        state.campaign = state.campaign.taken_back()


def promoted(state: State, fact: Promotion, at: float) -> None:
    """Another champion; what else was accepted waits for it."""
    state.promotions.append(fact)
    _crown(state, fact.candidate)
    state.champions.add(fact.candidate)
    landed = (fact.experiment, *fact.ideas)
    state.accepted = {key: claim for key, claim in state.accepted.items() if claim.experiment not in landed}
    _unstack(state)
    state.final, state.final_failures = [], 0  # pairs of an earlier champion say nothing of this one
    for experiment in landed:
        if experiment in state.experiments:
            state.experiments[experiment].status = "promoted"
    for idea in fact.ideas:
        if idea in state.latest:
            _answer(state, state.latest[idea].node, idea, "accepted")


def promotion_vetoed(state: State, fact: PromotionVetoed, at: float) -> None:
    """It will not land, and what waited behind it goes on. It did reproduce, so the base rate keeps it."""
    state.promotions_vetoed += 1
    claim = state.accepted.pop((fact.experiment, fact.base), None)
    if claim is None or claim.ideas:  # which idea of a set a person objects to is not known: each goes on by itself
        return
    state.experiments[claim.experiment].status = "rejected"
    _answer(state, claim.node, claim.experiment, f"rejected: {fact.reason}")


def demotion_vetoed(state: State, fact: DemotionVetoed, at: float) -> None:
    """The champion stays."""
    state.demotions_vetoed.add(fact.rechecked)


def _crown(state: State, candidate: str) -> None:
    state.champion = candidate
    for references in state.references.values():
        references.moved(candidate)


def panel_switched(state: State, fact: PanelSwitched, at: float) -> None:
    """Claims without a block are weighed otherwise from now on; those with one as before."""
    state.references[fact.platform].switches.append(fact)


def _unstack(state: State) -> None:
    """The champion moved: no set that was joined on the one before lands. Its ideas are accepted still."""
    state.accepted = {key: claim for key, claim in state.accepted.items() if not claim.ideas}


def transfer(state: State, fact: TransferChecked, at: float) -> None:
    """What is left at a larger scale; where the study requires it, it may still turn the claim away."""
    key = (fact.experiment, fact.base)
    state.transfers.setdefault(key, Transfer()).checked = fact
    claim = state.accepted.pop(key, None) if fact.bars else None
    if claim is not None and not claim.ideas:
        state.experiments[fact.experiment].status = "rejected"
        _answer(state, claim.node, fact.experiment, f"rejected: {fact.reason}")


def demoted(state: State, fact: Demotion, at: float) -> None:
    """The ideas that it undoes are claims to come: each is carried onto the restored champion and confirmed anew."""
    undone = [promotion for promotion in state.line if promotion.number in fact.undone]
    state.demotions.append(fact)
    _crown(state, fact.restored)
    _unstack(state)
    state.rechecks.clear()  # of champions that are none any more
    state.final, state.final_failures = [], 0
    for promotion in undone:
        for idea in promotion.landed:
            if promotion.claim_kind == "gain":
                state.campaign = state.campaign.taken_back()
            _undo(state, idea)


def _undo(state: State, experiment: str) -> None:
    if experiment in state.latest and experiment in state.experiments:
        state.experiments[experiment].status = "demoted, to be confirmed again"
        state.undone[experiment] = state.latest[experiment]
