"""Agents that move between couriers: what was sent to them arrives, once and in order."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools

import pytest
from couriers import Inbox, World, command, ignore, query
from support import eventually

from mesh.agents import Handler, LocalAgent
from mesh.errors import DeliveryUncertain, NetworkClosed, NotDelivered, UnknownAgent
from mesh.messaging import moving
from mesh.messaging.body import OVERHEAD_BYTES
from mesh.messaging.flow import INITIAL_WINDOW_BYTES
from mesh.messaging.moves import FEATURE, MovesConfig
from mesh.messaging.notices import Gone, Heard, Notices, encode_notices
from mesh.messaging.parcel import Parcel
from mesh.types import DEFAULT_TTL, AgentMessage, DeliveryStatus, MessageType, Priority
from transport.wire import Envelope, Kind

QUICK = MovesConfig(wait_gone_s=0.2, wait_place_s=0.2, retry_s=0.01)


def moving_world(*names: str, config: MovesConfig = QUICK, window_bytes: int = 1 << 20) -> World:
    """Nodes that know how agents move."""
    return World(*(names or ("a", "b", "c")), features=(FEATURE,), moves=config, window_bytes=window_bytes)


async def send(world: World, node: str, *numbers: int, from_agent: int = 1) -> None:
    """Send agent 7 messages with these numbers, each accepted before the next."""
    for number in numbers:
        await world[node].send(command(7, b"%d" % number, from_agent=from_agent), ack=False, timeout_s=5)


async def move(world: World, agent: LocalAgent, node: str, handler: Handler | None) -> LocalAgent:
    """Stop an agent and run it elsewhere."""
    await world.remove(agent)
    return world.agent(node, agent.agent_id, handler)


def in_order(inbox: Inbox, count: int) -> bool:
    """Whether it has seen the numbers below ``count``; never anything else."""
    numbers = [int(payload) for payload in inbox.payloads]
    assert numbers == list(range(len(numbers)))
    return len(numbers) == count


async def test_what_waited_or_was_under_way_arrives_at_the_new_place() -> None:
    """In order, and before what was sent later."""
    async with moving_world() as world:
        inbox = Inbox()
        agent = world.agent("b", 7)
        await send(world, "a", *range(10))
        await eventually(lambda: agent.waiting == 10)
        world.links["a", "b"].hold()
        await send(world, "a", *range(10, 20))
        await move(world, agent, "c", inbox)
        later = asyncio.ensure_future(send(world, "a", *range(20, 30)))
        await eventually(lambda: world["a"].counters["moved_sent_again"] == 20)
        world.links["a", "b"].release()

        await eventually(lambda: in_order(inbox, 30))
        await later
        await eventually(lambda: world["b"].counters["moved_dropped"] == 10)
        assert world["a"].counters["moved_returned"] == 20
        assert inbox.seen[0].message_id == "a/1/1"


async def test_what_was_handled_is_not_sent_again() -> None:
    """Whether credit has told of it or not."""
    async with moving_world() as world:
        inbox = Inbox()
        agent = world.agent("b", 7, inbox)
        for begin in range(0, 3_000, 500):
            await send(world, "a", *range(begin, begin + 500))
            await eventually(functools.partial(in_order, inbox, begin + 500))
        flow = world["a"]._moving._moves.known_flow(7, world["a"]._dialogues["b"])
        assert flow is not None

        assert sum(map(len, flow.by_priority)) < 3_000, "credit tells what is handled"
        agent = await move(world, agent, "c", inbox)
        await send(world, "a", 3_000)

        await eventually(lambda: in_order(inbox, 3_001))
        assert world["a"].counters["moved_sent_again"] == 0


async def test_acknowledged_messages_move_with_their_senders_patience() -> None:
    """The receipt names the node that took it; an inbox that has taken a message passes it on as well."""
    async with moving_world() as world:
        inbox = Inbox()
        agent = world.agent("b", 7, ignore, concurrency=1)
        sends = [asyncio.ensure_future(world["a"].send(command(7, b"0"), ack=True, timeout_s=5))]
        await eventually(lambda: agent.waiting == 0 and world["a"].counters["received"] == 0)
        receipt = await sends[0]
        assert receipt.node_id == "b"
        sends = [asyncio.ensure_future(world["a"].send(command(7, b"%d" % n), ack=True, timeout_s=5)) for n in range(3)]
        await eventually(lambda: agent.waiting == 3)

        agent = await move(world, agent, "c", None)
        receipts = await asyncio.gather(*sends)
        await move(world, agent, "b", inbox)

        assert {receipt.node_id for receipt in receipts} == {"c"}
        assert {receipt.status for receipt in receipts} == {DeliveryStatus.DELIVERED}
        await eventually(lambda: in_order(inbox, 3))
        assert not any(dialogue.unacked for dialogue in world["a"]._dialogues.values())


async def test_an_agent_that_is_back_on_the_same_node_gets_everything_once() -> None:
    """Though nobody hears of a change of place, and old messages are still under way."""
    async with moving_world("a", "b") as world:
        inbox = Inbox()
        agent = world.agent("b", 7)
        await send(world, "a", *range(5))
        await eventually(lambda: agent.waiting == 5)
        world.links["a", "b"].hold()
        await send(world, "a", *range(5, 10))
        for _ in range(3):
            agent = await move(world, agent, "b", None)
        await move(world, agent, "b", inbox)
        world.links["a", "b"].release()

        await send(world, "a", *range(10, 15))
        await eventually(lambda: in_order(inbox, 15))


async def test_moves_that_are_faster_than_their_notices() -> None:
    """From node to node while nothing that says so arrives, with two senders and several priorities."""
    async with moving_world("a", "b", "c", "d") as world:
        inbox = Inbox()
        agent = world.agent("b", 7)
        numbers = {1: 0, 2: 0}
        for turn, place in enumerate(["c", "d", "b", "c", "b", "d", "d", "c"]):
            for link in ("b", "c", "d"):
                (world.links[link, "a"].hold if (turn + ord(link)) % 2 else world.links[link, "a"].release)()
            for sender, priority in itertools.product((1, 2), (Priority.LOW, Priority.URGENT)):
                parcel = command(7, b"%d" % numbers[sender], from_agent=sender, priority=priority)
                with contextlib.suppress(NotDelivered, UnknownAgent):
                    await world["a"].send(parcel, ack=False, timeout_s=0.02)
                    numbers[sender] += 1
            agent = await move(world, agent, place, inbox if turn == 7 else None)
        for link in ("b", "c", "d"):
            world.links[link, "a"].release()

        await eventually(lambda: len(inbox.seen) == sum(numbers.values()), 10.0)
        for sender in numbers:
            for priority in (Priority.LOW, Priority.URGENT):
                seen = [int(m.payload) for m in inbox.seen if (m.from_agent, m.priority) == (sender, priority)]
                assert seen == sorted(set(seen))


async def test_a_local_agent_that_moves_away_and_back() -> None:
    """The link of a node with itself is like any other."""
    async with moving_world() as world:
        inbox = Inbox()
        agent = world.agent("a", 7)
        await send(world, "a", *range(5))
        agent = await move(world, agent, "b", None)
        await send(world, "a", *range(5, 10))
        await eventually(lambda: agent.waiting == 10)
        await move(world, agent, "a", inbox)

        await send(world, "a", *range(10, 15))
        await eventually(lambda: in_order(inbox, 15))


async def test_newer_messages_wait_until_the_old_node_has_spoken() -> None:
    """When gossip is faster; and not for ever."""
    async with moving_world() as world:
        inbox = Inbox()
        agent = world.agent("b", 7)
        await send(world, "a", 0)
        await eventually(lambda: agent.waiting == 1)
        world.links["b", "a"].hold()
        agent = await move(world, agent, "c", None)
        sending = asyncio.ensure_future(send(world, "a", 1))
        await asyncio.sleep(0.05)
        assert not sending.done()
        world.links["b", "a"].release()
        await sending
        await eventually(lambda: agent.waiting == 2)

        world.links["c", "a"].hold()
        await move(world, agent, "b", inbox)
        await send(world, "a", 2)
        await eventually(lambda: inbox.payloads == [b"2"])
        assert world["a"].statistics()["moved_forgotten"] == 2


async def test_the_old_node_has_handled_everything_and_says_so() -> None:
    """Then nobody waits for more, should the agent run in two places."""
    config = MovesConfig(wait_gone_s=60)
    async with moving_world(config=config) as world:
        inbox = Inbox()
        agent = world.agent("b", 7)
        await send(world, "a", 0)
        await eventually(lambda: agent.waiting == 1)
        world.agent("c", 7, inbox)
        sending = asyncio.ensure_future(send(world, "a", 1))
        await asyncio.sleep(0.01)
        assert not sending.done()

        assert (await agent.next_message()) is not None

        await sending
        await eventually(lambda: inbox.payloads == [b"1"])


async def test_an_agent_that_is_nowhere() -> None:
    """An acknowledged message fails in its own time and is not sent later; a plain one is dropped after a while."""
    async with moving_world() as world:
        inbox = Inbox()
        agent = world.agent("b", 7, ignore, concurrency=1)
        await send(world, "a", 0)
        await eventually(lambda: agent.waiting == 0)
        acked = asyncio.ensure_future(world["a"].send(command(7, b"acked"), ack=True, timeout_s=0.3))
        await eventually(lambda: agent.waiting == 1)
        await send(world, "a", 1)
        await eventually(lambda: agent.waiting == 2)
        await world.remove(agent)

        with pytest.raises(UnknownAgent):
            await acked
        await eventually(lambda: world["a"].counters["moved_lost"] == 1)
        world.agent("c", 7, inbox)
        await send(world, "a", 2)
        await eventually(lambda: inbox.payloads == [b"2"])


async def test_a_node_that_never_had_the_agent_sends_nothing_astray() -> None:
    """What gossip got wrong costs time only; queries hear of it at once."""
    async with moving_world() as world:
        inbox = Inbox()
        world.places[7] = "b"
        await send(world, "a", *range(3))
        with pytest.raises(UnknownAgent):
            await world["a"].request(query(7), timeout_s=5)
        await eventually(lambda: world["a"].counters["moved_returned"] >= 3)

        world.agent("c", 7, inbox)

        await eventually(lambda: in_order(inbox, 3))


async def test_queries_pass_while_older_messages_are_dropped() -> None:
    """An agent that is back answers at once."""
    async with moving_world("a", "b") as world:
        seen: list[AgentMessage] = []

        async def answer(message: AgentMessage) -> bytes:
            seen.append(message)
            return b"here"

        agent = world.agent("b", 7)
        await send(world, "a", 0)
        await eventually(lambda: agent.waiting == 1)
        asking = asyncio.ensure_future(world["a"].request(query(7), timeout_s=5))
        world.links["a", "b"].hold()
        await asyncio.sleep(0.01)
        await move(world, agent, "b", answer)
        world.links["a", "b"].release()

        assert await asking == b"here"
        await eventually(lambda: [m.message_type for m in seen].count(MessageType.COMMAND) == 1)


async def test_a_node_that_leaves_in_order_gives_back_what_waited() -> None:
    """Before its goodbye."""
    async with moving_world() as world:
        inbox = Inbox()
        agent = world.agent("b", 7)
        await send(world, "a", *range(5))
        await eventually(lambda: agent.waiting == 5)

        await world["b"].close(drain_s=1.0)
        await eventually(lambda: world["a"].counters["moved_returned"] == 5)
        world.agent("c", 7, inbox)

        await eventually(lambda: in_order(inbox, 5))


async def test_a_node_that_takes_its_time_to_leave_takes_nothing_more() -> None:
    """What comes back to it meanwhile, because nobody has heard that it leaves, it gives back again."""
    async with moving_world() as world:
        inbox = Inbox()
        cancelled, may_end = asyncio.Event(), asyncio.Event()

        async def stubborn(_: AgentMessage) -> None:
            try:
                await may_end.wait()
            finally:
                cancelled.set()
                await may_end.wait()

        agent = world.agent("b", 7)
        world.agent("b", 8, stubborn)
        await world["a"].send(command(8), ack=True, timeout_s=5)
        await send(world, "a", *range(5))
        await eventually(lambda: agent.waiting == 5)

        leaving = asyncio.ensure_future(world["b"].close(drain_s=1.0))
        await cancelled.wait()
        await eventually(lambda: world["a"].counters["moved_returned"] >= 10)
        assert not leaving.done()
        may_end.set()
        world.agent("c", 7, inbox)

        await eventually(lambda: in_order(inbox, 5))
        await leaving
        assert world["b"].statistics()["handled"] == 0


async def test_a_node_that_leaves_sends_again_first() -> None:
    """What came back to it and has a place to go to; whoever waits for the rest learns that it is lost."""
    async with moving_world() as world:
        inbox = Inbox()
        stays, goes = world.agent("b", 8, ignore, concurrency=1), world.agent("b", 7)
        await send(world, "a", *range(5))
        await world["a"].send(command(8), ack=True, timeout_s=5)
        waiting = asyncio.ensure_future(world["a"].send(command(8), ack=True, timeout_s=5))
        await eventually(lambda: (goes.waiting, stays.waiting) == (5, 1))
        world.links["a", "c"].hold()
        await world.remove(stays)
        await move(world, goes, "c", inbox)
        await eventually(lambda: world["a"].counters["moved_returned"] == 6)

        world.links["a", "c"].release()
        await world["a"].close(drain_s=1.0)

        await eventually(lambda: in_order(inbox, 5))
        with pytest.raises(NetworkClosed, match="before the message"):
            await waiting


async def test_a_broken_link_leaves_it_uncertain() -> None:
    """As ever; what had come back before is sent again."""
    async with moving_world() as world:
        agent = world.agent("b", 7, ignore, concurrency=1)
        await world["a"].send(command(7), ack=True, timeout_s=5)
        waiting = asyncio.ensure_future(world["a"].send(command(7), ack=True, timeout_s=5))
        await eventually(lambda: agent.waiting == 1)
        world.links["a", "b"].cut()

        with pytest.raises(DeliveryUncertain):
            await waiting
        await world.remove(agent)
        assert world["a"].statistics()["moved_waiting"] == 0


async def test_messages_go_again_at_the_new_places_pace() -> None:
    """A window at a time; times and ttls are as they were."""
    async with moving_world() as world:
        agent = world.agent("b", 7)
        payload = bytes(1_000)
        parcel = Parcel(7, 1, MessageType.HEARTBEAT, payload, Priority.NORMAL, 3, 1_600_000_000_000)
        for _ in range(INITIAL_WINDOW_BYTES // 1_000 - 5):
            await world["a"].send(parcel, ack=False, timeout_s=5)
        for _ in range(10):
            assert world["a"].try_send(7, 1, payload, Priority.NORMAL, 4) or True
        await eventually(lambda: agent.waiting >= 60)
        count = agent.waiting
        inbox = Inbox()
        other = world.agent("c", 7)
        world.places[7] = "b"
        other_flow = world["a"]._dialogues["c"].window(7)
        other_flow.sent_bytes = INITIAL_WINDOW_BYTES - 2_000  # as if much waited there already
        world["c"]._dialogues["a"].incoming(7).window.received_bytes = INITIAL_WINDOW_BYTES - 2_000
        await world.remove(agent)
        world.places[7] = "c"
        world["a"].news()

        await eventually(lambda: other.waiting == 2)
        assert world["a"].statistics()["moved_waiting"] == count - 2
        window = world["c"]._dialogues["a"].incoming(7)
        window.taken(INITIAL_WINDOW_BYTES - 2_000)
        await eventually(lambda: other.waiting == count)
        await move(world, other, "b", inbox)
        await eventually(lambda: len(inbox.seen) == count)
        assert inbox.seen[0].timestamp == 1_600_000_000_000
        assert inbox.seen[0].ttl == 3
        assert DEFAULT_TTL not in {message.ttl for message in inbox.seen}


async def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all agents; whatever is forgotten is counted."""
    monkeypatch.setattr(moving, "_LIMIT_EVERY_BYTES", 1_000)
    async with moving_world(config=MovesConfig(kept_bytes_max=20 * OVERHEAD_BYTES)) as world:
        for agent_id in range(10, 20):
            world.agent("b", agent_id)
            for _ in range(10):
                await world["a"].send(command(agent_id), ack=False, timeout_s=5)
            await asyncio.sleep(0)

        assert world["a"].statistics()["moved_forgotten"] >= 60


