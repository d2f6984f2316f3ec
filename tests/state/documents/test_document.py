"""A document does what its users asked, wholly or not at all, and takes from others only what it may."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yjs_bytes as yjs

from state.clocks.hybrid import Timestamp
from state.clocks.vectors import Dot, Span, VersionVector, Writer
from state.documents.document import Document, Outcome
from state.documents.envelope import Envelope, client_of
from state.documents.events import Change
from state.documents.names import Kind
from state.documents.splices import Splice
from state.errors import (
    ClockDrift,
    DivergentHistory,
    StateError,
    TooManyWriters,
    TransactionConflict,
    TransactionTooLarge,
    UpdateRefused,
    ValueRefused,
)
from state.guards.holdback import HoldBackLimits
from state.guards.updates import read_state_vector
from transport.types import NodeId

A, B, C = (Writer(NodeId(node), 1) for node in "abc")


class HandClock:
    """Wall time that tests set."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def wall(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.now_s


def _documents(*writers: Writer) -> list[Document]:
    clock = HandClock()
    return [Document("board", writer, clock=clock) for writer in writers]


def _exchange(*documents: Document) -> None:
    """Everything that was written reaches everybody."""
    sent = [(document, envelope) for document in documents for envelope in document.outgoing()]
    for sender, envelope in sent:
        for document in documents:
            if document is not sender:
                document.apply(envelope)
    assert len({document.digest() for document in documents}) == 1
    assert all(document.held_count == 0 for document in documents)


def test_what_is_written_is_read_everywhere() -> None:
    """Values of every type, in every container, are the same on both sides, exactly."""
    one, two = _documents(A, B)
    value: dict[str, Any] = {"int": 1, "float": 1.0, "bytes": b"\0", "list": [None, True, -(2**70)]}
    one["key"] = value
    one.map("deep").map("deeper")["x"] = 7
    one.array("list").append(1, "two", 3.0)
    one.text("notes").insert(0, "é😀z")
    one.counter("hits").increment(5)
    one.set("tags").add("red")
    one.register("leader").set(b"a")
    _exchange(one, two)
    assert two["key"] == value
    assert type(two.map("deep").map("deeper")["x"]) is int
    assert two.array("list").to_list() == [1, "two", 3.0]
    assert str(two.text("notes")) == "é😀z"
    assert (two.counter("hits").value, list(two.set("tags")), two.register("leader").value) == (5, ["red"], b"a")
    assert two.containers() == one.containers()


def test_a_transaction_is_done_at_once() -> None:
    """Reads within see what is staged; others get one envelope; a watcher sees one change for each container."""
    (one,) = _documents(A)
    one["old"] = 1
    one.outgoing()
    seen: list[Change] = []
    end = one.observe(seen.append)
    with one.transaction():
        one["new"] = 2
        del one["old"]
        one.array("list").append(1, 3)
        one.array("list").insert(1, 2)
        one.text("notes").append("hello")
        one.text("notes").delete(0, 1)
        one.counter("hits").increment()
        assert ("old" in one, one["new"], len(one), list(one)) == (False, 2, 1, ["new"])
        assert one.array("list").to_list() == [1, 2, 3]
        assert (str(one.text("notes")), one.counter("hits").value) == ("ello", 1)
        with pytest.raises(KeyError):
            one["old"]
        assert not seen
    assert [dot.counter for dot in (envelope.dot for envelope in one.outgoing())] == [2]
    assert {str(change.container) for change in seen} == {"map ''", "array 'list'", "text 'notes'", "counter 'hits'"}
    assert one.root.to_dict() == {"new": 2}
    end()
    one["more"] = 1
    assert len(seen) == 4


def test_a_transaction_that_raises_is_not_done() -> None:
    """After an exception in the block nothing has changed, nothing is sent, and the next transaction works."""
    one, two = _documents(A, B)
    one["a"] = 1
    one.text("notes").append("kept")
    before = one.digest()
    one.outgoing()
    with pytest.raises(ZeroDivisionError), one.transaction():
        one["a"] = 2
        one.text("notes").delete(0, 4)
        one.counter("hits").increment()
        raise ZeroDivisionError
    assert (one.digest(), one.outgoing(), one["a"], str(one.text("notes"))) == (before, [], 1, "kept")
    with one.transaction():
        one["a"] = 3
    assert one["a"] == 3
    assert one.version == VersionVector({A: 3})
    assert two.version == VersionVector()


