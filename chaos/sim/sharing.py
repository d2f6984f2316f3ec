"""Equal members share one object while a simulation runs.

Every node keeps the whole member table.  Decoded anew at each node, ten thousand tables of ten thousand members take
37 GB; with members shared, two to three.  Members are frozen, so nobody can tell the difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from gossip import codec
from gossip.events import Member

#: Different members that are kept; when there are more, sharing starts anew.
_MEMBERS_MAX: Final = 1 << 20


@contextmanager
def shared_members() -> Iterator[None]:
    """Let :mod:`gossip.codec` hand out the same object for equal members."""
    known: dict[tuple[Any, ...], Member] = {}

    def member(*fields: Any) -> Member:
        found = known.get(fields)
        if found is None:
            if len(known) >= _MEMBERS_MAX:
                known.clear()
            found = known[fields] = Member(*fields)
        return found

    names = vars(codec)
    original = names["Member"]
    names["Member"] = member
    try:
        yield
    finally:
        names["Member"] = original
