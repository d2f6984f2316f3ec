"""Whom a node could link to: bounded, random, and never somebody who is known to be gone."""

from __future__ import annotations

import random
from math import inf

from gossip.config import GossipConfig
from gossip.contacts import Contacts
from gossip.events import Member, MemberState
from gossip.hyparview_codec import Peer
from gossip.incarnation import make_incarnation
from gossip.members import MemberTable
from transport.types import Address, NodeId

ALIVE, SUSPECT, DEAD, LEFT = MemberState
ME = NodeId("me")


def ids(*names: str) -> tuple[NodeId, ...]:
    """Node ids."""
    return tuple(NodeId(name) for name in names)


def address(name: str) -> Address:
    """Where a node is dialled."""
    return Address(f"{name}.sim", 1)


def peers(*names: str) -> list[Peer]:
    """Nodes as others tell of them."""
    return [Peer(NodeId(name), (address(name),)) for name in names]


class World:
    def __init__(self, **limits: float) -> None:
        self.config = GossipConfig(**limits)  # type: ignore[arg-type]
        self.table = MemberTable(Member(ME, make_incarnation(1), ALIVE, (address("me"),)), self.config)
        self.contacts = Contacts(ME, self.table, self.config, random.Random(1))

    def put(self, state: MemberState, *names: str) -> None:
        for name in names:
            self.table.put(Member(NodeId(name), make_incarnation(1), state, (address(name),)), 0.0)


def test_the_passive_view_is_bounded_and_holds_only_others() -> None:
    """Neither ourselves, nor neighbours, nor the dead; in a full view those that were given away go first."""
    world = World(passive_view=4)
    world.put(DEAD, "dead")
    world.contacts.remember(peers("me", "dead", "near", "a", "b", "c", "d", "a"), ids("near"))
    assert sorted(world.contacts.passive) == ["a", "b", "c", "d"]

    world.contacts.remember(peers("e", "f"), (), [NodeId("b"), NodeId("c"), NodeId("zz")])
    assert sorted(world.contacts.passive) == ["a", "d", "e", "f"]

    world.contacts.remember(peers("g", "h", "i"), (), [NodeId("a")])
    assert len(world.contacts.passive) == 4
    assert len(world.contacts.sample(9, ids("i"))) == 3


def test_the_passive_view_grows_with_the_network() -> None:
    """By the logarithm, so that it is of use in networks of every size."""
    world = World(passive_view=4)
    before = world.contacts.passive_max
    world.put(ALIVE, *(f"n{index}" for index in range(1000)))

    assert before == 4
    assert world.contacts.passive_max == 40


def test_addresses_come_from_all_sources_once() -> None:
    """What the member publishes first, then what peers and discovery said; also of the dead."""
    world = World()
    assert world.contacts.addresses(NodeId("a")) == ()
    world.contacts.remember([Peer(NodeId("a"), (address("x"), address("y")))], ())
    world.contacts.found(NodeId("a"), (address("y"), address("z")), 0.0)
    world.put(DEAD, "a")

    assert world.contacts.addresses(NodeId("a")) == (address("a"), address("x"), address("y"), address("z"))


def test_those_to_prefer_come_first() -> None:
    """Bounded; whoever is no longer of use is skipped."""
    world = World()
    world.put(ALIVE, *(f"n{index}" for index in range(40)))
    world.put(DEAD, "dead")
    world.contacts.prefer(Peer(ME))
    for peer in [*peers("busy", "dead"), *(Peer(NodeId(f"n{index}")) for index in range(40))]:
        world.contacts.prefer(peer)

    chosen = [world.contacts.choose(ids("busy"), 0.0, alone=False) for _ in range(14)]
    assert chosen == [f"n{index}" for index in range(14)]


def test_a_view_that_ran_dry_is_filled_from_the_table() -> None:
    """By members that are alive, may be dialled, and are not excluded; what cannot be used is dropped."""
    world = World()
    world.put(ALIVE, "a", "b", "c")
    world.put(SUSPECT, "s")
    world.put(DEAD, "d")
    world.contacts.remember(peers("x", "s"), ())
    world.contacts.failed(NodeId("b"), 0.0)
    world.contacts.postpone(NodeId("x"), 5.0)

    assert world.contacts.choose(ids("c"), 0.0, alone=False) == "a"
    assert world.contacts.passive == ["a"]
    assert world.contacts.choose(ids("a", "c"), 0.0, alone=False) is None
    assert world.contacts.choose(ids("a", "c", "s", "d"), 0.0, alone=True) is None


