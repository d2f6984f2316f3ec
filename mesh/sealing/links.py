"""The shell of end-to-end encryption: links whose bodies are sealed, for a courier that need not know.

:class:`SealedLinks` stands between the links and whoever uses them for agents' messages.  Above it a link is a link: as
long as there are no keys it is *full*, so messages wait where they wait for any full link, and what it shows has
been opened and is what that very peer sealed for this node.  Below it nothing but sealed bodies and statements about
keys leaves (``docs/protocol/e2e.md``).

Whether a link is sealed follows from the two hellos alone: it is if either side demands it, and always if other nodes
relay it, for then nothing else shows who is at its other end.  Both sides come to the same result, so a body in the
clear on a sealed link is no misunderstanding but a breach, and so is a body that does not open: the session is dropped,
the link closed, the reason counted and put on record.  Only on a relayed link it proves nothing, as any node on the way
could have done it: there it is dropped, counted and put on record, and the session stays.

Sessions outlast links: what a link leaves is parked for the next one to the same life of that node, unless that
left the network.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from gossip.incarnation import life_of
from mesh.errors import SealRefused
from transport.clock import Clock
from transport.errors import RemoteProtocolError
from transport.identity.audit import Scalar
from transport.identity.certificates import der
from transport.identity.credentials import Credentials
from transport.link import CloseReason, Link, LinkHandler, PeerInfo, SendOutcome
from transport.logs import get_logger
from transport.types import Address, Lane
from transport.wire import Envelope, Kind

from .chains import Limits
from .codec import CONFIRM
from .handshake import Entropy, Identity, Moment, Peer
from .pairing import ATTEMPT_S, SEALED_KINDS, Pairing
from .reasons import Reason, refused
from .session import Session

log = get_logger("mesh.sealing")

#: What a node that demands sealed bodies says in its hello.
FEATURE: Final = "e2e"

#: How often keys whose time is over are looked for.
SWEEP_S: Final = 60.0

#: Refusals on one relayed link after which another is better.  What was lost is not told to its sender and not given
#: back as credit, so a link that goes on losing would stand still in the end; the next one may take another way.
RELAYED_REFUSALS_MAX: Final = 16

#: Reasons of a close after which no link is expected.
_FINAL: Final = (CloseReason.LEAVING, CloseReason.VETOED)

#: Sessions kept for links to come, the oldest first to go; 6 KiB each.
PARKED_MAX: Final = 1_024

# What a named tuple's own constructor calls in the end; half its price, for every body.
_new_tuple: Final = tuple.__new__


class Note(Protocol):
    """Puts something on record; :meth:`transport.identity.trail.AuditTrail.note`."""

    def __call__(self, event: str, /, **fields: Scalar) -> None:
        """Record that ``event`` happened."""
        ...


def identity_of(credentials: Credentials, life: int) -> Identity:
    """What this life of a node proves itself with."""
    return Identity(
        credentials.network,
        credentials.node_id,
        life,
        der(credentials.certificate),
        credentials.tls_key,
        credentials.authority_certificate,
        credentials.expires_at.timestamp(),
    )


class SealedLink:
    """A link on which bodies are sealed; see :class:`transport.link.Link`.

    Args:
        inner: The link itself.
        pairing: Its keys.
        clock: Tells the time.
    """

    def __init__(self, inner: Link, pairing: Pairing, clock: Clock) -> None:
        self.inner = inner
        self.pairing = pairing
        self._clock = clock
        self._monotonic = clock.monotonic
        # Who waits for keys, once they or the link's end are there.
        self.waiting: list[asyncio.Future[None]] = []
        self.sealed = self.refused = 0

    def _now(self) -> Moment:
        return Moment(self._monotonic(), self._clock.wall())

    @property
    def peer(self) -> PeerInfo:
        """See :class:`transport.link.Link`."""
        return self.inner.peer

    @property
    def dialled(self) -> bool:
        """See :class:`transport.link.Link`."""
        return self.inner.dialled

    @property
    def is_relayed(self) -> bool:
        """See :class:`transport.link.Link`."""
        return self.inner.is_relayed

    @property
    def remote_address(self) -> Address:
        """See :class:`transport.link.Link`."""
        return self.inner.remote_address

    @property
    def is_open(self) -> bool:
        """See :class:`transport.link.Link`."""
        return self.inner.is_open

    @property
    def rtt_s(self) -> float | None:
        """See :class:`transport.link.Link`."""
        return self.inner.rtt_s

    @property
    def queued(self) -> int:
        """See :class:`transport.link.Link`."""
        return self.inner.queued

    def send(self, envelope: Envelope, lane: Lane, *, key: str | None = None) -> SendOutcome:
        """See :meth:`transport.link.Link.send`; full as long as there are no keys."""
        kind, ttl, source, target, body = envelope
        sealed = self.pairing.seal(kind, lane, body, self._monotonic())
        if sealed is None:
            if not self.inner.is_open:
                return SendOutcome.CLOSED
            self.pairing.want(self._now())
            self.flush()
            return SendOutcome.FULL
        self.sealed += 1
        outcome = self.inner.send(_new_tuple(Envelope, (Kind.SEALED, ttl, source, target, sealed)), lane, key=key)
        if self.pairing.outgoing:
            self.flush()
        return outcome

    def ask_turn(self, fill: Callable[[], None]) -> bool:
        """See :meth:`transport.link.Link.ask_turn`."""
        return self.inner.ask_turn(fill)

    async def wait_writable(self, lane: Lane) -> None:
        """See :meth:`transport.link.Link.wait_writable`."""
        while self.inner.is_open and not self.pairing.is_ready:
            self.pairing.want(self._now())
            self.flush()
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiting.append(future)
            try:
                # An offer that found no answer is repeated.
                await asyncio.wait([future], timeout=ATTEMPT_S)
            finally:
                if future in self.waiting:
                    self.waiting.remove(future)
        await self.inner.wait_writable(lane)

    def flush(self) -> None:
        """Send what key agreement wants sent."""
        for kind, body in self.pairing.take_outgoing():
            # Without room for it the link is about to end; until then the next attempt repeats it.
            self.inner.send(Envelope(kind, 1, None, None, body), Lane.CONTROL)

    def wake(self) -> None:
        """There are keys, or the link is closed."""
        waiting, self.waiting = self.waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def close(self, reason: CloseReason = CloseReason.NORMAL, detail: str = "") -> None:
        """See :meth:`transport.link.Link.close`."""
        self.inner.close(reason, detail)

    def statistics(self) -> dict[str, int | float]:
        """See :meth:`transport.link.Link.statistics`."""
        return self.inner.statistics()


class SealedLinks:
    """Seals what a handler sends on links, and opens what it is shown; see :class:`transport.link.LinkHandler`.

    Args:
        identity: This node.
        handler: Who uses the links.
        required: Whether this node demands sealed bodies; where only the other side does, they are sealed as well.
        clock: Monotonic time ends epochs, wall time judges certificates.
        note: Puts refusals on record.
        entropy: Where secrets come from.
        limits: How long keys live.
    """

    def __init__(
        self,
        identity: Identity,
        handler: LinkHandler,
        *,
        required: bool,
        clock: Clock,
        note: Note,
        entropy: Entropy = secrets.token_bytes,
        limits: Limits | None = None,
    ) -> None:
        self._identity = identity
        self._handler = handler
        self._required = required
        self._clock = clock
        self._note = note
        self._entropy = entropy
        self._limits = limits or Limits()
        self._links: dict[Link, SealedLink] = {}
        # By node, the oldest first: the life it is with, the session, and when it was left.
        self._parked: dict[str, tuple[int, Session, float]] = {}
        self._sweep_timer: asyncio.TimerHandle | None = None
        self.counters: dict[str, int] = dict.fromkeys(("bodies_sealed", "bodies_opened", "handshakes"), 0)

    def renewed(self, identity: Identity) -> None:
        """This node has a new certificate; sessions to come are agreed on with it."""
        self._identity = identity

    def of(self, link: Link) -> Link:
        """The link as the handler knows it."""
        return self._links.get(link, link)

    # --- what links tell (LinkHandler) --------------------------------------------------------------------------

    def link_opened(self, link: Link) -> None:
        """A link is up."""
        if not (self._required or link.is_relayed or FEATURE in link.peer.features):
            self._handler.link_opened(link)
            return
        peer = Peer(link.peer.node_id, life_of(link.peer.incarnation))
        life, session, _ = self._parked.pop(peer.node_id, (-1, None, 0.0))
        pairing = Pairing(
            lambda: self._identity,
            peer,
            session if life == peer.life else None,
            entropy=self._entropy,
            now=self._now(),
            limits=self._limits,
        )
        sealed = self._links[link] = SealedLink(link, pairing, self._clock)
        if self._sweep_timer is None:
            self._schedule_sweep()
        self._handler.link_opened(sealed)
        sealed.flush()

    def link_closed(self, link: Link, reason: CloseReason, detail: str) -> None:
        """A link is gone; its session waits for the next one."""
        sealed = self._links.pop(link, None)
        if sealed is None:
            self._handler.link_closed(link, reason, detail)
            return
        self._count(sealed)
        if reason not in _FINAL and (session := sealed.pairing.park()) is not None:
            peer = sealed.pairing.peer
            self._parked.pop(peer.node_id, None)
            self._parked[peer.node_id] = peer.life, session, self._clock.monotonic()
            if len(self._parked) > PARKED_MAX:
                del self._parked[next(iter(self._parked))]
        self._handler.link_closed(sealed, reason, detail)
        sealed.wake()

    def forget(self, node_id: str) -> None:
        """A node is no member any more: no link to it is expected."""
        self._parked.pop(node_id, None)

    def envelopes_received(self, link: Link, envelopes: Sequence[Envelope]) -> None:
        """Envelopes arrived: open them, or see to keys.

        Raises:
            SealRefused: One of them does not hold what it must, and only the peer can have made it; the link is closed.
            RemoteProtocolError: The handler refused one, or one is sealed that should not be.
        """
        sealed = self._links.get(link)
        if sealed is None:
            if any(envelope.kind == Kind.SEALED for envelope in envelopes):
                raise RemoteProtocolError("a sealed body where neither side asked for it")
            self._handler.envelopes_received(link, envelopes)
            return
        opened = self._open(sealed, envelopes)
        if sealed.pairing.outgoing:
            sealed.flush()
        if sealed.waiting and sealed.pairing.is_ready:
            sealed.wake()
        if opened:
            self._handler.envelopes_received(sealed, opened)

    def _open(self, sealed: SealedLink, envelopes: Sequence[Envelope]) -> list[Envelope]:
        pairing, now = sealed.pairing, self._clock.monotonic()
        opened: list[Envelope] = []
        for envelope in envelopes:
            kind, ttl, source, target, body = envelope
            try:
                if kind == Kind.SEALED:
                    inner, content = pairing.open(body, now)
                    if inner != CONFIRM:
                        opened.append(_new_tuple(Envelope, (inner, ttl, source, target, content)))
                elif kind == Kind.KEYS:
                    pairing.keys_received(body, self._now())
                elif kind in SEALED_KINDS:
                    raise refused(Reason.CLEAR, f"{pairing.peer.node_id} sent a body of kind {kind} in the clear")
                else:
                    opened.append(envelope)
            except SealRefused as error:
                self._refuse(sealed, error)
                if not sealed.is_relayed:
                    pairing.abandon()
                    raise
        self.counters["bodies_opened"] += len(opened)
        return opened

    def _refuse(self, sealed: SealedLink, error: SealRefused) -> None:
        """Count, tell and put on record."""
        peer = sealed.pairing.peer.node_id
        name = f"refused_{error.reason}"
        self.counters[name] = self.counters.get(name, 0) + 1
        log.warning("sealed body refused", peer=peer, reason=error.reason, text=error.message)
        self._note("end-to-end refusal", peer=peer, reason=error.reason, text=error.message)
        sealed.refused += 1
        if sealed.is_relayed and sealed.refused == RELAYED_REFUSALS_MAX:
            sealed.close(CloseReason.NORMAL, "much of what came over relays was not genuine")

    # --- time ---------------------------------------------------------------------------------------------------

    def _now(self) -> Moment:
        return Moment(self._clock.monotonic(), self._clock.wall())

    def _schedule_sweep(self) -> None:
        self._sweep_timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Erase keys whose time is over, of links that are up and of sessions that wait for one."""
        now = self._now()
        for sealed in self._links.values():
            sealed.pairing.sweep(now)
            sealed.flush()
        for name, (_, session, parked_at) in list(self._parked.items()):
            if now.monotonic - parked_at >= self._limits.park_s:
                del self._parked[name]
            else:
                session.sweep(now.monotonic)
        self._schedule_sweep()

    def close(self) -> None:
        """Stop, and forget all keys."""
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        self._parked.clear()

    def _count(self, sealed: SealedLink) -> None:
        self.counters["bodies_sealed"] += sealed.sealed
        self.counters["handshakes"] += sealed.pairing.handshakes
        sealed.sealed = sealed.pairing.handshakes = 0

    def statistics(self) -> dict[str, int]:
        """Counters since the start, refusals by reason among them, and what there is now."""
        for sealed in self._links.values():
            self._count(sealed)
        return {
            **self.counters,
            "sessions": sum(1 for sealed in self._links.values() if sealed.pairing.is_ready),
            "sessions_parked": len(self._parked),
            "links_sealed": len(self._links),
        }
