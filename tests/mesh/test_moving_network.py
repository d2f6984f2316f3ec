"""An agent that moves between real nodes under load: nothing is lost, nothing doubled, order kept."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from networks import networks
from support import eventually

from mesh import AgentHandle, AgentMessage, AgentNetworkManager, Priority

AGENT = 2
RATE = 10_000
SECONDS = 3


class Load:
    """Numbered messages from one agent, and what the agent that wanders has seen of them."""

    def __init__(self) -> None:
        self.sent = 0
        self.seen: list[int] = []
        self.is_over = False

    async def handler(self, message: AgentMessage) -> None:
        """The wandering agent's."""
        self.seen.append(int.from_bytes(message.payload, "big"))

    def _next(self) -> bytes:
        self.sent += 1
        return (self.sent - 1).to_bytes(8, "big")

    async def plain(self, net: AgentNetworkManager) -> None:
        """Send at the rate for the time."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        while self.sent < RATE * SECONDS:
            await asyncio.sleep(started + self.sent / RATE - loop.time())
            for _ in range(RATE // 200):
                await net.send(AGENT, self._next(), from_agent=1, timeout=10)

    async def acknowledged(self, net: AgentNetworkManager) -> None:
        """The same; nobody waits for one acknowledgement before the next message."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        sends: list[asyncio.Task[object]] = []
        while self.sent < RATE * SECONDS:
            await asyncio.sleep(started + self.sent / RATE - loop.time())
            for _ in range(RATE // 200):
                sending = net.send(AGENT, self._next(), from_agent=1, ack=True, timeout=10)
                sends.append(asyncio.ensure_future(sending))
            sends = [task for task in sends if not task.done() or task.result() is None]
        await asyncio.gather(*sends)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "acknowledged"])
async def test_an_agent_moves_under_load(tmp_path: Path, kind: str) -> None:
    """10,000 messages a second, and a move every 0.4 s."""
    async with networks(tmp_path) as net:
        sender, *places = await net.several("sender", "here", "there")
        load = Load()
        handle = await places[0].register_agent(AGENT, handler=load.handler)
        await sender.wait_for_agent(AGENT)
        sending = asyncio.ensure_future(getattr(load, kind)(sender))
        moves = 0
        while not sending.done():
            await asyncio.wait([sending], timeout=0.4)
            moves += 1
            await handle.deregister()
            handle = await places[moves % 2].register_agent(AGENT, handler=load.handler)
        await sending

        await eventually(lambda: len(load.seen) >= load.sent, 15.0)
        assert load.seen == list(range(RATE * SECONDS))
        assert moves >= 5
        counters = sender.stats()["messages"]
        assert counters["moved_lost"] == counters["moved_forgotten"] == 0


async def test_a_node_that_leaves_gives_back_what_waited(tmp_path: Path) -> None:
    """Its agents' messages reach them where they run next; a slow one's are most of them."""

    async def slow(message: AgentMessage) -> None:
        seen.append(message.payload)
        await asyncio.sleep(0.02)

    seen: list[bytes] = []
    async with networks(tmp_path) as net:
        sender, leaves, stays = await net.several("sender", "leaves", "stays")
        await leaves.register_agent(AGENT, handler=slow)
        await sender.wait_for_agent(AGENT)
        for number in range(100):
            await sender.send(AGENT, b"%d" % number, from_agent=1, priority=Priority.HIGH)
        await eventually(lambda: len(seen) >= 3)

        await leaves.leave_network(timeout_s=5.0)
        handle: AgentHandle = await stays.register_agent(AGENT, handler=slow)

        await eventually(lambda: len(seen) >= 100, 15.0)
        assert seen == [b"%d" % number for number in range(100)]
        await handle.deregister()
