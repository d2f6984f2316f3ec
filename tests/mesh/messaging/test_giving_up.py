"""Requests whose asker waits no longer: by its deadline, which travels with them, or because it says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from couriers import World, echo, nothing_waits, query
from support import eventually

from mesh import remaining_s, without_deadline
from mesh.errors import RemoteError, RequestTimeout
from mesh.messaging.body import F_CORRELATION, decode_batch
from mesh.messaging.notices import NOTICES_MAX
from mesh.messaging.parcel import Parcel
from mesh.types import AgentMessage, MessageType
from transport.wire import Envelope, Kind

PLACES = pytest.mark.parametrize("place", ["b", "a"])


class Waiting:
    """A handler that waits until it is cancelled, or released."""

    def __init__(self) -> None:
        self.begun: list[bytes] = []
        self.cancelled: list[bytes] = []
        self.left_s: list[float | None] = []
        self.release = asyncio.Event()

    async def __call__(self, message: AgentMessage) -> bytes:
        self.begun.append(message.payload)
        self.left_s.append(remaining_s())
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.append(message.payload)
            raise
        return message.payload


def counted(world: World, place: str) -> dict[str, int]:
    """What a courier has counted of requests that nobody waited for."""
    names = ("dropped_expired", "dropped_given_up", "handlers_expired", "handlers_given_up", "requests_given_up")
    return {name: count for name in names if (count := world[place].counters[name])}


# --- what travels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [None, {"k": "v"}])
async def test_what_is_left_travels_with_the_query(headers: dict[str, str] | None) -> None:
    """As milliseconds, whether or not other fields follow; the handler sees it count down."""
    left_ms: list[int] = []
    waiting = Waiting()
    waiting.release.set()
    async with World() as world:
        world.agent("b", 7, waiting)
        receive = world["b"].envelopes_received

        def spy(link: object, envelopes: list[Envelope]) -> None:
            for envelope in envelopes:
                if envelope.kind == Kind.MESSAGES:
                    left_ms.extend(message[F_CORRELATION] for message in decode_batch(envelope.body).messages)
            receive(link, envelopes)  # type: ignore[arg-type]

        world["b"].envelopes_received = spy  # type: ignore[method-assign, assignment]
        parcel = Parcel(7, 1, MessageType.QUERY, b"x", query(7).priority, 8, 0, headers)
        assert await world["a"].request(parcel, timeout_s=2.5) == b"x"

    assert len(left_ms) == 1
    assert 2_400 < left_ms[0] <= 2_501
    (left_s,) = waiting.left_s
    assert left_s is not None
    assert 2 < left_s <= 2.501


async def test_a_query_without_a_deadline_has_none() -> None:
    """As from an older node, or sent as a message of its own: its handler takes its time."""
    waiting = Waiting()
    async with World() as world:
        world.agent("b", 7, waiting)
        await world["a"].send(query(7, b"x"), ack=True, timeout_s=1)
        await eventually(lambda: waiting.left_s == [None])
        waiting.release.set()


# --- deadlines --------------------------------------------------------------------------------------------------


@PLACES
async def test_a_handler_ends_with_its_askers_time(place: str) -> None:
    """Even when no word of the asker's comes through; and others go on."""
    waiting = Waiting()
    async with World() as world:
        world.agent(place, 7, waiting, concurrency=3)
        long = asyncio.ensure_future(world["a"].request(query(7, b"long"), timeout_s=5))
        short = asyncio.ensure_future(world["a"].request(query(7, b"short"), timeout_s=0.05))
        await eventually(lambda: len(waiting.begun) == 2)
        if place == "b":
            world.links["a", "b"].hold()
        with pytest.raises(RequestTimeout):
            await short
        await eventually(lambda: waiting.cancelled == [b"short"])
        if place == "b":
            assert counted(world, "b") == {"handlers_expired": 1}
            world.links["a", "b"].release()
        waiting.release.set()
        assert await long == b"long"
        assert nothing_waits(world)


