"""The two messages of an enrolment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.errors import (
    EnrolmentRefused,
    TokenError,
    TokenExpired,
    TokenUnknown,
    TokenUsed,
    TokenWrongNetwork,
)
from transport.identity.enrolment_messages import (
    MESSAGE_BYTES_MAX,
    decode_answer,
    decode_request,
    encode_answer,
    encode_refusal,
    encode_request,
)
from transport.wire import pack


def test_requests_and_answers_arrive_as_they_were_sent() -> None:
    """Unknown keys, as later versions may add them, are ignored."""
    assert decode_request(encode_request(b"csr")) == b"csr"
    assert decode_answer(encode_answer(b"chain")) == b"chain"
    assert decode_request(pack({"version": 1, "request": b"csr", "more": [1]})) == b"csr"


@pytest.mark.parametrize("kind", [TokenExpired, TokenUsed, TokenWrongNetwork, TokenUnknown, EnrolmentRefused])
def test_refusals_arrive_as_themselves(kind: type[TokenError]) -> None:
    """With their text and hint."""
    with pytest.raises(TokenError) as caught:
        decode_answer(encode_refusal(kind("why", hint="what to do")))
    assert type(caught.value) is kind
    assert str(caught.value) == "why (what to do)"


def test_refusals_without_a_code_of_their_own_are_plain() -> None:
    """Also what a later version might say, or somebody who wants to confuse us."""
    with pytest.raises(EnrolmentRefused):
        decode_answer(encode_refusal(TokenError("why")))
    answers: tuple[dict[str, object], ...] = ({"code": "novel"}, {"code": []}, {"chain": "text"}, {})
    for answer in answers:
        with pytest.raises(EnrolmentRefused, match="the issuing node refused"):
            decode_answer(pack(answer))


def test_foreign_text_cannot_drive_the_terminal() -> None:
    """Control characters go, and length is bounded."""
    with pytest.raises(TokenUsed) as caught:
        decode_answer(pack({"code": "used", "message": "\x1b[2Jused\n" + "x" * 10_000, "hint": 7}))
    assert caught.value.message.startswith("[2Jusedx")
    assert len(caught.value.message) <= 500
    assert caught.value.hint == ""


@given(st.one_of(st.binary(max_size=100), st.text(max_size=20)))
def test_nonsense_is_refused(data: bytes | str) -> None:
    """Nothing but EnrolmentRefused comes out."""
    for decode in (decode_request, decode_answer):
        with pytest.raises(EnrolmentRefused):
            decode(data)


def test_large_messages_are_not_decoded() -> None:
    """A bomb of empty arrays stays a few kilobytes."""
    for data in (b"\x90" * (MESSAGE_BYTES_MAX + 1), pack({"version": 1, "request": b"", "more": [[]] * 1000})):
        with pytest.raises(EnrolmentRefused):
            decode_request(data)
