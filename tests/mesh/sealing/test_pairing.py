"""Two pairings on one wire: to a session, and from one session to the next, whatever is lost or replayed."""

from __future__ import annotations

import dataclasses

import pytest
from keysmith import NOW, Couple, entropy, identity, later, peer_of, receive

from mesh.errors import SealRefused
from mesh.sealing.chains import Limits
from mesh.sealing.codec import CONFIRM, HEADER, HEADER_BYTES, encode_unknown, read_header
from mesh.sealing.handshake import Moment
from mesh.sealing.pairing import ATTEMPT_S, Pairing
from mesh.sealing.reasons import Reason
from transport.types import Lane
from transport.wire import Kind, pack


def _seal(side: Pairing, body: bytes = b"body", now: Moment = NOW, lane: Lane = Lane.NORMAL) -> bytes:
    sealed = side.seal(Kind.MESSAGES, lane, body, now.monotonic)
    assert sealed is not None
    return sealed


def _refusal(side: Pairing, kind: Kind, body: bytes, now: Moment = NOW) -> str:
    with pytest.raises(SealRefused) as refusal:
        receive(side, kind, body, now)
    return refusal.value.reason


def _works(couple: Couple, now: Moment = NOW) -> bool:
    for side in (couple.a, couple.b):
        sealed = _seal(side, b"content", now)
        if b"content" in sealed or couple.other(side).open(sealed, now.monotonic) != (Kind.MESSAGES, b"content"):
            return False
    return True


# --- the first session ------------------------------------------------------------------------------------------


def test_nothing_is_agreed_before_somebody_wants_it() -> None:
    """A link alone costs no key agreement."""
    couple = Couple()

    assert couple.settle() == 0
    assert couple.a.seal(Kind.MESSAGES, Lane.NORMAL, b"body", NOW.monotonic) is None
    assert not couple.a.is_ready


def test_the_initiator_seals_after_one_round_trip() -> None:
    """Offer, answer: then the one who wanted may seal; the other may with the first body that opens."""
    couple = Couple()
    couple.a.want(NOW)
    assert couple.carry(couple.a) == [Kind.KEYS]
    assert couple.b.seal(Kind.MESSAGES, Lane.NORMAL, b"body", NOW.monotonic) is None
    assert couple.carry(couple.b) == [Kind.KEYS]
    assert (couple.a.is_ready, couple.b.is_ready) == (True, False)
    assert couple.carry(couple.a) == [Kind.SEALED]
    assert _works(couple)
    assert (couple.a.handshakes, couple.b.handshakes) == (1, 1)


def test_a_body_confirms_as_well() -> None:
    """When the confirmation is overtaken by a body of a faster lane, that body does."""
    couple = Couple()
    couple.a.want(NOW)
    couple.carry(couple.a)
    couple.carry(couple.b)
    confirmation = couple.a.take_outgoing()
    assert couple.b.open(_seal(couple.a), NOW.monotonic) == (Kind.MESSAGES, b"body")
    assert couple.b.is_ready
    assert couple.b.open(confirmation[0][1], NOW.monotonic) == (CONFIRM, b"")


@pytest.mark.parametrize("first", ["a", "b"])
def test_two_offers_at_once_make_one_session(first: str) -> None:
    """When both offer at the same time, the smaller node's offer counts, whichever arrives first."""
    couple = Couple()
    sides = [couple.a, couple.b] if first == "a" else [couple.b, couple.a]
    for side in sides:
        side.want(NOW)
    offers = {side: side.take_outgoing() for side in sides}
    for side in sides:
        for kind, body in offers[side]:
            receive(couple.other(side), kind, body)
    couple.settle()

    assert couple.a.is_ready
    assert couple.b.is_ready
    assert _works(couple)
    assert (couple.a.handshakes, couple.b.handshakes) == (1, 1)


def test_wanting_again_repeats_nothing_until_the_attempt_is_old() -> None:
    """However many messages wait, there is one offer; after a while without an answer there is another."""
    couple = Couple()
    for _ in range(3):
        couple.a.want(NOW)
    assert len(couple.a.take_outgoing()) == 1
    couple.a.want(later(ATTEMPT_S - 0.01))
    assert couple.a.take_outgoing() == []
    couple.a.want(later(ATTEMPT_S))
    couple.settle(later(ATTEMPT_S))
    assert _works(couple, later(ATTEMPT_S))
    couple.a.want(later(10))
    assert couple.a.take_outgoing() == []


def test_a_lost_offer_of_the_smaller_node_does_not_block_the_other() -> None:
    """When the other offers while ours has had no answer for a while, ours is said again."""
    couple = Couple()
    couple.a.want(NOW)
    couple.a.take_outgoing()
    couple.b.want(later(ATTEMPT_S / 2))
    assert couple.carry(couple.b, later(ATTEMPT_S / 2)) == [Kind.KEYS]
    assert couple.a.take_outgoing() == []
    couple.b.want(later(ATTEMPT_S * 2))
    couple.settle(later(ATTEMPT_S * 2))

    assert _works(couple, later(ATTEMPT_S * 2))


def test_a_slow_link_makes_one_session() -> None:
    """Where the answer takes longer than patience lasts the offer is repeated, and each time answered alike."""
    couple = Couple()
    offers, answers = [], []
    for second in range(4):
        couple.a.want(later(second))
        offers += couple.a.take_outgoing()
    for kind, body in offers:
        receive(couple.b, kind, body, later(4))
        answers += couple.b.take_outgoing()
    for kind, body in answers:
        receive(couple.a, kind, body, later(5))
    couple.settle(later(5))

    assert len(offers) == len(answers) == 4
    assert len(set(offers)) == len(set(answers)) == 1
    assert _works(couple, later(5))
    assert (couple.a.handshakes, couple.b.handshakes) == (1, 1)


def test_an_answer_to_an_offer_taken_back_is_ignored() -> None:
    """The larger node drops its offer for the smaller's; a late answer to it changes nothing."""
    couple = Couple()
    couple.b.want(NOW)
    ((_, offer),) = couple.b.take_outgoing()
    couple.a.keys_received(offer, NOW)
    answer = couple.a.take_outgoing()
    couple.a.want(later(ATTEMPT_S))
    couple.settle(later(ATTEMPT_S))
    for kind, body in answer:
        receive(couple.b, kind, body, later(ATTEMPT_S))
    assert _works(couple, later(ATTEMPT_S))


# --- hostile ----------------------------------------------------------------------------------------------------


def test_a_replayed_offer_pushes_nothing_out() -> None:
    """An old offer gets an answer that nobody can use; the session in use goes on, and nothing is sealed anew."""
    couple = Couple()
    couple.a.want(NOW)
    offer = couple.a.take_outgoing()
    receive(couple.b, *offer[0])
    couple.settle()
    receive(couple.b, *offer[0])
    assert [kind for kind, _ in couple.b.take_outgoing()] == [Kind.KEYS]

    assert _works(couple)


def test_a_replayed_answer_changes_nothing() -> None:
    """An answer fits one offer of one run; later it is nobody's."""
    couple = Couple()
    couple.a.want(NOW)
    couple.carry(couple.a)
    ((kind, answer),) = couple.b.take_outgoing()
    receive(couple.a, kind, answer)
    couple.settle()
    receive(couple.a, kind, answer)
    now = later(3_600)
    _seal(couple.a, now=now)
    receive(couple.a, kind, answer, now)
    couple.settle(now)

    assert _works(couple, now)
    assert couple.a.handshakes == 2


