"""How long a suspect has to refute: less, the more members accuse it independently of each other.

Lifeguard's dynamic suspicion (Dadgar, Phillips, Currey 2018) as HashiCorp's memberlist implements it, whose unit
vectors are the tests: a suspicion starts with a long time ``max`` and falls towards ``min`` with the logarithm of the
number of confirmations, until ``k`` of them have come in::

    min       = mult * max(1, log10(max(1, N))) * interval
    max       = max_mult * min
    k         = mult - 2, or 0 where there are not even so many others to ask (N - 2 < k)
    remaining = max(min, max - (max - min) * ln(confirmations + 1) / ln(k + 1)) - elapsed

A node that is itself slow hears nobody, suspects everybody, and is alone in doing so: it waits long, and by then it
has heard the refutation.  A process that is really gone is accused by all its neighbours within a moment.

Two additions.  Evidence that needs no confirmation (the host answered that nobody listens there any more) cuts the
time short.  And time in which *we* stood still does not count, because the refutation may be waiting in our own
sockets: it is given back, bounded by the caller.
"""

# core: no I/O

from __future__ import annotations

import math

from transport.types import NodeId


def suspicion_min_s(mult: float, members: int, interval_s: float) -> float:
    """The time a suspect gets when its accusers agree: it grows with the time that news take to reach everybody."""
    return mult * max(1.0, math.log10(max(1.0, members))) * interval_s


def confirmations_wanted(mult: float, members: int) -> int:
    """How many independent confirmations bring the time down to its minimum (``k``)."""
    k = int(mult) - 2
    return k if members - 2 >= k else 0


def remaining_s(confirmations: int, wanted: int, elapsed_s: float, min_s: float, max_s: float) -> float:
    """How much longer to wait; below zero: the time was over before."""
    if wanted < 1:
        return min_s - elapsed_s
    part = math.log(confirmations + 1.0) / math.log(wanted + 1.0)
    return max(min_s, max_s - part * (max_s - min_s)) - elapsed_s


class Suspicion:
    """One running suspicion.

    Args:
        wanted: Independent confirmations beyond the first accusation that shorten the time.
        min_s: The least time.
        max_s: The time as long as there is no confirmation.
        now: When it began.
    """

    __slots__ = ("_accusers", "_credit_s", "_cut_at", "_not_before", "max_s", "min_s", "since", "token", "wanted")

    def __init__(self, wanted: int, min_s: float, max_s: float, now: float) -> None:
        self.wanted = wanted
        self.min_s = min_s
        self.max_s = max_s
        self.since = now
        self.token = -1
        """The timer that looks at the deadline next (the owner's business)."""
        # In the order in which they were heard of; at most ``wanted`` + 1.
        self._accusers: dict[NodeId, None] = {}
        self._credit_s = 0.0
        self._cut_at: float | None = None
        self._not_before = now

    @property
    def accusers(self) -> tuple[NodeId, ...]:
        """Who accuses, as far as it matters: the first one and those that confirmed."""
        return tuple(self._accusers)

    @property
    def confirmations(self) -> int:
        """How many accusers there are beside the first."""
        return max(0, len(self._accusers) - 1)

    @property
    def deadline(self) -> float:
        """When the suspect is to be held for dead."""
        until = self.since + remaining_s(self.confirmations, self.wanted, 0.0, self.min_s, self.max_s)
        if self._cut_at is not None:
            until = min(until, self._cut_at)
        return max(until + self._credit_s, self._not_before)

    def accuse(self, accuser: NodeId) -> bool:
        """Count an accuser; whether it is one more that matters (the same one twice counts once)."""
        if accuser in self._accusers or len(self._accusers) > self.wanted:
            return False
        self._accusers[accuser] = None
        return True

    def cut(self, at: float) -> None:
        """Nobody listens there any more: do not wait for confirmations beyond ``at``."""
        self._cut_at = at if self._cut_at is None else min(self._cut_at, at)
        self._not_before = min(self._not_before, at)

    def credit(self, now: float, seconds: float) -> None:
        """We stood still for a while: what should have been heard meanwhile is still to be read."""
        self._credit_s += seconds
        self._not_before = max(self._not_before, now + seconds)

    def wait_until(self, at: float) -> None:
        """Do not decide before ``at``: what we thought to be evidence of life has only now gone."""
        self._not_before = max(self._not_before, at)
