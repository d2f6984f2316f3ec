"""Multicast groups over real nodes, and their corners over a carrier that only notes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from couriers import World
from networks import Networks, networks, runtime
from support import eventually

from gossip.service import BroadcastOutcome
from mesh import AgentMessage, AgentNetworkManager, DeliveryStatus, InvalidMessage, NotDelivered, RegistrationTooLarge
from mesh.agents import Handler
from mesh.errors import UnknownAgent
from mesh.events import AgentJoined, AgentLeft
from mesh.messaging.courier import Courier
from mesh.messaging.groups import QUEUE_AGENT_ID_MIN, Groups
from mesh.messaging.parcel import Parcel
from mesh.types import AgentInfo, MessageType, Priority, Receipt
from transport.errors import LocalProtocolError
from transport.types import NodeId


@pytest.fixture
async def join(tmp_path: Path) -> AsyncIterator[Networks]:
    """Starts nodes."""
    async with networks(tmp_path) as started:
        yield started


def note(into: list[tuple[str, bytes]], where: str) -> Handler:
    """A handler that notes what it hears, and where."""

    async def heard(message: AgentMessage) -> None:
        into.append((where, message.payload))

    return heard


async def _known(nets: list[AgentNetworkManager], group: str, *nodes: str) -> None:
    """Wait until everybody knows who subscribes."""
    await eventually(lambda: all(set(runtime(net).view.subscribers(group)) == set(nodes) for net in nets))


# --- over real nodes --------------------------------------------------------------------------------------------


async def test_a_publication_reaches_every_subscription_and_nobody_else(join: Networks) -> None:
    """Two on one node, one on another, from a subscriber and from a node that is none; fields arrive as sent."""
    nets = await join.several("a", "b", "c", "d")
    heard: list[tuple[str, bytes]] = []
    seen: list[AgentMessage] = []

    async def keep(message: AgentMessage) -> None:
        seen.append(message)

    await nets[0].subscribe("news", note(heard, "a1"))
    await nets[0].subscribe("news", note(heard, "a2"))
    await nets[1].subscribe("news", keep)
    await nets[2].subscribe("other", note(heard, "c"))
    await _known(nets, "news", "a", "b")
    receipt = await nets[3].publish("news", b"from outside", from_agent=9, headers={"k": "v"}, priority=Priority.HIGH)
    assert receipt.status in {DeliveryStatus.SENT, DeliveryStatus.QUEUED}
    assert (await nets[0].publish("news", b"from inside")).status is DeliveryStatus.SENT

    expected = [(where, payload) for where in ("a1", "a2") for payload in (b"from inside", b"from outside")]
    await eventually(lambda: sorted(heard) == sorted(expected))
    await eventually(lambda: len(seen) == 2)
    (outside,) = [message for message in seen if message.payload == b"from outside"]
    assert (outside.from_agent, outside.from_node, outside.to_agent, outside.group) == (9, "d", None, "news")
    assert (outside.headers, outside.priority, outside.message_id) == ({"k": "v"}, Priority.HIGH, receipt.message_id)


async def test_a_subscription_without_handler_is_read_and_ends(join: Networks) -> None:
    """After ``unsubscribe`` the node takes no part any more; a second one on the node goes on."""
    a, b = await join.several("a", "b")
    heard: list[tuple[str, bytes]] = []
    async with await a.subscribe("g") as subscription:
        other = await a.subscribe("g", note(heard, "other"))
        await _known([a, b], "g", "a")
        await b.publish("g", b"1")
        assert (await anext(subscription.messages())).payload == b"1"
    await b.publish("g", b"2")
    await eventually(lambda: heard == [("other", b"1"), ("other", b"2")])

    await other.unsubscribe()
    await other.unsubscribe()
    await _known([a, b], "g")
    assert a.stats()["groups"]["subscriptions"] == 0


async def test_members_of_a_queue_share_the_work(join: Networks) -> None:
    """Each publication goes to one of them and to every plain subscription; without members to no queue."""
    nets = await join.several("a", "b", "c")
    heard: list[tuple[str, bytes]] = []
    workers = [await net.subscribe("jobs", note(heard, f"w{i}"), queue="workers") for i, net in enumerate(nets[:2])]
    await nets[2].subscribe("jobs", note(heard, "all"))
    await _known(nets, "jobs", "c")
    await eventually(lambda: all(len(net.agents()) == 2 for net in nets))

    for number in range(20):
        await nets[number % 3].publish("jobs", b"%d" % number)

    await eventually(lambda: len(heard) == 40)
    assert Counter(payload for where, payload in heard if where != "all") == Counter(b"%d" % n for n in range(20))
    assert {where for where, _ in heard} == {"w0", "w1", "all"}
    for worker in workers:
        await worker.unsubscribe()
    await eventually(lambda: all(net.agents() == [] for net in nets))
    await nets[0].publish("jobs", b"last")
    await eventually(lambda: heard[-1] == ("all", b"last"))


async def test_bad_names_are_refused(join: Networks) -> None:
    """With an error that says which; nothing is subscribed or sent."""
    net = await join("a")
    for group in ("", "x" * 201, 7):
        with pytest.raises(InvalidMessage, match="group"):
            await net.subscribe(group)  # type: ignore[arg-type]
        with pytest.raises(InvalidMessage, match="group"):
            await net.publish(group, b"")  # type: ignore[arg-type]
    with pytest.raises(InvalidMessage, match="queue"):
        await net.subscribe("g", queue="")
    with pytest.raises(InvalidMessage, match="concurrency"):
        await net.subscribe("g", concurrency=0)
    with pytest.raises(InvalidMessage, match="payload"):
        await net.publish("g", "text")  # type: ignore[arg-type]
    assert net.stats()["groups"]["subscriptions"] == net.stats()["groups"]["published"] == 0


# --- corners ----------------------------------------------------------------------------------------------------


class Carrier:
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, tuple[str, ...], bool]] = []
        self.refuse = False

    def open_group(self, group: str, subscribers: Iterable[NodeId], *, member: bool) -> None:
        if self.refuse:
            raise LocalProtocolError("too many groups")
        self.opened.append((group, tuple(subscribers), member))

    def publish(self, group: str, payload: bytes, ttl: int) -> BroadcastOutcome:
        del group, payload, ttl
        return BroadcastOutcome(1, 0)


class Announcer:
    """What the network is told; fails when it is told to."""

    def __init__(self) -> None:
        self.said: list[tuple[str, ...]] = []
        self.full = False

    def __call__(self, groups: tuple[str, ...]) -> None:
        if self.full:
            raise RegistrationTooLarge("too much")
        self.said.append(groups)


def make(courier: Courier) -> tuple[Groups, Carrier, Announcer]:
    """Groups over a carrier that only notes; everybody believes that b subscribes."""
    carrier, announcer = Carrier(), Announcer()
    made = Groups(courier, carrier, subscribers=lambda _: ["b"], announce=announcer, rng=random.Random(1))
    return made, carrier, announcer


def parcel(group: str = "g") -> Parcel:
    """A publication as the manager hands it over."""
    return Parcel(0, 1, MessageType.BROADCAST, b"p", Priority.NORMAL, 8, 0, None, group)


async def test_what_cannot_be_announced_is_not_subscribed() -> None:
    """Neither when there are too many groups nor when the profile is full; the group is left again."""
    async with World() as world:
        groups, carrier, announcer = make(world["a"])
        announcer.full = True
        with pytest.raises(RegistrationTooLarge):
            groups.subscribe("g", None, concurrency=1)
        assert carrier.opened == [("g", ("b",), True), ("g", (), False)]
        announcer.full, carrier.refuse = False, True
        with pytest.raises(LocalProtocolError):
            groups.subscribe("g", None, concurrency=1)
        assert announcer.said == []
        carrier.refuse = False
        subscription = groups.subscribe("g", None, concurrency=1)
        groups.subscribe("g", None, concurrency=1)
        await subscription.unsubscribe()
        assert announcer.said == [("g",)]
        assert groups.statistics()["subscriptions"] == 1
        await groups.close()
        await subscription.unsubscribe()
        assert groups.statistics()["subscriptions"] == 0


async def test_a_publication_that_names_another_group_is_refused() -> None:
    """As a member could send it: counted, and nobody hears it."""
    async with World() as world:
        groups, _, _ = make(world["a"])
        subscription = groups.subscribe("g", None, concurrency=1)
        _, payload = world["a"].launch(parcel("other"), lambda *_: BroadcastOutcome(1, 0))
        groups.received("g", payload, "b", 1)
        assert groups.counters["refused"] == 1
        _, payload = world["a"].launch(parcel(), lambda *_: BroadcastOutcome(1, 0))
        groups.received("g", payload, "b", 1)
        assert (await anext(subscription.messages())).group == "g"
        await groups.close()


async def test_another_member_of_a_queue_is_tried_only_if_the_first_certainly_has_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At most three; if none takes it the caller learns that the others have it."""
    async with World() as world:
        groups, _, _ = make(world["a"])
        agents = [AgentInfo(QUEUE_AGENT_ID_MIN + n, "b", name="q", tags=("queue:g", "else")) for n in range(4)]
        stranger = AgentInfo(7, "b", name="q", tags=("queue:g",))
        groups.heard([*(AgentJoined(agent) for agent in agents), AgentJoined(stranger), AgentLeft(agents[3])])
        tried: list[int] = []
        failures: list[Exception] = [NotDelivered("no"), UnknownAgent("gone")]

        async def send(parcel: Parcel, *, ack: bool, timeout_s: float) -> Receipt:
            assert ack
            assert timeout_s == pytest.approx(1.0)
            tried.append(parcel.to_agent)
            if failures:
                raise failures.pop(0)
            return Receipt("m", DeliveryStatus.DELIVERED, "b")

        monkeypatch.setattr(world["a"], "send", send)
        await groups.publish(parcel(), timeout_s=3.0)
        assert sorted(tried) == [QUEUE_AGENT_ID_MIN + n for n in range(3)]

        failures += [NotDelivered("no")] * 3
        with pytest.raises(NotDelivered, match="no member of queue 'q' of group 'g' took the message \\(3 tried\\)"):
            await groups.publish(parcel(), timeout_s=3.0)
        groups.heard([AgentLeft(agent) for agent in agents[:2]])
        failures += [NotDelivered("no")]
        with pytest.raises(NotDelivered, match="1 tried"):
            await groups.publish(parcel(), timeout_s=3.0)
        groups.heard([AgentLeft(agents[2])])
        assert (await groups.publish(parcel(), timeout_s=3.0)).nodes == 1
        assert groups.counters["queue_failures"] == 2
