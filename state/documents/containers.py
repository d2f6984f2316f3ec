"""The containers of a document, as users hold them.

Handles: they keep nothing but their name, so any number may exist for one container, before it has content as well as
after.  Each write is one transaction unless one is open.  How concurrent writes merge:

- *map*: per key, one of the concurrent values, the same everywhere; a set beats a concurrent deletion.
- *array*, *text*: all insertions survive, those of one transaction stay together; deleted is deleted.
- *counter*: all increments and decrements count.  Each writer keeps its own two sums under its own key.
- *set*: an addition beats a concurrent removal.  Each addition has an entry of its own, and a removal takes away those
  that its replica knew (Shapiro et al. 2011, OR-set).
- *register*: exactly the concurrent values (:mod:`state.clocks.dotted`); its ``value`` is the one with the latest
  stamp.  Each writer keeps its last write, with what it had seen, under its own key.

What of a counter, set or register cannot be read (only a peer that does not keep to this writes such) counts as absent.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from state.clocks.codec import read_timestamp, read_vector, vector_fields
from state.clocks.dotted import DottedRegister
from state.clocks.hybrid import Timestamp
from state.clocks.vectors import COUNTER_MAX, Dot, VersionVector, Writer
from state.errors import ValueRefused
from state.guards.values import KEY_BYTES_MAX, Leaf, Value, check_key, decode_value, encode_value
from transport.errors import RemoteProtocolError
from transport.types import NodeId

from .names import Kind, Name

if TYPE_CHECKING:
    from collections.abc import Callable

    from .staging import Staging

_D = TypeVar("_D")


class Host(Protocol):
    """The document, as its containers see it."""

    writer: Writer

    def stage(self, stage: Callable[[Staging], None]) -> None:
        """Have steps added to the open transaction, or to one of their own."""
        ...

    def look(self) -> Staging:
        """The content, with what is staged."""
        ...

    def tick(self) -> Timestamp:
        """A stamp for something written now."""
        ...

    def next_dot(self) -> Dot:
        """The number of this writer's next envelope."""
        ...


class _Container:
    """What all containers have."""

    __slots__ = ("_host", "name")

    def __init__(self, host: Host, name: Name) -> None:
        self._host = host
        self.name = name
        """Which container it is."""

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def _entries(self) -> dict[str, Leaf]:
        return self._host.look().entries(self.name)


class MapContainer(_Container):
    """Values by key, and the way to the containers below."""

    __slots__ = ()

    def __getitem__(self, key: str) -> Value:
        return decode_value(self._host.look().entry(self.name, key))

    def get(self, key: str, default: _D | None = None) -> Value | _D:
        """The value under ``key``, or ``default``."""
        look = self._host.look()
        return decode_value(look.entry(self.name, key)) if look.has(self.name, key) else default

    def __setitem__(self, key: str, value: Value) -> None:
        check_key(key)
        leaf = _encoded(value, f"[{key!r}]")
        self._host.stage(lambda staging: staging.set_entry(self.name, key, leaf))

    def __delitem__(self, key: str) -> None:
        self._host.stage(lambda staging: staging.delete_entry(self.name, key))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._host.look().has(self.name, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries())

    def __len__(self) -> int:
        return self._host.look().length(self.name)

    def items(self) -> list[tuple[str, Value]]:
        """Keys and values, by key."""
        return [(key, decode_value(leaf)) for key, leaf in self._entries().items()]

    def to_dict(self) -> dict[str, Value]:
        """A copy; of this map only, not of the containers below."""
        return dict(self.items())

    def map(self, key: str) -> MapContainer:
        """The map below ``key``."""
        return MapContainer(self._host, self.name.child(Kind.MAP, key))

    def array(self, key: str) -> ArrayContainer:
        """The array below ``key``."""
        return ArrayContainer(self._host, self.name.child(Kind.ARRAY, key))

    def text(self, key: str) -> TextContainer:
        """The text below ``key``."""
        return TextContainer(self._host, self.name.child(Kind.TEXT, key))

    def counter(self, key: str) -> Counter:
        """The counter below ``key``."""
        return Counter(self._host, self.name.child(Kind.COUNTER, key))

    def set(self, key: str) -> SetContainer:
        """The set below ``key``."""
        return SetContainer(self._host, self.name.child(Kind.SET, key))

    def register(self, key: str) -> Register:
        """The register below ``key``."""
        return Register(self._host, self.name.child(Kind.REGISTER, key))


