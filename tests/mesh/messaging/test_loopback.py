"""The link from a node to itself behaves like any other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mesh.messaging.loopback import LoopbackLink
from transport.link import Link, SendOutcome
from transport.types import Lane
from transport.wire import Envelope


def _envelope(number: int) -> Envelope:
    return Envelope(32, 1, None, None, bytes([number]))


async def test_what_is_sent_arrives_together_in_the_next_turn() -> None:
    """Nothing arrives inside send; all of one turn arrive at once and in order."""
    arrived: list[tuple[Link, list[Envelope]]] = []

    def receive(link: Link, envelopes: Sequence[Envelope]) -> None:
        arrived.append((link, list(envelopes)))
        if len(arrived) == 1:
            assert link.send(_envelope(9), Lane.LOW) is SendOutcome.ACCEPTED

    link = LoopbackLink("a", 5, receive)
    for number in range(3):
        assert link.send(_envelope(number), Lane.NORMAL) is SendOutcome.ACCEPTED
    assert arrived == []
    assert link.statistics() == {"waiting": 3}

    await asyncio.sleep(0)
    assert arrived == [(link, [_envelope(0), _envelope(1), _envelope(2)])]
    await asyncio.sleep(0)
    assert arrived[1:] == [(link, [_envelope(9)])]


async def test_a_closed_loopback_takes_and_delivers_nothing() -> None:
    """What was under way when it closed is dropped, and later sends say that it is closed."""
    arrived: list[object] = []
    link = LoopbackLink("a", 5, lambda _, envelopes: arrived.append(envelopes))
    link.send(_envelope(1), Lane.NORMAL)

    link.close()

    await asyncio.sleep(0)
    assert arrived == []
    assert link.send(_envelope(2), Lane.NORMAL) is SendOutcome.CLOSED


async def test_it_is_never_full() -> None:
    """Its peer is the node itself, and waiting for room returns at once."""
    link: Link = LoopbackLink("a", 5, lambda _, __: None)

    await link.wait_writable(Lane.LOW)
    assert (link.peer.node_id, link.peer.incarnation, link.rtt_s) == ("a", 5, 0.0)
