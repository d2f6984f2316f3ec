"""Many cores on a simulated network: what the protocol promises as a whole."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from simnet import SimNet, address

from gossip.config import GossipConfig
from gossip.events import (
    AddressesChanged,
    BroadcastRequested,
    LeaveRequested,
    MemberState,
    MetaChanged,
    PartitionDetected,
    PartitionHealed,
    PeerFound,
    Received,
    TimerFired,
)
from gossip.incarnation import life_of, refutations_of
from transport.errors import RemoteProtocolError
from transport.types import NodeId

ALIVE, SUSPECT, DEAD, LEFT = MemberState.ALIVE, MemberState.SUSPECT, MemberState.DEAD, MemberState.LEFT


def meshed(count: int, seed: int = 1, config: GossipConfig | None = None, meta: bytes = b"") -> SimNet:
    """A network in which everybody knows everybody; one of up to nine nodes is a full mesh."""
    net = SimNet(seed, config)
    net.start_all(count, meta)
    net.run(30, until=lambda: net.agreed() and (count > 9 or net.meshed()))
    net.run(3)
    assert net.agreed()
    return net


@pytest.mark.parametrize("count", [2, 3, 8, 20])
def test_all_converge_after_joining_through_one_seed(count: int) -> None:
    """Nodes that know only one seed end with the same full table, metadata included, within two seconds."""
    net = SimNet(seed=count)
    net.start_all(count, meta=b"about me")

    assert net.run(30, until=net.agreed) < 2.0
    net.run(5)
    assert all(m.meta == b"about me" for process in net.live for m in process.core.members())
    assert net.violations == []


def test_joining_is_seen_as_one_change_from_nothing() -> None:
    """A healthy join makes nobody suspect anybody."""
    net = meshed(20)

    assert all(after.state is ALIVE for process in net.live for _, _, after in process.changes)


@pytest.mark.parametrize("seed", range(5))
def test_a_killed_node_is_dead_for_all_in_time(seed: int) -> None:
    """Every survivor sees suspect, then dead, within the suspicion time and a few delays."""
    net = meshed(8, seed)
    net.kill("n003")

    took_s = net.run(10, until=lambda: net.all_believe("n003", DEAD))

    assert took_s <= net.config.suspicion_s + 0.1
    for process in net.live:
        assert process.states_seen("n003", net.now - took_s) == [SUSPECT, DEAD]
    net.run(10)
    assert net.agreed()
    assert net.violations == []


def test_a_killed_seed_is_no_different() -> None:
    """The node through which all joined is not special."""
    net = meshed(5)
    net.kill("n000")

    assert net.run(3, until=lambda: net.all_believe("n000", DEAD)) < 3


@pytest.mark.parametrize("seed", range(5))
def test_one_broken_link_kills_nobody(seed: int) -> None:
    """A pair that cannot reach each other refutes through the others, again and again, at a low rate."""
    net = meshed(6, seed)
    net.cut(["n001"], ["n004"])

    net.run(300)

    assert net.agreed()
    assert all(after.state is not DEAD for process in net.live for _, _, after in process.changes)
    me = net.processes[NodeId("n004")].core.me
    assert 1 <= refutations_of(me.incarnation) <= 12
    assert net.violations == []


def test_an_accused_node_refutes() -> None:
    """A false suspicion ends with a higher incarnation everywhere, without a death."""
    net = meshed(5)
    before = net.processes[NodeId("n002")].core.me.incarnation
    net.cut(["n002"], ["n000"])
    net.heal()

    net.run(1, until=net.agreed)

    after = net.processes[NodeId("n002")].core.me.incarnation
    assert before < after
    assert life_of(after) == life_of(before)


@pytest.mark.parametrize("seed", range(3))
def test_a_partition_heals_to_one_view(seed: int) -> None:
    """Two halves declare each other dead; once the cut is gone they find together without help."""
    net = meshed(10, seed)
    left, right = [f"n00{i}" for i in range(5)], [f"n00{i}" for i in range(5, 10)]
    net.cut(left, right)
    net.run(60)
    assert all(net.processes[NodeId(a)].state_of(b) is DEAD for a in left for b in right)

    net.heal()

    assert net.run(60, until=lambda: net.agreed() and net.meshed()) < 30
    assert net.violations == []


def test_a_partition_longer_than_every_tombstone_heals() -> None:
    """With tombstones gone nobody remembers the other side; what discovery sees brings them together."""
    config = GossipConfig(dead_retention_s=10, tombstone_s=10)
    net = meshed(4, config=config)
    net.cut(["n000", "n001"], ["n002", "n003"])
    net.run(60)
    assert net.processes[NodeId("n000")].state_of("n003") is None
    assert net.processes[NodeId("n000")].core.statistics()["tombstones"] == 0
    net.heal()

    net.feed(net.processes[NodeId("n003")], PeerFound(NodeId("n000"), (address("n000"),)))

    net.run(10, until=net.agreed)


@pytest.mark.parametrize("pause_s", [0.05, 0.5, 5.0])
def test_a_restarted_node_is_alive_without_a_ghost(pause_s: float) -> None:
    """Killed and started again, before or after its death was noticed: one live member with the higher life."""
    net = meshed(8)
    old = net.processes[NodeId("n005")].core.me
    net.kill("n005")
    net.run(pause_s)
    net.start("n005", "n000")

    assert net.run(10, until=net.agreed) < 5
    net.run(30)
    assert net.agreed()
    new = net.live[0].core.member(NodeId("n005"))
    assert new is not None
    assert life_of(new.incarnation) > life_of(old.incarnation)
    assert net.violations == []


def test_leaving_is_never_reported_as_failure() -> None:
    """Everybody sees LEFT at once and nothing else, ever."""
    net = meshed(8)
    net.feed(net.processes[NodeId("n002")], LeaveRequested())
    net.say_goodbye("n002")

    assert net.run(5, until=lambda: net.all_believe("n002", LEFT)) < 0.5
    net.run(60)

    for process in net.live:
        assert set(process.states_seen("n002")) == {ALIVE, LEFT}
        assert process.states_seen("n002")[-1] is LEFT
    assert net.agreed()


def test_a_goodbye_alone_is_enough() -> None:
    """The link's orderly close says what a lost last message would have said."""
    net = meshed(4)
    net.say_goodbye("n001")
    net.at(0.051, lambda: setattr(net.processes[NodeId("n001")], "running", False))
    net.run(0.2)

    assert net.all_believe("n001", LEFT)


