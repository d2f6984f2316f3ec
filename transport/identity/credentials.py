"""What one node needs to run: its keys, its certificate, and the authority it trusts.

Where the machine holds the network's authority, a node certifies itself anew at each start.  Elsewhere it loads what
enrolment or renewal stored.

A key and its certificate are two files, and a crash may fall between two renames.  So a new key is first stored as
``tls.key.next``; storing the new ``tls.crt`` is the commit; then the key takes its final name.  A start that finds
``tls.crt`` fitting ``tls.key.next`` does that last step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from transport.errors import CertificateRejected, DataDirectoryError, IdentityError
from transport.types import NetworkName, NodeId

from . import certificates, keys
from .authority import authority_path, ensure_authority, load_authority, load_certificate
from .certificates import LEAF_VALIDITY
from .datadir import NodeDirectory
from .files import move_durably, read_optional, write_atomic
from .names import node_subject

_RENEW_AT = 2 / 3
_CHAIN_LENGTH = 2


@dataclass(frozen=True, slots=True)
class Credentials:
    """A node's proof of who it is.

    Attributes:
        network: The network.
        node_id: The node.
        identity_key: The long-lived key that signs what the node says.
        certificate: The leaf that TLS shows.
        authority_certificate: The network's authority, the only one trusted.
        tls_key: The leaf's private key; it signs the offers and answers of end-to-end sessions, too.
        tls_key_path: The leaf's private key (PEM).
        tls_chain_path: Leaf and authority (PEM), as TLS shows them.
        can_issue: Whether this machine holds the authority's key and so can admit nodes.
    """

    network: NetworkName
    node_id: NodeId
    identity_key: ed25519.Ed25519PrivateKey = field(repr=False)
    certificate: x509.Certificate
    authority_certificate: x509.Certificate
    tls_key: ec.EllipticCurvePrivateKey = field(repr=False)
    tls_key_path: Path
    tls_chain_path: Path
    can_issue: bool

    @property
    def authority_fingerprint(self) -> str:
        """SHA-256 of the authority's certificate (DER), 64 hexadecimal digits."""
        return certificates.fingerprint(self.authority_certificate)

    @property
    def expires_at(self) -> datetime:
        """When the leaf ceases to be valid (timezone-aware)."""
        return self.certificate.not_valid_after_utc

    @property
    def renew_at(self) -> datetime:
        """When the leaf ought to be replaced: after two thirds of its life."""
        begin = self.certificate.not_valid_before_utc
        return begin + (self.expires_at - begin) * _RENEW_AT


def obtain_credentials(directory: NodeDirectory, *, now: datetime, validity: timedelta = LEAF_VALIDITY) -> Credentials:
    """Load or make everything this node needs; creates the network's authority in a fresh tree.

    Raises:
        IdentityError: The tree belongs to a network elsewhere and this node was not enrolled yet: it needs a token.
        InsecureKeyFile: A private key is open to others.
        DataDirectoryError: The tree is damaged or cannot be written.
        CertificateRejected: What is stored is not valid now: expired, or the clock is wrong.
    """
    if _has_leaf(directory) and not authority_path(directory.network_path).is_dir():
        return _load(directory, now=now)
    if ensure_authority(directory.network_path, directory.network, now=now) is not None:
        return renew(directory, now=now, validity=validity)
    if not _has_leaf(directory):
        raise IdentityError(
            f"node {directory.node_id!r} has no certificate, and the authority of network {directory.network!r}"
            " is on another machine",
            hint="run `mesh invite` there and start this node with --join TOKEN",
        )
    return _load(directory, now=now)


def renew(directory: NodeDirectory, *, now: datetime, validity: timedelta = LEAF_VALIDITY) -> Credentials:
    """Give this node a new key and certificate from the authority on this machine.

    Raises:
        IdentityError: The authority's key is not here: ask a peer (:func:`make_renewal_request`).
        DataDirectoryError: The new files cannot be written; the old ones are still good.
        CertificateRejected: The authority is not valid now; usually the clock is wrong.
    """
    authority = load_authority(directory.network_path, directory.network)
    if authority is None:
        raise IdentityError(
            f"the authority's key of network {directory.network!r} is not on this machine",
            hint="a node that holds it has to renew this certificate",
        )
    identity_key = ensure_identity_key(directory)
    key = keys.new_tls_key()
    leaf = authority.issue(key.public_key(), directory.node_id, now=now, validity=validity)
    keys.write_key(_next_key_path(directory), key)
    return _install(directory, identity_key, key, leaf, authority.certificate, can_issue=True)


