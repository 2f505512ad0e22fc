"""The coordinator's mind: `(state, now) -> actions`, and the Orders for each node.

Pure: it reads no clock, no disk and no random numbers; seeds come from hashes of the study's seed and the block's
number. The service feeds it facts and reports and carries out what it asks for; the simulator does the same with
ten thousand made-up nodes.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from coordinator.belief import WORDS_CHARS, flaw, named
from coordinator.briefs import Briefs
from coordinator.ending import Ending
from coordinator.fold import absorb
from coordinator.holdout import Gate, asked_of, released
from coordinator.judging import Judge
from coordinator.leases import Leases, Presence, leasable, platforms_gone
from coordinator.rechecks import due_demotion, rechecked
from coordinator.references import SECONDS, switches
from coordinator.reproduction import paired_interval, rule_for
from coordinator.shams import raised
from coordinator.stacking import step, waits_for_rival
from coordinator.state import SET_ASIDE, Claim, ClaimKey, Drawn, State
from coordinator.transfer import awaits_check, checked
from coordinator.verdicts import carry_accepted
from swarm.config import Config
from swarm.records import (
    Admission,
    Block,
    BlockLost,
    ChampionRechecked,
    ExperimentAdmitted,
    Fact,
    NodeInfo,
    NodeJoined,
    NodeLost,
    Orders,
    Proposal,
    ProposalRefused,
    Report,
    StudyFinished,
    Trouble,
    candidate_id,
    researcher_branch,
)
from swarm.scale import Scale

PROPOSALS_HEARD = 8  # of one report; a researcher keeps two ready
RETURN_S = 30.0  # at the end, a node whose agent died is waited for this long: starting it again takes about 5 s
NO_NODE = "no node was ready"
OVERTIME = 1.5  # of the wall time, after which the final comparison is cut short


@dataclass(frozen=True)
class Promote:
    """Carry out a promotion; the service reports it back as a fact."""

    claim: ClaimKey
    number: int


@dataclass(frozen=True)
class Demote:
    """Land the earlier champion's tree again; likewise."""

    found: ChampionRechecked
    number: int


Action = Promote | Demote | Fact


