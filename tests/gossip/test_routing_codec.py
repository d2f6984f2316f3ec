"""The bodies by which ways are found."""

from __future__ import annotations

import pytest

from gossip.routing_codec import NEIGHBORS_MAX, PATH_MAX, Answer, Ask, Lost, decode, encode
from transport.errors import RemoteProtocolError
from transport.types import NodeId
from transport.wire import pack

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


@pytest.mark.parametrize(
    "body",
    [Ask(1, B, (A,)), Ask(2**53 - 1, B, (A, C)), Answer(7, B, (A, C), 2, (C,)), Answer(7, B, (A,), 0, ()), Lost(B)],
)
def test_what_is_encoded_is_decoded(body: Ask | Answer | Lost) -> None:
    """Every body comes out as it went in."""
    assert decode(encode(body)) == body


def test_later_versions_are_ignored() -> None:
    """More fields are dropped; an unknown type is nothing."""
    assert decode(pack([2, "b", "more"])) == Lost(B)
    assert decode(pack([9, 1])) is None


@pytest.mark.parametrize(
    "value",
    [
        [],
        7,
        [0, 1, "b"],
        [0, -1, "b", ["a"]],
        [0, 2**53, "b", ["a"]],
        [0, 1, "B!", ["a"]],
        [0, 1, "b", []],
        [0, 1, "b", ["a", "a"]],
        [0, 1, "b", [f"n{n}" for n in range(PATH_MAX + 1)]],
        [1, 1, "b", ["a"], PATH_MAX + 1, []],
        [1, 1, "b", ["a"], 0, [f"n{n}" for n in range(NEIGHBORS_MAX + 1)]],
        [1, 1, "b", ["a"], 0],
        [2],
        [2, 5],
        [True, 5],
    ],
    ids=repr,
)
def test_nonsense_is_refused(value: object) -> None:
    """What the protocol does not allow raises, whichever field it is in."""
    with pytest.raises(RemoteProtocolError):
        decode(pack(value))


def test_what_is_too_large_is_refused_unread() -> None:
    """A body has a bound of its own, far below an envelope's."""
    with pytest.raises(RemoteProtocolError, match="too large"):
        decode(bytes(5000))
