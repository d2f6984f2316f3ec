"""What travels inside a ``CALLS`` envelope: what an asker has to say about requests that are under way.

Core: no I/O.  Two things: that it does not want the answer any more, and how much more of a stream it takes.  A notice
that a request is *given up* takes the request's own lane, behind it, so that it never comes first; credit takes the
control lane, because it answers to parts that have come.  The layout is specified in ``docs/protocol/messages.md``.
"""
# core: no I/O

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from transport.errors import RemoteProtocolError
from transport.wire import pack, unpack_body

#: In one body, of each kind.
NOTICES_MAX: Final = 1_024

_COUNT_MAX: Final = 2**63 - 1


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


@dataclass(frozen=True, slots=True)
class Notices:
    """A decoded ``CALLS`` body."""

    given_up: Sequence[GivenUp] = ()
    credit: Sequence[Credit] = ()


def encode_notices(notices: Notices) -> bytes:
    """Write the body of a ``CALLS`` envelope; of each kind at most :data:`NOTICES_MAX`."""
    return pack([list(notices.given_up), list(notices.credit)])


def decode_notices(body: bytes) -> Notices:
    """Read the body of a ``CALLS`` envelope.

    Raises:
        RemoteProtocolError: It is not such a body.
    """
    fields = unpack_body(body)
    if type(fields) is not list or len(fields) < 2:
        raise RemoteProtocolError("calls body: not an array of at least two fields")
    given_up = [GivenUp(*entry) for entry in _entries(fields[0])]
    return Notices(given_up, [Credit(*entry) for entry in _entries(fields[1])])


def _entries(column: Any) -> list[list[int]]:
    if type(column) is not list or len(column) > NOTICES_MAX:
        raise RemoteProtocolError("calls body: not a list, or too long")
    entries = []
    for entry in column:
        if type(entry) is not list or len(entry) < 3:
            raise RemoteProtocolError("calls body: an entry has too few fields")
        counts = entry[:3]
        # Agents' ids go up to 2**64 - 1; MessagePack has nothing above that.
        if any(type(count) is not int or count < 0 for count in counts) or counts[0] > _COUNT_MAX:
            raise RemoteProtocolError("calls body: an entry holds something that is no count")
        entries.append(counts)
    return entries
