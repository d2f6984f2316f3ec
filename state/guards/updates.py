"""What a Yjs update may look like before pycrdt sees it.

pycrdt hands remote bytes to Rust, where some end the process or eat the machine: 80 KB of nested arrays overflow the
stack, one forged clock makes a later, ordinary read crash or silences a writer for ever, five bytes that claim 2^28
clients take half a gigabyte (measured; ``docs/protocol/documents.md``, "Known defects").  So this module walks the
bytes first, with the same eyes (lib0 encoding, Yjs update format version 1, as in yjs ``UpdateDecoderV1`` and yrs
``update.rs``) but with a bound on everything, and refuses what is not well-formed:

- Every count is checked against the bytes that are left, every length before it is taken, every text is UTF-8, clocks
  stay below 2^31, nesting below ``depth_max``; nothing may follow the end.
- The blocks belong to the *one* client that the authenticated origin writes as, and their references within the
  update point backwards.
- Only the kinds of content in ``contents``, and of values only what :mod:`state.guards.values` writes
  (``foreign_values`` lifts that for clients that are not ours).

The walk also says what the update builds on: a :class:`Shape`.  :func:`check_fits` then compares it with the clocks
that a replica has: blocks must continue exactly where their writer stood, and everything they refer to or delete must
be known.  That keeps pycrdt from ever seeing a hole, which is where versions 0.12 to 0.14 lose data.

This bounds damage; it does not authorise.  An authenticated writer may still write nonsense into what it may write.
"""

# core: no I/O

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from state.errors import UpdateRefused

from .values import check_leaf

#: Client ids have 53 bits, for JavaScript's sake.
CLIENT_MAX: Final = 2**53 - 1
#: The largest clock, exclusive ends included; yrs misbehaves from 2^31 on.
CLOCK_MAX: Final = 2**31 - 1
#: Clients in one state vector, or in one update that may have several.
CLIENTS_MAX: Final = 65_536


class Content(enum.IntEnum):
    """Kinds of blocks, by their number in the format."""

    GC = 0
    DELETED = 1
    JSON = 2
    BINARY = 3
    STRING = 4
    EMBED = 5
    FORMAT = 6
    TYPE = 7
    ANY = 8
    DOC = 9
    SKIP = 10


#: What maps and arrays of values consist of, and what texts do.  Never together: reading an array into which somebody
#: put a text's block never ends in yrs 0.28, and a block says where it stands by its neighbours only, so nobody but
#: yrs could tell.  Documents keep the two apart, in two pycrdt documents.
VALUE_CONTENTS: Final = frozenset({Content.GC, Content.DELETED, Content.ANY})
TEXT_CONTENTS: Final = frozenset({Content.GC, Content.DELETED, Content.STRING})


@dataclass(frozen=True, slots=True)
class Limits:
    """What :func:`read_update` lets pass.

    Attributes:
        size_bytes_max: The largest update.  With 960 KiB one fits an envelope of the wire.
        clocks_max: How many clocks one writer's update may take, deleted ones included; above what the bytes of an
            honest one can hold, so that nobody uses up all clocks at once.
        depth_max: How deep foreign values and JSON may nest.
        name_bytes_max: The longest name of a root, and the longest key.
        contents: The kinds of blocks.  Without types among them, blocks stand in roots only.
        foreign_values: Whether values other than those of :mod:`state.guards.values` pass.
    """

    size_bytes_max: int = 960 * 1024
    clocks_max: int = 1 << 20
    depth_max: int = 64
    name_bytes_max: int = 1_024
    contents: frozenset[Content] = VALUE_CONTENTS
    foreign_values: bool = False


VALUE_LIMITS: Final = Limits()
TEXT_LIMITS: Final = Limits(contents=TEXT_CONTENTS)


class Shape(NamedTuple):
    """What an update brings and what it builds on."""

    spans: dict[int, tuple[int, int]]
    """By client: the first clock of its blocks, and the one after the last."""
    needs: dict[int, int]
    """By client: how many of its clocks must be known once the blocks are in: a bound on references and deletions."""
    roots: tuple[str, ...] = ()
    """The roots that it names; a new root is always named by the update that brings it."""


