"""What every kind of link does: one suite over memory, over WebSocket with mutual TLS, and over relays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from links import FAST, LIFE, Bed, MemoryBed, WebSocketBed, message
from relays import RelayBed
from support import eventually

from transport.errors import (
    HandshakeFailed,
    LinkClosed,
    LocalProtocolError,
    PeerRefused,
    PeerUnreachable,
    RemoteProtocolError,
)
from transport.link import CloseReason, SendOutcome
from transport.types import Address, Lane
from transport.wire import BODY_BYTES_MAX, Kind


@pytest.fixture(params=[MemoryBed, WebSocketBed, RelayBed], ids=["memory", "websocket", "relay"])
async def bed(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bed]:
    """A network to test on."""
    async with request.param(tmp_path) as made:
        yield made


@pytest.fixture(params=[MemoryBed, WebSocketBed], ids=["memory", "websocket"])
async def wired_bed(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bed]:
    """A network where each connection has an end of its own; relays tell nodes apart by their id alone."""
    async with request.param(tmp_path) as made:
        yield made


async def test_a_dial_opens_one_link_that_both_ends_are_told_of(bed: Bed) -> None:
    """Both handlers see link_opened once, with the other's identity as certified and said."""
    a, b = await bed.node("a", life=5), await bed.node("b", life=7)

    link = await a.dial(b)
    await eventually(lambda: b.handler.opened)

    assert a.handler.opened == [link]
    assert link.dialled
    assert not b.handler.opened[0].dialled
    assert link.is_open
    assert (link.peer.node_id, link.peer.incarnation) == ("b", 7 * LIFE)
    assert b.handler.opened[0].peer.incarnation == 5 * LIFE
    assert link.peer.addresses == (b.address,)
    assert link.peer.version == (1, 0)
    assert link.remote_address == b.address
    assert a.endpoint.links == {"b": link}


async def test_envelopes_arrive_whole_and_in_order_per_lane(bed: Bed) -> None:
    """Each side receives what the other sent, unchanged, in the order of sending."""
    a, b = await bed.node("a"), await bed.node("b")
    link = await a.dial(b)
    await eventually(lambda: b.handler.opened)

    sent = [message(b"%d" % i, Kind.BROADCAST) for i in range(1000)]
    for envelope in sent:
        assert link.send(envelope, Lane.NORMAL) is SendOutcome.ACCEPTED
    answer = message(b"back")._replace(ttl=9, source="a", target="b")
    b.handler.opened[0].send(answer, Lane.LOW)

    await eventually(lambda: len(b.handler.received) == 1000 and a.handler.received)
    assert b.handler.received == sent
    assert a.handler.received == [answer]


async def test_what_is_sent_in_one_turn_of_the_loop_goes_as_one_frame(bed: Bed) -> None:
    """The sender coalesces instead of sending a frame per envelope."""
    a, b = await bed.node("a"), await bed.node("b")
    link = await a.dial(b)
    before = link.statistics()["frames_sent"]

    for _ in range(100):
        link.send(message(b"x"), Lane.NORMAL)
    await eventually(lambda: len(b.handler.received) == 100)

    assert link.statistics()["frames_sent"] - before <= 3


async def test_a_turn_that_was_asked_for_comes_before_the_next_frame(bed: Bed) -> None:
    """What is gathered in the turn travels in that very frame, and the turn comes once."""
    a, b = await bed.node("a"), await bed.node("b")
    link = await a.dial(b)
    await eventually(lambda: b.handler.opened)
    turns: list[int] = []

    def fill() -> None:
        turns.append(len(turns))
        link.send(message(b"gathered"), Lane.NORMAL)

    assert link.ask_turn(fill)
    link.send(message(b"queued"), Lane.NORMAL)

    await eventually(lambda: len(b.handler.received) == 2)
    assert [envelope.body for envelope in b.handler.received] == [b"queued", b"gathered"]
    assert turns == [0]
    assert b.handler.runs == [2]


async def test_control_overtakes_what_is_queued(bed: Bed) -> None:
    """The control lane is delivered before user lanes that were filled earlier, and urgent before low."""
    a, b = await bed.node("a"), await bed.node("b")
    link = await a.dial(b)

    link.send(message(b"low"), Lane.LOW)
    link.send(message(b"urgent"), Lane.URGENT)
    link.send(message(b"control"), Lane.CONTROL)

    await eventually(lambda: len(b.handler.received) == 3)
    assert [envelope.body for envelope in b.handler.received] == [b"control", b"urgent", b"low"]


