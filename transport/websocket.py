"""Endpoints on a real network: WebSocket over mutual TLS 1.3.

This is a shell: sockets, TLS and HTTP come in, channels (:mod:`transport.channel`) come out.  The listening socket is
ours rather than asyncio's, because a connection must be counted from the moment it is accepted: before TLS there is
nobody to blame and nothing to see for a library above it, and a thousand silent connections cost a megabyte of
buffers each hundred.  At the limit the oldest unfinished handshake is cut, so silence cannot keep out a peer that
finishes in milliseconds (the idea of TCP's SYN cache).

Measured, and therefore done here: ``SSLProtocol.max_size`` is lowered, because asyncio otherwise allocates 256 KiB for
each TLS connection; compression is off; the library's own keepalive is off, because it cannot fire while a write is
stuck (:mod:`transport.session` does it); ``TCP_USER_TIMEOUT`` makes the kernel give up on a peer that does not
acknowledge, where its default is a quarter of an hour.
"""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import contextlib
import logging
import math
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final, Protocol, TypedDict

from cryptography import x509
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.connection import Connection
from websockets.asyncio.server import Server, ServerConnection
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, WebSocketException
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN
from websockets.protocol import Protocol as WebSocketProtocol
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from .channel import Channel, ChannelClosed, ChannelLink
from .clock import Clock
from .config import LinkConfig
from .endpoint import BaseEndpoint
from .errors import CertificateRejected, HandshakeFailed, ListenError, PeerUnreachable
from .identity.certificates import claimed_subject, verify_peer
from .identity.names import ALPN, server_name
from .identity.tls import TlsContexts
from .identity.trail import AuditTrail
from .link import CloseReason, LinkHandler
from .logs import get_logger
from .tasks import TaskScope
from .types import Address, NetworkName, NodeId
from .wire import FRAME_BYTES_MAX

log = get_logger("mesh.transport")

#: Where nodes connect, and where holders of an invite do.
MESH_PATH: Final = "/mesh"
ENROL_PATH: Final = "/enrol"

_WS_PROTOCOL_ERROR: Final = 1002
_WS_INVALID_DATA: Final = 1007
#: Bytes that asyncio reads from TLS at once: one TLS record.
_TLS_READ_BYTES: Final = 16_384
_BACKLOG: Final = 1024
#: How long one of several addresses of a name may take before the next is tried.
_CONNECT_TIMEOUT_S: Final = 1.0
#: Unsent bytes above which a WebSocket ping gets no pong: its sender asks without reading the answers.
_PONG_BACKLOG_BYTES: Final = 1 << 20
#: What OpenSSL calls a handshake that failed, and the cause that we count and log it under; others: "tls".
_TLS_CAUSES: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no_certificate",
    "CERTIFICATE_VERIFY_FAILED": "certificate",
    "UNSUPPORTED_PROTOCOL": "tls_version",
    "HTTP_REQUEST": "plain_http",
}
#: How long to pause accepting when the process is out of file descriptors.
_ACCEPT_PAUSE_S: Final = 0.1
# The library reports through logging; what matters is reported here as refusals and close reasons.
_library_log = logging.getLogger("mesh.transport.websocket")
_library_log.setLevel(logging.CRITICAL)


class EnrolmentService(Protocol):
    """Serves connections of holders of an invite."""

    async def serve(self, connection: ServerConnection, leaf_der: bytes) -> None:
        """Talk to one of them; the certificate proves only that it holds an invite authority's key."""
        ...