def test_offers_are_rationed() -> None:
    """A peer that makes offer after offer is refused before they cost much, and may go on later."""
    couple = Couple()
    refusals = []
    for number in range(20):
        offer = Couple().a
        offer.want(NOW)
        ((_, body),) = offer.take_outgoing()
        del number
        try:
            couple.b.keys_received(body, NOW)
        except SealRefused as error:
            refusals.append(error.reason)
    assert refusals.count(Reason.FLOODED) == 4
    couple.a.want(later(10))
    couple.b.take_outgoing()
    assert couple.carry(couple.a, later(10)) == [Kind.KEYS]


def test_a_body_of_another_session_is_refused() -> None:
    """What was sealed between others, or under keys of another run, does not open."""
    couple, other = Couple().connect(), Couple(b=identity("c")).connect()

    assert _refusal(couple.b, Kind.SEALED, _seal(other.a)) == Reason.UNKNOWN_SESSION


def test_an_altered_or_replayed_body_is_refused() -> None:
    """A relay's tricks with bodies end in refusals, and what was sealed still opens once."""
    couple = Couple().connect()
    sealed = _seal(couple.a)
    header, rest = read_header(sealed), sealed[HEADER_BYTES:]
    assert _refusal(couple.b, Kind.SEALED, sealed[:-1]) == Reason.FORGED
    assert _refusal(couple.b, Kind.SEALED, sealed[:30]) == Reason.MALFORMED
    assert _refusal(couple.b, Kind.SEALED, HEADER.pack(*header._replace(kind=Kind.ACKS)) + rest) == Reason.FORGED
    assert _refusal(couple.a, Kind.SEALED, sealed) == Reason.FORGED
    couple.b.open(sealed, NOW.monotonic)
    assert _refusal(couple.b, Kind.SEALED, sealed) == Reason.REPLAYED


@pytest.mark.parametrize("kind", [1, 17, 48, Kind.SEALED, Kind.KEYS])
def test_only_bodies_between_agents_travel_sealed(kind: int) -> None:
    """A peer cannot smuggle in what has no business inside, such as membership or another sealed body."""
    couple = Couple().connect()
    sealed = couple.a.seal(kind, Lane.NORMAL, b"body", NOW.monotonic)
    assert sealed is not None
    assert _refusal(couple.b, Kind.SEALED, sealed) == Reason.MALFORMED


def test_statements_of_later_versions_are_ignored() -> None:
    """A statement about keys that this version does not know changes nothing."""
    couple = Couple().connect()
    couple.a.keys_received(pack([9, b"new"]), NOW)

    assert _works(couple)


def test_a_peer_cannot_talk_us_out_of_a_session_in_use() -> None:
    """Saying that a session is unknown after having shown it does nothing; nor does naming another."""
    couple = Couple().connect()
    couple.a.keys_received(encode_unknown(read_header(_seal(couple.a)).session), NOW)
    couple.a.keys_received(encode_unknown(b"whatever"), NOW)

    assert _works(couple)


# --- the next link ----------------------------------------------------------------------------------------------


def test_the_next_link_takes_the_session_up() -> None:
    """After a link broke both sides show each other the session, and no key agreement is needed."""
    first = Couple().connect()
    second = Couple(*first.identities, sessions=(first.a.park(), first.b.park()))
    assert not second.a.is_ready
    assert second.settle() == 2

    assert _works(second)
    assert second.a.handshakes == second.b.handshakes == 0


@pytest.mark.parametrize("keeper", ["a", "b"])
@pytest.mark.parametrize("asker", ["a", "b"])
def test_a_session_that_one_side_lost_is_replaced(keeper: str, asker: str) -> None:
    """When only one side still has the session they agree on another, as soon as either has something to say."""
    first = Couple().connect()
    left = first.a.park() if keeper == "a" else first.b.park()
    second = Couple(*first.identities, sessions=(left, None) if keeper == "a" else (None, left))
    (second.a if asker == "a" else second.b).want(NOW)
    second.settle()

    assert _works(second)
    assert second.a.handshakes == second.b.handshakes == 1


