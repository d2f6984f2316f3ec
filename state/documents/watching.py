"""Telling changes to those who watch, each at its own pace."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from .events import Change, ChangesLost, DocumentEvent

#: Events that wait for one watcher: what a busy document does in a second.
WAITING_MAX: Final = 4_096


class Changes:
    """The changes of a document, as an asynchronous iterator; ends after :meth:`aclose`.

    A watcher that is too slow gets a :class:`~state.documents.events.ChangesLost` in place of the oldest it missed.
    """

    def __init__(self, ended: Callable[[Changes], None]) -> None:
        self._ended = ended
        self._waiting: deque[Change] = deque()
        self._lost = 0
        self._wake = asyncio.Event()
        self._closed = False

    def put(self, change: Change) -> None:
        """One more change."""
        if len(self._waiting) >= WAITING_MAX:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append(change)
        self._wake.set()

    def __aiter__(self) -> Changes:
        return self

    async def __anext__(self) -> DocumentEvent:
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        if self._lost:
            lost, self._lost = self._lost, 0
            return ChangesLost(lost)
        return self._waiting.popleft()

    async def aclose(self) -> None:
        """End the iteration, for one that waits as well."""
        self._closed = True
        self._waiting.clear()
        self._wake.set()
        self._ended(self)
