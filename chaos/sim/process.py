"""One run of one node, as the world sees it."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from gossip.config import GossipConfig
from gossip.events import Effect, Event, Member
from transport.types import Address, NodeId

if TYPE_CHECKING:
    from .wire import Link


class Core(Protocol):
    """What the simulator needs of a core; :class:`gossip.router.GossipCore` has it."""

    @property
    def me(self) -> Member:
        """This node as it describes itself."""
        ...

    @property
    def ended(self) -> bool:
        """Whether this node left or was superseded."""
        ...

    @property
    def digest(self) -> int:
        """Equal at nodes that believe the same."""
        ...

    @property
    def sequence(self) -> int:
        """The number of the latest broadcast."""
        ...

    def members(self) -> list[Member]:
        """What is believed of every node."""
        ...

    def needs_link(self, node_id: NodeId) -> bool:
        """Whether the node is a neighbour, or may become one."""
        ...

    def spares_link(self, node_id: NodeId, now: float) -> bool:
        """Whether the link to the node was idle for so long that it may be closed."""
        ...

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event and return what to do about it."""
        ...

    def statistics(self) -> dict[str, int | float]:
        """Sizes and counters."""
        ...


CoreFactory = Callable[[Member, GossipConfig, random.Random], Core]


class Process:
    """One run of one node; a restart is another process with the same name.

    Attributes:
        uid: Number of this process, in the order of starting.
        index: Number of the node.
        links: Open links by the peer's name: the link, and which end of it is the *peer*.
        dialling: Peers whose dial is waiting or under way.
        dial_queue: Those that wait.
        inbox: What arrived while the process stood still, in order of arrival.
        late_timers: Timers that ran out meanwhile.
        frozen_at: Since when it stands still; ``None``: it runs.
        mute_since: Since when it says nothing to anybody (frozen, or gone without a word).
        deferred: Whether events must wait in the inbox: frozen, or still catching up.
        sick_until: Until when what it believes is not blamed on the protocol.
    """

    __slots__ = (
        "core",
        "deferred",
        "dial_allowance",
        "dial_counted_at",
        "dial_queue",
        "dialling",
        "dials_running",
        "drift",
        "ended_at",
        "frames_sent",
        "frozen_at",
        "inbox",
        "index",
        "late_timers",
        "leaving",
        "links",
        "mute_since",
        "name",
        "payload_bytes_sent",
        "running",
        "seeds",
        "sick_until",
        "silent_crash",
        "started_at",
        "uid",
    )

    def __init__(self, uid: int, index: int, name: NodeId, core: Core, now: float, drift: float) -> None:
        self.uid = uid
        self.index = index
        self.name = name
        self.core = core
        self.drift = drift
        self.running = True
        self.silent_crash = False
        self.leaving = False
        self.started_at = now
        self.ended_at: float | None = None
        self.seeds: tuple[NodeId, ...] = ()
        self.links: dict[NodeId, tuple[Link, int]] = {}
        self.dialling: dict[NodeId, None] = {}
        self.dial_queue: deque[NodeId] = deque()
        self.dials_running = 0
        self.dial_allowance = 0.0
        self.dial_counted_at = now
        self.inbox: deque[tuple[int, Any, int, Any]] = deque()
        self.late_timers: deque[int] = deque()
        self.frozen_at: float | None = None
        self.mute_since: float | None = None
        self.deferred = False
        self.sick_until = -1.0
        self.frames_sent = 0
        self.payload_bytes_sent = 0

    def __repr__(self) -> str:
        return f"<{self.name} #{self.uid}{'' if self.running else ' ended'}>"

    @property
    def live(self) -> bool:
        """Whether it runs and still takes part in the network."""
        return self.running and not self.core.ended


def address_of(name: NodeId) -> Address:
    """Where the simulated node can be dialled."""
    return Address(f"{name}.sim", 7946)