def read_update(data: bytes, client: int | None, limits: Limits = VALUE_LIMITS) -> Shape:
    """Walk one update in the v1 encoding.

    Args:
        data: The update.
        client: The only client that it may have blocks of; ``None``: any number of them, as in a whole document.
        limits: What to let pass.

    Raises:
        UpdateRefused: It is not well-formed, over a limit, or has another client's blocks.
    """
    if len(data) > limits.size_bytes_max:
        raise UpdateRefused(f"update of {len(data)} bytes exceeds {limits.size_bytes_max}")
    reader = _Reader(data, limits, client)
    try:
        spans = reader.blocks(client)
        reader.deletions()
    except IndexError as error:
        raise UpdateRefused("update is cut short") from error
    except UnicodeDecodeError as error:
        raise UpdateRefused("update holds text that is not UTF-8") from error
    if reader.at != len(data):
        raise UpdateRefused(f"update has {len(data) - reader.at} bytes behind its end")
    return Shape(spans, reader.needs, tuple(reader.roots))


def check_fits(shape: Shape, clocks: Mapping[int, int]) -> None:
    """Check that an update continues what a replica has.

    Args:
        shape: From :func:`read_update`.
        clocks: By client: how many clocks the replica has.

    Raises:
        UpdateRefused: There would be a hole or an overlap, or it refers to what is not known.
    """
    spans, needs, _ = shape
    for client, (start, _) in spans.items():
        if start != clocks.get(client, 0):
            raise UpdateRefused(f"update starts at clock {start} of client {client}, known are {clocks.get(client, 0)}")
    for client, need in needs.items():
        known = spans[client][1] if client in spans else clocks.get(client, 0)
        if need > known:
            raise UpdateRefused(f"update refers to clock {need - 1} of client {client}, known are {known}")


def read_state_vector(data: bytes) -> dict[int, int]:
    """Read a Yjs state vector: how many clocks of each client somebody has.

    Raises:
        UpdateRefused: It is not well-formed or over a limit.
    """
    reader = _Reader(data, VALUE_LIMITS)
    clocks: dict[int, int] = {}
    try:
        for _ in range(reader.count(2, CLIENTS_MAX)):
            client = reader.client()
            if client in clocks:
                raise UpdateRefused(f"state vector names client {client} twice")
            clocks[client] = reader.number(CLOCK_MAX)
    except IndexError as error:
        raise UpdateRefused("state vector is cut short") from error
    if reader.at != len(data):
        raise UpdateRefused("state vector has bytes behind its end")
    return clocks


# --- the walk -----------------------------------------------------------------------------------------------------

# Flags in a block's first byte; the lower five bits are its content.
_HAS_LEFT, _HAS_RIGHT, _HAS_KEY = 0x80, 0x40, 0x20
_CONTENTS: Final = {int(content): content for content in Content}


