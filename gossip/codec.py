"""The bodies of gossip: positional MessagePack arrays, checked field by field before anything is believed.

``docs/protocol/gossip.md`` specifies them.  A body is ``[type, ...]``; a claim about a member is
``[node_id, incarnation, state]``, or with details ``[node_id, incarnation, state, meta_version, addresses, meta]``.
Further fields at the end of a body, claim or digest entry are ignored, bodies of unknown type as a whole; all
else that does not fit raises :class:`~transport.errors.RemoteProtocolError` and nothing of the body is used.

A digest names an interval of node ids ``(after, upto]`` and lists *every* member within it that the sender knows,
so each body stands on its own however many a table needs: what the interval covers and the list lacks, the
sender lacks.
"""

# core: no I/O

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeGuard

from transport.errors import InvalidName, RemoteProtocolError
from transport.types import Address, NodeId, node_id
from transport.wire import INCARNATION_MAX, pack, unpack_body

from .config import GossipConfig
from .events import Member, MemberState

#: Claims in one body, and entries in one digest: bounds of what a peer can make us decode at once.
CLAIMS_MAX: Final = 1024
ENTRIES_MAX: Final = 4000
#: Accusers named with one suspicion; more than ever matter.
ACCUSERS_MAX: Final = 16
_HOST_CHARS_MAX: Final = 253  # RFC 1035 section 2.3.4
_VERSION_MAX: Final = 2**53 - 1
_DIGEST_MAX: Final = 2**64 - 1
# Enough for ENTRIES_MAX entries of four fields, and for CLAIMS_MAX claims with a few addresses each.
_NODES_MAX: Final = 32_768
#: What the fields around a claim's metadata can take at most: id, numbers and 16 addresses of 253 characters.
_CLAIM_OVERHEAD_BYTES: Final = 4500

_HEARTBEAT, _NEWS, _DIGEST, _STATES, _WANT = range(5)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What every node tells its neighbours again and again."""

    incarnation: int
    digest: int
    members: int
    """How many members the sender counts as alive or suspect; for people who look at traffic."""


@dataclass(frozen=True, slots=True)
class News:
    """Claims that are new to the sender: believed as they are, and passed on.

    ``accusers`` says for each claim who accuses (empty: unknown, or no suspicion); it is empty, or as long as
    ``claims``.
    """

    claims: tuple[Member, ...]
    accusers: tuple[tuple[NodeId, ...], ...] = ()


class Entry(NamedTuple):
    """One line of a digest; the field order is the wire order."""

    node_id: NodeId
    incarnation: int
    state: MemberState
    meta_version: int


@dataclass(frozen=True, slots=True)
class Digest:
    """All that the sender knows of nodes with ``after < node_id <= upto``, in order (``upto`` "": no upper end)."""

    after: str
    upto: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class States:
    """Claims that answer a digest or a want: the state of a table, not news, so "dead" in it is only a suspicion."""

    claims: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Want:
    """Please send these members' states."""

    node_ids: tuple[NodeId, ...]


Body = Heartbeat | News | Digest | States | Want


@dataclass(frozen=True, slots=True)
class BroadcastBody:
    """One broadcast; relays forward the same bytes."""

    origin: NodeId
    incarnation: int
    sequence: int
    payload: bytes


# --- sending --------------------------------------------------------------------------------------------------


def bare(member: Member) -> Member:
    """The member's status without its details."""
    return Member(member.node_id, member.incarnation, member.state)


def encode(body: Body) -> bytes:
    """The bytes of one body."""
    match body:
        case Heartbeat():
            return pack((_HEARTBEAT, body.incarnation, body.digest, body.members))
        case News():
            claims = [_claim(claim) for claim in body.claims]
            return pack((_NEWS, claims, body.accusers) if body.accusers else (_NEWS, claims))
        case Digest():
            return pack((_DIGEST, body.after, body.upto, body.entries))
        case States():
            return pack((_STATES, [_claim(claim) for claim in body.claims]))
        case _:
            return pack((_WANT, body.node_ids))


def _claim(member: Member) -> tuple[object, ...]:
    status = (member.node_id, member.incarnation, int(member.state))
    if not member.meta_version and not member.addresses and not member.meta:
        return status
    addresses = [(address.host, address.port) for address in member.addresses]
    return (*status, member.meta_version, addresses, member.meta)


def chunks(claims: Iterable[Member], bytes_max: int) -> Iterator[tuple[Member, ...]]:
    """Split claims so that each body stays below ``bytes_max`` (a single larger claim has its own body)."""
    chunk: list[Member] = []
    size = 0
    for claim in claims:
        claim_bytes = len(claim.meta) + 96 + sum(len(address.host) + 8 for address in claim.addresses)
        if chunk and (size + claim_bytes > bytes_max or len(chunk) == CLAIMS_MAX):
            yield tuple(chunk)
            chunk, size = [], 0
        chunk.append(claim)
        size += claim_bytes
    if chunk:
        yield tuple(chunk)


def digests(members: Iterable[Member]) -> Iterator[Digest]:
    """The whole table as digests that together cover every node id."""
    entries = [
        Entry(m.node_id, m.incarnation, m.state, m.meta_version) for m in sorted(members, key=lambda m: m.node_id)
    ]
    after = ""
    for start in range(0, len(entries), ENTRIES_MAX):
        part = entries[start : start + ENTRIES_MAX]
        upto = part[-1].node_id if start + ENTRIES_MAX < len(entries) else ""
        yield Digest(after, upto, tuple(part))
        after = upto


def encode_broadcast(body: BroadcastBody) -> bytes:
    """The bytes of one broadcast."""
    return pack((body.origin, body.incarnation, body.sequence, body.payload))


# --- receiving ------------------------------------------------------------------------------------------------


