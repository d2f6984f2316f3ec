"""``mesh up``: runs a node in the foreground until it is told to leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .outcome import ExitCode, reported
from .values import plain

if TYPE_CHECKING:
    from mesh.config import MeshConfig
    from mesh.events import MeshEvent
    from mesh.manager import AgentNetworkManager


def up(
    node_id: Annotated[str | None, typer.Option("--node-id", help="Name of this node. [env: MESH_NODE_ID]")] = None,
    network: Annotated[str | None, typer.Option("--network", help="Name of the network. [env: MESH_NETWORK]")] = None,
    listen: Annotated[str | None, typer.Option("--listen", help="HOST:PORT; port 0: any. [env: MESH_LISTEN]")] = None,
    advertise: Annotated[list[str] | None, typer.Option("--advertise", help="Where peers dial; repeatable.")] = None,
    bootstrap: Annotated[list[str] | None, typer.Option("--bootstrap", help="Node to try first; repeatable.")] = None,
    no_mdns: Annotated[bool, typer.Option("--no-mdns", help="Neither announce nor look on the local network.")] = False,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Tree that the nodes here share. [env: MESH_DATA_DIR]")
    ] = None,
    join: Annotated[
        str | None,
        typer.Option("--join", metavar="TOKEN", help="From `mesh invite`; - reads standard input, out of sight of ps."),
    ] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="Timings: local, lan or wan.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="TOML file. [env: MESH_CONFIG]")] = None,
    log_level: Annotated[str | None, typer.Option("--log-level", help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option("--log-format", help="auto, console or json.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one event a line, as JSON; the first is ready.")
    ] = False,
) -> None:
    """Run a node until Ctrl-C or SIGTERM, then leave in order; a second signal ends it at once.

    Example: mesh up --node-id planner-1 --bootstrap wss://10.0.0.5:7946
    """
    with reported(as_json=as_json):
        from mesh.config import MeshConfig  # brings the layers below with it, which no other command needs
        from mesh.logs import configure_logging

        logs = {key: value for key, value in (("level", log_level), ("format", log_format)) if value is not None}
        settings = MeshConfig.load(
            config,
            node_id=node_id,
            network=network,
            listen=listen,
            advertise=advertise or None,
            bootstrap=bootstrap or None,
            mdns=False if no_mdns else None,
            data_dir=data_dir,
            join_token=sys.stdin.readline().strip() if join == "-" else join,
            preset=preset,
            logs=logs or None,
        )
        stop_logging = configure_logging(settings.logs.level, settings.logs.format)
        try:
            code = asyncio.run(_run(settings, as_json=as_json))
        finally:
            stop_logging()
        raise typer.Exit(code)


async def _run(config: MeshConfig, *, as_json: bool) -> ExitCode:
    """Start, print what happens, leave."""
    from mesh.manager import AgentNetworkManager  # the node itself; only here

    stop = asyncio.Event()
    with _signals(stop):
        manager = AgentNetworkManager(config)
        events = manager.events()  # now: the first members may be met before the start is over
        starting = asyncio.ensure_future(manager.start())
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
                return ExitCode.OK
            await starting
            try:
                await _serve(manager, config, events, stop, as_json=as_json)
            finally:
                await manager.leave_network()
        finally:
            stopping.cancel()
            await asyncio.gather(stopping, return_exceptions=True)
    return ExitCode.OK


async def _serve(
    net: AgentNetworkManager,
    config: MeshConfig,
    events: AsyncIterator[MeshEvent],
    stop: asyncio.Event,
    *,
    as_json: bool,
) -> None:
    """Print ``events`` until ``stop``, or until the node is over: by itself, or because `mesh leave` said so."""
    from mesh.logs import bind_node

    node = net.node
    bind_node(network=config.network, node_id=node.node_id)
    watchers: set[asyncio.Future[Any]] = set()
    try:
        if as_json:
            await _print(json.dumps(_ready(net, config)))
        else:
            await _print(f"node {node.node_id} of network {config.network} is up at {node.address}:{node.port}")
            await _print("Ctrl-C leaves in order")
        watchers = {
            asyncio.ensure_future(stop.wait()),
            asyncio.ensure_future(net.wait_closed()),
            asyncio.ensure_future(_follow(events, node.node_id, as_json=as_json)),
        }
        done, _ = await asyncio.wait(watchers, return_when=asyncio.FIRST_COMPLETED)
        for watcher in done:
            await watcher  # raises what ended the node, if something did
    finally:
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)


def _ready(net: AgentNetworkManager, config: MeshConfig) -> dict[str, object]:
    node = net.node
    return {
        "event": "ready",
        "node_id": node.node_id,
        "address": node.address,
        "port": node.port,
        "pid": os.getpid(),
        "network": config.network,
        "addresses": [str(address) for address in net.addresses],
    }


async def _follow(events: AsyncIterator[MeshEvent], own: str, *, as_json: bool) -> None:
    from mesh.control.values import event_document
    from mesh.events import NodeJoined

    async for event in events:
        if isinstance(event, NodeJoined) and event.node.node_id == own:
            continue  # which is what was printed first
        document = event_document(event)
        await _print(json.dumps(document, ensure_ascii=False) if as_json else _told(document))
    await asyncio.Event().wait()  # the node is over; `wait_closed` says why


def _told(document: dict[str, Any]) -> str:
    """An event for people."""
    what = document["event"].replace("_", " ")
    if "node" in document:
        node = document["node"]
        at = f" at {node['address']}:{node['port']}" if node["address"] and document["event"] == "node_joined" else ""
        return f"{what}: {plain(node['node_id'])}{at}"
    if "agent" in document:
        agent = document["agent"]
        name = f" ({plain(agent['name'])})" if agent["name"] else ""
        return f"{what}: {agent['agent_id']}{name} on {plain(agent['node_id'])}"
    return f"{what}: {document.get('count', '')}"


async def _print(line: str) -> None:
    """Print without holding up the loop: whoever reads stdout may have paused.

    Raises:
        BrokenPipeError: Nobody reads any more.
    """
    await asyncio.to_thread(_write_line, line)


def _write_line(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    """The first signal asks to leave, the second ends the process."""
    loop = asyncio.get_running_loop()

    def handle() -> None:
        if stop.is_set():
            # Others see a lost link and detect the failure; whoever signals twice wants that.
            os._exit(ExitCode.INTERRUPTED)
        stop.set()

    caught = (signal.SIGINT, signal.SIGTERM)
    for number in caught:
        loop.add_signal_handler(number, handle)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
