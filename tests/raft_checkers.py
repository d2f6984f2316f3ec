"""What must hold of a group in every moment, whatever happens (figure 3 of the Raft paper), seen from outside.

The checker is told of everything that members store, commit, apply and answer, and raises :class:`Violation` at the
first that cannot be.  It knows nothing of how the cores work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from state.raft.configuration import Configuration
from state.raft.log import Log
from state.raft.types import Entry, Snapshot, Stored, Vote
from transport.types import NodeId

Content = bytes | Configuration | None


class Violation(AssertionError):
    """Something that Raft rules out has happened."""


@dataclass(slots=True)
class Disk:
    """What of a node survives a crash."""

    vote: Vote = field(default_factory=Vote)
    snapshot: Snapshot = field(default_factory=Snapshot)
    state: bytes = b""
    """The state machine at the snapshot."""
    entries: dict[int, Entry] = field(default_factory=dict)

    def stored(self) -> Stored:
        """As a core takes it at its start."""
        first = self.snapshot.index + 1
        last = max(self.entries, default=self.snapshot.index)
        return Stored(self.vote, self.snapshot, tuple(self.entries[index] for index in range(first, last + 1)))

    def has(self, index: int, term: int) -> bool:
        """Whether the entry is here or below the snapshot."""
        return index <= self.snapshot.index or (index in self.entries and self.entries[index].term == term)


def digest(state: bytes, entry: Entry) -> bytes:
    """The state machine: a hash over everything that was applied, in its order."""
    return hashlib.blake2b(repr((entry.index, entry.term, entry.content)).encode(), key=state[:32]).digest()[:16]


class Checker:
    """The invariants of one group."""

    def __init__(self) -> None:
        self._leaders: dict[int, NodeId] = {}
        self._votes: dict[tuple[NodeId, int], NodeId] = {}
        # What follows what: an index and a term name one entry, and one entry before it (log matching).
        self._places: dict[tuple[int, int], tuple[Content, int]] = {}
        self.committed: list[Entry] = []
        """Everything that anybody ever applied, by index from 1."""
        self._states: list[bytes] = [b""]
        self._reads: dict[tuple[NodeId, int], int] = {}
        self.reads_done = 0

    def leads(self, node: NodeId, term: int, log: Log) -> None:
        """Election safety: at most one leader in a term.  Leader completeness: it has all that was ever committed."""
        other = self._leaders.setdefault(term, node)
        if other != node:
            raise Violation(f"two leaders in term {term}: {other} and {node}")
        if log.last_index < len(self.committed):
            raise Violation(f"{node} leads in term {term} with {log.last_index} of {len(self.committed)} committed")
        for entry in self.committed[log.offset :]:
            if log.term_at(entry.index) != entry.term:
                raise Violation(f"{node} leads in term {term} without committed entry {entry.index} of {entry.term}")

    def voted(self, node: NodeId, vote: Vote) -> None:
        """Who grants its vote grants it once in a term, whatever it forgot."""
        if vote.candidate is not None:
            before = self._votes.setdefault((node, vote.term), vote.candidate)
            if before != vote.candidate:
                raise Violation(f"{node} voted for {before} and {vote.candidate} in term {vote.term}")

    def wrote(self, node: NodeId, entries: tuple[Entry, ...], previous_term: int) -> None:
        """Log matching: equal index and term mean equal content, and equal everything before."""
        for entry in entries:
            place = (entry.content, previous_term)
            known = self._places.setdefault((entry.index, entry.term), place)
            if known != place:
                raise Violation(f"{node}: entry {entry.index} of term {entry.term} is {place}, and was {known}")
            previous_term = entry.term

    def commits(self, leader: NodeId, leader_term: int, log: Log, disks: Mapping[NodeId, Disk]) -> None:
        """What a leader commits is on the disks of a majority of each half, with an entry of its own term."""
        index, term = log.committed, log.term_at(log.committed)
        if term != leader_term:
            raise Violation(f"{leader} committed {index} of term {term} by counting in term {leader_term}")
        if not log.configuration.agreed(lambda node: disks[node].has(index, term)):
            holders = [node for node, disk in disks.items() if disk.has(index, term)]
            raise Violation(f"{leader} committed {index} of term {term}, which only {holders} have")

    def applies(self, node: NodeId, entries: tuple[Entry, ...], applied: int) -> None:
        """State machine safety: nobody applies another entry at an index, nor out of order, nor twice."""
        for entry in entries:
            if entry.index != applied + 1:
                raise Violation(f"{node} applied {entry.index} after {applied}")
            applied = entry.index
            if applied > len(self.committed):
                self.committed.append(entry)
                self._states.append(digest(self._states[-1], entry))
            elif self.committed[applied - 1] != entry:
                raise Violation(f"{node} applied {entry} and not {self.committed[applied - 1]}")

    def restored(self, node: NodeId, snapshot: Snapshot, state: bytes) -> None:
        """A snapshot is the state that all others had at its index."""
        if snapshot.index >= len(self._states) or state != self._states[snapshot.index]:
            raise Violation(f"{node} restored a state that was never one, at {snapshot.index}")

    def asks(self, node: NodeId, number: int) -> None:
        """A read begins; it has to see what is applied anywhere."""
        self._reads[node, number] = len(self.committed)

    def reads(self, node: NodeId, number: int, index: int, applied: int) -> None:
        """Linearizable reads: a read sees everything that was applied anywhere when it began."""
        must = self._reads.pop((node, number))
        self.reads_done += 1
        if not must <= index <= applied:
            raise Violation(f"{node} reads at {index}, with {applied} applied, and must see {must}")

    def state_at(self, index: int) -> bytes:
        """What the state machine is at an index."""
        return self._states[index]
