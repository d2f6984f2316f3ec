"""A process of the cluster benchmark: hosts many nodes in one event loop and notes what each of them sees, and when.

Everything is read through the public API, as an application would: members and events, handlers, requests.  Times are
of the machine's monotonic clock, which all processes share.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import sys
import time
from collections import Counter
from typing import Any, Final

import psutil

from mesh.events import EventsLost, NodeFailed, NodeJoined, NodeLeft, NodeSuspected, NodeUpdated
from mesh.join import join_network
from mesh.manager import AgentNetworkManager
from mesh.processes import Document, options, run, serve
from mesh.types import AgentMessage, MessageType, NodeStatus

_TEXTS_MAX: Final = 20
# A loop that is so late has enough to do without another node.
_CALM_S: Final = 0.1
_CALM_WAIT_S: Final = 20.0
# Log lines are told apart by their first words; a defect that writes a new text each time must not fill memory.
_CAUSES_MAX: Final = 50


class Log(logging.Handler):
    """Counts warnings by event and keeps the first errors."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warnings: Counter[str] = Counter()
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Count or keep ``record``."""
        text = record.getMessage()
        if record.levelno >= logging.ERROR or record.exc_info:
            self._keep(f"{record.name}: {text}")
            return
        cause = f"{record.name}: {_event(record, text)}"
        if cause in self.warnings or len(self.warnings) < _CAUSES_MAX:
            self.warnings[cause] += 1

    def unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Keep what reached the event loop itself."""
        del loop
        self._keep(f"event loop: {context.get('message')}: {context.get('exception')!r}")

    def _keep(self, text: str) -> None:
        if len(self.errors) < _TEXTS_MAX:
            self.errors.append(text[:400])


def _event(record: logging.LogRecord, text: str) -> str:
    """What was logged, without the fields that differ each time."""
    return str(record.msg.get("event")) if isinstance(record.msg, dict) else text.partition("=")[0][:80]


class Watched:
    """One node and what it has seen.

    Args:
        net: The node.
        agent_id: Its agent's number.
        expected: How many nodes make its view complete.
    """

    def __init__(self, net: AgentNetworkManager, agent_id: int, expected: int) -> None:
        self.net = net
        self.agent_id = agent_id
        self.node_id = net.node.node_id
        self.expected = expected
        self.active: set[str] = set()
        self.complete_at: float | None = None
        self.suspected_at: dict[str, float] = {}
        self.failed_at: dict[str, float] = {}
        self.arrived_at: dict[str, float] = {}
        self.events_lost = 0
        self._task = asyncio.create_task(self._watch(), name=f"watch {self.node_id}")

    async def handle(self, message: AgentMessage) -> bytes | None:
        """Be the node's agent: note broadcasts, echo queries."""
        if message.message_type is MessageType.BROADCAST:
            self.arrived_at[message.payload[:16].decode().rstrip()] = time.monotonic()
            return None
        return message.payload

    async def _watch(self) -> None:
        events = self.net.events()
        self._read_members()
        async for event in events:
            if isinstance(event, EventsLost):
                self.events_lost += event.count
                self._read_members()
            elif isinstance(event, NodeJoined | NodeUpdated | NodeSuspected | NodeFailed | NodeLeft):
                self._note(event)

    def _note(self, event: NodeJoined | NodeUpdated | NodeSuspected | NodeFailed | NodeLeft) -> None:
        node = event.node
        if isinstance(event, NodeSuspected):
            self.suspected_at[node.node_id] = time.monotonic()
        elif isinstance(event, NodeFailed):
            self.failed_at[node.node_id] = time.monotonic()
        elif isinstance(event, NodeJoined):
            self.failed_at.pop(node.node_id, None)
        if node.status is NodeStatus.ACTIVE:
            self.active.add(node.node_id)
            self._check()
        else:
            self.active.discard(node.node_id)

    def _read_members(self) -> None:
        self.active = {node.node_id for node in self.net.members() if node.status is NodeStatus.ACTIVE}
        self._check()

    def _check(self) -> None:
        if self.complete_at is None and len(self.active) >= self.expected:
            self.complete_at = time.monotonic()

    async def close(self) -> None:
        """Leave the network."""
        await self.net.leave_network()
        self._task.cancel()
        await asyncio.wait([self._task])


