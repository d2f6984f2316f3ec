"""What travels inside a ``MESSAGES`` and an ``ACKS`` envelope.

Core: no I/O.  One body carries every message that one node had for another in one turn of its event loop, at
one priority, so that what they share is written once (measured: a shared header costs a third of one header a
message).  Positional arrays, not maps: three times cheaper in MessagePack.  The layout is specified in
``docs/protocol/messages.md``; a decoder ignores trailing fields that it does not know.

Messages stay plain lists here, in wire order, because two objects a message is the difference between 300,000
and 200,000 messages a second; the ``F_*`` constants name the positions.
"""
# core: no I/O

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from mesh.types import AgentMessage, MessageType, Priority
from transport.errors import RemoteProtocolError
from transport.wire import BODY_BYTES_MAX, pack, unpack_body

# Positions in a message.
F_SEQUENCE: Final = 0
F_TYPE: Final = 1
F_FROM: Final = 2
F_TO: Final = 3
F_FLAGS: Final = 4
F_PAYLOAD: Final = 5
F_OFFSET: Final = 6
"""Milliseconds from the body's base time to the message's own timestamp."""
F_CORRELATION: Final = 7
"""In a response the sequence of the query it answers, in a query how long its asker still waits, ms; else nil."""
F_HEADERS: Final = 8
F_GROUP: Final = 9
F_DURABLE: Final = 10
"""Only in a durable message: ``[sequence, previous, left_ms, sent]``; see :class:`Durable`."""
_REQUIRED_FIELDS: Final = 7

FLAG_ACK: Final = 1
"""The sender waits to hear that the agent has the message."""
FLAG_ERROR: Final = 2
"""A response that says why there is none: payload is ``pack([code, kind, text])``."""
FLAG_DURABLE: Final = 4
"""The message has :data:`F_DURABLE`: its sender keeps it until it is told that the agent has handled it."""
FLAG_STREAM: Final = 8
"""In a query: its asker takes a stream.  In a response: this is a part of one, and there is more to come."""
FLAG_END: Final = 16
"""A response without content: all parts of the stream have been sent."""

#: What a message weighs against a flow's credit beside its payload: its share of headers and of bookkeeping.
#: Each entry of its ``headers`` weighs as much again (see :func:`extras_weight`).
OVERHEAD_BYTES: Final = 64

#: The largest payload together with headers as UTF-8: one message has to fit one envelope, and this leaves 4 KiB
#: for what the body writes around it.
PAYLOAD_BYTES_MAX: Final = BODY_BYTES_MAX - 4_096

#: Largest agent id: what fits the C ABI's ``uint64_t``.
AGENT_ID_MAX: Final = 2**64 - 1

# Our own bodies are sealed at 256 messages; others may pack more, but not without bound.
MESSAGES_MAX: Final = 4_096

# A decoded value can take 70 times its bytes.  A body below this size cannot hold more values than this, so
# ordinary ones are decoded without counting; a larger one must be mostly payload.
_NODES_MAX: Final = 65_536

HEADERS_MAX: Final = 64
HEADER_CHARS_MAX: Final = 1_024
GROUP_CHARS_MAX: Final = 256
_INT_MAX: Final = 2**63 - 1

Message = list[Any]
"""One message in wire order; see the ``F_*`` positions."""

#: Message types by their number on the wire.
TYPES: Final = tuple(MessageType)
_PRIORITIES: Final = tuple(Priority)
_NEVER_DURABLE: Final = (MessageType.QUERY, MessageType.RESPONSE, MessageType.BROADCAST)


@dataclass(frozen=True, slots=True)
class Batch:
    """A decoded ``MESSAGES`` body: messages of one sending life, at one priority."""

    life: int
    base_ms: int
    priority: Priority
    messages: list[Message]


def encode_batch(life: int, base_ms: int, priority: Priority, messages: Sequence[Message]) -> bytes:
    """Write the body of a ``MESSAGES`` envelope."""
    return pack([life, base_ms, int(priority), messages])


