"""Fan-out of events to whoever iterates over them, each with a bounded queue of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from .events import EventsLost, MeshEvent

# A consumer that is this far behind does better to read the members afresh, and is told so.
EVENTS_WAITING_MAX: Final = 4_096


class _Observer:
    __slots__ = ("filled", "lost", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[MeshEvent] = deque()
        self.lost = 0
        self.filled = asyncio.Event()


class Observers:
    """Everybody who watches events."""

    def __init__(self) -> None:
        self._observers: list[_Observer] = []
        self._closed = False

    def publish(self, event: MeshEvent) -> None:
        """Hand ``event`` to every observer; one that is too far behind loses it and is told how many it lost."""
        for observer in self._observers:
            if len(observer.waiting) >= EVENTS_WAITING_MAX:
                observer.lost += 1
            else:
                observer.waiting.append(event)
            observer.filled.set()

    def subscribe(self) -> AsyncIterator[MeshEvent]:
        """Events from now on, in order; the iterator ends when the node leaves."""
        observer = _Observer()
        self._observers.append(observer)
        return self._iterate(observer)

    async def _iterate(self, observer: _Observer) -> AsyncIterator[MeshEvent]:
        try:
            while True:
                while observer.waiting:
                    yield observer.waiting.popleft()
                if observer.lost:
                    lost, observer.lost = observer.lost, 0
                    yield EventsLost(lost)
                    continue
                if self._closed:
                    return
                observer.filled.clear()
                await observer.filled.wait()
        finally:
            self._observers.remove(observer)

    def close(self) -> None:
        """End every iterator once it has seen what waits for it."""
        self._closed = True
        for observer in self._observers:
            observer.filled.set()
