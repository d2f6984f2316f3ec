"""The member table: what is believed of every node, and the rules by which beliefs merge.

A *claim* is a :class:`~gossip.events.Member`: somebody's belief about one node.  Merging is the join of a lattice, so
claims may arrive in any order, any number of times, by any path, and all tables end equal (the laws are tests):

- *Status*: the higher life wins.  Within a life ``LEFT`` is final; otherwise the higher refutation count wins,
  and at equal incarnation the graver state does (:data:`EQUAL_INCARNATION`).  So only the node itself, by raising
  its incarnation, can take back a suspicion (SWIM), and nothing can undo a departure but a restart.
- *Details* (addresses and metadata) are their owner's and versioned on their own by (life, ``meta_version``), so a
  suspicion never carries them and never loses them.  Version 0: the owner has said nothing yet.

The table keeps dead and departed members visible for a while, then as *tombstones* (incarnation only), so that
old news cannot raise them; both are bounded in time and number, the oldest going first.

The *digest* is one 64-bit number over (node, incarnation, details version) of the members that are not dead or
departed.  It is a sum of hashes and thus kept up to date in constant time.  Dead members are left out on purpose:
tables forget them at different moments, and must not look different, or teach each other their tombstones again.
"""

# core: no I/O

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b
from typing import Final

from transport.types import NodeId

from .config import GossipConfig
from .events import Member, MemberState
from .incarnation import life_of

_ALIVE, _SUSPECT, _DEAD, _LEFT = MemberState.ALIVE, MemberState.SUSPECT, MemberState.DEAD, MemberState.LEFT

#: What is believed after a claim about the *same* incarnation, by (believed state, claimed state).
EQUAL_INCARNATION: Final[dict[tuple[MemberState, MemberState], MemberState]] = {
    (_ALIVE, _ALIVE): _ALIVE,
    (_ALIVE, _SUSPECT): _SUSPECT,
    (_ALIVE, _DEAD): _DEAD,
    (_ALIVE, _LEFT): _LEFT,
    (_SUSPECT, _ALIVE): _SUSPECT,  # only a higher incarnation takes a suspicion back
    (_SUSPECT, _SUSPECT): _SUSPECT,
    (_SUSPECT, _DEAD): _DEAD,
    (_SUSPECT, _LEFT): _LEFT,
    (_DEAD, _ALIVE): _DEAD,
    (_DEAD, _SUSPECT): _DEAD,
    (_DEAD, _DEAD): _DEAD,
    (_DEAD, _LEFT): _LEFT,  # it left in order, and the news came late
    (_LEFT, _ALIVE): _LEFT,
    (_LEFT, _SUSPECT): _LEFT,
    (_LEFT, _DEAD): _LEFT,
    (_LEFT, _LEFT): _LEFT,
}


def is_gone(state: MemberState) -> bool:
    """Whether the state is one from which a node returns only with a higher incarnation."""
    return state is _DEAD or state is _LEFT


def status_wins(claim: Member, current: Member) -> bool:
    """Whether the claimed incarnation and state replace the believed ones (``False`` when they are equal)."""
    if claim.incarnation != current.incarnation:
        claimed_life, current_life = life_of(claim.incarnation), life_of(current.incarnation)
        if claimed_life != current_life:
            return claimed_life > current_life
    if (claim.state is _LEFT) != (current.state is _LEFT):
        return claim.state is _LEFT
    if claim.incarnation != current.incarnation:
        return claim.incarnation > current.incarnation
    return EQUAL_INCARNATION[current.state, claim.state] is not current.state


def details_win(claim: Member, current: Member) -> bool:
    """Whether the claimed addresses and metadata replace the believed ones.

    An owner never gives one version to two values; should it happen, the greater value wins everywhere.
    """
    return _details_order(claim) > _details_order(current)


def _details_order(member: Member) -> tuple[object, ...]:
    return life_of(member.incarnation), member.meta_version, member.meta, member.addresses


def merge(current: Member, claim: Member) -> Member:
    """The join of two beliefs about one node: commutative, associative, idempotent.

    The details of the result belong to its life, because a higher life wins both orders.
    """
    status = claim if status_wins(claim, current) else current
    details = claim if details_win(claim, current) else current
    if status is details:
        return status
    return replace(status, addresses=details.addresses, meta_version=details.meta_version, meta=details.meta)


def _hash(member: Member) -> int:
    key = f"{member.node_id}\0{member.incarnation}\0{member.meta_version}".encode()
    return int.from_bytes(blake2b(key, digest_size=8).digest())


_DIGEST_MASK: Final = (1 << 64) - 1


