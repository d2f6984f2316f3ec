"""Asks a running node, without an event loop: a command that prints one answer should start in no time."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from mesh.errors import ControlError, NodeNotRunning, RequestTimeout

from .protocol import (
    LINE_BYTES_MAX,
    TIMEOUT_S_DEFAULT,
    End,
    Failure,
    Item,
    Request,
    Response,
    Result,
    decode_response,
    encode_request,
)

#: The node answers within the request's own time; this is what its answer may take to arrive on top.
_GRACE_S: Final = 2.0


class ControlClient:
    """One connection to the control socket of a running node; a context manager.

    Raises:
        NodeNotRunning: Nobody listens at ``path``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(_GRACE_S)
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise NodeNotRunning(
                f"no node answers at {path}: {error.strerror or error}", hint="start one with `mesh up`"
            ) from error
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; the node cancels what it still does for us."""
        self._file.close()
        self._socket.close()

    def call(self, op: str, *, timeout_s: float = TIMEOUT_S_DEFAULT, **args: Any) -> Any:
        """Ask once.

        Args:
            op: One of :data:`mesh.control.operations.CALLS`, or ``leave``.
            timeout_s: What the node may take.
            **args: As the operation reads them; ``None`` means "not given".

        Raises:
            MeshError: What the node raised, of the same class.
            RequestTimeout: No answer in time.
            ControlError: The connection broke or the answer cannot be read.
        """
        self._send(op, args, timeout_s)
        self._socket.settimeout(timeout_s + _GRACE_S)
        response = self._receive(op)
        if isinstance(response, Result):
            return response.value
        raise self._unexpected(op, response)

    def stream(self, op: str, **args: Any) -> Iterator[Any]:
        """Ask for items until the node ends or the caller stops.

        Raises:
            MeshError: As :meth:`call`.
        """
        self._send(op, args, TIMEOUT_S_DEFAULT)
        self._socket.settimeout(None)
        while True:
            response = self._receive(op)
            if isinstance(response, End):
                return
            if not isinstance(response, Item):
                raise self._unexpected(op, response)
            yield response.value

    def wait_closed(self, timeout_s: float) -> bool:
        """Wait until the node hangs up; returns whether it did in time."""
        self._socket.settimeout(timeout_s)
        try:
            return not self._file.read(1)
        except TimeoutError:
            return False
        except OSError:
            return True

    def _send(self, op: str, args: dict[str, Any], timeout_s: float) -> None:
        given = {key: value for key, value in args.items() if value is not None}
        try:
            self._socket.sendall(encode_request(Request(op, given, timeout_s)))
        except BrokenPipeError:
            return  # it hung up before it was asked; what it said first, a refusal perhaps, is still to be read
        except OSError as error:
            raise ControlError(f"the node at {self._path} hung up: {error.strerror or error}") from error

    def _receive(self, op: str) -> Response:
        try:
            line = self._file.readline(LINE_BYTES_MAX + 1)
        except TimeoutError:
            raise RequestTimeout(
                f"the running node did not answer {op!r} in time",
                hint="it may be overloaded or stopped; try `mesh doctor`",
            ) from None
        except OSError as error:
            raise ControlError(f"the node at {self._path} hung up: {error.strerror or error}", changed=True) from error
        if not line.endswith(b"\n"):
            raise ControlError(
                f"the node at {self._path} hung up without an answer to {op!r}",
                hint="it may have stopped; look at its log",
                changed=True,
            )
        return decode_response(line)

    def _unexpected(self, op: str, response: Response) -> Exception:
        if isinstance(response, Failure):
            return response.error
        return ControlError(f"the node answered {op!r} with something else: {type(response).__name__}")
