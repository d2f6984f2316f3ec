"""Couriers on sealed links: messages pass as ever, and whoever carries them learns nothing and can change nothing."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import pytest
from couriers import FakeLink, Inbox, World, command, echo, link_pair, query
from identities import make_credentials
from keysmith import WALL, entropy, identity
from support import eventually

from mesh.errors import DeliveryUncertain, NotDelivered, UnknownAgent
from mesh.messaging.body import Acks, encode_acks, encode_batch
from mesh.sealing import links as links_module
from mesh.sealing import pairing as pairing_module
from mesh.sealing.chains import Limits
from mesh.sealing.codec import HEADER_BYTES
from mesh.sealing.handshake import Identity
from mesh.sealing.links import FEATURE, SealedLink, SealedLinks, identity_of
from mesh.types import DeliveryStatus
from transport.errors import LinkClosed, RemoteProtocolError
from transport.identity import certificates
from transport.link import CloseReason, Link, SendOutcome
from transport.types import Lane, Priority
from transport.wire import Envelope, Kind, encode_frame

#: What must never be seen on the way.
PLAIN = b"a payload that only the receiver may read"

_Tap = Callable[[Envelope], list[Envelope]]


class Tapped(FakeLink):
    """A link whose carrier looks at each envelope and may put others in its place."""

    def __init__(self, peer: str, capacity: int) -> None:
        super().__init__(peer, capacity)
        self.seen: list[Envelope] = []
        self.tap: _Tap = lambda envelope: [envelope]

    def receive(self, envelopes: Sequence[Envelope]) -> None:
        self.seen += envelopes
        super().receive([each for envelope in envelopes for each in self.tap(envelope)])


class SealedWorld(World):
    """Couriers that are linked through :class:`SealedLinks`."""

    def __init__(
        self,
        *names: str,
        off: Sequence[str] = (),
        limits: Limits | None = None,
        capacity: int = 1_000,
        relayed: bool = False,
    ) -> None:
        super().__init__(*names, capacity=capacity)
        self.clock.wall_s = WALL.timestamp()
        self.off = off
        self.relayed = relayed
        self.limits = limits
        self.sealed: dict[str, SealedLinks] = {}
        self.identities: dict[str, Identity] = {}
        self.notes: list[tuple[str, str, object]] = []

    def sealing(self, name: str, life: int = 1) -> SealedLinks:
        """The node's sealing; made when first asked for."""
        if name not in self.sealed:
            self.identities[name] = identity(name, life)

            def note(event: str, /, **fields: object) -> None:
                self.notes.append((name, event, fields["reason"]))

            self.sealed[name] = SealedLinks(
                self.identities[name],
                self.couriers[name],
                required=name not in self.off,
                clock=self.clock,
                note=note,
                entropy=entropy(name),
                limits=self.limits,
            )
        return self.sealed[name]

    def link(self, a: str, b: str) -> FakeLink:
        here, there = Tapped(b, self.capacity), Tapped(a, self.capacity)
        here.other, there.other = there, here
        for end, me, other in ((here, a, b), (there, b, a)):
            end.owner = self.sealing(me)
            end.is_relayed = self.relayed
            life = self.sealing(other)._identity.life
            features = {} if other in self.off else {FEATURE: True}
            end.peer = dataclasses.replace(end.peer, incarnation=life << 16, features=features)
        self.links[a, b], self.links[b, a] = here, there
        self.sealing(a).link_opened(here)
        self.sealing(b).link_opened(there)
        return here

    async def __aenter__(self) -> SealedWorld:
        await super().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        for sealed in self.sealed.values():
            sealed.close()

    def end(self, at: str, of: str) -> Tapped:
        """The end of a link at a node."""
        link = self.links[at, of]
        assert isinstance(link, Tapped)
        return link

    def kinds(self, at: str, of: str) -> set[int]:
        """The kinds of all envelopes that arrived there."""
        return {envelope.kind for envelope in self.end(at, of).seen}

    def capture(self) -> bytes:
        """Everything that travelled, as whoever carries it would see it."""
        ends = [end for end in self.links.values() if isinstance(end, Tapped)]
        return b"".join(encode_frame([envelope]) for end in ends for envelope in end.seen)


