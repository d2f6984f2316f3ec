"""A node's sender keys: who is given them unasked, who has to ask, and what waits meanwhile."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from keysmith import entropy

from mesh.errors import SealRefused
from mesh.sealing import keyring as keyring_module
from mesh.sealing.chains import Limits
from mesh.sealing.groups import SPREAD_S
from mesh.sealing.handshake import Peer
from mesh.sealing.keyring import (
    ANSWERS_MAX,
    ASK_AGAIN_S,
    ASKS_MAX,
    EVERYBODY,
    PARK_S,
    RECEIVER_IDLE_S,
    Keyring,
    Opened,
    is_sealed,
)
from mesh.sealing.reasons import Reason
from mesh.sealing.sender_keys import Ask, Grant, GroupSender, decode_grants, encode_ask, encode_grant
from transport.wire import pack

ANN, BOB, EVE = Peer("ann", 1), Peer("bob", 1), Peer("eve", 1)
NEWS = "news"


class Circle:
    """Nodes that can all speak to each other, and what each has opened."""

    def __init__(self, *peers: Peer) -> None:
        self.peers = peers or (ANN, BOB, EVE)
        self.readers: dict[str, Sequence[Peer]] = {EVERYBODY: self.peers, NEWS: self.peers}
        self.rings = {peer: self._ring(peer) for peer in self.peers}
        self.opened: dict[Peer, list[bytes]] = {peer: [] for peer in self.peers}
        self.hears = True
        self.now = 0.0

    def _ring(self, peer: Peer) -> Keyring:
        return Keyring(
            "net",
            *peer,
            readers=lambda group: self.readers[group],
            entropy=entropy(peer.node_id),
            rng=random.Random(1),
            limits=Limits(),
        )

    def allow(self, group: str, *peers: Peer) -> None:
        """Have these and no others read."""
        self.readers[group] = peers
        for ring in self.rings.values():
            ring.readers_changed()

    def seal(self, body: bytes, group: str = NEWS, *, frm: Peer = ANN, linked: Sequence[Peer] = ()) -> bytes:
        """Seal something."""
        return self.rings[frm].seal(group, body, linked, self.now)

    def bring(self, sealed: bytes, to: Peer, group: str = NEWS, *, frm: Peer = ANN, spread_s: float = 0.0) -> None:
        """Have gossip bring it to a node."""
        body = self.rings[to].open(group, frm, sealed, spread_s, self.now)
        if body is not None:
            self.opened[to].append(body)

    def refusal(self, sealed: bytes, to: Peer, group: str = NEWS, *, frm: Peer = ANN) -> str:
        """Why it is refused there."""
        with pytest.raises(SealRefused) as refusal:
            self.bring(sealed, to, group, frm=frm)
        return refusal.value.reason

    def take(self, frm: Peer) -> list[tuple[Peer, Ask | Grant | None]]:
        """What a node wants said, and to whom; it is lost on the way."""
        ring = self.rings[frm]
        said, ring.outgoing = ring.outgoing, []
        return [(peer, decode_grants(body)) for peer, body in said]

    def talk(self) -> None:
        """Carry everything that anybody wants said until all are silent."""
        while any(ring.outgoing for ring in self.rings.values()):
            for frm, ring in self.rings.items():
                said, ring.outgoing = ring.outgoing, []
                for to, body in said:
                    opened = self.rings[to].received(frm, body, lambda _: self.hears, self.now)
                    self.opened[to] += [one.body for one in opened]

    def pass_time(self, seconds: float) -> None:
        """Let everybody do what is due."""
        self.now += seconds
        for ring in self.rings.values():
            ring.tick(self.now)

    def count(self, peer: Peer, name: str) -> int:
        """A counter."""
        return self.rings[peer].statistics()[name]


def test_who_is_linked_with_the_sender_has_the_key_first() -> None:
    """A generation is given to linked readers unasked, once, and to nobody else."""
    circle = Circle()
    circle.allow(NEWS, ANN, BOB)
    sealed = [circle.seal(b"%d" % number, linked=[BOB, EVE]) for number in range(3)]
    assert [(peer, type(said)) for peer, said in circle.take(ANN)] == [(BOB, Grant)]

    circle = Circle()
    sealed = [circle.seal(b"%d" % number, linked=[BOB]) for number in range(3)]
    circle.talk()
    for each in sealed:
        circle.bring(each, BOB)
    assert circle.opened[BOB] == [b"0", b"1", b"2"]
    assert circle.count(BOB, "parked") == 0
    assert circle.count(BOB, "opened") == 3


@pytest.mark.parametrize("group", [NEWS, EVERYBODY])
def test_who_has_no_key_parks_and_asks_and_opens_in_order(group: str) -> None:
    """What came before the key waits, is asked for once, and opens in the order in which it came."""
    circle = Circle()
    for number in range(5):
        circle.bring(circle.seal(b"%d" % number, group), BOB, group)
    assert circle.opened[BOB] == []
    assert circle.rings[BOB].is_waiting
    assert circle.count(BOB, "parked_now") == 5
    circle.talk()

    assert circle.opened[BOB] == [b"%d" % number for number in range(5)]
    assert [circle.count(BOB, name) for name in ("asked", "parked_now", "parked_bytes")] == [1, 0, 0]
    assert not circle.rings[BOB].is_waiting
    assert circle.count(ANN, "answered") == 1


def test_the_sender_reads_no_copy_of_its_own() -> None:
    """A node grants itself nothing, though it is among the readers."""
    circle = Circle()
    circle.seal(b"x", linked=[ANN, BOB])
    assert [peer for peer, _ in circle.take(ANN)] == [BOB]


def test_who_is_not_linked_asks_within_the_spread() -> None:
    """A thousand nodes that lack a key do not ask at once; a link that comes up meanwhile is used at once."""
    circle = Circle()
    sealed = circle.seal(b"x")
    circle.bring(sealed, BOB, spread_s=10.0)
    circle.bring(sealed, EVE, spread_s=10.0)
    due = circle.rings[BOB].due_at()
    assert 0 < due < 10
    assert circle.take(BOB) == []
    circle.rings[BOB].tick(due)
    assert [peer for peer, _ in circle.take(BOB)] == [ANN]

    circle.rings[EVE].linked(BOB, circle.now)
    circle.rings[EVE].linked(ANN, circle.now)
    assert circle.count(EVE, "asked") == 1


def test_a_thousand_that_lack_a_key_are_no_storm() -> None:
    """They ask over ten seconds, about a hundred in each, once; all of them hear what they asked for."""
    peers = [Peer(f"n{number}", 1) for number in range(1_000)]
    circle = Circle(ANN, *peers)
    for number, peer in enumerate(peers):
        circle.rings[peer]._rng.seed(number)
    sealed = circle.seal(b"x", EVERYBODY)
    for peer in peers:
        circle.bring(sealed, peer, EVERYBODY, spread_s=SPREAD_S * len(peers))
    asked = []
    for _ in range(11):
        circle.pass_time(1.0)
        asked.append(sum(len(circle.rings[peer].outgoing) for peer in peers))
        circle.talk()

    assert sum(asked) == 1_000
    assert max(asked) < 150
    assert circle.count(ANN, "granted") == 1_000
    assert all(circle.opened[peer] == [b"x"] for peer in peers)


def test_questions_are_repeated_ever_more_slowly_and_then_given_up() -> None:
    """Lost questions are asked again; in the end what waited for the key is dropped and counted."""
    circle = Circle()
    circle.bring(circle.seal(b"x"), BOB)
    asked_at = []
    while circle.rings[BOB].is_waiting:
        if circle.take(BOB):
            asked_at.append(circle.now)
        circle.pass_time(circle.rings[BOB].due_at() - circle.now)
    pauses = [later - sooner for sooner, later in itertools.pairwise(asked_at)]

    assert circle.now == PARK_S
    assert 4 <= len(asked_at) <= 8
    assert pauses[0] <= 1.25 * ASK_AGAIN_S < pauses[2] < pauses[3]
    assert circle.count(BOB, "parked_expired") == 1
    assert circle.count(BOB, "parked_bytes") == 0
    assert circle.rings[BOB].due_at() == float("inf")


def test_only_readers_are_answered() -> None:
    """Who does not subscribe, or is no member, gets no key, however often it asks."""
    circle = Circle()
    circle.allow(NEWS, ANN, BOB)
    circle.bring(circle.seal(b"x"), EVE)
    circle.talk()
    assert circle.opened[EVE] == []
    assert circle.count(ANN, "unanswered") == 1
    assert circle.count(ANN, "granted") == 0


def test_a_reader_that_its_sender_learns_of_later_is_answered_when_it_asks_again() -> None:
    """What it heard of before that stays closed; what comes after opens."""
    circle = Circle()
    circle.allow(NEWS, ANN)
    circle.bring(circle.seal(b"too early"), BOB)
    circle.talk()
    circle.allow(NEWS, ANN, BOB)
    circle.bring(circle.seal(b"in time"), BOB)
    circle.pass_time(2.0)
    circle.talk()

    assert circle.opened[BOB] == [b"in time"]
    ((origin, error),) = circle.rings[BOB].refusals
    assert (origin, error.reason) == (ANN, Reason.OLD_EPOCH)


def test_who_left_reads_nothing_newer() -> None:
    """A subscriber that ceased to be one has the old key, and neither gets the next one nor can do without."""
    circle = Circle()
    circle.bring(circle.seal(b"before"), EVE)
    circle.talk()
    circle.allow(NEWS, ANN, BOB)
    circle.now = 1.0
    after = circle.seal(b"after", linked=[BOB])
    for reader in (BOB, EVE):
        circle.bring(after, reader)
    circle.talk()

    assert circle.opened[EVE] == [b"before"]
    assert circle.opened[BOB] == [b"after"]
    assert circle.count(ANN, "generations") == 2


def test_what_nobody_sent_is_asked_for_and_stands_in_nobodys_way() -> None:
    """A body made up in a sender's name waits in vain; genuine ones beside it open, before and after the grant."""
    circle = Circle()
    genuine = circle.seal(b"genuine")
    made_up = bytearray(genuine)
    made_up[2] ^= 1
    circle.bring(bytes(made_up), BOB)
    circle.bring(genuine, BOB)
    asked = [circle.take(BOB)[0][1]]
    circle.pass_time(1.5)
    asked += [said for _, said in circle.take(BOB)]
    assert [said.generation for said in asked if isinstance(said, Ask)] == [bytes(made_up[2:10]), genuine[2:10]]
    circle.rings[BOB].outgoing.append((ANN, encode_ask(Ask(NEWS, genuine[2:10]))))
    circle.talk()

    circle.bring(circle.seal(b"next"), BOB)
    assert circle.opened[BOB] == [b"genuine", b"next"]
    assert circle.count(BOB, "parked_now") == 1
    circle.pass_time(PARK_S)
    assert circle.count(BOB, "parked_now") == 0


