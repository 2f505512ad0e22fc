"""Every record survives the way to bytes and back; everything else is refused, at the writer and at the reader."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgpack
import pytest
from factories import finished_study, small_study
from hypothesis import given
from hypothesis import strategies as st

from swarm.codec import DecodeError, EncodeError, fact_from_json, fact_to_json, pack, unpack, unpack_fact
from swarm.records import (
    Fact,
    Measurement,
    Orders,
    Report,
    Screened,
    Setup,
    Spent,
    TrialFinished,
    Trouble,
    Usage,
)

KINDS: tuple[type, ...] = get_args(get_args(Fact)[0])
TEXT = st.text(max_size=12)
FACTS = small_study().facts


def strategy_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of an annotated type, as the records use them."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Fact:
        return st.one_of([records(kind) for kind in KINDS])
    if origin is Literal:
        return st.sampled_from(inner)
    if origin is tuple:
        return st.lists(strategy_of(inner[0]), max_size=2).map(tuple)
    if origin is not None and issubclass(origin if isinstance(origin, type) else object, Mapping):
        return st.dictionaries(strategy_of(inner[0]), strategy_of(inner[1]), max_size=2)
    if inner:  # A | B
        return st.one_of([strategy_of(one) for one in inner])
    simple: dict[Any, st.SearchStrategy[Any]] = {
        str: TEXT,
        bytes: st.binary(max_size=12),
        bool: st.booleans(),
        int: st.integers(-(2**63), 2**64 - 1),
        float: st.floats(allow_nan=False, allow_infinity=False),
        type(None): st.none(),
    }
    return simple[hint] if hint in simple else records(hint)


def records(kind: type) -> st.SearchStrategy[Any]:
    """Any record of this kind."""
    hints = get_type_hints(kind, include_extras=True)
    assert dataclasses.is_dataclass(kind)
    return st.builds(kind, **{field.name: strategy_of(hints[field.name]) for field in dataclasses.fields(kind)})


def test_the_facts_under_test_are_all_there_are() -> None:
    assert len(KINDS) == 30
    assert len({kind.__dataclass_fields__["kind"].default for kind in KINDS}) == len(KINDS)  # type: ignore[attr-defined]
    assert Union[KINDS] == get_args(Fact)[0]  # noqa: UP007  # a union from a tuple


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
@given(data=st.data())
def test_every_fact_comes_back_as_it_was(kind: type, data: st.DataObject) -> None:
    fact = data.draw(records(kind))
    assert unpack_fact(pack(fact)) == fact
    assert fact_from_json(fact_to_json(fact)) == fact
    assert type(unpack_fact(pack(fact))) is kind
    assert unpack_fact(pack(fact)).key == fact.key


@pytest.mark.parametrize("kind", [Orders, Report, Setup])
@given(data=st.data())
def test_every_message_comes_back_as_it_was(kind: type, data: st.DataObject) -> None:
    message = data.draw(records(kind))
    assert unpack(pack(message), kind) == message


def test_keys_name_what_happened_once() -> None:
    facts = finished_study().facts
    assert len({fact.key for fact in facts}) == len(facts)


# --- what a reader refuses -------------------------------------------------------------------------------


@given(st.sampled_from(FACTS), st.data())
def test_bytes_that_were_cut_short_are_refused(fact: Fact, data: st.DataObject) -> None:
    packed, text = pack(fact), fact_to_json(fact)
    with pytest.raises(DecodeError):
        unpack_fact(packed[: data.draw(st.integers(0, len(packed) - 1))])
    with pytest.raises(DecodeError):
        fact_from_json(text[: data.draw(st.integers(0, len(text) - 1))])


@given(st.binary(max_size=80))
def test_any_bytes_are_a_record_or_refused(data: bytes) -> None:
    for kind in (Orders, Report, Setup, Usage):
        try:
            unpack(data, kind)
        except DecodeError:
            continue


def plain_of(fact: Fact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fact_to_json(fact))
    return found


def refused(plain: object) -> str:
    """Both ways in refuse it; what they say."""
    with pytest.raises(DecodeError):
        unpack_fact(msgpack.packb(plain))
    with pytest.raises(DecodeError) as caught:
        fact_from_json(json.dumps(plain))
    return str(caught.value)


@given(st.sampled_from(FACTS), st.text(min_size=1, max_size=8))
def test_an_unknown_key_is_refused(fact: Fact, name: str) -> None:
    plain = plain_of(fact)
    if name not in plain:
        assert "not a fact" in refused({**plain, name: 1})


@given(st.sampled_from(FACTS), st.data())
def test_a_missing_key_is_refused(fact: Fact, data: st.DataObject) -> None:
    needed = [field.name for field in dataclasses.fields(fact) if field.default is dataclasses.MISSING]
    plain = plain_of(fact)
    del plain[data.draw(st.sampled_from(needed))]
    refused(plain)


@given(st.sampled_from(FACTS), st.data())
def test_a_wrong_type_is_refused_and_named(fact: Fact, data: st.DataObject) -> None:
    plain = plain_of(fact)
    name = data.draw(st.sampled_from([name for name in plain if name != "kind"]))
    assert name in refused({**plain, name: [[[]]]})


@pytest.mark.parametrize("kind", ["", "nonsense", None, 3, "trial_finishedx"])
def test_an_unknown_kind_is_refused(kind: object) -> None:
    refused({**plain_of(FACTS[0]), "kind": kind})


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_none_is_refused(number: float) -> None:
    trial = next(fact for fact in FACTS if isinstance(fact, TrialFinished))
    assert isinstance(trial.outcome, Measurement)
    for plain in (
        {**plain_of(trial), "outcome": {**plain_of(trial)["outcome"], "score": number}},
        {**plain_of(trial), "started_at": number},
        {**plain_of(Spent("n", 1, Usage(), 1.0)), "usage": {"input_tokens": 1, "output_tokens": 1, "dollars": number}},
    ):
        refused(plain)


def test_a_refusal_names_the_place_and_not_the_value() -> None:
    said = refused({**plain_of(Trouble("forge", "away", 1.0)), "where": ["secret"]})
    assert said == "not a fact: trouble.where: Input should be a valid string"


# --- what a writer refuses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fact",
    [
        Trouble("forge", "away", float("nan")),
        Trouble("forge", "away", float("inf")),
        Trouble("forge", "\ud800", 1.0),
        Trouble("forge", 3, 1.0),  # type: ignore[arg-type]  # what a careless caller may do
        Screened("e", "n", "b", "c", "t", True, float("nan"), None, "", "", 1.0),
        Spent("n", 2**70, Usage(), 1.0),
    ],
    ids=["nan", "infinite", "surrogate", "wrong-type", "nan-gain", "too-large"],
)
def test_what_no_reader_would_accept_is_not_written(fact: Fact) -> None:
    with pytest.raises(EncodeError, match=f"^{type(fact).__name__} cannot be written"):
        pack(fact)
    if not isinstance(fact, Spent):  # JSON has no largest number
        with pytest.raises(EncodeError, match=f"^{type(fact).__name__} cannot be written"):
            fact_to_json(fact)
