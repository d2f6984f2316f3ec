"""Ways through other nodes: one core alone, and many of them on a net of links."""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import replace

import pytest

from gossip.config import GossipConfig
from gossip.events import (
    Effect,
    Event,
    Forward,
    LinkLost,
    LinkOpened,
    LinkWanted,
    Member,
    MemberState,
    NeighborDown,
    NeighborUp,
    Received,
    Relayed,
    RouteChanged,
    RouteSuspected,
    RouteWanted,
    Send,
    SetTimer,
    Started,
    TimerFired,
    Transit,
)
from gossip.incarnation import make_incarnation
from gossip.members import MemberTable
from gossip.routing import WAYS_MAX, RoutingCore
from gossip.routing_codec import PATH_MAX, Answer, Ask, Body, Lost, decode, encode
from transport.errors import RemoteProtocolError
from transport.types import NodeId
from transport.wire import Envelope, Kind

CONFIG = GossipConfig()
A, B, C, D, E = (NodeId(name) for name in "abcde")
HOP_S = 0.01


def member(name: str, state: MemberState = MemberState.ALIVE) -> Member:
    """What the table holds of a node."""
    return Member(NodeId(name), make_incarnation(1), state)


def table(owner: str, others: str) -> MemberTable:
    """A table of nodes whose names are letters."""
    made = MemberTable(member(owner), CONFIG)
    for name in others:
        if name != owner:
            made.put(member(name), 0.0)
    return made


def core(owner: str = "a", others: str = "bcdefgh", links: str = "", config: GossipConfig = CONFIG) -> RoutingCore:
    """A core that is linked to ``links``, its neighbours."""
    made = RoutingCore(NodeId(owner), table(owner, others), config, random.Random(1))
    for name in links:
        made.handle(LinkOpened(NodeId(name), 1, ()), 0.0)
        made.handle(NeighborUp(NodeId(name)), 0.0)
    return made


def told(effects: list[Effect]) -> list[tuple[NodeId, Body | None, int]]:
    """Whom is told what, with which ttl."""
    return [(e.peer, decode(e.body), e.ttl) for e in effects if isinstance(e, Send)]


def hear(routing: RoutingCore, peer: NodeId, body: Body, *, ttl: int = 0, now: float = 0.0) -> list[Effect]:
    """``peer`` says something."""
    return routing.handle(Received(peer, encode(body), Kind.ROUTE, ttl), now)


def envelope(source: str | None, target: str | None, ttl: int = 5, body: bytes = b"sealed") -> Envelope:
    """A routed envelope."""
    return Envelope(Kind.RELAY, ttl, source, target, body)


class Net:
    """Cores joined by links; envelopes are carried with their bodies."""

    def __init__(self, *links: str, config: GossipConfig = CONFIG) -> None:
        self.now = 0.0
        self.links = {frozenset(link) for link in links}
        names = "".join(sorted(set("".join(links))))
        self.cores = {
            name: RoutingCore(NodeId(name), table(name, names), config, random.Random(name)) for name in names
        }
        self.events: dict[str, list[Effect]] = {name: [] for name in names}
        self.asks = 0
        self._flying: list[tuple[float, int, str, Event]] = []
        self._order = itertools.count()
        for link in links:
            self.link(*link)

    def link(self, one: str, other: str) -> None:
        self.links.add(frozenset((one, other)))
        for name, peer in ((one, other), (other, one)):
            self.feed(name, LinkOpened(NodeId(peer), 1, ()))
            self.feed(name, NeighborUp(NodeId(peer)))

    def unlink(self, one: str, other: str) -> None:
        self.links.discard(frozenset((one, other)))
        for name, peer in ((one, other), (other, one)):
            self.feed(name, NeighborDown(NodeId(peer)))
            self.feed(name, LinkLost(NodeId(peer)))

    def kill(self, name: str) -> None:
        for link in [sorted(link) for link in self.links if name in link]:
            self.unlink(link[0], link[1])

    def feed(self, name: str, event: Event) -> None:
        for effect in self.cores[name].handle(event, self.now):
            match effect:
                case Send():
                    self.asks += isinstance(decode(effect.body), Ask)
                    self._later(HOP_S, effect.peer, Received(NodeId(name), effect.body, effect.kind, effect.ttl), name)
                case Forward():
                    self._later(HOP_S, effect.peer, Transit(NodeId(name), effect.envelope), name)
                case SetTimer():
                    self._later(effect.delay_s, name, TimerFired(effect.token), name)
                case _:
                    self.events[name].append(effect)

    def _later(self, delay_s: float, name: str, event: Event, sender: str) -> None:
        if name == sender or frozenset((name, sender)) in self.links:
            heapq.heappush(self._flying, (self.now + delay_s, next(self._order), name, event))

    def run(self, for_s: float) -> None:
        until = self.now + for_s
        while self._flying and self._flying[0][0] <= until:
            self.now, _, name, event = heapq.heappop(self._flying)
            self.feed(name, event)
        self.now = until

    def find(self, source: str, target: str) -> bool:
        """Search; whether there is a way then."""
        self.feed(source, RouteWanted(NodeId(target)))
        self.run(10.0)
        return self.cores[source].next_hop(NodeId(target), self.now) is not None

    def send(self, source: str, target: str, body: bytes = b"sealed") -> list[Relayed]:
        """Send one envelope; what arrived at the target."""
        hop = self.cores[source].next_hop(NodeId(target), self.now)
        assert hop is not None
        self._later(HOP_S, hop, Transit(NodeId(source), envelope(source, target, CONFIG.relay_ttl, body)), source)
        before = len(self.events[target])
        self.run(1.0)
        return [effect for effect in self.events[target][before:] if isinstance(effect, Relayed)]


