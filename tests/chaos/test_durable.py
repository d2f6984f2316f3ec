"""The durable run: its judgement, and a short run of it."""

from __future__ import annotations

import asyncio

import pytest

from chaos.durable import DurableReport, DurableRun, judge


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_ten_kills_lose_and_repeat_nothing() -> None:
    """Either side is killed ten times: every stored message has its effect once, in order."""
    report = asyncio.run(DurableRun(kills=10, seed=3).run())

    assert report.problems == []
    assert sum(report.kills.values()) == 10
    assert report.stored > 100


@pytest.mark.parametrize(
    ("done", "problem"),
    [
        (["done 1 1 a"], "1 stored messages were not handled"),
        (["done 1 1 a", "done 1 2 b", "done 1 2 b"], "effect twice"),
        (["done 1 2 b", "done 1 1 a"], "1 came after 2"),
        (["done 1 1 a", "done 1 2 b", "unmarked 1 2 b"], "without a mark"),
    ],
)
def test_each_wrong_is_seen(done: list[str], problem: str) -> None:
    """Lost, twice, out of order, or handed over again without a mark."""
    report = DurableReport(1)
    judge(report, ["try 1 1", "stored 1 1", "try 1 2", "stored 1 2"], done)

    assert problem in " ".join(report.problems)
    assert report.document()["ok"] is False


def test_what_may_happen_is_counted() -> None:
    """Marked second runs, and messages whose sender was killed before it was told."""
    report = DurableReport(1)
    judge(report, ["try 1 1", "stored 1 1", "try 1 2"], ["done 1 1 a", "again 1 1 a", "done 1 2 b"])

    assert report.problems == []
    assert (report.stored, report.handled, report.again, report.unconfirmed) == (1, 2, 1, 1)


def test_a_run_that_did_nothing_is_not_well() -> None:
    """Nothing was stored at all."""
    report = DurableReport(1)
    judge(report, [], [])

    assert report.problems == ["nothing was stored at all"]
