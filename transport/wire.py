"""Frames, envelopes and the hello: what the bytes on a link mean, and which bytes are refused.

One WebSocket binary message is one *frame*: a MessagePack array of *envelopes*.  An envelope is a positional
array ``[kind, ttl, source, target, body, ...]``: a short routing header that a relay may touch, and a sealed
body that it forwards as the same bytes.  Positional arrays rather than maps with field names because the maps
measured three times slower in the codec; one frame for many envelopes because a frame costs about 10 µs of CPU
on each side whatever is in it.

Forward compatibility: fields after the fifth are ignored (they must be scalars, so that the schema stays flat and
what a frame can allocate stays bounded), envelopes of unknown kind are handed up to be ignored, and unknown keys
of the hello are ignored.  What cannot be understood at all is refused with :class:`RemoteProtocolError`.

Hostile input: MessagePack can amplify (a megabyte of one-element arrays would become 30 MB of objects), so
:func:`decode_frame` checks each array *while decoding* and stops at the first that is not an envelope, and
:func:`unpack_body` counts nodes while decoding, refuses duplicate keys, extension types and deep nesting.
``docs/protocol/wire.md`` is the specification of everything here.
"""

# core: no I/O

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgpack

from .errors import InvalidAddress, InvalidName, LocalProtocolError, RemoteProtocolError
from .types import Address, NetworkName, NodeId, network_name, node_id

#: The protocol majors this implementation can speak, and the minor of the highest.
PROTOCOL_MIN: Final = 1
PROTOCOL_MAX: Final = 1
PROTOCOL_MINOR: Final = 0

#: The largest body of one envelope.  Larger payloads are for the layers above to split.
BODY_BYTES_MAX: Final = 1 << 20
#: The largest frame: one envelope of the largest size, or many small ones, plus headers.
FRAME_BYTES_MAX: Final = BODY_BYTES_MAX + (1 << 16)
#: Envelopes per frame.  Also the longest MessagePack array that a frame may contain, which bounds what nested
#: array headers that promise more than they hold can allocate (1024 levels of 1024 pointers: 8 MiB, for an instant).
ENVELOPES_MAX: Final = 1024
#: Fields per envelope: five now, the rest for later versions.
FIELDS_MAX: Final = 16
#: Bytes that an envelope's header can add to its body, at most.
ENVELOPE_OVERHEAD_BYTES: Final = 144
#: Node ids are DNS labels.
ID_BYTES_MAX: Final = 63
#: The largest ``ttl``, and the largest ``kind``.
TTL_MAX: Final = 255
#: The largest hello body.
HELLO_BYTES_MAX: Final = 16_384
#: Addresses that a hello may carry.
ADDRESSES_MAX: Final = 16
#: The longest nonce of a ping.
NONCE_BYTES_MAX: Final = 64
#: The largest incarnation: exact in JSON and in every language's double.
INCARNATION_MAX: Final = 2**53 - 1
#: Values (array items, map keys and map values) that a body may contain unless its reader says otherwise.
NODES_MAX: Final = 10_000
#: Array length that a body may claim; bounds allocation ahead of the node count.
ARRAY_ITEMS_MAX: Final = 4096
#: How deep a body may nest unless its reader says otherwise.
DEPTH_MAX: Final = 32


class Kind(enum.IntEnum):
    """What an envelope's body is.  Numbers are for ever; see ``docs/protocol/wire.md``.

    0 to 15 belong to the session of one link and are never routed; 16 to 31 to gossip; 32 and up to the mesh.
    """

    HELLO = 0
    PING = 1
    PONG = 2
    BYE = 3
    ACCEPT = 4
    MEMBERSHIP = 16
    BROADCAST = 17
    OVERLAY = 18
    PROBE = 19
    ROUTE = 20
    RELAY = 21
    PARTING = 22
    GROUP = 23
    MESSAGES = 32
    ACKS = 33
    SETTLED = 34
    SEALED = 35
    KEYS = 36
    GRANTS = 37
    CALLS = 38
    DOCUMENTS = 40
    RENEWAL = 48


#: Kinds below this are the session's own and are not shown to the layers above.
SESSION_KINDS: Final = 16


class Envelope(NamedTuple):
    """A routing header, which a relay may touch, and a sealed body, which it forwards as the same bytes.

    The field order is the wire order.
    """

    kind: int
    ttl: int
    """Hops this envelope may still take; a node that would forward it at 0 drops it instead."""
    source: str | None
    """The node it comes from; ``None``: the peer at the other end of the link."""
    target: str | None
    """The node it is for; ``None``: whoever receives it."""
    body: bytes


