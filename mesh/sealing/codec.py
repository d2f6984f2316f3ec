"""How sealed bodies and statements about keys are written.

Core: no I/O.  A *sealed body* (``Kind.SEALED``) is a header of 22 bytes and the AEAD's output: fixed, because every
body passes here.  A *statement about keys* (``Kind.KEYS``) is MessagePack; what is signed travels as one ``bin`` inside
it, so that a signature is checked over the very bytes that came, and no two encodings of one value matter.  The layout
is specified in ``docs/protocol/e2e.md``.
"""
# core: no I/O

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from transport.errors import RemoteProtocolError
from transport.wire import ID_BYTES_MAX, pack, unpack_body

from .reasons import Reason, refused

#: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM, ECDSA on P-256 with SHA-256.  Every node speaks it.
SUITE: Final = 1

HEADER: Final = struct.Struct(">BB8sIQ")
"""Kind inside, stream, session, epoch, counter."""
HEADER_BYTES: Final = HEADER.size
TAG_BYTES: Final = 16
#: What sealing adds to a body.
OVERHEAD_BYTES: Final = HEADER_BYTES + TAG_BYTES

SESSION_BYTES: Final = 8
SHARE_BYTES: Final = 32
HASH_BYTES: Final = 32
#: An X25519 key, a sealed secret of 32 bytes, a tag.
CAPSULE_BYTES: Final = 80

#: Lanes of a link, each with its own counters: bodies overtake each other between lanes, never within one.
STREAMS: Final = 5

#: The kind inside a body that only shows that its sender holds the session.
CONFIRM: Final = 0

_STATEMENT_BYTES_MAX: Final = 8_192
_CERTIFICATE_BYTES_MAX: Final = 4_096
_SIGNATURE_BYTES_MAX: Final = 80
_SUITES_MAX: Final = 16
_LIFE_MAX: Final = 2**53 - 1

_OFFER: Final = 1
_ANSWER: Final = 2
_UNKNOWN: Final = 3


class Header(NamedTuple):
    """What of a sealed body stays readable; all of it is authenticated."""

    kind: int
    """What the body inside is: a :class:`transport.wire.Kind`, or :data:`CONFIRM`."""
    stream: int
    session: bytes
    epoch: int
    counter: int


# What a named tuple's own constructor calls in the end; half its price, for every body.
_new_tuple: Final = tuple.__new__


def read_header(body: bytes) -> Header:
    """The header of a sealed body.

    Raises:
        SealRefused: It is too short, or names a stream that does not exist.
    """
    if len(body) < OVERHEAD_BYTES:
        raise refused(Reason.MALFORMED, f"sealed body of {len(body)} bytes is too short")
    header = _new_tuple(Header, HEADER.unpack_from(body))
    if header.stream >= STREAMS:
        raise refused(Reason.MALFORMED, f"sealed body of stream {header.stream}, and there are {STREAMS}")
    return header


@dataclass(frozen=True, slots=True)
class Offer:
    """The first statement: who wants a session with whom, and the key share that the answer is sealed to."""

    suites: tuple[int, ...]
    network: str
    initiator: str
    initiator_life: int
    responder: str
    responder_life: int
    share: bytes
    certificate: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """The second statement: to which offer, and the session's secret, sealed to the offer's key share."""

    suite: int
    offer_hash: bytes
    capsule: bytes
    certificate: bytes


@dataclass(frozen=True, slots=True)
class Signed:
    """A statement as it came: its meaning, its bytes, and the signature over them, which nobody has checked yet."""

    content: Offer | Answer
    statement: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Unknown:
    """The other side showed a session that this one does not hold (any more)."""

    session: bytes


def offer_statement(offer: Offer) -> bytes:
    """The bytes to sign."""
    return pack(
        [
            list(offer.suites),
            offer.network,
            offer.initiator,
            offer.initiator_life,
            offer.responder,
            offer.responder_life,
            offer.share,
            offer.certificate,
        ]
    )


def answer_statement(answer: Answer) -> bytes:
    """The bytes to sign."""
    return pack([answer.suite, answer.offer_hash, answer.capsule, answer.certificate])


def encode_offer(statement: bytes, signature: bytes) -> bytes:
    """The body of a ``KEYS`` envelope."""
    return pack([_OFFER, statement, signature])


def encode_answer(statement: bytes, signature: bytes) -> bytes:
    """The body of a ``KEYS`` envelope."""
    return pack([_ANSWER, statement, signature])


def encode_unknown(session: bytes) -> bytes:
    """The body of a ``KEYS`` envelope."""
    return pack([_UNKNOWN, session])


def decode_keys(body: bytes) -> Signed | Unknown | None:
    """Read the body of a ``KEYS`` envelope; ``None``: a statement of a later version, to be ignored.

    Raises:
        SealRefused: It is none, or a field is missing, of the wrong type or out of range.
    """
    fields = _unpack(body)
    match fields:
        case [what, bytes() as statement, bytes() as signature] if type(what) is int and what in {_OFFER, _ANSWER}:
            if len(signature) > _SIGNATURE_BYTES_MAX:
                raise _malformed("signature")
            content = _read_offer(statement) if what == _OFFER else _read_answer(statement)
            return Signed(content, statement, signature)
        case [3, bytes() as session] if len(session) == SESSION_BYTES:
            return Unknown(session)
        case [int() as what, *_] if what > _UNKNOWN:
            return None
    raise _malformed("array")


def _read_offer(statement: bytes) -> Offer:
    match _unpack(statement):
        case [list() as suites, network, initiator, first_life, responder, second_life, share, certificate, *_]:
            if len(suites) > _SUITES_MAX or any(type(suite) is not int for suite in suites):
                raise _malformed("suites")
            names, lives = (network, initiator, responder), (first_life, second_life)
            if any(type(name) is not str or len(name) > ID_BYTES_MAX for name in names):
                raise _malformed("name")
            if any(type(life) is not int or not 0 <= life <= _LIFE_MAX for life in lives):
                raise _malformed("life")
            if type(share) is not bytes or len(share) != SHARE_BYTES:
                raise _malformed("key share")
            return Offer(
                tuple(suites),
                network,
                initiator,
                first_life,
                responder,
                second_life,
                share,
                _certificate(certificate),
            )
    raise _malformed("offer")


def _read_answer(statement: bytes) -> Answer:
    match _unpack(statement):
        case [suite, offer_hash, capsule, certificate, *_] if type(suite) is int:
            if type(offer_hash) is not bytes or len(offer_hash) != HASH_BYTES:
                raise _malformed("offer's hash")
            if type(capsule) is not bytes or len(capsule) != CAPSULE_BYTES:
                raise _malformed("capsule")
            return Answer(suite, offer_hash, capsule, _certificate(certificate))
    raise _malformed("answer")


def _certificate(value: object) -> bytes:
    if type(value) is not bytes or len(value) > _CERTIFICATE_BYTES_MAX:
        raise _malformed("certificate")
    return value


def _unpack(data: bytes) -> Any:
    if len(data) > _STATEMENT_BYTES_MAX:
        raise _malformed("length")
    try:
        return unpack_body(data, nodes_max=64, depth_max=4)
    except RemoteProtocolError as error:
        raise refused(Reason.MALFORMED, f"statement about keys: {error.message}") from error


def _malformed(what: str) -> Exception:
    return refused(Reason.MALFORMED, f"statement about keys has no usable {what}")
