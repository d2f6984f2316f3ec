"""Real nodes in this process: over TLS on the loopback, in a data directory of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from support import eventually

from mesh import AgentNetworkManager, AgentNode, MeshEvent, NodeStatus, join_network
from mesh.runtime import Runtime
from transport.link import CloseReason
from transport.types import NodeId

_E = TypeVar("_E")


class Networks:
    """Starts nodes in trees below one folder, and has those that still run leave at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: list[AgentNetworkManager] = []

    async def __call__(self, node_id: str, *, tree: str = "one", **settings: Any) -> AgentNetworkManager:
        """A node that listens; nodes with the same ``tree`` and network find and trust one another."""
        net = await join_network(node_id=node_id, **self.settings(tree, **settings))
        self.nodes.append(net)
        return net

    def settings(self, tree: str = "one", **settings: Any) -> dict[str, Any]:
        """The arguments of ``join_network`` that every node here shares."""
        shared = {"listen": "127.0.0.1:0", "mdns": False, "preset": "local", "data_dir": self.folder / tree}
        return {**shared, **settings}

    async def several(self, *node_ids: str, **settings: Any) -> list[AgentNetworkManager]:
        """These nodes, started at once, when each knows and is linked with every other."""
        nets = list(await asyncio.gather(*(self(node_id, **settings) for node_id in node_ids)))
        await linked(*nets)
        return nets

    async def leave(self) -> None:
        """Have every node leave."""
        await asyncio.gather(*(net.leave_network(timeout_s=2.0) for net in self.nodes))


@asynccontextmanager
async def networks(folder: Path) -> AsyncIterator[Networks]:
    """Nodes that leave at the end."""
    made = Networks(folder)
    try:
        yield made
    finally:
        await made.leave()


def runtime(net: AgentNetworkManager) -> Runtime:
    """What runs below the public surface."""
    return net._runtime


async def linked(*nets: AgentNetworkManager) -> None:
    """Wait until each of these holds the others for active and has a link to them."""
    names = {str(net.node.node_id) for net in nets}

    def complete() -> bool:
        return all(
            names <= {node.node_id for node in net.members() if node.status is NodeStatus.ACTIVE}
            and names <= {str(peer) for peer in runtime(net).gossip.links} | {net.node.node_id}
            for net in nets
        )

    await eventually(complete, what=f"links between {sorted(names)}")


async def vanish(net: AgentNetworkManager) -> None:
    """Fall silent without a goodbye, as a process that is killed; the handle can still leave."""
    await runtime(net).gossip.close()


def cut(net: AgentNetworkManager, peer: str) -> None:
    """Break the connection to ``peer`` without a word."""
    link: Any = runtime(net).gossip.links[NodeId(peer)]
    link.finish(CloseReason.CONNECTION_LOST, "cut by the test")


async def event(
    events: AsyncIterator[MeshEvent], kind: type[_E], matches: Callable[[_E], bool] = lambda _: True, *, s: float = 8.0
) -> _E:
    """The next event of this kind that matches; others are passed over."""
    async with asyncio.timeout(s):
        async for found in events:
            if isinstance(found, kind) and matches(found):
                return found
    raise AssertionError(f"the events ended before a {kind.__name__}")


def about(node_id: str) -> Callable[[Any], bool]:
    """Whether an event is about this node."""

    def matches(found: Any) -> bool:
        node: AgentNode = found.node
        return node.node_id == node_id

    return matches
