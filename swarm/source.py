"""What the swarm knows about source text: the identity of an idea, and what an edit changes.

Pure text in, text out. It knows nothing of git, trials or proposers, and never runs what it reads. It does not judge
whether an edit is safe: a candidate that parses here may still do anything once it runs.
"""

import ast
import difflib
import io
import threading
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from swarm.errors import ProposalError
from swarm.records import Files, digest

DIFF_LIMIT = 2_000  # characters of a diff that a Brief carries
_ONE_AT_A_TIME = threading.Lock()  # warnings, too, are switched off for all threads at once
_SKIPPED_FIELDS = {"kind", "type_comment", "type_ignores", "ctx"}  # say nothing about what the code does


# --- identity --------------------------------------------------------------------------------------------


def idea_hash(files: Files) -> str:
    """Identity of an idea: equal for trees that differ in comments, blank space or docstrings only.

    Raises:
        ProposalError: a Python file does not parse.
    """
    return digest("idea", *(part for path in sorted(files) for part in (path, _normal_text(path, files[path]))))


def _normal_text(path: str, text: str) -> str:
    try:
        if path.endswith(".py"):
            return normal(parse(text))
        text.encode()
    except SyntaxError as error:
        raise ProposalError(f"{path}, line {error.lineno or '?'}: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # NUL, half a character; deeper than the parser goes
        raise ProposalError(f"{path}, line ?: {error or 'nested too deeply'}") from error
    return "\n".join(line.rstrip() for line in text.strip().splitlines()).replace("\0", "\\0")


def parse(text: str) -> ast.Module:
    """The syntax tree; raises what `ast.parse` raises."""
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an odd escape sequence in somebody's string is not our business
        try:
            return ast.parse(text)
        except SystemError:  # another thread parsed without us: Python 3.11 counts the depth of all trees in one place
            return ast.parse(text)


def parses(text: str) -> bool:
    """Whether it is Python at all."""
    try:
        parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def lines_of(text: str) -> list[str]:
    """Lines as Python counts them; str.splitlines also cuts at form feeds."""
    return list(io.StringIO(text, newline=""))


def normal(node: object) -> str:
    """Like `ast.dump`, but the same on every Python (3.13 leaves out empty fields) and blind to docstrings."""
    if isinstance(node, list):
        return "[" + ",".join(map(normal, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node).replace("\0", "\\0")
    fields = []
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            value = value[1:] if _is_docstring(value) else value
        if (
            value not in (None, [])
            and name not in _SKIPPED_FIELDS
            or isinstance(node, ast.Constant)
            and name == "value"
        ):
            fields.append(f"{name}={normal(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


def _is_docstring(body: Sequence[ast.stmt]) -> bool:
    first = body[0] if body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)


# --- how much of it there is -----------------------------------------------------------------------------


class Size(NamedTuple):
    """How much code there is to read, however it is laid out; comments and docstrings do not count."""

    lines: int
    nodes: int  # of the syntax trees


def is_simpler(files: Files, than: Files) -> bool:
    """Whether lines are gone, and the syntax tree did not grow: squeezing two statements into one is no simplification.

    What does not parse is not simpler than anything.
    """
    try:
        ours, theirs = _size(files), _size(than)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return ours.lines < theirs.lines and ours.nodes <= theirs.nodes


def _size(files: Files) -> Size:
    sizes = [_size_of_python(text) if path.endswith(".py") else _size_of_text(text) for path, text in files.items()]
    return Size(sum(size.lines for size in sizes), sum(size.nodes for size in sizes))


def _size_of_python(text: str) -> Size:
    tree = parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = node.body[1:] if _is_docstring(node.body) else node.body
    nodes = sum(not isinstance(node, ast.expr_context) for node in ast.walk(tree))
    return Size(_size_of_text(ast.unparse(tree)).lines, nodes)


def _size_of_text(text: str) -> Size:
    lines = sum(bool(line.strip()) for line in lines_of(text))
    return Size(lines, lines)


# --- telling what an edit does ---------------------------------------------------------------------------


class LinesChanged(NamedTuple):
    """Size of an edit."""

    added: int
    removed: int


def describe_edit(parent: Files, child: Files, limit: int = DIFF_LIMIT) -> str:
    """Unified diff from parent to child, at most `limit` characters."""
    text = "".join(_diff(parent, child))
    if len(text) <= limit:
        return text
    note = f"\n[... {len(text)} characters in all]\n"
    return text[: max(0, limit - len(note))] + note[:limit]


def lines_changed(parent: Files, child: Files) -> LinesChanged:
    """How many lines an edit adds and removes over all files."""
    body = [line for line in _diff(parent, child, headers=False)]
    return LinesChanged(sum(line.startswith("+") for line in body), sum(line.startswith("-") for line in body))


def _diff(parent: Files, child: Files, headers: bool = True) -> list[str]:
    found: list[str] = []
    for path in sorted({*parent, *child}):
        old, new = lines_of(parent.get(path, "")), lines_of(child.get(path, ""))
        lines = list(difflib.unified_diff(old, new, f"a/{path}", f"b/{path}"))
        found += [line if line.endswith("\n") else line + "\n" for line in (lines if headers else lines[2:])]
    return found
