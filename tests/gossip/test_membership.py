"""The membership core on its own: what each event makes it believe and say."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from gossip.codec import Body, Digest, Entry, Heartbeat, News, States, Want, decode, encode
from gossip.config import GossipConfig
from gossip.events import (
    AddressesChanged,
    BroadcastRequested,
    DialFailed,
    Doubted,
    Effect,
    Event,
    LeaveRequested,
    LinkLost,
    LinkOpened,
    Member,
    MemberChanged,
    MemberForgotten,
    MemberState,
    MetaChanged,
    NeighborDown,
    NeighborUp,
    Persist,
    ProbeFailed,
    Received,
    Send,
    SetTimer,
    Stalled,
    Started,
    Superseded,
    TimerFired,
    Unlink,
    UnlinkReason,
)
from gossip.incarnation import REFUTATION_JUMP_MAX, REFUTATIONS_MAX, make_incarnation
from gossip.membership import MembershipCore
from transport.errors import LocalProtocolError
from transport.types import Address, NodeId

ALIVE, SUSPECT, DEAD, LEFT = MemberState.ALIVE, MemberState.SUSPECT, MemberState.DEAD, MemberState.LEFT
LIFE = 5


def member(name: str, state: MemberState = ALIVE, refutations: int = 0, life: int = LIFE) -> Member:
    """A claim without details."""
    return Member(NodeId(name), make_incarnation(life, refutations), state)


class Node:
    """A core of node ``m`` with its running timers; remembers the last effects."""

    def __init__(self, *peers: str, **limits: float) -> None:
        self.config = GossipConfig(**limits)  # type: ignore[arg-type]
        self.vetoed: list[str] = []
        self.core = MembershipCore(
            member("m"), self.config, random.Random(1), admit=lambda claim: claim.node_id not in self.vetoed
        )
        self.now = 0.0
        self.timers: list[tuple[float, int]] = []
        self.effects: list[Effect] = []
        for peer in peers:
            self.link(peer)
        self.fire(1.0)
        self.effects.clear()

    def feed(self, event: Event) -> list[Effect]:
        effects = self.core.handle(event, self.now)
        self.timers += [(self.now + e.delay_s, e.token) for e in effects if isinstance(e, SetTimer)]
        self.effects += effects
        return effects

    def link(self, peer: str, life: int = LIFE, refutations: int = 0, *, neighbor: bool = True) -> list[Effect]:
        effects = self.feed(LinkOpened(NodeId(peer), make_incarnation(life, refutations), ()))
        if neighbor:
            effects += self.feed(NeighborUp(NodeId(peer)))
        return effects

    def hear(self, peer: str, body: Body) -> list[Effect]:
        return self.feed(Received(NodeId(peer), encode(body)))

    def news(self, *claims: Member, peer: str = "a") -> list[Effect]:
        return self.hear(peer, News(claims))

    def fire(self, until: float) -> list[Effect]:
        out: list[Effect] = []
        while due := sorted(timer for timer in self.timers if timer[0] <= until):
            self.timers.remove(due[0])
            self.now = max(self.now, due[0][0])
            out += self.feed(TimerFired(due[0][1]))
        self.now = until
        return out

    def state(self, name: str) -> MemberState | None:
        found = self.core.table.get(NodeId(name))
        return None if found is None else found.state

    def said(self, peer: str, effects: list[Effect] | None = None) -> list[Body | None]:
        sends = [e for e in (self.effects if effects is None else effects) if isinstance(e, Send) and e.peer == peer]
        return [decode(send.body, self.config) for send in sends]


def told(node: Node, peer: str, effects: list[Effect]) -> list[tuple[str, MemberState]]:
    """What the effects tell a peer as news."""
    return [(c.node_id, c.state) for body in node.said(peer, effects) if isinstance(body, News) for c in body.claims]


def test_starting_beats_at_a_jittered_pace() -> None:
    """One heartbeat per link and interval, keyed so that a newer replaces an older."""
    node = Node("a", "b")
    node.feed(Started())
    effects = node.fire(20 * node.config.heartbeat_interval_s)

    beats = [e for e in effects if isinstance(e, Send) and e.key == "heartbeat" and e.peer == "a"]
    assert 17 <= len(beats) <= 22
    assert node.feed(BroadcastRequested(b"", 1)) == []
    assert node.feed(TimerFired(10_000)) == []


def test_a_new_peer_is_news_for_all_others_and_hears_a_heartbeat() -> None:
    """What our own link shows goes to everybody but the peer itself, which hears our details before all else."""
    node = Node("a")
    opened = node.link("b")
    introduction, heartbeat = node.said("b", opened)
    assert introduction == News((node.core.me,))
    assert isinstance(heartbeat, Heartbeat)

    later = node.fire(node.now + 0.05)

    assert told(node, "a", later) == [("b", ALIVE)]
    assert told(node, "b", later) == []


def test_large_metadata_does_not_introduce_us() -> None:
    """The peer fetches it if it differs; an introduction of 256 KiB on every link would be too much."""
    node = Node(forward_meta_bytes_max=10)
    node.feed(MetaChanged(bytes(11)))

    assert all(isinstance(body, Heartbeat) for body in node.said("b", node.link("b")))


def test_a_link_outside_the_active_view_carries_nothing_but_what_concerns_its_peer() -> None:
    """Once it is some seconds old: no heartbeats and no news of others.  A young one may become a neighbour's."""
    node = Node("b")
    node.feed(Started())
    node.link("c", neighbor=False)
    node.effects.clear()

    node.link("d")
    assert told(node, "c", node.fire(node.now + 1.0)) == [("d", ALIVE)]
    node.fire(5.0)
    node.effects.clear()
    node.link("e")
    node.fire(10.0)

    sent_to = [e.peer for e in node.effects if isinstance(e, Send)]
    assert "b" in sent_to
    assert "c" not in sent_to
    node.feed(NeighborUp(NodeId("c")))
    node.feed(NeighborDown(NodeId("b")))
    node.effects.clear()
    node.fire(15.0)
    sent_to = [e.peer for e in node.effects if isinstance(e, Send)]
    assert "c" in sent_to
    assert "b" not in sent_to

    node.feed(LinkLost(NodeId("b")))

    assert node.core.table[NodeId("b")].state is SUSPECT


