"""Where the command line's logs go: stderr, for people or for machines, without ever holding up the node.

Records pass through a bounded queue to one thread that writes them.  A terminal that is paused, or a pipe that
nobody reads, would otherwise stop the event loop in the middle of a log call, and peers would see a dead node.

A program that embeds a node does not call this; it sees the loggers under ``mesh`` like any others.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from queue import Full, Queue
from typing import Final, Literal, TextIO

from transport.logs import RECORD_EVENT, RECORD_FIELDS, bind, get_logger

__all__ = ["bind_node", "configure_logging", "get_logger"]

#: Lines waiting for a slow terminal; about 2 MB.  Beyond it lines are dropped and counted.
QUEUE_RECORDS_MAX: Final = 10_000

#: Loggers of libraries of which only errors are shown.  What zeroconf warns of is either told in our own words by
#: mesh.discovery, or is what anybody on the local network can provoke with a packet.
_QUIET: Final = ("zeroconf",)

#: How long leaving waits for the last lines to be written.
STOP_WAIT_S: Final = 1.0

_LEVEL_COLOURS: Final[Mapping[int, str]] = {
    logging.DEBUG: "\x1b[2m",
    logging.INFO: "\x1b[32m",
    logging.WARNING: "\x1b[33m",
    logging.ERROR: "\x1b[31m",
    logging.CRITICAL: "\x1b[31;1m",
}


def configure_logging(
    level: Literal["debug", "info", "warning", "error"] = "info",
    format: Literal["auto", "console", "json"] = "auto",  # noqa: A002 - the name of the setting
    *,
    stream: TextIO | None = None,
) -> Callable[[], None]:
    """Send the logs of this process to ``stream``; for programs that own the process, such as the CLI.

    Libraries that peermesh uses are shown from ``warning`` up, zeroconf from ``error``.

    Args:
        level: Least severity of peermesh's own logs.
        format: ``auto`` is ``console`` when ``stream`` is a terminal and ``json`` otherwise.
        stream: Default: ``sys.stderr``.

    Returns:
        A function that writes what is queued, stops the thread and takes the handlers away again.
    """
    target = stream if stream is not None else sys.stderr
    terminal = target.isatty()
    formatter: logging.Formatter
    if format == "json" or (format == "auto" and not terminal):
        formatter = JsonFormatter()
    else:
        formatter = ConsoleFormatter(colours=terminal and "NO_COLOR" not in os.environ)
    writer = logging.StreamHandler(target)
    writer.setFormatter(formatter)
    handler = _DroppingHandler()
    thread = threading.Thread(target=_write_all, args=(handler.records, writer), name="mesh-logs", daemon=True)
    root = logging.getLogger()
    levels: dict[str, int | str] = {"": logging.WARNING, "mesh": level.upper(), **dict.fromkeys(_QUIET, logging.ERROR)}
    before = {name: logging.getLogger(name).level for name in levels}
    root.addHandler(handler)
    _set_levels(levels)
    thread.start()
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if stopped:
            return
        stopped = True
        atexit.unregister(stop)
        root.removeHandler(handler)
        _set_levels(before)
        try:
            handler.records.put(None, timeout=STOP_WAIT_S)
        except Full:
            pass  # nobody reads the lines, so nobody misses them; the thread dies with the process
        else:
            thread.join(STOP_WAIT_S)
        if handler.dropped:
            with contextlib.suppress(OSError, ValueError):
                target.write(f"{handler.dropped} log lines were dropped because nobody read them\n")

    atexit.register(stop)
    return stop


def _set_levels(levels: Mapping[str, int | str]) -> None:
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def _write_all(records: Queue[logging.LogRecord | None], writer: logging.Handler) -> None:
    while (record := records.get()) is not None:
        writer.handle(record)


def bind_node(*, network: str, node_id: str) -> None:
    """Put the node's names on every later log line of this context."""
    bind(network=network, node_id=node_id)


class _DroppingHandler(logging.Handler):
    """Queues records for the writer thread; counts what does not fit instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.records: Queue[logging.LogRecord | None] = Queue(QUEUE_RECORDS_MAX)
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Queue ``record`` or count it as dropped."""
        try:
            self.records.put_nowait(record)
        except Full:
            self.dropped += 1


def _parts(record: logging.LogRecord) -> tuple[str, Mapping[str, object]]:
    fields = getattr(record, RECORD_FIELDS, None)
    if isinstance(fields, Mapping):
        return str(getattr(record, RECORD_EVENT, "")), fields
    return record.getMessage(), {}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time`` (UTC), ``level``, ``logger``, ``event``, then the event's own keys."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        event, fields = _parts(record)
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": event,
        }
        line |= {key: value for key, value in fields.items() if key not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class ConsoleFormatter(logging.Formatter):
    """``12:34:56.789 warning  link refused  peer=n2 reason=...`` for people."""

    def __init__(self, *, colours: bool) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        _, fields = _parts(record)
        message = record.getMessage()
        # The names of the node are the same on every line; a person has them in the prompt.
        for name in ("network", "node_id"):
            message = message.replace(f" {name}={fields[name]}", "") if name in fields else message
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        level = f"{record.levelname.lower():<8}"
        if self._colours:
            level = f"{_LEVEL_COLOURS.get(record.levelno, '')}{level}\x1b[0m"
        where = "" if record.name.startswith("mesh") else f" [{record.name}]"
        line = f"{at} {level} {message}{where}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line
