"""Windows over the numbers of each origin's broadcasts."""

from __future__ import annotations

import random

import pytest

from gossip.config import GossipConfig
from gossip.seen import GAPS_MAX, SeenWindows, Summary, Verdict
from transport.types import NodeId

O = NodeId("o")  # noqa: E741 - the origin
NEW, SEEN, OUTDATED = Verdict.NEW, Verdict.SEEN, Verdict.OUTDATED


def windows(**limits: float) -> SeenWindows:
    """Windows with these limits."""
    return SeenWindows(GossipConfig(**limits))  # type: ignore[arg-type]


def test_each_number_is_new_once_in_any_order_within_the_window() -> None:
    """What fell out of the window is outdated, seen or not."""
    seen = windows(broadcast_window=8)

    found = [seen.take(O, 1, n, 0.0) for n in (3, 1, 2, 1, 10, 9, 3, 2, 100, 99, 10)]

    assert found == [NEW, NEW, NEW, SEEN, NEW, NEW, SEEN, OUTDATED, NEW, NEW, OUTDATED]


def test_looking_takes_nothing() -> None:
    """Asked twice, a number is new twice."""
    seen = windows()

    assert [seen.look(O, 1, 5), seen.look(O, 1, 5), len(seen)] == [NEW, NEW, 0]


def test_a_new_life_starts_anew_and_the_old_one_is_history() -> None:
    """A restarted origin counts from 1 again."""
    seen = windows()
    seen.take(O, 1, 5, 0.0)

    assert seen.take(O, 2, 1, 0.0) is NEW
    assert seen.take(O, 1, 6, 0.0) is OUTDATED


def test_origins_are_forgotten_by_silence_and_by_number() -> None:
    """The longest silent goes first."""
    seen = windows(broadcast_origins_max=2, broadcast_origin_s=10)
    for now, origin in enumerate("pqpr"):
        seen.take(NodeId(origin), 1, now + 1, now)

    assert len(seen) == 2
    assert seen.look(NodeId("q"), 1, 2) is NEW
    seen.take(NodeId("s"), 1, 1, 30.0)
    assert len(seen) == 1


def test_a_number_far_ahead_costs_no_more_than_a_window() -> None:
    """State stays bounded, and the summary with it."""
    seen = windows(broadcast_window=64)
    seen.take(O, 1, 1, 0.0)
    seen.take(O, 1, 2**53 - 1, 0.0)

    (summary,) = seen.summaries(0.0)

    assert summary.gaps == ((2**53 - 64, 2**53 - 2),)


@pytest.mark.parametrize("seed", range(20))
def test_a_summary_says_exactly_what_was_taken(seed: int) -> None:
    """Compared with a plain set."""
    rng = random.Random(seed)
    seen = windows()
    taken = {rng.randint(1, 60) for _ in range(40)}
    for number in sorted(taken, key=lambda _: rng.random()):
        seen.take(O, 7, number, 0.0)

    (summary,) = seen.summaries(0.0)

    assert {n for n in range(1, 80) if not summary.lacks(7, n)} == taken
    assert summary.highest == max(taken)
    assert summary.lacks(8, 1)
    assert not summary.lacks(6, 1)


def test_of_many_gaps_the_newest_are_told() -> None:
    """What lies below them counts as not wanted until they are filled."""
    seen = windows()
    for number in range(1, 4 * GAPS_MAX, 2):
        seen.take(O, 1, number, 0.0)

    (summary,) = seen.summaries(0.0)

    assert len(summary.gaps) == GAPS_MAX
    assert summary.gaps[-1] == (summary.highest - 1, summary.highest - 1)
    assert not summary.lacks(1, 2)


def test_only_recent_origins_are_summarised_by_name() -> None:
    """Nobody keeps payloads of the others."""
    seen = windows(plumtree_age_s=10)
    for now, origin in enumerate("zya"):
        seen.take(NodeId(origin), 1, 1, now * 6.0)

    assert [summary.origin for summary in seen.summaries(12.0)] == ["a", "y"]
    assert seen.heard_since(12.0)
    assert not seen.heard_since(12.1)


def test_holes_are_given_up_when_no_payload_can_be_left() -> None:
    """Each is reported once, after one to two ages, and no longer asked for."""
    seen = windows(plumtree_age_s=10)
    for number in (4, 5, 9, 12):
        seen.take(O, 3, number, 0.0)

    assert list(seen.settle(5.0)) == []
    assert list(seen.settle(10.0)) == []
    assert list(seen.settle(20.0)) == [(O, 3, 6, 8), (O, 3, 10, 11)]
    assert list(seen.settle(30.0)) == []
    seen.take(O, 3, 14, 30.0)
    assert seen.summaries(30.0)[0].gaps == ((13, 13),)


def test_what_was_before_the_first_number_heard_is_asked_for_but_not_reported() -> None:
    """It may be older than this node."""
    seen = windows(plumtree_age_s=10)
    seen.take(O, 1, 3, 0.0)

    assert seen.summaries(0.0)[0].gaps == ((1, 2),)
    assert [*seen.settle(10.0), *seen.settle(20.0)] == []


@pytest.mark.parametrize(
    ("other", "more"),
    [
        (None, True),
        (Summary(O, 4, 0, 9), True),
        (Summary(O, 6, 0, 9), False),
        (Summary(O, 5, 0, 9), True),
        (Summary(O, 5, 0, 10, ((2, 3),)), False),
        (Summary(O, 5, 0, 10, ((2, 4),)), True),
        (Summary(O, 5, 0, 11), False),
        (Summary(O, 5, 0, 10, ((5, 6),)), True),
    ],
)
def test_summaries_are_compared(other: Summary | None, more: bool) -> None:
    """By life, by the highest number, and by holes."""
    assert Summary(O, 5, 0, 10, ((2, 3),)).has_more(other) is more


def test_what_is_below_a_floor_is_not_taken_for_had() -> None:
    """Its owner only does not want it any more."""
    floored = Summary(O, 5, 4, 10)

    assert not floored.has_more(Summary(O, 5, 0, 10, ((2, 4),)))
    assert floored.has_more(Summary(O, 5, 0, 10, ((2, 5),)))
