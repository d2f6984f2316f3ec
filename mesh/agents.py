"""An agent that runs here: its handler or inbox, and the order in which messages reach it.

Messages of one sending agent are handled one after the other, in the order they were sent.  Messages of
different senders, and queries, run concurrently up to the agent's ``concurrency``.

A task for each message would cost more than everything else together (4 µs of about 2), so there is one for
each *lane* (one sender's run of waiting messages), and a lane's worker goes on to the next waiting lane when its
own is empty.  Only when a handler really suspends, which :meth:`LocalAgent._finish` sees to, is another worker
started for the lanes that wait behind it.
"""

from __future__ import annotations

import asyncio
import functools
import types
import weakref
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Generator, Sequence
from typing import Any, Final, NamedTuple, Protocol

from transport.tasks import TaskScope

from .errors import AgentError
from .messaging.body import F_FLAGS, F_SEQUENCE, F_TYPE, FLAG_ACK, FLAG_DURABLE, REFUSED_STOPPED, Message
from .messaging.deadlines import DEADLINE, QueryKey, Underway
from .messaging.dialogue import Dialogue, IncomingFlow
from .messaging.moves import is_kept
from .types import AgentInfo, AgentMessage, MessageType, Priority

Handler = Callable[[AgentMessage], Awaitable[bytes | AsyncIterator[bytes] | None] | AsyncIterator[bytes]]
"""What an application gives to ``register_agent``.  The result of a query's handler is the response.

An async generator, or whatever returns an asynchronous iterator, answers a query with a stream.  For any other message
an async generator is run to its end, and what it yields is dropped.
"""

# What may wait at one agent outside any credit, that is, broadcasts.  Beyond it they are dropped and counted: a
# broadcast has no one receiver whose slowness could hold its sender back.
BROADCASTS_WAITING_MAX: Final = 10_000

# How long a worker may go on without giving way to the rest of the node, seconds.
TURN_S: Final = 0.005

# How many messages it handles between two looks at the clock.
TURN_MESSAGES: Final = 16

_QUERY: Final = int(MessageType.QUERY)

# The same for a reader of an inbox, in messages.
READ_MAX: Final = 256

# How long a handler may take to clean up once it is cancelled.  One that will not end must not keep the node.
HANDLER_STOP_S: Final = 1.0


class Delivery(NamedTuple):
    """A message on its way into an agent, with what is due to its sender once the agent has it.

    ``flow`` is ``None`` for a broadcast: nobody counts it and nobody is told.  ``cost`` is what it weighs there.
    ``deadline`` is when a query's asker waits no longer, on the loop's clock, if it said so.
    """

    message: AgentMessage
    raw: Message
    flow: IncomingFlow | None
    cost: int = 0
    deadline: float | None = None


class Outcomes(Protocol):
    """Who is told how handlers ended; the courier."""

    def handler_returned(self, delivery: Delivery, result: object) -> Coroutine[Any, Any, None] | None:
        """A query's or a durable message's handler ended, or the reader of an inbox came back for the next message.

        For a query the response is due: ``result`` should be bytes or ``None``, but may be anything.

        Returns:
            Something to await before the next message: the rest of a stream, or room for the response at its link.
        """
        ...

    def handler_raised(self, delivery: Delivery, error: BaseException) -> None:
        """A handler raised."""
        ...

    def not_handled(self, delivery: Delivery, text: str) -> None:
        """A query or a durable message was not handled to the end, because its agent is gone."""
        ...

    def expired(self, *, begun: bool) -> None:
        """The time of a query was over: its handler was cancelled, or if it had not ``begun``, is not called."""
        ...

    def given_up(self, *, begun: bool) -> None:
        """The same, because nobody waits for the answer any more."""
        ...

    def leaving(self, agent: LocalAgent) -> None:
        """An agent is about to be stopped."""
        ...

    def waited(self, agent: LocalAgent, delivery: Delivery) -> bool:
        """That waited for it until it was; ``False``: nobody will send it again, should the agent be elsewhere."""
        ...

    def left(self, agent: LocalAgent) -> None:
        """All that waited for it has been told of."""
        ...


class _Expired(Exception):
    """The time of a query was over before its handler was called."""


# Lanes that were emptied by what their senders took back, before the others are gathered up.
_EMPTIED_MAX: Final = 64


