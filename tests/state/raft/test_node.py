"""One member of a group: the scenarios of the paper as transcripts, then what messages and shells may not do."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from datadriven_runner import check_transcript, transcript_id, transcripts
from raft_group import CONFIG, GROUP, Group, Transcript, log_of

from state.errors import NotInGroup, RaftMessageRefused
from state.raft.configuration import Configuration
from state.raft.events import (
    Apply,
    Effect,
    Event,
    LeaveRequested,
    Persist,
    Persisted,
    Proposed,
    ReadRequested,
    Received,
    Role,
    SnapshotTaken,
    Ticked,
    TransferRequested,
)
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
from state.raft.node import RaftCore
from state.raft.types import Entry, Snapshot, Stored, founded
from transport.errors import LocalProtocolError
from transport.types import NodeId

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
ABC = Configuration((A, B, C))


@pytest.mark.parametrize("path", transcripts("raft"), ids=transcript_id)
def test_transcript(path: Path) -> None:
    """What the cores say is what the transcript says; :mod:`datadriven_runner` checks it."""
    check_transcript(path, Transcript().execute)


def node(stored: Stored | None = None) -> RaftCore:
    """A member of three, in term 2 with two entries, unless something else is stored."""
    return RaftCore(A, GROUP, CONFIG, random.Random(1), stored or log_of(1, 2), 0.0)


def hear(core: RaftCore, peer: NodeId, message: Message, now: float = 0.1) -> list[Effect]:
    """What a core does about a message, its disk being fast."""
    effects = core.handle(Received(peer, GROUP, message), now)
    for effect in list(effects):
        if isinstance(effect, Persist):
            effects += core.handle(Persisted(effect.number), now)
    return effects


def group_of_three() -> Group:
    """Which a leads."""
    group = Group()
    for name in "abc":
        group.add(name, founded(ABC))
    group.tick("a")
    group.settle()
    return group


@pytest.mark.parametrize(
    ("peer", "group", "message"),
    [
        (B, "other", Heartbeat(2, 0, 0)),
        (B, GROUP, Heartbeat(2, 99, 0)),
        (A, GROUP, Heartbeat(2, 0, 0)),
        (B, GROUP, Append(2, 1, 2, 0)),
        (NodeId("z"), GROUP, VoteReply(2, granted=True)),
    ],
    ids=repr,
)
def test_nonsense_changes_nothing(peer: NodeId, group: str, message: Message) -> None:
    """Another group's messages, impossible ones and strangers' answers are refused, typed and counted."""
    core, twin = node(), node()
    hear(core, B, Heartbeat(2, 2, 0))
    hear(twin, B, Heartbeat(2, 2, 0))
    with pytest.raises(RaftMessageRefused) as refused:
        core.handle(Received(peer, group, message), 0.2)
    stranger = isinstance(refused.value, NotInGroup)
    assert (core.counters["refused"], core.counters["strangers"]) == (not stranger, stranger)
    assert {**core.statistics(), "refused": 0, "strangers": 0} == twin.statistics()
    assert (core.role, core.leader, core.deadline_at) == (twin.role, twin.leader, twin.deadline_at)
    assert core.handle(Ticked(), 0.3) == twin.handle(Ticked(), 0.3) == []


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (VoteRequest(1, 9, 0), VoteReply(2, granted=False)),
        (VoteRequest(1, 9, 0, pre=True), VoteReply(2, granted=False, pre=True)),
        (Append(1, 0, 0, 0), AppendReply(2, accepted=False, index=0)),
        (InstallSnapshot(1, Snapshot(9, 1, ABC)), AppendReply(2, accepted=False, index=0)),
        (Heartbeat(1, 0, 3), HeartbeatReply(2, 0)),
        (TimeoutNow(1), None),
        (ReadAsk(1, 4), None),
        (VoteReply(1, granted=True, pre=True), None),
    ],
    ids=repr,
)
def test_who_is_behind_is_told(message: Message, answer: Message | None) -> None:
    """A message of an older term changes nothing; one that expects an answer gets this node's term."""
    core = node()
    sent = [getattr(effect, "message", None) for effect in hear(core, B, message)]
    assert sent == ([] if answer is None else [answer])
    assert (core.term, core.role, core.leader) == (2, Role.FOLLOWER, None)


