"""What a node still owes: durable messages from the moment they are on disk until somebody answers for them.

Core: no I/O.  A durable message is a *letter* here.  It stays in the outbox until the receiver's node says that the
agent has handled it, so nothing that was accepted is ever on a disk of others only: when a node dies for good, the
letters for its agents are still where they were sent from.  It is the scheme of message brokers (AMQP 0-9-1 basic.ack
after processing), with the outbox in the broker's place.

Letters of one sending agent to one receiving agent at one priority form a *stream*.  A stream is sent in order, a
window ahead (go-back-N, as in TCP without selective acknowledgement): each letter names the one sent before it, so a
receiver that had to give one back takes none of those behind it, and the stream starts again from its first letter.

Where an agent has moved, the node that has letters of a stream in its hands is asked first: it may have handled some
and the link broke before it could say so.  Only when it cannot be reached for ``move_grace_s`` do they go to the
agent's new place, marked as perhaps delivered before.

Numbers: ``sequence`` grows over all letters of a node for ever, across restarts and even where an old copy of the
disk is put back, because each life of a node begins beyond what an earlier one can have used (`first_sequence`).
"""
# core: no I/O

from __future__ import annotations

import enum
import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from transport.backoff import Backoff
from transport.errors import RemoteProtocolError
from transport.wire import pack, unpack_body

#: What a letter weighs beside its payload and headers.
LETTER_OVERHEAD_BYTES: Final = 256

# Letters of one stream that may be under way: enough for a window of credit, and what a broken link costs to send anew.
IN_FLIGHT_MAX: Final = 4_096

# A letter in somebody's hands past its deadline: how often we look whether it has come back.
_LOOK_AGAIN_MS: Final = 1_000

# A receiver that has moved is found within moments; one that is gone need not be asked for all the time.
_REFUSED_FIRST_S: Final = 0.05
_REFUSED_MAX_S: Final = 5.0

_LIFE_BITS: Final = 26
_PRIORITIES: Final = 4


class StreamKey(NamedTuple):
    """Who sends to whom, at which priority: what order is kept within."""

    from_agent: int
    to_agent: int
    priority: int


@dataclass(slots=True)
class Letter:
    """One durable message.

    Attributes:
        sequence: Its number in this outbox.
        from_agent, to_agent, kind, priority, ttl, payload, timestamp_ms, headers, group: As in a message.
        deadline_ms: When it is too late, by this node's wall clock.
        failures: How often the receiving agent's handler has raised.
        sent: How often it was given to a link.  Those of an earlier process count as once.
    """

    sequence: int
    from_agent: int
    to_agent: int
    kind: int
    priority: int
    ttl: int
    payload: bytes
    timestamp_ms: int
    deadline_ms: int
    headers: dict[str, str] | None = None
    group: str | None = None
    failures: int = 0
    sent: int = 0

    @property
    def key(self) -> StreamKey:
        """Its stream."""
        return StreamKey(self.from_agent, self.to_agent, self.priority)

    @property
    def size_bytes(self) -> int:
        """What it weighs here."""
        extras = sum(len(key) + len(value) + 64 for key, value in self.headers.items()) if self.headers else 0
        return len(self.payload) + extras + LETTER_OVERHEAD_BYTES


def first_sequence(life: int, used_max: int) -> int:
    """The first number that a life of a node may give to a letter.

    Args:
        life: Seconds since the epoch, more or less (:mod:`gossip.incarnation`).
        used_max: The highest number on disk.
    """
    return max(life << _LIFE_BITS, used_max) + 1


def encode_letter(letter: Letter) -> bytes:
    """The letter as a record; its number is the record's key."""
    return pack(
        [
            letter.from_agent,
            letter.to_agent,
            letter.kind,
            letter.priority,
            letter.ttl,
            letter.payload,
            letter.timestamp_ms,
            letter.deadline_ms,
            letter.headers,
            letter.group,
            letter.failures,
        ]
    )


def decode_letter(sequence: int, body: bytes) -> Letter:
    """Read a record.

    Raises:
        RemoteProtocolError: It is none: a later version's, perhaps.
    """
    fields = unpack_body(body)
    if type(fields) is not list or len(fields) != 11:
        raise RemoteProtocolError("letter: not eleven fields")
    letter = Letter(sequence, *fields)
    letter.sent = 1
    return letter


class Reason(enum.Enum):
    """Why a letter was given up."""

    EXPIRED = "expired"
    """Its deadline came first."""
    FAILED = "failed"
    """The receiving agent's handler raised, once too often."""


class Handled(NamedTuple):
    """The receiver has handled this letter: its record can go."""

    letter: Letter


