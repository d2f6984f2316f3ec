"""Answers in parts, between couriers: order, credit, errors, and every way in which a stream ends early."""

from __future__ import annotations

import asyncio
import gc
import math
from collections.abc import AsyncIterator, Callable

import pytest
from couriers import Inbox, World, command, echo, nothing_waits, query
from support import eventually

from mesh import remaining_s
from mesh.agents import Handler
from mesh.errors import (
    AgentError,
    DeliveryUncertain,
    NetworkClosed,
    NotDelivered,
    RemoteError,
    RequestTimeout,
    StreamExpected,
    StreamsUnsupported,
    UnknownAgent,
)
from mesh.messaging.body import FLAG_END, FLAG_STREAM, encode_batch
from mesh.messaging.courier import Courier
from mesh.messaging.notices import Credit, GivenUp, Notices, encode_notices
from mesh.messaging.replies import ReplyStream
from mesh.messaging.streams import INITIAL_PARTS, WINDOW_BYTES, WINDOW_PARTS
from mesh.types import AgentMessage, Priority
from transport.link import CloseReason
from transport.types import Lane
from transport.wire import Envelope, Kind

#: Where an asker's agent may be: on another node, or on the asker's own.
PLACES = pytest.mark.parametrize("place", ["b", "a"])


class Counter:
    """A handler that counts up to a number, and says how far it came and how it ended."""

    def __init__(self, upto: float = math.inf, *, size: int = 1, then: Exception | None = None) -> None:
        self.upto = upto
        self.size = size
        self.then = then
        self.made = 0
        self.ended: list[str] = []

    async def __call__(self, _: AgentMessage) -> AsyncIterator[bytes]:
        try:
            while self.made < self.upto:
                self.made += 1
                yield b"%d" % self.made + bytes(self.size)
            if self.then is not None:
                raise self.then
            self.ended.append("done")
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise


class Clock:
    """A handler that yields once and then waits, for whoever ends it."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.left_s: float | None = None

    async def __call__(self, _: AgentMessage) -> AsyncIterator[bytes]:
        self.left_s = remaining_s()
        try:
            yield b"tick"
            await asyncio.Event().wait()
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise


def asked(courier: Courier, *, idle_s: float = 1.0, timeout_s: float = math.inf, to: int = 7) -> ReplyStream:
    """A stream of agent 7."""
    return courier.stream(query(to), idle_s=idle_s, timeout_s=timeout_s)


def numbers(parts: list[bytes]) -> list[int]:
    """What a :class:`Counter` counted."""
    return [int(part.rstrip(b"\0")) for part in parts]


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


async def _list(message: AgentMessage) -> AsyncIterator[bytes]:
    async def parts() -> AsyncIterator[bytes]:
        for part in message.payload.split():
            yield part

    await asyncio.sleep(0)
    return parts()


class _Plain:
    """An asynchronous iterator that is no generator and has no ``aclose``."""

    def __init__(self, message: AgentMessage) -> None:
        self.left = message.payload.split()

    def __aiter__(self) -> _Plain:
        return self

    async def __anext__(self) -> bytes:
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop(0)


@pytest.mark.parametrize("handler", [_list, _Plain])
async def test_whatever_iterates_is_a_stream(handler: Handler) -> None:
    """A coroutine that returns an iterator, and a call that returns one."""
    async with World() as world:
        world.agent("b", 7, handler)
        stream = world["a"].stream(query(7, b"one two three"), idle_s=5, timeout_s=5)
        assert [part async for part in stream] == [b"one", b"two", b"three"]
        assert [part async for part in stream] == []


@pytest.mark.parametrize("payload", [b"", b"answer"])
async def test_a_plain_handler_makes_a_stream_of_one_part(payload: bytes) -> None:
    """Its response."""
    async with World() as world:
        world.agent("b", 7, echo)
        stream = world["a"].stream(query(7, payload), idle_s=5, timeout_s=5)
        assert [part async for part in stream] == [payload]
        assert nothing_waits(world)


@PLACES
async def test_a_request_to_a_handler_that_streams_says_so(place: str) -> None:
    """Nothing of the stream is run."""
    counter = Counter(3)
    async with World() as world:
        world.agent(place, 7, counter)
        with pytest.raises(StreamExpected, match="agent 7 answers with a stream"):
            await world["a"].request(query(7), timeout_s=5)
        assert counter.made == 0
        assert counter.ended == []


async def test_what_is_yielded_to_nobody_is_dropped() -> None:
    """A command runs the generator to its end all the same."""
    counter = Counter(50)
    async with World() as world:
        world.agent("b", 7, counter)
        await world["a"].send(command(7), ack=True, timeout_s=5)
        await eventually(lambda: counter.ended == ["done"])
        assert counter.made == 50


# --- flow control -----------------------------------------------------------------------------------------------


@PLACES
async def test_a_slow_reader_stops_its_own_stream_only(place: str) -> None:
    """The handler is a window ahead at most, counted in parts; others' requests and streams pass."""
    slow, other = Counter(), Counter(500)
    async with World() as world:
        world.agent(place, 7, slow)
        world.agent(place, 8, other)
        async with asked(world["a"]) as stream:
            await anext(stream)
            await eventually(lambda: slow.made == 1 + WINDOW_PARTS)
            assert len([part async for part in asked(world["a"], to=8)]) == 500
            assert slow.made == 1 + WINDOW_PARTS
            for _ in range(WINDOW_PARTS):
                await anext(stream)
            await eventually(lambda: slow.made > 1 + WINDOW_PARTS)
        await eventually(lambda: slow.ended != [])


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


