"""Two nodes that cannot dial each other talk through others, which are processes of their own that may be killed."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from networks import Networks, networks, runtime
from support import eventually

from mesh import AgentMessage, AgentNetworkManager, NodeStatus
from transport.errors import PeerUnreachable
from transport.link import Link
from transport.types import Address, NodeId
from transport.websocket import WebSocketEndpoint

A, B = NodeId("a"), NodeId("b")
SENDER, RECEIVER = 1, 2

pytestmark = pytest.mark.allow_blocking("subprocess waits for exec, about a millisecond, and knows no other way")


class Wall:
    """What stands between A and B: while it does, no dial from one to the other succeeds."""

    def __init__(self, dial: Callable[..., object]) -> None:
        self.stands = True
        self._dial = dial

    async def dial(self, endpoint: WebSocketEndpoint, address: Address, expected: NodeId | None = None) -> Link:
        """In the place of the endpoint's own."""
        if self.stands and {endpoint.node_id, expected} == {A, B}:
            raise PeerUnreachable(f"{address} is behind a wall")
        link: Link = await self._dial(endpoint, address, expected)  # type: ignore[misc]  # it is a coroutine function
        return link


class Relays:
    """The nodes between, each a process, by name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.processes: dict[str, Process] = {}

    async def start(self, name: str, **environment: str) -> None:
        """Start a node that knows the others by the data directory they share."""
        command = [sys.executable, "-m", "mesh", "up", "--json", "--no-mdns", "--node-id", name]
        where = ["--listen", "127.0.0.1:0", "--data-dir", str(self._folder / "one"), "--preset", "local"]
        everything = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
        process = await asyncio.create_subprocess_exec(*command, *where, stdout=PIPE, env=everything)
        self.processes[name] = process
        assert process.stdout is not None
        assert json.loads(await process.stdout.readline())

    async def kill(self, name: str) -> None:
        """SIGKILL."""
        process = self.processes.pop(name)
        process.kill()
        await process.communicate()

    async def close(self) -> None:
        """End those that are left."""
        for name in list(self.processes):
            await self.kill(name)


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    """Between A and B."""
    wall = Wall(WebSocketEndpoint.dial)

    async def dial(endpoint: WebSocketEndpoint, address: Address, expected: NodeId | None = None) -> Link:
        return await wall.dial(endpoint, address, expected)

    monkeypatch.setattr(WebSocketEndpoint, "dial", dial)
    return wall


@pytest.fixture
async def relays(tmp_path: Path) -> AsyncIterator[Relays]:
    """Processes that end with the test."""
    started = Relays(tmp_path)
    yield started
    await started.close()


@pytest.fixture
async def join(tmp_path: Path, relays: Relays, wall: Wall) -> AsyncIterator[Networks]:
    """Starts nodes in this process."""
    async with networks(tmp_path) as started:
        yield started


async def ends(
    join: Networks, count: int, **settings: Any
) -> tuple[AgentNetworkManager, AgentNetworkManager, list[AgentMessage]]:
    """A and B, when the network has so many nodes and each of them an agent; and what the agents hear."""
    a, b = await join(A, **settings), await join(B, **settings)
    heard: list[AgentMessage] = []

    async def hear(message: AgentMessage) -> bytes:
        heard.append(message)
        return message.payload

    await a.register_agent(SENDER, ["send"], handler=hear)
    await b.register_agent(RECEIVER, ["hear"], handler=hear)

    def complete() -> bool:
        active = [[node for node in net.members() if node.status is NodeStatus.ACTIVE] for net in (a, b)]
        linked = all(len(runtime(net).gossip.links) == count - 2 for net in (a, b))
        return linked and all(len(nodes) == count for nodes in active) and len(a.agents()) == 2

    await eventually(complete, timeout_s=15)
    return a, b, heard


def statistic(net: AgentNetworkManager, name: str) -> float:
    """A figure of gossip's."""
    return runtime(net).gossip.statistics()[name]


async def test_requests_are_answered_through_another_node(join: Networks, relays: Relays) -> None:
    """A asks B, large and small, and B asks A, while neither can dial the other."""
    await relays.start("c")
    a, b, _ = await ends(join, 3)

    assert await a.request(RECEIVER, b"there", from_agent=SENDER, timeout=5) == b"there"
    assert await b.request(SENDER, b"and back", from_agent=RECEIVER, timeout=5) == b"and back"
    large = os.urandom(900_000)
    assert await a.request(RECEIVER, large, from_agent=SENDER, timeout=5) == large

    assert B not in runtime(a).gossip.links
    assert statistic(a, "relay_links") == statistic(b, "relay_links") == 1


