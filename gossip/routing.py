"""Ways to nodes that cannot be dialled: found when they are needed, hop by hop, as AODV (RFC 3561).

A node behind a NAT or a one-way firewall has links all the same: those that it dialled.  Whoever cannot dial it asks
its own neighbours, they ask theirs, and whoever has a link to the wanted node passes the question on to it.  Only
that node answers; the answer returns along the question's path, and with the two passing by each node on the path
learns the next hop in both directions.  Then envelopes follow those hops.

- *On demand, because idle nodes are quiet.*  To flood who is linked to whom would cost a node of a thousand some
  2 KB/s for ever (docs/rfd/0005-relay.md); most networks never need it.  A question goes out in rings: to the
  neighbours' links, then two hops further, then as far as a path may be.  What was learnt is kept for a while.
- *The target says who its neighbours are,* so that a long path can be cut short: one of them can mostly be dialled,
  and a way through one node is found again through it.
- *Loops die.*  Each hop takes one off the envelope's ttl and nobody sends back where an envelope came from; questions
  carry their path and are taken once.
- *Several ways are kept*, and one is given up when its link is gone, when its hop says so (LOST), or when the layer
  above says that nothing arrives.
- *A relay is not anybody's servant.*  It passes on what comes from the linked peer itself, or from a node to which
  a way through that peer was learnt; at most so many questions, envelopes and bytes a second of one peer.  A relay
  can still lie about who says what, so what matters is sealed from end to end above.
"""

# core: no I/O

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

from transport.types import NodeId
from transport.wire import Envelope, Kind

from .config import GossipConfig
from .events import (
    Effect,
    Event,
    Forward,
    LinkLost,
    LinkOpened,
    LinkWanted,
    Member,
    MemberState,
    NeighborDown,
    NeighborUp,
    Received,
    Relayed,
    RouteChanged,
    RouteSuspected,
    RouteWanted,
    Send,
    SetTimer,
    TimerFired,
    Transit,
)
from .members import MemberTable, is_gone
from .routing_codec import NEIGHBORS_MAX, PATH_MAX, Answer, Ask, Body, Lost, decode, encode

#: Ways to one target that are kept, and answers that a target gives to one question.
WAYS_MAX: Final = 4
#: Links beside the neighbours that a question starts on: each costs one envelope.
_MORE_LINKS: Final = 8
#: Questions remembered, so that each is passed on once and only answers to them are taken; the oldest goes first.
_QUESTIONS_MAX: Final = 4096
#: The target's neighbours that are dialled to cut a path short, and how many such dials are remembered.
_GATEWAYS: Final = 2
_SHORTCUTS_MAX: Final = 64
#: With a shorter path than this, through one relay, there is nothing to cut.
_SHORTEST: Final = 2


@dataclass(slots=True)
class _Way:
    """A next hop."""

    hops: int
    until: float


@dataclass(slots=True)
class _Target:
    ways: dict[NodeId, _Way] = field(default_factory=dict)
    gateways: tuple[NodeId, ...] = ()
    """Its neighbours, as it said."""
    answered: bool = False
    """Whether it ever answered, which shows that it lives; else it only asked."""


@dataclass(slots=True)
class _Question:
    target: NodeId
    answers: int = 0


@dataclass(slots=True)
class _Search:
    ring: int = 0
    token: int = -1
    found: bool = False
    failed: bool = False
    """All rings were asked in vain; not again before the timer."""


@dataclass(slots=True)
class _Usage:
    """What one peer had from us in the current second."""

    since: float
    asks: int = 0
    envelopes: int = 0
    bytes: int = 0


