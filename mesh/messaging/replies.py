"""Streams as their askers see them: what has come, until somebody takes it.

No task reads a stream: parts wait where the courier puts them, within the credit that was given, and the reader wakes
up when one has come.  Every way out of the loop over a stream but its own end gives it up, and the handler at the other
end is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from typing import Self

from mesh.errors import AgentError, RequestTimeout
from transport.types import Priority

from .body import F_CORRELATION, F_FLAGS, F_PAYLOAD, FLAG_END, FLAG_ERROR, FLAG_STREAM, Message
from .calls import error_of
from .deadlines import bounded
from .dialogue import Dialogue
from .notices import GivenUp
from .streams import ReceivingHalf


class Reply:
    """One stream that comes over a dialogue."""

    def __init__(self, replies: Replies, dialogue: Dialogue, given_up: GivenUp, priority: Priority) -> None:
        self.dialogue = dialogue
        self.half = ReceivingHalf()
        self._replies = replies
        self._given_up = given_up
        self._priority = priority
        self._waiter: asyncio.Future[None] | None = None

    @property
    def asked(self) -> str:
        """Who answers, for messages to people."""
        return f"agent {self._given_up.to_agent} on {self.dialogue.node_id}"

    def take(self) -> bytes | None:
        """The next part; ``None``: none has come."""
        part = self.half.take()
        credit = self.half.grant(self._given_up.sequence)
        if credit is not None and self.dialogue.is_open:
            self.dialogue.owe_stream_credit(credit)
        return part

    def received(self, message: Message) -> bool:
        """A response to it; returns whether it was the last one.

        Raises:
            RemoteProtocolError: It is beyond the credit, or an error that cannot be read.
        """
        flags, half = message[F_FLAGS], self.half
        if flags & FLAG_ERROR:
            half.end(error_of(message))
        elif flags & FLAG_END:
            half.end()
        else:
            half.receive(message[F_PAYLOAD])
            if not flags & FLAG_STREAM:
                half.end()  # the one answer of a handler that does not stream
        self.wake()
        return half.has_ended

    def wake(self) -> None:
        """Something has come."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Return when something has come."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def give_up(self) -> None:
        """Nobody reads it any more."""
        if self._replies.pop(self._given_up.sequence, None) is not None:
            self._replies.given_up += 1
            self.dialogue.owe_given_up(self._priority, self._given_up)


class Replies(dict[int, Reply]):
    """The streams that a courier has asked for and that have not ended, by the sequence of their queries."""

    def __init__(self) -> None:
        super().__init__()
        self.given_up = 0

    def add(self, dialogue: Dialogue, given_up: GivenUp, priority: Priority) -> Reply:
        """Expect a stream; ``given_up`` is what to say if nobody wants it any more."""
        reply = self[given_up.sequence] = Reply(self, dialogue, given_up, priority)
        return reply

    def received(self, dialogue: Dialogue, message: Message) -> bool:
        """A response arrived; ``False``: it belongs to none of these.

        Raises:
            RemoteProtocolError: See :meth:`Reply.received`.
        """
        correlation = message[F_CORRELATION] if len(message) > F_CORRELATION else None
        reply = self.get(correlation) if correlation is not None else None
        if correlation is None or reply is None or reply.dialogue is not dialogue:
            return False
        if reply.received(message):
            del self[correlation]
        return True

    def wait_for(self, dialogue: Dialogue) -> bool:
        """Whether a part is to come over this dialogue."""
        return any(reply.dialogue is dialogue for reply in self.values())

    def fail(self, error: Callable[[], Exception], dialogue: Dialogue | None = None) -> None:
        """End the streams of one dialogue, or all, each with an error of its own behind what has come."""
        for sequence, reply in list(self.items()):
            if dialogue is None or reply.dialogue is dialogue:
                del self[sequence]
                reply.half.end(error())
                reply.wake()


class ReplyStream:
    """The parts of an answer as they come; what ``stream`` returns.

    An asynchronous iterator for one reader.  It asks when it is first iterated over.  Leaving the loop early, or any
    error, gives the stream up: the handler at the other end is cancelled.  ``async with`` or :meth:`aclose` do so at a
    certain point; otherwise it happens when nobody holds the iterator any more.

    Args:
        ask: Asks; told how long that, and how long all of it may take, seconds.
        idle_s: How long the next part may take.
        timeout_s: How long all of it may take, from the first iteration; bounded as a request's time is.
    """

    def __init__(self, ask: Callable[[float, float], Awaitable[Reply]], *, idle_s: float, timeout_s: float) -> None:
        self._ask = ask
        self._idle_s = idle_s
        self._timeout_s = timeout_s
        self._deadline = math.inf
        self._reply: Reply | None = None
        self._is_read = False
        self._is_over = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._is_over:
            raise StopAsyncIteration
        if self._is_read:
            raise AgentError("somebody already reads this stream", hint="one reader at a time")
        self._is_read = True
        try:
            part = await self._next()
        except BaseException:  # cancellation as well: nobody may come back for the rest
            self._give_up()
            raise
        finally:
            self._is_read = False
        if part is None:
            self._is_over = True
            raise StopAsyncIteration
        return part

    async def _next(self) -> bytes | None:
        loop = asyncio.get_running_loop()
        if self._reply is None:
            self._loop = loop
            self._timeout_s = bounded(self._timeout_s)
            self._deadline = loop.time() + self._timeout_s
            self._reply = await self._ask(min(self._idle_s, self._timeout_s), self._timeout_s)
        reply = self._reply
        while (part := reply.take()) is None:
            if reply.half.has_ended:
                if reply.half.error is not None:
                    raise reply.half.error
                return None
            until = min(self._deadline, loop.time() + self._idle_s)
            try:
                async with asyncio.timeout_at(until):
                    await reply.wait()
            except TimeoutError:
                raise self._timed_out(reply, is_deadline=until == self._deadline) from None
        return part

    def _timed_out(self, reply: Reply, *, is_deadline: bool) -> RequestTimeout:
        what = f"did not end its stream within {self._timeout_s:.3g} s"
        if not is_deadline:
            what = f"sent no further part within {self._idle_s:.3g} s"
        return RequestTimeout(f"{reply.asked} {what}; it was given up", hint="give it more time")

    def _give_up(self) -> None:
        self._is_over = True
        if self._reply is not None:
            self._reply.give_up()

    async def aclose(self) -> None:
        """Give up what has not come; harmless when the stream has ended."""
        self._give_up()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # The last reference may go in any thread, and after the loop.
        if self._reply is not None and not self._is_over and self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._reply.give_up)
