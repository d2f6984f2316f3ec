"""A process of the churn run: hosts nodes in one event loop, and says what they leave behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from pathlib import Path
from typing import Any, Final

import psutil

from mesh.join import join_network
from mesh.manager import AgentNetworkManager
from mesh.processes import Document, options, run, serve
from mesh.types import AgentMessage, NodeStatus

_REPORTS_MAX: Final = 50

# Threads of the loop's executor stay until the loop ends, by design.
_POOL_THREADS: Final = "asyncio_"


class Complaints(logging.Handler):
    """Keeps what is logged with an exception or as an error: in this run there should be none."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep ``record`` if it tells of a defect."""
        if (record.levelno >= logging.ERROR or record.exc_info) and len(self.texts) < _REPORTS_MAX:
            self.texts.append(logging.Formatter("%(name)s: %(message)s").format(record))

    def unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Keep what reached the event loop itself."""
        del loop
        if len(self.texts) < _REPORTS_MAX:
            self.texts.append(f"event loop: {context.get('message')}: {context.get('exception')!r}")


class ChurnHost:
    """The worker's commands.

    Args:
        shared: Settings that all its nodes have.
        complaints: What went wrong.
    """

    def __init__(self, shared: Document, complaints: Complaints) -> None:
        self._shared = shared
        self._complaints = complaints
        self._nets: dict[str, AgentNetworkManager] = {}

    async def join(self, node_id: str, agent_id: int) -> None:
        """Start a node with an agent on it."""
        net = await join_network(node_id=node_id, **self._shared)
        self._nets[node_id] = net

        async def answer(message: AgentMessage) -> bytes:
            return message.payload

        await net.register_agent(agent_id, ["echo"], handler=answer)

    async def leave(self, node_id: str) -> None:
        """Let a node leave in order."""
        await self._nets.pop(node_id).leave_network()

    async def leave_all(self) -> None:
        """Let every node leave."""
        await asyncio.gather(*(self.leave(node_id) for node_id in list(self._nets)))

    async def views(self) -> Document:
        """Whom each node here takes for alive."""
        return {
            "views": {
                node_id: [node.node_id for node in net.members() if node.status is NodeStatus.ACTIVE]
                for node_id, net in self._nets.items()
            }
        }

    async def ask(self, node_id: str, to_agent: int) -> Document:
        """Whether an agent answers a request from a node here."""
        reply = await self._nets[node_id].request(to_agent, b"?", timeout=5.0)
        return {"answered": reply == b"?"}

    async def usage(self) -> Document:
        """What this process holds now, and what was complained of."""
        gc.collect()
        return {
            "tasks": sorted(task.get_name() for task in asyncio.all_tasks()),
            "descriptors": _descriptors(),
            "threads": sorted(t.name for t in threading.enumerate() if not t.name.startswith(_POOL_THREADS)),
            "rss_bytes": psutil.Process().memory_info().rss,
            "complaints": self._complaints.texts,
        }


def _descriptors() -> dict[str, str]:
    """Open file descriptors and what they are; numbers are left out of names so that they can be compared."""
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        return {str(number): "?" for number in range(psutil.Process().num_fds())}
    found = {}
    for entry in folder.iterdir():
        try:
            found[entry.name] = str(entry.readlink()).partition(":")[0]
        except OSError:
            continue  # the one that this listing itself used
    return found


async def main() -> None:
    """Serve until the parent closes our standard input."""
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    asyncio.get_running_loop().set_exception_handler(complaints.unhandled)
    host = ChurnHost(options(), complaints)
    try:
        names = ("join", "leave", "leave_all", "views", "ask", "usage")
        await serve({name: getattr(host, name) for name in names})
    finally:
        await host.leave_all()


if __name__ == "__main__":
    run(main())
