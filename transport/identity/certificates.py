"""Building and judging X.509 certificates.  Pure: the time is an argument, nothing is read or written.

Two kinds of authority exist, and the difference is the whole point of :func:`verify_peer`.  The *network's* authority
signs nodes.  An *invite's* authority (see :mod:`.invites`) signs nothing but the throw-away certificate of a joining
node; it sits in the same TLS trust store because there is one port, so TLS accepting a certificate does not yet mean
that its holder is a member.  :func:`verify_peer` therefore checks the signature against the network's authority
again, in code, and demands a name of the role "node".

Chains are always two long, authority and leaf.  That is demanded rather than assumed (path length 0, direct issue), so
no intermediate can ever appear.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from transport.errors import CertificateRejected, InvalidName
from transport.types import NetworkName, NodeId

from .names import Role, Subject, server_name

#: How far certificates reach into the past, so that peers whose clocks are somewhat behind accept them.
BACKDATE: Final = timedelta(minutes=5)
LEAF_VALIDITY: Final = timedelta(days=7)
AUTHORITY_VALIDITY: Final = timedelta(days=3650)

ORGANISATION: Final = "peermesh"
INVITE_ORGANISATION: Final = "peermesh invite"

# What parsing a hostile certificate may raise: cryptography parses lazily, so any access can.
_UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
_KNOWN_EXTENSIONS: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }
)
_CLOCK_HINT: Final = "compare the clocks of both machines"


def build_authority(
    key: ec.EllipticCurvePrivateKey, *, organisation: str, name: str, not_before: datetime, not_after: datetime
) -> x509.Certificate:
    """A self-signed authority that may sign leaves and nothing deeper."""
    subject = _distinguished_name(organisation, name)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        _builder(subject, subject, key.public_key(), not_before, not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )


def build_leaf(
    public_key: ec.EllipticCurvePublicKey,
    subject: Subject,
    *,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    not_before: datetime,
    not_after: datetime,
) -> x509.Certificate:
    """A certificate for ``subject``, valid no longer than its authority."""
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(subject.uri)]
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if subject.role is Role.NODE:
        names += [
            x509.DNSName(server_name(subject.network, NodeId(subject.name))),
            x509.DNSName(server_name(subject.network)),
        ]
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    issuer_identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        _builder(
            _distinguished_name(ORGANISATION, subject.name),
            authority.subject,
            public_key,
            max(not_before, authority.not_valid_before_utc),
            min(not_after, authority.not_valid_after_utc),
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_identifier), critical=False
        )
        .sign(authority_key, hashes.SHA256())
    )


def build_request(key: ec.EllipticCurvePrivateKey, subject: Subject) -> bytes:
    """A certificate signing request (PKCS#10, DER) for ``subject``, proving possession of ``key``."""
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_distinguished_name(ORGANISATION, subject.name))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(subject.uri)]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    return request.public_bytes(serialization.Encoding.DER)


