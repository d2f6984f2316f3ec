"""Replicas with real stores and a network of function calls: saving, repair, limits, and peers that lie."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from couriers import FixedClock
from replicas import FAST, Node, World
from support import eventually

from state.clocks.hybrid import Timestamp
from state.clocks.vectors import Dot, VersionVector, Writer
from state.documents.document import Document
from state.documents.envelope import Envelope, decode_envelope, encode_envelope
from state.errors import StateError, StorageError, StorageFull
from state.journal import Journal
from state.replication import replica as replica_module
from state.replication.codec import Offer, Page, Same, encode_live
from state.replication.repair import RepairConfig
from state.replication.replica import PAGE_ENVELOPES, Replica
from state.store import DocumentStore
from transport.clock import SystemClock
from transport.errors import RemoteProtocolError
from transport.types import NodeId


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A fake network whose replicas are closed at the end."""
    made = World(tmp_path)
    yield made
    for node in list(made.nodes.values()):
        await made.remove(node)


def envelopes(count: int, writer: str = "x") -> list[bytes]:
    """What a writer that is no replica did."""
    document = Document("board", Writer(NodeId(writer), 1))
    for number in range(count):
        document[f"{writer}{number}"] = number
    return [encode_envelope(envelope) for envelope in document.outgoing()]


async def test_nothing_is_published_before_it_is_on_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that refuses: the writer is told, others see nothing; once it takes it, they do."""
    a, b = await world.add("a"), await world.add("b")
    real = Journal._write
    monkeypatch.setattr(Journal, "_write", lambda *_: StorageFull("no room"))
    monkeypatch.setattr(replica_module, "DISK_RETRY_S", 0.05)
    a.document["k"] = 1
    with pytest.raises(StorageFull):
        await a.replica.saved()
    assert a.document["k"] == 1
    await eventually(lambda: a.replica.counters["disk_failures"] > 2)
    assert "k" not in b.document
    monkeypatch.setattr(Journal, "_write", real)
    await a.replica.saved()
    await eventually(lambda: "k" in b.document)
    await a.replica.saved()  # nothing to wait for


async def test_what_cannot_be_saved_at_the_end_is_lost_loudly(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing does not hang, and later writes are refused."""
    a = await world.add("a")
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "_write", lambda *_: StorageError("broken"))
        a.document["k"] = 1
        await a.replica.close()
    with pytest.raises(StateError, match="closed"):
        a.document["k"] = 2
    a.replica.live_received(encode_live(envelopes(1)), NodeId("x"), 1)
    a.replica.peer_up(NodeId("x"))
    assert "x0" not in a.document


async def test_much_at_once_is_saved_in_its_order(world: World) -> None:
    """More than one transaction of the disk; local and remote changes alternate, and a restart replays them."""
    a, b = await world.add("a"), await world.add("b")
    for number in range(3_000):
        a.document[f"a{number}"] = number
        b.document[f"b{number}"] = number
        if number % 500 == 0:
            await asyncio.sleep(0)
    await eventually(lambda: len(a.document) == len(b.document) == 6_000)
    assert a.document.history() == b.document.history()
    digest = a.document.digest()
    await world.remove(a)
    a = await world.add("a", life=2)
    assert a.document.digest() == digest
    assert a.replica.statistics()["envelopes"] == 6_000
    assert a.document.held_count == 0


async def test_lost_updates_come_by_repair(world: World) -> None:
    """Half of everything is lost, offers and pages as well; in the end all have all."""
    chance = random.Random(7)
    nodes = [await world.add(name) for name in "abc"]
    world.passes = lambda _source, _target: chance.random() < 0.5
    for number in range(200):
        for node in nodes:
            node.document[f"{node.name}{number}"] = number
        await asyncio.sleep(0)
    await eventually(lambda: all(len(node.document) == 600 for node in nodes), timeout_s=20.0)
    assert len({node.document.digest() for node in nodes}) == 1


async def test_a_late_replica_gets_pages_until_it_has_all(world: World) -> None:
    """In the order of the log, so that nothing has to wait; settled is when the last one came."""
    a, b = await world.add("a"), await world.add("b")
    for number in range(PAGE_ENVELOPES):
        a.document[f"a{number}"] = number
        await a.replica.saved() if number % 64 == 0 else None
        b.document[f"b{number}"] = number
    await eventually(lambda: len(a.document) == len(b.document) == 2 * PAGE_ENVELOPES)
    await a.replica.saved()
    c = await world.add("c")
    async with asyncio.timeout(5.0):
        await c.replica.settled()
    assert c.document.digest() == a.document.digest()
    assert c.replica.statistics()["held"] == 0
    assert c.replica.statistics()["pages"] >= 2
    await c.replica.settled()


async def test_what_does_not_go_by_the_group_is_pulled(world: World) -> None:
    """The others are told to ask."""
    a, b = await world.add("a", config=RepairConfig()), await world.add("b", config=RepairConfig())
    world.refuses = True
    a.document["k"] = 1
    await eventually(lambda: "k" in b.document)


