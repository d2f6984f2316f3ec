"""Relayed links: the shell that runs streams as channels, so that a link over relays is a link like any other.

A :class:`RelayChannel` carries whole frames over a :class:`~gossip.relay_stream.RelayStream`.  Sessions, lanes,
keepalive, and what happens when two links between the same nodes meet are the transport's own
(:mod:`transport.channel`, :mod:`transport.endpoint`): a relayed link says hello with both lives, has the same lanes and
bounds, and passes the same contract suite.  What it lacks is the certificate: who is at the other end is what the
relays say.  So the layer above believes nothing on it that is not sealed from end to end (``Link.is_relayed``).
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import ClassVar, Final, Protocol

from transport.channel import Channel, ChannelClosed
from transport.clock import Clock
from transport.config import LinkConfig
from transport.endpoint import BaseEndpoint
from transport.errors import PeerUnreachable, RemoteProtocolError
from transport.link import CloseReason, LinkHandler
from transport.types import Address, NetworkName, NodeId

from .config import GossipConfig
from .relay_codec import Open, Reset, Segment, decode, encode
from .relay_stream import Effect, Ended, FrameArrived, Opened, RelayStream, Transmit, WaySuspected

#: A timer that is later than this shows that the loop stood still; how long it then waits at most.
_LATE_S: Final = 0.05
_LATE_S_MAX: Final = 0.2


class Carrier(Protocol):
    """What takes bodies to nodes that are not linked."""

    def carry(self, target: NodeId, body: bytes) -> NodeId | None:
        """Send ``body`` on its way; returns the next hop, or ``None`` if there is none or it has no room."""
        ...

    def is_way(self, target: NodeId, hop: NodeId) -> bool:
        """Whether ``hop`` still leads to ``target`` as far as is known."""
        ...

    def want_way(self, target: NodeId) -> None:
        """Find a way; :meth:`RelayEndpoint.way_changed` tells the result, perhaps at once."""
        ...

    def suspect_way(self, target: NodeId, hop: NodeId) -> None:
        """Nothing arrives through ``hop``."""
        ...


def relay_address(peer: NodeId) -> Address:
    """The address that stands for "through relays": a node's id in place of a host."""
    return Address(peer, 1)


