"""The journal on real disks: group commit, what a crash leaves, damage, and disks that refuse."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from support import ROOT, eventually

from state.errors import StorageError, StorageFull
from state.journal import QUEUED_BYTES_MAX, Journal, Key

TABLES = ("one", "two")


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Journal]:
    """A journal that is closed at the end."""
    journal = await Journal.open(path, TABLES)
    try:
        yield journal
    finally:
        await journal.close()


async def test_what_was_committed_is_there_after_opening_again(tmp_path: Path) -> None:
    """Records come back by their key, with integers and bytes for keys, and what was taken away does not."""
    async with opened(tmp_path / "j.db") as journal:
        await journal.commit([("one", number, b"%d" % number) for number in (3, 1, 2**62, 2)])
        await journal.commit([("two", b"k", b"v"), ("one", 2, None), ("one", 1, b"again")])
    async with opened(tmp_path / "j.db") as journal:
        assert await journal.load("one") == [(1, b"again"), (3, b"3"), (2**62, str(2**62).encode())]
        assert await journal.load("two") == [(b"k", b"v")]
    assert (tmp_path / "j.db").stat().st_mode & 0o777 == 0o600


async def test_callers_share_transactions(tmp_path: Path) -> None:
    """A thousand callers at once cost a few transactions, and are told in the order of their calls."""
    told: list[int] = []

    def done(number: int) -> object:
        def tell(error: StorageError | None) -> None:
            assert error is None
            told.append(number)

        return tell

    async with opened(tmp_path / "j.db") as journal:
        for number in range(1_000):
            journal.submit([("one", number, b"x" * 300)], done(number))  # type: ignore[arg-type]
        await eventually(lambda: len(told) == 1_000)

        assert told == list(range(1_000))
        assert journal.counters["transactions"] < 50
        assert journal.statistics()["queued_bytes"] == 0
        assert len(await journal.load("one")) == 1_000


async def test_the_last_of_several_changes_counts(tmp_path: Path) -> None:
    """Within one submission, too, changes are done in their order."""
    async with opened(tmp_path / "j.db") as journal:
        await journal.commit([("one", 1, b"a"), ("one", 1, None), ("one", 1, b"b"), ("one", 2, b"c"), ("one", 2, None)])

        assert await journal.load("one") == [(1, b"b")]


async def test_callers_wait_while_the_disk_is_behind(tmp_path: Path) -> None:
    """Those who ask wait until what was submitted has been written."""
    async with opened(tmp_path / "j.db") as journal:
        futures = [
            asyncio.ensure_future(journal.commit([("one", number, bytes(QUEUED_BYTES_MAX // 8))]))
            for number in range(9)
        ]
        await asyncio.sleep(0)
        was_full = not journal.has_room
        await asyncio.wait_for(journal.wait_room(), 10)

        assert (was_full, journal.has_room) == (True, True)
        await asyncio.gather(*futures)


async def test_closing_drains_and_later_calls_are_refused(tmp_path: Path) -> None:
    """What was submitted before is on disk; what comes after is told so."""
    journal = await Journal.open(tmp_path / "j.db", TABLES)
    before = threading.active_count()
    waiting = [asyncio.ensure_future(journal.commit([("one", number, b"x")])) for number in range(100)]
    await asyncio.sleep(0)
    await journal.close()
    await journal.close()
    await asyncio.gather(*waiting)

    with pytest.raises(StorageError, match="is closed"):
        await journal.commit([("one", 1, b"late")])
    await eventually(lambda: threading.active_count() == before - 1)
    async with opened(tmp_path / "j.db") as again:
        assert len(await again.load("one")) == 100


@pytest.mark.parametrize("column", ["body", "checksum", "key"])
async def test_a_damaged_record_is_put_aside(tmp_path: Path, column: str) -> None:
    """It is counted, kept for whoever wants to mend it, and never handed out; the others are."""
    path = tmp_path / "j.db"
    async with opened(path) as journal:
        await journal.commit([("one", number, b"sound") for number in range(3)])
    value = {"body": b"s0und", "checksum": 1, "key": 77}[column]
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"UPDATE one SET {column} = ? WHERE key = 1", (value,))

    async with opened(path) as journal:
        assert [key for key, _ in await journal.load("one")] == [0, 2]
        assert journal.counters["quarantined"] == 1
        assert len(await journal.load("one")) == 2
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT source FROM quarantine").fetchall() == [("one",)]


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """The error names the file; the file stays as it is."""
    path = tmp_path / "j.db"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError, match=r"j\.db.*SQLITE_NOTADB"):
        await Journal.open(path, TABLES)
    assert path.read_bytes().startswith(b"no database")


async def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """There is no such directory: opening says so."""
    with pytest.raises(StorageError, match="nothing of it was stored"):
        await Journal.open(tmp_path / "missing" / "j.db", TABLES)


async def test_a_failed_transaction_changes_nothing_and_the_next_works(tmp_path: Path) -> None:
    """All callers of the transaction are told; half of a submission is never there."""
    async with opened(tmp_path / "j.db") as journal:
        with pytest.raises(StorageError):
            await journal.commit([("one", 1, b"fine"), ("two", 2**65, b"a key out of range")])
        assert await journal.load("one") == []
        await journal.commit([("one", 1, b"fine")])
        assert await journal.load("one") == [(1, b"fine")]
        assert journal.counters["failed"] == 1


# --- a process of its own ---------------------------------------------------------------------------------------

_WRITER = """
import asyncio, resource, signal, sys
from pathlib import Path
from state.errors import StorageError
from state.journal import Journal

async def main(path, limit_bytes):
    journal = await Journal.open(Path(path), ("one",))
    if limit_bytes:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))
    number, refused = 0, 0
    while refused < 3:
        number += 1
        try:
            await journal.commit([("one", number, b"x" * 1000)])
            print(number, flush=True)
        except StorageError as error:
            refused += 1
            print(type(error).__name__, file=sys.stderr)
    if limit_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await journal.commit([("one", 10**9, b"after")])
        print(10**9, flush=True)
        await journal.close()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def _writer(path: Path, limit_bytes: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path), str(limit_bytes)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


async def _keys(path: Path) -> list[Key]:
    journal = await Journal.open(path, ("one",))
    try:
        return [key for key, _ in await journal.load("one")]
    finally:
        await journal.close()


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    """A process killed in the midst of writing has lost nothing that it said was stored."""
    path = tmp_path / "j.db"
    with _writer(path) as process:
        assert process.stdout is not None
        for _ in range(50):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        rest = [line for line in process.stdout if line.endswith("\n")]
    told = 50 + len(rest)
    found = asyncio.run(_keys(path))

    assert found[:told] == list(range(1, told + 1))
    assert len(found) <= told + 1


def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path: Path) -> None:
    """Beyond a limit on file sizes every call is refused, what was told stays, and with room again all goes on."""
    path = tmp_path / "j.db"
    with _writer(path, limit_bytes=300_000) as process:
        output, errors = process.communicate(timeout=60)
    told = [int(line) for line in output.splitlines()]

    assert errors.split() == ["StorageError"] * 3
    assert told[-1] == 10**9
    assert len(told) > 50
    assert asyncio.run(_keys(path)) == told


def test_full_means_full() -> None:
    """Users can tell a full disk from a broken one."""
    assert issubclass(StorageFull, StorageError)
