"""Documents on disk: logs that come back, damage that is put aside, and stores that cannot be read."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from support import eventually

from state.clocks.vectors import Writer
from state.documents.document import Document
from state.documents.envelope import encode_envelope, first_lineage
from state.errors import StateError, StorageError
from state.journal import FETCH_MAX
from state.store import REPLAY_BYTES, SLOTS_MAX, DocumentLog, DocumentStore
from transport.types import NodeId
from transport.wire import pack

LINEAGE = first_lineage("board")


def envelopes(count: int, name: str = "board") -> list[bytes]:
    """What one writer did to a document."""
    document = Document(name, Writer(NodeId("a"), 1))
    for number in range(count):
        document[f"k{number}"] = number
    return [encode_envelope(envelope) for envelope in document.outgoing()]


async def append(log: DocumentLog, first: int, raws: Sequence[bytes], take: Sequence[int] = ()) -> None:
    """Write envelopes and wait until they are on disk."""
    told: list[StorageError | None] = []
    log.submit([(first + offset, raw) for offset, raw in enumerate(raws)], take, told.append)
    await eventually(lambda: told)
    assert told == [None]


async def everything(log: DocumentLog) -> list[tuple[int, bytes]]:
    """The whole log."""
    found: list[tuple[int, bytes]] = []
    while page := await log.replay(found[-1][0] if found else -1):
        found += page
    return found


async def test_logs_come_back(tmp_path: Path) -> None:
    """Each document's own, in order, by page and by number, also after the file was closed."""
    raws = envelopes(5)
    store = await DocumentStore.open(tmp_path / "d.db")
    board, other = await store.log("board", LINEAGE), await store.log("other", LINEAGE)
    assert board.has_room
    await append(board, 0, raws)
    await append(other, 0, [b"x" * REPLAY_BYTES, b"y" * REPLAY_BYTES, b"z"])
    await append(board, 5, [b"again"], take=[2])
    await store.close()

    store = await DocumentStore.open(tmp_path / "d.db")
    try:
        assert store.documents() == [("board", LINEAGE), ("other", LINEAGE)]
        board, other = await store.log("board", LINEAGE), await store.log("other", LINEAGE)
        assert await everything(board) == [(n, raw) for n, raw in enumerate([*raws, b"again"]) if n != 2]
        assert len(await other.replay()) == 1
        assert [number for number, _ in await everything(other)] == [0, 1, 2]
        assert await board.read([0, 2, 4]) == [raws[0], raws[4]]
        with pytest.raises(ValueError, match="limit"):
            await store._journal.fetch("envelopes", [0] * (FETCH_MAX + 1))
        assert store.statistics()["quarantined"] == 0
    finally:
        await store.close()


async def test_damage_is_put_aside_wherever_it_is_met(tmp_path: Path) -> None:
    """A flipped bit takes one envelope out of pages and reads; it is kept, and counted."""
    path = tmp_path / "d.db"
    store = await DocumentStore.open(path)
    await append(await store.log("board", LINEAGE), 0, envelopes(5))
    await store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE envelopes SET body = CAST(X'00' || substr(body, 2) AS BLOB) WHERE key IN (1, 3)")
        connection.commit()

    store = await DocumentStore.open(path)
    try:
        log = await store.log("board", LINEAGE)
        assert len(await log.read([0, 1])) == 1
        assert [number for number, _ in await everything(log)] == [0, 2, 4]
        await eventually(lambda: store.statistics()["quarantined"] == 2)
    finally:
        await store.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT source, key FROM quarantine ORDER BY key").fetchall() == [
            ("envelopes", 1),
            ("envelopes", 3),
        ]


async def test_a_documents_own_record_is_restored_from_its_envelopes(tmp_path: Path) -> None:
    """Damage there does not orphan what it stands for."""
    path = tmp_path / "d.db"
    store = await DocumentStore.open(path)
    for name in ("empty", "board", "sound"):
        log = await store.log(name, first_lineage(name))
        if name != "empty":
            await append(log, 0, envelopes(2, name))
    await store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE documents SET checksum = checksum + 1 WHERE key < 2")
        connection.commit()

    for _ in range(2):  # it is written anew
        store = await DocumentStore.open(path)
        try:
            assert store.documents() == [("board", LINEAGE), ("sound", first_lineage("sound"))]
            assert len(await everything(await store.log("board", LINEAGE))) == 2
        finally:
            await store.close()


