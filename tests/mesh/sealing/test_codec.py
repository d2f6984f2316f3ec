"""The layout of sealed bodies and statements about keys: what comes back, and what is refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import SealRefused
from mesh.sealing import codec
from mesh.sealing.codec import Answer, Header, Offer, Signed, Unknown
from mesh.sealing.reasons import Reason
from transport.wire import pack, unpack_body

_NAMES = st.text(max_size=63)
_LIVES = st.integers(0, 2**53 - 1)
_OFFERS = st.builds(
    Offer,
    st.lists(st.integers(0, 255), max_size=16).map(tuple),
    _NAMES,
    _NAMES,
    _LIVES,
    _NAMES,
    _LIVES,
    st.binary(min_size=32, max_size=32),
    st.binary(max_size=4_096),
)
_ANSWERS = st.builds(
    Answer,
    st.integers(0, 255),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=80, max_size=80),
    st.binary(max_size=4_096),
)
_OFFER = Offer((1,), "net", "a", 1, "b", 2, bytes(32), b"certificate")
_ANSWER = Answer(1, bytes(32), bytes(80), b"certificate")


@given(_OFFERS, st.binary(max_size=80))
def test_offers_come_back_as_they_went(offer: Offer, signature: bytes) -> None:
    """An offer is read as it was written, and with the very bytes that the signature is over."""
    statement = codec.offer_statement(offer)

    assert codec.decode_keys(codec.encode_offer(statement, signature)) == Signed(offer, statement, signature)


@given(_ANSWERS, st.binary(max_size=80))
def test_answers_come_back_as_they_went(answer: Answer, signature: bytes) -> None:
    """An answer is read as it was written, and with the very bytes that the signature is over."""
    statement = codec.answer_statement(answer)

    assert codec.decode_keys(codec.encode_answer(statement, signature)) == Signed(answer, statement, signature)


@given(st.binary(min_size=8, max_size=8))
def test_unknown_sessions_come_back_as_they_went(session: bytes) -> None:
    """Saying that a session is not known names that session."""
    assert codec.decode_keys(codec.encode_unknown(session)) == Unknown(session)


@given(
    st.builds(
        Header,
        st.integers(0, 255),
        st.integers(0, 4),
        st.binary(min_size=8, max_size=8),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**64 - 1),
    ),
    st.binary(min_size=16),
)
def test_headers_come_back_as_they_went(header: Header, rest: bytes) -> None:
    """The header of a sealed body is its first 22 bytes."""
    assert codec.read_header(codec.HEADER.pack(*header) + rest) == header


@pytest.mark.parametrize("body", [b"", bytes(37), codec.HEADER.pack(32, 5, bytes(8), 0, 0) + bytes(16)])
def test_bodies_without_a_usable_header_are_refused(body: bytes) -> None:
    """One that is too short for header and tag, or of a stream that does not exist, is no sealed body."""
    with pytest.raises(SealRefused) as refusal:
        codec.read_header(body)
    assert refusal.value.reason == Reason.MALFORMED


def test_later_statements_are_ignored() -> None:
    """A kind of statement that a later version may bring is no error."""
    assert codec.decode_keys(pack([4, "whatever", 7])) is None


def test_statements_may_grow_at_the_end() -> None:
    """Fields that a later version adds to an offer or an answer are signed, but not understood."""
    longer = [*unpack_body(codec.offer_statement(_OFFER)), "more"]
    said = codec.decode_keys(codec.encode_offer(pack(longer), b"signature"))
    assert isinstance(said, Signed)
    assert (said.content, said.statement) == (_OFFER, pack(longer))

    longer = [*unpack_body(codec.answer_statement(_ANSWER)), "more"]
    said = codec.decode_keys(codec.encode_answer(pack(longer), b"signature"))
    assert isinstance(said, Signed)
    assert said.content == _ANSWER


def _changed(statement: bytes, index: int, value: object) -> bytes:
    fields = unpack_body(statement)
    fields[index] = value
    return pack(fields)


_OFFER_FIELDS = codec.offer_statement(_OFFER)
_ANSWER_FIELDS = codec.answer_statement(_ANSWER)


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, 1),
        (0, ["1"]),
        (0, [True]),
        (0, [1] * 17),
        (1, b"net"),
        (2, "x" * 64),
        (3, -1),
        (3, 2**53),
        (3, True),
        (4, None),
        (5, "2"),
        (6, bytes(31)),
        (6, bytes(33)),
        (6, "x" * 32),
        (7, "certificate"),
        (7, bytes(4_097)),
    ],
)
def test_offers_with_a_bad_field_are_refused(index: int, value: object) -> None:
    """Each field of an offer has its type and range."""
    with pytest.raises(SealRefused) as refusal:
        codec.decode_keys(codec.encode_offer(_changed(_OFFER_FIELDS, index, value), b""))
    assert refusal.value.reason == Reason.MALFORMED


@pytest.mark.parametrize(
    ("index", "value"),
    [(0, "1"), (0, True), (1, bytes(31)), (1, "x" * 32), (2, bytes(79)), (2, None), (3, "c"), (3, bytes(4_097))],
)
def test_answers_with_a_bad_field_are_refused(index: int, value: object) -> None:
    """Each field of an answer has its type and range."""
    with pytest.raises(SealRefused) as refusal:
        codec.decode_keys(codec.encode_answer(_changed(_ANSWER_FIELDS, index, value), b""))
    assert refusal.value.reason == Reason.MALFORMED


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        bytes(8_193),
        pack({"a": 1}),
        pack([]),
        pack([0, b"", b""]),
        pack([True, _OFFER_FIELDS, b""]),
        pack(["1", _OFFER_FIELDS, b""]),
        pack([1, _OFFER_FIELDS]),
        pack([1, _OFFER_FIELDS, b"", b""]),
        pack([1, _OFFER_FIELDS, bytes(81)]),
        pack([1, _OFFER_FIELDS, "text"]),
        pack([1, _ANSWER_FIELDS, b""]),
        pack([2, _OFFER_FIELDS, b""]),
        pack([1, pack(7), b""]),
        pack([2, pack([1, 2]), b""]),
        pack([1, pack([[1]] * 70), b""]),
        pack([3, bytes(7)]),
        pack([3, bytes(8), b""]),
        pack([3, "x" * 8]),
    ],
)
def test_what_is_no_statement_is_refused(body: bytes) -> None:
    """Anything but the three statements, exactly as long as they are, is malformed."""
    with pytest.raises(SealRefused) as refusal:
        codec.decode_keys(body)
    assert refusal.value.reason == Reason.MALFORMED


_VALUES = st.recursive(
    st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=9) | st.text(max_size=5) | st.none(), st.lists, max_leaves=12
)


@given(st.binary(max_size=200) | _VALUES.map(pack))
def test_no_bytes_break_the_reader(body: bytes) -> None:
    """Whatever comes is read or refused."""
    said: object = None
    with contextlib.suppress(SealRefused):
        said = codec.decode_keys(body)
    assert said is None or isinstance(said, Signed | Unknown)
