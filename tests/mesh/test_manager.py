"""Every method of a joined network, on real nodes: what it does and the errors that it documents."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from networks import Networks, about, event, linked, networks, runtime
from support import eventually

from mesh import (
    AgentIdInUse,
    AgentMessage,
    AgentNetworkManager,
    DeliveryStatus,
    DeliveryTimeout,
    InvalidMessage,
    MeshConfig,
    MeshError,
    MessageType,
    NetworkClosed,
    NodeStatus,
    NotDelivered,
    PayloadTooLarge,
    Priority,
    RegistrationTooLarge,
    RemoteError,
    RequestTimeout,
    UnknownAgent,
    UnknownLetter,
    UnknownNode,
)
from mesh.errors import AgentError, IdentityError
from mesh.events import AgentJoined, AgentLeft, NodeUpdated

Call = Callable[[AgentNetworkManager], Awaitable[object]]


@pytest.fixture
async def join(tmp_path: Path) -> AsyncIterator[Networks]:
    """Starts nodes."""
    async with networks(tmp_path) as started:
        yield started


async def echo(message: AgentMessage) -> bytes:
    """An agent that answers with what it was sent."""
    return message.payload


# --- who is there -----------------------------------------------------------------------------------------------


async def test_a_node_describes_itself(join: Networks) -> None:
    """The own node is a member like any other, with the address that it listens on."""
    net = await join("solo", network="home")

    assert net.network == "home"
    assert replace(net.node, last_heartbeat=0) == replace(net.member("solo"), last_heartbeat=0)
    assert (net.node.node_id, net.node.status, net.node.address) == ("solo", NodeStatus.ACTIVE, "127.0.0.1")
    assert [address.port for address in net.addresses] == [net.node.port]
    assert net.node.last_heartbeat > 1_700_000_000_000
    assert [node.node_id for node in net.members()] == ["solo"]


async def test_members_are_the_same_everywhere(join: Networks) -> None:
    """Every node names every node, sorted, and has heard from those that it is linked with."""
    nets = await join.several("c", "a", "b")

    for net in nets:
        assert [node.node_id for node in net.members()] == ["a", "b", "c"]
        assert [node.node_id for node in await net.wait_for_members(3)] == ["a", "b", "c"]
        await eventually(functools.partial(_heard_from_everybody, net))


def _heard_from_everybody(net: AgentNetworkManager) -> bool:
    return all(node.last_heartbeat for node in net.members())


async def test_an_unknown_node(join: Networks) -> None:
    """Asking for a node that is no member names it and says where to look."""
    net = await join("a")

    with pytest.raises(UnknownNode, match="no node 'nobody'") as caught:
        net.member("nobody")
    assert "mesh members" in caught.value.hint


async def test_waiting_for_members_ends_in_time(join: Networks) -> None:
    """The error says how many there are."""
    net = await join("a")

    with pytest.raises(TimeoutError, match=r"1 of 2 members after 0\.02 s"):
        await net.wait_for_members(2, timeout_s=0.02)


async def test_waiting_ends_when_the_node_leaves(join: Networks) -> None:
    """Whoever waits for members or an agent is told that this node left."""
    net = await join("a")
    waiting = [asyncio.ensure_future(net.wait_for_members(2)), asyncio.ensure_future(net.wait_for_agent(7))]
    await asyncio.sleep(0)
    await net.leave_network()

    for error in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(error, NetworkClosed)


# --- agents -----------------------------------------------------------------------------------------------------


async def test_an_agent_appears_and_vanishes_everywhere(join: Networks) -> None:
    """Registering and deregistering reach the other node: its lists, its lookups and its events."""
    here, there = await join.several("a", "b")
    events = there.events()
    handle = await here.register_agent(
        42,
        ["summarize", "translate"],
        name="summarizer",
        tags=["gpu"],
        version="1.2.0",
        metadata={"zone": "eu"},
        handler=echo,
    )
    info = await there.wait_for_agent(42)

    assert info == handle.info
    assert handle.agent_id == 42
    assert (info.node_id, info.version, dict(info.metadata)) == ("a", "1.2.0", {"zone": "eu"})
    assert there.agents() == here.agents() == [info]
    assert there.member("a").agent_ids == (42,)
    assert there.member("a").capabilities == ("summarize", "translate")
    assert (await event(events, AgentJoined)).agent == info
    for wanted in ({"capability": "summarize"}, {"tag": "gpu"}, {"name": "summarizer"}):
        assert there.find_agents(**wanted) == [info]
        assert there.find_agents(**{**wanted, "capability": "none"}) == []

    await handle.deregister()
    await handle.deregister()
    assert (await event(events, AgentLeft)).agent == info
    assert here.agents() == there.agents() == []


async def test_a_registration_is_a_context(join: Networks) -> None:
    """The agent lives as long as the block, and its id is free afterwards."""
    net = await join("a")
    async with await net.register_agent(1, handler=echo):
        with pytest.raises(AgentIdInUse, match="already runs agent 1"):
            await net.register_agent(1)

    with pytest.raises(UnknownAgent):
        net.messages(1)
    await net.register_agent(1)


async def test_registrations_that_do_not_fit(join: Networks) -> None:
    """What a node may say of itself is bounded; what was refused has changed nothing."""
    net = await join("a")
    with pytest.raises(RegistrationTooLarge):
        for agent_id in range(1, 1_000):
            await net.register_agent(agent_id, ["x" * 250] * 60)
    fitted = runtime(net).courier.agents

    assert 1 <= len(fitted) < 1_000
    await eventually(lambda: len(net.agents()) == len(fitted))
    with pytest.raises(RegistrationTooLarge):
        await net.set_metadata({str(n): "x" * 250 for n in range(64)})


async def test_nobody_registers_the_agent(join: Networks) -> None:
    """Waiting for an agent ends in time."""
    net = await join("a")

    with pytest.raises(UnknownAgent, match=r"agent 7 within 0\.02 s"):
        await net.wait_for_agent(7, timeout_s=0.02)


async def test_an_inbox_has_one_reader(join: Networks) -> None:
    """An agent without a handler is read with ``messages``; one with a handler, or that is read already, is not."""
    net = await join("a")
    await net.register_agent(1)
    await net.register_agent(2, handler=echo)
    reader = net.messages(1)
    await net.send(1, b"hello", from_agent=9, headers={"k": "v"}, priority=Priority.HIGH)
    message = await anext(reader)

    assert (message.payload, message.from_agent, message.to_agent, message.from_node) == (b"hello", 9, 1, "a")
    assert (dict(message.headers), message.priority) == ({"k": "v"}, Priority.HIGH)
    with pytest.raises(AgentError, match="has a handler"):
        net.messages(2)
    with pytest.raises(AgentError, match="somebody already reads"):
        net.messages(1)


async def test_what_a_node_says_of_itself_is_there_at_once(join: Networks) -> None:
    """Whoever registers an agent or sets metadata reads it back without waiting, though gossip collects changes."""
    net = await join("a")
    events = net.events()
    for agent_id in range(1, 101):
        await net.register_agent(agent_id, ["work"])
    await net.set_metadata({"zone": "eu"})

    assert len(net.find_agents(capability="work")) == 100
    assert len(net.node.agent_ids) == len(net.agents()) == 100
    assert dict(net.members()[0].metadata) == {"zone": "eu"}
    await net.leave_network()
    assert sum(isinstance(found, NodeUpdated) for found in [found async for found in events]) <= 3


# --- messages ---------------------------------------------------------------------------------------------------


async def test_sending_with_and_without_acknowledgement(join: Networks) -> None:
    """The receipt says how far the message came and where; ids are unique."""
    here, there = await join.several("a", "b")
    await there.register_agent(7)
    await here.wait_for_agent(7)
    sent = await here.send(7, b"one")
    acked = await here.send(7, b"two", ack=True)
    inbox = there.messages(7)
    received = [await anext(inbox), await anext(inbox)]

    assert (sent.status, acked.status) == (DeliveryStatus.SENT, DeliveryStatus.DELIVERED)
    assert (sent.node_id, acked.node_id) == ("b", "b")
    assert [message.message_id for message in received] == [sent.message_id, acked.message_id]
    assert [message.payload for message in received] == [b"one", b"two"]


async def test_a_whole_message_is_sent_as_it_is(join: Networks) -> None:
    """Every field of an ``AgentMessage`` arrives, the receiver's own count of hops aside."""
    here, there = await join.several("a", "b")
    await there.register_agent(7)
    await here.wait_for_agent(7)
    message = AgentMessage(
        42, 7, MessageType.STATE_SYNC, b"x", timestamp=1_700_000_000_123, ttl=3, priority=Priority.LOW,
        headers={"trace": "1"}, group="g",
    )  # fmt: skip
    receipt = await here.send_message(message, ack=True)
    received = await anext(there.messages(7))

    assert received == replace(message, message_id=receipt.message_id, from_node="a", ttl=received.ttl)


