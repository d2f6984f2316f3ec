"""An agent without a handler: it reads its messages when it wants to.

Run it: ``python examples/inbox.py``.
"""

from __future__ import annotations

import asyncio
import tempfile

from mesh import join_network

INBOX = 1


async def main() -> None:
    """Send three messages and read them back, in order."""
    with tempfile.TemporaryDirectory() as data_dir:
        async with join_network(node_id="solo", listen="127.0.0.1:0", mdns=False, data_dir=data_dir) as net:
            await net.register_agent(INBOX, ["collect"])
            for number in range(3):
                receipt = await net.send(INBOX, f"message {number}".encode(), ack=True)
                print(receipt.message_id, receipt.status.value)
            read = 0
            async for message in net.messages(INBOX):
                print(message.payload.decode())
                read += 1
                if read == 3:
                    break


if __name__ == "__main__":
    asyncio.run(main())
