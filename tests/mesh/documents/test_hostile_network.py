"""A member that does not keep to the protocol of documents harms nobody but itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from networks import Networks, linked, networks, runtime
from support import eventually

from mesh import AgentNetworkManager
from state.clocks.vectors import Writer
from state.documents.document import Document
from state.documents.envelope import encode_envelope, first_lineage
from state.replication.codec import Offer, Page, encode, encode_live
from state.replication.groups import group_of
from transport.types import Lane, NodeId
from transport.wire import Envelope, Kind, pack

LINEAGE = first_lineage("board")


@pytest.fixture
async def join(tmp_path: Path) -> AsyncIterator[Networks]:
    """Starts nodes."""
    async with networks(tmp_path) as started:
        yield started


def say(liar: AgentNetworkManager, victim: str, body: bytes) -> None:
    """Send something as documents' over the sealed link."""
    node: Any = runtime(liar)
    link = node._sealing.of(node.gossip.links[NodeId(victim)])
    link.send(Envelope(Kind.DOCUMENTS, 1, None, None, body), Lane.NORMAL)


async def test_lies_cost_a_link_at_most(join: Networks) -> None:
    """Nonsense of every sort, on links and in groups: counted, nodes go on, the document is right everywhere."""
    a, b, c = await join.several("a", "b", "c")
    here, liar, there = [await net.document("board") for net in (a, b, c)]
    await eventually(lambda: all(len(doc.replicas) == 2 for doc in (here, liar, there)))
    here["k"] = 1
    await eventually(lambda: liar.to_dict() == there.to_dict() == {"k": 1})
    digest = here.digest()

    forged = Document("board", Writer(NodeId("c"), 1))
    forged["k"] = "forged"
    raws = [encode_envelope(envelope) for envelope in forged.outgoing()]
    for payload in (b"", b"nonsense", pack([b"nonsense"]), encode_live(raws), pack([[]] * 100)):
        runtime(b).publish(group_of("board"), payload, 64)
    await eventually(lambda: here.stats()["forged"] == there.stats()["forged"] == 1)

    # Pages that nobody asked for, other lineages, and documents that are not open, do nothing.
    say(b, "a", encode(Page("board", LINEAGE, bytes(16), tuple(raws), more=True)))
    say(b, "a", encode(Offer("board", b"another!", bytes(16))))
    say(b, "a", encode(Offer("unknown", LINEAGE, bytes(16))))
    await eventually(lambda: here.stats()["pages_unasked"] == here.stats()["divergent"] == 1)
    # What is no body at all ends the link, which opens again.
    before = runtime(a).gossip.links[NodeId("b")]
    say(b, "a", b"\xc1" * 100)
    await eventually(lambda: not before.is_open)
    assert (here.digest(), there.digest()) == (digest, digest)
    await linked(a, b, c)
    liar["late"] = here["more"] = True
    await eventually(lambda: here.to_dict() == there.to_dict() == {"k": 1, "late": True, "more": True}, timeout_s=10.0)
