"""Names of containers, and the roots in which they live.

A document is a tree to its users: maps within maps, texts and counters in them.  Within Yjs it is flat: each container
is a *root* of its own, whose name is its kind and path.  Nested Yjs types would lose data: two replicas that make "the
same" nested counter at the same time make two, and one of them wins with all its counts.  Roots are the same for
whoever names them, so there is nothing to lose.

The kind is part of the name because Yjs does not check it: a root opened as another type is simply empty.  So a map
and a text of one path are two containers.  A root's name is a letter, a colon, and the path's parts with ``/`` between;
within a part ``/`` and ``~`` are written ``~1`` and ``~0`` (RFC 6901).
"""

# core: no I/O

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from state.errors import ValueRefused
from state.guards.values import check_key

#: The longest root name, in UTF-8: what the validator lets pass.
ROOT_BYTES_MAX: Final = 1_024


class Kind(enum.StrEnum):
    """What a container is; the value begins its root's name."""

    # An enum's own is a Python function, and names are looked up several times in each operation.
    __hash__ = str.__hash__

    MAP = "m"
    ARRAY = "a"
    TEXT = "t"
    COUNTER = "c"
    SET = "s"
    REGISTER = "r"


_KINDS: Final = {kind.value: kind for kind in Kind}


class Name(NamedTuple):
    """Which container of a document: its kind, and the keys that lead to it."""

    kind: Kind
    path: tuple[str, ...] = ()
    """Empty: the document's own map."""

    def child(self, kind: Kind, key: str) -> Name:
        """The container under ``key`` of this map.

        Raises:
            ValueRefused: The key is not a text, or empty, or the path becomes too long.
        """
        check_key(key)
        if not key:
            raise ValueRefused("the key of a container is empty")
        name = Name(kind, (*self.path, key))
        if len(name.root.encode()) > ROOT_BYTES_MAX:
            raise ValueRefused(f"path of {len(name.path)} keys is longer than {ROOT_BYTES_MAX} bytes")
        return name

    @property
    def root(self) -> str:
        """The name of its root."""
        return f"{self.kind.value}:{'/'.join(part.replace('~', '~0').replace('/', '~1') for part in self.path)}"

    def __str__(self) -> str:
        return f"{self.kind.name.lower()} {'/'.join(self.path)!r}"


def name_of(root: str) -> Name | None:
    """The container of a root; ``None``: a kind that this version does not know, or no such name."""
    kind = _KINDS.get(root[:1])
    if kind is None or root[1:2] != ":":
        return None
    text = root[2:]
    path = tuple(part.replace("~1", "/").replace("~0", "~") for part in text.split("/")) if text else ()
    name = Name(kind, path)
    return name if name.root == root else None
