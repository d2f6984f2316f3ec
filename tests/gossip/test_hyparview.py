"""The overlay core on its own: transcripts of what it does, and the laws that they cannot show.

How many of them behave together is in ``test_hyparview_network.py``.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from datadriven_runner import check_transcript, transcript_id, transcripts

from gossip.config import GossipConfig
from gossip.events import (
    Dial,
    DialFailed,
    Doubt,
    Effect,
    Event,
    LinkLost,
    LinkOpened,
    LinkUsed,
    LinkWanted,
    Member,
    MemberState,
    NeighborDown,
    NeighborUp,
    PeerFound,
    Received,
    RttMeasured,
    Send,
    SetTimer,
    Stalled,
    Started,
    TimerFired,
    Unlink,
    UnlinkReason,
)
from gossip.hyparview import HyParView
from gossip.hyparview_codec import (
    Body,
    Disconnect,
    ForwardJoin,
    Join,
    Neighbor,
    Peer,
    Priority,
    Reply,
    Shuffle,
    ShuffleReply,
    decode,
    encode,
)
from gossip.incarnation import make_incarnation
from gossip.members import MemberTable
from transport.errors import RemoteProtocolError
from transport.types import Address, NodeId
from transport.wire import Kind, pack

ME = NodeId("me")
STATES = {state.name.lower(): state for state in MemberState}


def address(name: str) -> Address:
    """Where a node is dialled."""
    return Address(f"{name}.sim", 1)


def node(name: str) -> Peer:
    """A node as others tell of it."""
    return Peer(NodeId(name), (address(name),))


class World:
    """One overlay with its table, clock and timers."""

    def __init__(self, **limits: float) -> None:
        self.config = GossipConfig(**limits)  # type: ignore[arg-type]
        me = Member(ME, make_incarnation(1), MemberState.ALIVE, (address("me"),))
        self.table = MemberTable(me, self.config)
        self.view = HyParView(ME, self.table, self.config, random.Random(1))
        self.now = 0.0
        self.timers: list[tuple[float, int]] = []

    def learn(self, name: str, state: MemberState, addresses: tuple[Address, ...] | None = None) -> list[Effect]:
        before = self.table.get(NodeId(name))
        incarnation = make_incarnation(1) if before is None else before.incarnation + 1
        where = (address(name),) if addresses is None else addresses
        after = Member(NodeId(name), incarnation, state, where)
        self.table.put(after, self.now)
        return self._keep(self.view.member_changed(before, after))

    def feed(self, event: Event) -> list[Effect]:
        return self._keep(self.view.handle(event, self.now))

    def receive(self, peer: str, body: Body) -> list[Effect]:
        return self.feed(Received(NodeId(peer), encode(body), Kind.OVERLAY))

    def wait(self, seconds: float) -> list[Effect]:
        end = self.now + seconds
        out: list[Effect] = []
        while due := sorted(timer for timer in self.timers if timer[0] <= end):
            self.timers.remove(due[0])
            self.now = due[0][0]
            out += self.feed(TimerFired(due[0][1]))
        self.now = end
        return out

    def _keep(self, effects: list[Effect]) -> list[Effect]:
        self.timers += [(self.now + e.delay_s, e.token) for e in effects if isinstance(e, SetTimer)]
        return [effect for effect in effects if not isinstance(effect, SetTimer)]


class Script:
    """Carries out the commands of a transcript."""

    def __init__(self) -> None:
        self.world = World()

    def execute(self, line: str) -> list[str]:
        name, *words = line.split()
        return list(getattr(self, f"do_{name}")(*words))

    def do_config(self, *limits: str) -> list[str]:
        """A new world with these limits; nothing has started."""
        self.world = World(**{key: float(value) for key, value in (limit.split("=") for limit in limits)})
        for key, value in (limit.split("=") for limit in limits):
            if value.isdigit():
                object.__setattr__(self.world.config, key, int(value))
        return []

    def do_start(self) -> list[str]:
        return self._show(self.world.feed(Started()))

    def do_member(self, state: str, *names: str) -> list[str]:
        return [line for name in names for line in self._show(self.world.learn(name, STATES[state]))]

    def do_nowhere(self, name: str) -> list[str]:
        return self._show(self.world.learn(name, MemberState.ALIVE, ()))

    def do_open(self, *names: str) -> list[str]:
        events = [LinkOpened(NodeId(name), 1, (address(name),)) for name in names]
        return [line for event in events for line in self._show(self.world.feed(event))]

    def do_neighbors(self, *names: str) -> list[str]:
        """Open links over which we are asked to be neighbours at once."""
        for name in names:
            self.do_open(name)
            self.do_ask(name, "high")
        return self.do_view()

    def do_lost(self, name: str, how: str = "") -> list[str]:
        return self._show(self.world.feed(LinkLost(NodeId(name), left=how == "left", wanted=how == "wanted")))

    def do_failed(self, name: str, how: str = "") -> list[str]:
        return self._show(self.world.feed(DialFailed(NodeId(name), refused=how == "refused")))

    def do_found(self, name: str, *hosts: str) -> list[str]:
        return self._show(self.world.feed(PeerFound(NodeId(name), tuple(address(host) for host in hosts))))

    def do_want(self, name: str) -> list[str]:
        return self._show(self.world.feed(LinkWanted(NodeId(name))))

    def do_used(self, name: str) -> list[str]:
        return self._show(self.world.feed(LinkUsed(NodeId(name))))

    def do_rtt(self, name: str, ms: str) -> list[str]:
        return self._show(self.world.feed(RttMeasured(NodeId(name), int(ms) / 1000)))

    def do_join(self, peer: str) -> list[str]:
        return self._show(self.world.receive(peer, Join()))

    def do_walk(self, peer: str, ttl: str, name: str) -> list[str]:
        return self._show(self.world.receive(peer, ForwardJoin(int(ttl), node(name))))

    def do_ask(self, peer: str, priority: str, degree: str = "3") -> list[str]:
        return self._show(self.world.receive(peer, Neighbor(Priority[priority.upper()], int(degree))))

    def do_yes(self, peer: str, degree: str = "3") -> list[str]:
        return self._show(self.world.receive(peer, Reply(accepted=True, degree=int(degree))))

    def do_no(self, peer: str) -> list[str]:
        return self._show(self.world.receive(peer, Reply(accepted=False, degree=8)))

    def do_part(self, peer: str, instead: str = "") -> list[str]:
        return self._show(self.world.receive(peer, Disconnect(node(instead) if instead else None)))

    def do_shuffle(self, peer: str, ttl: str, path: str, *names: str) -> list[str]:
        walked = tuple(NodeId(name) for name in path.split(","))
        return self._show(self.world.receive(peer, Shuffle(int(ttl), walked, tuple(node(name) for name in names))))

    def do_answer(self, peer: str, path: str, *names: str) -> list[str]:
        back = tuple(NodeId(name) for name in path.split(",") if name != "-")
        return self._show(self.world.receive(peer, ShuffleReply(back, tuple(node(name) for name in names))))

    def do_wait_ms(self, ms: str) -> list[str]:
        return self._show(self.world.wait(int(ms) / 1000))

    def do_count(self, *names: str) -> list[str]:
        return [f"{name}={self.world.view.counters[name]}" for name in names]

    def do_view(self) -> list[str]:
        view = self.world.view
        return [f"active={','.join(view.neighbors)} passive={','.join(sorted(view.passive))} target={view.target}"]

    def _show(self, effects: list[Effect]) -> list[str]:
        return [self._line(effect) for effect in effects]

    def _line(self, effect: Effect) -> str:
        match effect:
            case Send():
                return f"to {effect.peer}: {self._said(decode(effect.body))}"
            case Dial():
                return f"dial {effect.peer} {' '.join(a.host for a in effect.addresses)}"
            case Unlink():
                return f"unlink {effect.peer} {effect.reason.name.lower()}"
            case NeighborUp():
                return f"up {effect.peer}"
            case NeighborDown():
                return f"down {effect.peer}"
            case Doubt():
                return f"doubt {effect.peer}"
            case _:
                return repr(effect)

    def _said(self, body: Body | None) -> str:
        match body:
            case Join():
                return "join"
            case ForwardJoin():
                return f"walk ttl={body.ttl} {body.newcomer.node_id}"
            case Neighbor():
                return f"ask {body.priority.name.lower()} degree={body.degree}"
            case Reply():
                return f"{'yes' if body.accepted else 'no'} degree={body.degree}"
            case Disconnect():
                return "part" if body.instead is None else f"part instead={body.instead.node_id}"
            case Shuffle():
                names = ",".join(peer.node_id for peer in body.peers)
                return f"shuffle ttl={body.ttl} path={','.join(body.path)} {names}"
            case ShuffleReply():
                return f"answer path={','.join(body.path)} {','.join(peer.node_id for peer in body.peers)}"
            case _:
                return repr(body)


@pytest.mark.parametrize("path", transcripts("hyparview"), ids=transcript_id)
def test_transcript(path: Path) -> None:
    """What the core says is what the transcript says; :mod:`datadriven_runner` checks it."""
    check_transcript(path, Script().execute)


def test_other_events_are_none_of_its_business() -> None:
    """The router hands it everything that it does not know; stale timers and strangers' words do nothing."""
    world = World()

    assert world.feed(Stalled(1.0)) == []
    assert world.feed(TimerFired(99)) == []
    assert world.receive("stranger", Join()) == []
    assert world.feed(LinkUsed(NodeId("stranger"))) == []
    assert world.learn("me", MemberState.ALIVE) == []


