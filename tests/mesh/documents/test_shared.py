"""A document in its user's hands, on one node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from networks import Networks, networks, runtime
from support import eventually

from mesh import Change, NetworkClosed, SharedDocument, StateError, TransactionConflict, ValueRefused
from transport.types import NodeId


@pytest.fixture
async def join(tmp_path: Path) -> AsyncIterator[Networks]:
    """Starts nodes."""
    async with networks(tmp_path) as started:
        yield started


async def test_everything_a_document_holds_is_reached(join: Networks) -> None:
    """The map's own protocol, the containers, and what comes back is exactly what went in."""
    net = await join("a")
    doc = await net.document("board")
    assert repr(doc) == "<SharedDocument 'board'>"
    doc["a"] = [1, 1.0, True, None, b"x", "é", {"k": 2**70}]
    doc["b"] = 1
    del doc["b"]
    assert doc["a"] == [1, 1.0, True, None, b"x", "é", {"k": 2**70}]
    assert ("a" in doc, "b" in doc, list(doc), len(doc)) == (True, False, ["a"], 1)
    assert (doc.get("b"), doc.get("b", 7), doc.get("a")) == (None, 7, doc["a"])
    assert doc.items() == [("a", doc["a"])]
    assert doc.to_dict() == {"a": doc["a"]}
    with doc.transaction():
        doc.map("m")["k"] = "v"
        doc.array("l").append(1, 2)
        doc.text("t").insert(0, "é😀z")
        doc.counter("c").decrement(2)
        doc.set("s").add("x")
        doc.register("r").set("w")
    assert (doc.map("m")["k"], doc.array("l").to_list(), str(doc.text("t"))) == ("v", [1, 2], "é😀z")
    assert (doc.counter("c").value, list(doc.set("s")), doc.register("r").value) == (-2, ["x"], "w")
    assert doc.version == {f"a/{net.node.incarnation >> 16:x}": 4}
    assert doc.replicas == ()
    await doc.synced(timeout=0.1)  # nobody else has it
    await doc.saved()
    assert doc.stats()["unsaved"] == 0
    assert doc.stats()["envelopes"] == 4
    assert len(doc.digest()) == 32
    assert (await net.document("board")).to_dict() == doc.to_dict()
    with pytest.raises(ValueRefused):
        doc["x"] = object()  # type: ignore[assignment]


async def test_changes_are_told(join: Networks) -> None:
    """To callbacks and iterators, until they end."""
    net = await join("a")
    doc = await net.document("board")
    seen: list[Change] = []
    stop = doc.observe(seen.append)
    changes = doc.changes()
    doc["k"] = 1
    change = await anext(changes)
    assert isinstance(change, Change)
    assert (change.keys, change.local, seen) == (("k",), True, [change])
    stop()
    await changes.aclose()
    doc["k"] = 2
    assert len(seen) == 1


async def test_who_left_writes_no_more(join: Networks) -> None:
    """Reading goes on; what was written before was saved."""
    net = await join("a")
    doc = await net.document("board")
    doc["k"] = 1
    await net.leave_network()
    assert doc["k"] == 1
    with pytest.raises(StateError, match="closed"):
        doc["k"] = 2
    with pytest.raises(NetworkClosed):
        await net.document("board")
    net = await join("a")
    assert (await net.document("board")).to_dict() == {"k": 1}


async def test_a_transaction_that_awaits_meets_others(join: Networks) -> None:
    """Somebody else's change in between: nothing of it is done."""
    a, b = await join.several("a", "b")
    here, there = await a.document("board"), await b.document("board")
    await eventually(lambda: here.replicas and there.replicas)

    async def slow() -> None:
        with here.transaction():
            here["mine"] = 1
            there["theirs"] = 1
            await eventually(lambda: "theirs" in here)

    with pytest.raises(TransactionConflict):
        await slow()
    assert here.to_dict() == {"theirs": 1}


async def test_who_waits_for_a_replica_that_leaves_is_told(join: Networks) -> None:
    """There is nothing to wait for any more."""
    a, b = await join.several("a", "b")
    await b.document("board")
    await eventually(lambda: runtime(a).view.subscribers("\0document:board") == ["b"])
    doc = await a.document("board")
    doc._replica.peer_down(NodeId("b"))
    waiting = asyncio.ensure_future(doc.synced(timeout=20.0))
    await asyncio.sleep(0)
    await b.leave_network()
    async with asyncio.timeout(5.0):
        await waiting


async def test_replicas_that_cannot_be_reached_time_out(join: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that is known and does not answer."""
    net = await join("a")
    doc = await net.document("board")
    monkeypatch.setattr(SharedDocument, "replicas", property(lambda _: ("b",)))
    doc._others = lambda: ("b",)
    with pytest.raises(TimeoutError):
        await doc.synced(timeout=0.05)
    waiting = asyncio.ensure_future(doc.synced(timeout=5.0))
    await asyncio.sleep(0)
    await net.leave_network()
    with pytest.raises(asyncio.CancelledError):
        await waiting
