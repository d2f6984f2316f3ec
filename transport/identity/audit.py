"""The record of security decisions: append-only, each line chained to the one before by its hash.

One JSON object per line: ``seq``, ``time`` (ISO 8601, UTC), ``event``, ``fields``, ``prev`` (the hash of the record
before; 64 zeros at the beginning) and ``hash``, the SHA-256 of the canonical JSON of all the others.  Changing,
removing, inserting or reordering a record breaks the chain.  What the chain cannot show is that the newest records
were cut off, or that somebody rewrote all of it: keep :attr:`AuditReport.head` elsewhere for that.

A crash can leave the last line torn.  The next append leaves the torn bytes where they are and writes a
``log repaired`` record that names their hash, so that a repair is itself on record and :func:`verify` can tell it
from tampering.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Final

from transport.clock import Clock, SystemClock
from transport.errors import DataDirectoryError

FIRST_PREV: Final = "0" * 64
REPAIRED: Final = "log repaired"
CONTINUED: Final = "log continued"

#: A log that grew to this is set aside as ``audit.log.1`` and so on; the disk it may use is bounded.
LOG_BYTES_MAX: Final = 16 * 1024 * 1024
LOGS_KEPT: Final = 8

#: Longest text kept of one field.  Peers choose some of them, so a line must not grow without bound.
FIELD_CHARACTERS_MAX: Final = 512
_FIELDS_MAX: Final = 16
# 16 fields of 512 characters, each at most 6 bytes in JSON (\uXXXX), names and the rest: well under this.
_LINE_BYTES_MAX: Final = 64 * 1024
_PROBLEMS_MAX: Final = 100

Scalar = str | int | bool | None
"""What a field may hold."""


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What :func:`verify` found.

    Attributes:
        records: How many records are intact.
        repairs: How many torn lines a later record accounts for.
        problems: What is wrong, in words with line numbers; empty if the chain holds.  At most 100 are listed.
        head: The hash of the last record; ``FIRST_PREV`` for an empty log.
    """

    records: int
    repairs: int
    problems: tuple[str, ...]
    head: str

    @property
    def intact(self) -> bool:
        """Whether the chain holds."""
        return not self.problems


class AuditLog:
    """Appends to one log file.  Safe between threads and between processes; every append is durable."""

    def __init__(self, path: Path, *, clock: Clock | None = None, log_bytes_max: int = LOG_BYTES_MAX) -> None:
        """Touches nothing yet."""
        self._path = path
        self._clock = clock or SystemClock()
        self._log_bytes_max = log_bytes_max
        self._lock = Lock()
        # What the file looked like after our last append; anything else means that the tail must be read again.
        self._known: tuple[int, int, _Tail] | None = None

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def append(self, event: str, /, **fields: Scalar) -> None:
        """Record that ``event`` happened.  On disk when this returns.

        Raises:
            DataDirectoryError: It cannot be written.  What it was to record must then not happen.
        """
        with self._lock:
            try:
                self._append(event, {name: _bounded(value) for name, value in list(fields.items())[:_FIELDS_MAX]})
            except OSError as error:
                self._known = None
                raise DataDirectoryError(
                    f"cannot write {self._path}: {error.strerror or error}",
                    hint="the audit log must be writable: free some space or mend its permissions",
                ) from error

    def _append(self, event: str, fields: Mapping[str, Scalar]) -> None:
        descriptor = self._open()
        try:
            status = os.fstat(descriptor)
            if self._known is not None and self._known[:2] == (status.st_ino, status.st_size):
                tail = self._known[2]
            else:
                tail = _read_tail(descriptor, status.st_size)
            if status.st_size > self._log_bytes_max and not tail.torn:
                os.close(descriptor)
                descriptor = -1
                self._set_aside()
                descriptor = self._open()
                tail = self._write(descriptor, tail, CONTINUED, {})
            if tail.torn:
                torn: dict[str, Scalar] = {
                    "torn_bytes": len(tail.torn),
                    "torn_sha256": hashlib.sha256(tail.torn).hexdigest(),
                }
                tail = self._write(descriptor, tail, REPAIRED, torn)
            tail = self._write(descriptor, tail, event, fields)
            os.fsync(descriptor)
            status = os.fstat(descriptor)
            self._known = (status.st_ino, status.st_size, tail)
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _open(self) -> int:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return descriptor

    def _write(self, descriptor: int, tail: _Tail, event: str, fields: Mapping[str, Scalar]) -> _Tail:
        time = datetime.fromtimestamp(self._clock.wall(), UTC).isoformat(timespec="milliseconds")
        record = {
            "seq": tail.seq + 1,
            "time": time,
            "event": _bounded(event),
            "fields": dict(fields),
            "prev": tail.head,
        }
        digest = _digest(record)
        line = json.dumps({**record, "hash": digest}, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        if tail.unended:
            line = b"\n" + line
        view = memoryview(line)
        while view:
            view = view[os.write(descriptor, view) :]
        return _Tail(tail.seq + 1, digest)

    def _set_aside(self) -> None:
        for number in range(LOGS_KEPT - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))


