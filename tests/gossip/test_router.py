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
    Effect,
    GroupOpened,
    LeaveRequested,
    LinkLost,
    LinkOpened,
    Member,
    MemberChanged,
    MemberForgotten,
    MemberState,
    PeerFound,
    Received,
    RouteChanged,
    RouteWanted,
    Send,
    SendDropped,
    SetTimer,
    Started,
    TimerFired,
)
from gossip.hyparview_codec import Neighbor, Priority, encode
from gossip.incarnation import make_incarnation
from gossip.plumtree_codec import Gossip
from gossip.plumtree_codec import encode as encode_gossip
from gossip.router import GossipCore
from gossip.routing_codec import Answer, Ask
from gossip.routing_codec import decode as decode_route
from gossip.routing_codec import encode as encode_route
from gossip.swim_codec import Ack, Ping, decode_probe, encode_probe
from gossip.vivaldi import Coordinate
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


def run(made: GossipCore, effects: list[Effect], until: float) -> list[Effect]:
    """Let all timers run out that are due by ``until``; what came of it all."""
    out = list(effects)
    for effect in out:
        if isinstance(effect, SetTimer) and effect.delay_s <= until:
            out += made.handle(TimerFired(effect.token), until)
        if len(out) > 1000:
            break
    return out


def neighbor(made: GossipCore, peer: str) -> None:
    """Link to a peer that then asks to be a neighbour."""
    made.handle(LinkOpened(NodeId(peer), LIFE, THERE), 0.0)
    asked = encode(Neighbor(Priority.HIGH, 0))
    made.handle(Received(NodeId(peer), asked, Kind.OVERLAY), 0.0)


def test_timers_of_the_cores_have_different_tokens() -> None:
    """Membership's beat, the overlay's upkeep and shuffle, and the probes start together and are told apart."""
    made = GossipCore(Member(NodeId("a"), LIFE, MemberState.ALIVE), GossipConfig(), random.Random(1))

    timers = [e.token for e in made.handle(Started(), 0.0) if isinstance(e, SetTimer)]

    assert sorted(token % 7 for token in timers) == [0, 1, 1, 2]


def test_a_new_member_is_dialled_and_doubted_if_that_fails() -> None:
    """From membership to the overlay and back."""
    made = core()
    assert Dial(NodeId("c"), THERE) in run(made, made.handle(PeerFound(NodeId("c"), THERE), 0.0), 1.0)
    opened = made.handle(LinkOpened(NodeId("c"), LIFE, THERE), 1.0)
    lost = opened + made.handle(LinkLost(NodeId("c"), wanted=True), 1.0)
    assert Dial(NodeId("c"), THERE) in run(made, lost, 2.0)

    effects = made.handle(DialFailed(NodeId("c"), refused=True), 2.0)

    changed = [e.after.state for e in effects if isinstance(e, MemberChanged)]
    assert changed == [MemberState.SUSPECT]


def test_a_search_runs_through_the_router_and_whoever_answers_is_not_doubted() -> None:
    """Questions, timers and answers reach routing; a failed dial says nothing of who was reached another way."""
    made = core()
    neighbor(made, "b")
    opened = made.handle(LinkOpened(NodeId("c"), LIFE, THERE), 0.0)
    lost = opened + made.handle(LinkLost(NodeId("c"), wanted=True), 0.0)
    assert Dial(NodeId("c"), THERE) in run(made, lost, 2.0)

    wanted = made.handle(RouteWanted(NodeId("c")), 2.0)
    timer = next(effect for effect in wanted if isinstance(effect, SetTimer))
    again = made.handle(TimerFired(timer.token), 3.0)
    asked = [effect for effect in again if isinstance(effect, Send) and effect.kind is Kind.ROUTE]
    assert [effect.peer for effect in asked] == ["b"]
    question = decode_route(asked[0].body)
    assert isinstance(question, Ask)
    answer = encode_route(Answer(question.number, NodeId("c"), (NodeId("a"),), 0, ()))
    found = made.handle(Received(NodeId("b"), answer, Kind.ROUTE), 3.0)
    assert RouteChanged(NodeId("c"), found=True) in found
    assert made.next_hop(NodeId("c"), 3.0) == "b"
    assert made.is_way(NodeId("c"), NodeId("b"), 3.0)

    effects = made.handle(DialFailed(NodeId("c"), refused=True), 3.0)

    assert not [effect for effect in effects if isinstance(effect, MemberChanged)]
    made.handle(LeaveRequested(), 4.0)
    assert made.handle(Received(NodeId("b"), answer, Kind.ROUTE), 4.0) == []


