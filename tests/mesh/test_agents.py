"""One agent: lanes, workers, its inbox and its end."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from typing import Any

import pytest
from couriers import FakeLink, World, as_link, command, query
from support import eventually

from mesh import agents as agents_module
from mesh.agents import AgentHandle, Delivery, Handler, LocalAgent
from mesh.errors import AgentError
from mesh.messaging.body import FLAG_ACK
from mesh.messaging.dialogue import Dialogue, IncomingFlow
from mesh.types import AgentInfo, AgentMessage, MessageType

INFO = AgentInfo(7, "here")


class Recorder:
    """Outcomes that are only kept."""

    def __init__(self) -> None:
        self.returned: list[object] = []
        self.raised: list[BaseException] = []
        self.dropped: list[str] = []
        self.ended: list[tuple[str, bool]] = []

    def handler_returned(self, delivery: Delivery, result: object) -> None:
        self.returned.append(result)

    def handler_raised(self, delivery: Delivery, error: BaseException) -> None:
        self.raised.append(error)

    def not_handled(self, delivery: Delivery, text: str) -> None:
        self.dropped.append(text)

    def expired(self, *, begun: bool) -> None:
        self.ended.append(("expired", begun))

    def given_up(self, *, begun: bool) -> None:
        self.ended.append(("given up", begun))

    def leaving(self, agent: LocalAgent) -> None:
        self.ended.append(("leaving", False))

    def waited(self, agent: LocalAgent, delivery: Delivery) -> bool:
        return False

    def left(self, agent: LocalAgent) -> None:
        self.ended.append(("left", False))


class Owed(Dialogue):
    """A dialogue that keeps what is owed to the sender."""

    def __init__(self) -> None:
        link = as_link(FakeLink("there", 10))
        super().__init__(link, life=1, now_ms=lambda: 1, dirty=lambda _: None, window_bytes=1 << 20)
        self.delivered: list[int] = []
        self.refused: list[tuple[int, int]] = []

    def owe_delivered(self, sequence: int) -> None:
        self.delivered.append(sequence)

    def owe_refused(self, sequence: int, code: int) -> None:
        self.refused.append((sequence, code))


class Bench:
    """An agent, and a way to deliver to it without a courier."""

    def __init__(self, handler: Handler | None, concurrency: int = 64) -> None:
        self.outcomes = Recorder()
        self.agent = LocalAgent(INFO, handler, concurrency=concurrency, outcomes=self.outcomes)
        self.dialogue = Owed()
        self.flow: IncomingFlow = self.dialogue.incoming(7)
        self.sequence = 0

    def deliver(
        self,
        payload: bytes = b"",
        *,
        sender: int = 1,
        kind: MessageType = MessageType.COMMAND,
        flags: int = 0,
        broadcast: bool = False,
    ) -> bool:
        self.sequence += 1
        raw: list[Any] = [self.sequence, int(kind), sender, 7, flags, payload, 0]
        message = AgentMessage(sender, 7, kind, payload, from_node="there")
        flow = None if broadcast else self.flow
        if flow is not None:
            flow.window.receive(100)
        return self.agent.deliver(Delivery(message, raw, flow, 100))


async def nothing(_: AgentMessage) -> None:
    """A handler that has done its work at once."""


async def test_a_burst_is_handled_by_one_task() -> None:
    """Handlers that do not suspend cost no task each: one worker serves every sender."""
    workers: set[object] = set()

    async def handle(_: AgentMessage) -> None:
        workers.add(asyncio.current_task())

    bench = Bench(handle)
    for sender in range(20):
        for _ in range(5):
            bench.deliver(sender=sender)
    assert bench.agent.waiting == 100
    await eventually(lambda: bench.agent.handled == 100)

    assert len(workers) == 1
    assert bench.flow.window.waiting_bytes == 0
    await bench.agent.close()


async def test_concurrency_is_bounded_and_used() -> None:
    """Suspended handlers of different senders run at once, as many as allowed and no more."""
    running, most = 0, 0
    release = asyncio.Event()

    async def handle(_: AgentMessage) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await release.wait()
        running -= 1

    bench = Bench(handle, concurrency=5)
    for sender in range(20):
        bench.deliver(sender=sender)
    await eventually(lambda: running == 5)
    release.set()
    await eventually(lambda: bench.agent.handled == 20)

    assert most == 5
    await bench.agent.close()


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_a_sender_that_never_pauses_does_not_starve_others(
    monkeypatch: pytest.MonkeyPatch, concurrency: int
) -> None:
    """Though one sender's messages never run out, another's are handled."""
    monkeypatch.setattr(agents_module, "TURN_S", 0.0)
    handled: Counter[int] = Counter()

    async def handle(message: AgentMessage) -> None:
        handled[message.from_agent] += 1
        if message.from_agent == 1:
            bench.deliver(sender=1)

    bench = Bench(handle, concurrency)
    bench.deliver(sender=1)
    bench.deliver(sender=2)
    await eventually(lambda: handled[2])

    assert handled[1]
    await bench.agent.close()


@pytest.mark.parametrize("raises", [False, True])
async def test_handlers_that_never_suspend_do_not_keep_the_loop(monkeypatch: pytest.MonkeyPatch, raises: bool) -> None:
    """A worker gives way now and then, whether its handlers succeed or not."""
    monkeypatch.setattr(agents_module, "TURN_S", 0.0)

    async def handle(_: AgentMessage) -> None:
        bench.deliver()  # there is always another
        if raises:
            raise ValueError("boom")

    bench = Bench(handle)
    bench.deliver()
    for _ in range(5):
        await asyncio.sleep(0)  # would never return

    assert bench.agent.waiting == 1
    await bench.agent.close()


@pytest.mark.parametrize("suspends", [False, True])
@pytest.mark.parametrize("error", [ValueError("boom"), asyncio.CancelledError()])
async def test_a_handler_that_raises_does_not_stop_its_sender(error: BaseException, suspends: bool) -> None:
    """After an exception, CancelledError of its own making included, the sender's next message is handled."""

    async def handle(message: AgentMessage) -> None:
        if suspends:
            await asyncio.sleep(0)
        if message.payload == b"bad":
            raise error

    bench = Bench(handle, concurrency=1)
    for payload in (b"1", b"bad", b"2", b"bad", b"3"):
        bench.deliver(payload)
    await eventually(lambda: bench.agent.handled == 3)

    assert bench.outcomes.raised == [error, error]
    assert bench.agent.waiting == 0
    await bench.agent.close()