def test_a_lost_link_is_suspicion_and_then_death() -> None:
    """Told to all, with the configured time between."""
    node = Node("a", "b")
    node.feed(LinkLost(NodeId("b")))
    assert node.state("b") is SUSPECT
    assert told(node, "a", node.fire(node.now + 0.05)) == [("b", SUSPECT)]
    assert node.state("b") is SUSPECT

    node.fire(node.now + node.config.suspicion_s)

    assert node.state("b") is DEAD
    assert node.core.counters["deaths"] == 1


def test_links_that_end_for_good_reasons_accuse_nobody() -> None:
    """Wanted: nothing. Left: LEFT. Unknown or of a replaced life: nothing."""
    node = Node("a", "b", "c", "d")
    node.feed(LinkLost(NodeId("a"), wanted=True))
    node.feed(LinkLost(NodeId("b"), left=True))
    node.feed(LinkLost(NodeId("stranger")))
    node.news(member("c", life=LIFE + 1), peer="d")
    node.feed(LinkLost(NodeId("c")))

    assert [node.state(name) for name in "abc"] == [ALIVE, LEFT, ALIVE]
    node.news(member("d", LEFT), peer="d")
    node.feed(LinkLost(NodeId("d")))  # not in order after all, but it did say so
    assert node.state("d") is LEFT


def test_a_refused_dial_shortens_the_suspicion() -> None:
    """Nobody listens there: less time to wait. Other failures, or no suspicion, change nothing."""
    node = Node("a", "b")
    node.feed(DialFailed(NodeId("a"), refused=True))
    node.feed(LinkLost(NodeId("b")))
    node.feed(DialFailed(NodeId("b"), refused=False))
    node.fire(node.now + 0.5)
    node.feed(DialFailed(NodeId("b"), refused=True))
    node.feed(DialFailed(NodeId("b"), refused=True))

    node.fire(1.0 + node.config.suspicion_refused_s - 0.01)
    assert node.state("b") is SUSPECT
    node.fire(1.0 + node.config.suspicion_refused_s)
    assert node.state("b") is DEAD


