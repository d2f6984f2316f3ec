"""The five lanes of one link: bounded, strict for control, weighted and starvation-free for users.

A frame is filled from the lanes like this.  The control lane goes first, always: the mesh's own traffic must
never be behind data, or load would look like death.  It is emptied, but where users wait it leaves them an eighth of
each frame, so that a storm of it cannot silence them either.  The four user lanes share what is left by deficit round
robin (Shreedhar and Varghese, SIGCOMM 1995) with bytes as the currency: in a round, each lane that has something
waiting may send its quantum, most urgent lane first, and keeps what it could not spend.  The quanta are 8 : 4 : 2 : 1,
so under overload URGENT gets 8/15 of the bytes and LOW still gets 1/15.  Where only one user lane has something, it
is served without accounting.

An envelope may be queued under a *key*; a later one with the same lane and key takes its place in the queue, so that
a link that stalls carries the latest of a superseded value once rather than each of them late.
"""

# core: no I/O

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from .types import Lane
from .wire import ENVELOPE_OVERHEAD_BYTES, Envelope

#: Bytes per round for URGENT, HIGH, NORMAL, LOW (index = lane).  The sum is about one frame.
QUANTA_BYTES: Final = (0, 32_768, 16_384, 8_192, 4_096)

#: The part of a frame that control traffic leaves to users who wait.
_USER_PART: Final = 8

_USER_LANES: Final = (Lane.URGENT, Lane.HIGH, Lane.NORMAL, Lane.LOW)


@dataclass(slots=True)
class _Slot:
    """A keyed place in a queue, whose envelope may be replaced while it waits."""

    key: str
    envelope: Envelope


class _LaneQueue:
    """One lane: first in, first out."""

    __slots__ = ("bytes", "deficit_bytes", "keyed", "waiting")

    def __init__(self) -> None:
        # Bounded by LaneQueues.put: envelopes_max and bytes_max.
        self.waiting: deque[Envelope | _Slot] = deque()
        self.bytes = 0
        self.deficit_bytes = 0
        self.keyed: dict[str, _Slot] | None = None

    def head_bytes(self) -> int:
        head = self.waiting[0]
        envelope = head.envelope if isinstance(head, _Slot) else head
        return len(envelope[4]) + ENVELOPE_OVERHEAD_BYTES

    def pop(self) -> Envelope:
        head = self.waiting.popleft()
        if isinstance(head, _Slot):
            assert self.keyed is not None
            del self.keyed[head.key]
            envelope = head.envelope
        else:
            envelope = head
        self.bytes -= len(envelope[4]) + ENVELOPE_OVERHEAD_BYTES
        if not self.waiting:
            self.deficit_bytes = 0
        return envelope


