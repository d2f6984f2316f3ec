"""Groups: a payload to every subscriber once, and to nobody else, whoever comes, goes and fails."""

from __future__ import annotations

import random

import pytest
from simnet import SimNet

from gossip.codec import BroadcastBody, encode_broadcast
from gossip.config import GossipConfig
from gossip.events import (
    BroadcastRequested,
    Deliver,
    Effect,
    Event,
    GroupOpened,
    LinkKept,
    LinkLost,
    LinkOpened,
    LinkWanted,
    Member,
    MemberState,
    Missed,
    Originated,
    Received,
    Send,
    SendDropped,
    SetTimer,
    SubscriberChanged,
    TimerFired,
)
from gossip.groups import (
    GROUPS_MAX,
    LINKS_INTERVAL_S,
    NAME_CHARS_MAX,
    PUBLISHER_IDLE_S,
    WAITING_MAX,
    GroupsCore,
    decode,
    encode,
)
from gossip.incarnation import make_incarnation
from gossip.plumtree_codec import Gossip
from gossip.plumtree_codec import decode as decode_tree
from gossip.plumtree_codec import encode as encode_tree
from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.types import NodeId
from transport.wire import Kind, pack

LIFE = make_incarnation(5)


class Node:
    """A groups core with its running timers."""

    def __init__(self, **limits: float) -> None:
        me = Member(NodeId("me"), LIFE, MemberState.ALIVE)
        self.core = GroupsCore(me, GossipConfig(**limits), random.Random(1))  # type: ignore[arg-type]
        self.now = 0.0
        self.timers: list[tuple[float, int]] = []

    def feed(self, event: Event) -> list[Effect]:
        effects = self.core.handle(event, self.now)
        self.timers += [(self.now + e.delay_s, e.token) for e in effects if isinstance(e, SetTimer)]
        return [e for e in effects if not isinstance(e, SetTimer)]

    def wait(self, seconds: float) -> list[Effect]:
        out: list[Effect] = []
        end = self.now + seconds
        while due := sorted(timer for timer in self.timers if timer[0] <= end):
            self.timers.remove(due[0])
            self.now = due[0][0]
            out += self.feed(TimerFired(due[0][1]))
        self.now = end
        return out

    def open(self, *subscribers: str, group: str = "g", member: bool = True) -> list[Effect]:
        return self.feed(GroupOpened(group, tuple(map(NodeId, subscribers)), member))

    def link(self, peer: str) -> list[Effect]:
        return self.feed(LinkOpened(NodeId(peer), 1, ()))

    def change(self, peer: str, *, subscribed: bool) -> list[Effect]:
        return self.feed(SubscriberChanged("g", NodeId(peer), subscribed))

    def hear(self, peer: str, sequence: int, payload: bytes = b"p", group: str = "g") -> list[Effect]:
        sealed = encode_broadcast(BroadcastBody(NodeId("x"), LIFE, sequence, payload))
        body = encode(group, encode_tree(Gossip(1, 0, sealed)))
        return self.feed(Received(NodeId(peer), body, Kind.GROUP, 8))


def pushed(effects: list[Effect]) -> list[tuple[str, str]]:
    """To whom payloads go, and within which group."""
    sends = [(e.peer, *decode(e.body)) for e in effects if isinstance(e, Send) and e.kind == Kind.GROUP]
    return [(peer, group) for peer, group, body in sends if isinstance(decode_tree(body), Gossip)]


def test_subscribing_links_to_the_neighbours_and_keeps_the_links() -> None:
    """They are asked for at once and again while they are missing, and let go when they are neighbours no more."""
    node = Node()
    assert node.open("a", "b") == [
        LinkKept(NodeId("a"), kept=True),
        LinkKept(NodeId("b"), kept=True),
        LinkWanted(NodeId("a")),
        LinkWanted(NodeId("b")),
    ]
    node.link("a")
    assert node.wait(LINKS_INTERVAL_S) == [LinkWanted(NodeId("b"))]
    assert node.change("c", subscribed=True) == [LinkKept(NodeId("c"), kept=True), LinkWanted(NodeId("c"))]
    assert node.change("b", subscribed=False) == [LinkKept(NodeId("b"), kept=False)]
    assert node.change("a", subscribed=False) == [LinkKept(NodeId("a"), kept=False)]
    assert node.change("me", subscribed=False) == []
    assert node.feed(SubscriberChanged("other", NodeId("a"), subscribed=True)) == []
    assert len(node.core) == 1


