"""Endpoints that live in one process and speak through queues: for tests, and for a simulator to build on.

A :class:`MemoryNetwork` stands for the wire.  It knows where each endpoint listens and decides what happens to frames:
how long they take, and whether a path is cut.  Everything above the frame is the code that runs on a real network, and
a frame carries the same bytes.  With an event loop whose time is simulated, and a seeded ``random.Random``, a run is
deterministic: delivery uses ``loop.call_later`` and ``call_soon`` only, and nothing iterates over a set.

Like TCP, a path never loses or reorders a frame of an open channel; a cut path holds them back until it is healed, or
the keepalive gives up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from .channel import Channel, ChannelClosed
from .clock import Clock
from .config import LinkConfig
from .endpoint import BaseEndpoint
from .errors import HandshakeFailed, ListenError, PeerUnreachable
from .link import CloseReason, LinkHandler
from .types import Address, NetworkName, NodeId

#: Frames under way per direction before the sender has to wait: what a socket's buffers would hold.
_FRAMES_IN_FLIGHT_MAX = 16


class MemoryNetwork:
    """The wire between in-memory endpoints.

    Args:
        delay_s: Seconds that a frame takes from one node to another, asked for each frame; ``None``: it arrives when
            the loop comes round.
    """

    def __init__(self, *, delay_s: Callable[[NodeId, NodeId], float] | None = None) -> None:
        self._delay_s = delay_s
        self._listening: dict[Address, MemoryEndpoint] = {}
        self._cut: dict[tuple[NodeId, NodeId], None] = {}
        self._channels: dict[MemoryChannel, None] = {}
        self._next_port = 1

    def cut(self, a: NodeId, b: NodeId, *, one_way: bool = False) -> None:
        """Hold back all that travels from ``a`` to ``b`` (and back unless ``one_way``) until :meth:`heal`."""
        self._cut[a, b] = None
        if not one_way:
            self._cut[b, a] = None

    def heal(self, a: NodeId | None = None, b: NodeId | None = None) -> None:
        """Undo :meth:`cut` between two nodes, or between all; what was held back arrives."""
        for pair in list(self._cut):
            if (a is None and b is None) or pair in {(a, b), (b, a)}:
                del self._cut[pair]
        for channel in list(self._channels):
            channel.release()

    def reset(self, a: NodeId, b: NodeId) -> None:
        """Reset every connection between two nodes, as when a host dies and its address answers again."""
        for channel in list(self._channels):
            if (channel.local, channel.remote) == (a, b):
                channel.abort()

    # What endpoints use.

    def is_cut(self, source: NodeId, target: NodeId) -> bool:
        """Whether frames from ``source`` to ``target`` are held back."""
        return (source, target) in self._cut

    def delay_s(self, source: NodeId, target: NodeId) -> float:
        """How long the next frame takes."""
        return 0.0 if self._delay_s is None else self._delay_s(source, target)

    def bind(self, address: Address, endpoint: MemoryEndpoint) -> Address:
        """Listen at ``address`` (port 0: any free one).

        Raises:
            ListenError: Somebody else listens there.
        """
        if address.port == 0:
            address = Address(address.host, self._next_port)
            self._next_port += 1
        if address in self._listening:
            raise ListenError(f"{address} is in use", hint="choose another port, or 0 for any")
        self._listening[address] = endpoint
        return address

    def unbind(self, address: Address) -> None:
        """Stop listening."""
        self._listening.pop(address, None)

    def listener(self, address: Address) -> MemoryEndpoint | None:
        """Who listens at ``address``."""
        return self._listening.get(address)

    def connect(self, dialler: MemoryEndpoint, listener: MemoryEndpoint) -> tuple[MemoryChannel, MemoryChannel]:
        """A pair of channels, the dialler's first."""
        here = MemoryChannel(self, dialler.certified_as, listener.certified_as, listener.listen)
        there = MemoryChannel(self, listener.certified_as, dialler.certified_as, Address(dialler.listen.host, 1))
        here.other, there.other = there, here
        self._channels[here] = self._channels[there] = None
        return here, there

    def forget(self, channel: MemoryChannel) -> None:
        """The channel ended."""
        self._channels.pop(channel, None)


