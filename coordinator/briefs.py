"""What nodes are told: the Brief of each, and the trials of the blocks that it was leased.

Pure reading of the State. What is the same for everybody is written once per change and not once per node; caches are
all that changes here. Everything that a model or a stranger wrote is cut to a length.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from coordinator.references import Foretold
from coordinator.state import Experiment, State
from swarm.config import Nodes
from swarm.records import BlockDrawn, Brief, Limits, ToPort, TrialSpec, Tried, digest
from swarm.source import describe_edit

TRIED_SHOWN = 20  # experiments in a Brief; keeps its size independent of the study's history
BRIEF_EVERY = 5  # experiments between two Briefs in which nothing urgent changed; with more nodes, one for each
WORDS_SHOWN = 600  # characters of a hypothesis
LEAST_CPU_S = 1.0  # below it a limit would measure the start of Python, not the candidate


@dataclass(frozen=True)
class _Occasion:
    """What makes a new Brief worth sending to everybody."""

    champion: str
    program: str
    explore: bool
    verdicts: int
    experiments: int


class Briefs:
    """Writes Briefs and trials from one State."""

    def __init__(self, state: State, nodes: Nodes, cpu_limit: float) -> None:
        self._state, self._nodes, self._cpu_limit = state, nodes, cpu_limit
        self._common: tuple[_Occasion, Brief] | None = None
        self._own: dict[str, tuple[object, Brief]] = {}  # by node: what it was written from, and the Brief
        self._lines: dict[str, Tried] = {}  # by idea: a diff costs a millisecond

    def brief(self, uid: str, program: str, *, explore: bool, nodes: int) -> Brief:
        """The Brief that a node should work from now."""
        state = self._state
        every = max(BRIEF_EVERY, nodes)
        occasion = _Occasion(state.champion, program, explore, state.verdicts, len(state.numbered) // every)
        common = self._shared(occasion)
        platform = state.platform_of(uid)
        noise = state.noise_of(platform)
        foretold = self._foretold(uid, platform)
        own = (common.version, platform, None if noise is None else noise.sd, state.answered[uid], foretold)
        if uid not in self._own or self._own[uid][0] != own:
            self._own[uid] = (own, self._for_node(common, uid, platform, foretold))
        return self._own[uid][1]

    def specs(self, block: BlockDrawn) -> Iterator[TrialSpec]:
        """The trials of a block, in the order in which they run."""
        limits = self.limits(self._state.platform_of(block.node), self._state.times_longer(block.purpose))
        claims = [self._state.claims.get((experiment, block.reference)) for experiment in block.experiments]
        ideas = {claim.candidate: claim.experiment for claim in claims if claim is not None}
        for trial, candidate, seed in zip(block.trials, block.candidates, block.seeds, strict=True):
            idea = ideas.get(candidate, "")
            yield TrialSpec(trial, candidate, seed, block.purpose, self._state.files[candidate], limits, idea)

    def limits(self, platform: str, longer: int = 1) -> Limits:
        """When a trial on this Platform is killed; `longer`: times the ordinary work."""
        nodes, baseline = self._nodes, self._state.baseline_cpu_s.get(platform)
        cpu_s = nodes.trial_wall_s
        if baseline is not None and self._cpu_limit:  # 0: seconds are the budget
            cpu_s = max(LEAST_CPU_S, self._cpu_limit * baseline)
        wall_s = longer * nodes.trial_wall_s
        return Limits(longer * cpu_s, wall_s, memory_mb=nodes.memory_mb, disk_mb=nodes.disk_mb)

    def _shared(self, occasion: _Occasion) -> Brief:
        if self._common is None or self._common[0] != occasion:
            brief = self._for_everybody(occasion)
            self._common = (occasion, replace(brief, version=digest(repr(brief))))
        return self._common[1]

    def _for_everybody(self, occasion: _Occasion) -> Brief:
        state = self._state
        recent = state.numbered[-TRIED_SHOWN:]
        lines = {e.admitted.proposal.idea: self._line(e) for e in recent if e.status != "open"}
        self._lines = lines
        return Brief(
            version="",
            champion=state.champion,
            champion_files=state.files[state.champion],
            program=occasion.program,
            noise=None,
            screen_margin=state.rule.screen_margin,
            cpu_limit_s=0.0,
            open_claims=tuple(claim.experiment for claim in state.open_claims.values() if not claim.sham),
            verdicts={},
            tried=tuple(lines.values()),
            in_flight=tuple(e.admitted.proposal.hypothesis[:WORDS_SHOWN] for e in recent if e.status == "open"),
            explore=occasion.explore,
            margin=state.rule.margin,
        )

    def _foretold(self, uid: str, platform: str) -> Foretold | None:
        """What the champion will score there, where a panel knows it."""
        references = self._state.references.get(platform)
        known = references is not None and references.champion == self._state.champion
        return references.foretold(uid) if references is not None and known else None

    def _for_node(self, common: Brief, uid: str, platform: str, foretold: Foretold | None) -> Brief:
        noise = self._state.noise_of(platform)
        own = replace(
            common,
            noise=None if noise is None else noise.sd,
            cpu_limit_s=self.limits(platform).cpu_s,
            verdicts=dict(self._state.answers.get(uid, {})),
            to_port=tuple(self._to_port(uid)),
            foretold=None if foretold is None else self._state.gain(foretold.score, 0.0),
            own_weight=1.0 if foretold is None else foretold.own_weight,
        )
        told = own.noise, own.cpu_limit_s, own.verdicts, repr(own.to_port), foretold
        return replace(own, version=digest(common.version, *told))

    def _to_port(self, uid: str) -> Iterator[ToPort]:
        """Those in conflict with this very champion; a later one may be another matter."""
        files = self._state.files
        for experiment, conflict in self._state.to_port.get(uid, {}).items():
            known = self._state.experiments.get(experiment)
            if known is not None and conflict.onto == self._state.champion:
                words = known.admitted.proposal.hypothesis[:WORDS_SHOWN]
                diff = describe_edit(files[conflict.base], files[conflict.candidate])
                yield ToPort(experiment, words, diff, conflict.sides[:WORDS_SHOWN])

    def _line(self, experiment: Experiment) -> Tried:
        proposal = experiment.admitted.proposal
        known = self._lines.get(proposal.idea)
        parent = self._state.files.get(proposal.parent, {})
        diff = known.diff if known is not None else describe_edit(parent, proposal.files)
        return Tried(proposal.hypothesis[:WORDS_SHOWN], experiment.status[:WORDS_SHOWN], experiment.gain, diff)
