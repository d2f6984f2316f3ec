"""Finding the nodes of this machine through the data tree they share.

Each node leaves an ``address`` file in its own directory and looks at its neighbours' files, so nodes of one tree
find each other with neither multicast nor a bootstrap list.  The files are hints like any other sighting: one left
by a killed node costs a failed dial, and nothing in them is trusted before the certificates match.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from pathlib import Path
from typing import Any, Final

from transport.errors import MeshError
from transport.identity.files import write_atomic
from transport.logs import get_logger
from transport.tasks import in_thread
from transport.types import Address, NodeId, node_id

from .base import Announcement, DiscoverySink, Sighting

_log = get_logger("mesh.discovery")

_FILE: Final = "address"
# An address file holds a few addresses; whatever is larger was not written by a node.
_FILE_BYTES_MAX: Final = 16_384
_ADDRESSES_MAX: Final = 16

# Neighbours start together, so the first rounds are quick; later ones only find late starters.
_INTERVAL_S_FIRST: Final = 0.2
_INTERVAL_S: Final = 5.0
_GROWTH: Final = 1.5
# A round lists the whole tree: spread the rounds so that a thousand nodes of one tree do not list it all the time.
_INTERVAL_S_PER_NODE: Final = 0.05
# One neighbour is enough, it knows the others; a few more in case it is about to end.  A newcomer dials them all at
# once, so each one more is a handshake at both ends.
_SIGHTINGS_PER_ROUND: Final = 3
# Most files may be those of nodes that no longer run; a round reads only so many.
_FILES_PER_ROUND: Final = 128


class TreeDiscovery:
    """A :class:`~gossip.discovery.base.Discovery` over ``<data_dir>/<network>``."""

    name = "tree"

    def __init__(self, network_path: Path, *, rng: random.Random) -> None:
        """Prepare; nothing is read or written before :meth:`start`.

        Args:
            network_path: ``<data_dir>/<network>``, which holds a directory for each node.
            rng: Picks which neighbours to report.
        """
        self._path = network_path
        self._rng = rng
        self._announcement: Announcement | None = None
        self._runner: asyncio.Task[None] | None = None
        self._neighbours = 0
        self._available = 1

    async def start(self, announcement: Announcement, sink: DiscoverySink) -> None:
        """See :meth:`~gossip.discovery.base.Discovery.start`."""
        await self.update(announcement)
        if self._runner is None:
            self._runner = asyncio.create_task(self._run(sink), name="tree discovery")

    async def update(self, announcement: Announcement) -> None:
        """See :meth:`~gossip.discovery.base.Discovery.update`."""
        self._announcement = announcement
        content = {
            "node_id": announcement.node_id,
            "pid": os.getpid(),
            "authority": announcement.authority,
            "addresses": [str(address) for address in announcement.addresses],
        }
        try:
            await in_thread(write_atomic, self._own_file(announcement), json.dumps(content).encode())
        except MeshError as error:
            self._available = 0
            _log.warning("address file not written", error=str(error))

    def _own_file(self, announcement: Announcement) -> Path:
        return self._path / announcement.node_id / _FILE

    async def _run(self, sink: DiscoverySink) -> None:
        interval_s = _INTERVAL_S_FIRST
        while True:
            order = random.Random(self._rng.getrandbits(64))  # noqa: S311 - whom to look at first; its own, for a thread
            count, sightings = await asyncio.to_thread(self._look, order)
            self._neighbours = len(sightings)
            for sighting in sightings:
                sink.found(sighting)
            await asyncio.sleep(interval_s * self._rng.uniform(0.8, 1.2))
            interval_s = min(interval_s * _GROWTH, max(_INTERVAL_S, _INTERVAL_S_PER_NODE * count))

    def _look(self, order: random.Random) -> tuple[int, list[Sighting]]:
        """How many neighbours there are or were, and a few that can be used.  In a thread: a disk may be slow."""
        own, sightings = self._announcement, list[Sighting]()
        if own is None:
            return 0, sightings
        try:
            names = sorted(entry.name for entry in self._path.iterdir() if entry.name != own.node_id)
        except OSError:
            return 0, sightings
        for name in order.sample(names, min(len(names), _FILES_PER_ROUND)):
            sighting = _read(self._path / name / _FILE, own.authority)
            if sighting is not None:
                sightings.append(sighting)
            if len(sightings) == _SIGHTINGS_PER_ROUND:
                break
        return len(names), sightings

    async def close(self) -> None:
        """See :meth:`~gossip.discovery.base.Discovery.close`."""
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await runner
        if self._announcement is not None:
            await asyncio.to_thread(self._own_file(self._announcement).unlink, missing_ok=True)

    def statistics(self) -> dict[str, int]:
        """See :meth:`~gossip.discovery.base.Discovery.statistics`; ``neighbours``: how many the last round reported."""
        return {"available": self._available, "neighbours": self._neighbours}


def _read(path: Path, authority: str) -> Sighting | None:
    """What a neighbour's file says, or ``None`` if there is nothing usable in it."""
    try:
        with path.open("rb") as file:
            content: Any = json.loads(file.read(_FILE_BYTES_MAX))
        if content["authority"] != authority or not _runs(int(content["pid"])):
            return None
        name: NodeId = node_id(content["node_id"])
        addresses = tuple(Address.parse(text) for text in content["addresses"][:_ADDRESSES_MAX])
    except (OSError, ValueError, KeyError, TypeError, MeshError):
        return None
    return Sighting(TreeDiscovery.name, addresses, name) if addresses else None


def _runs(pid: int) -> bool:
    """Whether a process of that number exists; a reused number only costs a failed dial."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
