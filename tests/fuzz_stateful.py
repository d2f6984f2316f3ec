"""Fuzz targets that have a history: a session, a gossip core and a courier that are fed a whole script.

A script is bytes: steps of one byte that says what happens, two of length, and that many of content.  Any bytes are a
script, so the mutations of :mod:`fuzzing` make new orders of events as well as new contents.  Each reader checks what
must hold after *every* step, and lets only :class:`~transport.errors.RemoteProtocolError` of the parts pass.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from gossip import codec
from gossip.config import GossipConfig
from gossip.events import (
    AddressesChanged,
    BroadcastRequested,
    Deliver,
    Effect,
    Event,
    LinkLost,
    LinkOpened,
    Member,
    MemberState,
    Received,
    Send,
    SetTimer,
    Stalled,
    Started,
    TimerFired,
)
from gossip.router import GossipCore
from gossip.service import BroadcastOutcome
from mesh.agents import LocalAgent
from mesh.messaging.body import FLAG_STREAM, Acks, encode_acks, encode_batch, encode_broadcast
from mesh.messaging.courier import Courier
from mesh.messaging.moves import FEATURE as MOVES
from mesh.messaging.notices import Credit, GivenUp, Gone, Handled, Heard, Notices, Waiting, encode_notices
from mesh.messaging.parcel import Parcel
from mesh.messaging.streams import FEATURE, WINDOW_BYTES
from mesh.types import AgentInfo, AgentMessage, MessageType, Priority
from transport import session, wire
from transport.config import LinkConfig
from transport.errors import MeshError, RemoteProtocolError
from transport.link import CloseReason, PeerInfo, SendOutcome
from transport.types import Address, Lane, NodeId, network_name, node_id

#: Steps of one script that are carried out; the rest of a longer one is left.
STEPS_MAX = 200

_SMALLER = wire.Hello(network_name("fuzz"), node_id("here"), 1 << 16)
_GREATER = wire.Hello(network_name("fuzz"), node_id("there"), 1 << 16, (Address("10.0.0.1", 7946),))


class Shape:
    """What a script came to, in words that tell one outcome from another (:func:`fuzzing.outcome` drops quotations)."""

    def __init__(self, *parts: object) -> None:
        self._text = " ".join(str(part).replace("'", "").replace('"', "") for part in parts)

    def __repr__(self) -> str:
        return self._text


def steps(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Cut a script into its steps."""
    at = 0
    for _ in range(STEPS_MAX):
        if at >= len(data):
            return
        length = int.from_bytes(data[at + 1 : at + 3], "big")
        yield data[at], data[at + 3 : at + 3 + length]
        at += 3 + length


def script(*parts: tuple[int, bytes]) -> bytes:
    """Write a script; the inverse of :func:`steps`."""
    return b"".join(bytes([what]) + len(content).to_bytes(2, "big") + content for what, content in parts)


# --- one session --------------------------------------------------------------------------------------------------

_TICK, _ADMIT, _CLOSE, _LOST = 4, 5, 6, 7


class _LiveSession:
    """A session as a dialogue runs it, with what must hold after each event."""

    def __init__(self, ours: wire.Hello, theirs: wire.Hello) -> None:
        self.core = session.Session(ours, theirs.node_id, None, LinkConfig(), 0.0)
        self.now = 0.0
        self.opened = 0
        self.closing = False
        self.last = "silence"
        self.happen(session.Started())

    def happen(self, event: session.Event) -> None:
        """Feed one event and judge the effects."""
        before = self.core.state
        effects = self.core.handle(event, self.now)
        assert len(effects) <= 3, "one event, a handful of effects"
        assert before is not session.SessionState.CLOSED or not effects, "nothing comes after the end"
        for effect in effects:
            match effect:
                case session.Send(envelope):
                    wire.check_sendable(envelope)
                    assert not self.closing, "nothing is said after the goodbye"
                case session.Open():
                    assert self.core.hello is not None
                    assert self.core.hello.node_id == self.core.certified, "nobody opens under another's name"
                    self.opened += 1
                case session.Close(_, detail):
                    self.closing = True
                    self.last = detail
                case session.Abort(_, detail):
                    self.last = f"{self.last} and {detail}"
                case session.Judge():
                    pass
        assert self.opened <= 1

    def receive(self, frame: bytes) -> None:
        """As ``ChannelLink`` does with a frame."""
        self.core.heard(self.now)
        if self.core.state is session.SessionState.CLOSING:
            return
        try:
            for envelope in wire.decode_frame(frame):
                if envelope.kind < wire.SESSION_KINDS or self.core.state is not session.SessionState.OPEN:
                    self.happen(session.Received(envelope))
        except RemoteProtocolError as error:
            self.happen(session.CloseWanted(error.code, error.message))


