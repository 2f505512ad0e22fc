"""From runs to Pairs: what each drawn block, each Trial and each loss means for what is being measured. Pure.

Part of the fold: each function takes one fact into the State, at its word. Owns the pairing of runs, the calibration of
the noise, and what a failure says of a Claim; what follows from Pairs is decided elsewhere.
"""

from statistics import fmean

from coordinator.mixed import Run
from coordinator.references import References
from coordinator.reproduction import LARGEST_GAIN, Noise
from coordinator.state import Claim, Drawn, Pair, Recheck, State, Transfer
from swarm.records import (
    BlockDrawn,
    BlockLost,
    Measurement,
    Outcome,
    TrialDisturbed,
    TrialFinished,
)

FORGIVEN_KILLS = 1  # of a candidate's runs by a signal whose sender nobody knows; an operator may err once


def drawn(state: State, fact: BlockDrawn, at: float) -> None:
    """A block is on its way to a node."""
    drawn = Drawn(fact)
    state.blocks[fact.block] = state.outstanding[fact.block] = drawn
    state.leased.setdefault(fact.node, {})[fact.block] = drawn
    state.drawn_for[fact.node] += 1
    state.block_of.update(dict.fromkeys(fact.trials, fact.block))
    if fact.reference_trial:
        state.again.setdefault(fact.reference_trial, []).append(fact)
    references = state.references.get(state.platform_of(fact.node))
    if fact.purpose == "calibrate" and references is not None and references.on:
        references.bought += len(fact.trials)
    if fact.purpose == "recheck":
        for champion in set(fact.candidates) - {fact.reference}:
            state.rechecks.setdefault((champion, fact.reference), Recheck()).drawn += 1
    for experiment in fact.experiments:
        claim = state.claims.get((experiment, fact.reference))
        if fact.purpose == "transfer":
            state.transfers.setdefault((experiment, fact.reference), Transfer()).drawn += 1
        elif claim is not None:
            if not claim.drawn and (panel := state.panel_of(claim)) is not None:
                claim.weighing = panel.weighing()
            claim.drawn[fact.node] += 1


def lost(state: State, fact: BlockLost, at: float) -> None:
    """Nothing more is expected of a block."""
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


def trial(state: State, fact: TrialFinished, at: float) -> None:
    """A run has ended: it may complete a Pair, calibrate the noise, or end a claim."""
    state.trials += 1
    state.trial_s += max(0.0, fact.ended_at - fact.started_at)
    state.disturbances[fact.node] = 0
    if fact.platform in state.references:
        state.references[fact.platform].seen += 1
    drawn = state.blocks.get(fact.block)
    if drawn is None:
        return
    drawn.finished[fact.trial] = fact
    _refer(state, drawn.fact, fact)
    if len(drawn.finished) == len(set(drawn.fact.trials)):
        _settle(state, drawn)
    if fact.purpose == "calibrate":
        _calibrate(state, fact)
    elif fact.purpose in ("confirm", "transfer", "recheck", "final"):
        _pair_up(state, drawn, fact)


def _refer(state: State, block: BlockDrawn, fact: TrialFinished) -> None:
    """What a run of the champion adds to its panel."""
    measured = _measured(fact.outcome)
    if isinstance(measured, str) or fact.candidate != block.reference or block.purpose not in ("calibrate", "confirm"):
        return
    references = state.references.setdefault(fact.platform, References(state.champion))
    if references.champion == fact.candidate:
        score = state.gain(measured.score, 0.0)
        references.ran(Run(fact.candidate, fact.node, fact.seed, score, fact.block), fact.trial)


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
    block = drawn.fact
    champion_trial = block.reference_trial or block.trials[block.candidates.index(block.reference)]
    others = [trial for trial in block.trials if trial != champion_trial]
    completed = others if fact.trial == champion_trial else [fact.trial]
    champion = state.finished_trial(champion_trial) if block.reference_trial else drawn.finished.get(champion_trial)
    for trial in completed:
        candidate = drawn.finished.get(trial)
        if candidate is not None and champion is not None:
            _add_pair(state, block, candidate, champion)


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


def _killed(state: State, fact: TrialDisturbed) -> None:
    """A candidate that dies on seeds that it does not like would have them drawn again until it likes them all."""
    drawn = state.blocks.get(state.block_of.get(fact.trial, ""))
    if drawn is None or drawn.fact.node != fact.node:
        return
    block = drawn.fact
    candidate = block.candidates[block.trials.index(fact.trial)]
    measured: list[Claim] | list[Transfer] = []
    if block.purpose == "confirm":
        measured = _claims_in(state, block, candidate)
    elif block.purpose == "transfer" and candidate != block.reference:
        measured = [state.transfers.setdefault((e, block.reference), Transfer()) for e in block.experiments]
    for one in measured:
        one.killed += 1
        if one.killed > FORGIVEN_KILLS:
            one.failed = f"it was killed on {one.killed} fresh seeds"


def disturbed(state: State, fact: TrialDisturbed, at: float) -> None:
    """Its node could not finish a run, which says nothing of the candidate; but a signal may have been its own."""
    if fact.failure.reason == "killed":
        _killed(state, fact)
    if fact.failure.reason != "stopped":
        state.disturbances[fact.node] = state.disturbances.get(fact.node, 0) + 1
        state.disturbed_at[fact.node] = at
