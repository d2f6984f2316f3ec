"""Membership: who is in the network and how they are, agreed on by gossip.

Every node keeps the whole table (:mod:`gossip.members`) and changes it on four kinds of evidence: its own links
(authenticated, so the best), *news* from peers, *states* exchanged with them, and its own timers.

Evidence of failure is suspicion, never death at once: a link that breaks, a dial that fails again and again, a probe
(:mod:`gossip.swim`) that nobody answers.  The observer tells everybody, first the accused if it can, and the accused
refutes by raising its incarnation.  Only a suspect that has not refuted in time is dead, and how much time it has
depends on how many accuse it independently (:mod:`gossip.suspicion`): news of a suspicion name the accusers, and an
accuser that is news makes the suspicion news again.  While something still arrives over a link from a suspect it
lives, so it is reminded instead of declared dead.  The suspicion and refutation rules are SWIM's (Das, Gupta,
Motivala 2002); that a peer's "dead" arriving with a table exchange counts as suspicion only is memberlist's.

Just after our own event loop stood still, a link that broke says more about us than about the peer: nobody is accused
for it unless the redial fails as well, suspicions run longer, and a refused dial does not cut them short.

Dissemination: what a node itself found out goes to all its *neighbours* (the overlay's active view), what it heard goes
on to a few of them at random; the accused is always told.  Beneath this, heartbeats to the neighbours carry the table's
digest, and two nodes whose digests stay different exchange what differs (three bodies: digest, states + want, states),
at most one exchange per interval.  Links outside the active view show that their peers live, and when they open two
tables are compared; afterwards their own keepalive is all that passes, so that what a node costs does not grow with N.
News are therefore an optimisation that may be lost, and anti-entropy is what makes tables converge.

What a process must never do is argue with its successor: a claim about its own node id with a higher life means
that another process took its place.  The claim is persisted (so that a restart takes a higher life still) and
:class:`~gossip.events.Superseded` ends this core.
"""

# core: no I/O

from __future__ import annotations

import enum
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from transport.errors import LocalProtocolError
from transport.types import NodeId

from .codec import (
    ENTRIES_MAX,
    Body,
    Digest,
    Entry,
    Heartbeat,
    News,
    States,
    Want,
    bare,
    chunks,
    decode,
    digests,
    encode,
)
from .config import GossipConfig
from .events import (
    AddressesChanged,
    DialFailed,
    Doubted,
    Effect,
    Event,
    LeaveRequested,
    LinkLost,
    LinkOpened,
    Member,
    MemberChanged,
    MemberForgotten,
    MemberState,
    MetaChanged,
    NeighborDown,
    NeighborUp,
    Persist,
    ProbeFailed,
    Received,
    Send,
    SetTimer,
    Stalled,
    Started,
    Superseded,
    TimerFired,
    Unlink,
    UnlinkReason,
)
from .incarnation import is_plausible, life_of, refute
from .members import MemberTable, details_win, is_gone, status_wins
from .suspicion import Suspicion, confirmations_wanted, suspicion_min_s

#: Rounds in which another process says other details of our node id, before one of the two gives way: a single claim
#: may be a mistake, or made up.
_CONTESTS_MAX: Final = 3


#: How long a new link gets all news, neighbour or not: the tables were compared as it opened, before it was accepted.
_YOUNG_LINK_S: Final = 2.0


class _How(enum.Enum):
    """How a claim came to us."""

    OWN = enum.auto()
    """We concluded it, or the peer said it of itself over its own link."""
    NEWS = enum.auto()
    STATE = enum.auto()


@dataclass(slots=True)
class _Link:
    """One linked peer."""

    incarnation: int
    opened_at: float
    heard: bool = False
    silent: bool = False
    """Whether the peer answered no probe, and nothing came from it since: then the link proves nothing."""
    differs: int = 0
    """Heartbeats in a row whose digest was not ours."""
    digests_left: int = 0
    wants_left: int = 0
    """What we still answer before the next tick: whoever asks for more is ignored."""


@dataclass(slots=True)
class _News:
    """A change that waits to be told."""

    to_all: bool
    details: bool
    heard_from: tuple[NodeId, ...]
    """Peers that know it already."""


