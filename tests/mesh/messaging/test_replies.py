"""Answers in parts, at the side that asks: order, bounds, time, and every way in which a stream ends early."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import pytest
from couriers import Inbox, World, echo, nothing_waits, query
from streamers import PLACES, Clock, Counter, asked, numbers
from support import eventually

from mesh.errors import (
    AgentError,
    DeliveryUncertain,
    NetworkClosed,
    NotDelivered,
    RequestTimeout,
    StreamsUnsupported,
    UnknownAgent,
)
from mesh.messaging.body import FLAG_END, FLAG_STREAM, encode_batch
from mesh.messaging.replies import ReplyStream
from mesh.messaging.streams import INITIAL_PARTS, WINDOW_BYTES, WINDOW_PARTS
from mesh.types import Priority
from transport.link import CloseReason
from transport.types import Lane
from transport.wire import Envelope, Kind


@PLACES
@pytest.mark.parametrize("size", [0, 5_000, 300_000])
async def test_parts_arrive_in_order(place: str, size: int) -> None:
    """All of them, far more than a window, and nothing is left behind."""
    count = 40 if size else 2_000
    counter = Counter(count, size=size)
    async with World() as world:
        world.agent(place, 7, counter)
        parts = [part async for part in asked(world["a"])]

        assert numbers(parts) == list(range(1, count + 1))
        assert {len(part) - size for part in parts} <= {1, 2, 3, 4}
        await eventually(lambda: counter.ended == ["done"])
        assert world[place].counters["streams_answered"] == 1
        assert nothing_waits(world)


@pytest.mark.parametrize("payload", [b"", b"answer"])
async def test_a_plain_handler_makes_a_stream_of_one_part(payload: bytes) -> None:
    """Its response."""
    async with World() as world:
        world.agent("b", 7, echo)
        stream = world["a"].stream(query(7, payload), idle_s=5, timeout_s=5)
        assert [part async for part in stream] == [payload]
        assert nothing_waits(world)


# --- flow control -----------------------------------------------------------------------------------------------


async def test_large_parts_are_bounded_by_their_bytes() -> None:
    """At most a window of them and one."""
    counter = Counter(size=200_000)
    async with World() as world:
        world.agent("b", 7, counter)
        async with asked(world["a"]) as stream:
            await anext(stream)
            for _ in range(20):
                await asyncio.sleep(0.005)
            (reply,) = world["a"]._replies.values()
            assert counter.made <= WINDOW_BYTES // 200_000 + 2
            assert reply.half.waiting_bytes <= WINDOW_BYTES + 200_100


# --- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["nowhere", "wrong"])
async def test_an_agent_that_is_not_there(place: str) -> None:
    """As for a request."""
    async with World() as world:
        agent = world.agent("b", 7, echo)
        await world.remove(agent, forget=place == "nowhere")
        with pytest.raises(UnknownAgent):
            await anext(asked(world["a"], idle_s=0.05))


async def test_an_older_node_is_not_asked() -> None:
    """It would take the query for a plain one."""
    inbox = Inbox()
    async with World() as world:
        world.agent("b", 7, inbox)
        world.links["a", "b"].peer.features.clear()
        with pytest.raises(StreamsUnsupported, match="does not know streams") as error:
            await anext(asked(world["a"]))
        assert isinstance(error.value, NotDelivered)
        assert inbox.seen == []


# --- every way out ----------------------------------------------------------------------------------------------


async def _break_with(stream: ReplyStream) -> None:
    async with stream:
        async for _ in stream:
            break


async def _break_without(stream: ReplyStream) -> None:
    async for _ in stream:
        break


async def _close(stream: ReplyStream) -> None:
    await anext(stream)
    await stream.aclose()
    await stream.aclose()
    assert [part async for part in stream] == []


async def _fail(stream: ReplyStream) -> None:
    with pytest.raises(ZeroDivisionError):
        async with stream:
            async for _ in stream:
                raise ZeroDivisionError


async def _cancel(stream: ReplyStream) -> None:
    async def read() -> None:
        async for _ in stream:
            pass

    await anext(stream)
    reading = asyncio.create_task(read())
    await asyncio.sleep(0.01)
    reading.cancel()
    await asyncio.wait([reading])
    assert reading.cancelled()


@PLACES
@pytest.mark.parametrize("leave", [_break_with, _break_without, _close, _fail, _cancel])
async def test_leaving_cancels_the_handler(place: str, leave: Callable[[ReplyStream], asyncio.Future[None]]) -> None:
    """Its ``finally`` runs, its place is free for the next, and nothing is left behind on either side."""
    clock = Clock()
    async with World() as world:
        world.agent(place, 7, clock, concurrency=1)
        for count in (1, 2):
            await leave(asked(world["a"]))
            gc.collect()
            await eventually(lambda count=count: len(clock.ended) == count)  # type: ignore[misc]
            await eventually(lambda: nothing_waits(world))
        assert clock.ended == ["CancelledError"] * 2
        assert world[place].counters["handlers_given_up"] == 2
        assert world["a"].statistics()["streams_given_up"] == 2


async def test_a_stream_that_was_never_read_asks_nobody() -> None:
    """Closing it is harmless."""
    counter = Counter()
    async with World() as world:
        world.agent("b", 7, counter)
        async with asked(world["a"]):
            pass
        await asyncio.sleep(0.01)
        assert counter.made == 0


async def test_one_reader_at_a_time() -> None:
    """The second is told; the first goes on."""
    clock = Clock()
    async with World() as world:
        world.agent("b", 7, clock)
        stream = asked(world["a"])
        await anext(stream)
        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        with pytest.raises(AgentError, match="already reads"):
            await anext(stream)
        assert not reading.done()
        reading.cancel()
        await asyncio.wait([reading])


# --- time -------------------------------------------------------------------------------------------------------


async def test_a_part_that_takes_too_long() -> None:
    """The stream is given up, and its handler cancelled."""
    clock = Clock()
    async with World() as world:
        world.agent("b", 7, clock)
        stream = asked(world["a"], idle_s=0.05)
        await anext(stream)
        with pytest.raises(RequestTimeout, match=r"no further part within 0.05 s"):
            await anext(stream)
        await eventually(lambda: clock.ended == ["CancelledError"])
        assert clock.left_s is None
        assert nothing_waits(world)


async def test_the_deadline_of_all_of_it_holds_on_both_sides() -> None:
    """It travels with the query: the handler knows it, and ends by itself when nobody can tell it to."""
    clock = Clock()
    async with World() as world:
        world.agent("b", 7, clock)
        stream = asked(world["a"], timeout_s=0.1)
        await anext(stream)
        assert clock.left_s is not None
        assert 0 < clock.left_s <= 0.11
        world.links["a", "b"].hold()
        with pytest.raises(RequestTimeout, match=r"did not end its stream within 0.1 s"):
            await anext(stream)
        await eventually(lambda: clock.ended == ["CancelledError"])
        assert world["b"].counters["handlers_expired"] == 1
        world.links["a", "b"].release()
        await eventually(lambda: nothing_waits(world))
        assert world["b"].counters["handlers_given_up"] == 0


# --- links and ends ---------------------------------------------------------------------------------------------


async def test_a_broken_link_ends_the_stream_on_both_sides() -> None:
    """What has come is read first; then there is a clear error; and the handler is cancelled."""
    clock, counter = Clock(), Counter()
    async with World() as world:
        world.agent("b", 7, clock)
        world.agent("b", 8, counter)
        waiting, ahead = asked(world["a"]), asked(world["a"], to=8)
        await anext(waiting)
        await anext(ahead)
        await eventually(lambda: counter.made == 1 + WINDOW_PARTS)
        assert not world["a"].hold_link(world.links["a", "b"])
        assert not world["b"].hold_link(world.links["b", "a"])
        reading = asyncio.ensure_future(anext(waiting))
        await asyncio.sleep(0.01)
        world.links["a", "b"].cut()
        with pytest.raises(DeliveryUncertain, match="link to b broke"):
            await reading
        for _ in range(WINDOW_PARTS):
            await anext(ahead)
        with pytest.raises(DeliveryUncertain, match="link to b broke"):
            await anext(ahead)
        await eventually(lambda: clock.ended == ["CancelledError"] and counter.ended == ["GeneratorExit"])
        assert nothing_waits(world)


async def test_leaving_the_network_ends_what_is_read() -> None:
    """The reader is told why."""
    async with World() as world:
        world.agent("b", 7, Clock())
        stream = asked(world["a"])
        await anext(stream)
        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        await world["a"].close()
        with pytest.raises(NetworkClosed):
            await reading


# --- peers that do not keep to it -------------------------------------------------------------------------------


def _respond(world: World, sequence: int, flags: int, count: int = 1) -> None:
    """B sends responses to a query of A's, as no courier would."""
    messages = [[900 + index, 3, 7, 1, flags, b"x", 0, sequence] for index in range(count)]
    body = encode_batch(1, 1, Priority.NORMAL, messages)
    world.links["b", "a"].send(Envelope(Kind.MESSAGES, 1, None, None, body), Lane.NORMAL)


