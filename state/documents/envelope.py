"""Envelopes: one transaction of one writer, as it travels.

An envelope names its document and *lineage*, its writer and its number, what its writer had seen, when, and holds up to
two Yjs updates: of the values (maps, arrays) and of the texts.  It is made once and passed on as the same bytes by
everybody; what pycrdt says about an update that it applied is never passed on, because that is empty when blocks came
out of order.

What the writer had seen is told as far as it changed since the writer's envelope before, which suffices because a
writer's envelopes are delivered in order.

The Yjs client id of a writer is not told at all: both sides compute it from document and writer (:func:`client_of`), so
nobody can write as somebody else, and nobody has to remember who is who.

The *lineage* tells two documents of one name apart whose histories never belonged together, a document that was
deleted and made anew for example.  The first lineage of a name is computed from it, so that two nodes which make a
document at the same time make the same one.
"""

# core: no I/O

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from state.clocks.codec import read_counter, read_timestamp, read_vector, read_writer, vector_fields
from state.clocks.hybrid import Timestamp
from state.clocks.vectors import Dot, VersionVector, Writer
from transport.errors import RemoteProtocolError
from transport.wire import BODY_BYTES_MAX, pack, unpack_body

#: The longest name of a document, in UTF-8.
DOCUMENT_BYTES_MAX: Final = 255
LINEAGE_BYTES: Final = 8
#: Writers that one envelope may have heard of since the one before; the rest would be in an earlier one.
NEEDS_MAX: Final = 4_096


@dataclass(frozen=True, slots=True)
class Envelope:
    """One transaction of one writer; the field order is the wire order."""

    document: str
    lineage: bytes
    dot: Dot
    """Who wrote it, and the number that it has among its writer's envelopes of this document."""
    needs: VersionVector
    """What its writer had seen that the envelope before does not tell."""
    stamp: Timestamp
    values: bytes
    """A Yjs update of maps and arrays; empty: no change to them."""
    texts: bytes
    """A Yjs update of texts; empty: no change to them.  One of the two is not empty."""

    @property
    def size_bytes(self) -> int:
        """Roughly how much memory it takes."""
        return len(self.values) + len(self.texts) + 96 * len(self.needs) + 256


def encode_envelope(envelope: Envelope) -> bytes:
    """The bytes that travel and are stored."""
    writer, counter = envelope.dot
    return pack(
        [
            envelope.document,
            envelope.lineage,
            [writer.node, writer.life, counter],
            vector_fields(envelope.needs),
            envelope.stamp.packed,
            envelope.values,
            envelope.texts,
        ]
    )


def decode_envelope(data: bytes) -> Envelope:
    """The inverse of :func:`encode_envelope`; the updates within are still to be validated.

    Raises:
        RemoteProtocolError: The bytes are not an envelope within the limits.
    """
    if len(data) > BODY_BYTES_MAX:
        raise RemoteProtocolError(f"document envelope of {len(data)} bytes exceeds {BODY_BYTES_MAX}")
    fields = unpack_body(data, nodes_max=4 * NEEDS_MAX + 16, depth_max=None)
    if type(fields) is not list or not 7 <= len(fields) <= _FIELDS_MAX:
        raise RemoteProtocolError("document envelope is not an array of seven fields")
    document, lineage, dot, needs, stamp, values, texts = fields[:7]
    if type(document) is not str or not 0 < len(document.encode()) <= DOCUMENT_BYTES_MAX:
        raise RemoteProtocolError("document envelope has no usable name")
    if type(lineage) is not bytes or len(lineage) != LINEAGE_BYTES:
        raise RemoteProtocolError("document envelope has no usable lineage")
    if type(dot) is not list or len(dot) != 3:
        raise RemoteProtocolError("document envelope has no usable dot")
    if type(values) is not bytes or type(texts) is not bytes or not (values or texts):
        raise RemoteProtocolError("document envelope has no update")
    writer = read_writer(dot[0], dot[1])
    return Envelope(
        document,
        lineage,
        Dot(writer, read_counter(dot[2])),
        read_vector(needs),
        read_timestamp(stamp),
        values,
        texts,
    )


#: Room for later fields, which this version ignores.
_FIELDS_MAX: Final = 16


def fingerprint(envelope: Envelope) -> int:
    """128 bits that stand for one envelope; their sum modulo 2^128 stands for a set of them, in whatever order."""
    head = f"{envelope.dot.writer}\0{envelope.dot.counter}\0{envelope.stamp.packed}\0{len(envelope.values)}\0"
    total = blake2b(head.encode(), digest_size=16, person=b"peermesh history")
    total.update(envelope.values)
    total.update(envelope.texts)
    return int.from_bytes(total.digest())


def client_of(document: str, lineage: bytes, writer: Writer) -> int:
    """The Yjs client id under which ``writer`` writes: 53 bits, and never 0, which some count as none."""
    key = b"\0".join((document.encode(), lineage, str(writer).encode()))
    return int.from_bytes(blake2b(key, digest_size=8, person=b"peermesh client").digest()) >> 11 or 1


def first_lineage(document: str) -> bytes:
    """The lineage of a document that nobody has ever deleted."""
    return blake2b(document.encode(), digest_size=LINEAGE_BYTES, person=b"peermesh lineage").digest()
