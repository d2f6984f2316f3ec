"""Our nodes and as many ``serf`` agents, one after the other on this machine: prints one JSON document.

    python benchmarks/beside_serf.py                256 of each; some ten minutes
    python benchmarks/beside_serf.py --nodes 16     to see that it works

Both with their LAN timing, both encrypted, both in a network of their own whose loopback counters count their traffic
in the same way.  See ``benchmarks/README.md`` for what the figures mean.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from benchmarks.cluster_host import raise_descriptor_limit
from benchmarks.cluster_nodes import Cluster, milliseconds
from benchmarks.machine import machine
from benchmarks.private_network import enter
from benchmarks.serf_peer import SerfCluster
from mesh.processes import Workers
from transport.errors import MeshError

Progress = Callable[[str], None]

_PAYLOAD_BYTES: Final = 64
_EVENT_S_MAX: Final = 15.0
_DETECT_S_MAX: Final = 60.0
_PAUSE_S: Final = 1.0
# Of each ratio, ours comes first: below 1 ours needs less.  Memory is compared where both have a process for one node.
_RATIOS: Final = (
    ("detection", "first_suspect_s"),
    ("detection", "first_dead_s"),
    ("detection", "all_know_last_s"),
    ("broadcast", "p50_ms"),
    ("broadcast", "p100_ms"),
    ("idle", "wire_bytes_per_s_per_node"),
    ("idle", "packets_per_s_per_node"),
    ("idle", "cpu_percent_per_node"),
    ("idle", "rss_mib_of_a_lone_node"),
)


async def measure(
    *, nodes: int, kills: int, events: int, seconds: float, seed: int, deadline_s: float
) -> dict[str, Any]:
    """Take every figure of both.

    Args:
        nodes: How many nodes, and then how many agents.
        kills: How many of them are killed, one after the other.
        events: How many broadcasts and user events.
        seconds: How long they rest, and then are watched doing nothing.
        seed: Draws who sends and who is killed.
        deadline_s: When to give up.

    Raises:
        MeshError: Serf is not installed, or something did not work.
    """
    raise_descriptor_limit()
    began = time.monotonic()

    def progress(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", file=sys.stderr, flush=True)

    document: dict[str, Any] = {
        "benchmark": "beside_serf",
        "machine": await asyncio.to_thread(machine),
        "seed": seed,
        "nodes": nodes,
        "profile": "lan",
    }
    try:
        async with asyncio.timeout(deadline_s):
            document["serf"] = await _serf(nodes, kills, events, seconds, seed, progress)
            document["mesh"] = await _mesh(nodes, kills, events, seconds, seed, deadline_s, progress)
    except TimeoutError:
        raise MeshError(f"the run was not done within {deadline_s:g} s; so far: {json.dumps(document)}") from None
    document["ratio_mesh_to_serf"] = ratios(document["mesh"], document["serf"])
    document["elapsed_s"] = round(time.monotonic() - began, 1)
    return document


async def _serf(nodes: int, kills: int, events: int, seconds: float, seed: int, progress: Progress) -> dict[str, Any]:
    rng = random.Random(seed)  # noqa: S311 - draws who sends and who is killed
    async with SerfCluster(nodes=nodes, rng=rng, progress=progress) as cluster:
        document: dict[str, Any] = {"version": cluster.version, "encryption": "one shared AES-GCM key"}
        document |= await cluster.start(deadline_s=nodes * 0.5 + 60.0)
        progress("serf: resting, then idle")
        await asyncio.sleep(seconds)
        document["idle"] = await cluster.idle(seconds)
        progress("serf: user events")
        runs = []
        for _ in range(events):
            runs.append(await cluster.broadcast(payload_bytes=_PAYLOAD_BYTES, deadline_s=_EVENT_S_MAX))
            await asyncio.sleep(_PAUSE_S)
        document["broadcast"] = _spread(runs, nodes - 1)
        progress("serf: kills")
        losses = []
        for _ in range(kills):
            losses.append(await cluster.kill(deadline_s=_DETECT_S_MAX))
            await asyncio.sleep(_PAUSE_S)
        document["detection"] = detection(losses)
        document["false_deaths"] = cluster.false_deaths()
        return document


async def _mesh(
    nodes: int, kills: int, events: int, seconds: float, seed: int, deadline_s: float, progress: Progress
) -> dict[str, Any]:
    rng = random.Random(seed)  # noqa: S311 - draws who sends and who is killed
    document: dict[str, Any] = {"encryption": "mutual TLS 1.3, a certificate for each node"}
    async with Workers() as workers:
        cluster = Cluster(
            workers,
            nodes=nodes,
            hosts=max(2, min(8, nodes // 8)),
            lone=kills,
            timing={"preset": "lan"},
            rng=rng,
            progress=progress,
        )
        try:
            document |= await cluster.start(at_once=1, deadline_s=deadline_s)
            progress("mesh: resting, then idle")
            await cluster.quiet_heaps()
            await asyncio.sleep(seconds)
            document["idle"] = await cluster.idle(seconds)
            progress("mesh: broadcasts")
            document["broadcast"] = await cluster.broadcast(
                rounds=events, payload_bytes=_PAYLOAD_BYTES, deadline_s=_EVENT_S_MAX, pause_s=_PAUSE_S
            )
            progress("mesh: kills")
            losses = []
            for host in cluster.lone:
                losses.append(await cluster.kill(host, deadline_s=_DETECT_S_MAX))
                await asyncio.sleep(_PAUSE_S)
            document["detection"] = detection(losses)
            document["false_deaths"] = sum(one["false_deaths"] for one in losses)
            document["errors"] = [text for one in await cluster.usage() for text in one["errors"]]
        finally:
            cluster.end()
    return document


def _spread(runs: Sequence[Sequence[float]], receivers: int) -> dict[str, Any]:
    """The medians over some events of how long each took, as :meth:`Cluster.broadcast` gives them."""
    figures = [milliseconds(run) for run in runs if run]
    return {
        "rounds": len(runs),
        "payload_bytes": _PAYLOAD_BYTES,
        "receivers": receivers,
        "reached": min(len(run) for run in runs),
        **{key: round(statistics.median(one[key] for one in figures), 1) for key in (figures[0] if figures else ())},
        "p100_ms_worst": max((one["p100_ms"] for one in figures), default=None),
    }


def detection(losses: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The medians over several kills, and every single one."""
    keys = ("first_suspect_s", "first_dead_s", "all_know_p50_s", "all_know_last_s")
    document: dict[str, Any] = {
        "kills": len(losses),
        "everybody_knew": all(o["know"] == o["survivors"] for o in losses),
    }
    for key in keys:
        seen = [one[key] for one in losses if one[key] is not None]
        document[key] = round(statistics.median(seen), 2) if seen else None
    document["each_all_know_last_s"] = [one["all_know_last_s"] for one in losses]
    return document


