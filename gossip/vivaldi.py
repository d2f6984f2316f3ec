"""Network coordinates: how far two nodes are from each other, without their ever having measured it.

Vivaldi (Dabek, Cox, Kaashoek, Morris 2004): every node has a place in a space of eight dimensions and is drawn towards
or pushed away from each node that it measures a round trip to, until distances in the space are round trips in the
network.  *Height* is what every packet of a node pays before it reaches the space at all (its access line).  This
follows serf's client, with its constants, whose performance tests are ours: a median filter against single slow
round trips; an *adjustment* from the latest errors for what the space cannot express (Lee, Guha, Zhang, Saltz 2010);
and a weak *gravity* that keeps the whole from drifting away (Ledlie, Gardner, Seltzer 2007).

A coordinate travels as eleven half-precision floats, in milliseconds: 22 bytes.  Half precision has 11 bits, which is
far below the error that Vivaldi itself has.
"""

# core: no I/O

from __future__ import annotations

import math
import random
import struct
from dataclasses import dataclass
from typing import Final

from transport.errors import RemoteProtocolError
from transport.types import NodeId

DIMENSIONS: Final = 8
ERROR_MAX: Final = 1.5
"""The error of a coordinate that nothing is known of."""
_ERROR_GAIN: Final = 0.25  # c_e of the paper
_FORCE_GAIN: Final = 0.25  # c_c of the paper
_ADJUSTMENT_WINDOW: Final = 20
_HEIGHT_MIN_S: Final = 10e-6
_FILTER_SIZE: Final = 3
_GRAVITY_RHO_S: Final = 150.0
_ZERO: Final = 1e-6
ROUND_TRIP_S_MAX: Final = 10.0
#: Beyond this nothing on Earth is, and half precision ends.
_PLACE_S_MAX: Final = 60.0

_PACKED: Final = struct.Struct(f"<{DIMENSIONS + 3}e")
_MS: Final = 1000.0


@dataclass(frozen=True, slots=True)
class Coordinate:
    """A place; all in seconds but ``error``, which is a ratio."""

    place: tuple[float, ...] = (0.0,) * DIMENSIONS
    height: float = _HEIGHT_MIN_S
    error: float = ERROR_MAX
    adjustment: float = 0.0

    def distance_s(self, other: Coordinate) -> float:
        """The round trip to expect between the two."""
        raw = self.raw_distance_s(other)
        adjusted = raw + self.adjustment + other.adjustment
        return adjusted if adjusted > 0.0 else raw

    def raw_distance_s(self, other: Coordinate) -> float:
        """The same without the adjustments."""
        return math.dist(self.place, other.place) + self.height + other.height


_ORIGIN: Final = Coordinate()


def pack_coordinate(coordinate: Coordinate) -> bytes:
    """The 22 bytes that travel."""
    place = [value * _MS for value in coordinate.place]
    return _PACKED.pack(*place, coordinate.height * _MS, coordinate.error, coordinate.adjustment * _MS)


def unpack_coordinate(data: bytes) -> Coordinate:
    """Read what :func:`pack_coordinate` wrote.

    Raises:
        RemoteProtocolError: It is not a coordinate, or of a place that cannot be.
    """
    if len(data) != _PACKED.size:
        raise RemoteProtocolError(f"coordinate of {len(data)} bytes is not of {_PACKED.size}")
    values = _PACKED.unpack(data)
    if not all(math.isfinite(value) and abs(value) <= _PLACE_S_MAX * _MS for value in values):
        raise RemoteProtocolError("coordinate is not finite or too far away")
    *place, height, error, adjustment = values
    if height < 0.0 or not 0.0 <= error <= ERROR_MAX:
        raise RemoteProtocolError("coordinate's height or error is out of range")
    return Coordinate(tuple(value / _MS for value in place), max(height / _MS, _HEIGHT_MIN_S), error, adjustment / _MS)