def test_a_stall_of_ours_gives_suspects_the_time_back() -> None:
    """Running suspicions are prolonged, new ones take twice as long, a refused dial does not shorten them."""
    node = Node("a", "b", "c", suspicion_max_mult=1.0)
    node.feed(LinkLost(NodeId("b")))
    node.now += 5.0  # the timer is long due, but we did not run
    node.feed(Stalled(4.8))
    node.feed(LinkLost(NodeId("c")))
    node.feed(DialFailed(NodeId("c"), refused=False))
    node.feed(DialFailed(NodeId("c"), refused=True))

    node.fire(6.0 + 3.9)
    assert node.state("b") is SUSPECT
    assert node.state("c") is SUSPECT
    node.fire(6.0 + 4.9)
    assert node.state("b") is DEAD
    assert node.state("c") is DEAD


def named(node: Node, peer: str, effects: list[Effect]) -> list[tuple[NodeId, ...]]:
    """The accusers that the effects name to a peer."""
    return [names for body in node.said(peer, effects) if isinstance(body, News) for names in body.accusers]


def test_each_independent_accuser_shortens_the_time_and_is_news() -> None:
    """Two confirmations bring it to the least; the same accuser again, or an invented one, does nothing."""
    node = Node("a", "b", "c", "d")
    node.news(member("x"))
    first = node.hear("a", News((member("x", SUSPECT),), ((NodeId("a"),),))) + node.fire(1.05)
    assert named(node, "b", first) == [(NodeId("a"),)]
    again = node.hear("b", News((member("x", SUSPECT),), ((NodeId("a"), NodeId("invented")),))) + node.fire(1.1)
    assert named(node, "c", again) == []
    second = node.hear("b", News((member("x", SUSPECT),), ((NodeId("b"),),))) + node.fire(1.15)
    assert named(node, "c", second) == [(NodeId("a"), NodeId("b"))]
    assert named(node, "b", second) == []
    node.fire(1.0 + node.config.suspicion_s - 0.5)

    node.feed(ProbeFailed(NodeId("x")))
    own = node.fire(node.now + 0.05)
    assert named(node, "d", own) == [(NodeId("a"), NodeId("b"), NodeId("m"))]
    assert node.state("x") is SUSPECT
    node.fire(1.0 + node.config.suspicion_s + 0.01)

    assert node.state("x") is DEAD
    assert node.core.counters["confirmations"] == 2


def test_whoever_named_all_accusers_needs_no_telling() -> None:
    """Whoever knew only some does."""
    node = Node("a", "b", "c")
    node.news(member("x"))
    node.fire(1.1)
    node.hear("a", News((member("x", SUSPECT),), ((NodeId("a"), NodeId("b")),)))
    node.hear("b", News((member("x", SUSPECT),), ((NodeId("b"),),)))
    node.hear("c", News((member("x", SUSPECT),), ((NodeId("b"), NodeId("a")),)))
    effects = node.fire(1.2)

    assert (len(named(node, "b", effects)), len(named(node, "c", effects))) == (1, 0)


def test_accusers_of_an_older_incarnation_confirm_nothing() -> None:
    """The suspicion that they confirm has been refuted."""
    node = Node("a", "b", "c")
    node.news(member("x", SUSPECT, refutations=1))
    node.hear("a", News((member("x", SUSPECT),), ((NodeId("a"),),)))

    assert node.core.counters["confirmations"] == 0


def test_a_linked_peer_that_answers_no_probe_is_accused_all_the_same() -> None:
    """Its open link proves nothing from then on, until something comes from it; strangers are no matter."""
    node = Node("a", "b")
    node.feed(ProbeFailed(NodeId("stranger")))
    node.feed(ProbeFailed(NodeId("b")))
    assert node.state("b") is SUSPECT
    node.fire(1.0 + node.config.suspicion_s)
    assert node.state("b") is DEAD

    node.feed(ProbeFailed(NodeId("a")))
    node.news(member("y"))
    node.fire(node.now + 3 * node.config.suspicion_s)
    assert node.state("a") is SUSPECT