def test_parked_copies_open_once() -> None:
    """A body that a relay doubles while the key is missing is opened once, and refused once."""
    circle = Circle()
    sealed = circle.seal(b"x")
    circle.bring(sealed, BOB)
    circle.bring(sealed, BOB)
    circle.talk()
    assert circle.opened[BOB] == [b"x"]
    assert [error.reason for _, error in circle.rings[BOB].refusals] == [Reason.REPLAYED]


def test_a_body_opens_only_as_what_it_was_sealed() -> None:
    """Another group, another sender, another kind of traffic: refused, or never opened."""
    circle = Circle()
    circle.readers["weather"] = circle.peers
    news, weather, all_of_us = (circle.seal(b"x", group, linked=[BOB]) for group in (NEWS, "weather", EVERYBODY))
    circle.seal(b"x", NEWS, frm=EVE, linked=[BOB])
    circle.talk()
    assert circle.refusal(news, BOB, EVERYBODY) == Reason.MALFORMED
    assert circle.refusal(all_of_us, BOB, NEWS) == Reason.MALFORMED
    assert circle.refusal(b"\x17" * 101, BOB) == Reason.MALFORMED
    # Its key is none that this sender gave for this group: it waits for one in vain.
    circle.bring(news, BOB, "weather")
    circle.bring(weather, BOB, NEWS, frm=EVE)
    circle.talk()
    assert circle.opened[BOB] == []
    circle.pass_time(PARK_S)
    assert circle.count(BOB, "parked_expired") == 2


