"""Anti-entropy by its core alone: replicas as sets of dots, bodies handed over by the test."""

from __future__ import annotations

import random
from collections.abc import Iterator
from hashlib import blake2b

from state.clocks.vectors import Span, VersionVector, Writer
from state.replication.codec import Ask, Body, Offer, Page, Same
from state.replication.repair import (
    PENALTIES_MAX,
    Diverged,
    Heard,
    PeerDown,
    PeerUp,
    RepairConfig,
    RepairCore,
    RepairEffect,
    Say,
    Serve,
    Take,
    Taken,
    Ticked,
    Unsent,
    Waiting,
)
from transport.types import NodeId

A, B, C, D = map(NodeId, "abcd")
LINEAGE = b"lineage!"


def w(name: str) -> Writer:
    """A writer."""
    return Writer(NodeId(name), 1)


class Replica:
    """What a core knows of its replica, as a version and a salt that stands for other content under the same dots."""

    def __init__(self, **counters: int) -> None:
        self.counters = {w(name): counter for name, counter in counters.items()}
        self.salt = ""
        self.held_count = 0
        self.core = RepairCore("board", LINEAGE, self, RepairConfig(), random.Random(1), 0.0)

    @property
    def version(self) -> VersionVector:
        """See :class:`~state.replication.repair.Knowledge`."""
        return VersionVector(self.counters)

    def history(self) -> bytes:
        """See :class:`~state.replication.repair.Knowledge`."""
        return blake2b(f"{self.version}{self.salt}".encode(), digest_size=16).digest()

    def offer(self) -> Offer:
        """What it would offer."""
        return Offer("board", LINEAGE, self.history())

    def ask(self) -> Ask:
        """What it would ask."""
        return Ask("board", LINEAGE, self.history(), self.version)

    def page(self, *envelopes: bytes, more: bool = False) -> Page:
        """A page of it."""
        return Page("board", LINEAGE, self.history(), envelopes, more)

    def hear(self, peer: NodeId, body: Body, now: float = 0.0) -> list[RepairEffect]:
        """What it does about a body."""
        return self.core.handle(Heard(peer, body), now)


def said(effects: list[RepairEffect]) -> Iterator[tuple[NodeId, type[Body]]]:
    """To whom which steps."""
    return ((effect.peer, type(effect.body)) for effect in effects if isinstance(effect, Say))


def settled(replica: Replica) -> bool:
    """Whether it was compared with all its peers."""
    return replica.core.is_settled


def test_equal_replicas_say_no_more_than_that() -> None:
    """A new link: an offer, and the answer settles both sides."""
    here, there = Replica(a=3), Replica(a=3)
    assert here.core.handle(PeerUp(B), 0.0) == [Say(B, here.offer())]
    assert here.core.handle(PeerUp(B), 0.0) == []
    assert not settled(here)
    (answer,) = there.hear(A, here.offer())
    assert answer == Say(A, Same("board", LINEAGE, here.history()))
    assert there.core.is_settled
    assert here.hear(B, Same("board", LINEAGE, here.history())) == []
    assert settled(here)
    assert here.core.peers == [B]


def test_an_answer_about_an_older_history_settles_nothing() -> None:
    """What was offered was the same, and is another by now."""
    here = Replica(a=3)
    old = here.history()
    here.core.handle(PeerUp(B), 0.0)
    here.counters[w("a")] = 4
    here.hear(B, Same("board", LINEAGE, old))
    assert not here.core.is_settled


def test_who_lacks_something_pulls_page_by_page() -> None:
    """Each page moves the version; the last one settles, and a few others hear of the news."""
    here, there = Replica(), Replica(a=5)
    here.core.handle(PeerUp(B), 0.0)
    here.core.handle(PeerUp(C), 0.0)
    assert here.hear(B, there.offer()) == [Say(B, here.ask())]
    assert here.core.is_pulling_from(B)

    assert there.hear(A, here.ask()) == [Serve(A, (Span(w("a"), 1, 5),))]
    assert there.core.is_settled

    assert here.hear(B, there.page(b"1", b"2", more=True)) == [Take(B, (b"1", b"2"))]
    here.counters[w("a")] = 2
    assert here.core.handle(Taken(B, fresh=2, refused=False), 1.0) == [Say(B, here.ask())]
    assert here.hear(B, there.page(b"3")) == [Take(B, (b"3",))]
    assert here.hear(B, there.page(b"3")) == []  # a second page that nobody asked for
    here.counters[w("a")] = 5
    assert here.core.handle(Taken(B, fresh=0, refused=False), 1.0) == [Say(C, here.offer())]
    assert here.core.peers == [B, C]
    assert here.core.counters["pages_unasked"] == 1


