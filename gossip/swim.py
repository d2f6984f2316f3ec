"""Probing: does a member that says nothing live?  And if nobody answers: is it them, or is it I?

SWIM (Das, Gupta, Motivala 2002) probes members at random over UDP, asks ``k`` others to probe whoever does not answer,
and suspects it if they fail too.  Lifeguard (Dadgar, Phillips, Currey 2018) adds that a prober which hears nobody,
not even its helpers' "it does not answer me either" (nack), should doubt itself: its *awareness*, 0 (healthy) to 8,
multiplies its periods and timeouts.  Both are here; whom to probe, and how, differs, because a probe over UDP costs a
packet and one over a cold TLS link costs a handshake: four round trips, about 4 KB and 4 ms of processor at each end.

*Who watches whom.*  Take 1,000 nodes with 6 links each.  Were each node to probe one random member a second, all but
0.6 % of the probes would find no link: 1,000 handshakes a second in the network, 4 KB/s per node, an order above the
whole idle budget.  But every node has about six neighbours whose links to it are open, and they already hear from it
every other second.  So the *neighbours* watch it, closely and cheaply:

- One neighbour in turn is pinged each ``probe_interval_s``.  As all six do so, a node is pinged once a second by one or
  another, each at a time of its own; this finds a silent node sooner than the heartbeats, which go to all at once, and
  what heartbeats cannot show (they arrive, but nothing gets there), and it measures the round trip.
- A neighbour that has been silent for ``probe_silence_intervals`` (so a heartbeat is missing) is pinged at once.
- No answer within ``probe_timeout_s``: ``indirect_probes`` other neighbours are asked.  A helper that has a link to the
  target pings it; one that has none may dial it, one such dial per ``probe_interval_s``.
- A neighbour that hears of a suspicion pings the accused at once: the accused is told over that link first (the
  buddy notice is membership's, before the ping), and whoever gets no answer confirms the suspicion.

So a silent crash is noticed by all six neighbours between one and four seconds later, independently, which is just
what the accelerating suspicion needs; and a one-way fault between two nodes is noticed by one, which is not enough.
A link that *breaks* is membership's business; here it leads to one redial, unless the overlay has already seen to it,
for a refused connection is proof.

*Who watches those that nobody watches?*  A node whose six neighbours die with it has no witness: with half the network
gone that is one in 64 of the dead.  So each node also dials one member to which it has no link, in a shuffled round,
every ``probe_cold_interval_s`` (60 s: one handshake a minute and node, 60 B/s, whatever N; each member is tried about
once a minute by somebody).  After a failure, or the loss of a neighbour, the next such probe follows within seconds,
and the pause doubles with each success: after a disaster the survivors search the table for the dead as fast as they
find them, and then calm down.  A member that refutes such an accusation lives where we cannot dial, and is left alone
for long.  These links are closed by the overlay when idle; until then two random nodes compare their tables over them.

*Is it I?*  Awareness rises by each helper that does not even nack, by one when there is no helper to ask, by one when
we must refute (somebody could not reach us), and by one for each stall of our own event loop, after which running
probes are forgotten rather than judged: their answers may lie unread in our sockets.  Each ack lowers it by one.
"""

# core: no I/O

from __future__ import annotations

import enum
import math
import random
from dataclasses import dataclass, field
from typing import Final

from transport.types import NodeId
from transport.wire import Kind

from .config import GossipConfig
from .events import (
    DialFailed,
    Effect,
    Event,
    LinkLost,
    LinkOpened,
    LinkWanted,
    Member,
    MemberState,
    NeighborDown,
    NeighborUp,
    ProbeFailed,
    Received,
    RttMeasured,
    Send,
    SetTimer,
    Stalled,
    Started,
    TimerFired,
)
from .members import MemberTable, is_gone
from .swim_codec import Ack, Ask, Nack, Ping, ProbeBody, decode_probe, encode_probe
from .vivaldi import Coordinate, Vivaldi

#: Probes that we make for others at once; beyond it they are told nack.
RELAYS_MAX: Final = 64
#: A helper nacks before the asking node gives up waiting for it (memberlist's figure).
_NACK_PART: Final = 0.8
#: For how many cold intervals a member that we cannot dial, though it lives, is left to others.
_UNDIALLABLE_ROUNDS: Final = 10
_NONE: Final = -1