@pytest.mark.parametrize(
    "message",
    [AppendReply(9, accepted=False, index=0), HeartbeatReply(9, 0), ReadAsk(9, 1), VoteReply(9, granted=False)],
)
def test_a_higher_term_is_entered(message: Message) -> None:
    """Whatever it comes with (section 5.1)."""
    core = node()
    hear(core, B, message)
    assert (core.term, core.role, core.leader) == (9, Role.FOLLOWER, None)


@pytest.mark.parametrize("message", [AppendReply(2, accepted=True, index=1), HeartbeatReply(2, 0), ReadAsk(2, 1)])
def test_who_does_not_lead_ignores_answers_to_a_leader(message: Message) -> None:
    """It may have led a moment ago."""
    core = node()
    assert hear(core, B, message) == []
    assert core.role is Role.FOLLOWER


def test_a_pre_vote_for_another_term_does_not_count() -> None:
    """A yes that comes late, to an earlier question, is no yes to this one; a no always is one."""
    core = node()
    core.handle(Ticked(), core.deadline_at)
    hear(core, B, VoteReply(2, granted=True, pre=True))
    roles = [core.role]
    hear(core, B, VoteReply(1, granted=False, pre=True))
    hear(core, C, VoteReply(2, granted=False, pre=True))
    assert [*roles, core.role] == [Role.PRE_CANDIDATE, Role.FOLLOWER]


def test_a_vote_is_counted_only_while_standing() -> None:
    """A vote for an election that is over changes nothing."""
    core = node()
    assert hear(core, B, VoteReply(2, granted=True)) == []
    assert core.role is Role.FOLLOWER


def test_a_pre_vote_is_refused_in_a_term_that_is_reached() -> None:
    """The asking node would enter a term that is not new to this one."""
    core = node()
    (effect,) = hear(core, B, VoteRequest(2, 9, 1, pre=True))
    assert getattr(effect, "message", None) == VoteReply(2, granted=False, pre=True)


def test_who_voted_answers_the_same_again_and_others_no() -> None:
    """One vote in a term (section 5.2), and none in a term that has a leader."""
    core = node()
    for peer, granted in ((B, True), (B, True), (C, False)):
        effects = hear(core, peer, VoteRequest(3, 9, 2))
        assert [e.message for e in effects if hasattr(e, "message")] == [VoteReply(3, granted)]
    led = node()
    hear(led, B, Heartbeat(2, 0, 0))
    assert [getattr(e, "message", None) for e in hear(led, C, VoteRequest(2, 9, 1))] == [VoteReply(2, granted=False)]


def test_a_member_of_nothing_does_not_stand() -> None:
    """It waits to be led, also when it is told to stand."""
    core = node(Stored())
    assert core.handle(Ticked(), core.deadline_at) == []
    hear(core, B, TimeoutNow(2))
    assert (core.role, core.leader, core.term) == (Role.FOLLOWER, B, 2)


def test_what_a_follower_is_asked_is_refused_with_the_leader_named() -> None:
    """Definitely, so that the caller may ask there."""
    group = group_of_three()
    assert group.tell("b", Proposed(((1, b"x"), (2, b"y")))) == [
        "b: 1 is refused: not leader; a leads",
        "b: 2 is refused: not leader; a leads",
    ]
    assert group.tell("b", LeaveRequested(3)) == ["b: 3 is refused: not leader; a leads"]
    assert group.tell("b", TransferRequested(A)) == ["b: hand-over to a failed"]


