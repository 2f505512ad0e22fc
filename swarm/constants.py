"""The constants of a training script: which may be tuned, within which values, and how a new value is written.

Pure text in, text out, and libcst's only home. A constant is a line `NAME = literal` at module level; what its author
writes in a comment on that line decides its values. It knows nothing of who chooses a value or why.
"""

import ast
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import libcst as cst

from swarm.errors import ProposalError

Value = bool | int | float | str
Kind = Literal["switch", "choice", "int", "float"]
Tier = Literal["cpu", "gpu"]

GPU = "GPU_"  # GPU_NAME beside NAME: what takes the place of NAME where the script trains on a GPU
LARGEST = 1e15  # above it ints and floats part ways
FLOAT_DIGITS = 3  # significant digits of a number we write; more would be noise dressed as precision

_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
_FIXED = re.compile(r"#\s*fixed\s*(?:$|[:;,.(-])")
_CHOICES = re.compile(r"choices:\s*([^;]+)")
_NUMBER = r"[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"range:\s*({_NUMBER})\s*\.\.\s*({_NUMBER})(\s+log\b)?")


@dataclass(frozen=True)
class Constant:
    """One tunable line `NAME = literal` of a script, and which other values it may take."""

    name: str
    value: Value
    kind: Kind
    choices: tuple[Value, ...] = ()  # of a switch or choice
    low: float = 0.0  # of a number
    high: float = 0.0
    log: bool = False
    comment: str = ""  # what the author says of it, without the `choices:` or `range:` part
    declared: bool = False  # the author says which values make sense; else low, high and choices are our guess


class _Line(NamedTuple):
    name: str
    statement: cst.SimpleStatementLine
    node: cst.BaseExpression
    value: Value
    trailing: str  # comment on the same line
    leading: str  # comment lines right above


def constants(source: str, tier: Tier = "cpu") -> list[Constant]:
    """Module-level constants that may be tuned, in the order of the file.

    A comment `# choices: a, b` or `# range: 0.01..0.1 log` on the line says what makes sense; `# fixed` keeps it out.
    Seeds are left out too: another seed is luck, not an idea. Where both NAME and GPU_NAME stand there, each belongs to
    one tier, and only that tier's is given.

    Raises:
        ProposalError: the source does not parse.
    """
    every = _assignments(_module(source))
    elsewhere = _of_the_other(tier, {line.name for line in every})
    lines = [line for line in every if not _FIXED.match(line.trailing) and line.name not in elsewhere]
    found = (_constant(line) for line in lines if "SEED" not in line.name.split("_"))
    return [constant for constant in found if constant is not None]


def _of_the_other(tier: Tier, names: set[str]) -> set[str]:
    """The names that do nothing in this tier."""
    pairs = {name: GPU + name for name in names if GPU + name in names}
    return set(pairs if tier == "gpu" else pairs.values())


def _module(source: str) -> cst.Module:
    try:
        return cst.parse_module(source)
    except cst.ParserSyntaxError as error:
        raise ProposalError(f"line {error.raw_line}: {error.message}") from error


def _assignments(module: cst.Module) -> list[_Line]:
    """Every `NAME = literal` on a line of its own whose name is assigned once; twice would be ambiguous."""
    lines = []
    for index, statement in enumerate(module.body):
        if isinstance(statement, cst.SimpleStatementLine) and len(statement.body) == 1:
            header = module.header if index == 0 else ()
            line = _assignment(module, statement, [*header, *statement.leading_lines])
            lines += [line] if line else []
    count = Counter(line.name for line in lines)
    return [line for line in lines if count[line.name] == 1]


def _assignment(module: cst.Module, line: cst.SimpleStatementLine, above: Sequence[cst.EmptyLine]) -> _Line | None:
    match line.body[0]:
        case cst.Assign(targets=[cst.AssignTarget(target=cst.Name(value=name))], value=node):
            pass
        case cst.AnnAssign(target=cst.Name(value=name), value=cst.BaseExpression() as node):
            pass
        case _:
            return None
    value = _value(module.code_for_node(node))
    if value is None or not _NAME.fullmatch(name):
        return None
    comment = line.trailing_whitespace.comment
    return _Line(name, line, node, value, comment.value if comment else "", _above(above))