# --- frames ---------------------------------------------------------------------------------------------------

# One packer for the process: cores run on one thread, and a packer resets itself after each call.
_pack: Final[Callable[[object], bytes]] = msgpack.Packer(use_bin_type=True, autoreset=True).pack
_new: Final = tuple.__new__


def check_sendable(envelope: Envelope) -> int:
    """Check that ``envelope`` may be sent and return the bytes it takes in a frame, rounded up.

    Raises:
        LocalProtocolError: A field is out of bounds; nothing was sent.
    """
    kind, ttl, source, target, body = envelope
    if type(body) is not bytes or len(body) > BODY_BYTES_MAX:
        raise LocalProtocolError(
            f"envelope body is {type(body).__name__} of {len(body)} bytes",
            hint=f"a body is bytes, at most {BODY_BYTES_MAX}; split larger payloads",
        )
    if not (0 <= kind <= TTL_MAX and 0 <= ttl <= TTL_MAX):
        raise LocalProtocolError(f"envelope kind {kind} or ttl {ttl} is outside 0..{TTL_MAX}")
    if (source is not None and len(source) > ID_BYTES_MAX) or (target is not None and len(target) > ID_BYTES_MAX):
        raise LocalProtocolError(f"envelope names a node by more than {ID_BYTES_MAX} bytes")
    return len(body) + ENVELOPE_OVERHEAD_BYTES


def encode_frame(envelopes: Sequence[Envelope]) -> bytes:
    """Encode envelopes, each of which passed :func:`check_sendable`, as one frame.

    Raises:
        LocalProtocolError: There are none, too many, or the frame exceeds :data:`FRAME_BYTES_MAX`.
    """
    if not 0 < len(envelopes) <= ENVELOPES_MAX:
        raise LocalProtocolError(f"a frame holds 1 to {ENVELOPES_MAX} envelopes, not {len(envelopes)}")
    frame = _pack(envelopes)
    if len(frame) > FRAME_BYTES_MAX:
        raise LocalProtocolError(f"frame of {len(frame)} bytes exceeds {FRAME_BYTES_MAX}")
    return frame


def decode_frame(data: bytes) -> list[Envelope]:
    """Decode one frame; the inverse of :func:`encode_frame`.

    Raises:
        RemoteProtocolError: The bytes are not a frame within the limits.
    """
    if len(data) > FRAME_BYTES_MAX:
        raise RemoteProtocolError(f"frame of {len(data)} bytes exceeds {FRAME_BYTES_MAX}", code=1009)
    try:
        decoded = msgpack.unpackb(
            data,
            use_list=False,
            max_array_len=ENVELOPES_MAX,
            max_map_len=0,
            list_hook=_frame_array,
            object_pairs_hook=_refuse_map,
            ext_hook=_refuse_extension,
        )
    except RemoteProtocolError:
        raise
    except _UNPACK_ERRORS as error:
        raise RemoteProtocolError(f"frame is not MessagePack as expected: {_brief(error)}") from error
    if type(decoded) is not list:
        raise RemoteProtocolError("frame is not an array of envelopes")
    return decoded


def _frame_array(fields: tuple[Any, ...]) -> object:
    """Called for each array of a frame, innermost first: an envelope's fields, or the envelopes themselves."""
    if not fields:
        raise RemoteProtocolError("frame holds an empty array")
    if type(fields[0]) is Envelope:
        for envelope in fields:
            if type(envelope) is not Envelope:
                raise RemoteProtocolError("frame holds something that is not an envelope")
        return list(fields)
    if len(fields) != 5:
        if not 5 < len(fields) <= FIELDS_MAX:
            raise RemoteProtocolError(f"envelope has {len(fields)} fields")
        for field in fields[5:]:
            if type(field) is Envelope or type(field) is list:
                raise RemoteProtocolError("envelope field is an array")
        fields = fields[:5]
    kind, ttl, source, target, body = fields
    if (
        type(kind) is int
        and type(ttl) is int
        and type(body) is bytes
        and 0 <= kind <= TTL_MAX
        and 0 <= ttl <= TTL_MAX
        and len(body) <= BODY_BYTES_MAX
        and (source is None or (type(source) is str and 0 < len(source) <= ID_BYTES_MAX))
        and (target is None or (type(target) is str and 0 < len(target) <= ID_BYTES_MAX))
    ):
        return _new(Envelope, fields)
    raise RemoteProtocolError("envelope field has the wrong type or is out of range")