class Died(NamedTuple):
    """This letter is given up: its record becomes a dead letter."""

    letter: Letter
    reason: Reason
    detail: str


class Failed(NamedTuple):
    """The handler raised; the letter is tried again, and its record should count that."""

    letter: Letter


OutboxEvent = Handled | Died | Failed


class Next(NamedTuple):
    """The letter to send next: to which node, and which one went before it (0: the stream begins with it)."""

    letter: Letter
    node_id: str
    previous: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxConfig:
    """How an outbox behaves.

    Attributes:
        bytes_max: What all letters may weigh; also their memory, since they are kept there as well.
        attempts: After how many failures of the handler a letter is given up.
        retry_s: The wait after the first failure, drawn at random between it and more; doubled or tripled each time.
        retry_s_max: Where that ends.
        retry_ratio: Retries that may be spent for each handled letter, beyond ``retries_per_s``: the retry budget.
        retries_per_s: Retries that are always allowed.
        move_grace_s: How long a node that had letters of an agent that moved is waited for.
    """

    bytes_max: int = 64 * 1024 * 1024
    attempts: int = 5
    retry_s: float = 0.1
    retry_s_max: float = 60.0
    retry_ratio: float = 0.2
    retries_per_s: float = 10.0
    move_grace_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DurableConfig:
    """How durable messages behave.

    Attributes:
        outbox: Bounds and retries.
        ahead_max: How many messages of a stream may be handled before the first of them is recorded as handled.
        dead_letters_max: How many dead letters are kept.
        dead_letters_age_s: How long each is kept.
    """

    outbox: OutboxConfig = field(default_factory=OutboxConfig)
    ahead_max: int = 256
    dead_letters_max: int = 10_000
    dead_letters_age_s: float = 7 * 86_400.0


class RetryBudget:
    """Says how long a retry has to wait so that retries stay a fraction of the work that succeeds.

    Without it, a receiver that fails under load is given more load for it.  A bucket of tokens (Finagle's
    RetryBudget, which remembers ten seconds, too).
    """

    __slots__ = ("_at", "_max", "_per_s", "_ratio", "_tokens")

    def __init__(self, *, per_s: float, ratio: float) -> None:
        self._per_s = per_s
        self._ratio = ratio
        self._max = per_s * 10
        self._tokens = self._max
        self._at = -math.inf

    def deposit(self) -> None:
        """Something succeeded."""
        self._tokens = min(self._max, self._tokens + self._ratio)

    def withdraw_s(self, now: float) -> float:
        """Spend a token; returns how long to wait until it is there."""
        if now > self._at:
            if self._at > -math.inf:
                self._tokens = min(self._max, self._tokens + (now - self._at) * self._per_s)
            self._at = now
        self._tokens -= 1
        return max(0.0, -self._tokens / self._per_s)


class _Stream:
    """The letters of one stream, in order; the first ``in_flight`` of them are in the hands of ``node_id``."""

    __slots__ = ("doubt", "doubt_until", "in_flight", "letters", "node_id", "refused_until", "refusals", "retry_at")  # noqa: RUF023 - as they belong together

    def __init__(self, rng: random.Random) -> None:
        self.letters: deque[Letter] = deque()
        self.in_flight = 0
        # Who was given letters last, and whether it may have handled some without our knowing.
        self.node_id = ""
        self.doubt = False
        self.doubt_until = math.inf
        self.refused_until = -math.inf
        self.refusals = Backoff(rng, first_s=_REFUSED_FIRST_S, max_s=_REFUSED_MAX_S)
        self.retry_at = -math.inf


class _Agent:
    """The streams to one agent, and by priority those of which not all letters are under way."""

    __slots__ = ("ready", "streams")

    def __init__(self) -> None:
        self.streams: dict[StreamKey, _Stream] = {}
        self.ready: tuple[dict[StreamKey, _Stream], ...] = tuple({} for _ in range(_PRIORITIES))

    def sort_in(self, key: StreamKey, stream: _Stream) -> None:
        """How much of the stream is under way has changed."""
        if stream.in_flight < len(stream.letters):
            self.ready[key.priority][key] = stream
        else:
            self.ready[key.priority].pop(key, None)


