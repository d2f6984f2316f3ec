"""The payloads that may still be asked for: a cache bounded by count, bytes and age.

Lazy peers get ids only, so a node keeps what it announced until nobody can want it any more.  The oldest goes
first; a payload that alone is larger than the bound is still kept, else it could never be repaired.  The age of a
broadcast is the time it spent at nodes since it was made (links do not add to it), so that no clock has to agree
with another, and what is too old is neither kept nor passed on: nothing circulates for ever.
"""

# core: no I/O

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from transport.types import NodeId

from .config import GossipConfig
from .plumtree_codec import MessageId


@dataclass(slots=True)
class Payload:
    """A broadcast as it came: ``ttl`` and ``hops`` are those of its first copy, bettered by later news."""

    id: MessageId
    sealed: bytes
    ttl: int
    hops: int
    taken_at: float
    born_at: float
    """On our clock: when it was made, as far as its age tells."""
    parent: NodeId | None
    awaited: NodeId | None = None
    """Whose second copy is welcome: we asked for it, and then the first came by a slower way."""


class PayloadCache:
    """Payloads by id, oldest first.

    Args:
        config: ``plumtree_cache_count_max``, ``plumtree_cache_bytes_max``, ``plumtree_age_s``.
    """

    def __init__(self, config: GossipConfig) -> None:
        self._config = config
        self._payloads: dict[MessageId, Payload] = {}
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._payloads)

    def add(self, payload: Payload, now: float) -> None:
        """Keep a payload that is not yet kept, and drop what must go for it."""
        self._payloads[payload.id] = payload
        self.size_bytes += len(payload.sealed)
        self.expire(now)

    def get(self, id_: MessageId, now: float) -> Payload | None:
        """The payload, unless it is gone or too old."""
        payload = self._payloads.get(id_)
        return None if payload is None or self._is_old(payload, now) else payload

    def young(self, now: float) -> Iterator[Payload]:
        """All that are not too old, newest first."""
        return (payload for payload in reversed(self._payloads.values()) if not self._is_old(payload, now))

    def expire(self, now: float) -> None:
        """Drop what is too old or too much."""
        while self._payloads:
            oldest = next(iter(self._payloads.values()))
            much = self.size_bytes > self._config.plumtree_cache_bytes_max and len(self._payloads) > 1
            if not (much or len(self._payloads) > self._config.plumtree_cache_count_max or self._is_old(oldest, now)):
                return
            del self._payloads[oldest.id]
            self.size_bytes -= len(oldest.sealed)

    def _is_old(self, payload: Payload, now: float) -> bool:
        return now - payload.born_at >= self._config.plumtree_age_s
