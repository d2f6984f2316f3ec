"""Commands about the documents that the running node replicates."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from .options import AsJson, DataDir, Network, Node, Timeout, connect
from .outcome import reported
from .output import print_json, print_table
from .values import plain, seconds

_CHARS_SHOWN = 100

Name = Annotated[str, typer.Argument(metavar="DOCUMENT", help="Name of the document; it is made if it is new.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="Key in the document's own map.")]

doc = typer.Typer(
    help="Replicated documents: read and write the running node's replicas.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@doc.command("list")
def list_documents(
    data_dir: DataDir = None, network: Network = None, node_id: Node = None, as_json: AsJson = False
) -> None:
    """Show the documents that the node replicates.

    Example: mesh doc list --json
    """
    with reported(as_json=as_json), connect(data_dir, network, node_id) as client:
        documents = client.call("documents")
        if as_json:
            print_json(documents)
            return
        rows = [(plain(one["document"]), one["entries"], plain(", ".join(one["replicas"]))) for one in documents]
        print_table(("document", "entries", "also on"), rows, empty="no documents")


@doc.command()
def get(
    document: Name,
    key: Annotated[str | None, typer.Argument(metavar="[KEY]", help="One key; default: all of them.")] = None,
    timeout: Timeout = "5s",
    data_dir: DataDir = None,
    network: Network = None,
    node_id: Node = None,
    as_json: AsJson = False,
) -> None:
    """Print a document's own map, or one value of it as JSON.

    Example: mesh doc get board title
    """
    with reported(as_json=as_json), connect(data_dir, network, node_id) as client:
        found = client.call("document_get", timeout_s=seconds(timeout), document=document, key=key)
        if as_json:
            print_json(found)
        elif key is not None:
            print(_shown(found["value"]))
        else:
            rows = [(plain(one), _shown(value)[:_CHARS_SHOWN]) for one, value in sorted(found["values"].items())]
            print_table(("key", "value"), rows, empty="the document is empty")


@doc.command("set")
def set_value(
    document: Name,
    key: Key,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="JSON; what is not JSON is taken as text.")],
    as_text: Annotated[bool, typer.Option("--text", help="Take the value as text even if it is JSON.")] = False,
    timeout: Timeout = "5s",
    data_dir: DataDir = None,
    network: Network = None,
    node_id: Node = None,
    as_json: AsJson = False,
) -> None:
    """Set a key, and return when that is on the node's disk.

    Example: mesh doc set board limits '{"cpu": 2}'
    """
    with reported(as_json=as_json), connect(data_dir, network, node_id) as client:
        parsed = value if as_text else _parsed(value)
        done = client.call("document_set", timeout_s=seconds(timeout), document=document, key=key, value=parsed)
        if as_json:
            print_json(done)
        else:
            print(f"set {plain(repr(key))} of {plain(repr(document))}")


@doc.command()
def delete(
    document: Name,
    key: Key,
    timeout: Timeout = "5s",
    data_dir: DataDir = None,
    network: Network = None,
    node_id: Node = None,
    as_json: AsJson = False,
) -> None:
    """Delete a key, and return when that is on the node's disk.

    Example: mesh doc delete board title
    """
    with reported(as_json=as_json), connect(data_dir, network, node_id) as client:
        done = client.call("document_delete", timeout_s=seconds(timeout), document=document, key=key)
        if as_json:
            print_json(done)
        else:
            print(f"deleted {plain(repr(key))} of {plain(repr(document))}")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _shown(value: Any) -> str:
    """A value on one line of a terminal."""
    return plain(json.dumps(value, ensure_ascii=False))
