"""Queries that wait for their response, by sequence."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from mesh.errors import RemoteError, StreamExpected, UnknownAgent
from transport.errors import RemoteProtocolError

from .body import (
    ERROR_IS_STREAM,
    ERROR_UNKNOWN_AGENT,
    F_CORRELATION,
    F_FLAGS,
    F_PAYLOAD,
    FLAG_END,
    FLAG_ERROR,
    FLAG_STREAM,
    Message,
    decode_error,
)
from .deadlines import Expiry
from .dialogue import Dialogue


class Call:
    """A query that waits for its response until ``deadline``, on the loop's clock."""

    __slots__ = ("deadline", "dialogue", "future")

    def __init__(self, future: asyncio.Future[bytes], dialogue: Dialogue, deadline: float) -> None:
        self.future = future
        self.dialogue = dialogue
        self.deadline = deadline


class Calls(dict[int, Call]):
    """The calls of one courier; whoever adds one takes it out."""

    def __init__(self) -> None:
        super().__init__()
        self._expiry = Expiry(self._expire)

    def add(self, sequence: int, dialogue: Dialogue, timeout_s: float) -> asyncio.Future[bytes]:
        """Wait for the response to a query; the future ends with it, with its error, or with ``TimeoutError``."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes] = loop.create_future()
        deadline = loop.time() + timeout_s
        self[sequence] = Call(future, dialogue, deadline)
        self._expiry.note(deadline)
        return future

    def settle(self, dialogue: Dialogue, response: Message) -> bool:
        """A response arrived; ``False``: nobody waits for it.

        Raises:
            RemoteProtocolError: It is an error that cannot be read, or a part of a stream.
        """
        correlation = response[F_CORRELATION] if len(response) > F_CORRELATION else None
        call = self.get(correlation) if correlation is not None else None
        # Only the node that was asked can answer: a sequence is easy to guess.
        if call is None or call.dialogue is not dialogue or call.future.done():
            return False
        flags = response[F_FLAGS]
        if flags & FLAG_ERROR:
            call.future.set_exception(error_of(response))
        elif flags & (FLAG_STREAM | FLAG_END):
            raise RemoteProtocolError("peer answered a request with a stream that nobody asked for")
        else:
            call.future.set_result(response[F_PAYLOAD])
        return True

    def wait_for(self, dialogue: Dialogue) -> bool:
        """Whether a response is to come over this dialogue."""
        return any(call.dialogue is dialogue for call in self.values())

    def fail(self, error: Callable[[], Exception], dialogue: Dialogue | None = None) -> None:
        """End the calls of one dialogue, or all, each with an error of its own."""
        for call in self.values():
            if (dialogue is None or call.dialogue is dialogue) and not call.future.done():
                call.future.set_exception(error())

    def close(self) -> None:
        """Watch them no longer."""
        self._expiry.close()

    def _expire(self, now: float) -> float:
        earliest = math.inf
        for call in self.values():
            if call.deadline > now:
                earliest = min(earliest, call.deadline)
            elif not call.future.done():
                call.future.set_exception(TimeoutError())
        return earliest


def error_of(response: Message) -> Exception:
    """What a response with ``FLAG_ERROR`` says, as an error to raise.

    Raises:
        RemoteProtocolError: It cannot be read.
    """
    code, kind, text = decode_error(response[F_PAYLOAD])
    if code == ERROR_UNKNOWN_AGENT:
        return UnknownAgent(text)
    if code == ERROR_IS_STREAM:
        return StreamExpected(text, kind=kind, hint="read it with stream()")
    return RemoteError(text, kind=kind)