def test_bodies_that_are_not_allowed_are_refused() -> None:
    """The error closes the link; a later version's bodies do not."""
    world = World()
    world.feed(LinkOpened(NodeId("a"), 1, ()))

    with pytest.raises(RemoteProtocolError):
        world.feed(Received(NodeId("a"), b"\xc1", Kind.OVERLAY))
    assert world.feed(Received(NodeId("a"), pack([99]), Kind.OVERLAY)) == []


def test_round_trips_are_bounded() -> None:
    """However many peers are measured, the oldest measurement goes."""
    world = World()
    for index in range(1000):
        world.feed(RttMeasured(NodeId(f"n{index}"), 0.01))

    assert len(world.view._rtts) == 256


def test_no_more_links_than_allowed() -> None:
    """The link outside the active view that was unused for longest goes; neighbours never do."""
    world = World(links_max=2)
    for name in ("a", "b", "c"):
        world.learn(name, MemberState.ALIVE)
    world.feed(LinkOpened(NodeId("a"), 1, ()))
    world.receive("a", Reply(accepted=True, degree=1))
    world.now = 1.0
    world.feed(LinkOpened(NodeId("b"), 1, ()))
    world.now = 2.0

    assert world.feed(LinkWanted(NodeId("c"))) == [
        Unlink(NodeId("b"), "not needed", UnlinkReason.IDLE),
        Dial(NodeId("c"), (address("c"),)),
    ]
    assert Unlink(NodeId("b"), "not needed", UnlinkReason.IDLE) in world.feed(LinkOpened(NodeId("c"), 1, ()))

    full = World(links_max=1)
    full.feed(LinkOpened(NodeId("a"), 1, ()))
    full.receive("a", Reply(accepted=True, degree=1))
    full.learn("b", MemberState.ALIVE)
    assert full.feed(LinkWanted(NodeId("b"))) == []
    assert full.view.target == 1


