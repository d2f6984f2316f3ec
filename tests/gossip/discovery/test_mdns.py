from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from support import eventually

from gossip.discovery.advertise import Adapter, Interfaces
from gossip.discovery.base import Announcement, Sighting
from gossip.discovery.interfaces import InterfaceWatcher
from gossip.discovery.mdns import MdnsConfig, MdnsDiscovery
from gossip.discovery.responder import Service
from gossip.discovery.txt import SERVICE_TYPE, encode, label
from transport.types import Address, NetworkName, NodeId

_AUTHORITY, _STRANGER = "ab" * 32, "cd" * 32
_LO = Adapter("lo", 1, ("127.0.0.1",))
_ETH = Adapter("eth0", 2, ("10.0.0.5",))
_FAST = MdnsConfig(renew_initial_s=0.01, renew_max_s=0.05, retry_initial_s=0.01, retry_max_s=0.02)
_SLOW = MdnsConfig(renew_initial_s=60.0, renew_max_s=60.0)


def _announcement(
    node: str, *, network: str = "default", authority: str = _AUTHORITY, host: str = "10.0.0.5", life: int = 1
) -> Announcement:
    addresses = (Address(host, 7946),)
    return Announcement(NetworkName(network), NodeId(node), life << 16, 7946, addresses, authority)


class _Sink:
    def __init__(self) -> None:
        self.sightings: list[Sighting] = []
        self.losses: list[NodeId] = []

    def found(self, sighting: Sighting) -> None:
        self.sightings.append(sighting)

    def lost(self, node_id: NodeId, source: str) -> None:
        assert source == "mdns"
        self.losses.append(node_id)

    @property
    def nodes(self) -> set[str | None]:
        return {sighting.node_id for sighting in self.sightings}


class _Wire:
    """A made-up local network: what is announced, who browses, and what goes wrong."""

    def __init__(self) -> None:
        self.announced: list[Announcement] = []
        self.adapters: list[Sequence[Adapter]] = []
        self.cache: dict[str, Service | Exception] = {}
        self.answers: dict[str, Service | Exception] = {}
        self.changed: Callable[[str, bool], None] = lambda name, present: None
        self.browses = self.closes = self.asking = 0
        self.refuses: Exception | None = None
        self.sockets = 1

    async def open(self, adapters: Sequence[Adapter]) -> _Wire:
        if self.refuses is not None:
            raise self.refuses
        self.adapters.append(adapters)
        return self

    async def announce(self, announcement: Announcement) -> None:
        self.announced.append(announcement)

    def browse(self, changed: Callable[[str, bool], None]) -> None:
        self.browses += 1
        self.changed = changed
        for name in self.cache:
            changed(name, True)

    def cached(self, name: str) -> Service | None:
        found = self.cache.get(name)
        if isinstance(found, Exception):
            raise found
        return found

    async def resolve(self, name: str, timeout_s: float) -> Service | None:
        self.asking += 1
        answer = self.answers.get(name)
        if answer is None:
            await asyncio.get_running_loop().create_future()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def use(self, adapters: Sequence[Adapter]) -> None:
        self.adapters.append(adapters)
        if self.refuses is not None:
            raise self.refuses

    async def close(self) -> None:
        self.closes += 1

    def appear(self, service: Service) -> None:
        self.cache[service.name] = service
        self.changed(service.name, True)


def _service(announcement: Announcement, addresses: tuple[str, ...] = ("10.0.0.9",), **fields: bytes | None) -> Service:
    properties: dict[bytes, bytes | None] = {k.encode(): v.encode() for k, v in encode(announcement).items()}
    properties.update({key.encode(): value for key, value in fields.items()})
    return Service(f"{label(announcement)}.{SERVICE_TYPE}", properties, addresses, announcement.port)


class _Machine:
    def __init__(self, *adapters: Adapter) -> None:
        self.interfaces = Interfaces(adapters)

    def read(self) -> Interfaces:
        return self.interfaces


