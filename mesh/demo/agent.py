"""One node of the demo: a process of its own with one agent, driven by :mod:`mesh.demo.run`."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Final

from mesh.agents import AgentHandle
from mesh.events import MeshEvent, NodeFailed, NodeLeft, NodeSuspected
from mesh.join import join_network
from mesh.manager import AgentNetworkManager
from mesh.processes import Document, options, run, serve, tell
from mesh.types import AgentMessage, MessageType, NodeStatus
from transport.clock import SystemClock

_CLOCK: Final = SystemClock()
_EVENTS: Final[dict[type[MeshEvent], str]] = {NodeSuspected: "suspected", NodeFailed: "failed", NodeLeft: "left"}


class Ledger:
    """What an agent received: which numbers from whom, how often, and in which order."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, MessageType], Counter[int]] = {}
        self._last: dict[int, int] = {}
        self.out_of_order = 0

    def enter(self, message: AgentMessage) -> None:
        """Take down a message; its payload is its number in its sender's series."""
        number = int(message.payload)
        self._numbers.setdefault((message.from_agent, message.message_type), Counter())[number] += 1
        if message.message_type is MessageType.COMMAND:
            self.out_of_order += number < self._last.get(message.from_agent, -1)
            self._last[message.from_agent] = number

    def report(self) -> Document:
        """Counts by kind: different messages that came, further copies of them, and late ones."""
        commands = [n for (_, kind), n in self._numbers.items() if kind is MessageType.COMMAND]
        broadcasts = [n for (_, kind), n in self._numbers.items() if kind is MessageType.BROADCAST]
        return {
            "messages": sum(len(numbers) for numbers in commands),
            "broadcasts": sorted(number for numbers in broadcasts for number in numbers),
            "duplicates": sum(n.total() - len(n) for n in self._numbers.values()),
            "out_of_order": self.out_of_order,
        }


class DemoAgent:
    """The worker's commands.

    Args:
        net: The node.
        agent_id: The agent that runs on it.
    """

    def __init__(self, net: AgentNetworkManager, agent_id: int) -> None:
        self._net = net
        self._agent_id = agent_id
        self._ledger = Ledger()
        self._handle: AgentHandle | None = None

    async def register(self) -> None:
        """Start the agent."""
        self._handle = await self._net.register_agent(self._agent_id, ["echo"], name="demo", handler=self._take)

    async def _take(self, message: AgentMessage) -> bytes | None:
        if message.message_type is MessageType.QUERY:
            return message.payload
        self._ledger.enter(message)
        return None

    async def watch(self) -> None:
        """Tell the parent, with the time, what becomes of other nodes."""
        async for event in self._net.events():
            name = _EVENTS.get(type(event))
            if name is not None and isinstance(event, NodeSuspected | NodeFailed | NodeLeft):
                tell(name, node_id=event.node.node_id, at=_CLOCK.monotonic())

    async def wait_members(self, count: int, timeout_s: float) -> Document:
        """Answer when this node knows ``count`` active nodes and as many agents, with the time."""
        deadline = _CLOCK.monotonic() + timeout_s
        await self._net.wait_for_members(count, timeout_s=timeout_s)
        while len(self._net.agents()) < count:
            if _CLOCK.monotonic() > deadline:
                raise TimeoutError(f"{len(self._net.agents())} of {count} agents after {timeout_s:g} s")
            await asyncio.sleep(0.005)
        return {"at": _CLOCK.monotonic()}

    async def send(self, to_agents: list[int], count: int) -> Document:
        """Send ``count`` numbered messages to each agent and wait until each was handed over."""
        sent = await asyncio.gather(*(self._send_to(agent, count) for agent in to_agents))
        return {"acknowledged": sum(sent), "sent": count * len(to_agents)}

    async def _send_to(self, agent: int, count: int) -> int:
        acknowledged = 0
        for number in range(count):
            await self._net.send(agent, str(number).encode(), from_agent=self._agent_id, ack=True)
            acknowledged += 1
        return acknowledged

    async def broadcast(self, number: int) -> None:
        """Broadcast from the node itself, so that this node's agent hears it as well."""
        await self._net.broadcast_message(str(number).encode())

    async def round_trips(self, to_agent: int, count: int) -> Document:
        """Ask another agent ``count`` times, one after the other; answer with each time in microseconds."""
        times_us = []
        for _ in range(count):
            began = _CLOCK.monotonic()
            await self._net.request(to_agent, b"0", from_agent=self._agent_id)
            times_us.append(round((_CLOCK.monotonic() - began) * 1e6, 1))
        return {"times_us": times_us}

    async def share(self, keys: list[str]) -> Document:
        """Write to the document that all share: keys of one's own, one that all write, a counter and a text."""
        shared = await self._net.document("demo")
        for key in keys:
            with shared.transaction():
                shared[key] = self._agent_id
                shared["last"] = key
                shared.counter("writes").increment()
                shared.text("log").append(f"{key}\n")
            await asyncio.sleep(0)
        await shared.saved()
        return {"replicas": len(shared.replicas) + 1}

    async def shared(self) -> Document:
        """What this node reads in the document that all share."""
        shared = await self._net.document("demo")
        return {"digest": shared.digest(), "writes": shared.counter("writes").value, "keys": len(shared)}

    async def report(self) -> Document:
        """What the agent received, and how nodes found each other."""
        return {**self._ledger.report(), "discovery": self._net.stats().get("discovery", {})}

    async def wait_gone(self, node_ids: list[str], timeout_s: float) -> None:
        """Answer when this node takes none of ``node_ids`` for alive."""
        events = self._net.events()
        async with asyncio.timeout(timeout_s):
            while any(
                node.node_id in node_ids and node.status is not NodeStatus.DISCONNECTED for node in self._net.members()
            ):
                await anext(events)

    async def leave(self) -> None:
        """Leave the network in order."""
        await self._net.leave_network()


async def main() -> None:
    """Join as the parent says, and serve until it closes our standard input."""
    settings = options()
    agent_id: int = settings.pop("agent_id")
    async with join_network(**settings) as net:
        agent = DemoAgent(net, agent_id)
        watching = asyncio.create_task(agent.watch(), name="watch")
        try:
            await agent.register()
            tell("ready", address=str(net.addresses[0]), at=_CLOCK.monotonic())
            await serve(
                {
                    "wait_members": agent.wait_members,
                    "send": agent.send,
                    "broadcast": agent.broadcast,
                    "round_trips": agent.round_trips,
                    "report": agent.report,
                    "share": agent.share,
                    "shared": agent.shared,
                    "wait_gone": agent.wait_gone,
                    "leave": agent.leave,
                }
            )
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching


if __name__ == "__main__":
    run(main())
