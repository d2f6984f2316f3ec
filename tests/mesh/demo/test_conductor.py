"""The demo from start to end, with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from mesh.demo import DemoOptions, DemoStep, run_demo
from mesh.processes import worker_environment


@pytest.mark.slow
def test_the_demo_shows_a_whole_mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes find each other, talk without loss, notice the killed one, and leave nothing behind."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    steps: list[DemoStep] = []

    report = run_demo(DemoOptions(nodes=3, messages=5, round_trips=20), steps.append)

    assert report.problems == []
    assert (report.sent, report.delivered, report.lost, report.duplicates) == (30, 30, 0, 0)
    assert report.broadcast_reached == 3
    assert report.state_equal
    assert report.detected_s is not None
    assert report.detected_s < 5
    assert report.cleaned_up
    assert list(tmp_path.iterdir()) == []
    assert all(step.ok for step in steps)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
async def test_a_stopped_demo_leaves_nothing_behind(stop: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM end every process and remove every file."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mesh", "demo", "--nodes", "3", "--json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**worker_environment(), "TMPDIR": str(tmp_path)},
    )
    assert process.stderr is not None
    await process.stderr.readline()  # "starting 3 processes": the first of them are under way
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, stop)
    await process.communicate()

    assert process.returncode != 0
    assert not any(child.is_running() for child in children)
    assert await asyncio.to_thread(lambda: [p.name for p in tmp_path.glob("peermesh-*") if any(p.iterdir())]) == []


@pytest.mark.slow
async def test_the_command_ends_with_one_json_object(tmp_path: Path) -> None:
    """With --json stdout is one document, and the exit code is 0."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mesh", "demo", "--nodes", "2", "--json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**worker_environment(), "TMPDIR": str(tmp_path)},
    )
    output, _ = await process.communicate()

    assert json.loads(output)["ok"] is True
    assert process.returncode == 0