async def test_requests(join: Networks) -> None:
    """A request returns the handler's result; a handler that raises is the asker's ``RemoteError``."""
    here, there = await join.several("a", "b")

    async def fail(message: AgentMessage) -> bytes:
        raise KeyError("nothing here")

    await there.register_agent(1, handler=echo)
    await there.register_agent(2, handler=fail)
    await here.wait_for_agent(2)

    assert await here.request(1, b"ping") == b"ping"
    with pytest.raises(RemoteError, match="nothing here") as caught:
        await here.request(2, b"")
    assert caught.value.kind == "KeyError"


async def test_replying_by_hand(join: Networks) -> None:
    """A query that was read from the inbox is answered with ``reply``; nothing else can be replied to."""
    here, there = await join.several("a", "b")
    await there.register_agent(3)
    await here.wait_for_agent(3)
    asked = asyncio.ensure_future(here.request(3, b"question"))
    query = await anext(there.messages(3))
    with pytest.raises(InvalidMessage, match="not bytes"):
        await there.reply(query, "text")  # type: ignore[arg-type]
    with pytest.raises(PayloadTooLarge):
        await there.reply(query, b"x" * (MeshConfig().message_bytes_max + 1))
    await there.reply(query, b"answer")

    assert await asked == b"answer"
    with pytest.raises(InvalidMessage, match="not one that a query arrived with"):
        await there.reply(replace(query, message_id="made up"), b"")
    with pytest.raises(InvalidMessage, match="only a query that arrived here"):
        await there.reply(AgentMessage(1, 3, MessageType.COMMAND, b""), b"")
    with pytest.raises(NotDelivered, match="elsewhere is no longer linked"):
        await there.reply(replace(query, from_node="elsewhere"), b"")


