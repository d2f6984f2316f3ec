"""Durable messages while either side is killed at random: every stored one is handled, in order, with one effect.

    python -m chaos.durable --kills 100 --seed 7

One process sends numbered durable messages from several agents as fast as they are stored; another handles them.  Now
one, now the other is ended with SIGKILL and started again.  At the end faults stop, the outbox must empty, and then the
files of both sides are compared.  One seed draws whom it hits and when.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from mesh.processes import Worker, Workers
from transport.clock import SystemClock
from transport.errors import MeshError

_CLOCK: Final = SystemClock()
_PAUSE_S: Final = (0.05, 1.0)
_FINISH_S: Final = 120.0
_OUTBOX_BYTES: Final = 2 * 1024 * 1024
"""Some eight thousand messages."""


@dataclass(slots=True)
class DurableReport:
    """What was seen.

    Attributes:
        seed: Draws the run.
        kills: How often which side was killed.
        duration_s: How long it took.
        stored: Messages that their senders were told are stored.
        handled: Messages whose handler ended.
        unconfirmed: Those among them whose sender was killed before it was told.
        again: Second runs of a handler, each marked ``redelivered``: it ended, and its process before that was on disk.
        problems: What went wrong, in words.
    """

    seed: int
    kills: dict[str, int] = field(default_factory=dict)
    duration_s: float = 0.0
    stored: int = 0
    handled: int = 0
    unconfirmed: int = 0
    again: int = 0
    problems: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {**asdict(self), "ok": not self.problems}


class DurableRun:
    """One run.

    Args:
        kills: How often a side is killed.
        seed: Draws whom and when.
        agents: How many agents send.
    """

    def __init__(self, *, kills: int, seed: int, agents: int = 4) -> None:
        self._rng = random.Random(seed)  # noqa: S311 - draws the run, guards nothing
        self._kills = kills
        self._agents = agents
        self._workers = Workers()
        self._sides: dict[str, Worker] = {}
        self._killed: Counter[str] = Counter()
        self.report = DurableReport(seed)

    async def run(self) -> DurableReport:
        """Run, judge and clean up."""
        started = _CLOCK.monotonic()
        try:
            async with self._workers:
                for side in ("sender", "receiver"):
                    await self._start(side)
                for _ in range(self._kills):
                    await asyncio.sleep(self._rng.uniform(*_PAUSE_S))
                    await self._kill(self._rng.choice(("sender", "receiver")))
                await self._sides["sender"].call("finish", answer_within_s=_FINISH_S)
                await asyncio.to_thread(self._judge)
        except MeshError as error:
            self.report.problems.append(str(error))
        self.report.kills = dict(sorted(self._killed.items()))
        self.report.duration_s = round(_CLOCK.monotonic() - started, 1)
        return self.report

    def _judge(self) -> None:
        judge(self.report, self._lines("sender"), self._lines("receiver"))

    async def _start(self, side: str) -> None:
        shared: dict[str, Any] = {
            "listen": "127.0.0.1:0",
            "mdns": False,
            "preset": "local",
            "data_dir": str(self._workers.path),
            "messages": {"outbox_bytes_max": _OUTBOX_BYTES},
        }
        settings = {
            "node_id": side,
            "shared": shared,
            "record": str(self._record(side)),
            "agents": self._agents if side == "sender" else 0,
        }
        self._sides[side] = await self._workers.start(side, "chaos.durable_host", settings)
        # Now it runs; a process that is killed while it starts has nothing to lose.
        await self._sides[side].call("stats", answer_within_s=_FINISH_S)

    async def _kill(self, side: str) -> None:
        self._sides[side].kill()
        await self._sides[side].close()
        self._killed[side] += 1
        await self._start(side)

    def _record(self, side: str) -> Path:
        return self._workers.path / f"{side}.txt"

    def _lines(self, side: str) -> list[str]:
        path = self._record(side)
        return path.read_text(encoding="ascii").splitlines() if path.exists() else []


def judge(report: DurableReport, sent: list[str], done: list[str]) -> None:
    """Compare what the senders were told with what the handler did."""
    stored = {tuple(line.split()[1:3]) for line in sent if line.startswith("stored")}
    handled: list[tuple[str, ...]] = []
    for line in done:
        what, agent, number, message_id = line.split()
        if what == "done":
            handled.append((agent, number))
        elif what == "again":
            report.again += 1
        else:
            report.problems.append(f"{message_id} was handed over again without a mark")
    report.stored, report.handled = len(stored), len(handled)
    report.unconfirmed = len(set(handled) - stored)
    lost = stored - set(handled)
    if lost:
        report.problems.append(f"{len(lost)} stored messages were not handled, such as {sorted(lost)[:5]}")
    twice = [one for one, count in Counter(handled).items() if count > 1]
    if twice:
        report.problems.append(f"{len(twice)} messages had their effect twice, such as {twice[:5]}")
    last: dict[str, int] = {}
    for agent, number in handled:
        if int(number) <= last.get(agent, 0):
            report.problems.append(f"agent {agent}: {number} came after {last[agent]}")
        last[agent] = int(number)
    if not stored:
        report.problems.append("nothing was stored at all")


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
    report = asyncio.run(DurableRun(kills=arguments.kills, seed=seed).run())
    print(json.dumps(report.document(), indent=2))
    sys.exit(0 if not report.problems else 1)


if __name__ == "__main__":
    main()
