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
from transport import channel
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
