"""Links through other nodes: gossip services over in-memory endpoints, some of which cannot dial each other."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace

import pytest
from links import FAST as LINKS
from support import eventually

from gossip.config import GossipConfig
from gossip.events import Deliver, Member, MemberState, Superseded
from gossip.incarnation import life_of, make_incarnation
from gossip.service import GossipService
from transport.channel import Channel
from transport.errors import LinkClosed, PeerUnreachable
from transport.link import CloseReason, Link, SendOutcome
from transport.memory import MemoryEndpoint, MemoryNetwork
from transport.types import Address, Lane, NodeId, network_name
from transport.wire import Envelope, Kind

NETWORK = network_name("test")
GOSSIP = GossipConfig(
    heartbeat_interval_s=0.1,
    suspicion_s=0.4,
    suspicion_refused_s=0.3,
    dial_backoff_s_min=0.05,
    dial_backoff_s_max=0.2,
    heal_interval_s=0.3,
    relay_delay_s=0.1,
    relay_search_s=0.1,
    relay_retry_s=0.2,
    relay_rto_s_min=0.05,
)


class Endpoint(MemoryEndpoint):
    """One whose dials to some nodes go nowhere, as behind a NAT."""

    blocked: dict[Address, None]

    async def _connect(self, address: Address, expected: NodeId | None) -> tuple[Channel, NodeId]:
        if address in self.blocked:
            raise PeerUnreachable(f"{address} is blocked")
        return await super()._connect(address, expected)


class Node:
    """A service with its endpoint, and what its listener and data handler heard."""

    def __init__(self, wire: MemoryNetwork, name: str, config: GossipConfig) -> None:
        self.name = NodeId(name)
        self.opened: list[Link] = []
        self.closed: list[tuple[Link, CloseReason]] = []
        self.received: list[tuple[Link, bytes]] = []
        self.busy = False
        self.held: list[Link] = []
        self.released = 0
        self.states: list[tuple[NodeId, MemberState]] = []
        incarnation = make_incarnation(1000)
        self.service = GossipService(
            self.name, incarnation, listener=self, data_handler=self._data, config=config, rng=random.Random(name)
        )
        self.endpoint = Endpoint(wire, NETWORK, self.name, incarnation, self.service, config=LINKS)
        self.endpoint.blocked = {}

    @property
    def links(self) -> dict[NodeId, Link]:
        """What the layer above may send on."""
        known = {link.peer.node_id: link for link in self.opened}
        ended = [link for link, _ in self.closed]
        return {peer: link for peer, link in known.items() if link not in ended}

    def closed_relays(self, peer: Node) -> list[CloseReason]:
        """Why links to ``peer`` closed."""
        return [reason for link, reason in self.closed if link.peer.node_id == peer.name]

    def statistic(self, name: str) -> float:
        return self.service.statistics()[name]

    def bodies(self) -> list[bytes]:
        return [body for _, body in self.received]

    async def send(self, peer: Node, body: bytes) -> None:
        """Send on whatever link there is, waiting for room, or for the link to be released."""
        while True:
            await eventually(lambda: peer.name in self.links and self.links[peer.name] not in self.held)
            link = self.links[peer.name]
            outcome = link.send(Envelope(Kind.MESSAGES, 8, None, None, body), Lane.NORMAL)
            if outcome is SendOutcome.ACCEPTED:
                return
            with contextlib.suppress(LinkClosed):
                await link.wait_writable(Lane.NORMAL)

    def _data(self, link: Link, envelopes: Sequence[Envelope]) -> None:
        assert self.links[link.peer.node_id] is link
        self.received += [(link, envelope.body) for envelope in envelopes]

    # GossipListener

    def member_changed(self, before: Member | None, after: Member) -> None:
        self.states.append((after.node_id, after.state))

    def member_forgotten(self, member: Member) -> None:
        pass

    def broadcast_received(self, delivery: Deliver) -> None:
        pass

    def superseded(self, notice: Superseded) -> None:
        pass

    def link_opened(self, link: Link) -> None:
        self.opened.append(link)

    def link_closed(self, link: Link, reason: CloseReason, detail: str) -> None:
        self.closed.append((link, reason))

    # HoldingListener

    def hold_link(self, link: Link) -> bool:
        if not self.busy:
            self.held.append(link)
        return not self.busy

    def release_link(self, link: Link) -> None:
        self.held.remove(link)
        self.released += 1


Starter = Callable[..., Awaitable[list[Node]]]


@pytest.fixture
def wire() -> MemoryNetwork:
    """What the nodes of one test are connected by."""
    return MemoryNetwork()


@pytest.fixture
async def mesh(wire: MemoryNetwork) -> AsyncIterator[Starter]:
    """Starts nodes of which the pairs in ``blocked`` cannot dial each other, and waits until all know all."""
    started: list[Node] = []

    async def start(names: str, *blocked: str, config: GossipConfig = GOSSIP) -> list[Node]:
        nodes = {name: Node(wire, name, config) for name in names}
        started.extend(nodes.values())
        for node in nodes.values():
            await node.endpoint.start()
        for pair in blocked:
            ends = [nodes[name].endpoint for name in pair]
            for one, another in (ends, ends[::-1]):
                one.blocked[another.listen] = None
        for node in nodes.values():
            await node.service.start(node.endpoint)
            for other in nodes.values():
                node.service.peer_found(other.name, other.endpoint.addresses)
        alive = MemberState.ALIVE

        def complete() -> bool:
            return all(
                sum(member.state is alive for member in node.service.members()) == len(nodes)
                and len(node.links) == len(nodes) - 1 - sum(node.name in pair for pair in blocked)
                for node in nodes.values()
            )

        await eventually(complete, timeout_s=15.0)
        return list(nodes.values())

    yield start
    for node in started:
        await node.service.close()


async def relayed(a: Node, b: Node) -> None:
    """Link two nodes through others."""
    a.service.want_link(b.name)
    await eventually(lambda: b.name in a.links and a.name in b.links)


async def dial_into_silence(a: Node, b: Node, wire: MemoryNetwork) -> None:
    """Have A dial B, which from now on does not answer until the wire is healed."""
    wire.cut(a.name, b.name)
    a.endpoint.blocked.clear()
    before = a.statistic("dial_attempts")
    await eventually(lambda: a.statistic("dial_attempts") > before)


async def test_a_node_that_cannot_be_dialled_is_reached_through_another(mesh: Starter) -> None:
    """Envelopes pass in both directions, and the relay passes them on without looking into them."""
    a, b, c = await mesh("abc", "ab")

    await relayed(a, b)
    await a.send(b, b"there")
    await eventually(lambda: b.received)
    await b.send(a, b"and back")
    await eventually(lambda: a.received)

    assert (b.bodies(), a.bodies(), c.bodies()) == ([b"there"], [b"and back"], [])
    assert b.name not in a.service.links
    assert life_of(a.links[b.name].peer.incarnation) == 1000
    assert c.statistic("relayed_envelopes") > 4
    assert {a.name, b.name} <= c.service._used_at.keys()  # so that a relay's links are not closed as idle
    assert a.statistic("relay_links") == b.statistic("relay_links") == 1


async def test_a_relay_that_dies_is_replaced_and_nothing_is_lost_doubled_or_reordered(mesh: Starter) -> None:
    """C is killed in mid-stream: what was under way is sent again through D."""
    a, b, c, d = await mesh("abcd", "ab")
    await relayed(a, b)
    relay = c
    sent = [b"%d" % n for n in range(3000)]

    for index, body in enumerate(sent):
        await a.send(b, body + bytes(2000))
        if index == 1000:
            await eventually(lambda: len(b.received) > 100)
            relay = c if c.statistic("relayed_bytes") > d.statistic("relayed_bytes") else d
            await relay.service.close()
    await eventually(lambda: len(b.received) >= len(sent), timeout_s=20)

    assert [body.rstrip(b"\0") for body in b.bodies()] == sent
    other = d if relay is c else c
    assert other.statistic("relayed_bytes") > 1_000_000
    assert len(a.opened) == len({link.peer.node_id for link in a.opened})  # the same link all the time


async def test_a_relay_that_falls_silent_is_replaced(mesh: Starter, wire: MemoryNetwork) -> None:
    """Its links still look open, but nothing is acknowledged: another way is found long before they time out."""
    a, b, c, d = await mesh("abcd", "ab")
    await relayed(a, b)
    await a.send(b, b"1")
    await eventually(lambda: b.received)
    silent = c if c.statistic("relayed_envelopes") > d.statistic("relayed_envelopes") else d

    wire.cut(silent.name, b.name)
    wire.cut(silent.name, a.name)
    await a.send(b, b"2")
    await b.send(a, b"3")

    await eventually(lambda: b.bodies() == [b"1", b"2"] and a.bodies() == [b"3"])
    assert not a.closed_relays(b)


async def test_several_relays_in_a_row(mesh: Starter) -> None:
    """A way through two nodes is found where no node is linked to both ends, and is cut short when one can be."""
    a, b, c, d = await mesh("abcd", "ab", "ad", "bc")

    await relayed(a, b)
    await a.send(b, b"there")
    await b.send(a, b"and back")

    await eventually(lambda: b.received and a.received)
    assert c.statistic("relayed_envelopes")
    assert d.statistic("relayed_envelopes")


async def test_a_direct_link_takes_over_without_losing_doubling_or_reordering_anything(mesh: Starter) -> None:
    """The layer above hears of it when the relayed link, on which nothing is under way any more, is closed."""
    a, b, _ = await mesh("abc", "ab")
    await relayed(a, b)
    over_relay = a.links[b.name]

    sent = [b"%d" % n for n in range(400)]
    for index, body in enumerate(sent):
        if index == 200:
            a.endpoint.blocked.clear()
            a.service.want_link(b.name)
        await a.send(b, body)
        await b.send(a, body)
        if index == 300:
            await eventually(lambda: b.name in a.service.links)
            await eventually(lambda: a.links.get(b.name) is a.service.links[b.name])
            await eventually(lambda: b.links.get(a.name) is b.service.links[a.name])

    await eventually(lambda: len(b.received) >= len(sent) and len(a.received) >= len(sent))
    assert b.bodies() == a.bodies() == sent
    assert not over_relay.is_open
    assert a.closed_relays(b) == b.closed_relays(a) == [CloseReason.IDLE]
    assert a.statistic("relay_handovers") == b.statistic("relay_handovers") == 1
    assert a.statistic("relay_links") == 0


async def test_a_busy_relayed_link_goes_over_the_direct_one_until_it_is_idle(mesh: Starter) -> None:
    """Something is under way: the link stays, but the relay has no more to do, and comes in again if need be."""
    a, b, c = await mesh("abc", "ab")
    await relayed(a, b)
    over_relay = a.links[b.name]
    b.busy = True

    a.endpoint.blocked.clear()
    a.service.want_link(b.name)
    await eventually(lambda: b.name in a.service.links and a.name in b.service.links)
    passed_on = c.statistic("relayed_envelopes")
    await a.send(b, b"1")
    await eventually(lambda: b.bodies() == [b"1"])
    assert c.statistic("relayed_envelopes") == passed_on
    assert a.links[b.name] is over_relay

    a.endpoint.blocked[b.endpoint.listen] = None
    a.service.links[b.name].close(CloseReason.IDLE)
    await eventually(lambda: b.name not in a.service.links and a.name not in b.service.links)
    await a.send(b, b"2")
    await eventually(lambda: b.bodies() == [b"1", b"2"])
    assert c.statistic("relayed_envelopes") > passed_on
    assert a.links[b.name] is over_relay


async def test_what_comes_over_a_direct_link_early_waits_for_the_end_of_the_relayed_one(mesh: Starter) -> None:
    """The other side may be ahead: its messages are handed up after all that came over the relayed link."""
    a, b, _ = await mesh("abc", "ab")
    await relayed(a, b)
    over_relay = a.links[b.name]
    a.busy = b.busy = True
    a.endpoint.blocked.clear()
    await eventually(lambda: b.name in a.service.links and a.name in b.service.links)

    b.service.links[a.name].send(Envelope(Kind.MESSAGES, 8, None, None, b"early"), Lane.NORMAL)
    await b.send(a, b"late")
    await eventually(lambda: a.bodies() == [b"late"])
    a.busy = b.busy = False

    await eventually(lambda: a.bodies() == [b"late", b"early"])
    assert a.received[0][0] is over_relay
    assert a.received[1][0] is a.service.links[b.name]


async def test_a_relayed_link_that_nobody_uses_is_closed(mesh: Starter) -> None:
    """In two steps, like every link outside the active view; it opens again when it is wanted."""
    a, b, _ = await mesh("abc", "ab", config=replace(GOSSIP, idle_link_s=0.5))
    await relayed(a, b)
    await a.send(b, b"1")

    await eventually(lambda: b.name not in a.links and a.name not in b.links)

    assert a.closed_relays(b) == b.closed_relays(a) == [CloseReason.IDLE]
    await relayed(b, a)
    await a.send(b, b"2")
    await eventually(lambda: b.bodies() == [b"1", b"2"])


async def test_a_peer_that_needs_the_link_keeps_it(mesh: Starter) -> None:
    """An offer to part is answered with STAY, and whoever offered goes on sending."""
    a, b, _ = await mesh("abc", "ab", config=replace(GOSSIP, idle_link_s=0.3))
    await relayed(a, b)
    b.busy = True

    await eventually(lambda: a.released > 1)
    await a.send(b, b"1")
    await eventually(lambda: b.bodies() == [b"1"])
    assert not a.closed_relays(b)


async def test_the_other_end_of_a_relayed_link_is_dialled_again_now_and_then(mesh: Starter) -> None:
    """In a network too large for a full mesh nobody else would."""
    a, b, _ = await mesh("abc", "ab", config=replace(GOSSIP, heal_interval_s=60.0, relay_upgrade_s=0.2))
    await relayed(a, b)
    a.endpoint.blocked.clear()

    await eventually(lambda: a.links.get(b.name) is a.service.links.get(b.name, 0))
    assert a.statistic("relay_handovers") == 1


async def test_a_slow_dial_is_not_waited_for(mesh: Starter, wire: MemoryNetwork) -> None:
    """A firewall that answers nothing costs relay_delay_s, not the dial's timeout; the first to come is used."""
    a, b, _ = await mesh("abc", "ab")
    await dial_into_silence(a, b, wire)

    a.service.want_link(b.name)
    a.service.want_link(b.name)
    assert b.name not in a.links
    await eventually(lambda: b.name in a.links, timeout_s=1.5)

    await a.send(b, b"1")
    await eventually(lambda: b.bodies() == [b"1"])


