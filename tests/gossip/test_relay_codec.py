"""The bodies of relayed links."""

from __future__ import annotations

import pytest

from gossip.relay_codec import PIECE_BYTES_MAX, WINDOW, Accept, Ack, Data, Fin, Open, Reset, Segment, decode, encode
from transport.errors import RemoteProtocolError
from transport.wire import pack


@pytest.mark.parametrize(
    "segment",
    [
        Open(1),
        Accept(2**53 - 1),
        Data(1, 1, 0, 0, more=True, piece=b"x"),
        Data(1, 2**53 - 1, 9, 2**WINDOW - 1, more=False, piece=bytes(PIECE_BYTES_MAX)),
        Ack(1, 5, 2),
        Fin(1, 3, 2, 0, 4411, "not needed"),
        Reset(1),
    ],
    ids=lambda segment: repr(segment)[:44],
)
def test_what_is_encoded_is_decoded(segment: Segment) -> None:
    """Every segment comes out as it went in."""
    assert decode(encode(segment)) == segment


def test_a_long_reason_is_cut() -> None:
    """The text of an end is for people; it is not refused for its length."""
    assert decode(encode(Fin(1, 1, 0, 0, 1000, "x" * 200))) == Fin(1, 1, 0, 0, 1000, "x" * 128)


def test_later_versions_are_ignored() -> None:
    """More fields are dropped; an unknown type is nothing."""
    assert decode(pack([5, 1, "more"])) == Reset(1)
    assert decode(pack([6, 1])) is None


@pytest.mark.parametrize(
    "value",
    [
        [],
        [0],
        [0, -1],
        [0, 2**53],
        [-1, 1],
        [2, 1, 0, 0, 0, False, b""],
        [2, 1, 1, 0, 0, 1, b""],
        [2, 1, 1, 0, 0, False, bytes(PIECE_BYTES_MAX + 1)],
        [2, 1, 1, 0, 0, False, "text"],
        [2, 1, 1, 0, 0, False],
        [3, 1, 0],
        [3, 1, -1, 0],
        [3, 1, 0, -1],
        [3, 1, [0], 0],
        [4, 1, 1, 0, 0, 999, ""],
        [4, 1, 1, 0, 0, 1000, "x" * 129],
        [4, 1, 1, 0, 0, 1000],
    ],
    ids=lambda value: repr(value)[:40],
)
def test_nonsense_is_refused(value: object) -> None:
    """What the protocol does not allow raises, whichever field it is in."""
    with pytest.raises(RemoteProtocolError):
        decode(pack(value))