class Mind:
    """Decides. Owned by one service (or simulator), which calls it from one thread."""

    def __init__(self, config: Config, cpu_limit: float, scale: Scale | None = None, *, paced: bool = False) -> None:
        """Know nothing yet. A trial is killed at `cpu_limit` times the baseline's CPU time; 0: CPU time counts not.

        `scale` is the Task's; `paced`: whether a busy machine may score worse there.
        """
        self._paced = paced
        self.config = config
        self.rule = rule_for(config.decision.dial)
        self.state = State(rule=self.rule, calibration_runs=2 * config.decision.calibration_pairs, scale=scale)
        self.presence: dict[str, Presence] = {}
        self.program = ""
        self._refused: dict[tuple[str, str], str] = {}
        self._briefs = Briefs(self.state, config.nodes, cpu_limit)
        self._retry_promotion_at = 0.0
        self._turn: tuple[ClaimKey, float] | None = None  # the claim that lands next, and since when
        self._judge = Judge(self.state, config, cpu_counts=cpu_limit > 0)
        self._end = Ending(self.state, config)

    # --- feeding ---

    def absorb(self, fact: Fact, at: float) -> None:
        """Take a committed fact."""
        absorb(self.state, fact, at)
        if isinstance(fact, ProposalRefused):
            self._refused[(fact.node, fact.idea)] = fact.reason
        elif isinstance(fact, NodeLost):
            self.gone(fact.node)

    def observe(self, report: Report, now: float) -> None:
        """Take what a node says of itself; its facts have been committed before."""
        uid = report.node.uid
        known = self.presence.get(uid)
        held = (known.held if known else set()) | set(report.holding)
        ready_at = now if report.ready else known.ready_at if known else -math.inf
        self.presence[uid] = Presence(report, now, ready_at, held=held & self.state.leased.get(uid, {}).keys())

    def gone(self, node: str) -> None:
        """The node's agent is certainly dead; what it held in memory is lost."""
        if node in self.presence:
            self.presence[node].alive = False

    def postpone_promotion(self, until: float) -> None:
        """The forge could not be reached; ask again later."""
        self._retry_promotion_at = until

    # --- deciding ---

    def decide(self, now: float) -> list[Action]:
        """Everything that follows from what is known. Facts are to be committed and absorbed before asking again."""
        if self.state.opened is None or self.state.finished is not None:
            return []
        self._look_at_the_end(now)
        actions: list[Action] = [*self._membership(now), *self._lost_blocks(now), *self._admissions(now)]
        if (setting := self.config.decision.panel) != "off":
            drifts_as_one = SECONDS if setting == "auto" and self._paced else ""
            actions += switches(self.state.references, drifts_as_one, now)
        actions += [*self._judge.facts(self._gone(now), now), *self._shams(now)]
        actions += [*checked(self.state, self.config.decision, now), *(self._demotion(now) or self._promotions(now))]
        if (compared := rechecked(self.state, self.config.decision, now)) is not None:
            actions.append(compared)
        return actions or self._leases(now) or self._ending(now)

    def _membership(self, now: float) -> Iterator[Action]:
        for uid, presence in self.presence.items():
            node = presence.report.node
            known = self.state.nodes.get(uid)
            if presence.report.ready and (known is None or _told_anew(known, node)):
                yield NodeJoined(node, now)
                if refusal := self._judge.too_open(node.sandbox, node.sandbox_level):
                    yield Trouble(f"node {node.name}", f"it explores, and its runs decide nothing: {refusal}", now)
            silent = now - presence.heard_at
            if presence.alive and silent > self.config.nodes.lost_after_s:
                yield NodeLost(uid, f"silent for {silent:.0f} s", now)

    def _lost_blocks(self, now: float) -> Iterator[Action]:
        for drawn in self.state.outstanding.values():
            reason = self._why_lost(drawn, now)
            if reason:
                yield BlockLost(drawn.fact.block, reason, now)

    def _why_lost(self, drawn: Drawn, now: float) -> str:
        """A block is lost when its node is gone, came back without it, or takes longer than it ever may."""
        presence, nodes = self.presence.get(drawn.fact.node), self.config.nodes
        age = now - max(self.state.session_started, drawn.fact.at)
        if presence is None:
            return "its node did not come back" if age > nodes.lost_after_s else ""
        if not presence.alive:
            return "its node or agent died"
        if drawn.fact.block in presence.held and drawn.fact.block not in presence.report.holding:
            return "disturbed on its node, or forgotten in a restart"
        # Training and scoring of each trial, and of the node's own one before them, may take the whole wall time.
        longest = 2 * (len(drawn.fact.trials) + 1) * nodes.trial_wall_s * self.state.times_longer(drawn.fact.purpose)
        longest += nodes.lost_after_s
        return f"not finished within {longest:.0f} s" if age > longest else ""

    def _admissions(self, now: float) -> Iterator[Action]:
        taken: set[str] = set()
        for uid, presence in self.presence.items():
            for proposal in named(presence.report.proposals[:PROPOSALS_HEARD]):
                if proposal.idea in taken or (uid, proposal.idea) in self._refused:
                    continue
                reason = self._why_refused(uid, proposal)
                if reason:
                    words = proposal.hypothesis[:WORDS_CHARS]
                    yield ProposalRefused(proposal.idea, uid, words, reason, now)
                elif proposal.idea not in self.state.experiments:
                    taken.add(proposal.idea)
                    branch = researcher_branch(self.config.study, presence.report.node.name)
                    yield ExperimentAdmitted(proposal, candidate_id(proposal.files), uid, branch, now)

    def _why_refused(self, uid: str, proposal: Proposal) -> str:
        twin = self.state.experiments.get(proposal.idea)
        if twin is None:
            return flaw(proposal, self.state)
        if twin.admitted.node == uid and twin.status in ("open", SET_ASIDE):
            return ""
        return f"the same syntax tree is experiment {twin.number} ({twin.status[:100]})"

    # --- verdicts and promotions ---

    def _shams(self, now: float) -> Iterator[Fact]:
        if not self.stop_reason(now):
            yield from raised(self.state, self.config.decision.sham_share, now)

    def _promotions(self, now: float) -> list[Action]:
        """Accepted claims, oldest first: landed where they were measured, else carried onto the new champion."""
        if (together := self._together(now)) is not None:
            self._turn = None
            return [*together]
        for claim in self.state.in_turn():
            if claim.base != self.state.champion:
                if waits_for_rival(self.state, claim, self._gone(now)):
                    continue
                return [carry_accepted(self.state, claim, now)]
            if claim.awaits_holdout:
                return self._asked(claim, now)
            if awaits_check(claim, self.state, self.config.decision):
                if claim.ideas and not self.stop_reason(now):
                    return []  # its ideas stay where they are meanwhile
                continue
            return [Promote(claim.key, self.state.next_promotion)] if self._may_land(now) else []
        return []

    def _together(self, now: float) -> list[Fact] | None:
        """What is next about ideas that are joined; None where claims go on one by one."""
        if self.stop_reason(now):
            return None
        return step(self.state, self._gone(now), now)

    def _gone(self, now: float) -> set[str]:
        return platforms_gone(self.state, self.presence, self.config, now)

    def _demotion(self, now: float) -> list[Action]:
        """A champion that steps down, and then its ideas, one after another onto the one that is restored."""
        for claim in self.state.undone.values():
            return [carry_accepted(self.state, claim, now)]
        found = due_demotion(self.state)
        if found is None or not self._may_land(now) or self._is_landing(found.at):
            return []
        return [Demote(found, self.state.next_demotion)]

    def _may_land(self, now: float) -> bool:
        return now >= self._retry_promotion_at and not self._end.lands_no_more(now)

    def _is_landing(self, since: float) -> bool:
        """Whether a promotion may be half done: what could land before a demotion was due lands first, and falls."""
        state = self.state
        for claim in state.accepted.values():
            if claim.base == state.champion and not awaits_check(claim, state, self.config.decision):
                told = claim.verdict if claim.holdout is None else claim.holdout
                if not claim.awaits_holdout and told is not None and told.at <= since:
                    return True
        return False

    def _asked(self, claim: Claim, now: float) -> list[Action]:
        """What the holdout says of the claim that would land next."""
        if self._turn is None or self._turn[0] != claim.key:
            self._turn = (claim.key, now)
        answer = Gate(self.state, self.presence, claim, self.config.nodes, self._turn[1], now).answer()
        return [] if answer is None else [answer]

    def _landing(self) -> Claim | None:
        """The claim that would land next, if the holdout has still to be asked about it."""
        claim = self.state.accepted.get(self._turn[0]) if self._turn is not None else None
        lands = claim is not None and claim.base == self.state.champion and claim.awaits_holdout
        return claim if lands else None

    def _gate(self, now: float) -> Gate | None:
        claim = self._landing()
        if claim is None or self._turn is None:
            return None
        return Gate(self.state, self.presence, claim, self.config.nodes, self._turn[1], now)

    # --- leases ---

    def _leases(self, now: float) -> list[Action]:
        leases = Leases(self.state, self.presence, self.config, now)
        gate = self._gate(now)
        fresh = leases.for_holdout(gate.claim) if gate is not None and gate.wants_pair() else []
        if not self.stop_reason(now):
            return [*fresh, *leases.for_exploration()]
        if fresh:
            return [*fresh]
        if self.state.champion == self.state.baseline or self._open_business(now):
            return []
        return [*leases.for_the_end(self._home_platform())]

    def _home_platform(self) -> str:
        """Where the final comparison runs: the first Platform that was calibrated."""
        return next(iter(self.state.noise), "")

    # --- the end ---

    def stop_reason(self, now: float) -> str:
        """Why exploration is over; empty while it is not."""
        return self._end.reason(now)

    def _look_at_the_end(self, now: float) -> None:
        """What a study that stops may have to wait for, and what for in vain."""
        claim = self._lands_next()
        due = due_demotion(self.state) is not None if claim is None else not claim.awaits_holdout
        able = leasable(self.state, self.presence, self.config, now) if self.stop_reason(now) else []
        at_home = any(self.state.platform_of(uid) == self._home_platform() for uid in able)
        self._end.look(now, landing=due, comparable=at_home)

    def _lands_next(self) -> Claim | None:
        """The accepted claim that nothing but holdout and forge keep from landing; the holdout answers in time."""
        here = (claim for claim in self.state.in_turn() if claim.base == self.state.champion)
        return next((c for c in here if not awaits_check(c, self.state, self.config.decision)), None)

    def _open_business(self, now: float) -> bool:
        """Confirmations in flight, and what is on its way to the forge, come before the final comparison."""
        if any(drawn.fact.purpose == "confirm" for drawn in self.state.outstanding.values()):
            return True
        due = due_demotion(self.state) is not None or self._lands_next() is not None
        return due and not self._end.lands_no_more(now)

    def ready_to_end(self, now: float) -> bool:
        """Nothing is left but to empty the nodes' spools."""
        if not self.stop_reason(now):
            return False
        state, wanted = self.state, self.config.decision.final_seeds
        if state.elapsed_s(now) > 60 * OVERTIME * self.config.stop.wall_minutes:
            return True
        if state.outstanding or self._open_business(now):
            return False
        compared = len(state.final) >= wanted or state.final_failures >= wanted
        return compared or state.champion == state.baseline or self._end.compares_no_more(now)

    def _ending(self, now: float) -> list[Action]:
        if not self.ready_to_end(now):
            return []
        if any(self._owes(uid, now) for uid in self.state.nodes):
            return []
        state = self.state
        interval = paired_interval([p.gain for p in state.final]) if len(state.final) >= 2 else None
        return [
            StudyFinished(
                reason=self._end_reason(now),
                champion=state.champion,
                final_gain=interval.mean if interval else None,
                low=interval.low if interval else None,
                high=interval.high if interval else None,
                pairs=len(state.final),
                busy=0.0,
                at=now,
            )
        ]

    def _owes(self, uid: str, now: float) -> bool:
        """Whether a node may still bring trials that it finished: until it has drained, or stayed away for a while."""
        presence = self.presence.get(uid)
        if presence is None:
            return now - self.state.session_started < RETURN_S
        if presence.alive:
            return not presence.report.drained
        return now - presence.heard_at < RETURN_S

    def _end_reason(self, now: float) -> str:
        reason = self.stop_reason(now)
        if self.state.nodes:
            return reason
        return f"{NO_NODE} within the {reason}" + (f": {self.state.trouble}" if self.state.trouble else "")

    # --- orders ---

    def orders(self, uid: str, acks: Iterable[str], now: float) -> Orders:
        """What a node is to be told in the next call."""
        presence = self.presence.get(uid)
        drain = self.state.finished is not None or self.ready_to_end(now)
        if presence is None or not presence.report.ready:
            return Orders(self.state.epoch, acks=tuple(acks), drain=drain)
        brief = self._briefs.brief(uid, self.program, explore=not self.stop_reason(now), nodes=len(self.presence))
        return Orders(
            epoch=self.state.epoch,
            acks=tuple(acks),
            admissions=tuple(self._answers(uid, presence.report)),
            blocks=tuple(self._blocks_of(uid, presence.report)),
            brief=None if brief.version == presence.report.brief else brief,
            holdout=asked_of(self._landing(), presence.report),
            release=presence.report.kept if drain else released(self.state, presence.report),
            drain=drain,
        )

    def _answers(self, uid: str, report: Report) -> Iterable[Admission]:
        for proposal in report.proposals[:PROPOSALS_HEARD]:
            twin = self.state.experiments.get(proposal.idea)
            if (uid, proposal.idea) in self._refused:
                yield Admission(proposal.idea, admitted=False, reason=self._refused[(uid, proposal.idea)])
            elif twin is not None and twin.admitted.node == uid:
                yield Admission(proposal.idea, admitted=True)

    def _blocks_of(self, uid: str, report: Report) -> Iterable[Block]:
        for drawn in self.state.leased.get(uid, {}).values():
            if drawn.fact.block not in report.holding:
                yield Block(drawn.fact.block, drawn.fact.fence, tuple(self._briefs.specs(drawn.fact)))


def _told_anew(known: NodeInfo, node: NodeInfo) -> bool:
    """Whether it came back as another machine, as far as its runs are concerned."""
    return (known.platform, known.sandbox_level) != (node.platform, node.sandbox_level)
