"""One node's messages to one peer: batching, credit, acknowledgements owed.

A dialogue lives exactly as long as the link beneath it.  It makes no calls into the event loop beyond creating
futures: the courier decides when to flush, which is once a turn of the loop for all dialogues that have
something to say.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from transport.errors import LinkClosed, LocalProtocolError, RemoteProtocolError
from transport.link import CloseReason, Link, SendOutcome
from transport.logs import get_logger
from transport.types import Lane, Priority
from transport.wire import ARRAY_ITEMS_MAX, Envelope, Kind

from .body import (
    F_HEADERS,
    F_PAYLOAD,
    OVERHEAD_BYTES,
    SETTLED_MAX,
    Acks,
    Message,
    Settled,
    encode_acks,
    encode_batch,
    encode_settled,
    extras_weight,
)
from .flow import ReceiveWindow, SendWindow
from .moves import FEATURE as MOVES
from .moves import Arrivals
from .notices import NOTICES_MAX, Credit, GivenUp, Gone, Handled, Heard, Notices, Waiting, encode_notices

log = get_logger("mesh.messaging")

# A body is sealed and handed to the link when it holds this much: enough to make what a frame costs negligible
# (measured: 85 % of the best rate at 32 messages a frame), small enough that an urgent message behind it waits
# for microseconds only.
BODY_BYTES: Final = 48 * 1024
BODY_MESSAGES: Final = 256

# Envelopes that the link has no room for.  Senders wait and workers hold their responses back as soon as there is
# one; a peer for which this much piles up all the same asks without reading the answers.
STUCK_BYTES_MAX: Final = 128 * 1024 * 1024

# Agents that one peer may send to over one link, ours or not: far above what a node can register (4,096), so that it
# bounds what invented ids cost here and allows for years of agents that come and go.
FLOWS_MAX: Final = 65_536


class _OpenBody:
    """A body that is being filled, at one priority and with one ttl."""

    __slots__ = ("messages", "size_bytes", "ttl")

    def __init__(self, ttl: int) -> None:
        self.ttl = ttl
        self.messages: list[Message] = []
        self.size_bytes = 0


class IncomingFlow:
    """What one peer sends to one of our agents: its credit, how far it has come, and the way back."""

    __slots__ = ("agent_id", "arrivals", "dialogue", "window")

    def __init__(self, dialogue: Dialogue, agent_id: int, window_bytes: int) -> None:
        self.dialogue = dialogue
        self.agent_id = agent_id
        self.window = ReceiveWindow(window_bytes)
        self.arrivals = Arrivals()

    def taken(self, message_cost_bytes: int) -> None:
        """The agent took a message of that cost: the sender may be owed credit."""
        if self.window.consume(message_cost_bytes):
            self.dialogue.owe_credit(self)


class Dialogue:
    """The messages of one link.

    Args:
        link: The open link.
        life: Our own life, written into every body.
        now_ms: Reads the wall clock, milliseconds since the epoch.
        dirty: Called when this dialogue has something to flush and had not before.
        window_bytes: How far a peer may run ahead of each of our agents.
    """

    def __init__(
        self, link: Link, *, life: int, now_ms: Callable[[], int], dirty: Callable[[Dialogue], None], window_bytes: int
    ) -> None:
        self.link = link
        self.node_id: str = link.peer.node_id
        self._life = life
        self._now_ms = now_ms
        self._base_ms: int | None = None
        self._tell_dirty = dirty
        self._is_dirty = False
        self._window_bytes = window_bytes
        # By priority: a list, because hashing an enum is slow.
        self._open_bodies: list[_OpenBody | None] = [None] * len(Priority)
        # Sealed envelopes that the link had no room for.  Bounded by ``is_congested``, which makes senders and
        # workers wait, and beyond that by STUCK_BYTES_MAX.
        self._stuck: deque[tuple[Envelope, Lane]] = deque()
        self._stuck_bytes = 0
        # Whether the link has no room: senders should wait.
        self.is_congested = False
        self._windows: dict[int, SendWindow] = {}
        self._credit_waiters: dict[int, list[asyncio.Future[None]]] = {}
        self._room_waiters: list[asyncio.Future[None]] = []
        self._incoming: dict[int, IncomingFlow] = {}
        # Messages whose sender waits for an acknowledgement, by sequence.
        self.unacked: dict[int, asyncio.Future[int]] = {}
        self._owed_credit: dict[int, IncomingFlow] = {}
        self._owed_delivered: list[int] = []
        self._owed_refused: list[tuple[int, int]] = []
        self._owed_settled: list[Settled] = []
        # By the query's sequence: only the latest limits count.
        self._owed_stream_credit: dict[int, Credit] = {}
        self._owed_given_up: dict[Priority, list[GivenUp]] = {}
        # Of agents that went from here, and of theirs that did: see :mod:`.moves`.
        self._owed_gone: list[tuple[list[Waiting], Gone]] = []
        self._owed_heard: list[tuple[int, int]] = []
        self.knows_moves = MOVES in link.peer.features
        self.is_open = True
        # The peer's life, as its messages say; none has come yet.
        self.peer_life = -1
        # Whether nothing may be sent for now, see :meth:`hold`.
        self.is_held = False
        # Set by the courier while a task of its waits for the link to have room.
        self.unsticking = False
        # What the link calls when it is about to send; the courier's.
        self.fill: Callable[[], None] = self.flush
        # How far our agent has handled what comes by a flow; the courier's.
        self.handled: Callable[[IncomingFlow], Handled | None] = lambda _: None

    # --- sending ------------------------------------------------------------------------------------------------

    def window(self, agent_id: int) -> SendWindow:
        """The credit we have for ``agent_id`` on this link."""
        window = self._windows.get(agent_id)
        if window is None:
            window = self._windows[agent_id] = SendWindow()
        return window

    def has_sent_to(self, agent_id: int) -> bool:
        """Whether anything may have been sent to ``agent_id`` on this link."""
        return agent_id in self._windows

    @property
    def base_ms(self) -> int:
        """The time that the bodies of this flush carry, to which messages give theirs in relation."""
        if self._base_ms is None:
            self._base_ms = self._now_ms()
        return self._base_ms

    def post(self, message: Message, priority: Priority, ttl: int) -> int:
        """Add a message to the body that is being filled; it leaves with the next flush at the latest.

        Credit is the caller's business: a response is outside it, because its request has paid.

        Returns:
            The message's cost in bytes.
        """
        cost = len(message[F_PAYLOAD]) + OVERHEAD_BYTES
        if len(message) > F_HEADERS:
            cost += extras_weight(message)
        body = self._open_bodies[priority]
        if body is None or body.ttl != ttl:
            body = self._open_body(priority, ttl)
        body.messages.append(message)
        body.size_bytes += cost
        if body.size_bytes >= BODY_BYTES or len(body.messages) >= BODY_MESSAGES:
            self._open_bodies[priority] = None
            if cost >= BODY_BYTES:
                # A large one travels alone: with others in front it might not fit an envelope.
                self._seal(priority, ttl, body.messages[:-1])
                self._seal(priority, ttl, [message])
            else:
                self._seal(priority, ttl, body.messages)
        return cost

    def _open_body(self, priority: Priority, ttl: int) -> _OpenBody:
        """Begin a body; one of the same priority and another ttl goes first, so that order is kept."""
        before = self._open_bodies[priority]
        if before is not None:
            self._seal(priority, before.ttl, before.messages)
        body = self._open_bodies[priority] = _OpenBody(ttl)
        self._mark()
        return body

    def flush(self) -> None:
        """Hand everything that waits to the link."""
        self._is_dirty = False
        if not self.is_open or self.is_held:
            return
        if self._owed_credit or self._owed_delivered or self._owed_refused:
            self._send_acks()
        if self._owed_gone:
            self._send_gone()
        if self._owed_heard:
            self._send_heard()
        if self._owed_settled:
            self._send_settled()
        if self._owed_stream_credit:
            self._send_stream_credit()
        for priority, open_body in enumerate(self._open_bodies):
            if open_body is not None:
                self._open_bodies[priority] = None
                self._seal(Priority(priority), open_body.ttl, open_body.messages)
        if self._owed_given_up:
            self._send_given_up()
        self._base_ms = None

    def _seal(self, priority: Priority, ttl: int, messages: list[Message]) -> None:
        if not messages:
            return
        try:
            body = encode_batch(self._life, self.base_ms, priority, messages)
            self._transmit(Envelope(Kind.MESSAGES, ttl, None, None, body), Lane.of(priority))
        except LocalProtocolError as error:
            # Arguments are checked when a message is accepted.  If one slips through, its neighbours must not pay.
            if len(messages) == 1:
                log.error("message dropped: it cannot be sent", peer=self.node_id, error=error.message)  # noqa: TRY400 - no bug of this line
                return
            for message in messages:
                self._seal(priority, ttl, [message])

    def _transmit(self, envelope: Envelope, lane: Lane) -> None:
        # A link that is closing takes nothing more either.  Then, too, senders had better wait: for its end, which
        # is told in a moment, and perhaps for the next link.
        if self._stuck or self.link.send(envelope, lane) is not SendOutcome.ACCEPTED:
            self._hold_back(envelope, lane)

    def _hold_back(self, envelope: Envelope, lane: Lane) -> None:
        self._stuck.append((envelope, lane))
        self.is_congested = True
        self._stuck_bytes += len(envelope.body)
        if self._stuck_bytes > STUCK_BYTES_MAX and self.link.is_open:
            self.link.close(CloseReason.OVERLOADED, "too much waits for a peer that does not read")

    @property
    def stuck_lane(self) -> Lane | None:
        """The lane whose room we wait for; ``None`` when nothing is stuck."""
        return self._stuck[0][1] if self._stuck else None

    def unstick(self) -> None:
        """Try again after the link said that it has room."""
        while self._stuck:
            envelope, lane = self._stuck[0]
            if self.link.send(envelope, lane) is not SendOutcome.ACCEPTED:
                return
            self._stuck.popleft()
            self._stuck_bytes -= len(envelope.body)
        self.is_congested = False
        _wake(self._room_waiters)

    def hold(self) -> bool:
        """Send nothing more until :meth:`release` or :meth:`close`, because the link may be about to be closed.

        Returns:
            ``False``, and nothing changed, if something is under way: waits to be sent, to be acknowledged, or for
            credit.
        """
        acks = self._owed_credit or self._owed_delivered or self._owed_refused or self._owed_settled
        calls = self._owed_stream_credit or self._owed_given_up
        if self._owed_gone or self._owed_heard:
            return False
        if acks or calls or self._stuck or self.unacked or any(self._open_bodies) or any(self._credit_waiters.values()):
            return False
        self.is_held = self.is_congested = True
        return True

    def release(self) -> None:
        """The link stays: go on."""
        if self.is_held:
            self.is_held = self.is_congested = False
            self._mark()
            _wake(self._room_waiters)

    # --- waiting ------------------------------------------------------------------------------------------------

    async def wait_ready(self, agent_id: int) -> None:
        """Return when a message to ``agent_id`` may be posted.

        Raises:
            LinkClosed: The link closed meanwhile.
        """
        window = self.window(agent_id)
        while True:
            if not self.is_open:
                raise LinkClosed(f"the link to {self.node_id} closed while the message waited", changed=False)
            if not window.is_open:
                await _wait_among(self._credit_waiters.setdefault(agent_id, []))
            elif self._stuck or self.is_held:
                await _wait_among(self._room_waiters)
            else:
                return

    async def wait_room(self) -> None:
        """Return when the link has room again, or is closed."""
        while self.is_open and self._stuck:
            await _wait_among(self._room_waiters)

    # --- receiving ----------------------------------------------------------------------------------------------

    def incoming(self, agent_id: int) -> IncomingFlow:
        """The flow of what this peer sends to our agent ``agent_id``.

        Raises:
            RemoteProtocolError: It is one too many.
        """
        flow = self._incoming.get(agent_id)
        if flow is None:
            if len(self._incoming) >= FLOWS_MAX:
                raise RemoteProtocolError(f"peer sent to more than {FLOWS_MAX} agents")
            flow = self._incoming[agent_id] = IncomingFlow(self, agent_id, self._window_bytes)
        return flow

    def known_incoming(self, agent_id: int) -> IncomingFlow | None:
        """The same, if anything has come."""
        return self._incoming.get(agent_id)

    def owe_credit(self, flow: IncomingFlow) -> None:
        """Tell the peer a new limit for ``flow`` with the next flush."""
        self._owed_credit[flow.agent_id] = flow
        self._mark()

    def owe_delivered(self, sequence: int) -> None:
        """Tell the peer with the next flush that its agent message was handed over."""
        self._owed_delivered.append(sequence)
        self._mark()

    def owe_refused(self, sequence: int, code: int) -> None:
        """Tell the peer with the next flush that its agent message was not handed over, and why."""
        self._owed_refused.append((sequence, code))
        self._mark()

    def owe_settled(self, settled: Settled) -> None:
        """Tell the peer with the next flush what became of durable messages of its."""
        self._owed_settled.append(settled)
        self._mark()

    def _send_settled(self) -> None:
        owed, self._owed_settled = self._owed_settled, []
        for begin in range(0, len(owed), SETTLED_MAX):
            self._send_control(Kind.SETTLED, encode_settled(owed[begin : begin + SETTLED_MAX]))

    def owe_stream_credit(self, credit: Credit) -> None:
        """Tell the peer with the next flush how much more of a stream is taken here."""
        self._owed_stream_credit[credit.sequence] = credit
        self._mark()

    def _send_stream_credit(self) -> None:
        owed, self._owed_stream_credit = list(self._owed_stream_credit.values()), {}
        for begin in range(0, len(owed), NOTICES_MAX):
            self._send_control(Kind.CALLS, encode_notices(Notices(credit=owed[begin : begin + NOTICES_MAX])))

    def owe_given_up(self, priority: Priority, given_up: GivenUp) -> None:
        """Tell the peer with the next flush, behind the query itself, that nobody waits for its answer."""
        if self.is_open:
            self._owed_given_up.setdefault(priority, []).append(given_up)
            self._mark()

    def _send_given_up(self) -> None:
        owed, self._owed_given_up = self._owed_given_up, {}
        for priority, entries in owed.items():
            for begin in range(0, len(entries), NOTICES_MAX):
                body = encode_notices(Notices(entries[begin : begin + NOTICES_MAX]))
                self._transmit(Envelope(Kind.CALLS, 1, None, None, body), Lane.of(priority))

    def owe_gone(self, waiting: list[Waiting], gone: Gone) -> None:
        """Tell the peer with the next flush that an agent is gone, behind all acknowledgements that are due for it."""
        self._owed_gone.append((waiting, gone))
        self._mark()

    def heard_gone(self, agent_id: int, number: int) -> None:
        """Tell the peer in each priority's lane, behind all that was posted, that we know that its agent is gone."""
        self._owed_heard.append((agent_id, number))
        if self.is_held:
            self._mark()  # nothing is posted until it is released
            return
        for priority, body in enumerate(self._open_bodies):
            if body is not None:
                self._open_bodies[priority] = None
                self._seal(Priority(priority), body.ttl, body.messages)
        self._send_heard()

    def _send_gone(self) -> None:
        owed_gone, self._owed_gone = self._owed_gone, []
        for waiting, gone in owed_gone:
            for begin in range(0, len(waiting), NOTICES_MAX):
                notices = Notices(waiting=waiting[begin : begin + NOTICES_MAX])
                self._send_control(Kind.CALLS, encode_notices(notices))
            self._send_control(Kind.CALLS, encode_notices(Notices(gone=[gone])))

    def _send_heard(self) -> None:
        owed_heard, self._owed_heard = self._owed_heard, []
        for agent_id, number in owed_heard:
            for priority in Priority:
                body = encode_notices(Notices(heard=[Heard(agent_id, number, priority)]))
                self._transmit(Envelope(Kind.CALLS, 1, None, None, body), Lane.of(priority))

    def _send_handled(self, flows: Iterable[IncomingFlow]) -> None:
        handled = [marks for flow in flows if (marks := self.handled(flow)) is not None]
        for begin in range(0, len(handled), NOTICES_MAX):
            body = encode_notices(Notices(handled=handled[begin : begin + NOTICES_MAX]))
            self._send_control(Kind.CALLS, body)

    def _send_acks(self) -> None:
        if self.knows_moves:
            self._send_handled(self._owed_credit.values())
        limits = [(agent_id, flow.window.grant()) for agent_id, flow in self._owed_credit.items()]
        delivered, refused = runs_of(self._owed_delivered), self._owed_refused
        self._owed_credit, self._owed_delivered, self._owed_refused = {}, [], []
        # Nearly always one body; a decoder takes no longer arrays than this.
        for begin in range(0, max(len(limits), len(delivered), len(refused)), ARRAY_ITEMS_MAX):
            part = slice(begin, begin + ARRAY_ITEMS_MAX)
            self._send_control(Kind.ACKS, encode_acks(Acks(limits[part], delivered[part], refused[part])))

    def _send_control(self, kind: Kind, body: bytes) -> None:
        envelope = Envelope(kind, 1, None, None, body)
        # They have a lane of their own and need not wait behind messages that are stuck.
        if self.link.send(envelope, Lane.CONTROL) is not SendOutcome.ACCEPTED:
            self._hold_back(envelope, Lane.CONTROL)

    def handle_acks(self, acks: Acks) -> None:
        """Apply what the peer told us: new credit, and what became of messages we wait for."""
        for agent_id, limit_bytes in acks.limits:
            window = self._windows.get(agent_id)
            if window is not None and window.extend(limit_bytes):
                _wake(self._credit_waiters.pop(agent_id, []))
        if acks.delivered and self.unacked:
            self._settle_runs(acks.delivered)
        for sequence, code in acks.refused:
            self._settle(sequence, code)

    def _settle_runs(self, runs: list[tuple[int, int]]) -> None:
        """Settle all that we wait for of these runs, at a cost that what a peer claims cannot drive up."""
        if sum(count for _, count in runs) <= len(self.unacked):
            for first, count in runs:
                for sequence in range(first, first + count):
                    self._settle(sequence, 0)
            return
        waiting = sorted(self.unacked)  # nearly so already; what moved here with its agent is older
        for first, count in runs:
            begin, end = bisect_left(waiting, first), bisect_left(waiting, first + count)
            for sequence in waiting[begin:end]:
                self._settle(sequence, 0)
            del waiting[begin:end]

    def _settle(self, sequence: int, code: int) -> None:
        future = self.unacked.pop(sequence, None)
        if future is not None and not future.done():
            future.set_result(code)

    # --- end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """The link is gone: wake whoever waits; they see that the dialogue is closed."""
        self.is_open = False
        self._stuck.clear()
        self._stuck_bytes = 0
        self.is_congested = False
        self._open_bodies = [None] * len(Priority)
        self._owed_stream_credit.clear()
        self._owed_given_up.clear()
        self._owed_gone.clear()
        self._owed_heard.clear()
        for waiters in self._credit_waiters.values():
            _wake(waiters)
        self._credit_waiters.clear()
        _wake(self._room_waiters)
        for future in self.unacked.values():
            if not future.done():
                text = f"the link to {self.node_id} broke before it acknowledged; the agent may have the message"
                future.set_exception(LinkClosed(text))
        self.unacked.clear()

    def _mark(self) -> None:
        if not self._is_dirty:
            self._is_dirty = True
            self._tell_dirty(self)


def runs_of(sequences: list[int]) -> list[tuple[int, int]]:
    """Write sequences as ``(first, count)`` runs; they arrive nearly always in order."""
    runs: list[tuple[int, int]] = []
    first, count = 0, 0
    for sequence in sequences:
        if count and sequence == first + count:
            count += 1
            continue
        if count:
            runs.append((first, count))
        first, count = sequence, 1
    if count:
        runs.append((first, count))
    return runs


async def _wait_among(waiters: list[asyncio.Future[None]]) -> None:
    """Wait until these are woken; whoever gives up leaves nothing behind."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiters.append(future)
    try:
        await future
    finally:
        if future in waiters:
            waiters.remove(future)


def _wake(waiters: list[asyncio.Future[None]]) -> None:
    for future in waiters:
        if not future.done():
            future.set_result(None)
    waiters.clear()
