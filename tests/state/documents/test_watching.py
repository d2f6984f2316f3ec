"""A watcher gets every change in order, or is told how many it missed."""

from __future__ import annotations

import asyncio

import pytest

from state.clocks.vectors import Writer
from state.documents.events import Change, ChangesLost
from state.documents.names import Kind, Name
from state.documents.watching import WAITING_MAX, Changes
from transport.types import NodeId

A = Writer(NodeId("a"), 1)


def _change(number: int) -> Change:
    return Change(Name(Kind.MAP), A, local=True, keys=(str(number),))


async def test_changes_come_in_order_and_the_iteration_ends() -> None:
    """One that waits is woken by a change, and by the end."""
    ended: list[Changes] = []
    changes = Changes(ended.append)
    seen = []

    async def read() -> None:
        seen.extend([change async for change in changes])

    reader = asyncio.create_task(read())
    await asyncio.sleep(0)
    for number in range(3):
        changes.put(_change(number))
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    await changes.aclose()
    await reader
    assert seen == [_change(number) for number in range(3)]
    assert ended == [changes]


async def test_a_slow_watcher_is_told_what_it_missed() -> None:
    """The oldest go when too many wait; their number comes first, then the rest."""
    changes = Changes(lambda _ended: None)
    for number in range(WAITING_MAX + 5):
        changes.put(_change(number))
    assert await anext(changes) == ChangesLost(5)
    assert await anext(changes) == _change(5)
    await changes.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(changes)