async def _send(world: World, frm: str, to_agent: int, payload: bytes, *, ack: bool = True) -> DeliveryStatus:
    receipt = await world[frm].send(command(to_agent, payload), ack=ack, timeout_s=5)
    return receipt.status


# --- messages ---------------------------------------------------------------------------------------------------


async def test_messages_and_requests_pass_and_leave_no_plaintext() -> None:
    """Commands, acknowledgements, requests and errors work both ways; the carrier's capture shows nothing of them."""
    inbox = Inbox()
    async with SealedWorld() as world:
        world.agent("b", 7, inbox)
        world.agent("a", 8, echo)
        assert await _send(world, "a", 7, PLAIN) is DeliveryStatus.DELIVERED
        parcel = command(7, b"second", headers={"secret-key": "secret-value"})
        await world["a"].send(parcel, ack=True, timeout_s=5)
        assert await world["b"].request(query(8, PLAIN[::-1]), timeout_s=5) == PLAIN[::-1]
        world.places[99] = "b"
        with pytest.raises(UnknownAgent):
            await world["a"].request(query(99, PLAIN), timeout_s=5)

        assert inbox.payloads == [PLAIN, b"second"]
        assert world.kinds("b", "a") == world.kinds("a", "b") == {Kind.KEYS, Kind.SEALED}
        capture = world.capture()
    for secret in (PLAIN, PLAIN[::-1], b"second", b"secret-key", b"secret-value", b"runs no agent"):
        assert secret not in capture


async def test_the_first_message_waits_for_one_round_trip() -> None:
    """Offer, answer, message: no more than three envelopes are on the way one after the other."""
    async with SealedWorld() as world:
        inbox = Inbox()
        world.agent("b", 7, inbox)
        await _send(world, "a", 7, PLAIN)
        assert [envelope.kind for envelope in world.end("b", "a").seen][:3] == [Kind.KEYS, Kind.SEALED, Kind.SEALED]
        assert next(iter(world.end("a", "b").seen)).kind == Kind.KEYS
        assert world.sealed["a"].statistics()["handshakes"] == 1


async def test_order_is_kept_over_links_without_room() -> None:
    """What is held back for keys, and then for room, arrives complete and in order."""
    async with SealedWorld(capacity=2) as world:
        inbox = Inbox()
        world.agent("b", 7, inbox)
        payloads = [b"%d" % number * 500 for number in range(400)]
        for payload in payloads:
            await _send(world, "a", 7, payload, ack=False)
        await eventually(lambda: len(inbox.seen) == len(payloads))
        assert inbox.payloads == payloads


async def test_both_ends_may_begin_at_once() -> None:
    """Two requests that cross make one session, and both are answered."""
    async with SealedWorld() as world:
        world.agent("a", 8, echo)
        world.agent("b", 7, echo)
        answers = await asyncio.gather(
            world["a"].request(query(7, b"one"), timeout_s=5), world["b"].request(query(8, b"two"), timeout_s=5)
        )
        assert list(answers) == [b"one", b"two"]
        assert [world.sealed[name].statistics()["handshakes"] for name in "ab"] == [1, 1]


async def test_a_link_nobody_uses_costs_no_keys() -> None:
    """A session is agreed on when somebody has something to say, so a thousand links are not a thousand handshakes."""
    async with SealedWorld("a", "b", "c") as world:
        world.agent("b", 7, echo)
        await world["a"].request(query(7), timeout_s=5)
        assert [world.sealed[name].statistics()["handshakes"] for name in "abc"] == [1, 1, 0]
        assert world.sealed["a"].statistics()["links_sealed"] == 2
        assert world.sealed["a"].statistics()["sessions"] == 1


async def test_other_kinds_pass_as_they_are() -> None:
    """What is not between agents is none of this layer's business."""
    async with SealedWorld() as world:
        seen: list[Envelope] = []
        world.couriers["b"].envelopes_received = lambda _, envelopes: seen.extend(envelopes)  # type: ignore[method-assign,assignment]
        renewal = Envelope(Kind.RENEWAL, 1, None, None, b"x")
        world.end("b", "a").receive([renewal])
        assert seen == [renewal]


