"""TLS contexts for both ends of a link: TLS 1.3 only, certificates on both sides, no resumption.

Session tickets are off because a resumed session skips the certificate checks: a revoked or expired peer got back in
during tests (RFC 8446 section 2.2 leaves the lifetime to the server).  ``VERIFY_X509_STRICT`` refuses what RFC 5280
calls malformed.

A context's trust store can only grow, so contexts are never changed to forget something: a new one is built, and
whoever accepts connections asks for the current one each time.  Connections that are already open stay as they are.
(An SNI callback could switch contexts as well, but Python prints a traceback for every name that is not ASCII, which
lets any stranger fill the log.)
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable

from cryptography import x509

from transport.errors import DataDirectoryError

from . import certificates
from .credentials import Credentials
from .names import ALPN


class TlsContexts:
    """The contexts of one node; certificates and trust change live.

    Read :attr:`client` anew for each dial and :attr:`server` for each accepted connection.
    """

    def __init__(self, credentials: Credentials) -> None:
        """Build both contexts.  Reads the key files, so on an event loop use ``asyncio.to_thread``.

        Raises:
            DataDirectoryError: The key or chain file cannot be loaded.
        """
        self._credentials = credentials
        self._invite_authorities: tuple[x509.Certificate, ...] = ()
        self._client = _context(ssl.PROTOCOL_TLS_CLIENT, credentials)
        self._server = _context(ssl.PROTOCOL_TLS_SERVER, credentials)

    @property
    def credentials(self) -> Credentials:
        """What the contexts were last built from."""
        return self._credentials

    @property
    def server(self) -> ssl.SSLContext:
        """For one connection that was just accepted: the newest certificate and trust."""
        return self._server

    @property
    def client(self) -> ssl.SSLContext:
        """For dialling; trusts the network's authority only.  Pass ``server_hostname=names.server_name(...)``."""
        return self._client

    @property
    def invite_authorities(self) -> tuple[x509.Certificate, ...]:
        """The invite authorities that may open a connection (to be enrolled, nothing else)."""
        return self._invite_authorities

    def reload(self, credentials: Credentials) -> None:
        """Use a new certificate for every handshake from now on; open connections go on.

        Raises:
            DataDirectoryError: The new files cannot be loaded; the old contexts stay in use.
        """
        client = _context(ssl.PROTOCOL_TLS_CLIENT, credentials)
        server = _context(ssl.PROTOCOL_TLS_SERVER, credentials, self._invite_authorities)
        self._credentials, self._client, self._server = credentials, client, server

    def admit_invite_authority(self, certificate: x509.Certificate) -> None:
        """Let the holder of an invite complete a handshake.  It proves no membership: see ``verify_peer``."""
        if certificate not in self._invite_authorities:
            self._server.load_verify_locations(cadata=certificates.der(certificate))
            self._invite_authorities = (*self._invite_authorities, certificate)

    def set_invite_authorities(self, authorities: Iterable[x509.Certificate]) -> None:
        """Make these the only invite authorities; the others can no longer complete a handshake."""
        wanted = tuple(authorities)
        if wanted != self._invite_authorities:
            self._server = _context(ssl.PROTOCOL_TLS_SERVER, self._credentials, wanted)
            self._invite_authorities = wanted


def _context(
    protocol: int, credentials: Credentials, more_authorities: Iterable[x509.Certificate] = ()
) -> ssl.SSLContext:
    context = bare_context(protocol)
    try:
        context.load_cert_chain(credentials.tls_chain_path, credentials.tls_key_path)
    except (OSError, ssl.SSLError) as error:
        raise DataDirectoryError(
            f"{credentials.tls_chain_path} and {credentials.tls_key_path} cannot be loaded: {error}",
            hint="restart the node; if that does not help, join again with a new token",
        ) from error
    for authority in (credentials.authority_certificate, *more_authorities):
        context.load_verify_locations(cadata=certificates.der(authority))
    return context


def bare_context(protocol: int) -> ssl.SSLContext:
    """A context with this protocol's rules and neither certificate nor trust yet.

    Args:
        protocol: ``ssl.PROTOCOL_TLS_SERVER`` or ``ssl.PROTOCOL_TLS_CLIENT``.
    """
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols([ALPN])
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    return context
