"""`mesh up` as a real process: ready line, commands against it, leaving, and errors at start."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import eventually

from mesh import AgentNetworkManager, join_network
from mesh.cli import up
from mesh.config import MeshConfig

Process = subprocess.Popen[str]
Start = Callable[..., Process]


def mesh(*arguments: str, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [sys.executable, "-m", "mesh", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)


def document(*arguments: str) -> Any:
    """What a command that must succeed prints with --json."""
    done = mesh(*arguments, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts nodes on loopback in one tree; ends what still runs."""
    running: list[Process] = []

    def start(node_id: str, *arguments: str) -> Process:
        command = [sys.executable, "-m", "mesh", "up", "--json", "--no-mdns", "--node-id", node_id]
        command += ["--listen", "127.0.0.1:0", "--data-dir", str(tmp_path), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=10)


def ready(process: Process) -> dict[str, Any]:
    """The first line, which must be the ready event."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.stderr.read() if process.stderr is not None else ""
    event: dict[str, Any] = json.loads(line)
    assert event["event"] == "ready"
    return event


def test_two_nodes_from_ready_to_leave(start: Start, tmp_path: Path) -> None:
    """They join over the bootstrap list, exchange messages between agents, and leave in order."""
    first = start("n1")
    event = ready(first)
    assert (event["node_id"], event["address"], event["pid"]) == ("n1", "127.0.0.1", first.pid)
    assert event["port"] > 0
    second = start("n2", "--bootstrap", f"wss://127.0.0.1:{event['port']}")
    ready(second)
    tree = ("--data-dir", str(tmp_path))
    assert first.stdout is not None
    seen = json.loads(first.stdout.readline())
    assert (seen["event"], seen["node"]["node_id"]) == ("node_joined", "n2")
    assert [node["node_id"] for node in document("members", *tree, "--node-id", "n2")] == ["n1", "n2"]
    assert mesh("members", *tree).returncode == 2, "two nodes run: one must be named"

    listen = [
        sys.executable,
        "-m",
        "mesh",
        "listen",
        *tree,
        "--node-id",
        "n2",
        "--agent",
        "7",
        "--reply",
        "pong",
        "--json",
    ]
    listener = subprocess.Popen(listen, stdout=subprocess.PIPE, text=True)
    try:
        assert listener.stdout is not None
        assert json.loads(listener.stdout.readline())["listening"] == 7
        joined = json.loads(first.stdout.readline())
        while joined["event"] != "agent_joined":
            joined = json.loads(first.stdout.readline())
        assert joined["agent"]["agent_id"] == 7
        reply = document("request", "7", "ping", *tree, "--node-id", "n1")
        assert reply["text"] == "pong"
        assert document("send", "7", "hello", "--ack", *tree, "--node-id", "n1")["status"] == "delivered"
        texts = [json.loads(listener.stdout.readline())["text"] for _ in range(2)]
        assert texts == ["ping", "hello"]
    finally:
        listener.send_signal(signal.SIGINT)
        listener.communicate(timeout=10)

    assert document("leave", *tree, "--node-id", "n2")["left"] is True
    assert second.wait(10) == 0
    first.send_signal(signal.SIGTERM)
    output, errors = first.communicate(timeout=10)
    assert first.returncode == 0, errors
    assert "node_left" in {json.loads(line)["event"] for line in output.splitlines()}
    assert "Traceback" not in errors


async def test_whoever_is_met_during_the_start_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members that are known before the node says it is ready are told of right after."""
    shared: dict[str, Any] = {"data_dir": tmp_path, "listen": "127.0.0.1:0", "mdns": False, "preset": "local"}
    begin = AgentNetworkManager.start

    async def begin_and_meet(manager: AgentNetworkManager) -> None:
        await begin(manager)
        await manager.wait_for_members(2)

    async with await join_network(node_id="there", **shared) as there:
        monkeypatch.setattr(AgentNetworkManager, "start", begin_and_meet)
        running = asyncio.ensure_future(up._run(MeshConfig.load(None, node_id="here", **shared), as_json=True))
        await there.wait_for_members(2)
        printed: list[dict[str, Any]] = []

        def shown() -> bool:
            printed.extend(json.loads(line) for line in capsys.readouterr().out.splitlines())
            return len(printed) >= 2

        await eventually(shown)
        signal.raise_signal(signal.SIGTERM)
        assert await running == 0

    assert [one["event"] for one in printed[:2]] == ["ready", "node_joined"]
    assert printed[1]["node"]["node_id"] == "there"


def test_a_stale_socket_of_a_killed_node_is_replaced(start: Start, tmp_path: Path) -> None:
    """kill -9 leaves the socket file; commands see nobody, and the next start works."""
    process = start("n1")
    ready(process)
    process.kill()
    process.wait(10)
    assert (tmp_path / "default" / "n1" / "control.sock").exists()
    assert mesh("members", "--data-dir", str(tmp_path)).returncode == 3
    ready(start("n1"))
    assert len(document("members", "--data-dir", str(tmp_path))) == 1


class TestErrorsAtStart:
    """One paragraph, the exit code, and never a traceback."""

    def outcome(self, process: Process) -> tuple[int, dict[str, Any]]:
        """Exit code and the error document."""
        output, errors = process.communicate(timeout=20)
        assert "Traceback" not in errors
        return process.returncode, json.loads(output)

    def test_port_in_use(self, start: Start) -> None:
        """The port is named."""
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            port = holder.getsockname()[1]
            code, error = self.outcome(start("n1", "--listen", f"127.0.0.1:{port}"))
        assert (code, error["error"]) == (1, "ListenError")
        assert str(port) in error["message"]

    def test_node_id_in_use(self, start: Start) -> None:
        """The other process is named."""
        process = start("n1")
        ready(process)
        code, error = self.outcome(start("n1"))
        assert (code, error["error"]) == (1, "NodeIdInUse")
        assert str(process.pid) in error["message"]

    def test_readable_key(self, start: Start, tmp_path: Path) -> None:
        """A key that others can read is refused with the command that mends it."""
        process = start("n1")
        ready(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        key = tmp_path / "default" / "n1" / "identity.key"
        os.chmod(key, 0o644)  # noqa: PTH101
        code, error = self.outcome(start("n1"))
        assert (code, error["error"]) == (4, "InsecureKeyFile")
        assert "chmod 600" in error["hint"]

    def test_malformed_token(self, start: Start) -> None:
        """A token that is none is a usage error."""
        code, error = self.outcome(start("n1", "--join", "pm1.nonsense"))
        assert (code, error["error"]) == (2, "TokenMalformed")

    def test_unknown_setting(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        """A misspelt variable is found before anything starts."""
        monkeypatch.setenv("MESH_LISTN", "x")
        code, error = self.outcome(start("n1"))
        assert (code, error["error"]) == (2, "ConfigError")
        assert "MESH_LISTEN" in error["hint"]
