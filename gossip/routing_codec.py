"""The bodies by which nodes find ways through one another: positional MessagePack arrays, the first field is the type.

========  =================================================================================================
ASK 0     ``[0, number, target, path]``: who can reach ``target``?  ``path``: who asks, then each hop
ANSWER 1  ``[1, number, target, path, hops, neighbors]``: I can be reached; goes back along ``path``
LOST 2    ``[2, target]``: I have no way to ``target`` (any more)
========  =================================================================================================

``number`` tells the asks of one node apart.  An answer is the target's own; ``path`` ends with its next receiver,
``hops`` is how far the sender is from the target, and ``neighbors`` are nodes that the target has links to.  Further
fields are ignored, bodies of unknown type as a whole; all else that does not fit raises
:class:`~transport.errors.RemoteProtocolError`.
"""

# core: no I/O

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from transport.errors import RemoteProtocolError
from transport.types import NodeId
from transport.wire import pack, unpack_body

from .codec import _integer, _items, _node_id

#: The longest path: who asks, and those who passed it on.
PATH_MAX: Final = 16
#: Neighbours that an answer names.
NEIGHBORS_MAX: Final = 16
_NUMBER_MAX: Final = 2**53 - 1
_BODY_BYTES_MAX: Final = 4096

_ASK, _ANSWER, _LOST = range(3)


@dataclass(frozen=True, slots=True)
class Ask:
    """Who can reach ``target``?"""

    number: int
    target: NodeId
    path: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The target can be reached this way."""

    number: int
    target: NodeId
    path: tuple[NodeId, ...]
    hops: int
    neighbors: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """The sender has no way to ``target``."""

    target: NodeId


Body = Ask | Answer | Lost


def encode(body: Body) -> bytes:
    """The bytes of one body."""
    match body:
        case Ask():
            return pack((_ASK, body.number, body.target, body.path))
        case Answer():
            return pack((_ANSWER, body.number, body.target, body.path, body.hops, body.neighbors))
        case _:
            return pack((_LOST, body.target))


def decode(data: bytes) -> Body | None:
    """Read one body.

    Returns:
        ``None`` for a type that only a later version knows.

    Raises:
        RemoteProtocolError: It is not what the protocol allows.
    """
    if len(data) > _BODY_BYTES_MAX:
        raise RemoteProtocolError(f"route body of {len(data)} bytes is too large")
    fields = _items(unpack_body(data, nodes_max=128, depth_max=3), 1, "route body", 64)
    match _integer(fields[0], 0, 255, "body type"):
        case 0:
            _items(fields, 4, "ask")
            return Ask(_integer(fields[1], 0, _NUMBER_MAX, "number"), _node_id(fields[2]), _path(fields[3]))
        case 1:
            _items(fields, 6, "answer")
            return Answer(
                _integer(fields[1], 0, _NUMBER_MAX, "number"),
                _node_id(fields[2]),
                _path(fields[3]),
                _integer(fields[4], 0, PATH_MAX, "hops"),
                tuple(_node_id(item) for item in _items(fields[5], 0, "neighbors", NEIGHBORS_MAX)),
            )
        case 2:
            _items(fields, 2, "lost")
            return Lost(_node_id(fields[1]))
        case _:
            return None


def _path(value: object) -> tuple[NodeId, ...]:
    path = tuple(_node_id(item) for item in _items(value, 1, "path", PATH_MAX))
    if len(dict.fromkeys(path)) != len(path):
        raise RemoteProtocolError("path names a node twice")
    return path