def test_a_node_that_is_said_to_have_left_stops() -> None:
    """LEFT is final for a life: a process that finds the network believing it must start again."""
    net = meshed(4)
    net.say_goodbye("n001")
    net.run(2)

    superseded = net.processes[NodeId("n001")].superseded
    assert superseded is not None
    assert "left" in superseded.why


def test_after_leaving_the_node_can_return() -> None:
    """A new life is welcome at once."""
    net = meshed(4)
    net.feed(net.processes[NodeId("n001")], LeaveRequested())
    net.say_goodbye("n001")
    net.run(1)
    net.processes[NodeId("n001")].running = False
    net.start("n001", "n002")

    assert net.run(5, until=net.agreed) < 2


def test_a_partition_and_its_end_are_events_on_both_sides() -> None:
    """Each side names the other as lost, once, and as returned when it is back."""
    net = meshed(10)
    left, right = [f"n00{i}" for i in range(5)], [f"n00{i}" for i in range(5, 10)]
    net.cut(left, right)
    net.run(60)
    net.heal()
    net.run(60)

    for process in net.live:
        here, there = (left, right) if process.name in left else (right, left)
        assert process.partitions == [
            PartitionDetected(tuple(map(NodeId, there)), tuple(map(NodeId, here))),
            PartitionHealed(tuple(map(NodeId, there)), (), tuple(map(NodeId, left + right))),
        ]


