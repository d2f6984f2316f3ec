"""Whole nodes on hosts of their own: `mesh up` in network namespaces on a bridge, as on two machines of a LAN."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import avahi
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from netns import Host, Lan
from printout import Line, Printout
from support import ROOT, require_network_namespaces, require_tools

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(120)]

_MESH = [sys.executable, "-m", "mesh"]
_NAMES = ("ada", "bob", "eve")
_PORT = 7946
#: While nodes enrol they listen here: nobody can remember a useful address from then.
_OTHER_PORT = 7999


class _Node:
    """A running `mesh up` on ``host`` with the data directory ``tree``, and what it printed."""

    def __init__(self, host: Host, name: str, tree: Path, *arguments: str) -> None:
        self.host, self.name = host, name
        self.tree = tree
        # A setting of the machine, such as a bootstrap list, must not help.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MESH_")}
        command = [*_MESH, "up", "--json", "--log-format", "json", "--node-id", name, "--data-dir", str(tree)]
        with self._errors.open("w") as errors:
            self.process = host.start(
                ["env", "-i", *(f"{key}={value}" for key, value in environment.items()), *command, *arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
            )
        self.out = Printout(self.process)

    @property
    def _errors(self) -> Path:
        return self.tree.with_name(f"{self.tree.name}.log")

    @property
    def ready(self) -> Line:
        """The first line."""
        self.out.expect(lambda line: line["event"] == "ready")
        return self.out.lines[0]

    def expect(self, event: str, node: str, *, since: int = 0, timeout_s: float = 30.0) -> float:
        """When it told ``event`` of ``node``."""
        return self.out.expect(
            lambda line: line["event"] == event and line.get("node", {}).get("node_id") == node,
            since=since,
            timeout_s=timeout_s,
        )

    def logs(self, level: str) -> list[Line]:
        """What it has logged at ``level``."""
        lines = [json.loads(line) for line in self._errors.read_text().splitlines()]
        return [line for line in lines if line["level"] == level]

    def command(self, *arguments: str) -> list[str]:
        """A command line that talks to this node."""
        return [*_MESH, *arguments, "--json", "--node-id", self.name, "--data-dir", str(self.tree)]

    def ask(self, *arguments: str) -> Any:
        """What a command that must succeed answers."""
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=30, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def members(self) -> dict[str, tuple[str, str]]:
        """Status and address of each node it knows."""
        return {node["node_id"]: (node["status"], node["address"]) for node in self.ask("members")}

    def listen(self, agent: int, *arguments: str) -> Printout:
        """Run an agent on this node."""
        command = self.command("listen", "--agent", str(agent), *arguments)
        output = Printout(self.host.start(command, stdout=subprocess.PIPE, cwd=ROOT))
        output.expect(lambda line: line.get("listening") == agent)
        return output

    def leave(self) -> None:
        """Leave in order."""
        self.process.terminate()
        assert self.process.wait(15.0) == 0
        self.out.close()
        assert self.logs("error") == []


Start = Callable[..., _Node]


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory each for three nodes of one network: ada is its authority, the others joined with a token.

    All have left in order, so that none remembers where another was.
    """
    require_network_namespaces()
    trees = tmp_path_factory.mktemp("trees")
    listen = ("--no-mdns", "--listen", f"0.0.0.0:{_OTHER_PORT}")
    with Lan() as lan:
        nodes = [_Node(lan.host("ada"), "ada", trees / "ada", *listen)]
        assert nodes[0].ready["address"] == nodes[0].host.address
        token = nodes[0].ask("invite", "--uses", "2")["token"]
        nodes += [_Node(lan.host(name), name, trees / name, *listen, "--join", token) for name in _NAMES[1:]]
        for node in nodes[1:]:
            nodes[0].expect("node_joined", node.name)
        for node in reversed(nodes):
            node.leave()
    for name in _NAMES:
        assert (trees / name / "default" / name / "members.log").read_text().splitlines()[-1] == '["left"]'
    return trees


@pytest.fixture
def lan() -> Iterator[Lan]:
    """A switch; hosts are added by the test, and end with all that runs on them."""
    require_network_namespaces()
    with Lan() as made:
        yield made


@pytest.fixture
def start(enrolled: Path, tmp_path: Path) -> Start:
    """Starts an enrolled node, with a copy of its directory, on a host."""

    def start(host: Host, name: str, *arguments: str) -> _Node:
        tree = tmp_path / name
        if not tree.exists():
            shutil.copytree(enrolled / name, tree)
        return _Node(host, name, tree, *arguments)

    return start


def _meet(lan: Lan, start: Start) -> tuple[_Node, _Node]:
    """Two nodes that were told nothing but their names, and have found each other."""
    a, b = start(lan.host("a"), "ada"), start(lan.host("b"), "bob")
    a.expect("node_joined", "bob")
    b.expect("node_joined", "ada")
    return a, b


def _one_view(*nodes: _Node) -> dict[str, tuple[str, str]]:
    return {node.name: ("active", node.host.address) for node in nodes}


def _wait_for_view(node: _Node, view: dict[str, tuple[str, str]], *, until: float) -> None:
    while (seen := node.members()) != view:
        assert time.monotonic() < until, seen  # no pause: the command takes half a second


