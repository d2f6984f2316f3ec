"""The gossip shell over in-memory links."""

from __future__ import annotations

import functools
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import SimpleNamespace

import pytest
from support import eventually

from gossip import parting
from gossip.codec import News, encode
from gossip.config import GossipConfig
from gossip.events import Deliver, Member, MemberState, Missed, Superseded, Unlink, UnlinkReason
from gossip.incarnation import life_of, make_incarnation
from gossip.service import BroadcastOutcome, GossipService
from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.link import CloseReason, Link, SendOutcome
from transport.memory import MemoryEndpoint, MemoryNetwork
from transport.types import Address, Lane, NodeId, network_name
from transport.wire import Envelope, Kind

ALIVE, SUSPECT, DEAD, LEFT = MemberState.ALIVE, MemberState.SUSPECT, MemberState.DEAD, MemberState.LEFT
NETWORK = network_name("test")
FAST = GossipConfig(
    heartbeat_interval_s=0.1, suspicion_s=0.4, suspicion_refused_s=0.3, dial_backoff_s_min=0.05, dial_backoff_s_max=0.2
)


class Node:
    """A service with its endpoint, and everything its listener heard."""

    def __init__(
        self, wire: MemoryNetwork, name: str, life: int, persist: Callable[[int], object] | None = None
    ) -> None:
        self.name = NodeId(name)
        self.changes: list[tuple[Member | None, Member]] = []
        self.forgotten: list[Member] = []
        self.delivered: list[Deliver] = []
        self.missed: list[Missed] = []
        self.notices: list[Superseded] = []
        self.opened: list[Link] = []
        self.closed: list[CloseReason] = []
        self.data: list[Envelope] = []
        self.busy = False
        self.held: list[Link] = []
        self.released = 0
        self.hook: Callable[[Member | None, Member], None] | None = None
        incarnation = make_incarnation(life)
        self.service = GossipService(
            self.name, incarnation, listener=self, data_handler=self._data, config=FAST, persist=persist,
            rng=random.Random(name),
        )  # fmt: skip
        self.endpoint = MemoryEndpoint(wire, NETWORK, self.name, incarnation, self.service)

    async def start(self) -> None:
        await self.endpoint.start()
        await self.service.start(self.endpoint)

    def state_of(self, other: Node) -> MemberState | None:
        member = self.service.member(other.name)
        return None if member is None else member.state

    def states_seen(self, other: Node) -> list[MemberState]:
        return [after.state for _, after in self.changes if after.node_id == other.name]

    def _data(self, _link: Link, envelopes: Sequence[Envelope]) -> None:
        self.data += envelopes

    # GossipListener

    def member_changed(self, before: Member | None, after: Member) -> None:
        self.changes.append((before, after))
        if self.hook is not None:
            self.hook(before, after)

    def member_forgotten(self, member: Member) -> None:
        self.forgotten.append(member)

    def broadcast_received(self, delivery: Deliver) -> None:
        self.delivered.append(delivery)

    def broadcasts_missed(self, missed: Missed) -> None:
        self.missed.append(missed)

    def superseded(self, notice: Superseded) -> None:
        self.notices.append(notice)

    def link_opened(self, link: Link) -> None:
        self.opened.append(link)

    def link_closed(self, link: Link, reason: CloseReason, detail: str) -> None:
        self.closed.append(reason)

    # HoldingListener

    def hold_link(self, link: Link) -> bool:
        if not self.busy:
            self.held.append(link)
        return not self.busy

    def release_link(self, link: Link) -> None:
        self.released += 1
        if link in self.held:
            self.held.remove(link)


Starter = Callable[..., Awaitable[list[Node]]]


@pytest.fixture
def wire() -> MemoryNetwork:
    """What the nodes of one test are connected by."""
    return MemoryNetwork()


@pytest.fixture
async def mesh(wire: MemoryNetwork) -> AsyncIterator[Starter]:
    """Starts nodes that know the first, waits until all are linked, and closes them in the end."""
    started: list[Node] = []

    async def start(*names: str, life: int = 1000) -> list[Node]:
        nodes = [Node(wire, name, life + index) for index, name in enumerate(names)]
        started.extend(nodes)
        for node in nodes:
            await node.start()
            node.service.peer_found(None, nodes[0].endpoint.addresses)
        await eventually(lambda: all(len(node.service.links) == len(nodes) - 1 for node in nodes))
        await eventually(lambda: len({node.service._core.digest for node in nodes}) == 1)
        return nodes

    yield start
    for node in started:
        await node.service.close()


