"""Server and client together on a real socket, with a node that is not real."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from fake_node import FakeNode
from support import eventually

import mesh.control.server as server_module
from mesh.control.client import ControlClient
from mesh.control.locate import RunningNode, choose_node, running_nodes
from mesh.control.protocol import LINE_BYTES_MAX
from mesh.control.server import ControlServer, peer_uid
from mesh.errors import (
    AgentIdInUse,
    AmbiguousNode,
    ControlError,
    InvalidMessage,
    NodeNotRunning,
    RequestTimeout,
    UnknownAgent,
    UnknownLetter,
)
from transport.types import NetworkName, NodeId


@pytest.fixture
def target() -> FakeNode:
    """The node behind the socket."""
    return FakeNode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the socket goes."""
    folder = tmp_path / "lab" / "n1"
    folder.mkdir(parents=True)
    return folder / "control.sock"


@pytest.fixture
async def server(target: FakeNode, path: Path) -> AsyncIterator[ControlServer]:
    """A server that answers for the node."""
    control = ControlServer(target, path)
    await control.start()
    yield control
    await control.close()


async def ask(path: Path, op: str, **args: Any) -> Any:
    """One call from a thread, as another process would."""

    def call() -> Any:
        with ControlClient(path) as client:
            return client.call(op, **args)

    return await asyncio.to_thread(call)


async def test_simple_questions_are_answered(server: ControlServer, path: Path) -> None:
    """Members are sorted, status counts, invite passes its arguments."""
    assert [node["node_id"] for node in await ask(path, "members")] == ["n1", "n2"]
    status = await ask(path, "status")
    assert status["nodes"] == {"active": 1, "inactive": 1}
    assert status["stats"]["links"] == {"open": 1}
    assert status["pid"] == os.getpid()
    assert await ask(path, "invite", ttl_s=60, uses=2) == {"token": "pm1.60.2", "ttl_s": 60.0, "uses": 2}


async def test_agents_are_filtered_by_everything_given(server: ControlServer, target: FakeNode, path: Path) -> None:
    """All of the capabilities and tags, and the exact name."""
    from mesh.types import AgentInfo

    target.infos = [
        AgentInfo(2, "n1", ("a", "b"), "two", ("gpu",)),
        AgentInfo(1, "n1", ("a",), "one"),
    ]
    assert [agent["agent_id"] for agent in await ask(path, "agents")] == [1, 2]
    assert [agent["agent_id"] for agent in await ask(path, "agents", capabilities=["a", "b"])] == [2]
    assert [agent["agent_id"] for agent in await ask(path, "agents", tags=["gpu"])] == [2]
    assert [agent["agent_id"] for agent in await ask(path, "agents", name="one")] == [1]
    assert await ask(path, "agents", name="one", tags=["gpu"]) == []


async def test_one_connection_can_ask_several_times(server: ControlServer, path: Path) -> None:
    """Requests follow one another on a connection."""

    def calls() -> list[str]:
        with ControlClient(path) as client:
            return [client.call("ping")["node_id"] for _ in range(3)]

    assert await asyncio.to_thread(calls) == ["n1"] * 3


async def test_a_client_that_goes_away_gives_up_its_parts(server: ControlServer, target: FakeNode, path: Path) -> None:
    """The stream is closed in the node, in the middle."""
    client = await asyncio.to_thread(ControlClient, path)
    items = client.stream("request_parts", agent=7, text="hang")
    assert await asyncio.to_thread(next, items) == {"agent_id": 7, "text": "hang"}
    await eventually(lambda: target.asked == ["hang"])
    client.close()
    await eventually(lambda: target.asked == ["hang", "closed"])


