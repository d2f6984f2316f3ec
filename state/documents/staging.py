"""What an open transaction has in mind: checked steps, and how the content reads with them.

Each operation is checked against the staged content when it is called, so that the steps, done later in order, cannot
fail.  Only what a transaction touches is copied: entries of maps one by one, arrays and texts as a whole.

The limits keep the update that will come of it within what :data:`~state.guards.updates.VALUE_LIMITS` lets pass, by
what each step can cost at most: its content, its names, and two or three ids of up to 13 bytes each; a deletion may
cost one range, 13 bytes, for each item if all its neighbours are somebody else's.
"""

# core: no I/O

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from state.errors import TransactionTooLarge
from state.guards.values import Leaf

from .names import Kind, Name
from .steps import DeleteEntry, DeleteRange, InsertItems, InsertText, SetEntry, Step, ending_of

#: Operations, items and entries of one transaction: pycrdt's time grows with their square.
OPERATIONS_MAX: Final = 4_096
#: What the update may cost in bytes, as estimated; below the validator's limit and within an envelope of the wire.
UPDATE_BYTES_MAX: Final = 900 * 1024

_ITEM_BYTES: Final = 64
_RANGE_BYTES: Final = 13


class Content(Protocol):
    """What is there before the transaction."""

    def entry(self, name: Name, key: str) -> Leaf:
        """A map's leaf; ``KeyError`` if there is none."""
        ...

    def has(self, name: Name, key: str) -> bool:
        """Whether a map has the key."""
        ...

    def entries(self, name: Name) -> dict[str, Leaf]:
        """All entries of a map, by key."""
        ...

    def length(self, name: Name) -> int:
        """How many entries a map has."""
        ...

    def keys_ending(self, name: Name, ending: str) -> list[str]:
        """A map's keys of that ending."""
        ...

    def items(self, name: Name) -> list[Leaf]:
        """An array's leaves."""
        ...

    def string(self, name: Name) -> str:
        """A text's characters."""
        ...


