"""What a group's log is made of, what is stored of it, and the limits on all of it.

An *entry* is a place in the log: its index (from 1), the term whose leader put it there, and what it holds: data for
the state machine, a :class:`~state.raft.configuration.Configuration`, or nothing (``None``), which is what a new leader
puts first, because only an entry of its own term lets it commit (section 5.4.2 of the paper) and read (section 8).
"""

# core: no I/O

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from transport.types import NodeId

from .configuration import Configuration

#: The largest index and term: exact in JSON and in every language's double.
INDEX_MAX: Final = 2**53 - 1
#: By how much one message may raise a term.  A correct group gains a few terms in an hour; a liar needs two million
#: messages to use them up.
TERM_JUMP_MAX: Final = 1 << 32
#: The longest name of a group, in UTF-8.
GROUP_BYTES_MAX: Final = 63
#: The most bytes that one entry may hold: several fit the body of an envelope.
ENTRY_BYTES_MAX: Final = 1 << 18
#: What an entry weighs in limits, on top of its data; and each member of a configuration.
ENTRY_OVERHEAD_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Entry:
    """One place in the log."""

    index: int
    term: int
    content: bytes | Configuration | None
    """Data for the state machine; or who is a member; or nothing."""

    @property
    def size_bytes(self) -> int:
        """What it weighs in limits."""
        match self.content:
            case None:
                return ENTRY_OVERHEAD_BYTES
            case bytes():
                return ENTRY_OVERHEAD_BYTES + len(self.content)
            case members:
                halves = (members.voters, members.learners, members.outgoing)
                return ENTRY_OVERHEAD_BYTES * (1 + sum(map(len, halves)))


class Vote(NamedTuple):
    """The term a node is in and whom it voted for in it: stored before anybody hears of it."""

    term: int = 0
    candidate: NodeId | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What stands for the log up to an index; the state machine's bytes are the shell's business."""

    index: int = 0
    term: int = 0
    configuration: Configuration = field(default_factory=Configuration)
    """Who was a member at that index."""


class Stored(NamedTuple):
    """What a node finds on its disk when it starts; entries follow the snapshot without a gap."""

    vote: Vote = Vote()
    snapshot: Snapshot = Snapshot()
    entries: tuple[Entry, ...] = ()


def founded(configuration: Configuration) -> Stored:
    """What each founding member of a group starts from, the same for all: their configuration is the first entry.

    It is in the log so that whoever joins later learns it from there.  Limit: nothing here keeps two sets of founders
    apart that give their group one name; who founds is decided before (the coordinator's business).
    """
    return Stored(Vote(1), entries=(Entry(1, 1, configuration),))


@dataclass(frozen=True, slots=True)
class RaftConfig:
    """Times and limits of one group; the same at all of its members, as far as times go.

    Attributes:
        election_timeout_s: How long a leader may be silent; elections begin after one to two of these.  Many times
            what a message and a write to disk take.
        heartbeat_interval_s: How often a leader is heard; at most a third of the election timeout.
        read_timeout_s: After this a read that got no answer is refused.
        append_bytes_max: Entries in one message, by their weight; one entry may exceed it alone.
        append_entries_max: Entries in one message, by number.
        inflight_max: Messages with entries that a follower has not yet answered.
        inflight_bytes_max: Their weight.
        uncommitted_bytes_max: What a leader takes in beyond what is committed; more is refused as busy.
        reads_max: Reads that wait, at a leader of all members' reads.
        held_max: Messages that wait for the disk; more are dropped, which Raft must bear anyway.
        log_bytes_max: The log's weight above which a snapshot is asked for.
        kept_entries: Entries that stay after a snapshot, so that a follower slightly behind needs no snapshot.
    """

    election_timeout_s: float = 0.6
    heartbeat_interval_s: float = 0.1
    read_timeout_s: float = 2.0
    append_bytes_max: int = 1 << 18
    append_entries_max: int = 1_024
    inflight_max: int = 64
    inflight_bytes_max: int = 4 << 20
    uncommitted_bytes_max: int = 16 << 20
    reads_max: int = 4_096
    held_max: int = 4_096
    log_bytes_max: int = 32 << 20
    kept_entries: int = 1_024
