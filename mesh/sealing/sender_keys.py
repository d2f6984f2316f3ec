"""Sealing for many: a sender's own key, which it hands to each reader of a group over their pairwise session.

Core: no I/O.  Sender keys as in Signal's and Matrix's groups: sealing once costs the same for ten readers and for a
thousand.  A *generation* is a chain (:mod:`.chains`) and an Ed25519 key; its *grant* says both, and travels sealed,
pairwise.  Every reader could seal with the chain's key, so each body is signed as well: the signature, not the key,
says who wrote.

- Who may read is told to the sender, which grants nobody else.  Whoever is new may read from the next epoch on, which
  begins with the next body; the secrets of the last epochs are kept, so that a grant that is asked for later can begin
  where its reader's right began, and no earlier.
- When one that was granted must read no more, a new generation begins, which the others are granted afresh: at once
  unless the last one began a moment ago, so that many who leave do not make as many generations.
- A receiver takes a grant from the sender itself only, over a session that authenticates it.

Group keys give what a chain gives; there is no key agreement in between, so generations end by time as well.
"""
# core: no I/O

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519

from transport.errors import RemoteProtocolError
from transport.wire import pack, unpack_body

from .chains import AHEAD_MAX, SECRET_BYTES, Limits, OpeningChain, SealingChain
from .codec import OVERHEAD_BYTES, SESSION_BYTES, Header, read_header
from .handshake import Peer, context
from .reasons import Reason, refused

_KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
_GROUP_BYTES_MAX: Final = 1_024
_STREAM: Final = 0

#: What sealing for many adds to a body.
GROUP_OVERHEAD_BYTES: Final = OVERHEAD_BYTES + _SIGNATURE_BYTES

#: Generations of one sender that a receiver keeps: the newest, and those before for bodies still under way.
GENERATIONS_KEPT: Final = 4

#: Epochs that sender and receivers keep for what is still under way: trees mend themselves late and out of order, and
#: each newcomer begins an epoch.
EPOCHS_KEPT: Final = 16

#: A new generation that somebody's leaving calls for waits until the last one is so old, for each reader: what all
#: have to be granted again costs a sender ten grants a second at most, over time, and each reader a delay now and then.
ROTATION_S: Final = 0.1

_ASK: Final = 1
_GRANT: Final = 2


@dataclass(frozen=True, slots=True)
class Grant:
    """What lets its holder open one generation from an epoch on.

    Attributes:
        group: The group; empty for broadcasts to all.
        generation: The generation's id, 8 random bytes; it stands where a session's id would.
        epoch: The first epoch that can be opened.
        secret: The chain's secret at that epoch.
        verifier: The generation's Ed25519 public key.
    """

    group: str
    generation: bytes
    epoch: int
    secret: bytes
    verifier: bytes


@dataclass(frozen=True, slots=True)
class Ask:
    """A reader's request for a grant: it got something that it cannot open.

    Attributes:
        group: The group; empty for broadcasts to all.
        generation: What it was sealed with.
    """

    group: str
    generation: bytes


def encode_grant(grant: Grant) -> bytes:
    """The grant as the body of a ``GRANTS`` envelope, to be sealed pairwise."""
    return pack([_GRANT, grant.group, grant.generation, grant.epoch, grant.secret, grant.verifier])


def encode_ask(ask: Ask) -> bytes:
    """The request as the body of a ``GRANTS`` envelope."""
    return pack([_ASK, ask.group, ask.generation])


def decode_grants(body: bytes) -> Grant | Ask | None:
    """Read the body of a ``GRANTS`` envelope; ``None``: something of a later version, to be ignored.

    Raises:
        SealRefused: It is none.
    """
    try:
        fields = unpack_body(body, nodes_max=32, depth_max=2)
    except RemoteProtocolError as error:
        raise refused(Reason.MALFORMED, f"grant: {error.message}") from error
    if type(fields) is list and fields and type(fields[0]) is int:
        if fields[0] > _GRANT:
            return None
        if len(fields) > 2 and _is_group(fields[1]) and _is_bytes(fields[2], SESSION_BYTES):
            match fields:
                case [1, group, generation, *_]:
                    return Ask(group, generation)
                case [2, group, generation, epoch, secret, verifier, *_] if (
                    type(epoch) is int
                    and 0 <= epoch < 2**32
                    and _is_bytes(secret, SECRET_BYTES)
                    and _is_bytes(verifier, _KEY_BYTES)
                ):
                    return Grant(group, generation, epoch, secret, verifier)
    raise refused(Reason.MALFORMED, "grant: a field is missing, of the wrong type or out of range")


def _is_group(value: object) -> bool:
    return type(value) is str and len(value.encode(errors="replace")) <= _GROUP_BYTES_MAX


