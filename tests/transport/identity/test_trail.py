"""What strangers cause reaches the audit log: at once, at a bounded rate, counted, and never at the loop's cost."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from support import eventually

from transport.errors import DataDirectoryError
from transport.identity import audit
from transport.identity.audit import AuditLog
from transport.identity.trail import CAUSES_MAX, AuditTrail


def _lines(path: Path) -> list[tuple[str, dict[str, object]]]:
    assert audit.verify(path).intact
    return [(record["event"], record["fields"]) for record in map(json.loads, path.read_text().splitlines())]


async def test_the_first_is_written_at_once_and_a_flood_in_one_line(tmp_path: Path) -> None:
    """A thousand refusals are two lines, the second with a count and the fields of its first."""
    path = tmp_path / "audit.log"
    trail = AuditTrail(AuditLog(path))
    trail.note("refused", remote="first")
    await eventually(lambda: path.exists() and path.stat().st_size)
    for number in range(999):
        trail.note("refused", remote=f"later {number}")
    await trail.close()

    assert await asyncio.to_thread(_lines, path) == [
        ("refused", {"remote": "first", "count": 1}),
        ("refused", {"remote": "later 0", "count": 999}),
    ]


async def test_events_do_not_hide_each_other_and_the_next_interval_has_its_line(tmp_path: Path) -> None:
    """Each event has its own pace."""
    path = tmp_path / "audit.log"
    trail = AuditTrail(AuditLog(path), interval_s=0.05)
    for number in range(3):
        trail.note("one", number=number)
        trail.note("two", number=number)
        await asyncio.sleep(0.12)  # the subject is the passage of time
    await trail.close()

    lines = await asyncio.to_thread(_lines, path)
    assert sorted((event, fields["count"]) for event, fields in lines) == [("one", 1)] * 3 + [("two", 1)] * 3


async def test_a_log_that_cannot_be_written_is_counted(tmp_path: Path) -> None:
    """The refusal itself stands."""
    trail = AuditTrail(AuditLog(tmp_path / "missing" / "audit.log"))
    trail.note("refused")
    await eventually(lambda: trail.failures == 1)
    await trail.close()
    with pytest.raises(DataDirectoryError):
        AuditLog(tmp_path / "missing" / "audit.log").append("refused")


async def test_writers_are_bounded(tmp_path: Path) -> None:
    """More kinds of events than there should be wait for the end instead of costing tasks."""
    path = tmp_path / "audit.log"
    trail = AuditTrail(AuditLog(path))
    for number in range(CAUSES_MAX + 5):
        trail.note(f"event {number}")
    assert len(trail._writers) == CAUSES_MAX
    await eventually(lambda: path.exists() and path.read_bytes().count(b"\n") == CAUSES_MAX)
    await trail.close()

    assert len(await asyncio.to_thread(_lines, path)) == CAUSES_MAX + 5
