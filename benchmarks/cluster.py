"""A thousand real nodes on this machine: prints one JSON document.

    python benchmarks/cluster.py                 1,000 nodes; needs some minutes and GiB, and says how far it is
    python benchmarks/cluster.py --nodes 40      to see that it works

Every node is what ``join_network`` gives: its own certificate, mutual TLS on every link, the full member table.
They find each other through two bootstrap nodes.  See ``benchmarks/README.md`` for what the figures mean.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from typing import Any, Final

import psutil

from benchmarks.cluster_host import raise_descriptor_limit
from benchmarks.cluster_nodes import Cluster
from benchmarks.machine import machine
from benchmarks.private_network import enter
from mesh.processes import Workers
from transport.errors import MeshError

_LONE: Final = 2
_PROCESS_MIB: Final = 60
_NODE_MIB: Final = 1.5
# Each node knows each other one.
_RECORD_KIB: Final = 5
_DESCRIPTORS_PER_NODE: Final = 24
# With the preset "lan" an idle node takes 0.4 to 0.5 % of a core, so this many leave half of it for what is measured.
_NODES_PER_CORE: Final = 100


def timing(nodes: int, cores: int) -> dict[str, Any]:
    """The preset ``lan`` as long as the cores can carry so many nodes, beyond that ``wan`` with longer intervals."""
    stretch = nodes / (_NODES_PER_CORE * cores)
    if stretch <= 1:
        return {"preset": "lan"}
    heartbeat_s = round(3.0 * max(1.0, stretch / 2), 1)
    # News that are passed on one by one would cost a thousand nodes six thousand frames for each.
    flush_s = round(0.2 * stretch, 1)
    suspicion_s = round(8.0 + 12 * flush_s, 1)
    return {
        "preset": "wan",
        "gossip": {
            "heartbeat_interval_s": heartbeat_s,
            "flush_delay_s": flush_s,
            "suspicion_s": suspicion_s,
            "suspicion_refused_s": suspicion_s / 2,
        },
        "links": {"keepalive_interval_s": 2 * heartbeat_s, "keepalive_timeout_s": 8 * heartbeat_s},
    }


async def measure(
    *,
    nodes: int,
    processes: int,
    preset: str | None,
    seconds: float,
    rounds: int,
    requests: int,
    seed: int,
    deadline_s: float,
) -> dict[str, Any]:
    """Start the nodes, take every figure, end everything.

    Args:
        nodes: How many nodes.
        processes: How many processes share them, beside two nodes that have one each.
        preset: Of the nodes' timing; ``None``: what this machine can carry.
        seconds: How long they are watched doing nothing.
        rounds: How many broadcasts.
        requests: How many requests between random pairs.
        seed: Draws the pairs.
        deadline_s: When to give up.

    Raises:
        MeshError: The machine is too small, or something did not work.
    """
    _check_machine(nodes, processes)
    document: dict[str, Any] = {
        "benchmark": "cluster",
        "machine": await asyncio.to_thread(machine),
        "seed": seed,
        "nodes": nodes,
        "processes": processes + _LONE,
        "timing": timing(nodes, os.cpu_count() or 1) if preset is None else {"preset": preset},
    }
    began = time.monotonic()

    def progress(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", file=sys.stderr, flush=True)

    workers = Workers()
    try:
        async with workers, asyncio.timeout(deadline_s):
            rng = random.Random(seed)  # noqa: S311 - draws who sends to whom
            cluster = Cluster(
                workers,
                nodes=nodes,
                hosts=processes,
                lone=_LONE,
                timing=document["timing"],
                rng=rng,
                progress=progress,
            )
            try:
                await _take_figures(cluster, document, seconds, rounds, requests, deadline_s, progress)
            finally:
                cluster.end()
    except TimeoutError:
        raise MeshError(f"the run was not done within {deadline_s:g} s; so far: {json.dumps(document)}") from None
    document["elapsed_s"] = round(time.monotonic() - began, 1)
    document["cleaned_up"] = workers.is_clean
    return document


async def _take_figures(
    cluster: Cluster,
    document: dict[str, Any],
    seconds: float,
    rounds: int,
    requests: int,
    deadline_s: float,
    progress: Any,
) -> None:
    document |= await cluster.start(at_once=1, deadline_s=deadline_s)
    progress("every view is complete; waiting for the overlay to come to rest")
    await cluster.quiet_heaps()
    await asyncio.sleep(seconds)
    progress("idle")
    document["idle"] = await cluster.idle(seconds)
    progress("broadcast")
    document["broadcast"] = await cluster.broadcast(rounds=rounds, payload_bytes=64, deadline_s=15.0, pause_s=0.5)
    progress("requests")
    document["requests"] = await cluster.requests(requests, at_once=4)
    progress("killing a node that has a process of its own")
    document["killed_node"] = await cluster.kill(cluster.lone[0], deadline_s=60.0)
    progress("freezing a node that has a process of its own")
    document["frozen_node"] = await cluster.freeze(cluster.lone[1], deadline_s=60.0)
    progress(f"killing a process with {len(cluster.hosts[-1].nodes)} nodes")
    document["killed_process"] = await cluster.kill(cluster.hosts[-1], deadline_s=90.0)
    progress("broadcast among the survivors")
    document["broadcast_after"] = await cluster.broadcast(
        rounds=max(1, rounds // 4), payload_bytes=64, deadline_s=15.0, pause_s=0.5
    )
    usage = await cluster.usage()
    counters: Counter[str] = Counter()
    warnings: Counter[str] = Counter()
    for one in usage:
        counters.update(one["counters"])
        warnings.update(one["warnings"])
    document["log"] = {
        "errors": [text for one in usage for text in one["errors"]],
        "warnings": dict(warnings.most_common()),
    }
    document["counters"] = {key: value for key, value in sorted(counters.items()) if value}


def _check_machine(nodes: int, processes: int) -> None:
    """Refuse what would not fit, before anything is started."""
    needed_mib = (processes + _LONE) * _PROCESS_MIB + nodes * _NODE_MIB + nodes * nodes * _RECORD_KIB / 1024
    available_mib = psutil.virtual_memory().available / 2**20
    if needed_mib > available_mib:
        raise MeshError(f"{nodes} nodes need about {needed_mib:.0f} MiB, and {available_mib:.0f} MiB are free")
    allowed, wanted = raise_descriptor_limit(), nodes * _DESCRIPTORS_PER_NODE // processes
    if wanted > allowed:
        raise MeshError(f"a process needs up to {wanted} open files and may have {allowed}", hint="ulimit -n")


async def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    task = asyncio.current_task()
    assert task is not None
    with contextlib.suppress(NotImplementedError, RuntimeError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await measure(
        nodes=arguments.nodes,
        processes=arguments.processes or max(2, min(8, arguments.nodes // 10)),
        preset=arguments.preset,
        seconds=arguments.seconds,
        rounds=arguments.rounds,
        requests=arguments.requests,
        seed=arguments.seed,
        deadline_s=arguments.deadline,
    )


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=0, help="that share the nodes; default: 2 to 8")
    parser.add_argument("--preset", choices=("local", "lan", "wan"), help="default: what the cores can carry")
    parser.add_argument("--seconds", type=float, default=20.0, help="of rest, and then of watching them idle")
    parser.add_argument("--rounds", type=int, default=20, help="broadcasts")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1, help="draws who sends to whom")
    parser.add_argument("--deadline", type=float, default=900.0, help="seconds after which it gives up")
    arguments = parser.parse_args()
    if arguments.nodes < 2 * _LONE + 2:
        parser.error(f"--nodes must be at least {2 * _LONE + 2}")
    enter()
    try:
        document = asyncio.run(_run(arguments))
    except MeshError as error:
        sys.exit(f"cluster: {error}")
    except asyncio.CancelledError:
        sys.exit("cluster: was told to end; every process was ended")
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