def test_a_silent_host_is_dead_in_time() -> None:
    """Nobody is told by a reset: probes, then all who watched it agree."""
    net = meshed(8)
    net.processes[NodeId("n003")].running = False

    assert net.run(20, until=lambda: net.all_believe("n003", DEAD)) < 5.5
    assert net.violations == []


def test_probes_place_nodes_in_the_network() -> None:
    """Distances come out near the round trips, which are 2 to 20 ms here."""
    net = meshed(6)
    net.run(60)
    core = net.live[0].core
    estimate = core.distance_s(NodeId("n001"), NodeId("n002"))

    assert estimate is not None
    assert 0.002 < estimate < 0.03
    assert core.distance_s(NodeId("n001"), NodeId("nobody")) is None


def test_broadcasts_reach_all_exactly_once() -> None:
    """In a full mesh every other node gets each broadcast once, in the origin's order from each link."""
    net = meshed(8)
    for number in range(50):
        net.feed(net.live[number % 8], BroadcastRequested(b"%d" % number, 8))
    net.run(5)

    for index, process in enumerate(net.live):
        got = Counter(delivery.payload for delivery in process.delivered)
        assert got == Counter(b"%d" % n for n in range(50) if n % 8 != index)


@pytest.mark.parametrize("seed", range(5))
def test_ttl_of_the_diameter_is_enough_and_ends(seed: int) -> None:
    """On a ring of ten a TTL of five reaches all once, a TTL of two only four nodes, and then there is silence."""
    net = ring(10, seed)
    net.feed(net.live[0], BroadcastRequested(b"far", 5))
    net.feed(net.live[0], BroadcastRequested(b"near", 2))
    net.run(0.5)

    assert [Counter(d.payload for d in p.delivered)[b"far"] for p in net.live] == [0] + [1] * 9
    assert sum(d.payload == b"near" for p in net.live for d in p.delivered) == 4
    forwarded = sum(p.core.statistics()["broadcasts_forwarded"] for p in net.live)
    net.run(0.5)
    assert sum(p.core.statistics()["broadcasts_forwarded"] for p in net.live) == forwarded <= 20


def ring(count: int, seed: int) -> SimNet:
    """Every node linked to its two neighbours only."""
    net = SimNet(seed)
    names = [f"n{i:03}" for i in range(count)]
    for name in names:
        net.start(name)
    for i, name in enumerate(names):
        neighbours = {names[i - 1], names[(i + 1) % count], name}
        net.cut([name], [other for other in names if other not in neighbours])
    for i, name in enumerate(names):
        net.feed(net.processes[NodeId(name)], PeerFound(NodeId(names[i - 1]), (address(names[i - 1]),)))
    net.run(2)
    assert all(len(process.links) == 2 for process in net.live)
    return net


def test_a_ring_knows_everybody_and_kills_nobody() -> None:
    """Members that can never be dialled are doubted now and then, and refute along the ring."""
    net = ring(8, 3)
    net.run(200)

    net.run(5, until=net.agreed)  # a doubt may be under way just then
    assert all(after.state is not DEAD for process in net.live for _, _, after in process.changes)


def test_two_processes_with_one_id_the_newer_wins() -> None:
    """The older process learns that it was superseded, the others see the newer one, and nothing flaps."""
    net = meshed(5)
    old = net.processes[NodeId("n003")]
    new = net.start("n003", "n001", life=5000)
    # The endpoints would not let both in at n001: the older link gives way.
    net.run(0.001)
    net._unlink(old, net.processes[NodeId("n001")], wanted=True)
    net.run(5)

    assert old.superseded is not None
    assert life_of(old.superseded.incarnation) == 5000
    assert "higher life" in old.superseded.why
    assert new.superseded is None
    assert old.core.ended


