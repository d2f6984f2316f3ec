"""The validator reads what pycrdt writes, and refuses all that could hurt it."""

from __future__ import annotations

import struct
from typing import Any

import pytest
import yjs_bytes as yjs
from hypothesis import given
from hypothesis import strategies as st
from pycrdt import Array, Doc, Map, Text, XmlElement, XmlFragment, XmlText
from yjs_bytes import CLIENT

from state.errors import UpdateRefused
from state.guards.updates import (
    CLIENTS_MAX,
    CLOCK_MAX,
    TEXT_LIMITS,
    VALUE_LIMITS,
    Content,
    Limits,
    Shape,
    check_fits,
    read_state_vector,
    read_update,
)
from state.guards.values import encode_value

FOREIGN = Limits(contents=frozenset(Content), foreign_values=True)


def _recorded(client: int) -> tuple[Doc[Any], list[bytes]]:
    doc: Doc[Any] = Doc(client_id=client)
    updates: list[bytes] = []
    doc.observe(lambda event: updates.append(event.update))
    return doc, updates


def test_updates_of_values_are_read() -> None:
    """Each update of maps and arrays with our values passes, and continues where the one before ended."""
    client = 2**53 - 1
    doc, updates = _recorded(client)
    entries, items = doc.get("m:", type=Map), doc.get("a:x", type=Array)
    for number in range(60):
        value: Any = [number, float(number), "é😀", b"\0", None, True, {"a": [1]}, -(2**70), 1e300][number % 9]
        with doc.transaction():
            entries[f"k{number % 7}"] = encode_value(value)
            items.insert(number // 2, encode_value(value))
        if number % 5 == 0:
            del items[0:1], entries[f"k{number % 7}"]
    _check_run(doc, updates, client, VALUE_LIMITS)


def test_updates_of_texts_are_read() -> None:
    """The same for texts, whose clocks count UTF-16 units."""
    doc, updates = _recorded(CLIENT)
    text = doc.get("t:x", type=Text)
    for number in range(30):
        text.insert(0, "é😀z" if number % 2 else "plain")
        if number % 5 == 0:
            del text[0:2]
    _check_run(doc, updates, CLIENT, TEXT_LIMITS)


def _check_run(doc: Doc[Any], updates: list[bytes], client: int, limits: Limits) -> None:
    clocks: dict[int, int] = {}
    for update in updates:
        shape = read_update(update, client, limits)
        check_fits(shape, clocks)
        clocks |= {writer: end for writer, (_, end) in shape.spans.items()}
    assert clocks == read_state_vector(doc.get_state())
    whole = read_update(doc.get_update(), None, limits)
    assert whole.spans == {client: (0, clocks[client])}
    check_fits(whole, {})


def test_updates_of_several_writers_are_read() -> None:
    """Blocks refer to other writers' blocks, and the shape says how far those must be known."""
    ours, first = _recorded(1)
    theirs, second = _recorded(2)
    ours.get("t:", type=Text).insert(0, "hello")
    theirs.apply_update(first[0])
    theirs.get("t:", type=Text).insert(2, "XX")
    del theirs.get("t:", type=Text)[0:1]
    assert read_update(second[1], 2, TEXT_LIMITS) == Shape({2: (0, 2)}, {1: 3})
    deletion = read_update(second[2], 2, TEXT_LIMITS)
    assert deletion == Shape({}, {1: 1})
    check_fits(deletion, {1: 1})
    with pytest.raises(UpdateRefused, match="refers to clock 0 of client 1, known are 0"):
        check_fits(deletion, {})
    with pytest.raises(UpdateRefused, match="has blocks of client 2"):
        read_update(second[1], 1, TEXT_LIMITS)
    both = read_update(theirs.get_update(), None, TEXT_LIMITS)
    assert both.spans == {1: (0, 5), 2: (0, 2)}
    check_fits(both, {})


def test_texts_and_values_do_not_mix() -> None:
    """A text's block among values, or a value among texts, is refused: reading it would never end."""
    block, value = yjs.item(4, yjs.sized(b"x"), key=None), yjs.entry(yjs.NULL)
    read_update(yjs.update([block]), CLIENT, TEXT_LIMITS)
    read_update(yjs.update([value]), CLIENT, VALUE_LIMITS)
    for data, limits in ((block, VALUE_LIMITS), (value, TEXT_LIMITS)):
        with pytest.raises(UpdateRefused, match="may not stand here"):
            read_update(yjs.update([data]), CLIENT, limits)


def test_foreign_updates_are_read_where_they_are_wanted() -> None:
    """Formats, embeds, XML, nested types, subdocuments and plain values pass when the limits say so."""
    doc, updates = _recorded(CLIENT)
    text, entries = doc.get("t", type=Text), doc.get("m", type=Map)
    fragment = doc.get("x", type=XmlFragment)
    text.insert(0, "héllo")
    text.format(0, 3, {"bold": True})
    text.insert_embed(1, {"img": [1, {"a": 2}]})
    fragment.children.append(XmlElement("p", {"a": "1"}, [XmlText("hi")]))
    entries["any"] = [1, -70_000, 1.5, 0.1, None, True, False, b"x", {"a": {"b": []}}, 2**60]
    entries["map"] = Map({"in": Array(["a"])})
    entries["doc"] = Doc()
    for update in updates:
        read_update(update, CLIENT, FOREIGN)
    with pytest.raises(UpdateRefused, match="content 6"):
        read_update(updates[1], CLIENT)
    assert read_update(doc.get_update(), None, FOREIGN).spans[CLIENT][0] == 0


def test_old_and_rare_contents_are_read_where_they_are_wanted() -> None:
    """JSON and binary blocks, which only old clients write, undefined values and skipped clocks."""
    blocks = [
        yjs.item(2, yjs.varint(2) + yjs.sized(b'{"a": [1]}') + yjs.sized(b"undefined"), key=None),
        yjs.item(3, yjs.sized(b"\0\1"), key=None),
        yjs.entry(b"\x7f"),
        yjs.entry(b"\x7a" + bytes(8)),
        yjs.entry(b"\x7d" + b"\xff" * 9 + b"\x01"),
        b"\x0a\x05",
    ]
    assert read_update(yjs.update(blocks), CLIENT, FOREIGN).spans == {CLIENT: (0, 11)}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (yjs.update([yjs.entry(yjs.nested(65))]), "value nests deeper than 64"),
        (yjs.update([yjs.entry((yjs.OBJECT + b"\x01\x00") * 65 + yjs.NULL)]), "value nests deeper"),
        (yjs.update([yjs.item(5, yjs.sized(b"[" * 65))]), "JSON nests deeper"),
        (yjs.update([yjs.entry(b"\x7d" + b"\xff" * 10 + b"\x01")]), "too many bytes"),
        (yjs.update([yjs.entry(b"\x05")]), "unknown type 5"),
        (yjs.update([yjs.item(7, yjs.varint(10))]), "shared type of kind 10"),
        (yjs.update([b"\x4a\x05"]), "has flags"),
        (yjs.update([yjs.entry(b"\x7b\x00")]), "cut short"),
    ],
)
def test_foreign_updates_have_limits_too(data: bytes, reason: str) -> None:
    """Where foreign contents are wanted, depth, numbers and kinds are still checked."""
    with pytest.raises(UpdateRefused, match=reason):
        read_update(data, CLIENT, FOREIGN)


