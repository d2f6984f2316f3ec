"""A process of a benchmark: hosts nodes and does a carrier's half of the work through the public API."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from mesh.bench.work import Counter, ask_all, send_all
from mesh.join import join_network
from mesh.manager import AgentNetworkManager
from mesh.processes import Document, options, run, serve
from mesh.types import AgentMessage

SINK: Final = 1
"""Agent that counts."""
ECHO: Final = 2
"""Agent that answers with what it was sent."""
SOURCE: Final = 3
"""The agent that messages come from."""


class BenchWorker:
    """The worker's commands."""

    def __init__(self) -> None:
        self._nets: dict[str, AgentNetworkManager] = {}
        self._net: AgentNetworkManager | None = None
        self._counter = Counter()

    @property
    def net(self) -> AgentNetworkManager:
        """The node that joined first."""
        assert self._net is not None
        return self._net

    async def join(self, **settings: Any) -> Document:
        """Start a node."""
        net = await join_network(**settings)
        self._nets[net.node.node_id] = net
        self._net = self._net or net
        return {"address": str(net.addresses[0])}

    async def wait_members(self, count: int) -> None:
        """Answer when the first node knows ``count`` members."""
        await self.net.wait_for_members(count, timeout_s=25.0)

    async def listen(self) -> Document:
        """Run the agents that receive, and say where the node listens."""

        async def count(message: AgentMessage) -> None:
            self._counter.take(message.payload)

        async def echo(message: AgentMessage) -> bytes:
            return message.payload

        await self.net.register_agent(SINK, handler=count)
        await self.net.register_agent(ECHO, handler=echo)
        return {"address": str(self.net.addresses[0])}

    async def expect(self, count: int) -> None:
        """Get ready for ``count`` messages."""
        self._counter.expect(count)

    async def received(self) -> Document:
        """What came."""
        return await self._counter.result()

    async def send(self, count: int, payload_bytes: int) -> Document:
        """Send to the other process's counting agent."""
        net = self.net

        async def one(payload: bytes) -> object:
            return await net.send(SINK, payload, from_agent=SOURCE)

        async def flush() -> None:
            """Nothing: what was accepted goes out with the loop's next turn."""

        return await send_all(one, count, payload_bytes, flush)

    async def ask(self, concurrency: int, duration_s: float, payload_bytes: int) -> Document:
        """Ask the other process's echoing agent."""
        net = self.net

        async def one(payload: bytes) -> bytes:
            return await net.request(ECHO, payload, from_agent=SOURCE)

        return await ask_all(one, concurrency, duration_s, payload_bytes)

    async def usage(self) -> Document:
        """What this process uses."""
        import psutil  # only the idle benchmark asks

        memory = await asyncio.to_thread(lambda: psutil.Process().memory_info())
        return {"rss_bytes": memory.rss, "cpu_s": time.process_time()}

    async def leave(self) -> None:
        """Leave with every node."""
        await asyncio.gather(*(net.leave_network() for net in self._nets.values()))
        self._nets.clear()
        self._net = None


async def main() -> None:
    """Join if there are settings for a node, and serve until the parent closes our standard input."""
    worker = BenchWorker()
    settings = options()
    try:
        if settings:
            await worker.join(**settings)
        names = ("join", "wait_members", "listen", "expect", "received", "send", "ask", "usage", "leave")
        await serve({name: getattr(worker, name) for name in names})
    finally:
        await worker.leave()


if __name__ == "__main__":
    run(main())
