"""A small store of records on disk, for everything that must outlive its process.

Tables of records in one SQLite file: a key, a body of bytes, and a checksum over both.  What makes it fit an event
loop is the *group commit*: one thread owns the file and takes whatever has been submitted since its last
transaction as the next one, so that a thousand callers share one fsync.  ``WAL`` with ``synchronous=FULL`` makes
each commit one append and one ``fdatasync``; a caller is told only after it.

What holds:

- A change that was reported done survives a crash of the process and of the machine, as far as the disk keeps its word.
- All changes of one :meth:`Journal.submit` happen, or none.  Changes are done in the order of their submission.
- A transaction that fails (full disk, I/O error) is rolled back, and every caller in it is told.  After a failed
  *fsync* the kernel may have dropped what it could not write and call the next one a success, so the journal then
  refuses everything until it is opened anew.
- A record whose checksum is wrong is moved to the table ``quarantine``, counted and reported, never handed out.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from transport.logs import get_logger

from .errors import StorageError, StorageFull

log = get_logger("mesh.state")

Key = int | bytes
"""A record's key; one table has keys of one type, by which it is ordered."""

Change = tuple[str, Key, bytes | None]
"""``(table, key, body)``: put that record in the place of any other under its key; ``None`` takes it away."""

Done = Callable[[StorageError | None], None]
"""Told on the event loop what became of a submission."""

# A transaction this large costs an fsync no longer noticed; a larger one would keep its first callers waiting.
GROUP_CHANGES_MAX: Final = 4_096
GROUP_BYTES_MAX: Final = 4 * 1024 * 1024

#: What may wait for the thread before callers of :meth:`Journal.wait_room` do.
QUEUED_BYTES_MAX: Final = 16 * 1024 * 1024
_CHANGE_OVERHEAD_BYTES: Final = 128

#: Records of one :meth:`Journal.fetch`.
FETCH_MAX: Final = 1_024

# Rows of one statement.  Not `executemany`: it gives up the GIL for each row, and a thread that must get it back from
# a busy event loop waits 5 ms each time.
_ROWS: Final = (256, 64, 16, 4, 1)

_PRAGMAS: Final = (
    "locking_mode=EXCLUSIVE",  # the node's directory is locked anyway; this saves the shared-memory file
    "journal_mode=WAL",
    "synchronous=FULL",
    "temp_store=MEMORY",
    "cache_size=-1024",
    "journal_size_limit=8388608",
)

_T = TypeVar("_T")


class _Unit(NamedTuple):
    """One submission."""

    changes: Sequence[Change]
    size_bytes: int
    done: Done


class _Call(NamedTuple):
    """Something else that the thread does with the file, and who is told."""

    function: Callable[[sqlite3.Connection], Any]
    future: asyncio.Future[Any]


