"""What a link is, whoever implements it: the protocols between transport and the layers above.

A *link* is one authenticated, ordered, bidirectional connection between two nodes that carries envelopes.
:mod:`transport.websocket` implements it over mutual TLS, :mod:`transport.memory` inside one process; the
simulator adds its own.  One contract suite (``tests/transport/test_link_contract.py``) runs on all of them.

Everything here is called on the event loop's thread.  ``send`` is a plain function: it queues, says what
happened, and the link's own task coalesces whatever is queued when the loop comes round into one frame.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .config import LinkConfig
from .types import Address, Lane, NetworkName, NodeId
from .wire import Envelope


class SendOutcome(enum.Enum):
    """What became of an envelope given to :meth:`Link.send`."""

    ACCEPTED = "accepted"
    """Queued, or put in the place of a queued envelope with the same key."""
    FULL = "full"
    """Not queued: the lane is at its bound.  Await :meth:`Link.wait_writable` and send again."""
    CLOSED = "closed"
    """Not queued: the link is closed."""


class CloseReason(enum.IntEnum):
    """Why a link was closed.  The values are WebSocket close codes (RFC 6455 section 7.4.2, private use)."""

    NORMAL = 1000
    LEAVING = 1001
    """The peer leaves the network in order: it is not a failure."""
    CONNECTION_LOST = 1006
    """No closing handshake: the process died, the host died, or the network cut us off."""
    MESSAGE_TOO_BIG = 1009
    PROTOCOL_ERROR = 4400
    WRONG_NETWORK = 4401
    IDENTITY_MISMATCH = 4402
    """The node id in the hello is not the one in the certificate."""
    UNSUPPORTED_VERSION = 4403
    DUPLICATE_LINK = 4404
    """Another link between the same two nodes was kept instead."""
    SELF = 4405
    """A node dialled itself."""
    DUPLICATE_NODE = 4406
    """Another live process uses this node id."""
    TIMED_OUT = 4408
    """Nothing was heard for the keepalive timeout, or the handshake took too long."""
    OVERLOADED = 4409
    """The peer has as many links as it accepts."""
    NOT_ADMITTED = 4410
    """The certificate is expired, revoked, or from another authority."""
    IDLE = 4411
    """Closed because nobody needed it."""
    VETOED = 4412
    """The application at the other end does not admit this node."""


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """Who is at the other end of an open link, as authenticated by its certificate and said in its hello."""

    node_id: NodeId
    incarnation: int
    addresses: tuple[Address, ...]
    """Where the peer says it can be dialled, best first; empty if it cannot."""
    version: tuple[int, int]
    """The negotiated protocol version (major, minor)."""
    features: dict[str, Any] = field(default_factory=dict)


class Link(Protocol):
    """One open connection to one peer."""

    @property
    def peer(self) -> PeerInfo:
        """Who is at the other end."""
        ...

    @property
    def dialled(self) -> bool:
        """Whether this side opened the connection."""
        ...

    @property
    def is_relayed(self) -> bool:
        """Whether other nodes carry it, so that no certificate says yet who is at the other end.

        Only what is sealed from end to end may be believed on such a link.
        """
        ...

    @property
    def remote_address(self) -> Address:
        """The address the connection really goes to (an ephemeral port if the peer dialled us)."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether ``send`` can still succeed."""
        ...

    @property
    def rtt_s(self) -> float | None:
        """The latest keepalive round trip in seconds; ``None`` before the first."""
        ...

    @property
    def queued(self) -> int:
        """How many envelopes wait to be sent, in all lanes."""
        ...

    def send(self, envelope: Envelope, lane: Lane, *, key: str | None = None) -> SendOutcome:
        """Queue ``envelope`` for the peer; never blocks.

        Args:
            envelope: Its size must be within the frame limit (``LocalProtocolError`` otherwise).
            lane: Which of the link's queues; a more urgent lane is drained first.
            key: If given, replaces a queued envelope of the same lane and key (a superseded value).
        """
        ...

    def ask_turn(self, fill: Callable[[], None]) -> bool:
        """Call ``fill`` once, right before the next frame is put together, so that it can still ``send`` into it.

        For who gathers what to send during a turn of the loop: the link's own sender runs once for all of it, and no
        further turn is spent on handing it over.  ``fill`` must not raise.

        Returns:
            ``False`` if the link does not do that; then the caller sends when it sees fit.
        """
        ...

    async def wait_writable(self, lane: Lane) -> None:
        """Return when ``send`` on ``lane`` can succeed again.

        Raises:
            LinkClosed: The link closed meanwhile.
        """
        ...

    def close(self, reason: CloseReason = CloseReason.NORMAL, detail: str = "") -> None:
        """Start closing: what is queued in the control lane is still flushed, the rest is dropped.

        The endpoint's handler sees ``link_closed`` once it is done.  Closing twice is harmless.
        """
        ...

    def statistics(self) -> dict[str, int | float]:
        """Counters: envelopes, frames and bytes each way, queue lengths, drops by reason."""
        ...


class LinkHandler(Protocol):
    """Who is told what happens on links.  Plain functions, called on the loop; they must not block."""

    def link_opened(self, link: Link) -> None:
        """A link passed TLS, hello and duplicate resolution."""
        ...

    def link_closed(self, link: Link, reason: CloseReason, detail: str) -> None:
        """An open link closed; called exactly once for each ``link_opened``."""
        ...

    def envelopes_received(self, link: Link, envelopes: Sequence[Envelope]) -> None:
        """One frame arrived.  Session envelopes (hello, keepalive) are not shown.

        Raises:
            RemoteProtocolError: The content is not allowed; the link is closed with its code.
        """
        ...


class Endpoint(Protocol):
    """One node's end of all its links: listens, dials, and keeps at most one link to each peer."""

    @property
    def network(self) -> NetworkName:
        """The network that this node belongs to."""
        ...

    @property
    def config(self) -> LinkConfig:
        """Limits and times of its links."""
        ...

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where this node tells its peers to dial it, best first."""
        ...

    @property
    def features(self) -> tuple[str, ...]:
        """What it says in its hellos that this node can do or demands."""
        ...

    @property
    def links(self) -> dict[NodeId, Link]:
        """The open links by peer, in the order they were opened.  Do not modify."""
        ...

    async def start(self) -> None:
        """Listen for peers, and start the timer that keeps links alive.

        Raises:
            ListenError: The address cannot be bound.
        """
        ...

    def set_incarnation(self, incarnation: int) -> None:
        """Say ``incarnation`` in the hellos of links from now on; open links are not told."""
        ...

    def statistics(self) -> dict[str, int]:
        """Counters since the start: links, traffic, refusals and drops by reason."""
        ...

    async def dial(self, address: Address, expected: NodeId | None = None) -> Link:
        """Open a link to whoever answers at ``address``, or return the one that is already open to it.

        Args:
            address: Where to dial.
            expected: If given, TLS itself refuses anybody else.

        Raises:
            PeerUnreachable: Refused, timed out, or the name does not resolve.
            HandshakeFailed: TLS, WebSocket or hello failed, or another node answered.
            PeerRefused: The peer said no and why.
        """
        ...

    async def close(self, reason: CloseReason = CloseReason.LEAVING) -> None:
        """Close the listener and all links, flushing control lanes."""
        ...
