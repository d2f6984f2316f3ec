"""What a mesh does to documents: cuts, restarts, crashes, and stores that were damaged meanwhile."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from networks import Networks, linked, networks, runtime
from support import ROOT, eventually

from mesh import AgentNetworkManager, SharedDocument
from transport.link import CloseReason
from transport.types import NodeId


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


@contextmanager
def parted(one: list[AgentNetworkManager], other: list[AgentNetworkManager]) -> Iterator[None]:
    """No frame passes between the two sides; what was under way is lost, and links break."""
    sides = [{net.node.node_id for net in side} for side in (one, other)]
    undo = []
    for side, strangers in ((one, sides[1]), (other, sides[0])):
        for net in side:
            endpoint = runtime(net).endpoint
            dial = endpoint.dial

            async def refuse(address: object, expected: NodeId | None = None, *, dial=dial, cut=strangers) -> object:  # type: ignore[no-untyped-def]
                link = await dial(address, expected)
                if link.peer.node_id in cut:
                    link.finish(CloseReason.CONNECTION_LOST, "parted by the test")
                return link

            endpoint.dial = refuse  # type: ignore[method-assign, assignment]
            undo.append((endpoint, dial))
            for peer, link in list(runtime(net).gossip.links.items()):
                if peer in strangers:
                    link.finish(CloseReason.CONNECTION_LOST, "parted by the test")  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for endpoint, dial in undo:
            endpoint.dial = dial  # type: ignore[method-assign]


async def test_both_sides_of_a_partition_write_and_heal(join: Networks) -> None:
    """Five nodes fall apart, write on both sides, and hold all of it once they can talk again."""
    nets = await join.several("a", "b", "c", "d", "e")
    docs = await opened(nets)
    docs[0]["before"] = True
    await eventually(lambda: equal(docs) and "before" in docs[4])
    with parted(nets[:2], nets[2:]):
        for which, doc in enumerate(docs):
            doc[f"apart-{which}"] = which
            doc.counter("hits").increment(which)
        await eventually(lambda: equal(docs[:2]) and equal(docs[2:]) and len(docs[0]) == 3 and len(docs[2]) == 4)
        assert "apart-0" not in docs[4]
    await eventually(lambda: equal(docs), timeout_s=20.0)
    assert len(docs[0]) == 6
    assert docs[3].counter("hits").value == 10


async def test_a_restarted_node_has_what_it_had_and_gets_what_it_missed(join: Networks) -> None:
    """From its disk alone first, then from the others; it writes as a new process."""
    a, b = await join.several("a", "b")
    here, there = await opened([a, b])
    for number in range(50):
        here[f"k{number}"] = number
    here.text("notes").append("é😀z")
    await eventually(lambda: equal([here, there]))
    before = there.digest()
    await b.leave_network()
    here["missed"] = [1, 2.0, b"3"]
    await a.leave_network()

    b = await join("b")  # alone: only its disk can tell
    there = await b.document("board")
    assert there.digest() == before
    there["again"] = True
    a = await join("a")
    await linked(a, b)
    here, there = await opened([a, b])
    await eventually(lambda: equal([here, there]) and "again" in here)
    assert there["missed"] == [1, 2.0, b"3"]
    assert {writer.partition("/")[0] for writer in here.version} == {"a", "b"}
    assert len(here.version) == 2


async def test_a_damaged_store_is_healed_by_others(join: Networks, tmp_path: Path) -> None:
    """Records that were flipped or taken away come back from a peer, and are on disk again."""
    a, b = await join.several("a", "b")
    here, there = await opened([a, b])
    for number in range(40):
        here[f"k{number % 7}"] = number
        here.array("log").append(number)
    await eventually(lambda: equal([here, there]))
    await b.leave_network()
    path = tmp_path / "one" / b.network / "b" / "documents.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE envelopes SET body = zeroblob(9) WHERE key % 9 = 3")
        connection.execute("DELETE FROM envelopes WHERE key % 9 = 5")
        connection.commit()

    b = await join("b")
    await linked(a, b)
    there = await b.document("board")
    await eventually(lambda: equal([here, there]))
    assert b.stats()["documents"]["store"]["quarantined"] > 0
    await there.saved()
    await a.leave_network()
    await b.leave_network()
    b = await join("b")
    assert equal([here, await b.document("board")])
    assert b.stats()["documents"]["store"]["quarantined"] == 0


WRITER = """
import asyncio, sys
from mesh import join_network

async def main():
    async with join_network(node_id="a", listen="127.0.0.1:0", mdns=False, preset="local", data_dir=sys.argv[1]) as net:
        doc = await net.document("board")
        number = 0
        while True:
            for _ in range(7):
                doc[f"k{number % 100}"] = number
                doc.counter("made").increment()
                number += 1
            await doc.saved()
            print(number, flush=True)

asyncio.run(main())
"""


async def test_what_was_acknowledged_survives_a_kill(join: Networks) -> None:
    """A process that writes without end is killed: each time all that it said was saved is there."""
    total = 0
    for _ in range(3):
        data_dir = str(join.folder / "one")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITER, data_dir, cwd=ROOT, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        acknowledged = 0
        for _ in range(20):
            acknowledged = int(await process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = (await process.stdout.read()).split(b"\n")[:-1]
        await process.wait()
        acknowledged = int(rest[-1]) if rest else acknowledged

        net = await join("a")
        doc = await net.document("board")
        made = doc.counter("made").value
        assert made >= total + acknowledged
        assert doc.stats()["waiting"] == doc.stats()["refused"] == 0
        last = max(value for _, value in doc.items() if isinstance(value, int))
        assert last >= acknowledged - 1
        total = made
        await net.leave_network()
