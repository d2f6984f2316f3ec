"""Dead letters: kept within bounds, and the same after a restart."""

from __future__ import annotations

import pytest

from mesh.messaging.dead_letters import Dead, DeadLetters, decode_dead, encode_dead
from mesh.messaging.outbox import LETTER_OVERHEAD_BYTES, Letter, Reason
from transport.errors import RemoteProtocolError
from transport.wire import pack


def dead(sequence: int, *, died_ms: int = 0, payload: bytes = b"") -> Dead:
    """A letter that was given up."""
    letter = Letter(sequence, 1, 2, 1, 1, 8, payload, 5, 6, {"k": "v"}, "g", 3, 2)
    return Dead(letter, Reason.FAILED, "ValueError: no", died_ms)


def kept(letters: DeadLetters) -> list[int]:
    """The ids of those that are there."""
    return [one.letter_id for one in letters.all()]


def test_the_oldest_go_for_the_new() -> None:
    """Count and bytes are bounded."""
    letters = DeadLetters(count_max=2, bytes_max=10_000, age_ms_max=100)
    assert [letters.add(dead(number)) for number in (1, 2)] == [[], []]
    assert [one.letter_id for one in letters.add(dead(3))] == [1]
    assert [one.letter_id for one in letters.add(dead(4, payload=bytes(9_500)))] == [2, 3]
    assert [one.letter_id for one in letters.add(dead(5, payload=bytes(20_000)))] == [4, 5]
    assert (len(letters), letters.size_bytes) == (0, 0)


def test_they_age() -> None:
    """Whatever is too old goes, and its weight with it."""
    letters = DeadLetters(count_max=10, bytes_max=10_000, age_ms_max=100)
    letters.add(dead(1, died_ms=1_000))
    letters.add(dead(2, died_ms=1_050))

    assert letters.expire(1_099) == []
    assert [one.letter_id for one in letters.expire(1_100)] == [1]
    assert kept(letters) == [2]
    assert letters.size_bytes == LETTER_OVERHEAD_BYTES + 66


def test_they_are_found_and_taken_away() -> None:
    """By their id, once."""
    letters = DeadLetters(count_max=10, bytes_max=10_000, age_ms_max=100)
    letters.add(dead(1))

    assert letters.find(1) == dead(1)
    assert letters.find(2) is None
    assert letters.remove(1) == dead(1)
    assert letters.remove(1) is None


def test_a_record_is_read_as_it_was_written() -> None:
    """Reason, detail, time and the whole letter, how often it was sent included."""
    one = dead(7, died_ms=9, payload=b"x")

    assert decode_dead(7, encode_dead(one)) == one


@pytest.mark.parametrize("body", [b"", pack([1, 2]), pack({}), pack(["failed", "", 1, 1, b"\xc1"])])
def test_what_is_no_record_is_refused(body: bytes) -> None:
    """A later version's, perhaps."""
    with pytest.raises(RemoteProtocolError):
        decode_dead(7, body)
