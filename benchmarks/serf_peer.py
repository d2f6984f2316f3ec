"""The other yardstick: a cluster of ``serf`` agents, what one would take otherwise for membership and events.

Serf is HashiCorp's program around memberlist: SWIM with Lifeguard over UDP, every agent a Go process of its own.  The
agents run with their LAN profile, which is the default, and with a key, because our nodes encrypt as well (serf: one
shared AES key; ours: mutual TLS).  What an agent sees is read from its log, each line stamped when it arrives here.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import random
import re
import secrets
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack
import psutil

from benchmarks.cluster_nodes import wire_rates
from benchmarks.private_network import traffic
from transport.errors import MeshError

_GOSSIP_PORT: Final = 10_000
_RPC_PORT: Final = 20_000
_SPACING_S: Final = 0.05
_POLL_S: Final = 0.1
_JOINED: Final = re.compile(rb"serf: EventMemberJoin: (\S+)")
_FAILED: Final = re.compile(rb"serf: EventMemberFailed: (\S+)")
_SUSPECT: Final = re.compile(rb"memberlist: Suspect (\S+) has failed")
_EVENT: Final = re.compile(rb"agent: Received event: user-event: (\S+)")


def serf() -> str | None:
    """Where the program is installed; ``None`` if it is not (Debian package ``serf``)."""
    return shutil.which("serf", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


@dataclass(slots=True)
class Agent:
    """One agent and what its log said, when."""

    name: str
    number: int
    process: asyncio.subprocess.Process | None = None
    members: set[str] = field(default_factory=set)
    failed_at: dict[str, float] = field(default_factory=dict)
    suspected_at: dict[str, float] = field(default_factory=dict)
    events_at: dict[str, float] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        """Its process's number."""
        assert self.process is not None
        return self.process.pid

    async def read(self) -> None:
        """Follow its log to the end."""
        assert self.process is not None
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            now = time.monotonic()
            if found := _JOINED.search(line):
                self.members.add(found[1].decode())
            elif found := _FAILED.search(line):
                self.failed_at[found[1].decode()] = now
                self.members.discard(found[1].decode())
            elif found := _SUSPECT.search(line):
                self.suspected_at[found[1].decode()] = now
            elif found := _EVENT.search(line):
                self.events_at[found[1].decode()] = now