async def test_sending_waits_until_the_agent_is_known(join: Networks) -> None:
    """Send and request may come before the registration, which reaches them in time."""
    here, there = await join.several("a", "b")
    sending = asyncio.ensure_future(here.send(7, b"early", ack=True))
    asking = asyncio.ensure_future(here.request(8, b"early"))
    await asyncio.sleep(0.05)
    assert not sending.done()
    assert not asking.done()
    await there.register_agent(7, handler=echo)
    await there.register_agent(8, handler=echo)

    assert (await sending).node_id == "b"
    assert await asking == b"early"


async def test_time_runs_out(join: Networks) -> None:
    """Each way of waiting has its own error, which says whether the message may have arrived."""
    net = await join("a")
    never = asyncio.Event()

    async def sleep(message: AgentMessage) -> None:
        await never.wait()

    await net.register_agent(1, handler=sleep, concurrency=1)
    for call in (net.send, net.request):
        with pytest.raises(UnknownAgent) as unknown:
            await call(99, b"", timeout=0.02)
        assert not unknown.value.changed
    with pytest.raises(RequestTimeout) as timed_out:
        await net.request(1, b"", timeout=0.02)
    assert timed_out.value.changed
    await net.send(1, b"", ack=True)  # which takes its one place
    with pytest.raises(DeliveryTimeout) as uncertain:
        await net.send(1, b"", ack=True, timeout=0.02)
    assert uncertain.value.changed
    assert isinstance(timed_out.value, TimeoutError)


