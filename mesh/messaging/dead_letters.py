"""The durable messages that were given up: kept for a while, for somebody to look at, replay or drop.

Core: no I/O.  They are kept at their sender, which alone has them to the end.  Bounded by count, bytes and age; the
oldest go first.
"""
# core: no I/O

from __future__ import annotations

from dataclasses import dataclass

from transport.errors import RemoteProtocolError
from transport.wire import pack, unpack_body

from .outbox import Letter, Reason, decode_letter, encode_letter


@dataclass(frozen=True, slots=True)
class Dead:
    """A letter that was given up: why, and when by this node's clock."""

    letter: Letter
    reason: Reason
    detail: str
    died_ms: int

    @property
    def letter_id(self) -> int:
        """Under which it is found: the letter's number."""
        return self.letter.sequence


def encode_dead(dead: Dead) -> bytes:
    """The dead letter as a record; the letter's number is the record's key."""
    return pack([dead.reason.value, dead.detail, dead.died_ms, dead.letter.sent, encode_letter(dead.letter)])


def decode_dead(sequence: int, body: bytes) -> Dead:
    """Read a record.

    Raises:
        RemoteProtocolError: It is none: a later version's, perhaps.
    """
    fields = unpack_body(body)
    if type(fields) is not list or len(fields) != 5:
        raise RemoteProtocolError("dead letter: not five fields")
    letter = decode_letter(sequence, fields[4])
    letter.sent = fields[3]
    return Dead(letter, Reason(fields[0]), fields[1], fields[2])


class DeadLetters:
    """Those of one node.

    Args:
        count_max: How many are kept.
        bytes_max: What they may weigh in all.
        age_ms_max: How long each is kept.
    """

    def __init__(self, *, count_max: int, bytes_max: int, age_ms_max: int) -> None:
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._age_ms_max = age_ms_max
        self._dead: dict[int, Dead] = {}
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._dead)

    def all(self) -> list[Dead]:
        """All of them, the oldest first."""
        return list(self._dead.values())

    def find(self, letter_id: int) -> Dead | None:
        """One of them."""
        return self._dead.get(letter_id)

    def add(self, dead: Dead) -> list[Dead]:
        """Keep one more; returns those that have to go for it, the new one among them if it alone is too much."""
        self._dead[dead.letter_id] = dead
        self.size_bytes += dead.letter.size_bytes
        gone: list[Dead] = []
        while len(self._dead) > self._count_max or self.size_bytes > self._bytes_max:
            gone.append(self._remove(next(iter(self._dead))))
        return gone

    def remove(self, letter_id: int) -> Dead | None:
        """Take one away; ``None``: there is none of that id."""
        return self._remove(letter_id) if letter_id in self._dead else None

    def expire(self, now_ms: int) -> list[Dead]:
        """Take away those that are too old."""
        old = [dead.letter_id for dead in self._dead.values() if dead.died_ms + self._age_ms_max <= now_ms]
        return [self._remove(letter_id) for letter_id in old]

    def _remove(self, letter_id: int) -> Dead:
        dead = self._dead.pop(letter_id)
        self.size_bytes -= dead.letter.size_bytes
        return dead