def test_a_bad_operation_stops_its_transaction() -> None:
    """A value that cannot be held raises where it is written, and takes the block with it."""
    (one,) = _documents(A)
    with pytest.raises(ValueRefused) as caught, one.transaction():
        one["fine"] = 1
        one["bad"] = [1, {"x": (1,)}]
    assert caught.value.path == "['bad'][1]['x']"
    assert "fine" not in one
    with pytest.raises(ValueRefused):
        one.array("x").insert(0, 1, object())  # type: ignore[arg-type]
    with pytest.raises(ValueRefused):
        one.set("s").add([1])
    assert one.version == VersionVector()


def test_a_change_from_elsewhere_ends_an_open_transaction() -> None:
    """What was staged upon the old content is not done upon the new one."""
    one, two = _documents(A, B)
    two["x"] = 1
    (envelope,) = two.outgoing()
    with pytest.raises(TransactionConflict), one.transaction():
        one["y"] = 1
        one.apply(envelope)
    assert ("y" in one, one["x"]) == (False, 1)


def test_transactions_do_not_nest_and_have_a_size() -> None:
    """A second block is an error; more operations or bytes than fit an update are refused as a whole."""
    one, two = _documents(A, B)
    with pytest.raises(StateError, match="open already"), one.transaction(), one.transaction():
        pass
    with pytest.raises(TransactionTooLarge, match="4096 operations"), one.transaction():
        for number in range(5000):
            one[f"k{number}"] = number
    with pytest.raises(TransactionTooLarge):
        one.array("list").append(*["x" * 100_000] * 10)
    with one.transaction():
        pass
    assert one.outgoing() == []
    one.array("list").append(*range(4096))
    one.text("long").append("x" * 200_000)
    for envelope in one.outgoing():
        assert two.apply(envelope) is Outcome.APPLIED


def test_the_clocks_are_pycrdts_own() -> None:
    """The clocks that the document counts are those that pycrdt has, for our writes and for others'."""
    one, two = _documents(A, B)
    for document in (one, two):
        document["k"] = 1
        document["k"] = 2
        document.array("list").append(1, 2, 3)
        document.text("t").append("é😀z")
        document.text("t").delete(1, 1)
        del document["k"]
    _exchange(one, two)
    for document in (one, two):
        for own, engine in zip(document._clocks, (document._engine._values, document._engine._texts), strict=True):
            assert own == read_state_vector(engine.get_state())


# --- merging ----------------------------------------------------------------------------------------------------


def test_counters_never_lose() -> None:
    """Increments and decrements made apart all count."""
    documents = _documents(A, B, C)
    for number, document in enumerate(documents):
        document.counter("n").increment(10)
        document.counter("n").decrement(number)
    _exchange(*documents)
    assert {document.counter("n").value for document in documents} == {27}


def test_additions_beat_concurrent_removals() -> None:
    """An element added again by somebody who has not seen its removal stays, and types are told apart."""
    one, two = _documents(A, B)
    one.set("s").add("x")
    _exchange(one, two)
    one.set("s").discard("x")
    two.set("s").add("x")
    _exchange(one, two)
    assert "x" in one.set("s")
    two.set("s").discard("x")
    for element in (1, 1.0, True, None, b"1", "1"):
        one.set("s").add(element)
    _exchange(one, two)
    assert len(two.set("s")) == 6
    assert sorted(map(repr, two.set("s"))) == sorted(map(repr, (1, 1.0, True, None, b"1", "1")))


def test_a_removal_beaten_by_any_of_two_concurrent_additions() -> None:
    """Two replicas add, a third that saw only one of the additions removes: the element stays."""
    one, two, three = _documents(A, B, C)
    one.set("s").add("x")
    two.set("s").add("x")
    (first,), (second,) = one.outgoing(), two.outgoing()
    three.apply(first)
    three.set("s").discard("x")
    (removal,) = three.outgoing()
    for document, envelopes in ((one, (second, removal)), (two, (first, removal)), (three, (second,))):
        for envelope in envelopes:
            document.apply(envelope)
        assert "x" in document.set("s")


