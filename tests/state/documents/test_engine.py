"""The engine's mirrors say what pycrdt says, for our steps and for others' updates."""

from __future__ import annotations

import random

import pytest
from pycrdt import Array, Text

from state.documents.engine import Engine, Touched, Updates
from state.documents.names import Kind, Name
from state.documents.splices import Splice
from state.documents.staging import Staging
from state.guards.values import encode_value

MAP, LIST, TEXT = Name(Kind.MAP), Name(Kind.ARRAY, ("l",)), Name(Kind.TEXT, ("t",))


def _staged(engine: Engine, rng: random.Random) -> Staging:
    staging = Staging(engine)
    for _ in range(rng.randrange(1, 5)):
        items, text = staging.items(LIST), staging.string(TEXT)
        match rng.randrange(5):
            case 0:
                staging.insert_items(LIST, rng.randrange(len(items) + 1), [encode_value(rng.randrange(9)), "x"])
            case 1 if items:
                staging.delete_range(LIST, rng.randrange(len(items)), 1)
            case 2:
                staging.insert_text(TEXT, rng.randrange(len(text) + 1), rng.choice(["é", "😀", "ab"]))
            case 3 if text:
                at = rng.randrange(len(text))
                staging.delete_range(TEXT, at, rng.randrange(len(text) - at + 1) or 1)
            case _:
                staging.set_entry(MAP, f"k{rng.randrange(4)}", encode_value(rng.choice([1, b"x", "s", None])))
    return staging


@pytest.mark.parametrize("seed", range(10))
def test_mirrors_follow(seed: int) -> None:
    """After any steps, and on a replica that gets the updates, mirrors and pycrdt agree, opened early or late."""
    rng = random.Random(seed)
    one, two, late = Engine(1), Engine(2), Engine(3)
    two.watch(LIST)
    two.watch(TEXT)
    for number in range(40):
        here, there = (one, two) if number % 2 else (two, one)
        updates, _ = here.commit(_staged(here, rng).steps)
        there.apply(updates)
        late.apply(updates)
    for engine in (one, two, late):
        assert engine.items(LIST) == one.items(LIST)
        assert engine.string(TEXT) == str(one._texts.get(TEXT.root, type=Text))
        held = one._values.get(LIST.root, type=Array).to_py() or []
        assert engine.items(LIST) == [bytes(item) if isinstance(item, bytearray) else item for item in held]
        assert engine.entries(MAP) == one.entries(MAP)
        assert engine.encoded() != Updates(b"", b"")


def test_what_was_touched_is_told() -> None:
    """Ours by the steps, others' by pycrdt's events, in the same words."""
    one, two = Engine(1), Engine(2)
    staging = Staging(one)
    staging.set_entry(MAP, "b", None)
    staging.set_entry(MAP, "a", None)
    staging.insert_items(LIST, 0, ["x", b"\x01\x01"])
    staging.insert_text(TEXT, 0, "é")
    for name in (MAP, LIST, TEXT):
        two.watch(name)
    updates, ours = one.commit(staging.steps)
    theirs = two.apply(updates)
    expected = [
        Touched(MAP, ("a", "b"), ()),
        Touched(LIST, (), (Splice(0, 0, ["x", b"\x01\x01"]),)),
        Touched(TEXT, (), (Splice(0, 0, "é"),)),
    ]
    assert ours == expected
    assert sorted(theirs, key=lambda touched: touched.name.root) == sorted(expected, key=lambda one: one.name.root)
    assert two.apply(updates) == []


def test_keys_by_ending_follow_others() -> None:
    """The index of a map's keys follows what others set and delete."""
    one, two = Engine(1), Engine(2)
    assert two.keys_ending(MAP, ":x") == []
    for key, deleted in (("1:x", False), ("2:x", False), ("1:x", True)):
        staging = Staging(one)
        if deleted:
            staging.delete_entry(MAP, key)
        else:
            staging.set_entry(MAP, key, True)
        two.apply(one.commit(staging.steps)[0])
        assert two.keys_ending(MAP, ":x") == sorted(key for key in one.entries(MAP))


def test_nothing_is_no_update() -> None:
    """No steps make no update, and an empty document encodes to none."""
    engine = Engine(1)
    assert engine.commit([]) == (Updates(b"", b""), [])
    assert engine.encoded() == Updates(b"", b"")
