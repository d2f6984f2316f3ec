"""Agreeing on a session's secret: one offer, one answer.

Core: no I/O; functions from statements to statements.  HPKE (RFC 9180, base mode) with an X25519 key that the initiator
makes for this one offer, authenticated by signatures with the keys of both nodes' certificates, in the manner of SIGMA
(Krawczyk 2003) without its hiding of identities:

1. The initiator signs an *offer*: both names, both lives, a fresh key share, its certificate.
2. The responder checks it, draws a secret, seals it with HPKE to that share, and signs an *answer*: the hash of the
   offer, the sealed secret, its certificate.

Both derive the session from the secret and the hash of both statements.  Each side signs its own name together with
the other's contribution, so nobody in between can take a part, retarget a statement or bind it to somebody else;
neither private share nor secret is kept, so that a certificate's key stolen later opens nothing.  What the responder
does not know yet is whether the offer is fresh; it finds out with the first body that opens (:mod:`.pairing`).

Randomness is injected, except for HPKE's own share and ECDSA's nonce, which the library draws itself.
"""
# core: no I/O

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from transport.errors import CertificateRejected
from transport.identity.certificates import verify_peer
from transport.types import NetworkName, NodeId

from .chains import SECRET_BYTES, Limits
from .codec import SUITE, Answer, Offer, Signed, answer_statement, encode_answer, encode_offer, offer_statement
from .reasons import Reason, refused
from .session import Session

Entropy = Callable[[int], bytes]
"""Draws that many bytes that nobody can guess."""

_LABEL: Final = b"peermesh e2e v1 "
_HPKE: Final = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
_ECDSA: Final = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True, slots=True)
class Identity:
    """What a node proves itself with.

    Attributes:
        network, node_id, life: Who it is.
        certificate: Its leaf (DER).
        key: The leaf's private key.
        authority: The network's authority.
        expires_s: When the leaf ceases to be valid, seconds since the epoch.
    """

    network: NetworkName
    node_id: NodeId
    life: int
    certificate: bytes
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    authority: x509.Certificate
    expires_s: float


class Peer(NamedTuple):
    """Whom a session is with."""

    node_id: str
    life: int


class Moment(NamedTuple):
    """Now, on both clocks."""

    monotonic: float
    wall: float


class OpenOffer(NamedTuple):
    """What the initiator keeps until the answer comes.  Its private share opens one answer; then drop it."""

    body: bytes
    offer_hash: bytes
    share: x25519.X25519PrivateKey
    peer: Peer


def make_offer(identity: Identity, peer: Peer, entropy: Entropy) -> OpenOffer:
    """Offer ``peer`` a session."""
    share = x25519.X25519PrivateKey.from_private_bytes(entropy(SECRET_BYTES))
    statement = offer_statement(
        Offer(
            (SUITE,),
            identity.network,
            identity.node_id,
            identity.life,
            peer.node_id,
            peer.life,
            share.public_key().public_bytes_raw(),
            identity.certificate,
        )
    )
    body = encode_offer(statement, _sign(identity, b"offer", statement))
    return OpenOffer(body, _hash(statement), share, peer)


def answer_offer(
    identity: Identity, signed: Signed, peer: Peer, entropy: Entropy, now: Moment, limits: Limits
) -> tuple[bytes, Session]:
    """Check an offer and answer it.

    Args:
        identity: This node.
        signed: The offer.
        peer: Whom it must be from.
        entropy: Where the secret comes from.
        now: The time.
        limits: How long keys live.

    Returns:
        The body of the answer, and the session, of which the other side has proved nothing yet.

    Raises:
        SealRefused: The offer does not hold.
    """
    offer = signed.content
    assert isinstance(offer, Offer)
    if SUITE not in offer.suites:
        raise refused(Reason.SUITE, f"{peer.node_id} offers a session in suites {list(offer.suites)}, not {SUITE}")
    said = offer.network, offer.initiator, offer.initiator_life, offer.responder, offer.responder_life
    if said != (identity.network, *peer, identity.node_id, identity.life):
        raise refused(
            Reason.WRONG_PEER,
            f"offer from {offer.initiator!r} life {offer.initiator_life} to {offer.responder!r} life "
            f"{offer.responder_life} in {offer.network!r} came as one of {peer.node_id!r} life {peer.life}",
        )
    expires_s = _check_signed(identity, b"offer", signed, peer, now)
    secret = entropy(SECRET_BYTES)
    offer_hash = _hash(signed.statement)
    try:
        share = x25519.X25519PublicKey.from_public_bytes(offer.share)
        capsule = _HPKE.encrypt(secret, share, _info(offer_hash, identity.certificate))
    except ValueError as error:
        raise refused(Reason.KEY_AGREEMENT, f"the key share of {peer.node_id} is a point of low order") from error
    statement = answer_statement(Answer(SUITE, offer_hash, capsule, identity.certificate))
    contexts = _contexts(identity.network, peer.node_id, identity.node_id)
    session = _session(secret, offer_hash, statement, contexts, now, (expires_s, identity.expires_s), limits, False)
    return encode_answer(statement, _sign(identity, b"answer", statement)), session


