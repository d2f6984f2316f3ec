"""A staged transaction reads as it will be, and its limits keep its update within the validator's."""

from __future__ import annotations

import pytest

from state.documents.engine import Engine
from state.documents.names import Kind, Name
from state.documents.staging import OPERATIONS_MAX, UPDATE_BYTES_MAX, Staging
from state.documents.steps import DeleteEntry, DeleteRange, InsertItems, InsertText, SetEntry
from state.errors import TransactionTooLarge
from state.guards.updates import TEXT_LIMITS, VALUE_LIMITS, read_update
from state.guards.values import encode_value

MAP, LIST, TEXT = Name(Kind.MAP), Name(Kind.ARRAY, ("l",)), Name(Kind.TEXT, ("t",))
CLIENT = 2**53 - 1


def _engine() -> Engine:
    engine = Engine(CLIENT)
    staging = Staging(engine)
    staging.set_entry(MAP, "a", 1.0)
    staging.set_entry(MAP, "b", "x")
    staging.insert_items(LIST, 0, [1.0, None])
    staging.insert_text(TEXT, 0, "é😀z")
    engine.commit(staging.steps)
    return engine


def test_maps_read_as_staged() -> None:
    """Set, deleted and untouched entries, one by one and together; the content is as before."""
    engine = _engine()
    staging = Staging(engine)
    assert (staging.length(MAP), staging.entries(MAP)) == (2, {"a": 1.0, "b": "x"})
    staging.set_entry(MAP, "c", b"\x01\x05")
    staging.delete_entry(MAP, "a")
    assert (staging.has(MAP, "a"), staging.has(MAP, "b"), staging.has(MAP, "c")) == (False, True, True)
    assert (staging.entry(MAP, "b"), staging.entry(MAP, "c")) == ("x", b"\x01\x05")
    for missing in ("a", "d"):
        with pytest.raises(KeyError):
            staging.entry(MAP, missing)
        with pytest.raises(KeyError):
            staging.delete_entry(MAP, missing)
    assert (staging.length(MAP), staging.entries(MAP)) == (2, {"b": "x", "c": b"\x01\x05"})
    staging.set_entry(MAP, "a", None)
    staging.delete_entry(MAP, "c")
    assert staging.entries(MAP) == {"a": None, "b": "x"}
    assert engine.entries(MAP) == {"a": 1.0, "b": "x"}
    assert staging.steps == [
        SetEntry(MAP, "c", b"\x01\x05"),
        DeleteEntry(MAP, "a"),
        SetEntry(MAP, "a", None),
        DeleteEntry(MAP, "c"),
    ]


def test_keys_are_found_by_their_endings() -> None:
    """Held, staged and deleted keys, from the first colon on."""
    engine = _engine()
    for staged in (("1:x", "2:x", "1:y", "none"), ("3:x:z", "4:x")):
        staging = Staging(engine)
        for key in staged:
            staging.set_entry(MAP, key, True)
        engine.commit(staging.steps)
        assert engine.keys_ending(MAP, ":y") == ["1:y"]
    staging = Staging(engine)
    assert staging.keys_ending(MAP, ":x") == ["1:x", "2:x", "4:x"]
    staging.delete_entry(MAP, "2:x")
    staging.set_entry(MAP, "0:x", True)
    staging.delete_entry(MAP, "1:y")
    assert (staging.keys_ending(MAP, ":x"), staging.keys_ending(MAP, ":y")) == (["0:x", "1:x", "4:x"], [])
    engine.commit(staging.steps)
    assert (engine.keys_ending(MAP, ":x"), engine.keys_ending(MAP, ":y")) == (["0:x", "1:x", "4:x"], [])
    assert engine.keys_ending(MAP, ":x:z") == ["3:x:z"]


def test_sequences_read_as_staged() -> None:
    """Arrays and texts with what was put in and taken out; clocks count items and UTF-16 units."""
    engine = _engine()
    staging = Staging(engine)
    staging.insert_items(LIST, 1, [True, "x"])
    staging.insert_items(LIST, 4, [b"\x01\x01"])
    staging.delete_range(LIST, 0, 2)
    staging.insert_text(TEXT, 1, "ü😀")
    staging.insert_text(TEXT, 0, "ab")
    staging.delete_range(TEXT, 1, 2)
    assert staging.items(LIST) == ["x", None, b"\x01\x01"]
    assert staging.string(TEXT) == "aü😀😀z"
    assert (engine.items(LIST), engine.string(TEXT)) == ([1.0, None], "é😀z")
    assert staging.clocks == (3, 5)
    assert staging.steps[2:4] == [DeleteRange(LIST, 0, 2), InsertText(TEXT, 1, "ü😀")]
    assert staging.steps[0] == InsertItems(LIST, 1, (True, "x"))
    engine.commit(staging.steps)
    assert (engine.items(LIST), engine.string(TEXT)) == (["x", None, b"\x01\x01"], "aü😀😀z")


def test_operations_are_bounded() -> None:
    """One more than allowed is refused and not staged."""
    staging = Staging(_engine())
    staging.insert_items(LIST, 0, [None] * OPERATIONS_MAX)
    with pytest.raises(TransactionTooLarge, match="4097"):
        staging.set_entry(MAP, "k", None)
    assert len(staging.steps) == 1


def test_bytes_are_bounded() -> None:
    """Large leaves and long deletions are counted before they are done."""
    staging = Staging(_engine())
    with pytest.raises(TransactionTooLarge):
        staging.insert_text(TEXT, 0, "x" * UPDATE_BYTES_MAX)
    with pytest.raises(TransactionTooLarge):
        staging.insert_items(LIST, 0, [b"x" * 310_000, "x" * 310_000, "é" * 155_000])
    assert staging.steps == []


def test_the_largest_transactions_pass_the_validator() -> None:
    """As many entries with as long keys as fit, and deletions in a text whose characters were written apart."""
    engine = _engine()
    staging = Staging(engine)
    with pytest.raises(TransactionTooLarge):
        for number in range(OPERATIONS_MAX + 1):
            staging.set_entry(MAP, f"{number}" + "k" * 300, encode_value(bytes(500)))
    values, _ = engine.commit(staging.steps)[0]
    read_update(values, CLIENT, VALUE_LIMITS)
    for number in range(1000):
        single = Staging(engine)
        single.insert_text(TEXT, number // 2, "x")
        engine.commit(single.steps)
    staging = Staging(engine)
    for number in range(300):
        staging.delete_range(TEXT, number, 1)
    _, texts = engine.commit(staging.steps)[0]
    read_update(texts, CLIENT, TEXT_LIMITS)
    assert len(texts) <= 300 * 13 + 32