class WebSocketChannel:
    """Frames as binary messages of one WebSocket connection."""

    __slots__ = ("_connection", "expires_s", "remote_address")

    def __init__(self, connection: Connection, expires_s: float = math.inf) -> None:
        self._connection = connection
        host, port = connection.remote_address[:2]
        self.remote_address = Address(host, port)
        self.expires_s = expires_s
        """When the certificate that the peer showed ends, seconds since the epoch."""

    async def send(self, frame: bytes) -> None:
        """See :class:`transport.channel.Channel`."""
        connection = self._connection
        protocol = connection.protocol
        try:
            if protocol.state is OPEN and connection.send_in_progress is None and not connection.transport.is_closing():
                # What the library's send() comes to for one whole message, in a third of the time.
                protocol.send_binary(frame)
                connection.send_data()
                if connection.paused:
                    await connection.drain()
            else:
                await connection.send(frame)
        except ConnectionClosed as closed:
            raise _channel_closed(closed) from None

    async def receive(self) -> bytes:
        """See :class:`transport.channel.Channel`."""
        try:
            return await self._connection.recv(decode=False)
        except ConnectionClosed as closed:
            raise _channel_closed(closed) from None

    async def close(self, code: int, detail: str) -> None:
        """See :class:`transport.channel.Channel`."""
        # RFC 6455 section 5.5: a control frame carries at most 125 bytes, two of which are the code.
        reason = detail.encode()[:123].decode(errors="ignore")
        await self._connection.close(code, reason)

    def abort(self) -> None:
        """See :class:`transport.channel.Channel`."""
        self._connection.transport.abort()


def _channel_closed(closed: ConnectionClosed) -> ChannelClosed:
    if closed.rcvd is not None and (closed.sent is None or closed.rcvd_then_sent):
        return ChannelClosed(closed.rcvd.code, closed.rcvd.reason)
    if closed.sent is not None:
        # We closed, or the library found the peer out: a message too big, or bytes that are not WebSocket.
        wrong = closed.sent.code in {_WS_PROTOCOL_ERROR, _WS_INVALID_DATA}
        code = CloseReason.PROTOCOL_ERROR if wrong else closed.sent.code
        return ChannelClosed(code, closed.sent.reason, by_peer=False)
    return ChannelClosed(CloseReason.CONNECTION_LOST, str(closed.__cause__ or ""))


class _BoundedPongs(WebSocketProtocol):
    """A protocol that does not answer pings without end to a peer that does not read.

    The library writes pongs past every bound of its own, since they are not awaited; 100 MB a minute were seen.
    RFC 6455 section 5.5.3 lets a receiver answer only the most recent ping.
    """

    transport: asyncio.WriteTransport | None = None

    def send_frame(self, frame: Frame) -> None:
        if (
            frame.opcode is Opcode.PONG
            and self.transport is not None
            and self.transport.get_write_buffer_size() > _PONG_BACKLOG_BYTES
        ):
            return
        super().send_frame(frame)


class _ServerProtocol(_BoundedPongs, ServerProtocol):
    """The accepting side's."""


class _ClientProtocol(_BoundedPongs, ClientProtocol):
    """The dialling side's."""


