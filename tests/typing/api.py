"""The public API as a user's type checker sees it.  Never executed; checked by mypy and pyright (make types)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import assert_type

from mesh import (
    AgentInfo,
    AgentMessage,
    AgentNetworkManager,
    AgentNode,
    Change,
    ChangesLost,
    ConsistencyLevel,
    Counter,
    DeliveryStatus,
    DistributedState,
    MessageType,
    NodeFailed,
    NodeJoined,
    NodeLeft,
    NodeStatus,
    Priority,
    Receipt,
    ReplyStream,
    SharedDocument,
    TextContainer,
    Value,
    join_network,
    remaining_s,
    without_deadline,
)


async def handle(message: AgentMessage) -> bytes | None:
    """A handler, as users write one."""
    assert_type(message.payload, bytes)
    return message.payload


async def parts(message: AgentMessage) -> AsyncIterator[bytes]:
    """A handler that answers in parts."""
    assert_type(remaining_s(), float | None)
    with without_deadline():
        yield message.payload


async def managed() -> None:
    """Every argument of join_network, as a context manager."""
    async with join_network(
        bootstrap=["wss://10.0.0.5:7946"],
        node_id="planner-1",
        network="default",
        mdns=True,
        listen="0.0.0.0:7946",
        data_dir=None,
        join_token=None,
        config=None,
    ) as net:
        assert_type(net, AgentNetworkManager)
        assert_type(net.node, AgentNode)
        assert_type(net.members(), list[AgentNode])
        assert_type(net.agents(), list[AgentInfo])


async def awaited() -> None:
    """The same without a context manager."""
    net = await join_network()
    assert_type(net, AgentNetworkManager)
    await net.leave_network()


async def agents(net: AgentNetworkManager) -> None:
    """Registering, sending, asking, receiving."""
    agent = await net.register_agent(
        42,
        ["summarize"],
        name="summarizer",
        tags=["gpu"],
        version="1.2.0",
        metadata={"zone": "eu"},
        handler=handle,
    )
    message = AgentMessage(
        from_agent=42,
        to_agent=7,
        message_type=MessageType.COMMAND,
        payload=b"...",
        ttl=8,
        priority=Priority.HIGH,
    )
    receipt = await net.send_message(message)
    assert_type(receipt, Receipt)
    assert_type(receipt.status, DeliveryStatus)
    assert_type(await net.send(7, b"...", from_agent=42, ack=True, timeout=5.0), Receipt)
    assert_type(await net.request(7, b"...", from_agent=42, timeout=5.0), bytes)
    async for part in net.stream(7, b"...", from_agent=42, idle_timeout=5.0, timeout=60.0):
        assert_type(part, bytes)
    async with net.stream(7, b"...") as stream:
        assert_type(stream, ReplyStream)
        assert_type(await anext(stream), bytes)
        await stream.aclose()
    await net.register_agent(43, handler=parts)
    await net.broadcast_message(b"...")
    async for received in net.messages(42):
        assert_type(received, AgentMessage)
    await agent.deregister()


async def events(net: AgentNetworkManager) -> None:
    """Events are told apart by their class."""
    async for event in net.events():
        if isinstance(event, NodeJoined | NodeLeft | NodeFailed):
            assert_type(event.node, AgentNode)
            assert_type(event.node.status, NodeStatus)


async def documents(net: AgentNetworkManager) -> None:
    """Sharing documents and states."""
    doc = await net.document("board")
    assert_type(doc, SharedDocument)
    doc["key"] = {"a": [1, 2.5, b"x", None]}
    assert_type(doc["key"], Value)
    assert_type(doc.text("notes"), TextContainer)
    assert_type(doc.counter("hits"), Counter)
    assert_type(doc.counter("hits").value, int)
    with doc.transaction():
        doc.array("list").append(1, "two")
    stop = doc.observe(lambda change: print(change.container))
    stop()
    async for change in doc.changes():
        assert_type(change, Change | ChangesLost)
    await doc.synced(timeout=1.0)
    await doc.saved()
    assert_type(net.documents(), list[str])

    state = DistributedState("plan", agent_id=7, data={"step": 1}, consistency_level=ConsistencyLevel.EVENTUAL)
    assert_type(await net.sync_state(state), DistributedState)
    assert_type((await net.get_state("plan")).version, int)
