"""A node's way to its documents, which costs nothing until the first is opened.

pycrdt and its document machinery take a tenth of a second to load and some megabytes, so a node that has no documents
does not.  The door stands where links, groups and members are told of, hands everything to the courier as before, and
from the first document on to the documents' service as well.
"""

from __future__ import annotations

import asyncio
import importlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesh.errors import NetworkClosed
from state.clocks.vectors import Writer
from state.replication.groups import document_of
from transport.clock import Clock
from transport.link import CloseReason, Link, LinkHandler
from transport.tasks import in_thread
from transport.types import NodeId
from transport.wire import Envelope

if TYPE_CHECKING:
    from state.replication.service import Carrier, DocumentService

    from .shared import SharedDocument


class Documents:
    """The documents of one node.

    Args:
        courier: Who else uses the links.
        writer: This process of this node.
        path: Where documents are kept.
        carrier: Of live updates.
        subscribers: The nodes that are known to subscribe to a group.
        announce: Tells the network to which documents' groups this node subscribes.
        clock: For times and stamps.
        rng: Of repair.
    """

    def __init__(
        self,
        courier: LinkHandler,
        *,
        writer: Writer,
        path: Path,
        carrier: Carrier,
        subscribers: Callable[[str], Sequence[str]],
        announce: Callable[[tuple[str, ...]], None],
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._courier = courier
        self._writer = writer
        self._path = path
        self._carrier = carrier
        self._subscribers = subscribers
        self._announce = announce
        self._clock = clock
        self._rng = rng
        self._links: dict[Link, None] = {}
        self._service: DocumentService | None = None
        self._lock = asyncio.Lock()
        self._closed = False

    async def open(self, name: str) -> SharedDocument:
        """The document of this name.

        Raises:
            As :meth:`mesh.manager.AgentNetworkManager.document`.
        """
        shared = await in_thread(importlib.import_module, "mesh.documents.shared")
        service = await self.service()
        document: SharedDocument = shared.SharedDocument(await service.open(name), lambda: service.others(name))
        return document

    async def service(self) -> DocumentService:
        """What runs them, from now on.

        Raises:
            NetworkClosed: The node has left.
        """
        async with self._lock:
            if self._closed:
                raise NetworkClosed("this node is not in the network", hint="join with join_network")
            service = self._service
            if service is None:
                module = await in_thread(importlib.import_module, "state.replication.service")
                service = self._service = module.DocumentService(
                    self._writer,
                    self._path,
                    self._carrier,
                    subscribers=self._subscribers,
                    announce=self._announce,
                    clock=self._clock,
                    rng=self._rng,
                )
                for link in self._links:
                    service.link_opened(link)
            return service

    def names(self) -> list[str]:
        """The documents that are open, sorted."""
        return [] if self._service is None else sorted(self._service.replicas)

    # --- what the node tells ------------------------------------------------------------------------------------

    def link_opened(self, link: Link) -> None:
        """See :class:`transport.link.LinkHandler`."""
        self._links[link] = None
        self._courier.link_opened(link)
        if self._service is not None:
            self._service.link_opened(link)

    def link_closed(self, link: Link, reason: CloseReason, detail: str) -> None:
        """See :class:`transport.link.LinkHandler`."""
        self._links.pop(link, None)
        if self._service is not None:
            self._service.link_closed(link, reason, detail)
        self._courier.link_closed(link, reason, detail)

    def envelopes_received(self, link: Link, envelopes: Sequence[Envelope]) -> None:
        """See :class:`transport.link.LinkHandler`."""
        self._courier.envelopes_received(link, envelopes)
        if self._service is not None:
            self._service.envelopes_received(link, envelopes)

    def is_using(self, link: Link) -> bool:
        """Whether something is under way over ``link``."""
        return self._service is not None and self._service.is_using(link)

    def takes(self, group: str) -> bool:
        """Whether a multicast group is a document's."""
        return document_of(group) is not None

    def live_received(self, group: str, payload: bytes, origin: NodeId, life: int) -> None:
        """A live update came.

        Raises:
            RemoteProtocolError: It is none, or of another writer than its origin.
        """
        if self._service is not None:
            self._service.live_received(group, payload, origin, life)

    def subscriber_changed(self, group: str, node_id: NodeId, *, subscribed: bool) -> None:
        """A node subscribed to a group, or ceased to."""
        if self._service is not None:
            self._service.subscriber_changed(group, node_id, subscribed=subscribed)

    # --- end ----------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Save everything; harmless when done before."""
        self._closed = True
        async with self._lock:
            if self._service is not None:
                await self._service.close()

    def statistics(self) -> dict[str, Any]:
        """Counters, by document; empty as long as there is none."""
        return {} if self._service is None else self._service.statistics()
