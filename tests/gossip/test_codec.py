"""The bodies of gossip: what comes out is what went in, and nothing else gets in."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.codec import (
    CLAIMS_MAX,
    ENTRIES_MAX,
    Body,
    BroadcastBody,
    Digest,
    Entry,
    Heartbeat,
    News,
    States,
    Want,
    bare,
    chunks,
    decode,
    decode_broadcast,
    digests,
    encode,
    encode_broadcast,
)
from gossip.config import GossipConfig
from gossip.events import Member, MemberState
from gossip.incarnation import INCARNATION_MAX
from transport.errors import RemoteProtocolError
from transport.types import Address, NodeId
from transport.wire import pack

CONFIG = GossipConfig()

names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,6}[a-z0-9])?", fullmatch=True).map(NodeId)
members = st.builds(
    Member,
    node_id=names,
    incarnation=st.integers(0, INCARNATION_MAX),
    state=st.sampled_from(MemberState),
    addresses=st.lists(st.builds(Address, st.just("10.0.0.1"), st.integers(1, 65_535)), max_size=3).map(tuple),
    meta_version=st.integers(0, 2**53 - 1),
    meta=st.binary(max_size=20),
)
claims = st.lists(members, max_size=5).map(tuple)
bodies = st.one_of(
    st.builds(Heartbeat, st.integers(0, INCARNATION_MAX), st.integers(0, 2**64 - 1), st.integers(0, 99)),
    st.builds(News, claims),
    st.builds(States, claims),
    st.builds(Want, st.lists(names, max_size=5).map(tuple)),
    st.lists(members, max_size=9, unique_by=lambda m: m.node_id).map(lambda found: next(digests(found), None)),
)


@given(bodies)
def test_bodies_survive_the_wire(body: Body | None) -> None:
    """Decoding gives back what was encoded."""
    if body is not None:
        assert decode(encode(body), CONFIG) == body


@given(st.builds(BroadcastBody, names, st.integers(0, INCARNATION_MAX), st.integers(1, 99), st.binary(max_size=99)))
def test_broadcasts_survive_the_wire(body: BroadcastBody) -> None:
    """Decoding gives back what was encoded."""
    assert decode_broadcast(encode_broadcast(body), CONFIG) == body


@given(st.binary(max_size=200))
def test_garbage_is_refused_in_one_way(data: bytes) -> None:
    """Whatever arrives is a body, unknown, or a RemoteProtocolError."""
    try:
        body = decode(data, CONFIG)
    except RemoteProtocolError:
        body = None
    assert body is None or decode(encode(body), CONFIG) == body
    with contextlib.suppress(RemoteProtocolError):
        assert decode_broadcast(data, CONFIG).sequence >= 1


def test_later_versions_may_add() -> None:
    """Unknown types are ignored, and so are further fields of bodies, claims, entries and addresses."""
    claim = ["a", 1, 0, 2, [["h", 1, "more"]], b"m", "more"]

    assert decode(pack([200, "what"]), CONFIG) is None
    assert decode(pack([0, 1, 2, 3, "more"]), CONFIG) == Heartbeat(1, 2, 3)
    expected = Member(NodeId("a"), 1, MemberState.ALIVE, (Address("h", 1),), 2, b"m")
    assert decode(pack([1, [claim], [["b"]], "more"]), CONFIG) == News((expected,), ((NodeId("b"),),))
    entry = Entry(NodeId("a"), 1, MemberState.ALIVE, 2)
    assert decode(pack([2, "", "", [["a", 1, 0, 2, "more"]], "more"]), CONFIG) == Digest("", "", (entry,))


def _claim(**changes: Any) -> list[Any]:
    fields = {"id": "a", "inc": 1, "state": 0, "version": 1, "addresses": [["h", 1]], "meta": b""} | changes
    return [1, [list(fields.values())]]


@pytest.mark.parametrize(
    "body",
    [
        "text",
        [],
        ["0"],
        [True, 1, 2, 3],
        [0, 1, 2],
        [0, -1, 2, 3],
        [0, 2**53, 2, 3],
        [1],
        [1, "claims"],
        [1, [["a", 1]]],
        [1, [["a", 1, 0, 2]]],
        [1, [["a", 1, 0]] * (CLAIMS_MAX + 1)],
        _claim(id="UPPER"),
        _claim(id="a" * 64),
        _claim(id=7),
        _claim(state=4),
        _claim(version=-1),
        _claim(addresses=[["h", 1]] * 17),
        _claim(addresses=[["h", 0]]),
        _claim(addresses=[["", 1]]),
        _claim(addresses=[["a b", 1]]),
        _claim(addresses=[["h"]]),
        _claim(meta="text"),
        _claim(meta=b"m" * (CONFIG.meta_bytes_max + 1)),
        [2, "b", "a", []],
        [2, "b", "", [["a", 1, 0, 1]]],
        [2, "", "a", [["b", 1, 0, 1]]],
        [2, "", "", [["b", 1, 0, 1], ["a", 1, 0, 1]]],
        [2, "", "", [["a", 1, 0]]],
        [4, [1]],
        [4, ["a"] * (ENTRIES_MAX + 1)],
    ],
)
def test_what_is_not_allowed_is_refused(body: object) -> None:
    """Wrong types, ranges, orders and sizes."""
    with pytest.raises(RemoteProtocolError):
        decode(pack(body), CONFIG)


@pytest.mark.parametrize(
    "body", [[], ["a", 1, 0, b""], ["a", 1, 1, "text"], ["A", 1, 1, b""], ["a", 1, 1, b"m" * (1 << 20)], ["a", 1, 1]]
)
def test_wrong_broadcasts_are_refused(body: object) -> None:
    """Wrong types, ranges and sizes."""
    with pytest.raises(RemoteProtocolError):
        decode_broadcast(pack(body), CONFIG)


def test_a_huge_body_is_refused_before_it_is_decoded() -> None:
    """Whatever it holds."""
    with pytest.raises(RemoteProtocolError, match="too large"):
        decode(b"\x00" * (1 << 20), CONFIG)


def test_the_largest_metadata_passes() -> None:
    """One member's metadata always fits a body of its own."""
    large = Member(NodeId("a"), 1, MemberState.ALIVE, (), 1, b"m" * CONFIG.meta_bytes_max)
    parts = list(chunks([large] * 3, CONFIG.sync_body_bytes_max))

    assert [len(part) for part in parts] == [1, 1, 1]
    assert decode(encode(States(parts[0])), CONFIG) == States((large,))
    assert len(encode(States(parts[0]))) < 512 * 1024


