"""``join_network``: one call that is both awaitable and an asynchronous context manager."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from transport.types import Address

from .config import MeshConfig
from .manager import AgentNetworkManager
from .types import AgentNode


class Joining:
    """The pending result of :func:`join_network`: ``await`` it, or enter it with ``async with``."""

    def __init__(self, config: MeshConfig, admit: Callable[[AgentNode], bool] | None) -> None:
        self._config = config
        self._admit = admit
        self._manager: AgentNetworkManager | None = None

    def __await__(self) -> Generator[Any, None, AgentNetworkManager]:
        return AgentNetworkManager(self._config, admit=self._admit).start().__await__()

    async def __aenter__(self) -> AgentNetworkManager:
        self._manager = await self
        return self._manager

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._manager is not None:
            await self._manager.leave_network()


def join_network(
    bootstrap: Sequence[str | Address] | None = None,
    *,
    node_id: str | None = None,
    network: str | None = None,
    mdns: bool | None = None,
    listen: str | Address | None = None,
    data_dir: str | Path | None = None,
    join_token: str | None = None,
    config: MeshConfig | str | Path | None = None,
    admit: Callable[[AgentNode], bool] | None = None,
    **settings: Any,
) -> Joining:
    """Join a network, creating it if this is its first node on this machine.

    Every argument that is not given comes from ``config``, the environment (``MESH_*``) or the defaults.

    Args:
        bootstrap: Addresses to try first; nodes are also found by mDNS and in the shared data directory.
        node_id: This node's name; default: host name plus a short suffix, kept in ``data_dir``.
        network: The network's name; default ``"default"``.
        mdns: Announce and look for nodes on the local network; default ``True``.
        listen: Where to listen; default ``"0.0.0.0:7946"``.  Port 0: the system picks one.
        data_dir: The tree that the nodes of one machine share.
        join_token: From ``mesh invite``, for the first join from another machine or data directory.
        config: A :class:`MeshConfig`, or the path of a TOML file.
        admit: Asked about each node that is not known yet, besides the certificate that it must have; ``False`` keeps
            it out of this node's view and closes its link.  Plain and quick: it is called on the event loop.
        **settings: Any other field of :class:`MeshConfig`.

    Returns:
        Something to ``await`` for an :class:`AgentNetworkManager`, or to use with ``async with``.

    Raises:
        ConfigError: A setting cannot be used (at once); every other error comes when it is awaited.
    """
    return Joining(
        MeshConfig.load(
            config,
            bootstrap=None if bootstrap is None else tuple(bootstrap),
            node_id=node_id,
            network=network,
            mdns=mdns,
            listen=listen,
            data_dir=data_dir,
            join_token=join_token,
            **settings,
        ),
        admit,
    )
