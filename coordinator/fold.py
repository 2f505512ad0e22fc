"""How each fact changes what the coordinator knows: `(state, fact) -> state`.

Pure: no clock, no disk, no randomness; the same facts in the same order give the same State, which is updated in place
by its one owner, the mind. Facts are taken at their word here: what of a node's report may become one is decided in
`coordinator/belief`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from coordinator import claims, pairs
from coordinator.state import SET_ASIDE, Experiment, State
from swarm.records import (
    BlockDrawn,
    BlockLost,
    Carried,
    ChampionRechecked,
    ClaimRaised,
    CoordinatorStarted,
    Demotion,
    DemotionVetoed,
    ExperimentAdmitted,
    Fact,
    HoldoutAnswered,
    Interaction,
    NodeJoined,
    PanelSwitched,
    Promotion,
    PromotionVetoed,
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


def _rechecked(state: State, fact: ChampionRechecked, at: float) -> None:
    state.rechecked.append(fact)


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
    ClaimRaised: claims.claimed,
    Carried: claims.carried,
    Stacked: claims.stacked,
    Interaction: claims.interacted,
    BlockDrawn: pairs.drawn,
    BlockLost: pairs.lost,
    TrialFinished: pairs.trial,
    TrialDisturbed: pairs.disturbed,
    Verdict: claims.verdict,
    PanelSwitched: claims.panel_switched,
    ShamRaised: claims.sham,
    ShamJudged: claims.sham_judged,
    HoldoutAnswered: claims.holdout,
    Promotion: claims.promoted,
    PromotionVetoed: claims.promotion_vetoed,
    TransferChecked: claims.transfer,
    ChampionRechecked: _rechecked,
    Demotion: claims.demoted,
    DemotionVetoed: claims.demotion_vetoed,
    Spent: _spent,
    Trouble: _trouble,
    StudyFinished: _finished,
}
