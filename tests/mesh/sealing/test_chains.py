"""Chains: epochs, counters, the replay window; nothing passes that was not sealed for exactly this place."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import SealRefused
from mesh.sealing.chains import AHEAD_MAX, WINDOW, Limits, OpeningChain, ReplayWindow, SealingChain, expand
from mesh.sealing.codec import HEADER, HEADER_BYTES, read_header
from mesh.sealing.reasons import Reason

SECRET = bytes(range(32))
SESSION = b"session1"
CONTEXT = b"a for b"
SMALL = Limits(epoch_bodies=4, epoch_bytes=1 << 20, epoch_s=10.0, grace_s=5.0, epochs=1_000)


class Ends:
    """Both ends of a chain, and a clock."""

    def __init__(self, limits: Limits = SMALL, *, context: bytes = CONTEXT) -> None:
        self.now = 0.0
        self.sealing = SealingChain(SECRET, SESSION, CONTEXT, self.now, limits)
        self.opening = OpeningChain(SECRET, context, limits)

    def seal(self, body: bytes = b"body", stream: int = 3) -> bytes:
        return self.sealing.seal(32, stream, body, self.now)

    def open(self, sealed: bytes) -> bytes:
        return self.opening.open(read_header(sealed), sealed, self.now)

    def refusal(self, sealed: bytes) -> str:
        with pytest.raises(SealRefused) as refusal:
            self.open(sealed)
        return refusal.value.reason


def test_bodies_open_in_order_across_epochs() -> None:
    """Whatever is sealed opens, through many epochs, and each epoch has a key of its own."""
    ends = Ends()
    for number in range(50):
        body = b"%d" % number
        sealed = ends.seal(body)
        assert body not in sealed or len(body) < 3
        assert ends.open(sealed) == body
    assert ends.sealing.epoch == ends.opening.epoch == 12


def test_a_header_says_where_the_body_belongs() -> None:
    """Kind, stream, session, epoch and counter are readable, and counters are per stream and epoch."""
    ends = Ends()
    headers = [read_header(ends.seal(stream=stream)) for stream in (0, 1, 1, 0, 1)]

    assert [(h.kind, h.stream, h.session, h.epoch, h.counter) for h in headers] == [
        (32, 0, SESSION, 0, 0),
        (32, 1, SESSION, 0, 0),
        (32, 1, SESSION, 0, 1),
        (32, 0, SESSION, 0, 1),
        (32, 1, SESSION, 1, 0),
    ]


def test_an_epoch_ends_by_count_bytes_and_time() -> None:
    """The key changes after so many bodies, so many bytes, or so long, whatever comes first."""
    for limits in (
        dataclasses.replace(SMALL, epoch_bodies=2, epoch_s=1e9),
        dataclasses.replace(SMALL, epoch_bodies=1 << 20, epoch_bytes=8, epoch_s=1e9),
    ):
        ends = Ends(limits)
        assert [read_header(ends.seal()).epoch for _ in range(5)] == [0, 0, 1, 1, 2]
    ends = Ends(dataclasses.replace(SMALL, epoch_bodies=1 << 20))
    epochs = []
    for now in (0.0, 9.9, 10.0, 19.9, 20.0):
        ends.now = now
        epochs.append(read_header(ends.seal()).epoch)
    assert epochs == [0, 0, 1, 1, 2]


def test_equal_bodies_look_different() -> None:
    """No two of the same body are sealed alike: not in one stream, not in two, not in two epochs."""
    ends = Ends()
    sealed = [ends.seal(b"same", stream=number % 2)[HEADER_BYTES:] for number in range(16)]

    assert len(set(sealed)) == 16


@settings(max_examples=30)
@given(st.binary(min_size=1, max_size=60), st.integers(1, 255))
def test_each_flipped_byte_is_noticed(body: bytes, flip: int) -> None:
    """Not one byte of header, ciphertext or tag can be changed."""
    ends = Ends()
    sealed = ends.seal(body)
    for position in range(len(sealed)):
        forged = bytearray(sealed)
        forged[position] ^= flip
        with pytest.raises(SealRefused):
            ends.open(bytes(forged))
    assert ends.open(sealed) == body


def test_truncated_and_extended_bodies_are_refused() -> None:
    """A body opens in its full length and no other."""
    ends = Ends()
    sealed = ends.seal(b"a body of some length")
    for length in range(len(sealed)):
        with pytest.raises(SealRefused):
            ends.open(sealed[:length])
    for more in (b"\0", sealed):
        assert ends.refusal(sealed + more) == Reason.FORGED
    assert ends.open(sealed) == b"a body of some length"


def test_a_body_opens_once() -> None:
    """Replays are refused: at once, later in the epoch, and from the epoch before."""
    ends = Ends()
    bodies = [ends.seal() for _ in range(6)]
    for sealed in bodies:
        ends.open(sealed)
    assert [ends.refusal(sealed) for sealed in bodies] == [Reason.REPLAYED] * 6


def test_bodies_of_one_stream_may_be_reordered_within_the_window() -> None:
    """Whatever is at most a window behind the newest opens once; what is further behind is refused."""
    ends = Ends(dataclasses.replace(SMALL, epoch_bodies=1 << 20))
    bodies = [ends.seal() for _ in range(WINDOW + 2)]
    assert ends.open(bodies[-1])
    assert ends.refusal(bodies[0]) == Reason.REPLAYED
    assert ends.refusal(bodies[1]) == Reason.REPLAYED
    assert ends.open(bodies[2])
    assert ends.open(bodies[500])
    assert ends.refusal(bodies[500]) == Reason.REPLAYED


def test_streams_do_not_push_each_other_out_of_the_window() -> None:
    """A body of a slow lane opens however many of a fast lane overtook it."""
    ends = Ends(dataclasses.replace(SMALL, epoch_bodies=1 << 20))
    slow = ends.seal(b"slow", stream=4)
    for _ in range(WINDOW * 2):
        ends.open(ends.seal(b"fast", stream=1))
    assert ends.open(slow) == b"slow"


def test_a_body_cannot_be_moved() -> None:
    """Neither another kind, stream, session, epoch nor counter can be written over it, even if such a place is free."""
    ends = Ends()
    header, rest = read_header(sealed := ends.seal()), sealed[HEADER_BYTES:]
    for other in (
        header._replace(kind=33),
        header._replace(stream=0),
        header._replace(session=b"session2"),
        header._replace(epoch=1),
        header._replace(counter=7),
        header._replace(counter=2**64 - 1),
    ):
        assert ends.refusal(HEADER.pack(*other) + rest) == Reason.FORGED


def test_a_body_for_somebody_else_is_refused() -> None:
    """The same key does not open what was sealed between others."""
    ends = Ends(context=b"a for c")

    assert ends.refusal(ends.seal()) == Reason.FORGED


def test_the_key_before_is_kept_for_a_while() -> None:
    """Bodies under way at the change of epochs open; when the grace is over their key is erased."""
    ends = Ends()
    late, later = ends.seal(), ends.seal()
    ends.sealing.advance(ends.now)
    assert ends.open(ends.seal(b"new")) == b"new"
    ends.now = 4.9
    assert ends.open(late) == b"body"
    ends.now = 5.0
    assert ends.refusal(later) == Reason.OLD_EPOCH
    assert ends.opening._previous == []


def test_of_two_epochs_back_nothing_opens() -> None:
    """The second change of epochs erases the key before the last, within the grace as well."""
    ends = Ends()
    old = ends.seal()
    for _ in range(2):
        ends.sealing.advance(ends.now)
        ends.open(ends.seal())
    assert ends.refusal(old) == Reason.OLD_EPOCH


def test_an_erased_epoch_cannot_be_made_again() -> None:
    """Nothing that either end still holds is the secret or the key of an epoch that is over."""
    ends = Ends()
    first = SECRET
    ends.open(ends.seal())
    ends.sealing.advance(ends.now)
    ends.open(ends.seal())
    ends.opening.erase_old(100.0)
    held = {ends.sealing._epoch.next_secret, ends.opening._current.next_secret}

    assert held == {expand(expand(first, b"next epoch"), b"next epoch")}


def test_lost_epochs_are_skipped() -> None:
    """When every body of some epochs is lost the next one opens, up to a limit."""
    ends = Ends()
    for _ in range(AHEAD_MAX):
        ends.sealing.advance(ends.now)
    assert ends.open(ends.seal()) == b"body"
    assert ends.opening.epoch == AHEAD_MAX
    for _ in range(AHEAD_MAX + 1):
        ends.sealing.advance(ends.now)
    assert ends.refusal(ends.seal()) == Reason.OLD_EPOCH


def test_a_forged_epoch_changes_nothing() -> None:
    """Only a body that opens moves the receiver to another epoch."""
    ends = Ends()
    sealed = ends.seal()
    forged = HEADER.pack(*read_header(sealed)._replace(epoch=3)) + sealed[HEADER_BYTES:]
    assert ends.refusal(forged) == Reason.FORGED
    assert ends.opening.epoch == 0
    assert ends.open(sealed) == b"body"


def test_the_last_epoch_is_kept_in_reserve() -> None:
    """A chain says that it is spent in its last epoch, seals to the end of that, and cannot be driven beyond."""
    ends = Ends(dataclasses.replace(SMALL, epochs=3))
    spent = []
    for _ in range(2):
        ends.sealing.advance(0.0)
        spent.append(ends.sealing.is_spent)
    assert spent == [False, True]
    for _ in range(4):
        assert read_header(ends.seal()).epoch == 2
    with pytest.raises(SealRefused) as refusal:
        ends.seal()
    assert refusal.value.reason == Reason.EXPIRED
    with pytest.raises(AssertionError):
        ends.sealing.advance(0.0)


def test_only_a_key_that_sealed_something_becomes_due() -> None:
    """An idle end changes its key once its time is over, but not for bodies without content."""
    ends = Ends()
    ends.seal(b"")
    assert not ends.sealing.is_due(50.0)
    ends.seal(b"something")
    assert not ends.sealing.is_due(9.9)
    assert ends.sealing.is_due(10.0)
    ends.sealing.advance(10.0)
    assert not ends.sealing.is_due(50.0)


def test_who_is_let_in_later_reads_from_there_on() -> None:
    """What is handed over opens the epochs that follow and none before."""
    ends = Ends()
    before = ends.seal(b"before")
    epoch, secret = ends.sealing.hand_over(ends.now)
    guest = OpeningChain(secret, CONTEXT, SMALL, epoch)

    after = ends.seal(b"after")
    assert guest.open(read_header(after), after, 0.0) == b"after"
    with pytest.raises(SealRefused) as refusal:
        guest.open(read_header(before), before, 0.0)
    assert refusal.value.reason == Reason.OLD_EPOCH
    assert ends.open(after) == b"after"


@given(st.lists(st.integers(0, WINDOW * 3), max_size=200))
def test_the_window_is_the_obvious_one(counters: list[int]) -> None:
    """It takes what a set of all counters seen would take, but for those too far behind."""
    window, seen, highest = ReplayWindow(), set[int](), -1
    for counter in counters:
        expected = counter not in seen and counter > highest - WINDOW
        assert window.is_fresh(counter) == expected
        if expected:
            window.mark(counter)
            seen.add(counter)
            highest = max(highest, counter)


@settings(max_examples=50)
@given(st.data())
def test_any_order_and_loss_opens_what_it_may(data: st.DataObject) -> None:
    """Whatever is shuffled, lost and repeated within an epoch opens once, as what it was."""
    ends = Ends(dataclasses.replace(SMALL, epoch_bodies=1 << 20))
    sealed = [(ends.seal(b"%d" % n, stream=n % 5), b"%d" % n) for n in range(20)]
    order = data.draw(st.lists(st.sampled_from(range(20)), max_size=60))
    opened: set[int] = set()
    for number in order:
        body, content = sealed[number]
        if number in opened:
            assert ends.refusal(body) == Reason.REPLAYED
        else:
            assert ends.open(body) == content
            opened.add(number)


def test_a_chain_for_many_keeps_epochs_that_it_skipped() -> None:
    """Bodies of several epochs open in any order, each once, until their grace is over; older epochs make room."""
    sealing = SealingChain(SECRET, SESSION, CONTEXT, 0.0, SMALL)
    opening = OpeningChain(SECRET, CONTEXT, SMALL, previous_max=3)
    bodies = []
    for _ in range(5):
        bodies.append(sealing.seal(32, 0, b"body", 0.0))
        sealing.advance(0.0)

    def opens(number: int, now: float) -> bool:
        try:
            return opening.open(read_header(bodies[number]), bodies[number], now) == b"body"
        except SealRefused:
            return False

    assert [opens(number, 0.0) for number in (4, 3, 1, 0, 1)] == [True, True, True, False, False]
    assert not opens(2, SMALL.grace_s)


def test_a_chain_follows_what_the_sender_says() -> None:
    """Told of a later epoch it goes there, and opens on from it; told of one before it stays."""
    opening = OpeningChain(SECRET, CONTEXT, SMALL, previous_max=3)
    opening.follow(2, 0.0)
    opening.follow(1, 0.0)
    assert opening.epoch == 2


def test_an_epoch_is_over_by_time_and_by_count() -> None:
    """Who hands epochs to others learns beforehand that the next body would begin one."""
    chain = SealingChain(SECRET, SESSION, CONTEXT, 0.0, SMALL)
    assert [chain.is_over(now) for now in (0.0, SMALL.epoch_s)] == [False, True]
    for _ in range(SMALL.epoch_bodies):
        chain.seal(32, 0, b"body", 0.0)
    assert chain.is_over(0.0)
