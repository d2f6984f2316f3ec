"""The command tree.  Functions import what they need when they run."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Final

import typer
from typer.core import TyperGroup

from . import documents, letters, messages, network, work
from .up import up

if TYPE_CHECKING:
    from typer import _click

_EPILOG: Final = (
    "Exit codes: 0 ok, 1 failed, 2 usage, 3 no such node or network, 4 not authorised, 5 timed out. "
    "Every command has --json: one document on stdout, logs on stderr."
)

#: Packages above this one, and other distributions, add commands here: an entry point's name is the command's, its
#: object the command's function or a Typer with sub-commands.
COMMANDS_GROUP: Final = "peermesh.commands"


class _Commands(TyperGroup):
    """Our own commands, then those that entry points add; looking for them costs nothing until one is needed."""

    def list_commands(self, ctx: _click.Context) -> list[str]:
        """All names, for help."""
        own = super().list_commands(ctx)
        return [*own, *(name for name in sorted(_added()) if name not in own)]

    def get_command(self, ctx: _click.Context, cmd_name: str) -> _click.Command | None:
        """The command of that name; ours win."""
        own = super().get_command(ctx, cmd_name)
        if own is not None or (added := _added().get(cmd_name)) is None:
            return own
        found = added.load()
        single = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=self.rich_markup_mode)
        if isinstance(found, typer.Typer):
            single = found
        else:
            single.command(cmd_name, rich_help_panel=_OWN)(found)
        command = typer.main.get_command(single)
        command.name = cmd_name
        return command


def _added() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=COMMANDS_GROUP)}


app = typer.Typer(
    name="mesh",
    cls=_Commands,
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
    messages.publish,
    messages.listen,
    network.leave,
):
    app.command(rich_help_panel=_RUNNING)(_command)
app.add_typer(letters.dead_letters, name="dead-letters", rich_help_panel=_RUNNING)
app.add_typer(documents.doc, name="doc", rich_help_panel=_RUNNING)
app.command("discover", rich_help_panel=_RUNNING, help="The same as `mesh agents`.")(network.agents)