def test_a_link_that_breaks_after_silence_gives_no_more_time() -> None:
    """It was no evidence of life before."""
    node = Node("a", "b")
    node.feed(ProbeFailed(NodeId("b")))
    node.now += 1.0
    node.feed(LinkLost(NodeId("b")))
    node.fire(1.0 + node.config.suspicion_s)

    assert node.state("b") is DEAD


def test_just_after_a_stall_a_broken_link_accuses_nobody_until_the_redial_fails() -> None:
    """The peer gave us up, not we the peer."""
    node = Node("a", "b")
    node.feed(Stalled(4.0))
    node.feed(LinkLost(NodeId("a")))
    node.feed(LinkLost(NodeId("b")))
    assert (node.state("a"), node.state("b")) == (ALIVE, ALIVE)
    node.link("a")
    node.feed(DialFailed(NodeId("a"), refused=True))
    node.feed(DialFailed(NodeId("b"), refused=True))

    assert (node.state("a"), node.state("b")) == (ALIVE, SUSPECT)


def test_details_of_a_suspect_do_not_prolong_its_time() -> None:
    """Only a new incarnation starts the time anew."""
    node = Node("a")
    node.news(member("x", SUSPECT))
    node.fire(2.5)
    node.news(Member(NodeId("x"), make_incarnation(LIFE), SUSPECT, (), 2, b"late"))
    node.fire(1.0 + node.config.suspicion_s)

    assert node.state("x") is DEAD


def test_a_suspect_with_an_open_link_is_reminded_not_buried() -> None:
    """Its keepalive proves that it lives; when the link ends it gets the full time again."""
    node = Node("a", "b")
    first = node.news(member("b", SUSPECT))
    first += node.fire(node.now + 0.05)
    assert told(node, "b", first) == [("b", SUSPECT)]

    again = node.fire(node.now + 3.9)
    assert told(node, "b", again) == [("b", SUSPECT)]
    assert node.state("b") is SUSPECT
    node.feed(LinkLost(NodeId("b")))
    node.fire(node.now + node.config.suspicion_s - 0.01)
    assert node.state("b") is SUSPECT
    node.fire(node.now + 0.02)
    assert node.state("b") is DEAD


def test_dead_by_hearsay_depends_on_how_it_was_heard() -> None:
    """News of a death are believed of an old suspect without a link; else it is suspicion; unknown it is buried."""
    node = Node("a", "b", "c")
    node.news(member("x", SUSPECT), member("y"))
    node.news(member("x", DEAD), member("b", DEAD))
    assert (node.state("x"), node.state("b")) == (SUSPECT, SUSPECT)
    node.now += 0.6
    node.news(member("x", DEAD), member("b", DEAD))
    assert (node.state("x"), node.state("b")) == (DEAD, SUSPECT)

    node.hear("a", States((member("y", DEAD), member("x", DEAD, refutations=1), member("never", DEAD))))

    assert (node.state("y"), node.state("x"), node.state("never")) == (SUSPECT, DEAD, None)
    assert node.core.table.known(NodeId("never")) == member("never", DEAD)
    node.news(member("never"))
    assert node.state("never") is None


def test_news_of_a_death_that_nobody_suspected_here_leave_a_second_to_refute() -> None:
    """As where a partition ends: its other side's conclusions come before the living heard of them."""
    node = Node("a", "b")
    node.news(member("x"), member("y"))
    node.news(member("x", DEAD), member("y", DEAD))
    assert (node.state("x"), node.state("y")) == (SUSPECT, SUSPECT)

    node.news(member("y", refutations=1))
    node.fire(node.now + 1.1)

    assert (node.state("x"), node.state("y")) == (DEAD, ALIVE)


def test_a_higher_incarnation_takes_a_suspicion_back() -> None:
    """The timer that is still running then finds nothing to do."""
    node = Node("a")
    node.news(member("x", SUSPECT))
    node.news(member("x", ALIVE, refutations=1))
    node.fire(60)
    assert node.state("x") is ALIVE

    node.news(member("x", SUSPECT, refutations=1))
    node.fire(61)
    node.news(member("x", SUSPECT, refutations=2))
    node.fire(62.5)
    assert node.state("x") is SUSPECT


