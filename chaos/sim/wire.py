"""Links between simulated processes, and everything that can happen to them.

A link is what a TLS WebSocket is to the cores: both sides are told when it opens, bodies arrive in order, and it ends
by a reset, an orderly close, or silence.  Silence is not simulated ping by ping: when something that makes an end
inaudible begins (a freeze, a crash without a word, a partition), a look at the link is scheduled for the moment the
keepalive would give up; if the cause still holds then, the link is lost there.  An idle link therefore costs no events,
and idle time passes at no cost.

A body that is sent into a partition is held, as TCP would hold it, and arrives when the partition ends before the
keepalive gives up.
"""

from __future__ import annotations

import heapq
import random
from typing import TYPE_CHECKING, Final

from gossip.events import DialFailed, Event, LinkLost, LinkOpened, Received, Send
from transport.types import NodeId

from .plan import Network
from .process import Process

if TYPE_CHECKING:
    from .world import World

#: What one body costs beside its own bytes: envelope in MessagePack (8), WebSocket header (6), TLS record (22).
FRAMING_BYTES: Final = 36
#: A keepalive ping or pong with its framing.
PING_BYTES: Final = 12 + FRAMING_BYTES
#: Bodies that one direction of a blocked link holds; more are dropped, as a full lane drops (transport/queues.py).
HELD_MAX: Final = 8192
#: The least retransmission timeout of TCP on Linux, and how often it doubles before we stop counting.
RTO_S: Final = 0.2
#: How often a connection attempt is repeated.
SYN_S: Final = 1.0
_RTO_DOUBLINGS_MAX: Final = 5
_MASK: Final = (1 << 64) - 1
# Copied from the world for speed; see world.py.
ARRIVE: Final = 0


class Link:
    """One link.  End 0 dialled, end 1 accepted; an array ``x`` of two says ``x[i]`` about what concerns end ``i``."""

    __slots__ = ("arrival", "blocked_since", "closed_at", "ends", "frames", "held", "latency_s", "open", "pending")

    def __init__(self, dialler: Process, acceptor: Process, latency_s: float, now: float) -> None:
        self.ends = (dialler, acceptor)
        self.latency_s = latency_s
        self.open = [False, False]
        self.pending = True
        """Whether the acceptor's answer is still on its way to the dialler."""
        self.closed_at = now
        self.arrival = [now, now]
        """When the last body under way to this end arrives: nothing may overtake it."""
        self.blocked_since: list[float | None] = [None, None]
        """Since when nothing gets through to this end."""
        self.held: list[list[Received]] = [[], []]
        self.frames = [0, 0]


class Rule:
    """Nothing gets from one group of nodes to another."""

    __slots__ = ("since", "sources", "targets")

    def __init__(self, sources: list[int], targets: list[int], since: float) -> None:
        self.sources = dict.fromkeys(sources)
        self.targets = dict.fromkeys(targets)
        self.since = since


