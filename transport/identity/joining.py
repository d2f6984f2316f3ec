"""The joining side: from a token to credentials on disk.

First the authority is pinned, then everything else happens.  Connection one is unverified and sends nothing: it only
reads the certificates that the other end shows and keeps the one whose fingerprint is in the token.  Connection two
trusts that one authority, checks the network's name, shows the throw-away certificate made from the token's secret, and
asks for a certificate for a key that never leaves this machine.  The secret is never sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from cryptography import x509
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidStatus, WebSocketException

from transport.clock import Clock, SystemClock
from transport.errors import (
    CertificateRejected,
    DataDirectoryError,
    DialError,
    EnrolmentRefused,
    HandshakeFailed,
    IdentityError,
    InsecureKeyFile,
    MeshError,
    PeerUnreachable,
    TokenError,
    TokenExpired,
    TokenUnknown,
    TokenWrongNetwork,
)
from transport.types import Address

from . import certificates, keys
from .audit import AuditLog
from .authority import adopt_authority, authority_path, load_certificate
from .credentials import Credentials, ensure_identity_key, install_chain, make_renewal_request, obtain_credentials
from .datadir import NodeDirectory
from .enrolment_messages import MESSAGE_BYTES_MAX, decode_answer, encode_request
from .files import write_atomic
from .invites import GRACE, Token, build_invite_leaf
from .names import ALPN, server_name
from .tls import bare_context

_CLOSE_TIMEOUT_S: Final = 1.0
_PATH: Final = "/enrol"
_CHAIN_MAX: Final = 8
_ASK_AGAIN: Final = "ask for a new one with `mesh invite`"


async def enrol(
    token: str, directory: NodeDirectory, *, clock: Clock | None = None, timeout_s: float = 5.0
) -> Credentials:
    """Make this node a member of the token's network.

    A node that already has a valid certificate of that network is left alone and the token is not spent, so a service
    may be started with the same token every time.

    Args:
        token: What ``mesh invite`` printed.
        directory: This node's directory; must be free or of the same network.
        clock: Wall time.
        timeout_s: For each of the token's addresses, tried in order.

    Returns:
        The new credentials, already stored.

    Raises:
        TokenMalformed: The token is damaged.
        TokenWrongNetwork: It is for another network than the directory's.
        TokenExpired, TokenUsed, TokenUnknown, EnrolmentRefused: The issuing node refused.
        PeerUnreachable, HandshakeFailed: At none of the addresses there is the issuing node.
        CertificateRejected: A certificate is not valid now, usually because a clock is wrong.
        DataDirectoryError: The directory belongs to another network, or cannot be written.
    """
    clock = clock or SystemClock()
    audit = AuditLog(directory.path / "audit.log", clock=clock)
    try:
        joining = _Joining(Token.decode(token), directory, clock)
        credentials = await joining.run(timeout_s)
    except MeshError as error:
        with suppress(DataDirectoryError):  # the first error is the one to report
            await asyncio.to_thread(
                audit.append, "enrolment failed", reason=type(error).__name__, message=error.message
            )
        raise
    await asyncio.to_thread(
        audit.append, "enrolled", authority=credentials.authority_fingerprint, node=credentials.node_id
    )
    return credentials


class _Joining:
    """One attempt with one token."""

    def __init__(self, token: Token, directory: NodeDirectory, clock: Clock) -> None:
        if token.network != directory.network:
            raise TokenWrongNetwork(
                f"the token is for network {token.network!r}, and this node belongs to {directory.network!r}",
                hint=f"start the node with --network {token.network}",
            )
        self._token = token
        self._directory = directory
        self._clock = clock

    async def run(self, timeout_s: float) -> Credentials:
        """Try the addresses in order until one answers."""
        present = await asyncio.to_thread(self._present)
        if present is not None:
            return present
        if self._now() > self._token.expires_at + GRACE:
            raise self._expired()  # whoever issued it has forgotten it
        request, context = await asyncio.to_thread(self._prepare)
        failures: list[DialError] = []
        for address in self._token.addresses:
            try:
                async with asyncio.timeout(timeout_s):
                    authority = await self._pin(address)
                    chain = await self._ask(address, authority, context, request)
            except DialError as error:
                failures.append(error)
            except TimeoutError:
                failures.append(PeerUnreachable(f"{address} did not answer within {timeout_s:g} s"))
            else:
                return await asyncio.to_thread(self._install, authority, chain)
        raise self._nowhere(failures)

    def _present(self) -> Credentials | None:
        """The node's credentials, if it needs no token.

        Raises:
            DataDirectoryError: The tree belongs to another network, so that joining this one would mix them.
        """
        directory = authority_path(self._directory.network_path)
        certificate = load_certificate(directory / "ca.crt", self._directory.network)
        can_issue = (directory / "ca.key").exists()
        if certificate is None and not can_issue:
            return None
        if certificate is None or certificates.fingerprint(certificate) != self._token.authority_fingerprint:
            raise DataDirectoryError(
                f"{self._directory.network_path} already belongs to another network named {self._token.network!r}",
                hint="choose another data directory (--data-dir) to join the one of the token",
            )
        try:
            return obtain_credentials(self._directory, now=self._now())
        except InsecureKeyFile:
            raise
        except IdentityError:
            if can_issue:
                raise
            return None  # not enrolled yet, expired or damaged: what a token is for

    def _prepare(self) -> tuple[bytes, ssl.SSLContext]:
        """The signing request, and a context that shows the throw-away certificate and trusts nobody yet.

        Everything that can fail on this machine fails here, before a use of the token is spent.
        """
        ensure_identity_key(self._directory)
        request = make_renewal_request(self._directory)
        key = keys.new_tls_key()
        leaf = build_invite_leaf(self._token, key, now=self._now())
        context = bare_context(ssl.PROTOCOL_TLS_CLIENT)
        # ssl loads keys from files only.  The name is one that the next start deletes, should we crash here.
        path = self._directory.path / ".tmp-invite"
        try:
            write_atomic(path, keys.key_pem(key) + certificates.pem(leaf))
            context.load_cert_chain(path)
        finally:
            path.unlink(missing_ok=True)
        return request, context

    async def _pin(self, address: Address) -> x509.Certificate:
        """Find the token's authority among the certificates that ``address`` shows."""
        context = bare_context(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # nothing is sent; what is read is compared with the pin
        try:
            _, writer = await asyncio.open_connection(
                address.host, address.port, ssl=context, server_hostname=server_name(self._token.network)
            )
        except ssl.SSLError as error:
            raise HandshakeFailed(f"{address} does not speak TLS 1.3: {error}") from error
        except (OSError, EOFError) as error:
            raise PeerUnreachable(f"{address}: {error}") from error
        try:
            shown = _shown_certificates(writer.get_extra_info("ssl_object"))
        finally:
            writer.transport.abort()
        for der in shown:
            if hashlib.sha256(der).hexdigest() == self._token.authority_fingerprint:
                try:
                    return x509.load_der_x509_certificate(der)
                except ValueError as error:
                    raise HandshakeFailed(f"{address}: the authority's certificate cannot be read") from error
        raise HandshakeFailed(f"{address} does not belong to the network of the token")

    async def _ask(
        self, address: Address, authority: x509.Certificate, context: ssl.SSLContext, request: bytes
    ) -> bytes:
        """Send the request to a verified issuer and return the chain it answers."""
        context.load_verify_locations(cadata=certificates.der(authority))
        name = server_name(self._token.network)
        try:
            async with connect(
                f"wss://{name}{_PATH}",
                host=address.host,
                port=address.port,
                ssl=context,
                server_hostname=name,
                proxy=None,
                compression=None,
                max_size=MESSAGE_BYTES_MAX,
                open_timeout=None,
                ping_interval=None,
                close_timeout=_CLOSE_TIMEOUT_S,
                user_agent_header=None,
            ) as connection:
                self._check_issuer(connection, authority)
                await connection.send(encode_request(request))
                answer = await connection.recv()
        except InvalidStatus as error:
            body = (error.response.body or b"")[:200].decode(errors="replace").strip()
            raise EnrolmentRefused(f"{address} answered HTTP {error.response.status_code} {body}") from error
        except ssl.SSLCertVerificationError as error:
            raise self._rejected(address, error) from error
        except (WebSocketException, InvalidHandshake, OSError, EOFError) as error:
            raise self._cut_off(address, error) from error
        return decode_answer(answer)

    def _check_issuer(self, connection: ClientConnection, authority: x509.Certificate) -> None:
        secured = connection.transport.get_extra_info("ssl_object")
        if secured.selected_alpn_protocol() != ALPN:
            raise EnrolmentRefused("the issuing node does not speak this protocol")
        certificates.verify_peer(
            secured.getpeercert(binary_form=True), authority=authority, network=self._token.network, now=self._now()
        )

    def _rejected(self, address: Address, error: ssl.SSLCertVerificationError) -> MeshError:
        if "mismatch" in error.verify_message.lower():
            return TokenWrongNetwork(
                f"{address} is no node of network {self._token.network!r}: {error.verify_message}", hint=_ASK_AGAIN
            )
        return CertificateRejected(
            f"the certificate of {address} is not accepted: {error.verify_message}",
            hint="compare the clocks of both machines",
        )

    def _cut_off(self, address: Address, error: Exception) -> MeshError:
        """The issuer, whose identity was pinned a moment ago, ended the connection.

        In TLS 1.3 a refused client certificate shows only after the client's handshake, as an alert or an early end:
        the issuer does not know the invite authority, so it does not know the token.
        """
        if isinstance(error, ConnectionRefusedError):
            return PeerUnreachable(f"{address}: {error}")
        if self._now() > self._token.expires_at:
            return self._expired()
        return TokenUnknown(f"{address} does not know the token (it ended the connection: {error})", hint=_ASK_AGAIN)

    def _install(self, authority: x509.Certificate, chain: bytes) -> Credentials:
        adopt_authority(self._directory.network_path, self._directory.network, authority)
        return install_chain(self._directory, chain, authority=authority, now=self._now())

    def _nowhere(self, failures: list[DialError]) -> MeshError:
        if self._now() > self._token.expires_at:
            return self._expired()
        text = "; ".join(failure.message for failure in failures)
        hint = "check that the issuing node runs and that these addresses can be reached from here"
        wrong = any(isinstance(failure, HandshakeFailed) for failure in failures)
        kind = HandshakeFailed if wrong else PeerUnreachable
        return kind(f"no issuing node at the token's addresses: {text}", hint=hint)

    def _expired(self) -> TokenError:
        return TokenExpired(f"the token expired at {self._token.expires_at:%Y-%m-%dT%H:%M:%SZ}", hint=_ASK_AGAIN)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.wall(), UTC)


def _shown_certificates(secured: Any) -> list[bytes]:
    """The certificates the peer sent (DER), unverified.

    Public since Python 3.13; 3.11 and 3.12 have it one layer below, with objects instead of bytes.
    """
    if hasattr(secured, "get_unverified_chain"):
        shown: list[bytes] = list(secured.get_unverified_chain() or [])
    else:
        chain = secured._sslobj.get_unverified_chain() or []
        shown = [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in chain]
    return shown[:_CHAIN_MAX]
