"""The bodies of the overlay: positional MessagePack arrays whose first field is the type.

================  ==============================================================================================
JOIN 0            ``[0]``: I have no neighbours; be mine, and tell others of me
FORWARD_JOIN 1    ``[1, ttl, node]``: ``node`` joined; a random walk with ``ttl`` hops left
NEIGHBOR 2        ``[2, priority, degree]``: be my neighbour; the priorities are :class:`Priority`
REPLY 3           ``[3, accepted, degree]``: answers JOIN and NEIGHBOR
DISCONNECT 4      ``[4, node or nil]``: we are no longer neighbours; ask ``node`` instead
SHUFFLE 5         ``[5, ttl, path, nodes]``: a random walk; ``path``: origin, then each hop
SHUFFLE_REPLY 6   ``[6, path, nodes]``: goes back along ``path``, whose last is the next receiver
================  ==============================================================================================

A *node* is ``[node_id, [[host, port], ...]]``.  ``degree`` is how many neighbours the sender has.  Further fields at
the end of a body or node are ignored, bodies of unknown type as a whole; all else that does not fit raises
:class:`~transport.errors.RemoteProtocolError` and nothing of the body is used.
"""

# core: no I/O

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from transport.errors import RemoteProtocolError
from transport.types import Address, NodeId
from transport.wire import pack, unpack_body

from .codec import _address, _integer, _items, _node_id
from .config import SHUFFLE_MAX, WALK_MAX

#: Addresses of a node in a body; the member table has them all.
ADDRESSES_MAX: Final = 3
_DEGREE_MAX: Final = 1 << 16
_BODY_BYTES_MAX: Final = 65_536

_JOIN, _FORWARD_JOIN, _NEIGHBOR, _REPLY, _DISCONNECT, _SHUFFLE, _SHUFFLE_REPLY = range(7)


class Priority(enum.IntEnum):
    """How much a node needs the neighbour that it asks for."""

    LOW = 0
    """Accept if there is room."""
    HIGH = 1
    """Make room."""
    KEEP = 2
    """We are neighbours as far as I know; if not, take it as ``LOW``."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A node and where it may be dialled."""

    node_id: NodeId
    addresses: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Join:
    """A newcomer's first request."""


@dataclass(frozen=True, slots=True)
class ForwardJoin:
    """A newcomer on its random walk."""

    ttl: int
    newcomer: Peer


@dataclass(frozen=True, slots=True)
class Neighbor:
    """A request to be neighbours."""

    priority: Priority
    degree: int


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request."""

    accepted: bool
    degree: int


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The sender is no longer the receiver's neighbour."""

    instead: Peer | None = None


@dataclass(frozen=True, slots=True)
class Shuffle:
    """A sample of the origin's views on its random walk."""

    ttl: int
    path: tuple[NodeId, ...]
    peers: tuple[Peer, ...]


@dataclass(frozen=True, slots=True)
class ShuffleReply:
    """A sample in exchange, on its way back."""

    path: tuple[NodeId, ...]
    peers: tuple[Peer, ...]


Body = Join | ForwardJoin | Neighbor | Reply | Disconnect | Shuffle | ShuffleReply


def encode(body: Body) -> bytes:
    """The bytes of one body."""
    match body:
        case Join():
            return pack((_JOIN,))
        case ForwardJoin():
            return pack((_FORWARD_JOIN, body.ttl, _fields(body.newcomer)))
        case Neighbor():
            return pack((_NEIGHBOR, int(body.priority), body.degree))
        case Reply():
            return pack((_REPLY, body.accepted, body.degree))
        case Disconnect():
            return pack((_DISCONNECT, None if body.instead is None else _fields(body.instead)))
        case Shuffle():
            return pack((_SHUFFLE, body.ttl, body.path, [_fields(peer) for peer in body.peers]))
        case _:
            return pack((_SHUFFLE_REPLY, body.path, [_fields(peer) for peer in body.peers]))


def _fields(peer: Peer) -> tuple[object, ...]:
    return peer.node_id, [(address.host, address.port) for address in peer.addresses[:ADDRESSES_MAX]]


def decode(data: bytes) -> Body | None:
    """Read one overlay body.

    Returns:
        ``None`` for a type that only a later version knows.

    Raises:
        RemoteProtocolError: It is not what the protocol allows.
    """
    if len(data) > _BODY_BYTES_MAX:
        raise RemoteProtocolError(f"overlay body of {len(data)} bytes is too large")
    fields = _items(unpack_body(data, nodes_max=1024, depth_max=None), 1, "overlay body", 64)
    match _integer(fields[0], 0, 255, "body type"):
        case 0:
            return Join()
        case 1:
            _items(fields, 3, "forward join")
            return ForwardJoin(_integer(fields[1], 0, WALK_MAX, "ttl"), _peer(fields[2]))
        case 2:
            _items(fields, 3, "neighbor")
            priority = Priority(_integer(fields[1], 0, 2, "priority"))
            return Neighbor(priority, _integer(fields[2], 0, _DEGREE_MAX, "degree"))
        case 3:
            _items(fields, 3, "reply")
            return Reply(_boolean(fields[1], "accepted"), _integer(fields[2], 0, _DEGREE_MAX, "degree"))
        case 4:
            _items(fields, 2, "disconnect")
            return Disconnect(None if fields[1] is None else _peer(fields[1]))
        case 5:
            _items(fields, 4, "shuffle")
            path = _path(fields[2])
            if not path:
                raise RemoteProtocolError("shuffle has no origin")
            return Shuffle(_integer(fields[1], 0, WALK_MAX, "ttl"), path, _peers(fields[3]))
        case 6:
            _items(fields, 3, "shuffle reply")
            return ShuffleReply(_path(fields[1]), _peers(fields[2]))
        case _:
            return None


def _path(value: object) -> tuple[NodeId, ...]:
    return tuple(_node_id(item) for item in _items(value, 0, "path", WALK_MAX + 1))


def _peers(value: object) -> tuple[Peer, ...]:
    return tuple(_peer(item) for item in _items(value, 0, "nodes", SHUFFLE_MAX))


def _peer(value: object) -> Peer:
    fields = _items(value, 2, "node", 16)
    addresses = _items(fields[1], 0, "addresses", 16)
    return Peer(_node_id(fields[0]), tuple(_address(item) for item in addresses[:ADDRESSES_MAX]))


def _boolean(value: object, what: str) -> bool:
    if type(value) is not bool:
        raise RemoteProtocolError(f"{what} is not a boolean")
    return value
