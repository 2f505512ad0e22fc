"""Made-up ledgers for tests of what is told from facts: a Scribe writes them down as a study would.

Everything is deterministic. Scores come from the test that asks; nothing here decides what is kept or accepted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from swarm.records import (
    BlockDrawn,
    ClaimRaised,
    CoordinatorStarted,
    Direction,
    ExperimentAdmitted,
    Fact,
    Failure,
    Files,
    HoldoutAnswered,
    Measurement,
    NodeInfo,
    NodeJoined,
    Outcome,
    Platform,
    Promotion,
    Proposal,
    ProposalRefused,
    Purpose,
    Screened,
    Spent,
    StudyFinished,
    StudyOpened,
    TrialDisturbed,
    TrialFinished,
    Usage,
    Verdict,
    candidate_id,
    digest,
)

START = 1_767_225_600.0  # 2026-01-01 00:00 UTC
PLATFORM = Platform("cpu, 1 thread", "torch 2.13.0+cpu, python 3.11", "data", "204800 tokens")
BASELINE: Files = {"train.py": "LR = 0.01\nWIDTH = 64\nDEPTH = 2\nprint('hello')\n"}
TRIAL_S = 8.0


@dataclass
class Scribe:
    """Writes facts in the order in which a ledger would hold them."""

    direction: Direction = "minimize"
    self_reported: bool = False
    baseline: float = 2.20
    sandbox_level: int = 1
    facts: list[Fact] = field(default_factory=list)
    now: float = START
    champion: str = ""
    files: dict[str, Files] = field(default_factory=dict)
    free_at: dict[str, float] = field(default_factory=dict)

    def open(self, study: str = "laptop-1", nodes: Sequence[str] = ("ant", "bee")) -> None:
        """The first facts: the study, its coordinator, its nodes."""
        self.champion = candidate_id(BASELINE)
        self.files[self.champion] = BASELINE
        opened = StudyOpened(
            study, 0, "val_bpb", self.direction, self.champion, BASELINE, '{"task": "baseline"}', START
        )
        self.facts += [opened, CoordinatorStarted(1, START)]
        for name in nodes:
            info = NodeInfo(f"uid-{name}", name, "laptop", PLATFORM, self.sandbox_level, "bubblewrap")
            self.facts.append(NodeJoined(info, START))
            self.free_at[info.uid] = START

    @property
    def better(self) -> float:
        """The sign that turns a gain into a change of the score."""
        return -1.0 if self.direction == "minimize" else 1.0

    def calibrate(self, scores: Sequence[float]) -> None:
        """The baseline on its own seeds."""
        for number, score in enumerate(scores):
            self.trial("calibrate", self.champion, 1000 + number, score, node=f"uid-{('ant', 'bee')[number % 2]}")

    def trial(
        self,
        purpose: Purpose,
        candidate: str,
        seed: int,
        outcome: float | Outcome,
        *,
        node: str = "uid-ant",
        experiment: str = "",
        block: str = "",
    ) -> str:
        """A finished trial; a plain number is its score."""
        start = max(self.free_at.get(node, self.now), self.now - TRIAL_S)
        self.free_at[node] = start + TRIAL_S
        self.now = max(self.now, start + TRIAL_S)
        name = digest("trial", purpose, candidate, seed, node, len(self.facts))
        result = self.measured(outcome) if isinstance(outcome, float) else outcome
        self.facts.append(
            TrialFinished(
                trial=name,
                candidate=candidate,
                experiment=experiment,
                seed=seed,
                purpose=purpose,
                node=node,
                platform=PLATFORM.id,
                sandbox_level=self.sandbox_level,
                block=block,
                fence=1,
                started_at=start,
                ended_at=start + TRIAL_S,
                outcome=result,
                log="step 100\n",
            )
        )
        return name

    def measured(self, score: float) -> Measurement:
        return Measurement(score, 5.0, 512.0, 1.0, "artifact", self_reported=self.self_reported)

    def admit(self, hypothesis: str, edit: str, *, node: str = "uid-ant", parent: str = "") -> ExperimentAdmitted:
        """An idea: one more line at the end of its parent's train.py."""
        parent = parent or self.champion
        files = {"train.py": f"{self.files[parent]['train.py']}{edit}\n"}
        proposal = Proposal(digest("idea", edit), parent, hypothesis, "a gain", files, "tuner")
        fact = ExperimentAdmitted(proposal, candidate_id(files), node, f"swarm/laptop-1/{node[4:]}", self.now)
        self.files[fact.candidate] = files
        self.facts.append(fact)
        return fact

    def screen(self, idea: ExperimentAdmitted, gain: float | Failure, *, kept: bool | None = None) -> None:
        """Its screening: a gain over the champion on one seed, or a failure."""
        outcome = self.baseline + self.better * gain if isinstance(gain, float) else gain
        self.trial("screen", idea.candidate, 7, outcome, node=idea.node, experiment=idea.proposal.idea)
        value = gain if isinstance(gain, float) else None
        keep = (value is not None and value > 0) if kept is None else kept
        reason = "better than the branch tip" if keep else "not better than the branch tip"
        if isinstance(gain, Failure):
            reason = f"failed: {gain.reason}: {gain.message}"
        self.facts.append(
            Screened(
                experiment=idea.proposal.idea,
                node=idea.node,
                branch=idea.branch,
                candidate=idea.candidate,
                tip=idea.proposal.parent,
                kept=keep,
                gain=value,
                gain_over_champion=value,
                champion=self.champion,
                reason=reason,
                at=self.now,
            )
        )

    def claim(self, idea: ExperimentAdmitted, gain: float) -> None:
        name = idea.proposal.idea
        self.facts.append(ClaimRaised(name, idea.candidate, self.champion, idea.node, idea.branch, gain, self.now))

    def pairs(
        self, purpose: Purpose, idea: str, candidate: str, reference: str, runs: Sequence[tuple[float, float | Failure]]
    ) -> tuple[str, ...]:
        """Blocks of two trials each: the reference's and the candidate's score. Gives the evidence of a verdict."""
        evidence: list[str] = []
        for number, (before, after) in enumerate(runs):
            seed, node = 5000 + len(self.facts), f"uid-{('bee', 'ant')[number % 2]}"
            block, at = digest("block", len(self.facts)), len(self.facts)
            both = (
                self.trial(purpose, reference, seed, before, node=node, block=block),
                self.trial(purpose, candidate, seed, after, node=node, block=block, experiment=idea),
            )
            ideas = (idea,) if idea else ()
            drawn = BlockDrawn(
                block, at, 1, node, purpose, (seed, seed), (reference, candidate), reference, ideas, both, self.now
            )
            self.facts.insert(at, drawn)
            evidence += both
        return tuple(evidence)

    def judge(
        self,
        idea: ExperimentAdmitted,
        evidence: tuple[str, ...],
        effect: float,
        low: float,
        high: float,
        *,
        accepted: bool,
        reason: str = "",
    ) -> None:
        pairs = len(evidence) // 2
        word = "accepted" if accepted else "rejected"
        self.facts.append(
            Verdict(
                experiment=idea.proposal.idea,
                candidate=idea.candidate,
                base=self.champion,
                accepted=accepted,
                effect=effect,
                low=low,
                high=high,
                pairs=pairs,
                likelihood_ratio=210.0 if accepted else 0.05,
                bar=36.0,
                noise=0.0061,
                evidence=evidence,
                nodes=min(2, pairs),
                reason=reason or f"{word}: better on {pairs if accepted else 1} of {pairs} fresh pairs",
                at=self.now,
            )
        )

    def answer(self, idea: ExperimentAdmitted, gain: float | None) -> None:
        """What the holdout says of it; no gain: it is refused."""
        number = 1 + sum(isinstance(fact, HoldoutAnswered) for fact in self.facts)
        told = "two thirds of its gain on the holdout split, on 3 of 3 pairs"
        self.facts.append(
            HoldoutAnswered(
                number=number,
                experiment=idea.proposal.idea,
                candidate=idea.candidate,
                base=self.champion,
                passed=gain is not None,
                gain=gain,
                step=0.01,
                pairs=3,
                reason=f"did not keep {told}" if gain is None else f"kept {told}",
                at=self.now,
            )
        )

    def promote(self, idea: ExperimentAdmitted) -> None:
        number = 1 + sum(isinstance(fact, Promotion) for fact in self.facts)
        commit = digest("commit", idea.candidate)
        self.facts.append(
            Promotion(number, idea.proposal.idea, idea.candidate, self.champion, commit, f"request {number}", self.now)
        )
        self.champion = idea.candidate

    def refuse(self, hypothesis: str) -> None:
        fact = ProposalRefused(digest("idea", hypothesis), "uid-bee", hypothesis, "the same syntax tree", self.now)
        self.facts.append(fact)

    def disturb(self, node: str = "uid-bee") -> None:
        failure = Failure("machinery", "lost", "killed from outside")
        self.facts.append(TrialDisturbed(digest("lost", len(self.facts)), node, 1, failure, self.now))

    def spend(self, dollars: float) -> None:
        self.facts.append(Spent("uid-ant", len(self.facts), Usage(1000, 200, dollars), self.now))

    def finish(
        self,
        reason: str = "wall time of 8.5 minutes",
        *,
        gain: float | None = None,
        low: float | None = None,
        high: float | None = None,
        pairs: int = 0,
    ) -> None:
        self.facts.append(StudyFinished(reason, self.champion, gain, low, high, pairs, 0.97, self.now))