@pytest.mark.parametrize("body", [pack([1, 2]), pack("x"), pack(["board"]), pack(["board", 1])])
async def test_a_store_of_a_later_version_is_refused(tmp_path: Path, body: bytes) -> None:
    """With the hint to run that one; the file is let go."""
    path = tmp_path / "d.db"
    store = await DocumentStore.open(path)
    await store._journal.commit([("documents", 0, body)])
    await store.close()
    for _ in range(2):
        with pytest.raises(StorageError, match="later version"):
            await DocumentStore.open(path)


async def test_a_file_that_is_no_store_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    """The error says what to do."""
    path = tmp_path / "d.db"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(StorageError) as caught:
        await DocumentStore.open(path)
    assert "move" in (caught.value.hint or "")
    assert path.read_bytes() == b"this is no database" * 100


async def test_documents_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than there is room for is refused; those that are there can be opened."""
    assert SLOTS_MAX > 100_000
    monkeypatch.setattr("state.store.SLOTS_MAX", 1)
    store = await DocumentStore.open(tmp_path / "d.db")
    try:
        await store.log("board", LINEAGE)
        with pytest.raises(StateError, match="may not have more"):
            await store.log("other", LINEAGE)
        await store.log("board", LINEAGE)
    finally:
        await store.close()


async def read_anew(folder: Path) -> list[bytes]:
    """What a store of this folder has of the document, after it took one more envelope."""
    store = await DocumentStore.open(folder / "d.db")
    try:
        log = await store.log("board", LINEAGE)
        found = await everything(log)
        await append(log, found[-1][0] + 1 if found else 0, [b"next"])
        assert (await everything(log))[-1][1] == b"next"
        return [raw for _, raw in found]
    finally:
        await store.close()


async def test_a_log_that_was_cut_anywhere_ends_earlier(tmp_path: Path) -> None:
    """SQLite's log is cut within its last transactions: what is read is a beginning of what was written."""
    raws = envelopes(12)
    store = await DocumentStore.open(tmp_path / "d.db")
    log = await store.log("board", LINEAGE)
    for number, raw in enumerate(raws):
        await append(log, number, [raw])
    wal = (tmp_path / "d.db-wal").stat().st_size
    lengths = []
    for cut in range(0, 3 * 4_200, 311):
        copy = tmp_path / f"cut-{cut}"
        copy.mkdir()
        shutil.copy(tmp_path / "d.db", copy)
        (copy / "d.db-wal").write_bytes((tmp_path / "d.db-wal").read_bytes()[: wal - cut])
        found = await read_anew(copy)
        assert found == raws[: len(found)]
        lengths.append(len(found))
    await store.close()
    assert lengths[0] == 12
    assert lengths == sorted(lengths, reverse=True)
    assert 8 <= lengths[-1] < 12


async def test_a_flipped_bit_anywhere_is_never_taken_for_content(tmp_path: Path) -> None:
    """Whatever of the file was hit: an error that says so, or less than there was, and nothing that was not there."""
    raws = envelopes(60)
    store = await DocumentStore.open(tmp_path / "d.db")
    await append(await store.log("board", LINEAGE), 0, raws)
    await store.close()
    sound = (tmp_path / "d.db").read_bytes()
    rng = random.Random(5)
    refused = damaged = 0
    for number in range(60):
        copy = tmp_path / f"flip-{number}"
        copy.mkdir()
        content = bytearray(sound)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (copy / "d.db").write_bytes(content)
        try:
            found = await read_anew(copy)
        except StorageError:
            refused += 1
        else:
            assert set(found) <= set(raws)
            damaged += len(found) < len(raws)
    assert damaged > 0
    assert refused + damaged < 60
