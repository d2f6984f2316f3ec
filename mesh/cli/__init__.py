"""The command line.  Nothing is imported before it is needed, so that a command starts fast."""

from __future__ import annotations


def main() -> None:
    """Run the ``mesh`` command with the arguments of this process; does not return."""
    from .app import app  # typer alone costs more than `mesh.cli` itself

    app(prog_name="mesh")