class Outbox:
    """All letters of a node.

    Args:
        config: How it behaves.
        rng: Jitter of retries.
    """

    def __init__(self, config: OutboxConfig, rng: random.Random) -> None:
        self._config = config
        self._rng = rng
        self._budget = RetryBudget(per_s=config.retries_per_s, ratio=config.retry_ratio)
        self._agents: dict[int, _Agent] = {}
        self._deadlines: list[tuple[int, int, StreamKey]] = []
        self.size_bytes = 0
        self.count = 0

    # --- letters in ---------------------------------------------------------------------------------------------

    def has_room(self, size_bytes: int) -> bool:
        """Whether a letter of that weight may be added; a single one always may."""
        return not self.size_bytes or self.size_bytes + size_bytes <= self._config.bytes_max

    def reserve(self, size_bytes: int) -> None:
        """Count a letter that is on its way to the disk."""
        self.size_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """It did not get there."""
        self.size_bytes -= size_bytes

    def add(self, letter: Letter) -> None:
        """Take a letter that is on disk and was reserved; in the order of their numbers."""
        agent = self._agents.get(letter.to_agent)
        if agent is None:
            agent = self._agents[letter.to_agent] = _Agent()
        key = letter.key
        stream = agent.streams.get(key)
        if stream is None:
            stream = agent.streams[key] = _Stream(self._rng)
        stream.letters.append(letter)
        agent.sort_in(key, stream)
        self.count += 1
        heapq.heappush(self._deadlines, (letter.deadline_ms, letter.sequence, key))

    def agents(self) -> list[int]:
        """The agents that letters wait for."""
        return list(self._agents)

    # --- letters out --------------------------------------------------------------------------------------------

    def next_for(self, agent_id: int, node_id: str, now: float, is_linked: Callable[[str], bool]) -> Next | None:
        """The letter that should be sent next to ``agent_id``, which runs on ``node_id``; tell :meth:`sent` if it was.

        A higher priority goes first, so urgent letters never wait behind bulk.

        Args:
            agent_id: The receiving agent.
            node_id: Where it runs, as this node knows.
            now: Seconds, monotonic.
            is_linked: Whether there is a link to a node.
        """
        for stream in self._ready(agent_id):
            index = stream.in_flight
            if index >= IN_FLIGHT_MAX or now < stream.retry_at:
                continue
            target = self._target(stream, node_id, now, is_linked)
            if target is None or (target == stream.node_id and now < stream.refused_until):
                continue
            return Next(stream.letters[index], target, stream.letters[index - 1].sequence if index else 0)
        return None

    def _target(self, stream: _Stream, node_id: str, now: float, is_linked: Callable[[str], bool]) -> str | None:
        """Who is given the stream's next letter; ``None``: nobody now."""
        if stream.node_id in {"", node_id}:
            return node_id
        if stream.in_flight:
            return None  # whoever has them will answer, or its link breaks
        if not stream.doubt:
            return node_id
        if is_linked(stream.node_id):
            return stream.node_id
        stream.doubt_until = min(stream.doubt_until, now + self._config.move_grace_s)
        return node_id if now >= stream.doubt_until else None

    def sent(self, step: Next) -> None:
        """That letter was given to the link to its node."""
        agent, key = self._agents[step.letter.to_agent], step.letter.key
        stream = agent.streams[key]
        if stream.node_id != step.node_id:
            stream.refused_until = -math.inf
        stream.node_id = step.node_id
        stream.doubt = False
        stream.doubt_until = math.inf
        stream.in_flight += 1
        step.letter.sent += 1
        agent.sort_in(key, stream)

    def wake_at(self, agent_id: int, now: float) -> float:
        """When :meth:`next_for` may have another letter though nothing happens; infinity: not before something does."""
        times = (
            at
            for stream in self._ready(agent_id)
            for at in (stream.retry_at, stream.refused_until, stream.doubt_until)
            if at > now
        )
        return min(times, default=math.inf)

    def _ready(self, agent_id: int) -> Iterator[_Stream]:
        """The agent's streams of which not all letters are under way, the highest priority first."""
        agent = self._agents.get(agent_id)
        if agent is not None:
            for streams in reversed(agent.ready):
                yield from streams.values()

    # --- answers ------------------------------------------------------------------------------------------------

    def handled(self, node_id: str, key: StreamKey, sequence: int) -> list[OutboxEvent]:
        """``node_id`` has handled the stream's letters up to that one."""
        stream = self._of(node_id, key)
        events: list[OutboxEvent] = []
        if stream is None:
            return events
        while stream.letters and stream.letters[0].sequence <= sequence and stream.letters[0].sent:
            letter = stream.letters.popleft()
            stream.in_flight = max(0, stream.in_flight - 1)
            self._left(letter)
            self._budget.deposit()
            events.append(Handled(letter))
        if events:
            stream.refusals.reset()
        self._changed(key, stream)
        return events

    def failed(self, node_id: str, key: StreamKey, sequence: int, detail: str, now: float) -> list[OutboxEvent]:
        """The handler raised on that letter; ``node_id`` has given back all behind it."""
        stream = self._of(node_id, key)
        letter = self._find(stream, sequence)
        if stream is None or letter is None or not letter.sent:
            return []
        stream.in_flight = 0
        letter.failures += 1
        if letter.failures >= self._config.attempts:
            return [self._die(key, stream, letter, Reason.FAILED, detail)]
        backoff = Backoff(self._rng, first_s=self._config.retry_s, max_s=self._config.retry_s_max)
        wait_s = [backoff.next_s() for _ in range(letter.failures)][-1]
        stream.retry_at = now + wait_s + self._budget.withdraw_s(now)
        self._changed(key, stream)
        return [Failed(letter)]

    def expired(self, node_id: str, key: StreamKey, sequence: int) -> list[OutboxEvent]:
        """That letter's deadline came while it waited at ``node_id``."""
        stream = self._of(node_id, key)
        letter = self._find(stream, sequence)
        if stream is None or letter is None or not letter.sent:
            return []
        if stream.letters.index(letter) < stream.in_flight:
            stream.in_flight -= 1
        return [self._die(key, stream, letter, Reason.EXPIRED, f"it waited too long at the agent, on {node_id}")]

    def refused(self, node_id: str, key: StreamKey, now: float) -> None:
        """The agent is not on ``node_id``, which has said what it had handled and given back the rest."""
        stream = self._of(node_id, key)
        if stream is not None:
            stream.in_flight = 0
            stream.doubt = False
            stream.doubt_until = math.inf
            stream.refused_until = now + stream.refusals.next_s() + self._budget.withdraw_s(now)
            self._changed(key, stream)

    def is_waiting_for(self, node_id: str) -> bool:
        """Whether ``node_id`` has letters in its hands."""
        streams = (stream for agent in self._agents.values() for stream in agent.streams.values())
        return any(stream.node_id == node_id and stream.in_flight for stream in streams)

    def link_lost(self, node_id: str) -> None:
        """Whatever ``node_id`` has in its hands has to be sent again; it may have handled some of it."""
        for agent in self._agents.values():
            for key, stream in agent.streams.items():
                if stream.node_id == node_id and stream.in_flight:
                    stream.in_flight = 0
                    stream.doubt = True
                    agent.sort_in(key, stream)

    # --- time ---------------------------------------------------------------------------------------------------

    def next_deadline_ms(self) -> float:
        """When :meth:`expire` should be called; infinity: there is nothing to expire."""
        return self._deadlines[0][0] if self._deadlines else math.inf

    def expire(self, now_ms: int) -> list[OutboxEvent]:
        """Give up letters whose time is over, but for those in somebody's hands: whoever has them will say."""
        events: list[OutboxEvent] = []
        while self._deadlines and self._deadlines[0][0] <= now_ms:
            _, sequence, key = heapq.heappop(self._deadlines)
            stream = self._stream(key)
            letter = self._find(stream, sequence)
            if stream is None or letter is None:
                continue
            if stream.in_flight and sequence <= stream.letters[stream.in_flight - 1].sequence:
                heapq.heappush(self._deadlines, (now_ms + _LOOK_AGAIN_MS, sequence, key))
                continue
            detail = "it may have been handled: no answer came" if letter.sent else "its agent was not reached in time"
            events.append(self._die(key, stream, letter, Reason.EXPIRED, detail))
        return events

    # --- inside -------------------------------------------------------------------------------------------------

    def _of(self, node_id: str, key: StreamKey) -> _Stream | None:
        """The stream, if ``node_id`` is the one that was given it: nobody else can answer for it."""
        stream = self._stream(key)
        return stream if stream is not None and stream.node_id == node_id else None

    def _stream(self, key: StreamKey) -> _Stream | None:
        agent = self._agents.get(key.to_agent)
        return agent.streams.get(key) if agent is not None else None

    @staticmethod
    def _find(stream: _Stream | None, sequence: int) -> Letter | None:
        """The letter of that number; it is nearly always the first."""
        for letter in stream.letters if stream is not None else ():
            if letter.sequence >= sequence:
                return letter if letter.sequence == sequence else None
        return None

    def _die(self, key: StreamKey, stream: _Stream, letter: Letter, reason: Reason, detail: str) -> Died:
        stream.letters.remove(letter)
        self._left(letter)
        self._changed(key, stream)
        return Died(letter, reason, detail)

    def _left(self, letter: Letter) -> None:
        self.size_bytes -= letter.size_bytes
        self.count -= 1

    def _changed(self, key: StreamKey, stream: _Stream) -> None:
        """Letters have left the stream or come back; it is forgotten with its last one."""
        agent = self._agents[key.to_agent]
        agent.sort_in(key, stream)
        if stream.letters:
            return
        del agent.streams[key]
        if not agent.streams:
            del self._agents[key.to_agent]
        if not self._agents:
            self._deadlines.clear()