def live_session(data: bytes) -> object:
    """Frames, ticks, decisions and losses in any order, to both roles."""
    ends: list[str] = []
    for ours, theirs in ((_SMALLER, _GREATER), (_GREATER, _SMALLER)):
        live = _LiveSession(ours, theirs)
        for what, content in steps(data):
            match what % 8:
                case 4:
                    live.now += len(content) / 4
                    live.happen(session.Ticked(0.5 if what & 8 else 0.0))
                case 5:
                    live.happen(session.Admitted())
                case 6:
                    live.happen(session.CloseWanted(CloseReason.NORMAL, "enough"))
                case 7:
                    live.happen(session.ConnectionLost(1006, "gone"))
                case _:
                    live.receive(content)
        live.now += 100.0
        live.happen(session.Ticked())
        assert live.core.state is session.SessionState.CLOSED, "silence always ends it"
        ends += ["opened" if live.opened else "never open", live.last[:60]]
    return Shape(*ends)


def _session_seeds() -> tuple[bytes, ...]:
    accept = wire.encode_frame([wire.Envelope(wire.Kind.ACCEPT, 0, None, None, b"")])
    seeds = []
    for hello in (_SMALLER, _GREATER):
        opening = ((0, wire.encode_frame([wire.encode_hello(hello)])), (_ADMIT, b""), (0, accept), (_ADMIT, b""))
        ping = wire.encode_frame([wire.Envelope(wire.Kind.PING, 0, None, None, b"12345678")])
        bye = wire.encode_frame([wire.encode_bye(1001, "leaving")])
        seeds.append(script(*opening, (0, ping), (_TICK, b"xxxx"), (1, ping), (0, bye), (_LOST, b"")))
        seeds.append(script(*opening, (_TICK, b"x" * 8), (_CLOSE, b""), (0, ping), (_TICK, b"x" * 8)))
    return tuple(seeds)


# --- one gossip core ----------------------------------------------------------------------------------------------

_GOSSIP = GossipConfig(members_max=64, dead_max=16, broadcast_origins_max=64)
_PEERS = (node_id("there"), node_id("third"))
#: Far above what two peers and one event can cause; a body that multiplies is a finding.
_EFFECTS_MAX = 1500