# --- many nodes -----------------------------------------------------------------------------------------------


def test_a_way_through_one_node_is_found_in_the_first_ring() -> None:
    """Both ends learn it with the question and its answer, and envelopes pass both ways."""
    net = Net("ac", "cb", "ad", "db", "ae")

    assert net.find("a", "b")
    assert net.asks <= 5
    assert net.send("a", "b") == [Relayed(A, b"sealed")]
    assert net.send("b", "a") == [Relayed(B, b"sealed")]
    assert RouteChanged(B, found=True) in net.events["a"]
    assert net.cores["a"].reaches(B, net.now)
    assert not net.cores["b"].reaches(A, net.now)  # it asked, and did not answer


def test_a_long_way_is_found_and_used() -> None:
    """As long as a path may be, and no longer."""
    chain = "acdefgb"
    net = Net(*(chain[index : index + 2] for index in range(len(chain) - 1)))

    assert len(chain) - 2 < CONFIG.relay_ttl
    assert net.find("a", "b")
    assert net.send("a", "b") == [Relayed(A, b"sealed")]
    assert net.send("b", "a") == [Relayed(B, b"sealed")]

    short = replace(CONFIG, relay_ttl=4)
    limited = Net(*(chain[index : index + 2] for index in range(len(chain) - 1)), config=short)
    assert not limited.find("a", "b")
    assert RouteChanged(B, found=False) in limited.events["a"]
    assert limited.cores["a"].counters["route_searches_failed"] == 1


def test_another_way_is_used_when_the_relay_dies() -> None:
    """Both ends change over by themselves, for they learnt both ways."""
    net = Net("ac", "cb", "ad", "db")
    net.find("a", "b")
    first = net.cores["a"].next_hop(B, net.now)
    assert first is not None

    net.kill(first)

    other = net.cores["a"].next_hop(B, net.now)
    assert other not in (None, first)
    assert net.send("a", "b") == [Relayed(A, b"sealed")]
    assert net.send("b", "a") == [Relayed(B, b"sealed")]


def test_a_relay_that_lost_the_target_says_so() -> None:
    """The asker takes the other way with its next envelope."""
    net = Net("ac", "cb", "ad", "db")
    net.find("a", "b")
    first = net.cores["a"].next_hop(B, net.now)
    assert first is not None
    net.unlink(*sorted((first, "b")))

    assert net.send("a", "b") == []
    assert net.cores["a"].next_hop(B, net.now) != first
    assert net.send("a", "b") == [Relayed(A, b"sealed")]


