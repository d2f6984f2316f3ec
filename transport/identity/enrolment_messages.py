"""The two messages of an enrolment: one request, one answer.  Pure.

Both are MessagePack maps with text keys; unknown keys are ignored.  They are exchanged once, inside mutual TLS in
which the joiner proved to hold the token and the issuer to hold a certificate of the pinned authority.
"""

from __future__ import annotations

from typing import Any, Final

from transport.errors import (
    EnrolmentRefused,
    RemoteProtocolError,
    TokenError,
    TokenExpired,
    TokenUnknown,
    TokenUsed,
    TokenWrongNetwork,
)
from transport.wire import pack, unpack_body

#: A request holds one PKCS#10 request, an answer two certificates: around 1 KiB and 2 KiB.
MESSAGE_BYTES_MAX: Final = 16 * 1024

_VERSION: Final = 1
_NODES_MAX: Final = 64
_TEXT_CHARACTERS_MAX: Final = 500

_CODES: Final[dict[str, type[TokenError]]] = {
    "expired": TokenExpired,
    "used": TokenUsed,
    "wrong-network": TokenWrongNetwork,
    "unknown": TokenUnknown,
    "refused": EnrolmentRefused,
}


def encode_request(signing_request: bytes) -> bytes:
    """The joiner's message."""
    return pack({"version": _VERSION, "request": signing_request})


def decode_request(data: bytes | str) -> bytes:
    """The signing request in the joiner's message.

    Raises:
        EnrolmentRefused: The message is too large, not MessagePack, of another version, or incomplete.
    """
    body = _map(data)
    if body.get("version") != _VERSION:
        raise EnrolmentRefused(f"enrolment version {body.get('version')!r} is not {_VERSION}", hint="use one release")
    request = body.get("request")
    if not isinstance(request, bytes):
        raise EnrolmentRefused("the enrolment message has no certificate request")
    return request


def encode_answer(chain: bytes) -> bytes:
    """The issuer's message when it admits the node."""
    return pack({"version": _VERSION, "chain": chain})


def encode_refusal(error: TokenError) -> bytes:
    """The issuer's message when it does not."""
    code = next((code for code, kind in _CODES.items() if type(error) is kind), "refused")
    message = {"version": _VERSION, "code": code, "message": error.message, "hint": error.hint}
    return pack(message)


def decode_answer(data: bytes | str) -> bytes:
    """The chain (PEM) in the issuer's message.

    Raises:
        TokenError: The issuer refused; the type says why.
    """
    body = _map(data)
    chain = body.get("chain")
    if isinstance(chain, bytes):
        return chain
    code = body.get("code")
    kind = _CODES.get(code, EnrolmentRefused) if isinstance(code, str) else EnrolmentRefused
    raise kind(_text(body.get("message")) or "the issuing node refused", hint=_text(body.get("hint")))


def _map(data: bytes | str) -> dict[str, Any]:
    if not isinstance(data, bytes) or len(data) > MESSAGE_BYTES_MAX:
        raise EnrolmentRefused("the enrolment message is not a small binary message")
    try:
        body = unpack_body(data, nodes_max=_NODES_MAX)
    except RemoteProtocolError as error:
        raise EnrolmentRefused(f"the enrolment message cannot be read: {error.message}") from error
    if not isinstance(body, dict):
        raise EnrolmentRefused("the enrolment message is not a map")
    return body


def _text(value: object) -> str:
    """Text from the other side, fit to be printed on a terminal."""
    if not isinstance(value, str):
        return ""
    return "".join(character for character in value[:_TEXT_CHARACTERS_MAX] if character.isprintable())
