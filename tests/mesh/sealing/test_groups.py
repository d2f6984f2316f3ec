"""Sealing for many over links: keys find their way, and what does not hold costs nobody but who made it."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from couriers import FakeLink, FixedClock
from keysmith import NETWORK, WALL, entropy, identity
from support import eventually

from mesh.sealing import groups as groups_module
from mesh.sealing.groups import SealedGroups
from mesh.sealing.handshake import Peer
from mesh.sealing.keyring import EVERYBODY, Readers, is_sealed
from mesh.sealing.links import FEATURE, SealedLinks
from transport.link import CloseReason, Link, SendOutcome
from transport.types import Lane, NodeId
from transport.wire import Envelope, Kind, pack

NEWS = "news"
PLAIN = pack([0, 0, b"a payload that only readers may read"])


class Village:
    """Nodes, links between some of them, and a tree that takes payloads to all but their sender."""

    def __init__(self, *names: str, off: Sequence[str] = (), old: Sequence[str] = ()) -> None:
        self.clock = FixedClock()
        self.clock.wall_s = WALL.timestamp()
        self.off, self.old = off, old
        self.subscribers = list(names)
        self.nodes = {name: One(self, name) for name in names}
        self.links: dict[tuple[str, str], FakeLink] = {}

    def link(self, a: str, b: str, *, capacity: int = 1_000) -> FakeLink:
        """Link two nodes; returns the end at ``a``."""
        here, there = FakeLink(b, capacity), FakeLink(a, capacity)
        here.other, there.other = there, here
        for end, me, other in ((here, a, b), (there, b, a)):
            end.owner = self.nodes[me].links
            end.peer = dataclasses.replace(end.peer, features={} if other in self.off else {FEATURE: True})
        self.links[a, b], self.links[b, a] = here, there
        self.nodes[a].links.link_opened(here)
        self.nodes[b].links.link_opened(there)
        return here

    def publish(self, frm: str, payload: bytes = PLAIN, group: str = NEWS) -> bytes:
        """Seal it and bring it to everybody else."""
        sealed = self.nodes[frm].groups.seal(group, payload)
        for name, node in self.nodes.items():
            if name != frm:
                node.groups.received(group, frm, 1, sealed)
        return sealed

    def changed(self) -> None:
        """Tell everybody that members or subscribers changed."""
        for node in self.nodes.values():
            node.groups.readers_changed()


class One:
    """One node: what it opened, whom it wanted to be linked with, what went on record."""

    def __init__(self, village: Village, name: str) -> None:
        self._village = village
        self.name = name
        self.heard: list[tuple[str, str, bytes]] = []
        self.wanted: list[str] = []
        self.notes: list[tuple[str, object, object]] = []
        self.others: list[int] = []
        self.closed: list[Link] = []
        self.groups = SealedGroups(
            NETWORK,  # type: ignore[arg-type]  # its own kind of text
            NodeId(name),
            1,
            self,
            self,
            self,
            required=name not in village.off,
            clock=village.clock,
            note=self.note,
            rng=random.Random(1),
            entropy=entropy(name),
        )
        self.links = SealedLinks(
            identity(name),
            self.groups,
            required=name not in village.off,
            clock=village.clock,
            note=self.note,
            entropy=entropy("links of " + name),
        )

    def note(self, event: str, /, **fields: object) -> None:
        """Keep what goes on record."""
        self.notes.append((event, fields.get("origin"), fields["reason"]))

    def count(self, name: str) -> int:
        """A counter."""
        return self.groups.statistics().get(name, 0)

    # View, Node and LinkHandler

    def readers(self, group: str) -> Readers:
        """Everybody, or who subscribes."""
        names = self._village.nodes if group == EVERYBODY else self._village.subscribers
        demanded = any(name not in (*self._village.off, *self._village.old) for name in names)
        unable = sum(name in self._village.old for name in names)
        return Readers([Peer(name, 1) for name in names], demanded, unable)

    def demands_sealed(self, node_id: str) -> bool:
        """As the nodes were made."""
        return node_id not in (*self._village.off, *self._village.old)

    def hears(self, group: str) -> bool:
        """Whether it subscribes."""
        return group == NEWS and self.name in self._village.subscribers

    def want_link(self, node_id: NodeId) -> None:
        """Note whom."""
        self.wanted.append(node_id)

    def opened(self, group: str, origin: str, life: int, payload: bytes) -> None:
        """Note what."""
        assert life == 1
        self.heard.append((group, origin, payload))

    def link_opened(self, link: Link) -> None:
        """Nobody else uses links here."""

    def link_closed(self, link: Link, reason: CloseReason, detail: str) -> None:
        """Note which."""
        self.closed.append(link)

    def envelopes_received(self, link: Link, envelopes: Sequence[Envelope]) -> None:
        """Note what is for others."""
        self.others += [envelope.kind for envelope in envelopes]


@asynccontextmanager
async def village(*names: str, off: Sequence[str] = (), old: Sequence[str] = ()) -> AsyncIterator[Village]:
    """A village that ends with the test."""
    made = Village(*(names or ("a", "b", "c")), off=off, old=old)
    try:
        yield made
    finally:
        for node in made.nodes.values():
            await node.groups.close()
            node.links.close()


@pytest.mark.parametrize("group", [NEWS, EVERYBODY])
async def test_keys_travel_sealed_and_payloads_open(group: str) -> None:
    """Linked readers hear everything in order, and neither payloads nor keys are to be seen on the way."""
    async with village() as there:
        there.link("a", "b")
        there.link("a", "c")
        payloads = [pack([0, 0, b"%d" % number]) for number in range(20)]
        sealed = [there.publish("a", payload, group) for payload in payloads]
        for name in "bc":
            node = there.nodes[name]
            await eventually(functools.partial(lambda node: len(node.heard) == 20, node))
            assert there.nodes[name].heard == [(group, "a", payload) for payload in payloads]
            assert set(there.links["a", name].kinds_sent) <= {Kind.KEYS, Kind.SEALED}
            assert there.nodes[name].notes == []
        assert not any(payload in body for payload, body in zip(payloads, sealed, strict=True))
        assert there.nodes["a"].count("in_the_clear") == 0


async def test_who_is_not_linked_asks_for_a_link_and_then_for_the_key() -> None:
    """A reader far away wants a link to the origin, asks over it, and opens what waited."""
    async with village("a", "b") as there:
        there.publish("a")
        there.clock.monotonic_s += 1.0
        await eventually(lambda: "a" in there.nodes["b"].wanted)
        assert there.nodes["b"].heard == []
        there.link("a", "b")
        await eventually(lambda: there.nodes["b"].heard == [(NEWS, "a", PLAIN)])


async def test_questions_go_on_while_something_waits() -> None:
    """Without a link the origin is asked for again and again, until the payload's time is over."""
    async with village("a", "b") as there:
        there.publish("a")
        wanted = there.nodes["b"].wanted
        for count in (1, 2):
            there.clock.monotonic_s += 10.0
            there.nodes["b"].groups._tick()
            assert len(wanted) == count
        there.clock.monotonic_s += 10.0
        there.nodes["b"].groups._tick()
        assert there.nodes["b"].count("parked_expired") == 1
        assert there.nodes["b"].groups._timer is None