def _is_bytes(value: object, length: int) -> bool:
    return type(value) is bytes and len(value) == length


class _Kept(NamedTuple):
    """Where a grant may begin."""

    serial: int
    """Counts the epochs of all generations."""
    grant: Grant
    until: float


class GroupSender:
    """What one node seals for one group.

    Args:
        network, group, node_id, life: Bound into every body.
        entropy: Draws secrets.
        now: Monotonic seconds.
        limits: How long keys live; a generation lives as long as a session.
    """

    def __init__(
        self,
        network: str,
        group: str,
        node_id: str,
        life: int,
        *,
        entropy: Callable[[int], bytes],
        now: float,
        limits: Limits,
    ) -> None:
        self.group = group
        self._context = group_context(network, group, node_id, life)
        self._entropy = entropy
        self._limits = limits
        # Who may read, and from which serial on.  Bounded by the network's members.
        self._readers: dict[Peer, int] = {}
        # Who was granted the current generation; all of them may read.
        self._granted: dict[Peer, None] = {}
        # The newest is the current epoch; at most EPOCHS_KEPT.
        self._kept: list[_Kept] = []
        self._serial = 0
        self.generations = 0
        self._begin(now)

    def _begin(self, now: float) -> None:
        """Begin a generation."""
        self._signer = ed25519.Ed25519PrivateKey.from_private_bytes(self._entropy(SECRET_BYTES))
        self._verifier = self._signer.public_key().public_bytes_raw()
        self._generation = self._entropy(SESSION_BYTES)
        secret = self._entropy(SECRET_BYTES)
        self._chain = SealingChain(secret, self._generation, self._context, now, self._limits)
        self.generations += 1
        self._granted.clear()
        # Somebody must read no more who could.
        self._is_stale = False
        self._began_at = now
        self._keep(0, secret, now)

    def _keep(self, epoch: int, secret: bytes, now: float) -> None:
        """An epoch began."""
        if self._kept:
            self._kept[-1] = self._kept[-1]._replace(until=now + self._limits.grace_s)
        self._serial += 1
        grant = Grant(self.group, self._generation, epoch, secret, self._verifier)
        self._kept = [kept for kept in self._kept if now < kept.until][1 - EPOCHS_KEPT :]
        self._kept.append(_Kept(self._serial, grant, math.inf))
        # Whether anything was sealed in it, and whether somebody came since.
        self._is_used = self._is_due = False

    def set_readers(self, readers: Iterable[Peer]) -> None:
        """Who may read from now on: lives of nodes, this one excepted.  Who restarted has lost what it was granted."""
        wanted = dict.fromkeys(readers)
        for gone in [reader for reader in self._readers if reader not in wanted]:
            del self._readers[gone]
            if gone in self._granted:
                self._is_stale = True
        for reader in wanted:
            if reader not in self._readers:
                # What was sealed in this epoch was not meant for it.
                self._is_due = self._is_due or self._is_used
                self._readers[reader] = self._serial + self._is_due

    def refresh(self, now: float) -> None:
        """Begin the epoch or generation that is due."""
        is_stale = self._is_stale and now >= self._began_at + ROTATION_S * len(self._readers)
        is_over = self._is_due or self._chain.is_over(now)
        if is_stale or now >= self._began_at + self._limits.session_s or (is_over and self._chain.is_spent):
            self._begin(now)
        elif is_over:
            self._keep(*self._chain.hand_over(now), now)

    def grants(self, reader: Peer, generation: bytes, now: float) -> list[Grant]:
        """What ``reader`` is to be given when it asks.

        Args:
            reader: Who asks, as its link authenticated it.
            generation: What it cannot open; any other than the newest one that is still under way.
            now: Monotonic seconds.

        Returns:
            At most one grant for each of the two generations; none if it may not read.
        """
        if reader not in self._readers:
            return []
        self.refresh(now)
        since = self._readers[reader]
        grants: dict[bytes, Grant] = {}
        for kept in self._kept:
            if kept.serial >= since and now < kept.until and kept.grant.generation in (generation, self._generation):
                grants.setdefault(kept.grant.generation, kept.grant)
        self._granted[reader] = None
        return list(grants.values())

    def owed(self, reader: Peer, now: float) -> list[Grant]:
        """What ``reader`` is to be given without being asked, if it may read and was given nothing yet."""
        return [] if reader in self._granted else self.grants(reader, self._generation, now)

    def sweep(self, now: float) -> None:
        """Erase keys whose time is over, also of a group to which nothing more is published."""
        if self._chain.is_due(now):
            self.refresh(now)
        self._kept = [kept for kept in self._kept if now < kept.until]

    def seal(self, kind: int, body: bytes, now: float) -> bytes:
        """Seal a body for all who may read: header, ciphertext, signature."""
        self.refresh(now)
        self._is_used = True
        sealed = self._chain.seal(kind, _STREAM, body, now)
        return sealed + self._signer.sign(_to_sign(self._context, sealed))


