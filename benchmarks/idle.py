"""What a node costs that does nothing: prints one JSON document.

    python benchmarks/idle.py

Memory and start of ``mesh up`` as a user runs it, its share of a core alone and with links, and what an idle link
adds to a node's memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import machine
from mesh.bench.pair import node_settings
from mesh.processes import Worker, Workers, worker_environment

_START_S = 30.0
_FEW_LINKS = 5
_LINK_HOSTS = 2


async def measure(*, links: int, seconds: float, starts: int) -> dict[str, Any]:
    """Take every figure, one after the other."""
    document: dict[str, Any] = {"benchmark": "idle", "machine": await asyncio.to_thread(machine)}
    async with Workers() as workers:
        alone = [await _mesh_up(workers.path / f"up-{number}", seconds / starts) for number in range(starts)]
        for name in ("start_to_ready_s", "rss_mib", "cpu_percent"):
            document[name] = round(statistics.median(run[name] for run in alone), 3)
        document["restart_to_ready_s"] = (await _mesh_up(workers.path / "up-0", 0.0))["start_to_ready_s"]
        document |= await _links(workers, links, seconds)
    return document


async def _mesh_up(data_dir: Path, seconds: float) -> dict[str, float]:
    """Start ``mesh up`` on a fresh directory, let it idle, and stop it."""
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "mesh", "up", "--json", "--listen", "127.0.0.1:0", "--data-dir", str(data_dir)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=worker_environment(),
    )
    try:
        assert process.stdout is not None
        ready = json.loads(await asyncio.wait_for(process.stdout.readline(), _START_S))
        ready_s = time.perf_counter() - began
        if ready["event"] != "ready":
            raise RuntimeError(f"mesh up began with {ready}")
        watched = psutil.Process(process.pid)
        await asyncio.sleep(min(2.0, seconds))  # the first seconds announce and look around
        cpu_percent = await _share(watched, seconds)
        return {
            "start_to_ready_s": round(ready_s, 3),
            "rss_mib": round(watched.memory_info().rss / 2**20, 1),
            "cpu_percent": cpu_percent,
        }
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _share(process: psutil.Process, seconds: float) -> float:
    before = process.cpu_times()
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    after = process.cpu_times()
    used_s = float(after.user + after.system - before.user - before.system)
    return round(100 * used_s / max(time.perf_counter() - began, 1e-9), 3)


async def _links(workers: Workers, links: int, seconds: float) -> dict[str, Any]:
    """One node linked with few others and then with many; the slope is what a link costs."""
    hub = await workers.start("hub", "mesh.bench.worker", node_settings(workers, "hub"))
    hosts = [await workers.start(f"host-{n}", "mesh.bench.worker", {}) for n in range(_LINK_HOSTS)]
    few = min(_FEW_LINKS, links - 1)
    rss = {}
    joined = 0
    for target in (few, links):
        while joined < target:
            await hosts[joined % len(hosts)].call("join", **node_settings(workers, f"leaf-{joined}"))
            joined += 1
        await hub.call("wait_members", count=target + 1)
        await asyncio.sleep(min(3.0, seconds))  # until the table is spread and the hello's buffers are gone
        rss[target] = await _rss(hub)
    return {
        "links": links,
        "kib_per_idle_link": round((rss[links] - rss[few]) / 1024 / (links - few), 1),
        "cpu_percent_with_links": await _share(psutil.Process(hub.pid), seconds),
        "rss_mib_with_links": round(rss[links] / 2**20, 1),
    }


async def _rss(worker: Worker) -> int:
    return int((await worker.call("usage"))["rss_bytes"])


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--links", type=int, default=30, help="links of the node that is watched")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long a node is watched")
    parser.add_argument("--starts", type=int, default=3, help="how often a node is started")
    arguments = parser.parse_args()
    document = asyncio.run(measure(links=arguments.links, seconds=arguments.seconds, starts=arguments.starts))
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
