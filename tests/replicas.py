"""Replicas with real stores and a network of function calls, for tests of replication."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

from state.clocks.vectors import Writer
from state.documents.document import Document
from state.replication.codec import Body, decode, encode
from state.replication.repair import RepairConfig
from state.replication.replica import Replica
from state.store import DocumentStore
from transport.clock import SystemClock
from transport.errors import LocalProtocolError
from transport.types import NodeId

FAST = RepairConfig(interval_s=0.05, pull_timeout_s=0.5, gap_s=0.02, penalty_s=0.3)


class Node:
    """One node of the fake network, with one replica."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = NodeId(name)
        self.cuts: list[tuple[NodeId, str]] = []
        self.said: list[tuple[NodeId, Body]] = []
        self.replica: Replica
        self.store: DocumentStore

    @property
    def document(self) -> Document:
        """Its document."""
        return self.replica.document

    def say(self, peer: NodeId, body: Body) -> None:
        """See :class:`state.replication.replica.Surroundings`."""
        self.said.append((peer, body))
        if peer in self.world.nodes and self.world.passes(self.name, peer):
            other, sent = self.world.nodes[peer], decode(encode(body))
            assert sent == body
            asyncio.get_running_loop().call_soon(other.replica.heard, self.name, body)

    def publish(self, document: str, payload: bytes) -> None:
        """See :class:`state.replication.replica.Surroundings`."""
        assert document == "board"
        if self.world.refuses:
            raise LocalProtocolError("too large")
        for other in self.world.nodes.values():
            if other is not self and self.world.passes(self.name, other.name):
                other.replica.live_received(payload, self.name, self.document.writer.life)

    def cut(self, peer: NodeId, reason: str) -> None:
        """See :class:`state.replication.replica.Surroundings`."""
        self.cuts.append((peer, reason))


class World:
    """The fake network; ``passes`` says what gets through."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: dict[NodeId, Node] = {}
        self.passes: Callable[[NodeId, NodeId], bool] = lambda _source, _target: True
        self.refuses = False

    async def add(self, name: str, *, life: int = 1, config: RepairConfig = FAST) -> Node:
        """Open a replica, and link it with all others."""
        node = Node(self, name)
        node.store = await DocumentStore.open(self.folder / f"{name}.db")
        document = Document("board", Writer(node.name, life))
        log = await node.store.log(document.name, document.lineage)
        node.replica = Replica(document, log, node, clock=SystemClock(), rng=random.Random(name), config=config)
        await node.replica.load()
        for other in self.nodes.values():
            other.replica.peer_up(node.name)
            node.replica.peer_up(other.name)
        self.nodes[node.name] = node
        return node

    async def remove(self, node: Node) -> None:
        """Close a replica in order."""
        self.nodes.pop(node.name, None)
        for other in self.nodes.values():
            other.replica.peer_down(node.name)
        await node.replica.close()
        await node.store.close()
