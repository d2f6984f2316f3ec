"""One member of a group: what it is, and what it makes of what happens.

Raft as in "In Search of an Understandable Consensus Algorithm" (Ongaro and Ousterhout 2014, extended version), with
what Ongaro's dissertation and ten years of practice added:

- *Pre-vote* (dissertation, 9.6): before it raises its term, a node asks whether it would be elected.  So one that was
  cut off does not depose a working leader when it comes back.
- *Check-quorum* (6.2): a leader that has not heard a majority for an election timeout resigns, so that its callers get
  an answer; and who has heard a leader within an election timeout votes for nobody else (section 6 of the paper), so
  that a removed node, or one that hears nobody, disturbs nobody.
- A message of a *lower* term is answered with the higher one, whatever it was: a node whose term got ahead behind a
  one-way fault would otherwise never be led again.

Use: make one from what is stored, give it each event with the time, carry out the effects in order, and tick it at
:attr:`RaftCore.deadline_at`.  :mod:`state.raft.events` says what the shell owes, :mod:`state.raft.durable` what waits
for the disk, :mod:`state.raft.leader` what a leader does.
"""

# core: no I/O

from __future__ import annotations

import random

from state.errors import NotInGroup, RaftMessageRefused
from transport.errors import LocalProtocolError
from transport.types import NodeId