class LaneQueues:
    """What one link still has to send.

    Args:
        envelopes_max: Envelopes per lane.
        bytes_max: Bytes per lane; an empty lane takes one envelope of any size.
    """

    __slots__ = ("_bytes_max", "_envelopes_max", "_lanes", "dropped", "length", "refused", "replaced")

    def __init__(self, envelopes_max: int, bytes_max: int) -> None:
        self._envelopes_max = envelopes_max
        self._bytes_max = bytes_max
        # Lanes come into being when first used: most links use two, and an empty deque is not small.
        self._lanes: list[_LaneQueue | None] = [None, None, None, None, None]
        self.length = 0
        """Envelopes queued in all lanes."""
        self.refused = 0
        """Envelopes not taken because their lane was full."""
        self.replaced = 0
        """Envelopes superseded by a later one with the same key."""
        self.dropped = 0
        """Envelopes taken but thrown away by :meth:`drop`."""

    def put(self, envelope: Envelope, lane: Lane, key: str | None = None) -> bool:
        """Queue ``envelope``; ``False`` if the lane is at its bound (nothing changed but a counter)."""
        queue = self._lanes[lane]
        if queue is None:
            queue = self._lanes[lane] = _LaneQueue()
        size = len(envelope[4]) + ENVELOPE_OVERHEAD_BYTES
        if key is not None and queue.keyed is not None and (slot := queue.keyed.get(key)) is not None:
            grown = queue.bytes + size - len(slot.envelope[4]) - ENVELOPE_OVERHEAD_BYTES
            if grown > self._bytes_max and len(queue.waiting) > 1:
                self.refused += 1
                return False
            queue.bytes = grown
            slot.envelope = envelope
            self.replaced += 1
            return True
        waiting = queue.waiting
        if waiting and (len(waiting) >= self._envelopes_max or queue.bytes + size > self._bytes_max):
            self.refused += 1
            return False
        if key is None:
            waiting.append(envelope)
        else:
            slot = _Slot(key, envelope)
            if queue.keyed is None:
                queue.keyed = {}
            queue.keyed[key] = slot
            waiting.append(slot)
        queue.bytes += size
        self.length += 1
        return True

    def has_room(self, lane: Lane) -> bool:
        """Whether the lane is below three quarters of its bounds, so that a woken sender can do some work."""
        queue = self._lanes[lane]
        return (
            queue is None
            or not queue.waiting
            or (len(queue.waiting) * 4 <= self._envelopes_max * 3 and queue.bytes * 4 <= self._bytes_max * 3)
        )

    def lengths(self) -> tuple[int, int, int, int, int]:
        """Envelopes queued per lane."""
        a, b, c, d, e = (0 if queue is None else len(queue.waiting) for queue in self._lanes)
        return a, b, c, d, e

    def take(self, envelopes_max: int, bytes_max: int) -> list[Envelope]:
        """Remove the envelopes of the next frame, in sending order; empty if nothing is queued.

        The frame holds at most ``envelopes_max`` envelopes and ``bytes_max`` bytes, but always at least one envelope,
        so that one larger than ``bytes_max`` goes alone.
        """
        frame: list[Envelope] = []
        room = bytes_max
        control = self._lanes[0]
        if control is not None and control.waiting:
            if self.length == len(control.waiting):
                self._fill(frame, control, envelopes_max, room)
                return frame
            left = room // _USER_PART
            most = max(1, envelopes_max - max(1, envelopes_max // _USER_PART))
            room = self._fill(frame, control, most, room - left) + left
        if self.length:
            active = [lane for lane in _USER_LANES if (queue := self._lanes[lane]) is not None and queue.waiting]
            if len(active) == 1:
                only = self._lanes[active[0]]
                assert only is not None
                self._fill(frame, only, envelopes_max, room)
            else:
                self._fill_fairly(frame, active, envelopes_max, room)
        return frame

    def drop(self) -> int:
        """Throw away everything but the control lane; returns how many envelopes that was."""
        dropped = 0
        for lane in _USER_LANES:
            queue = self._lanes[lane]
            if queue is not None:
                dropped += len(queue.waiting)
                self._lanes[lane] = None
        self.length -= dropped
        self.dropped += dropped
        return dropped

    # Private.

    def _fill(self, frame: list[Envelope], queue: _LaneQueue, envelopes_max: int, room: int) -> int:
        """Move envelopes from one lane while they fit; returns the bytes that are left."""
        while queue.waiting and len(frame) < envelopes_max:
            size = queue.head_bytes()
            if size > room and frame:
                break
            frame.append(queue.pop())
            self.length -= 1
            room -= size
        return room

    def _fill_fairly(self, frame: list[Envelope], active: list[Lane], envelopes_max: int, room: int) -> None:
        """Deficit round robin over the user lanes that have something waiting, most urgent first."""
        shares = [(queue, QUANTA_BYTES[lane]) for lane in active if (queue := self._lanes[lane]) is not None]
        while True:
            for queue, _ in shares:
                while queue.waiting and (size := queue.head_bytes()) <= queue.deficit_bytes:
                    if len(frame) >= envelopes_max or (size > room and frame):
                        return
                    frame.append(queue.pop())
                    self.length -= 1
                    room -= size
                    queue.deficit_bytes -= size
            shares = [share for share in shares if share[0].waiting]
            if not shares:
                return
            for queue, quantum in shares:
                queue.deficit_bytes += quantum
