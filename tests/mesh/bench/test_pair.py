"""Two processes and what is measured between them."""

from __future__ import annotations

import pytest

from mesh.bench import run_latency, run_throughput, summary_of_one_way
from mesh.bench.pair import OneWay


def test_a_run_knows_what_it_lost() -> None:
    """Rates count what was handled, not what was sent."""
    run = OneWay(count=100, duration_s=2.0, received=90, out_of_order=1, send_cpu_us=1.0, receive_cpu_us=2.0)

    assert run.lost == 10
    assert run.msgs_per_s == 45


def test_a_summary_takes_medians_and_sums() -> None:
    """Rates are medians; losses add up."""
    runs = [OneWay(100, 1.0 / rate, 100, 0, 1.0, 2.0) for rate in (1, 2, 9)]
    summary = summary_of_one_way([*runs], 256, "TLSv1.3")

    assert summary["msgs_per_s"] == 200
    assert (summary["msgs_per_s_min"], summary["msgs_per_s_max"]) == (100, 900)
    assert summary["lost"] == 0


@pytest.mark.slow
def test_throughput_between_two_processes() -> None:
    """A short run loses nothing and keeps the order, over TLS 1.3 with both sides authenticated."""
    result = run_throughput(duration_s=0.2, runs=2)

    assert (result["lost"], result["out_of_order"]) == (0, 0)
    assert result["tls"] == "TLSv1.3, both sides authenticated"
    assert result["msgs_per_s"] > 1000


@pytest.mark.slow
def test_latency_between_two_processes() -> None:
    """A short run answers requests, several at once."""
    result = run_latency(duration_s=0.2, concurrency=4, runs=2)

    assert result["concurrency"] == 4
    assert 0 < result["p50_us"] <= result["p99_us"]