async def test_a_large_envelope_passes_and_a_larger_one_is_refused_here(bed: Bed) -> None:
    """A body of the largest size arrives; one byte more is a local error and changes nothing."""
    a, b = await bed.node("a"), await bed.node("b")
    link = await a.dial(b)

    with pytest.raises(LocalProtocolError, match="split larger"):
        link.send(message(bytes(BODY_BYTES_MAX + 1)), Lane.NORMAL)
    link.send(message(bytes(BODY_BYTES_MAX)), Lane.NORMAL)

    await eventually(lambda: b.handler.received)
    assert len(b.handler.received[0].body) == BODY_BYTES_MAX


async def test_a_full_lane_says_so_and_a_waiting_sender_is_woken(bed: Bed) -> None:
    """send answers FULL at the bound; wait_writable returns once there is room; nothing accepted is lost."""
    a, b = await bed.node("a", config=replace(FAST, lane_envelopes_max=10)), await bed.node("b")
    link = await a.dial(b)

    outcomes = [link.send(message(b"%d" % i), Lane.NORMAL) for i in range(11)]
    assert outcomes == [SendOutcome.ACCEPTED] * 10 + [SendOutcome.FULL]
    assert link.send(message(b"other lane"), Lane.HIGH) is SendOutcome.ACCEPTED
    await asyncio.wait_for(link.wait_writable(Lane.NORMAL), 5)

    assert link.send(message(b"10"), Lane.NORMAL) is SendOutcome.ACCEPTED
    await eventually(lambda: len(b.handler.received) == 12)
    assert link.statistics()["refused_full"] == 1


async def test_a_superseded_value_replaces_the_queued_one(bed: Bed) -> None:
    """Of envelopes with the same lane and key that wait, only the last is sent."""
    a, b = await bed.node("a"), await bed.node("b")
    link = await a.dial(b)

    for i in range(5):
        link.send(message(b"load %d" % i), Lane.NORMAL, key="load")
    link.send(message(b"end"), Lane.NORMAL)

    await eventually(lambda: len(b.handler.received) == 2)
    assert [envelope.body for envelope in b.handler.received] == [b"load 4", b"end"]
    assert link.statistics()["replaced"] == 4


async def test_dialling_again_gives_the_same_link(bed: Bed) -> None:
    """There is at most one link to a peer, whoever dials and whether or not the peer is known by name."""
    a, b = await bed.node("a"), await bed.node("b")
    link = await a.dial(b)

    assert await a.dial(b) is link
    assert await a.dial(b, expected=False) is link
    back = await b.dial(a, expected=False)

    assert back is b.handler.opened[0]
    assert len(a.handler.opened) == len(b.handler.opened) == 1
    assert not a.handler.closed
    assert not b.handler.closed


async def test_simultaneous_dials_end_as_one_and_the_same_link(bed: Bed) -> None:
    """Both sides keep the same connection, every dial returns it, and no envelope sent on it is lost."""
    a, b = await bed.node("a"), await bed.node("b")
    for _ in range(5):
        links = await asyncio.gather(
            a.dial(b), b.dial(a), a.dial(b, expected=False), b.dial(a, expected=False), return_exceptions=True
        )
        assert links[0] is links[2]
        assert links[1] is links[3]
        ours, theirs = a.endpoint.links[b.id], b.endpoint.links[a.id]
        assert (ours, theirs) == (links[0], links[1])
        assert ours.dialled is not theirs.dialled

        a.handler.received.clear()
        b.handler.received.clear()
        for i in range(20):
            ours.send(message(b"a%d" % i), Lane.NORMAL)
            theirs.send(message(b"b%d" % i), Lane.NORMAL)
        await eventually(lambda: len(a.handler.received) == len(b.handler.received) == 20)

        ours.close()
        await eventually(lambda: not a.endpoint.links and not b.endpoint.links)
    assert len(a.handler.opened) == len(b.handler.opened) == 5