@pytest.mark.parametrize("state", [SUSPECT, DEAD])
def test_an_accusation_against_us_is_refuted(state: MemberState) -> None:
    """With the next incarnation, told to all, also to whoever said so."""
    node = Node("a", "b")
    node.news(member("m", state))

    assert node.core.me.incarnation == make_incarnation(LIFE, 1)
    effects = node.fire(node.now + 0.05)
    assert told(node, "a", effects) == told(node, "b", effects) == [("m", ALIVE)]


def test_what_does_not_contradict_us_is_not_refuted() -> None:
    """An older accusation, or one of an older life."""
    node = Node("a")
    node.news(member("m", SUSPECT))
    node.news(member("m", SUSPECT), member("m", DEAD, life=LIFE - 1), member("m", LEFT, life=LIFE - 1))

    assert node.core.me.incarnation == make_incarnation(LIFE, 1)
    assert node.core.counters["refutations"] == 1


def test_a_cited_incarnation_above_ours_is_jumped_within_bounds() -> None:
    """Nonsense is refused and counted, both about us and about others."""
    node = Node("a")
    node.news(member("m", ALIVE, refutations=7))
    assert node.core.me.incarnation == make_incarnation(LIFE, 8)

    node.news(member("m", DEAD, refutations=9 + REFUTATION_JUMP_MAX))
    node.news(member("a", DEAD, refutations=1 + REFUTATION_JUMP_MAX))

    assert node.core.me.incarnation == make_incarnation(LIFE, 8)
    assert node.state("a") is ALIVE
    assert node.core.counters["claims_implausible"] == 2


def test_a_made_up_version_of_our_details_is_outbid() -> None:
    """Else nobody would ever believe our own again; absurd ones are left alone."""
    node = Node("a")
    me = node.core.me
    node.news(Member(me.node_id, me.incarnation, ALIVE, (), 40, b"lies"))
    assert (node.core.me.meta_version, node.core.me.meta) == (41, b"")

    node.news(Member(me.node_id, me.incarnation, ALIVE, (), 2**53 - 1, b"lies"))

    assert node.core.me.meta_version == 41


@pytest.mark.parametrize(
    ("claim", "why"),
    [
        (member("m", ALIVE, life=LIFE + 1), "higher life"),
        (member("m", LEFT), "left"),
    ],
)
def test_superseded_ends_the_core_after_storing_the_life(claim: Member, why: str) -> None:
    """Persist stands first; nothing else happens from then on, not even with the rest of the body."""
    node = Node("a")
    effects = node.news(claim, member("x"))

    assert effects[0] == Persist(claim.incarnation)
    assert isinstance(effects[1], Superseded)
    assert why in effects[1].why
    assert len(effects) == 2
    assert node.core.ended
    assert node.state("x") is None
    assert node.fire(100) == []


def test_used_up_refutations_end_the_life() -> None:
    """The one accusation too many, reached in plausible steps."""
    node = Node("a")
    refutations = 0
    effects: list[Effect] = []
    while not node.core.ended:
        refutations = min(refutations + REFUTATION_JUMP_MAX, REFUTATIONS_MAX)
        effects = node.news(member("m", SUSPECT, refutations=refutations))
        assert node.core.ended == (refutations == REFUTATIONS_MAX)

    assert any(isinstance(e, Superseded) and "refutations" in e.why for e in effects)


def test_an_older_process_is_told_and_sent_away() -> None:
    """It hears of the higher life over the link that it opened."""
    node = Node("a")
    node.news(member("x", life=9))

    effects = node.link("x", life=8)

    assert told(node, "x", effects) == [("x", ALIVE)]
    assert isinstance(effects[-1], Unlink)
    assert node.core.table[NodeId("x")].incarnation == make_incarnation(9)


def test_whoever_we_believe_dead_is_told_on_contact() -> None:
    """On opening a link and with each heartbeat after the first, so that it can refute."""
    node = Node("a")
    node.news(member("x", SUSPECT))
    node.now += 0.6
    node.news(member("x", DEAD))
    assert told(node, "x", node.link("x")) == [("x", DEAD), ("m", ALIVE)]

    beat = Heartbeat(make_incarnation(LIFE), 0, 1)
    assert told(node, "x", node.hear("x", beat)) == []
    assert told(node, "x", node.hear("x", beat)) == [("x", DEAD)]
    node.hear("x", Heartbeat(make_incarnation(LIFE, 1), 0, 1))
    assert node.state("x") is ALIVE


