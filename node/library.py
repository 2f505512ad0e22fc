"""The standard library as boxes show it, where the Task's text is the standard library: without what scores rest on.

Every program needs the modules whose source a score is computed on, and who can read that source knows the answers. So
walls show a copy: of these modules only bytecode without docstrings, and not even that of those that no training needs,
or that a stand-in can serve. Owns which files that are (the Task's frozen `sources.py` knows) and the copy; the walls
show it in place of the original (`node/sandbox/`).

NOT covered: bytecode still tells names, constants and the order of things; what other packages copied from the standard
library into modules of their own, `backports` aside; what is frozen into Python's own program.
"""

import py_compile
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from node.sandbox.needs import LIBRARY, PACKAGES
from swarm.corpus import read_manifest
from swarm.records import digest

FORMAT = "2"  # of the copy: one that an older version of this file made is not used
STDLIB = "stdlib"  # the source in a manifest
SOURCES = "sources.py"
ASK = (
    "import sys; sys.path.insert(0, sys.argv[1]); import sources\n"
    "print(*(d.name for d in sources.standard_library() if d.split != 'train'), sep='\\n')"
)
ASK_LIMIT_S = 60.0  # it takes 0.2 s
# Modules of scored text that neither torch, numpy nor their compilers import: not even their bytecode is shown.
UNNEEDED = frozenset(
    "_bootsubprocess.py asynchat.py ctypes/_aix.py ctypes/macholib filecmp.py fileinput.py optparse.py "
    "symtable.py tabnanny.py turtle.py uu.py".split()
)
# Modules that training imports and does not use, or hardly: they get a few lines of ours, not their bytecode, which
# would tell 42 % of the scored tokens to whoever rebuilds the source. Any other name is an empty class.
NAMES = """
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (Exception,), {"__module__": __name__})
"""
STAND_INS = {
    "calendar.py": "import datetime\n\n\ndef timegm(t):\n"
    "    return int(datetime.datetime(*t[:6], tzinfo=datetime.timezone.utc).timestamp())\n",
    "configparser.py": "",
    "heapq.py": "from _heapq import *\n\n\ndef nlargest(n, iterable, key=None):\n"
    "    return sorted(iterable, key=key, reverse=True)[:n]\n\n\ndef nsmallest(n, iterable, key=None):\n"
    "    return sorted(iterable, key=key)[:n]\n\n\ndef merge(*iterables, key=None, reverse=False):\n"
    "    yield from sorted((x for each in iterables for x in each), key=key, reverse=reverse)\n",
    "pprint.py": "pprint = pp = print\n\n\ndef pformat(object, *_, **__):\n    return repr(object)\n",
    "tarfile.py": "",
    "timeit.py": "from time import perf_counter as default_timer\n",
}
# Packages bring a copy of a newer `tarfile`, which walls hide like another library: they get our stand-in.
BACKPORTS = {
    "__init__.py": "import pkgutil\n\n__path__ = pkgutil.extend_path(__path__, __name__)\n",
    "tarfile.py": "import sys\nimport tarfile\n\nsys.modules[__name__] = tarfile\n",
}
LEFT_OUT = ("test", "tests", "idlelib", "turtledemo", "lib2to3", "ensurepip", "pydoc_data", "config-*", *PACKAGES)


def library_for(data: Path, task: Path, below: Path) -> Path | None:
    """What walls show in place of the standard library, where prepared data was made of it; else None.

    Raises:
        OSError: it cannot be told which text is scored, or there is no room for the copy.
        TaskError: the data does not say what it is.
    """
    return shown_library(task, below) if read_manifest(data).source == STDLIB else None


def shown_library(task: Path, below: Path) -> Path:
    """The copy that boxes show, below a folder of this node's; made once.

    Raises:
        OSError: it cannot be told which text is scored, or there is no room for the copy.
    """
    names = scored_files(task)
    made = below.resolve() / f"library-{digest(FORMAT, sys.version, str(LIBRARY), *names)[:12]}"
    if not made.is_dir():
        below.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=below, prefix="library-") as aside:
            _copy(LIBRARY, Path(aside) / "made", frozenset(names))
            with suppress(FileExistsError):  # another was faster
                (Path(aside) / "made").rename(made)
    return made


@lru_cache(maxsize=4)
def scored_files(task: Path) -> tuple[str, ...]:
    """The files of the standard library that are not in the training split, by the Task's own word.

    Raises:
        OSError: it has none.
    """
    argv = (sys.executable, "-I", "-c", ASK, str(task.resolve()))
    try:
        told = subprocess.run(argv, capture_output=True, text=True, timeout=ASK_LIMIT_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{task / SOURCES} took more than {ASK_LIMIT_S:.0f} s to tell which files are scored") from error
    if told.returncode or not told.stdout.strip():
        last = told.stderr.strip().splitlines()[-1:] or ["it names none"]
        raise OSError(f"{task / SOURCES} does not tell which files are scored, and boxes must not show them: {last[0]}")
    return tuple(told.stdout.split())


def _copy(library: Path, to: Path, hidden: frozenset[str]) -> None:
    """Everything but the hidden files and what no training needs; with bytecode, so that imports stay fast."""

    def without(folder: str, names: list[str]) -> Iterable[str]:
        inside = Path(folder)
        known = {(inside / name).relative_to(library).as_posix(): name for name in names}
        left_out = shutil.ignore_patterns(*LEFT_OUT)(folder, names)
        return {*left_out, *(name for path, name in known.items() if path in hidden or _bytecode_of(path) in hidden)}

    shutil.copytree(library, to, ignore=without)
    for name in sorted(hidden):
        if name in STAND_INS:
            (to / name).write_text(STAND_INS[name] + NAMES)
        elif not any(name == path or name.startswith(f"{path}/") for path in UNNEEDED):
            compiled = to / f"{name}c"  # where no source stands beside it, Python takes it from here
            mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
            py_compile.compile(str(library / name), str(compiled), doraise=True, optimize=2, invalidation_mode=mode)
    (to / "backports").mkdir()
    for name, text in BACKPORTS.items():
        (to / "backports" / name).write_text(text)
    for package in PACKAGES:  # to mount the original on
        if (library / package).is_dir():
            (to / package).mkdir()


def _bytecode_of(path: str) -> str:
    """The source of a file in `__pycache__`, by its name."""
    folder, _, file = path.rpartition("__pycache__/")
    return f"{folder}{file.split('.')[0]}.py"
