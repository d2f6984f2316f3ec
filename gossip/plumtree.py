"""Broadcast by Plumtree: a payload to every node, each exactly once, over a tree that mends itself.

After Leitão, Pereira, Rodrigues, "Epidemic Broadcast Trees" (SRDS 2007).  The overlay gives each node a few neighbours.
A payload goes at once to the *eager* ones; the *lazy* ones are only told its id (IHAVE).  A node that gets a payload
twice takes the link of the second copy out of the tree (PRUNE), so eager links soon form a spanning tree.  A node
that was told of an id and does not get the payload in time fetches it from who told, and takes that link into the
tree (GRAFT).  One tree serves all origins; it fits the one that sent most lately.

Deviations from the paper, and why:

* *Sequence numbers instead of hashes.*  A broadcast is named (origin, life, sequence), so nodes see holes and can
  compare what they have: a *sync* tells a random neighbour, once a second while broadcasts are recent and whenever a
  neighbour is new, the contiguous numbers and gaps of each origin (``seen.py``).  Each side then announces what the
  other lacks.  This mends what the tree cannot: a broadcast whose first hops all died, or whose every copy was lost.
* *IHAVEs are collected* for a few milliseconds; *PRUNEs are throttled* per peer (after corrosion's plum-foca), since
  copies under way when one is sent must not cause more of them.
* *A lost eager neighbour is replaced* by a lazy one at once, which halves the time to the last node after many died.
* *Who announced a broadcast has it* and gets no copy.
* *Which link is better* is decided by arrival, which needs no measured round trips: the first to announce is on the
  fastest path and is grafted first.  Where the tree brings two broadcasts of one origin in turn so late that they were
  already asked for elsewhere, the link that was asked takes the place of the tree's; without this, one sender's tree
  keeps a few links that are grafted and pruned again with every broadcast.  Besides, as in the paper, a lazy link that
  would have saved ``plumtree_optimise_hops`` hops takes the place of the eager one.
* *TTL.*  Trees are deeper than the network is wide.  An announcement carries the TTL that the payload would come
  with; if that is more than the payload had, what little TTL is left is bettered without sending it again.  So a
  broadcast with TTL n still reaches whoever is n links away.
* *Age* is carried with the payload; what is too old is not passed on.  Payloads are kept as long, within bounds.
* *Large payloads.*  Announcements say the size, and waiting takes longer for large ones.
* A payload that the shell could not queue for a peer is announced to it instead of being lost in silence.

What a hostile peer can do: its ids, syncs and requests are counted per second, its unknown ids cost an entry in a
bounded table for some tens of milliseconds, and pruning us only slows its own supply.  Limit: origins do not sign
here, so a peer can use up another's numbers; whose a payload is, the layer above has to show (``mesh/sealing``).
"""

# core: no I/O

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from transport.errors import LocalProtocolError
from transport.types import NodeId
from transport.wire import TTL_MAX, Kind

from .codec import BroadcastBody, decode_broadcast, encode_broadcast
from .config import GossipConfig
from .events import (
    BroadcastRequested,
    Deliver,
    Effect,
    Event,
    Member,
    Missed,
    NeighborDown,
    NeighborUp,
    Originated,
    Received,
    Send,
    SendDropped,
    SetTimer,
    TimerFired,
)
from .incarnation import life_of
from .payloads import Payload, PayloadCache
from .plumtree_codec import (
    IDS_MAX,
    ORIGINS_MAX,
    TIME_MS_MAX,
    Announcement,
    Gossip,
    Graft,
    IHave,
    MessageId,
    Prune,
    Sync,
    decode,
    encode,
    grafts,
    ihaves,
)
from .seen import SeenWindows, Verdict

