"""What a leader does: replicate, commit, confirm reads, change members, hand over.

Sections 5.3, 5.4.2, 6 and 8 of the paper; 3.10 (transfer), 6.2 (a leader that cannot reach a majority resigns), 6.4
(reads) and 10.2.1 (writing to disk while sending) of Ongaro's dissertation.  A :class:`Leader` exists for the term in
which its node leads, and is thrown away after it.

- *Commit* only what a majority of each half has stored **and** is of this leader's own term; what is older is committed
  with it (figure 8 shows why counting alone is not enough).
- *Itself* it counts like any other: as far as its own disk says, which may be less than the followers'.
- *Members* change one change at a time: not before an entry of this term is committed, nor while a change is
  uncommitted or joint.  A joint phase that may leave by itself does so when it is committed.  A leader that is no voter
  any more goes on until that is committed, not counting itself, then tells the best voter to stand, and resigns.
- *Backpressure*: what is proposed beyond ``uncommitted_bytes_max`` is refused as busy, at once.
"""

# core: no I/O

from __future__ import annotations

from state.errors import RaftMessageRefused
from transport.types import NodeId

from .configuration import Configuration, changed, left
from .durable import Durable, Needs
from .events import Accepted, Reason, Refused, SendSnapshot, TransferEnded
from .messages import Append, AppendReply, Heartbeat, HeartbeatReply, InstallSnapshot, Message, ReadAnswer, TimeoutNow
from .progress import Pace, Progress
from .reads import LocalReads, Origin, Reads
from .types import ENTRY_BYTES_MAX, Entry, RaftConfig


