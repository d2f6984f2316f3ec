"""One node's end of all its links, whatever carries them: admission, one link per peer, one timer, counters.

:class:`BaseEndpoint` is completed by :mod:`transport.memory` and :mod:`transport.websocket`, which know how to listen
and how to make a channel.  What happens when two links to the same node meet is told in :mod:`transport.session` and
decided in :meth:`BaseEndpoint.judge`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Final

from . import session as core
from .channel import Channel, ChannelLink
from .clock import Clock, SystemClock
from .config import LinkConfig
from .errors import DialError, HandshakeFailed, PeerRefused, PeerUnreachable, RemoteProtocolError
from .link import CloseReason, Link, LinkHandler
from .logs import get_logger
from .tasks import TaskScope
from .types import Address, NetworkName, NodeId
from .wire import Envelope, Hello

log = get_logger("mesh.transport")

_PROBE_LOOKS: Final = 50

#: What a peer did wrong, when it is this side that closes for it.
_BREACHES: Final = frozenset(
    {
        CloseReason.MESSAGE_TOO_BIG,
        CloseReason.PROTOCOL_ERROR,
        CloseReason.WRONG_NETWORK,
        CloseReason.IDENTITY_MISMATCH,
        CloseReason.UNSUPPORTED_VERSION,
    }
)


class BaseEndpoint(ABC):
    """What all endpoints share.

    Args:
        network: The network's name.
        node_id: This node.
        incarnation: Its incarnation (:meth:`set_incarnation` raises it).
        handler: Who is told about links.
        clock: Where to read the time.
        config: Limits and timing.
        advertise: Where peers are told to dial; asked anew for each hello.
        software: Name and version for the hello.
        features: What this node can do or demands, for the hello.
    """

    is_relayed: ClassVar[bool] = False
    """Whether other nodes carry its links."""

    def __init__(
        self,
        network: NetworkName,
        node_id: NodeId,
        incarnation: int,
        handler: LinkHandler,
        *,
        clock: Clock | None = None,
        config: LinkConfig | None = None,
        advertise: Callable[[], tuple[Address, ...]] | tuple[Address, ...] = (),
        software: str = "peermesh",
        features: tuple[str, ...] = (),
    ) -> None:
        self.clock = clock or SystemClock()
        self.config = config or LinkConfig()
        self.handler = handler
        self.tasks = TaskScope(f"endpoint {node_id}")
        self.counters: Counter[str] = Counter(handler_errors=0)
        self._advertise = advertise
        self._hello = Hello(
            network=network, node_id=node_id, incarnation=incarnation, software=software, features=features
        )
        self._links: dict[NodeId, Link] = {}
        # Every link that is not finished, open or not; bounded by links_max and handshakes_max.
        self._live: dict[ChannelLink, None] = {}
        self._arrival: asyncio.Future[None] | None = None
        self._quiet: asyncio.Future[None] | None = None
        self._sweep_handle: asyncio.TimerHandle | None = None
        self._sweep_due_s = 0.0
        self._complained_s: dict[str, float] = {}
        self._closed = False

    # What the layers above use: see :class:`transport.link.Endpoint`.

    @property
    def node_id(self) -> NodeId:
        """This node."""
        return self._hello.node_id

    @property
    def network(self) -> NetworkName:
        """The network that this node belongs to."""
        return self._hello.network

    @property
    def features(self) -> tuple[str, ...]:
        """See :class:`transport.link.Endpoint`."""
        return self._hello.features

    @property
    def addresses(self) -> tuple[Address, ...]:
        """See :class:`transport.link.Endpoint`."""
        return self._advertise() if callable(self._advertise) else self._advertise

    @property
    def links(self) -> dict[NodeId, Link]:
        """See :class:`transport.link.Endpoint`."""
        return self._links

    def set_incarnation(self, incarnation: int) -> None:
        """Say ``incarnation`` in hellos from now on."""
        self._hello = replace(self._hello, incarnation=incarnation)

    def statistics(self) -> dict[str, int]:
        """Counters since the start: links, traffic and drops of all links, refusals in all and by cause."""
        totals = Counter(self.counters)
        for link in self._live:
            _add_traffic(totals, link)
        totals["refused"] = sum(count for name, count in self.counters.items() if name.startswith("refused_"))
        totals["links_open"] = len(self._links)
        totals["links_live"] = len(self._live)
        return dict(totals)

    async def start(self) -> None:
        """Listen, and start the timer.

        Raises:
            ListenError: The address cannot be bound.
        """
        await self._listen()
        self._schedule_sweep()

    async def dial(self, address: Address, expected: NodeId | None = None) -> Link:
        """See :class:`transport.link.Endpoint`."""
        if self._closed:
            raise PeerUnreachable(f"cannot dial {address}: this endpoint is closed")
        if expected is not None and (existing := self._links.get(expected)) is not None and existing.is_open:
            return existing
        self.counters["dials"] += 1
        link: ChannelLink | None = None
        try:
            async with asyncio.timeout(self.config.dial_timeout_s):
                channel, certified = await self._connect(address, expected)
                link = self._begin(channel, certified, dialled=True, expected=expected)
                if self.tasks.spawn(link.run(), name=f"link to {certified}") is None:
                    link.finish(CloseReason.LEAVING, "this endpoint is closed")
                await asyncio.shield(link.decided)
                return await self._dialled(address, link)
        except TimeoutError as error:
            self.counters["dials_failed"] += 1
            if link is None:
                raise PeerUnreachable(f"{address} did not answer within {self.config.dial_timeout_s:g} s") from error
            raise HandshakeFailed(f"{address} did not finish its handshake in time") from error
        except DialError:
            self.counters["dials_failed"] += 1
            raise
        finally:
            if link is not None and not link.is_open:
                link.finish(CloseReason.CONNECTION_LOST, "dialling was given up")

    async def close(self, reason: CloseReason = CloseReason.LEAVING) -> None:
        """See :class:`transport.link.Endpoint`."""
        if self._closed:
            return
        self._closed = True
        await self._stop_listening()
        for link in list(self._live):
            link.close(reason)
        await self._until_quiet(2 * self.config.close_timeout_s)
        for link in list(self._live):
            link.finish(reason, "")
        if self._sweep_handle is not None:
            self._sweep_handle.cancel()
            self._sweep_handle = None
        await self.tasks.close()
        await self._released()

    # What subclasses provide and use.

    @abstractmethod
    async def _listen(self) -> None:
        """Start to accept; raises ListenError."""

    @abstractmethod
    async def _stop_listening(self) -> None:
        """Stop accepting; pending handshakes may be cut."""

    @abstractmethod
    async def _connect(self, address: Address, expected: NodeId | None) -> tuple[Channel, NodeId]:
        """Make a channel to ``address``; raises DialError.  Cancelled after the dial timeout."""

    async def _released(self) -> None:  # noqa: B027 - most have nothing to wait for
        """Wait until all resources are returned to the system."""

    def _begin(
        self,
        channel: Channel,
        certified: NodeId,
        *,
        dialled: bool,
        expected: NodeId | None = None,
        since_s: float | None = None,
    ) -> ChannelLink:
        """A link over a new channel, whose handshake began at ``since_s`` (default: now); the caller runs it."""
        ours = replace(self._hello, addresses=self.addresses)
        link = ChannelLink(self, channel, ours, certified, dialled=dialled, expected=expected, since_s=since_s)
        self._live[link] = None
        self.counters["links_dialled" if dialled else "links_accepted"] += 1
        return link

    def refuse(self, cause: str, **fields: object) -> None:
        """Count a refusal, and log it unless the same cause was logged within a second."""
        self.counters[f"refused_{cause}"] += 1
        now = self.clock.monotonic()
        if now - self._complained_s.get(cause, -1.0e9) >= 1.0:
            self._complained_s[cause] = now
            log.warning("connection refused", cause=cause, count=self.counters[f"refused_{cause}"], **fields)

    # What links call.

    def judge(self, link: ChannelLink) -> None:
        """Decide whether ``link``, whose hello is known, may open; answers at once or after probing."""
        if self._closed:
            link.close(CloseReason.LEAVING, "this node is leaving")
            return
        existing = self._existing(link.certified)
        if existing is None:
            if len(self._links) >= self.config.links_max:
                self.refuse("overloaded", peer=link.certified)
                link.close(CloseReason.OVERLOADED, f"{self.node_id} has all the links it accepts")
            else:
                link.admit()
            return
        assert link.hello is not None, "judged after the hello"
        same_life = existing.peer.incarnation >> 16 == link.hello.incarnation >> 16
        if same_life and not self.node_id < link.certified:
            # The arbiter knows what it wants; if it agrees to this link then the other one is gone on its side.
            link.admit()
            return
        self.tasks.spawn(self._judge_duplicate(link, existing, same_life=same_life), name=f"probe {link.certified}")

    async def _judge_duplicate(self, link: ChannelLink, existing: ChannelLink, *, same_life: bool) -> None:
        """Keep the older link if it shows a sign of life, else give way to the newer."""
        if await self._answers(existing):
            if same_life:
                link.close(CloseReason.DUPLICATE_LINK, f"{self.node_id} already has a link to {link.certified}")
            else:
                self.refuse("duplicate_node", peer=link.certified)
                link.close(CloseReason.DUPLICATE_NODE, f"another live process is node {link.certified}")
            return
        existing.finish(CloseReason.TIMED_OUT, "replaced by a newer link")
        if not link.finished:
            self.judge(link)

    async def _answers(self, link: ChannelLink) -> bool:
        """Whether an open link shows a sign of life within the probe timeout."""
        frames_before = link.frames_received
        link.ping()
        # Looking again and again is enough: this happens when two nodes dial each other, not on a path that repeats.
        for _ in range(_PROBE_LOOKS):
            await asyncio.sleep(self.config.probe_timeout_s / _PROBE_LOOKS)
            if not link.is_open:
                return False
            if link.frames_received > frames_before:
                return True
        return False

    def link_opened(self, link: ChannelLink) -> None:
        """Both sides agreed on ``link``."""
        peer = link.certified
        existing = self._existing(peer)
        if existing is not None:
            existing.finish(CloseReason.DUPLICATE_LINK, "replaced by a newer link")
        self._links[peer] = link
        self.counters["links_opened"] += 1
        log.debug("link opened", peer=peer, address=str(link.remote_address), dialled=link.dialled)
        try:
            self.handler.link_opened(link)
        except Exception as error:  # noqa: BLE001 - a handler's mistake must not take the endpoint down; it is logged
            self._handler_failed(error, link, "link_opened")
        if self._arrival is not None:
            self._arrival.set_result(None)
            self._arrival = None

    def deliver(self, link: ChannelLink, envelopes: list[Envelope]) -> None:
        """Hand a frame's envelopes to the handler; RemoteProtocolError is the link's to act on."""
        try:
            self.handler.envelopes_received(link, envelopes)
        except RemoteProtocolError:
            raise
        except Exception as error:  # noqa: BLE001 - a handler's mistake must not take the endpoint down; it is logged
            self._handler_failed(error, link, "envelopes_received")

    def breach(self, link: ChannelLink, reason: CloseReason, detail: str) -> None:
        """``link`` ended because of what its peer sent: count and log it."""
        self.refuse(reason.name.lower(), peer=link.certified, error=detail)

    def link_finished(self, link: ChannelLink, *, was_open: bool) -> None:
        """``link`` is over; called once for each."""
        self._live.pop(link, None)
        if not self._live and self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)
        _add_traffic(self.counters, link)
        reason, detail = link.reason
        peer = link.certified
        if self._links.get(peer) is link:
            del self._links[peer]
        if reason in _BREACHES and not link.refused_by_peer:
            self.breach(link, reason, detail)
        if not was_open:
            self.counters[f"handshakes_failed_{reason.name.lower()}"] += 1
            log.debug("link refused", peer=peer, reason=reason.name, detail=detail, by_peer=link.refused_by_peer)
            return
        self.counters[f"links_closed_{reason.name.lower()}"] += 1
        log.debug("link closed", peer=peer, reason=reason.name, detail=detail)
        try:
            self.handler.link_closed(link, reason, detail)
        except Exception as error:  # noqa: BLE001 - a handler's mistake must not take the endpoint down; it is logged
            self._handler_failed(error, link, "link_closed")

    # Private.

    def _existing(self, peer: NodeId) -> ChannelLink | None:
        """The open link to ``peer``; one that is closing is ended first, so that its end is told before a new start."""
        existing = self._links.get(peer)
        if existing is None:
            return None
        assert isinstance(existing, ChannelLink)
        if existing.is_open:
            return existing
        existing.finish(*existing.reason)
        return None

    def _handler_failed(self, error: Exception, link: ChannelLink, what: str) -> None:
        self.counters["handler_errors"] += 1
        log.error("link handler failed", peer=link.certified, callback=what, exc_info=error)

    async def _dialled(self, address: Address, link: ChannelLink) -> Link:
        """What a dial whose handshake ended gives: this link, the one that was kept instead, or an error."""
        if link.is_open:
            return link
        reason, detail = link.reason
        peer = link.certified
        if reason is CloseReason.DUPLICATE_LINK:
            while (existing := self._links.get(peer)) is None:
                # Both sides agree on another connection, whose last envelope is still on its way.
                if self._arrival is None:
                    self._arrival = asyncio.get_running_loop().create_future()
                await asyncio.shield(self._arrival)
            if existing.is_open:
                return existing
        if link.refused_by_peer:
            raise PeerRefused(f"{peer} at {address} refused the link: {detail or reason.name}", code=int(reason))
        raise HandshakeFailed(f"no link to {peer} at {address}: {detail or reason.name}")

    def _schedule_sweep(self) -> None:
        period_s = self.config.keepalive_interval_s / 4
        self._sweep_due_s = self.clock.monotonic() + period_s
        self._sweep_handle = asyncio.get_running_loop().call_later(period_s, self._sweep)

    def _sweep(self) -> None:
        """Tick every link.  One timer for all, because waking up costs more than the work."""
        now, wall = self.clock.monotonic(), self.clock.wall()
        late_s = now - self._sweep_due_s
        # When this process did not run (stopped, starved, a long callback), what the peers sent waits unread.
        event = core.Ticked(late_s if late_s > self.config.keepalive_interval_s / 2 else 0.0)
        for link in list(self._live):
            link.tick(event, now)
            if wall >= link.expires_s and link.is_open:
                # A certificate admits until it ends, not until somebody hangs up.  Whoever has a new one is dialled
                # again at once.
                self.counters["links_expired"] += 1
                link.close(CloseReason.NOT_ADMITTED, f"the certificate that {link.certified} showed expired")
        self._schedule_sweep()

    async def _until_quiet(self, timeout_s: float) -> None:
        """Wait until no link is left, but no longer than this."""
        if self._live:
            self._quiet = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._quiet], timeout=timeout_s)


def _add_traffic(totals: Counter[str], link: ChannelLink) -> None:
    for name, value in link.statistics().items():
        if not name.startswith(("queued_", "rtt")):
            totals[name] += int(value)
