"""The shell of durable messages: outbox and inbox on disk, and the links between them.

A durable send returns once the message is in this node's journal.  From there it goes to its agent's node as soon as
there is one that can be reached, as often as it takes, until that node answers that the agent has handled it and that
this is on *its* disk; then the record is removed.  What a crash at any moment leaves behind is told in
``docs/durable.md``; the rules are in the cores :mod:`.outbox` and :mod:`.inbox`.

No task and no future for a message beyond the one of its caller: the journal calls back for each transaction, and an
agent's letters are sent in runs whenever something changes that they may have waited for.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from mesh.agents import Delivery
from mesh.errors import NetworkClosed, OutboxFull, UnknownLetter
from mesh.types import AgentMessage, DeadLetter, DeliveryStatus, Priority, Receipt
from state.errors import StorageError
from state.journal import Change, Journal
from transport.clock import Clock
from transport.errors import LinkClosed, RemoteProtocolError
from transport.logs import get_logger
from transport.tasks import TaskScope

from .body import (
    F_FROM,
    F_TO,
    FLAG_DURABLE,
    SETTLED_EXPIRED,
    SETTLED_FAILED,
    SETTLED_HANDLED,
    SETTLED_REFUSED,
    TYPES,
    Message,
    Settled,
    durable_id,
    message_of_durable,
)
from .courier import BURST_BYTES, LINK_RETRY_S, Courier
from .dead_letters import Dead, DeadLetters, decode_dead, encode_dead
from .dialogue import Dialogue, IncomingFlow
from .inbox import Inbox, InboxKey, Mark, Verdict, decode_mark, encode_key, encode_mark
from .outbox import (
    Died,
    DurableConfig,
    Failed,
    Letter,
    Next,
    Outbox,
    OutboxEvent,
    StreamKey,
    decode_letter,
    encode_letter,
    first_sequence,
)
from .parcel import Parcel

log = get_logger("mesh.messaging")

OUTBOX: Final = "outbox"
MARKS: Final = "marks"
DEAD: Final = "dead"

#: The tables of a node's ``messages.db``.
TABLES: Final = (OUTBOX, MARKS, DEAD)

#: The header of a message that was sent before, so that its agent may have seen it; its value says how often.
REDELIVERED: Final = "redelivered"

# After the disk refused: how soon it is tried again.
_DISK_RETRY_S: Final = 1.0

# How often old marks and dead letters are looked for.
_HOUSEKEEPING_S: Final = 60.0

# Dead letters share what the outbox may weigh, so that nothing a user does fills the disk.
_DEAD_BYTES_SHARE: Final = 0.25


_T = TypeVar("_T")


class _Arrival(NamedTuple):
    """A durable message that arrived, until its agent has handled it."""

    key: InboxKey
    sequence: int
    delivery: Delivery
    deadline: float
    """On the monotonic clock here."""


class DurableCourier:
    """Durable messages of one node, both ways.  Made by :meth:`open`.

    Args:
        courier: Finds agents and links; told of this object by :meth:`open`.
        journal: With :data:`TABLES`; whoever opened it closes it, after this.
        life: The node's life.
        clock: Wall clock for deadlines, monotonic for waits.
        rng: Jitter of retries.
        config: How to behave.
    """

    def __init__(
        self, courier: Courier, journal: Journal, life: int, *, clock: Clock, rng: random.Random, config: DurableConfig
    ) -> None:
        self._courier = courier
        self._journal = journal
        self._life = life
        self._clock = clock
        self._outbox = Outbox(config.outbox, rng)
        self._inbox: Inbox[_Arrival] = Inbox(config.ahead_max)
        self._dead = DeadLetters(
            count_max=config.dead_letters_max,
            bytes_max=int(config.outbox.bytes_max * _DEAD_BYTES_SHARE),
            age_ms_max=int(config.dead_letters_age_s * 1000),
        )
        self._sequence = 0
        self._scope = TaskScope("durable messages")
        self._closed = False
        # Agents whose letters may be able to go, each once.
        self._ready: dict[int, None] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._crowded: set[int] = set()
        self._expiry: asyncio.TimerHandle | None = None
        self._expiry_ms = math.inf
        self._housekeeping: asyncio.TimerHandle | None = None
        self._room: list[asyncio.Future[None]] = []
        # Changes that nobody waits for, at most one for each record; one transaction of them at a time, so that a
        # change that had to be tried again never comes after a later one.
        self._unsaved: dict[tuple[str, int | bytes], bytes | None] = {}
        self._saving = False
        self._saved = asyncio.Event()
        self._saved.set()
        # Marks: at most one transaction at a time as well, and no message is handed over while they cannot be written.
        self._marking = False
        self._disk_fails = False
        self._held: list[_Arrival] = []
        self._answers: dict[InboxKey, None] = {}
        self._refusals: dict[InboxKey, None] = {}
        self._answering = False
        self.counters = dict.fromkeys(
            ("stored", "sent", "sent_again", "settled", "received", "handled", "repeated", "given_back", "failed",
             "expired", "dead", "disk_errors", "unreadable"), 0
        )  # fmt: skip

    @classmethod
    async def open(
        cls, courier: Courier, journal: Journal, life: int, *, clock: Clock, rng: random.Random, config: DurableConfig
    ) -> DurableCourier:
        """Take up what an earlier process left behind.

        Raises:
            StorageError: The journal cannot be read.
        """
        durable = cls(courier, journal, life, clock=clock, rng=rng, config=config)
        await durable._load()
        courier.durable = durable
        durable._keep_house()
        durable._arm_expiry()
        return durable

    async def _load(self) -> None:
        letters, dead_letters = await self._journal.load(OUTBOX), await self._journal.load(DEAD)
        for sequence, body in letters:
            letter = self._read(OUTBOX, decode_letter, sequence, body)
            if letter is not None:
                self._outbox.reserve(letter.size_bytes)
                self._outbox.add(letter)
        for sequence, body in dead_letters:
            dead = self._read(DEAD, decode_dead, sequence, body)
            if dead is not None:
                self._bury(dead, [])
        for key, body in await self._journal.load(MARKS):
            mark = self._read(MARKS, decode_mark, key, body)
            if mark is not None:
                self._inbox.restore(mark)
        used_max = max((sequence for sequence, _ in (*letters, *dead_letters)), default=0)
        self._sequence = first_sequence(self._life, used_max) - 1

    def _read(self, table: str, decode: Callable[[Any, bytes], _T], key: object, body: bytes) -> _T | None:
        try:
            return decode(key, body)
        except RemoteProtocolError as error:
            # Sound and yet none of ours; it stays where it is.
            self.counters["unreadable"] += 1
            log.exception("a record cannot be read: written by a later version?", table=table, error=error.message)
            return None

    # --- sending ------------------------------------------------------------------------------------------------

    async def send(self, parcel: Parcel, *, deadline_s: float, timeout_s: float) -> Receipt:
        """Store a message and return; it is sent when its agent can be reached, until ``deadline_s`` is over.

        Raises:
            OutboxFull: There was no room within ``timeout_s``; nothing is stored.
            StorageError: The disk did not take it; nothing is stored.
            NetworkClosed: This node has left.
        """
        now_ms = self._now_ms()
        letter = Letter(
            0,
            parcel.from_agent,
            parcel.to_agent,
            int(parcel.kind),
            int(parcel.priority),
            parcel.ttl,
            parcel.payload,
            parcel.timestamp_ms or now_ms,
            now_ms + int(deadline_s * 1000),
            dict(parcel.headers) if parcel.headers else None,
            parcel.group,
        )
        await self._wait_room(letter.size_bytes, timeout_s)
        return await self._store(letter, [])

    async def _wait_room(self, size_bytes: int, timeout_s: float) -> None:
        self._check_open()
        if self._journal.has_room and self._outbox.has_room(size_bytes):
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._journal.wait_room()
                while not self._outbox.has_room(size_bytes):
                    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._room.append(future)
                    try:
                        await future
                    finally:
                        with suppress(ValueError):
                            self._room.remove(future)
                    self._check_open()
        except TimeoutError:
            raise OutboxFull(
                f"{self._outbox.count} durable messages of {self._outbox.size_bytes} bytes wait already, "
                f"and none of them left within {timeout_s:.3g} s",
                hint="see why their agents do not take them (`mesh status`), or raise messages.outbox_bytes_max",
            ) from None

    async def _store(self, letter: Letter, changes: list[Change]) -> Receipt:
        """Number the letter and write it together with ``changes``.

        Not interrupted between its number and its place in the journal's queue: letters are stored in their order.
        """
        self._check_open()
        self._sequence = letter.sequence = self._sequence + 1
        self._outbox.reserve(letter.size_bytes)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        changes.append((OUTBOX, letter.sequence, encode_letter(letter)))
        self._journal.submit(changes, partial(self._stored, letter, future))
        await future
        node_id = self._courier.node_of(letter.to_agent) or ""
        return Receipt(durable_id(self._courier.node_id, letter.sequence), DeliveryStatus.STORED, node_id)

    def _stored(self, letter: Letter, future: asyncio.Future[None], error: StorageError | None) -> None:
        # Whether or not the caller still waits: what is on disk will be sent.
        if error is not None:
            self._outbox.release(letter.size_bytes)
            self.counters["disk_errors"] += 1
            if not future.done():
                future.set_exception(error)
            return
        self._outbox.add(letter)
        self.counters["stored"] += 1
        self._stir(letter.to_agent)
        if letter.deadline_ms < self._expiry_ms:
            self._arm_expiry()
        if not future.done():
            future.set_result(None)

    def _check_open(self) -> None:
        if self._closed:
            raise NetworkClosed("this node has left the network", hint="join again")

    def _now_ms(self) -> int:
        return int(self._clock.wall() * 1000)

    # --- letters on their way -----------------------------------------------------------------------------------

    def news(self) -> None:
        """See :class:`mesh.messaging.hooks.DurableMessages`."""
        for agent_id in self._outbox.agents():
            self._stir(agent_id)

    def _stir(self, agent_id: int) -> None:
        """Something changed that the letters for ``agent_id`` may have waited for."""
        if not self._ready:
            asyncio.get_running_loop().call_soon(self._send_ready)
        self._ready[agent_id] = None

    def _send_ready(self) -> None:
        ready, self._ready = self._ready, {}
        for agent_id in ready:
            if not self._closed:
                self._send_letters(agent_id)

    def _send_letters(self, agent_id: int) -> None:
        """Send a run of letters to one agent, or see to it that this is called when some can go."""
        node_id = self._courier.node_of(agent_id)
        if node_id is None:
            return  # its registration will be news
        now, now_ms = self._clock.monotonic(), self._now_ms()
        if self._outbox.next_deadline_ms() <= now_ms:
            self._expire()
        sent_bytes = 0
        while sent_bytes < BURST_BYTES:
            step = self._outbox.next_for(agent_id, node_id, now, self._is_linked)
            if step is None:
                self._wake_at(agent_id, self._outbox.wake_at(agent_id, now))
                return
            dialogue = self._courier.dialogue(step.node_id)
            if dialogue is None:
                self._courier.want_link(step.node_id)
                self._wake_at(agent_id, now + LINK_RETRY_S)
                return
            window = dialogue.window(agent_id)
            if dialogue.is_congested or not window.is_open:
                self._wait_ready(dialogue, agent_id)
                return
            cost = dialogue.post(self._message(step, dialogue.base_ms), Priority(step.letter.priority), step.letter.ttl)
            window.sent_bytes += cost
            sent_bytes += cost
            self.counters["sent_again" if step.letter.sent else "sent"] += 1
            self._outbox.sent(step)
        self._stir(agent_id)  # the rest when others have come up

    def _is_linked(self, node_id: str) -> bool:
        return self._courier.dialogue(node_id) is not None

    def _message(self, step: Next, now_ms: int) -> Message:
        letter = step.letter
        durable = [letter.sequence, step.previous, max(0, letter.deadline_ms - now_ms), letter.sent]
        offset = letter.timestamp_ms - now_ms
        return [
            *(self._courier._next_sequence(), letter.kind, letter.from_agent, letter.to_agent, FLAG_DURABLE),
            *(letter.payload, offset, None, letter.headers, letter.group, durable),
        ]

    def _wake_at(self, agent_id: int, at: float) -> None:
        timer = self._timers.pop(agent_id, None)
        if timer is not None:
            timer.cancel()
        if at < math.inf:
            wait_s = max(0.0, at - self._clock.monotonic())
            self._timers[agent_id] = asyncio.get_running_loop().call_later(wait_s, self._woken, agent_id)

    def _woken(self, agent_id: int) -> None:
        del self._timers[agent_id]
        self._stir(agent_id)

    def _wait_ready(self, dialogue: Dialogue, agent_id: int) -> None:
        if agent_id not in self._crowded:
            self._crowded.add(agent_id)
            self._scope.spawn(self._ready_again(dialogue, agent_id), name=f"wait for credit of agent {agent_id}")

    async def _ready_again(self, dialogue: Dialogue, agent_id: int) -> None:
        with suppress(LinkClosed):
            await dialogue.wait_ready(agent_id)
        self._crowded.discard(agent_id)
        self._stir(agent_id)

    def settled(self, node_id: str, entries: Sequence[Settled]) -> None:
        """See :class:`mesh.messaging.hooks.DurableMessages`."""
        now = self._clock.monotonic()
        events: list[OutboxEvent] = []
        for entry in entries:
            key = StreamKey(entry.from_agent, entry.to_agent, entry.priority)
            if entry.code == SETTLED_HANDLED:
                events += self._outbox.handled(node_id, key, entry.sequence)
            elif entry.code == SETTLED_REFUSED:
                self._outbox.refused(node_id, key, now)
            elif entry.code == SETTLED_FAILED:
                events += self._outbox.failed(node_id, key, entry.sequence, entry.text, now)
            elif entry.code == SETTLED_EXPIRED:
                events += self._outbox.expired(node_id, key, entry.sequence)
            self._stir(entry.to_agent)
        self._apply(events)

    def is_waiting_for(self, node_id: str) -> bool:
        """See :class:`mesh.messaging.hooks.DurableMessages`."""
        return self._outbox.is_waiting_for(node_id)

    def link_closed(self, node_id: str) -> None:
        """See :class:`mesh.messaging.hooks.DurableMessages`."""
        self._outbox.link_lost(node_id)
        # If there is another link already, what waits is good, and its sender's repetition of it is recognised.
        if self._courier.dialogue(node_id) is None:
            self._give_credit_back(self._inbox.lose_link(node_id))

    # --- records ------------------------------------------------------------------------------------------------

    def _apply(self, events: Sequence[OutboxEvent]) -> None:
        """Bring the disk up to date with what the outbox says."""
        if not events:
            return
        changes: list[Change] = []
        for event in events:
            letter = event.letter
            if isinstance(event, Failed):
                self.counters["failed"] += 1
                changes.append((OUTBOX, letter.sequence, encode_letter(letter)))
                continue
            changes.append((OUTBOX, letter.sequence, None))
            self.counters["settled"] += 1
            if isinstance(event, Died):
                self.counters["dead"] += 1
                dead = Dead(letter, event.reason, event.detail, self._now_ms())
                log.warning(
                    "durable message given up",
                    message_id=durable_id(self._courier.node_id, letter.sequence),
                    agent=letter.to_agent,
                    reason=event.reason.value,
                    detail=event.detail[:200],
                )
                changes.append((DEAD, letter.sequence, encode_dead(dead)))
                self._bury(dead, changes)
        self._save(changes)
        for future in self._room:
            if not future.done():
                future.set_result(None)

    def _bury(self, dead: Dead, changes: list[Change]) -> None:
        changes.extend((DEAD, gone.letter_id, None) for gone in self._dead.add(dead))

    def _save(self, changes: Sequence[Change]) -> None:
        for table, key, body in changes:
            self._unsaved[table, key] = body
        if changes and not self._saving:
            self._saving = True
            self._saved.clear()
            self._save_now()

    def _save_now(self) -> None:
        batch, self._unsaved = self._unsaved, {}
        changes = [(table, key, body) for (table, key), body in batch.items()]
        self._journal.submit(changes, partial(self._save_ended, batch))

    def _save_ended(self, batch: dict[tuple[str, int | bytes], bytes | None], error: StorageError | None) -> None:
        if error is not None:
            self._disk_refused(error)
            self._unsaved = {**batch, **self._unsaved}
            if not self._closed:
                asyncio.get_running_loop().call_later(_DISK_RETRY_S, self._save_now)
        elif self._unsaved:
            self._save_now()
        else:
            self._saving = False
            self._saved.set()

    def _disk_refused(self, error: StorageError) -> None:
        self.counters["disk_errors"] += 1
        log.error("the disk did not take what durable messages need; it is tried again", error=error.message)

    # --- time ---------------------------------------------------------------------------------------------------

    def _arm_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        self._expiry_ms = self._outbox.next_deadline_ms()
        if self._expiry_ms < math.inf:
            # A wall clock may be set meanwhile, so we look again at least as often as the house is kept.
            wait_s = min(_HOUSEKEEPING_S, max(0.0, self._expiry_ms / 1000 - self._clock.wall()) + 0.001)
            self._expiry = asyncio.get_running_loop().call_later(wait_s, self._expire)

    def _expire(self) -> None:
        self._apply(self._outbox.expire(self._now_ms()))
        self._arm_expiry()

    def _keep_house(self) -> None:
        now_ms = self._now_ms()
        self._save([(MARKS, encode_key(key), None) for key in self._inbox.prune(now_ms)])
        self._save([(DEAD, dead.letter_id, None) for dead in self._dead.expire(now_ms)])
        self._housekeeping = asyncio.get_running_loop().call_later(_HOUSEKEEPING_S, self._keep_house)

    # --- receiving ----------------------------------------------------------------------------------------------

    def received(self, flow: IncomingFlow, message: Message, seen: AgentMessage, cost: int) -> None:
        """See :class:`mesh.messaging.hooks.DurableMessages`."""
        durable = message_of_durable(message)
        self.counters["received"] += 1
        key = InboxKey(seen.from_node, seen.from_agent, message[F_TO], int(seen.priority))
        seen.message_id = durable_id(seen.from_node, durable.sequence)
        if durable.sent:
            seen.headers = {**seen.headers, REDELIVERED: str(durable.sent)}
        deadline = self._clock.monotonic() + durable.left_ms / 1000
        arrival = _Arrival(key, durable.sequence, Delivery(seen, message, flow, cost), deadline)
        verdict = self._inbox.receive(key, durable.sequence, durable.previous, arrival)
        if verdict is Verdict.HAND:
            self._hand(arrival)
        elif verdict is not Verdict.WAITS:
            flow.taken(cost)
            self.counters["repeated"] += 1
            if verdict is Verdict.HANDLED:
                self._answer(key)
            elif verdict is Verdict.TOO_MANY:
                self._refuse(key)

    def refused(self, flow: IncomingFlow, message: Message, priority: Priority) -> None:
        """See :class:`mesh.messaging.hooks.DurableMessages`."""
        self._refuse(InboxKey(flow.dialogue.node_id, message[F_FROM], message[F_TO], int(priority)))

    def _hand(self, arrival: _Arrival | None) -> None:
        """Give a message to its agent, or the next one that can be given."""
        while arrival is not None:
            if self._disk_fails:
                self._held.append(arrival)  # one of each stream at most
                return
            agent = self._courier.agents.get(arrival.key.to_agent)
            if agent is None:
                self._give_back(arrival)
                self._refuse(arrival.key)
                return
            if self._clock.monotonic() < arrival.deadline:
                agent.deliver(arrival.delivery)
                return
            self.counters["expired"] += 1
            self._give_credit_back([arrival])
            self._settle(arrival.key, SETTLED_EXPIRED, arrival.sequence)
            arrival = self._inbox.skip(arrival.key, arrival.sequence)

    def handled(self, delivery: Delivery) -> None:
        """See :class:`mesh.messaging.hooks.DurableMessages`."""
        key, sequence, left_ms = self._name(delivery)
        self.counters["handled"] += 1
        following = self._inbox.finish(key, sequence, self._now_ms() + left_ms)
        if not self._marking:
            self._marking = True
            asyncio.get_running_loop().call_soon(self._write_marks)
        self._hand(following)

    def raised(self, delivery: Delivery, error: BaseException) -> None:
        """See :class:`mesh.messaging.hooks.DurableMessages`."""
        key, sequence, _ = self._name(delivery)
        waited = self._inbox.give_back(key, sequence)
        if waited is not None:
            self._give_credit_back(waited)
            self._settle(key, SETTLED_FAILED, sequence, _told(error))

    def dropped(self, delivery: Delivery) -> None:
        """See :class:`mesh.messaging.hooks.DurableMessages`."""
        key, sequence, _ = self._name(delivery)
        waited = self._inbox.give_back(key, sequence)
        if waited is not None:
            self._give_credit_back(waited)
            self._refuse(key)

    def _give_back(self, arrival: _Arrival) -> None:
        self._give_credit_back([arrival, *(self._inbox.give_back(arrival.key, arrival.sequence) or ())])

    def _give_credit_back(self, arrivals: Sequence[_Arrival]) -> None:
        self.counters["given_back"] += len(arrivals)
        for arrival in arrivals:
            flow = arrival.delivery.flow
            assert flow is not None
            flow.taken(arrival.delivery.cost)

    def _name(self, delivery: Delivery) -> tuple[InboxKey, int, int]:
        """The stream, the number and the time left of a message on its way into an agent."""
        seen, raw = delivery.message, delivery.raw
        durable = message_of_durable(raw)
        key = InboxKey(seen.from_node, raw[F_FROM], raw[F_TO], int(seen.priority))
        return key, durable.sequence, durable.left_ms

    # --- marks and answers --------------------------------------------------------------------------------------

    def _write_marks(self) -> None:
        marks = self._inbox.take_marks()
        if not marks:
            self._marking = False
            return
        changes = [(MARKS, encode_key(mark.key), encode_mark(mark)) for mark in marks]
        self._journal.submit(changes, partial(self._marks_written, marks))

    def _marks_written(self, marks: list[Mark], error: StorageError | None) -> None:
        if error is not None:
            self._disk_refused(error)
            self._disk_fails = True
            self._inbox.not_recorded(marks)
            if not self._closed:
                asyncio.get_running_loop().call_later(_DISK_RETRY_S, self._write_marks)
            return
        self._disk_fails = False
        following = self._inbox.recorded(marks)
        for mark in marks:
            self._answer(mark.key)
        held, self._held = self._held, []
        for arrival in (*held, *following):
            self._hand(arrival)
        self._write_marks()

    def _answer(self, key: InboxKey) -> None:
        self._answers[key] = None
        self._answer_soon()

    def _refuse(self, key: InboxKey) -> None:
        self._refusals[key] = None
        self._answer_soon()

    def _answer_soon(self) -> None:
        if not self._answering:
            self._answering = True
            asyncio.get_running_loop().call_soon(self._answer_now)

    def _answer_now(self) -> None:
        """Say once for each stream how far it has been handled, and only after that whose agent is not here."""
        self._answering = False
        answers, self._answers = self._answers, {}
        refusals, self._refusals = self._refusals, {}
        for key in answers:
            self._settle(key, SETTLED_HANDLED, self._inbox.recorded_of(key))
        for key in refusals:
            if self._inbox.is_settled(key):
                # What was handled may not have been said on this link.
                self._settle(key, SETTLED_HANDLED, self._inbox.recorded_of(key))
                self._settle(key, SETTLED_REFUSED, 0)
            else:
                self._refusals[key] = None  # said when the mark is written, by the answer that follows it

    def _settle(self, key: InboxKey, code: int, sequence: int, text: str = "") -> None:
        dialogue = self._courier.dialogue(key.origin)
        if dialogue is not None:  # else the sender will ask again
            dialogue.owe_settled(Settled(key.from_agent, key.to_agent, key.priority, code, sequence, text))

    # --- dead letters -------------------------------------------------------------------------------------------

    def dead_letters(self) -> list[DeadLetter]:
        """Those that are kept, the oldest first."""
        return [self._shown(dead) for dead in self._dead.all()]

    async def replay(self, letter_id: int, *, deadline_s: float, timeout_s: float) -> Receipt:
        """Send a dead letter once more, as a new message.

        Raises:
            UnknownLetter: There is none of that id.
            OutboxFull, StorageError, NetworkClosed: As :meth:`send`; it is still there.
        """
        size_bytes = self._found(letter_id).letter.size_bytes
        await self._wait_room(size_bytes, timeout_s)
        await self._saved.wait()
        dead = self._found(letter_id)
        self._dead.remove(letter_id)
        old = dead.letter
        now_ms = self._now_ms()
        letter = Letter(
            0,
            *(old.from_agent, old.to_agent, old.kind, old.priority, old.ttl, old.payload, old.timestamp_ms),
            now_ms + int(deadline_s * 1000),
            *(old.headers, old.group),
        )
        try:
            return await self._store(letter, [(DEAD, letter_id, None)])
        except (StorageError, NetworkClosed):
            self._bury(dead, [])
            raise

    async def drop(self, letter_id: int) -> None:
        """Forget a dead letter.

        Raises:
            UnknownLetter: There is none of that id.
            StorageError: It is still on disk.
        """
        self._found(letter_id)
        await self._saved.wait()
        self._found(letter_id)
        await self._journal.commit([(DEAD, letter_id, None)])
        self._dead.remove(letter_id)

    def _found(self, letter_id: int) -> Dead:
        dead = self._dead.find(letter_id)
        if dead is None:
            raise UnknownLetter(f"no dead letter {letter_id}", hint="`mesh dead-letters` lists them")
        return dead

    def _shown(self, dead: Dead) -> DeadLetter:
        letter = dead.letter
        message = AgentMessage(
            letter.from_agent,
            letter.to_agent,
            TYPES[letter.kind],
            letter.payload,
            durable_id(self._courier.node_id, letter.sequence),
            letter.timestamp_ms,
            letter.ttl,
            Priority(letter.priority),
            letter.group,
            letter.headers or {},
            self._courier.node_id,
        )
        uncertain = bool(letter.sent) and dead.reason.value == "expired"
        return DeadLetter(
            dead.letter_id, dead.reason.value, dead.detail, letter.failures, dead.died_ms, uncertain, message
        )

    # --- end ----------------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Take nothing more, write what was handled and answer for it.  The agents have been stopped."""
        self._closed = True
        for timer in (*self._timers.values(), self._expiry, self._housekeeping):
            if timer is not None:
                timer.cancel()
        for future in self._room:
            if not future.done():
                future.set_result(None)
        await self._scope.close()
        with suppress(StorageError):
            await self._journal.commit([])  # what was under way
            self._write_marks()
            await self._journal.commit([])
        self._answer_now()

    def statistics(self) -> dict[str, int]:
        """Counters since the start, and what waits now."""
        return {
            **self.counters,
            "outbox": self._outbox.count,
            "outbox_bytes": self._outbox.size_bytes,
            "dead_letters": len(self._dead),
            "streams": len(self._inbox),
            **{f"journal_{name}": value for name, value in self._journal.statistics().items()},
        }


def _told(error: BaseException) -> str:
    """What an application's exception says; it may fail even at that."""
    kind = type(error).__name__
    try:
        return f"{kind}: {error}"
    except Exception:  # noqa: BLE001 - a broken __str__ must not keep the sender waiting
        return kind
