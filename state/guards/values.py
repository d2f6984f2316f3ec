"""Values that come back from a document exactly as they went in.

pycrdt reads an integer back as a float, bytes as a bytearray and a tuple as a list, and ends the process on a key that
is no string or an integer above 63 bits (``docs/protocol/documents.md``, "Known defects").  So a document stores
*leaves*, of the five types that pycrdt does keep, and this codec stands between them and the caller's values:

=====================================  =========================================================
``None``, ``bool``, ``float``, ``str``  the leaf is the value
``int``, ``bytes``, ``list``, ``dict``  the leaf is ``bytes``: a version (1) and MessagePack
=====================================  =========================================================

Integers outside 64 bits are MessagePack extension 1: two's complement, big endian.  A value has exactly one encoding
(dict entries keep their order, which is part of the value), so that equal values have equal leaves, and
:func:`check_leaf` can demand of a peer that it wrote what this codec writes.

What is refused, with the place in the value where it stands: other types (subclasses too: an ``IntEnum`` or a
``namedtuple`` would come back as something else), keys that are not strings, ``nan`` (it is unequal to itself, so no
replica could say whether it changed; infinities and ``-0.0`` are fine), text with lone surrogates (no UTF-8), values
that contain themselves, and whatever is deeper, wider or larger than the limits.
"""

# core: no I/O

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgpack

from state.errors import UpdateRefused, ValueRefused

Value: TypeAlias = "bool | int | float | str | bytes | Sequence[Value] | Mapping[str, Value] | None"
"""What users put into documents; sequences must be lists and mappings dicts, which types cannot say without trouble."""

Leaf: TypeAlias = "bool | float | str | bytes | None"
"""What pycrdt holds of a value."""

#: How deep lists and dicts may nest.
DEPTH_MAX: Final = 32
#: Items and entries of one list or dict.  Bounds what crafted array headers make the decoder allocate; what grows
#: further should be an array or map of the document, which also merges item by item.
ITEMS_MAX: Final = 4_096
#: Values within one value, keys counted.
NODES_MAX: Final = 16_384
#: The largest leaf: a text in UTF-8, or the encoding.
LEAF_BYTES_MAX: Final = 256 * 1024
#: The longest key of a dict or map, in UTF-8.
KEY_BYTES_MAX: Final = 1_024
#: The largest integer's bytes: 8,192 bits.
INT_BYTES_MAX: Final = 1_024

_VERSION: Final = b"\x01"
_EXT_INT: Final = 1
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1

_TOO_LARGE_HINT: Final = "split it, or use a map or array of the document"

_UNPACK_ERRORS: Final = (ValueError, TypeError, OverflowError, msgpack.UnpackException, msgpack.StackError)


def encode_value(value: Value) -> Leaf:
    """The leaf that stands for ``value``.

    Raises:
        ValueRefused: A document cannot hold it; the error names the place.
    """
    kind = type(value)
    if value is None or kind is bool:
        return value  # type: ignore[return-value]  # mypy does not narrow by `kind`
    if kind is float:
        _check_float(value)  # type: ignore[arg-type]
        return value  # type: ignore[return-value]
    if kind is str:
        _check_text(value, LEAF_BYTES_MAX)  # type: ignore[arg-type]
        return value  # type: ignore[return-value]
    if kind is not int:
        _Walk().check(value, 0)
    return _pack_value(value)


def decode_value(leaf: Leaf) -> Value:
    """The value that ``leaf`` stands for; the inverse of :func:`encode_value`.

    Args:
        leaf: From :func:`encode_value`, or accepted by :func:`check_leaf`; pycrdt's ``bytearray`` will do.
    """
    if isinstance(leaf, bytes | bytearray):
        return _unpack(leaf)  # type: ignore[no-any-return]
    return leaf


def check_leaf(data: bytes) -> None:
    """Check that bytes from a peer are a leaf that :func:`encode_value` writes.

    Raises:
        UpdateRefused: They are not.
    """
    if data[:1] != _VERSION or len(data) > LEAF_BYTES_MAX:
        raise UpdateRefused("value has no known encoding")
    try:
        again = encode_value(_unpack(data))
    except ValueRefused as error:
        raise UpdateRefused(f"value{error.path}: {error.message}") from error
    except _UNPACK_ERRORS as error:
        raise UpdateRefused(f"value is not MessagePack as expected: {type(error).__name__}") from error
    if again != data:
        raise UpdateRefused("value is not encoded as it must be")


def check_key(key: str) -> None:
    """Check a key of a map.

    Raises:
        ValueRefused: It is not a string of at most :data:`KEY_BYTES_MAX` bytes.
    """
    if type(key) is not str:
        raise ValueRefused(f"key {key!r} is {_article(key)}, and keys are str"[:200])
    _check_text(key, KEY_BYTES_MAX)


