"""Two sides of a link agree that it may close, in every order in which what they say can arrive."""

from __future__ import annotations

import itertools

import pytest

from gossip.parting import AGREED_S, OFFER_S, Act, Partings, Step, decode, encode
from transport.errors import RemoteProtocolError
from transport.types import NodeId

B = NodeId("b")


def test_each_step_is_one_byte_and_later_ones_are_ignored() -> None:
    """As docs/protocol/gossip.md gives them; an empty body is an error."""
    assert [encode(step) for step in Step] == [b"\x00", b"\x01", b"\x02"]
    assert [decode(encode(step)) for step in Step] == list(Step)
    assert decode(b"\x00later fields") is Step.OFFER
    assert decode(b"\x03") is None
    with pytest.raises(RemoteProtocolError, match="empty"):
        decode(b"")


def test_an_offer_is_judged_and_an_agreement_closes() -> None:
    """The usual course, from either side."""
    ours, theirs = Partings(), Partings()
    ours.offered(B, 0.0)

    assert theirs.heard(B, Step.OFFER) is Act.ASK
    theirs.agreed(B, 0.0)
    assert B in ours
    assert B in theirs
    assert ours.heard(B, Step.AGREE) is Act.CLOSE
    assert theirs.forget(B) is Act.RELEASE
    assert theirs.forget(B) is Act.NOTHING
    assert len(theirs) == 0


def test_a_refused_offer_lets_us_send_again() -> None:
    """Once; another STAY, as to an offer that expired, changes nothing."""
    ours = Partings()
    ours.offered(B, 0.0)

    assert ours.heard(B, Step.STAY) is Act.RELEASE
    assert ours.heard(B, Step.STAY) is Act.NOTHING
    assert B not in ours


def test_offers_that_cross_agree() -> None:
    """Both have stopped, so both may close."""
    ours = Partings()
    ours.offered(B, 0.0)

    assert ours.heard(B, Step.OFFER) is Act.CLOSE


def test_an_agreement_to_an_offer_that_we_gave_up_is_taken_back() -> None:
    """We send again, so the other side must not wait for the end; it may also be offered anew."""
    ours, theirs = Partings(), Partings()
    ours.offered(B, 0.0)
    theirs.agreed(B, 0.1)

    assert ours.expired(OFFER_S) == [B]
    assert ours.heard(B, Step.AGREE) is Act.STAY
    assert theirs.heard(B, Step.OFFER) is Act.ASK
    assert theirs.heard(B, Step.AGREE) is Act.NOTHING
    assert theirs.heard(B, Step.STAY) is Act.RELEASE


def test_whoever_agreed_waits_longer_than_whoever_offered() -> None:
    """By more than the offer's whole life, or it could send what the other side's close drops."""
    partings = Partings()
    partings.agreed(B, 0.0)

    assert partings.expired(2 * OFFER_S) == []
    assert partings.expired(AGREED_S) == [B]
    assert partings.expired(AGREED_S) == []


def test_data_from_one_who_should_be_silent_ends_an_agreement_but_no_offer() -> None:
    """Whoever got our agreement and sends has given up; what was sent before an offer arrived may still come."""
    partings = Partings()
    assert partings.data_from(B) is Act.NOTHING
    partings.offered(B, 0.0)
    assert partings.data_from(B) is Act.NOTHING
    partings.agreed(B, 0.0)
    assert partings.data_from(B) is Act.RELEASE
    assert B not in partings


class _Side:
    """One end in the model: may send data at any time that it has not stopped."""

    def __init__(self) -> None:
        self.partings = Partings()
        self.stopped = False
        self.inbox: list[str | Step] = []
        self.closed = False


def test_no_order_of_events_loses_data() -> None:
    """All schedules of six steps of two sides: a side closes only when it has read all that was sent to it.

    What it sent itself is read by the other side before the end is, because a link is ordered.
    """
    actions = ["offer", "data", "read"]
    for schedule in itertools.product(itertools.product((0, 1), actions), repeat=6):
        sides = _Side(), _Side()
        for index, action in schedule:
            me, other = sides[index], sides[1 - index]
            if action == "offer" and B not in me.partings:
                me.partings.offered(B, 0.0)
                me.stopped = True
                other.inbox.append(Step.OFFER)
            elif action == "data" and not me.stopped:
                other.inbox.append("data")
            elif action == "read" and me.inbox:
                _read(me, other)
            if me.closed:
                assert "data" not in me.inbox
                break


def _read(me: _Side, other: _Side) -> None:
    item = me.inbox.pop(0)
    act = me.partings.data_from(B) if isinstance(item, str) else me.partings.heard(B, item)
    if act is Act.ASK:
        me.partings.agreed(B, 0.0)
        me.stopped = True
        other.inbox.append(Step.AGREE)
    elif act is Act.CLOSE:
        me.closed = True
    elif act is Act.STAY:
        other.inbox.append(Step.STAY)
    elif act is Act.RELEASE:
        me.stopped = False