class RelayChannel:
    """One end of a stream, as a :class:`transport.channel.Channel`."""

    def __init__(self, endpoint: RelayEndpoint, peer: NodeId, number: int, stream: RelayStream) -> None:
        self._endpoint = endpoint
        self.peer = peer
        self.number = number
        self.stream = stream
        self.remote_address = relay_address(peer)
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if stream.is_open:
            self.opened.set_result(None)
        # The link's receiver empties it each turn of the loop; what arrives in a turn is bounded by the window.
        self._inbox: deque[bytes | ChannelClosed | RemoteProtocolError] = deque()
        self._ended: ChannelClosed | None = None
        self._reading: asyncio.Future[None] | None = None
        self._writing: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._waited = False
        self._hop: NodeId | None = None

    async def send(self, frame: bytes) -> None:
        """See :class:`transport.channel.Channel`."""
        if self._ended is not None:
            raise self._ended
        self.run(self.stream.give(frame, self._now()))
        await self._until(lambda: self.stream.has_room)
        if self._ended is not None:
            raise self._ended

    async def receive(self) -> bytes:
        """See :class:`transport.channel.Channel`."""
        while not self._inbox:
            if self._ended is not None:
                raise self._ended
            self._reading = asyncio.get_running_loop().create_future()
            await self._reading
        item = self._inbox.popleft()
        if isinstance(item, bytes):
            return item
        raise item

    async def close(self, code: int, detail: str) -> None:
        """See :class:`transport.channel.Channel`."""
        if self._ended is None:
            self.run(self.stream.close(code, detail, self._now()))
            await self._until(lambda: False)

    def abort(self) -> None:
        """See :class:`transport.channel.Channel`."""
        if self._ended is None:
            self.run(self.stream.abort())
            self._end(ChannelClosed(CloseReason.CONNECTION_LOST, by_peer=False))

    # What the endpoint uses.

    def received(self, segment: Segment) -> None:
        """A segment of this stream arrived."""
        try:
            self.run(self.stream.received(segment, self._now()))
        except RemoteProtocolError as error:
            self._arrived(error)

    def way_changed(self, *, found: bool) -> None:
        """There are other ways than before, or none."""
        if found and (self._hop is None or not self._endpoint.carrier.is_way(self.peer, self._hop)):
            self.run(self.stream.way_lost(self._now()))

    def run(self, effects: list[Effect]) -> None:
        """Execute what the stream says."""
        for effect in effects:
            match effect:
                case Transmit(segment):
                    self._hop = self._endpoint.carrier.carry(self.peer, encode(segment)) or self._hop
                case FrameArrived(frame):
                    self._arrived(frame)
                case Opened():
                    if not self.opened.done():
                        self.opened.set_result(None)
                case WaySuspected():
                    self._suspect()
                case Ended(code, text, by_peer):
                    closed = ChannelClosed(code, text, by_peer=by_peer)
                    self._arrived(closed)
                    self._end(closed)
        if self.stream.has_room:
            self._wake_writer()
        self._set_timer()

    # Private.

    def _now(self) -> float:
        return self._endpoint.clock.monotonic()

    def _suspect(self) -> None:
        """Later, because an answer may come at once, while the effects are still being executed."""
        asyncio.get_running_loop().call_soon(self._find_other_way, self._hop)

    def _find_other_way(self, hop: NodeId | None) -> None:
        if self._ended is None:
            if hop is None:
                self._endpoint.carrier.want_way(self.peer)
            else:
                self._endpoint.carrier.suspect_way(self.peer, hop)

    def _arrived(self, item: bytes | ChannelClosed | RemoteProtocolError) -> None:
        if self._ended is None:
            self._inbox.append(item)
            reading, self._reading = self._reading, None
            if reading is not None and not reading.done():
                reading.set_result(None)

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition that the stream's progress makes true holds, or the end."""
        while not self._is_over() and not condition():
            self._writing = asyncio.get_running_loop().create_future()
            await self._writing

    def _is_over(self) -> bool:
        """Whether this end is over; a function, because it changes while its caller waits."""
        return self._ended is not None

    def _wake_writer(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None and not writing.done():
            writing.set_result(None)

    def _end(self, why: ChannelClosed) -> None:
        self._ended = why
        self._endpoint.forget(self)
        self._wake_writer()
        if self._timer is not None:
            self._timer.cancel()
        if not self.opened.done():
            self.opened.set_exception(PeerUnreachable(f"{self.peer} took no link through other nodes"))
        reading, self._reading = self._reading, None
        if reading is not None and not reading.done():
            reading.set_result(None)

    def _set_timer(self) -> None:
        """Be called when the stream is due; a timer that is early finds nothing to do and is set again."""
        due = self.stream.due
        if due < self._timer_at and self._ended is None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = due
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - self._now()), self._ticked)

    def _ticked(self) -> None:
        late_s = self._now() - self._timer_at
        if late_s > _LATE_S and not self._waited:
            # The loop stood still; what arrived meanwhile is read only now, and may be all that is waited for.
            self._waited = True
            self._timer = asyncio.get_running_loop().call_later(min(late_s, _LATE_S_MAX), self._ticked)
            return
        self._timer, self._timer_at, self._waited = None, inf, False
        self.run(self.stream.tick(self._now()))


