"""Events into and effects out of the membership and broadcast cores.

``core.handle(event, now) -> list[Effect]``.  All values are frozen, so that a run can be logged, compared,
replayed and shrunk.  Effects are executed in list order: ``Persist`` stands before the ``Send`` that relies
on it.  Timers are effects with a token; a timer that fires after it was superseded carries a stale token and
is ignored, so nothing is ever cancelled.
"""

# core: no I/O

from __future__ import annotations

import enum
from dataclasses import dataclass

from transport.types import Address, NodeId
from transport.wire import Envelope, Kind


class MemberState(enum.IntEnum):
    """What is believed of a member.  The numbers are the wire's, and order claims at equal incarnation."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


@dataclass(frozen=True, slots=True)
class Member:
    """What is known of one member: the unit of gossip.

    ``meta`` is opaque here; its owner raises ``meta_version`` with each change.
    """

    node_id: NodeId
    incarnation: int
    state: MemberState
    addresses: tuple[Address, ...] = ()
    meta_version: int = 0
    meta: bytes = b""


# --- events ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The node starts; timers may be set from here on."""


@dataclass(frozen=True, slots=True)
class LinkOpened:
    """A link to ``peer`` is up."""

    peer: NodeId
    incarnation: int
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class LinkLost:
    """The link to ``peer`` went away.

    ``left``: the peer said goodbye in order.  ``wanted``: one of us closed it for a reason that says nothing about the
    peer's health.  ``vetoed``: that reason is that one of us does not admit the other.
    """

    peer: NodeId
    left: bool = False
    wanted: bool = False
    vetoed: bool = False


@dataclass(frozen=True, slots=True)
class DialFailed:
    """A dial that the core asked for did not succeed."""

    peer: NodeId
    refused: bool
    """Whether the host answered that nobody listens there, which is better evidence than silence."""


@dataclass(frozen=True, slots=True)
class Received:
    """A membership or broadcast body arrived over the link to ``peer``.

    ``ttl`` is the envelope's: how many further hops it may take.
    """

    peer: NodeId
    body: bytes
    kind: int = Kind.MEMBERSHIP
    ttl: int = 0


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer that the core set has run out."""

    token: int


@dataclass(frozen=True, slots=True)
class MetaChanged:
    """This node's own metadata changed."""

    meta: bytes


@dataclass(frozen=True, slots=True)
class AddressesChanged:
    """This node can be dialled elsewhere now."""

    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class LeaveRequested:
    """This node leaves the network in order."""


@dataclass(frozen=True, slots=True)
class PeerFound:
    """Discovery, a seed or a snapshot says that ``node_id`` may be found at ``addresses``: a hint, not a fact."""

    node_id: NodeId
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Stalled:
    """Our own event loop stood still for ``duration_s``: what looks like the others' silence may be our deafness."""

    duration_s: float


@dataclass(frozen=True, slots=True)
class Doubted:
    """The overlay cannot reach ``peer`` (the router turns a :class:`Doubt` into this)."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class BroadcastRequested:
    """Send ``payload`` to every node of the network, or of a group that is open."""

    payload: bytes
    ttl: int
    group: str = ""


@dataclass(frozen=True, slots=True)
class GroupOpened:
    """This node subscribes to ``group`` (``member``), or only publishes to it; ``subscribers``: all that are known.

    Said again, it changes ``member``; a group that is only published to closes by itself when it is idle.
    """

    group: str
    subscribers: tuple[NodeId, ...]
    member: bool


@dataclass(frozen=True, slots=True)
class SubscriberChanged:
    """Another node subscribed to ``group``, or no longer does."""

    group: str
    node_id: NodeId
    subscribed: bool


@dataclass(frozen=True, slots=True)
class LinkKept:
    """Between cores only: the link to ``peer`` must not be closed as idle (``kept``), or may be again."""

    peer: NodeId
    kept: bool


@dataclass(frozen=True, slots=True)
class NeighborUp:
    """Between cores only: the overlay took ``peer``, to which there is a link, into its active view."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class NeighborDown:
    """Between cores only: ``peer`` left the active view, by loss of its link or by choice."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class LinkWanted:
    """The layer above has something for ``peer``: link to it if there is no link.

    ``LinkOpened`` or ``DialFailed`` follows, unless ``peer`` cannot be dialled or failed just now.
    """

    peer: NodeId


@dataclass(frozen=True, slots=True)
class LinkUsed:
    """The link to ``peer`` carried something other than gossip.

    The shell says so at most once per quarter of ``idle_link_s`` and link, not per message.
    """

    peer: NodeId


@dataclass(frozen=True, slots=True)
class RttMeasured:
    """A round trip to ``peer`` took, or by its coordinates would take, ``rtt_s``."""

    peer: NodeId
    rtt_s: float


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """Between cores only: ``peer`` answered neither our probe nor those that others made for us."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class SendDropped:
    """The shell could not queue ``send``: there is no link, or its queue is full."""

    send: Send


@dataclass(frozen=True, slots=True)
class RouteWanted:
    """The layer above has something for ``target``, to which no link can be had: find a way through others.

    :class:`RouteChanged` follows, whether or not there is one.
    """

    target: NodeId