def test_many_claims_are_split_by_count() -> None:
    """No body holds more than a receiver takes."""
    parts = list(chunks([Member(NodeId("a"), 1, MemberState.ALIVE)] * (CLAIMS_MAX + 1), 1 << 20))

    assert [len(part) for part in parts] == [CLAIMS_MAX, 1]
    assert list(chunks([], 100)) == []


def test_digests_cover_every_id_without_overlap() -> None:
    """Each body's interval begins where the one before ended; the last is open."""
    found = [Member(NodeId(f"n{index:05}"), 1, MemberState.ALIVE) for index in range(ENTRIES_MAX * 2 + 1)]
    parts = list(digests(reversed(found)))

    assert [len(part.entries) for part in parts] == [ENTRIES_MAX, ENTRIES_MAX, 1]
    assert [part.after for part in parts] == ["", parts[0].upto, parts[1].upto]
    assert parts[-1].upto == ""
    assert all(decode(encode(part), CONFIG) == part for part in parts)
    exact = list(digests(found[:ENTRIES_MAX]))
    assert [part.upto for part in exact] == [""]


def test_bare_claims_carry_no_details() -> None:
    """A suspicion is small whatever the member's metadata."""
    full = Member(NodeId("a"), 1, MemberState.ALIVE, (Address("h", 1),), 4, b"m" * 1000)

    assert len(encode(News((bare(full),)))) < 20
