"""The bodies of the overlay: what comes out is what went in, and nothing else gets in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.config import SHUFFLE_MAX, WALK_MAX
from gossip.hyparview_codec import (
    ADDRESSES_MAX,
    Body,
    Disconnect,
    ForwardJoin,
    Join,
    Neighbor,
    Peer,
    Priority,
    Reply,
    Shuffle,
    ShuffleReply,
    decode,
    encode,
)
from transport.errors import RemoteProtocolError
from transport.types import Address, NodeId
from transport.wire import pack

names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,6}[a-z0-9])?", fullmatch=True).map(NodeId)
addresses = st.lists(st.builds(Address, st.just("10.0.0.1"), st.integers(1, 65_535)), max_size=ADDRESSES_MAX).map(tuple)
peers = st.builds(Peer, names, addresses)
paths = st.lists(names, max_size=WALK_MAX).map(tuple)
samples = st.lists(peers, max_size=SHUFFLE_MAX).map(tuple)
ttls = st.integers(0, WALK_MAX)
bodies = st.one_of(
    st.just(Join()),
    st.builds(ForwardJoin, ttls, peers),
    st.builds(Neighbor, st.sampled_from(Priority), st.integers(0, 99)),
    st.builds(Reply, st.booleans(), st.integers(0, 99)),
    st.builds(Disconnect, st.none() | peers),
    st.builds(Shuffle, ttls, paths.map(lambda path: (NodeId("o"), *path)), samples),
    st.builds(ShuffleReply, paths, samples),
)


@given(bodies)
def test_bodies_survive_the_wire(body: Body) -> None:
    """Decoding gives back what was encoded."""
    assert decode(encode(body)) == body


@given(st.binary(max_size=200))
def test_garbage_is_refused_in_one_way(data: bytes) -> None:
    """Whatever arrives is a body, unknown, or a RemoteProtocolError."""
    try:
        body = decode(data)
    except RemoteProtocolError:
        body = None
    assert body is None or decode(encode(body)) == body


def test_later_versions_may_add() -> None:
    """Unknown types are ignored, and so are further fields of bodies and nodes; addresses beyond three are cut."""
    many = [["h", 1]] * 5

    assert decode(pack([200, "what"])) is None
    assert decode(pack([0, "more"])) == Join()
    expected = Peer(NodeId("a"), (Address("h", 1),) * ADDRESSES_MAX)
    assert decode(pack([4, ["a", many, "more"], "more"])) == Disconnect(expected)
    assert len(encode(Disconnect(Peer(NodeId("a"), (Address("h", 1),) * 9)))) < 30


@pytest.mark.parametrize(
    "body",
    [
        "text",
        [],
        [1, 3],
        [1, WALK_MAX + 1, ["a", []]],
        [1, 3, ["A", []]],
        [1, 3, ["a"]],
        [1, 3, ["a", [["h", 0]]]],
        [1, 3, None],
        [2, 3, 1],
        [2, 0, -1],
        [2, 0],
        [3, 1, 1],
        [3, True],
        [4],
        [4, "a"],
        [5, 3, [], []],
        [5, 3, ["a"] * (WALK_MAX + 2), []],
        [5, 3, ["a"], [["a", []]] * (SHUFFLE_MAX + 1)],
        [5, 3, ["a"]],
        [6, ["a"]],
        [6, [1], []],
    ],
)
def test_what_is_not_allowed_is_refused(body: object) -> None:
    """Wrong types, ranges and sizes."""
    with pytest.raises(RemoteProtocolError):
        decode(pack(body))


def test_a_huge_body_is_refused_before_it_is_decoded() -> None:
    """Whatever it holds."""
    with pytest.raises(RemoteProtocolError, match="too large"):
        decode(b"\x00" * 70_000)
