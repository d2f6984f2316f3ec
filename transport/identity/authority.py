"""The network's authority on disk: made once per network, found by every other process of the machine.

The files are written in an order that makes every crash recognisable: ``ca.key`` before ``ca.crt``, each atomically,
under a lock.  So there are four states, and only the first makes a new authority:

=======  =======  ===========================================================================================
ca.key   ca.crt   meaning
=======  =======  ===========================================================================================
no       no       a fresh tree, unless a node in it already has a certificate: then the authority was lost
yes      no       creation was cut short; finished with that key, unless a node already knows the certificate
yes      yes      this machine can issue certificates
no       yes      this machine was enrolled from elsewhere: nodes need a token
=======  =======  ===========================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from transport.errors import DataDirectoryError
from transport.types import NetworkName, NodeId

from . import certificates, keys
from .files import ensure_directory, locked, read_optional, remove_temporary, write_atomic
from .names import node_subject


@dataclass(frozen=True, slots=True)
class Authority:
    """The network's authority with its key: whoever holds it can admit nodes."""

    network: NetworkName
    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey = field(repr=False)

    def issue(
        self,
        public_key: ec.EllipticCurvePublicKey,
        node: NodeId,
        *,
        now: datetime,
        validity: timedelta = certificates.LEAF_VALIDITY,
    ) -> x509.Certificate:
        """Certify that ``public_key`` belongs to ``node``.

        Raises:
            CertificateRejected: The authority itself is not valid now; usually the clock is wrong.
        """
        certificates.check_validity(self.certificate, now)
        return certificates.build_leaf(
            public_key,
            node_subject(self.network, node),
            authority=self.certificate,
            authority_key=self.private_key,
            not_before=now - certificates.BACKDATE,
            not_after=now + validity,
        )

    def chain_pem(self, leaf: x509.Certificate) -> bytes:
        """What a TLS peer is sent: the leaf, then the authority (a joining node finds its pin there)."""
        return certificates.pem(leaf, self.certificate)


def authority_path(network_path: Path) -> Path:
    """The directory of the authority's files."""
    return network_path / "ca"


def lock_path(network_path: Path) -> Path:
    """The lock of everything that the nodes of one machine share."""
    return authority_path(network_path) / "lock"


def load_authority(network_path: Path, network: NetworkName) -> Authority | None:
    """The authority, if this machine holds its key.

    Raises:
        InsecureKeyFile: Others can read its key.
        DataDirectoryError: The files are damaged, do not belong together, or are another network's.
    """
    directory = authority_path(network_path)
    # The certificate is written last, so where it is there, the key is complete.
    certificate = load_certificate(directory / "ca.crt", network)
    if certificate is None:
        return None
    key = keys.read_tls_key(directory / "ca.key")
    if key is None:
        return None
    if keys.public_bytes(key.public_key()) != _subject_key(certificate):
        raise DataDirectoryError(
            f"{directory / 'ca.key'} is not the key of {directory / 'ca.crt'}",
            hint="restore both from the same backup",
        )
    return Authority(network, certificate, key)


def load_certificate(path: Path, network: NetworkName) -> x509.Certificate | None:
    """An authority's certificate, checked to be ``network``'s; ``None`` if there is no such file.

    Raises:
        DataDirectoryError: It is damaged, or another network's.
    """
    data = read_optional(path)
    if data is None:
        return None
    try:
        certificate = x509.load_pem_x509_certificate(data)
    except ValueError as error:
        raise DataDirectoryError(
            f"{path} is not a readable certificate",
            hint="restore it from a backup, or from another node of the network",
        ) from error
    if certificates.common_name(certificate) != network:
        raise DataDirectoryError(
            f"{path} is the authority of network {certificates.common_name(certificate)!r}, not of {network!r}",
            hint="choose another data directory, or the right network name",
        )
    return certificate


def ensure_authority(network_path: Path, network: NetworkName, *, now: datetime) -> Authority | None:
    """The authority of this machine's tree, made if the tree is fresh; safe with any number of processes at once.

    Returns:
        ``None`` when the tree belongs to a network whose key is elsewhere.

    Raises:
        InsecureKeyFile: Others can read its key.
        DataDirectoryError: The tree is damaged, cannot be written, or lost its authority.
    """
    if (authority := load_authority(network_path, network)) is not None:
        return authority
    directory = authority_path(network_path)
    ensure_directory(directory)
    with locked(lock_path(network_path)):
        if (authority := load_authority(network_path, network)) is not None:
            return authority
        if (directory / "ca.crt").exists():
            return None
        remove_temporary(directory)
        key = keys.read_tls_key(directory / "ca.key")
        _refuse_orphans(network_path)
        if key is None:
            key = keys.new_tls_key()
            keys.write_key(directory / "ca.key", key)
        certificate = certificates.build_authority(
            key,
            organisation=certificates.ORGANISATION,
            name=network,
            not_before=now - certificates.BACKDATE,
            not_after=now + certificates.AUTHORITY_VALIDITY,
        )
        write_atomic(directory / "ca.crt", certificates.pem(certificate))
        return Authority(network, certificate, key)


def adopt_authority(network_path: Path, network: NetworkName, certificate: x509.Certificate) -> None:
    """Make the tree belong to an authority elsewhere, as enrolment does.

    Raises:
        DataDirectoryError: It already belongs to another one; nothing was changed.
    """
    directory = authority_path(network_path)
    ensure_directory(directory)
    with locked(lock_path(network_path)):
        present = load_certificate(directory / "ca.crt", network)
        if present is None and not (directory / "ca.key").exists():
            write_atomic(directory / "ca.crt", certificates.pem(certificate))
        elif present != certificate:
            raise DataDirectoryError(
                f"{network_path} already belongs to another network named {network!r}",
                hint="choose another data directory (--data-dir) to join this one",
            )


def _refuse_orphans(network_path: Path) -> None:
    """Never replace an authority that nodes of this tree already trust: it would split the network in two."""
    for known in sorted(network_path.glob("*/ca.crt")):
        if known.parent.name != "ca":
            raise DataDirectoryError(
                f"{authority_path(network_path) / 'ca.crt'} is missing although {known} exists",
                hint=f"restore {authority_path(network_path)} from a backup"
                f" (the certificate alone: cp {known} {authority_path(network_path) / 'ca.crt'})",
            )


def _subject_key(certificate: x509.Certificate) -> bytes:
    key = certificate.public_key()
    return keys.public_bytes(key) if isinstance(key, ec.EllipticCurvePublicKey) else b""