class Journal:
    """Tables of records in one file.  All methods belong to the event loop it was opened on; use :meth:`open`.

    Attributes:
        path: The file.
        counters: Changes and transactions done, transactions that failed, records quarantined.
    """

    def __init__(self, path: Path, tables: Iterable[str]) -> None:
        self.path = path
        self._tables = tuple(tables)
        self._loop = asyncio.get_running_loop()
        # Bounded by `wait_room`, which whoever takes in new work must ask first.
        self._waiting: deque[_Unit | _Call | None] = deque()
        self._queued_bytes = 0
        # What the thread is at: one job at a time.  To wake it for each submission would cost more than the rest.
        self._jobs: queue.SimpleQueue[list[_Unit] | _Call | None] = queue.SimpleQueue()
        self._thread_is_busy = False
        self._room: deque[asyncio.Future[None]] = deque()
        self._thread = threading.Thread(target=self._run, name=f"journal {path.name}", daemon=True)
        self._ended = self._loop.create_future()
        self._closing = False
        self._broken: StorageError | None = None
        self.counters = dict.fromkeys(("changes", "transactions", "failed", "quarantined"), 0)

    @classmethod
    async def open(cls, path: Path, tables: Iterable[str]) -> Journal:
        """Open the file, create it where it is missing.

        Args:
            path: In a directory that nobody else writes to.
            tables: The names of the tables.

        Raises:
            StorageError: It cannot be opened, or is no such file.
        """
        journal = cls(path, tables)
        journal._thread.start()
        try:
            await journal._call(journal._prepare)
        except BaseException:  # whatever it was: the thread must not be left behind
            await journal.close()
            raise
        return journal

    # --- using it -----------------------------------------------------------------------------------------------

    def submit(self, changes: Sequence[Change], done: Done) -> None:
        """Have these changes done, all or none; ``done`` is called once they are on disk, or with why they are not."""
        size_bytes = sum(len(body or b"") for _, _, body in changes) + _CHANGE_OVERHEAD_BYTES * len(changes)
        if self._closing or self._broken is not None:
            error = self._broken or StorageError(f"{self.path} is closed")
            self._loop.call_soon(done, error)
            return
        self._queued_bytes += size_bytes
        self._enqueue(_Unit(changes, size_bytes, done))

    async def commit(self, changes: Sequence[Change]) -> None:
        """The same for who can wait.

        Raises:
            StorageError: They were not done.
        """
        future: asyncio.Future[None] = self._loop.create_future()
        self.submit(changes, partial(_settle, future))
        await future

    @property
    def has_room(self) -> bool:
        """Whether the disk keeps up, so that new work may be taken in."""
        return self._queued_bytes < QUEUED_BYTES_MAX

    async def wait_room(self) -> None:
        """Return when the disk has caught up; those who ask first come first."""
        while not self.has_room:
            future: asyncio.Future[None] = self._loop.create_future()
            self._room.append(future)
            try:
                await future
            finally:
                with suppress(ValueError):
                    self._room.remove(future)

    async def load(self, table: str) -> list[tuple[Any, bytes]]:
        """All sound records of a table as ``(key, body)``, by key; others are moved to quarantine.

        Raises:
            StorageError: The file cannot be read.
        """
        return await self._call(partial(self._load, table))

    async def scan(self, table: str, first: int, last: int, *, bytes_max: int) -> list[tuple[int, bytes]]:
        """The sound records of a table of integer keys from ``first`` to ``last``, by key; others go to quarantine.

        It stops behind the record that reaches ``bytes_max``; to go on, begin behind the last key.  An empty answer
        means that there is no sound record in the range.

        Raises:
            StorageError: The file cannot be read.
        """
        where = "WHERE key BETWEEN ? AND ? ORDER BY key"
        return await self._call(partial(self._select, table, where, (first, last), bytes_max))

    async def fetch(self, table: str, keys: Sequence[Key]) -> list[tuple[Any, bytes]]:
        """The sound records of a table under these keys, at most :data:`FETCH_MAX`, by key; others go to quarantine.

        Raises:
            StorageError: The file cannot be read.
        """
        if len(keys) > FETCH_MAX:
            raise ValueError(f"{len(keys)} keys are above the limit of {FETCH_MAX}")
        where = f"WHERE key IN ({', '.join('?' * len(keys))}) ORDER BY key"
        return await self._call(partial(self._select, table, where, tuple(keys), None))

    async def close(self) -> None:
        """Do what was submitted, then close the file.  Idempotent."""
        if not self._closing:
            self._closing = True
            self._enqueue(None)
        await asyncio.shield(self._ended)

    def statistics(self) -> dict[str, int]:
        """Counters since the start, and what waits for the disk."""
        return {**self.counters, "queued_bytes": self._queued_bytes}

    async def _call(self, function: Callable[[sqlite3.Connection], _T]) -> _T:
        future: asyncio.Future[_T] = self._loop.create_future()
        self._enqueue(_Call(function, future))
        return await future

    def _enqueue(self, job: _Unit | _Call | None) -> None:
        self._waiting.append(job)
        if not self._thread_is_busy:
            self._thread_is_busy = True
            self._loop.call_soon(self._hand_over)  # with what else comes in this turn of the loop

    def _hand_over(self) -> None:
        """Give the thread its next job: all that was submitted meanwhile as one transaction, within bounds."""
        waiting = self._waiting
        units: list[_Unit] = []
        changes = size_bytes = 0
        while waiting and changes < GROUP_CHANGES_MAX and size_bytes < GROUP_BYTES_MAX:
            unit = waiting[0]
            if not isinstance(unit, _Unit):
                break
            waiting.popleft()
            units.append(unit)
            changes += len(unit.changes)
            size_bytes += unit.size_bytes
        if units:
            self._jobs.put(units)
        elif waiting:
            job = waiting.popleft()
            assert not isinstance(job, _Unit)
            self._jobs.put(job)
        else:
            self._thread_is_busy = False

    # --- told by the thread -------------------------------------------------------------------------------------

    def _done(self, units: list[_Unit], error: StorageError | None) -> None:
        """A transaction ended, one way or the other."""
        if error is None:
            self.counters["transactions"] += 1
            self.counters["changes"] += sum(len(unit.changes) for unit in units)
        else:
            self.counters["failed"] += 1
        self._hand_over()  # before the callers: what they submit next is for the transaction after it
        for unit in units:
            self._queued_bytes -= unit.size_bytes
            unit.done(error)
        if self.has_room:
            for future in self._room:
                _settle(future, None)

    def _called(self, call: _Call, result: object, error: StorageError | None) -> None:
        self._hand_over()
        if not call.future.done():
            if error is not None:
                call.future.set_exception(error)
            else:
                call.future.set_result(result)

    def _quarantined(self, table: str, keys: list[Key]) -> None:
        self.counters["quarantined"] += len(keys)
        log.error("damaged records put aside", path=str(self.path), table=table, keys=[str(key) for key in keys[:20]])

    # --- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        connection = None
        try:
            connection = _connect(self.path)
            ended = False
            while not ended:
                ended = self._serve(connection)
        except sqlite3.Error as error:
            self._broken = _explained(self.path, error)
            self._refuse_all(self._broken)
        finally:
            if connection is not None:
                with suppress(sqlite3.Error):
                    connection.close()
            self._tell(_settle, self._ended, None)

    def _serve(self, connection: sqlite3.Connection) -> bool:
        """Do one job; returns whether it was the end."""
        job = self._jobs.get()
        if isinstance(job, list):
            self._tell(self._done, job, self._write(connection, job))
        elif isinstance(job, _Call):
            self._carry_out(connection, job)
        return job is None

    def _write(self, connection: sqlite3.Connection, units: list[_Unit]) -> StorageError | None:
        """One transaction; returns why it failed."""
        if self._broken is not None:
            return self._broken
        # The last change of a record is the one that counts, so what came and went meanwhile costs next to nothing.
        latest: dict[str, dict[Key, bytes | None]] = {table: {} for table in self._tables}
        for unit in units:
            for table, key, body in unit.changes:
                latest[table][key] = body
        try:
            connection.execute("BEGIN IMMEDIATE")
            for table, records in latest.items():
                _put(connection, table, [(key, body) for key, body in records.items() if body is not None])
                _take_away(connection, table, [key for key, body in records.items() if body is None])
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - also what SQLite cannot take, such as a key out of range: no reason to end
            failure = _explained(self.path, error)
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            if "FSYNC" in _name(error):
                self._broken = failure
            else:
                # Where the disk is full, what the log holds twice can be given back, so that records can be taken away.
                with suppress(sqlite3.Error):
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return failure
        return None

    def _carry_out(self, connection: sqlite3.Connection, call: _Call) -> None:
        result, failure = None, None
        try:
            result = call.function(connection)
        except sqlite3.Error as error:
            failure = _explained(self.path, error)
        self._tell(self._called, call, result, failure)

    def _refuse_all(self, error: StorageError) -> None:
        """The file could not even be opened: so say to all, until the end."""
        while (job := self._jobs.get()) is not None:
            if isinstance(job, _Call):
                self._tell(self._called, job, None, error)
            else:
                self._tell(self._done, job, error)

    def _tell(self, function: Callable[..., None], *arguments: object) -> None:
        # A loop that was closed without closing us has nobody left to tell.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}").fetchall()
        for table in self._tables:
            connection.execute(
                f'CREATE TABLE IF NOT EXISTS "{table}" (key PRIMARY KEY, body BLOB, checksum INTEGER) WITHOUT ROWID'
            )
        connection.execute('CREATE TABLE IF NOT EXISTS "quarantine" (source TEXT, key, body BLOB, checksum INTEGER)')

    def _load(self, table: str, connection: sqlite3.Connection) -> list[tuple[Any, bytes]]:
        return self._select(table, "ORDER BY key", (), None, connection)

    def _select(
        self, table: str, where: str, values: tuple[Key, ...], bytes_max: int | None, connection: sqlite3.Connection
    ) -> list[tuple[Any, bytes]]:
        sound: list[tuple[Any, bytes]] = []
        damaged: list[Key] = []
        size_bytes = 0
        for key, body, checksum in connection.execute(f'SELECT key, body, checksum FROM "{table}" {where}', values):  # noqa: S608 - our own names
            if isinstance(body, bytes) and isinstance(key, int | bytes) and checksum == _checksum(table, key, body):
                sound.append((key, body))
                size_bytes += len(body)
                if bytes_max is not None and size_bytes >= bytes_max:
                    break
            else:
                damaged.append(key)
        if damaged:
            connection.execute("BEGIN IMMEDIATE")
            for key in damaged:
                found = f'FROM "{table}" WHERE key IS ?'
                connection.execute(f'INSERT INTO "quarantine" SELECT ?, key, body, checksum {found}', (table, key))
                connection.execute(f"DELETE {found}", (key,))
            connection.execute("COMMIT")
            self._tell(self._quarantined, table, damaged)
        return sound


