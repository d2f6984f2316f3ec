"""One node's gossip as one machine: routes events to the cores, and their effects to one another.

Membership, overlay, probing, partition detection, broadcast, groups and routing are siblings that know nothing of each
other (after iroh-gossip's ``state.rs``).  Here a change of the member table becomes everybody's business, the overlay's
doubt and a failed probe become membership's, a wish for a link becomes the overlay's, and the cores' timer tokens are
kept apart.  The shell and the simulator drive this class alone.
"""

# core: no I/O

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from transport.types import NodeId
from transport.wire import Kind

from .config import GossipConfig
from .events import (
    BroadcastRequested,
    Doubt,
    Doubted,
    Effect,
    Event,
    GroupOpened,
    LinkKept,
    LinkWanted,
    Member,
    MemberChanged,
    MemberForgotten,
    NeighborDown,
    NeighborUp,
    ProbeFailed,
    Received,
    RouteSuspected,
    RouteWanted,
    RttMeasured,
    Send,
    SendDropped,
    SetTimer,
    SubscriberChanged,
    TimerFired,
    Transit,
)
from .groups import GroupsCore
from .hyparview import HyParView
from .membership import MembershipCore
from .partition import PartitionCore
from .plumtree import PlumtreeCore
from .routing import RoutingCore
from .swim import SwimCore

# Timer tokens outside: the core's own, times the number of cores, plus which core it is.
_MEMBERSHIP, _OVERLAY, _SWIM, _PARTITION, _BROADCAST, _ROUTING, _GROUPS = range(7)
_CORES: Final = 7


