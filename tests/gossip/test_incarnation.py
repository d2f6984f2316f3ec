"""Incarnations: packing, order, plausibility, refutation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.incarnation import (
    INCARNATION_MAX,
    LIFE_MAX,
    REFUTATION_JUMP_MAX,
    REFUTATIONS_MAX,
    is_plausible,
    life_of,
    make_incarnation,
    refutations_of,
    refute,
)

_lives = st.integers(0, LIFE_MAX)
_refutations = st.integers(0, REFUTATIONS_MAX)


@given(_lives, _refutations)
def test_the_parts_come_out_as_they_went_in(life: int, refutations: int) -> None:
    """An incarnation is its two parts, and exact in JSON."""
    incarnation = make_incarnation(life, refutations)

    assert (life_of(incarnation), refutations_of(incarnation)) == (life, refutations)
    assert 0 <= incarnation <= INCARNATION_MAX


@given(_lives, _refutations, _lives, _refutations)
def test_a_restart_beats_every_refutation(life: int, few: int, later: int, many: int) -> None:
    """Integers compare as (life, refutations) do."""
    assert (make_incarnation(life, few) < make_incarnation(later, many)) == ((life, few) < (later, many))


@pytest.mark.parametrize(("life", "refutations"), [(-1, 0), (LIFE_MAX + 1, 0), (0, -1), (0, REFUTATIONS_MAX + 1)])
def test_parts_out_of_range_are_refused(life: int, refutations: int) -> None:
    """Nothing overflows from one part into the other."""
    with pytest.raises(ValueError, match="not within"):
        make_incarnation(life, refutations)


def test_a_refutation_is_above_both_and_stays_in_its_life() -> None:
    """Whether the accuser cites our incarnation or a higher one."""
    own = make_incarnation(7, 3)

    assert refute(own, own) == make_incarnation(7, 4)
    assert refute(own, make_incarnation(7, 9)) == make_incarnation(7, 10)


def test_refutations_run_out() -> None:
    """The last one cannot be raised without becoming another life."""
    assert refute(make_incarnation(7), make_incarnation(7, REFUTATIONS_MAX)) is None


def test_hearsay_may_not_jump_far_within_a_life() -> None:
    """A new life may start anywhere, an old one moves in steps."""
    known = make_incarnation(7, 5)

    assert is_plausible(known, known + REFUTATION_JUMP_MAX)
    assert not is_plausible(known, known + REFUTATION_JUMP_MAX + 1)
    assert is_plausible(known, make_incarnation(8, REFUTATIONS_MAX))
    assert is_plausible(known, make_incarnation(7, 0))
