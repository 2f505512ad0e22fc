"""The whole loop on simulated nodes: what is promoted is true, and faults lose and double nothing."""

import sqlite3
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from simulation import Killed, Swarm, World

from coordinator.forges import Request
from coordinator.service import Service
from swarm.history import history
from swarm.records import (
    BlockDrawn,
    BlockLost,
    ClaimRaised,
    Fact,
    Promotion,
    PromotionVetoed,
    ProposalRefused,
    StudyFinished,
    TransferChecked,
    TrialFinished,
    Trouble,
    Verdict,
)
from swarm.repo import Repo

TRUE_GAINS = {"GOOD": 0.09, "SMALL": 0.03}
NULLS = {f"NULL_{i}": 0.0 for i in range(6)}
HARMFUL = {f"BAD_{i}": -0.03 for i in range(3)}


def world(**changes: object) -> World:
    return World({**TRUE_GAINS, **NULLS, **HARMFUL}, **changes)  # type: ignore[arg-type]


def of(facts: tuple[Fact, ...], kind: type) -> list[Fact]:
    return [fact for fact in facts if isinstance(fact, kind)]


def promoted_switches(swarm: Swarm, service: Service) -> set[str]:
    champion = service.mind.state.files[service.mind.state.champion]["train.py"]
    return {name for name in swarm.world.effects if f"{name} = True" in champion}


def assert_ledger_equals_nodes(swarm: Swarm) -> None:
    """Every trial that a node finished stands in the ledger, once; or still lies on the disk of a node that is away."""
    ledger = Counter(fact.key for fact in of(swarm.facts(), TrialFinished))
    away = {key for member in swarm.cluster.away for key in swarm.cluster.by_id[member].spool}
    assert set(ledger) - away == set(swarm.produced()) - away
    assert set(ledger.values()) == {1}


def test_a_study_promotes_what_is_true_and_ends_with_a_comparison(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, world())
    service = swarm.run()
    finished = of(swarm.facts(), StudyFinished)[0]
    assert isinstance(finished, StudyFinished)
    assert "GOOD" in promoted_switches(swarm, service)
    assert not promoted_switches(swarm, service) & HARMFUL.keys()
    assert finished.final_gain is not None and finished.low is not None
    assert finished.low > 0
    assert finished.pairs == 5
    assert_ledger_equals_nodes(swarm)


def test_the_shared_branch_holds_exactly_the_champion(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, world())
    service = swarm.run()
    tip = service.repo.ref("refs/heads/swarm/best")
    assert tip is not None
    assert service.repo.read(tip, "train.py") == service.mind.state.files[service.mind.state.champion]["train.py"]


def test_confirmation_uses_seeds_that_nothing_else_used(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, world())
    swarm.run()
    trials = [f for f in swarm.facts() if isinstance(f, TrialFinished)]
    screening = {t.seed for t in trials if t.purpose in ("reference", "screen", "calibrate")}
    confirming = {t.seed for t in trials if t.purpose == "confirm"}
    final = {t.seed for t in trials if t.purpose == "final"}
    assert confirming and final
    assert not screening & confirming
    assert not final & (confirming | screening)


def test_without_any_good_idea_nothing_is_promoted_and_the_study_says_why(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, World({**NULLS, **HARMFUL}))
    swarm.run()
    finished = of(swarm.facts(), StudyFinished)[0]
    assert isinstance(finished, StudyFinished)
    assert not of(swarm.facts(), Promotion)
    assert finished.final_gain is None
    assert "wall time" in finished.reason


def test_an_idea_that_costs_too_much_time_is_rejected(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, World({"GOOD": 0.09, "NULL": 0.0}, slow={"GOOD": 1.5}))
    swarm.run()
    verdicts = [f for f in swarm.facts() if isinstance(f, Verdict)]
    assert any("CPU time" in verdict.reason for verdict in verdicts)
    assert not of(swarm.facts(), Promotion)


def test_a_crashing_idea_is_dropped_and_harms_nobody(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, world(crash=frozenset({"NULL_0"})))
    service = swarm.run()
    failed = [e for e in service.mind.state.experiments.values() if e.status.startswith("failed: crash")]
    assert failed
    assert "GOOD" in promoted_switches(swarm, service)


