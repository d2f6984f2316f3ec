"""Agreeing on a secret: who is not whom its certificate says, or changes a byte, gets no session."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st
from keysmith import NOW, WALL, entropy, identity, later, peer_of

from mesh.errors import SealRefused
from mesh.sealing import codec
from mesh.sealing.chains import Limits
from mesh.sealing.codec import Answer, Offer, Signed, decode_keys, read_header
from mesh.sealing.handshake import Identity, Moment, OpenOffer, Peer, accept_answer, answer_offer, context, make_offer
from mesh.sealing.reasons import Reason
from mesh.sealing.session import Session
from transport.identity.names import Role
from transport.wire import pack, unpack_body

A, B, C = identity("a", 7), identity("b", 9), identity("c")
LIMITS = Limits()


def _signed(body: bytes) -> Signed:
    said = decode_keys(body)
    assert isinstance(said, Signed)
    return said


def _offer(frm: Identity = A, to: Identity = B, seed: str = "offer") -> OpenOffer:
    return make_offer(frm, peer_of(to), entropy(seed))


def _answer(body: bytes, me: Identity = B, peer: Peer | None = None, now: Moment = NOW) -> tuple[bytes, Session]:
    return answer_offer(me, _signed(body), peer or peer_of(A), entropy("answer"), now, LIMITS)


def _accept(offer: OpenOffer, body: bytes, me: Identity = A, now: Moment = NOW) -> Session:
    return accept_answer(me, offer, _signed(body), now, LIMITS)


def _refusal_of_offer(body: bytes, me: Identity = B, peer: Peer | None = None, now: Moment = NOW) -> str:
    with pytest.raises(SealRefused) as refusal:
        _answer(body, me, peer, now)
    return refusal.value.reason


def _refusal_of_answer(offer: OpenOffer, body: bytes, now: Moment = NOW) -> str:
    with pytest.raises(SealRefused) as refusal:
        _accept(offer, body, now=now)
    return refusal.value.reason


def _sign(by: Identity, what: bytes, statement: bytes) -> bytes:
    return by.key.sign(b"peermesh e2e v1 " + what + b"\0" + statement, ec.ECDSA(hashes.SHA256()))


def _resigned_offer(by: Identity, **changes: object) -> bytes:
    """An offer from A to B with changed fields, signed by ``by``."""
    content = _signed(_offer().body).content
    assert isinstance(content, Offer)
    statement = codec.offer_statement(dataclasses.replace(content, **changes))  # type: ignore[arg-type]
    return codec.encode_offer(statement, _sign(by, b"offer", statement))


def _resigned_answer(by: Identity, body: bytes, **changes: object) -> bytes:
    """An answer with changed fields, signed by ``by``."""
    content = _signed(body).content
    assert isinstance(content, Answer)
    statement = codec.answer_statement(dataclasses.replace(content, **changes))  # type: ignore[arg-type]
    return codec.encode_answer(statement, _sign(by, b"answer", statement))


def _works(ours: Session, theirs: Session) -> bool:
    sealed = ours.sealing.seal(32, 3, b"there", NOW.monotonic)
    back = theirs.sealing.seal(32, 3, b"and back", NOW.monotonic)
    there = theirs.open(read_header(sealed), sealed, NOW.monotonic)
    return (there, ours.open(read_header(back), back, NOW.monotonic)) == (b"there", b"and back")


def test_offer_and_answer_make_one_session() -> None:
    """Both sides have the same session after one round trip, and it works both ways."""
    offer = _offer()
    body, theirs = _answer(offer.body)
    ours = _accept(offer, body)

    assert ours.id == theirs.id
    assert _works(ours, theirs)


def test_each_handshake_makes_another_session() -> None:
    """Even with the same offer: the responder draws a secret for each answer."""
    offer = _offer()
    one = answer_offer(B, _signed(offer.body), peer_of(A), entropy("x"), NOW, LIMITS)[1]
    other = answer_offer(B, _signed(offer.body), peer_of(A), entropy("y"), NOW, LIMITS)[1]

    assert one.id != other.id


def test_a_session_lasts_as_long_as_both_certificates() -> None:
    """The certificate that ends first ends it, on both sides alike."""
    short = identity("b", 9, lasts_s=300.0)
    offer = _offer(to=short)
    body, theirs = _answer(offer.body, short)
    ours = _accept(offer, body)

    assert ours.spent_at == theirs.spent_at == NOW.monotonic + 300.0
    assert ours.expires_s == theirs.expires_s == WALL.timestamp() + 300.0


# `cryptography` says of some damaged certificates that it will refuse them one day; then that is a refusal like others.
_damaged = pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")


@_damaged
@settings(max_examples=5, deadline=None)
@given(st.integers(1, 255))
def test_each_flipped_byte_of_an_offer_is_noticed(flip: int) -> None:
    """Not one byte of an offer can be changed on the way."""
    body = _offer().body
    for position in range(len(body)):
        forged = bytearray(body)
        forged[position] ^= flip
        _check_refused_or_ignored_offer(bytes(forged))


def _check_refused_or_ignored_offer(body: bytes) -> None:
    try:
        said = decode_keys(body)
    except SealRefused:
        return
    if isinstance(said, Signed) and isinstance(said.content, Offer):
        with pytest.raises(SealRefused):
            answer_offer(B, said, peer_of(A), entropy(), NOW, LIMITS)
    else:
        assert not isinstance(said, Signed)


@_damaged
@settings(max_examples=5, deadline=None)
@given(st.integers(1, 255))
def test_each_flipped_byte_of_an_answer_is_noticed(flip: int) -> None:
    """Not one byte of an answer can be changed on the way."""
    offer = _offer()
    body, _ = _answer(offer.body)
    for position in range(len(body)):
        forged = bytearray(body)
        forged[position] ^= flip
        try:
            said = decode_keys(bytes(forged))
        except SealRefused:
            continue
        if isinstance(said, Signed) and isinstance(said.content, Answer):
            with pytest.raises(SealRefused):
                accept_answer(A, offer, said, NOW, LIMITS)
        else:
            assert not isinstance(said, Signed)


def test_truncated_and_extended_statements_are_refused() -> None:
    """A statement is read in its full length and no other."""
    offer = _offer()
    for body in (offer.body, _answer(offer.body)[0]):
        for length in range(len(body)):
            with pytest.raises(SealRefused):
                decode_keys(body[:length])
        with pytest.raises(SealRefused):
            decode_keys(body + b"\0")


def test_an_offer_for_somebody_else_is_refused() -> None:
    """A relay cannot retarget an offer: to another node, another life of the node, or in somebody else's name."""
    assert _refusal_of_offer(_offer(to=C).body) == Reason.WRONG_PEER
    assert _refusal_of_offer(_offer(to=dataclasses.replace(B, life=8)).body) == Reason.WRONG_PEER
    assert _refusal_of_offer(_offer(dataclasses.replace(A, life=6)).body) == Reason.WRONG_PEER
    assert _refusal_of_offer(_offer().body, peer=peer_of(C)) == Reason.WRONG_PEER
    assert _refusal_of_offer(_resigned_offer(A, network="other")) == Reason.WRONG_PEER
    assert _refusal_of_offer(_resigned_offer(C)) == Reason.SIGNATURE


