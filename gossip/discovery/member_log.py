"""What a node remembers of its network across a restart: an append-only log of who was alive where.

Core: no I/O; the lines, and what they add up to.  The shell is :mod:`.snapshot`.  After serf's snapshot file: one
JSON array a line, ``["up", node_id, address, ...]``, ``["gone", node_id]`` or ``["left"]``.  Later lines win.  A line
that cannot be read is passed over, so a torn last line (the process was killed while writing) costs one hint, and a
damaged file costs hints, never a start: whatever it says is proved by the certificates of those who answer.

``left`` means that the node left in order, and forgets all before it: who leaves on purpose does not want to be drawn
back in by its own memory.
"""

# core: no I/O

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from gossip.events import Member, MemberState
from transport.errors import MeshError
from transport.types import Address, NodeId, node_id

#: Addresses remembered of one node.
ADDRESSES_MAX: Final = 4
#: Nodes remembered: enough to find any network again, few enough to read in a moment.
NODES_MAX: Final = 4_096
#: A longer line was not written by us.
LINE_CHARS_MAX: Final = 4_096
# Lines beyond what is alive before the log is rewritten: appending must stay cheaper than rewriting.
_SLACK_LINES: Final = 1_024


class MemberLog:
    """The log's content, kept while it is read, written and rewritten."""

    def __init__(self) -> None:
        # In the order in which they came up; the longest known go first when there are too many.
        self._alive: dict[NodeId, tuple[Address, ...]] = {}
        self._lines = 0

    @property
    def alive(self) -> dict[NodeId, tuple[Address, ...]]:
        """Who was last known alive, and where.  Do not modify."""
        return self._alive

    def replay(self, lines: Iterable[str]) -> None:
        """Read the log of an earlier life."""
        for line in lines:
            self._lines += 1
            entry = _parse(line)
            if entry is None:
                continue
            kind, node, addresses = entry
            if kind == "up":
                self._note_up(node, addresses)
            elif kind == "gone":
                self._alive.pop(node, None)
            else:
                self._alive.clear()

    def note(self, member: Member) -> str | None:
        """Take a member's new record; returns the line to append, ``None`` if it says nothing new."""
        if member.state in (MemberState.DEAD, MemberState.LEFT):
            if self._alive.pop(member.node_id, None) is None:
                return None
            return self._line("gone", member.node_id)
        addresses = member.addresses[:ADDRESSES_MAX]
        if not addresses or self._alive.get(member.node_id) == addresses:
            return None
        self._note_up(member.node_id, addresses)
        return self._line("up", member.node_id, *(str(address) for address in addresses))

    def leave(self) -> str:
        """The node leaves in order; returns the line to append."""
        self._alive.clear()
        return self._line("left")

    @property
    def wants_rewrite(self) -> bool:
        """Whether the file holds so much history that it should be written anew."""
        return self._lines > 2 * len(self._alive) + _SLACK_LINES

    def rewritten(self) -> str:
        """The whole log in as few lines as say the same."""
        self._lines = 0
        lines = [self._line("up", node, *(str(a) for a in addresses)) for node, addresses in self._alive.items()]
        return "".join(lines)

    def _note_up(self, node: NodeId, addresses: tuple[Address, ...]) -> None:
        if node not in self._alive and len(self._alive) >= NODES_MAX:
            del self._alive[next(iter(self._alive))]
        self._alive[node] = addresses

    def _line(self, *fields: str) -> str:
        self._lines += 1
        return json.dumps(fields, separators=(",", ":")) + "\n"


def _parse(line: str) -> tuple[str, NodeId, tuple[Address, ...]] | None:
    if len(line) > LINE_CHARS_MAX:
        return None
    try:
        fields = json.loads(line)
        if not isinstance(fields, list) or not fields:
            return None
        if fields[0] == "left":
            return "left", NodeId(""), ()
        if fields[0] not in ("up", "gone"):
            return None
        addresses = tuple(Address.parse(text) for text in fields[2 : 2 + ADDRESSES_MAX])
        return fields[0], node_id(fields[1]), addresses
    except (ValueError, IndexError, MeshError):
        return None
