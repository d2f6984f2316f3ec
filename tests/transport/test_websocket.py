"""What a node on a real network does with strangers, impostors, the silent and the stalled."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import identities
import pytest
from links import FAST, LIFE, Node, WebSocketBed, message
from support import eventually
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from transport import websocket as websocket_module
from transport.channel import ChannelLink
from transport.config import LinkConfig
from transport.errors import DialError, HandshakeFailed, ListenError, PeerRefused
from transport.identity.names import ALPN
from transport.identity.tls import TlsContexts
from transport.link import CloseReason
from transport.types import Address, Lane, network_name, node_id
from transport.websocket import WebSocketChannel
from transport.wire import Envelope, Hello, Kind, decode_frame, encode_frame, encode_hello, pack


@pytest.fixture
async def bed(tmp_path: Path) -> AsyncIterator[WebSocketBed]:
    """A network on loopback."""
    async with WebSocketBed(tmp_path) as made:
        yield made


@contextlib.asynccontextmanager
async def stranger(
    bed: WebSocketBed, node: Node, name: str = "zed", *, path: str = "/mesh"
) -> AsyncIterator[ClientConnection]:
    """A WebSocket with good certificates whose frames are made by hand."""
    credentials = await asyncio.to_thread(identities.make_credentials, bed.path, "net", name)
    contexts = await asyncio.to_thread(TlsContexts, credentials)
    async with connect(
        f"wss://{node.address}{path}",
        ssl=contexts.client,
        server_hostname="net.peermesh.internal",
        compression=None,
        proxy=None,
        close_timeout=1,
        ping_interval=None,
    ) as connection:
        yield connection


def greeting(name: str = "zed", network: str = "net", **more: object) -> bytes:
    """A first frame."""
    hello = Hello(network_name(network), node_id(name), LIFE)
    return encode_frame([encode_hello(replace(hello, **more))])  # type: ignore[arg-type]  # fields by name


async def closing(connection: ClientConnection) -> tuple[int, str]:
    """Read until the node closes; what it gave as its reason."""
    try:
        async with asyncio.timeout(5):
            while True:
                await connection.recv()
    except ConnectionClosed as closed:
        return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd is not None else (1006, "")


async def answers(bed: WebSocketBed, node: Node, name: str = "good") -> None:
    """A well-behaved peer can still open a link."""
    peer = await bed.node(name)
    link = await peer.dial(node)
    link.send(message(b"ping"), Lane.NORMAL)
    await eventually(lambda: any(envelope.body == b"ping" for envelope in node.handler.received))


# --- hello ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (greeting(network="elsewhere"), CloseReason.WRONG_NETWORK),
        (greeting(name="somebody-else"), CloseReason.IDENTITY_MISMATCH),
        (greeting(version_min=7, version_max=9), CloseReason.UNSUPPORTED_VERSION),
        (encode_frame([message(b"too early")]), CloseReason.PROTOCOL_ERROR),
        (encode_frame([Envelope(Kind.HELLO, 0, None, None, b"\xc1")]), CloseReason.PROTOCOL_ERROR),
        (encode_frame([Envelope(Kind.HELLO, 0, None, None, pack({"network": "net"}))]), CloseReason.PROTOCOL_ERROR),
        (encode_frame([Envelope(Kind.PING, 0, None, None, b"x")]), CloseReason.PROTOCOL_ERROR),
        (greeting() + b"trailing", CloseReason.PROTOCOL_ERROR),
        (b"", CloseReason.PROTOCOL_ERROR),
    ],
    ids=["network", "node id", "version", "data first", "garbage", "incomplete", "ping first", "trailing", "empty"],
)
async def test_a_wrong_hello_is_refused_with_its_code(bed: WebSocketBed, first: bytes, code: CloseReason) -> None:
    """Each mistake in the first frame has its close code and text; no link opens; the node goes on."""
    node = await bed.node("a")
    async with stranger(bed, node) as connection:
        await connection.send(first)
        got, text = await closing(connection)

    assert got == code
    assert text
    assert not node.handler.opened
    await eventually(lambda: node.endpoint.statistics().get(f"handshakes_failed_{code.name.lower()}") == 1)
    await answers(bed, node)


async def test_the_version_refusal_names_both_ranges(bed: WebSocketBed) -> None:
    """Whoever is too old or too new can read which versions the node speaks."""
    node = await bed.node("a")
    async with stranger(bed, node) as connection:
        await connection.send(greeting(version_min=7, version_max=9))
        _, text = await closing(connection)

    assert "1 to 1" in text
    assert "7 to 9" in text


async def test_a_silent_stranger_is_cut_after_the_handshake_timeout(bed: WebSocketBed) -> None:
    """TLS and WebSocket but no hello: closed in time."""
    node = await bed.node("a", config=replace(FAST, handshake_timeout_s=0.3))
    async with stranger(bed, node) as connection:
        with pytest.raises(ConnectionClosed):
            async with asyncio.timeout(5):
                while True:
                    await connection.recv()

    await eventually(lambda: node.endpoint.statistics().get("handshakes_failed_timed_out") == 1)
    await answers(bed, node)


# --- frames -----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def opened(bed: WebSocketBed, node: Node) -> AsyncIterator[ClientConnection]:
    """A hand-made link that has passed the handshake; "zed" follows, "a" decides."""
    async with stranger(bed, node) as connection:
        await connection.send(greeting())
        await connection.send(encode_frame([Envelope(Kind.ACCEPT, 0, None, None, b"")]))
        await eventually(lambda: node.handler.opened)
        yield connection


_DEEP = b"\x91" * 2000 + b"\xc0"
_BOMB = b"\xdc\x04\x00" + (b"\xdc\x04\x00" + b"\x91\xc0" * 1024) * 500


@pytest.mark.parametrize(
    "frame",
    [b"\xc1", b"\x91\x95\x20\x00", _DEEP, _BOMB, b"\x91\x80", b"hello", encode_frame([message()]) * 2],
    ids=["reserved byte", "truncated", "deep", "bomb", "map", "text", "two frames"],
)
async def test_a_bad_frame_closes_its_link_only(bed: WebSocketBed, frame: bytes) -> None:
    """Garbage on an open link: PROTOCOL_ERROR with a text; another link to the same node is unaffected."""
    node, other = await bed.node("a"), await bed.node("other")
    link = await other.dial(node)
    async with opened(bed, node) as connection:
        await connection.send(frame)
        code, text = await closing(connection)

    assert code == CloseReason.PROTOCOL_ERROR
    assert text
    await eventually(lambda: node.handler.closed)
    assert node.handler.closed[0][0].peer.node_id == "zed"
    assert node.handler.reasons == [CloseReason.PROTOCOL_ERROR]
    assert link.is_open
    assert node.endpoint.statistics()["links_closed_protocol_error"] == 1


async def test_an_oversized_frame_is_refused_before_it_is_read(bed: WebSocketBed) -> None:
    """More than FRAME_BYTES_MAX: closed with 1009."""
    node = await bed.node("a")
    async with opened(bed, node) as connection:
        with contextlib.suppress(ConnectionClosed):
            await connection.send(bytes(4 << 20))
        code, _ = await closing(connection)

    assert code == CloseReason.MESSAGE_TOO_BIG
    await eventually(lambda: node.handler.reasons == [CloseReason.MESSAGE_TOO_BIG])


async def test_unknown_kinds_and_fields_of_a_later_version_are_tolerated(bed: WebSocketBed) -> None:
    """An unknown kind reaches the handler, an unknown session kind and trailing fields are ignored."""
    node = await bed.node("a")
    async with opened(bed, node) as connection:
        await connection.send(pack([[14, 0, None, None, b"", "new"], [200, 0, None, None, b"x", 1, "new", None]]))
        await eventually(lambda: node.handler.received)

    assert node.handler.received == [Envelope(200, 0, None, None, b"x")]


async def test_a_flood_of_pings_is_answered_without_growing(bed: WebSocketBed) -> None:
    """Pongs wait in a bounded lane; the node stays well."""
    node = await bed.node("a", config=replace(FAST, lane_envelopes_max=100))
    async with opened(bed, node) as connection:
        ping = Envelope(Kind.PING, 0, None, None, b"n" * 8)
        await connection.send(encode_frame([ping] * 1000))
        pongs = 0
        while pongs < 100:
            pongs += sum(e.kind == Kind.PONG for e in decode_frame(await connection.recv(decode=False)))

    assert not node.handler.received


# --- TLS --------------------------------------------------------------------------------------------------------


def _bare(*, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = version
    context.set_alpn_protocols([ALPN])
    return context


async def _read_all(address: Address, data: bytes, context: ssl.SSLContext | None) -> bytes:
    try:
        reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
    except (OSError, ssl.SSLError) as error:
        return type(error).__name__.encode()
    try:
        writer.write(data)
        async with asyncio.timeout(5):
            return await reader.read()
    except (OSError, ssl.SSLError) as error:
        return type(error).__name__.encode()
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()


_UPGRADE = (
    b"GET /mesh HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.mark.parametrize(
    ("data", "make_context", "cause"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", lambda: None, "plain_http"),
        (_UPGRADE, lambda: None, "plain_http"),
        (b"\x00" * 100, lambda: None, "tls"),
        (_UPGRADE, _bare, "no_certificate"),
        (_UPGRADE, lambda: _bare(version=ssl.TLSVersion.TLSv1_2), "tls_version"),
    ],
    ids=["plain http", "plain ws", "garbage", "no certificate", "tls 1.2"],
)
async def test_what_is_not_mutual_tls_13_gets_nothing(
    bed: WebSocketBed, data: bytes, make_context: Callable[[], ssl.SSLContext | None], cause: str
) -> None:
    """No HTTP answer, no WebSocket, a counted refusal, and the node goes on."""
    node = await bed.node("a")

    answer = await _read_all(node.address, data, make_context())

    assert b"HTTP" not in answer
    await eventually(lambda: node.endpoint.statistics().get(f"refused_{cause}") == 1)
    await answers(bed, node)


@pytest.mark.parametrize(
    "make",
    [
        identities.make_expired,
        identities.make_not_yet_valid,
        identities.make_of_other_authority,
        identities.make_self_signed,
        identities.make_of_other_network,
    ],
)
async def test_a_bad_certificate_opens_no_link(bed: WebSocketBed, make: Callable[..., object]) -> None:
    """Neither as dialler nor as listener, and the dialler gets a typed error."""
    good = await bed.node("good-one")
    credentials = await asyncio.to_thread(make, bed.path, "net", "bad")
    bad = await bed.node("bad", credentials=credentials)

    with pytest.raises(DialError):
        await bad.endpoint.dial(good.address)
    with pytest.raises(HandshakeFailed):
        await good.endpoint.dial(bad.address)
    assert not good.handler.opened
    assert not bad.handler.opened
    refusals = good.endpoint.statistics()
    assert refusals.get("refused_tls", 0) + refusals.get("refused_certificate", 0) >= 1


async def test_a_valid_certificate_of_another_node_is_refused_at_hello(bed: WebSocketBed) -> None:
    """A node that says one name while its certificate says another is cut with IDENTITY_MISMATCH."""
    good = await bed.node("good-one")
    credentials = await asyncio.to_thread(identities.make_of_wrong_node, bed.path, "net", "liar", named="honest")
    liar = await bed.node("liar", credentials=credentials)

    with pytest.raises(PeerRefused) as refusal:
        await liar.endpoint.dial(good.address)
    assert refusal.value.code == CloseReason.IDENTITY_MISMATCH
    assert not good.handler.opened


async def test_plain_https_with_a_certificate_gets_an_http_error(bed: WebSocketBed) -> None:
    """A member that asks for a page or another path gets a status, not a link."""
    node = await bed.node("a")
    with pytest.raises(InvalidStatus) as refusal:
        async with stranger(bed, node, path="/admin"):
            pass
    assert refusal.value.response.status_code == 404

    credentials = await asyncio.to_thread(identities.make_credentials, bed.path, "net", "zed")
    contexts = await asyncio.to_thread(TlsContexts, credentials)
    reader, writer = await asyncio.open_connection(
        node.address.host, node.address.port, ssl=contexts.client, server_hostname="net.peermesh.internal"
    )
    writer.write(b"GET /mesh HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b" 426 " in await reader.readline()
    writer.close()
    with contextlib.suppress(OSError, ssl.SSLError):
        await writer.wait_closed()
    await eventually(lambda: node.endpoint.statistics().get("refused_http") == 1)


async def test_an_invite_path_is_for_the_enrolment_service_only(bed: WebSocketBed) -> None:
    """Without a service the path does not exist; with one, it gets the connection and the certificate."""
    node = await bed.node("a")
    with pytest.raises(InvalidStatus):
        async with stranger(bed, node, path="/enrol"):
            pass

    class Desk:
        async def serve(self, connection: ServerConnection, leaf_der: bytes) -> None:
            await connection.send(f"{len(leaf_der) > 100} {await connection.recv()!s}")

    desk = await bed.node("b", enrolment=Desk())
    async with stranger(bed, desk, path="/enrol") as connection:
        await connection.send("please")
        assert await connection.recv() == "True please"
    assert not desk.handler.opened


# --- floods and stalls --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["handshakes_max", "handshakes_per_host_max"])
async def test_half_open_connections_are_bounded_and_do_not_keep_out_a_peer(bed: WebSocketBed, limit: str) -> None:
    """Hundreds of silent connections: a bounded number is held, the oldest are cut, a real peer gets through."""
    config = replace(FAST, handshake_timeout_s=30, **{limit: 20})
    node = await bed.node("a", config=config)
    writers = []
    try:
        for _ in range(300):
            _, writer = await asyncio.open_connection(node.address.host, node.address.port)
            writers.append(writer)
        await eventually(lambda: node.endpoint.statistics().get("refused_handshake_evicted", 0) >= 280)
        assert len(node.endpoint._pending) <= 20  # type: ignore[attr-defined]
        await answers(bed, node)
    finally:
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


@pytest.mark.parametrize("turns", range(8))
async def test_a_connection_that_comes_while_the_node_leaves_is_closed(bed: WebSocketBed, turns: int) -> None:
    """However far it got: waiting to be accepted, accepted, or about to begin its handshake."""
    node = await bed.node("a")
    loop = asyncio.get_running_loop()
    # At once, by the kernel: the loop has not turned since, and the node has noticed nothing.
    with socket.create_connection((node.address.host, node.address.port)) as stranger:
        stranger.setblocking(False)
        for _ in range(turns):
            await asyncio.sleep(0)

        await node.endpoint.close()

        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(loop.sock_recv(stranger, 1), 5.0) == b""


def _connection(node: Node, peer: str) -> ClientConnection:
    link = node.endpoint.links[node_id(peer)]
    assert isinstance(link, ChannelLink)
    channel = link._channel
    assert isinstance(channel, WebSocketChannel)
    return channel._connection  # type: ignore[return-value]


def _freeze(node: Node, peer: str) -> None:
    """Make a node neither read, nor send, nor notice: SIGSTOP, as seen from outside."""
    handle = node.endpoint._sweep_handle
    assert handle is not None
    handle.cancel()
    _connection(node, peer).transport.pause_reading()


async def test_a_peer_that_stalls_while_we_send_is_noticed(bed: WebSocketBed) -> None:
    """With the socket full and the sender stuck in it, the link ends after the keepalive timeout all the same."""
    a, b = await bed.node("a"), await bed.node("b")
    link = await a.dial(b)
    await eventually(lambda: b.handler.opened)
    _freeze(b, "a")

    started = asyncio.get_running_loop().time()
    while link.is_open:
        if link.send(message(bytes(100_000)), Lane.NORMAL).value == "full":
            with contextlib.suppress(Exception):
                await link.wait_writable(Lane.NORMAL)
        await asyncio.sleep(0)
    await eventually(lambda: a.handler.closed)

    # The kernel's TCP_USER_TIMEOUT may be first.
    assert a.handler.reasons[0] in {CloseReason.TIMED_OUT, CloseReason.CONNECTION_LOST}
    assert asyncio.get_running_loop().time() - started < 4 * FAST.keepalive_timeout_s


async def test_a_restarted_node_takes_the_place_of_its_silent_former_self(bed: WebSocketBed) -> None:
    """The old life does not answer the probe, so the new life gets the link, told in order."""
    config = replace(FAST, keepalive_timeout_s=30, keepalive_interval_s=10, probe_timeout_s=0.2)
    a, old = await bed.node("a", config=config), await bed.node("b", life=1, config=config)
    await old.dial(a)
    await eventually(lambda: a.handler.opened)
    _freeze(old, "a")
    new = await bed.node("b", life=2, config=config)

    link = await new.dial(a)

    assert link.is_open
    assert a.handler.events == [("opened", "b"), ("closed", "b"), ("opened", "b")]
    assert a.endpoint.links[node_id("b")].peer.incarnation == 2 * LIFE


async def test_a_lost_connection_is_seen_at_once_and_can_be_dialled_again(bed: WebSocketBed) -> None:
    """A reset, as by a killed process, is CONNECTION_LOST long before any timeout; a new link follows."""
    config = LinkConfig(keepalive_interval_s=10, keepalive_timeout_s=60)
    a, b = await bed.node("a", config=config), await bed.node("b", config=config)
    await a.dial(b)
    await eventually(lambda: b.handler.opened)

    _connection(b, "a").transport.abort()

    await eventually(lambda: a.handler.closed and b.handler.closed)
    assert a.handler.reasons == [CloseReason.CONNECTION_LOST]
    assert (await a.dial(b)).is_open


async def test_a_stall_of_this_process_is_not_held_against_the_peer(bed: WebSocketBed) -> None:
    """After our own loop stood still longer than the timeout, links are still open."""
    a, b = await bed.node("a"), await bed.node("b")
    link = await a.dial(b)
    await eventually(lambda: b.handler.opened)

    # As if nothing had run for ten timeouts.
    for node in (a, b):
        node.endpoint._sweep_due_s -= 10 * FAST.keepalive_timeout_s
        for live in node.endpoint._live:
            live._session.heard(node.endpoint.clock.monotonic() - 9 * FAST.keepalive_timeout_s)
    frames = link.statistics()["frames_received"]
    await eventually(lambda: link.statistics()["frames_received"] > frames + 2)

    assert link.is_open


# --- listening ----------------------------------------------------------------------------------------------------


async def test_a_port_in_use_is_named(bed: WebSocketBed) -> None:
    """ListenError says which address, and what to do."""
    a = await bed.node("a")

    with pytest.raises(ListenError, match=str(a.address.port)):
        await bed.node("b", listen=a.address)


async def test_port_zero_takes_a_free_port_and_says_it_in_hello(bed: WebSocketBed) -> None:
    """The real port is in ``listening``, in ``addresses`` and in the peer's view."""
    a, b = await bed.node("a"), await bed.node("b", listen=Address("localhost", 0))
    link = await a.endpoint.dial(Address("localhost", b.address.port))

    assert b.address.port != 0
    assert link.peer.addresses == (b.address,)


async def test_a_new_incarnation_is_said_from_then_on(bed: WebSocketBed) -> None:
    """set_incarnation changes the next hello."""
    a, b = await bed.node("a"), await bed.node("b")
    b.endpoint.set_incarnation(LIFE + 3)

    assert (await a.dial(b)).peer.incarnation == LIFE + 3


async def test_the_next_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name's addresses are tried in order until one answers; if none does, the last failure is told."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as closed:
        port, dead_port = listener.getsockname()[1], closed.getsockname()[1]
        closed.close()
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", dead_port)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

        async def resolve(*_: object, **__: object) -> list[object]:
            return [*found]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
        with await websocket_module._connect_tcp(Address("two.example", 1)) as connected:
            assert connected.getpeername()[1] == port
        found.pop()
        with pytest.raises(ConnectionRefusedError):
            await websocket_module._connect_tcp(Address("one.example", 1))
        found.pop()
        with pytest.raises(OSError, match=r"none\.example has no address"):
            await websocket_module._connect_tcp(Address("none.example", 1))