def test_registers_report_exactly_the_concurrent_values() -> None:
    """Fifty writers at once conflict, all fifty; the latest is the value everywhere; a write settles it."""
    writers = [Writer(NodeId(f"n{number:02}"), 1) for number in range(50)]
    clock = HandClock()
    documents = [Document("board", writer, clock=clock) for writer in writers]
    for number, document in enumerate(documents):
        clock.now_s += 0.001
        document.register("r").set(number)
    _exchange(*documents)
    for document in documents[::17]:
        assert [written.value for written in document.register("r").conflict] == list(range(50))
        assert document.register("r").value == 49
    documents[3].register("r").set("settled")
    _exchange(*documents)
    assert documents[7].register("r").conflict == []
    assert documents[7].register("r").value == "settled"


def test_a_register_keeps_what_a_write_had_not_seen() -> None:
    """A write with the context of an older read leaves the newer value as a conflict."""
    one, two = _documents(A, B)
    register = one.register("r")
    assert (register.value, register.values) == (None, [])
    register.set(1)
    seen = register.context
    _exchange(one, two)
    two.register("r").set(2)
    _exchange(one, two)
    register.set(3, seen=seen)
    assert sorted(written.value for written in register.conflict) == [2, 3]  # type: ignore[type-var]


def test_nested_containers_made_at_once_are_one() -> None:
    """Two replicas that make the same nested counter or map lose nothing."""
    one, two = _documents(A, B)
    for number, document in enumerate((one, two)):
        document.map("stats").counter("hits").increment(3)
        document.map("stats").map("by")[f"node{number}"] = number
    _exchange(one, two)
    assert one.map("stats").counter("hits").value == 6
    assert one.map("stats").map("by").to_dict() == {"node0": 0, "node1": 1}


def test_concurrent_insertions_stay_together() -> None:
    """Runs inserted at one place at the same time are not interleaved, and the order is the same everywhere."""
    one, two = _documents(A, B)
    for number, document in enumerate((one, two)):
        document.array("list").append(*[number] * 5)
        document.text("t").append("ab"[number] * 5)
    _exchange(one, two)
    assert one.array("list").to_list() in ([0] * 5 + [1] * 5, [1] * 5 + [0] * 5)
    assert str(one.text("t")) in ("aaaaabbbbb", "bbbbbaaaaa")


# --- others' envelopes ------------------------------------------------------------------------------------------


def test_envelopes_may_come_in_any_order() -> None:
    """One writer's a=1, a=2, b=3 in another order is held until it fits; pycrdt alone would lose a."""
    one, two = _documents(A, B)
    for key, value in (("a", 1), ("a", 2), ("b", 3)):
        one[key] = value
    first, second, third = one.outgoing()
    assert [two.apply(envelope) for envelope in (second, third, third)] == [
        Outcome.HELD,
        Outcome.HELD,
        Outcome.DUPLICATE,
    ]
    assert (two.missing(), two.held_count, dict(two.root.items())) == ([Span(A, 1, 1)], 2, {})
    assert two.apply(first) is Outcome.APPLIED
    assert two.root.to_dict() == {"a": 2, "b": 3}
    assert two.apply(first) is Outcome.DUPLICATE


def test_too_much_out_of_order_is_dropped_and_can_be_sent_again() -> None:
    """What finds no room to wait in is reported, and comes again by repair."""
    one = Document("board", A)
    two = Document("board", B, limits=HoldBackLimits(writer_count_max=1))
    for number in range(4):
        one["k"] = number
    envelopes = one.outgoing()
    assert [two.apply(envelope) for envelope in reversed(envelopes)] == [
        Outcome.HELD,
        Outcome.OVERFLOW,
        Outcome.OVERFLOW,
        Outcome.APPLIED,
    ]
    for envelope in envelopes:
        two.apply(envelope)
    assert two["k"] == 3


