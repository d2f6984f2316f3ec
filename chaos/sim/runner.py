"""Carries out a plan: makes the world, takes the steps, looks at it meanwhile, and reports."""

from __future__ import annotations

import gc
import random
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TextIO

from gossip.events import BroadcastRequested, Deliver, Member, Send, Superseded
from gossip.router import GossipCore
from transport.types import NodeId
from transport.wire import Kind

from .checkers import Checkers, difference
from .measure import Broadcasts, Detections, payload_of
from .plan import Plan, Step, node_name
from .process import CoreFactory, Process
from .report import BarResult, Report
from .sharing import shared_work
from .wire import FRAMING_BYTES, PING_BYTES
from .world import World

#: How often the runner looks whether all agree, and how many processes' sizes it looks at each simulated second.
_LOOK_S: Final = 0.25
_SIZED_PER_S: Final = 8
_TTL: Final = 64


class Watch:
    """Passes what the world tells on to checkers and measurements; see :class:`~chaos.sim.observers.Observers`."""

    def __init__(self, checkers: Checkers, broadcasts: Broadcasts, detections: Detections) -> None:
        self._checkers = checkers
        self._broadcasts = broadcasts
        self._detections = detections
        self._count_copies = broadcasts.count_copies

    def started(self, process: Process) -> None:
        """The checkers look at it from here on."""
        self._checkers.started(process)

    def ended(self, process: Process) -> None:
        """The checkers let go of it."""
        self._checkers.ended(process)

    def sent(self, effect: Send) -> None:
        """Copies of payloads are counted."""
        if effect.kind == Kind.BROADCAST:
            self._count_copies(effect)
        if len(effect.body) > 1 << 20:
            self._checkers.body(len(effect.body), effect.peer)

    def transition(self, process: Process, before: Member | None, after: Member, now: float) -> None:
        """Both look at it."""
        self._checkers.transition(process, before, after)
        self._detections.transition(process, after, now)

    def forgotten(self, process: Process, member: Member) -> None:
        """The checkers remember the grave."""
        self._checkers.forgotten(process, member)

    def delivered(self, process: Process, delivery: Deliver, now: float) -> None:
        """It is measured, then checked."""
        self._checkers.delivered(process, delivery, self._broadcasts.delivered(process, delivery, now))

    def superseded(self, process: Process, notice: Superseded) -> None:
        """It needs a successor."""
        self._checkers.superseded(process, notice)

    def violation(self, checker: str, text: str) -> None:
        """Noted like any other."""
        self._checkers.violate(checker, text)


class OutOfTime(Exception):
    """The run took longer than it may on the wall's clock."""


