"""Gossip cores on a simulated network: one event queue, one clock, one seed, no I/O.

Nodes are restartable processes with a :class:`GossipCore` each.  Links are symmetric, deliver in order after a random
delay, and break when a process ends or a partition is drawn; a partition also makes dials fail.  Every transition is
checked as it happens (``violations``), so a test only has to say what must be true in the end.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256

from gossip.config import GossipConfig
from gossip.events import (
    Deliver,
    Dial,
    DialFailed,
    Effect,
    Event,
    LinkLost,
    LinkOpened,
    Member,
    MemberChanged,
    MemberState,
    PartitionDetected,
    PartitionHealed,
    PeerFound,
    Received,
    Send,
    SetTimer,
    Started,
    Superseded,
    TimerFired,
    Unlink,
    UnlinkReason,
)
from gossip.incarnation import life_of, make_incarnation
from gossip.members import is_gone
from gossip.router import GossipCore
from transport.types import Address, NodeId


@dataclass
class Process:
    """One run of one node."""

    name: NodeId
    core: GossipCore
    running: bool = True
    links: dict[NodeId, Process] = field(default_factory=dict)
    changes: list[tuple[float, Member | None, Member]] = field(default_factory=list)
    delivered: list[Deliver] = field(default_factory=list)
    partitions: list[PartitionDetected | PartitionHealed] = field(default_factory=list)
    superseded: Superseded | None = None

    def state_of(self, name: str) -> MemberState | None:
        member = self.core.member(NodeId(name))
        return None if member is None else member.state

    def states_seen(self, name: str, since: float = 0.0) -> list[MemberState]:
        return [after.state for at, _, after in self.changes if after.node_id == name and at >= since]


class SimNet:
    """The world."""

    def __init__(
        self, seed: int = 1, config: GossipConfig | None = None, *, delay_s: tuple[float, float] = (0.001, 0.01)
    ):
        self.rng = random.Random(seed)
        self.config = config or GossipConfig()
        self.now = 0.0
        self.processes: dict[NodeId, Process] = {}
        self.violations: list[str] = []
        self.sends = 0
        self._delay_s = delay_s
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._cut: set[tuple[NodeId, NodeId]] = set()
        self._arrival: dict[tuple[NodeId, NodeId], float] = {}
        self._trace = sha256()
        self._lives = itertools.count(1000)

    # what tests do

    def start(self, name: str, *seeds: str, life: int | None = None, meta: bytes = b"") -> Process:
        node = NodeId(name)
        me = Member(node, make_incarnation(life or next(self._lives)), MemberState.ALIVE, (address(name),), 1, meta)
        process = Process(node, GossipCore(me, self.config, random.Random(self.rng.random())))
        self.processes[node] = process
        self.feed(process, Started())
        for seed in seeds:
            self.feed(process, PeerFound(NodeId(seed), (address(seed),)))
        return process

    def start_all(self, count: int, meta: bytes = b"") -> list[Process]:
        names = [f"n{index:03}" for index in range(count)]
        return [self.start(name, *names[: min(index, 1)], meta=meta) for index, name in enumerate(names)]

    def kill(self, name: str) -> None:
        """The process ends and its kernel resets its connections."""
        process = self.processes[NodeId(name)]
        process.running = False
        for peer in list(process.links.values()):
            self._unlink(process, peer)

    def cut(self, left: Iterable[str], right: Iterable[str]) -> None:
        """No link between the two sides can exist until :meth:`heal`."""
        others = [NodeId(name) for name in right]
        for a in (NodeId(name) for name in left):
            for b in others:
                self._cut |= {(a, b), (b, a)}
                if b in self.processes[a].links:
                    self._unlink(self.processes[a], self.processes[b])

    def heal(self) -> None:
        self._cut.clear()

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> float:
        """Let time pass; return how much until the condition held (checked after each event)."""
        start, end = self.now, self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, action = heapq.heappop(self._queue)
            action()
            if until is not None and until():
                return self.now - start
        assert until is None, f"not within {seconds} simulated seconds"
        self.now = end
        return seconds

    @property
    def live(self) -> list[Process]:
        return [p for p in self.processes.values() if p.running and not p.core.ended]

    def agreed(self) -> bool:
        """Whether every live node believes exactly the live nodes alive, with equal digests."""
        live = self.live
        if len({process.core.digest for process in live}) != 1:
            return False
        names = {process.name for process in live}
        return all(
            {m.node_id for m in process.core.members() if m.state is MemberState.ALIVE} == names for process in live
        )

    def meshed(self) -> bool:
        return all(len(process.links) == len(self.live) - 1 for process in self.live)

    def all_believe(self, name: str, state: MemberState) -> bool:
        return all(process.state_of(name) is state for process in self.live if process.name != name)

    @property
    def digest(self) -> str:
        """Of everything that happened: equal for equal seeds."""
        return self._trace.hexdigest()

    def feed(self, process: Process, event: Event) -> None:
        if process.running:
            self._trace.update(f"{self.now!r}{process.name}{event!r}".encode())
            for effect in process.core.handle(event, self.now):
                self._execute(process, effect)

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay_s, next(self._order), action))

    # the world's laws

    def _execute(self, process: Process, effect: Effect) -> None:
        match effect:
            case SetTimer():
                self.at(effect.delay_s, lambda: self.feed(process, TimerFired(effect.token)))
            case Send():
                self._send(process, effect)
            case Dial():
                self.at(self.rng.uniform(*self._delay_s) * 3, lambda: self._dial(process, effect.peer))
            case Unlink():
                if (peer := process.links.get(effect.peer)) is not None:
                    idle = effect.reason is UnlinkReason.IDLE
                    if not (idle and peer.core.needs_link(process.name)):
                        self.at(0.05, lambda: self._unlink(process, peer, wanted=True))
            case MemberChanged():
                self._check(process, effect)
                process.changes.append((self.now, effect.before, effect.after))
            case Deliver():
                process.delivered.append(effect)
            case PartitionDetected() | PartitionHealed():
                process.partitions.append(effect)
            case Superseded():
                process.superseded = effect
            case _:
                pass

    def _send(self, process: Process, effect: Send) -> None:
        peer = process.links.get(effect.peer)
        if peer is None:
            return
        self.sends += 1
        pair = process.name, peer.name
        arrival = max(self.now + self.rng.uniform(*self._delay_s), self._arrival.get(pair, 0.0))
        self._arrival[pair] = arrival
        event = Received(process.name, effect.body, effect.kind, effect.ttl)

        def arrive() -> None:
            if peer.links.get(process.name) is process:
                self.feed(peer, event)

        self.at(arrival - self.now, arrive)

    def _dial(self, process: Process, name: NodeId) -> None:
        peer = self.processes.get(name)
        if not process.running or name in process.links:
            return
        cut = (process.name, name) in self._cut
        if peer is None or not peer.running or peer.core.ended or cut:
            self.feed(process, DialFailed(name, refused=not cut))
            return
        process.links[name], peer.links[process.name] = peer, process
        for here, there in ((process, peer), (peer, process)):
            me = there.core.me
            self.feed(here, LinkOpened(there.name, me.incarnation, me.addresses))

    def _unlink(self, process: Process, peer: Process, *, wanted: bool = False, left: bool = False) -> None:
        if process.links.pop(peer.name, None) is peer:
            del peer.links[process.name]
            self.feed(process, LinkLost(peer.name, wanted=wanted))
            self.feed(peer, LinkLost(process.name, wanted=wanted, left=left))

    def say_goodbye(self, name: str) -> None:
        """What the shell does after LeaveRequested: close every link in order."""
        process = self.processes[NodeId(name)]

        def part() -> None:
            for peer in list(process.links.values()):
                self._unlink(process, peer, left=True)

        self.at(0.05, part)

    def _check(self, process: Process, change: MemberChanged) -> None:
        """What no transition may ever do."""
        before, after = change.before, change.after
        if before is None:
            return
        if life_of(after.incarnation) < life_of(before.incarnation):
            self.violations.append(f"{process.name}: {before} went back to {after}")
        if is_gone(before.state) and not is_gone(after.state) and after.incarnation <= before.incarnation:
            self.violations.append(f"{process.name}: {before} was resurrected as {after}")
        same_life = life_of(after.incarnation) == life_of(before.incarnation)
        if before.state is MemberState.LEFT and same_life and after.state is not MemberState.LEFT:
            self.violations.append(f"{process.name}: {before} came back as {after}")
        if after.node_id == process.name and after.state in {MemberState.SUSPECT, MemberState.DEAD}:
            self.violations.append(f"{process.name} believes itself {after.state.name}")


def address(name: str) -> Address:
    """Where a simulated node is dialled."""
    return Address(f"{name}.sim", 7946)
