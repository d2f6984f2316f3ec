"""Waits between attempts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.backoff import Backoff
from transport.errors import LocalProtocolError


@given(st.integers(), st.floats(0.001, 10), st.floats(1, 1000))
def test_waits_stay_in_bounds_and_grow(seed: int, first_s: float, factor: float) -> None:
    """Each wait is within the bounds and at most three times the one before."""
    backoff = Backoff(random.Random(seed), first_s=first_s, max_s=first_s * factor)
    last_s = first_s
    for attempt in range(20):
        wait_s = backoff.next_s()
        assert backoff.attempts == attempt + 1
        assert first_s * 0.999 <= wait_s <= min(first_s * factor, last_s * 3) * 1.001
        last_s = wait_s


def test_waits_of_two_nodes_differ_and_those_of_a_seed_do_not() -> None:
    """The jitter comes from the generator alone."""
    first, again, other = (Backoff(random.Random(seed)) for seed in (1, 1, 2))
    waits = [first.next_s() for _ in range(5)]
    assert waits == [again.next_s() for _ in range(5)]
    assert waits != [other.next_s() for _ in range(5)]


def test_success_starts_over() -> None:
    """After reset the next wait is at most three times the first."""
    backoff = Backoff(random.Random(0), first_s=0.1, max_s=60)
    for _ in range(50):
        backoff.next_s()
    backoff.reset()
    assert backoff.attempts == 0
    assert backoff.next_s() <= 0.3


@pytest.mark.parametrize(("first_s", "max_s"), [(0, 1), (-1, 1), (2, 1)])
def test_senseless_bounds_are_refused(first_s: float, max_s: float) -> None:
    """The first wait is positive and not above the last."""
    with pytest.raises(LocalProtocolError):
        Backoff(random.Random(0), first_s=first_s, max_s=max_s)
