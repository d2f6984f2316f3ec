"""Anti-entropy: how two replicas find out what each lacks, and get it.

Live updates are lost now and then: links break, queues are full, processes end, networks part, and a replica that is
new has had none at all.  So every replica compares itself with another one all the time (Demers et al. 1987), in three
steps of rising cost, of which the first mostly suffices: a *history* of 16 bytes, then version vectors, then only the
envelopes that are missing (:mod:`.codec`).

*Who pulls drives.*  Whoever learns that its history differs says which version it has, gets one page of what is beyond
it, applies it, and asks again.  So nobody remembers for somebody else how far he is, a link or process that ends loses
at most a page, and a replica that is slow gets its pages slowly and holds up nobody.  Who is asked sees from the
version whether it lacks something itself, and then asks back.  A page that brought nothing forward ends the pull: a
peer cannot keep us busy with what we do not take.

*With whom.*  With each replica when a link to it opens, then every few seconds with one at random; at once with a few
more after a pull that brought something, so that news from the other side of a healed partition spread by themselves;
and when envelopes wait for others that do not come.

*Trust.*  A peer whose pages hold what no honest replica could have is left alone for a while, each time for twice as
long.  Pages that nobody asked for are ignored.

Equal versions with different histories mean that two envelopes have one number (:class:`Diverged`): nothing is sent,
it is told.
"""

# core: no I/O

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from state.clocks.vectors import Span, VersionVector
from transport.types import NodeId

from .codec import Ask, Body, Offer, Page, Same

#: Peers whose penalties are remembered: more than have links.
PENALTIES_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class RepairConfig:
    """Times and limits.

    Attributes:
        interval_s: Between two comparisons with a replica chosen at random, on average; each replica does this, so a
            change that everybody missed is noticed about that soon.
        pull_timeout_s: When a page that was asked for is given up.  Above what a page takes on the slowest link.
        pulls_max: Replicas from which pages are pulled at once: a second helps when the first is slow.
        gap_s: How long envelopes may wait for others, which usually are under way, before they are asked for.
        spread: Replicas that hear at once of a pull that brought something.
        spread_s: But not again within this: while everybody writes, replicas always differ by what is under way, and
            each pull brings something, so without a bound comparisons would beget comparisons.
        penalty_s: For how long a peer is left alone after a page that could not be; doubles each time.
        penalty_s_max: The longest.
    """

    interval_s: float = 5.0
    pull_timeout_s: float = 10.0
    pulls_max: int = 2
    gap_s: float = 0.25
    spread: int = 3
    spread_s: float = 1.0
    penalty_s: float = 10.0
    penalty_s_max: float = 600.0


# --- events and effects -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PeerUp:
    """There is a link to another replica."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class PeerDown:
    """The link is gone, or the peer is no replica any more."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Heard:
    """A peer said something about this document and lineage."""

    peer: NodeId
    body: Body


@dataclass(frozen=True, slots=True)
class Taken:
    """A page is applied as far as it could be."""

    peer: NodeId
    fresh: int
    """How many of its envelopes were new here."""
    refused: bool
    """Whether something in it was what no honest replica has."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Envelopes wait for others."""


