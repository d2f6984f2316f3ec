"""Who is whose neighbour in a group: a graph that everybody computes alike from the list of subscribers.

Every node knows every subscriber (the member table says so), hence no protocol is needed to choose neighbours.  Nodes
stand on a ring at the hash of their name, next to their predecessor and successor, and each draws a few chords to
points of the ring that are hashes of its name too; the first node at or after a point is its end.  Ring and chords are
undirected.  The ring makes the graph connected, the chords make it an expander, so paths are a few hops long; and a
subscriber that comes or goes changes the neighbours of a few others only (consistent hashing, Karger et al. 1997).
"""

# core: no I/O

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from hashlib import blake2b
from typing import Final

from transport.types import NodeId

#: Chords that each node draws; with as many drawn to it and the ring it has six neighbours on average.
CHORDS: Final = 2
#: Up to this many nodes everybody is everybody's neighbour.
FULL_MESH_MAX: Final = 7


class Ring:
    """The subscribers of one group.

    Args:
        group: The group's name, so that groups of the same nodes have different trees.
    """

    def __init__(self, group: str) -> None:
        self._group = group
        self._places: list[tuple[int, NodeId]] = []
        self._chords: list[tuple[int, NodeId]] = []

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, node_id: NodeId) -> bool:
        entry = (self._point(node_id, 0), node_id)
        at = bisect_left(self._places, entry)
        return at < len(self._places) and self._places[at] == entry

    def add(self, node_id: NodeId) -> None:
        """Take in a node; harmless if it is there."""
        if node_id not in self:
            insort(self._places, (self._point(node_id, 0), node_id))
            for chord in range(1, CHORDS + 1):
                insort(self._chords, (self._point(node_id, chord), node_id))

    def discard(self, node_id: NodeId) -> None:
        """Leave out a node; harmless if it is not there."""
        if node_id in self:
            self._places.remove((self._point(node_id, 0), node_id))
            for chord in range(1, CHORDS + 1):
                self._chords.remove((self._point(node_id, chord), node_id))

    def neighbors(self, node_id: NodeId) -> list[NodeId]:
        """The neighbours of a node of the ring, sorted; symmetric."""
        if len(self._places) <= FULL_MESH_MAX:
            return sorted(name for _, name in self._places if name != node_id)
        place = self._point(node_id, 0)
        at = bisect_left(self._places, (place, node_id))
        before, after = self._places[at - 1], self._places[(at + 1) % len(self._places)]
        found = {before[1]: None, after[1]: None}
        for chord in range(1, CHORDS + 1):
            found[self._first_at(self._point(node_id, chord))] = None
        for name in self._drawn_between(before[0], place):
            found[name] = None
        found.pop(node_id, None)
        return sorted(found)

    def entrances(self, node_id: NodeId, count: int) -> list[NodeId]:
        """Nodes of the ring over which a node outside it can reach the group."""
        at = bisect_left(self._places, (self._point(node_id, 0), node_id))
        ring = self._places[at:] + self._places[:at]
        return [name for _, name in ring[:count]]

    def _first_at(self, point: int) -> NodeId:
        return self._places[bisect_left(self._places, (point,)) % len(self._places)][1]

    def _drawn_between(self, after: int, upto: int) -> list[NodeId]:
        """Whose chords end at the node that stands at ``upto`` and whose predecessor stands at ``after``."""
        low = bisect_right(self._chords, after, key=lambda chord: chord[0])
        high = bisect_right(self._chords, upto, key=lambda chord: chord[0])
        drawn = self._chords[low:high] if after < upto else self._chords[low:] + self._chords[:high]
        return [name for _, name in drawn]

    def _point(self, node_id: NodeId, which: int) -> int:
        digest = blake2b(f"{self._group}\0{node_id}\0{which}".encode(), digest_size=8).digest()
        return int.from_bytes(digest)
