"""Links alone, two processes on one machine: round trip, one-way rate, memory of idle links.  Prints JSON.

    python -m benchmarks.links [--links 200] [--round-trips 5000] [--envelopes 500000]

The second process is forked before any event loop exists.  Compare these figures only with others of
the same run on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

from transport.identity.credentials import Credentials, obtain_credentials
from transport.identity.datadir import NodeDirectory
from transport.identity.tls import TlsContexts
from transport.link import CloseReason, Link, SendOutcome
from transport.types import Address, Lane, network_name, node_id
from transport.websocket import WebSocketEndpoint
from transport.wire import Envelope, Kind

_NETWORK = network_name("bench")
_ECHO, _SINK, _REPORT = int(Kind.MESSAGES), int(Kind.BROADCAST), int(Kind.ACKS)


def _credentials(data_dir: Path, name: str) -> Credentials:
    with NodeDirectory.open(data_dir, _NETWORK, node_id(name)) as directory:
        return obtain_credentials(directory, now=datetime.now(UTC))


class _Server:
    """Echoes one kind, counts another, reports on a third."""

    def __init__(self) -> None:
        self.count = 0
        self.cpu_s = 0.0

    def link_opened(self, link: Link) -> None:
        pass

    def link_closed(self, link: Link, reason: CloseReason, detail: str) -> None:
        pass

    def envelopes_received(self, link: Link, envelopes: Sequence[Envelope]) -> None:
        for envelope in envelopes:
            if envelope.kind == _ECHO:
                link.send(envelope, Lane.NORMAL)
            elif envelope.kind == _SINK:
                self.count += 1
            else:
                gc.collect()
                report = {"count": self.count, "cpu_s": time.process_time(), "rss": psutil.Process().memory_info().rss}
                link.send(Envelope(_REPORT, 0, None, None, json.dumps(report).encode()), Lane.NORMAL)


class _Client:
    """Wakes whoever waits for answers."""

    def __init__(self) -> None:
        self.waiting: asyncio.Future[bytes] | None = None
        self.left = 0

    def link_opened(self, link: Link) -> None:
        pass

    def link_closed(self, link: Link, reason: CloseReason, detail: str) -> None:
        pass

    def envelopes_received(self, link: Link, envelopes: Sequence[Envelope]) -> None:
        del link
        self.left -= len(envelopes)
        if self.left <= 0 and self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(envelopes[-1].body)

    async def answers(self, count: int) -> bytes:
        """Wait for so many envelopes; the body of the last."""
        self.left, self.waiting = count, asyncio.get_running_loop().create_future()
        return await self.waiting


async def _serve(credentials: Credentials, port_pipe: int, end_pipe: int) -> None:
    contexts = TlsContexts(credentials)
    endpoint = WebSocketEndpoint(_NETWORK, credentials.node_id, 1 << 16, contexts, Address("127.0.0.1", 0), _Server())
    await endpoint.start()
    os.write(port_pipe, str(endpoint.listening.port).encode())
    await asyncio.to_thread(os.read, end_pipe, 1)
    await endpoint.close()


async def _measure(options: argparse.Namespace, credentials: list[Credentials], port: int) -> dict[str, float]:
    address, client = Address("127.0.0.1", port), _Client()
    endpoints = [
        WebSocketEndpoint(_NETWORK, one.node_id, 1 << 16, TlsContexts(one), Address("127.0.0.1", 0), client)
        for one in credentials
    ]
    for endpoint in endpoints:
        await endpoint.start()
    link = await endpoints[0].dial(address)
    result = await _round_trips(link, client, options.round_trips)
    result |= await _one_way(link, client, options.envelopes)
    result |= await _idle(endpoints[1:], link, client, address)
    for endpoint in endpoints:
        await endpoint.close()
    return result


async def _report(link: Link, client: _Client) -> dict[str, float]:
    link.send(Envelope(_REPORT, 0, None, None, b""), Lane.NORMAL)
    answer: dict[str, float] = json.loads(await client.answers(1))
    return answer


async def _round_trips(link: Link, client: _Client, count: int) -> dict[str, float]:
    envelope, times = Envelope(_ECHO, 0, None, None, bytes(256)), []
    for _ in range(count):
        started = time.perf_counter()
        link.send(envelope, Lane.NORMAL)
        await client.answers(1)
        times.append(time.perf_counter() - started)
    times.sort()
    batches, started = count // 16, time.perf_counter()
    for _ in range(batches):
        for _ in range(64):
            link.send(envelope, Lane.NORMAL)
        await client.answers(64)
    per_s = 64 * batches / (time.perf_counter() - started)
    return {
        "round_trip_p50_us": round(times[count // 2] * 1e6, 1),
        "round_trip_p99_us": round(times[count * 99 // 100] * 1e6, 1),
        "round_trips_per_s_at_64": round(per_s),
    }


async def _one_way(link: Link, client: _Client, count: int) -> dict[str, float]:
    result: dict[str, float] = {}
    # A frame costs the same whatever is in it, so one envelope per frame measures frames.
    for name, body, total in (("small", bytes(256), count), ("frame_sized", bytes(60_000), count // 100)):
        envelope, before = Envelope(_SINK, 0, None, None, body), await _report(link, client)
        started, cpu_s = time.perf_counter(), time.process_time()
        sent, frames = 0, link.statistics()["frames_sent"]
        while sent < total:
            if link.send(envelope, Lane.NORMAL) is SendOutcome.ACCEPTED:
                sent += 1
            else:
                await link.wait_writable(Lane.NORMAL)
        after = await _report(link, client)
        assert after["count"] - before["count"] == total, "none lost"
        took_s, frames = time.perf_counter() - started, link.statistics()["frames_sent"] - frames
        result |= {
            f"{name}_envelopes_per_s": round(total / took_s),
            f"{name}_mb_per_s": round(total * len(body) / took_s / 1e6),
            f"{name}_frames_per_s": round(frames / took_s),
            f"{name}_sender_cpu_us_per_envelope": round((time.process_time() - cpu_s) / total * 1e6, 2),
            f"{name}_receiver_cpu_us_per_envelope": round((after["cpu_s"] - before["cpu_s"]) / total * 1e6, 2),
        }
    return result


async def _idle(endpoints: list[WebSocketEndpoint], link: Link, client: _Client, address: Address) -> dict[str, float]:
    gc.collect()
    before, here = await _report(link, client), psutil.Process().memory_info().rss
    for endpoint in endpoints:
        await endpoint.dial(address)
    await asyncio.sleep(3)
    gc.collect()
    after, there = await _report(link, client), psutil.Process().memory_info().rss
    cpu = await _report(link, client)
    await asyncio.sleep(5)
    cpu_s = (await _report(link, client))["cpu_s"] - cpu["cpu_s"]
    return {
        "idle_links": len(endpoints),
        "listener_kib_per_link": round((after["rss"] - before["rss"]) / 1024 / len(endpoints), 1),
        "dialler_kib_per_link": round((there - here) / 1024 / len(endpoints), 1),
        "listener_idle_cpu_percent": round(cpu_s / 5 * 100, 2),
    }


def main() -> None:
    """Fork the server, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--links", type=int, default=200)
    parser.add_argument("--round-trips", type=int, default=5000)
    parser.add_argument("--envelopes", type=int, default=500_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = _credentials(Path(folder), "server")
        clients = [_credentials(Path(folder), f"client-{i}") for i in range(options.links + 1)]
        port_read, port_write = os.pipe()
        end_read, end_write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(end_write)
            asyncio.run(_serve(server, port_write, end_read))
            os._exit(0)
        try:
            result = asyncio.run(_measure(options, clients, int(os.read(port_read, 16))))
        finally:
            os.close(end_write)
            os.waitpid(child, 0)
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