class Staging:
    """The steps of one transaction, and the content as it would be."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self.steps: list[Step] = []
        self._entries: dict[Name, dict[str, Leaf]] = {}
        self._deleted: dict[Name, dict[str, None]] = {}
        self._arrays: dict[Name, list[Leaf]] = {}
        self._strings: dict[Name, str] = {}
        self._operations = 0
        self._bytes = 0
        self._value_clocks = 0
        self._text_clocks = 0

    @property
    def clocks(self) -> tuple[int, int]:
        """How many Yjs clocks the steps take, among values and among texts."""
        return self._value_clocks, self._text_clocks

    @property
    def size_bytes(self) -> int:
        """What the steps take in an envelope, estimated from above."""
        return self._bytes

    # --- maps ---

    def entry(self, name: Name, key: str) -> Leaf:
        """A map's leaf.

        Raises:
            KeyError: There is none.
        """
        if name in self._entries and key in self._entries[name]:
            return self._entries[name][key]
        if name in self._deleted and key in self._deleted[name]:
            raise KeyError(key)
        return self._content.entry(name, key)

    def has(self, name: Name, key: str) -> bool:
        """Whether a map has the key."""
        if name in self._entries and key in self._entries[name]:
            return True
        if name in self._deleted and key in self._deleted[name]:
            return False
        return self._content.has(name, key)

    def entries(self, name: Name) -> dict[str, Leaf]:
        """All entries of a map, by key in order."""
        held = self._content.entries(name)
        staged, deleted = self._entries.get(name, {}), self._deleted.get(name, {})
        if not staged and not deleted:
            return held
        both = held | staged
        return {key: both[key] for key in sorted(both) if key not in deleted}

    def length(self, name: Name) -> int:
        """How many entries a map has."""
        if name in self._entries or name in self._deleted:
            return len(self.entries(name))
        return self._content.length(name)

    def keys_ending(self, name: Name, ending: str) -> list[str]:
        """A map's keys of that ending, in order."""
        deleted = self._deleted.get(name, {})
        held = [key for key in self._content.keys_ending(name, ending) if key not in deleted]
        staged = [key for key in self._entries.get(name, {}) if ending_of(key) == ending]
        return sorted({*held, *staged}) if staged else held

    def set_entry(self, name: Name, key: str, leaf: Leaf) -> None:
        """Put a leaf under a key.

        Raises:
            TransactionTooLarge: There is no room for it.
        """
        self._take(1, len(key.encode()) + _leaf_bytes(leaf) + _ITEM_BYTES)
        self.steps.append(SetEntry(name, key, leaf))
        self._value_clocks += 1
        self._entries.setdefault(name, {})[key] = leaf
        self._deleted.get(name, {}).pop(key, None)

    def delete_entry(self, name: Name, key: str) -> None:
        """Take an entry away.

        Raises:
            KeyError: There is none.
            TransactionTooLarge: There is no room for it.
        """
        if not self.has(name, key):
            raise KeyError(key)
        self._take(1, _RANGE_BYTES)
        self.steps.append(DeleteEntry(name, key))
        self._entries.get(name, {}).pop(key, None)
        self._deleted.setdefault(name, {})[key] = None

    # --- arrays and texts ---

    def items(self, name: Name) -> list[Leaf]:
        """An array's leaves; not to be changed."""
        staged = self._arrays.get(name)
        return self._content.items(name) if staged is None else staged

    def string(self, name: Name) -> str:
        """A text's characters."""
        staged = self._strings.get(name)
        return self._content.string(name) if staged is None else staged

    def insert_items(self, name: Name, index: int, leaves: Sequence[Leaf]) -> None:
        """Put leaves into an array, at an index within it or at its end.

        Raises:
            TransactionTooLarge: There is no room for them.
        """
        assert 0 <= index <= len(self.items(name))
        self._take(len(leaves), sum(_leaf_bytes(leaf) + _ITEM_BYTES for leaf in leaves))
        self.steps.append(InsertItems(name, index, tuple(leaves)))
        self._value_clocks += len(leaves)
        self._staged_items(name)[index:index] = leaves

    def insert_text(self, name: Name, index: int, text: str) -> None:
        """Put text into a text, at an index within it or at its end.

        Raises:
            TransactionTooLarge: There is no room for it.
        """
        before = self.string(name)
        assert 0 <= index <= len(before)
        self._take(1, len(text.encode()) + _ITEM_BYTES)
        self.steps.append(InsertText(name, index, text))
        self._text_clocks += len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2
        self._strings[name] = before[:index] + text + before[index:]

    def delete_range(self, name: Name, index: int, count: int) -> None:
        """Take items or characters away, all of them there.

        Raises:
            TransactionTooLarge: There is no room for it.
        """
        held = self.items(name) if name.kind is Kind.ARRAY else self.string(name)
        assert 0 <= index <= index + count <= len(held)
        self._take(1, count * _RANGE_BYTES)
        self.steps.append(DeleteRange(name, index, count))
        if name.kind is Kind.ARRAY:
            del self._staged_items(name)[index : index + count]
        else:
            before = self.string(name)
            self._strings[name] = before[:index] + before[index + count :]

    def _staged_items(self, name: Name) -> list[Leaf]:
        if name not in self._arrays:
            self._arrays[name] = list(self._content.items(name))
        return self._arrays[name]

    def _take(self, operations: int, size_bytes: int) -> None:
        if self._operations + operations > OPERATIONS_MAX or self._bytes + size_bytes > UPDATE_BYTES_MAX:
            raise TransactionTooLarge(
                f"a transaction may have {OPERATIONS_MAX} operations and {UPDATE_BYTES_MAX} bytes, and this one would "
                f"have {self._operations + operations} and up to {self._bytes + size_bytes}",
                hint="do it in several transactions",
            )
        self._operations += operations
        self._bytes += size_bytes


def _leaf_bytes(leaf: Leaf) -> int:
    if isinstance(leaf, str):
        return len(leaf) if leaf.isascii() else len(leaf.encode())
    return len(leaf) if isinstance(leaf, bytes) else 8