def test_a_payload_goes_to_neighbours_with_a_link_and_comes_to_the_subscriber() -> None:
    """Within the group: other links, other groups and lost links get nothing."""
    node = Node()
    node.open("a", "b", "c")
    for peer in ("a", "b", "stranger"):
        node.link(peer)
    effects = node.feed(BroadcastRequested(b"p", 8, "g"))
    assert pushed(effects) == [("a", "g"), ("b", "g")]
    assert [e.pushed for e in effects if isinstance(e, Originated)] == [("a", "b")]

    node.feed(LinkLost(NodeId("a")))
    node.feed(LinkLost(NodeId("stranger")))
    effects = node.hear("b", 1)
    assert [(e.payload, e.group) for e in effects if isinstance(e, Deliver)] == [(b"p", "g")]
    assert pushed(effects) == []
    assert pushed(node.hear("c", 2)) == [("b", "g")]
    assert node.hear("b", 1, group="h") == []
    assert node.core.counters["bodies_of_other_groups"] == 1


def test_a_publisher_hands_over_to_two_subscribers_once_there_is_a_link() -> None:
    """It is no subscriber itself: nothing is delivered to it."""
    node = Node()
    wanted = [e.peer for e in node.open(*(f"n{i}" for i in range(20)), member=False) if isinstance(e, LinkWanted)]
    assert len(wanted) == 2
    assert node.feed(BroadcastRequested(b"1", 8, "g")) == []
    node.feed(BroadcastRequested(b"2", 8, "g"))

    assert pushed(node.link(wanted[0])) == [(wanted[0], "g")] * 2
    node.link(wanted[1])
    third = pushed(node.feed(BroadcastRequested(b"3", 8, "g")))
    assert sorted(third) == sorted((peer, "g") for peer in wanted)
    assert [e for e in node.hear(wanted[0], 1) if isinstance(e, Deliver)] == []


def test_what_waits_in_vain_is_dropped_and_counted() -> None:
    """As old as a broadcast may be; too many are refused; a group that nobody uses any more closes."""
    node = Node(plumtree_age_s=10.0)
    node.open("a", member=False)
    for _ in range(WAITING_MAX):
        node.feed(BroadcastRequested(b"", 8, "g"))
    with pytest.raises(LocalProtocolError, match="wait for a link"):
        node.feed(BroadcastRequested(b"", 8, "g"))

    node.wait(10.0 + LINKS_INTERVAL_S)
    assert node.core.counters["publications_expired"] == WAITING_MAX
    node.feed(BroadcastRequested(b"", 8, "g"))
    assert pushed(node.link("a")) == [("a", "g")]
    node.feed(LinkLost(NodeId("a")))
    node.wait(PUBLISHER_IDLE_S - 11.0)
    node.feed(BroadcastRequested(b"", 8, "g"))
    node.wait(PUBLISHER_IDLE_S - 9.0)
    assert node.core.is_open("g")
    left = node.wait(10.0 + LINKS_INTERVAL_S)
    assert not node.core.is_open("g")
    assert LinkKept(NodeId("a"), kept=False) in left
    assert node.timers == []
    with pytest.raises(LocalProtocolError, match="not open"):
        node.feed(BroadcastRequested(b"", 8, "g"))


def test_leaving_a_group_is_to_publish_to_it_at_most() -> None:
    """It closes when idle; a subscriber's group never does.  Opened again it begins anew."""
    node = Node()
    node.open("a")
    node.link("a")
    node.feed(BroadcastRequested(b"", 8, "g"))
    node.wait(2 * PUBLISHER_IDLE_S)
    assert node.core.is_open("g")
    node.open(member=False)
    assert [e for e in node.hear("a", 1) if isinstance(e, Deliver)] == []
    node.wait(PUBLISHER_IDLE_S + LINKS_INTERVAL_S)
    assert not node.core.is_open("g")
    node.open("a")
    assert pushed(node.feed(BroadcastRequested(b"", 8, "g"))) == [("a", "g")]
    node.open("a", member=False)
    node.open("a", member=True)
    node.wait(2 * PUBLISHER_IDLE_S)
    assert node.core.is_open("g")