async def test_envelopes_sent_from_link_opened_arrive_after_it(bed: Bed) -> None:
    """What a handler sends as soon as it may is never received before the other side's link_opened."""
    a, b = await bed.node("a"), await bed.node("b")
    for node in (a, b):
        opened = node.handler.link_opened

        def greet(link, opened=opened):  # type: ignore[no-untyped-def]  # the protocol's own signature
            opened(link)
            link.send(message(b"hello"), Lane.CONTROL)

        node.handler.link_opened = greet  # type: ignore[method-assign]

    await a.dial(b)

    await eventually(lambda: a.handler.received and b.handler.received)
    assert a.handler.events[0] == ("opened", "b")
    assert b.handler.events[0] == ("opened", "a")


async def test_closing_flushes_control_and_says_why(bed: Bed) -> None:
    """The control lane is sent, the others are dropped and counted, and both ends learn the reason once."""
    a, b = await bed.node("a"), await bed.node("b")
    link = await a.dial(b)
    await eventually(lambda: b.handler.opened)

    link.send(message(b"data"), Lane.NORMAL)
    link.send(message(b"last words"), Lane.CONTROL)
    link.close(CloseReason.IDLE, "nobody needs it")
    link.close()
    assert link.send(message(), Lane.CONTROL) is SendOutcome.CLOSED

    await eventually(lambda: a.handler.closed and b.handler.closed)
    assert [envelope.body for envelope in b.handler.received] == [b"last words"]
    assert b.handler.closed[0][1:] == (CloseReason.IDLE, "nobody needs it")
    assert a.handler.closed[0][1:] == (CloseReason.IDLE, "nobody needs it")
    assert len(a.handler.closed) == len(b.handler.closed) == 1
    assert link.statistics()["dropped_on_close"] == 1
    with pytest.raises(LinkClosed):
        await link.wait_writable(Lane.NORMAL)


async def test_closing_the_endpoint_is_seen_as_leaving(bed: Bed) -> None:
    """All peers see LEAVING, the listener is gone, and dialling from a closed endpoint is refused."""
    a, b, c = await bed.node("a"), await bed.node("b"), await bed.node("c")
    await b.dial(a)
    await a.dial(c)

    await a.endpoint.close()
    await a.endpoint.close()

    await eventually(lambda: b.handler.closed and c.handler.closed)
    assert b.handler.reasons == c.handler.reasons == [CloseReason.LEAVING]
    assert not a.endpoint.links
    with pytest.raises(PeerUnreachable):
        await b.dial(a)
    with pytest.raises(PeerUnreachable):
        await a.dial(b)


async def test_somebody_waiting_for_room_learns_of_the_close(bed: Bed) -> None:
    """wait_writable raises LinkClosed when the link closes meanwhile."""
    a, b = await bed.node("a", config=replace(FAST, lane_envelopes_max=1)), await bed.node("b")
    link = await a.dial(b)
    link.send(message(), Lane.LOW)

    waiting = asyncio.ensure_future(link.wait_writable(Lane.LOW))
    asyncio.get_running_loop().call_soon(link.close)
    results = await asyncio.gather(waiting, return_exceptions=True)

    # Whichever came first: room because the envelope was sent, or the close.
    assert results[0] is None or isinstance(results[0], LinkClosed)
    await eventually(lambda: a.handler.closed)


async def test_nobody_there_is_unreachable(bed: Bed) -> None:
    """Dialling an address where nobody listens says so and counts."""
    a = await bed.node("a")

    with pytest.raises(PeerUnreachable):
        await a.endpoint.dial(Address("127.0.0.1", 1))
    assert a.endpoint.statistics()["dials_failed"] == 1


async def test_another_node_than_expected_is_not_accepted(bed: Bed) -> None:
    """A dial that names its peer fails when somebody else answers."""
    a, b = await bed.node("a"), await bed.node("b")

    with pytest.raises(HandshakeFailed):
        await a.endpoint.dial(b.address, a.id if a.id != b.id else None)
    assert not b.handler.opened


async def test_a_node_does_not_link_to_itself(bed: Bed) -> None:
    """Dialling one's own address is refused; nothing opens."""
    a = await bed.node("a")

    with pytest.raises((HandshakeFailed, PeerRefused), match="itself"):
        await a.endpoint.dial(a.address)
    assert not a.handler.opened