def test_a_heartbeat_of_another_life_is_refused() -> None:
    """A link belongs to one process."""
    node = Node("a")
    node.hear("a", Heartbeat(make_incarnation(LIFE + 1), 0, 1))

    assert node.core.counters["claims_implausible"] == 1


def test_tables_that_stay_different_are_exchanged() -> None:
    """Not at the first difference but at the second, one peer per tick; on a new link the smaller id starts at once."""
    node = Node("z", "a")
    node.feed(Started())
    beat = Heartbeat(make_incarnation(LIFE), 1, 1)
    assert isinstance(node.said("z", node.hear("z", beat))[-1], Digest)
    assert node.said("a", node.hear("a", beat)) == []
    assert [b for b in node.said("a", node.fire(2.2)) if isinstance(b, Digest)] == []

    node.hear("a", beat)

    assert len([b for b in node.said("a", node.fire(3.4)) if isinstance(b, Digest)]) == 1
    node.hear("a", Heartbeat(make_incarnation(LIFE), node.core.table.digest, 1))
    assert [b for b in node.said("a", node.fire(9)) if isinstance(b, Digest)] == []


def entry(name: str, state: MemberState = ALIVE, refutations: int = 0, version: int = 0) -> Entry:
    """A line of a digest."""
    return Entry(NodeId(name), make_incarnation(LIFE, refutations), state, version)


def test_a_digest_is_answered_with_what_each_side_lacks() -> None:
    """Better states are sent, better details asked for, better statuses learned at once."""
    node = Node("a")
    versioned = Member(NodeId("e"), make_incarnation(LIFE), ALIVE, (), 3, b"e")
    node.news(member("b", SUSPECT), member("c"), member("d"), versioned, member("f"))
    effects = node.hear(
        "a",
        Digest(
            "",
            "n",
            (
                entry("b"),
                entry("c", SUSPECT),
                entry("d", version=2),
                entry("e"),
                entry("g"),
                entry("h", DEAD),
                entry("m", SUSPECT, version=1),
            ),
        ),
    )

    states = next(body for body in node.said("a", effects) if isinstance(body, States))
    assert [claim.node_id for claim in states.claims] == ["a", "f", "b", "e"]
    assert Want((NodeId("d"), NodeId("g"))) in node.said("a", effects)
    assert node.state("c") is SUSPECT
    assert node.core.table.known(NodeId("h")) == member("h", DEAD)
    assert node.core.me.incarnation == make_incarnation(LIFE, 1)


def test_a_digest_says_nothing_about_ids_outside_its_interval() -> None:
    """Each body stands for its interval alone."""
    node = Node("a")
    node.news(member("b"), member("x"))

    effects = node.hear("a", Digest("a", "c", ()))

    assert node.said("a", effects) == [States((member("b"),))]


def test_our_tombstone_answers_a_ghost() -> None:
    """A peer that believes a forgotten dead node alive is told; a real return is asked for."""
    node = Node("a", dead_retention_s=1, tombstone_s=1000)
    node.news(member("x"))
    node.news(member("x", DEAD))
    node.feed(Started())
    assert any(isinstance(e, MemberForgotten) for e in node.fire(5))

    effects = node.hear("a", Digest("w", "y", (entry("x"),)))
    assert node.said("a", effects) == [States((member("x", DEAD),))]

    effects = node.hear("a", Digest("w", "y", (entry("x", refutations=1, version=1),)))
    assert node.said("a", effects) == [Want((NodeId("x"),))]


def test_a_digest_may_end_our_life() -> None:
    """Nothing more is said then."""
    node = Node("a")
    effects = node.hear("a", Digest("", "", (Entry(NodeId("m"), make_incarnation(LIFE + 1), ALIVE, 1),)))

    assert [type(effect) for effect in effects] == [Persist, Superseded]


