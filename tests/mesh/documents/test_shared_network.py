"""Documents over real nodes: they converge, heal, outlive restarts, and reach who comes late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from networks import Networks, networks
from support import eventually

from mesh import AgentNetworkManager, SharedDocument


@pytest.fixture
async def join(tmp_path: Path) -> AsyncIterator[Networks]:
    """Starts nodes."""
    async with networks(tmp_path) as started:
        yield started


async def opened(nets: list[AgentNetworkManager], name: str = "board") -> list[SharedDocument]:
    """The document on each of these nodes, when each knows of all."""
    docs = list(await asyncio.gather(*(net.document(name) for net in nets)))
    await eventually(lambda: all(len(doc.replicas) == len(nets) - 1 for doc in docs))
    return docs


def equal(docs: list[SharedDocument]) -> bool:
    """Whether all read the same."""
    return len({doc.digest() for doc in docs}) == 1


async def test_concurrent_writes_converge(join: Networks) -> None:
    """Three nodes write everything at once; all come to read the same, and nothing is lost."""
    nets = await join.several("a", "b", "c")
    docs = await opened(nets)
    for number in range(20):
        for which, doc in enumerate(docs):
            doc[f"{which}-{number}"] = number
            doc["contended"] = which
            doc.counter("hits").increment()
            doc.array("log").append(f"{which}:{number}")
            doc.text("notes").append("x")
            doc.set("tags").add(which)
        await asyncio.sleep(0)
    await eventually(lambda: equal(docs) and docs[0].counter("hits").value == 60)
    assert len(docs[2].array("log")) == len(docs[1].text("notes")) == 60
    assert set(docs[0].set("tags")) == {0, 1, 2}
    assert len(docs[0]) == 61


async def test_a_late_joiner_gets_everything(join: Networks) -> None:
    """Also of a document that it never heard of while it was made."""
    (a,) = await join.several("a")
    doc = await a.document("board")
    for number in range(3_000):
        doc[f"key-{number}"] = number
    await doc.saved()
    b = await join("b")
    await b.wait_for_members(2)
    late = await b.document("board")
    await late.synced()
    assert late.to_dict() == doc.to_dict()
