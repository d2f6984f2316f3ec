"""The Plumtree core on its own: transcripts first, then limits and hostile peers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from datadriven_runner import check_transcript, transcript_id, transcripts

from gossip.codec import BroadcastBody, decode_broadcast, encode_broadcast
from gossip.config import GossipConfig
from gossip.events import (
    BroadcastRequested,
    Deliver,
    Effect,
    Event,
    Member,
    MemberState,
    Missed,
    NeighborDown,
    NeighborUp,
    Originated,
    Received,
    Send,
    SendDropped,
    SetTimer,
    Started,
    TimerFired,
)
from gossip.incarnation import life_of, make_incarnation
from gossip.plumtree import PlumtreeCore
from gossip.plumtree_codec import (
    ORIGINS_MAX,
    Announcement,
    Gossip,
    Graft,
    IHave,
    MessageId,
    Prune,
    Sync,
    decode,
    encode,
)
from gossip.seen import Summary
from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.types import NodeId
from transport.wire import Kind

LIFE = 9
ME = Member(NodeId("me"), make_incarnation(LIFE), MemberState.ALIVE)


class Node:
    """One core with a clock and its timers."""

    def __init__(self, *peers: str, **limits: float) -> None:
        self.core = PlumtreeCore(ME, GossipConfig(**limits), random.Random(1))  # type: ignore[arg-type]
        self.now = 0.0
        self.timers: list[tuple[float, int]] = []
        for peer in peers:
            self.feed(NeighborUp(NodeId(peer)))

    def feed(self, event: Event) -> list[Effect]:
        effects = self.core.handle(event, self.now)
        self.timers += [(self.now + e.delay_s, e.token) for e in effects if isinstance(e, SetTimer)]
        return effects

    def wait(self, duration_s: float) -> list[Effect]:
        until = self.now + duration_s
        effects: list[Effect] = []
        while self.timers and min(self.timers)[0] <= until:
            due = min(self.timers)
            self.timers.remove(due)
            self.now = due[0]
            effects += self.feed(TimerFired(due[1]))
        self.now = until
        return effects

    def receive(self, peer: str, body: Gossip | IHave | Graft | Prune | Sync, ttl: int = 0) -> list[Effect]:
        return self.feed(Received(NodeId(peer), encode(body), Kind.BROADCAST, ttl))

    def gossip(
        self,
        sequence: int,
        *,
        peer: str = "a",
        origin: str = "o",
        life: int = 1,
        ttl: int = 30,
        size: int = 1,
        **more: int,
    ) -> list[Effect]:
        sealed = encode_broadcast(BroadcastBody(NodeId(origin), make_incarnation(life), sequence, b"x" * size))
        return self.receive(peer, Gossip(more.get("hops", 1), more.get("age_ms", 0), sealed), ttl)


def msg(sequence: int, origin: str = "o", life: int = 1) -> MessageId:
    """An id."""
    return MessageId(NodeId(origin), life, sequence)


def told(sequence: int, *, origin: str = "o", ttl: int = 30, hops: int = 1, size: int = 1) -> Announcement:
    """An announcement."""
    return Announcement(msg(sequence, origin), ttl, hops, size)


def delivered(effects: list[Effect]) -> list[int]:
    """The numbers that were delivered."""
    return [effect.sequence for effect in effects if isinstance(effect, Deliver)]


def sent(effects: list[Effect], kind: type) -> list[NodeId]:
    """To whom bodies of this type went."""
    return [e.peer for e in effects if isinstance(e, Send) and isinstance(decode(e.body), kind)]


# --- transcripts ----------------------------------------------------------------------------------------------


def _name(id_: MessageId) -> str:
    return f"{id_.origin}/{id_.life}/{id_.sequence}"


def _parse_id(text: str) -> MessageId:
    origin, life, sequence = text.split("/")
    return MessageId(NodeId(origin), int(life), int(sequence))


def _text(effect: Effect) -> str:
    match effect:
        case Deliver():
            return f"deliver {effect.origin}/{life_of(effect.origin_incarnation)}/{effect.sequence}"
        case Originated():
            return (
                f"originated {effect.sequence} pushed={','.join(effect.pushed)} announced={','.join(effect.announced)}"
            )
        case Missed():
            return f"missed {effect.origin}/{effect.life} {effect.first}-{effect.last}"
        case SetTimer():
            return f"timer {effect.delay_s:.3f}"
        case Send():
            return f"to {effect.peer}: {_body(effect)}"
        case _:
            raise AssertionError(effect)


def _body(send: Send) -> str:
    match decode(send.body):
        case Gossip() as body:
            sealed = decode_broadcast(body.sealed, GossipConfig())
            id_ = MessageId(sealed.origin, life_of(sealed.incarnation), sealed.sequence)
            return f"gossip {_name(id_)} ttl={send.ttl} hops={body.hops} age={body.age_ms}ms"
        case IHave() as body:
            return "ihave " + " ".join(f"{_name(a.id)} ttl={a.ttl} hops={a.hops}" for a in body.announcements)
        case Graft() as body:
            return " ".join(["graft", *map(_name, body.ids)])
        case Prune():
            return "prune"
        case Sync() as body:
            has = [f"{s.origin}/{s.life}/{s.highest} floor={s.floor} gaps={list(s.gaps)}" for s in body.summaries]
            return f"sync answer={body.answer} since={body.since_ms}ms ({body.after!r}, {body.upto!r}] " + "; ".join(
                has
            )
        case other:
            raise AssertionError(other)


class Script:
    """Carries out the commands of a transcript."""

    def __init__(self) -> None:
        self.node = Node()

    def execute(self, line: str) -> list[str]:
        command, *words = line.split()
        options = {key: int(value) for key, _, value in (word.partition("=") for word in words if "=" in word)}
        plain = [word for word in words if "=" not in word]
        node = self.node
        match command:
            case "up":
                effects = [e for name in plain for e in node.feed(NeighborUp(NodeId(name)))]
            case "down":
                effects = [e for name in plain for e in node.feed(NeighborDown(NodeId(name)))]
            case "broadcast":
                effects = node.feed(BroadcastRequested(b"text", options["ttl"]))
            case "gossip":
                peer, id_ = plain[0], _parse_id(plain[1])
                effects = node.gossip(id_.sequence, peer=peer, origin=id_.origin, life=id_.life, **options)
            case "ihave":
                ttl, hops = options.get("ttl", 30), options.get("hops", 1)
                ids = [Announcement(_parse_id(word), ttl, hops, options.get("size", 1)) for word in plain[1:]]
                effects = node.receive(plain[0], IHave(tuple(ids)))
            case "graft":
                effects = node.receive(plain[0], Graft(tuple(map(_parse_id, plain[1:]))))
            case "prune":
                effects = node.receive(plain[0], Prune())
            case "sync":
                summaries = [
                    Summary(id_.origin, id_.life, options.get("floor", 0), id_.sequence)
                    for id_ in map(_parse_id, plain[1:])
                ]
                since_ms, answer = options.get("since_ms", 30_000), bool(options.get("answer", 0))
                effects = node.receive(plain[0], Sync(answer, since_ms, "", "", tuple(summaries)))
            case "wait_ms":
                effects = [e for e in node.wait(int(plain[0]) / 1000) if not isinstance(e, SetTimer)]
            case "peers":
                return [f"eager={','.join(node.core.eager())} lazy={','.join(node.core.lazy())}"]
            case _:
                raise AssertionError(line)
        return [_text(effect) for effect in effects]


@pytest.mark.parametrize("path", transcripts("plumtree"), ids=transcript_id)
def test_transcript(path: Path) -> None:
    """What the core says is what the transcript says; :mod:`datadriven_runner` checks it."""
    check_transcript(path, Script().execute)


# --- our own --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_", [BroadcastRequested(b"x", 0), BroadcastRequested(b"x", 256), BroadcastRequested(b"x" * (1 << 20), 1)]
)
def test_what_may_not_be_sent_is_refused(request_: BroadcastRequested) -> None:
    """TTL and size; the sequence is not used up."""
    node = Node("a")

    with pytest.raises(LocalProtocolError):
        node.feed(request_)
    assert node.core.sequence == 0


def test_other_events_are_none_of_its_business() -> None:
    """The router hands it everything that it does not know."""
    assert Node().feed(Started()) == []
    assert Node().feed(TimerFired(99)) == []


def test_our_own_coming_back_is_a_duplicate_whatever_its_number() -> None:
    """Also one that we never sent."""
    node = Node("a", "b")

    assert delivered(node.gossip(7, origin="me", life=LIFE)) == []
    assert node.core.lazy() == ["a"]
    assert node.receive("b", IHave((told(8, origin="me"),))) == []


def test_what_the_shell_could_not_queue_is_announced_instead() -> None:
    """Only payloads, and only while the peer is a neighbour."""
    node = Node("a")
    (push,) = [e for e in node.feed(BroadcastRequested(b"x", 4)) if isinstance(e, Send)]

    node.feed(SendDropped(push))

    assert sent(node.wait(0.01), IHave) == ["a"]
    assert node.feed(SendDropped(Send(NodeId("a"), encode(Prune()), kind=Kind.BROADCAST))) == []
    assert node.feed(SendDropped(Send(NodeId("a"), b"", kind=Kind.MEMBERSHIP))) == []
    assert node.feed(SendDropped(Send(NodeId("gone"), push.body, kind=Kind.BROADCAST))) == []
    assert node.core.counters["dropped"] == 1


def test_the_largest_payload_fits_its_envelope() -> None:
    """And lazy peers only hear of it."""
    node = Node("a", "b")
    node.receive("b", Prune())

    effects = node.feed(BroadcastRequested(b"x" * GossipConfig().broadcast_bytes_max, 255))

    (push,) = [e for e in effects if isinstance(e, Send)]
    assert isinstance(decode(push.body), Gossip)
    (hint,) = [e for e in node.wait(0.01) if isinstance(e, Send)]
    assert len(hint.body) < 100


# --- strangers and former neighbours --------------------------------------------------------------------------


def test_a_payload_is_welcome_from_anybody_else_only_neighbours_are_heard() -> None:
    """A neighbour that was just dropped may still have sent something."""
    node = Node("a")

    assert delivered(node.gossip(1, peer="stranger")) == [1]
    assert node.gossip(1, peer="stranger") == []
    for body in (Prune(), Graft((msg(1),)), IHave((told(2),)), Sync(False, 0, "", "", ())):
        assert node.receive("stranger", body) == []
    assert node.feed(Received(NodeId("a"), b"\x91\x63", Kind.BROADCAST)) == []
    assert node.core.eager() == ["a"]
    node.feed(NeighborDown(NodeId("stranger")))
    assert node.feed(NeighborUp(NodeId("a"))) == []


@pytest.mark.parametrize("body", [b"", b"\x90", encode(Gossip(1, 0, b"junk"))])
def test_nonsense_changes_nothing(body: bytes) -> None:
    """The shell closes the link."""
    node = Node("a")

    with pytest.raises(RemoteProtocolError):
        node.feed(Received(NodeId("a"), body, Kind.BROADCAST))
    assert (node.core.origins, node.core.waiting) == (0, 0)


# --- hostile or broken neighbours -----------------------------------------------------------------------------


def test_a_flood_of_announcements_costs_little() -> None:
    """A second's allowance per peer, and one bound for all."""
    node = Node("a", "b", plumtree_ihave_ids_max=10, plumtree_missing_max=15)
    for peer in "ab":
        node.receive(peer, IHave(tuple(told(n, origin=peer) for n in range(1, 13))))

    assert node.core.waiting == 15
    assert node.core.counters["ihaves_refused"] == 9
    effects = node.wait(1.0)
    assert node.core.waiting == 0
    assert node.core.counters["unrepaired"] == 15
    assert sent(effects, Graft) == ["a", "b"]
    node.receive("a", IHave((told(50),)))
    assert node.core.waiting == 1


