"""The scenarios by name: each draws a plan from a seed, and knows what its figures must reach.

The bars are those of the reference study of memberlist, serf, iroh-gossip and plum-foca (``docs/simulation.md``), most
of them for a thousand nodes; what holds there must hold for fewer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from .plan import Bar, Network, Plan, Step

#: Nodes that everybody is told of at the start.
_SEEDS: Final = 3
_MINUTE_S: Final = 60.0
_NO_FALSE_DEATH: Final = Bar("false_positives", at_most=0)
_ALL_DELIVERED: Final = Bar("delivered_fraction", at_least=1.0)


@dataclass(frozen=True, slots=True)
class Options:
    """What every scenario can be told.

    Attributes:
        nodes: How many.
        seed: Draws the plan and the world.
        warm_s: How long the network runs before anything happens to it; ``None``: as the scenario likes it.
    """

    nodes: int
    seed: int
    warm_s: float | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """One entry of ``mesh sim --list``."""

    name: str
    about: str
    nodes: int
    """How many nodes it has unless told otherwise."""
    build: Callable[[_Draft], None]
    full: int = 1000
    """How many nodes its bars are meant for."""

    def plan(self, options: Options) -> Plan:
        """Draw the plan."""
        draft = _Draft(self.name, options)
        self.build(draft)
        return draft.plan()


class _Draft:
    """A plan in the making."""

    def __init__(self, name: str, options: Options) -> None:
        self.name = name
        self.options = options
        self.nodes = options.nodes
        self.all = list(range(options.nodes))
        self.rng = random.Random(f"{options.seed}/plan/{name}")
        self.steps: list[Step] = []
        self.bars: list[Bar] = []
        self.network = Network()
        self.config: dict[str, Any] = {}

    def plan(self) -> Plan:
        bars = tuple(self.bars)
        return Plan(self.name, self.options.seed, self.nodes, tuple(self.steps), self.network, self.config, bars)

    def do(self, verb: str, **args: Any) -> None:
        self.steps.append(Step(verb, args))

    def bar(self, metric: str, *, at_most: float | None = None, at_least: float | None = None, **sizes: int) -> None:
        self.bars.append(Bar(metric, at_most, at_least, **sizes))

    def run(self, seconds: float) -> None:
        self.do("run", seconds=seconds)

    def boot(self, over_s: float | None = None, limit_s: float = 60.0) -> None:
        """All nodes join through the seeds and agree."""
        spread_s = min(10.0, self.nodes / 100) if over_s is None else over_s
        self.do("start", nodes=self.all, seeds=self.seeds, over_s=spread_s)
        self.do("settle", limit_s=limit_s, label="join")

    @property
    def seeds(self) -> list[int]:
        return self.all[:_SEEDS]

    def warm(self, seconds: float) -> None:
        """Let the network run, and its tree be trained."""
        self.run(seconds if self.options.warm_s is None else self.options.warm_s)
        for _ in range(10):
            self.do("broadcast", nodes=[self.rng.choice(self.all)], label="warm")
            self.run(1.0)

    def broadcasts(self, count: int, senders: list[int], every_s: float = 1.5, label: str = "", **options: Any) -> None:
        for _ in range(count):
            self.do("broadcast", nodes=[self.rng.choice(senders)], label=label, **options)
            self.run(every_s)

    def some(self, part: float, among: list[int] | None = None) -> list[int]:
        among = self.all if among is None else among
        return sorted(self.rng.sample(among, round(part * len(among))))

    def rest(self, gone: list[int]) -> list[int]:
        missing = dict.fromkeys(gone)
        return [index for index in self.all if index not in missing]

    def calm(self, limit_s: float, label: str = "calm") -> None:
        """Faults are over: liveness is demanded."""
        self.do("settle", limit_s=limit_s, label=label)


# --- broadcasts -------------------------------------------------------------------------------------------------


def _steady_random(d: _Draft) -> None:
    d.boot()
    d.warm(10.0)
    d.broadcasts(30, d.all)
    d.bars += _ALL_DELIVERED, _NO_FALSE_DEATH
    d.bar("redundancy", at_most=0.6)
    d.bar("p100_ms", at_most=800, nodes_max=1999)
    d.bar("p100_ms", at_most=1300, nodes_min=2000)


def _steady_one(d: _Draft) -> None:
    d.boot()
    d.warm(10.0)
    sender = [d.rng.choice(d.all)]
    d.broadcasts(5, sender, label="warm")
    d.broadcasts(30, sender)
    d.bars += _ALL_DELIVERED, _NO_FALSE_DEATH
    d.bar("redundancy", at_most=0.15)
    d.bar("p100_ms", at_most=450, nodes_max=1999)
    d.bar("p100_ms", at_most=1300, nodes_min=2000)


def _burst(d: _Draft) -> None:
    d.boot()
    d.warm(10.0)
    for _ in range(2):
        d.do("broadcast", nodes=d.all)
        d.run(10.0)
    d.bars += _ALL_DELIVERED, _NO_FALSE_DEATH
    d.bar("wire_dropped_full", at_most=0)


def _loss_2(d: _Draft) -> None:
    d.boot()
    d.warm(10.0)
    d.do("loss", part=0.02, vanishes=True)
    d.broadcasts(30, d.all, every_s=2.0)
    d.run(15.0)
    d.do("loss", part=0.0, vanishes=False)
    d.calm(60.0)
    d.bars += _ALL_DELIVERED, _NO_FALSE_DEATH
    d.bar("p99_ms", at_most=1600)
    d.bar("core_grafts", at_least=1)


def _loss_tcp(d: _Draft) -> None:
    d.boot()
    d.warm(10.0)
    d.do("loss", part=0.02, vanishes=False)
    d.broadcasts(30, d.all, every_s=2.0)
    d.bars += _ALL_DELIVERED, _NO_FALSE_DEATH
    d.bar("p99_ms", at_most=1600)


def _unruly(d: _Draft) -> None:
    d.network = replace(d.network, duplicates=0.05, reorders=0.05, clock_drift=0.01)
    d.boot()
    d.broadcasts(30, d.all, every_s=0.3)
    d.run(10.0)
    d.calm(60.0)
    d.bars += _ALL_DELIVERED, _NO_FALSE_DEATH


# --- failures ---------------------------------------------------------------------------------------------------


def _mass_kill(part: float, *, cold: bool) -> Callable[[_Draft], None]:
    def build(d: _Draft) -> None:
        d.boot()
        if not cold:
            d.warm(60.0)
        killed = d.some(part)
        left = d.rest(killed)
        d.do("kill", nodes=killed)
        d.do("broadcast", nodes=[d.rng.choice(left)], label="first", must=False)
        d.run(5.0)
        must = part < 0.85 and not cold
        d.broadcasts(10, left, every_s=5.0, label="next", must=must)
        d.run(max(0.0, 60.0 - 55.0))
        d.broadcasts(10, left, every_s=1.0, label="late", must=False)
        d.calm(60.0)
        d.bars.append(_NO_FALSE_DEATH)
        if part <= 0.5 and not cold:
            d.bar("delivered_fraction_first", at_least=0.98)
        if must:
            d.bar("delivered_fraction_next", at_least=1.0)
        d.bar("delivered_fraction_late", at_least=0.99)

    return build


def _silent_crash_30(d: _Draft) -> None:
    d.boot()
    d.warm(10.0)
    crashed = d.some(0.3)
    left = d.rest(crashed)
    d.do("kill", nodes=crashed, silent=True)
    # The link's keepalive, then the suspicion time, then two seconds.
    d.broadcasts(16, left, every_s=0.5, label="during", must=False)
    d.broadcasts(20, left, every_s=1.0, label="after")
    d.calm(30.0)
    d.bars.append(_NO_FALSE_DEATH)
    d.bar("delivered_fraction_after", at_least=1.0)


def _kill_one(*, silent: bool) -> Callable[[_Draft], None]:
    def build(d: _Draft) -> None:
        d.boot()
        d.warm(10.0)
        for victim in d.rng.sample(d.all, min(5, d.nodes - 1)):
            d.do("kill", nodes=[victim], silent=silent)
            d.run(20.0)
        d.calm(10.0)
        d.bars.append(_NO_FALSE_DEATH)
        d.bar("suspected_p50_s", at_most=2.0)
        d.bar("all_know_p99_s", at_most=8.0 if silent else 3.0)
        d.bar("unnoticed", at_most=0)

    return build


def _leave(d: _Draft) -> None:
    d.boot()
    d.run(5.0)
    for index in d.some(0.1):
        d.do("leave", nodes=[index])
        d.run(2.0)
    d.calm(10.0)
    d.bars.append(_NO_FALSE_DEATH)
    d.bar("all_know_p99_s", at_most=1.5)
    d.bar("unnoticed", at_most=0)


def _frozen(freeze_s: float) -> Callable[[_Draft], None]:
    def build(d: _Draft) -> None:
        d.boot()
        d.run(5.0)
        sick = d.some(0.25)
        d.do("freeze", nodes=sick, freeze_s=freeze_s, run_s=0.064, total_s=90.0)
        d.run(90.0 + freeze_s)
        d.calm(60.0)
        d.bars.append(_NO_FALSE_DEATH)
        d.bar("false_positives_sick", at_most=0.2 * len(sick) * 1.5)  # per minute that a node is sick

    return build


def _loss_long(part: float) -> Callable[[_Draft], None]:
    def build(d: _Draft) -> None:
        d.boot()
        d.do("loss", part=part, vanishes=True)
        d.run(10 * _MINUTE_S)
        d.do("loss", part=0.0, vanishes=False)
        d.calm(60.0)
        d.bars.append(_NO_FALSE_DEATH)

    return build


# --- partitions -------------------------------------------------------------------------------------------------


def _split(d: _Draft, groups: list[list[int]], seconds: float, limit_s: float) -> None:
    for number, left in enumerate(groups):
        for right in groups[number + 1 :]:
            d.do("block", left=left, right=right, islands=groups)
    d.run(seconds)
    d.do("heal")
    d.do("settle", limit_s=limit_s, label="heal")
    d.broadcasts(5, d.all, label="healed")
    d.bars.append(_NO_FALSE_DEATH)
    d.bar("settled_heal_s", at_most=limit_s)
    d.bar("delivered_fraction_healed", at_least=1.0)


def _halves(d: _Draft) -> list[list[int]]:
    left = d.some(0.5)
    return [left, d.rest(left)]


def _partition_half(d: _Draft) -> None:
    d.boot()
    d.run(5.0)
    _split(d, _halves(d), 10 * _MINUTE_S, 60.0)


def _partition_long(d: _Draft) -> None:
    # 25 hours outlive every memory of the dead.  What matters is the order of these times, not their length, so they
    # are scaled: 25 h of partition, 24 h of tombstones and 1 h of visible dead become 150 s, 120 s and 10 s.
    d.config = {"dead_retention_s": 10.0, "tombstone_s": 120.0, "candidate_s": 60.0}
    d.boot()
    d.run(5.0)
    _split(d, _halves(d), 150.0, 60.0)


def _partition_three(d: _Draft) -> None:
    d.boot()
    d.run(5.0)
    first = d.some(1 / 3)
    second = d.some(0.5, d.rest(first))
    third = [index for index in d.rest(first) if index not in dict.fromkeys(second)]
    _split(d, [first, second, third], 2 * _MINUTE_S, 60.0)


def _partition_one_way(d: _Draft) -> None:
    d.boot()
    d.run(5.0)
    groups = _halves(d)
    d.do("block", left=groups[0], right=groups[1], both=False, islands=groups)
    d.run(2 * _MINUTE_S)
    d.do("heal")
    d.do("settle", limit_s=60.0, label="heal")
    d.bars.append(_NO_FALSE_DEATH)
    d.bar("settled_heal_s", at_most=60.0)


def _partition_isolated(d: _Draft) -> None:
    d.boot()
    d.run(5.0)
    alone = [d.rng.choice(d.all)]
    _split(d, [alone, d.rest(alone)], _MINUTE_S, 45.0)


def _broken_pair(d: _Draft) -> None:
    d.boot()
    d.run(5.0)
    a, b = d.rng.sample(d.all, 2)
    d.do("block", left=[a], right=[b])
    d.broadcasts(10, d.all, every_s=12.0)
    d.do("settle", limit_s=20.0, label="broken")
    d.do("heal")
    d.calm(45.0)
    d.bars += _NO_FALSE_DEATH, _ALL_DELIVERED


def _flapping(d: _Draft) -> None:
    d.boot()
    d.run(5.0)
    for _ in range(12):
        groups = _halves(d)
        d.do("block", left=groups[0], right=groups[1], islands=groups)
        d.run(d.rng.uniform(0.5, 8.0))
        d.do("heal")
        d.run(d.rng.uniform(0.5, 4.0))
    d.do("settle", limit_s=60.0, label="heal")
    d.broadcasts(5, d.all, label="healed")
    d.bars.append(_NO_FALSE_DEATH)
    d.bar("settled_heal_s", at_most=60.0)
    d.bar("delivered_fraction_healed", at_least=1.0)


# --- joins ------------------------------------------------------------------------------------------------------


def _join_at_once(d: _Draft) -> None:
    d.boot(over_s=0.0)
    d.run(10.0)
    d.broadcasts(3, d.all)
    d.bars += _NO_FALSE_DEATH, _ALL_DELIVERED
    d.bar("settled_join_s", at_most=15.0)


def _join_ramp(d: _Draft) -> None:
    d.boot(over_s=10.0)
    d.run(10.0)
    d.broadcasts(3, d.all)
    d.bars += _NO_FALSE_DEATH, _ALL_DELIVERED
    d.bar("settled_join_s", at_most=15.0)


def _rolling(*, new_ids: bool) -> Callable[[_Draft], None]:
    rounds, dead_s, tombstone_s = 20, 20.0, 40.0

    def build(d: _Draft) -> None:
        d.config = {"dead_retention_s": dead_s, "tombstone_s": tombstone_s}
        d.boot()
        current = list(d.all)
        for number in range(1, rounds + 1):
            # A tenth of the nodes at a time, as an orchestrator does it.
            for offset in range(10):
                part = list(range(offset, d.nodes, 10))
                d.do("kill", nodes=[current[slot] for slot in part])
                if new_ids:
                    for slot in part:
                        current[slot] = slot + number * d.nodes
                d.do("start", nodes=[current[slot] for slot in part], seeds=current[:_SEEDS], over_s=0.5)
                d.run(0.5)
        d.calm(60.0)
        d.run(dead_s + tombstone_s + 5.0)
        # Only what died in the last minute may still be remembered, and nothing did.
        d.do("remember", nodes_max=d.nodes)
        d.bars.append(_NO_FALSE_DEATH)

    return build


def _idle_cost(d: _Draft) -> None:
    d.boot()
    d.run(30.0 if d.options.warm_s is None else d.options.warm_s)
    d.do("idle", seconds=60.0)
    d.bars.append(_NO_FALSE_DEATH)
    d.bar("idle_bytes_per_s", at_most=600)


# --- everything -------------------------------------------------------------------------------------------------


def _chaos(d: _Draft) -> None:
    """Random faults of every kind, one after the other and on top of each other; then calm."""
    d.network = replace(d.network, clock_drift=0.01)
    d.boot()
    down: list[int] = []
    for _ in range(40):
        up = d.rest(down)
        match d.rng.randrange(8):
            case 0 | 1 if len(up) > d.nodes // 2:
                victims = d.rng.sample(up, max(1, len(up) // 10))
                d.do("kill", nodes=sorted(victims), silent=d.rng.random() < 0.5)
                down += victims
            case 2 if down:
                d.do("start", nodes=sorted(down), seeds=d.seeds, over_s=1.0)
                down = []
            case 3:
                d.do("freeze", nodes=d.some(0.1, up), freeze_s=d.rng.uniform(0.1, 8.0))
            case 4:
                groups = _halves(d)
                d.do("block", left=groups[0], right=groups[1], islands=groups)
                d.run(d.rng.uniform(0.5, 10.0))
                d.do("heal")
            case 5:
                d.do("loss", part=d.rng.choice([0.0, 0.01, 0.05]), vanishes=False)
            case 6 if len(up) > d.nodes // 2:
                leaver = d.rng.choice(up)
                d.do("leave", nodes=[leaver])
                down.append(leaver)
            case _:
                d.do("broadcast", nodes=[d.rng.choice(up)], label="during", must=False)
        d.run(d.rng.uniform(0.1, 4.0))
    d.do("heal")
    d.do("loss", part=0.0, vanishes=False)
    d.run(15.0)
    d.calm(60.0)
    d.broadcasts(5, d.rest(down), label="calm")
    d.bar("delivered_fraction_calm", at_least=1.0)


SCENARIOS: Final[dict[str, Scenario]] = {
    scenario.name: scenario
    for scenario in (
        Scenario("steady-random", "each broadcast from another sender", 100, _steady_random),
        Scenario("steady-one", "all broadcasts from one sender", 100, _steady_one),
        Scenario("burst", "everybody broadcasts at once, twice", 100, _burst),
        Scenario("loss-2", "2 % of the messages vanish", 100, _loss_2),
        Scenario("loss-2-tcp", "2 % of the messages are late by a retransmission", 100, _loss_tcp),
        Scenario("unruly", "messages arrive twice and out of order, clocks differ by 1 %", 100, _unruly, full=128),
        Scenario("mass-kill-50", "half of the nodes are killed at once", 100, _mass_kill(0.5, cold=False)),
        Scenario("mass-kill-80", "80 % are killed at once", 100, _mass_kill(0.8, cold=False)),
        Scenario("mass-kill-90", "90 % are killed at once", 100, _mass_kill(0.9, cold=False)),
        Scenario("mass-kill-80-cold", "80 % are killed right after bootstrap", 100, _mass_kill(0.8, cold=True)),
        Scenario("mass-kill-90-cold", "90 % are killed right after bootstrap", 100, _mass_kill(0.9, cold=True)),
        Scenario("silent-crash-30", "30 % lose power: no connection is reset", 100, _silent_crash_30),
        Scenario("kill-one", "single nodes are killed, connections reset", 100, _kill_one(silent=False)),
        Scenario("kill-one-silent", "single nodes lose power", 100, _kill_one(silent=True)),
        Scenario("leave", "nodes leave in order", 100, _leave),
        Scenario("frozen-16s", "a quarter stands still 16 s, runs 64 ms, for 90 s", 128, _frozen(16.0), full=128),
        Scenario("frozen-4s", "a quarter stands still 4 s, runs 64 ms, for 90 s", 128, _frozen(4.0), full=128),
        Scenario("false-deaths-1", "1 % of the messages vanish for 10 minutes", 100, _loss_long(0.01)),
        Scenario("false-deaths-5", "5 % of the messages vanish for 10 minutes", 100, _loss_long(0.05)),
        Scenario("partition-half", "two halves for 10 minutes, then healed", 100, _partition_half),
        Scenario("partition-long", "two halves for longer than any tombstone (25 h, scaled)", 100, _partition_long),
        Scenario("partition-three", "three parts for 2 minutes", 100, _partition_three),
        Scenario("partition-one-way", "nothing gets from one half to the other", 100, _partition_one_way),
        Scenario("partition-isolated", "one node alone for a minute", 100, _partition_isolated),
        Scenario("broken-pair", "two nodes cannot reach each other, everybody else can", 100, _broken_pair),
        Scenario("flapping", "ever other halves part and meet again within seconds", 100, _flapping, full=128),
        Scenario("join-at-once", "all join at the same moment", 100, _join_at_once, full=100),
        Scenario("join-ramp", "all join within 10 s", 100, _join_ramp),
        Scenario(
            "rolling-restarts", "20 rounds of restarts, a tenth at a time", 100, _rolling(new_ids=False), full=400
        ),
        Scenario(
            "rolling-new-ids", "the same, but each restart has a new node id", 100, _rolling(new_ids=True), full=400
        ),
        Scenario("idle", "nothing happens: what does that cost?", 100, _idle_cost, full=256),
        Scenario("chaos", "random faults of every kind, then calm", 50, _chaos, full=128),
    )
}
