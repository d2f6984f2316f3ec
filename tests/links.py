"""Endpoints for tests: the same bed over memory and over WebSocket, and a handler that remembers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from identities import make_credentials

from transport.config import LinkConfig
from transport.endpoint import BaseEndpoint
from transport.identity.credentials import Credentials
from transport.identity.tls import TlsContexts
from transport.link import CloseReason, Link
from transport.memory import MemoryEndpoint, MemoryNetwork
from transport.types import Address, NodeId, network_name, node_id
from transport.websocket import WebSocketEndpoint
from transport.wire import Envelope, Kind

#: Short enough that a test of a timeout takes well under a second, long enough for a busy machine.
FAST = LinkConfig(
    keepalive_interval_s=0.1,
    keepalive_timeout_s=0.8,
    handshake_timeout_s=2.0,
    dial_timeout_s=3.0,
    probe_timeout_s=0.4,
    close_timeout_s=0.5,
)

#: An incarnation is a life and the refutations in it.
LIFE = 1 << 16


def message(body: bytes = b"", kind: int = Kind.MESSAGES) -> Envelope:
    """An envelope of the layers above."""
    return Envelope(kind, 0, None, None, body)


class Recorder:
    """A link handler that remembers everything; ``on_envelopes`` may do more."""

    def __init__(self) -> None:
        self.opened: list[Link] = []
        self.closed: list[tuple[Link, CloseReason, str]] = []
        self.events: list[tuple[str, NodeId]] = []
        self.received: list[Envelope] = []
        # What came together, in one frame: how many envelopes each time.
        self.runs: list[int] = []
        self.on_envelopes: Callable[[Link, Sequence[Envelope]], None] | None = None

    def link_opened(self, link: Link) -> None:
        self.opened.append(link)
        self.events.append(("opened", link.peer.node_id))

    def link_closed(self, link: Link, reason: CloseReason, detail: str) -> None:
        self.closed.append((link, reason, detail))
        self.events.append(("closed", link.peer.node_id))

    def envelopes_received(self, link: Link, envelopes: Sequence[Envelope]) -> None:
        self.received.extend(envelopes)
        self.runs.append(len(envelopes))
        if self.on_envelopes is not None:
            self.on_envelopes(link, envelopes)

    @property
    def reasons(self) -> list[CloseReason]:
        """Why links closed, in order."""
        return [reason for _, reason, _ in self.closed]


class Node:
    """A started endpoint and its handler."""

    def __init__(self, endpoint: BaseEndpoint, handler: Recorder, address: Callable[[], Address]) -> None:
        self.endpoint = endpoint
        self.handler = handler
        self._address = address

    @property
    def id(self) -> NodeId:
        return self.endpoint.node_id

    @property
    def address(self) -> Address:
        return self._address()

    async def dial(self, other: Node, *, expected: bool = True) -> Link:
        return await self.endpoint.dial(other.address, other.id if expected else None)


class Bed:
    """Makes nodes of one network and closes them in the end."""

    def __init__(self) -> None:
        self._stack = contextlib.AsyncExitStack()

    async def node(self, name: str, *, life: int = 1, config: LinkConfig = FAST, **more: Any) -> Node:
        """A started node."""
        handler = Recorder()
        endpoint, address = await self._make(name, life * LIFE, handler, config, **more)
        await endpoint.start()
        self._stack.push_async_callback(endpoint.close)
        return Node(endpoint, handler, address)

    async def _make(
        self, name: str, incarnation: int, handler: Recorder, config: LinkConfig, **more: Any
    ) -> tuple[BaseEndpoint, Callable[[], Address]]:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()


class MemoryBed(Bed):
    """Nodes that speak through queues."""

    def __init__(self, _path: Path, wire: MemoryNetwork | None = None) -> None:
        super().__init__()
        self.wire = wire or MemoryNetwork()

    async def _make(
        self, name: str, incarnation: int, handler: Recorder, config: LinkConfig, **more: Any
    ) -> tuple[BaseEndpoint, Callable[[], Address]]:
        network = network_name(more.pop("network", "net"))
        endpoint = MemoryEndpoint(self.wire, network, node_id(name), incarnation, handler, config=config, **more)
        return endpoint, lambda: endpoint.listen


class WebSocketBed(Bed):
    """Nodes that speak over loopback with real certificates."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    async def _make(
        self, name: str, incarnation: int, handler: Recorder, config: LinkConfig, **more: Any
    ) -> tuple[BaseEndpoint, Callable[[], Address]]:
        network = more.pop("network", "net")
        credentials: Credentials | None = more.pop("credentials", None)
        if credentials is None:
            credentials = await asyncio.to_thread(make_credentials, self.path, network, name)
        contexts = await asyncio.to_thread(TlsContexts, credentials)
        endpoint = WebSocketEndpoint(
            network_name(network),
            node_id(name),
            incarnation,
            contexts,
            more.pop("listen", Address("127.0.0.1", 0)),
            handler,
            config=config,
            **more,
        )
        return endpoint, lambda: endpoint.listening
