"""Broadcast: a payload to every node, each exactly once.

First version: flooding.  A node passes a broadcast that is new to it on to every linked peer but the one it came
from, as the same bytes, while the envelope's TTL lasts.  Two things keep it from circulating: the TTL, which falls
with each hop, and memory of what was seen.  Step 2 replaces flooding by Plumtree (an eager tree with lazy repair)
in this class; what it remembers stays.

Memory: an origin numbers its broadcasts 1, 2, 3 ... within its life, so per origin one sliding window over the
numbers (highest seen, and one bit for each of the ``broadcast_window`` below it) tells new from seen in constant
space.  What has fallen out of the window counts as seen: a broadcast may then be lost, never delivered twice.  A
higher life of the origin starts a new window; a lower one is history and is dropped.

Deviation from textbook flooding: a copy may come first by a long way round, with less TTL left than one that comes
later.  The later copy is passed on again (not delivered), else a broadcast whose TTL equals the network's diameter
could miss nodes.  The recent best TTLs are kept for this, in a bounded FIFO.
"""

# core: no I/O

from __future__ import annotations

from dataclasses import dataclass

from transport.errors import LocalProtocolError
from transport.types import NodeId
from transport.wire import TTL_MAX, Kind

from .codec import BroadcastBody, decode_broadcast, encode_broadcast
from .config import GossipConfig
from .events import BroadcastRequested, Deliver, Effect, Event, LinkLost, LinkOpened, Member, Received, Send
from .incarnation import life_of

#: Broadcasts whose best TTL is remembered; late copies of older ones are simply duplicates.
_RECENT_MAX = 4096


@dataclass(slots=True)
class _Window:
    """What was seen of one origin: bit ``i`` of ``mask`` stands for sequence ``highest - i``."""

    life: int
    heard_at: float
    highest: int = 0
    mask: int = 0


class BroadcastCore:
    """One node's part in broadcasting.

    Args:
        self_member: This node.
        config: Limits and times.
    """

    def __init__(self, self_member: Member, config: GossipConfig) -> None:
        self._owner = self_member.node_id
        self._incarnation = self_member.incarnation
        self._config = config
        self._mask = (1 << config.broadcast_window) - 1
        self._peers: dict[NodeId, None] = {}
        # Least recently heard first.
        self._windows: dict[NodeId, _Window] = {}
        self._recent: dict[tuple[NodeId, int], int] = {}
        self.sequence = 0
        """The number of our latest broadcast."""
        self.counters = {"originated": 0, "delivered": 0, "duplicates": 0, "forwarded": 0, "outdated": 0}

    @property
    def origins(self) -> int:
        """How many origins are remembered."""
        return len(self._windows)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event and return sends and deliveries.

        Raises:
            RemoteProtocolError: A received body is not allowed; nothing changed.
            LocalProtocolError: The payload or TTL of our own broadcast is not allowed; nothing was sent.
        """
        match event:
            case LinkOpened():
                self._peers[event.peer] = None
            case LinkLost():
                self._peers.pop(event.peer, None)
            case BroadcastRequested():
                return self._originate(event)
            case Received():
                return self._received(event, now)
            case _:
                pass
        return []

    def _originate(self, event: BroadcastRequested) -> list[Effect]:
        if len(event.payload) > self._config.broadcast_bytes_max:
            raise LocalProtocolError(
                f"broadcast of {len(event.payload)} bytes exceeds {self._config.broadcast_bytes_max} bytes"
            )
        if not 1 <= event.ttl <= TTL_MAX:
            raise LocalProtocolError(f"a broadcast's ttl must be 1 to {TTL_MAX}, not {event.ttl}")
        self.sequence += 1
        self.counters["originated"] += 1
        body = encode_broadcast(BroadcastBody(self._owner, self._incarnation, self.sequence, event.payload))
        return [Send(peer, body, kind=Kind.BROADCAST, ttl=event.ttl - 1) for peer in self._peers]

    def _received(self, event: Received, now: float) -> list[Effect]:
        body = decode_broadcast(event.body, self._config)
        if body.origin == self._owner:
            self.counters["duplicates"] += 1
            return []
        key = body.origin, body.sequence
        effects: list[Effect] = []
        if self._is_new(body, now):
            self.counters["delivered"] += 1
            effects.append(Deliver(body.origin, body.incarnation, body.sequence, body.payload))
        elif event.ttl <= self._recent.get(key, TTL_MAX):
            return []
        if event.ttl > 0:
            targets = [peer for peer in self._peers if peer not in (event.peer, body.origin)]
            self.counters["forwarded"] += len(targets)
            effects += [Send(peer, event.body, kind=Kind.BROADCAST, ttl=event.ttl - 1) for peer in targets]
        self._recent.pop(key, None)
        self._recent[key] = event.ttl
        if len(self._recent) > _RECENT_MAX:
            del self._recent[next(iter(self._recent))]
        return effects

    def _is_new(self, body: BroadcastBody, now: float) -> bool:
        """Whether the broadcast was not seen before; it counts as seen from now on."""
        life = life_of(body.incarnation)
        window = self._windows.pop(body.origin, None)
        if window is None or window.life < life:
            window = _Window(life, now)
        self._windows[body.origin] = window  # at the end: most recently heard
        window.heard_at = now
        self._expire(now)
        if life < window.life:
            self.counters["outdated"] += 1
            return False
        ahead = body.sequence - window.highest
        if ahead > 0:
            shifted = window.mask << ahead if ahead < self._config.broadcast_window else 0
            window.mask = (shifted | 1) & self._mask
            window.highest = body.sequence
            return True
        if -ahead >= self._config.broadcast_window:
            self.counters["outdated"] += 1
            return False
        if window.mask >> -ahead & 1:
            self.counters["duplicates"] += 1
            return False
        window.mask |= 1 << -ahead
        return True

    def _expire(self, now: float) -> None:
        """Forget origins that were silent for long, or are too many, the longest silent first."""
        while True:
            origin = next(iter(self._windows))
            silent = self._windows[origin].heard_at + self._config.broadcast_origin_s <= now
            if not silent and len(self._windows) <= self._config.broadcast_origins_max:
                return
            del self._windows[origin]
