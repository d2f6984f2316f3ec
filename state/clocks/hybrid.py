"""Hybrid logical time: near the wall clock, and never against cause and effect.

A timestamp is milliseconds since the epoch and a counter that orders what happens within one (Kulkarni et al. 2014).
Stamps only rise, and a stamp that was seen is below every later one of whoever saw it.  They are for expiry and for
breaking ties among concurrent writes, where any order would be right and people expect the later one to win; causality
itself is told by :mod:`state.clocks.vectors`.

One wrong clock must not pull everybody's into the future, so there is a *drift bound*: a remote stamp more than
``drift_ms_max`` ahead of our wall clock is refused with :class:`~state.errors.ClockDrift`, and nothing changes.  The
bound is 500 ms by default (CockroachDB's), which any NTP keeps by a factor of ten.  The same error meets the owner of
a clock that was set back by more than the bound: the stamps it would need, above those it already gave, would be
refused by everybody else.  There is no such thing as "too old": a stamp from the past is what delays look like.
"""

# core: no I/O

from __future__ import annotations

from typing import Final, NamedTuple

from state.errors import ClockDrift

#: How far a stamp may be ahead of the reader's wall clock.
DRIFT_MS_MAX: Final = 500

_LOGICAL_BITS: Final = 16
LOGICAL_MAX: Final = (1 << _LOGICAL_BITS) - 1
#: The year 4199; keeps a packed timestamp within 62 bits.
WALL_MS_MAX: Final = (1 << 46) - 1


class Timestamp(NamedTuple):
    """Hybrid time; compares as it orders."""

    wall_ms: int
    logical: int = 0

    @property
    def packed(self) -> int:
        """One integer that orders the same way: what goes on the wire."""
        return self.wall_ms << _LOGICAL_BITS | self.logical

    @classmethod
    def unpack(cls, packed: int) -> Timestamp:
        """The inverse of :attr:`packed`.

        Raises:
            ValueError: It is no timestamp.
        """
        if not 0 <= packed >> _LOGICAL_BITS <= WALL_MS_MAX:
            raise ValueError(f"timestamp {packed} is out of range")
        return cls(packed >> _LOGICAL_BITS, packed & LOGICAL_MAX)


class HybridClock:
    """One replica's hybrid clock.

    Args:
        drift_ms_max: How far ahead of the wall clock a stamp may be.
        last: The highest stamp given or seen before, when the clock goes on after a restart.
    """

    def __init__(self, drift_ms_max: int = DRIFT_MS_MAX, last: Timestamp | None = None) -> None:
        self.drift_ms_max = drift_ms_max
        self._last = last or Timestamp(0)
        self.refused = 0
        """Stamps that were too far ahead."""

    @property
    def last(self) -> Timestamp:
        """The highest stamp given or seen."""
        return self._last

    def tick(self, now_ms: int) -> Timestamp:
        """A stamp for something that happens now, above every stamp given or seen.

        Raises:
            ClockDrift: The wall clock went back by more than the bound; nothing changed.
        """
        stamp = Timestamp(now_ms)
        if stamp <= self._last:
            wall_ms, logical = self._last
            # A counter that is used up borrows the next millisecond.
            stamp = Timestamp(wall_ms, logical + 1) if logical < LOGICAL_MAX else Timestamp(wall_ms + 1)
            if stamp.wall_ms > now_ms + self.drift_ms_max:
                self.refused += 1
                raise ClockDrift(
                    f"this machine's clock is {stamp.wall_ms - now_ms} ms behind a timestamp that was already used",
                    hint="it was set back; let NTP set it right, or wait until it has caught up",
                )
        self._last = stamp
        return stamp

    def check(self, remote: Timestamp, now_ms: int) -> None:
        """Refuse a stamp that is too far in the future, without taking it.

        Raises:
            ClockDrift: It is ahead of ``now_ms`` by more than the bound; nothing changed.
        """
        if remote.wall_ms > now_ms + self.drift_ms_max:
            self.refused += 1
            raise ClockDrift(
                f"a remote timestamp is {remote.wall_ms - now_ms} ms ahead of this machine's clock, "
                f"and {self.drift_ms_max} ms are allowed",
                hint="one of the two machines has a wrong clock; check NTP on both",
            )

    def observe(self, remote: Timestamp, now_ms: int) -> None:
        """Take note of a remote stamp: all later ones of this clock are above it.

        Raises:
            ClockDrift: See :meth:`check`.
        """
        self.check(remote, now_ms)
        self.take(remote)

    def take(self, remote: Timestamp) -> None:
        """Like :meth:`observe`, for a stamp that passed :meth:`check` when it came."""
        self._last = max(self._last, remote)
