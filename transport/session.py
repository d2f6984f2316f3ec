"""The session of one link: hello, agreement to open, keepalive, goodbye.  A core: no I/O, time is an argument.

::

    state       what happens                                                     next
    ---------   --------------------------------------------------------------   ---------
    HELLO       peer's hello is wrong                                            CLOSING
                peer's hello is right; we are the follower                       JUDGING   Judge
                peer's hello is right; we are the arbiter                        FOLLOWED
    FOLLOWED    ACCEPT (the follower agrees)                                     JUDGING   Judge
    JUDGING     Admitted; we are the follower                                    ACCEPTED  Send ACCEPT
                Admitted; we are the arbiter                                     OPEN      Send ACCEPT, Open
                Refused                                                          CLOSING   Close
    ACCEPTED    ACCEPT (the arbiter agrees)                                      OPEN      Open
    OPEN        PING                                                             OPEN      Send PONG
                PONG, BYE                                                        OPEN
                silence for the keepalive timeout                                CLOSED    Abort
    any         CloseWanted, or the peer breaks the protocol                     CLOSING   Close
    not OPEN    handshake timeout, close timeout                                 CLOSED    Abort
    any         ConnectionLost                                                   CLOSED

Why two ACCEPTs.  Two nodes may dial each other at once, and each side sees the two connections in its own order, so a
rule that each applies alone can discard an envelope: one side sends on the connection that the other throws away.
Here the node with the smaller id is the *arbiter* of the pair, and only its view counts.  The other, the *follower*,
says ACCEPT when it has no objection; the arbiter, hearing that, decides in one place and at one moment, and its own
ACCEPT is the decision.  Nothing but the session's own envelopes travels before it, so a connection that is discarded
never carried anything.  (TCP's simultaneous open and Serf solve this by tolerating two; libp2p by a tie-break nonce.)

Liveness is what is *heard*: any frame counts.  A ping goes out when nothing was sent or nothing was received for the
keepalive interval.  The first half matters under congestion: a node whose direction is silent speaks up by itself, so a
peer that is blocked in sending to it still hears it.  Timeouts never wait for our own sending,
which may be what is stuck.
"""

# core: no I/O

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from .config import LinkConfig
from .errors import RemoteProtocolError
from .link import CloseReason
from .types import NodeId
from .wire import (
    NONCE_BYTES_MAX,
    Envelope,
    Hello,
    Kind,
    decode_bye,
    decode_hello,
    encode_bye,
    encode_hello,
    negotiate,
)

#: A ping goes out at the opening, and at least every so many keepalive intervals, to measure the round trip.
MEASURE_INTERVALS: Final = 8


class SessionState(enum.Enum):
    """Where a session stands; see the table above."""

    HELLO = "hello"
    FOLLOWED = "followed"
    JUDGING = "judging"
    ACCEPTED = "accepted"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


# --- events ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The connection is up and the peer's certificate verified."""


@dataclass(frozen=True, slots=True)
class Received:
    """An envelope of a session kind arrived; or of another kind before the link was open."""

    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Admitted:
    """The endpoint has nothing against the link (answer to :class:`Judge`)."""


@dataclass(frozen=True, slots=True)
class CloseWanted:
    """This side wants to close, or refuses the link (answer to :class:`Judge`)."""

    code: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time passed.  ``excused_s``: how long this process itself did not run, which is not the peer's silence."""

    excused_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """The connection is gone; the close code that the peer gave, or 1006."""

    code: int
    detail: str = ""


Event = Started | Received | Admitted | CloseWanted | Ticked | ConnectionLost


# --- effects --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Queue an envelope in the control lane."""

    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Judge:
    """Decide whether to have this link; answer with :class:`Admitted` or :class:`CloseWanted`."""


@dataclass(frozen=True, slots=True)
class Open:
    """Both sides agreed: tell the handler, deliver what follows."""


@dataclass(frozen=True, slots=True)
class Close:
    """Flush the control lane, then close the connection with this code."""

    code: int
    detail: str


