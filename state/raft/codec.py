"""The bytes of the protocol: positional MessagePack arrays ``[type, group, term, ...]``; ``docs/protocol/raft.md``.

====================  ================================================================================================
VOTE_REQUEST 0        ``last_index, last_term, pre, transfer``
VOTE_REPLY 1          ``granted, pre``
APPEND 2              ``previous_index, previous_term, commit, entries``
APPEND_REPLY 3        ``accepted, index, hint_index, hint_term``
HEARTBEAT 4           ``commit, round``
HEARTBEAT_REPLY 5     ``round``
INSTALL_SNAPSHOT 6    ``index, term, configuration``
TIMEOUT_NOW 7         nothing
READ_ASK 8            ``number``
READ_ANSWER 9         ``number, index or nil``
====================  ================================================================================================

Entries are ``[term, content]``, their indexes following from the first; content is bin (data), nil (nothing), or a
configuration: ``[voters, learners, outgoing, auto_leave]``.  A shell stores contents in the same encoding.

Further fields are ignored, and bodies of unknown type as a whole; all else that does not fit raises
:class:`~transport.errors.RemoteProtocolError`.  Everything counted is capped here; whether it makes sense is for
:mod:`state.raft.checks`.
"""

# core: no I/O

from __future__ import annotations

from typing import Final, TypeGuard

from transport.errors import InvalidName, LocalProtocolError, RemoteProtocolError
from transport.types import NodeId, node_id
from transport.wire import BODY_BYTES_MAX, pack, unpack_body

from .configuration import LEARNERS_MAX, VOTERS_MAX, Configuration
from .messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    ReadAnswer,
    ReadAsk,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from .types import ENTRY_BYTES_MAX, GROUP_BYTES_MAX, INDEX_MAX, Entry, Snapshot

#: Entries that one message may carry.
ENTRIES_MAX: Final = 1_024
#: Values in one message: entries with their fields, and the members of configurations, as far as their weight allows.
_NODES_MAX: Final = 8 * ENTRIES_MAX
_FIELDS_MAX: Final = 16
_TYPES: Final = (
    VoteRequest,
    VoteReply,
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    TimeoutNow,
    ReadAsk,
    ReadAnswer,
)
#: How many fields each type has after the term.
_COUNTS: Final = (4, 2, 4, 4, 2, 1, 3, 0, 1, 2)


def encode(group: str, message: Message) -> bytes:
    """The body of one message.

    Raises:
        LocalProtocolError: It is larger than a body may be, which the limits of a group should not allow.
    """
    body = pack([_TYPES.index(type(message)), group, message.term, *_fields(message)])
    if len(body) > BODY_BYTES_MAX:
        raise LocalProtocolError(f"a message of {len(body)} bytes", hint="lower append_bytes_max")
    return body


def _fields(message: Message) -> list[object]:
    match message:
        case VoteRequest():
            return [message.last_index, message.last_term, message.pre, message.transfer]
        case VoteReply():
            return [message.granted, message.pre]
        case Append():
            entries = [[entry.term, content_fields(entry.content)] for entry in message.entries]
            return [message.previous_index, message.previous_term, message.commit, entries]
        case AppendReply():
            return [message.accepted, message.index, message.hint_index, message.hint_term]
        case Heartbeat():
            return [message.commit, message.round]
        case HeartbeatReply():
            return [message.round]
        case InstallSnapshot(snapshot=snapshot):
            return [snapshot.index, snapshot.term, content_fields(snapshot.configuration)]
        case TimeoutNow():
            return []
        case ReadAsk():
            return [message.number]
        case _:
            return [message.number, message.index]


def decode(data: bytes) -> tuple[str, Message] | None:
    """Read one body: its group, and the message.

    Returns:
        ``None`` for a type that only a later version knows.

    Raises:
        RemoteProtocolError: The bytes are not such a body within the limits.
    """
    if len(data) > BODY_BYTES_MAX:
        raise RemoteProtocolError(f"raft: a body of {len(data)} bytes exceeds {BODY_BYTES_MAX}")
    body = _list(unpack_body(data, nodes_max=_NODES_MAX, depth_max=None), 3, _FIELDS_MAX, "body")
    kind = _whole(body[0], "type")
    if kind >= len(_TYPES):
        return None
    group = body[1]
    if type(group) is not str or not 0 < len(group.encode()) <= GROUP_BYTES_MAX:
        raise RemoteProtocolError("raft: no usable group")
    if len(body) < 3 + _COUNTS[kind]:
        raise RemoteProtocolError(f"raft: a body of type {kind} with {len(body)} fields")
    return group, _message(_TYPES[kind], _whole(body[2], "term"), body[3 : 3 + _COUNTS[kind]])