def test_a_payload_that_found_no_room_is_announced_within_its_group() -> None:
    """As Plumtree does; one of a group that closed meanwhile is no concern."""
    node = Node()
    node.open("a")
    node.link("a")
    (send,) = [e for e in node.feed(BroadcastRequested(b"p", 8, "g")) if isinstance(e, Send)]
    node.feed(SendDropped(send))
    announced = [e for e in node.wait(0.1) if isinstance(e, Send)]
    assert [(e.peer, e.kind, decode(e.body)[0]) for e in announced] == [("a", Kind.GROUP, "g")]
    other = Send(NodeId("a"), encode("h", b""), kind=Kind.GROUP)
    assert node.feed(SendDropped(other)) == []


def test_names_and_bodies_are_bounded() -> None:
    """Ours are refused with an error that says the bound, a peer's are errors of the peer."""
    node = Node()
    for name in ("", "x" * (NAME_CHARS_MAX + 1)):
        with pytest.raises(LocalProtocolError, match="1 to 256 characters"):
            node.open("a", group=name)
    for number in range(GROUPS_MAX):
        node.open(group=f"g{number}")
    with pytest.raises(LocalProtocolError, match="may not have more"):
        node.open(group="one more")
    for body in (pack(["g"]), pack("g"), pack([1, b""]), pack(["g", "b"]), pack(["", b""]), pack(["x" * 300, b""])):
        with pytest.raises(RemoteProtocolError, match="group"):
            decode(body)
    assert decode(pack(["g", b"body", "later field"])) == ("g", b"body")


def test_what_was_missed_is_told_with_its_group() -> None:
    """A hole that nobody can fill any more."""
    node = Node()
    node.open("a")
    node.link("a")
    node.hear("a", 1)
    node.hear("a", 4)
    missed = [e for e in node.wait(200.0) if isinstance(e, Missed)]
    assert [(e.origin, e.first, e.last, e.group) for e in missed] == [("x", 2, 3, "g")]


# --- many nodes -------------------------------------------------------------------------------------------------


def _subscribe(net: SimNet, group: str, members: list[str]) -> None:
    """Tell every node who subscribes, as its layer above reads it off the members' metadata."""
    names = tuple(map(NodeId, members))
    for process in net.live:
        if process.name in names:
            net.feed(process, GroupOpened(group, tuple(n for n in names if n != process.name), member=True))


def test_only_subscribers_hear_a_publication_and_each_once() -> None:
    """Twenty of forty nodes, published to by a subscriber and by another node; then a third of them die."""
    net = SimNet(7)
    net.start_all(40)
    net.run(30, until=net.agreed)
    members = [f"n{number:03}" for number in range(0, 40, 2)]
    _subscribe(net, "g", members)
    net.run(5)
    publisher = net.processes[NodeId("n001")]
    net.feed(publisher, GroupOpened("g", tuple(map(NodeId, members)), member=False))
    net.feed(publisher, BroadcastRequested(b"from outside", 64, "g"))
    net.feed(net.processes[NodeId("n004")], BroadcastRequested(b"from inside", 64, "g"))
    net.run(5)

    for process in net.live:
        heard = sorted(d.payload for d in process.delivered if d.group == "g")
        expected = [b"from inside", b"from outside"] if process.name in members else []
        if process.name == "n004":
            expected = [b"from outside"]
        assert heard == expected, process.name

    dead = members[3::3]
    for name in dead:
        net.kill(name)
    net.feed(net.processes[NodeId("n004")], BroadcastRequested(b"in the middle of it", 64, "g"))
    for process in net.live:
        for name in dead:
            net.feed(process, SubscriberChanged("g", NodeId(name), subscribed=False))
    net.run(10)
    for process in net.live:
        if process.name in members and process.name != "n004":
            assert process.delivered[-1].payload == b"in the middle of it", process.name
    assert net.violations == []
