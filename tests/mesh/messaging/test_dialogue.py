"""One link's messages: batching, order, credit, acknowledgements, and a link that has no room."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest
from couriers import FakeLink, as_link

from mesh.messaging import body as m
from mesh.messaging import dialogue as dialogue_module
from mesh.messaging.body import Acks, decode_acks, decode_batch
from mesh.messaging.dialogue import BODY_BYTES, BODY_MESSAGES, Dialogue
from mesh.messaging.flow import INITIAL_WINDOW_BYTES
from transport.errors import LinkClosed, RemoteProtocolError
from transport.link import CloseReason, SendOutcome
from transport.types import Lane, Priority
from transport.wire import ARRAY_ITEMS_MAX, BODY_BYTES_MAX, Envelope, Kind, check_sendable


class Recorder(FakeLink):
    """A link that keeps what it is given; ``room`` envelopes fit."""

    def __init__(self, room: int = 1_000_000) -> None:
        super().__init__("peer", 0)
        self.room = room
        self.sent: list[tuple[Envelope, Lane]] = []

    def send(self, envelope: Envelope, lane: Lane, *, key: str | None = None) -> SendOutcome:
        if not self.is_open:
            return SendOutcome.CLOSED
        check_sendable(envelope)
        if self.room <= 0:
            return SendOutcome.FULL
        self.room -= 1
        self.sent.append((envelope, lane))
        return SendOutcome.ACCEPTED

    def close(self, reason: CloseReason = CloseReason.NORMAL, detail: str = "") -> None:
        self.is_open = False
        self.closed_as = reason

    def sequences(self) -> list[int]:
        """Of all messages, in the order sent."""
        batches = [decode_batch(envelope.body) for envelope, _ in self.sent if envelope.kind == Kind.MESSAGES]
        return [message[m.F_SEQUENCE] for batch in batches for message in batch.messages]


def _make(room: int = 1_000_000) -> tuple[Dialogue, Recorder, list[Dialogue]]:
    link = Recorder(room)
    dirty: list[Dialogue] = []
    made = Dialogue(as_link(link), life=3, now_ms=lambda: 1_000, dirty=dirty.append, window_bytes=1 << 20)
    return made, link, dirty


def _message(sequence: int, payload: bytes = b"") -> m.Message:
    return [sequence, 1, 42, 7, 0, payload, 0]


def test_messages_of_one_turn_are_one_body() -> None:
    """What is posted before a flush leaves in one envelope, in order; the dialogue says once that it is dirty."""
    dialogue, link, dirty = _make()
    for sequence in range(10):
        assert dialogue.post(_message(sequence, b"x" * 100), Priority.HIGH, 5) == 164
    assert dirty == [dialogue]
    assert link.sent == []

    dialogue.flush()

    ((envelope, lane),) = link.sent
    batch = decode_batch(envelope.body)
    assert (envelope.ttl, lane, batch.life, batch.base_ms, batch.priority) == (5, Lane.HIGH, 3, 1_000, Priority.HIGH)
    assert link.sequences() == list(range(10))


def test_after_a_flush_it_says_that_it_is_dirty_again() -> None:
    """Each turn's first message makes the dialogue dirty; an empty flush sends nothing."""
    dialogue, link, dirty = _make()
    dialogue.post(_message(1), Priority.LOW, 1)
    dialogue.flush()
    dialogue.flush()
    dialogue.post(_message(2), Priority.LOW, 1)

    assert len(dirty) == 2
    assert len(link.sent) == 1


