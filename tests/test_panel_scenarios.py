"""Whole studies on simulated nodes: the panel turns itself on where its checks hold, and is off on restless nodes."""

from pathlib import Path

from simulation import START, Killed, Swarm, World
from test_scenarios import promoted_switches, run_to_the_end

from swarm.records import (
    BlockDrawn,
    HoldoutAnswered,
    PanelSwitched,
    Promotion,
    StudyOpened,
    Verdict,
)

NULLS = tuple(f"NULL_{i}" for i in range(250))


def study(folder: Path, minutes: float, panel: str = "on", **changes: object) -> Swarm:
    """Seeds do not correlate, so that a known level is worth most; nodes differ by as much as two runs do."""
    effects = {"GOOD": 0.05, **dict.fromkeys(NULLS, 0.0)}
    dull = {f"n{i}": NULLS for i in range(4)}
    world = World(effects, seed_sd=0.0, own_sd=0.01, ideas=dull, **changes)  # type: ignore[arg-type]
    settings = {
        "seed": 5,
        "stop": {"wall_minutes": minutes, "final_minutes": 0.5},
        "decision": {"panel": panel},
    }
    return Swarm(folder, world, nodes=4, settings=settings)


def apart(name: str, now: float) -> float:
    """Every node has a level of its own, and keeps it."""
    return 0.002 * int(name[1:])


def restless(name: str, now: float) -> float:
    """Every node changes its level by 3 sd of a run every 90 s, as under another load."""
    return 0.03 * (int((now - START) / 90 + int(name[1:]) / 4) % 2)


def killed_and_enlightened(swarm: Swarm, tick: int) -> None:
    """The coordinator is killed now and then; late in the day a node has a good idea."""
    if tick == 520:
        swarm.world.ideas = {**swarm.world.ideas, "n0": ("GOOD",)}
    if tick in (250, 530, 560):
        raise Killed


def test_the_panel_turns_itself_on_and_claims_need_the_champion_no_more(tmp_path: Path) -> None:
    swarm = study(tmp_path, 12, nodes=apart)
    swarm.faults = killed_and_enlightened
    assert run_to_the_end(swarm) == 4
    service = swarm.run()
    facts = swarm.facts()
    switch = next(fact for fact in facts if isinstance(fact, PanelSwitched) and fact.on)
    since = facts[facts.index(switch) :]
    alone = [fact for fact in since if isinstance(fact, BlockDrawn) and fact.reference_trial]
    assert alone and not any(block.reference in block.candidates for block in alone)
    weighed = [fact for fact in since if isinstance(fact, Verdict) and fact.panel]
    assert all(verdict.panel >= 10 and "the panel holds" in verdict.reason for verdict in weighed)
    drawn_for = {t: fact.experiments for fact in since if isinstance(fact, BlockDrawn) for t in fact.trials}
    own = [t for verdict in weighed for t in verdict.evidence if verdict.experiment in drawn_for.get(t, ())]
    assert len(own) < 1.1 * sum(verdict.pairs for verdict in weighed), "of most pairs only the candidate's run was new"
    accepted = {verdict.candidate for verdict in weighed if verdict.accepted}
    promoted = {fact.candidate for fact in since if isinstance(fact, Promotion)}
    assert accepted & promoted
    answers = [f for f in since if isinstance(f, HoldoutAnswered) and f.candidate in accepted & promoted]
    assert answers and all(answer.pairs >= 4 for answer in answers), "artifacts of the champion's runs were kept"
    assert len(weighed) > 3 and len(accepted) == 1, "ideas that change nothing were turned away"
    assert "GOOD" in promoted_switches(swarm, service)
    assert "Panel:** on since" in (service.study.folder / "report.md").read_text()


def test_on_restless_nodes_the_panel_stays_off(tmp_path: Path) -> None:
    swarm = study(tmp_path, 9, nodes=restless)
    service = swarm.run()
    facts = swarm.facts()
    switches = [fact for fact in facts if isinstance(fact, PanelSwitched)]
    assert switches and not any(switch.on for switch in switches), "it was looked at, and found wanting"
    verdicts = [fact for fact in facts if isinstance(fact, Verdict)]
    assert verdicts and not any(verdict.panel for verdict in verdicts)
    assert "Panel:** off since" in (service.study.folder / "report.md").read_text()


def test_before_the_switch_every_fact_is_as_it_would_be_without(tmp_path: Path) -> None:
    told = []
    for panel in ("on", "off"):
        swarm = study(tmp_path / panel, 3, panel)
        swarm.run()
        told.append([fact for fact in swarm.facts() if not isinstance(fact, StudyOpened)])  # which holds the setting
    assert told[0] == told[1] and len(told[0]) > 100