@asynccontextmanager
async def _running(
    wire: _Wire,
    sink: _Sink,
    *,
    machine: _Machine | None = None,
    announcement: Announcement | None = None,
    config: MdnsConfig = _SLOW,
    peers_missing: Callable[[], bool] | None = None,
) -> AsyncIterator[MdnsDiscovery]:
    watcher = InterfaceWatcher(interval_s=0.01, settle_s=0.01, read=(machine or _Machine(_LO, _ETH)).read)
    await watcher.start()
    discovery = MdnsDiscovery(
        watcher, config=config, rng=random.Random(1), open_responder=wire.open, peers_missing=peers_missing
    )
    try:
        await discovery.start(announcement or _announcement("a"), sink)
        await discovery.start(announcement or _announcement("a"), sink)
        if wire.refuses is None:
            await eventually(lambda: wire.announced)
        yield discovery
    finally:
        await discovery.close()
        await discovery.close()
        await watcher.close()


async def test_a_neighbour_is_reported_with_its_addresses_and_withdrawn_as_a_hint() -> None:
    """Who announces itself under our network and authority is found; a goodbye is passed on as what it is."""
    wire, sink = _Wire(), _Sink()
    async with _running(wire, sink) as discovery:
        service = _service(_announcement("b", life=9))
        wire.appear(service)
        assert sink.sightings == [Sighting("mdns", (Address("10.0.0.9", 7946),), NodeId("b"), 9 << 16)]
        wire.changed(service.name, False)
        wire.changed(service.name, False)
        assert sink.losses == ["b"]
        statistics = discovery.statistics()
    assert (statistics["available"], statistics["found"], statistics["lost"], statistics["known"]) == (1, 1, 1, 0)
    assert wire.closes == 1
    assert wire.adapters == [(_ETH,)]


async def test_records_that_are_not_there_yet_are_asked_for_once() -> None:
    """A name without records leads to one question, however often it is mentioned."""
    wire, sink = _Wire(), _Sink()
    service = _service(_announcement("b"))
    wire.answers[service.name] = service
    async with _running(wire, sink):
        wire.changed(service.name, True)
        wire.changed(service.name, True)
        await eventually(lambda: sink.nodes == {"b"})
        assert wire.asking == 1


async def test_oneself_and_other_networks_are_not_reported() -> None:
    """Only nodes that TLS could accept are worth a dial."""
    wire, sink = _Wire(), _Sink()
    async with _running(wire, sink) as discovery:
        wire.appear(_service(_announcement("a")))
        wire.appear(_service(_announcement("b", network="other")))
        assert sink.sightings == []
        assert discovery.statistics()["other_network"] == 1


