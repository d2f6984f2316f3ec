"""The half of a courier that answers: responses, errors and streams, on the link that the query came over.

On no other: on a later one the query's sequence could mean another query, because sequences start afresh with each life
of the asker.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine
from typing import Any, Final

from mesh.agents import Delivery, LocalAgent
from mesh.types import MessageType
from transport.clock import Clock
from transport.logs import get_logger
from transport.types import Priority

from .body import (
    ERROR_BAD_RESULT,
    ERROR_HANDLER_RAISED,
    ERROR_IS_STREAM,
    ERROR_STALLED,
    ERROR_STOPPED,
    F_CORRELATION,
    F_FLAGS,
    F_FROM,
    F_SEQUENCE,
    F_TO,
    F_TYPE,
    FLAG_DURABLE,
    FLAG_END,
    FLAG_ERROR,
    FLAG_STREAM,
    PAYLOAD_BYTES_MAX,
    Message,
    encode_error,
)
from .deadlines import Cut
from .dialogue import Dialogue
from .hooks import DurableMessages
from .notices import Credit
from .parcel import Parcel
from .streams import SendingHalf

log = get_logger("mesh.messaging")

_RESPONSE: Final = int(MessageType.RESPONSE)
_QUERY: Final = int(MessageType.QUERY)

# A stream whose handler never waits gives way to the loop after this much.
_TURN_BYTES: Final = 128 * 1024

#: How long a stream may keep its place at an agent that others wait for, while its own asker takes nothing.  Otherwise
#: as many askers that do not read as the agent has places would keep it from everybody else.
STALL_S: Final = 10.0


class StreamAnswer:
    """A stream on its way from a handler to its asker."""

    def __init__(self, dialogue: Dialogue, task: asyncio.Task[Any]) -> None:
        self.dialogue = dialogue
        self.half = SendingHalf()
        self.work = Cut(task)
        self._waiter: asyncio.Future[None] | None = None

    def extend(self, credit: Credit) -> None:
        """The asker takes more."""
        if self.half.extend(credit) and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def give_up(self) -> None:
        """Nobody wants the rest."""
        self.work.cut()

    async def wait_clear(self, is_place_wanted: Callable[[], bool]) -> bool:
        """Return when a part may be sent; ``False``: its asker takes none, and somebody else wants the place."""
        while not self.half.may_send:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(STALL_S):
                    await self._waiter
            except TimeoutError:
                if is_place_wanted():
                    return False
        if self.dialogue.is_congested:
            await self.dialogue.wait_room()
        return True


class Answering:
    """What a courier knows about answering; see :class:`mesh.agents.Outcomes`.

    Args:
        clock: For how often the log is told.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sequence = 0
        self.agents: dict[int, LocalAgent] = {}
        # Given before any link is up, by whoever has a place on disk for it.
        self.durable: DurableMessages | None = None
        self._log_raised_at = -math.inf
        # Streams being answered; bounded by the concurrency of the agents.
        self._answers: dict[tuple[Dialogue, int], StreamAnswer] = {}
        self.counters: dict[str, int] = dict.fromkeys(
            ("dropped_no_link", "handler_errors", "dropped_expired", "dropped_given_up", "handlers_expired",
             "handlers_given_up", "streams_answered", "streams_stalled"), 0
        )  # fmt: skip

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    # --- responses ----------------------------------------------------------------------------------------------

    def _respond(self, dialogue: Dialogue, query_sequence: int, parcel: Parcel, flags: int) -> bool:
        """Respond on the link that the query came over."""
        if not dialogue.is_open:
            self.counters["dropped_no_link"] += 1
            return False
        message = parcel.message(self._next_sequence(), flags, dialogue.base_ms)
        if len(message) > F_CORRELATION:
            message[F_CORRELATION] = query_sequence
        else:
            message.append(query_sequence)
        dialogue.post(message, parcel.priority, parcel.ttl)
        return True

    def _answer(self, dialogue: Dialogue, delivery: Delivery, payload: bytes, flags: int = 0) -> None:
        """As :meth:`_respond`, without a parcel: every answer to a request passes here."""
        if not dialogue.is_open:
            self.counters["dropped_no_link"] += 1
            return
        self._sequence = sequence = self._sequence + 1
        query, raw = delivery.message, delivery.raw
        answer: Message = [sequence, _RESPONSE, raw[F_TO], raw[F_FROM], flags, payload, 0, raw[F_SEQUENCE]]
        dialogue.post(answer, query.priority, query.ttl)

    def _respond_error(
        self, dialogue: Dialogue, query: Message, code: int, kind: str, text: str, priority: Priority
    ) -> None:
        """At the query's own priority, so that it stays behind the parts of a stream that failed."""
        payload = encode_error(code, kind, text)
        parcel = Parcel(query[F_FROM], query[F_TO], MessageType.RESPONSE, payload, priority, 8)
        self._respond(dialogue, query[F_SEQUENCE], parcel, FLAG_ERROR)

    # --- outcomes of handlers -----------------------------------------------------------------------------------

    def handler_returned(self, delivery: Delivery, result: object) -> Coroutine[Any, Any, None] | None:
        """See :class:`mesh.agents.Outcomes`."""
        raw, flow = delivery.raw, delivery.flow
        if raw[F_FLAGS] & FLAG_DURABLE and self.durable is not None:
            self.durable.handled(delivery)
        if raw[F_TYPE] != _QUERY or flow is None:
            return None
        dialogue = flow.dialogue
        if result is None:
            result = b""
        if isinstance(result, bytes) and len(result) <= PAYLOAD_BYTES_MAX:
            self._answer(dialogue, delivery, result)
        elif not isinstance(result, AsyncIterable):
            self._refuse_result(dialogue, delivery, result)
        elif raw[F_FLAGS] & FLAG_STREAM:
            return self._stream(dialogue, delivery, result)
        else:
            text = f"agent {raw[F_TO]} answers with a stream, and a single response was asked for"
            self._respond_error(dialogue, raw, ERROR_IS_STREAM, "", text, delivery.message.priority)
            return _close(result)
        return dialogue.wait_room() if dialogue.is_congested else None

    def _refuse_result(self, dialogue: Dialogue, delivery: Delivery, result: object) -> None:
        self.counters["handler_errors"] += 1
        raw = delivery.raw
        kind = type(result).__name__
        what = f"{kind}, not bytes"
        if isinstance(result, bytes):
            what = f"{len(result)} bytes, and a response carries at most {PAYLOAD_BYTES_MAX}"
        log.error("handler returned what cannot be sent", agent=raw[F_TO], returned=what)
        text = f"the handler of agent {raw[F_TO]} returned {what}"
        self._respond_error(dialogue, raw, ERROR_BAD_RESULT, kind, text, delivery.message.priority)

    def handler_raised(self, delivery: Delivery, error: BaseException) -> None:
        """See :class:`mesh.agents.Outcomes`."""
        self.counters["handler_errors"] += 1
        raw = delivery.raw
        now = self._clock.monotonic()
        if now >= self._log_raised_at:
            # A member that makes a handler raise must not fill the log; the counter has them all.
            self._log_raised_at = now + 1.0
            log.warning("handler raised", agent=raw[F_TO], message_id=delivery.message.message_id, exc_info=error)
        if raw[F_FLAGS] & FLAG_DURABLE and self.durable is not None:
            self.durable.raised(delivery, error)
        if raw[F_TYPE] == _QUERY and delivery.flow is not None:
            kind = type(error).__name__
            text = f"{kind}: {_text_of(error)}"
            priority = delivery.message.priority
            self._respond_error(delivery.flow.dialogue, raw, ERROR_HANDLER_RAISED, kind, text, priority)

    def not_handled(self, delivery: Delivery, text: str) -> None:
        """See :class:`mesh.agents.Outcomes`."""
        if delivery.raw[F_FLAGS] & FLAG_DURABLE and self.durable is not None:
            self.durable.dropped(delivery)
        if delivery.raw[F_TYPE] == _QUERY and delivery.flow is not None:
            priority = delivery.message.priority
            self._respond_error(delivery.flow.dialogue, delivery.raw, ERROR_STOPPED, "", text, priority)

    def expired(self, *, begun: bool) -> None:
        """See :class:`mesh.agents.Outcomes`.  Nobody is told: whoever asked has counted the time as well."""
        self.counters["handlers_expired" if begun else "dropped_expired"] += 1

    def given_up(self, *, begun: bool) -> None:
        """See :class:`mesh.agents.Outcomes`."""
        self.counters["handlers_given_up" if begun else "dropped_given_up"] += 1

    # --- streams ------------------------------------------------------------------------------------------------

    async def _stream(self, dialogue: Dialogue, delivery: Delivery, parts: AsyncIterable[object]) -> None:
        """Answer with a stream, inside the worker's task: a stream counts as a handler that is at work.

        Raises:
            asyncio.CancelledError: The agent is stopped; otherwise nothing.
        """
        key = (dialogue, delivery.raw[F_SEQUENCE])
        # A sequence that is used twice is no courier's; whoever did so could not tell the two streams apart either.
        if not dialogue.is_open or key in self._answers:
            self.counters["dropped_no_link"] += not dialogue.is_open
            await _close(parts)
            return
        task = asyncio.current_task()
        assert task is not None
        answer = self._answers[key] = StreamAnswer(dialogue, task)
        self.counters["streams_answered"] += 1
        timer = None
        if delivery.deadline is not None:
            timer = asyncio.get_running_loop().call_at(delivery.deadline, self._stream_expired, answer)
        try:
            try:
                iterator = aiter(parts)
                if await self._send_parts(answer, delivery, iterator):
                    self._answer(dialogue, delivery, b"", FLAG_END)
            finally:
                if timer is not None:
                    timer.cancel()
                del self._answers[key]
                answer.work.over()
        except asyncio.CancelledError as error:
            if task.cancelling():
                self.not_handled(delivery, f"agent {delivery.raw[F_TO]} was stopped in the middle of its stream")
                raise
            if not answer.work.is_cut:
                self.handler_raised(delivery, error)
        except Exception as error:  # noqa: BLE001 - whatever an application's code raises
            self.handler_raised(delivery, error)
        finally:
            await _close(parts)

    async def _send_parts(self, answer: StreamAnswer, delivery: Delivery, iterator: AsyncIterator[object]) -> bool:
        """Send part after part; ``False``: it was ended otherwise than by its handler."""
        burst_bytes = 0
        while True:
            if not await answer.wait_clear(lambda: self._is_wanted(delivery.raw[F_TO])):
                text = (
                    f"the stream of agent {delivery.raw[F_TO]} was not read for {STALL_S:g} s, and others wait for it"
                )
                priority = delivery.message.priority
                self.counters["streams_stalled"] += 1
                self._respond_error(answer.dialogue, delivery.raw, ERROR_STALLED, "", text, priority)
                return False
            if burst_bytes >= _TURN_BYTES:
                burst_bytes = 0
                await asyncio.sleep(0)
            try:
                part = await anext(iterator)
            except StopAsyncIteration:
                return not answer.work.is_cut
            if answer.work.is_cut:  # and its handler would not have it
                return False
            if not isinstance(part, bytes) or len(part) > PAYLOAD_BYTES_MAX:
                self._refuse_result(answer.dialogue, delivery, part)
                return False
            answer.half.sent(part)
            burst_bytes += len(part)
            self._answer(answer.dialogue, delivery, part, FLAG_STREAM)

    def _is_wanted(self, agent_id: int) -> bool:
        agent = self.agents.get(agent_id)
        return agent is not None and agent.waiting > 0

    def _stream_expired(self, answer: StreamAnswer) -> None:
        if not answer.work.is_cut:
            self.expired(begun=True)
            answer.work.cut()

    def _streams_lost(self, dialogue: Dialogue) -> None:
        """The link is gone, and with it whoever wanted these streams."""
        for answer in [answer for answer in self._answers.values() if answer.dialogue is dialogue]:
            answer.give_up()

    def _answers_over(self, dialogue: Dialogue) -> bool:
        """Whether a stream is being sent over this dialogue."""
        return any(answer.dialogue is dialogue for answer in self._answers.values())


async def _close(parts: AsyncIterable[object]) -> None:
    """Let a handler's iterator clean up; one that cannot or fails at it keeps nobody."""
    close = getattr(parts, "aclose", None)
    if close is None:
        return
    try:
        await close()
    except Exception as error:  # an application's code may raise anything
        log.warning("a stream's handler raised while it was closed", exc_info=error)


def _text_of(error: BaseException) -> str:
    """What an application's exception says; it may fail even at that."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ must not keep the asker waiting
        return "(its text cannot be read)"