from .checks import check
from .configuration import Configuration
from .durable import Durable, Needs
from .events import (
    Apply,
    ChangeRequested,
    ConfigurationChanged,
    Effect,
    Event,
    LeaveRequested,
    Persisted,
    Proposed,
    ReadReady,
    ReadRequested,
    Reason,
    Received,
    Refused,
    Restore,
    Role,
    RoleChanged,
    SnapshotSent,
    SnapshotTaken,
    SnapshotWanted,
    Ticked,
    TransferEnded,
    TransferRequested,
)
from .leader import Leader
from .log import Log
from .messages import (
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
from .reads import LocalReads, Origin
from .types import RaftConfig, Snapshot, Stored

_READ_NUMBER_BITS = 48


class RaftCore:
    """One member of one group.

    Args:
        owner: This node.
        group: The group's name; messages of another are refused.
        config: Times and limits.
        rng: The only randomness.
        stored: What the disk holds; at first, :func:`~state.raft.types.founded` for a founding member, nothing for
            one that is to be added.  The state machine is that of its snapshot.
        now: The time.
    """

    def __init__(
        self, owner: NodeId, group: str, config: RaftConfig, rng: random.Random, stored: Stored, now: float
    ) -> None:
        self._owner = owner
        self._group = group
        self._config = config
        self._rng = rng
        self._now = now
        self._durable = Durable(stored, config.held_max)
        self._log = self._durable.log
        self._role = Role.FOLLOWER
        self._leader: NodeId | None = None
        self._leadership: Leader | None = None
        self._leader_heard_at = now
        self._votes: dict[NodeId, bool] = {}
        self._local = LocalReads(rng.getrandbits(_READ_NUMBER_BITS), config.read_timeout_s)
        self._snapshot_asked = False
        self._told_role = RoleChanged(self._role, self._durable.term, None)
        self._told_configuration = self._log.configuration
        self._election_at = now
        self._await_leader()
        self.counters = {"elections": 0, "leaderships": 0, "refused": 0, "strangers": 0, "votes_withheld": 0}

    # --- what there is to see -----------------------------------------------------------------------------------

    @property
    def role(self) -> Role:
        """What it is at the moment."""
        return self._role

    @property
    def term(self) -> int:
        """The current term."""
        return self._durable.term

    @property
    def leader(self) -> NodeId | None:
        """Who leads in this term, as far as it knows."""
        return self._leader

    @property
    def configuration(self) -> Configuration:
        """Who is a member, by the last word in the log."""
        return self._log.configuration

    @property
    def deadline_at(self) -> float:
        """When to tick at the latest."""
        own = self._election_at if self._leadership is None else self._leadership.deadline_at
        return min(own, self._local.deadline_at)

    def snapshot_at(self, index: int) -> Snapshot:
        """What goes with a snapshot of the state at an applied index.

        Raises:
            ValueError: It is not applied yet, or no longer in the log.
        """
        term = self._log.term_at(index)
        if term is None or index > self._log.applied:
            raise ValueError(f"there is no state at {index}: applied is {self._log.applied}")
        return Snapshot(index, term, self._log.configuration_at(index))

    def statistics(self) -> dict[str, int]:
        """Positions in the log, and counters."""
        log = self._log
        return {
            **self.counters,
            "term": self._durable.term,
            "last_index": log.last_index,
            "persisted": log.persisted,
            "committed": log.committed,
            "applied": log.applied,
            "log_bytes": log.size_bytes,
            "held": self._durable.held,
            "held_dropped": self._durable.held_dropped,
            "reads": len(self._local),
        }

    @property
    def log(self) -> Log:
        """The log, to look at."""
        return self._log

    @property
    def leadership(self) -> Leader | None:
        """How it leads, to look at; ``None``: it does not."""
        return self._leadership

    # --- events -------------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event and return what to do about it, in order.

        Raises:
            RaftMessageRefused: A message that no correct member would send; nothing changed.
            LocalProtocolError: The shell says what cannot be; nothing changed.
        """
        self._now = now
        if self._leadership is not None:
            self._leadership.now(now)
        match event:
            case Received():
                self._received(event)
            case Ticked():
                self._tick()
            case Persisted():
                self._persisted(event.number)
            case ReadRequested():
                self._read(event.number)
            case SnapshotTaken():
                self._compact(event.snapshot)
            case SnapshotSent():
                if self._leadership is not None:
                    self._leadership.snapshot_sent(event.peer, arrived=event.arrived)
            case _:
                self._asked(event)
        return self._finished()

    def _asked(self, event: Proposed | ChangeRequested | LeaveRequested | TransferRequested) -> None:
        """What only a leader can do."""
        leadership = self._leadership
        if leadership is None:
            reason = Reason.NO_LEADER if self._leader is None else Reason.NOT_LEADER
            match event:
                case Proposed():
                    for number, _ in event.proposals:
                        self._durable.effect(Refused(number, reason, self._leader))
                case TransferRequested():
                    self._durable.effect(TransferEnded(event.target, succeeded=False))
                case _:
                    self._durable.effect(Refused(event.number, reason, self._leader))
            return
        match event:
            case Proposed():
                leadership.propose(event.proposals)
            case ChangeRequested():
                leadership.change(event.number, event.voters, event.learners, auto_leave=event.auto_leave)
            case LeaveRequested():
                leadership.leave(event.number)
            case _:
                leadership.transfer(event.target)

    def _tick(self) -> None:
        if self._leadership is not None:
            self._leadership.tick()
        elif self._now >= self._election_at:
            if self._log.needs(self._owner):
                self._stand(pre=True)
            else:
                self._follow(self._durable.term, None)

    def _persisted(self, number: int) -> None:
        self._durable.persisted(number)
        if self._leadership is not None:
            self._leadership.stored()
        elif self._role is Role.CANDIDATE and self._durable.vote_stored:
            self._votes[self._owner] = True
            self._count()

    def _read(self, number: int) -> None:
        if self._leader is None or len(self._local) >= self._config.reads_max:
            reason = Reason.NO_LEADER if self._leader is None else Reason.BUSY
            self._durable.effect(Refused(number, reason, self._leader))
            return
        asked = self._local.ask(number, self._now)
        if self._leadership is not None:
            self._leadership.read(Origin(None, asked))
        else:
            self._durable.send(self._leader, ReadAsk(self._durable.term, asked), Needs.NOTHING)

    def _compact(self, snapshot: Snapshot) -> None:
        if snapshot.index <= self._log.snapshot.index:
            return  # overtaken by one that came from the leader
        if snapshot.index > self._log.applied:
            raise LocalProtocolError(f"a snapshot at {snapshot.index}, and {self._log.applied} is applied")
        self._log.compact(snapshot, self._config.kept_entries, self._config.log_bytes_max // 4)
        self._snapshot_asked = False

    def _finished(self) -> list[Effect]:
        """What follows from whatever has changed, and all effects."""
        durable, log = self._durable, self._log
        if self._leadership is not None and self._leadership.resigned:
            self._follow(durable.term, None)
        if log.applied < log.snapshot.index <= log.persisted:
            log.applied = log.snapshot.index
            durable.effect(Restore(log.snapshot))
        done = min(log.committed, log.persisted)
        if log.snapshot.index <= log.applied < done:
            durable.effect(Apply(log.range(log.applied + 1, done)))
            log.applied = done
        ready, refused = self._local.taken(log.applied, self._now)
        for number, index in ready:
            durable.effect(ReadReady(number, index))
        for number, reason in refused:
            durable.effect(Refused(number, reason, self._leader))
        if (
            log.size_bytes > self._config.log_bytes_max
            and log.applied > log.snapshot.index
            and not self._snapshot_asked
        ):
            self._snapshot_asked = True
            durable.effect(SnapshotWanted(log.applied))
        if log.configuration != self._told_configuration:
            self._told_configuration = log.configuration
            durable.effect(ConfigurationChanged(log.configuration))
        role = RoleChanged(self._role, durable.term, self._leader)
        if role != self._told_role:
            self._told_role = role
            durable.effect(role)
        return durable.taken()

    # --- messages -----------------------------------------------------------------------------------------------

    def _received(self, event: Received) -> None:
        peer, message, term = event.peer, event.message, self._durable.term
        try:
            if event.group != self._group:
                raise RaftMessageRefused(f"a message of group {event.group!r} to group {self._group!r}")
            check(peer, message, owner=self._owner, term=term, leader=self._leader, log=self._log)
            if message.term < term:
                self._answer_old(peer, message)
            elif isinstance(message, VoteRequest):
                self._vote_request(peer, message)
            elif isinstance(message, VoteReply):
                self._vote_reply(peer, message)
            elif isinstance(message, Append | Heartbeat | InstallSnapshot | TimeoutNow):
                self._led_by(peer, message)
            elif message.term > term:
                self._follow(message.term, None)
            else:
                self._answered(peer, message)
        except NotInGroup:
            self.counters["strangers"] += 1
            raise
        except RaftMessageRefused:
            self.counters["refused"] += 1
            raise

    def _answer_old(self, peer: NodeId, message: Message) -> None:
        """Tell whoever is behind that it is."""
        term = self._durable.term
        match message:
            case VoteRequest():
                self._durable.send(peer, VoteReply(term, granted=False, pre=message.pre), Needs.VOTE)
            case Append() | InstallSnapshot():
                self._durable.send(peer, AppendReply(term, accepted=False, index=0), Needs.VOTE)
            case Heartbeat():
                self._durable.send(peer, HeartbeatReply(term, 0), Needs.VOTE)
            case VoteReply(pre=True):
                self._vote_reply(peer, message)  # a refusal comes with its sender's own term
            case _:
                pass

    def _answered(self, peer: NodeId, message: AppendReply | HeartbeatReply | ReadAsk | ReadAnswer) -> None:
        """Answers and wishes of this very term."""
        leadership = self._leadership
        if isinstance(message, ReadAnswer):
            if peer == self._leader:
                if message.index is None:
                    self._local.refused(message.number, Reason.BUSY)
                else:
                    self._local.confirmed(message.number, message.index)
        elif leadership is not None:
            match message:
                case AppendReply():
                    leadership.append_reply(peer, message)
                case HeartbeatReply():
                    leadership.heartbeat_reply(peer, message)
                case _:
                    leadership.read(Origin(peer, message.number))

    # --- elections ----------------------------------------------------------------------------------------------

    def _await_leader(self) -> None:
        timeout_s = self._config.election_timeout_s
        self._election_at = self._now + self._rng.uniform(timeout_s, 2 * timeout_s)

    def _stand(self, *, pre: bool, transfer: bool = False) -> None:
        """Ask for votes, or with ``pre`` whether there would be any."""
        self._leader = None
        self._local.drop(Reason.NO_LEADER)
        self._await_leader()
        if pre:
            self._role = Role.PRE_CANDIDATE
            self._votes = {self._owner: True}
        else:
            self._role = Role.CANDIDATE
            self._votes = {}  # its own counts when it is stored
            self._durable.set_vote(self._durable.term + 1, self._owner)
            self.counters["elections"] += 1
        log = self._log
        request = VoteRequest(self._durable.term + pre, log.last_index, log.last_term, pre, transfer)
        for peer in log.configuration.members:
            if peer != self._owner and log.configuration.votes(peer):
                self._durable.send(peer, request, Needs.NOTHING if pre else Needs.VOTE)
        self._count()

    def _count(self) -> None:
        """See whether the votes decide."""
        configuration = self._log.configuration
        if configuration.agreed(lambda peer: self._votes.get(peer, False)):
            if self._role is Role.PRE_CANDIDATE:
                self._stand(pre=False)
            else:
                self._lead()
        elif configuration.hopeless(lambda peer: not self._votes.get(peer, True)):
            self._follow(self._durable.term, None)

    def _lead(self) -> None:
        self._role = Role.LEADER
        self._leader = self._owner
        self.counters["leaderships"] += 1
        self._leadership = Leader(self._owner, self._config, self._durable, self._local, self._now)

    def _vote_request(self, peer: NodeId, request: VoteRequest) -> None:
        durable = self._durable
        led = self._leader is not None and (
            self._leadership is not None or self._now - self._leader_heard_at < self._config.election_timeout_s
        )
        if led and request.term > durable.term and not request.transfer:
            self.counters["votes_withheld"] += 1
            return
        up_to_date = self._log.is_behind(request.last_index, request.last_term)
        if request.pre:
            granted = up_to_date and request.term > durable.term
            reply = VoteReply(request.term if granted else durable.term, granted, pre=True)
            durable.send(peer, reply, Needs.VOTE)
            return
        if request.term > durable.term:
            self._follow(request.term, None, by=peer)
        granted = up_to_date and (durable.vote == peer or (durable.vote is None and self._leader is None))
        if granted:
            if durable.vote is None:
                durable.set_vote(durable.term, peer)
            self._await_leader()
        durable.send(peer, VoteReply(durable.term, granted), Needs.VOTE)

    def _vote_reply(self, peer: NodeId, reply: VoteReply) -> None:
        if reply.term > self._durable.term + (reply.pre and reply.granted):
            self._follow(reply.term, None)
        elif self._role is (Role.PRE_CANDIDATE if reply.pre else Role.CANDIDATE) and (
            not reply.granted or reply.term == self._durable.term + reply.pre
        ):
            self._votes[peer] = reply.granted
            self._count()

    # --- following ----------------------------------------------------------------------------------------------

    def _follow(self, term: int, leader: NodeId | None, *, by: NodeId | None = None) -> None:
        """Be a follower, in this term or a higher one.

        Args:
            term: Which.
            leader: Who leads in it.
            by: Who made it one.
        """
        if term > self._durable.term:
            self._durable.set_vote(term, None)
        if self._leadership is not None:
            if self._leadership.transferee is not None:
                target = self._leadership.transferee
                self._durable.effect(TransferEnded(target, succeeded=target in {by, leader}))
            self._leadership = None
            self._local.drop(Reason.LEADERSHIP_LOST)
        elif leader != self._leader:
            self._local.drop(Reason.NO_LEADER)
        self._role = Role.FOLLOWER
        self._leader = leader
        self._votes = {}
        self._await_leader()

    def _led_by(self, peer: NodeId, message: Append | Heartbeat | InstallSnapshot | TimeoutNow) -> None:
        """The leader of this term, or of a later one, speaks."""
        self._follow(message.term, peer)
        self._leader_heard_at = self._now
        match message:
            case Append():
                self._append(peer, message)
            case Heartbeat():
                self._log.committed = max(self._log.committed, message.commit)
                self._durable.send(peer, HeartbeatReply(message.term, message.round), Needs.VOTE)
            case InstallSnapshot():
                self._install(peer, message.snapshot)
            case _:  # stand now, it says
                if self._log.needs(self._owner):
                    self._stand(pre=False, transfer=True)

    def _append(self, peer: NodeId, message: Append) -> None:
        durable, log = self._durable, self._log
        if not log.has(message.previous_index, message.previous_term):
            index, term = log.guess(message.previous_index, message.previous_term)
            refusal = AppendReply(durable.term, False, message.previous_index, index, term)
            durable.send(peer, refusal, Needs.VOTE)
            return
        durable.merge(message.entries)
        last = message.previous_index + len(message.entries)
        log.committed = max(log.committed, min(message.commit, last))
        durable.send(peer, AppendReply(durable.term, True, last), Needs.LOG)

    def _install(self, peer: NodeId, snapshot: Snapshot) -> None:
        durable, log = self._durable, self._log
        if snapshot.index > log.committed:
            if log.has(snapshot.index, snapshot.term):
                log.committed = snapshot.index  # all of it is here: the entries will do
            else:
                durable.restore(snapshot)
        durable.send(peer, AppendReply(durable.term, True, log.committed), Needs.LOG)
