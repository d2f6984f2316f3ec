"""Whole nodes over TLS: what leaves them is sealed before the link encrypts it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from networks import Networks, cut, linked, networks, runtime
from support import eventually

from mesh import AgentMessage, AgentNetworkManager
from mesh.agents import Handler
from mesh.messaging.body import PAYLOAD_BYTES_MAX
from mesh.sealing.sender_keys import ROTATION_S
from transport import channel
from transport.errors import PeerUnreachable
from transport.link import Link
from transport.types import Address, NodeId
from transport.websocket import WebSocketEndpoint
from transport.wire import Envelope, Kind, encode_frame

PLAIN = b"nobody but the receiver may read this"


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Networks]:
    """Makes nodes."""
    async with networks(tmp_path) as made:
        yield made


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> list[Envelope]:
    """What whoever terminates TLS would see: every envelope that any node here sent."""
    seen: list[Envelope] = []

    def tapped(envelopes: Sequence[Envelope]) -> bytes:
        seen.extend(envelopes)
        return encode_frame(envelopes)

    monkeypatch.setattr(channel, "encode_frame", tapped)
    return seen


async def _echo(message: AgentMessage) -> bytes:
    return message.payload


class Ear:
    """Notes what an agent or a subscription hears."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    async def __call__(self, message: AgentMessage) -> None:
        self.heard.append(message.payload)


def _count(net: AgentNetworkManager, name: str) -> int:
    counters: dict[str, int] = net.stats()["sender_keys"]
    return counters.get(name, 0)


async def _subscribers(net: AgentNetworkManager, *names: str) -> None:
    """Wait until a node knows exactly these."""
    await eventually(lambda: set(runtime(net).view.subscribers("news")) == set(names))


async def _talk(a: AgentNetworkManager, b: AgentNetworkManager) -> None:
    await b.register_agent(7, handler=_echo)
    await a.wait_for_agent(7)
    await asyncio.gather(*(a.send(7, PLAIN) for _ in range(100)))
    assert await a.request(7, PLAIN) == PLAIN


def _leaks(capture: list[Envelope]) -> list[int]:
    return [envelope.kind for envelope in capture if PLAIN in envelope.body]


async def test_frames_of_whole_nodes_hold_no_plaintext(nodes: Networks, capture: list[Envelope]) -> None:
    """By default every message between agents of two nodes is sealed, and the statistics say so."""
    a, b = await nodes.several("a", "b")
    await _talk(a, b)

    assert _leaks(capture) == []
    assert Kind.SEALED in {envelope.kind for envelope in capture}
    for net in (a, b):
        counters = net.stats()["end_to_end"]
        assert (counters["handshakes"], counters["sessions"], counters["links_sealed"]) == (1, 1, 1)
        assert counters["bodies_sealed"] > 0
        assert counters["bodies_opened"] > 0
        assert not [name for name in counters if name.startswith("refused")]


async def test_nodes_that_both_say_no_speak_in_the_clear(nodes: Networks, capture: list[Envelope]) -> None:
    """Where neither demands it TLS on the link alone protects messages; the capture would have shown a leak."""
    a, b = await nodes.several("a", "b", messages={"end_to_end": False})
    await _talk(a, b)

    assert set(_leaks(capture)) == {Kind.MESSAGES}
    assert a.stats()["end_to_end"]["links_sealed"] == 0


async def test_one_demanding_node_is_enough(nodes: Networks, capture: list[Envelope]) -> None:
    """A node that does not demand it seals for one that does."""
    a = await nodes("a", messages={"end_to_end": False})
    b = await nodes("b")
    await _talk(a, b)

    assert _leaks(capture) == []


async def test_a_link_that_breaks_costs_no_new_keys(nodes: Networks) -> None:
    """After a link was cut and came back, the session of before serves on."""
    a, b = await nodes.several("a", "b")
    await _talk(a, b)
    cut(a, "b")
    await linked(a, b)
    assert await a.request(7, b"again", timeout=5) == b"again"

    assert a.stats()["end_to_end"]["handshakes"] == 1


