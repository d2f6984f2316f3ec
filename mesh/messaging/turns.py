"""Who waits for a way to an agent, each in turn, so that messages that had to wait leave as they were sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """One line of waiting callers for each agent."""

    def __init__(self) -> None:
        # Each with how many wait for it or hold it; an asyncio.Lock serves them in the order they came.
        self._lines: dict[int, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def take(self, agent_id: int) -> AsyncIterator[None]:
        """Wait for one's turn, and have it for the length of the block."""
        lock, count = self._lines.get(agent_id) or (asyncio.Lock(), 0)
        self._lines[agent_id] = lock, count + 1
        try:
            async with lock:
                yield
        finally:
            count = self._lines[agent_id][1]
            if count > 1:
                self._lines[agent_id] = lock, count - 1
            else:
                del self._lines[agent_id]

    def is_wanted(self, agent_id: int) -> bool:
        """Whether anybody has a turn or waits for one."""
        return agent_id in self._lines
