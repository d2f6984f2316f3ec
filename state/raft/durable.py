"""What must be on disk before what may be said: a member's term, vote and log, and the messages that wait for them.

Raft's safety rests on what members remember: a vote that was given, an entry that was acknowledged.  So they answer
only after updating stable storage (the paper's figure 2).  Here the core's memory runs ahead of the disk, one ordered
write after another, and each message says which write it needs; it is handed out when that is durable.  To everybody
else this is a member that got its messages a moment later.  After a crash, some last writes are missing, and nobody has
heard of them.

What each message needs:

===========================================  ==========================================================================
votes asked and given, answers to heartbeat  the term and vote as they were when it was made
an append acknowledged                       all of the log as it was (and of the term)
what a leader sends                          nothing: its term was stored before it was elected, and its entries count
                                             for it only once they are stored, wherever else they are by then
===========================================  ==========================================================================
"""

# core: no I/O

from __future__ import annotations

import enum
from collections import deque

from transport.errors import LocalProtocolError
from transport.types import NodeId

from .events import Effect, Persist, Send
from .log import Log
from .messages import Message
from .types import Entry, Snapshot, Stored, Vote


class Needs(enum.Enum):
    """What has to be durable before a message may leave."""

    NOTHING = enum.auto()
    VOTE = enum.auto()
    LOG = enum.auto()


class Durable:
    """Term, vote and log of one member, and its effects in the making.

    Args:
        stored: What the disk holds.
        held_max: How many messages may wait for the disk.
    """

    def __init__(self, stored: Stored, held_max: int) -> None:
        self.log = Log(stored)
        self._vote = stored.vote
        self._held_max = held_max
        self._effects: list[Effect] = []
        self._sends: list[tuple[Needs, Send]] = []
        # Not yet in a write: where the log is new from, and whether the vote and the snapshot are.
        self._new_from: int | None = None
        self._new_vote = False
        self._new_snapshot: Snapshot | None = None
        # Writes: the last one begun, the last one durable, and the last one with a vote in it.
        self._begun = self._durable = self._with_vote = 0
        # Writes under way, and to which index the log is stored when they are done; bounded by how many writes the
        # shell lets wait, which is how many events it takes in meanwhile.
        self._writes: deque[tuple[int, int]] = deque()
        self._held: deque[tuple[int, Send]] = deque()
        self.held_dropped = 0
        """Messages that found no room to wait in."""

    @property
    def term(self) -> int:
        """The current term."""
        return self._vote.term

    @property
    def vote(self) -> NodeId | None:
        """Whom this member voted for in it."""
        return self._vote.candidate

    @property
    def vote_stored(self) -> bool:
        """Whether term and vote are durable as they are."""
        return not self._new_vote and self._durable >= self._with_vote

    @property
    def held(self) -> int:
        """How many messages wait."""
        return len(self._held)

    def set_vote(self, term: int, candidate: NodeId | None) -> None:
        """Enter a term, or vote in it.  Neither is ever taken back."""
        assert term > self.term or (term == self.term and self.vote is None)
        self._vote = Vote(term, candidate)
        self._new_vote = True

    def append(self, entries: list[Entry]) -> None:
        """Add entries of this leader's own."""
        self._log_is_new_from(self.log.last_index + 1)
        self.log.append(entries)

    def merge(self, entries: tuple[Entry, ...]) -> bool:
        """Take over a leader's entries; returns whether anything was new."""
        first = self.log.merge(entries)
        if first > self.log.last_index:
            return False
        # Writes under way have stored, at their end, only what is still part of the log.
        self._writes = deque((number, min(last, first - 1)) for number, last in self._writes)
        self._log_is_new_from(first)
        return True

    def restore(self, snapshot: Snapshot) -> None:
        """Take a snapshot in place of the log."""
        self._writes = deque((number, 0) for number, _ in self._writes)
        self._new_from = None
        self._new_snapshot = snapshot
        self.log.restore(snapshot)

    def persisted(self, number: int) -> None:
        """A write is durable.

        Raises:
            LocalProtocolError: It is not one that is under way.
        """
        if not self._durable < number <= self._begun:
            raise LocalProtocolError(f"write {number} is not under way: {self._durable} are durable of {self._begun}")
        self._durable = number
        while self._writes and self._writes[0][0] <= number:
            self.log.persisted = max(self.log.persisted, self._writes.popleft()[1])
        while self._held and self._held[0][0] <= number:
            self._effects.append(self._held.popleft()[1])

    def send(self, peer: NodeId, message: Message, needs: Needs) -> None:
        """Send when what it needs is durable."""
        self._sends.append((needs, Send(peer, message)))

    def effect(self, effect: Effect) -> None:
        """Have something done that needs nothing stored."""
        self._effects.append(effect)

    def taken(self) -> list[Effect]:
        """All effects since the last call: the write first, then messages that may leave, then the rest."""
        effects: list[Effect] = []
        if self._new_vote or self._new_snapshot is not None or self._new_from is not None:
            effects.append(self._write())
        for needs, send in self._sends:
            number = {Needs.NOTHING: 0, Needs.VOTE: self._with_vote, Needs.LOG: self._begun}[needs]
            if number <= self._durable:
                effects.append(send)
            elif len(self._held) < self._held_max:
                self._held.append((number, send))
            else:
                self.held_dropped += 1
        effects += self._effects
        self._sends, self._effects = [], []
        return effects

    def _write(self) -> Persist:
        self._begun += 1
        if self._new_vote:
            self._with_vote = self._begun
        first = self._new_from
        entries = () if first is None else self.log.range(first, self.log.last_index)
        write = Persist(self._begun, self._vote if self._new_vote else None, self._new_snapshot, entries)
        if write.snapshot is not None or entries:
            self._writes.append((self._begun, self.log.last_index))
        self._new_vote, self._new_snapshot, self._new_from = False, None, None
        return write

    def _log_is_new_from(self, first: int) -> None:
        self._new_from = first if self._new_from is None else min(first, self._new_from)
