"""Commands that run something of their own: demo, bench, doctor, version."""

from __future__ import annotations

import importlib
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import AsJson, DataDir, Network, Node
from .outcome import ExitCode, reported
from .output import flattened, print_json, print_table
from .values import seconds

bench = typer.Typer(
    help="Measure this machine: two processes, mutual TLS, through the public API.", no_args_is_help=True
)


def demo(
    nodes: Annotated[int, typer.Option("--nodes", min=2, max=64, help="How many processes.")] = 4,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the files for a look.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start real nodes on this machine, let them talk, kill one, show what the others saw, and clean up.

    Example: mesh demo --nodes 8
    """
    with reported(as_json=as_json):
        run = importlib.import_module("mesh.demo").run  # starts processes; nothing else needs it
        raise typer.Exit(int(run(nodes=nodes, as_json=as_json, keep=keep)))


@bench.command()
def throughput(
    duration: Annotated[str, typer.Option("--duration", help="How long to send, e.g. 5s.")] = "5s",
    payload_bytes: Annotated[int, typer.Option("--payload-bytes", min=1, max=1024 * 1024)] = 256,
    as_json: AsJson = False,
) -> None:
    """Messages per second one way between two processes.

    Example: mesh bench throughput --duration 10s
    """
    _bench("run_throughput", as_json=as_json, duration=duration, payload_bytes=payload_bytes)


@bench.command()
def latency(
    duration: Annotated[str, typer.Option("--duration", help="How long to measure, e.g. 5s.")] = "5s",
    payload_bytes: Annotated[int, typer.Option("--payload-bytes", min=1, max=1024 * 1024)] = 256,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, max=4096, help="Requests under way at once.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Round trip of a request between two processes.

    Example: mesh bench latency --concurrency 64
    """
    _bench("run_latency", as_json=as_json, duration=duration, payload_bytes=payload_bytes, concurrency=concurrency)


def _bench(name: str, *, as_json: bool, duration: str, **arguments: Any) -> None:
    with reported(as_json=as_json):
        run = getattr(importlib.import_module("mesh.bench"), name)
        document: dict[str, Any] = run(duration_s=seconds(duration), **arguments)
        if as_json:
            print_json(document)
        else:
            print_table(("FIGURE", "VALUE"), flattened(document), empty="nothing was measured")


def doctor(
    bootstrap: Annotated[list[str] | None, typer.Option("--bootstrap", help="Seed to try; repeatable.")] = None,
    listen: Annotated[str | None, typer.Option("--listen", help="HOST:PORT that a node shall have.")] = None,
    no_mdns: Annotated[bool, typer.Option("--no-mdns", help="Leave multicast out.")] = False,
    data_dir: DataDir = None,
    network: Network = None,
    node_id: Node = None,
    config: Annotated[Path | None, typer.Option("--config", help="TOML file. [env: MESH_CONFIG]")] = None,
    as_json: AsJson = False,
) -> None:
    """Look for what keeps a node from running or joining, and say how to mend it.

    Exit code 1 when something is wrong; warnings alone are 0.

    Example: mesh doctor --bootstrap wss://10.0.0.5:7946
    """
    with reported(as_json=as_json):
        from mesh.config import MeshConfig
        from mesh.doctor import Severity, examine

        settings = MeshConfig.load(
            config,
            bootstrap=bootstrap or None,
            listen=listen,
            mdns=False if no_mdns else None,
            data_dir=data_dir,
            network=network,
            node_id=node_id,
        )
        findings = examine(settings)
        failed = any(finding.severity is Severity.ERROR for finding in findings)
        if as_json:
            print_json({"ok": not failed, "findings": [finding.document() for finding in findings]})
        else:
            for finding in findings:
                print(f"{finding.severity.value}: {finding.what} [{finding.check}]")
                if finding.why:
                    print(f"    {finding.why}")
                if finding.fix:
                    print(f"    fix: {finding.fix}")
            problems = sum(finding.severity is not Severity.OK for finding in findings)
            print("nothing wrong was found" if not problems else f"{problems} finding{'s'[: problems != 1]}")
        raise typer.Exit(ExitCode.FAILED if failed else ExitCode.OK)


def version(as_json: AsJson = False) -> None:
    """Print the version.

    Example: mesh version --json
    """
    number = installed_version()
    if as_json:
        print_json({"version": number, "python": platform.python_version(), "system": platform.system()})
    else:
        print(f"peermesh {number} (Python {platform.python_version()})")


def installed_version() -> str:
    """The version of the installed distribution; ``0+source`` in a checkout that is not installed."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    try:
        return version_of("peermesh")
    except PackageNotFoundError:
        return "0+source"