async def test_a_direct_link_that_comes_while_it_is_waited_for_needs_no_relay(
    mesh: Starter, wire: MemoryNetwork
) -> None:
    """The relay that would have been asked next is not."""
    a, b, _ = await mesh("abc", "ab", config=replace(GOSSIP, relay_delay_s=10.0))
    await dial_into_silence(a, b, wire)
    a.service.want_link(b.name)
    wire.heal()
    b.endpoint.blocked.clear()  # and now B gets through to A

    await eventually(lambda: b.name in a.links)
    assert a.links[b.name] is a.service.links[b.name]
    assert a.statistic("relay_links_opened") == 0
    a.service.want_link(b.name)
    assert a.statistic("route_searches") == 0


async def test_a_node_that_leaves_says_so_through_its_relay(mesh: Starter) -> None:
    """The link's end is no failure, and comes at once."""
    a, b, _ = await mesh("abc", "ab")
    await relayed(a, b)

    await b.service.leave()

    await eventually(lambda: a.closed_relays(b) == [CloseReason.LEAVING])
    await b.service.close()


async def test_nobody_can_be_reached_who_is_not_there(mesh: Starter, wire: MemoryNetwork) -> None:
    """Strangers and the dead are not searched for; whoever lives where no relay leads is, in vain."""
    a, b, c = await mesh("abc", "ab")
    a.service.want_link(NodeId("stranger"))
    a.service.want_link(a.name)
    assert a.statistic("route_searches") == 0
    wire.cut(c.name, b.name)
    wire.cut(b.name, c.name)

    a.service.want_link(b.name)

    await eventually(lambda: a.statistic("route_searches_failed") > 0)
    await eventually(lambda: a.statistic("relay_links_failed") > 0)
    assert b.name not in a.links


