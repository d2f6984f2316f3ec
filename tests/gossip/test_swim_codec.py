"""The bodies of probing."""

from __future__ import annotations

import pytest

from gossip.swim_codec import Ack, Ask, Nack, Ping, ProbeBody, decode_probe, encode_probe
from gossip.vivaldi import Coordinate
from transport.errors import RemoteProtocolError
from transport.types import NodeId
from transport.wire import pack

ZERO = Coordinate(height=0.00001)


@pytest.mark.parametrize("body", [Ping(0), Ping(2**53 - 1), Ask(7, NodeId("b")), Ack(7), Nack(7)])
def test_what_is_sent_is_received(body: ProbeBody) -> None:
    """Round trip of every body."""
    assert decode_probe(encode_probe(body)) == body


def test_an_ack_carries_its_senders_place() -> None:
    """In 31 bytes with the body around it."""
    data = encode_probe(Ack(70_000, Coordinate((0.5, *(0.0,) * 7))))
    ack = decode_probe(data)

    assert isinstance(ack, Ack)
    assert ack.coordinate is not None
    assert ack.coordinate.place[0] == 0.5
    assert len(data) == 31


def test_later_versions_may_add() -> None:
    """Unknown types and further fields."""
    assert decode_probe(pack([9])) is None
    assert decode_probe(pack([0, 1, "more"])) == Ping(1)


@pytest.mark.parametrize(
    "raw",
    [
        [],
        ["0", 1],
        [0],
        [0, -1],
        [0, 2**53],
        [1, 1],
        [1, 1, "not a name!"],
        [2, 1],
        [2, 1, "text"],
        [2, 1, b"x"],
        [2, 1, b"x" * 65],
    ],
)
def test_what_is_not_allowed_is_refused(raw: list[object]) -> None:
    """Missing, wrong or oversized fields."""
    with pytest.raises(RemoteProtocolError):
        decode_probe(pack(raw))
