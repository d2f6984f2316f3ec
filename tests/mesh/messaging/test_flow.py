"""Credit: a sender that honours its window is never refused, and never stops for good."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.messaging.flow import INITIAL_WINDOW_BYTES, ReceiveWindow, SendWindow
from transport.errors import RemoteProtocolError

SIZES = st.integers(64, 4_096) | st.integers(1, 3 * INITIAL_WINDOW_BYTES)


def test_the_first_messages_need_no_permission() -> None:
    """Both halves begin with the initial window."""
    sender, receiver = SendWindow(), ReceiveWindow(1 << 20)

    assert sender.is_open
    assert sender.limit_bytes == receiver.limit_bytes == INITIAL_WINDOW_BYTES


def test_a_message_may_end_beyond_the_limit_but_not_start_there() -> None:
    """One message larger than the window passes; the next is refused."""
    receiver = ReceiveWindow(0)
    receiver.receive(10 * INITIAL_WINDOW_BYTES)

    assert receiver.waiting_bytes == 10 * INITIAL_WINDOW_BYTES
    with pytest.raises(RemoteProtocolError, match="credit"):
        receiver.receive(1)


def test_old_limits_are_no_news() -> None:
    """A limit that is not higher than the known one changes nothing."""
    sender = SendWindow()

    assert not sender.extend(INITIAL_WINDOW_BYTES)
    assert not sender.extend(0)
    assert sender.extend(INITIAL_WINDOW_BYTES + 1)
    assert sender.limit_bytes == INITIAL_WINDOW_BYTES + 1


def test_a_limit_never_shrinks() -> None:
    """A grant right at the start of a flow does not take back what every flow starts with."""
    receiver = ReceiveWindow(INITIAL_WINDOW_BYTES)

    assert receiver.grant() == INITIAL_WINDOW_BYTES
    assert receiver.grant() == INITIAL_WINDOW_BYTES


def test_the_sender_is_told_seldom() -> None:
    """For a steady flow of small messages, one grant serves a quarter of the window."""
    receiver = ReceiveWindow(1 << 20)
    grants = 0
    for _ in range(40_000):
        receiver.receive(100)
        if receiver.consume(100):
            receiver.grant()
            grants += 1

    assert grants <= 40_000 * 100 / (1 << 18) + 2


@given(st.lists(SIZES, min_size=1, max_size=200), st.integers(0, 1 << 20))
def test_all_credit_comes_back(sizes: list[int], window_bytes: int) -> None:
    """Whatever the sizes, a sender that waits for credit gets everything through, and then has room again."""
    sender, receiver = SendWindow(), ReceiveWindow(window_bytes)
    for size in sizes:
        assert sender.is_open, "the receiver has taken everything and the sender is still stopped"
        sender.sent_bytes += size
        receiver.receive(size)
        if receiver.consume(size):
            sender.extend(receiver.grant())

    assert receiver.waiting_bytes == 0
    assert sender.sent_bytes == receiver.consumed_bytes == sum(sizes)
    assert sender.limit_bytes == receiver.limit_bytes


class Flow(RuleBasedStateMachine):
    """A sender, a receiver, and messages and limits under way between them."""

    def __init__(self) -> None:
        super().__init__()
        self.sender = SendWindow()
        self.receiver = ReceiveWindow(150_000)
        self.travelling: deque[int] = deque()
        self.waiting: deque[int] = deque()
        self.limits: deque[int] = deque()
        self.owed = False
        self.largest = 0

    @precondition(lambda self: self.sender.is_open)
    @rule(size=SIZES)
    def send(self, size: int) -> None:
        self.sender.sent_bytes += size
        self.travelling.append(size)
        self.largest = max(self.largest, size)

    @precondition(lambda self: self.travelling)
    @rule()
    def arrive(self) -> None:
        size = self.travelling.popleft()
        self.receiver.receive(size)  # never refused
        self.waiting.append(size)

    @precondition(lambda self: self.waiting)
    @rule()
    def take(self) -> None:
        if self.receiver.consume(self.waiting.popleft()):
            self.owed = True

    @precondition(lambda self: self.owed)
    @rule()
    def tell(self) -> None:
        self.owed = False
        self.limits.append(self.receiver.grant())

    @precondition(lambda self: self.limits)
    @rule()
    def learn(self) -> None:
        assert self.sender.extend(self.limits.popleft())

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.sender.sent_bytes - sum(self.travelling) == self.receiver.received_bytes
        assert self.receiver.waiting_bytes == sum(self.waiting)

    @invariant()
    def what_waits_is_bounded(self) -> None:
        assert self.receiver.waiting_bytes <= max(self.receiver.window_bytes, INITIAL_WINDOW_BYTES) + self.largest

    @invariant()
    def the_sender_is_never_ahead_of_what_it_was_told(self) -> None:
        assert self.sender.limit_bytes <= self.receiver.limit_bytes

    @invariant()
    def never_a_deadlock(self) -> None:
        """When nothing is under way in either direction, the sender may send."""
        if not (self.travelling or self.waiting or self.limits or self.owed):
            assert self.sender.is_open


TestFlow = Flow.TestCase
