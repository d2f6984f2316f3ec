"""Identities, entropy and pairs of pairings for tests of ``mesh.sealing``: in memory, in milliseconds."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mesh.sealing.chains import Limits
from mesh.sealing.handshake import Identity, Moment, Peer
from mesh.sealing.pairing import Pairing
from mesh.sealing.session import Session
from transport.identity import certificates, keys
from transport.identity.names import Role, Subject
from transport.types import network_name, node_id
from transport.wire import Kind

#: When all of it happens.
WALL = datetime(2026, 1, 1, tzinfo=UTC)
NOW = Moment(100.0, WALL.timestamp())
NETWORK = "test"

Made = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def later(seconds: float) -> Moment:
    """That long after :data:`NOW`, on both clocks."""
    return Moment(NOW.monotonic + seconds, NOW.wall + seconds)


@functools.cache
def authority(name: str) -> Made:
    """An authority; the same one for the same name."""
    key = keys.new_tls_key()
    began, ends = WALL - timedelta(days=1), WALL + timedelta(days=3650)
    return certificates.build_authority(key, organisation="peermesh", name=name, not_before=began, not_after=ends), key


def identity(
    name: str,
    life: int = 1,
    *,
    network: str = NETWORK,
    by: str = "test",
    begins_s: float = -60.0,
    lasts_s: float = 7 * 86_400.0,
    role: Role = Role.NODE,
    curve: ec.EllipticCurve | None = None,
) -> Identity:
    """A node's identity; what is not as it should be is named."""
    key = ec.generate_private_key(curve or keys.CURVE)
    certificate, authority_key = authority(by)
    leaf = certificates.build_leaf(
        key.public_key(),
        Subject(network_name(network), role, name),
        authority=certificate,
        authority_key=authority_key,
        not_before=WALL + timedelta(seconds=begins_s),
        not_after=WALL + timedelta(seconds=lasts_s),
    )
    return Identity(
        network_name(network),
        node_id(name),
        life,
        certificates.der(leaf),
        key,
        authority("test")[0],
        leaf.not_valid_after_utc.timestamp(),
    )


def entropy(seed: str = "") -> Callable[[int], bytes]:
    """Bytes that are the same in each run, and never the same twice in one."""
    count = 0

    def draw(size: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_256(f"{seed} {count}".encode()).digest(size)

    return draw


def peer_of(one: Identity) -> Peer:
    """How the other side knows it."""
    return Peer(one.node_id, one.life)


class Couple:
    """Two pairings and the wire between them; what the test does not carry over was lost or is still under way."""

    def __init__(
        self,
        a: Identity | None = None,
        b: Identity | None = None,
        *,
        sessions: tuple[Session | None, Session | None] = (None, None),
        limits: Limits | None = None,
        now: Moment = NOW,
    ) -> None:
        self.identities = [a or identity("a"), b or identity("b")]
        self.limits = limits or Limits()
        self.a, self.b = (
            Pairing(
                functools.partial(self.identities.__getitem__, side),
                peer_of(self.identities[1 - side]),
                sessions[side],
                entropy=entropy(f"{side}"),
                now=now,
                limits=self.limits,
            )
            for side in (0, 1)
        )

    def other(self, side: Pairing) -> Pairing:
        """The other end."""
        return self.b if side is self.a else self.a

    def carry(self, side: Pairing, now: Moment = NOW) -> list[Kind]:
        """Bring what ``side`` wants sent to the other end; returns the kinds."""
        kinds = []
        for kind, body in side.take_outgoing():
            kinds.append(kind)
            receive(self.other(side), kind, body, now)
        return kinds

    def settle(self, now: Moment = NOW) -> int:
        """Carry everything both ways until nobody wants anything sent; returns how many envelopes that were."""
        count = 0
        while moved := self.carry(self.a, now) + self.carry(self.b, now):
            count += len(moved)
        return count

    def connect(self, now: Moment = NOW) -> Couple:
        """Agree on keys, ``a`` beginning."""
        self.a.want(now)
        self.settle(now)
        assert self.a.is_ready
        assert self.b.is_ready
        return self


def receive(side: Pairing, kind: Kind, body: bytes, now: Moment = NOW) -> None:
    """Hand an envelope to a pairing."""
    if kind is Kind.SEALED:
        side.open(body, now.monotonic)
    else:
        assert kind is Kind.KEYS
        side.keys_received(body, now)
