"""The log of one member, as far as it is in memory: from the last snapshot, or a little before, to its end.

Positions, each at most the next::

    offset <= applied <= committed <= last          and apart from these:  persisted <= last

``offset`` is the last index that is no longer here; its term is known.  ``persisted`` is how far the disk is known to
agree with memory: the core's *decisions* wait for it, its *view* does not, which is sound because the disk is written
in order and nothing is said before what it depends on is stored (:mod:`state.raft.durable`).

Configurations are found by index, and go with the entries when those are cut off (section 6: a server always uses the
latest configuration in its log, committed or not).

Limit: what follows the last snapshot is held in memory; :class:`~state.raft.events.SnapshotWanted` keeps it small.
"""

# core: no I/O

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transport.types import NodeId

from .configuration import Configuration
from .types import Entry, Snapshot, Stored


class Log:
    """Entries and how far they have come.

    Args:
        stored: What the disk holds.

    Raises:
        ValueError: Its entries do not follow its snapshot without a gap, or their terms fall.
    """

    def __init__(self, stored: Stored) -> None:
        self.snapshot = stored.snapshot
        """The last snapshot that is stored here, or being stored."""
        self._offset = self.committed = self.applied = self.persisted = stored.snapshot.index
        self._offset_term = stored.snapshot.term
        self._entries: list[Entry] = []
        self._configurations: list[tuple[int, Configuration]] = [(self._offset, stored.snapshot.configuration)]
        self.size_bytes = 0
        for entry in stored.entries:
            if entry.index != self.last_index + 1 or entry.term < self.last_term:
                raise ValueError(f"stored entry {entry.index} of term {entry.term} does not follow {self.last_index}")
            self._add((entry,))
        self.persisted = self.last_index

    @property
    def offset(self) -> int:
        """The last index that is no longer here."""
        return self._offset

    @property
    def last_index(self) -> int:
        """The index of the last entry."""
        return self._offset + len(self._entries)

    @property
    def last_term(self) -> int:
        """The term of the last entry."""
        return self._entries[-1].term if self._entries else self._offset_term

    @property
    def configuration(self) -> Configuration:
        """Who is a member, by the last word in the log."""
        return self._configurations[-1][1]

    @property
    def configuration_index(self) -> int:
        """Where that stands."""
        return self._configurations[-1][0]

    def term_at(self, index: int) -> int | None:
        """The term of the entry at ``index``; ``None``: it is not here."""
        at = index - self._offset
        if at == 0:
            return self._offset_term
        return self._entries[at - 1].term if 0 < at <= len(self._entries) else None

    def configuration_at(self, index: int) -> Configuration:
        """Who was a member as of an index that is not below the offset."""
        return next(configuration for at, configuration in reversed(self._configurations) if at <= index)

    def needs(self, node: NodeId) -> bool:
        """Whether ``node`` may have to lead: it votes in a configuration that is committed last, or not yet.

        One that a configuration removes which is in no other log yet may be the only one that can be elected, for its
        log is ahead of all others (dissertation, section 4.2.2; the simulator found a group that stood still for ever).
        """
        return self.configuration_at(self.committed).votes(node) or any(
            configuration.votes(node) for index, configuration in self._configurations if index > self.committed
        )

    def has(self, index: int, term: int) -> bool:
        """Whether the log agrees with another at ``index``, and so everywhere before (log matching, section 5.3)."""
        return index < self._offset or self.term_at(index) == term

    def is_behind(self, last_index: int, last_term: int) -> bool:
        """Whether a log with that end is at least as up to date as this one (section 5.4.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def range(self, first: int, last: int) -> tuple[Entry, ...]:
        """The entries from ``first``, which is here, to ``last``."""
        return tuple(self._entries[first - self._offset - 1 : last - self._offset])

    def batch(self, first: int, entries_max: int, bytes_max: int) -> tuple[Entry, ...]:
        """As many entries from ``first`` on as the limits allow, at least one if there is one."""
        start = first - self._offset - 1
        size_bytes = 0
        candidates = self._entries[start : start + entries_max]
        for end, entry in enumerate(candidates):
            size_bytes += entry.size_bytes
            if end > 0 and size_bytes > bytes_max:
                return tuple(candidates[:end])
        return tuple(candidates)

    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries at the end: what a leader does."""
        self._add(entries)

    def merge(self, entries: Sequence[Entry]) -> int:
        """Take over what a leader sent, cutting off what differs: what a follower does.

        Args:
            entries: They follow an entry on which both logs agree, and differ from none that is committed.

        Returns:
            The index from which on the log is new; one above the end if nothing is.
        """
        for at, entry in enumerate(entries):
            if not self.has(entry.index, entry.term):
                self._cut(entry.index)
                self._add(entries[at:])
                return entry.index
        return self.last_index + 1

    def guess(self, index: int, term: int) -> tuple[int, int]:
        """The last place, at ``index`` or below, whose term is at most ``term``: two logs may agree there at best."""
        index = min(index, self.last_index)
        while index > self._offset and self._entries[index - self._offset - 1].term > term:
            index -= 1
        return index, self.term_at(index) or 0

    def compact(self, snapshot: Snapshot, entries_max: int, bytes_max: int) -> None:
        """Drop what an applied snapshot stands for, but for some entries at its end within limits."""
        self.snapshot = snapshot
        offset, size_bytes = snapshot.index, 0
        while offset > max(self._offset, snapshot.index - entries_max):
            size_bytes += self._entries[offset - self._offset - 1].size_bytes
            if size_bytes > bytes_max:
                break
            offset -= 1
        configuration = self.configuration_at(offset)
        dropped = self._entries[: offset - self._offset]
        if dropped:
            del self._entries[: len(dropped)]
            self._offset, self._offset_term = offset, dropped[-1].term
            self.size_bytes -= sum(entry.size_bytes for entry in dropped)
            later = [place for place in self._configurations if place[0] > offset]
            self._configurations = [(offset, configuration), *later]

    def restore(self, snapshot: Snapshot) -> None:
        """Take a snapshot in place of everything; it is applied and stored when the disk says so."""
        self.snapshot = snapshot
        self._offset = self.committed = snapshot.index
        self._offset_term = snapshot.term
        self._entries = []
        self._configurations = [(snapshot.index, snapshot.configuration)]
        self.size_bytes = 0
        self.persisted = 0

    def _add(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._entries.append(entry)
            self.size_bytes += entry.size_bytes
            if isinstance(entry.content, Configuration):
                self._configurations.append((entry.index, entry.content))

    def _cut(self, first: int) -> None:
        """Drop everything from ``first`` on, which is not committed."""
        at = first - self._offset - 1
        self.size_bytes -= sum(entry.size_bytes for entry in self._entries[at:])
        del self._entries[at:]
        while self._configurations[-1][0] >= first:
            self._configurations.pop()
        self.persisted = min(self.persisted, first - 1)
