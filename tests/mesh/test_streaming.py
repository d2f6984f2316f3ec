"""Answers in parts between real nodes: sealed over TLS, through a relay, and when either side is gone."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from networks import Networks, networks, runtime, vanish
from support import eventually

from mesh import (
    AgentMessage,
    DeliveryUncertain,
    InvalidMessage,
    RequestTimeout,
    StreamExpected,
    StreamsUnsupported,
    remaining_s,
)
from mesh.messaging.streams import FEATURE
from transport.wire import Kind


@pytest.fixture
async def join(tmp_path: Path) -> AsyncIterator[Networks]:
    """Starts nodes."""
    async with networks(tmp_path) as started:
        yield started


class Words:
    """A handler that says the words of its query, and then goes on saying something for as long as somebody listens."""

    def __init__(self, *, is_endless: bool = False) -> None:
        self.is_endless = is_endless
        self.ended: list[str] = []

    async def __call__(self, message: AgentMessage) -> AsyncIterator[bytes]:
        try:
            for word in message.payload.split():
                yield word
            while self.is_endless:
                yield os.urandom(1_000)
                await asyncio.sleep(0.001)
            self.ended.append("done")
        except BaseException as error:  # closing and cancelling are what is looked at
            self.ended.append(type(error).__name__)
            raise


@pytest.mark.parametrize("sealed", [True, False])
async def test_parts_travel_between_nodes(join: Networks, monkeypatch: pytest.MonkeyPatch, sealed: bool) -> None:
    """Large and small, in order; where payloads are sealed nothing of the stream goes in the clear."""
    a, b = await join.several("a", "b", messages={"end_to_end": sealed})
    words = Words()
    await b.register_agent(7, handler=words)
    await a.wait_for_agent(7)
    link = runtime(a).endpoint.links["b"]  # type: ignore[index]
    kinds: list[int] = []
    send = type(link).send

    def spy(self: object, envelope: tuple[int, ...], *rest: object, **named: object) -> object:
        kinds.append(envelope[0])
        return send(self, envelope, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(type(link), "send", spy)
    said = [os.urandom(size).hex().encode() for size in (1, 30_000, 400_000, 5) * 10]
    async with a.stream(7, b" ".join(said[:2])) as stream:
        assert [part async for part in stream] == said[:2]

    await b.register_agent(8, handler=lambda _: aiter_of(said))
    await a.wait_for_agent(8)
    assert [part async for part in a.stream(8, b"", timeout=20.0)] == said
    monkeypatch.undo()
    assert words.ended == ["done"]
    seen = {int(Kind.MESSAGES), int(Kind.CALLS), int(Kind.SEALED)} & set(kinds)
    assert seen == ({Kind.SEALED} if sealed else {Kind.MESSAGES, Kind.CALLS})
    assert runtime(a).courier.statistics()["streams_read"] == 0


async def aiter_of(parts: list[bytes]) -> AsyncIterator[bytes]:
    """Them, one after the other."""
    for part in parts:
        yield part


async def test_both_forms_meet_on_one_node(join: Networks) -> None:
    """An agent of the asker's own node behaves like any other."""
    net = await join("a")
    words = Words(is_endless=True)
    await net.register_agent(7, handler=words)
    with pytest.raises(StreamExpected):
        await net.request(7, b"x")
    async with net.stream(7, b"one two") as stream:
        assert await anext(stream) == b"one"
    await eventually(lambda: words.ended != [])
    with pytest.raises(RequestTimeout, match="did not end its stream"):
        async for _ in net.stream(7, b"one two", timeout=0.1):
            pass
    with pytest.raises(InvalidMessage):
        net.stream(7, "text")  # type: ignore[arg-type]
    with pytest.raises(InvalidMessage):
        net.stream(7, b"", headers={"k": 1})  # type: ignore[dict-item]


async def test_an_older_node_is_told_apart_by_its_hello(join: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not say that it knows streams is not asked for one."""
    monkeypatch.setattr("mesh.runtime.STREAMS", "something-else")
    b = await join("b")
    monkeypatch.undo()
    a = await join("a")
    await b.register_agent(7, handler=Words())
    await a.wait_for_agent(7)
    with pytest.raises(StreamsUnsupported, match="b, which runs agent 7"):
        await anext(a.stream(7, b"x"))
    await a.register_agent(8, handler=Words())
    await b.wait_for_agent(8)
    assert [part async for part in b.stream(8, b"it can ask")] == [b"it", b"can", b"ask"]
    assert FEATURE == "streams"


async def test_the_time_that_is_left_passes_through_nodes(join: Networks) -> None:
    """A asks B, B asks C for a stream: C's handler knows how long A waits, and ends when A gives up."""
    a, b, c = await join.several("a", "b", "c")
    left_s: list[float | None] = []
    ended: list[bool] = []

    async def last(_: AgentMessage) -> AsyncIterator[bytes]:
        left_s.append(remaining_s())
        try:
            yield b"first"
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def middle(message: AgentMessage) -> bytes:
        return b"".join([part async for part in b.stream(9, message.payload, from_agent=8)])

    await b.register_agent(8, handler=middle)
    await c.register_agent(9, handler=last)
    await asyncio.gather(a.wait_for_agent(8), b.wait_for_agent(9))
    asking = asyncio.create_task(a.request(8, b"x", timeout=30.0))
    await eventually(lambda: len(left_s) == 1)
    assert left_s[0] is not None
    assert 20 < left_s[0] <= 30.01
    asking.cancel()
    await asyncio.wait([asking])
    await eventually(lambda: ended == [True])
    assert runtime(b).courier.statistics()["handlers_given_up"] == 1


@pytest.mark.parametrize("who", ["asker", "answerer"])
async def test_a_side_that_falls_silent_ends_the_stream(join: Networks, who: str) -> None:
    """The other one notices, as it notices every node that fails."""
    a, b = await join.several("a", "b")
    words = Words(is_endless=True)
    await b.register_agent(7, handler=words)
    await a.wait_for_agent(7)
    stream = a.stream(7, b"one", idle_timeout=60.0)
    assert await anext(stream) == b"one"
    await vanish(a if who == "asker" else b)
    if who == "asker":
        await eventually(lambda: words.ended != [], timeout_s=20)
    else:
        with pytest.raises(DeliveryUncertain, match="link to b broke"):
            async for _ in stream:
                pass
    await stream.aclose()


_ASKER = """
import asyncio, sys
from mesh import join_network

async def main():
    async with join_network(node_id="a", data_dir=sys.argv[1], mdns=False, listen="127.0.0.1:0") as net:
        await net.wait_for_agent(7)
        async for part in net.stream(7, b"one"):
            print("part", flush=True)
            await asyncio.sleep(0.01)

asyncio.run(main())
"""


@pytest.mark.allow_blocking("subprocess waits for exec, about a millisecond, and knows no other way")
async def test_an_asker_that_is_killed_is_not_answered_any_more(join: Networks, tmp_path: Path) -> None:
    """Its process is gone, so its link is: the handler ends at once."""
    b = await join("b")
    words = Words(is_endless=True)
    await b.register_agent(7, handler=words)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _ASKER, str(tmp_path / "one"), stdout=PIPE, env=environment
    )
    assert process.stdout is not None
    for _ in range(20):
        assert await asyncio.wait_for(process.stdout.readline(), 20) == b"part\n"
    assert words.ended == []
    process.kill()
    await process.communicate()
    await eventually(lambda: words.ended != [])
    assert runtime(b).courier.statistics()["streams_sent"] == 0