class MemoryChannel:
    """One end of a pair of queues."""

    __slots__ = (
        "_arrive_s",
        "_ended",
        "_flying",
        "_held",
        "_inbox",
        "_network",
        "_reading",
        "_writing",
        "local",
        "other",
        "remote",
        "remote_address",
    )

    def __init__(self, network: MemoryNetwork, local: NodeId, remote: NodeId, remote_address: Address) -> None:
        self._network = network
        self.local = local
        self.remote = remote
        self.remote_address = remote_address
        self.other: MemoryChannel
        # All bounded by send(): at most _FRAMES_IN_FLIGHT_MAX frames, plus the end.
        self._inbox: deque[bytes | ChannelClosed] = deque()
        self._held: deque[bytes | ChannelClosed] = deque()
        self._flying: deque[bytes | ChannelClosed] = deque()
        self._arrive_s = 0.0
        self._ended: ChannelClosed | None = None
        self._reading: asyncio.Future[None] | None = None
        self._writing: asyncio.Future[None] | None = None

    async def send(self, frame: bytes) -> None:
        """See :class:`transport.channel.Channel`."""
        if self._ended is not None:
            raise self._ended
        self._transmit(frame)
        while not self._is_over() and self._under_way() >= _FRAMES_IN_FLIGHT_MAX:
            self._writing = asyncio.get_running_loop().create_future()
            await self._writing
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
        self.other._wake_writer()
        if isinstance(item, ChannelClosed):
            self._end(item)
            raise item
        return item

    async def close(self, code: int, detail: str) -> None:
        """See :class:`transport.channel.Channel`."""
        if self._ended is not None:
            return
        self._transmit(ChannelClosed(code, detail))
        while self._ended is None:
            self._writing = asyncio.get_running_loop().create_future()
            await self._writing

    def abort(self) -> None:
        """See :class:`transport.channel.Channel`."""
        if self._ended is None:
            lost = ChannelClosed(CloseReason.CONNECTION_LOST)
            self._end(lost)
            if self.other._ended is None:
                self._transmit(lost)

    def release(self) -> None:
        """Send on what a cut held back."""
        held, self._held = self._held, deque()
        for item in held:
            self._transmit(item)

    # Private.

    def _under_way(self) -> int:
        return len(self.other._inbox) + len(self._held) + len(self._flying)

    def _is_over(self) -> bool:
        """Whether this end is over; a function, because it changes while its caller waits."""
        return self._ended is not None

    def _transmit(self, item: bytes | ChannelClosed) -> None:
        if self._held or self._network.is_cut(self.local, self.remote):
            self._held.append(item)
            return
        loop = asyncio.get_running_loop()
        delay_s = self._network.delay_s(self.local, self.remote)
        if delay_s <= 0.0 and not self._flying:
            self.other._arrived(item)
            return
        # Timers that are due at the same time fire in no particular order, so each takes whatever is first.
        self._arrive_s = max(self._arrive_s, loop.time() + delay_s)
        self._flying.append(item)
        loop.call_at(self._arrive_s, self._land)

    def _land(self) -> None:
        self.other._arrived(self._flying.popleft())

    def _arrived(self, item: bytes | ChannelClosed) -> None:
        if self._ended is not None:
            return
        if isinstance(item, ChannelClosed) and item.code == CloseReason.CONNECTION_LOST:
            # A reset overtakes what was not read yet.
            self._inbox.clear()
        self._inbox.append(item)
        reading = self._reading
        if reading is not None:
            self._reading = None
            if not reading.done():
                reading.set_result(None)

    def _end(self, why: ChannelClosed) -> None:
        """This end is over; answer a closing peer so that both ends are."""
        self._ended = why
        self._network.forget(self)
        self._wake_writer()
        reading, self._reading = self._reading, None
        if reading is not None and not reading.done():
            reading.set_result(None)
        if why.code != CloseReason.CONNECTION_LOST and self.other._ended is None:
            self._transmit(why)

    def _wake_writer(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None and not writing.done():
            writing.set_result(None)


class MemoryEndpoint(BaseEndpoint):
    """An endpoint on a :class:`MemoryNetwork`.

    Args:
        wire: Where to listen and dial.
        network: The network's name.
        node_id: This node.
        incarnation: Its incarnation.
        handler: Who is told about links.
        listen: Where to listen; default: the node's own name and a free port.
        certified_as: Whom this node's certificate would name, for tests of impostors; default: ``node_id``.
        clock: Where to read the time.
        config: Limits and timing.
        advertise: What hellos say; default: the listening address.
    """

    def __init__(
        self,
        wire: MemoryNetwork,
        network: NetworkName,
        node_id: NodeId,
        incarnation: int,
        handler: LinkHandler,
        *,
        listen: Address | None = None,
        certified_as: NodeId | None = None,
        clock: Clock | None = None,
        config: LinkConfig | None = None,
        advertise: Callable[[], tuple[Address, ...]] | tuple[Address, ...] | None = None,
    ) -> None:
        super().__init__(
            network,
            node_id,
            incarnation,
            handler,
            clock=clock,
            config=config,
            advertise=advertise if advertise is not None else lambda: (self.listen,),
        )
        self._wire = wire
        self.listen = listen or Address(f"{node_id}.memory", 0)
        self.certified_as = certified_as or node_id

    async def _listen(self) -> None:
        self.listen = self._wire.bind(self.listen, self)

    async def _stop_listening(self) -> None:
        self._wire.unbind(self.listen)

    async def _connect(self, address: Address, expected: NodeId | None) -> tuple[Channel, NodeId]:
        listener = self._wire.listener(address)
        if listener is None:
            raise PeerUnreachable(f"nobody listens at {address}")
        local, remote = self.certified_as, listener.certified_as
        if self._wire.is_cut(local, remote) or self._wire.is_cut(remote, local):
            # Silence, as on a real network: the dial timeout ends it.
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(self._wire.delay_s(local, remote) + self._wire.delay_s(remote, local))
        if expected is not None and remote != expected:
            raise HandshakeFailed(f"{remote} answered at {address} where {expected} was expected")
        here, there = self._wire.connect(self, listener)
        listener.accept(there)
        return here, remote

    def accept(self, channel: MemoryChannel) -> None:
        """A channel that somebody else opened."""
        if self._closed or len(self._live) - len(self._links) >= self.config.handshakes_max:
            self.refuse("overloaded", peer=channel.remote)
            channel.abort()
            return
        link = self._begin(channel, channel.remote, dialled=False)
        self.tasks.spawn(link.run(), name=f"link from {channel.remote}")
