"""The router: the cores' effects reach one another, and their timers do not mix."""

from __future__ import annotations

import random

from gossip.codec import BroadcastBody, encode_broadcast
from gossip.config import GossipConfig
from gossip.events import (
    BroadcastRequested,
    Deliver,
    Dial,
    DialFailed,
    LeaveRequested,
    LinkLost,
    LinkOpened,
    Member,
    MemberChanged,
    MemberState,
    PeerFound,
    Received,
    Send,
    SetTimer,
    Started,
    TimerFired,
)
from gossip.incarnation import make_incarnation
from gossip.router import GossipCore
from transport.types import Address, NodeId
from transport.wire import Kind

LIFE = make_incarnation(1)
THERE = (Address("there", 1),)


def core() -> GossipCore:
    """Node ``a``, started."""
    made = GossipCore(
        Member(NodeId("a"), LIFE, MemberState.ALIVE), GossipConfig(dial_failures_doubt=1), random.Random(1)
    )
    made.handle(Started(), 0.0)
    return made


def test_timers_of_the_cores_have_different_tokens() -> None:
    """Membership's beat, the overlay's healing and the probes start together and are told apart."""
    made = GossipCore(Member(NodeId("a"), LIFE, MemberState.ALIVE), GossipConfig(), random.Random(1))

    timers = [e.token for e in made.handle(Started(), 0.0) if isinstance(e, SetTimer)]

    assert sorted(token % 4 for token in timers) == [0, 1, 2]


def test_a_new_member_is_dialled_and_doubted_if_that_fails() -> None:
    """From membership to the overlay and back."""
    made = core()
    made.handle(LinkOpened(NodeId("b"), LIFE, ()), 0.0)
    found = made.handle(PeerFound(NodeId("c"), THERE), 0.0)
    token = next(e.token for e in found if isinstance(e, SetTimer))
    assert made.handle(TimerFired(token), 0.0) == [Dial(NodeId("c"), THERE)]
    made.handle(LinkOpened(NodeId("c"), LIFE, THERE), 0.0)
    lost = made.handle(LinkLost(NodeId("c"), wanted=True), 0.0)
    token = next(e.token for e in lost if isinstance(e, SetTimer))
    made.handle(TimerFired(token), 1.0)

    effects = made.handle(DialFailed(NodeId("c"), refused=False), 1.0)

    changed = [e.after.state for e in effects if isinstance(e, MemberChanged)]
    assert changed == [MemberState.SUSPECT]


def test_broadcasts_pass_by_membership() -> None:
    """Both ways, until the node has left."""
    made = core()
    made.handle(LinkOpened(NodeId("b"), LIFE, ()), 0.0)
    body = encode_broadcast(BroadcastBody(NodeId("b"), LIFE, 1, b"hello"))

    assert made.handle(Received(NodeId("b"), body, Kind.BROADCAST, 1), 0.0) == [Deliver(NodeId("b"), LIFE, 1, b"hello")]
    (sent,) = made.handle(BroadcastRequested(b"x", 1), 0.0)
    assert isinstance(sent, Send)
    assert (sent.kind, made.sequence) == (Kind.BROADCAST, 1)

    made.handle(LeaveRequested(), 0.0)

    assert made.ended
    assert made.handle(BroadcastRequested(b"x", 1), 0.0) == []
    assert made.handle(TimerFired(1), 0.0) == []


def test_the_router_shows_its_cores() -> None:
    """Members, digest, itself and counters."""
    made = core()
    made.handle(LinkOpened(NodeId("b"), LIFE, THERE), 0.0)

    assert [m.node_id for m in made.members()] == ["a", "b"]
    assert made.member(NodeId("b")) == Member(NodeId("b"), LIFE, MemberState.ALIVE, THERE)
    assert made.member(NodeId("c")) is None
    assert made.me.node_id == "a"
    assert made.digest != core().digest
    assert made.statistics()["members"] == 2