class SerfCluster:
    """Agents that run on loopback; leaving the context ends them.

    Args:
        nodes: How many.
        rng: Draws who is killed and who sends.
        progress: Told what is being done.
    """

    def __init__(self, *, nodes: int, rng: random.Random, progress: Callable[[str], None]) -> None:
        self._program = serf()
        self._rng = rng
        self._progress = progress
        self._agents = [Agent(f"n{number:04}", number) for number in range(nodes)]
        self._readers: list[asyncio.Task[None]] = []
        self._key = base64.b64encode(secrets.token_bytes(32)).decode()
        self._events = 0
        self.version = ""

    async def __aenter__(self) -> SerfCluster:
        if self._program is None:
            raise MeshError("serf is not installed", hint="apt-get install serf, or scripts/install-debian-packages")
        process = await asyncio.create_subprocess_exec(self._program, "version", stdout=asyncio.subprocess.PIPE)
        self.version = (await process.communicate())[0].decode().splitlines()[0]
        return self

    async def __aexit__(self, *_: object) -> None:
        for agent in self._agents:
            if agent.process is not None and agent.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    agent.process.kill()
        for agent in self._agents:
            if agent.process is not None:
                await agent.process.wait()
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)

    @property
    def alive(self) -> list[Agent]:
        """The agents that were not killed."""
        return [agent for agent in self._agents if agent.process is not None and agent.process.returncode is None]

    async def start(self, *, deadline_s: float) -> dict[str, Any]:
        """Start the agents one after the other and wait until each knows all.

        Raises:
            MeshError: Not all did in time.
        """
        began = time.monotonic()
        for agent in self._agents:
            await self._start_agent(agent)
            await asyncio.sleep(_SPACING_S)
        started = time.monotonic()
        self._progress(f"{len(self._agents)} agents run after {started - began:.1f} s")
        await self._until(
            lambda: all(len(agent.members) == len(self._agents) for agent in self._agents), began + deadline_s
        )
        complete = sum(len(agent.members) == len(self._agents) for agent in self._agents)
        if complete != len(self._agents):
            raise MeshError(f"only {complete} of {len(self._agents)} serf agents know all others")
        now = time.monotonic()
        return {
            "start_s": round(started - began, 2),
            "all_views_complete_s": round(now - began, 2),
            "last_start_to_all_complete_s": round(now - started, 2),
        }

    async def _start_agent(self, agent: Agent) -> None:
        assert self._program is not None
        join = [f"-join=127.0.0.1:{_GOSSIP_PORT}"] if agent.number else []
        agent.process = await asyncio.create_subprocess_exec(
            self._program,
            "agent",
            f"-node={agent.name}",
            f"-bind=127.0.0.1:{_GOSSIP_PORT + agent.number}",
            f"-rpc-addr=127.0.0.1:{_RPC_PORT + agent.number}",
            "-profile=lan",
            f"-encrypt={self._key}",
            *join,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self._readers.append(asyncio.create_task(agent.read()))

    @staticmethod
    async def _until(condition: Callable[[], bool], deadline: float) -> None:
        while not condition() and time.monotonic() < deadline:  # noqa: ASYNC110 - any of many readers may bring it about
            await asyncio.sleep(_POLL_S)

    # --- figures ------------------------------------------------------------------------------------------------

    async def idle(self, seconds: float) -> dict[str, Any]:
        """What ``seconds`` of doing nothing cost."""
        watched = [psutil.Process(agent.pid) for agent in self.alive]
        before, wire, began = _cpu_s(watched), traffic(), time.monotonic()
        await asyncio.sleep(seconds)
        after, after_wire, elapsed_s = _cpu_s(watched), traffic(), time.monotonic() - began
        rss = [process.memory_info().rss for process in watched]
        return {
            "seconds": round(elapsed_s, 1),
            **wire_rates(wire, after_wire, elapsed_s, len(watched)),
            "cpu_percent_per_node": round(100 * (after - before) / elapsed_s / len(watched), 3),
            "rss_mib": round(sum(rss) / 2**20),
            "rss_mib_of_a_lone_node": round(statistics.median(rss) / 2**20, 1),
        }

    async def broadcast(self, *, payload_bytes: int, deadline_s: float) -> list[float]:
        """Send a user event; return how long it took to each other agent that it reached, seconds."""
        origin = self._rng.choice(self.alive)
        self._events += 1
        name = f"e{self._events}"
        at = await self._fire(origin, name, bytes(payload_bytes))
        others = [agent for agent in self.alive if agent is not origin]
        await self._until(lambda: all(name in agent.events_at for agent in others), at + deadline_s)
        return [agent.events_at[name] - at for agent in others if name in agent.events_at]

    @staticmethod
    async def _fire(origin: Agent, name: str, payload: bytes) -> float:
        """Give the event to the agent over its RPC port; return when."""
        reader, writer = await asyncio.open_connection("127.0.0.1", _RPC_PORT + origin.number)
        try:
            writer.write(msgpack.packb({"Command": "handshake", "Seq": 0}) + msgpack.packb({"Version": 1}))
            await reader.read(256)
            at = time.monotonic()
            body = {"Name": name, "Payload": payload, "Coalesce": False}
            writer.write(msgpack.packb({"Command": "event", "Seq": 1}) + msgpack.packb(body))
            await reader.read(256)
            return at
        finally:
            writer.close()

    async def kill(self, *, deadline_s: float) -> dict[str, Any]:
        """End an agent with SIGKILL and see when every survivor knows."""
        # Never the one that the others joined by, whose end would be like any other's, but to be beyond doubt.
        victim = self._rng.choice([agent for agent in self.alive if agent.number])
        assert victim.process is not None
        began = time.monotonic()
        victim.process.kill()
        await victim.process.wait()
        survivors = self.alive
        await self._until(lambda: all(victim.name in agent.failed_at for agent in survivors), began + deadline_s)
        known = sorted(a.failed_at[victim.name] - began for a in survivors if victim.name in a.failed_at)
        suspected = [a.suspected_at[victim.name] - began for a in survivors if victim.name in a.suspected_at]
        return {
            "survivors": len(survivors),
            "know": len(known),
            "first_suspect_s": round(min(suspected), 2) if suspected else None,
            "first_dead_s": round(known[0], 2) if known else None,
            "all_know_p50_s": round(known[len(known) // 2], 2) if known else None,
            "all_know_last_s": round(known[-1], 2) if known else None,
        }

    def false_deaths(self) -> int:
        """How often an agent that lives was called failed."""
        alive = {agent.name for agent in self.alive}
        return sum(len(alive.intersection(agent.failed_at)) for agent in self.alive)


def _cpu_s(watched: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in watched]
    return float(sum(one.user + one.system for one in times))