def test_forged_origin_is_refused() -> None:
    """Who signs with its own key in another's name is found out, with its own certificate and with the other's."""
    assert _refusal_of_offer(_resigned_offer(C, certificate=C.certificate)) == Reason.CERTIFICATE
    offer = _offer()
    body, _ = _answer(offer.body)
    assert _refusal_of_answer(offer, _resigned_answer(C, body)) == Reason.SIGNATURE
    assert _refusal_of_answer(offer, _resigned_answer(C, body, certificate=C.certificate)) == Reason.CERTIFICATE


def test_somebody_in_between_cannot_answer() -> None:
    """A relay that answers an offer itself, with a secret of its own, has no certificate to sign with."""
    offer = _offer()
    mallory = dataclasses.replace(C, node_id=B.node_id, life=B.life)
    body, _ = _answer(offer.body, mallory)

    assert _refusal_of_answer(offer, body) == Reason.CERTIFICATE


@pytest.mark.parametrize(
    "bad",
    [
        identity("a", 7, lasts_s=-1.0, begins_s=-100.0),
        identity("a", 7, begins_s=10.0),
        identity("a", 7, by="another authority"),
        identity("a", 7, network="other"),
        identity("0123456789abcdef", 7, role=Role.INVITE),
        identity("a", 7, curve=ec.SECP384R1()),
    ],
    ids=["expired", "not yet valid", "other authority", "other network", "an invite's", "other curve"],
)
def test_bad_certificates_are_refused_on_both_sides(bad: Identity) -> None:
    """Expired, not yet valid, of another authority, network, role or kind of key: no session, offered or answered."""
    # A signature on another curve would not even fit.
    signer = bad if isinstance(bad.key.curve, ec.SECP256R1) else A
    offer = _resigned_offer(signer, certificate=bad.certificate)
    assert _refusal_of_offer(offer) == Reason.CERTIFICATE

    ours = make_offer(B, peer_of(A), entropy())
    body, _ = answer_offer(A, _signed(ours.body), peer_of(B), entropy(), NOW, LIMITS)
    with pytest.raises(SealRefused) as refusal:
        _accept(ours, _resigned_answer(signer, body, certificate=bad.certificate), B)
    assert refusal.value.reason == Reason.CERTIFICATE


def test_a_certificate_that_expires_on_the_way_is_refused() -> None:
    """What counts is the time at which a statement is checked."""
    short = identity("b", 9, lasts_s=5.0)
    offer = _offer(to=short)
    body, _ = _answer(offer.body, short)

    assert _refusal_of_answer(offer, body, later(6.0)) == Reason.CERTIFICATE