async def test_live_updates_are_of_their_origin(world: World) -> None:
    """Nobody publishes in another's name, or into another document, or what is no envelope."""
    a = await world.add("a")
    with pytest.raises(RemoteProtocolError, match="published an envelope of x/1"):
        a.replica.live_received(encode_live(envelopes(1)), NodeId("y"), 1)
    with pytest.raises(RemoteProtocolError, match="published an envelope of x/1"):
        a.replica.live_received(encode_live(envelopes(1)), NodeId("x"), 2)
    other = Document("other", Writer(NodeId("x"), 1))
    other["k"] = 1
    with pytest.raises(RemoteProtocolError, match="among those of"):
        a.replica.live_received(encode_live([encode_envelope(other.outgoing()[0])]), NodeId("x"), 1)
    with pytest.raises(RemoteProtocolError):
        a.replica.live_received(encode_live([b"nonsense"]), NodeId("x"), 1)
    assert a.replica.counters["forged"] == 2
    a.replica.live_received(encode_live(envelopes(1)), NodeId("x"), 1)
    await eventually(lambda: "x0" in a.document)


async def _pull(node: Node, *raws: bytes, more: bool = False) -> None:
    """Have a replica pull from a liar, who answers with these."""
    node.replica.peer_up(NodeId("liar"))
    document = node.document
    node.replica.heard(NodeId("liar"), _offer(document))
    await eventually(lambda: node.replica.is_using(NodeId("liar")))
    node.replica.heard(NodeId("liar"), Page("board", document.lineage, bytes(16), raws, more))
    await eventually(lambda: not node.replica.is_using(NodeId("liar")))


def _offer(document: Document) -> Offer:
    return Offer("board", document.lineage, b"\x01" * 16)


async def test_pages_of_nonsense_end_the_link(world: World) -> None:
    """What is no envelope of this document was never stored by anybody honest."""
    a = await world.add("a", config=RepairConfig())
    await _pull(a, b"nonsense")
    assert [peer for peer, _ in a.cuts] == ["liar"]
    assert a.replica.statistics()["penalties"] == 1


async def test_pages_of_bad_updates_have_a_consequence(world: World) -> None:
    """They are refused one by one, the good ones are taken, and the peer is left alone for a while."""
    a = await world.add("a", config=RepairConfig())
    good = envelopes(3)
    bad = decode_envelope(envelopes(1, "y")[0])
    crafted = encode_envelope(Envelope(bad.document, bad.lineage, bad.dot, bad.needs, bad.stamp, b"\x01\x01", b""))
    await _pull(a, good[0], crafted, good[1], good[2], good[2], more=True)
    assert len(a.document) == 3
    stats = a.replica.statistics()
    assert (stats["refused"], stats["duplicates"], stats["penalties"], stats["waiting"]) == (1, 1, 1, 0)
    a.replica.heard(NodeId("liar"), _offer(a.document))
    assert not a.replica.is_using(NodeId("liar"))


async def test_what_waited_behind_a_bad_update_is_forgotten(world: World) -> None:
    """Its bytes, too, so that the memory of them is as bounded as the hold-back."""
    a = await world.add("a", config=RepairConfig())
    raws = envelopes(3)
    second, third = map(decode_envelope, raws[1:])
    crafted = Envelope("board", second.lineage, second.dot, second.needs, second.stamp, third.values, b"")
    a.replica.live_received(encode_live([raws[2]]), NodeId("x"), 1)
    await eventually(lambda: a.document.held_count == 1)
    assert len(a.replica._raw) == 1
    await _pull(a, raws[0], encode_envelope(crafted))
    assert a.document.held_count == len(a.replica._raw) == 0
    a.replica.live_received(encode_live(raws), NodeId("x"), 1)
    await eventually(lambda: len(a.document) == 3)


async def test_our_own_numbers_in_others_hands_are_told(world: World) -> None:
    """A copied data directory: another process wrote as this one."""
    a = await world.add("a", config=RepairConfig())
    await _pull(a, envelopes(1, "a")[0])
    assert a.replica.counters["divergent"] == 1
    assert len(a.document) == 0


async def test_another_lineage_is_told_and_left_alone(world: World) -> None:
    """Two documents of one name are not blended."""
    a = await world.add("a", config=RepairConfig())
    a.replica.heard(NodeId("x"), Same("board", b"another!", bytes(16)))
    assert a.replica.counters["divergent"] == 1
    assert a.replica.peers == []


async def test_two_histories_of_one_version_are_told(world: World) -> None:
    """Two replicas that took different envelopes under one number see that they differ."""
    first, second = Document("board", Writer(NodeId("x"), 1)), Document("board", Writer(NodeId("x"), 1))
    first["k"], second["k"] = 1, 2
    a, b = await world.add("a"), await world.add("b")
    world.passes = lambda _source, _target: False
    for node, document in ((a, first), (b, second)):
        node.replica.live_received(encode_live([encode_envelope(document.outgoing()[0])]), NodeId("x"), 1)
    await eventually(lambda: len(a.document) == len(b.document) == 1)
    world.passes = lambda _source, _target: True
    await eventually(lambda: a.replica.counters["divergent"] + b.replica.counters["divergent"] > 0)
    assert (a.document["k"], b.document["k"]) == (1, 2)


