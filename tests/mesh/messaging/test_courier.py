"""Couriers linked in memory: order, credit, acknowledgements, requests, and a storm of all of it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict

import pytest
from couriers import FakeLink, Inbox, World, command, echo, ignore, nothing_waits, query
from hypothesis import given
from hypothesis import strategies as st
from support import eventually

from mesh.agents import LocalAgent
from mesh.errors import (
    DeliveryTimeout,
    DeliveryUncertain,
    NotDelivered,
    RemoteError,
    RequestTimeout,
    UnknownAgent,
)
from mesh.messaging import body as m
from mesh.messaging.courier import BURST_BYTES
from mesh.messaging.flow import INITIAL_WINDOW_BYTES
from mesh.messaging.parcel import Parcel
from mesh.types import AgentMessage, DeliveryStatus, MessageType, Priority
from transport.wire import Envelope, Kind

PLACES = ["here", "there"]  # an agent on the sender's own node, and on another


def _node_of(place: str) -> str:
    return {"here": "a", "there": "b"}[place]


# --- one way ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
async def test_a_message_arrives_as_it_was_sent(place: str) -> None:
    """Every field arrives, and the receipt names the id under which the receiver knows the message."""
    inbox = Inbox()
    async with World() as world:
        world.agent(_node_of(place), 7, inbox)
        parcel = Parcel(7, 42, MessageType.STATE_SYNC, b"x", Priority.HIGH, 5, 1_234, {"k": "v"}, "group")

        receipt = await world["a"].send(parcel, ack=False, timeout_s=1)
        await eventually(lambda: inbox.seen)

        (seen,) = inbox.seen
        assert seen == AgentMessage(
            42, 7, MessageType.STATE_SYNC, b"x", receipt.message_id, 1_234, 5, Priority.HIGH, "group", {"k": "v"}, "a"
        )
        assert (receipt.status, receipt.node_id) == (DeliveryStatus.SENT, _node_of(place))


async def test_a_message_without_a_time_is_stamped_when_it_leaves() -> None:
    """Timestamp 0 means now, by the sender's clock."""
    inbox = Inbox()
    async with World() as world:
        world.agent("b", 7, inbox)
        await world["a"].send(command(7), ack=False, timeout_s=1)
        parcel = command(7, headers={"k": "v"})._replace(group=None)
        await world["a"].send(parcel, ack=False, timeout_s=1)
        await world["a"].send(command(7)._replace(group="g"), ack=False, timeout_s=1)
        await eventually(lambda: len(inbox.seen) == 3)

        assert [seen.timestamp for seen in inbox.seen] == [1_700_000_000_000] * 3
        assert [(seen.headers, seen.group) for seen in inbox.seen] == [({}, None), ({"k": "v"}, None), ({}, "g")]


@pytest.mark.parametrize("place", PLACES)
async def test_an_acknowledged_message_is_with_its_agent(place: str) -> None:
    """With ack, send returns after the handler was called."""
    inbox = Inbox()
    async with World() as world:
        world.agent(_node_of(place), 7, inbox)

        receipt = await world["a"].send(command(7, b"x"), ack=True, timeout_s=1)

        assert receipt.status is DeliveryStatus.DELIVERED
        assert inbox.payloads == [b"x"]
        assert nothing_waits(world)


async def test_a_message_in_an_inbox_is_acknowledged() -> None:
    """For an agent without a handler, delivered means: it is in its inbox; it is not acknowledged again when read."""
    async with World() as world:
        agent = world.agent("b", 7)
        await world["a"].send(command(7, b"x"), ack=True, timeout_s=1)

        assert agent.waiting == 1
        assert (await anext(agent.messages())).payload == b"x"
        assert agent.waiting == 0


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("suspends", [False, True])
async def test_order_per_sender_is_kept(place: str, suspends: bool) -> None:
    """Messages of one sender are handled one after the other, in order; also when handlers suspend at random."""
    rng = random.Random(7)
    seen: dict[int, list[int]] = defaultdict(list)
    busy: set[int] = set()

    async def handle(message: AgentMessage) -> None:
        assert message.from_agent not in busy
        busy.add(message.from_agent)
        if suspends:
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
        busy.discard(message.from_agent)
        seen[message.from_agent].append(int(message.payload))

    async with World() as world:
        world.agent(_node_of(place), 7, handle, concurrency=4)

        async def sender(agent_id: int) -> None:
            for number in range(200):
                parcel = command(7, b"%d" % number, from_agent=agent_id, ttl=rng.randrange(1, 9))
                await world["a"].send(parcel, ack=number % 50 == 49, timeout_s=5)

        await asyncio.gather(*(sender(agent_id) for agent_id in range(1, 11)))
        await eventually(lambda: sum(map(len, seen.values())) == 2_000)

    assert all(numbers == list(range(200)) for numbers in seen.values())


