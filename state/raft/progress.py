"""How far one follower is, and how fast the leader sends to it.

Three paces:

- *probe*: where the logs agree is not known.  One message at a time, until the follower says where.
- *replicate*: it is.  Messages follow each other without waiting for answers (pipelining), as many as the follower may
  leave unanswered; the next index is advanced as if each would arrive.  A refusal shows that one did not.
- *snapshot*: what the follower needs next is no longer in the log.  Nothing but heartbeats until the state has arrived.

A lost message is found by the next one, which the follower refuses for the gap; a lost last one by the answer to a
heartbeat, on which the leader sends something again if anything is unacknowledged.
"""

# core: no I/O

from __future__ import annotations

import enum
from collections import deque


class Pace(enum.Enum):
    """How the leader sends to a follower."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    """One follower, as its leader sees it.

    Args:
        next_index: What to send first.
        now: When it counts as heard for the first time, so that it gets a while to answer.
    """

    __slots__ = (
        "_inflight",
        "_inflight_bytes",
        "asked",
        "commit_sent",
        "heard_at",
        "match",
        "next",
        "pace",
        "round",
        "snapshot_index",
    )

    def __init__(self, next_index: int, now: float) -> None:
        self.match = 0
        """Up to here its log is durably the leader's."""
        self.next = next_index
        """What to send next; above ``match``."""
        self.pace = Pace.PROBE
        self.asked = False
        """While probing: whether a message is on its way."""
        self.commit_sent = 0
        """The highest commit index that it was told of together with entries it has."""
        self.round = 0
        """The last of the leader's rounds that it answered."""
        self.heard_at = now
        """When it last answered anything."""
        self.snapshot_index = 0
        """While a snapshot is on its way: what it stands for."""
        # Messages with entries that are not answered: their last index and weight, ascending.  Bounded by `can_send`.
        self._inflight: deque[tuple[int, int]] = deque()
        self._inflight_bytes = 0

    @property
    def inflight(self) -> int:
        """How many messages with entries are not answered."""
        return len(self._inflight)

    def can_send(self, inflight_max: int, inflight_bytes_max: int) -> bool:
        """Whether another message with entries may leave now."""
        if self.pace is Pace.REPLICATE:
            return len(self._inflight) < inflight_max and self._inflight_bytes < inflight_bytes_max
        return self.pace is Pace.PROBE and not self.asked

    def sent(self, last_index: int, size_bytes: int) -> None:
        """A message with entries up to ``last_index`` has left, or one without any (``size_bytes`` 0)."""
        if self.pace is Pace.REPLICATE:
            if size_bytes:
                self.next = last_index + 1
                self._inflight.append((last_index, size_bytes))
                self._inflight_bytes += size_bytes
        else:
            self.asked = True

    def accepted(self, index: int) -> bool:
        """It has everything up to ``index``; returns whether that is news."""
        while self._inflight and self._inflight[0][0] <= index:
            self._inflight_bytes -= self._inflight.popleft()[1]
        news = index > self.match
        self.match = max(self.match, index)
        self.next = max(self.next, index + 1)
        if self.pace is Pace.PROBE or (self.pace is Pace.SNAPSHOT and self.match >= self.snapshot_index):
            self.become(Pace.REPLICATE, self.match + 1)
        return news

    def refused(self, index: int, try_next: int) -> bool:
        """It does not have the leader's entry at ``index``; returns whether that is still of interest.

        Args:
            index: What it compared.
            try_next: Where to try again, below what was tried.
        """
        if self.pace is Pace.SNAPSHOT or index <= self.match:
            return False  # overtaken by what it accepted since
        if self.pace is Pace.PROBE and index != self.next - 1:
            return False  # the answer to an earlier question
        self.become(Pace.PROBE, max(self.match + 1, min(try_next, index)))
        return True

    def alive(self) -> None:
        """It answered a heartbeat: a message that it has not answered may be lost, and one more may be tried."""
        self.asked = False
        if self._inflight:
            self._inflight_bytes -= self._inflight.popleft()[1]

    def become(self, pace: Pace, next_index: int, snapshot_index: int = 0) -> None:
        """Change the pace; what is on its way is forgotten."""
        self.pace = pace
        self.next = next_index
        self.asked = False
        self.snapshot_index = snapshot_index
        self._inflight.clear()
        self._inflight_bytes = 0
