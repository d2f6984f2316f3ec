"""Events reach everybody who watches, and nobody who has stopped."""

from __future__ import annotations

import asyncio
import gc

import pytest

from mesh.events import EventsLost, MeshEvent, NodeJoined
from mesh.observers import EVENTS_WAITING_MAX, Observers
from mesh.types import AgentNode


def _event(number: int) -> NodeJoined:
    return NodeJoined(AgentNode("a", incarnation=number))


async def test_each_observer_sees_all_in_order() -> None:
    """Everybody sees the events since it subscribed, and the iteration ends when the node leaves."""
    observers = Observers()
    first = observers.subscribe()
    observers.publish(_event(1))
    second = observers.subscribe()
    observers.publish(_event(2))
    observers.close()
    observers.publish(_event(3))

    assert [seen async for seen in first] == [_event(1), _event(2)]
    assert [seen async for seen in second] == [_event(2)]


async def test_an_observer_waits_for_events() -> None:
    """Without an event the iteration waits; with one it goes on."""
    observers = Observers()
    events = observers.subscribe()
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    assert not waiting.done()

    observers.publish(_event(1))

    assert await waiting == _event(1)


async def test_a_waiting_observer_ends_with_the_node() -> None:
    """Whoever waits for an event when the node leaves is let go; so is whoever comes later."""
    observers = Observers()
    events = observers.subscribe()
    waiting = asyncio.ensure_future(anext(events, None))
    await asyncio.sleep(0)

    observers.close()

    assert await waiting is None
    assert await anext(observers.subscribe(), None) is None


async def test_a_slow_observer_is_told_of_its_gap_where_it_is() -> None:
    """What did not fit is one gap with its length; after it events are whole again, and nobody else loses any."""
    observers = Observers()
    slow, fast = observers.subscribe(), observers.subscribe()
    for number in range(EVENTS_WAITING_MAX + 5):
        observers.publish(_event(number))
        assert await anext(fast) == _event(number)
    assert await anext(slow) == _event(0)
    observers.publish(_event(-1))  # there is room again, but it would hide the gap

    for number in range(1, EVENTS_WAITING_MAX):
        assert await anext(slow) == _event(number)
    assert await anext(slow) == EventsLost(6)
    observers.publish(_event(-2))
    assert await anext(slow) == _event(-2)


@pytest.mark.parametrize("started", [False, True])
async def test_a_dropped_iterator_is_no_observer(started: bool) -> None:
    """An iterator that is dropped, whether it was started or not, costs nothing any more."""
    observers = Observers()
    events = observers.subscribe()
    observers.publish(_event(1))
    if started:
        await anext(events)
    assert len(observers) == 1

    del events
    gc.collect()

    assert len(observers) == 0
    observers.publish(_event(2))


async def test_a_closed_iterator_ends_at_once() -> None:
    """After aclose nothing is kept or seen, even if events were waiting or lost."""
    observers = Observers()
    events = observers.subscribe()
    for number in range(EVENTS_WAITING_MAX + 1):
        observers.publish(_event(number))

    await events.aclose()
    observers.publish(_event(2))

    assert await anext(events, None) is None


async def test_cancelling_a_reader_loses_nothing() -> None:
    """An event that arrives when its reader was cancelled waits for the next one."""
    observers = Observers()
    events = observers.subscribe()
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    observers.publish(_event(1))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    seen: MeshEvent = await anext(events)
    assert seen == _event(1)
