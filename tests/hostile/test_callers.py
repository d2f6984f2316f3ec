"""What a caller of the API does wrong, and what other processes of the same name do: each gets its own error."""

from __future__ import annotations

import asyncio
import shutil
import socket
from pathlib import Path

import pytest
from hostile_nodes import SINK, join, town
from support import eventually

from mesh.errors import (
    DeliveryTimeout,
    InvalidMessage,
    ListenError,
    NodeIdInUse,
    NotDelivered,
    PayloadTooLarge,
    RemoteError,
    Superseded,
    UnknownAgent,
)
from mesh.types import AgentMessage, MessageType


async def test_a_handler_that_raises_hurts_nobody_but_its_caller(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller gets the exception's class and text, the statistics a count, the log a traceback."""
    async with town(tmp_path) as there:

        async def fail(message: AgentMessage) -> bytes | None:
            if message.payload == b"exit":
                raise SystemExit(3)
            raise ZeroDivisionError(f"on purpose: {message.payload!r}")

        handle = await there.target.register_agent(9, handler=fail)
        await there.other.wait_for_agent(9)
        with pytest.raises(RemoteError, match="on purpose") as caught:
            await there.other.request(9, b"query")
        assert caught.value.kind == "ZeroDivisionError"
        assert (await there.other.send(9, b"command", ack=True)).status.name == "DELIVERED"
        await eventually(lambda: there.target.stats()["messages"]["handler_errors"] == 2)
        assert "ZeroDivisionError" in caplog.text
        assert there.links()["handler_errors"] == 0
        await handle.deregister()


async def test_what_cannot_be_sent_is_refused_before_it_leaves(tmp_path: Path) -> None:
    """A payload above the limit, a TTL of zero, an agent nobody runs: typed, and nothing was sent."""
    async with town(tmp_path) as there:
        with pytest.raises(PayloadTooLarge, match="bytes"):
            await there.other.send(SINK, bytes(2 << 20))
        with pytest.raises(PayloadTooLarge):
            await there.other.broadcast_message(bytes(2 << 20))
        for ttl in (0, -1, 256):
            with pytest.raises(InvalidMessage, match="ttl"):
                await there.other.send(SINK, b"x", ttl=ttl)
        with pytest.raises(InvalidMessage, match="ttl"):
            await there.other.send_message(
                AgentMessage(0, SINK, MessageType.COMMAND, b"x", ttl=0, message_id="", from_node="other")
            )
        with pytest.raises(UnknownAgent, match="404"):
            await there.other.request(404, b"anybody?", timeout=0.2)
        with pytest.raises((InvalidMessage, UnknownAgent)):
            await there.other.send(-1, b"x", timeout=0.2)
        with pytest.raises(InvalidMessage):
            await there.other.send(SINK, "text")  # type: ignore[arg-type]  # the mistake under test


async def test_an_agent_that_takes_nothing_does_not_hold_up_another(tmp_path: Path) -> None:
    """Its sender waits and is told; the stream to its neighbour on the same node goes on (:func:`town` checks)."""
    async with town(tmp_path) as there:
        release = asyncio.Event()

        async def stuck(_: AgentMessage) -> None:
            await release.wait()

        handle = await there.target.register_agent(9, handler=stuck)
        await there.other.wait_for_agent(9)
        with pytest.raises((NotDelivered, DeliveryTimeout)):
            for _ in range(200):
                await there.other.send(9, bytes(65_536), timeout=0.3)
        release.set()
        await handle.deregister()


async def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    """And nothing is left running: the same node starts on a free port right after."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        from mesh import join_network

        with pytest.raises(ListenError, match=str(port)):
            await join_network(node_id="a", data_dir=tmp_path, listen=f"127.0.0.1:{port}", mdns=False)
    async with await join(tmp_path, "a") as node:
        assert node.node.node_id == "a"


async def test_a_second_process_of_one_directory_is_refused(tmp_path: Path) -> None:
    """The lock of the data directory tells before anything is dialled."""
    async with town(tmp_path) as there:
        with pytest.raises(NodeIdInUse, match="target"):
            await join(tmp_path, "target")
        assert there.links()["refused"] == 0


async def test_a_live_double_from_a_copied_directory_has_to_go(tmp_path: Path) -> None:
    """Two processes with one certificate, in two directories: the older stays, the newer is told and ends."""
    async with town(tmp_path / "a") as there:
        await asyncio.to_thread(
            shutil.copytree, tmp_path / "a", tmp_path / "b", ignore=shutil.ignore_patterns("*.sock")
        )
        bootstrap = [there.address, there.other.addresses[0]]
        double = await join(tmp_path / "b", "other", bootstrap=bootstrap)
        try:
            with pytest.raises(Superseded, match="other"):
                async with asyncio.timeout(15):
                    await double.wait_closed()
        finally:
            await double.leave_network()
        assert there.refused("duplicate_node") >= 1