@pytest.mark.parametrize(("count", "size"), [(BODY_MESSAGES, 0), (BODY_BYTES // 1_064 + 1, 1_000)])
def test_a_full_body_leaves_at_once(count: int, size: int) -> None:
    """A body that has its messages or bytes does not wait for the flush."""
    dialogue, link, _ = _make()
    for sequence in range(count):
        assert link.sent == []
        dialogue.post(_message(sequence, bytes(size)), Priority.NORMAL, 1)

    assert link.sequences() == list(range(count))


def test_a_large_message_travels_alone() -> None:
    """Behind others, a message of the largest size still fits its envelope, and order is kept."""
    dialogue, link, _ = _make()
    dialogue.post(_message(1, bytes(BODY_BYTES - 100)), Priority.NORMAL, 1)
    dialogue.post(_message(2, bytes(m.PAYLOAD_BYTES_MAX)), Priority.NORMAL, 1)
    dialogue.post(_message(3), Priority.NORMAL, 1)
    dialogue.flush()

    assert link.sequences() == [1, 2, 3]
    assert len(link.sent) == 3
    assert all(len(envelope.body) <= BODY_BYTES_MAX for envelope, _ in link.sent)


def test_another_ttl_does_not_overtake() -> None:
    """Messages of one priority keep their order whatever their ttl; each envelope has one ttl."""
    dialogue, link, _ = _make()
    ttls = [8, 9, 8, 8, 1]
    for sequence, ttl in enumerate(ttls):
        dialogue.post(_message(sequence), Priority.NORMAL, ttl)
    dialogue.flush()

    assert link.sequences() == [0, 1, 2, 3, 4]
    assert [envelope.ttl for envelope, _ in link.sent] == [8, 9, 8, 1]


def test_headers_weigh() -> None:
    """A message's cost includes its headers."""
    dialogue, _, _ = _make()

    assert dialogue.post([*_message(1), None, {"ab": "c"}], Priority.NORMAL, 1) == 64 + 64 + 3


def test_one_message_that_cannot_be_sent_does_not_cost_its_neighbours(caplog: pytest.LogCaptureFixture) -> None:
    """What slipped through the checks is dropped and logged; all others of its body leave."""
    dialogue, link, _ = _make()
    dialogue.post(_message(1), Priority.NORMAL, 1)
    dialogue.post([2, 1, 42, 2**70, 0, b"", 0], Priority.NORMAL, 1)
    dialogue.post(_message(3), Priority.NORMAL, 1)
    dialogue.flush()

    assert link.sequences() == [1, 3]
    assert "message dropped" in caplog.text


# --- no room ----------------------------------------------------------------------------------------------------


def test_what_is_stuck_keeps_its_order() -> None:
    """Whatever the link takes when, messages leave in the order posted, and none twice."""
    rng = random.Random(5)
    dialogue, link, _ = _make(room=1)
    for sequence in range(300):
        dialogue.post(_message(sequence), Priority.NORMAL, rng.randrange(1, 3))
        if rng.random() < 0.3:
            dialogue.flush()
        if rng.random() < 0.2:
            link.room = rng.randrange(3)
            dialogue.unstick()
    dialogue.flush()
    before = dialogue.is_congested, dialogue.stuck_lane
    link.room = 1_000
    dialogue.unstick()
    after = dialogue.is_congested, dialogue.stuck_lane

    assert before == (True, Lane.NORMAL)
    assert after == (False, None)
    assert link.sequences() == list(range(300))


def test_acknowledgements_do_not_wait_behind_stuck_messages() -> None:
    """Credit and acknowledgements have their own lane; what is stuck in another does not hold them."""
    dialogue, link, _ = _make(room=0)
    dialogue.post(_message(1), Priority.NORMAL, 1)
    dialogue.flush()
    assert dialogue.is_congested
    link.room = 1

    dialogue.owe_delivered(5)
    dialogue.flush()

    assert [(envelope.kind, lane) for envelope, lane in link.sent] == [(Kind.ACKS, Lane.CONTROL)]


def test_acknowledgements_are_never_lost() -> None:
    """When not even the control lane has room, they wait with the rest."""
    dialogue, link, _ = _make(room=0)
    dialogue.owe_delivered(5)
    dialogue.owe_refused(7, 1)
    dialogue.flush()
    link.room = 1
    dialogue.unstick()

    assert decode_acks(link.sent[0][0].body) == Acks([], [(5, 1)], [(7, 1)])


def test_a_peer_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a peer has a bound, beyond which the link is closed as overloaded."""
    monkeypatch.setattr(dialogue_module, "STUCK_BYTES_MAX", 200_000)
    dialogue, link, _ = _make(room=0)
    for sequence in range(4):
        assert link.closed_as is None
        dialogue.post(_message(sequence, bytes(60_000)), Priority.NORMAL, 1)

    assert link.closed_as is CloseReason.OVERLOADED
    dialogue.post(_message(9, bytes(60_000)), Priority.NORMAL, 1)


def test_a_closing_link_makes_senders_wait() -> None:
    """A link that takes nothing more counts as congested, so that nothing is said to be sent that is not."""
    dialogue, link, _ = _make()
    link.is_open = False
    dialogue.post(_message(1), Priority.NORMAL, 1)
    dialogue.flush()
    dialogue.unstick()

    assert dialogue.is_congested


# --- waiting ----------------------------------------------------------------------------------------------------


async def test_a_sender_waits_for_credit_and_room() -> None:
    """wait_ready returns when there are both, in whichever order they come."""
    dialogue, link, _ = _make(room=0)
    window = dialogue.window(7)
    window.sent_bytes = INITIAL_WINDOW_BYTES
    dialogue.post(_message(1), Priority.NORMAL, 1)
    dialogue.flush()
    waiting = asyncio.ensure_future(dialogue.wait_ready(7))
    room = asyncio.ensure_future(dialogue.wait_room())
    await asyncio.sleep(0)

    dialogue.handle_acks(Acks([(7, INITIAL_WINDOW_BYTES), (8, 10)], [], []))  # neither is news
    await asyncio.sleep(0)
    assert not waiting.done()
    dialogue.handle_acks(Acks([(7, INITIAL_WINDOW_BYTES + 1)], [], []))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    link.room = 1
    dialogue.unstick()

    await waiting
    await room
    await dialogue.wait_ready(7)
    await dialogue.wait_room()


async def test_waiting_ends_with_the_link() -> None:
    """Whoever waits for credit or room when the link closes learns so; so does whoever comes later."""
    dialogue, _, _ = _make(room=0)
    dialogue.window(7).sent_bytes = INITIAL_WINDOW_BYTES
    dialogue.post(_message(1), Priority.NORMAL, 1)
    dialogue.flush()
    waits = [asyncio.ensure_future(dialogue.wait_ready(agent)) for agent in (7, 8)]
    room = asyncio.ensure_future(dialogue.wait_room())
    await asyncio.sleep(0)

    dialogue.close()

    for wait in waits:
        with pytest.raises(LinkClosed) as closed:
            await wait
        assert not closed.value.changed
    await room
    with pytest.raises(LinkClosed):
        await dialogue.wait_ready(8)


async def test_who_gives_up_waiting_leaves_nothing_behind() -> None:
    """A cancelled wait does not disturb the others."""
    dialogue, _, _ = _make()
    dialogue.window(7).sent_bytes = INITIAL_WINDOW_BYTES
    waits = [asyncio.ensure_future(dialogue.wait_ready(7)) for _ in range(3)]
    await asyncio.sleep(0)
    waits[1].cancel()
    await asyncio.gather(waits[1], return_exceptions=True)

    dialogue.handle_acks(Acks([(7, INITIAL_WINDOW_BYTES + 1)], [], []))

    await waits[0]
    await waits[2]
    assert waits[1].cancelled()


# --- acknowledgements -------------------------------------------------------------------------------------------


def test_owed_acknowledgements_are_written_as_runs() -> None:
    """Neighbouring sequences are one pair; order and gaps are kept."""
    dialogue, link, _ = _make()
    for sequence in (1, 2, 3, 7, 8, 5):
        dialogue.owe_delivered(sequence)
    dialogue.flush()

    assert decode_acks(link.sent[0][0].body).delivered == [(1, 3), (7, 2), (5, 1)]


def test_any_number_of_acknowledgements_can_be_read() -> None:
    """More in one turn than an array may hold go into several bodies, each of which a peer accepts."""
    dialogue, link, _ = _make()
    for i in range(2 * ARRAY_ITEMS_MAX + 5):
        dialogue.owe_delivered(2 * i)
    dialogue.owe_refused(1, 1)
    flow = dialogue.incoming(7)
    flow.window.receive(1_000)
    flow.taken(1_000)
    dialogue.flush()

    bodies = [decode_acks(envelope.body) for envelope, _ in link.sent]
    assert [len(acks.delivered) for acks in bodies] == [ARRAY_ITEMS_MAX, ARRAY_ITEMS_MAX, 5]
    assert [run for acks in bodies for run in acks.delivered] == [(2 * i, 1) for i in range(2 * ARRAY_ITEMS_MAX + 5)]
    assert bodies[0].limits == [(7, 1_000 + (1 << 20))]
    assert bodies[0].refused == [(1, 1)]


@pytest.fixture
def unacked() -> Iterator[tuple[Dialogue, list[asyncio.Future[int]]]]:
    """A dialogue that waits for the acknowledgements of 10, 12, ..., 28."""
    dialogue, _, _ = _make()
    loop = asyncio.new_event_loop()
    futures = [loop.create_future() for _ in range(10)]
    dialogue.unacked.update({10 + 2 * i: future for i, future in enumerate(futures)})
    yield dialogue, futures
    loop.close()


@pytest.mark.parametrize(
    ("runs", "settled"),
    [
        ([(10, 1)], [0]),
        ([(10, 3)], [0, 1]),
        ([(0, 2**62)], list(range(10))),
        ([(11, 2**62)], list(range(1, 10))),
        ([(2**62, 2**62)], []),
        ([(0, 15), (12, 8), (0, 2**62)], list(range(10))),
        ([(10, 0)], []),
        ([(-(2**60), 2**62)], list(range(10))),
    ],
)
def test_runs_settle_what_is_waited_for(
    unacked: tuple[Dialogue, list[asyncio.Future[int]]], runs: list[tuple[int, int]], settled: list[int]
) -> None:
    """Runs of any length settle exactly the sequences in them that somebody waits for."""
    dialogue, futures = unacked
    dialogue.handle_acks(Acks([], runs, []))

    assert [i for i, future in enumerate(futures) if future.done()] == settled
    assert all(futures[i].result() == 0 for i in settled)
    assert len(dialogue.unacked) == 10 - len(settled)


def test_a_refusal_carries_its_code(unacked: tuple[Dialogue, list[asyncio.Future[int]]]) -> None:
    """A refused message settles with its code, and only once."""
    dialogue, futures = unacked
    dialogue.handle_acks(Acks([], [], [(12, 2), (12, 1), (99, 1)]))

    assert futures[1].result() == 2


def test_many_claimed_runs_cost_little(unacked: tuple[Dialogue, list[asyncio.Future[int]]]) -> None:
    """A hostile body of the longest runs does not multiply by what we wait for."""
    dialogue, futures = unacked
    loop = futures[0].get_loop()
    dialogue.unacked.update({100 + i: loop.create_future() for i in range(20_000)})
    started = loop.time()
    dialogue.handle_acks(Acks([], [(2**61, 2**62)] * ARRAY_ITEMS_MAX, []))
    dialogue.handle_acks(Acks([], [(0, 2**62)] * ARRAY_ITEMS_MAX, []))

    assert loop.time() - started < 0.5
    assert not dialogue.unacked


async def test_closing_settles_who_waits_for_an_acknowledgement() -> None:
    """Each gets an error that says the agent may have the message; one that was cancelled is left alone."""
    dialogue, _, _ = _make()
    loop = asyncio.get_running_loop()
    waiting, cancelled = loop.create_future(), loop.create_future()
    cancelled.cancel()
    dialogue.unacked.update({1: waiting, 2: cancelled})

    dialogue.close()

    with pytest.raises(LinkClosed, match="may have"):
        await waiting
    assert not dialogue.unacked


def test_a_closed_dialogue_sends_nothing() -> None:
    """A flush that comes after the end is harmless, and a flow that is taken later owes nobody."""
    dialogue, link, _ = _make()
    flow = dialogue.incoming(7)
    flow.window.receive(100)
    dialogue.post(_message(1), Priority.NORMAL, 1)
    dialogue.close()
    flow.taken(100)
    dialogue.flush()

    assert link.sent == []


def test_one_peer_cannot_invent_agents_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of agents that a peer may send to over one link is bounded."""
    monkeypatch.setattr(dialogue_module, "FLOWS_MAX", 3)
    dialogue, _, _ = _make()
    flows = [dialogue.incoming(agent) for agent in range(3)]

    assert dialogue.incoming(2) is flows[2]
    with pytest.raises(RemoteProtocolError, match="more than 3 agents"):
        dialogue.incoming(3)


async def test_all_bodies_of_a_flush_carry_one_time() -> None:
    """So that a time that a message gives in relation to it arrives exactly; the next flush has its own."""
    clock = iter(range(1_000, 2_000))
    link = Recorder()
    made = Dialogue(as_link(link), life=3, now_ms=lambda: next(clock), dirty=lambda _: None, window_bytes=1 << 20)
    for sequence, stamp_ms in ((1, 777), (2, 888)):
        made.post([sequence, 1, 42, 7, 0, b"", stamp_ms - made.base_ms], Priority.NORMAL, 8)
        made.post([sequence, 1, 42, 7, 0, b"", stamp_ms - made.base_ms], Priority.HIGH, 8)
        made.flush()

    batches = [decode_batch(envelope.body) for envelope, _ in link.sent]
    assert [batch.base_ms for batch in batches] == [1_000, 1_000, 1_001, 1_001]
    assert [batch.base_ms + batch.messages[0][m.F_OFFSET] for batch in batches] == [777, 777, 888, 888]


# --- holding ----------------------------------------------------------------------------------------------------


async def test_a_held_dialogue_sends_nothing_until_it_is_released() -> None:
    """Senders wait as they do for room; what is posted or owed meanwhile leaves afterwards."""
    made, link, dirty = _make()
    assert made.hold()
    assert made.hold()
    assert made.is_congested
    waiting = asyncio.ensure_future(made.wait_ready(7))
    await asyncio.sleep(0)
    made.post(_message(1), Priority.NORMAL, 8)
    made.owe_delivered(5)
    made.flush()
    assert link.sent == []
    assert not waiting.done()

    dirty.clear()
    made.release()
    made.release()
    await waiting
    assert dirty == [made]
    made.flush()
    assert link.sequences() == [1]
    assert [envelope.kind for envelope, _ in link.sent] == [Kind.ACKS, Kind.MESSAGES]


async def test_a_dialogue_with_something_under_way_cannot_be_held() -> None:
    """Unsent or unacknowledged messages, acknowledgements owed, and senders that wait for credit."""
    made, link, _ = _make()
    made.post(_message(1), Priority.NORMAL, 8)
    assert not made.hold()
    made.flush()
    assert made.hold()
    made.release()
    made.flush()

    made.owe_refused(3, 1)
    assert not made.hold()
    made.flush()
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    made.unacked[9] = future
    assert not made.hold()
    made.handle_acks(Acks([], [(9, 1)], []))
    made.window(7).sent_bytes = INITIAL_WINDOW_BYTES
    waiting = asyncio.ensure_future(made.wait_ready(7))
    await asyncio.sleep(0)
    assert not made.hold()
    made.handle_acks(Acks([(7, 2 * INITIAL_WINDOW_BYTES)], [], []))
    await waiting
    link.room = 0
    made.post(_message(2), Priority.NORMAL, 8)
    made.flush()
    assert not made.hold()
    assert not made.is_held


async def test_the_end_of_a_held_link_wakes_who_waits() -> None:
    """They look for another way."""
    made, _, _ = _make()
    made.hold()
    waiting = asyncio.ensure_future(made.wait_ready(7))
    await asyncio.sleep(0)
    made.close()

    with pytest.raises(LinkClosed):
        await waiting