_NONE: Final = -1
_COUNTERS: Final = (
    *("originated", "delivered", "duplicates", "forwarded", "outdated", "expired", "before_us", "announced", "missed"),
    *("grafts_sent", "grafts_received", "grafts_unanswered", "repairs", "prunes_sent", "prunes_received"),
    *("optimised", "replaced", "unrepaired", "syncs_sent", "offered", "dropped"),
    *("ihaves_refused", "repairs_refused", "syncs_refused"),
)
#: Announcements better a TTL only where it is below this; no overlay of ours is as wide.
_TTL_AMPLE: Final = 16
#: What a payload costs a peer's allowance besides its bytes, so that many small ones are bounded too.
_REPAIR_OVERHEAD_BYTES: Final = 128


@dataclass(slots=True)
class _Peer:
    """A neighbour."""

    eager: bool = True
    pruned_at: float = -math.inf
    """When we last sent it a PRUNE."""
    announce: dict[MessageId, None] = field(default_factory=dict)
    """To go with the next IHAVE; bounded by the cache, since the flush is never far."""
    slow_for: NodeId | None = None
    """The origin of the last broadcast that came from it later than it should."""
    second_at: float = -math.inf
    """Since when the following allowances are used."""
    ids: int = 0
    syncs: int = 0
    repair_bytes: int = 0


@dataclass(slots=True)
class _Missing:
    """A broadcast that was announced and has not come."""

    sources: dict[NodeId, Announcement] = field(default_factory=dict)
    """Who announced it and was not asked yet, in order of arrival."""
    told: dict[NodeId, int] = field(default_factory=dict)
    """All who announced it, and with what TTL; bounded by the neighbours."""
    asked: NodeId | None = None
    """Whom we asked first."""


