"""One direction of a session: epochs, counters, the replay window.

Core: no I/O.  A *chain* is a secret that turns into the next one by a hash and can never be turned back; each step is
an *epoch* with a key of its own (a symmetric ratchet, as in Signal's Double Ratchet, section 2.2, but stepped by count
and time instead of by message, because here a body holds hundreds of messages).  Once an epoch's key is made, the
secret it came from is gone: who steals the state of now can read what comes until the next key agreement, but nothing
that was sealed in an epoch before the last.

The AEAD is AES-256-GCM (measured: 5 µs for 48 KiB on a machine with AES instructions, where ChaCha20-Poly1305 takes
14).  Its nonce is never repeated under one key: it is the epoch's IV with stream and counter in it (the construction of
TLS 1.3, RFC 8446 section 5.3), and an epoch ends long before a counter could.  2**20 bodies and 2**32 bytes for one key
keep an attacker's advantage below 2**-64 (draft-irtf-cfrg-aead-limits, with at most 2**28 + 2**20 blocks).

Bodies of one stream arrive in order on a link, but not between streams, and relays may reorder them: so counters and
replay windows are per stream.
"""
# core: no I/O

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from .codec import HEADER, HEADER_BYTES, SESSION_BYTES, STREAMS, Header
from .reasons import Reason, refused

SECRET_BYTES: Final = 32
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12

#: How far behind the newest of its stream a body may arrive.
WINDOW: Final = 1_024
_WINDOW_MASK: Final = (1 << WINDOW) - 1

#: How many epochs ahead of the last one opened a body may be: those between were lost on the way.
AHEAD_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """How long keys live.

    Attributes:
        epoch_bodies: Bodies sealed with one key, at most.
        epoch_bytes: Bytes sealed with one key, at most one body more.
        epoch_s: How long one key seals.
        grace_s: How long the key before is kept for bodies that are still on the way.  Above what a link can hold a
            body back: the keepalive timeout and the time to drain a lane.
        epochs: Epochs of one session, at most 2**32.
        renew_s: Age at which a session is replaced by one with a fresh key agreement.
        session_s: Age at which it is spent even if nobody replaced it.
        park_s: How long a session without a link is kept for the next link.
    """

    epoch_bodies: int = 1 << 20
    epoch_bytes: int = 1 << 32
    epoch_s: float = 300.0
    grace_s: float = 60.0
    epochs: int = 1 << 16
    renew_s: float = 3_600.0
    session_s: float = 86_400.0
    park_s: float = 900.0


def expand(secret: bytes, label: bytes, length: int = SECRET_BYTES) -> bytes:
    """Derive a key: HKDF-Expand with SHA-256 (RFC 5869 section 2.3)."""
    return HKDFExpand(hashes.SHA256(), length, b"peermesh e2e v1 " + label).derive(secret)


class ReplayWindow:
    """Which counters of one stream have been seen: the last :data:`WINDOW` of them (RFC 4303 section 3.4.3)."""

    __slots__ = ("_highest", "_seen")

    def __init__(self) -> None:
        self._highest = -1
        # Bit n: the counter n below the highest was seen.
        self._seen = 0

    def is_fresh(self, counter: int) -> bool:
        """Whether ``counter`` was certainly not seen before."""
        behind = self._highest - counter
        return behind < 0 or (behind < WINDOW and not self._seen >> behind & 1)

    def mark(self, counter: int) -> None:
        """Remember ``counter``, which is fresh."""
        ahead = counter - self._highest
        if ahead > 0:
            self._seen = ((self._seen << ahead) | 1) & _WINDOW_MASK if ahead < WINDOW else 1
            self._highest = counter
        else:
            self._seen |= 1 << -ahead


class _Epoch:
    """The key of one epoch, and the secret of the next."""

    __slots__ = ("_iv", "aead", "next_secret", "number", "until", "windows")

    def __init__(self, secret: bytes, number: int) -> None:
        material = expand(secret, b"key", _KEY_BYTES + _NONCE_BYTES)
        self.number = number
        self.aead = AESGCM(material[:_KEY_BYTES])
        self._iv = int.from_bytes(material[_KEY_BYTES:])
        self.next_secret = expand(secret, b"next epoch")
        # One for each stream; only the opening side uses them.
        self.windows: tuple[ReplayWindow, ...] = ()
        # When the opening side forgets it, once it is over.
        self.until = 0.0

    def nonce(self, stream: int, counter: int) -> bytes:
        return (self._iv ^ (stream << 64 | counter)).to_bytes(_NONCE_BYTES)


