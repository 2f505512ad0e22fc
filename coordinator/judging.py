"""What each open Claim gets now: its Verdict, a place on the champion that moved, or more Pairs. Pure.

What its Pairs say is up to `coordinator/reproduction`; here stands what else can end a Claim, in which order. It does
not know leases, clocks or the forge.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

from coordinator.leases import BLOCKS_IN_VAIN, in_vain
from coordinator.panel import decide_on, rule_on_panel
from coordinator.reproduction import Accepted, Decision, Undecided, decide
from coordinator.shams import judged
from coordinator.stacking import is_final, why_closed
from coordinator.state import Claim, State
from coordinator.verdicts import carry_over, closed, verdict_of
from swarm.config import Config
from swarm.records import Fact, Verdict
from swarm.trust import level_needed, too_open

CHAMPION_BEFORE = "it was the champion before; whether it is better is for the comparison of champions"


@dataclass(frozen=True)
class Judge:
    """Judges the open Claims of one study."""

    state: State
    config: Config
    cpu_counts: bool

    def facts(self, gone: Collection[str], now: float) -> list[Fact]:
        """What is to be recorded of them now; `gone` are Platforms without a node."""
        in_flight = {
            (experiment, drawn.fact.reference)
            for drawn in self.state.outstanding.values()
            for experiment in drawn.fact.experiments
        }
        claims = self.state.open_claims.values()
        told = ((claim, self._fact(claim, claim.key in in_flight, gone, now)) for claim in claims)
        return [
            judged(claim, fact, now) if claim.sham and isinstance(fact, Verdict) else fact
            for claim, fact in told
            if fact is not None
        ]

    def too_open(self, sandbox: str, level: int) -> str:
        """Why a run in this sandbox decides nothing; empty where it does."""
        return "" if self.config.nodes.trust_code else too_open(sandbox, level, level_needed(self.config))

    def _fact(self, claim: Claim, in_flight: bool, gone: Collection[str], now: float) -> Fact | None:
        if claim.candidate in (claim.base, self.state.champion):
            return closed(claim, "the champion already contains this idea", now)
        if self.state.was_champion(claim.candidate):
            return closed(claim, CHAMPION_BEFORE, now)
        if claim.failed:
            return closed(claim, claim.failed, now)
        if claim.sham and claim.platform in gone:
            return closed(replace(claim, pairs=[]), "its Platform has no nodes any more", now)  # it decided nothing
        if claim.twin:
            return closed(claim, f"experiment {claim.twin} comes to the same tree, and was claimed before", now)
        if claim.ideas and (reason := why_closed(self.state, claim)):
            return closed(claim, reason, now)
        if claim.base != self.state.champion and not claim.pairs and not in_flight:
            return carry_over(self.state, claim, now)
        if not in_flight and in_vain(claim):
            return closed(claim, f"{BLOCKS_IN_VAIN} blocks for it were lost or gave no pair", now)
        return self._weighed(claim, now)

    def _weighed(self, claim: Claim, now: float) -> Fact | None:
        """What its Pairs say; nothing while they leave it undecided."""
        if len(claim.pairs) == claim.weighed or claim.ideas and not is_final(self.state, claim):
            return None
        decision = self._decision(claim)
        if isinstance(decision, Undecided):
            claim.weighed = len(claim.pairs)
            return None
        if isinstance(decision, Accepted) and (objection := self._too_slow(claim) or self._badly_kept(claim)):
            return closed(claim, objection, now)
        return verdict_of(claim, decision, now)

    def _decision(self, claim: Claim) -> Decision:
        if claim.weighing is not None:
            rule = rule_on_panel(self.config.decision.dial)
            return decide_on(claim.weighing.panel, self.state.runs_of(claim), claim.bar, rule)
        return decide([pair.gain for pair in claim.pairs], claim.noise, claim.bar, claim.rule)

    def _too_slow(self, claim: Claim) -> str:
        """CPU time over the study's baseline, chained through the champion's run of each Pair.

        So load cancels where both ran in one Block; on a panel the champion's run may be an older one.
        """
        if not self.cpu_counts:
            return ""
        ratio = sum(p.candidate_cpu_s for p in claim.pairs) / max(1e-9, sum(p.champion_cpu_s for p in claim.pairs))
        ratio *= self.state.cpu_ratio.get(claim.base, 1.0)
        allowed = self.config.decision.cpu_ratio
        return "" if ratio <= allowed else f"it takes {ratio:.2f}x the baseline's CPU time, {allowed:g}x is allowed"

    def _badly_kept(self, claim: Claim) -> str:
        """Whether a run that accepts it was less isolated than the code asks for: it may have made its own score."""
        return self.too_open("of one of its runs", min(pair.sandbox_level for pair in claim.pairs))
