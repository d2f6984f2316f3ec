"""Whom a node could link to: HyParView's passive view, what discovery saw, and how dials have gone.

The passive view is a bounded random sample of the network that joins and shuffles renew.  It is only the first
place to look: every node holds the whole member table, so a view that ran dry is filled from there.  That answers what
the paper leaves open, mass failure while the views are still cold.  When the table has nobody either, a node that
is alone tries whomever it ever heard of: suspects, discovery's sightings and seeds, and the dead.

*Candidates* are sightings of nodes that the table does not hold as living.  All nodes see the same announcement at
about the same time, so each waits a random while that grows with the size of the network: one dials, and
when its link has made the newcomer a member the others need not.
"""

# core: no I/O

from __future__ import annotations

import random
from collections.abc import Container, Iterable
from dataclasses import dataclass
from itertools import islice
from math import ceil, inf, log2
from typing import Final

from transport.types import Address, NodeId

from .config import GossipConfig
from .events import Member, MemberState
from .hyparview_codec import Peer
from .members import MemberTable, is_gone

#: Bound of the peers that come before the passive view: lost neighbours, and those named instead of one.
_FIRST_MAX: Final = 16
#: Bound of the failures remembered; the longest unchanged is forgotten first.
_FAILURES_MAX: Final = 4096
#: So many sightings are kept beyond ``candidate_s``, for the day on which nobody else is left.
_SEEDS_MAX: Final = 64
#: One dial of a candidate per so many seconds in the whole network.
_SPREAD_S: Final = 0.25
_SPREAD_S_MAX: Final = 60.0


@dataclass(slots=True)
class _Failure:
    count: int = 0
    not_before: float = 0.0
    doubt_at: float = 0.0


@dataclass(slots=True)
class _Candidate:
    addresses: tuple[Address, ...]
    tried_until: float
    due: float


