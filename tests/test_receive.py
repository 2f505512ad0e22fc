"""A node whose preparation gave other data receives the study's: whole and checked, or not at all."""

import hashlib
import json
import random
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from desk import Desk, info
from hypothesis import given, settings
from hypothesis import strategies as st
from test_agent import PATIENCE_S, TASK, TRAIN, Boss, Hosted, brief, setup

from coordinator.handout import piece_of
from coordinator.roster import PIECES_PER_ROUND, Roster
from node.agent import Agent
from node.home import node_home
from node.receive import NotReceived, data_for, receive_data
from swarm.cluster.inprocess import InProcessCluster
from swarm.cluster.port import Member
from swarm.codec import pack, unpack
from swarm.corpus import MANIFEST, MOST_SENT_BYTES, PIECE_BYTES, parse_manifest, read_manifest
from swarm.errors import TaskError
from swarm.records import Fact, Orders, Piece, PieceWanted, Report, Screened, Setup, Trouble
from swarm.task import load_task

OURS, THEIRS = "ours" * 16, "theirs" * 10
PREPARES = f"""
import json, pathlib, sys
out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
(out / "manifest.json").write_text(json.dumps({{"fingerprint": "{OURS}"}}))
"""
DATA_TASK = TASK.replace('train = "train.py"', 'train = "train.py"\nprepare = "prepare.py {data}"')
TEXTS = {"train/tokens.bin": b"the tokens", "val/tokens.bin": b"others", "empty.txt": b""}
SETUP = Setup("toy-1", 0, "minimize", {}, "tuner", fingerprint=THEIRS)


def corpus(folder: Path, files: Mapping[str, bytes] = TEXTS, fingerprint: str = THEIRS) -> Path:
    """A folder as a Task's own script leaves it."""
    for name, raw in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)
    listed = {name: {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()} for name, raw in files.items()}
    (folder / MANIFEST).write_text(json.dumps({"fingerprint": fingerprint, "files": listed}))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def serve(folder: Path) -> Callable[[PieceWanted], Piece]:
    return partial(piece_of, str(folder))


def task_files() -> dict[str, bytes]:
    return {"train.py": TRAIN.encode(), "task.toml": DATA_TASK.encode(), "prepare.py": PREPARES.encode()}


# ---- from folder to folder


