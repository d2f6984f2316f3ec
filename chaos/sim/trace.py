"""The log of a run: one JSON array per line, and a digest over all lines.

``[time, node, tag, ...]`` with the tags ``r`` (received: peer, kind, bytes, CRC of the body), ``t`` (timer: token),
``e`` (another event: its name and peer), ``m`` (member changed: node, incarnation, state before and after), ``d``
(broadcast delivered: origin, sequence), ``f`` (fault or stimulus: what) and ``v`` (violation: checker, text).
Two runs are the same if and only if their lines are; the digest says so without keeping them.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TextIO

_LINES_MAX = 2048


class Trace:
    """Collects lines.

    Args:
        file: Where lines are also written; ``None``: only the digest is kept.
    """

    __slots__ = ("_digest", "_file", "_lines", "add")

    def __init__(self, file: TextIO | None = None) -> None:
        self._digest = blake2b(digest_size=16)
        self._file = file
        self._lines: list[str] = []
        self.add = self._lines.append
        """Takes one line without its newline; call :meth:`flush` now and then."""

    def __len__(self) -> int:
        return len(self._lines)

    def flush(self) -> None:
        """Digest and write what was added."""
        if not self._lines:
            return
        text = "\n".join(self._lines) + "\n"
        self._lines.clear()
        self._digest.update(text.encode())
        if self._file is not None:
            self._file.write(text)

    def hexdigest(self) -> str:
        """The digest of everything added so far."""
        self.flush()
        return self._digest.hexdigest()