def test_no_loop_lives() -> None:
    """Whatever nodes believe: an envelope that comes round is dropped when its ttl is used up."""
    net = Net("ac", "cd", "de", "ec")
    for name, hop in (("c", "d"), ("d", "e"), ("e", "c")):
        net.cores[name]._learn(B, NodeId(hop), 2, 60.0)
        for source in ("c", "d", "e"):
            if source != name:
                net.cores[name]._learn(A, NodeId(source), 2, 60.0)
    net.cores["a"]._learn(B, C, 2, 60.0)

    assert net.send("a", "c") == [Relayed(A, b"sealed")]
    hops = sum(routing.counters["relayed_envelopes"] for routing in net.cores.values())
    net._later(HOP_S, "c", Transit(A, envelope("a", "b", CONFIG.relay_ttl)), "a")
    net.run(5.0)

    hops = sum(routing.counters["relayed_envelopes"] for routing in net.cores.values()) - hops
    assert hops == CONFIG.relay_ttl
    assert sum(routing.counters["relay_dropped_ttl"] for routing in net.cores.values()) == 1


def test_a_question_reaches_every_node_at_most_a_few_times() -> None:
    """In a dense net each node passes it on once."""
    names = "acdefghijklmnopqrstuvwxyz"
    rng = random.Random(3)
    links = {frozenset(pair) for pair in itertools.pairwise(names)}
    while len(links) < 3 * len(names):
        links.add(frozenset(rng.sample(names, 2)))
    net = Net(*("".join(sorted(link)) for link in sorted(links, key=sorted)), "zb")

    assert net.find("a", "b")
    # Three rings at most, each over every link at most once in each direction.
    assert net.asks <= 2 * 2 * len(net.links)


# --- one node -------------------------------------------------------------------------------------------------


def test_a_search_asks_in_rings_and_then_rests() -> None:
    """Neighbours, further, as far as may be; then it says that there is none, and asks again after a while."""
    routing = core(links="cd")
    effects = routing.handle(RouteWanted(B), 0.0)
    rings: list[int] = []
    now = 0.0
    while not any(isinstance(effect, RouteChanged) for effect in effects):
        asks = told(effects)
        assert [peer for peer, _, _ in asks] == [C, D]
        rings.append(asks[0][2])
        timer = next(effect for effect in effects if isinstance(effect, SetTimer))
        now += timer.delay_s
        assert routing.handle(RouteWanted(B), now) == []  # under way
        effects = routing.handle(TimerFired(timer.token), now)

    assert rings == [1, 3, CONFIG.relay_ttl]
    rest = next(effect for effect in effects if isinstance(effect, SetTimer))
    assert routing.handle(RouteWanted(B), now) == [RouteChanged(B, found=False)]
    assert routing.handle(TimerFired(rest.token), now + rest.delay_s) == []
    assert told(routing.handle(RouteWanted(B), now + rest.delay_s))


def test_a_stale_timer_and_a_strange_event_mean_nothing() -> None:
    """As in every core."""
    routing = core()
    assert routing.handle(TimerFired(99), 0.0) == []
    assert routing.handle(Started(), 0.0) == []


def test_some_links_beside_the_neighbours_are_asked_too() -> None:
    """A link on demand may be the one that helps."""
    routing = core(links="c")
    routing.handle(LinkOpened(D, 1, ()), 0.0)
    assert [peer for peer, _, _ in told(routing.handle(RouteWanted(B), 0.0))] == [C, D]
    routing.handle(NeighborDown(C), 0.0)
    routing.handle(NeighborDown(E), 0.0)
    assert told(hear(routing, D, Ask(1, B, (D,)), ttl=3)) == []


def test_an_answer_that_comes_late_still_counts_and_a_found_search_may_start_anew() -> None:
    """The first answer is told; when the way is lost again before the ring's time is over, a new search begins."""
    routing = core(links="c")
    number = ask_number(routing.handle(RouteWanted(B), 0.0))
    assert RouteChanged(B, found=True) in hear(routing, C, Answer(number, B, (A,), 0, (C,)))
    assert hear(routing, C, Answer(number, B, (A,), 0, (C,))) == []
    assert routing.handle(RouteWanted(B), 0.0) == [RouteChanged(B, found=True)]

    routing.handle(NeighborDown(C), 0.1)
    assert routing.handle(LinkLost(C), 0.1) == [RouteChanged(B, found=False)]
    routing.handle(LinkOpened(D, 1, ()), 0.1)
    again = routing.handle(RouteWanted(B), 0.1)
    assert [peer for peer, _, _ in told(again)] == [D]
    assert LinkWanted(C) in again  # its neighbour, as it said