class _Accepted(ServerConnection):
    """A server connection whose life is run by the endpoint instead of the library's server."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        Connection.connection_made(self, transport)


class _NoServer(Server):
    """What a server connection asks its server: whether it still serves."""

    def __init__(self) -> None:
        self.serving = True

    def is_serving(self) -> bool:
        return self.serving


class WebSocketEndpoint(BaseEndpoint):
    """One node's links on a real network.

    Args:
        network: The network's name.
        node_id: This node; its certificate must say the same.
        incarnation: Its incarnation.
        contexts: TLS contexts; renewed certificates are picked up from it.
        listen: Where to listen; port 0 takes any free one (see :attr:`listening`); an empty host is all interfaces.
        handler: Who is told about links.
        advertise: What hellos say; default: where it listens.
        clock: Where to read the time.
        config: Limits and timing.
        enrolment: Who serves holders of invites; ``None``: nobody.
        trail: Where refused certificates and identities are recorded; ``None``: only in the log.
        software: Name and version for the hello.
        features: What this node can do or demands, for the hello.
    """

    def __init__(
        self,
        network: NetworkName,
        node_id: NodeId,
        incarnation: int,
        contexts: TlsContexts,
        listen: Address,
        handler: LinkHandler,
        *,
        advertise: Callable[[], tuple[Address, ...]] | tuple[Address, ...] | None = None,
        clock: Clock | None = None,
        config: LinkConfig | None = None,
        enrolment: EnrolmentService | None = None,
        trail: AuditTrail | None = None,
        software: str = "peermesh",
        features: tuple[str, ...] = (),
    ) -> None:
        super().__init__(
            network,
            node_id,
            incarnation,
            handler,
            clock=clock,
            config=config,
            advertise=advertise if advertise is not None else self._where_it_listens,
            software=software,
            features=features,
        )
        _shrink_tls_buffers()
        self.contexts = contexts
        self.enrolment = enrolment
        self._trail = trail
        self.listening = listen
        """Where it listens; the port is the real one after :meth:`start`."""
        self._sockets: list[socket.socket] = []
        self._acceptors = TaskScope(f"listener {node_id}")
        self._server = _NoServer()
        # Accepted connections before they are links, oldest first, with their hosts; bounded by handshakes_max.
        self._pending: dict[asyncio.Task[None], str] = {}
        # Accepted sockets whose task has not begun; one that is cancelled before would leave its socket open.
        self._unserved: dict[asyncio.Task[None], socket.socket] = {}
        # Connections whose transport is not yet gone.
        self._connections: dict[Connection, None] = {}

    # Listening.

    def _where_it_listens(self) -> tuple[Address, ...]:
        return (self.listening,) if self.listening.port else ()

    async def _listen(self) -> None:
        host, port = self.listening.host, self.listening.port
        try:
            self._sockets = await _bind(host, port, self.config)
        except OSError as error:
            raise ListenError(
                f"cannot listen on {self.listening}: {error.strerror or error}",
                hint=f"is port {port} in use? choose another, or 0 for any free one",
            ) from error
        self.listening = Address(host, self._sockets[0].getsockname()[1])
        for listener in self._sockets:
            self._acceptors.spawn(self._accept(listener), name="accept")

    async def _stop_listening(self) -> None:
        self._server.serving = False
        for task in list(self._pending):
            task.cancel()
        # The accept tasks end first: a socket must not be closed while the loop watches it.
        await self._acceptors.close()
        for listener in self._sockets:
            listener.close()

    async def _accept(self, listener: socket.socket) -> None:
        """Accept for ever."""
        while True:
            await _readable(listener)
            # Accepted here and not in the loop: a task that is cancelled while one waits would lose the other's answer.
            try:
                connected, peer = listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                # Out of descriptors, or the peer was gone before we came: neither is a reason to stop.
                self.refuse("accept", error=str(error))
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            connected.setblocking(False)
            host = str(peer[0])
            self._make_room(host)
            task = self.tasks.spawn(self._serve(connected, host), name=f"serve {host}")
            if task is None:
                connected.close()
                continue
            self._pending[task] = host
            self._unserved[task] = connected
            task.add_done_callback(self._served)

    def _make_room(self, host: str) -> None:
        """Cut the oldest unfinished handshake, of this host or of any, if one more would be too many."""
        from_host = [task for task, other in self._pending.items() if other == host]
        if len(from_host) >= self.config.handshakes_per_host_max:
            oldest = from_host[0]
        elif len(self._pending) >= self.config.handshakes_max:
            oldest = next(iter(self._pending))
        else:
            return
        self.refuse("handshake_evicted", host=self._pending.pop(oldest))
        oldest.cancel()

    def _begun(self) -> None:
        # Not in the task's own frame: a frame that holds its task is freed by the garbage collector only.
        task = asyncio.current_task()
        assert task is not None
        del self._unserved[task]

    def _served(self, task: asyncio.Task[None]) -> None:
        self._pending.pop(task, None)
        if (connected := self._unserved.pop(task, None)) is not None:
            connected.close()  # cancelled before it had begun

    async def _serve(self, connected: socket.socket, host: str) -> None:
        """One accepted connection from TLS to the end of its link."""
        accepted_s = self.clock.monotonic()
        self._begun()
        try:
            async with asyncio.timeout(self.config.handshake_timeout_s):
                connection = await self._handshake(connected, host)
                if connection is None:
                    return
                assert connection.request is not None, "the handshake ended with a request"
                leaf = _peer_certificate(connection)
                if connection.request.path == ENROL_PATH:
                    assert self.enrolment is not None, "checked in _check_request"
                    await self.enrolment.serve(connection, leaf)
                    await connection.close()
                    return
        except TimeoutError:
            self.refuse("handshake_timeout", host=host)
            return
        # Verified once already, before the upgrade; this reads the name again.
        try:
            peer = self._verify(leaf, None)
        except CertificateRejected as error:
            self._refuse_certificate(host, error.message, leaf)
            connection.transport.abort()
            return
        channel = WebSocketChannel(connection, _expiry_s(leaf))
        link = self._begin(channel, peer, dialled=False, since_s=accepted_s)
        await self._run_pending(link)

    async def _run_pending(self, link: ChannelLink) -> None:
        """Run a link in this task; it counts as a handshake until it is decided."""
        task = asyncio.current_task()
        assert task is not None
        link.decided.add_done_callback(lambda _: self._pending.pop(task, None))
        await link.run()

    async def _handshake(self, connected: socket.socket, host: str) -> _Accepted | None:
        """TLS and the WebSocket upgrade; ``None`` if it was refused, which is counted."""
        config, loop = self.config, asyncio.get_running_loop()
        try:
            _, connection = await loop.connect_accepted_socket(
                self._new_accepted,
                connected,
                ssl=self.contexts.server,
                ssl_handshake_timeout=config.handshake_timeout_s,
                ssl_shutdown_timeout=config.close_timeout_s,
            )
        except (OSError, EOFError) as error:
            # SSLError and timeouts are OSErrors.
            cause = _TLS_CAUSES.get(getattr(error, "reason", None) or "", "tls")
            text = str(error) or type(error).__name__
            if cause == "certificate":
                # OpenSSL does not say whose it was.
                self._refuse_certificate(host, text)
            else:
                self.refuse(cause, host=host, error=text)
            return None
        self._track(connection)
        try:
            await connection.handshake(self._check_request, server_header=None)
        except BaseException:
            # Whatever it was, cancellation included: nobody else would close the connection.
            connection.transport.abort()
            raise
        if connection.state is not OPEN:
            if connection.response is None or connection.response.status_code not in _COUNTED:
                self.refuse("http", host=host)
            # Answered with an HTTP error: let it out, then end.
            connection.transport.close()
            return None
        return connection

    def _new_accepted(self) -> _Accepted:
        protocol = _ServerProtocol(max_size=FRAME_BYTES_MAX, logger=_library_log)
        return _Accepted(protocol, self._server, **_options(self.config))

    def _check_request(self, connection: ServerConnection, request: Request) -> Response | None:
        """Refuse what TLS alone lets through; the answer is an HTTP status."""
        host = str(connection.remote_address[0])
        if _alpn(connection) != ALPN:
            self.refuse("alpn", host=host)
            return connection.respond(HTTPStatus.MISDIRECTED_REQUEST, f"speak {ALPN}\n")
        if request.path == ENROL_PATH and self.enrolment is not None:
            return None
        if request.path != MESH_PATH:
            self.refuse("path", host=host, path=request.path[:80])
            return connection.respond(HTTPStatus.NOT_FOUND, "no such path\n")
        leaf = _peer_certificate(connection)
        try:
            self._verify(leaf, None)
        except CertificateRejected as error:
            self._refuse_certificate(host, error.message, leaf)
            return connection.respond(HTTPStatus.FORBIDDEN, f"{error.message}\n")
        return None

    def _refuse_certificate(self, host: str, why: str, leaf: bytes = b"", *, dialled: bool = False) -> None:
        """Count, log and record a certificate that does not make its holder a member."""
        if dialled:
            self.counters["dials_certificate_rejected"] += 1
        else:
            self.refuse("certificate", host=host, error=why)
        self._record("certificate rejected", remote=host, message=why, claimed=_claimed(leaf), dialled=dialled)

    def _record(self, event: str, /, **fields: str | bool) -> None:
        if self._trail is not None:
            self._trail.note(event, **fields)

    def breach(self, link: ChannelLink, reason: CloseReason, detail: str) -> None:
        """See :class:`transport.endpoint.BaseEndpoint`."""
        super().breach(link, reason, detail)
        if reason is CloseReason.IDENTITY_MISMATCH:
            self._record("identity refused", remote=str(link.remote_address), certified=link.certified, message=detail)

    # Dialling.

    async def _connect(self, address: Address, expected: NodeId | None) -> tuple[Channel, NodeId]:
        name = server_name(self.network, expected)
        connection = await self._open(address, name)
        leaf = b""
        try:
            if _alpn(connection) != ALPN:
                raise HandshakeFailed(f"{address} does not speak {ALPN}")
            leaf = _peer_certificate(connection)
            peer = self._verify(leaf, expected)
            await connection.handshake(user_agent_header=None)
        except InvalidStatus as error:
            connection.transport.abort()
            text = (error.response.body or b"")[:200].decode(errors="replace").strip()
            raise HandshakeFailed(f"{address} refused the connection: {error.response.status_code} {text}") from error
        except (InvalidHandshake, WebSocketException, EOFError, OSError) as error:
            connection.transport.abort()
            raise HandshakeFailed(
                f"{address} ended the handshake: {error}",
                hint="it may have refused this node's certificate; its log says why",
            ) from error
        except CertificateRejected as error:
            connection.transport.abort()
            self._refuse_certificate(str(address), error.message, leaf, dialled=True)
            raise HandshakeFailed(f"{address}: {error.message}", hint=error.hint) from error
        except BaseException:
            # Whatever it was, cancellation included: nobody else would close the connection.
            connection.transport.abort()
            raise
        return WebSocketChannel(connection, _expiry_s(leaf)), peer

    async def _open(self, address: Address, name: str) -> ClientConnection:
        """TCP and TLS."""
        config = self.config
        uri = parse_uri(f"wss://{name}:{address.port}{MESH_PATH}")

        def new_connection() -> ClientConnection:
            protocol = _ClientProtocol(uri, max_size=FRAME_BYTES_MAX, logger=_library_log)
            return ClientConnection(protocol, **_options(config))

        connected: socket.socket | None = None
        try:
            connected = await _connect_tcp(address)
            transport, connection = await asyncio.get_running_loop().create_connection(
                new_connection,
                sock=connected,
                ssl=self.contexts.client,
                server_hostname=name,
                ssl_handshake_timeout=config.dial_timeout_s,
                ssl_shutdown_timeout=config.close_timeout_s,
            )
        except asyncio.CancelledError:
            if connected is not None:
                # asyncio forgets a connection that is cancelled before its TLS has begun.  Closing the socket under
                # it would confuse the loop; the end of the stream makes it close everything itself.
                with contextlib.suppress(OSError):
                    connected.shutdown(socket.SHUT_RDWR)
            raise
        except ssl.SSLCertVerificationError as error:
            self._refuse_certificate(str(address), error.verify_message, dialled=True)
            raise HandshakeFailed(f"{address} is not {name}, or not of this network: {error.verify_message}") from error
        except (ssl.SSLError, ConnectionResetError, EOFError) as error:
            raise HandshakeFailed(f"{address} does not speak TLS as peermesh does: {error}") from error
        except OSError as error:
            raise PeerUnreachable(f"{address}: {error.strerror or error}") from error
        _limit_silence(transport.get_extra_info("socket"), config)
        self._track(connection)
        return connection

    # Both.

    def _verify(self, leaf: bytes, expected: NodeId | None) -> NodeId:
        return verify_peer(
            leaf,
            authority=self.contexts.credentials.authority_certificate,
            network=self.network,
            now=datetime.fromtimestamp(self.clock.wall(), UTC),
            expected=expected,
        )

    def _track(self, connection: Connection) -> None:
        self._connections[connection] = None
        if isinstance(connection.protocol, _BoundedPongs):
            connection.protocol.transport = connection.transport
        connection.connection_lost_waiter.add_done_callback(lambda _: self._connections.pop(connection, None))

    def _begin(
        self,
        channel: Channel,
        certified: NodeId,
        *,
        dialled: bool,
        expected: NodeId | None = None,
        since_s: float | None = None,
    ) -> ChannelLink:
        link = super()._begin(channel, certified, dialled=dialled, expected=expected, since_s=since_s)
        if isinstance(channel, WebSocketChannel):
            link.expires_s = channel.expires_s
        return link

    async def _released(self) -> None:
        waiters = [connection.connection_lost_waiter for connection in self._connections]
        for connection in list(self._connections):
            connection.transport.abort()
        if waiters:
            await asyncio.wait(waiters, timeout=self.config.close_timeout_s)


#: HTTP answers that were counted where they were given.
_COUNTED: Final = (HTTPStatus.MISDIRECTED_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.FORBIDDEN)


class _Options(TypedDict):
    ping_interval: float | None
    close_timeout: float
    max_queue: int
    write_limit: int


def _options(config: LinkConfig) -> _Options:
    return {
        "ping_interval": None,
        "close_timeout": config.close_timeout_s,
        "max_queue": config.receive_frames_max,
        "write_limit": config.write_buffer_bytes,
    }


def _peer_certificate(connection: Connection) -> bytes:
    """The peer's leaf in DER; TLS demanded one."""
    tls: ssl.SSLObject = connection.transport.get_extra_info("ssl_object")
    return tls.getpeercert(binary_form=True) or b""


