"""What changed in a document, for those who watch it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from state.clocks.vectors import Writer
from state.guards.values import Value

from .names import Name
from .splices import Splice


@dataclass(frozen=True, slots=True)
class Change:
    """What one transaction did to one container."""

    container: Name
    writer: Writer
    """Who did it."""
    local: bool
    """Whether it was done through this replica."""
    keys: tuple[str, ...] = ()
    """Of a map: which entries were set or deleted.  Empty for other containers: read their value."""
    splices: tuple[Splice[str] | Splice[list[Value]], ...] = ()
    """Of a text or array: what was removed and inserted where, in order; indices count characters or items."""


@dataclass(frozen=True, slots=True)
class ChangesLost:
    """The watcher was slower than the changes for too long: read the document anew."""

    count: int


DocumentEvent: TypeAlias = Change | ChangesLost
