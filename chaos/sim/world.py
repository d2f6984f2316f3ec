"""The simulated world: one event queue, one clock, one seed.

The world plays the shell of every node: it carries out what cores ask for and tells them what happened, in virtual
time.  The queue holds tuples ``(time, order, kind, x, y, z)``; ``order`` is unique, so equal times never compare
further, and the sequence of events depends on the seed alone (no set is iterated, no hash of a string is used).
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TextIO
from zlib import crc32

from gossip.config import GossipConfig
from gossip.events import (
    Deliver,
    Dial,
    Event,
    LeaveRequested,
    LinkLost,
    Member,
    MemberChanged,
    MemberForgotten,
    MemberState,
    PeerFound,
    Persist,
    Received,
    Send,
    SendDropped,
    SetTimer,
    Stalled,
    Started,
    Superseded,
    TimerFired,
    Unlink,
    UnlinkReason,
)
from gossip.incarnation import life_of, make_incarnation
from gossip.router import GossipCore
from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.types import NodeId
from transport.wire import Kind

from .observers import Observers
from .plan import Network, node_name
from .process import Core, CoreFactory, Process, address_of
from .trace import Trace
from .wire import ARRIVE, Wire

_TIMER, _CALL, _CLOSED, _EVENT = 1, 2, 3, 4
_LINES_MAX: Final = 2048
#: Observers hear of broadcasts, and of bodies that may be too large.
_LARGE_BYTES: Final = 1 << 20
#: How late a timer may be before the shell says that the loop stalled (gossip/service.py).
STALL_S: Final = 0.2
#: How long a node that stood still is not blamed for what it believes: it has to catch up first.
SICK_GRACE_S: Final = 10.0
#: How long a node that leaves takes to close its links.
_LEAVE_S: Final = 0.05
#: What a process that stands still holds in socket buffers; beyond it the senders would be stopped.
INBOX_MAX: Final = 65_536
_FIRST_LIFE: Final = 1_700_000_000


class World:
    """Nodes, links, time.

    Args:
        seed: Draws everything.
        network: What lies between the nodes.
        config: Of every core.
        observers: Told about every transition.
        core_factory: Makes a node's core; tests plant faults here.
        log: Where the events are written as JSON lines; ``None``: nowhere.
    """

    def __init__(
        self,
        seed: int,
        network: Network,
        config: GossipConfig,
        observers: Observers,
        core_factory: CoreFactory = GossipCore,
        log: TextIO | None = None,
    ) -> None:
        self.seed = seed
        self.network = network
        self.config = config
        self.now = 0.0
        self.order = 0
        self.queue: list[tuple[float, int, int, Any, Any, Any]] = []
        self.processes: dict[NodeId, Process] = {}
        """The latest process of each node, ended ones included."""
        self.events = 0
        self.uids = 0
        self.inbox_peak = 0
        self.islands: dict[int, int] | None = None
        """While a partition separates groups that cannot reach each other by any way: node -> group."""
        self.islands_before: tuple[dict[int, int], float] | None = None
        """The latest such partition and when it ended."""
        self.trace = Trace(log)
        self.wire = Wire(self, network, seed, random.Random(f"{seed}/wire"))
        self._observers = observers
        self._core_factory = core_factory
        self._lives: dict[NodeId, int] = {}
        self._last_send: Send | None = None
        self._last_received: Received | None = None

    # --- stimuli and faults -----------------------------------------------------------------------------------

    def start(self, index: int, seeds: Sequence[NodeId] = ()) -> Process:
        """Start a node, or start it again with a higher life."""
        name = node_name(index)
        before = self.processes.get(name)
        if before is not None and before.running:
            raise ValueError(f"{name} runs already")
        life = max(self._lives.get(name, 0), _FIRST_LIFE + int(self.now)) + 1
        self._lives[name] = life
        rng = random.Random(f"{self.seed}/node/{name}/{life}")
        drift = 1.0 + self.network.clock_drift * rng.uniform(-1.0, 1.0)
        me = Member(name, make_incarnation(life), MemberState.ALIVE, (address_of(name),), 1, b"")
        core = self._core_factory(me, self.config, rng)
        process = Process(self.uids, index, name, core, self.now, drift)
        process.dial_allowance = self.network.dials_per_s
        process.seeds = tuple(seed for seed in seeds if seed != name)
        self.uids += 1
        self.processes[name] = process
        self.note("f", name, "start")
        self._observers.started(process)
        self._feed(process, Started())
        self._discover(process)
        return process

    def kill(self, process: Process, *, silent: bool) -> None:
        """End a process; ``silent``: nobody is told, as when its machine loses power."""
        if not process.running:
            return
        self.note("f", process.name, "crash" if silent else "kill")
        self._end(process)
        process.silent_crash = silent
        # A process that was stopped is reset like any other once it is killed.
        process.mute_since = self.now if silent else None
        self.wire.go(process, silent=silent)

    def leave(self, process: Process) -> None:
        """The process leaves in order, then ends."""
        if process.live:
            self.note("f", process.name, "leave")
            process.leaving = True
            self.tell(process, LeaveRequested())
            self.at(_LEAVE_S, self._left, process)

    def freeze(self, process: Process, duration_s: float) -> None:
        """The process stands still, as after SIGSTOP or in a long garbage collection."""
        if not process.running or process.frozen_at is not None:
            return
        self.note("f", process.name, "freeze")
        process.frozen_at = process.mute_since = self.now
        process.deferred = True
        process.sick_until = float("inf")
        self.wire.muted(process)
        self.at(duration_s, self._thaw, process)

    def stimulate(self, process: Process, event: Event) -> None:
        """Something above or beside gossip happens at a node."""
        self.tell(process, event)

    def separate(self, groups: Iterable[Sequence[int]] | None) -> None:
        """Say which groups cannot reach each other by any way (``None``: the partition is over); for checkers."""
        if groups is None:
            if self.islands is not None:
                self.islands_before, self.islands = (self.islands, self.now), None
        else:
            self.islands = {index: number for number, group in enumerate(groups) for index in group}

    # --- what others look at ----------------------------------------------------------------------------------

    def live(self) -> list[Process]:
        """Processes that run and take part, in the order of their nodes' first start."""
        return [process for process in self.processes.values() if process.running and not process.core.ended]

    def running_of(self, indices: Iterable[int]) -> list[Process]:
        """The running processes of these nodes."""
        found = (self.processes.get(node_name(index)) for index in indices)
        return [process for process in found if process is not None and process.running]

    def apart(self, a: int, b: int, grace_s: float = 0.0) -> bool:
        """Whether a partition separates two nodes, or did until ``grace_s`` ago."""
        if self.islands is not None and self.islands.get(a) != self.islands.get(b):
            return True
        if self.islands_before is None:
            return False
        before, ended_at = self.islands_before
        return self.now <= ended_at + grace_s and before.get(a) != before.get(b)

    def note(self, tag: str, node: str, *what: object) -> None:
        """Write one line into the trace."""
        rest = "".join(f',"{part}"' if isinstance(part, str) else f",{part}" for part in what)
        self.trace.add(f'[{self.now:.9f},"{node}","{tag}"{rest}]')

    # --- time -------------------------------------------------------------------------------------------------

    def at(self, delay_s: float, action: Callable[..., None], *args: object) -> None:
        """Do something later."""
        self.order += 1
        heapq.heappush(self.queue, (self.now + delay_s, self.order, _CALL, action, args, None))

    def run(self, duration_s: float) -> None:
        """Let time pass."""
        end = self.now + duration_s
        queue, pop, trace = self.queue, heapq.heappop, self.trace
        add, lines = trace.add, 0
        while queue and queue[0][0] <= end:
            now, _, kind, x, y, z = pop(queue)
            self.now = now
            if kind == ARRIVE:
                if not x.open[y]:
                    continue
                process = x.ends[y]
                if process.deferred:
                    self._defer(process, (ARRIVE, x, y, z))
                    continue
                body = z.body
                add(f'[{now:.9f},"{process.name}","r","{z.peer}",{z.kind},{len(body)},{crc32(body)}]')
                self._feed(process, z)
            elif kind == _TIMER:
                if not x.running:
                    continue
                if x.deferred:
                    x.late_timers.append(y)
                    continue
                add(f'[{now:.9f},"{x.name}","t",{y}]')
                self._feed(x, TimerFired(y))
            else:
                x(*y)
            lines += 1
            if lines >= _LINES_MAX:
                lines = 0
                trace.flush()
        self.now = end

    # --- events in --------------------------------------------------------------------------------------------

    def tell(self, process: Process, event: Event) -> None:
        """Tell a process something, or let it wait until the process runs again."""
        if not process.running:
            return
        if process.deferred:
            self._defer(process, (_EVENT, None, 0, event))
            return
        peer = getattr(event, "peer", None)
        self.note("e", process.name, type(event).__name__, *(() if peer is None else (peer,)))
        self._feed(process, event)

    def defer_close(self, process: Process, link: object, end: int, lost: LinkLost) -> None:
        """The peer's close waits with everything else that arrived."""
        self._defer(process, (_CLOSED, link, end, lost))

    def _defer(self, process: Process, item: tuple[int, Any, int, Any]) -> None:
        if len(process.inbox) >= INBOX_MAX and item[0] == ARRIVE:
            self.wire.counters["dropped_full"] += 1
            return
        process.inbox.append(item)
        self.inbox_peak = max(self.inbox_peak, len(process.inbox))

    def _feed(self, process: Process, event: Event) -> None:
        self.events += 1
        try:
            effects = process.core.handle(event, self.now * process.drift)
        except RemoteProtocolError as error:
            self._observers.violation("protocol_error", f"{process.name} refuses what a peer sent: {error.message}")
            return
        except LocalProtocolError as error:
            self._observers.violation("protocol_error", f"{process.name} refuses a request: {error.message}")
            return
        dropped: list[Send] = []
        for effect in effects:
            if type(effect) is Send:
                last = self._last_send
                if (
                    last is not None
                    and last.body is effect.body
                    and last.ttl == effect.ttl
                    and last.kind == effect.kind
                ):
                    received = self._last_received
                    if received is None or received.peer is not process.name:
                        received = Received(process.name, effect.body, effect.kind, effect.ttl)
                        self._last_received = received
                else:
                    received = Received(process.name, effect.body, effect.kind, effect.ttl)
                    self._last_send, self._last_received = effect, received
                if effect.kind == Kind.BROADCAST or len(effect.body) > _LARGE_BYTES:
                    self._observers.sent(effect)
                if not self.wire.send(process, effect, received):
                    dropped.append(effect)
            elif type(effect) is SetTimer:
                self.order += 1
                due = self.now + effect.delay_s / process.drift
                heapq.heappush(self.queue, (due, self.order, _TIMER, process, effect.token, None))
            else:
                self._execute(process, effect)
        for lost in dropped:
            self.tell(process, SendDropped(lost))

    # --- effects out ------------------------------------------------------------------------------------------

    def _execute(self, process: Process, effect: object) -> None:
        match effect:
            case MemberChanged(before, after):
                was = -1 if before is None else int(before.state)
                self.trace.add(
                    f'[{self.now:.9f},"{process.name}","m","{after.node_id}",{after.incarnation},{was},{int(after.state)}]'
                )
                self._observers.transition(process, before, after, self.now)
            case Deliver():
                self.note("d", process.name, effect.origin, effect.sequence)
                self._observers.delivered(process, effect, self.now)
            case Dial():
                self.wire.dial(process, effect.peer)
            case Unlink(reason=UnlinkReason.IDLE):
                self.wire.offer_parting(process, effect.peer)
            case Unlink():
                self.wire.unlink(process, effect.peer)
            case MemberForgotten():
                self._observers.forgotten(process, effect.member)
            case Persist():
                self._lives[process.name] = max(self._lives[process.name], life_of(effect.incarnation))
            case Superseded():
                self.note("f", process.name, "superseded")
                self._observers.superseded(process, effect)
                self.at(_LEAVE_S, self._stopped, process)
            case _:
                pass  # effects of a later version that concern only the layer above

    def _stopped(self, process: Process) -> None:
        """A superseded process stops as its operator would want it to."""
        if process.running:
            self._end(process)
            self.wire.go(process, silent=False)

    def _left(self, process: Process) -> None:
        if process.running:
            self._end(process)
            self.wire.go(process, silent=False, left=True)

    def _end(self, process: Process) -> None:
        process.running = False
        process.ended_at = self.now
        process.deferred = False
        process.inbox.clear()
        process.late_timers.clear()
        self._observers.ended(process)

    # --- freezes ----------------------------------------------------------------------------------------------

    def _thaw(self, process: Process) -> None:
        if not process.running or process.frozen_at is None:
            return
        self.note("f", process.name, "thaw")
        frozen_s = self.now - process.frozen_at
        process.frozen_at = process.mute_since = None
        process.sick_until = self.now + SICK_GRACE_S
        if frozen_s > STALL_S:
            # Timers measure their lateness before anything else is done (gossip/service.py).
            self._feed(process, Stalled(frozen_s))
        self.at(0.0, self._catch_up, process)

    def _catch_up(self, process: Process) -> None:
        """Work off one thing that waited: late timers first, then what arrived, in order."""
        if not process.running or process.frozen_at is not None:
            return
        if process.late_timers:
            token = process.late_timers.popleft()
            self.trace.add(f'[{self.now:.9f},"{process.name}","t",{token}]')
            self._feed(process, TimerFired(token))
        elif process.inbox:
            kind, link, end, event = process.inbox.popleft()
            if kind == _CLOSED:
                process.deferred = False
                self.wire.closed_by_peer(link, end, event)
                process.deferred = True
            elif kind == _EVENT:
                self.note("e", process.name, type(event).__name__)
                self._feed(process, event)
            elif link.open[end]:
                self.trace.add(f'[{self.now:.9f},"{process.name}","r","{event.peer}",{event.kind},{len(event.body)}]')
                self._feed(process, event)
        if process.late_timers or process.inbox:
            self.at(self.network.event_cost_s, self._catch_up, process)
        else:
            process.deferred = False

    # --- discovery --------------------------------------------------------------------------------------------

    def _discover(self, process: Process) -> None:
        """Seeds are looked for at the start, and for ever after as long as they are not linked."""
        if not process.live or not process.seeds:
            return
        for seed in process.seeds:
            if seed not in process.links:
                self.tell(process, PeerFound(seed, (address_of(seed),)))
        interval_s = self.network.discovery_interval_s
        if interval_s > 0:
            spread = random.Random(f"{self.seed}/discovery/{process.uid}/{self.now}").uniform(0.75, 1.25)
            self.at(interval_s * spread, self._discover, process)


__all__ = ["Core", "World"]
