"""What replicas say to each other, written and read."""

from __future__ import annotations

import pytest

from state.clocks.vectors import VersionVector, Writer
from state.replication.codec import (
    ENVELOPES_MAX,
    Ask,
    Body,
    Offer,
    Page,
    Same,
    decode,
    decode_live,
    encode,
    encode_live,
)
from transport.errors import RemoteProtocolError
from transport.types import NodeId
from transport.wire import BODY_BYTES_MAX, pack

LINEAGE = b"lineage!"
HISTORY = bytes(range(16))
VERSION = VersionVector({Writer(NodeId("a"), 1): 3, Writer(NodeId("b"), 2): 1})


@pytest.mark.parametrize(
    "body",
    [
        Offer("board", LINEAGE, HISTORY),
        Same("board", LINEAGE, HISTORY),
        Ask("board", LINEAGE, HISTORY, VERSION),
        Page("board", LINEAGE, HISTORY, (b"one", b"two"), more=True),
        Page("ü" * 127, LINEAGE, HISTORY, (), more=False),
    ],
)
def test_bodies_come_back(body: Body) -> None:
    """Each step is read as it was written."""
    assert decode(encode(body)) == body


def test_a_comparison_of_equal_replicas_is_small() -> None:
    """An offer and its answer take less than the 200 bytes of the promise, for a name of 50 characters."""
    name = "x" * 50
    assert len(encode(Offer(name, LINEAGE, HISTORY))) + len(encode(Same(name, LINEAGE, HISTORY))) < 200


def test_later_versions_may_add() -> None:
    """Fields at the end are ignored, and unknown steps are nothing."""
    assert decode(pack([0, "board", LINEAGE, HISTORY, "more"])) == Offer("board", LINEAGE, HISTORY)
    assert decode(pack([9, "board", LINEAGE, HISTORY])) is None


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, "not an array"),
        ([0, "board", LINEAGE], "not an array"),
        ([0.0, "board", LINEAGE, HISTORY], "not an array"),
        ([0, "board", LINEAGE, HISTORY, *range(13)], "not an array"),
        ([0, "", LINEAGE, HISTORY], "name"),
        ([0, b"board", LINEAGE, HISTORY], "name"),
        ([0, "x" * 256, LINEAGE, HISTORY], "name"),
        ([0, "board", b"short", HISTORY], "lineage"),
        ([0, "board", "lineage!", HISTORY], "lineage"),
        ([0, "board", LINEAGE, b"short"], "history"),
        ([0, "board", LINEAGE, 7], "history"),
        ([2, "board", LINEAGE, HISTORY], "lacks a field"),
        ([2, "board", LINEAGE, HISTORY, 7], "version vector"),
        ([3, "board", LINEAGE, HISTORY, []], "lacks a field"),
        ([3, "board", LINEAGE, HISTORY, [], 1], "lacks a field"),
        ([3, "board", LINEAGE, HISTORY, {}, True], "not an array of envelopes"),
        ([3, "board", LINEAGE, HISTORY, ["text"], True], "not an array of envelopes"),
        ([3, "board", LINEAGE, HISTORY, [b""] * (ENVELOPES_MAX + 1), True], "not an array of envelopes"),
    ],
)
def test_what_is_no_body_is_refused(fields: object, why: str) -> None:
    """With what is wrong."""
    with pytest.raises(RemoteProtocolError, match=why):
        decode(pack(fields))


def test_bodies_are_bounded() -> None:
    """Before anything is decoded."""
    with pytest.raises(RemoteProtocolError, match="bytes"):
        decode(bytes(BODY_BYTES_MAX + 1))


def test_live_updates_come_back() -> None:
    """An array of envelopes, and nothing else."""
    assert decode_live(encode_live([b"one", b"two"])) == (b"one", b"two")
    with pytest.raises(RemoteProtocolError, match="not an array of envelopes"):
        decode_live(pack([1]))