def decode_batch(body: bytes) -> Batch:
    """Read the body of a ``MESSAGES`` envelope, checking every field that is used.

    Raises:
        RemoteProtocolError: It is not such a body.
    """
    fields = _array(unpack_body(body, nodes_max=_NODES_MAX, depth_max=None), 4, "messages body")
    life, base_ms, priority, messages = fields[:4]
    if not (_is_count(life) and _is_count(base_ms)):
        raise RemoteProtocolError("messages body: life and base time must be counts")
    if type(priority) is not int or not 0 <= priority < len(_PRIORITIES):
        raise RemoteProtocolError("messages body: priority is not one of the four")
    if type(messages) is not list or len(messages) > MESSAGES_MAX:
        raise RemoteProtocolError("messages body: not a list of messages, or too many")
    if len(messages) < _COLUMNS_MIN or not _all_plain(messages):
        for message in messages:
            _check(message)
    return Batch(life, base_ms, _PRIORITIES[priority], messages)


_BYTES: Final = frozenset({bytes})

# From how many messages on columns are cheaper than each by itself: 2.0 against 0.6 µs for one, 12 against 27 for 64.
_COLUMNS_MIN: Final = 8


def _all_plain(messages: list[Any]) -> bool:
    """Whether every message has seven fields of the right types and ranges, perhaps a correlation, and nothing else.

    Nearly all batches are like that, queries and responses with a correlation each.  Making a typed array of a column
    refuses what is no integer or out of range, in one step of C for the whole batch, where :func:`_check` takes several
    of Python for each message.
    """
    try:
        columns = list(zip(*messages, strict=True))
        if len(columns) == _REQUIRED_FIELDS + 1:
            if min(array("q", columns.pop())) < 0:
                return False
        elif len(columns) != _REQUIRED_FIELDS:
            return False
        sequences, kinds, senders, receivers, flags, payloads, offsets = columns
        for unsigned in (sequences, senders, receivers):
            array("Q", unsigned)
        array("q", flags)
        array("q", offsets)
        if min(flags) < 0 or any(flag & FLAG_DURABLE for flag in set(flags)):
            return False
        return max(array("B", kinds)) < len(TYPES) and _BYTES.issuperset(map(type, payloads))
    except (TypeError, ValueError, OverflowError):
        return False


_PLAIN: Final = [int, int, int, int, int, bytes, int]


def _check(message: Any) -> None:
    """Refuse a message whose fields could not be used."""
    if type(message) is not list:
        raise RemoteProtocolError("message: not an array")
    if list(map(type, message)) != _PLAIN:
        if list(map(type, message[:_REQUIRED_FIELDS])) != _PLAIN:
            raise RemoteProtocolError("message: too few fields, or one has the wrong type")
        _check_extras(message)
    sequence, kind, from_agent, to_agent, _, _, offset = message[:_REQUIRED_FIELDS]
    # MessagePack integers lie between -2**63 and 2**64 - 1.
    if sequence < 0 or from_agent < 0 or to_agent < 0 or not 0 <= kind < len(TYPES) or offset > _INT_MAX:
        raise RemoteProtocolError("message: a field is out of range")
    if message[F_FLAGS] & FLAG_DURABLE:
        _check_durable(message)
    else:
        del message[F_DURABLE:]


def _check_durable(message: Message) -> None:
    fields = message[F_DURABLE] if len(message) > F_DURABLE else None
    if type(fields) is not list or len(fields) < 4 or not all(map(_is_count, fields[:4])):
        raise RemoteProtocolError("message: a durable one needs four counts")
    if TYPES[message[F_TYPE]] in _NEVER_DURABLE:
        raise RemoteProtocolError("message: one of this type cannot be durable")
    del fields[4:]


def _check_extras(message: Message) -> None:
    if (
        len(message) > F_CORRELATION
        and (correlation := message[F_CORRELATION]) is not None
        and not _is_count(correlation)
    ):
        raise RemoteProtocolError("message: correlation must be a count or nil")
    if len(message) > F_HEADERS and message[F_HEADERS] is not None:
        check_headers(message[F_HEADERS])
    if len(message) > F_GROUP:
        group = message[F_GROUP]
        if group is not None and (type(group) is not str or len(group) > GROUP_CHARS_MAX):
            raise RemoteProtocolError(f"message: group must be nil or text of at most {GROUP_CHARS_MAX}")
        # Fields of later versions: nobody has weighed them, so they must not wait in memory with the message.
        del message[F_DURABLE + 1 :]


def extras_weight(message: Message) -> int:
    """What the headers and the group of ``message`` weigh against a flow's credit, in bytes.

    Apart from :data:`OVERHEAD_BYTES` so that the many messages that have neither need not ask.
    """
    headers = message[F_HEADERS] if len(message) > F_HEADERS else None
    weight = sum(OVERHEAD_BYTES + len(key) + len(value) for key, value in headers.items()) if headers else 0
    if len(message) > F_GROUP and message[F_GROUP] is not None:
        weight += len(message[F_GROUP])
    return weight


