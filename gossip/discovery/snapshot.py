"""Finding the network again after a restart, without seeds: the shell of :mod:`.member_log`.

Lines are appended in a thread, at most every half second, so a slow disk never holds up gossip; what a crash takes
with it is a hint or two.  Nothing is synced for the same reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from pathlib import Path
from typing import Final

from gossip.events import Member
from transport.errors import MeshError
from transport.identity.files import write_atomic
from transport.logs import get_logger

from .base import Announcement, DiscoverySink, Sighting
from .member_log import MemberLog

_log = get_logger("mesh.discovery")

_FLUSH_S: Final = 0.5
# What a full network of 4,096 nodes with four long addresses each takes, and as much history again.
_FILE_BYTES_MAX: Final = 16 << 20
# Lines that wait for a disk that does not answer; beyond it hints are lost.
_WAITING_MAX: Final = 8_192
# Nodes of the earlier life that are tried: any one of them knows all others.
_TRIED_MAX: Final = 32


class SnapshotDiscovery:
    """A :class:`~gossip.discovery.base.Discovery` over this node's own memory."""

    name = "snapshot"

    def __init__(self, path: Path, *, rng: random.Random) -> None:
        """Prepare; nothing is read before :meth:`start`.

        Args:
            path: The log, in the node's own directory.
            rng: Picks whom to try.
        """
        self._path = path
        self._rng = rng
        self._members = MemberLog()
        self._waiting: list[str] = []
        self._flusher: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._available = 1
        self._remembered = 0
        self._dropped = 0

    async def start(self, announcement: Announcement, sink: DiscoverySink) -> None:
        """See :meth:`~gossip.discovery.base.Discovery.start`; reports who was alive when this node last ran."""
        if self._flusher is not None:
            return
        self._members.replay(await asyncio.to_thread(self._read))
        peers = [(node, addresses) for node, addresses in self._members.alive.items() if node != announcement.node_id]
        self._remembered = len(peers)
        if len(peers) > _TRIED_MAX:
            peers = self._rng.sample(peers, _TRIED_MAX)
        self._flusher = asyncio.create_task(self._flush_for_ever(), name="member snapshot")
        for node, addresses in peers:
            sink.found(Sighting(self.name, addresses, node))

    def _read(self) -> list[str]:
        try:
            with self._path.open("rb") as file:
                return file.read(_FILE_BYTES_MAX).decode(errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            self._available = 0
            _log.warning("member snapshot not read", path=str(self._path), error=str(error))
            return []

    def note(self, member: Member) -> None:
        """A member's record changed; written soon, in the background."""
        line = self._members.note(member)
        if line is None:
            return
        if len(self._waiting) >= _WAITING_MAX:
            self._dropped += 1
            return
        self._waiting.append(line)
        self._wake.set()

    def leave(self) -> None:
        """This node leaves in order: the next start is not to come back by itself."""
        self._waiting.append(self._members.leave())
        self._wake.set()

    async def update(self, announcement: Announcement) -> None:
        """See :meth:`~gossip.discovery.base.Discovery.update`; there is nobody to tell."""

    async def close(self) -> None:
        """See :meth:`~gossip.discovery.base.Discovery.close`; writes what waits."""
        flusher, self._flusher = self._flusher, None
        if flusher is None:
            return
        flusher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await flusher
        await self._flush()

    def statistics(self) -> dict[str, int]:
        """See :meth:`~gossip.discovery.base.Discovery.statistics`."""
        return {
            "available": self._available,
            "remembered": self._remembered,
            "alive": len(self._members.alive),
            "lines_dropped": self._dropped,
        }

    async def _flush_for_ever(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(_FLUSH_S)
            await asyncio.shield(self._flush())

    async def _flush(self) -> None:
        self._wake.clear()
        lines, self._waiting = self._waiting, []
        if not lines:
            return
        whole = self._members.rewritten() if self._members.wants_rewrite else None
        try:
            await asyncio.to_thread(self._write, lines, whole)
            self._available = 1
        except (OSError, MeshError) as error:
            if self._available:
                _log.warning("member snapshot not written", path=str(self._path), error=str(error))
            self._available = 0

    def _write(self, lines: list[str], whole: str | None) -> None:
        if whole is not None:
            write_atomic(self._path, whole.encode())
            return
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.write("".join(lines))
