"""Two nodes on their way to a session, and from one session to the next.

Core: no I/O.  One pairing for each link; it takes over the session that an earlier link left, if there is one, and
leaves its own to the next.  What it wants sent is fetched with :meth:`Pairing.take_outgoing` after each call.

States, as far as they can be seen from outside: *idle* (nobody wants anything yet), *offered*, *answered* (the other
side has to show that the offer was its own and fresh), *ready*.  Two rules carry the rest:

- A side seals with a session only after the other one has *shown on this link* that it holds it: by its answer, or by
  any body that opens.  So nothing is ever sealed for keys that were lost with a restart, or for an offer that
  somebody replayed.  To show it without having anything to say there is a body without content, :data:`CONFIRM`.
- A new session never pushes out the old one before that: both open for a while, and traffic does not stop.

When both offer at once, the offer of the smaller node id counts.  An offer that is said again gets the same answer
again, so that neither slow links nor impatience make more sessions than one.
"""
# core: no I/O

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mesh.errors import SealRefused
from transport.types import Lane
from transport.wire import Kind

from .chains import Limits
from .codec import CONFIRM, Answer, Offer, Signed, Unknown, decode_keys, encode_unknown, read_header
from .handshake import Entropy, Identity, Moment, OpenOffer, Peer, accept_answer, answer_offer, make_offer
from .reasons import Reason, refused
from .session import Session

#: How long an offer, an answer or a shown session is waited on before there is a new offer.
ATTEMPT_S: Final = 1.0

# An offer costs its receiver half a millisecond of signatures: so many at once, and one more each second.
_OFFERS_MAX: Final = 16

#: Kinds of what agents say to each other and what belongs to it.  They travel sealed, others never.
SEALED_KINDS: Final = range(32, 48)
_INSIDE: Final = frozenset({CONFIRM, *SEALED_KINDS}) - {Kind.SEALED, Kind.KEYS}