def test_another_lineage_is_reported_not_blended() -> None:
    """Envelopes of another document, or another history of it, are errors that change nothing."""
    one = Document("board", A, lineage=b"12345678")
    two, other = Document("board", B), Document("plan", B)
    one["k"] = 1
    (envelope,) = one.outgoing()
    for document in (two, other):
        with pytest.raises(DivergentHistory, match="lineage 3132333435363738"):
            document.apply(envelope)
        assert len(document) == 0


def test_a_copy_of_our_own_data_is_reported() -> None:
    """An envelope in our name that we did not write means that our identity runs twice, or lost its memory."""
    one, copy = _documents(A, A)
    one["k"] = 1
    copy["k"] = 2
    one["l"] = 1
    first, second = one.outgoing()
    assert copy.apply(first) is Outcome.DUPLICATE
    with pytest.raises(DivergentHistory, match="restored from an old copy"):
        copy.apply(second)


def test_histories_tell_copies_apart() -> None:
    """Two envelopes under one number leave version vectors equal, and histories different."""
    one, copy, two, three = _documents(A, A, B, C)
    one["k"] = 1
    copy["k"] = 2
    two.apply(one.outgoing()[0])
    three.apply(copy.outgoing()[0])
    assert two.version == three.version
    assert two.history() != three.history()
    assert two.history() == one.history() != _documents(A)[0].history()


def test_a_clock_from_the_future_is_refused_until_ours_is_there() -> None:
    """A stamp beyond the bound changes nothing; the same envelope is taken once our clock is near it."""
    one_clock, two_clock = HandClock(), HandClock()
    one_clock.now_s += 3600
    one, two = Document("board", A, clock=one_clock), Document("board", B, clock=two_clock)
    one["k"] = 1
    (envelope,) = one.outgoing()
    with pytest.raises(ClockDrift, match="3600000 ms ahead"):
        two.apply(envelope)
    assert "k" not in two
    two_clock.now_s += 3600
    assert two.apply(envelope) is Outcome.APPLIED
    one_clock.now_s -= 7200
    with pytest.raises(ClockDrift):
        one["k"] = 2
    assert one["k"] == 1


def _forged(writer: Writer, counter: int, values: bytes = b"", texts: bytes = b"", needs: Any = None) -> Envelope:
    document = Document("board", writer)
    return Envelope("board", document.lineage, Dot(writer, counter), VersionVector(needs), Timestamp(1), values, texts)


def test_bad_updates_are_refused_and_their_followers_dropped() -> None:
    """An update that does not fit is refused when its turn comes; what waits behind it goes, others' content stays."""
    one, two = _documents(A, B)
    one["k"] = 1
    for envelope in one.outgoing():
        two.apply(envelope)
    client = client_of("board", two.lineage, C)
    before = two.digest()
    for name, data in yjs.crashers().items():
        with pytest.raises(UpdateRefused):
            two.apply(_forged(C, 1, values=data) if data else _forged(C, 1, texts=yjs.update([b"\x00\x00"])))
        assert two.digest() == before, name
    behind = _forged(C, 2, values=yjs.update([yjs.entry(yjs.NULL)], client=client, clock=1))
    assert two.apply(behind) is Outcome.HELD
    with pytest.raises(UpdateRefused, match="starts at clock 5"):
        two.apply(_forged(C, 1, values=yjs.update([yjs.entry(yjs.NULL)], client=client, clock=5)))
    assert (two.held_count, two.digest()) == (0, before)
    assert two.apply(_forged(C, 1, values=yjs.update([yjs.entry(yjs.NULL)], client=client))) is Outcome.APPLIED
    assert two["k"] in {None, 1}


def test_a_writer_cannot_take_anothers_client_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should two writers ever have one client id, the second is refused."""
    monkeypatch.setattr("state.documents.document.client_of", lambda *_: 7)
    one, two = _documents(A, B)
    one["k"] = 1
    with pytest.raises(UpdateRefused, match="has the client id of b/1"):
        two.apply(one.outgoing()[0])


def test_what_pycrdt_refuses_is_a_refused_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should pycrdt find fault with what the guards let pass, that is the origin's error, not a crash."""
    one, two = _documents(A, B)
    one["k"] = 1

    def refuse(_updates: object) -> None:
        raise RuntimeError("block parent must be deleted")

    monkeypatch.setattr(two._engine, "apply", refuse)
    with pytest.raises(UpdateRefused, match="pycrdt refused an update of a/1: block parent"):
        two.apply(one.outgoing()[0])
    assert two.version == VersionVector()


