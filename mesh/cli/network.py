"""Commands about the network: members, status, agents, invite, leave."""

from __future__ import annotations

import time
from typing import Annotated, Final

import typer

from mesh.control.client import ControlClient
from mesh.control.locate import RunningNode
from mesh.errors import RequestTimeout

from .options import AsJson, DataDir, Network, Node, connect, find_node
from .outcome import reported
from .output import flattened, print_json, print_table
from .values import seconds

#: A node that leaves tells its peers, closes its links and removes its files; more than this is a hang.
_LEAVE_S: Final = 30.0


def members(data_dir: DataDir = None, network: Network = None, node_id: Node = None, as_json: AsJson = False) -> None:
    """List the nodes of the network, as the running node knows them.

    Example: mesh members --json
    """
    with reported(as_json=as_json), connect(data_dir, network, node_id) as client:
        nodes = client.call("members")
        if as_json:
            print_json(nodes)
            return
        rows = [
            (
                node["node_id"],
                node["status"],
                f"{node['address']}:{node['port']}" if node["address"] else "-",
                len(node["agent_ids"]),
                _ago(node["last_heartbeat"]),
            )
            for node in nodes
        ]
        print_table(("NODE", "STATUS", "ADDRESS", "AGENTS", "HEARD"), rows, empty="no nodes")


def status(data_dir: DataDir = None, network: Network = None, node_id: Node = None, as_json: AsJson = False) -> None:
    """Show the running node: its name and address, counts of nodes and agents, counters.

    Example: mesh status
    """
    with reported(as_json=as_json), connect(data_dir, network, node_id) as client:
        document = client.call("status")
        if as_json:
            print_json(document)
            return
        node = document["node"]
        counts = ", ".join(f"{count} {state}" for state, count in document["nodes"].items())
        print(f"node {node['node_id']} ({node['status']}) at {node['address']}:{node['port']}, pid {document['pid']}")
        print(f"nodes: {counts or 'none'}; agents: {document['agents']}")
        print_table(("COUNTER", "VALUE"), flattened(document["stats"]), empty="no counters")


def agents(
    capability: Annotated[
        list[str] | None, typer.Option("--capability", "-c", help="Has it; repeat for all of.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", "-t", help="Has it; repeat for all of.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Has exactly this name.")] = None,
    data_dir: DataDir = None,
    network: Network = None,
    node_id: Node = None,
    as_json: AsJson = False,
) -> None:
    """List agents, all or those that fit.

    Example: mesh agents --capability summarize --tag gpu
    """
    with reported(as_json=as_json), connect(data_dir, network, node_id) as client:
        found = client.call("agents", capabilities=capability, tags=tag, name=name)
        if as_json:
            print_json(found)
            return
        rows = [
            (
                agent["agent_id"],
                agent["name"] or "-",
                agent["node_id"],
                ", ".join(agent["capabilities"]) or "-",
                ", ".join(agent["tags"]) or "-",
                agent["version"] or "-",
            )
            for agent in found
        ]
        print_table(("AGENT", "NAME", "NODE", "CAPABILITIES", "TAGS", "VERSION"), rows, empty="no agents")


def invite(
    ttl: Annotated[str, typer.Option("--ttl", help="How long it can be used, e.g. 10m.")] = "10m",
    uses: Annotated[int, typer.Option("--uses", min=1, max=10_000, help="How many nodes may join with it.")] = 1,
    data_dir: DataDir = None,
    network: Network = None,
    node_id: Node = None,
    as_json: AsJson = False,
) -> None:
    """Make a token with which a node on another machine can join once.

    Whoever has it can join until it is used or expired, so pass it on like a password.

    Example: mesh invite --ttl 1h
    """
    with reported(as_json=as_json), connect(data_dir, network, node_id) as client:
        document = client.call("invite", ttl_s=seconds(ttl), uses=uses)
        if as_json:
            print_json(document)
        else:
            print(document["token"])
            typer.echo(f"on the other machine, within {ttl}:  mesh up --join TOKEN", err=True)


def leave(data_dir: DataDir = None, network: Network = None, node_id: Node = None, as_json: AsJson = False) -> None:
    """Make the running node leave the network in order and end.

    Example: mesh leave --node-id planner-1
    """
    with reported(as_json=as_json):
        running = find_node(data_dir, network, node_id)
        with ControlClient(running.socket_path) as client:
            client.call("leave")
            ended = client.wait_closed(_LEAVE_S) and _ends(running)
        if not ended:
            raise RequestTimeout(
                f"node {running.node_id} was told to leave and has not ended after {_LEAVE_S:g} s",
                hint="look at its log, or end its process",
            )
        if as_json:
            print_json({"node_id": running.node_id, "network": running.network, "left": True})
        else:
            print(f"node {running.node_id} has left")


def _ends(running: RunningNode) -> bool:
    deadline = time.monotonic() + _LEAVE_S  # noqa: TID251 - a command waits for another process
    while not running.has_ended():
        if time.monotonic() >= deadline:  # noqa: TID251
            return False
        time.sleep(0.02)
    return True


def _ago(stamp_ms: int) -> str:
    if not stamp_ms:
        return "by hearsay"
    # Another machine's people read this, so wall time is what they compare with.
    elapsed_s = max(0.0, time.time() - stamp_ms / 1000)  # noqa: TID251 - a display, not a decision
    return f"{elapsed_s:.1f} s ago" if elapsed_s < 120 else f"{elapsed_s / 60:.0f} min ago"
