"""Frames and envelopes (first sketch: the wire core fills this in)."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Kind(enum.IntEnum):
    """What an envelope's body is.  Numbers are for ever; see ``docs/protocol/wire.md``."""

    HELLO = 0
    PING = 1
    PONG = 2
    BYE = 3
    MEMBERSHIP = 16
    BROADCAST = 17
    MESSAGES = 32
    ACKS = 33
    RENEWAL = 48


class Envelope(NamedTuple):
    """A routing header, which a relay may touch, and a sealed body, which it forwards as the same bytes.

    The field order is the wire order.
    """

    kind: int
    ttl: int
    """Hops this envelope may still take; a node that would forward it at 0 drops it instead."""
    source: str | None
    """The node it comes from; ``None``: the peer at the other end of the link."""
    target: str | None
    """The node it is for; ``None``: whoever receives it."""
    body: bytes
