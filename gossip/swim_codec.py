"""The bodies of probing: positional MessagePack arrays whose first field is the type.

===========  =========================================================================================================
PING 0       ``[0, sequence]``: are you there?
ASK 1        ``[1, sequence, target]``: please find out whether ``target`` is there
ACK 2        ``[2, sequence, coordinate]``: here I am; ``coordinate`` (22 bytes) is the answering node's, empty when
             a helper passes an ack on
NACK 3       ``[3, sequence]``: I am here, but your target does not answer me either
===========  =========================================================================================================

The sequence is the asking node's own number.  Further fields are ignored, bodies of unknown type as a whole; all else
that does not fit raises :class:`~transport.errors.RemoteProtocolError` and nothing of the body is used.
"""

# core: no I/O

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from transport.types import NodeId
from transport.wire import pack, unpack_body

from .codec import _bytes, _integer, _items, _node_id
from .vivaldi import Coordinate, pack_coordinate, unpack_coordinate

_PING, _ASK, _ACK, _NACK = range(4)
_SEQUENCE_MAX: Final = 2**53 - 1
_COORDINATE_BYTES_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there?"""

    sequence: int


@dataclass(frozen=True, slots=True)
class Ask:
    """Please find out whether ``target`` is there (SWIM's ping-req)."""

    sequence: int
    target: NodeId


@dataclass(frozen=True, slots=True)
class Ack:
    """I am there; or, from a helper (then without ``coordinate``), the target is."""

    sequence: int
    coordinate: Coordinate | None = None


@dataclass(frozen=True, slots=True)
class Nack:
    """I am there, the target does not answer me."""

    sequence: int


ProbeBody = Ping | Ask | Ack | Nack


def encode_probe(body: ProbeBody) -> bytes:
    """The bytes of one body."""
    match body:
        case Ping():
            return pack((_PING, body.sequence))
        case Ask():
            return pack((_ASK, body.sequence, body.target))
        case Ack():
            coordinate = b"" if body.coordinate is None else pack_coordinate(body.coordinate)
            return pack((_ACK, body.sequence, coordinate))
        case _:
            return pack((_NACK, body.sequence))


def decode_probe(data: bytes) -> ProbeBody | None:
    """Read one body.

    Returns:
        ``None`` for a type that only a later version knows.

    Raises:
        RemoteProtocolError: It is not what the protocol allows.
    """
    fields = _items(unpack_body(data, nodes_max=64, depth_max=None), 1, "probe", 64)
    kind = _integer(fields[0], 0, 255, "probe type")
    if kind > _NACK:
        return None
    sequence = _integer(_items(fields, 2, "probe", 64)[1], 0, _SEQUENCE_MAX, "probe sequence")
    match kind:
        case 0:
            return Ping(sequence)
        case 1:
            return Ask(sequence, _node_id(_items(fields, 3, "ask", 64)[2]))
        case 2:
            place = _bytes(_items(fields, 3, "ack", 64)[2], _COORDINATE_BYTES_MAX, "coordinate")
            return Ack(sequence, unpack_coordinate(place) if place else None)
        case _:
            return Nack(sequence)