class Contacts:
    """The nodes that one node may dial.

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
        self._passive: dict[NodeId, tuple[Address, ...]] = {}
        self._first: dict[NodeId, tuple[Address, ...]] = {}
        self._candidates: dict[NodeId, _Candidate] = {}
        self._failures: dict[NodeId, _Failure] = {}
        self.refused = 0
        """Sightings that found no room."""

    @property
    def living(self) -> int:
        """How many members are alive or suspect, this node included."""
        return len(self._table) - self._table.gone_count

    @property
    def passive(self) -> list[NodeId]:
        """The passive view."""
        return list(self._passive)

    @property
    def passive_max(self) -> int:
        """The passive view's bound: grows with the logarithm of the network."""
        return max(self._config.passive_view, 4 * ceil(log2(self.living + 1)))

    def addresses(self, peer: NodeId) -> tuple[Address, ...]:
        """Where ``peer`` may be dialled: what it publishes, then what others said."""
        member = self._table.known(peer)
        published = () if member is None else member.addresses
        hints = self._first.get(peer, ()) + self._passive.get(peer, ())
        if (candidate := self._candidates.get(peer)) is not None:
            hints += candidate.addresses
        return tuple(dict.fromkeys(published + hints))[: self._config.addresses_max]

    def describe(self, peers: Iterable[NodeId]) -> tuple[Peer, ...]:
        """Peers as they are told to others."""
        return tuple(Peer(peer, self.addresses(peer)) for peer in peers)

    # --- the passive view -------------------------------------------------------------------------------------

    def remember(self, peers: Iterable[Peer], exclude: Container[NodeId], spare: Iterable[NodeId] = ()) -> None:
        """Take peers into the passive view; where it is full those of ``spare`` go first, then any."""
        expendable = [name for name in spare if name in self._passive]
        for peer in peers:
            name = peer.node_id
            if name == self._owner or name in exclude or name in self._passive or self._is_gone(name):
                continue
            if len(self._passive) >= self.passive_max:
                del self._passive[expendable.pop() if expendable else self._rng.choice(list(self._passive))]
                expendable = [name for name in expendable if name in self._passive]
            self._passive[name] = () if self._table.get(name) is not None else peer.addresses

    def prefer(self, peer: Peer) -> None:
        """Try ``peer`` before the passive view, and without the backoff of earlier failures."""
        if peer.node_id != self._owner and len(self._first) < _FIRST_MAX:
            self._first[peer.node_id] = peer.addresses
            self.reached(peer.node_id)

    def drop(self, peer: NodeId) -> None:
        """``peer`` is a neighbour, or gone: it is no replacement."""
        self._passive.pop(peer, None)
        self._first.pop(peer, None)

    def sample(self, count: int, exclude: Container[NodeId]) -> list[NodeId]:
        """Up to ``count`` random peers of the passive view."""
        peers = [peer for peer in self._passive if peer not in exclude]
        return self._rng.sample(peers, min(count, len(peers)))

    def choose(self, exclude: Container[NodeId], now: float, *, alone: bool) -> NodeId | None:
        """A peer to link to; ``None``: there is nobody to try at the moment.

        Args:
            exclude: Who is linked, being dialled or otherwise not wanted.
            now: For the backoff of peers that failed.
            alone: Whether there is no neighbour at all, which makes everybody eligible.
        """
        while self._first:
            peer = next(iter(self._first))
            hints = self._first.pop(peer)
            if peer not in exclude and self._usable(peer, now):
                self._passive.setdefault(peer, hints)
                return peer
        for _ in range(2):
            usable = [peer for peer in self._passive if peer not in exclude and self._usable(peer, now)]
            if usable:
                return self._rng.choice(usable)
            self._fill(exclude, now)
        return self._last_resort(exclude, now) if alone else None

    def random_member(self, exclude: Container[NodeId]) -> NodeId | None:
        """One living member, uniformly; ``None`` when the one drawn is excluded."""
        member = next(islice(self._table, self._rng.randrange(len(self._table)), None))
        name = member.node_id
        return None if name in exclude or name == self._owner or is_gone(member.state) else name

    def random_gone(self, exclude: Container[NodeId]) -> NodeId | None:
        """One dead member or tombstone that can be dialled."""
        lost = [m.node_id for m in self._table.gone() if m.state is MemberState.DEAD and m.node_id not in exclude]
        return self._rng.choice(lost) if lost else None

    def _fill(self, exclude: Container[NodeId], now: float) -> None:
        """Replace what cannot be used by random members: one pass over the table, however large."""
        for peer in [peer for peer in self._passive if not self._usable(peer, now)]:
            del self._passive[peer]
        count = len(self._table)
        members = iter(self._table)
        position = 0
        for index in sorted(self._rng.sample(range(count), min(count, self.passive_max))):
            member = next(islice(members, index - position, None))
            position = index + 1
            name = member.node_id
            if name != self._owner and name not in exclude and self._usable(name, now):
                self._passive.setdefault(name, ())

    def _usable(self, peer: NodeId, now: float) -> bool:
        """Whether a dial makes sense: alive or unknown to the table, with an address, not failed just now."""
        member = self._table.get(peer)
        if member is not None and member.state is not MemberState.ALIVE:
            return False
        return self._may_dial(peer, now)

    def _may_dial(self, peer: NodeId, now: float) -> bool:
        failure = self._failures.get(peer)
        return (failure is None or failure.not_before <= now) and bool(self.addresses(peer))

    def _last_resort(self, exclude: Container[NodeId], now: float) -> NodeId | None:
        members: list[Member] = [*self._table, *self._table.gone()]
        names = dict.fromkeys([*self._candidates, *(m.node_id for m in members if m.state is not MemberState.LEFT)])
        names.pop(self._owner, None)
        usable = [name for name in names if name not in exclude and self._may_dial(name, now)]
        return self._rng.choice(usable) if usable else None

    def _is_gone(self, peer: NodeId) -> bool:
        member = self._table.known(peer)
        return member is not None and is_gone(member.state)

    # --- how dials went ---------------------------------------------------------------------------------------

    def reached(self, peer: NodeId) -> None:
        """There is a link to ``peer``, or a reason to expect that there can be one."""
        self._failures.pop(peer, None)

    def failed(self, peer: NodeId, now: float) -> int:
        """A dial of ``peer`` failed; returns how many in a row."""
        failure = self._failures.pop(peer, None) or _Failure()
        self._failures[peer] = failure
        if len(self._failures) > _FAILURES_MAX:
            del self._failures[next(iter(self._failures))]
        failure.count += 1
        failure.not_before = now + self._backoff_s(failure.count)
        self._passive.pop(peer, None)
        if (candidate := self._candidates.get(peer)) is not None:
            candidate.due = failure.not_before if now < candidate.tried_until else inf
        return failure.count

    def postpone(self, peer: NodeId, until: float) -> None:
        """``peer`` can be reached but does not want us now."""
        self._failures[peer] = _Failure(0, until)
        candidate = self._candidates.get(peer)
        if candidate is not None and candidate.due < until:
            candidate.due = until

    def may_doubt(self, peer: NodeId, now: float) -> bool:
        """Whether it is time to tell membership of ``peer``'s last failure; then not again for a while."""
        failure = self._failures[peer]
        if now < failure.doubt_at:
            return False
        failure.doubt_at = now + self._config.doubt_interval_s * self._rng.uniform(0.75, 1.25)
        return True

    def in_backoff(self, peer: NodeId, now: float) -> bool:
        """Whether a dial of ``peer`` failed so recently that another makes no sense."""
        failure = self._failures.get(peer)
        return failure is not None and now < failure.not_before

    def _backoff_s(self, failures: int) -> float:
        """Exponential with half jitter, so that a network that lost power does not dial in step."""
        longest = self._config.dial_backoff_s_min * 2.0 ** min(failures - 1, 30)
        return min(self._config.dial_backoff_s_max, longest) * self._rng.uniform(0.5, 1.0)

    # --- candidates -------------------------------------------------------------------------------------------

    def found(self, peer: NodeId, addresses: tuple[Address, ...], now: float) -> None:
        """Discovery saw ``peer``: a hint for its dials, and if it is no living member a candidate."""
        addresses = addresses[: self._config.addresses_max]
        candidate = self._candidates.pop(peer, None)
        if candidate is None:
            if len(self._candidates) >= self._config.members_max:
                self.refused += 1
                return
            candidate = _Candidate(addresses, 0.0, inf)
        self._candidates[peer] = candidate  # at the end: seen most recently
        candidate.addresses = addresses
        candidate.tried_until = now + self._config.candidate_s
        if self._is_member(peer):
            return
        failure = self._failures.get(peer)
        if failure is not None and failure.count > 1:
            # News of it are worth an earlier try, but a chatty announcer neither sets the pace nor puts it off.
            failure.count = 1
            failure.not_before = candidate.due = now + self._backoff_s(1)
        elif candidate.due == inf and failure is None:
            spread_s = min(_SPREAD_S_MAX, _SPREAD_S * (self.living - 1))
            courtesy_s = 0.0 if self._owner < peer else self._config.dial_delay_s
            candidate.due = now + courtesy_s + self._rng.uniform(0.0, spread_s)

    def due(self, exclude: Container[NodeId], now: float) -> tuple[list[NodeId], float]:
        """The candidates to dial now, and when to ask again."""
        ready, following = [], inf
        for peer, candidate in list(self._candidates.items()):
            if self._is_member(peer):
                candidate.due = inf
            elif candidate.due > now:
                following = min(following, candidate.due)
            elif peer not in exclude:
                ready.append(peer)
                candidate.due = now + self._config.dial_backoff_s_max  # should nothing come of it
            if candidate.due == inf and candidate.tried_until <= now and len(self._candidates) > _SEEDS_MAX:
                del self._candidates[peer]
        return ready, following

    def _is_member(self, peer: NodeId) -> bool:
        member = self._table.get(peer)
        return member is not None and not is_gone(member.state)