def _expiry_s(leaf: bytes) -> float:
    """When a certificate that was verified ends, seconds since the epoch."""
    return x509.load_der_x509_certificate(leaf).not_valid_after_utc.timestamp()


def _claimed(leaf: bytes) -> str:
    """Whom a refused certificate names, if that can be read."""
    try:
        return claimed_subject(leaf).uri
    except CertificateRejected:
        return ""


def _alpn(connection: Connection) -> str | None:
    tls: ssl.SSLObject = connection.transport.get_extra_info("ssl_object")
    return tls.selected_alpn_protocol()


async def _readable(listener: socket.socket) -> None:
    """Return when a connection waits to be accepted."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(listener, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(listener)


async def _connect_tcp(address: Address) -> socket.socket:
    """A connected socket; of a name's addresses the first that answers, one tried after the other."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    failure = OSError(f"{address.host} has no address")
    for family, kind, protocol, _, target in found:
        connecting = socket.socket(family, kind, protocol)
        try:
            connecting.setblocking(False)
            async with asyncio.timeout(_CONNECT_TIMEOUT_S if len(found) > 1 else None):
                await loop.sock_connect(connecting, target)
        except OSError as error:  # a TimeoutError is one
            connecting.close()
            failure = error
        except BaseException:  # above all cancellation: nobody else would close it
            connecting.close()
            raise
        else:
            return connecting
    raise failure


