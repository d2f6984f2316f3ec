"""The overlay: which nodes this one keeps links to, as HyParView (Leitão, Pereira, Rodrigues, DSN 2007).

A node has a small *active view*: neighbours, to each of which there is a link, and who hold the node in their active
view in turn.  Broadcast and heartbeats run over it.  Behind it stands a larger *passive view* of replacements
(:mod:`gossip.contacts`), renewed by *shuffles*: samples of views that are exchanged at the end of a random walk.
A newcomer sends JOIN to a contact, whose random walks spread word of it.  A lost neighbour is replaced from the
passive view; the request has priority when the node has nobody else.

What deviates from the paper, and why:

- *Three sizes.*  A node looks for ``active_view`` neighbours and accepts up to ``active_view_max``, so that a
  request seldom costs somebody else a neighbour.  With so few nodes that all fit, everybody is a neighbour.
- *Nobody is pushed out into nothing.*  A full node that has to accept sends its victim DISCONNECT with the newcomer as
  the one to ask instead: the edge (u, v) becomes (u, w), (w, v).  Degrees stay and the graph stays one, where
  bulk joins otherwise make islands.
- *Both or neither.*  A link is active when a request was accepted; a side that learns that the other does not
  agree says DISCONNECT, and every shuffle repeats the claim (KEEP), so that lost envelopes cannot leave half an edge.
- *Random walks go over active links only* and shuffle replies return along the walk's path: to answer the origin
  directly would cost a TLS handshake for a few hundred bytes.
- *The member table backs the views* (cold views do not survive a mass failure), and the first shuffles come
  fast: after 1, 2, 4 ... 60 s.
- *Islands cannot last.*  At rates that are constant in the whole network (after Uber's ringpop) nodes dial the dead,
  for ever, and exchange a neighbour for a random member; a member that returns from the dead is now and then asked too.
  Two halves that were split, or two networks that never met, thus grow together without anybody noticing the gap.
- *Nearer neighbours* (after X-BOT, SRDS 2009, with two nodes in place of four, as sizes have slack): where round trips
  are known the furthest neighbour is exchanged for a nearer node, but some always stay random.

Links outside the active view (probes, messages on demand, those that others opened) are kept while they are used and
closed after ``idle_link_s``.  Members that cannot be dialled are handed to membership as doubtful.
"""

# core: no I/O

from __future__ import annotations

import enum
import random
from collections import deque
from dataclasses import dataclass
from math import inf
from typing import Final

from transport.types import Address, NodeId
from transport.wire import Kind

from .config import GossipConfig
from .contacts import Contacts
from .events import (
    Dial,
    DialFailed,
    Doubt,
    Effect,
    Event,
    LinkKept,
    LinkLost,
    LinkOpened,
    LinkUsed,
    LinkWanted,
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
    UnlinkReason,
)
from .hyparview_codec import (
    Body,
    Disconnect,
    ForwardJoin,
    Join,
    Neighbor,
    Peer,
    Priority,
    Reply,
    Shuffle,
    ShuffleReply,
    decode,
    encode,
)
from .members import MemberTable, is_gone

#: A dial that takes longer is probably for nothing, and another is made beside it.
_SLOW_DIAL_S: Final = 1.0
#: The shell gives every dial a result well before this; then it is forgotten.
_LOST_DIAL_S: Final = 60.0
#: How long a newcomer waits for what its JOIN brings before it dials others itself.
_JOIN_PATIENCE_S: Final = 0.5
#: The longest random wait before a lost neighbour is replaced: in need, and when there are enough for now.
_REPAIR_S: Final = 0.1
_REPAIR_LAZY_S: Final = 1.0
#: Refusals in a row after which a node with few neighbours asks with priority.
_REFUSALS_MAX: Final = 3
#: How long a link that carried nothing but gossip is kept when it is no neighbour's.
_UNUSED_LINK_S: Final = 5.0
#: How long a node that one side does not admit is not dialled again.
_VETO_S: Final = 60.0
#: Round trips remembered; the oldest measurement is forgotten first.
_RTTS_MAX: Final = 256


