"""Help, versions, values: what needs no node."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from mesh.cli.app import app
from mesh.cli.values import payload, plain, seconds, shown_payload
from mesh.errors import InvalidMessage


def commands() -> dict[str, Any]:
    """Every command by its words."""
    found = {(info.name or info.callback.__name__): info.callback for info in app.registered_commands if info.callback}
    for group in app.registered_groups:
        assert isinstance(group.typer_instance, typer.Typer)
        for info in group.typer_instance.registered_commands:
            assert info.callback is not None
            found[f"{group.name} {info.name or info.callback.__name__}"] = info.callback
    return found


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_has_help_an_example_and_json(name: str) -> None:
    """The promise of the command line, kept for each command."""
    callback = commands()[name]
    assert "Example: " in (inspect.getdoc(callback) or "")
    assert "as_json" in inspect.signature(callback).parameters
    result = CliRunner().invoke(app, [*name.split(), "--help"])
    assert result.exit_code == 0


def test_the_command_list_is_the_one_promised() -> None:
    """Nothing is missing, and nothing is there unannounced."""
    assert sorted(commands()) == sorted(
        [
            *("up", "invite", "members", "status", "agents", "discover", "send", "request", "broadcast", "listen"),
            *("publish", "leave", "demo", "bench throughput", "bench latency", "doctor", "version"),
            *("doc list", "doc get", "doc set", "doc delete"),
            *("dead-letters list", "dead-letters replay", "dead-letters drop"),
        ]
    )


def test_version_as_json() -> None:
    """One document with the version."""
    result = CliRunner().invoke(app, ["version", "--json"])
    assert set(json.loads(result.stdout)) == {"version", "python", "system"}


def test_python_m_mesh_is_mesh() -> None:
    """The module runs as the command does."""
    done = subprocess.run([sys.executable, "-m", "mesh", "version"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    assert done.stdout.startswith("peermesh ")


def test_simple_commands_do_not_import_the_node() -> None:
    """`mesh members` must start fast: no TLS, no WebSocket before they are needed."""
    code = (
        "import sys; import mesh.cli.app, mesh.control.client, mesh.control.locate; "
        "print([m for m in ('websockets','zeroconf','cryptography','rich.table') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10m", 600), ("90s", 90), ("1.5h", 5400), ("250ms", 0.25), ("2d", 172_800), ("7", 7), (" 5s ", 5)],
)
def test_durations(text: str, expected: float) -> None:
    """A number and a unit; seconds without one."""
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "-1s", "1w", "1 2s", "nan"])
def test_what_is_no_duration(text: str) -> None:
    """Refused, not guessed."""
    with pytest.raises(InvalidMessage):
        seconds(text)


def test_payloads_for_people() -> None:
    """Text as it is unless it could move the cursor."""
    assert payload("x") == {"text": "x"}
    assert shown_payload({"text": "ü"}) == "ü"
    assert plain("a\nb\x1b") == "a\\nb\\x1b"