def test_unsent_changes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that never takes its envelopes is told so before memory runs out, and nothing more is done."""
    monkeypatch.setattr("state.documents.document.OUTGOING_MAX", 2)
    (one,) = _documents(A)
    one["a"], one["b"] = 1, 2
    with pytest.raises(StateError, match="2 changes wait"):
        one["c"] = 3
    assert "c" not in one
    assert len(one.outgoing()) == 2
    one["c"] = 3


def test_containers_of_later_versions_are_left_alone() -> None:
    """A root of a kind that this version does not know is carried along and not read."""
    one, two = _documents(A, B)
    client = client_of("board", one.lineage, C)
    envelope = _forged(C, 1, values=yjs.update([yjs.entry(b"\x78", root=b"z:new")], client=client))
    for document in (one, two):
        assert document.apply(envelope) is Outcome.APPLIED
    late = Document("board", Writer(NodeId("d"), 1))
    late.restore(one.snapshot())
    assert late.digest() == two.digest() == Document("board", A).digest()
    assert one.containers() == []


# --- snapshots, digests, watching ---------------------------------------------------------------------------------


def test_a_late_replica_starts_from_a_snapshot() -> None:
    """Snapshot and tail give the same content, a fresh writer can go on, and duplicates are known as such."""
    one, two = _documents(A, B)
    for number in range(30):
        (one, two)[number % 2][f"k{number % 7}"] = number
        (one, two)[number % 2].text("t").append(f"é{number} ")
        if number % 3 == 0:
            _exchange(one, two)
    _exchange(one, two)
    snapshot = one.snapshot()
    one["tail"] = 1
    (tail,) = one.outgoing()
    (late,) = _documents(C)
    late.restore(snapshot)
    assert (late.digest(), late.version, late.history()) == (two.digest(), two.version, two.history())
    late.apply(tail)
    late["mine"] = 1
    two.apply(tail)
    assert two.apply(late.outgoing()[0]) is Outcome.APPLIED
    assert late.digest() == two.digest()


def test_a_bad_snapshot_is_refused() -> None:
    """It must be of this document, name its writers, and meet an empty replica."""
    one, two = _documents(A, B)
    one["k"] = 1
    snapshot = one.snapshot()
    with pytest.raises(UpdateRefused, match="version does not name"):
        two.restore(replace(snapshot, version=VersionVector({B: 1})))
    with pytest.raises(UpdateRefused):
        two.restore(replace(snapshot, values=snapshot.values + b"x"))
    with pytest.raises(StateError, match="lineage"):
        two.restore(replace(snapshot, lineage=b"other..."))
    assert len(two) == 0
    two.restore(snapshot)
    with pytest.raises(StateError, match="only an empty replica"):
        two.restore(snapshot)
    assert Document("empty", A).snapshot().values == b""


def test_digests_tell_content_apart() -> None:
    """Opening containers does not change the digest, any content does, and equal content is equal."""
    one, two = _documents(A, B)
    empty = one.digest()
    assert (list(one.set("s")), str(one.text("t")), len(one.array("a"))) == ([], "", 0)
    assert one.digest() == empty
    one["k"] = 1
    first = one.digest()
    one["k"] = 1.0
    assert len({empty, first, one.digest()}) == 3
    two["k"] = 1
    assert two.digest() == first


async def test_changes_are_told_in_order() -> None:
    """``async for change in doc.changes()`` tells ours and others', in characters and values."""
    one, two = _documents(A, B)
    one.text("t").append("é😀z")
    one.array("a").append(1, b"x")
    _exchange(one, two)
    changes = two.changes()
    one.text("t").insert(2, "ü")
    one.text("t").delete(0, 1)
    one.array("a").insert(1, {"n": 1})
    two["mine"] = 1
    _exchange(one, two)
    inserted: Splice[list[Any]] = Splice(1, 0, [{"n": 1}])
    told = [await anext(changes) for _ in range(4)]
    assert told == [
        Change(two.root.name, B, local=True, keys=("mine",)),
        Change(one.text("t").name, A, local=False, splices=(Splice(2, 0, "ü"),)),
        Change(one.text("t").name, A, local=False, splices=(Splice(0, 1, ""),)),
        Change(one.array("a").name, A, local=False, splices=(inserted,)),
    ]
    await changes.aclose()
    two["more"] = 1
    with pytest.raises(StopAsyncIteration):
        await anext(changes)
    assert (one.text("t").name.kind, str(two.text("t"))) == (Kind.TEXT, "😀üz")


