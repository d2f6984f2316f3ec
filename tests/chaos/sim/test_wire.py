"""Links: what they delay, lose, hold and end, and who is told."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from chaos_sim import Scripted, scripted_world

from chaos.sim.plan import Network, node_name
from chaos.sim.world import World
from gossip.events import (
    BroadcastRequested,
    Dial,
    DialFailed,
    LinkLost,
    LinkOpened,
    MetaChanged,
    Received,
    Send,
    SendDropped,
    Unlink,
    UnlinkReason,
)

A, B = node_name(0), node_name(1)
QUIET = Network(latency_s=(0.01, 0.01), jitter=0.0, clock_drift=0.0, discovery_interval_s=0.0)
SAY = BroadcastRequested(b"", 1)


def quiet(**changes: Any) -> Network:
    """The quiet network with something changed."""
    return replace(QUIET, **changes)


def say(world: World, *bodies: bytes, node: int = 0, to: int = 1) -> None:
    """Node ``node`` sends these bodies."""
    process = world.processes[node_name(node)]
    Scripted.of(process).answer(BroadcastRequested, [Send(node_name(to), body) for body in bodies])
    world.tell(process, SAY)


def heard(world: World, node: int = 1) -> list[bytes]:
    """The bodies that reached a node."""
    return [event.body for event in Scripted.of(world.processes[node_name(node)]).heard if isinstance(event, Received)]


def last(world: World, node: int) -> object:
    """What a node was told last."""
    return Scripted.of(world.processes[node_name(node)]).heard[-1]


def dial(world: World, node: int = 0, to: int = 1) -> None:
    """Node ``node`` asks for a link."""
    process = world.processes[node_name(node)]
    Scripted.of(process).answer(MetaChanged, [Dial(node_name(to), ())])
    world.tell(process, MetaChanged(b""))


# --- delays -----------------------------------------------------------------------------------------------------


def test_a_pairs_delay_is_drawn_once() -> None:
    """It is the same in both directions and for ever, within the bounds, and differs between pairs and seeds."""
    world = scripted_world()
    delays = [world.wire.latency_s(0, other) for other in range(1, 500)]

    assert delays[0] == world.wire.latency_s(1, 0)
    assert all(0.010 <= delay_s <= 0.050 for delay_s in delays)
    assert len(set(delays)) == len(delays)
    assert 0.027 < sum(delays) / len(delays) < 0.033
    assert scripted_world(seed=2).wire.latency_s(0, 1) != delays[0]


def test_bodies_arrive_after_the_delay_and_in_order() -> None:
    """Jitter never lets one body overtake another."""
    world = scripted_world(quiet(jitter=5.0), linked=(0, 1))
    said = [b"%d" % number for number in range(50)]
    sent_at = world.now
    say(world, *said)
    world.run(1.0)
    times = Scripted.of(world.processes[B]).times[-50:]

    assert heard(world) == said
    assert times == sorted(times)
    assert times[0] - sent_at >= 0.01


def test_lost_bodies_vanish_or_are_late() -> None:
    """Without TCP a part is gone; with it all arrive, in order, the late ones after a retransmission timeout."""
    said = [b"%d" % number for number in range(1000)]
    world = scripted_world(QUIET, linked=(0, 1))
    world.wire.loss, world.wire.loss_vanishes = 0.1, True
    say(world, *said)
    world.run(5.0)
    assert 850 < len(heard(world)) < 950
    assert world.wire.counters["lost"] == 1000 - len(heard(world))

    world = scripted_world(QUIET, linked=(0, 1))
    world.wire.loss = 0.1
    sent_at = world.now
    say(world, *said)
    world.run(60.0)
    assert heard(world) == said
    assert Scripted.of(world.processes[B]).times[-1] - sent_at > 0.2
    assert world.wire.counters["late"] > 50


def test_bodies_can_arrive_twice_and_out_of_order() -> None:
    """What TCP never does, for cores that must not rely on it."""
    said = [b"%d" % number for number in range(200)]
    world = scripted_world(quiet(duplicates=0.2), linked=(0, 1))
    say(world, *said)
    world.run(1.0)
    assert len(heard(world)) == 200 + world.wire.counters["duplicated"] > 220

    world = scripted_world(quiet(reorders=0.5), linked=(0, 1))
    say(world, *said)
    world.run(1.0)
    assert sorted(heard(world)) == sorted(said)
    assert heard(world) != said


def test_without_a_link_nothing_is_sent() -> None:
    """It is dropped and counted, and the core told, as by the shell."""
    world = scripted_world(QUIET)
    world.start(0)
    world.start(1)
    say(world, b"x")
    world.run(1.0)

    assert heard(world) == []
    assert world.wire.counters["dropped_no_link"] == 1
    assert last(world, 0) == SendDropped(Send(B, b"x"))


# --- dials ------------------------------------------------------------------------------------------------------


def test_a_dial_is_refused_where_nobody_runs() -> None:
    """A node that does not exist, or was killed, answers with a reset after one round trip."""
    world = scripted_world(QUIET)
    world.start(0)
    dial(world)
    world.run(0.1)
    assert last(world, 0) == DialFailed(B, refused=True)

    world.kill(world.start(1), silent=False)
    dial(world)
    world.run(0.1)
    assert last(world, 0) == DialFailed(B, refused=True)
    assert world.wire.counters["dials_failed"] == 2


@pytest.mark.parametrize("how", ["silent crash", "blocked there", "blocked back", "frozen"])
def test_a_dial_into_silence_times_out(how: str) -> None:
    """Nobody answers, so the dial fails after its time, and nobody says refused."""
    world = scripted_world(QUIET)
    world.start(0)
    peer = world.start(1)
    match how:
        case "silent crash":
            world.kill(peer, silent=True)
        case "blocked there":
            world.wire.block([0], [1])
        case "blocked back":
            world.wire.block([1], [0])
        case _:
            world.freeze(peer, 100.0)
    dial(world)
    world.run(4.9)
    assert last(world, 0) == MetaChanged(b"")
    world.run(0.5)

    assert last(world, 0) == DialFailed(B, refused=False)


def test_a_dial_outlasts_a_short_silence() -> None:
    """Connection attempts are repeated, so a partition of two seconds only delays the link."""
    world = scripted_world(QUIET)
    world.start(0)
    world.start(1)
    world.wire.block([0], [1])
    dial(world)
    world.run(2.0)
    world.wire.unblock_all()
    world.run(2.0)

    assert isinstance(last(world, 0), LinkOpened)
    assert isinstance(last(world, 1), LinkOpened)


def test_when_both_dial_one_link_remains() -> None:
    """The later handshake finds the link there and gives way; nobody is told of it."""
    world = scripted_world(QUIET)
    world.start(0)
    world.start(1)
    dial(world, 0, 1)
    dial(world, 1, 0)
    world.run(1.0)

    for node in (0, 1):
        events = Scripted.of(world.processes[node_name(node)]).heard
        assert [type(event) for event in events[2:]] == [LinkOpened]
    assert world.wire.links_open == 2


def test_dials_are_limited_in_number_and_rate() -> None:
    """At most sixteen run at once, and sixty-four start per second."""
    world = scripted_world(quiet(dials_per_s=64.0))
    process = world.start(0)
    Scripted.of(process).answer(MetaChanged, [Dial(node_name(other), ()) for other in range(1, 400)])
    world.tell(process, MetaChanged(b""))
    assert process.dials_running == 16
    world.run(1.0)
    done = world.wire.counters["dials_failed"]
    assert 64 <= done <= 130
    world.run(10.0)

    assert world.wire.counters["dials_failed"] == 399
    assert process.dialling == {}


def test_a_restarted_peer_replaces_its_old_link() -> None:
    """Whoever has not noticed yet that the old process is gone hears of the new link as a replacement."""
    world = scripted_world(QUIET, linked=(0, 1))
    world.kill(world.processes[B], silent=True)
    again = world.start(1)
    dial(world, 1, 0)
    world.run(1.0)

    assert Scripted.of(world.processes[A]).heard[-2:] == [
        LinkLost(B, wanted=True),
        LinkOpened(B, again.core.me.incarnation, again.core.me.addresses),
    ]
    world.run(10.0)
    assert isinstance(last(world, 0), LinkOpened)
    assert world.processes[A].links.keys() == {B}


# --- ends -------------------------------------------------------------------------------------------------------


def test_a_killed_peer_is_noticed_after_the_delay() -> None:
    """The kernel's reset travels like everything else."""
    world = scripted_world(QUIET, linked=(0, 1))
    killed_at = world.now
    world.kill(world.processes[A], silent=False)
    world.run(1.0)

    assert last(world, 1) == LinkLost(A)
    assert Scripted.of(world.processes[B]).times[-1] - killed_at == pytest.approx(0.01)