class ClusterHost:
    """The worker's commands.

    Args:
        shared: Settings that all its nodes have.
        log: What is logged.
    """

    def __init__(self, shared: Document, log: Log) -> None:
        self._shared = shared
        self._log = log
        self._nodes: dict[str, Watched] = {}

    async def start(self, names: dict[str, int], bootstrap: list[str], at_once: int, expected: int) -> Document:
        """Start nodes, each with the agent of the number given, ``at_once`` at a time.

        The next begins when one is in the network and the event loop keeps up.
        """
        turns = asyncio.Semaphore(at_once)

        async def one(node_id: str, agent_id: int) -> None:
            async with turns:
                await _calm()
                net = await join_network(node_id=node_id, bootstrap=bootstrap, **self._shared)
                watched = self._nodes[node_id] = Watched(net, agent_id, expected)
                await net.register_agent(agent_id, ["echo"], handler=watched.handle)
                if bootstrap:
                    await net.wait_for_members(2, timeout_s=_CALM_WAIT_S * 6)

        await asyncio.gather(*(one(node_id, agent_id) for node_id, agent_id in names.items()))
        return {"addresses": [str(self._nodes[node_id].net.addresses[0]) for node_id in names]}

    async def views(self) -> Document:
        """How far the member tables are."""
        nodes = self._nodes.values()
        return {
            "complete_at": [node.complete_at for node in nodes if node.complete_at is not None],
            "sizes": sorted(len(node.active) for node in nodes),
            "agents": min((len(node.net.agents()) for node in nodes), default=0),
        }

    async def missing(self) -> Document:
        """Whom the incomplete views lack, for a look at a run that went wrong."""
        everybody = {node_id for node in self._nodes.values() for node_id in node.active}
        return {"missing": {n.node_id: sorted(everybody - n.active)[:8] for n in self._nodes.values()}}

    async def broadcast(self, node_id: str, name: str, payload_bytes: int) -> Document:
        """Broadcast from the agent of a node here."""
        payload = name.encode().ljust(16).ljust(payload_bytes, b".")
        node = self._nodes[node_id]
        began = time.monotonic()
        await node.net.broadcast_message(payload, from_agent=node.agent_id)
        return {"at": began}

    async def arrivals(self, name: str) -> Document:
        """When a broadcast reached the nodes here."""
        return {"at": [node.arrived_at[name] for node in self._nodes.values() if name in node.arrived_at]}

    async def ask(self, pairs: list[tuple[str, str, int]], at_once: int) -> Document:
        """Request from nodes here to agents elsewhere: (asker, node asked, its agent); one result each, in order."""
        turns = asyncio.Semaphore(at_once)

        async def one(asker: str, asked: str, agent_id: int) -> Document:
            net = self._nodes[asker].net
            async with turns:
                linked = asked in net._runtime.gossip.links
                began = time.monotonic()
                try:
                    answer = await net.request(agent_id, b"?" * 64, timeout=10.0)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is the result
                    return {"linked": linked, "error": f"{type(error).__name__}: {error}"}
                if answer != b"?" * 64:
                    return {"linked": linked, "error": f"answered {answer!r:.60}"}
                return {"linked": linked, "ms": (time.monotonic() - began) * 1000}

        return {"results": await asyncio.gather(*(one(*pair) for pair in pairs))}

    async def losses(self, victims: list[str], since: float) -> Document:
        """Who here has seen all of ``victims`` fail, when the last of them; and when the first was suspected."""
        suspected = [
            at for node in self._nodes.values() for v in victims if (at := node.suspected_at.get(v, 0.0)) >= since
        ]
        failed = [at for node in self._nodes.values() for v in victims if (at := node.failed_at.get(v, 0.0)) >= since]
        known_at = [
            max(node.failed_at[victim] for victim in victims)
            for node in self._nodes.values()
            if all(node.failed_at.get(victim, 0.0) >= since for victim in victims)
        ]
        return {
            "first_suspected_at": min(suspected, default=None),
            "first_failed_at": min(failed, default=None),
            "known_at": known_at,
        }

    async def alive(self, node_ids: list[str]) -> Document:
        """How many nodes here take all of ``node_ids`` for active."""
        return {"count": sum(1 for node in self._nodes.values() if node.active.issuperset(node_ids))}

    async def false_alarms(self, lost: list[str], since: float) -> Document:
        """Suspicions and deaths since then of nodes that were not ``lost``."""
        gone = set(lost)
        return {
            "suspicions": sum(
                1 for n in self._nodes.values() for v, at in n.suspected_at.items() if v not in gone and at >= since
            ),
            "deaths": sum(
                1 for n in self._nodes.values() for v, at in n.failed_at.items() if v not in gone and at >= since
            ),
        }

    async def quiet_heap(self) -> None:
        """Exempt what is there now from garbage collection.

        Dozens of nodes hold millions of records that will live on; a full collection of all of them would stop every
        node of the process for a second, which a process with one node never sees.
        """
        gc.collect()
        gc.freeze()

    async def usage(self) -> Document:
        """What this process uses, with the sums of its nodes' counters."""
        process = psutil.Process()
        sums: Counter[str] = Counter()
        for node in self._nodes.values():
            stats = node.net.stats()
            for layer in ("gossip", "links"):
                numbers = {f"{layer}.{k}": v for k, v in stats[layer].items() if isinstance(v, int)}
                sums.update(numbers)
        return {
            "nodes": len(self._nodes),
            "rss_bytes": process.memory_info().rss,
            "cpu_s": time.process_time(),
            "descriptors": await asyncio.to_thread(process.num_fds),
            "threads": process.num_threads(),
            "tasks": len(asyncio.all_tasks()),
            "events_lost": sum(node.events_lost for node in self._nodes.values()),
            "counters": dict(sums),
            "warnings": dict(self._log.warnings),
            "errors": self._log.errors,
        }

    async def leave_all(self) -> None:
        """Let every node leave in order."""
        await asyncio.gather(*(node.close() for node in self._nodes.values()))
        self._nodes.clear()


async def _calm() -> None:
    """Wait until the event loop is hardly late, or has been late for long: then waiting helps nobody."""
    deadline = time.monotonic() + _CALM_WAIT_S
    late_s = _CALM_S
    while late_s >= _CALM_S and time.monotonic() < deadline:
        due = time.monotonic() + _CALM_S
        await asyncio.sleep(_CALM_S)
        late_s = time.monotonic() - due


def raise_descriptor_limit() -> int:
    """Allow this process as many open files as the system lets it; return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if sys.platform != "darwin" and soft != hard:  # there the hard limit is often infinite, and refused
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


async def main() -> None:
    """Serve until the parent closes our standard input."""
    raise_descriptor_limit()
    log = Log()
    logging.getLogger().addHandler(log)
    asyncio.get_running_loop().set_exception_handler(log.unhandled)
    host = ClusterHost(options(), log)
    names = (
        "start",
        "views",
        "missing",
        "broadcast",
        "arrivals",
        "ask",
        "losses",
        "alive",
        "false_alarms",
        "quiet_heap",
        "usage",
        "leave_all",
    )
    await serve({name: getattr(host, name) for name in names})


if __name__ == "__main__":
    run(main())