class SealingChain:
    """The sender's end.

    Args:
        secret: The chain's first secret, 32 bytes; keep no other copy.
        session: Written into every header.
        context: Authenticated with every body: who seals for whom.
        now: Monotonic seconds.
        limits: How long keys live.
    """

    __slots__ = ("_bodies", "_bytes", "_context", "_counters", "_ends_at", "_epoch", "_limits", "_session", "_used")

    def __init__(self, secret: bytes, session: bytes, context: bytes, now: float, limits: Limits) -> None:
        assert len(session) == SESSION_BYTES
        self._session = session
        self._context = context
        self._limits = limits
        self._begin(_Epoch(secret, 0), now)

    def _begin(self, epoch: _Epoch, now: float) -> None:
        self._epoch = epoch
        self._counters = [0] * STREAMS
        self._bodies = 0
        self._bytes = 0
        self._used = False
        self._ends_at = now + self._limits.epoch_s

    @property
    def epoch(self) -> int:
        """The current epoch's number."""
        return self._epoch.number

    def seal(self, kind: int, stream: int, body: bytes, now: float) -> bytes:
        """Seal ``body``: header and ciphertext.

        Raises:
            SealRefused: The last epoch is over.
        """
        limits = self._limits
        if now >= self._ends_at or self._bodies >= limits.epoch_bodies or self._bytes >= limits.epoch_bytes:
            if self.is_spent:
                raise refused(Reason.EXPIRED, "the chain has no epochs left")
            self.advance(now)
        epoch = self._epoch
        counter = self._counters[stream]
        self._counters[stream] = counter + 1
        self._bodies += 1
        self._bytes += len(body)
        # What only confirms is no reason to end an epoch: two idle sides would go on for ever.
        self._used = self._used or bool(body)
        header = HEADER.pack(kind, stream, self._session, epoch.number, counter)
        return header + epoch.aead.encrypt(epoch.nonce(stream, counter), body, self._context + header)

    def advance(self, now: float) -> None:
        """Begin the next epoch and forget this one's key."""
        assert not self.is_spent
        self._begin(_Epoch(self._epoch.next_secret, self._epoch.number + 1), now)

    def hand_over(self, now: float) -> tuple[int, bytes]:
        """Begin the next epoch: its number, and its secret for who is to open from there on and nothing before."""
        secret = self._epoch.next_secret
        self.advance(now)
        return self._epoch.number, secret

    def is_due(self, now: float) -> bool:
        """Whether the key sealed something and its time is over: for who seals nothing more that would see to it."""
        return self._used and now >= self._ends_at

    def is_over(self, now: float) -> bool:
        """Whether the next body begins another epoch."""
        limits = self._limits
        return now >= self._ends_at or self._bodies >= limits.epoch_bodies or self._bytes >= limits.epoch_bytes

    @property
    def is_spent(self) -> bool:
        """Whether this is the last epoch: time for another chain."""
        return self._epoch.number + 1 >= self._limits.epochs


class OpeningChain:
    """The receiver's end; it follows the sender's epochs as they arrive.

    Args:
        secret, context, limits: See :class:`SealingChain`.
        epoch: The number of the epoch that ``secret`` is of.
        previous_max: Epochs that are kept for bodies under way when there is a newer one.  1, for links, where bodies
            of a stream come in order: the one before.  More: also those that were skipped.
    """

    __slots__ = ("_context", "_current", "_limits", "_previous", "_previous_max")

    def __init__(self, secret: bytes, context: bytes, limits: Limits, epoch: int = 0, *, previous_max: int = 1) -> None:
        self._context = context
        self._limits = limits
        self._previous_max = previous_max
        # Oldest first, at most previous_max.
        self._previous: list[_Epoch] = []
        self._current = _Epoch(secret, epoch)
        self._current.windows = _windows()

    @property
    def epoch(self) -> int:
        """The newest epoch that anything was opened of."""
        return self._current.number

    def open(self, header: Header, sealed: bytes, now: float) -> bytes:
        """Open a body.  Whatever is refused changes nothing here.

        Args:
            header: As read from ``sealed``.
            sealed: Header and ciphertext.
            now: Monotonic seconds.

        Raises:
            SealRefused: It is old, replayed or forged.
        """
        _, stream, _, number, counter = header
        if self._previous:
            self.erase_old(now)
        epoch = self._current
        if number != epoch.number:
            epoch = self._find(number)
        # An epoch that nothing was opened of has seen no counter.
        window = epoch.windows[stream] if epoch.windows else None
        if window is not None and not window.is_fresh(counter):
            raise refused(Reason.REPLAYED, f"body {counter} of stream {stream} in epoch {number} was opened before")
        try:
            body = epoch.aead.decrypt(
                epoch.nonce(stream, counter),
                memoryview(sealed)[HEADER_BYTES:],
                self._context + sealed[:HEADER_BYTES],
            )
        except InvalidTag as error:
            raise refused(
                Reason.FORGED, f"body {counter} of stream {stream} in epoch {number} is not genuine"
            ) from error
        if window is None:
            self._follow(epoch, now)
            window = epoch.windows[stream]
        window.mark(counter)
        return body

    def _find(self, number: int) -> _Epoch:
        """The key of another epoch than the current one: kept from before, or made, but not taken up yet."""
        for previous in self._previous:
            if number == previous.number:
                return previous
        current = self._current
        if not current.number < number <= current.number + AHEAD_MAX:
            raise refused(Reason.OLD_EPOCH, f"epoch {number} cannot be opened, the current one is {current.number}")
        epoch = current
        while epoch.number < number:
            epoch = _Epoch(epoch.next_secret, epoch.number + 1)
        return epoch

    def _follow(self, epoch: _Epoch, now: float) -> None:
        """The sender is in a new epoch, as a genuine body shows."""
        passed = [self._current]
        while self._previous_max > 1 and passed[-1].number + 1 < epoch.number:
            passed.append(_Epoch(passed[-1].next_secret, passed[-1].number + 1))
            passed[-1].windows = _windows()
        for old in passed:
            # With its secret one could make every later key.
            old.next_secret = b""
            old.until = now + self._limits.grace_s
        self._previous = [*self._previous, *passed][-self._previous_max :]
        self._current = epoch
        epoch.windows = _windows()

    def follow(self, number: int, now: float) -> None:
        """The sender said that it is in this epoch or a later one, at most :data:`AHEAD_MAX` ahead."""
        if number > self.epoch:
            self._follow(self._find(number), now)

    def erase_old(self, now: float) -> None:
        """Forget the keys before the current one whose time is over."""
        self._previous = [epoch for epoch in self._previous if now < epoch.until]


def _windows() -> tuple[ReplayWindow, ...]:
    return tuple(ReplayWindow() for _ in range(STREAMS))
