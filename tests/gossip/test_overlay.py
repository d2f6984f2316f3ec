"""The overlay core on its own: whom it dials, when, and when it gives up."""

from __future__ import annotations

import itertools
import random

from gossip.config import GossipConfig
from gossip.events import (
    Dial,
    DialFailed,
    Doubt,
    Effect,
    LinkLost,
    LinkOpened,
    Member,
    MemberState,
    PeerFound,
    SetTimer,
    Stalled,
    Started,
    TimerFired,
)
from gossip.incarnation import make_incarnation
from gossip.members import MemberTable
from gossip.overlay import FullMesh
from transport.types import Address, NodeId

ALIVE, SUSPECT, DEAD = MemberState.ALIVE, MemberState.SUSPECT, MemberState.DEAD
HERE, THERE = Address("h", 1), Address("t", 2)


def member(name: str, state: MemberState = ALIVE, life: int = 1, *addresses: Address) -> Member:
    """What the table holds of a node."""
    return Member(NodeId(name), make_incarnation(life), state, addresses or (HERE,))


class World:
    """An overlay of node ``m`` with its table and its running timers."""

    def __init__(self, **limits: float) -> None:
        self.config = GossipConfig(**limits)  # type: ignore[arg-type]
        self.table = MemberTable(member("m"), self.config)
        self.mesh = FullMesh(NodeId("m"), self.table, self.config, random.Random(1))
        self.now = 0.0
        self.timers: list[tuple[float, int]] = []

    def learn(self, after: Member) -> list[Effect]:
        before = self.table.get(after.node_id)
        self.table.put(after, self.now)
        return self._keep(self.mesh.member_changed(before, after))

    def feed(self, event: object) -> list[Effect]:
        return self._keep(self.mesh.handle(event, self.now))  # type: ignore[arg-type]

    def fire(self, until: float) -> list[Effect]:
        """All timers up to a time, and what they lead to."""
        out: list[Effect] = []
        while due := sorted(timer for timer in self.timers if timer[0] <= until):
            self.timers.remove(due[0])
            self.now = due[0][0]
            out += self.feed(TimerFired(due[0][1]))
        self.now = until
        return out

    def _keep(self, effects: list[Effect]) -> list[Effect]:
        self.timers += [(self.now + e.delay_s, e.token) for e in effects if isinstance(e, SetTimer)]
        return [effect for effect in effects if not isinstance(effect, SetTimer)]


def opened(name: str, *addresses: Address) -> LinkOpened:
    """A link came up."""
    return LinkOpened(NodeId(name), make_incarnation(1), addresses)


def test_the_smaller_id_dials_at_once_the_greater_a_moment_later() -> None:
    """So that two nodes that learn of each other rarely dial twice."""
    world = World()
    world.learn(member("z"))
    world.learn(member("a"))

    assert world.fire(0.0) == [Dial(NodeId("z"), (HERE,))]
    assert world.fire(world.config.dial_delay_s) == [Dial(NodeId("a"), (HERE,))]


def test_nobody_dials_itself() -> None:
    """Not by the table, not by discovery."""
    world = World()

    assert world.learn(member("m", life=2)) == []
    assert world.feed(PeerFound(NodeId("m"), (THERE,))) == []
    assert world.fire(10) == []


def test_a_link_that_came_meanwhile_saves_the_dial() -> None:
    """The pending dial's token is stale then; unknown tokens are ignored."""
    world = World()
    world.learn(member("a"))
    world.feed(opened("a"))

    assert world.fire(60) == []
    assert world.feed(TimerFired(999)) == []
    assert world.feed(Stalled(1.0)) == []


def test_a_lost_link_is_dialled_again_at_once_with_the_addresses_of_both_sources() -> None:
    """What the member publishes comes first, what its hello said next."""
    world = World()
    world.learn(member("z"))
    world.feed(opened("z", HERE, THERE))
    world.feed(opened("z", HERE, THERE))
    assert world.feed(LinkLost(NodeId("z"))) == []

    assert world.fire(0.0) == [Dial(NodeId("z"), (HERE, THERE))]


def test_a_link_closed_on_purpose_is_dialled_after_a_wait() -> None:
    """Else two nodes that disagree about links would dial in a circle."""
    world = World()
    world.learn(member("z"))
    world.feed(opened("z"))
    world.feed(LinkLost(NodeId("z"), wanted=True))

    assert world.fire(world.config.dial_backoff_s_min - 0.01) == []
    assert len(world.fire(world.config.dial_backoff_s_min)) == 1


def test_who_said_goodbye_or_died_is_not_dialled() -> None:
    """And links of strangers that end are nothing to us."""
    world = World()
    world.learn(member("y"))
    world.learn(member("z"))
    world.feed(opened("z"))
    world.feed(LinkLost(NodeId("z"), left=True))
    world.feed(LinkLost(NodeId("stranger")))
    world.learn(member("y", DEAD))
    world.learn(member("z", DEAD))
    world.feed(opened("x"))
    world.feed(LinkLost(NodeId("x")))

    assert world.fire(60) == []


def test_failures_back_off_and_then_raise_doubt() -> None:
    """Waits double up to the longest; doubt comes after some failures, and then rarely."""
    world = World()
    world.learn(member("z"))
    dials, doubts = [], []
    while world.now < 300:
        for effect in world.fire(world.now + 0.1):
            if isinstance(effect, Dial):
                dials.append(world.now)
                doubts += [
                    world.now for e in world.feed(DialFailed(NodeId("z"), refused=False)) if isinstance(e, Doubt)
                ]

    waits = [later - earlier for earlier, later in itertools.pairwise(dials)]
    assert waits[0] < 0.4
    assert max(waits) <= world.config.dial_backoff_s_max + 0.2
    assert 4 <= len(doubts) <= 8
    assert world.feed(DialFailed(NodeId("z"), refused=False)) == []  # no dial is under way
    assert world.feed(DialFailed(NodeId("stranger"), refused=False)) == []