def test_numbers_far_ahead_and_unknown_requests_cost_nothing() -> None:
    """State stays what it was, and nothing is sent for what we do not have."""
    node = Node("a")
    node.gossip(1)
    node.gossip(2**53 - 1)

    effects = node.receive("a", Graft(tuple(msg(n) for n in range(2, 900))))

    assert effects == []
    assert node.core.counters["grafts_unanswered"] == 898
    assert (node.core.origins, node.core.cached_bytes < 100) == (1, True)


def test_repeated_requests_are_answered_within_an_allowance() -> None:
    """Else one small request a millisecond would make us send gigabytes."""
    node = Node("a", plumtree_repair_bytes_max=1000)
    node.gossip(1, peer="b", size=600)

    answers = [sent(node.receive("a", Graft((msg(1),))), Gossip) for _ in range(5)]

    assert [len(answer) for answer in answers] == [1, 1, 0, 0, 0]
    assert node.core.counters["repairs_refused"] == 3
    node.wait(1.0)
    assert sent(node.receive("a", Graft((msg(1),))), Gossip) == ["a"]


def test_a_storm_of_prunes_and_syncs_only_hurts_its_sender() -> None:
    """A pruned link gets announcements; syncs have an allowance."""
    node = Node("a")
    node.gossip(1, peer="b")
    node.wait(0.5)
    for _ in range(100):
        node.receive("a", Prune())
        node.receive("a", Sync(True, 30_000, "", "", ()))

    assert node.core.counters["syncs_refused"] == 100 - GossipConfig().plumtree_syncs_max
    assert sent(node.wait(0.01), IHave) == ["a"]


