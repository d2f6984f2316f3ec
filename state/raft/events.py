"""What happens to a member of a group, and what it wants done about it.

Effects are carried out in their order.  ``Persist`` is the only one whose end the core must hear of: the shell writes
it durably, none before its predecessors (several may share one fsync), and then says :class:`Persisted`.  Whatever may
only be said once something is stored is *held back by the core* until then, so a shell cannot say it too early.
"""

# core: no I/O

from __future__ import annotations

import enum
from dataclasses import dataclass

from transport.types import NodeId

from .configuration import Configuration
from .messages import Message
from .types import Entry, Snapshot, Vote


class Role(enum.Enum):
    """What a member is at the moment."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    """Asks whether an election would succeed, without raising anybody's term."""
    CANDIDATE = "candidate"
    LEADER = "leader"


class Reason(enum.Enum):
    """Why something was refused; in every case nothing was, and nothing will be, done."""

    NO_LEADER = "no leader"
    NOT_LEADER = "not leader"
    """Ask the leader that the refusal names."""
    LEADERSHIP_LOST = "leadership lost"
    """Of a read: whether this node still leads could not be confirmed."""
    TRANSFERRING = "transferring"
    """Leadership is being handed over; ask again in a moment."""
    BUSY = "busy"
    """Too much is waiting; ask again later."""
    TOO_LARGE = "too large"
    UNANSWERED = "unanswered"
    """Of a read: no answer in time."""
    CHANGE_PENDING = "change pending"
    """Another change of members is not yet complete, or this leader has not yet committed anything."""
    INVALID = "invalid"
    """The change asked for is none: no voters, the same members, not joint."""


# --- events -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed; wanted at :attr:`~state.raft.node.RaftCore.deadline_at` at the latest."""


@dataclass(frozen=True, slots=True)
class Received:
    """A message, from a peer whom the link has authenticated as ``peer``."""

    peer: NodeId
    group: str
    message: Message


@dataclass(frozen=True, slots=True)
class Persisted:
    """This write and all before it are durable."""

    number: int


@dataclass(frozen=True, slots=True)
class Proposed:
    """Put these into the log, in this order; each has a number of the caller's, by which it is answered."""

    proposals: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class ChangeRequested:
    """Make these the members; through a joint phase where more than one voter changes."""

    number: int
    voters: tuple[NodeId, ...]
    learners: tuple[NodeId, ...] = ()
    auto_leave: bool = True


@dataclass(frozen=True, slots=True)
class LeaveRequested:
    """End the joint phase, one that was not to end by itself."""

    number: int


@dataclass(frozen=True, slots=True)
class ReadRequested:
    """When may I read the state machine and see everything acknowledged until now?"""

    number: int


@dataclass(frozen=True, slots=True)
class TransferRequested:
    """Hand leadership to ``target``; ``None``: to the voter that has most of the log."""

    target: NodeId | None


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """The state at an applied index is durable; made from :meth:`~state.raft.node.RaftCore.snapshot_at`."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class SnapshotSent:
    """What :class:`SendSnapshot` asked for has arrived, or has failed; one of the two is always said."""

    peer: NodeId
    arrived: bool


Event = (
    Ticked
    | Received
    | Persisted
    | Proposed
    | ChangeRequested
    | LeaveRequested
    | ReadRequested
    | TransferRequested
    | SnapshotTaken
    | SnapshotSent
)


# --- effects ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Persist:
    """Store this durably, then say :class:`Persisted`.  Within it, the vote comes first and entries last."""

    number: int
    vote: Vote | None
    """The new term and vote; ``None``: unchanged."""
    snapshot: Snapshot | None
    """The state received with this snapshot is the state now, and the stored log is empty; ``None``: unchanged."""
    entries: tuple[Entry, ...]
    """They replace everything stored from the first one's index on."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send over the link to ``peer``, if there is one; losing it is allowed."""

    peer: NodeId
    message: Message


@dataclass(frozen=True, slots=True)
class SendSnapshot:
    """Bring ``peer`` the stored state of ``message.snapshot``, then the message, then say :class:`SnapshotSent`."""

    peer: NodeId
    message: Message


@dataclass(frozen=True, slots=True)
class Apply:
    """These are committed, and stored here: apply their data, in order, each index once."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Restore:
    """The state machine is now that of the stored snapshot."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Accepted:
    """It has this place in the log: done when ``index`` is applied with this term, and never if with another."""

    number: int
    index: int
    term: int


@dataclass(frozen=True, slots=True)
class Refused:
    """It was not done and will not be."""

    number: int
    reason: Reason
    leader: NodeId | None
    """Who may know better."""


@dataclass(frozen=True, slots=True)
class ReadReady:
    """Read now: everything that had to be applied has been handed out in effects before this one."""

    number: int
    index: int


@dataclass(frozen=True, slots=True)
class RoleChanged:
    """What this member is, in which term, and who leads it as far as it knows."""

    role: Role
    term: int
    leader: NodeId | None


@dataclass(frozen=True, slots=True)
class ConfigurationChanged:
    """Who is a member, as of an entry that may still be lost until it is committed."""

    configuration: Configuration


@dataclass(frozen=True, slots=True)
class TransferEnded:
    """Handing leadership over has succeeded, as far as this node sees, or not."""

    target: NodeId | None
    succeeded: bool


@dataclass(frozen=True, slots=True)
class SnapshotWanted:
    """The log weighs more than it should: take a snapshot, at this index or above."""

    index: int


Effect = (
    Persist
    | Send
    | SendSnapshot
    | Apply
    | Restore
    | Accepted
    | Refused
    | ReadReady
    | RoleChanged
    | ConfigurationChanged
    | TransferEnded
    | SnapshotWanted
)
