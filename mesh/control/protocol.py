"""The lines on the control socket: one JSON object each, request then response.

::

    > {"v":1,"op":"members","args":{},"timeout_s":10}
    < {"v":1,"result":[...]}

    > {"v":1,"op":"listen","args":{"agent":7}}
    < {"v":1,"item":{...}}          any number of them
    < {"v":1,"end":true}            or the client closes

    < {"v":1,"error":{"error":"UnknownAgent","message":"...","hint":"...","changed":false}}

The client and the node are usually one version, but need not be: a node keeps running while its package is
upgraded.  ``v`` is raised when an old reader would misunderstand; unknown keys are ignored.
"""
# core: no I/O

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import mesh.errors
from mesh.errors import ControlError, MeshError

VERSION: Final = 1

#: Longest line either way: the largest message as base64, and its envelope.
LINE_BYTES_MAX: Final = 2 * 1024 * 1024

#: What a request may take when it does not say, and at most.
TIMEOUT_S_DEFAULT: Final = 30.0
TIMEOUT_S_MAX: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks."""

    op: str
    args: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = TIMEOUT_S_DEFAULT


@dataclass(frozen=True, slots=True)
class Result:
    """The one answer."""

    value: Any


@dataclass(frozen=True, slots=True)
class Item:
    """One of several answers."""

    value: Any


@dataclass(frozen=True, slots=True)
class End:
    """No more items."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The request failed; ``error`` is what the node raised."""

    error: MeshError


Response = Result | Item | End | Failure


def encode_request(request: Request) -> bytes:
    """One line, with its line break."""
    return _line({"op": request.op, "args": request.args, "timeout_s": request.timeout_s})


def decode_request(line: bytes) -> Request:
    """Read one line.

    Raises:
        ControlError: It is no request of this version.
    """
    body = _body(line)
    op, args, timeout_s = body.get("op"), body.get("args", {}), body.get("timeout_s", TIMEOUT_S_DEFAULT)
    if not isinstance(op, str) or not isinstance(args, dict):
        raise ControlError("a control request needs an op and args")
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s <= TIMEOUT_S_MAX:
        raise ControlError(f"timeout_s must be above 0 and at most {TIMEOUT_S_MAX:g}")
    return Request(op, args, float(timeout_s))


def encode_response(response: Response) -> bytes:
    """One line, with its line break."""
    match response:
        case Result(value):
            return _line({"result": value})
        case Item(value):
            return _line({"item": value})
        case End():
            return _line({"end": True})
        case _:
            return _line({"error": error_document(response.error)})


def decode_response(line: bytes) -> Response:
    """Read one line.

    Raises:
        ControlError: It is no response of this version.
    """
    body = _body(line)
    if "error" in body:
        return Failure(error_from_document(body["error"]))
    if "result" in body:
        return Result(body["result"])
    if "item" in body:
        return Item(body["item"])
    if body.get("end") is True:
        return End()
    raise ControlError("the running node answered something that is no response")


def error_document(error: BaseException) -> dict[str, Any]:
    """An error as plain data: what ``--json`` prints and what crosses the socket."""
    if isinstance(error, MeshError):
        return {
            "error": type(error).__name__,
            "message": error.message,
            "hint": error.hint,
            "changed": error.changed,
        }
    return {"error": type(error).__name__, "message": str(error) or type(error).__name__, "hint": "", "changed": True}


def error_from_document(document: object) -> MeshError:
    """The error again, of its own class where there is one of that name."""
    if not isinstance(document, dict):
        return ControlError("the running node reported an error that cannot be read")
    name, message = str(document.get("error", "")), str(document.get("message", ""))
    found = getattr(mesh.errors, name, None)
    if not (isinstance(found, type) and issubclass(found, MeshError)):
        found, message = ControlError, f"the running node failed: {name}: {message}"
    # Past the constructors of subclasses, some of which ask for more than crosses the socket.
    error = found.__new__(found, message)
    MeshError.__init__(error, message, hint=str(document.get("hint", "")), changed=bool(document.get("changed")))
    return error


def _line(body: dict[str, Any]) -> bytes:
    text = json.dumps({"v": VERSION, **body}, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    line = text.encode("ascii") + b"\n"
    if len(line) > LINE_BYTES_MAX:
        raise ControlError(
            f"{len(line)} bytes do not fit the control socket, which carries lines of {LINE_BYTES_MAX}",
            hint="send less at once",
        )
    return line


def _body(line: bytes) -> dict[str, Any]:
    if len(line) > LINE_BYTES_MAX:
        raise ControlError(f"a line on the control socket is longer than {LINE_BYTES_MAX} bytes")
    try:
        body = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ControlError("a line on the control socket is not JSON") from error
    if not isinstance(body, dict):
        raise ControlError("a line on the control socket is not a JSON object")
    if body.get("v") != VERSION:
        raise ControlError(
            f"the other side of the control socket speaks version {body.get('v')!r}, this one {VERSION}",
            hint="restart the node after an upgrade, so that node and command are the same version",
        )
    return body
