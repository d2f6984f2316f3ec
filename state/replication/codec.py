"""What replicas say to each other when they compare what they have.

A body is a MessagePack array that begins with its step, the document's name and lineage, and its sender's history
(:meth:`state.documents.document.Document.history`), 16 bytes that are equal when two replicas applied the same
envelopes.  So a comparison of replicas that agree costs two bodies of about fifty bytes:

- ``OFFER``: here is my history; say if yours is another.
- ``SAME``: it is the same.
- ``ASK``: it is not; this is my version, send what I lack.
- ``PAGE``: envelopes that you lack, in an order in which they can be applied, and whether there are more to ask for.

Envelopes travel as the bytes that their writers made.  A live update, along the tree of the document's group, is an
array of envelopes and nothing else.  Fields that follow are of later versions and ignored, as are unknown steps.
"""

# core: no I/O

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from state.clocks.codec import WRITERS_MAX, read_vector, vector_fields
from state.clocks.vectors import VersionVector
from state.documents.envelope import DOCUMENT_BYTES_MAX, LINEAGE_BYTES
from transport.errors import RemoteProtocolError
from transport.wire import BODY_BYTES_MAX, pack, unpack_body

HISTORY_BYTES: Final = 16
#: Envelopes in one body.
ENVELOPES_MAX: Final = 1_024
#: What a body may hold in all: of each writer four values, of each envelope one.
_NODES_MAX: Final = 4 * WRITERS_MAX + ENVELOPES_MAX + 64
_FIELDS_MAX: Final = 16

_OFFER: Final = 0
_SAME: Final = 1
_ASK: Final = 2
_PAGE: Final = 3


@dataclass(frozen=True, slots=True)
class Offer:
    """A replica's history, for the other one to compare."""

    document: str
    lineage: bytes
    history: bytes


@dataclass(frozen=True, slots=True)
class Same:
    """The history that was offered is that of this replica."""

    document: str
    lineage: bytes
    history: bytes


@dataclass(frozen=True, slots=True)
class Ask:
    """A replica's version, for the other one to send what is beyond it."""

    document: str
    lineage: bytes
    history: bytes
    version: VersionVector


@dataclass(frozen=True, slots=True)
class Page:
    """Envelopes beyond the version that was told; ``more``: these are not all."""

    document: str
    lineage: bytes
    history: bytes
    envelopes: tuple[bytes, ...]
    more: bool


Body: TypeAlias = Offer | Same | Ask | Page


def encode(body: Body) -> bytes:
    """The bytes of a body.

    Raises:
        LocalProtocolError: A version has too many writers.
    """
    head = [body.document, body.lineage, body.history]
    match body:
        case Offer():
            return pack([_OFFER, *head])
        case Same():
            return pack([_SAME, *head])
        case Ask():
            return pack([_ASK, *head, vector_fields(body.version)])
        case _:
            return pack([_PAGE, *head, list(body.envelopes), body.more])


def decode(data: bytes) -> Body | None:
    """The inverse of :func:`encode`; ``None``: a step of a later version.

    Raises:
        RemoteProtocolError: The bytes are not such a body within the limits.
    """
    if len(data) > BODY_BYTES_MAX:
        raise RemoteProtocolError(f"documents: a body of {len(data)} bytes")
    fields = unpack_body(data, nodes_max=_NODES_MAX, depth_max=None)
    if type(fields) is not list or not 4 <= len(fields) <= _FIELDS_MAX or type(fields[0]) is not int:
        raise RemoteProtocolError("documents: not an array of a step, a document, a lineage and a history")
    step, document, lineage, history = fields[:4]
    if type(document) is not str or not 0 < len(document.encode()) <= DOCUMENT_BYTES_MAX:
        raise RemoteProtocolError("documents: no usable name")
    if type(lineage) is not bytes or len(lineage) != LINEAGE_BYTES:
        raise RemoteProtocolError("documents: no usable lineage")
    if type(history) is not bytes or len(history) != HISTORY_BYTES:
        raise RemoteProtocolError("documents: no usable history")
    if step == _OFFER:
        return Offer(document, lineage, history)
    if step == _SAME:
        return Same(document, lineage, history)
    if step == _ASK and len(fields) > 4:
        return Ask(document, lineage, history, read_vector(fields[4]))
    if step == _PAGE and len(fields) > 5 and type(fields[5]) is bool:
        return Page(document, lineage, history, _envelopes(fields[4]), fields[5])
    if step in (_ASK, _PAGE):
        raise RemoteProtocolError(f"documents: step {step} lacks a field")
    return None


def encode_live(envelopes: list[bytes]) -> bytes:
    """The payload of a live update."""
    return pack(envelopes)


def decode_live(payload: bytes) -> tuple[bytes, ...]:
    """The inverse of :func:`encode_live`.

    Raises:
        RemoteProtocolError: It is not an array of envelopes within the limits.
    """
    return _envelopes(unpack_body(payload, nodes_max=_NODES_MAX, depth_max=None))


def _envelopes(fields: object) -> tuple[bytes, ...]:
    if type(fields) is not list or len(fields) > ENVELOPES_MAX or any(type(field) is not bytes for field in fields):
        raise RemoteProtocolError("documents: not an array of envelopes within limits")
    return tuple(fields)
