"""Fuzz targets of end-to-end encryption: whatever is changed in what was sealed or signed, nothing of it is taken.

The session is the same in each process, so that its bodies can be kept as inputs; certificates and signatures are made
afresh, so mutations start from those of this process.
"""

from __future__ import annotations

import warnings

from keysmith import NOW, entropy, identity, peer_of

from mesh.sealing.chains import Limits
from mesh.sealing.codec import encode_unknown, read_header
from mesh.sealing.handshake import make_offer
from mesh.sealing.pairing import Pairing
from mesh.sealing.sender_keys import decode_grant, encode_grant
from mesh.sealing.session import Session
from transport.wire import Kind

_LIMITS = Limits(epoch_bodies=2)
_US, _THEM = identity("here"), identity("there")


def _session(*, initiator: bool) -> Session:
    return Session(
        bytes(range(32)),
        initiator=initiator,
        contexts=(b"there to here", b"here to there"),
        now=NOW.monotonic,
        wall=NOW.wall,
        expires_s=NOW.wall + 1e6,
        limits=_LIMITS,
    )


def _sealed() -> dict[bytes, bytes]:
    theirs = _session(initiator=True)
    contents = (b"", b"first", b"second" * 20, b"third", b"fourth")
    return {
        theirs.sealing.seal(32 + lane, lane, content, NOW.monotonic): content for lane, content in enumerate(contents)
    }


_GENUINE = _sealed()
SEALED_SEEDS = tuple(_GENUINE)


def sealed(data: bytes) -> object:
    """A sealed body: what opens is one of the genuine ones, and opens once."""
    session = _session(initiator=False)
    header = read_header(data)
    content = session.open(header, data, NOW.monotonic)
    assert _GENUINE[data] == content, "an altered body opened"
    return header.epoch, header.stream


_OFFER = make_offer(_THEM, peer_of(_US), entropy("there"))
KEYS_SEEDS = (_OFFER.body, encode_unknown(b"sessions"))


def keys(data: bytes) -> object:
    """A statement about keys: what leads to a session is the genuine offer, byte for byte."""
    pairing = Pairing(lambda: _US, peer_of(_THEM), None, entropy=entropy("here"), now=NOW, limits=_LIMITS)
    with warnings.catch_warnings():
        # `cryptography` says of some damaged certificates that it will refuse them one day.
        warnings.simplefilter("ignore")
        pairing.keys_received(data, NOW)
    if pairing.handshakes:
        assert data == _OFFER.body, "an altered offer was answered"
    assert not pairing.is_ready
    assert [kind for kind, _ in pairing.take_outgoing()] == [Kind.KEYS] * pairing.handshakes
    return pairing.handshakes


def grant(data: bytes) -> object:
    """A sender's grant: what was accepted survives being written again."""
    read = decode_grant(data)
    assert decode_grant(encode_grant(read)) == read
    return len(read.group)