def test_a_silent_crash_is_noticed_by_the_keepalive() -> None:
    """Nobody says anything; three to four seconds later the link is given up."""
    world = scripted_world(QUIET, linked=(0, 1))
    crashed_at = world.now
    world.kill(world.processes[A], silent=True)
    say(world, b"hello?", node=1, to=0)
    world.run(2.9)
    assert last(world, 1) == SAY
    world.run(3.0)

    assert last(world, 1) == LinkLost(A)
    assert 3.0 <= Scripted.of(world.processes[B]).times[-1] - crashed_at <= 4.01


def test_an_unwanted_link_closes_on_both_sides() -> None:
    """Who asked for it and who is told both know that it says nothing about health."""
    world = scripted_world(QUIET, linked=(0, 1))
    Scripted.of(world.processes[A]).answer(BroadcastRequested, [Unlink(B, "enough"), Unlink(B, "again")])
    world.tell(world.processes[A], SAY)
    world.run(1.0)

    assert last(world, 0) == LinkLost(B, wanted=True)
    assert last(world, 1) == LinkLost(A, wanted=True)
    assert world.wire.links_open == 0


def idle_link() -> World:
    """Two linked nodes, of which the first asks to close the link when it is told to say something."""
    world = scripted_world(QUIET, linked=(0, 1))
    Scripted.of(world.processes[A]).answer(BroadcastRequested, [Unlink(B, "not needed", UnlinkReason.IDLE)])
    world.tell(world.processes[A], SAY)
    return world