class Leader:
    """One node's leadership in one term.

    Args:
        owner: The node.
        config: Times and limits.
        durable: Its term, vote and log; what is sent and done goes through it.
        reads: The reads asked for on this node.
        now: When it was elected.
    """

    def __init__(self, owner: NodeId, config: RaftConfig, durable: Durable, reads: LocalReads, now: float) -> None:
        self._owner = owner
        self._config = config
        self._durable = durable
        self._log = durable.log
        self._local = reads
        self._now = now
        self._reads = Reads(config.reads_max)
        self._heartbeat_at = now + config.heartbeat_interval_s
        self._uncommitted_bytes = 0
        self._transferee: NodeId | None = None
        self._transfer_until = now
        self.resigned = False
        """Whether it cannot or need not lead any longer."""
        self._first_index = self._log.last_index + 1
        """The first entry of this term; nothing can be told about what is committed before it is."""
        self._progress = {
            peer: Progress(self._first_index, now) for peer in self._log.configuration.members if peer != owner
        }
        self._append([None])

    @property
    def deadline_at(self) -> float:
        """When to tick at the latest."""
        return self._heartbeat_at

    @property
    def transferee(self) -> NodeId | None:
        """Whom leadership is being handed to."""
        return self._transferee

    def statistics(self) -> dict[NodeId, tuple[int, Pace]]:
        """How far each follower is, and at which pace."""
        return {peer: (progress.match, progress.pace) for peer, progress in self._progress.items()}

    def now(self, now: float) -> None:
        """It is later."""
        self._now = now

    # --- what time and the disk say -----------------------------------------------------------------------------

    def tick(self) -> None:
        """Time has passed."""
        now = self._now
        heard_at = self._log.configuration.reached(self._heard_at)
        if now - heard_at >= self._config.election_timeout_s:
            self.resigned = True  # a majority may have elected somebody else
            return
        if self._transferee is not None and now >= self._transfer_until:
            self._end_transfer(succeeded=False)
        if now >= self._heartbeat_at:
            self._beat()

    def stored(self) -> None:
        """The disk of this node has come further."""
        self._advance()

    def _heard_at(self, node: NodeId) -> float:
        return self._now if node == self._owner else self._progress[node].heard_at

    def _beat(self) -> None:
        self._heartbeat_at = self._now + self._config.heartbeat_interval_s
        for peer, progress in self._progress.items():
            commit = min(progress.match, self._log.committed)
            self._send(peer, Heartbeat(self._durable.term, commit, self._reads.round))

    def _send(self, peer: NodeId, message: Message) -> None:
        self._durable.send(peer, message, Needs.NOTHING)

    # --- what is asked of it ------------------------------------------------------------------------------------

    def propose(self, proposals: tuple[tuple[int, bytes], ...]) -> None:
        """Take in data, or refuse some or all of it."""
        numbers: list[int] = []
        contents: list[bytes] = []
        size_bytes = 0
        for number, data in proposals:
            room = self._config.uncommitted_bytes_max - self._uncommitted_bytes - size_bytes
            if self._transferee is not None:
                self._refuse(number, Reason.TRANSFERRING)
            elif len(data) > ENTRY_BYTES_MAX:
                self._refuse(number, Reason.TOO_LARGE)
            elif len(data) > room and (self._uncommitted_bytes or contents):
                self._refuse(number, Reason.BUSY)
            else:
                numbers.append(number)
                contents.append(data)
                size_bytes += Entry(0, 0, data).size_bytes
        if contents:
            first = self._append(contents)
            for index, number in enumerate(numbers, first):
                self._durable.effect(Accepted(number, index, self._durable.term))

    def change(
        self, number: int, voters: tuple[NodeId, ...], learners: tuple[NodeId, ...], *, auto_leave: bool
    ) -> None:
        """Begin a change of members, or refuse it."""
        current = self._log.configuration
        if self._may_change(number, joint=False):
            try:
                target = changed(current, voters, learners, auto_leave=auto_leave)
            except ValueError:
                self._refuse(number, Reason.INVALID)
                return
            self._durable.effect(Accepted(number, self._reconfigure(target), self._durable.term))

    def leave(self, number: int) -> None:
        """End the joint phase, or refuse to."""
        current = self._log.configuration
        if not current.joint:
            self._refuse(number, Reason.INVALID)
        elif self._may_change(number, joint=True):
            self._durable.effect(Accepted(number, self._reconfigure(left(current)), self._durable.term))

    def _may_change(self, number: int, *, joint: bool) -> bool:
        settled = self._log.committed >= max(self._first_index, self._log.configuration_index)
        if self._transferee is not None:
            self._refuse(number, Reason.TRANSFERRING)
        elif not settled or self._log.configuration.joint != joint:
            self._refuse(number, Reason.CHANGE_PENDING)
        else:
            return True
        return False

    def transfer(self, target: NodeId | None) -> None:
        """Hand over to ``target``, or to the best voter."""
        chosen = self._best_voter() if target is None else target
        if self._transferee is not None and self._transferee != chosen:
            self._end_transfer(succeeded=False)
        if chosen == self._owner:
            self._durable.effect(TransferEnded(chosen, succeeded=True))
        elif chosen is None or not self._log.configuration.votes(chosen):
            self._durable.effect(TransferEnded(chosen, succeeded=False))
        elif self._transferee is None:
            self._transferee = chosen
            self._transfer_until = self._now + self._config.election_timeout_s
            self._hand_over()

    def read(self, origin: Origin) -> None:
        """Have a read wait for its confirmation."""
        if self._reads.add(origin):
            self._next_round()
        elif origin.peer is None:
            self._local.refused(origin.number, Reason.BUSY)
        else:
            self._send(origin.peer, ReadAnswer(self._durable.term, origin.number, None))

    def _refuse(self, number: int, reason: Reason) -> None:
        self._durable.effect(Refused(number, reason, self._owner))

    # --- replication --------------------------------------------------------------------------------------------

    def append_reply(self, peer: NodeId, reply: AppendReply) -> None:
        """A follower has stored entries, or could not take them.

        Raises:
            RaftMessageRefused: It speaks of entries that this leader does not have; nothing changed.
        """
        if not 0 <= reply.index <= self._log.last_index:
            raise RaftMessageRefused(f"an answer about entry {reply.index} of {self._log.last_index}")
        progress = self._progress[peer]
        progress.heard_at = self._now
        if reply.accepted:
            if progress.accepted(reply.index):
                self._advance()
                self._hand_over()
        else:
            index, _ = self._log.guess(reply.hint_index, reply.hint_term)
            progress.refused(reply.index, index + 1)
        self._feed(peer)

    def heartbeat_reply(self, peer: NodeId, reply: HeartbeatReply) -> None:
        """A follower still follows.

        Raises:
            RaftMessageRefused: It answers a round that there was not; nothing changed.
        """
        if not 0 <= reply.round <= self._reads.round:
            raise RaftMessageRefused(f"an answer to round {reply.round} of {self._reads.round}")
        progress = self._progress[peer]
        progress.heard_at = self._now
        progress.round = max(progress.round, reply.round)
        progress.alive()
        self._feed(peer, although_empty=progress.match < self._log.last_index)
        self._confirm()

    def snapshot_sent(self, peer: NodeId, *, arrived: bool) -> None:
        """A snapshot has come to its end, one way or the other."""
        progress = self._progress.get(peer)
        if progress is not None and progress.pace is Pace.SNAPSHOT:
            match = max(progress.match, progress.snapshot_index) if arrived else progress.match
            progress.become(Pace.PROBE, match + 1)
            progress.asked = True  # until it answers this or a heartbeat: who is away is not tried again at once

    def _append(self, contents: list[bytes] | list[None]) -> int:
        """Add entries and send them; returns the first one's index."""
        first = self._log.last_index + 1
        entries = [Entry(index, self._durable.term, content) for index, content in enumerate(contents, first)]
        self._durable.append(entries)
        self._uncommitted_bytes += sum(entry.size_bytes for entry in entries)
        self._feed_all()
        return first

    def _feed_all(self) -> None:
        for peer in self._progress:
            self._feed(peer)

    def _feed(self, peer: NodeId, *, although_empty: bool = False) -> None:
        """Send a follower what it lacks, as far as its pace allows."""
        progress = self._progress.get(peer)
        config = self._config
        while progress is not None and progress.can_send(config.inflight_max, config.inflight_bytes_max):
            previous = progress.next - 1
            term = self._log.term_at(previous)
            if term is None:
                self._send_snapshot(peer, progress)
                return
            entries = self._log.batch(progress.next, config.append_entries_max, config.append_bytes_max)
            commit = min(self._log.committed, previous + len(entries))
            if not entries and not although_empty and commit <= progress.commit_sent:
                return
            progress.commit_sent = max(commit, progress.commit_sent)
            self._send(peer, Append(self._durable.term, previous, term, self._log.committed, entries))
            progress.sent(previous + len(entries), sum(entry.size_bytes for entry in entries))
            although_empty = False

    def _send_snapshot(self, peer: NodeId, progress: Progress) -> None:
        """The entries are gone: have the state brought there, if anybody is there."""
        if self._now - progress.heard_at < self._config.election_timeout_s:
            snapshot = self._log.snapshot
            progress.become(Pace.SNAPSHOT, progress.next, snapshot.index)
            self._durable.effect(SendSnapshot(peer, InstallSnapshot(self._durable.term, snapshot)))

    def _advance(self) -> None:
        """Commit what can be."""
        log = self._log
        index = log.configuration.reached(self._match)
        if index > log.committed and log.term_at(index) == self._durable.term:
            done = log.range(max(log.committed + 1, self._first_index), index)
            self._uncommitted_bytes -= sum(entry.size_bytes for entry in done)
            log.committed = index
            self._feed_all()
            self._settle_configuration()
            self._next_round()

    def _match(self, node: NodeId) -> int:
        return self._log.persisted if node == self._owner else self._progress[node].match

    # --- members ------------------------------------------------------------------------------------------------

    def _reconfigure(self, configuration: Configuration) -> int:
        """Put a configuration into the log, from where it rules at once; returns its index."""
        entry = Entry(self._log.last_index + 1, self._durable.term, configuration)
        self._durable.append([entry])
        self._uncommitted_bytes += entry.size_bytes
        members = configuration.members
        for peer in [peer for peer in self._progress if peer not in members]:
            del self._progress[peer]
        if self._transferee is not None and not configuration.votes(self._transferee):
            self._end_transfer(succeeded=False)
        for peer in members:
            if peer != self._owner and peer not in self._progress:
                self._progress[peer] = Progress(entry.index, self._now)
        self._feed_all()
        self._advance()
        return entry.index

    def _settle_configuration(self) -> None:
        """Something was committed: maybe what comes after a configuration is due."""
        configuration = self._log.configuration
        if self._log.committed < self._log.configuration_index:
            return
        if configuration.auto_leave:
            self._reconfigure(left(configuration))
        elif not configuration.votes(self._owner):
            successor = self._best_voter()
            assert successor is not None  # there are voters, and this node is none of them
            self._send(successor, TimeoutNow(self._durable.term))
            self.resigned = True

    def _best_voter(self) -> NodeId | None:
        """The voter other than this node that has most of the log."""
        voters = [peer for peer in self._progress if self._log.configuration.votes(peer)]
        return max(voters, key=self._match, default=None)

    # --- handing over -------------------------------------------------------------------------------------------

    def _hand_over(self) -> None:
        """Tell the one that is to lead to stand, once it has everything."""
        peer = self._transferee
        if peer is not None and self._progress[peer].match == self._log.last_index:
            self._send(peer, TimeoutNow(self._durable.term))

    def _end_transfer(self, *, succeeded: bool) -> None:
        self._durable.effect(TransferEnded(self._transferee, succeeded))
        self._transferee = None

    # --- reads --------------------------------------------------------------------------------------------------

    def _next_round(self) -> None:
        """Ask whether this node still leads, if somebody wants to know and that can be told."""
        if self._log.committed >= self._first_index and self._reads.begin(self._log.committed):
            self._beat()
            self._confirm()

    def _confirm(self) -> None:
        """Answer the reads of a round that a majority has answered."""
        index, origins = self._reads.confirmed(self._log.configuration.reached(self._round))
        for origin in origins:
            if origin.peer is None:
                self._local.confirmed(origin.number, index)
            else:
                self._send(origin.peer, ReadAnswer(self._durable.term, origin.number, index))
        if origins:
            self._next_round()

    def _round(self, node: NodeId) -> int:
        return self._reads.round if node == self._owner else self._progress[node].round
