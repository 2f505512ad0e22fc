"""What the swarm knows about source text: the identity of an idea, how two edits are joined, what an edit changes.

Pure text in, text out. It knows nothing of git, trials or proposers, and never runs what it reads. It does not judge
whether an edit is safe: a candidate that parses here may still do anything once it runs.
"""

import ast
import difflib
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from swarm.errors import ProposalError, SwarmError
from swarm.records import Files, digest

DIFF_LIMIT = 2_000  # characters of a diff that a Brief carries
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
            return _normal(_parse(text))
        text.encode()
    except SyntaxError as error:
        raise ProposalError(f"{path}, line {error.lineno or '?'}: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # NUL, half a character; deeper than the parser goes
        raise ProposalError(f"{path}, line ?: {error or 'nested too deeply'}") from error
    return "\n".join(line.rstrip() for line in text.strip().splitlines()).replace("\0", "\\0")


def _parse(text: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an odd escape sequence in somebody's string is not our business
        return ast.parse(text)


def _normal(node: object) -> str:
    """Like `ast.dump`, but the same on every Python (3.13 leaves out empty fields) and blind to docstrings."""
    if isinstance(node, list):
        return "[" + ",".join(map(_normal, node)) + "]"
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
            fields.append(f"{name}={_normal(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


def _is_docstring(body: Sequence[ast.stmt]) -> bool:
    first = body[0] if body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)


# --- joining two edits -----------------------------------------------------------------------------------


@dataclass(eq=False)
class MergeConflict(SwarmError):
    """Both sides changed the same unit, each in its own way."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"both sides changed {', '.join(self.names)}"


class _Block(NamedTuple):
    """A module or class body cut into units. Comments and blank lines belong to the unit that follows them."""

    head: str  # of a class: everything up to its colon
    units: dict[str, str]  # key -> text, in order
    tail: str
    nodes: dict[str, ast.stmt]  # of units that are one statement


def merge(base: str, ours: str, theirs: str) -> str:
    """Join two edits of one Python file; constants, functions, methods and other statements are the units.

    Raises:
        MergeConflict: a unit was changed differently on both sides.
        ProposalError: one of the three does not parse.
    """
    if ours == base or ours == theirs:
        return theirs
    if theirs == base:
        return ours
    try:
        merged = _merge_blocks(_cut_module(base), _cut_module(ours), _cut_module(theirs), prefix="")
        _parse(merged)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise ProposalError(f"cannot merge: {error}") from error
    return merged


def merge_files(base: Files, ours: Files, theirs: Files) -> dict[str, str]:
    """Join two edits of a tree; files that are not Python are one unit each.

    Raises:
        MergeConflict: naming `path:unit`, or the path alone.
        ProposalError: a Python file that both sides changed does not parse.
    """
    merged: dict[str, str] = {}
    conflicts: list[str] = []
    for path in sorted({*base, *ours, *theirs}):
        texts = base.get(path), ours.get(path), theirs.get(path)
        try:
            text = _pick(*texts, path=path)
        except MergeConflict as conflict:
            conflicts += conflict.names
        else:
            merged |= {} if text is None else {path: text}
    if conflicts:
        raise MergeConflict(tuple(conflicts))
    return merged


def _pick(base: str | None, ours: str | None, theirs: str | None, path: str) -> str | None:
    if ours == base or ours == theirs:
        return theirs
    if theirs == base:
        return ours
    if base is None or ours is None or theirs is None or not path.endswith(".py"):
        raise MergeConflict((path,))
    try:
        return merge(base, ours, theirs)
    except MergeConflict as conflict:
        raise MergeConflict(tuple(f"{path}:{name}" for name in conflict.names)) from conflict


def _lines(text: str) -> list[str]:
    return list(io.StringIO(text, newline=""))  # as Python counts them; str.splitlines also cuts at form feeds


def _cut_module(text: str) -> _Block:
    return _cut(_lines(text), _parse(text).body, 0)


def _cut_class(text: str) -> _Block | None:
    """The unit of a class, cut at its methods; None for anything else, for a nested class and for a one-liner."""
    try:
        nodes = _parse(text).body
    except SyntaxError:  # indented, so nested
        return None
    if len(nodes) != 1 or not isinstance(nodes[0], ast.ClassDef) or _start(nodes[0].body[0]) < nodes[0].lineno:
        return None
    lines, first = _lines(text), _start(nodes[0].body[0])
    while not lines[first - 1].strip() or lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return _cut(lines, nodes[0].body, first)


def _cut(lines: list[str], body: Sequence[ast.stmt], first: int) -> _Block:
    units: dict[str, str] = {}
    nodes: dict[str, ast.stmt] = {}
    end, key = first, ""
    for node in body:
        stop = node.end_lineno or end
        if key and _start(node) < end:  # `a = 1; b = 2`: one line is one unit
            units[key] += "".join(lines[end:stop])
            nodes.pop(key, None)
        else:
            key = _free(_key(node), units)
            units[key], nodes[key] = "".join(lines[end:stop]), node
        end = max(end, stop)
    return _Block("".join(lines[:first]), units, "".join(lines[end:]), nodes)


def _start(node: ast.stmt) -> int:
    """Index of the first line of a statement, its decorators included."""
    decorators = node.decorator_list if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) else []
    return min([node.lineno, *(decorator.lineno for decorator in decorators)]) - 1


def _key(node: ast.stmt) -> str:
    """What makes a statement the same one after an edit: its name, else what it binds or tests, else its text."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return name
        case ast.Assign(targets=targets):
            return " = ".join(map(ast.unparse, targets))
        case ast.AnnAssign(target=target):
            return ast.unparse(target)
        case ast.AugAssign(target=target):
            return f"augmented {ast.unparse(target)}"
        case ast.If(test=part) | ast.While(test=part) | ast.For(iter=part):
            return f"{type(node).__name__.lower()} {ast.unparse(part)}"
        case ast.With(items=items):
            return f"with {', '.join(map(ast.unparse, items))}"
        case ast.Expr(value=ast.Constant(value=str())):
            return "docstring"
        case ast.Try():
            return "try"
    return ast.unparse(node)


def _free(key: str, taken: Mapping[str, str]) -> str:
    number = 2
    name = key
    while name in taken:
        name, number = f"{key} ({number})", number + 1
    return name


def _merge_blocks(base: _Block, ours: _Block, theirs: _Block, *, prefix: str) -> str:
    texts: dict[str, str | None] = {}
    conflicts: list[str] = []
    for key in {**base.units, **ours.units, **theirs.units}:
        try:
            texts[key] = _merge_unit(key, (base, ours, theirs), prefix)
        except MergeConflict as conflict:
            conflicts += conflict.names
    if conflicts:
        raise MergeConflict(tuple(conflicts))
    order = _order(list(base.units), list(ours.units), list(theirs.units), prefix)
    head = _three_way(base.head, ours.head, theirs.head, f"{prefix}head")
    tail = _three_way(base.tail, ours.tail, theirs.tail, f"{prefix}end")
    return _join([head, *(texts[key] for key in order), tail])


def _merge_unit(key: str, sides: tuple[_Block, _Block, _Block], prefix: str) -> str | None:
    base, ours, theirs = (side.units.get(key) for side in sides)
    try:
        return _three_way(base, ours, theirs, prefix + key)
    except MergeConflict:
        nodes = [side.nodes.get(key) for side in sides]
        if base is None or ours is None or theirs is None or None in nodes:
            raise
        if _normal(nodes[0]) in (
            _normal(nodes[1]),
            _normal(nodes[2]),
        ):  # one side changed the layout only: it gives way
            return theirs if _normal(nodes[0]) == _normal(nodes[1]) else ours
        blocks = [block for text in (base, ours, theirs) if (block := _cut_class(text))]
        if len(blocks) < 3:
            raise
        return _merge_blocks(blocks[0], blocks[1], blocks[2], prefix=f"{prefix}{key}.")


def _three_way(base: str | None, ours: str | None, theirs: str | None, name: str) -> str | None:
    if ours == base or ours == theirs:
        return theirs
    if theirs == base:
        return ours
    raise MergeConflict((name,))


def _order(base: list[str], ours: list[str], theirs: list[str], prefix: str) -> list[str]:
    """All keys, in the order of the side that moved something; what the other added follows its predecessor there."""
    common = set(base) & set(ours) & set(theirs)
    b, o, t = ([key for key in keys if key in common] for keys in (base, ours, theirs))
    if o not in (b, t) and t != b:
        raise MergeConflict((f"{prefix}order",))
    order, other = (list(ours), theirs) if t == b or o == t else (list(theirs), ours)
    before = ""
    for key in other:
        if key not in order:
            order.insert(order.index(before) + 1 if before else 0, key)
        before = key
    return order


def _join(texts: Sequence[str | None]) -> str:
    """Text after text; one that ended its file without a newline gets one when something follows."""
    present = [text for text in texts if text]
    return "".join(text if text.endswith(("\n", "\r")) else text + "\n" for text in present[:-1]) + "".join(
        present[-1:]
    )


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
        old, new = _lines(parent.get(path, "")), _lines(child.get(path, ""))
        lines = list(difflib.unified_diff(old, new, f"a/{path}", f"b/{path}"))
        found += [line if line.endswith("\n") else line + "\n" for line in (lines if headers else lines[2:])]
    return found
