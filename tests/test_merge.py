"""Two edits of the same files: joined without a loss, or in conflict by name."""

import ast
import re
from pathlib import Path

import pytest
from factories import SCRIPT
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.constants import rewrite
from swarm.diff3 import join_lines
from swarm.merge import MergeConflict, merge, merge_files

BASELINE = (Path(__file__).parent.parent / "baseline" / "train.py").read_text(encoding="utf-8")


EDITS = {  # edits of disjoint units: any two of them join
    "rate": ("1e-3", "2e-3"),
    "depth": ("= 2 ", "= 3 "),
    "method": ("return 1", "return 11"),
    "property": ("return 2", "return 22"),
    "attribute": ("width = 4", "width = 4\n    height = 5"),
    "function": ("math.pi", "math.e"),
    "removed": ("USE_BIAS = False\n", ""),
    "new constant": ("ACT =", "NEW = 1\nACT ="),
    "new function": ("def train", "def helper():\n    return 0\n\n\ndef train"),
    "new method": ("    # The second.", "    def three(self):\n        return 3\n\n    # The second."),
    "import": ("import math\n", "import math\nimport os\n"),
    "last": ("    train()\n", "    train()\n\n\ndef after():\n    return 9"),
}


def edited(*names: str) -> str:
    text = SCRIPT
    for name in names:
        assert EDITS[name][0] in text
        text = text.replace(*EDITS[name])
    return text


@given(ours=st.sampled_from(sorted(EDITS)), theirs=st.sampled_from(sorted(EDITS)))
@settings(deadline=None)
def test_disjoint_edits_join(ours: str, theirs: str) -> None:
    both = (ours,) if ours == theirs else (ours, theirs)
    merged = merge(SCRIPT, edited(ours), edited(theirs))
    assert merged == merge(SCRIPT, edited(ours), merged)
    assert merged.rstrip() == edited(*both).rstrip()


@given(names=st.sets(st.sampled_from(sorted(EDITS))))
@settings(deadline=None)
def test_an_edit_of_one_side_is_kept_byte_for_byte(names: set[str]) -> None:
    side = edited(*sorted(names)) + "\x0c\r\n# end"
    assert merge(SCRIPT, side, SCRIPT) == merge(SCRIPT, SCRIPT, side) == merge(SCRIPT, side, side) == side


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_two_constants_of_the_baseline_join(data: st.DataObject) -> None:
    one, two = data.draw(st.lists(st.sampled_from(["BIGRAM", "SMEAR", "ALIBI"]), min_size=2, max_size=2, unique=True))
    merged = merge(BASELINE, rewrite(BASELINE, {one: True}), rewrite(BASELINE, {two: True}))
    assert merged == rewrite(BASELINE, {one: True, two: True})


@pytest.mark.parametrize(
    ("ours", "theirs", "name"),
    [
        (("1e-3", "2e-3"), ("1e-3", "3e-3"), "RATE"),
        (("return 1", "return 3"), ("return 1", "return 4"), "Model.one"),
        (("math.pi", "1"), ("def train():\n    return math.pi\n", ""), "train"),
        (("ACT =", "NEW = 1\nACT ="), ("ACT =", "NEW = 2\nACT ="), "NEW"),
        (("    train()", "    train(1)"), ("    train()", "    train(2)"), "if __name__ == '__main__'"),
    ],
)
def test_a_unit_changed_on_both_sides_is_a_conflict(ours: tuple[str, str], theirs: tuple[str, str], name: str) -> None:
    with pytest.raises(MergeConflict) as caught:
        merge(SCRIPT, SCRIPT.replace(*ours), SCRIPT.replace(*theirs))
    assert caught.value.names == (name,)


def test_layout_gives_way_to_code() -> None:
    ours = SCRIPT.replace("return 1\n", "return 1  # one\n")
    assert "return 7" in merge(SCRIPT, ours, SCRIPT.replace("return 1", "return 7"))


def test_a_merge_always_parses() -> None:
    merged = merge("a = 1; b = 2\nc = 3", "a = 1; b = 2\nc = 4", "a = 1; b = 2\nc = 3\nd = 5")
    assert ast.dump(ast.parse(merged)) == ast.dump(ast.parse("a = 1; b = 2\nc = 4\nd = 5"))


def test_trees_join_file_by_file() -> None:
    base = {"a.py": "A = 1\nB = 2\n", "n.md": "x"}
    merged = merge_files(base, {**base, "a.py": "A = 9\nB = 2\n"}, {**base, "a.py": "A = 1\nB = 8\n", "n.md": "y"})
    assert merged == {"a.py": "A = 9\nB = 8\n", "n.md": "y"}
    with pytest.raises(MergeConflict) as caught:
        merge_files(base, {"a.py": "A = 3\nB = 2\n", "n.md": "y"}, {"a.py": "A = 4\nB = 2\n", "n.md": "z"})
    assert caught.value.names == ("a.py:A", "n.md")


# --- programs made up of lines that are all different ----------------------------------------------------