def read_request(der: bytes) -> tuple[Subject, ec.EllipticCurvePublicKey]:
    """Whom a signing request is for, and the key it proves possession of.

    Nothing else in the request is used: the issuer decides every other field of the certificate.

    Raises:
        CertificateRejected: It is damaged, its signature is wrong, its key is not P-256, or it names not one subject.
    """
    try:
        request = x509.load_der_x509_csr(der)
        key = request.public_key()
        if not request.is_signature_valid:
            raise CertificateRejected("the certificate request's signature is wrong")
        subject = _subject(request.extensions)
    except _UNREADABLE as error:
        raise CertificateRejected(f"the certificate request cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateRejected("the certificate request's key is not on P-256")
    return subject, key


def verify_peer(
    der: bytes, *, authority: x509.Certificate, network: NetworkName, now: datetime, expected: NodeId | None = None
) -> NodeId:
    """Decide whether a certificate makes its holder a member of ``network``, and which one.

    Args:
        der: The peer's certificate as TLS gave it; TLS proved that the peer holds its key.
        authority: The network's authority.
        network: The network it must be valid in.
        now: The time to judge validity by; timezone-aware.
        expected: The node that was dialled, where that is known.

    Returns:
        The node id that the certificate names.

    Raises:
        CertificateRejected: It does not; the message says which check failed.
    """
    subject = verify_leaf(der, authority=authority, now=now, usages=(_SERVER, _CLIENT))
    if subject.role is not Role.NODE:
        raise CertificateRejected(f"the certificate of {subject.uri} is not a node's")
    if subject.network != network:
        raise CertificateRejected(
            f"the certificate is for network {subject.network!r}, not {network!r}",
            hint="both ends must be started with the same network name",
        )
    if expected is not None and subject.name != expected:
        raise CertificateRejected(f"the certificate is of node {subject.name!r}, not of {expected!r}")
    return NodeId(subject.name)


_CLIENT: Final = ExtendedKeyUsageOID.CLIENT_AUTH
_SERVER: Final = ExtendedKeyUsageOID.SERVER_AUTH


def verify_leaf(
    der: bytes,
    *,
    authority: x509.Certificate,
    now: datetime,
    usages: Sequence[x509.ObjectIdentifier] = (_CLIENT,),
) -> Subject:
    """Check one leaf against the one authority that may have signed it, and read whom it names.

    Raises:
        CertificateRejected: Signature, validity, purpose or name is wrong.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        check_validity(certificate, now)
        check_validity(authority, now)
        _check_signature(certificate, authority)
        extensions = certificate.extensions
        for extension in extensions:
            if extension.critical and extension.oid not in _KNOWN_EXTENSIONS:
                raise CertificateRejected(f"the certificate has an unknown critical extension {extension.oid}")
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise CertificateRejected("the certificate is an authority's, not a leaf")
        allowed = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        if not allowed.issuperset(usages):
            raise CertificateRejected("the certificate may not be used for this side of a connection")
        return _subject(extensions)
    except _UNREADABLE as error:
        raise CertificateRejected(f"the certificate cannot be read: {error}") from error


def claimed_subject(der: bytes) -> Subject:
    """Whom a certificate says it names, checking nothing: to find what to check it against, and for logs.

    Raises:
        CertificateRejected: It cannot be read.
    """
    try:
        return _subject(x509.load_der_x509_certificate(der).extensions)
    except _UNREADABLE as error:
        raise CertificateRejected(f"the certificate cannot be read: {error}") from error


def _check_signature(certificate: x509.Certificate, authority: x509.Certificate) -> None:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, *_UNREADABLE) as error:
        raise CertificateRejected(
            "the certificate was not signed by this network's authority",
            hint="the other node belongs to another network of the same name; join it with a token from `mesh invite`",
        ) from error


def check_validity(certificate: x509.Certificate, now: datetime) -> None:
    """Check that ``now`` lies in the certificate's time.

    Raises:
        CertificateRejected: It does not; the text names both times, because the usual culprit is a wrong clock.
    """
    if now < certificate.not_valid_before_utc:
        raise CertificateRejected(
            f"the certificate is not valid before {certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}"
            f" and it is {now:%Y-%m-%dT%H:%M:%SZ} here",
            hint=_CLOCK_HINT,
        )
    if now > certificate.not_valid_after_utc:
        raise CertificateRejected(
            f"the certificate expired at {certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
            f" and it is {now:%Y-%m-%dT%H:%M:%SZ} here",
            hint=_CLOCK_HINT,
        )


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate's DER form, as 64 hexadecimal digits."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def pem(*certificates: x509.Certificate) -> bytes:
    """The certificates as concatenated PEM."""
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)


def der(certificate: x509.Certificate) -> bytes:
    """The certificate as DER."""
    return certificate.public_bytes(serialization.Encoding.DER)


def common_name(certificate: x509.Certificate) -> str | None:
    """The subject's common name, if it has exactly one."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else None


def _subject(extensions: x509.Extensions) -> Subject:
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise CertificateRejected(f"the certificate names {len(uris)} URIs instead of one")
    try:
        return Subject.parse(uris[0])
    except InvalidName as error:
        raise CertificateRejected(error.message) from error


def _distinguished_name(organisation: str, name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, not_before: datetime, not_after: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