# --- policy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("off", "sealed"), [((), True), (("a",), True), (("b",), True), (("a", "b"), False)], ids=["on", "a", "b", "off"]
)
async def test_a_link_is_sealed_if_either_side_demands_it(off: Sequence[str], sealed: bool) -> None:
    """Both sides come to the same result from the hellos; where both say no, bodies travel in the clear."""
    async with SealedWorld(off=off) as world:
        world.agent("b", 7, echo)
        assert await world["a"].request(query(7, PLAIN), timeout_s=5) == PLAIN
        assert (PLAIN not in world.capture()) is sealed
        assert (Kind.SEALED in world.kinds("b", "a")) is sealed


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Kind.MESSAGES, encode_batch(1, 0, Priority.NORMAL, [[1, 1, 1, 7, 0, b"forged", 0]])),
        (Kind.ACKS, encode_acks(Acks([(7, 1 << 40)], [], []))),
        (47, b"of a later version"),
    ],
)
async def test_bodies_in_the_clear_are_refused(kind: int, body: bytes) -> None:
    """Nobody on the way can talk a sealed link down: a clear body ends it, is counted and goes on record."""
    async with SealedWorld() as world:
        inbox = Inbox()
        world.agent("b", 7, inbox)
        await _send(world, "a", 7, b"genuine")
        end = world.end("b", "a")
        end.receive([Envelope(kind, 1, None, None, body)])
        assert end.closed_as is CloseReason.PROTOCOL_ERROR
        assert inbox.payloads == [b"genuine"]
        assert world.notes == [("b", "end-to-end refusal", "clear")]
        assert world.sealed["b"].statistics()["refused_clear"] == 1


async def test_sealed_bodies_where_nobody_asked_for_them_are_refused() -> None:
    """Without a demand on either side there are no keys, so a sealed body can only be a mistake."""
    async with SealedWorld(off=("a", "b")) as world:
        end = world.end("b", "a")
        end.receive([Envelope(Kind.SEALED, 1, None, None, bytes(60))])
        assert isinstance(end.refusal, RemoteProtocolError)


# --- a hostile carrier ------------------------------------------------------------------------------------------


def _flipped(envelope: Envelope) -> list[Envelope]:
    body = bytearray(envelope.body)
    body[-1] ^= 1
    return [envelope._replace(body=bytes(body))]


_TRICKS: dict[str, tuple[_Tap, str]] = {
    "altered": (_flipped, "forged"),
    "truncated": (lambda envelope: [envelope._replace(body=envelope.body[:-1])], "forged"),
    "cut short": (lambda envelope: [envelope._replace(body=envelope.body[:20])], "malformed"),
    "extended": (lambda envelope: [envelope._replace(body=envelope.body + b"\0")], "forged"),
    "replayed": (lambda envelope: [envelope, envelope], "replayed"),
    "forged": (lambda envelope: [envelope._replace(body=envelope.body[:HEADER_BYTES] + bytes(64))], "forged"),
}


@pytest.mark.parametrize("trick", _TRICKS)
async def test_a_carriers_tricks_end_the_link_and_not_the_node(trick: str) -> None:
    """Whatever is done to a sealed body on the way is noticed, counted and recorded; the next link works."""
    tap, reason = _TRICKS[trick]
    async with SealedWorld() as world:
        inbox = Inbox()
        world.agent("b", 7, inbox)
        await _send(world, "a", 7, b"before")
        end = world.end("b", "a")
        end.tap = tap
        with pytest.raises(DeliveryUncertain):
            await world["a"].send(command(7, b"touched"), ack=True, timeout_s=0.2)
        assert end.closed_as is CloseReason.PROTOCOL_ERROR
        assert ("b", "end-to-end refusal", reason) in world.notes
        assert world.sealed["b"].statistics()[f"refused_{reason}"] == 1

        world.link("a", "b")
        await _send(world, "a", 7, b"after")
        assert inbox.payloads[0] == b"before"
        assert inbox.payloads[-1] == b"after"
        # Nothing of a session that somebody meddled with is trusted again.
        assert world.sealed["b"].statistics()["handshakes"] == 2


