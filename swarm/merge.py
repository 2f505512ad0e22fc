"""How two edits of the same files are joined: a three-way merge that knows Python's statements.

Pure text in, text out: it works on the lines of statements, so comments and blank lines stay as they were written. It
knows nothing of git, claims or proposers, and never runs what it reads. Two edits that join may still not work
together, or be the same gain twice: that is for whoever measures the result.
"""

import ast
import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
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


_NAMED = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign

_Sides = tuple[_Block, _Block, _Block]
_Places = Sequence[Mapping[str, str]]  # of each side: unit -> the one that all have before it


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
    """Units that no side changed in place, but both got rid of, or moved: merged by name alone, one edit would be lost.

    Repeated units whose number changed are one unit, as nobody can say which of them is the second one now.
    """
    blocks = base, ours, theirs
    repeated = _recounted(blocks)
    found: dict[str, Clash] = {}
    for way in (1, -1):  # what stands before a unit, and what behind it, in case a side moved one of them
        places = _places_of(blocks, repeated, way)
        clashes = [*_gone(blocks, places), *_repeated(blocks, places, repeated), *_moved(blocks, places)]
        found = {clash.name: clash for clash in clashes} | found
    return [clash._replace(name=prefix + name) for name, clash in found.items()]


def _recounted(blocks: _Sides) -> set[str]:
    """Units that stand there more than once, and not equally often on all sides."""
    counts = [Counter(map(_family, block.units)) for block in blocks]
    return {
        name
        for name in {*counts[0], *counts[1], *counts[2]}
        if len(numbers := {count[name] for count in counts}) > 1 and max(numbers) > 1
    }


def _gone(blocks: _Sides, places: _Places) -> Iterator[Clash]:
    """`step(1)` became `step(2)` here; there it became `step(3)`, or was removed.

    Imports may: both sets of names are wanted then. What has a name and was removed on both sides is gone: what one of
    them has in its place bears another name.
    """
    base, *sides = blocks
    before, *after = places
    for place in dict.fromkeys(before.values()):
        gone = [k for k, at in before.items() if at == place and all(side.get(k) != place for side in after)]
        new = [[k for k, at in side.items() if at == place and before.get(k) != place] for side in after]
        nodes = [base.nodes.get(key) for key in gone]
        lost = [node for node in nodes if not _imports(node) and (all(new) or not isinstance(node, _NAMED))]
        if lost and new[0] != new[1]:
            texts = ("".join(s.units[k] for k in keys) for s, keys in zip(sides, new, strict=True))
            yield Clash(gone[0], "".join(base.units[key] for key in gone), *texts)


def _repeated(blocks: _Sides, places: _Places, repeated: Set[str]) -> Iterator[Clash]:
    """One of two equal statements was removed here; there another one, or something was added beside them."""
    for name in sorted(repeated):
        base, *sides = (
            [(at, block.units[key]) for key, at in side.items() if _family(key) == name]
            for block, side in zip(blocks, places, strict=True)
        )
        if sides[0] == sides[1]:
            continue
        beside = {at for at, _ in [*base, *sides[0], *sides[1]]}
        added = [{at for key, at in side.items() if places[0].get(key) != at} & beside for side in places[1:]]
        if all(side != base or more for side, more in zip(sides, added, strict=True)):
            yield Clash(name, *("".join(text for _, text in side) for side in (base, *sides)))


def _moved(blocks: _Sides, places: _Places) -> Iterator[Clash]:
    """Removed here and moved there, or put into two places; an import may stand anywhere."""
    for key in {**places[1], **places[2]}:
        before, ours, theirs = (side.get(key) for side in places)
        imported = all(_imports(block.nodes.get(key)) for block in blocks if key in block.units)
        if ours not in (before, theirs) and theirs != before and not imported:
            yield Clash(key, *(block.units.get(key, "") for block in blocks))


def _places_of(blocks: _Sides, repeated: Set[str], way: int) -> list[dict[str, str]]:
    keys = [list(block.units) for block in blocks]
    kept = _in_order(*([key for key in side if _family(key) not in repeated] for side in keys))
    return [_places(side[::way], kept) for side in keys]


def _in_order(base: list[str], ours: list[str], theirs: list[str]) -> set[str]:
    """Units that all three have in the same order; those around which the others moved."""
    common = base
    for side in sorted((ours, theirs)):  # which is which must not matter
        matcher = difflib.SequenceMatcher(a=common, b=side, autojunk=False)
        common = [key for block in matcher.get_matching_blocks() for key in common[block.a : block.a + block.size]]
    return set(common)


def _places(keys: Sequence[str], kept: Set[str]) -> dict[str, str]:
    """Behind which unit that all have the others stand."""
    places: dict[str, str] = {}
    before = ""
    for key in keys:
        if key in kept:
            before = key
        else:
            places[key] = before
    return places


def _family(key: str) -> str:
    """Repeated units have it in common; see `_free`."""
    return re.sub(r" \(\d+\)$", "", key)


def _imports(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def _merge_unit(key: str, sides: _Sides, prefix: str) -> str | None:
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
