"""Multicast groups: a broadcast tree of their own, among their subscribers only.

Each group is one :class:`~gossip.plumtree.PlumtreeCore`, so all that is said there of trees, repair and what a node
missed holds here among subscribers.  Its neighbours are not the overlay's: they are computed from the list of
subscribers (:mod:`gossip.ring`), which the layer above reads off the members' metadata.  Links to them are dialled,
kept while they are neighbours, and dialled again now and then if they end.

Whoever publishes without being subscribed hands the payload to two subscribers, as a neighbour in the tree would.  It
waits for a link if there is none yet, for as long as a broadcast lives.
"""

# core: no I/O

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.types import NodeId
from transport.wire import Kind, pack, unpack_body

from .config import GossipConfig
from .events import (
    BroadcastRequested,
    Deliver,
    Effect,
    Event,
    GroupOpened,
    LinkKept,
    LinkLost,
    LinkOpened,
    LinkWanted,
    Member,
    Missed,
    NeighborDown,
    NeighborUp,
    Originated,
    Received,
    Send,
    SendDropped,
    SetTimer,
    SubscriberChanged,
    TimerFired,
)
from .plumtree import PlumtreeCore
from .ring import Ring

#: Bound of the groups that one node subscribes or publishes to.
GROUPS_MAX: Final = 1024
#: Bound of a group's name, in characters.
NAME_CHARS_MAX: Final = 256
#: Subscribers to whom one that is none hands what it publishes.
ENTRANCES: Final = 2
#: How often missing links to neighbours are asked for.
LINKS_INTERVAL_S: Final = 2.0
#: How long a group to which we only publish keeps its links after the last publication.
PUBLISHER_IDLE_S: Final = 60.0
#: Publications that wait for a first link, of one group; beyond it publishing is refused.
WAITING_MAX: Final = 1024


def encode(group: str, body: bytes) -> bytes:
    """One of Plumtree's bodies, as it is sent within a group."""
    return pack([group, body])


def decode(body: bytes) -> tuple[str, bytes]:
    """The group, and Plumtree's body within it.

    Raises:
        RemoteProtocolError: It is not such a pair.
    """
    fields = unpack_body(body, nodes_max=16)
    if type(fields) is not list or len(fields) < 2 or type(fields[0]) is not str or type(fields[1]) is not bytes:
        raise RemoteProtocolError("group: not a name and a body")
    if not 0 < len(fields[0]) <= NAME_CHARS_MAX:
        raise RemoteProtocolError(f"group: a name of {len(fields[0])} characters")
    return fields[0], fields[1]


@dataclass(slots=True)
class _Group:
    ring: Ring
    tree: PlumtreeCore
    member: bool = False
    neighbors: dict[NodeId, None] = field(default_factory=dict)
    """With whom we should be linked; the tree knows those that are."""
    waiting: deque[tuple[BroadcastRequested, float]] = field(default_factory=deque)
    """What was published before there was a link, and until when it is of use; bounded by WAITING_MAX."""
    idle_at: float = math.inf