def test_who_is_asked_asks_back_for_what_it_lacks() -> None:
    """One comparison brings both up to date."""
    here, there = Replica(a=2), Replica(b=3)
    effects = there.hear(A, here.ask())
    assert effects == [Serve(A, (Span(w("b"), 1, 3),)), Say(A, there.ask())]
    behind = Replica()
    assert behind.hear(A, here.ask()) == [Say(A, behind.page()), Say(A, behind.ask())]


def test_news_are_spread_but_not_all_the_time() -> None:
    """While everybody writes each pull brings something: the others hear of it once a second."""
    here, there = Replica(), Replica(a=9)
    for peer in (B, C):
        here.core.handle(PeerUp(peer), 0.0)
    heard: list[float] = []
    now = 0.0
    while now < 3.5:
        here.hear(B, there.offer(), now)
        here.hear(B, there.page(b"1"), now)
        here.counters[w("a")] = 1 + int(now * 2)
        effects = here.core.handle(Taken(B, fresh=1, refused=False), now)
        effects += here.core.handle(Ticked(), now + 0.1)
        heard += [now for peer, step in said(effects) if (peer, step) == (C, Offer)]
        now += 0.25
    assert heard == [0.0, 1.0, 2.0, 3.0]
    here.hear(B, there.offer(), 3.6)
    here.hear(B, there.page(b"1"), 3.6)
    here.core.handle(Taken(B, fresh=1, refused=False), 3.6)
    assert here.core.due <= 4.1  # it is put off, not forgotten
    assert (C, Offer) in list(said(here.core.handle(Ticked(), 4.1)))


def test_an_offer_during_a_pull_is_looked_at_after_it() -> None:
    """One pull from one peer at a time; what it did meanwhile is asked for when the last page is in."""
    here, there = Replica(), Replica(a=2)
    here.hear(B, there.offer())
    assert here.hear(B, there.offer()) == []
    here.hear(B, there.page(b"1"))
    here.counters[w("a")] = 1
    assert here.core.handle(Taken(B, fresh=0, refused=False), 0.0) == [Say(B, here.ask())]
    here.hear(B, there.page())
    assert here.core.handle(Taken(B, fresh=0, refused=False), 0.0) == []


def test_a_page_that_moves_nothing_ends_the_pull() -> None:
    """A peer that promises more without end is asked no further."""
    here, there = Replica(), Replica(a=5)
    here.hear(B, there.offer())
    here.hear(B, there.page(b"?", more=True))
    assert here.core.handle(Taken(B, fresh=0, refused=False), 0.0) == []
    assert here.core.counters["stuck"] == 1
    assert not here.core.is_settled


def test_who_sends_what_cannot_be_is_left_alone_for_longer_each_time() -> None:
    """Its offers are answered no more until the time is over."""
    here, there = Replica(), Replica(a=5)
    config = RepairConfig()
    now = 0.0
    for expected in (10.0, 20.0, 40.0):
        assert here.hear(B, there.offer(), now) == [Say(B, here.ask())]
        here.hear(B, there.page(b"bad", more=True), now)
        assert here.core.handle(Taken(B, fresh=0, refused=True), now) == []
        assert here.hear(B, there.offer(), now + expected - 0.1) == []
        now += expected
    assert config.penalty_s_max > now
    for number in range(PENALTIES_MAX + 5):
        peer = NodeId(f"n{number}")
        here.hear(peer, there.offer(), now)
        here.hear(peer, there.page(b"bad"), now)
        here.core.handle(Taken(peer, fresh=0, refused=True), now)
    assert here.hear(B, there.offer(), now) == [Say(B, here.ask())]  # forgotten for newer ones


def test_pulls_are_few_and_others_wait_their_turn() -> None:
    """Who was passed over is asked once there is room whether it still differs."""
    here, there = Replica(), Replica(a=5)
    for peer in (B, C, D):
        here.core.handle(PeerUp(peer), 0.0)
    assert [list(said(here.hear(peer, there.offer()))) for peer in (B, C, D)] == [[(B, Ask)], [(C, Ask)], []]
    here.hear(B, there.page())
    assert list(said(here.core.handle(Taken(B, fresh=0, refused=False), 0.0))) == [(D, Offer)]
    here.core.handle(Heard(D, there.offer()), 0.0)
    assert list(said(here.core.handle(PeerDown(C), 0.0))) == []


