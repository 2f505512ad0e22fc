"""How each fact changes what the coordinator knows: `(state, fact) -> state`.

Pure: no clock, no disk, no randomness; the same facts in the same order give the same State, which is updated in place
by its one owner, the mind. Facts are taken at their word here: what of a node's report may become one is decided in
`coordinator/belief`.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

from coordinator.reproduction import LARGEST_GAIN, NOT_WORSE_BAR, Noise, bar, not_worse
from coordinator.stacking import twin_of
from coordinator.state import SET_ASIDE, Claim, Conflict, Drawn, Experiment, Pair, Recheck, State, Transfer
from swarm.records import (
    BlockDrawn,
    BlockLost,
    Carried,
    ChampionRechecked,
    ClaimKind,
    ClaimRaised,
    CoordinatorStarted,
    Demotion,
    ExperimentAdmitted,
    Fact,
    HoldoutAnswered,
    Interaction,
    Measurement,
    NodeJoined,
    Outcome,
    Promotion,
    Screened,
    ShamJudged,
    ShamRaised,
    Spent,
    Stacked,
    StudyFinished,
    StudyOpened,
    TransferChecked,
    TrialDisturbed,
    TrialFinished,
    Trouble,
    Verdict,
)
from swarm.source import is_simpler

ANSWERS_KEPT = 20  # verdicts on a node's claims that it is told of; it has at most one open, so it needs the newest
TO_PORT_KEPT = 3  # ideas of one node that it is asked to write anew


def absorb(state: State, fact: Fact, at: float) -> None:
    """Take one fact, committed at `at`."""
    state.revision += 1
    handler = _HANDLERS.get(type(fact))
    if handler is not None:
        handler(state, fact, at)
    state.last_at = max(state.last_at, at)


def _opened(state: State, fact: StudyOpened, at: float) -> None:
    state.opened = fact
    state.champion = fact.baseline
    state.champions.add(fact.baseline)
    state.files[fact.baseline] = fact.files
    state.cpu_ratio[fact.baseline] = 1.0


def _started(state: State, fact: CoordinatorStarted, at: float) -> None:
    if state.session_started:
        state.earlier_sessions_s += max(0.0, state.last_at - state.session_started)
    state.epoch, state.session_started = fact.epoch, at


def _joined(state: State, fact: NodeJoined, at: float) -> None:
    state.nodes[fact.node.uid] = fact.node


def _admitted(state: State, fact: ExperimentAdmitted, at: float) -> None:
    experiment = Experiment(len(state.experiments) + 1, fact)
    state.experiments[fact.proposal.idea] = experiment
    state.numbered.append(experiment)
    state.files[fact.candidate] = fact.proposal.files


def _screened(state: State, fact: Screened, at: float) -> None:
    experiment = state.experiments.get(fact.experiment)
    if experiment is None:
        return
    experiment.gain = fact.gain
    if fact.reason.startswith("failed"):
        experiment.status = fact.reason
    elif fact.kept:
        experiment.status = "kept"
    else:
        experiment.status = SET_ASIDE if fact.gain is None else "dropped"


def _claimed(state: State, fact: ClaimRaised, at: float) -> None:
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


def _carried(state: State, fact: Carried, at: float) -> None:
    state.files[fact.candidate] = fact.files
    before = state.latest.get(fact.experiment)
    if before is None:
        return
    if state.open_claims.pop(before.key, None) is not None:  # nothing was measured against its old base
        del state.claims[before.key]
    known = state.claims.get((fact.experiment, fact.onto))
    if known is None or known.after_demotion != fact.after_demotion:
        node, platform, kind = before.node, before.platform, before.kind
        _open_claim(state, fact.experiment, fact.candidate, fact.onto, node, platform, kind, carried=True)
        state.latest[fact.experiment].after_demotion = fact.after_demotion


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
    noise = state.noise[platform]
    claim = Claim(experiment, candidate, base, node, platform, noise, least, rule, kind, carried=carried, ideas=ideas)
    _stand_for(state, claim)
    state.answers.get(node, {}).pop(experiment, None)


def _sham(state: State, fact: ShamRaised, at: float) -> None:
    """A claim like any other to those who confirm it, without a node to be told of it."""
    state.shams.append(fact)
    state.files[fact.candidate] = fact.files
    noise, least = state.noise[fact.platform], bar(state.campaign)
    claim = Claim(fact.name, fact.candidate, fact.base, "", fact.platform, noise, least, state.rule, sham=fact.number)
    state.claims[claim.key] = state.open_claims[claim.key] = claim


def _sham_judged(state: State, fact: ShamJudged, at: float) -> None:
    """It stays out of what is believed: no base rate, no noise, no landing."""
    claim = state.open_claims.pop((fact.verdict.experiment, fact.verdict.base), None)
    if claim is not None:
        claim.verdict = fact.verdict


def _stacked(state: State, fact: Stacked, at: float) -> None:
    """The set is a claim of its own; those of its ideas stay accepted until it has landed."""
    lead = state.latest.get(fact.ideas[0])
    if lead is None:
        return
    state.files[fact.candidate] = fact.files
    node, platform, name = lead.node, lead.platform, fact.experiment
    _open_claim(state, name, fact.candidate, fact.onto, node, platform, "gain", carried=True, ideas=fact.ideas)
    state.stacks.append(state.latest[name])


def _interacted(state: State, fact: Interaction, at: float) -> None:
    state.interactions.append(fact)


def _stand_for(state: State, claim: Claim) -> None:
    """From now on this claim is the one of its experiment."""
    before = state.latest.get(claim.experiment)
    if before is not None:
        state.accepted.pop(before.key, None)
    state.undone.pop(claim.experiment, None)
    state.claims[claim.key] = state.open_claims[claim.key] = state.latest[claim.experiment] = claim


def _drawn(state: State, fact: BlockDrawn, at: float) -> None:
    drawn = Drawn(fact)
    state.blocks[fact.block] = state.outstanding[fact.block] = drawn
    state.leased.setdefault(fact.node, {})[fact.block] = drawn
    state.drawn_for[fact.node] += 1
    state.block_of.update(dict.fromkeys(fact.trials, fact.block))
    if fact.purpose == "recheck":
        for champion in set(fact.candidates) - {fact.reference}:
            state.rechecks.setdefault((champion, fact.reference), Recheck()).drawn += 1
    for experiment in fact.experiments:
        claim = state.claims.get((experiment, fact.reference))
        if fact.purpose == "transfer":
            state.transfers.setdefault((experiment, fact.reference), Transfer()).drawn += 1
        elif claim is not None:
            claim.drawn[fact.node] += 1


def _lost(state: State, fact: BlockLost, at: float) -> None:
    if fact.block in state.blocks:
        state.blocks[fact.block].lost = True
        _settle(state, state.blocks[fact.block])


def _settle(state: State, drawn: Drawn) -> None:
    """Nobody has to finish it any more."""
    state.outstanding.pop(drawn.fact.block, None)
    leased = state.leased.get(drawn.fact.node, {})
    leased.pop(drawn.fact.block, None)
    if not leased:
        state.leased.pop(drawn.fact.node, None)


def _trial(state: State, fact: TrialFinished, at: float) -> None:
    state.trials += 1
    state.trial_s += max(0.0, fact.ended_at - fact.started_at)
    state.disturbances[fact.node] = 0
    drawn = state.blocks.get(fact.block)
    if drawn is None:
        return
    drawn.finished[fact.trial] = fact
    if len(drawn.finished) == len(set(drawn.fact.trials)):
        _settle(state, drawn)
    if fact.purpose == "calibrate":
        _calibrate(state, fact)
    elif fact.purpose in ("confirm", "transfer", "recheck", "final"):
        _pair_up(state, drawn, fact)


def _measured(outcome: Outcome) -> Measurement | str:
    """A score that can be reckoned with, or why there is none."""
    if not isinstance(outcome, Measurement):
        return f"{outcome.reason}: {outcome.message}"
    if abs(outcome.score) > LARGEST_GAIN / 2:
        return f"its score {outcome.score:.3g} is no usable number"
    return outcome


def _calibrate(state: State, fact: TrialFinished) -> None:
    measured = _measured(fact.outcome)
    if isinstance(measured, str):
        state.baseline_failures.setdefault(fact.platform, []).append(measured)
        return
    runs = state.calibration.setdefault(fact.platform, {}).setdefault(fact.candidate, [])
    runs.append(measured)
    if len(runs) == state.calibration_runs and fact.platform not in state.noise:
        state.noise[fact.platform] = Noise.from_seed_scores([run.score for run in runs])
        state.baseline_cpu_s[fact.platform] = fmean(run.cpu_s for run in runs) / state.cpu_ratio.get(
            fact.candidate, 1.0
        )


def _pair_up(state: State, drawn: Drawn, fact: TrialFinished) -> None:
    """A pair exists as soon as both of its trials are known; its place in the evidence is that moment."""
    champion_trial = drawn.fact.trials[drawn.fact.candidates.index(drawn.fact.reference)]
    others = [trial for trial in drawn.fact.trials if trial != champion_trial]
    completed = others if fact.trial == champion_trial else [fact.trial]
    champion = drawn.finished.get(champion_trial)
    for trial in completed:
        candidate = drawn.finished.get(trial)
        if candidate is not None and champion is not None:
            _add_pair(state, drawn.fact, candidate, champion)


def _add_pair(state: State, block: BlockDrawn, candidate: TrialFinished, champion: TrialFinished) -> None:
    ours, theirs = _measured(candidate.outcome), _measured(champion.outcome)
    if block.purpose == "transfer":
        _add_transfer(state, block, candidate, champion)
        return
    claims = _claims_in(state, block, candidate.candidate)
    final = block.purpose == "final" and candidate.candidate == state.champion
    if isinstance(ours, str):
        for claim in claims:
            claim.failed = f"it failed on fresh seed {candidate.seed}: {ours}"
    if isinstance(ours, str) or isinstance(theirs, str):
        state.final_failures += final
        return
    pair = _pair(state, candidate, champion, ours, theirs)
    for claim in claims:
        claim.pairs.append(pair)
    if block.purpose == "recheck":
        state.rechecks.setdefault((candidate.candidate, block.reference), Recheck()).pairs.append(pair)
    if final:
        state.final.append(pair)


def _pair(
    state: State, candidate: TrialFinished, champion: TrialFinished, ours: Measurement, theirs: Measurement
) -> Pair:
    return Pair(
        gain=state.gain(ours.score, theirs.score),
        candidate_cpu_s=ours.cpu_s,
        champion_cpu_s=theirs.cpu_s,
        candidate_trial=candidate.trial,
        champion_trial=champion.trial,
        node=candidate.node,
        candidate_artifact=ours.artifact,
        champion_artifact=theirs.artifact,
        self_reported=ours.self_reported,
        sandbox_level=min(candidate.sandbox_level, champion.sandbox_level),
    )


def _add_transfer(state: State, block: BlockDrawn, candidate: TrialFinished, base: TrialFinished) -> None:
    ours, theirs = _measured(candidate.outcome), _measured(base.outcome)
    for experiment in block.experiments:
        transfer = state.transfers.setdefault((experiment, block.reference), Transfer())
        if isinstance(ours, str) or isinstance(theirs, str):
            transfer.failed = (
                f"it failed there: {ours}" if isinstance(ours, str) else f"its base failed there: {theirs}"
            )
        else:
            transfer.pairs.append(_pair(state, candidate, base, ours, theirs))


def _claims_in(state: State, block: BlockDrawn, candidate: str) -> list[Claim]:
    """The claims that a candidate's run in a block says something of; two ideas may have come to the same tree.

    Those with a verdict gain nothing by it, but the holdout may be asked about more pairs than decided.
    """
    keys = [(experiment, block.reference) for experiment in block.experiments]
    claims = [state.open_claims.get(key) or state.accepted.get(key) for key in keys]
    return [claim for claim in claims if claim is not None and claim.candidate == candidate]


def _disturbed(state: State, fact: TrialDisturbed, at: float) -> None:
    if fact.failure.reason != "stopped":
        state.disturbances[fact.node] = state.disturbances.get(fact.node, 0) + 1
        state.disturbed_at[fact.node] = at


def _verdict(state: State, fact: Verdict, at: float) -> None:
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
            state.campaign = state.campaign.closed(promoted=fact.accepted)
        state.noise[claim.platform] = state.noise[claim.platform].pooled([pair.gain for pair in claim.pairs])
    if fact.accepted and claim.pairs:
        ratio = sum(p.candidate_cpu_s for p in claim.pairs) / max(1e-9, sum(p.champion_cpu_s for p in claim.pairs))
        state.cpu_ratio[claim.candidate] = ratio * state.cpu_ratio.get(claim.base, 1.0)


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
    claim.after_demotion = fact.after_demotion
    _stand_for(state, claim)
    return claim


def _holdout(state: State, fact: HoldoutAnswered, at: float) -> None:
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


def _promoted(state: State, fact: Promotion, at: float) -> None:
    state.promotions.append(fact)
    state.champion = fact.candidate
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


def _unstack(state: State) -> None:
    """The champion moved: no set that was joined on the one before lands. Its ideas are accepted still."""
    state.accepted = {key: claim for key, claim in state.accepted.items() if not claim.ideas}


def _transfer(state: State, fact: TransferChecked, at: float) -> None:
    key = (fact.experiment, fact.base)
    state.transfers.setdefault(key, Transfer()).checked = fact
    claim = state.accepted.pop(key, None) if fact.bars else None
    if claim is not None and not claim.ideas:
        state.experiments[fact.experiment].status = "rejected"
        _answer(state, claim.node, fact.experiment, f"rejected: {fact.reason}")


def _rechecked(state: State, fact: ChampionRechecked, at: float) -> None:
    state.rechecked.append(fact)


def _demoted(state: State, fact: Demotion, at: float) -> None:
    """The ideas that it undoes are claims to come: each is carried onto the restored champion and confirmed anew."""
    undone = [promotion for promotion in state.line if promotion.number in fact.undone]
    state.demotions.append(fact)
    state.champion = fact.restored
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


def _spent(state: State, fact: Spent, at: float) -> None:
    state.spent = state.spent + fact.usage


def _trouble(state: State, fact: Trouble, at: float) -> None:
    state.trouble = f"{fact.where}: {fact.message}"


def _finished(state: State, fact: StudyFinished, at: float) -> None:
    state.finished = fact


_HANDLERS: Mapping[type, Callable[[State, Any, float], None]] = {
    StudyOpened: _opened,
    CoordinatorStarted: _started,
    NodeJoined: _joined,
    ExperimentAdmitted: _admitted,
    Screened: _screened,
    ClaimRaised: _claimed,
    Carried: _carried,
    Stacked: _stacked,
    Interaction: _interacted,
    BlockDrawn: _drawn,
    BlockLost: _lost,
    TrialFinished: _trial,
    TrialDisturbed: _disturbed,
    Verdict: _verdict,
    ShamRaised: _sham,
    ShamJudged: _sham_judged,
    HoldoutAnswered: _holdout,
    Promotion: _promoted,
    TransferChecked: _transfer,
    ChampionRechecked: _rechecked,
    Demotion: _demoted,
    Spent: _spent,
    Trouble: _trouble,
    StudyFinished: _finished,
}