def ratios(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, float | None]:
    """Ours over theirs for each figure that both have."""
    found: dict[str, float | None] = {}
    for group, key in _RATIOS:
        mine, other = ours[group].get(key), theirs[group].get(key)
        found[f"{group}.{key}"] = round(mine / other, 3) if mine is not None and other else None
    return found


async def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    task = asyncio.current_task()
    assert task is not None
    with contextlib.suppress(NotImplementedError, RuntimeError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await measure(
        nodes=arguments.nodes,
        kills=arguments.kills,
        events=arguments.events,
        seconds=arguments.seconds,
        seed=arguments.seed,
        deadline_s=arguments.deadline,
    )


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=256)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--events", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=20.0, help="of rest, and then of watching them idle")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--deadline", type=float, default=1200.0, help="seconds after which it gives up")
    arguments = parser.parse_args()
    if arguments.nodes < arguments.kills + 8:
        parser.error("--nodes must be at least 8 more than --kills")
    if not enter():
        sys.exit("beside_serf: needs a network namespace (Linux, and root or user namespaces): serf is counted there")
    try:
        document = asyncio.run(_run(arguments))
    except MeshError as error:
        sys.exit(f"beside_serf: {error}")
    except asyncio.CancelledError:
        sys.exit("beside_serf: was told to end; every process was ended")
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
