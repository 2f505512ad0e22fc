"""One fact, one line for people. Pure; the same lines in the plain log, the live view and `swarm log`."""

from collections.abc import Iterable

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
    Measurement,
    NodeJoined,
    NodeLost,
    PanelSwitched,
    Promotion,
    PromotionVetoed,
    ProposalRefused,
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

LINE = 200  # a verdict with its effect, interval and evidence
IDEA = 48  # of a hypothesis where more is to be said: what happened must not fall off the line


class Teller:
    """Remembers numbers and names while facts pass by, so that lines can say `experiment 17` and `node laptop-2`."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._shams: dict[str, int] = {}  # by the name that stands in the place of an experiment
        self._hypotheses: dict[str, str] = {}
        self._nodes: dict[str, str] = {}
        self._sets: dict[str, tuple[str, ...]] = {}  # ideas that were joined, by the name of their set

    def lines(self, facts: Iterable[Fact]) -> list[str]:
        """A line for every fact worth one, in order."""
        return [line for fact in facts if (line := self.line(fact))]

    def line(self, fact: Fact) -> str:
        """One line, cut where it is too long to read; empty for facts that only matter to machines."""
        line, most = plain(self._tell(fact)), LINE if not isinstance(fact, Trouble) else 3 * LINE  # says what to do
        return line if len(line) <= most else f"{line[: most - 1]}…"

    def _tell(self, fact: Fact) -> str:
        match fact:
            case StudyOpened():
                return f"study {fact.study} opened: {fact.metric}, {fact.direction}, baseline {fact.baseline[:8]}"
            case CoordinatorStarted() if fact.epoch > 1:
                return f"coordinator resumed (epoch {fact.epoch})"
            case NodeJoined():
                self._nodes[fact.node.uid] = fact.node.name
                trust = "; its owner trusts this study's code" if fact.node.trusting else ""
                return f"node {fact.node.name} joined: {fact.node.platform.device}, sandbox {fact.node.sandbox}{trust}"
            case NodeLost() | TrialDisturbed() | BlockLost() | Trouble():
                return self._mishap(fact)
            case ExperimentAdmitted():
                return self._admitted(fact)
            case ProposalRefused():
                return f"refused on {self._node(fact.node)}: {_short(fact.hypothesis)} ({fact.reason})"
            case TrialFinished():
                return self._trial(fact)
            case _:
                return self._decision(fact)

    def _mishap(self, fact: NodeLost | TrialDisturbed | BlockLost | Trouble) -> str:
        match fact:
            case NodeLost():
                return f"node {self._node(fact.node)} lost: {fact.reason}"
            case TrialDisturbed():
                where = f"trial {fact.trial[:8]} on {self._node(fact.node)}"
                return f"{where} disturbed: {fact.failure.message}; it is run again"
            case BlockLost():
                return f"block {fact.block[:8]} lost: {fact.reason}; a new one is drawn"
            case Trouble():
                return f"trouble with {fact.where}: {fact.message}"

    def _decision(self, fact: Fact) -> str:
        match fact:
            case Screened():
                gain = "" if fact.gain is None else f" ({fact.gain:+.4f})"
                fate = "kept   " if fact.kept else "aside  " if "the branch moved" in fact.reason else "dropped"
                return f"{fate} {self._experiment(fact.experiment)}{gain}: {fact.reason}"
            case ClaimRaised():
                does = "simplifies" if fact.claim_kind == "simplification" else "beats"
                return f"claim   {self._experiment(fact.experiment)} {does} the champion: {fact.gain:+.4f} on one seed"
            case BlockDrawn() if fact.experiments:
                ideas = ", ".join(map(self._about, fact.experiments))
                alone = ", against a run of the champion on it" if fact.reference_trial else ""
                return f"{fact.purpose} {ideas} on fresh seed {fact.seeds[0]}{alone} at {self._node(fact.node)}"
            case Carried():
                return (
                    f"carried {self._experiment(fact.experiment)} onto champion {fact.onto[:8]}; to be confirmed there"
                )
            case Stacked():
                self._sets[fact.experiment] = fact.ideas
                return f"joined  {self._experiment(fact.experiment)} on champion {fact.onto[:8]}; to be measured there"
            case Interaction():
                self._sets[fact.experiment] = fact.ideas
                return f"joined  {self._experiment(fact.experiment)}: {fact.reason}"
            case _:
                return self._belief(fact)

    def _belief(self, fact: Fact) -> str:
        match fact:
            case Verdict():
                word = "accepted" if fact.accepted else "rejected"
                why = fact.reason.removeprefix(f"{word}: ")
                return f"{word.upper() if fact.accepted else word} {self._experiment(fact.experiment)}: {why}"
            case PanelSwitched():
                return f"panel {'ON' if fact.on else 'off'}: {fact.reason}"
            case ShamRaised():
                self._shams[fact.name] = fact.number
                return (
                    f"sham {fact.number} raised: the champion with another random stream, claimed as if it were better"
                )
            case ShamJudged():
                fate = "ACCEPTED" if fact.verdict.accepted else "rejected"
                return f"sham {fact.number} {fate}: {fact.verdict.reason.removeprefix('rejected: ')}"
            case HoldoutAnswered():
                told = f", gain about {fact.gain:+g}" if fact.gain is not None else ""
                return f"holdout {self._experiment(fact.experiment)}: {fact.reason}{told}"
            case Promotion():
                kind = "" if fact.claim_kind == "gain" else f"{fact.claim_kind}, "
                return f"PROMOTED {self._experiment(fact.experiment)}: {kind}pull request {fact.request}"
            case PromotionVetoed():
                return f"VETOED   {self._experiment(fact.experiment)}: {fact.reason}"
            case TransferChecked():
                return f"scaled  {self._experiment(fact.experiment)}: {fact.reason}"
            case ChampionRechecked():
                gain = "" if fact.gain is None else f" ({fact.gain:+.4f})"
                return f"recheck champion of promotion {fact.number} against {fact.ancestor[:8]}{gain}: {fact.reason}"
            case Demotion():
                undone = ", ".join(map(str, fact.undone))
                return f"DEMOTED champion {fact.champion[:8]}, promotions {undone} undone: pull request {fact.request}"
            case DemotionVetoed():
                return f"VETOED   the demotion of promotion {fact.rechecked}: {fact.reason}"
            case Spent():
                tokens = fact.usage.input_tokens + fact.usage.output_tokens
                return f"spent {fact.usage.dollars:.4f} dollars, {tokens} tokens"
            case StudyFinished():
                return f"study finished: {fact.reason}"
            case _:
                return ""

    def _admitted(self, fact: ExperimentAdmitted) -> str:
        number = self._numbers.setdefault(fact.proposal.idea, len(self._numbers) + 1)
        self._hypotheses[fact.proposal.idea] = fact.proposal.hypothesis
        return f"idea    experiment {number} on {self._node(fact.node)}: {fact.proposal.hypothesis}"

    def _trial(self, fact: TrialFinished) -> str:
        known = self._numbers.keys() | self._shams.keys() | self._sets.keys()
        about = self._about(fact.experiment) if fact.experiment in known else f"candidate {fact.candidate[:8]}"
        where = f"{fact.purpose:9} {about} on {self._node(fact.node)}, seed {fact.seed}"
        if isinstance(fact.outcome, Measurement):
            told = " (self-reported)" if fact.outcome.self_reported else ""
            return f"trial   {where}: {fact.outcome.score:.4f}{told} after {fact.outcome.cpu_s:.1f} CPU-s"
        return f"trial   {where}: failed, {fact.outcome.reason}: {fact.outcome.message}"

    def _about(self, name: str) -> str:
        if name in self._shams:
            return f"sham {self._shams[name]}"
        if name in self._sets:
            return f"experiments {', '.join(str(self._numbers.get(one, '?')) for one in self._sets[name])} together"
        return f"experiment {self._numbers.get(name, '?')}"

    def _experiment(self, idea: str) -> str:
        if idea in self._sets:
            return self._about(idea)
        return f"experiment {self._numbers.get(idea, '?')} ({_short(self._hypotheses.get(idea, idea[:8]))})"

    def _node(self, uid: str) -> str:
        return self._nodes.get(uid, uid[:8])


def _short(text: str) -> str:
    return text if len(text) <= IDEA else f"{text[: IDEA - 1]}…"


def plain(text: str) -> str:
    """Foreign text without line breaks and control characters, which could move a terminal's cursor."""
    return "".join(c if c.isprintable() else " " for c in text)
