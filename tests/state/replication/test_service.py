"""The documents of a node, with links that are only noted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

import pytest
from couriers import FakeLink
from support import eventually

from gossip.service import BroadcastOutcome
from state.clocks.vectors import Writer
from state.documents.document import Document
from state.documents.envelope import encode_envelope, first_lineage
from state.errors import StateError, StorageError
from state.replication import service as service_module
from state.replication.codec import Ask, Body, Offer, Page, decode, encode, encode_live
from state.replication.groups import group_of
from state.replication.service import DocumentService
from state.store import DocumentStore
from transport.clock import SystemClock
from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.link import CloseReason, SendOutcome
from transport.types import Lane, NodeId
from transport.wire import Envelope, Kind, pack

LINEAGE = first_lineage("board")
B = NodeId("b")


class Peer(FakeLink):
    """A link to a peer, with what was said on it."""

    def __init__(self, peer: str = "b") -> None:
        super().__init__(peer, 1_000)
        self.said: list[Body] = []
        self.outcome = SendOutcome.ACCEPTED
        self.room = asyncio.Event()
        self.closed_for: list[CloseReason] = []

    def send(self, envelope: Envelope, lane: Lane, *, key: str | None = None) -> SendOutcome:
        """See :class:`transport.link.Link`."""
        if self.outcome is SendOutcome.ACCEPTED:
            body = decode(envelope.body)
            assert body is not None
            assert lane is (Lane.LOW if isinstance(body, Page) else Lane.NORMAL)
            self.said.append(body)
        return self.outcome

    async def wait_writable(self, lane: Lane) -> None:
        """See :class:`transport.link.Link`."""
        await self.room.wait()
        self.outcome = SendOutcome.ACCEPTED

    def close(self, reason: CloseReason = CloseReason.NORMAL, detail: str = "") -> None:
        """See :class:`transport.link.Link`."""
        self.closed_for.append(reason)


class Around:
    """The node: who subscribes to what, and what was published."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.subscribed: dict[str, list[str]] = {group_of("board"): ["a", "b"]}
        self.opened: list[tuple[str, bool]] = []
        self.announced: list[tuple[str, ...]] = []
        self.published: list[tuple[str, bytes]] = []
        self.refuses = False

    def open_group(self, group: str, subscribers: Iterable[NodeId], *, member: bool) -> None:
        """See :class:`state.replication.service.Carrier`."""
        self.opened.append((group, member))

    def publish(self, group: str, payload: bytes, ttl: int) -> BroadcastOutcome:
        """See :class:`state.replication.service.Carrier`."""
        assert ttl > 0
        self.published.append((group, payload))
        return BroadcastOutcome(1, 0)

    def announce(self, groups: tuple[str, ...]) -> None:
        """Tell the network."""
        if self.refuses:
            raise LocalProtocolError("no room")
        self.announced.append(groups)

    def subscribers(self, group: str) -> Sequence[str]:
        """Of a group."""
        return self.subscribed.get(group, [])

    def service(self) -> DocumentService:
        """The documents of node a."""
        return DocumentService(
            Writer(NodeId("a"), 1),
            self.folder / "d.db",
            self,
            subscribers=self.subscribers,
            announce=self.announce,
            clock=SystemClock(),
            rng=random.Random(1),
        )


@pytest.fixture
def around(tmp_path: Path) -> Around:
    """The node."""
    return Around(tmp_path)


@pytest.fixture
async def service(around: Around) -> AsyncIterator[DocumentService]:
    """Its documents."""
    made = around.service()
    yield made
    await made.close()


def offer(name: str = "board") -> Envelope:
    """What a peer that has something offers."""
    body = Offer(name, first_lineage(name), b"\x01" * 16)
    return Envelope(Kind.DOCUMENTS, 1, None, None, encode(body))


async def test_a_document_is_opened_once(service: DocumentService, around: Around) -> None:
    """Also by two at once, and if one of them gives up; its group is joined and announced."""
    first, second = asyncio.ensure_future(service.open("board")), asyncio.ensure_future(service.open("board"))
    await asyncio.sleep(0)
    first.cancel()
    replica = await second
    assert await service.open("board") is replica
    assert around.opened == [(group_of("board"), True)]
    assert around.announced == [(group_of("board"),)]
    await service.open("other")
    assert around.announced[-1] == (group_of("board"), group_of("other"))
    assert service.others("board") == ["b"]
    assert list(service.replicas) == ["board", "other"]


