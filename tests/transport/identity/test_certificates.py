"""What makes a certificate a member's, and everything that does not."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from transport.errors import CertificateRejected
from transport.identity import certificates, keys
from transport.identity.names import Role, Subject, node_subject
from transport.types import network_name, node_id

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
NETWORK = network_name("default")
SUBJECT = node_subject(NETWORK, node_id("a"))
KEY, LEAF_KEY = keys.new_tls_key(), keys.new_tls_key()


def authority(key: ec.EllipticCurvePrivateKey = KEY, days: int = 1) -> x509.Certificate:
    """An authority that is valid for some days from yesterday."""
    return certificates.build_authority(
        key,
        organisation=certificates.ORGANISATION,
        name="default",
        not_before=NOW - timedelta(days=1),
        not_after=NOW + timedelta(days=days),
    )


AUTHORITY = authority()


def leaf(subject: Subject = SUBJECT, *, begin_h: float = -1, end_h: float = 1) -> x509.Certificate:
    """A leaf from the authority."""
    return certificates.build_leaf(
        LEAF_KEY.public_key(),
        subject,
        authority=AUTHORITY,
        authority_key=KEY,
        not_before=NOW + timedelta(hours=begin_h),
        not_after=NOW + timedelta(hours=end_h),
    )


def verify(certificate: x509.Certificate | bytes, *, expected: str | None = None, network: str = "default") -> str:
    """Judge a certificate at NOW."""
    der = certificate if isinstance(certificate, bytes) else certificates.der(certificate)
    wanted = None if expected is None else node_id(expected)
    return certificates.verify_peer(der, authority=AUTHORITY, network=network_name(network), now=NOW, expected=wanted)


def test_a_member_is_accepted() -> None:
    """With and without an expectation of who it is."""
    assert verify(leaf()) == "a"
    assert verify(leaf(), expected="a") == "a"


def test_an_unexpected_node_is_rejected() -> None:
    """The one that was dialled, and no other."""
    with pytest.raises(CertificateRejected, match="of node 'a', not of 'b'"):
        verify(leaf(), expected="b")


def test_another_network_is_rejected() -> None:
    """Even under the same authority."""
    with pytest.raises(CertificateRejected, match="network 'default', not 'home'"):
        verify(leaf(), network="home")


def test_an_invite_is_rejected() -> None:
    """Even one that the network's own authority signed."""
    with pytest.raises(CertificateRejected, match=r"this side|not a node"):
        verify(leaf(Subject(NETWORK, Role.INVITE, "a")))


def test_times_outside_the_validity_are_rejected_with_both_times() -> None:
    """A person who reads it sees at once whose clock is wrong."""
    with pytest.raises(CertificateRejected, match="not valid before 2026-11-21T13:00:00Z and it is 2026-11-21T12:00"):
        verify(leaf(begin_h=1, end_h=2))
    with pytest.raises(CertificateRejected, match="expired at 2026-11-21T11:00:00Z and it is 2026-11-21T12:00"):
        verify(leaf(begin_h=-2, end_h=-1))


def test_an_expired_authority_vouches_for_nobody() -> None:
    """Its leaves end with it, and it is checked besides."""
    short = authority(days=1)
    one = certificates.build_leaf(
        LEAF_KEY.public_key(),
        SUBJECT,
        authority=short,
        authority_key=KEY,
        not_before=NOW - timedelta(days=9),
        not_after=NOW + timedelta(days=9),
    )
    assert one.not_valid_after_utc == short.not_valid_after_utc
    assert one.not_valid_before_utc == short.not_valid_before_utc
    with pytest.raises(CertificateRejected, match="expired"):
        certificates.verify_peer(
            certificates.der(leaf(end_h=20)),
            authority=authority(days=0),
            network=NETWORK,
            now=NOW + timedelta(hours=1),
        )


def test_another_authority_of_the_same_name_is_rejected() -> None:
    """Names prove nothing."""
    other = keys.new_tls_key()
    forged = certificates.build_leaf(
        LEAF_KEY.public_key(),
        SUBJECT,
        authority=authority(other),
        authority_key=other,
        not_before=NOW,
        not_after=NOW + timedelta(hours=1),
    )
    with pytest.raises(CertificateRejected, match="not signed by this network's authority"):
        verify(forged)


def test_the_authority_itself_is_no_member() -> None:
    """Its key signs, it does not talk."""
    with pytest.raises(CertificateRejected):
        verify(AUTHORITY)


def test_a_member_cannot_vouch_for_others() -> None:
    """A leaf that signs another leaf makes no chain."""
    member = leaf()
    forged = certificates.build_leaf(
        keys.new_tls_key().public_key(),
        node_subject(NETWORK, node_id("b")),
        authority=member,
        authority_key=LEAF_KEY,
        not_before=NOW,
        not_after=NOW + timedelta(hours=1),
    )
    with pytest.raises(CertificateRejected, match="not signed"):
        verify(forged)


def odd(change: Callable[[x509.CertificateBuilder], x509.CertificateBuilder]) -> x509.Certificate:
    """A certificate that the authority really signed, with the extensions that ``change`` adds."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")]))
        .issuer_name(AUTHORITY.subject)
        .public_key(LEAF_KEY.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(hours=1))
        .not_valid_after(NOW + timedelta(hours=1))
    )
    return change(builder).sign(KEY, hashes.SHA256())


BASIC = x509.BasicConstraints(ca=False, path_length=None)
USAGE = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])


def names(*uris: str) -> x509.SubjectAlternativeName:
    """Alternative names."""
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(one) for one in uris])


@pytest.mark.parametrize(
    ("why", "change"),
    [
        ("no extensions", lambda b: b),
        ("no usage", lambda b: b.add_extension(BASIC, True).add_extension(names(SUBJECT.uri), False)),
        (
            "one usage only",
            lambda b: (
                b.add_extension(BASIC, True)
                .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
                .add_extension(names(SUBJECT.uri), False)
            ),
        ),
        ("no name", lambda b: b.add_extension(BASIC, True).add_extension(USAGE, False)),
        (
            "two names",
            lambda b: (
                b.add_extension(BASIC, True)
                .add_extension(USAGE, False)
                .add_extension(names(SUBJECT.uri, "spiffe://default/node/b"), False)
            ),
        ),
        (
            "a foreign name",
            lambda b: (
                b.add_extension(BASIC, True)
                .add_extension(USAGE, False)
                .add_extension(names("https://default/node/a"), False)
            ),
        ),
        (
            "only a DNS name",
            lambda b: (
                b.add_extension(BASIC, True)
                .add_extension(USAGE, False)
                .add_extension(x509.SubjectAlternativeName([x509.DNSName("a.default.peermesh.internal")]), False)
            ),
        ),
        (
            "an authority",
            lambda b: (
                b.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
                .add_extension(USAGE, False)
                .add_extension(names(SUBJECT.uri), False)
            ),
        ),
        (
            "an unknown critical extension",
            lambda b: (
                b.add_extension(BASIC, True)
                .add_extension(USAGE, False)
                .add_extension(names(SUBJECT.uri), False)
                .add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b""), True)
            ),
        ),
    ],
)
def test_signed_but_odd_certificates_are_rejected(
    why: str, change: Callable[[x509.CertificateBuilder], x509.CertificateBuilder]
) -> None:
    """A signature of the authority is necessary, not sufficient."""
    with pytest.raises(CertificateRejected):
        verify(odd(change))
    assert why


@given(st.binary(max_size=200))
def test_garbage_is_rejected(data: bytes) -> None:
    """Nothing but CertificateRejected comes out."""
    with pytest.raises(CertificateRejected):
        verify(data)
    with pytest.raises(CertificateRejected):
        certificates.claimed_subject(data)
    with pytest.raises(CertificateRejected):
        certificates.read_request(data)


@given(st.data())
def test_a_damaged_certificate_is_rejected(data: st.DataObject) -> None:
    """Any bit of it counts."""
    der = bytearray(certificates.der(GOOD_LEAF))
    der[data.draw(st.integers(0, len(der) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CertificateRejected):
        verify(bytes(der))


GOOD_LEAF = leaf()
GOOD_REQUEST = certificates.build_request(LEAF_KEY, SUBJECT)


def test_a_request_says_whom_and_which_key() -> None:
    """And proves possession of it."""
    subject, key = certificates.read_request(GOOD_REQUEST)
    assert subject == SUBJECT
    assert key == LEAF_KEY.public_key()


@given(st.data())
def test_a_damaged_request_is_rejected(data: st.DataObject) -> None:
    """Any bit of it counts."""
    der = bytearray(GOOD_REQUEST)
    der[data.draw(st.integers(0, len(der) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CertificateRejected):
        certificates.read_request(bytes(der))


def test_requests_for_other_kinds_of_keys_are_rejected() -> None:
    """P-256 and nothing else."""
    for key in (ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()):
        algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        request = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([]))
            .add_extension(names(SUBJECT.uri), critical=False)
            .sign(key, algorithm)
        )
        with pytest.raises(CertificateRejected, match="P-256"):
            certificates.read_request(request.public_bytes(serialization.Encoding.DER))


def test_small_helpers() -> None:
    """Fingerprints are of the DER form, and a subject without a single common name has none."""
    assert certificates.fingerprint(AUTHORITY) == AUTHORITY.fingerprint(hashes.SHA256()).hex()
    assert certificates.common_name(AUTHORITY) == "default"
    bare = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW)
        .sign(KEY, hashes.SHA256())
    )
    assert certificates.common_name(bare) is None
