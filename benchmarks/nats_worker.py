"""A process of the NATS benchmark: the same commands as :mod:`mesh.bench.worker`, the same work, another carrier."""

from __future__ import annotations

import ssl
from pathlib import Path

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh.bench.work import Counter, ask_all, send_all
from mesh.processes import Document, options, run, serve

_SINK = "sink"
_ECHO = "echo"

# nats-py drops messages beyond these; no run is that large.
_PENDING_MESSAGES = 100_000_000
_PENDING_BYTES = 1 << 34
_TIMEOUT_S = 10.0


class NatsWorker:
    """The worker's commands.

    Args:
        client: A connection to the server.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._counter = Counter()

    async def listen(self) -> Document:
        """Subscribe, and say how the connection is protected."""

        async def count(message: Msg) -> None:
            self._counter.take(message.data)

        async def echo(message: Msg) -> None:
            await message.respond(message.data)

        for subject, callback in ((_SINK, count), (_ECHO, echo)):
            await self._client.subscribe(
                subject, cb=callback, pending_msgs_limit=_PENDING_MESSAGES, pending_bytes_limit=_PENDING_BYTES
            )
        await self._client.flush()
        writer = getattr(self._client._transport, "_io_writer", None)  # there is no public way to it
        if writer is None or (tls := writer.get_extra_info("ssl_object")) is None:
            raise RuntimeError("the connection to nats-server is not TLS, so there is nothing to compare with")
        return {"tls": tls.version()}

    async def expect(self, count: int) -> None:
        """Get ready for ``count`` messages."""
        self._counter.expect(count)

    async def received(self) -> Document:
        """What came."""
        return await self._counter.result()

    async def send(self, count: int, payload_bytes: int) -> Document:
        """Send to the other process."""

        async def one(payload: bytes) -> None:
            await self._client.publish(_SINK, payload)

        async def flush() -> None:
            await self._client.flush(timeout=int(_TIMEOUT_S))

        return await send_all(one, count, payload_bytes, flush)

    async def ask(self, concurrency: int, duration_s: float, payload_bytes: int) -> Document:
        """Ask the other process."""

        async def one(payload: bytes) -> bytes:
            reply = await self._client.request(_ECHO, payload, timeout=_TIMEOUT_S)
            return bytes(reply.data)

        return await ask_all(one, concurrency, duration_s, payload_bytes)


async def main() -> None:
    """Connect, and serve until the parent closes our standard input."""
    settings = options()
    folder = Path(settings["folder"])
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(str(folder / "tls.crt"), str(folder / "tls.key"))
    client = await nats.connect(settings["url"], tls=context, tls_hostname="localhost")
    try:
        worker = NatsWorker(client)
        await serve({name: getattr(worker, name) for name in ("listen", "expect", "received", "send", "ask")})
    finally:
        await client.close()


if __name__ == "__main__":
    run(main())
