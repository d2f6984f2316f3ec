"""Twenty real nodes join, leave and are killed at random on loopback; in the end all must be well.

    python -m chaos.churn --nodes 20 --duration 600 --seed 7 --json

Some processes host several nodes each and live through the whole run: on them leaks can be seen.  The others host one
node each and are killed with SIGKILL.  One seed draws every action; with real processes and real time a run is
repeated in what is done, not in how the packets fall.

At the end faults stop, and then: all living nodes agree on who is there within a deadline, a request gets through,
nobody logged an error or an exception, and the hosts hold no task, thread or descriptor more than before.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from mesh.processes import Document, Worker, Workers
from transport.clock import SystemClock
from transport.errors import MeshError

_CLOCK: Final = SystemClock()
_HOSTS: Final = 3
_HOSTED_SHARE: Final = 0.6
"""Of all nodes, how many live in the hosts."""
_PAUSE_S: Final = (0.1, 1.5)
_AGREE_S: Final = 30.0
_WIND_DOWN_S: Final = 3.0
_RSS_BYTES_MAX: Final = 300 * 2**20
# A dead node's memory is kept for its survivors' tables, and allocators keep what they had.
_RSS_GROWTH_BYTES_MAX: Final = 80 * 2**20


@dataclass(slots=True)
class ChurnReport:
    """What was seen.

    Attributes:
        seed: Draws the run.
        nodes: How many names take part.
        duration_s: How long there were faults.
        actions: How often what was done.
        alive: Nodes that lived at the end.
        agreed_s: How long after the last fault all of them agreed on who lives; ``None``: they did not.
        requests: Requests between living nodes at the end.
        answered: How many were answered.
        rss_mib_max: The largest host at the end.
        rss_growth_mib_max: By how much a host grew between a first warm-up and the end, at most.
        problems: What went wrong, in words.
    """

    seed: int
    nodes: int
    duration_s: float
    actions: dict[str, int] = field(default_factory=dict)
    alive: int = 0
    agreed_s: float | None = None
    requests: int = 0
    answered: int = 0
    rss_mib_max: float = 0.0
    rss_growth_mib_max: float = 0.0
    problems: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {**asdict(self), "ok": not self.problems}


class Churn:
    """One run.

    Args:
        nodes: How many names take part.
        duration_s: How long there are faults.
        seed: Draws the actions.
    """

    def __init__(self, *, nodes: int, duration_s: float, seed: int) -> None:
        self._rng = random.Random(seed)  # noqa: S311 - draws the run, guards nothing
        self._duration_s = duration_s
        self._workers = Workers()
        self._hosts: list[Worker] = []
        self._before: dict[str, Document] = {}
        hosted = max(1, int(nodes * _HOSTED_SHARE))
        self._agents = {f"n{number:02}": number + 1 for number in range(nodes)}
        self._hosted = sorted(self._agents)[:hosted]
        self._single = sorted(self._agents)[hosted:]
        self._where: dict[str, Worker] = {}
        self._actions: Counter[str] = Counter()
        self.report = ChurnReport(seed, nodes, duration_s)

    async def run(self) -> ChurnReport:
        """Run, judge and clean up."""
        try:
            async with self._workers:
                await self._prepare()
                await self._disturb()
                await self._settle()
                await self._take_stock()
        except MeshError as error:
            self.report.problems.append(str(error))
        self.report.actions = dict(sorted(self._actions.items()))
        if not self._workers.is_clean:
            self.report.problems.append("processes or files were left behind")
        return self.report

    # --- before -------------------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        self._hosts = [await self._start(f"host-{number}") for number in range(_HOSTS)]
        # Lazy imports and pools come with the first node; what comes after them would be a leak.
        for number, host in enumerate(self._hosts):
            for _ in range(2):
                await host.call("join", node_id=f"warm-{number}", agent_id=10_000 + number)
                await host.call("leave", node_id=f"warm-{number}")
        for host in self._hosts:
            self._before[host.name] = await host.call("usage")

    async def _start(self, name: str) -> Worker:
        settings = {
            "network": "churn",
            "data_dir": str(self._workers.path),
            "listen": "127.0.0.1:0",
            "mdns": False,
        }
        return await self._workers.start(name, "chaos.churn_host", settings)

    # --- faults -------------------------------------------------------------------------------------------------

    async def _disturb(self) -> None:
        deadline = _CLOCK.monotonic() + self._duration_s
        names = sorted(self._agents)
        await asyncio.gather(*(self._join(name) for name in names[: len(names) // 2]))
        while _CLOCK.monotonic() < deadline:
            # Mostly one thing at a time, now and then several at the same moment.
            several = self._rng.sample(names, 1 if self._rng.random() < 0.7 else min(4, len(names)))
            await asyncio.gather(*(self._disturb_one(name, self._rng.random()) for name in several))
            await asyncio.sleep(self._rng.uniform(*_PAUSE_S))
        await asyncio.gather(*(self._join(name) for name in names[:2] if name not in self._where))

    async def _disturb_one(self, name: str, drawn: float) -> None:
        if name not in self._where:
            await self._join(name)
        elif name in self._single and drawn < 0.6:
            await self._kill(name)
        else:
            await self._leave(name)

    async def _join(self, name: str) -> None:
        self._actions["join"] += 1
        hosted = name in self._hosted
        worker = self._hosts[self._agents[name] % _HOSTS] if hosted else await self._start(name)
        await worker.call("join", node_id=name, agent_id=self._agents[name])
        self._where[name] = worker

    async def _leave(self, name: str) -> None:
        self._actions["leave"] += 1
        worker = self._where.pop(name)
        await worker.call("leave", node_id=name)
        if name in self._single:
            usage = await worker.call("usage")
            self._complain(name, usage)
            await worker.close()

    async def _kill(self, name: str) -> None:
        self._actions["kill"] += 1
        worker = self._where.pop(name)
        self._complain(name, await worker.call("usage"))
        worker.kill()
        await worker.close()

    # --- after --------------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Wait until every living node takes exactly the living nodes for alive, then let some of them talk."""
        report = self.report
        alive = sorted(self._where)
        report.alive = len(alive)
        began = _CLOCK.monotonic()
        odd: dict[str, list[str]] = {}
        while _CLOCK.monotonic() < began + _AGREE_S:
            odd = {name: view for name, view in (await self._views()).items() if sorted(view) != alive}
            if not odd:
                report.agreed_s = round(_CLOCK.monotonic() - began, 3)
                break
            await asyncio.sleep(0.1)
        else:
            for name, view in sorted(odd.items()):
                missing, surplus = sorted(set(alive) - set(view)), sorted(set(view) - set(alive))
                report.problems.append(f"{name} misses {missing} and takes {surplus} for alive")
        for _ in range(min(20, len(alive))):
            asker, asked = self._rng.choice(alive), self._rng.choice(alive)
            report.requests += 1
            try:
                answer = await self._where[asker].call("ask", node_id=asker, to_agent=self._agents[asked])
            except MeshError as error:
                report.problems.append(f"request from {asker} to {asked}: {error}")
            else:
                report.answered += bool(answer["answered"])

    async def _views(self) -> dict[str, list[str]]:
        workers = {worker.name: worker for worker in self._where.values()}
        answers = await asyncio.gather(*(worker.call("views") for worker in workers.values()))
        return {name: view for answer in answers for name, view in answer["views"].items()}

    async def _take_stock(self) -> None:
        """All leave; compare what each host holds with what it held before."""
        for name in sorted(set(self._where) - set(self._hosted)):
            await self._leave(name)
        for host in self._hosts:
            await host.call("leave_all")
            before = self._before[host.name]
            self.compare(host.name, before, await self._quiet(host, before))

    def compare(self, name: str, before: Document, after: Document) -> None:
        """Report what the host ``name`` holds ``after`` the run that it did not hold ``before``."""
        self._complain(name, after)
        for kind in ("tasks", "threads"):
            surplus: Counter[str] = Counter(after[kind]) - Counter(before[kind])
            if surplus:
                self.report.problems.append(f"{name} leaked {kind}: {dict(surplus)}")
        grown = Counter(after["descriptors"].values()) - Counter(before["descriptors"].values())
        if len(after["descriptors"]) > len(before["descriptors"]):
            self.report.problems.append(f"{name} leaked descriptors: {dict(grown)}")
        rss, growth = after["rss_bytes"], after["rss_bytes"] - before["rss_bytes"]
        self.report.rss_mib_max = max(self.report.rss_mib_max, round(rss / 2**20, 1))
        self.report.rss_growth_mib_max = max(self.report.rss_growth_mib_max, round(growth / 2**20, 1))
        if rss > _RSS_BYTES_MAX or growth > _RSS_GROWTH_BYTES_MAX:
            self.report.problems.append(f"{name} holds {rss >> 20} MiB, {growth >> 20} MiB more than at first")

    @staticmethod
    async def _quiet(host: Worker, before: Document) -> Document:
        """The host's holdings, once they are what they were or have had time to become so."""
        deadline = _CLOCK.monotonic() + _WIND_DOWN_S
        while True:
            after = await host.call("usage")
            settled = all(len(after[kind]) <= len(before[kind]) for kind in ("tasks", "threads", "descriptors"))
            if settled or _CLOCK.monotonic() > deadline:
                return after
            await asyncio.sleep(0.1)

    def _complain(self, name: str, usage: Document) -> None:
        self.report.problems += [f"{name} logged: {text}" for text in usage["complaints"]]


async def _run(churn: Churn, deadline_s: float) -> ChurnReport:
    task = asyncio.current_task()
    assert task is not None
    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not the main thread, or no such signal
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        async with asyncio.timeout(deadline_s):
            return await churn.run()
    except TimeoutError:
        churn.report.problems.append(f"the run was not done within {deadline_s:g} s")
        return churn.report


def main() -> None:
    """Read the arguments, run, print, and exit with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description="Nodes join, leave and are killed at random.")
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--duration", type=float, default=600.0, help="seconds")
    parser.add_argument("--seed", type=int, help="default: drawn, and printed first")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"churn: seed {seed}, {arguments.nodes} nodes, {arguments.duration:g} s", file=sys.stderr, flush=True)
    churn = Churn(nodes=arguments.nodes, duration_s=arguments.duration, seed=seed)
    report = asyncio.run(_run(churn, arguments.duration + 120.0))
    if arguments.json:
        print(json.dumps(report.document()))
    else:
        for key, value in report.document().items():
            print(f"{key:20} {value}")
    sys.exit(1 if report.problems else 0)


if __name__ == "__main__":
    main()