async def test_a_sender_in_a_loop_gives_way() -> None:
    """Somebody who sends without pause lets the loop run every so many bytes."""
    inbox = Inbox()
    async with World(window_bytes=1 << 24) as world:
        world.agent("b", 7, inbox)
        await world["a"].send(command(7), ack=True, timeout_s=1)  # so that credit is no reason to wait
        turns = 0

        async def count_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counter = asyncio.ensure_future(count_turns())
        for _ in range(40):
            await world["a"].send(command(7, bytes(BURST_BYTES // 4)), ack=False, timeout_s=1)
        counter.cancel()

        assert turns >= 8  # one for each burst of four


async def test_sending_without_waiting() -> None:
    """try_send sends when nothing need be waited for, and otherwise changes nothing."""
    inbox = Inbox()
    async with World() as world:
        world.agent("b", 7, inbox)
        courier = world["a"]
        assert courier.try_send(7, 1, b"no way known yet", Priority.NORMAL, 8) is None
        await courier.send(command(7, b"first"), ack=True, timeout_s=1)
        receipt = courier.try_send(7, 1, bytes(2 * BURST_BYTES), Priority.NORMAL, 8, {"kind": "bulk"})
        assert receipt is not None
        over = courier.burst_is_over
        await eventually(lambda: len(inbox.seen) == 2)

        assert receipt.message_id == inbox.seen[1].message_id
        assert inbox.seen[1].headers == {"kind": "bulk"}
        assert (over, courier.burst_is_over) == (True, False)
        world.agent("b", 8)
        await courier.send(command(8, bytes(2 * INITIAL_WINDOW_BYTES)), ack=True, timeout_s=1)
        assert courier.try_send(8, 1, b"", Priority.NORMAL, 8) is None


async def test_the_largest_message_arrives() -> None:
    """A payload of the largest size passes, behind small ones, though it is larger than the first window."""
    inbox = Inbox()
    async with World(window_bytes=0) as world:
        world.agent("b", 7, inbox)
        for payload in (b"1", bytes(m.PAYLOAD_BYTES_MAX), b"2", bytes(m.PAYLOAD_BYTES_MAX), b"3"):
            await world["a"].send(command(7, payload), ack=False, timeout_s=5)
        await eventually(lambda: len(inbox.seen) == 5)

        assert [len(payload) for payload in inbox.payloads] == [1, m.PAYLOAD_BYTES_MAX, 1, m.PAYLOAD_BYTES_MAX, 1]


# --- credit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
async def test_a_slow_agent_stops_its_senders_and_nobody_else(place: str) -> None:
    """Who sends to an agent that does not take waits, and times out; others' messages and queries pass meanwhile."""
    inbox = Inbox()
    async with World() as world:
        slow = world.agent(_node_of(place), 7)  # nobody reads its inbox
        world.agent(_node_of(place), 8, inbox)
        world.agent("a", 9, inbox)
        sent = 0
        with pytest.raises(NotDelivered, match="too slowly") as refused:
            while True:
                await world["a"].send(command(7, bytes(1_000)), ack=False, timeout_s=0.05)
                sent += 1
        assert refused.value.hint
        assert sent * 1_064 <= INITIAL_WINDOW_BYTES + 1_064
        assert slow.waiting == sent

        for number in range(300):
            await world["a"].send(command(8, b"%d" % number), ack=True, timeout_s=1)
        await world["b"].send(command(9, b"back"), ack=True, timeout_s=1)
        assert len(inbox.seen) == 301
        assert nothing_waits(world)


async def test_a_waiting_sender_goes_on_when_the_agent_does() -> None:
    """Credit comes back as the agent takes messages, and everything arrives in order."""
    async with World(window_bytes=0) as world:
        agent = world.agent("b", 7)

        async def send_all() -> None:
            for number in range(500):
                await world["a"].send(command(7, b"%d" % number + bytes(500)), ack=False, timeout_s=5)

        sending = asyncio.ensure_future(send_all())
        reader = agent.messages()
        for number in range(500):
            assert (await anext(reader)).payload.rstrip(b"\0") == b"%d" % number
        await sending


async def test_headers_are_paid_for() -> None:
    """A message is weighed with its headers, alike at both ends: none is refused, and what waits is bounded."""
    headers = {str(i): "x" * 1_000 for i in range(40)}
    async with World() as world:
        agent = world.agent("b", 7)
        with pytest.raises(NotDelivered):
            while True:
                await world["a"].send(command(7, headers=headers), ack=False, timeout_s=0.05)
        assert agent.waiting == 2
        reader = agent.messages()
        for _ in range(2):
            assert (await anext(reader)).headers == headers
        await world["a"].send(command(7, headers=headers), ack=True, timeout_s=1)


async def test_a_sender_beyond_its_credit_is_cut_off() -> None:
    """A peer that ignores its limit loses its link."""
    async with World() as world:
        world.agent("b", 7)
        link = world.links["b", "a"]
        batch = m.encode_batch(1, 1, Priority.NORMAL, [[i, 1, 1, 7, 0, bytes(40_000), 0] for i in range(3)])
        link.receive([Envelope(Kind.MESSAGES, 1, None, None, batch)])

        assert link.refusal is not None
        assert not link.is_open


# --- nobody there -----------------------------------------------------------------------------------------------


async def test_an_unknown_agent_is_waited_for() -> None:
    """A message to an agent that nobody runs waits for one to appear."""
    async with World() as world:
        sending = asyncio.ensure_future(world["a"].send(command(7), ack=True, timeout_s=5))
        await asyncio.sleep(0)
        world.agent("b", 7, echo)

        assert (await sending).node_id == "b"
        assert nothing_waits(world)


async def test_an_unknown_agent_is_reported() -> None:
    """When none appears in time, the error says so, for sends and requests, and nothing is left behind."""
    async with World() as world:
        with pytest.raises(UnknownAgent, match="agent 7"):
            await world["a"].send(command(7), ack=False, timeout_s=0.01)
        with pytest.raises(UnknownAgent, match="agent 7"):
            await world["a"].request(query(7), timeout_s=0)
        assert nothing_waits(world)


async def test_an_agent_without_link_is_reported() -> None:
    """The agent is known, but its node is not linked: that is said, and a link that comes in time is used."""
    async with World() as world:
        world.agent("b", 7, echo)
        world.links["a", "b"].cut()
        with pytest.raises(NotDelivered, match="no link"):
            await world["a"].send(command(7), ack=False, timeout_s=0.01)

        asking = asyncio.ensure_future(world["a"].request(query(7, b"x"), timeout_s=5))
        await asyncio.sleep(0)
        world.link("a", "b")
        assert await asking == b"x"


async def test_a_message_to_an_agent_that_has_gone_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """Where gossip is late, the node itself says that it runs no such agent; credit is not lost by it."""
    caplog.set_level("INFO")
    async with World(window_bytes=0) as world:
        world.places[7] = "b"
        for courier in world.couriers.values():
            courier.news()
        with pytest.raises(NotDelivered, match="no such agent"):
            await world["a"].send(command(7), ack=True, timeout_s=1)
        with pytest.raises(UnknownAgent, match="node b runs no agent 7"):
            await world["a"].request(query(7), timeout_s=1)
        with pytest.raises(NotDelivered, match="no such agent"):
            await world["a"].send(query(7), ack=True, timeout_s=1)
        for _ in range(400):
            await world["a"].send(command(7, bytes(1_000)), ack=False, timeout_s=1)
        await eventually(lambda: world["b"].counters["dropped_unknown_agent"] == 403)

        assert caplog.text.count("not here") == 1
        assert nothing_waits(world)


# --- requests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
async def test_a_request_is_answered(place: str) -> None:
    """What the handler returns is what request returns; None is an empty answer."""

    async def handle(message: AgentMessage) -> bytes | None:
        return message.payload * 2 if message.payload else None

    async with World() as world:
        world.agent(_node_of(place), 7, handle)

        assert await world["a"].request(query(7, b"ab"), timeout_s=1) == b"abab"
        assert await world["a"].request(query(7), timeout_s=1) == b""
        assert nothing_waits(world)


async def test_requests_run_concurrently() -> None:
    """Queries of one sender do not wait for one another, up to the agent's concurrency."""
    running, most = 0, 0

    async def handle(message: AgentMessage) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return message.payload

    async with World() as world:
        world.agent("b", 7, handle, concurrency=8)
        asked = [world["a"].request(query(7, b"%d" % number), timeout_s=5) for number in range(40)]

        assert await asyncio.gather(*asked) == [b"%d" % number for number in range(40)]
        assert most == 8


async def test_an_error_text_that_is_not_unicode_reaches_the_asker(caplog: pytest.LogCaptureFixture) -> None:
    """A file name that is not UTF-8, in an exception's text, harms neither the agent nor the answer."""
    caplog.set_level(logging.CRITICAL, "mesh")  # pytest-xdist cannot carry such text in its reports

    async def handle(_: AgentMessage) -> bytes:
        raise OSError("bad name \udcff")

    async with World() as world:
        world.agent("b", 7, handle)
        with pytest.raises(RemoteError, match="bad name"):
            await world["a"].request(query(7), timeout_s=1)


async def test_a_handler_that_raises_is_told_to_the_asker(caplog: pytest.LogCaptureFixture) -> None:
    """The asker learns the exception's class and text; the agent goes on, and the failure is logged and counted."""

    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    errors: list[BaseException] = [ValueError("boom"), UnprintableError()]
    errors += [asyncio.CancelledError("inner"), KeyError("late")]
    first = list(errors)

    async def handle(_: AgentMessage) -> bytes:
        error = errors.pop(0)
        if isinstance(error, KeyError):
            await asyncio.sleep(0)
        raise error

    async with World() as world:
        world.agent("b", 7, handle)
        for error in first:
            with pytest.raises(RemoteError) as raised:
                await world["a"].request(query(7), timeout_s=1)
            assert raised.value.kind == type(error).__name__
            assert type(error).__name__ in raised.value.message

        assert world["b"].counters["handler_errors"] == len(first)
        assert "handler raised" in caplog.text


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ("text", "str, not bytes"),
        (7, "int, not bytes"),
        (bytearray(b"x"), "bytearray"),
        (bytes(1 << 21), "2097152 bytes"),
    ],
)
async def test_a_handler_that_returns_nonsense_is_told_to_the_asker(result: object, said: str) -> None:
    """What is not bytes, or too many, is an error at the asker that names it; a command's result does not matter."""

    async def handle(_: AgentMessage) -> bytes:
        return result  # type: ignore[return-value]

    async with World() as world:
        agent = world.agent("b", 7, handle)
        with pytest.raises(RemoteError, match=said):
            await world["a"].request(query(7), timeout_s=1)
        await world["a"].send(command(7), ack=True, timeout_s=1)
        await eventually(lambda: agent.handled == 2)

        assert world["b"].counters["handler_errors"] == 1


async def test_a_handler_that_is_no_coroutine_is_told_to_the_asker() -> None:
    """Somebody registers a plain function: its asker is told, and the agent goes on."""

    def handle(_: AgentMessage) -> bytes:
        return b"plain"

    async with World() as world:
        world.agent("b", 7, handle)  # type: ignore[arg-type]
        for _ in range(2):
            with pytest.raises(RemoteError, match="neither be awaited nor iterated"):
                await world["a"].request(query(7), timeout_s=1)


async def test_a_request_without_answer_times_out() -> None:
    """The error says that it may have been carried out; the late answer is counted and dropped."""
    async with World() as world:
        world.agent("b", 7, echo)
        world.links["b", "a"].hold()
        with pytest.raises(RequestTimeout, match="agent 7 on b") as late:
            await world["a"].request(query(7), timeout_s=0.05)
        assert late.value.changed
        world.links["b", "a"].release()
        await eventually(lambda: world["a"].counters["dropped_late_response"] == 1)
        assert nothing_waits(world)


async def test_an_unacknowledged_message_times_out() -> None:
    """With ack, a send to an agent that is busy says that the message may still be taken."""
    async with World() as world:
        world.agent("b", 7, ignore)
        await world["a"].send(command(7), ack=True, timeout_s=1)
        with pytest.raises(DeliveryTimeout, match="may still") as late:
            await world["a"].send(command(7), ack=True, timeout_s=0.01)

        assert late.value.changed
        assert nothing_waits(world)


async def test_only_the_node_that_was_asked_can_answer() -> None:
    """A response from another node, to another query, or to none, settles nothing."""
    async with World("a", "b", "c") as world:
        world.agent("b", 7, ignore)
        asking = asyncio.ensure_future(world["a"].request(query(7), timeout_s=5))
        await eventually(lambda: world["a"]._calls)
        (sequence,) = world["a"]._calls

        def response(*extras: int | None) -> list[Envelope]:
            raw = [1, int(MessageType.RESPONSE), 7, 1, 0, b"forged", 0, *extras]
            return [Envelope(Kind.MESSAGES, 1, None, None, m.encode_batch(1, 1, Priority.NORMAL, [raw]))]

        world.links["a", "c"].receive(response(sequence))
        for extras in ((), (None,), (sequence + 1,)):
            world.links["a", "b"].receive(response(*extras))
        assert world["a"].counters["dropped_late_response"] == 4
        assert not asking.done()
        world.links["a", "b"].receive(response(sequence))
        assert await asking == b"forged"


async def test_an_answer_does_not_reach_another_life_of_its_asker() -> None:
    """Sequences start afresh with a node: what a slow handler says to the last life is not taken for an answer now."""
    release = asyncio.Event()

    async def slow(_: AgentMessage) -> bytes:
        await release.wait()
        return b"for the first life"

    async with World() as world:
        world.agent("b", 7, slow)
        first = asyncio.ensure_future(world["a"].request(query(7), timeout_s=5))
        await eventually(lambda: world["b"].counters["received"] == 1)
        world.links["a", "b"].cut()
        with pytest.raises(DeliveryUncertain):
            await first
        await world["a"].close()

        world.couriers["a"] = world.make_courier("a", life=2)
        world.agent("b", 8, ignore)
        world.link("a", "b")
        second = asyncio.ensure_future(world["a"].request(query(8), timeout_s=0.1))
        await eventually(lambda: world["b"].counters["received"] == 2)
        assert list(world["a"]._calls) == [1]
        release.set()
        with pytest.raises(RequestTimeout):
            await second
        assert world["b"].counters["dropped_no_link"] == 1


async def test_a_query_can_be_answered_by_hand() -> None:
    """Who reads queries from an inbox responds on the link to their asker, while it is the same life's."""
    async with World() as world:
        agent = world.agent("b", 7)
        asking = asyncio.ensure_future(world["a"].request(query(7, b"x"), timeout_s=5))
        seen = await anext(agent.messages())
        life, sequence = (int(part, 16) for part in seen.message_id.split("/")[1:])
        parcel = Parcel(seen.from_agent, 7, MessageType.RESPONSE, b"y", Priority.NORMAL, 8, 0, {"h": "1"})

        assert not world["b"].respond("a", life + 1, sequence, parcel)
        assert not world["b"].respond("nobody", life, sequence, parcel)
        assert world["b"].respond("a", life, sequence, parcel)
        await world["b"].wait_room("a")
        await world["b"].wait_room("nobody")
        assert await asking == b"y"
        assert world["b"].counters["dropped_no_link"] == 2


# --- all of it --------------------------------------------------------------------------------------------------


async def _check_storm(seed: int, messages: int) -> None:
    """Several nodes send at random to slow and fast agents over links that stall; nothing is lost or doubled."""
    rng = random.Random(seed)
    seen: dict[tuple[int, int], list[int]] = defaultdict(list)
    expected: dict[tuple[int, int], list[int]] = defaultdict(list)
    answers = 0

    async def handle(message: AgentMessage) -> bytes:
        for _ in range(rng.choice((0, 0, 0, 1, 4))):
            await asyncio.sleep(0)
        if message.message_type is not MessageType.QUERY:
            assert message.to_agent is not None
            seen[message.from_agent, message.to_agent].append(int(message.payload[:8]))
        return message.payload

    async with World("a", "b", "c", window_bytes=0, capacity=3) as world:
        agents: list[LocalAgent] = [
            world.agent(rng.choice("abc"), 100 + number, handle, concurrency=rng.choice((1, 2, 64)))
            for number in range(5)
        ]
        stalled: list[FakeLink] = []

        async def weather() -> None:
            while True:
                for link in list(world.links.values()):
                    if link.held:
                        link.release()
                    elif rng.random() < 0.2:
                        link.hold()
                        stalled.append(link)
                for _ in range(rng.randrange(1, 20)):
                    await asyncio.sleep(0)

        async def sender(node: str, agent_id: int, count: int) -> None:
            nonlocal answers
            for number in range(count):
                to = rng.choice(agents).agent_id
                payload = b"%08d" % number + bytes(rng.choice((0, 100, 5_000, 70_000)))
                if rng.random() < 0.15:
                    assert await world[node].request(query(to, payload, from_agent=agent_id), timeout_s=30) == payload
                    answers += 1
                    continue
                expected[agent_id, to].append(number)
                parcel = command(to, payload, from_agent=agent_id, ttl=rng.randrange(1, 4))
                await world[node].send(parcel, ack=rng.random() < 0.1, timeout_s=30)

        blowing = asyncio.ensure_future(weather())
        try:
            await asyncio.gather(*(sender("abc"[i % 3], i, messages // 8) for i in range(1, 9)))
            for link in world.links.values():
                link.release()
            await eventually(lambda: sum(map(len, seen.values())) == sum(map(len, expected.values())), 20)
        finally:
            blowing.cancel()
        for link in world.links.values():
            link.release()
        assert seen == expected
        assert nothing_waits(world)
        assert all(link.refusal is None for link in world.links.values())
        assert all(courier.counters["dropped_late_response"] == 0 for courier in world.couriers.values())


@pytest.mark.parametrize("seed", range(3))
async def test_in_a_storm_nothing_is_lost_or_doubled(seed: int) -> None:
    """2,000 messages over stalling links to agents of every temper arrive once each and in order."""
    await _check_storm(seed, 2_000)


@given(st.integers(0, 2**32))
def test_in_any_storm_nothing_is_lost_or_doubled(seed: int) -> None:
    """The same, shorter, for many worlds."""
    asyncio.run(_check_storm(seed, 80))


# --- links that may be closed -----------------------------------------------------------------------------------


async def test_a_held_link_makes_senders_wait_for_it_or_the_next_one() -> None:
    """Nothing is sent on it, and nothing fails: released it goes on, closed another takes its place."""
    inbox = Inbox()
    async with World() as world:
        world.agent("b", 7, inbox)
        here = world.links["a", "b"]
        assert world["a"].hold_link(here)
        first = asyncio.ensure_future(world["a"].send(command(7, b"1"), ack=True, timeout_s=5))
        await asyncio.sleep(0.01)
        assert inbox.seen == []
        world["a"].release_link(here)
        await first

        assert world["a"].hold_link(here)
        second = asyncio.ensure_future(world["a"].send(command(7, b"2"), ack=True, timeout_s=5))
        await asyncio.sleep(0.01)
        here.cut()
        world.link("a", "b")
        await second
        assert [seen.payload for seen in inbox.seen] == [b"1", b"2"]
        assert world["a"].hold_link(here)
        world["a"].release_link(here)


async def test_a_link_with_a_call_on_it_is_not_held() -> None:
    """Neither while the answer is awaited, nor for one caller among many."""
    go_on = asyncio.Event()

    async def slow(message: AgentMessage) -> bytes:
        await go_on.wait()
        return message.payload

    async with World() as world:
        world.agent("b", 7, slow)
        here = world.links["a", "b"]
        call = asyncio.ensure_future(world["a"].request(query(7, b"x"), timeout_s=5))
        await eventually(lambda: world["a"].statistics()["calls_waiting"] == 1)
        await asyncio.sleep(0.01)
        assert not world["a"].hold_link(here)
        go_on.set()
        assert await call == b"x"
        await eventually(lambda: world["a"].hold_link(here))


async def test_a_link_over_which_durable_messages_are_under_way_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their sender would have to send them again; once it goes on, so does what waits to be sent."""

    class Durable:
        waiting = True
        told = 0

        def is_waiting_for(self, node_id: str) -> bool:
            assert node_id == "b"
            return self.waiting

        def news(self) -> None:
            self.told += 1

    async with World() as world:
        here, durable = world.links["a", "b"], Durable()
        monkeypatch.setattr(world["a"], "durable", durable)
        assert not world["a"].hold_link(here)
        durable.waiting = False
        assert world["a"].hold_link(here)
        world["a"].release_link(here)
        assert durable.told == 1
        monkeypatch.setattr(world["a"], "durable", None)