async def test_a_link_that_may_be_closed_says_nothing_until_it_stays() -> None:
    """Also of what it has heard."""
    async with moving_world("a", "b") as world:
        world.agent("b", 7)
        await send(world, "a", 0)
        dialogue = world["a"]._dialogues["b"]
        await eventually(lambda: not any(dialogue._open_bodies))
        assert world["a"].hold_link(dialogue.link)
        kinds = world.links["a", "b"].kinds_sent
        before = len(kinds)

        gone = encode_notices(Notices(gone=[Gone(7, 1, 0, 9, 0, 0)]))
        world["a"].envelopes_received(dialogue.link, [Envelope(Kind.CALLS, 1, None, None, gone)])
        await asyncio.sleep(0)
        assert len(kinds) == before
        assert not dialogue.hold()
        world["b"]._dialogues["a"].incoming(7).arrivals.leave()
        world["a"].release_link(dialogue.link)
        await eventually(lambda: kinds[before:].count(Kind.CALLS) == len(Priority))


@pytest.mark.parametrize(
    "notices", [Notices(gone=[Gone(9, 1, 0, 0, 0, 0)]), Notices(heard=[Heard(9, 1, 0)])], ids=["gone", "heard"]
)
async def test_what_cannot_be_true_ends_the_link(notices: Notices) -> None:
    """It is the peer's fault."""
    async with moving_world("a", "b") as world:
        world.links["b", "a"].send(Envelope(Kind.CALLS, 1, None, None, encode_notices(notices)), 0)  # type: ignore[arg-type]

        await eventually(lambda: world.links["a", "b"].refusal is not None)
