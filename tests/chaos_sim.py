"""Helpers for tests of the simulator: cores that do as they are told, and small plans."""

from __future__ import annotations

import random
from typing import Any

from chaos.sim.checkers import Checkers
from chaos.sim.measure import Broadcasts, Detections
from chaos.sim.plan import Network, Plan, Step, node_name
from chaos.sim.process import Process
from chaos.sim.runner import Watch
from chaos.sim.world import World
from gossip.config import GossipConfig
from gossip.events import Dial, Effect, Event, Member, MetaChanged
from transport.types import NodeId


class Scripted:
    """A core that remembers what it heard, and answers types of events with fixed effects."""

    ended = False
    digest = 0
    sequence = 0
    needs = False
    spares = True

    def __init__(self, self_member: Member, config: GossipConfig, rng: random.Random) -> None:
        self.me = self_member
        self.heard: list[Event] = []
        self.times: list[float] = []
        self._answers: dict[type, list[Effect]] = {}

    @staticmethod
    def of(process: Process) -> Scripted:
        """The scripted core of a process."""
        core = process.core
        assert isinstance(core, Scripted)
        return core

    def answer(self, kind: type, effects: list[Effect]) -> None:
        """Answer each further event of this kind so."""
        self._answers[kind] = effects

    def members(self) -> list[Member]:
        return [self.me]

    def needs_link(self, node_id: NodeId) -> bool:
        return self.needs

    def spares_link(self, node_id: NodeId, now: float) -> bool:
        return self.spares

    def handle(self, event: Event, now: float) -> list[Effect]:
        self.heard.append(event)
        self.times.append(now)
        return self._answers.get(type(event), [])

    def statistics(self) -> dict[str, int | float]:
        return {}


def scripted_world(network: Network | None = None, linked: tuple[int, ...] = (), seed: int = 1) -> World:
    """A world of scripted cores; those of ``linked`` are started and all linked to each other, and heard nothing."""
    config = GossipConfig()
    network = Network(clock_drift=0.0, discovery_interval_s=0.0) if network is None else network
    checkers = Checkers(config, lambda: world.now)
    world = World(seed, network, config, Watch(checkers, Broadcasts(), Detections()), Scripted)
    for index in linked:
        world.start(index)
    for index in linked:
        process = world.processes[node_name(index)]
        Scripted.of(process).answer(MetaChanged, [Dial(node_name(other), ()) for other in linked if other > index])
        world.tell(process, MetaChanged(b""))
    if linked:
        world.run(5.0)
    for process in world.live():
        assert len(process.links) == max(0, len(linked) - 1)
    return world


def nodes(count: int) -> list[int]:
    """The numbers of so many nodes."""
    return list(range(count))


def plan_of(*steps: Step, seed: int = 1, **options: Any) -> Plan:
    """A plan of these steps."""
    started: dict[int, None] = {}
    for step in steps:
        if step.verb == "start":
            started |= dict.fromkeys(step.args["nodes"])
    return Plan("test", seed, len(started), steps, **options)
