"""Durable messages per second, each acknowledged to its sender after an fsync: prints one JSON document.

    python benchmarks/durable.py --runs 5 --count 40000

Two processes, mutual TLS, 256 bytes.  ``stored_per_s`` is what the senders see: their ``await`` returns when the
message is on disk.  ``handled_per_s`` is the whole way: handled, recorded at the receiver, answered, and taken out of
the outbox, all on disk.  ``fdatasync_ms`` is what the disk alone needs, measured in the same directory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from mesh.processes import Worker, Workers

_SYNCS = 100


async def measure(*, runs: int, count: int, payload_bytes: int, callers: int, agents: int) -> dict[str, Any]:
    """Take ``runs`` passes and report their medians."""
    document: dict[str, Any] = {"benchmark": "durable", "machine": await asyncio.to_thread(machine)}
    async with Workers() as workers:
        document["fdatasync_ms"] = await asyncio.to_thread(_fdatasync_ms, workers.path / "sync")
        receiver = await _start(workers, "receiver", receives=True)
        sender = await _start(workers, "sender", receives=False)
        work: dict[str, Any] = {"payload_bytes": payload_bytes, "callers": callers, "agents": agents}
        await sender.call("send", count=callers, **work)
        passes = [await sender.call("send", count=count, answer_within_s=300.0, **work) for _ in range(runs)]
        seen = await receiver.call("stats")
    sent = callers + sum(one["count"] for one in passes)
    return {
        **document,
        "tls": "TLSv1.3, both sides authenticated",
        "payload_bytes": payload_bytes,
        "callers": callers,
        "agents": agents,
        "runs": runs,
        "stored_per_s": round(statistics.median(one["count"] / one["stored_s"] for one in passes)),
        "stored_per_s_all": [round(one["count"] / one["stored_s"]) for one in passes],
        "handled_per_s": round(statistics.median(one["count"] / one["handled_s"] for one in passes)),
        "handled_per_s_all": [round(one["count"] / one["handled_s"]) for one in passes],
        "messages_per_transaction": round(sum(one["count"] for one in passes) / sum(o["transactions"] for o in passes)),
        "sender_cpu_us_per_message": round(sum(one["cpu_s"] for one in passes) / (sent - callers) * 1e6, 1),
        "receiver_cpu_us_per_message": round(seen["cpu_s"] / sent * 1e6, 1),
        "sent_again": sum(one["sent_again"] for one in passes),
        "lost": sent - seen["handled"],
    }


async def _start(workers: Workers, node_id: str, *, receives: bool) -> Worker:
    shared = {"listen": "127.0.0.1:0", "mdns": False, "preset": "local", "data_dir": str(workers.path)}
    settings = {"node_id": node_id, "shared": shared, "receives": receives}
    worker = await workers.start(node_id, "benchmarks.durable_worker", settings)
    await worker.call("stats")
    return worker


def _fdatasync_ms(path: Path) -> float:
    """The median time of appending 4 KiB and waiting until it is on disk."""
    took = []
    file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    try:
        for _ in range(_SYNCS):
            began = time.perf_counter()
            os.write(file, bytes(4_096))
            os.fdatasync(file)
            took.append(time.perf_counter() - began)
    finally:
        os.close(file)
    return round(statistics.median(took) * 1000, 3)


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="passes to take the median of")
    parser.add_argument("--count", type=int, default=40_000, help="messages of one pass")
    parser.add_argument("--payload-bytes", type=int, default=256)
    parser.add_argument("--callers", type=int, default=512, help="how many wait for the disk at the same time")
    parser.add_argument("--agents", type=int, default=16, help="how many agents they send as")
    given = parser.parse_args()
    document = asyncio.run(
        measure(
            runs=given.runs,
            count=given.count,
            payload_bytes=given.payload_bytes,
            callers=given.callers,
            agents=given.agents,
        )
    )
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
