"""What members say to each other (the paper's figure 2 and sections 6 to 8); ``docs/protocol/raft.md`` has the bytes.

Each message has the term of its sender.  A message of a higher term makes its receiver a follower in that term,
except what belongs to pre-votes, whose term is the one that the sender *would* enter, and requests for votes while a
leader is in charge (section 6: "disruptive servers").
"""

# core: no I/O

from __future__ import annotations

from dataclasses import dataclass

from .types import Entry, Snapshot


@dataclass(frozen=True, slots=True)
class VoteRequest:
    """Vote for me (section 5.2), or with ``pre``: would you? (dissertation, section 9.6)."""

    term: int
    last_index: int
    last_term: int
    pre: bool = False
    transfer: bool = False
    """The leader itself told the candidate to stand, so the leader being in charge is no reason to refuse."""


@dataclass(frozen=True, slots=True)
class VoteReply:
    """Yes, in the term asked about; or no, and this is my term."""

    term: int
    granted: bool
    pre: bool = False


@dataclass(frozen=True, slots=True)
class Append:
    """These entries follow the one at ``previous_index``, and what is committed (section 5.3)."""

    term: int
    previous_index: int
    previous_term: int
    commit: int
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class AppendReply:
    """My log is the leader's up to ``index``, durably; or, refused: it differs at ``index``.

    A refusal hints where to try next: the highest index below at which this log has no higher term than the leader's
    there, and that term, so that a whole term of differing entries costs one round trip (section 5.3, end).
    """

    term: int
    accepted: bool
    index: int
    hint_index: int = 0
    hint_term: int = 0


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """I lead; this much of what *you* have is committed; ``round`` numbers the leader's questions whether it leads."""

    term: int
    commit: int
    round: int


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    """You do, as far as I know, and I heard it in that round."""

    term: int
    round: int


@dataclass(frozen=True, slots=True)
class InstallSnapshot:
    """The state at an index, in place of entries that the leader no longer has (section 7).

    The shell hands this to the core when it has *all* bytes of the state in store; how they come is its business.
    """

    term: int
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class TimeoutNow:
    """Stand for election at once: the leader wants you to follow it (dissertation, section 3.10)."""

    term: int


@dataclass(frozen=True, slots=True)
class ReadAsk:
    """From which index on may I read? (dissertation, section 6.4)."""

    term: int
    number: int


@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """From ``index`` on; ``None``: I cannot say."""

    term: int
    number: int
    index: int | None


Message = (
    VoteRequest
    | VoteReply
    | Append
    | AppendReply
    | Heartbeat
    | HeartbeatReply
    | InstallSnapshot
    | TimeoutNow
    | ReadAsk
    | ReadAnswer
)
