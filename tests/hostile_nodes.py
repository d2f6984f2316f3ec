"""A small real network with traffic on it, and the means to be a nuisance to it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import identities
from support import eventually
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from mesh import AgentNetworkManager, join_network
from mesh.types import AgentMessage
from transport.identity.credentials import Credentials
from transport.identity.names import ALPN
from transport.identity.tls import TlsContexts
from transport.types import Address, network_name, node_id
from transport.wire import Envelope, Hello, Kind, encode_frame, encode_hello

#: The receiving agent of the steady stream.
SINK = 7
#: An incarnation is a life and the refutations in it.
LIFE = 1 << 16


async def join(data_dir: Path, name: str, **settings: Any) -> AgentNetworkManager:
    """A real node on loopback."""
    return await join_network(node_id=name, data_dir=data_dir, listen="127.0.0.1:0", mdns=False, **settings)


@dataclass
class Town:
    """Two good nodes, and a stream of numbered messages from one to the other."""

    data_dir: Path
    target: AgentNetworkManager
    other: AgentNetworkManager
    received: list[int] = field(default_factory=list)
    sent: int = 0
    stopping: bool = False

    @property
    def address(self) -> Address:
        """Where the node under attack listens."""
        return self.target.addresses[0]

    def links(self) -> dict[str, int]:
        """The target's link counters."""
        counters: dict[str, int] = self.target.stats()["links"]
        return counters

    def refused(self, cause: str) -> int:
        """How often the target refused for ``cause``."""
        return self.links().get(f"refused_{cause}", 0)

    async def stream(self) -> None:
        """Send numbers until told to stop."""
        while not self.stopping:
            await self.other.send(SINK, struct.pack("!Q", self.sent))
            self.sent += 1
            await asyncio.sleep(0.001)

    async def hear(self, message: AgentMessage) -> None:
        """Note a number."""
        self.received.append(struct.unpack("!Q", message.payload)[0])


@contextlib.asynccontextmanager
async def town(data_dir: Path, **settings: Any) -> AsyncIterator[Town]:
    """Run two good nodes with a steady stream; in the end nothing of it may be lost, doubled or out of order.

    The target and the other seal what they say.  A hostile member whose hello does not ask for that is refused all
    messages in the clear, unless ``messages={"end_to_end": False}`` has the target listen to them.
    """
    async with await join(data_dir, "target", **settings) as target, await join(data_dir, "other") as other:
        made = Town(data_dir, target, other)
        await target.register_agent(SINK, handler=made.hear)
        await other.wait_for_agent(SINK)
        streaming = asyncio.create_task(made.stream())
        try:
            await eventually(lambda: len(made.received) > 10)
            link = target._runtime.endpoint.links[other.node.node_id]  # type: ignore[index]  # its own kind of text
            yield made
            before = len(made.received)
            await eventually(lambda: len(made.received) > before, what="the stream goes on")
        finally:
            made.stopping = True
            await streaming
        await eventually(lambda: len(made.received) >= made.sent, what="everything sent arrived")
        assert made.received == list(range(made.sent)), "the stream between good nodes lost or reordered something"
        assert target._runtime.endpoint.links.get(link.peer.node_id) is link, "the good nodes' link was replaced"


def rss_bytes(pid: int | str = "self") -> int:
    """The resident memory of a process."""
    with Path(f"/proc/{pid}/statm").open() as file:
        return int(file.read().split()[1]) * 4096


def bare_client(*, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """A TLS client without a certificate that believes everybody."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = version
    context.set_alpn_protocols([ALPN])
    return context


def client_with(credentials: Credentials) -> ssl.SSLContext:
    """A TLS client with a certificate that believes everybody."""
    context = bare_client()
    context.load_cert_chain(credentials.tls_chain_path, credentials.tls_key_path)
    return context


async def say(address: Address, data: bytes, context: ssl.SSLContext | None = None, *, wait_s: float = 5.0) -> bytes:
    """Connect, say something and return all that is answered; a reset or an alert is an empty answer."""
    try:
        reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
    except OSError:
        return b""
    try:
        writer.write(data)
        async with asyncio.timeout(wait_s):
            return await reader.read()
    except OSError:
        return b""
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def certified(
    there: Town,
    name: str = "zed",
    *,
    make: Callable[..., Credentials] = identities.make_credentials,
    path: str = "/mesh",
) -> AsyncIterator[ClientConnection]:
    """A WebSocket of somebody with a certificate, by default a good one, whose frames are made by hand."""
    credentials = await asyncio.to_thread(make, there.data_dir, "default", name)
    contexts = await asyncio.to_thread(TlsContexts, credentials)
    async with connect(
        f"wss://{there.address}{path}",
        ssl=contexts.client,
        server_hostname="default.peermesh.internal",
        compression=None,
        proxy=None,
        close_timeout=1,
        ping_interval=None,
    ) as connection:
        yield connection


def greeting(name: str = "zed", network: str = "default", **more: object) -> bytes:
    """A first frame."""
    hello = Hello(network_name(network), node_id(name), LIFE)
    return encode_frame([encode_hello(replace(hello, **more))])  # type: ignore[arg-type]  # fields by name


@contextlib.asynccontextmanager
async def member(there: Town, name: str = "zed") -> AsyncIterator[ClientConnection]:
    """Somebody who was let in: its link is open; "target" decides, "zed" follows."""
    opened = there.links().get("links_opened", 0)
    async with certified(there, name) as connection:
        await connection.send(greeting(name))
        await connection.send(encode_frame([Envelope(Kind.ACCEPT, 0, None, None, b"")]))
        await eventually(lambda: there.links()["links_opened"] > opened, what="the hostile link is open")
        yield connection


async def closing(connection: ClientConnection) -> tuple[int, str]:
    """Read until the node closes; what it gave as its reason."""
    try:
        async with asyncio.timeout(5):
            while True:
                await connection.recv()
    except ConnectionClosed as closed:
        return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd is not None else (1006, "")
