"""Changes of sequences, counted as users count.

pycrdt tells a change of an array or text as a walk: keep so many, delete so many, insert these.  In texts it counts
bytes of UTF-8, also where it takes positions, and a position within a character destroys it.  Users count characters
(code points, as Python does), so positions are translated here, and a walk becomes *splices*: at this index so many
were removed and these were put there.  The splices of one change are in order, and each index counts what the splices
before it did, so applying them one by one turns the old sequence into the new one.
"""

# core: no I/O

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Splice(NamedTuple, Generic[T]):
    """At the index ``at``, ``removed`` items went and ``inserted`` came."""

    at: int
    removed: int
    inserted: T


def byte_offset(text: str, index: int) -> int:
    """Where the character at ``index`` begins in UTF-8."""
    return index if text.isascii() else len(text[:index].encode())


def text_splices(text: str, delta: Iterable[Mapping[str, Any]]) -> list[Splice[str]]:
    """What a walk over ``text``, counted in bytes, did: in characters."""
    bytes_are_characters = text.isascii()
    old = b"" if bytes_are_characters else text.encode()
    splices: list[Splice[str]] = []
    at = index = 0
    for step in delta:
        if "insert" in step:
            splices.append(Splice(index, 0, step["insert"]))
            index += len(step["insert"])
            continue
        size = step["retain"] if "retain" in step else step["delete"]
        count = size if bytes_are_characters else len(old[at : at + size].decode())
        at += size
        if "retain" in step:
            index += count
        else:
            splices.append(Splice(index, count, ""))
    return splices


def array_splices(delta: Iterable[Mapping[str, Any]]) -> list[Splice[list[Any]]]:
    """What a walk over an array did."""
    splices: list[Splice[list[Any]]] = []
    index = 0
    for step in delta:
        if "insert" in step:
            splices.append(Splice(index, 0, step["insert"]))
            index += len(step["insert"])
        elif "retain" in step:
            index += step["retain"]
        else:
            splices.append(Splice(index, step["delete"], []))
    return splices


def splice_text(text: str, splices: Iterable[Splice[str]]) -> str:
    """``text`` after these changes."""
    for at, removed, inserted in splices:
        text = text[:at] + inserted + text[at + removed :]
    return text
