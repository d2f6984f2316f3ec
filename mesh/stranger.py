"""Knocking at a node's door as somebody who does not belong to its network."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Final

from transport.identity.names import ALPN
from transport.types import Address

_KNOCK_S: Final = 5.0


async def knock(address: Address) -> tuple[str, bool]:
    """Connect to a node as a stranger: TLS without a certificate of ours.

    Returns:
        The TLS version that the node speaks, and whether it refused us.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # we want to see what it asks of us, not who it is
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([ALPN])
    version = "no TLS"
    try:
        async with asyncio.timeout(_KNOCK_S):
            reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
            try:
                version = str(writer.get_extra_info("ssl_object").version())
                writer.write(b"GET /mesh HTTP/1.1\r\nHost: x\r\n\r\n")
                # With TLS 1.3 a server judges the client's certificate after the client has finished.
                return version, await reader.read(1) == b""
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except TimeoutError:  # before OSError, of which it is one: silence is no refusal
        return version, False
    except OSError:  # a TLS alert included
        return version, True
