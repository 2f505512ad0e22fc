"""Records to bytes and back: msgpack on the wire and in spools, JSON in the ledger.

Everything that comes from outside this process is parsed here, strictly (unknown keys, NaN and wrong types are
refused), so that the rest may trust its types. What no reader would accept is not written either: one NaN in a ledger
or a spool would close it for ever.
"""

from typing import Any, TypeVar

import msgpack
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from swarm.errors import SwarmError
from swarm.records import Fact

T = TypeVar("T")
_SHOWN = 3  # mistakes named in one refusal


class DecodeError(SwarmError):
    """Bytes that are not the record they should be."""


class EncodeError(SwarmError):
    """A record that no reader would accept: it holds NaN, a wrong type, or text that is not Unicode."""


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}  # building one takes milliseconds


def _adapter(kind: Any) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def pack(record: object, kind: Any = None) -> bytes:
    """One record as msgpack.

    Raises:
        EncodeError: `unpack` would refuse it.
    """
    try:
        packed: bytes = msgpack.packb(_plain(_adapter(kind or type(record)), record), use_bin_type=True)
    except (ValueError, TypeError, OverflowError) as error:
        raise EncodeError(f"{type(record).__name__} cannot be written: {_told(error)}") from error
    return packed


def _plain(adapter: TypeAdapter[Any], record: object) -> Any:
    """The record as plain data that its reader accepts."""
    plain = adapter.dump_python(record, warnings="none")
    adapter.validate_python(plain)
    return plain


def _told(error: Exception) -> str:
    """What is wrong and where, without the value: that may be somebody's whole train.py."""
    if not isinstance(error, ValidationError):
        return str(error) or type(error).__name__
    wrong = [f"{'.'.join(map(str, item['loc'])) or 'it'}: {item['msg']}" for item in error.errors(include_url=False)]
    return "; ".join(wrong[:_SHOWN]) + (f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else "")


def unpack(data: bytes, kind: type[T]) -> T:
    """Inverse of `pack`.

    Raises:
        DecodeError: the bytes are cut short, or are not a valid `kind`.
    """
    try:
        record: T = _adapter(kind).validate_python(msgpack.unpackb(data, raw=False, strict_map_key=False))
    except (ValueError, TypeError, msgpack.UnpackException) as error:  # TypeError: a map whose key is a list
        raise DecodeError(f"not a {getattr(kind, '__name__', 'fact')}: {_told(error)}") from error
    return record


def fact_to_json(fact: Fact) -> str:
    """A fact as one line of JSON, the form in which the ledger holds it.

    Raises:
        EncodeError: `fact_from_json` would refuse it.
    """
    adapter = _adapter(Fact)
    try:
        _plain(adapter, fact)  # JSON would turn NaN into null, and a gain that is no number into one that is missing
        text = adapter.dump_json(fact, warnings="none").decode()
    except (ValidationError, PydanticSerializationError) as error:
        raise EncodeError(f"{type(fact).__name__} cannot be written: {_told(error)}") from error
    return text


def fact_from_json(text: str) -> Fact:
    """Inverse of `fact_to_json`."""
    try:
        fact: Fact = _adapter(Fact).validate_json(text)
    except ValidationError as error:
        raise DecodeError(f"not a fact: {_told(error)}") from error
    return fact


def unpack_fact(data: bytes) -> Fact:
    """A fact from msgpack, as a spool holds it."""
    fact: Fact = unpack(data, Fact)  # type: ignore[arg-type]
    return fact
