"""Source text: constants survive a rewrite, ideas are recognised whatever their layout."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from factories import SCRIPT
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.constants import Constant, Value, constants, rewrite, rounded
from swarm.errors import ProposalError
from swarm.source import describe_edit, idea_hash, is_simpler, lines_changed

BASELINE = (Path(__file__).parent.parent / "baseline" / "train.py").read_text(encoding="utf-8")


def by_name(source: str) -> Mapping[str, Constant]:
    return {constant.name: constant for constant in constants(source)}


# --- constants -------------------------------------------------------------------------------------------


def test_comments_say_which_values_a_constant_may_take() -> None:
    found = by_name(SCRIPT)
    assert found["RATE"] == Constant("RATE", 0.001, "float", (), 1e-4, 1e-1, True, "The step.", True)
    assert found["DEPTH"].choices == (1, 2, 3)
    assert found["USE_BIAS"].kind == "switch"
    assert found["ACT"] == Constant("ACT", "relu", "choice", ("relu", "gelu"), declared=True)


def test_the_shipped_baseline_can_be_tuned() -> None:
    found = by_name(BASELINE)
    assert found["BIGRAM"].comment.startswith("Add an embedding")
    assert found["ACTIVATION"].choices == ("relu2", "gelu", "silu")
    assert (found["MATRIX_LR"].low, found["MATRIX_LR"].high, found["MATRIX_LR"].log) == (0.01, 0.16, True)


@pytest.mark.parametrize(
    "line",
    [
        "lower = 1",
        "SUM = 1 + 1",
        "TEXT = 'words'",
        "PAIR = (0.8, 0.95)",
        "KEEP = 3  # fixed: the data depends on it",
        "SEED = 1337",
        "HUGE = 1e999",
        "TWICE = 1\nTWICE = 2",
        "A = B = 1",
        "if True:\n    INNER = 1",
        "NONE = None",
    ],
)
def test_what_is_no_tunable_constant(line: str) -> None:
    assert constants(line + "\n") == []


@pytest.mark.parametrize(
    ("line", "low", "high", "log"),
    [
        ("X = 0.004", 0.001, 0.016, True),
        ("X = 0.0", 0.0, 0.5, False),
        ("X = 0.9", 0.225, 0.975, False),
        ("X = -2.0", -8.0, -0.5, False),
        ("X = 300", 75, 1200, True),
        ("X = 3", 1, 12, True),
        ("X = 0", 0, 4, False),
        ("X = 5  # range: wide", 1, 20, True),
    ],
)
def test_a_number_without_a_range_gets_a_guessed_one(line: str, low: float, high: float, log: bool) -> None:
    (found,) = constants(line)
    assert (found.low, found.high, found.log, found.declared) == (low, high, log, False)


def test_a_power_of_two_is_guessed_to_stay_one() -> None:
    assert constants("HEAD_DIM = 128")[0].choices == (64, 128, 256)


def test_source_that_does_not_parse_is_named() -> None:
    with pytest.raises(ProposalError, match="line 2"):
        constants("A = 1\nB = (\n")


TWO_TIERS = "WIDTH = 64\nWINDOW = 0  # fixed\nACT = 2.5\nGPU_WIDTH = 512\nGPU_WINDOW = 256\nGPU_CORES = 3\n"


def test_a_constant_of_the_other_tier_is_not_tuned() -> None:
    assert [found.name for found in constants(TWO_TIERS)] == ["WIDTH", "ACT", "GPU_CORES"]
    assert [found.name for found in constants(TWO_TIERS, "gpu")] == ["ACT", "GPU_WIDTH", "GPU_WINDOW", "GPU_CORES"]


def test_each_constant_of_the_shipped_script_belongs_to_a_tier_or_to_both() -> None:
    cpu, gpu = ({found.name for found in constants(BASELINE, tier)} for tier in ("cpu", "gpu"))
    assert not any(name.startswith("GPU_") for name in cpu)
    assert all(name.startswith("GPU_") or "GPU_" + name not in BASELINE for name in gpu)
    assert {"GPU_WIDTH", "GPU_WINDOW", "MLP_RATIO"} <= gpu and {"WIDTH", "BIGRAM", "MLP_RATIO"} <= cpu
    assert all(found.declared for found in constants(BASELINE, "gpu"))


# --- rewrite ---------------------------------------------------------------------------------------------


def test_rewrite_touches_the_literals_only() -> None:
    after = rewrite(SCRIPT, {"RATE": 0.0123456, "DEPTH": 3, "USE_BIAS": True, "ACT": "gelu"})
    expected = SCRIPT.replace("1e-3", "0.0123", 1).replace("= 2   #", "= 3   #").replace("= False", "= True")
    assert after == expected.replace("'relu'", '"gelu"')


NAMES = st.sampled_from(["A", "LR_2", "DEPTH"])
LAYOUTS = st.sampled_from(["{} = {}\n", "{}={}   # note\r\n", "{}: float = {}\n", "\n\n# above\n{} = ( {} )  # é\n"])
KINDS = (st.floats(-1e6, 1e6).map(rounded), st.integers(-10_000, 10_000), st.booleans())
CHANGES = st.one_of(*(st.tuples(kind, kind) for kind in KINDS))  # from this value to that one


@given(
    lines=st.dictionaries(NAMES, st.tuples(CHANGES, LAYOUTS)), between=st.sampled_from(["", "x = 'A = 1'\n", "\x0c\n"])
)
@settings(max_examples=60, deadline=None)
def test_rewrite_keeps_every_other_byte(lines: dict[str, tuple[tuple[Value, Value], str]], between: str) -> None:
    before, after = (
        between.join(layout.format(name, repr(change[side])) for name, (change, layout) in lines.items())
        for side in (0, 1)
    )
    assert rewrite(before, {name: change[1] for name, (change, _) in lines.items()}) == after


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_constants_round_trip(data: st.DataObject) -> None:
    constant = data.draw(st.sampled_from(constants(BASELINE)))
    value: Value
    if constant.choices:
        value = data.draw(st.sampled_from(constant.choices))
    elif constant.kind == "int":
        value = data.draw(st.integers(int(constant.low), int(constant.high)))
    else:
        value = rounded(data.draw(st.floats(constant.low, constant.high)))
    after = by_name(rewrite(BASELINE, {constant.name: value}))[constant.name]
    assert after.value == value and type(after.value) is type(constant.value)
    if constant.declared:
        assert (after.choices, after.low, after.high) == (constant.choices, constant.low, constant.high)


def test_rewrite_names_an_unknown_constant() -> None:
    with pytest.raises(ProposalError, match="no constant WIDHT; there are RATE"):
        rewrite(SCRIPT, {"WIDHT": 3})


# --- identity --------------------------------------------------------------------------------------------


def test_layout_comments_and_docstrings_are_no_idea() -> None:
    other = SCRIPT.replace("  # range: 1e-4..1e-1 log", "").replace("1e-3", "0.001").replace('"""A model."""\n', "")
    assert idea_hash({"a.py": SCRIPT}) == idea_hash({"a.py": other.replace("\n\n\n", "\n\n")})


@pytest.mark.parametrize(
    "edit", [("1e-3", "2e-3"), ("return 1", "return None"), ("return 1", "return"), ("two", "too")]
)
def test_a_change_of_code_is_another_idea(edit: tuple[str, str]) -> None:
    assert idea_hash({"a.py": SCRIPT}) != idea_hash({"a.py": SCRIPT.replace(*edit)})


def test_the_idea_covers_every_file_and_its_name() -> None:
    assert idea_hash({"a.py": "", "b.txt": "x "}) == idea_hash({"a.py": "# c", "b.txt": "x\n"})
    assert len({idea_hash({"a.py": ""}), idea_hash({"b.py": ""}), idea_hash({"a.py": "", "b.txt": "y"})}) == 3


@pytest.mark.parametrize("text", ["def f(:\n", "x = 1\0", "\ud800", "-" * 100_000 + "1"])
def test_a_file_that_does_not_parse_is_refused(text: str) -> None:
    with pytest.raises(ProposalError, match="train.py, line"):
        idea_hash({"train.py": text})


# --- telling what an edit does ---------------------------------------------------------------------------


def test_an_edit_is_described_as_a_diff_of_limited_length() -> None:
    before, after = {"a.py": "A = 1\n-x\n"}, {"a.py": "A = 2\n-x\nB = 3\n"}
    assert "-A = 1\n+A = 2\n" in describe_edit(before, after)
    assert lines_changed(before, after) == (2, 1)
    assert len(describe_edit({}, {"a.py": "x = 1\n" * 9_999}, limit=500)) == 500
    assert describe_edit(before, before) == "" and lines_changed(before, before) == (0, 0)


# --- how much of it there is -----------------------------------------------------------------------------

LONG = """
def step(x):
    \"\"\"A step.\"\"\"
    y = x + 1
    # nothing
    if y > 3:
        y = 3
    return y
