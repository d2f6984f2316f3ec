"""Calls end with their response, with its error, with their link or with their time, whichever comes first."""

from __future__ import annotations

import asyncio

import pytest
from couriers import FakeLink, as_link
from support import eventually

from mesh.errors import NetworkClosed, RemoteError, UnknownAgent
from mesh.messaging.body import (
    ERROR_HANDLER_RAISED,
    ERROR_UNKNOWN_AGENT,
    FLAG_ERROR,
    Message,
    encode_error,
)
from mesh.messaging.calls import Calls
from mesh.messaging.dialogue import Dialogue


def dialogue() -> Dialogue:
    """A dialogue whose link nobody uses."""
    return Dialogue(as_link(FakeLink("b", 1)), life=1, now_ms=lambda: 0, dirty=lambda _: None, window_bytes=1)


def response(correlation: int | None, payload: bytes = b"yes", flags: int = 0) -> Message:
    """As it is decoded; without a correlation it answers nothing."""
    message: Message = [9, 3, 7, 1, flags, payload, 0]
    return message if correlation is None else [*message, correlation]


async def test_a_response_settles_the_call_that_it_answers() -> None:
    """Once, and only over the dialogue on which it was asked."""
    calls, ours, other = Calls(), dialogue(), dialogue()
    future = calls.add(5, ours, 10.0)
    assert calls.wait_for(ours)
    assert not calls.wait_for(other)
    assert not calls.settle(other, response(5))
    assert not calls.settle(ours, response(6))
    assert not calls.settle(ours, response(None))
    assert calls.settle(ours, response(5))
    assert not calls.settle(ours, response(5, b"again"))
    assert await future == b"yes"
    calls.close()


@pytest.mark.parametrize(("code", "error"), [(ERROR_UNKNOWN_AGENT, UnknownAgent), (ERROR_HANDLER_RAISED, RemoteError)])
async def test_a_response_may_be_an_error(code: int, error: type[Exception]) -> None:
    """With the text that the other side gave."""
    calls, ours = Calls(), dialogue()
    future = calls.add(5, ours, 10.0)
    assert calls.settle(ours, response(5, encode_error(code, "ValueError", "no luck"), FLAG_ERROR))
    with pytest.raises(error, match="no luck"):
        await future
    calls.close()


async def test_calls_of_a_dialogue_or_all_fail() -> None:
    """Each with an error of its own; those that are settled stay so."""
    calls, ours, other = Calls(), dialogue(), dialogue()
    first, second, third = calls.add(1, ours, 10.0), calls.add(2, ours, 10.0), calls.add(3, other, 10.0)
    calls.settle(ours, response(1))
    calls.fail(lambda: NetworkClosed("the link"), ours)
    assert not third.done()
    calls.fail(lambda: NetworkClosed("all"))
    assert await first == b"yes"
    with pytest.raises(NetworkClosed, match="the link"):
        await second
    with pytest.raises(NetworkClosed, match="all"):
        await third
    calls.close()


async def test_calls_end_with_their_time_whatever_the_order() -> None:
    """A shorter one that comes later is not kept waiting by a longer one, and settled ones are left alone."""
    calls, ours = Calls(), dialogue()
    long, settled, short = calls.add(1, ours, 0.05), calls.add(2, ours, 0.01), calls.add(3, ours, 0.01)
    calls.settle(ours, response(2))
    with pytest.raises(TimeoutError):
        await short
    assert not long.done()
    assert settled.result() == b"yes"
    await eventually(long.done)
    assert isinstance(long.exception(), TimeoutError)
    for sequence in (1, 2, 3):
        del calls[sequence]
    late = calls.add(4, ours, 0.01)
    del calls[4]
    await asyncio.sleep(0.02)
    assert not late.done()
