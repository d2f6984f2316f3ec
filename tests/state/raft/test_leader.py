"""A leader's limits, and what it refuses; the protocol itself is in the transcripts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from raft_group import CONFIG, GROUP, Group

from state.errors import RaftMessageRefused
from state.raft.configuration import Configuration
from state.raft.events import (
    ChangeRequested,
    LeaveRequested,
    Proposed,
    ReadRequested,
    Received,
    Role,
    SnapshotSent,
    TransferRequested,
)
from state.raft.leader import Leader
from state.raft.messages import AppendReply, HeartbeatReply, Message, ReadAsk
from state.raft.progress import Pace
from state.raft.types import ENTRY_BYTES_MAX, RaftConfig, Stored, founded
from transport.types import NodeId

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


def led(config: RaftConfig = CONFIG, members: str = "abc") -> Group:
    """A group that a leads."""
    group = Group(config)
    for name in members:
        group.add(name, founded(Configuration(tuple(map(NodeId, members)))))
    group.tick("a")
    group.settle()
    return group


def leadership(group: Group) -> Leader:
    """How a leads."""
    found = group.members[A].core.leadership
    assert found is not None
    return found


def propose(group: Group, *data: bytes) -> list[str]:
    """Propose at a; what it says about it."""
    lines = group.tell("a", Proposed(tuple((group.number(), item) for item in data)))
    return [line for line in lines if line.startswith("a: ")]


def test_what_is_not_committed_is_bounded() -> None:
    """More is refused as busy, at once; one entry alone always goes, and room comes back with commits."""
    group = led(replace(CONFIG, uncommitted_bytes_max=1_000))
    group.cut.update({(A, B): None, (A, C): None})
    assert propose(group, bytes(2_000)) == ["a: 1 has place 3 of term 2"]
    assert propose(group, b"x") == ["a: 2 is refused: busy; a leads"]
    group.cut.clear()
    group.tick("a")
    group.settle()
    assert propose(group, bytes(600), bytes(600)) == ["a: 4 is refused: busy; a leads", "a: 3 has place 4 of term 2"]


def test_entries_have_a_largest_size() -> None:
    """The others of the same call go."""
    group = led()
    assert propose(group, bytes(ENTRY_BYTES_MAX + 1), b"x") == [
        "a: 1 is refused: too large; a leads",
        "a: 2 has place 3 of term 2",
    ]
    assert propose(group, bytes(ENTRY_BYTES_MAX + 1)) == ["a: 3 is refused: too large; a leads"]


@pytest.mark.parametrize(
    "message",
    [
        AppendReply(2, accepted=True, index=3),
        AppendReply(2, accepted=False, index=-1),
        HeartbeatReply(2, 1),
        HeartbeatReply(2, -1),
    ],
    ids=repr,
)
def test_answers_about_what_was_never_said_are_refused(message: Message) -> None:
    """Entries that the leader does not have, rounds that there were not: nothing changes."""
    group = led()
    core = group.members[A].core
    before = leadership(group).statistics()
    with pytest.raises(RaftMessageRefused):
        core.handle(Received(B, GROUP, message), group.now + 0.5)
    assert core.counters["refused"] == 1
    assert leadership(group).statistics() == before == {B: (2, Pace.REPLICATE), C: (2, Pace.REPLICATE)}


def test_reads_beyond_the_limit_are_refused() -> None:
    """At the leader for its own callers and for other members alike."""
    group = led(replace(CONFIG, reads_max=1))
    assert group.tell("a", Received(B, GROUP, ReadAsk(2, 5)))[0].startswith("a to b: heartbeat")
    assert group.tell("a", Received(C, GROUP, ReadAsk(2, 6))) == ["a to c: read at None, term 2"]
    assert group.tell("a", ReadRequested(1)) == ["a: 1 is refused: busy; a leads"]


def test_what_becomes_of_a_snapshot_that_nobody_sent_does_not_matter() -> None:
    """To a stranger, or to one that needs none."""
    group = led()
    assert group.tell("a", SnapshotSent(NodeId("z"), arrived=True)) == []
    assert group.tell("a", SnapshotSent(B, arrived=True)) == []
    assert group.tell("b", SnapshotSent(A, arrived=True)) == []


def test_a_snapshot_that_arrived_without_an_answer_is_taken_for_there() -> None:
    """The next message shows whether it is; nothing is sent before the follower is heard."""
    group = led()
    group.cut.update({(A, C): None, (C, A): None})
    propose(group, b"1", b"2")
    group.settle()
    group.take_snapshot("a")
    group.cut.clear()
    group.tick("a")
    group.settle()
    assert leadership(group).statistics()[C] == (2, Pace.SNAPSHOT)
    assert group.tell("a", SnapshotSent(C, arrived=True)) == []
    assert leadership(group).statistics()[C] == (2, Pace.PROBE)
    propose(group, b"3")
    assert not [message for message in group.wire if message[1] == C]


def test_nobody_is_sent_a_snapshot_who_is_not_there() -> None:
    """It would cost much each time something is proposed."""
    group = led()
    group.cut.update({(A, C): None, (C, A): None})
    group.run(5.0)
    propose(group, b"1")
    group.settle()
    group.take_snapshot("a")
    group.members[A].core.leadership._progress[C].become(Pace.PROBE, 1)  # type: ignore[union-attr]
    propose(group, b"2")
    assert group.snapshots == []


def test_the_target_of_a_hand_over_can_be_voted_out() -> None:
    """The joint phase ends by itself while leadership is being handed to somebody who is no voter after it."""
    group = led()
    for name in "de":
        group.add(name, Stored())
    group.cut.update({(A, B): None, (B, A): None})
    group.tell("a", ChangeRequested(1, (A, NodeId("d"), NodeId("e"))))
    assert group.tell("a", TransferRequested(B)) == []
    assert "  a: hand-over to b failed" in group.settle()
    assert leadership(group).transferee is None
    assert group.members[A].core.configuration == Configuration((A, NodeId("d"), NodeId("e")))


def test_changes_that_are_none_are_refused() -> None:
    """The same members, no voters, an end to a joint phase that there is not, or is not committed."""
    group = led()
    assert group.tell("a", ChangeRequested(1, (A, B, C))) == ["a: 1 is refused: invalid; a leads"]
    assert group.tell("a", ChangeRequested(2, ())) == ["a: 2 is refused: invalid; a leads"]
    assert group.tell("a", LeaveRequested(3)) == ["a: 3 is refused: invalid; a leads"]
    group.tell("a", ChangeRequested(4, (A, B), auto_leave=False))
    assert group.tell("a", LeaveRequested(5)) == ["a: 5 is refused: change pending; a leads"]


def test_a_change_is_settled_when_it_is_committed_not_before() -> None:
    """What was proposed before it may be committed alone."""
    group = led(replace(CONFIG, append_entries_max=1))
    propose(group, b"x")
    group.tell("a", ChangeRequested(1, (B, C)))
    for other in "bc":
        group.deliver("a", other, 1)
        group.deliver(other, "a", 1)
    core = group.members[A].core
    assert (core.log.committed, core.log.configuration_index, core.role) == (3, 4, Role.LEADER)
    group.settle()
    assert core.role is Role.FOLLOWER


def test_asking_twice_to_hand_over_is_asking_once() -> None:
    """The second time changes nothing."""
    group = led()
    assert group.tell("a", TransferRequested(B)) == ["a to b: stand now, says the leader of 2"]
    assert group.tell("a", TransferRequested(B)) == []
    assert leadership(group).transferee == B
