"""The researcher as a machine: what it runs, keeps, claims and forgets, and that it may be killed anywhere."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from desk import BASELINE, CRASH, edited, measured, proposal

from node.researcher import AHEAD, LARGEST, MAX_ATTEMPTS, Memory, Researcher
from node.trial import TrialRun
from swarm.codec import pack, unpack
from swarm.records import (
    Admission,
    Brief,
    ClaimRaised,
    ExperimentAdmitted,
    Fact,
    Failure,
    Files,
    Outcome,
    Screened,
    TrialDisturbed,
    TrialSpec,
    Trouble,
    candidate_id,
)

NOISE = 0.01
A1, B1, C1, D1 = (edited(BASELINE, **{name: 1}) for name in "ABCD")
DISTURBED = Failure("machinery", "lost", "killed from outside")
GAINS = {"A": 0.1, "B": 0.004, "C": -0.1, "D": 0.05}


def score(files: Files, seed: int) -> float:
    """What is true in these tests: some constants help when they are 1; seeds differ by more than that."""
    gain = sum(value for name, value in GAINS.items() if f"{name} = 1" in files["train.py"])
    return 2.0 - gain + seed % 7


class Lab:
    """A researcher and everybody it talks to."""

    def __init__(self, champion: Mapping[str, str] = BASELINE) -> None:
        self.now = 1000.0
        self.facts: list[Fact] = []
        self.last: Brief = self.brief(champion)
        self.mind = self.made(Memory(node="uid-ant", branch="swarm/toy-1/ant"))
        self.hear(self.last)

    @property
    def memory(self) -> Memory:
        return self.mind.memory

    def made(self, memory: Memory) -> Researcher:
        return Researcher(memory, study_seed=3, direction="minimize", wall_s=60, memory_mb=100)

    def killed(self) -> None:
        """The agent dies and comes back: its memory is what was packed."""
        self.mind = self.made(unpack(pack(self.memory), Memory))
        self.facts += self.mind.interrupted(self.now)
        self.hear(self.last)

    def brief(self, champion: Mapping[str, str] = BASELINE, **changes: object) -> Brief:
        plain = Brief("1", candidate_id(champion), champion, "", NOISE, 0.35, 10.0, (), {}, (), (), True)
        return replace(plain, **changes)  # type: ignore[arg-type]  # replace() checks the names

    def hear(self, brief: Brief) -> list[Fact]:
        self.last = brief
        facts = self.mind.hear(brief, self.now)
        self.facts += facts
        return facts

    def offer(self, *ideas: Mapping[str, str], admit: bool = True) -> None:
        """The proposer brings edits of the tip, and the coordinator admits them."""
        for files in ideas:
            assert self.mind.offer(proposal(files, self.memory.tip_files))
        if admit:
            self.settle()

    def settle(self, admitted: bool = True) -> list[Fact]:
        answers = [Admission(p.idea, admitted) for p in self.memory.waiting]
        facts = self.mind.settle(answers, self.now)
        self.facts += facts
        return facts

    def run(self, outcome: Outcome | None = None) -> TrialSpec | None:
        """The next trial, from start to end."""
        spec = self.mind.next_trial()
        if spec is not None:
            self.end(spec, outcome)
        return spec

    def end(self, spec: TrialSpec, outcome: Outcome | None = None) -> list[Fact]:
        self.now += 8
        result = outcome or measured(score(spec.files, spec.seed))
        facts = self.mind.finished(spec, TrialRun(result, self.now - 8, self.now, ""), self.now)
        self.facts += facts
        return facts

    def kept(self) -> list[str]:
        return [fact.candidate for fact in self.facts if isinstance(fact, Screened) and fact.kept]

    def claims(self) -> list[ClaimRaised]:
        return [fact for fact in self.facts if isinstance(fact, ClaimRaised)]


def at_work() -> Lab:
    """The champion is measured."""
    lab = Lab()
    lab.run()
    return lab


def with_claim() -> Lab:
    """A is kept and claimed."""
    lab = at_work()
    lab.offer(A1)
    lab.run()
    assert [claim.candidate for claim in lab.claims()] == [candidate_id(A1)]
    return lab


def test_the_champion_is_measured_before_any_idea() -> None:
    lab = Lab()
    lab.offer(A1)
    first, second = lab.run(), lab.run()
    assert first is not None and second is not None
    assert (first.purpose, first.candidate) == ("reference", candidate_id(BASELINE))
    assert (second.purpose, second.candidate, second.seed) == ("screen", candidate_id(A1), first.seed)


def test_a_better_idea_advances_the_branch_and_a_worse_one_does_not() -> None:
    lab = at_work()
    lab.offer(C1)
    lab.run()
    assert lab.memory.tip == candidate_id(BASELINE)
    lab.offer(A1)
    lab.run()
    assert lab.memory.tip == candidate_id(A1) and lab.kept() == [candidate_id(A1)]
    assert [heard.gain for heard in lab.mind.take_heard()] == [pytest.approx(-0.1), pytest.approx(0.1)]


def test_ideas_run_in_the_order_of_their_admission_and_are_asked_for_ahead() -> None:
    lab = at_work()
    assert lab.mind.wants_idea()
    lab.offer(C1, D1)
    assert not lab.mind.wants_idea() and len(lab.memory.admitted) == AHEAD
    assert [lab.run(), lab.run()][0] is not None
    assert [f.candidate for f in lab.facts if isinstance(f, Screened)] == [candidate_id(C1), candidate_id(D1)]


def test_what_waits_is_carried_onto_the_tip_that_advanced() -> None:
    lab = at_work()
    lab.offer(A1, D1)
    lab.run()
    both = edited(A1, D=1)
    assert [p.files for p in lab.memory.waiting] == [both], "carried, and asked for admission anew"
    aside = [f for f in lab.facts if isinstance(f, Screened) and f.gain is None]
    assert [(f.candidate, f.kept) for f in aside] == [(candidate_id(D1), False)]
    lab.settle()
    lab.run()
    assert lab.memory.tip == candidate_id(both)


def test_an_idea_that_was_waiting_when_the_branch_moved_is_set_aside_once_its_answer_comes() -> None:
    lab = at_work()
    lab.offer(A1)
    lab.offer(D1, admit=False)
    old = lab.memory.waiting[0].idea
    lab.run()
    facts = lab.mind.settle([Admission(old, True)], lab.now)
    assert [(f.experiment, f.gain) for f in facts if isinstance(f, Screened)] == [(old, None)]
    assert [p.files for p in lab.memory.waiting] == [edited(A1, D=1)], "its successor still waits for its own"


def test_what_conflicts_with_the_new_tip_is_dropped_and_the_proposer_hears_of_it() -> None:
    lab = at_work()
    lab.offer(A1, edited(BASELINE, A=2))
    lab.run()
    assert not lab.memory.waiting and not lab.memory.admitted
    assert [heard.gain for heard in lab.mind.take_heard()] == [pytest.approx(0.1), None]


def test_a_small_gain_is_kept_but_not_claimed() -> None:
    lab = at_work()
    lab.hear(lab.brief(noise=0.02))
    lab.offer(B1)
    lab.run()
    assert lab.kept() == [candidate_id(B1)] and not lab.claims()


def test_the_claim_comes_when_the_noise_is_known() -> None:
    lab = Lab()
    lab.hear(lab.brief(noise=None))
    lab.run()
    lab.offer(A1)
    lab.run()
    assert not lab.claims()
    lab.hear(lab.brief())
    assert [claim.gain for claim in lab.claims()] == [pytest.approx(0.1)]


def test_no_second_claim_while_one_is_open() -> None:
    lab = with_claim()
    lab.offer(edited(A1, D=1))
    lab.run()
    assert len(lab.kept()) == 2 and len(lab.claims()) == 1
    idea = lab.claims()[0].experiment
    lab.hear(lab.brief(verdicts={idea: "accepted"}))
    assert [claim.candidate for claim in lab.claims()] == [candidate_id(A1), candidate_id(edited(A1, D=1))]


def test_a_rejected_claim_takes_the_tip_back_and_the_queue_with_it() -> None:
    lab = with_claim()
    lab.offer(edited(A1, D=1))
    lab.hear(lab.brief(verdicts={lab.memory.claim: "rejected: noise"}))
    assert lab.memory.tip == candidate_id(BASELINE) and not lab.memory.claim
    assert [p.files for p in lab.memory.waiting] == [D1], "what was queued is no longer built on it"
    lab.settle()
    lab.run()
    assert lab.memory.tip == candidate_id(D1)


def test_a_tip_that_is_rejected_after_it_was_accepted_is_left_too() -> None:
    lab = with_claim()
    claimed = lab.memory.claim
    lab.hear(lab.brief(verdicts={claimed: "accepted"}))
    assert lab.memory.tip == candidate_id(A1) and not lab.memory.claim
    lab.hear(replace(lab.last, version="vetoed", verdicts={claimed: "rejected: #1 was closed by a person"}))
    assert lab.memory.tip == candidate_id(BASELINE)


def test_the_own_tip_promoted_is_built_upon() -> None:
    lab = with_claim()
    lab.offer(edited(A1, D=1))
    lab.hear(lab.brief(A1))
    assert lab.memory.champion == lab.memory.tip == candidate_id(A1)
    assert lab.memory.lineage == () and not lab.memory.claim
    assert [p.files for p in lab.memory.admitted] == [edited(A1, D=1)]
    reference, screen = lab.run(), lab.run()
    assert reference is not None and screen is not None
    assert (reference.purpose, screen.candidate) == ("reference", candidate_id(edited(A1, D=1)))
    assert reference.seed == screen.seed != with_claim().memory.cell_seed


def test_a_foreign_champion_is_adopted_and_the_own_gain_carried_over() -> None:
    lab = at_work()
    lab.hear(lab.brief(noise=None))  # so that nothing is claimed
    lab.offer(D1)
    lab.run()
    lab.offer(edited(D1, B=1))
    lab.hear(lab.brief(A1))
    assert lab.memory.tip == candidate_id(A1)
    assert [p.files for p in lab.memory.waiting] == [edited(A1, D=1), edited(A1, B=1)]
    assert "Carry over" in lab.memory.waiting[0].hypothesis


def test_a_claimed_tip_is_left_to_the_coordinator_to_carry() -> None:
    lab = with_claim()
    lab.hear(lab.brief(D1))
    assert not lab.memory.waiting and lab.memory.tip == candidate_id(D1)


def test_a_trial_that_ran_while_the_champion_moved_judges_nothing() -> None:
    lab = Lab()
    reference = lab.mind.next_trial()
    assert reference is not None
    lab.hear(lab.brief(A1))
    assert lab.end(reference) == []
    assert lab.memory.champion_score is None, "it was another champion on another seed"
    lab.run()
    assert lab.memory.champion_score == pytest.approx(score(A1, lab.memory.cell_seed))


def test_an_idea_that_ran_while_the_own_tip_was_promoted_runs_again_on_the_new_seed() -> None:
    lab = with_claim()
    lab.offer(edited(A1, D=1))
    spec = lab.mind.next_trial()
    assert spec is not None
    lab.hear(lab.brief(A1))
    assert lab.end(spec) == []
    lab.run()
    again = lab.run()
    assert again is not None and again.candidate == spec.candidate and again.seed != spec.seed
    assert lab.memory.tip == candidate_id(edited(A1, D=1))


def test_a_tip_that_fails_on_the_new_seed_falls_back_to_the_champion() -> None:
    lab = with_claim()
    lab.offer(edited(A1, D=1))
    lab.run()
    lab.offer(edited(A1, D=1, B=1))
    lab.hear(lab.brief(A1))
    lab.run()
    lab.run(CRASH)
    assert lab.memory.tip == candidate_id(A1)
    assert [p.files for p in lab.memory.waiting] == [edited(A1, B=1)]


def test_a_champion_that_fails_here_stops_exploration_with_a_word() -> None:
    lab = Lab()
    lab.offer(A1)
    for _ in range(MAX_ATTEMPTS):
        assert lab.run(CRASH) is not None
    assert lab.run() is None
    assert len([fact for fact in lab.facts if isinstance(fact, Trouble)]) == MAX_ATTEMPTS
    lab.hear(lab.brief(D1))
    assert lab.run() is not None, "another champion, another chance"


def test_a_disturbed_trial_runs_again_and_an_idea_that_always_is_gets_set_aside() -> None:
    lab = at_work()
    lab.offer(A1, D1)
    ran = [lab.run(DISTURBED) for _ in range(MAX_ATTEMPTS)]
    assert len({spec.id for spec in ran if spec}) == MAX_ATTEMPTS
    assert {spec.candidate for spec in ran if spec} == {candidate_id(A1)}
    assert len([f for f in lab.facts if isinstance(f, TrialDisturbed)]) == MAX_ATTEMPTS
    assert [f.experiment for f in lab.facts if isinstance(f, Screened)] == [proposal(A1).idea]
    following = lab.run()
    assert following is not None and following.candidate == candidate_id(D1)


def test_an_idea_that_kills_the_agent_each_time_is_given_up() -> None:
    lab = at_work()
    lab.offer(A1, D1)
    for _ in range(MAX_ATTEMPTS):
        assert lab.mind.next_trial() is not None
        lab.killed()
    following = lab.mind.next_trial()
    assert following is not None and following.candidate == candidate_id(D1)


def test_without_a_coordinator_it_admits_its_own_ideas() -> None:
    lab = at_work()
    lab.offer(A1, admit=False)
    assert lab.run() is None
    facts = lab.mind.admit_alone(lab.now)
    assert [(f.candidate, f.node) for f in facts if isinstance(f, ExperimentAdmitted)] == [
        (candidate_id(A1), "uid-ant")
    ]
    lab.run()
    assert lab.memory.tip == candidate_id(A1)


def test_a_refused_idea_is_forgotten() -> None:
    lab = at_work()
    lab.offer(A1, admit=False)
    lab.settle(admitted=False)
    assert not lab.memory.waiting and lab.run() is None
    assert [heard.gain for heard in lab.mind.take_heard()] == [None]


def test_the_same_idea_twice_or_no_change_is_not_taken() -> None:
    lab = at_work()
    lab.offer(A1)
    assert not lab.mind.offer(proposal(A1))
    assert not lab.mind.offer(proposal(BASELINE))
    assert not lab.mind.offer(proposal(B1, parent=C1)), "nobody here knows what it was made on"


def test_near_the_end_nothing_new_is_started() -> None:
    lab = at_work()
    lab.offer(A1)
    lab.hear(lab.brief(explore=False))
    assert lab.run() is None and not lab.mind.wants_idea()


def test_absurd_scores_stay_numbers() -> None:
    lab = Lab()
    lab.run(measured(-1e308))
    lab.offer(A1)
    lab.run(measured(1e308))
    (fact,) = [fact for fact in lab.facts if isinstance(fact, Screened)]
    assert fact.gain == -LARGEST
    assert unpack(pack(fact), Screened) == fact


def story(kill_at: int) -> Lab:
    """A whole branch, killed once before, in the middle of, or after one of its steps."""
    lab, step = Lab(), 0

    def maybe_killed() -> None:
        nonlocal step
        step += 1
        if step == kill_at:
            lab.killed()

    for letter in "CADB":
        maybe_killed()
        lab.offer(edited(lab.memory.tip_files, **{letter: 1}), admit=False)
        maybe_killed()
        lab.settle()
        for _ in range(4):
            spec = lab.mind.next_trial()
            maybe_killed()
            if spec is not None and lab.memory.issued == spec.id:
                lab.end(spec)
            maybe_killed()
        if letter == "D":
            lab.hear(lab.brief(A1))
        maybe_killed()
    lab.run()
    return lab


@pytest.mark.parametrize("kill_at", range(1, 47))
def test_killed_anywhere_it_goes_on_where_it_was(kill_at: int) -> None:
    calm, killed = story(0), story(kill_at)
    assert set(killed.kept()) == set(calm.kept())
    assert [claim.key for claim in killed.claims()] == [claim.key for claim in calm.claims()]
    ignored = {"sequence": 0, "attempts": 0, "issued": ""}
    assert replace(killed.memory, **ignored) == replace(calm.memory, **ignored)  # type: ignore[arg-type]


# --- simplifications -------------------------------------------------------------------------------------

SHORT = {"train.py": BASELINE["train.py"].replace("D = 0\n", "")}


def screened(files: Files, loss: float, margin: float = 0.75) -> Lab:
    """One idea that is so much worse than the champion on the screening seed."""
    lab = Lab()
    lab.hear(lab.brief(margin=margin))
    lab.run(measured(2.0))
    lab.offer(files)
    lab.run(measured(2.0 + loss))
    return lab


@pytest.mark.parametrize("loss", [-5 * NOISE, -0.003, 0.0, 0.7 * NOISE])
def test_less_code_within_the_margin_is_kept_and_claimed_as_a_simplification(loss: float) -> None:
    lab = screened(SHORT, loss)
    assert lab.memory.tip == candidate_id(SHORT)
    (claim,) = lab.claims()
    assert claim.claim_kind == "simplification" and claim.gain == pytest.approx(-loss)


def test_less_code_that_loses_more_than_the_margin_is_dropped() -> None:
    lab = screened(SHORT, 0.8 * NOISE)
    assert lab.memory.tip == candidate_id(BASELINE) and not lab.claims()


def test_as_much_code_is_never_a_simplification() -> None:
    lab = screened(D1, 0.0)
    assert lab.memory.tip == candidate_id(BASELINE) and not lab.claims()
    assert not screened(D1, -0.1 * NOISE).claims()


def test_a_refuted_simplification_leaves_the_branch_on_the_champion() -> None:
    lab = screened(SHORT, 0.0)
    lab.hear(replace(lab.last, version="2", verdicts={lab.claims()[0].experiment: "rejected: it lost too much"}))
    assert lab.memory.tip == candidate_id(BASELINE)


# --- a panel ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("foretold", "own_weight", "gain"), [(None, 1.0, None), (2.0, 0.1, 0.025), (2.0, 1.0, None)])
def test_a_lucky_run_of_the_champion_hides_no_idea_where_many_runs_are_known(
    foretold: float | None, own_weight: float, gain: float | None
) -> None:
    lab = Lab()
    lab.hear(lab.brief(foretold=foretold, own_weight=own_weight))
    lab.run(measured(1.95))
    lab.offer(A1)
    lab.run(measured(1.97))
    assert [claim.gain for claim in lab.claims()] == ([] if gain is None else [pytest.approx(gain)])


def test_what_is_foretold_of_another_champion_is_not_used() -> None:
    lab = at_work()
    lab.mind.brief = lab.brief(A1, foretold=5.0, own_weight=0.0)  # as it was heard before a restart
    lab.offer(B1)
    lab.run()
    (fact,) = (fact for fact in lab.facts if isinstance(fact, Screened))
    assert fact.gain_over_champion == pytest.approx(0.004)