async def test_another_authority_under_our_name_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Two networks of one name on one LAN is a mistake somebody should hear of, once per authority."""
    wire, sink = _Wire(), _Sink()
    async with _running(wire, sink) as discovery:
        for node in ("b", "c", "d"):
            wire.appear(_service(_announcement(node, authority=_STRANGER)))
        for number in range(200):
            wire.appear(_service(_announcement("e", authority=f"{number:064x}"[::-1])))
        assert discovery.statistics()["other_authority"] == 203
    assert sink.sightings == []
    said = [record for record in caplog.records if "another authority" in record.getMessage()]
    assert len(said) == 64
    assert sum(_STRANGER[:32] in record.getMessage() for record in said) == 1


@pytest.mark.parametrize(
    "hostile",
    [
        _service(_announcement("b"), v=b"2"),
        _service(_announcement("b"), id=None),
        _service(_announcement("b"), id=b"\xff\xfe\x00"),
        _service(_announcement("b"), id=b"x" * 60_000),
        _service(_announcement("b"), inc=b"NaN"),
        _service(_announcement("b"), port=b"1"),
        _service(_announcement("b"), at=b"\n" * 200),
        _service(_announcement("b"), addresses=("127.0.0.1", "224.0.0.1")),
        _service(_announcement("b"), addresses=()),
        Service(f"x.{SERVICE_TYPE}", {}, ("10.0.0.1",), None),
        Service("no-type", {}, ("10.0.0.1",), 1),
        Service(f"{'x' * 300}.{SERVICE_TYPE}", {}, ("10.0.0.1",), 1),
    ],
)
async def test_hostile_services_are_counted_and_ignored(hostile: Service) -> None:
    """Nothing that a neighbour writes gets further than a counter, and the next neighbour is found all the same."""
    wire, sink = _Wire(), _Sink()
    async with _running(wire, sink) as discovery:
        wire.appear(hostile)
        assert sink.sightings == []
        assert discovery.statistics()["malformed"] == 1
        wire.appear(_service(_announcement("c")))
        assert sink.nodes == {"c"}


async def test_records_that_zeroconf_cannot_read_are_counted() -> None:
    """An exception out of the library costs that one service."""
    wire, sink = _Wire(), _Sink()
    name, other = f"x.{SERVICE_TYPE}", f"y.{SERVICE_TYPE}"
    wire.cache[name] = ValueError("bad record")
    wire.answers[other] = RuntimeError("worse")
    async with _running(wire, sink) as discovery:
        wire.changed(other, True)
        await eventually(lambda: discovery.statistics()["malformed"] == 2)
        wire.appear(_service(_announcement("c")))
        assert sink.nodes == {"c"}


async def test_thousands_of_invented_nodes_are_bounded() -> None:
    """Memory and questions stay limited whatever is announced."""
    wire, sink = _Wire(), _Sink()
    async with _running(wire, sink) as discovery:
        for number in range(6000):
            wire.appear(_service(_announcement(f"fake-{number}")))
        for number in range(6000):
            wire.changed(f"name-{number}.{SERVICE_TYPE}", True)
        await eventually(lambda: wire.asking == 64)
        statistics = discovery.statistics()
    assert statistics["known"] == 4096
    assert statistics["dropped"] == 6000 - 64


async def test_an_update_is_announced_once() -> None:
    """A new incarnation or address reaches the neighbours; saying the same again does not."""
    wire, sink = _Wire(), _Sink()
    async with _running(wire, sink) as discovery:
        await discovery.update(_announcement("a"))
        await discovery.update(_announcement("a", life=2))
        await eventually(lambda: [a.incarnation >> 16 for a in wire.announced] == [1, 2])


async def test_adapters_that_change_are_followed_and_neighbours_looked_for_anew() -> None:
    """A cable plugged in is joined, and whoever announced themselves meanwhile are asked for."""
    wire, sink, machine = _Wire(), _Sink(), _Machine(_LO, _ETH)
    async with _running(wire, sink, machine=machine) as discovery:
        moved = Adapter("eth0", 2, ("10.9.9.9",))
        machine.interfaces = Interfaces((_LO, moved))
        await eventually(lambda: wire.adapters[-1] == (moved,))
        await eventually(lambda: wire.browses == 2)
        assert discovery.statistics()["renewals"] == 1


async def test_the_browser_is_renewed_while_peers_are_missing() -> None:
    """zeroconf stops asking after 14 s; we do not as long as somebody known is not linked."""
    wire, sink = _Wire(), _Sink()
    missing = [True]
    async with _running(wire, sink, config=_FAST, peers_missing=lambda: missing[0]):
        await eventually(lambda: wire.browses > 3)
        missing[0] = False
        await asyncio.sleep(0.1)
        browses = wire.browses
        await asyncio.sleep(0.2)  # several renewal intervals, in which nothing may happen
        assert wire.browses == browses


async def test_no_multicast_is_one_warning_and_a_retry(caplog: pytest.LogCaptureFixture) -> None:
    """A container without multicast runs; the warning says what follows and comes once; recovery is noticed."""
    wire, sink = _Wire(), _Sink()
    wire.refuses = OSError(98, "Address already in use")
    async with _running(wire, sink, config=_FAST) as discovery:
        await eventually(lambda: discovery.statistics()["failures"] >= 3)
        assert discovery.statistics()["available"] == 0
        wire.refuses = None
        await eventually(lambda: discovery.statistics()["available"] == 1)
        wire.appear(_service(_announcement("b")))
        assert sink.nodes == {"b"}
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "mdns unavailable" in warnings[0]
    assert "Address already in use" in warnings[0]


async def test_losing_the_last_adapter_is_survived() -> None:
    """When the sockets go, everything is closed and opened anew once something is there again."""
    wire, sink, machine = _Wire(), _Sink(), _Machine(_LO, _ETH)
    async with _running(wire, sink, machine=machine, config=_FAST) as discovery:
        wire.refuses = OSError(19, "No such device")
        machine.interfaces = Interfaces(())
        await eventually(lambda: discovery.statistics()["available"] == 0)
        wire.refuses = None
        machine.interfaces = Interfaces((_LO, _ETH))
        await eventually(lambda: discovery.statistics()["available"] == 1)


async def test_a_node_on_loopback_stays_on_the_machine() -> None:
    """Tests and the demo leave no trace on the network, and still find each other."""
    wire, sink = _Wire(), _Sink()
    async with _running(wire, sink, announcement=_announcement("a", host="127.0.0.1")) as discovery:
        assert wire.adapters == [(_LO,)]
        wire.appear(_service(_announcement("b", host="127.0.0.1"), addresses=("127.0.0.1",)))
        assert sink.nodes == {"b"}
        assert discovery.statistics()["available"] == 1


async def test_a_machine_without_a_network_is_warned_of_and_left_when_there_is_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two nodes on an offline laptop meet over loopback; the network is joined as soon as it is there."""
    wire, sink, machine = _Wire(), _Sink(), _Machine(_LO)
    alone = Announcement(
        NetworkName("default"),
        NodeId("a"),
        1,
        7946,
        (Address("127.0.0.1", 7946),),
        _AUTHORITY,
        listens_on_all=True,
    )
    async with _running(wire, sink, machine=machine, announcement=alone) as discovery:
        assert wire.adapters == [(_LO,)]
        assert discovery.statistics()["available"] == 0
        assert "mdns reaches this machine only" in caplog.text
        wire.appear(_service(_announcement("b"), addresses=("127.0.0.1",)))
        assert sink.nodes == {"b"}
        machine.interfaces = Interfaces((_LO, _ETH))
        await eventually(lambda: discovery.statistics()["available"] == 1)
        assert wire.adapters[-1] == (_ETH,)