async def test_a_body_for_one_node_does_not_open_at_another() -> None:
    """A carrier that redirects what was sealed for somebody else gets it refused."""
    async with SealedWorld("a", "b", "c") as world:
        for name, agent in (("b", 7), ("c", 9)):
            world.agent(name, agent, Inbox())
            await _send(world, "a", agent, PLAIN)
        stolen = world.end("b", "a").seen[-1]
        assert stolen.kind == Kind.SEALED
        world.end("c", "a").receive([stolen])
        assert ("c", "end-to-end refusal", "unknown_session") in world.notes


async def test_an_offer_in_anothers_name_is_refused() -> None:
    """A node that passes another's offer off as its own link's gets no session."""
    async with SealedWorld("a", "b", "c") as world:
        world.agent("b", 7, Inbox())
        await _send(world, "a", 7, PLAIN)
        offer = world.end("b", "a").seen[0]
        assert offer.kind == Kind.KEYS
        world.end("b", "c").receive([offer])
        assert world.notes == [("b", "end-to-end refusal", "wrong_peer")]


# --- relays -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trick", _TRICKS)
async def test_what_does_not_hold_on_a_relayed_link_is_dropped_and_nobody_is_cut(trick: str) -> None:
    """Any node on the way could have done it: counted and on record, and link and session go on."""
    tap, reason = _TRICKS[trick]
    async with SealedWorld(relayed=True) as world:
        inbox = Inbox()
        world.agent("b", 7, inbox)
        await _send(world, "a", 7, b"before")
        end = world.end("b", "a")
        end.tap = tap
        await _send(world, "a", 7, b"touched", ack=False)
        await eventually(lambda: world.sealed["b"].statistics().get(f"refused_{reason}", 0) == 1)
        end.tap = lambda envelope: [envelope]
        await _send(world, "a", 7, b"after")

        assert [payload for payload in inbox.payloads if payload != b"touched"] == [b"before", b"after"]
        assert inbox.payloads.count(b"touched") == (trick == "replayed")
        assert end.is_open
        assert ("b", "end-to-end refusal", reason) in world.notes
        assert world.sealed["b"].statistics()["handshakes"] == 1


async def test_a_relayed_link_that_goes_on_losing_is_closed_and_its_session_taken_up() -> None:
    """What is dropped is not given back as credit, so in the end another link is better; keys are not to blame."""
    async with SealedWorld(relayed=True) as world:
        inbox = Inbox()
        world.agent("b", 7, inbox)
        await _send(world, "a", 7, b"before")
        end = world.end("b", "a")
        genuine = end.seen[-1]
        for _ in range(links_module.RELAYED_REFUSALS_MAX - 1):
            end.receive(_flipped(genuine))
        assert end.is_open
        end.receive(_flipped(genuine))
        assert end.closed_as is CloseReason.NORMAL
        await eventually(lambda: world.sealed["b"].statistics()["sessions_parked"] == 1)

        world.link("a", "b")
        await _send(world, "a", 7, b"after")
        assert inbox.payloads == [b"before", b"after"]
        assert world.sealed["b"].statistics()["handshakes"] == 1


# --- links that break -------------------------------------------------------------------------------------------


async def test_the_next_link_takes_up_the_session() -> None:
    """A link that breaks and comes back costs no key agreement, and messages flow both ways at once."""
    async with SealedWorld() as world:
        inbox = Inbox()
        world.agent("b", 7, inbox)
        world.agent("a", 8, echo)
        for _ in range(3):
            assert await _send(world, "a", 7, PLAIN) is DeliveryStatus.DELIVERED
            assert await world["b"].request(query(8, b"hi"), timeout_s=5) == b"hi"
            world.end("a", "b").cut()
            assert world.sealed["a"].statistics()["sessions_parked"] == 1
            world.link("a", "b")
            await eventually(lambda: world.sealed["a"].statistics()["sessions"] == 1)
        assert [world.sealed[name].statistics()["handshakes"] for name in "ab"] == [1, 1]
        assert PLAIN not in world.capture()