async def test_envelopes_from_the_future_are_dropped_and_may_come_again(world: World) -> None:
    """A wrong clock elsewhere is counted; what is stored is read whatever our clock says."""
    a = await world.add("a", config=RepairConfig())
    honest = decode_envelope(envelopes(1)[0])
    ahead = Timestamp(honest.stamp.wall_ms + 3_600_000)
    future = Envelope("board", honest.lineage, honest.dot, honest.needs, ahead, honest.values, b"")
    a.replica.live_received(encode_live([encode_envelope(future)]), NodeId("x"), 1)
    await eventually(lambda: a.replica.counters["drifted"] == 1)
    assert len(a.document) == len(a.replica._raw) == 0
    a.replica.live_received(encode_live([encode_envelope(honest)]), NodeId("x"), 1)
    await eventually(lambda: len(a.document) == 1)
    await world.remove(a)

    node = Node(world, "a")
    node.store = await DocumentStore.open(world.folder / "a.db")
    document = Document("board", Writer(node.name, 2), clock=FixedClock())  # years behind
    log = await node.store.log("board", document.lineage)
    node.replica = Replica(document, log, node, clock=SystemClock(), rng=random.Random(1), config=FAST)
    await node.replica.load()
    world.nodes[node.name] = node
    assert document["x0"] == 0


async def test_more_than_can_wait_is_dropped_and_fetched_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Live updates beyond the inbox, and those for which hold-back has no room."""
    monkeypatch.setattr(replica_module, "INBOX_BYTES_MAX", 10_000)
    a = await world.add("a")
    raws = envelopes(5_000)
    for start in range(1, 5_000, 10):
        a.replica.live_received(encode_live(raws[start : start + 10]), NodeId("x"), 1)
        await asyncio.sleep(0)
    assert a.replica._inbox_bytes <= 10_000
    await eventually(lambda: a.replica.counters["overflow"] + a.replica.counters["inbox_dropped"] > 0)
    monkeypatch.setattr(replica_module, "INBOX_BYTES_MAX", 8 << 20)
    b = await world.add("b")
    for start in range(0, 5_000, 500):
        b.replica.live_received(encode_live(raws[start : start + 500]), NodeId("x"), 1)
    await eventually(lambda: len(a.document) == 5_000, timeout_s=10.0)
    await eventually(lambda: a.document.held_count == len(a.replica._raw) == 0)


async def test_stored_envelopes_that_do_not_hold_are_left_out(world: World) -> None:
    """Who tampers with checksums as well gets a refusal, not a crash; a record twice is one."""
    raws = envelopes(3)
    store = await DocumentStore.open(world.folder / "a.db")
    lineage = Document("board", Writer(NodeId("x"), 1)).lineage
    log = await store.log("board", lineage)
    told: list[object] = []
    # The third waits for the second, which comes twice and then the first; nonsense in between.
    order = [raws[2], raws[1], raws[1], b"nonsense", raws[0], raws[0]]
    log.submit(list(enumerate(order)), [], told.append)
    await eventually(lambda: told == [None])
    await store.close()
    a = await world.add("a")
    assert len(a.document) == 3
    assert a.replica.counters["refused"] == 1
    assert a.replica.statistics()["envelopes"] == 3
    assert not a.replica._raw
    assert not a.replica._stranded


async def test_a_full_document_refuses_more_writers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has stays as it is."""
    monkeypatch.setattr("state.documents.document.WRITERS_MAX", 1)
    a = await world.add("a", config=RepairConfig())
    a.replica.live_received(encode_live(envelopes(1)), NodeId("x"), 1)
    a.replica.live_received(encode_live(envelopes(1, "y")), NodeId("y"), 1)
    await eventually(lambda: a.replica.counters["refused"] == 1)
    assert len(a.document) == 1
    assert a.document.version == VersionVector({Writer(NodeId("x"), 1): 1})
    assert a.document.next_dot() == Dot(Writer(NodeId("a"), 1), 1)


async def test_who_cannot_read_its_disk_sends_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer asks somebody else in time."""
    a = await world.add("a", config=RepairConfig())
    a.document["k"] = 1
    await a.replica.saved()

    async def broken(*_: object) -> list[bytes]:
        raise StorageError("broken")

    monkeypatch.setattr(type(a.replica._log), "read", broken)
    b = await world.add("b", config=RepairConfig())
    await eventually(lambda: b.replica.is_using(a.name))
    await eventually(lambda: not a.replica.is_using(b.name))
    assert a.replica.counters["pages_sent"] == 0
    assert len(b.document) == 0
