"""Fuzz targets of end-to-end encryption: whatever is changed in what was sealed or signed, nothing of it is taken.

The session is the same in each process, so that its bodies can be kept as inputs; certificates and signatures are made
afresh, so mutations start from those of this process.
"""

from __future__ import annotations

import random
import warnings

from keysmith import NOW, entropy, identity, peer_of

from mesh.errors import SealRefused
from mesh.sealing.chains import Limits
from mesh.sealing.codec import encode_unknown, read_header
from mesh.sealing.handshake import Peer, make_offer
from mesh.sealing.keyring import Keyring
from mesh.sealing.pairing import Pairing
from mesh.sealing.sender_keys import Ask, Grant, GroupSender, decode_grants, encode_ask, encode_grant
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


GRANT_SEEDS = (encode_ask(Ask("group", bytes(8))), encode_grant(Grant("group", bytes(8), 3, bytes(32), bytes(32))))


def grant(data: bytes) -> object:
    """What is said about sender keys: what was accepted survives being written again."""
    read = decode_grants(data)
    if isinstance(read, Ask):
        assert decode_grants(encode_ask(read)) == read
    elif isinstance(read, Grant):
        assert decode_grants(encode_grant(read)) == read
    return type(read), data[:1]


_SENDER = Peer("there", 1)


def _for_many() -> tuple[GroupSender, dict[bytes, bytes]]:
    theirs = GroupSender("net", "group", *_SENDER, entropy=entropy("group"), now=0.0, limits=_LIMITS)
    theirs.set_readers([Peer("here", 1)])
    contents = (b"", b"first", b"second" * 20, b"third")
    return theirs, {theirs.seal(Kind.GROUP, content, 0.0): content for content in contents}


_THEIRS, _GENUINE_FOR_MANY = _for_many()
GROUP_SEEDS = tuple(_GENUINE_FOR_MANY)


def sealed_for_many(data: bytes) -> object:
    """A publication: what opens is one of the genuine ones, once; anything else is refused, or waits and expires."""
    ring = Keyring("net", "here", 1, readers=lambda _: (), entropy=entropy(), rng=random.Random(1), limits=_LIMITS)
    parked = ring.open("group", _SENDER, data, 0.0, 0.0) is None
    grants = [encode_grant(grant) for grant in _THEIRS.grants(Peer("here", 1), GROUP_SEEDS[0][2:10], 0.0)]
    opened = [one.body for body in grants for one in ring.received(_SENDER, body, lambda _: True, 0.0)]
    assert parked
    if opened:
        assert opened == [_GENUINE_FOR_MANY[data]], "an altered publication opened"
        try:
            ring.open("group", _SENDER, data, 0.0, 0.0)
        except SealRefused:
            return "opened once"
        raise AssertionError("a publication opened twice")
    ring.tick(100.0)
    assert not ring.is_waiting
    return [error.reason for _, error in ring.refusals]
