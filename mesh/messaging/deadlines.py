"""How long somebody still waits for what is being done here, and how work stops when nobody does.

The deadline of a request travels with it as what is left of its time, so clocks need not agree; each node counts from
when the request arrives.  A handler's own requests end no later than the one it answers, which a context variable
carries to them, through tasks that the handler starts as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Final

from mesh.errors import RequestTimeout

#: How much later than its deadline something may end.
EXPIRY_STEP_S: Final = 0.005

# A year: what is longer is no limit, and has to fit an integer.
_LEFT_S_MAX: Final = 366 * 86_400.0

#: Until when the asker waits for what this context does, on the loop's clock; ``None``: nobody said.
DEADLINE: Final[ContextVar[float | None]] = ContextVar("mesh_deadline", default=None)


def remaining_s() -> float | None:
    """How long the asker of the request that is being handled still waits, seconds; ``None`` if nobody said.

    Negative when its time is over.  Outside of a handler it is ``None``.
    """
    deadline = DEADLINE.get()
    return None if deadline is None else deadline - asyncio.get_running_loop().time()


@contextlib.contextmanager
def without_deadline() -> Iterator[None]:
    """Requests made inside take their own time, even where the request that is being handled ends sooner.

    For work that a handler leaves behind: wrap the start of its task.
    """
    token = DEADLINE.set(None)
    try:
        yield
    finally:
        DEADLINE.reset(token)


def bounded(timeout_s: float) -> float:
    """The time that a request may take which was given ``timeout_s``: no more than is left to what it is made for.

    Raises:
        RequestTimeout: Nothing is left.
    """
    left_s = remaining_s()
    if left_s is None or left_s >= timeout_s:
        return timeout_s
    if left_s <= 0:
        raise RequestTimeout(
            "no time is left to the request that is being handled here; nothing was sent",
            hint="ask with a longer timeout, or use mesh.without_deadline() for work that nobody waits for",
            changed=False,
        )
    return left_s


def left_ms(timeout_s: float) -> int:
    """A time limit as it travels: whole milliseconds, at least one."""
    return int(min(timeout_s, _LEFT_S_MAX) * 1000) + 1


class Expiry:
    """One timer for many deadlines; one for each would be a tenth of what a request costs.

    It runs when the earliest comes, so that what it watches may end a moment late, and many deadlines cost few looks at
    all of them.

    Args:
        expire: Ends what is over at the given time, and returns the earliest deadline of the others.
    """

    __slots__ = ("_at", "_expire", "_timer")

    def __init__(self, expire: Callable[[float], float]) -> None:
        self._expire = expire
        self._at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def note(self, deadline: float) -> None:
        """Something ends at ``deadline``, on the loop's clock."""
        if deadline < self._at:
            self._look_at(deadline)

    def close(self) -> None:
        """Watch nothing any longer."""
        if self._timer is not None:
            self._timer.cancel()

    def _look_at(self, deadline: float) -> None:
        self.close()
        self._at = deadline
        self._timer = asyncio.get_running_loop().call_at(deadline, self._look)

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        self._at, self._timer = math.inf, None
        earliest = self._expire(now)
        if earliest < math.inf:
            self._look_at(max(earliest, now + EXPIRY_STEP_S))


QueryKey = tuple[str, int, int]
"""A query by the node and the agent that ask, and its sequence."""


class Cut:
    """A piece of somebody's work inside a task that goes on without it: a handler's call inside its worker.

    Made in the task, before the work; :meth:`over` says that the work has ended, whichever way.
    """

    __slots__ = ("_is_cancelled", "_is_over", "_task", "is_cut")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = task
        self.is_cut = False
        self._is_cancelled = False
        self._is_over = False

    def cut(self) -> None:
        """Cancel the work; harmless when that was done, or when it is over."""
        if self.is_cut or self._is_over:
            return
        self.is_cut = True
        if asyncio.current_task() is self._task:
            # The work itself brought this about.  If it ends before it waits for anything, the cancellation would
            # strike the worker.
            asyncio.get_running_loop().call_soon(self._cancel)
        else:
            self._cancel()

    def _cancel(self) -> None:
        if not self._is_over:
            self._is_cancelled = True
            self._task.cancel()

    def over(self) -> None:
        """The work has ended; a cancellation that was meant for it does not count for the task."""
        self._is_over = True
        if self._is_cancelled:
            self._is_cancelled = False
            self._task.uncancel()


class Work(Cut):
    """A handler's call that has suspended; see :class:`Underway`."""

    __slots__ = ("deadline", "key", "of")

    def __init__(self, task: asyncio.Task[Any], key: QueryKey, of: object, deadline: float | None) -> None:
        super().__init__(task)
        self.key = key
        self.of = of
        self.deadline = deadline


class Underway(dict[QueryKey, Work]):
    """The queries whose handlers wait for something: they can be cut short, and are when their time is over.

    Args:
        expired: Told of each whose time was over.
    """

    def __init__(self, expired: Callable[[], None]) -> None:
        super().__init__()
        self._expired = expired
        self._expiry = Expiry(self._expire)

    def begin(self, task: asyncio.Task[Any], key: QueryKey, of: object, deadline: float | None) -> Work:
        """A handler has suspended; say :meth:`end` when it has ended.

        Args:
            task: It runs in that one, which is the current one.
            key: What it answers.
            of: Whoever may give it up.
            deadline: When it is cut, on the loop's clock.
        """
        work = self[key] = Work(task, key, of, deadline)
        if deadline is not None:
            self._expiry.note(deadline)
        return work

    def end(self, work: Work) -> None:
        """The handler has ended."""
        work.over()
        if self.get(work.key) is work:
            del self[work.key]

    def give_up(self, key: QueryKey, of: object) -> bool:
        """Nobody waits for the answer: cut the handler; ``False``: there is none at work for it."""
        work = self.get(key)
        if work is None or work.of is not of or work.is_cut:
            return False
        work.cut()
        return True

    def close(self) -> None:
        """Watch them no longer."""
        self._expiry.close()

    def _expire(self, now: float) -> float:
        earliest = math.inf
        for work in list(self.values()):
            if work.deadline is None or work.is_cut:
                continue
            if work.deadline > now:
                earliest = min(earliest, work.deadline)
            else:
                work.cut()
                self._expired()
        return earliest