def test_a_read_at_a_follower_that_gets_no_answer_is_refused() -> None:
    """After a time, or when the leader cannot say, or another leads."""
    group = group_of_three()
    group.tell("b", ReadRequested(1))
    group.wire.clear()
    until = group.now + group.config.read_timeout_s
    while group.now < until - 0.2:
        group.tick("a")
        group.settle()
    assert group.members[B].core.statistics()["reads"] == 1
    group.tick("b")
    assert group.now == until
    assert group.members[B].core.statistics()["reads"] == 0

    asked = _asks(group, 2)
    assert group.tell("b", Received(C, GROUP, ReadAnswer(2, asked, 9))) == []
    assert group.tell("b", Received(A, GROUP, ReadAnswer(2, asked, None))) == ["b: 2 is refused: busy; a leads"]
    _asks(group, 3)
    assert group.tell("b", Received(C, GROUP, Heartbeat(3, 0, 0)))[0:2] == [
        "b writes term 3, vote nobody",
        "b: 3 is refused: no leader; c leads",
    ]


def _asks(group: Group, number: int) -> int:
    group.tell("b", ReadRequested(number))
    _, _, message = group.wire.pop()
    assert isinstance(message, ReadAsk)
    return message.number


def test_a_snapshot_is_taken_of_what_is_applied() -> None:
    """Its term and members come from the log; of what is not applied, or gone, there is none."""
    core = group_of_three().members[A].core
    snapshot = core.snapshot_at(2)
    assert snapshot == Snapshot(2, 2, ABC)
    with pytest.raises(ValueError, match="applied is 2"):
        core.snapshot_at(3)
    with pytest.raises(LocalProtocolError):
        core.handle(SnapshotTaken(Snapshot(3, 2, ABC)), 9.0)
    core.handle(SnapshotTaken(snapshot), 9.0)
    with pytest.raises(ValueError, match="no state at 1"):
        core.snapshot_at(1)
    assert core.handle(SnapshotTaken(Snapshot(1, 1, ABC)), 9.0) == []
    assert core.log.snapshot == snapshot


def test_a_heavy_log_asks_for_a_snapshot_once() -> None:
    """And again only after one was taken."""
    group = Group(replace(CONFIG, log_bytes_max=1_000))
    group.add("a", founded(Configuration((A,))))
    group.tick("a")
    wanted = [line for _ in range(8) for line in group.tell("a", Proposed(((1, bytes(200)),))) if "wants" in line]
    assert wanted == ["a wants a snapshot at 5"]
    group.take_snapshot("a")
    assert group.members[A].core.statistics()["log_bytes"] == 0
    wanted = [line for _ in range(8) for line in group.tell("a", Proposed(((1, bytes(200)),))) if "wants" in line]
    assert wanted == ["a wants a snapshot at 13"]


def test_an_unchanged_restart_applies_again_from_the_snapshot() -> None:
    """What is committed is learned anew; the state machine is that of the snapshot."""
    core = node(Stored(log_of(1, 2).vote, Snapshot(4, 2, ABC), (Entry(5, 2, b"five"),)))
    assert (core.log.applied, core.log.committed) == (4, 4)
    effects = hear(core, B, Heartbeat(2, 5, 0))
    assert Apply((Entry(5, 2, b"five"),)) in effects


def test_a_snapshot_that_is_known_is_answered_at_once() -> None:
    """With what is committed here, which is at least as much."""
    core = node()
    hear(core, B, Heartbeat(2, 2, 0))
    effects = hear(core, B, InstallSnapshot(2, Snapshot(1, 1, ABC)))
    assert [getattr(e, "message", None) for e in effects] == [AppendReply(2, accepted=True, index=2)]


def test_a_tick_too_early_does_nothing() -> None:
    """Neither at a follower nor at a leader: one timer may serve many groups."""
    group = group_of_three()
    for name in "abc":
        assert group.tell(name, Ticked()) == []
    assert group.members[A].core.role is Role.LEADER


def test_what_there_is_to_see() -> None:
    """Numbers for whoever operates it."""
    group = group_of_three()
    core = group.members[A].core
    seen = core.statistics()
    assert (seen["term"], seen["committed"], seen["elections"], seen["leaderships"]) == (2, 2, 1, 1)
    assert (core.leader, core.configuration) == (A, ABC)
    assert core.leadership is not None
    assert group.members[B].core.leadership is None


def test_events_are_what_they_seem() -> None:
    """A write that nobody began is a mistake of the shell."""
    event: Event = Persisted(7)
    with pytest.raises(LocalProtocolError):
        node().handle(event, 0.0)
