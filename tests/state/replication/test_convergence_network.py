"""Five replicas with disks, random writes, loss, cuts, crashes: equal in the end, and nothing saved is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from replicas import FAST, Node, World
from support import eventually

from state.documents.document import Document
from transport.types import NodeId

NAMES = "abcde"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A fake network whose replicas are closed at the end."""
    made = World(tmp_path)
    yield made
    for node in list(made.nodes.values()):
        await made.remove(node)


def write(document: Document, rng: random.Random, number: int) -> None:
    """Something of some type; the number is a key that nobody else uses."""
    document.map("done")[str(number)] = number
    match rng.randrange(6):
        case 0:
            document[f"k{rng.randrange(5)}"] = rng.choice([1, 1.0, None, b"x", "é😀", [1, {"a": 2}]])
        case 1:
            document.counter("hits").increment(rng.randrange(-3, 4))
        case 2:
            text = document.text("notes")
            text.insert(rng.randrange(len(text) + 1), rng.choice(["a", "é😀", "zz"]))
            if len(text) > 20:
                text.delete(rng.randrange(len(text) - 3), 3)
        case 3:
            array = document.array("list")
            array.insert(rng.randrange(len(array) + 1), number, "x")
            if len(array) > 20:
                array.delete(rng.randrange(len(array)))
        case 4:
            tags = document.set("tags")
            (tags.add if rng.random() < 0.6 else tags.discard)(rng.randrange(5))
        case _:
            document.register("leader").set(number)


async def crash(world: World, node: Node) -> None:
    """End a replica as a killed process ends: nothing more is saved, sent or received."""
    del world.nodes[node.name]
    for other in world.nodes.values():
        other.replica.peer_down(node.name)
    node.replica.document.close()
    node.replica._closed = True
    node.replica._unsaved.clear()
    if node.replica._timer is not None:
        node.replica._timer.cancel()
    await node.replica._scope.close()
    await node.store.close()


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_replicas_converge_whatever_happens(world: World, seed: int) -> None:
    """Saved writes are in every replica, all digests are equal, and so they are after all were opened anew."""
    rng = random.Random(seed)
    lives = dict.fromkeys(NAMES, 1)
    for name in NAMES:
        await world.add(name)
    saved: list[int] = []
    number = 0
    for _ in range(40):
        side = {name for name in NAMES if rng.random() < 0.4} if rng.random() < 0.5 else set()
        world.passes = lambda a, b, side=side: (a in side) == (b in side) and rng.random() < 0.8  # type: ignore[misc]
        written: dict[str, list[int]] = {}
        for _ in range(10):
            name = rng.choice(sorted(world.nodes))
            number += 1
            write(world.nodes[NodeId(name)].document, rng, number)
            written.setdefault(name, []).append(number)
        for name, numbers in written.items():
            if rng.random() < 0.5:
                await world.nodes[NodeId(name)].replica.saved()
                saved += numbers
        if rng.random() < 0.3:
            name = rng.choice(sorted(world.nodes))
            await crash(world, world.nodes[NodeId(name)])
            lives[name] += 1
            await world.add(name, life=lives[name], config=FAST)
        await asyncio.sleep(0.005)
    world.passes = lambda _a, _b: True

    def equal() -> bool:
        digests = {node.document.digest() for node in world.nodes.values()}
        waiting = sum(node.document.held_count for node in world.nodes.values())
        return len(digests) == 1 and not waiting and len({n.document.history() for n in world.nodes.values()}) == 1

    await eventually(equal, timeout_s=20.0)
    nodes = list(world.nodes.values())
    done = {value for _, value in nodes[0].document.map("done").items()}
    assert set(saved) <= done
    digest = nodes[0].document.digest()
    assert all(node.replica.counters["divergent"] == node.replica.counters["refused"] == 0 for node in nodes)
    for node in nodes:
        await world.remove(node)
    for name in NAMES:
        reopened = await world.add(name, life=lives[name] + 1)
        assert reopened.document.digest() == digest
