"""The churn run: its judgement, and a short run of it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from chaos.churn import Churn, ChurnReport
from chaos.churn_host import Complaints


@pytest.mark.slow
def test_a_short_run_finds_nothing_wrong() -> None:
    """Six nodes come and go for three seconds: all agree in the end, nothing leaks, nothing is logged."""
    report = asyncio.run(Churn(nodes=6, duration_s=3.0, seed=3).run())

    assert report.problems == []
    assert report.agreed_s is not None
    assert report.answered == report.requests


def test_a_leak_is_seen() -> None:
    """A host that holds a task, a descriptor or memory it did not hold before is reported."""
    churn = Churn(nodes=4, duration_s=0.0, seed=1)
    before = {"tasks": ["main"], "threads": ["MainThread"], "descriptors": {"0": "pipe"}, "rss_bytes": 0}
    after = {
        "tasks": ["main", "orphan"],
        "threads": ["MainThread", "stray"],
        "descriptors": {"0": "pipe", "9": "socket"},
        "rss_bytes": 2**40,
        "complaints": ["mesh: it broke"],
    }
    churn.compare("host-0", before, after)

    text = " ".join(churn.report.problems)
    assert len(churn.report.problems) == 5
    for word in ("orphan", "stray", "socket", "MiB", "it broke"):
        assert word in text


def test_the_report_is_not_ok_with_a_problem() -> None:
    """Programs read one word."""
    assert ChurnReport(1, 2, 3.0).document()["ok"] is True
    assert ChurnReport(1, 2, 3.0, problems=["x"]).document()["ok"] is False


def test_errors_and_exceptions_are_kept() -> None:
    """What is logged as an error or with an exception is a defect; a warning is not."""
    complaints = Complaints()
    logger = logging.getLogger("mesh.test-churn")
    logger.addHandler(complaints)
    try:
        logger.warning("expected when nodes are killed")
        logger.error("broken")
    finally:
        logger.removeHandler(complaints)

    assert complaints.texts == ["mesh.test-churn: broken"]
