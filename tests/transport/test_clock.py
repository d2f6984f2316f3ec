"""The one place that reads the machine's clocks."""

from __future__ import annotations

import time

from transport.clock import Clock, SystemClock


def test_the_system_clock_reads_both_clocks() -> None:
    """Durations come from the monotonic clock, dates from the wall clock."""
    clock: Clock = SystemClock()
    before = time.monotonic(), time.time()

    assert before[0] <= clock.monotonic() <= time.monotonic()
    assert abs(clock.wall() - before[1]) < 60