async def test_parts_beyond_the_credit_break_the_link() -> None:
    """And nothing that such a peer sends is kept."""
    async with World() as world:
        world.agent("b", 7)
        stream = asked(world["a"])
        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.01)
        (sequence,) = world["a"]._replies
        _respond(world, sequence, FLAG_STREAM, INITIAL_PARTS + 1)
        await reading
        with pytest.raises(DeliveryUncertain):
            async for _ in stream:
                pass
        assert world.links["b", "a"].closed_as is None
        assert world.links["a", "b"].closed_as is CloseReason.PROTOCOL_ERROR


async def test_nobody_else_adds_to_a_stream() -> None:
    """Parts from another node, and parts of a stream that has ended, are dropped and counted."""
    async with World("a", "b", "c") as world:
        world.agent("b", 7)
        stream = asked(world["a"])
        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.01)
        (sequence,) = world["a"]._replies
        body = encode_batch(1, 1, Priority.NORMAL, [[1, 3, 7, 1, FLAG_STREAM, b"forged", 0, sequence]])
        world.links["c", "a"].send(Envelope(Kind.MESSAGES, 1, None, None, body), Lane.NORMAL)
        await eventually(lambda: world["a"].counters["dropped_late_response"] == 1)
        _respond(world, sequence, FLAG_END)
        with pytest.raises(StopAsyncIteration):
            await reading
        _respond(world, sequence, FLAG_STREAM)
        await eventually(lambda: world["a"].counters["dropped_late_response"] == 2)


async def test_a_stream_that_nobody_asked_for_breaks_the_link() -> None:
    """A plain request has one response."""
    async with World() as world:
        world.agent("b", 7)
        asking = asyncio.ensure_future(world["a"].request(query(7), timeout_s=5))
        await asyncio.sleep(0.01)
        (sequence,) = world["a"]._calls
        _respond(world, sequence, FLAG_STREAM)
        with pytest.raises(DeliveryUncertain):
            await asking
        assert world.links["a", "b"].closed_as is CloseReason.PROTOCOL_ERROR
