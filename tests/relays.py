"""Relayed links for tests, over a switchboard that may lose, double and reorder what it carries."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from links import Bed, Recorder

from gossip.config import GossipConfig
from gossip.relay_link import RelayEndpoint, relay_address
from transport.config import LinkConfig
from transport.endpoint import BaseEndpoint
from transport.types import Address, NodeId, network_name, node_id


class Switchboard:
    """Carries bodies between relay endpoints.

    Args:
        loss: Which part is lost.
        jitter_s: The longest delay; each body takes a random part of it.
        seed: Of what is lost and delayed.
    """

    def __init__(self, *, loss: float = 0.0, jitter_s: float = 0.0, seed: int = 1) -> None:
        self.endpoints: dict[NodeId, RelayEndpoint] = {}
        self.hop = NodeId("relay")
        self.cut = False
        self.loss = loss
        self.carried = 0
        self.suspected: list[NodeId] = []
        self._jitter_s = jitter_s
        self._rng = random.Random(seed)

    def carry(self, source: NodeId, target: NodeId, body: bytes) -> NodeId | None:
        """As :meth:`gossip.relay_link.Carrier.carry`, for one node."""
        if target not in self.endpoints:
            return None
        self.carried += 1
        if self.cut or self._rng.random() < self.loss:
            return self.hop
        loop = asyncio.get_running_loop()
        if self._jitter_s:
            loop.call_later(self._rng.uniform(0, self._jitter_s), self._deliver, source, target, body)
        else:
            loop.call_soon(self._deliver, source, target, body)
        return self.hop

    def _deliver(self, source: NodeId, target: NodeId, body: bytes) -> None:
        endpoint = self.endpoints.get(target)
        if endpoint is not None:
            endpoint.received(source, body)


class Port:
    """One node's side of a switchboard."""

    def __init__(self, board: Switchboard, name: NodeId) -> None:
        self._board = board
        self._name = name

    def carry(self, target: NodeId, body: bytes) -> NodeId | None:
        return self._board.carry(self._name, target, body)

    def is_way(self, target: NodeId, hop: NodeId) -> bool:
        return target in self._board.endpoints and hop == self._board.hop

    def want_way(self, target: NodeId) -> None:
        tell = partial(self._board.endpoints[self._name].way_changed, target, found=target in self._board.endpoints)
        asyncio.get_running_loop().call_soon(tell)

    def suspect_way(self, target: NodeId, hop: NodeId) -> None:
        self._board.suspected.append(target)


class RelayBed(Bed):
    """Nodes whose only links are relayed."""

    def __init__(self, _path: Path, board: Switchboard | None = None, gossip: GossipConfig | None = None) -> None:
        super().__init__()
        self.board = board or Switchboard()
        self._gossip = gossip or GossipConfig()

    async def _make(
        self, name: str, incarnation: int, handler: Recorder, config: LinkConfig, **more: Any
    ) -> tuple[BaseEndpoint, Callable[[], Address]]:
        network = network_name(more.pop("network", "net"))
        own = node_id(name)
        more.setdefault("advertise", (relay_address(own),))
        endpoint = RelayEndpoint(
            network,
            own,
            incarnation,
            handler,
            carrier=Port(self.board, own),
            gossip=self._gossip,
            config=config,
            rng=random.Random(f"{name} {incarnation}"),
            **more,
        )
        self.board.endpoints[own] = endpoint
        return endpoint, lambda: relay_address(own)