def ask_number(effects: list[Effect]) -> int:
    """The number of the question that was asked."""
    return next(body.number for _, body, _ in told(effects) if isinstance(body, Ask))


def test_a_search_that_found_ends_with_its_ring() -> None:
    """And a later answer to it still teaches a way."""
    routing = core(links="cd")
    effects = routing.handle(RouteWanted(B), 0.0)
    number = ask_number(effects)
    hear(routing, C, Answer(number, B, (A,), 0, ()))
    timer = next(effect for effect in effects if isinstance(effect, SetTimer))
    assert routing.handle(TimerFired(timer.token), 1.0) == []
    assert hear(routing, D, Answer(number, B, (A,), 0, ()), now=1.0) == []
    routing.handle(LinkLost(C), 1.0)
    assert routing.next_hop(B, 1.0) == D


def test_a_long_way_is_cut_short_through_the_targets_neighbours() -> None:
    """They are dialled, and asked once they are linked; the shorter way is then preferred."""
    routing = core(links="c")
    number = ask_number(routing.handle(RouteWanted(B), 0.0))
    effects = hear(routing, C, Answer(number, B, (A,), 2, (D, NodeId("unknown"))))
    assert effects == [RouteChanged(B, found=True), LinkWanted(D)]

    effects = routing.handle(LinkOpened(D, 1, ()), 1.0)
    assert [(peer, ttl) for peer, _, ttl in told(effects)] == [(D, 1)]
    assert hear(routing, D, Answer(ask_number(effects), B, (A,), 1, (D,)), now=1.0) == []
    assert routing.next_hop(B, 1.0) == D
    assert routing.next_hop(B, 1.0, avoid=D) == C


def test_shortcuts_are_bounded() -> None:
    """Dials whose links never come are forgotten."""
    names = [f"n{number}" for number in range(200)]
    members = MemberTable(member("a"), CONFIG)
    for name in [*names, "b"]:
        members.put(member(name), 0.0)
    routing = RoutingCore(A, members, CONFIG, random.Random(1))
    routing.handle(LinkOpened(C, 1, ()), 0.0)
    routing.handle(NeighborUp(C), 0.0)
    for index in range(0, 200, 2):
        number = ask_number(routing.handle(RouteWanted(B), float(index)))
        gateways = tuple(NodeId(name) for name in names[index : index + 2])
        hear(routing, C, Answer(number, B, (A,), 3, gateways), now=float(index))
        routing.handle(RouteSuspected(B, C), float(index))
        routing.member_changed(member("b", MemberState.DEAD))
    assert told(routing.handle(LinkOpened(NodeId("n0"), 1, ()), 300.0)) == []
    assert told(routing.handle(LinkOpened(NodeId("n199"), 1, ()), 300.0)) != []


def test_the_target_answers_and_nobody_else() -> None:
    """Each way the question came, so many times; with its neighbours."""
    routing = core("b", "acdefgh", links="cdefgh")
    ask = Ask(5, B, (A, C))
    (answer,) = told(hear(routing, C, ask))
    assert answer == (C, Answer(5, B, (A, C), 0, (C, D, E, NodeId("f"), NodeId("g"), NodeId("h"))), 0)
    answers = [told(hear(routing, NodeId(peer), Ask(5, B, (A, NodeId(peer))))) for peer in "defgh"]
    assert [len(sent) for sent in answers] == [1] * (WAYS_MAX - 1) + [0, 0]


def test_whoever_is_linked_to_the_target_passes_the_question_to_it_alone() -> None:
    """Others pass it on to their neighbours, as far as the ttl goes, and each question once."""
    routing = core("c", "abdefgh", links="ade")
    assert told(hear(routing, A, Ask(1, D, (A,)), ttl=1)) == [(D, Ask(1, D, (A, C)), 0)]
    assert told(hear(routing, A, Ask(2, B, (A,)), ttl=1)) == []
    assert [(peer, ttl) for peer, _, ttl in told(hear(routing, A, Ask(3, B, (A,)), ttl=3))] == [(D, 2), (E, 2)]
    assert told(hear(routing, E, Ask(3, B, (A, E)), ttl=3)) == []
    assert told(hear(routing, A, Ask(4, D, (A,)), ttl=0)) == []
    assert routing.counters["route_asks_dropped"] == 0