@pytest.mark.parametrize("name", list(yjs.crashers()))
def test_known_crashers_are_refused(name: str) -> None:
    """Each input that is known to hurt is refused by its bytes, or because it does not fit what is known."""
    for limits in (VALUE_LIMITS, TEXT_LIMITS):
        with pytest.raises(UpdateRefused):
            check_fits(read_update(yjs.crashers()[name], CLIENT, limits), {})


@pytest.mark.parametrize("name", list(yjs.vector_crashers()))
def test_known_vector_crashers_are_refused(name: str) -> None:
    """The same for state vectors."""
    with pytest.raises(UpdateRefused):
        read_state_vector(yjs.vector_crashers()[name])


@pytest.mark.parametrize(
    ("blocks", "reason"),
    [
        ([yjs.item(6, b"")], "content 6, which may not stand here"),
        ([yjs.item(12, b"")], "content 12"),
        ([b"\x80\x01"], "has flags"),
        ([b"\x00" + yjs.varint(1 << 20), b"\x00\x01"], "clock 1048577 is above"),
        ([yjs.entry(yjs.NULL, key="é".encode() * 513)], "name has 1026 bytes"),
        ([yjs.entry(b"\x7c" + struct.pack(">f", -float("nan")))], "value is nan"),
        ([b"\x88" + yjs.varint(2**53) + b"\x00\x01\x7e"], "number 9007199254740992 is above"),
        ([b"\x88\x63" + yjs.varint(CLOCK_MAX) + b"\x01\x7e"], "number 2147483647 is above"),
    ],
)
def test_refusals_name_their_cause(blocks: list[bytes], reason: str) -> None:
    """What is wrong with a block is said."""
    with pytest.raises(UpdateRefused, match=reason):
        read_update(yjs.update(blocks), CLIENT)


def test_edges_are_accepted() -> None:
    """The last usable clock, in a whole document at once, names at their limit, both infinities."""
    assert read_update(yjs.update([b"\x00" + yjs.varint(CLOCK_MAX)]), None).spans == {CLIENT: (0, CLOCK_MAX)}
    last = yjs.update([b"\x00" + yjs.varint(10)], clock=CLOCK_MAX - 10)
    assert read_update(last, CLIENT).spans == {CLIENT: (CLOCK_MAX - 10, CLOCK_MAX)}
    infinities = [struct.pack(">Bf", 0x7C, float("inf")), struct.pack(">Bd", 0x7B, -float("inf"))]
    values = [*infinities, b"\x79", b"\x78", yjs.TEXT + yjs.sized("é".encode())]
    blocks = [yjs.entry(value, key="é".encode() * 512) for value in values]
    assert read_update(yjs.update(blocks), CLIENT) == Shape({CLIENT: (0, 5)}, {}, ("m:",))


def test_sizes_are_capped() -> None:
    """Updates above the limit are not even looked at; counts are compared with the bytes that are left."""
    with pytest.raises(UpdateRefused, match="of 983041 bytes exceeds 983040"):
        read_update(bytes(VALUE_LIMITS.size_bytes_max + 1), CLIENT)
    crowd = yjs.varint(CLIENTS_MAX + 1) + bytes(3 * CLIENTS_MAX + 3)
    with pytest.raises(UpdateRefused, match="65537 entries"):
        read_update(crowd, None)


def test_holes_and_overlaps_do_not_fit() -> None:
    """An update must start exactly at its writer's clock."""
    shape = Shape({1: (5, 6)}, {})
    check_fits(shape, {1: 5})
    for known in ({}, {1: 4}, {1: 6}):
        with pytest.raises(UpdateRefused, match="starts at clock 5"):
            check_fits(shape, known)


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """No bytes make the validator do anything but read or refuse."""
    for limits in (VALUE_LIMITS, TEXT_LIMITS, FOREIGN):
        try:
            shape = read_update(data, None, limits)
        except UpdateRefused:
            continue
        assert all(0 <= start < end <= CLOCK_MAX for start, end in shape.spans.values())
    try:
        assert all(clock <= CLOCK_MAX for clock in read_state_vector(data).values())
    except UpdateRefused:
        pass