class _Why(enum.Enum):
    """What a dial or a request is for."""

    FILL = enum.auto()
    """Neighbours are missing."""
    OFFER = enum.auto()
    """A newcomer's walk ended here: be its neighbour if there is room."""
    SWAP = enum.auto()
    """It is nearer than the furthest neighbour."""
    MIX = enum.auto()
    """A random member, so that islands cannot last."""
    BRIDGE = enum.auto()
    """Dead or unknown to the table: perhaps the other side of a split."""
    DATA = enum.auto()
    """The layer above has something for it."""


@dataclass(slots=True)
class _Attempt:
    """A dial or a request under way."""

    why: _Why
    since: float


@dataclass(slots=True)
class _Link:
    used_at: float
    """When it last carried something for the layer above, or was opened."""
    keep_until: float
    joined: bool = False
    """Whether a JOIN came over it: a second one starts no walks."""


class HyParView:
    """One node's active and passive view.

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
        self._contacts = Contacts(owner, table, config, rng)
        self._now = 0.0
        # Neighbours, each with how many neighbours it last said it has.
        self._active: dict[NodeId, int] = {}
        self._near: dict[NodeId, None] = {}  # the neighbours that were chosen for their nearness
        self._links: dict[NodeId, _Link] = {}
        self._kept: dict[NodeId, None] = {}  # whose links others need (LinkKept); bounded by them
        self._dials: dict[NodeId, _Attempt] = {}
        self._asked: dict[NodeId, _Attempt] = {}
        self._refusals = 0
        self._returned: deque[NodeId] = deque(maxlen=4)
        self._lost_now: deque[NodeId] = deque(maxlen=config.active_view_max)
        self._rtts: dict[NodeId, float] = {}
        self._shuffled: list[NodeId] = []
        self._shuffle_s = config.shuffle_interval_s_min
        self._optimize_at = 0.0
        self._tick_token = self._shuffle_token = self._wake_token = -1
        self._wake_at = inf
        self._next_token = 0
        self._effects: list[Effect] = []
        self.counters = {
            "dials": 0,
            "dials_failed": 0,
            "heal_dials": 0,
            "candidates_refused": 0,
            "neighbors_up": 0,
            "neighbors_down": 0,
            "neighbors_evicted": 0,
            "requests_refused": 0,
            "requests_unanswered": 0,
            "walks": 0,
            "shuffles": 0,
            "mixes": 0,
            "swaps": 0,
            "links_idle": 0,
            "overlay_disagreements": 0,
        }

    @property
    def neighbors(self) -> tuple[NodeId, ...]:
        """The active view."""
        return tuple(self._active)

    @property
    def passive(self) -> list[NodeId]:
        """The passive view."""
        return self._contacts.passive

    @property
    def target(self) -> int:
        """How many neighbours to look for: all others if they fit, else ``active_view``."""
        others = self._contacts.living - 1
        return others if others <= self._most else min(self._config.active_view, self._most)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event and return the dials, sends, timers and changes of the active view that it leads to.

        Raises:
            RemoteProtocolError: A received body is not allowed; nothing changed.
        """
        self._now = now
        match event:
            case Received():
                self._received(event)
            case TimerFired():
                self._timer(event.token)
            case LinkOpened():
                self._opened(event)
            case LinkLost():
                self._lost(event)
            case DialFailed():
                self._dial_failed(event)
            case LinkWanted():
                self._wanted(event.peer)
            case LinkKept():
                if event.kept:
                    self._kept[event.peer] = None
                else:
                    self._kept.pop(event.peer, None)
            case LinkUsed():
                self._used(event.peer)
            case RttMeasured():
                self._rtts.pop(event.peer, None)
                self._rtts[event.peer] = event.rtt_s
                if len(self._rtts) > _RTTS_MAX:
                    del self._rtts[next(iter(self._rtts))]
            case PeerFound():
                if event.node_id != self._owner and event.addresses:
                    self._contacts.found(event.node_id, event.addresses, now)
                    self.counters["candidates_refused"] = self._contacts.refused
                    self._work()
            case Started():
                self._optimize_at = now + self._config.optimize_interval_s * self._rng.uniform(0.5, 1.5)
                self._tick_token = self._timer_in(self._config.heal_interval_s * self._rng.uniform(0.5, 1.5))
                self._schedule_shuffle()
            case _:
                pass
        effects, self._effects = self._effects, []
        return effects

    def member_changed(self, before: Member | None, after: Member) -> list[Effect]:
        """The table changed; the router calls this for every :class:`~gossip.events.MemberChanged`."""
        name = after.node_id
        if name == self._owner:
            return []
        if is_gone(after.state):
            self._contacts.drop(name)
            if name in self._active:
                self._remove(name)
                if after.state is MemberState.DEAD:
                    # Its link only looks open.  Should it live after all, it links again and refutes.
                    self._effects.append(Unlink(name, "the network holds that this node is dead", UnlinkReason.DEAD))
                self._wake_for_repair()
        else:
            if before is not None and is_gone(before.state):
                self._contacts.reached(name)
                if self._rng.random() < self._config.heal_nodes / self._contacts.living:
                    self._returned.append(name)
            if len(self._active) < self.target:
                self._wake_for_repair()
        effects, self._effects = self._effects, []
        return effects

    # --- links ------------------------------------------------------------------------------------------------

    def _opened(self, event: LinkOpened) -> None:
        peer = event.peer
        dial = self._dials.pop(peer, None)
        # Nobody used it yet: what it was opened for, a probe or a request, is over in moments.
        self._links[peer] = _Link(self._now, self._now + _UNUSED_LINK_S)
        self._contacts.reached(peer)
        if len(self._links) > self._config.links_max:
            self._close_idlest()
        if not self._active and not self._asked:
            self._asked[peer] = _Attempt(_Why.FILL, self._now)
            self._send(peer, Join())
            self._wake(_JOIN_PATIENCE_S * self._rng.uniform(1.0, 2.0))
        elif dial is not None and dial.why is not _Why.DATA:
            self._consider(peer, dial.why)

    def _lost(self, event: LinkLost) -> None:
        peer = event.peer
        if self._links.pop(peer, None) is None:
            return
        self._asked.pop(peer, None)
        if peer in self._active:
            self._remove(peer)
            member = self._table.get(peer)
            if not event.left and member is not None and not is_gone(member.state):
                if event.wanted:
                    self._contacts.prefer(Peer(peer))
                else:
                    # Whatever we need: the dial's result is what membership wants to know.
                    self._lost_now.append(peer)
                    self._wake(self._rng.uniform(0.0, _REPAIR_S))
        if event.left:
            self._contacts.drop(peer)
        if event.vetoed:
            self._contacts.postpone(peer, self._now + _VETO_S)
        self._wake_for_repair()

    def _dial_failed(self, event: DialFailed) -> None:
        if self._dials.pop(event.peer, None) is None:
            return
        self.counters["dials_failed"] += 1
        failures = self._contacts.failed(event.peer, self._now)
        member = self._table.get(event.peer)
        if member is not None and not is_gone(member.state) and event.peer not in self._links:
            # A refusal says that nobody listens there.  And after a mass failure there is no time to ask thrice.
            enough = event.refused or len(self._active) < self._config.active_view_min
            if (enough or failures >= self._config.dial_failures_doubt) and self._contacts.may_doubt(
                event.peer, self._now
            ):
                self._effects.append(Doubt(event.peer))
        self._work()

    def _wanted(self, peer: NodeId) -> None:
        if peer in self._links:
            self._used(peer)
        elif peer != self._owner and not self._contacts.in_backoff(peer, self._now):
            self._dial(peer, _Why.DATA)

    def _dial(self, peer: NodeId, why: _Why, hints: tuple[Address, ...] = ()) -> bool:
        """Dial ``peer`` unless that is under way, impossible, or one link too many; whether it was done."""
        if peer in self._dials:
            return False
        addresses = self._contacts.addresses(peer) or hints
        crowded = len(self._links) + len(self._dials) >= self._config.links_max and not self._close_idlest()
        if not addresses or crowded:
            return False
        self._dials[peer] = _Attempt(why, self._now)
        self.counters["dials"] += 1
        self._effects.append(Dial(peer, addresses[: self._config.addresses_max]))
        return True

    def _close_idlest(self) -> bool:
        """Close the link outside the active view that was unused for longest; whether there was one."""
        spare = [peer for peer in self._links if not self.is_busy(peer)]
        if not spare:
            return False
        self._unlink(min(spare, key=lambda peer: self._links[peer].used_at))
        return True

    def _unlink(self, peer: NodeId) -> None:
        self._links[peer].keep_until = self._now + _UNUSED_LINK_S  # not again before the peer could answer
        self.counters["links_idle"] += 1
        self._effects.append(Unlink(peer, "not needed", UnlinkReason.IDLE))

    def _used(self, peer: NodeId) -> None:
        if (link := self._links.get(peer)) is not None:
            link.used_at = self._now
            link.keep_until = self._now + self._config.idle_link_s

    def is_busy(self, peer: NodeId) -> bool:
        """Whether ``peer`` is a neighbour, may become one, or its link must be kept."""
        return peer in self._active or peer in self._asked or peer in self._kept

    def is_spare(self, peer: NodeId, now: float) -> bool:
        """Whether the link to ``peer`` was idle for so long that it may be closed."""
        link = self._links.get(peer)
        return link is not None and not self.is_busy(peer) and link.keep_until <= now

    # --- the active view --------------------------------------------------------------------------------------

    @property
    def _most(self) -> int:
        return min(self._config.active_view_max, self._config.links_max)

    def _consider(self, peer: NodeId, why: _Why) -> None:
        """There is a link to ``peer``: ask it to be a neighbour if the reason still holds."""
        if peer in self._active or peer in self._asked:
            return
        degree = len(self._active) + len(self._asked)
        priority = Priority.LOW
        match why:
            case _Why.FILL:
                if degree >= max(self.target, 1):
                    return
                refused = self._refusals >= _REFUSALS_MAX and degree < self._config.active_view_min
                priority = Priority.HIGH if not self._active or refused else priority
            case _Why.OFFER:
                if degree >= self._most:
                    return
            case _Why.BRIDGE:
                priority = Priority.HIGH
            case _:
                pass
        self._asked[peer] = _Attempt(why, self._now)
        self._send(peer, Neighbor(priority, len(self._active)))
        self._wake(self._config.neighbor_timeout_s)

    def _add(self, peer: NodeId, degree: int) -> None:
        self._active[peer] = degree
        self._refusals = 0
        self._contacts.drop(peer)
        self.counters["neighbors_up"] += 1
        self._effects.append(NeighborUp(peer))

    def _remove(self, peer: NodeId) -> None:
        del self._active[peer]
        self._near.pop(peer, None)
        self.counters["neighbors_down"] += 1
        self._effects.append(NeighborDown(peer))
        if not self._active:
            self._shuffle_s = self._config.shuffle_interval_s_min  # what we knew of the network is out of date
        if (link := self._links.get(peer)) is not None:
            link.keep_until = max(link.keep_until, self._now + _UNUSED_LINK_S)

    def _part(self, peer: NodeId, instead: NodeId | None = None) -> None:
        """Give up a neighbour, which may ask ``instead``."""
        named = None if instead is None else Peer(instead, self._contacts.addresses(instead))
        self._send(peer, Disconnect(named))
        self._remove(peer)
        self._contacts.remember([Peer(peer)], self._active)

    def _make_room(self, newcomer: NodeId) -> None:
        """Send away a neighbour if there are too many: to the newcomer, so that the graph stays one."""
        if len(self._active) > self._most:
            self.counters["neighbors_evicted"] += 1
            self._part(self._rng.choice([peer for peer in self._active if peer != newcomer]), newcomer)

    def _accept(self, peer: NodeId, degree: int) -> None:
        asked = self._asked.pop(peer, None)
        self._add(peer, degree)
        self._settle(peer, _Why.FILL if asked is None else asked.why)

    def _settle(self, peer: NodeId, why: _Why) -> None:
        """``peer`` is a new neighbour: who goes for it?"""
        if why is _Why.SWAP and (furthest := self._furthest(peer)) is not None:
            self.counters["swaps"] += 1
            self._near[peer] = None
            self._part(furthest)
        elif why is _Why.MIX and len(self._active) > self._config.active_view:
            self._part(self._rng.choice([other for other in self._active if other != peer]))
        else:
            self._make_room(peer)

    # --- what neighbours say ----------------------------------------------------------------------------------

    def _send(self, peer: NodeId, body: Body) -> None:
        self._effects.append(Send(peer, encode(body), kind=Kind.OVERLAY))

    def _received(self, event: Received) -> None:
        link = self._links.get(event.peer)
        body = decode(event.body)
        if link is None:
            return
        match body:
            case Join():
                self._join(event.peer, link)
            case ForwardJoin():
                if self._agrees(event.peer):
                    self._walk_join(event.peer, body)
            case Neighbor():
                self._requested(event.peer, body)
            case Reply():
                self._replied(event.peer, body)
            case Disconnect():
                self._disconnected(event.peer, body)
            case Shuffle():
                if body.path[-1] == event.peer and self._agrees(event.peer):
                    self._walk_shuffle(event.peer, body)
            case ShuffleReply():
                self._shuffle_replied(body)
            case _:
                pass  # of a later version

    def _agrees(self, peer: NodeId) -> bool:
        """Whether the sender of a walk is a neighbour here too; if not, and no request is under way, it is told."""
        if peer in self._active:
            return True
        if peer not in self._asked:
            self.counters["overlay_disagreements"] += 1
            self._send(peer, Disconnect())
        return False

    def _join(self, peer: NodeId, link: _Link) -> None:
        self._requested(peer, Neighbor(Priority.HIGH, 0))
        if link.joined:
            return
        link.joined = True
        newcomer = Peer(peer, self._contacts.addresses(peer))
        others = [other for other in self._active if other != peer]
        for other in self._rng.sample(others, min(len(others), self._config.join_walks)):
            self.counters["walks"] += 1
            self._send(other, ForwardJoin(self._config.active_walk, newcomer))

    def _walk_join(self, sender: NodeId, body: ForwardJoin) -> None:
        name = body.newcomer.node_id
        if name == self._owner:
            return
        onward = [peer for peer in self._active if peer not in (sender, name)]
        if body.ttl > 0 and onward:
            if body.ttl == self._config.passive_walk:
                self._contacts.remember([body.newcomer], self._busy())
            self._send(self._rng.choice(onward), ForwardJoin(body.ttl - 1, body.newcomer))
        elif name in self._links:
            self._consider(name, _Why.OFFER)
        elif len(self._active) < self._most:
            self._dial(name, _Why.OFFER, body.newcomer.addresses)
        else:
            self._contacts.remember([body.newcomer], self._busy())

    def _requested(self, peer: NodeId, body: Neighbor) -> None:
        if peer in self._active:
            self._active[peer] = body.degree
            if body.priority is not Priority.KEEP:
                self._send(peer, Reply(accepted=True, degree=len(self._active)))
            return
        accepted = body.priority is Priority.HIGH or len(self._active) < self._most
        self._send(peer, Reply(accepted, len(self._active) + accepted))
        if accepted:
            self._accept(peer, body.degree)

    def _replied(self, peer: NodeId, body: Reply) -> None:
        asked = self._asked.pop(peer, None)
        if peer in self._active:
            if body.accepted:
                self._active[peer] = body.degree
        elif not body.accepted:
            self.counters["requests_refused"] += 1
            self._refusals += 1
            self._contacts.postpone(peer, self._now + self._config.neighbor_timeout_s)
            self._work()
        elif asked is None or (asked.why in (_Why.FILL, _Why.OFFER) and len(self._active) >= self._most):
            self._send(peer, Disconnect())  # too late: meanwhile others came
        else:
            self._add(peer, body.degree)
            self._settle(peer, asked.why)
            self._wake_for_repair()

    def _disconnected(self, peer: NodeId, body: Disconnect) -> None:
        if peer not in self._active:
            return
        self._remove(peer)
        self._contacts.remember([Peer(peer)], self._active)
        self._contacts.postpone(peer, self._now + self._config.neighbor_timeout_s)
        if body.instead is not None and body.instead.node_id not in self._active:
            self._contacts.prefer(body.instead)
        self._wake_for_repair()

    # --- shuffles ---------------------------------------------------------------------------------------------

    def _schedule_shuffle(self) -> None:
        self._shuffle_token = self._timer_in(self._shuffle_s * self._rng.uniform(0.75, 1.25))

    def _shuffle(self) -> None:
        """Start a shuffle, and tell all neighbours that they are."""
        if self._active:
            active = list(self._active)
            peer = self._rng.choice(active)
            others = [other for other in active if other != peer]
            sample = self._rng.sample(others, min(len(others), self._config.shuffle_active))
            self._shuffled = self._contacts.sample(self._config.shuffle_passive, self._active)
            told = self._contacts.describe([*sample, *self._shuffled])
            self.counters["shuffles"] += 1
            self._send(peer, Shuffle(self._config.active_walk, (self._owner,), told))
            for neighbor in active:
                self._send(neighbor, Neighbor(Priority.KEEP, len(active)))
            self._trim()
            self._shuffle_s = min(2 * self._shuffle_s, self._config.shuffle_interval_s_max)
        self._schedule_shuffle()

    def _trim(self) -> None:
        """Give up a neighbour that, like us, has more than it looks for: each costs both sides heartbeats."""
        rich = [peer for peer, degree in self._active.items() if degree > self._config.active_view]
        if rich and len(self._active) > max(self.target, self._config.active_view):
            self._part(self._rng.choice(rich))

    def _walk_shuffle(self, sender: NodeId, body: Shuffle) -> None:
        onward = [peer for peer in self._active if peer not in body.path]
        if body.ttl > 0 and onward and len(body.path) <= self._config.active_walk:
            walked = (*body.path, self._owner)
            self._send(self._rng.choice(onward), Shuffle(body.ttl - 1, walked, body.peers))
            return
        given = self._contacts.sample(len(body.peers), body.path)
        self._send(sender, ShuffleReply(body.path[:-1], self._contacts.describe(given)))
        self._contacts.remember((*body.peers, Peer(body.path[0])), self._busy(), given)

    def _shuffle_replied(self, body: ShuffleReply) -> None:
        if body.path:
            if body.path[-1] in self._links:
                self._send(body.path[-1], ShuffleReply(body.path[:-1], body.peers))
        elif self._shuffled:
            self._contacts.remember(body.peers, self._busy(), self._shuffled)
            self._shuffled = []

    # --- repair -----------------------------------------------------------------------------------------------

    def _busy(self) -> dict[NodeId, object]:
        """Neighbours and those that may become it."""
        return {**self._active, **self._asked, **self._dials}

    def _wake_for_repair(self) -> None:
        missing = self.target - len(self._active)
        if missing > 0 or not self._active:
            urgent = len(self._active) < min(self._config.active_view_min, max(self.target, 1))
            self._wake(self._rng.uniform(0.0, _REPAIR_S if urgent else _REPAIR_LAZY_S))

    def _work(self) -> None:
        """All that is due: requests without an answer, candidates to dial, neighbours to replace."""
        for peer, asked in list(self._asked.items()):
            if asked.since + self._config.neighbor_timeout_s <= self._now:
                del self._asked[peer]
                self.counters["requests_unanswered"] += 1
                self._contacts.postpone(peer, self._now + self._config.dial_backoff_s_max)
                self._send(peer, Disconnect())  # should it have accepted
        while self._lost_now:
            if (peer := self._lost_now.popleft()) not in self._links:
                self._dial(peer, _Why.OFFER)
        ready, following = self._contacts.due({**self._links, **self._dials}, self._now)
        for peer in ready:
            if len(self._dials) < 4 * self._config.repair_dials:
                self._dial(peer, _Why.BRIDGE)
        self._wake(following - self._now)
        self._repair()
        if self._asked:
            oldest = min(asked.since for asked in self._asked.values())
            self._wake(oldest + self._config.neighbor_timeout_s - self._now)

    def _repair(self) -> None:
        filling = [dial for dial in self._dials.values() if dial.why is not _Why.DATA]
        fresh = [dial.since for dial in filling if dial.since + _SLOW_DIAL_S > self._now]
        goal = max(self.target, 1)
        need = goal - len(self._active) - len(self._asked) - len(fresh)
        allowed = min(self._config.repair_dials - len(fresh), 4 * self._config.repair_dials - len(filling))
        while need > 0:
            peer = self._contacts.choose(self._busy(), self._now, alone=not self._active)
            if peer is None:
                break  # the next tick looks again
            if peer in self._links:
                self._consider(peer, _Why.FILL)
            elif allowed <= 0 or not self._dial(peer, _Why.FILL):
                break
            else:
                fresh.append(self._now)
                allowed -= 1
            need -= 1
        if fresh and len(self._active) < goal:
            self._wake(min(fresh) + _SLOW_DIAL_S - self._now)

    # --- upkeep -----------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._tick_token = self._timer_in(self._config.heal_interval_s * self._rng.uniform(0.5, 1.5))
        for peer, dial in list(self._dials.items()):
            if dial.since + _LOST_DIAL_S <= self._now:
                del self._dials[peer]
        for peer in self._links:
            if self.is_spare(peer, self._now):
                self._unlink(peer)
        self._heal()
        if self._now >= self._optimize_at:
            self._optimize_at = self._now + self._config.optimize_interval_s * self._rng.uniform(0.75, 1.25)
            self._optimize()
        self._work()

    def _heal(self) -> None:
        """Contacts that join what was split: a dead member, a random one, and one that returned."""
        share = self._config.heal_nodes / self._contacts.living
        if self._rng.random() < share:
            lost = self._contacts.random_gone({**self._links, **self._dials})
            if lost is not None and self._dial(lost, _Why.BRIDGE):
                self.counters["heal_dials"] += 1
        if self._contacts.living - 1 <= self._most:
            return  # everybody is, or is about to be, a neighbour
        if self._rng.random() < share and (other := self._contacts.random_member(self._busy())) is not None:
            self._mix(other)
        if self._returned:
            self._mix(self._returned.popleft())

    def _mix(self, peer: NodeId) -> None:
        if peer not in self._active:
            self.counters["mixes"] += 1
            self._approach(peer, _Why.MIX)

    def _approach(self, peer: NodeId, why: _Why) -> None:
        if peer in self._links:
            self._consider(peer, why)
        elif not self._contacts.in_backoff(peer, self._now):
            self._dial(peer, why)

    def _optimize(self) -> None:
        """Exchange the furthest neighbour for one that is clearly nearer."""
        furthest = self._furthest(None)
        if furthest is None or len(self._active) < self.target:
            return
        bound_s = self._rtts[furthest] * self._config.optimize_gain
        busy = self._busy()
        nearer = [
            (rtt_s, peer)
            for peer, rtt_s in self._rtts.items()
            if rtt_s < bound_s and peer not in busy and self._is_alive(peer)
        ]
        if nearer:
            self._approach(min(nearer)[1], _Why.SWAP)

    def _furthest(self, newcomer: NodeId | None) -> NodeId | None:
        """The neighbour to give up for a nearer one; a random one only while enough random ones stay."""
        spare_random = len(self._active) - len(self._near) - (newcomer is not None) > self._config.random_neighbors
        known = [
            (self._rtts[peer], peer)
            for peer in self._active
            if peer != newcomer and peer in self._rtts and (spare_random or peer in self._near)
        ]
        return max(known)[1] if known else None

    def _is_alive(self, peer: NodeId) -> bool:
        member = self._table.get(peer)
        return member is not None and member.state is MemberState.ALIVE

    # --- timers -----------------------------------------------------------------------------------------------

    def _timer(self, token: int) -> None:
        if token == self._wake_token:
            self._wake_at = inf
            self._work()
        elif token == self._tick_token:
            self._tick()
        elif token == self._shuffle_token:
            self._shuffle()

    def _wake(self, delay_s: float) -> None:
        """Do what is due after ``delay_s`` at the latest (infinite: nothing is)."""
        at = self._now + max(delay_s, 0.0)
        if at < self._wake_at:
            self._wake_at = at
            self._wake_token = self._timer_in(at - self._now)

    def _timer_in(self, delay_s: float) -> int:
        self._next_token += 1
        self._effects.append(SetTimer(self._next_token, delay_s))
        return self._next_token