"""


@pytest.mark.parametrize(
    ("text", "simpler"),
    [
        (LONG.replace("    if y > 3:\n        y = 3\n", ""), True),
        (LONG.replace("    y = x + 1\n", "").replace("return y", "return x"), True),
        (LONG.replace("    # nothing\n", "").replace('    """A step."""\n', ""), False),  # nobody runs these
        (LONG.replace("y > 3:\n        y", "y > 3: y"), False),  # the same, on fewer lines
        (LONG.replace("y = x + 1", "y, z = x + 1, 2").replace("    if y > 3:\n        y = 3\n", ""), True),
        (LONG.replace("    y = x + 1\n", "").replace("y", "(x + 1 if x + 1 <= 3 else 3 + 0 * x)"), False),  # golf
        (LONG + "z = 1\n", False),
        ("def step(", False),
    ],
)
def test_simpler_is_less_to_read_however_it_is_laid_out(text: str, simpler: bool) -> None:
    assert is_simpler({"train.py": text}, {"train.py": LONG}) is simpler


def test_lines_of_other_files_count_and_nothing_is_simpler_than_itself() -> None:
    assert is_simpler({"a.txt": "one\n\n"}, {"a.txt": "one\ntwo\n"})
    assert not is_simpler({"train.py": BASELINE}, {"train.py": BASELINE})


@settings(max_examples=30)
@given(st.permutations(BASELINE.split("\n\n\n")), st.integers(1, 9))
def test_whatever_is_cut_from_the_baseline_only_one_of_the_two_is_simpler(parts: list[str], cut: int) -> None:
    whole, rest = {"train.py": "\n\n\n".join(parts)}, {"train.py": "\n\n\n".join(parts[cut:])}
    assert not (is_simpler(whole, rest) and is_simpler(rest, whole))
    assert not is_simpler(whole, rest)
