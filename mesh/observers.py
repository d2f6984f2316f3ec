"""Fan-out of events to whoever iterates over them, each with a bounded queue of its own."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from .events import EventsLost, MeshEvent

# A consumer that is this far behind does better to read the members afresh, and is told so.
EVENTS_WAITING_MAX: Final = 4_096


class Subscription:
    """One observer's events, in order; what :meth:`Observers.subscribe` returns.

    Not a generator: one that was never started would never run its clean-up, and collect events for ever.
    """

    def __init__(self, *, closed: bool) -> None:
        # Bounded by EVENTS_WAITING_MAX in put().
        self._waiting: deque[MeshEvent] = deque()
        self._lost = 0
        self._filled = asyncio.Event()
        self._closed = closed

    def put(self, event: MeshEvent) -> None:
        """Add an event.  When there are too many, this one and all up to the next that fits become one gap."""
        if self._closed:
            return
        if self._lost or len(self._waiting) >= EVENTS_WAITING_MAX:
            self._lost += 1
        else:
            self._waiting.append(event)
        self._filled.set()

    def close(self) -> None:
        """End the iteration once it has seen what waits."""
        self._closed = True
        self._filled.set()

    def __aiter__(self) -> AsyncIterator[MeshEvent]:
        return self

    async def __anext__(self) -> MeshEvent:
        while True:
            if self._waiting:
                return self._waiting.popleft()
            if self._lost:
                lost, self._lost = self._lost, 0
                return EventsLost(lost)
            if self._closed:
                raise StopAsyncIteration
            self._filled.clear()
            await self._filled.wait()

    async def aclose(self) -> None:
        """Stop observing."""
        self._waiting.clear()
        self._lost = 0
        self.close()


class Observers:
    """Everybody who watches events."""

    def __init__(self) -> None:
        # Weak, so that whoever drops its iterator is no observer any more.
        self._observers: list[weakref.ref[Subscription]] = []
        self._closed = False

    def publish(self, event: MeshEvent) -> None:
        """Hand ``event`` to every observer; one that is too far behind loses it and is told how many it lost."""
        for reference in tuple(self._observers):
            if (observer := reference()) is not None:
                observer.put(event)

    def subscribe(self) -> Subscription:
        """Events from now on, in order; the iterator ends when the node leaves."""
        observer = Subscription(closed=self._closed)
        self._observers.append(weakref.ref(observer, self._observers.remove))
        return observer

    def close(self) -> None:
        """End every iterator once it has seen what waits for it."""
        self._closed = True
        for reference in tuple(self._observers):
            if (observer := reference()) is not None:
                observer.close()

    def __len__(self) -> int:
        return len(self._observers)
