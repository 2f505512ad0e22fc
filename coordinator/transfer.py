"""Does an accepted gain hold at a larger scale? Which checks are owed, and the rule that marks them. Pure.

A few Pairs of the candidate and its base, both trained at the scale that the Task names, give a gain as a share of the
score there; divided by the published gain as a share of the score at home, that is the share that is kept. Scores at
the two scales are never compared with each other. It does not know nodes, leases or clocks.
"""

import math
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

from coordinator.reproduction import SHRINKAGE, Interval, moderated_interval
from coordinator.state import Claim, Pair, State, Transfer
from swarm.config import Decision
from swarm.records import Mark, Measurement, TransferChecked

KEEPS = 0.5  # of a relative gain; below it most of what was found is gone at the larger scale
PRIOR_DF = 4  # trust in the noise at home, relative to the score, being that of the larger scale: half of 2 to 5 Pairs
IN_VAIN = 6  # blocks of one check beyond its seeds that may be lost


class Relative(NamedTuple):
    """A gain as a share of the score, and half the width of its 95 % interval."""

    gain: float
    half: float


class Share(NamedTuple):
    """The share of a gain that is kept, and its 95 % interval."""

    value: float
    low: float
    high: float


def share_kept(home: Relative, there: Relative) -> Share | None:
    """The ratio of two gains, its interval by Fieller's argument; None where the gain at home is not clear of 0."""
    a = home.gain**2 - home.half**2
    if a <= 0.0 or home.gain <= 0.0:
        return None
    b, c = home.gain * there.gain, there.gain**2 - there.half**2
    root = math.sqrt(max(0.0, b * b - a * c))
    return Share(there.gain / home.gain, (b - root) / a, (b + root) / a)


def mark_of(share: Share | None) -> Mark:
    """`transfers`: at least half is kept. `reverses`: it does harm. `fades`: surely not all is kept."""
    if share is None:
        return "unknown"
    if share.low >= KEEPS:
        return "transfers"
    if share.high < 0.0:
        return "reverses"
    return "fades" if share.high < 1.0 else "unknown"


def mark_of_simplification(there: Relative, margin: float) -> Mark:
    """There is no gain to keep: it transfers where it loses less than the margin there, too."""
    if there.gain - there.half > -margin:
        return "transfers"
    return "reverses" if there.gain + there.half < -margin else "unknown"


# --- what is owed ----------------------------------------------------------------------------------------


def owed(state: State, decision: Decision) -> list[Claim]:
    """Claims whose check wants another Pair: accepted ones where it is required, else promoted ones, newest first."""
    return [claim for claim in _unchecked(state, decision) if not _complete(_of(claim, state), decision)]


def awaits_check(claim: Claim, state: State, decision: Decision) -> bool:
    """Whether an accepted claim must not be promoted yet."""
    return decision.transfer_required and _is_made(state, decision) and _of(claim, state).checked is None


def checked(state: State, decision: Decision, now: float) -> Iterator[TransferChecked]:
    """The checks that are complete."""
    for claim in _unchecked(state, decision):
        if _complete(_of(claim, state), decision):
            yield _checked(claim, state, decision, now)


def _is_made(state: State, decision: Decision) -> bool:
    return state.scale is not None and decision.transfer_seeds > 0


def _unchecked(state: State, decision: Decision) -> list[Claim]:
    if not _is_made(state, decision):
        return []
    if decision.transfer_required:
        claims = [claim for claim in state.accepted.values() if claim.base == state.champion]
    else:
        promoted = (state.claims.get((p.experiment, p.base)) for p in reversed(state.line))
        claims = [claim for claim in promoted if claim is not None and claim.verdict is not None]
    return [claim for claim in claims if _of(claim, state).checked is None]


def _of(claim: Claim, state: State) -> Transfer:
    return state.transfers.get(claim.key, Transfer())


def _complete(transfer: Transfer, decision: Decision) -> bool:
    enough = len(transfer.pairs) >= decision.transfer_seeds
    return enough or bool(transfer.failed) or transfer.drawn >= decision.transfer_seeds + IN_VAIN


# --- what came of it -------------------------------------------------------------------------------------


def _checked(claim: Claim, state: State, decision: Decision, now: float) -> TransferChecked:
    transfer = _of(claim, state)
    mark, share, why = _judged(claim, transfer, state, decision)
    gains = [pair.gain for pair in transfer.pairs]
    return TransferChecked(
        experiment=claim.experiment,
        candidate=claim.candidate,
        base=claim.base,
        scale=str(state.scale),
        mark=mark,
        share=share.value if share else None,
        low=share.low if share else None,
        high=share.high if share else None,
        gain=fmean(gains) if gains else None,
        evidence=tuple(trial for pair in transfer.pairs for trial in (pair.champion_trial, pair.candidate_trial)),
        required=decision.transfer_required,
        reason=f"{mark} at {state.scale}: {why}",
        at=now,
    )


def _judged(claim: Claim, transfer: Transfer, state: State, decision: Decision) -> tuple[Mark, Share | None, str]:
    if transfer.failed:
        return "unknown", None, transfer.failed
    if len(transfer.pairs) < decision.transfer_seeds:
        return "unknown", None, f"{transfer.drawn} blocks for it gave {len(transfer.pairs)} pairs"
    home, there = _level(state, claim.pairs), _level(state, transfer.pairs)
    if not home or not there or claim.verdict is None:
        return "unknown", None, "the score is 0, and nothing is a share of it"
    # The noise there is taken to be the same share of the score as here; the Pairs may say otherwise.
    spread, df = claim.noise.sd / home, min(PRIOR_DF, max(1, claim.noise.df))
    interval = moderated_interval([pair.gain for pair in transfer.pairs], spread * there, df)
    ours, pairs = Relative(interval.mean / there, (interval.high - interval.low) / 2 / there), _pairs(interval)
    if claim.kind == "simplification":
        change = f"its score changes by {100 * ours.gain:+.2g} % (95% within {100 * ours.half:.2g}) on {pairs}"
        return mark_of_simplification(ours, claim.rule.margin * spread), None, change
    verdict = claim.verdict
    share = share_kept(Relative(verdict.effect / home, SHRINKAGE * (verdict.high - verdict.low) / 2 / home), ours)
    if share is None:
        return "unknown", None, f"the gain at home is not clear enough to take a share of, on {pairs}"
    kept = f"{share.value:.2f} of its relative gain is kept (95% {share.low:.2f}..{share.high:.2f}) on {pairs}"
    return mark_of(share), share, kept


def _pairs(interval: Interval) -> str:
    return "1 pair" if interval.n == 1 else f"{interval.n} pairs"


def _level(state: State, pairs: Sequence[Pair]) -> float:
    """Size of the mean score of the base over some Pairs."""
    runs = [state.blocks[state.block_of[pair.champion_trial]].finished[pair.champion_trial] for pair in pairs]
    return abs(fmean(run.outcome.score for run in runs if isinstance(run.outcome, Measurement)))