async def test_nodes_find_each_other_through_one(mesh: Starter) -> None:
    """All know all and are linked to all; last_heard says since when."""
    nodes = await mesh("a", "b", "c", "d")

    for node in nodes:
        assert sorted(m.node_id for m in node.service.members()) == ["a", "b", "c", "d"]
        assert node.service.me.addresses == node.endpoint.addresses
    await eventually(lambda: nodes[0].service.last_heard(NodeId("b")) > time.time() - 60)
    assert nodes[0].service.last_heard(NodeId("nobody")) == 0.0


async def test_a_node_that_goes_silent_dies_for_the_others(mesh: Starter) -> None:
    """Closed without a goodbye: suspect, then dead."""
    a, b, c = await mesh("a", "b", "c")

    await c.service.close()

    await eventually(lambda: a.state_of(c) is DEAD and b.state_of(c) is DEAD)
    assert a.states_seen(c)[-2:] == [SUSPECT, DEAD]


async def test_leaving_is_seen_at_once_and_never_as_failure(mesh: Starter) -> None:
    """The others see LEFT; leaving twice, or closing afterwards, is harmless."""
    a, b, c = await mesh("a", "b", "c")

    await c.service.leave()
    await c.service.leave()
    await c.service.close()

    await eventually(lambda: a.state_of(c) is LEFT and b.state_of(c) is LEFT, timeout_s=1)
    assert {ALIVE, LEFT} == set(a.states_seen(c))
    assert not c.service.statistics()["timers"]
    assert not c.service.statistics()["tasks"]


async def test_a_reset_link_is_refuted_and_restored(mesh: Starter, wire: MemoryNetwork) -> None:
    """A connection that breaks between two live nodes ends with both alive and linked, with a higher incarnation."""
    a, b, _ = await mesh("a", "b", "c")
    before = b.service.me.incarnation

    wire.reset(a.name, b.name)

    await eventually(lambda: b.service.me.incarnation > before or a.service.me.incarnation > make_incarnation(1000))
    await eventually(lambda: a.state_of(b) is ALIVE and b.state_of(a) is ALIVE and b.name in a.service.links)
    assert DEAD not in a.states_seen(b) + b.states_seen(a)


async def test_metadata_spreads(mesh: Starter) -> None:
    """What a node says of itself arrives everywhere; too much is refused at once."""
    a, b, c = await mesh("a", "b", "c")

    a.service.set_meta(b"agents")
    a.service.set_addresses([Address("elsewhere", 1)])

    await eventually(lambda: b.service.member(a.name).meta == c.service.member(a.name).meta == b"agents")  # type: ignore[union-attr]
    await eventually(lambda: c.service.member(a.name).addresses == (Address("elsewhere", 1),))  # type: ignore[union-attr]
    with pytest.raises(LocalProtocolError):
        a.service.set_meta(b"m" * (FAST.meta_bytes_max + 1))


async def test_broadcasts_arrive_once_in_order(mesh: Starter) -> None:
    """Everywhere but at the origin."""
    a, b, c = await mesh("a", "b", "c")

    outcomes = [a.service.broadcast(b"%d" % n, ttl=4) for n in range(20)]

    assert all(outcome.sent + outcome.announced == 2 and not outcome.dropped for outcome in outcomes)
    assert a.service.statistics()["broadcasts_originated"] == 20
    for node in (b, c):
        await eventually(functools.partial(lambda n: len(n.delivered) >= 20, node))
        assert [d.payload for d in node.delivered] == [b"%d" % n for n in range(20)]
    assert a.delivered == []
    with pytest.raises(LocalProtocolError):
        a.service.broadcast(b"", ttl=0)


async def test_the_caller_learns_what_became_of_a_broadcast(mesh: Starter) -> None:
    """Nobody there: kept.  While a life is being stored: kept.  After leaving: dropped."""
    (a,) = await mesh("a")
    assert a.service.broadcast(b"into the void", 4) == BroadcastOutcome(0, 0)
    a.service._writing = True
    assert a.service.broadcast(b"later", 4) == BroadcastOutcome(0, 0)
    a.service._writing = False
    a.service._drain()
    assert a.service.statistics()["broadcasts_originated"] == 2

    await a.service.leave()

    assert a.service.broadcast(b"too late", 4) == BroadcastOutcome(0, 0, dropped=True)