async def test_a_broadcast_reaches_every_agent_once(join: Networks) -> None:
    """All agents of all nodes hear it, the sending one excepted, and none twice."""
    nets = await join.several(*(f"n{n}" for n in range(4)))
    heard: list[tuple[int, bytes]] = []
    for number, net in enumerate(nets):
        for agent_id in (10 * number + 1, 10 * number + 2):

            async def hear(message: AgentMessage, agent_id: int = agent_id) -> None:
                if message.to_agent is None:
                    heard.append((agent_id, message.payload))

            await net.register_agent(agent_id, handler=hear)
    # Links are up, and their ends may still be agreeing to be neighbours.
    await eventually(lambda: runtime(nets[0]).gossip.statistics()["neighbors_up"] > 0)
    receipt = await nets[0].broadcast_message(b"short", from_agent=1, headers={"a": "b"})
    await nets[0].send_message(AgentMessage(2, None, MessageType.BROADCAST, b"long"))
    await eventually(lambda: len(heard) >= 14)
    marks = [await nets[n].request(10 * m + 1, b"mark") for n in range(4) for m in range(4) if m != n]

    everyone = {10 * n + k for n in range(4) for k in (1, 2)}
    assert len(marks) == 12
    assert sorted(agent for agent, payload in heard if payload == b"short") == sorted(everyone - {1})
    assert sorted(agent for agent, payload in heard if payload == b"long") == sorted(everyone - {2})
    assert receipt.status is DeliveryStatus.SENT
    assert 1 <= receipt.nodes <= 3


async def test_payloads_at_the_limit(join: Networks) -> None:
    """The largest payload goes through as a message, a request and its response, and a broadcast; one more does not."""
    here, there = await join.several("a", "b")
    limit = MeshConfig().message_bytes_max
    heard: list[int] = []

    async def hear(message: AgentMessage) -> bytes:
        heard.append(len(message.payload))
        return message.payload

    await there.register_agent(7, handler=hear)
    await here.wait_for_agent(7)
    full = b"x" * limit

    await here.send(7, full, ack=True)
    assert await here.request(7, full) == full
    await here.broadcast_message(full)
    await eventually(lambda: heard == [limit] * 3)
    for call in (
        here.send(7, full + b"x"),
        here.request(7, full + b"x"),
        here.broadcast_message(full + b"x"),
        here.send(7, full, headers={"one": "more"}),
    ):
        with pytest.raises(PayloadTooLarge, match="above the limit"):
            await call
    assert await here.request(7, b"still linked") == b"still linked"


async def test_the_limit_of_the_configuration_counts(join: Networks) -> None:
    """A lower limit of one's own holds for what one sends."""
    net = await join("a", messages={"message_bytes_max": 10})
    await net.register_agent(1, handler=echo)

    assert await net.request(1, b"x" * 10) == b"x" * 10
    with pytest.raises(PayloadTooLarge, match="limit of 10"):
        await net.request(1, b"x" * 11)


_BIG_ID = 2**64

