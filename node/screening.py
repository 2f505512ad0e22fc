"""What one screening is worth: whether a branch keeps an idea, and what may be claimed of its tip. Pure.

Gains are of one seed, so nothing here is evidence: it decides what is worth measuring. It knows no branch and no node.
"""

from swarm.records import Brief, ClaimKind, Failure, Files, Measurement
from swarm.source import is_simpler


def simplifies(files: Files, than: Files, over: float | None, brief: Brief | None) -> bool:
    """Whether there is less code, and the gain over the champion is not so bad that it could not make up for it."""
    if brief is None or brief.noise is None or over is None:
        return False
    return over >= -brief.margin * brief.noise and is_simpler(files, than)


def claimable(tip: Files, brief: Brief, gain: float) -> ClaimKind | None:
    """As what a tip with this gain over the champion may be claimed; None: as nothing.

    Less code is a simplification also where it seems better: were it claimed for a gain that is luck, it would be
    rejected, and nobody would ask whether it loses anything.
    """
    if brief.noise is None:
        return None
    if simplifies(tip, brief.champion_files, gain, brief):
        return "simplification"
    return "gain" if gain > brief.screen_margin * brief.noise else None


def level(own: float | None, champion: str, brief: Brief | None) -> float | None:
    """What the champion scores on this node's seed: its one run here, drawn towards what many runs foretell."""
    if own is None or brief is None or brief.foretold is None or brief.champion != champion:
        return own
    return brief.foretold + brief.own_weight * (own - brief.foretold)


def reason(outcome: Measurement | Failure, *, better: bool, kept: bool) -> str:
    """What is said of a screening."""
    if isinstance(outcome, Failure):
        return f"failed: {outcome.reason}: {outcome.message}"
    if kept and not better:
        return "less code than the branch tip, and within the margin on the same seed"
    return f"{'' if better else 'not '}better than the branch tip on the same seed"
