"""One clock has one encoding, and what is no clock is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from state.clocks import codec
from state.clocks.hybrid import Timestamp
from state.clocks.vectors import VersionVector, Writer
from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.types import NodeId
from transport.wire import pack

A, B = Writer(NodeId("a"), 1), Writer(NodeId("b"), 0)

writers = st.builds(Writer, st.sampled_from(["a", "b", "n-1", "x" * 63]).map(NodeId), st.integers(0, 2**37 - 1))
vectors = st.dictionaries(writers, st.integers(1, 2**53 - 1), max_size=12).map(VersionVector)


@given(vectors)
def test_vectors_survive_their_encoding(vector: VersionVector) -> None:
    """Decoding gives the vector back, and encoding again the same bytes."""
    data = codec.encode_vector(vector)
    assert codec.decode_vector(data) == vector
    assert codec.encode_vector(codec.decode_vector(data)) == data
    assert len(data) <= codec.VECTOR_BYTES_MAX


def test_the_encoding_is_compact() -> None:
    """An entry costs its node's name and a dozen bytes."""
    vector = VersionVector({Writer(NodeId(f"node-{number}"), 1_800_000_000): 1000 for number in range(100)})
    assert len(codec.encode_vector(vector)) <= 100 * (7 + 12) + 3


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Whatever arrives, the answer is a vector with that very encoding's meaning, or a protocol error."""
    try:
        vector = codec.decode_vector(data)
    except RemoteProtocolError:
        return
    assert codec.read_vector(codec.vector_fields(vector)) == vector


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "not an array"),
        ([["a", 1, 1]] * 4097, "MessagePack"),
        ([["a", 1]], "not \\[node"),
        ([3], "not \\[node"),
        ([["a", 1, 1], ["a", 1, 2]], "not in order"),
        ([["b", 1, 1], ["a", 1, 2]], "not in order"),
        ([["a", 1, 0]], "counter"),
        ([["a", 1, True]], "counter"),
        ([["a", 1, 2**53]], "counter"),
        ([["a", -1, 1]], "writer is not"),
        ([["a", 2**37, 1]], "writer is not"),
        ([["a", 1.0, 1]], "writer is not"),
        ([[b"a", 1, 1]], "writer is not"),
        ([["Not A Name", 1, 1]], "is not valid"),
    ],
)
def test_what_is_no_vector_is_refused(value: object, reason: str) -> None:
    """Wrong shapes, orders, types and ranges are protocol errors that name the cause."""
    with pytest.raises(RemoteProtocolError, match=reason):
        codec.decode_vector(pack(value))


def test_sizes_are_capped() -> None:
    """Too many bytes are not even decoded, too many writers are neither read nor written."""
    with pytest.raises(RemoteProtocolError, match="exceeds"):
        codec.decode_vector(bytes(codec.VECTOR_BYTES_MAX + 1))
    with pytest.raises(RemoteProtocolError, match="within limits"):
        codec.read_vector([["a", 1, 1]] * (codec.WRITERS_MAX + 1))
    crowd = VersionVector({Writer(NodeId("a"), life): 1 for life in range(codec.WRITERS_MAX + 1)})
    with pytest.raises(LocalProtocolError, match="membership epoch"):
        codec.encode_vector(crowd)


def test_timestamps_are_one_integer() -> None:
    """A packed stamp comes back; anything else is refused."""
    assert codec.read_timestamp(Timestamp(5, 6).packed) == Timestamp(5, 6)
    for nonsense in (None, True, 1.0, -1, 1 << 63):
        with pytest.raises(RemoteProtocolError, match="timestamp"):
            codec.read_timestamp(nonsense)