CRASH = Failure("candidate", "crash", "RuntimeError: shapes (64, 3) and (4, 64) do not match")
CALIBRATION = (2.2031, 2.1950, 2.2052, 2.1988, 2.2010, 2.1967, 2.2044, 2.1978)


def small_study(*, direction: Direction = "minimize", self_reported: bool = False) -> Scribe:
    """About sixty facts: seven ideas, one promoted, one rejected, one claimed, one kept, two dropped, one crashed."""
    scribe = Scribe(direction=direction, self_reported=self_reported)
    better, base = scribe.better, scribe.baseline
    scribe.open()
    scribe.calibrate(CALIBRATION)
    warmup = scribe.admit("Shorter warmup: WARMUP 0.2 to 0.1", "WARMUP = 0.1")
    scribe.screen(warmup, -0.0040)
    smear = scribe.admit("Switch SMEAR on", "SMEAR = True", node="uid-bee")
    scribe.screen(smear, 0.0310)
    scribe.claim(smear, 0.0310)
    runs = [(base + d, base + d + better * g) for d, g in ((0.003, 0.030), (-0.004, 0.021), (0.001, 0.027))]
    evidence = scribe.pairs("confirm", smear.proposal.idea, smear.candidate, scribe.champion, runs)
    scribe.judge(smear, evidence, 0.0221, 0.0150, 0.0370, accepted=True)
    if not self_reported:
        scribe.answer(smear, 0.02)
    scribe.promote(smear)
    scribe.screen(scribe.admit("Twice the DEPTH", "DEPTH = 4"), CRASH)
    scribe.screen(scribe.admit("Half the WIDTH", "WIDTH = 32", node="uid-bee"), -0.2500)
    lucky = scribe.admit("Raise LR to 0.02", "LR = 0.02")
    scribe.screen(lucky, 0.0280)
    scribe.claim(lucky, 0.0280)
    level = base + better * 0.026
    no_gain: list[tuple[float, float | Failure]] = [(level, level - better * 0.004), (level, level + better * 0.001)]
    evidence = scribe.pairs("confirm", lucky.proposal.idea, lucky.candidate, scribe.champion, no_gain)
    scribe.judge(lucky, evidence, -0.0015, -0.0110, 0.0080, accepted=False)
    scribe.refuse("Raise LR to 0.02")
    scribe.disturb()
    scribe.spend(0.25)
    kept = scribe.admit("Softer cap on logits", "CAP = 20", node="uid-bee")
    scribe.screen(kept, 0.0275)
    alibi = scribe.admit("Switch ALIBI on", "ALIBI = True")
    scribe.screen(alibi, 0.0390)
    scribe.claim(alibi, 0.0390)
    return scribe