def test_no_idea_runs_twice_anywhere(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, world(), nodes=4)
    swarm.run()
    ideas: dict[str, set[str]] = {}
    for fact in swarm.facts():
        if isinstance(fact, TrialFinished) and fact.purpose == "screen" and fact.experiment:
            ideas.setdefault(fact.experiment, set()).add(fact.node)
    assert all(len(nodes) == 1 for nodes in ideas.values())
    assert of(swarm.facts(), ProposalRefused), "four nodes with eleven switches must have met"


def test_a_broken_baseline_ends_the_study_at_once(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, World({"GOOD": 0.1}))
    swarm.world.outcome = lambda spec: __import__("swarm.records").records.Failure("candidate", "crash", "boom")  # type: ignore[method-assign]
    swarm.run()
    finished = of(swarm.facts(), StudyFinished)[0]
    assert isinstance(finished, StudyFinished)
    assert finished.reason.startswith("the baseline itself fails")


@pytest.mark.parametrize("seed", range(4))
def test_coordinator_killed_again_and_again_loses_and_doubles_nothing(tmp_path: Path, seed: int) -> None:
    random = Random(seed)

    def faults(swarm: Swarm, tick: int) -> None:
        if random.random() < 0.01:
            raise Killed

    swarm = Swarm(tmp_path, world(), faults=faults)
    lives = run_to_the_end(swarm)
    assert lives > 3
    assert_ledger_equals_nodes(swarm)
    assert of(swarm.facts(), Promotion)
    assert len(of(swarm.facts(), StudyFinished)) == 1


@pytest.mark.parametrize("seed", range(4))
def test_agents_nodes_and_trials_killed_at_random(tmp_path: Path, seed: int) -> None:
    random = Random(seed)

    def faults(swarm: Swarm, tick: int) -> None:
        cluster, member = swarm.cluster, random.choice(sorted(swarm.cluster.by_id))
        chance = random.random()
        if chance < 0.003:
            cluster.kill_agent(member)
        elif chance < 0.006:
            cluster.by_id[member].disturb()
        elif chance < 0.008:
            cluster.rejoin(member)
        elif chance < 0.010:
            cluster.away.add(member)
        elif chance < 0.016:
            cluster.away.clear()
            cluster.head_away = False
        elif chance < 0.018:
            cluster.head_away = True
        elif chance < 0.019:
            raise Killed

    swarm = Swarm(tmp_path, world(), nodes=3, faults=faults)
    run_to_the_end(swarm)
    assert_ledger_equals_nodes(swarm)
    service = swarm.run()
    assert not promoted_switches(swarm, service) & HARMFUL.keys()


def test_a_lost_block_is_drawn_again_with_another_seed(tmp_path: Path) -> None:
    killed: list[int] = []

    def faults(swarm: Swarm, tick: int) -> None:
        drawn = (
            [f for f in swarm.facts() if isinstance(f, BlockDrawn) and f.purpose == "confirm"] if tick % 20 == 0 else []
        )
        if drawn and not killed:
            member = next(m for m, node in swarm.cluster.by_id.items() if node.info.uid == drawn[0].node)
            swarm.cluster.kill_agent(member)
            killed.append(tick)

    swarm = Swarm(tmp_path, world(), faults=faults)
    swarm.run()
    assert killed
    blocks = [f for f in swarm.facts() if isinstance(f, BlockDrawn)]
    assert len({(b.seeds, b.purpose) for b in blocks}) == len(blocks)
    lost = {f.block for f in swarm.facts() if isinstance(f, BlockLost)}
    assert lost <= {b.block for b in blocks}
    assert_ledger_equals_nodes(swarm)


def test_replaying_the_ledger_gives_the_same_mind(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, world())
    first = swarm.run().mind.state
    again = swarm.run().mind.state
    assert again.champion == first.champion
    assert again.noise == first.noise
    assert again.campaign == first.campaign
    assert {k: c.verdict for k, c in again.claims.items()} == {k: c.verdict for k, c in first.claims.items()}


def test_at_most_one_open_claim_per_branch(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, world())
    swarm.run()
    open_by_node: Counter[str] = Counter()
    owner: dict[str, str] = {}
    for fact in swarm.facts():
        if isinstance(fact, ClaimRaised):
            open_by_node[fact.node] += 1
            owner[fact.experiment] = fact.node
            assert open_by_node[fact.node] == 1
        elif isinstance(fact, Verdict) and fact.experiment in owner:  # else of several ideas that were joined
            open_by_node[owner[fact.experiment]] = 0


