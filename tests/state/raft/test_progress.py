"""How fast a leader sends to one follower."""

from __future__ import annotations

from state.raft.progress import Pace, Progress

ROOM = (2, 1_000)


def replicating() -> Progress:
    """A follower that has four entries."""
    progress = Progress(1, 0.0)
    assert progress.accepted(4)
    return progress


def test_a_probe_is_one_message() -> None:
    """Until it is answered, or a heartbeat is."""
    progress = Progress(5, 0.0)
    assert progress.can_send(*ROOM)
    progress.sent(6, 10)
    assert not progress.can_send(*ROOM)
    progress.alive()
    assert progress.can_send(*ROOM)
    assert progress.next == 5


def test_what_is_accepted_opens_the_window() -> None:
    """Messages follow each other, as many and as heavy as may be unanswered."""
    progress = replicating()
    assert (progress.pace, progress.match, progress.next) == (Pace.REPLICATE, 4, 5)
    progress.sent(4, 0)
    progress.sent(6, 400)
    assert (progress.next, progress.inflight, progress.can_send(*ROOM)) == (7, 1, True)
    progress.sent(7, 600)
    assert not progress.can_send(*ROOM)
    assert not progress.can_send(9, 1_000)
    assert progress.accepted(6)
    assert (progress.inflight, progress.can_send(*ROOM)) == (1, True)
    assert not progress.accepted(5)
    progress.alive()
    assert progress.inflight == 0


def test_a_refusal_goes_back_to_probing() -> None:
    """From the place that the follower hints at, but never below what it has accepted, nor where it was tried."""
    progress = replicating()
    progress.sent(9, 10)
    assert progress.refused(9, 7)
    assert (progress.pace, progress.next, progress.inflight) == (Pace.PROBE, 7, 0)
    assert not progress.refused(9, 3)
    assert progress.refused(6, 9)
    assert progress.next == 6
    assert progress.refused(5, 1)
    assert progress.next == 5
    assert not progress.refused(4, 1)


def test_a_snapshot_stops_everything_until_it_is_there() -> None:
    """What the follower says meanwhile does not matter, unless it has come as far."""
    progress = replicating()
    progress.become(Pace.SNAPSHOT, 5, 9)
    assert not progress.can_send(*ROOM)
    assert not progress.refused(8, 2)
    assert progress.accepted(5)
    assert progress.pace is Pace.SNAPSHOT
    assert progress.accepted(9)
    assert (progress.pace, progress.next) == (Pace.REPLICATE, 10)