async def test_two_nodes_find_each_other_over_real_multicast_on_loopback() -> None:
    """The whole stack down to the socket: both see each other, an update and the goodbye."""
    watcher = InterfaceWatcher()
    await watcher.start()
    sinks = [_Sink(), _Sink()]
    nodes = [MdnsDiscovery(watcher), MdnsDiscovery(watcher)]
    network = f"pytest-{random.randrange(10**9)}"
    for number, (node, sink) in enumerate(zip(nodes, sinks, strict=True)):
        await node.start(_announcement(f"n{number}", network=network, host="127.0.0.1"), sink)
    try:
        await eventually(lambda: sinks[0].nodes == {"n1"} and sinks[1].nodes == {"n0"}, 15.0)
        assert sinks[0].sightings[0].addresses == (Address("127.0.0.1", 7946),)
        await nodes[1].update(_announcement("n1", network=network, host="127.0.0.1", life=5))
        await eventually(lambda: sinks[0].sightings[-1].incarnation == 5 << 16, 15.0)
        assert nodes[0].statistics()["available"] == 1
        await nodes[1].close()
        await eventually(lambda: sinks[0].losses == ["n1"], 15.0)
    finally:
        for node in nodes:
            await node.close()
        await watcher.close()


def test_zeroconf_is_not_imported_with_the_module() -> None:
    """A node without mDNS pays neither its memory nor its time."""
    code = "import sys, gossip.discovery.mdns; sys.exit('zeroconf' in sys.modules or 'ifaddr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