def test_the_cache_is_bounded() -> None:
    """By bytes here; what is gone cannot be fetched and is no longer announced."""
    node = Node("a", plumtree_cache_bytes_max=2000)
    node.receive("a", Prune())
    for sequence in range(1, 11):
        node.gossip(sequence, peer="b", size=500)

    (hint,) = [decode(e.body) for e in node.wait(0.01) if isinstance(e, Send)]

    assert isinstance(hint, IHave)
    assert [a.id.sequence for a in hint.announcements] == [8, 9, 10]
    assert node.core.cached_bytes <= 2000


def test_what_is_too_old_ends_here() -> None:
    """Neither delivered nor passed on, so that nothing circulates for ever."""
    node = Node("a", "b")

    assert node.gossip(1, age_ms=30_000) == []
    assert node.core.counters["expired"] == 1
    assert node.core.origins == 0


def test_what_was_made_before_our_start_is_not_for_us() -> None:
    """Unless history is wanted; it is not asked for again either."""
    node = Node("a", "b")
    node.wait(1.0)

    assert node.gossip(1, age_ms=1500) == []
    assert delivered(node.gossip(2, age_ms=900)) == [2]
    assert node.core.counters["before_us"] == 1
    assert delivered(Node("a", plumtree_history_s=2.0).gossip(1, age_ms=1500)) == [1]


