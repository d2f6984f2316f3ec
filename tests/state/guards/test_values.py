"""Values come back exactly, and what could not is refused with its place."""

from __future__ import annotations

import enum
import math
from collections import OrderedDict, namedtuple
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycrdt import Doc, Map

from state.errors import UpdateRefused, ValueRefused
from state.guards import values
from state.guards.values import Value, check_key, check_leaf, decode_value, encode_value

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars: st.SearchStrategy[Value] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**8000), 2**8000),
    st.floats(allow_nan=False),
    texts,
    st.binary(max_size=40),
)
any_values: st.SearchStrategy[Value] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5), max_leaves=20
)


def _exactly(left: object, right: object) -> bool:
    """Equal, of the same types all the way down, in the same order, with the sign of zero."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_exactly, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return list(left) == list(right) and all(_exactly(left[key], right[key]) for key in left)
    if isinstance(left, float) and isinstance(right, float):
        return left == right and math.copysign(1, left) == math.copysign(1, right)
    return left == right


@given(any_values)
def test_values_come_back_exactly(value: Value) -> None:
    """Type, order and sign survive, also through a pycrdt document, and a peer's check accepts the leaf."""
    doc: Doc[Map[Any]] = Doc()
    held = doc.get("m", type=Map)
    held["v"] = leaf = encode_value(value)
    assert _exactly(decode_value(leaf), value)
    assert _exactly(decode_value(held["v"]), value)
    if isinstance(leaf, bytes):
        check_leaf(leaf)


@given(any_values, any_values)
def test_equal_leaves_are_equal_values(left: Value, right: Value) -> None:
    """Two values have the same leaf exactly when they are the same value."""
    one, other = encode_value(left), encode_value(right)
    assert _exactly(one, other) == _exactly(left, right)


@given(st.binary(max_size=48))
def test_any_bytes_are_a_leaf_or_refused(data: bytes) -> None:
    """Whatever a peer sends for a leaf, it is refused or reads as a value that encodes to it."""
    leaf = b"\x01" + data
    try:
        check_leaf(leaf)
    except UpdateRefused:
        return
    assert encode_value(decode_value(leaf)) == leaf


class _Level(enum.IntEnum):
    LOW = 1


_Point = namedtuple("_Point", "x")
_cycle: list[Any] = [1]
_cycle.append({"again": _cycle})
_deep: list[Any] = []
for _ in range(values.DEPTH_MAX):
    _deep = [_deep]
_wide = [[0] * 4096] * 5


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        ((1, 2), "", "a tuple \\(a list would do\\)"),
        ({"a": {1}}, "['a']", "a set \\(a sorted list"),
        ([0, {"k": object()}], "[1]['k']", "an object cannot be held"),
        (bytearray(b"x"), "", "a bytearray cannot"),
        (_Level.LOW, "", "_Level"),
        (_Point(1), "", "_Point"),
        (OrderedDict(a=1), "", "OrderedDict"),
        (1j, "", "complex"),
        ({"a": [{2: 3}]}, "['a'][0][2]", "key 2 is an int"),
        (math.nan, "", "unequal to itself"),
        ([1.0, math.nan], "[1]", "unequal to itself"),
        ("\ud800", "", "lone surrogate"),
        ({"\udfff": 1}, "['\\udfff']", "lone surrogate"),
        ({"k" * 1025: 1}, None, "text has 1025 bytes"),
        ("é" * 131_073, "", "text has 262146 bytes"),
        (["x" * 262_145], "[0]", "text has 262145 bytes"),
        (b"x" * 262_144, "", "takes 262150 bytes"),
        (_cycle, "[1]['again']", "contains itself"),
        (_deep, None, "nests deeper than 32"),
        ([0] * 4097, "", "has 4097 items"),
        (_wide, None, "more than 16384 values"),
        (1 << 8191, "", "integer has 8192 bits"),
        ([1 << 9000], "", "integer has 9001 bits"),
    ],
)
def test_what_cannot_be_held_is_refused(value: Any, path: str | None, reason: str) -> None:
    """The error says what is wrong and where in the value it stands."""
    with pytest.raises(ValueRefused, match=reason) as caught:
        encode_value(value)
    if path is not None:
        assert caught.value.path == path


def test_limits_can_be_reached() -> None:
    """What is exactly at a limit is held."""
    deep: list[Any] = []
    for _ in range(values.DEPTH_MAX - 1):
        deep = [deep]
    for value in (deep, [0] * 4096, "x" * 262_144, b"x" * (262_144 - 6), (1 << 8191) - 1, 1 - (1 << 8191)):
        assert decode_value(encode_value(value)) == value


def test_one_list_may_stand_in_two_places() -> None:
    """Sharing is no cycle."""
    shared = [1]
    assert decode_value(encode_value([shared, shared])) == [[1], [1]]


def _packed(value: object) -> bytes:
    packed: bytes = msgpack.packb(value)
    return b"\x01" + packed


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no known encoding"),
        (b"\x02\x01", "no known encoding"),
        (b"\x01" + bytes(values.LEAF_BYTES_MAX), "no known encoding"),
        (b"\x01", "not MessagePack"),
        (b"\x01\x01\x01", "not MessagePack"),
        (b"\x01\xcc\x01", "not encoded as it must be"),
        (_packed("text"), "not encoded as it must be"),
        (_packed(1.5), "not encoded as it must be"),
        (_packed(None), "not encoded as it must be"),
        (_packed({1: 2}), "key 1"),
        (b"\x01\x81\x90\x01", "not MessagePack"),
        (b"\x01\x82\xa1a\x01\xa1a\x02", "not encoded as it must be"),
        (_packed([math.nan]), "value\\[0\\]: nan"),
        (b"\x01\x91\xa1\xff", "not MessagePack"),
        (b"\x01\xc7\x01\x01\x05", "not encoded as it must be"),
        (b"\x01\xd4\x02\x05", "not MessagePack"),
        (_packed(msgpack.ExtType(1, bytes(1025))), "not MessagePack"),
        (_packed(msgpack.Timestamp(1)), "cannot be held"),
        (b"\x01" + b"\x91" * 1000 + b"\xc0", "nests deeper"),
        (b"\x01" + b"\x91" * 3000, "not MessagePack"),
        (b"\x01\xdd\xff\xff\xff\xff", "not MessagePack"),
    ],
)
def test_foreign_leaves_are_refused(data: bytes, reason: str) -> None:
    """What this codec would not have written is refused, whether or not it could be read."""
    with pytest.raises(UpdateRefused, match=reason):
        check_leaf(data)


def test_keys_are_short_text() -> None:
    """A key of a map is a string within its limit; the empty one and NUL are fine."""
    for key in ("", "\0", "k" * 1024, "é"):
        check_key(key)
    with pytest.raises(ValueRefused, match="keys are str"):
        check_key(1)  # type: ignore[arg-type]
