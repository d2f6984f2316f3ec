"""The work that a benchmark does, whatever carries the messages: so that two carriers are measured alike."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Final

from mesh.processes import Document
from transport.clock import SystemClock

NUMBER_BYTES: Final = 8
"""A message begins with its number, which its receiver checks."""

_CLOCK: Final = SystemClock()

# No message for this long: what has not come is lost.
_SILENCE_S: Final = 5.0


class Counter:
    """The receiver: checks that messages come complete and in order, and notes when the last one came."""

    def __init__(self) -> None:
        self._done = asyncio.Event()
        self.expect(0)

    def expect(self, count: int) -> None:
        """Begin anew; ``count`` messages numbered from 0 will come."""
        self._next = 0
        self._last = count - 1
        self._received = 0
        self._out_of_order = 0
        self._ended_at = 0.0
        self._cpu_s = 0.0
        self._cpu_began_s = time.process_time()
        self._done.clear()

    def take(self, payload: bytes) -> None:
        """Check one message."""
        number = int.from_bytes(payload[:NUMBER_BYTES], "big")
        if number != self._next:
            self._out_of_order += 1
        self._next = number + 1
        self._received += 1
        if number == self._last:
            self._ended_at = _CLOCK.monotonic()
            self._cpu_s = time.process_time() - self._cpu_began_s
            self._done.set()

    async def result(self) -> Document:
        """Wait for the last message, as long as messages come at all, and say what was received."""
        while True:
            before = self._received
            try:
                await asyncio.wait_for(self._done.wait(), _SILENCE_S)
            except TimeoutError:
                if self._received != before:
                    continue
                self._ended_at = _CLOCK.monotonic() - _SILENCE_S
                self._cpu_s = time.process_time() - self._cpu_began_s
            break
        return {
            "received": self._received,
            "out_of_order": self._out_of_order,
            "ended_at": self._ended_at,
            "cpu_s": self._cpu_s,
        }


async def send_all(
    send: Callable[[bytes], Awaitable[object]], count: int, payload_bytes: int, flush: Callable[[], Awaitable[object]]
) -> Document:
    """The sender: ``count`` numbered messages of ``payload_bytes``, one ``await`` each."""
    rest = bytes(max(0, payload_bytes - NUMBER_BYTES))
    cpu_s = time.process_time()
    began_at = _CLOCK.monotonic()
    for number in range(count):
        await send(number.to_bytes(NUMBER_BYTES, "big") + rest)
    await flush()
    return {"began_at": began_at, "cpu_s": time.process_time() - cpu_s}


async def ask_all(
    ask: Callable[[bytes], Awaitable[bytes]], concurrency: int, duration_s: float, payload_bytes: int
) -> Document:
    """The caller: ``concurrency`` loops of request and response for ``duration_s``."""
    payload = bytes(payload_bytes)
    times_ns: list[int] = []
    clock_ns = time.perf_counter_ns
    began_ns = clock_ns()
    ends_ns = began_ns + int(duration_s * 1e9)
    cpu_s = time.process_time()

    async def one() -> None:
        while (before := clock_ns()) < ends_ns:
            reply = await ask(payload)
            times_ns.append(clock_ns() - before)
            if len(reply) != payload_bytes:
                raise ValueError(f"the reply has {len(reply)} bytes, not {payload_bytes}")

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(one())
    elapsed_s = (clock_ns() - began_ns) / 1e9
    return {
        "requests": len(times_ns),
        "elapsed_s": elapsed_s,
        "cpu_s": time.process_time() - cpu_s,
        **percentiles_us(times_ns),
    }


def percentiles_us(times_ns: list[int]) -> dict[str, float]:
    """``p50_us``, ``p99_us``, ``p999_us`` and ``max_us`` of durations in nanoseconds."""
    if len(times_ns) < 2:
        value = times_ns[0] / 1e3 if times_ns else 0.0
        return dict.fromkeys(("p50_us", "p99_us", "p999_us", "max_us"), value)
    cuts = statistics.quantiles(times_ns, n=1000, method="inclusive")
    named = {"p50_us": cuts[499], "p99_us": cuts[989], "p999_us": cuts[998], "max_us": max(times_ns)}
    return {name: round(value / 1e3, 1) for name, value in named.items()}