KINDS = {  # what a unit looks like; its number and its version make every line of code unlike any other
    "constant": "C{n} = {v}",
    "call": "call({n}, {v})",
    "import": "import m{n}_{v}",
    "function": "def f{n}():\n    return {n}, {v}\n",
    "class": "class K{n}:\n    def one(self):\n        return {n}, {v}\n",
}
UNITS = st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=6)
CHANGES = st.lists(st.sampled_from(["", "", "change", "remove", "note", "add"]), min_size=6, max_size=6)


def program(units: list[str], changes: list[str], version: int) -> str:
    """Every unit as it was (version 0) or as one side left it."""
    lines: list[str] = []
    for n, (kind, change) in enumerate(zip(units, changes, strict=False)):
        note = f"# {n}, as {version} sees it" if change == "note" else f"# {n}"
        text = KINDS[kind].format(n=n, v=version if change == "change" else 0)
        lines += [] if change == "remove" else [note, text]
        lines += [f"new_{n}_{version} = 1"] if change == "add" else []
    return "\n".join(lines) + "\n"


def code(text: str) -> set[str]:
    return {line for line in text.splitlines() if line.strip() and not line.startswith("#")}


def joined(base: str, ours: str, theirs: str) -> str | None:
    try:
        return merge(base, ours, theirs)
    except MergeConflict:
        return None


@given(units=UNITS, ours=CHANGES, theirs=CHANGES)
@settings(max_examples=300, deadline=None)
def test_no_edit_is_lost_and_none_is_made_up(units: list[str], ours: list[str], theirs: list[str]) -> None:
    base, one, two = program(units, [""] * 6, 0), program(units, ours, 1), program(units, theirs, 2)
    merged = joined(base, one, two)
    assert merged == joined(base, two, one), "it does not matter which side is which"
    if merged is not None:
        removed = (code(base) - code(one)) | (code(base) - code(two))
        assert code(merged) == (code(base) | code(one) | code(two)) - removed
        ast.parse(merged)


QUIET = st.lists(st.sampled_from(["", "change", "note"]), min_size=6, max_size=6)


@given(
    units=st.lists(st.sampled_from(["constant", "function", "class"]), min_size=1, max_size=6),
    changes=QUIET,
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_edits_of_different_units_always_join(units: list[str], changes: list[str], data: st.DataObject) -> None:
    owner = data.draw(st.lists(st.sampled_from([0, 1]), min_size=6, max_size=6))
    halves = [[c if by == side else "" for c, by in zip(changes, owner, strict=True)] for side in (0, 1)]
    merged = merge(program(units, [""] * 6, 0), program(units, halves[0], 1), program(units, halves[1], 1))
    assert merged == program(units, changes, 1)


VALUES = st.integers(0, 9)


@given(base=st.lists(VALUES, min_size=1, max_size=8), data=st.data())
@settings(max_examples=100, deadline=None)
def test_edits_of_different_constants_take_effect_both(base: list[int], data: st.DataObject) -> None:
    owner = data.draw(st.lists(st.sampled_from([0, 1, 2]), min_size=len(base), max_size=len(base)))
    new = data.draw(st.lists(VALUES, min_size=len(base), max_size=len(base)))

    def text(*sides: int) -> str:
        chosen = [n if by in sides else b for b, n, by in zip(base, new, owner, strict=True)]
        return "".join(f"C{i} = {value}  # the {i}th\n" for i, value in enumerate(chosen))

    assert merge(text(), text(1), text(2)) == text(1, 2)


# --- what used to pass for a merge -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "ours", "theirs"),
    [
        ("step(1)\n", "step(2)\n", "step(3)\n"),
        ("if A:\n    x()\n", "if B:\n    x()\n", "if C:\n    x()\n"),
        ("def f():\n    x()\n", "def g():\n    x()\n", "def h():\n    x()\n"),
        ("class K:\n    step(1)\n", "class K:\n    step(2)\n", "class K:\n    step(3)\n"),
    ],
)
def test_one_statement_replaced_by_two_different_ones_is_a_conflict(base: str, ours: str, theirs: str) -> None:
    with pytest.raises(MergeConflict) as caught:
        merge(base, ours, theirs)
    (clash,) = caught.value.clashes
    assert clash.base in base and clash.ours in ours and clash.theirs in theirs and clash.ours != clash.theirs


def test_both_sets_of_imported_names_are_kept() -> None:
    merged = merge("from a import b\n", "from a import b, c\n", "from a import b, d\n")
    assert sorted(merged.splitlines()) == ["from a import b, c", "from a import b, d"]


def test_a_comment_and_the_value_beside_it_join() -> None:
    assert merge("# r\nA = 1  # range: 1..2\n", "# r\nA = 1  # range: 1..9\n", "# s\nA = 2  # range: 1..2\n") == (
        "# s\nA = 2  # range: 1..9\n"
    )
    assert joined("A = 1  # x\n", "A = 1  # y\n", "A = 1  # z\n") is None


def test_what_one_side_changed_and_the_other_removed_is_a_conflict() -> None:
    base, changed, removed = (f"a = 1\n{call}b = 2\n" for call in ("warm_up(1)\n", "warm_up(2)\n", ""))
    assert joined(base, changed, removed) is joined(base, removed, changed) is None
    assert joined(base, removed, removed) == removed


