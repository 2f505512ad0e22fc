"""What promotions and demotions are told from, gathered from the State. Pure; it knows no words of theirs."""

from collections.abc import Mapping

from coordinator import demotions
from coordinator.promotion import Absorbed, PromotionDossier, transfer_json, transfer_path
from coordinator.rechecks import undone_by
from coordinator.stacking import landing_trees
from coordinator.state import Claim, State, Transfer
from swarm.records import ChampionRechecked


def promotion_dossier(state: State, claim: Claim, number: int, frozen: Mapping[str, str]) -> PromotionDossier:
    """Of an accepted claim; `frozen`: the Task's frozen files and their hashes."""
    assert state.opened is not None and claim.verdict is not None
    trials = tuple(state.finished_trial(trial) for trial in claim.verdict.evidence)
    absorbed = _absorbed(state, claim)
    admitted = absorbed[0].experiment if absorbed else state.experiments[claim.experiment].admitted
    told_of = {trial.node for trial in trials} | {admitted.node} | {idea.experiment.node for idea in absorbed}
    checked = state.transfers.get(claim.key, Transfer()).checked
    return PromotionDossier(
        study=state.opened,
        number=number,
        experiment=admitted,
        verdict=claim.verdict,
        evidence=trials,
        # Of those alone: a node that joins before a promotion is repeated must not make it another commit.
        nodes=tuple(node for uid, node in state.nodes.items() if uid in told_of),
        frozen=frozen,
        base_files=state.files[claim.base],
        files=state.files[claim.candidate],
        transfer=checked if checked is not None and checked.required else None,
        holdout=claim.holdout,
        together=tuple(told for told in state.interactions if told.onto == claim.base),
        absorbed=absorbed,
    )


def _absorbed(state: State, claim: Claim) -> tuple[Absorbed, ...]:
    """The ideas of a set that lands, each with the tree on the way to all of them."""
    admitted = [state.experiments[idea].admitted for idea in claim.ideas]
    return tuple(map(Absorbed, admitted, landing_trees(state, claim) if admitted else ()))


def demotion_dossier(state: State, found: ChampionRechecked, number: int) -> demotions.Dossier:
    """Of a champion that a comparison found no better than an earlier one."""
    assert state.opened is not None
    return demotions.Dossier(
        study=state.opened,
        number=number,
        found=found,
        champion=state.champion,
        undone=undone_by(state, found),
        evidence=tuple(state.finished_trial(trial) for trial in found.evidence),
        files=state.files[found.ancestor],
    )


def checks_at_scale(state: State, study: str) -> dict[str, str]:
    """What was found of promotions after they had landed, by the path of the page beside their records."""
    found = {p.number: state.transfers.get((p.experiment, p.base)) for p in state.promotions}
    return {
        transfer_path(study, number): transfer_json(transfer.checked)
        for number, transfer in found.items()
        if transfer is not None and transfer.checked is not None and not transfer.checked.required
    }