@pytest.mark.parametrize("reason", [CloseReason.LEAVING, CloseReason.VETOED])
async def test_who_left_leaves_no_session_behind(reason: CloseReason) -> None:
    """Of a node that left, or that is not admitted any more, no keys are kept for a link to come."""
    async with SealedWorld() as world:
        world.agent("b", 7, Inbox())
        await _send(world, "a", 7, PLAIN)
        world.end("a", "b").cut(reason)
        assert world.sealed["a"].statistics()["sessions_parked"] == 0


async def test_keys_of_who_is_no_member_any_more_are_dropped() -> None:
    """A session that waits for a link is forgotten when its node is known to be gone; twice is harmless."""
    async with SealedWorld() as world:
        world.agent("b", 7, Inbox())
        await _send(world, "a", 7, PLAIN)
        world.end("a", "b").cut()
        assert world.sealed["a"].statistics()["sessions_parked"] == 1
        for _ in range(2):
            world.sealed["a"].forget("b")
        assert world.sealed["a"].statistics()["sessions_parked"] == 0


async def test_a_restarted_node_gets_a_new_session() -> None:
    """Another life has no keys of the one before; the first message agrees on new ones."""
    async with SealedWorld() as world:
        world.agent("b", 7, echo)
        await world["a"].request(query(7), timeout_s=5)
        world.end("a", "b").cut()
        world.sealed.pop("b").close()
        world.sealing("b", life=2)
        world.link("a", "b")
        assert await world["a"].request(query(7, b"again"), timeout_s=5) == b"again"
        assert world.sealed["a"].statistics()["handshakes"] == 2


async def test_parked_sessions_are_bounded_and_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes first when there are too many, and each after a while."""
    monkeypatch.setattr(links_module, "PARKED_MAX", 1)
    monkeypatch.setattr(links_module, "SWEEP_S", 0.01)
    async with SealedWorld("a", "b", "c") as world:
        for name, agent in (("b", 7), ("c", 9)):
            world.agent(name, agent, Inbox())
            await _send(world, "a", agent, PLAIN)
            world.end("a", name).cut()
        parked = world.sealed["a"]._parked
        assert list(parked) == ["c"]
        session = parked["c"][1]
        world.clock.monotonic_s += 400
        await eventually(lambda: session.epochs[0] == 1, what="a key that waits is changed like any other")
        world.clock.monotonic_s += 500
        await eventually(lambda: world.sealed["a"].statistics()["sessions_parked"] == 0)


async def test_idle_links_change_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep ends epochs on links where nobody says anything, on both sides."""
    monkeypatch.setattr(links_module, "SWEEP_S", 0.01)
    async with SealedWorld() as world:
        world.agent("b", 7, Inbox())
        await _send(world, "a", 7, PLAIN)
        world.clock.monotonic_s += 301

        def epochs(name: str) -> tuple[int, int]:
            (link,) = world.sealed[name]._links.values()
            assert link.pairing._current is not None
            return link.pairing._current.epochs

        await eventually(lambda: (epochs("a"), epochs("b")) == ((1, 1), (1, 1)))


async def test_a_session_is_renewed_while_messages_flow() -> None:
    """After an hour the next body brings new keys about, and neither it nor those that follow wait for them."""
    async with SealedWorld() as world:
        inbox = Inbox()
        world.agent("b", 7, inbox)
        await _send(world, "a", 7, b"0")
        world.clock.monotonic_s += 3_600
        for number in range(1, 4):
            await _send(world, "a", 7, b"%d" % number)
        assert inbox.payloads == [b"0", b"1", b"2", b"3"]
        assert [world.sealed[name].statistics()["handshakes"] for name in "ab"] == [2, 2]


