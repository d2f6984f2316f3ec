"""The overlay: which nodes this one keeps links to.

First version: a full mesh.  Every member is dialled until there is a link or ``links_max`` is reached.  Of two
nodes that know each other the one with the smaller id dials at once and the other a moment later, because their
link would be the one that is kept anyway (zenoh's ``greater-zid`` rule without its long wait).  Retries back off
with jitter; members that cannot be dialled for some time are handed to membership as doubtful.

Healing: a network that was split must find together again however long it was.  Dead members, and tombstones,
are dialled for ever at a rate that is constant in the whole network: each node, each ``heal_interval_s``,
tries one of them with probability ``heal_nodes`` / N (after Uber's ringpop).  Discovery adds what it sees.

Step 2 replaces this class by HyParView's active and passive views; the router and the sibling cores stay.
"""

# core: no I/O

from __future__ import annotations

import random
from dataclasses import dataclass

from transport.types import Address, NodeId

from .config import GossipConfig
from .events import (
    Dial,
    DialFailed,
    Doubt,
    Effect,
    Event,
    LinkLost,
    LinkOpened,
    Member,
    MemberState,
    PeerFound,
    SetTimer,
    Started,
    TimerFired,
)
from .incarnation import life_of
from .members import MemberTable, is_gone

_NONE = -1


@dataclass(slots=True)
class _Target:
    """A node that we are or want to be linked to."""

    published: tuple[Address, ...] = ()
    """What the node says of itself, through gossip."""
    hints: tuple[Address, ...] = ()
    """What the link or discovery said."""
    member: bool = False
    """Whether it is alive or suspect in the table; otherwise it is a candidate, tried until ``tried_until``."""
    tried_until: float = 0.0
    linked: bool = False
    dialling: bool = False
    token: int = _NONE
    """Of the pending dial; ``_NONE``: no dial is pending."""
    failures: int = 0
    doubt_at: float = 0.0


