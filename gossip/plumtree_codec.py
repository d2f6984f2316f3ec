"""The bodies of broadcast: positional MessagePack arrays whose first field is the type.

==========  ===========================================================================================
GOSSIP 0    ``[0, hops, age_ms, sealed]``: ``sealed`` is the broadcast itself, forwarded as the same bytes:
            ``[origin, incarnation, sequence, payload]`` (``gossip/codec.py``)
IHAVE 1     ``[1, [[origin, life, sequence, ttl, hops, size_bytes], ...]]``: what a GRAFT would bring
GRAFT 2     ``[2, [[origin, life, sequence], ...]]``: send these, and from now on everything at once
PRUNE 3     ``[3]``: from now on, only announce
SYNC 4      ``[4, answer, since_ms, after, upto, [[origin, life, floor, highest, gaps], ...]]``
==========  ===========================================================================================

A SYNC speaks of every origin with ``after < origin <= upto`` (``upto`` "": no upper end), as membership's digests do:
of what the interval covers and the list lacks, its sender has nothing.  ``gaps`` are first and last numbers in turn,
strictly ascending.  ``since_ms``: older broadcasts are not wanted.  Further fields at the end of a body, an id or an
entry are ignored, bodies of unknown type as a whole; all else that does not fit raises
:class:`~transport.errors.RemoteProtocolError` and nothing of the body is used.
"""

# core: no I/O

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple, TypeGuard

from transport.errors import InvalidName, RemoteProtocolError
from transport.types import NodeId, node_id
from transport.wire import BODY_BYTES_MAX, TTL_MAX, pack, unpack_body

from .incarnation import LIFE_MAX
from .seen import GAPS_MAX, Summary

#: Ids in one IHAVE or GRAFT, and origins in one SYNC: bounds of what a peer can make us decode at once.
IDS_MAX: Final = 1000
ORIGINS_MAX: Final = 500
#: The largest number of a broadcast, and the largest age and time in ms.
SEQUENCE_MAX: Final = 2**53 - 1
TIME_MS_MAX: Final = 2**32 - 1
_CONTROL_BYTES_MAX: Final = 512 * 1024
# Enough for ORIGINS_MAX entries with GAPS_MAX gaps each, and for IDS_MAX ids with a few fields to come.
_NODES_MAX: Final = 48_000

_GOSSIP, _IHAVE, _GRAFT, _PRUNE, _SYNC = range(5)


class MessageId(NamedTuple):
    """Names one broadcast; the field order is the wire order."""

    origin: NodeId
    life: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Gossip:
    """A broadcast, on its way.

    ``hops`` counts the links it took, this one included; ``age_ms`` is the time it spent at nodes, not on links.
    """

    hops: int
    age_ms: int
    sealed: bytes


@dataclass(frozen=True, slots=True)
class Announcement:
    """The sender has it and could send it with this TTL; it would then have taken ``hops`` links."""

    id: MessageId
    ttl: int
    hops: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class IHave:
    """What the sender has."""

    announcements: tuple[Announcement, ...]


@dataclass(frozen=True, slots=True)
class Graft:
    """Put the link into the tree, and send these."""

    ids: tuple[MessageId, ...]


@dataclass(frozen=True, slots=True)
class Prune:
    """Take the link out of the tree."""


@dataclass(frozen=True, slots=True)
class Sync:
    """What the sender has of the origins in an interval.  ``answer``: it answers one of ours; do not answer again."""

    answer: bool
    since_ms: int
    after: str
    upto: str
    summaries: tuple[Summary, ...]

    def covers(self, origin: str) -> bool:
        """Whether it speaks of this origin."""
        return self.after < origin and (not self.upto or origin <= self.upto)


Body = Gossip | IHave | Graft | Prune | Sync


# --- sending --------------------------------------------------------------------------------------------------


def encode(body: Body) -> bytes:
    """The bytes of one body."""
    match body:
        case Gossip():
            return pack((_GOSSIP, body.hops, body.age_ms, body.sealed))
        case IHave():
            return pack((_IHAVE, [(*a.id, a.ttl, a.hops, a.size_bytes) for a in body.announcements]))
        case Graft():
            return pack((_GRAFT, body.ids))
        case Prune():
            return _PRUNE_BYTES
        case _:
            entries = [
                (s.origin, s.life, s.floor, s.highest, [n for gap in s.gaps for n in gap]) if s.gaps else s
                for s in body.summaries
            ]
            return pack((_SYNC, body.answer, body.since_ms, body.after, body.upto, entries))


_PRUNE_BYTES: Final = pack((_PRUNE,))


def ihaves(announcements: Sequence[Announcement]) -> Iterator[bytes]:
    """Announcements as bodies of at most :data:`IDS_MAX`."""
    for start in range(0, len(announcements), IDS_MAX):
        yield encode(IHave(tuple(announcements[start : start + IDS_MAX])))


def grafts(ids: Sequence[MessageId]) -> Iterator[bytes]:
    """Requests as bodies of at most :data:`IDS_MAX`; one body if there are none."""
    for start in range(0, len(ids) or 1, IDS_MAX):
        yield encode(Graft(tuple(ids[start : start + IDS_MAX])))


