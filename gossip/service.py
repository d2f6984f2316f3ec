"""The asyncio shell of gossip: runs a :class:`~gossip.router.GossipCore` over the links of one endpoint.

It is the endpoint's :class:`~transport.link.LinkHandler`.  Membership and broadcast envelopes go to the core, all
others to ``data_handler``.  The core's effects are executed in order, at once, by the caller of the event; only while
a ``Persist`` is being written do effects and further events wait, so that nothing is said that is not yet stored.

A stall of the event loop makes timers fire late, before the frames that arrived meanwhile are read.  Every timer
therefore measures its own lateness first, and the core hears :class:`~gossip.events.Stalled` before anything
that a timer would make it conclude from the silence.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol, runtime_checkable

from transport.clock import Clock, SystemClock
from transport.errors import DataDirectoryError, LocalProtocolError, RemoteProtocolError
from transport.link import CloseReason, Endpoint, Link, SendOutcome
from transport.logs import get_logger
from transport.tasks import TaskScope
from transport.types import Address, Lane, NodeId
from transport.wire import Envelope, Kind

from . import parting
from .config import GossipConfig
from .dialling import Dialler
from .events import (
    AddressesChanged,
    BroadcastRequested,
    Deliver,
    Dial,
    DialFailed,
    Doubt,
    Effect,
    Event,
    Forward,
    GroupOpened,
    LeaveRequested,
    LinkLost,
    LinkOpened,
    LinkUsed,
    LinkWanted,
    Member,
    MemberChanged,
    MemberForgotten,
    MemberState,
    MetaChanged,
    Missed,
    Originated,
    PartitionDetected,
    PartitionHealed,
    PeerFound,
    Persist,
    Received,
    Relayed,
    RouteChanged,
    Send,
    SendDropped,
    SetTimer,
    Stalled,
    Started,
    SubscriberChanged,
    Superseded,
    TimerFired,
    Transit,
    Unlink,
    UnlinkReason,
)
from .incarnation import life_of
from .parting import Act, Partings, Step
from .relay import Relays
from .router import GossipCore

log = get_logger("mesh.gossip")

#: How late a timer may be before we say that the event loop stalled.
STALL_S: Final = 0.2
#: How often the loop's lag is measured when no other timer is due: often enough to see a stall begin.
LAG_INTERVAL_S: Final = 0.25
#: Events that wait for a Persist; beyond it received bodies are dropped (anti-entropy repeats what they said).
BACKLOG_MAX: Final = 4096
#: A member whose life is further in the future than this has a wrong clock (a life is seconds since the epoch).
FUTURE_S: Final = 86_400

#: Why a link may close without saying anything about the peer's health: it was we, or a better link took over.
#: NOT_ADMITTED: the certificate shown at the handshake expired; the node may long have another, so it is dialled again.
_WANTED: Final = frozenset(
    {
        CloseReason.DUPLICATE_LINK,
        CloseReason.IDLE,
        CloseReason.SELF,
        CloseReason.DUPLICATE_NODE,
        CloseReason.NOT_ADMITTED,
        CloseReason.VETOED,
    }
)


#: Plain integers: this is looked at for every envelope of every frame.
_GOSSIP: Final = tuple(map(int, (Kind.MEMBERSHIP, Kind.BROADCAST, Kind.OVERLAY, Kind.PROBE, Kind.GROUP, Kind.ROUTE)))
#: What carries users' payloads and therefore goes behind the mesh's own traffic.
_PAYLOADS: Final = (Kind.BROADCAST, Kind.GROUP)
_RELAY: Final = int(Kind.RELAY)
_PARTING: Final = int(Kind.PARTING)


class GossipListener(Protocol):
    """The layer above.  Plain functions, called on the loop; they must not block and must not raise."""

    def member_changed(self, before: Member | None, after: Member) -> None:
        """A member is new (``before`` is ``None``) or changed; also called for this node itself."""
        ...

    def member_forgotten(self, member: Member) -> None:
        """The record of a dead or departed member was dropped."""
        ...

    def broadcast_received(self, delivery: Deliver) -> None:
        """A broadcast of another node arrived for the first time."""
        ...

    def superseded(self, notice: Superseded) -> None:
        """This process must stop: its node id belongs to another one, or its life is over (``notice.why``)."""
        ...

    def link_opened(self, link: Link) -> None:
        """A link is up."""
        ...

    def link_closed(self, link: Link, reason: CloseReason, detail: str) -> None:
        """A link closed; called once for each ``link_opened``."""
        ...


@runtime_checkable
class PartitionListener(Protocol):
    """What a :class:`GossipListener` may have in addition."""

    def partition_changed(self, change: PartitionDetected | PartitionHealed) -> None:
        """Much of the network was lost at once, or came back."""
        ...


@runtime_checkable
class MissedListener(Protocol):
    """What a :class:`GossipListener` may have in addition."""

    def broadcasts_missed(self, missed: Missed) -> None:
        """Broadcasts that this node should have got can no longer be had."""
        ...


class BroadcastOutcome(NamedTuple):
    """What became of a broadcast at its origin."""

    sent: int
    """Neighbours whose links took the payload."""
    announced: int
    """Neighbours that were, or will in a moment be, told of it: they fetch it unless another brings it."""
    dropped: bool = False
    """This node left the network: nobody will get it."""


@runtime_checkable
class HoldingListener(Protocol):
    """What a :class:`GossipListener` may have in addition, so that closing an idle link loses nothing it sends."""

    def hold_link(self, link: Link) -> bool:
        """Send nothing on ``link`` until :meth:`release_link` or its end; ``False``: something is under way on it.

        Called again for a link that is held, it says the same.
        """
        ...

    def release_link(self, link: Link) -> None:
        """``link`` stays."""
        ...


class GossipService:
    """Membership and broadcast of one node, running.

    Make it first, give it to the endpoint as handler, start the endpoint, then :meth:`start` the service with it.

    Args:
        node_id: This node.
        incarnation: Of this process; see :mod:`gossip.incarnation`.
        listener: Told about members, broadcasts and links.
        data_handler: Given the envelopes of every other kind, per frame; may raise ``RemoteProtocolError``, which
            closes the link.  ``None``: they are counted and dropped.
        config: Limits and times.
        meta: This node's metadata to begin with.
        admit: Whether a node that is not known yet may become a member; it is asked again whenever the node is heard
            of.  ``None``: every node whose certificate the network's authority signed may.
        persist: Stores an incarnation durably, so that the next start takes a higher life; may block (it is called
            in a thread).  ``None``: nothing is stored.
        clock: Where time is read.
        rng: Randomness; a seeded one repeats the core's decisions.
    """

    def __init__(
        self,
        node_id: NodeId,
        incarnation: int,
        *,
        listener: GossipListener,
        data_handler: Callable[[Link, Sequence[Envelope]], None] | None = None,
        config: GossipConfig | None = None,
        meta: bytes = b"",
        admit: Callable[[Member], bool] | None = None,
        persist: Callable[[int], object] | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._node_id = node_id
        self._config = config or GossipConfig()
        self._listener = listener
        self._data_handler = data_handler
        self._persist = persist
        self._clock = clock or SystemClock()
        me = Member(node_id, incarnation, MemberState.ALIVE, (), 1, meta)
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not secrets
        self._core = GossipCore(me, self._config, self._rng, admit)
        self._scope = TaskScope(f"gossip {node_id}")
        self._endpoint: Endpoint | None = None
        self._dialler: Dialler | None = None
        self._dialling: dict[NodeId, None] = {}
        self._relays: Relays | None = None
        self._links: dict[NodeId, Link] = {}
        self._heard_at: dict[NodeId, float] = {}
        # When the overlay was last told that a link is in use; only linked peers are here.
        self._used_at: dict[NodeId, float] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._lag_timer: asyncio.TimerHandle | None = None
        self._stall_told_until = 0.0
        # Waits for start(), and afterwards for a Persist: events that the core has not seen ...
        self._backlog: deque[tuple[Event, Link | None]] = deque()
        # ... and effects of the event before, the rest of a list (bounded by what one event can cause).
        self._held: deque[Effect] = deque()
        self._dropped: list[Send] = []  # of the effects being executed
        self._writing = False
        self._closed = False
        self._superseded = False
        self._unlinked: Link | None = None
        self._partings = Partings()
        # Of the broadcast that is being made: what became of it, and how many links had no room.
        self._originated: list[Originated] = []
        self._refused = 0
        self._counters: dict[str, int | float] = {
            "sends_dropped_no_link": 0,
            "sends_dropped_full": 0,
            "bodies_dropped_backlog": 0,
            "envelopes_unhandled": 0,
            "peer_errors": 0,
            "persist_failures": 0,
            "stalls": 0,
            "stall_longest_s": 0.0,
        }

    # --- life -------------------------------------------------------------------------------------------------

    async def start(self, endpoint: Endpoint) -> None:
        """Begin to gossip over ``endpoint``, whose handler this service is.

        Links that opened before are taken over.
        """
        self._endpoint = endpoint
        self._dialler = Dialler(endpoint, self, self._scope, self._clock.monotonic)
        self._relays = Relays(
            self, self._core, self._listener, endpoint, config=self._config, clock=self._clock, rng=self._rng
        )
        self.feed(AddressesChanged(tuple(endpoint.addresses)))
        self.feed(Started())
        self._measure_lag(asyncio.get_running_loop().time())
        self._drain()

    async def leave(self, timeout_s: float = 2.0) -> None:
        """Tell every linked peer that this node leaves, let that be sent, and close all links and the endpoint.

        Args:
            timeout_s: How long sending may take; then the links are cut.  Peers that did not hear it in time see
                the link's close reason, or at worst suspect this node.
        """
        if self._closed:
            return
        self.feed(LeaveRequested())
        if self._relays is not None:
            # First, for what says so passes through others.
            await self._relays.close(CloseReason.LEAVING)
        await self._close(CloseReason.LEAVING, timeout_s)

    async def close(self) -> None:
        """Stop at once without leaving: peers will suspect this node.  Harmless after :meth:`leave`."""
        if not self._closed:
            await self._close(CloseReason.NORMAL, 1.0)

    async def _close(self, reason: CloseReason, timeout_s: float) -> None:
        self._closed = True
        if self._lag_timer is not None:
            self._lag_timer.cancel()
        for handle in self._timers.values():
            handle.cancel()
        self._timers.clear()
        if self._dialler is not None:
            self._dialler.close()
        if self._relays is not None:
            await self._relays.close(reason)
        await self._scope.close()
        if self._endpoint is not None:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._endpoint.close(reason)
            except TimeoutError:
                log.warning("links were not closed in time", timeout_s=timeout_s)

    # --- what the layer above asks ----------------------------------------------------------------------------

    @property
    def me(self) -> Member:
        """This node as it now describes itself."""
        return self._core.me

    @property
    def links(self) -> dict[NodeId, Link]:
        """The open links by peer.  Do not modify."""
        return self._links

    def members(self) -> list[Member]:
        """What is believed of every node, this one included, dead and departed ones while they are remembered."""
        return self._core.members()

    def member(self, node_id: NodeId) -> Member | None:
        """What is believed of one node; ``None``: nothing."""
        return self._core.member(node_id)

    def distance_s(self, a: NodeId, b: NodeId) -> float | None:
        """The round trip to expect between two nodes by their network coordinates; ``None``: unknown."""
        return self._core.distance_s(a, b)

    def last_heard(self, node_id: NodeId) -> float:
        """When gossip last came from a node over its own link, seconds since the epoch; 0: never."""
        return self._heard_at.get(node_id, 0.0)

    def set_meta(self, meta: bytes) -> None:
        """Tell every node this about ours.

        Raises:
            LocalProtocolError: It is larger than ``meta_bytes_max``; nothing changed.
        """
        self.feed(MetaChanged(meta))

    def set_addresses(self, addresses: Sequence[Address]) -> None:
        """Tell every node that ours can be dialled there from now on."""
        self.feed(AddressesChanged(tuple(addresses)))

    def broadcast(self, payload: bytes, ttl: int) -> BroadcastOutcome:
        """Send ``payload`` to every other node.

        It is kept for ``plumtree_age_s``, for nodes that did not get it at once.

        Raises:
            LocalProtocolError: The payload is too large or ``ttl`` is not 1 to 255; nothing was sent.
        """
        return self._broadcast(BroadcastRequested(payload, ttl))

    def open_group(self, group: str, subscribers: Iterable[NodeId], *, member: bool) -> None:
        """Subscribe to a group, or (``member`` false) cease to, or make ready to publish to it.

        Args:
            group: Its name, at most 256 characters.
            subscribers: All other nodes that are known to subscribe; looked at only if the group is not open.
            member: Whether this node subscribes from now on.

        Raises:
            LocalProtocolError: The name is empty or too long, or there are too many groups; nothing changed.
        """
        known = () if self._core.has_group(group) else tuple(subscribers)
        self.feed(GroupOpened(group, known, member))

    def subscriber_changed(self, group: str, node_id: NodeId, *, subscribed: bool) -> None:
        """Another node subscribed, or ceased to."""
        self.feed(SubscriberChanged(group, node_id, subscribed))

    def publish(self, group: str, payload: bytes, ttl: int) -> BroadcastOutcome:
        """Send ``payload`` to every other subscriber of a group that was opened.

        Raises:
            LocalProtocolError: The payload is too large, ``ttl`` is not 1 to 255, the group is not open, or too much
                waits for a first link to a subscriber; nothing was sent.
        """
        return self._broadcast(BroadcastRequested(payload, ttl, group))

    def _broadcast(self, request: BroadcastRequested) -> BroadcastOutcome:
        self._originated.clear()
        self._refused = 0
        self.feed(request)
        if self._closed or self._core.ended:
            return BroadcastOutcome(0, 0, dropped=True)
        if not self._originated:
            return BroadcastOutcome(0, 0)  # it waits for what is being stored
        originated = self._originated.pop()
        sent = len(originated.pushed) - self._refused
        return BroadcastOutcome(sent, len(originated.announced) + self._refused)

    def peer_found(self, node_id: NodeId | None, addresses: Sequence[Address]) -> None:
        """Discovery saw a node: a hint.  Without an id the addresses are dialled once, whoever answers."""
        found = tuple(addresses)
        if node_id is not None:
            self.feed(PeerFound(node_id, found))
        elif self._dialler is not None and not self._closed:
            own = () if self._endpoint is None else self._endpoint.addresses
            linked = [a for link in self._links.values() for a in (link.remote_address, *link.peer.addresses)]
            unknown = tuple(a for a in found if a not in own and a not in linked)
            if unknown:
                self._dialler.request(None, unknown)

    def want_link(self, node_id: NodeId) -> None:
        """The layer above has something for a member that has no link: one follows, if need be through others."""
        self.feed(LinkWanted(node_id))
        if self._relays is not None:
            self._relays.wanted(node_id)

    def statistics(self) -> dict[str, int | float]:
        """Counters and sizes of the service and its cores."""
        dials = {} if self._dialler is None else self._dialler.counters
        sizes = {"links": len(self._links), "timers": len(self._timers), "tasks": len(self._scope)}
        relays = {} if self._relays is None else self._relays.statistics()
        return {**sizes, **self._counters, **dials, **relays, **self._core.statistics()}

    # --- what links tell (LinkHandler) ------------------------------------------------------------------------

    def link_opened(self, link: Link) -> None:
        """See :class:`~transport.link.LinkHandler`."""
        peer = link.peer.node_id
        if (replaced := self._links.get(peer)) is not None and replaced is not link:
            # Its link_closed will come, or came too late to matter; for the core the new one takes its place.
            self.feed(LinkLost(peer, wanted=True))
            self._partings.forget(peer)
        self._links[peer] = link
        self._warn_of_wrong_clock(peer, link.peer.incarnation)
        if self._relays is None or self._relays.direct_opened(link):
            self._listener.link_opened(link)
        self.feed(LinkOpened(peer, link.peer.incarnation, link.peer.addresses))

    def link_closed(self, link: Link, reason: CloseReason, detail: str) -> None:
        """See :class:`~transport.link.LinkHandler`."""
        peer = link.peer.node_id
        if self._links.get(peer) is link:
            del self._links[peer]
            self._partings.forget(peer)
            self._used_at.pop(peer, None)
            left, vetoed = reason is CloseReason.LEAVING, reason is CloseReason.VETOED
            self.feed(LinkLost(peer, left, wanted=reason in _WANTED, vetoed=vetoed))
        if reason is CloseReason.DUPLICATE_NODE and self._unlinked is not link:
            self.node_id_taken(detail)
        if self._relays is None or self._relays.direct_closed(link):
            self._listener.link_closed(link, reason, detail)

    def envelopes_received(self, link: Link, envelopes: Sequence[Envelope]) -> None:
        """See :class:`~transport.link.LinkHandler`."""
        data: list[Envelope] | None = None
        for envelope in envelopes:
            kind = envelope.kind
            if kind in _GOSSIP:
                self._gossip_received(link, envelope)
            elif kind == _RELAY:
                self.feed(Transit(link.peer.node_id, envelope), link)
                self._touched(link)
            elif kind == _PARTING:
                self._parting_heard(link, parting.decode(envelope.body))
            elif data is None:
                data = [envelope]
            else:
                data.append(envelope)
        if data is None:
            return
        self._used(link)
        if self._relays is None or not self._relays.comes_early(link, data):
            self.data_received(link, data)

    def data_received(self, link: Link, envelopes: Sequence[Envelope]) -> None:
        """See :class:`~gossip.relay.RelayHost`."""
        if self._data_handler is None:
            self._counters["envelopes_unhandled"] += len(envelopes)
        else:
            self._data_handler(link, envelopes)

    def _used(self, link: Link) -> None:
        """The peer sent something that parting keeps back: it has not stopped, or has begun again."""
        if self._partings and self._partings.data_from(link.peer.node_id) is Act.RELEASE:
            self.release(link)
        self._touched(link)

    def _touched(self, link: Link) -> None:
        """Tell the overlay now and then that a link is good for something."""
        peer = link.peer.node_id
        now = self._clock.monotonic()
        if now - self._used_at.get(peer, -math.inf) >= self._config.idle_link_s / 4:
            self._used_at[peer] = now
            self.feed(LinkUsed(peer))

    def _gossip_received(self, link: Link, envelope: Envelope) -> None:
        peer = link.peer.node_id
        if self._links.get(peer) is not link:
            return  # a link that was replaced still drains
        self._heard_at[peer] = self._clock.wall()
        event = Received(peer, envelope.body, envelope.kind, envelope.ttl)
        try:
            self.feed(event, link)
        except RemoteProtocolError:
            self._counters["peer_errors"] += 1
            raise

    def _warn_of_wrong_clock(self, peer: NodeId, incarnation: int) -> None:
        # A life only orders one node's processes, so a future one does no harm but to that node: if its clock is
        # set right *and* its data directory lost, its next life is lower and the network will not believe it.
        if life_of(incarnation) > self._clock.wall() + FUTURE_S:
            log.warning("peer started in the future", peer=peer, life=life_of(incarnation))

    # --- what the dialler tells -------------------------------------------------------------------------------

    def dial_done(self, peer: NodeId | None, link: Link | None, *, refused: bool) -> None:
        """See :class:`~gossip.dialling.DialResults`."""
        if peer is not None:
            self._dialling.pop(peer, None)
        # A dial that "succeeded" without a link that we were told of must not be waited for for ever.
        if peer is not None and (link is None or peer not in self._links):
            self.feed(DialFailed(peer, refused))
            if self._relays is not None:
                self._relays.dial_failed(peer)

    def is_dialling(self, peer: NodeId) -> bool:
        """See :class:`~gossip.relay.RelayHost`."""
        return peer in self._dialling

    def node_id_taken(self, detail: str) -> None:
        """See :class:`~gossip.dialling.DialResults`."""
        self._tell_superseded(
            Superseded(self._core.me.incarnation, f"another live process uses this node id: {detail}")
        )

    def _tell_superseded(self, notice: Superseded) -> None:
        if not self._superseded and not self._closed:
            self._superseded = True
            log.error("superseded", why=notice.why, incarnation=notice.incarnation)
            self._listener.superseded(notice)

    # --- events and effects -----------------------------------------------------------------------------------

    def feed(self, event: Event, link: Link | None = None) -> None:
        """Give one event to the core, or let it wait its turn.

        Raises:
            RemoteProtocolError, LocalProtocolError: As :meth:`GossipCore.handle`.
        """
        if self._closed:
            return
        waiting = self._endpoint is None or self._writing or self._backlog
        if waiting:
            if len(self._backlog) >= BACKLOG_MAX and isinstance(event, Received):
                self._counters["bodies_dropped_backlog"] += 1
            else:
                # Other events are few: one per link, dial, timer or call.
                self._backlog.append((event, link))
            return
        self._handle(event)

    def _handle(self, event: Event) -> None:
        self._execute(self._core.handle(event, self._clock.monotonic()))
        if self._dropped:
            dropped, self._dropped = self._dropped, []
            for send in dropped:
                # What a dropped body leads to is an announcement after a pause, never the same body at once.
                self.feed(SendDropped(send))

    def _drain(self) -> None:
        """Give the core what waited."""
        while self._backlog and not self._writing and not self._closed:
            event, link = self._backlog.popleft()
            try:
                self._handle(event)
            except RemoteProtocolError as error:
                self._counters["peer_errors"] += 1
                if link is not None:
                    link.close(CloseReason.PROTOCOL_ERROR, error.message)
            except LocalProtocolError as error:
                log.error("request dropped", error=error.message)  # noqa: TRY400 - its caller is gone

    def _execute(self, effects: Sequence[Effect]) -> None:
        for index, effect in enumerate(effects):
            if self._writing:
                self._held.extend(effects[index:])
                return
            self._execute_one(effect)

    def _execute_one(self, effect: Effect) -> None:
        match effect:
            case Send():
                self._send(effect)
            case SetTimer():
                self._set_timer(effect)
            case Dial():
                if self._dialler is not None:
                    self._dialling[effect.peer] = None
                    self._dialler.request(effect.peer, effect.addresses)
            case MemberChanged():
                self._member_changed(effect)
            case MemberForgotten():
                self._heard_at.pop(effect.member.node_id, None)
                self._listener.member_forgotten(effect.member)
            case Originated():
                self._originated.append(effect)
            case Missed():
                log.warning("broadcasts missed", origin=effect.origin, first=effect.first, last=effect.last)
                if isinstance(self._listener, MissedListener):
                    self._listener.broadcasts_missed(effect)
            case Deliver():
                self._listener.broadcast_received(effect)
            case Unlink():
                if (link := self._links.get(effect.peer)) is not None:
                    self._unlink(link, effect)
            case PartitionDetected() | PartitionHealed():
                self._partition_changed(effect)
            case Persist():
                if self._persist is not None:
                    self._writing = True
                    self._scope.spawn(self._write(self._persist, effect.incarnation), name="persist")
            case Superseded():
                self._tell_superseded(effect)
            case Forward() | Relayed() | RouteChanged():
                self._relay(effect)
            case Doubt():
                pass  # between cores only

    def _unlink(self, link: Link, effect: Unlink) -> None:
        match effect.reason:
            case UnlinkReason.IDLE:
                self._offer_parting(link)
            case UnlinkReason.DEAD:
                link.close(CloseReason.IDLE, effect.why)
            case UnlinkReason.VETOED:
                link.close(CloseReason.VETOED, effect.why)
            case UnlinkReason.SUPERSEDED:
                self._unlinked = link
                link.close(CloseReason.DUPLICATE_NODE, effect.why)

    def _send(self, effect: Send) -> None:
        link = self._links.get(effect.peer)
        outcome = SendOutcome.CLOSED
        if link is not None:
            lane = Lane.NORMAL if effect.kind in _PAYLOADS else Lane.CONTROL
            outcome = link.send(Envelope(effect.kind, effect.ttl, None, None, effect.body), lane, key=effect.key)
        if outcome is SendOutcome.ACCEPTED:
            return
        self._refused += effect.kind in _PAYLOADS
        if outcome is SendOutcome.FULL:
            self._counters["sends_dropped_full"] += 1
            self._dropped.append(effect)
        else:
            self._counters["sends_dropped_no_link"] += 1

    def _relay(self, effect: Forward | Relayed | RouteChanged) -> None:
        if self._relays is None:
            return
        match effect:
            case Forward():
                self._relays.forward(effect)
            case Relayed():
                self._relays.received(effect)
            case RouteChanged():
                self._relays.endpoint.way_changed(effect.target, found=effect.found)

    def _member_changed(self, effect: MemberChanged) -> None:
        after = effect.after
        if after.node_id == self._node_id and self._endpoint is not None:
            self._endpoint.set_incarnation(after.incarnation)
            if self._relays is not None:
                self._relays.endpoint.set_incarnation(after.incarnation)
        before = None if effect.before is None else effect.before.state
        if before is not after.state:
            log.info("member", node=after.node_id, state=after.state.name.lower(), incarnation=after.incarnation)
        self._listener.member_changed(effect.before, after)

    def _partition_changed(self, change: PartitionDetected | PartitionHealed) -> None:
        if isinstance(change, PartitionDetected):
            log.warning("partition detected", lost=len(change.lost), present=len(change.present))
        else:
            log.info("partition healed", returned=len(change.returned), missing=len(change.missing))
        if isinstance(self._listener, PartitionListener):
            self._listener.partition_changed(change)

    async def _write(self, persist: Callable[[int], object], incarnation: int) -> None:
        try:
            await asyncio.to_thread(persist, incarnation)
        except (OSError, DataDirectoryError) as error:
            # The one thing persisted is a life that others hold above ours, to start above it next time.  If the
            # disk fails the operator must know, but this process has to stop all the same.
            self._counters["persist_failures"] += 1
            log.error("incarnation not stored", incarnation=incarnation, error=str(error))  # noqa: TRY400
        self._writing = False
        held, self._held = list(self._held), deque()
        self._execute(held)
        self._drain()

    # --- closing idle links -----------------------------------------------------------------------------------

    def _offer_parting(self, link: Link) -> None:
        if link.peer.node_id not in self._partings and self.hold(link):
            self._partings.offered(link.peer.node_id, self._clock.monotonic())
            self._say(link, Step.OFFER)

    def _parting_heard(self, link: Link, step: Step | None) -> None:
        peer, now = link.peer.node_id, self._clock.monotonic()
        if step is None or self._links.get(peer) is not link:
            return
        match self._partings.heard(peer, step):
            case Act.ASK:
                if self._core.spares_link(peer, now) and self.hold(link):
                    self._partings.agreed(peer, now)
                    self._say(link, Step.AGREE)
                else:
                    self._stay(link)
            case Act.CLOSE:
                if self._core.needs_link(peer):
                    self._stay(link)
                else:
                    link.close(CloseReason.IDLE, "not needed")
            case Act.STAY:
                self._say(link, Step.STAY)
            case Act.RELEASE:
                self.release(link)
            case Act.NOTHING:
                pass

    def hold(self, link: Link) -> bool:
        """Have everybody stop sending, if nothing is under way; what is queued would be dropped by a close."""
        return link.queued == 0 and (not isinstance(self._listener, HoldingListener) or self._listener.hold_link(link))

    def _stay(self, link: Link) -> None:
        if self._partings.forget(link.peer.node_id) is Act.RELEASE:
            self.release(link)
        self._say(link, Step.STAY)

    def release(self, link: Link) -> None:
        """Have everybody go on."""
        if isinstance(self._listener, HoldingListener):
            self._listener.release_link(link)

    def _say(self, link: Link, step: Step) -> None:
        link.send(Envelope(Kind.PARTING, 0, None, None, parting.encode(step)), Lane.CONTROL)

    # --- timers -----------------------------------------------------------------------------------------------

    def _set_timer(self, effect: SetTimer) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + effect.delay_s
        self._timers[effect.token] = loop.call_at(due, self._timer, effect.token, due)

    def _timer(self, token: int, due: float) -> None:
        self._timers.pop(token, None)
        self._check_stall(due)
        self.feed(TimerFired(token))

    def _measure_lag(self, due: float) -> None:
        self._check_stall(due)
        for peer in self._partings.expired(self._clock.monotonic()):
            self.release(self._links[peer])
        loop = asyncio.get_running_loop()
        following = loop.time() + LAG_INTERVAL_S
        self._lag_timer = loop.call_at(following, self._measure_lag, following)

    def _check_stall(self, due: float) -> None:
        now = asyncio.get_running_loop().time()
        late_s = now - max(due, self._stall_told_until)
        if late_s > STALL_S:
            self._stall_told_until = now  # the other timers that are late for the same reason say nothing new
            self._counters["stalls"] += 1
            self._counters["stall_longest_s"] = max(self._counters["stall_longest_s"], late_s)
            log.warning("event loop stalled", seconds=round(late_s, 3))
            self.feed(Stalled(late_s))
