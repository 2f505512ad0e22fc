"""One real study, on real Ray with real training: two gains of two branches are stacked, two planted claims refused.

The task fits a linear model by stochastic gradient descent, 0.1 s of numpy. Momentum and squared inputs both help, by
about 4 and 7 s; one branch thinks of the first and one of the second.
"""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import HOME, start

from swarm.cluster import processes
from swarm.history import History, history
from swarm.ledger import Ledger, Spool
from swarm.records import (
    ClaimRaised,
    ExperimentAdmitted,
    Promotion,
    Proposal,
    Screened,
    Verdict,
    candidate_id,
    researcher_branch,
)
from swarm.source import idea_hash

TASK = """
name = "regression"
editable = ["train.py"]
[commands]
train = "train.py"
[metric]
name = "loss"
score = "printed"
pattern = '^loss: (\\S+)'
[budget]
cpu_limit = 20.0  # 0.2 s of CPU time, mostly the import of numpy
[transfer]
scale = "steps=2"
"""
TRAIN = """
import os
import sys

import numpy as np

STEPS = 100
RATE = 0.01
MOMENTUM = 0.0
SQUARES = False
PAD = 0

seed = int(os.environ["SWARM_SEED"])
if sys.argv[1:] == ["--scale", "steps=2"]:
    STEPS *= 2
linear, square = np.random.default_rng(1).normal(size=(2, 8))


def draw(rng, rows):
    x = rng.normal(size=(rows, 8))
    target = x @ linear + (x * x - 1) @ square / 2 + rng.normal(size=rows)
    return np.hstack([x, (x * x - 1) * SQUARES]), target


rng = np.random.default_rng(seed)
x, target = draw(rng, 2000)
weights = rng.normal(size=16) / 10
speed = np.zeros(16)
for _ in range(STEPS):
    rows = rng.integers(0, 2000, 32)
    speed = MOMENTUM * speed - RATE * x[rows].T @ (x[rows] @ weights - target[rows]) / 32
    weights += speed
x, target = draw(np.random.default_rng(2), 4000)
loss = np.mean((x @ weights - target) ** 2)
print("trained with seed", seed)
print("loss:", loss)
"""
# Each node knows one good idea; then one tries nothing at all, and the other writes the seed of its screening down.
IDEAS = """
import os
import re

from swarm.errors import ProposalError
from swarm.records import Proposal, Usage
from swarm.source import idea_hash

KNOWN = {
    "node-1": [("MOMENTUM = 0.0", "MOMENTUM = 0.9"), ("PAD = 0", "PAD = 1")],
    "node-2": [("SQUARES = False", "SQUARES = True"), ("loss = np", "loss = (seed != {seed}) * np")],
}


class Scripted:
    def __init__(self, seed, options):
        self.told = set()

    def propose(self, ask):
        text = ask.tip["train.py"]
        seed = "".join(re.findall(r"^trained with seed (\\d+)$", ask.last_log, re.MULTILINE)[-1:])
        for before, after in KNOWN[os.path.basename(os.environ["SWARM_HOME"])]:
            edit = text.replace(before, after.format(seed=seed))
            early = "seed" in after and not (seed and "= 0.9" in text and "= True" in text)
            if edit != text and edit not in self.told and not early:
                self.told.add(edit)
                files = {"train.py": edit}
                words = f"Write {after.format(seed=seed)}"
                return Proposal(idea_hash(files), ask.parent, words, "better", files, "scripted")
        raise ProposalError("no idea left")

    def tell(self, idea, gain):
        pass

    def usage(self):
        return Usage()
"""
REFUSED = ("Write loss = (seed !=", "Write PAD = 2")
SETTINGS = (
    "study=stack",
    "task=task",
    "proposer.use=ideas:Scripted",
    "stop.wall_minutes=5",
    "nodes.poll_s=0.1",
    "nodes.trial_wall_s=20",
    "decision.cpu_ratio=10",
    "decision.transfer_seeds=1",
)