async def test_a_renewed_certificate_serves_the_next_session(nodes: Networks) -> None:
    """The node's renewal hands its new certificate to what agrees on keys."""
    a, b = await nodes.several("a", "b")
    node = runtime(a)
    before = node._sealing._identity
    credentials = await node.renewal._renew()
    node._credentials_renewed(credentials)
    assert node._sealing._identity.certificate != before.certificate
    assert node._sealing._identity.life == before.life
    await _talk(a, b)
    assert a.stats()["end_to_end"]["sessions"] == 1


async def test_broadcasts_and_publications_of_whole_nodes_are_sealed(nodes: Networks, capture: list[Envelope]) -> None:
    """What is said to all, and to a group, is heard by whom it is for, and no frame shows it."""
    a, b, c = await nodes.several("a", "b", "c")
    heard: list[tuple[str, str | None, bytes]] = []

    def noting(where: str) -> Handler:
        async def hear(message: AgentMessage) -> None:
            heard.append((where, message.group, message.payload))

        return hear

    await b.register_agent(7, handler=noting("b"))
    await c.register_agent(8, handler=noting("c"))
    await b.subscribe("news", noting("b"))
    await eventually(lambda: "b" in runtime(a).view.subscribers("news"))
    await a.broadcast_message(PLAIN)
    await a.publish("news", PLAIN)
    await eventually(lambda: len(heard) == 3)

    assert sorted(heard, key=str) == [("b", "news", PLAIN), ("b", None, PLAIN), ("c", None, PLAIN)]
    assert _leaks(capture) == []
    assert {Kind.BROADCAST, Kind.GROUP} <= {envelope.kind for envelope in capture}
    counters = a.stats()["sender_keys"]
    assert (counters["sealed"], counters["generations"], counters["in_the_clear"]) == (2, 2, 0)
    for net in (a, b, c):
        assert not [name for name in net.stats()["sender_keys"] if name.startswith("refused")]


