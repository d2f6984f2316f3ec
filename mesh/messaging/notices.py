"""What travels inside a ``CALLS`` envelope: what nodes have to say about messages and requests that are under way.

Core: no I/O.  An asker says two things: that it does not want the answer any more, and how much more of a stream it
takes.  A notice that a request is *given up* takes the request's own lane, behind it, so that it never comes first;
credit takes the control lane, because it answers to parts that have come.  The other columns are about agents that move
(:mod:`.moves`).  The layout is specified in ``docs/protocol/messages.md``.
"""
# core: no I/O

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from transport.errors import RemoteProtocolError
from transport.types import Priority
from transport.wire import pack, unpack_body

#: In one body, of each kind.
NOTICES_MAX: Final = 1_024

_COUNT_MAX: Final = 2**63 - 1
_FIELDS: Final = 6


class GivenUp(NamedTuple):
    """Nobody waits for the answer to a query any more.

    Attributes:
        sequence: The query's, in the life of its sender.
        from_agent: Who asked.
        to_agent: Who was asked.
    """

    sequence: int
    from_agent: int
    to_agent: int


class Credit(NamedTuple):
    """How far a stream may go, counted from its beginning.

    Attributes:
        sequence: Of the query that it answers.
        parts: How many parts may have been started in all.
        size_bytes: Below how many bytes in all a part may start.
    """

    sequence: int
    parts: int
    size_bytes: int


class Handled(NamedTuple):
    """How far an agent has handled what the peer sent it: up to these sequences, by priority.

    Attributes:
        agent_id: The agent.
        low, normal, high, urgent: The marks; 0: none yet.
    """

    agent_id: int
    low: int
    normal: int
    high: int
    urgent: int


class Waiting(NamedTuple):
    """Messages that waited for an agent which is gone; said ahead of :class:`Gone`.

    Attributes:
        agent_id: The agent.
        first: The sequence of the first.
        messages: How many with the sequences from there on.
    """

    agent_id: int
    first: int
    messages: int


class Gone(NamedTuple):
    """An agent is gone from here, or never was.

    Attributes:
        agent_id: The agent.
        number: How often this was said of the agent on this link, this time included.
        low, normal, high, urgent: Up to which sequences messages had come for it, by priority; 0: none.
    """

    agent_id: int
    number: int
    low: int
    normal: int
    high: int
    urgent: int


class Heard(NamedTuple):
    """The answer to :class:`Gone`, in each priority's lane: what follows in it is meant anew.

    Attributes:
        agent_id: The agent.
        number: Of what was heard.
        priority: The lane.
    """

    agent_id: int
    number: int
    priority: int


@dataclass(frozen=True, slots=True)
class Notices:
    """A decoded ``CALLS`` body.  A peer without the feature ``moves`` gets the first two columns only."""

    given_up: Sequence[GivenUp] = ()
    credit: Sequence[Credit] = ()
    handled: Sequence[Handled] = ()
    waiting: Sequence[Waiting] = ()
    gone: Sequence[Gone] = ()
    heard: Sequence[Heard] = ()


def encode_notices(notices: Notices) -> bytes:
    """Write the body of a ``CALLS`` envelope; of each kind at most :data:`NOTICES_MAX`."""
    columns = [list(notices.given_up), list(notices.credit)]
    moves = [list(notices.handled), list(notices.waiting), list(notices.gone), list(notices.heard)]
    return pack(columns + moves if any(moves) else columns)


def decode_notices(body: bytes) -> Notices:
    """Read the body of a ``CALLS`` envelope.

    Raises:
        RemoteProtocolError: It is not such a body.
    """
    fields = unpack_body(body)
    if type(fields) is not list or len(fields) < 2:
        raise RemoteProtocolError("calls body: not an array of at least two fields")
    given_up = [GivenUp(*entry) for entry in _entries(fields[0], 3)]
    credit = [Credit(*entry) for entry in _entries(fields[1], 3)]
    if len(fields) < _FIELDS:
        return Notices(given_up, credit)
    handled = tuple(Handled(*entry) for entry in _entries(fields[2], 5, agent_first=True))
    waiting = tuple(Waiting(*entry) for entry in _entries(fields[3], 3, agent_first=True))
    gone = tuple(Gone(*entry) for entry in _entries(fields[4], 6, agent_first=True))
    heard = tuple(Heard(*entry) for entry in _entries(fields[5], 3, agent_first=True))
    if any(one.priority >= len(Priority) for one in heard):
        raise RemoteProtocolError("calls body: no such priority")
    return Notices(given_up, credit, handled, waiting, gone, heard)


def _entries(column: Any, width: int, *, agent_first: bool = False) -> list[list[int]]:
    if type(column) is not list or len(column) > NOTICES_MAX:
        raise RemoteProtocolError("calls body: not a list, or too long")
    entries = []
    for entry in column:
        if type(entry) is not list or len(entry) < width:
            raise RemoteProtocolError("calls body: an entry has too few fields")
        counts = entry[:width]
        # Agents' ids go up to 2**64 - 1; MessagePack has nothing above that.
        if any(type(count) is not int or count < 0 for count in counts):
            raise RemoteProtocolError("calls body: an entry holds something that is no count")
        if max(counts[1:]) > _COUNT_MAX if agent_first else counts[0] > _COUNT_MAX:
            raise RemoteProtocolError("calls body: an entry holds a count out of range")
        entries.append(counts)
    return entries
