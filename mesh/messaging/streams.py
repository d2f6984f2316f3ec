"""A reply in parts: the two halves of a stream, and the credit between them.

Core: no I/O.  A handler answers a request with any number of *parts*; they travel as responses to that request, in its
lane, so they arrive in order and none is missing as long as the link lives.  A stream lives on one link and ends with
it: nothing is ever sent again, so nothing has to be told apart.

Flow control is by credit, as in HTTP/2 and QUIC (RFC 9000 section 4.1): the receiver names absolute limits, and a part
may start while the parts *and* the bytes sent so far are below theirs.  Bytes bound memory; parts bound what very many
tiny ones cost.  Both sides know the first limits without a word, so a short reply needs no round trip, and new ones are
said when a quarter of a window has been taken by whoever reads.  So a slow reader stops the handler of its own stream,
in the middle of it, and nobody else.

Deviation: as in :mod:`.flow` a part may start below the limit and end above it, so that one that is larger than the
window passes.  What waits at the receiver is at most one window and one part; at the sender nothing waits, since a
handler is not asked for a part that could not be sent.
"""
# core: no I/O

from __future__ import annotations

from collections import deque
from typing import Final

from transport.errors import RemoteProtocolError

from .notices import Credit

#: What a node that can answer with streams says in its hello.
FEATURE: Final = "streams"

#: What a sender may send of every stream before it has heard anything.
INITIAL_PARTS: Final = 16
INITIAL_BYTES: Final = 65_536

#: How far a stream may run ahead of its reader.
WINDOW_PARTS: Final = 256
WINDOW_BYTES: Final = 1 << 20

#: What a part weighs beside its content: its share of headers and of bookkeeping.
PART_OVERHEAD_BYTES: Final = 64


class SendingHalf:
    """What the side that answers may still send."""

    __slots__ = ("bytes_limit", "parts_limit", "sent_bytes", "sent_parts")

    def __init__(self) -> None:
        self.sent_parts = self.sent_bytes = 0
        self.parts_limit = INITIAL_PARTS
        self.bytes_limit = INITIAL_BYTES

    @property
    def may_send(self) -> bool:
        """Whether one more part may start."""
        return self.sent_parts < self.parts_limit and self.sent_bytes < self.bytes_limit

    def sent(self, part: bytes) -> None:
        """Count a part on its way."""
        self.sent_parts += 1
        self.sent_bytes += len(part) + PART_OVERHEAD_BYTES

    def extend(self, credit: Credit) -> bool:
        """Take limits from the reader's side; they never shrink.  Returns whether a part may start now."""
        self.parts_limit = max(self.parts_limit, credit.parts)
        self.bytes_limit = max(self.bytes_limit, credit.size_bytes)
        return self.may_send


class _Count:
    """Parts, or bytes: what has come, what was taken, and what was promised."""

    __slots__ = ("limit", "received", "taken", "tell_at", "window")

    def __init__(self, initial: int, window: int) -> None:
        self.window = max(window, initial)
        self.limit = initial
        self.received = 0
        self.taken = 0
        self.tell_at = self._next_tell()

    def _next_tell(self) -> int:
        # Not before anything has come: the query may still wait for its link, and credit would overtake it.
        return max(1, self.limit - self.window + self.window // 4)

    def grant(self) -> int:
        """Promise a full window ahead of what was taken."""
        self.limit = max(self.limit, self.taken + self.window)
        self.tell_at = self._next_tell()
        return self.limit


class ReceivingHalf:
    """What has come of a stream, until its reader takes it.

    Args:
        parts_window: How many parts it may be ahead of its reader.
        bytes_window: How many bytes.
    """

    __slots__ = ("_bytes", "_parts", "_waiting", "error", "has_ended")

    def __init__(self, parts_window: int = WINDOW_PARTS, bytes_window: int = WINDOW_BYTES) -> None:
        # Bounded by the credit that was given.
        self._waiting: deque[bytes] = deque()
        self._parts = _Count(INITIAL_PARTS, parts_window)
        self._bytes = _Count(INITIAL_BYTES, bytes_window)
        # Whether all has come that ever will, and what the reader gets then instead of a plain end.
        self.has_ended = False
        self.error: Exception | None = None

    @property
    def waiting_bytes(self) -> int:
        """What has come and was not taken yet."""
        return self._bytes.received - self._bytes.taken

    def receive(self, part: bytes) -> None:
        """A part has come.

        Raises:
            RemoteProtocolError: The stream was over, or it began beyond its credit.
        """
        if self.has_ended:
            raise RemoteProtocolError("peer sent a part of a stream behind its end")
        if self._parts.received >= self._parts.limit or self._bytes.received >= self._bytes.limit:
            raise RemoteProtocolError("peer sent parts of a stream beyond the credit it was given")
        self._parts.received += 1
        self._bytes.received += len(part) + PART_OVERHEAD_BYTES
        self._waiting.append(part)

    def end(self, error: Exception | None = None) -> None:
        """Nothing more will come; the first reason counts.  Parts that have come before are still there to take."""
        if not self.has_ended:
            self.has_ended = True
            self.error = error

    def take(self) -> bytes | None:
        """The next part for the reader; ``None``: none has come, see :attr:`has_ended`."""
        if not self._waiting:
            return None
        part = self._waiting.popleft()
        self._parts.taken += 1
        self._bytes.taken += len(part) + PART_OVERHEAD_BYTES
        return part

    def grant(self, sequence: int) -> Credit | None:
        """The limits to tell now, for the query of that number; ``None``: not yet, or no more."""
        parts, size = self._parts, self._bytes
        if self.has_ended or (parts.taken < parts.tell_at and size.taken < size.tell_at):
            return None
        return Credit(sequence, parts.grant(), size.grant())
