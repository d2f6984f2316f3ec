"""A node's port reduced to enrolment: a WebSocket server with a desk behind ``/enrol``."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from identities import now, open_directory
from websockets.asyncio.server import ServerConnection, serve

from transport.clock import Clock, SystemClock
from transport.identity import audit
from transport.identity.credentials import Credentials, obtain_credentials
from transport.identity.datadir import NodeDirectory
from transport.identity.enrolment import EnrolmentDesk
from transport.identity.joining import enrol
from transport.identity.tls import TlsContexts, bare_context
from transport.types import Address, NodeId


@dataclass
class Issuer:
    """A running issuer."""

    directory: NodeDirectory
    contexts: TlsContexts
    desk: EnrolmentDesk
    addresses: tuple[Address, ...]
    handshakes: int = 0


class ShiftedClock:
    """The machine's clock, shifted."""

    def __init__(self, shift_s: float = 0.0) -> None:
        self.shift_s = shift_s
        self._clock = SystemClock()

    def monotonic(self) -> float:
        """See :meth:`Clock.monotonic`."""
        return self._clock.monotonic()

    def wall(self) -> float:
        """See :meth:`Clock.wall`."""
        return self._clock.wall() + self.shift_s


def nobody(_node: NodeId) -> bool:
    """No node id is taken."""
    return False


@asynccontextmanager
async def issuer(
    data_dir: Path,
    *,
    network: str = "default",
    node_id: str = "issuer",
    clock: Clock | None = None,
    is_member: Callable[[NodeId], bool] = nobody,
) -> AsyncIterator[Issuer]:
    """Run an issuer on a free port of the loopback interface."""
    directory = await asyncio.to_thread(open_directory, data_dir, network, node_id)
    try:
        credentials = await asyncio.to_thread(obtain_credentials, directory, now=now())
        contexts = await asyncio.to_thread(TlsContexts, credentials)
        desk = EnrolmentDesk(directory, contexts, clock=clock or SystemClock(), is_member=is_member)
        await desk.start()

        async def handler(connection: ServerConnection) -> None:
            leaf = connection.transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
            await desk.serve(connection, leaf)

        made = Issuer(directory, contexts, desk, ())

        def choose(connection: ssl.SSLObject, _name: str, _context: ssl.SSLContext) -> None:
            # The library's server has one context for ever; a node takes the current one for each connection.
            made.handshakes += 1
            connection.context = contexts.server

        outer = bare_context(ssl.PROTOCOL_TLS_SERVER)
        await asyncio.to_thread(outer.load_cert_chain, credentials.tls_chain_path, credentials.tls_key_path)
        outer.sni_callback = choose
        async with serve(handler, "127.0.0.1", 0, ssl=outer, compression=None, ping_interval=None) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            made.addresses = (Address("127.0.0.1", port),)
            yield made
        await desk.close()
    finally:
        directory.release()


async def join(
    data_dir: Path, token: str, node_id: str = "joiner", *, network: str = "default", clock_s: float = 0.0
) -> Credentials:
    """Enrol a node with a data directory of its own."""
    directory = await asyncio.to_thread(open_directory, data_dir, network, node_id)
    try:
        return await enrol(token, directory, clock=ShiftedClock(clock_s))
    finally:
        directory.release()


def events(data_dir: Path, node_id: str, network: str = "default") -> list[dict[str, object]]:
    """The node's audit log, checked."""
    path = data_dir / network / node_id / "audit.log"
    assert audit.verify(path).intact
    return [json.loads(line) for line in path.read_text().splitlines()]