async def test_what_waits_for_a_worker_too_long_is_dropped() -> None:
    """It never reaches the handler, is counted, and gives its credit back."""
    waiting = Waiting()
    async with World() as world:
        agent = world.agent("b", 7, waiting, concurrency=1)
        first = asyncio.ensure_future(world["a"].request(query(7, b"first"), timeout_s=5))
        await eventually(lambda: waiting.begun == [b"first"])
        late = asyncio.ensure_future(world["a"].request(query(7, b"late"), timeout_s=0.05))
        await eventually(lambda: agent.waiting == 1)
        world.links["a", "b"].hold()
        with pytest.raises(RequestTimeout):
            await late
        await asyncio.sleep(0.02)  # the receiver counts from a moment later
        waiting.release.set()
        assert await first == b"first"
        await eventually(lambda: agent.waiting == 0)
        assert waiting.begun == [b"first"]
        assert counted(world, "b") == {"dropped_expired": 1}
        assert world["b"]._dialogues["a"].incoming(7).window.waiting_bytes == 0


async def test_what_waits_in_an_inbox_too_long_is_passed_over() -> None:
    """Its reader sees the next one."""
    async with World("a", "b", "c") as world:
        agent = world.agent("b", 7)
        late = asyncio.ensure_future(world["a"].request(query(7, b"late"), timeout_s=0.05))
        await eventually(lambda: agent.waiting == 1)
        world.links["a", "b"].hold()
        with pytest.raises(RequestTimeout):
            await late
        await asyncio.sleep(0.02)  # the receiver counts from a moment later
        asking = asyncio.ensure_future(world["c"].request(query(7, b"next"), timeout_s=5))
        message = await anext(agent.messages())
        assert message.payload == b"next"
        assert counted(world, "b") == {"dropped_expired": 1}
        assert world["b"]._dialogues["a"].incoming(7).window.waiting_bytes == 0
        asking.cancel()
        await asyncio.wait([asking])


# --- giving up --------------------------------------------------------------------------------------------------


@PLACES
async def test_cancelling_the_asker_cancels_the_handler(place: str) -> None:
    """Its worker goes on with the next."""
    waiting = Waiting()
    async with World() as world:
        world.agent(place, 7, waiting, concurrency=1)
        for count in (1, 2, 3):
            asking = asyncio.ensure_future(world["a"].request(query(7, b"%d" % count), timeout_s=5))
            await eventually(lambda count=count: len(waiting.begun) == count)  # type: ignore[misc]
            asking.cancel()
            await asyncio.wait([asking])
            assert asking.cancelled()
            await eventually(lambda count=count: len(waiting.cancelled) == count)  # type: ignore[misc]
        expected = {"handlers_given_up": 3, "requests_given_up": 3}
        assert {**counted(world, "a"), **counted(world, place)} == expected
        waiting.release.set()
        assert await world["a"].request(query(7, b"last"), timeout_s=5) == b"last"
        assert world["b"].counters["handler_errors"] == 0
        assert nothing_waits(world)


async def test_what_waits_for_a_worker_is_taken_back() -> None:
    """It is gone at once, with its credit; what others asked stays."""
    waiting = Waiting()
    async with World() as world:
        agent = world.agent("b", 7, waiting, concurrency=1)
        first = asyncio.ensure_future(world["a"].request(query(7, b"first"), timeout_s=5))
        await eventually(lambda: waiting.begun == [b"first"])
        window = world["b"]._dialogues["a"].incoming(7).window
        many = [asyncio.ensure_future(world["a"].request(query(7, b"%d" % n), timeout_s=5)) for n in range(500)]
        await eventually(lambda: agent.waiting == 500)
        for number, asking in enumerate(many):
            if number % 100:
                asking.cancel()
        await eventually(lambda: agent.waiting == 5)
        assert window.waiting_bytes < 5 * 100
        assert len(agent._lanes) < 200
        waiting.release.set()
        assert await first == b"first"
        answers = [await asking for number, asking in enumerate(many) if not number % 100]
        assert answers == [b"0", b"100", b"200", b"300", b"400"]
        assert waiting.begun == [b"first", *answers]
        assert counted(world, "b") == {"dropped_given_up": 495}
        assert agent._lanes == {}
        await asyncio.wait(many)


