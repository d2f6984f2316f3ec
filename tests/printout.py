"""Test support: what a process prints while it runs, one JSON object a line."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any, TypeAlias

Line: TypeAlias = dict[str, Any]


class Printout:
    """Reads the standard output of ``process`` in a thread of its own, so that no full pipe ever holds it up."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Start to read."""
        assert process.stdout is not None
        self._process = process
        self._stdout = process.stdout
        self._news = threading.Condition()
        self.lines: list[Line] = []
        """What was printed so far."""
        self._times: list[float] = []
        self._reader = threading.Thread(target=self._read, name="printout", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for text in self._stdout:
            with self._news:
                self.lines.append(json.loads(text))
                self._times.append(time.monotonic())
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def expect(self, matches: Callable[[Line], bool], *, since: int = 0, timeout_s: float = 30.0) -> float:
        """Wait for a line after the first ``since``; the monotonic time at which the first such one came.

        Raises:
            AssertionError: None came in ``timeout_s`` seconds.
        """
        with self._news:
            self._news.wait_for(lambda: any(matches(line) for line in self.lines[since:]), timeout_s)
            for line, at in zip(self.lines[since:], self._times[since:], strict=True):
                if matches(line):
                    return at
        raise AssertionError(f"not printed; ended with {self._process.poll()}; last lines: {self.lines[-5:]}")

    def close(self) -> None:
        """Wait for the end of the output; the process must have ended."""
        self._reader.join(5.0)
        assert not self._reader.is_alive(), "somebody still holds the standard output"
        self._stdout.close()
