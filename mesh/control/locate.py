"""Which running node a command means.

A node is running when its control socket accepts.  What is left out may be anything: the only node in the tree is
chosen without being named, several are listed for the user to choose from.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mesh.errors import AmbiguousNode, MeshError, NodeNotRunning
from transport.identity.datadir import control_socket_path, known_networks, known_nodes
from transport.identity.files import try_lock
from transport.types import NetworkName, NodeId

#: A local socket accepts at once or not at all.
_PROBE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class RunningNode:
    """A node whose control socket accepts."""

    network: NetworkName
    node_id: NodeId
    directory: Path
    socket_path: Path

    def has_ended(self) -> bool:
        """Whether its process has given the node's directory up, which is the last thing it does."""
        lock = try_lock(self.directory / "lock")
        if lock is None:
            return False
        os.close(lock)
        return True


def running_nodes(
    data_dir: Path, network: NetworkName | None = None, node_id: NodeId | None = None
) -> list[RunningNode]:
    """The nodes that run in this tree, in the order of their names, limited to what is named."""
    found = []
    for each_network in [network] if network is not None else known_networks(data_dir):
        for each_node in [node_id] if node_id is not None else known_nodes(data_dir, each_network):
            try:
                path = control_socket_path(data_dir, each_network, each_node)
            except MeshError:
                continue  # a reserved name, or a fallback directory that is not ours: nothing of ours runs there
            if accepts(path):
                found.append(RunningNode(each_network, each_node, data_dir / each_network / each_node, path))
    return found


def choose_node(data_dir: Path, network: NetworkName | None = None, node_id: NodeId | None = None) -> RunningNode:
    """The one running node that fits.

    Raises:
        NodeNotRunning: There is none; says how to start one.
        AmbiguousNode: There are several; lists them.
    """
    found = running_nodes(data_dir, network, node_id)
    if len(found) == 1:
        return found[0]
    named = "".join(
        [
            f" called {node_id!r}" if node_id is not None else "",
            f" of network {network!r}" if network is not None else "",
        ]
    )
    if not found:
        elsewhere = running_nodes(data_dir) if named else []
        raise NodeNotRunning(
            f"no node{named} runs in {data_dir}",
            hint=f"running there: {_listed(elsewhere)}"
            if elsewhere
            else "start one with `mesh up`, or give --data-dir",
        )
    raise AmbiguousNode(
        f"{len(found)} nodes{named} run in {data_dir}: {_listed(found)}", hint="choose one with --node-id or --network"
    )


def _listed(nodes: list[RunningNode]) -> str:
    shown = [f"{node.node_id} ({node.network})" for node in nodes[:20]]
    return ", ".join([*shown, f"and {len(nodes) - 20} more"] if len(nodes) > 20 else shown)


def accepts(path: Path) -> bool:
    """Whether a process listens at ``path``; a socket file that a killed node left does not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
