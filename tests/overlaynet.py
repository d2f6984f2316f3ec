"""Overlay cores alone on a simulated network: what hundreds of active views do together.

One event queue, one clock, one seed.  Links deliver in order after a delay that is fixed per pair; dials take a few
of them.  Membership is an oracle: who gets a link knows everybody a moment later, and who is unreachable is dead for
everybody who can talk to the accuser ``SUSPICION_S`` after somebody noticed.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from gossip.config import GossipConfig
from gossip.events import (
    Dial,
    DialFailed,
    Doubt,
    Effect,
    Event,
    LinkLost,
    LinkOpened,
    Member,
    MemberState,
    NeighborDown,
    NeighborUp,
    PeerFound,
    Received,
    RttMeasured,
    Send,
    SetTimer,
    Started,
    TimerFired,
    Unlink,
)
from gossip.hyparview import HyParView
from gossip.incarnation import make_incarnation
from gossip.members import MemberTable
from transport.types import Address, NodeId

NEWS_S = 0.5
SUSPICION_S = 2.5
KEEPALIVE_S = 4.0
DIAL_TIMEOUT_S = 10.0


class LightTable(MemberTable):
    """Without the digest, which these tests do not look at and which takes most of the time."""

    def _count(self, member: Member, sign: int) -> None:
        pass


@dataclass
class Node:
    name: NodeId
    table: MemberTable
    view: HyParView
    side: int = 0
    running: bool = True
    links: dict[NodeId, Node] = field(default_factory=dict)
    up: dict[NodeId, None] = field(default_factory=dict)
    """The active view as the effects tell it."""
    informed: bool = False


class OverlayNet:
    """The world."""

    def __init__(self, seed: int = 1, config: GossipConfig | None = None, *, loss: float = 0.0) -> None:
        self.rng = random.Random(seed)
        self.config = config or GossipConfig()
        self.now = 0.0
        self.nodes: dict[NodeId, Node] = {}
        self.sends = 0
        self.bytes = 0
        self.dials = 0
        self.links_most = 0
        self._loss = loss
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._accused: dict[tuple[int, NodeId], None] = {}
        self._merging = False
        self._incarnations = itertools.count(1)

    # what tests do

    def start(self, name: str, *seeds: str) -> Node:
        node_id = NodeId(name)
        me = Member(node_id, make_incarnation(1), MemberState.ALIVE, (address(name),))
        table = LightTable(me, self.config)
        node = Node(node_id, table, HyParView(node_id, table, self.config, random.Random(self.rng.random())))
        self.nodes[node_id] = node
        self.feed(node, Started())
        for seed in seeds:
            self.feed(node, PeerFound(NodeId(seed), (address(seed),)))
        return node

    def bootstrap(self, count: int, within_s: float, settle_s: float = 20.0) -> None:
        """Start nodes evenly within a time; the first is everybody's seed."""
        names = [f"n{index:04}" for index in range(count)]
        for index, name in enumerate(names):
            seeds = names[: min(index, 1)]
            self.at(index * within_s / count, partial(self._begin, name, seeds))
        self.run(within_s + settle_s)

    def _begin(self, name: str, seeds: list[str]) -> None:
        self.start(name, *seeds)

    def kill(self, names: Iterable[NodeId], *, silent: bool = False) -> None:
        """Processes end at once; their kernels reset the links, or (silent) the machines are gone."""
        ended = [self.nodes[name] for name in names]
        for node in ended:
            node.running = False
        for node in ended:
            for peer in list(node.links.values()):
                if peer.running:
                    self.at(KEEPALIVE_S if silent else 0.001, lambda n=node, p=peer: self._break(n, p))  # type: ignore[misc]
            if silent:
                node.side = -1

    def split(self, names: Iterable[NodeId]) -> None:
        """Nothing passes between these nodes and the others until :meth:`heal`."""
        for name in names:
            self.nodes[name].side = 1
        for node in self.live:
            for peer in list(node.links.values()):
                if node.side < peer.side:
                    self.at(KEEPALIVE_S, lambda n=node, p=peer: self._break(n, p))  # type: ignore[misc]

    def heal(self) -> None:
        for node in self.live:
            node.side = 0
        self._merging = True

    def run(self, seconds: float, until: Callable[[], bool] | None = None, every_s: float = 0.25) -> float:
        """Let time pass; return how much until the condition held (looked at now and then)."""
        start, end = self.now, self.now + seconds
        look_at = self.now
        while self._queue and self._queue[0][0] <= end:
            self.now, _, action = heapq.heappop(self._queue)
            action()
            if until is not None and self.now >= look_at:
                if until():
                    return self.now - start
                look_at = self.now + every_s
        assert until is None, f"not within {seconds} simulated seconds"
        self.now = end
        return seconds

    # what tests look at

    @property
    def live(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.running]

    def components(self) -> list[int]:
        """The sizes of the active views' connected components, of edges that both sides hold, largest first."""
        sizes = []
        seen: dict[NodeId, None] = {}
        for node in self.live:
            if node.name in seen:
                continue
            seen[node.name] = None
            reached = [node]
            for other in reached:
                for name in other.up:
                    peer = self.nodes[name]
                    if peer.running and name not in seen and other.name in peer.up and peer.side == other.side:
                        seen[name] = None
                        reached.append(peer)
            sizes.append(len(reached))
        return sorted(sizes, reverse=True)

    def connected(self) -> bool:
        return len(self.components()) == 1

    def one_sided(self) -> list[tuple[str, str]]:
        return [(node.name, name) for node in self.live for name in node.up if node.name not in self.nodes[name].up]

    def degrees(self) -> list[int]:
        return sorted(len(node.up) for node in self.live)

    def feed(self, node: Node, event: Event) -> None:
        if node.running:
            self._execute(node, node.view.handle(event, self.now))

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay_s, next(self._order), action))

    # the world's laws

    def _execute(self, node: Node, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case SetTimer():
                    token = effect.token
                    self.at(effect.delay_s, lambda token=token: self.feed(node, TimerFired(token)))  # type: ignore[misc]
                case Send():
                    self._send(node, effect)
                case Dial():
                    self.dials += 1
                    self.at(3 * self.delay_s(node.name, effect.peer), lambda peer=effect.peer: self._dial(node, peer))  # type: ignore[misc]
                case Unlink():
                    if (peer := node.links.get(effect.peer)) is not None:
                        self.at(0.05, lambda peer=peer: self._break(node, peer, wanted=True))  # type: ignore[misc]
                case Doubt():
                    self._accuse(node, effect.peer)
                case NeighborUp():
                    assert effect.peer not in node.up
                    assert effect.peer in node.links
                    node.up[effect.peer] = None
                case NeighborDown():
                    del node.up[effect.peer]
                case _:
                    pass

    def delay_s(self, one: NodeId, other: NodeId) -> float:
        """Of a pair, one way: 5 to 25 ms."""
        low, high = sorted((one, other))
        return 0.005 + random.Random(f"{low} {high}").random() * 0.02

    def _send(self, node: Node, effect: Send) -> None:
        peer = node.links.get(effect.peer)
        if peer is None:
            return
        self.sends += 1
        self.bytes += len(effect.body)
        if self.rng.random() < self._loss:
            return
        event = Received(node.name, effect.body, effect.kind, effect.ttl)

        def arrive() -> None:
            if peer.links.get(node.name) is node and peer.side == node.side:
                self.feed(peer, event)

        self.at(self.delay_s(node.name, peer.name), arrive)

    def _dial(self, node: Node, name: NodeId) -> None:
        peer = self.nodes.get(name)
        if not node.running or name in node.links:
            return
        if peer is None or not peer.running or peer.side != node.side:
            silent = peer is not None and peer.side != node.side
            self.at(DIAL_TIMEOUT_S if silent else 0.0, lambda: self.feed(node, DialFailed(name, refused=not silent)))
            return
        node.links[name], peer.links[node.name] = peer, node
        self.links_most = max(self.links_most, len(node.links), len(peer.links))
        for here, there in ((node, peer), (peer, node)):
            self._learn(here, there)
            self.feed(here, LinkOpened(there.name, 1, (address(there.name),)))
            self.feed(here, RttMeasured(there.name, 2 * self.delay_s(here.name, there.name)))
        for here in (node, peer):
            if not here.informed:
                here.informed = True
                self.at(NEWS_S, lambda here=here: self._inform(here))  # type: ignore[misc]
        if self._merging:
            self._merging = False
            self.at(NEWS_S, self._merge)

    def _break(self, node: Node, peer: Node, *, wanted: bool = False) -> None:
        if node.links.pop(peer.name, None) is None:
            return
        del peer.links[node.name]
        for here, there in ((node, peer), (peer, node)):
            self.feed(here, LinkLost(there.name, wanted=wanted))
            if here.running and not wanted:
                self._accuse(here, there.name)

    # the oracle of membership

    def _inform(self, newcomer: Node) -> None:
        """Everybody hears of the newcomer, and it of everybody who was heard of."""
        for node in self.live:
            if node.informed and node is not newcomer and node.side == newcomer.side:
                self._learn(node, newcomer)
                self._learn(newcomer, node)

    def _merge(self) -> None:
        live = self.live
        for node in live:
            for other in live:
                self._learn(node, other)

    def _accuse(self, accuser: Node, name: NodeId) -> None:
        if (accuser.side, name) in self._accused:
            return
        self._accused[accuser.side, name] = None
        self.at(SUSPICION_S, lambda: self._judge(accuser.side, name))

    def _judge(self, side: int, name: NodeId) -> None:
        del self._accused[side, name]
        accused = self.nodes[name]
        if accused.running and accused.side == side:
            return
        for node in self.live:
            if node.side == side:
                member = node.table.get(name)
                if member is not None and member.state is MemberState.ALIVE:
                    self._put(node, Member(name, member.incarnation, MemberState.DEAD, member.addresses))

    def _learn(self, node: Node, other: Node) -> None:
        if node is other:
            return
        member = node.table.get(other.name)
        if member is None or member.state is not MemberState.ALIVE:
            self._put(node, Member(other.name, next(self._incarnations), MemberState.ALIVE, (address(other.name),)))

    def _put(self, node: Node, after: Member) -> None:
        before = node.table.get(after.node_id)
        node.table.put(after, self.now)
        self._execute(node, node.view.member_changed(before, after))


def address(name: str) -> Address:
    """Where a simulated node is dialled."""
    return Address(f"{name}.sim", 7946)
