"""When to try again: exponential backoff with decorrelated jitter, as a core.

Waits grow from ``first_s`` to ``max_s`` and are spread at random, so that nodes that lost the same peer at the same
moment do not all come back at the same moment.  The rule is "decorrelated jitter" (Brooker, "Exponential Backoff And
Jitter", AWS Architecture Blog, 2015): each wait is drawn between ``first_s`` and three times the one before.  Unlike
full jitter it never waits less than ``first_s``, so a dead peer is not hammered.
"""

# core: no I/O

from __future__ import annotations

import random

from .errors import LocalProtocolError

_GROWTH = 3.0


class Backoff:
    """The waits between attempts at one thing.

    Args:
        rng: Where the jitter comes from.
        first_s: The shortest wait.
        max_s: The longest wait.

    Raises:
        LocalProtocolError: The waits are not ``0 < first_s <= max_s``.
    """

    __slots__ = ("_first_s", "_last_s", "_max_s", "_rng", "attempts")

    def __init__(self, rng: random.Random, *, first_s: float = 0.1, max_s: float = 30.0) -> None:
        if not 0 < first_s <= max_s:
            raise LocalProtocolError(f"backoff from {first_s} s to {max_s} s makes no sense")
        self._rng = rng
        self._first_s = first_s
        self._max_s = max_s
        self._last_s = first_s
        self.attempts = 0
        """Failures since the start or the last success."""

    def next_s(self) -> float:
        """An attempt failed: how many seconds to wait before the next."""
        self.attempts += 1
        self._last_s = min(self._max_s, self._rng.uniform(self._first_s, self._last_s * _GROWTH))
        return self._last_s

    def reset(self) -> None:
        """An attempt succeeded: start over at the shortest wait."""
        self.attempts = 0
        self._last_s = self._first_s