async def test_missed_broadcasts_are_told(mesh: Starter) -> None:
    """To the layer above, if it wants to know."""
    (a,) = await mesh("a")
    missed = Missed(NodeId("b"), 1, 3, 5)

    a.service._execute([missed])

    assert a.missed == [missed]


async def test_a_node_that_is_not_admitted_loses_its_link(wire: MemoryNetwork) -> None:
    """It stays out of the table, and is told why its link closed."""
    a, b = Node(wire, "a", 1000), Node(wire, "b", 1001)
    a.service = GossipService(
        a.name, make_incarnation(1000), listener=a, config=FAST, admit=lambda member: member.node_id != "b"
    )
    a.endpoint = MemoryEndpoint(wire, NETWORK, a.name, make_incarnation(1000), a.service)
    for node in (a, b):
        await node.start()

    b.service.peer_found(None, a.endpoint.addresses)

    await eventually(lambda: CloseReason.VETOED in b.closed)
    assert a.service.member(b.name) is None
    for node in (a, b):
        await node.service.close()


async def test_other_kinds_go_to_the_data_handler(mesh: Starter) -> None:
    """As they came; without a handler they are counted."""
    a, b = await mesh("a", "b")
    link = a.service.links[b.name]

    assert link.send(Envelope(Kind.MESSAGES, 0, None, None, b"m"), Lane.NORMAL) is SendOutcome.ACCEPTED
    assert link.send(Envelope(Kind.ACKS, 0, None, None, b"k"), Lane.NORMAL) is SendOutcome.ACCEPTED
    await eventually(lambda: [e.body for e in b.data] == [b"m", b"k"])
    b.service._data_handler = None
    link.send(Envelope(Kind.MESSAGES, 0, None, None, b"m"), Lane.NORMAL)
    await eventually(lambda: b.service.statistics()["envelopes_unhandled"] == 1)


def _idle(monkeypatch: pytest.MonkeyPatch, *nodes: Node) -> None:
    """Make the overlays of nodes hold their links for spare ones that have been idle long enough."""
    for node in nodes:
        monkeypatch.setattr(node.service._core._overlay, "is_busy", lambda _peer: False)
        monkeypatch.setattr(node.service._core._overlay, "is_spare", lambda _peer, _now: True)


