"""A link over any channel: the shell that runs a session, its lanes and its two tasks.

A *channel* carries whole frames between two authenticated nodes: a WebSocket, a pair of in-memory queues, a simulated
wire.  Everything else that makes it a link is here and therefore the same for all of them.

A link has two tasks.  The receiver decodes a frame, hands session envelopes to the session core and the others to the
handler, as one list, without a queue or a task in between.  The sender sleeps on one future; ``send`` wakes it, and by
the time the loop runs it, everything queued in the same turn of the loop goes into one frame.  There are no timers
here: the endpoint ticks all of its links from one (:mod:`transport.endpoint`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from . import session as core
from .errors import LinkClosed, LocalProtocolError, RemoteProtocolError
from .link import CloseReason, PeerInfo, SendOutcome
from .logs import get_logger
from .queues import LaneQueues
from .types import Address, Lane, NodeId
from .wire import SESSION_KINDS, Envelope, Hello, check_sendable, decode_frame, encode_frame

if TYPE_CHECKING:
    from .endpoint import BaseEndpoint

log = get_logger("mesh.transport")


class ChannelClosed(Exception):
    """The channel ended; ``code`` is the close code, or 1006 if there was none.

    ``by_peer``: it was the peer's decision, not the channel's own, which may have found the peer out.
    """

    def __init__(self, code: int, detail: str = "", *, by_peer: bool = True) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail
        self.by_peer = by_peer


class Channel(Protocol):
    """Whole frames, in order, to and from one authenticated peer."""

    @property
    def remote_address(self) -> Address:
        """Where the channel goes."""
        ...

    async def send(self, frame: bytes) -> None:
        """Hand over one frame; returns when another may follow (backpressure).

        Raises:
            ChannelClosed: The channel ended.
        """
        ...

    async def receive(self) -> bytes:
        """The next frame.

        Raises:
            ChannelClosed: The channel ended.
            RemoteProtocolError: The peer sent something that is not a frame.
        """
        ...

    async def close(self, code: int, detail: str) -> None:
        """Close in order, after what was sent; the caller bounds the time."""
        ...

    def abort(self) -> None:
        """Cut the channel now; ``send`` and ``receive`` raise.  Harmless when it already ended."""
        ...


def close_reason(code: int) -> CloseReason:
    """The reason that a close code stands for; codes of strangers count as ``NORMAL``."""
    try:
        return CloseReason(code)
    except ValueError:
        return CloseReason.NORMAL


class ChannelLink:
    """A :class:`~transport.link.Link` over a :class:`Channel`."""

    __slots__ = (
        "__weakref__",
        "_channel",
        "_endpoint",
        "_fill",
        "_finished",
        "_peer",
        "_queues",
        "_reason",
        "_sender",
        "_session",
        "_size_max",
        "_wake",
        "_writable",
        "bytes_received",
        "bytes_sent",
        "decided",
        "dialled",
        "envelopes_received",
        "envelopes_sent",
        "expires_s",
        "frames_received",
        "frames_sent",
        "is_open",
        "refused_by_peer",
    )

    def __init__(
        self,
        endpoint: BaseEndpoint,
        channel: Channel,
        ours: Hello,
        certified: NodeId,
        *,
        dialled: bool,
        expected: NodeId | None = None,
        since_s: float | None = None,
    ) -> None:
        config = endpoint.config
        self._endpoint = endpoint
        self._channel = channel
        began_s = endpoint.clock.monotonic() if since_s is None else since_s
        self._session = core.Session(ours, certified, expected, config, began_s)
        self._queues = LaneQueues(config.lane_envelopes_max, config.lane_bytes_max)
        self._peer: PeerInfo | None = None
        self._size_max = 0
        self._wake: asyncio.Future[None] | None = None
        self._fill: Callable[[], None] | None = None
        # At most one entry for each caller that waits for room.
        self._writable: list[tuple[Lane, asyncio.Future[None]]] = []
        self._reason: tuple[CloseReason, str] | None = None
        self._sender: asyncio.Task[None] | None = None
        self._finished = False
        self.is_open = False
        self.dialled = dialled
        self.expires_s = math.inf
        """When what admitted the peer ends, seconds since the epoch; the endpoint closes the link then."""
        self.decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the link opened or failed to."""
        self.refused_by_peer = False
        """Whether the reason for the close is the peer's."""
        self.frames_sent = self.frames_received = 0
        self.bytes_sent = self.bytes_received = 0
        self.envelopes_sent = self.envelopes_received = 0

    def __repr__(self) -> str:
        direction = "to" if self.dialled else "from"
        return f"<link {direction} {self.certified} {self._session.state.value}>"

    # What the layers above use: see :class:`transport.link.Link`.

    @property
    def peer(self) -> PeerInfo:
        """See :class:`transport.link.Link`."""
        assert self._peer is not None, "a link is shown to nobody before it is open"
        return self._peer

    @property
    def is_relayed(self) -> bool:
        """See :class:`transport.link.Link`."""
        return self._endpoint.is_relayed

    @property
    def remote_address(self) -> Address:
        """See :class:`transport.link.Link`."""
        return self._channel.remote_address

    @property
    def rtt_s(self) -> float | None:
        """See :class:`transport.link.Link`."""
        return self._session.rtt_s

    @property
    def queued(self) -> int:
        """See :class:`transport.link.Link`."""
        return self._queues.length

    def send(self, envelope: Envelope, lane: Lane, *, key: str | None = None) -> SendOutcome:
        """See :class:`transport.link.Link`."""
        if not self.is_open:
            return SendOutcome.CLOSED
        if check_sendable(envelope) > self._size_max:
            raise LocalProtocolError(f"envelope of {len(envelope.body)} bytes exceeds what {self.certified} accepts")
        if not self._queues.put(envelope, lane, key):
            return SendOutcome.FULL
        self._wake_sender()
        return SendOutcome.ACCEPTED

    def ask_turn(self, fill: Callable[[], None]) -> bool:
        """See :class:`transport.link.Link`."""
        self._fill = fill
        self._wake_sender()
        return True

    def _wake_sender(self) -> None:
        wake = self._wake
        if wake is not None:
            self._wake = None
            if not wake.done():
                wake.set_result(None)

    async def wait_writable(self, lane: Lane) -> None:
        """See :class:`transport.link.Link`."""
        while self.is_open and not self._queues.has_room(lane):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            entry = (lane, waiter)
            self._writable.append(entry)
            try:
                await waiter
            finally:
                if entry in self._writable:
                    self._writable.remove(entry)
        if not self.is_open:
            raise LinkClosed(f"the link to {self.certified} is closed")

    def close(self, reason: CloseReason = CloseReason.NORMAL, detail: str = "") -> None:
        """See :class:`transport.link.Link`."""
        self._handle(core.CloseWanted(reason, detail))

    def statistics(self) -> dict[str, int | float]:
        """See :class:`transport.link.Link`."""
        queues = self._queues
        counters: dict[str, int | float] = {
            "frames_sent": self.frames_sent,
            "frames_received": self.frames_received,
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            "envelopes_sent": self.envelopes_sent,
            "envelopes_received": self.envelopes_received,
            "refused_full": queues.refused,
            "replaced": queues.replaced,
            "dropped_on_close": queues.dropped,
        }
        for lane, length in zip(Lane, queues.lengths(), strict=True):
            counters[f"queued_{lane.name.lower()}"] = length
        if self._session.rtt_s is not None:
            counters["rtt_s"] = self._session.rtt_s
        return counters

    # What the endpoint uses.

    @property
    def certified(self) -> NodeId:
        """The node that the peer's certificate names."""
        return self._session.certified

    @property
    def hello(self) -> Hello | None:
        """What the peer said, once it passed the checks."""
        return self._session.hello

    @property
    def finished(self) -> bool:
        """Whether it is over, and the handler was told."""
        return self._finished

    @property
    def reason(self) -> tuple[CloseReason, str]:
        """Why it is over."""
        return self._reason or (CloseReason.CONNECTION_LOST, "")

    def ping(self) -> None:
        """Ask the peer for a sign of life now."""
        if self.is_open:
            self._execute(self._session.ping(self._endpoint.clock.monotonic()))

    def admit(self) -> None:
        """The endpoint wants this link."""
        self._handle(core.Admitted())

    def tick(self, event: core.Ticked, now: float) -> None:
        """Time passed."""
        if effects := self._session.handle(event, now):
            self._execute(effects)

    async def run(self) -> None:
        """Live: returns when the connection is gone and the handler was told."""
        try:
            self._handle(core.Started())
            self._sender = self._endpoint.tasks.spawn(self._send_frames(), name=f"send to {self.certified}")
            while True:
                self._received(await self._channel.receive())
        except ChannelClosed as closed:
            self._lost(closed.code, closed.detail, by_peer=closed.by_peer)
        except RemoteProtocolError as error:
            await self._fail(error)
        finally:
            # Also when this task is cancelled, or the code above is wrong: no handler is left with a dead link.
            self.finish(CloseReason.CONNECTION_LOST, "")

    def finish(self, reason: CloseReason, detail: str) -> None:
        """End now, whatever is queued or under way: cut the channel and tell everybody.  Idempotent."""
        if self._finished:
            return
        self._finished = True
        was_open, self.is_open = self._peer is not None, False
        if self._reason is None:
            self._reason = (reason, detail)
        self._session.handle(core.ConnectionLost(reason), self._endpoint.clock.monotonic())
        self._channel.abort()
        self._queues.drop()
        if self._sender is not None:
            self._sender.cancel()
        self._wake_writers()
        if not self.decided.done():
            self.decided.set_result(None)
        self._endpoint.link_finished(self, was_open=was_open)

    # Receiving.

    def _received(self, data: bytes) -> None:
        """One frame arrived."""
        session = self._session
        self.frames_received += 1
        self.bytes_received += len(data)
        session.heard(self._endpoint.clock.monotonic())
        if session.state is core.SessionState.CLOSING:
            return
        try:
            envelopes = decode_frame(data)
            self.envelopes_received += len(envelopes)
            if self.is_open:
                for envelope in envelopes:
                    if envelope[0] < SESSION_KINDS:
                        break
                else:
                    self._endpoint.deliver(self, envelopes)
                    return
            self._received_mixed(envelopes)
        except RemoteProtocolError as error:
            self._handle(core.CloseWanted(error.code, error.message))

    def _received_mixed(self, envelopes: list[Envelope]) -> None:
        """A frame with session envelopes in it, or one that arrived before the link was open."""
        rest: list[Envelope] = []
        for envelope in envelopes:
            if envelope.kind < SESSION_KINDS or not self.is_open:
                self._handle(core.Received(envelope))
            else:
                rest.append(envelope)
        if rest and self.is_open:
            self._endpoint.deliver(self, rest)

    async def _fail(self, error: RemoteProtocolError) -> None:
        """The channel itself found the peer out; it can still be told why."""
        self._handle(core.CloseWanted(error.code, error.message))
        if self._sender is not None:
            await asyncio.wait([self._sender])
        self._lost(error.code, error.message)

    def _lost(self, code: int, detail: str, *, by_peer: bool = True) -> None:
        """The channel ended; find out why."""
        if self._reason is None:
            bye = self._session.bye
            self.refused_by_peer = bye is not None or (by_peer and code != CloseReason.CONNECTION_LOST)
            if bye is not None:
                code, detail = bye
            self._reason = (close_reason(code), detail)
        self.finish(*self._reason)

    # Sending.

    async def _send_frames(self) -> None:
        """Send whatever is queued, one frame at a time, until told to close."""
        queues, channel, session, config = self._queues, self._channel, self._session, self._endpoint.config
        clock, loop = self._endpoint.clock, asyncio.get_running_loop()
        envelopes_max, bytes_max = config.frame_envelopes_target, config.frame_bytes_target
        try:
            while True:
                if self._fill is not None:
                    fill, self._fill = self._fill, None
                    fill()
                if not queues.length:
                    if self._reason is not None:
                        break
                    self._wake = loop.create_future()
                    await self._wake
                    continue
                envelopes = queues.take(envelopes_max, bytes_max)
                frame = encode_frame(envelopes)
                self.frames_sent += 1
                self.bytes_sent += len(frame)
                self.envelopes_sent += len(envelopes)
                await channel.send(frame)
                session.sent(clock.monotonic())
                if self._writable:
                    self._wake_writers()
            code, detail = self._reason
            async with asyncio.timeout(config.close_timeout_s):
                await channel.close(code, detail)
        except ChannelClosed:
            # The receiver sees it as well, knows more about why, and ends the link.
            return
        except TimeoutError:
            channel.abort()

    def _wake_writers(self) -> None:
        """Wake those whose lane has room, or all if the link is closed."""
        for lane, waiter in self._writable:
            if not waiter.done() and (not self.is_open or self._queues.has_room(lane)):
                waiter.set_result(None)

    # The session.

    def _handle(self, event: core.Event) -> None:
        self._execute(self._session.handle(event, self._endpoint.clock.monotonic()))

    def _execute(self, effects: list[core.Effect]) -> None:
        for effect in effects:
            match effect:
                case core.Send(envelope):
                    # If the control lane is full the peer reads nothing, and what is lost is a ping or a pong.
                    self._queues.put(envelope, Lane.CONTROL)
                case core.Judge():
                    self._endpoint.judge(self)
                case core.Open():
                    self._open()
                case core.Close(code, detail):
                    self._reason = (close_reason(code), detail)
                    self.is_open = False
                    self._queues.drop()
                    self._wake_writers()
                case core.Abort(code, detail):
                    self.finish(close_reason(code), detail)
        if effects:
            self._wake_sender()

    def _open(self) -> None:
        session, hello = self._session, self._session.hello
        assert hello is not None, "the session opens only after a hello"
        self._size_max = hello.frame_bytes_max
        self._peer = PeerInfo(
            node_id=hello.node_id,
            incarnation=hello.incarnation,
            addresses=hello.addresses,
            version=session.version,
            features=dict.fromkeys(hello.features, True),
        )
        self.is_open = True
        self._endpoint.link_opened(self)
        if not self.decided.done():
            self.decided.set_result(None)