async def test_very_many_are_given_up_at_once() -> None:
    """More than one notice holds."""
    async with World() as world:
        agent = world.agent("b", 7)
        many = [asyncio.ensure_future(world["a"].request(query(7), timeout_s=5)) for _ in range(2 * NOTICES_MAX + 1)]
        await eventually(lambda: agent.waiting > NOTICES_MAX // 2)
        for asking in many:
            asking.cancel()
        await asyncio.wait(many)
        assert world["a"].counters["requests_given_up"] > NOTICES_MAX // 2
        await eventually(lambda: counted(world, "b").get("dropped_given_up") == agent.waiting)
        assert agent._asked == {}


async def test_what_waits_in_an_inbox_is_taken_back() -> None:
    """The reader passes it over."""
    async with World() as world:
        agent = world.agent("b", 7)
        lost = asyncio.ensure_future(world["a"].request(query(7, b"lost"), timeout_s=5))
        kept = asyncio.ensure_future(world["a"].request(query(7, b"kept"), timeout_s=5))
        await eventually(lambda: agent.waiting == 2)
        lost.cancel()
        await eventually(lambda: counted(world, "b") == {"dropped_given_up": 1})
        message = await anext(agent.messages())
        assert message.payload == b"kept"
        assert agent.waiting == 0
        assert agent._asked == {}
        kept.cancel()
        await asyncio.wait([lost, kept])


async def test_who_gives_up_before_it_was_sent_overtakes_nothing() -> None:
    """The notice stays behind its query, on a link that has no room for either."""
    waiting = Waiting()
    async with World(capacity=1) as world:
        agent = world.agent("b", 7, waiting)
        link = world.links["a", "b"]
        link.hold()
        asking = [asyncio.ensure_future(world["a"].request(query(7, bytes(60_000)), timeout_s=5)) for _ in range(3)]
        await asyncio.sleep(0.01)
        for one in asking:
            one.cancel()
        await asyncio.wait(asking)
        link.release()
        await eventually(lambda: sum(counted(world, "b").values()) + 2 >= len(waiting.begun))
        await eventually(lambda: nothing_waits(world) and agent.waiting == 0)
        assert len(waiting.cancelled) == len(waiting.begun)


@pytest.mark.parametrize("outcome", ["returns", "raises", "cleans up"])
async def test_a_handler_may_end_otherwise(outcome: str) -> None:
    """It may swallow its cancellation, or fail at it; nobody is answered, and its place is free."""
    begun: list[None] = []

    async def handle(_: AgentMessage) -> bytes:
        begun.append(None)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if outcome == "raises":
                raise ValueError("cannot stop") from None
            if outcome == "cleans up":
                await asyncio.sleep(0.01)
                raise
        return b"too late"

    async with World() as world:
        agent = world.agent("b", 7, handle, concurrency=1)
        for count in (1, 2):
            asking = asyncio.ensure_future(world["a"].request(query(7), timeout_s=5))
            await eventually(lambda count=count: len(begun) == count)  # type: ignore[misc]
            asking.cancel()
            await asyncio.wait([asking])
        await eventually(lambda: not agent._underway and agent._workers == 0)
        assert world["b"].counters["handler_errors"] == (2 if outcome == "raises" else 0)
        await eventually(lambda: world["a"].counters["dropped_late_response"] == (2 if outcome == "raises" else 0))


async def test_another_node_cannot_give_up_for_the_asker() -> None:
    """Only the link that the query came over counts."""
    waiting = Waiting()
    async with World("a", "b", "c") as world:
        agent = world.agent("b", 7, waiting)
        asking = asyncio.ensure_future(world["a"].request(query(7, b"x"), timeout_s=5))
        await eventually(lambda: waiting.begun == [b"x"])
        (sequence,) = world["a"]._calls
        agent.give_up(("a", 1, sequence), world["b"]._dialogues["c"])
        waiting.release.set()
        assert await asking == b"x"
        assert counted(world, "b") == {}


async def test_stopping_an_agent_is_no_giving_up() -> None:
    """A handler that is being cut when its agent is stopped ends with it."""
    waiting = Waiting()
    async with World() as world:
        agent = world.agent("b", 7, waiting)
        asking = asyncio.ensure_future(world["a"].request(query(7, b"x"), timeout_s=5))
        await eventually(lambda: waiting.begun == [b"x"])
        (work,) = agent._underway.values()
        work.cut()
        await world.remove(agent)
        with pytest.raises(RemoteError, match="stopped"):
            await asking


# --- requests inside handlers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["directly", "in a task"])
async def test_a_nested_request_ends_with_the_outer_one(how: str) -> None:
    """A asks B, whose handler asks C with all the time in the world: C's handler ends with A's patience."""
    waiting = Waiting()
    async with World("a", "b", "c") as world:

        async def ask_on(message: AgentMessage) -> bytes:
            asking: Awaitable[bytes] = world["b"].request(query(8, message.payload, from_agent=7), timeout_s=60)
            return await (asyncio.ensure_future(asking) if how == "in a task" else asking)

        world.agent("b", 7, ask_on)
        world.agent("c", 8, waiting)
        with pytest.raises(RequestTimeout):
            await world["a"].request(query(7, b"x"), timeout_s=0.1)
        await eventually(lambda: waiting.cancelled == [b"x"])
        (left_s,) = waiting.left_s
        assert left_s is not None
        assert left_s <= 0.11
        await eventually(lambda: nothing_waits(world))


async def test_work_that_is_left_behind_may_take_its_own_time() -> None:
    """Without the deadline, in a task that outlives the handler."""
    waiting = Waiting()
    left: list[asyncio.Task[bytes]] = []
    async with World("a", "b", "c") as world:

        async def hand_on(message: AgentMessage) -> bytes:
            with without_deadline():
                asking = world["b"].request(query(8, message.payload, from_agent=7), timeout_s=60)
                left.append(asyncio.create_task(asking))
            return b"begun"

        world.agent("b", 7, hand_on)
        world.agent("c", 8, waiting)
        assert await world["a"].request(query(7, b"x"), timeout_s=0.1) == b"begun"
        await eventually(lambda: waiting.begun == [b"x"])
        (left_s,) = waiting.left_s
        assert left_s is not None
        assert left_s > 50
        waiting.release.set()
        assert await left[0] == b"x"


@pytest.mark.parametrize("suspends", [False, True])
async def test_a_deadline_stays_with_its_own_request(suspends: bool) -> None:
    """One worker handles many messages, and starts others: each has the time of its own asker, or none."""
    seen: dict[bytes, float | None] = {}

    async def handle(message: AgentMessage) -> bytes:
        seen[message.payload] = remaining_s()
        if suspends:
            await asyncio.sleep(0)
        return message.payload

    async with World() as world:
        world.agent("b", 7, handle, concurrency=2)
        a = world["a"]
        asking: list[Callable[[], Awaitable[object]]] = [
            lambda: a.request(query(7, b"hundred"), timeout_s=100),
            lambda: a.send(query(7, b"none")._replace(kind=MessageType.COMMAND), ack=True, timeout_s=5),
            lambda: a.request(query(7, b"ten"), timeout_s=10),
            lambda: a.send(query(7, b"again none"), ack=True, timeout_s=5),
        ]
        await asyncio.gather(*(ask() for ask in asking))
        await eventually(lambda: len(seen) == 4)
        assert seen[b"hundred"] == pytest.approx(100, abs=2)
        assert seen[b"ten"] == pytest.approx(10, abs=2)
        assert seen[b"none"] is None
        assert seen[b"again none"] is None


async def test_quick_handlers_never_notice() -> None:
    """A thousand requests with deadlines, answered at once: nothing expires, nothing is given up."""
    async with World() as world:
        world.agent("b", 7, echo)
        asking = [world["a"].request(query(7, b"%d" % number), timeout_s=30) for number in range(1_000)]
        assert await asyncio.gather(*asking) == [b"%d" % number for number in range(1_000)]
        assert counted(world, "a") == counted(world, "b") == {}
