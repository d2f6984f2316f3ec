"""The cache of payloads that may be asked for."""

from __future__ import annotations

from gossip.config import GossipConfig
from gossip.payloads import Payload, PayloadCache
from gossip.plumtree_codec import MessageId
from transport.types import NodeId


def payload(number: int, *, size: int = 10, born_at: float = 0.0) -> Payload:
    """One of origin ``o``."""
    return Payload(MessageId(NodeId("o"), 1, number), b"x" * size, 1, 1, born_at, born_at, None)


def kept(cache: PayloadCache, now: float = 0.0) -> list[int]:
    """The numbers that are found, newest first."""
    return [found.id.sequence for found in cache.young(now)]


def test_the_oldest_goes_first_when_there_are_too_many() -> None:
    """By count."""
    cache = PayloadCache(GossipConfig(plumtree_cache_count_max=2))
    for number in (1, 2, 3):
        cache.add(payload(number), 0.0)

    assert kept(cache) == [3, 2]
    assert (len(cache), cache.size_bytes) == (2, 20)


def test_the_oldest_goes_first_when_there_is_too_much() -> None:
    """By bytes, but a single one is kept whatever its size."""
    cache = PayloadCache(GossipConfig(plumtree_cache_bytes_max=25))
    for number in (1, 2, 3):
        cache.add(payload(number), 0.0)
    assert kept(cache) == [3, 2]

    cache.add(payload(4, size=100), 0.0)

    assert kept(cache) == [4]


def test_what_is_too_old_is_neither_found_nor_kept() -> None:
    """Also where it stands behind a younger one and so is not dropped yet."""
    cache = PayloadCache(GossipConfig(plumtree_age_s=10))
    cache.add(payload(1, born_at=5.0), 5.0)
    cache.add(payload(2, born_at=1.0), 5.0)

    assert kept(cache, 11.0) == [1]
    assert cache.get(payload(2).id, 11.0) is None
    assert cache.get(payload(1).id, 11.0) is not None
    assert cache.get(payload(3).id, 11.0) is None
    cache.expire(15.0)
    assert (len(cache), cache.size_bytes) == (0, 0)