#: What is wrong, the call that has it, and what the error says.
_REFUSED: dict[str, tuple[Call, str]] = {
    "payload is text": (lambda net: net.send(1, "text"), "payload is str, not bytes"),  # type: ignore[arg-type]
    "payload is a bytearray": (lambda net: net.request(1, bytearray(1)), "payload is bytearray"),  # type: ignore[arg-type]
    "broadcast of text": (lambda net: net.broadcast_message("text"), "payload is str"),  # type: ignore[arg-type]
    "target is text": (lambda net: net.send("1", b""), "agent id '1'"),  # type: ignore[arg-type]
    "target is a truth value": (lambda net: net.request(True, b""), "agent id True"),
    "target is negative": (lambda net: net.send(-1, b""), "agent id -1"),
    "target is too large": (lambda net: net.request(_BIG_ID, b""), f"agent id {_BIG_ID}"),
    "sender is negative": (lambda net: net.send(1, b"", from_agent=-1), "agent id -1"),
    "sender is too large": (lambda net: net.request(1, b"", from_agent=_BIG_ID), f"agent id {_BIG_ID}"),
    "no hop": (lambda net: net.send(1, b"", ttl=0), "ttl 0 is not between 1 and 64"),
    "too many hops": (lambda net: net.broadcast_message(b"", ttl=65), "ttl 65 is not"),
    "hops are a fraction": (lambda net: net.request(1, b"", ttl=1.5), "ttl 1.5"),  # type: ignore[arg-type]
    "priority is a number": (lambda net: net.send(1, b"", priority=2), "priority 2"),  # type: ignore[arg-type]
    "header is a number": (lambda net: net.send(1, b"", headers={"a": 1}), "header 'a'"),  # type: ignore[dict-item]
    "header is long": (lambda net: net.request(1, b"", headers={"a": "x" * 9999}), "header 'a'"),
    "header is no Unicode": (lambda net: net.send(1, b"", headers={"a": "\ud800"}), "cannot be encoded as UTF-8"),
    "too many headers": (lambda net: net.send(1, b"", headers={str(n): "" for n in range(65)}), "65 headers"),
    "headers are text": (lambda net: net.send(1, b"", headers="a=1"), "headers"),  # type: ignore[arg-type]
    "headers are a list": (lambda net: net.broadcast_message(b"", headers=["a"]), "headers"),  # type: ignore[arg-type]
    "a response by itself": (
        lambda net: net.send_message(AgentMessage(0, 1, MessageType.RESPONSE, b"")),
        "a response cannot be sent by itself",
    ),
    "no such type": (lambda net: net.send_message(AgentMessage(0, 1, 99, b"")), "message type 99"),  # type: ignore[arg-type]
    "no such priority": (
        lambda net: net.send_message(AgentMessage(0, 1, MessageType.COMMAND, b"", priority=99)),  # type: ignore[arg-type]
        "priority 99",
    ),
    "group is a number": (
        lambda net: net.send_message(AgentMessage(0, 1, MessageType.COMMAND, b"", group=1)),  # type: ignore[arg-type]
        "group 1",
    ),
    "time before the epoch": (
        lambda net: net.send_message(AgentMessage(0, 1, MessageType.COMMAND, b"", timestamp=-1)),
        "timestamp -1",
    ),
    "agent zero": (lambda net: net.register_agent(0), "agent id 0 is not a whole number from 1"),
    "agent too large": (lambda net: net.register_agent(_BIG_ID), "from 1 to"),
    "capabilities are one text": (lambda net: net.register_agent(1, "search"), "capabilities is one text"),
    "capability is a number": (lambda net: net.register_agent(1, [1]), "capabilities 1 is not text"),  # type: ignore[list-item]
    "capabilities are a number": (lambda net: net.register_agent(1, 5), "capabilities"),  # type: ignore[arg-type]
    "too many tags": (lambda net: net.register_agent(1, tags=["x"] * 65), "65 tags"),
    "name is a number": (lambda net: net.register_agent(1, name=5), "name 5 is not text"),  # type: ignore[arg-type]
    "version is long": (lambda net: net.register_agent(1, version="x" * 257), "version 'xxx"),
    "metadata of numbers": (lambda net: net.register_agent(1, metadata={"a": 1}), "metadata 1"),  # type: ignore[dict-item]
    "metadata is a list": (lambda net: net.register_agent(1, metadata=["a"]), "metadata"),  # type: ignore[arg-type]
    "handler is no function": (lambda net: net.register_agent(1, handler=b"x"), "handler"),  # type: ignore[arg-type]
    "no concurrency": (lambda net: net.register_agent(1, concurrency=0), "concurrency 0 is not"),
    "concurrency is text": (lambda net: net.register_agent(1, concurrency="2"), "concurrency '2'"),  # type: ignore[arg-type]
    "node metadata is text": (lambda net: net.set_metadata("a"), "metadata"),  # type: ignore[arg-type]
    "node metadata too many": (lambda net: net.set_metadata({str(n): "" for n in range(65)}), "65 entries of metadata"),
}