def _message(kind: type[Message], term: int, fields: list[object]) -> Message:
    if kind is VoteRequest:
        index, last_term, pre, transfer = fields
        return VoteRequest(term, _whole(index, "index"), _whole(last_term, "term"), _flag(pre), _flag(transfer))
    if kind is VoteReply:
        return VoteReply(term, _flag(fields[0]), _flag(fields[1]))
    if kind is Append:
        return _append(term, fields)
    if kind is AppendReply:
        index, hint_index, hint_term = (_whole(field, "index or term") for field in fields[1:])
        return AppendReply(term, _flag(fields[0]), index, hint_index, hint_term)
    if kind is Heartbeat:
        return Heartbeat(term, _whole(fields[0], "index"), _whole(fields[1], "round"))
    if kind is HeartbeatReply:
        return HeartbeatReply(term, _whole(fields[0], "round"))
    if kind is InstallSnapshot:
        index, place = _whole(fields[0], "index"), _whole(fields[1], "term")
        return InstallSnapshot(term, Snapshot(index, place, read_configuration(fields[2])))
    if kind is TimeoutNow:
        return TimeoutNow(term)
    if kind is ReadAsk:
        return ReadAsk(term, _whole(fields[0], "number"))
    return ReadAnswer(term, _whole(fields[0], "number"), None if fields[1] is None else _whole(fields[1], "index"))


def _append(term: int, fields: list[object]) -> Append:
    previous, previous_term, commit = (_whole(field, "index or term") for field in fields[:3])
    entries = []
    for index, pair in enumerate(_list(fields[3], 0, ENTRIES_MAX, "entries"), previous + 1):
        entry_term, content = _list(pair, 2, 2, "entry")
        entries.append(Entry(index, _whole(entry_term, "term"), read_content(content)))
    return Append(term, previous, previous_term, commit, tuple(entries))


# --- what entries hold: also how it is stored -----------------------------------------------------------------------


def content_fields(content: bytes | Configuration | None) -> object:
    """What an entry holds, as MessagePack can carry it."""
    if isinstance(content, Configuration):
        return [content.voters, content.learners, content.outgoing, content.auto_leave]
    return content


def read_content(fields: object) -> bytes | Configuration | None:
    """The inverse of :func:`content_fields`.

    Raises:
        RemoteProtocolError: It is nothing that an entry can hold.
    """
    if fields is None:
        return None
    if type(fields) is bytes:
        if len(fields) > ENTRY_BYTES_MAX:
            raise RemoteProtocolError(f"raft: an entry of {len(fields)} bytes exceeds {ENTRY_BYTES_MAX}")
        return fields
    return read_configuration(fields)


def read_configuration(fields: object) -> Configuration:
    """The inverse of :func:`content_fields` for a configuration.

    Raises:
        RemoteProtocolError: It is none.
    """
    voters, learners, outgoing, auto_leave = _list(fields, 4, 4, "configuration")
    try:
        return Configuration(
            _nodes(voters, VOTERS_MAX), _nodes(learners, LEARNERS_MAX), _nodes(outgoing, VOTERS_MAX), _flag(auto_leave)
        )
    except (InvalidName, ValueError) as error:
        raise RemoteProtocolError(f"raft: configuration: {str(error)[:200]}") from error


def _nodes(value: object, most: int) -> tuple[NodeId, ...]:
    names = _list(value, 0, most, "members")
    if any(type(name) is not str for name in names):
        raise RemoteProtocolError("raft: members are not node ids")
    return tuple(node_id(str(name)) for name in names)


def _list(value: object, least: int, most: int, what: str) -> list[object]:
    if not _is_list(value) or not least <= len(value) <= most:
        raise RemoteProtocolError(f"raft: {what} is not an array of {least} to {most}")
    return value


def _is_list(value: object) -> TypeGuard[list[object]]:
    return type(value) is list


def _whole(value: object, what: str) -> int:
    if type(value) is not int or not 0 <= value <= INDEX_MAX:
        raise RemoteProtocolError(f"raft: {what} is not an integer from 0 to {INDEX_MAX}")
    return value


def _flag(value: object) -> bool:
    if type(value) is not bool:
        raise RemoteProtocolError("raft: a flag is neither true nor false")
    return value
