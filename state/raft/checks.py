"""What no correct member would say, refused before anything changes.

Members prove who they are (mutual TLS), and Raft trusts them: it survives crashes, not lies.  But a bug, a disk that
was lost or replaced, or a program that is none of ours should be found at its first impossible message rather than in
the data.  So everything that the protocol rules out *and that can be seen here* is refused with
:class:`~state.errors.RaftMessageRefused`.

Not refused is a request from a node that is not in this member's configuration: a member whose log is behind must
hear the leader, and give its vote to a candidate, that it does not know yet (section 6 of the paper).  Only *answers*
and wishes of strangers are refused (:class:`~state.errors.NotInGroup`): they count for nothing.
"""

# core: no I/O

from __future__ import annotations

from state.errors import NotInGroup, RaftMessageRefused
from transport.types import NodeId

from .log import Log
from .messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    ReadAnswer,
    ReadAsk,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from .types import INDEX_MAX, TERM_JUMP_MAX

#: What only the leader of its term sends.
FROM_LEADER = (Append, Heartbeat, InstallSnapshot, TimeoutNow)


def check(peer: NodeId, message: Message, *, owner: NodeId, term: int, leader: NodeId | None, log: Log) -> None:
    """Check a message against itself, and against what this member knows for certain.

    Args:
        peer: Who sent it.
        message: What.
        owner: This member.
        term: Its term.
        leader: Who leads in that term, if it knows.
        log: Its log.

    Raises:
        RaftMessageRefused: No correct member would send this.
    """
    if peer == owner:
        raise RaftMessageRefused("a message from this node itself")
    if not 0 < message.term <= min(INDEX_MAX, term + TERM_JUMP_MAX):
        raise RaftMessageRefused(f"term {message.term} is not within reach of term {term}")
    match message:
        case Append():
            _check_append(message)
        case InstallSnapshot():
            snapshot = message.snapshot
            if not 0 < snapshot.index <= INDEX_MAX or not 0 < snapshot.term <= message.term:
                raise RaftMessageRefused(f"a snapshot at {snapshot.index} of term {snapshot.term}")
            if not snapshot.configuration.voters:
                raise RaftMessageRefused("a snapshot of a group without voters")
        case VoteRequest():
            if not 0 <= message.last_index <= INDEX_MAX or not 0 <= message.last_term < message.term:
                raise RaftMessageRefused(f"a candidate whose log ends in term {message.last_term} of {message.term}")
        case AppendReply() | HeartbeatReply() | VoteReply() | ReadAsk() if peer not in log.configuration.members:
            raise NotInGroup(f"an answer of {peer}, which is not a member of the group")
        case ReadAnswer() if message.index is not None and not 0 <= message.index <= INDEX_MAX:
            raise RaftMessageRefused(f"a read at {message.index}")
        case _:
            pass
    if isinstance(message, FROM_LEADER) and message.term >= term:
        _check_leader(peer, message, term, leader, log)


def _check_append(message: Append) -> None:
    index, term = message.previous_index, message.previous_term
    if not 0 <= index <= INDEX_MAX or (index == 0) != (term == 0) or not 0 <= message.commit <= INDEX_MAX:
        raise RaftMessageRefused(f"entries after {index} of term {term}")
    for entry in message.entries:
        index += 1
        if entry.index != index or not term <= entry.term or entry.term < 1:
            raise RaftMessageRefused(f"entry {entry.index} of term {entry.term} after {index - 1} of term {term}")
        term = entry.term
    if term > message.term or index > INDEX_MAX:
        raise RaftMessageRefused(f"entries up to {index} of term {term} in term {message.term}")


def _check_leader(peer: NodeId, message: Message, term: int, leader: NodeId | None, log: Log) -> None:
    """Whoever leads in this term or a later one is alone, and has everything that is committed here."""
    if message.term == term and leader is not None and leader != peer:
        raise RaftMessageRefused(f"{peer} leads in term {term}, in which {leader} does")
    match message:
        case Append():
            committed = log.committed - message.previous_index
            known = message.entries[: max(0, committed)]
            if (committed >= 0 and not log.has(message.previous_index, message.previous_term)) or any(
                not log.has(entry.index, entry.term) for entry in known
            ):
                raise RaftMessageRefused(f"entries that contradict what is committed, up to {log.committed}")
        case InstallSnapshot(snapshot=snapshot):
            if snapshot.index <= log.committed and not log.has(snapshot.index, snapshot.term):
                raise RaftMessageRefused(f"a snapshot that contradicts what is committed, up to {log.committed}")
        case Heartbeat() if message.commit > log.last_index:
            raise RaftMessageRefused(f"the leader counts on {message.commit} entries of {log.last_index}")
        case _:
            pass
