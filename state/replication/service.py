"""The documents of one node: opened once each, fed with what links and groups bring, closed with the node.

A node holds the documents that its program opened in this life, and no others.  Each has a multicast group of its own,
to which its replicas subscribe; so every node knows, from what members say of themselves, who replicates what.  Live
updates go along the group's tree, and repair is done with the group's neighbours (:mod:`gossip.ring`), with whom there
is a link anyway.

A document stays open until the node leaves: a writer that would open it again must not have forgotten a number.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, Protocol

from gossip.ring import Ring
from gossip.service import BroadcastOutcome
from state.clocks.vectors import Writer
from state.documents.document import Document
from state.errors import StateError
from state.store import DocumentStore
from transport.clock import Clock
from transport.errors import LinkClosed, LocalProtocolError
from transport.link import CloseReason, Link, SendOutcome
from transport.logs import get_logger
from transport.tasks import TaskScope
from transport.types import Lane, NodeId
from transport.wire import TTL_MAX, Envelope, Kind

from .codec import Body, Page, decode, encode
from .groups import document_of, group_of
from .repair import RepairConfig
from .replica import Replica

log = get_logger("mesh.state")

#: Documents that one node opens: their groups share gossip's bound with those of messages.
DOCUMENTS_MAX: Final = 512
#: Hops of a live update; the tree's depth is the bound that matters.
_TTL: Final = TTL_MAX


class Carrier(Protocol):
    """What carries live updates and makes links: the gossip service."""

    def open_group(self, group: str, subscribers: Iterable[NodeId], *, member: bool) -> None:
        """See :meth:`gossip.service.GossipService.open_group`."""
        ...

    def publish(self, group: str, payload: bytes, ttl: int) -> BroadcastOutcome:
        """See :meth:`gossip.service.GossipService.publish`."""
        ...


class DocumentService:
    """The documents of one node.

    Args:
        writer: This process of this node.
        path: The file in which they are kept.
        carrier: Of live updates.
        subscribers: The nodes that are known to subscribe to a group.
        announce: Tells the network to which documents' groups this node subscribes.
        clock: Monotonic for times, wall for stamps.
        rng: Of repair.
        config: Of repair.
    """

    def __init__(
        self,
        writer: Writer,
        path: Path,
        carrier: Carrier,
        *,
        subscribers: Callable[[str], Sequence[str]],
        announce: Callable[[tuple[str, ...]], None],
        clock: Clock,
        rng: random.Random,
        config: RepairConfig | None = None,
    ) -> None:
        self._writer = writer
        self._path = path
        self._carrier = carrier
        self._subscribers = subscribers
        self._announce = announce
        self._clock = clock
        self._rng = rng
        self._config = config or RepairConfig()
        self._replicas: dict[str, Replica] = {}
        self._rings: dict[str, Ring] = {}
        self._opening: dict[str, asyncio.Task[Replica]] = {}
        self._store: DocumentStore | None = None
        self._store_lock = asyncio.Lock()
        self._links: dict[NodeId, Link] = {}
        # What found no room on a link: the latest of each kind and document, sent once there is room.
        self._backlog: dict[NodeId, dict[tuple[str, type[Body]], Body]] = {}
        self._scope = TaskScope("documents")
        self._closed = False
        self.counters = dict.fromkeys(("bodies_received", "bodies_of_others", "bodies_of_later_versions"), 0)

    # --- documents ----------------------------------------------------------------------------------------------

    async def open(self, name: str) -> Replica:
        """The replica of a document, which is opened, or created, if it is not.

        Raises:
            StorageError: It cannot be read or written.
            StateError: The name cannot be used, or there are too many documents.
            LocalProtocolError, MeshError: The group cannot be subscribed to.
        """
        while True:
            if self._closed:
                raise StateError("this node has left the network")
            if (replica := self._replicas.get(name)) is not None:
                return replica
            task = self._opening.get(name)
            if task is None:
                spawned = self._scope.spawn(self._open(name), name=f"open {name}")
                assert spawned is not None
                task = self._opening[name] = spawned
            try:
                # Shielded: who gives up waiting must not end it for others.
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                if not task.cancelled():
                    raise
                raise StateError("this node has left the network") from None

    async def _open(self, name: str) -> Replica:
        try:
            if len(self._replicas) + len(self._opening) > DOCUMENTS_MAX:
                raise StateError(f"this node has {DOCUMENTS_MAX} documents open, and may not have more")
            document = Document(name, self._writer, clock=self._clock)
            store = await self._opened_store()
            replica = Replica(
                document,
                await store.log(name, document.lineage),
                self,
                clock=self._clock,
                rng=self._rng,
                config=self._config,
            )
            await replica.load()
            try:
                self._join(name, replica)
            except BaseException:  # whatever it was: no replica may run that nobody holds
                await replica.close()
                raise
        finally:
            del self._opening[name]
        return replica

    async def _opened_store(self) -> DocumentStore:
        async with self._store_lock:
            if self._store is None:
                self._store = await DocumentStore.open(self._path)
            return self._store

    def _join(self, name: str, replica: Replica) -> None:
        group = group_of(name)
        others = [NodeId(node_id) for node_id in self._subscribers(group) if node_id != self._writer.node]
        self._carrier.open_group(group, others, member=True)
        try:
            self._announce(tuple(map(group_of, (*self._replicas, name))))
        except BaseException:  # whatever it was: as before
            self._carrier.open_group(group, (), member=False)
            raise
        ring = self._rings[name] = Ring(group)
        for node_id in (*others, self._writer.node):
            ring.add(node_id)
        self._replicas[name] = replica
        self._rewire(name)

    def _rewire(self, name: str) -> None:
        """Compare with the group's neighbours to whom there are links, and with no others."""
        replica = self._replicas[name]
        wanted = dict.fromkeys(peer for peer in self._rings[name].neighbors(self._writer.node) if peer in self._links)
        for peer in replica.peers:
            if peer not in wanted:
                replica.peer_down(peer)
        for peer in wanted:
            replica.peer_up(peer)

    @property
    def replicas(self) -> dict[str, Replica]:
        """The open documents by name.  Do not modify."""
        return self._replicas

    def others(self, name: str) -> list[NodeId]:
        """The other nodes that are known to replicate a document, sorted."""
        return sorted(NodeId(node) for node in self._subscribers(group_of(name)) if node != self._writer.node)

    # --- what the node tells ------------------------------------------------------------------------------------

    def subscriber_changed(self, group: str, node_id: NodeId, *, subscribed: bool) -> None:
        """A node subscribed to a group, or ceased to."""
        name = document_of(group)
        if name is None or name not in self._replicas or node_id == self._writer.node:
            return
        if subscribed:
            self._rings[name].add(node_id)
        else:
            self._rings[name].discard(node_id)
        self._rewire(name)
        self._replicas[name].look()

    def live_received(self, group: str, payload: bytes, origin: NodeId, life: int) -> None:
        """A live update came by a document's group.

        Raises:
            RemoteProtocolError: It is none, or of another writer than its origin.
        """
        replica = self._replicas.get(document_of(group) or "")
        if replica is not None:
            replica.live_received(payload, origin, life)

    # --- what links tell (LinkHandler) --------------------------------------------------------------------------

    def link_opened(self, link: Link) -> None:
        """A link is up."""
        peer = link.peer.node_id
        if self._links.get(peer) is not None:
            self._unlinked(peer)  # its end comes later, and what was under way over it is lost
        self._links[peer] = link
        for name, ring in self._rings.items():
            if peer in ring:
                self._rewire(name)

    def link_closed(self, link: Link, reason: CloseReason, detail: str) -> None:
        """A link is gone."""
        del reason, detail
        peer = link.peer.node_id
        if self._links.get(peer) is link:
            del self._links[peer]
            self._unlinked(peer)

    def _unlinked(self, peer: NodeId) -> None:
        self._backlog.pop(peer, None)
        for replica in self._replicas.values():
            replica.peer_down(peer)

    def envelopes_received(self, link: Link, envelopes: Sequence[Envelope]) -> None:
        """Envelopes arrived; those of other kinds are passed over.

        Raises:
            RemoteProtocolError: One is not what replicas say; the link is closed.
        """
        for envelope in envelopes:
            if envelope.kind == Kind.DOCUMENTS and self._links.get(link.peer.node_id) is link:
                self._heard(link.peer.node_id, envelope.body)

    def _heard(self, peer: NodeId, data: bytes) -> None:
        self.counters["bodies_received"] += 1
        body = decode(data)
        if body is None:
            self.counters["bodies_of_later_versions"] += 1
        elif (replica := self._replicas.get(body.document)) is None:
            self.counters["bodies_of_others"] += 1
        else:
            replica.heard(peer, body)

    def is_using(self, link: Link) -> bool:
        """Whether something is under way over a link that its end would cut short."""
        peer = link.peer.node_id
        return peer in self._backlog or any(replica.is_using(peer) for replica in self._replicas.values())

    # --- what replicas need (Surroundings) ----------------------------------------------------------------------

    def say(self, peer: NodeId, body: Body) -> None:
        """See :class:`~state.replication.replica.Surroundings`."""
        link = self._links.get(peer)
        if link is None:
            return
        backlog = self._backlog.get(peer)
        if backlog is not None:
            backlog[body.document, type(body)] = body
        elif self._send(link, body) is SendOutcome.FULL:
            self._backlog[peer] = {(body.document, type(body)): body}
            self._scope.spawn(self._send_later(peer, link), name=f"wait for room to {peer}")

    async def _send_later(self, peer: NodeId, link: Link) -> None:
        backlog = self._backlog[peer]
        try:
            while backlog and self._backlog.get(peer) is backlog:
                await link.wait_writable(_lane(next(iter(backlog.values()))))
                for key, body in list(backlog.items()):
                    if self._send(link, body) is not SendOutcome.ACCEPTED:
                        break
                    del backlog[key]
        except LinkClosed:
            return  # whose end tells the rest
        finally:
            if self._backlog.get(peer) is backlog:
                del self._backlog[peer]

    def _send(self, link: Link, body: Body) -> SendOutcome:
        try:
            return link.send(Envelope(Kind.DOCUMENTS, 1, None, None, encode(body)), _lane(body))
        except LocalProtocolError as error:
            log.warning("document's repair cannot be sent", document=body.document, reason=error.message)
            return SendOutcome.ACCEPTED

    def publish(self, document: str, payload: bytes) -> None:
        """See :class:`~state.replication.replica.Surroundings`."""
        if document in self._replicas:
            self._carrier.publish(group_of(document), payload, _TTL)

    def cut(self, peer: NodeId, reason: str) -> None:
        """See :class:`~state.replication.replica.Surroundings`."""
        if (link := self._links.get(peer)) is not None:
            log.warning("link closed for what it brought of a document", peer=peer, reason=reason)
            link.close(CloseReason.PROTOCOL_ERROR, reason[:100])

    # --- end ----------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Save every document and close the store."""
        self._closed = True
        await self._scope.close()
        for replica in self._replicas.values():
            await replica.close()
        if self._store is not None:
            await self._store.close()

    def statistics(self) -> dict[str, object]:
        """Counters of the node, and by document."""
        return {
            **self.counters,
            "store": {} if self._store is None else self._store.statistics(),
            "documents": {name: replica.statistics() for name, replica in self._replicas.items()},
        }


def _lane(body: Body) -> Lane:
    """Pages are bulk; what little is said of them goes before."""
    return Lane.LOW if isinstance(body, Page) else Lane.NORMAL