def _refuse_map(_pairs: list[tuple[object, object]]) -> object:
    raise RemoteProtocolError("frame holds a map")


def _refuse_extension(code: int, _data: bytes) -> object:
    raise RemoteProtocolError(f"MessagePack extension type {code} is not allowed")


_UNPACK_ERRORS: Final = (ValueError, TypeError, OverflowError, msgpack.UnpackException, msgpack.StackError)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:120]


# --- bodies ---------------------------------------------------------------------------------------------------


def pack(value: object) -> bytes:
    """Encode ``value`` (None, bool, int, float, str, bytes, list, tuple, dict) as MessagePack.

    Raises:
        LocalProtocolError: It holds something that MessagePack cannot carry.
    """
    try:
        return _pack(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"value cannot be encoded as MessagePack: {_brief(error)}") from error


class _Budget:
    """Counts the values of one body while it is decoded."""

    __slots__ = ("left",)

    def __init__(self, nodes_max: int) -> None:
        self.left = nodes_max

    def array(self, items: list[Any]) -> list[Any]:
        self.left -= len(items)
        if self.left < 0:
            raise RemoteProtocolError("body holds too many values")
        return items

    def map(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        self.left -= 2 * len(pairs)
        if self.left < 0:
            raise RemoteProtocolError("body holds too many values")
        return _unique(pairs)


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    decoded = dict(pairs)
    if len(decoded) != len(pairs):
        raise RemoteProtocolError("body holds a map with duplicate keys")
    return decoded


def unpack_body(data: bytes, *, nodes_max: int = NODES_MAX, depth_max: int | None = DEPTH_MAX) -> Any:
    """Decode the MessagePack in a body with a budget: arrays as lists, maps (str or bytes keys) as dicts.

    Extension types are refused; timestamps (extension -1) come out as ``msgpack.Timestamp``, which no schema takes.

    Args:
        data: The body.
        nodes_max: How many values it may hold.  A body of no more bytes than this cannot exceed it and is decoded
            without counting.
        depth_max: How deep arrays and maps may nest; ``None`` if the caller checks every level against a schema,
            which makes the check here superfluous (decoding itself stops at 1024).

    Raises:
        RemoteProtocolError: Not MessagePack, or over a limit.
    """
    budget = None if len(data) <= nodes_max else _Budget(nodes_max)
    try:
        decoded = msgpack.unpackb(
            data,
            strict_map_key=True,
            max_array_len=ARRAY_ITEMS_MAX,
            max_map_len=ARRAY_ITEMS_MAX,
            list_hook=None if budget is None else budget.array,
            object_pairs_hook=_unique if budget is None else budget.map,
            ext_hook=_refuse_extension,
        )
    except RemoteProtocolError:
        raise
    except _UNPACK_ERRORS as error:
        raise RemoteProtocolError(f"body is not MessagePack as expected: {_brief(error)}") from error
    if depth_max is not None:
        _check_depth(decoded, depth_max)
    return decoded


def _check_depth(decoded: object, depth_max: int) -> None:
    """Breadth first, so that no depth of nesting can exhaust the stack."""
    level: list[object] = [decoded]
    for _ in range(depth_max + 1):
        deeper: list[object] = []
        for value in level:
            if type(value) is list:
                deeper.extend(value)
            elif type(value) is dict:
                deeper.extend(value.values())
        if not deeper:
            return
        level = deeper
    raise RemoteProtocolError(f"body nests deeper than {depth_max}")


# --- hello ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """What each side says first on a link."""

    network: NetworkName
    node_id: NodeId
    incarnation: int
    addresses: tuple[Address, ...] = ()
    """Where the sender can be dialled, best first."""
    version_min: int = PROTOCOL_MIN
    version_max: int = PROTOCOL_MAX
    version_minor: int = PROTOCOL_MINOR
    """The minor that goes with ``version_max``."""
    frame_bytes_max: int = FRAME_BYTES_MAX
    """The largest frame that the sender accepts."""
    features: tuple[str, ...] = ()
    software: str = ""


FEATURES_MAX: Final = 64
_TEXT_BYTES_MAX: Final = 128


def encode_hello(hello: Hello) -> Envelope:
    """The envelope that says ``hello``."""
    body = {
        "protocol": [hello.version_min, hello.version_max, hello.version_minor],
        "network": hello.network,
        "node_id": hello.node_id,
        "incarnation": hello.incarnation,
        "addresses": [[address.host, address.port] for address in hello.addresses[:ADDRESSES_MAX]],
        "frame_bytes_max": hello.frame_bytes_max,
        "features": list(hello.features[:FEATURES_MAX]),
        "software": hello.software,
    }
    return Envelope(Kind.HELLO, 0, None, None, pack(body))


def decode_hello(envelope: Envelope) -> Hello:
    """Read the first envelope of a link.

    Raises:
        RemoteProtocolError: It is not a hello, or a field is missing, of the wrong type or out of range.
    """
    if envelope.kind != Kind.HELLO:
        raise RemoteProtocolError(f"the first envelope is of kind {envelope.kind}, not a hello")
    if len(envelope.body) > HELLO_BYTES_MAX:
        raise RemoteProtocolError(f"hello of {len(envelope.body)} bytes exceeds {HELLO_BYTES_MAX}")
    body = unpack_body(envelope.body)
    if type(body) is not dict:
        raise RemoteProtocolError("hello is not a map")
    versions = _items(body, "protocol", 3, int)
    if not (len(versions) == 3 and 0 < versions[0] <= versions[1] and versions[2] >= 0):
        raise RemoteProtocolError("hello has no usable protocol versions")
    try:
        return Hello(
            network=network_name(body.get("network", "")),
            node_id=node_id(body.get("node_id", "")),
            incarnation=_integer(body, "incarnation", 0, INCARNATION_MAX),
            addresses=tuple(_address(item) for item in _items(body, "addresses", ADDRESSES_MAX, list)),
            version_min=versions[0],
            version_max=versions[1],
            version_minor=versions[2],
            frame_bytes_max=_integer(body, "frame_bytes_max", 1024, 2**53),
            features=tuple(_text(item) for item in _items(body, "features", FEATURES_MAX, str)),
            software=_text(body.get("software", "")),
        )
    except (InvalidName, InvalidAddress) as error:
        raise RemoteProtocolError(f"hello: {error.message[:200]}") from error


def _integer(body: dict[str, Any], key: str, low: int, high: int) -> int:
    value = body.get(key)
    if type(value) is int and low <= value <= high:
        return value
    raise RemoteProtocolError(f"hello has no usable {key}")


def _items(body: dict[str, Any], key: str, items_max: int, of: type) -> list[Any]:
    value = body.get(key, [])
    if type(value) is list and len(value) <= items_max and all(type(item) is of for item in value):
        return value
    raise RemoteProtocolError(f"hello has no usable {key}")


def _text(value: object) -> str:
    if type(value) is str and len(value) <= _TEXT_BYTES_MAX:
        return value
    raise RemoteProtocolError("hello has a text that is too long or not a text")


def _address(item: list[Any]) -> Address:
    """Read ``[host, port]`` with the same rules as any address people type."""
    match item:
        case [str() as host, int() as port] if type(port) is int and 0 < port < 1 << 16 and 0 < len(host) <= 255:
            return Address.parse(str(Address(host, port)))
    raise RemoteProtocolError("hello has an address that is not [host, port]")


def negotiate(ours: Hello, theirs: Hello) -> tuple[int, int]:
    """The protocol version both sides speak: the highest common major, and the lower minor of it.

    Raises:
        RemoteProtocolError: There is none; the code is ``UNSUPPORTED_VERSION`` and the text names both ranges.
    """
    major = min(ours.version_max, theirs.version_max)
    if major < max(ours.version_min, theirs.version_min):
        raise RemoteProtocolError(
            f"no common protocol version: {ours.node_id} speaks {ours.version_min} to {ours.version_max}, "
            f"{theirs.node_id} speaks {theirs.version_min} to {theirs.version_max}",
            code=4403,
        )
    minors: Iterable[int] = (h.version_minor for h in (ours, theirs) if h.version_max == major)
    return major, min(minors)


# --- goodbye --------------------------------------------------------------------------------------------------


def encode_bye(code: int, detail: str) -> Envelope:
    """The envelope that announces an orderly close."""
    return Envelope(Kind.BYE, 0, None, None, pack([code, detail[:_TEXT_BYTES_MAX]]))


def decode_bye(envelope: Envelope) -> tuple[int, str]:
    """Read a goodbye.

    Raises:
        RemoteProtocolError: It is not ``[code, text]``.
    """
    match unpack_body(envelope.body):
        case [int() as code, str() as detail] if 1000 <= code < 5000 and len(detail) <= _TEXT_BYTES_MAX:
            return code, detail
    raise RemoteProtocolError("goodbye is not [code, text]")
