"""Answers in parts, at the side that gives them: what handlers may do, credit, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from couriers import World, command, echo, nothing_waits, query
from streamers import PLACES, Clock, Counter, asked, numbers
from support import eventually

from mesh.agents import Handler
from mesh.errors import (
    DeliveryUncertain,
    RemoteError,
    StreamExpected,
)
from mesh.messaging.body import FLAG_STREAM, encode_batch
from mesh.messaging.notices import Credit, GivenUp, Notices, encode_notices
from mesh.messaging.streams import INITIAL_PARTS, WINDOW_PARTS
from mesh.types import AgentMessage, MessageType, Priority
from transport.types import Lane
from transport.wire import Envelope, Kind


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


async def test_who_does_not_read_keeps_no_place_that_others_want(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as nobody wants it, a stream waits for its reader for ever; then the reader is told, behind the parts."""
    monkeypatch.setattr("mesh.messaging.answers.STALL_S", 0.02)
    counter = Counter()
    async with World("a", "b", "c") as world:
        agent = world.agent("b", 7, counter, concurrency=1)
        stream = asked(world["a"])
        await anext(stream)
        await eventually(lambda: counter.made == 1 + WINDOW_PARTS)
        for _ in range(5):
            await asyncio.sleep(0.02)
        assert counter.ended == []

        other = asked(world["c"])
        assert numbers([await anext(other)]) == [2 + WINDOW_PARTS]
        assert counter.ended == ["GeneratorExit"]
        await other.aclose()
        assert world["b"].counters["streams_stalled"] == 1
        for _ in range(WINDOW_PARTS):
            await anext(stream)
        with pytest.raises(RemoteError, match="was not read for"):
            await anext(stream)
        await eventually(lambda: agent._workers == 0)
        assert nothing_waits(world)


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


async def test_a_handler_between_two_parts_is_closed() -> None:
    """One that waits for credit has not been asked for a part: it sees the end where it last yielded."""
    counter = Counter()
    async with World() as world:
        world.agent("b", 7, counter)
        async with asked(world["a"]) as stream:
            await anext(stream)
            await eventually(lambda: counter.made == 1 + WINDOW_PARTS)
        await eventually(lambda: counter.ended == ["GeneratorExit"])


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


async def test_a_sequence_that_is_used_twice_makes_one_stream() -> None:
    """The other is closed; the link's end ends the one."""
    counter = Counter()
    async with World() as world:
        agent = world.agent("b", 7, counter)
        messages = [[1, int(MessageType.QUERY), sender, 7, FLAG_STREAM, b"", 0] for sender in (1, 2)]
        body = encode_batch(1, 1, Priority.NORMAL, messages)
        world.links["a", "b"].send(Envelope(Kind.MESSAGES, 1, None, None, body), Lane.NORMAL)
        await eventually(lambda: counter.made == INITIAL_PARTS)
        assert len(world["b"]._answers) == agent._workers == 1
        world.links["a", "b"].cut()
        await eventually(lambda: counter.ended == ["GeneratorExit"])
        assert world["b"]._answers == {}


async def test_credit_for_nothing_is_harmless() -> None:
    """It may come late, or be made up; so may what is given up."""
    async with World() as world:
        world.agent("b", 7, echo)
        body = encode_notices(Notices([GivenUp(1, 2, 7), GivenUp(1, 2, 99)], [Credit(1, 2, 3)]))
        world.links["a", "b"].send(Envelope(Kind.CALLS, 1, None, None, body), Lane.NORMAL)
        assert await world["a"].request(query(7, b"x"), timeout_s=5) == b"x"