async def test_nonsense_from_a_relay_is_counted_and_cuts_nobody(mesh: Starter) -> None:
    """Neither the relay, which did not write it, nor anybody else."""
    a, b, c = await mesh("abc", "ab")
    await relayed(a, b)

    a.service.links[c.name].send(Envelope(Kind.RELAY, 3, None, b.name, b"nonsense"), Lane.NORMAL)

    await eventually(lambda: b.statistic("relay_errors") == 1)
    await a.send(b, b"1")
    await eventually(lambda: b.bodies() == [b"1"])


async def test_a_relay_whose_link_is_full_drops_and_counts(mesh: Starter, wire: MemoryNetwork) -> None:
    """What it drops is sent again by the ends; nothing is lost."""
    a, b, c = await mesh("abc", "ab")
    await relayed(a, b)
    link = c.service.links[b.name]
    filler = Envelope(Kind.OVERLAY, 0, None, None, b"\x91\x63")
    wire.cut(c.name, b.name, one_way=True)

    def full() -> bool:
        while link.send(filler, Lane.LOW) is SendOutcome.ACCEPTED:
            pass
        return c.statistic("relay_dropped_full") > 0

    await a.send(b, b"1")
    await eventually(full)
    wire.heal()
    await eventually(lambda: b"1" in b.bodies())


async def test_kinds_that_need_a_certificate_are_refused_over_relays(mesh: Starter) -> None:
    """Nobody renews a certificate, or gossips, in the name of another."""
    a, b, _ = await mesh("abc", "ab")
    await relayed(a, b)
    assert a.links[b.name].is_relayed
    assert not b.links[NodeId("c")].is_relayed

    for kind in (Kind.RENEWAL, Kind.MEMBERSHIP):
        a.links[b.name].send(Envelope(kind, 0, None, None, b""), Lane.NORMAL)
    await a.send(b, b"1")

    await eventually(lambda: b.bodies() == [b"1"])
    assert b.statistic("relay_kinds_refused") == 2
