"""Commands about documents against a running node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from fake_node import FakeNode
from typer.testing import Result

RunFake = Callable[..., FakeNode]


class Cli(Protocol):
    """See ``conftest.py``."""

    data_dir: Path

    def __call__(self, *arguments: str, stdin: bytes | None = None) -> Result:
        """Run a command."""
        ...

    def json(self, *arguments: str) -> Any:
        """The document of a command that must succeed."""
        ...


def test_documents(cli: Cli, run_fake: RunFake) -> None:
    """Set, get, list and delete; values are JSON or text, and what is missing has an exit code."""
    node = run_fake()
    assert "no documents" in cli("doc", "list").stdout
    assert cli.json("doc", "set", "board", "limits", '{"cpu": 2}')["value"] == {"cpu": 2}
    assert "set 'title' of 'board'" in cli("doc", "set", "board", "title", "Plans for\x1b").stdout
    assert cli.json("doc", "set", "board", "number", "7", "--text")["value"] == "7"
    assert node.shared["board"] == {"limits": {"cpu": 2}, "title": "Plans for\x1b", "number": "7"}
    assert node.shared["board"].saves == 3
    assert cli.json("doc", "get", "board", "limits") == {"document": "board", "key": "limits", "value": {"cpu": 2}}
    assert cli("doc", "get", "board", "limits").stdout == '{"cpu": 2}\n'
    shown = cli("doc", "get", "board")
    assert "title" in shown.stdout
    assert "\x1b" not in shown.stdout
    assert cli.json("doc", "get", "board")["replicas"] == ["n2"]
    assert cli.json("doc", "list") == [{"document": "board", "entries": 3, "replicas": ["n2"]}]
    assert "board" in cli("doc", "list").stdout
    assert "deleted" in cli("doc", "delete", "board", "title").stdout
    assert cli.json("doc", "delete", "board", "limits") == {"document": "board", "key": "limits"}
    assert cli("doc", "delete", "board", "title").exit_code == 3
    assert cli("doc", "get", "board", "title").exit_code == 3
    assert cli.json("doc", "get", "alone")["values"] == {}
