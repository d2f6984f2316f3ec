"""Loggers for every layer: an event and its key-value pairs, standard logging's plumbing.

``log = get_logger("mesh.transport")``, then ``log.warning("link refused", peer=..., reason=...)``: a short event
name and key-value pairs.  The loggers sit on :mod:`logging` under ``mesh``, so a program that embeds a node sees
warnings exactly where its own go and can turn them down by name.

The calls are structlog's, but not its code: importing it brings rich into every node, for tracebacks that are never
drawn (``docs/rfd/0003-configuration-without-pydantic.md``), and all that we need of it is below.

:func:`mesh.logs.configure_logging` sets up handlers, and only the command line calls it.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Final

#: The attribute of a log record that holds the event's key-value pairs, for handlers that want them apart.
RECORD_FIELDS: Final = "mesh_fields"
#: The attribute that holds the event's name.
RECORD_EVENT: Final = "mesh_event"

#: Key-value pairs of every event of this context; see :func:`bind`.
_BOUND: ContextVar[dict[str, object] | None] = ContextVar("mesh_log_fields", default=None)

# From the caller of `Logger.warning` through `_say` to `logging`.
_FRAMES: Final = 3


class Logger:
    """Says events; cheap when its level is off."""

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, /, **fields: object) -> None:
        """What helps to find a fault, and nobody reads otherwise."""
        self._say(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """What happens in a healthy node, a few times an hour."""
        self._say(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """What somebody may want to change."""
        self._say(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """What this node could not do."""
        self._say(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """An error, with the traceback of the exception that is being handled, or of ``exc_info``."""
        self._say(logging.ERROR, event, {"exc_info": True, **fields})

    def _say(self, level: int, event: str, fields: dict[str, object]) -> None:
        if not self._logger.isEnabledFor(level):
            return
        raised = fields.pop("exc_info", None)
        shown = {**(_BOUND.get() or {}), **fields}
        # One line that any handler can print, and its parts on the record.
        text = " ".join([event, *(f"{key}={_shown(value)}" for key, value in shown.items())])
        self._logger.log(
            level,
            "%s",
            text,
            exc_info=raised if isinstance(raised, BaseException) else bool(raised),
            stacklevel=_FRAMES,
            extra={RECORD_FIELDS: shown, RECORD_EVENT: event},
        )


def get_logger(name: str) -> Logger:
    """A logger named ``name``, e.g. ``mesh.transport``."""
    return Logger(logging.getLogger(name))


def bind(**fields: object) -> None:
    """Put these key-value pairs on every later event of this context, and of the tasks that it starts."""
    _BOUND.set({**(_BOUND.get() or {}), **fields})


def unbind_all() -> None:
    """Take away what :func:`bind` has put there."""
    _BOUND.set(None)


def _shown(value: object) -> str:
    """Text without line breaks or control characters: peers choose some of it, and logs are read in terminals."""
    text = value if isinstance(value, str) else str(value)
    return text if text.isprintable() and text and " " not in text else repr(text)
