"""The broadcast core on its own."""

from __future__ import annotations

import pytest

from gossip.broadcast import BroadcastCore
from gossip.codec import BroadcastBody, encode_broadcast
from gossip.config import GossipConfig
from gossip.events import (
    BroadcastRequested,
    Deliver,
    Effect,
    LinkLost,
    LinkOpened,
    Member,
    MemberState,
    Received,
    Send,
    Started,
)
from gossip.incarnation import make_incarnation
from transport.errors import LocalProtocolError
from transport.types import NodeId
from transport.wire import Kind

ME = Member(NodeId("me"), make_incarnation(9), MemberState.ALIVE)


def core(*peers: str, **limits: float) -> BroadcastCore:
    """A core of node ``me`` that is linked to peers."""
    made = BroadcastCore(ME, GossipConfig(**limits))  # type: ignore[arg-type]
    for peer in peers:
        assert made.handle(LinkOpened(NodeId(peer), make_incarnation(1), ()), 0.0) == []
    return made


def arrive(
    at: BroadcastCore, sequence: int, *, life: int = 1, ttl: int = 3, origin: str = "o", peer: str = "a", now: float = 0
) -> list[Effect]:
    """A broadcast of an origin arrives from a peer."""
    body = encode_broadcast(BroadcastBody(NodeId(origin), make_incarnation(life), sequence, b"p"))
    return at.handle(Received(NodeId(peer), body, Kind.BROADCAST, ttl), now)


def delivered(effects: list[Effect]) -> list[int]:
    """The sequences that were delivered."""
    return [effect.sequence for effect in effects if isinstance(effect, Deliver)]


def sends(effects: list[Effect]) -> list[tuple[str, int]]:
    """To whom, with which TTL."""
    return [(effect.peer, effect.ttl) for effect in effects if isinstance(effect, Send)]


def test_our_own_goes_to_every_peer_with_one_hop_used() -> None:
    """The first hop costs one; the sequence counts."""
    made = core("a", "b", "c")
    made.handle(LinkLost(NodeId("c")), 0.0)

    assert sends(made.handle(BroadcastRequested(b"x", 4), 0.0)) == [("a", 3), ("b", 3)]
    assert made.sequence == 1
    assert made.handle(Started(), 0.0) == []


@pytest.mark.parametrize(
    "request_", [BroadcastRequested(b"x", 0), BroadcastRequested(b"x", 256), BroadcastRequested(b"x" * (1 << 20), 1)]
)
def test_what_may_not_be_sent_is_refused(request_: BroadcastRequested) -> None:
    """TTL and size; the sequence is not used up."""
    made = core("a")

    with pytest.raises(LocalProtocolError):
        made.handle(request_, 0.0)
    assert made.sequence == 0


def test_a_new_one_is_delivered_and_passed_on_but_not_back() -> None:
    """Neither to whom it came from nor to its origin."""
    made = core("a", "b", "o")

    effects = arrive(made, 1)

    assert delivered(effects) == [1]
    assert sends(effects) == [("b", 2)]


def test_a_spent_ttl_is_delivered_but_not_passed_on() -> None:
    """The last hop."""
    effects = arrive(core("a", "b"), 1, ttl=0)

    assert delivered(effects) == [1]
    assert sends(effects) == []


def test_duplicates_are_dropped_unless_they_reach_further() -> None:
    """A later copy with more TTL is passed on again, never delivered again."""
    made = core("a", "b", "c")
    arrive(made, 1, ttl=1)

    assert arrive(made, 1, ttl=1, peer="b") == []
    further = arrive(made, 1, ttl=3, peer="b")
    assert delivered(further) == []
    assert sends(further) == [("a", 2), ("c", 2)]
    assert arrive(made, 1, ttl=2, peer="b") == []


def test_our_own_coming_back_is_dropped() -> None:
    """Whoever sends it."""
    assert arrive(core("a", "b"), 1, origin="me") == []


def test_sequences_may_come_in_any_order_within_the_window() -> None:
    """Each once; what fell out of the window counts as seen."""
    made = core("a", broadcast_window=8)

    found = [delivered(arrive(made, n)) for n in (3, 1, 2, 1, 10, 9, 3, 2, 100, 99, 10)]

    assert found == [[3], [1], [2], [], [10], [9], [], [], [100], [99], []]
    assert made.counters["outdated"] == 2


def test_a_new_life_starts_anew_and_the_old_one_is_history() -> None:
    """A restarted origin counts from 1 again."""
    made = core("a")
    arrive(made, 5)

    assert delivered(arrive(made, 1, life=2)) == [1]
    assert delivered(arrive(made, 6, life=1)) == []


def test_origins_are_forgotten_by_silence_and_by_number() -> None:
    """The longest silent goes first."""
    made = core("a", broadcast_origins_max=2, broadcast_origin_s=10)
    arrive(made, 1, origin="p", now=0)
    arrive(made, 1, origin="q", now=1)
    arrive(made, 2, origin="p", now=2)
    arrive(made, 1, origin="r", now=3)
    assert made.origins == 2
    assert delivered(arrive(made, 2, origin="p", now=4)) == []

    arrive(made, 1, origin="s", now=30)

    assert made.origins == 1


def test_a_late_copy_after_everything_was_forgotten_still_ends() -> None:
    """Memory is bounded, so TTL alone must end it: each copy sent has less than the one received."""
    made = core("a", "b", broadcast_window=2)
    for sequence in range(1, 5000):
        arrive(made, sequence, ttl=1)

    assert arrive(made, 1, ttl=9) == []
