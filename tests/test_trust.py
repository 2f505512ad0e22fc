"""Whose code may run and decide at which sandbox level: the rule, and the coordinator that keeps it."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from desk import BASELINE, START, Desk, edited, info, measured, proposal, trial_of

from swarm.config import Config, parse_config
from swarm.records import Fact, NodeInfo, Report, Trouble, Verdict, candidate_id
from swarm.trust import FLAG, SHIPPED, level_needed, too_open

MODEL = {"proposer": {"use": "claude"}}
BETTER = edited(BASELINE, A=1)


def config(**settings: object) -> Config:
    return parse_config(settings, "test")


def at_level(name: str, level: int) -> NodeInfo:
    return replace(info(name), sandbox_level=level, sandbox=f"box-{level}")


def join(desk: Desk, *nodes: NodeInfo) -> list[Fact]:
    return desk.report(*(Report(node=node, brief="") for node in nodes))


def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "baseline", ignore=shutil.ignore_patterns("__pycache__")))


def test_literals_of_the_shipped_script_need_no_walls_as_long_as_they_stay_here(tmp_path: Path) -> None:
    assert level_needed(config(task=str(SHIPPED))) == 0
    assert level_needed(config(task=str(SHIPPED / "task-gpu.toml"))) == 0
    assert level_needed(config(task=str(copied(tmp_path)))) == 0


@pytest.mark.parametrize("file", ["train.py", "score.py", "helper.py", "task.toml"])
def test_a_folder_of_that_name_with_other_code_needs_level_1(tmp_path: Path, file: str) -> None:
    copy = copied(tmp_path)
    with (copy / file).open("a") as script:
        script.write("\n# anybody\n")
    assert level_needed(config(task=str(copy))) == 1


def test_a_file_that_is_a_link_is_not_the_shipped_one(tmp_path: Path) -> None:
    copy = copied(tmp_path)
    (copy / "score.py").rename(tmp_path / "score.py")
    (copy / "score.py").symlink_to(tmp_path / "score.py")
    assert level_needed(config(task=str(copy))) == 1


def test_a_folder_that_is_not_there_needs_level_1() -> None:
    assert level_needed(config(task="/somewhere/baseline")) == 1


@pytest.mark.parametrize(
    "settings",
    [
        MODEL,
        {"proposer": {"use": "package.module:Class"}},
        {"task": "mytask"},
        {"forge": {"use": "github", "repository": "owner/name"}},
    ],
)
def test_whatever_may_bring_other_code_needs_level_1(settings: dict[str, object]) -> None:
    assert level_needed(config(**settings)) == 1


def test_a_refusal_names_both_levels_and_the_way_out() -> None:
    assert too_open("landlock", 1, 1) == too_open("bwrap", 2, 1) == too_open("cgroup", 3, 2) == ""
    words = too_open("bare", 0, 1)
    assert all(part in words for part in ("bare", "level 0", "level 1", "swarm doctor", FLAG))


def test_a_node_below_the_level_is_leased_nothing_and_the_ledger_says_why() -> None:
    desk = Desk(MODEL)
    join(desk, at_level("open", 0), at_level("walled", 1))
    assert {block.node for block in desk.outstanding()} == {"uid-walled"}
    [told] = desk.of(Trouble)
    assert isinstance(told, Trouble) and told.where == "node open" and "level 0" in told.message


def test_a_study_whose_people_trust_the_code_leases_to_every_node() -> None:
    desk = Desk({**MODEL, "nodes": {"trust_code": True}})
    join(desk, at_level("open", 0))
    assert [block.node for block in desk.outstanding()] == ["uid-open"]
    assert not desk.of(Trouble)


def test_a_node_that_comes_back_without_walls_is_leased_nothing_more() -> None:
    desk = Desk(MODEL)
    join(desk, at_level("one", 2))
    while blocks := desk.outstanding("calibrate"):
        desk.run(blocks[0], {})
    desk.now = START + 60
    join(desk, at_level("one", 0))
    desk.claim("one", proposal(BETTER))
    assert not desk.outstanding()


def confirmed_at(level: int, **settings: object) -> Verdict:
    """What is decided on a good idea whose last runs say that they ran at this level, whatever their node had said."""
    desk = Desk({**MODEL, **settings})
    join(desk, at_level("one", 1))
    while blocks := desk.outstanding("calibrate"):
        desk.run(blocks[0], {})
    desk.claim("one", proposal(BETTER))
    while blocks := desk.outstanding("confirm"):
        scores = (1.0 if candidate == candidate_id(BETTER) else 2.0 for candidate in blocks[0].candidates)
        runs = [trial_of(blocks[0], place, measured(score), desk.now) for place, score in enumerate(scores)]
        desk.report(desk.heard("uid-one", facts=tuple(replace(run, sandbox_level=level) for run in runs)))
        desk.report(desk.heard("uid-one"))
    [verdict] = desk.of(Verdict)
    assert isinstance(verdict, Verdict)
    return verdict


def test_runs_at_the_level_that_the_code_asks_for_are_believed() -> None:
    assert confirmed_at(1).accepted


def test_no_accepting_verdict_rests_on_a_run_below_it() -> None:
    verdict = confirmed_at(0)
    assert not verdict.accepted
    assert "level 0" in verdict.reason and FLAG in verdict.reason


def test_unless_the_people_of_the_study_trust_the_code() -> None:
    assert confirmed_at(0, nodes={"trust_code": True}).accepted
