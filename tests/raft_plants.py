"""Violations planted in the Raft cores, each a mistake that implementations have really made.

They prove that the simulator's checkers see: ``tests/state/raft/test_simulation.py`` wants each found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from state.raft.configuration import Configuration
from state.raft.durable import Durable, Needs
from state.raft.events import Reason
from state.raft.leader import Leader
from state.raft.log import Log
from state.raft.messages import Message, ReadAnswer
from state.raft.node import RaftCore
from state.raft.reads import Origin
from state.raft.types import Vote
from transport.types import NodeId


def _vote_twice() -> dict[str, Any]:
    """Gives its vote to whoever asks, however often (against section 5.2)."""

    def set_vote(self: Durable, term: int, candidate: NodeId | None) -> None:
        self._vote, self._new_vote = Vote(term, candidate), True

    return {"Durable.vote": property(lambda self: None), "Durable.set_vote": set_vote}


def _forget_the_vote() -> dict[str, Any]:
    """Answers a request for its vote before the vote is stored (against figure 2)."""
    return {"Durable.send": _early(lambda needs: Needs.NOTHING if needs is Needs.VOTE else needs)}


def _acknowledge_early() -> dict[str, Any]:
    """Acknowledges entries before they are stored (against figure 2)."""
    return {"Durable.send": _early(lambda needs: Needs.VOTE if needs is Needs.LOG else needs)}


def _early(change: Callable[[Needs], Needs]) -> Any:
    send = Durable.send

    def sooner(self: Durable, peer: NodeId, message: Message, needs: Needs) -> None:
        send(self, peer, message, change(needs))

    return sooner


def _count_itself_early() -> dict[str, Any]:
    """A leader counts itself for entries that its own disk does not have yet."""

    def match(self: Leader, node: NodeId) -> int:
        return self._log.last_index if node == self._owner else self._progress[node].match

    return {"Leader._match": match}


def _commit_by_counting() -> dict[str, Any]:
    """A leader commits an older term's entry because a majority has it (figure 8)."""

    def advance(self: Leader) -> None:
        index = self._log.configuration.reached(self._match)
        if index > self._log.committed:
            self._log.committed = index
            self._uncommitted_bytes = 0
            self._feed_all()
            self._settle_configuration()
            self._next_round()

    return {"Leader._advance": advance}


def _elect_anyone() -> dict[str, Any]:
    """Votes for candidates that lack entries (against section 5.4.1)."""
    return {"Log.is_behind": lambda self, last_index, last_term: True}


def _ignore_the_outgoing() -> dict[str, Any]:
    """Only the incoming voters decide while two configurations rule jointly (against section 6)."""

    def agreed(self: Configuration, says_yes: Callable[[NodeId], bool]) -> bool:
        return 2 * sum(map(says_yes, self.voters)) > len(self.voters)

    def reached(self: Configuration, value: Callable[[NodeId], int]) -> int:
        return sorted(map(value, self.voters), reverse=True)[len(self.voters) // 2]

    return {"Configuration.agreed": agreed, "Configuration.reached": reached}


def _read_unconfirmed() -> dict[str, Any]:
    """A leader answers reads without asking whether it still leads (against section 8)."""

    def read(self: Leader, origin: Origin) -> None:
        if origin.peer is None:
            self._local.confirmed(origin.number, self._log.committed)
        else:
            self._send(origin.peer, ReadAnswer(self._durable.term, origin.number, self._log.committed))

    return {"Leader.read": read}


def _read_before_own_term() -> dict[str, Any]:
    """A new leader answers reads before it knows what is committed (against section 8)."""

    def next_round(self: Leader) -> None:
        if self._reads.begin(self._log.committed):
            self._beat()
            self._confirm()

    return {"Leader._next_round": next_round}


def _keep_what_differs() -> dict[str, Any]:
    """A follower appends after entries that differ from the leader's (against section 5.3)."""
    return {"Log.has": lambda self, index, term: index <= self.last_index}


def _change_many_at_once() -> dict[str, Any]:
    """Replaces all voters in one step (against section 6)."""

    def change(
        self: Leader, number: int, voters: tuple[NodeId, ...], learners: tuple[NodeId, ...], *, auto_leave: bool
    ) -> None:
        if self._may_change(number, joint=False):
            self._reconfigure(Configuration(tuple(sorted(voters)), tuple(sorted(learners))))
        else:
            self._refuse(number, Reason.BUSY)

    return {"Leader.change": change}


PLANTS: dict[str, Callable[[], dict[str, Any]]] = {
    plant.__name__.lstrip("_"): plant
    for plant in (
        _vote_twice,
        _forget_the_vote,
        _acknowledge_early,
        _count_itself_early,
        _commit_by_counting,
        _elect_anyone,
        _ignore_the_outgoing,
        _read_unconfirmed,
        _read_before_own_term,
        _keep_what_differs,
        _change_many_at_once,
    )
}

_CLASSES = {cls.__name__: cls for cls in (Configuration, Durable, Leader, Log, RaftCore)}


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """The cores with one of :data:`PLANTS`."""
    with contextlib.ExitStack() as stack:
        for place, replacement in PLANTS[name]().items():
            owner, _, attribute = place.partition(".")
            stack.enter_context(mock.patch.object(_CLASSES[owner], attribute, replacement))
        yield
