"""Probing: what each event makes a node ask, answer and conclude."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from datadriven_runner import check_transcript, transcript_id, transcripts

from gossip.config import GossipConfig
from gossip.events import (
    AddressesChanged,
    DialFailed,
    Effect,
    Event,
    LinkLost,
    LinkOpened,
    LinkWanted,
    Member,
    MemberState,
    NeighborDown,
    NeighborUp,
    ProbeFailed,
    Received,
    RttMeasured,
    Send,
    SetTimer,
    Stalled,
    Started,
    TimerFired,
)
from gossip.incarnation import make_incarnation
from gossip.members import MemberTable
from gossip.swim import RELAYS_MAX, SwimCore
from gossip.swim_codec import Ack, Ask, Nack, Ping, ProbeBody, decode_probe, encode_probe
from gossip.vivaldi import Coordinate
from transport.errors import RemoteProtocolError
from transport.types import NodeId
from transport.wire import Kind

ALIVE, SUSPECT, DEAD = MemberState.ALIVE, MemberState.SUSPECT, MemberState.DEAD
ME = NodeId("m")
HERE = Coordinate((0.01, *(0.0,) * 7))


class Node:
    """A core of node ``m`` that knows ``members``, with its timers."""

    def __init__(self, *members: str, **limits: float) -> None:
        self.config = GossipConfig(**limits)  # type: ignore[arg-type]
        self.table = MemberTable(Member(ME, make_incarnation(1), ALIVE), self.config)
        self.core = SwimCore(ME, self.table, self.config, random.Random(3))
        self.now = 0.0
        self.timers: list[tuple[float, int]] = []
        for name in members:
            self.table.put(Member(NodeId(name), make_incarnation(1), ALIVE), 0.0)

    def feed(self, event: Event) -> list[Effect]:
        return self._took(self.core.handle(event, self.now))

    def _took(self, effects: list[Effect]) -> list[Effect]:
        self.timers += [(self.now + e.delay_s, e.token) for e in effects if isinstance(e, SetTimer)]
        return [e for e in effects if not isinstance(e, SetTimer)]

    def run(self, seconds: float, *answering: str) -> list[Effect]:
        """Let time pass; peers that answer do so at once."""
        end, out = self.now + seconds, list[Effect]()
        while due := sorted(timer for timer in self.timers if timer[0] <= end):
            self.timers.remove(due[0])
            self.now = max(self.now, due[0][0])
            effects = self.feed(TimerFired(due[0][1]))
            for sequence, peer in pings(effects):
                if peer in answering:
                    effects += self.hear(peer, Ack(sequence, HERE))
            out += effects
        self.now = end
        return out

    def link(self, *peers: str) -> list[Effect]:
        out: list[Effect] = []
        for peer in peers:
            out += self.feed(LinkOpened(NodeId(peer), make_incarnation(1), ()))
            out += self.feed(NeighborUp(NodeId(peer)))
        return out

    def settled(self, *peers: str) -> None:
        """Link to peers that answer the first ping."""
        for peer in peers:
            for sequence, name in pings(self.link(peer)):
                self.hear(name, Ack(sequence, HERE))

    def hear(self, peer: str, body: ProbeBody) -> list[Effect]:
        self.core.heard(NodeId(peer), self.now)
        return self.feed(Received(NodeId(peer), encode_probe(body), Kind.PROBE))

    def change(self, name: str, state: MemberState, refutations: int = 0) -> list[Effect]:
        before = self.table.get(NodeId(name))
        after = Member(NodeId(name), make_incarnation(1, refutations), state)
        self.table.put(after, self.now)
        return self._took(self.core.member_changed(before, after, self.now))


def sent(effects: list[Effect]) -> list[tuple[str, ProbeBody | None]]:
    """The probe bodies sent, by peer."""
    return [(e.peer, decode_probe(e.body)) for e in effects if isinstance(e, Send)]


def pings(effects: list[Effect]) -> list[tuple[int, str]]:
    """Sequence and target of each ping."""
    return [(body.sequence, peer) for peer, body in sent(effects) if isinstance(body, Ping)]


def asks(effects: list[Effect]) -> list[tuple[str, Ask]]:
    """Who was asked to help, and what."""
    return [(peer, body) for peer, body in sent(effects) if isinstance(body, Ask)]


def failed(effects: list[Effect]) -> list[str]:
    """Who is accused."""
    return [e.peer for e in effects if isinstance(e, ProbeFailed)]


def test_a_new_link_is_measured_at_once() -> None:
    """The ack brings a place and a round trip."""
    node = Node("a")
    [(sequence, peer)] = pings(node.link("a"))
    assert peer == "a"
    assert node.core.distance_s(ME, NodeId("a")) is None
    node.now += 0.03

    effects = node.hear("a", Ack(sequence, HERE))

    assert effects == [RttMeasured(NodeId("a"), 0.03)]
    assert node.core.distance_s(ME, NodeId("a")) == pytest.approx(node.core.coordinate.distance_s(HERE))
    assert node.core.distance_s(NodeId("a"), NodeId("a")) is not None
    assert node.core.statistics()["coordinates"] == 1


def test_a_ping_is_answered_with_our_place() -> None:
    """Over a link only, and not for bodies of a later version."""
    node = Node("a")
    node.settled("a")

    assert sent(node.hear("a", Ping(9)))[0][0] == "a"
    assert node.feed(Received(NodeId("stranger"), encode_probe(Ping(9)), Kind.PROBE)) == []
    assert node.feed(Received(NodeId("a"), b"\x91\x09", Kind.PROBE)) == []
    assert node.feed(AddressesChanged(())) == []
    with pytest.raises(RemoteProtocolError):
        node.feed(Received(NodeId("a"), b"\xc1", Kind.PROBE))


def test_neighbours_are_pinged_in_turn() -> None:
    """One in each interval, and each once before any is twice; others are not pinged."""
    node = Node("a", "b", "c", "d")
    node.settled("a", "b", "c", "d")
    node.feed(NeighborDown(NodeId("d")))
    turn = [peer for _, peer in pings(node.feed(Started()))]
    for _ in range(18):
        node.core.heard(NodeId("a"), node.now)
        node.core.heard(NodeId("b"), node.now)
        node.core.heard(NodeId("c"), node.now)
        turn += [peer for _, peer in pings(node.run(0.5, "a", "b", "c"))]

    assert 9 <= len(turn) <= 11
    assert sorted(turn[:3]) == sorted(turn[3:6]) == ["a", "b", "c"]


def until(node: Node, done: Callable[[list[Effect]], object], *alive: str, limit_s: float = 10.0) -> list[Effect]:
    """Run until the effects contain what is waited for; the ``alive`` say something all the time."""
    out: list[Effect] = []
    end = node.now + limit_s
    while not done(out):
        assert node.now < end, "not in time"
        for peer in alive:
            node.core.heard(NodeId(peer), node.now)
        out += node.run(0.05, *alive)
    return out


def test_silence_leads_to_a_ping_then_to_helpers_then_to_suspicion() -> None:
    """A missing heartbeat, then half a second each; helpers that nack leave us sure of ourselves."""
    node = Node("a", "b", "c", "d", "e")
    node.settled("a", "b", "c", "d", "e")
    node.feed(Started())
    start = node.now
    effects = until(node, asks, "b", "c", "d", "e")
    asked = asks(effects)
    assert len(asked) == 3
    assert {ask.target for _, ask in asked} == {"a"}
    for helper, ask in asked:
        node.hear(helper, Nack(ask.sequence))

    effects = until(node, failed, "b", "c", "d", "e")

    assert failed(effects) == ["a"]
    assert node.now - start <= 4.0
    assert node.core.awareness == 0
    assert node.core.counters["probes_failed"] == 1


def test_helpers_that_do_not_even_nack_make_us_doubt_ourselves() -> None:
    """One step each; then we are more patient, and each ack makes us surer again."""
    node = Node("a", "b", "c")
    node.settled("a", "b", "c")
    node.feed(Started())
    until(node, failed, "b", "c")
    assert node.core.awareness >= 1
    before = node.core.awareness

    until(node, lambda e: node.core.awareness < before, "a", "b", "c", limit_s=60)


def test_one_helper_that_reaches_the_target_is_enough() -> None:
    """Its ack ends the probe."""
    node = Node("a", "b", "c")
    node.settled("a", "b", "c")
    node.feed(Started())
    [(helper, ask), *_] = asks(until(node, asks, "b", "c"))

    assert node.hear(helper, Ack(ask.sequence)) == []
    assert node.hear(helper, Ack(ask.sequence)) == []
    assert failed(node.run(0.6, "a", "b", "c")) == []


def test_an_answer_from_whom_nobody_asked_counts_for_nothing() -> None:
    """Neither ack nor nack."""
    node = Node("a", "b")
    node.settled("b")
    [(sequence, _)] = pings(node.link("a"))

    assert node.hear("b", Ack(sequence, HERE)) == []
    assert node.hear("b", Nack(sequence)) == []
    assert node.hear("b", Nack(12345)) == []
    assert node.core.distance_s(NodeId("a"), ME) is None


def test_whoever_says_anything_lives() -> None:
    """A ping may be lost while heartbeats arrive."""
    node = Node("a", "b")
    node.settled("b")
    node.link("a")
    node.now += 0.2
    node.core.heard(NodeId("a"), node.now)
    node.core.heard(NodeId("stranger"), node.now)

    assert asks(node.run(0.5)) == []


def test_alone_with_a_silent_peer() -> None:
    """Without helpers the suspicion is ours alone, and so is the doubt."""
    node = Node("a")
    node.settled("a")
    node.feed(Started())

    assert failed(until(node, failed)) == ["a"]
    assert node.core.awareness == 1


def test_the_accused_is_pinged_at_once() -> None:
    """By those who have a link to it; once per suspicion; a second ping waits for the first."""
    node = Node("a", "b", "c")
    node.settled("a", "b")

    assert pings(node.change("c", SUSPECT)) == []
    assert [peer for _, peer in pings(node.change("a", SUSPECT))] == ["a"]
    assert node.change("a", SUSPECT) == []
    assert node.change("a", SUSPECT, refutations=1) == []


def test_a_round_goes_on_without_those_that_left() -> None:
    """They are passed over."""
    node = Node("a", "b", "c", "d")
    node.settled("a", "b", "c", "d")
    node.feed(Started())
    for peer in "abc":
        node.feed(LinkLost(NodeId(peer), wanted=True))

    assert {peer for _, peer in pings(node.run(3, "d"))} <= {"d"}


def test_a_dead_member_is_no_longer_asked_about() -> None:
    """Its probe and its place are dropped."""
    node = Node("a", "b")
    node.settled("a", "b")
    node.change("a", SUSPECT)
    node.change("a", DEAD)

    assert failed(node.run(2, "b")) == []
    assert node.core.statistics()["coordinates"] == 1


def test_our_own_refutation_is_a_reason_to_doubt_ourselves() -> None:
    """Somebody could not reach us; up to the limit."""
    node = Node(awareness_max=2)
    node.change("m", ALIVE)
    assert node.core.awareness == 0
    for refutations in (1, 2, 3):
        node.change("m", ALIVE, refutations)

    assert node.core.awareness == 2


def test_after_a_stall_nothing_is_concluded() -> None:
    """Running probes are forgotten, silence starts anew, and we are warned."""
    node = Node("a", "b")
    node.settled("b")
    node.link("a")
    node.now += 5.0
    node.feed(Stalled(4.5))

    assert node.core.awareness == 2
    assert asks(node.run(1.0)) == []
    node.feed(Stalled(0.3))
    assert node.core.awareness == 3


def test_a_broken_link_is_redialled_once() -> None:
    """Not one that was closed on purpose, nor to a member that left or that nobody knows, nor if it is back already."""
    node = Node("a", "b", "c", "d")
    node.settled("a", "b", "c", "d", "x")
    node.change("d", DEAD)
    node.feed(LinkLost(NodeId("a")))
    node.feed(LinkLost(NodeId("a")))
    node.feed(LinkLost(NodeId("b"), wanted=True))
    node.feed(LinkLost(NodeId("c"), left=True))
    node.feed(LinkLost(NodeId("d")))
    node.feed(LinkLost(NodeId("x")))
    effects = node.feed(Started())
    assert [e.peer for e in effects if isinstance(e, LinkWanted)] == ["a"]

    node.settled("b")
    node.feed(LinkLost(NodeId("b")))
    node.settled("b")

    assert LinkWanted(NodeId("b")) not in node.run(0.6, "b")


def cold(node: Node) -> str:
    """Run to the next probe of a member without a link."""
    effects = until(node, lambda e: [x for x in e if isinstance(x, LinkWanted)], "h", "i", "j", limit_s=200)
    return next(e.peer for e in effects if isinstance(e, LinkWanted))


def cold_node(*members: str, **limits: float) -> Node:
    """A started node that is linked to ``h`` only."""
    node = Node("h", *members, **limits)
    node.settled("h")
    node.feed(Started())
    return node


def test_members_without_a_link_are_dialled_now_and_then() -> None:
    """Each once in a shuffled round, about one a minute; the link is the answer."""
    node = cold_node("a", "b", "c")
    node.table.put(Member(NodeId("dead"), make_incarnation(1), DEAD), 0.0)
    seen = []
    for _ in range(3):
        target = cold(node)
        seen.append(target)
        node.settled(target)
        node.feed(LinkLost(NodeId(target), wanted=True))

    assert sorted(seen) == ["a", "b", "c"]
    assert 45 <= node.now <= 240
    assert node.core.counters["probes_cold"] == 3


def test_a_refused_dial_is_proof_enough() -> None:
    """Nobody else is asked, and the next member is tried within seconds."""
    node = cold_node("a", "b")
    target = cold(node)

    assert failed(node.feed(DialFailed(NodeId(target), refused=True))) == [target]
    assert node.core.awareness == 0
    node.change(target, SUSPECT)
    node.change(target, DEAD)
    start = node.now
    assert cold(node) != target
    assert node.now - start < 3


def test_after_successes_the_search_calms_down() -> None:
    """The pause doubles up to the usual one."""
    node = cold_node(*"abcdefg")
    target = cold(node)
    node.feed(DialFailed(NodeId(target), refused=True))
    node.change(target, SUSPECT)
    times = []
    for _ in range(5):
        target = cold(node)
        times.append(node.now)
        node.settled(target)
        node.feed(LinkLost(NodeId(target), wanted=True))

    pauses = [b - a for a, b in itertools.pairwise(times)]
    assert pauses == sorted(pauses)
    assert pauses[-1] > 3 * pauses[0]


def test_a_dial_that_is_not_answered_is_tried_by_others() -> None:
    """They have a whole interval; the accusation comes only then."""
    node = cold_node("a")
    cold(node)
    [(helper, ask)] = asks(node.feed(DialFailed(NodeId("a"), refused=False)))
    assert (helper, ask.target) == ("h", "a")
    assert failed(node.run(0.9, "h")) == []
    node.hear("h", Nack(ask.sequence))

    assert failed(node.run(0.2, "h")) == ["a"]
    assert node.feed(DialFailed(NodeId("a"), refused=False)) == []


def test_a_member_that_only_we_cannot_dial_is_left_alone() -> None:
    """It refuted: no more cold probes for ten rounds, and no search for the dead; a link forgives."""
    node = cold_node("a")
    cold(node)
    node.feed(DialFailed(NodeId("a"), refused=True))
    node.change("a", SUSPECT)
    node.change("a", ALIVE, refutations=1)
    start = node.now
    assert not [e for e in node.run(500, "h") if isinstance(e, LinkWanted)]
    assert cold(node) == "a"
    assert node.now - start >= 600
    node.feed(DialFailed(NodeId("a"), refused=True))
    node.change("a", SUSPECT)
    node.change("a", ALIVE, refutations=2)
    node.settled("a")
    node.feed(LinkLost(NodeId("a")))

    start = node.now
    cold(node)
    assert node.now - start < 10


def test_a_dial_without_a_result_says_nothing() -> None:
    """The overlay may not dial, or its dialler be busy."""
    node = cold_node("a", probe_cold_interval_s=100.0)
    cold(node)

    assert failed(node.run(20, "h")) == []


def test_a_helper_pings_whom_it_is_linked_to() -> None:
    """And passes the ack on, without a place; if it is late it has said nack before."""
    node = Node("a", "b")
    node.settled("a", "b")
    [(sequence, target)] = pings(node.hear("a", Ask(70, NodeId("b"))))
    assert target == "b"
    assert sent(node.hear("a", Ack(sequence, HERE))) == []
    assert sent(node.run(0.45)) == [("a", Nack(70))]

    assert sent(node.hear("b", Ack(sequence, HERE))) == [("a", Ack(70))]
    assert sent(node.hear("b", Ack(sequence, HERE))) == []


def test_a_helper_without_a_link_dials_members_one_at_a_time() -> None:
    """A link, even a late one, is the answer; a failed dial is a nack, and so is a second request too soon."""
    node = Node("a", "b", "c")
    node.settled("a")
    node.now = 10.0
    assert node.hear("a", Ask(1, NodeId("b"))) == [LinkWanted(NodeId("b"))]
    assert sent(node.hear("a", Ask(2, NodeId("c")))) == [("a", Nack(2))]
    assert sent(node.hear("a", Ask(3, NodeId("stranger")))) == [("a", Nack(3))]
    assert sent(node.run(0.5)) == [("a", Nack(1))]
    assert ("a", Ack(1)) in sent(node.link("b"))

    node.now += 2.0
    assert LinkWanted(NodeId("c")) in node.hear("a", Ask(4, NodeId("c")))
    assert sent(node.feed(DialFailed(NodeId("c"), refused=False))) == [("a", Nack(4))]

    node.now += 2.0
    node.hear("a", Ask(5, NodeId("c")))
    assert ("a", Nack(5)) in sent(node.run(0.5, "a", "b"))
    assert sent(node.feed(DialFailed(NodeId("c"), refused=False))) == []


def test_a_helper_forgets_in_time_and_has_limits() -> None:
    """Nobody waits for so long, and nobody can make it remember without end."""
    node = Node("a", "b")
    node.settled("a", "b")
    for number in range(RELAYS_MAX):
        node.hear("a", Ask(number, NodeId("b")))
    assert sent(node.hear("a", Ask(99, NodeId("b")))) == [("a", Nack(99))]
    node.run(2.0)

    assert len(pings(node.hear("a", Ask(100, NodeId("b"))))) == 1


def test_whoever_is_asked_about_itself_is_there() -> None:
    """A peer that is confused about whom it talks to still gets its answer."""
    node = Node("a")
    node.settled("a")

    assert sent(node.hear("a", Ask(5, ME))) == [("a", Ack(5))]


def test_places_are_kept_of_so_many_members_only() -> None:
    """Bounded like the table."""
    node = Node("a", "b", members_max=1)
    node.settled("a", "b")

    assert node.core.distance_s(ME, NodeId("b")) is None
    assert node.feed(TimerFired(9999)) == []


class Transcript:
    """Commands of a transcript, carried out by one node."""

    def __init__(self) -> None:
        self.node = Node()

    def execute(self, command: str) -> list[str]:
        verb, *words = command.split()
        node = self.node
        match verb:
            case "members":
                self.node = Node(*words)
                return []
            case "link":
                return self._show(node.link(*words))
            case "settle":
                node.settled(*words)
                return []
            case "start":
                return self._show(node.feed(Started()))
            case "lost":
                return self._show(node.feed(LinkLost(NodeId(words[0]))))
            case "dial-failed":
                return self._show(node.feed(DialFailed(NodeId(words[0]), refused="refused" in words)))
            case "stall":
                return self._show(node.feed(Stalled(float(words[0]))))
            case "hear":
                peer, what, number, *target = words
                body: ProbeBody
                match what:
                    case "ping":
                        body = Ping(int(number))
                    case "ask":
                        body = Ask(int(number), NodeId(target[0]))
                    case "nack":
                        body = Nack(int(number))
                    case _:
                        body = Ack(int(number), HERE)
                return self._show(node.hear(peer, body))
            case "suspect":
                return self._show(node.change(words[0], SUSPECT))
            case "refutes":
                return self._show(node.change(words[0], ALIVE, refutations=1))
            case "run":
                seconds, *alive = words
                out: list[Effect] = []
                for _ in range(round(float(seconds) / 0.1)):
                    for peer in alive:
                        node.core.heard(NodeId(peer), node.now)
                    out += node.run(0.1, *alive)
                return self._show(out)
            case _:
                raise ValueError(command)

    def _show(self, effects: list[Effect]) -> list[str]:
        lines = []
        for effect in effects:
            match effect:
                case Send():
                    body = decode_probe(effect.body)
                    assert body is not None
                    target = f" about {body.target}" if isinstance(body, Ask) else ""
                    lines.append(f"{type(body).__name__.lower()} {body.sequence} to {effect.peer}{target}")
                case RttMeasured():
                    lines.append(f"round trip to {effect.peer} {effect.rtt_s:.3f}")
                case ProbeFailed():
                    lines.append(f"no answer from {effect.peer}; awareness {self.node.core.awareness}")
                case LinkWanted():
                    lines.append(f"link wanted to {effect.peer}")
                case _:
                    lines.append(repr(effect))
        return lines


@pytest.mark.parametrize("path", transcripts("swim"), ids=transcript_id)
def test_transcript(path: Path) -> None:
    """Behaviours as transcripts in tests/datadriven/swim."""
    check_transcript(path, Transcript().execute)