def make_renewal_request(directory: NodeDirectory) -> bytes:
    """Make the next key and a signing request for it, to be answered by a peer that holds the authority's key.

    Returns:
        A PKCS#10 request (DER).  The key waits in ``tls.key.next``; asking again uses the same one.

    Raises:
        InsecureKeyFile: The waiting key is open to others.
        DataDirectoryError: The key cannot be written or read.
    """
    path = _next_key_path(directory)
    key = keys.read_tls_key(path)
    if key is None:
        key = keys.new_tls_key()
        keys.write_key(path, key)
    return certificates.build_request(key, node_subject(directory.network, directory.node_id))


def answer_renewal(
    directory: NodeDirectory, request: bytes, peer: NodeId, *, now: datetime, validity: timedelta = LEAF_VALIDITY
) -> bytes:
    """Certify the next key of ``peer``, which asked over a link that its current certificate authenticates.

    Args:
        directory: This node's directory; its tree holds the authority.
        request: The peer's PKCS#10 request (DER).
        peer: Who asked, according to the link.
        now: The time.
        validity: How long the new certificate is good for.

    Returns:
        The new chain (PEM).

    Raises:
        IdentityError: The authority's key is not on this machine.
        CertificateRejected: The request is damaged, or asks for anything but the asker's own name.
    """
    authority = load_authority(directory.network_path, directory.network)
    if authority is None:
        raise IdentityError(f"the authority's key of network {directory.network!r} is not on this machine")
    subject, public_key = certificates.read_request(request)
    if subject != node_subject(directory.network, peer):
        raise CertificateRejected(f"node {peer!r} asked for a certificate of {subject.uri}")
    return authority.chain_pem(authority.issue(public_key, peer, now=now, validity=validity))


def install_renewal(directory: NodeDirectory, chain: bytes, *, now: datetime) -> Credentials:
    """Check an answered request and make it this node's certificate.

    Raises:
        CertificateRejected: The chain is damaged, from another authority, of another node, or for another key.
        DataDirectoryError: It cannot be stored, or no request is waiting.
    """
    authority = _own_authority(directory)
    return install_chain(directory, chain, authority=authority, now=now)


def install_chain(directory: NodeDirectory, chain: bytes, *, authority: x509.Certificate, now: datetime) -> Credentials:
    """Check a chain for the waiting key against ``authority`` and make it this node's certificate.

    Raises:
        CertificateRejected: The chain is damaged, from another authority, of another node, or for another key.
        DataDirectoryError: It cannot be stored, or no key is waiting.
    """
    leaf = _leaf_of(chain, directory, authority, now=now)
    key = keys.read_tls_key(_next_key_path(directory))
    if key is None:
        raise DataDirectoryError(f"{_next_key_path(directory)} is missing", hint="ask for the certificate again")
    if not _fits(key, leaf):
        raise CertificateRejected("the certificate is for another key than the one that was asked for")
    can_issue = load_authority(directory.network_path, directory.network) is not None
    return _install(directory, ensure_identity_key(directory), key, leaf, authority, can_issue=can_issue)


def is_enrolled(directory: NodeDirectory) -> bool:
    """Whether this node can start without a token: it has a certificate, or its tree holds the authority's key."""
    return _has_leaf(directory) or (authority_path(directory.network_path) / "ca.key").exists()


def ensure_identity_key(directory: NodeDirectory) -> ed25519.Ed25519PrivateKey:
    """The node's long-lived key, made at its first start.

    Raises:
        InsecureKeyFile: It is open to others.
        DataDirectoryError: It is damaged or cannot be written.
    """
    path = directory.path / "identity.key"
    key = keys.read_identity_key(path)
    if key is None:
        key = keys.new_identity_key()
        keys.write_key(path, key)
    return key


