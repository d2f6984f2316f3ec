"""Queries that wait for their response, by sequence.

One timer watches them all: one for each would be a tenth of what a request costs.  It runs when the earliest deadline
comes, so a call may end a moment late, and many calls cost few looks at all of them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final

from mesh.errors import RemoteError, UnknownAgent

from .body import ERROR_UNKNOWN_AGENT, F_CORRELATION, F_FLAGS, F_PAYLOAD, FLAG_ERROR, Message, decode_error
from .dialogue import Dialogue

#: How much later than its deadline a call may end.
EXPIRY_STEP_S: Final = 0.005


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
        self._expiry_at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def add(self, sequence: int, dialogue: Dialogue, timeout_s: float) -> asyncio.Future[bytes]:
        """Wait for the response to a query; the future ends with it, with its error, or with ``TimeoutError``."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes] = loop.create_future()
        deadline = loop.time() + timeout_s
        self[sequence] = Call(future, dialogue, deadline)
        if deadline < self._expiry_at:
            self._expire_at(deadline)
        return future

    def settle(self, dialogue: Dialogue, response: Message) -> bool:
        """A response arrived; ``False``: nobody waits for it.

        Raises:
            RemoteProtocolError: It is an error that cannot be read.
        """
        correlation = response[F_CORRELATION] if len(response) > F_CORRELATION else None
        call = self.get(correlation) if correlation is not None else None
        # Only the node that was asked can answer: a sequence is easy to guess.
        if call is None or call.dialogue is not dialogue or call.future.done():
            return False
        if not response[F_FLAGS] & FLAG_ERROR:
            call.future.set_result(response[F_PAYLOAD])
            return True
        code, kind, text = decode_error(response[F_PAYLOAD])
        call.future.set_exception(UnknownAgent(text) if code == ERROR_UNKNOWN_AGENT else RemoteError(text, kind=kind))
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
        if self._timer is not None:
            self._timer.cancel()

    def _expire_at(self, deadline: float) -> None:
        """Look for calls that are over at ``deadline``, and not before unless a shorter one comes."""
        self.close()
        self._expiry_at = deadline
        self._timer = asyncio.get_running_loop().call_at(deadline, self._expire)

    def _expire(self) -> None:
        now = asyncio.get_running_loop().time()
        self._expiry_at, self._timer = math.inf, None
        earliest = math.inf
        for call in self.values():
            if call.deadline > now:
                earliest = min(earliest, call.deadline)
            elif not call.future.done():
                call.future.set_exception(TimeoutError())
        if earliest < math.inf:
            self._expire_at(max(earliest, now + EXPIRY_STEP_S))
