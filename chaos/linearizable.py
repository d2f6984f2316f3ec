"""Is a history linearizable?  Wing and Gong's search with Lowe's memory, one key at a time.

A history is what clients saw: each operation with the times at which it was begun and answered.  It is *linearizable*
(Herlihy and Wing 1990) if every operation can be given one instant between these two so that, in the order of the
instants, each answer is what the object, alone and sequential, would have given.  The property is local: a history over
many keys is linearizable if, and only if, that of each key is, so each key is searched alone.

The search is Wing and Gong's (1993): take as next any operation that was begun before the first answer that is still
outstanding, try it on the model, go on, go back.  Lowe's (2017) addition makes it usable: the set of operations taken
and the state reached are remembered, and never searched from again.

An operation without an answer (a timeout, a killed client) may have happened at any time after it was begun, or never:
it is open to the end, any answer would do, and it may be left over.  So it is only taken where it changes something.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

#: Steps after which a search is given up: some tens of seconds.
STEPS_MAX: Final = 5_000_000


class Unknown:
    """The answer of an operation that got none."""

    def __repr__(self) -> str:
        return "unknown"


UNKNOWN: Final = Unknown()


class TooHard(Exception):
    """The search was given up: nothing is known about the history."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What one client did, as it saw it."""

    client: str
    key: str
    asked: object
    answered: object
    """Or :data:`UNKNOWN`."""
    begun_s: float
    ended_s: float
    """When it was answered; of no meaning if it was not."""


class Model(Protocol):
    """An object, alone and sequential."""

    initial: Hashable

    def step(self, state: Hashable, asked: object, answered: object) -> Iterable[Hashable]:
        """The states after ``asked`` in ``state``, if it can be answered by ``answered``; none if it cannot."""
        ...


@dataclass(frozen=True, slots=True)
class Violation:
    """A key whose history is not linearizable.

    Attributes:
        key: Which.
        explained: The longest order that was found.
        stuck_at: The operation that was answered first of those that fit nowhere after it.
    """

    key: str
    explained: tuple[Operation, ...]
    stuck_at: Operation

    def __str__(self) -> str:
        lines = [f"  {operation}" for operation in self.explained[-10:]]
        return "\n".join([f"key {self.key!r} is not linearizable; after", *lines, f"nothing explains {self.stuck_at}"])


def check(history: Iterable[Operation], model: Model, *, steps_max: int = STEPS_MAX) -> Violation | None:
    """Search each key's history for an order that explains it.

    Args:
        history: All operations of all clients, in any order.
        model: What each key is.
        steps_max: When to give up, per key.

    Returns:
        ``None`` if the history is linearizable, else the first key, by name, that is not.

    Raises:
        TooHard: A search was given up.
        ValueError: An operation ends before it begins.
    """
    keys: dict[str, list[Operation]] = {}
    for operation in history:
        if operation.answered is not UNKNOWN and operation.ended_s < operation.begun_s:
            raise ValueError(f"{operation} ends before it begins")
        keys.setdefault(operation.key, []).append(operation)
    for key in sorted(keys):
        violation = _Search(keys[key], model, steps_max).run()
        if violation is not None:
            return violation
    return None


class _Point:
    """A beginning or an end, in the list of those that are not yet taken."""

    __slots__ = ("end", "following", "number", "previous")

    def __init__(self, number: int) -> None:
        self.number = number
        self.end: _Point | None = None
        """Of a beginning, its end; ``None``: this is an end."""
        self.previous = self.following = self

    def remove(self) -> None:
        self.previous.following, self.following.previous = self.following, self.previous

    def restore(self) -> None:
        self.previous.following = self.following.previous = self


