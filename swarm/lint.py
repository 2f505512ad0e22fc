"""What is odd about the files of a Proposal, found by reading them.

Pure: files in, sentences out; nothing is run or refused here. It is no border: whoever wants past it gets past it. It
sorts for people and tells a careless proposer early; walls are the sandbox's part, truth the scorer's.
"""

import ast
from collections import Counter
from collections.abc import Iterable, Iterator

from swarm.records import Files
from swarm.source import parse

FILE_BYTES = 65_536  # three times the shipped train.py
LITERAL_BYTES = 2_000  # a longer one may be validation text: 1 kB of it is worth 0.008 bits per byte in 1 MB of text
SUSPECT_MODULES = frozenset({"ctypes", "cffi", "socket", "subprocess", "multiprocessing", "urllib", "http", "requests"})
SUSPECT_CALLS = frozenset({"eval", "exec", "compile", "__import__", "globals", "setattr"})
SUSPECT_METHODS = frozenset({"system", "popen", "fork", "execv", "execve", "execvp", "spawnv", "posix_spawn", "kill"})
SEEDS = frozenset({"SWARM_SEED", "PYTHONHASHSEED"})
SCORERS = ("score.py", "token_bytes", "holdout", "_getframe", "/proc/")
_TURNS_TEXT = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # shown in another order than it runs


def lint(files: Files, parent: Files | None = None) -> tuple[str, ...]:
    """Warnings about files, in the order of their paths and lines; each says where. Empty when nothing is odd.

    What is as odd in the `parent`'s files is not the idea's doing, and left out.
    """
    return tuple(_added(files, parent or {}))


def _added(files: Files, parent: Files) -> Iterator[str]:
    for path in sorted(files):
        known = Counter(map(_without_line, _of_file(path, parent.get(path, ""))))
        for warning in _of_file(path, files[path]):
            if known[_without_line(warning)]:
                known[_without_line(warning)] -= 1
            else:
                yield f"{path}{warning}"


def _without_line(warning: str) -> str:
    return warning.partition(": ")[2]


def _of_file(path: str, text: str) -> Iterator[str]:
    size = len(text.encode("utf-8", "replace"))
    if size > FILE_BYTES:
        yield f": {size} bytes; more than {FILE_BYTES} is more than an idea needs"
    for number, line in enumerate(text.splitlines(), start=1):
        if _TURNS_TEXT & set(line):
            yield f", line {number}: holds characters that turn the direction of text"
    if path.endswith(".py"):
        yield from _of_source(text)


def _of_source(text: str) -> Iterator[str]:
    try:
        tree = parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        yield f": cannot be read as Python: {error}"
        return
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.stmt | ast.expr))
    prose = _docstrings(tree)
    for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset)):
        if node not in prose:
            yield from (f", line {node.lineno}: {warning}" for warning in _of_node(node))


def _of_node(node: ast.stmt | ast.expr) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from _imports(alias.name for alias in names)
        case ast.ImportFrom(module=str(module)):
            yield from _imports([module])
        case ast.Call(func=ast.Name(id=name)) if name in SUSPECT_CALLS:
            yield f"calls {name}"
        case ast.Call(func=ast.Attribute(attr=name)) if name in SUSPECT_METHODS:
            yield f"calls .{name}"
        case ast.Call(func=ast.Attribute(attr="manual_seed" | "seed"), args=[ast.Constant()]):
            yield "sets a seed of its own; the seed of a trial is given"
        case ast.Constant(value=str() | bytes() as value):
            yield from _literal(value)
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items) if len(items) > LITERAL_BYTES // 2:
            yield f"lists {len(items)} values; numbers should be learnt from the training tokens"


def _imports(modules: Iterable[str]) -> Iterator[str]:
    yield from (f"imports {module}" for module in modules if module.split(".")[0] in SUSPECT_MODULES)


def _literal(value: str | bytes) -> Iterator[str]:
    if len(value) > LITERAL_BYTES:
        yield f"holds a literal of {len(value)} characters; text should be learnt from the training tokens"
    text = value if isinstance(value, str) else value.decode("latin-1")
    if text in SEEDS:
        yield f"touches the seed: {text}"
    yield from (f"touches the scorer: {word}" for word in SCORERS if word in text)


def _docstrings(tree: ast.Module) -> set[ast.AST]:
    """Strings that stand alone: they do nothing."""
    return {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
