"""A link over a channel that the test holds in its hands: what the contract suite cannot force."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace

import pytest
from links import FAST, LIFE, Recorder, message
from support import eventually

from transport.channel import Channel, ChannelClosed, ChannelLink, close_reason
from transport.endpoint import BaseEndpoint
from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.link import CloseReason, SendOutcome
from transport.types import Address, Lane, NodeId, network_name, node_id
from transport.wire import Envelope, Hello, Kind, decode_frame, encode_bye, encode_frame, encode_hello


class Held(Channel):
    """A channel whose other end is the test."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self.sent: deque[Envelope] = deque()
        self.closed: tuple[int, str] | None = None
        self.aborted = False
        self.may_send = asyncio.Event()
        self.may_send.set()

    @property
    def remote_address(self) -> Address:
        return Address("10.0.0.9", 9)

    async def send(self, frame: bytes) -> None:
        self.sent.extend(decode_frame(frame))
        await self.may_send.wait()

    async def receive(self) -> bytes:
        item = await self.incoming.get()
        if isinstance(item, Exception):
            raise item
        return item

    async def close(self, code: int, detail: str) -> None:
        self.closed = (code, detail)
        await asyncio.get_running_loop().create_future()

    def abort(self) -> None:
        self.aborted = True
        self.incoming.put_nowait(ChannelClosed(1006))

    def give(self, *envelopes: Envelope) -> None:
        self.incoming.put_nowait(encode_frame(envelopes))


class Desk(BaseEndpoint):
    """An endpoint that neither listens nor dials."""

    async def _listen(self) -> None:
        pass

    async def _stop_listening(self) -> None:
        pass

    async def _connect(self, address: Address, expected: NodeId | None) -> tuple[Channel, NodeId]:
        raise NotImplementedError

    def adopt(self, channel: Channel, peer: str) -> ChannelLink:
        """Run a link over ``channel``."""
        link = self._begin(channel, node_id(peer), dialled=False)
        self.tasks.spawn(link.run(), name="link")
        return link


ACCEPT = Envelope(Kind.ACCEPT, 0, None, None, b"")


async def _open(hello: Hello | None = None) -> tuple[Desk, Recorder, ChannelLink, Held]:
    handler, channel = Recorder(), Held()
    desk = Desk(network_name("net"), node_id("a"), LIFE, handler, config=FAST)
    await desk.start()
    link = desk.adopt(channel, "b")
    channel.give(encode_hello(hello or Hello(network_name("net"), node_id("b"), LIFE)), ACCEPT)
    await eventually(lambda: handler.opened)
    return desk, handler, link, channel


def test_close_codes_of_strangers_count_as_normal() -> None:
    """A WebSocket library may close with codes that mean nothing here."""
    assert close_reason(4404) is CloseReason.DUPLICATE_LINK
    assert close_reason(3999) is CloseReason.NORMAL


async def test_accept_and_envelopes_in_one_frame_are_told_in_order() -> None:
    """What follows ACCEPT in the same frame is delivered after link_opened."""
    handler, channel = Recorder(), Held()
    desk = Desk(network_name("net"), node_id("c"), LIFE, handler, config=FAST)
    await desk.start()
    desk.adopt(channel, "b")
    channel.give(encode_hello(Hello(network_name("net"), node_id("b"), LIFE)))
    await eventually(lambda: ACCEPT in channel.sent)

    channel.give(ACCEPT, message(b"first"))

    await eventually(lambda: handler.received == [message(b"first")])
    assert handler.events == [("opened", "b")]
    await desk.close()


async def test_a_peer_that_accepts_small_frames_only_is_not_sent_larger_ones() -> None:
    """frame_bytes_max in the peer's hello bounds what send takes."""
    desk, _, link, _ = await _open(replace(Hello(network_name("net"), node_id("b"), LIFE), frame_bytes_max=2000))

    assert link.send(message(bytes(1000)), Lane.LOW) is SendOutcome.ACCEPTED
    with pytest.raises(LocalProtocolError, match="exceeds what b accepts"):
        link.send(message(bytes(3000)), Lane.LOW)
    await desk.close()


async def test_a_sender_that_is_stuck_does_not_hold_up_closing() -> None:
    """The channel takes nothing any more: closing is bounded by the close timeout all the same."""
    desk, handler, link, channel = await _open()
    channel.may_send.clear()
    link.send(message(b"stuck"), Lane.NORMAL)
    await eventually(lambda: message(b"stuck") in channel.sent)

    link.close(CloseReason.IDLE, "why not")

    await eventually(lambda: handler.closed)
    assert handler.closed[0][1:] == (CloseReason.IDLE, "why not")
    assert channel.aborted
    assert channel.closed is None
    await desk.close()


async def test_a_closing_handshake_that_is_not_answered_is_cut() -> None:
    """After the close timeout the connection is cut; the reason is the one that was given."""
    desk, handler, link, channel = await _open()

    link.close(CloseReason.IDLE)

    await eventually(lambda: handler.closed)
    assert channel.closed == (CloseReason.IDLE, "")
    assert channel.aborted
    assert handler.reasons == [CloseReason.IDLE]
    await desk.close()


async def test_a_goodbye_tells_the_reason_even_if_the_close_is_lost() -> None:
    """BYE and then a reset is an orderly leave, not a failure."""
    desk, handler, _, channel = await _open()

    channel.give(encode_bye(CloseReason.LEAVING, "shutting down"))
    channel.incoming.put_nowait(ChannelClosed(1006))

    await eventually(lambda: handler.closed)
    assert handler.closed[0][1:] == (CloseReason.LEAVING, "shutting down")
    await desk.close()


async def test_a_peer_whom_the_channel_finds_out_is_told() -> None:
    """RemoteProtocolError from the channel itself closes with its code."""
    desk, handler, _, channel = await _open()

    channel.incoming.put_nowait(RemoteProtocolError("not a frame"))

    await eventually(lambda: handler.closed)
    assert handler.closed[0][1:] == (CloseReason.PROTOCOL_ERROR, "not a frame")
    assert channel.closed == (4400, "not a frame")
    await desk.close()


async def test_somebody_waiting_for_room_is_woken_when_there_is_some() -> None:
    """wait_writable returns when the sender took envelopes, not before."""
    desk, _, link, channel = await _open()
    channel.may_send.clear()
    outcome = SendOutcome.ACCEPTED
    while outcome is SendOutcome.ACCEPTED:
        outcome = link.send(message(bytes(60_000)), Lane.NORMAL)
    await asyncio.sleep(0)
    waiting = asyncio.ensure_future(link.wait_writable(Lane.NORMAL))
    await asyncio.sleep(0)
    assert not waiting.done()

    channel.may_send.set()
    await asyncio.wait_for(waiting, 5)

    assert link.send(message(), Lane.NORMAL) is SendOutcome.ACCEPTED
    await desk.close()


async def test_what_arrives_after_we_closed_is_ignored() -> None:
    """Between our close and its end, the handler hears nothing, not even of garbage."""
    desk, handler, link, channel = await _open()
    link.close()
    channel.give(message(b"late"))
    channel.incoming.put_nowait(b"\xc1")

    await eventually(lambda: handler.closed)
    assert handler.received == []
    assert handler.reasons == [CloseReason.NORMAL]
    await desk.close()