async def test_a_handler_runs_as_if_it_were_awaited() -> None:
    """Timeouts, tasks and thrown exceptions work inside a handler as anywhere."""
    seen = []

    async def handle(_: AgentMessage) -> bytes:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            seen.append("timeout")
        failing = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(failing.set_exception, ValueError("inner"))
        try:
            await failing
        except ValueError:
            seen.append("thrown in")
        async with asyncio.TaskGroup() as group:
            task = group.create_task(asyncio.sleep(0, "task"))
        seen.append(task.result())
        return b"done"

    bench = Bench(handle)
    bench.deliver(kind=MessageType.QUERY)
    await eventually(lambda: bench.outcomes.returned)

    assert seen == ["timeout", "thrown in", "task"]
    assert bench.outcomes.returned == [b"done"]
    await bench.agent.close()


async def test_a_handler_may_be_any_awaitable() -> None:
    """A function that returns a future is a handler as well."""

    def handle(_: AgentMessage) -> asyncio.Future[bytes | None]:
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, b"later")
        return future

    bench = Bench(handle)
    bench.deliver(kind=MessageType.QUERY)
    await eventually(lambda: bench.outcomes.returned == [b"later"])
    await bench.agent.close()


async def test_acknowledgements_follow_the_handler() -> None:
    """With a handler, a message is acknowledged when it is taken; only those that ask for it are."""
    bench = Bench(nothing)
    bench.deliver(flags=FLAG_ACK)
    bench.deliver()
    assert bench.dialogue.delivered == []
    await eventually(lambda: bench.agent.handled == 2)

    assert bench.dialogue.delivered == [1]
    await bench.agent.close()


# --- broadcasts -------------------------------------------------------------------------------------------------


