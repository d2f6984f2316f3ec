"""A process of the durable benchmark: a node that sends durable messages, or handles them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from mesh.join import join_network
from mesh.processes import Document, options, run, serve
from mesh.types import AgentMessage

RECEIVER = 1_000


async def _main() -> None:
    given: dict[str, Any] = options()
    net = await join_network(node_id=given["node_id"], **given["shared"])
    handled = 0

    async def handle(_: AgentMessage) -> None:
        nonlocal handled
        handled += 1

    if given["receives"]:
        await net.register_agent(RECEIVER, handler=handle)

    async def send(count: int, payload_bytes: int, callers: int, agents: int) -> Document:
        """Send from so many callers of so many agents at once; wait until all was handled."""
        payload = bytes(payload_bytes)

        async def caller(agent: int) -> None:
            for _ in range(count // callers):
                await net.send(RECEIVER, payload, from_agent=agent, durable=True)

        before = net.stats()["durable"]
        began, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(caller(1 + number % agents) for number in range(callers)))
        stored_s = time.perf_counter() - began
        while net.stats()["durable"]["outbox"]:  # noqa: ASYNC110 - nobody tells users that
            await asyncio.sleep(0.001)
        after = net.stats()["durable"]
        return {
            "count": count // callers * callers,
            "stored_s": stored_s,
            "handled_s": time.perf_counter() - began,
            "cpu_s": time.process_time() - cpu,
            "transactions": after["journal_transactions"] - before["journal_transactions"],
            "sent_again": after["sent_again"] - before["sent_again"],
        }

    async def stats() -> Document:
        return {"handled": handled, "cpu_s": time.process_time(), "durable": net.stats()["durable"]}

    try:
        await serve({"send": send, "stats": stats})
    finally:
        await net.leave_network()


if __name__ == "__main__":
    run(_main())