class FullMesh:
    """Dials every member.

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
        self._targets: dict[NodeId, _Target] = {}
        self._linked = 0
        self._pending: dict[int, NodeId] = {}
        self._heal_token = _NONE
        self._next_token = 0
        self._effects: list[Effect] = []
        self.counters = {"dials": 0, "dials_failed": 0, "heal_dials": 0, "candidates_refused": 0}

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event and return the dials and timers it leads to."""
        match event:
            case Started():
                self._schedule_heal()
            case LinkOpened():
                self._opened(event)
            case LinkLost():
                self._lost(event)
            case DialFailed():
                self._failed(event, now)
            case PeerFound():
                self._found(event, now)
            case TimerFired():
                self._timer(event.token, now)
            case _:
                pass
        effects, self._effects = self._effects, []
        return effects

    def member_changed(self, before: Member | None, after: Member) -> list[Effect]:
        """The table changed; the router calls this for every :class:`~gossip.events.MemberChanged`."""
        if after.node_id == self._owner:
            return []
        target = self._targets.get(after.node_id)
        if is_gone(after.state):
            if target is not None:
                target.member = False
                self._drop_if_useless(after.node_id, target)
            return []
        if target is None:
            target = self._targets[after.node_id] = _Target()
        target.member = True
        target.published = after.addresses or target.published
        returned = before is None or is_gone(before.state) or life_of(before.incarnation) != life_of(after.incarnation)
        if returned:
            target.failures, target.doubt_at = 0, 0.0
        if returned or target.token == _NONE:
            self._schedule(after.node_id, target, self._courtesy_s(after.node_id))
        effects, self._effects = self._effects, []
        return effects

    # --- private ----------------------------------------------------------------------------------------------

    def _opened(self, event: LinkOpened) -> None:
        target = self._targets.get(event.peer)
        if target is None:
            target = self._targets[event.peer] = _Target()
        self._linked += not target.linked
        target.linked, target.dialling, target.failures, target.doubt_at = True, False, 0, 0.0
        target.hints = event.addresses or target.hints
        self._cancel(target)

    def _lost(self, event: LinkLost) -> None:
        target = self._targets.get(event.peer)
        if target is None or not target.linked:
            return
        target.linked = False
        self._linked -= 1
        if event.left:
            target.member = False
        self._drop_if_useless(event.peer, target)
        if target.member:
            wait_s = self._config.dial_backoff_s_min if event.wanted else 0.0
            self._schedule(event.peer, target, wait_s + self._courtesy_s(event.peer))

    def _failed(self, event: DialFailed, now: float) -> None:
        target = self._targets.get(event.peer)
        if target is None or not target.dialling:
            return
        target.dialling = False
        target.failures += 1
        self.counters["dials_failed"] += 1
        if not target.member and now >= target.tried_until:
            self._drop_if_useless(event.peer, target)
            return
        self._schedule(event.peer, target, self._backoff_s(target.failures))
        if target.member and target.failures >= self._config.dial_failures_doubt and now >= target.doubt_at:
            target.doubt_at = now + self._config.doubt_interval_s * self._rng.uniform(0.75, 1.25)
            self._effects.append(Doubt(event.peer))

    def _found(self, event: PeerFound, now: float) -> None:
        if event.node_id == self._owner or not event.addresses:
            return
        target = self._targets.get(event.node_id)
        if target is None:
            if len(self._targets) >= 2 * self._config.members_max:
                self.counters["candidates_refused"] += 1
                return
            target = self._targets[event.node_id] = _Target()
        target.hints = event.addresses[: self._config.addresses_max]
        target.tried_until = now + self._config.candidate_s
        if target.failures > 1:
            # News of it are worth an earlier try, but a chatty announcer neither sets the pace nor puts it off.
            target.failures = 1
            self._schedule(event.node_id, target, self._backoff_s(1))
        elif target.token == _NONE:
            self._schedule(event.node_id, target, self._courtesy_s(event.node_id))

    def _timer(self, token: int, now: float) -> None:
        if token == self._heal_token:
            self._heal(now)
            return
        node_id = self._pending.pop(token, None)
        if node_id is None:
            return
        target = self._targets[node_id]
        target.token = _NONE
        if self._linked >= self._config.links_max:
            self._schedule(node_id, target, self._backoff_s(64))
        else:
            self._dial(node_id, target)

    def _heal(self, now: float) -> None:
        self._schedule_heal()
        living = len(self._table) - self._table.gone_count
        if self._rng.random() >= self._config.heal_nodes / living:
            return
        lost = [m for m in self._table.gone() if m.state is MemberState.DEAD and m.node_id not in self._targets]
        if lost and self._linked < self._config.links_max:
            member = self._rng.choice(lost)
            if member.addresses:
                self.counters["heal_dials"] += 1
                target = self._targets[member.node_id] = _Target(published=member.addresses, tried_until=now)
                self._dial(member.node_id, target)

    def _schedule_heal(self) -> None:
        self._heal_token = self._timer_in(self._config.heal_interval_s * self._rng.uniform(0.5, 1.5))

    def _dial(self, node_id: NodeId, target: _Target) -> None:
        addresses = target.published + tuple(a for a in target.hints if a not in target.published)
        if not addresses:
            return  # nobody told us where; the node may still dial us
        target.dialling = True
        self.counters["dials"] += 1
        self._effects.append(Dial(node_id, addresses[: self._config.addresses_max]))

    def _schedule(self, node_id: NodeId, target: _Target, delay_s: float) -> None:
        if target.linked or target.dialling:
            return
        self._cancel(target)
        target.token = self._timer_in(delay_s)
        self._pending[target.token] = node_id

    def _cancel(self, target: _Target) -> None:
        self._pending.pop(target.token, None)
        target.token = _NONE

    def _drop_if_useless(self, node_id: NodeId, target: _Target) -> None:
        if not target.member and not target.linked and not target.dialling:
            self._cancel(target)
            del self._targets[node_id]

    def _timer_in(self, delay_s: float) -> int:
        self._next_token += 1
        self._effects.append(SetTimer(self._next_token, delay_s))
        return self._next_token

    def _courtesy_s(self, peer: NodeId) -> float:
        return 0.0 if self._owner < peer else self._config.dial_delay_s

    def _backoff_s(self, failures: int) -> float:
        """Exponential with half jitter, so that a network that lost power does not dial in step."""
        longest = self._config.dial_backoff_s_min * 2.0 ** min(failures - 1, 30)
        return min(self._config.dial_backoff_s_max, longest) * self._rng.uniform(0.5, 1.0)
