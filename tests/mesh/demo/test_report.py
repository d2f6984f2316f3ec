"""The demo's report and how it judges."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mesh.demo.report import DemoReport

_GOOD = DemoReport(
    nodes=3,
    started_s=1.0,
    converged_s=1.2,
    tls="TLSv1.3",
    strangers_refused=3,
    sent=150,
    delivered=150,
    broadcasts=3,
    broadcast_reached=3,
    writes=30,
    state_equal=True,
    equal_s=0.1,
    rtt_p50_us=200.0,
    killed_node="node-3",
    detected_first_s=1.0,
    detected_s=1.1,
    cleaned_up=True,
)


def _judged(**changes: object) -> DemoReport:
    report = replace(_GOOD, problems=[], **changes)  # type: ignore[arg-type]
    report.judge()
    return report


def test_a_good_run_is_ok() -> None:
    """Nothing lost, nothing twice, the kill noticed, everything cleaned up."""
    assert _judged().ok


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"strangers_refused": 2}, "1 nodes let a stranger in"),
        ({"lost": 1}, "1 messages were lost"),
        ({"sent": 0}, "0 messages were lost"),
        ({"duplicates": 2}, "2 messages came twice"),
        ({"out_of_order": 1}, "1 messages came out of order"),
        ({"broadcast_reached": 2}, "a broadcast reached 2 of 3 nodes"),
        ({"state_equal": False}, "the document that all shared is not equal everywhere"),
        ({"detected_s": None}, "not every survivor noticed that node-3 was killed"),
        ({"false_alarms": 1}, "1 living nodes were taken for failed"),
        ({"cleaned_up": False}, "something was left behind"),
    ],
)
def test_each_defect_is_named(changes: dict[str, object], problem: str) -> None:
    """Each figure that is not as it must be makes the run fail, in words."""
    report = _judged(**changes)

    assert not report.ok
    assert report.problems == [problem]


def test_the_document_holds_what_is_promised() -> None:
    """The JSON object has the keys that programs read."""
    document = json.loads(json.dumps(_judged().document()))

    promised = {"nodes", "converged_s", "sent", "delivered", "lost", "duplicates", "broadcast_reached", "killed_node"}
    promised |= {"state_equal"}
    promised |= {"detected_s", "rtt_p50_us", "tls", "cleaned_up", "ok"}
    assert promised <= document.keys()


def test_the_table_says_never_for_what_was_not_reached() -> None:
    """A run that broke off still has a table."""
    rows = dict(DemoReport(nodes=2).rows())

    assert "never" in rows["all know all"]
    assert rows["request"] == "not measured"