def test_a_session_that_nobody_misses_is_not_replaced() -> None:
    """Without anything to say, losing a session costs one notice and no key agreement."""
    first = Couple().connect()
    second = Couple(*first.identities, sessions=(first.a.park(), None))
    assert second.settle() == 2

    assert not second.a.is_ready
    assert second.a.handshakes == second.b.handshakes == 0


def test_nothing_is_sealed_for_a_session_that_was_not_shown() -> None:
    """A session of before is used only when the other side has shown on this link that it has it, too."""
    first = Couple().connect()
    second = Couple(*first.identities, sessions=(first.a.park(), first.b.park()))
    assert second.a.seal(Kind.MESSAGES, Lane.NORMAL, b"body", NOW.monotonic) is None
    second.a.want(NOW)
    assert [kind for kind, _ in second.a.take_outgoing()] == [Kind.SEALED]
    # The confirmation got lost: after a while there is an offer.
    second.a.want(later(ATTEMPT_S))
    assert [kind for kind, _ in second.a.take_outgoing()] == [Kind.KEYS]


def test_a_spent_session_is_not_taken_up() -> None:
    """What is over by its time, or by the wall clock after a machine slept, is as good as none."""
    first = Couple().connect()
    for now in (later(90_000), Moment(NOW.monotonic, NOW.wall + 8 * 86_400)):
        second = Couple(*first.identities, sessions=(first.a.park(), None), now=now)
        assert second.a.take_outgoing() == []
        assert second.a.park() is None


# --- renewal and sweeping ---------------------------------------------------------------------------------------


def _sessions(couple: Couple, now: Moment) -> tuple[bytes, bytes]:
    sealed = [_seal(side, b"", now, Lane.LOW) for side in (couple.a, couple.b)]
    for side, body in zip((couple.b, couple.a), sealed, strict=True):
        side.open(body, now.monotonic)
    return read_header(sealed[0]).session, read_header(sealed[1]).session


def test_a_session_is_renewed_while_it_works() -> None:
    """After an hour there is a new key agreement; no body waits for it, and those under way open."""
    couple = Couple().connect()
    before = _sessions(couple, NOW)
    now = later(3_600)
    under_way = [(couple.other(side), _seal(side, b"under way", now)) for side in (couple.a, couple.b)]
    couple.settle(now)
    after = _sessions(couple, now)

    assert before[0] == before[1]
    assert after[0] == after[1] != before[0]
    for side, sealed in under_way:
        assert side.open(sealed, now.monotonic) == (Kind.MESSAGES, b"under way")
    assert (couple.a.handshakes, couple.b.handshakes) == (2, 2)


def test_the_session_before_is_erased_after_a_while() -> None:
    """When the grace is over, what was sealed under the old session is refused."""
    couple = Couple().connect()
    now = later(3_600)
    late = _seal(couple.a, b"late", now)
    couple.settle(now)
    assert _works(couple, now)
    couple.b.sweep(later(3_659))
    assert couple.b._previous is not None
    couple.b.sweep(later(3_660))
    assert _refusal(couple.b, Kind.SEALED, late, later(3_660)) == Reason.UNKNOWN_SESSION


def test_renewal_that_finds_no_answer_is_tried_again_until_the_session_is_spent() -> None:
    """The session goes on working meanwhile; when it is spent nothing is sealed any more."""
    couple = Couple().connect()
    offers = 0
    for hours in range(1, 24):
        _seal(couple.a, now=later(3_600 * hours))
        offers += len(couple.a.take_outgoing())
    assert 2 <= offers <= 23
    assert couple.a.seal(Kind.MESSAGES, Lane.NORMAL, b"body", later(86_400).monotonic) is None
    assert not couple.a.is_ready
    couple.a.want(later(86_400))
    couple.settle(later(86_400))
    assert _works(couple, later(86_400))


