"""Yjs updates written by hand, for what no library would write; and every input known to have hurt one."""

from __future__ import annotations

import struct
from collections.abc import Iterable

#: Smaller crashers are kept as files in ``tests/corpus/updates``.
KEPT_BYTES_MAX = 1 << 17
#: Whom the crafted updates come from.
CLIENT = 7

TEXT, BUFFER, ARRAY, OBJECT, NULL = b"\x77", b"\x74", b"\x75", b"\x76", b"\x7e"


def varint(number: int) -> bytes:
    """An unsigned number in lib0's encoding."""
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def sized(data: bytes) -> bytes:
    """Bytes with their length in front."""
    return varint(len(data)) + data


def reference(client: int, clock: int) -> bytes:
    """A block's id."""
    return varint(client) + varint(clock)


def item(content: int, body: bytes, *, root: bytes = b"m:", key: bytes | None = b"k") -> bytes:
    """A block without neighbours, in a root."""
    flags = 0 if key is None else 0x20
    return bytes([flags | content]) + varint(1) + sized(root) + (b"" if key is None else sized(key)) + body


def entry(value: bytes, **place: bytes) -> bytes:
    """A block with one value, already encoded."""
    return item(8, varint(1) + value, **place)


def update(
    blocks: Iterable[bytes],
    *,
    client: int = CLIENT,
    clock: int = 0,
    deletes: Iterable[tuple[int, Iterable[tuple[int, int]]]] = (),
) -> bytes:
    """One client's blocks and a delete set."""
    blocks = list(blocks)
    head = varint(1) + varint(len(blocks)) + varint(client) + varint(clock) if blocks else varint(0)
    return head + b"".join(blocks) + delete_set(deletes)


def delete_set(deletes: Iterable[tuple[int, Iterable[tuple[int, int]]]]) -> bytes:
    """By client, the first clock and the number of clocks of each range."""
    clients = [(client, list(ranges)) for client, ranges in deletes]
    encoded = varint(len(clients))
    for client, ranges in clients:
        encoded += varint(client) + varint(len(ranges))
        encoded += b"".join(varint(start) + varint(length) for start, length in ranges)
    return encoded


def nested(depth: int) -> bytes:
    """Arrays within arrays."""
    return (ARRAY + varint(1)) * depth + NULL


def crashers() -> dict[str, bytes]:
    """Updates known to end a process, to silence a writer, to loop or to eat memory (research, section 8)."""
    return _overruns() | _misplaced()


def _overruns() -> dict[str, bytes]:
    """Depths, clocks, lengths and counts beyond what there is."""
    ok = entry(NULL)
    gc = b"\x00"
    return {
        "depth-40000-arrays": update([entry(nested(40_000))]),
        "depth-20000-arrays": update([entry(nested(20_000))]),
        "depth-40000-objects": update([entry((OBJECT + varint(1) + sized(b"")) * 40_000 + NULL)]),
        "depth-json": update([item(2, varint(1) + sized(b"[" * 40_000 + b"]" * 40_000))]),
        "depth-embed": update([item(5, sized(b'{"a":' * 20_000 + b"1" + b"}" * 20_000))]),
        "clock-2-31": update([ok], clock=2**31),
        "clock-2-32-less-2": update([ok], clock=2**32 - 2),
        "clock-past-32-bits": update([ok], clock=2**40),
        "gc-2-32": update([gc + varint(2**32 - 1)]),
        "gc-overflow-in-steps": update([gc + varint(2**30)] * 4),
        "gc-hole-then-item": update([gc + varint(2**31 - 2), ok]),
        "skip-to-the-end": update([b"\x0a" + varint(2**31 - 2), ok]),
        "skip-2-32": update([b"\x0a" + varint(2**32 - 2)]),
        "deleted-2-31": update([item(1, varint(2**31))]),
        "length-zero-gc": update([gc + varint(0)]),
        "length-zero-skip": update([b"\x0a" + varint(0)]),
        "length-zero-text": update([item(4, sized(b""), key=None)]),
        "length-zero-values": update([item(8, varint(0))]),
        "length-zero-deleted": update([item(1, varint(0))]),
        "too-many-clients": varint(2**28) + b"\x00",
        "too-many-clients-short": b"\xff\xff\xff\xff\x0f",
        "too-many-blocks": varint(1) + varint(2**53 - 1) + varint(CLIENT) + b"\x00",
        "too-many-values": update([item(8, varint(2**31))]),
        "too-many-deletes": varint(0) + varint(2**40),
        "too-many-ranges": varint(0) + varint(1) + varint(CLIENT) + varint(2**40),
        "overflow-in-length": update([item(4, varint(2**53 - 1) + b"x", key=None)]),
        "overflow-in-length-64": update([item(4, b"\xff" * 9 + b"\x01" + b"x", key=None)]),
        "number-without-end": b"\xff" * 64,
        "missing-client": varint(1) + varint(1),
        "foreign-client": update([ok], client=8),
        "client-of-54-bits": update([ok], client=2**53),
        "client-twice": varint(2) + (varint(1) + varint(CLIENT) + varint(0) + ok) * 2 + b"\x00",
        "client-without-block": varint(1) + varint(0) + varint(CLIENT) + varint(0) + b"\x00",
    }