class ArrayContainer(_Container):
    """A list of values."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._host.look().items(self.name))

    def __getitem__(self, index: int) -> Value:
        return decode_value(self._host.look().items(self.name)[index])

    def __iter__(self) -> Iterator[Value]:
        return iter(self.to_list())

    def to_list(self) -> list[Value]:
        """A copy."""
        return [decode_value(leaf) for leaf in self._host.look().items(self.name)]

    def insert(self, index: int, *values: Value) -> None:
        """Put values before ``index``; as with lists, an index beyond the ends means the end.

        Raises:
            ValueRefused: One of them cannot be held; none was inserted.
        """
        leaves = [_encoded(value, f"[{number}]") for number, value in enumerate(values)]
        start = slice(index, None).indices(len(self))[0]
        if leaves:
            self._host.stage(lambda staging: staging.insert_items(self.name, start, leaves))

    def append(self, *values: Value) -> None:
        """Put values at the end.

        Raises:
            ValueRefused: One of them cannot be held; none was appended.
        """
        self.insert(len(self), *values)

    def delete(self, index: int, count: int = 1) -> None:
        """Take away ``count`` values from ``index`` on.

        Raises:
            IndexError: There are not so many; nothing was deleted.
        """
        start = _range(index, count, len(self))
        if count:
            self._host.stage(lambda staging: staging.delete_range(self.name, start, count))


class TextContainer(_Container):
    """Text; indices count characters (code points), as everywhere in Python."""

    __slots__ = ()

    def __str__(self) -> str:
        return self._host.look().string(self.name)

    def __len__(self) -> int:
        return len(str(self))

    def __getitem__(self, index: int | slice) -> str:
        return str(self)[index]

    def insert(self, index: int, text: str) -> None:
        """Put ``text`` before ``index``; as with lists, an index beyond the ends means the end.

        Raises:
            ValueRefused: It is not text that UTF-8 can carry, or too long.
        """
        if type(text) is not str:
            raise ValueRefused(f"a text takes str, not {type(text).__name__}")
        encode_value(text)
        start = slice(index, None).indices(len(self))[0]
        if text:
            self._host.stage(lambda staging: staging.insert_text(self.name, start, text))

    def append(self, text: str) -> None:
        """Put ``text`` at the end."""
        self.insert(len(self), text)

    def delete(self, index: int, count: int = 1) -> None:
        """Take away ``count`` characters from ``index`` on.

        Raises:
            IndexError: There are not so many; nothing was deleted.
        """
        start = _range(index, count, len(self))
        if count:
            self._host.stage(lambda staging: staging.delete_range(self.name, start, count))


class Counter(_Container):
    """A number that many may raise and lower at once."""

    __slots__ = ()

    @property
    def value(self) -> int:
        """All increments less all decrements that are known here."""
        return sum(up - down for up, down in map(_sums, self._entries().values()))

    def increment(self, by: int = 1) -> None:
        """Raise it.

        Raises:
            ValueRefused: ``by`` is not an integer.
        """
        if type(by) is not int:
            raise ValueRefused(f"a counter takes int, not {type(by).__name__}")

        def stage(staging: Staging) -> None:
            key = str(self._host.writer)
            up, down = _sums(staging.entry(self.name, key)) if staging.has(self.name, key) else (0, 0)
            sums = [up + by, down] if by > 0 else [up, down - by]
            staging.set_entry(self.name, key, encode_value(sums))

        if by:
            self._host.stage(stage)

    def decrement(self, by: int = 1) -> None:
        """Lower it."""
        self.increment(-by)


class SetContainer(_Container):
    """A set of scalars: None, bool, int, float, str, bytes.

    Elements of different types are different, also where Python calls them equal: 1, 1.0 and True are three.
    """

    __slots__ = ()

    def __contains__(self, element: Value) -> bool:
        return bool(self._keys(element, self._host.look()))

    def __iter__(self) -> Iterator[Value]:
        """The elements, in the order of their encodings."""
        found = sorted({key.partition(":")[2] for key in self._entries()})
        return iter([element for text in found for element in _read_element(text)])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def add(self, element: Value) -> None:
        """Add it, also when it is there: a removal by somebody who has not seen this addition does not undo it.

        Raises:
            ValueRefused: It is not a scalar, or longer than about 900 bytes.
        """
        text = _element(element)

        def stage(staging: Staging) -> None:
            writer, counter = self._host.next_dot()
            key = f"{writer}.{counter:x}.{len(staging.steps):x}:{text}"
            if len(key.encode()) > KEY_BYTES_MAX:
                raise ValueRefused(f"element of {len(text.encode())} bytes is too long for a set")
            known = self._keys(element, staging)
            staging.set_entry(self.name, key, True)
            for older in known:
                staging.delete_entry(self.name, older)

        self._host.stage(stage)

    def discard(self, element: Value) -> None:
        """Remove it if it is there."""

        def stage(staging: Staging) -> None:
            for key in self._keys(element, staging):
                staging.delete_entry(self.name, key)

        self._host.stage(stage)

    def _keys(self, element: Value, staging: Staging) -> list[str]:
        # What stands before the first colon of a key, writer and numbers, has none itself.
        return staging.keys_ending(self.name, f":{_element(element)}")


@dataclass(frozen=True, slots=True)
class Written:
    """One value of a register, and when and by whom it was written."""

    value: Value
    stamp: Timestamp
    writer: Writer


class Register(_Container):
    """One value, with conflicts shown.

    ``value`` is the last one written, by hybrid time; ``conflict`` has all concurrent ones when there is more than one.
    """

    __slots__ = ()

    @property
    def value(self) -> Value:
        """The latest value; ``None`` if there is none."""
        written = self.values
        return max(written, key=lambda one: (one.stamp, one.writer)).value if written else None

    @property
    def values(self) -> list[Written]:
        """Exactly the values that were written without knowing of each other; one if there is no conflict."""
        return list(self._read(self._host.look()).siblings.values())

    @property
    def conflict(self) -> list[Written]:
        """The concurrent values, by writer; empty if all agree."""
        written = self.values
        return written if len(written) > 1 else []

    @property
    def context(self) -> VersionVector:
        """What has been seen of this register: pass it to :meth:`set` to replace exactly what was read."""
        return self._read(self._host.look()).context

    def set(self, value: Value, *, seen: VersionVector | None = None) -> None:
        """Replace the value and settle conflicts.

        Args:
            value: The new value.
            seen: The context of an earlier read; what was written since stays as a conflict.  ``None``: everything
                that is known here is replaced.

        Raises:
            ValueRefused: The value cannot be held.
        """
        _encoded(value, "")

        def stage(staging: Staging) -> None:
            before = self._read(staging)
            covered = before.context if seen is None else seen
            dot = before.context.merge(covered).next(self._host.writer)
            entry: list[Any] = [dot.counter, vector_fields(covered), self._host.tick().packed, value]
            staging.set_entry(self.name, str(self._host.writer), encode_value(entry))

        self._host.stage(stage)

    def _read(self, staging: Staging) -> DottedRegister[Written]:
        register: DottedRegister[Written] = DottedRegister()
        for key, leaf in staging.entries(self.name).items():
            for single in _read_written(key, leaf):
                register = register.join(single)
        return register


# --- how they are written ---------------------------------------------------------------------------------------


def _encoded(value: Value, path: str) -> Leaf:
    try:
        return encode_value(value)
    except ValueRefused as error:
        error.path = path + error.path
        raise


def _range(index: int, count: int, length: int) -> int:
    """The first of ``count`` places from ``index``, which may be negative."""
    start = index + length if index < 0 else index
    if count < 0 or not 0 <= start <= start + count <= length:
        raise IndexError(f"{count} from {index} is not within {length}")
    return start


def _sums(leaf: Leaf) -> tuple[int, int]:
    """A writer's increments and decrements; 0 of what cannot be read."""
    match decode_value(leaf):
        case [int() as up, int() as down] if up >= 0 and down >= 0:
            return up, down
    return 0, 0


