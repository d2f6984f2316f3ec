"""A group of Raft cores in virtual time, with everything going wrong that may: one seed draws it all.

Messages are lost, doubled, delayed and reordered; links are cut, both ways or one way; nodes crash between any two
effects and come back with what their disk holds: writes that were begun may be there, missing, or torn (the vote but
not the entries, or some of the entries); clocks stall.  Meanwhile clients propose and read, members are added and
removed, leadership is handed over, snapshots are taken.  :mod:`raft_checkers` watches each step.  Then the faults stop,
and within some election timeouts all members must have everything.

``python tests/raft_sim.py --seeds 10000`` (``make raft-sim``) runs many; ``--first SEED --seeds 1`` repeats one.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from raft_checkers import Checker, Disk, Violation, digest

from state.errors import NotInGroup
from state.raft.configuration import Configuration
from state.raft.events import (
    Apply,
    ChangeRequested,
    Effect,
    Event,
    LeaveRequested,
    Persist,
    Persisted,
    Proposed,
    ReadReady,
    ReadRequested,
    Received,
    Restore,
    Role,
    RoleChanged,
    Send,
    SendSnapshot,
    SnapshotSent,
    SnapshotTaken,
    Ticked,
    TransferRequested,
)
from state.raft.messages import InstallSnapshot, Message, VoteReply
from state.raft.node import RaftCore
from state.raft.types import Entry, RaftConfig, Vote, founded
from transport.types import NodeId

GROUP = "sim"
CONFIG = RaftConfig(
    election_timeout_s=0.15,
    heartbeat_interval_s=0.04,
    read_timeout_s=0.4,
    append_entries_max=4,
    inflight_max=3,
    uncommitted_bytes_max=1_500,
    log_bytes_max=2_000,
    kept_entries=3,
)
NAMES = tuple(NodeId(name) for name in "abcdefg")
FAULTY_S = 4.0
"""How long things go wrong."""
CALM_S = 4.0
"""How long until everybody must have everything, in the worst case."""


@dataclass(slots=True)
class Node:
    """One process, its disk, and what it has begun and not finished."""

    name: NodeId
    disk: Disk
    core: RaftCore | None = None
    life: int = 0
    writes: deque[Persist] = field(default_factory=deque)
    """Begun, and not known to be durable."""
    applied: int = 0
    state: bytes = b""
    staged: dict[tuple[int, int], bytes] = field(default_factory=dict)
    """States that came for a snapshot, by its index and term; on disk."""
    committed: int = 0


@dataclass(slots=True)
class Faults:
    """How likely what is; drawn for each seed, so that seeds differ in kind."""

    lose: float
    double: float
    delay_s: float
    crash: float
    """At each event."""
    forgetful: int
    """By how much likelier while a vote is being written."""
    write_s: float
    isolate: float
    changes: float


class World:
    """One run.

    Args:
        seed: Draws everything.
    """

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.now = 0.0
        self.check = Checker()
        self.steps = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._numbers = itertools.count(1)
        self._cut: dict[tuple[NodeId, NodeId], None] = {}
        self._calm = False
        self.refused = 0
        # Short timeouts make elections that meet; long ones let groups get somewhere.
        self._config = replace(
            CONFIG, election_timeout_s=rng.choice((0.07, 0.15)), heartbeat_interval_s=rng.choice((0.02, 0.04))
        )
        founders = NAMES[: rng.choice((1, 2, 3, 3, 3, 5, 5, 5))]
        self.faults = Faults(
            lose=rng.choice((0.0, 0.02, 0.15)),
            double=rng.choice((0.0, 0.1)),
            delay_s=rng.choice((0.005, 0.02, 0.08)),
            crash=rng.choice((0.0, 0.002, 0.01)),
            forgetful=rng.choice((1, 10)),
            write_s=rng.choice((0.001, 0.01, 0.06)),
            isolate=rng.choice((0.0, 0.3, 0.7)),
            changes=rng.choice((0.0, 0.1, 0.4)),
        )
        first = founded(Configuration(founders))
        self.nodes = {name: Node(name, Disk()) for name in NAMES}
        for name in founders:
            self.nodes[name].disk.vote = first.vote
            self.nodes[name].disk.entries = {entry.index: entry for entry in first.entries}
        for node in self.nodes.values():
            self._start(node)

    # --- time ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """The whole run.

        Raises:
            Violation: A safety property or, after the faults, liveness does not hold.
        """
        self._at(0.0, self._mischief)
        self._at(0.0, self._client)
        self._until(lambda: self.now >= FAULTY_S)
        self._calm = True
        self._cut.clear()
        for node in self.nodes.values():
            if node.core is None:
                self._start(node)
        deadline = self.now + CALM_S
        self._until(lambda: self.now >= deadline or self._agreed())
        if not self._agreed():
            raise Violation(f"no agreement {CALM_S} s after the faults: {self._summary()}")

    def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            self.now, _, action = heapq.heappop(self._queue)
            self.steps += 1
            action()

    def _at(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay_s, next(self._order), action))

    def _agreed(self) -> bool:
        """Whether there is one leader whose members have all of its log, and something new was committed in calm."""
        leaders = [n for n in self.nodes.values() if n.core is not None and n.core.role is Role.LEADER]
        for leader in leaders:
            assert leader.core is not None
            last = leader.core.log.last_index
            members = leader.core.configuration.members
            if leader.core.log.committed == last and all(self.nodes[m].applied == last for m in members):
                return any(isinstance(entry.content, bytes) and entry.content[:1] == b"!" for entry in self._recent())
        return False

    def _recent(self) -> list[Entry]:
        return self.check.committed[-8:]

    def _summary(self) -> str:
        cores = [node.core for node in self.nodes.values() if node.core is not None]
        return "; ".join(f"{core.role.value} {core.statistics()} {core.configuration}" for core in cores)

    # --- processes ----------------------------------------------------------------------------------------------

    def _start(self, node: Node) -> None:
        node.life += 1
        disk = node.disk
        stored = disk.stored()
        rng = random.Random(self.rng.getrandbits(32))
        node.core = RaftCore(node.name, GROUP, self._config, rng, stored, self.now)
        node.writes.clear()
        node.applied, node.state = disk.snapshot.index, disk.state
        node.committed = 0
        self._tick_later(node, node.life)

    def _crash(self, node: Node) -> None:
        """Lose what is not durable; of what was begun, some may be."""
        node.core = None
        survive = self.rng.randrange(len(node.writes) + 1)
        for _ in range(survive):
            self._store(node, node.writes.popleft())
        if node.writes and self.rng.random() < 0.5:
            self._store(node, self._torn(node.writes[0]))
        node.writes.clear()
        life = node.life
        self._at(
            self.rng.uniform(0.01, 0.6), lambda: self._start(node) if node.life == life and node.core is None else None
        )

    def _torn(self, write: Persist) -> Persist:
        if write.snapshot is not None:
            return Persist(write.number, write.vote, None, ())
        return Persist(write.number, write.vote, None, write.entries[: self.rng.randrange(len(write.entries) + 1)])

    def _store(self, node: Node, write: Persist) -> None:
        disk = node.disk
        if write.vote is not None:
            self.check.voted(node.name, write.vote)
            disk.vote = write.vote
        if write.snapshot is not None:
            disk.state = node.staged[write.snapshot.index, write.snapshot.term]
            disk.snapshot = write.snapshot
            disk.entries.clear()
        if write.entries:
            first = write.entries[0].index
            for index in [index for index in disk.entries if index >= first]:
                del disk.entries[index]
            disk.entries.update((entry.index, entry) for entry in write.entries)
            before = disk.entries.get(first - 1)
            if before is not None or first - 1 == disk.snapshot.index:
                self.check.wrote(node.name, write.entries, before.term if before else disk.snapshot.term)

    def _tick_later(self, node: Node, life: int) -> None:
        core = node.core
        if core is not None and node.life == life:
            stall_s = self.rng.choice((0.0, 0.0, 0.0, 0.0, 0.01, 0.3)) if not self._calm else 0.0
            wait_s = max(0.001, core.deadline_at - self.now) + (stall_s if self.rng.random() < 0.02 else 0.0)
            self._at(wait_s, lambda: self._tick(node, life))

    def _tick(self, node: Node, life: int) -> None:
        if node.life == life and node.core is not None:
            if self.now >= node.core.deadline_at:
                self._event(node, Ticked())
            self._tick_later(node, life)

    def _event(self, node: Node, event: Event) -> None:
        core = node.core
        if core is None:
            return
        try:
            effects = core.handle(event, self.now)
        except NotInGroup:
            self.refused += 1  # of a member that was removed a moment ago; any other refusal is a violation
            return
        if core.role is Role.LEADER and core.log.committed > node.committed:
            disks = {name: other.disk for name, other in self.nodes.items()}
            self.check.commits(node.name, core.term, core.log, disks)
        if core.log.committed < node.committed:
            raise Violation(f"{node.name} takes back what it committed")
        node.committed = core.log.committed
        risk = self.faults.crash * (self.faults.forgetful if any(write.vote for write in node.writes) else 1)
        crash = not self._calm and self.rng.random() < risk
        for effect in effects[: self.rng.randrange(len(effects) + 1)] if crash else effects:
            self._execute(node, core, effect)
        if crash:
            self._crash(node)

    def _execute(self, node: Node, core: RaftCore, effect: Effect) -> None:
        match effect:
            case Persist():
                node.writes.append(effect)
                life = node.life
                self._at(self._write_s(), lambda: self._stored(node, life, effect.number))
            case Send():
                if isinstance(effect.message, VoteReply) and effect.message.granted and not effect.message.pre:
                    self.check.voted(node.name, Vote(effect.message.term, effect.peer))
                self._send(node.name, effect.peer, effect.message)
            case SendSnapshot():
                self._send_snapshot(node, effect)
            case Apply():
                self.check.applies(node.name, effect.entries, node.applied)
                for entry in effect.entries:
                    node.state = digest(node.state, entry)
                node.applied = effect.entries[-1].index
                if self.rng.random() < 0.1:
                    self._snapshot(node, core)
            case Restore():
                node.applied, node.state = effect.snapshot.index, node.disk.state
                self.check.restored(node.name, effect.snapshot, node.state)
            case ReadReady():
                self.check.reads(node.name, effect.number, effect.index, node.applied)
            case RoleChanged() if effect.role is Role.LEADER:
                self.check.leads(node.name, effect.term, core.log)
            case _:
                pass

    def _write_s(self) -> float:
        return self.rng.uniform(0.0, 0.002 if self._calm else self.faults.write_s)

    def _stored(self, node: Node, life: int, number: int) -> None:
        """The disk has come to a write: it and all before it are durable."""
        if node.life != life or node.core is None or not node.writes or node.writes[0].number > number:
            return
        while node.writes and node.writes[0].number <= number:
            self._store(node, node.writes.popleft())
        self._event(node, Persisted(number))

    def _snapshot(self, node: Node, core: RaftCore) -> None:
        """Take a snapshot of what is applied; done at once, but the core hears of it later."""
        if node.applied > node.disk.snapshot.index and not any(write.snapshot for write in node.writes):
            snapshot, life = core.snapshot_at(node.applied), node.life
            node.disk.snapshot, node.disk.state = snapshot, node.state
            for index in [index for index in node.disk.entries if index <= snapshot.index]:
                del node.disk.entries[index]
            self._at(self._write_s(), lambda: self._event(node, SnapshotTaken(snapshot)) if node.life == life else None)

    # --- the network --------------------------------------------------------------------------------------------

    def _send(self, source: NodeId, target: NodeId, message: Message) -> None:
        if (source, target) in self._cut or (not self._calm and self.rng.random() < self.faults.lose):
            return
        node = self.nodes[target]
        for _ in range(2 if not self._calm and self.rng.random() < self.faults.double else 1):
            self._at(self._delay_s(), lambda: self._event(node, Received(source, GROUP, message)))

    def _delay_s(self) -> float:
        return self.rng.uniform(0.0005, 0.003 if self._calm else self.faults.delay_s)

    def _send_snapshot(self, node: Node, effect: SendSnapshot) -> None:
        assert isinstance(effect.message, InstallSnapshot)
        snapshot, life = effect.message.snapshot, node.life
        if node.disk.snapshot.index < snapshot.index:
            raise Violation(f"{node.name} sends a snapshot that it does not have")
        target = self.nodes[effect.peer]
        fails = not self._calm and self.rng.random() < 0.3
        arrives = not fails and (node.name, target.name) not in self._cut and target.core is not None
        state = self.check.state_at(snapshot.index)

        def arrive() -> None:
            if arrives:
                target.staged[snapshot.index, snapshot.term] = state
                self._event(target, Received(node.name, GROUP, effect.message))
            if node.life == life:
                self._event(node, SnapshotSent(target.name, arrives))

        self._at(self._delay_s() * 3, arrive)

    # --- what goes on -------------------------------------------------------------------------------------------

    def _client(self) -> None:
        """Propose, read, and change members at whatever node, as long as it lasts."""
        rng = self.rng
        node = self._some_leader() if rng.random() < 0.8 else rng.choice(list(self.nodes.values()))
        number = next(self._numbers)
        mark = b"!" if self._calm else b"?"
        if node is not None and node.core is not None:
            draw = rng.random()
            if draw < 0.5:
                batch = tuple(
                    (next(self._numbers), mark + bytes(rng.randrange(60))) for _ in range(rng.randrange(1, 4))
                )
                self._event(node, Proposed(batch))
            elif draw < 0.8:
                self.check.asks(node.name, number)
                self._event(node, ReadRequested(number))
            elif not self._calm and draw < 0.8 + 0.2 * self.faults.changes:
                self._event(node, self._change(number))
            elif not self._calm and draw < 0.9:
                self._event(node, TransferRequested(rng.choice((None, *NAMES))))
        self._at(rng.uniform(0.002, 0.04), self._client)

    def _change(self, number: int) -> Event:
        rng = self.rng
        if rng.random() < 0.3:
            return LeaveRequested(number)
        voters = rng.sample(NAMES, rng.choice((1, 2, 3, 3, 3, 4, 5)))
        rest = [name for name in NAMES if name not in voters]
        learners = rng.sample(rest, rng.randrange(min(2, len(rest)) + 1))
        return ChangeRequested(number, tuple(voters), tuple(learners), auto_leave=rng.random() < 0.8)

    def _some_leader(self) -> Node | None:
        leaders = [n for n in self.nodes.values() if n.core is not None and n.core.role is Role.LEADER]
        return self.rng.choice(leaders) if leaders else None

    def _mischief(self) -> None:
        """Cut links, mend them, and kill somebody now and then."""
        if self._calm:
            return
        rng = self.rng
        if rng.random() < self.faults.isolate:
            self._cut.clear()
            side = rng.sample(NAMES, rng.randrange(1, 4))
            leader = self._some_leader()
            if leader is not None and rng.random() < 0.5:
                side = [leader.name]
            ways = rng.choice(((1, 1), (1, 1), (1, 0), (0, 1)))
            for inner, outer in itertools.product(side, [name for name in NAMES if name not in side]):
                if ways[0]:
                    self._cut[inner, outer] = None
                if ways[1]:
                    self._cut[outer, inner] = None
        elif rng.random() < 0.5:
            self._cut.clear()
        if self.faults.crash and rng.random() < 0.2:
            victim = rng.choice([self._some_leader(), *self.nodes.values()])
            if victim is not None and victim.core is not None:
                self._crash(victim)
        self._at(rng.uniform(0.02, 0.5), self._mischief)


def main() -> int:
    """Run seeds one after the other; the exit status says whether any failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    started, failed, steps, committed, reads, refused = time.monotonic(), 0, 0, 0, 0, 0
    for seed in range(options.first, options.first + options.seeds):
        world = World(seed)
        try:
            world.run()
        except Exception as error:  # noqa: BLE001 - whatever it is, the seed is to be named and the next one run
            failed += 1
            print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
        steps += world.steps
        committed += len(world.check.committed)
        reads += world.check.reads_done
        refused += world.refused
    seconds = time.monotonic() - started
    print(
        f"raft-sim: {options.seeds} seeds, {failed} failed, {steps} events, {committed} entries committed,"
        f" {reads} reads, {refused} refused messages, {options.seeds / seconds:.1f} seeds/s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
