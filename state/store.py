"""Documents on disk: each replica's envelopes, in the order in which they came into its content.

One file of a node holds all its documents (:mod:`state.journal`: group commit, a checksum for each record, quarantine).
A document's *log* numbers its envelopes 0, 1, 2 ... as they are applied, which is an order that respects cause and
effect; so replaying a log needs hardly any memory beside the content, and so does sending a part of it to somebody.

A record's key is one integer: the document's slot and the envelope's number in the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from transport.errors import RemoteProtocolError
from transport.logs import get_logger
from transport.wire import pack, unpack_body

from .documents.envelope import decode_envelope
from .errors import StateError, StorageError
from .journal import FETCH_MAX, Change, Done, Journal

log = get_logger("mesh.state")

_DOCUMENTS: Final = "documents"
_ENVELOPES: Final = "envelopes"

_NUMBER_BITS: Final = 42
#: Documents of one node, deleted ones included; with the numbers of envelopes it makes 62 bits.
SLOTS_MAX: Final = 1 << 20

#: Envelopes read from disk at once when a document is opened.
REPLAY_BYTES: Final = 128 << 10


class DocumentStore:
    """The documents of one node.  Made by :meth:`open`; belongs to the event loop it was opened on.

    Args:
        journal: With the tables of a store.
        slots: Slot by name and lineage.
    """

    def __init__(self, journal: Journal, slots: dict[tuple[str, bytes], int]) -> None:
        self._journal = journal
        self._slots = slots

    @classmethod
    async def open(cls, path: Path) -> DocumentStore:
        """Open the file, or create it.

        Raises:
            StorageError: It cannot be opened, is no such file, or was written by a later version.
        """
        journal = await Journal.open(path, (_DOCUMENTS, _ENVELOPES))
        try:
            store = cls(journal, {_read_document(body): slot for slot, body in await journal.load(_DOCUMENTS)})
            if journal.counters["quarantined"]:
                await store._recover()
        except RemoteProtocolError as error:
            await journal.close()
            raise StorageError(
                f"{path}: {error.message}", hint="it was written by a later version: run that one"
            ) from error
        except BaseException:  # whatever it was: the file must not stay open
            await journal.close()
            raise
        return store

    async def log(self, document: str, lineage: bytes) -> DocumentLog:
        """The log of a document; a document that is new here gets an empty one.

        Raises:
            StorageError: The disk refused.
        """
        slot = self._slots.get((document, lineage))
        if slot is None:
            slot = max(self._slots.values(), default=-1) + 1
            if slot >= SLOTS_MAX:
                raise StateError(f"this node has {SLOTS_MAX} documents, and may not have more")
            await self._journal.commit([(_DOCUMENTS, slot, pack([document, lineage]))])
            self._slots[document, lineage] = slot
        return DocumentLog(self._journal, slot)

    async def _recover(self) -> None:
        """A document's own record was damaged: its envelopes say which it was."""
        known = set(self._slots.values())
        first = 0
        while found := await self._journal.scan(_ENVELOPES, first, (SLOTS_MAX << _NUMBER_BITS) - 1, bytes_max=1):
            slot = found[0][0] >> _NUMBER_BITS
            first = (slot + 1) << _NUMBER_BITS
            if slot not in known:
                envelope = decode_envelope(found[0][1])
                await self._journal.commit([(_DOCUMENTS, slot, pack([envelope.document, envelope.lineage]))])
                self._slots[envelope.document, envelope.lineage] = slot
                log.warning("document's record restored", document=envelope.document)

    def documents(self) -> list[tuple[str, bytes]]:
        """Name and lineage of every document, sorted."""
        return sorted(self._slots)

    async def close(self) -> None:
        """Write what was submitted and close the file."""
        await self._journal.close()

    def statistics(self) -> dict[str, int]:
        """The journal's counters."""
        return self._journal.statistics()


class DocumentLog:
    """The envelopes of one document.

    Args:
        journal: Where they are.
        slot: Which document it is.
    """

    def __init__(self, journal: Journal, slot: int) -> None:
        self._journal = journal
        self._first = slot << _NUMBER_BITS
        self._last = ((slot + 1) << _NUMBER_BITS) - 1

    async def replay(self, after: int = -1) -> list[tuple[int, bytes]]:
        """The next envelopes with their numbers, about :data:`REPLAY_BYTES` of them; empty: there are no more.

        What is damaged is put aside and left out.

        Raises:
            StorageError: The disk refused.
        """
        first = self._first + after + 1
        found = await self._journal.scan(_ENVELOPES, first, self._last, bytes_max=REPLAY_BYTES)
        return [(key - self._first, body) for key, body in found]

    async def read(self, numbers: Sequence[int]) -> list[bytes]:
        """Envelopes by number, at most :data:`~state.journal.FETCH_MAX`, in order; damaged ones are left out.

        Raises:
            StorageError: The disk refused.
        """
        found = await self._journal.fetch(_ENVELOPES, [self._first + number for number in numbers[:FETCH_MAX]])
        return [body for _, body in found]

    def submit(self, put: Sequence[tuple[int, bytes]], take: Sequence[int], done: Done) -> None:
        """Write envelopes under their numbers and take others away, all or none; ``done`` is called once it is so."""
        changes: list[Change] = [(_ENVELOPES, self._first + number, body) for number, body in put]
        changes += [(_ENVELOPES, self._first + number, None) for number in take]
        self._journal.submit(changes, done)

    @property
    def has_room(self) -> bool:
        """Whether the disk keeps up."""
        return self._journal.has_room


def _read_document(body: bytes) -> tuple[str, bytes]:
    fields = unpack_body(body, nodes_max=16)
    if type(fields) is not list or len(fields) < 2 or type(fields[0]) is not str or type(fields[1]) is not bytes:
        raise RemoteProtocolError("a document's record is not a name and a lineage")
    return fields[0], fields[1]