class MemberTable:
    """Every member by node id, bounded in number, metadata and memory of the dead."""

    def __init__(self, owner: Member, config: GossipConfig) -> None:
        self._config = config
        self._members: dict[NodeId, Member] = {}
        # Both in the order in which their entries expire: the time of death, and the time of burial.
        self._gone_since: dict[NodeId, float] = {}
        self._tombstones: dict[NodeId, tuple[Member, float]] = {}
        self._digest = 0
        self._meta_bytes = 0
        self.refused_full = 0
        """Claims about new nodes that found the table full, and details that found no room."""
        self.put(owner, 0.0)

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def __getitem__(self, node_id: NodeId) -> Member:
        """What is believed of a node that is certainly a member; ``KeyError`` otherwise."""
        return self._members[node_id]

    @property
    def digest(self) -> int:
        """64 bits that are equal, but for chance, when two tables hold the same members."""
        return self._digest

    @property
    def gone_count(self) -> int:
        """How many members are dead or departed and still visible."""
        return len(self._gone_since)

    @property
    def tombstone_count(self) -> int:
        """How many forgotten nodes' incarnations are remembered."""
        return len(self._tombstones)

    @property
    def meta_bytes(self) -> int:
        """The size of all metadata together."""
        return self._meta_bytes

    def get(self, node_id: NodeId) -> Member | None:
        """What is believed of ``node_id``; ``None``: nothing."""
        return self._members.get(node_id)

    def known(self, node_id: NodeId) -> Member | None:
        """Like :meth:`get`, but also from beyond the grave: the tombstone's state without details."""
        member = self._members.get(node_id)
        if member is None and (grave := self._tombstones.get(node_id)) is not None:
            return grave[0]
        return member

    def gone(self) -> list[Member]:
        """Dead and departed members and tombstones, the longest gone last: whom healing may still find."""
        return [self._members[n] for n in reversed(self._gone_since)] + [
            m for m, _ in reversed(self._tombstones.values())
        ]

    def put(self, member: Member, now: float) -> None:
        """Store ``member`` as it is (the rules were applied by the caller, see :meth:`join`)."""
        before = self._members.get(member.node_id)
        if before is not None:
            self._count(before, -1)
        else:
            self._tombstones.pop(member.node_id, None)
        self._members[member.node_id] = member
        self._count(member, 1)
        if not is_gone(member.state):
            self._gone_since.pop(member.node_id, None)
        elif member.node_id not in self._gone_since:
            self._gone_since[member.node_id] = now

    def join(self, claim: Member) -> Member | None:
        """What would be believed of the claim's node after the claim; ``None``: it changes nothing, or has no room."""
        current = self._members.get(claim.node_id)
        if current is None:
            grave = self._tombstones.get(claim.node_id)
            if grave is not None and not status_wins(claim, grave[0]):
                return None
            if len(self._members) - len(self._gone_since) >= self._config.members_max:
                self.refused_full += 1
                return None
        after = claim if current is None else merge(current, claim)
        held = 0 if current is None else len(current.meta)
        if self._meta_bytes - held + len(after.meta) > self._config.meta_table_bytes_max and len(after.meta) > held:
            # Status must never be lost for want of room; details may be.
            self.refused_full += 1
            bare = replace(claim, meta=b"", meta_version=0)
            after = bare if current is None else merge(current, bare)
        return None if after == current else after

    def bury(self, claim: Member, now: float) -> None:
        """Remember that an unknown node is dead or left, so that older news cannot bring it in."""
        grave = self._tombstones.pop(claim.node_id, None)
        if grave is not None and not status_wins(claim, grave[0]):
            claim = grave[0]
        self._tombstones[claim.node_id] = replace(claim, meta=b"", meta_version=0), now

    def reap(self, now: float) -> list[Member]:
        """Forget members that have been gone for long, or are too many; drop old tombstones.

        Returns:
            The members that are no longer visible, in the order of their death.
        """
        forgotten: list[Member] = []
        room = self._config.members_max - (len(self._members) - len(self._gone_since))
        keep = min(self._config.dead_max, max(room, 0))
        for node_id, since in list(self._gone_since.items()):
            if since + self._config.dead_retention_s > now and len(self._gone_since) <= keep:
                break
            del self._gone_since[node_id]
            member = self._members.pop(node_id)
            self._count(member, -1)
            self.bury(member, now)
            forgotten.append(member)
        for node_id, (_, since) in list(self._tombstones.items()):
            if since + self._config.tombstone_s > now and len(self._tombstones) <= self._config.members_max:
                break
            del self._tombstones[node_id]
        return forgotten

    def _count(self, member: Member, sign: int) -> None:
        self._meta_bytes += sign * len(member.meta)
        if not is_gone(member.state):
            self._digest = (self._digest + sign * _hash(member)) & _DIGEST_MASK