def test_a_restart_is_dialled_without_the_old_backoff() -> None:
    """A new life owes nothing for the old one's failures."""
    world = World()
    world.learn(member("z"))
    for _ in range(8):
        world.fire(world.now + 20)
        world.feed(DialFailed(NodeId("z"), refused=True))
    world.fire(world.now + 20)
    world.feed(DialFailed(NodeId("z"), refused=True))

    world.learn(member("z", ALIVE, 2, THERE))

    assert world.fire(world.now) == [Dial(NodeId("z"), (THERE,))]


def test_without_an_address_there_is_no_dial_until_one_is_known() -> None:
    """The node may still dial us; a hint of discovery is an address."""
    world = World()
    nowhere = Member(NodeId("z"), make_incarnation(1), ALIVE)
    world.learn(nowhere)
    assert world.fire(60) == []
    assert world.feed(PeerFound(NodeId("z"), ())) == []

    world.feed(PeerFound(NodeId("z"), (THERE,)))

    assert world.fire(60) == [Dial(NodeId("z"), (THERE,))]


def test_what_discovery_saw_is_tried_for_a_while() -> None:
    """A candidate is not a member: it is dropped in the end, without doubt; another sighting hurries the retry."""
    world = World(candidate_s=100)
    world.feed(PeerFound(NodeId("z"), (THERE,)))
    dials = 0
    while world.now < 300:
        for _ in world.fire(world.now + 1):
            dials += 1
            assert world.feed(DialFailed(NodeId("z"), refused=False)) == []
    assert 10 < dials < 40
    assert world.fire(world.now + 100) == []

    world.feed(PeerFound(NodeId("z"), (THERE,)))
    for _ in range(6):
        world.fire(world.now + 12)
        world.feed(DialFailed(NodeId("z"), refused=False))
    world.feed(PeerFound(NodeId("z"), (THERE,)))
    world.feed(PeerFound(NodeId("z"), (THERE,)))
    assert world.fire(world.now + world.config.dial_backoff_s_min) == [Dial(NodeId("z"), (THERE,))]
    world.feed(opened("z"))
    assert world.feed(PeerFound(NodeId("z"), (THERE,))) == []
    assert world.fire(world.now + 60) == []


def test_a_chatty_announcer_does_not_put_off_the_dial() -> None:
    """Sightings come faster than the backoff, and the dial is made all the same."""
    world = World()
    world.feed(PeerFound(NodeId("z"), (THERE,)))
    world.fire(0.0)
    world.feed(DialFailed(NodeId("z"), refused=True))

    dials = []
    for step in range(10):
        world.feed(PeerFound(NodeId("z"), (THERE,)))
        dials += world.fire(0.05 * (step + 1))

    assert dials == [Dial(NodeId("z"), (THERE,))]


def test_candidates_are_bounded() -> None:
    """A flood of announcements cannot fill the memory."""
    world = World(members_max=2)
    for index in range(10):
        world.feed(PeerFound(NodeId(f"c{index}"), (THERE,)))

    assert world.mesh.counters["candidates_refused"] == 6


def test_no_dial_beyond_the_links_allowed() -> None:
    """The dial waits; when a link is gone it goes on."""
    world = World(links_max=1)
    world.feed(opened("x"))
    world.learn(member("z"))
    assert world.fire(30) == []

    world.feed(LinkLost(NodeId("x")))

    assert world.fire(60) == [Dial(NodeId("z"), (HERE,))]


def test_the_dead_are_tried_for_ever_at_a_low_rate() -> None:
    """Healing: one try now and then, no retries of its own, nobody without an address."""
    world = World(heal_interval_s=5)
    world.learn(member("y", DEAD))
    world.feed(Started())
    dials = []
    while world.now < 600:
        for effect in world.fire(world.now + 1):
            dials.append(effect)
            assert world.feed(DialFailed(NodeId("y"), refused=True)) == []

    assert 80 < len(dials) < 180
    assert dials[0] == Dial(NodeId("y"), (HERE,))


def test_healing_is_shared_by_all() -> None:
    """With many nodes each tries rarely; with no links to spare or no address not at all."""
    world = World(heal_interval_s=5, links_max=1)
    for index in range(30):
        world.learn(Member(NodeId(f"n{index}"), make_incarnation(1), ALIVE))
    world.table.put(member("y", DEAD), 0.0)
    world.feed(Started())
    dials = [e for e in world.fire(600) if isinstance(e, Dial)]
    assert len(dials) <= 1  # the first one is never answered here, so it is under way for ever

    other = World()
    other.table.put(Member(NodeId("y"), make_incarnation(1), DEAD), 0.0)
    other.feed(Started())
    assert other.fire(600) == []
    full = World(links_max=1)
    full.feed(opened("x"))
    full.table.put(member("y", DEAD), 0.0)
    full.feed(Started())
    assert full.fire(600) == []


def test_a_member_that_dies_while_it_is_dialled_is_dropped_with_the_result() -> None:
    """The dial's end finds nobody waiting."""
    world = World()
    world.learn(member("z"))
    world.fire(0.0)
    world.learn(member("z", DEAD))

    assert world.feed(DialFailed(NodeId("z"), refused=True)) == []
    assert world.fire(60) == []