def accept_answer(identity: Identity, offer: OpenOffer, signed: Signed, now: Moment, limits: Limits) -> Session:
    """Check the answer to ``offer`` and make the session of it.

    Raises:
        SealRefused: The answer does not hold.
    """
    answer, peer = signed.content, offer.peer
    assert isinstance(answer, Answer)
    if answer.suite != SUITE:
        raise refused(Reason.SUITE, f"{peer.node_id} answers in suite {answer.suite}, which was not offered")
    offer_hash = offer.offer_hash
    if answer.offer_hash != offer_hash:
        raise refused(Reason.UNEXPECTED, f"{peer.node_id} answers another offer than ours")
    expires_s = _check_signed(identity, b"answer", signed, peer, now)
    try:
        secret = _HPKE.decrypt(answer.capsule, offer.share, _info(offer_hash, answer.certificate))
    except InvalidTag as error:
        raise refused(Reason.KEY_AGREEMENT, f"the secret of {peer.node_id} is not sealed to our key share") from error
    contexts = _contexts(identity.network, identity.node_id, peer.node_id)
    ends = (expires_s, identity.expires_s)
    return _session(secret, offer_hash, signed.statement, contexts, now, ends, limits, True)


def context(label: bytes, *names: str) -> bytes:
    """What is authenticated with each body beside its header: names, each with its length before it."""
    return _LABEL + label + b"".join(len(name).to_bytes(2) + name for name in (text.encode() for text in names))


def _contexts(network: str, initiator: str, responder: str) -> tuple[bytes, bytes]:
    return context(b"body", network, initiator, responder), context(b"body", network, responder, initiator)


def _session(
    secret: bytes,
    offer_hash: bytes,
    answer: bytes,
    contexts: tuple[bytes, bytes],
    now: Moment,
    ends: tuple[float, float],
    limits: Limits,
    initiator: bool,  # noqa: FBT001 - private
) -> Session:
    transcript = _hash(offer_hash + _hash(answer))
    derived = HKDF(hashes.SHA256(), SECRET_BYTES, transcript, _LABEL + b"session").derive(secret)
    return Session(
        derived,
        initiator=initiator,
        contexts=contexts,
        now=now.monotonic,
        wall=now.wall,
        expires_s=min(ends),
        limits=limits,
    )


def _info(offer_hash: bytes, certificate: bytes) -> bytes:
    return _LABEL + b"secret" + offer_hash + _hash(certificate)


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _sign(identity: Identity, what: bytes, statement: bytes) -> bytes:
    return identity.key.sign(_LABEL + what + b"\0" + statement, _ECDSA)


def _check_signed(identity: Identity, what: bytes, signed: Signed, peer: Peer, now: Moment) -> float:
    """Check that ``peer`` signed this, and return when its certificate expires."""
    der = signed.content.certificate
    try:
        verify_peer(
            der,
            authority=identity.authority,
            network=identity.network,
            now=datetime.fromtimestamp(now.wall, UTC),
            expected=NodeId(peer.node_id),
        )
    except CertificateRejected as error:
        raise refused(Reason.CERTIFICATE, error.message) from error
    certificate = x509.load_der_x509_certificate(der)
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise refused(Reason.CERTIFICATE, f"the key of {peer.node_id} is not on P-256")
    try:
        key.verify(signed.signature, _LABEL + what + b"\0" + signed.statement, _ECDSA)
    except InvalidSignature as error:
        raise refused(Reason.SIGNATURE, f"{peer.node_id} did not sign this {what.decode()}") from error
    return certificate.not_valid_after_utc.timestamp()