def test_an_idle_link_closes_when_both_spare_it() -> None:
    """After the offer and the agreement have travelled."""
    world = idle_link()
    world.run(1.0)

    assert last(world, 0) == LinkLost(B, wanted=True)
    assert last(world, 1) == LinkLost(A, wanted=True)
    assert world.wire.links_open == 0


@pytest.mark.parametrize("why", ["the peer uses it", "it became needed", "the peer is frozen", "the peer is cut off"])
def test_an_idle_link_stays(why: str) -> None:
    """When the peer does not agree or does not answer, or the first has a use for it meanwhile."""
    world = idle_link()
    here, there = Scripted.of(world.processes[A]), Scripted.of(world.processes[B])
    there.spares = why != "the peer uses it"
    here.needs = why == "it became needed"
    if why == "the peer is frozen":
        world.freeze(world.processes[B], 10.0)
    elif why == "the peer is cut off":
        world.wire.block([0], [1])
    world.run(1.0)

    assert world.wire.links_open == 2


# --- partitions -------------------------------------------------------------------------------------------------


def test_a_short_partition_only_delays() -> None:
    """What was said meanwhile arrives afterwards, in order, before what is said later."""
    world = scripted_world(QUIET, linked=(0, 1))
    world.wire.block([0], [1])
    world.wire.block([1], [0])
    say(world, b"1", b"2")
    world.run(2.0)
    assert heard(world) == []
    world.wire.unblock_all()
    say(world, b"3")
    world.run(5.0)

    assert heard(world) == [b"1", b"2", b"3"]
    assert world.wire.counters["links_timed_out"] == 0


def test_a_long_partition_ends_the_link_on_both_sides() -> None:
    """Each side gives up by itself, and what was said into the partition is lost."""
    world = scripted_world(QUIET, linked=(0, 1))
    world.wire.block([0], [1])
    world.wire.block([1], [0])
    say(world, b"1")
    world.run(6.0)
    world.wire.unblock_all()
    world.run(6.0)

    assert last(world, 0) == LinkLost(B)
    assert last(world, 1) == LinkLost(A)
    assert heard(world) == []


def test_one_way_silence_ends_the_link_for_both() -> None:
    """The deaf side gives up, and tells the other, which it can still reach."""
    world = scripted_world(QUIET, linked=(0, 1))
    world.wire.block([0], [1])
    say(world, b"still heard", node=1, to=0)
    world.run(6.0)

    assert heard(world, 0) == [b"still heard"]
    assert last(world, 0) == LinkLost(B)
    assert last(world, 1) == LinkLost(A)
    assert world.wire.counters["links_timed_out"] == 1


def test_a_frozen_peer_is_given_up_and_learns_of_it() -> None:
    """Longer than the keepalive: the others let go; shorter: nothing happens."""
    world = scripted_world(QUIET, linked=(0, 1))
    world.freeze(world.processes[A], 2.0)
    world.run(10.0)
    assert not any(isinstance(event, LinkLost) for event in Scripted.of(world.processes[B]).heard)
    world.freeze(world.processes[A], 10.0)
    world.run(6.0)
    assert last(world, 1) == LinkLost(A)
    world.run(6.0)

    assert last(world, 0) == LinkLost(B)


def test_flapping_faster_than_the_keepalive_ends_no_link() -> None:
    """Silence is counted from its latest beginning."""
    world = scripted_world(QUIET, linked=(0, 1))
    for _ in range(10):
        world.wire.block([0], [1])
        world.run(1.5)
        world.wire.unblock_all()
        world.run(0.5)

    assert world.wire.counters["links_timed_out"] == 0


def test_a_blocked_pair_cannot_fill_the_memory() -> None:
    """What a link holds is bounded; more is dropped and counted."""
    world = scripted_world(QUIET, linked=(0, 1))
    world.wire.block([0], [1])
    say(world, *[b"x"] * 10_000)
    world.wire.unblock_all()
    world.run(1.0)

    assert len(heard(world)) == 8192
    assert world.wire.counters["dropped_full"] == 10_000 - 8192


def test_arrivals_never_go_back_in_time() -> None:
    """Whatever is mixed, a node's events carry rising times."""
    world = scripted_world(quiet(jitter=3.0), linked=(0, 1, 2))
    for number in range(20):
        say(world, b"%d" % number, node=number % 3, to=(number + 1) % 3)
        world.run(0.003)
    world.run(1.0)

    for process in world.live():
        assert all(a <= b for a, b in pairwise(Scripted.of(process).times))
