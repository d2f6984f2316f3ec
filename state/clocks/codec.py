"""How clocks are written.

A version vector is a MessagePack array of ``[node, life, counter]``, ascending by node and life, each writer once: one
vector has one encoding, so encodings may be compared and hashed.  Anything else is refused with
:class:`~transport.errors.RemoteProtocolError`.  A timestamp is one integer, see
:attr:`~state.clocks.hybrid.Timestamp.packed`.  The functions on fields are for messages that hold a clock among others.
"""

# core: no I/O

from __future__ import annotations

from typing import Final

from gossip.incarnation import LIFE_MAX
from transport.errors import InvalidName, LocalProtocolError, RemoteProtocolError
from transport.types import node_id
from transport.wire import pack, unpack_body

from .hybrid import Timestamp
from .vectors import COUNTER_MAX, VersionVector, Writer

#: Writers in one vector: a thousand nodes that each restarted three times within an epoch.
WRITERS_MAX: Final = 4096
#: The largest encoding of one entry: 64 + 2 + 9 + 9 bytes.
WRITER_BYTES_MAX: Final = 84
#: The largest encoding; the array's header has 3 bytes.
VECTOR_BYTES_MAX: Final = WRITERS_MAX * WRITER_BYTES_MAX + 3


def vector_fields(vector: VersionVector) -> list[list[str | int]]:
    """``vector`` as MessagePack can carry it.

    Raises:
        LocalProtocolError: It has more than :data:`WRITERS_MAX` writers.
    """
    if len(vector) > WRITERS_MAX:
        raise LocalProtocolError(
            f"version vector has {len(vector)} writers, and {WRITERS_MAX} are allowed",
            hint="retire writers that are gone with a membership epoch",
        )
    return [[writer.node, writer.life, counter] for writer, counter in vector]


def read_vector(fields: object) -> VersionVector:
    """The inverse of :func:`vector_fields` for decoded MessagePack.

    Raises:
        RemoteProtocolError: It is not a version vector.
    """
    if type(fields) is not list or len(fields) > WRITERS_MAX:
        raise RemoteProtocolError("version vector is not an array within limits")
    counters: dict[Writer, int] = {}
    last: Writer | None = None
    for entry in fields:
        if type(entry) is not list or len(entry) != 3:
            raise RemoteProtocolError("version vector has an entry that is not [node, life, counter]")
        writer = read_writer(entry[0], entry[1])
        if last is not None and writer <= last:
            raise RemoteProtocolError("version vector is not in order")
        counters[writer] = read_counter(entry[2])
        last = writer
    return VersionVector(counters)


def read_writer(node: object, life: object) -> Writer:
    """Check the two fields that name a writer.

    Raises:
        RemoteProtocolError: They do not.
    """
    if type(life) is not int or not 0 <= life <= LIFE_MAX or type(node) is not str:
        raise RemoteProtocolError("writer is not a node id and a life")
    try:
        return Writer(node_id(node), life)
    except InvalidName as error:
        raise RemoteProtocolError(f"writer: {error.message[:200]}") from error


def read_counter(counter: object) -> int:
    """Check a number of a writer, which is at least 1.

    Raises:
        RemoteProtocolError: It is not.
    """
    if type(counter) is not int or not 0 < counter <= COUNTER_MAX:
        raise RemoteProtocolError("counter is not a positive integer within limits")
    return counter


def read_timestamp(packed: object) -> Timestamp:
    """Check a packed timestamp.

    Raises:
        RemoteProtocolError: It is none.
    """
    if type(packed) is not int:
        raise RemoteProtocolError("timestamp is not an integer")
    try:
        return Timestamp.unpack(packed)
    except ValueError as error:
        raise RemoteProtocolError(str(error)) from error


def encode_vector(vector: VersionVector) -> bytes:
    """The encoding of ``vector``: a session token, for example.

    Raises:
        LocalProtocolError: It has too many writers.
    """
    return pack(vector_fields(vector))


def decode_vector(data: bytes) -> VersionVector:
    """The inverse of :func:`encode_vector`.

    Raises:
        RemoteProtocolError: The bytes are not a version vector within the limits.
    """
    if len(data) > VECTOR_BYTES_MAX:
        raise RemoteProtocolError(f"version vector of {len(data)} bytes exceeds {VECTOR_BYTES_MAX}")
    return read_vector(unpack_body(data, nodes_max=4 * WRITERS_MAX, depth_max=None))