async def test_an_earlier_question_moves_the_timer_forward() -> None:
    """Something of a linked origin does not wait for the timer that another origin's far question set."""
    async with village("a", "b", "c") as there:
        there.link("b", "c")
        there.nodes["c"].groups.received(NEWS, "a", 1, there.nodes["a"].groups.seal(NEWS, PLAIN))
        first = there.nodes["c"].groups._timer
        there.nodes["c"].groups._timer_at += 100
        there.nodes["c"].groups.received(NEWS, "b", 1, there.nodes["b"].groups.seal(NEWS, PLAIN))
        assert first is not None
        assert first.cancelled()
        await eventually(lambda: there.nodes["c"].heard == [(NEWS, "b", PLAIN)])


async def test_who_may_not_read_gets_no_key() -> None:
    """A linked member that does not subscribe asks in vain."""
    async with village() as there:
        there.link("a", "b")
        there.link("a", "c")
        there.subscribers.remove("c")
        there.publish("a")
        await eventually(lambda: there.nodes["b"].heard and there.nodes["a"].count("unanswered") == 1)
        assert there.nodes["c"].heard == []


async def test_who_left_reads_nothing_newer() -> None:
    """A subscriber that leaves keeps a key that opens nothing that follows."""
    async with village() as there:
        there.link("a", "b")
        there.link("a", "c")
        there.publish("a")
        await eventually(lambda: all(there.nodes[name].heard for name in "bc"))
        there.subscribers.remove("c")
        there.changed()
        there.clock.monotonic_s += 1.0
        there.publish("a", pack([0, 0, b"after"]))
        await eventually(lambda: len(there.nodes["b"].heard) == 2)
        await eventually(lambda: there.nodes["a"].count("unanswered") == 1)
        assert [payload for _, _, payload in there.nodes["c"].heard] == [PLAIN]


