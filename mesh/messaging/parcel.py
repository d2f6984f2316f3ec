"""A message between the user's call and the link."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mesh.types import MessageType, Priority

from .body import Message


class Parcel(NamedTuple):
    """A message that was checked and is ready to go: everything but its sequence."""

    to_agent: int
    from_agent: int
    kind: MessageType
    payload: bytes
    priority: Priority
    ttl: int
    timestamp_ms: int = 0
    headers: Mapping[str, str] | None = None
    group: str | None = None

    def message(self, sequence: int, flags: int, base_ms: int) -> Message:
        """The message in wire order, for a body of that time; fields that are empty are left off at the end."""
        to_agent, from_agent, kind, payload, _, _, timestamp_ms, headers, group = self
        offset = timestamp_ms - base_ms if timestamp_ms else 0
        message: Message = [sequence, int(kind), from_agent, to_agent, flags, payload, offset]
        if group is not None:
            message += [None, dict(headers) if headers else None, group]
        elif headers:
            message += [None, dict(headers)]
        return message
