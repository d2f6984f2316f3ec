"""Version vectors: what a replica has of every writer, and which of two histories came first.

A *writer* is one process of one node, ``(node, life)``; a restart is a new writer.  That is the point: a process that
lost its memory can never give a number to two different things, because it no longer writes under the old name.  (The
life is the incarnation without its refutations, see :mod:`gossip.incarnation`: a refutation is not a restart.)  A
writer numbers what it writes 1, 2, 3 ...; one number of one writer is a *dot*.

A *version vector* says of each writer how far its numbers are known, all from 1 on (Parker et al. 1983; Mattern 1989).
Vectors form a lattice: :meth:`VersionVector.merge` is its join, :meth:`VersionVector.compare` its partial order, and
two vectors of which neither covers the other are concurrent.

Vectors are values: every operation returns a new one, so a vector may be a token in a user's hand, a key, or a field of
a message.  They grow with each writer there ever was; only an epoch that the members agreed on takes entries out
(:mod:`state.clocks.epochs`), never a bound on size, which would make ordered histories look concurrent.
"""

# core: no I/O

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from gossip.incarnation import life_of
from transport.types import NodeId

#: The largest number a writer may use: exact in JSON and in every language's double.
COUNTER_MAX: Final = 2**53 - 1


class Writer(NamedTuple):
    """One process of one node."""

    node: NodeId
    life: int

    @classmethod
    def of(cls, node: NodeId, incarnation: int) -> Writer:
        """The writer that runs under this incarnation of the node."""
        return cls(node, life_of(incarnation))

    def __str__(self) -> str:
        return f"{self.node}/{self.life:x}"


class Dot(NamedTuple):
    """One thing that one writer wrote."""

    writer: Writer
    counter: int


class Order(enum.Enum):
    """How one history stands to another."""

    EQUAL = "equal"
    BEFORE = "before"
    """The other one contains it and more."""
    AFTER = "after"
    CONCURRENT = "concurrent"
    """Each has what the other lacks."""


class Span(NamedTuple):
    """The numbers ``first`` to ``last`` of a writer, both included."""

    writer: Writer
    first: int
    last: int


class VersionVector:
    """How far each writer is known; writers that it does not name are at 0."""

    __slots__ = ("_counters",)

    def __init__(self, counters: Mapping[Writer, int] | None = None) -> None:
        """Take a copy of ``counters``.

        Raises:
            ValueError: A counter is outside 0 to :data:`COUNTER_MAX`.
        """
        self._counters: dict[Writer, int] = {}
        for writer, counter in (counters or {}).items():
            if not 0 <= counter <= COUNTER_MAX:
                raise ValueError(f"counter {counter} of {writer} is outside 0 to {COUNTER_MAX}")
            if counter:
                self._counters[writer] = counter

    @classmethod
    def _of(cls, counters: dict[Writer, int]) -> VersionVector:
        """Without copying or checking: ``counters`` came from vectors and has no zeros."""
        vector = cls.__new__(cls)
        vector._counters = counters
        return vector

    def __getitem__(self, writer: Writer) -> int:
        """The highest number known of ``writer``; 0: none."""
        return self._counters.get(writer, 0)

    def __len__(self) -> int:
        return len(self._counters)

    def __iter__(self) -> Iterator[tuple[Writer, int]]:
        """Writers and their counters, by name and life: the same order everywhere."""
        return iter(sorted(self._counters.items()))

    def __contains__(self, dot: Dot) -> bool:
        return 0 < dot.counter <= self._counters.get(dot.writer, 0)

    def __eq__(self, other: object) -> bool:
        return self._counters == other._counters if isinstance(other, VersionVector) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"VersionVector({', '.join(f'{writer}: {counter}' for writer, counter in self)})"

    def merge(self, other: VersionVector) -> VersionVector:
        """The join: what is known to who knows both."""
        if other.covers(self):
            return other
        counters = dict(self._counters)
        for writer, counter in other._counters.items():
            if counter > counters.get(writer, 0):
                counters[writer] = counter
        return self._of(counters)

    def with_dot(self, dot: Dot) -> VersionVector:
        """This vector and all of the dot's writer up to the dot.

        Raises:
            ValueError: The dot's counter is above :data:`COUNTER_MAX`.
        """
        if dot.counter > COUNTER_MAX:
            raise ValueError(f"{dot.writer} has used all its {COUNTER_MAX} numbers")
        if dot.counter <= self[dot.writer]:
            return self
        return self._of(self._counters | {dot.writer: dot.counter})

    def next(self, writer: Writer) -> Dot:
        """The number that ``writer`` gives to what it writes next."""
        return Dot(writer, self[writer] + 1)

    def without(self, writers: Mapping[Writer, int]) -> VersionVector:
        """This vector less the entries of these writers."""
        return self._of({writer: counter for writer, counter in self._counters.items() if writer not in writers})

    def covers(self, other: VersionVector) -> bool:
        """Whether everything that ``other`` knows is known here: EQUAL or AFTER."""
        return all(counter <= self._counters.get(writer, 0) for writer, counter in other._counters.items())

    def compare(self, other: VersionVector) -> Order:
        """How this history stands to the other one (happens-before)."""
        if self.covers(other):
            return Order.EQUAL if other.covers(self) else Order.AFTER
        return Order.BEFORE if other.covers(self) else Order.CONCURRENT

    def beyond(self, other: VersionVector) -> list[Span]:
        """What is known here and not there: what to send to who has ``other``."""
        return [Span(writer, other[writer] + 1, counter) for writer, counter in self if counter > other[writer]]