async def test_an_idle_link_is_closed_when_both_sides_agree(mesh: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody who sends is held first; a link that is needed, or on which something is under way, stays."""
    a, b = await mesh("a", "b")
    offer = Unlink(b.name, "not needed", UnlinkReason.IDLE)

    a.service._execute([offer])  # still neighbours: b says so
    await eventually(lambda: a.held == [] and a.released == 1)
    _idle(monkeypatch, a, b)
    b.busy = True
    a.service._execute([offer])
    await eventually(lambda: a.held == [] and a.released == 2)
    a.busy, b.busy = True, False
    a.service._execute([offer])
    assert a.held == []
    a.busy = False
    link = a.service.links[b.name]
    b.service.links[a.name].send(Envelope(Kind.MESSAGES, 0, None, None, b"on its way"), Lane.NORMAL)
    a.service._execute([offer, offer])

    await eventually(lambda: a.closed == b.closed == [CloseReason.IDLE])
    assert a.held == [link]
    assert len(b.held) == 1
    assert [envelope.body for envelope in a.data] == [b"on its way"]
    assert a.states_seen(b)[-1] is b.states_seen(a)[-1] is ALIVE


async def test_a_link_that_became_needed_after_the_offer_stays(mesh: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The side that offered takes it back, and the one that agreed sends again."""
    a, b = await mesh("a", "b")
    _idle(monkeypatch, a, b)
    a.service._execute([Unlink(b.name, "not needed", UnlinkReason.IDLE)])
    monkeypatch.setattr(a.service._core._overlay, "is_busy", lambda _peer: True)

    await eventually(lambda: a.released == b.released == 1)
    assert a.closed == b.closed == []
    assert not a.service._partings
    assert not b.service._partings


async def test_an_offer_that_nobody_answers_ends(mesh: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    """We send again; the agreement that comes late is taken back, and so is one after which data came."""
    monkeypatch.setattr(parting, "OFFER_S", 0.0)
    a, b = await mesh("a", "b")
    _idle(monkeypatch, a, b)
    here = a.service.links[b.name]

    a.service._execute([Unlink(b.name, "not needed", UnlinkReason.IDLE)])
    a.service._partings.expired(a.service._clock.monotonic())
    await eventually(lambda: b.released == 1)  # its agreement came too late, and was answered
    b.service._partings.agreed(a.name, b.service._clock.monotonic())
    here.send(Envelope(Kind.MESSAGES, 0, None, None, b"m"), Lane.NORMAL)
    await eventually(lambda: b.released == 2)

    a.service._partings.offered(b.name, 0.0)
    await eventually(lambda: a.released >= 1)
    here.send(Envelope(Kind.PARTING, 0, None, None, b"\x77"), Lane.CONTROL)
    here.send(Envelope(Kind.MESSAGES, 0, None, None, b"last"), Lane.NORMAL)
    await eventually(lambda: b.data[-1].body == b"last")
    assert a.closed == b.closed == []


async def test_a_peer_that_breaks_the_protocol_loses_its_link(mesh: Starter) -> None:
    """Counted, closed with the code, and the node goes on."""
    a, b = await mesh("a", "b")

    a.service.links[b.name].send(Envelope(Kind.MEMBERSHIP, 0, None, None, b"\xc1"), Lane.CONTROL)

    await eventually(lambda: CloseReason.PROTOCOL_ERROR in b.closed)
    assert b.service.statistics()["peer_errors"] == 1
    await eventually(lambda: a.name in b.service.links)


async def test_superseded_is_told_once_after_the_life_was_stored(wire: MemoryNetwork) -> None:
    """Persist comes before the notice, in a thread; what arrives meanwhile waits."""
    stored: list[int] = []
    gate = threading.Event()

    def persist(incarnation: int) -> None:
        gate.wait(5)
        stored.append(incarnation)

    node, other = Node(wire, "a", 10, persist), Node(wire, "b", 20)
    await node.start()
    await other.start()
    other.service.peer_found(node.name, node.endpoint.addresses)
    await eventually(lambda: other.name in node.service.links and node.name in other.service.links)
    news = encode(News((Member(node.name, make_incarnation(99), ALIVE),)))
    link = other.service.links[node.name]

    link.send(Envelope(Kind.MEMBERSHIP, 0, None, None, news), Lane.CONTROL)
    await eventually(lambda: node.service._writing)
    link.send(Envelope(Kind.MEMBERSHIP, 0, None, None, b"\x91\xcc\xc8"), Lane.CONTROL)
    await eventually(lambda: len(node.service._backlog) > 0)
    assert node.notices == []
    gate.set()

    await eventually(lambda: node.notices)
    assert stored == [make_incarnation(99)]
    assert life_of(node.notices[0].incarnation) == 99
    node.service.node_id_taken("again")
    assert len(node.notices) == 1
    await node.service.close()
    await other.service.close()


async def test_a_failing_disk_does_not_hide_the_notice(wire: MemoryNetwork) -> None:
    """It is counted and logged, and the process is told to stop all the same."""

    def persist(_incarnation: int) -> None:
        raise OSError("disk full")

    node, other = Node(wire, "a", 10, persist), Node(wire, "b", 20)
    await node.start()
    await other.start()
    other.service.peer_found(node.name, node.endpoint.addresses)
    await eventually(lambda: node.name in other.service.links)
    news = encode(News((Member(node.name, make_incarnation(99), ALIVE),)))
    other.service.links[node.name].send(Envelope(Kind.MEMBERSHIP, 0, None, None, news), Lane.CONTROL)

    await eventually(lambda: node.notices)

    assert node.service.statistics()["persist_failures"] == 1
    await node.service.close()
    await other.service.close()


async def test_a_second_live_process_with_our_id_is_told(mesh: Starter, wire: MemoryNetwork) -> None:
    """The newcomer's dial is refused while the first still answers, and it learns why."""
    a, b = await mesh("a", "b")
    impostor = Node(wire, "b", 2000)
    await impostor.start()

    impostor.service.peer_found(None, a.endpoint.addresses)

    await eventually(lambda: impostor.notices, what="the newcomer is told")
    assert "another live process" in impostor.notices[0].why
    assert b.notices == []
    await impostor.service.close()


@pytest.mark.parametrize("stall_s", [0.5, 1.0])
async def test_a_stall_of_our_own_kills_nobody(mesh: Starter, wire: MemoryNetwork, stall_s: float) -> None:
    """The loop stands still for longer than the suspicion time right after a suspicion began: no death."""
    a, b, _ = nodes = await mesh("a", "b", "c")
    stalled: list[float] = []

    def stall(_before: Member | None, after: Member) -> None:
        end = time.monotonic() + stall_s
        while after.state is SUSPECT and not stalled and time.monotonic() < end:
            pass  # what a stalled process looks like from inside
        if after.state is SUSPECT:
            stalled.append(stall_s)

    a.hook = stall
    wire.reset(a.name, b.name)

    await eventually(lambda: stalled)
    await eventually(lambda: all(node.service.statistics()["stalls"] >= 1 for node in nodes))
    await eventually(lambda: a.state_of(b) is ALIVE and b.state_of(a) is ALIVE)
    assert all(after.state is not DEAD for node in nodes for _, after in node.changes)
    assert a.service.statistics()["stall_longest_s"] > 0.2


async def test_what_comes_before_start_is_not_lost(wire: MemoryNetwork) -> None:
    """A link that opens between the endpoint's start and the service's is taken over."""
    early, other = Node(wire, "a", 1), Node(wire, "b", 2)
    await early.endpoint.start()
    await other.start()
    other.service.peer_found(early.name, early.endpoint.addresses)
    await eventually(lambda: early.opened)
    assert len(early.service.members()) == 1

    await early.service.start(early.endpoint)

    await eventually(lambda: early.state_of(other) is ALIVE)
    await early.service.close()
    await other.service.close()


async def test_garbage_that_waited_closes_its_link_too(wire: MemoryNetwork) -> None:
    """A body read late is judged like one read at once; a request of our own that fails is logged."""
    early, other = Node(wire, "a", 1), Node(wire, "b", 2)
    await early.endpoint.start()
    await other.start()
    other.service.peer_found(early.name, early.endpoint.addresses)
    await eventually(lambda: early.name in other.service.links)
    other.service.links[early.name].send(Envelope(Kind.MEMBERSHIP, 0, None, None, b"\xc1"), Lane.CONTROL)
    await eventually(lambda: len(early.service._backlog) >= 2)
    early.service.set_meta(b"m" * (FAST.meta_bytes_max + 1))

    await early.service.start(early.endpoint)

    await eventually(lambda: CloseReason.PROTOCOL_ERROR in early.closed)
    assert early.service.me.meta == b""
    await early.service.close()
    await other.service.close()


async def test_a_full_link_drops_and_counts(mesh: Starter) -> None:
    """Gossip never waits: what a full or closing link refuses is counted, anti-entropy repeats it."""
    a, b = await mesh("a", "b")
    link = a.service.links[b.name]
    outcomes = iter([SendOutcome.FULL, SendOutcome.CLOSED])
    a.service._links[b.name] = SimpleNamespace(send=lambda *_args, **_kwargs: next(outcomes))

    refused = [a.service.broadcast(b"x", 1), a.service.broadcast(b"y", 1)]
    a.service._links[b.name] = link

    assert refused == [BroadcastOutcome(0, 1), BroadcastOutcome(0, 1)]

    assert a.service.statistics()["sends_dropped_full"] == 1
    assert a.service.statistics()["sends_dropped_no_link"] >= 1


async def test_handler_errors_of_the_data_layer_reach_the_link(mesh: Starter) -> None:
    """A RemoteProtocolError raised above closes the link with its code."""
    a, b = await mesh("a", "b")

    def refuse(_link: Link, _envelopes: Sequence[Envelope]) -> None:
        raise RemoteProtocolError("no")

    b.service._data_handler = refuse
    a.service.links[b.name].send(Envelope(Kind.MESSAGES, 0, None, None, b"m"), Lane.NORMAL)

    await eventually(lambda: CloseReason.PROTOCOL_ERROR in b.closed)