async def test_listening_is_a_temporary_agent(server: ControlServer, target: FakeNode, path: Path) -> None:
    """It receives commands, queries and broadcasts, answers as told, and is gone with its client."""
    received: list[dict[str, Any]] = []
    client = await asyncio.to_thread(ControlClient, path)
    items = client.stream("listen", agent=7, reply="pong")

    def take(count: int) -> None:
        received.extend(next(items) for _ in range(count))

    await asyncio.to_thread(take, 1)
    assert received == [{"listening": 7, "node_id": "n1"}]
    assert (await ask(path, "send", agent=7, text="hello", ack=True))["status"] == "delivered"
    assert (await ask(path, "request", agent=7, text="ping", from_agent=3))["text"] == "pong"
    await ask(path, "broadcast", base64="/w==")
    await asyncio.to_thread(take, 3)
    assert [item["message_type"] for item in received[1:]] == ["command", "query", "broadcast"]
    assert received[1]["text"] == "hello"
    assert received[2]["from_agent"] == 3
    assert received[3]["base64"] == "/w=="
    client.close()
    await eventually(lambda: 7 not in target.handlers)


async def test_listening_to_a_group(server: ControlServer, target: FakeNode, path: Path) -> None:
    """It hears what is published, as a member of a queue if it says so, and ends with its client."""
    received: list[dict[str, Any]] = []
    client = await asyncio.to_thread(ControlClient, path)
    items = client.stream("listen", group="alerts", queue="workers")

    def take() -> None:
        received.append(next(items))

    await asyncio.to_thread(take)
    assert received == [{"listening": "alerts", "node_id": "n1"}]
    assert list(target.subscribed["alerts"]) == ["workers"]
    assert (await ask(path, "publish", group="alerts", text="fire"))["nodes"] == 1
    await asyncio.to_thread(take)
    assert received[1]["text"] == "fire"
    client.close()
    await eventually(lambda: not target.subscribed)


async def test_listening_without_an_id_takes_a_free_one(server: ControlServer, target: FakeNode, path: Path) -> None:
    """Two listeners on one node do not disturb each other."""
    with await asyncio.to_thread(ControlClient, path) as first, await asyncio.to_thread(ControlClient, path) as second:
        one = await asyncio.to_thread(next, first.stream("listen"))
        two = await asyncio.to_thread(next, second.stream("listen"))
        assert one["listening"] != two["listening"]
    await eventually(lambda: not target.handlers)


async def test_events_are_streamed(server: ControlServer, path: Path) -> None:
    """The stream holds what the node observes."""
    with await asyncio.to_thread(ControlClient, path) as client:
        first = await asyncio.to_thread(next, client.stream("events"))
    assert first["event"] == "node_joined"
    assert first["node"]["node_id"] == "n2"


@pytest.mark.parametrize(
    ("op", "args", "raised"),
    [
        ("request", {"agent": 9, "text": "x"}, UnknownAgent),
        ("send", {"agent": "seven", "text": "x"}, InvalidMessage),
        ("send", {"agent": True, "text": "x"}, InvalidMessage),
        ("send", {"agent": -1, "text": "x"}, InvalidMessage),
        ("send", {"text": "x"}, InvalidMessage),
        ("send", {"agent": 1}, InvalidMessage),
        ("send", {"agent": 1, "text": "x", "durable": True, "deadline_s": "soon"}, InvalidMessage),
        ("drop", {"letter": "7"}, UnknownLetter),
        ("drop", {"letter": 7}, InvalidMessage),
        ("replay", {"letter": "9" * 21}, InvalidMessage),
        ("send", {"agent": 1, "base64": "!"}, InvalidMessage),
        ("invite", {"ttl_s": 0}, InvalidMessage),
        ("invite", {"uses": "many"}, InvalidMessage),
        ("agents", {"name": 5}, InvalidMessage),
        ("agents", {"tags": "gpu"}, InvalidMessage),
        ("no-such-thing", {}, ControlError),
        ("request", {"agent": 1, "text": "bug"}, ControlError),
        ("request", {"agent": 1, "text": "hang", "timeout_s": 0.05}, RequestTimeout),
    ],
)
async def test_errors_arrive_as_their_class(
    server: ControlServer, path: Path, op: str, args: dict[str, Any], raised: type[Exception]
) -> None:
    """What the node raises is what the caller catches, and the node goes on."""
    with pytest.raises(raised):
        await ask(path, op, **args)
    assert (await ask(path, "ping"))["node_id"] == "n1"


