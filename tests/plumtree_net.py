"""Plumtree cores on a fixed random overlay: discrete events, one clock, one seed, no I/O.

Only the broadcast core is driven; the overlay is drawn once, and ``kill`` tells the neighbours of the killed at once.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from dataclasses import dataclass

from gossip.config import GossipConfig
from gossip.events import (
    BroadcastRequested,
    Deliver,
    Effect,
    Event,
    Member,
    MemberState,
    Missed,
    NeighborDown,
    NeighborUp,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from gossip.incarnation import make_incarnation
from gossip.plumtree import PlumtreeCore
from gossip.plumtree_codec import Body, Gossip, Graft, IHave, Prune, Sync
from transport.types import NodeId

_TYPES = (Gossip, IHave, Graft, Prune, Sync)

Key = tuple[NodeId, int]
"""Origin and sequence."""


@dataclass
class Round:
    """What became of one broadcast."""

    receivers: int
    delivered: int
    last_s: float
    payloads: int

    @property
    def redundancy(self) -> float:
        """Payload copies per receiver, less one."""
        return self.payloads / self.receivers - 1


class Net:
    """Nodes ``n0``, ``n1`` ... with a core each, and links with a latency each.

    Args:
        nodes: How many.
        seed: Draws overlay, latencies and losses.
        degree: Least and most neighbours.
        latency_s: Least and most time on one link.
        loss: Probability that a body is lost.
        config: Of every node.
    """

    def __init__(
        self,
        nodes: int,
        seed: int,
        *,
        degree: tuple[int, int] = (5, 8),
        latency_s: tuple[float, float] = (0.01, 0.05),
        loss: float = 0.0,
        config: GossipConfig | None = None,
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.loss = loss
        self.links: dict[NodeId, dict[NodeId, float]] = {}
        self.cores: dict[NodeId, PlumtreeCore] = {}
        self.delivered: dict[Key, dict[NodeId, float]] = {}
        self.missed: list[tuple[NodeId, Missed]] = []
        self.twice = 0
        self.sent: Counter[int] = Counter()
        """Bodies by type."""
        self.waiting_max = 0
        self._events: list[tuple[float, int, NodeId, Event]] = []
        self._serial = 0
        for index in range(nodes):
            name = NodeId(f"n{index}")
            member = Member(name, make_incarnation(1), MemberState.ALIVE)
            self.cores[name] = PlumtreeCore(member, config or GossipConfig(), random.Random(f"{seed}/{index}"))
            self.links[name] = {}
        self._draw_links(degree, latency_s)
        for name, peers in self.links.items():
            for peer in peers:
                self.feed(name, NeighborUp(peer))

    def _draw_links(self, degree: tuple[int, int], latency_s: tuple[float, float]) -> None:
        """A ring, so that the overlay is connected, and random links until each node has enough."""
        names = list(self.cores)
        self.rng.shuffle(names)
        pairs = list(zip(names, names[1:] + names[:1], strict=True))
        least, most = degree
        for name in names:
            wanted = self.rng.randint(least, least + 1)
            for _ in range(50 * wanted):
                if len(self.links[name]) + 2 >= wanted:
                    break
                other = self.rng.choice(names)
                if other not in (name, *self.links[name]) and len(self.links[other]) + 2 < most:
                    self._link(name, other, latency_s)
        for one, other in pairs:
            if one != other:
                self._link(one, other, latency_s)

    def _link(self, one: NodeId, other: NodeId, latency_s: tuple[float, float]) -> None:
        self.links[one][other] = self.links[other][one] = self.rng.uniform(*latency_s)

    # --- driving ----------------------------------------------------------------------------------------------

    def feed(self, name: NodeId, event: Event) -> list[Effect]:
        """Hand one event to one core and carry out the effects."""
        core = self.cores[name]
        effects = core.handle(event, self.now)
        self.waiting_max = max(self.waiting_max, core.waiting)
        for effect in effects:
            match effect:
                case Send():
                    self._send(name, effect)
                case SetTimer():
                    self._later(effect.delay_s, name, TimerFired(effect.token))
                case Deliver():
                    by = self.delivered.setdefault((effect.origin, effect.sequence), {})
                    self.twice += name in by
                    by[name] = self.now
                case Missed():
                    self.missed.append((name, effect))
                case _:
                    pass
        return effects

    def _send(self, name: NodeId, send: Send) -> None:
        self.sent[send.body[1]] += 1
        latency_s = self.links[name].get(send.peer)
        if latency_s is not None and self.rng.random() >= self.loss:
            self._later(latency_s, send.peer, Received(name, send.body, send.kind, send.ttl))

    def _later(self, delay_s: float, name: NodeId, event: Event) -> None:
        self._serial += 1
        heapq.heappush(self._events, (self.now + delay_s, self._serial, name, event))

    def run(self, duration_s: float) -> None:
        """Let time pass."""
        until = self.now + duration_s
        while self._events and self._events[0][0] <= until:
            self.now, _, name, event = heapq.heappop(self._events)
            if name in self.cores:
                self.feed(name, event)
        self.now = until

    def broadcast(self, name: NodeId, payload: bytes = b"payload", ttl: int = 64) -> Key:
        """One node broadcasts; nothing runs yet."""
        self.feed(name, BroadcastRequested(payload, ttl))
        key = name, self.cores[name].sequence
        self.delivered.setdefault(key, {})
        return key

    def round(self, name: NodeId, duration_s: float = 3.0, ttl: int = 64) -> Round:
        """One broadcast, and the time that it takes."""
        began, before = self.now, self.sent[0]
        key = self.broadcast(name, ttl=ttl)
        self.run(duration_s)
        times = self.delivered[key].values()
        return Round(len(self.cores) - 1, len(times), max(times, default=began) - began, self.sent[0] - before)

    def kill(self, names: list[NodeId]) -> None:
        """These end at once, and their neighbours know."""
        for name in names:
            del self.cores[name]
        for name in names:
            for peer in self.links.pop(name):
                if peer in self.cores:
                    del self.links[peer][name]
                    self.feed(peer, NeighborDown(name))

    def connect(self, one: NodeId, other: NodeId, latency_s: float = 0.02) -> None:
        """A new link; both are told."""
        if other not in self.links[one]:
            self.links[one][other] = self.links[other][one] = latency_s
            self.feed(one, NeighborUp(other))
            self.feed(other, NeighborUp(one))

    def disconnect(self, one: NodeId, other: NodeId) -> None:
        """A link ends; both are told."""
        del self.links[one][other], self.links[other][one]
        self.feed(one, NeighborDown(other))
        self.feed(other, NeighborDown(one))

    def split(self, side: list[NodeId]) -> list[tuple[NodeId, NodeId]]:
        """Cut each link between ``side`` and the rest; returns them."""
        cut = [(one, other) for one in side for other in self.links[one] if other not in side]
        for one, other in cut:
            self.disconnect(one, other)
        return cut

    def join(self, name: NodeId, peers: list[NodeId]) -> NodeId:
        """A node starts now, with links to ``peers``."""
        member = Member(name, make_incarnation(1), MemberState.ALIVE)
        self.cores[name] = PlumtreeCore(member, GossipConfig(), random.Random(name))
        self.links[name] = {}
        for peer in peers:
            self.connect(name, peer)
        return name

    # --- looking ----------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether nothing is under way and no timer runs."""
        return not self._events

    def sent_of(self, kind: type[Body]) -> int:
        """How many bodies of one type were sent."""
        return self.sent[_TYPES.index(kind)]

    def distances(self, name: NodeId) -> dict[NodeId, int]:
        """How many links each node is away."""
        found = {name: 0}
        todo = [name]
        for near in todo:
            for peer in self.links[near]:
                if peer not in found:
                    found[peer] = found[near] + 1
                    todo.append(peer)
        return found

    def component(self, name: NodeId) -> list[NodeId]:
        """The nodes that a path of links joins to ``name``, itself included."""
        return list(self.distances(name))

    def total(self, counter: str) -> int:
        """A counter, summed over all nodes."""
        return sum(core.counters[counter] for core in self.cores.values())
