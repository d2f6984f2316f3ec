"""Credentials for tests: good ones in a few milliseconds, and bad ones of each kind."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from transport.identity import certificates, keys
from transport.identity.authority import load_authority
from transport.identity.credentials import Credentials, obtain_credentials
from transport.identity.datadir import NodeDirectory
from transport.identity.names import node_subject
from transport.types import network_name
from transport.types import node_id as checked_node_id


def now() -> datetime:
    """The time, aware of its zone."""
    return datetime.now(UTC)


def open_directory(data_dir: Path, network: str = "default", node_id: str = "node-1") -> NodeDirectory:
    """A locked node directory; release it."""
    return NodeDirectory.open(data_dir, network_name(network), checked_node_id(node_id))


def make_credentials(data_dir: Path, network: str = "default", node_id: str = "node-1") -> Credentials:
    """Credentials of a node; nodes made with the same ``data_dir`` and ``network`` trust one another."""
    with open_directory(data_dir, network, node_id) as directory:
        return obtain_credentials(directory, now=now())


def make_expired(data_dir: Path, network: str = "default", node_id: str = "node-1") -> Credentials:
    """Credentials from the right authority that expired a minute ago."""
    return _forged(data_dir, network, node_id, not_after=now() - timedelta(minutes=1))


def make_not_yet_valid(data_dir: Path, network: str = "default", node_id: str = "node-1") -> Credentials:
    """Credentials from the right authority that become valid in an hour."""
    return _forged(data_dir, network, node_id, not_before=now() + timedelta(hours=1))


def make_of_other_authority(data_dir: Path, network: str = "default", node_id: str = "node-1") -> Credentials:
    """Credentials of a network of the same name with another authority, trusting the one of ``data_dir``."""
    other = make_credentials(data_dir / "other-authority", network, node_id)
    return _trusting(other, make_credentials(data_dir, network, node_id))


def make_self_signed(data_dir: Path, network: str = "default", node_id: str = "node-1") -> Credentials:
    """Credentials whose leaf is signed by its own key."""
    return _forged(data_dir, network, node_id, self_signed=True)


def make_of_other_network(
    data_dir: Path, network: str = "default", node_id: str = "node-1", *, named: str = "elsewhere"
) -> Credentials:
    """Credentials from the right authority whose leaf names another network."""
    return _forged(data_dir, network, node_id, named_network=named)


def make_of_wrong_node(
    data_dir: Path, network: str = "default", node_id: str = "node-1", *, named: str = "somebody-else"
) -> Credentials:
    """Credentials that say ``node_id`` while the leaf, from the right authority, names another node."""
    return _forged(data_dir, network, node_id, named_node=named)


def _forged(
    data_dir: Path,
    network: str,
    node_id: str,
    *,
    named_network: str | None = None,
    named_node: str | None = None,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
    self_signed: bool = False,
) -> Credentials:
    """Replace the files of a good node's ``forged`` sub-directory by a leaf that lies."""
    good = make_credentials(data_dir, network, node_id)
    authority = load_authority(data_dir / network, good.network)
    assert authority is not None
    key = keys.new_tls_key()
    signer, signing_key = authority.certificate, authority.private_key
    if self_signed:
        signer, signing_key = _own_signer(key, node_id)
    leaf = certificates.build_leaf(
        key.public_key(),
        node_subject(network_name(named_network or network), checked_node_id(named_node or node_id)),
        authority=signer,
        authority_key=signing_key,
        not_before=not_before or signer.not_valid_before_utc,
        not_after=not_after or now() + timedelta(days=1),
    )
    return _stored(data_dir / "forged" / network / node_id, good, leaf, key)


def _own_signer(key: ec.EllipticCurvePrivateKey, name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    own = certificates.build_authority(
        key,
        organisation=certificates.ORGANISATION,
        name=name,
        not_before=now() - timedelta(days=1),
        not_after=now() + timedelta(days=1),
    )
    return own, key


def _stored(path: Path, good: Credentials, leaf: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Credentials:
    path.mkdir(parents=True, exist_ok=True)
    keys.write_key(path / "tls.key", key)
    (path / "tls.crt").write_bytes(certificates.pem(leaf, good.authority_certificate))
    return Credentials(
        network=good.network,
        node_id=good.node_id,
        identity_key=good.identity_key,
        certificate=leaf,
        authority_certificate=good.authority_certificate,
        tls_key=key,
        tls_key_path=path / "tls.key",
        tls_chain_path=path / "tls.crt",
        can_issue=False,
    )


def _trusting(holder: Credentials, trusted: Credentials) -> Credentials:
    return Credentials(
        network=holder.network,
        node_id=holder.node_id,
        identity_key=holder.identity_key,
        certificate=holder.certificate,
        authority_certificate=trusted.authority_certificate,
        tls_key=holder.tls_key,
        tls_key_path=holder.tls_key_path,
        tls_chain_path=holder.tls_chain_path,
        can_issue=False,
    )
