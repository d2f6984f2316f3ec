"""A stream's two halves: in order, bounded, never stuck while its reader reads, and with a clear end."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.messaging.notices import Credit
from mesh.messaging.streams import (
    INITIAL_BYTES,
    INITIAL_PARTS,
    PART_OVERHEAD_BYTES,
    ReceivingHalf,
    SendingHalf,
)
from transport.errors import RemoteProtocolError


def test_the_first_parts_need_no_permission() -> None:
    """Both halves know the first limits: so many parts, or so many bytes, whichever comes first."""
    many, large = SendingHalf(), SendingHalf()
    reader = ReceivingHalf()
    for _ in range(INITIAL_PARTS):
        assert many.may_send
        many.sent(b"x")
        reader.receive(b"x")
    large.sent(bytes(INITIAL_BYTES))

    assert [many.may_send, large.may_send] == [False, False]
    with pytest.raises(RemoteProtocolError, match="beyond the credit"):
        reader.receive(b"x")


def test_a_part_may_end_beyond_the_limit_but_not_start_there() -> None:
    """One part larger than the window passes; the next is refused."""
    reader = ReceivingHalf(1, 1)
    reader.receive(bytes(10 * INITIAL_BYTES))

    assert reader.waiting_bytes == 10 * INITIAL_BYTES + PART_OVERHEAD_BYTES
    with pytest.raises(RemoteProtocolError, match="beyond the credit"):
        reader.receive(b"")


def test_limits_never_shrink() -> None:
    """Old limits that come late, or lower ones, change nothing, each by itself."""
    sender = SendingHalf()
    sender.sent(bytes(INITIAL_BYTES))

    assert not sender.extend(Credit(1, INITIAL_PARTS - 1, INITIAL_BYTES))
    assert sender.parts_limit == INITIAL_PARTS
    assert not sender.extend(Credit(1, INITIAL_PARTS * 2, 0))
    assert sender.extend(Credit(1, 0, INITIAL_BYTES * 2))
    assert (sender.parts_limit, sender.bytes_limit) == (INITIAL_PARTS * 2, INITIAL_BYTES * 2)


def test_the_end_comes_behind_the_parts() -> None:
    """With its reason, of which only the first counts."""
    reader = ReceivingHalf()
    reader.receive(b"one")
    first, second = ValueError("first"), ValueError("second")
    reader.end(first)
    reader.end(second)

    assert reader.take() == b"one"
    assert reader.take() is None
    assert reader.has_ended
    assert reader.error is first
    with pytest.raises(RemoteProtocolError, match="behind its end"):
        reader.receive(b"two")


def test_credit_is_told_when_a_quarter_of_a_window_was_taken() -> None:
    """At once after the first part, because the first limits are small; then seldom; and not after the end."""
    reader = ReceivingHalf(64, 1 << 20)
    assert reader.grant(9) is None
    told = []
    for number in range(200):
        reader.receive(b"x")
        assert reader.take() == b"x"
        if reader.grant(9) is not None:
            told.append(number)
    assert told[0] == 0
    assert len(told) < 20

    reader = ReceivingHalf()
    reader.receive(b"x")
    reader.end()
    assert reader.take() == b"x"
    assert reader.grant(9) is None


class Streams(RuleBasedStateMachine):
    """Both halves, and between them a link that loses nothing, delays everything, and may end at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.sender = SendingHalf()
        self.reader = ReceivingHalf(32, 1 << 17)
        self.there: deque[bytes | None] = deque()
        self.back: deque[Credit] = deque()
        self.sent: list[bytes] = []
        self.taken: list[bytes] = []
        self.is_finished = False
        self.is_cut = False

    @precondition(lambda self: not self.is_finished and not self.is_cut)
    @rule(size=st.integers(0, 100) | st.integers(0, 3 * INITIAL_BYTES))
    def send(self, size: int) -> None:
        """The handler yields, if it is asked to."""
        if self.sender.may_send:
            part = len(self.sent).to_bytes(4, "big") + bytes(size)
            self.sender.sent(part)
            self.sent.append(part)
            self.there.append(part)

    @precondition(lambda self: not self.is_finished and not self.is_cut)
    @rule()
    def finish(self) -> None:
        """The handler ends."""
        self.is_finished = True
        self.there.append(None)

    @rule(count=st.integers(1, 40))
    def arrive(self, count: int) -> None:
        """Something comes out of the link: what was sent within its credit is never refused."""
        for _ in range(min(count, len(self.there))):
            part = self.there.popleft()
            if part is None:
                self.reader.end()
            else:
                self.reader.receive(part)

    @rule(count=st.integers(1, 40))
    def read(self, count: int) -> None:
        """The reader takes some."""
        for _ in range(count):
            part = self.reader.take()
            if part is None:
                return
            self.taken.append(part)
            if (credit := self.reader.grant(1)) is not None and not self.is_cut:
                self.back.append(credit)

    @rule()
    def permit(self) -> None:
        """Credit comes out of the link."""
        if self.back:
            self.sender.extend(self.back.popleft())

    @precondition(lambda self: not self.is_cut)
    @rule()
    def cut(self) -> None:
        """The link ends: what was under way is lost, and the reader hears of it."""
        self.is_cut = True
        self.there.clear()
        self.back.clear()
        self.reader.end(ConnectionError("cut"))

    @invariant()
    def what_is_read_is_the_beginning_of_what_was_sent(self) -> None:
        """In order, none doubled, none missing in between."""
        assert self.taken == self.sent[: len(self.taken)]

    @invariant()
    def memory_is_bounded(self) -> None:
        """At most a window and one part, on the link and at the reader together."""
        largest = 3 * INITIAL_BYTES + 4 + PART_OVERHEAD_BYTES
        under_way = sum(len(part) + PART_OVERHEAD_BYTES for part in self.there if part is not None)
        assert under_way + self.reader.waiting_bytes <= (1 << 17) + largest

    def teardown(self) -> None:
        """When all has arrived and was read, a sender may go on; after the end all was read, or an error told."""
        while self.there or self.back or self.reader.waiting_bytes:
            self.arrive(40)
            self.read(40)
            self.permit()
        if self.is_cut:
            assert self.reader.has_ended
            assert self.taken == self.sent or isinstance(self.reader.error, ConnectionError)
        else:
            assert self.sender.may_send
            assert self.taken == self.sent
            assert self.reader.has_ended == self.is_finished
            assert self.reader.error is None


TestStreams = Streams.TestCase
