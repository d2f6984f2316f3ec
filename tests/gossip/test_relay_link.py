"""Relayed links where the way is bad; that they are links like any other is the contract suite's to show."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from links import FAST, message
from relays import RelayBed, Switchboard
from support import eventually

from gossip.config import GossipConfig
from gossip.relay_codec import PIECE_BYTES_MAX, Accept, Data, Open, Reset, decode, encode
from gossip.relay_link import RelayEndpoint, relay_address, relay_link_config
from transport.errors import PeerUnreachable
from transport.link import CloseReason
from transport.types import Lane, NodeId

A, B = NodeId("a"), NodeId("b")
QUICK = GossipConfig(relay_rto_s_min=0.02, relay_rto_s_max=0.2, relay_silence_s=0.6)


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., RelayBed]]:
    """Makes beds on a switchboard."""
    beds: list[RelayBed] = []

    def bed(board: Switchboard, gossip: GossipConfig = QUICK) -> RelayBed:
        beds.append(RelayBed(tmp_path, board, gossip))
        return beds[-1]

    yield bed
    for made in beds:
        await made.__aexit__()


class Wiretap:
    """Stands in the place of a node on a switchboard and says what it likes."""

    def __init__(self, board: Switchboard, name: NodeId) -> None:
        self.heard: list[object] = []
        board.endpoints[name] = self  # type: ignore[assignment]  # it has all that a switchboard uses

    def received(self, source: NodeId, body: bytes) -> None:
        del source
        self.heard.append(decode(body))


@pytest.mark.parametrize("seed", range(3))
async def test_frames_survive_a_bad_way(make: Callable[..., RelayBed], seed: int) -> None:
    """A tenth is lost and everything overtakes everything; all arrives once and in order."""
    bed = make(Switchboard(loss=0.1, jitter_s=0.005, seed=seed))
    a, b = await bed.node("a"), await bed.node("b")
    link = await a.dial(b)
    sent = [message(b"%d " % n + bytes(n * 100)) for n in range(300)]

    for envelope in sent:
        link.send(envelope, Lane.NORMAL)

    await eventually(lambda: len(b.handler.received) >= len(sent), timeout_s=30)
    assert b.handler.received == sent


async def test_a_way_that_stays_silent_ends_the_link_and_is_suspected_before(make: Callable[..., RelayBed]) -> None:
    """As a lost connection, which it is."""
    board = Switchboard()
    bed = make(board)
    a, b = await bed.node("a"), await bed.node("b")
    link = await a.dial(b)
    board.cut = True

    link.send(message(b"lost"), Lane.NORMAL)

    await eventually(lambda: a.handler.reasons == [CloseReason.CONNECTION_LOST])
    assert A in board.suspected or B in board.suspected


async def test_a_way_that_was_lost_and_found_repeats_what_was_under_way(make: Callable[..., RelayBed]) -> None:
    """At once: nobody waits for a timeout."""
    board = Switchboard()
    bed = make(board, GossipConfig(relay_rto_s_min=2.0, relay_rto_s_max=5.0))
    a, b = await bed.node("a"), await bed.node("b")
    link = await a.dial(b)
    board.cut = True
    link.send(message(b"1"), Lane.NORMAL)
    await eventually(lambda: link.queued == 0)

    board.cut, board.hop = False, NodeId("another")
    assert isinstance(a.endpoint, RelayEndpoint)
    a.endpoint.way_changed(NodeId("c"), found=True)
    a.endpoint.way_changed(B, found=False)
    a.endpoint.way_changed(B, found=True)

    await eventually(lambda: [envelope.body for envelope in b.handler.received] == [b"1"], timeout_s=1.5)


async def test_a_node_that_does_not_answer_is_unreachable(make: Callable[..., RelayBed]) -> None:
    """Whoever gives up tells the other side to forget the stream."""
    board = Switchboard()
    bed = make(board)
    a = await bed.node("a")
    silent = Wiretap(board, B)

    with pytest.raises(PeerUnreachable):
        await a.endpoint.dial(relay_address(B), B)

    assert isinstance(silent.heard[0], Open)
    assert isinstance(a.endpoint, RelayEndpoint)
    assert a.endpoint.streams == []


async def test_a_node_that_refuses_is_unreachable_at_once(make: Callable[..., RelayBed]) -> None:
    """RESET in the place of an acceptance."""
    board = Switchboard()
    bed = make(board)
    a = await bed.node("a")
    other = Wiretap(board, B)
    dialling = asyncio.ensure_future(a.endpoint.dial(relay_address(B), B))
    await eventually(lambda: other.heard)
    (opening,) = other.heard[:1]
    assert isinstance(opening, Open)

    board.carry(B, A, encode(Reset(opening.stream)))

    with pytest.raises(PeerUnreachable, match="took no link"):
        await dialling


async def test_strange_segments_are_answered_with_a_reset_or_not_at_all(make: Callable[..., RelayBed]) -> None:
    """There is no such stream; a RESET is never answered, nor is what a later version may say."""
    board = Switchboard()
    bed = make(board)
    await bed.node("a")
    stranger = Wiretap(board, B)

    for body in (encode(Accept(5)), encode(Reset(6)), b"\x92\x63\x07", encode(Data(8, 1, 0, 0, more=False, piece=b""))):
        board.carry(B, A, body)

    await eventually(lambda: len(stranger.heard) == 2)
    assert stranger.heard == [Reset(5), Reset(8)]


async def test_a_frame_above_the_limit_ends_the_link_with_its_code(make: Callable[..., RelayBed]) -> None:
    """However many pieces it comes in."""
    board = Switchboard()
    bed = make(board)
    a = await bed.node("a")
    Wiretap(board, B)
    assert isinstance(a.endpoint, RelayEndpoint)
    endpoint = a.endpoint
    endpoint.received(B, encode(Open(9)))

    piece = bytes(PIECE_BYTES_MAX)
    for sequence in range(1, 70):
        endpoint.received(B, encode(Data(9, sequence, 0, 0, more=True, piece=piece)))

    await eventually(lambda: endpoint.statistics().get("refused_message_too_big") == 1)


async def test_streams_that_say_nothing_are_bounded(make: Callable[..., RelayBed]) -> None:
    """As connections are before their hello; a closed endpoint takes none."""
    board = Switchboard()
    bed = make(board)
    a = await bed.node("a", config=FAST)
    Wiretap(board, B)
    assert isinstance(a.endpoint, RelayEndpoint)
    endpoint = a.endpoint
    most = endpoint.config.handshakes_max

    for number in range(most + 10):
        endpoint.received(B, encode(Open(number)))
    assert len(endpoint.streams) == most

    await endpoint.close()
    endpoint.received(B, encode(Open(most + 20)))
    assert endpoint.streams == []


async def test_a_loop_that_stood_still_reads_before_it_sends_again(make: Callable[..., RelayBed]) -> None:
    """The acknowledgement is there, only not read yet."""
    board = Switchboard()
    bed = make(board, GossipConfig(relay_rto_s_min=0.1))
    a, b = await bed.node("a"), await bed.node("b")
    link = await a.dial(b)
    await eventually(lambda: b.handler.opened)
    assert isinstance(a.endpoint, RelayEndpoint)
    (stream,) = a.endpoint.streams
    await eventually(lambda: stream.is_idle)

    link.send(message(b"1"), Lane.NORMAL)
    await eventually(lambda: not stream.is_idle, interval_s=0)
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        pass
    await eventually(lambda: stream.is_idle)

    assert stream.counters["pieces_sent_again"] == 0


def test_relayed_links_outlive_the_change_of_a_relay() -> None:
    """Their keepalive waits as long as their streams do, and longer links stay as they are."""
    patient = relay_link_config(FAST, GossipConfig())
    assert patient.keepalive_timeout_s == GossipConfig().relay_silence_s
    assert patient.keepalive_interval_s * 2 <= patient.keepalive_timeout_s
    assert patient.lane_bytes_max == FAST.lane_bytes_max
