"""When much of the network goes silent at once, that is news of its own: a partition, or a disaster.

One member that fails is a failure.  When at least a fifth of all members, and at least two, become suspect or dead
within one window, a common cause is likelier than chance, and whoever runs the network wants one event rather than
hundreds.  What the cause was cannot be told from here: a half that lost power and a half behind a cut cable look the
same, so ``PartitionDetected`` says what is certain, namely who was lost and who is present.

The event waits until no further member was lost for a moment (``partition_settle_s``), so that it names both sides as
completely as they will ever be known, and so that a suspicion which is refuted at once causes none.  From then on all
that were lost together are one group, and further losses within a window of the last one join it.
``PartitionHealed`` follows when at least half of the group has returned and, again, no more return for a moment.
Members that left or were forgotten are no longer waited for; a group that none returned from ends silently.
"""

# core: no I/O

from __future__ import annotations

from transport.types import NodeId

from .config import GossipConfig
from .events import Effect, Member, MemberState, PartitionDetected, PartitionHealed, SetTimer
from .members import MemberTable, is_gone

_LOST = (MemberState.SUSPECT, MemberState.DEAD)
_NONE = -1


class PartitionCore:
    """Watches the member table's transitions.

    Args:
        owner: This node.
        table: The member table, read only.
        config: Limits and times.
    """

    def __init__(self, owner: NodeId, table: MemberTable, config: GossipConfig) -> None:
        self._owner = owner
        self._table = table
        self._config = config
        # All three are bounded by the table, for whoever is forgotten is dropped.  Lost lately, with the time, in its
        # order; lost together in a partition that was reported; and returned of those.
        self._recent: dict[NodeId, float] = {}
        self._group: dict[NodeId, None] = {}
        self._returned: dict[NodeId, None] = {}
        self._lost_at = 0.0
        self._changed_at = 0.0
        self._token = _NONE
        self._next_token = 0
        self.counters = {"partitions_detected": 0, "partitions_healed": 0}

    def member_changed(self, before: Member | None, after: Member, now: float) -> list[Effect]:
        """The table changed; the router calls this for every :class:`~gossip.events.MemberChanged`."""
        node_id = after.node_id
        if node_id == self._owner:
            return []
        if after.state in _LOST:
            if before is None or before.state in _LOST or before.state is MemberState.LEFT:
                return []
            self._is_lost(node_id, now)
        else:
            self._recent.pop(node_id, None)
            in_group = node_id in self._group
            self.forgotten(node_id)
            if in_group and after.state is MemberState.ALIVE:
                self._returned[node_id] = None
        self._changed_at = now
        if self._token != _NONE or (len(self._recent) < 2 and not self._returned):
            return []
        return [self._set_timer(self._config.partition_settle_s)]

    def forgotten(self, node_id: NodeId) -> None:
        """A member's record was dropped: nobody waits for it any more."""
        self._recent.pop(node_id, None)
        self._group.pop(node_id, None)
        self._returned.pop(node_id, None)

    def timer(self, token: int, now: float) -> list[Effect]:
        """A timer of ours ran out."""
        if token != self._token:
            return []
        self._token = _NONE
        rest_s = self._changed_at + self._config.partition_settle_s - now
        if rest_s > 0.0:
            return [self._set_timer(rest_s)]
        if len(self._recent) >= self._threshold():
            return self._detected()
        if self._returned and len(self._returned) >= len(self._group):
            return self._healed()
        return []

    def _is_lost(self, node_id: NodeId, now: float) -> None:
        window_s = self._config.partition_window_s
        if node_id in self._returned or (self._group and now - self._lost_at <= window_s):
            self._returned.pop(node_id, None)
            self._group[node_id] = None
            self._lost_at = now
        else:
            for other, at in list(self._recent.items()):
                if now - at <= window_s:
                    break
                del self._recent[other]
            self._recent[node_id] = now

    def _detected(self) -> list[Effect]:
        self._group |= dict.fromkeys(self._recent)
        self._recent.clear()
        self._lost_at = self._changed_at
        self.counters["partitions_detected"] += 1
        return [PartitionDetected(tuple(sorted(self._group)), self._present())]

    def _healed(self) -> list[Effect]:
        returned, missing = tuple(sorted(self._returned)), tuple(sorted(self._group))
        self._group.clear()
        self._returned.clear()
        self.counters["partitions_healed"] += 1
        return [PartitionHealed(returned, missing, self._present())]

    def _threshold(self) -> float:
        """Of all members as they were before the loss."""
        members = sum(not is_gone(m.state) or m.node_id in self._recent for m in self._table)
        return max(2.0, self._config.partition_part * members)

    def _present(self) -> tuple[NodeId, ...]:
        return tuple(sorted(m.node_id for m in self._table if m.state is MemberState.ALIVE))

    def _set_timer(self, delay_s: float) -> SetTimer:
        self._next_token += 1
        self._token = self._next_token
        return SetTimer(self._token, delay_s)
