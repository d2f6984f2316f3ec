"""Nothing is said before what it depends on is stored."""

from __future__ import annotations

import pytest

from state.raft.configuration import Configuration
from state.raft.durable import Durable, Needs
from state.raft.events import Effect, Persist, Role, RoleChanged, Send
from state.raft.messages import TimeoutNow
from state.raft.types import Entry, Snapshot, Stored, Vote
from transport.errors import LocalProtocolError
from transport.types import NodeId

A, B = NodeId("a"), NodeId("b")
HELLO = TimeoutNow(1)


def durable(held_max: int = 9) -> Durable:
    """A member of a and b, in term 1 with one entry."""
    return Durable(Stored(Vote(1), entries=(Entry(1, 1, Configuration((A, B))),)), held_max)


def kinds(effects: list[Effect]) -> list[str]:
    """What effects there are, in their order."""
    return [type(effect).__name__ for effect in effects]


def test_each_message_waits_for_what_it_needs() -> None:
    """One that needs nothing leaves at once, one that needs the vote with the write that has it, and so on."""
    store = durable()
    store.set_vote(2, B)
    for needs in (Needs.VOTE, Needs.NOTHING):
        store.send(B, HELLO, needs)
    assert store.taken() == [Persist(1, Vote(2, B), None, ()), Send(B, HELLO)]
    assert (store.term, store.vote, store.vote_stored, store.held) == (2, B, False, 1)
    entry = Entry(2, 2, b"x")
    assert store.merge((entry,))
    store.send(A, HELLO, Needs.LOG)
    assert store.taken() == [Persist(2, None, None, (entry,))]
    store.persisted(1)
    assert store.taken() == [Send(B, HELLO)]
    assert store.vote_stored
    store.send(B, HELLO, Needs.VOTE)
    assert store.taken() == [Send(B, HELLO)]
    store.persisted(2)
    assert store.taken() == [Send(A, HELLO)]
    assert store.log.persisted == 2


def test_the_write_comes_first() -> None:
    """Whatever order things were asked for in."""
    store = durable()
    store.effect(RoleChanged(Role.FOLLOWER, 2, None))
    store.send(B, HELLO, Needs.NOTHING)
    store.set_vote(2, None)
    assert kinds(store.taken()) == ["Persist", "Send", "RoleChanged"]


def test_what_finds_no_room_to_wait_is_dropped_and_counted() -> None:
    """Raft bears the loss of messages."""
    store = durable(held_max=1)
    store.set_vote(2, B)
    store.send(A, HELLO, Needs.VOTE)
    store.send(B, HELLO, Needs.VOTE)
    store.taken()
    assert (store.held, store.held_dropped) == (1, 1)


def test_entries_that_were_cut_off_are_not_counted_as_stored() -> None:
    """A write that is done later than its entries were replaced has stored only those before."""
    store = durable()
    store.append([Entry(2, 1, b"2"), Entry(3, 1, b"3")])
    store.taken()
    assert store.merge((Entry(3, 2, b"x"),))
    assert not store.merge((Entry(3, 2, b"x"),))
    assert store.taken() == [Persist(2, None, None, (Entry(3, 2, b"x"),))]
    store.persisted(1)
    assert store.log.persisted == 2
    store.persisted(2)
    assert store.log.persisted == 3


def test_changes_of_one_event_are_one_write() -> None:
    """From the first index that is new."""
    store = durable()
    store.append([Entry(2, 1, b"2")])
    store.append([Entry(3, 1, b"3")])
    store.set_vote(2, A)
    assert store.taken() == [Persist(1, Vote(2, A), None, (Entry(2, 1, b"2"), Entry(3, 1, b"3")))]


def test_a_snapshot_takes_the_place_of_writes_under_way() -> None:
    """Only its own write makes it stored."""
    store = durable()
    store.append([Entry(2, 1, b"2")])
    store.taken()
    snapshot = Snapshot(7, 1, Configuration((A,)))
    store.restore(snapshot)
    assert store.taken() == [Persist(2, None, snapshot, ())]
    store.persisted(1)
    assert store.log.persisted == 0
    store.persisted(2)
    assert store.log.persisted == 7


@pytest.mark.parametrize("number", [0, 2, -1])
def test_only_writes_under_way_can_be_done(number: int) -> None:
    """Anything else is a mistake of the shell, and changes nothing."""
    store = durable()
    store.set_vote(2, None)
    store.taken()
    with pytest.raises(LocalProtocolError):
        store.persisted(number)
    store.persisted(1)
    with pytest.raises(LocalProtocolError):
        store.persisted(1)


def test_a_vote_is_never_taken_back() -> None:
    """Neither is a term."""
    store = durable()
    store.set_vote(3, A)
    with pytest.raises(AssertionError):
        store.set_vote(3, B)
    with pytest.raises(AssertionError):
        store.set_vote(2, B)