class _Stage(enum.Enum):
    PINGED = enum.auto()
    DIALLED = enum.auto()
    ASKED = enum.auto()


@dataclass(slots=True)
class _Probe:
    """One question of ours."""

    target: NodeId
    sent_at: float
    stage: _Stage
    token: int = _NONE
    helpers: dict[NodeId, bool] = field(default_factory=dict)
    """Whom we asked, and whether it said nack."""


@dataclass(slots=True)
class _Relay:
    """A question that a neighbour asked us to find the answer to."""

    origin: NodeId
    sequence: int
    target: NodeId
    token: int = _NONE
    nacked: bool = False


class SwimCore:
    """Probes members for one node.

    Args:
        owner: This node.
        table: The member table, read only.
        config: Limits and times.
        rng: The only randomness.
    """

    def __init__(self, owner: NodeId, table: MemberTable, config: GossipConfig, rng: random.Random) -> None:
        self._owner = owner
        self._table = table
        self._config = config
        self._rng = rng
        self._now = 0.0
        self._effects: list[Effect] = []
        # When each linked peer was last heard, in the order in which the links opened.
        self._heard: dict[NodeId, float] = {}
        # The overlay's active view: who is expected to send heartbeats.
        self._neighbors: dict[NodeId, None] = {}
        self._round: list[NodeId] = []
        self._cold_round: list[NodeId] = []
        self._probes: dict[int, _Probe] = {}
        self._probed: dict[NodeId, int] = {}
        self._relays: dict[int, _Relay] = {}
        self._timers: dict[int, int] = {}
        self._next_number = 0
        self._tick_token = _NONE
        self._probe_at = 0.0
        self._cold_at = 0.0
        self._cold_interval_s = config.probe_cold_interval_s
        # Accused after a cold probe, until it shows whether that was right; and members that live but cannot be dialled
        # from here, with the time when that was found out.  Both hold members only.
        self._cold_failed: dict[NodeId, None] = {}
        self._undiallable: dict[NodeId, float] = {}
        # Whose link broke since the last tick.
        self._broken: dict[NodeId, None] = {}
        self._relay_dial_at = 0.0
        self._vivaldi = Vivaldi(rng)
        # Of members only: entries go when their member does.
        self._coordinates: dict[NodeId, Coordinate] = {}
        self.awareness = 0
        """0: healthy; each step up makes this node more patient with others."""
        self.counters = {
            "probes": 0,
            "probes_asked": 0,
            "probes_cold": 0,
            "probes_failed": 0,
            "probes_relayed": 0,
            "nacks_sent": 0,
        }

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event and return what to do about it, in order.

        Raises:
            RemoteProtocolError: A received body is not allowed; nothing changed.
        """
        self._now = now
        match event:
            case Received():
                self._received(event.peer, decode_probe(event.body))
            case TimerFired():
                self._timer(event.token)
            case Started():
                self._cold_at = now + self._cold_interval_s * self._rng.random()
                self._tick()
            case LinkOpened():
                self._opened(event.peer)
            case LinkLost():
                self._lost(event)
            case DialFailed():
                self._dial_failed(event)
            case NeighborUp():
                self._neighbors[event.peer] = None
                self.heard(event.peer, now)  # until now nobody owed us a heartbeat
            case NeighborDown():
                self._neighbors.pop(event.peer, None)
            case Stalled():
                self._stalled(event.duration_s)
            case _:
                pass
        return self._taken()

    def heard(self, peer: NodeId, now: float) -> None:
        """Something arrived over the link to ``peer``; the router says so for every body."""
        if peer in self._heard:
            self._heard[peer] = now

    def member_changed(self, before: Member | None, after: Member, now: float) -> list[Effect]:
        """The table changed; the router calls this for every :class:`~gossip.events.MemberChanged`."""
        self._now = now
        node_id = after.node_id
        if node_id == self._owner:
            if before is not None and after.incarnation - before.incarnation > 0:
                self._be_aware(1)  # somebody could not reach us, and we had to contradict it
        elif is_gone(after.state):
            self._drop(node_id)
            self._coordinates.pop(node_id, None)
            self._cold_failed.pop(node_id, None)
            self._undiallable.pop(node_id, None)
            self._vivaldi.forget(node_id)
        elif after.state is MemberState.ALIVE and node_id in self._cold_failed:
            # It lives, only we cannot dial it: no reason to look for more of its kind.
            del self._cold_failed[node_id]
            self._undiallable[node_id] = now
            self._cold_interval_s = self._config.probe_cold_interval_s
            self._cold_at = now + self._cold_interval_s * self._rng.random()
        elif after.state is MemberState.SUSPECT and node_id in self._heard and not _same_status(before, after):
            self._ping(node_id)
        return self._taken()

    def statistics(self) -> dict[str, int | float]:
        """Counters, and how this node judges itself and its place."""
        return {
            **self.counters,
            "awareness": self.awareness,
            "coordinates": len(self._coordinates),
            "coordinate_error": self._vivaldi.coordinate.error,
        }

    @property
    def coordinate(self) -> Coordinate:
        """Where this node is in the network."""
        return self._vivaldi.coordinate

    def distance_s(self, a: NodeId, b: NodeId) -> float | None:
        """The round trip to expect between two nodes; ``None``: one of them never told us where it is."""
        here, there = self._where(a), self._where(b)
        return None if here is None or there is None else here.distance_s(there)

    def _where(self, node_id: NodeId) -> Coordinate | None:
        return self._vivaldi.coordinate if node_id == self._owner else self._coordinates.get(node_id)

    def _taken(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    # --- links ------------------------------------------------------------------------------------------------

    def _opened(self, peer: NodeId) -> None:
        self._heard[peer] = self._now
        self._cold_failed.pop(peer, None)
        self._undiallable.pop(peer, None)
        if peer in self._probed:
            self._cold_over(lives=True)
            self._drop(peer)
        for number in [n for n, relay in self._relays.items() if relay.target == peer]:
            self._answer(number, lives=True)
        self._ping(peer)

    def _lost(self, event: LinkLost) -> None:
        peer = event.peer
        if self._heard.pop(peer, None) is None:
            return
        self._drop(peer)
        member = self._table.get(peer)
        if event.left or event.wanted or member is None or is_gone(member.state):
            return
        # Is the process gone, or only the link?  And what took this one may have taken more.
        self._broken[peer] = None
        self._search_in(4 * self._config.probe_interval_s)

    def _dial_failed(self, event: DialFailed) -> None:
        for number in [n for n, relay in self._relays.items() if relay.target == event.peer]:
            self._answer(number, lives=False)
        sequence = self._probed.get(event.peer, _NONE)
        if sequence == _NONE or self._probes[sequence].stage is not _Stage.DIALLED:
            return
        if event.refused:
            self._failed(sequence)
        else:
            self._ask(sequence)

    def _stalled(self, duration_s: float) -> None:
        """We were deaf: what the clock says about others means nothing."""
        for sequence in list(self._probes):
            self._drop(self._probes[sequence].target)
        for peer in self._heard:
            self._heard[peer] = self._now
        self._be_aware(2 if duration_s > self._config.probe_interval_s else 1)

    # --- probes of ours ---------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._tick_token = self._set_timer(self._config.probe_timeout_s * self._rng.uniform(0.9, 1.1))
        self._effects += [LinkWanted(peer) for peer in self._broken if peer not in self._heard]
        self._broken.clear()
        patience = self.awareness + 1
        silence_s = self._config.probe_silence_intervals * self._config.heartbeat_interval_s
        silent_since = self._now - silence_s * patience
        for peer in [peer for peer in self._neighbors if self._heard.get(peer, self._now) < silent_since]:
            self._ping(peer)
        if self._now >= self._probe_at:
            self._probe_at = self._now + self._config.probe_interval_s * patience * 0.95
            if (target := self._next_linked()) is not None:
                self._ping(target)
        if self._now >= self._cold_at:
            self._cold_at = self._now + self._cold_interval_s * self._rng.uniform(0.75, 1.25)
            if (target := self._next_cold()) is not None:
                self._begin(target, _Stage.DIALLED, self._config.probe_dial_timeout_s)
                self.counters["probes_cold"] += 1
                self._effects.append(LinkWanted(target))

    def _next_linked(self) -> NodeId | None:
        """The next neighbour of a shuffled round, so that each is pinged once before any is pinged twice."""
        if not self._round:
            self._round = list(self._neighbors)
            self._rng.shuffle(self._round)
        while self._round:
            peer = self._round.pop()
            if peer in self._neighbors and peer in self._heard:
                return peer
        return None

    def _next_cold(self) -> NodeId | None:
        if not self._cold_round:
            self._cold_round = [m.node_id for m in self._table if m.state is MemberState.ALIVE]
            self._rng.shuffle(self._cold_round)
        while self._cold_round:
            target = self._cold_round.pop()
            if self._is_cold(target):
                return target
        return None

    def _is_cold(self, target: NodeId) -> bool:
        """Whether it is thought to live and we have no link to show it."""
        member = self._table.get(target)
        if member is None or member.state is not MemberState.ALIVE or target == self._owner:
            return False
        tried_at = self._undiallable.get(target, -math.inf)
        if self._now - tried_at < _UNDIALLABLE_ROUNDS * self._config.probe_cold_interval_s:
            return False
        return target not in self._heard and target not in self._probed

    def _begin(self, target: NodeId, stage: _Stage, timeout_s: float) -> int:
        sequence = self._number()
        probe = self._probes[sequence] = _Probe(target, self._now, stage)
        self._probed[target] = sequence
        self._wait(sequence, probe, timeout_s)
        return sequence

    def _ping(self, target: NodeId) -> None:
        if target not in self._probed:
            sequence = self._begin(target, _Stage.PINGED, self._config.probe_timeout_s * (self.awareness + 1))
            self.counters["probes"] += 1
            self._send(target, Ping(sequence))

    def _ask(self, sequence: int) -> None:
        """Nobody answers us: perhaps somebody else is answered."""
        probe = self._probes[sequence]
        others = [peer for peer in self._heard if peer != probe.target]
        helpers = self._rng.sample(others, min(self._config.indirect_probes, len(others)))
        if not helpers:
            self._failed(sequence)
            return
        patience = self.awareness + 1
        cold = probe.stage is _Stage.DIALLED
        wait_s = self._config.probe_interval_s if cold else self._config.probe_timeout_s
        probe.stage = _Stage.ASKED
        probe.helpers = dict.fromkeys(helpers, False)
        self.counters["probes_asked"] += 1
        for helper in helpers:
            self._send(helper, Ask(sequence, probe.target))
        self._wait(sequence, probe, wait_s * patience)

    def _timed_out(self, sequence: int) -> None:
        probe = self._probes[sequence]
        if self._heard.get(probe.target, probe.sent_at) > probe.sent_at:
            self._drop(probe.target)  # it lives, whatever became of our ping
        elif probe.stage is _Stage.PINGED:
            self._ask(sequence)
        elif probe.stage is _Stage.DIALLED:
            self._drop(probe.target)  # the overlay did not dial, or its dialler is busy: we know nothing
        else:
            self._failed(sequence)

    def _failed(self, sequence: int) -> None:
        probe = self._probes[sequence]
        missing = sum(not nacked for nacked in probe.helpers.values())
        if probe.stage is not _Stage.DIALLED:
            self._be_aware(missing if probe.helpers else 1)
        if probe.target not in self._heard:
            self._cold_over(lives=False)
            self._cold_failed[probe.target] = None
        self._drop(probe.target)
        self.counters["probes_failed"] += 1
        self._effects.append(ProbeFailed(probe.target))

    def _cold_over(self, *, lives: bool) -> None:
        if lives:
            self._cold_interval_s = min(2 * self._cold_interval_s, self._config.probe_cold_interval_s)
        else:
            self._search_in(self._config.probe_interval_s)

    def _search_in(self, interval_s: float) -> None:
        """Look after members without a link sooner, for there is reason to."""
        self._cold_interval_s = min(self._cold_interval_s, interval_s)
        self._cold_at = min(self._cold_at, self._now + interval_s * self._rng.uniform(0.75, 1.25))

    def _drop(self, target: NodeId) -> None:
        sequence = self._probed.pop(target, _NONE)
        if sequence != _NONE:
            self._timers.pop(self._probes.pop(sequence).token, None)

    def _be_aware(self, change: int) -> None:
        self.awareness = max(0, min(self._config.awareness_max, self.awareness + change))

    # --- probes for others ------------------------------------------------------------------------------------

    def _asked(self, origin: NodeId, ask: Ask) -> None:
        if ask.target == self._owner:
            self._send(origin, Ack(ask.sequence))
            return
        linked = ask.target in self._heard
        if (not linked and not self._may_dial(ask.target)) or len(self._relays) >= RELAYS_MAX:
            self._send(origin, Nack(ask.sequence))
            self.counters["nacks_sent"] += 1
            return
        number = self._number()
        relay = self._relays[number] = _Relay(origin, ask.sequence, ask.target)
        self.counters["probes_relayed"] += 1
        self._wait(number, relay, self._config.probe_timeout_s * _NACK_PART)
        if linked:
            self._send(ask.target, Ping(number))
        else:
            self._relay_dial_at = self._now + self._config.probe_interval_s
            self._effects.append(LinkWanted(ask.target))

    def _may_dial(self, target: NodeId) -> bool:
        """Only members, so that nobody can send us anywhere, and one at a time."""
        member = self._table.get(target)
        return member is not None and not is_gone(member.state) and self._now >= self._relay_dial_at

    def _relay_late(self, number: int) -> None:
        """Say nack in time; a later ack may still be of use to whoever waits longer."""
        relay = self._relays[number]
        if relay.nacked:
            del self._relays[number]
            return
        self._nack(relay)
        self._wait(number, relay, self._config.probe_interval_s)

    def _answer(self, number: int, *, lives: bool) -> None:
        relay = self._relays.pop(number)
        self._timers.pop(relay.token, None)
        if lives:
            self._send(relay.origin, Ack(relay.sequence))
        elif not relay.nacked:
            self._nack(relay)

    def _nack(self, relay: _Relay) -> None:
        relay.nacked = True
        self.counters["nacks_sent"] += 1
        self._send(relay.origin, Nack(relay.sequence))

    # --- receiving --------------------------------------------------------------------------------------------

    def _received(self, peer: NodeId, body: ProbeBody | None) -> None:
        if peer not in self._heard:
            return
        match body:
            case Ping():
                self._send(peer, Ack(body.sequence, self._vivaldi.coordinate))
            case Ask():
                self._asked(peer, body)
            case Ack():
                self._acked(peer, body)
            case Nack():
                probe = self._probes.get(body.sequence)
                if probe is not None and peer in probe.helpers:
                    probe.helpers[peer] = True
            case _:
                pass  # of a later version

    def _acked(self, peer: NodeId, ack: Ack) -> None:
        relay = self._relays.get(ack.sequence)
        if relay is not None and relay.target == peer:
            self._answer(ack.sequence, lives=True)
            return
        probe = self._probes.get(ack.sequence)
        if probe is None or (peer != probe.target and peer not in probe.helpers):
            return
        if peer == probe.target and ack.coordinate is not None:
            rtt_s = self._now - probe.sent_at
            if peer in self._coordinates or len(self._coordinates) < self._config.members_max:
                self._coordinates[peer] = ack.coordinate
                self._vivaldi.observe(peer, ack.coordinate, rtt_s)
            self._effects.append(RttMeasured(peer, rtt_s))
            self._be_aware(-1)
        self._drop(probe.target)

    # --- timers -----------------------------------------------------------------------------------------------

    def _timer(self, token: int) -> None:
        if token == self._tick_token:
            self._tick()
            return
        number = self._timers.pop(token, _NONE)
        if number in self._probes:
            self._timed_out(number)
        elif number in self._relays:
            self._relay_late(number)

    def _wait(self, number: int, what: _Probe | _Relay, delay_s: float) -> None:
        self._timers.pop(what.token, None)
        what.token = self._set_timer(delay_s)
        self._timers[what.token] = number

    def _set_timer(self, delay_s: float) -> int:
        token = self._number()
        self._effects.append(SetTimer(token, delay_s))
        return token

    def _number(self) -> int:
        self._next_number += 1
        return self._next_number

    def _send(self, peer: NodeId, body: ProbeBody) -> None:
        self._effects.append(Send(peer, encode_probe(body), kind=Kind.PROBE))


def _same_status(before: Member | None, after: Member) -> bool:
    return before is not None and (before.state, before.incarnation) == (after.state, after.incarnation)
