"""Values between people and programs: durations, payloads, names in a terminal."""

from __future__ import annotations

import re
import sys
from typing import Any, Final

from mesh.errors import InvalidMessage

_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)\Z")

#: No message is larger; reading more of stdin could only end in an error.
_PAYLOAD_BYTES_MAX: Final = 1024 * 1024


def seconds(text: str) -> float:
    """Read ``10m``, ``90s``, ``1.5h``, ``250ms``, ``2d`` or a plain number of seconds.

    Raises:
        InvalidMessage: It is none of these.
    """
    match = _DURATION.match(text.strip())
    if match is None:
        raise InvalidMessage(f"{text!r} is not a duration", hint="write 90s, 10m, 2h or 1d")
    return float(match[1]) * _UNITS[match[2]]


def payload(text: str) -> dict[str, Any]:
    """The content to send; ``-`` reads it from standard input, where it may be any bytes."""
    if text != "-":
        return {"text": text}
    from mesh.control.values import payload_document

    content = sys.stdin.buffer.read(_PAYLOAD_BYTES_MAX + 1)
    if len(content) > _PAYLOAD_BYTES_MAX:
        raise InvalidMessage(f"standard input holds more than {_PAYLOAD_BYTES_MAX} bytes, the largest payload")
    return payload_document(content)


def shown_payload(document: dict[str, Any]) -> str:
    """A received payload as one line for a terminal."""
    if "text" in document:
        return plain(document["text"])
    return f"base64:{document.get('base64', '')}"


def plain(value: object) -> str:
    """Text that cannot move the cursor or colour the terminal: names and payloads come from other nodes."""
    text = str(value)
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