class _LiveGossip:
    """A whole gossip core with two linked peers, which lie."""

    def __init__(self) -> None:
        me = Member(node_id("here"), 1 << 16, MemberState.ALIVE, (), 1, b"")
        self.core = GossipCore(me, _GOSSIP, random.Random(1))
        self.now = 1.0
        self.timers: list[tuple[float, int]] = []
        self.linked = dict.fromkeys(_PEERS, False)
        self.delivered = 0
        self.happen(AddressesChanged((Address("10.0.0.9", 7946),)))
        self.happen(Started())
        for peer in _PEERS:
            self.toggle(peer)

    def toggle(self, peer: NodeId) -> None:
        """Open or lose the link to one of them."""
        self.linked[peer] = not self.linked[peer]
        if self.linked[peer]:
            self.happen(LinkOpened(peer, 1 << 16, (Address("10.0.0.1", 7946),)))
        else:
            self.happen(LinkLost(peer))

    def happen(self, event: Event) -> None:
        """Feed one event and judge the effects."""
        effects: Sequence[Effect] = self.core.handle(event, self.now)
        assert len(effects) <= _EFFECTS_MAX, f"{len(effects)} effects of one {type(event).__name__}"
        for effect in effects:
            match effect:
                case SetTimer(token, delay_s):
                    self.timers.append((self.now + delay_s, token))
                case Send():
                    wire.check_sendable(wire.Envelope(effect.kind, effect.ttl, None, None, effect.body))
                case Deliver():
                    self.delivered += 1
                case _:
                    pass
        counts = self.core.statistics()
        assert counts["members"] + counts["members_gone"] <= _GOSSIP.members_max + 1, "the table is bounded"
        assert counts["tombstones"] <= _GOSSIP.members_max
        assert len(self.timers) <= 4 * _GOSSIP.members_max + 64, "timers are bounded"

    def fire(self) -> None:
        """Let the next timer come due."""
        if self.timers:
            self.timers.sort()
            due, token = self.timers.pop(0)
            self.now = max(self.now, due)
            self.happen(TimerFired(token))


def live_gossip(data: bytes) -> object:
    """Bodies of every gossip kind from two peers, timers, losses and stalls in any order."""
    live = _LiveGossip()
    refused: dict[str, int] = {}
    for what, content in steps(data):
        peer = _PEERS[what >> 3 & 1]
        match what % 8:
            case 4:
                live.fire()
            case 5:
                live.toggle(peer)
            case 6:
                live.happen(BroadcastRequested(content[:1000], 1 + what % 200))
            case 7:
                live.happen(Stalled(len(content) / 10))
            case kind if live.linked[peer]:
                try:
                    live.happen(Received(peer, content, 16 + kind, what >> 4))
                except RemoteProtocolError as error:
                    refused[error.message[:24]] = 1
            case _:
                pass
    full = len(live.core.members()) >= _GOSSIP.members_max
    return Shape(
        live.core.me.state.name, "delivered" if live.delivered else "-", "full" if full else "-", *sorted(refused)[-3:]
    )


def _gossip_seeds() -> tuple[bytes, ...]:
    there, third = (Member(peer, 1 << 16, MemberState.SUSPECT, (Address("10.0.0.1", 1),), 3, b"m") for peer in _PEERS)
    accused = Member(node_id("here"), 1 << 16, MemberState.DEAD)
    where = (Address("10.0.0.1", 1),)
    many = tuple(
        Member(node_id(f"n{index}"), index << 16, MemberState(index % 3), where, 1, b"") for index in range(80)
    )
    bodies: list[codec.Body] = [
        codec.Heartbeat(1 << 16, 1234, 3),
        codec.News((there, codec.bare(third), accused)),
        codec.States(many),
        codec.Want((node_id("there"), node_id("here"))),
        *codec.digests(many),
    ]
    membership = [codec.encode(body) for body in bodies]
    broadcasts = [
        codec.encode_broadcast(codec.BroadcastBody(peer, 1 << 16, sequence, b"payload"))
        for peer in (*_PEERS, node_id("stranger"))
        for sequence in (1, 2, 4, 1000)
    ]
    return (
        script(*((index % 2 * 8, body) for index, body in enumerate(membership)), (4, b""), (4, b""), (4, b"")),
        script(
            *((index % 2 * 8 + 17, body) for index, body in enumerate(broadcasts)), (6, b"mine"), (5, b""), (7, b"x")
        ),
        script((5, b""), (4, b""), (4, b""), (5, b""), (0, membership[2]), (13, b""), (4, b""), (0, membership[1])),
    )


# --- one courier --------------------------------------------------------------------------------------------------


class _Clock:
    """A clock that stands still."""

    def monotonic(self) -> float:
        """See :class:`transport.clock.Clock`."""
        return 0.0

    def wall(self) -> float:
        """See :class:`transport.clock.Clock`."""
        return 1_700_000_000.0


