"""Hybrid stamps only rise, follow causes, stay near the wall clock, and no remote clock drags ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from state.clocks.hybrid import DRIFT_MS_MAX, LOGICAL_MAX, WALL_MS_MAX, HybridClock, Timestamp
from state.errors import ClockDrift

NOW = 1_800_000_000_000
stamps = st.builds(Timestamp, st.integers(0, WALL_MS_MAX), st.integers(0, LOGICAL_MAX))


@given(
    st.lists(st.one_of(st.integers(-200, 200), st.builds(Timestamp, st.integers(NOW - 9_999, NOW + 300))), max_size=40)
)
def test_stamps_rise_and_follow_what_was_seen(steps: list[int | Timestamp]) -> None:
    """Whatever the wall clock does within the bound, each stamp is above all given and seen before."""
    clock = HybridClock()
    now_ms = NOW
    highest = Timestamp(0)
    for step in steps:
        if isinstance(step, Timestamp):
            clock.observe(step, NOW)
            highest = max(highest, step)
        else:
            now_ms = max(NOW - 100, min(NOW + 100, now_ms + step))
            stamp = clock.tick(now_ms)
            assert stamp > highest
            assert stamp.wall_ms <= NOW + DRIFT_MS_MAX
            highest = stamp
        assert clock.last == highest


@given(stamps, stamps)
def test_packed_stamps_order_as_stamps(x: Timestamp, y: Timestamp) -> None:
    """One integer carries a stamp and keeps its order."""
    assert Timestamp.unpack(x.packed) == x
    assert (x < y) == (x.packed < y.packed)


@pytest.mark.parametrize("packed", [-1, (WALL_MS_MAX + 1) << 16])
def test_what_is_no_stamp_is_refused(packed: int) -> None:
    """Integers outside the range of stamps are errors."""
    with pytest.raises(ValueError, match="out of range"):
        Timestamp.unpack(packed)


def test_a_clock_too_far_ahead_is_refused_and_drags_nothing() -> None:
    """A stamp at the bound is taken; one millisecond more is a counted error, and our next stamp shows no trace."""
    clock = HybridClock()
    clock.observe(Timestamp(NOW + DRIFT_MS_MAX), NOW)
    before = clock.last
    with pytest.raises(ClockDrift, match="501 ms ahead"):
        clock.observe(Timestamp(NOW + DRIFT_MS_MAX + 1), NOW)
    assert clock.last == before
    assert clock.refused == 1


def test_a_clock_an_hour_ahead_never_moves_ours() -> None:
    """However often it is told, a clock keeps its own time."""
    clock = HybridClock()
    for number in range(10):
        with pytest.raises(ClockDrift):
            clock.observe(Timestamp(NOW + 3_600_000 + number), NOW)
    assert clock.tick(NOW) == Timestamp(NOW)


def test_our_own_clock_set_back_is_an_error_until_it_caught_up() -> None:
    """Stamps that everybody else would refuse are not given; within the bound the counter bridges the gap."""
    clock = HybridClock()
    clock.tick(NOW)
    assert clock.tick(NOW - DRIFT_MS_MAX) == Timestamp(NOW, 1)
    with pytest.raises(ClockDrift, match="behind a timestamp"):
        clock.tick(NOW - 3_600_000)
    assert clock.last == Timestamp(NOW, 1)
    assert clock.tick(NOW + 1) == Timestamp(NOW + 1)


def test_a_full_counter_borrows_the_next_millisecond() -> None:
    """More stamps in one millisecond than the counter holds still rise."""
    clock = HybridClock(last=Timestamp(NOW, LOGICAL_MAX))
    assert clock.tick(NOW) == Timestamp(NOW + 1)
