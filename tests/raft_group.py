"""A few Raft cores by hand: what each is told and when is up to the test; the transcripts' words.

Messages wait until they are delivered, writes until they are said to be durable (at once, unless a disk is slow), and
time passes when it is told to.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from raft_checkers import Disk

from state.errors import RaftMessageRefused
from state.raft.configuration import Configuration
from state.raft.events import (
    Accepted,
    Apply,
    ChangeRequested,
    ConfigurationChanged,
    Effect,
    Event,
    LeaveRequested,
    Persist,
    Persisted,
    Proposed,
    ReadReady,
    ReadRequested,
    Received,
    Refused,
    Restore,
    RoleChanged,
    Send,
    SendSnapshot,
    SnapshotSent,
    SnapshotTaken,
    SnapshotWanted,
    Ticked,
    TransferEnded,
    TransferRequested,
)
from state.raft.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    ReadAnswer,
    ReadAsk,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from state.raft.node import RaftCore
from state.raft.types import Entry, RaftConfig, Stored, Vote, founded
from transport.types import NodeId

GROUP = "test"
CONFIG = RaftConfig(election_timeout_s=1.0, heartbeat_interval_s=0.1, kept_entries=0)


@dataclass(slots=True)
class Member:
    """A core, its disk, and what waits for it."""

    name: NodeId
    disk: Disk
    core: RaftCore
    slow: bool = False
    writes: deque[Persist] = field(default_factory=deque)
    life: int = 1


class Group:
    """Some members, and the messages between them."""

    def __init__(self, config: RaftConfig = CONFIG) -> None:
        self.config = config
        self.now = 0.0
        self.members: dict[NodeId, Member] = {}
        self.wire: list[tuple[NodeId, NodeId, Message]] = []
        self.late: list[tuple[NodeId, NodeId, Message]] = []
        self.snapshots: list[tuple[NodeId, SendSnapshot]] = []
        self.cut: dict[tuple[NodeId, NodeId], None] = {}
        self.numbers = 0

    def add(self, name: str, stored: Stored) -> Member:
        """A node that starts with what is stored."""
        disk = Disk(stored.vote, stored.snapshot, b"", {entry.index: entry for entry in stored.entries})
        member = Member(NodeId(name), disk, self._core(NodeId(name), disk, 1))
        self.members[member.name] = member
        return member

    def _core(self, name: NodeId, disk: Disk, life: int) -> RaftCore:
        return RaftCore(name, GROUP, self.config, random.Random(f"{name}{life}"), disk.stored(), self.now)

    def number(self) -> int:
        """A number for a proposal or a read."""
        self.numbers += 1
        return self.numbers

    def tell(self, name: str, event: Event) -> list[str]:
        """Give a core an event; returns what came of it, in words."""
        member = self.members[NodeId(name)]
        try:
            effects = member.core.handle(event, self.now)
        except RaftMessageRefused as error:
            return [f"{name} refuses: {error.message}"]
        lines = []
        for effect in effects:
            lines += self._carry_out(member, effect)
        while member.writes and not member.slow:
            lines += self.write(name)
        return lines

    def write(self, name: str) -> list[str]:
        """The disk completes the first write that was begun."""
        member = self.members[NodeId(name)]
        write = member.writes.popleft()
        disk = member.disk
        disk.vote = write.vote or disk.vote
        if write.snapshot is not None:
            disk.snapshot = write.snapshot
            disk.entries.clear()
        for index in [index for index in disk.entries if write.entries and index >= write.entries[0].index]:
            del disk.entries[index]
        disk.entries.update((entry.index, entry) for entry in write.entries)
        return self.tell(name, Persisted(write.number))

    def crash(self, name: str) -> list[str]:
        """The process ends: what was not durable is lost, and what is under way to it."""
        member = self.members[NodeId(name)]
        lost = len(member.writes)
        member.writes.clear()
        self.wire = [message for message in self.wire if message[1] != name]
        self.cut.update({pair: None for other in self.members for pair in ((other, member.name), (member.name, other))})
        return [f"{name} is gone; {lost} writes lost"]

    def restart(self, name: str) -> list[str]:
        """It starts again from its disk."""
        member = self.members[NodeId(name)]
        member.life += 1
        member.core = self._core(member.name, member.disk, member.life)
        self.mend(name)
        return [self.status(name)]

    def mend(self, name: str) -> None:
        """All links of a node work again."""
        for pair in [pair for pair in self.cut if name in pair]:
            del self.cut[pair]

    def tick(self, name: str) -> list[str]:
        """Time passes to a node's deadline, and that node notices."""
        self.now = max(self.now, self.members[NodeId(name)].core.deadline_at)
        return self.tell(name, Ticked())

    def deliver(self, source: str = "", target: str = "", most: int = 1 << 30) -> list[str]:
        """Deliver messages that are waiting now, in their order, between these two."""
        lines = []
        chosen = [m for m in self.wire if source in ("", m[0]) and target in ("", m[1])][:most]
        identities = {id(item) for item in chosen}
        self.wire = [item for item in self.wire if id(item) not in identities]
        for sender, receiver, message in chosen:
            if (sender, receiver) not in self.cut:
                lines.append(f"{receiver} hears {sender}: {self.words(message)}")
                lines += [f"  {line}" for line in self.tell(receiver, Received(sender, GROUP, message))]
        return lines

    def settle(self) -> list[str]:
        """Deliver until nothing is under way."""
        lines = []
        while self.wire:
            lines += self.deliver(most=1)
        return lines

    def run(self, seconds: float) -> list[str]:
        """Everybody whose time has come ticks and everything is delivered; tells only what members became."""
        end = self.now + seconds
        lines: list[str] = []
        while True:
            member = min(self.members.values(), key=lambda member: member.core.deadline_at)
            if member.core.deadline_at > end:
                self.now = end
                return [line.strip() for line in lines if " is " in line]
            lines += self.tick(member.name) + self.settle()

    def snapshot_arrives(self, *, arrived: bool) -> list[str]:
        """The first snapshot that is under way comes to its end."""
        source, effect = self.snapshots.pop(0)
        lines: list[str] = []
        if arrived:
            lines += self.tell(effect.peer, Received(source, GROUP, effect.message))
        return lines + self.tell(source, SnapshotSent(effect.peer, arrived))

    def take_snapshot(self, name: str) -> list[str]:
        """The state machine's state is stored, and the entries before it go."""
        member = self.members[NodeId(name)]
        snapshot = member.core.snapshot_at(member.core.log.applied)
        member.disk.snapshot = snapshot
        for index in [index for index in member.disk.entries if index <= snapshot.index]:
            del member.disk.entries[index]
        return self.tell(name, SnapshotTaken(snapshot))

    # --- words ----------------------------------------------------------------------------------------------------

    def _carry_out(self, member: Member, effect: Effect) -> list[str]:
        name = member.name
        match effect:
            case Persist():
                member.writes.append(effect)
                return [f"{name} writes {self._write_words(effect)}"]
            case Send():
                self.wire.append((name, effect.peer, effect.message))
                return [f"{name} to {effect.peer}: {self.words(effect.message)}"]
            case SendSnapshot():
                self.snapshots.append((name, effect))
                return [f"{name} to {effect.peer}, with the state: {self.words(effect.message)}"]
            case Apply(entries=entries):
                return [f"{name} applies {', '.join(map(entry_words, entries))}"]
            case Restore(snapshot=snapshot):
                return [f"{name} restores the state at {snapshot.index}"]
            case Accepted():
                return [f"{name}: {effect.number} has place {effect.index} of term {effect.term}"]
            case Refused():
                asks = "" if effect.leader is None else f"; {effect.leader} leads"
                return [f"{name}: {effect.number} is refused: {effect.reason.value}{asks}"]
            case ReadReady():
                return [f"{name}: {effect.number} may read at {effect.index}"]
            case RoleChanged():
                led = "" if effect.leader in (None, name) else f" led by {effect.leader}"
                return [f"{name} is {effect.role.value} in term {effect.term}{led}"]
            case ConfigurationChanged():
                return [f"{name} counts on {configuration_words(effect.configuration)}"]
            case TransferEnded():
                return [f"{name}: hand-over to {effect.target} {'done' if effect.succeeded else 'failed'}"]
            case SnapshotWanted():
                return [f"{name} wants a snapshot at {effect.index}"]

    def _write_words(self, write: Persist) -> str:
        parts = []
        if write.vote is not None:
            parts.append(f"term {write.vote.term}, vote {write.vote.candidate or 'nobody'}")
        if write.snapshot is not None:
            parts.append(f"the state at {write.snapshot.index}")
        parts += map(entry_words, write.entries)
        return "; ".join(parts)

    def words(self, message: Message) -> str:
        """A message in words."""
        match message:
            case VoteRequest():
                kind = "pre-vote" if message.pre else "vote"
                handed = ", told to" if message.transfer else ""
                return f"{kind} in {message.term}? log ends {message.last_index} of {message.last_term}{handed}"
            case VoteReply():
                return (
                    f"{'pre-vote' if message.pre else 'vote'} in {message.term}: {'yes' if message.granted else 'no'}"
                )
            case Append():
                entries = " ".join(map(entry_words, message.entries)) or "nothing"
                place = f"after {message.previous_index} of {message.previous_term}"
                return f"term {message.term}, {place}: {entries}; committed {message.commit}"
            case AppendReply() if message.accepted:
                return f"term {message.term}, has {message.index}"
            case AppendReply():
                hint = f"try {message.hint_index} of {message.hint_term}"
                return f"term {message.term}, not after {message.index}, {hint}"
            case Heartbeat():
                return f"heartbeat in {message.term}, committed {message.commit}, round {message.round}"
            case HeartbeatReply():
                return f"heartbeat heard in {message.term}, round {message.round}"
            case InstallSnapshot(snapshot=snapshot):
                return f"term {message.term}, state at {snapshot.index} of {snapshot.term}"
            case TimeoutNow():
                return f"stand now, says the leader of {message.term}"
            case ReadAsk():
                return f"where may I read? term {message.term}"
            case ReadAnswer():
                return f"read at {message.index}, term {message.term}"

    def status(self, name: str) -> str:
        """A member in one line."""
        core = self.members[NodeId(name)].core
        log = core.log
        terms = " ".join(str(log.term_at(index)) for index in range(log.offset + 1, log.last_index + 1))
        start = f"state at {log.offset}, " if log.offset else ""
        return f"{name}: {core.role.value} in {core.term}, {start}terms {terms or 'none'}, committed {log.committed}"


