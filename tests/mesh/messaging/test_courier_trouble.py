"""Couriers in trouble: broken and full links, agents that go, cancellation, broadcasts, and the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from couriers import Inbox, World, command, echo, ignore, nothing_waits, query
from support import eventually

from gossip.service import BroadcastOutcome
from mesh.errors import (
    DeliveryUncertain,
    NetworkClosed,
    NotDelivered,
    RemoteError,
)
from mesh.messaging.courier import Courier
from mesh.messaging.flow import INITIAL_WINDOW_BYTES
from mesh.messaging.parcel import Parcel
from mesh.types import AgentMessage, DeliveryStatus, MessageType, Priority
from transport.errors import RemoteProtocolError
from transport.link import CloseReason
from transport.wire import Envelope, Kind

# --- broken links -----------------------------------------------------------------------------------------------


async def test_a_broken_link_ends_what_waits_for_it() -> None:
    """An acknowledged send and a request are uncertain; both say why, and nothing is left behind."""
    async with World() as world:
        world.agent("b", 7, ignore)
        await world["a"].send(command(7), ack=True, timeout_s=1)
        sending = asyncio.ensure_future(world["a"].send(command(7), ack=True, timeout_s=5))
        asking = asyncio.ensure_future(world["a"].request(query(7), timeout_s=5))
        await eventually(lambda: world["a"]._calls)

        world.links["a", "b"].cut(CloseReason.TIMED_OUT, "silent")

        with pytest.raises(DeliveryUncertain, match="b broke"):
            await sending
        with pytest.raises(DeliveryUncertain, match="timed_out: silent"):
            await asking
        assert nothing_waits(world)


async def test_a_sender_that_waits_uses_the_next_link() -> None:
    """Who waits for credit when the link breaks goes on over the next one, where credit is fresh."""
    async with World() as world:
        agent = world.agent("b", 7)
        for _ in range(62):
            await world["a"].send(command(7, bytes(1_000)), ack=False, timeout_s=1)
        await eventually(lambda: agent.waiting == 62)
        sending = asyncio.ensure_future(world["a"].send(command(7, b"last"), ack=False, timeout_s=5))
        await asyncio.sleep(0)
        assert not sending.done()

        world.links["a", "b"].cut()
        world.link("a", "b")

        assert (await sending).status is DeliveryStatus.SENT
        await eventually(lambda: agent.waiting == 63)


async def test_an_older_link_does_not_take_the_newer_with_it() -> None:
    """When a replaced link is reported closed late, the newer one stays in use; a link is closed only once."""
    async with World() as world:
        world.agent("b", 7, echo)
        old = world.links["a", "b"]
        world.link("a", "b")
        old.cut()
        old.cut()

        assert await world["a"].request(query(7, b"x"), timeout_s=1) == b"x"
        old.receive([Envelope(Kind.MESSAGES, 1, None, None, b"")])  # from a link that is gone: nobody reads it


async def test_a_link_that_is_closing_is_not_used() -> None:
    """While a link takes nothing more but is not gone yet, a message waits for the next one."""
    inbox = Inbox()
    async with World() as world:
        world.agent("b", 7, inbox)
        await world["a"].send(command(7, b"1"), ack=True, timeout_s=1)
        link = world.links["a", "b"]
        link.is_open = False
        await world["a"].send(command(7, b"lost with the link"), ack=False, timeout_s=1)
        await asyncio.sleep(0)
        sending = asyncio.ensure_future(world["a"].send(command(7, b"2"), ack=True, timeout_s=5))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not sending.done()
        link.cut()
        world.link("a", "b")

        assert (await sending).status is DeliveryStatus.DELIVERED
        assert inbox.payloads == [b"1", b"2"]


# --- agents that go ---------------------------------------------------------------------------------------------


async def test_messages_of_a_deregistered_agent_are_refused() -> None:
    """What waits at an agent that is deregistered is refused: acknowledged sends and queries learn so at once."""
    async with World() as world:
        agent = world.agent("b", 7, ignore, concurrency=1)
        running = asyncio.ensure_future(world["a"].request(query(7), timeout_s=5))
        await eventually(lambda: world["b"].counters["received"] == 1)
        waiting = asyncio.ensure_future(world["a"].request(query(7), timeout_s=5))
        sending = asyncio.ensure_future(world["a"].send(command(7), ack=True, timeout_s=5))
        await eventually(lambda: agent.waiting == 2)

        await world.remove(agent)

        with pytest.raises(RemoteError, match="may have done the work"):
            await running
        with pytest.raises(RemoteError, match="before it took the request"):
            await waiting
        with pytest.raises(NotDelivered, match="deregistered"):
            await sending
        assert nothing_waits(world)
        assert agent.waiting == 0


async def test_credit_of_a_deregistered_agent_comes_back() -> None:
    """An agent that is registered again can be sent to, though its predecessor left a full inbox."""
    async with World(window_bytes=0) as world:
        agent = world.agent("b", 7)
        with pytest.raises(NotDelivered):
            while True:
                await world["a"].send(command(7, bytes(1_000)), ack=False, timeout_s=0.05)
        await world.remove(agent)

        world.agent("b", 7, echo)
        assert await world["a"].request(query(7, b"x"), timeout_s=1) == b"x"


# --- cancellation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["unknown", "acked", "request", "credit"])
async def test_cancelling_leaves_nothing_behind(what: str) -> None:
    """A send or request that is cancelled wherever it waits leaves no entry, timer or waiter."""
    async with World() as world:
        world.agent("b", 7, ignore)
        world.agent("b", 8)
        await world["a"].send(command(7), ack=True, timeout_s=1)
        await world["a"].send(command(8, bytes(2 * INITIAL_WINDOW_BYTES)), ack=True, timeout_s=1)
        calls: dict[str, Callable[[Courier], asyncio.Future[object]]] = {
            "unknown": lambda a: asyncio.ensure_future(a.send(command(9), ack=False, timeout_s=5)),
            "acked": lambda a: asyncio.ensure_future(a.send(command(7), ack=True, timeout_s=5)),
            "request": lambda a: asyncio.ensure_future(a.request(query(7), timeout_s=5)),
            "credit": lambda a: asyncio.ensure_future(a.send(command(8), ack=False, timeout_s=5)),
        }
        task = calls[what](world["a"])
        for _ in range(4):
            await asyncio.sleep(0)
        assert not task.done()

        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert nothing_waits(world)


# --- links without room -----------------------------------------------------------------------------------------


async def test_a_full_link_makes_senders_wait_and_loses_nothing() -> None:
    """While the link has no room senders wait; then everything arrives once and in order."""
    inbox = Inbox()
    async with World(capacity=2, window_bytes=1 << 24) as world:
        world.agent("b", 7, inbox)
        await world["a"].send(command(7), ack=True, timeout_s=1)
        link = world.links["a", "b"]
        link.hold()

        async def send_all() -> None:
            for number in range(400):
                await world["a"].send(command(7, b"%d" % number + bytes(1_000)), ack=False, timeout_s=5)

        sending = asyncio.ensure_future(send_all())
        await eventually(lambda: world["a"]._dialogues["b"].is_congested)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not sending.done()
        with pytest.raises(NotDelivered):
            await world["a"].send(command(7), ack=False, timeout_s=0.01)

        link.release()
        await sending
        await eventually(lambda: len(inbox.seen) == 401)
        assert [payload.rstrip(b"\0") for payload in inbox.payloads[1:]] == [b"%d" % number for number in range(400)]
        assert nothing_waits(world)


async def test_a_link_that_breaks_while_it_is_full_lets_everybody_go() -> None:
    """The wait for room ends with the link."""
    async with World(capacity=1) as world:
        world.agent("b", 7, echo)
        link = world.links["a", "b"]
        link.hold()
        for _ in range(2):
            await world["a"].send(command(7), ack=False, timeout_s=1)
            await asyncio.sleep(0)
        sending = asyncio.ensure_future(world["a"].send(command(7), ack=False, timeout_s=0.05))
        await asyncio.sleep(0)
        link.cut()

        with pytest.raises(NotDelivered, match="no link"):
            await sending
        await eventually(lambda: len(world["a"]._scope) == 0)


async def test_responses_that_find_no_room_hold_their_workers() -> None:
    """An asker that does not read the answers gets no more of them made than the agent's concurrency."""
    made = 0

    async def handle(_: AgentMessage) -> bytes:
        nonlocal made
        made += 1
        return bytes(100_000)

    async with World(capacity=1) as world:
        agent = world.agent("b", 7, handle, concurrency=3)
        world.links["b", "a"].hold()
        asked = [asyncio.ensure_future(world["a"].request(query(7), timeout_s=5)) for _ in range(30)]
        await eventually(lambda: world["b"]._dialogues["a"].is_congested)
        for _ in range(20):
            await asyncio.sleep(0)
        assert made <= 5
        assert agent.waiting == 30 - made

        world.links["b", "a"].release()
        assert [len(answer) for answer in await asyncio.gather(*asked)] == [100_000] * 30


