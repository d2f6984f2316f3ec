"""Strangers at the port of a real node: refused, counted, logged; nobody else notices, and memory is bounded."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import identities
import pytest
from hostile_nodes import bare_client, client_with, join, rss_bytes, say, town
from support import eventually

from mesh.config import MeshConfig
from transport.config import LinkConfig
from transport.identity import audit
from transport.identity.credentials import Credentials

_UPGRADE = (
    b"GET /mesh HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def _client_hello(name: bytes) -> bytes:
    """A TLS 1.3 ClientHello with any bytes as server name."""
    entry = struct.pack("!BH", 0, len(name)) + name
    extensions = struct.pack("!HHH", 0, len(entry) + 2, len(entry)) + entry
    extensions += bytes.fromhex("002b0003020304000d0004000204 03000a00040002001d")
    extensions += bytes.fromhex("003300260024001d0020") + os.urandom(32)
    body = b"\x03\x03" + os.urandom(32) + b"\x00" + bytes.fromhex("000213010100")
    body += struct.pack("!H", len(extensions)) + extensions
    handshake = b"\x01" + struct.pack("!I", len(body))[1:] + body
    return b"\x16\x03\x01" + struct.pack("!H", len(handshake)) + handshake


@pytest.mark.parametrize(
    ("data", "make_context", "cause"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", lambda: None, "plain_http"),
        (_UPGRADE, lambda: None, "plain_http"),
        (os.urandom(64) * 1024, lambda: None, "tls"),
        (b"\x16\x03\x01\xff\xff" + b"\x00" * 70_000, lambda: None, "tls"),
        (_UPGRADE, bare_client, "no_certificate"),
        (_UPGRADE, lambda: bare_client(version=ssl.TLSVersion.TLSv1_2), "tls_version"),
    ],
    ids=["plain http", "plain ws", "garbage", "oversized record", "no certificate", "tls 1.2"],
)
async def test_what_is_not_mutual_tls_13_is_refused_by_its_cause(
    tmp_path: Path, data: bytes, make_context: Callable[[], ssl.SSLContext | None], cause: str
) -> None:
    """No HTTP answer and no WebSocket; the statistics say why."""
    async with town(tmp_path) as there:
        answer = await say(there.address, data, make_context())

        assert b"HTTP" not in answer
        await eventually(lambda: there.refused(cause) == 1)
        assert there.links()["refused"] == 1


@pytest.mark.parametrize(
    "make",
    [
        identities.make_expired,
        identities.make_not_yet_valid,
        identities.make_self_signed,
        identities.make_of_other_authority,
        identities.make_of_other_network,
    ],
)
async def test_a_bad_certificate_is_refused_and_goes_on_record(
    tmp_path: Path, make: Callable[..., Credentials]
) -> None:
    """Expired, not yet valid, self-signed, another authority's, another network's: no link, one audit line."""
    async with town(tmp_path) as there:
        bad = await asyncio.to_thread(make, tmp_path, "default", "zed")
        context = await asyncio.to_thread(client_with, bad)
        for _ in range(5):
            assert b" 101 " not in await say(there.address, _UPGRADE, context)
        await eventually(lambda: there.refused("certificate") == 5)
        assert "zed" not in there.target._runtime.endpoint.links

    records = await asyncio.to_thread(_records, tmp_path, "target")
    rejected = [record["fields"] for record in records if record["event"] == "certificate rejected"]
    assert [fields["count"] for fields in rejected] == [1, 4], "the first at once, the others in one line"
    assert rejected[0]["remote"] == "127.0.0.1"
    assert rejected[0]["message"]


def _records(data_dir: Path, name: str) -> list[dict[str, Any]]:
    path = data_dir / "default" / name / "audit.log"
    assert audit.verify(path).intact
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_a_server_name_of_any_bytes_says_nothing_in_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Python prints a traceback from an SNI callback when the name is not ASCII: any stranger could fill the disk."""
    async with town(tmp_path) as there:
        for name in (b"\xff\xfe.example", b"a" * 255, b"\x00", b"%s%n"):
            await say(there.address, _client_hello(name), wait_s=1.0)

    assert "Traceback" not in capfd.readouterr().err


async def test_http_by_a_member_that_is_not_ours_is_answered_and_counted(tmp_path: Path) -> None:
    """Behind the right certificate: wrong paths, methods and garbage get an HTTP error and nothing else."""
    async with town(tmp_path) as there:
        good = await asyncio.to_thread(identities.make_credentials, tmp_path, "default", "zed")
        context = await asyncio.to_thread(client_with, good)
        for request, status in (
            (b"GET /elsewhere HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
            (b"POST /mesh HTTP/1.1\r\nHost: x\r\n\r\n", b"405"),
            (b"GET /mesh HTTP/1.1\r\nHost: x\r\n\r\n", b"426"),
            (b"GET /mesh HTTP/1.1\r\n" + b"A: b\r\n" * 2000 + b"\r\n", b"431"),
        ):
            assert status in (await say(there.address, request, context)).partition(b"\r\n")[0]
        assert await say(there.address, b"\x00garbage\r\n\r\n", context) == b""
        await eventually(lambda: there.links()["refused"] == 5)


def test_the_handshake_has_ten_seconds() -> None:
    """What the protocol specifies is the default, in the layer and in the configuration."""
    assert LinkConfig().handshake_timeout_s == 10.0
    assert MeshConfig().link_config().handshake_timeout_s == 10.0


async def test_a_handshake_has_one_cap_from_tcp_to_accept(tmp_path: Path) -> None:
    """Slow at every step: whoever spends the time in TLS has none left for the hello."""
    async with town(tmp_path, links={"handshake_timeout_s": 1.5}) as there:
        good = await asyncio.to_thread(identities.make_credentials, tmp_path, "default", "zed")
        context = await asyncio.to_thread(client_with, good)
        loop = asyncio.get_running_loop()

        assert await say(there.address, b"") == b"", "nothing but TCP"
        await eventually(lambda: there.links()["refused"] == 1)

        started = loop.time()
        reader, writer = await asyncio.open_connection(there.address.host, there.address.port, ssl=context)
        # Nearly all of the time goes before HTTP is spoken.
        await eventually(lambda: loop.time() - started > 1.2)
        writer.write(_UPGRADE)
        await reader.read()
        taken_s = loop.time() - started
        writer.transport.abort()

        assert taken_s < 2.4, f"cut only after {taken_s:.1f} s"


@pytest.mark.slow
async def test_a_thousand_half_open_connections_keep_nobody_out(tmp_path: Path) -> None:
    """Half of them silent, half with a broken ClientHello: a new node joins meanwhile, and memory stays bounded."""
    async with town(tmp_path) as there:
        before = rss_bytes()
        silent: list[asyncio.StreamWriter] = []
        try:
            for number in range(1000):
                _, writer = await asyncio.open_connection(there.address.host, there.address.port)
                silent.append(writer)
                if number % 2:
                    writer.write(b"\x16\x03\x01\x02\x00\x01")
            await eventually(lambda: there.refused("handshake_evicted") >= 850)
            assert len(there.target._runtime.endpoint._pending) <= LinkConfig().handshakes_per_host_max
            async with await join(tmp_path, "newcomer") as newcomer:
                await newcomer.wait_for_members(3)
                await eventually(lambda: "newcomer" in there.target._runtime.endpoint.links)
        finally:
            for writer in silent:
                writer.transport.abort()
            await asyncio.gather(*(writer.wait_closed() for writer in silent), return_exceptions=True)
        assert rss_bytes() - before < 64 << 20, "both ends of 1,000 connections and the three nodes share this process"
