"""Order of delivery: each writer's updates in their order, and none before what it builds on.

Networks reorder, repeat and lose; pycrdt 0.14 loses data when one writer's updates come in another order than they
were made (y-crdt issue 632).  So what comes too early is *held back*: an update is ready when it is the next of its
writer (FIFO) and everything its writer had seen is known (causal).  This is the delivery rule of Birman, Schiper and
Stephenson (1991), with the dependencies told only as far as they changed since the writer's update before, which FIFO
order makes enough.

Everything is bounded, per writer and in all, in number and bytes.  What finds no room is dropped and told
(:attr:`Verdict.OVERFLOW`): anti-entropy brings it again.  An update that is ready needs no room, so a full queue can
always be emptied in order.

Use: :meth:`HoldBack.offer` each update; if it is ``READY``, apply it and :meth:`~HoldBack.settle` its dot, which
returns what has become ready by that, to be applied and settled in turn.
"""

# core: no I/O

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from state.clocks.vectors import Dot, Span, VersionVector, Writer

T = TypeVar("T")


class Verdict(enum.Enum):
    """What became of an offered update."""

    READY = "ready"
    """Apply it now, then settle it."""
    HELD = "held"
    """Kept until what is missing has come."""
    DUPLICATE = "duplicate"
    """Known, or held already."""
    OVERFLOW = "overflow"
    """Dropped for want of room: have it sent again."""


@dataclass(frozen=True, slots=True)
class HoldBackLimits:
    """How much is held: enough for what a link can have under way in a second, little enough for any node.

    Attributes:
        writer_count_max: Updates of one writer.
        writer_bytes_max: Their bytes.
        count_max: Updates in all.
        size_bytes_max: Their bytes.
    """

    writer_count_max: int = 4_096
    writer_bytes_max: int = 4 << 20
    count_max: int = 32_768
    size_bytes_max: int = 16 << 20


class Parcel(NamedTuple, Generic[T]):
    """One update, as far as its order is concerned."""

    dot: Dot
    needs: Sequence[tuple[Writer, int]]
    """How far other writers must be known."""
    size_bytes: int
    content: T


class _Queue(Generic[T]):
    """What is held of one writer, by number."""

    __slots__ = ("parcels", "size_bytes")

    def __init__(self) -> None:
        self.parcels: dict[int, Parcel[T]] = {}
        self.size_bytes = 0


class HoldBack(Generic[T]):
    """The held updates of all writers.

    Args:
        known: What has been applied already.
        limits: How much to hold.
    """

    def __init__(self, known: VersionVector | None = None, limits: HoldBackLimits | None = None) -> None:
        self._known: dict[Writer, int] = dict(known or ())
        self._limits = limits or HoldBackLimits()
        self._queues: dict[Writer, _Queue[T]] = {}
        # Writers whose next update is held and waits for this writer, by name to keep the order.
        self._waiting: dict[Writer, dict[Writer, None]] = {}
        self._count = 0
        self._size_bytes = 0
        self.dropped = 0
        """Updates that found no room."""

    def __len__(self) -> int:
        return self._count

    @property
    def size_bytes(self) -> int:
        """The bytes that are held."""
        return self._size_bytes

    @property
    def known(self) -> VersionVector:
        """What has been settled."""
        return VersionVector(self._known)

    @property
    def writers(self) -> int:
        """Of how many writers something is settled."""
        return len(self._known)

    def counter(self, writer: Writer) -> int:
        """How far one writer is settled."""
        return self._known.get(writer, 0)

    def holds(self, dot: Dot) -> bool:
        """Whether that update is held."""
        queue = self._queues.get(dot.writer)
        return queue is not None and dot.counter in queue.parcels

    def offer(self, parcel: Parcel[T]) -> Verdict:
        """Take in one update."""
        writer, counter = parcel.dot
        known = self._known.get(writer, 0)
        if counter <= known:
            return Verdict.DUPLICATE
        queue = self._queues.get(writer)
        if queue is not None and counter in queue.parcels:
            return Verdict.DUPLICATE
        if counter == known + 1 and self._lacks(parcel) is None:
            return Verdict.READY
        limits = self._limits
        if (
            self._count >= limits.count_max
            or self._size_bytes + parcel.size_bytes > limits.size_bytes_max
            or (
                queue is not None
                and (
                    len(queue.parcels) >= limits.writer_count_max
                    or queue.size_bytes + parcel.size_bytes > limits.writer_bytes_max
                )
            )
        ):
            self.dropped += 1
            return Verdict.OVERFLOW
        if queue is None:
            queue = self._queues[writer] = _Queue()
        queue.parcels[counter] = parcel
        queue.size_bytes += parcel.size_bytes
        self._count += 1
        self._size_bytes += parcel.size_bytes
        self._next_of(writer)
        return Verdict.HELD

    def settle(self, dot: Dot) -> list[Parcel[T]]:
        """Take note that an update was applied, and return what is ready now, which is no longer held.

        Raises:
            ValueError: It is not the next one of its writer.
        """
        writer, counter = dot
        if counter != self._known.get(writer, 0) + 1:
            raise ValueError(f"{counter} is not the next of {writer}")
        self._known[writer] = counter
        if not self._count:
            return []
        candidates = [writer, *self._waiting.pop(writer, ())]
        return [parcel for candidate in candidates if (parcel := self._next_of(candidate)) is not None]

    def forget(self, writer: Writer) -> int:
        """Drop what is held of a writer whose updates can no longer be applied; returns how many there were."""
        queue = self._queues.pop(writer, None)
        if queue is None:
            return 0
        self._count -= len(queue.parcels)
        self._size_bytes -= queue.size_bytes
        return len(queue.parcels)

    def missing(self) -> list[Span]:
        """What keeps the held updates from being applied, as far as it is not held itself; by writer."""
        wanted: dict[Writer, int] = {}
        for writer, queue in self._queues.items():
            wanted[writer] = max(wanted.get(writer, 0), *queue.parcels)
            for parcel in queue.parcels.values():
                for other, counter in parcel.needs:
                    wanted[other] = max(wanted.get(other, 0), counter)
        return [span for writer, upto in sorted(wanted.items()) for span in self._gaps(writer, upto)]

    def _gaps(self, writer: Writer, upto: int) -> list[Span]:
        queue = self._queues.get(writer)
        gaps = []
        first = self._known.get(writer, 0) + 1
        for counter in [*sorted(queue.parcels if queue is not None else ()), upto + 1]:
            if first < counter <= upto + 1:
                gaps.append(Span(writer, first, counter - 1))
            first = counter + 1
        return gaps

    def _lacks(self, parcel: Parcel[T]) -> Writer | None:
        """A writer that is not yet known far enough for this update."""
        for writer, counter in parcel.needs:
            if counter > self._known.get(writer, 0):
                return writer
        return None

    def _next_of(self, writer: Writer) -> Parcel[T] | None:
        """Take the writer's next update out of its queue if it is ready; otherwise have it wait for what it lacks."""
        queue = self._queues.get(writer)
        if queue is None:
            return None
        counter = self._known.get(writer, 0) + 1
        parcel = queue.parcels.get(counter)
        if parcel is None:
            return None
        lacks = self._lacks(parcel)
        if lacks is not None:
            self._waiting.setdefault(lacks, {})[writer] = None
            return None
        del queue.parcels[counter]
        queue.size_bytes -= parcel.size_bytes
        self._count -= 1
        self._size_bytes -= parcel.size_bytes
        if not queue.parcels:
            del self._queues[writer]
        return parcel