async def test_broadcasts_and_their_keys_pass_a_relay_sealed(
    nodes: Networks, capture: list[Envelope], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes that cannot dial each other: what the third passes on, payloads and keys, shows nothing."""
    dial = WebSocketEndpoint.dial

    async def walled(endpoint: WebSocketEndpoint, address: Address, expected: NodeId | None = None) -> Link:
        if {endpoint.node_id, expected} == {"a", "b"}:
            raise PeerUnreachable("there is a wall")
        return await dial(endpoint, address, expected)

    monkeypatch.setattr(WebSocketEndpoint, "dial", walled)
    c = await nodes("c")
    a, b = await nodes("a"), await nodes("b")
    await linked(a, c)
    await linked(b, c)
    ear = Ear()
    await b.register_agent(7, handler=ear)
    await eventually(lambda: len(runtime(a).view.readers("").peers) == len(runtime(b).view.readers("").peers) == 3)
    for _ in range(3):
        await a.broadcast_message(PLAIN)
    await eventually(lambda: ear.heard == [PLAIN] * 3, timeout_s=10)

    assert NodeId("b") not in runtime(a).gossip.links
    assert Kind.RELAY in {envelope.kind for envelope in capture}
    assert _leaks(capture) == []
    assert _count(b, "asked") >= 1
    assert _count(b, "grants_taken") >= 1
    (sending,) = runtime(a)._sealed_groups._keyring._senders.values()
    secrets = [kept.grant.secret for kept in sending.keys._kept]
    assert not [envelope.kind for envelope in capture if any(secret in envelope.body for secret in secrets)]


async def test_a_subscriber_that_left_reads_nothing_newer(nodes: Networks) -> None:
    """It has a key of before, is handed what was published after it left, asks for its key, and gets none."""
    a, b, c = await nodes.several("a", "b", "c")
    stays, leaves = Ear(), Ear()
    await b.subscribe("news", stays)
    subscription = await c.subscribe("news", leaves)
    await _subscribers(a, "b", "c")
    await a.publish("news", b"before")
    await eventually(lambda: stays.heard == leaves.heard == [b"before"])
    await subscription.unsubscribe()
    await _subscribers(a, "b")

    keys = runtime(a)._sealed_groups._keyring._senders["news"].keys
    await eventually(lambda: runtime(a)._clock.monotonic() > keys._began_at + 2 * ROTATION_S)

    handed: list[bytes] = []
    received = runtime(b)._sealed_groups.received

    def tapped(group: str, origin: str, life: int, payload: bytes) -> None:
        handed.append(payload)
        received(group, origin, life, payload)

    runtime(b)._sealed_groups.received = tapped  # type: ignore[method-assign]
    await a.publish("news", b"after")
    await eventually(lambda: stays.heard == [b"before", b"after"])
    (sealed,) = handed
    opened: list[bytes] = []
    runtime(c).opened = lambda *found: opened.append(found[-1])  # type: ignore[method-assign]
    runtime(c)._sealed_groups.received("news", "a", runtime(a)._incarnation >> 16, sealed)
    await eventually(lambda: _count(a, "unanswered") > 0, what="the leaver asks in vain")

    assert opened == []
    assert leaves.heard == [b"before"]
    assert _count(a, "generations") == 2


async def test_who_joins_later_reads_nothing_older(nodes: Networks) -> None:
    """A newcomer that is handed an old broadcast is not given its key, but that of what follows."""
    a, b = await nodes.several("a", "b")
    handed: list[bytes] = []
    received = runtime(b)._sealed_groups.received

    def tapped(group: str, origin: str, life: int, payload: bytes) -> None:
        handed.append(payload)
        received(group, origin, life, payload)

    runtime(b)._sealed_groups.received = tapped  # type: ignore[method-assign]
    await a.broadcast_message(b"before")
    await eventually(lambda: len(handed) == 1)
    c = await nodes("c")
    await linked(a, b, c)
    ear = Ear()
    await c.register_agent(7, handler=ear)
    runtime(c)._sealed_groups.received("", "a", runtime(a)._incarnation >> 16, handed[0])
    await eventually(lambda: _count(c, "refused_old_epoch") == 1)
    await a.broadcast_message(b"after")
    await eventually(lambda: ear.heard == [b"after"])
    assert _count(a, "generations") == 1


async def test_who_broadcasts_and_leaves_at_once_is_heard_by_its_neighbours(nodes: Networks) -> None:
    """The keys for what it said last go out before the goodbye, though there was no session to send them in yet."""
    a, b, c = await nodes.several("a", "b", "c")
    ears = Ear(), Ear()
    await b.register_agent(7, handler=ears[0])
    await c.register_agent(8, handler=ears[1])
    await a.wait_for_agent(7)
    await a.wait_for_agent(8)
    await a.broadcast_message(PLAIN)
    await a.leave_network()
    await eventually(lambda: [ear.heard for ear in ears] == [[PLAIN]] * 2)


@pytest.mark.parametrize("demanding", [True, False])
async def test_broadcasts_are_sealed_if_anybody_demands_it(
    nodes: Networks, capture: list[Envelope], demanding: bool
) -> None:
    """A node that does not demand it seals for one that does; where nobody does, TLS alone protects them."""
    a = await nodes("a", messages={"end_to_end": False})
    b = await nodes("b", messages={"end_to_end": demanding})
    await linked(a, b)
    ear = Ear()
    await b.register_agent(7, handler=ear)
    await eventually(lambda: runtime(a).view.readers("").demanded is demanding)
    await a.broadcast_message(PLAIN)
    await eventually(lambda: ear.heard == [PLAIN])
    assert (_leaks(capture) == []) is demanding
    assert _count(a, "in_the_clear") == (not demanding)


async def test_the_largest_broadcast_fits_sealed(nodes: Networks) -> None:
    """As large as messages may be, with a group's longest name and as many headers as there may be."""
    a, b = await nodes.several("a", "b")
    ear, name = Ear(), "\N{EURO SIGN}" * 200
    await b.subscribe(name, ear)
    await eventually(lambda: runtime(a).view.subscribers(name) == ["b"])
    headers = {f"{number:02}": "v" for number in range(64)}
    payload = bytes(PAYLOAD_BYTES_MAX - 64 * 3)
    await a.publish(name, payload, headers=headers)
    await a.publish(name, payload[:-1])
    await eventually(lambda: [len(heard) for heard in ear.heard] == [len(payload), len(payload) - 1])


async def test_keys_of_a_node_that_left_are_not_kept(nodes: Networks) -> None:
    """No session waits for a node that said goodbye."""
    a, b = await nodes.several("a", "b")
    await _talk(a, b)
    await b.leave_network()
    await eventually(lambda: a.stats()["end_to_end"]["links_sealed"] == 0)
    assert a.stats()["end_to_end"]["sessions_parked"] == 0
