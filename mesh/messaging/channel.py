"""One node's messages to one peer: batching, credit, acknowledgements owed.

A channel lives exactly as long as the link beneath it.  It makes no calls into the event loop beyond creating
futures: the courier decides when to flush, which is once a turn of the loop for all channels that have
something to say.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from transport.errors import LinkClosed
from transport.link import Link, SendOutcome
from transport.types import Lane, Priority
from transport.wire import Envelope, Kind

from .body import F_PAYLOAD, OVERHEAD_BYTES, Acks, Message, encode_acks, encode_batch
from .flow import ReceiveWindow, SendWindow

# A body is sealed and handed to the link when it holds this much: enough to make what a frame costs negligible
# (measured: 85 % of the best rate at 32 messages a frame), small enough that an urgent message behind it waits
# for microseconds only.
BODY_BYTES: Final = 48 * 1024
BODY_MESSAGES: Final = 256

# Bodies being filled are kept by priority and ttl, as one number: hashing an enum is slow.
_TTL_BITS: Final = 8
_TTL_MAX: Final = 2**_TTL_BITS - 1


class _OpenBody:
    """A body that is being filled."""

    __slots__ = ("messages", "size_bytes")

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.size_bytes = 0


class IncomingFlow:
    """What one peer sends to one of our agents: its credit, and the way back."""

    __slots__ = ("agent_id", "channel", "window")

    def __init__(self, channel: Channel, agent_id: int, window_bytes: int) -> None:
        self.channel = channel
        self.agent_id = agent_id
        self.window = ReceiveWindow(window_bytes)

    def taken(self, message_cost_bytes: int) -> None:
        """The agent took a message of that cost: the sender may be owed credit."""
        if self.window.consume(message_cost_bytes):
            self.channel.owe_credit(self)


class Channel:
    """The messages of one link.

    Args:
        link: The open link.
        life: Our own life, written into every body.
        now_ms: Reads the wall clock, milliseconds since the epoch.
        dirty: Called when this channel has something to flush and had not before.
        window_bytes: How far a peer may run ahead of each of our agents.
    """

    def __init__(
        self, link: Link, *, life: int, now_ms: Callable[[], int], dirty: Callable[[Channel], None], window_bytes: int
    ) -> None:
        self.link = link
        self.node_id: str = link.peer.node_id
        self._life = life
        self._now_ms = now_ms
        self._tell_dirty = dirty
        self._is_dirty = False
        self._window_bytes = window_bytes
        self._open_bodies: dict[int, _OpenBody] = {}
        # Sealed envelopes that the link had no room for.  Bounded by ``is_congested``: senders wait.
        self._stuck: deque[tuple[Envelope, Lane]] = deque()
        self._windows: dict[int, SendWindow] = {}
        self._credit_waiters: dict[int, list[asyncio.Future[None]]] = {}
        self._room_waiters: list[asyncio.Future[None]] = []
        self._incoming: dict[int, IncomingFlow] = {}
        # Messages whose sender waits for an acknowledgement, by sequence.
        self.unacked: dict[int, asyncio.Future[int]] = {}
        self._owed_credit: dict[int, IncomingFlow] = {}
        self._owed_delivered: list[int] = []
        self._owed_refused: list[tuple[int, int]] = []
        self.is_open = True
        # Set by the courier while a task of its waits for the link to have room.
        self.unsticking = False

    # --- sending ------------------------------------------------------------------------------------------------

    def window(self, agent_id: int) -> SendWindow:
        """The credit we have for ``agent_id`` on this link."""
        window = self._windows.get(agent_id)
        if window is None:
            window = self._windows[agent_id] = SendWindow()
        return window

    @property
    def is_congested(self) -> bool:
        """Whether the link has no room: senders should wait."""
        return len(self._stuck) > 0

    def post(self, message: Message, priority: Priority, ttl: int) -> int:
        """Add a message to the body that is being filled; it leaves with the next flush at the latest.

        Credit is the caller's business: a response is outside it, because its request has paid.

        Returns:
            The message's cost in bytes.
        """
        cost = len(message[F_PAYLOAD]) + OVERHEAD_BYTES
        route = priority << _TTL_BITS | ttl
        body = self._open_bodies.get(route)
        if body is None:
            body = self._open_bodies[route] = _OpenBody()
            self._mark()
        body.messages.append(message)
        body.size_bytes += cost
        if body.size_bytes >= BODY_BYTES or len(body.messages) >= BODY_MESSAGES:
            del self._open_bodies[route]
            self._seal(route, body.messages)
        return cost

    def flush(self) -> None:
        """Hand everything that waits to the link."""
        self._is_dirty = False
        if not self.is_open:
            return
        if self._owed_credit or self._owed_delivered or self._owed_refused:
            self._transmit(Envelope(Kind.ACKS, 1, None, None, encode_acks(self._collect_acks())), Lane.CONTROL)
        bodies, self._open_bodies = self._open_bodies, {}
        for route, open_body in bodies.items():
            self._seal(route, open_body.messages)

    def _seal(self, route: int, messages: list[Message]) -> None:
        priority, ttl = Priority(route >> _TTL_BITS), route & _TTL_MAX
        body = encode_batch(self._life, self._now_ms(), priority, messages)
        self._transmit(Envelope(Kind.MESSAGES, ttl, None, None, body), Lane.of(priority))

    def _transmit(self, envelope: Envelope, lane: Lane) -> None:
        if self._stuck or self.link.send(envelope, lane) is SendOutcome.FULL:
            self._stuck.append((envelope, lane))

    @property
    def stuck_lane(self) -> Lane | None:
        """The lane whose room we wait for; ``None`` when nothing is stuck."""
        return self._stuck[0][1] if self._stuck else None

    def unstick(self) -> None:
        """Try again after the link said that it has room."""
        while self._stuck:
            envelope, lane = self._stuck[0]
            if self.link.send(envelope, lane) is SendOutcome.FULL:
                return
            self._stuck.popleft()
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
                waiters = self._credit_waiters.setdefault(agent_id, [])
            elif self._stuck:
                waiters = self._room_waiters
            else:
                return
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiters.append(future)
            try:
                await future
            finally:
                if future in waiters:
                    waiters.remove(future)

    # --- receiving ----------------------------------------------------------------------------------------------

    def incoming(self, agent_id: int) -> IncomingFlow:
        """The flow of what this peer sends to our agent ``agent_id``."""
        flow = self._incoming.get(agent_id)
        if flow is None:
            flow = self._incoming[agent_id] = IncomingFlow(self, agent_id, self._window_bytes)
        return flow

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

    def _collect_acks(self) -> Acks:
        limits = [(agent_id, flow.window.grant()) for agent_id, flow in self._owed_credit.items()]
        acks = Acks(limits, _runs(self._owed_delivered), self._owed_refused)
        self._owed_credit, self._owed_delivered, self._owed_refused = {}, [], []
        return acks

    def handle_acks(self, acks: Acks) -> None:
        """Apply what the peer told us: new credit, and what became of messages we wait for."""
        for agent_id, limit_bytes in acks.limits:
            window = self._windows.get(agent_id)
            if window is not None and window.extend(limit_bytes):
                _wake(self._credit_waiters.pop(agent_id, []))
        for first, count in acks.delivered:
            # A peer can claim any count; only sequences that we wait for cost anything.
            if count > len(self.unacked):
                waiting = [s for s in self.unacked if first <= s < first + count]
            else:
                waiting = list(range(first, first + count))
            for sequence in waiting:
                self._settle(sequence, 0)
        for sequence, code in acks.refused:
            self._settle(sequence, code)

    def _settle(self, sequence: int, code: int) -> None:
        future = self.unacked.pop(sequence, None)
        if future is not None and not future.done():
            future.set_result(code)

    # --- end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """The link is gone: wake whoever waits; they see that the channel is closed."""
        self.is_open = False
        self._stuck.clear()
        self._open_bodies.clear()
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


def _runs(sequences: list[int]) -> list[tuple[int, int]]:
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


def _wake(waiters: list[asyncio.Future[None]]) -> None:
    for future in waiters:
        if not future.done():
            future.set_result(None)
    waiters.clear()