class Wire:
    """All links of a world."""

    def __init__(self, world: World, network: Network, seed: int, rng: random.Random) -> None:
        self.network = network
        self._world = world
        self._seed = seed * 0x9E3779B97F4A7C15 & _MASK
        self._random = rng.random
        self._jitter = network.jitter
        self._rules: list[Rule] = []
        self.loss = network.loss
        self.loss_vanishes = network.loss_vanishes
        self.links_open = 0
        self.counters = {
            "dropped_no_link": 0,
            "dropped_full": 0,
            "lost": 0,
            "late": 0,
            "duplicated": 0,
            "links_opened": 0,
            "links_timed_out": 0,
            "dials": 0,
            "dials_failed": 0,
        }

    # --- bodies -----------------------------------------------------------------------------------------------

    def latency_s(self, a: int, b: int) -> float:
        """The pair's one-way delay: the same for every link between the two, in both directions, in any order."""
        low, high = (a, b) if a < b else (b, a)
        x = (self._seed ^ (low * 0xBF58476D1CE4E5B9 + high * 0x94D049BB133111EB)) & _MASK
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
        least, most = self.network.latency_s
        return least + (most - least) * ((x ^ x >> 31) / 2.0**64)

    def send(self, process: Process, effect: Send, received: Received) -> bool:
        """Carry one body to ``effect.peer``, where it is seen as ``received``.

        Returns:
            Whether the sender's shell could take it; what is lost on the way is nobody's knowledge.
        """
        entry = process.links.get(effect.peer)
        if entry is None:
            self.counters["dropped_no_link"] += 1
            return False
        link, end = entry
        link.frames[end] += 1
        process.frames_sent += 1
        process.payload_bytes_sent += len(received.body)
        if link.blocked_since[end] is not None:
            if len(link.held[end]) >= HELD_MAX:
                self.counters["dropped_full"] += 1
                return False
            link.held[end].append(received)
            return True
        world = self._world
        delay_s = link.latency_s * (1.0 + self._jitter * self._random())
        if self.loss > 0.0 and self._random() < self.loss:
            if self.loss_vanishes:
                self.counters["lost"] += 1
                return True
            self.counters["late"] += 1
            delay_s += self._retransmission_s(link.latency_s)
        at = world.now + delay_s
        network = self.network
        if network.reorders > 0.0 and self._random() < network.reorders:
            at += link.latency_s * self._random()
        else:
            at = max(at, link.arrival[end])
            link.arrival[end] = at
        world.order += 1
        heapq.heappush(world.queue, (at, world.order, ARRIVE, link, end, received))
        if network.duplicates > 0.0 and self._random() < network.duplicates:
            self.counters["duplicated"] += 1
            world.order += 1
            heapq.heappush(world.queue, (at + link.latency_s, world.order, ARRIVE, link, end, received))
        return True

    def _retransmission_s(self, latency_s: float) -> float:
        timeout_s = max(RTO_S, 4 * latency_s)
        total_s = timeout_s
        for _ in range(_RTO_DOUBLINGS_MAX):
            if self._random() >= self.loss:
                break
            timeout_s *= 2
            total_s += timeout_s
        return total_s

    # --- dials ------------------------------------------------------------------------------------------------

    def dial(self, process: Process, peer: NodeId) -> None:
        """A core asks for a link; like the shell's dialler this runs few at once, at a limited rate."""
        if peer in process.dialling:
            return
        process.dialling[peer] = None
        process.dial_queue.append(peer)
        self._pump(process)

    def _pump(self, process: Process) -> None:
        if not process.running:
            return
        network, now = self.network, self._world.now
        passed_s = now - process.dial_counted_at
        process.dial_allowance = min(network.dials_per_s, process.dial_allowance + passed_s * network.dials_per_s)
        process.dial_counted_at = now
        while process.dial_queue and process.dials_running < network.dials_concurrent_max:
            if process.dial_allowance < 1.0:
                self._world.at(1.0 / network.dials_per_s, self._pump, process)
                return
            process.dial_allowance -= 1.0
            process.dials_running += 1
            self.counters["dials"] += 1
            self._begin(process, process.dial_queue.popleft())

    def _begin(self, process: Process, name: NodeId) -> None:
        if name in process.links:
            self._done(process, name, None)
            return
        peer = self._world.processes.get(name)
        if peer is None or not (peer.running or peer.silent_crash):
            index = -1 if peer is None else peer.index
            self._world.at(2 * self.latency_s(process.index, index), self._refused, process, name)
            return
        handshake_s = (2 * self.network.handshake_round_trips - 1) * self.latency_s(process.index, peer.index)
        if self.loss > 0.0:
            for _ in range(2 * self.network.handshake_round_trips):
                if self._random() < self.loss:
                    handshake_s += self._retransmission_s(0.0)
        self._world.at(handshake_s, self._accept, process, name, self._world.now + self.network.dial_timeout_s)

    def _refused(self, process: Process, name: NodeId) -> None:
        self._done(process, name, DialFailed(name, refused=not self.blocked(process.index, _index(name))))

    def _done(self, process: Process, name: NodeId, event: Event | None) -> None:
        process.dials_running -= 1
        process.dialling.pop(name, None)
        if isinstance(event, DialFailed):
            self.counters["dials_failed"] += 1
        if event is not None:
            self._world.tell(process, event)
        self._pump(process)

    def _accept(self, process: Process, name: NodeId, deadline: float) -> None:
        """The last but one message of the handshake reaches the acceptor, or does not."""
        world = self._world
        peer = world.processes[name]
        if not process.running:
            return
        if not peer.running and not peer.silent_crash:
            self._done(process, name, DialFailed(name, refused=True))
            return
        if not self._reachable(process, peer):
            world.at(min(SYN_S, max(0.0, deadline - world.now)), self._again, process, name, deadline)
            return
        if (entry := process.links.get(name)) is not None:
            old, end = entry
            if old.ends[end] is peer and (old.open[end] or old.pending):
                self._done(process, name, None)  # both dialled, and the other link was first
                return
        if (entry := peer.links.get(process.name)) is not None:
            # The peer has not noticed yet that its link is gone.
            old, end = entry
            self._close(old, 1 - end, LinkLost(process.name, wanted=True))
        link = Link(process, peer, self.latency_s(process.index, peer.index), world.now)
        me, other = process.core.me, peer.core.me
        link.arrival[0] = world.now + link.latency_s
        self._open(link, 1, LinkOpened(process.name, me.incarnation, me.addresses))
        opened = LinkOpened(name, other.incarnation, other.addresses)
        world.at(link.latency_s, self._established, link, opened)

    def _again(self, process: Process, name: NodeId, deadline: float) -> None:
        """Something in between let nothing through; TCP tries again until the dial's time is over."""
        peer = self._world.processes[name]
        if not process.running:
            return
        if self._reachable(process, peer):
            round_trips = 2 * self.network.handshake_round_trips - 1
            self._world.at(
                round_trips * self.latency_s(process.index, peer.index), self._accept, process, name, deadline
            )
        elif self._world.now >= deadline:
            self._done(process, name, DialFailed(name, refused=False))
        else:
            self._world.at(min(SYN_S, max(0.0, deadline - self._world.now)), self._again, process, name, deadline)

    def _reachable(self, process: Process, peer: Process) -> bool:
        deaf = peer.mute_since is not None or process.mute_since is not None
        return not (deaf or self.blocked(process.index, peer.index) or self.blocked(peer.index, process.index))

    def _established(self, link: Link, opened: LinkOpened) -> None:
        """The acceptor's answer is back at the dialler."""
        process, peer = link.ends
        link.pending = False
        if not process.running or not link.open[1]:
            self._remote_closed(link, 1, LinkLost(process.name))
            if process.running:
                self._done(process, peer.name, DialFailed(peer.name, refused=False))
            return
        if (entry := process.links.get(peer.name)) is not None:
            old, end = entry
            self._close(old, 1 - end, LinkLost(peer.name, wanted=True))
        self._open(link, 0, opened)
        self._done(process, peer.name, None)

    def _open(self, link: Link, end: int, opened: LinkOpened) -> None:
        process = link.ends[end]
        link.open[end] = True
        process.links[opened.peer] = (link, 1 - end)
        self.links_open += 1
        self.counters["links_opened"] += end
        self._world.tell(process, opened)
        if self.blocked(link.ends[1 - end].index, process.index):
            link.blocked_since[end] = self._world.now
            self._watch(link, end)

    # --- ends of links ----------------------------------------------------------------------------------------

    def unlink(self, process: Process, peer: NodeId) -> None:
        """The core wants the link closed."""
        entry = process.links.get(peer)
        if entry is not None:
            link, end = entry
            self.part(link, 1 - end, LinkLost(peer, wanted=True), LinkLost(process.name, wanted=True))

    def offer_parting(self, process: Process, peer: NodeId) -> None:
        """The core does not need the link any more: it closes if the peer agrees, as in :mod:`gossip.parting`."""
        entry = process.links.get(peer)
        if entry is not None:
            link, other = entry
            self._world.at(link.latency_s, self._parting_offered, link, other)

    def _parting_offered(self, link: Link, end: int) -> None:
        """End ``end`` reads the offer; whoever is frozen or cut off does not answer, and the link stays."""
        here, there = link.ends[end], link.ends[1 - end]
        able = link.open[end] and here.live and not here.deferred and self._reachable(here, there)
        if able and here.core.spares_link(there.name, self._world.now * here.drift):
            self._world.at(link.latency_s, self._parting_agreed, link, 1 - end)

    def _parting_agreed(self, link: Link, end: int) -> None:
        """End ``end`` reads that the other one spares the link, too."""
        here, there = link.ends[end], link.ends[1 - end]
        if link.open[end] and here.live and not here.deferred and not here.core.needs_link(there.name):
            self.part(link, end, LinkLost(there.name, wanted=True), LinkLost(here.name, wanted=True))

    def part(self, link: Link, end: int, here: LinkLost | None, there: LinkLost) -> None:
        """End ``end`` closes the link; the other end hears of it, behind all that was sent before."""
        self._close(link, end, here)
        other = 1 - end
        if not link.open[other]:
            return
        if link.blocked_since[other] is not None or link.ends[end].mute_since is not None:
            self._watch(link, other)
            return
        at = max(self._world.now + link.latency_s, link.arrival[other])
        self._world.at(at - self._world.now, self._remote_closed, link, other, there)

    def _close(self, link: Link, end: int, lost: LinkLost | None) -> None:
        if not link.open[end]:
            return
        process, peer = link.ends[end], link.ends[1 - end]
        link.open[end] = False
        link.closed_at = self._world.now
        link.held[1 - end].clear()
        self.links_open -= 1
        entry = process.links.get(peer.name)
        if entry is not None and entry[0] is link:
            del process.links[peer.name]
            if lost is not None:
                self._world.tell(process, lost)

    def _remote_closed(self, link: Link, end: int, lost: LinkLost) -> None:
        process = link.ends[end]
        if not link.open[end] or not process.running:
            return
        if process.deferred:
            self._world.defer_close(process, link, end, lost)
        else:
            self._close(link, end, lost)

    def closed_by_peer(self, link: Link, end: int, lost: LinkLost) -> None:
        """A close that waited in a frozen process's inbox is read."""
        self._close(link, end, lost)

    def go(self, process: Process, *, silent: bool, left: bool = False) -> None:
        """The process ended: its kernel resets or closes its links, or nobody says anything any more."""
        for link, other in list(process.links.values()):
            if silent:
                self._close(link, 1 - other, None)
                if link.open[other]:
                    self._watch(link, other)
            else:
                self.part(link, 1 - other, None, LinkLost(process.name, left=left))
        process.dial_queue.clear()

    # --- silence ----------------------------------------------------------------------------------------------

    def muted(self, process: Process) -> None:
        """The process says nothing from now on: each peer's keepalive will notice, unless it speaks again before."""
        for link, other in list(process.links.values()):
            self._watch(link, other)

    def _watch(self, link: Link, end: int) -> None:
        network = self.network
        # The last sign of life was up to one interval ago.
        self._world.at(
            network.keepalive_timeout_s - network.keepalive_interval_s * self._random(), self._look, link, end
        )

    def _silent_since(self, link: Link, end: int) -> float | None:
        other = link.ends[1 - end]
        causes = [link.blocked_since[end], other.mute_since, None if link.open[1 - end] else link.closed_at]
        known = [cause for cause in causes if cause is not None]
        return min(known) if known else None

    def _look(self, link: Link, end: int) -> None:
        process = link.ends[end]
        if not link.open[end] or not process.running:
            return
        since = self._silent_since(link, end)
        if since is None:
            return
        if process.deferred:
            self._world.at(self.network.keepalive_interval_s, self._look, link, end)
            return
        silent_s = self._world.now - since
        least_s = self.network.keepalive_timeout_s - self.network.keepalive_interval_s
        if silent_s < least_s - 1e-9:
            self._world.at(
                least_s - silent_s + self.network.keepalive_interval_s * self._random(), self._look, link, end
            )
            return
        self.counters["links_timed_out"] += 1
        peer = link.ends[1 - end]
        self.part(link, end, LinkLost(peer.name), LinkLost(process.name))

    # --- partitions -------------------------------------------------------------------------------------------

    def blocked(self, source: int, target: int) -> bool:
        """Whether nothing gets from one node to another."""
        return any(source in rule.sources and target in rule.targets for rule in self._rules)

    def block(self, sources: list[int], targets: list[int]) -> None:
        """From now on nothing gets from ``sources`` to ``targets``."""
        rule = Rule(sources, targets, self._world.now)
        self._rules.append(rule)
        for process in self._world.running_of(sources):
            for link, end in process.links.values():
                if link.blocked_since[end] is None and link.ends[end].index in rule.targets:
                    link.blocked_since[end] = self._world.now
                    if link.open[end]:
                        self._watch(link, end)

    def unblock_all(self) -> None:
        """Everything gets through again; what was held arrives after its retransmission."""
        rules, self._rules = self._rules, []
        sources = sorted({index for rule in rules for index in rule.sources})
        for process in self._world.running_of(sources):
            for link, end in list(process.links.values()):
                link.blocked_since[end] = None
                held, link.held[end] = link.held[end], []
                at = max(self._world.now + RTO_S * self._random() + link.latency_s, link.arrival[end])
                link.arrival[end] = at
                for received in held:
                    self._world.order += 1
                    heapq.heappush(self._world.queue, (at, self._world.order, ARRIVE, link, end, received))


def _index(name: NodeId) -> int:
    digits = name.lstrip("n")
    return int(digits) if digits.isdigit() else -1