async def test_an_agent_id_in_use_ends_the_stream_with_the_reason(
    server: ControlServer, target: FakeNode, path: Path
) -> None:
    """A stream that cannot begin says why."""

    async def nothing(message: object) -> None: ...

    target.handlers[7] = nothing
    with pytest.raises(AgentIdInUse):
        await asyncio.to_thread(lambda: list(_stream(path, "listen", agent=7)))


def _stream(path: Path, op: str, **args: Any) -> list[Any]:
    with ControlClient(path) as client:
        return list(client.stream(op, **args))


async def test_an_operation_that_never_ends_is_cut(
    server: ControlServer, target: FakeNode, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller hears of it as a timeout, whether or not the operation watches its own time."""
    monkeypatch.setattr(server_module, "MARGIN_S", 0.0)

    async def forever(**_: object) -> str:
        await asyncio.Event().wait()
        return ""

    monkeypatch.setattr(target, "invite", forever)
    with pytest.raises(RequestTimeout):
        await ask(path, "invite", timeout_s=0.05)


async def test_a_client_that_goes_away_cancels_its_request(
    server: ControlServer, target: FakeNode, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in a command stops what it asked for."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def slow(**_: object) -> str:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ""

    monkeypatch.setattr(target, "invite", slow)
    _, writer = await asyncio.open_unix_connection(path)
    writer.write(b'{"v":1,"op":"invite"}\n')
    await began.wait()
    writer.close()
    assert await asyncio.wait_for(ended.wait(), 5)


async def test_leaving_is_answered_and_then_done(server: ControlServer, target: FakeNode, path: Path) -> None:
    """The answer does not depend on the node being still there."""
    assert await ask(path, "leave") == {"node_id": "n1", "leaving": True}
    await eventually(lambda: target.left == 1)


async def test_whoever_runs_the_node_can_take_leaving_over(target: FakeNode, path: Path) -> None:
    """`mesh up` ends itself rather than only its network."""
    called: list[int] = []
    control = ControlServer(target, path, leave=lambda: called.append(1))
    await control.start()
    await ask(path, "leave")
    await eventually(lambda: called == [1])
    await control.close()
    assert target.left == 0


@pytest.mark.parametrize("line", [b"nonsense\n", b'{"v":99,"op":"ping"}\n'])
async def test_a_client_that_speaks_nonsense_is_told_and_closed(server: ControlServer, path: Path, line: bytes) -> None:
    """One error line, then end of file."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(line)
    assert b"ControlError" in await asyncio.wait_for(reader.readline(), 5)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_a_line_without_end_is_cut(server: ControlServer, path: Path) -> None:
    """Memory is bounded by the line limit, whatever a client sends."""
    _, writer = await asyncio.open_unix_connection(path)
    with pytest.raises((ConnectionError, BrokenPipeError)):
        for _ in range(64):
            writer.write(b"x" * LINE_BYTES_MAX)
            await writer.drain()
    writer.close()


async def test_too_many_clients_are_told_so(server: ControlServer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forgotten loop of listeners cannot take the node's descriptors."""
    monkeypatch.setattr(server_module, "CLIENTS_MAX", 1)
    with await asyncio.to_thread(ControlClient, path) as first:
        await asyncio.to_thread(next, first.stream("listen"))
        with pytest.raises(ControlError, match="serves 1 commands already"):
            await ask(path, "ping")


async def test_another_user_is_refused(server: ControlServer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's word counts, not the file modes alone."""
    monkeypatch.setattr(server_module, "peer_uid", lambda _: os.getuid() + 1)
    with pytest.raises(ControlError, match="may not command"):
        await ask(path, "ping")


def test_the_kernel_says_who_is_at_the_other_end() -> None:
    """On Linux the user id is known; elsewhere the modes are what protects."""
    one, other = socket.socketpair()
    with one, other:
        assert peer_uid(one) in {os.getuid(), None}


async def test_the_socket_is_private_and_goes_with_the_server(target: FakeNode, path: Path) -> None:
    """Mode 0600 while it runs; no file afterwards; closing twice is harmless."""
    control = ControlServer(target, path)
    await control.start()
    assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
    await control.close()
    await control.close()
    assert not os.path.exists(path)  # noqa: ASYNC240, PTH110


async def test_what_a_killed_node_left_is_replaced(target: FakeNode, path: Path) -> None:
    """A stale socket file does not keep the next start from working."""
    stale = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stale.bind(str(path))
    stale.close()
    control = ControlServer(target, path)
    await control.start()
    assert (await ask(path, "ping"))["node_id"] == "n1"
    await control.close()


async def test_a_socket_that_cannot_be_made_says_why(target: FakeNode, tmp_path: Path) -> None:
    """A missing directory is a typed error."""
    with pytest.raises(ControlError, match="cannot be made"):
        await ControlServer(target, tmp_path / "nowhere" / "control.sock").start()


async def test_closing_ends_streams(target: FakeNode, path: Path) -> None:
    """A listener of a node that leaves sees its connection end."""
    control = ControlServer(target, path)
    await control.start()
    client = await asyncio.to_thread(ControlClient, path)
    items = client.stream("listen")
    await asyncio.to_thread(next, items)
    await control.close()
    with pytest.raises(ControlError, match="hung up"):
        await asyncio.to_thread(next, items)
    client.close()
    assert not target.handlers


class TestChoosing:
    """Which running node a command means."""

    @pytest.fixture
    async def start(self, tmp_path: Path) -> AsyncIterator[Callable[[str, str], Any]]:
        servers: list[ControlServer] = []

        async def start(network: str, node: str) -> None:
            folder = tmp_path / network / node
            folder.mkdir(parents=True)
            control = ControlServer(FakeNode(node), folder / "control.sock")
            await control.start()
            servers.append(control)

        yield start
        for control in servers:
            await control.close()

    async def test_the_only_one_needs_no_name(self, tmp_path: Path, start: Callable[[str, str], Any]) -> None:
        """Directories of nodes that do not run are passed over."""
        await start("lab", "n1")
        (tmp_path / "lab" / "n2").mkdir()
        (tmp_path / "lab" / "ca").mkdir()
        chosen = await asyncio.to_thread(choose_node, tmp_path)
        assert (chosen.network, chosen.node_id) == ("lab", "n1")

    async def test_several_must_be_chosen_from(self, tmp_path: Path, start: Callable[[str, str], Any]) -> None:
        """They are listed, and a name decides."""
        await start("lab", "n1")
        await start("home", "n1")
        with pytest.raises(AmbiguousNode, match=r"n1 \(home\), n1 \(lab\)"):
            await asyncio.to_thread(choose_node, tmp_path)
        chosen = await asyncio.to_thread(choose_node, tmp_path, NetworkName("lab"))
        assert chosen.network == "lab"

    async def test_none_says_what_does_run(self, tmp_path: Path, start: Callable[[str, str], Any]) -> None:
        """A wrong name gets the right ones; an empty tree gets the way to start."""
        with pytest.raises(NodeNotRunning, match="mesh up"):
            await asyncio.to_thread(choose_node, tmp_path)
        await start("lab", "n1")
        with pytest.raises(NodeNotRunning, match=r"running there: n1 \(lab\)"):
            await asyncio.to_thread(choose_node, tmp_path, None, NodeId("n9"))
        assert await asyncio.to_thread(running_nodes, tmp_path, None, NodeId("ca")) == []

    def test_nobody_answers_at_a_path(self, tmp_path: Path) -> None:
        """A client without a node says so."""
        with pytest.raises(NodeNotRunning):
            ControlClient(tmp_path / "control.sock")

    def test_a_node_has_ended_when_its_directory_is_free(self, tmp_path: Path) -> None:
        """The lock is the last thing a node gives up."""
        from transport.identity.datadir import NodeDirectory

        directory = NodeDirectory.open(tmp_path, NetworkName("lab"), NodeId("n1"))
        running = RunningNode(NetworkName("lab"), NodeId("n1"), directory.path, directory.control_socket_path)
        assert not running.has_ended()
        directory.release()
        assert running.has_ended()
