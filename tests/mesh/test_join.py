"""``join_network`` is one call that can be awaited or entered."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh import join as join_module
from mesh.config import MeshConfig
from mesh.errors import ConfigError
from mesh.join import Joining, join_network
from mesh.types import AgentNode
from transport.types import Address


class FakeManager:
    """What a manager does for joining and leaving."""

    made: list[FakeManager]

    def __init__(self, config: MeshConfig, *, admit: Callable[[AgentNode], bool] | None = None) -> None:
        self.config = config
        self.admit = admit
        self.calls: list[str] = []
        FakeManager.made.append(self)

    async def start(self) -> FakeManager:
        self.calls.append("start")
        if self.config.node_id == "broken":
            raise OSError("cannot start")
        return self

    async def leave_network(self) -> None:
        self.calls.append("leave")


@pytest.fixture(autouse=True)
def managers(monkeypatch: pytest.MonkeyPatch) -> list[FakeManager]:
    """Every manager that is made, none of them real."""
    FakeManager.made = []
    monkeypatch.setattr(join_module, "AgentNetworkManager", FakeManager)
    return FakeManager.made


async def test_awaiting_starts_a_node(managers: list[FakeManager], tmp_path: Path) -> None:
    """The awaited value is the started manager; leaving is the caller's business."""
    net: object = await join_network(node_id="n", data_dir=tmp_path)

    assert net is managers[0]
    assert managers[0].calls == ["start"]


async def test_entering_starts_and_leaving_leaves(managers: list[FakeManager]) -> None:
    """The block's end leaves the network, also when the block raises."""
    with pytest.raises(KeyError):
        async with join_network(node_id="n"):
            assert managers[0].calls == ["start"]
            raise KeyError

    assert managers[0].calls == ["start", "leave"]


async def test_a_node_that_does_not_start_is_not_left(managers: list[FakeManager]) -> None:
    """The error of the start comes out, and there is nothing to leave."""
    joining = join_network(node_id="broken")
    with pytest.raises(OSError, match="cannot start"):
        async with joining:
            pytest.fail("the block must not run")
    await joining.__aexit__(None, None, None)

    assert managers[0].calls == ["start"]


def test_nothing_happens_before_it_is_awaited(managers: list[FakeManager]) -> None:
    """Calling it only checks the settings."""
    assert isinstance(join_network(node_id="n"), Joining)
    assert managers == []


def test_a_wrong_setting_is_refused_at_once() -> None:
    """Settings are checked by the call itself, so that the error points at it."""
    with pytest.raises(ConfigError):
        join_network(node_id="Not A Label")
    with pytest.raises(ConfigError):
        join_network(lisen="0.0.0.0:1")


async def test_arguments_reach_the_configuration(managers: list[FakeManager], tmp_path: Path) -> None:
    """What is given wins over the defaults; what is not given is left to them."""

    def admit(node: AgentNode) -> bool:
        return node.node_id != "x"

    await join_network(
        ["wss://10.0.0.5:7946", Address("10.0.0.6", 1)],
        node_id="n",
        network="net",
        mdns=False,
        listen="127.0.0.1:0",
        data_dir=tmp_path,
        messages={"request_timeout_s": 2.5},
        admit=admit,
    )
    config = managers[0].config
    assert managers[0].admit is admit

    assert list(config.bootstrap) == [Address("10.0.0.5", 7946), Address("10.0.0.6", 1)]
    assert (config.node_id, config.network, config.mdns, config.data_dir) == ("n", "net", False, tmp_path)
    assert config.listen == Address("127.0.0.1", 0)
    assert config.messages.request_timeout_s == 2.5


def test_the_signature_is_a_promise() -> None:
    """The names of the arguments are fixed; only the bootstrap list may be given by position."""
    parameters = inspect.signature(join_network).parameters

    assert list(parameters) == [
        *("bootstrap", "node_id", "network", "mdns", "listen", "data_dir", "join_token", "config", "admit"),
        "settings",
    ]
    assert all(p.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD for p in list(parameters.values())[1:])