class MembershipCore:
    """One node's view of the membership.

    Args:
        self_member: This node: its id, incarnation and addresses; the state must be ``ALIVE``.
        config: Limits and times.
        rng: The only randomness.
        admit: Whether a node that is not known yet may become a member (memberlist's merge and alive delegates);
            must not raise.  ``None``: every one may.
    """

    def __init__(
        self,
        self_member: Member,
        config: GossipConfig,
        rng: random.Random,
        admit: Callable[[Member], bool] | None = None,
    ) -> None:
        # Version 0 means "the owner has said nothing", so that our own first word counts everywhere.
        self._me = replace(self_member, meta_version=max(self_member.meta_version, 1))
        self._config = config
        self._rng = rng
        self._admit = admit
        # Details of ours that another process made up, one after the other: see _contest.
        self._contests = 0
        self._now = 0.0
        self._effects: list[Effect] = []
        self._links: dict[NodeId, _Link] = {}
        # The overlay's active view; each of them is linked, or about to be taken out.
        self._neighbors: dict[NodeId, None] = {}
        self._outbox: dict[NodeId, _News] = {}
        self._suspicions: dict[NodeId, Suspicion] = {}
        self._suspicion_timers: dict[int, NodeId] = {}
        # Whose link broke just after we stood still: the redial will tell.
        self._unjudged: dict[NodeId, None] = {}
        self._sync_at = 0.0
        self._next_token = 0
        self._tick_token = self._flush_token = -1
        self._flushed_at = -math.inf
        self._slow_until = 0.0
        self._ended = False
        self.table = MemberTable(self._me, config)
        self.counters = {
            "syncs_started": 0,
            "news_sent": 0,
            "suspicions": 0,
            "confirmations": 0,
            "deaths": 0,
            "refutations": 0,
            "claims_implausible": 0,
            "claims_vetoed": 0,
            "contests": 0,
            "requests_over_limit": 0,
            "received_unlinked": 0,
        }

    @property
    def me(self) -> Member:
        """This node as it now describes itself."""
        return self._me

    @property
    def ended(self) -> bool:
        """Whether this node left or was superseded; the core then does nothing more."""
        return self._ended

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event and return what to do about it, in order.

        Args:
            event: What happened.
            now: Seconds on any clock that never goes back.

        Raises:
            RemoteProtocolError: A received body is not allowed; nothing changed.
            LocalProtocolError: Our own metadata or addresses are over the limit; nothing changed.
        """
        if self._ended:
            return []
        self._now = now
        match event:
            case Received():
                self._received(event)
            case TimerFired():
                self._timer(event.token)
            case Started():
                self._tick()
            case LinkOpened():
                self._link_opened(event)
            case LinkLost():
                self._link_lost(event)
            case DialFailed():
                self._dial_failed(event)
            case Doubted():
                if event.peer not in self._links:
                    self._accuse(event.peer)
            case ProbeFailed():
                if (link := self._links.get(event.peer)) is not None:
                    link.silent = True
                self._accuse(event.peer)
            case NeighborUp():
                self._neighbors[event.peer] = None
            case NeighborDown():
                self._neighbors.pop(event.peer, None)
            case Stalled():
                self._stalled(event.duration_s)
            case MetaChanged():
                if len(event.meta) > self._config.meta_bytes_max:
                    raise LocalProtocolError(
                        f"metadata of {len(event.meta)} bytes exceeds {self._config.meta_bytes_max} bytes"
                    )
                self._publish(replace(self._me, meta=event.meta, meta_version=self._me.meta_version + 1))
            case AddressesChanged():
                addresses = event.addresses[: self._config.addresses_max]
                self._publish(replace(self._me, addresses=addresses, meta_version=self._me.meta_version + 1))
            case LeaveRequested():
                self._leave()
            case _:
                pass  # the overlay's or the broadcast core's
        effects, self._effects = self._effects, []
        return effects

    # --- links ------------------------------------------------------------------------------------------------

    def _link_opened(self, event: LinkOpened) -> None:
        self._links[event.peer] = link = _Link(event.incarnation, self._now)
        self._unjudged.pop(event.peer, None)
        self._allow(link)
        hello = Member(event.peer, event.incarnation, MemberState.ALIVE, event.addresses)
        known = self.table.known(event.peer)
        if known is not None and life_of(known.incarnation) > life_of(event.incarnation):
            # An older process of that node: tell it that it was superseded, then part.
            self._send(event.peer, News((bare(known),)))
            self._effects.append(Unlink(event.peer, "another process with this node id has a higher life"))
            return
        self._learn(hello, event.peer, _How.OWN)
        if self.table.get(event.peer) is None:
            self._effects.append(Unlink(event.peer, "this node is not admitted", UnlinkReason.VETOED))
            return
        self._tell_if_accused(event.peer, event.incarnation)
        if len(self._me.meta) <= self._config.forward_meta_bytes_max:
            # A hello lacks the details; without them the network would hear of a newcomer twice.
            self._send(event.peer, News((self._me,)))
        self._send(event.peer, self._heartbeat(), key="heartbeat")

    def _link_lost(self, event: LinkLost) -> None:
        link = self._links.pop(event.peer, None)
        member = self.table.get(event.peer)
        if link is None or member is None or life_of(member.incarnation) != life_of(link.incarnation):
            return  # the link was to a process that a newer one has replaced: no evidence about the newer one
        if event.left:
            self._learn(replace(bare(member), state=MemberState.LEFT), event.peer, _How.OWN)
        elif not event.wanted:
            suspicion = self._suspicions.get(event.peer)
            if suspicion is not None and not link.silent:
                # Somebody else's suspicion may be nearly over; without the link's evidence it gets its full time.
                suspicion.wait_until(self._now + suspicion.min_s)
            if self._now < self._slow_until:
                self._unjudged[event.peer] = None
            else:
                self._accuse(event.peer)

    def _dial_failed(self, event: DialFailed) -> None:
        if event.peer in self._links:
            return
        suspicion = self._suspicions.get(event.peer)
        if event.peer in self._unjudged or suspicion is not None:
            self._unjudged.pop(event.peer, None)
            self._accuse(event.peer)
        if suspicion is not None and event.refused and self._now >= self._slow_until:
            suspicion.cut(max(self._now, suspicion.since + self._config.suspicion_refused_s))
            self._rearm(event.peer, suspicion)

    def _tell_if_accused(self, peer: NodeId, incarnation: int) -> None:
        """If ``peer`` lives and we believe worse of it, it must know to be able to refute."""
        member = self.table.get(peer)
        if member is not None and status_wins(member, Member(peer, incarnation, MemberState.ALIVE)):
            self._send(peer, News((bare(member),)))

    # --- beliefs ----------------------------------------------------------------------------------------------

    def _learn(self, claim: Member, source: NodeId | None, how: _How, accusers: tuple[NodeId, ...] = ()) -> None:
        """Merge one claim, and tell the layer above and the peers if it changed anything."""
        if claim.node_id == self._me.node_id:
            self._about_me(claim)
            return
        before = self.table.get(claim.node_id)
        known = self.table.known(claim.node_id)
        if how is not _How.OWN and known is not None and not is_plausible(known.incarnation, claim.incarnation):
            self.counters["claims_implausible"] += 1
            return
        if before is None and is_gone(claim.state):
            self.table.bury(claim, self._now)
            return
        if before is None and self._admit is not None and not self._admit(claim):
            self.counters["claims_vetoed"] += 1
            return
        if claim.state is MemberState.DEAD and how is not _How.OWN and before is not None:
            proven = how is _How.NEWS and not self._is_heard(claim)
            if before.state is not MemberState.DEAD and not (proven and self._is_ripe(claim)):
                self._believe(before, replace(claim, state=MemberState.SUSPECT), source, how, accusers)
                if proven:
                    self._hurry(claim.node_id)
                return
        self._believe(before, claim, source, how, accusers)

    def _believe(
        self, before: Member | None, claim: Member, source: NodeId | None, how: _How, accusers: tuple[NodeId, ...]
    ) -> None:
        after = self.table.join(claim)
        if after is not None:
            self._store(before, after, source, to_all=how is _How.OWN, accusers=accusers)
        elif (
            claim.state is not MemberState.SUSPECT or not self._confirmed(claim, source, accusers)
        ) and self._all_named(claim.node_id, accusers):
            self._heard_too(claim, source)

    def _heard_too(self, claim: Member | Entry, source: NodeId | None) -> None:
        """``source`` made a claim that is no news: if it is all that we are about to tell, it need not be told."""
        waiting, known = self._outbox.get(claim.node_id), self.table.known(claim.node_id)
        if waiting is None or known is None or source is None:
            return
        same = claim.incarnation == known.incarnation and claim.state is known.state
        if same and (not waiting.details or claim.meta_version == known.meta_version):
            waiting.heard_from += (source,)

    def _store(
        self,
        before: Member | None,
        after: Member,
        source: NodeId | None,
        *,
        to_all: bool,
        accusers: tuple[NodeId, ...] = (),
    ) -> None:
        self.table.put(after, self._now)
        self._effects.append(MemberChanged(before, after))
        heard_from: tuple[NodeId, ...] = () if source is None else (source,)
        if after.state is not MemberState.SUSPECT:
            self._suspicions.pop(after.node_id, None)
            self.counters["deaths"] += after.state is MemberState.DEAD
        elif before is None or (before.state, before.incarnation) != (after.state, after.incarnation):
            self._suspect(after.node_id, accusers)
            if after.node_id in self._links:
                # The accused hears it before anybody else, so that it can refute before anybody else believes it.
                self._send(after.node_id, News((bare(after),)))
                heard_from += (after.node_id,)
        self._tell(after.node_id, heard_from, to_all=to_all, details=before is None or details_win(after, before))

    def _tell(self, node_id: NodeId, heard_from: tuple[NodeId, ...], *, to_all: bool, details: bool) -> None:
        if (waiting := self._outbox.get(node_id)) is not None:
            to_all, details = to_all or waiting.to_all, details or waiting.details
        self._outbox[node_id] = _News(to_all, details, heard_from)
        if self._flush_token < 0:
            # At once if it is quiet; where news come thick and fast they are collected.
            pause_s = self._flushed_at + self._config.flush_interval_s - self._now
            self._flush_token = self._set_timer(max(self._config.flush_delay_s, pause_s))

    def _publish(self, me: Member) -> None:
        """Describe ourselves anew."""
        before, self._me = self._me, me
        self._store(before, me, None, to_all=True)

    def _about_me(self, claim: Member) -> None:
        """Somebody speaks of this node: refute what is wrong, or learn that our time is over."""
        life, claimed = life_of(self._me.incarnation), life_of(claim.incarnation)
        if claimed < life:
            return
        if claimed > life:
            self._supersede(claim.incarnation, "another process has this node id and a higher life")
            return
        if claim.state is MemberState.LEFT:
            self._supersede(claim.incarnation, "the network holds that this process left")
            return
        if not is_plausible(self._me.incarnation, claim.incarnation):
            self.counters["claims_implausible"] += 1
            return
        if status_wins(claim, self._me):
            raised = refute(self._me.incarnation, claim.incarnation)
            if raised is None:
                self._supersede(claim.incarnation, "this process has no refutations left")
                return
            self.counters["refutations"] += 1
            self._publish(replace(self._me, incarnation=raised))
        if details_win(claim, self._me) and claim.meta_version < 1 << 52:
            self._contest(claim)

    def _contest(self, claim: Member) -> None:
        """These details are not ours, whoever made them up: ours must win again.

        Unless another live process has our node id and our life, as when a machine was cloned: then each would raise
        its version for ever, so after a few rounds the one with the lesser addresses gives way.  Both compare alike.
        """
        self.counters["contests"] += 1
        self._contests += claim.addresses != self._me.addresses
        if self._contests >= _CONTESTS_MAX and claim.addresses > self._me.addresses:
            where = ", ".join(map(str, claim.addresses))
            self._supersede(claim.incarnation, f"a process at {where} has this node id and started at the same time")
            return
        self._publish(replace(self._me, meta_version=claim.meta_version + 1))

    def _supersede(self, incarnation: int, why: str) -> None:
        self._ended = True
        self._effects += Persist(incarnation), Superseded(incarnation, why)

    def _leave(self) -> None:
        before, self._me = self._me, replace(self._me, state=MemberState.LEFT)
        self._ended = True
        self.table.put(self._me, self._now)
        self._effects.append(MemberChanged(before, self._me))
        for peer in self._links:
            self._send(peer, News((bare(self._me),)))

    # --- suspicion --------------------------------------------------------------------------------------------

    def _accuse(self, peer: NodeId) -> None:
        """We have evidence of our own against a living member."""
        member = self.table.get(peer)
        if member is not None and not is_gone(member.state):
            self._learn(replace(bare(member), state=MemberState.SUSPECT), None, _How.OWN, (self._me.node_id,))

    def _suspect(self, peer: NodeId, accusers: tuple[NodeId, ...]) -> None:
        self.counters["suspicions"] += 1
        config, members = self._config, len(self.table) - self.table.gone_count
        min_s = max(config.suspicion_s, suspicion_min_s(config.suspicion_mult, members, config.suspicion_unit_s))
        if self._now < self._slow_until:
            min_s *= 2  # we have just stood still: others' answers are still queued here
        wanted = confirmations_wanted(config.suspicion_mult, members)
        suspicion = self._suspicions[peer] = Suspicion(wanted, min_s, config.suspicion_max_mult * min_s, self._now)
        for accuser in accusers:
            suspicion.accuse(accuser)
        self._rearm(peer, suspicion)

    def _confirmed(self, claim: Member, source: NodeId | None, accusers: tuple[NodeId, ...]) -> bool:
        """Whether the claim names accusers that are new to the suspicion; if so it is shorter now, and news again."""
        member, suspicion = self.table.get(claim.node_id), self._suspicions.get(claim.node_id)
        if suspicion is None or member is None or member.incarnation != claim.incarnation:
            return False
        # Only members can accuse, so that nobody confirms itself with invented names.
        new = [a for a in accusers if self.table.get(a) is not None and suspicion.accuse(a)]
        if not new:
            return False
        self.counters["confirmations"] += len(new)
        self._rearm(claim.node_id, suspicion)
        heard_from = () if source is None else (source,)
        self._tell(claim.node_id, heard_from, to_all=source is None, details=False)
        return True

    def _is_ripe(self, claim: Member) -> bool:
        """Whether we have suspected this process for so long that its refutation would have come.

        Where a partition has just ended, its other side's news of deaths come before those who are meant know of them.
        """
        suspicion, member = self._suspicions.get(claim.node_id), self.table.get(claim.node_id)
        if suspicion is None or member is None or member.incarnation != claim.incarnation:
            return False
        return self._now >= suspicion.since + self._config.suspicion_refused_s / 2

    def _hurry(self, peer: NodeId) -> None:
        """Somebody had reason to call ``peer`` dead: unless it refutes soon, so do we."""
        if (suspicion := self._suspicions.get(peer)) is not None:
            suspicion.cut(max(self._now, suspicion.since + self._config.suspicion_refused_s))
            self._rearm(peer, suspicion)

    def _all_named(self, peer: NodeId, accusers: tuple[NodeId, ...]) -> bool:
        """Whether the accusers are all that we know of: then whoever named them needs no telling."""
        suspicion = self._suspicions.get(peer)
        return suspicion is None or all(accuser in accusers for accuser in suspicion.accusers)

    def _rearm(self, peer: NodeId, suspicion: Suspicion) -> None:
        self._suspicion_timers.pop(suspicion.token, None)
        suspicion.token = self._set_timer(max(suspicion.deadline - self._now, 0.0))
        self._suspicion_timers[suspicion.token] = peer

    def _suspicion_over(self, peer: NodeId) -> None:
        suspicion = self._suspicions.get(peer)
        if suspicion is None:
            return
        member = self.table[peer]  # only the dead and departed are forgotten
        if self._now < suspicion.deadline:
            self._rearm(peer, suspicion)
        elif self._is_heard(member):
            self._send(peer, News((bare(member),)))
            suspicion.wait_until(self._now + suspicion.min_s)
            self._rearm(peer, suspicion)
        else:
            self._learn(replace(bare(member), state=MemberState.DEAD), None, _How.OWN)

    def _stalled(self, duration_s: float) -> None:
        """We were deaf: every running suspicion gets the time back, and new ones are patient for a while."""
        credit_s = min(duration_s, self._config.stall_credit_s_max)
        self._slow_until = max(self._slow_until, self._now + 2 * credit_s)
        for suspicion in self._suspicions.values():
            suspicion.credit(self._now, credit_s)

    def _is_heard(self, member: Member) -> bool:
        """Whether a link shows that this very process lives."""
        link = self._links.get(member.node_id)
        return link is not None and not link.silent and life_of(link.incarnation) == life_of(member.incarnation)

    # --- timers and dissemination -----------------------------------------------------------------------------

    def _timer(self, token: int) -> None:
        if token == self._tick_token:
            self._tick()
        elif token == self._flush_token:
            self._flush_token = -1
            self._flush()
        elif (peer := self._suspicion_timers.pop(token, None)) is not None:
            self._suspicion_over(peer)

    def _set_timer(self, delay_s: float) -> int:
        token = self._next_token
        self._next_token += 1
        self._effects.append(SetTimer(token, delay_s))
        return token

    def _tick(self) -> None:
        """Heartbeats, one table exchange if one is due, and forgetting."""
        self._tick_token = self._set_timer(self._config.heartbeat_interval_s * self._rng.uniform(0.9, 1.1))
        self._effects += [MemberForgotten(member) for member in self.table.reap(self._now)]
        heartbeat = encode(self._heartbeat())
        for link in self._links.values():
            self._allow(link)
        neighbors = [peer for peer in self._neighbors if peer in self._links]
        self._effects += [Send(peer, heartbeat, key="heartbeat") for peer in neighbors]
        # Twice in a row, because news that are under way explain a single difference.
        differing = [peer for peer in neighbors if self._links[peer].differs >= 2]
        if differing and self._now >= self._sync_at:
            # Late by half an interval at most: the ticks are jittered.
            intervals = max(1, (len(self.table) - 1).bit_length() - 4)
            self._sync_at = (
                self._now + intervals * self._config.sync_interval_s - 0.5 * self._config.heartbeat_interval_s
            )
            self._sync(self._rng.choice(differing))

    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(self._me.incarnation, self.table.digest, len(self.table) - self.table.gone_count)

    def _allow(self, link: _Link) -> None:
        link.digests_left = 2 + 2 * (len(self.table) // ENTRIES_MAX)
        link.wants_left = 64 + 2 * len(self.table)

    def _flush(self) -> None:
        """Send what is new: one body per peer and chunk, equal bodies encoded once."""
        self._flushed_at = self._now
        outbox, self._outbox = self._outbox, {}
        changed = {n: member for n in outbox if (member := self.table.known(n)) is not None}
        young_since = self._now - _YOUNG_LINK_S
        few = neighbors = [
            peer for peer, link in self._links.items() if peer in self._neighbors or link.opened_at >= young_since
        ]
        if len(neighbors) > self._config.forward_fanout:
            few = self._rng.sample(neighbors, self._config.forward_fanout)
        # Whoever the news are about hears them too, if there is a link.
        near, chosen = frozenset(neighbors), frozenset(few)
        peers = neighbors + [n for n in changed if n in self._links and n not in near]
        encoded: dict[tuple[NodeId, ...], list[bytes]] = {}
        for peer in peers:
            told = tuple(
                node_id
                for node_id, news in outbox.items()
                if node_id in changed
                and (node_id == peer or peer in chosen or (news.to_all and peer in near))
                and peer not in news.heard_from
            )
            if not told:
                continue
            if told not in encoded:
                claims = (self._wording(changed[node_id], outbox[node_id]) for node_id in told)
                encoded[told] = [
                    encode(self._news(chunk)) for chunk in chunks(claims, self._config.sync_body_bytes_max)
                ]
            self.counters["news_sent"] += len(encoded[told])
            self._effects += [Send(peer, body) for body in encoded[told]]

    def _news(self, claims: tuple[Member, ...]) -> News:
        suspicions = [self._suspicions.get(claim.node_id) for claim in claims]
        accusers = tuple(() if suspicion is None else suspicion.accusers for suspicion in suspicions)
        return News(claims, accusers if any(accusers) else ())

    def _wording(self, member: Member, news: _News) -> Member:
        large = len(member.meta) > self._config.forward_meta_bytes_max and not news.to_all
        return member if news.details and not large else bare(member)

    def _send(self, peer: NodeId, body: Body, key: str | None = None) -> None:
        self._effects.append(Send(peer, encode(body), key))

    # --- receiving --------------------------------------------------------------------------------------------

    def _received(self, event: Received) -> None:
        link = self._links.get(event.peer)
        if link is None:
            self.counters["received_unlinked"] += 1
            return
        body = decode(event.body, self._config)
        link.silent = False
        match body:
            case Heartbeat():
                self._heard(event.peer, link, body)
            case News():
                self._learn_all(body.claims, event.peer, _How.NEWS, body.accusers)
            case States():
                self._learn_all(body.claims, event.peer, _How.STATE)
            case Digest():
                if self._charge(link.digests_left, 1):
                    link.digests_left -= 1
                    self._compare(event.peer, body)
            case Want():
                if self._charge(link.wants_left, len(body.node_ids)):
                    link.wants_left -= len(body.node_ids)
                    wanted = [m for n in body.node_ids if (m := self.table.get(n)) is not None]
                    self._send_states(event.peer, wanted)
            case _:
                pass  # of a later version

    def _charge(self, left: int, cost: int) -> bool:
        if cost > left:
            self.counters["requests_over_limit"] += 1
            return False
        return True

    def _learn_all(
        self, claims: Sequence[Member], source: NodeId, how: _How, accusers: Sequence[tuple[NodeId, ...]] = ()
    ) -> None:
        known = self.table.get
        for claim, accusing in zip(claims, accusers or ((),) * len(claims), strict=True):
            if self._ended:
                break
            before = known(claim.node_id)
            if before is not None and _says_nothing_new(claim, before):
                self._heard_too(claim, source)  # most claims: the same news come over several links
            else:
                self._learn(claim, source, how, accusing)

    def _heard(self, peer: NodeId, link: _Link, heartbeat: Heartbeat) -> None:
        if life_of(heartbeat.incarnation) != life_of(link.incarnation):
            self.counters["claims_implausible"] += 1
            return
        known = self.table.get(peer)
        if known is None or known.incarnation != heartbeat.incarnation or known.state is not MemberState.ALIVE:
            self._learn(Member(peer, heartbeat.incarnation, MemberState.ALIVE), peer, _How.OWN)
        if link.heard:
            self._tell_if_accused(peer, heartbeat.incarnation)
        link.differs = link.differs + 1 if heartbeat.digest != self.table.digest else 0
        if not link.heard and link.differs and self._me.node_id < peer:
            self._sync(peer)  # a new link is where tables differ most; one side is enough
        link.heard = True

    # --- exchange of tables -----------------------------------------------------------------------------------

    def _sync(self, peer: NodeId) -> None:
        self.counters["syncs_started"] += 1
        self._links[peer].differs = 0
        for digest in digests(self.table):
            self._send(peer, digest)

    def _compare(self, peer: NodeId, digest: Digest) -> None:
        """Send what we know better, ask for what the peer does."""
        listed = {entry.node_id: entry for entry in digest.entries}
        theirs_lacks = [
            member
            for member in self.table
            if member.node_id not in listed
            and not is_gone(member.state)
            and digest.after < member.node_id
            and (not digest.upto or member.node_id <= digest.upto)
        ]
        push, want = theirs_lacks, []
        for entry in digest.entries:
            ours = self.table.known(entry.node_id)
            if (
                ours is not None
                and ours.incarnation == entry.incarnation
                and ours.state is entry.state
                and ours.state is not MemberState.SUSPECT
                and ours.meta_version == entry.meta_version
            ):
                self._heard_too(entry, peer)
                continue
            if ours is None and not is_gone(entry.state):
                want.append(entry.node_id)
                continue
            claim = Member(entry.node_id, entry.incarnation, entry.state)
            if ours is not None and status_wins(ours, claim) | (_details(ours) > _details(entry)):
                push.append(ours)
            if ours is not None and self.table.get(entry.node_id) is None and not status_wins(claim, ours):
                continue  # our tombstone stands: nothing to ask for
            if ours is not None and _details(entry) > _details(ours) and entry.node_id != self._me.node_id:
                want.append(entry.node_id)
            else:
                self._learn(claim, peer, _How.STATE)
                if self._ended:
                    return
        self._send_states(peer, push)
        if want:
            self._send(peer, Want(tuple(want)))

    def _send_states(self, peer: NodeId, members: list[Member]) -> None:
        for chunk in chunks(members, self._config.sync_body_bytes_max):
            self._send(peer, States(chunk))


def _says_nothing_new(claim: Member, known: Member) -> bool:
    """Whether the claim is part of what is known; a suspicion may always have new accusers."""
    return (
        claim.incarnation == known.incarnation
        and claim.state is known.state
        and claim.state is not MemberState.SUSPECT
        and (claim is known or claim.meta_version < known.meta_version or not details_win(claim, known))
    )


def _details(known: Member | Entry) -> tuple[int, int]:
    return life_of(known.incarnation), known.meta_version
