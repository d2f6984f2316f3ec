"""The hash-chained log of security decisions."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.errors import DataDirectoryError
from transport.identity import audit
from transport.identity.audit import AuditLog, verify


def filled(path: Path, records: int = 4) -> list[bytes]:
    """A log with some records, and its lines."""
    log = AuditLog(path)
    for number in range(records):
        log.append("event", number=number, text="ü\n\u2028", none=None, yes=True)
    return path.read_bytes().splitlines(keepends=True)


def test_records_follow_one_another(tmp_path: Path) -> None:
    """Across restarts too; the head is the last record's hash."""
    path = tmp_path / "audit.log"
    lines = filled(path) + filled(path)[4:]
    report = verify(path)
    assert (report.records, report.repairs, report.problems) == (8, 0, ())
    assert report.intact
    assert report.head == json.loads(lines[-1])["hash"]
    assert json.loads(lines[0])["prev"] == audit.FIRST_PREV
    assert [json.loads(line)["seq"] for line in lines] == list(range(8))
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_empty_log_is_intact_and_a_missing_one_an_error(tmp_path: Path) -> None:
    """Nothing happened yet, or somebody took it away."""
    (tmp_path / "audit.log").write_bytes(b"")
    assert verify(tmp_path / "audit.log").head == audit.FIRST_PREV
    with pytest.raises(DataDirectoryError):
        verify(tmp_path / "none")


@given(place=st.floats(0, 0.999), bit=st.integers(0, 7))
def test_any_changed_bit_shows(tmp_path_factory: pytest.TempPathFactory, place: float, bit: int) -> None:
    """Wherever it is."""
    path = tmp_path_factory.mktemp("audit") / "audit.log"
    filled(path)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)
    assert not verify(path).intact


@pytest.mark.parametrize(
    "order", [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 2, 1, 3], [0, 0, 1, 2, 3], [0, 1, 2, 1, 3], [3], [0, 3]]
)
def test_removed_moved_and_repeated_records_show(tmp_path: Path, order: list[int]) -> None:
    """Every record names the one before it."""
    path = tmp_path / "audit.log"
    lines = filled(path)
    path.write_bytes(b"".join(lines[index] for index in order))
    assert not verify(path).intact


def test_a_record_made_up_shows(tmp_path: Path) -> None:
    """A right hash over a wrong number or predecessor does not help."""
    path = tmp_path / "audit.log"
    lines = filled(path)
    record = json.loads(lines[3])
    for change in ({"seq": 7}, {"prev": "0" * 64}, {"seq": "3"}, {"more": 1}):
        body = {name: value for name, value in {**record, **change}.items() if name != "hash"}
        made_up = json.dumps({**body, "hash": audit._digest(body)}).encode()
        path.write_bytes(b"".join(lines[:3]) + made_up + b"\n")
        assert not verify(path).intact


@given(cut=st.floats(0, 0.999), records=st.integers(1, 4))
def test_a_torn_last_line_is_repaired_on_record(
    tmp_path_factory: pytest.TempPathFactory, cut: float, records: int
) -> None:
    """Wherever the crash cut it, the next append accounts for the torn bytes and the log is whole again."""
    path = tmp_path_factory.mktemp("audit") / "audit.log"
    lines = filled(path, records)
    kept = int(cut * len(lines[-1]))
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:kept])
    whole = kept == len(lines[-1]) - 1  # only the newline is missing: nothing is lost
    torn = kept > 0 and not whole
    assert verify(path).intact is not torn
    AuditLog(path).append("after")
    report = verify(path)
    assert report.intact, report
    assert report.repairs == int(torn)
    assert report.records == records - 1 + int(whole) + int(torn) + 1


def test_a_repair_accounts_for_its_own_bytes_only(tmp_path: Path) -> None:
    """Later changes of the torn line show, and so do lines that no repair follows."""
    path = tmp_path / "audit.log"
    filled(path)
    with path.open("ab") as file:
        file.write(b'{"torn')
    AuditLog(path).append("after")
    data = path.read_bytes()
    assert verify(path).intact
    path.write_bytes(data.replace(b'{"torn', b'{"TORN'))
    assert not verify(path).intact
    path.write_bytes(data.replace(b'{"torn\n', b'{"torn\n{"torn\n'))
    assert not verify(path).intact


def test_nothing_but_torn_bytes_is_repaired(tmp_path: Path) -> None:
    """The very first append was cut."""
    path = tmp_path / "audit.log"
    path.write_bytes(b'{"ev')
    AuditLog(path).append("after")
    assert verify(path).intact
    assert verify(path).repairs == 1


def test_tampering_is_not_repaired_away(tmp_path: Path) -> None:
    """A whole last line that is no record stays a problem after further appends."""
    path = tmp_path / "audit.log"
    lines = filled(path)
    path.write_bytes(b"".join(lines[:3]) + lines[3].replace(b"event", b"EVENT"))
    AuditLog(path).append("after")
    report = verify(path)
    assert any("line 4" in problem for problem in report.problems)


def test_writers_in_several_threads_and_objects_keep_one_chain(tmp_path: Path) -> None:
    """The file's own lock orders them."""
    path = tmp_path / "audit.log"
    logs = [AuditLog(path) for _ in range(3)]

    def work(log: AuditLog) -> None:
        for number in range(10):
            log.append("event", number=number)

    threads = [threading.Thread(target=work, args=(log,)) for log in logs * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verify(path).intact
    assert verify(path).records == 60


def test_a_full_disk_is_an_error_and_the_log_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line was written; the next append repairs it."""
    path = tmp_path / "audit.log"
    log = AuditLog(path)
    log.append("one")
    write = os.write

    def half(descriptor: int, data: memoryview) -> int:
        if len(data) < 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: len(data) // 2])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", half)
        with pytest.raises(DataDirectoryError, match="audit log must be writable"):
            log.append("two")
    log.append("three")
    report = verify(path)
    assert report.intact
    assert report.repairs == 1


def test_fields_are_bounded(tmp_path: Path) -> None:
    """Peers choose some of them."""
    path = tmp_path / "audit.log"
    AuditLog(path).append("e" * 10_000, **{f"f{number}": "\u2028" * 100_000 for number in range(40)})
    assert path.stat().st_size < 64 * 1024
    AuditLog(path).append("after")
    assert verify(path).intact


def test_a_long_log_is_set_aside_and_continued(tmp_path: Path) -> None:
    """Old ones go; the chain leads from file to file."""
    path = tmp_path / "audit.log"
    log = AuditLog(path, log_bytes_max=1000)
    for number in range(60):
        log.append("event", number=number)
    names = sorted(one.name for one in tmp_path.iterdir())
    assert names == ["audit.log", *(f"audit.log.{number}" for number in range(1, audit.LOGS_KEPT + 1))]
    for name in names:
        assert verify(tmp_path / name).intact, name
    first = json.loads(path.read_bytes().splitlines()[0])
    assert first["event"] == audit.CONTINUED
    assert first["prev"] == verify(tmp_path / "audit.log.1").head


def test_verifying_stops_at_many_problems(tmp_path: Path) -> None:
    """A log of nonsense does not make a report without end."""
    path = tmp_path / "audit.log"
    path.write_bytes(b"nonsense\n" * 1000)
    assert 1 < len(verify(path).problems) < 2000
    assert not verify(path).intact