def test_grants_that_nobody_needs_are_ignored() -> None:
    """A node keeps no keys for groups that it does not hear; what is no grant is refused."""
    circle = Circle()
    circle.hears = False
    circle.seal(b"x", linked=[BOB])
    circle.talk()
    assert (circle.count(BOB, "grants_ignored"), circle.count(BOB, "receivers")) == (1, 0)
    ring = circle.rings[BOB]
    assert ring.received(ANN, pack([9, "later"]), lambda _: True, 0.0) == []
    with pytest.raises(SealRefused):
        ring.received(ANN, b"\xc1", lambda _: True, 0.0)


def test_a_grant_speaks_for_its_sender_alone() -> None:
    """Eve's grant opens what Eve sealed, and nothing in Ann's name, even under the same generation."""
    circle = Circle()
    forger = GroupSender("net", NEWS, *ANN, entropy=entropy("eve"), now=0.0, limits=Limits())
    forger.set_readers([BOB])
    (grant,) = forger.owed(BOB, 0.0)
    assert circle.rings[BOB].received(EVE, encode_grant(grant), lambda _: True, 0.0) == []
    forged = forger.seal(23, b"forged", 0.0)
    circle.bring(forged, BOB)
    circle.talk()
    assert circle.opened[BOB] == []
    assert circle.refusal(forged, BOB, frm=EVE) == Reason.SIGNATURE