def _load(directory: NodeDirectory, *, now: datetime) -> Credentials:
    """Load what enrolment or renewal stored, finishing an interrupted one."""
    authority = _own_authority(directory)
    chain_path = directory.path / "tls.crt"
    chain = read_optional(chain_path)
    if chain is None:
        raise DataDirectoryError(f"{chain_path} is missing", hint="join again with a new token")
    try:
        leaf = _leaf_of(chain, directory, authority, now=now)
    except CertificateRejected as error:
        hint = "check the clock; if it is right, join again with a new token from `mesh invite`"
        raise CertificateRejected(f"{chain_path} cannot be used: {error.message}", hint=hint) from error
    identity_key = ensure_identity_key(directory)
    key = keys.read_tls_key(directory.path / "tls.key")
    if key is None or not _fits(key, leaf):
        waiting = keys.read_tls_key(_next_key_path(directory))
        if waiting is None or not _fits(waiting, leaf):
            raise DataDirectoryError(
                f"{directory.path / 'tls.key'} is not the key of {chain_path}",
                hint="restore both from the same backup, or join again with a new token",
            )
        move_durably(_next_key_path(directory), directory.path / "tls.key")
        key = waiting
    return _credentials(directory, identity_key, key, leaf, authority, can_issue=False)


def _own_authority(directory: NodeDirectory) -> x509.Certificate:
    path = directory.path / "ca.crt"
    own = load_certificate(path, directory.network)
    if own is None:
        raise DataDirectoryError(f"{path} is missing", hint="copy it from another node, or join again with a new token")
    shared = load_certificate(authority_path(directory.network_path) / "ca.crt", directory.network)
    if shared is not None and shared != own:
        raise DataDirectoryError(
            f"{path} is not the authority in {authority_path(directory.network_path) / 'ca.crt'}",
            hint="two networks of one name share this directory: move one of them to another data directory",
        )
    return own


def _leaf_of(chain: bytes, directory: NodeDirectory, authority: x509.Certificate, *, now: datetime) -> x509.Certificate:
    try:
        parsed = x509.load_pem_x509_certificates(chain)
    except ValueError as error:
        raise CertificateRejected("the certificate chain cannot be read") from error
    if len(parsed) != _CHAIN_LENGTH:
        raise CertificateRejected(f"the certificate chain has {len(parsed)} certificates instead of {_CHAIN_LENGTH}")
    leaf = parsed[0]
    certificates.verify_peer(
        certificates.der(leaf),
        authority=authority,
        network=directory.network,
        now=now,
        expected=directory.node_id,
    )
    return leaf


def _install(
    directory: NodeDirectory,
    identity_key: ed25519.Ed25519PrivateKey,
    tls_key: ec.EllipticCurvePrivateKey,
    leaf: x509.Certificate,
    authority: x509.Certificate,
    *,
    can_issue: bool,
) -> Credentials:
    """Put certificate and waiting key in place; the module's docstring explains the order."""
    pinned = certificates.pem(authority)
    if read_optional(directory.path / "ca.crt") != pinned:
        write_atomic(directory.path / "ca.crt", pinned)
    write_atomic(directory.path / "tls.crt", certificates.pem(leaf, authority))
    move_durably(_next_key_path(directory), directory.path / "tls.key")
    return _credentials(directory, identity_key, tls_key, leaf, authority, can_issue=can_issue)


def _credentials(
    directory: NodeDirectory,
    identity_key: ed25519.Ed25519PrivateKey,
    tls_key: ec.EllipticCurvePrivateKey,
    leaf: x509.Certificate,
    authority: x509.Certificate,
    *,
    can_issue: bool,
) -> Credentials:
    return Credentials(
        network=directory.network,
        node_id=directory.node_id,
        identity_key=identity_key,
        certificate=leaf,
        authority_certificate=authority,
        tls_key=tls_key,
        tls_key_path=directory.path / "tls.key",
        tls_chain_path=directory.path / "tls.crt",
        can_issue=can_issue,
    )


def _next_key_path(directory: NodeDirectory) -> Path:
    return directory.path / "tls.key.next"


def _has_leaf(directory: NodeDirectory) -> bool:
    return (directory.path / "tls.crt").exists()


def _fits(key: ec.EllipticCurvePrivateKey, leaf: x509.Certificate) -> bool:
    public_key = leaf.public_key()
    if not isinstance(public_key, ec.EllipticCurvePublicKey):
        return False
    return keys.public_bytes(key.public_key()) == keys.public_bytes(public_key)