# --- policy -----------------------------------------------------------------------------------------------------


async def test_nothing_in_the_clear_is_taken_where_sealing_is_demanded() -> None:
    """Neither by who demands it, nor in the name of who does; the link that brought it stays."""
    async with village("a", "b", "c", off=("c",)) as there:
        link = there.link("b", "c")
        there.nodes["b"].groups.received(EVERYBODY, "c", 1, PLAIN)
        there.nodes["c"].groups.received(EVERYBODY, "a", 1, PLAIN)
        for name, origin in (("b", "c"), ("c", "a")):
            assert there.nodes[name].heard == []
            assert there.nodes[name].count("refused_clear") == 1
            assert there.nodes[name].notes == [("group refusal", origin, "clear")]
        assert link.is_open


async def test_who_does_not_demand_it_seals_for_one_that_does() -> None:
    """One reader that demands it is enough; without one, payloads travel in the clear and are counted."""
    async with village("a", "b", "c", off=("a", "b")) as there:
        there.link("a", "b")
        there.link("a", "c")
        assert is_sealed(there.publish("a"))
        await eventually(lambda: all(there.nodes[name].heard for name in "bc"))
        # Between two that both say no the key went over a link that TLS alone protects, to that very node.
        assert Kind.GRANTS in there.links["a", "b"].kinds_sent
        assert Kind.GRANTS not in there.links["a", "c"].kinds_sent

        there.subscribers.remove("c")
        there.changed()
        assert there.publish("a") == PLAIN
        assert there.nodes["a"].count("in_the_clear") == 1
        assert len(there.nodes["b"].heard) == 2


async def test_members_that_cannot_open_it_are_counted_and_nothing_is_left_unsealed_for_them() -> None:
    """An older peer among the readers gets nothing that it can read; the sender says how many there are."""
    async with village("a", "b", "c", old=("c",)) as there:
        assert is_sealed(there.publish("a"))
        assert there.nodes["a"].count("unable") == 1
        there.old = ()
        there.changed()
        there.clock.monotonic_s += 60.0
        there.publish("a")
        assert there.nodes["a"].count("unable") == 0


# --- a hostile carrier ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trick", "reason"),
    [("altered", "signature"), ("truncated", "malformed"), ("replayed", "replayed"), ("another kind", "malformed")],
)
async def test_what_was_done_on_the_way_is_dropped_and_counted(trick: str, reason: str) -> None:
    """A relay's tricks cost no link, neither to it nor to the origin, and the next payload opens."""
    async with village("a", "b") as there:
        link = there.link("a", "b")
        sealed = there.publish("a")
        node = there.nodes["b"]
        await eventually(lambda: len(node.heard) == 1)
        tricks = {
            "altered": sealed[:-70] + bytes([sealed[-70] ^ 1]) + sealed[-69:],
            "truncated": sealed[:50],
            "replayed": sealed,
            "another kind": bytes([Kind.BROADCAST]) + sealed[1:],
        }
        for _ in range(3):
            node.groups.received(NEWS, "a", 1, tricks[trick])
        assert node.count(f"refused_{reason}") == 3
        assert node.notes == [("group refusal", "a", reason)] * 3
        there.publish("a")
        assert len(node.heard) == 2
        assert link.is_open


async def test_a_payload_in_anothers_name_is_never_heard() -> None:
    """A reader that holds the key seals nothing that others take for the origin's; nor does its own pass for it."""
    async with village() as there:
        for pair in ("ab", "ac", "bc"):
            there.link(*pair)
        there.publish("a")
        await eventually(lambda: all(there.nodes[name].heard for name in "bc"))
        forged = there.nodes["c"].groups.seal(NEWS, PLAIN)
        there.nodes["b"].groups.received(NEWS, "a", 1, forged)
        await eventually(lambda: there.nodes["a"].count("answered") >= 1)
        assert len(there.nodes["b"].heard) == 1
        assert there.nodes["b"].count("parked_now") == 1


async def test_parked_payloads_that_are_refused_are_counted() -> None:
    """What waited and then does not hold is on record like what is refused at once."""
    async with village("a", "b") as there:
        sealed = there.publish("a")
        there.nodes["b"].groups.received(NEWS, "a", 1, sealed)
        there.link("a", "b")
        await eventually(lambda: there.nodes["b"].count("refused_replayed") == 1)
        assert len(there.nodes["b"].heard) == 1


