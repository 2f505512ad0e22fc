"""A true conflict goes back to the proposer of the idea, with both sides, while it is true."""

from desk import BASELINE, Desk, edited, proposal

from swarm.records import Brief, Verdict, candidate_id

ONE, TWO = edited(BASELINE, A=1), edited(BASELINE, A=2)


def told(desk: Desk, name: str) -> Brief:
    brief = desk.orders(name).brief
    assert brief is not None
    return brief


def in_conflict() -> Desk:
    """Two nodes changed the same constant, both gain, and the first one has landed."""
    desk = Desk({"decision": {"calibration_pairs": 2, "sham_share": 0.0}})
    desk.calibrate("ant", "bee")
    desk.claim("ant", proposal(ONE, hypothesis="A is one"))
    desk.claim("bee", proposal(TWO, hypothesis="A is two"))
    desk.confirm({candidate_id(ONE): 1.5, candidate_id(TWO): 1.5})
    assert desk.state.champion == candidate_id(ONE)
    return desk


def test_the_author_gets_its_idea_back_with_both_sides_and_nobody_else_does() -> None:
    desk = in_conflict()
    (port,) = told(desk, "bee").to_port
    assert port.hypothesis == "A is two" and port.experiment == proposal(TWO).idea
    assert "-A = 0\n" in port.diff and "+A = 2\n" in port.diff, "what it changed, and not the way to the champion"
    assert "(idea: A = 2; champion: A = 1)" in port.sides
    assert told(desk, "ant").to_port == ()
    (refused,) = [fact for fact in desk.of(Verdict) if isinstance(fact, Verdict) and not fact.accepted]
    assert refused.to_port
    assert desk.replayed().state == desk.state


def test_its_port_is_an_experiment_like_any_other() -> None:
    desk = in_conflict()
    other = edited(ONE, A=3)
    desk.claim("bee", proposal(other, ONE), ONE)
    desk.confirm({candidate_id(other): 1.0, candidate_id(ONE): 1.5})
    assert desk.state.champion == candidate_id(other)


def test_a_conflict_with_a_champion_that_has_gone_is_forgotten() -> None:
    desk = in_conflict()
    other = edited(ONE, B=1)
    desk.claim("ant", proposal(other, ONE), ONE)
    desk.confirm({candidate_id(other): 1.0, candidate_id(ONE): 1.5})
    assert desk.state.champion == candidate_id(other)
    assert told(desk, "bee").to_port == ()
