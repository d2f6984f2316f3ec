"""The log, on its own and against a plain list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from state.raft.configuration import Configuration
from state.raft.log import Log
from state.raft.types import Entry, Snapshot, Stored, Vote
from transport.types import NodeId

A, B = NodeId("a"), NodeId("b")
OF_A, OF_B = Configuration((A,)), Configuration((B,))


def log_of(*terms: int) -> Log:
    """A log whose entries have these terms."""
    return Log(Stored(entries=entries_of(1, *terms)))


def entries_of(first: int, *terms: int) -> tuple[Entry, ...]:
    """Entries of these terms, from an index on."""
    return tuple(Entry(index, term, b"%d" % index) for index, term in enumerate(terms, first))


def terms_of(log: Log) -> list[int | None]:
    """The terms of a log's entries."""
    return [log.term_at(index) for index in range(log.offset + 1, log.last_index + 1)]


@pytest.mark.parametrize("entries", [entries_of(2, 1), entries_of(1, 2, 1), (*entries_of(1, 1), *entries_of(3, 1))])
def test_a_log_with_gaps_or_falling_terms_is_refused(entries: tuple[Entry, ...]) -> None:
    """What is stored is checked when it is read."""
    with pytest.raises(ValueError, match="does not follow"):
        Log(Stored(entries=entries))


def test_a_log_starts_after_its_snapshot() -> None:
    """What the snapshot stands for is applied; what follows is stored."""
    log = Log(Stored(Vote(3), Snapshot(5, 2, OF_A), entries_of(6, 2, 3)))
    assert (log.offset, log.applied, log.committed, log.persisted, log.last_index) == (5, 5, 5, 7, 7)
    assert (log.last_term, log.term_at(5), log.term_at(4), log.term_at(8)) == (3, 2, None, None)
    assert log.configuration == OF_A
    assert (log.has(4, 99), log.has(5, 2), log.has(6, 3), log.has(8, 3)) == (True, True, False, False)


def test_the_last_word_on_members_counts() -> None:
    """A configuration counts from where it stands, and goes when it is cut off."""
    log = log_of(1)
    log.append([Entry(2, 1, OF_A), Entry(3, 1, b"x"), Entry(4, 1, OF_B)])
    assert (log.configuration, log.configuration_index) == (OF_B, 4)
    assert (log.configuration_at(3), log.configuration_at(1)) == (OF_A, Configuration())
    log.committed = 2
    assert log.merge(entries_of(4, 2)) == 4
    assert (log.configuration, log.configuration_index) == (OF_A, 2)


def test_who_may_have_to_lead() -> None:
    """Whoever votes by what is committed last, or by anything after it."""
    log = Log(Stored(entries=(Entry(1, 1, OF_A), Entry(2, 1, OF_B), Entry(3, 1, b""))))
    assert log.needs(A)
    log.committed = 1
    assert (log.needs(A), log.needs(B)) == (True, True)
    log.committed = 2
    assert (log.needs(A), log.needs(B)) == (False, True)


def test_merging_cuts_off_what_differs_and_nothing_else() -> None:
    """Known entries change nothing; the first that differs cuts off all after it."""
    log = log_of(1, 1, 2, 2)
    assert log.merge(entries_of(2, 1, 2)) == 5
    assert log.merge(()) == 5
    assert log.merge(entries_of(2, 1, 3)) == 3
    assert terms_of(log) == [1, 1, 3]
    assert log.persisted == 2
    assert log.merge(entries_of(3, 3, 3)) == 4
    assert log.size_bytes == sum(entry.size_bytes for entry in log.range(1, 4))


def test_batches_stay_within_limits() -> None:
    """By number and by weight, but one entry always fits."""
    log = log_of(1, 1, 1, 1)
    weight = log.range(1, 1)[0].size_bytes
    assert len(log.batch(2, 2, 1 << 20)) == 2
    assert len(log.batch(1, 9, 2 * weight)) == 2
    assert len(log.batch(1, 9, 1)) == 1
    assert log.batch(5, 9, 9) == ()


def test_a_guess_skips_whole_terms() -> None:
    """The last place whose term is not above the other's there."""
    log = log_of(1, 1, 1, 2, 2, 2, 3, 3)
    assert log.guess(20, 3) == (8, 3)
    assert log.guess(7, 2) == (6, 2)
    assert log.guess(7, 1) == (3, 1)
    assert log.guess(7, 0) == (0, 0)
    assert log.guess(-3, 5) == (-3, 0)


def test_up_to_date_is_last_term_then_length() -> None:
    """Section 5.4.1."""
    log = log_of(1, 2, 2)
    assert [log.is_behind(*end) for end in ((9, 1), (2, 2), (3, 2), (1, 3))] == [False, False, True, True]


def test_compaction_keeps_some_entries_within_limits() -> None:
    """By number and by weight; what is dropped is no longer here, and its last term and members are known."""
    log = Log(Stored(entries=(Entry(1, 1, OF_A), *entries_of(2, 1, 2, 2), Entry(5, 2, OF_B), *entries_of(6, 3))))
    log.committed = log.applied = 6
    log.compact(Snapshot(4, 2, OF_A), 2, 1 << 20)
    assert (log.offset, log.term_at(2), terms_of(log)) == (2, 1, [2, 2, 2, 3])
    assert (log.configuration_at(4), log.configuration) == (OF_A, OF_B)
    log.compact(Snapshot(6, 3, OF_B), 9, 150)
    assert (log.offset, log.size_bytes) == (5, log.range(6, 6)[0].size_bytes)
    log.compact(Snapshot(6, 3, OF_B), 9, 1 << 20)
    assert log.offset == 5
    log.compact(Snapshot(6, 3, OF_B), 0, 0)
    assert (log.offset, log.last_term, log.size_bytes) == (6, 3, 0)


def test_a_snapshot_replaces_everything() -> None:
    """It is committed at once, and stored and applied when the disk says so."""
    log = log_of(1, 1)
    log.restore(Snapshot(9, 4, OF_B))
    assert (log.offset, log.last_index, log.last_term, log.committed, log.persisted) == (9, 9, 4, 9, 0)
    assert (log.applied, log.configuration, log.size_bytes) == (0, OF_B, 0)


@given(
    common=st.lists(st.integers(1, 3), max_size=5).map(sorted),
    mine=st.lists(st.sampled_from((5, 7, 9)), max_size=6).map(sorted),
    theirs=st.lists(st.sampled_from((4, 6, 8)), max_size=6).map(sorted),
)
def test_two_logs_always_come_together(common: list[int], mine: list[int], theirs: list[int]) -> None:
    """Going back by guesses finds where they agree, in no more steps than there are terms in which they differ."""
    leader, follower = log_of(*common, *theirs), log_of(*common, *mine)
    previous, steps = leader.last_index, 0
    while not follower.has(previous, leader.term_at(previous) or 0):
        index, term = follower.guess(previous, leader.term_at(previous) or 0)
        previous = min(leader.guess(index, term)[0], previous - 1)
        steps += 1
    follower.merge(leader.range(previous + 1, leader.last_index))

    assert terms_of(follower)[: leader.last_index] == terms_of(leader)
    assert steps <= len({*mine, *theirs}) + 1
