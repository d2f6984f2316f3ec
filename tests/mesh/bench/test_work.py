"""The work that a benchmark does."""

from __future__ import annotations

import asyncio

import pytest

from mesh.bench import work
from mesh.bench.work import NUMBER_BYTES, Counter, ask_all, percentiles_us, send_all


def _numbered(number: int) -> bytes:
    return number.to_bytes(NUMBER_BYTES, "big") + b"rest"


async def test_the_counter_is_done_with_the_last_number() -> None:
    """All messages in order: nothing lost, nothing out of order."""
    counter = Counter()
    counter.expect(3)
    for number in range(3):
        counter.take(_numbered(number))
    result = await counter.result()

    assert (result["received"], result["out_of_order"]) == (3, 0)
    assert result["ended_at"] > 0


async def test_the_counter_sees_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing message is one fewer received and one that did not follow its predecessor."""
    counter = Counter()
    counter.expect(4)
    for number in (0, 1, 3):
        counter.take(_numbered(number))
    result = await counter.result()

    assert (result["received"], result["out_of_order"]) == (3, 1)


async def test_the_counter_gives_up_when_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost last message ends the wait once there is silence."""
    monkeypatch.setattr(work, "_SILENCE_S", 0.01)
    counter = Counter()
    counter.expect(2)
    counter.take(_numbered(0))

    assert (await counter.result())["received"] == 1


async def test_the_sender_numbers_its_messages() -> None:
    """Payloads have the asked size and begin with their number; what waits is flushed."""
    sent: list[bytes] = []
    flushed: list[bool] = []

    async def send(payload: bytes) -> None:
        sent.append(payload)

    async def flush() -> None:
        flushed.append(True)

    await send_all(send, 3, 256, flush)

    assert [int.from_bytes(payload[:NUMBER_BYTES], "big") for payload in sent] == [0, 1, 2]
    assert {len(payload) for payload in sent} == {256}
    assert flushed == [True]


async def test_the_caller_keeps_so_many_requests_under_way() -> None:
    """As many requests wait for an answer at once as were asked for."""
    waiting = most = 0

    async def ask(payload: bytes) -> bytes:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        await asyncio.sleep(0.001)
        waiting -= 1
        return payload

    answer = await ask_all(ask, 8, 0.02, 256)

    assert most == 8
    assert answer["requests"] >= 8
    assert answer["p50_us"] >= 1000


async def test_a_wrong_answer_is_no_answer() -> None:
    """A reply of another size ends the run."""

    async def ask(payload: bytes) -> bytes:
        return payload[1:]

    with pytest.raises(ExceptionGroup, match="unhandled errors"):
        await ask_all(ask, 1, 0.01, 256)


def test_percentiles_are_in_microseconds() -> None:
    """Nanoseconds in, microseconds out."""
    found = percentiles_us([number * 1000 for number in range(1, 1001)])

    assert found["p50_us"] == pytest.approx(500, abs=1)
    assert found["p99_us"] == pytest.approx(990, abs=1)
    assert found["max_us"] == 1000
    assert percentiles_us([5000])["p50_us"] == 5