async def _bind(host: str, port: int, config: LinkConfig) -> list[socket.socket]:
    """Listening sockets for every address of ``host``, all on one port."""
    found = await asyncio.get_running_loop().getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, target in dict.fromkeys(found):
            listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            sockets.append(listener)
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # IPv4 has its own socket where it is wanted.
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Accepted sockets inherit it.
            _limit_silence(listener, config)
            listener.bind((target[0], port, *target[2:]))
            listener.listen(_BACKLOG)
            # Port 0: all addresses get the port that the first one got.
            port = listener.getsockname()[1]
    except OSError:
        for listener in sockets:
            listener.close()
        raise
    return sockets


def _limit_silence(connected: socket.socket, config: LinkConfig) -> None:
    """Let the kernel give up when sent data is not acknowledged for the keepalive timeout (Linux)."""
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None:
        connected.setsockopt(socket.IPPROTO_TCP, option, int(config.keepalive_timeout_s * 1000))


def _shrink_tls_buffers() -> None:
    """Make asyncio read TLS in records of 16 KiB: it allocates its buffer, 256 KiB otherwise, for each connection.

    The attribute is not documented but has been there since Python 3.11; without it links are only larger.
    """
    if getattr(asyncio.sslproto.SSLProtocol, "max_size", 0) > _TLS_READ_BYTES:
        asyncio.sslproto.SSLProtocol.max_size = _TLS_READ_BYTES