def finished_study(*, direction: Direction = "minimize", self_reported: bool = False) -> Scribe:
    """The small study with its final comparison."""
    scribe = small_study(direction=direction, self_reported=self_reported)
    base, better = scribe.baseline, scribe.better
    opened = scribe.facts[0]
    assert isinstance(opened, StudyOpened)
    runs = [(base + d, base + d + better * g) for d, g in ((0.002, 0.024), (-0.003, 0.029), (0.0, 0.022))]
    scribe.pairs("final", "", scribe.champion, opened.baseline, runs)
    scribe.finish(gain=0.0250, low=0.0161, high=0.0339, pairs=3)
    return scribe


def long_study(ideas: int = 120, *, direction: Direction = "minimize", seed: int = 3) -> Scribe:
    """Many ideas and a handful of promotions, for pages that have to stay readable."""
    scribe, dice = Scribe(direction=direction), Random(seed)
    scribe.open("overnight-4")
    scribe.calibrate([scribe.baseline + dice.gauss(0, 0.0043) for _ in range(8)])
    start, total = scribe.baseline, 0.0
    for number in range(ideas):
        idea = scribe.admit(
            f"Idea {number}: change WARMUP and LR", f"X{number} = 1", node=f"uid-{dice.choice(['ant', 'bee'])}"
        )
        if dice.random() < 0.07:
            scribe.screen(idea, CRASH)
            continue
        true = 0.05 * dice.random() if dice.random() < 0.10 else -abs(dice.gauss(0, 0.02)) * dice.choice([0.2, 1, 5])
        seen = true + dice.gauss(0, 0.006)
        scribe.screen(idea, total + seen, kept=seen > 0)
        if seen <= 0.004:
            continue
        scribe.claim(idea, seen)
        base = start + scribe.better * total
        runs = [(base + d, base + d + scribe.better * (true + dice.gauss(0, 0.006))) for d in (0.002, -0.001, 0.003)]
        evidence = scribe.pairs("confirm", idea.proposal.idea, idea.candidate, scribe.champion, runs)
        good = true > 0.012
        scribe.judge(idea, evidence, 0.85 * true, true - 0.009, true + 0.009, accepted=good)
        if good:
            scribe.promote(idea)
            total += true
    scribe.finish(gain=total, low=0.8 * total, high=1.2 * total, pairs=5)
    return scribe


# A training script with everything that reading and joining sources must keep in its place.
SCRIPT = '''\
#!/usr/bin/env python
"""What this does."""
import math

# ---- Optimisation, which has
# a long heading.
# The step.
RATE = 1e-3  # range: 1e-4..1e-1 log
DEPTH: int = 2   # choices: 1, 2, 3; more is slow
USE_BIAS = False
ACT = 'relu'  # choices: relu, gelu


class Model:
    """A model."""

    # How wide.
    width = 4

    def one(self):
        return 1

    # The second.
    @property
    def two(self):
        return 2


def train():
    return math.pi


if __name__ == "__main__":
    train()
'''
