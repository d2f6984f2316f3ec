"""A process of the durable run: a node whose agents send durable messages, or one whose agent handles them.

What it says it has done is written to a file with one system call a line, which a SIGKILL cannot take back; the next
process of the same node goes on from there.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, Final

from mesh.join import join_network
from mesh.manager import AgentNetworkManager
from mesh.messaging.durable import REDELIVERED
from mesh.processes import Document, options, run, serve
from mesh.types import AgentMessage

#: The agent that all messages go to.
RECEIVER: Final = 1_000

_BURST: Final = 16

# On a busy machine a receiver that is killed all the time falls behind; the sender waits for it.
_ROOM_S: Final = 120.0


class Record:
    """A file of lines, each written at once."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o600)

    def write(self, *words: object) -> None:
        """Write one line; it is there when this returns."""
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())


class Sender:
    """Agents that number their messages, and write down each before it is sent and once it is stored.

    Args:
        net: The node.
        path: Where the lines go.
        agents: How many agents send.
    """

    def __init__(self, net: AgentNetworkManager, path: Path, agents: int) -> None:
        self._net = net
        self._next = dict.fromkeys(range(1, agents + 1), 1)
        for line in path.read_text(encoding="ascii").splitlines() if path.exists() else ():
            what, agent, number = line.split()
            if what == "try":
                self._next[int(agent)] = int(number) + 1
        self._record = Record(path)
        self._tasks = [asyncio.create_task(self._send(agent)) for agent in self._next]
        self._stopping = False

    async def _send(self, agent: int) -> None:
        while not self._stopping:
            numbers = range(self._next[agent], self._next[agent] + _BURST)
            self._next[agent] += _BURST
            await asyncio.gather(*(self._send_one(agent, number) for number in numbers))

    async def _send_one(self, agent: int, number: int) -> None:
        self._record.write("try", agent, number)
        await self._net.send(RECEIVER, b"%d" % number, from_agent=agent, durable=True, timeout=_ROOM_S)
        self._record.write("stored", agent, number)

    async def stop(self) -> None:
        """Send no more, and return when everything was handled."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def wait_empty(self) -> None:
        """Return when nothing waits any more."""
        while self._net.stats()["durable"]["outbox"]:  # noqa: ASYNC110 - nobody tells users that
            await asyncio.sleep(0.05)


class Handler:
    """The receiving agent: it does as ``docs/durable.md`` tells those who need each effect exactly once.

    Args:
        path: Where it writes what it has done: its effect.
    """

    def __init__(self, path: Path) -> None:
        lines = path.read_text(encoding="ascii").splitlines() if path.exists() else ()
        self._done = {line.split()[3] for line in lines if line.startswith("done")}
        self._record = Record(path)

    async def __call__(self, message: AgentMessage) -> None:
        """Handle one message."""
        words = (message.from_agent, int(message.payload), message.message_id)
        if message.message_id in self._done:
            self._record.write("again" if REDELIVERED in message.headers else "unmarked", *words)
            return
        if int(message.payload) % 7 == 0:
            await asyncio.sleep(0)  # handlers that suspend are interrupted elsewhere
        self._done.add(message.message_id)
        self._record.write("done", *words)


async def _main() -> None:
    given: dict[str, Any] = options()
    net = await join_network(node_id=given["node_id"], **given["shared"])
    path = Path(given["record"])
    sender: Sender | None = None
    if given["agents"]:
        sender = Sender(net, path, given["agents"])
    else:
        await net.register_agent(RECEIVER, handler=Handler(path))

    async def finish() -> None:
        assert sender is not None
        await sender.stop()
        await sender.wait_empty()

    async def stats() -> Document:
        return {"durable": net.stats()["durable"]}

    try:
        await serve({"finish": finish, "stats": stats})
    finally:
        await net.leave_network()


if __name__ == "__main__":
    run(_main())
