"""Network coordinates: serf's performance tests, and what travels."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable

import pytest

from gossip.vivaldi import Coordinate, Vivaldi, pack_coordinate, unpack_coordinate
from transport.errors import RemoteProtocolError
from transport.types import NodeId

Truth = Callable[[int, int], float]


def simulate(nodes: int, truth: Truth, cycles: int = 1000) -> tuple[float, float]:
    """serf's Simulate and Evaluate: the average and the worst relative error of the estimated round trips."""
    rng = random.Random(2)  # serf fixes its seed as well
    clients = [Vivaldi(rng) for _ in range(nodes)]
    for _ in range(cycles):
        for i, client in enumerate(clients):
            j = rng.randrange(nodes)
            if i != j:
                client.observe(NodeId(f"n{j}"), clients[j].coordinate, truth(min(i, j), max(i, j)))
    errors = []
    for i in range(nodes):
        for j in range(i + 1, nodes):
            actual = truth(i, j)
            errors.append(abs(clients[i].coordinate.distance_s(clients[j].coordinate) - actual) / actual)
    return sum(errors) / len(errors), max(errors)


def line(i: int, j: int) -> float:
    """Nodes on a line, 10 ms apart."""
    return (j - i) * 0.010


def grid(i: int, j: int) -> float:
    """Five rows of five."""
    return 0.010 * math.hypot(j % 5 - i % 5, j // 5 - i // 5)


def split(i: int, j: int) -> float:
    """Two places of 1 ms, 10 ms from each other."""
    return 0.001 + (0.010 if (i <= 12) != (j <= 12) else 0.0)


def circle(i: int, j: int) -> float:
    """The first node is in the middle, and twice as far from everybody as the circle suggests: that is height."""
    if i == 0:
        return 2 * 0.1
    angle = [2 * math.pi * node / 25 for node in (i, j)]
    return 0.1 * math.hypot(math.cos(angle[0]) - math.cos(angle[1]), math.sin(angle[0]) - math.sin(angle[1]))


_draw = random.Random(7)
_drawn = {(i, j): abs(_draw.gauss(0.1, 0.01)) for i in range(25) for j in range(i + 1, 25)}


@pytest.mark.parametrize(
    ("nodes", "truth", "average", "worst"),
    [
        (10, line, 0.0031, 0.0130),
        (25, grid, 0.0016, 0.0230),
        (25, split, 0.00006, 0.00048),
        (25, lambda i, j: _drawn[i, j], 0.075, 0.33),
    ],
    ids=["line", "grid", "split", "random"],
)
def test_estimates_are_as_good_as_serfs(nodes: int, truth: Truth, average: float, worst: float) -> None:
    """The bars of serf's coordinate/performance_test.go after 1,000 cycles."""
    got_average, got_worst = simulate(nodes, truth)

    assert got_average <= average
    assert got_worst <= worst


def test_a_node_behind_a_slow_access_line_has_height() -> None:
    """What every packet of a node pays is not a place in the space."""
    average, worst = simulate(25, circle)

    assert average < 0.05
    assert worst < 0.25


def test_one_slow_round_trip_is_filtered() -> None:
    """The median of three does not see it."""
    calm, disturbed = Vivaldi(random.Random(1)), Vivaldi(random.Random(1))
    other = Coordinate((0.05, *(0.0,) * 7))
    for number in range(60):
        calm.observe(NodeId("a"), other, 0.05)
        disturbed.observe(NodeId("a"), other, 3.0 if number == 50 else 0.05)

    assert calm.coordinate == disturbed.coordinate


@pytest.mark.parametrize("round_trip_s", [-0.001, 10.1, math.nan])
def test_implausible_round_trips_are_left_out(round_trip_s: float) -> None:
    """A clock that jumped moves nobody."""
    vivaldi = Vivaldi(random.Random(1))
    vivaldi.observe(NodeId("a"), Coordinate(), round_trip_s)

    assert vivaldi.coordinate == Coordinate()


def test_a_place_that_cannot_be_is_given_up() -> None:
    """Whoever pushes us out of the world makes us start over, not compute with infinities."""
    vivaldi = Vivaldi(random.Random(1))
    far = Coordinate((29.9, *(0.0,) * 7), error=1.5)
    vivaldi.coordinate = Coordinate((29.9999, *(0.0,) * 7), error=1.5)
    vivaldi.observe(NodeId("a"), far, 10.0)

    assert vivaldi.coordinate == Coordinate()


def test_a_forgotten_peer_starts_with_a_fresh_filter() -> None:
    """Its old round trips are those of another process."""
    vivaldi = Vivaldi(random.Random(1))
    vivaldi.observe(NodeId("a"), Coordinate(), 0.1)
    vivaldi.forget(NodeId("a"))
    vivaldi.forget(NodeId("a"))
    assert vivaldi._recent == {}


def test_distance_without_a_usable_adjustment() -> None:
    """An adjustment that would make the distance negative is not applied."""
    near = Coordinate(adjustment=-1.0)

    assert near.distance_s(Coordinate()) == near.raw_distance_s(Coordinate()) == pytest.approx(2e-5)


def test_what_travels_is_close_to_what_was() -> None:
    """22 bytes; half precision is finer than Vivaldi's own error."""
    here = Coordinate((0.0123, -0.2, *(0.001,) * 6), 0.004, 0.3, -0.0007)
    data = pack_coordinate(here)
    there = unpack_coordinate(data)

    assert len(data) == 22
    assert there.place == pytest.approx(here.place, rel=1e-3)
    assert there.distance_s(here) == pytest.approx(here.distance_s(here), rel=0.05)
    assert unpack_coordinate(pack_coordinate(Coordinate())).error == 1.5


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 21,
        struct.pack("<11e", math.nan, *[0.0] * 10),
        struct.pack("<11e", *[0.0] * 8, math.inf, 0.0, 0.0),
        struct.pack("<11e", *[0.0] * 8, -1.0, 0.0, 0.0),
        struct.pack("<11e", *[0.0] * 8, 0.0, 2.0, 0.0),
        struct.pack("<11e", 61_000.0, *[0.0] * 10),
    ],
)
def test_a_place_that_cannot_be_is_refused(data: bytes) -> None:
    """Wrong sizes, infinities, negative heights, errors above the greatest."""
    with pytest.raises(RemoteProtocolError):
        unpack_coordinate(data)
