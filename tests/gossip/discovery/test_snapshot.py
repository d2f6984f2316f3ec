"""A restarted node finds its network again from its own memory."""

from __future__ import annotations

import random
from pathlib import Path

from support import eventually

from gossip.discovery.base import Announcement, Sighting
from gossip.discovery.snapshot import SnapshotDiscovery
from gossip.events import Member, MemberState
from transport.types import Address, NetworkName, NodeId

ME = Announcement(NetworkName("default"), NodeId("me"), 1 << 16, 7000, (Address("127.0.0.1", 7000),), "aa")


class Sink:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.sightings: list[Sighting] = []

    def found(self, sighting: Sighting) -> None:
        """Remember it."""
        self.sightings.append(sighting)

    def lost(self, node_id: NodeId, source: str) -> None:
        """Never called: memory does not expire."""


def member(name: str, port: int = 7001) -> Member:
    """A live member."""
    return Member(NodeId(name), 1 << 16, MemberState.ALIVE, (Address("10.0.0.1", port),))


async def life(path: Path, *members: Member, leave: bool = False, seed: int = 1) -> list[Sighting]:
    """Run one life of the node: what it found at its start, while it met ``members``."""
    sink = Sink()
    discovery = SnapshotDiscovery(path, rng=random.Random(seed))
    await discovery.start(ME, sink)
    for met in members:
        discovery.note(met)
    if leave:
        discovery.leave()
    await discovery.close()
    return sink.sightings


async def test_the_next_life_finds_those_of_the_last(tmp_path: Path) -> None:
    """Members met before a crash are sighted at the next start, the node itself is not."""
    path = tmp_path / "members.log"
    assert await life(path, member("a"), member("b"), member("me")) == []

    found = await life(path)

    assert [(s.source, s.node_id) for s in found] == [("snapshot", "a"), ("snapshot", "b")]


async def test_a_start_that_meets_nobody_forgets_nobody(tmp_path: Path) -> None:
    """Memory survives a life in which the network could not be reached."""
    path = tmp_path / "members.log"
    await life(path, member("a"))
    await life(path)

    assert [s.node_id for s in await life(path)] == ["a"]


async def test_after_a_graceful_leave_nothing_draws_it_back(tmp_path: Path) -> None:
    """A node that left in order starts without memory."""
    path = tmp_path / "members.log"
    await life(path, member("a"), leave=True)

    assert await life(path) == []


async def test_many_are_sampled(tmp_path: Path) -> None:
    """Of a large network a bounded number is tried."""
    path = tmp_path / "members.log"
    await life(path, *(member(f"n{n}") for n in range(100)))

    assert len({s.node_id for s in await life(path)}) == 32


async def test_lines_reach_the_disk_while_it_runs(tmp_path: Path) -> None:
    """What was noted is on disk soon, so that a kill loses at most the last half second."""
    path = tmp_path / "members.log"
    discovery = SnapshotDiscovery(path, rng=random.Random(1))
    await discovery.start(ME, Sink())
    try:
        discovery.note(member("a"))

        await eventually(lambda: path.exists() and "a" in path.read_text())
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        await discovery.close()


async def test_an_unusable_path_is_a_warning(tmp_path: Path) -> None:
    """A path that cannot be read or written costs the memory, not the node."""
    (tmp_path / "members.log").mkdir()

    assert await life(tmp_path / "members.log", member("a")) == []


async def test_history_is_rewritten(tmp_path: Path) -> None:
    """The file does not grow for ever under a member that flaps."""
    path = tmp_path / "members.log"
    flapping = [member("a", port) for port in range(1, 3_000)]
    await life(path, *flapping)
    await life(path, member("b"))

    assert len(path.read_text().splitlines()) < 10
