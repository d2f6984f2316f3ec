"""Two nodes in one program: one runs an agent, the other asks it something.

Run it: ``python examples/two_agents.py``.  It uses a temporary data directory and only this machine's loopback.
"""

from __future__ import annotations

import asyncio
import tempfile

from mesh import AgentMessage, MeshConfig, join_network

SUMMARIZER = 7
PLANNER = 42


async def summarize(message: AgentMessage) -> bytes:
    """Answer a query with its first three words."""
    return b" ".join(message.payload.split()[:3]) + b" ..."


async def main() -> None:
    """Join twice, ask once, tell everybody."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def listen(message: AgentMessage) -> None:
        await heard.put(message.payload)

    with tempfile.TemporaryDirectory() as data_dir:
        local = MeshConfig(listen="127.0.0.1:0", mdns=False, data_dir=data_dir)
        async with (
            join_network(node_id="laptop", config=local) as laptop,
            join_network(node_id="server", config=local) as server,
        ):
            await laptop.wait_for_members(2)
            await server.register_agent(SUMMARIZER, ["summarize"], handler=summarize)
            await laptop.register_agent(PLANNER, ["plan"], handler=listen)

            reply = await laptop.request(SUMMARIZER, b"nodes find each other by themselves", from_agent=PLANNER)
            print("reply:", reply.decode())

            await server.wait_for_agent(PLANNER)
            await server.broadcast_message(b"lunch is ready", from_agent=SUMMARIZER)
            print("broadcast:", (await heard.get()).decode())


if __name__ == "__main__":
    asyncio.run(main())