def test_an_offer_is_answered_in_its_own_suite_only() -> None:
    """Neither side goes on with algorithms that it does not know or did not offer."""
    assert _refusal_of_offer(_resigned_offer(A, suites=())) == Reason.SUITE
    assert _refusal_of_offer(_resigned_offer(A, suites=(2, 3))) == Reason.SUITE
    assert _answer(_resigned_offer(A, suites=(9, 1)))[1] is not None
    offer = _offer()
    assert _refusal_of_answer(offer, _resigned_answer(B, _answer(offer.body)[0], suite=2)) == Reason.SUITE


# From https://cr.yp.to/ecdh.html: any secret times one of these is all zeros.  Its list has five more, for those who do
# not mask the highest bit as RFC 7748 demands.
_LOW_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


@pytest.mark.parametrize("point", _LOW_ORDER)
def test_points_of_low_order_are_refused(point: str) -> None:
    """A key share that makes everybody's shared secret zero gives no session, even rightly signed."""
    share = bytes.fromhex(point)
    assert _refusal_of_offer(_resigned_offer(A, share=share)) == Reason.KEY_AGREEMENT

    offer = _offer()
    body, _ = _answer(offer.body)
    capsule = _signed(body).content
    assert isinstance(capsule, Answer)
    forged = _resigned_answer(B, body, capsule=share + capsule.capsule[32:])
    assert _refusal_of_answer(offer, forged) == Reason.KEY_AGREEMENT


def test_a_secret_sealed_to_another_share_is_refused() -> None:
    """An answer fits one offer: neither its capsule nor the whole of it can be used for another."""
    offer, other = _offer(seed="one"), _offer(seed="other")
    body, _ = _answer(offer.body)
    assert _refusal_of_answer(other, body) == Reason.UNEXPECTED

    content = _signed(_answer(other.body)[0]).content
    assert isinstance(content, Answer)
    assert _refusal_of_answer(other, _resigned_answer(B, body)) == Reason.UNEXPECTED
    assert _refusal_of_answer(offer, _resigned_answer(B, body, capsule=content.capsule)) == Reason.KEY_AGREEMENT


def test_the_secret_is_bound_to_the_responder() -> None:
    """A capsule taken over into an answer under another certificate of the same node does not open."""
    renewed = identity("b", 9)
    offer = _offer()
    body, _ = _answer(offer.body)

    forged = _resigned_answer(renewed, body, certificate=renewed.certificate)
    assert _refusal_of_answer(offer, forged) == Reason.KEY_AGREEMENT


def test_the_protocol_is_what_the_document_says() -> None:
    """A second implementation, straight from docs/protocol/e2e.md, comes to the same session."""
    share = x25519.X25519PrivateKey.from_private_bytes(bytes(range(32)))
    public = share.public_key().public_bytes_raw()
    statement = pack([[1], "test", "a", 7, "b", 9, public, A.certificate])
    offer = pack([1, statement, _sign(A, b"offer", statement)])
    body, theirs = _answer(offer)

    _, answer, _ = unpack_body(body)
    _, offer_hash, capsule, certificate = unpack_body(answer)
    assert offer_hash == _sha256(statement)
    suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    info = b"peermesh e2e v1 secret" + offer_hash + _sha256(certificate)
    secret = suite.decrypt(capsule, share, info)
    transcript = _sha256(offer_hash + _sha256(answer))
    session = _hkdf_expand(_hmac(transcript, secret), b"peermesh e2e v1 session", 32)
    assert _hkdf_expand(session, b"peermesh e2e v1 session id", 8) == theirs.id

    chain = _hkdf_expand(session, b"peermesh e2e v1 responder", 32)
    material = _hkdf_expand(chain, b"peermesh e2e v1 key", 44)
    sealed = theirs.sealing.seal(33, 2, b"hello", NOW.monotonic)
    nonce = int.from_bytes(material[32:]) ^ (2 << 64)
    aad = b"peermesh e2e v1 body\x00\x04test\x00\x01b\x00\x01a" + sealed[:22]
    opened = AESGCM(material[:32]).decrypt(nonce.to_bytes(12), sealed[22:], aad)
    assert opened == b"hello"


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def _hkdf_expand(secret: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 section 2.3, written out."""
    out, block, count = b"", b"", 1
    while len(out) < length:
        block = _hmac(secret, block + info + bytes([count]))
        out += block
        count += 1
    return out[:length]


def test_contexts_cannot_be_confused() -> None:
    """No two lists of names are written alike."""
    assert context(b"x", "ab", "c") != context(b"x", "a", "bc")
    assert context(b"x", "ab") != context(b"x", "ab", "")


def test_an_identity_does_not_show_its_key() -> None:
    """What is printed or logged of an identity has no private key in it."""
    assert "key" not in repr(A)
