"""The sender keys of one node: its own, those it was granted, and what waits for one.

Core: no I/O.  One :class:`~mesh.sealing.sender_keys.GroupSender` for each group that the node publishes to and one for
broadcasts to all, made when something is first sealed; one :class:`~mesh.sealing.sender_keys.GroupReceiver` for each
sender and group that something was heard of.  Whose turn it is to speak:

- Who begins a generation gives it, unasked, to the readers that it is linked with: there it is ahead of the body.
- Everybody else gets the body along the tree first, cannot open it, *parks* it and *asks* its origin, which answers
  whoever may read.  So nobody needs to know who lacks a key, and who never hears of a sender costs it nothing.

A thousand readers that all ask at once would be a storm of links at the origin: who has no link to it waits a random
time first, the longer the more members there are.  What is parked is bounded in number, size and time, for each sender
and in all, as its origin is only claimed: a member could make up bodies in anybody's name, and has everybody ask.
Questions are therefore rationed at both ends.

What opens is passed on at once, even while something older of its sender is parked; what is parked and then opens is
passed on in the order in which it came.
"""
# core: no I/O

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mesh.errors import SealRefused
from transport.wire import Kind

from .chains import Limits
from .codec import Header
from .handshake import Entropy, Peer
from .reasons import Reason, refused
from .sender_keys import (
    Ask,
    Grant,
    GroupReceiver,
    GroupSender,
    decode_grants,
    encode_ask,
    encode_grant,
    read_group_header,
)

#: The name under which broadcasts to all are sealed; groups have names of at least one character.
EVERYBODY: Final = ""

#: How long a body waits for its key: as long as a broadcast lives in gossip.
PARK_S: Final = 30.0
#: Bodies of one sender in one group that wait, and their bytes: a burst of a second, or four of the largest.
PARKED_MAX: Final = 4_096
PARKED_BYTES_MAX: Final = 4 << 20
#: Bytes that wait in all.
PARKED_ALL_BYTES_MAX: Final = 16 << 20
#: Senders and groups of which something waits.
STREAMS_MAX: Final = 1_024

#: When a question is repeated for the first time; each further pause is twice as long, up to the last.
ASK_AGAIN_S: Final = 1.0
ASK_AGAIN_S_MAX: Final = 8.0
#: Questions that a node asks at once, and in each second after that.
ASKS_MAX: Final = 100
ASKS_S: Final = 50.0
#: Questions that a node answers one other at once, and in each second after that: one for each group it may publish to.
ANSWERS_MAX: Final = 128
ANSWERS_S: Final = 16.0

#: Groups to which a node keeps keys for what it publishes; as many as gossip keeps open.
SENDERS_MAX: Final = 1_024
#: Senders and groups whose keys a node keeps, the longest unused to go first; 6 KiB each.
RECEIVERS_MAX: Final = 2_048
#: How long the keys of a sender that says nothing are kept: longer than an epoch and its grace, after which nobody
#: grants that epoch any more, so that nothing opened before could be opened again with keys granted afresh.
RECEIVER_IDLE_S: Final = 900.0

_COUNTERS: Final = (
    *("sealed", "opened", "parked", "parked_expired", "parked_dropped"),
    *("asked", "answered", "unanswered", "granted", "grants_taken", "grants_ignored"),
)

_Stream = tuple[Peer, str]


class Readers(NamedTuple):
    """Who may read what a node publishes."""

    peers: Sequence[Peer]
    """The lives of the live members, or of a group's live subscribers."""
    demanded: bool = False
    """Whether one of them takes nothing in the clear."""
    unable: int = 0
    """How many cannot open what is sealed for many: they are of a version before that."""


class Opened(NamedTuple):
    """What was opened."""

    group: str
    origin: Peer
    body: bytes


class _Ration:
    """So many at once, and so many each second."""

    __slots__ = ("_at", "_burst", "_each_s", "left")

    def __init__(self, burst: float, each_s: float, now: float) -> None:
        self._burst = burst
        self._each_s = each_s
        self._at = now
        self.left = float(burst)

    def take(self, now: float) -> bool:
        self.refill(now)
        if self.left < 1:
            return False
        self.left -= 1
        return True

    def refill(self, now: float) -> bool:
        """Returns whether it is full."""
        self.left = min(self._burst, self.left + (now - self._at) * self._each_s)
        self._at = now
        return self.left >= self._burst


class _Body(NamedTuple):
    header: Header
    sealed: bytes
    until: float


@dataclass(slots=True)
class _Waiting:
    """What waits for a key of one sender in one group; bounded by PARKED_MAX and PARKED_BYTES_MAX."""

    ask_at: float
    asked: int = 0
    size_bytes: int = 0
    bodies: deque[_Body] = field(default_factory=deque)


@dataclass(slots=True)
class _Sending:
    keys: GroupSender
    version: int = -1
    """Of the readers that the keys were told of."""
    is_owing: bool = True
    generations: int = 0


class Keyring:
    """The sender keys of one life of one node.  What it wants sent is in :attr:`outgoing` after each call.

    Args:
        network, node_id, life: Whose keys they are.
        readers: Who may read what this node publishes to a group, or to everybody.
        entropy: Where secrets come from.
        rng: Spreads questions in time.
        limits: How long keys live.
    """

    def __init__(
        self,
        network: str,
        node_id: str,
        life: int,
        *,
        readers: Callable[[str], Iterable[Peer]],
        entropy: Entropy,
        rng: random.Random,
        limits: Limits,
    ) -> None:
        self._network = network
        self._me = Peer(node_id, life)
        self._readers = readers
        self._entropy = entropy
        self._rng = rng
        self._limits = limits
        self._version = 0
        # By group, the longest unused first; at most SENDERS_MAX.
        self._senders: dict[str, _Sending] = {}
        # At most RECEIVERS_MAX.
        self._receivers: dict[_Stream, GroupReceiver] = {}
        # At most STREAMS_MAX.
        self._waiting: dict[_Stream, _Waiting] = {}
        self._parked_bytes = 0
        self._asks: _Ration | None = None
        # Of who asked lately; one entry for each link at most.
        self._answers: dict[Peer, _Ration] = {}
        #: Bodies of ``GRANTS`` envelopes by whom they are for.  Bounded, since each call adds a few.
        self.outgoing: list[tuple[Peer, bytes]] = []
        #: Parked bodies that were refused after all: whose they claim to be, and why.
        self.refusals: list[tuple[Peer, SealRefused]] = []
        self.counters = dict.fromkeys(_COUNTERS, 0)

    # --- sealing ------------------------------------------------------------------------------------------------

    def readers_changed(self) -> None:
        """Somebody came, left, restarted, subscribed or ceased to."""
        self._version += 1

    def seal(self, group: str, body: bytes, linked: Iterable[Peer], now: float) -> bytes:
        """Seal what this node publishes.

        Args:
            group: To which group; :data:`EVERYBODY`: to all.
            body: What.
            linked: Whom it can speak to at once.
            now: Monotonic seconds.
        """
        sending = self._senders.pop(group, None) or _Sending(self._new_sender(group, now))
        self._senders[group] = sending
        if len(self._senders) > SENDERS_MAX:
            del self._senders[next(iter(self._senders))]
        self._refresh(group, sending, now)
        if sending.is_owing:
            sending.is_owing = False
            for peer in linked:
                self._give(peer, sending.keys.owed(peer, now))
        self.counters["sealed"] += 1
        return sending.keys.seal(_kind(group), body, now)

    def _new_sender(self, group: str, now: float) -> GroupSender:
        network, (node_id, life) = self._network, self._me
        return GroupSender(network, group, node_id, life, entropy=self._entropy, now=now, limits=self._limits)

    def _refresh(self, group: str, sending: _Sending, now: float) -> None:
        keys = sending.keys
        if sending.version != self._version:
            sending.version = self._version
            sending.is_owing = True
            keys.set_readers(peer for peer in self._readers(group) if peer != self._me)
        keys.refresh(now)
        if sending.generations != keys.generations:
            sending.generations = keys.generations
            sending.is_owing = True

    def _give(self, peer: Peer, grants: Sequence[Grant]) -> None:
        self.outgoing += [(peer, encode_grant(grant)) for grant in grants]
        self.counters["granted"] += len(grants)

    # --- opening ------------------------------------------------------------------------------------------------

    def open(self, group: str, origin: Peer, sealed: bytes, spread_s: float, now: float) -> bytes | None:
        """Open what another node published.

        Args:
            group: In which group it came; :data:`EVERYBODY`: as a broadcast.
            origin: Whose it claims to be.
            sealed: The whole of it.
            spread_s: Within what time its origin is to be asked for the key, if need be.
            now: Monotonic seconds.

        Returns:
            What was sealed; ``None``: it waits for its key.

        Raises:
            SealRefused: It does not hold, or too much waits already.
        """
        header = read_group_header(sealed)
        if header.kind != _kind(group):
            raise refused(Reason.MALFORMED, f"body of kind {header.kind} was sealed for many")
        stream = origin, group
        receiver = self._receivers.get(stream)
        if receiver is None or not receiver.holds(header):
            self._park(stream, _Body(header, sealed, now + PARK_S), spread_s, now)
            return None
        body = receiver.open(header, sealed, now)
        self.counters["opened"] += 1
        return body

    def _park(self, stream: _Stream, body: _Body, spread_s: float, now: float) -> None:
        waiting, size = self._waiting.get(stream), len(body.sealed)
        if (
            (waiting is None and len(self._waiting) >= STREAMS_MAX)
            or self._parked_bytes + size > PARKED_ALL_BYTES_MAX
            or (waiting is not None and waiting.size_bytes + size > PARKED_BYTES_MAX)
            or (waiting is not None and len(waiting.bodies) >= PARKED_MAX)
        ):
            self.counters["parked_dropped"] += 1
            raise refused(Reason.UNKNOWN_SESSION, f"too much of {stream[0].node_id} waits for a key already")
        if waiting is None:
            waiting = self._waiting[stream] = _Waiting(now + self._rng.uniform(0, spread_s))
        waiting.bodies.append(body)
        waiting.size_bytes += size
        self._parked_bytes += size
        self.counters["parked"] += 1
        self.tick(now)

    @property
    def is_waiting(self) -> bool:
        """Whether something is parked."""
        return bool(self._waiting)

    def due_at(self) -> float:
        """When :meth:`tick` has something to do, monotonic seconds; infinity: not before the next call."""
        return min((min(one.ask_at, one.bodies[0].until) for one in self._waiting.values()), default=math.inf)

    def tick(self, now: float) -> None:
        """Ask for keys whose time has come, and give up what waited for too long."""
        for stream, waiting in list(self._waiting.items()):
            while waiting.bodies and waiting.bodies[0].until <= now:
                self._unpark(waiting)
                self.counters["parked_expired"] += 1
            if not waiting.bodies:
                del self._waiting[stream]
            elif waiting.ask_at <= now:
                self._ask(stream, waiting, now)

    def _unpark(self, waiting: _Waiting) -> _Body:
        body = waiting.bodies.popleft()
        waiting.size_bytes -= len(body.sealed)
        self._parked_bytes -= len(body.sealed)
        return body

    def _ask(self, stream: _Stream, waiting: _Waiting, now: float) -> None:
        self._asks = self._asks or _Ration(ASKS_MAX, ASKS_S, now)
        if not self._asks.take(now):
            waiting.ask_at = now + self._rng.uniform(0, ASK_AGAIN_S)
            return
        origin, group = stream
        # One made up must not keep the genuine ones from being asked for.
        generations = list(dict.fromkeys(body.header.session for body in waiting.bodies))
        generation = generations[waiting.asked % len(generations)]
        self.outgoing.append((origin, encode_ask(Ask(group, generation))))
        pause_s = min(ASK_AGAIN_S * 2**waiting.asked, ASK_AGAIN_S_MAX)
        waiting.asked += 1
        waiting.ask_at = now + pause_s * self._rng.uniform(0.75, 1.25)
        self.counters["asked"] += 1

    def linked(self, peer: Peer, now: float) -> None:
        """There is a link to ``peer``: ask it now for what it was to be asked."""
        for (origin, _), waiting in self._waiting.items():
            if origin == peer:
                waiting.ask_at = now
        self.tick(now)

    # --- what others say ----------------------------------------------------------------------------------------

    def received(self, peer: Peer, body: bytes, hears: Callable[[str], bool], now: float) -> list[Opened]:
        """Read the body of a ``GRANTS`` envelope.

        Args:
            peer: Who sealed it, as its session authenticated it.
            body: What it says.
            hears: Whether this node listens to a group.
            now: Monotonic seconds.

        Returns:
            What was parked and can be opened now, in the order in which it came.

        Raises:
            SealRefused: It is none.
        """
        said = decode_grants(body)
        if isinstance(said, Ask):
            self._answer(peer, said, now)
        elif isinstance(said, Grant):
            if said.group == EVERYBODY or hears(said.group):
                self.counters["grants_taken"] += 1
                self._take(peer, said, now)
                return self._drain((peer, said.group), now)
            self.counters["grants_ignored"] += 1
        return []

    def _answer(self, peer: Peer, ask: Ask, now: float) -> None:
        ration = self._answers.setdefault(peer, _Ration(ANSWERS_MAX, ANSWERS_S, now))
        sending = self._senders.get(ask.group)
        if sending is None or not ration.take(now):
            self.counters["unanswered"] += 1
            return
        self._refresh(ask.group, sending, now)
        grants = sending.keys.grants(peer, ask.generation, now)
        self.counters["answered" if grants else "unanswered"] += 1
        self._give(peer, grants)

    def _take(self, peer: Peer, grant: Grant, now: float) -> None:
        stream = peer, grant.group
        receiver = self._receivers.get(stream)
        if receiver is None:
            if len(self._receivers) >= RECEIVERS_MAX:
                del self._receivers[min(self._receivers, key=lambda name: self._receivers[name].used_at)]
            receiver = GroupReceiver(self._network, grant.group, *peer, limits=self._limits)
            self._receivers[stream] = receiver
        receiver.take(grant, now)

    def _drain(self, stream: _Stream, now: float) -> list[Opened]:
        waiting, opened = self._waiting.pop(stream, None), []
        if waiting is None:
            return []
        receiver = self._receivers[stream]
        for _ in range(len(waiting.bodies)):
            body = self._unpark(waiting)
            if not receiver.holds(body.header):
                waiting.bodies.append(body)
                waiting.size_bytes += len(body.sealed)
                self._parked_bytes += len(body.sealed)
                continue
            try:
                opened.append(Opened(stream[1], stream[0], receiver.open(body.header, body.sealed, now)))
            except SealRefused as error:
                self.refusals.append((stream[0], error))
        if waiting.bodies:
            self._waiting[stream] = waiting
        self.counters["opened"] += len(opened)
        return opened

    # --- upkeep -------------------------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Erase keys whose time is over; call this about once a minute."""
        for sending in self._senders.values():
            sending.keys.sweep(now)
        for stream, receiver in list(self._receivers.items()):
            if now >= receiver.used_at + RECEIVER_IDLE_S:
                del self._receivers[stream]
            else:
                receiver.sweep(now)
        self._answers = {peer: ration for peer, ration in self._answers.items() if not ration.refill(now)}

    def clear(self) -> None:
        """Forget everything."""
        self._senders.clear()
        self._receivers.clear()
        self._waiting.clear()
        self._parked_bytes = 0
        self.outgoing.clear()

    def statistics(self) -> dict[str, int]:
        """Counters since the start, and what there is now."""
        return {
            **self.counters,
            "generations": sum(sending.keys.generations for sending in self._senders.values()),
            "senders": len(self._senders),
            "receivers": len(self._receivers),
            "parked_now": sum(len(waiting.bodies) for waiting in self._waiting.values()),
            "parked_bytes": self._parked_bytes,
        }


def is_sealed(payload: bytes) -> bool:
    """Whether a payload of gossip is sealed: in the clear it begins with a MessagePack array."""
    return payload[:1] in {bytes([Kind.BROADCAST]), bytes([Kind.GROUP])}


def _kind(group: str) -> Kind:
    return Kind.GROUP if group else Kind.BROADCAST