def entry_words(entry: Entry) -> str:
    """An entry as ``index:term=content``."""
    place, content = f"{entry.index}:{entry.term}", entry.content
    if isinstance(content, Configuration):
        return f"{place}=({configuration_words(content)})"
    return f"{place}={content.decode() if content else '-'}"


def configuration_words(configuration: Configuration) -> str:
    """The members in words."""
    words = " ".join(configuration.voters) or "nobody"
    if configuration.outgoing:
        words += f", with {' '.join(configuration.outgoing)}{', then alone' if configuration.auto_leave else ''}"
    if configuration.learners:
        words += f"; learning {' '.join(configuration.learners)}"
    return words


def log_of(*terms: int, members: str = "abc", term: int = 0, vote: str | None = None) -> Stored:
    """What is stored of a member whose entries have these terms, the first being the configuration."""
    entries = [Entry(1, terms[0], Configuration(tuple(map(NodeId, members))))]
    entries += [Entry(index, at, f"{index}.{at}".encode()) for index, at in enumerate(terms[1:], 2)]
    return Stored(Vote(term or terms[-1], None if vote is None else NodeId(vote)), entries=tuple(entries))


class Transcript:
    """Carries out the commands of a transcript in ``tests/datadriven/raft``."""

    def __init__(self) -> None:
        self.group = Group()

    def execute(self, command: str) -> list[str]:
        """One command; see the files for what there is."""
        group = self.group
        verb, *words = command.split()
        name = words[0] if words else ""
        match verb:
            case "group":  # group a b c [and d e]: founders, and nodes that know of no group
                founders, _, others = command.removeprefix("group ").partition(" and ")
                for founder in founders.split():
                    group.add(founder, founded(Configuration(tuple(map(NodeId, founders.split())))))
                for other in others.split():
                    group.add(other, Stored())
            case "stored":  # stored a abc 1 1 4: term 4, three entries of these terms; [term 6]
                terms, _, term = command.removeprefix(f"stored {name} {words[1]} ").partition(" term ")
                group.add(name, log_of(*map(int, terms.split()), members=words[1], term=int(term or 0)))
                return [group.status(name)]
            case "config":  # config inflight_max=2
                limits = {key: int(value) for key, value in (word.split("=") for word in words)}
                group.config = RaftConfig(1.0, 0.1, kept_entries=limits.pop("kept_entries", 0), **limits)
            case "tick":
                return group.tick(name)
            case "wait":
                group.now += float(name)
            case "run":
                return group.run(float(name))
            case "deliver":  # deliver [from a] [to b] [N]
                source = words[words.index("from") + 1] if "from" in words else ""
                target = words[words.index("to") + 1] if "to" in words else ""
                return group.deliver(source, target, int(words[-1]) if words and words[-1].isdigit() else 1 << 30)
            case "settle":
                return group.settle() if name != "quietly" else group.settle()[:0]
            case "elect":  # elect a: it stands, everything is delivered, without telling
                group.tick(name)
                group.settle()
                return [group.status(member) for member in group.members]
            case "cut":  # cut a [b ...]: between a and these, or all; oneway a b: what a says to b
                for other in words[1:] or [other for other in group.members if other != name]:
                    group.cut.update({(NodeId(name), NodeId(other)): None, (NodeId(other), NodeId(name)): None})
            case "oneway":
                group.cut[NodeId(name), NodeId(words[1])] = None
            case "mend":
                group.cut.clear()
            case "double":  # every waiting message comes twice
                group.wire += [(source, target, message) for source, target, message in group.wire]
            case "hold":  # hold a b: what a has said to b comes later; release: now
                group.late += [item for item in group.wire if item[:2] == (name, words[1])]
                group.wire = [item for item in group.wire if item[:2] != (name, words[1])]
            case "release":
                group.wire, group.late = [*group.wire, *group.late], []
            case "drop":
                dropped = [words_ for _, _, words_ in group.wire]
                group.wire.clear()
                return [f"{len(dropped)} messages are lost"]
            case _:
                return self._asked(verb, name, words)
        return []

    def _asked(self, verb: str, name: str, words: list[str]) -> list[str]:
        group = self.group
        match verb:
            case "propose":
                return group.tell(name, Proposed(tuple((group.number(), word.encode()) for word in words[1:])))
            case "read":
                return group.tell(name, ReadRequested(group.number()))
            case "transfer":
                return group.tell(name, TransferRequested(NodeId(words[1]) if words[1:] else None))
            case "change":  # change a to b c [learning d] [by hand]
                rest = " ".join(words[2:])
                rest, _, by_hand = rest.partition(" by ")
                voters, _, learners = rest.partition(" learning ")
                names = [tuple(map(NodeId, part.split())) for part in (voters, learners)]
                return group.tell(name, ChangeRequested(group.number(), names[0], names[1], auto_leave=not by_hand))
            case "leave":
                return group.tell(name, LeaveRequested(group.number()))
            case "snapshot":
                return [*group.take_snapshot(name), group.status(name)]
            case "arrives":
                return group.snapshot_arrives(arrived=True)
            case "fails":
                return group.snapshot_arrives(arrived=False)
            case "slow":
                group.members[NodeId(name)].slow = True
            case "fast":
                group.members[NodeId(name)].slow = False
                return [line for _ in list(group.members[NodeId(name)].writes) for line in group.write(name)]
            case "write":
                return group.write(name)
            case "crash":
                return group.crash(name)
            case "restart":
                return group.restart(name)
            case "status":
                return [group.status(member) for member in (words or group.members)]
            case _:
                raise ValueError(verb)
        return []
