"""A candidate that ends itself on seeds, or texts, that it dislikes: forgiven once, as anybody may have done it."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import toy_task as toy
from desk import BASELINE, Desk, edited, proposal
from test_attacks import WALLED
from test_sandbox import Kind, available

from coordinator.pairs import FORGIVEN_KILLS
from node.sandbox.bare import Bare
from node.trial import run_trial
from swarm.records import BlockDrawn, Failure, HoldoutAnswered, TransferChecked, TrialDisturbed, Verdict, candidate_id
from swarm.scale import Scale

IDEA = edited(BASELINE, A=1)
GOOD = {candidate_id(IDEA): 1.5}
KILLED = Failure("machinery", "killed", "SIGKILL")


# --- on the node -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Bare, *WALLED])
@pytest.mark.parametrize("code", [128 + number for number in (signal.SIGKILL, signal.SIGTERM)])
def test_a_code_that_looks_like_a_signal_is_the_candidates_own(kind: Kind, code: int, tmp_path: Path) -> None:
    workshop = replace(toy.workshop_at(tmp_path, toy.answers_task(tmp_path / "task")), sandbox=available(kind))
    outcome = run_trial(toy.spec_of(f"{toy.HONEST}\nsys.exit({code})"), workshop=workshop).outcome
    assert isinstance(outcome, Failure)
    assert (outcome.blame, outcome.reason) == ("candidate", "crash")


@pytest.mark.parametrize("kind", [Bare, *WALLED])
def test_while_it_is_scored_likewise(kind: Kind, tmp_path: Path) -> None:
    for habit, told in (
        ("sys.exit(137)", ("candidate", "scoring")),
        ("os.kill(os.getpid(), 9)", (KILLED.blame, KILLED.reason)),
    ):
        script = toy.ASKED + f"    import os; {habit}\n"
        root = tmp_path / told[0]
        workshop = replace(toy.workshop_at(root, toy.answers_task(root / "task", script)), sandbox=available(kind))
        outcome = run_trial(toy.spec_of(toy.HONEST), workshop=workshop).outcome
        assert isinstance(outcome, Failure)
        assert (outcome.blame, outcome.reason) == told


@pytest.mark.parametrize("end", ["shutil.rmtree(out)", "out.chmod(0)", "out.chmod(0o300)"])
def test_an_out_folder_that_is_gone_or_shut_breaks_a_rule(end: str, tmp_path: Path) -> None:
    if "chmod" in end and os.getuid() == 0:
        pytest.skip("root reads whatever its mode is")
    train = f"{toy.HONEST}\nimport os, shutil\nout = Path(options['--out'])\n{end}\n"
    workshop = toy.workshop_at(tmp_path, toy.answers_task(tmp_path / "task"))
    outcome = run_trial(toy.spec_of(train), workshop=workshop).outcome
    assert isinstance(outcome, Failure)
    assert (outcome.blame, outcome.reason) == ("candidate", "rule")


# --- in the coordinator ----------------------------------------------------------------------------------


def claimed() -> Desk:
    desk = Desk()
    desk.calibrate("ant", "bee", "cat")
    desk.claim("ant", proposal(IDEA))
    return desk


def test_where_a_larger_scale_is_checked_likewise() -> None:
    desk = Desk(scale=Scale("depth", 2))
    desk.calibrate("ant", "bee", "cat")
    desk.claim("ant", proposal(IDEA))
    desk.confirm(GOOD)
    for _ in range(FORGIVEN_KILLS + 1):
        assert not desk.of(TransferChecked)
        dies(desk, desk.outstanding("transfer")[0])
    (check,) = (fact for fact in desk.of(TransferChecked) if isinstance(fact, TransferChecked))
    assert check.mark == "unknown" and "killed on 2 fresh seeds" in check.reason


def dies(desk: Desk, block: BlockDrawn, failure: Failure = KILLED) -> None:
    """The candidate's run of a block is killed, and its node lets go of the block."""
    trial = block.trials[block.candidates.index(candidate_id(IDEA))]
    desk.report(desk.heard(block.node, holding=(block.block,)))
    desk.report(desk.heard(block.node, facts=(TrialDisturbed(trial, block.node, 1, failure, desk.now),)))


def verdicts(desk: Desk) -> list[Verdict]:
    return [fact for fact in desk.of(Verdict) if isinstance(fact, Verdict)]


def test_one_kill_is_forgiven_and_the_next_one_is_a_crash() -> None:
    desk = claimed()
    for _ in range(FORGIVEN_KILLS):
        dies(desk, desk.outstanding("confirm")[0])
        assert not verdicts(desk), "another seed is drawn for it"
    dies(desk, desk.outstanding("confirm")[0])
    (verdict,) = verdicts(desk)
    assert not verdict.accepted and verdict.reason == "it was killed on 2 fresh seeds"


def test_one_kill_does_not_cost_a_good_idea_its_verdict() -> None:
    desk = claimed()
    dies(desk, desk.outstanding("confirm")[0])
    desk.confirm(GOOD)
    assert verdicts(desk)[0].accepted


def test_what_the_machine_lost_is_drawn_again_more_often() -> None:
    desk = claimed()
    for _ in range(FORGIVEN_KILLS + 2):
        dies(desk, desk.outstanding("confirm")[0], Failure("machinery", "lost", "no memory"))
    desk.confirm(GOOD)
    assert verdicts(desk)[0].accepted


@pytest.mark.parametrize("kills", [FORGIVEN_KILLS, FORGIVEN_KILLS + 1])
def test_on_the_holdout_one_kill_is_forgiven(kills: int) -> None:
    desk = claimed()
    left = kills
    while blocks := desk.outstanding("confirm"):
        desk.holdout = {candidate_id(IDEA): KILLED} if left > 0 else {}
        left -= 1
        desk.run(blocks[0], GOOD)
    (answer,) = (fact for fact in desk.of(HoldoutAnswered) if isinstance(fact, HoldoutAnswered))
    assert answer.passed == (kills <= FORGIVEN_KILLS), answer.reason
    assert answer.passed or answer.reason == "was killed on the holdout split on 2 pairs"