async def test_what_cannot_be_opened_leaves_nothing_behind(
    service: DocumentService, around: Around, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No name, no room in the profile, too many documents, no store."""
    with pytest.raises(StateError, match="bytes"):
        await service.open("")
    around.refuses = True
    with pytest.raises(LocalProtocolError):
        await service.open("board")
    assert around.opened[-1] == (group_of("board"), False)
    around.refuses = False
    await service.open("board")
    monkeypatch.setattr(service_module, "DOCUMENTS_MAX", 1)
    with pytest.raises(StateError, match="may not have more"):
        await service.open("other")
    (around.folder / "x").mkdir()
    around.folder = around.folder / "x"
    (around.folder / "d.db").write_bytes(b"nonsense" * 512)
    broken = around.service()
    with pytest.raises(StorageError):
        await broken.open("board")
    await broken.close()
    with pytest.raises(StateError, match="left"):
        await broken.open("board")


async def test_links_to_replicas_are_compared_over(service: DocumentService, around: Around) -> None:
    """Links that were there before, that come later, that are replaced, and replicas that come and go."""
    before, stranger = Peer(), Peer("z")
    service.link_opened(before)
    service.link_opened(stranger)
    replica = await service.open("board")
    assert [type(body) for body in before.said] == [Offer]
    assert stranger.said == []
    later = Peer()
    service.link_opened(later)
    service.link_closed(before, CloseReason.DUPLICATE_LINK, "")
    assert [type(body) for body in later.said] == [Offer]
    assert replica.peers == [B]
    service.subscriber_changed(group_of("board"), NodeId("z"), subscribed=True)
    assert replica.peers == [B, "z"]
    service.subscriber_changed(group_of("board"), NodeId("z"), subscribed=False)
    service.subscriber_changed(group_of("board"), NodeId("a"), subscribed=False)  # that is this node
    service.subscriber_changed(group_of("unknown"), NodeId("z"), subscribed=True)
    service.subscriber_changed("of messages", NodeId("z"), subscribed=True)
    assert replica.peers == [B]
    service.link_closed(later, CloseReason.LEAVING, "")
    assert replica.peers == []


async def test_bodies_go_to_their_document(service: DocumentService) -> None:
    """Others are counted; nonsense, and what comes over a link that was replaced, has its consequence or none."""
    link = Peer()
    service.link_opened(link)
    await service.open("board")
    service.envelopes_received(link, [Envelope(Kind.MESSAGES, 1, None, None, b"?"), offer(), offer("other")])
    assert [type(body) for body in link.said] == [Offer, Ask]
    assert service.is_using(link)
    later = Envelope(Kind.DOCUMENTS, 1, None, None, pack([77, "board", LINEAGE, bytes(16)]))
    service.envelopes_received(link, [later])
    with pytest.raises(RemoteProtocolError):
        service.envelopes_received(link, [Envelope(Kind.DOCUMENTS, 1, None, None, b"?")])
    service.envelopes_received(Peer(), [offer()])
    stats = service.statistics()
    assert (stats["bodies_received"], stats["bodies_of_others"], stats["bodies_of_later_versions"]) == (4, 1, 1)
    assert len(link.said) == 2


async def test_a_full_link_gets_the_latest_once_there_is_room(service: DocumentService) -> None:
    """What waits is bounded by documents and steps; a link that ends takes it along."""
    link = Peer()
    link.outcome = SendOutcome.FULL
    service.link_opened(link)
    replica = await service.open("board")
    await service.open("other")
    replica.document["k"] = 1
    for _ in range(3):
        service.say(B, Offer("board", LINEAGE, replica.document.history()))
    assert service.is_using(link)
    assert link.said == []
    link.room.set()
    await eventually(lambda: not service.is_using(link))
    assert link.said == [Offer("board", LINEAGE, replica.document.history())]
    link.outcome = SendOutcome.FULL
    link.room.clear()
    service.say(B, Offer("board", LINEAGE, bytes(16)))
    service.link_closed(link, CloseReason.CONNECTION_LOST, "")
    link.room.set()
    service.say(B, Offer("board", LINEAGE, bytes(16)))  # nobody is there
    await asyncio.sleep(0)
    assert len(link.said) == 1


async def test_live_updates_go_both_ways(service: DocumentService, around: Around) -> None:
    """Of open documents only."""
    other = Document("board", Writer(B, 1))
    other["k"] = 1
    payload = encode_live([encode_envelope(envelope) for envelope in other.outgoing()])
    service.live_received(group_of("board"), payload, B, 1)
    replica = await service.open("board")
    service.live_received(group_of("board"), payload, B, 1)
    await eventually(lambda: "k" in replica.document)
    replica.document["mine"] = 2
    await replica.saved()
    assert [group for group, _ in around.published] == [group_of("board")]
    service.publish("unknown", b"")
    assert len(around.published) == 1


async def test_a_liar_loses_its_link(service: DocumentService) -> None:
    """And who has none is left alone."""
    link = Peer()
    service.link_opened(link)
    await service.open("board")
    service.envelopes_received(link, [offer()])
    page = Page("board", LINEAGE, b"\x01" * 16, (b"nonsense",), more=False)
    service.envelopes_received(link, [Envelope(Kind.DOCUMENTS, 1, None, None, encode(page))])
    assert link.closed_for == [CloseReason.PROTOCOL_ERROR]
    service.cut(NodeId("nobody"), "why")


async def test_everything_is_saved_at_the_end(around: Around) -> None:
    """What was written last is on disk when the service is closed; who still opens a document is told."""
    service = around.service()
    replica = await service.open("board")
    replica.document["k"] = 1
    opening = asyncio.ensure_future(service.open("other"))
    await asyncio.sleep(0)
    await service.close()
    with pytest.raises(StateError, match="left"):
        await opening
    store = await DocumentStore.open(around.folder / "d.db")
    log = await store.log("board", LINEAGE)
    assert len(await log.replay()) == 1
    await store.close()
