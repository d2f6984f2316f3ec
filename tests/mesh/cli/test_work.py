"""The commands that run something of their own hand their options over and report what comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import mesh.bench
import mesh.demo
import mesh.doctor
from mesh.cli.app import app
from mesh.cli.work import installed_version
from mesh.doctor import Finding, Severity


def _run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*arguments])
    return result.exit_code, result.stdout


def _recorder(calls: list[dict[str, Any]], result: object) -> Callable[..., object]:
    def record(**arguments: Any) -> object:
        calls.append(arguments)
        return result

    return record


@pytest.mark.parametrize("code", [0, 1])
def test_the_demo_decides_the_exit_code(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Options arrive, and a demo that found something wrong fails the command."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(mesh.demo, "run", _recorder(calls, code))

    assert _run("demo", "--nodes", "3", "--keep", "--json")[0] == code
    assert calls == [{"nodes": 3, "as_json": True, "keep": True}]


@pytest.mark.parametrize(
    ("arguments", "runner", "expected"),
    [
        (["throughput", "--payload-bytes", "64"], "run_throughput", {"payload_bytes": 64}),
        (["latency", "--concurrency", "8"], "run_latency", {"payload_bytes": 256, "concurrency": 8}),
    ],
)
def test_a_benchmark_prints_its_figures(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], runner: str, expected: dict[str, int]
) -> None:
    """As one JSON document, or as a table; the duration is read as text with a unit."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(mesh.bench, runner, _recorder(calls, {"msgs_per_s": 123_456, "lost": 0}))
    code, out = _run("bench", *arguments, "--duration", "1500ms", "--json")
    _, table = _run("bench", *arguments)

    assert code == 0
    assert json.loads(out) == {"msgs_per_s": 123_456, "lost": 0}
    assert "msgs_per_s" in table
    assert calls == [{"duration_s": 1.5, **expected}, {"duration_s": 5.0, **expected}]


@pytest.mark.parametrize("severity", [Severity.OK, Severity.ERROR])
def test_the_doctor_reports_what_it_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, severity: Severity) -> None:
    """Errors are the exit code 1; each finding is named with its reason and its remedy."""
    finding = Finding("clock", severity, "the clock", "it is wrong", "set it")
    monkeypatch.setattr(mesh.doctor, "examine", lambda _: [finding])
    code, out = _run("doctor", "--data-dir", str(tmp_path), "--json")
    _, text = _run("doctor", "--data-dir", str(tmp_path))

    assert code == (1 if severity is Severity.ERROR else 0)
    assert json.loads(out) == {"ok": not code, "findings": [finding.document()]}
    assert "it is wrong" in text
    assert "fix: set it" in text


def test_the_version_is_said() -> None:
    """As text and as a document."""
    assert installed_version() in _run("version")[1]
    assert json.loads(_run("version", "--json")[1])["version"] == installed_version()