def test_of_two_equal_statements_each_side_removed_another_one() -> None:
    base, first, second = "x = 1\nuse(x)\nx = 2\nuse(x)\n", "x = 1\nx = 2\nuse(x)\n", "x = 1\nuse(x)\nx = 2\n"
    assert joined(base, first, second) is joined(base, second, first) is None
    assert joined(base, first, first) == joined(base, base, first) == first


def test_the_same_statement_added_at_two_places_is_a_conflict() -> None:
    places = "use(x)\na = 1\nb = 2\n", "a = 1\nb = 2\nuse(x)\n"
    assert joined("a = 1\nb = 2\n", *places) is None


def slots(draw: st.DrawFn) -> list[list[str]]:
    """What stands between units that nobody touches: statements with a name, without one, and one that repeats."""
    texts = ["step({n}, 0)", "step({n}, 1)", "x{n} = 0", "x{n} = 1", "use(x)"]
    return [draw(st.lists(st.sampled_from([text.format(n=n) for text in texts]), max_size=3)) for n in range(3)]


@st.composite
def three_sides(draw: st.DrawFn) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    base, ours, theirs = slots(draw), slots(draw), slots(draw)
    for n, changed in enumerate(draw(st.lists(st.sampled_from(["both", "ours", "theirs"]), min_size=3, max_size=3))):
        ours[n] = base[n] if changed == "theirs" else ours[n]
        theirs[n] = base[n] if changed == "ours" else theirs[n]
    return base, ours, theirs


def written(side: list[list[str]]) -> str:
    return "".join("\n".join([*slot, f"K{n} = 0", f"L{n} = 0", f"M{n} = 0\n"]) for n, slot in enumerate(side))


def units(slot: list[str]) -> set[str]:
    return {statement.split(" =")[0] for statement in slot}


@given(sides=three_sides())
@settings(max_examples=500, deadline=None)
def test_a_unit_that_both_got_rid_of_differently_is_a_conflict_and_no_addition_is_lost(
    sides: tuple[list[list[str]], list[list[str]], list[list[str]]],
) -> None:
    merged = joined(*map(written, sides))
    assert merged == joined(written(sides[0]), written(sides[2]), written(sides[1]))
    if merged is None:
        return
    moved = len({sum(slot.count("use(x)") for slot in side) for side in sides}) == 1  # takes along what follows it
    lines = [part.splitlines() for part in re.split(r"K\d = 0\nL\d = 0\nM\d = 0\n", merged)]
    for base, ours, theirs, found in zip(*sides, lines[:-1], strict=True):
        if ours == base or base == theirs or ours == theirs:
            assert moved or found == (theirs if ours == base else ours)
            continue
        known = units(base)
        new = [[statement for statement in side if units([statement]).isdisjoint(known)] for side in (ours, theirs)]
        gone = {name for name in known - units(ours) - units(theirs) if all(new) or not name.startswith("x")}
        assert not gone or new[0] == new[1] or known & units(ours) & units(theirs)
        assert ({*ours} | {*theirs}) - {*base} <= {*merged.splitlines()}


# --- text ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["notes.md", "broken.py"])
def test_what_is_no_python_joins_line_by_line(path: str) -> None:
    base = "a: (\nb\nc\nd\ne\n"
    merged = merge_files({path: base}, {path: base.replace("a: (", "a = 1")}, {path: base.replace("e", "E")})
    assert merged == {path: "a = 1\nb\nc\nd\nE\n"}
    with pytest.raises(MergeConflict) as caught:
        merge_files({path: base}, {path: base.replace("b", "1")}, {path: base.replace("c", "2")})
    assert caught.value.names == (path,)


def test_lines_that_join_to_what_does_not_parse_are_a_conflict() -> None:
    base = "if (\nb\nc\nd\n"  # one side closes the parenthesis at the top, the other at the bottom
    with pytest.raises(MergeConflict) as caught:
        merge_files({"x.py": base}, {"x.py": base.replace("if (", "(")}, {"x.py": base.replace("d", "d) + (1)")})
    assert caught.value.names == ("x.py",)


@given(base=st.lists(VALUES), ours=st.lists(VALUES), theirs=st.lists(VALUES))
@settings(max_examples=200, deadline=None)
def test_text_joins_like_a_three_way_merge(base: list[int], ours: list[int], theirs: list[int]) -> None:
    b, o, t = ("".join(f"{n}\n" for n in side) for side in (base, ours, theirs))
    assert join_lines(b, o, b) == join_lines(b, b, o) == join_lines(b, o, o) == o
    assert join_lines(b, o, t) == join_lines(b, t, o)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [({}, {"n.md": "y"}), ({"n.md": "x", "m.md": "1"}, {"n.md": "x", "m.md": "2"})],
)
def test_a_file_removed_or_added_differently_is_a_conflict(ours: dict[str, str], theirs: dict[str, str]) -> None:
    with pytest.raises(MergeConflict):
        merge_files({"n.md": "x"}, ours, theirs)
    assert merge_files({"n.md": "x"}, ours, {"n.md": "x"}) == ours
