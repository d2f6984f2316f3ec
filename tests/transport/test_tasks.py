"""Tasks have an owner that ends them, and their failures are heard."""

from __future__ import annotations

import asyncio

import pytest
from support import eventually

from transport.tasks import TaskScope


async def _wait_for_ever() -> None:
    await asyncio.get_running_loop().create_future()


async def _fail() -> None:
    raise ValueError("boom")


async def test_closing_ends_every_task() -> None:
    """close returns when all tasks have ended, those that were cancelled included."""
    scope = TaskScope("owner")
    tasks = [scope.spawn(_wait_for_ever(), name=str(number)) for number in range(3)]
    assert len(scope) == 3

    await scope.close()

    assert len(scope) == 0
    assert all(task is not None and task.cancelled() for task in tasks)


async def test_a_finished_task_is_forgotten() -> None:
    """A scope that lives long does not collect what has ended."""
    scope = TaskScope("owner")
    task = scope.spawn(asyncio.sleep(0), name="short")
    assert task is not None

    await task

    assert len(scope) == 0
    assert task.get_name() == "owner: short"


async def test_a_failure_is_logged_and_hurts_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    """One task's exception ends that task only; the log names it."""
    scope = TaskScope("owner")
    other = scope.spawn(_wait_for_ever(), name="other")
    scope.spawn(_fail(), name="bad")
    await eventually(lambda: len(scope) == 1)

    assert [record.name for record in caplog.records] == ["mesh.transport"]
    assert "background task failed" in caplog.text
    assert "owner: bad" in caplog.text
    assert other is not None
    assert not other.done()
    await scope.close()


async def test_nothing_starts_after_the_end() -> None:
    """A closed scope discards what it is given, without a warning about coroutines never awaited."""
    scope = TaskScope("owner")
    await scope.close()

    assert scope.spawn(_wait_for_ever(), name="late") is None
    assert len(scope) == 0


async def test_a_task_can_close_its_own_scope() -> None:
    """The task that closes is left out, and ends by itself."""
    scope = TaskScope("owner")
    other = scope.spawn(_wait_for_ever(), name="other")
    closer = scope.spawn(scope.close(), name="closer")
    assert closer is not None

    await closer

    assert other is not None
    assert other.cancelled()
    assert not closer.cancelled()


async def test_a_task_that_cleans_up_is_waited_for() -> None:
    """close returns only after what a task does on being cancelled."""
    scope = TaskScope("owner")
    done = []

    async def careful() -> None:
        try:
            await _wait_for_ever()
        finally:
            await asyncio.sleep(0)
            done.append(True)

    scope.spawn(careful(), name="careful")
    await asyncio.sleep(0)
    await scope.close()

    assert done == [True]


async def test_closing_can_be_cancelled() -> None:
    """A caller that gives up waiting is let go; the tasks are cancelled all the same."""
    scope = TaskScope("owner")
    release = asyncio.Event()

    async def stubborn() -> None:
        try:
            await _wait_for_ever()
        finally:
            await release.wait()

    task = scope.spawn(stubborn(), name="stubborn")
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await scope.close()
    release.set()
    await scope.close()

    assert task is not None
    assert task.done()