class Pairing:
    """The keys of one link.

    Args:
        identity: Tells this node's current identity; certificates are renewed.
        peer: Who is at the other end, as the link authenticated it.
        session: What an earlier link between the same two lives left.
        entropy: Where secrets come from.
        now: The time.
        limits: How long keys live.
    """

    def __init__(
        self,
        identity: Callable[[], Identity],
        peer: Peer,
        session: Session | None,
        *,
        entropy: Entropy,
        now: Moment,
        limits: Limits,
    ) -> None:
        self._identity = identity
        self.peer = peer
        self._entropy = entropy
        self._limits = limits
        self._current: Session | None = None
        # Whether the other side has shown on this link that it holds the current session.
        self._is_shown = False
        # The session before, which still opens what is under way, and until when.
        self._previous: Session | None = None
        self._previous_until = 0.0
        # Of which the other side has shown nothing yet, the offer that it came of, and our answer.
        self._answered: Session | None = None
        self._answered_offer = self._answer = b""
        self._offer: OpenOffer | None = None
        self._attempt_at = now.monotonic
        self._is_wanted = False
        self._offers_left = float(_OFFERS_MAX)
        self._offers_at = now.monotonic
        # What waits to be taken: bounded, since each call adds at most two.
        self.outgoing: list[tuple[Kind, bytes]] = []
        self.handshakes = 0
        if session is not None and not _is_over(session, now):
            self._current = session
            self._confirm(session, now.monotonic)

    # --- what this side wants -----------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether bodies can be sealed."""
        return self._current is not None and self._is_shown

    def want(self, now: Moment) -> None:
        """Something waits to be sealed: see to a session, unless one is on its way."""
        self._is_wanted = True
        if not self.is_ready and not self._is_waiting(now):
            self._make_offer(now.monotonic)

    def seal(self, kind: int, lane: Lane, body: bytes, now: float) -> bytes | None:
        """Seal a body; ``None`` if there is no session for it (yet): then :meth:`want` one.

        Args:
            kind: What the body is.
            lane: Which lane it will take.
            body: What to seal.
            now: Monotonic seconds; the other methods want to know the date as well.
        """
        session = self._current
        if session is None or not self._is_shown:
            return None
        if now >= session.renew_at:
            if now >= session.spent_at:
                self._drop_current()
                return None
            self._renew(session, now)
        try:
            return session.sealing.seal(kind, lane, body, now)
        except SealRefused:  # it has no epochs left
            self._drop_current()
            return None

    def take_outgoing(self) -> list[tuple[Kind, bytes]]:
        """What has to be sent in the control lane, in order: kind and body of each envelope."""
        outgoing, self.outgoing = self.outgoing, []
        return outgoing

    def sweep(self, now: Moment) -> None:
        """Erase keys whose time is over; call this about once a minute."""
        if self._previous is not None and now.monotonic >= self._previous_until:
            self._previous = None
        if now.monotonic >= self._attempt_at + self._limits.grace_s:
            self._offer = self._answered = None
        if self._current is not None and _is_over(self._current, now):
            self._drop_current()
        for session in (self._current, self._previous, self._answered):
            if session is not None and session.sweep(now.monotonic) and session is self._current and self._is_shown:
                self._confirm(session, now.monotonic)

    def park(self) -> Session | None:
        """The link is gone: what the next one may take up."""
        return self._current

    def abandon(self) -> None:
        """The other side broke the rules: forget every key."""
        self._drop_current()
        self._previous = self._answered = self._offer = None

    # --- what the other side says -------------------------------------------------------------------------------

    def open(self, body: bytes, now: float) -> tuple[int, bytes]:
        """Open the body of a ``SEALED`` envelope.

        Args:
            body: Header and ciphertext.
            now: Monotonic seconds.

        Returns:
            The kind of what was inside and its body; kind :data:`CONFIRM` is for nobody else.

        Raises:
            SealRefused: It is not genuine, not for us, not of that sender, or not fresh.
        """
        header = read_header(body)
        kind, _, session_id, _, _ = header
        session = self._current
        if session is None or session.id != session_id:
            session = self._find(session_id)
        if session is None:
            if kind != CONFIRM:
                raise refused(Reason.UNKNOWN_SESSION, f"{self.peer.node_id} sealed under a session unknown here")
            self.outgoing.append((Kind.KEYS, encode_unknown(session_id)))
            return CONFIRM, b""
        if kind not in _INSIDE:
            raise refused(Reason.MALFORMED, f"{self.peer.node_id} sealed a body of kind {kind}")
        content = session.open(header, body, now)
        if session is self._current:
            self._is_shown = True
        elif session is self._answered:
            self._answered = None
            self._take_up(session, now)
        return kind, content

    def keys_received(self, body: bytes, now: Moment) -> None:
        """Read the body of a ``KEYS`` envelope.

        Raises:
            SealRefused: It is none, or does not prove what it must.
        """
        said = decode_keys(body)
        if isinstance(said, Unknown):
            self._forget(said.session, now)
        elif said is not None and isinstance(said.content, Offer):
            self._offer_received(said, now)
        elif said is not None and isinstance(said.content, Answer):
            if self._offer is None or said.content.offer_hash != self._offer.offer_hash:
                return  # to an offer that was taken back in favour of the other side's, or forgotten
            session = accept_answer(self._identity(), self._offer, said, now, self._limits)
            self.handshakes += 1
            self._offer = None
            if not _is_over(session, now):  # our own certificate may have expired since the offer
                self._take_up(session, now.monotonic)
                self._confirm(session, now.monotonic)

    # --- private ------------------------------------------------------------------------------------------------

    def _find(self, session_id: bytes) -> Session | None:
        for session in (self._current, self._answered, self._previous):
            if session is not None and session.id == session_id:
                return session
        return None

    def _offer_received(self, said: Signed, now: Moment) -> None:
        if self._offer is not None and self._identity().node_id < self.peer.node_id:
            # Ours counts, and the other side answers it; said again in case it never arrived.
            if now.monotonic - self._attempt_at >= ATTEMPT_S:
                self._make_offer(now.monotonic)
            return
        if self._answered is None or said.statement != self._answered_offer:
            self._count_offer(now)
            self._answer, self._answered = answer_offer(
                self._identity(), said, self.peer, self._entropy, now, self._limits
            )
            self._answered_offer = said.statement
            self.handshakes += 1
        # The same offer again gets the same answer: another one would make another session of it.
        self._offer = None
        self._attempt_at = now.monotonic
        self.outgoing.append((Kind.KEYS, self._answer))

    def _is_waiting(self, now: Moment) -> bool:
        """Whether something is under way that may yet lead to a session."""
        started = self._offer is not None or self._answered is not None or self._current is not None
        return started and now.monotonic - self._attempt_at < ATTEMPT_S

    def _make_offer(self, now: float) -> None:
        """Offer a session; the same offer again if there was no answer yet, as a slow one would not fit another."""
        if self._offer is None:
            self._offer = make_offer(self._identity(), self.peer, self._entropy)
        self._attempt_at = now
        self.outgoing.append((Kind.KEYS, self._offer.body))

    def _renew(self, session: Session, now: float) -> None:
        """Replace a session that is old while it goes on working; again after a while if nothing comes of it."""
        again_s = max(ATTEMPT_S, (session.spent_at - now) / 2)
        session.renew_at = min(now + again_s, session.spent_at)
        self._make_offer(now)

    def _confirm(self, session: Session, now: float) -> None:
        self.outgoing.append((Kind.SEALED, session.sealing.seal(CONFIRM, Lane.CONTROL, b"", now)))

    def _take_up(self, session: Session, now: float) -> None:
        """The other side holds ``session``, as it has shown: seal with it from now on."""
        if self._current is not None:
            self._previous = self._current
            self._previous_until = now + self._limits.grace_s
        self._current = session
        self._is_shown = True

    def _drop_current(self) -> None:
        self._current = None
        self._is_shown = False

    def _forget(self, session_id: bytes, now: Moment) -> None:
        """The other side does not hold the session that an earlier link left."""
        if self._current is None or self._current.id != session_id or self._is_shown:
            return
        self._drop_current()
        if self._is_wanted and self._offer is None and self._answered is None:
            self._make_offer(now.monotonic)

    def _count_offer(self, now: Moment) -> None:
        self._offers_left = min(_OFFERS_MAX, self._offers_left + now.monotonic - self._offers_at) - 1
        self._offers_at = now.monotonic
        if self._offers_left < 0:
            raise refused(Reason.FLOODED, f"{self.peer.node_id} makes offer after offer")


def _is_over(session: Session, now: Moment) -> bool:
    return session.is_spent(now.monotonic) or now.wall >= session.expires_s
