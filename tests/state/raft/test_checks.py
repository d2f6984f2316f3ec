"""What no correct member would say is refused, typed, before anything changes."""

from __future__ import annotations

import pytest

from state.errors import NotInGroup, RaftMessageRefused
from state.raft.checks import check
from state.raft.configuration import Configuration
from state.raft.log import Log
from state.raft.messages import (
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
from state.raft.types import INDEX_MAX, TERM_JUMP_MAX, Entry, Snapshot, Stored
from transport.types import NodeId

ME, B, C, STRANGER = NodeId("a"), NodeId("b"), NodeId("c"), NodeId("z")
MEMBERS = Configuration((ME, B, C))


def check_here(message: Message, peer: NodeId = B, *, leader: NodeId | None = B) -> None:
    """Check against a member in term 5 with entries of terms 1 2 2 4 4, of which three are committed."""
    entries = (Entry(1, 1, MEMBERS), *(Entry(index, term, b"") for index, term in enumerate((2, 2, 4, 4), 2)))
    log = Log(Stored(entries=entries))
    log.committed = 3
    check(peer, message, owner=ME, term=5, leader=leader, log=log)


def entry(index: int, term: int) -> Entry:
    """An entry that holds nothing of interest."""
    return Entry(index, term, b"")


SOUND: list[Message] = [
    Append(5, 5, 4, 5),
    Append(5, 5, 4, INDEX_MAX, (entry(6, 4), entry(7, 5))),
    Append(5, 0, 0, 0, (entry(1, 1), entry(2, 2), entry(3, 2), entry(4, 5))),
    Append(5, 9, 5, 0),
    Heartbeat(5, 5, 0),
    InstallSnapshot(6, Snapshot(9, 6, MEMBERS)),
    InstallSnapshot(5, Snapshot(3, 2, MEMBERS)),
    TimeoutNow(5),
    VoteRequest(6, 9, 5),
    VoteRequest(6, 0, 0, pre=True),
    VoteReply(5, granted=True),
    AppendReply(5, accepted=True, index=5),
    HeartbeatReply(5, 0),
    ReadAsk(5, 1),
    ReadAnswer(5, 1, None),
    ReadAnswer(5, 1, 7),
    Heartbeat(4, 99, 0),
    Append(4, 3, 4, 0),
]


@pytest.mark.parametrize("message", SOUND, ids=repr)
def test_what_a_member_may_say_passes(message: Message) -> None:
    """Nothing sound is refused; what is of an older term is only answered, so it is not compared with the log."""
    check_here(message)
    assert message.term > 0


NONSENSE: list[Message] = [
    Heartbeat(0, 0, 0),
    Heartbeat(6 + TERM_JUMP_MAX, 0, 0),
    Append(5, 0, 1, 0),
    Append(5, 1, 0, 0),
    Append(5, -1, 1, 0),
    Append(5, 5, 4, -1),
    Append(5, INDEX_MAX, 4, 0, (entry(INDEX_MAX + 1, 5),)),
    Append(5, 5, 4, 0, (entry(7, 5),)),
    Append(5, 5, 4, 0, (entry(6, 3),)),
    Append(5, 0, 0, 0, (entry(1, 0),)),
    Append(5, 5, 4, 0, (entry(6, 6),)),
    Append(5, 9, 6, 0),
    Append(5, 3, 3, 0),
    Append(5, 1, 1, 0, (entry(2, 2), entry(3, 3))),
    Heartbeat(5, 6, 0),
    InstallSnapshot(5, Snapshot(0, 1, MEMBERS)),
    InstallSnapshot(5, Snapshot(9, 0, MEMBERS)),
    InstallSnapshot(5, Snapshot(9, 6, MEMBERS)),
    InstallSnapshot(5, Snapshot(9, 5, Configuration())),
    InstallSnapshot(5, Snapshot(3, 3, MEMBERS)),
    VoteRequest(6, 9, 6),
    VoteRequest(6, -1, 0),
    VoteRequest(6, 1, -1),
    ReadAnswer(5, 1, -1),
]


@pytest.mark.parametrize("message", NONSENSE, ids=repr)
def test_what_contradicts_itself_or_what_is_known_is_refused(message: Message) -> None:
    """Terms and indexes out of reach or order, another's leadership, what differs from what is committed."""
    with pytest.raises(RaftMessageRefused):
        check_here(message)


@pytest.mark.parametrize("message", [Append(5, 5, 4, 5), Heartbeat(5, 0, 0), TimeoutNow(5)], ids=repr)
def test_a_term_has_one_leader(message: Message) -> None:
    """Who speaks as the leader of a term in which another leads is refused; in a later term it is not."""
    with pytest.raises(RaftMessageRefused, match="in which"):
        check_here(message, C)
    check_here(message, C, leader=None)


def test_nobody_hears_itself() -> None:
    """A message under this node's own name is refused."""
    with pytest.raises(RaftMessageRefused, match="itself"):
        check_here(Heartbeat(5, 0, 0), ME)


@pytest.mark.parametrize(
    "message",
    [AppendReply(5, accepted=True, index=1), HeartbeatReply(9, 0), VoteReply(5, granted=True), ReadAsk(5, 1)],
    ids=repr,
)
def test_answers_of_strangers_count_for_nothing(message: Message) -> None:
    """They are told apart from nonsense: who was removed a moment ago may send them."""
    with pytest.raises(NotInGroup):
        check_here(message, STRANGER)


@pytest.mark.parametrize("message", [VoteRequest(6, 9, 5), Append(6, 5, 4, 0)], ids=repr)
def test_requests_of_strangers_are_heard(message: Message) -> None:
    """A member whose log is behind does not know everybody who may lead it (section 6)."""
    check_here(message, STRANGER)
    assert message.term == 6