def check_headers(headers: Any) -> None:
    """Refuse headers that are not a small map of short strings.

    Raises:
        RemoteProtocolError: They are not.
    """
    if type(headers) is not dict or len(headers) > HEADERS_MAX:
        raise RemoteProtocolError(f"message: headers must be a map of at most {HEADERS_MAX} entries")
    for key, value in headers.items():
        if type(key) is not str or type(value) is not str or len(key) + len(value) > HEADER_CHARS_MAX:
            raise RemoteProtocolError(f"message: header {str(key)[:40]!r} must be text of at most {HEADER_CHARS_MAX}")


def to_agent_message(message: Message, batch: Batch, origin: str, ttl: int, origin_prefix: str) -> AgentMessage:
    """Build what the user sees.

    Args:
        message: A checked message of ``batch``.
        batch: Where it came in.
        origin: The node that sent it, as authenticated.
        ttl: Hops it could still have taken.
        origin_prefix: ``message_id_prefix(origin, batch.life)``, computed once a batch.
    """
    extras = len(message)
    return AgentMessage(
        message[F_FROM],
        message[F_TO],
        TYPES[message[F_TYPE]],
        message[F_PAYLOAD],
        f"{origin_prefix}{message[F_SEQUENCE]:x}",
        batch.base_ms + message[F_OFFSET],
        ttl,
        batch.priority,
        message[F_GROUP] if extras > F_GROUP else None,
        (message[F_HEADERS] or {}) if extras > F_HEADERS else {},
        origin,
    )


def message_id_prefix(origin: str, life: int) -> str:
    """The part of a message id that all messages of one sending life share."""
    return f"{origin}/{life:x}/"


# --- acknowledgements and credit --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Acks:
    """A decoded ``ACKS`` body.

    Attributes:
        limits: ``(agent, limit_bytes)``: the sender may now have sent up to ``limit_bytes`` in all to ``agent``
            over this link.
        delivered: ``(first_sequence, count)`` runs of messages that were handed to their agents.
        refused: ``(sequence, code)`` of messages that were not; codes are :data:`REFUSED`'s keys.
    """

    limits: list[tuple[int, int]]
    delivered: list[tuple[int, int]]
    refused: list[tuple[int, int]]


REFUSED_UNKNOWN_AGENT: Final = 1
REFUSED_STOPPED: Final = 2
REFUSED: Final[Mapping[int, str]] = {
    REFUSED_UNKNOWN_AGENT: "no such agent on that node",
    REFUSED_STOPPED: "the agent was deregistered before it took the message",
}


def encode_acks(acks: Acks) -> bytes:
    """Write the body of an ``ACKS`` envelope."""
    return pack([acks.limits, acks.delivered, acks.refused])


def decode_acks(body: bytes) -> Acks:
    """Read the body of an ``ACKS`` envelope.

    Raises:
        RemoteProtocolError: It is not such a body.
    """
    fields = _array(unpack_body(body, nodes_max=_NODES_MAX), 3, "acks body")
    return Acks(*(_pairs(column) for column in fields[:3]))


def _pairs(column: Any) -> list[tuple[int, int]]:
    if type(column) is not list:
        raise RemoteProtocolError("acks body: not a list")
    pairs = []
    for pair in column:
        if type(pair) is not list or len(pair) < 2 or type(pair[0]) is not int or not _is_count(pair[1]):
            raise RemoteProtocolError("acks body: not a pair of counts")
        pairs.append((pair[0], pair[1]))
    return pairs


# --- what became of durable messages ----------------------------------------------------------------------------


class Durable(NamedTuple):
    """What a durable message carries beside the others' fields.

    Attributes:
        sequence: Its number in its sender's outbox; it stays the same however often the message is sent.
        previous: The number of the one sent before it in its stream; 0: it begins the stream, as far as is known.
        left_ms: How long it may still wait.
        sent: How often it was sent before, as far as its sender knows.
    """

    sequence: int
    previous: int
    left_ms: int
    sent: int


class Settled(NamedTuple):
    """What a node has to say about the durable messages of one stream.

    Attributes:
        from_agent, to_agent, priority: The stream; its other end is the node that is told.
        code: One of ``SETTLED_*``.
        sequence: The message it is about.
        text: More for people.
    """

    from_agent: int
    to_agent: int
    priority: int
    code: int
    sequence: int
    text: str = ""