async def test_a_peer_that_does_not_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offers are repeated while messages wait; who waits learns in time that there was no room."""
    monkeypatch.setattr(links_module, "ATTEMPT_S", 0.02)
    monkeypatch.setattr(pairing_module, "ATTEMPT_S", 0.0)
    async with SealedWorld() as world:
        inbox = Inbox()
        world.agent("b", 7, inbox)
        end = world.end("b", "a")
        end.tap = lambda _: []
        await _send(world, "a", 7, b"waits", ack=False)
        await eventually(lambda: len(end.seen) >= 3)
        assert {envelope.kind for envelope in end.seen} == {Kind.KEYS}
        with pytest.raises(NotDelivered):
            await world["a"].send(command(7, b"too many"), ack=False, timeout_s=0.05)
        end.tap = lambda envelope: [envelope]
        await eventually(lambda: inbox.payloads == [b"waits"])


async def test_a_link_that_ends_before_there_are_keys_wakes_who_waits() -> None:
    """Nobody waits for keys on a link that is gone."""
    async with SealedWorld() as world:
        end = world.end("a", "b")
        end.hold()
        link = world.sealed["a"].of(end)
        assert isinstance(link, SealedLink)
        assert link.send(Envelope(Kind.ACKS, 1, None, None, b""), Lane.CONTROL) is SendOutcome.FULL
        waiting = asyncio.ensure_future(link.wait_writable(Lane.NORMAL))
        await asyncio.sleep(0)
        end.cut()
        with pytest.raises(LinkClosed):
            await asyncio.wait_for(waiting, 0.5)
        assert link.send(Envelope(Kind.ACKS, 1, None, None, b""), Lane.CONTROL) is SendOutcome.CLOSED
        assert link.waiting == []


async def test_giving_up_waiting_leaves_nothing_behind() -> None:
    """Who stops waiting for keys is not waited for."""
    async with SealedWorld() as world:
        world.end("a", "b").hold()
        link = world.sealed["a"].of(world.end("a", "b"))
        assert isinstance(link, SealedLink)
        waiting = asyncio.ensure_future(link.wait_writable(Lane.NORMAL))
        await asyncio.sleep(0)
        assert len(link.waiting) == 1
        waiting.cancel()
        await asyncio.wait([waiting])
        assert link.waiting == []


async def test_a_sealed_link_is_its_link_in_all_else() -> None:
    """Peer, addresses, closing and statistics are those of the link beneath."""
    async with SealedWorld() as world:
        end = world.end("a", "b")
        link: Link = world.sealed["a"].of(end)
        assert (link.peer, link.dialled, link.remote_address, link.rtt_s, link.is_open, link.statistics()) == (
            end.peer,
            end.dialled,
            end.remote_address,
            None,
            True,
            {},
        )
        assert link.ask_turn(lambda: None) is False
        link.close(CloseReason.IDLE, "unused")
        assert end.closed_as is CloseReason.IDLE
        other, _ = link_pair("x", "y", world.sealed["a"], world.sealed["b"])
        assert world.sealed["a"].of(other) is other
        await eventually(lambda: world.sealed["a"].statistics()["links_sealed"] == 0)


# --- identities -------------------------------------------------------------------------------------------------


async def test_a_renewed_certificate_is_shown_from_then_on() -> None:
    """Offers made after a renewal carry the new certificate."""
    async with SealedWorld() as world:
        world.agent("b", 7, Inbox())
        renewed = identity("a")
        world.sealed["a"].renewed(renewed)
        await _send(world, "a", 7, PLAIN)
        offer = world.end("b", "a").seen[0]
        assert renewed.certificate in offer.body
        assert world.identities["a"].certificate not in offer.body


def test_an_identity_is_made_of_credentials(tmp_path: Path) -> None:
    """Certificate and key belong together, and the end of the certificate is the identity's."""
    credentials = make_credentials(tmp_path)
    made = identity_of(credentials, 5)

    assert (made.network, made.node_id, made.life) == (credentials.network, credentials.node_id, 5)
    assert made.certificate == certificates.der(credentials.certificate)
    assert made.key.public_key() == credentials.certificate.public_key()
    assert made.expires_s == credentials.expires_at.timestamp()
    assert made.authority == credentials.authority_certificate
