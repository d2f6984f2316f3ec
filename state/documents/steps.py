"""What a transaction consists of: operations on containers that were checked and cannot fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from state.guards.values import Leaf

from .names import Name


class SetEntry(NamedTuple):
    """Step: put a leaf under a key of a map."""

    name: Name
    key: str
    leaf: Leaf


class DeleteEntry(NamedTuple):
    """Step: take away an entry that is there."""

    name: Name
    key: str


class InsertItems(NamedTuple):
    """Step: put leaves into an array."""

    name: Name
    at: int
    leaves: Sequence[Leaf]


class InsertText(NamedTuple):
    """Step: put text into a text."""

    name: Name
    at: int
    text: str


class DeleteRange(NamedTuple):
    """Step: take items or characters away."""

    name: Name
    at: int
    size: int


Step: TypeAlias = SetEntry | DeleteEntry | InsertItems | InsertText | DeleteRange


def ending_of(key: str) -> str:
    """The part of a map's key from its first colon on, by which sets finds it."""
    return key[key.find(":") :]