def test_waiting_for_a_large_payload_takes_longer() -> None:
    """It is not fetched a second time while it is under way."""
    node = Node("a", "b", plumtree_link_bytes_per_s=1_000_000)
    big = told(1, size=500_000)
    node.receive("a", IHave((big,)))
    node.receive("b", IHave((big,)))

    assert sent(node.wait(1.1), Graft) == []
    assert sent(node.wait(0.1), Graft) == ["a"]
    assert sent(node.wait(0.4), Graft) == []
    assert sent(node.wait(0.2), Graft) == ["b"]


def test_many_origins_are_compared_part_by_part() -> None:
    """Each sync speaks of an interval, and the next one goes on after it."""
    node = Node("a")
    for index in range(ORIGINS_MAX + 5):
        node.gossip(1, origin=f"n{index:04}", peer="b")

    syncs = [body for e in node.wait(4.0) if isinstance(e, Send) and isinstance(body := decode(e.body), Sync)]

    assert [(s.after, s.upto, len(s.summaries)) for s in syncs[:3]] == [
        ("", "n0499", 500),
        ("n0499", "", 5),
        ("", "n0499", 500),
    ]
    answered = node.receive("a", Sync(False, 0, "n0000", "n0002", (Summary(NodeId("n0001"), 1, 0, 2),)))
    (answer,) = [decode(e.body) for e in answered if isinstance(e, Send)]
    assert isinstance(answer, Sync)
    assert [s.origin for s in answer.summaries] == ["n0001", "n0002"]


def test_an_offer_is_as_large_as_one_announcement() -> None:
    """The rest goes with the next sync."""
    node = Node("a")
    node.receive("a", Prune())
    for sequence in range(1, 1100):
        node.gossip(sequence, peer="b")
    node.wait(0.5)

    node.receive("a", Sync(True, 30_000, "", "", ()))

    (hint,) = [decode(e.body) for e in node.wait(0.01) if isinstance(e, Send)]
    assert isinstance(hint, IHave)
    assert len(hint.announcements) == 1000
