"""The page of attacks against the tests: it names nothing that is not tried, and leaves nothing out."""

import importlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import attacks
import test_attacks
import test_audit
import test_claims
import test_forging

from node.sandbox.bwrap import Bwrap
from node.sandbox.cgroup import Cgroup

PAGE = Path(__file__).resolve().parent.parent / "docs" / "attacks.md"
KINDS = 66  # of the list that all this began with; what was found later is numbered from there on
LEAST = 45  # of them have to run
# Tables of attacks: what their tests assert of level 0, and of walls but for the exempt.
TABLES: tuple[tuple[ModuleType, Mapping[str, object], str], ...] = (
    (test_attacks, attacks.ATTACKS, "works"),
    (test_attacks, attacks.CARRIES, "works"),
    (test_attacks, attacks.HIDERS, "works"),
    (test_forging, test_forging.SPOILS, "works"),
    (test_forging, test_forging.FORGES, "caught"),
    (test_audit, test_audit.CHEATS, "caught"),
    (test_claims, test_claims.ALL_LIE, "caught"),
)


class Row(NamedTuple):
    """One kind of attack."""

    number: int
    attack: str
    by: str
    tried: tuple[tuple[str, str], ...]  # module, and a case or a test of it
    levels: tuple[str, ...]


def tried_in(cell: str) -> Iterator[tuple[str, str]]:
    module = ""
    for item in filter(None, cell.split("; ")):
        named, _, rest = item.rpartition(": ")
        module = named or module
        yield module, rest.strip("`")


def rows() -> list[Row]:
    lines = re.findall(r"^\| (\d+) \|(.*)\|$", PAGE.read_text(), re.MULTILINE)
    cells = [(int(number), *(cell.strip() for cell in rest.split("|"))) for number, rest in lines]
    return [
        Row(number, attack, by, tuple(tried_in(tried)), tuple(levels)) for number, attack, by, tried, *levels in cells
    ]


def named_in(module: ModuleType) -> set[str]:
    places = [module, *(thing for name, thing in vars(module).items() if name.startswith("Test"))]
    return {
        name for place in places for name, thing in vars(place).items() if name.startswith("test_") and callable(thing)
    }


def cases_of(module: ModuleType) -> set[str]:
    return {case for home, table, _ in TABLES if home is module for case in table}


def cases_in(row: Row) -> Iterator[tuple[str, str]]:
    """Its cases of the tables, and what becomes of each at level 0."""
    for name, item in row.tried:
        yield from ((item, bare) for home, table, bare in TABLES if home.__name__ == f"test_{name}" and item in table)


def test_every_name_on_the_page_is_a_case_or_a_test() -> None:
    for row in rows():
        assert bool(row.tried) == (row.by in ("candidate", "test")), row
        for name, item in row.tried:
            module = importlib.import_module(f"test_{name}")
            assert item in named_in(module) | cases_of(module), f"row {row.number}: {name} has no {item!r}"


def test_every_case_stands_on_the_page() -> None:
    named = {item for row in rows() for _, item in row.tried}
    assert not [case for _, table, _ in TABLES for case in table if case not in named]


def test_levels_are_those_of_the_tables() -> None:
    for row in rows():
        tables = [(item, home, table, bare) for item in row.tried for home, table, bare in TABLES]
        cases = [
            (it[1], bare) for it, home, table, bare in tables if home.__name__ == f"test_{it[0]}" and it[1] in table
        ]
        if not cases:
            continue
        level_0 = "works" if any(bare == "works" for _, bare in cases) else "caught"
        level_1 = "works" if any(case in test_attacks.LEVEL_1 for case, _ in cases) else "caught"
        assert row.levels == (level_0, level_1, "caught", "caught"), row.number
    assert not test_attacks.EXEMPT[Bwrap] and not test_attacks.EXEMPT[Cgroup]


def test_the_page_counts_right_and_enough_of_it_runs() -> None:
    known = [row for row in rows() if row.number <= KINDS]
    assert [row.number for row in rows()] == list(range(1, len(rows()) + 1)) and len(known) == KINDS
    by = Counter(row.by for row in known)
    assert by["candidate"] >= LEAST
    told = (
        f"{by['candidate']} of the {KINDS} kinds run as candidates, in processes; {by['test']} are driven by a test; "
    )
    assert told + f"{by['not tried']} were not tried." in PAGE.read_text()