class Vivaldi:
    """One node's own coordinate.

    Args:
        rng: For the direction in which two nodes at the same place part.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.coordinate = Coordinate()
        self._samples = [0.0] * _ADJUSTMENT_WINDOW
        self._next_sample = 0
        # The latest round trips of each peer; entries are dropped with :meth:`forget`.
        self._recent: dict[NodeId, list[float]] = {}

    def observe(self, peer: NodeId, other: Coordinate, round_trip_s: float) -> None:
        """Take one measured round trip to ``peer``, which says that it is at ``other``.

        Implausible round trips (negative, or above ten seconds) are left out.
        """
        if not 0.0 <= round_trip_s <= ROUND_TRIP_S_MAX:
            return
        filtered_s = max(self._filter(peer, round_trip_s), _ZERO)
        self._attract(other, filtered_s)
        self._adjust(other, filtered_s)
        distance_s = _ORIGIN.distance_s(self.coordinate)
        self._push(-((distance_s / _GRAVITY_RHO_S) ** 2), _ORIGIN)
        if not all(map(math.isfinite, (*self.coordinate.place, self.coordinate.height))) or (
            max(map(abs, self.coordinate.place)) > _PLACE_S_MAX / 2 or self.coordinate.height > _PLACE_S_MAX / 2
        ):
            self.coordinate = Coordinate()

    def forget(self, peer: NodeId) -> None:
        """The peer is gone."""
        self._recent.pop(peer, None)

    def _filter(self, peer: NodeId, round_trip_s: float) -> float:
        recent = self._recent.setdefault(peer, [])
        recent.append(round_trip_s)
        if len(recent) > _FILTER_SIZE:
            del recent[0]
        return sorted(recent)[len(recent) // 2]

    def _attract(self, other: Coordinate, round_trip_s: float) -> None:
        me = self.coordinate
        distance_s = me.distance_s(other)
        wrongness = abs(distance_s - round_trip_s) / round_trip_s
        weight = me.error / max(me.error + other.error, _ZERO)
        error = _ERROR_GAIN * weight * wrongness + me.error * (1.0 - _ERROR_GAIN * weight)
        self.coordinate = Coordinate(me.place, me.height, min(error, ERROR_MAX), me.adjustment)
        self._push(_FORCE_GAIN * weight * (round_trip_s - distance_s), other)

    def _adjust(self, other: Coordinate, round_trip_s: float) -> None:
        self._samples[self._next_sample] = round_trip_s - self.coordinate.raw_distance_s(other)
        self._next_sample = (self._next_sample + 1) % _ADJUSTMENT_WINDOW
        limit = _PLACE_S_MAX / 2
        adjustment = sum(self._samples) / (2.0 * _ADJUSTMENT_WINDOW)
        me = self.coordinate
        self.coordinate = Coordinate(me.place, me.height, me.error, max(-limit, min(limit, adjustment)))

    def _push(self, force: float, other: Coordinate) -> None:
        me = self.coordinate
        direction, distance = self._direction(me.place, other.place)
        place = tuple([a + u * force for a, u in zip(me.place, direction, strict=True)])
        height = me.height
        if distance > _ZERO:
            height = max((height + other.height) * force / distance + height, _HEIGHT_MIN_S)
        self.coordinate = Coordinate(place, height, me.error, me.adjustment)

    def _direction(self, here: tuple[float, ...], there: tuple[float, ...]) -> tuple[list[float], float]:
        """The unit vector from ``there`` to ``here`` and their distance; any direction where they coincide."""
        apart = [a - b for a, b in zip(here, there, strict=True)]
        distance = math.hypot(*apart)
        if distance > _ZERO:
            return [value / distance for value in apart], distance
        anywhere = [self._rng.uniform(-1.0, 1.0) for _ in apart]
        length = max(math.hypot(*anywhere), _ZERO)
        return [value / length for value in anywhere], 0.0