def test_two_gains_found_on_two_nodes_both_end_up_in_the_champion(tmp_path: Path) -> None:
    ideas = {"n0": ("GOOD",), "n1": ("FINE", "NULL_0"), "n2": ("NULL_1", "NULL_2")}
    swarm = Swarm(tmp_path, World({"GOOD": 0.09, "FINE": 0.08, **NULLS}, ideas=ideas), nodes=3)
    service = swarm.run()
    assert promoted_switches(swarm, service) >= {"GOOD", "FINE"}
    first, second = [f for f in swarm.facts() if isinstance(f, Promotion)][:2]
    verdict = next(f for f in swarm.facts() if isinstance(f, Verdict) and f.candidate == second.candidate)
    assert verdict.base == first.candidate == second.base, "the very tree that landed was measured on the new champion"


def test_a_forge_that_is_away_delays_promotions_and_nothing_else(tmp_path: Path) -> None:
    asked: list[int] = []

    def faults(swarm: Swarm, tick: int) -> None:
        accepted = bool(tick % 20 == 0 and [f for f in swarm.facts() if isinstance(f, Verdict) and f.accepted])
        asked.extend([tick] * accepted)
        swarm.forge.away = not asked or tick < asked[0] + 120

    swarm = Swarm(tmp_path, world(), faults=faults)
    swarm.forge.away = True  # from the very start: the study begins without it
    service = swarm.run()
    facts = swarm.facts()
    first = next(f for f in facts if isinstance(f, Promotion))
    accepted = next(f for f in facts if isinstance(f, Verdict) and f.accepted)
    assert first.at - accepted.at > 100
    between = [
        f for f in facts if isinstance(f, TrialFinished) and accepted.at < f.started_at and f.ended_at < first.at
    ]
    assert len(between) > 10, "nodes went on"
    assert "GOOD" in promoted_switches(swarm, service)
    tip = service.repo.ref("refs/heads/swarm/best")
    assert tip is not None
    assert service.repo.read(tip, "train.py") == service.mind.state.files[service.mind.state.champion]["train.py"]
    told = [f for f in facts if isinstance(f, Trouble) and f.where == "forge"]
    assert 0 < len(told) < 20, "said, but not at every attempt"


def test_what_a_person_closed_never_lands_and_holds_nothing_up(tmp_path: Path) -> None:
    ideas = {"n0": ("GOOD",), "n1": ("FINE",), "n2": tuple(NULLS)}
    swarm = Swarm(tmp_path, World({"GOOD": 0.09, "FINE": 0.08, **NULLS}, ideas=ideas), nodes=3)
    repo, vetoed = Repo(tmp_path / "toy-1" / "repo.git"), list[str]()

    def unwanted(request: Request) -> bool:
        tree = repo.tree(request.commit)["train.py"].decode()
        vetoed.extend(name for name in ("GOOD", "FINE") if not vetoed and f"{name} = True" in tree)
        return f"{vetoed[0]} = True" in tree

    swarm.forge.unwanted = unwanted
    service = swarm.run()
    facts = swarm.facts()
    veto = next(f for f in facts if isinstance(f, PromotionVetoed))
    closed = next(e for e in history(facts).experiments if e.idea == veto.experiment)
    assert (closed.status, closed.why_rejected) == ("rejected", veto.reason) and "closed by a person" in veto.reason
    assert service.mind.state.experiments[veto.experiment].status == "rejected"
    (other,) = {"GOOD", "FINE"} - {vetoed[0]}
    assert promoted_switches(swarm, service) & {"GOOD", "FINE"} == {other}
    numbers = [f.number for f in facts if isinstance(f, Promotion | PromotionVetoed)]
    assert numbers == [*range(1, len(numbers) + 1)], "a request's number and branch are used once"
    landed = next(f for f in facts if isinstance(f, Promotion) and f.number > veto.number)
    assert landed.at - veto.at < 120, "what waits behind it does not wait for it"
    assert f"{other} = True" in (service.repo.read(swarm.forge.head(), "train.py") or "")
    with sqlite3.connect(tmp_path / "toy-1" / "ledger.sqlite") as db:
        rows = db.execute("SELECT status FROM experiment WHERE idea = ?", (veto.experiment,)).fetchall()
    assert rows == [("rejected",)]


