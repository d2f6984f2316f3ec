"""Many real nodes on this machine: starts them, asks them what they see, takes some of them away.

Most nodes share a few host processes, since a process for each would need 50 MiB a node.  A few *lone* nodes have a
process of their own, so that one node can be killed or frozen by itself.
"""

from __future__ import annotations

import asyncio
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psutil

from benchmarks.private_network import Traffic, traffic
from mesh.processes import Document, Worker, Workers
from transport.errors import MeshError

_POLL_S: Final = 0.25
_REPORT_S: Final = 10.0
_SEEDS: Final = 2
_ANSWER_S: Final = 120.0


@dataclass(slots=True)
class Host:
    """A process and the nodes that live in it."""

    worker: Worker
    nodes: dict[str, int]
    """The agent of each."""


def milliseconds(times_s: Sequence[float]) -> dict[str, float]:
    """Median, nearly all and last, in milliseconds."""
    ordered = sorted(times_s)
    return {
        "p50_ms": round(ordered[len(ordered) // 2] * 1000, 1),
        "p99_ms": round(ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] * 1000, 1),
        "p100_ms": round(ordered[-1] * 1000, 1),
    }


class Cluster:
    """Nodes that run.

    Args:
        workers: Starts and ends the processes.
        nodes: How many nodes.
        hosts: How many processes share them.
        lone: How many of the nodes have a process of their own.
        timing: Settings of the nodes: preset and intervals.
        rng: Draws who sends to whom.
        progress: Told what is being done.
    """

    def __init__(
        self,
        workers: Workers,
        *,
        nodes: int,
        hosts: int,
        lone: int,
        timing: Mapping[str, Any],
        rng: random.Random,
        progress: Callable[[str], None],
    ) -> None:
        self._workers = workers
        self._timing = timing
        self._rng = rng
        self._progress = progress
        self._broadcasts = 0
        self.size = nodes
        self.hosts: list[Host] = []
        self.lone: list[Host] = []
        names = {f"n{number:04}": number + 1 for number in range(nodes)}
        listed = list(names.items())
        shared, own = listed[: nodes - lone], listed[nodes - lone :]
        self._shares = [dict(shared[number::hosts]) for number in range(hosts)]
        self._lone_shares = [dict([one]) for one in own]
        self.lost: set[str] = set()

    # --- starting -----------------------------------------------------------------------------------------------

    async def start(self, *, at_once: int, deadline_s: float) -> dict[str, Any]:
        """Start every node and wait until each knows all others.

        Args:
            at_once: How many nodes a process starts at the same time.
            deadline_s: When to give up, from the beginning.

        Raises:
            MeshError: Not all were complete in time.
        """
        began = time.monotonic()
        for number, share in enumerate((*self._shares, *self._lone_shares)):
            host = Host(await self._start_process(number), share)
            (self.hosts if number < len(self._shares) else self.lone).append(host)
        seeds = await self._start_seeds()
        self._progress(f"{len(seeds)} seeds run after {time.monotonic() - began:.1f} s")
        reporter = asyncio.create_task(self._report_starts())
        try:
            await asyncio.gather(*(self._start_nodes(host, seeds, at_once, deadline_s) for host in self.running))
        finally:
            reporter.cancel()
        started = time.monotonic()
        self._progress(f"{self.size} nodes run after {started - began:.1f} s")
        complete = await self._wait_complete(began + deadline_s)
        return {
            "start_s": round(started - began, 2),
            "all_views_complete_s": round(complete - began, 2),
            "last_start_to_all_complete_s": round(max(0.0, complete - started), 2),
        }

    async def _report_starts(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_S)
            sizes = [size for answer in await self._ask_all("views") for size in answer["sizes"]]
            median = sorted(sizes)[len(sizes) // 2] if sizes else 0
            self._progress(f"{len(sizes)} of {self.size} nodes run, their median view has {median}")

    async def _start_process(self, number: int) -> Worker:
        settings = {
            "network": "cluster",
            "data_dir": str(self._workers.path),
            "listen": "127.0.0.1:0",
            "mdns": False,
            "control": False,
            **self._timing,
        }
        return await self._workers.start(f"host-{number}", "benchmarks.cluster_host", settings)

    async def _start_seeds(self) -> list[str]:
        """Start the first nodes one after the other: whoever comes first makes the network's authority."""
        seeds: list[str] = []
        for host in self.hosts[:_SEEDS]:
            name, agent_id = next(iter(host.nodes.items()))
            answer = await host.worker.call(
                "start", names={name: agent_id}, bootstrap=seeds, at_once=1, expected=self.size
            )
            seeds += answer["addresses"]
        return seeds

    async def _start_nodes(self, host: Host, seeds: list[str], at_once: int, deadline_s: float) -> None:
        skip = 1 if host in self.hosts[:_SEEDS] else 0
        names = dict(list(host.nodes.items())[skip:])
        await host.worker.call(
            "start",
            names=names,
            bootstrap=seeds,
            at_once=at_once,
            expected=self.size,
            answer_within_s=deadline_s,
        )

    async def _wait_complete(self, deadline: float) -> float:
        """Wait until every view is complete; return when the last one was."""
        told_at = time.monotonic()
        while True:
            answers = await self._ask_all("views")
            complete_at = [at for answer in answers for at in answer["complete_at"]]
            agents = min(answer["agents"] for answer in answers)
            if len(complete_at) == self.size and agents == self.size:
                return float(max(complete_at))
            now = time.monotonic()
            least = min(answer["sizes"][0] for answer in answers)
            state = f"{len(complete_at)} of {self.size} views complete, the least has {least} nodes, {agents} agents"
            if now > deadline:
                raise MeshError(f"only {state}")
            if now > told_at + 5:
                told_at = now
                self._progress(state)
            await asyncio.sleep(_POLL_S)

    # --- asking -------------------------------------------------------------------------------------------------

    @property
    def running(self) -> list[Host]:
        """The processes that were not taken away."""
        return [host for host in (*self.hosts, *self.lone) if not self.lost.intersection(host.nodes)]

    @property
    def alive(self) -> dict[str, int]:
        """The nodes that were not taken away, and the agent of each."""
        return {name: agent for host in self.running for name, agent in host.nodes.items()}

    async def _ask_all(self, command: str, **arguments: Any) -> list[Document]:
        calls = (host.worker.call(command, answer_within_s=_ANSWER_S, **arguments) for host in self.running)
        return await asyncio.gather(*calls)

    def _host_of(self, node_id: str) -> Host:
        return next(host for host in self.running if node_id in host.nodes)

    async def quiet_heaps(self) -> None:
        """See :meth:`benchmarks.cluster_host.ClusterHost.quiet_heap`."""
        await self._ask_all("quiet_heap")

    async def usage(self) -> list[Document]:
        """What each process uses."""
        return await self._ask_all("usage")

    # --- doing nothing ------------------------------------------------------------------------------------------

    async def idle(self, seconds: float) -> dict[str, Any]:
        """What ``seconds`` of doing nothing cost."""
        before, wire = await self.usage(), await asyncio.to_thread(traffic)
        began = time.monotonic()
        await asyncio.sleep(seconds)
        after_wire, elapsed_s = await asyncio.to_thread(traffic), time.monotonic() - began
        after = await self.usage()
        nodes = len(self.alive)
        sums, sums_before = _sums(after), _sums(before)
        shared = [usage for usage in after if usage["nodes"] > 1]
        return {
            "seconds": round(elapsed_s, 1),
            "sent_bytes_per_s_per_node": round(
                (sums["links.bytes_sent"] - sums_before["links.bytes_sent"]) / elapsed_s / nodes
            ),
            **wire_rates(wire, after_wire, elapsed_s, nodes),
            "cpu_percent_per_node": round(
                100 * sum(a["cpu_s"] - b["cpu_s"] for a, b in zip(after, before, strict=True)) / elapsed_s / nodes, 3
            ),
            "rss_mib": round(sum(usage["rss_bytes"] for usage in after) / 2**20),
            "rss_mib_per_node": round(
                sum(usage["rss_bytes"] for usage in shared) / max(1, sum(u["nodes"] for u in shared)) / 2**20, 2
            ),
            "rss_mib_of_a_lone_node": _lone_rss_mib(after),
            "descriptors": sum(usage["descriptors"] for usage in after),
            "links_per_node": round(sums["gossip.links"] / nodes, 2),
        }

    # --- broadcasting -------------------------------------------------------------------------------------------

    async def broadcast(self, *, rounds: int, payload_bytes: int, deadline_s: float, pause_s: float) -> dict[str, Any]:
        """Broadcast from random nodes, one after the other, and see when it reached everybody else."""
        nodes = sorted(self.alive)
        before = _sums(await self.usage())
        runs: list[dict[str, float]] = []
        reached: list[int] = []
        for _ in range(rounds):
            arrived = await self._broadcast_once(self._rng.choice(nodes), payload_bytes, deadline_s)
            reached.append(len(arrived))
            if arrived:
                runs.append(milliseconds(arrived))
            await asyncio.sleep(pause_s)
        after = _sums(await self.usage())
        delivered = after["gossip.broadcasts_delivered"] - before["gossip.broadcasts_delivered"]
        copies = after["gossip.broadcasts_duplicates"] - before["gossip.broadcasts_duplicates"]
        medians = {key: round(statistics.median(run[key] for run in runs), 1) for key in (runs[0] if runs else ())}
        return {
            "rounds": rounds,
            "payload_bytes": payload_bytes,
            "receivers": len(nodes) - 1,
            "reached": min(reached),
            **medians,
            "p100_ms_worst": max((run["p100_ms"] for run in runs), default=None),
            "first_round": runs[0] if runs else None,
            "redundancy": round(copies / max(1, delivered), 3),
        }

    async def _broadcast_once(self, origin: str, payload_bytes: int, deadline_s: float) -> list[float]:
        """Broadcast; return how long it took to each receiver that it reached, seconds."""
        self._broadcasts += 1
        name = f"b{self._broadcasts}"
        host = self._host_of(origin)
        answer = await host.worker.call("broadcast", node_id=origin, name=name, payload_bytes=payload_bytes)
        deadline = time.monotonic() + deadline_s
        receivers = len(self.alive) - 1
        while True:
            await asyncio.sleep(_POLL_S)  # asking takes the nodes' time, so it is not done while it is under way
            arrivals = [at for one in await self._ask_all("arrivals", name=name) for at in one["at"]]
            if len(arrivals) >= receivers or time.monotonic() > deadline:
                return [at - answer["at"] for at in arrivals]

    # --- requests -----------------------------------------------------------------------------------------------

    async def requests(self, count: int, *, at_once: int) -> dict[str, Any]:
        """Requests between random pairs, nearly all of which have no link yet; then the same again over the links."""
        nodes = self.alive
        names = sorted(nodes)
        pairs = [self._rng.sample(names, 2) for _ in range(count)]
        calls: dict[int, list[tuple[str, str, int]]] = {}
        hosts = self.running
        for asker, asked in pairs:
            number = next(n for n, host in enumerate(hosts) if asker in host.nodes)
            calls.setdefault(number, []).append((asker, asked, nodes[asked]))
        document: dict[str, Any] = {"requests": count}
        for label in ("new_link", "linked"):
            answers = await asyncio.gather(
                *(
                    hosts[number].worker.call("ask", pairs=asked, at_once=at_once, answer_within_s=_ANSWER_S)
                    for number, asked in calls.items()
                )
            )
            results = [result for answer in answers for result in answer["results"]]
            wanted = [result for result in results if result["linked"] == (label == "linked")]
            good = [result["ms"] / 1000 for result in wanted if "ms" in result]
            errors = [result["error"] for result in results if "error" in result]
            document[label] = {
                "requests": len(wanted),
                "answered": len(good),
                **(milliseconds(good) if good else {}),
                "errors": Counter(errors).most_common(3),
            }
        return document

    # --- taking nodes away --------------------------------------------------------------------------------------

    async def kill(self, host: Host, *, deadline_s: float) -> dict[str, Any]:
        """End a process with SIGKILL and see when every survivor knows that all its nodes are dead."""
        began = time.monotonic()
        host.worker.kill()
        self.lost.update(host.nodes)
        return await self._watch_loss(list(host.nodes), began, deadline_s)

    async def freeze(self, host: Host, *, deadline_s: float) -> dict[str, Any]:
        """Stop a process with SIGSTOP, so that it falls silent with its connections open; later let it go on."""
        process = psutil.Process(host.worker.pid)
        victims = list(host.nodes)
        began = time.monotonic()
        process.send_signal(signal.SIGSTOP)
        try:
            self.lost.update(victims)
            document = await self._watch_loss(victims, began, deadline_s)
        finally:
            process.send_signal(signal.SIGCONT)
        resumed = time.monotonic()
        survivors = len(self.alive)
        back: float | None = None
        while back is None and time.monotonic() < resumed + deadline_s:
            counts = await self._ask_all("alive", node_ids=victims)
            if sum(answer["count"] for answer in counts) == survivors:
                back = time.monotonic() - resumed
            else:
                await asyncio.sleep(_POLL_S)
        if back is not None:
            self.lost.difference_update(victims)
        return {**document, "frozen_s": round(resumed - began, 1), "back_everywhere_s": back and round(back, 1)}

    async def _watch_loss(self, victims: list[str], began: float, deadline_s: float) -> dict[str, Any]:
        survivors = len(self.alive)
        while True:
            await asyncio.sleep(2 * _POLL_S)
            answers = await self._ask_all("losses", victims=victims, since=began)
            known = sorted(at - began for answer in answers for at in answer["known_at"])
            if len(known) >= survivors or time.monotonic() > began + deadline_s:
                break
        alarms = await self._ask_all("false_alarms", lost=sorted(self.lost), since=began)
        return {
            "victims": len(victims),
            "survivors": survivors,
            "know": len(known),
            "first_suspect_s": _first(answers, "first_suspected_at", began),
            "first_dead_s": _first(answers, "first_failed_at", began),
            "all_know_p50_s": round(known[len(known) // 2], 2) if known else None,
            "all_know_p99_s": round(known[min(len(known) - 1, len(known) * 99 // 100)], 2) if known else None,
            "all_know_last_s": round(known[-1], 2) if known else None,
            "false_suspicions": sum(answer["suspicions"] for answer in alarms),
            "false_deaths": sum(answer["deaths"] for answer in alarms),
        }

    # --- ending -------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Kill what still runs: a thousand nodes that leave one by one would take longer than the measuring."""
        for host in (*self.hosts, *self.lone):
            if host.worker.is_running:
                host.worker.kill()


def _first(answers: Iterable[Mapping[str, Any]], key: str, began: float) -> float | None:
    times = [answer[key] for answer in answers if answer[key] is not None]
    return round(min(times) - began, 2) if times else None


def _sums(usage: Iterable[Mapping[str, Any]]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for one in usage:
        sums.update(one["counters"])
    return sums


def _lone_rss_mib(usage: Iterable[Mapping[str, Any]]) -> float | None:
    lone = [one["rss_bytes"] for one in usage if one["nodes"] == 1]
    return round(statistics.median(lone) / 2**20, 1) if lone else None


def wire_rates(before: Traffic | None, after: Traffic | None, elapsed_s: float, nodes: int) -> dict[str, float | None]:
    """What a node put on the wire, headers, acknowledgements and all; ``None`` where others use the same network."""
    if before is None or after is None:
        return {"wire_bytes_per_s_per_node": None, "packets_per_s_per_node": None}
    return {
        "wire_bytes_per_s_per_node": round((after.bytes - before.bytes) / elapsed_s / nodes),
        "packets_per_s_per_node": round((after.packets - before.packets) / elapsed_s / nodes, 2),
    }
