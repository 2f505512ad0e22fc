"""The text that is scored, where it is the standard library: who looks for it in a box finds it at level 0 only."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_attacks import WALLED
from test_sandbox import Kind, available
from toy_task import HONEST, UNIFORM, answers_task, spec_of, workshop_at

from node.library import scored_files, shown_library
from node.sandbox import Box
from node.sandbox.bare import Bare
from node.sandbox.needs import LIBRARY, other_libraries
from node.trial import run_trial
from swarm.records import Failure, Limits, Measurement

BASELINE = Path(__file__).parents[1] / "baseline"
LIMITS = Limits(cpu_s=60, wall_s=60)
# What is looked for: a module that every box needs, one that compilers do, one of the holdout split.
LOOKED_FOR = ("heapq.py", "configparser.py", "tarfile.py")

PLACES = tuple(str(path.resolve()) for path in (LIBRARY, *other_libraries()))
FIND = f"""
import os, sys
def texts(names):
    for root in (*{PLACES!r}, *sys.path):
        for folder, inside, files in os.walk(os.path.realpath(root)):
            inside[:] = {{*inside}} - {{'site-packages', 'test', 'lib-dynload'}}
            for name in (name for name in files if name.split('.')[0] + '.py' in names or 'backports' in folder):
                try: yield open(os.path.join(folder, name), 'rb').read()
                except OSError: pass
found = [name for name in {LOOKED_FOR!r} for text in texts((name,)) if phrases[name].encode() in text]
"""
REMEMBER = """
import weakref
assert 'Weak reference support' in str(weakref.__doc__), 'Error'
"""


def phrases() -> dict[str, str]:
    """Of each file its longest line of text, which nobody else has."""
    return {name: max((LIBRARY / name).read_text().split("\n")[:200], key=len).strip() for name in LOOKED_FOR}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("library")
    yield shown_library(BASELINE, folder)
    shutil.rmtree(folder)


def said(kind: Kind, library: Path | None, scratch: Path, code: str) -> str:
    sandbox = available(kind)
    process = sandbox.start(Box((sys.executable, "-c", code), (), scratch, LIMITS, library=library))
    with process:
        assert process.stdout is not None
        words = process.stdout.read().decode()
        sandbox.kill(process)
    return words


@pytest.mark.parametrize("kind", WALLED)
def test_scored_text_lies_open_at_level_0_and_nowhere_behind_walls(kind: Kind, library: Path, tmp_path: Path) -> None:
    code = f"phrases = {phrases()!r}\n{FIND}\nprint(sorted(set(found)))"
    assert said(Bare, library, tmp_path, code) == f"{sorted(LOOKED_FOR)}\n"
    assert said(kind, None, tmp_path, code) == f"{sorted(LOOKED_FOR)}\n"  # it is the copy that hides it
    assert said(kind, library, tmp_path, code) == "[]\n"


@pytest.mark.parametrize("kind", WALLED)
def test_the_bytecode_that_programs_need_has_no_docstrings(kind: Kind, library: Path, tmp_path: Path) -> None:
    assert said(Bare, library, tmp_path, f"{REMEMBER}print('got it')") == "got it\n"
    assert "Error" in said(kind, library, tmp_path, REMEMBER)


@pytest.mark.parametrize("kind", WALLED)
def test_what_training_imports_is_there(kind: Kind, library: Path, tmp_path: Path) -> None:
    code = (
        "import torch, numpy, torch._dynamo, torch._inductor, multiprocessing, pdb, asyncio, unittest, sqlite3, ssl\n"
    )
    code += "import setuptools, distutils.core, subprocess, sys\n"
    code += "import calendar, collections, heapq, pprint, tarfile, time, timeit\n"
    code += "assert heapq.nlargest(2, [3, 1, 2]) == [3, 2] and heapq.nsmallest(1, 'ba') == ['a']\n"
    code += "assert list(heapq.merge([1, 4], [2])) == [1, 2, 4] and heapq.heappop([5, 6]) == 5\n"
    code += "assert collections.Counter('abb').most_common(1) == [('b', 2)] and pprint.pformat([1]) == '[1]'\n"
    code += "assert calendar.timegm(time.gmtime(1e9)) == 10**9 and issubclass(tarfile.TarError, Exception)\n"
    code += "assert timeit.default_timer is time.perf_counter\n"
    code += "print(subprocess.run((sys.executable, '-c', 'import typing, dataclasses')).returncode)"
    assert said(kind, library, tmp_path, code).splitlines()[-1] == "0"


def test_the_files_are_those_that_preparing_puts_into_the_scored_splits() -> None:
    names = scored_files(BASELINE)
    assert set(LOOKED_FOR) <= set(names) and "argparse.py" not in names
    assert len({name.split("/")[0] for name in names}) > 20


def test_a_task_that_does_not_tell_is_not_run_behind_walls(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="does not tell which files are scored"):
        shown_library(tmp_path, tmp_path)


@pytest.mark.parametrize("where", ["train", "score"])
@pytest.mark.parametrize("kind", WALLED)
def test_no_phase_of_a_trial_finds_it(kind: Kind, where: str, library: Path, tmp_path: Path) -> None:
    steal = f"phrases = {phrases()!r}\n{FIND}\nassert not found, 'found it'\n"
    train, score = (steal + HONEST, UNIFORM) if where == "train" else (HONEST, steal + UNIFORM)
    workshop = workshop_at(tmp_path, answers_task(tmp_path / "task", score))
    shutil.copyfile(BASELINE / "sources.py", workshop.folder / "sources.py")
    assert workshop.data is not None
    (workshop.data.folder / "manifest.json").write_text(json.dumps({"fingerprint": "toy", "source": "stdlib"}))
    workshop = replace(workshop, scratch=library.parent)
    bare = run_trial(spec_of(train), workshop=replace(workshop, sandbox=Bare())).outcome
    assert isinstance(bare, Failure) and bare.blame == "candidate"
    walled = run_trial(spec_of(train), workshop=replace(workshop, sandbox=available(kind))).outcome
    assert isinstance(walled, Measurement), walled