async def test_broadcasts_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound broadcasts are dropped and counted; messages under credit are not affected."""
    monkeypatch.setattr(agents_module, "BROADCASTS_WAITING_MAX", 3)
    bench = Bench(None)
    assert [bench.deliver(broadcast=True) for _ in range(5)] == [True, True, True, False, False]
    assert bench.deliver()
    reader = bench.agent.messages()
    await anext(reader)

    assert bench.deliver(broadcast=True)
    assert bench.agent.broadcasts_dropped == 2
    await bench.agent.close()


# --- the inbox --------------------------------------------------------------------------------------------------


async def test_an_inbox_is_read_in_order() -> None:
    """Messages of all senders come as they arrived; credit returns as they are read, not before."""
    bench = Bench(None)
    for number in range(10):
        bench.deliver(b"%d" % number, sender=number % 3, flags=FLAG_ACK)
    assert bench.flow.window.waiting_bytes == 1_000
    assert bench.dialogue.delivered == list(range(1, 11))
    reader = bench.agent.messages()

    assert [(await anext(reader)).payload for _ in range(10)] == [b"%d" % number for number in range(10)]
    assert bench.flow.window.waiting_bytes == 0
    assert bench.dialogue.delivered == list(range(1, 11))
    await bench.agent.close()


async def test_a_reader_waits_and_ends_with_its_agent() -> None:
    """A reader of an empty inbox waits for the next message, and ends when the agent is closed."""
    bench = Bench(None)
    reader = bench.agent.messages()
    waiting = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    bench.deliver(b"x")
    assert (await waiting).payload == b"x"

    ending = asyncio.ensure_future(anext(reader, None))
    await asyncio.sleep(0)
    await bench.agent.close()
    assert await ending is None
    assert [message async for message in reader] == []


async def test_one_reader_at_a_time() -> None:
    """A second reader is refused while there is a first; closed or dropped, it makes room at once."""
    bench = Bench(None)
    first = bench.agent.messages()
    with pytest.raises(AgentError, match="already reads") as refused:
        bench.agent.messages()
    assert refused.value.hint
    await first.aclose()
    await first.aclose()
    assert await anext(first, None) is None

    for number in range(3):
        bench.deliver(b"%d" % number)
        async for message in bench.agent.messages():
            assert message.payload == b"%d" % number
            break
    gc.collect()
    await bench.agent.close()


async def test_an_agent_with_a_handler_has_no_inbox() -> None:
    """Its messages go to the handler; who wants to iterate is told to register without one."""
    bench = Bench(nothing)
    with pytest.raises(AgentError, match="has a handler"):
        bench.agent.messages()


async def test_a_full_inbox_does_not_keep_the_loop() -> None:
    """Whoever reads a long inbox in one go lets others run now and then."""
    bench = Bench(None)
    for _ in range(600):
        bench.deliver()
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(turn) if turns < 1_000 else None

    turn()
    reader = bench.agent.messages()
    for _ in range(600):
        await anext(reader)

    assert 2 <= turns < 100
    turns = 1_000
    await bench.agent.close()


# --- the end ----------------------------------------------------------------------------------------------------


async def test_closing_tells_all_that_waits() -> None:
    """Waiting acknowledged messages are refused, queries dropped with a reason, credit returned; broadcasts just go."""
    forever: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def handle(_: AgentMessage) -> None:
        await forever

    bench = Bench(handle, concurrency=1)
    bench.deliver(b"running")
    await eventually(lambda: bench.agent.waiting == 0)
    bench.deliver(b"waiting", flags=FLAG_ACK)
    bench.deliver(b"waiting")
    bench.deliver(kind=MessageType.QUERY)
    bench.deliver(broadcast=True)

    await bench.agent.close()

    assert bench.dialogue.refused == [(2, 2)]
    assert bench.outcomes.dropped == ["agent 7 was stopped before it took the request"]
    assert bench.flow.window.waiting_bytes == 0
    assert bench.agent.waiting == 0
    bench.deliver()  # late: it waits for nobody, and starts nothing
    await asyncio.sleep(0)
    assert bench.outcomes.raised == []


async def test_a_running_query_is_dropped_with_a_reason() -> None:
    """A handler that is cancelled by the end of its agent leaves no asker without word, and may clean up."""
    cleaned = []

    async def handle(_: AgentMessage) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    bench = Bench(handle)
    bench.deliver(kind=MessageType.QUERY)
    bench.deliver()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await bench.agent.close()

    assert cleaned == [True, True]
    assert bench.outcomes.dropped == ["agent 7 was stopped before it had answered; it may have done the work"]
    assert bench.outcomes.raised == []


@pytest.mark.parametrize("suspends", [False, True])
async def test_a_handler_can_close_its_own_agent(suspends: bool) -> None:
    """The handler that deregisters its agent goes on to its end; what waited is refused and not handled after all."""
    handled: list[bytes] = []

    async def handle(message: AgentMessage) -> None:
        if suspends:
            await asyncio.sleep(0)
        await bench.agent.close()
        handled.append(message.payload)

    bench = Bench(handle, concurrency=1)
    for payload in (b"1", b"2"):
        bench.deliver(payload, flags=FLAG_ACK)
    bench.deliver(b"3", sender=2, flags=FLAG_ACK)
    await eventually(lambda: handled)
    for _ in range(5):
        await asyncio.sleep(0)

    assert handled == [b"1"]
    assert bench.dialogue.delivered == [1]
    assert sorted(bench.dialogue.refused) == [(2, 2), (3, 2)]
    assert bench.flow.window.waiting_bytes == 0


async def test_closing_twice_is_harmless() -> None:
    """A second close finds nothing to do."""
    bench = Bench(nothing)
    bench.deliver()
    await bench.agent.close()
    await bench.agent.close()

    assert bench.agent.waiting == 0


async def test_a_handle_deregisters() -> None:
    """A registration ends by deregister or with its block."""
    calls = []

    async def deregister() -> None:
        calls.append(True)

    handle = AgentHandle(INFO, deregister)
    async with handle as entered:
        assert entered is handle
        assert handle.agent_id == 7
    await handle.deregister()

    assert calls == [True, True]


async def test_queries_overtake_commands_that_wait() -> None:
    """A query waits for a free worker only, not for its sender's earlier commands."""
    gate = asyncio.Event()

    async def handle(message: AgentMessage) -> bytes | None:
        if message.message_type is MessageType.COMMAND:
            await gate.wait()
        return message.payload

    async with World() as world:
        agent = world.agent("b", 7, handle)
        for _ in range(3):
            await world["a"].send(command(7), ack=False, timeout_s=1)
        assert await world["a"].request(query(7, b"x"), timeout_s=1) == b"x"
        gate.set()
        await eventually(lambda: agent.handled == 4)
