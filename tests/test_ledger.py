"""The promises of Ledger and Spool: once, in order, all or none, for ever; one writer, any number of readers."""

import errno
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from factories import finished_study, small_study

from swarm.codec import EncodeError
from swarm.errors import PrerequisiteError
from swarm.history import history
from swarm.ledger import SCHEMA_VERSION, Ledger, Spool
from swarm.records import (
    Carried,
    Fact,
    Failure,
    HoldoutAnswered,
    Interaction,
    Measurement,
    Promotion,
    TrialFinished,
    Trouble,
    Verdict,
)

FACTS = finished_study().facts


def trouble(number: int) -> Trouble:
    return Trouble("forge", f"away {number}", float(number))


KEEPS = "CREATE TRIGGER fact_keeps BEFORE UPDATE ON fact BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
BROKEN = Trouble("forge", "away", float("nan"))  # cannot be written


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study" / "ledger.sqlite"


@pytest.fixture
def full(path: Path) -> Path:
    """A ledger with a whole study in it, closed."""
    with Ledger(path) as ledger:
        ledger.append(FACTS, 7.0)
    return path


def rows_of(path: Path, query: str) -> list[dict[str, Any]]:
    """What any SQLite client sees."""
    with closing(sqlite3.connect(path)) as client:
        client.row_factory = sqlite3.Row
        return [dict(row) for row in client.execute(query)]


