"""Who waits for a way to an agent, each in turn, so that messages that had to wait leave as they were sent."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from typing import Final

# How many are woken ahead of their turns: they wake in order, so that many have theirs in one turn of the loop.
_AHEAD: Final = 64


class _Place:
    """One caller's place in a line; ``waking``: what it waits for while others are before it."""

    __slots__ = ("waking",)

    def __init__(self) -> None:
        self.waking: asyncio.Future[None] | None = None


class Turns:
    """One line of waiting callers for each agent."""

    def __init__(self) -> None:
        self._lines: dict[int, deque[_Place]] = {}

    @asynccontextmanager
    async def take(self, agent_id: int) -> AsyncIterator[None]:
        """Wait for one's turn, and have it for the length of the block."""
        line = self._lines.setdefault(agent_id, deque())
        place = _Place()
        line.append(place)
        try:
            while line[0] is not place:
                place.waking = asyncio.get_running_loop().create_future()
                await place.waking
            yield
        finally:
            line.remove(place)
            for other in islice(line, _AHEAD):
                if other.waking is not None and not other.waking.done():
                    other.waking.set_result(None)
            if not line:
                del self._lines[agent_id]

    def is_wanted(self, agent_id: int) -> bool:
        """Whether anybody has a turn or waits for one."""
        return agent_id in self._lines