class GossipCore:
    """Membership, overlay, probing and broadcast of one node.

    Args:
        self_member: This node: id, incarnation, addresses, optional metadata; state ``ALIVE``.
        config: Limits and times.
        rng: The only randomness; a seed repeats a run exactly.
        admit: Whether a node that is not known yet may become a member; ``None``: every one may.
    """

    def __init__(
        self,
        self_member: Member,
        config: GossipConfig,
        rng: random.Random,
        admit: Callable[[Member], bool] | None = None,
    ) -> None:
        self._membership = MembershipCore(self_member, config, rng, admit)
        self._overlay = HyParView(self_member.node_id, self._membership.table, config, rng)
        self._swim = SwimCore(self_member.node_id, self._membership.table, config, rng)
        self._partition = PartitionCore(self_member.node_id, self._membership.table, config)
        self._broadcast = PlumtreeCore(self_member, config, rng)
        self._groups = GroupsCore(self_member, config, rng)
        self._routing = RoutingCore(self_member.node_id, self._membership.table, config, rng)

    @property
    def me(self) -> Member:
        """This node as it now describes itself."""
        return self._membership.me

    @property
    def ended(self) -> bool:
        """Whether this node left or was superseded."""
        return self._membership.ended

    @property
    def digest(self) -> int:
        """64 bits that are equal, but for chance, at nodes that believe the same."""
        return self._membership.table.digest

    @property
    def sequence(self) -> int:
        """The number of this node's latest broadcast."""
        return self._broadcast.sequence

    def members(self) -> list[Member]:
        """What is believed of every node, this one included."""
        return list(self._membership.table)

    def member(self, node_id: NodeId) -> Member | None:
        """What is believed of one node; ``None``: nothing."""
        return self._membership.table.get(node_id)

    def needs_link(self, node_id: NodeId) -> bool:
        """Whether the node is a neighbour, or may become one."""
        return self._overlay.is_busy(node_id)

    def spares_link(self, node_id: NodeId, now: float) -> bool:
        """Whether the link to the node was idle for so long that it may be closed."""
        return self._overlay.is_spare(node_id, now)

    def has_group(self, group: str) -> bool:
        """Whether this node subscribes, or published lately, to the group."""
        return self._groups.is_open(group)

    def next_hop(self, target: NodeId, now: float) -> NodeId | None:
        """The linked node to which to send what is for ``target``; ``None``: no way is known."""
        return self._routing.next_hop(target, now)

    def is_way(self, target: NodeId, hop: NodeId, now: float) -> bool:
        """Whether ``hop`` is linked and still leads to ``target`` as far as is known."""
        return self._routing.is_way(target, hop, now)

    def distance_s(self, a: NodeId, b: NodeId) -> float | None:
        """The round trip to expect between two nodes by their coordinates; ``None``: unknown."""
        return self._swim.distance_s(a, b)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event and return what to do about it, in order.

        Args:
            event: What happened.
            now: Seconds on any clock that never goes back.

        Raises:
            RemoteProtocolError: A received body is not allowed; nothing changed.
            LocalProtocolError: A request of this node is not allowed; nothing changed.
        """
        effects: list[Effect] = []
        match event:
            case Received():
                self._swim.heard(event.peer, now)
                self._received(event, effects, now)
            case BroadcastRequested() if not event.group:
                if not self.ended:
                    self._route(_BROADCAST, self._broadcast.handle(event, now), effects, now)
            case BroadcastRequested() | GroupOpened() | SubscriberChanged():
                if not self.ended:
                    self._route(_GROUPS, self._groups.handle(event, now), effects, now)
            case SendDropped() if event.send.kind == Kind.GROUP:
                self._route(_GROUPS, self._groups.handle(event, now), effects, now)
            case SendDropped():
                self._route(_BROADCAST, self._broadcast.handle(event, now), effects, now)
            case TimerFired():
                self._timer(event.token, effects, now)
            case Transit() | RouteWanted() | RouteSuspected():
                # Also after this node left: what closes its relayed links has still to arrive.
                self._route(_ROUTING, self._routing.handle(event, now), effects, now)
            case _:
                self._broadcast.handle(event, now)  # it notes when it began
                ended = self.ended
                # Probing first: after a stall it must forget before anybody concludes, and a redial comes at once.
                if not ended:
                    self._route(_SWIM, self._swim.handle(event, now), effects, now)
                self._route(_MEMBERSHIP, self._membership.handle(event, now), effects, now)
                if not ended:
                    self._route(_OVERLAY, self._overlay.handle(event, now), effects, now)
                    self._route(_GROUPS, self._groups.handle(event, now), effects, now)
                self._route(_ROUTING, self._routing.handle(event, now), effects, now)
        return effects

    def _received(self, event: Received, effects: list[Effect], now: float) -> None:
        match event.kind:
            case Kind.MEMBERSHIP:
                self._route(_MEMBERSHIP, self._membership.handle(event, now), effects, now)
            case Kind.BROADCAST if not self.ended:
                self._route(_BROADCAST, self._broadcast.handle(event, now), effects, now)
            case Kind.GROUP if not self.ended:
                self._route(_GROUPS, self._groups.handle(event, now), effects, now)
            case Kind.OVERLAY if not self.ended:
                self._route(_OVERLAY, self._overlay.handle(event, now), effects, now)
            case Kind.PROBE if not self.ended:
                self._route(_SWIM, self._swim.handle(event, now), effects, now)
            case Kind.ROUTE if not self.ended:
                self._route(_ROUTING, self._routing.handle(event, now), effects, now)
            case _:
                pass

    def _timer(self, outer: int, effects: list[Effect], now: float) -> None:
        token, which = divmod(outer, _CORES)
        if which == _MEMBERSHIP:
            self._route(which, self._membership.handle(TimerFired(token), now), effects, now)
        elif self.ended:
            pass
        elif which == _OVERLAY:
            self._route(which, self._overlay.handle(TimerFired(token), now), effects, now)
        elif which == _BROADCAST:
            self._route(which, self._broadcast.handle(TimerFired(token), now), effects, now)
        elif which == _GROUPS:
            self._route(which, self._groups.handle(TimerFired(token), now), effects, now)
        elif which == _SWIM:
            self._route(which, self._swim.handle(TimerFired(token), now), effects, now)
        elif which == _ROUTING:
            self._route(which, self._routing.handle(TimerFired(token), now), effects, now)
        else:
            self._route(which, self._partition.timer(token, now), effects, now)

    def statistics(self) -> dict[str, int | float]:
        """Sizes and counters of the cores."""
        table = self._membership.table
        return {
            "members": len(table) - table.gone_count,
            "members_gone": table.gone_count,
            "tombstones": table.tombstone_count,
            "meta_bytes": table.meta_bytes,
            "claims_refused_full": table.refused_full,
            "broadcast_origins": self._broadcast.origins,
            **self._membership.counters,
            **self._overlay.counters,
            **self._swim.statistics(),
            **self._partition.counters,
            "groups": len(self._groups),
            **self._groups.counters,
            "routes": self._routing.targets,
            **self._routing.counters,
            **{f"broadcasts_{name}": value for name, value in self._broadcast.counters.items()},
        }

    def _route(self, which: int, produced: list[Effect], effects: list[Effect], now: float) -> None:
        """Give each effect of one core to whom it concerns: another core, or the shell."""
        for effect in produced:
            if type(effect) is Send:
                effects.append(effect)  # by far the most frequent
                continue
            match effect:
                case SetTimer():
                    effects.append(SetTimer(effect.token * _CORES + which, effect.delay_s))
                case MemberChanged():
                    effects.append(effect)
                    if not self.ended:
                        self._changed(effect, effects, now)
                case MemberForgotten():
                    effects.append(effect)
                    self._partition.forgotten(effect.member.node_id)
                case Doubt() if self._routing.reaches(effect.peer, now):
                    pass  # it cannot be dialled from here, and lives all the same
                case Doubt():
                    self._route(_MEMBERSHIP, self._membership.handle(Doubted(effect.peer), now), effects, now)
                case ProbeFailed():
                    self._route(_MEMBERSHIP, self._membership.handle(effect, now), effects, now)
                case NeighborUp() | NeighborDown():
                    self._route(_MEMBERSHIP, self._membership.handle(effect, now), effects, now)
                    self._route(_SWIM, self._swim.handle(effect, now), effects, now)
                    self._route(_BROADCAST, self._broadcast.handle(effect, now), effects, now)
                    self._route(_ROUTING, self._routing.handle(effect, now), effects, now)
                case LinkWanted() | LinkKept() | RttMeasured():
                    self._route(_OVERLAY, self._overlay.handle(effect, now), effects, now)
                case _:
                    effects.append(effect)

    def _changed(self, change: MemberChanged, effects: list[Effect], now: float) -> None:
        before, after = change.before, change.after
        self._route(_OVERLAY, self._overlay.member_changed(before, after), effects, now)
        self._route(_SWIM, self._swim.member_changed(before, after, now), effects, now)
        self._route(_PARTITION, self._partition.member_changed(before, after, now), effects, now)
        self._routing.member_changed(after)