# --- writing ----------------------------------------------------------------------------------------------------


class _Walk:
    """One walk over a value, before MessagePack sees it."""

    __slots__ = ("_above", "_nodes")

    def __init__(self) -> None:
        self._nodes = 0
        self._above: list[object] = []

    def check(self, value: object, depth: int) -> None:
        """Refuse ``value`` if it, or anything in it, cannot be held; the path grows as the error rises."""
        kind = type(value)
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise ValueRefused(f"holds more than {NODES_MAX} values", hint=_TOO_LARGE_HINT)
        if kind is list or kind is dict:
            self._container(value, depth)  # type: ignore[arg-type]
        elif (check := _SCALARS.get(kind)) is not None:
            check(value)
        else:
            raise ValueRefused(
                f"{_article(value)} cannot be held", hint="use None, bool, int, float, str, bytes, list or dict"
            )

    def _container(self, value: list[object] | dict[object, object], depth: int) -> None:
        if any(value is outer for outer in self._above):
            raise ValueRefused("contains itself")
        if depth >= DEPTH_MAX:
            raise ValueRefused(f"nests deeper than {DEPTH_MAX}", hint=_TOO_LARGE_HINT)
        if len(value) > ITEMS_MAX:
            raise ValueRefused(f"has {len(value)} items, and {ITEMS_MAX} are allowed", hint=_TOO_LARGE_HINT)
        self._above.append(value)
        place: object = None
        try:
            if isinstance(value, list):
                for place, item in enumerate(value):  # noqa: B007 - for the error's path
                    self.check(item, depth + 1)
            else:
                for place, item in value.items():
                    check_key(place)  # type: ignore[arg-type]  # that is what it checks
                    self._nodes += 1
                    self.check(item, depth + 1)
        except ValueRefused as error:
            error.path = f"[{place!r}]"[:64] + error.path
            raise
        self._above.pop()


def _check_float(value: float) -> None:
    if math.isnan(value):
        raise ValueRefused("nan cannot be held: it is unequal to itself", hint="use None for a missing number")


def _check_text(text: str, bytes_max: int) -> None:
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise ValueRefused("text has a lone surrogate, which UTF-8 cannot carry") from error
    if size > bytes_max:
        raise ValueRefused(f"text has {size} bytes, and {bytes_max} are allowed", hint=_TOO_LARGE_HINT)


def _accept(_value: object) -> None:
    pass


_SCALARS: Final[dict[type, Callable[[Any], None]]] = {
    type(None): _accept,
    bool: _accept,
    int: _accept,
    float: _check_float,
    str: lambda text: _check_text(text, LEAF_BYTES_MAX),
    bytes: _accept,
}


def _big_int(value: object) -> msgpack.ExtType:
    """MessagePack's packer asks here about what it cannot carry: after the walk, integers only."""
    assert isinstance(value, int)
    size = value.bit_length() // 8 + 1
    if size > INT_BYTES_MAX:
        raise ValueRefused(f"integer has {value.bit_length()} bits, and {8 * INT_BYTES_MAX - 1} are allowed")
    return msgpack.ExtType(_EXT_INT, value.to_bytes(size, "big", signed=True))


_packer: Final[Callable[[object], bytes]] = msgpack.Packer(use_bin_type=True, autoreset=True, default=_big_int).pack


def _pack_value(value: object) -> bytes:
    leaf = _VERSION + _packer(value)
    if len(leaf) > LEAF_BYTES_MAX:
        raise ValueRefused(f"takes {len(leaf)} bytes, and {LEAF_BYTES_MAX} are allowed", hint=_TOO_LARGE_HINT)
    return leaf


def _article(value: object) -> str:
    name = type(value).__name__
    hint = {"tuple": " (a list would do)", "set": " (a sorted list, or a set of the document, would do)"}.get(name, "")
    return f"{'an' if name[:1] in 'aeiou' else 'a'} {name}{hint}"


# --- reading ----------------------------------------------------------------------------------------------------


def _unpack(data: bytes | bytearray) -> Any:
    return msgpack.unpackb(
        memoryview(data)[1:],
        strict_map_key=False,  # check_leaf walks the value and names what is wrong
        max_array_len=ITEMS_MAX,
        max_map_len=ITEMS_MAX,
        ext_hook=_read_int,
    )


def _read_int(code: int, data: bytes) -> int:
    if code != _EXT_INT or len(data) > INT_BYTES_MAX:
        raise ValueError("extension")
    return int.from_bytes(data, "big", signed=True)
