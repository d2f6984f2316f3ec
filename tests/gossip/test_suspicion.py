"""Accelerating suspicion: memberlist's unit vectors, and what was added to them."""

from __future__ import annotations

import pytest

from gossip.suspicion import Suspicion, confirmations_wanted, remaining_s, suspicion_min_s
from transport.types import NodeId

A, B, C, D = (NodeId(name) for name in "abcd")


@pytest.mark.parametrize(
    ("members", "ms"), [(0, 1000), (5, 1000), (10, 1000), (50, 1698), (100, 2000), (500, 2698), (1000, 3000)]
)
def test_the_least_time_grows_with_the_logarithm_of_the_size(members: int, ms: float) -> None:
    """memberlist's TestSuspicionTimeout (multiplier 3, interval 1 s; it rounds down to milliseconds)."""
    assert int(suspicion_min_s(3, members, 1.0) * 1000) / 3 == pytest.approx(ms, abs=1)


@pytest.mark.parametrize(
    ("confirmations", "elapsed_s", "expected_s"),
    [(0, 0, 30), (1, 2, 14), (2, 3, 4.81), (3, 4, -2), (4, 5, -3), (5, 10, -8)],
)
def test_each_confirmation_leaves_less_time(confirmations: int, elapsed_s: float, expected_s: float) -> None:
    """memberlist's TestSuspicion_remainingSuspicionTime (k 3, from 30 s to 2 s)."""
    assert remaining_s(confirmations, 3, elapsed_s, 2.0, 30.0) == pytest.approx(expected_s, abs=0.01)


@pytest.mark.parametrize(
    ("members", "confirmers", "ms"),
    [
        (2, 0, 500),
        (3, 0, 500),
        (4, 0, 500),
        (5, 0, 1000),
        (6, 0, 1000),
        (6, 1, 750),
        (6, 2, 604),
        (6, 3, 500),
        (6, 4, 500),
    ],
)
def test_dogpile(members: int, confirmers: int, ms: float) -> None:
    """memberlist's TestMemberlist_SuspectNode_Dogpile (multiplier 5, interval 100 ms, most twice the least)."""
    min_s = suspicion_min_s(5, members, 0.1)
    suspicion = Suspicion(confirmations_wanted(5, members), min_s, 2 * min_s, now=100.0)
    for number in range(confirmers + 1):
        suspicion.accuse(NodeId(f"p{number}"))

    assert suspicion.deadline - 100.0 == pytest.approx(ms / 1000, abs=0.001)


def test_the_same_accuser_counts_once_and_too_many_do_not_count() -> None:
    """The first accusation is no confirmation; two more are all that is wanted here."""
    suspicion = Suspicion(2, 1.0, 6.0, now=0.0)
    assert suspicion.confirmations == 0
    assert [suspicion.accuse(name) for name in (A, A, B, B, C, D)] == [True, False, True, False, True, False]

    assert suspicion.accusers == (A, B, C)
    assert suspicion.confirmations == 2
    assert suspicion.deadline == 1.0


def test_proof_cuts_the_time_short_once_and_for_all() -> None:
    """A later proof does not prolong it, and confirmations still count; it also beats an earlier wish to wait."""
    suspicion = Suspicion(2, 2.0, 12.0, now=0.0)
    suspicion.wait_until(5.0)
    suspicion.cut(1.0)
    suspicion.cut(3.0)

    assert suspicion.deadline == 1.0


def test_time_in_which_we_stood_still_is_given_back() -> None:
    """From now at least, and added to what was left."""
    suspicion = Suspicion(0, 2.0, 12.0, now=0.0)
    suspicion.credit(5.0, 4.0)
    assert suspicion.deadline == 9.0

    fresh = Suspicion(0, 2.0, 12.0, now=0.0)
    fresh.credit(1.0, 4.0)

    assert fresh.deadline == 6.0


def test_waiting_is_a_lower_bound() -> None:
    """It never shortens."""
    suspicion = Suspicion(0, 2.0, 12.0, now=0.0)
    suspicion.wait_until(1.0)
    assert suspicion.deadline == 2.0
    suspicion.wait_until(3.0)

    assert suspicion.deadline == 3.0