@pytest.mark.parametrize(
    "ask",
    [Ask(1, B, (D,)), Ask(1, B, (A, C, D)), Ask(1, B, (NodeId("x"), A)), Ask(1, NodeId("x"), (A,))],
    ids=["not its sender's", "came round", "from a stranger", "for a stranger"],
)
def test_a_question_that_makes_no_sense_is_dropped(ask: Ask) -> None:
    """The sender stands last in the path, this node not at all, and both ends are members."""
    routing = core("c", "abde", links="ade")
    assert hear(routing, A, ask, ttl=3) == []
    assert routing.counters["route_asks_dropped"] == 1
    assert routing.targets == 0


def test_a_path_that_is_full_is_not_made_longer() -> None:
    """Whatever the ttl says."""
    names = [f"n{number}" for number in range(PATH_MAX - 1)]
    members = table("c", "ab")
    for name in names:
        members.put(member(name), 0.0)
    routing = RoutingCore(C, members, CONFIG, random.Random(1))
    for name in ("a", "b"):
        routing.handle(LinkOpened(NodeId(name), 1, ()), 0.0)
    path = (*(NodeId(name) for name in names), A)
    assert told(hear(routing, A, Ask(1, B, path), ttl=9)) == []


def test_too_many_questions_of_one_peer_are_dropped() -> None:
    """In one second; the next one starts afresh, and others are not affected."""
    routing = core("c", "abd", links="abd", config=replace(CONFIG, relay_asks_max=2))
    passed = [len(told(hear(routing, A, Ask(number, B, (A,)), ttl=1))) for number in range(4)]
    assert passed == [1, 1, 0, 0]
    assert len(told(hear(routing, D, Ask(9, B, (D,)), ttl=1))) == 1
    assert len(told(hear(routing, A, Ask(5, B, (A,)), ttl=1, now=1.0))) == 1


def test_an_answer_goes_back_the_way_of_the_question() -> None:
    """One hop further from the target each time, and both ends are learnt."""
    routing = core("c", "abd", links="ad")
    hear(routing, A, Ask(1, B, (A,)), ttl=3)
    effects = hear(routing, D, Answer(1, B, (A, C), 1, (D,)))
    assert told(effects) == [(A, Answer(1, B, (A,), 2, (D,)), 0)]
    assert routing.next_hop(B, 0.0) == D
    for _ in range(WAYS_MAX + 2):
        effects = hear(routing, D, Answer(1, B, (A, C), 1, (D,)))
    assert told(effects) == []


@pytest.mark.parametrize(
    "answer",
    [Answer(2, B, (A, C), 0, ()), Answer(1, E, (A, C), 0, ()), Answer(1, B, (A, D), 0, ())],
    ids=["never asked", "another target", "another receiver"],
)
def test_an_answer_that_nobody_asked_for_is_dropped(answer: Answer) -> None:
    """Nobody can have a way believed that was not asked for."""
    routing = core("c", "abde", links="ad")
    hear(routing, A, Ask(1, B, (A,)), ttl=3)
    assert hear(routing, D, answer) == []
    assert routing.counters["route_answers_dropped"] == 1
    assert routing.next_hop(B, 0.0) is None


def test_an_answer_to_ones_own_name_is_dropped() -> None:
    """A node does not learn ways to itself."""
    routing = core("b", "acd", links="cd")
    hear(routing, C, Ask(1, B, (A, C)))
    assert hear(routing, D, Answer(1, B, (A, B), 0, ())) == []
    assert routing.counters["route_answers_dropped"] == 1


def test_an_answer_from_too_far_goes_no_further() -> None:
    """A hop count that lies is bounded like a path."""
    routing = core("c", "abd", links="ad")
    hear(routing, A, Ask(1, B, (A,)), ttl=3)
    assert told(hear(routing, D, Answer(1, B, (A, C), PATH_MAX, ()))) == []


