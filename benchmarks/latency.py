"""Round trip of a request at one and at many at once, ours, sealed or not, and NATS's: prints one JSON document.

    python benchmarks/latency.py --runs 5 --seconds 2

All do the same work (``mesh/bench/work.py``): two processes, 256 bytes there and back, mutual TLS, a handler that
answers each request.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from typing import Any

from benchmarks.machine import machine
from benchmarks.nats_peer import nats_server, start_nats_pair
from mesh.bench import summary_of_round_trips
from mesh.bench.pair import RoundTrips, start_mesh_pair
from mesh.processes import Workers

_WARM_UP_S = 0.3


async def measure(*, runs: int, run_s: float, payload_bytes: int, concurrencies: tuple[int, ...]) -> dict[str, Any]:
    """For each concurrency take ``runs`` passes of ours, sealed and not, and of theirs, and compare the medians."""
    document: dict[str, Any] = {"benchmark": "latency", "machine": await asyncio.to_thread(machine), "at": {}}
    async with Workers() as workers, contextlib.AsyncExitStack() as stack:
        pairs = {
            "mesh": await start_mesh_pair(workers),
            "mesh_not_sealed": await start_mesh_pair(workers, end_to_end=False),
        }
        if nats_server():
            nats = await stack.enter_async_context(start_nats_pair(workers))
            pairs["nats"] = nats.pair
            document["nats_server"] = nats.version
        for concurrency in concurrencies:
            taken: dict[str, list[RoundTrips]] = {name: [] for name in pairs}
            for pair in pairs.values():
                await pair.round_trips(concurrency, min(_WARM_UP_S, run_s), payload_bytes)
            for _ in range(runs):
                for name, pair in pairs.items():
                    taken[name].append(await pair.round_trips(concurrency, run_s, payload_bytes))
            row: dict[str, Any] = {
                name: summary_of_round_trips(taken[name], payload_bytes, pair.tls) for name, pair in pairs.items()
            }
            row["ratio_p50_of_sealed"] = round(row["mesh_not_sealed"]["p50_us"] / row["mesh"]["p50_us"], 2)
            if "nats" in row:
                row["ratio_p50"] = round(row["nats"]["p50_us"] / row["mesh"]["p50_us"], 2)
                row["ratio_p99"] = round(row["nats"]["p99_us"] / row["mesh"]["p99_us"], 2)
                row["ratio_req_per_s"] = round(row["mesh"]["req_per_s"] / row["nats"]["req_per_s"], 2)
            document["at"][str(concurrency)] = row
    return document


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="passes to take the median of")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long one run takes")
    parser.add_argument("--payload-bytes", type=int, default=256)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 64])
    arguments = parser.parse_args()
    document = asyncio.run(
        measure(
            runs=arguments.runs,
            run_s=arguments.seconds,
            payload_bytes=arguments.payload_bytes,
            concurrencies=tuple(arguments.concurrency),
        )
    )
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