def _misplaced() -> dict[str, bytes]:
    """References and deletions out of place, contents and texts that may not be, and what is too large or cut."""
    ok = entry(NULL)
    return {
        "refers-to-itself": update([b"\x88" + reference(CLIENT, 0) + varint(1) + NULL]),
        "refers-forward": update([b"\x88" + reference(CLIENT, 1) + varint(1) + NULL, ok]),
        "refers-to-a-hole": update([b"\x88" + reference(99, 5) + varint(1) + NULL]),
        "right-is-itself": update([b"\x48" + reference(CLIENT, 0) + varint(1) + NULL]),
        "parent-is-itself": update([b"\x08" + varint(0) + reference(CLIENT, 0) + varint(1) + NULL]),
        "parent-of-kind-2": update([b"\x08" + varint(2) + varint(1) + NULL]),
        "starts-behind-a-hole": update([ok], clock=5),
        "deletes-the-unknown": update([ok], deletes=[(99, [(0, 10)])]),
        "deletes-all-clocks": update([], deletes=[(CLIENT, [(0, 2**31 - 1)])]),
        "deletes-past-32-bits": update([], deletes=[(CLIENT, [(2**31 - 1, 2**31 - 1)])]),
        "deletes-nothing": update([ok], deletes=[(CLIENT, [(0, 0)])]),
        "deletes-twice": update([ok], deletes=[(CLIENT, [(0, 1)]), (CLIENT, [(0, 1)])]),
        "not-utf8-key": update([entry(NULL, key=b"\xff\xfe")]),
        "not-utf8-root": update([entry(NULL, root=b"\xc3")]),
        "not-utf8-text": update([item(4, sized(b"\xed\xa0\x80"), key=None)]),
        "not-utf8-value": update([entry(TEXT + sized(b"\x80"))]),
        "key-of-a-megabyte": update([entry(NULL, key=b"k" * 2**20)]),
        "root-of-a-megabyte": update([entry(NULL, root=b"r" * 2**20)]),
        "value-nan": update([entry(b"\x7b" + struct.pack(">d", float("nan")))]),
        "value-nan-32": update([entry(b"\x7c" + struct.pack(">f", float("nan")))]),
        "value-undefined": update([entry(b"\x7f")]),
        "value-integer": update([entry(b"\x7d\x05")]),
        "value-unknown-type": update([entry(b"\x05")]),
        "value-no-leaf": update([entry(BUFFER + sized(b"\x01\xc1"))]),
        "value-deep-leaf": update([entry(BUFFER + sized(b"\x01" + b"\x91" * 100_000))]),
        "value-wide-leaf": update([entry(BUFFER + sized(b"\x01" + b"\xdc\xff\xff" * 1000))]),
        "type-of-kind-10": update([item(7, varint(10))]),
        "content-11": update([item(11, b"")]),
        "content-31": update([item(31, b"")]),
        "text-in-an-array": update([item(4, sized("é".encode()), root=b"a:x", key=None), entry(NULL)]),
        "subdocument": update([item(9, sized(b"guid") + NULL)]),
        "xml": update([item(7, varint(3) + sized(b"p"))]),
        "trailing": update([ok]) + b"z",
        "trailing-update": update([ok]) * 2,
        "cut-short": update([ok])[:-1],
        "empty": b"",
        "a-megabyte-of-zeros": bytes(2**20),
        "64-megabytes": bytes(64 * 2**20),
    }


def vector_crashers() -> dict[str, bytes]:
    """The same for state vectors."""
    return {
        "2-28-clients": b"\x80\x80\x80\x80\x01",
        "2-53-clients": varint(2**53 - 1),
        "client-of-54-bits": varint(1) + varint(2**53) + varint(1),
        "clock-2-31": varint(1) + varint(1) + varint(2**31),
        "twice": varint(2) + varint(1) + varint(1) + varint(1) + varint(2),
        "trailing": varint(0) + b"\x00",
        "cut-short": varint(2) + varint(1) + varint(1) + varint(1),
        "empty": b"",
        "number-without-end": b"\xff" * 64,
        "more-than-allowed": varint(65_537) + bytes(2 * 65_537),
    }
