"""Facts on disk: the coordinator's Ledger and the node's Spool. The only home of SQLite.

The Ledger is append-only (triggers refuse UPDATE and DELETE) and has one writer, held by a file lock. A fact's
`key` is unique, so a second arrival changes nothing. Everything else is a view: open it with any SQLite client.

The Spool keeps what a node has finished and not yet been thanked for, together with the researcher's memory, so
that both change in one transaction and a kill between them cannot happen.

Protective: what looks like a credential in the words of a fact is struck out on the way in. What was written before is
not changed, nor are a Candidate's files (`swarm/scrub.py`).
"""

import errno
import fcntl
import math
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from swarm.codec import DecodeError, fact_from_json, fact_to_json, pack, unpack_fact
from swarm.errors import PrerequisiteError
from swarm.records import Fact
from swarm.scrub import scrubbed

SCHEMA_VERSION = 4
_LEAST_ROOM_BYTES = 65_536  # the file that SQLite shares with readers takes 32 kB at once

_SCHEMA = """
CREATE TABLE fact (
    seq  INTEGER PRIMARY KEY,
    key  TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    at   REAL NOT NULL,          -- when the coordinator committed it, Unix seconds
    body TEXT NOT NULL           -- JSON
);
CREATE INDEX fact_kind ON fact (kind, seq);
CREATE TRIGGER fact_keeps BEFORE UPDATE ON fact BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER fact_once BEFORE INSERT ON fact WHEN EXISTS (SELECT 1 FROM fact WHERE key = NEW.key OR seq = NEW.seq)
    BEGIN SELECT RAISE(IGNORE); END;  -- INSERT OR REPLACE deletes without asking the trigger below
CREATE TRIGGER fact_stays BEFORE DELETE ON fact BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;

CREATE VIEW trial AS SELECT
    seq, at,
    json_extract(body, '$.trial') AS trial, json_extract(body, '$.purpose') AS purpose,
    json_extract(body, '$.experiment') AS experiment,
    json_extract(body, '$.candidate') AS candidate, json_extract(body, '$.seed') AS seed,
    json_extract(body, '$.node') AS node,
    json_extract(body, '$.outcome.score') AS score, json_extract(body, '$.outcome.cpu_s') AS cpu_s,
    json_extract(body, '$.outcome.reason') AS failure, json_extract(body, '$.block') AS block,
    json_extract(body, '$.started_at') AS started_at, json_extract(body, '$.ended_at') AS ended_at
    FROM fact WHERE kind = 'trial_finished';
CREATE VIEW verdict AS SELECT
    seq, at, json_extract(body, '$.experiment') AS experiment,
    json_extract(body, '$.accepted') AS accepted, json_extract(body, '$.effect') AS effect,
    json_extract(body, '$.low') AS low, json_extract(body, '$.high') AS high,
    json_extract(body, '$.pairs') AS pairs, json_extract(body, '$.reason') AS reason
    FROM fact WHERE kind = 'verdict';
CREATE VIEW promotion AS SELECT
    seq, at, json_extract(body, '$.number') AS number, json_extract(body, '$.experiment') AS experiment,
    json_extract(body, '$.candidate') AS candidate, json_extract(body, '$.commit') AS "commit",
    json_extract(body, '$.request') AS request
    FROM fact WHERE kind = 'promotion';
"""

# What later formats added: 2 the answers of the holdout and what they say of an experiment, 3 ideas that are joined
# and promotions that are undone, 4 promotions that a person does not want.
_ADDED = """
CREATE VIEW experiment AS SELECT
    row_number() OVER (ORDER BY f.seq) AS number, f.at,
    json_extract(f.body, '$.proposal.idea') AS idea, json_extract(f.body, '$.candidate') AS candidate,
    json_extract(f.body, '$.branch') AS branch,
    json_extract(f.body, '$.node') AS node, json_extract(f.body, '$.proposal.proposer') AS proposer,
    json_extract(f.body, '$.proposal.hypothesis') AS hypothesis,
    CASE
        WHEN EXISTS (SELECT 1 FROM fact p WHERE p.kind = 'promotion'
                     AND NOT EXISTS (SELECT 1 FROM fact d, json_each(d.body, '$.undone') u
                                     WHERE d.kind = 'demotion' AND u.value = json_extract(p.body, '$.number'))
                     AND (json_extract(p.body, '$.experiment') = json_extract(f.body, '$.proposal.idea')
                          OR EXISTS (SELECT 1 FROM json_each(p.body, '$.ideas') i
                                     WHERE i.value = json_extract(f.body, '$.proposal.idea')))) THEN 'promoted'
        ELSE coalesce(
            (SELECT CASE WHEN v.kind IN ('claim_raised', 'carried') THEN 'claimed'
                    WHEN coalesce(json_extract(v.body, '$.accepted'), json_extract(v.body, '$.passed')) THEN 'accepted'
                    ELSE 'rejected' END
             FROM fact v WHERE v.kind IN ('claim_raised', 'carried', 'verdict', 'holdout_answered',
                                                 'promotion_vetoed')
             AND json_extract(v.body, '$.experiment') = json_extract(f.body, '$.proposal.idea')
             ORDER BY v.seq DESC LIMIT 1),
            (SELECT CASE WHEN json_extract(s.body, '$.kept') THEN 'kept'
                    WHEN json_extract(s.body, '$.reason') LIKE 'failed%' THEN 'failed' ELSE 'dropped' END
             FROM fact s WHERE s.key BETWEEN 'screened:' || json_extract(f.body, '$.proposal.idea') || ':'
             AND 'screened:' || json_extract(f.body, '$.proposal.idea') || ';'
             ORDER BY s.seq DESC LIMIT 1),
            'open')
    END AS status
    FROM fact f WHERE f.kind = 'experiment_admitted';
CREATE VIEW holdout AS SELECT
    seq, at, json_extract(body, '$.number') AS number, json_extract(body, '$.experiment') AS experiment,
    json_extract(body, '$.passed') AS passed, json_extract(body, '$.gain') AS gain,
    json_extract(body, '$.step') AS step, json_extract(body, '$.pairs') AS pairs,
    json_extract(body, '$.reason') AS reason
    FROM fact WHERE kind = 'holdout_answered';
CREATE VIEW interaction AS SELECT
    seq, at, json_extract(body, '$.onto') AS onto, json_extract(body, '$.ideas') AS ideas,
    json_extract(body, '$.gain') AS gain, json_extract(body, '$.expected') AS expected,
    json_extract(body, '$.pairs') AS pairs, json_extract(body, '$.reason') AS reason
    FROM fact WHERE kind = 'interaction';
"""

