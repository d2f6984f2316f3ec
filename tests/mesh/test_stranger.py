"""Knocking at a door as a stranger."""

from __future__ import annotations

import asyncio
from pathlib import Path

from mesh.join import join_network
from mesh.stranger import knock
from transport.types import Address


async def test_a_node_refuses_a_stranger(tmp_path: Path) -> None:
    """A node speaks TLS 1.3 and refuses who has no certificate."""
    async with join_network(node_id="n1", network="knock", listen="127.0.0.1:0", data_dir=tmp_path, mdns=False) as net:
        assert await knock(net.addresses[0]) == ("TLSv1.3", True)


async def test_a_server_without_tls_is_no_proof() -> None:
    """Who does not speak TLS at all is not taken for a node."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()[:2]

        assert (await knock(Address(host, port)))[0] == "no TLS"
