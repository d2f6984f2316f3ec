"""Reads that wait: at the leader for a majority, at home for their answer."""

from __future__ import annotations

import math

from state.raft.events import Reason
from state.raft.reads import LocalReads, Origin, Reads


def test_one_round_at_a_time_serves_all_that_wait() -> None:
    """Those that come during a round wait for the next."""
    reads = Reads(3)
    assert not reads.begin(4)
    first, second = Origin(None, 1), Origin(None, 2)
    assert reads.add(first)
    assert reads.begin(5)
    assert reads.add(second)
    assert not reads.begin(6)
    assert reads.confirmed(0) == (5, [])
    assert reads.confirmed(1) == (5, [first])
    assert reads.confirmed(1) == (5, [])
    assert reads.begin(7)
    assert (reads.round, reads.confirmed(2)) == (2, (7, [second]))


def test_there_is_a_limit_to_reads() -> None:
    """Those beyond it are not taken in."""
    reads = Reads(1)
    assert reads.add(Origin(None, 1))
    assert not reads.add(Origin(None, 2))
    assert len(reads) == 1


def test_a_read_waits_until_its_index_is_applied() -> None:
    """Once confirmed it only waits for that."""
    local = LocalReads(100, 2.0)
    asked = local.ask(1, 0.0)
    local.confirmed(asked, 7)
    local.confirmed(asked, 3)
    assert local.taken(6, 1.0) == ([], [])
    assert local.taken(7, 1.0) == ([(1, 7)], [])
    assert len(local) == 0


def test_reads_expire() -> None:
    """Whether nobody confirmed them or nothing was applied."""
    local = LocalReads(100, 2.0)
    assert local.deadline_at == math.inf
    first, _ = local.ask(1, 0.0), local.ask(2, 0.5)
    local.confirmed(first, 9)
    assert local.deadline_at == 2.0
    assert local.taken(0, 2.0) == ([], [(1, Reason.UNANSWERED)])
    assert local.deadline_at == 2.5
    assert local.taken(0, 2.5) == ([], [(2, Reason.UNANSWERED)])
    assert local.deadline_at == math.inf


def test_an_answer_to_no_question_is_ignored() -> None:
    """Numbers are never used twice, so an answer that comes late fits nothing."""
    local = LocalReads(100, 2.0)
    local.confirmed(101, 5)
    local.refused(101, Reason.BUSY)
    asked = local.ask(1, 0.0)
    assert asked == 101
    local.drop(Reason.NO_LEADER)
    local.confirmed(asked, 5)
    assert local.taken(9, 0.0) == ([], [(1, Reason.NO_LEADER)])