def test_the_end_of_a_link_ends_its_pull() -> None:
    """And makes room; what is told of its page later does nothing."""
    here, there = Replica(), Replica(a=5)
    for peer in (B, C, D):
        here.core.handle(PeerUp(peer), 0.0)
        here.hear(peer, there.offer())
    here.hear(B, there.page(b"1"))
    assert list(said(here.core.handle(PeerDown(B), 0.0))) == [(D, Offer)]
    assert here.core.handle(Taken(B, fresh=0, refused=True), 0.0) == []
    assert here.core.handle(PeerDown(B), 0.0) == []
    assert here.core.peers == [C, D]


def test_pages_that_do_not_come_are_given_up() -> None:
    """After the timeout the pull is over, and the next one in turn."""
    here, there = Replica(), Replica(a=5)
    for peer in (B, C, D):
        here.core.handle(PeerUp(peer), 0.0)
        here.hear(peer, there.offer())
    assert here.core.due < 10.0  # the round comes first
    here.core.handle(Ticked(), 7.0)
    assert here.core.due == 10.0
    effects = here.core.handle(Ticked(), 10.0)
    assert (D, Offer) in list(said(effects))
    assert here.core.counters["timeouts"] == 2
    assert not here.core.is_pulling_from(B)


def test_rounds_go_to_one_replica_at_random() -> None:
    """Every few seconds, with whom nothing is under way; without any there is none."""
    here = Replica(a=1)
    here.core.handle(Ticked(), 10.0)
    assert here.core.counters["rounds"] == 0
    here.core.handle(PeerUp(B), 10.0)
    here.core.handle(PeerUp(C), 10.0)
    now = 10.0
    chosen: list[tuple[NodeId, type[Body]]] = []
    for _ in range(40):
        assert now + 3.75 <= here.core.due <= now + 6.25
        now = here.core.due
        chosen += said(here.core.handle(Ticked(), now))
    assert set(chosen) == {(B, Offer), (C, Offer)}
    assert len(chosen) == 40


def test_a_gap_is_asked_for_soon() -> None:
    """When envelopes wait, a replica is asked for what is missing, again and again until they no longer do."""
    here, there = Replica(), Replica(a=5)
    here.core.handle(Waiting(), 0.0)
    here.held_count = 1
    assert here.core.due == 0.25
    assert here.core.handle(Ticked(), 0.25) == []  # nobody to ask
    here.core.handle(PeerUp(B), 0.3)
    here.core.handle(Waiting(), 0.3)
    assert here.core.handle(Ticked(), 0.55) == [Say(B, here.ask())]
    here.hear(B, there.page(), 0.6)
    here.core.handle(Taken(B, fresh=0, refused=False), 0.6)
    assert here.core.handle(Ticked(), 1.55) == [Say(B, here.ask())]
    here.held_count = 0
    here.core.handle(Ticked(), 2.6)
    assert here.core.due > 3.0


def test_what_the_group_did_not_take_is_offered_to_all() -> None:
    """So that they ask for it."""
    here = Replica(a=1)
    here.core.handle(PeerUp(B), 0.0)
    here.core.handle(PeerUp(C), 0.0)
    assert list(said(here.core.handle(Unsent(), 0.0))) == [(B, Offer), (C, Offer)]


def test_two_histories_of_one_version_are_told_once() -> None:
    """Nothing is pulled, for there is nothing to be had."""
    here, there = Replica(a=2), Replica(a=2)
    there.salt = "other"
    assert here.hear(B, there.offer()) == [Say(B, here.ask())]
    assert there.hear(A, here.ask()) == [Say(A, there.page()), Diverged(A)]
    assert there.hear(A, here.ask()) == [Say(A, there.page())]
    assert there.core.counters["diverged"] == 1


def test_nobody_penalised_is_chosen() -> None:
    """Neither for rounds nor when there is room for another pull."""
    here, there = Replica(), Replica(a=5)
    for peer in (B, C, D):
        here.core.handle(PeerUp(peer), 0.0)
        here.hear(peer, there.offer())
    here.core.handle(PeerDown(C), 0.0)  # which makes D the next
    here.hear(D, there.offer())
    here.hear(D, there.page(b"bad"))
    here.core.handle(Taken(D, fresh=0, refused=True), 0.0)
    here.core.handle(PeerDown(B), 0.0)
    assert list(said(here.core.handle(Ticked(), 7.0))) == []