def test_an_edit_of_the_program_reaches_researchers_and_survives_a_restart(tmp_path: Path) -> None:
    heard: set[str] = set()

    def faults(swarm: Swarm, tick: int) -> None:
        heard.update(node.researcher.brief.program for node in swarm.sim_nodes if node.researcher.brief)
        if tick == 200:
            (swarm.task_folder / "program.md").write_text("Be bold.")
        if tick == 400:
            raise Killed

    swarm = Swarm(tmp_path, world(), faults=faults, settings={"stop": {"wall_minutes": 12, "final_minutes": 2}})
    (swarm.task_folder / "program.md").write_text("Be careful.")
    assert run_to_the_end(swarm) == 2, "the baseline's commit is the one of the first start"
    assert heard == {"Be careful.", "Be bold."}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"caps": {"node_hours": 0.1}}, "cap of 0.1 node-hours"),
        ({"stop": {"wall_minutes": 20, "final_minutes": 3, "trials": 25}}, "25 trials"),
        ({"stop": {"wall_minutes": 20, "final_minutes": 3, "promotions": 1}}, "1 promotions"),
    ],
    ids=["node hours", "trials", "promotions"],
)
def test_a_cap_stops_the_study_cleanly(tmp_path: Path, settings: dict[str, object], reason: str) -> None:
    swarm = Swarm(tmp_path, world(), settings=settings)
    swarm.run()
    (finished,) = of(swarm.facts(), StudyFinished)
    assert isinstance(finished, StudyFinished) and finished.reason == reason
    assert swarm.world.now < 1_000_000 + 20 * 60
    assert_ledger_equals_nodes(swarm)


def test_what_nodes_admitted_alone_is_sorted_out_when_the_coordinator_is_back(tmp_path: Path) -> None:
    def faults(swarm: Swarm, tick: int) -> None:
        swarm.cluster.head_away = 100 < tick < 220 or 400 < tick < 520

    swarm = Swarm(tmp_path, world(), nodes=3, faults=faults)
    service = swarm.run()
    assert_ledger_equals_nodes(swarm)
    screened = {(f.experiment, f.node) for f in swarm.facts() if isinstance(f, TrialFinished) and f.purpose == "screen"}
    ideas = Counter(experiment for experiment, _ in screened)
    assert max(ideas.values()) > 1, "two nodes must have had the same idea while nobody could tell them"
    assert not service.mind.state.open_claims or "wall time" in service.mind.state.finished.reason  # type: ignore[union-attr]
    assert "GOOD" in promoted_switches(swarm, service)
    assert not promoted_switches(swarm, service) & HARMFUL.keys()


def test_a_node_with_any_name_takes_part(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, world())
    for node, name in zip(swarm.sim_nodes, ("Bob's box ~^: ..", "baseline"), strict=True):
        node.info = replace(node.info, name=name)
    service = swarm.run()
    branches = service.repo.refs("refs/heads/swarm/toy-1/")
    assert {"refs/heads/swarm/toy-1/Bob-s-box", "refs/heads/swarm/toy-1/node-baseline"} <= branches.keys()
    assert "GOOD" in promoted_switches(swarm, service)


def test_a_copied_node_folder_is_told_of_and_harms_nobody(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, world(), nodes=3)
    swarm.sim_nodes[2].info = replace(swarm.sim_nodes[2].info, uid=swarm.sim_nodes[1].info.uid, host="elsewhere")
    service = swarm.run()
    told = [f.message for f in swarm.facts() if isinstance(f, Trouble)]
    assert any("has the identity of n" in message for message in told)
    assert "GOOD" in promoted_switches(swarm, service)


def test_a_node_that_talks_nonsense_harms_nobody(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, world(), nodes=3)
    babbler, endless = swarm.sim_nodes[1], swarm.sim_nodes[2]
    babbler.exchange = lambda data: b"nonsense"  # type: ignore[method-assign]
    endless.info = replace(endless.info, name="n" * 10_000)
    service = swarm.run()
    told = {f.message for f in swarm.facts() if isinstance(f, Trouble)}
    assert any("not a Report" in message for message in told) and any("longer than" in message for message in told)
    assert "GOOD" in promoted_switches(swarm, service)


def run_to_the_end(swarm: Swarm) -> int:
    """Restart the coordinator until the study has ended. Returns the number of lives it took."""
    for life in range(1, 200):
        try:
            swarm.run()
            return life
        except Killed:
            continue
    raise AssertionError("the study did not end within 200 lives")


