"""The coordinator's mind: `(state, now) -> actions`, and the Orders for each node.

Pure: it reads no clock, no disk and no random numbers; seeds come from hashes of the study's seed and the block's
number. The service feeds it facts and reports and carries out what it asks for; the simulator does the same with
ten thousand made-up nodes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from coordinator.merging import carry
from coordinator.reproduction import Accepted, Rejected, Undecided, decide, paired_interval, rejected_for, rule_for
from coordinator.state import Claim, Drawn, Experiment, State
from swarm.config import Config
from swarm.records import (
    Admission,
    Block,
    BlockDrawn,
    BlockLost,
    Brief,
    ExperimentAdmitted,
    Fact,
    Limits,
    NodeJoined,
    NodeLost,
    Orders,
    Proposal,
    ProposalRefused,
    Purpose,
    Report,
    StudyFinished,
    TrialSpec,
    Tried,
    Verdict,
    candidate_id,
    digest,
)
from swarm.source import describe_edit

SHARED_BY = 4  # candidates that may share one champion run in a block: above it false verdicts come in clusters
TRIED_SHOWN = 20  # experiments in a Brief; keeps its size independent of the study's history
BRIEF_EVERY = 5  # experiments between two Briefs in which nothing urgent changed
QUARANTINE_AFTER, QUARANTINE_S = 3, 60.0  # disturbances in a row; doubled for each further one
RETURN_S = 30.0  # at the end, a node whose agent died is waited for this long: starting it again takes about 5 s
NO_NODE = "no node was ready"
OVERTIME = 1.5  # of the wall time, after which the final comparison is cut short


@dataclass(frozen=True)
class Promote:
    """Carry out a promotion; the service reports it back as a fact."""

    claim: tuple[str, str]
    number: int


Action = Promote | Fact


@dataclass
class Presence:
    """What is known of a node right now. Not a fact: it may vanish."""

    report: Report
    heard_at: float
    alive: bool = True
    held: set[str] = field(default_factory=set)  # blocks it was ever seen holding


class Mind:
    """Decides. Owned by one service (or simulator), which calls it from one thread."""

    def __init__(self, config: Config, cpu_limit: float) -> None:
        self.config = config
        self.cpu_limit = cpu_limit  # a trial is killed at this multiple of the baseline's CPU time
        self.rule = rule_for(config.decision.dial)
        self.state = State(rule=self.rule, calibration_runs=2 * config.decision.calibration_pairs)
        self.presence: dict[str, Presence] = {}
        self.program = ""
        self._refused: dict[tuple[str, str], str] = {}
        self._briefs: dict[str, tuple[tuple[object, ...], Brief]] = {}
        self._retry_promotion_at = 0.0

    # --- feeding ---

    def absorb(self, fact: Fact, at: float) -> None:
        """Take a committed fact."""
        self.state.absorb(fact, at)
        if isinstance(fact, ProposalRefused):
            self._refused[(fact.node, fact.idea)] = fact.reason

    def observe(self, report: Report, now: float) -> None:
        """Take what a node says of itself; its facts have been committed before."""
        known = self.presence.get(report.node.uid)
        held = (known.held if known else set()) | set(report.holding)
        self.presence[report.node.uid] = Presence(report, now, alive=True, held=held)

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
        actions: list[Action] = []
        actions += self._membership(now)
        actions += self._admissions(now)
        actions += self._verdicts(now)
        actions += self._promotions(now)
        return actions or self._leases(now) or self._ending(now)

    def _membership(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for uid, presence in self.presence.items():
            node = presence.report.node
            known = self.state.nodes.get(uid)
            if presence.report.ready and (known is None or known.platform != node.platform):
                actions.append(NodeJoined(node, now))
            silent = now - presence.heard_at
            if presence.alive and silent > self.config.nodes.lost_after_s:
                presence.alive = False
                actions.append(NodeLost(uid, f"silent for {silent:.0f} s", now))
        return actions + self._lost_blocks(now)

    def _lost_blocks(self, now: float) -> list[Action]:
        """A block is lost when its node is gone, or came back without it."""
        lost: list[Action] = []
        for drawn in self._outstanding():
            presence = self.presence.get(drawn.fact.node)
            if presence is None:
                if now - max(self.state.session_started, drawn.fact.at) > self.config.nodes.lost_after_s:
                    lost.append(BlockLost(drawn.fact.block, "its node did not come back", now))
            elif not presence.alive:
                lost.append(BlockLost(drawn.fact.block, "its node or agent died", now))
            elif drawn.fact.block in presence.held and drawn.fact.block not in presence.report.holding:
                lost.append(BlockLost(drawn.fact.block, "disturbed on its node, or forgotten in a restart", now))
        return lost

    def _admissions(self, now: float) -> list[Action]:
        actions: list[Action] = []
        taken = set(self.state.experiments)
        for uid, presence in self.presence.items():
            for proposal in presence.report.proposals:
                if proposal.idea in taken or (uid, proposal.idea) in self._refused:
                    actions += self._refuse_if_foreign(uid, proposal, now)
                    continue
                taken.add(proposal.idea)
                candidate = candidate_id(proposal.files)
                branch = f"swarm/{self.config.study}/{presence.report.node.name}"
                actions.append(ExperimentAdmitted(proposal, candidate, uid, branch, now))
        return actions

    def _refuse_if_foreign(self, uid: str, proposal: Proposal, now: float) -> list[Action]:
        twin = self.state.experiments.get(proposal.idea)
        if twin is None or (uid, proposal.idea) in self._refused or twin.admitted.node == uid and twin.status == "open":
            return []
        reason = f"the same syntax tree is experiment {twin.number} ({twin.status})"
        self._refused[(uid, proposal.idea)] = reason
        return [ProposalRefused(proposal.idea, uid, proposal.hypothesis, reason, now)]

    # --- verdicts and promotions ---

    def _verdicts(self, now: float) -> list[Action]:
        return [verdict for claim in self.state.open_claims() if (verdict := self._verdict(claim, now)) is not None]

    def _verdict(self, claim: Claim, now: float) -> Verdict | Fact | None:
        if claim.candidate == claim.base:
            return self._close(claim, "the champion already contains this idea", now)
        if claim.base != self.state.champion and not claim.pairs and not self._in_flight(claim):
            return self._carry_over(claim, now)
        if claim.failed:
            return self._close(claim, claim.failed, now)
        if not claim.pairs:
            return None
        decision = decide([pair.gain for pair in claim.pairs], claim.noise, claim.bar, self.rule)
        if isinstance(decision, Undecided):
            return None
        if isinstance(decision, Accepted) and (slow := self._too_slow(claim)):
            return self._close(claim, slow, now)
        return self._verdict_of(claim, decision, decision.reason, now)

    def _too_slow(self, claim: Claim) -> str:
        """CPU time over the study's baseline, chained through the champion's run in each block so that load cancels."""
        ratio = sum(p.candidate_cpu_s for p in claim.pairs) / max(1e-9, sum(p.champion_cpu_s for p in claim.pairs))
        ratio *= self.state.cpu_ratio.get(claim.base, 1.0)
        allowed = self.config.decision.cpu_ratio
        return "" if ratio <= allowed else f"it takes {ratio:.2f}x the baseline's CPU time, {allowed:g}x is allowed"

    def _close(self, claim: Claim, reason: str, now: float) -> Verdict:
        gains = [pair.gain for pair in claim.pairs]
        return self._verdict_of(claim, rejected_for(reason, gains, claim.noise, claim.bar, self.rule), reason, now)

    def _verdict_of(self, claim: Claim, decision: Accepted | Rejected, reason: str, now: float) -> Verdict:
        trials = tuple(t for pair in claim.pairs for t in (pair.champion_trial, pair.candidate_trial))
        nodes = {pair.node for pair in claim.pairs}
        where = self._where(claim, nodes) if claim.pairs else ""
        finite = bool(claim.pairs)
        return Verdict(
            experiment=claim.experiment,
            candidate=claim.candidate,
            base=claim.base,
            accepted=isinstance(decision, Accepted),
            effect=decision.effect,
            low=decision.interval.low if finite else 0.0,
            high=decision.interval.high if finite else 0.0,
            pairs=len(claim.pairs),
            likelihood_ratio=decision.likelihood_ratio,
            bar=claim.bar,
            noise=claim.noise.sd,
            evidence=trials,
            nodes=len(nodes),
            reason=reason + where,
            at=now,
        )

    def _where(self, claim: Claim, nodes: set[str]) -> str:
        own = ", the proposer's own among them" if claim.node in nodes else ""
        few = " (three other nodes were not there)" if len(nodes - {claim.node}) < 3 else ""
        return f"; confirmed on {len(nodes)} node{'s' if len(nodes) > 1 else ''}{own}{few}"

    def _carry_over(self, claim: Claim, now: float) -> Fact:
        """Nothing has been measured against a base that is no longer the champion: start again on the new one."""
        files = self.state.files
        carried = carry(
            claim.experiment,
            files[claim.base],
            files[claim.candidate],
            files[self.state.champion],
            self.state.champion,
            now,
        )
        if isinstance(carried, str):
            return self._close(claim, carried, now)
        return carried

    def _promotions(self, now: float) -> list[Action]:
        """Accepted claims, oldest first: landed where they were measured, else carried onto the new champion."""
        for claim in self.state.landing():
            if claim.base != self.state.champion:
                return [self._carry_accepted(claim, now)]
            due = now >= self._retry_promotion_at
            return [Promote(claim.key, len(self.state.promotions) + 1)] if due else []
        return []

    def _carry_accepted(self, claim: Claim, now: float) -> Fact:
        files, champion = self.state.files, self.state.champion
        carried = carry(claim.experiment, files[claim.base], files[claim.candidate], files[champion], champion, now)
        if not isinstance(carried, str):
            return carried
        return self._close(replace(claim, base=champion, pairs=[], verdict=None), carried, now)

    # --- leases ---

    def _leases(self, now: float) -> list[Action]:
        busy = {drawn.fact.node for drawn in self._outstanding()}
        for uid in sorted(self.presence, key=lambda uid: (self.presence[uid].heard_at, uid)):
            presence = self.presence[uid]
            if uid in busy or not presence.alive or not presence.report.ready or uid not in self.state.nodes:
                continue
            if presence.report.holding or self._quarantined(uid, now):
                continue
            block = self._block_for(uid, now)
            if block is not None:
                return [block]
        return []

    def _quarantined(self, uid: str, now: float) -> bool:
        count = self.state.disturbances.get(uid, 0) - QUARANTINE_AFTER
        return count >= 0 and now - self.state.disturbed_at.get(uid, 0.0) < QUARANTINE_S * 2 ** min(count, 6)

    def _block_for(self, uid: str, now: float) -> BlockDrawn | None:
        platform = self.state.nodes[uid].platform.id
        if self.stop_reason(now):
            return self._final_block(uid, platform, now)
        if platform not in self.state.noise:
            return self._calibration_block(uid, platform, now)
        claims = self._claims_for(uid, platform)
        if not claims:
            return None
        candidates = [claim.candidate for claim in claims]
        return self._draw(uid, "confirm", claims[0].base, candidates, [c.experiment for c in claims], now)

    def _calibration_block(self, uid: str, platform: str, now: float) -> BlockDrawn | None:
        champion = self.state.champion
        done = len(self.state.calibration.get(platform, {}).get(champion, []))
        planned = sum(
            len(d.fact.trials) - len(d.finished)
            for d in self._outstanding()
            if d.fact.purpose == "calibrate" and self.state.nodes[d.fact.node].platform.id == platform
        )
        if self.state.baseline_failure or done + planned >= self.state.calibration_runs:
            return None
        return self._draw(uid, "calibrate", champion, [champion], [], now, fresh_seed_each=True)

    def _claims_for(self, uid: str, platform: str) -> list[Claim]:
        """Open claims that want another pair and may be measured here; one base per block, oldest claims first."""
        wanted = [c for c in self.state.open_claims() if c.platform == platform and self._wants_pair(c, uid)]
        return [claim for claim in wanted if claim.base == wanted[0].base][:SHARED_BY]

    def _wants_pair(self, claim: Claim, uid: str) -> bool:
        if claim.failed or claim.base != self.state.champion and not claim.pairs:
            return False
        others = [u for u, p in self.presence.items() if p.alive and u != claim.node and self._on(u, claim.platform)]
        if uid == claim.node and len(others) >= 3:
            return False
        missing = max(1, self.rule.min_pairs - len(claim.pairs))
        # While the noise is poorly known the first pairs are bought at once: one-pair losers teach it nothing.
        allowed = missing if claim.noise.df < 12 else 1
        return self._in_flight(claim) < allowed

    def _on(self, uid: str, platform: str) -> bool:
        return uid in self.state.nodes and self.state.nodes[uid].platform.id == platform

    def _in_flight(self, claim: Claim) -> int:
        return sum(
            claim.candidate in d.fact.candidates and d.fact.reference == claim.base
            for d in self._outstanding()
            if d.fact.purpose == "confirm"
        )

    def _final_block(self, uid: str, platform: str, now: float) -> BlockDrawn | None:
        state = self.state
        if state.champion == state.baseline or self._open_business() or platform != self._home_platform():
            return None
        planned = sum(d.fact.purpose == "final" for d in self._outstanding())
        wanted = self.config.decision.final_seeds
        if len(state.final) + planned >= wanted or state.final_failures >= wanted:
            return None
        return self._draw(uid, "final", state.baseline, [state.champion], [], now)

    def _home_platform(self) -> str:
        """Where the final comparison runs: the first Platform that was calibrated."""
        return next(iter(self.state.noise), "")

    def _draw(
        self,
        uid: str,
        purpose: Purpose,
        reference: str,
        candidates: Sequence[str],
        experiments: Sequence[str],
        now: float,
        *,
        fresh_seed_each: bool = False,
    ) -> BlockDrawn:
        """A block with a fresh seed, its trials in random order; all from the study's seed and the block's number."""
        number = len(self.state.blocks) + 1
        name = digest("block", self.config.seed, self.config.study, number)
        platform = self.state.nodes[uid].platform.id
        order = [reference, *candidates]
        Random(name).shuffle(order)
        seeds = tuple(int(digest(name, i if fresh_seed_each else 0)[:8], 16) & 0x7FFFFFFF for i in range(len(order)))
        trials = tuple(digest(c, s, platform, purpose, number) for c, s in zip(order, seeds, strict=True))
        return BlockDrawn(
            block=name,
            number=number,
            fence=self.state.epoch * 1_000_000 + number,
            node=uid,
            purpose=purpose,
            seeds=seeds,
            candidates=tuple(order),
            reference=reference,
            experiments=tuple(experiments),
            trials=trials,
            at=now,
        )

    def _outstanding(self) -> list[Drawn]:
        return [drawn for drawn in self.state.blocks.values() if drawn.outstanding]

    # --- the end ---

    def stop_reason(self, now: float) -> str:
        """Why exploration is over; empty while it is not."""
        stop, caps, state = self.config.stop, self.config.caps, self.state
        if state.baseline_failure and not state.noise:
            return f"the baseline itself fails: {state.baseline_failure}"
        tokens = state.spent.input_tokens + state.spent.output_tokens
        rules = (
            (
                state.elapsed_s(now) >= 60 * (stop.wall_minutes - stop.final_minutes),
                f"wall time of {stop.wall_minutes:g} minutes",
            ),
            (0 < stop.promotions <= len(state.promotions), f"{stop.promotions} promotions"),
            (0 < stop.trials <= state.trials, f"{stop.trials} trials"),
            (0 < caps.dollars <= state.spent.dollars, f"cap of {caps.dollars:g} dollars"),
            (0 < caps.tokens <= tokens, f"cap of {caps.tokens} tokens"),
            (0 < caps.node_hours <= state.trial_s / 3600, f"cap of {caps.node_hours:g} node-hours"),
        )
        return next((text for holds, text in rules if holds), "")

    def _open_business(self) -> bool:
        """Confirmations in flight, and accepted claims on their way to the forge, come before the final comparison."""
        state = self.state
        if any(d.fact.purpose == "confirm" for d in self._outstanding()):
            return True
        return any(claim.base == state.champion for claim in state.landing())

    def ready_to_end(self, now: float) -> bool:
        """Nothing is left but to empty the nodes' spools."""
        if not self.stop_reason(now):
            return False
        state, wanted = self.state, self.config.decision.final_seeds
        if state.elapsed_s(now) > 60 * OVERTIME * self.config.stop.wall_minutes:
            return True
        if self._outstanding() or self._open_business():
            return False
        compared = len(state.final) >= wanted or state.final_failures >= wanted
        return compared or state.champion == state.baseline

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
        brief = self._brief(uid, now)
        return Orders(
            epoch=self.state.epoch,
            acks=tuple(acks),
            admissions=tuple(self._answers(uid, presence.report)),
            blocks=tuple(self._blocks_of(uid, presence.report)),
            brief=None if brief.version == presence.report.brief else brief,
            drain=drain,
        )

    def _answers(self, uid: str, report: Report) -> Iterable[Admission]:
        for proposal in report.proposals:
            twin = self.state.experiments.get(proposal.idea)
            if (uid, proposal.idea) in self._refused:
                yield Admission(proposal.idea, admitted=False, reason=self._refused[(uid, proposal.idea)])
            elif twin is not None and twin.admitted.node == uid:
                yield Admission(proposal.idea, admitted=True)

    def _blocks_of(self, uid: str, report: Report) -> Iterable[Block]:
        for drawn in self._outstanding():
            if drawn.fact.node == uid and drawn.fact.block not in report.holding:
                yield Block(drawn.fact.block, drawn.fact.fence, tuple(self._specs(drawn.fact)))

    def _specs(self, block: BlockDrawn) -> Iterable[TrialSpec]:
        limits = self._limits(self.state.nodes[block.node].platform.id)
        by_candidate = {
            c.candidate: c.experiment for c in self.state.claims.values() if c.experiment in block.experiments
        }
        for trial, candidate, seed in zip(block.trials, block.candidates, block.seeds, strict=True):
            experiment = by_candidate.get(candidate, "") if candidate != block.reference else ""
            yield TrialSpec(trial, candidate, seed, block.purpose, self.state.files[candidate], limits, experiment)

    def _limits(self, platform: str) -> Limits:
        nodes, baseline = self.config.nodes, self.state.baseline_cpu_s.get(platform)
        cpu_s = nodes.trial_wall_s if baseline is None else self.cpu_limit * baseline
        return Limits(cpu_s=cpu_s, wall_s=nodes.trial_wall_s, memory_mb=nodes.memory_mb)

    def _brief(self, uid: str, now: float) -> Brief:
        platform = self.state.nodes[uid].platform.id if uid in self.state.nodes else ""
        noise = self.state.noise.get(platform)
        explore = not self.stop_reason(now)
        urgent = (
            self.state.champion,
            self.program,
            platform,
            None if noise is None else noise.sd,
            explore,
            sum(claim.verdict is not None for claim in self.state.claims.values()),
            len(self.state.experiments) // BRIEF_EVERY,
        )
        cached = self._briefs.get(uid)
        if cached is None or cached[0] != urgent:
            cached = (urgent, self._write_brief(uid, platform, explore))
            self._briefs[uid] = cached
        return cached[1]

    def _write_brief(self, uid: str, platform: str, explore: bool) -> Brief:
        state = self.state
        mine = [c for c in state.claims.values() if c.node == uid]
        noise = state.noise.get(platform)
        brief = Brief(
            version="",
            champion=state.champion,
            champion_files=state.files[state.champion],
            program=self.program,
            noise=None if noise is None else noise.sd,
            screen_margin=self.rule.screen_margin,
            cpu_limit_s=self._limits(platform).cpu_s,
            open_claims=tuple(c.experiment for c in state.open_claims()),
            verdicts={
                c.experiment: _word(c) for c in mine[-20:] if c.verdict and state.latest_claim(c.experiment) is c
            },
            tried=self._tried(),
            in_flight=tuple(e.admitted.proposal.hypothesis for e in self._recent() if e.status == "open"),
            explore=explore,
        )
        return replace(brief, version=digest(repr(brief)))

    def _recent(self) -> list[Experiment]:
        return list(self.state.experiments.values())[-TRIED_SHOWN:]

    def _tried(self) -> tuple[Tried, ...]:
        return tuple(self._tried_line(e) for e in self._recent() if e.status != "open")

    def _tried_line(self, experiment: Experiment) -> Tried:
        proposal = experiment.admitted.proposal
        parent = self.state.files.get(proposal.parent, {})
        return Tried(proposal.hypothesis, experiment.status, experiment.gain, describe_edit(parent, proposal.files))


def _word(claim: Claim) -> str:
    verdict = claim.verdict
    if verdict is None:
        return ""
    return "accepted" if verdict.accepted else f"rejected: {verdict.reason}"