# --- broadcasts -------------------------------------------------------------------------------------------------


async def test_a_broadcast_reaches_every_agent_but_its_sender() -> None:
    """All agents of all nodes hear it once, each with an object of its own; the sender does not."""
    inboxes = {agent_id: Inbox() for agent_id in range(1, 6)}
    async with World("a", "b", "c") as world:
        for agent_id, node in ((1, "a"), (2, "a"), (3, "b"), (4, "c"), (5, "c")):
            world.agent(node, agent_id, inboxes[agent_id])
        parcel = Parcel(0, 1, MessageType.BROADCAST, b"all", Priority.LOW, 4, 0, {"k": "v"})

        receipt = world["a"].broadcast(parcel)
        await eventually(lambda: sum(len(inbox.seen) for inbox in inboxes.values()) == 4)

        assert inboxes[1].seen == []
        assert world.broadcasts[0][2] == 4
        seen = [inbox.seen[0] for agent_id, inbox in inboxes.items() if agent_id != 1]
        assert all(each.to_agent is None and each.message_id == receipt.message_id for each in seen)
        assert all((each.headers, each.from_node, each.payload) == ({"k": "v"}, "a", b"all") for each in seen)
        assert len({id(each.headers) for each in seen}) == 4
        assert (receipt.node_id, receipt.nodes) == ("", 2)