class _Search:
    """The search for one key."""

    def __init__(self, operations: Sequence[Operation], model: Model, steps_max: int) -> None:
        self._operations = sorted(operations, key=lambda operation: operation.begun_s)
        self._model = model
        self._steps_left = steps_max
        self._head = _Point(-1)
        points = []
        for number, operation in enumerate(self._operations):
            begin, end = _Point(number), _Point(number)
            begin.end = end
            ended_s = math.inf if operation.answered is UNKNOWN else operation.ended_s
            # What begins in the very moment in which another ends may have come before it.
            points += [(operation.begun_s, 0, number, begin), (ended_s, 1, number, end)]
        last = self._head
        for *_, point in sorted(points, key=lambda item: item[:3]):
            last.following, point.previous = point, last
            last = point
        last.following, self._head.previous = self._head, last

    def run(self) -> Violation | None:
        """Search depth first, with a stack of the choices made."""
        state: Hashable = self._model.initial
        taken = 0
        seen: set[tuple[int, Hashable]] = {(0, state)}
        # Each choice: the beginning, the state before it, and the states that it may still lead to.
        choices: list[tuple[_Point, Hashable, list[Hashable]]] = []
        longest: list[int] = []
        stuck_at = self._operations[0]
        point = self._head.following
        while point is not self._head:
            self._steps_left -= 1
            if self._steps_left < 0:
                raise TooHard(f"gave up on {len(self._operations)} operations of {stuck_at.key!r}")
            if point.end is not None:
                reached = self._fresh(point, state, taken, seen)
                if reached:
                    choices.append((point, state, reached[1:]))
                    state, taken = reached[0], taken | 1 << point.number
                    point.remove()
                    point.end.remove()
                    point = self._head.following
                else:
                    point = point.following
                continue
            operation = self._operations[point.number]
            if operation.answered is UNKNOWN:
                return None  # only such are left, and they may never have happened
            if len(choices) > len(longest) or not longest:
                longest, stuck_at = [choice[0].number for choice in choices], operation
            if not choices:
                return Violation(stuck_at.key, tuple(self._operations[number] for number in longest), stuck_at)
            point, state, taken = self._back(choices, taken)
        return None

    def _fresh(self, point: _Point, state: Hashable, taken: int, seen: set[tuple[int, Hashable]]) -> list[Hashable]:
        """The states that an operation leads to, as far as nothing was searched from there yet."""
        operation = self._operations[point.number]
        reached = []
        for after in self._model.step(state, operation.asked, operation.answered):
            place = (taken | 1 << point.number, after)
            idle = operation.answered is UNKNOWN and after == state
            if not idle and place not in seen:
                seen.add(place)
                reached.append(after)
        return reached

    def _back(self, choices: list[tuple[_Point, Hashable, list[Hashable]]], taken: int) -> tuple[_Point, Hashable, int]:
        """Undo the last choice, or take its next state."""
        point, before, others = choices.pop()
        assert point.end is not None
        if others:
            choices.append((point, before, others[1:]))
            return self._head.following, others[0], taken
        point.end.restore()
        point.restore()
        return point.following, before, taken & ~(1 << point.number)


# --- models -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Read:
    """What is the value?"""


@dataclass(frozen=True, slots=True)
class Write:
    """Set the value."""

    value: Hashable


@dataclass(frozen=True, slots=True)
class Swap:
    """Set the value if it is the expected one; answered by whether it was."""

    expected: Hashable
    value: Hashable


class Register:
    """One value, ``None`` at first: read, write and compare-and-set.

    A read is answered by the value, a write by ``True``.
    """

    initial: Hashable = None

    def step(self, state: Hashable, asked: object, answered: object) -> Iterable[Hashable]:
        """See :class:`Model`."""
        match asked:
            case Read():
                return [state] if answered is UNKNOWN or answered == state else []
            case Write():
                return [asked.value]
            case Swap():
                done = state == asked.expected
                return [asked.value if done else state] if answered is UNKNOWN or answered is done else []
            case _:
                raise TypeError(f"not asked of a register: {asked}")


@dataclass(frozen=True, slots=True)
class Append:
    """Add to the end of the list."""

    value: Hashable


class AppendList:
    """A list: appended to (answered by ``True``), and read as a tuple."""

    initial: Hashable = ()

    def step(self, state: Hashable, asked: object, answered: object) -> Iterable[Hashable]:
        """See :class:`Model`."""
        assert isinstance(state, tuple)
        match asked:
            case Append():
                return [(*state, asked.value)]
            case Read():
                return [state] if answered is UNKNOWN or answered == state else []
            case _:
                raise TypeError(f"not asked of a list: {asked}")


@dataclass(frozen=True, slots=True)
class Acquire:
    """Get the lock, answered by its fencing token; or ``None``: somebody has it."""

    owner: str


@dataclass(frozen=True, slots=True)
class Release:
    """Give it back; answered by whether it was this owner's under this token."""

    owner: str
    token: int


class Lock:
    """A lock whose tokens rise with each holder.  The state: who has it (or ``None``), and the highest token given."""

    initial: Hashable = (None, 0)

    def step(self, state: Hashable, asked: object, answered: object) -> Iterable[Hashable]:
        """See :class:`Model`."""
        assert isinstance(state, tuple)
        holder, token = state
        match asked:
            case Acquire():
                if holder is not None:
                    return [state] if answered is UNKNOWN or answered is None else []
                if answered is UNKNOWN:
                    return [(asked.owner, token + 1)]
                return [(asked.owner, answered)] if isinstance(answered, int) and answered > token else []
            case Release():
                done = (holder, token) == (asked.owner, asked.token)
                return [(None, token) if done else state] if answered is UNKNOWN or answered is done else []
            case _:
                raise TypeError(f"not asked of a lock: {asked}")