@dataclass(frozen=True, slots=True)
class Abort:
    """Cut the connection at once, without waiting for anything."""

    code: int
    detail: str


Effect = Send | Judge | Open | Close | Abort


class Session:
    """One link's session.

    Args:
        ours: What this side says.
        certified: The node id that the peer's certificate proves.
        expected: Whom this side meant to dial, if it dialled somebody in particular.
        config: Timing.
        now: Monotonic seconds.
    """

    __slots__ = (
        "_config",
        "_expected",
        "_heard_s",
        "_pinged_s",
        "_pings",
        "_sent_s",
        "_since_s",
        "bye",
        "certified",
        "hello",
        "ours",
        "rtt_s",
        "state",
        "version",
    )

    def __init__(self, ours: Hello, certified: NodeId, expected: NodeId | None, config: LinkConfig, now: float) -> None:
        self.ours = ours
        self.certified = certified
        """The node id that the peer's certificate proves."""
        self._expected = expected
        self._config = config
        self.state = SessionState.HELLO
        self.hello: Hello | None = None
        """What the peer said, once it passed the checks."""
        self.version = (0, 0)
        self.rtt_s: float | None = None
        self.bye: tuple[int, str] | None = None
        """The reason that the peer gave for the close that follows."""
        self._since_s = now
        self._heard_s = now
        self._sent_s = now
        self._pinged_s = now
        self._pings = 0

    @property
    def is_arbiter(self) -> bool:
        """Whether this side decides which of several connections is the link."""
        return self.ours.node_id < self.certified

    # Fast path: what happens on each frame of an open link.

    def heard(self, now: float) -> None:
        """A frame arrived, whatever is in it."""
        self._heard_s = now

    def sent(self, now: float) -> None:
        """A frame was handed to the connection."""
        self._sent_s = now

    # Everything else.

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; returns the effects in the order in which they must be executed."""
        if self.state is SessionState.CLOSED:
            return []
        match event:
            case Started():
                return [Send(encode_hello(self.ours))]
            case Received(envelope):
                return self._received(envelope, now)
            case Admitted():
                return self._admitted(now)
            case CloseWanted(code, detail):
                return self._close(code, detail, now)
            case Ticked(excused_s):
                return self._ticked(excused_s, now)
        # ConnectionLost, the only event left.
        self.state = SessionState.CLOSED
        return []

    def ping(self, now: float) -> list[Effect]:
        """Ask the peer for a sign of life now."""
        self._pings += 1
        self._pinged_s = now
        return [Send(Envelope(Kind.PING, 0, None, None, self._pings.to_bytes(8, "big")))]

    # Receiving.

    def _received(self, envelope: Envelope, now: float) -> list[Effect]:
        if self.state is SessionState.CLOSING:
            # The peer does not know yet.  What it gives as its own reason does not matter any more.
            return []
        try:
            if self.state is SessionState.OPEN:
                return self._received_open(envelope, now)
            return self._received_early(envelope, now)
        except RemoteProtocolError as error:
            return self._close(error.code, error.message, now)

    def _received_early(self, envelope: Envelope, now: float) -> list[Effect]:
        kind = envelope.kind
        if kind == Kind.BYE:
            self.bye = decode_bye(envelope)
            return []
        if self.state is SessionState.HELLO:
            self.hello = self._checked(decode_hello(envelope))
            if self.is_arbiter:
                self.state = SessionState.FOLLOWED
                return []
            self.state = SessionState.JUDGING
            return [Judge()]
        if kind == Kind.ACCEPT and self.state is SessionState.FOLLOWED:
            self.state = SessionState.JUDGING
            return [Judge()]
        if kind == Kind.ACCEPT and self.state is SessionState.ACCEPTED:
            return self._open(now)
        raise RemoteProtocolError(f"envelope of kind {kind} before the link was open")

    def _received_open(self, envelope: Envelope, now: float) -> list[Effect]:
        kind, body = envelope.kind, envelope.body
        if kind == Kind.PING:
            if len(body) > NONCE_BYTES_MAX:
                raise RemoteProtocolError(f"ping nonce of {len(body)} bytes exceeds {NONCE_BYTES_MAX}")
            return [Send(Envelope(Kind.PONG, 0, None, None, body))]
        if kind == Kind.PONG:
            if body == self._pings.to_bytes(8, "big"):
                self.rtt_s = max(0.0, now - self._pinged_s)
            return []
        if kind == Kind.BYE:
            self.bye = decode_bye(envelope)
            return []
        if kind in {Kind.HELLO, Kind.ACCEPT}:
            raise RemoteProtocolError(f"envelope of kind {kind} on an open link")
        # A session kind of a later version: not for us.
        return []

    def _checked(self, hello: Hello) -> Hello:
        """The peer's hello, if it is who its certificate says, in our network, and speaks our version.

        Raises:
            RemoteProtocolError: It is not; the code says what is wrong.
        """
        if hello.network != self.ours.network:
            raise RemoteProtocolError(
                f"this is network {self.ours.network}, not {hello.network}", code=CloseReason.WRONG_NETWORK
            )
        if hello.node_id != self.certified:
            raise RemoteProtocolError(
                f"hello names node {hello.node_id}, the certificate {self.certified}",
                code=CloseReason.IDENTITY_MISMATCH,
            )
        if self._expected is not None and hello.node_id != self._expected:
            raise RemoteProtocolError(
                f"node {hello.node_id} answered where {self._expected} was expected",
                code=CloseReason.IDENTITY_MISMATCH,
            )
        if hello.node_id == self.ours.node_id:
            same_process = hello.incarnation >> 16 == self.ours.incarnation >> 16
            raise RemoteProtocolError(
                f"node {hello.node_id} dialled itself" if same_process else f"another process is node {hello.node_id}",
                code=CloseReason.SELF if same_process else CloseReason.DUPLICATE_NODE,
            )
        self.version = negotiate(self.ours, hello)
        return hello

    # Deciding.

    def _admitted(self, now: float) -> list[Effect]:
        if self.state is not SessionState.JUDGING:
            # Closed while the endpoint was thinking.
            return []
        accept = Send(Envelope(Kind.ACCEPT, 0, None, None, b""))
        if self.is_arbiter:
            return [accept, *self._open(now)]
        self.state = SessionState.ACCEPTED
        return [accept]

    def _open(self, now: float) -> list[Effect]:
        self.state = SessionState.OPEN
        self._heard_s = self._sent_s = now
        return [Open(), *self.ping(now)]

    # Ending.

    def _close(self, code: int, detail: str, now: float) -> list[Effect]:
        if self.state is SessionState.CLOSING:
            return []
        self.state = SessionState.CLOSING
        self._since_s = now
        return [Send(encode_bye(code, detail)), Close(code, detail)]

    def _abort(self, detail: str) -> list[Effect]:
        self.state = SessionState.CLOSED
        return [Abort(CloseReason.TIMED_OUT, detail)]

    def _ticked(self, excused_s: float, now: float) -> list[Effect]:
        config = self._config
        self._heard_s = min(now, self._heard_s + excused_s)
        if self.state is SessionState.OPEN:
            silent_s = now - self._heard_s
            if silent_s >= config.keepalive_timeout_s:
                return self._abort(f"nothing heard for {silent_s:.1f} s")
            interval_s = config.keepalive_interval_s
            since_ping_s = now - self._pinged_s
            quiet = silent_s >= interval_s or now - self._sent_s >= interval_s
            if (quiet and since_ping_s >= interval_s) or since_ping_s >= MEASURE_INTERVALS * interval_s:
                return self.ping(now)
            return []
        if self.state is SessionState.CLOSING:
            if now - self._since_s >= config.close_timeout_s:
                return self._abort("the peer did not answer the close")
            return []
        if now - self._since_s >= config.handshake_timeout_s:
            return self._abort(f"handshake not finished after {config.handshake_timeout_s:g} s")
        return []