def test_a_folder_arrives_as_it_is_and_is_used_without_asking_again(tmp_path: Path) -> None:
    large = random.Random(0).randbytes(2 * PIECE_BYTES + 17)
    there = corpus(tmp_path / "there", {**TEXTS, "large.bin": large, "exact.bin": large[:PIECE_BYTES]})
    data = receive_data(serve(there), THEIRS, tmp_path / "home" / "received")
    assert data.fingerprint == THEIRS
    assert contents(data.folder) == contents(there)
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["received"], "nothing is left beside it"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_happens_on_the_way_what_is_kept_is_what_was_listed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    base = tmp_path_factory.mktemp("way")
    there = corpus(base / "there")

    def damaged(wanted: PieceWanted) -> Piece:
        piece = piece_of(str(there), wanted)
        match data.draw(st.sampled_from(["well", "well", "cut", "flipped", "other", "empty", "longer", "zeros"])):
            case "cut":
                return replace(piece, packed=piece.packed[: len(piece.packed) // 2])
            case "flipped":
                middle = len(piece.packed) // 2
                return replace(piece, packed=piece.packed[:middle] + b"\xff" + piece.packed[middle + 1 :])
            case "other":
                return replace(piece, packed=zlib.compress(b"not it"))
            case "empty":
                return replace(piece, packed=zlib.compress(b""))
            case "longer":
                return replace(piece, size=piece.size + 1)
            case "zeros":
                return replace(piece, packed=zlib.compress(bytes(10 * PIECE_BYTES)))
        return piece

    out = base / "home" / "received"
    try:
        receive_data(damaged, THEIRS, out)
    except NotReceived:
        assert not out.exists()
        receive_data(serve(there), THEIRS, out)
    assert contents(out) == contents(there)


def test_a_file_that_comes_damaged_once_is_asked_for_again(tmp_path: Path) -> None:
    there = corpus(tmp_path / "there")
    asked: list[str] = []

    def bad_line(wanted: PieceWanted) -> Piece:
        asked.append(wanted.path)
        piece = piece_of(str(there), wanted)
        return replace(piece, packed=piece.packed[:5]) if asked == [MANIFEST, "train/tokens.bin"] else piece

    assert contents(receive_data(bad_line, THEIRS, tmp_path / "received").folder) == contents(there)
    assert asked.count("train/tokens.bin") == 2 and asked.count(MANIFEST) == 1


def test_what_a_killed_transfer_left_is_used_as_far_as_it_is_right(tmp_path: Path) -> None:
    there = corpus(tmp_path / "there", {f"{n}.bin": bytes([n]) * 100 for n in range(6)})
    asked: list[str] = []

    def killed(wanted: PieceWanted) -> Piece:
        asked.append(wanted.path)
        if len(asked) == 5:
            raise KeyboardInterrupt
        return piece_of(str(there), wanted)

    with pytest.raises(KeyboardInterrupt):
        receive_data(killed, THEIRS, tmp_path / "received")
    assert not (tmp_path / "received").exists()
    (tmp_path / ".received.partial" / "0.bin").write_bytes(b"a crash damaged it")
    assert contents(receive_data(killed, THEIRS, tmp_path / "received").folder) == contents(there)
    assert "1.bin" not in asked[5:] and "0.bin" in asked[5:]


def test_a_received_folder_that_was_damaged_later_is_received_again(tmp_path: Path) -> None:
    there, folder = corpus(tmp_path / "there"), tmp_path / "task"
    folder.mkdir()
    for name, raw in task_files().items():
        (folder / name).write_bytes(raw)
    told: list[str] = []

    def get(fetch: Callable[[PieceWanted], Piece]) -> dict[str, bytes]:
        data = data_for(load_task(folder), folder, SETUP, tmp_path / "home", fetch, told.append)
        assert data is not None
        return contents(data.folder)

    def nobody(wanted: PieceWanted) -> Piece:
        raise AssertionError("it has everything")

    assert get(serve(there)) == contents(there)
    assert get(nobody) == contents(there)
    (kept,) = (tmp_path / "home").glob("received-*")
    (kept / "val" / "tokens.bin").write_bytes(b"damage")
    assert get(serve(there)) == contents(there)
    assert len(told) == 2


def test_what_is_too_large_or_cannot_be_checked_is_not_sent(tmp_path: Path) -> None:
    there = corpus(tmp_path / "large")
    listed = {"tokens.bin": {"bytes": MOST_SENT_BYTES + 1, "sha256": ""}}
    (there / MANIFEST).write_text(json.dumps({"fingerprint": THEIRS, "files": listed}))
    with pytest.raises(NotReceived, match="256 MB"):
        receive_data(serve(there), THEIRS, tmp_path / "received")
    (there / MANIFEST).write_text(json.dumps({"fingerprint": THEIRS}))
    with pytest.raises(NotReceived, match="hashes"):
        receive_data(serve(there), THEIRS, tmp_path / "received")
    with pytest.raises(NotReceived, match="now has fingerprint"):
        receive_data(serve(corpus(tmp_path / "other", fingerprint=OURS)), THEIRS, tmp_path / "received")
    with pytest.raises(NotReceived, match="coordinator cannot send"):
        receive_data(serve(tmp_path / "nowhere"), THEIRS, tmp_path / "received")


@pytest.mark.parametrize("path", ["../secret", "secret", "/etc/passwd", "train", "", "train/../../secret"])
def test_nothing_leaves_the_coordinator_that_its_manifest_does_not_list(path: str, tmp_path: Path) -> None:
    there = corpus(tmp_path / "there")
    (tmp_path / "secret").write_text("secret")
    (there / "secret").write_text("secret")
    piece = piece_of(str(there), PieceWanted(path, 0))
    assert piece.refused and not piece.packed
    assert piece_of(str(there), PieceWanted(MANIFEST, -1)).refused
    assert piece_of("", PieceWanted(MANIFEST, 0)).refused


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", MANIFEST])
def test_a_manifest_that_lists_files_outside_its_folder_is_none(name: str, tmp_path: Path) -> None:
    raw = json.dumps({"fingerprint": "f", "files": {name: {"bytes": 1, "sha256": ""}}})
    with pytest.raises(ValueError, match="no file of its folder"):
        parse_manifest(raw.encode())
    (tmp_path / MANIFEST).write_text(raw)
    with pytest.raises(TaskError, match="prepare again"):
        read_manifest(tmp_path)


# ---- the real agent


def test_who_cannot_make_the_data_gets_it_too_or_hears_both_reasons(tmp_path: Path) -> None:
    there, folder = corpus(tmp_path / "there"), tmp_path / "task"
    folder.mkdir()
    for name, raw in {**task_files(), "prepare.py": b"raise SystemExit('prepare: no network')"}.items():
        (folder / name).write_bytes(raw)
    told: list[str] = []

    def get(folder_of_the_study: Path) -> None:
        wants = serve(folder_of_the_study)
        data = data_for(load_task(folder), folder, SETUP, tmp_path / "home", wants, told.append)
        assert data is not None and contents(data.folder) == contents(there)

    with pytest.raises(TaskError, match=r"prepare: no network; .* was not received"):
        get(tmp_path / "gone")
    get(there)
    assert len(told) == 1 and "prepare: no network" in told[0]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SWARM_NODE_NAME", "ant")
    return tmp_path / "home"


def test_an_agent_with_other_data_is_told_and_ends_up_on_the_platform_of_the_study(home: Path, tmp_path: Path) -> None:
    """The coordinator's side and the node's, with the cluster between them replaced by calls."""
    there = corpus(tmp_path / "there", {**TEXTS, "large.bin": random.Random(1).randbytes(2 * PIECE_BYTES)})
    born = setup(task_files=task_files(), data="/nowhere", fingerprint=THEIRS)
    agents: list[Agent] = []

    def hire(member: Member, data: bytes) -> Agent:
        agents.append(Agent(data))
        return agents[-1]

    troubles: list[str] = []
    roster = Roster(
        cluster=InProcessCluster([Member("ray-1", "ant", "here")], hire),
        mind=Desk().mind,
        setup=lambda: born,
        trouble=lambda where, message: troubles.append(message),
        heal=lambda: None,
        clock=time.time,
        lost_after_s=90.0,
        piece=serve(there),
    )
    roster.meet()
    deadline, facts = time.monotonic() + PATIENCE_S, dict[str, Fact]()
    while not (reports := roster.exchange(5.0)) or not reports[0].ready:
        assert time.monotonic() < deadline, (reports, troubles)
        facts.update((fact.key, fact) for report in reports for fact in report.facts)
        time.sleep(0.01)
    facts.update((fact.key, fact) for fact in reports[0].facts)
    assert reports[0].node.platform.data == THEIRS and reports[0].wants is None
    (told,) = [fact.message for fact in facts.values() if isinstance(fact, Trouble)]
    assert OURS[:12] in told and THEIRS[:12] in told and not troubles
    (received,) = (node_home() / "data").glob("received-*")
    assert contents(received) == contents(there)
    Boss(agents[0], epoch=99, drain=True).until(lambda report: report.drained, "the agent drains")


@pytest.mark.parametrize("large", [True, False])
def test_an_agent_that_cannot_have_it_says_what_to_do_and_works_apart(large: bool, home: Path, tmp_path: Path) -> None:
    there = corpus(tmp_path / "there")
    if large:
        listed = {"tokens.bin": {"bytes": MOST_SENT_BYTES + 1, "sha256": ""}}
        (there / MANIFEST).write_text(json.dumps({"fingerprint": THEIRS, "files": listed}))
    else:
        (there / "val" / "tokens.bin").write_bytes(b"damage")
    boss = Boss(Agent(setup(task_files=task_files(), data="/far/away", fingerprint=THEIRS)), brief=brief())
    while not (report := boss.call(piece=_wanted(boss, there))).ready:
        time.sleep(0.01)
    assert report.node.platform.data == OURS
    boss.until(lambda report: boss.of(Screened), "it works all the same")
    (told,) = [fact.message for fact in boss.of(Trouble)]
    assert "/far/away" in told and "nodes.data" in told
    boss.epoch, boss.drain = 99, True
    boss.until(lambda report: report.drained, "the agent drains")


def _wanted(boss: Boss, there: Path) -> Piece | None:
    wants = boss.last.wants if boss.last is not None else None
    return piece_of(str(there), wants) if wants is not None else None


def test_killed_in_the_middle_it_receives_the_rest_in_its_next_life(home: Path, tmp_path: Path) -> None:
    there = corpus(tmp_path / "there", {f"{n}.bin": bytes([n]) * 100 for n in range(6)})
    environment = {"SWARM_NODE_HOME": str(home), "SWARM_NODE_NAME": "ant"}
    for life in range(2):
        agent = Hosted(setup(task_files=task_files(), fingerprint=THEIRS), environment)
        boss, deadline = Boss(agent, epoch=life + 1), time.monotonic() + PATIENCE_S
        while not (report := boss.call(piece=_wanted(boss, there))).ready:
            assert time.monotonic() < deadline, report
            if life == 0 and report.wants is not None and report.wants.path == "3.bin":
                break
            time.sleep(0.005)
        assert report.ready == (life == 1)
        agent.kill()
    assert report.node.platform.data == THEIRS
    (received,) = (home / "data").glob("received-*")
    assert contents(received) == contents(there)


class Greedy:
    """Wants one piece for ever, whatever it gets."""

    def __init__(self, name: str) -> None:
        self.report, self.got = Report(info(name), "", wants=PieceWanted(MANIFEST, 0), ready=False), 0

    def exchange(self, orders: bytes) -> bytes:
        self.got += unpack(orders, Orders).piece is not None
        return pack(self.report)


def test_a_round_serves_a_few_in_the_order_in_which_they_asked(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(PIECES_PER_ROUND + 2)]
    greedy = {name: Greedy(name) for name in names}
    roster = Roster(
        cluster=InProcessCluster([Member(name, name, "here") for name in names], lambda m, _: greedy[m.id]),
        mind=Desk().mind,
        setup=lambda: b"",
        trouble=lambda where, message: None,
        heal=lambda: None,
        clock=time.time,
        lost_after_s=90.0,
        piece=serve(corpus(tmp_path / "there")),
    )
    roster.meet()
    for _ in range(3):
        roster.exchange(5.0)
    assert [greedy[name].got for name in names] == [2] * PIECES_PER_ROUND + [0, 0]
    greedy["n0"].report = replace(greedy["n0"].report, wants=None)
    for _ in range(2):
        roster.exchange(5.0)
    assert greedy[names[PIECES_PER_ROUND]].got == 1
