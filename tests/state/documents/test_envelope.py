"""Envelopes come back as they were, and nonsense is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from state.clocks.hybrid import Timestamp
from state.clocks.vectors import Dot, VersionVector, Writer
from state.documents.envelope import Envelope, client_of, decode_envelope, encode_envelope, fingerprint, first_lineage
from transport.errors import RemoteProtocolError
from transport.types import NodeId
from transport.wire import BODY_BYTES_MAX, pack

A, B = Writer(NodeId("a"), 1), Writer(NodeId("b"), 2)
FIELDS: list[Any] = ["board", b"12345678", ["a", 1, 7], [["b", 2, 3]], 5 << 16, b"values", b"texts"]


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60), st.integers(1, 2**53 - 1), st.binary()
)
def test_envelopes_come_back(document: str, counter: int, update: bytes) -> None:
    """Decoding gives the envelope back; its size covers its updates."""
    envelope = Envelope(
        document, b"12345678", Dot(A, counter), VersionVector({B: 3}), Timestamp(5, 6), update, b"" if update else b"t"
    )
    assert decode_envelope(encode_envelope(envelope)) == envelope
    assert envelope.size_bytes > len(update)


def test_later_fields_are_ignored() -> None:
    """A newer version may say more."""
    assert decode_envelope(pack([*FIELDS, "new"])) == decode_envelope(pack(FIELDS))


@pytest.mark.parametrize(
    ("position", "value", "reason"),
    [
        (0, "", "name"),
        (0, b"board", "name"),
        (0, "x" * 256, "name"),
        (1, b"1234567", "lineage"),
        (1, "12345678", "lineage"),
        (2, ["a", 1], "dot"),
        (2, None, "dot"),
        (2, ["a", 1, 0], "counter"),
        (2, ["A!", 1, 1], "not valid"),
        (3, [["b", 2, 0]], "counter"),
        (4, -1, "timestamp"),
        (5, "values", "no update"),
        (6, None, "no update"),
    ],
)
def test_nonsense_is_refused(position: int, value: object, reason: str) -> None:
    """A field of the wrong type or range is a protocol error that says which."""
    fields = [*FIELDS]
    fields[position] = value
    with pytest.raises(RemoteProtocolError, match=reason):
        decode_envelope(pack(fields))


def test_shapes_and_sizes_are_checked() -> None:
    """No array, too few or too many fields, no update at all, too many bytes."""
    for value in (None, FIELDS[:6], [*FIELDS, *range(10)]):
        with pytest.raises(RemoteProtocolError, match="array of seven"):
            decode_envelope(pack(value))
    with pytest.raises(RemoteProtocolError, match="no update"):
        decode_envelope(pack([*FIELDS[:5], b"", b""]))
    with pytest.raises(RemoteProtocolError, match="exceeds"):
        decode_envelope(bytes(BODY_BYTES_MAX + 1))


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Whatever arrives, the answer is an envelope or a protocol error."""
    try:
        envelope = decode_envelope(data)
    except RemoteProtocolError:
        return
    assert decode_envelope(encode_envelope(envelope)) == envelope


def test_fingerprints_tell_envelopes_apart() -> None:
    """Another writer, number, time or update, or the same bytes as text instead of values, is another envelope."""
    envelope = decode_envelope(pack(FIELDS))
    others = [
        replace(envelope, dot=Dot(B, 7)),
        replace(envelope, dot=Dot(A, 8)),
        replace(envelope, stamp=Timestamp(6)),
        replace(envelope, values=b"valuest", texts=b"exts"),
        replace(envelope, texts=b"other"),
    ]
    assert fingerprint(decode_envelope(encode_envelope(envelope))) == fingerprint(envelope) < 2**128
    assert len({fingerprint(one) for one in (envelope, *others)}) == 6


def test_client_ids_are_computed() -> None:
    """Each writer has its own in each document and lineage, within 53 bits; the first lineage depends on the name."""
    lineage = first_lineage("board")
    clients = {
        client_of(document, some, writer)
        for document in ("board", "plan")
        for some in (lineage, b"12345678")
        for writer in (A, B, Writer(NodeId("a"), 2))
    }
    assert len(clients) == 12
    assert all(0 < client < 2**53 for client in clients)
    assert lineage != first_lineage("plan")
    assert client_of("board", lineage, A) == client_of("board", lineage, Writer(NodeId("a"), 1))