def test_a_watcher_that_raises_stops_nobody() -> None:
    """Somebody's broken callback neither undoes the change nor hides it from others."""
    one, two = _documents(A, B)
    seen: list[Change] = []

    def broken(_change: Change) -> None:
        raise ZeroDivisionError

    two.observe(broken)
    two.observe(seen.append)
    one["k"] = 1
    _exchange(one, two)
    assert (two["k"], len(seen)) == (1, 1)


def test_names_have_limits() -> None:
    """A document has a name, and paths are bounded."""
    for name in ("", "x" * 256):
        with pytest.raises(StateError, match="document name"):
            Document(name, A)
    (one,) = _documents(A)
    deep = one.root
    with pytest.raises(ValueRefused, match="longer than"):
        for _ in range(100):
            deep = deep.map("x" * 50)


def test_a_store_hears_in_which_order_envelopes_came_in() -> None:
    """Ours as they are made, others' as they are applied, also when they had waited."""
    here, there = _documents(A, B)
    heard: list[str] = []
    here.attach(committed=lambda: heard.append("ours"), applied=lambda dot: heard.append(f"{dot.counter}"))
    for number in range(3):
        there[f"k{number}"] = number
    first, second, third = there.outgoing()
    here.apply(second)
    assert here.holds(second.dot)
    here["mine"] = 1
    here.apply(third)
    here.apply(first)
    assert not here.holds(second.dot)
    assert heard == ["ours", "1", "2", "3"]


def test_outgoing_envelopes_can_be_taken_by_and_by() -> None:
    """The first ones first."""
    (here,) = _documents(A)
    for number in range(3):
        here["k"] = number
    assert [envelope.dot.counter for envelope in here.outgoing(2)] == [1, 2]
    assert [envelope.dot.counter for envelope in here.outgoing(2)] == [3]


def test_a_closed_document_is_read_only() -> None:
    """Nothing of a refused write is done."""
    (here,) = _documents(A)
    here["k"] = 1
    here.close()
    with pytest.raises(StateError, match="closed"):
        here["k"] = 2
    assert here["k"] == 1


def test_stored_envelopes_are_taken_whatever_the_clock_says() -> None:
    """They were judged when they came."""
    here, there = _documents(A, B)
    there["k"] = 1
    (envelope,) = there.outgoing()
    future = replace(envelope, stamp=Timestamp(envelope.stamp.wall_ms + 10_000))
    with pytest.raises(ClockDrift):
        here.apply(future)
    assert here.apply(future, stored=True) is Outcome.APPLIED


def test_writers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is refused, here and from others; those that are known go on."""
    monkeypatch.setattr("state.documents.document.WRITERS_MAX", 1)
    here, there = _documents(A, B)
    there["k"] = 1
    there["k"] = 2
    (first, second) = there.outgoing()
    here.apply(first)
    with pytest.raises(TooManyWriters):
        here["mine"] = 1
    here.apply(second)
    (third,) = _documents(C)
    third["k"] = 3
    with pytest.raises(TooManyWriters):
        here.apply(third.outgoing()[0])
    assert here["k"] == 2


def test_a_transaction_leaves_room_for_what_was_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """An envelope that could not be sent is never made."""
    monkeypatch.setattr("state.documents.document.ENVELOPE_BYTES_MAX", 200)
    here, there = _documents(A, B)
    there["k"] = 1
    here["mine"] = "x" * 100
    here.apply(there.outgoing()[0])
    with pytest.raises(TransactionTooLarge, match="1 writers"):
        here["mine"] = "x" * 100
    assert here["mine"] == "x" * 100
    here["small"] = 1
