"""Commands about dead letters: durable messages that the running node gave up."""

from __future__ import annotations

from typing import Annotated

import typer

from .messages import Deadline
from .options import AsJson, DataDir, Network, Node, Timeout, connect
from .outcome import reported
from .output import print_json, print_table
from .values import plain, seconds, shown_payload

_CHARS_SHOWN = 60

LetterId = Annotated[
    str, typer.Argument(metavar="LETTER", help="Id of the dead letter, from `mesh dead-letters list`.")
]

dead_letters = typer.Typer(
    help="Durable messages that the running node gave up: expired, or failed too often. Alone: list them.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)


@dead_letters.callback()
def _default(
    context: typer.Context,
    data_dir: DataDir = None,
    network: Network = None,
    node_id: Node = None,
    as_json: AsJson = False,
) -> None:
    if context.invoked_subcommand is None:
        list_letters(data_dir, network, node_id, as_json)


@dead_letters.command("list")
def list_letters(
    data_dir: DataDir = None, network: Network = None, node_id: Node = None, as_json: AsJson = False
) -> None:
    """Show them, the oldest first.

    Example: mesh dead-letters list --json
    """
    with reported(as_json=as_json), connect(data_dir, network, node_id) as client:
        letters = list(client.stream("dead_letters"))
        if as_json:
            print_json(letters)
            return
        rows = [
            (
                letter["letter_id"],
                letter["reason"],
                letter["message"]["from_agent"],
                letter["message"]["to_agent"],
                letter["failures"],
                letter["detail"][:_CHARS_SHOWN],
                shown_payload(letter["message"])[:_CHARS_SHOWN],
            )
            for letter in letters
        ]
        print_table(("letter", "reason", "from", "to", "failures", "detail", "payload"), rows, empty="no dead letters")


@dead_letters.command()
def replay(
    letter: LetterId,
    deadline: Deadline = None,
    timeout: Timeout = "5s",
    data_dir: DataDir = None,
    network: Network = None,
    node_id: Node = None,
    as_json: AsJson = False,
) -> None:
    """Send one once more, as a new durable message.

    Example: mesh dead-letters replay 120364871520257
    """
    with reported(as_json=as_json), connect(data_dir, network, node_id) as client:
        receipt = client.call(
            "replay",
            timeout_s=seconds(timeout),
            letter=letter,
            deadline_s=seconds(deadline) if deadline is not None else None,
        )
        if as_json:
            print_json(receipt)
        else:
            print(f"stored as {plain(receipt['message_id'])}")


@dead_letters.command()
def drop(
    letter: LetterId,
    data_dir: DataDir = None,
    network: Network = None,
    node_id: Node = None,
    as_json: AsJson = False,
) -> None:
    """Forget one.

    Example: mesh dead-letters drop 120364871520257
    """
    with reported(as_json=as_json), connect(data_dir, network, node_id) as client:
        done = client.call("drop", letter=letter)
        if as_json:
            print_json(done)
        else:
            print(f"dropped {plain(done['dropped'])}")