class PlumtreeCore:
    """One node's part in broadcasting.

    Args:
        self_member: This node.
        config: Limits and times.
        rng: Picks the neighbour to compare with.
    """

    def __init__(self, self_member: Member, config: GossipConfig, rng: random.Random) -> None:
        self._owner = self_member.node_id
        self._incarnation = self_member.incarnation
        self._config = config
        self._rng = rng
        self._started_at = math.inf
        self._peers: dict[NodeId, _Peer] = {}
        self._seen = SeenWindows(config)
        self._cache = PayloadCache(config)
        self._missing: dict[MessageId, _Missing] = {}
        # One entry per missing id, and for as long those that came meanwhile.
        self._deadlines: list[tuple[float, int, MessageId]] = []
        self._serial = 0
        self._flush_token = self._missing_token = self._sync_token = _NONE
        self._sync_after = ""
        self._effects: list[Effect] = []
        self.sequence = 0
        """The number of our latest broadcast."""
        self.counters = dict.fromkeys(_COUNTERS, 0)

    @property
    def origins(self) -> int:
        """How many origins are remembered."""
        return len(self._seen)

    @property
    def cached_bytes(self) -> int:
        """Bytes of the payloads that are kept for repairs."""
        return self._cache.size_bytes

    @property
    def waiting(self) -> int:
        """How many announced broadcasts have not come yet."""
        return len(self._missing)

    def eager(self) -> list[NodeId]:
        """The neighbours that get payloads at once."""
        return [name for name, peer in self._peers.items() if peer.eager]

    def lazy(self) -> list[NodeId]:
        """The neighbours that get announcements."""
        return [name for name, peer in self._peers.items() if not peer.eager]

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event and return sends, deliveries and timers.

        Raises:
            RemoteProtocolError: A received body is not allowed; nothing changed.
            LocalProtocolError: The payload or TTL of our own broadcast is not allowed; nothing was sent.
        """
        self._started_at = min(self._started_at, now)
        match event:
            case Received():
                self._received(event, now)
            case TimerFired():
                self._timer(event.token, now)
            case BroadcastRequested():
                self._originate(event, now)
            case NeighborUp():
                self._up(event.peer, now)
            case NeighborDown():
                self._down(event.peer)
            case SendDropped():
                self._dropped(event.send)
            case _:
                pass
        effects, self._effects = self._effects, []
        return effects

    # --- neighbours -------------------------------------------------------------------------------------------

    def _up(self, peer: NodeId, now: float) -> None:
        if peer not in self._peers:
            self._peers[peer] = _Peer()
            if self._seen.heard_since(now - self._config.plumtree_age_s):
                self._send_sync(peer, now)

    def _down(self, peer: NodeId) -> None:
        gone = self._peers.pop(peer, None)
        if gone is None:
            return
        for missing in self._missing.values():
            missing.sources.pop(peer, None)
        lazy = self.lazy()
        if gone.eager and lazy:
            self.counters["replaced"] += 1
            self._graft(self._rng.choice(lazy), ())

    def _dropped(self, send: Send) -> None:
        peer = self._peers.get(send.peer)
        body = decode(send.body) if send.kind == Kind.BROADCAST else None
        if peer is None or not isinstance(body, Gossip):
            return
        self.counters["dropped"] += 1
        sealed = decode_broadcast(body.sealed, self._config)
        self._announce(peer, MessageId(sealed.origin, life_of(sealed.incarnation), sealed.sequence))

    # --- payloads ---------------------------------------------------------------------------------------------

    def _originate(self, event: BroadcastRequested, now: float) -> None:
        if len(event.payload) > self._config.broadcast_bytes_max:
            raise LocalProtocolError(
                f"broadcast of {len(event.payload)} bytes exceeds {self._config.broadcast_bytes_max} bytes"
            )
        if not 1 <= event.ttl <= TTL_MAX:
            raise LocalProtocolError(f"a broadcast's ttl must be 1 to {TTL_MAX}, not {event.ttl}")
        self.sequence += 1
        self.counters["originated"] += 1
        sealed = encode_broadcast(BroadcastBody(self._owner, self._incarnation, self.sequence, event.payload))
        id_ = MessageId(self._owner, life_of(self._incarnation), self.sequence)
        self._seen.take(*id_, now)
        payload = Payload(id_, sealed, event.ttl, 0, now, now, None)
        self._keep(payload, now)
        self._spread(payload, self._peers, now)
        self._effects.append(Originated(self.sequence, tuple(self.eager()), tuple(self.lazy())))

    def _received(self, event: Received, now: float) -> None:
        body = decode(event.body)
        peer = self._peers.get(event.peer)
        match body:
            case Gossip():
                sealed = decode_broadcast(body.sealed, self._config)
                self._on_gossip(event, body, sealed, peer, now)
            case IHave() if peer is not None:
                self._on_ihave(event.peer, peer, body.announcements, now)
            case Graft() if peer is not None:
                self._on_graft(event.peer, peer, body.ids, now)
            case Prune() if peer is not None:
                self.counters["prunes_received"] += 1
                peer.eager = False
            case Sync() if peer is not None:
                self._on_sync(event.peer, peer, body, now)
            case _:
                pass  # of a later version, or of one who is no neighbour any more: only payloads are worth taking

    def _on_gossip(self, event: Received, body: Gossip, sealed: BroadcastBody, peer: _Peer | None, now: float) -> None:
        id_ = MessageId(sealed.origin, life_of(sealed.incarnation), sealed.sequence)
        age_s = body.age_ms / 1000
        if age_s >= self._config.plumtree_age_s:
            self.counters["expired"] += 1
            return
        verdict = Verdict.SEEN if id_.origin == self._owner else self._seen.take(*id_, now)
        if verdict is not Verdict.NEW:
            self.counters["duplicates" if verdict is Verdict.SEEN else "outdated"] += 1
            payload = self._cache.get(id_, now)
            if payload is not None and payload.awaited == event.peer:
                payload.awaited = None
            elif peer is not None:
                self._prune(event.peer, peer, now)
            self._better_ttl(id_, event.peer, event.ttl, now)
            return
        missing = self._missing.pop(id_, None)
        if age_s > self._wanted_s(now):
            self.counters["before_us"] += 1
            return
        self.counters["delivered"] += 1
        self._effects.append(Deliver(id_.origin, sealed.incarnation, id_.sequence, sealed.payload))
        payload = Payload(id_, body.sealed, event.ttl, body.hops, now, now - age_s, event.peer)
        self._keep(payload, now)
        if peer is not None:
            peer.eager = True
            if missing is not None:
                self._optimise(payload, event.peer, peer, missing, now)
        told = {} if missing is None else missing.told
        # Who announced it has it, unless the TTL that we could give would take it further.
        self._spread(payload, [name for name in self._peers if told.get(name, -2) < payload.ttl - 2], now)

    def _keep(self, payload: Payload, now: float) -> None:
        self._cache.add(payload, now)
        if self._sync_token == _NONE:
            self._sync_token = self._timer_in(self._sync_delay_s())

    def _spread(self, payload: Payload, targets: Iterable[NodeId], now: float) -> None:
        """Send to eager peers and announce to lazy ones, but not back nor to its origin."""
        if payload.ttl == 0:
            return
        body = b""
        for name in targets:
            if name in (payload.parent, payload.id.origin):
                continue
            peer = self._peers[name]
            if peer.eager:
                body = body or self._gossip(payload, now)
                self.counters["forwarded"] += 1
                self._effects.append(Send(name, body, kind=Kind.BROADCAST, ttl=payload.ttl - 1))
            else:
                self._announce(peer, payload.id)

    def _gossip(self, payload: Payload, now: float) -> bytes:
        age_ms = min(TIME_MS_MAX, int((now - payload.born_at) * 1000))
        return encode(Gossip(min(TTL_MAX, payload.hops + 1), age_ms, payload.sealed))

    def _better_ttl(self, id_: MessageId, teller: NodeId, ttl: int, now: float) -> None:
        """We have the payload, and now know of a way here that would have left it more TTL."""
        payload = self._cache.get(id_, now)
        if payload is None or not payload.ttl < min(ttl, _TTL_AMPLE) or payload.id.origin == self._owner:
            return
        spent, giver = payload.ttl == 0, payload.parent
        payload.ttl, payload.parent = ttl, teller
        have = [name for name in self._peers if name == giver or not spent]
        self._spread(payload, [name for name in self._peers if name not in have], now)
        for name in have:
            if name not in (teller, id_.origin):
                self._announce(self._peers[name], id_)

    # --- the tree ---------------------------------------------------------------------------------------------

    def _prune(self, name: NodeId, peer: _Peer, now: float) -> None:
        peer.eager = False
        if now - peer.pruned_at >= self._config.plumtree_prune_interval_s:
            peer.pruned_at = now
            self.counters["prunes_sent"] += 1
            self._send(name, encode(Prune()))

    def _graft(self, name: NodeId, ids: Sequence[MessageId]) -> None:
        peer = self._peers[name]
        peer.eager, peer.pruned_at = True, -math.inf  # the next PRUNE means something new
        for body in grafts(ids):
            self.counters["grafts_sent"] += 1
            self._send(name, body)

    def _optimise(self, payload: Payload, name: NodeId, peer: _Peer, missing: _Missing, now: float) -> None:
        """The payload came from ``name``; another link may be the better one."""
        if missing.asked in self._peers and missing.asked != name:
            # It was announced long before it came, and the answer to our request is on its way: that path is faster.
            # One such broadcast says little when everybody sends; a second of the same origin is worth a change.
            slow_for, peer.slow_for = peer.slow_for, payload.id.origin
            if slow_for != payload.id.origin:
                return
            payload.awaited = missing.asked
        else:
            best = min(missing.sources.items(), key=lambda source: source[1].hops, default=None)
            far = best is not None and payload.hops - best[1].hops >= self._config.plumtree_optimise_hops
            if best is None or not far or name in (best[0], missing.asked):
                return
            self._graft(best[0], ())
        self.counters["optimised"] += 1
        self._prune(name, peer, now)

    def _on_graft(self, name: NodeId, peer: _Peer, ids: tuple[MessageId, ...], now: float) -> None:
        self.counters["grafts_received"] += 1
        peer.eager, peer.pruned_at = True, -math.inf
        self._renew_allowance(peer, now)
        for id_ in ids:
            payload = self._cache.get(id_, now)
            if payload is None or payload.ttl == 0:
                self.counters["grafts_unanswered"] += 1
            elif peer.repair_bytes > self._config.plumtree_repair_bytes_max:
                self.counters["repairs_refused"] += 1
            else:
                peer.repair_bytes += len(payload.sealed) + _REPAIR_OVERHEAD_BYTES
                self.counters["repairs"] += 1
                body = self._gossip(payload, now)
                self._effects.append(Send(name, body, kind=Kind.BROADCAST, ttl=payload.ttl - 1))

    # --- announcements ----------------------------------------------------------------------------------------

    def _announce(self, peer: _Peer, id_: MessageId) -> None:
        peer.announce[id_] = None
        if self._flush_token == _NONE:
            self._flush_token = self._timer_in(self._config.plumtree_flush_s)

    def _flush(self, now: float) -> None:
        for name, peer in self._peers.items():
            announcements = []
            for id_ in peer.announce:
                payload = self._cache.get(id_, now)
                if payload is not None and payload.ttl > 0:
                    hops = min(TTL_MAX, payload.hops + 1)
                    announcements.append(Announcement(id_, payload.ttl - 1, hops, len(payload.sealed)))
            peer.announce.clear()
            for body in ihaves(announcements):
                self._send(name, body)
            self.counters["announced"] += len(announcements)

    def _on_ihave(self, name: NodeId, peer: _Peer, announcements: tuple[Announcement, ...], now: float) -> None:
        self._renew_allowance(peer, now)
        for announcement in announcements:
            peer.ids += 1
            if peer.ids > self._config.plumtree_ihave_ids_max:
                self.counters["ihaves_refused"] += 1
                continue
            id_ = announcement.id
            if id_.origin == self._owner:
                continue
            verdict = self._seen.look(*id_)
            if verdict is Verdict.SEEN:
                self._better_ttl(id_, name, announcement.ttl, now)
            elif verdict is Verdict.NEW:
                missing = self._missing.get(id_)
                if missing is None:
                    if len(self._missing) >= self._config.plumtree_missing_max:
                        self.counters["ihaves_refused"] += 1
                        continue
                    missing = self._missing[id_] = _Missing()
                    wait_s = 2 * announcement.size_bytes / self._config.plumtree_link_bytes_per_s
                    self._wait(id_, now + self._config.plumtree_ihave_timeout_s + wait_s)
                missing.sources[name] = announcement
                missing.told[name] = announcement.ttl
        self._wake(now)

    def _wait(self, id_: MessageId, until: float) -> None:
        self._serial += 1
        heapq.heappush(self._deadlines, (until, self._serial, id_))

    def _wake(self, now: float) -> None:
        """Have the timer run for the nearest deadline."""
        if self._deadlines and self._missing_token == _NONE:
            self._missing_token = self._timer_in(max(0.0, self._deadlines[0][0] - now))

    def _fetch(self, now: float) -> None:
        """Ask for what has not come in time, each from the next one that announced it."""
        wanted: dict[NodeId, list[MessageId]] = {}
        while self._deadlines and self._deadlines[0][0] <= now + 0.001:
            id_ = heapq.heappop(self._deadlines)[2]
            missing = self._missing.get(id_)
            if missing is None:
                continue
            if not missing.sources:
                self.counters["unrepaired"] += 1
                del self._missing[id_]
                continue
            name = next(iter(missing.sources))
            missing.asked = missing.asked or name
            announcement = missing.sources.pop(name)
            wanted.setdefault(name, []).append(id_)
            wait_s = announcement.size_bytes / self._config.plumtree_link_bytes_per_s
            self._wait(id_, now + self._config.plumtree_graft_timeout_s + wait_s)
        for name, ids in wanted.items():
            self._graft(name, ids)
        self._wake(now)

    # --- syncs ------------------------------------------------------------------------------------------------

    def _wanted_s(self, now: float) -> float:
        """How old a broadcast may be to be wanted here."""
        return now - self._started_at + self._config.plumtree_history_s

    def _sync_delay_s(self) -> float:
        return self._config.plumtree_sync_interval_s * self._rng.uniform(0.75, 1.25)

    def _sync(self, now: float) -> None:
        """Compare with a neighbour while anything is recent; the timer stops when nothing is left to settle."""
        age_s = self._config.plumtree_age_s
        self._cache.expire(now)
        for origin, life, first, last in self._seen.settle(now):
            self.counters["missed"] += last - first + 1
            self._effects.append(Missed(origin, life, first, last))
        if self._peers and self._seen.heard_since(now - age_s):
            peer = self._rng.choice(list(self._peers))
            self._sync_after = self._send_sync(peer, now, after=self._sync_after)
        if self._seen.heard_since(now - 3 * age_s):
            self._sync_token = self._timer_in(self._sync_delay_s())

    def _send_sync(self, peer: NodeId, now: float, *, answer: bool = False, after: str = "", upto: str = "") -> str:
        """Tell ``peer`` what we have of the origins in an interval; returns where the next one starts."""
        summaries = self._seen.summaries(now)
        if after or upto:
            interval = Sync(answer, 0, after, upto, ())
            summaries = [summary for summary in summaries if interval.covers(summary.origin)]
        if len(summaries) > ORIGINS_MAX:
            summaries = summaries[:ORIGINS_MAX]
            upto = summaries[-1].origin
        # Somewhat more, for the time that this takes to get there; what comes is judged by its age.
        since_s = min(self._wanted_s(now) + self._config.plumtree_sync_grace_s, self._config.plumtree_age_s)
        self.counters["syncs_sent"] += 1
        self._send(peer, encode(Sync(answer, int(since_s * 1000), after, upto, tuple(summaries))))
        return upto

    def _on_sync(self, name: NodeId, peer: _Peer, theirs: Sync, now: float) -> None:
        self._renew_allowance(peer, now)
        peer.syncs += 1
        if peer.syncs > self._config.plumtree_syncs_max:
            self.counters["syncs_refused"] += 1
            return
        summaries = self._seen.summaries(now)
        if theirs.summaries == tuple(summaries):
            return  # neither has anything that the other lacks
        known = {summary.origin: summary for summary in theirs.summaries}
        since = now - theirs.since_ms / 1000
        settled = now - self._config.plumtree_sync_grace_s
        for payload in self._cache.young(now):
            id_ = payload.id
            if payload.taken_at > settled or payload.born_at < since or payload.ttl == 0 or id_.origin == name:
                continue
            has = known.get(id_.origin)
            if theirs.covers(id_.origin) and (has is None or has.lacks(id_.life, id_.sequence)):
                self.counters["offered"] += 1
                self._announce(peer, id_)
                if len(peer.announce) >= IDS_MAX:
                    break  # the next sync goes on where this one ends
        if not theirs.answer:
            ours = {summary.origin: summary for summary in summaries}
            if any(s.has_more(ours.get(s.origin)) for s in theirs.summaries if s.origin != self._owner):
                self._send_sync(name, now, answer=True, after=theirs.after, upto=theirs.upto)

    # --- private ----------------------------------------------------------------------------------------------

    def _timer(self, token: int, now: float) -> None:
        if token == self._flush_token:
            self._flush_token = _NONE
            self._flush(now)
        elif token == self._missing_token:
            self._missing_token = _NONE
            self._fetch(now)
        elif token == self._sync_token:
            self._sync_token = _NONE
            self._sync(now)

    def _timer_in(self, delay_s: float) -> int:
        self._serial += 1
        self._effects.append(SetTimer(self._serial, delay_s))
        return self._serial

    def _send(self, peer: NodeId, body: bytes) -> None:
        self._effects.append(Send(peer, body, kind=Kind.BROADCAST))

    def _renew_allowance(self, peer: _Peer, now: float) -> None:
        if now - peer.second_at >= 1.0:
            peer.second_at, peer.ids, peer.syncs, peer.repair_bytes = now, 0, 0, 0