def test_broadcasts_pass_by_membership() -> None:
    """Both ways, until the node has left."""
    made = core()
    neighbor(made, "b")
    body = encode_gossip(Gossip(1, 0, encode_broadcast(BroadcastBody(NodeId("b"), LIFE, 1, b"hello"))))

    heard = made.handle(Received(NodeId("b"), body, Kind.BROADCAST, 1), 0.0)
    assert Deliver(NodeId("b"), LIFE, 1, b"hello") in heard
    said = made.handle(BroadcastRequested(b"x", 1), 0.0)
    assert [(e.peer, e.kind) for e in said if isinstance(e, Send)] == [("b", Kind.BROADCAST)]
    assert made.sequence == 1

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


def test_what_found_no_room_goes_back_to_where_it_came_from() -> None:
    """A group's payload to the group, a broadcast to the broadcast: each announces it instead."""
    made = core()
    neighbor(made, "b")
    made.handle(GroupOpened("g", (NodeId("b"),), member=True), 0.0)
    for request, kind in (
        (BroadcastRequested(b"x", 1), Kind.BROADCAST),
        (BroadcastRequested(b"x", 1, "g"), Kind.GROUP),
    ):
        (send,) = [e for e in made.handle(request, 1.0) if isinstance(e, Send) and e.kind == kind]
        timers = [e.token for e in made.handle(SendDropped(send), 1.0) if isinstance(e, SetTimer)]
        told = [e for token in timers for e in made.handle(TimerFired(token), 1.1)]
        assert [(e.peer, e.kind) for e in told if isinstance(e, Send)] == [("b", kind)]
    assert made.has_group("g")


def test_a_probe_that_nobody_answers_becomes_a_suspicion() -> None:
    """The probing core concludes, the membership core decides."""
    made = core()
    waiting = [(0.0, effect) for effect in made.handle(LinkOpened(NodeId("b"), LIFE, THERE), 0.0)]
    suspected: list[NodeId] = []
    now = 0.0
    while not suspected and waiting:
        waiting.sort(key=lambda one: one[0] + (one[1].delay_s if isinstance(one[1], SetTimer) else 0.0))
        since, effect = waiting.pop(0)
        if isinstance(effect, SetTimer):
            now = since + effect.delay_s
            waiting += [(now, following) for following in made.handle(TimerFired(effect.token), now)]
        elif isinstance(effect, MemberChanged) and effect.after.state is MemberState.SUSPECT:
            suspected.append(effect.after.node_id)

    assert suspected == ["b"]
    assert now < 10.0


def test_a_member_that_left_long_ago_is_forgotten_by_all() -> None:
    """The shell is told, too."""
    made = core()
    neighbor(made, "b")
    left = made.handle(LinkLost(NodeId("b"), wanted=False, left=True), 1.0)
    assert [e.after.state for e in left if isinstance(e, MemberChanged)] == [MemberState.LEFT]
    config = GossipConfig()

    later = [
        effect
        for token in range(0, 70, 7)
        for effect in made.handle(TimerFired(token), 2.0 + config.dead_retention_s)
        if isinstance(effect, MemberForgotten)
    ]

    assert [effect.member.node_id for effect in later] == ["b"]
    assert made.member(NodeId("b")) is None


def test_the_router_knows_how_far_a_measured_peer_is() -> None:
    """From the coordinates that probes bring back."""
    made = core()
    assert made.distance_s(NodeId("a"), NodeId("b")) is None

    opened = made.handle(LinkOpened(NodeId("b"), LIFE, THERE), 0.0)
    (ping,) = [effect for effect in opened if isinstance(effect, Send) and effect.kind == Kind.PROBE]
    asked = decode_probe(ping.body)
    assert isinstance(asked, Ping)
    made.handle(Received(NodeId("b"), encode_probe(Ack(asked.sequence, Coordinate())), Kind.PROBE), 0.02)

    distance_s = made.distance_s(NodeId("a"), NodeId("b"))
    assert distance_s is not None
    assert 0 < distance_s < 1


def test_who_left_only_watches_its_links_end() -> None:
    """Nobody is probed, asked to be a neighbour or dialled any more."""
    made = core()
    neighbor(made, "b")
    made.handle(LeaveRequested(), 1.0)

    opened = made.handle(LinkOpened(NodeId("c"), LIFE, THERE), 1.0)
    lost = made.handle(LinkLost(NodeId("b"), wanted=False), 1.0)

    kinds = {effect.kind for effect in (*opened, *lost) if isinstance(effect, Send)}
    assert not kinds & {Kind.PROBE, Kind.OVERLAY, Kind.BROADCAST, Kind.GROUP}
    assert not [effect for effect in (*opened, *lost) if isinstance(effect, Dial)]
    assert made.handle(GroupOpened("g", (NodeId("b"),), member=True), 1.0) == []