def test_metadata_and_addresses_reach_everybody() -> None:
    """A change is news; large metadata that is not passed on is fetched by anti-entropy."""
    net = ring(6, 1)
    net.feed(net.live[0], MetaChanged(b"m" * 100_000))
    net.run(10, until=net.agreed)
    net.feed(net.live[1], AddressesChanged(()))
    net.run(10, until=net.agreed)

    for process in net.live:
        assert process.core.member(net.live[0].name).meta == b"m" * 100_000  # type: ignore[union-attr]
        assert process.core.member(net.live[1].name).addresses == ()  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", range(4))
def test_churn_then_calm_ends_in_agreement(seed: int) -> None:
    """Kills, restarts, departures and cuts at random; then calm, and all live nodes agree without a violation."""
    net = SimNet(seed)
    net.start_all(10)
    net.run(5)
    for _ in range(60):
        names = list(net.processes)
        name = net.rng.choice(names)
        process = net.processes[name]
        match net.rng.randrange(4):
            case 0 if len(net.live) > 3 and process.running:
                net.kill(name)
            case 1 if not process.running:
                net.start(name, *[p.name for p in net.live[:2]])
            case 2 if len(net.live) > 3 and process in net.live:
                net.feed(process, LeaveRequested())
                net.say_goodbye(name)
                net.at(0.1, lambda p=process: setattr(p, "running", False))  # type: ignore[misc]
            case _:
                net.cut([name], [other for other in names if other != name and net.rng.random() < 0.5])
        net.run(net.rng.uniform(0.05, 3))
        if net.rng.random() < 0.5:
            net.heal()
    net.heal()

    net.run(120, until=lambda: net.agreed() and net.meshed())
    net.run(20)
    assert net.agreed()
    assert net.violations == []
    assert all(process.superseded is None for process in net.live)


def test_idle_traffic_is_heartbeats_and_probes_in_turn() -> None:
    """A quiet network says one heartbeat per link, direction and interval, pings in turn, and exchanges no tables.

    Once a minute each node repeats to its neighbours that they are, and starts a shuffle.
    """
    net = meshed(8)
    net.run(120)
    syncs = sum(p.core.statistics()["syncs_started"] for p in net.live)
    sends = net.sends
    net.run(60)

    assert sum(p.core.statistics()["syncs_started"] for p in net.live) == syncs
    heartbeats = 60 / GossipConfig().heartbeat_interval_s * 7
    assert net.sends - sends == pytest.approx(8 * (heartbeats + 60 * 2 + 7 + 12), rel=0.05)


def test_garbage_from_a_peer_changes_nothing() -> None:
    """A body that is not allowed raises, and the table stays as it was."""
    net = meshed(3)
    process = net.live[0]
    members = process.core.members()
    for body in (b"", b"\xc1", b"\x91\x00", b"\x92\x01\x91\x91\xa1!"):
        with pytest.raises(RemoteProtocolError):
            process.core.handle(Received(net.live[1].name, body), net.now)

    assert process.core.members() == members


def test_a_seed_repeats_a_run_in_any_process() -> None:
    """The trace of a run depends on the seed alone, not on the hash seed of the process."""
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from simnet import SimNet\n"
        "net = SimNet(7); net.start_all(6); net.run(4); net.kill('n002'); net.run(6); print(net.digest)"
    )
    here = Path(__file__).resolve().parent
    digests = [
        subprocess.run(
            [sys.executable, "-c", code, str(here.parent), str(here.parent.parent)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "1", "77")
    ]

    assert len(digests[0].strip()) == 64
    assert digests[0] == digests[1] == digests[2]


def test_an_ended_node_does_nothing_more() -> None:
    """Whatever timers still run or requests still come."""
    net = meshed(3)
    process = net.live[0]
    net.feed(process, LeaveRequested())

    assert process.core.handle(BroadcastRequested(b"x", 3), net.now) == []
    assert [process.core.handle(TimerFired(token), net.now) for token in range(200)] == [[]] * 200
    assert process.core.me.state is LEFT
    net.say_goodbye(process.name)
    net.run(10)
