"""What an endpoint does beside its links: handlers that fail, dials that are given up, refusals that repeat."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from links import FAST, MemoryBed, Node, message
from support import eventually

from transport.channel import Channel, ChannelLink
from transport.errors import HandshakeFailed, PeerUnreachable
from transport.link import CloseReason
from transport.types import Lane, NodeId


async def test_a_handler_that_fails_in_every_call_takes_nothing_down(tmp_path: Path) -> None:
    """link_opened and link_closed may raise as well; it is counted, and links work on."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    async with MemoryBed(tmp_path) as bed:
        a, b = await bed.node("a"), await bed.node("b")
        a.handler.link_opened = fail  # type: ignore[method-assign,assignment]
        a.handler.link_closed = fail  # type: ignore[method-assign,assignment]
        link = await a.dial(b)
        link.send(message(b"x"), Lane.NORMAL)
        await eventually(lambda: b.handler.received)
        link.close()
        await eventually(lambda: b.handler.closed)

        assert (await a.dial(b)).is_open
        assert a.endpoint.statistics()["handler_errors"] == 3


async def test_a_dial_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    """Cancelling while the handshake is under way cuts the connection on both sides."""
    async with MemoryBed(tmp_path) as bed:
        a, b = await bed.node("a"), await bed.node("b")
        dialling = asyncio.ensure_future(a.dial(b))
        await eventually(lambda: b.endpoint.statistics()["links_live"] == 1, interval_s=0)
        dialling.cancel()
        await asyncio.wait([dialling])

        # Either it was too late to cancel and the link is whole, or both ends forgot it.
        await eventually(lambda: _live(a) == _live(b) == len(a.endpoint.links))


def _live(node: Node) -> int:
    return node.endpoint.statistics()["links_live"]


async def test_a_handshake_that_stops_midway_fails_the_dial(tmp_path: Path) -> None:
    """The path is cut right after the connection: the dial ends with its timeout, saying so."""
    async with MemoryBed(tmp_path) as bed:
        a, b = await bed.node("a"), await bed.node("b")

        begin = b.endpoint._begin

        def begin_and_cut(channel: Channel, certified: NodeId, *, dialled: bool) -> ChannelLink:
            bed.wire.cut(a.id, b.id)
            return begin(channel, certified, dialled=dialled)

        b.endpoint._begin = begin_and_cut  # type: ignore[method-assign,assignment]
        with pytest.raises((HandshakeFailed, PeerUnreachable)):
            await a.dial(b)
        assert not a.endpoint.links


async def test_dialling_during_a_close_opens_nothing_new(tmp_path: Path) -> None:
    """A node that leaves refuses newcomers with LEAVING or not at all."""
    async with MemoryBed(tmp_path) as bed:
        a, b, c = await bed.node("a"), await bed.node("b"), await bed.node("c")
        await a.dial(b)
        results = await asyncio.gather(a.endpoint.close(), c.dial(a), return_exceptions=True)

        if isinstance(results[1], BaseException):
            assert isinstance(results[1], Exception)
        await eventually(lambda: not c.endpoint.links)
        assert set(b.handler.reasons) == {CloseReason.LEAVING}


async def test_the_same_refusal_is_logged_once_a_second_and_always_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A flood of refusals does not flood the log."""
    async with MemoryBed(tmp_path) as bed:
        a = await bed.node("a", config=FAST)
        with caplog.at_level(logging.WARNING, logger="mesh.transport"):
            for _ in range(1000):
                a.endpoint.refuse("tls", host="192.0.2.1")
            a.endpoint.refuse("path", host="192.0.2.1")

        assert a.endpoint.statistics()["refused_tls"] == 1000
        assert len([record for record in caplog.records if "tls" in record.getMessage()]) <= 2
        assert len([record for record in caplog.records if "path" in record.getMessage()]) == 1
