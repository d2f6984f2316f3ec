"""Credit-based flow control: one flow per link and receiving agent.

Core: no I/O.  As in QUIC (RFC 9000 section 4.1), the receiver names an absolute limit in bytes, and the sender
may start a message while what it has sent in all is below it.  So a slow agent slows those who send to it, and
nobody else: the link keeps being read, keepalives and other agents' messages pass, and what waits at the
receiver is at most one window and one message for each flow.

Deviation from QUIC: a message may start below the limit and end above it, so that one larger than the window
can pass without being cut up.
"""
# core: no I/O

from __future__ import annotations

from typing import Final

from transport.errors import RemoteProtocolError

#: Every receiver lets a new flow start with this much, before it has said anything.  Small, because a peer can
#: open a flow to each of a node's agents.
INITIAL_WINDOW_BYTES: Final = 65_536


class SendWindow:
    """The sending half of a flow: what may still be sent to one agent over one link."""

    __slots__ = ("limit_bytes", "sent_bytes")

    def __init__(self) -> None:
        self.sent_bytes = 0
        self.limit_bytes = INITIAL_WINDOW_BYTES

    @property
    def is_open(self) -> bool:
        """Whether one more message may start."""
        return self.sent_bytes < self.limit_bytes

    def extend(self, limit_bytes: int) -> bool:
        """Take a limit from the receiver; one that is not news is ignored.  Returns whether it was news."""
        if limit_bytes <= self.limit_bytes:
            return False
        self.limit_bytes = limit_bytes
        return True


class ReceiveWindow:
    """The receiving half: how much of one agent's flow is waiting here, and what the sender was promised.

    Args:
        window_bytes: How far ahead of the agent the sender may be once it has been told.
    """

    __slots__ = ("consumed_bytes", "limit_bytes", "received_bytes", "tell_at_bytes", "window_bytes")

    def __init__(self, window_bytes: int) -> None:
        self.window_bytes = max(window_bytes, INITIAL_WINDOW_BYTES)
        self.limit_bytes = INITIAL_WINDOW_BYTES
        self.received_bytes = 0
        self.consumed_bytes = 0
        self.tell_at_bytes = self._next_tell()

    def _next_tell(self) -> int:
        return self.limit_bytes - self.window_bytes + self.window_bytes // 4

    @property
    def waiting_bytes(self) -> int:
        """What has arrived and was not taken yet."""
        return self.received_bytes - self.consumed_bytes

    def receive(self, size_bytes: int) -> None:
        """Count an arriving message.

        Raises:
            RemoteProtocolError: The sender started it beyond its limit.
        """
        if self.received_bytes >= self.limit_bytes:
            raise RemoteProtocolError("peer sent beyond the credit it was given")
        self.received_bytes += size_bytes

    def consume(self, size_bytes: int) -> bool:
        """Count a message the agent has taken.  Returns whether the sender should be told a new limit.

        It is told when a quarter of the window is free again: seldom enough to cost nothing, early enough that a
        steady sender never stops.
        """
        self.consumed_bytes += size_bytes
        return self.consumed_bytes >= self.tell_at_bytes

    def grant(self) -> int:
        """Promise a full window ahead of what was consumed, and return the new limit."""
        self.limit_bytes = max(self.limit_bytes, self.consumed_bytes + self.window_bytes)
        self.tell_at_bytes = self._next_tell()
        return self.limit_bytes