_BASE64: Final = "b"
_TEXT: Final = "s"


def _element(element: Value) -> str:
    """An element as the end of a key."""
    if isinstance(element, list | dict):
        raise ValueRefused(f"a set holds scalars, not a {type(element).__name__}")
    if isinstance(element, str):
        encode_value(element)
        return _TEXT + element
    # One encoding for all the others: as an item of a list, which is always bytes.
    leaf = encode_value([element])
    assert isinstance(leaf, bytes)
    return _BASE64 + base64.urlsafe_b64encode(leaf).decode()


def _read_element(text: str) -> list[Value]:
    """The inverse of :func:`_element`; nothing for what it would not have written."""
    if text.startswith(_TEXT):
        return [text[1:]]
    try:
        found = decode_value(base64.urlsafe_b64decode(text[1:])) if text.startswith(_BASE64) else None
    except Exception:  # noqa: BLE001 - a peer may have written anything here
        return []
    return found if isinstance(found, list) and len(found) == 1 and _element(found[0]) == text else []


def _read_written(key: str, leaf: Leaf) -> list[DottedRegister[Written]]:
    """A writer's last write of a register; nothing for what :meth:`Register.set` would not have written."""
    node, _, life = key.rpartition("/")
    fields = decode_value(leaf)
    if not isinstance(fields, list) or len(fields) != 4:
        return []
    counter, context, stamp, value = fields
    try:
        writer = Writer(NodeId(node), int(life, 16))
        seen = read_vector(context)
        written = Written(value, read_timestamp(stamp), writer)
    except (RemoteProtocolError, ValueError):
        return []
    if str(writer) != key or type(counter) is not int or not seen[writer] < counter <= COUNTER_MAX:
        return []
    return [DottedRegister({Dot(writer, counter): written}, seen)]