def decode(data: bytes, config: GossipConfig) -> Body | None:
    """Read one membership body.

    Returns:
        ``None`` for a type that only a later version knows.

    Raises:
        RemoteProtocolError: It is not what the protocol allows.
    """
    if len(data) > max(config.sync_body_bytes_max, config.meta_bytes_max + _CLAIM_OVERHEAD_BYTES) + 65_536:
        raise RemoteProtocolError(f"membership body of {len(data)} bytes is too large")
    fields = _items(unpack_body(data, nodes_max=_NODES_MAX, depth_max=None), 1, "body")
    match _integer(fields[0], 0, 255, "body type"):
        case 0:
            _items(fields, 4, "heartbeat")
            return Heartbeat(
                _integer(fields[1], 0, INCARNATION_MAX, "incarnation"),
                _integer(fields[2], 0, _DIGEST_MAX, "digest"),
                _integer(fields[3], 0, _VERSION_MAX, "members"),
            )
        case 1:
            claims = _claims(_items(fields, 2, "news")[1], config)
            return News(claims, _accusers(fields[2], len(claims)) if len(fields) > 2 else ())
        case 2:
            return _digest(_items(fields, 4, "digest"))
        case 3:
            return States(_claims(_items(fields, 2, "states")[1], config))
        case 4:
            wanted = _items(_items(fields, 2, "want")[1], 0, "wanted ids", ENTRIES_MAX)
            return Want(tuple(_node_id(item) for item in wanted))
        case _:
            return None


def decode_broadcast(data: bytes, config: GossipConfig) -> BroadcastBody:
    """Read one broadcast body.

    Raises:
        RemoteProtocolError: It is not what the protocol allows.
    """
    fields = _items(unpack_body(data, nodes_max=64, depth_max=None), 4, "broadcast", 64)
    return BroadcastBody(
        _node_id(fields[0]),
        _integer(fields[1], 0, INCARNATION_MAX, "incarnation"),
        _integer(fields[2], 1, _VERSION_MAX, "sequence"),
        _bytes(fields[3], config.broadcast_bytes_max, "payload"),
    )


def _digest(fields: Sequence[object]) -> Digest:
    after, upto = _text(fields[1], 63, "after"), _text(fields[2], 63, "upto")
    if upto and upto <= after:
        raise RemoteProtocolError(f"digest interval ({after!r}, {upto!r}] is empty")
    entries = []
    last = after
    for item in _items(fields[3], 0, "digest entries", ENTRIES_MAX):
        entry = _items(item, 4, "digest entry", 16)
        name = _node_id(entry[0])
        if name <= last or (upto and name > upto):
            raise RemoteProtocolError(f"digest entry {name!r} is out of order or outside its interval")
        last = name
        entries.append(Entry(name, *_status(entry), _integer(entry[3], 0, _VERSION_MAX, "meta version")))
    return Digest(after, upto, tuple(entries))


def _claims(value: object, config: GossipConfig) -> tuple[Member, ...]:
    return tuple(_member(_items(item, 3, "claim", 16), config) for item in _items(value, 0, "claims", CLAIMS_MAX))


def _accusers(value: object, claims: int) -> tuple[tuple[NodeId, ...], ...]:
    lists = _items(value, claims, "accusers", claims)
    return tuple(tuple(_node_id(name) for name in _items(names, 0, "accusers", ACCUSERS_MAX)) for names in lists)


def _member(fields: Sequence[object], config: GossipConfig) -> Member:
    name = _node_id(fields[0])
    incarnation, state = _status(fields)
    if len(fields) < 6:
        if len(fields) != 3:
            raise RemoteProtocolError("claim with some details must have all of them")
        return Member(name, incarnation, state)
    addresses = tuple(_address(item) for item in _items(fields[4], 0, "addresses", config.addresses_max))
    return Member(
        name,
        incarnation,
        state,
        addresses,
        _integer(fields[3], 0, _VERSION_MAX, "meta version"),
        _bytes(fields[5], config.meta_bytes_max, "metadata"),
    )


def _status(fields: Sequence[object]) -> tuple[int, MemberState]:
    incarnation = _integer(fields[1], 0, INCARNATION_MAX, "incarnation")
    return incarnation, MemberState(_integer(fields[2], 0, 3, "state"))


def _address(value: object) -> Address:
    fields = _items(value, 2, "address", 16)
    host = _text(fields[0], _HOST_CHARS_MAX, "host")
    if not host or any(character.isspace() for character in host):
        raise RemoteProtocolError(f"host {host!r} is not valid")
    return Address(host, _integer(fields[1], 1, 65_535, "port"))


def _node_id(value: object) -> NodeId:
    try:
        return node_id(_text(value, 63, "node id"))
    except InvalidName as error:
        raise RemoteProtocolError(error.message) from error


def _items(value: object, least: int, what: str, most: int = CLAIMS_MAX) -> Sequence[object]:
    if not _is_list(value) or not least <= len(value) <= most:
        raise RemoteProtocolError(f"{what} is not an array of {least} to {most}")
    return value


def _is_list(value: object) -> TypeGuard[list[object]]:
    return type(value) is list


def _integer(value: object, low: int, high: int, what: str) -> int:
    if type(value) is not int or not low <= value <= high:
        raise RemoteProtocolError(f"{what} is not an integer from {low} to {high}")
    return value


def _text(value: object, chars_max: int, what: str) -> str:
    if type(value) is not str or len(value) > chars_max:
        raise RemoteProtocolError(f"{what} is not text of at most {chars_max} characters")
    return value


def _bytes(value: object, bytes_max: int, what: str) -> bytes:
    if type(value) is not bytes or len(value) > bytes_max:
        raise RemoteProtocolError(f"{what} is not bytes of at most {bytes_max}")
    return value
