"""Callers that wait for an agent are served in the order they came."""

from __future__ import annotations

import asyncio

from mesh.messaging.turns import Turns


async def test_each_has_its_turn_in_order() -> None:
    """Whoever gives up leaves its place; agents do not wait for one another; and nothing is left behind."""
    turns = Turns()
    order: list[str] = []

    async def caller(name: str, agent_id: int) -> None:
        async with turns.take(agent_id):
            order.append(name)
            await asyncio.sleep(0)

    async with turns.take(1):
        first, second, third = (asyncio.ensure_future(caller(name, 1)) for name in ("first", "second", "third"))
        await caller("other", 2)
        second.cancel()
        await asyncio.wait([second])
        assert order == ["other"]
        assert turns.is_wanted(1)
        assert not turns.is_wanted(2)
    late = asyncio.ensure_future(caller("late", 1))
    await asyncio.gather(first, third, late)

    assert order == ["other", "first", "third", "late"]
    assert not turns.is_wanted(1)


async def test_many_have_their_turns_in_one_turn_of_the_loop() -> None:
    """When none has to wait in it; else a busy loop would let one of them through at a time."""
    turns = Turns()
    order: list[int] = []
    rounds = 0

    async def caller(number: int) -> None:
        async with turns.take(1):
            order.append(number)

    async with turns.take(1):
        callers = [asyncio.ensure_future(caller(number)) for number in range(300)]
        await asyncio.sleep(0)
    while len(order) < 300:
        rounds += 1
        await asyncio.sleep(0)
    await asyncio.gather(*callers)

    assert order == list(range(300))
    assert rounds < 20
