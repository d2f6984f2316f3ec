"""The bodies of relayed links: positional MessagePack arrays, the first field is the type, the second the stream.

=========  ==========================================================================================
OPEN 0     ``[0, stream]``: let us talk; ``stream`` is a random number of the sender's
ACCEPT 1   ``[1, stream]``: the stream is open
DATA 2     ``[2, stream, sequence, ack, bits, more, bytes]``: a piece of a frame; ``more``: not the last one
ACK 3      ``[3, stream, ack, bits]``: all up to ``ack`` arrived; bit *n* of ``bits``: ``ack + 1 + n`` did as well
FIN 4      ``[4, stream, sequence, ack, bits, code, text]``: the last, in order like DATA
RESET 5    ``[5, stream]``: there is no such stream here (any more)
=========  ==========================================================================================

Further fields are ignored, bodies of unknown type as a whole; all else that does not fit raises
:class:`~transport.errors.RemoteProtocolError`.
"""

# core: no I/O

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from transport.errors import RemoteProtocolError
from transport.wire import pack, unpack_body

from .codec import _bytes, _integer, _items, _text

#: Sequences that may be under way; their state fits the bits of an acknowledgement.
WINDOW: Final = 64
#: Bytes of a frame in one piece: so small that what is urgent elsewhere never waits long behind it.
PIECE_BYTES_MAX: Final = 16 * 1024
#: The largest stream number and sequence.
NUMBER_MAX: Final = 2**53 - 1
_TEXT_CHARS_MAX: Final = 128

_OPEN, _ACCEPT, _DATA, _ACK, _FIN, _RESET = range(6)


@dataclass(frozen=True, slots=True)
class Open:
    """Let us talk."""

    stream: int


@dataclass(frozen=True, slots=True)
class Accept:
    """The stream is open."""

    stream: int


@dataclass(frozen=True, slots=True)
class Data:
    """A piece of a frame."""

    stream: int
    sequence: int
    ack: int
    bits: int
    more: bool
    piece: bytes


@dataclass(frozen=True, slots=True)
class Ack:
    """What arrived."""

    stream: int
    ack: int
    bits: int


@dataclass(frozen=True, slots=True)
class Fin:
    """The end, in order."""

    stream: int
    sequence: int
    ack: int
    bits: int
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class Reset:
    """There is no such stream."""

    stream: int


Segment = Open | Accept | Data | Ack | Fin | Reset


def encode(segment: Segment) -> bytes:
    """The bytes of one segment."""
    match segment:
        case Open():
            return pack((_OPEN, segment.stream))
        case Accept():
            return pack((_ACCEPT, segment.stream))
        case Data(stream, sequence, ack, bits, more, piece):
            return pack((_DATA, stream, sequence, ack, bits, more, piece))
        case Ack(stream, ack, bits):
            return pack((_ACK, stream, ack, bits))
        case Fin(stream, sequence, ack, bits, code, text):
            return pack((_FIN, stream, sequence, ack, bits, code, text[:_TEXT_CHARS_MAX]))
        case _:
            return pack((_RESET, segment.stream))


def decode(data: bytes) -> Segment | None:
    """Read one segment.

    Returns:
        ``None`` for a type that only a later version knows.

    Raises:
        RemoteProtocolError: It is not what the protocol allows.
    """
    fields = _items(unpack_body(data, nodes_max=64, depth_max=1), 2, "relay body", 64)
    stream = _integer(fields[1], 0, NUMBER_MAX, "stream")
    match _integer(fields[0], 0, 255, "body type"):
        case 0:
            return Open(stream)
        case 1:
            return Accept(stream)
        case 2:
            _items(fields, 7, "data")
            more = fields[5]
            if type(more) is not bool:
                raise RemoteProtocolError("more is not a boolean")
            piece = _bytes(fields[6], PIECE_BYTES_MAX, "piece")
            return Data(stream, _sequence(fields[2]), *_acknowledged(fields[3], fields[4]), more, piece)
        case 3:
            _items(fields, 4, "ack")
            return Ack(stream, *_acknowledged(fields[2], fields[3]))
        case 4:
            _items(fields, 7, "fin")
            code = _integer(fields[5], 1000, 4999, "code")
            text = _text(fields[6], _TEXT_CHARS_MAX, "text")
            return Fin(stream, _sequence(fields[2]), *_acknowledged(fields[3], fields[4]), code, text)
        case 5:
            return Reset(stream)
        case _:
            return None


def _sequence(value: object) -> int:
    return _integer(value, 1, NUMBER_MAX, "sequence")


def _acknowledged(ack: object, bits: object) -> tuple[int, int]:
    return _integer(ack, 0, NUMBER_MAX, "ack"), _integer(bits, 0, 2**WINDOW - 1, "bits")
