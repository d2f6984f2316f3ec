"""Nodes that share a data tree find each other through it."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from support import eventually

from gossip.discovery.base import Announcement, Sighting
from gossip.discovery.tree import TreeDiscovery
from transport.types import Address, NetworkName, NodeId


class Sink:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.sightings: list[Sighting] = []

    def found(self, sighting: Sighting) -> None:
        """Remember it."""
        self.sightings.append(sighting)

    def lost(self, node_id: NodeId, source: str) -> None:
        """Never called: files do not expire."""


def announcement(node: str, port: int, authority: str = "aa") -> Announcement:
    """What ``node`` announces."""
    address = Address("127.0.0.1", port)
    return Announcement(NetworkName("default"), NodeId(node), 1 << 16, port, (address,), authority)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with directories for three nodes."""
    for node in ("a", "b", "c"):
        (tmp_path / node).mkdir()
    return tmp_path


async def test_neighbours_find_each_other_and_a_closed_one_is_gone(tree: Path) -> None:
    """Two nodes of one tree report each other, and after one closes its file is gone."""
    sinks = Sink(), Sink()
    one, two = (TreeDiscovery(tree, rng=random.Random(seed)) for seed in (1, 2))
    await one.start(announcement("a", 7001), sinks[0])
    await two.start(announcement("b", 7002), sinks[1])
    try:
        await eventually(lambda: bool(sinks[0].sightings and sinks[1].sightings))

        assert sinks[0].sightings[0] == Sighting("tree", (Address("127.0.0.1", 7002),), NodeId("b"))
        assert sinks[1].sightings[0] == Sighting("tree", (Address("127.0.0.1", 7001),), NodeId("a"))
        assert one.statistics() == {"available": 1, "neighbours": 1}
    finally:
        await one.close()
        await two.close()

    assert not (tree / "a" / "address").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"node_id": "c", "pid": "x", "authority": "aa", "addresses": ["127.0.0.1:1"]}',
        b'{"node_id": "C!", "pid": OWN, "authority": "aa", "addresses": ["127.0.0.1:1"]}',
        b'{"node_id": "c", "pid": OWN, "authority": "aa", "addresses": ["http://x"]}',
        b'{"node_id": "c", "pid": OWN, "authority": "aa", "addresses": []}',
        b'{"node_id": "c", "pid": OWN, "authority": "bb", "addresses": ["127.0.0.1:1"]}',
        b'{"node_id": "c", "pid": 4194999, "authority": "aa", "addresses": ["127.0.0.1:1"]}',
    ],
)
async def test_unusable_files_are_passed_over(tree: Path, content: bytes) -> None:
    """Damaged files, other networks' and those of dead processes are ignored; the good neighbour is found."""
    (tree / "c" / "address").write_bytes(content.replace(b"OWN", str(os.getpid()).encode()))
    good = {"node_id": "b", "pid": os.getpid(), "authority": "aa", "addresses": ["127.0.0.1:7002"]}
    (tree / "b" / "address").write_text(json.dumps(good))
    sink = Sink()
    discovery = TreeDiscovery(tree, rng=random.Random(1))
    await discovery.start(announcement("a", 7001), sink)
    try:
        await eventually(lambda: bool(sink.sightings))

        assert [sighting.node_id for sighting in sink.sightings] == ["b"]
    finally:
        await discovery.close()


async def test_many_neighbours_are_sampled(tmp_path: Path) -> None:
    """In a large tree a round reports a few of those that run, found among many that do not; not everybody."""
    for n in range(80):
        (tmp_path / f"n{n}").mkdir()
        pid = os.getpid() if n % 2 else 2**22 + 1  # above what Linux and macOS give to a process
        entry = {"node_id": f"n{n}", "pid": pid, "authority": "aa", "addresses": ["127.0.0.1:7002"]}
        (tmp_path / f"n{n}" / "address").write_text(json.dumps(entry))
    (tmp_path / "a").mkdir()
    sink = Sink()
    discovery = TreeDiscovery(tmp_path, rng=random.Random(1))
    await discovery.start(announcement("a", 7001), sink)
    try:
        await eventually(lambda: len(sink.sightings) == 6)

        first, second = ({s.node_id for s in sink.sightings[n : n + 3]} for n in (0, 3))
        assert len(first) == len(second) == discovery.statistics()["neighbours"] == 3
        assert first != second
    finally:
        await discovery.close()


async def test_an_unwritable_tree_is_a_warning(tmp_path: Path) -> None:
    """A node whose own directory is missing goes on and says that it cannot be found this way."""
    discovery = TreeDiscovery(tmp_path / "nowhere", rng=random.Random(1))
    await discovery.start(announcement("a", 7001), Sink())
    try:
        assert discovery.statistics()["available"] == 0
    finally:
        await discovery.close()
