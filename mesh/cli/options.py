"""Options that several commands share, and how they choose the running node."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mesh.control.client import ControlClient
    from mesh.control.locate import RunningNode

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", envvar="MESH_DATA_DIR", show_envvar=True, help="Tree that the nodes here share."),
]
Network = Annotated[str | None, typer.Option("--network", envvar="MESH_NETWORK", help="Name of the network.")]
Node = Annotated[str | None, typer.Option("--node-id", envvar="MESH_NODE_ID", help="Name of the node.")]
Timeout = Annotated[str, typer.Option("--timeout", help="How long to wait, e.g. 5s.")]
FromAgent = Annotated[int, typer.Option("--from-agent", min=0, help="Id to send as; 0 is nobody in particular.")]


def find_node(data_dir: Path | None, network: str | None, node_id: str | None) -> RunningNode:
    """The running node that a command means.

    Raises:
        NodeNotRunning: There is none.
        AmbiguousNode: There are several.
        InvalidName: A name cannot be one.
        ConfigError: The file that ``MESH_CONFIG`` names cannot be used.
    """
    from mesh.control.locate import choose_node
    from transport.identity.datadir import default_data_dir
    from transport.types import network_name
    from transport.types import node_id as checked_node_id

    if os.environ.get("MESH_CONFIG"):
        from mesh.config import MeshConfig  # brings the layers below with it, and only the file needs it

        config = MeshConfig.load(data_dir=data_dir, network=network, node_id=node_id)
        data_dir, network, node_id = config.data_dir, str(config.network), config.node_id
    return choose_node(
        data_dir.expanduser() if data_dir is not None else default_data_dir(),
        network_name(network) if network is not None else None,
        checked_node_id(node_id) if node_id is not None else None,
    )


def connect(data_dir: Path | None, network: str | None, node_id: str | None) -> ControlClient:
    """A connection to the running node that a command means; see :func:`find_node`."""
    from mesh.control.client import ControlClient

    return ControlClient(find_node(data_dir, network, node_id).socket_path)
