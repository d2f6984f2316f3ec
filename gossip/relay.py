"""When a node talks to another through others, and when it stops: the shell above routing and relayed links.

A relayed link is opened when the layer above waits for a link and the dial failed, could not even be tried, or takes
too long.  To that layer it is a link like any other.

When a direct link to the same node comes up the relayed one is not simply replaced, for what was sent on one could
overtake what is still under way on the other.  First the stream itself goes over the direct link, which is the shortest
way to its end; nothing else changes.  Then, as soon as nothing is under way, the relayed link is parted from in two
steps (:mod:`gossip.parting`), and only when it is closed does the layer above hear of the direct link.  What the other
side, which may be a moment ahead, sends on the direct link meanwhile waits until then.  If the direct link closes
before, the layer above never hears of it, and the stream goes back to a relay.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Final, Protocol

from transport.channel import close_reason
from transport.clock import Clock
from transport.errors import DialError, RemoteProtocolError
from transport.link import CloseReason, Endpoint, Link, SendOutcome
from transport.logs import get_logger
from transport.tasks import TaskScope
from transport.types import Lane, NodeId
from transport.wire import Envelope, Kind

from . import parting
from .config import GossipConfig
from .events import Event, Forward, LinkWanted, Relayed, RouteSuspected, RouteWanted
from .members import is_gone
from .parting import Act, Partings, Step
from .relay_link import RelayEndpoint, relay_address, relay_link_config
from .router import GossipCore

log = get_logger("mesh.gossip")

#: How often relayed links are looked at: whether they may be closed, or their other end be dialled.
SWEEP_S: Final = 0.5
#: Envelopes that wait on a direct link for the end of the relayed one; more than a peer sends before it hears of it.
EARLY_MAX: Final = 65_536


class RelayHost(Protocol):
    """What relays need of the gossip service."""

    @property
    def links(self) -> dict[NodeId, Link]:
        """The direct links by peer."""
        ...

    def feed(self, event: Event) -> None:
        """Give the cores an event."""
        ...

    def is_dialling(self, peer: NodeId) -> bool:
        """Whether a dial is under way."""
        ...

    def data_received(self, link: Link, envelopes: Sequence[Envelope]) -> None:
        """Envelopes for the layer above; may raise RemoteProtocolError."""
        ...

    def hold(self, link: Link) -> bool:
        """Have the layer above stop sending on a link, if nothing is under way."""
        ...

    def release(self, link: Link) -> None:
        """Have it go on."""
        ...


class LinkListener(Protocol):
    """Who is told of links that the layer above may use."""

    def link_opened(self, link: Link) -> None:
        """A link is up."""
        ...

    def link_closed(self, link: Link, reason: CloseReason, detail: str) -> None:
        """A link closed; called once for each ``link_opened``."""
        ...


class Relays:
    """The relayed links of one node: the handler of their endpoint, and its carrier.

    Args:
        host: The gossip service.
        core: Its cores, which know members and ways.
        listener: Told of the links.
        endpoint: That of the direct links, after which that of the relayed ones is made.
        config: Times.
        clock: Where to read the time.
        rng: For the numbers of streams.
    """

    def __init__(
        self,
        host: RelayHost,
        core: GossipCore,
        listener: LinkListener,
        endpoint: Endpoint,
        *,
        config: GossipConfig,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._host = host
        self._core = core
        self._listener = listener
        self._config = config
        self._clock = clock
        self._scope = TaskScope("relays")
        self.endpoint = RelayEndpoint(
            endpoint.network,
            core.me.node_id,
            core.me.incarnation,
            self,
            carrier=self,
            gossip=config,
            config=relay_link_config(endpoint.config, config),
            clock=clock,
            rng=rng,
            advertise=lambda: endpoint.addresses,
            features=endpoint.features,
        )
        # Bounded by what the layer above waits for: one entry for each node.
        self._wanted: dict[NodeId, asyncio.TimerHandle] = {}
        self._opening: dict[NodeId, None] = {}
        self._partings = Partings()
        self._used_at: dict[NodeId, float] = {}
        self._upgrade_at: dict[NodeId, float] = {}
        # Direct links that the layer above does not know yet, and what came over them for it.
        self._direct: dict[NodeId, Link] = {}
        self._early: dict[NodeId, list[Envelope]] = {}
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.counters = {
            "relay_links_opened": 0,
            "relay_links_failed": 0,
            "relay_handovers": 0,
            "relay_dropped_full": 0,
            "relay_errors": 0,
            "relay_kinds_refused": 0,
        }

    # --- carrying (Carrier) -----------------------------------------------------------------------------------

    def carry(self, target: NodeId, body: bytes) -> NodeId | None:
        """See :class:`gossip.relay_link.Carrier`."""
        hop = self._core.next_hop(target, self._clock.monotonic())
        link = None if hop is None else self._host.links.get(hop)
        if link is None:
            return None
        envelope = Envelope(Kind.RELAY, self._config.relay_ttl, self.endpoint.node_id, target, body)
        return hop if link.send(envelope, Lane.NORMAL) is SendOutcome.ACCEPTED else None

    def is_way(self, target: NodeId, hop: NodeId) -> bool:
        """See :class:`gossip.relay_link.Carrier`."""
        return self._core.is_way(target, hop, self._clock.monotonic())

    def want_way(self, target: NodeId) -> None:
        """See :class:`gossip.relay_link.Carrier`."""
        self._host.feed(RouteWanted(target))

    def suspect_way(self, target: NodeId, hop: NodeId) -> None:
        """See :class:`gossip.relay_link.Carrier`."""
        self._host.feed(RouteSuspected(target, hop))

    def forward(self, effect: Forward) -> None:
        """Pass on what is for others, behind what is our own."""
        link = self._host.links.get(effect.peer)
        if link is None or link.send(effect.envelope, Lane.LOW) is not SendOutcome.ACCEPTED:
            self.counters["relay_dropped_full"] += 1

    def received(self, effect: Relayed) -> None:
        """Take what came for us.  If it makes no sense nobody is cut: the relay that brought it is not to blame."""
        try:
            self.endpoint.received(effect.source, effect.body)
        except RemoteProtocolError as error:
            self.counters["relay_errors"] += 1
            log.debug("relayed body refused", source=effect.source, error=error.message)

    # --- opening ----------------------------------------------------------------------------------------------

    def wanted(self, peer: NodeId) -> None:
        """The layer above waits for a link to ``peer``, which was asked to be dialled just now."""
        if self._closed or peer in self._wanted or peer in self._opening or not self._is_missing(peer):
            return
        if self._host.is_dialling(peer):
            later = asyncio.get_running_loop().call_later(self._config.relay_delay_s, self._open, peer)
            self._wanted[peer] = later
        else:
            self._open(peer)

    def dial_failed(self, peer: NodeId) -> None:
        """A dial ended without a link."""
        if peer in self._wanted:
            self._open(peer)

    def _open(self, peer: NodeId) -> None:
        if (timer := self._wanted.pop(peer, None)) is not None:
            timer.cancel()
        if not self._closed and peer not in self._opening and self._is_missing(peer):
            self._opening[peer] = None
            self._scope.spawn(self._dial(peer), name=f"relay to {peer}")

    def _is_missing(self, peer: NodeId) -> bool:
        member = self._core.member(peer)
        linked = peer in self._host.links or peer in self.endpoint.links
        return not linked and peer != self.endpoint.node_id and member is not None and not is_gone(member.state)

    async def _dial(self, peer: NodeId) -> None:
        try:
            await self.endpoint.dial(relay_address(peer), peer)
        except DialError as error:
            self.counters["relay_links_failed"] += 1
            log.debug("relay failed", peer=peer, error=error.message)
        finally:
            del self._opening[peer]

    # --- direct links -----------------------------------------------------------------------------------------

    def direct_opened(self, link: Link) -> bool:
        """A direct link opened; returns whether the layer above may be told now."""
        peer = link.peer.node_id
        if (timer := self._wanted.pop(peer, None)) is not None:
            timer.cancel()
        if peer not in self.endpoint.links:
            return True
        self._direct[peer] = link
        asyncio.get_running_loop().call_soon(self._try_handover, peer)
        return False

    def direct_closed(self, link: Link) -> bool:
        """A direct link closed; returns whether the layer above knows it."""
        peer = link.peer.node_id
        hidden = self._direct.get(peer) is link
        if hidden:
            del self._direct[peer]
            self._early.pop(peer, None)
        if peer in self.endpoint.links:
            self.want_way(peer)
        return not hidden

    def comes_early(self, link: Link, envelopes: Sequence[Envelope]) -> bool:
        """Whether the layer above does not know ``link`` yet; what came over it is then kept until it does."""
        peer = link.peer.node_id
        if self._direct.get(peer) is not link:
            return False
        waiting = self._early.setdefault(peer, [])
        waiting.extend(envelopes)
        if len(waiting) > EARLY_MAX:
            link.close(CloseReason.OVERLOADED, "sent much before the relayed link was closed")
        return True

    def _try_handover(self, peer: NodeId) -> None:
        link = self.endpoint.links.get(peer)
        if link is not None and peer in self._direct:
            self._offer(link)

    # --- what relayed links tell (LinkHandler) ----------------------------------------------------------------

    def link_opened(self, link: Link) -> None:
        """See :class:`~transport.link.LinkHandler`."""
        peer, now = link.peer.node_id, self._clock.monotonic()
        if peer in self._host.links:
            # It came up meanwhile, and is known above; nothing was sent here yet.
            link.close(CloseReason.DUPLICATE_LINK, "there is a direct link")
            return
        self.counters["relay_links_opened"] += 1
        self._used_at[peer] = now
        self._upgrade_at[peer] = now + self._config.relay_upgrade_s
        log.info("relayed link opened", peer=peer)
        self._listener.link_opened(link)
        if self._sweep_timer is None:
            self._schedule_sweep()

    def link_closed(self, link: Link, reason: CloseReason, detail: str) -> None:
        """See :class:`~transport.link.LinkHandler`."""
        peer = link.peer.node_id
        if self._used_at.pop(peer, None) is None:
            return
        self._upgrade_at.pop(peer)
        self._partings.forget(peer)
        log.info("relayed link closed", peer=peer, reason=reason.name, detail=detail)
        self._listener.link_closed(link, reason, detail)
        direct = self._direct.pop(peer, None)
        early = self._early.pop(peer, [])
        if direct is not None and direct.is_open:
            self.counters["relay_handovers"] += 1
            self._listener.link_opened(direct)
            try:
                self._host.data_received(direct, early)
            except RemoteProtocolError as error:
                direct.close(close_reason(error.code), error.message)

    def envelopes_received(self, link: Link, envelopes: Sequence[Envelope]) -> None:
        """See :class:`~transport.link.LinkHandler`."""
        data: list[Envelope] = []
        for envelope in envelopes:
            if envelope.kind == Kind.PARTING:
                self._parting_heard(link, parting.decode(envelope.body))
            elif Kind.MESSAGES <= envelope.kind < Kind.RENEWAL:
                # The rest is for links whose certificates were seen: nobody gets a certificate through a relay.
                data.append(envelope)
            else:
                self.counters["relay_kinds_refused"] += 1
        if data:
            peer = link.peer.node_id
            self._used_at[peer] = self._clock.monotonic()
            if self._partings.data_from(peer) is Act.RELEASE:
                self._host.release(link)
            self._host.data_received(link, data)

    # --- parting ----------------------------------------------------------------------------------------------

    def _offer(self, link: Link) -> None:
        peer = link.peer.node_id
        if peer not in self._partings and self._host.hold(link):
            self._partings.offered(peer, self._clock.monotonic())
            self._say(link, Step.OFFER)

    def _parting_heard(self, link: Link, step: Step | None) -> None:
        if step is None:
            return
        peer = link.peer.node_id
        match self._partings.heard(peer, step):
            case Act.ASK:
                if self._host.hold(link):
                    self._partings.agreed(peer, self._clock.monotonic())
                    self._say(link, Step.AGREE)
                else:
                    self._say(link, Step.STAY)
            case Act.CLOSE:
                link.close(CloseReason.IDLE, "not needed")
            case Act.STAY:
                self._say(link, Step.STAY)
            case Act.RELEASE:
                self._host.release(link)
            case Act.NOTHING:
                pass

    def _say(self, link: Link, step: Step) -> None:
        link.send(Envelope(Kind.PARTING, 0, None, None, parting.encode(step)), Lane.CONTROL)

    # --- upkeep -----------------------------------------------------------------------------------------------

    def _schedule_sweep(self) -> None:
        self._sweep_timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        now = self._clock.monotonic()
        self._sweep_timer = None
        for peer in self._partings.expired(now):
            if (link := self.endpoint.links.get(peer)) is not None:
                self._host.release(link)
        for peer, link in list(self.endpoint.links.items()):
            if peer in self._direct or self._used_at.get(peer, now) + self._config.idle_link_s <= now:
                self._offer(link)
            elif self._upgrade_at.get(peer, now) <= now:
                self._upgrade_at[peer] = now + self._config.relay_upgrade_s
                self._host.feed(LinkWanted(peer))
        if self.endpoint.links and not self._closed:
            self._schedule_sweep()

    def statistics(self) -> dict[str, int | float]:
        """Counters and sizes."""
        streams = self.endpoint.streams
        again = sum(stream.counters["pieces_sent_again"] for stream in streams)
        return {**self.counters, "relay_links": len(self.endpoint.links), "relay_pieces_sent_again": again}

    async def close(self, reason: CloseReason) -> None:
        """Close all relayed links: at once, or in order if the node leaves, which takes a round trip through relays."""
        if self._closed:
            return
        self._closed = True
        for timer in (*self._wanted.values(), *([self._sweep_timer] if self._sweep_timer else [])):
            timer.cancel()
        self._wanted.clear()
        await self._scope.close()
        if reason is not CloseReason.LEAVING:
            self.endpoint.abort()
        await self.endpoint.close(reason)