@dataclass(frozen=True, slots=True)
class RouteSuspected:
    """What was sent to ``target`` through ``hop`` does not seem to arrive."""

    target: NodeId
    hop: NodeId


@dataclass(frozen=True, slots=True)
class Transit:
    """A routed envelope arrived over the link to ``peer``: for this node, or to be passed on."""

    peer: NodeId
    envelope: Envelope


Event = (
    Started
    | LinkOpened
    | LinkLost
    | DialFailed
    | Received
    | TimerFired
    | MetaChanged
    | AddressesChanged
    | LeaveRequested
    | PeerFound
    | Stalled
    | Doubted
    | BroadcastRequested
    | GroupOpened
    | SubscriberChanged
    | LinkKept
    | NeighborUp
    | NeighborDown
    | LinkWanted
    | LinkUsed
    | RttMeasured
    | ProbeFailed
    | SendDropped
    | RouteWanted
    | RouteSuspected
    | Transit
)

# --- effects --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Persist:
    """Store this incarnation before any later effect of the same list is executed."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send a body to ``peer`` over its link; dropped and counted if there is none.

    ``key`` lets a newer value replace an older one that is still queued.
    """

    peer: NodeId
    body: bytes
    key: str | None = None
    kind: int = Kind.MEMBERSHIP
    ttl: int = 0


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Deliver ``TimerFired(token)`` after ``delay_s`` seconds."""

    token: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class Dial:
    """Open a link to ``peer`` if there is none."""

    peer: NodeId
    addresses: tuple[Address, ...]


class UnlinkReason(enum.Enum):
    """Why a link is to be closed."""

    SUPERSEDED = enum.auto()
    """Its other end is a process that a newer one with the same node id has replaced."""
    VETOED = enum.auto()
    """The layer above does not admit the node."""
    DEAD = enum.auto()
    """The network holds that the peer is dead; the link only looks open."""
    IDLE = enum.auto()
    """Nobody here needs it; it stays if the peer does (:mod:`gossip.parting`)."""


@dataclass(frozen=True, slots=True)
class Unlink:
    """Close the link to ``peer``."""

    peer: NodeId
    why: str
    reason: UnlinkReason = UnlinkReason.SUPERSEDED


@dataclass(frozen=True, slots=True)
class Doubt:
    """Between cores only: the overlay could not link to ``peer``, which membership should suspect."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class MemberChanged:
    """Tell the layer above: ``after`` is new, or differs from ``before``."""

    before: Member | None
    after: Member


@dataclass(frozen=True, slots=True)
class MemberForgotten:
    """Tell the layer above: a dead or departed member's record was dropped."""

    member: Member


@dataclass(frozen=True, slots=True)
class Deliver:
    """Tell the layer above: a broadcast from ``origin`` arrived here for the first time."""

    origin: NodeId
    origin_incarnation: int
    sequence: int
    payload: bytes
    group: str = ""
    """The group it was published to; empty: it was for every node."""


@dataclass(frozen=True, slots=True)
class Originated:
    """Tell the caller what became of its broadcast: sent at once to ``pushed``, announced to ``announced`` first.

    What the shell cannot queue (it says :class:`SendDropped`) is announced to that peer instead.
    """

    sequence: int
    pushed: tuple[NodeId, ...]
    announced: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class Missed:
    """Tell the layer above: broadcasts ``first`` to ``last`` of ``origin``'s life can no longer be had."""

    origin: NodeId
    life: int
    first: int
    last: int
    group: str = ""


@dataclass(frozen=True, slots=True)
class PartitionDetected:
    """Tell the layer above: much of the network was lost at once; both tuples are sorted.

    ``lost``: who became suspect or dead together; ``present``: who is believed alive, this node included.
    """

    lost: tuple[NodeId, ...]
    present: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class PartitionHealed:
    """Tell the layer above: of those that were lost together ``returned`` are back and ``missing`` are not."""

    returned: tuple[NodeId, ...]
    missing: tuple[NodeId, ...]
    present: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class Superseded:
    """Tell the layer above: this process's life is over in the eyes of the network, and it must stop.

    Another process runs (or ran) with this node id and a higher life, or the network holds that this life left,
    or its refutations are used up.  A restart takes a life above ``incarnation`` and is welcome at once.
    """

    incarnation: int
    why: str


@dataclass(frozen=True, slots=True)
class Forward:
    """Pass a routed envelope on to ``peer`` over its link, as it is; dropped and counted if that has no room."""

    peer: NodeId
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Relayed:
    """A routed envelope for this node arrived: ``body`` is said to come from ``source``."""

    source: NodeId
    body: bytes


@dataclass(frozen=True, slots=True)
class RouteChanged:
    """Ways to ``target`` came or went, or a search for one ended; ``found``: there is one now."""

    target: NodeId
    found: bool


Effect = (
    Persist
    | Send
    | SetTimer
    | Dial
    | Unlink
    | Doubt
    | ProbeFailed
    | LinkWanted
    | LinkKept
    | RttMeasured
    | NeighborUp
    | NeighborDown
    | MemberChanged
    | MemberForgotten
    | Deliver
    | Originated
    | Missed
    | PartitionDetected
    | PartitionHealed
    | Superseded
    | Forward
    | Relayed
    | RouteChanged
)
