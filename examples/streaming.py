"""An answer in parts: the reader takes what it needs and leaves, and the handler at the other node is told.

Run it: ``python examples/streaming.py``.  It uses a temporary data directory and only this machine's loopback.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator

from mesh import AgentMessage, MeshConfig, join_network

PRIMES = 7


async def main() -> None:
    """Ask for all primes from a number on, and take five."""
    ended = asyncio.Event()

    async def primes(message: AgentMessage) -> AsyncIterator[bytes]:
        number = int(message.payload)
        try:
            while True:
                if all(number % divisor for divisor in range(2, int(number**0.5) + 1)):
                    yield str(number).encode()
                number += 1
        finally:
            print("nobody listens any more")
            ended.set()

    with tempfile.TemporaryDirectory() as data_dir:
        local = MeshConfig(listen="127.0.0.1:0", mdns=False, data_dir=data_dir)
        async with (
            join_network(node_id="laptop", config=local) as laptop,
            join_network(node_id="server", config=local) as server,
        ):
            await server.register_agent(PRIMES, ["count"], handler=primes)
            await laptop.wait_for_agent(PRIMES)

            taken = 0
            async with laptop.stream(PRIMES, b"1000000") as parts:
                async for part in parts:
                    print("prime:", part.decode())
                    taken += 1
                    if taken == 5:
                        break
            await ended.wait()


if __name__ == "__main__":
    asyncio.run(main())