def test_two_hosts_meet_by_mdns_alone_and_talk(lan: Lan, start: Start) -> None:
    """Without a token, a bootstrap list or a common directory each finds the other's real address."""
    a, b = _meet(lan, start)
    for node in (a, b):
        host = node.host.address
        assert (node.ready["address"], node.ready["addresses"]) == (host, [f"{host}:{_PORT}"])
        assert node.members() == _one_view(a, b)
    listener = b.listen(7, "--reply", "pong")
    a.out.expect(lambda line: line["event"] == "agent_joined" and line["agent"]["agent_id"] == 7)
    assert a.ask("send", "7", "hello", "--ack")["status"] == "delivered"
    listener.expect(lambda line: line.get("text") == "hello" and line["from_node"] == "ada")
    assert a.ask("request", "7", "ping")["text"] == "pong"
    b.leave()
    a.expect("node_left", "bob")
    a.leave()
    assert a.logs("warning") == b.logs("warning") == []


def test_avahi_sees_both_hosts(lan: Lan, start: Start) -> None:
    """A third host that runs Avahi resolves each node's service to its address, with the TXT record as specified."""
    avahi.require_avahi()
    a, b = _meet(lan, start)
    certificate = x509.load_pem_x509_certificate((a.tree / "default" / "ca" / "ca.crt").read_bytes())
    authority = certificate.fingerprint(hashes.SHA256()).hex()[:32]
    wanted = {"ada", "bob"}
    for seen in avahi.browse(lan.host("c")):
        name = seen.instance.split("-")[0]
        node = {"ada": a, "bob": b}[name]
        assert (seen.address, seen.port) == (node.host.address, _PORT)
        assert seen.txt >= {"v=1", "net=default", f"id={name}", f"port={_PORT}", f"fp={authority}"}
        wanted.discard(name)
        if not wanted:
            break
    assert not wanted
    a.leave()
    b.leave()


def test_a_cut_cable_is_noticed_and_mends_by_itself(lan: Lan, start: Start) -> None:
    """Both sides see the other fail, and are one network again without a restart."""
    require_tools("nft")
    a, b = _meet(lan, start)
    marks = [len(node.out.lines) for node in (a, b)]
    cut_at = time.monotonic()
    lan.partition([a.host], [b.host])
    for node, other, mark in ((a, b, marks[0]), (b, a, marks[1])):
        assert node.expect("node_failed", other.name, since=mark) - cut_at < 10.0
    assert a.members()["bob"][0] == "disconnected"
    marks = [len(node.out.lines) for node in (a, b)]
    healed_at = time.monotonic()
    lan.heal()
    for node, other, mark in ((a, b, marks[0]), (b, a, marks[1])):
        assert node.expect("node_joined", other.name, since=mark) - healed_at < 30.0
        _wait_for_view(node, _one_view(a, b), until=healed_at + 30.0)
    a.leave()
    b.leave()


def test_a_killed_node_is_noticed_and_comes_back(lan: Lan, start: Start) -> None:
    """kill -9 is seen in five seconds; started again the node is found again."""
    a, b = _meet(lan, start)
    mark = len(a.out.lines)
    killed_at = time.monotonic()
    b.process.kill()
    assert a.expect("node_failed", "bob", since=mark) - killed_at < 5.0
    b.process.wait(5.0)
    b.out.close()
    mark = len(a.out.lines)
    b = start(b.host, "bob")
    a.expect("node_joined", "bob", since=mark)
    assert a.members() == _one_view(a, b)
    a.leave()
    b.leave()


def _join_by_bootstrap(lan: Lan, start: Start, forbid: Callable[[Host], None]) -> list[Line]:
    """Two nodes of which one was told of the other, and cannot use mDNS; the warnings that it logs."""
    require_tools("nft")
    a, c = start(lan.host("a"), "ada"), lan.host("c")
    forbid(c)
    e = start(c, "eve", "--bootstrap", f"wss://{a.ready['addresses'][0]}")
    a.expect("node_joined", "eve")
    e.expect("node_joined", "ada")
    for node in (a, e):
        assert node.members() == _one_view(a, e)
    e.leave()
    a.leave()
    return e.logs("warning")


def test_a_host_that_may_not_multicast_joins_through_the_bootstrap_list(lan: Lan, start: Start) -> None:
    """Forbidden multicast is a warning that says what is used instead, and never an error."""
    rules = "table inet cloud {\n chain out {\n  type filter hook output priority 0; udp dport 5353 drop;\n }\n}\n"
    warnings = _join_by_bootstrap(lan, start, lambda host: host.nft(rules))
    assert [line["event"] for line in warnings] == ["mdns unavailable"]
    assert "bootstrap list" in warnings[0]["effect"]


def test_a_switch_that_swallows_multicast_hinders_nobody(lan: Lan, start: Start) -> None:
    """No host can tell that from having no neighbours, so there is nothing to warn of; the bootstrap list works."""
    rules = "table bridge cloud {\n chain cut {\n  type filter hook forward priority 0; udp dport 5353 drop;\n }\n}\n"
    assert _join_by_bootstrap(lan, start, lambda _: lan.nft(rules)) == []