# --- receiving ------------------------------------------------------------------------------------------------


def decode(data: bytes) -> Body | None:
    """Read one body.

    Returns:
        ``None`` for a type that only a later version knows.

    Raises:
        RemoteProtocolError: It is not what the protocol allows.
    """
    if len(data) > BODY_BYTES_MAX:
        raise RemoteProtocolError(f"broadcast body of {len(data)} bytes is too large")
    fields = _items(unpack_body(data, nodes_max=_NODES_MAX, depth_max=None), 1, IDS_MAX, "body")
    kind = _integer(fields[0], 0, 255, "body type")
    if kind != _GOSSIP and len(data) > _CONTROL_BYTES_MAX:
        raise RemoteProtocolError(f"broadcast control body of {len(data)} bytes is too large")
    match kind:
        case 0:
            _items(fields, 4, 16, "gossip")
            hops = _integer(fields[1], 1, TTL_MAX, "hops")
            age_ms = _integer(fields[2], 0, TIME_MS_MAX, "age")
            if type(fields[3]) is not bytes:
                raise RemoteProtocolError("sealed broadcast is not bytes")
            return Gossip(hops, age_ms, fields[3])
        case 1:
            announced = _items(_items(fields, 2, 16, "ihave")[1], 0, IDS_MAX, "announcements")
            return IHave(tuple(_announcement(_items(item, 6, 16, "announcement")) for item in announced))
        case 2:
            wanted = _items(_items(fields, 2, 16, "graft")[1], 0, IDS_MAX, "wanted ids")
            return Graft(tuple(_id(_items(item, 3, 16, "wanted id")) for item in wanted))
        case 3:
            return Prune()
        case 4:
            return _sync(_items(fields, 6, 16, "sync"))
        case _:
            return None


def _id(fields: Sequence[object]) -> MessageId:
    return MessageId(
        _node_id(fields[0]),
        _integer(fields[1], 0, LIFE_MAX, "life"),
        _integer(fields[2], 1, SEQUENCE_MAX, "sequence"),
    )


def _announcement(fields: Sequence[object]) -> Announcement:
    return Announcement(
        _id(fields),
        _integer(fields[3], 0, TTL_MAX, "ttl"),
        _integer(fields[4], 1, TTL_MAX, "hops"),
        _integer(fields[5], 0, BODY_BYTES_MAX, "size"),
    )


def _sync(fields: Sequence[object]) -> Sync:
    if type(fields[1]) is not bool:
        raise RemoteProtocolError("sync's answer is not a boolean")
    after, upto = _text(fields[3], "after"), _text(fields[4], "upto")
    if upto and upto <= after:
        raise RemoteProtocolError(f"sync interval ({after!r}, {upto!r}] is empty")
    summaries = tuple(
        _summary(_items(item, 5, 16, "summary")) for item in _items(fields[5], 0, ORIGINS_MAX, "summaries")
    )
    sync = Sync(fields[1], _integer(fields[2], 0, TIME_MS_MAX, "since"), after, upto, summaries)
    if not _ascending([after, *(summary.origin for summary in summaries)]) or not all(
        sync.covers(summary.origin) for summary in summaries
    ):
        raise RemoteProtocolError("sync's origins are out of order or outside its interval")
    return sync


def _summary(fields: Sequence[object]) -> Summary:
    floor = _integer(fields[2], 0, SEQUENCE_MAX, "floor")
    highest = _integer(fields[3], floor, SEQUENCE_MAX, "highest")
    bounds = [_integer(item, floor + 1, highest, "gap") for item in _items(fields[4], 0, 2 * GAPS_MAX, "gaps")]
    gaps = tuple(zip(bounds[::2], bounds[1::2], strict=False))
    apart = all(this[1] < following[0] for this, following in pairwise(gaps))
    if len(bounds) % 2 or not apart or not all(first <= last for first, last in gaps):
        raise RemoteProtocolError("gaps are not ascending pairs")
    return Summary(_node_id(fields[0]), _integer(fields[1], 0, LIFE_MAX, "life"), floor, highest, gaps)


def _ascending(names: Iterable[str]) -> bool:
    return all(this < following for this, following in pairwise(names))


def _node_id(value: object) -> NodeId:
    try:
        return node_id(_text(value, "node id"))
    except InvalidName as error:
        raise RemoteProtocolError(error.message) from error


def _items(value: object, least: int, most: int, what: str) -> Sequence[object]:
    if not _is_list(value) or not least <= len(value) <= most:
        raise RemoteProtocolError(f"{what} is not an array of {least} to {most}")
    return value


def _is_list(value: object) -> TypeGuard[list[object]]:
    return type(value) is list


def _integer(value: object, low: int, high: int, what: str) -> int:
    if type(value) is not int or not low <= value <= high:
        raise RemoteProtocolError(f"{what} is not an integer from {low} to {high}")
    return value


def _text(value: object, what: str) -> str:
    if type(value) is not str or len(value) > 63:
        raise RemoteProtocolError(f"{what} is not text of at most 63 characters")
    return value
