"""Figures of a run: how broadcasts spread, how failures are noticed, what idling costs."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Final

from gossip.events import Deliver, Member, MemberState, Send
from gossip.incarnation import life_of

from .process import Process

#: Begins the payload of a measured broadcast; its number follows.
_MAGIC: Final = b"\x00sim\xf5\x9c"
_NUMBER_BYTES: Final = 4
PAYLOAD_BYTES: Final = 64


def payload_of(number: int, size_bytes: int = PAYLOAD_BYTES) -> bytes:
    """The payload of the measured broadcast with this number."""
    head = _MAGIC + number.to_bytes(_NUMBER_BYTES)
    return head + bytes(max(0, size_bytes - len(head)))


def number_of(payload: bytes, start: int = 0) -> tuple[int, int] | None:
    """The first measured broadcast in ``payload`` at or behind ``start``, and where to look on; ``None``: none."""
    found = payload.find(_MAGIC, start)
    if found < 0:
        return None
    end = found + len(_MAGIC) + _NUMBER_BYTES
    return int.from_bytes(payload[end - _NUMBER_BYTES : end]), end


def quantile(values: Sequence[float], part: float) -> float | None:
    """The smallest value that at least ``part`` of all do not exceed; ``None``: there are none."""
    if not values:
        return None
    ordered = sorted(values)
    rank = max(0, min(len(ordered) - 1, -int(-part * len(ordered) // 1) - 1))
    return ordered[rank]


class Broadcast:
    """One measured broadcast."""

    __slots__ = ("at", "copies", "delays", "expected", "got", "label", "number", "origin", "sequence")

    def __init__(self, number: int, label: str, origin: Process, expected: Iterable[Process], at: float) -> None:
        self.number = number
        self.label = label
        self.origin = origin
        self.sequence = 0
        self.at = at
        self.expected = [process for process in expected if process is not origin]
        self.got: dict[int, float] = {}
        """When each process delivered it, by uid."""
        self.copies = 0

    def survivors(self) -> list[Process]:
        """Who should have it: whoever ran when it was sent and never ended since."""
        return [process for process in self.expected if process.running and not process.leaving]

    def missing(self) -> list[Process]:
        """Survivors that do not have it."""
        return [process for process in self.survivors() if process.uid not in self.got]


class Broadcasts:
    """All measured broadcasts of a run."""

    def __init__(self) -> None:
        self.sent: list[Broadcast] = []
        self._retired: list[Broadcast] = []

    def begin(self, label: str, origin: Process, expected: Iterable[Process], now: float) -> Broadcast:
        """Number a broadcast that is about to be requested."""
        broadcast = Broadcast(len(self.sent), label, origin, expected, now)
        self.sent.append(broadcast)
        return broadcast

    def count_copies(self, effect: Send) -> None:
        """Count the payloads that one body carries."""
        found = number_of(effect.body)
        while found is not None:
            number, end = found
            if number < len(self.sent):
                self.sent[number].copies += 1
            found = number_of(effect.body, end)

    def delivered(self, process: Process, delivery: Deliver, now: float) -> Broadcast | None:
        """Note a delivery; returns its broadcast if this process had it before."""
        found = number_of(delivery.payload)
        if found is None or found[0] >= len(self.sent):
            return None
        broadcast = self.sent[found[0]]
        if process.uid in broadcast.got:
            return broadcast
        broadcast.got[process.uid] = now
        return None

    def figures(self) -> dict[str, float | int | None]:
        """See ``docs/simulation.md``; figures of one label are suffixed with it."""
        measured = [broadcast for broadcast in self.sent if broadcast.label != "warm"]
        figures = _figures(measured)
        for label in dict.fromkeys(broadcast.label for broadcast in measured):
            if label:
                some = _figures([broadcast for broadcast in measured if broadcast.label == label])
                figures |= {f"{name}_{label}": value for name, value in some.items()}
        return figures


def _figures(broadcasts: list[Broadcast]) -> dict[str, float | int | None]:
    delays, last, redundancy = array("d"), array("d"), array("d")
    wanted = reached = 0
    for broadcast in broadcasts:
        survivors = broadcast.survivors()
        times = [broadcast.got[p.uid] - broadcast.at for p in survivors if p.uid in broadcast.got]
        wanted += len(survivors)
        reached += len(times)
        delays.extend(times)
        if times:
            last.append(max(times))
        if survivors:
            redundancy.append(broadcast.copies / len(survivors) - 1)
    return {
        "broadcasts": len(broadcasts),
        "delivered_fraction": round(reached / wanted, 6) if wanted else None,
        "redundancy": round(sum(redundancy) / len(redundancy), 4) if redundancy else None,
        "p50_ms": _ms(quantile(delays, 0.5)),
        "p99_ms": _ms(quantile(delays, 0.99)),
        "p100_ms": _ms(max(last, default=None)),
        "last_node_p50_ms": _ms(quantile(last, 0.5)),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


class _Victim:
    __slots__ = ("at", "dead", "observers", "suspected_at")

    def __init__(self, at: float, observers: dict[int, Process]) -> None:
        self.at = at
        self.observers = observers
        self.suspected_at: float | None = None
        self.dead: dict[int, float] = {}


class Detections:
    """How long it takes until the others know that a process ended."""

    def __init__(self) -> None:
        self._victims: dict[tuple[str, int], _Victim] = {}

    def ended(self, process: Process, observers: Iterable[Process], now: float) -> None:
        """A process is about to end; ``observers`` live and shall notice."""
        key = process.name, life_of(process.core.me.incarnation)
        self._victims[key] = _Victim(now, {other.uid: other for other in observers if other is not process})

    def transition(self, process: Process, after: Member, now: float) -> None:
        """Somebody believes something new."""
        victim = self._victims.get((after.node_id, life_of(after.incarnation)))
        if victim is None or process.uid not in victim.observers:
            return
        if after.state is not MemberState.ALIVE and victim.suspected_at is None:
            victim.suspected_at = now
        if after.state in {MemberState.DEAD, MemberState.LEFT}:
            victim.dead.setdefault(process.uid, now)

    def figures(self) -> dict[str, float | int | None]:
        """See ``docs/simulation.md``."""
        suspected, each, complete = array("d"), array("d"), array("d")
        unnoticed = 0
        for victim in self._victims.values():
            observers = [uid for uid, observer in victim.observers.items() if observer.live]
            if not observers:
                continue
            times = [victim.dead[uid] - victim.at for uid in observers if uid in victim.dead]
            unnoticed += len(observers) - len(times)
            each.extend(times)
            if victim.suspected_at is not None:
                suspected.append(victim.suspected_at - victim.at)
            if len(times) == len(observers):
                complete.append(max(times))
        return {
            "ended_processes": len(self._victims),
            "unnoticed": unnoticed,
            "suspected_p50_s": _s(quantile(suspected, 0.5)),
            "detected_p50_s": _s(quantile(each, 0.5)),
            "detected_p99_s": _s(quantile(each, 0.99)),
            "all_know_p50_s": _s(quantile(complete, 0.5)),
            "all_know_p99_s": _s(quantile(complete, 0.99)),
        }


def _s(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
