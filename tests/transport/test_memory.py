"""The in-memory network: delay, cuts, resets, and repeatable runs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from links import FAST, LIFE, MemoryBed, Recorder, message
from support import eventually

from transport.errors import HandshakeFailed, ListenError, PeerRefused, PeerUnreachable
from transport.link import CloseReason
from transport.memory import MemoryEndpoint, MemoryNetwork
from transport.types import Lane, network_name, node_id


@pytest.fixture
async def bed(tmp_path: Path) -> AsyncIterator[MemoryBed]:
    """A network in memory."""
    async with MemoryBed(tmp_path) as made:
        yield made


async def test_a_cut_path_holds_frames_back_and_healing_delivers_them(bed: MemoryBed) -> None:
    """As over TCP: nothing is lost while the cut is shorter than the keepalive timeout."""
    a, b = await bed.node("a"), await bed.node("b")
    link = await a.dial(b)
    bed.wire.cut(a.id, b.id, one_way=True)
    for i in range(50):
        link.send(message(b"%d" % i), Lane.NORMAL)
        await asyncio.sleep(0)
    assert not b.handler.received

    bed.wire.heal(a.id, b.id)

    await eventually(lambda: len(b.handler.received) == 50)
    assert [int(envelope.body) for envelope in b.handler.received] == list(range(50))


async def test_a_long_cut_is_noticed_by_both_and_can_be_mended(bed: MemoryBed) -> None:
    """Both time out; a dial during the cut does not answer; after healing a new link opens."""
    a, b = await bed.node("a", config=replace(FAST, dial_timeout_s=0.2)), await bed.node("b")
    await a.dial(b)
    await eventually(lambda: b.handler.opened)
    bed.wire.cut(a.id, b.id)

    await eventually(lambda: a.handler.closed and b.handler.closed)
    assert a.handler.reasons == b.handler.reasons == [CloseReason.TIMED_OUT]
    with pytest.raises(PeerUnreachable, match="within"):
        await a.dial(b)
    bed.wire.heal()
    assert (await a.dial(b)).is_open


async def test_a_reset_is_a_lost_connection(bed: MemoryBed) -> None:
    """Both sides see CONNECTION_LOST at once."""
    a, b = await bed.node("a"), await bed.node("b")
    await a.dial(b)
    await eventually(lambda: b.handler.opened)

    bed.wire.reset(a.id, b.id)

    await eventually(lambda: a.handler.closed and b.handler.closed)
    assert a.handler.reasons == b.handler.reasons == [CloseReason.CONNECTION_LOST]


async def test_closing_through_a_cut_is_bounded(bed: MemoryBed) -> None:
    """The endpoint is closed in about the close timeout, though nobody answers."""
    a, b = await bed.node("a"), await bed.node("b")
    link = await a.dial(b)
    bed.wire.cut(a.id, b.id)
    for _ in range(1000):
        link.send(message(bytes(1000)), Lane.CONTROL)

    async with asyncio.timeout(4 * FAST.close_timeout_s):
        await a.endpoint.close()
    assert a.handler.reasons == [CloseReason.LEAVING]


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("b", "a")], ids=["arbiter lost it", "follower lost it"])
async def test_a_side_that_lost_the_link_gets_a_new_one_from_a_peer_that_did_not(
    bed: MemoryBed, first: str, second: str
) -> None:
    """Dialling again replaces the half-open link, and the peer is told of the end before the start."""
    lost, kept = await bed.node(first), await bed.node(second)
    link = await lost.dial(kept)
    await eventually(lambda: kept.handler.opened)
    bed.wire.cut(lost.id, kept.id)
    # Only its own side knows, as when a host loses its power: the word of the end is held back and never sent.
    link.finish(CloseReason.CONNECTION_LOST, "")  # type: ignore[attr-defined]
    bed.wire.heal()

    again = await lost.dial(kept)

    assert again.is_open
    await eventually(lambda: len(kept.handler.events) == 3)
    assert kept.handler.events == [("opened", first), ("closed", first), ("opened", first)]


async def test_frames_take_their_time_and_keep_their_order() -> None:
    """A random delay per frame, as on a real path, never reorders a link; the round trip shows it."""
    rng = random.Random(7)
    async with MemoryBed(Path(), MemoryNetwork(delay_s=lambda _from, _to: rng.uniform(0.0, 0.02))) as bed:
        a, b = await bed.node("a"), await bed.node("b")
        link = await a.dial(b)
        for i in range(100):
            link.send(message(b"%d" % i), Lane.NORMAL)
            await asyncio.sleep(0)

        await eventually(lambda: len(b.handler.received) == 100)
        assert [int(envelope.body) for envelope in b.handler.received] == list(range(100))
        await eventually(lambda: link.rtt_s)


async def test_an_impostor_is_refused_at_hello(bed: MemoryBed) -> None:
    """A node whose certificate names somebody else gets IDENTITY_MISMATCH, or fails a dial by name."""
    a, liar = await bed.node("a"), await bed.node("liar", certified_as=node_id("honest"))

    with pytest.raises(PeerRefused) as refusal:
        await liar.dial(a)
    assert refusal.value.code == CloseReason.IDENTITY_MISMATCH
    with pytest.raises(HandshakeFailed):
        await a.dial(liar)


async def test_an_address_is_taken_once(bed: MemoryBed) -> None:
    """Two endpoints cannot listen at one address."""
    a = await bed.node("a")
    with pytest.raises(ListenError):
        await bed.node("b", listen=a.address)


async def test_pending_handshakes_are_bounded(bed: MemoryBed) -> None:
    """More than handshakes_max at once are refused and counted."""
    a = await bed.node("a", config=replace(FAST, handshakes_max=1))
    others = [await bed.node(f"n{i}") for i in range(5)]
    results = await asyncio.gather(*(other.dial(a) for other in others), return_exceptions=True)

    assert any(not isinstance(result, Exception) for result in results)
    assert a.endpoint.statistics()["refused_overloaded"] >= 1


def test_two_runs_with_one_seed_are_the_same() -> None:
    """On a loop with its own time, the order of events depends on the seed alone."""

    async def run() -> list[tuple[str, str]]:
        rng = random.Random(3)
        wire = MemoryNetwork(delay_s=lambda _from, _to: rng.uniform(0.0, 0.01))
        handler = Recorder()
        names = [node_id(f"n{i}") for i in range(4)]
        nodes = [
            MemoryEndpoint(wire, network_name("net"), name, LIFE, handler, clock=_LoopClock(), config=FAST)
            for name in names
        ]
        for node in nodes:
            await node.start()
        await asyncio.gather(*(a.dial(b.listen) for a in nodes for b in nodes if a is not b))
        simulated_s = 5.0
        await asyncio.sleep(simulated_s)
        for node in nodes:
            await node.close()
        return list(handler.events)

    first, second = _simulated(run), _simulated(run)
    assert first == second
    assert len(first) == 4 * 3 * 2


_T = TypeVar("_T")


class _LoopClock:
    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        return self.monotonic()


class _SimulatedLoop(asyncio.SelectorEventLoop):
    """A loop whose time jumps to the next timer when there is nothing else to do."""

    _now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]  # asyncio's own
            self._now = max(self._now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def _simulated(run: Callable[[], Coroutine[None, None, _T]]) -> _T:
    with asyncio.Runner(loop_factory=_SimulatedLoop) as runner:
        return runner.run(run())
