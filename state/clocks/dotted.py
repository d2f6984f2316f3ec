"""Dotted registers: a value whose conflicts are exactly its concurrent values.

A plain version vector beside each value cannot tell two clients' writes through one node apart, or calls ordered
writes concurrent.  A *dotted* one can (Preguiça et al. 2010; Almeida et al., "Scalable and accurate causality tracking
for eventually consistent stores", 2014): each value has the one dot that names its write, and beside the values stands
the *context*, everything the register has seen.  A value is gone when its dot is in the other side's context but no
longer among the other side's values: somebody who knew it wrote over it.

This is the multi-value register of the delta-CRDT paper (Almeida, Shoker, Baquero 2016) with a version vector for its
causal context, which suffices because a writer's dots reach everyone in order.  Values are kept by dot, so joining
never compares values.
"""

# core: no I/O

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from .vectors import Dot, VersionVector, Writer

T = TypeVar("T")


class DottedRegister(Generic[T]):
    """The concurrent values of one register and what they replaced; itself a value, never changed in place."""

    __slots__ = ("context", "siblings")

    def __init__(self, siblings: Mapping[Dot, T] | None = None, context: VersionVector | None = None) -> None:
        """A register with these values, which has also seen ``context``."""
        self.siblings: dict[Dot, T] = dict(sorted((siblings or {}).items(), key=_by_dot))
        """The values that nothing known has replaced, by the dot of their writes, in the order of the dots."""
        seen = context or VersionVector()
        for dot in self.siblings:
            seen = seen.with_dot(dot)
        self.context: VersionVector = seen
        """All writes that are known, those replaced included; what a reader passes to :meth:`write`."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DottedRegister):
            return NotImplemented
        return self.siblings == other.siblings and self.context == other.context

    def __hash__(self) -> int:
        return hash((tuple(self.siblings), self.context))

    def __repr__(self) -> str:
        return f"DottedRegister({self.siblings!r}, {self.context!r})"

    def write(self, writer: Writer, value: T, seen: VersionVector | None = None) -> DottedRegister[T]:
        """The register after ``writer`` wrote ``value`` over what it had seen.

        Args:
            writer: Who writes.
            value: The new value.
            seen: The context of the read that this write answers; values it does not cover stay as siblings.
                ``None``: everything known here.
        """
        covered = self.context if seen is None else seen
        kept = {dot: sibling for dot, sibling in self.siblings.items() if dot not in covered}
        dot = self.context.merge(covered).next(writer)
        return DottedRegister(kept | {dot: value}, self.context.merge(covered))

    def join(self, other: DottedRegister[T]) -> DottedRegister[T]:
        """What is known to who knows both: commutative, associative, idempotent."""
        kept = {
            dot: value
            for dot, value in (other.siblings | self.siblings).items()
            if (dot in self.siblings or dot not in self.context) and (dot in other.siblings or dot not in other.context)
        }
        return DottedRegister(kept, self.context.merge(other.context))


def _by_dot(item: tuple[Dot, object]) -> Dot:
    return item[0]