def _value(text: str) -> Value | None:
    """What a literal stands for; None for anything computed and for numbers no script would mean."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape sequence in somebody's string is not our business
            value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError):
        return None
    if isinstance(value, str):
        return value
    return value if isinstance(value, bool | int | float) and abs(value) <= LARGEST else None


def _above(lines: Sequence[cst.EmptyLine]) -> str:
    """The comment block that touches the statement. Of a block under a `# ----` heading, its last sentence line."""
    block: list[str] = []
    for line in reversed(lines):
        if line.comment is None:
            break
        block.insert(0, line.comment.value.lstrip("#").strip())
    headings = [i for i, text in enumerate(block) if text.startswith(("---", "===", "***"))]
    if headings:
        ends = [i for i in range(headings[-1], len(block) - 1) if block[i].endswith((".", "-", "=", "*", ":"))]
        block = block[ends[-1] + 1 :] if ends else block[headings[-1] + 1 :]
    return " ".join(block)


def _constant(line: _Line) -> Constant | None:
    comment = _prose(line)
    if choices := _CHOICES.search(line.trailing):
        values = _choices(choices[1], line.value)
        return Constant(line.name, line.value, "choice", values, comment=comment, declared=True) if values else None
    if isinstance(line.value, bool):
        return Constant(line.name, line.value, "switch", (False, True), comment=comment, declared=True)
    if isinstance(line.value, str):
        return None
    span = _RANGE.search(line.trailing)
    if span and float(span[1]) < float(span[2]) <= LARGEST:
        low, high = float(span[1]), float(span[2])
        whole = isinstance(line.value, int) and not re.search(r"[.eE]", span[1] + span[2])
        kind: Kind = "int" if whole else "float"
        return Constant(line.name, line.value, kind, (), low, high, bool(span[3]) and low > 0, comment, True)
    return _guess(line.name, line.value, comment)


def _prose(line: _Line) -> str:
    trailing = _CHOICES.sub("", _RANGE.sub("", line.trailing.lstrip("#"))).strip(" ;,")
    return " ".join(part for part in (line.leading, trailing) if part)


def _choices(text: str, value: Value) -> tuple[Value, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if isinstance(value, str):
        return tuple(part.strip("\"'") for part in parts)
    values = [_value(part) for part in parts]
    return tuple(v for v in values if v is not None and not isinstance(v, str))


def _guess(name: str, value: float, comment: str) -> Constant:
    """A number whose author names no range: a factor of four either way, less where that makes no sense."""
    if isinstance(value, int) and value >= 8 and value & (value - 1) == 0:  # a power of two must mostly stay one
        return Constant(name, value, "choice", (value // 2, value, value * 2), comment=comment)
    if isinstance(value, int):
        ends = (0, 4) if value == 0 else sorted((value // 4, value * 4))
        least = max(1, ends[0]) if value > 0 else ends[0]
        return Constant(name, value, "int", (), float(least), float(ends[1]), value > 0, comment)
    low, high = (0.0, 0.5) if value == 0 else sorted((value / 4, value * 4))
    if 0.5 <= value < 1:  # a share or a rate of decay: it stays below 1
        return Constant(name, value, "float", (), low, 1 - (1 - value) / 4, False, comment)
    return Constant(name, value, "float", (), low, high, value > 0, comment)


def rounded(value: float) -> float:
    """A number as we write it: three significant digits."""
    return float(f"{value:.{FLOAT_DIGITS}g}")


def rewrite(source: str, values: Mapping[str, Value]) -> str:
    """Give constants new values and keep every other byte.

    Raises:
        ProposalError: the source has no such constant, or it does not parse.
    """
    module = _module(source)
    lines = {line.name: line for line in _assignments(module)}
    if unknown := sorted(set(values) - set(lines)):
        raise ProposalError(f"no constant {', '.join(unknown)}; there are {', '.join(lines) or 'none'}")
    changed = {lines[name].statement: _with_value(lines[name], value) for name, value in values.items()}
    body = [changed.get(node, node) if isinstance(node, cst.SimpleStatementLine) else node for node in module.body]
    return module.with_changes(body=body).code


def _with_value(line: _Line, value: Value) -> cst.SimpleStatementLine:
    if value == line.value and type(value) is type(line.value):
        return line.statement  # `1e-3` stays `1e-3`
    constant = _constant(line)
    exact = constant is not None and value in constant.choices
    node = cst.parse_expression(_literal(value, line.value, exact))
    node = node.with_changes(lpar=line.node.lpar, rpar=line.node.rpar)
    return line.statement.with_changes(body=[line.statement.body[0].with_changes(value=node)])


def _literal(value: Value, old: Value, exact: bool) -> str:
    if isinstance(value, str):
        return f'"{value}"' if repr(value) == f"'{value}'" and '"' not in value else repr(value)
    if isinstance(value, float) or isinstance(old, float):
        return repr(float(value) if exact else rounded(value))
    return repr(value)
