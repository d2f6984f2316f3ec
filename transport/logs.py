"""Loggers for every layer: structlog's calls, standard logging's plumbing.

``log = get_logger("mesh.transport")``, then ``log.warning("link refused", peer=..., reason=...)``: a short event
name and key-value pairs.  The loggers sit on :mod:`logging` under ``mesh``, so a program that embeds a node sees
warnings exactly where its own go and can turn them down by name.  structlog's global configuration is never
touched: it belongs to the host program, and unconfigured it would print to stdout, which is the CLI's.

:func:`mesh.logs.configure_logging` sets up handlers, and only the command line calls it.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any, Final, cast

import structlog
from structlog.typing import Processor

#: The attribute of a log record that holds the event's key-value pairs, for handlers that want them apart.
RECORD_FIELDS: Final = "mesh_fields"


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger named ``name``, e.g. ``mesh.transport``; cheap when its level is off."""
    wrapped = structlog.wrap_logger(
        logging.getLogger(name),
        processors=PROCESSORS,
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return cast("structlog.stdlib.BoundLogger", wrapped)


def to_record(
    logger: object, method: str, event: MutableMapping[str, Any]
) -> tuple[tuple[str, str], dict[str, object]]:
    """Say the event as one line that any handler can print, and keep its parts on the record."""
    del logger, method
    name = str(event.pop("event", ""))
    passed: dict[str, object] = {
        key: event.pop(key) for key in ("exc_info", "stack_info", "stacklevel") if key in event
    }
    fields = dict(event)
    passed["extra"] = {RECORD_FIELDS: fields, "mesh_event": name}
    text = " ".join([name, *(f"{key}={_shown(value)}" for key, value in fields.items())])
    return ("%s", text), passed


def _shown(value: object) -> str:
    """Text without line breaks or control characters: peers choose some of it, and logs are read in terminals."""
    text = value if isinstance(value, str) else str(value)
    return text if text.isprintable() and text and " " not in text else repr(text)


#: What an event passes on its way to standard logging.
PROCESSORS: Final[list[Processor]] = [
    structlog.stdlib.filter_by_level,
    structlog.contextvars.merge_contextvars,
    to_record,
]
