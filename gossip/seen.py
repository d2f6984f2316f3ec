"""What was seen of each origin's broadcasts, in constant space per origin.

An origin numbers its broadcasts 1, 2, 3 ... within its life, so one sliding window over the numbers (the highest
seen, and one bit for each of the ``broadcast_window`` below it) tells new from seen.  What has fallen out of the
window counts as seen: a broadcast may then be lost, never delivered twice.  A higher life of the origin starts a
new window; a lower one is history.  However far ahead a number is, it costs no more than the window.

The same windows say what is *missing*: the holes above a floor.  The floor rises once in every ``plumtree_age_s``
to where the window's top was one such time before; holes below it are older than any payload is kept, so they are
reported as missed, once, and no longer asked for.  Holes below the first number that was ever heard are asked for
but not reported: they may be older than this node.
"""

# core: no I/O

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from transport.types import NodeId

from .config import GossipConfig

#: Ranges of missing numbers that are told of one origin, the newest first: bounds a digest.
GAPS_MAX: Final = 32


class Verdict(enum.Enum):
    """What a broadcast is to us."""

    NEW = "new"
    SEEN = "seen"
    OUTDATED = "outdated"
    """Below the window, or of a former life: unknown whether it was seen, and too late to be delivered."""


class Summary(NamedTuple):
    """What a node has of one origin: all from 1 to ``highest`` but the gaps; nothing at or below ``floor`` is wanted.

    ``gaps`` are pairs (first, last), ascending.
    """

    origin: NodeId
    life: int
    floor: int
    highest: int
    gaps: tuple[tuple[int, int], ...] = ()

    def lacks(self, life: int, sequence: int) -> bool:
        """Whether this broadcast of the origin is missing."""
        if life != self.life:
            return life > self.life
        if sequence > self.highest:
            return True
        return sequence > self.floor and any(first <= sequence <= last for first, last in self.gaps)

    def has_more(self, than: Summary | None) -> bool:
        """Whether this one has what the other lacks; a hole that both know at its ends is taken for the same hole."""
        if than is None or self.life > than.life:
            return True
        if self.life < than.life:
            return False
        return self.highest > than.highest or any(self._fills(first, last) for first, last in than.gaps)

    def _fills(self, first: int, last: int) -> bool:
        first = max(first, self.floor + 1)
        return first <= last and not (self.lacks(self.life, first) and self.lacks(self.life, last))


@dataclass(slots=True)
class _Window:
    """Bit ``i`` of ``mask`` stands for number ``highest - i``."""

    life: int
    heard_at: float
    first: int
    settled_at: float
    highest: int = 0
    mask: int = 0
    floor: int = 0
    mark: int = 0
    summary: Summary | None = None
    """What was last said of it; ``None`` once that is no longer true."""


class SeenWindows:
    """The windows of all origins; those that are silent for long, or too many, are forgotten.

    Args:
        config: ``broadcast_window``, ``broadcast_origins_max``, ``broadcast_origin_s``, ``plumtree_age_s``.
    """

    def __init__(self, config: GossipConfig) -> None:
        self._config = config
        self._full = (1 << config.broadcast_window) - 1
        # Least recently heard first.
        self._windows: dict[NodeId, _Window] = {}

    def __len__(self) -> int:
        return len(self._windows)

    def look(self, origin: NodeId, life: int, sequence: int) -> Verdict:
        """What the broadcast would be, without taking it."""
        window = self._windows.get(origin)
        if window is None or life > window.life or (life == window.life and sequence > window.highest):
            return Verdict.NEW
        behind = window.highest - sequence
        if life < window.life or behind >= self._config.broadcast_window:
            return Verdict.OUTDATED
        return Verdict.SEEN if window.mask >> behind & 1 else Verdict.NEW

    def take(self, origin: NodeId, life: int, sequence: int, now: float) -> Verdict:
        """What the broadcast is; it counts as seen from now on."""
        verdict = self.look(origin, life, sequence)
        window = self._windows.pop(origin, None)
        if window is None or window.life < life:
            window = _Window(life, now, sequence, now)
        self._windows[origin] = window  # at the end: most recently heard
        window.heard_at = now
        self._forget(now)
        if verdict is Verdict.NEW:
            window.summary = None
            ahead = sequence - window.highest
            if ahead > 0:
                shifted = window.mask << ahead if ahead < self._config.broadcast_window else 0
                window.mask = (shifted | 1) & self._full
                window.highest = sequence
            else:
                window.mask |= 1 << -ahead
        return verdict

    def summaries(self, now: float) -> list[Summary]:
        """Of each origin that was heard within ``plumtree_age_s``, by name: what we have and what we miss."""
        recent = [self._summary(origin, window) for origin, window in self._recent(now - self._config.plumtree_age_s)]
        recent.sort()  # by origin: there is one of each
        return recent

    def heard_since(self, time: float) -> bool:
        """Whether any origin was heard at ``time`` or later."""
        return next(self._recent(time), None) is not None

    def settle(self, now: float) -> Iterator[tuple[NodeId, int, int, int]]:
        """Give up holes that are too old; call at least once in ``plumtree_age_s``.

        Yields:
            Origin, life, first and last number of what was missed.
        """
        age_s = self._config.plumtree_age_s
        for origin, window in self._recent(now - 4 * age_s):
            if now - window.settled_at < age_s:
                continue
            window.settled_at = now
            for first, last in self._gaps(window, max(window.floor, window.first), window.mark):
                yield origin, window.life, first, last
            window.floor, window.mark, window.summary = window.mark, window.highest, None

    def _recent(self, since: float) -> Iterator[tuple[NodeId, _Window]]:
        for origin, window in reversed(self._windows.items()):
            if window.heard_at < since:
                return
            yield origin, window

    def _summary(self, origin: NodeId, window: _Window) -> Summary:
        if window.summary is None:
            window.summary = self._summarise(origin, window)
        return window.summary

    def _summarise(self, origin: NodeId, window: _Window) -> Summary:
        gaps = tuple(self._gaps(window, window.floor, window.highest))
        floor = window.floor
        if len(gaps) > GAPS_MAX:
            gaps = gaps[-GAPS_MAX:]
            floor = gaps[0][0] - 1
        return Summary(origin, window.life, floor, window.highest, gaps)

    def _gaps(self, window: _Window, floor: int, upto: int) -> list[tuple[int, int]]:
        """Holes with ``floor < number <= upto``, ascending, as far as the window reaches."""
        span = min(window.highest - floor, self._config.broadcast_window)
        if span <= 0:
            return []
        holes = ~window.mask & ((1 << span) - 1)
        holes = holes >> (window.highest - upto) << (window.highest - upto)
        gaps = []
        while holes:
            low = (holes & -holes).bit_length() - 1  # the newest hole
            run = holes >> low
            length = (~run & (run + 1)).bit_length() - 1
            gaps.append((window.highest - low - length + 1, window.highest - low))
            holes &= ~(((1 << length) - 1) << low)
        return gaps[::-1]

    def _forget(self, now: float) -> None:
        while True:
            origin = next(iter(self._windows))
            silent = self._windows[origin].heard_at + self._config.broadcast_origin_s <= now
            if not silent and len(self._windows) <= self._config.broadcast_origins_max:
                return
            del self._windows[origin]