def test_ways_are_bounded_and_the_longest_goes() -> None:
    """So many to one target, and so many targets."""
    routing = core("b", "acdefgh", links="cdefgh", config=replace(CONFIG, relay_routes_max=2))
    for peer, length in (("c", 3), ("d", 2), ("e", 2), ("f", 2), ("g", 2)):
        padding = tuple(NodeId(name) for name in "hx"[: length - 2])
        hear(routing, NodeId(peer), Ask(1, B, (A, *padding, NodeId(peer))))
    assert [routing.next_hop(A, 0.0, avoid=NodeId(hop)) is not None for hop in "cdefg"] == [True] * 5
    assert not routing.is_way(A, C, 0.0)
    assert routing.is_way(A, D, 0.0)

    hear(routing, C, Ask(1, B, (D, C)))
    hear(routing, C, Ask(1, B, (E, C)))
    assert routing.targets == 2
    assert routing.next_hop(A, 0.0) is None


def test_a_way_is_forgotten_unless_something_comes_by_it() -> None:
    """For whoever asked it lives longer, so that envelopes are not refused that the other end still sends."""
    routing = core("b", "acd", links="cd")
    hear(routing, C, Ask(1, B, (A, C)))
    until = 2 * CONFIG.relay_route_s
    assert routing.next_hop(A, until - 1) == C
    assert routing.is_way(A, C, until - 1)
    routing.handle(Transit(C, envelope("a", "b")), until - 1)
    assert routing.next_hop(A, until + 1) == C
    later = until - 1 + CONFIG.relay_route_s
    assert not routing.is_way(A, C, later)
    assert routing.handle(Transit(C, envelope("a", "b")), later) == []
    assert routing.next_hop(A, later) is None


def test_a_linked_node_needs_no_way() -> None:
    """It is its own next hop; when the link goes, or comes back, whoever uses the ways is told."""
    routing = core("b", "ac", links="ac")
    hear(routing, C, Ask(1, B, (A, C)))
    assert routing.next_hop(A, 0.0) == A
    assert routing.is_way(A, A, 0.0)
    assert RouteChanged(A, found=True) in routing.handle(LinkLost(A), 0.0)
    assert routing.next_hop(A, 0.0) == C
    assert RouteChanged(A, found=True) in routing.handle(LinkOpened(A, 2, ()), 0.0)
    hear(routing, A, Ask(2, B, (A,)))
    assert not routing.is_way(A, NodeId("z"), 0.0)
    assert not routing.is_way(NodeId("z"), A, 0.0)


def test_a_suspected_way_is_given_up() -> None:
    """If there is another it is told, else a search begins."""
    routing = core("a", "bcd", links="cd")
    number = ask_number(routing.handle(RouteWanted(B), 0.0))
    hear(routing, C, Answer(number, B, (A,), 0, ()))
    hear(routing, D, Answer(number, B, (A,), 0, ()))
    assert set(routing.handle(RouteSuspected(B, C), 0.1)) == {RouteChanged(B, found=True)}
    assert routing.next_hop(B, 0.1) == D
    effects = routing.handle(RouteSuspected(B, D), 0.2)
    assert effects[0] == RouteChanged(B, found=False)
    assert [peer for peer, _, _ in told(effects)] == [C, D]
    assert hear(routing, C, Lost(NodeId("z"))) == []


def test_the_dead_cannot_be_reached() -> None:
    """Ways and searches end with the member; while it is only suspected they go on."""
    routing = core("a", "bc", links="c")
    number = ask_number(effects := routing.handle(RouteWanted(B), 0.0))
    hear(routing, C, Answer(number, B, (A,), 0, ()))
    routing.member_changed(member("b", MemberState.SUSPECT))
    assert routing.reaches(B, 0.0)
    routing.member_changed(member("b", MemberState.DEAD))
    assert not routing.reaches(B, 0.0)
    assert routing.next_hop(B, 0.0) is None
    timer = next(effect for effect in effects if isinstance(effect, SetTimer))
    assert routing.handle(TimerFired(timer.token), 1.0) == []
    routing.member_changed(member("b", MemberState.DEAD))


def test_bodies_of_strangers_and_of_later_versions_are_ignored() -> None:
    """Who has no link any more is not answered; nonsense raises."""
    routing = core("c", "ab", links="b")
    assert hear(routing, A, Ask(1, B, (A,)), ttl=1) == []
    assert routing.handle(Received(B, b"\x91\x09", Kind.ROUTE), 0.0) == []
    with pytest.raises(RemoteProtocolError):
        routing.handle(Received(B, b"\xc1", Kind.ROUTE), 0.0)