def test_a_dial_without_a_result_is_forgotten() -> None:
    """Should the shell lose one, the peer can be dialled again after a minute."""
    world = World()
    world.feed(Started())
    world.learn("a", MemberState.ALIVE)
    assert world.wait(30) == [Dial(NodeId("a"), (address("a"),))]

    assert Dial(NodeId("a"), (address("a"),)) in world.wait(70)


def test_the_dead_are_tried_for_ever_at_a_low_rate() -> None:
    """Healing outlives tombstones: now and then one is dialled, without retries of its own."""
    world = World(heal_interval_s=5, dead_retention_s=10, tombstone_s=1e9)
    world.feed(Started())
    for index in range(30):
        world.learn(f"n{index}", MemberState.ALIVE)
        world.feed(LinkOpened(NodeId(f"n{index}"), 1, ()))
        world.receive(f"n{index}", Reply(accepted=True, degree=3))
    world.learn("z", MemberState.DEAD)
    world.now = 20.0
    world.table.reap(world.now)
    dials = 0
    while world.now < 6000:
        for effect in world.wait(5):
            if isinstance(effect, Dial) and effect.peer == "z":
                dials += 1
                world.feed(DialFailed(NodeId("z"), refused=False))

    assert 50 < dials < 200
    assert world.view.counters["heal_dials"] == dials


def test_sightings_are_dialled_within_bounds() -> None:
    """Not ourselves, not without an address, and only so many at once."""
    world = World()
    assert world.feed(PeerFound(ME, (address("me"),))) == []
    assert world.feed(PeerFound(NodeId("z"), ())) == []
    for index in range(40):
        world.feed(PeerFound(NodeId(f"z{index}"), (address("z"),)))

    dials = world.wait(2)

    assert world.view.counters["dials"] == 4 * world.config.repair_dials
    assert all(isinstance(effect, Dial) for effect in dials)


