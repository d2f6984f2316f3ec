"""What commands print: one JSON document for programs, a table or a line for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, Final

from .values import plain

#: Wide enough that nothing is cut when the output goes to a file or another program.
_PIPE_WIDTH: Final = 240


def print_json(document: object) -> None:
    """Print one document on one line."""
    print(json.dumps(document, ensure_ascii=False), flush=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Print rows under headings, or ``empty`` if there are none."""
    if not rows:
        print(empty)
        return
    from rich.console import Console  # only people's output needs it
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # Text, never markup: names and payloads come from other nodes.
        table.add_row(*(Text(plain(cell), style=_STYLES.get(str(cell), "")) for cell in row))
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, soft_wrap=False).print(table)


_STYLES: Final[dict[str, str]] = {
    "active": "green",
    "inactive": "yellow",
    "disconnected": "red",
    "maintenance": "blue",
    "error": "red",
    "warning": "yellow",
}


def flattened(document: dict[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    """Nested values as ``a.b`` rows, for tables of counters."""
    rows: list[tuple[str, object]] = []
    for key, value in document.items():
        if isinstance(value, dict):
            rows += flattened(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows
