"""The join token, and what its two holders make of the secret in it.  Pure: no I/O, the time is an argument.

Issuer and joiner derive the same P-256 key from the token's secret.  The issuer keeps only a certificate of the public
half (the *invite authority*) and forgets the secret; the joiner signs itself a throw-away certificate with the private
half.  So the ordinary mutual TLS of the one port proves possession of the token, the secret is never sent, never stored
by the issuer, and nothing that lies on the issuer's disk lets a thief join.

Derivation: HKDF-SHA256 (RFC 5869) to 48 bytes, reduced modulo the group order less one, plus one (FIPS 186-5, A.2.1:
the 128 surplus bits make the bias negligible).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from transport.errors import InvalidAddress, InvalidName, RemoteProtocolError, TokenMalformed
from transport.types import Address, NetworkName, network_name
from transport.wire import pack, unpack_body

from . import certificates
from .keys import CURVE
from .names import Role, Subject

PREFIX: Final = "pm1."
SECRET_BYTES: Final = 16
ADDRESSES_MAX: Final = 16

#: For so long after its expiry an invite can still complete a handshake, to be told that it expired or was used.
GRACE: Final = timedelta(days=1)

_ID_BYTES: Final = 8
_FINGERPRINT_BYTES: Final = 32
_CHECKSUM_BYTES: Final = 4
_TEXT_CHARACTERS_MAX: Final = 4096
_FIELDS: Final = 6
_EXPIRES_MAX: Final = 253_402_300_799  # the end of the year 9999, where datetime ends
_SALT: Final = b"peermesh invite authority v1"
_SEED_BYTES: Final = 48
# The order of P-256 (SEC 2, section 2.4.2).
_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_HINT: Final = "copy it whole, from `pm1.` to its end, or ask for a new one with `mesh invite`"


@dataclass(frozen=True, slots=True)
class Token:
    """What ``mesh invite`` prints.  Whoever has it can join until it expires or is used up.

    Attributes:
        network: The network it admits to.
        authority_fingerprint: SHA-256 of the network authority's certificate, 64 hexadecimal digits.
        invite_id: Names the invite; not secret.
        secret: 16 random bytes.
        expires_at: When it ends (timezone-aware, whole seconds).
        addresses: Where the issuer can be dialled, best first.
    """

    network: NetworkName
    authority_fingerprint: str
    invite_id: str
    secret: bytes = field(repr=False)
    expires_at: datetime
    addresses: tuple[Address, ...]

    def encode(self) -> str:
        """The token as text: ``pm1.`` and base64url of a MessagePack array and four bytes of its SHA-256."""
        body = pack(
            [
                str(self.network),
                bytes.fromhex(self.authority_fingerprint),
                bytes.fromhex(self.invite_id),
                self.secret,
                int(self.expires_at.timestamp()),
                [str(address) for address in self.addresses],
            ]
        )
        return PREFIX + _base64(body + _checksum(body))

    @classmethod
    def decode(cls, text: str) -> Token:
        """Read a token.

        Raises:
            TokenMalformed: It is damaged at any place, or is no token.
        """
        stripped = text.strip()
        if not stripped.startswith(PREFIX):
            raise TokenMalformed(f"the token does not begin with {PREFIX!r}", hint=_HINT)
        encoded = stripped.removeprefix(PREFIX)
        if len(encoded) > _TEXT_CHARACTERS_MAX:
            raise TokenMalformed("the token is too long", hint=_HINT)
        try:
            data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as error:
            raise TokenMalformed("the token contains characters that no token has", hint=_HINT) from error
        body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        # Base64 can spell the same bytes in several ways (unused bits, padding): only one is the token.
        if _base64(data) != encoded or checksum != _checksum(body):
            raise TokenMalformed("the token is damaged: its checksum does not match", hint=_HINT)
        try:
            return cls._from_fields(unpack_body(body, nodes_max=64))
        except (RemoteProtocolError, InvalidName, InvalidAddress, ValueError) as error:
            raise TokenMalformed("the token's content cannot be read", hint=_HINT) from error

    @classmethod
    def _from_fields(cls, fields: object) -> Token:
        if not isinstance(fields, list) or len(fields) < _FIELDS:  # more fields: a later version's
            raise ValueError("not an array of six fields")
        network, fingerprint, invite_id, secret, expires, addresses = fields[:_FIELDS]
        sizes = ((fingerprint, _FINGERPRINT_BYTES), (invite_id, _ID_BYTES), (secret, SECRET_BYTES))
        if any(not isinstance(value, bytes) or len(value) != size for value, size in sizes):
            raise ValueError("a field has the wrong size")
        if type(expires) is not int or not 0 <= expires <= _EXPIRES_MAX:
            raise ValueError("the expiry is not a time")
        if not isinstance(addresses, list) or not 0 < len(addresses) <= ADDRESSES_MAX:
            raise ValueError("the addresses are not a short list")
        return cls(
            network=network_name(network),
            authority_fingerprint=fingerprint.hex(),
            invite_id=invite_id.hex(),
            secret=secret,
            expires_at=datetime.fromtimestamp(expires, UTC),
            addresses=tuple(Address.parse(address) for address in addresses),
        )


def new_token(
    network: NetworkName,
    authority: x509.Certificate,
    addresses: Sequence[Address],
    *,
    now: datetime,
    ttl: timedelta,
) -> Token:
    """A token with a fresh secret.

    Raises:
        ValueError: ``ttl`` is not positive, or there is no address to put in it.
    """
    if ttl <= timedelta(0):
        raise ValueError(f"an invite must last some time, not {ttl}")
    if not addresses:
        raise ValueError("an invite needs an address that a joining node can dial")
    return Token(
        network=network,
        authority_fingerprint=certificates.fingerprint(authority),
        invite_id=secrets.token_bytes(_ID_BYTES).hex(),
        secret=secrets.token_bytes(SECRET_BYTES),
        expires_at=(now + ttl).replace(microsecond=0),
        addresses=tuple(addresses[:ADDRESSES_MAX]),
    )


def derive_invite_key(token: Token) -> ec.EllipticCurvePrivateKey:
    """The invite authority's key, the same for everyone who has the token."""
    info = f"{token.network}/{token.invite_id}".encode()
    seed = HKDF(hashes.SHA256(), _SEED_BYTES, salt=_SALT, info=info).derive(token.secret)
    return ec.derive_private_key(int.from_bytes(seed, "big") % (_ORDER - 1) + 1, CURVE)


def build_invite_authority(token: Token, *, now: datetime) -> x509.Certificate:
    """The certificate that the issuer trusts, for nothing but asking for one certificate."""
    return certificates.build_authority(
        derive_invite_key(token),
        organisation=certificates.INVITE_ORGANISATION,
        name=token.invite_id,
        not_before=now - certificates.BACKDATE,
        not_after=token.expires_at + GRACE,
    )


def build_invite_leaf(token: Token, key: ec.EllipticCurvePrivateKey, *, now: datetime) -> x509.Certificate:
    """The throw-away certificate of a joining node, under the invite authority that the issuer knows.

    The joiner's copy of the authority need not equal the issuer's: name and key are what a chain is built by.  Its
    times are taken from the token and not from the joiner's clock, which may be wrong.
    """
    begin = min(now, token.expires_at) - GRACE
    authority = certificates.build_authority(
        derive_invite_key(token),
        organisation=certificates.INVITE_ORGANISATION,
        name=token.invite_id,
        not_before=begin,
        not_after=token.expires_at + GRACE,
    )
    return certificates.build_leaf(
        key.public_key(),
        Subject(token.network, Role.INVITE, token.invite_id),
        authority=authority,
        authority_key=derive_invite_key(token),
        not_before=begin,
        not_after=token.expires_at + GRACE,
    )


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(PREFIX.encode() + body).digest()[:_CHECKSUM_BYTES]


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