def test_a_nearer_peer_that_failed_just_now_is_not_dialled() -> None:
    """The exchange waits for the next time."""
    world = World(optimize_interval_s=1, heal_interval_s=1, dial_backoff_s_min=60, dial_backoff_s_max=60)
    world.feed(Started())
    for name in ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j"):
        world.learn(name, MemberState.ALIVE)
    for name in ("a", "b", "c", "d", "e", "f"):
        world.feed(LinkOpened(NodeId(name), 1, ()))
        world.receive(name, Neighbor(Priority.HIGH, 1))
    world.feed(RttMeasured(NodeId("a"), 0.05))
    world.feed(RttMeasured(NodeId("g"), 0.01))
    world.feed(LinkWanted(NodeId("g")))
    world.feed(DialFailed(NodeId("g"), refused=False))

    assert not [e for e in world.wait(20) if isinstance(e, Dial) and e.peer == "g"]


def test_a_link_that_nobody_knows_a_member_for_is_not_dialled_again() -> None:
    """A neighbour that left the table, or that returned when luck says no, causes nothing."""
    world = World(heal_nodes=1e-9, heal_interval_s=1)
    world.feed(Started())
    for name in ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j"):
        world.learn(name, MemberState.ALIVE)
    for name in ("x", "a", "b", "c", "d", "e", "f"):
        world.feed(LinkOpened(NodeId(name), 1, ()))
        world.receive(name, Neighbor(Priority.HIGH, 1))
    world.feed(LinkLost(NodeId("x")))
    world.learn("j", MemberState.DEAD)
    world.learn("j", MemberState.ALIVE)

    assert not [effect for effect in world.wait(30) if isinstance(effect, Dial)]
    assert world.view.counters["mixes"] == 0


def test_a_neighbour_that_returned_already_is_not_mixed_in() -> None:
    """It was noted as returned, and came by itself before its turn."""
    world = World(heal_nodes=1e-9, heal_interval_s=1)
    world.feed(Started())
    for name in ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j"):
        world.learn(name, MemberState.ALIVE)
    for name in ("a", "b", "c", "d", "e", "f"):
        world.feed(LinkOpened(NodeId(name), 1, ()))
        world.receive(name, Neighbor(Priority.HIGH, 1))
    object.__setattr__(world.config, "heal_nodes", 1e9)
    world.learn("g", MemberState.DEAD)
    world.learn("g", MemberState.ALIVE)
    object.__setattr__(world.config, "heal_nodes", 1e-9)
    world.feed(LinkOpened(NodeId("g"), 1, ()))
    world.receive("g", Neighbor(Priority.HIGH, 1))

    assert not [effect for effect in world.wait(10) if isinstance(effect, Dial)]
    assert world.view.counters["mixes"] == 0


def test_a_link_dialled_for_a_place_that_was_filled_meanwhile_just_stays() -> None:
    """Until it is idle."""
    world = World()
    world.feed(Started())
    for name in ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j"):
        world.learn(name, MemberState.ALIVE)
    for name in ("a", "b", "c", "d", "e"):
        world.feed(LinkOpened(NodeId(name), 1, ()))
        world.receive(name, Neighbor(Priority.HIGH, 1))
    (dialled,) = {effect.peer for effect in world.wait(0.9) if isinstance(effect, Dial)}
    other = NodeId("j" if dialled != "j" else "i")
    world.feed(LinkOpened(other, 1, ()))
    world.receive(other, Neighbor(Priority.HIGH, 1))

    assert world.feed(LinkOpened(dialled, 1, ())) == []
    assert Unlink(dialled, "not needed", UnlinkReason.IDLE) in world.wait(60)


def test_one_that_does_not_admit_us_is_left_alone_for_a_minute() -> None:
    """Or whom we do not admit: linking works each time, so nothing else would slow it down."""
    world = World()
    world.feed(Started())
    world.feed(PeerFound(NodeId("a"), (address("a"),)))
    world.wait(1)
    world.feed(LinkOpened(NodeId("a"), 1, ()))
    world.feed(LinkLost(NodeId("a"), wanted=True, vetoed=True))

    dialled = [effect for effect in world.wait(50) if isinstance(effect, Dial)]
    assert dialled == []
    world.feed(PeerFound(NodeId("a"), (address("a"),)))
    assert Dial(NodeId("a"), (address("a"),)) in world.wait(60)