class RelayEndpoint(BaseEndpoint):
    """One node's end of all its relayed links.

    Its addresses are node ids (:func:`relay_address`); nothing has to be started.

    Args:
        network: The network's name.
        node_id: This node.
        incarnation: Its incarnation.
        handler: Who is told about links.
        carrier: What takes the streams' bodies to other nodes.
        gossip: The streams' times.
        config: Limits and times of links; those of keepalive are set so that a relay can be replaced meanwhile.
        clock: Where to read the time.
        rng: For the numbers of streams.
        advertise: What hellos say of where this node can be dialled.
        features: What hellos say that this node can do or demands.
    """

    is_relayed: ClassVar[bool] = True

    def __init__(
        self,
        network: NetworkName,
        node_id: NodeId,
        incarnation: int,
        handler: LinkHandler,
        *,
        carrier: Carrier,
        gossip: GossipConfig,
        config: LinkConfig | None = None,
        clock: Clock | None = None,
        rng: random.Random,
        advertise: Callable[[], tuple[Address, ...]] | tuple[Address, ...] = (),
        features: tuple[str, ...] = (),
    ) -> None:
        super().__init__(
            network, node_id, incarnation, handler, clock=clock, config=config, advertise=advertise, features=features
        )  # fmt: skip
        self.carrier = carrier
        self._gossip = gossip
        self._rng = rng
        # By peer and number; bounded like links: links_max and handshakes_max.
        self._channels: dict[tuple[NodeId, int], RelayChannel] = {}

    def received(self, source: NodeId, body: bytes) -> None:
        """A body of kind RELAY arrived that is said to come from ``source``.

        Raises:
            RemoteProtocolError: It is not a segment.
        """
        segment = decode(body)
        if segment is None:
            return
        channel = self._channels.get((source, segment.stream))
        if channel is None and isinstance(segment, Open):
            channel = self._accept(source, segment.stream)
        if channel is not None:
            channel.received(segment)
        elif not isinstance(segment, Reset):
            self.carrier.carry(source, encode(Reset(segment.stream)))

    def way_changed(self, target: NodeId, *, found: bool) -> None:
        """Ways to ``target`` came or went, or the search for one ended."""
        for (peer, _), channel in list(self._channels.items()):
            if peer == target:
                channel.way_changed(found=found)

    def forget(self, channel: RelayChannel) -> None:
        """The channel ended."""
        self._channels.pop((channel.peer, channel.number), None)

    @property
    def streams(self) -> list[RelayStream]:
        """The streams that are not over."""
        return [channel.stream for channel in self._channels.values()]

    def abort(self) -> None:
        """End all links now; their other ends are told, and do not have to answer."""
        for link in list(self._live):
            link.finish(CloseReason.NORMAL, "")

    def _accept(self, peer: NodeId, number: int) -> RelayChannel | None:
        """A stream that another node opened; it is open at once."""
        if self._closed or len(self._live) - len(self._links) >= self.config.handshakes_max:
            return None
        channel = self._make(peer, number, opening=False)
        self._tick()
        link = self._begin(channel, peer, dialled=False)
        self.tasks.spawn(link.run(), name=f"relayed link from {peer}")
        return channel

    def _make(self, peer: NodeId, number: int, *, opening: bool) -> RelayChannel:
        stream = RelayStream(number, self._gossip, self.clock.monotonic(), opening=opening)
        channel = self._channels[peer, number] = RelayChannel(self, peer, number, stream)
        return channel

    def _tick(self) -> None:
        """Begin to keep links alive: a node that has no relayed link has no timer for it."""
        if self._sweep_handle is None:
            self._schedule_sweep()

    async def _connect(self, address: Address, expected: NodeId | None) -> tuple[Channel, NodeId]:
        peer = expected or NodeId(address.host)
        self._tick()
        channel = self._make(peer, self._rng.getrandbits(53), opening=True)
        try:
            channel.run(channel.stream.start(self.clock.monotonic()))
            self.carrier.want_way(peer)
            await channel.opened
        except BaseException:  # above all a cancellation: nobody would end the stream otherwise
            channel.abort()
            raise
        return channel, peer

    async def _listen(self) -> None:
        """Nothing: streams come through the carrier."""

    async def _stop_listening(self) -> None:
        """Nothing: see :meth:`_accept`."""


def relay_link_config(config: LinkConfig, gossip: GossipConfig) -> LinkConfig:
    """Times of relayed links: so patient that a relay that went silent is noticed and replaced meanwhile."""
    timeout_s = max(config.keepalive_timeout_s, gossip.relay_silence_s)
    return replace(config, keepalive_interval_s=timeout_s / 4, keepalive_timeout_s=timeout_s)
