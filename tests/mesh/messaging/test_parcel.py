"""A parcel becomes a message in wire order."""

from __future__ import annotations

from mesh.messaging.parcel import Parcel
from mesh.types import MessageType, Priority


def test_empty_fields_are_left_off_at_the_end() -> None:
    """Most messages have seven fields; headers need two more, a group three."""
    plain = Parcel(7, 42, MessageType.COMMAND, b"x", Priority.HIGH, 8)

    assert plain.message(5, 1, 0) == [5, 1, 42, 7, 1, b"x", 0]
    assert plain._replace(headers={"k": "v"}).message(5, 1, 0)[7:] == [None, {"k": "v"}]
    assert plain._replace(group="g").message(5, 1, 0)[7:] == [None, None, "g"]


def test_a_timestamp_counts_from_the_time_of_sending() -> None:
    """What was stamped earlier has a negative offset; without a stamp it is the time of sending."""
    plain = Parcel(7, 42, MessageType.COMMAND, b"x", Priority.HIGH, 8, 1_000)

    assert plain.message(5, 0, 1_500)[6] == -500
    assert plain._replace(timestamp_ms=0).message(5, 0, 1_500)[6] == 0