async def test_a_relay_is_killed_in_mid_stream_and_the_other_goes_on(join: Networks, relays: Relays) -> None:
    """Nothing is lost, nothing comes twice, and the order stays, in both directions."""
    await relays.start("c")
    await relays.start("d")
    a, b, heard = await ends(join, 4)
    total = 4000

    async def stream(net: AgentNetworkManager, to_agent: int, from_agent: int) -> None:
        for number in range(total):
            await net.send(to_agent, b"%d" % number + bytes(500), from_agent=from_agent, timeout=10)

    sending = asyncio.gather(stream(a, RECEIVER, SENDER), stream(b, SENDER, RECEIVER))
    await eventually(lambda: len(heard) > total // 4, timeout_s=10)
    hop = runtime(a).gossip._core.next_hop(B, runtime(a)._clock.monotonic())
    assert hop in ("c", "d")
    await relays.kill(hop)
    await sending
    await eventually(lambda: len(heard) >= 2 * total, timeout_s=20)

    for agent in (SENDER, RECEIVER):
        payloads = [message.payload.rstrip(b"\0") for message in heard if message.to_agent == agent]
        assert payloads == [b"%d" % number for number in range(total)]
    assert statistic(a, "relay_links_opened") == statistic(b, "relay_links_opened") == 1
    assert statistic(a, "relay_pieces_sent_again") + statistic(b, "relay_pieces_sent_again") > 0
    (other,) = {"c", "d"} - {hop}
    assert runtime(a).gossip._core.next_hop(B, runtime(a)._clock.monotonic()) == other


async def test_answers_in_parts_come_through_relays(join: Networks, relays: Relays) -> None:
    """One of which is killed meanwhile: no part is lost, none doubled; and giving up reaches the other end."""
    await relays.start("c")
    await relays.start("d")
    a, b, _ = await ends(join, 4)
    total, ended = 400, []

    async def count(_: AgentMessage) -> AsyncIterator[bytes]:
        try:
            for number in range(total):
                yield b"%d" % number + bytes(5_000)
                await asyncio.sleep(0)
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    await b.register_agent(30, handler=count)
    await a.wait_for_agent(30)
    parts: list[bytes] = []
    async with a.stream(30, b"", idle_timeout=30.0) as stream:
        async for part in stream:
            parts.append(part.rstrip(b"\0"))
            if len(parts) == total // 4:
                hop = runtime(a).gossip._core.next_hop(B, runtime(a)._clock.monotonic())
                assert hop in ("c", "d")
                await relays.kill(hop)
            if len(parts) == total:
                break
        assert not ended
    assert parts == [b"%d" % number for number in range(total)]
    await eventually(lambda: ended == [True], timeout_s=10)
    assert statistic(a, "relay_links_opened") == statistic(b, "relay_links_opened") == 1


async def test_when_the_wall_falls_the_direct_link_takes_over(join: Networks, relays: Relays, wall: Wall) -> None:
    """While requests and messages go on: none fails, none is lost, and the order stays."""
    await relays.start("c")
    a, b, heard = await ends(join, 3)
    assert await a.request(RECEIVER, b"first", from_agent=SENDER, timeout=5) == b"first"
    heard.clear()

    sent: list[bytes] = []
    while not statistic(a, "relay_handovers") or len(sent) < 300:
        payload = b"%d" % len(sent)
        sent.append(payload)
        if len(sent) % 10:
            await a.send(RECEIVER, payload, from_agent=SENDER, timeout=5)
        else:
            assert await a.request(RECEIVER, payload, from_agent=SENDER, timeout=5) == payload
            await asyncio.sleep(0.02)
        if len(sent) == 100:
            wall.stands = False
            runtime(a).gossip.want_link(B)
        assert len(sent) < 20_000, "the direct link did not take over"

    await eventually(lambda: len(heard) >= len(sent))
    assert [message.payload for message in heard] == sent
    await eventually(lambda: statistic(b, "relay_links") == 0)
    assert await b.request(SENDER, b"direct", from_agent=RECEIVER, timeout=5) == b"direct"
    assert statistic(a, "relay_links") == 0


async def test_what_passes_a_relay_is_sealed_even_where_nobody_demands_it(join: Networks, relays: Relays) -> None:
    """No certificate was seen on the way, so the bodies themselves must show who sent them."""
    await relays.start("c", MESH_MESSAGES__END_TO_END="false")
    a, b, _ = await ends(join, 3, messages={"end_to_end": False})

    assert await a.request(RECEIVER, b"there", from_agent=SENDER, timeout=5) == b"there"

    for net in (a, b):
        counters = net.stats()["end_to_end"]
        assert counters["links_sealed"] == 1
        assert counters["bodies_sealed"] > 0