def test_who_asks_and_asks_is_answered_within_a_ration() -> None:
    """Questions beyond the ration are not answered; with time there are answers again, and the ration is forgotten."""
    circle = Circle()
    ask = encode_ask(Ask(NEWS, circle.seal(b"x")[2:10]))
    ring = circle.rings[ANN]
    for _ in range(ANSWERS_MAX + 10):
        ring.received(BOB, ask, lambda _: True, 0.0)
    assert (circle.count(ANN, "answered"), circle.count(ANN, "unanswered")) == (ANSWERS_MAX, 10)
    ring.sweep(0.5)
    assert list(ring._answers) == [BOB]
    ring.received(BOB, ask, lambda _: True, 1.0)
    assert circle.count(ANN, "answered") == ANSWERS_MAX + 1
    ring.sweep(60.0)
    assert ring._answers == {}


def test_made_up_origins_do_not_make_a_node_ask_without_end() -> None:
    """Bodies in many names are asked for within a ration, the others a little later."""
    circle = Circle()
    sealed = circle.seal(b"x")
    for number in range(ASKS_MAX + 10):
        circle.bring(sealed, BOB, frm=Peer(f"n{number}", 1))
    assert len(circle.take(BOB)) == ASKS_MAX
    assert 0 < circle.rings[BOB].due_at() < ASK_AGAIN_S
    circle.pass_time(0.9)
    assert len(circle.take(BOB)) > 0


@pytest.mark.parametrize("limit", ["STREAMS_MAX", "PARKED_ALL_BYTES_MAX", "PARKED_BYTES_MAX", "PARKED_MAX"])
def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """In number and bytes, of one sender and in all: what is too much is refused and counted."""
    circle = Circle()
    sealed = circle.seal(b"x")
    monkeypatch.setattr(keyring_module, limit, len(sealed) if "BYTES" in limit else 1)
    circle.bring(sealed, BOB)
    other = EVE if limit in {"STREAMS_MAX", "PARKED_ALL_BYTES_MAX"} else ANN
    assert circle.refusal(sealed, BOB, frm=other) == Reason.UNKNOWN_SESSION
    assert (circle.count(BOB, "parked"), circle.count(BOB, "parked_dropped")) == (1, 1)


def test_keys_are_bounded_and_the_longest_unused_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of senders and of receivers; who lost a key asks again."""
    monkeypatch.setattr(keyring_module, "SENDERS_MAX", 2)
    monkeypatch.setattr(keyring_module, "RECEIVERS_MAX", 2)
    circle = Circle()
    for group in ("a", "b", "c"):
        circle.readers[group] = circle.peers
        circle.now += 1
        circle.bring(circle.seal(b"1" + group.encode(), group), BOB, group)
        circle.talk()
    assert (circle.count(ANN, "senders"), circle.count(BOB, "receivers")) == (2, 2)
    circle.bring(circle.seal(b"2a", "a"), BOB, "a")
    circle.talk()
    assert circle.opened[BOB] == [b"1a", b"1b", b"1c", b"2a"]
    assert list(circle.rings[ANN]._senders) == ["c", "a"]


def test_keys_of_who_says_nothing_are_erased() -> None:
    """After a quarter of an hour, and everything at the end; a sender's old epochs go as well."""
    circle = Circle()
    circle.bring(circle.seal(b"x"), BOB)
    circle.talk()
    circle.rings[BOB].sweep(RECEIVER_IDLE_S - 1)
    assert circle.count(BOB, "receivers") == 1
    circle.rings[BOB].sweep(RECEIVER_IDLE_S)
    assert circle.count(BOB, "receivers") == 0
    circle.rings[ANN].sweep(RECEIVER_IDLE_S)
    assert circle.count(ANN, "senders") == 1
    circle.rings[ANN].clear()
    assert circle.count(ANN, "senders") == 0


def test_what_is_sealed_is_told_from_what_is_not_by_its_first_byte() -> None:
    """In the clear a payload is an array."""
    circle = Circle()
    assert is_sealed(circle.seal(b"x"))
    assert is_sealed(circle.seal(b"x", EVERYBODY))
    assert not is_sealed(pack([0, 0, []]))
    assert not is_sealed(b"")


def test_what_was_opened_says_where_it_belongs() -> None:
    """Group and origin come with a body that was parked."""
    circle = Circle()
    circle.bring(circle.seal(b"x"), BOB)
    ((_, said),) = circle.take(BOB)
    assert isinstance(said, Ask)
    circle.rings[ANN].received(BOB, encode_ask(said), lambda _: True, 0.0)
    ((_, grant),) = circle.take(ANN)
    assert isinstance(grant, Grant)
    assert circle.rings[BOB].received(ANN, encode_grant(grant), lambda _: True, 0.0) == [Opened(NEWS, ANN, b"x")]