class _Reader:
    """A position in the bytes; running past the end is an ``IndexError``, which the callers above translate."""

    __slots__ = ("_mark", "_origin", "at", "data", "limits", "needs", "roots")

    def __init__(self, data: bytes, limits: Limits, origin: int | None = None) -> None:
        self.data = data
        self.at = 0
        self.limits = limits
        self.needs: dict[int, int] = {}
        self.roots: dict[str, None] = {}
        # Nearly all client ids in an update are its origin's, eight bytes long: one comparison instead of eight steps.
        self._origin = origin
        self._mark = None if origin is None else _varint(origin)

    # numbers and lengths

    def number(self, number_max: int) -> int:
        """An unsigned varint: seven bits a byte, the lowest first."""
        byte = self.data[self.at]
        self.at += 1
        if byte < 0x80:
            return byte  # what most numbers are; every maximum is above it
        number = byte & 0x7F
        shift = 7
        while byte >= 0x80:
            byte = self.data[self.at]
            self.at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if shift > 56 and byte >= 0x80:
                raise UpdateRefused("number has too many bytes")
        if number > number_max:
            raise UpdateRefused(f"number {number} is above {number_max}")
        return number

    def client(self) -> int:
        """A client id."""
        if self._mark is not None and self.data.startswith(self._mark, self.at):
            self.at += len(self._mark)
            return self._origin  # type: ignore[return-value]  # set with the mark
        return self.number(CLIENT_MAX)

    def count(self, bytes_each: int, count_max: int) -> int:
        """How many of something follow, each of at least ``bytes_each``: never more than there are bytes for."""
        count = self.number(CLIENT_MAX)
        if count * bytes_each > len(self.data) - self.at:
            raise IndexError
        if count > count_max:
            raise UpdateRefused(f"{count} entries where {count_max} are allowed")
        return count

    def skip(self, size: int) -> None:
        """Pass over ``size`` bytes that are really there."""
        if size > len(self.data) - self.at:
            raise IndexError
        self.at += size

    def take(self) -> bytes:
        """A length and so many bytes."""
        size = self.number(CLIENT_MAX)
        start = self.at
        self.skip(size)
        return self.data[start : self.at]

    def text(self) -> str:
        """A text in UTF-8; yrs does not check that it is."""
        return self.take().decode()

    def name(self) -> str:
        """A root's name or a key."""
        name = self.text()
        if len(name) * 4 > self.limits.name_bytes_max and len(name.encode()) > self.limits.name_bytes_max:
            raise UpdateRefused(f"name has {len(name.encode())} bytes, and {self.limits.name_bytes_max} are allowed")
        return name

    # blocks

    def blocks(self, allowed: int | None) -> dict[int, tuple[int, int]]:
        """All blocks: by client the clocks they cover."""
        spans: dict[int, tuple[int, int]] = {}
        for _ in range(self.count(3, 1 if allowed is not None else CLIENTS_MAX)):
            blocks = self.count(1, CLOCK_MAX)
            client = self.client()
            start = end = self.number(CLOCK_MAX)
            if allowed is not None and client != allowed:
                raise UpdateRefused(f"update has blocks of client {client}, and its origin writes as {allowed}")
            if client in spans or not blocks:
                raise UpdateRefused(f"update names client {client} {'twice' if blocks else 'without a block'}")
            end_max = CLOCK_MAX if allowed is None else min(start + self.limits.clocks_max, CLOCK_MAX)
            for _ in range(blocks):
                end += self.block(client, end)
                if end > end_max:
                    raise UpdateRefused(f"clock {end} is above {end_max}")
            spans[client] = start, end
        return spans

    def block(self, client: int, clock: int) -> int:
        """One block at ``clock`` of ``client``; returns how many clocks it takes."""
        info = self.data[self.at]
        self.at += 1
        content = _CONTENTS.get(info & 0x1F)
        if content not in self.limits.contents:
            raise UpdateRefused(f"block has content {info & 0x1F}, which may not stand here")
        if content is Content.GC or content is Content.SKIP:
            if info != content:
                raise UpdateRefused("block without a place has flags")
            length = self.number(CLOCK_MAX)
        else:
            if info & _HAS_LEFT:
                self.reference(client, clock)
            if info & _HAS_RIGHT:
                self.reference(client, clock)
            if not info & (_HAS_LEFT | _HAS_RIGHT):
                self.parent(client, clock)
                if info & _HAS_KEY:
                    self.name()
            length = self.content(content)
        if not length:
            raise UpdateRefused("block takes no clock")
        return length

    def parent(self, client: int, clock: int) -> None:
        """Where a block without neighbours stands: in a root, by name, or in the type that a block holds."""
        kind = self.number(CLIENT_MAX)
        if kind == 1:
            self.roots[self.name()] = None
        elif kind == 0 and Content.TYPE in self.limits.contents:
            self.reference(client, clock)
        else:
            raise UpdateRefused(f"parent of kind {kind}")

    def reference(self, client: int, clock: int) -> None:
        """Another block; one of the same client must come before this one."""
        other = self.client()
        at = self.number(CLOCK_MAX - 1)
        if other == client and at >= clock:
            raise UpdateRefused(f"block {clock} of client {client} refers to {at}, which comes after it")
        if at >= self.needs.get(other, 0):
            self.needs[other] = at + 1

    def content(self, content: Content | None) -> int:
        """What a block holds; returns how many clocks it takes."""
        if content is Content.ANY:
            count = self.count(1, CLOCK_MAX)
            for _ in range(count):
                self.value(0)
            return count
        if content is Content.STRING:
            text = self.text()
            return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2
        if content is Content.DELETED:
            return self.number(CLOCK_MAX)
        if content is Content.JSON:
            count = self.count(1, CLOCK_MAX)
            for _ in range(count):
                self.json()
            return count
        if content is Content.BINARY:
            self.take()
        elif content is Content.EMBED:
            self.json()
        elif content is Content.FORMAT:
            self.name()
            self.json()
        elif content is Content.TYPE:
            kind = self.number(CLIENT_MAX)
            if kind > _TYPE_MAX:
                raise UpdateRefused(f"shared type of kind {kind}")
            if kind in _NAMED_TYPES:
                self.name()
        else:
            assert content is Content.DOC
            self.name()
            self.foreign_value(0)
        return 1

    def deletions(self) -> None:
        """The delete set; what it deletes must be known."""
        named: dict[int, None] = {}
        for _ in range(self.count(2, CLIENTS_MAX)):
            client = self.client()
            if client in named:
                raise UpdateRefused(f"delete set names client {client} twice")
            named[client] = None
            for _ in range(self.count(2, CLOCK_MAX)):
                start = self.number(CLOCK_MAX)
                length = self.number(CLOCK_MAX)
                if not length or start + length > CLOCK_MAX:
                    raise UpdateRefused(f"delete set has {length} clocks from {start}")
                if start + length > self.needs.get(client, 0):
                    self.needs[client] = start + length

    # values

    def value(self, depth: int) -> None:
        """A value in lib0's "any" encoding: a leaf of ours, or foreign ones as well."""
        if self.limits.foreign_values:
            self.foreign_value(depth)
            return
        tag = self.data[self.at]
        self.at += 1
        if tag == _TEXT:
            self.text()
        elif tag == _BUFFER:
            check_leaf(self.take())
        elif tag in _FLOAT_BYTES:
            self.float_of(_FLOAT_BYTES[tag])
        elif tag not in _CONSTANTS or tag == _UNDEFINED:
            raise UpdateRefused(f"value of type {tag}, which no document of ours holds")

    def float_of(self, size: int) -> None:
        """A number that is not ``nan``: an exponent of all ones means ``nan`` unless the rest is zero."""
        start = self.at
        self.skip(size)
        bits = int.from_bytes(self.data[start : self.at]) & ((1 << (8 * size - 1)) - 1)
        if bits > _INFINITY[size]:
            raise UpdateRefused("value is nan")

    def foreign_value(self, depth: int) -> None:
        """Any value there is, nested no deeper than the limit."""
        if depth > self.limits.depth_max:
            raise UpdateRefused(f"value nests deeper than {self.limits.depth_max}")
        tag = self.data[self.at]
        self.at += 1
        if tag in _CONSTANTS:
            return
        if tag == _INTEGER:
            self.signed()
        elif tag in _FLOAT_BYTES:
            self.skip(_FLOAT_BYTES[tag])
        elif tag == _BIG_INTEGER:
            self.skip(8)
        elif tag == _TEXT:
            self.text()
        elif tag == _BUFFER:
            self.take()
        elif tag == _OBJECT:
            for _ in range(self.count(2, CLOCK_MAX)):
                self.text()
                self.foreign_value(depth + 1)
        elif tag == _ARRAY:
            for _ in range(self.count(1, CLOCK_MAX)):
                self.foreign_value(depth + 1)
        else:
            raise UpdateRefused(f"value of unknown type {tag}")

    def signed(self) -> None:
        """A signed varint of at most ten bytes."""
        start = self.at
        while self.data[self.at] >= 0x80:
            self.at += 1
            if self.at - start > 9:
                raise UpdateRefused("number has too many bytes")
        self.at += 1

    def json(self) -> None:
        """A text that is JSON, as far as its nesting goes; a bracket within a string counts, which errs on one side."""
        depth = 0
        for character in self.text():
            if character in "[{":
                depth += 1
                if depth > self.limits.depth_max:
                    raise UpdateRefused(f"JSON nests deeper than {self.limits.depth_max}")
            elif character in "]}":
                depth -= 1


@functools.lru_cache(4_096)
def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


# Types of values (lib0 encoding.js, writeAny).
_UNDEFINED, _NULL, _INTEGER, _FLOAT32, _FLOAT64, _BIG_INTEGER, _FALSE, _TRUE = 127, 126, 125, 124, 123, 122, 121, 120
_TEXT, _OBJECT, _ARRAY, _BUFFER = 119, 118, 117, 116
_CONSTANTS: Final = frozenset({_UNDEFINED, _NULL, _FALSE, _TRUE})
_FLOAT_BYTES: Final = {_FLOAT32: 4, _FLOAT64: 8}
_INFINITY: Final = {4: 0x7F800000, 8: 0x7FF0000000000000}

# Shared types (yjs ContentType): array, map, text, XML element, fragment, hook, text, then weak links and undefined.
_TYPE_MAX: Final = 9
_NAMED_TYPES: Final = frozenset({3, 5})
