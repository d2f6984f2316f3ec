"""Sealing for many: a sender's own key, which it hands to each member of a group over their pairwise session.

Core: no I/O.  Sender keys as in Signal's and Matrix's groups: sealing once costs the same for ten readers and for a
thousand.  A *generation* is a chain (:mod:`.chains`) and an Ed25519 key; its *grant* says both, and travels sealed,
pairwise.  Every member could seal with the chain's key, so each body is signed as well: the signature, not the key,
says who wrote.

- Who joins gets the chain from the next epoch on and can read nothing older.
- When one leaves or is revoked, the next body begins a new generation, which the others are granted afresh.
- A receiver takes a grant from the sender itself only, over a session that authenticates it.

Group keys give what a chain gives; there is no key agreement in between, so generations end by time as well.
"""
# core: no I/O

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519

from transport.errors import RemoteProtocolError
from transport.wire import pack, unpack_body

from .chains import SECRET_BYTES, Limits, OpeningChain, SealingChain
from .codec import OVERHEAD_BYTES, SESSION_BYTES, read_header
from .handshake import Peer, context
from .reasons import Reason, refused

_KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
_GROUP_BYTES_MAX: Final = 1_024
_STREAM: Final = 0

#: Generations of one sender that a receiver keeps: the newest, and the one before for bodies still under way.
GENERATIONS_KEPT: Final = 2


@dataclass(frozen=True, slots=True)
class Grant:
    """What lets its holder open one generation from an epoch on.

    Attributes:
        group: The group.
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


def encode_grant(grant: Grant) -> bytes:
    """The grant as a body to be sealed pairwise."""
    return pack([grant.group, grant.generation, grant.epoch, grant.secret, grant.verifier])


def decode_grant(body: bytes) -> Grant:
    """Read a grant.

    Raises:
        SealRefused: It is none.
    """
    try:
        fields = unpack_body(body, nodes_max=16, depth_max=2)
    except RemoteProtocolError as error:
        raise refused(Reason.MALFORMED, f"grant: {error.message}") from error
    match fields:
        case [str() as group, bytes() as generation, int() as epoch, bytes() as secret, bytes() as verifier] if (
            len(group.encode(errors="replace")) <= _GROUP_BYTES_MAX
            and len(generation) == SESSION_BYTES
            and type(epoch) is int
            and 0 <= epoch < 2**32
            and len(secret) == SECRET_BYTES
            and len(verifier) == _KEY_BYTES
        ):
            return Grant(group, generation, epoch, secret, verifier)
    raise refused(Reason.MALFORMED, "grant: a field is missing, of the wrong type or out of range")


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
        # Who was granted the current generation.  Bounded by the network's members.
        self._granted: dict[Peer, None] = {}
        self._is_stale = False
        self._begin(now)

    def _begin(self, now: float) -> None:
        self._signer = ed25519.Ed25519PrivateKey.from_private_bytes(self._entropy(SECRET_BYTES))
        self._generation = self._entropy(SESSION_BYTES)
        self._chain = SealingChain(self._entropy(SECRET_BYTES), self._generation, self._context, now, self._limits)
        self._granted.clear()
        self._is_stale = False
        self._ends_at = now + self._limits.session_s

    def grants(self, members: Iterable[Peer], now: float) -> dict[Peer, Grant]:
        """Bring the keys in line with who may read now; call this before each body.

        Args:
            members: The lives of nodes that may read, this one excepted: who restarted has lost what it was granted.
            now: Monotonic seconds.

        Returns:
            What must be sent, pairwise and sealed, before the next body; empty as long as nothing changed.
        """
        wanted = dict.fromkeys(members)
        has_left = any(member not in wanted for member in self._granted)
        if has_left or self._is_stale or now >= self._ends_at or self._chain.is_spent:
            self._begin(now)
        new = [member for member in wanted if member not in self._granted]
        if not new:
            return {}
        self._granted.update(dict.fromkeys(new))
        # From a new epoch on: whoever comes later must not open what was sealed for the others before.
        epoch, secret = self._chain.hand_over(now)
        grant = Grant(self.group, self._generation, epoch, secret, self._signer.public_key().public_bytes_raw())
        return dict.fromkeys(new, grant)

    def revoke(self) -> None:
        """Somebody must read no more, whoever it was: the next body is of a new generation."""
        self._is_stale = True

    def seal(self, kind: int, body: bytes, now: float) -> bytes:
        """Seal a body for all who were granted: header, ciphertext, signature.

        Call :meth:`grants` first.
        """
        sealed = self._chain.seal(kind, _STREAM, body, now)
        return sealed + self._signer.sign(self._context + sealed)


class GroupReceiver:
    """What one node can open of one sender in one group.

    Args: see :class:`GroupSender`; ``node_id`` and ``life`` are the sender's.
    """

    def __init__(self, network: str, group: str, node_id: str, life: int, *, limits: Limits) -> None:
        self.group = group
        self._context = group_context(network, group, node_id, life)
        self._limits = limits
        # Oldest first, at most GENERATIONS_KEPT.
        self._generations: dict[bytes, tuple[OpeningChain, ed25519.Ed25519PublicKey]] = {}

    def take(self, grant: Grant) -> None:
        """Take a grant that the sender itself sent, over a session.

        Raises:
            SealRefused: It is of another group.
        """
        if grant.group != self.group:
            raise refused(Reason.WRONG_PEER, f"grant for group {grant.group!r} came for {self.group!r}")
        if grant.generation in self._generations:
            return  # granted again: what was opened before stays opened, so that nothing can be replayed
        verifier = ed25519.Ed25519PublicKey.from_public_bytes(grant.verifier)
        chain = OpeningChain(grant.secret, self._context, self._limits, grant.epoch)
        self._generations[grant.generation] = chain, verifier
        while len(self._generations) > GENERATIONS_KEPT:
            del self._generations[next(iter(self._generations))]

    def open(self, sealed: bytes, now: float) -> tuple[int, bytes]:
        """Open a body; its kind and content.

        Raises:
            SealRefused: It is not of this sender, not for this group, old, replayed or altered.
        """
        if len(sealed) < OVERHEAD_BYTES + _SIGNATURE_BYTES:
            raise refused(Reason.MALFORMED, f"group body of {len(sealed)} bytes is too short")
        signed, signature = sealed[:-_SIGNATURE_BYTES], sealed[-_SIGNATURE_BYTES:]
        header = read_header(signed)
        known = self._generations.get(header.session)
        if known is None:
            raise refused(Reason.UNKNOWN_SESSION, "sealed with a key that was not granted to this node")
        chain, verifier = known
        try:
            verifier.verify(signature, self._context + signed)
        except InvalidSignature as error:
            raise refused(Reason.SIGNATURE, "the body was not signed by the sender that it names") from error
        return header.kind, chain.open(header, signed, now)


def group_context(network: str, group: str, node_id: str, life: int) -> bytes:
    """What is authenticated with every body of one sender's life in one group."""
    return context(b"group", network, group, node_id, str(life))