async def test_the_receipt_of_a_broadcast_says_what_became_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken by or announced to neighbours, kept because there are none, or dropped because the node is leaving."""
    outcomes = [BroadcastOutcome(2, 1), BroadcastOutcome(0, 1), BroadcastOutcome(0, 0)]
    outcomes.append(BroadcastOutcome(0, 0, dropped=True))
    async with World() as world:
        monkeypatch.setattr(world["a"], "_broadcast", lambda _payload, _ttl: outcomes.pop(0))
        receipts = [world["a"].broadcast(command(0)) for _ in range(4)]

    assert [(receipt.status, receipt.nodes) for receipt in receipts] == [
        (DeliveryStatus.SENT, 3),
        (DeliveryStatus.SENT, 1),
        (DeliveryStatus.QUEUED, 0),
        (DeliveryStatus.DROPPED, 0),
    ]


async def test_a_broadcast_query_is_not_answered() -> None:
    """A broadcast has no one asker: what a handler returns or raises for it is not sent anywhere."""

    async def fail(_: AgentMessage) -> bytes:
        raise ValueError("boom")

    async with World() as world:
        world.agent("b", 7, echo)
        world.agent("b", 8, fail)
        world.agent("b", 9, ignore)
        world["a"].broadcast(Parcel(0, 1, MessageType.QUERY, b"?", Priority.NORMAL, 4))
        await eventually(lambda: world["b"].counters["handler_errors"] == 1)
        await world["b"].agents[9].close()

        assert world.links["b", "a"].kinds_sent == []


async def test_a_broadcast_that_is_no_message_is_refused() -> None:
    """Nonsense from gossip is the origin's protocol error."""
    async with World() as world:
        with pytest.raises(RemoteProtocolError):
            world["a"].broadcast_received("b", 1, b"\xc1")


# --- the end ----------------------------------------------------------------------------------------------------


async def test_closing_ends_everything_that_waits() -> None:
    """A courier that closes tells senders, askers and those who wait for an agent; later calls are refused."""
    async with World() as world:
        world.agent("b", 7, ignore)
        world.agent("b", 8)
        await world["a"].send(command(8, bytes(2 * INITIAL_WINDOW_BYTES)), ack=True, timeout_s=1)
        await world["a"].send(command(7), ack=True, timeout_s=1)
        waits = [
            asyncio.ensure_future(world["a"].request(query(7), timeout_s=5)),
            asyncio.ensure_future(world["a"].send(command(9), ack=False, timeout_s=5)),
            asyncio.ensure_future(world["a"].send(command(8), ack=False, timeout_s=5)),
        ]
        acked = asyncio.ensure_future(world["a"].send(command(7), ack=True, timeout_s=5))
        for _ in range(5):
            await asyncio.sleep(0)

        await world["a"].close()

        for wait in waits:
            with pytest.raises(NetworkClosed):
                await wait
        with pytest.raises(DeliveryUncertain):
            await acked
        with pytest.raises(NetworkClosed):
            await world["a"].send(command(7), ack=False, timeout_s=1)
        with pytest.raises(NetworkClosed):
            world["a"].broadcast(command(0))
        assert not world["a"].respond("b", 1, 1, command(1))
        assert nothing_waits(world)


async def test_closing_sends_what_was_accepted() -> None:
    """A message that was accepted in the same turn still reaches the link."""
    inbox = Inbox()
    async with World() as world:
        world.agent("b", 7, inbox)
        await world["a"].send(command(7, b"last"), ack=False, timeout_s=1)
        await world["a"].close()
        await eventually(lambda: inbox.payloads == [b"last"])


async def test_a_handler_can_close_its_own_courier() -> None:
    """An application that leaves the network from a handler is not cancelled by it."""
    done = []

    async with World() as world:

        async def leave(_: AgentMessage) -> None:
            await world["b"].close()
            done.append(True)

        world.agent("b", 7, leave)
        for _ in range(3):
            await world["a"].send(command(7), ack=False, timeout_s=1)
        await eventually(lambda: done)

    assert done == [True]


async def test_statistics_are_numbers() -> None:
    """Counters and gauges are plain numbers, and add up."""
    async with World() as world:
        world.agent("b", 7, echo)
        await world["a"].request(query(7), timeout_s=1)
        sent, received = world["a"].statistics(), world["b"].statistics()

        assert all(type(value) is int for value in (*sent.values(), *received.values()))
        assert (sent["sent"], sent["dialogues"], received["received"], received["handled"]) == (1, 1, 1, 1)


async def test_kinds_of_others_are_left_alone() -> None:
    """An envelope of a kind that is not the courier's is ignored."""
    async with World() as world:
        world.links["b", "a"].receive([Envelope(Kind.RENEWAL, 1, None, None, b"?"), Envelope(99, 1, None, None, b"")])

        assert world.links["b", "a"].refusal is None
