"""What a node has taken of others' durable messages: which it has handled, and which it hands to an agent next.

Core: no I/O.  For each stream (sending node, sending agent, receiving agent, priority) there is a *mark*: the number
up to which the agent has handled its messages.  Messages arrive in order and are handled in order, so one number a
stream tells every duplicate.  Marks are written to disk behind the handlers, many in one transaction, and only what is
written is answered for.  So after a crash of this node the sender sends again exactly what has no written mark:
messages that no handler saw, and at most ``ahead_max`` of each stream that a handler had finished a moment before.

A mark is kept for as long as its sender may repeat what it covers, that is, until the latest deadline among those
messages and an hour more for clocks that differ.
"""
# core: no I/O

from __future__ import annotations

import enum
from collections import Counter, deque
from typing import Final, Generic, NamedTuple, TypeVar

from transport.errors import RemoteProtocolError
from transport.wire import pack, unpack_body

# A member can invent sending agents; beyond this many it harms itself only.
STREAMS_PER_ORIGIN_MAX: Final = 10_000

#: How much longer than the latest deadline a mark is kept.
CLOCKS_DIFFER_MS: Final = 3_600_000

T = TypeVar("T")


class InboxKey(NamedTuple):
    """A stream as its receiver knows it."""

    origin: str
    from_agent: int
    to_agent: int
    priority: int


class Mark(NamedTuple):
    """How far a stream has been handled: what is on disk about it.

    ``messages`` were handled since the mark before.
    """

    key: InboxKey
    sequence: int
    keep_until_ms: int
    messages: int = 0


def encode_key(key: InboxKey) -> bytes:
    """A mark's key on disk."""
    return pack(list(key))


def encode_mark(mark: Mark) -> bytes:
    """A mark's body on disk."""
    return pack([mark.sequence, mark.keep_until_ms])


def decode_mark(key: bytes, body: bytes) -> Mark:
    """Read a mark.

    Raises:
        RemoteProtocolError: It is none: a later version's, perhaps.
    """
    names, values = unpack_body(key), unpack_body(body)
    if type(names) is not list or len(names) != 4 or type(values) is not list or len(values) != 2:
        raise RemoteProtocolError("mark: not four and two fields")
    return Mark(InboxKey(*names), *values)


class Verdict(enum.Enum):
    """What became of a message that arrived."""

    HAND = "hand"
    """Its agent should have it now."""
    WAITS = "waits"
    """Others of its stream come first."""
    HANDLED = "handled"
    """It was handled before, and that is on disk: say so again."""
    REPEATED = "repeated"
    """It is here already; the answer will follow."""
    GAP = "gap"
    """The one before it was given back, and so is this one: the sender begins again with that."""
    TOO_MANY = "too many"
    """Its sender has more streams than anybody needs."""


class _Stream(Generic[T]):
    __slots__ = ("accepted", "current", "handled", "keep_until_ms", "recorded", "unrecorded", "waiting")

    def __init__(self, sequence: int = 0, keep_until_ms: int = 0) -> None:
        self.recorded = sequence
        self.handled = sequence
        self.accepted = sequence
        # The one that its agent has; 0: none.
        self.current = 0
        # Handled and not yet on disk.
        self.unrecorded = 0
        self.keep_until_ms = keep_until_ms
        # Bounded by the credit that the agent's flow gives.
        self.waiting: deque[tuple[int, T]] = deque()

    @property
    def is_idle(self) -> bool:
        return not (self.current or self.waiting or self.unrecorded)


