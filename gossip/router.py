"""One node's gossip as one machine: routes events to the three cores, and their effects to one another.

Membership, overlay and broadcast are siblings that know nothing of each other (after iroh-gossip's ``state.rs``).
Here a change of the member table becomes the overlay's business, the overlay's doubt becomes membership's, and the
cores' timer tokens are kept apart.  The shell and the simulator drive this class alone.
"""

# core: no I/O

from __future__ import annotations

import random

from transport.types import NodeId
from transport.wire import Kind

from .broadcast import BroadcastCore
from .config import GossipConfig
from .events import (
    BroadcastRequested,
    Doubt,
    Doubted,
    Effect,
    Event,
    Member,
    MemberChanged,
    Received,
    SetTimer,
    TimerFired,
)
from .membership import MembershipCore
from .overlay import FullMesh

# Timer tokens outside: the core's own, times two, plus which core it is.
_MEMBERSHIP, _OVERLAY = 0, 1


class GossipCore:
    """Membership, overlay and broadcast of one node.

    Args:
        self_member: This node: id, incarnation, addresses, optional metadata; state ``ALIVE``.
        config: Limits and times.
        rng: The only randomness; a seed repeats a run exactly.
    """

    def __init__(self, self_member: Member, config: GossipConfig, rng: random.Random) -> None:
        self._membership = MembershipCore(self_member, config, rng)
        self._overlay = FullMesh(self_member.node_id, self._membership.table, config, rng)
        self._broadcast = BroadcastCore(self_member, config)

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
            case Received(kind=Kind.BROADCAST) | BroadcastRequested():
                if not self.ended:
                    effects = self._broadcast.handle(event, now)
            case Received():
                self._from_membership(self._membership.handle(event, now), effects, now)
            case TimerFired():
                token, which = divmod(event.token, 2)
                if which == _MEMBERSHIP:
                    self._from_membership(self._membership.handle(TimerFired(token), now), effects, now)
                elif not self.ended:
                    self._from_overlay(self._overlay.handle(TimerFired(token), now), effects, now)
            case _:
                self._broadcast.handle(event, now)
                ended = self.ended
                self._from_membership(self._membership.handle(event, now), effects, now)
                if not ended:
                    self._from_overlay(self._overlay.handle(event, now), effects, now)
        return effects

    def statistics(self) -> dict[str, int | float]:
        """Sizes and counters of the three cores."""
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
            **{f"broadcasts_{name}": value for name, value in self._broadcast.counters.items()},
        }

    def _from_membership(self, produced: list[Effect], effects: list[Effect], now: float) -> None:
        for effect in produced:
            match effect:
                case SetTimer():
                    effects.append(SetTimer(effect.token * 2 + _MEMBERSHIP, effect.delay_s))
                case MemberChanged():
                    effects.append(effect)
                    if not self.ended:
                        changed = self._overlay.member_changed(effect.before, effect.after)
                        self._from_overlay(changed, effects, now)
                case _:
                    effects.append(effect)

    def _from_overlay(self, produced: list[Effect], effects: list[Effect], now: float) -> None:
        for effect in produced:
            match effect:
                case SetTimer():
                    effects.append(SetTimer(effect.token * 2 + _OVERLAY, effect.delay_s))
                case Doubt():
                    self._from_membership(self._membership.handle(Doubted(effect.peer), now), effects, now)
                case _:
                    effects.append(effect)