async def test_a_handler_waits_for_a_link_without_room() -> None:
    """What it made is not lost."""
    counter = Counter(12, size=60_000)
    async with World(capacity=1) as world:
        world.agent("b", 7, counter)
        stream = asked(world["a"])
        first = await anext(stream)
        link = world.links["b", "a"]
        link.hold()
        await asyncio.sleep(0.02)
        assert counter.made < 12
        link.release()
        assert len(first) > 60_000
        assert numbers([part async for part in stream]) == list(range(2, 13))


# --- errors -----------------------------------------------------------------------------------------------------


@PLACES
@pytest.mark.parametrize("priority", list(Priority))
async def test_an_error_comes_behind_the_parts(place: str, priority: Priority) -> None:
    """At every priority, because it takes the same lane; after it the stream is over."""
    counter = Counter(100, then=ValueError("no more"))
    async with World() as world:
        world.agent(place, 7, counter)
        stream = world["a"].stream(query(7)._replace(priority=priority), idle_s=5, timeout_s=5)
        parts = []
        with pytest.raises(RemoteError, match="ValueError: no more") as error:
            async for part in stream:
                parts.append(part)  # noqa: PERF401 - those before the error
        assert numbers(parts) == list(range(1, 101))
        assert error.value.kind == "ValueError"
        assert [part async for part in stream] == []
        assert world[place].counters["handler_errors"] == 1
        await eventually(lambda: nothing_waits(world))


async def test_a_handler_that_cancels_itself_has_failed() -> None:
    """Its asker hears of it, and the agent goes on."""

    async def handle(_: AgentMessage) -> AsyncIterator[bytes]:
        yield b"one"
        raise asyncio.CancelledError

    async with World() as world:
        world.agent("b", 7, handle, concurrency=1)
        for _ in range(2):
            stream = asked(world["a"])
            assert await anext(stream) == b"one"
            with pytest.raises(RemoteError, match="CancelledError"):
                await anext(stream)


