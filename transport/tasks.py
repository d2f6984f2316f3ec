"""Task ownership for shells: every background task has an owner that ends it.

``asyncio.TaskGroup`` ends all its tasks when one fails, which is right for a unit of work and wrong for a node:
one agent's failure must not take the others down.  A :class:`TaskScope` only logs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from .logs import get_logger

log = get_logger("mesh.transport")

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def in_thread(function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """``asyncio.to_thread`` for what owns files: when cancelled, it waits for the thread before it raises.

    A thread cannot be stopped, and its owner must not give up a lock, or start anew, while it still writes.
    """
    running = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # seen, so that nobody complains of it
        raise


class TaskScope:
    """Background tasks of one owner; ``close`` cancels and awaits whatever still runs."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def spawn(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any] | None:
        """Run ``coroutine`` as a task of this scope; after ``close`` it is discarded and ``None`` returned."""
        if self._closed:
            coroutine.close()
            return None
        task = asyncio.get_running_loop().create_task(coroutine, name=f"{self._owner}: {name}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background task failed", task=task.get_name(), exc_info=error)

    def __len__(self) -> int:
        return len(self._tasks)

    async def close(self, *, timeout_s: float | None = None, spare: asyncio.Task[Any] | None = None) -> None:
        """Cancel every task and wait until all have ended; the caller's own task is left out.

        Args:
            timeout_s: For code that is not ours and may refuse to end: then it is left behind and logged.
            spare: Another task to leave out: the one on whose behalf this runs.
        """
        self._closed = True
        current = asyncio.current_task()
        while tasks := [task for task in self._tasks if task is not current and task is not spare]:
            for task in tasks:
                task.cancel()
            _, left = await asyncio.wait(tasks, timeout=timeout_s)
            if left:
                log.error("tasks do not end", tasks=[task.get_name() for task in left], waited_s=timeout_s)
                return