_DROPPED = "DROP VIEW experiment;DROP VIEW IF EXISTS holdout;DROP VIEW IF EXISTS interaction;"

_SPOOL_SCHEMA = """
CREATE TABLE IF NOT EXISTS offered (seq INTEGER PRIMARY KEY, key TEXT UNIQUE, body BLOB);
CREATE TABLE IF NOT EXISTS produced (key TEXT PRIMARY KEY);  -- audit: everything this node ever offered
CREATE TABLE IF NOT EXISTS memory (name TEXT PRIMARY KEY, body BLOB);
"""


class Row(NamedTuple):
    """A fact and when it was committed."""

    at: float
    fact: Fact


def _connect(
    path: Path, *, prepare: Callable[[sqlite3.Connection], object], read_only: bool = False
) -> sqlite3.Connection:
    uri = f"{path.resolve().as_uri()}{_read_only(path) if read_only else ''}"
    with _refusing(path), ExitStack() as stack:
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=10)
        stack.callback(connection.close)
        if not read_only:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # a committed fact survives a power cut: p50 7 ms
        prepare(connection)
        stack.pop_all()
    return connection


def _read_only(path: Path) -> str:
    """A reader of a WAL database writes two small files beside it, unless it is told that nobody writes."""
    at_rest = not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists()
    return "?mode=ro&immutable=1" if at_rest else "?mode=ro"


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn what SQLite says into an error that people can mend.

    Raises:
        OSError: the disk is full.
        PrerequisiteError: the file is damaged, is something else, or cannot be opened.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        if "disk is full" in str(error) or _no_room(path, error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise PrerequisiteError(f"{path} {_in_words(str(error))}") from error


def _no_room(path: Path, error: sqlite3.DatabaseError) -> bool:
    """SQLite calls it an I/O error when there is no room for the files beside the database."""
    if not any(words in str(error) for words in ("disk I/O error", "unable to open")):
        return False
    disk = os.statvfs(path.parent)
    return disk.f_bavail * disk.f_frsize < _LEAST_ROOM_BYTES and os.access(path.parent, os.W_OK)


def _in_words(said: str) -> str:
    if "not a database" in said:
        return "is no ledger but some other file; move it away, or name another folder"
    if "malformed" in said:
        return "is damaged (cut short, or written by something else); bring it back from a copy, or move it away"
    if "readonly" in said or "unable to open" in said:
        return f"cannot be opened ({said}); mend the permissions of its folder, or name another folder"
    return f"cannot be used: {said}; if another program holds it, end that, else bring it back from a copy"


def _version(db: sqlite3.Connection) -> int:
    """0 until its tables are there; a coordinator that was killed before it made them leaves such a file."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


class Ledger:
    """Every fact of one study. One writer; any number of readers."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open or create the ledger.

        Raises:
            PrerequisiteError: another coordinator writes to it, it is missing, damaged, or of a newer version.
            OSError: the disk is full.
        """
        self.path = path
        self._lock: int | None = None
        if read_only and not path.exists():
            raise PrerequisiteError(f"no ledger at {path}: no study has run there yet; start one with `swarm run`")
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _lock_file(path.with_suffix(".lock"))
        try:
            self._db = _connect(path, prepare=self._prepare, read_only=read_only)
        except BaseException:
            self._release()
            raise

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN")  # one look: a reader may come while the tables are being made
        version = _version(db)
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        db.execute("COMMIT")
        if version > SCHEMA_VERSION:
            raise PrerequisiteError(
                f"{self.path} was written by a newer swarm (format {version}, this one knows {SCHEMA_VERSION}); "
                "update the swarm"
            )
        if (version == 0 and tables) or (version > 0 and "fact" not in tables):
            raise PrerequisiteError(f"{self.path} is the database of some other program; name another folder")
        if version < SCHEMA_VERSION and self._lock is not None:
            before = _SCHEMA if version == 0 else _DROPPED
            db.executescript(f"BEGIN;{before}{_ADDED}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")

    def append(self, facts: Iterable[Fact], at: float) -> list[Fact]:
        """Commit facts in one transaction; return those that were new, in order. All or none.

        Raises:
            OSError: the disk is full.
            EncodeError: a fact that could not be read again.
        """
        fresh: list[Fact] = []
        with _refusing(self.path), _transaction(self._db):
            for fact in map(scrubbed, facts):
                row = (fact.key, fact.kind, at, fact_to_json(fact))
                if self._db.execute(
                    "INSERT OR IGNORE INTO fact (key, kind, at, body) VALUES (?, ?, ?, ?)", row
                ).rowcount:
                    fresh.append(fact)
        return fresh

    def rows(self, *, after: int = 0) -> Iterator[Row]:
        """All facts in the order of their commit.

        Raises:
            PrerequisiteError: the file is damaged, or a version of the swarm wrote it that knows other facts.
        """
        with _refusing(self.path):
            if _version(self._db) == 0:
                return
            query = "SELECT seq, at, body FROM fact WHERE seq > ? ORDER BY seq"
            for seq, at, body in self._db.execute(query, (after,)):
                yield Row(at, self._read(seq, body))

    def _read(self, seq: int, body: str) -> Fact:
        try:
            return fact_from_json(body)
        except DecodeError as error:
            raise PrerequisiteError(
                f"{self.path}: fact {seq} was written by another version of the swarm; use that one ({error})"
            ) from error

    def facts(self) -> tuple[Fact, ...]:
        """All facts in the order of their commit."""
        return tuple(row.fact for row in self.rows())

    def close(self) -> None:
        """Close the file and give the lock back."""
        self._db.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or none. A full disk may have rolled it back already."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _lock_file(path: Path) -> int:
    """Hold the writer's lock; the kernel gives it back when the process dies, so it can never be stale."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise PrerequisiteError(
            f"a coordinator is already running on {path.parent} (process {holder}); watch it with "
            f"`swarm status --study {path.parent}`, or end it first with `swarm leave --study {path.parent}`"
        ) from error
    try:
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
    except OSError as error:
        os.close(handle)
        raise OSError(error.errno, error.strerror, str(path)) from error
    return handle


