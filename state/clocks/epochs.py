"""When a writer may be forgotten: epochs that the members agreed on.

A vector has an entry for each process that ever wrote.  An entry may go only when it can no longer matter, and no
replica can tell that alone; forgetting by size or by age makes ordered histories look concurrent (Riak's pruning) or
raises the dead.  So entries are *retired* by a membership **epoch** that consensus committed: epoch 1, 2, 3 ..., each
naming the writers that left for good and the last number of each.  Everybody applies the same epochs in the same order,
and two vectors are compared after both were trimmed to the same epoch.

Trimming keeps honest: a vector that knows *more* of a retired writer than was agreed holds writes that the others do
not have and will not take.  That is no older version of the same history but another one, so it is reported
(:class:`~state.errors.DivergentHistory`), never trimmed away.  A vector that knows *less* may be trimmed only by who
then fetches the rest; :meth:`Epochs.lacks` says what that is.

The markers of old epochs are kept for ``markers_max`` epochs.  A replica that slept through more must start from a
snapshot (Pekko's documented rule), which :class:`~state.errors.EpochUnknown` says.
"""

# core: no I/O

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from state.errors import DivergentHistory, EpochUnknown

from .vectors import Span, VersionVector, Writer

#: Epochs whose retirements are remembered: with one a day, most of three years.
MARKERS_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class Epoch:
    """One committed epoch: its number, and of each writer that it retires the last number."""

    number: int
    retired: Mapping[Writer, int]


class Epochs:
    """The committed epochs, as far as they are remembered.

    Args:
        number: The epoch that the state, a snapshot for example, starts from; 0: from the beginning.
        markers_max: How many epochs' retirements are kept.
    """

    def __init__(self, number: int = 0, *, markers_max: int = MARKERS_MAX) -> None:
        self._number = number
        self._markers_max = markers_max
        self._epochs: dict[int, Epoch] = {}

    @property
    def number(self) -> int:
        """The latest epoch."""
        return self._number

    def commit(self, epoch: Epoch) -> None:
        """Take the next epoch, which consensus committed; one that is known already changes nothing.

        Raises:
            EpochUnknown: There is a gap before it.
        """
        if epoch.number <= self._number:
            return
        if epoch.number != self._number + 1:
            raise EpochUnknown(
                f"epoch {epoch.number} follows {epoch.number - 1}, and this replica is at {self._number}",
                hint="fetch the epochs in between, or start from a snapshot",
            )
        self._epochs[epoch.number] = epoch
        self._number = epoch.number
        if len(self._epochs) > self._markers_max:
            del self._epochs[next(iter(self._epochs))]

    def trim(self, vector: VersionVector, at: int) -> VersionVector:
        """``vector``, which was trimmed to epoch ``at``, trimmed to the latest.

        Raises:
            EpochUnknown: ``at`` is in the future, or so old that its retirements are forgotten.
            DivergentHistory: It knows more of a retired writer than was agreed.
        """
        for epoch in self._since(at):
            for writer, last in epoch.retired.items():
                if vector[writer] > last:
                    raise DivergentHistory(
                        f"{vector[writer]} writes of {writer} are known, and epoch {epoch.number} retired it at {last}",
                        hint="keep the extra writes by exporting them, then start this replica from a snapshot",
                    )
            vector = vector.without(epoch.retired)
        return vector

    def lacks(self, vector: VersionVector, at: int) -> list[Span]:
        """What a replica with this vector must fetch before it may trim it.

        Raises:
            EpochUnknown: See :meth:`trim`.
        """
        return [
            Span(writer, vector[writer] + 1, last)
            for epoch in self._since(at)
            for writer, last in sorted(epoch.retired.items())
            if vector[writer] < last
        ]

    def _since(self, at: int) -> list[Epoch]:
        missing = [number for number in range(at + 1, self._number + 1) if number not in self._epochs][:1]
        if at > self._number or missing:
            raise EpochUnknown(
                f"epoch {at} is {'not known yet' if at > self._number else 'too long ago'}; this replica is at "
                f"{self._number} and remembers {len(self._epochs)} epochs",
                hint="start from a snapshot",
            )
        return [self._epochs[number] for number in range(at + 1, self._number + 1)]