def test_wants_are_answered_within_a_ration() -> None:
    """Whoever asks for more than its share before the next tick is ignored and counted."""
    node = Node("a")
    effects = node.hear("a", Want((NodeId("m"), NodeId("unknown"))))
    assert node.said("a", effects) == [States((node.core.me,))]

    for _ in range(4):
        node.hear("a", Digest("", "", ()))
    node.hear("a", Want((NodeId("m"),) * 200))

    assert node.core.counters["requests_over_limit"] == 3


def test_bodies_without_a_link_or_of_later_versions_are_ignored() -> None:
    """The first is counted."""
    node = Node("a")

    assert node.hear("stranger", News((member("x"),))) == []
    assert node.feed(Received(NodeId("a"), b"\x91\xcc\xc8")) == []
    assert node.core.counters["received_unlinked"] == 1


def test_news_go_on_to_a_few_and_large_details_to_nobody() -> None:
    """What we heard is passed on to ``forward_fanout`` peers; whoever told us meanwhile needs no telling."""
    peers = [f"p{index}" for index in range(12)]
    node = Node(*peers, forward_fanout=3, forward_meta_bytes_max=10)
    claim = Member(NodeId("x"), make_incarnation(LIFE), ALIVE, (), 1, b"m" * 11)
    node.news(claim, peer="p0")
    node.news(claim, peer="p1")
    effects = node.fire(node.now + 0.05)

    knowing = [e.peer for e in effects if isinstance(e, Send)]
    assert 1 <= len(knowing) <= 3
    assert not {"p0", "p1"} & set(knowing)
    assert node.said(knowing[0], effects) == [News((member("x"),))]


def test_a_change_that_waits_is_told_in_its_latest_form() -> None:
    """Two changes within the delay are one claim."""
    node = Node("a", "b")
    node.news(member("x"))
    node.feed(Doubted(NodeId("x")))
    node.feed(Doubted(NodeId("x")))
    node.feed(Doubted(NodeId("b")))
    node.feed(Doubted(NodeId("nobody")))

    assert told(node, "b", node.fire(node.now + 0.05)) == [("x", SUSPECT)]


def test_a_change_that_was_forgotten_meanwhile_is_not_told() -> None:
    """With retention of nothing a death may be forgotten before it is news."""
    node = Node("a", dead_retention_s=0, tombstone_s=0)
    node.feed(Started())
    node.news(member("x", SUSPECT))
    node.fire(node.now + 0.6)
    tick = min(node.timers)[0]
    node.now = tick - 0.001
    node.news(member("x", DEAD))
    effects = node.fire(tick + 0.05)

    assert MemberForgotten(member("x", DEAD)) in effects
    assert [body for body in node.said("a", effects) if isinstance(body, News)] == []


def test_what_the_node_says_of_itself_has_limits() -> None:
    """Metadata over the limit is refused; of many addresses the first are taken; each change is a new version."""
    node = Node("a")
    node.feed(MetaChanged(b"m"))
    with pytest.raises(LocalProtocolError):
        node.feed(MetaChanged(b"m" * (node.config.meta_bytes_max + 1)))
    node.feed(AddressesChanged(tuple(Address("h", port) for port in range(1, 30))))

    assert node.core.me.meta == b"m"
    assert len(node.core.me.addresses) == 16
    assert node.core.me.meta_version == 3


def test_leaving_is_told_to_every_peer_at_once() -> None:
    """And is the last thing said."""
    node = Node("a", "b")
    effects = node.feed(LeaveRequested())

    assert told(node, "a", effects) == told(node, "b", effects) == [("m", LEFT)]
    assert any(isinstance(e, MemberChanged) and e.after.state is LEFT for e in effects)
    assert node.feed(LinkLost(NodeId("a"))) == []
    assert node.fire(100) == []


# --- admission --------------------------------------------------------------------------------------------------


def test_a_node_that_is_not_admitted_stays_out() -> None:
    """Neither its link nor hearsay brings it in, and nothing of it is passed on; members stay what they are."""
    node = Node("a", "b")
    node.vetoed = ["a", "x"]
    assert [(e.peer, e.reason) for e in node.link("x") if isinstance(e, Unlink)] == [("x", UnlinkReason.VETOED)]
    effects = node.news(member("x"), member("y")) + node.fire(node.now + 0.1)

    assert (node.state("x"), node.state("y"), node.state("a")) == (None, ALIVE, ALIVE)
    assert ("x", ALIVE) not in told(node, "b", effects)
    assert node.core.counters["claims_vetoed"] == 2
    node.news(member("a", SUSPECT))
    assert node.state("a") is SUSPECT
    node.vetoed = []
    node.news(member("x"))
    assert node.state("x") is ALIVE