@dataclass(frozen=True, slots=True)
class Unsent:
    """A change could not go by the document's group: tell the others to ask for it."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """:attr:`RepairCore.due` has come."""


RepairEvent: TypeAlias = PeerUp | PeerDown | Heard | Taken | Waiting | Unsent | Ticked


@dataclass(frozen=True, slots=True)
class Say:
    """Send this to a peer; if it cannot be sent, forget it."""

    peer: NodeId
    body: Body


@dataclass(frozen=True, slots=True)
class Serve:
    """Send a peer a page of the envelopes in these spans."""

    peer: NodeId
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Take:
    """Apply what a peer sent, then tell by :class:`Taken`."""

    peer: NodeId
    envelopes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Diverged:
    """A peer has the same version and another history: envelopes of one number differ."""

    peer: NodeId


RepairEffect: TypeAlias = Say | Serve | Take | Diverged


class Knowledge(Protocol):
    """The replica, as far as it is compared; a :class:`state.documents.document.Document`."""

    @property
    def version(self) -> VersionVector:
        """What of each writer is applied."""
        ...

    @property
    def held_count(self) -> int:
        """How many envelopes wait for others."""
        ...

    def history(self) -> bytes:
        """16 bytes over all that is applied."""
        ...


class _Peer:
    """What is known of another replica, while there is a link."""

    __slots__ = ("diverged", "settled", "stale")

    def __init__(self) -> None:
        self.settled = False
        """Whether it was compared since the link opened, and it has nothing that we lacked."""
        self.stale = False
        """Its history differed while enough pulls were under way."""
        self.diverged = False


@dataclass(slots=True)
class _Pull:
    """A page that was asked for."""

    asked: VersionVector
    deadline: float
    fresh: int = 0
    arrived: bool = False
    more: bool = False
    again: bool = False
    """Whether the peer offered another history meanwhile."""


class RepairCore:
    """Anti-entropy of one replica of one document.

    Args:
        document: Its name.
        lineage: Which history of the name.
        knowledge: What this replica has.
        config: Times and limits.
        rng: Chooses peers and spreads times.
        now: Seconds, as in every call.
    """

    def __init__(
        self,
        document: str,
        lineage: bytes,
        knowledge: Knowledge,
        config: RepairConfig,
        rng: random.Random,
        now: float,
    ) -> None:
        self._document = document
        self._lineage = lineage
        self._knowledge = knowledge
        self._config = config
        self._rng = rng
        self._peers: dict[NodeId, _Peer] = {}
        self._pulls: dict[NodeId, _Pull] = {}
        # Until when a peer is left alone, and for how long next time; outlives its link.  Bounded by PENALTIES_MAX.
        self._penalties: dict[NodeId, tuple[float, float]] = {}
        self._effects: list[RepairEffect] = []
        self._round_at = now + self._jittered(config.interval_s)
        self._gap_at = math.inf
        # When others are to hear of news, and from whom they are.
        self._spread_at, self._news_of = math.inf, NodeId("")
        self._spread_again_at = -math.inf
        self.counters = dict.fromkeys(
            ("rounds", "same", "pulls", "pages", "pages_unasked", "timeouts", "stuck", "penalties", "diverged"), 0
        )

    # --- what the shell asks ------------------------------------------------------------------------------------

    @property
    def due(self) -> float:
        """When :class:`Ticked` is wanted next."""
        deadlines = [pull.deadline for pull in self._pulls.values() if not pull.arrived]
        return min(self._round_at, self._gap_at, self._spread_at, *deadlines)

    @property
    def peers(self) -> list[NodeId]:
        """The replicas to which there is a link."""
        return list(self._peers)

    @property
    def is_settled(self) -> bool:
        """Whether each replica with a link was compared since, and nothing that it had is missing here."""
        return all(peer.settled for peer in self._peers.values())

    def is_pulling_from(self, peer: NodeId) -> bool:
        """Whether a page of that peer is to come, or being applied."""
        return peer in self._pulls

    # --- events -------------------------------------------------------------------------------------------------

    def handle(self, event: RepairEvent, now: float) -> list[RepairEffect]:
        """Take one event."""
        match event:
            case PeerUp(peer):
                if peer not in self._peers:
                    self._peers[peer] = _Peer()
                    self._offer((peer,))
            case PeerDown(peer):
                self._peers.pop(peer, None)
                if self._pulls.pop(peer, None) is not None:
                    self._next_pull(now)
            case Heard(peer, body):
                self._heard(peer, self._peers.setdefault(peer, _Peer()), body, now)
            case Taken():
                self._taken(event, now)
            case Waiting():
                self._gap_at = min(self._gap_at, now + self._config.gap_s)
            case Unsent():
                self._offer(self._peers)
            case _:
                self._tick(now)
        effects, self._effects = self._effects, []
        return effects

    def _heard(self, peer: NodeId, known: _Peer, body: Body, now: float) -> None:
        same = body.history == self._knowledge.history()
        match body:
            case Offer() if same:
                known.settled = True
                self._say(peer, Same(self._document, self._lineage, body.history))
            case Offer():
                self._pull(peer, known, now)
            case Same():
                self.counters["same"] += 1
                known.settled = known.settled or same
            case Ask():
                self._asked(peer, known, body, now)
            case _:
                self._page(peer, body)

    def _asked(self, peer: NodeId, known: _Peer, body: Ask, now: float) -> None:
        history, version = self._knowledge.history(), self._knowledge.version
        spans = version.beyond(body.version)
        lacks = not version.covers(body.version)
        if spans:
            self._effects.append(Serve(peer, tuple(spans)))
        else:
            self._say(peer, Page(self._document, self._lineage, history, (), more=False))
        if lacks:
            self._pull(peer, known, now)
        else:
            known.settled = True
            if not spans and body.history != history and not known.diverged:
                known.diverged = True
                self.counters["diverged"] += 1
                self._effects.append(Diverged(peer))

    # --- pulling ------------------------------------------------------------------------------------------------

    def _pull(self, peer: NodeId, known: _Peer, now: float) -> None:
        if self._is_penalised(peer, now):
            return
        if (pull := self._pulls.get(peer)) is not None:
            pull.again = True
            return
        if len(self._pulls) >= self._config.pulls_max:
            known.stale = True
            return
        known.stale = False
        self.counters["pulls"] += 1
        version = self._knowledge.version
        self._pulls[peer] = _Pull(version, now + self._config.pull_timeout_s)
        self._ask(peer, version)

    def _ask(self, peer: NodeId, version: VersionVector) -> None:
        self._say(peer, Ask(self._document, self._lineage, self._knowledge.history(), version))

    def _page(self, peer: NodeId, body: Page) -> None:
        pull = self._pulls.get(peer)
        if pull is None or pull.arrived:
            self.counters["pages_unasked"] += 1
            return
        self.counters["pages"] += 1
        pull.arrived = True
        pull.more = body.more
        self._effects.append(Take(peer, body.envelopes))

    def _taken(self, event: Taken, now: float) -> None:
        pull = self._pulls.get(event.peer)
        if event.refused:
            self._penalise(event.peer, now)
        if pull is None or not pull.arrived:
            return  # the link ended meanwhile
        pull.fresh += event.fresh
        version = self._knowledge.version
        moved = version != pull.asked
        if pull.more and moved and not event.refused:
            pull.asked, pull.arrived, pull.deadline = version, False, now + self._config.pull_timeout_s
            self._ask(event.peer, version)
            return
        if pull.more and not event.refused:
            self.counters["stuck"] += 1
        del self._pulls[event.peer]
        known = self._peers[event.peer]
        known.settled = known.settled or not (pull.more or event.refused)
        if pull.fresh:
            self._news_of = event.peer
            self._spread_at = max(now, self._spread_again_at)
            self._spread(now)
        if pull.again and not pull.more and not event.refused:
            self._pull(event.peer, known, now)
        else:
            self._next_pull(now)

    def _next_pull(self, now: float) -> None:
        """There is room for one more pull: ask one that was found to differ whether it still does."""
        for peer, known in self._peers.items():
            if known.stale and not self._is_penalised(peer, now):
                known.stale = False
                self._offer((peer,))
                return

    def _spread(self, now: float) -> None:
        """Have others compare with us, so that what we got goes on to them."""
        if self._spread_at <= now:
            self._spread_at, self._spread_again_at = math.inf, now + self._config.spread_s
            others = [peer for peer in self._peers if peer != self._news_of and peer not in self._pulls]
            self._offer(self._rng.sample(others, min(self._config.spread, len(others))))

    # --- time ---------------------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        for peer in [peer for peer, pull in self._pulls.items() if not pull.arrived and pull.deadline <= now]:
            del self._pulls[peer]
            self.counters["timeouts"] += 1
            self._next_pull(now)
        self._spread(now)
        if self._gap_at <= now:
            self._gap_at = math.inf
            if self._knowledge.held_count:
                self._gap_at = now + 4 * self._config.gap_s
                if (chosen := self._choose(now)) is not None:
                    self._pull(chosen, self._peers[chosen], now)
        if self._round_at <= now:
            self._round_at = now + self._jittered(self._config.interval_s)
            if (chosen := self._choose(now)) is not None:
                self.counters["rounds"] += 1
                self._offer((chosen,))

    def _choose(self, now: float) -> NodeId | None:
        able = [peer for peer in self._peers if peer not in self._pulls and not self._is_penalised(peer, now)]
        return self._rng.choice(able) if able else None

    def _jittered(self, interval_s: float) -> float:
        return interval_s * self._rng.uniform(0.75, 1.25)

    # --- odds and ends ------------------------------------------------------------------------------------------

    def _offer(self, peers: Iterable[NodeId]) -> None:
        for peer in peers:
            self._say(peer, Offer(self._document, self._lineage, self._knowledge.history()))

    def _say(self, peer: NodeId, body: Body) -> None:
        self._effects.append(Say(peer, body))

    def _is_penalised(self, peer: NodeId, now: float) -> bool:
        return self._penalties.get(peer, (now, 0.0))[0] > now

    def _penalise(self, peer: NodeId, now: float) -> None:
        self.counters["penalties"] += 1
        _, before_s = self._penalties.pop(peer, (0.0, 0.0))
        penalty_s = min(max(2 * before_s, self._config.penalty_s), self._config.penalty_s_max)
        self._penalties[peer] = now + penalty_s, penalty_s
        if len(self._penalties) > PENALTIES_MAX:
            del self._penalties[next(iter(self._penalties))]