def verify(path: Path) -> AuditReport:
    """Read a whole log and check its chain.

    A log that was set aside is verified by itself; the first record of its successor has its head as ``prev``.

    Raises:
        DataDirectoryError: It cannot be read.
    """
    problems: list[str] = []
    records = repairs = 0
    head, seq = FIRST_PREV, -1
    torn: bytes | None = None
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                line = raw.rstrip(b"\n")
                record = _parse(line)
                if record is None:
                    if torn is not None:
                        problems.append(f"line {number - 1}: not a record")
                    torn = line
                    continue
                repaired = torn is not None and _accounts_for(record, torn)
                if torn is not None and not repaired:
                    problems.append(f"line {number - 1}: not a record, and no repair accounts for it")
                repairs += repaired
                torn = None
                first_of_continued = records == 0 and record["event"] == CONTINUED
                if record["prev"] != head and not first_of_continued:
                    problems.append(f"line {number}: does not follow the record before it")
                elif record["seq"] != seq + 1 and not first_of_continued:
                    problems.append(f"line {number}: its number is {record['seq']} instead of {seq + 1}")
                head, seq = str(record["hash"]), int(str(record["seq"]))
                records += 1
                if len(problems) >= _PROBLEMS_MAX:
                    break
    except OSError as error:
        raise DataDirectoryError(f"cannot read {path}: {error.strerror or error}") from error
    if torn is not None:
        problems.append("the last line is torn; the next start repairs it")
    return AuditReport(records, repairs, tuple(problems), head)


@dataclass(frozen=True, slots=True)
class _Tail:
    """Where the chain ends.

    ``torn``: bytes after the last newline that are no record.  ``unended``: a newline is missing there.
    """

    seq: int = -1
    head: str = FIRST_PREV
    torn: bytes = b""
    unended: bool = False


def _read_tail(descriptor: int, size: int) -> _Tail:
    """Find the last record by reading backwards until one is whole."""
    window = 2 * _LINE_BYTES_MAX
    data = os.pread(descriptor, window, max(0, size - window))
    lines = data.split(b"\n")
    last = lines.pop()
    if size > window:
        del lines[:1]  # it may begin in the middle
    if last and (record := _parse(last)) is not None:
        return _Tail(int(str(record["seq"])), str(record["hash"]), unended=True)
    torn = last
    for line in reversed(lines):
        if (record := _parse(line)) is not None:
            return _Tail(int(str(record["seq"])), str(record["hash"]), torn=torn, unended=bool(torn))
    return _Tail(torn=torn, unended=bool(torn))


def _parse(line: bytes) -> dict[str, object] | None:
    """The record in ``line`` if it is one and its hash is right."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.keys() != {"seq", "time", "event", "fields", "prev", "hash"}:
        return None
    if type(record["seq"]) is not int or type(record["prev"]) is not str:
        return None
    body = {name: value for name, value in record.items() if name != "hash"}
    return record if record["hash"] == _digest(body) else None


def _digest(record: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _accounts_for(record: Mapping[str, object], torn: bytes) -> bool:
    fields = record["fields"]
    return (
        record["event"] == REPAIRED
        and isinstance(fields, dict)
        and fields.get("torn_sha256") == hashlib.sha256(torn).hexdigest()
    )


def _bounded(value: Scalar) -> Scalar:
    return value[:FIELD_CHARACTERS_MAX] if isinstance(value, str) else value