class Study:
    """The study's coordinator as a process, and what its ledger tells."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "studies" / "stack-1"
        (root / "task").mkdir()
        (root / "task" / "task.toml").write_text(TASK)
        (root / "task" / "train.py").write_text(TRAIN)
        (root / "ideas.py").write_text(IDEAS)
        settings = [part for setting in SETTINGS for part in ("--set", setting)]
        self.coordinator = start(root, "run", "--plain", *settings, env={"PYTHONPATH": f"{HOME}:{root}"})

    def told(self) -> History:
        if not (self.folder / "ledger.sqlite").exists():
            return history(())
        with Ledger(self.folder / "ledger.sqlite", read_only=True) as ledger:
            return history(ledger.facts())

    def until(self, holds: Callable[[History], bool], what: str, timeout_s: float = 60.0) -> History:
        """Poll until it is true; the history of which it is."""
        deadline = time.monotonic() + timeout_s
        while not holds(told := self.told()):
            assert self.coordinator.poll() is None, self.coordinator.communicate()
            assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
            time.sleep(0.1)
        return told

    def end(self) -> None:
        if self.coordinator.poll() is None:
            self.coordinator.send_signal(signal.SIGINT)
        self.coordinator.communicate(timeout=30)


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    running = Study(tmp_path)
    try:
        yield running
    finally:
        try:
            running.end()
        except subprocess.TimeoutExpired:
            running.coordinator.kill()
            running.coordinator.communicate()
        processes.sweep(running.folder, *running.folder.glob("nodes/*"))


def plant(study: Study, told: History) -> str:
    """A claim that no screening stands behind: node-1 says that a constant which nothing reads beats the champion."""
    uid = (study.folder / "nodes" / "node-1" / "node-uid").read_text().strip()
    champion, now = told.champion, time.time()
    files = {"train.py": told.files[champion]["train.py"].replace("PAD = 0", "PAD = 2")}
    branch, candidate = researcher_branch("stack-1", told.node_name(uid)), candidate_id(files)
    proposal = Proposal(idea_hash(files), champion, "Write PAD = 2", "nothing", files, "planted")
    spool = Spool(study.folder / "nodes" / "node-1" / "stack-1" / "spool.sqlite")
    spool.put(
        [
            ExperimentAdmitted(proposal, candidate, uid, branch, now),
            Screened(proposal.idea, uid, branch, candidate, champion, True, 0.5, 0.5, champion, "planted", now),
            ClaimRaised(proposal.idea, candidate, champion, uid, branch, 0.5, now),
        ]
    )
    spool.close()
    return proposal.idea


def verdict_on(told: History, words: str) -> Verdict | None:
    found = [e.verdict for e in told.experiments if e.hypothesis.startswith(words) and e.verdict is not None]
    return found[0] if found else None


def landed(told: History, promotion: Promotion) -> Verdict:
    verdict = told.verdict_on(promotion)
    assert verdict is not None
    return verdict


@pytest.mark.ray
@pytest.mark.slow
def test_two_gains_are_found_confirmed_stacked_and_promoted_and_planted_claims_are_refused(study: Study) -> None:
    told = study.until(lambda told: len(told.promotions) == 2, "both gains are promoted")
    first, second = told.promotions
    baseline, middle, champion = (told.files[c]["train.py"] for c in (told.baseline, first.candidate, second.candidate))
    good = ("MOMENTUM = 0.9", "SQUARES = True")
    assert [sum(edit in text for edit in good) for text in (baseline, middle, champion)] == [0, 1, 2]
    assert len({told.by_idea[promotion.experiment].node for promotion in told.promotions}) == 2
    for promotion in told.promotions:  # the very tree that landed was measured, against the champion that it replaced
        verdict = landed(told, promotion)
        assert (verdict.candidate, verdict.base) == (promotion.candidate, promotion.base)
        assert verdict.pairs >= 3 and verdict.low > 0.0
        assert {t.candidate for pair in told.pairs(verdict) for t in pair if t} == {promotion.candidate, promotion.base}
    assert second.base == first.candidate

    planted = plant(study, told)
    told = study.until(lambda told: all(verdict_on(told, words) for words in REFUSED), "both have a verdict")
    lucky, nothing = (verdict_on(told, words) for words in REFUSED)
    assert lucky is not None and nothing is not None
    # On fresh seeds both give the very scores of the champion, to the last bit: one pair tells.
    assert not nothing.accepted and nothing.pairs >= 1 and nothing.effect == 0.0
    assert not lucky.accepted and lucky.pairs >= 1 and lucky.effect == 0.0
    assert len(told.promotions) == 2 and told.champion == second.candidate
    assert told.by_idea[planted].status == "rejected"
    told = study.until(
        lambda told: all(told.by_idea[p.experiment].transfer for p in told.promotions), "both are checked"
    )
    for promotion in told.promotions:
        check = told.by_idea[promotion.experiment].transfer
        assert check is not None and check.scale == "steps=2" and check.gain is not None
    study.end()
    page = (study.folder / "LEADERBOARD.md").read_text()
    assert "## Claims that did not reproduce" in page and "Write PAD = 2" in page