def test_code_that_is_not_needed_is_cut_and_code_that_is_needed_stays(tmp_path: Path) -> None:
    lines = {"DEAD": 0.0, "NEEDED": -0.05}
    swarm = Swarm(tmp_path, World({"BAD": -0.03}, lines=lines), settings={"stop": {"wall_minutes": 40}})
    service = swarm.run()
    champion = service.mind.state.files[service.mind.state.champion]["train.py"]
    assert "DEAD" not in champion and "NEEDED" in champion
    (promotion,) = (fact for fact in swarm.facts() if isinstance(fact, Promotion))
    assert promotion.claim_kind == "simplification"
    (commit,) = service.repo.log(promotion.commit, 1)
    assert commit.subject.startswith("[simplification] Cut DEAD")
    assert commit.trailer("Swarm-Kind") == "simplification"
    assert "simplification: Cut DEAD" in (service.study.folder / "LEADERBOARD.md").read_text()
    assert "1. simplification: Cut DEAD" in (service.study.folder / "report.md").read_text()


# --- larger scales ---------------------------------------------------------------------------------------


def checks(swarm: Swarm) -> list[TransferChecked]:
    return [fact for fact in swarm.facts() if isinstance(fact, TransferChecked)]


@pytest.mark.parametrize(
    ("gain", "mark"), [(0.09, "transfers"), (0.035, "fades"), (-0.05, "reverses")], ids=["whole", "part", "harm"]
)
def test_every_promotion_is_checked_at_a_larger_scale_and_marked(tmp_path: Path, gain: float, mark: str) -> None:
    world = World({"GOOD": 0.12, **HARMFUL}, at_scale={"GOOD": gain})
    swarm = Swarm(tmp_path, world, scale="depth=2")
    service = swarm.run()
    promoted = {(f.experiment, f.base) for f in swarm.facts() if isinstance(f, Promotion)}
    assert promoted and {(check.experiment, check.base) for check in checks(swarm)} == promoted
    (good,) = checks(swarm)
    assert good.mark == mark and good.scale == "depth=2" and len(good.evidence) == 4
    assert promoted_switches(swarm, service) == {"GOOD"}  # whatever it says, it came after the promotion
    assert f"{mark} (depth=2)" in (service.study.folder / "LEADERBOARD.md").read_text()
    assert f"At a larger scale: {mark} at depth=2" in (service.study.folder / "report.md").read_text()
    told = service.repo.read(swarm.forge.head(), "records/toy-1/0001/transfer.json")
    assert told is not None and f'"mark": "{mark}"' in told
    assert_ledger_equals_nodes(swarm)


def test_seeds_of_a_check_are_used_by_nothing_else_and_change_no_verdict(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, world(at_scale={"GOOD": -0.5, "SMALL": -0.5}), scale="depth=2")
    swarm.run()
    trials = [f for f in swarm.facts() if isinstance(f, TrialFinished)]
    scaled = {t.trial for t in trials if t.purpose == "transfer"}
    seeds = {t.seed for t in trials if t.purpose == "transfer"}
    assert scaled and not seeds & {t.seed for t in trials if t.purpose != "transfer"}
    assert not scaled & {trial for f in swarm.facts() if isinstance(f, Verdict) for trial in f.evidence}


def test_a_study_may_promote_only_what_transfers(tmp_path: Path) -> None:
    gains = {"FADING": 0.12, "LASTING": 0.12}
    settings = {"decision": {"transfer_required": True}, "stop": {"wall_minutes": 40, "final_minutes": 3}}
    swarm = Swarm(tmp_path, World(gains, at_scale={"FADING": 0.0}), scale="depth=2", settings=settings)
    service = swarm.run()
    assert promoted_switches(swarm, service) == {"LASTING"}
    (promotion,) = (f for f in swarm.facts() if isinstance(f, Promotion))
    marks = {check.experiment: check.mark for check in checks(swarm)}
    assert marks[promotion.experiment] == "transfers" and set(marks.values()) == {"transfers", "fades"}
    record = service.repo.read(promotion.commit, "records/toy-1/0001/record.json")
    assert record is not None and '"mark": "transfers"' in record
    assert "fades at depth=2" in (service.study.folder / "LEADERBOARD.md").read_text()


def test_what_fails_at_the_larger_scale_is_unknown_there(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, World({"GOOD": 0.12}, too_large=frozenset({"GOOD"})), scale="depth=2")
    swarm.run()
    (check,) = checks(swarm)
    assert (check.mark, check.share) == ("unknown", None)
    assert "it failed there: crash: RuntimeError: no" in check.reason


def test_a_task_without_a_larger_scale_is_not_checked_at_one(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, World({"GOOD": 0.12}))
    service = swarm.run()
    assert of(swarm.facts(), Promotion) and not checks(swarm)
    assert "1 of 1 promotion had no check" in (service.study.folder / "report.md").read_text()