def test_questions_are_forgotten_in_order() -> None:
    """As many as are remembered; a question that was forgotten would be passed on again."""
    routing = core("c", "abd", links="abd", config=replace(CONFIG, relay_asks_max=10_000))
    for number in range(4097):
        hear(routing, A, Ask(number, B, (A,)), ttl=1)
    assert told(hear(routing, A, Ask(4096, B, (A,)), ttl=1)) == []
    assert told(hear(routing, A, Ask(0, B, (A,)), ttl=1)) != []


# --- passing on -----------------------------------------------------------------------------------------------


def test_envelopes_are_passed_on_as_they_are_but_for_the_ttl() -> None:
    """From the linked peer itself; its name is written in where it left it out."""
    routing = core("c", "ab", links="ab")
    assert routing.handle(Transit(A, envelope("a", "b")), 0.0) == [Forward(B, envelope("a", "b", 4))]
    assert routing.handle(Transit(A, envelope(None, "b", 1)), 0.0) == [Forward(B, envelope("a", "b", 0))]
    assert routing.handle(Transit(A, envelope(None, None)), 0.0) == [Relayed(A, b"sealed")]
    assert routing.counters["relayed_envelopes"] == 2
    assert routing.counters["relayed_bytes"] == 12


def test_an_envelope_whose_ttl_is_used_up_is_dropped() -> None:
    """Unless this node is its target."""
    routing = core("c", "ab", links="ab")
    assert routing.handle(Transit(A, envelope("a", "b", 0)), 0.0) == []
    assert routing.counters["relay_dropped_ttl"] == 1
    assert routing.handle(Transit(A, envelope("a", "c", 0)), 0.0) == [Relayed(A, b"sealed")]


def test_nobody_speaks_for_others_whose_way_did_not_lead_through_it() -> None:
    """Neither to this node nor to others through it."""
    routing = core("c", "abd", links="abd")
    assert routing.handle(Transit(A, envelope("d", "b")), 0.0) == []
    assert routing.handle(Transit(A, envelope("d", "c")), 0.0) == []
    assert routing.counters["relay_dropped_source"] == 2
    hear(routing, A, Ask(1, B, (D, A)), ttl=2)
    assert routing.handle(Transit(A, envelope("d", "b")), 0.0) == [Forward(B, envelope("d", "b", 4))]


def test_without_a_way_the_sender_is_told() -> None:
    """Also when the only way leads back."""
    routing = core("c", "abd", links="ad")
    assert told(routing.handle(Transit(A, envelope("a", "b")), 0.0)) == [(A, Lost(B), 0)]
    hear(routing, A, Ask(1, D, (B, A)), ttl=1)
    assert routing.next_hop(B, 0.0) == A
    assert told(routing.handle(Transit(A, envelope("a", "b")), 0.0)) == [(A, Lost(B), 0)]
    assert routing.counters["relay_dropped_no_route"] == 2


def test_a_relay_passes_on_only_so_much_for_one_peer() -> None:
    """Envelopes and bytes in one second; others are not affected, nor is what is for this node."""
    few = core("c", "abd", links="abd", config=replace(CONFIG, relay_envelopes_max=2))
    assert [len(few.handle(Transit(A, envelope("a", "b")), 0.1)) for _ in range(3)] == [1, 1, 0]
    assert few.counters["relay_dropped_rate"] == 1
    assert len(few.handle(Transit(D, envelope("d", "b")), 0.1)) == 1
    assert len(few.handle(Transit(A, envelope("a", "c")), 0.1)) == 1
    assert len(few.handle(Transit(A, envelope("a", "b")), 1.1)) == 1

    little = core("c", "ab", links="ab", config=replace(CONFIG, relay_bytes_max=10))
    assert [len(little.handle(Transit(A, envelope("a", "b")), 0.1)) for _ in range(2)] == [1, 0]


def test_what_comes_from_a_peer_whose_link_is_gone_is_dropped() -> None:
    """It waited while something was written to disk, and its sender went meanwhile."""
    routing = core("c", "ab", links="b")
    assert routing.handle(Transit(A, envelope("a", "b")), 0.0) == []
    assert routing.counters["relay_dropped_rate"] == 1