class Inbox(Generic[T]):
    """All streams that reach a node.  ``T`` is whatever the shell keeps with a message until it is handed over.

    Args:
        ahead_max: How many messages of a stream may be handled before the mark of the first is on disk.
    """

    def __init__(self, ahead_max: int) -> None:
        self._ahead_max = ahead_max
        self._streams: dict[InboxKey, _Stream[T]] = {}
        self._origins: Counter[str] = Counter()
        self._dirty: dict[InboxKey, None] = {}

    def restore(self, mark: Mark) -> None:
        """Take a mark from disk."""
        self._streams[mark.key] = _Stream(mark.sequence, mark.keep_until_ms)
        self._origins[mark.key.origin] += 1

    def __len__(self) -> int:
        return len(self._streams)

    # --- messages -----------------------------------------------------------------------------------------------

    def receive(self, key: InboxKey, sequence: int, previous: int, item: T) -> Verdict:
        """A message arrived whose sender sent ``previous`` of the same stream before it (0: none that matters)."""
        stream = self._streams.get(key)
        if stream is None:
            if self._origins[key.origin] >= STREAMS_PER_ORIGIN_MAX:
                return Verdict.TOO_MANY
            self._origins[key.origin] += 1
            stream = self._streams[key] = _Stream()
        if sequence <= stream.recorded:
            return Verdict.HANDLED
        if sequence <= stream.accepted:
            return Verdict.REPEATED
        if previous > stream.accepted:
            return Verdict.GAP
        stream.accepted = sequence
        if stream.current or stream.waiting or stream.unrecorded >= self._ahead_max:
            stream.waiting.append((sequence, item))
            return Verdict.WAITS
        stream.current = sequence
        return Verdict.HAND

    def finish(self, key: InboxKey, sequence: int, keep_until_ms: int) -> T | None:
        """The agent has handled it; returns the stream's next for the agent."""
        stream = self._streams.get(key)
        if stream is None or stream.current != sequence:
            return None  # given back meanwhile: its handler outlived its agent
        stream.handled = sequence
        stream.unrecorded += 1
        stream.keep_until_ms = max(stream.keep_until_ms, keep_until_ms)
        self._dirty[key] = None
        return self._go_on(stream)

    def skip(self, key: InboxKey, sequence: int) -> T | None:
        """It will not be handled, because its time is over; returns the stream's next for the agent.

        No mark covers it: its sender knows by itself that it expired, and may see that otherwise and send it again.
        """
        stream = self._streams.get(key)
        if stream is None or stream.current != sequence:
            return None
        return self._go_on(stream)

    def _go_on(self, stream: _Stream[T]) -> T | None:
        stream.current = 0
        if not stream.waiting or stream.unrecorded >= self._ahead_max:
            return None
        stream.current, item = stream.waiting.popleft()
        return item

    def give_back(self, key: InboxKey, sequence: int) -> list[T] | None:
        """The agent could not handle that one, or is gone: it and all behind it are the sender's again.

        Returns:
            What waited behind it; ``None`` if the agent did not have it any more.
        """
        stream = self._streams.get(key)
        if stream is None or stream.current != sequence:
            return None
        stream.current = 0
        return self._drop_waiting(key, stream)

    def lose_link(self, origin: str) -> list[T]:
        """The sender will send all of it again that was not answered; returns what waited."""
        lost: list[T] = []
        for key, stream in list(self._streams.items()):
            if key.origin == origin:
                lost += self._drop_waiting(key, stream)
        return lost

    def _drop_waiting(self, key: InboxKey, stream: _Stream[T]) -> list[T]:
        items = [item for _, item in stream.waiting]
        stream.waiting.clear()
        stream.accepted = max(stream.current, stream.handled)
        if stream.is_idle and not stream.recorded:
            self._forget(key)
        return items

    def recorded_of(self, key: InboxKey) -> int:
        """Up to which number the stream's messages are handled for ever; 0: none."""
        stream = self._streams.get(key)
        return stream.recorded if stream is not None else 0

    def is_settled(self, key: InboxKey) -> bool:
        """Whether everything that was handled of the stream is on disk."""
        stream = self._streams.get(key)
        return stream is None or not stream.unrecorded

    # --- marks --------------------------------------------------------------------------------------------------

    def take_marks(self) -> list[Mark]:
        """The marks to write now; tell :meth:`recorded` or :meth:`not_recorded` afterwards."""
        dirty, self._dirty = self._dirty, {}
        streams = [(key, self._streams[key]) for key in dirty]
        return [Mark(key, stream.handled, stream.keep_until_ms, stream.unrecorded) for key, stream in streams]

    def recorded(self, marks: list[Mark]) -> list[T]:
        """They are on disk.

        Returns:
            What agents should have now: messages that waited for it.
        """
        items: list[T] = []
        for mark in marks:
            stream = self._streams[mark.key]
            stream.recorded = mark.sequence
            stream.unrecorded -= mark.messages
            if not stream.current and (item := self._go_on(stream)) is not None:
                items.append(item)
        return items

    def not_recorded(self, marks: list[Mark]) -> None:
        """They could not be written; the next :meth:`take_marks` has them again."""
        for mark in marks:
            self._dirty[mark.key] = None

    def prune(self, now_ms: int) -> list[InboxKey]:
        """Forget marks that no sender can need any more; returns whose record can go."""
        old = [
            key
            for key, stream in self._streams.items()
            if stream.is_idle and stream.keep_until_ms + CLOCKS_DIFFER_MS < now_ms
        ]
        for key in old:
            self._forget(key)
        return old

    def _forget(self, key: InboxKey) -> None:
        del self._streams[key]
        self._origins[key.origin] -= 1
        if not self._origins[key.origin]:
            del self._origins[key.origin]