SETTLED_HANDLED: Final = 0
"""All of the stream up to that one have been handled, and that is on disk."""
SETTLED_REFUSED: Final = 1
"""The agent is not here, or was deregistered first; all that was not handled is the sender's again."""
SETTLED_FAILED: Final = 2
"""The handler raised on that one; it and all behind it are the sender's again."""
SETTLED_EXPIRED: Final = 3
"""The time of that one was over before the agent came to it."""

#: In one body.
SETTLED_MAX: Final = 1_024


def message_of_durable(message: Message) -> Durable:
    """The durable fields of a checked message."""
    return Durable(*message[F_DURABLE])


def durable_id(origin: str, sequence: int) -> str:
    """The message id of a durable message, the same in every life of its sender."""
    return f"{origin}/durable/{sequence:x}"


def encode_settled(settled: Sequence[Settled]) -> bytes:
    """Write the body of a ``SETTLED`` envelope."""
    return pack([[*one[:5], _encodable(one.text[:ERROR_CHARS_MAX])] for one in settled])


def decode_settled(body: bytes) -> list[Settled]:
    """Read the body of a ``SETTLED`` envelope.

    Raises:
        RemoteProtocolError: It is not such a body.
    """
    entries = _array(unpack_body(body, nodes_max=_NODES_MAX), 0, "settled body")
    if len(entries) > SETTLED_MAX:
        raise RemoteProtocolError("settled body: too many entries")
    settled = []
    for entry in entries:
        fields = _array(entry, 6, "settled entry")
        if list(map(type, fields[:6])) != [int, int, int, int, int, str] or min(fields[:5]) < 0:
            raise RemoteProtocolError("settled entry: wrong types")
        settled.append(Settled(*fields[:6]))
    return settled


# --- errors as responses ----------------------------------------------------------------------------------------

ERROR_UNKNOWN_AGENT: Final = 1
ERROR_HANDLER_RAISED: Final = 2
ERROR_STOPPED: Final = 3
ERROR_BAD_RESULT: Final = 4
ERROR_IS_STREAM: Final = 5
ERROR_STALLED: Final = 6

# An error's text is cut here so that a handler's huge message cannot fill a frame.
ERROR_CHARS_MAX: Final = 2_000


def encode_error(code: int, kind: str, text: str) -> bytes:
    """Write the payload of a response that carries ``FLAG_ERROR``."""
    return pack([code, _encodable(kind[:200]), _encodable(text[:ERROR_CHARS_MAX])])


def _encodable(text: str) -> str:
    """The text without lone surrogates, which a file name in an exception's text may contain."""
    return text.encode("utf-8", "replace").decode()


def decode_error(payload: bytes) -> tuple[int, str, str]:
    """Read the payload of a response that carries ``FLAG_ERROR``.

    Raises:
        RemoteProtocolError: It is not such a payload.
    """
    fields = _array(unpack_body(payload, nodes_max=16), 3, "error payload")
    code, kind, text = fields[:3]
    if type(code) is not int or type(kind) is not str or type(text) is not str:
        raise RemoteProtocolError("error payload: wrong types")
    return code, kind, text


# --- broadcasts -------------------------------------------------------------------------------------------------


def encode_broadcast(message: Message, timestamp_ms: int, priority: Priority) -> bytes:
    """Write the payload of a ``BROADCAST`` that carries one message to every agent."""
    return pack([timestamp_ms, int(priority), message])


def decode_broadcast(payload: bytes, life: int) -> Batch:
    """Read the payload of such a broadcast as a batch of one.

    Raises:
        RemoteProtocolError: It is not such a payload.
    """
    fields = _array(unpack_body(payload, nodes_max=HEADERS_MAX * 2 + 32), 3, "broadcast payload")
    timestamp_ms, priority, message = fields[:3]
    if not _is_count(timestamp_ms) or type(priority) is not int or not 0 <= priority < len(_PRIORITIES):
        raise RemoteProtocolError("broadcast payload: wrong timestamp or priority")
    _check(message)
    if message[F_FLAGS] & FLAG_DURABLE:
        raise RemoteProtocolError("broadcast payload: a durable message has one receiver")
    return Batch(life, timestamp_ms, _PRIORITIES[priority], [message])


def _array(value: Any, fields_min: int, what: str) -> list[Any]:
    if type(value) is not list or len(value) < fields_min:
        raise RemoteProtocolError(f"{what}: not an array of at least {fields_min} fields")
    return value


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _INT_MAX
