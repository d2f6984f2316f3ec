"""The demo: real processes on this machine that join, talk, lose one of them and leave."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import statistics
from collections.abc import Callable
from typing import Any, Final

from mesh.processes import Document, Worker, Workers
from mesh.stranger import knock
from transport.clock import SystemClock
from transport.errors import MeshError
from transport.types import Address

from .report import DemoOptions, DemoReport, DemoStep

Progress = Callable[[DemoStep], None]

_CLOCK: Final = SystemClock()
_DETECT_S_MAX: Final = 15.0
#: How long the document's replicas may take to become equal.
_EQUAL_S_MAX: Final = 10.0


def run_demo(options: DemoOptions, progress: Progress) -> DemoReport:
    """Run the demo from start to end, and clean up whatever happens.

    Args:
        options: What to run.
        progress: Called after each step.

    Returns:
        What was seen; failures are in its ``problems``.

    Raises:
        KeyboardInterrupt: The user stopped it; everything was cleaned up before.
    """
    return asyncio.run(_run(options, progress))


async def _run(options: DemoOptions, progress: Progress) -> DemoReport:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not the main thread, or no such signal
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
    return await Demo(options, progress).run()


class Demo:
    """One run.

    Args:
        options: What to run.
        progress: Called after each step.
    """

    def __init__(self, options: DemoOptions, progress: Progress) -> None:
        self._options = options
        self._progress = progress
        self._report = DemoReport(nodes=options.nodes)
        self._began = _CLOCK.monotonic()
        self._nodes: dict[str, Worker] = {}
        self._addresses: dict[str, Address] = {}
        self._ready_at: list[float] = []
        self._all_ready = asyncio.Event()
        self._failures: dict[str, dict[str, float]] = {}
        self._failure_seen = asyncio.Event()

    async def run(self) -> DemoReport:
        """Run every step; see :func:`run_demo`."""
        report = self._report
        workers = Workers(self._told, keep=self._options.keep)
        try:
            async with workers:
                if self._options.keep:
                    report.data_dir = str(workers.path)
                async with asyncio.timeout(self._options.deadline_s):
                    await self._start(workers)
                    await self._converge()
                    await self._try_strangers()
                    await self._exchange()
                    await self._broadcast()
                    await self._share("before")
                    await self._time_requests()
                    await self._collect()
                    await self._kill_one()
                    await self._share("after")
                    await self._leave()
        except MeshError as error:
            report.problems.append(str(error))
        except TimeoutError:
            report.problems.append(f"the demo was not done within {self._options.deadline_s:g} s")
        except OSError as error:
            report.problems.append(f"a process could not be started: {error}")
        report.cleaned_up = workers.is_clean
        report.elapsed_s = round(self._elapsed(), 3)
        if not report.problems:
            report.judge()
        return report

    # --- steps --------------------------------------------------------------------------------------------------

    async def _start(self, workers: Workers) -> None:
        names = [f"node-{number + 1}" for number in range(self._options.nodes)]
        network = workers.path.name.lower().replace("_", "-").strip("-")
        self._step(f"starting {len(names)} processes, data in {workers.path}")
        for number, name in enumerate(names):
            self._nodes[name] = await workers.start(
                name,
                "mesh.demo.agent",
                {
                    "agent_id": number + 1,
                    "node_id": name,
                    "network": network,
                    "data_dir": str(workers.path),
                    "listen": "127.0.0.1:0",
                    "mdns": self._options.mdns,
                },
            )
        await self._while_all_run(self._all_ready.wait())
        self._report.started_s = round(max(self._ready_at) - self._began, 3)
        self._step(f"all listen on loopback, each on a port of its own, after {self._report.started_s:.2f} s")

    async def _while_all_run(self, waited: Any) -> None:
        """Wait, but not for processes that have ended."""
        waiting = asyncio.ensure_future(waited)
        try:
            while not waiting.done():
                await asyncio.wait((waiting,), timeout=0.05)
                for worker in self._nodes.values():
                    if not worker.is_running:
                        await worker.call("why")  # raises, with what the process wrote last
        finally:
            waiting.cancel()

    async def _converge(self) -> None:
        count = len(self._nodes)
        answers = await self._all("wait_members", count=count, timeout_s=30.0)
        self._report.converged_s = round(max(answer["at"] for answer in answers) - self._began, 3)
        self._step(f"each of the {count} nodes knows all others, {self._report.converged_s:.2f} s after the start")

    async def _try_strangers(self) -> None:
        results = await asyncio.gather(*(knock(address) for address in self._addresses.values()))
        self._report.tls = ", ".join(sorted({version for version, _ in results}))
        self._report.strangers_refused = sum(refused for _, refused in results)
        self._step(
            f"links are {self._report.tls}; a stranger without a certificate was refused by "
            f"{self._report.strangers_refused} of {len(results)} nodes",
            ok=self._report.strangers_refused == len(results),
        )

    async def _exchange(self) -> None:
        agents = range(1, len(self._nodes) + 1)
        answers = await asyncio.gather(
            *(
                worker.call("send", to_agents=[a for a in agents if a != own], count=self._options.messages)
                for own, worker in zip(agents, self._nodes.values(), strict=True)
            )
        )
        self._report.sent = sum(answer["sent"] for answer in answers)
        acknowledged = sum(answer["acknowledged"] for answer in answers)
        self._step(f"each node sent {self._options.messages} messages to each other one: {acknowledged} acknowledged")

    async def _broadcast(self) -> None:
        for number, worker in enumerate(self._nodes.values()):
            await worker.call("broadcast", number=number)
        self._report.broadcasts = len(self._nodes)
        deadline = _CLOCK.monotonic() + 5.0
        while True:
            reached = await self._broadcasts_reached()
            if reached == len(self._nodes) or _CLOCK.monotonic() > deadline:
                break
            await asyncio.sleep(0.02)
        self._report.broadcast_reached = reached
        self._step(
            f"each node broadcast once: {reached} of {len(self._nodes)} nodes reached", ok=reached == len(self._nodes)
        )

    async def _broadcasts_reached(self) -> int:
        answers = await self._all("report")
        return min(
            sum(number in answer["broadcasts"] for answer in answers) for number in range(self._report.broadcasts)
        )

    async def _share(self, when: str) -> None:
        """Every node writes to one document at once; in the end all must read the same, and every write."""
        report = self._report
        began = _CLOCK.monotonic()
        await asyncio.gather(
            *(
                worker.call("share", keys=[f"{name}-{when}-{number}" for number in range(self._options.writes)])
                for name, worker in self._nodes.items()
            )
        )
        report.writes += self._options.writes * len(self._nodes)
        while True:
            answers = await self._all("shared")
            complete = all(answer["writes"] == report.writes == answer["keys"] - 1 for answer in answers)
            report.state_equal = complete and len({answer["digest"] for answer in answers}) == 1
            if report.state_equal or _CLOCK.monotonic() > began + _EQUAL_S_MAX:
                break
            await asyncio.sleep(0.02)
        report.equal_s = round(_CLOCK.monotonic() - began, 3)
        self._step(
            f"{len(self._nodes)} nodes wrote {self._options.writes} times each to one document: "
            + (f"equal everywhere, {report.equal_s:.2f} s later" if report.state_equal else "NOT equal"),
            ok=report.state_equal,
        )

    async def _time_requests(self) -> None:
        first = next(iter(self._nodes.values()))
        answer = await first.call("round_trips", to_agent=2, count=self._options.round_trips)
        self._report.rtt_p50_us = round(statistics.median(answer["times_us"]), 1)
        self._step(
            f"a request and its answer take {self._report.rtt_p50_us:.0f} µs (median of {len(answer['times_us'])})"
        )

    async def _collect(self) -> None:
        """Add up what the agents received; after the requests, so that late copies have had time to come."""
        report = self._report
        answers = await self._all("report")
        report.delivered = sum(answer["messages"] for answer in answers)
        report.lost = report.sent - report.delivered
        report.duplicates = sum(answer["duplicates"] for answer in answers)
        report.out_of_order = sum(answer["out_of_order"] for answer in answers)
        report.found_by = _ways([answer["discovery"] for answer in answers])
        self._step(
            f"{report.delivered} of {report.sent} messages delivered, {report.duplicates} twice",
            ok=not report.lost and not report.duplicates,
        )

    async def _kill_one(self) -> None:
        name = list(self._nodes)[-1]
        survivors = [node for node in self._nodes if node != name]
        self._report.killed_node = name
        killed_at = _CLOCK.monotonic()
        self._nodes[name].kill()
        self._step(f"killed {name} (SIGKILL)")
        seen = self._failures.setdefault(name, {})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DETECT_S_MAX):
                while len(seen) < len(survivors):
                    self._failure_seen.clear()
                    await self._failure_seen.wait()
        if seen:
            self._report.detected_first_s = round(min(seen.values()) - killed_at, 3)
        if len(seen) == len(survivors):
            self._report.detected_s = round(max(seen.values()) - killed_at, 3)
        self._report.false_alarms = sum(1 for node in self._failures if node != name)
        self._step(
            f"{len(seen)} of {len(survivors)} survivors noticed"
            + (f", all within {self._report.detected_s:.2f} s" if self._report.detected_s is not None else ""),
            ok=self._report.detected_s is not None,
        )
        del self._nodes[name]

    async def _leave(self) -> None:
        *leaving, last = self._nodes
        await asyncio.gather(*(self._nodes[name].call("leave") for name in leaving))
        await self._nodes[last].call("wait_gone", node_ids=leaving, timeout_s=5.0)
        await self._nodes[last].call("leave")
        self._report.left = len(self._nodes)
        self._step(f"{len(self._nodes)} nodes left in order")

    # --- helpers ------------------------------------------------------------------------------------------------

    async def _all(self, command: str, **arguments: Any) -> list[Document]:
        timeout_s = float(arguments.get("timeout_s", 30.0)) + 5.0
        workers = self._nodes.values()
        return await asyncio.gather(*(_ask(worker, command, timeout_s, arguments) for worker in workers))

    def _told(self, worker: Worker, event: Document) -> None:
        match event["event"]:
            case "ready":
                self._addresses[worker.name] = Address.parse(event["address"])
                self._ready_at.append(event["at"])
                if len(self._ready_at) == self._options.nodes:
                    self._all_ready.set()
            case "failed":
                self._failures.setdefault(event["node_id"], {}).setdefault(worker.name, event["at"])
                self._failure_seen.set()

    def _step(self, text: str, *, ok: bool = True) -> None:
        self._progress(DemoStep(self._elapsed(), text, ok))

    def _elapsed(self) -> float:
        return _CLOCK.monotonic() - self._began


async def _ask(worker: Worker, command: str, timeout_s: float, arguments: dict[str, Any]) -> Document:
    """Call with arguments of which one may be named like a parameter of :meth:`Worker.call`."""
    return await worker.call(command, answer_within_s=timeout_s, **arguments)


def _ways(discoveries: list[Document]) -> dict[str, int]:
    """How many other nodes each way of discovery showed, all nodes together; ways that showed none are left out."""
    ways: dict[str, int] = {}
    for by_name in discoveries:
        for name, counters in by_name.items():
            found = max((int(counters.get(key, 0)) for key in ("neighbours", "sightings", "found")), default=0)
            if found:
                ways[name] = ways.get(name, 0) + found
    return ways
