"""In a network too large for a full mesh, links open for messages and close when idle, and nobody notices."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from networks import Networks, networks, runtime
from support import eventually

from gossip import hyparview
from gossip.config import GossipConfig
from mesh import AgentMessage, AgentNetworkManager, MeshConfig

NODES = 14
AGENT = 100


@pytest.fixture
async def join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Networks]:
    """Starts nodes that close links as soon as nobody has used them for a moment."""
    standard = MeshConfig.gossip_config

    def hasty(config: MeshConfig) -> GossipConfig:
        return replace(standard(config), idle_link_s=0.3, heal_interval_s=0.2)

    monkeypatch.setattr(MeshConfig, "gossip_config", hasty)
    monkeypatch.setattr(hyparview, "_UNUSED_LINK_S", 0.1)
    async with networks(tmp_path) as started:
        yield started


@pytest.mark.slow
async def test_closing_idle_links_loses_nothing(join: Networks) -> None:
    """Requests, acknowledged and plain messages between random nodes, while links close under them all the time."""
    arrived: Counter[bytes] = Counter()

    async def answer(message: AgentMessage) -> bytes:
        arrived[message.payload] += 1
        return message.payload

    nets: list[AgentNetworkManager] = []
    for number in range(NODES):
        seeds = [str(nets[0].addresses[0])] if nets else []
        nets.append(await join(f"n{number}", bootstrap=seeds))
        await nets[-1].register_agent(AGENT + number, ["answer"], handler=answer)
    await eventually(lambda: all(len(net.agents()) == NODES for net in nets), timeout_s=20)
    rng = random.Random(1)
    sent: list[bytes] = []

    async def talk(number: int, net: AgentNetworkManager) -> None:
        for turn in range(40):
            to_agent = AGENT + rng.randrange(NODES)
            payload = f"{number} {turn}".encode()
            sent.append(payload)
            if turn % 3 == 0:
                assert await net.request(to_agent, payload, from_agent=AGENT + number, timeout=10) == payload
            else:
                await net.send(to_agent, payload, from_agent=AGENT + number, ack=turn % 3 == 1, timeout=10)
            await asyncio.sleep(rng.expovariate(5))

    await asyncio.gather(*(talk(number, net) for number, net in enumerate(nets)))

    await eventually(lambda: arrived == Counter(sent))
    statistics = [runtime(net).gossip.statistics() for net in nets]
    assert sum(one["links_idle"] for one in statistics) > NODES, "links were closed, or the test shows nothing"
    assert max(one["links"] for one in statistics) < NODES - 1
    assert sum(one["suspicions"] for one in statistics) == 0
