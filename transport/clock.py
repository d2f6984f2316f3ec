"""Time as an argument: the two clocks a shell may read, behind one small protocol.

Cores never read a clock; their callers pass ``now``.  Shells take a :class:`Clock`, so that tests and the
simulator decide what time it is.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where a shell reads the time."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never goes back.  For durations and timers."""
        ...

    def wall(self) -> float:
        """Seconds since the Unix epoch; may jump.  For certificates, tokens and timestamps people read."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        """See :meth:`Clock.monotonic`."""
        return time.monotonic()

    def wall(self) -> float:
        """See :meth:`Clock.wall`."""
        return time.time()
