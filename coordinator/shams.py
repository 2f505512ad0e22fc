"""Sham edits: the coordinator now and then claims an edit that changes nothing, and sees what the chain makes of it.

Pure. Owns when one is drawn, how it is made of the champion, and what its Verdict is called. A sham is confirmed as any
Claim is, on Nodes that are not told; it has no Experiment and no author, moves no bar and no noise, and never lands.

On one thread the same code and seed give the same bits, so an edit of comments would gain exactly 0, and audit nothing.
A sham adds a number to the seed that the champion's script sets: other initial weights on the same stream of tokens,
which is what any edit that touches a model's shape does besides what it is meant to do.
"""

import ast
from collections.abc import Iterator
from dataclasses import replace

from coordinator.state import Claim, State
from swarm.records import Files, ShamJudged, ShamRaised, Verdict, candidate_id, digest
from swarm.source import lines_of, parse

# Calls that set a seed, in the order in which they are looked for: the first ones never draw data in the usual script.
SEEDERS = ("manual_seed", "set_seed", "seed", "PRNGKey", "RandomState", "default_rng", "Random")
OFFSETS = 2**20  # with seeds below 2**31 the sum stays below 2**32, the most that numpy takes


def raised(state: State, share: float, now: float) -> Iterator[ShamRaised]:
    """The next sham, if one was drawn since the last: one at a time, and none before the first real Claim."""
    first = state.shams[-1].claim + 1 if state.shams else 1
    drawn = next((n for n in range(first, len(state.claimed_on) + 1) if _is_drawn(state, n, share)), None)
    if drawn is None or any(claim.sham for claim in state.open_claims.values()):
        return
    name = _name(state, drawn)
    files = reseeded(state.files[state.champion], 1 + int(name[:8], 16) % OFFSETS)
    if files is None:
        return
    number, platform = len(state.shams) + 1, state.claimed_on[drawn - 1]
    yield ShamRaised(number, drawn, name, candidate_id(files), state.champion, files, platform, now)


def _is_drawn(state: State, claim: int, share: float) -> bool:
    """Whether a sham follows the real Claim of this number; of all Claims, shams included, they are that share."""
    return int(_name(state, claim)[8:16], 16) < share / (1.0 - share) * 2**32


def _name(state: State, claim: int) -> str:
    opened = state.opened
    return digest("sham", opened.seed if opened else 0, opened.study if opened else "", claim)


def judged(claim: Claim, verdict: Verdict, now: float) -> ShamJudged:
    """What came of a sham."""
    words = f"the chain accepted a no-op; {verdict.reason}" if verdict.accepted else verdict.reason
    return ShamJudged(claim.sham, replace(verdict, reason=words), now)


def reseeded(files: Files, offset: int) -> Files | None:
    """The same files with another random stream; None where they set no seed in a way that is known."""
    calls = [(path, call) for path in sorted(files) if path.endswith(".py") for call in _calls(files[path])]
    for seeder in SEEDERS:
        for path, call in calls:
            if _called(call) == seeder:
                return {**files, path: _added(files[path], call.args[0], offset)}
    return None


def _calls(text: str) -> list[ast.Call]:
    try:
        nodes = ast.walk(parse(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [node for node in nodes if isinstance(node, ast.Call) and node.args and _called(node)]


def _called(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _added(text: str, argument: ast.expr, offset: int) -> str:
    """The text with `(argument) + offset` in the place of the argument. Columns of a syntax tree count bytes."""
    lines = [line.encode() for line in lines_of(text)]
    before = sum(map(len, lines[: argument.lineno - 1]))
    begin = before + argument.col_offset
    end = sum(map(len, lines[: (argument.end_lineno or 1) - 1])) + (argument.end_col_offset or 0)
    data = text.encode()
    return b"".join([data[:begin], b"(", data[begin:end], b") + %d" % offset, data[end:]]).decode()