class RoutingCore:
    """The ways that one node knows, and what it passes on for others.

    Args:
        owner: This node.
        table: The member table, read only.
        config: Limits and times.
        rng: The only randomness.
    """

    def __init__(self, owner: NodeId, table: MemberTable, config: GossipConfig, rng: random.Random) -> None:
        self._owner = owner
        self._table = table
        self._config = config
        self._rng = rng
        self._now = 0.0
        self._neighbors: dict[NodeId, None] = {}
        self._links: dict[NodeId, _Usage] = {}
        self._targets: dict[NodeId, _Target] = {}
        self._questions: dict[tuple[NodeId, int], _Question] = {}
        self._searches: dict[NodeId, _Search] = {}
        self._by_token: dict[int, NodeId] = {}
        self._shortcuts: dict[NodeId, NodeId] = {}
        self._number = 0
        self._next_token = 0
        self._effects: list[Effect] = []
        self.counters = {
            "route_searches": 0,
            "route_searches_failed": 0,
            "route_asks": 0,
            "route_asks_dropped": 0,
            "route_answers_dropped": 0,
            "relayed_envelopes": 0,
            "relayed_bytes": 0,
            "relay_dropped_ttl": 0,
            "relay_dropped_no_route": 0,
            "relay_dropped_source": 0,
            "relay_dropped_rate": 0,
        }

    @property
    def targets(self) -> int:
        """How many nodes a way is remembered to."""
        return len(self._targets)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event and return the sends, timers and tidings that it leads to.

        Raises:
            RemoteProtocolError: A received body is not allowed; nothing changed.
        """
        self._now = now
        match event:
            case Transit():
                self._transit(event.peer, event.envelope)
            case Received():
                self._received(event.peer, decode(event.body), event.ttl)
            case TimerFired():
                self._timer(event.token)
            case RouteWanted():
                self._wanted(event.target)
            case RouteSuspected():
                self._lost_way(event.target, event.hop)
                self._wanted(event.target)
            case LinkOpened():
                self._opened(event.peer)
            case LinkLost():
                self._link_lost(event.peer)
            case NeighborUp():
                self._neighbors[event.peer] = None
            case NeighborDown():
                self._neighbors.pop(event.peer, None)
            case _:
                pass
        effects, self._effects = self._effects, []
        return effects

    def member_changed(self, after: Member) -> None:
        """The table changed: there is no way to the dead."""
        if is_gone(after.state):
            self._targets.pop(after.node_id, None)
            self._end_search(after.node_id)

    def next_hop(self, target: NodeId, now: float, avoid: NodeId | None = None) -> NodeId | None:
        """Where to send what is for ``target``: to itself if it is linked, else the shortest and freshest way.

        Args:
            target: Whom it is for.
            now: Ways that were not confirmed for too long are forgotten.
            avoid: Not there: it came from there.
        """
        if target in self._links:
            return target
        known = self._targets.get(target)
        if known is None:
            return None
        for hop in [hop for hop, way in known.ways.items() if way.until <= now]:
            del known.ways[hop]
        usable = [(way.hops, -way.until, hop) for hop, way in known.ways.items() if hop != avoid]
        return min(usable)[2] if usable else None

    def is_way(self, target: NodeId, hop: NodeId, now: float) -> bool:
        """Whether ``hop`` still leads to ``target`` as far as is known."""
        known = self._targets.get(target)
        way = None if known is None else known.ways.get(hop)
        return hop in self._links and (hop == target or (way is not None and now < way.until))

    def reaches(self, target: NodeId, now: float) -> bool:
        """Whether ``target`` itself answered not long ago, or a way to it proved good since."""
        known = self._targets.get(target)
        return known is not None and known.answered and self.next_hop(target, now) is not None

    # --- searching --------------------------------------------------------------------------------------------

    def _wanted(self, target: NodeId) -> None:
        search = self._searches.get(target)
        if self.next_hop(target, self._now) is not None:
            self._tell(target)
        elif search is None or search.found:
            self._end_search(target)
            self.counters["route_searches"] += 1
            search = self._searches[target] = _Search()
            known = self._targets.get(target)
            if known is not None:
                self._seek_gateways(target, known.gateways)
            self._ask_ring(target, search)
        elif search.failed:
            self._tell(target)

    def _tell(self, target: NodeId) -> None:
        self._effects.append(RouteChanged(target, self.next_hop(target, self._now) is not None))

    @property
    def _rings(self) -> tuple[int, ...]:
        most = self._config.relay_ttl
        return tuple(dict.fromkeys(min(ring, most) for ring in (1, 3, most)))

    def _ask_ring(self, target: NodeId, search: _Search) -> None:
        others = [peer for peer in self._links if peer not in self._neighbors]
        chosen = [*self._neighbors, *self._rng.sample(others, min(len(others), _MORE_LINKS))]
        known = self._targets.get(target)
        if known is not None:
            chosen += [peer for peer in known.gateways if peer in self._links]
        ttl = self._rings[search.ring]
        self._ask(target, dict.fromkeys(chosen), ttl)
        self._set_timer(target, search, self._config.relay_search_s * ttl * self._rng.uniform(0.9, 1.1))

    def _ask(self, target: NodeId, peers: dict[NodeId, None], ttl: int) -> None:
        # From a random number on, for a node that restarts must not seem to repeat itself.
        self._number = self._number + 1 if self._number else self._rng.getrandbits(40)
        self._note(self._owner, self._number, target)
        for peer in peers:
            self._send(peer, Ask(self._number, target, (self._owner,)), ttl)

    def _set_timer(self, target: NodeId, search: _Search, delay_s: float) -> None:
        self._by_token.pop(search.token, None)
        self._next_token += 1
        search.token = self._next_token
        self._by_token[search.token] = target
        self._effects.append(SetTimer(search.token, delay_s))

    def _timer(self, token: int) -> None:
        target = self._by_token.get(token)
        if target is None:
            return
        search = self._searches[target]
        if search.found or search.failed:
            self._end_search(target)
        elif search.ring + 1 < len(self._rings):
            search.ring += 1
            self._ask_ring(target, search)
        else:
            search.failed = True
            self.counters["route_searches_failed"] += 1
            self._set_timer(target, search, self._config.relay_retry_s * self._rng.uniform(0.75, 1.25))
            self._tell(target)

    def _end_search(self, target: NodeId) -> None:
        search = self._searches.pop(target, None)
        if search is not None:
            self._by_token.pop(search.token, None)

    def _seek_gateways(self, target: NodeId, gateways: tuple[NodeId, ...]) -> None:
        """Have some of the target's neighbours dialled; once linked they are asked for the way."""
        spare = [peer for peer in gateways if peer not in self._links and self._is_alive(peer)]
        for peer in self._rng.sample(spare, min(len(spare), _GATEWAYS)):
            if len(self._shortcuts) >= _SHORTCUTS_MAX:
                del self._shortcuts[next(iter(self._shortcuts))]
            self._shortcuts[peer] = target
            self._effects.append(LinkWanted(peer))

    def _is_alive(self, peer: NodeId) -> bool:
        member = self._table.get(peer)
        return peer != self._owner and member is not None and member.state is MemberState.ALIVE

    # --- what others ask --------------------------------------------------------------------------------------

    def _received(self, peer: NodeId, body: Body | None, ttl: int) -> None:
        if peer not in self._links:
            return
        match body:
            case Ask():
                self._asked(peer, body, ttl)
            case Answer():
                self._answered(peer, body)
            case Lost():
                self._lost_way(body.target, peer)
            case _:
                pass  # of a later version

    def _asked(self, peer: NodeId, ask: Ask, ttl: int) -> None:
        path, target = ask.path, ask.target
        usage = self._usage(peer)
        usage.asks += 1
        lies = path[-1] != peer or self._table.get(path[0]) is None or self._table.get(target) is None
        if lies or self._owner in path or usage.asks > self._config.relay_asks_max:
            self.counters["route_asks_dropped"] += 1
            return
        question = self._questions.get((path[0], ask.number))
        first = question is None
        if question is None:
            question = self._note(path[0], ask.number, target)
        # Should the answer get lost, this lives longer than what the asker believes, so that it is not refused.
        self._learn(path[0], peer, len(path), 2 * self._config.relay_route_s)
        if target == self._owner:
            if question.answers < WAYS_MAX:
                question.answers += 1
                neighbors = tuple(other for other in self._neighbors if other != path[0])[:NEIGHBORS_MAX]
                self._send(peer, Answer(ask.number, target, path, 0, neighbors))
        elif first and ttl > 0 and len(path) < PATH_MAX:
            self._pass_on(Ask(ask.number, target, (*path, self._owner)), ttl - 1)

    def _pass_on(self, ask: Ask, ttl: int) -> None:
        if ask.target in self._links:
            self._send(ask.target, ask, ttl)
        elif ttl > 0:
            for other in self._neighbors:
                if other not in ask.path:
                    self._send(other, ask, ttl)

    def _answered(self, peer: NodeId, answer: Answer) -> None:
        path, target = answer.path, answer.target
        question = self._questions.get((path[0], answer.number))
        if question is None or question.target != target or path[-1] != self._owner or target == self._owner:
            self.counters["route_answers_dropped"] += 1
            return
        known = self._learn(target, peer, answer.hops + 1, self._config.relay_route_s)
        known.gateways, known.answered = answer.neighbors, True
        rest = path[:-1]
        if rest:
            question.answers += 1
            if question.answers <= WAYS_MAX and answer.hops < PATH_MAX:
                self._send(rest[-1], Answer(answer.number, target, rest, answer.hops + 1, answer.neighbors))
            return
        search = self._searches.get(target)
        if search is not None and not search.found:
            search.found, search.failed = True, False
            self._tell(target)
            if answer.hops + 1 > _SHORTEST:
                self._seek_gateways(target, answer.neighbors)

    def _note(self, origin: NodeId, number: int, target: NodeId) -> _Question:
        question = self._questions[origin, number] = _Question(target)
        if len(self._questions) > _QUESTIONS_MAX:
            del self._questions[next(iter(self._questions))]
        return question

    # --- ways -------------------------------------------------------------------------------------------------

    def _learn(self, target: NodeId, hop: NodeId, hops: int, for_s: float) -> _Target:
        """There is a way to ``target``; the longest of too many goes, and the target that was silent longest."""
        known = self._targets.pop(target, None) or _Target()
        self._targets[target] = known
        if len(self._targets) > self._config.relay_routes_max:
            del self._targets[next(iter(self._targets))]
        if hop != target:
            known.ways[hop] = _Way(hops, self._now + for_s)
            if len(known.ways) > WAYS_MAX:
                del known.ways[max((way.hops, other) for other, way in known.ways.items() if other != hop)[1]]
        return known

    def _lost_way(self, target: NodeId, hop: NodeId) -> None:
        known = self._targets.get(target)
        if known is not None and known.ways.pop(hop, None) is not None:
            self._tell(target)

    def _opened(self, peer: NodeId) -> None:
        self._links[peer] = _Usage(self._now)
        if peer in self._targets:
            self._tell(peer)
        target = self._shortcuts.pop(peer, None)
        if target is not None:
            self._ask(target, {peer: None}, 1)

    def _link_lost(self, peer: NodeId) -> None:
        self._links.pop(peer, None)
        for target in list(self._targets):
            if target == peer:
                self._tell(target)
            else:
                self._lost_way(target, peer)

    # --- passing on -------------------------------------------------------------------------------------------

    def _transit(self, peer: NodeId, envelope: Envelope) -> None:
        source = NodeId(envelope.source or peer)
        target = NodeId(envelope.target or self._owner)
        if source != peer and not self._came_that_way(source, peer):
            self.counters["relay_dropped_source"] += 1
        elif target == self._owner:
            self._effects.append(Relayed(source, envelope.body))
        elif envelope.ttl == 0:
            self.counters["relay_dropped_ttl"] += 1
        elif not self._affords(peer, len(envelope.body)):
            self.counters["relay_dropped_rate"] += 1
        elif (hop := self.next_hop(target, self._now, avoid=peer)) is None:
            self.counters["relay_dropped_no_route"] += 1
            self._send(peer, Lost(target))
        else:
            self.counters["relayed_envelopes"] += 1
            self.counters["relayed_bytes"] += len(envelope.body)
            onward = envelope._replace(ttl=envelope.ttl - 1, source=source)
            self._effects.append(Forward(hop, onward))

    def _came_that_way(self, source: NodeId, peer: NodeId) -> bool:
        """Whether ``source`` is known to be reached through ``peer``; if so the way proved good once more."""
        known = self._targets.get(source)
        way = None if known is None else known.ways.get(peer)
        if way is None or way.until <= self._now:
            return False
        way.until = max(way.until, self._now + self._config.relay_route_s)
        return True

    def _usage(self, peer: NodeId) -> _Usage:
        usage = self._links[peer]
        if self._now - usage.since >= 1.0:
            usage = self._links[peer] = _Usage(self._now)
        return usage

    def _affords(self, peer: NodeId, size_bytes: int) -> bool:
        if peer not in self._links:
            return False
        usage = self._usage(peer)
        usage.envelopes += 1
        usage.bytes += size_bytes
        return usage.envelopes <= self._config.relay_envelopes_max and usage.bytes <= self._config.relay_bytes_max

    def _send(self, peer: NodeId, body: Body, ttl: int = 0) -> None:
        self.counters["route_asks"] += isinstance(body, Ask)
        self._effects.append(Send(peer, encode(body), kind=Kind.ROUTE, ttl=ttl))