class GroupsCore:
    """The groups of one node.

    Args:
        self_member: This node.
        config: Limits and times.
        rng: The only randomness.
    """

    def __init__(self, self_member: Member, config: GossipConfig, rng: random.Random) -> None:
        self._self_member = self_member
        self._owner = self_member.node_id
        self._config = config
        self._rng = rng
        self._groups: dict[str, _Group] = {}
        self._links: dict[NodeId, None] = {}
        self._kept: dict[NodeId, None] = {}
        self._timers: dict[int, tuple[str, int]] = {}
        self._next_token = 0
        self._links_token = -1
        self._effects: list[Effect] = []
        self.counters = {"bodies_of_other_groups": 0, "publications_expired": 0}

    def __len__(self) -> int:
        return len(self._groups)

    def is_open(self, group: str) -> bool:
        """Whether this node subscribes, or published lately, to the group."""
        return group in self._groups

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; events about groups that are not open do nothing.

        Raises:
            RemoteProtocolError: A received body is not allowed; nothing changed.
            LocalProtocolError: A publication, or one group more, is not allowed; nothing changed.
        """
        match event:
            case Received():
                self._received(event, now)
            case TimerFired():
                self._timer(event.token, now)
            case BroadcastRequested():
                self._publish(event, now)
            case GroupOpened():
                self._open(event, now)
            case SubscriberChanged():
                self._subscriber_changed(event, now)
            case LinkOpened():
                self._links[event.peer] = None
                for name, group in self._groups.items():
                    if event.peer in group.neighbors:
                        self._up(name, group, event.peer, now)
            case LinkLost():
                self._links.pop(event.peer, None)
                for name, group in self._groups.items():
                    if event.peer in group.neighbors:
                        self._run(name, group, NeighborDown(event.peer), now)
            case SendDropped():
                name, body = decode(event.send.body)
                if (dropped := self._groups.get(name)) is not None:
                    send = replace(event.send, body=body, kind=Kind.BROADCAST)
                    self._run(name, dropped, SendDropped(send), now)
            case _:
                pass
        effects, self._effects = self._effects, []
        return effects

    # --- opening and closing ----------------------------------------------------------------------------------

    def _open(self, event: GroupOpened, now: float) -> None:
        group = self._groups.get(event.group)
        if group is None:
            if not 0 < len(event.group) <= NAME_CHARS_MAX:
                raise LocalProtocolError(f"a group's name has 1 to {NAME_CHARS_MAX} characters, not {len(event.group)}")
            if len(self._groups) >= GROUPS_MAX:
                raise LocalProtocolError(f"this node has {GROUPS_MAX} groups, and may not have more")
            tree = PlumtreeCore(self._self_member, self._config, self._rng)
            group = self._groups[event.group] = _Group(Ring(event.group), tree)
            for subscriber in event.subscribers:
                group.ring.add(subscriber)
        group.member = event.member
        if event.member:
            group.ring.add(self._owner)
            group.idle_at = math.inf
        else:
            group.ring.discard(self._owner)
            group.idle_at = now + PUBLISHER_IDLE_S
        self._rewire(event.group, group, now)
        if self._links_token < 0:
            self._links_token = self._set_timer(LINKS_INTERVAL_S)

    def _subscriber_changed(self, event: SubscriberChanged, now: float) -> None:
        group = self._groups.get(event.group)
        if group is None or event.node_id == self._owner:
            return
        if event.subscribed:
            group.ring.add(event.node_id)
        else:
            group.ring.discard(event.node_id)
        self._rewire(event.group, group, now)

    def _rewire(self, name: str, group: _Group, now: float) -> None:
        """Subscribers changed: some neighbours may be others now."""
        wanted = group.ring.neighbors(self._owner) if group.member else group.ring.entrances(self._owner, ENTRANCES)
        before, group.neighbors = group.neighbors, dict.fromkeys(wanted)
        for peer in before:
            if peer not in group.neighbors and peer in self._links:
                self._run(name, group, NeighborDown(peer), now)
        self._keep()
        for peer in group.neighbors:
            if peer in before:
                continue
            if peer in self._links:
                self._up(name, group, peer, now)
            else:
                self._effects.append(LinkWanted(peer))

    def _up(self, name: str, group: _Group, peer: NodeId, now: float) -> None:
        self._run(name, group, NeighborUp(peer), now)
        while group.waiting:
            self._run(name, group, group.waiting.popleft()[0], now)

    def _keep(self) -> None:
        """Tell the overlay which links must not be closed as idle."""
        wanted = dict.fromkeys(peer for group in self._groups.values() for peer in group.neighbors)
        self._effects += [LinkKept(peer, kept=True) for peer in wanted if peer not in self._kept]
        self._effects += [LinkKept(peer, kept=False) for peer in self._kept if peer not in wanted]
        self._kept = wanted

    # --- payloads ---------------------------------------------------------------------------------------------

    def _publish(self, event: BroadcastRequested, now: float) -> None:
        group = self._groups.get(event.group)
        if group is None:
            raise LocalProtocolError(f"group {event.group!r} is not open")
        if group.member or any(peer in self._links for peer in group.neighbors):
            self._run(event.group, group, event, now)
        elif len(group.waiting) >= WAITING_MAX:
            raise LocalProtocolError(f"{WAITING_MAX} publications to {event.group!r} wait for a link to a subscriber")
        else:
            group.waiting.append((event, now + self._config.plumtree_age_s))
        if not group.member:
            group.idle_at = now + PUBLISHER_IDLE_S

    def _received(self, event: Received, now: float) -> None:
        name, body = decode(event.body)
        group = self._groups.get(name)
        if group is None:
            self.counters["bodies_of_other_groups"] += 1
        else:
            self._run(name, group, replace(event, body=body, kind=Kind.BROADCAST), now)

    def _run(self, name: str, group: _Group, event: Event, now: float) -> None:
        """Give the group's tree an event, and pass on what it wants as the group's."""
        for effect in group.tree.handle(event, now):
            match effect:
                case Send():
                    self._effects.append(replace(effect, body=encode(name, effect.body), kind=Kind.GROUP))
                case SetTimer():
                    token = self._set_timer(effect.delay_s)
                    self._timers[token] = name, effect.token
                case Deliver() | Missed():
                    if group.member:
                        self._effects.append(replace(effect, group=name))
                case Originated():
                    self._effects.append(effect)
                case _:  # pragma: no cover - Plumtree has no others
                    raise AssertionError(effect)

    # --- timers -----------------------------------------------------------------------------------------------

    def _set_timer(self, delay_s: float) -> int:
        self._next_token += 1
        self._effects.append(SetTimer(self._next_token, delay_s))
        return self._next_token

    def _timer(self, token: int, now: float) -> None:
        if token == self._links_token:
            self._tend(now)
            return
        name, inner = self._timers.pop(token, ("", 0))
        if (group := self._groups.get(name)) is not None:
            self._run(name, group, TimerFired(inner), now)

    def _tend(self, now: float) -> None:
        """Ask for missing links, let go of groups that nobody uses, and of what waited in vain."""
        self._close([name for name, group in self._groups.items() if group.idle_at <= now])
        for group in self._groups.values():
            while group.waiting and group.waiting[0][1] <= now:
                group.waiting.popleft()
                self.counters["publications_expired"] += 1
        missing = dict.fromkeys(
            peer for group in self._groups.values() for peer in group.neighbors if peer not in self._links
        )
        self._effects += map(LinkWanted, missing)
        self._links_token = self._set_timer(LINKS_INTERVAL_S) if self._groups else -1

    def _close(self, names: Iterable[str]) -> None:
        for name in names:
            self.counters["publications_expired"] += len(self._groups.pop(name).waiting)
            self._timers = {token: timer for token, timer in self._timers.items() if timer[0] != name}
        self._keep()