class Spool:
    """What a node finished and the coordinator has not yet acknowledged, and the researcher's memory."""

    def __init__(self, path: Path) -> None:
        """Open or create the spool.

        Raises:
            OSError: the disk is full.
            PrerequisiteError: the file is damaged, or is something else.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._db = _connect(path, prepare=lambda db: db.executescript(_SPOOL_SCHEMA))

    def put(self, facts: Iterable[Fact], memory: bytes | None = None) -> None:
        """Offer facts and replace the researcher's memory, both or neither."""
        with _refusing(self._path), _transaction(self._db):
            for fact in map(scrubbed, facts):
                if self._db.execute("INSERT OR IGNORE INTO produced VALUES (?)", (fact.key,)).rowcount:
                    self._db.execute("INSERT INTO offered (key, body) VALUES (?, ?)", (fact.key, pack(fact)))
            if memory is not None:
                self._db.execute("INSERT OR REPLACE INTO memory VALUES ('researcher', ?)", (memory,))

    def offered(self, limit: int, limit_bytes: float = math.inf) -> list[Fact]:
        """The oldest unacknowledged facts: as many as fit, one at least."""
        facts: list[Fact] = []
        size = 0
        for (body,) in self._db.execute("SELECT body FROM offered ORDER BY seq LIMIT ?", (limit,)):
            size += len(body)
            if facts and size > limit_bytes:
                break
            facts.append(unpack_fact(body))
        return facts

    def pending(self, key: str) -> bool:
        """Whether a fact waits for its acknowledgement."""
        return self._db.execute("SELECT 1 FROM offered WHERE key = ?", (key,)).fetchone() is not None

    def forget(self, keys: Iterable[str]) -> None:
        """The coordinator has committed these."""
        with _refusing(self._path), _transaction(self._db):
            self._db.executemany("DELETE FROM offered WHERE key = ?", [(key,) for key in keys])

    def produced(self) -> set[str]:
        """Keys of everything that was ever offered."""
        return {key for (key,) in self._db.execute("SELECT key FROM produced")}

    def memory(self) -> bytes | None:
        """The researcher's memory as last put."""
        row = self._db.execute("SELECT body FROM memory WHERE name = 'researcher'").fetchone()
        return None if row is None else bytes(row[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()