class _Link:
    """Takes what the courier sends and counts it."""

    def __init__(self) -> None:
        self.peer = PeerInfo(node_id("there"), 1 << 16, (), (1, 0), {FEATURE: True, MOVES: True})
        self.dialled = True
        self.is_relayed = False
        self.remote_address = Address("10.0.0.1", 7946)
        self.is_open = True
        self.rtt_s: float | None = None
        self.sent_bytes = self.queued = 0

    def send(self, envelope: wire.Envelope, lane: Lane, *, key: str | None = None) -> SendOutcome:
        """See :class:`transport.link.Link`."""
        self.sent_bytes += wire.check_sendable(envelope)
        return SendOutcome.ACCEPTED

    def ask_turn(self, fill: Callable[[], None]) -> bool:
        """See :class:`transport.link.Link`."""
        return False

    async def wait_writable(self, lane: Lane) -> None:
        """See :class:`transport.link.Link`."""

    def close(self, reason: CloseReason = CloseReason.NORMAL, detail: str = "") -> None:
        """See :class:`transport.link.Link`."""
        self.is_open = False

    def statistics(self) -> dict[str, int | float]:
        """See :class:`transport.link.Link`."""
        return {}


async def _echo(message: AgentMessage) -> bytes | None:
    return message.payload if message.message_type is MessageType.QUERY else None


async def _parts(message: AgentMessage) -> AsyncIterator[bytes]:
    for _ in range(100):
        yield message.payload


async def _read(courier: Courier) -> list[bytes]:
    """A stream from whoever answers it."""
    parcel = Parcel(9, 7, MessageType.QUERY, b"in parts", Priority.NORMAL, 8)
    async with courier.stream(parcel, idle_s=60.0, timeout_s=60.0) as stream:
        return [part async for part in stream]


async def _courier(data: bytes) -> object:
    courier = Courier(
        "here",
        1,
        clock=_Clock(),
        window_bytes=1 << 16,
        locate=lambda agent_id: "there" if agent_id == 9 else None,
        broadcast=lambda payload, ttl: BroadcastOutcome(0, 0),
    )
    link = _Link()
    agent = LocalAgent(AgentInfo(7, "here"), _echo, concurrency=2, outcomes=courier)
    silent = LocalAgent(AgentInfo(8, "here"), None, concurrency=1, outcomes=courier)
    streaming = LocalAgent(AgentInfo(6, "here"), _parts, concurrency=2, outcomes=courier)
    courier.agents = {6: streaming, 7: agent, 8: silent}
    courier.link_opened(link)
    parcel = Parcel(9, 7, MessageType.QUERY, b"question", Priority.NORMAL, 8)
    asked = asyncio.ensure_future(courier.request(parcel, timeout_s=60.0))
    reading = asyncio.ensure_future(_read(courier))
    await asyncio.sleep(0)
    plain = Parcel(9, 7, MessageType.COMMAND, b"kept", Priority.NORMAL, 8)
    for _ in range(4):
        await courier.send(plain, ack=False, timeout_s=60.0)
    refusal = ""
    try:
        for what, content in steps(data):
            match what % 5:
                case 0:
                    courier.envelopes_received(
                        link, [wire.Envelope(wire.Kind.MESSAGES, what >> 2, None, None, content)]
                    )
                case 1:
                    courier.envelopes_received(link, [wire.Envelope(wire.Kind.ACKS, 1, None, None, content)])
                case 2:
                    courier.broadcast_received("there", what, content)
                case 4:
                    courier.envelopes_received(link, [wire.Envelope(wire.Kind.CALLS, 1, None, None, content)])
                    assert len(courier._answers) <= 2, "as many streams as handlers may run"
                    assert sum(reply.half.waiting_bytes for reply in courier._replies.values()) <= 2 * WINDOW_BYTES
                case _:
                    await asyncio.sleep(0)
        await asyncio.sleep(0)
    except RemoteProtocolError as error:
        refusal = error.message[:40]
        courier.link_closed(link, CloseReason.PROTOCOL_ERROR, error.message)
    # A stream multiplies what was asked, a hundred times here.
    assert link.sent_bytes <= 200 * len(data) + 65_536, "answers are in proportion to what was asked"
    for running in (agent, silent, streaming):
        await running.close()
    await courier.close()
    asked.cancel()
    reading.cancel()
    answer, parts = await asyncio.gather(asked, reading, return_exceptions=True)
    assert isinstance(answer, bytes | MeshError | asyncio.CancelledError), f"a caller got {answer!r}"
    assert isinstance(parts, list | MeshError | asyncio.CancelledError), f"a reader got {parts!r}"
    counted = [name for name, count in courier.counters.items() if count]
    return Shape(type(answer).__name__, type(parts).__name__, refusal, *counted)