# --- two processes with one name --------------------------------------------------------------------------------


def cloned(version: int, host: str) -> Member:
    """What a process says that was started in the same second from a copy of our data directory."""
    return replace(member("m"), meta_version=version, addresses=(Address(host, 1),))


def test_details_that_somebody_made_up_are_overruled() -> None:
    """Once or twice, or with our own addresses, may be a mistake or a lie: ours win again."""
    node = Node("a")
    node.feed(AddressesChanged((Address("10.0.0.5", 1),)))
    for _ in range(2):
        node.news(cloned(node.core.me.meta_version + 1, "10.0.0.9"))
    for _ in range(9):
        node.news(replace(cloned(node.core.me.meta_version + 1, "10.0.0.5"), meta=b"made up"))

    assert not node.core.ended
    assert node.core.me.addresses == (Address("10.0.0.5", 1),)
    assert node.core.me.meta == b""
    assert node.core.counters["contests"] == 11


def test_of_two_processes_with_one_name_and_life_one_gives_way() -> None:
    """Each hears the other's details again and again; by their addresses both know which of them ends."""
    ends = {}
    for ours, theirs in (("10.0.0.5", "10.0.0.9"), ("10.0.0.9", "10.0.0.5")):
        node = Node("a")
        node.feed(AddressesChanged((Address(ours, 1),)))
        for _ in range(4):
            effects = node.news(cloned(node.core.me.meta_version + 1, theirs))
            notices = [e.why for e in effects if isinstance(e, Superseded)]
            if notices:
                assert "10.0.0.9:1 has this node id" in notices[0]
        ends[ours] = node.core.ended
    assert ends == {"10.0.0.5": True, "10.0.0.9": False}


def test_news_in_a_storm_are_collected() -> None:
    """The first go out at once, those that follow within the interval together at its end."""
    node = Node("a")
    node.fire(5.0)
    node.effects.clear()
    for name in ("b", "c", "d"):
        node.news(member(name), peer="a")
        node.link(name)
        node.fire(node.now + 0.03)

    bodies = [body for body in node.said("a") if isinstance(body, News)]
    assert bodies == []
    node.effects.clear()
    node.fire(node.now + node.config.flush_interval_s)
    (body,) = [body for body in node.said("b") if isinstance(body, News)]
    assert [claim.node_id for claim in body.claims] == ["c", "d"]


def test_who_knows_less_than_we_are_about_to_tell_is_told() -> None:
    """An old claim about a node does not show that the peer has the details that we heard since."""
    node = Node("a", "b")
    old = Member(NodeId("x"), make_incarnation(LIFE), ALIVE)
    node.news(replace(old, meta_version=1, meta=b"new"), peer="a")
    node.news(old, peer="b")

    (body,) = [body for body in node.said("b", node.fire(node.now + 0.5)) if isinstance(body, News)]

    assert body.claims[0].meta == b"new"


def test_who_said_the_same_meanwhile_is_not_told() -> None:
    """Neither where it came as news nor where a table listed it."""
    node = Node("a", "b", "c")
    claim = Member(NodeId("x"), make_incarnation(LIFE), ALIVE)
    node.news(claim, peer="a")
    node.news(claim, peer="b")
    node.hear("c", Digest("w", "y", (Entry(NodeId("x"), claim.incarnation, ALIVE, 0),)))

    effects = node.fire(node.now + 0.5)

    assert [told(node, peer, effects) for peer in ("a", "b", "c")] == [[], [], []]


def test_news_of_the_death_of_one_who_left_changes_nothing() -> None:
    """Departure is final, so there is no suspicion to hurry."""
    node = Node("a")
    node.news(member("x"))
    node.news(member("x", LEFT))
    node.news(member("x", DEAD))

    assert node.state("x") is LEFT