@pytest.mark.parametrize("group", ["one", "two"])
async def test_wrong_arguments(join: Networks, group: str) -> None:
    """Each is refused at once with ``InvalidMessage`` that names it, whether or not the receiver is known."""
    net = await join("a")
    if group == "two":
        await net.register_agent(1, handler=echo)
    wrong: list[str] = []
    for what, (call, said) in _REFUSED.items():
        try:
            async with asyncio.timeout(0.5):
                await call(net)
        except InvalidMessage as error:
            if said not in str(error):
                wrong.append(f"{what}: says {error}")
        except Exception as error:  # noqa: BLE001 - the point of the test is which one it is
            wrong.append(f"{what}: {error!r}")
        else:
            wrong.append(f"{what}: was accepted")

    assert wrong == [], "\n".join(wrong)
    assert [agent.agent_id for agent in net.agents()] == ([1] if group == "two" else [])


# --- running it -------------------------------------------------------------------------------------------------


async def test_an_invite_admits_a_node_of_another_tree(join: Networks) -> None:
    """The token is all that the other machine needs; afterwards it comes back without one."""
    here = await join("a")
    there = await join("b", tree="two", join_token=await here.invite())
    await linked(here, there)
    await there.leave_network()
    back = await join("b", tree="two", bootstrap=list(here.addresses))

    await linked(here, back)
    with pytest.raises(IdentityError):
        await back.invite()


@pytest.mark.parametrize("arguments", [{"ttl_s": 0.0}, {"ttl_s": -1.0}, {"ttl_s": 1e9}, {"uses": 0}, {"uses": -1}])
async def test_invites_that_make_no_sense(join: Networks, arguments: dict[str, Any]) -> None:
    """A time or number of uses that cannot be is refused."""
    net = await join("a")

    with pytest.raises(MeshError):
        await net.invite(**arguments)


async def test_metadata_and_maintenance_are_seen_by_others(join: Networks) -> None:
    """What a node says of itself reaches the others, as events and in their lists."""
    here, there = await join.several("a", "b")
    events = there.events()
    await here.set_metadata({"zone": "eu"})
    seen = await event(events, NodeUpdated, lambda e: bool(e.node.metadata))
    assert (seen.node.node_id, dict(seen.node.metadata)) == ("a", {"zone": "eu"})
    await here.set_maintenance(on=True)
    await event(events, NodeUpdated, lambda e: e.node.status is NodeStatus.MAINTENANCE)
    assert there.member("a").status is NodeStatus.MAINTENANCE
    await here.set_maintenance(on=False)
    await event(events, NodeUpdated, lambda e: about("a")(e) and e.node.status is NodeStatus.ACTIVE)

    assert dict(there.member("a").metadata) == {"zone": "eu"}
    assert here.node.status is NodeStatus.ACTIVE


async def test_statistics_are_plain(join: Networks) -> None:
    """They are JSON as they stand, and count what was done."""
    here, there = await join.several("a", "b")
    await there.register_agent(7, handler=echo)
    await here.request(7, b"")
    stats = json.loads(json.dumps(here.stats(), allow_nan=False))

    assert stats["node_id"] == "a"
    assert stats["messages"]["sent"] == 1
    assert stats["links"]["links_open"] == 1
    assert set(stats) >= {"messages", "gossip", "links", "enrolment", "discovery", "certificate_expires_in_s"}


# --- before and after -------------------------------------------------------------------------------------------

_NEED_THE_NETWORK: dict[str, Call] = {
    "send": lambda net: net.send(1, b""),
    "send with ack": lambda net: net.send(1, b"", ack=True),
    "send_message": lambda net: net.send_message(AgentMessage(0, 1, MessageType.COMMAND, b"")),
    "request": lambda net: net.request(1, b""),
    "broadcast_message": lambda net: net.broadcast_message(b""),
    "register_agent": lambda net: net.register_agent(1),
    "invite": lambda net: net.invite(),
    "set_metadata": lambda net: net.set_metadata({}),
    "set_maintenance": lambda net: net.set_maintenance(on=True),
}


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_node_outside_the_network_says_so(join: Networks, when: str) -> None:
    """Before it is started and after it has left, whatever needs the network raises ``NetworkClosed``."""
    if when == "before":
        net = AgentNetworkManager(MeshConfig(node_id="a", **join.settings()))
    else:
        net = await join("a")
        await net.register_agent(1, handler=echo)
        await net.leave_network()
    wrong = []
    for what, call in _NEED_THE_NETWORK.items():
        try:
            async with asyncio.timeout(1.0):
                await call(net)
        except NetworkClosed:
            continue
        except Exception as error:  # noqa: BLE001 - the point of the test is which one it is
            wrong.append(f"{what}: {error!r}")
        else:
            wrong.append(f"{what}: was accepted")

    assert wrong == []


