"""Every node answers commands, also one that a program runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from mesh import AgentNetworkManager, MeshConfig, join_network
from mesh.control.client import ControlClient
from mesh.control.locate import choose_node, running_nodes


def configuration(data_dir: Path, *, control: bool = True) -> MeshConfig:
    """A node on loopback in a tree of its own."""
    return MeshConfig(node_id="n1", listen="127.0.0.1:0", mdns=False, data_dir=data_dir, control=control)


async def ask(path: Path, op: str) -> Any:
    """What a command does."""

    def call() -> Any:
        with ControlClient(path) as client:
            return client.call(op)

    return await asyncio.to_thread(call)


async def test_an_embedded_node_answers_and_leaves_when_told(tmp_path: Path) -> None:
    """`mesh members` and `mesh leave` work on it, and the program that runs it sees that it has left."""
    net: AgentNetworkManager = await join_network(config=configuration(tmp_path))
    try:
        running = await asyncio.to_thread(choose_node, tmp_path)
        async with asyncio.timeout(10):
            members = await ask(running.socket_path, "members")
            assert [node["node_id"] for node in members] == ["n1"]
            assert await ask(running.socket_path, "leave") == {"node_id": "n1", "leaving": True}
            await net.wait_closed()
    finally:
        await net.leave_network()
    assert await asyncio.to_thread(running_nodes, tmp_path) == []
    assert not running.socket_path.exists()


async def test_a_node_that_takes_no_commands(tmp_path: Path) -> None:
    """With `control` off there is no socket, and nothing else changes."""
    async with join_network(config=configuration(tmp_path, control=False)) as net:
        assert net.node.node_id == "n1"
        assert await asyncio.to_thread(running_nodes, tmp_path) == []
