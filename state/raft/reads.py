"""Reads without writing to the log: ReadIndex (Ongaro's dissertation, section 6.4).

A leader may have been deposed without knowing, so before it answers a read it asks a majority whether it still leads.
It notes its commit index, starts a *round* of heartbeats, and when a majority of each half has answered that round, no
newer leader can have committed anything before the round began: the state at the noted index, or any later one, holds
everything that was acknowledged before the read was asked.

Reads that come while a round is under way wait for the next one, so any number of reads costs one round at a time.
And none begins before the leader has committed an entry of its own term, until which it does not know what is committed
(section 8 of the paper).
"""

# core: no I/O

from __future__ import annotations

import math
from typing import NamedTuple

from transport.types import NodeId

from .events import Reason


class Origin(NamedTuple):
    """Who asked for a read, and by which number."""

    peer: NodeId | None
    """``None``: somebody on this node."""
    number: int


class Reads:
    """The reads that wait at a leader.

    Args:
        reads_max: How many may wait.
    """

    def __init__(self, reads_max: int) -> None:
        self._reads_max = reads_max
        self._waiting: list[Origin] = []
        self._asked: list[Origin] = []
        self._index = 0
        self.round = 0
        """The number of the last round that was begun."""

    def __len__(self) -> int:
        return len(self._waiting) + len(self._asked)

    def add(self, origin: Origin) -> bool:
        """Have a read wait; ``False``: there is no room."""
        if len(self) >= self._reads_max:
            return False
        self._waiting.append(origin)
        return True

    def begin(self, index: int) -> bool:
        """Start a round for all that wait, from commit index ``index``; ``False``: none waits, or one is under way."""
        if self._asked or not self._waiting:
            return False
        self._asked, self._waiting = self._waiting, []
        self._index = index
        self.round += 1
        return True

    def confirmed(self, round_: int) -> tuple[int, list[Origin]]:
        """A majority answered up to a round: the index to read from, and who may read."""
        if round_ < self.round:
            return self._index, []
        asked, self._asked = self._asked, []
        return self._index, asked


class LocalReads:
    """The reads that were asked for on this node, until their caller is told.

    Args:
        number: The first number to ask under; drawn at random, so that an answer to a process before this one, whose
            index is too old, fits no question of this one.
        timeout_s: How long one may wait.
    """

    def __init__(self, number: int, timeout_s: float) -> None:
        self._number = number
        self._timeout_s = timeout_s
        # The caller's number and the deadline, by the number it was asked under; the eldest first.
        self._asked: dict[int, tuple[int, float]] = {}
        self._confirmed: dict[int, tuple[int, float, int]] = {}
        self._refused: list[tuple[int, Reason]] = []

    def __len__(self) -> int:
        return len(self._asked) + len(self._confirmed)

    @property
    def deadline_at(self) -> float:
        """When the eldest has waited too long."""
        asked, confirmed = next(iter(self._asked.values()), None), next(iter(self._confirmed.values()), None)
        return min(asked[1] if asked else math.inf, confirmed[1] if confirmed else math.inf)

    def ask(self, number: int, now: float) -> int:
        """Take in a read; returns the number to ask under."""
        self._number += 1
        self._asked[self._number] = (number, now + self._timeout_s)
        return self._number

    def confirmed(self, asked: int, index: int) -> None:
        """It may be read once ``index`` is applied."""
        if asked in self._asked:
            self._confirmed[asked] = (*self._asked.pop(asked), index)

    def refused(self, asked: int, reason: Reason) -> None:
        """It may not be read."""
        if asked in self._asked:
            self._refused.append((self._asked.pop(asked)[0], reason))

    def drop(self, reason: Reason) -> None:
        """Whoever could have confirmed is no longer there."""
        for asked in list(self._asked):
            self.refused(asked, reason)

    def taken(self, applied: int, now: float) -> tuple[list[tuple[int, int]], list[tuple[int, Reason]]]:
        """What callers are to be told now: which reads are ready, with their index, and which are refused, and why."""
        ready = [(asked, wait) for asked, wait in self._confirmed.items() if wait[2] <= applied]
        for asked, _ in ready:
            del self._confirmed[asked]
        if self.deadline_at <= now:
            for asked in [asked for asked, wait in self._asked.items() if wait[1] <= now]:
                self.refused(asked, Reason.UNANSWERED)
            for asked in [asked for asked, entry in self._confirmed.items() if entry[1] <= now]:
                self._refused.append((self._confirmed.pop(asked)[0], Reason.UNANSWERED))
        refused, self._refused = self._refused, []
        return [(number, index) for _, (number, _, index) in ready], refused
