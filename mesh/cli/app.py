"""The command tree.  Functions import what they need when they run."""

from __future__ import annotations

from typing import Final

import typer

from . import messages, network, work
from .up import up

_EPILOG: Final = (
    "Exit codes: 0 ok, 1 failed, 2 usage, 3 no such node or network, 4 not authorised, 5 timed out. "
    "Every command has --json: one document on stdout, logs on stderr."
)

app = typer.Typer(
    name="mesh",
    help="A peer-to-peer mesh for software agents: no server in the middle.",
    epilog=_EPILOG,
    no_args_is_help=True,
    # Errors are ours to tell; a traceback in a box helps nobody who did not write the code.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_RUNNING: Final = "Talk to the running node"
_OWN: Final = "Run and examine"

app.command(rich_help_panel=_OWN)(up)
app.command(rich_help_panel=_OWN)(work.demo)
app.add_typer(work.bench, name="bench", rich_help_panel=_OWN)
app.command(rich_help_panel=_OWN)(work.doctor)
app.command(rich_help_panel=_OWN)(work.version)
for _command in (
    network.members,
    network.status,
    network.agents,
    network.invite,
    messages.send,
    messages.request,
    messages.broadcast,
    messages.listen,
    network.leave,
):
    app.command(rich_help_panel=_RUNNING)(_command)
app.command("discover", rich_help_panel=_RUNNING, help="The same as `mesh agents`.")(network.agents)
