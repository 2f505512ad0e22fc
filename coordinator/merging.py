"""What to do with an accepted idea when the champion has moved: carry it over and measure the very tree that will land.

Pure. The syntax-aware three-way merge itself is `swarm.source`; here stands what its result means for a Claim.
"""

from swarm.errors import ProposalError
from swarm.records import Carried, Files, candidate_id
from swarm.source import MergeConflict, merge_files


def carry(experiment: str, base: Files, idea: Files, champion: Files, onto: str, now: float) -> Carried | str:
    """Carry an idea (made on `base`) onto the moved champion, or say in a sentence why that is not possible.

    The result is another tree than the one that was confirmed: it has to be confirmed itself.
    """
    try:
        merged = merge_files(base, idea, champion)
    except MergeConflict as conflict:
        return f"in conflict with the moved champion: {conflict}; its author is asked to port it"
    except ProposalError as error:
        return f"carried onto the moved champion it does not parse: {error}"
    candidate = candidate_id(merged)
    if candidate == onto:
        return "the moved champion already contains this idea"
    return Carried(experiment=experiment, candidate=candidate, onto=onto, files=merged, at=now)