async def test_nothing_happens_on_an_idle_link_but_keepalive(bed: Bed) -> None:
    """An idle link stays open well beyond its keepalive timeout and measures the round trip."""
    a, b = await bed.node("a"), await bed.node("b")
    link = await a.dial(b)

    await eventually(lambda: link.statistics()["frames_received"] > 12, timeout_s=10)

    assert link.is_open
    assert link.rtt_s is not None
    assert 0 <= link.rtt_s < 1
    assert not a.handler.received
    assert not b.handler.received


async def test_a_peer_that_breaks_the_rules_above_is_cut_with_the_code(bed: Bed) -> None:
    """RemoteProtocolError from the handler closes the link with its code and text; other links stay."""
    a, b, c = await bed.node("a"), await bed.node("b"), await bed.node("c")
    link, other = await a.dial(b), await c.dial(b)

    def refuse(link, envelopes):  # type: ignore[no-untyped-def]  # the protocol's own signature
        if link.peer.node_id == "a":
            raise RemoteProtocolError("nonsense in membership")

    b.handler.on_envelopes = refuse
    link.send(message(), Lane.NORMAL)

    await eventually(lambda: a.handler.closed and b.handler.closed)
    assert a.handler.closed[0][1:] == (CloseReason.PROTOCOL_ERROR, "nonsense in membership")
    assert b.handler.reasons == [CloseReason.PROTOCOL_ERROR]
    assert other.is_open


async def test_a_handler_that_raises_is_logged_and_the_link_goes_on(bed: Bed) -> None:
    """A bug above does not take down the link, let alone the endpoint."""
    a, b = await bed.node("a"), await bed.node("b")
    link = await a.dial(b)

    def fail(link, envelopes):  # type: ignore[no-untyped-def]  # the protocol's own signature
        raise ZeroDivisionError

    b.handler.on_envelopes = fail
    link.send(message(b"1"), Lane.NORMAL)
    await eventually(lambda: b.endpoint.statistics().get("handler_errors") == 1)
    link.send(message(b"2"), Lane.NORMAL)

    await eventually(lambda: len(b.handler.received) == 2)
    assert link.is_open


async def test_another_network_is_refused(bed: Bed) -> None:
    """A node of another network cannot open a link, and both sides count it."""
    a, b = await bed.node("a"), await bed.node("b", network="other")

    with pytest.raises((PeerRefused, HandshakeFailed)):
        await a.endpoint.dial(b.address)
    assert not a.handler.opened
    assert not b.handler.opened


async def test_more_links_than_allowed_are_refused_as_overloaded(bed: Bed) -> None:
    """At links_max a newcomer gets OVERLOADED; the open links stay."""
    a, b, c = await bed.node("a", config=replace(FAST, links_max=1)), await bed.node("b"), await bed.node("c")
    link = await b.dial(a)

    with pytest.raises(PeerRefused) as refusal:
        await c.dial(a)
    assert refusal.value.code == CloseReason.OVERLOADED
    assert link.is_open
    assert a.endpoint.statistics()["refused_overloaded"] == 1


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("b", "a")], ids=["arbiter refuses", "follower refuses"])
async def test_a_second_process_with_a_node_id_in_use_is_refused(wired_bed: Bed, first: str, second: str) -> None:
    """While the first process answers, a newcomer with its name and another life gets DUPLICATE_NODE."""
    old, peer, new = (
        await wired_bed.node(second, life=1),
        await wired_bed.node(first),
        await wired_bed.node(second, life=2),
    )
    link = await old.dial(peer)

    with pytest.raises(PeerRefused) as refusal:
        await new.dial(peer)
    assert refusal.value.code == CloseReason.DUPLICATE_NODE
    assert link.is_open
    assert peer.endpoint.statistics()["refused_duplicate_node"] == 1


async def test_statistics_add_up(bed: Bed) -> None:
    """The endpoint's counters include links that are closed."""
    a, b = await bed.node("a"), await bed.node("b")
    link = await a.dial(b)
    link.send(message(b"x"), Lane.NORMAL)
    await eventually(lambda: b.handler.received)
    link.close()
    await eventually(lambda: b.handler.closed and a.handler.closed)

    sent, received = a.endpoint.statistics(), b.endpoint.statistics()
    assert sent["links_opened"] == received["links_opened"] == 1
    assert sent["links_open"] == sent["links_live"] == 0
    assert sent["links_closed_normal"] == received["links_closed_normal"] == 1
    assert received["envelopes_received"] >= 4  # hello, accept, message, goodbye
    assert sent["bytes_sent"] == received["bytes_received"]
