"""What runs over the pipe between proxy and bridge: one call, one answer, each a length and that many bytes.

Each side parses what the other sends with the codec. Frames carry names and bytes; neither side looks into the bytes.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, Literal

from swarm import codec
from swarm.cluster.port import Member, Silence

_LENGTH = struct.Struct(">I")


@dataclass(frozen=True)
class ListNodes:
    """Who is alive?"""

    kind: Literal["nodes"] = "nodes"


@dataclass(frozen=True)
class Exchange:
    """Hand each named actor its orders, wait for all of them at most this long."""

    orders: Mapping[str, bytes]  # actor name -> orders
    timeout_s: float
    kind: Literal["exchange"] = "exchange"


@dataclass(frozen=True)
class Appoint:
    """Have the named actor run on the node, and no other agent."""

    node_id: str
    name: str
    agent: str  # module:Class
    setup: bytes
    kind: Literal["appoint"] = "appoint"


@dataclass(frozen=True)
class Dismiss:
    """End every agent of the node."""

    node_id: str
    kind: Literal["dismiss"] = "dismiss"


Call = ListNodes | Exchange | Appoint | Dismiss


@dataclass(frozen=True)
class Nodes:
    """Answer to `ListNodes`."""

    members: tuple[Member, ...]
    kind: Literal["nodes"] = "nodes"


@dataclass(frozen=True)
class Replies:
    """Answer to `Exchange`, per actor name."""

    answers: Mapping[str, bytes]
    silent: Mapping[str, Silence]
    kind: Literal["replies"] = "replies"


@dataclass(frozen=True)
class Done:
    """Answer to `Appoint` and `Dismiss`, and the bridge's first frame once it is connected."""

    kind: Literal["done"] = "done"


@dataclass(frozen=True)
class Failed:
    """The call could not be carried out."""

    message: str
    kind: Literal["failed"] = "failed"


Answer = Nodes | Replies | Done | Failed


def frame(record: Call | Answer) -> bytes:
    """A record as it goes over the pipe."""
    body = codec.pack(record)
    return _LENGTH.pack(len(body)) + body


def read_call(pipe: BinaryIO) -> Call | None:
    """The next call; None at the end of the pipe."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    body = pipe.read(_LENGTH.unpack(head)[0])
    call: Call = codec.unpack(body, Call)  # type: ignore[arg-type]  # mypy has no word for a union as a value
    return call


def take_answer(buffer: bytearray) -> Answer | None:
    """Cut the first whole answer off the buffer; None while it is not all there."""
    if len(buffer) < _LENGTH.size:
        return None
    end = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
    if len(buffer) < end:
        return None
    body = bytes(buffer[_LENGTH.size : end])
    del buffer[:end]
    answer: Answer = codec.unpack(body, Answer)  # type: ignore[arg-type]  # as above
    return answer