async def test_nonsense_about_keys_ends_the_link_of_who_said_it() -> None:
    """A session says who sealed it, so here the peer is to blame."""
    async with village("a", "b") as there:
        there.link("a", "b")
        there.publish("a")
        await eventually(lambda: there.nodes["b"].heard != [])
        sealed_link = there.nodes["a"].links.of(there.links["a", "b"])
        sealed_link.send(Envelope(Kind.GRANTS, 1, None, None, b"\xc1"), Lane.CONTROL)
        await eventually(lambda: not there.links["b", "a"].is_open)
        assert len(there.nodes["b"].closed) == 1


# --- links ------------------------------------------------------------------------------------------------------


async def test_other_envelopes_pass() -> None:
    """What is not about sender keys goes on to whom it is for, also when it comes together with what is."""
    async with village("a", "b", off=("a", "b")) as there:
        link = there.link("a", "b")
        other, ours = Envelope(Kind.ACKS, 1, None, None, b""), Envelope(Kind.GRANTS, 1, None, None, pack([9]))
        link.other.receive([other])
        link.other.receive([ours, other, ours])
        link.other.receive([ours])
        assert there.nodes["b"].others == [Kind.ACKS] * 2


async def test_what_waits_for_a_link_is_bounded_and_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grants wait for key agreement, not more than so many; when the link ends nothing is left of them."""
    monkeypatch.setattr(groups_module, "WAITING_MAX", 2)
    async with village("a", "b") as there:
        link = there.link("a", "b")
        link.other.hold()
        groups = there.nodes["a"].groups
        for number in range(4):
            groups.received(EVERYBODY, "b", 1, there.nodes["b"].groups.seal(EVERYBODY, PLAIN))
            there.clock.monotonic_s += number
            groups._tick()
        (waiting,) = groups._waiting.values()
        assert 1 <= len(waiting) <= 2
        assert groups.is_using(there.nodes["a"].links.of(link))
        await asyncio.sleep(0)
        link.cut()
        await eventually(lambda: groups._waiting == {} and len(groups._scope) == 0)
        assert groups._links == {}
        assert not groups.is_using(link)


async def test_who_leaves_first_gives_out_the_keys_it_owes() -> None:
    """Leaving waits until what was to be said is said, and not for ever."""
    async with village("a", "b") as there:
        groups = there.nodes["a"].groups
        await groups.drain(5.0)
        link = there.link("a", "b")
        there.publish("a")
        await groups.drain(5.0)
        assert groups._waiting == {}
        await eventually(lambda: there.nodes["b"].heard == [(NEWS, "a", PLAIN)])
        link.cut()
        there.nodes["a"].links._parked.clear()
        there.link("a", "b").other.hold()
        there.nodes["b"].groups.readers_changed()
        there.publish("b")
        there.publish("b", group=EVERYBODY)
        await there.nodes["b"].groups.drain(0.02)
        assert there.nodes["b"].groups._waiting != {}


async def test_grants_wait_for_room_as_often_as_need_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane that is full again after there was room keeps nothing from being said in the end."""
    async with village("a", "b", "c", off=("a", "b")) as there:
        link = there.link("a", "b")
        send, refusals = link.send, [SendOutcome.FULL] * 3

        def full_at_first(envelope: Envelope, lane: Lane, *, key: str | None = None) -> SendOutcome:
            return refusals.pop() if refusals else send(envelope, lane, key=key)

        monkeypatch.setattr(link, "send", full_at_first)
        there.publish("a")
        await eventually(lambda: there.nodes["b"].heard == [(NEWS, "a", PLAIN)])
        assert refusals == []


async def test_a_link_that_was_replaced_takes_nothing_with_it() -> None:
    """The end of an older link to the same life leaves the newer one in use."""
    async with village("a", "b") as there:
        older = there.link("a", "b")
        there.link("a", "b")
        older.cut()
        assert len(there.nodes["a"].groups._links) == 1
        there.publish("a")
        await eventually(lambda: there.nodes["b"].heard != [])


async def test_keys_are_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys whose time is over are erased though nobody says anything more."""
    monkeypatch.setattr(groups_module, "SWEEP_S", 0.01)
    async with village("a", "b") as there:
        there.link("a", "b")
        there.publish("a")
        await eventually(lambda: there.nodes["b"].heard != [])
        there.clock.monotonic_s += 1_000
        await eventually(lambda: there.nodes["b"].count("receivers") == 0)
