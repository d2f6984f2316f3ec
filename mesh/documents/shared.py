"""A document as users hold it: the content to read and write, and whether it is saved and has caught up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from state.documents.containers import ArrayContainer, Counter, MapContainer, Register, SetContainer, TextContainer
from state.documents.events import Change, ChangesLost, DocumentEvent
from state.documents.watching import Changes
from state.guards.values import Value

if TYPE_CHECKING:
    from state.replication.replica import Replica

__all__ = [
    "ArrayContainer",
    "Change",
    "Changes",
    "ChangesLost",
    "Counter",
    "DocumentEvent",
    "MapContainer",
    "Register",
    "SetContainer",
    "SharedDocument",
    "TextContainer",
    "Value",
]


class SharedDocument:
    """A replicated document; get one by :meth:`mesh.AgentNetworkManager.document`.

    Every replica may read and write at any time, also while it is cut off; replicas that can talk come to hold the
    same.  A write is in the content at once, on this node's disk after the next :meth:`saved`, and with the other
    replicas soon after that, or when they can be reached again.  ``doc[key]`` is the document's own map; what else it
    holds (:meth:`text`, :meth:`array`, :meth:`counter` ...) merges as told in ``docs/documents.md``.

    Args:
        replica: What runs below.
        others: The other nodes that replicate it, as far as this node knows.
    """

    def __init__(self, replica: Replica, others: Callable[[], Sequence[str]]) -> None:
        self._replica = replica
        self._document = replica.document
        self._others = others

    def __repr__(self) -> str:
        return f"<SharedDocument {self.name!r}>"

    @property
    def name(self) -> str:
        """Its name, the same at every replica."""
        return self._document.name

    # --- content ------------------------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> Value:
        return self._document[key]

    def __setitem__(self, key: str, value: Value) -> None:
        self._document[key] = value

    def __delitem__(self, key: str) -> None:
        del self._document[key]

    def __contains__(self, key: object) -> bool:
        return key in self._document

    def __iter__(self) -> Iterator[str]:
        return iter(self._document)

    def __len__(self) -> int:
        return len(self._document)

    def get(self, key: str, default: Value = None) -> Value:
        """The value under ``key``, or ``default``."""
        return self._document.root.get(key, default)

    def items(self) -> list[tuple[str, Value]]:
        """Keys and values, by key."""
        return self._document.root.items()

    def to_dict(self) -> dict[str, Value]:
        """A copy of the document's own map."""
        return self._document.root.to_dict()

    def map(self, key: str) -> MapContainer:
        """The map of this name."""
        return self._document.map(key)

    def array(self, key: str) -> ArrayContainer:
        """The array of this name."""
        return self._document.array(key)

    def text(self, key: str) -> TextContainer:
        """The text of this name."""
        return self._document.text(key)

    def counter(self, key: str) -> Counter:
        """The counter of this name."""
        return self._document.counter(key)

    def set(self, key: str) -> SetContainer:
        """The set of this name."""
        return self._document.set(key)

    def register(self, key: str) -> Register:
        """The register of this name, which shows conflicts."""
        return self._document.register(key)

    def transaction(self) -> AbstractContextManager[None]:
        """Do what the block does at once when it ends, or, if it raises, not at all; do not await within.

        Raises:
            TransactionConflict: Somebody else's change arrived while the block was open; nothing was done.
            TransactionTooLarge: It exceeds the limits; nothing was done.
        """
        return self._document.transaction()

    # --- changes ------------------------------------------------------------------------------------------------

    def observe(self, callback: Callable[[Change], None]) -> Callable[[], None]:
        """Have ``callback`` called after each change, ours and others'; it must not write.  Returns what ends it."""
        return self._document.observe(callback)

    def changes(self) -> Changes:
        """Each change from now on: ``async for change in doc.changes()``."""
        return self._document.changes()

    # --- disk and others ----------------------------------------------------------------------------------------

    async def saved(self) -> None:
        """Return when everything written so far is on this node's disk: from then on it survives any crash.

        Raises:
            StorageError: The disk refused.  The writes stand, and saving is tried again, so this may be called again.
        """
        await self._replica.saved()

    async def synced(self, *, timeout: float = 10.0) -> None:
        """Return when nothing is missing here that the linked replicas had when they were last compared with.

        At once if no other node is known to replicate the document, or when none is any more.

        Raises:
            TimeoutError: No replica could be reached in time, or there was too much to get.
        """
        async with asyncio.timeout(timeout):
            await self._replica.settled(self._others)

    def digest(self) -> str:
        """32 hexadecimal digits over the content: equal on two nodes exactly when they read the same.

        Takes time in proportion to the content, about 5 µs an entry.
        """
        return self._document.digest().hex()

    @property
    def replicas(self) -> tuple[str, ...]:
        """The other nodes that are known to replicate it, sorted."""
        return tuple(self._others())

    @property
    def version(self) -> dict[str, int]:
        """How many transactions of each writer are in it; a writer is a node's process, ``node/life``."""
        return {str(writer): counter for writer, counter in self._document.version}

    def stats(self) -> dict[str, int]:
        """Counters since it was opened, and what waits for the disk or for others."""
        return self._replica.statistics()