class Runner:
    """One run of one plan.

    Args:
        plan: What happens.
        core_factory: Makes the cores; tests plant faults here.
        log: Where events go as JSON lines, after one line with the plan.
        wall_s_max: Stop after so many real seconds, with a violation.
    """

    def __init__(
        self,
        plan: Plan,
        core_factory: CoreFactory = GossipCore,
        log: TextIO | None = None,
        wall_s_max: float = float("inf"),
    ) -> None:
        self.plan = plan
        config = plan.gossip_config()
        self.checkers = Checkers(config, lambda: self.world.now)
        self.broadcasts = Broadcasts()
        self.detections = Detections()
        watch = Watch(self.checkers, self.broadcasts, self.detections)
        self.world = World(plan.seed, plan.network, config, watch, core_factory, log)
        self.checkers.watch(self.world)
        self._figures: dict[str, float | int | None] = {}
        self._must: dict[int, None] = {}
        self._look_at = 0
        self._wall_from = time.monotonic()
        self._cpu_from = time.process_time()
        self._wall_until = self._wall_from + wall_s_max
        self._log = log
        self._verbs: Mapping[str, Callable[..., None]] = {
            "start": self._start,
            "settle": self._settle,
            "run": self._run,
            "broadcast": self._broadcast,
            "kill": self._kill,
            "leave": self._leave,
            "freeze": self._freeze,
            "block": self._block,
            "heal": self._heal,
            "loss": self._loss,
            "idle": self._idle,
            "remember": self._remember,
        }

    def run(self) -> Report:
        """Take all steps and report.

        Raises:
            ValueError: A step cannot be taken: the plan is wrong.
        """
        if self._log is not None:
            self._log.write(self.plan.to_json() + "\n")
        thresholds = gc.get_threshold()
        # Millions of small objects, hardly a cycle among them: looking for one takes a third of the time otherwise.
        gc.set_threshold(200_000, 50, 100)
        try:
            with shared_work():
                for step in self.plan.steps:
                    self._take(step)
        except OutOfTime:
            self.checkers.violate("wall_clock", f"not done after {time.monotonic() - self._wall_from:.0f} real seconds")
        finally:
            gc.set_threshold(*thresholds)
        self.checkers.missing([self.broadcasts.sent[number] for number in self._must])
        return self._report()

    def _take(self, step: Step) -> None:
        self.world.note("f", "*", step.verb)
        self._verbs[step.verb](**dict(step.args))

    # --- time -------------------------------------------------------------------------------------------------

    def _run(self, seconds: float) -> None:
        world = self.world
        end = world.now + seconds
        while world.now < end - 1e-9:
            world.run(min(1.0, end - world.now))
            self._sample()

    def _sample(self) -> None:
        if time.monotonic() > self._wall_until:
            raise OutOfTime
        live = self.world.live()
        for _ in range(min(_SIZED_PER_S, len(live))):
            self._look_at = (self._look_at + 1) % len(live)
            self.checkers.sizes(live[self._look_at])

    def _settle(self, limit_s: float, label: str = "", *, must: bool = True) -> None:
        world = self.world
        began = world.now
        while not self._agreed():
            if world.now - began >= limit_s:
                self._figures[f"settled_{label}_s"] = None
                if must:
                    self.checkers.not_converged(limit_s, difference(world) or "agreed only now")
                return
            world.run(_LOOK_S)
            if time.monotonic() > self._wall_until:
                self.checkers.not_converged(world.now - began, difference(world) or "agreed only now")
                raise OutOfTime
        self._sample()
        self._figures[f"settled_{label}_s"] = round(world.now - began, 3)

    def _agreed(self) -> bool:
        """Cheap while views differ: one digest that is not like the first ends it."""
        first: int | None = None
        for process in self.world.live():
            if process.frozen_at is None and not process.leaving:
                digest = process.core.digest
                if first is None:
                    first = digest
                elif digest != first:
                    return False
        return difference(self.world) is None

    # --- stimuli ----------------------------------------------------------------------------------------------

    def _start(self, nodes: list[int], seeds: list[int], over_s: float = 0.0) -> None:
        names = [node_name(seed) for seed in seeds]
        for number, index in enumerate(nodes):
            self.world.at(over_s * number / max(1, len(nodes)), self._start_one, index, names)
        self.world.run(over_s)

    def _start_one(self, index: int, seeds: list[NodeId]) -> None:
        before = self.world.processes.get(node_name(index))
        if before is None or not before.running:
            self.world.start(index, seeds)

    def _broadcast(self, nodes: list[int], label: str = "", *, must: bool = True, size_bytes: int = 64) -> None:
        world = self.world
        live = world.live()
        for process in world.running_of(nodes):
            if not process.live:
                continue
            broadcast = self.broadcasts.begin(label, process, live, world.now)
            if must:
                self._must[broadcast.number] = None
            world.stimulate(process, BroadcastRequested(payload_of(broadcast.number, size_bytes), _TTL))
            broadcast.sequence = process.core.sequence

    def _kill(self, nodes: list[int], *, silent: bool = False) -> None:
        self._end(nodes, lambda process: self.world.kill(process, silent=silent))

    def _leave(self, nodes: list[int]) -> None:
        self._end(nodes, self.world.leave)

    def _end(self, nodes: list[int], how: Callable[[Process], None]) -> None:
        ending = [process for process in self.world.running_of(nodes) if process.live]
        leaving = {process.uid for process in ending}
        staying = [process for process in self.world.live() if process.uid not in leaving]
        for process in ending:
            self.detections.ended(process, staying, self.world.now)
        for process in ending:
            how(process)

    # --- faults -----------------------------------------------------------------------------------------------

    def _freeze(self, nodes: list[int], freeze_s: float, run_s: float = 0.0, total_s: float = 0.0) -> None:
        """Each node stands still for ``freeze_s``, then runs for ``run_s``, and so on for ``total_s``."""
        spread = random.Random(f"{self.plan.seed}/freeze/{self.world.now}")
        for process in self.world.running_of(nodes):
            at = spread.uniform(0.0, run_s)
            while True:
                self.world.at(at, self.world.freeze, process, freeze_s)
                at += freeze_s + run_s
                if at >= total_s:
                    break

    def _block(
        self, left: list[int], right: list[int], *, both: bool = True, islands: list[list[int]] | None = None
    ) -> None:
        self.world.wire.block(left, right)
        if both:
            self.world.wire.block(right, left)
        if islands is not None:
            self.world.separate(islands)

    def _heal(self) -> None:
        self.world.wire.unblock_all()
        self.world.separate(None)

    def _loss(self, part: float, *, vanishes: bool) -> None:
        self.world.wire.loss, self.world.wire.loss_vanishes = part, vanishes

    # --- looks ------------------------------------------------------------------------------------------------

    def _idle(self, seconds: float) -> None:
        """Measure what a quiet network costs each node."""
        live = self.world.live()
        before = [(p, p.frames_sent, p.payload_bytes_sent) for p in live]
        links = [
            (link, tuple(link.frames)) for p in live for link, end in p.links.values() if end == 0 and link.open[0]
        ]
        began = self.world.now
        self._run(seconds)
        window_s = self.world.now - began
        bodies = sum(p.payload_bytes_sent - payload for p, _, payload in before)
        frames = sum(p.frames_sent - sent for p, sent, _ in before)
        pings = 0.0
        for link, (to_dialler, to_acceptor) in links:
            rarer = min(link.frames[0] - to_dialler, link.frames[1] - to_acceptor)
            pings += 2 * max(0.0, window_s / self.plan.network.keepalive_interval_s - rarer)
        per_node = window_s * max(1, len(live))
        self._figures |= {
            "idle_bodies_per_s": round(frames / per_node, 2),
            "idle_body_bytes_per_s": round(bodies / per_node, 1),
            "idle_bytes_per_s": round((bodies + frames * FRAMING_BYTES + pings * PING_BYTES) / per_node, 1),
            "idle_links": round(sum(len(p.links) for p in live) / max(1, len(live)), 1),
        }

    def _remember(self, nodes_max: int) -> None:
        """No table may hold more than ``nodes_max`` nodes, living, gone and buried."""
        for process in self.world.live():
            self.checkers.ghosts(process, nodes_max)

    # --- the end ----------------------------------------------------------------------------------------------

    def _report(self) -> Report:
        world, checkers = self.world, self.checkers
        wall_s = time.monotonic() - self._wall_from
        figures: dict[str, float | int | None] = {
            **self.broadcasts.figures(),
            **self.detections.figures(),
            "false_positives": checkers.false_deaths,
            "false_positives_sick": checkers.false_deaths_sick,
            "false_suspicions": checkers.false_suspicions,
            "deaths_across_partitions": checkers.deaths_explained,
            **self._figures,
            **{f"wire_{name}": value for name, value in world.wire.counters.items()},
            "inbox_peak": world.inbox_peak,
            "core_refutations": sum(int(p.core.statistics().get("refutations", 0)) for p in world.live()),
            "core_grafts": self._total("grafts"),
            "cpu_s": round(time.process_time() - self._cpu_from, 2),
            "rss_peak_mb": _rss_peak_mb(),
        }
        bars = [BarResult(bar, figures.get(bar.metric)) for bar in self.plan.bars if bar.applies(self.plan.nodes)]
        return Report(
            self.plan.scenario,
            self.plan.seed,
            self.plan.nodes,
            figures,
            tuple(checkers.violations),
            checkers.violation_count,
            tuple(bars),
            world.trace.hexdigest(),
            world.now,
            wall_s,
            world.events,
        )

    def _total(self, part: str) -> int:
        """The sum of every statistic whose name contains ``part``."""
        return sum(int(value) for p in self.world.live() for name, value in p.core.statistics().items() if part in name)


def _rss_peak_mb() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1 << 20 if sys.platform == "darwin" else 1 << 10)


def run(plan: Plan, **options: Any) -> Report:
    """Run a plan; see :class:`Runner` for the options."""
    return Runner(plan, **options).run()
