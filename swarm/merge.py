"""How two edits of the same files are joined: a three-way merge that knows Python's statements.

Pure text in, text out: it works on the lines of statements, so comments and blank lines stay as they were written. It
knows nothing of git, claims or proposers, and never runs what it reads. Two edits that join may still not work
together, or be the same gain twice: that is for whoever measures the result.
"""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from swarm.diff3 import join_lines, join_pieces
from swarm.errors import ProposalError, SwarmError
from swarm.records import Files
from swarm.source import lines_of, normal, parse, parses


class Clash(NamedTuple):
    """One unit that both sides changed, and what became of it on each; a side that removed it has no text."""

    name: str
    base: str
    ours: str
    theirs: str


@dataclass(eq=False)
class MergeConflict(SwarmError):
    """Both sides changed the same units, each in its own way."""

    clashes: tuple[Clash, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the units, in the order of the file."""
        return tuple(clash.name for clash in self.clashes)

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
        parse(merged)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ProposalError(f"cannot merge: {error}") from error
    return merged


def merge_files(base: Files, ours: Files, theirs: Files) -> dict[str, str]:
    """Join two edits of a tree; files that are not Python, or do not parse, are joined line by line.

    What both sides changed parses afterwards, if it is Python. It does not matter which side is which.

    Raises:
        MergeConflict: naming `path:unit`, or the path alone.
    """
    merged: dict[str, str] = {}
    conflicts: list[Clash] = []
    for path in sorted({*base, *ours, *theirs}):
        texts = base.get(path), ours.get(path), theirs.get(path)
        try:
            text = _pick(*texts, path=path)
        except MergeConflict as conflict:
            conflicts += conflict.clashes
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
    clash = Clash(path, base or "", ours or "", theirs or "")
    if base is None or ours is None or theirs is None:
        raise MergeConflict((clash,))
    python = path.endswith(".py")
    try:
        joined = merge(base, ours, theirs) if python else join_lines(base, ours, theirs)
    except MergeConflict as conflict:
        raise MergeConflict(tuple(c._replace(name=f"{path}:{c.name}") for c in conflict.clashes)) from conflict
    except ProposalError:
        joined = join_lines(base, ours, theirs)
    if joined is None or python and not parses(joined):
        raise MergeConflict((clash,))
    return joined


def _cut_module(text: str) -> _Block:
    return _cut(lines_of(text), parse(text).body, 0)


def _cut_class(text: str) -> _Block | None:
    """The unit of a class, cut at its methods; None for anything else, for a nested class and for a one-liner."""
    try:
        nodes = parse(text).body
    except SyntaxError:  # indented, so nested
        return None
    if len(nodes) != 1 or not isinstance(nodes[0], ast.ClassDef) or _start(nodes[0].body[0]) < nodes[0].lineno:
        return None
    lines, first = lines_of(text), _start(nodes[0].body[0])
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
    conflicts: list[Clash] = []
    for key in {**base.units, **ours.units, **theirs.units}:
        try:
            texts[key] = _merge_unit(key, (base, ours, theirs), prefix)
        except MergeConflict as conflict:
            conflicts += conflict.clashes
    conflicts += _replaced_twice(base, ours, theirs, prefix)
    if conflicts:
        raise MergeConflict(tuple(conflicts))
    order = _order(list(base.units), list(ours.units), list(theirs.units), prefix)
    head = _three_way(base.head, ours.head, theirs.head, f"{prefix}head")
    tail = _three_way(base.tail, ours.tail, theirs.tail, f"{prefix}end")
    return _join([head, *(texts[key] for key in order), tail])


def _replaced_twice(base: _Block, ours: _Block, theirs: _Block, prefix: str) -> list[Clash]:
    """Units gone on both sides, with different ones in their place: `step(1)` became `step(2)` here, `step(3)` there.

    Imports may: both sets of names are wanted then.
    """
    kept = set(base.units) & set(ours.units) & set(theirs.units)
    gaps = [_gaps(list(block.units), kept) for block in (base, ours, theirs)]
    found = []
    for before, keys in gaps[0].items():
        gone = [key for key in keys if key not in ours.units and key not in theirs.units]
        new = [[k for k in gap.get(before, []) if k not in base.units] for gap in gaps[1:]]
        if all(new) and new[0] != new[1] and any(not _imports(base.nodes.get(key)) for key in gone):
            sides = ("".join(b.units[k] for k in keys) for b, keys in zip((ours, theirs), new, strict=True))
            found.append(Clash(prefix + gone[0], "".join(base.units[key] for key in gone), *sides))
    return found


def _gaps(keys: Sequence[str], kept: set[str]) -> dict[str, list[str]]:
    """What stands between the units that all have, by the one before."""
    gaps: dict[str, list[str]] = {}
    before = ""
    for key in keys:
        if key in kept:
            before = key
        else:
            gaps.setdefault(before, []).append(key)
    return gaps


def _imports(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def _merge_unit(key: str, sides: tuple[_Block, _Block, _Block], prefix: str) -> str | None:
    base, ours, theirs = (side.units.get(key) for side in sides)
    try:
        return _three_way(base, ours, theirs, prefix + key)
    except MergeConflict:
        nodes = [side.nodes.get(key) for side in sides]
        if base is None or ours is None or theirs is None or None in nodes:
            raise
        changed = [side for side in (1, 2) if normal(nodes[side]) != normal(nodes[0])]
        if len(changed) < 2:
            return _with_layout(Clash(prefix + key, base, ours, theirs), changed)
        blocks = [block for text in (base, ours, theirs) if (block := _cut_class(text))]
        if len(blocks) < 3:
            raise
        return _merge_blocks(blocks[0], blocks[1], blocks[2], prefix=f"{prefix}{key}.")


def _with_layout(clash: Clash, changed: Sequence[int]) -> str:
    """At most one side changed code: both edits where they are apart, else the code; two layouts are a conflict."""
    base, *sides = clash[1:]
    code = sides[changed[0] - 1] if changed else base
    joined = join_pieces(base, *sides)
    if joined is not None and _meaning(joined) == _meaning(code):
        return joined
    if not changed:
        raise MergeConflict((clash,))
    return code


def _meaning(unit: str) -> str:
    """Blind to layout. A unit of a class is indented, so it stands in a block here."""
    inside = next((line for line in lines_of(unit) if line.strip() and not line.lstrip().startswith("#")), "")
    text = f"if 1:\n{unit}" if inside[:1].isspace() else unit
    return normal(parse(text)) if parses(text) else ""


def _three_way(base: str | None, ours: str | None, theirs: str | None, name: str) -> str | None:
    if ours == base or ours == theirs:
        return theirs
    if theirs == base:
        return ours
    raise MergeConflict((Clash(name, base or "", ours or "", theirs or ""),))


def _order(base: list[str], ours: list[str], theirs: list[str], prefix: str) -> list[str]:
    """All keys, in the order of the side that moved something; what the other added follows its predecessor there."""
    common = set(base) & set(ours) & set(theirs)
    b, o, t = ([key for key in keys if key in common] for keys in (base, ours, theirs))
    if o not in (b, t) and t != b:
        raise MergeConflict((Clash(f"{prefix}order", *map("\n".join, (base, ours, theirs))),))
    if o == t:  # neither moved anything, or both alike: which side is which must not matter
        first, other = max(ours, theirs), min(ours, theirs)
    else:
        first, other = (ours, theirs) if t == b else (theirs, ours)
    order = list(first)
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
