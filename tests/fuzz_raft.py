"""What the fuzzer feeds to the Raft codec, and to a leader and a follower that are alive."""

from __future__ import annotations

from raft_group import GROUP, Group

from state.raft.codec import decode, encode
from state.raft.configuration import Configuration
from state.raft.events import Persist, Persisted, Received, Role
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
from state.raft.types import Entry, Snapshot, founded
from transport.errors import RemoteProtocolError
from transport.types import NodeId

_MEMBERS = Configuration((NodeId("a"), NodeId("b"), NodeId("c")))
_JOINT = Configuration((NodeId("a"), NodeId("d")), (NodeId("e"),), _MEMBERS.voters, auto_leave=True)

RAFT_MESSAGES: tuple[Message, ...] = (
    VoteRequest(3, 9, 2, pre=True),
    VoteReply(3, granted=True),
    Append(2, 2, 2, 2, (Entry(3, 2, b"data"), Entry(4, 2, _JOINT), Entry(5, 2, None))),
    AppendReply(2, accepted=False, index=2, hint_index=1, hint_term=1),
    Heartbeat(2, 2, 1),
    HeartbeatReply(2, 0),
    InstallSnapshot(2, Snapshot(7, 2, _JOINT)),
    TimeoutNow(2),
    ReadAsk(2, 5),
    ReadAnswer(2, 5, 2),
)
RAFT_SEEDS = tuple(encode(GROUP, message) for message in RAFT_MESSAGES)


def read_message(data: bytes) -> object:
    """Decode a message; what was accepted must survive being sent on."""
    read = decode(data)
    assert read is None or decode(encode(*read)) == read
    return None if read is None else type(read[1]).__name__


def live_member(data: bytes) -> object:
    """Have members hear a message: it is refused and nothing changes, or the member is sound after it."""
    read = decode(data)
    if read is None:
        return None
    outcomes = []
    for name in ("a", "b"):
        group = _group()
        core = group.members[NodeId(name)].core
        before = core.statistics()
        try:
            effects = core.handle(Received(NodeId("b" if name == "a" else "a"), *read), group.now)
        except RemoteProtocolError as error:
            after = core.statistics()
            assert {**after, "refused": 0, "strangers": 0} == {**before, "refused": 0, "strangers": 0}
            outcomes.append(error.message[:20])
            continue
        for effect in effects:
            if isinstance(effect, Persist):
                core.handle(Persisted(effect.number), group.now)
        log = core.log
        assert log.applied <= log.committed <= log.last_index
        assert core.role is not Role.LEADER or core.term == before["term"]
        outcomes.append(" ".join(type(effect).__name__ for effect in effects))
    return outcomes


def _group() -> Group:
    """Three members that a leads in term 2."""
    group = Group()
    for name in "abc":
        group.add(name, founded(_MEMBERS))
    group.tick("a")
    group.settle()
    return group
