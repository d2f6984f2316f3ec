"""The lines on the control socket."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import errors
from mesh.control.protocol import (
    LINE_BYTES_MAX,
    End,
    Failure,
    Item,
    Request,
    Response,
    Result,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
    error_document,
    error_from_document,
)
from mesh.errors import ControlError, MeshError, PeerRefused, RemoteError, UnknownAgent

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.text(), st.dictionaries(st.text(), JSON, max_size=4), st.floats(0.001, 3600))
def test_requests_come_back_as_they_were(op: str, args: dict[str, object], timeout_s: float) -> None:
    """Encoding loses nothing, and a line has exactly one line break."""
    request = Request(op, args, timeout_s)
    line = encode_request(request)
    assert line.count(b"\n") == 1
    assert decode_request(line) == request


@pytest.mark.parametrize("response", [Result([1, {"a": None}]), Result(None), Item("x"), End()])
def test_responses_come_back_as_they_were(response: Response) -> None:
    """Each kind is told from the others."""
    assert decode_response(encode_response(response)) == response


def test_an_error_comes_back_as_its_own_class() -> None:
    """Exit codes and except clauses mean the same on both sides of the socket."""
    sent = UnknownAgent("nobody registered agent 7", hint="`mesh agents` lists them")
    response = decode_response(encode_response(Failure(sent)))
    assert isinstance(response, Failure)
    assert type(response.error) is UnknownAgent
    assert (response.error.message, response.error.hint) == (sent.message, sent.hint)


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_crosses(name: str) -> None:
    """Whatever its constructor asks for, an error class survives the way there and back."""
    kind = getattr(errors, name)
    rebuilt = error_from_document({"error": name, "message": "m", "hint": "h", "changed": True})
    assert type(rebuilt) is kind
    assert str(rebuilt) == "m (h)"
    assert rebuilt.changed is True


def test_errors_with_more_than_a_message_are_documented_without_it() -> None:
    """Extra attributes stay on their side; message and hint say what people need."""
    for error in (PeerRefused("no", code=4403), RemoteError("raised", kind="ValueError")):
        assert error_from_document(error_document(error)).message == error.message


def test_an_unknown_error_class_is_still_an_error() -> None:
    """A newer node may raise what this command does not know."""
    rebuilt = error_from_document({"error": "FutureError", "message": "m"})
    assert type(rebuilt) is ControlError
    assert "FutureError" in str(rebuilt)
    assert type(error_from_document("nonsense")) is ControlError
    assert type(error_from_document({"error": "annotations", "message": "m"})) is ControlError


def test_errors_that_are_not_ours_are_documented_too() -> None:
    """What `--json` prints for a bug has the same shape."""
    assert error_document(ValueError("x")) == {"error": "ValueError", "message": "x", "hint": "", "changed": True}
    assert error_document(KeyError())["message"] == "KeyError"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense\n",
        b"[]\n",
        b'{"v":1}\n',
        b'{"v":1,"op":5}\n',
        b'{"v":1,"op":"x","args":[]}\n',
        b'{"v":1,"op":"x","timeout_s":0}\n',
        b'{"v":1,"op":"x","timeout_s":true}\n',
        b'{"v":1,"op":"x","timeout_s":1e9}\n',
        b'{"v":2,"op":"x"}\n',
        b"[" * 100_000 + b"\n",
        b'{"v":1,"op":"' + b"x" * LINE_BYTES_MAX + b'"}\n',
    ],
)
def test_what_is_no_request_is_refused(line: bytes) -> None:
    """Garbage, wrong types, other versions, deep nesting and long lines are one typed error."""
    with pytest.raises(ControlError):
        decode_request(line)


@pytest.mark.parametrize("line", [b"{}\n", b'{"v":1}\n', b'{"v":1,"end":false}\n'])
def test_what_is_no_response_is_refused(line: bytes) -> None:
    """A node that answers nonsense is an error, not a success."""
    with pytest.raises(ControlError):
        decode_response(line)


def test_another_version_says_what_to_do() -> None:
    """The usual cause is an upgrade under a running node."""
    with pytest.raises(ControlError, match="restart the node"):
        decode_response(json.dumps({"v": 9, "result": 1}).encode() + b"\n")


def test_too_long_a_line_is_not_sent() -> None:
    """The sender finds out, not the receiver."""
    with pytest.raises(MeshError, match="do not fit"):
        encode_response(Result("x" * LINE_BYTES_MAX))
