"""Messages per second one way, ours, ours without end-to-end encryption, and NATS's, in turn: prints one JSON document.

    python benchmarks/throughput.py --runs 5 --seconds 2

All do the same work (``mesh/bench/work.py``): two processes, 256 bytes, mutual TLS, one ``await`` for each send, a
handler for each message, numbers checked by the receiver.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from typing import Any

from benchmarks.machine import machine
from benchmarks.nats_peer import NatsPair, nats_server, start_nats_pair
from mesh.bench import sized, summary_of_one_way
from mesh.bench.pair import OneWay, WorkerPair, start_mesh_pair
from mesh.processes import Workers


async def measure(*, runs: int, run_s: float, payload_bytes: int) -> dict[str, Any]:
    """Take ``runs`` passes, each of ours, sealed and not, and then of theirs, and compare the medians."""
    document: dict[str, Any] = {"benchmark": "throughput", "machine": await asyncio.to_thread(machine)}
    async with Workers() as workers, contextlib.AsyncExitStack() as stack:
        ours = await start_mesh_pair(workers)
        clear = await start_mesh_pair(workers, end_to_end=False)
        theirs = await stack.enter_async_context(start_nats_pair(workers)) if nats_server() else None
        our_runs: list[OneWay] = []
        clear_runs: list[OneWay] = []
        their_runs: list[OneWay] = []
        our_count = await sized(ours, payload_bytes, run_s)
        their_count = await sized(theirs.pair, payload_bytes, run_s) if theirs else 0
        server_cpu_s = theirs.server_cpu_s() if theirs else 0.0
        for _ in range(runs):
            our_runs.append(await ours.one_way(our_count, payload_bytes))
            clear_runs.append(await clear.one_way(our_count, payload_bytes))
            if theirs is not None:
                their_runs.append(await theirs.pair.one_way(their_count, payload_bytes))
        document["mesh"] = _summary(our_runs, payload_bytes, ours)
        document["mesh_not_sealed"] = _summary(clear_runs, payload_bytes, clear)
        document["ratio_of_sealed"] = round(
            document["mesh"]["msgs_per_s"] / document["mesh_not_sealed"]["msgs_per_s"], 2
        )
        if theirs is not None:
            document["nats"] = _of_nats(their_runs, payload_bytes, theirs, theirs.server_cpu_s() - server_cpu_s)
            ratios = [a.msgs_per_s / b.msgs_per_s for a, b in zip(our_runs, their_runs, strict=True)]
            document["ratio"] = round(document["mesh"]["msgs_per_s"] / document["nats"]["msgs_per_s"], 2)
            document["ratio_min"] = round(min(ratios), 2)
            document["ratio_max"] = round(max(ratios), 2)
        else:
            document["nats"] = None  # not installed; see benchmarks/README.md
    return document


def _summary(runs: list[OneWay], payload_bytes: int, pair: WorkerPair) -> dict[str, Any]:
    return summary_of_one_way(runs, payload_bytes, pair.tls)


def _of_nats(runs: list[OneWay], payload_bytes: int, nats: NatsPair, server_cpu_s: float) -> dict[str, Any]:
    messages = sum(run.count for run in runs)
    return {
        **_summary(runs, payload_bytes, nats.pair),
        "processes": 3,
        "server_cpu_us_per_message": round(server_cpu_s / messages * 1e6, 3),
        "server": nats.version,
    }


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="passes to take the median of")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long one run takes, about")
    parser.add_argument("--payload-bytes", type=int, default=256)
    arguments = parser.parse_args()
    document = asyncio.run(
        measure(runs=arguments.runs, run_s=arguments.seconds, payload_bytes=max(8, arguments.payload_bytes))
    )
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