def live_courier(data: bytes) -> object:
    """Messages, acknowledgements, notices and broadcasts of a peer in any order, with a call and a stream under way."""
    return asyncio.run(_courier(data))


def _courier_seeds() -> tuple[bytes, ...]:
    now_ms = 1_700_000_000_000
    kinds = [
        [1, int(MessageType.COMMAND), 9, 7, 1, b"do this", 0],
        [2, int(MessageType.QUERY), 9, 7, 0, b"what is", 0],
        [3, int(MessageType.QUERY), 9, 404, 0, b"who", 0],
        [4, int(MessageType.COMMAND), 9, 8, 1, b"x" * 300, 0, None, {"k": "v"}],
        [5, int(MessageType.RESPONSE), 9, 7, 0, b"answer", 0, 1],
        [6, int(MessageType.QUERY), 9, 6, FLAG_STREAM, b"in parts", 0, 5_000],
        [7, int(MessageType.QUERY), 9, 8, 0, b"never", 0, 1],
    ]
    parts = [[10 + n, int(MessageType.RESPONSE), 9, 7, flags, b"part", 0, 2] for n, flags in enumerate((8, 8, 16))]
    answers = encode_batch(3, now_ms, Priority.NORMAL, parts)
    notices = encode_notices(Notices([GivenUp(6, 9, 6), GivenUp(7, 9, 8)], [Credit(6, 200, 1 << 20)]))
    moved = encode_notices(
        Notices(handled=[Handled(9, 0, 2, 0, 0)], waiting=[Waiting(9, 3, 2)], gone=[Gone(9, 1, 0, 4, 0, 0)])
    )
    heard = encode_notices(Notices(heard=[Heard(404, 1, 1)]))
    astray = encode_batch(3, now_ms, Priority.NORMAL, [[20, int(MessageType.COMMAND), 9, 404, 1, b"astray", 0]])
    batches = [encode_batch(3, now_ms, Priority.NORMAL, [message]) for message in kinds]
    batches.append(encode_batch(3, now_ms, Priority.HIGH, kinds))
    acks = encode_acks(Acks([(9, 1 << 20)], [(1, 500)], [(1, 1), (77, 2)]))
    news = encode_broadcast([6, int(MessageType.BROADCAST), 9, 0, 0, b"all", 0], now_ms, Priority.LOW)
    return (
        script(*((0, batch) for batch in batches), (1, acks), (2, news), (3, b"")),
        script((1, acks), (3, b""), (0, batches[4]), (2, news), (2, news), (0, batches[5])),
        script((3, b""), (0, batches[-1]), (3, b""), (3, b""), (4, notices), (3, b""), (3, b""), (0, answers)),
        script((3, b""), (4, moved), (3, b""), (0, astray), (3, b""), (4, heard), (0, astray), (4, moved)),
        script((3, b""), (0, batches[-2]), (0, batches[-3]), (4, notices), (3, b""), (0, answers), (0, answers)),
    )


SESSION_SEEDS = _session_seeds()
GOSSIP_SEEDS = _gossip_seeds()
COURIER_SEEDS = _courier_seeds()