def _connect(path: Path) -> sqlite3.Connection:
    # SQLite gives its other files the rights of this one.
    with suppress(OSError):  # which it will say itself
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    return sqlite3.connect(path, isolation_level=None, cached_statements=64)


def _put(connection: sqlite3.Connection, table: str, records: list[tuple[Key, bytes]]) -> None:
    begin = 0
    for rows in _ROWS:
        statement = f'INSERT OR REPLACE INTO "{table}" VALUES ' + ", ".join(["(?, ?, ?)"] * rows)  # noqa: S608 - our own names
        while len(records) - begin >= rows:
            values: list[Key | bytes] = []
            for key, body in records[begin : begin + rows]:
                values += (key, body, _checksum(table, key, body))
            connection.execute(statement, values)
            begin += rows


def _take_away(connection: sqlite3.Connection, table: str, keys: list[Key]) -> None:
    begin = 0
    for rows in _ROWS:
        statement = f'DELETE FROM "{table}" WHERE key IN (' + ", ".join("?" * rows) + ")"  # noqa: S608 - our own names
        while len(keys) - begin >= rows:
            connection.execute(statement, keys[begin : begin + rows])
            begin += rows


def _checksum(table: str, key: Key, body: bytes) -> int:
    """CRC-32 over everything that says what the record is, so that one in the wrong place is noticed, too."""
    where = key if isinstance(key, bytes) else key.to_bytes(9, "big", signed=True)
    return zlib.crc32(body, zlib.crc32(where, zlib.crc32(table.encode())))


def _name(error: Exception) -> str:
    return getattr(error, "sqlite_errorname", "") or ""


def _explained(path: Path, error: Exception) -> StorageError:
    name = _name(error)
    text = f"{path}: {error}{f' ({name})' if name else ''}; nothing of it was stored"
    if name == "SQLITE_FULL":
        return StorageFull(text, hint="free some space on the disk")
    if name in {"SQLITE_CORRUPT", "SQLITE_NOTADB"}:
        return StorageError(text, hint=f"keep a copy for whoever may want to mend it, then move {path.name} away")
    return StorageError(text, hint="look at the disk, its rights and its limits")


def _settle(future: asyncio.Future[None], error: StorageError | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