class _Generation:
    """What a receiver holds of one generation."""

    __slots__ = ("chain", "used_at", "verifier")

    def __init__(self, chain: OpeningChain, verifier: ed25519.Ed25519PublicKey, now: float) -> None:
        self.chain = chain
        self.verifier = verifier
        self.used_at = now


class GroupReceiver:
    """What one node can open of one sender in one group.

    Args: see :class:`GroupSender`; ``node_id`` and ``life`` are the sender's.
    """

    def __init__(self, network: str, group: str, node_id: str, life: int, *, limits: Limits) -> None:
        self.group = group
        self._context = group_context(network, group, node_id, life)
        self._limits = limits
        # At most GENERATIONS_KEPT.
        self._generations: dict[bytes, _Generation] = {}

    @property
    def used_at(self) -> float:
        """When something was last opened or granted, monotonic seconds."""
        return max((generation.used_at for generation in self._generations.values()), default=-math.inf)

    def holds(self, header: Header) -> bool:
        """Whether what a body was sealed with was granted, as far as its header tells."""
        held = self._generations.get(header.session)
        return held is not None and header.epoch <= held.chain.epoch + AHEAD_MAX

    def take(self, grant: Grant, now: float) -> None:
        """Take a grant that the sender itself sent, over a session.

        Raises:
            SealRefused: It is of another group.
        """
        if grant.group != self.group:
            raise refused(Reason.WRONG_PEER, f"grant for group {grant.group!r} came for {self.group!r}")
        held = self._generations.get(grant.generation)
        if held is not None and grant.epoch <= held.chain.epoch + AHEAD_MAX:
            # Granted again: what was opened before stays opened, so that nothing can be replayed.
            held.chain.follow(grant.epoch, now)
            return
        if held is None and len(self._generations) >= GENERATIONS_KEPT:
            del self._generations[min(self._generations, key=lambda name: self._generations[name].used_at)]
        verifier = ed25519.Ed25519PublicKey.from_public_bytes(grant.verifier)
        chain = OpeningChain(grant.secret, self._context, self._limits, grant.epoch, previous_max=EPOCHS_KEPT)
        self._generations[grant.generation] = _Generation(chain, verifier, now)

    def open(self, header: Header, sealed: bytes, now: float) -> bytes:
        """Open a body of a generation that is held.

        Args:
            header: As :func:`read_group_header` gave it.
            sealed: The whole of it.
            now: Monotonic seconds.

        Raises:
            SealRefused: It is not of this sender, not for this group, old, replayed or altered.
        """
        generation = self._generations.get(header.session)
        if generation is None:
            raise refused(Reason.UNKNOWN_SESSION, "sealed with a key that was not granted to this node")
        signed, signature = sealed[:-_SIGNATURE_BYTES], sealed[-_SIGNATURE_BYTES:]
        # First of all: whoever was granted the key could use up counters with what it seals itself.
        try:
            generation.verifier.verify(signature, _to_sign(self._context, signed))
        except InvalidSignature as error:
            raise refused(Reason.SIGNATURE, "the body was not signed by the sender that it names") from error
        body = generation.chain.open(header, signed, now)
        generation.used_at = now
        return body

    def sweep(self, now: float) -> None:
        """Erase keys whose time is over: of old epochs, and of generations that others followed."""
        newest = self.used_at
        idle_s = self._limits.epoch_s + self._limits.grace_s
        for name, generation in list(self._generations.items()):
            generation.chain.erase_old(now)
            if generation.used_at < newest and now >= generation.used_at + idle_s:
                del self._generations[name]


def read_group_header(sealed: bytes) -> Header:
    """The header of a body that was sealed for many.

    Raises:
        SealRefused: It is too short, or names a stream that does not exist.
    """
    if len(sealed) < GROUP_OVERHEAD_BYTES:
        raise refused(Reason.MALFORMED, f"group body of {len(sealed)} bytes is too short")
    return read_header(sealed)


def _to_sign(names: bytes, sealed: bytes) -> bytes:
    # A hash, as Ed25519 would read a large body twice, with the slower SHA-512.
    return names + hashlib.sha256(sealed).digest()


def group_context(network: str, group: str, node_id: str, life: int) -> bytes:
    """What is authenticated with every body of one sender's life in one group."""
    return context(b"group", network, group, node_id, str(life))
