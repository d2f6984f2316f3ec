"""Deadlines reach what is done on their behalf, and work that nobody waits for is cut out of its task."""

from __future__ import annotations

import asyncio
import math

import pytest
from support import eventually

from mesh import remaining_s, without_deadline
from mesh.errors import RequestTimeout
from mesh.messaging.deadlines import DEADLINE, Cut, Expiry, Underway, bounded, left_ms


async def test_outside_of_a_handler_nothing_is_bounded() -> None:
    """Nobody waits, so a request takes what it was given."""
    assert remaining_s() is None
    assert bounded(5.0) == 5.0
    assert bounded(math.inf) == math.inf


async def test_inside_the_shorter_time_counts() -> None:
    """Also in tasks that are started there; and not where it is lifted."""
    token = DEADLINE.set(asyncio.get_running_loop().time() + 10)
    try:
        assert bounded(5.0) == 5.0
        assert bounded(50.0) == pytest.approx(10, abs=1)

        async def left() -> float | None:
            return remaining_s()

        assert await asyncio.create_task(left()) == pytest.approx(10, abs=1)
        with without_deadline():
            assert remaining_s() is None
            assert bounded(50.0) == 50.0
            lifted = asyncio.create_task(left())
        assert await lifted is None
        assert remaining_s() is not None
    finally:
        DEADLINE.reset(token)


async def test_when_no_time_is_left_nothing_is_sent() -> None:
    """The error says so."""
    token = DEADLINE.set(asyncio.get_running_loop().time() - 1)
    try:
        with pytest.raises(RequestTimeout, match="nothing was sent") as late:
            bounded(5.0)
        assert not late.value.changed
    finally:
        DEADLINE.reset(token)


@pytest.mark.parametrize(("timeout_s", "ms"), [(0.0, 1), (0.0004, 1), (1.5, 1501), (1e300, 366 * 86_400_000 + 1)])
def test_what_is_left_travels_as_milliseconds(timeout_s: float, ms: int) -> None:
    """At least one, and never more than an integer holds."""
    assert left_ms(timeout_s) == ms


async def test_one_timer_serves_many_deadlines() -> None:
    """It looks when the earliest comes, and again for the others."""
    ends = [asyncio.get_running_loop().time() + wait_s for wait_s in (0.05, 0.01, 0.03)]
    ended: list[float] = []

    def expire(now: float) -> float:
        for deadline in [deadline for deadline in ends if deadline <= now]:
            ends.remove(deadline)
            ended.append(deadline)
        return min(ends, default=math.inf)

    expiry = Expiry(expire)
    for deadline in list(ends):
        expiry.note(deadline)
    await eventually(lambda: not ends)
    expiry.close()

    assert ended == sorted(ended)


async def test_cut_work_leaves_its_task_alive() -> None:
    """The cancellation is the work's alone: the task goes on and can be cancelled for itself later."""
    seen: list[str] = []

    async def worker() -> None:
        task = asyncio.current_task()
        assert task is not None
        for name in ("first", "second"):
            work = Cut(task)
            works.append(work)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append(name)
            finally:
                work.over()
            assert task.cancelling() == 0
        await asyncio.Event().wait()

    works: list[Cut] = []
    running = asyncio.create_task(worker())
    for count in (1, 2):
        await eventually(lambda count=count: len(works) == count)  # type: ignore[misc]
        works[-1].cut()
        works[-1].cut()
    await eventually(lambda: seen == ["first", "second"])
    works[-1].cut()  # it is over: nothing happens
    await asyncio.sleep(0)
    assert not running.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_work_that_cuts_itself_does_not_strike_its_task() -> None:
    """Neither when it ends without waiting, nor, where it waits, anything but itself."""
    task = asyncio.current_task()
    assert task is not None
    work = Cut(task)
    work.cut()
    work.over()
    await asyncio.sleep(0)
    assert task.cancelling() == 0

    work = Cut(task)
    with pytest.raises(asyncio.CancelledError):
        work.cut()
        await asyncio.Event().wait()
    work.over()
    assert task.cancelling() == 0


async def test_queries_under_way_end_with_their_time_or_their_asker() -> None:
    """Each by its key, only for whom it is, and only once."""
    expired: list[None] = []
    underway = Underway(lambda: expired.append(None))
    now = asyncio.get_running_loop().time()
    mine, other = object(), object()

    async def handle(number: int, deadline: float | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        work = underway.begin(task, ("a", 1, number), mine, deadline)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # it may take its time
        finally:
            underway.end(work)

    tasks = [
        asyncio.create_task(handle(number, deadline))
        for number, deadline in enumerate([now + 0.01, now + 0.02, now + 60, None])
    ]
    await eventually(lambda: len(expired) == 2)
    assert not underway.give_up(("a", 1, 2), other)
    assert not underway.give_up(("a", 1, 9), mine)
    assert underway.give_up(("a", 1, 2), mine)
    assert not underway.give_up(("a", 1, 2), mine)
    assert underway.give_up(("a", 1, 3), mine)
    await asyncio.gather(*tasks)

    assert underway == {}
    assert len(expired) == 2
    underway.close()
