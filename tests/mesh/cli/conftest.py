"""A command line against a node that is not real, on a real control socket."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fake_node import FakeNode
from typer.testing import CliRunner, Result

from mesh.cli.app import app
from mesh.control.server import ControlServer


@dataclass
class Cli:
    """Runs commands against the tree in ``data_dir``."""

    data_dir: Path
    runner: CliRunner = field(default_factory=CliRunner)

    def __call__(self, *arguments: str, stdin: bytes | None = None) -> Result:
        return self.runner.invoke(app, [*arguments, "--data-dir", str(self.data_dir)], input=stdin)

    def json(self, *arguments: str) -> Any:
        """The one document that a command prints, which must have succeeded."""
        result = self(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the machine's own settings out."""
    for name in list(os.environ):
        if name.upper().startswith("MESH_"):
            monkeypatch.delenv(name)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Commands on a tree of their own."""
    return Cli(tmp_path)


@pytest.fixture
def run_fake(tmp_path: Path) -> Iterator[Callable[..., FakeNode]]:
    """Starts fake nodes, each on a loop of its own thread, as other processes would be."""
    stops: list[Callable[[], None]] = []

    def run(node_id: str = "n1", network: str = "default") -> FakeNode:
        folder = tmp_path / network / node_id
        folder.mkdir(parents=True)
        node = FakeNode(node_id)
        ready = threading.Event()
        loop = asyncio.new_event_loop()
        ending = asyncio.Event()

        async def serve() -> None:
            server = ControlServer(node, folder / "control.sock", leave=ending.set)
            await server.start()
            ready.set()
            await ending.wait()
            await server.close()

        def body() -> None:
            try:
                loop.run_until_complete(serve())
                loop.run_until_complete(loop.shutdown_default_executor())
            finally:
                loop.close()

        thread = threading.Thread(target=body, name=f"fake {node_id}")
        thread.start()
        assert ready.wait(5)

        def stop() -> None:
            if thread.is_alive():
                loop.call_soon_threadsafe(ending.set)
                thread.join(5)

        stops.append(stop)
        return node

    yield run
    for stop in stops:
        stop()
