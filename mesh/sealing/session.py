"""A session: what two nodes' lives share once they agreed on keys.

Core: no I/O.  Two chains (:mod:`.chains`), one for each direction, and how long they may be used.  A session belongs to
the two lives, not to a link: it outlasts a link that breaks, and the next one takes it up without new key agreement.
"""
# core: no I/O

from __future__ import annotations

from typing import Final

from .chains import SECRET_BYTES, Limits, OpeningChain, SealingChain, expand
from .codec import SESSION_BYTES, Header
from .reasons import Reason, refused

#: A third of what is left of a certificate is kept in reserve for agreeing on new keys with the next one.
_RENEW_SHARE: Final = 2 / 3

# The sender may have sealed just in time, and its clock may be a little behind.
_LATE_S: Final = 60.0


class Session:
    """Keys that two lives of two nodes share.

    Args:
        secret: What key agreement gave, 32 bytes, bound to everything that was said in it; keep no other copy.
        initiator: Whether this side made the offer.
        contexts: What is authenticated with every body from the initiator, and with every one from the responder.
        now: Monotonic seconds.
        wall: Seconds since the epoch.
        expires_s: When the first of the two certificates expires, seconds since the epoch.
        limits: How long keys live.

    Attributes:
        sealing: Our own direction.  Its time, ``spent_at``, is for who seals to check.
        renew_at: When it should be replaced by another session, monotonic seconds.
        spent_at: When it must not be used any more.
        expires_s: When the first of the two certificates expires, seconds since the epoch.
    """

    __slots__ = ("_opening", "expires_s", "id", "renew_at", "sealing", "spent_at")

    def __init__(
        self,
        secret: bytes,
        *,
        initiator: bool,
        contexts: tuple[bytes, bytes],
        now: float,
        wall: float,
        expires_s: float,
        limits: Limits,
    ) -> None:
        self.id = expand(secret, b"session id", SESSION_BYTES)
        secrets = expand(secret, b"initiator", SECRET_BYTES), expand(secret, b"responder", SECRET_BYTES)
        ours, theirs = (0, 1) if initiator else (1, 0)
        self.sealing = SealingChain(secrets[ours], self.id, contexts[ours], now, limits)
        self._opening = OpeningChain(secrets[theirs], contexts[theirs], limits)
        # Monotonic time stands still while a machine sleeps; who keeps a session for long looks at this, too.
        self.expires_s = expires_s
        self.spent_at = now + min(limits.session_s, expires_s - wall)
        self.renew_at = now + min(limits.renew_s, (self.spent_at - now) * _RENEW_SHARE)

    @property
    def epochs(self) -> tuple[int, int]:
        """The current epochs: ours, and the newest of the other side's that was opened."""
        return self.sealing.epoch, self._opening.epoch

    def is_spent(self, now: float) -> bool:
        """Whether it is no longer to be relied on: its time or a certificate's is over, or its last epoch has come."""
        return now >= self.spent_at or self.sealing.is_spent

    def open(self, header: Header, sealed: bytes, now: float) -> bytes:
        """Open a body of the other side.

        Raises:
            SealRefused: It is old, replayed or forged, or the session is spent for longer than a body takes.
        """
        if now >= self.spent_at + _LATE_S:
            raise refused(Reason.EXPIRED, "the session's time is over")
        return self._opening.open(header, sealed, now)

    def sweep(self, now: float) -> bool:
        """Erase keys whose time is over.  Returns whether the other side should be shown a new epoch of ours."""
        self._opening.erase_old(now)
        if self.is_spent(now) or not self.sealing.is_due(now):
            return False
        self.sealing.advance(now)
        return True
