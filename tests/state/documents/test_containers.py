"""What users hold: containers that behave like Python's, and stay themselves whatever a peer writes."""

from __future__ import annotations

from typing import Any

import pytest

from state.clocks.vectors import Writer
from state.documents.document import Document
from state.documents.names import Name
from state.errors import ValueRefused
from state.guards.values import encode_value
from transport.types import NodeId

A = Writer(NodeId("a"), 1)


@pytest.fixture
def doc() -> Document:
    """An empty document."""
    return Document("board", A)


def test_maps(doc: Document) -> None:
    """Entries by key, in the order of keys."""
    doc["b"], doc["a"] = 2, None
    assert (list(doc), len(doc), "a" in doc, 1 in doc) == (["a", "b"], 2, True, False)
    assert (doc.root.get("a", 5), doc.root.get("x", 5), doc.root.get("x")) == (None, 5, None)
    assert doc.root.items() == [("a", None), ("b", 2)]
    assert repr(doc.root) == "<map ''>"
    del doc["a"]
    with pytest.raises(KeyError):
        del doc["a"]
    with pytest.raises(KeyError):
        doc["a"]
    with pytest.raises(ValueRefused, match="keys are str"):
        doc[1] = 1  # type: ignore[index]


def test_arrays(doc: Document) -> None:
    """Insertion, negative and too large indices as with lists; deletion only of what is there."""
    items = doc.array("list")
    items.insert(5, 1, 2)
    items.insert(-1, 0)
    items.append()
    assert (items.to_list(), list(items), len(items), items[0], items[-1]) == ([1, 0, 2], [1, 0, 2], 3, 1, 2)
    items.delete(-1)
    items.delete(0, 0)
    assert items.to_list() == [1, 0]
    for at, size in ((2, 1), (0, 3), (-3, 1), (0, -1)):
        with pytest.raises(IndexError):
            items.delete(at, size)
    with pytest.raises(IndexError):
        items[2]
    with pytest.raises(ValueRefused) as caught:
        items.append(1, {"x": {1}})  # type: ignore[dict-item]
    assert caught.value.path == "[1]['x']"


def test_texts(doc: Document) -> None:
    """Characters are code points, an emoji is one of them."""
    text = doc.text("t")
    text.append("z")
    text.insert(0, "é😀")
    text.insert(0, "")
    assert (str(text), len(text), text[1], text[-2:]) == ("é😀z", 3, "😀", "😀z")
    text.delete(1)
    text.delete(0, 0)
    assert str(text) == "éz"
    with pytest.raises(IndexError):
        text.delete(2)
    for bad in (1, "\ud800", "x" * 300_000):
        with pytest.raises(ValueRefused):
            text.append(bad)  # type: ignore[arg-type]
    assert str(text) == "éz"


def test_counters(doc: Document) -> None:
    """Any integer, up and down; no other numbers."""
    counter = doc.counter("c")
    counter.increment(2**70)
    counter.decrement()
    counter.increment(0)
    assert counter.value == 2**70 - 1
    for bad in (1.0, True, "1"):
        with pytest.raises(ValueRefused, match="takes int"):
            counter.increment(bad)  # type: ignore[arg-type]


def test_sets(doc: Document) -> None:
    """Adding twice is once, discarding what is not there is nothing, elements have a length."""
    tags = doc.set("s")
    for element in ("a:b", "a:b", 1, "s", ""):
        tags.add(element)
    tags.discard("x")
    assert (len(tags), "a:b" in tags, 1 in tags, 1.0 in tags) == (4, True, True, False)
    with doc.transaction():
        tags.add("y")
        tags.add("y")
        tags.discard("a:b")
        assert ("y" in tags, "a:b" in tags) == (True, False)
    assert [element for element in tags if isinstance(element, str)] == ["", "s", "y"]
    with pytest.raises(ValueRefused, match="too long"):
        tags.add("x" * 1020)


def test_registers(doc: Document) -> None:
    """Writes replace each other, also within one transaction."""
    register = doc.register("r")
    register.set({"a": 1})
    with doc.transaction():
        register.set(2)
        register.set(3)
    assert (register.value, register.conflict, len(register.values)) == (3, [], 1)
    assert register.context[A] == 3
    with pytest.raises(ValueRefused):
        register.set({1})  # type: ignore[arg-type]


def _plant(doc: Document, name: Name, key: str, value: Any) -> None:
    doc.stage(lambda staging: staging.set_entry(name, key, encode_value(value)))


@pytest.mark.parametrize(
    ("kind", "entries"),
    [
        ("counter", {"a/1": [1], "b/1": ["x", 1], "c/1": [-1, 0], "d/1": 7}),
        ("set", {"a/1.1.0:x": True, "a/1.1.0:b!!!": True, "nocolon": True, "a/1.2.0:bAQ==": True}),
        (
            "register",
            {
                "a/1": 5,
                "b/1": [1, [], 5],
                "c/zz": [1, [], 5, "v"],
                "d/1": [0, [], 5, "v"],
                "e/01": [1, [], 5, "v"],
                "f/1": [1, "no", 5, "v"],
                "g/1": [1, [], -1, "v"],
                "h/1": [1.5, [], 5, "v"],
                "i/1": [2**53, [], 5, "v"],
                "j/1": [1, [["j", 1, 1]], 5, "v"],
            },
        ),
    ],
)
def test_what_a_peer_should_not_have_written_counts_as_absent(
    doc: Document, kind: str, entries: dict[str, Any]
) -> None:
    """Malformed entries of counters, sets and registers are passed over, and good ones beside them are read."""
    container = getattr(doc, kind)("x")
    for key, value in entries.items():
        _plant(doc, container.name, key, value)
    if kind == "counter":
        container.increment(2)
        assert container.value == 2
    elif kind == "set":
        container.add("good")
        assert list(container) == ["good"]
    else:
        assert container.values == []
        container.set("good")
        assert container.value == "good"
