"""Each command against a running node: what it prints, as a document and for people, and its exit code."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
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


class Echo:
    """An agent that answers what it was asked, and keeps what it got."""

    def __init__(self) -> None:
        self.got: list[bytes] = []

    async def __call__(self, message: Any) -> bytes:
        self.got.append(message.payload)
        return b"echo " + bytes(message.payload)


def test_members(cli: Cli, run_fake: RunFake) -> None:
    """The nodes by name with status and address."""
    run_fake()
    assert [(node["node_id"], node["status"]) for node in cli.json("members")] == [("n1", "active"), ("n2", "inactive")]
    shown = cli("members").stdout
    assert "10.0.0.2:7946" in shown
    assert "by hearsay" in shown


def test_status(cli: Cli, run_fake: RunFake) -> None:
    """The node, counts and counters."""
    run_fake()
    assert cli.json("status")["nodes"] == {"active": 1, "inactive": 1}
    shown = cli("status").stdout
    assert "node n1 (active) at 127.0.0.1:7946" in shown
    assert "links.open" in shown


@pytest.mark.parametrize("command", ["agents", "discover"])
def test_agents_and_its_other_name(cli: Cli, run_fake: RunFake, command: str) -> None:
    """Filters reach the node; nobody is not an error."""
    from mesh.types import AgentInfo

    node = run_fake()
    assert "no agents" in cli(command).stdout
    node.infos = [AgentInfo(1, "n1", ("sum",), "adder", ("gpu",), "1.0"), AgentInfo(2, "n2")]
    assert [agent["agent_id"] for agent in cli.json(command)] == [1, 2]
    assert [agent["agent_id"] for agent in cli.json(command, "-c", "sum", "-t", "gpu", "--name", "adder")] == [1]
    assert "adder" in cli(command).stdout


def test_invite(cli: Cli, run_fake: RunFake) -> None:
    """The token alone on stdout, so that it can be piped; the advice beside it."""
    run_fake()
    assert cli.json("invite", "--ttl", "1h", "--uses", "3") == {"token": "pm1.3600.3", "ttl_s": 3600.0, "uses": 3}
    assert cli("invite").stdout == "pm1.600.1\n"


def test_send(cli: Cli, run_fake: RunFake) -> None:
    """The receipt says how far the message came."""
    agent = Echo()
    run_fake().handlers[7] = agent
    assert cli.json("send", "7", "hello")["status"] == "sent"
    assert "delivered to agent 7 on n1" in cli("send", "7", "hello", "--ack").stdout
    assert agent.got == [b"hello", b"hello"]


def test_durable_messages_and_dead_letters(cli: Cli, run_fake: RunFake) -> None:
    """One is stored; those that were given up are listed, sent once more, and dropped."""
    run_fake()
    assert cli("dead-letters").stdout == "no dead letters\n"
    assert cli.json("send", "7", "one", "--durable", "--deadline", "2m")["message_id"] == "n1/durable/120.0"
    assert cli("send", "7", "two", "--durable").stdout == "stored as n1/durable/None\n"

    first, second = cli.json("dead-letters", "list")
    assert (first["letter_id"], first["message"]["text"]) == (str(2**60), "one")
    assert "ValueError: no" in cli("dead-letters", "list").stdout
    assert cli.json("dead-letters") == [first, second]
    assert cli.json("dead-letters", "replay", first["letter_id"], "--deadline", "1h")["status"] == "stored"
    assert cli("dead-letters", "drop", second["letter_id"]).stdout == f"dropped {second['letter_id']}\n"
    assert cli.json("dead-letters", "list") == []
    assert cli("dead-letters", "drop", "7").exit_code == 3
    assert cli("dead-letters", "replay", "seven").exit_code == 2


def test_send_from_standard_input(cli: Cli, run_fake: RunFake) -> None:
    """Any bytes can be sent, unchanged."""
    agent = Echo()
    run_fake().handlers[7] = agent
    content = bytes(range(256))
    assert cli("send", "7", "-", stdin=content).exit_code == 0
    assert agent.got == [content]
    too_much = cli("send", "7", "-", stdin=b"x" * (1024 * 1024 + 1))
    assert too_much.exit_code == 2
    assert "largest payload" in too_much.stderr


def test_request(cli: Cli, run_fake: RunFake) -> None:
    """The answer alone on stdout."""
    run_fake().handlers[7] = Echo()
    assert cli("request", "7", "hi").stdout == "echo hi\n"
    assert cli.json("request", "7", "hi") == {"agent_id": 7, "text": "echo hi"}


def test_request_for_an_answer_in_parts(cli: Cli, run_fake: RunFake) -> None:
    """Each on a line of its own, as text or as an object; an error comes behind those that came before."""
    run_fake()
    assert cli("request", "7", "one two", "--stream").stdout == "one\ntwo\n"
    lines = cli("request", "7", "one two", "--stream", "--json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [{"agent_id": 7, "text": "one"}, {"agent_id": 7, "text": "two"}]
    late = cli("request", "7", "hang", "--stream", "--timeout", "50ms")
    assert late.exit_code == 5
    assert late.stdout == "hang\n"
    assert "no further part in time" in late.stderr


def test_request_with_an_answer_that_is_not_text(cli: Cli, run_fake: RunFake) -> None:
    """Bytes do not reach a terminal raw."""

    async def answer(message: object) -> bytes:
        return b"\xff"

    run_fake().handlers[7] = answer
    assert cli("request", "7", "hi").stdout == "base64:/w==\n"


def test_broadcast(cli: Cli, run_fake: RunFake) -> None:
    """Says to how many nodes it was handed."""
    run_fake()
    assert cli.json("broadcast", "all")["nodes"] == 1
    assert "handed to 1 nodes" in cli("broadcast", "all").stdout


def test_publish(cli: Cli, run_fake: RunFake) -> None:
    """Says how far it came."""
    run_fake()
    assert cli.json("publish", "alerts", "fire")["status"] == "sent"
    assert cli("publish", "alerts", "fire").stdout == "published n1/1/3 to group alerts: sent\n"


@pytest.mark.parametrize("as_json", [True, False])
def test_listen_ends_after_count(cli: Cli, run_fake: RunFake, as_json: bool) -> None:
    """It registers, prints what it receives, and is gone."""
    node = run_fake()
    results: list[Result] = []
    arguments = ["listen", "--agent", "7", "--count", "2", "--reply", "pong", *(["--json"] if as_json else [])]
    listener = threading.Thread(target=lambda: results.append(cli(*arguments)))
    listener.start()
    assert node.registered.wait(5)
    # The runner swaps sys.stdout for the thread's command, so the other side speaks to the socket directly.
    from mesh.control.client import ControlClient

    with ControlClient(cli.data_dir / "default" / "n1" / "control.sock") as client:
        client.call("send", agent=7, text="one\x1b[2J")
        assert client.call("request", agent=7, text="two") == {"agent_id": 7, "text": "pong"}
    listener.join(5)
    (result,) = results
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    if as_json:
        documents = [json.loads(line) for line in lines]
        assert documents[0] == {"listening": 7, "node_id": "n1"}
        assert [document["text"] for document in documents[1:]] == ["one\x1b[2J", "two"]
    else:
        assert lines == ["0@n1 command: one\\x1b[2J", "0@n1 query: two"]


def test_leave(cli: Cli, run_fake: RunFake) -> None:
    """Returns when the node has really ended."""
    run_fake()
    assert cli.json("leave") == {"node_id": "n1", "network": "default", "left": True}
    assert cli("members").exit_code == 3


class TestExitCodes:
    """0 ok, 1 failed, 2 usage, 3 no such, 4 not authorised, 5 timed out; with --json one document says why."""

    @pytest.mark.parametrize(
        ("arguments", "code", "said"),
        [
            (["request", "9", "x"], 3, "nobody registered agent 9"),
            (["request", "7", "bug"], 1, "failed inside the node"),
            (["request", "7", "hang", "--timeout", "50ms"], 5, "no answer in time"),
            (["invite", "--ttl", "soon"], 2, "not a duration"),
            (["members", "--node-id", "n9"], 3, "running there: n1 (default)"),
            (["members", "--network", "Bad_Name"], 2, "network name"),
        ],
    )
    def test_failures(self, cli: Cli, run_fake: RunFake, arguments: list[str], code: int, said: str) -> None:
        """The message is one paragraph on stderr, or one document on stdout; never a traceback."""
        run_fake()
        for_people = cli(*arguments)
        assert for_people.exit_code == code
        assert said in for_people.stderr
        assert "Traceback" not in for_people.output
        assert for_people.stdout == ""
        for_programs = cli(*arguments, "--json")
        assert for_programs.exit_code == code
        document = json.loads(for_programs.stdout)
        assert said in f"{document['message']} ({document['hint']})"
        assert set(document) == {"error", "message", "hint", "changed"}

    @pytest.mark.parametrize("arguments", [["send"], ["send", "seven", "x"], ["nonsense"], ["members", "--nonsense"]])
    def test_usage(self, cli: Cli, arguments: list[str]) -> None:
        """What cannot be parsed is 2."""
        assert cli(*arguments).exit_code == 2

    def test_no_node(self, cli: Cli) -> None:
        """Without a node the way to start one is named."""
        result = cli("status")
        assert result.exit_code == 3
        assert "mesh up" in result.stderr

    def test_several_nodes(self, cli: Cli, run_fake: RunFake) -> None:
        """They are listed, and naming one decides."""
        run_fake("n1")
        run_fake("n2")
        result = cli("members")
        assert result.exit_code == 2
        assert "n1 (default), n2 (default)" in result.stderr
        assert cli("members", "--node-id", "n2").exit_code == 0

    def test_names_from_the_environment(self, cli: Cli, run_fake: RunFake, monkeypatch: pytest.MonkeyPatch) -> None:
        """MESH_NODE_ID chooses as --node-id does."""
        run_fake("n1")
        run_fake("n2")
        monkeypatch.setenv("MESH_NODE_ID", "n2")
        assert cli("members").exit_code == 0

    def test_the_file_chooses_too(self, cli: Cli, run_fake: RunFake, monkeypatch: pytest.MonkeyPatch) -> None:
        """The settings file of `mesh up` finds the node that was started with it."""
        run_fake("n1")
        run_fake("n2")
        path = cli.data_dir / "mesh.toml"
        path.write_text('node_id = "n2"\n')
        monkeypatch.setenv("MESH_CONFIG", str(path))
        assert cli("members").exit_code == 0


def test_errors_have_the_codes_they_should() -> None:
    """Every error class has a code, and the special ones theirs."""
    from mesh import errors
    from mesh.cli.outcome import exit_code_of
    from mesh.control.protocol import error_from_document

    def code(name: str) -> int:
        return int(exit_code_of(error_from_document({"error": name, "message": "m"})))

    assert {name: code(name) for name in errors.__all__ if code(name) != 1} == {
        "AmbiguousNode": 2,
        "CertificateRejected": 4,
        "ConfigError": 2,
        "DeliveryTimeout": 5,
        "EnrolmentRefused": 4,
        "InsecureKeyFile": 4,
        "InvalidAddress": 2,
        "InvalidMessage": 2,
        "InvalidName": 2,
        "NodeNotRunning": 3,
        "PayloadTooLarge": 2,
        "RequestTimeout": 5,
        "TokenError": 4,
        "TokenExpired": 4,
        "TokenMalformed": 2,
        "TokenUnknown": 4,
        "TokenUsed": 4,
        "TokenWrongNetwork": 4,
        "UnknownAgent": 3,
        "UnknownKey": 3,
        "UnknownLetter": 3,
        "UnknownNode": 3,
        "UnknownState": 3,
    }