@pytest.mark.parametrize("bad", ["text", bytes(1 << 20)])
async def test_a_part_that_cannot_be_sent_ends_the_stream(bad: object) -> None:
    """The handler is closed, and the asker is told what was wrong."""
    ended = []

    async def handle(_: AgentMessage) -> AsyncIterator[bytes]:
        try:
            yield b"good"
            yield bad  # type: ignore[misc]
        finally:
            ended.append(True)

    async with World() as world:
        world.agent("b", 7, handle)
        stream = asked(world["a"])
        assert await anext(stream) == b"good"
        with pytest.raises(RemoteError, match=r"not bytes|carries at most"):
            await anext(stream)
        await eventually(lambda: ended == [True])


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


async def test_a_handler_between_two_parts_is_closed() -> None:
    """One that waits for credit has not been asked for a part: it sees the end where it last yielded."""
    counter = Counter()
    async with World() as world:
        world.agent("b", 7, counter)
        async with asked(world["a"]) as stream:
            await anext(stream)
            await eventually(lambda: counter.made == 1 + WINDOW_PARTS)
        await eventually(lambda: counter.ended == ["GeneratorExit"])


async def test_a_stream_that_was_never_read_asks_nobody() -> None:
    """Closing it is harmless."""
    counter = Counter()
    async with World() as world:
        world.agent("b", 7, counter)
        async with asked(world["a"]):
            pass
        await asyncio.sleep(0.01)
        assert counter.made == 0


async def test_a_handler_may_not_refuse_to_end() -> None:
    """One that takes the cancellation for nothing is closed at its next part; one that fails at closing is logged."""
    ended = []

    async def stubborn(_: AgentMessage) -> AsyncIterator[bytes]:
        yield b"one"
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
        try:
            yield b"two"
        finally:
            ended.append("stubborn")
            raise ValueError("cannot even close")

    async def silent(_: AgentMessage) -> AsyncIterator[bytes]:
        yield b"one"
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("silent")

    async with World() as world:
        world.agent("b", 7, stubborn, concurrency=1)
        world.agent("b", 8, silent, concurrency=1)
        for to in (7, 8, 7, 8):
            async with asked(world["a"], to=to) as stream:
                assert await anext(stream) == b"one"
        await eventually(lambda: sorted(ended) == ["silent"] * 2 + ["stubborn"] * 2)
        assert world["a"].counters["dropped_late_response"] == 0


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


async def test_a_stream_that_finds_its_link_gone_is_not_begun() -> None:
    """Its asker waits no longer."""
    counter, release = Counter(), asyncio.Event()

    async def handle(message: AgentMessage) -> AsyncIterator[bytes]:
        await release.wait()
        return counter(message)

    async with World() as world:
        world.agent("b", 7, handle)
        reading = asyncio.ensure_future(anext(asked(world["a"])))
        await asyncio.sleep(0.01)
        world.links["a", "b"].cut()
        with pytest.raises(DeliveryUncertain):
            await reading
        release.set()
        await eventually(lambda: world["b"].counters["dropped_no_link"] == 1)
        assert counter.made == 0


async def test_an_agent_that_is_stopped_ends_its_streams() -> None:
    """The asker is told, behind the parts that came before."""
    clock = Clock()
    async with World() as world:
        agent = world.agent("b", 7, clock)
        stream = asked(world["a"])
        await anext(stream)
        await world.remove(agent)
        with pytest.raises(RemoteError, match="stopped in the middle of its stream"):
            await anext(stream)
        assert clock.ended == ["CancelledError"]


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


async def test_credit_for_nothing_is_harmless() -> None:
    """It may come late, or be made up; so may what is given up."""
    async with World() as world:
        world.agent("b", 7, echo)
        body = encode_notices(Notices([GivenUp(1, 2, 7), GivenUp(1, 2, 99)], [Credit(1, 2, 3)]))
        world.links["a", "b"].send(Envelope(Kind.CALLS, 1, None, None, body), Lane.NORMAL)
        assert await world["a"].request(query(7, b"x"), timeout_s=5) == b"x"