class LocalAgent:
    """One agent of this node.

    Args:
        info: What the network knows of it.
        handler: Called with each message; ``None``: messages wait in the inbox for :meth:`messages`.
        concurrency: How many handler calls may be under way at once.
        outcomes: Told how each ended.
    """

    def __init__(self, info: AgentInfo, handler: Handler | None, *, concurrency: int, outcomes: Outcomes) -> None:
        self.info = info
        self.agent_id = info.agent_id
        self._handler = handler
        self._concurrency = concurrency
        self._outcomes = outcomes
        self._scope = TaskScope(f"agent {info.agent_id}")
        self._lanes: dict[tuple[str, int, int], deque[Delivery]] = {}
        self._waiting_lanes: deque[tuple[str, int, int]] = deque()
        self._emptied = 0
        self._underway = Underway(functools.partial(outcomes.expired, begun=True))
        self._workers = 0
        self._starting = False
        self._inbox: deque[Delivery] = deque()
        self._inbox_filled = asyncio.Event()
        # The queries in the inbox that somebody still waits for.
        self._asked: dict[QueryKey, Dialogue] = {}
        self._reader: weakref.ref[InboxReader] | None = None
        # A durable message that a reader has: it counts as handled when the next one is asked for.
        self._being_read: Delivery | None = None
        self._broadcasts_waiting = 0
        self.broadcasts_dropped = 0
        self.handled = 0
        self._closed = False

    # --- arriving -----------------------------------------------------------------------------------------------

    def deliver(self, delivery: Delivery) -> bool:
        """Take a message; ``False`` if it is a broadcast and too many wait already."""
        if delivery.flow is None:
            if self._broadcasts_waiting >= BROADCASTS_WAITING_MAX:
                self.broadcasts_dropped += 1
                return False
            self._broadcasts_waiting += 1
        if self._handler is None:
            self._put_in_inbox(delivery)
            return True
        message = delivery.message
        # A query gets a lane of its own: it waits for nothing but a free worker.
        own = delivery.raw[F_SEQUENCE] if message.message_type is MessageType.QUERY else -1
        self._queue((message.from_node, message.from_agent, own), (delivery,))
        return True

    def give_up(self, key: QueryKey, dialogue: Dialogue) -> None:
        """Nobody waits for the answer to a query any more: forget it, or cancel its handler, if it is still here."""
        lane = self._lanes.get(key)
        if lane and (flow := lane[0].flow) is not None and flow.dialogue is dialogue:
            flow.taken(lane.popleft().cost)
            self._emptied += 1
            if self._emptied > max(_EMPTIED_MAX, len(self._waiting_lanes) // 2):
                self._drop_empty_lanes()
            self._outcomes.given_up(begun=False)
        elif self._asked.get(key) is dialogue:
            # It stays where it is until the reader comes to it, and so does what it weighs.
            del self._asked[key]
            self._outcomes.given_up(begun=False)
        elif self._underway.give_up(key, dialogue):
            self._outcomes.given_up(begun=True)

    def _drop_empty_lanes(self) -> None:
        """A worker would pass them by; but as long as none is free they must not pile up."""
        self._emptied = 0
        for key in self._waiting_lanes:
            if not self._lanes[key]:
                del self._lanes[key]
        self._waiting_lanes = deque(key for key in self._waiting_lanes if key in self._lanes)

    def deliver_run(self, run: Sequence[Delivery]) -> None:
        """Take messages that one sender sent one after the other, none of them a query or a broadcast."""
        if self._handler is None:
            for delivery in run:
                self._put_in_inbox(delivery)
        else:
            message = run[0].message
            self._queue((message.from_node, message.from_agent, -1), run)

    def _queue(self, key: tuple[str, int, int], deliveries: Sequence[Delivery]) -> None:
        lane = self._lanes.get(key)
        if lane is not None:
            lane.extend(deliveries)
            return
        self._lanes[key] = deque(deliveries)
        self._waiting_lanes.append(key)
        if not self._starting:
            self._start_worker()

    def _put_in_inbox(self, delivery: Delivery) -> None:
        self._inbox.append(delivery)
        if delivery.raw[F_TYPE] == _QUERY and delivery.flow is not None:
            self._asked[_key(delivery)] = delivery.flow.dialogue
        if delivery.flow is not None and delivery.raw[F_FLAGS] & FLAG_ACK:
            delivery.flow.dialogue.owe_delivered(delivery.raw[F_SEQUENCE])
        self._inbox_filled.set()

    # --- handling -----------------------------------------------------------------------------------------------

    def _start_worker(self) -> None:
        if self._waiting_lanes and self._workers < self._concurrency and not self._closed:
            self._workers += 1
            self._starting = True
            self._scope.spawn(self._work(), name="worker")

    async def _work(self) -> None:
        self._starting = False
        handler, taken = self._handler, self._taken
        assert handler is not None
        now = asyncio.get_running_loop().time
        turn_ends = now() + TURN_S
        left = TURN_MESSAGES
        DEADLINE.set(None)  # whoever started this worker may have one
        try:
            while self._waiting_lanes:
                key = self._waiting_lanes.popleft()
                lane = self._lanes[key]
                while lane:
                    delivery = lane.popleft()
                    message, raw, flow, cost, deadline = delivery
                    # As in _taken, without the call: this is where every message passes.
                    if flow is not None and not raw[F_FLAGS] & FLAG_ACK:
                        window = flow.window
                        window.consumed_bytes += cost
                        if window.consumed_bytes >= window.tell_at_bytes:
                            flow.dialogue.owe_credit(flow)
                    else:
                        taken(delivery)
                    room = None
                    try:
                        if deadline is not None:
                            _begin(deadline, now())
                        # The first step by hand: most handlers are done with it.  We are inside the worker's task,
                        # so cancellation, timeouts and context variables behave as with a plain ``await``.
                        answer = handler(message)
                        begin = getattr(answer, "__await__", None)
                        steps = _iterated(answer, raw) if begin is None else begin()
                        yielded = next(steps)
                    except StopIteration as stop:
                        self.handled += 1
                        if raw[F_TYPE] == _QUERY or raw[F_FLAGS] & FLAG_DURABLE:  # as _somebody_waits
                            room = self._outcomes.handler_returned(delivery, stop.value)
                    except _Expired:
                        self._outcomes.expired(begun=False)
                    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - an application's code
                        # Nobody cancels a running worker, so a CancelledError is the handler's own: say, of a task
                        # that it awaited.
                        self._outcomes.handler_raised(delivery, error)
                    else:
                        room = await self._finish(delivery, steps, yielded)
                    if room is not None:
                        self._serve_others()
                        await room
                    if deadline is not None:
                        DEADLINE.set(None)
                    # Handlers that never suspend would keep the loop from everybody else, and a sender that never
                    # pauses would keep the worker from other senders.
                    left -= 1
                    if left <= 0:
                        left = TURN_MESSAGES
                        if now() > turn_ends:
                            await asyncio.sleep(0)
                            turn_ends = now() + TURN_S
                            if self._waiting_lanes:
                                break
                if lane:
                    self._waiting_lanes.append(key)
                else:
                    self._lanes.pop(key, None)  # gone already if the handler closed the agent
        finally:
            self._workers -= 1

    def _serve_others(self) -> None:
        """This worker is about to suspend: let another serve the lanes behind it."""
        if not self._starting:
            self._start_worker()

    async def _finish(
        self, delivery: Delivery, steps: Generator[Any, Any, Any], yielded: object
    ) -> Coroutine[Any, Any, None] | None:
        """See a handler through that has suspended."""
        self._serve_others()
        task = asyncio.current_task()
        assert task is not None
        work = None
        if delivery.raw[F_TYPE] == _QUERY and delivery.flow is not None:
            work = self._underway.begin(task, _key(delivery), delivery.flow.dialogue, delivery.deadline)
        try:
            try:
                result = await _rest(steps, yielded)
            finally:
                if work is not None:
                    self._underway.end(work)
        except asyncio.CancelledError as error:
            if task.cancelling():
                text = f"agent {self.agent_id} was stopped before it had answered; it may have done the work"
                if _somebody_waits(delivery.raw):
                    self._outcomes.not_handled(delivery, text)
                raise
            if work is None or not work.is_cut:
                self._outcomes.handler_raised(delivery, error)
        except Exception as error:  # noqa: BLE001 - whatever an application's code raises
            self._outcomes.handler_raised(delivery, error)
        else:
            self.handled += 1
            if work is None or not work.is_cut:
                return self._outcomes.handler_returned(delivery, result)
        return None

    def _taken(self, delivery: Delivery) -> None:
        """The agent has the message: its sender gets credit back, and an acknowledgement if it waits for one."""
        flow = delivery.flow
        if flow is None:
            self._broadcasts_waiting -= 1
            return
        window = flow.window
        window.consumed_bytes += delivery.cost
        if window.consumed_bytes >= window.tell_at_bytes:
            flow.dialogue.owe_credit(flow)
        raw = delivery.raw
        if raw[F_FLAGS] & FLAG_ACK and self._handler is not None:
            flow.dialogue.owe_delivered(raw[F_SEQUENCE])

    # --- the inbox ----------------------------------------------------------------------------------------------

    def messages(self) -> InboxReader:
        """The messages for an agent without a handler, as they come; ends when the agent is deregistered.

        Raises:
            AgentError: The agent has a handler, or somebody else is reading already.
        """
        if self._handler is not None:
            raise AgentError(
                f"agent {self.agent_id} has a handler, which takes its messages",
                hint="register it without a handler to iterate over its messages",
            )
        if self._reader is not None and self._reader() is not None:
            raise AgentError(
                f"somebody already reads the messages of agent {self.agent_id}",
                hint="one reader at a time: share its iterator, or register another agent",
            )
        reader = InboxReader(self)
        self._reader = weakref.ref(reader)
        return reader

    async def next_message(self) -> AgentMessage | None:
        """The next message of the inbox; ``None`` when there will be no more.  For :class:`InboxReader`."""
        if self._being_read is not None:
            read, self._being_read = self._being_read, None
            self._outcomes.handler_returned(read, None)
        if self.handled % READ_MAX == READ_MAX - 1:
            await asyncio.sleep(0)
        while True:
            while not self._inbox:
                if self._closed:
                    return None
                self._inbox_filled.clear()
                await self._inbox_filled.wait()
            delivery = self._inbox.popleft()
            self._taken(delivery)
            if delivery.raw[F_TYPE] != _QUERY or self._is_asked(delivery):
                break
        self.handled += 1
        if delivery.raw[F_FLAGS] & FLAG_DURABLE:
            self._being_read = delivery
        return delivery.message

    def _is_asked(self, query: Delivery) -> bool:
        """Whether somebody still waits for the answer to a query from the inbox."""
        if query.flow is not None and self._asked.pop(_key(query), None) is None:
            return False
        if query.deadline is not None and query.deadline <= asyncio.get_running_loop().time():
            self._outcomes.expired(begun=False)
            return False
        return True

    def release_reader(self) -> None:
        """Let somebody else read.  For :class:`InboxReader`."""
        self._reader = None

    @property
    def waiting(self) -> int:
        """Messages that have arrived and that the agent has not taken yet."""
        return len(self._inbox) + sum(len(lane) for lane in self._lanes.values())

    def first_waiting(self, flow: IncomingFlow, priorities: int) -> list[tuple[Priority, int]]:
        """Of what waits of a flow, the first sequence of each priority in each lane; queries and durable ones aside.

        Args:
            flow: The flow.
            priorities: How many different ones can be among it.
        """
        node_id = flow.dialogue.node_id
        first: list[tuple[Priority, int]] = []
        for lane in (self._inbox, *(lane for key, lane in self._lanes.items() if key[2] < 0 and key[0] == node_id)):
            seen: list[Priority] = []
            for message, raw, source, _, _ in lane:
                if source is flow and message.priority not in seen and is_kept(raw):
                    seen.append(message.priority)
                    first.append((message.priority, raw[F_SEQUENCE]))
                    if len(seen) == priorities:
                        break
        return first

    # --- end ----------------------------------------------------------------------------------------------------

    async def close(self, *, spare: asyncio.Task[Any] | None = None) -> None:
        """Cancel the running handlers, tell the senders of waiting messages, and end the reader.

        Args:
            spare: A task not to cancel: a handler that leaves the network is at work in it.
        """
        self._closed = True
        self._outcomes.leaving(self)
        self._underway.close()
        try:
            await self._scope.close(timeout_s=HANDLER_STOP_S, spare=spare)
        finally:
            self._let_go()
            self._outcomes.left(self)
            self._inbox_filled.set()

    def _let_go(self) -> None:
        """Tell the senders of what waits."""
        if self._being_read is not None:
            self._outcomes.not_handled(self._being_read, f"agent {self.agent_id} was stopped while it read the message")
            self._being_read = None
        waiting = [*self._inbox, *(delivery for lane in self._lanes.values() for delivery in lane)]
        self._inbox.clear()
        self._asked.clear()
        for lane in self._lanes.values():
            lane.clear()  # the worker holds on to its lane when it is its handler that closes the agent
        self._lanes.clear()
        self._waiting_lanes.clear()
        for delivery in waiting:
            _, raw, flow, cost, _ = delivery
            if flow is None:
                continue
            flow.taken(cost)
            if self._outcomes.waited(self, delivery):
                continue
            if raw[F_FLAGS] & FLAG_ACK and self._handler is not None:
                flow.dialogue.owe_refused(raw[F_SEQUENCE], REFUSED_STOPPED)
            if _somebody_waits(raw):
                self._outcomes.not_handled(delivery, f"agent {self.agent_id} was stopped before it took the request")


def _key(query: Delivery) -> QueryKey:
    message = query.message
    return (message.from_node, message.from_agent, query.raw[F_SEQUENCE])


def _begin(deadline: float, now: float) -> None:
    """A handler is about to be called for somebody who waits until ``deadline``."""
    if deadline <= now:
        raise _Expired
    DEADLINE.set(deadline)


def _iterated(answer: object, raw: Message) -> Generator[Any, Any, object]:
    """What a handler returned that cannot be awaited, as the steps of something that was."""
    if not isinstance(answer, AsyncIterable):
        raise TypeError(f"the handler returned {type(answer).__name__}, which can neither be awaited nor iterated over")
    return (_as_it_is(answer) if raw[F_TYPE] == _QUERY else _run_out(answer)).__await__()


async def _as_it_is(answer: AsyncIterable[object]) -> object:
    return answer


async def _run_out(parts: AsyncIterable[object]) -> None:
    """See a generator through whose parts nobody asked for."""
    async for _ in parts:
        pass


def _somebody_waits(raw: Message) -> bool:
    """Whether how its handler ended has to be told: for a query, or a durable message."""
    return raw[F_TYPE] == _QUERY or bool(raw[F_FLAGS] & FLAG_DURABLE)


class InboxReader:
    """Iterates over the messages of an agent that has no handler; what :meth:`LocalAgent.messages` returns.

    Not a generator, because one that was left with ``break`` would keep its place until the loop had time to close
    it; this one gives it up at once.
    """

    def __init__(self, agent: LocalAgent) -> None:
        self._agent: LocalAgent | None = agent

    def __aiter__(self) -> InboxReader:
        return self

    async def __anext__(self) -> AgentMessage:
        message = None if self._agent is None else await self._agent.next_message()
        if message is None:
            raise StopAsyncIteration
        return message

    async def aclose(self) -> None:
        """Stop reading, so that somebody else can."""
        if self._agent is not None:
            self._agent.release_reader()
            self._agent = None


@types.coroutine
def _rest(steps: Generator[Any, Any, Any], yielded: object) -> Generator[Any, Any, Any]:
    """Await what is left of ``steps``, which has just yielded ``yielded``.

    This is PEP 380's expansion of ``yield from`` without its first step.
    """
    while True:
        try:
            sent = yield yielded
        except BaseException as error:  # noqa: BLE001 - it is passed on into the handler
            resume = functools.partial(steps.throw, error)
        else:
            resume = functools.partial(steps.send, sent)
        try:
            yielded = resume()
        except StopIteration as stop:
            return stop.value


Deregister = Callable[[], Coroutine[Any, Any, None]]


class AgentHandle:
    """What ``register_agent`` returns: the registration, to be ended by :meth:`deregister` or ``async with``."""

    def __init__(self, info: AgentInfo, deregister: Deregister) -> None:
        self.info = info
        self._deregister = deregister

    @property
    def agent_id(self) -> int:
        """The agent's id."""
        return self.info.agent_id

    async def deregister(self) -> None:
        """Take the agent off the network; harmless when it is gone already."""
        await self._deregister()

    async def __aenter__(self) -> AgentHandle:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.deregister()