def test_who_is_alone_tries_everybody() -> None:
    """Suspects, the dead and tombstones, and sightings; not those that left, and not before their time."""
    world = World(dead_retention_s=1)
    world.put(SUSPECT, "s")
    world.put(DEAD, "d")
    world.put(LEFT, "l")
    world.table.reap(2.0)
    world.put(DEAD, "e")
    world.contacts.found(NodeId("c"), (address("c"),), 0.0)
    tried: dict[NodeId, None] = {}
    for _ in range(4):
        peer = world.contacts.choose((), 2.0, alone=True)
        assert peer is not None
        tried[peer] = None
        world.contacts.failed(peer, 2.0)

    assert sorted(tried) == ["c", "d", "e", "s"]
    assert world.contacts.choose((), 2.0, alone=True) is None
    assert world.contacts.choose((), 3.0, alone=True) is not None


def test_failures_are_bounded_and_doubt_is_rare() -> None:
    """The first may be told; then not for a while."""
    world = World()
    for index in range(5000):
        world.contacts.failed(NodeId(f"n{index}"), 0.0)
    assert not world.contacts.in_backoff(NodeId("n0"), 0.0)
    assert world.contacts.in_backoff(NodeId("n4999"), 0.0)
    assert world.contacts.failed(NodeId("n4999"), 0.0) == 2

    assert world.contacts.may_doubt(NodeId("n4999"), 0.0)
    assert not world.contacts.may_doubt(NodeId("n4999"), 1.0)
    assert world.contacts.may_doubt(NodeId("n4999"), 100.0)


def test_random_members_are_alive_and_the_lost_are_dead() -> None:
    """Draws that hit somebody excluded, ourselves or the gone give nobody."""
    world = World()
    world.put(ALIVE, "a", "b")
    world.put(DEAD, "d")
    world.put(LEFT, "l")
    drawn = [world.contacts.random_member(ids("b")) for _ in range(50)]

    assert {name for name in drawn if name is not None} == {"a"}
    assert None in drawn
    assert world.contacts.random_gone(()) == "d"
    assert world.contacts.random_gone(ids("d")) is None


def test_sightings_are_tried_for_a_while_and_spread_over_the_network() -> None:
    """A sighting of a member is only a hint; of a stranger a dial, later where more nodes could do it."""
    world = World(candidate_s=100)
    world.put(ALIVE, *(f"n{index}" for index in range(1000)))
    world.contacts.found(NodeId("n1"), (address("x"),), 0.0)
    for index in range(20):
        world.contacts.found(NodeId(f"c{index}"), (address("c"),), 0.0)
    ready, following = world.contacts.due((), 0.0)
    assert ready == []
    assert 0.0 < following < 60.0

    ready, _ = world.contacts.due(ids("c3"), 61.0)
    assert len(ready) == 19
    assert world.contacts.due(ids("c3"), 61.0)[0] == []
    world.put(ALIVE, "c3")
    assert world.contacts.due((), 61.0)[0] == []
    for when in (61.0, 101.0):
        world.contacts.failed(NodeId("c4"), when)
    assert "c4" not in world.contacts.due((), 200.0)[0]


def test_a_chatty_announcer_neither_sets_the_pace_nor_puts_it_off() -> None:
    """News after several failures are worth an earlier try; after one they change nothing."""
    world = World()
    peer = NodeId("z")
    world.contacts.found(peer, (address("z"),), 0.0)
    world.contacts.found(peer, (address("z"),), 0.0)
    assert world.contacts.due((), 1.0)[0] == [peer]
    for _ in range(9):
        world.contacts.failed(peer, 1.0)
    assert world.contacts.in_backoff(peer, 2.0)

    world.contacts.found(peer, (address("z"),), 1.0)
    world.contacts.found(peer, (address("z"),), 1.1)
    assert world.contacts.due((), 1.0)[1] <= 1.0 + world.config.dial_backoff_s_min
    assert world.contacts.due((), 2.0)[0] == [peer]


def test_sightings_are_bounded_and_some_are_kept() -> None:
    """Seeds are remembered for the day on which nobody else is left, but not every sighting that ever was."""
    world = World(members_max=100, candidate_s=10)
    for index in range(110):
        world.contacts.found(NodeId(f"c{index}"), (address("c"),), 0.0)
        world.contacts.failed(NodeId(f"c{index}"), 11.0)
    assert world.contacts.refused == 10

    assert world.contacts.due((), 11.0) == ([], inf)
    kept = [world.contacts.choose((), 1e6, alone=True) for _ in range(200)]
    assert len(dict.fromkeys(kept)) <= 64