async def test_what_was_known_can_be_read_after_leaving(join: Networks) -> None:
    """Reading needs no network: the last state stays, and events end."""
    net = await join("a")
    handle = await net.register_agent(1, handler=echo)
    events = net.events()
    await net.leave_network()
    await handle.deregister()

    assert net.node.node_id == "a"
    assert [node.node_id for node in net.members()] == ["a"]
    assert json.dumps(net.stats())
    assert isinstance([found async for found in events], list)
    assert [found async for found in net.events()] == []
    await net.wait_closed()


# --- durable messages -------------------------------------------------------------------------------------------


async def test_a_durable_message_survives_its_sender_and_finds_its_agent(join: Networks) -> None:
    """It is stored before anybody knows the agent; the node starts anew; then the agent registers elsewhere."""
    seen: list[AgentMessage] = []

    async def keep(message: AgentMessage) -> None:
        seen.append(message)

    first = await join("a")
    receipt = await first.send(7, b"one", from_agent=42, durable=True, deadline=60.0)
    message = AgentMessage(42, 7, MessageType.STATE_SYNC, b"two", headers={"k": "v"}, timestamp=5)
    await first.send_message(message, durable=True)
    assert receipt.status is DeliveryStatus.STORED
    assert first.stats()["durable"]["outbox"] == 2
    await first.leave_network()

    sender, receiver = await join("a"), await join("b")
    await linked(sender, receiver)
    await receiver.register_agent(7, handler=keep)
    await eventually(lambda: sender.stats()["durable"]["outbox"] == 0)

    assert [(one.payload, one.from_node) for one in seen] == [(b"one", "a"), (b"two", "a")]
    assert seen[0].message_id == receipt.message_id
    assert seen[1].headers == {"k": "v", "redelivered": "1"}
    assert sender.dead_letters() == []


async def test_dead_letters_can_be_replayed_and_dropped(join: Networks) -> None:
    """A message whose handler raises is given up, sent once more, given up again, and dropped."""
    net = await join("a", messages={"durable_attempts": 1})

    async def refuse(message: AgentMessage) -> None:
        raise ValueError("not today")

    await net.register_agent(7, handler=refuse)
    await net.send(7, b"x", durable=True)
    await eventually(net.dead_letters)
    (dead,) = net.dead_letters()
    assert (dead.reason, dead.detail, dead.failures, dead.message.payload) == (
        "failed",
        "ValueError: not today",
        1,
        b"x",
    )

    await net.replay(dead.letter_id, deadline=60)
    await eventually(lambda: [one.letter_id for one in net.dead_letters()] not in ([], [dead.letter_id]))
    (again,) = net.dead_letters()
    await net.drop(again.letter_id)

    assert net.dead_letters() == []
    with pytest.raises(UnknownLetter):
        await net.replay(again.letter_id)


async def test_a_durable_message_needs_arguments_that_fit(join: Networks) -> None:
    """Neither an acknowledgement nor a query, and a deadline that is a time; nothing is stored."""
    net = await join("a")
    query = AgentMessage(1, 7, MessageType.QUERY)
    for call in (
        net.send(7, b"", durable=True, ack=True),
        net.send(7, b"", deadline=5.0),
        net.send(7, b"", durable=True, deadline=0),
        net.send(7, b"", durable=True, deadline=10**9),
        net.send(7, b"", durable=True, deadline=True),
        net.send(-1, b"", durable=True),
        net.send_message(query, durable=True),
        net.send_message(AgentMessage(1, None), durable=True),
    ):
        with pytest.raises(InvalidMessage):
            await call

    assert net.stats()["durable"]["outbox"] == 0