@contextmanager
def running(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process of its own, killed at the end."""
    command = (sys.executable, "-c", script, *map(str, arguments))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


# --- facts -----------------------------------------------------------------------------------------------


def test_facts_come_back_in_order_with_their_time(path: Path) -> None:
    with Ledger(path) as ledger:
        assert ledger.append(FACTS[:5], 1.0) == list(FACTS[:5])
        assert ledger.append(FACTS[5:], 2.5) == list(FACTS[5:])
        assert ledger.facts() == tuple(FACTS)
        assert [row.at for row in ledger.rows()] == [1.0] * 5 + [2.5] * (len(FACTS) - 5)
        assert [row.fact for row in ledger.rows(after=5)] == list(FACTS[5:])
    with Ledger(path) as again:
        assert again.facts() == tuple(FACTS)


def test_a_second_arrival_changes_nothing(path: Path) -> None:
    first = next(fact for fact in FACTS if isinstance(fact, TrialFinished))
    other = replace(first, log="told differently", seed=first.seed + 1)
    with Ledger(path) as ledger:
        assert ledger.append([first, first, other], 1.0) == [first]
        assert ledger.append([other, trouble(1)], 2.0) == [trouble(1)]
        assert ledger.facts() == (first, trouble(1))
        assert [row.at for row in ledger.rows()] == [1.0, 2.0]


def test_an_empty_append_is_none(path: Path) -> None:
    with Ledger(path) as ledger:
        assert ledger.append([], 1.0) == []
        assert ledger.facts() == ()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_all_or_none(path: Path, place: int) -> None:
    facts: list[Fact] = [trouble(1), trouble(2)]
    facts.insert(place, BROKEN)
    with Ledger(path) as ledger:
        ledger.append([trouble(0)], 1.0)
        with pytest.raises(EncodeError):
            ledger.append(facts, 2.0)
        assert ledger.facts() == (trouble(0),)
        assert ledger.append([trouble(1)], 3.0) == [trouble(1)], "it goes on"


def test_facts_that_fail_while_they_are_made_leave_nothing(path: Path) -> None:
    def making() -> Iterator[Fact]:
        yield trouble(1)
        raise KeyboardInterrupt

    with Ledger(path) as ledger:
        with pytest.raises(KeyboardInterrupt):
            ledger.append(making(), 1.0)
        assert ledger.facts() == ()
        assert ledger.append([trouble(1)], 1.0)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE fact SET body = '{}'",
        "UPDATE fact SET at = 0 WHERE seq = 1",
        "DELETE FROM fact",
        "DELETE FROM fact WHERE seq = 1",
        "INSERT OR REPLACE INTO fact (key, kind, at, body) SELECT key, kind, at, '{}' FROM fact WHERE seq = 1",
        "INSERT OR REPLACE INTO fact VALUES (1, 'new', 'trouble', 0, '{}')",
        "INSERT INTO fact (key, kind, at, body) SELECT key, kind, at, '{}' FROM fact WHERE seq = 1",
    ],
)
def test_the_ledger_is_append_only_for_everybody(full: Path, statement: str) -> None:
    with closing(sqlite3.connect(full)) as client, suppress(sqlite3.IntegrityError):
        client.execute(statement)
        client.commit()
    with Ledger(full) as ledger:
        assert ledger.facts() == tuple(FACTS)


# --- one writer, any number of readers -------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from swarm.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
print("holding", flush=True)
sys.stdin.read()
"""


def test_a_second_writer_is_told_who_holds_it_and_gets_it_when_that_one_is_killed(path: Path) -> None:
    with running(HOLDER, path) as holder:
        assert line(holder) == "holding"
        with pytest.raises(PrerequisiteError, match=rf"process {holder.pid}\).*`swarm leave --study {path.parent}`"):
            Ledger(path)
        assert Ledger(path, read_only=True).facts() == ()
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(10)
        with Ledger(path) as ledger:
            assert ledger.append([trouble(1)], 1.0)


def test_a_second_writer_in_the_same_process_is_refused_too(path: Path) -> None:
    with Ledger(path), pytest.raises(PrerequisiteError, match=f"process {os.getpid()}"):
        Ledger(path)
    with Ledger(path) as again:
        assert again.facts() == ()


def test_a_writer_that_could_not_open_gives_the_lock_back(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("something else, and more than a header of it" * 10)
    for _ in range(2):
        with pytest.raises(PrerequisiteError, match="no ledger but some other file"):
            Ledger(path)
    path.unlink()
    Ledger(path).close()


READER = """
import sys
from pathlib import Path
from swarm.ledger import Ledger
with Ledger(Path(sys.argv[1]), read_only=True) as ledger:
    for _ in sys.stdin:
        print(len(ledger.facts()), flush=True)
"""


def test_a_reader_sees_what_is_committed_while_a_writer_writes(path: Path) -> None:
    with Ledger(path) as ledger, running(READER, path) as reader:
        assert reader.stdin
        for number in range(5):
            ledger.append([trouble(2 * number), trouble(2 * number + 1)], 1.0)
            print("how many?", file=reader.stdin, flush=True)
            assert line(reader) == str(2 * number + 2)


def test_a_reader_may_not_write(full: Path) -> None:
    with Ledger(full, read_only=True) as reader, pytest.raises(PrerequisiteError, match="cannot be opened"):
        reader.append([trouble(1)], 1.0)


def test_a_reader_makes_nothing(path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="no study has run there yet"):
        Ledger(path, read_only=True)
    assert not path.parent.exists()


# --- views -----------------------------------------------------------------------------------------------


def test_the_view_of_trials_holds_every_trial(full: Path) -> None:
    trials = [fact for fact in FACTS if isinstance(fact, TrialFinished)]
    shown = rows_of(full, "SELECT * FROM trial ORDER BY seq")
    assert [row["trial"] for row in shown] == [trial.trial for trial in trials]
    for row, trial in zip(shown, trials, strict=True):
        assert (row["purpose"], row["candidate"], row["seed"]) == (trial.purpose, trial.candidate, trial.seed)
        assert (row["started_at"], row["ended_at"], row["node"]) == (trial.started_at, trial.ended_at, trial.node)
        assert row["score"] == (trial.outcome.score if isinstance(trial.outcome, Measurement) else None)
        assert row["failure"] == (trial.outcome.reason if isinstance(trial.outcome, Failure) else None)


def test_the_view_of_experiments_numbers_and_judges_as_the_history_does(full: Path) -> None:
    shown = rows_of(full, "SELECT * FROM experiment ORDER BY number")
    told = history(FACTS).experiments
    assert [(row["number"], row["idea"], row["hypothesis"]) for row in shown] == [
        (e.number, e.idea, e.hypothesis) for e in told
    ]
    assert {e.status for e in told} == {"promoted", "rejected", "claimed", "kept", "dropped", "failed"}
    assert [row["status"] for row in shown] == [e.status for e in told]


def test_an_idea_that_was_not_tried_is_open_and_an_accepted_one_is_not_yet_promoted(path: Path) -> None:
    scribe = small_study()
    promoted = next(fact for fact in scribe.facts if isinstance(fact, Promotion))
    carried = Carried(promoted.experiment, "tree", "onto", {"train.py": ""}, 9.0)
    scribe.admit("untried", "NEW = 1")
    with Ledger(path) as ledger:
        ledger.append([fact for fact in scribe.facts if fact is not promoted], 1.0)
        status = {row["idea"]: row["status"] for row in rows_of(path, "SELECT idea, status FROM experiment")}
        assert status[promoted.experiment] == "accepted"
        assert list(status.values())[-1] == "open"
        ledger.append([carried], 1.5)
        status = {row["idea"]: row["status"] for row in rows_of(path, "SELECT idea, status FROM experiment")}
        assert status[promoted.experiment] == "claimed", "on the moved champion it is under confirmation again"
        ledger.append([promoted], 2.0)
        status = {row["idea"]: row["status"] for row in rows_of(path, "SELECT idea, status FROM experiment")}
        assert status[promoted.experiment] == "promoted"


def test_what_the_holdout_refused_is_rejected_and_every_answer_can_be_asked_for(path: Path) -> None:
    scribe = small_study()
    promoted = next(fact for fact in scribe.facts if isinstance(fact, Promotion))
    passed = next(fact for fact in scribe.facts if isinstance(fact, HoldoutAnswered))
    refused = replace(passed, passed=False, gain=None)
    facts = [refused if fact is passed else fact for fact in scribe.facts if fact is not promoted]
    with Ledger(path) as ledger:
        ledger.append(facts, 1.0)
    status = {row["idea"]: row["status"] for row in rows_of(path, "SELECT idea, status FROM experiment")}
    assert status == {e.idea: "open" if e.status == "waiting" else e.status for e in history(facts).experiments}
    assert status[promoted.experiment] == "rejected"
    assert rows_of(path, "SELECT number, experiment, passed, gain FROM holdout") == [
        {"number": 1, "experiment": promoted.experiment, "passed": 0, "gain": None}
    ]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_ledger_of_an_older_format_gets_the_new_views_and_keeps_its_facts(full: Path, version: int) -> None:
    change(full, "DROP VIEW experiment", "CREATE VIEW experiment AS SELECT 1 AS number")
    change(full, *["DROP VIEW interaction", "DROP VIEW holdout"][: 3 - version])
    change(full, "DROP TRIGGER fact_keeps", "UPDATE fact SET body = json_remove(body, '$.ideas')", KEEPS)
    change(full, f"PRAGMA user_version = {version}")
    with Ledger(full, read_only=True) as ledger:
        assert ledger.facts() == tuple(FACTS), "a reader needs no new views"
    joined = Interaction("set", ("a", "b"), "champion", 0.1, 0.3, 2, "", 8.0)
    with Ledger(full) as ledger:
        assert ledger.facts() == tuple(FACTS)
        ledger.append([joined], 8.0)
    assert rows_of(full, "SELECT count(*) AS n FROM holdout") == [{"n": 1}]
    told = history(FACTS).experiments
    assert [row["number"] for row in rows_of(full, "SELECT number FROM experiment")] == [e.number for e in told]
    assert [row["number"] for row in rows_of(full, "SELECT number FROM experiment WHERE status = 'promoted'")] == [
        e.number for e in told if e.status == "promoted"
    ]
    assert rows_of(full, "SELECT ideas, gain, expected, pairs FROM interaction") == [
        {"ideas": '["a","b"]', "gain": 0.1, "expected": 0.3, "pairs": 2}
    ]
    with Ledger(full):
        pass  # and once is enough


def test_ideas_that_landed_together_are_promoted_in_the_view(path: Path) -> None:
    scribe = small_study()
    kept, claimed = (e for e in history(scribe.facts).experiments if e.status in ("kept", "claimed"))
    landed = Promotion(2, "set", "tree", scribe.champion, "sha", "request 2", 9.0, ideas=(kept.idea, claimed.idea))
    with Ledger(path) as ledger:
        ledger.append([*scribe.facts, landed], 1.0)
    promoted = rows_of(path, "SELECT number FROM experiment WHERE status = 'promoted' ORDER BY number")
    assert [row["number"] for row in promoted] == [2, kept.number, claimed.number]


def test_the_views_of_verdicts_and_promotions(full: Path) -> None:
    verdicts = [fact for fact in FACTS if isinstance(fact, Verdict)]
    shown = rows_of(full, "SELECT * FROM verdict ORDER BY seq")
    assert [
        (row["experiment"], bool(row["accepted"]), row["effect"], row["pairs"], row["reason"]) for row in shown
    ] == [(v.experiment, v.accepted, v.effect, v.pairs, v.reason) for v in verdicts]
    promotions = [fact for fact in FACTS if isinstance(fact, Promotion)]
    shown = rows_of(full, 'SELECT number, experiment, "commit", request FROM promotion ORDER BY seq')
    assert [tuple(row.values()) for row in shown] == [(p.number, p.experiment, p.commit, p.request) for p in promotions]


# --- files that are no ledger, or another version's -------------------------------------------------------


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as client:
        for statement in statements:
            client.execute(statement)
        client.commit()


@pytest.mark.parametrize("read_only", [False, True])
def test_a_newer_version_is_refused_and_left_alone(full: Path, read_only: bool) -> None:
    change(full, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = full.read_bytes()
    with pytest.raises(
        PrerequisiteError, match=f"format {SCHEMA_VERSION + 1}, this one knows {SCHEMA_VERSION}.*update"
    ):
        Ledger(full, read_only=read_only)
    assert full.read_bytes() == before


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("version", [0, SCHEMA_VERSION])
def test_the_database_of_another_program_is_refused_and_left_alone(
    tmp_path: Path, read_only: bool, version: int
) -> None:
    path = tmp_path / "ledger.sqlite"
    change(path, "CREATE TABLE songs (name TEXT)", f"PRAGMA user_version = {version}")
    with pytest.raises(PrerequisiteError, match="database of some other program"):
        Ledger(path, read_only=read_only)
    assert rows_of(path, "SELECT name FROM sqlite_master WHERE type = 'table'") == [{"name": "songs"}]


def test_a_ledger_without_tables_is_an_empty_one(path: Path) -> None:
    path.parent.mkdir()
    path.touch()  # a coordinator was killed before it made them
    with Ledger(path, read_only=True) as reader:
        assert reader.facts() == ()
        with Ledger(path) as writer:
            writer.append([trouble(1)], 1.0)
        assert reader.facts() == (trouble(1),)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_file_that_was_cut_short_is_refused(full: Path, part: float) -> None:
    whole = full.read_bytes()
    full.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(PrerequisiteError, match="is damaged"), Ledger(full, read_only=True) as reader:
        reader.facts()


def test_a_fact_of_another_version_is_refused_by_its_number(full: Path) -> None:
    change(full, """INSERT INTO fact (key, kind, at, body) VALUES ('x', 'dream', 1, '{"kind": "dream"}')""")
    with Ledger(full, read_only=True) as reader, pytest.raises(PrerequisiteError, match=f"fact {len(FACTS) + 1} was"):
        reader.facts()


# --- killed in the middle --------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from swarm.ledger import Ledger, Spool
from swarm.records import Trouble
kind, path = sys.argv[1], Path(sys.argv[2])
ledger = Ledger(path) if kind == "ledger" else Spool(path)
number = 0
while True:
    batch = [Trouble("forge", "x" * 500, float(number + offset)) for offset in range(3)]
    number += 3
    if kind == "ledger":
        ledger.append(batch, 1.0)
    else:
        ledger.put(batch, str(number).encode())
    print(number, flush=True)
"""


def kill_after(lines: int, kind: str, path: Path) -> int:
    """Kill a writer with -9 while it writes; how many facts it said were committed."""
    with running(WRITER, kind, path) as writer:
        for _ in range(lines):
            committed = int(line(writer))
        os.kill(writer.pid, signal.SIGKILL)
        rest, _ = writer.communicate(timeout=10)
    return max([committed, *map(int, rest.split())])


@pytest.mark.parametrize("lines", [1, 7, 20])
def test_kill_9_loses_nothing_that_was_committed_and_leaves_no_half(path: Path, lines: int) -> None:
    committed = kill_after(lines, "ledger", path)
    with Ledger(path) as ledger:
        facts = ledger.facts()
        assert len(facts) >= committed and len(facts) % 3 == 0
        assert [fact.key for fact in facts] == [Trouble("forge", "", float(n)).key for n in range(len(facts))]
        assert ledger.append([BROKEN.__class__("forge", "on it goes", 1e9)], 2.0)


@pytest.mark.parametrize("lines", [1, 12])
def test_kill_9_leaves_facts_and_memory_of_a_spool_in_step(tmp_path: Path, lines: int) -> None:
    committed = kill_after(lines, "spool", tmp_path / "spool.sqlite")
    with closing(Spool(tmp_path / "spool.sqlite")) as spool:
        facts = spool.offered(10**6)
        assert len(facts) >= committed
        assert spool.memory() == str(len(facts)).encode()


# --- the spool -------------------------------------------------------------------------------------------


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with closing(Spool(tmp_path / "node" / "spool.sqlite")) as spool:
        yield spool


def reopened(spool: Spool, tmp_path: Path) -> Spool:
    spool.close()
    return Spool(tmp_path / "node" / "spool.sqlite")


def test_facts_are_offered_in_order_until_they_are_acknowledged(spool: Spool, tmp_path: Path) -> None:
    spool.put([trouble(n) for n in range(5)])
    assert spool.offered(3) == [trouble(0), trouble(1), trouble(2)]
    spool.forget([trouble(0).key, trouble(2).key, "never heard of"])
    with closing(reopened(spool, tmp_path)) as again:
        assert again.offered(10) == [trouble(1), trouble(3), trouble(4)]
        assert again.pending(trouble(1).key) and not again.pending(trouble(0).key)
        assert again.produced() == {trouble(n).key for n in range(5)}


def test_what_was_acknowledged_is_not_offered_again(spool: Spool) -> None:
    spool.put([trouble(1)])
    spool.put([trouble(1)])
    assert spool.offered(10) == [trouble(1)]
    spool.forget([trouble(1).key])
    spool.put([trouble(1)])
    assert spool.offered(10) == []


def test_memory_is_replaced_as_a_whole_and_kept(spool: Spool, tmp_path: Path) -> None:
    assert spool.memory() is None
    spool.put([], b"first")
    spool.put([], b"second")
    spool.put([trouble(1)])
    with closing(reopened(spool, tmp_path)) as again:
        assert again.memory() == b"second"


def test_facts_and_memory_change_together_or_not_at_all(spool: Spool) -> None:
    spool.put([trouble(1)], b"before")
    with pytest.raises(EncodeError):
        spool.put([trouble(2), BROKEN], b"after")
    assert spool.offered(10) == [trouble(1)]
    assert spool.memory() == b"before"
    assert trouble(2).key not in spool.produced()
    spool.put([trouble(2)], b"after")
    assert (spool.offered(10), spool.memory()) == ([trouble(1), trouble(2)], b"after")


def test_a_damaged_spool_is_named(tmp_path: Path) -> None:
    (tmp_path / "spool.sqlite").write_text("these are notes\n" * 100)
    with pytest.raises(PrerequisiteError, match=r"spool\.sqlite is no ledger but some other file"):
        Spool(tmp_path / "spool.sqlite")


# --- a full disk -----------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
@pytest.mark.parametrize("kind", ["ledger", "spool"])
def test_a_full_disk_loses_nothing_and_can_be_gone_on_from(tmp_path: Path, kind: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "swarm-test", str(disk)]).returncode:
        pytest.skip("mounting a small disk takes more rights than these tests have")
    try:
        (disk / "fill").write_bytes(bytes(600_000))
        store = Ledger(disk / "a.sqlite") if kind == "ledger" else Spool(disk / "a.sqlite")

        def write(number: int) -> None:
            fact = Trouble("forge", "x" * 20_000, float(number))
            store.append([fact], 1.0) if isinstance(store, Ledger) else store.put([fact], str(number).encode())

        written = 0
        with pytest.raises(OSError) as caught:
            while True:
                write(written)
                written += 1
        assert caught.value.errno == errno.ENOSPC and written > 3
        (disk / "fill").unlink()
        write(written)
        kept = store.facts() if isinstance(store, Ledger) else store.offered(1000)
        assert [fact.key for fact in kept] == [Trouble("forge", "", float(n)).key for n in range(written + 1)]
        store.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
