"""``mesh bench``: what two processes on this machine can do over mutual TLS, through the public API.

The receiver runs a handler for each message; the sender awaits each ``send``.  Figures are medians of several runs.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from mesh.processes import Workers

from .pair import OneWay, RoundTrips, WorkerPair, start_mesh_pair
from .work import NUMBER_BYTES

__all__ = ["run_latency", "run_throughput", "sized", "summary_of_one_way", "summary_of_round_trips"]

_RUNS: Final = 5
_WARM_UP_MESSAGES: Final = 20_000
_MESSAGES_MIN: Final = 1_000

_T = TypeVar("_T")


def run_throughput(*, duration_s: float = 5.0, payload_bytes: int = 256, runs: int = _RUNS) -> dict[str, Any]:
    """Measure messages per second one way.

    Args:
        duration_s: How long to send, all runs together.
        payload_bytes: Size of each message; at least 8, for its number.
        runs: How many runs to take the median of.

    Returns:
        A plain dictionary, ``msgs_per_s`` first.

    Raises:
        MeshError: The nodes could not be started or ended.
    """

    async def measure(pair: WorkerPair) -> dict[str, Any]:
        size = max(payload_bytes, NUMBER_BYTES)
        count = await sized(pair, size, duration_s / runs)
        return summary_of_one_way([await pair.one_way(count, size) for _ in range(runs)], size, pair.tls)

    return asyncio.run(_with_pair(measure))


def run_latency(
    *, duration_s: float = 5.0, payload_bytes: int = 256, concurrency: int = 1, runs: int = _RUNS
) -> dict[str, Any]:
    """Measure the round trip of a request.

    Args:
        duration_s: How long to measure, all runs together.
        payload_bytes: Size of request and response.
        concurrency: Requests under way at once.
        runs: How many runs to take the median of.

    Returns:
        A plain dictionary, ``p50_us`` first.

    Raises:
        MeshError: The nodes could not be started or ended.
    """

    async def measure(pair: WorkerPair) -> dict[str, Any]:
        await pair.round_trips(concurrency, 0.2, payload_bytes)
        return summary_of_round_trips(
            [await pair.round_trips(concurrency, duration_s / runs, payload_bytes) for _ in range(runs)],
            payload_bytes,
            pair.tls,
        )

    return asyncio.run(_with_pair(measure))


async def _with_pair(measure: Callable[[WorkerPair], Awaitable[_T]]) -> _T:
    async with Workers() as workers:
        return await measure(await start_mesh_pair(workers))


async def sized(pair: WorkerPair, payload_bytes: int, run_s: float) -> int:
    """Warm up, and return how many messages of this size take about ``run_s``."""
    await pair.one_way(min(_WARM_UP_MESSAGES, 64 * 1024 * 1024 // payload_bytes), payload_bytes)
    warm = await pair.one_way(min(_WARM_UP_MESSAGES, 64 * 1024 * 1024 // payload_bytes), payload_bytes)
    return max(_MESSAGES_MIN, int(warm.msgs_per_s * run_s))


def summary_of_one_way(runs: list[OneWay], payload_bytes: int, tls: str) -> dict[str, Any]:
    """Medians of several runs."""
    rates = [run.msgs_per_s for run in runs]
    return {
        "msgs_per_s": round(statistics.median(rates)),
        "msgs_per_s_min": round(min(rates)),
        "msgs_per_s_max": round(max(rates)),
        "payload_bytes": payload_bytes,
        "tls": tls,
        "processes": 2,
        "runs": len(runs),
        "messages": sum(run.count for run in runs),
        "duration_s": round(sum(run.duration_s for run in runs), 3),
        "lost": sum(run.lost for run in runs),
        "out_of_order": sum(run.out_of_order for run in runs),
        "sender_cpu_us_per_message": round(statistics.median(run.send_cpu_us for run in runs), 3),
        "receiver_cpu_us_per_message": round(statistics.median(run.receive_cpu_us for run in runs), 3),
    }


def summary_of_round_trips(runs: list[RoundTrips], payload_bytes: int, tls: str) -> dict[str, Any]:
    """Medians of several runs."""
    return {
        "p50_us": round(statistics.median(run.p50_us for run in runs), 1),
        "p99_us": round(statistics.median(run.p99_us for run in runs), 1),
        "p999_us": round(statistics.median(run.p999_us for run in runs), 1),
        "max_us": round(max(run.max_us for run in runs), 1),
        "req_per_s": round(statistics.median(run.req_per_s for run in runs)),
        "concurrency": runs[0].concurrency,
        "payload_bytes": payload_bytes,
        "tls": tls,
        "processes": 2,
        "runs": len(runs),
        "requests": sum(run.requests for run in runs),
        "duration_s": round(sum(run.duration_s for run in runs), 3),
        "asker_cpu_us_per_request": round(statistics.median(run.ask_cpu_us for run in runs), 3),
    }
