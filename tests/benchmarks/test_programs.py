"""The benchmark programs run and print what they promise."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from support import ROOT, require_tools

from mesh.processes import worker_environment


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("throughput", ["--runs", "1", "--seconds", "0.1"]),
        ("latency", ["--runs", "1", "--seconds", "0.1", "--concurrency", "4"]),
    ],
)
def test_ours_and_nats_in_one_run(program: str, arguments: list[str]) -> None:
    """Both figures and their ratio, measured over mutual TLS on both sides."""
    require_tools("nats-server")
    document = _run(program, *arguments)

    rows = document if program == "throughput" else document["at"]["4"]
    assert rows["mesh"]["tls"] == rows["nats"]["tls"] == "TLSv1.3, both sides authenticated"
    assert rows["ratio_of_sealed" if program == "throughput" else "ratio_p50_of_sealed"] > 0
    assert rows["ratio" if program == "throughput" else "ratio_p50"] > 0
    if program == "throughput":
        assert rows["mesh"]["lost"] == rows["nats"]["lost"] == 0


@pytest.mark.slow
def test_what_an_idle_node_costs() -> None:
    """Memory, start and the price of a link."""
    document = _run("idle", "--links", "3", "--seconds", "0.1", "--starts", "1")

    assert document["start_to_ready_s"] > 0
    assert document["rss_mib"] > 10
    assert "kib_per_idle_link" in document


@pytest.mark.slow
def test_durable_messages_per_second() -> None:
    """Stored and handled, and none lost."""
    document = _run("durable", "--runs", "1", "--count", "400", "--callers", "20", "--agents", "4")

    assert document["stored_per_s"] > document["handled_per_s"] > 0
    assert document["lost"] == document["sent_again"] == 0
    assert document["fdatasync_ms"] > 0


def _run(program: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{program}.py"), *arguments],
        capture_output=True,
        text=True,
        env=worker_environment(),
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document