def test_a_session_without_epochs_left_is_replaced() -> None:
    """When the last epoch is over nothing is sealed until there is another session."""
    couple = Couple(limits=dataclasses.replace(Limits(), epoch_bodies=1, epochs=3)).connect()
    sealed = [couple.b.seal(Kind.MESSAGES, Lane.NORMAL, b"body", NOW.monotonic) for _ in range(4)]
    assert [body is not None for body in sealed] == [True, True, True, False]
    assert not couple.b.is_ready
    couple.b.want(NOW)
    couple.settle()
    assert _works(couple)


def test_a_renewed_certificate_is_used_for_the_next_session() -> None:
    """The identity is asked for with each key agreement."""
    couple = Couple(identity("a", lasts_s=4_000.0)).connect()
    couple.identities[0] = identity("a", lasts_s=100_000.0)
    now = later(3_600)
    _works(couple, now)
    couple.settle(now)
    assert _works(couple, later(5_000))


def test_a_side_whose_certificate_expired_meanwhile_gets_no_session() -> None:
    """When our own certificate is over before the answer comes, the session is not used."""
    couple = Couple(identity("a", lasts_s=5.0))
    couple.a.want(NOW)
    couple.carry(couple.a)
    couple.carry(couple.b, later(6))

    assert not couple.a.is_ready
    assert couple.a.take_outgoing() == []


def test_an_idle_side_changes_its_key_and_shows_it() -> None:
    """Sweeping ends an epoch whose time is over, and tells the other side, which then erases the old key as well."""
    couple = Couple().connect()
    assert _works(couple)
    now = later(301)
    for side in (couple.a, couple.b):
        side.sweep(now)
    assert couple.settle(now) == 2
    assert couple.a._current is not None
    assert couple.a._current.epochs == (1, 1)
    couple.a.sweep(later(700))
    assert couple.settle(later(700)) == 0


def test_sweeping_drops_what_came_to_nothing() -> None:
    """An offer without answer and an answer without confirmation are forgotten, with their keys."""
    couple = Couple()
    couple.a.want(NOW)
    couple.carry(couple.a)
    couple.b.take_outgoing()
    kept = []
    for seconds in (59, 60):
        couple.a.sweep(later(seconds))
        couple.b.sweep(later(seconds))
        kept.append((couple.a._offer is not None, couple.b._answered is not None))
    assert kept == [(True, True), (False, False)]


def test_sweeping_drops_a_session_that_is_over() -> None:
    """Its time counts on both clocks: a machine that slept has to agree on new keys."""
    couple = Couple().connect()
    couple.a.sweep(Moment(NOW.monotonic + 1, NOW.wall + 8 * 86_400))
    assert not couple.a.is_ready
    couple.b.sweep(later(86_400))
    assert not couple.b.is_ready


def test_a_session_not_shown_is_not_swept_onto_the_link() -> None:
    """A session that only this side holds changes its key in silence."""
    first = Couple().connect()
    _seal(first.a)
    second = Couple(*first.identities, sessions=(first.a.park(), None))
    second.a.take_outgoing()
    second.a.sweep(later(301))

    assert second.a.take_outgoing() == []


def test_a_pairing_serves_any_limits() -> None:
    """Sessions keep the limits they were given: one body for each epoch here."""
    couple = Couple(limits=dataclasses.replace(Limits(), epoch_bodies=1)).connect()
    for _ in range(5):
        assert _works(couple)
    assert couple.a._current is not None
    assert couple.a._current.epochs == (5, 4)


def test_pairings_draw_from_their_own_entropy() -> None:
    """The same entropy makes the same offer, another one another: nothing else is random in it."""
    me, peer = identity("a"), peer_of(identity("b"))
    shares = []
    for seed in ("x", "x", "y"):
        pairing = Pairing(lambda: me, peer, None, entropy=entropy(seed), now=NOW, limits=Limits())
        pairing.want(NOW)
        shares.append(pairing._offer.share.private_bytes_raw() if pairing._offer else b"")
    assert shares[0] == shares[1] != shares[2]
