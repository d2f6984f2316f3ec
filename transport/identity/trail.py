"""Puts into the audit log what strangers cause, without letting them write it full.

Whoever reaches the port can have a certificate refused as often as it likes.  So the first refusal of a cause is
recorded at once, and those that follow within the interval become one more line that counts them.  The log holds
8 files of 16 MiB: at one line a minute and cause, no flood pushes an older record out within months.
"""

from __future__ import annotations

import asyncio
from typing import Final

from transport.errors import DataDirectoryError
from transport.logs import get_logger
from transport.tasks import TaskScope

from .audit import AuditLog, Scalar

log = get_logger("mesh.identity")

#: Seconds from one line of a cause to the next.
INTERVAL_S: Final = 60.0
#: Causes that are kept apart; they are named in code, so this only guards against a mistake there.
CAUSES_MAX: Final = 16


class AuditTrail:
    """Records events from the loop: off it, at a bounded rate, with counts.

    Args:
        audit: The log.
        interval_s: Seconds from one line of an event to the next.
    """

    def __init__(self, audit: AuditLog, *, interval_s: float = INTERVAL_S) -> None:
        self._audit = audit
        self._interval_s = interval_s
        self._scope = TaskScope("audit trail")
        # What was not written yet, by event: how often, and the fields of the first.  Bounded by CAUSES_MAX.
        self._waiting: dict[str, tuple[int, dict[str, Scalar]]] = {}
        self._writers: dict[str, asyncio.Task[None]] = {}
        self.failures = 0

    def note(self, event: str, /, **fields: Scalar) -> None:
        """Record that ``event`` happened: at once if it is the first for a while, else counted in a later line."""
        count, first = self._waiting.get(event, (0, fields))
        self._waiting[event] = count + 1, first
        if event not in self._writers and len(self._writers) < CAUSES_MAX:
            writer = self._scope.spawn(self._write_on(event), name=event)
            if writer is not None:
                self._writers[event] = writer

    async def _write_on(self, event: str) -> None:
        """Write until an interval passes in which nothing happened."""
        try:
            while event in self._waiting:
                await self._write(event)
                await asyncio.sleep(self._interval_s)
        finally:
            del self._writers[event]

    async def _write(self, event: str) -> None:
        count, fields = self._waiting.pop(event)
        try:
            await asyncio.to_thread(lambda: self._audit.append(event, **fields, count=count))
        except DataDirectoryError as error:
            # The refusal stands without its record; the node's log has it as well.
            self.failures += 1
            log.warning("audit log not written", error=error.message)

    async def close(self) -> None:
        """Write what waits, and stop."""
        await self._scope.close()
        for event in list(self._waiting):
            await self._write(event)
