"""The lint: it names what is odd and where, and is silent about what is shipped."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.lint import FILE_BYTES, LITERAL_BYTES, lint

BASELINE = Path(__file__).parents[1] / "baseline"


def test_an_edit_of_the_shipped_file_answers_for_itself_only() -> None:
    shipped = {"train.py": (BASELINE / "train.py").read_text()}
    assert lint({"train.py": shipped["train.py"].replace("DEPTH = 2", "\n\nDEPTH = 3")}, shipped) == ()
    (warning,) = lint({"train.py": shipped["train.py"] + "import subprocess\n"}, shipped)
    assert "imports subprocess" in warning


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("import ctypes", "imports ctypes"),
        ("import numpy, socket", "imports socket"),
        ("from subprocess import run", "imports subprocess"),
        ("import urllib.request", "imports urllib.request"),
        ("os.system('true')", "calls .system"),
        ("x = eval('1')", "calls eval"),
        ("exec('x = 1')", "calls exec"),
        ("seed = os.environ['SWARM_SEED']", "touches the seed: SWARM_SEED"),
        ("torch.manual_seed(1337)", "sets a seed of its own"),
        ("open('../code/score.py')", "touches the scorer: score.py"),
        ("open('/data/holdout/tokens.bin')", "touches the scorer: holdout"),
        (f"x = {'a' * (LITERAL_BYTES + 1)!r}", f"literal of {LITERAL_BYTES + 1}"),
        (f"x = {b'a' * (LITERAL_BYTES + 1)!r}", f"literal of {LITERAL_BYTES + 1}"),
        (f"x = {list(range(LITERAL_BYTES))}", f"lists {LITERAL_BYTES} values"),
        ("x = 1  # \u202e", "direction of text"),
    ],
)
def test_each_oddity_is_named_with_its_line(line: str, words: str) -> None:
    (warning,) = lint({"train.py": f"import os\n\n{line}\n", "other.py": "x = 1\n"})
    assert warning.startswith("train.py, line 3: ")
    assert words in warning


@pytest.mark.parametrize(
    "text",
    [
        '"""Speaks of score.py, holdout and SWARM_SEED."""\n',
        "model.eval()\nre.compile('x')\n",
        "torch.manual_seed(arguments.seed)\n",
        "x = 'a' * 100_000\n",
        "# import socket\n",
    ],
)
def test_what_only_looks_odd_is_not_named(text: str) -> None:
    assert lint({"train.py": text}) == ()


def test_size_counts_for_every_file() -> None:
    assert len(lint({"notes.txt": "a" * (FILE_BYTES + 1), "train.py": "#" * (FILE_BYTES + 1)})) == 2


@given(st.dictionaries(st.sampled_from(["train.py", "notes.txt"]), st.text()))
def test_any_text_gets_an_answer(files: dict[str, str]) -> None:
    assert lint(files) == lint(dict(reversed(files.items())))


@pytest.mark.parametrize("text", ["def broken(", "x = 1\0", "(" * 5000, "\ud800"])
def test_what_does_not_parse_is_told(text: str) -> None:
    assert any("cannot be read as Python" in warning for warning in lint({"train.py": text}))
