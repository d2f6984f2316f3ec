"""The shell of sealing for many: what a node broadcasts and publishes, sealed with keys that only its readers have.

:class:`SealedGroups` stands between gossip and whoever broadcasts, and between :class:`~mesh.sealing.links.SealedLinks`
and the courier: payloads pass it on their way to gossip and back, and the ``GRANTS`` envelopes that hand keys from node
to node travel over the links below it, sealed like all that agents say.  Which keys there are and who is given them is
:mod:`.keyring`'s; how bodies look is in ``docs/protocol/e2e.md``, section 9.

What is refused here is nobody's fault whom this node could name: origin and path of a payload are what gossip says.  It
is dropped, counted and put on record, and the link that brought it stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Sequence
from typing import Final, Protocol

from gossip.incarnation import life_of
from mesh.errors import SealRefused
from transport.clock import Clock
from transport.errors import LinkClosed
from transport.link import CloseReason, Link, LinkHandler, SendOutcome
from transport.logs import get_logger
from transport.tasks import TaskScope
from transport.types import Lane, NetworkName, NodeId
from transport.wire import Envelope, Kind

from .chains import Limits
from .handshake import Entropy, Peer
from .keyring import EVERYBODY, Keyring, Readers, is_sealed
from .links import SWEEP_S, Note
from .reasons import Reason, refused

log = get_logger("mesh.sealing")

#: A node that has no link to an origin asks it within this, for each member of the network: about a hundred a second.
SPREAD_S: Final = 0.01
#: Bodies for one link that wait for keys or room there; what does not fit is asked for again.
WAITING_MAX: Final = 256
# Timers closer together than this are one.
_TICK_S: Final = 0.01
# How often the log says the same.
_LOG_S: Final = 60.0


class View(Protocol):
    """What this layer asks about the network; :class:`mesh.view.NetworkView`."""

    def readers(self, group: str) -> Readers:
        """Who may read a group's publications, or broadcasts to all."""
        ...

    def demands_sealed(self, node_id: str) -> bool:
        """Whether a node says that it sends and takes nothing in the clear."""
        ...


class Node(Protocol):
    """What this layer asks of the node that it is part of."""

    def hears(self, group: str) -> bool:
        """Whether the node subscribes to a group."""
        ...

    def want_link(self, node_id: NodeId) -> None:
        """Something is to be said to a node that has no link."""
        ...

    def opened(self, group: str, origin: str, life: int, payload: bytes) -> None:
        """A payload was opened, or came in the clear where that is allowed.  Must not raise."""
        ...


class SealedGroups:
    """Seals what a node publishes, and opens what others do; a :class:`transport.link.LinkHandler`.

    Args:
        network, node_id, life: This node.
        node: What it is part of.
        view: Who else there is.
        handler: Who else uses the links.
        required: Whether this node demands that what it publishes and hears is sealed.
        clock: Monotonic time ends epochs.
        note: Puts refusals on record.
        rng: Spreads questions in time.
        entropy: Where secrets come from.
        limits: How long keys live.
    """

    def __init__(
        self,
        network: NetworkName,
        node_id: NodeId,
        life: int,
        node: Node,
        view: View,
        handler: LinkHandler,
        *,
        required: bool,
        clock: Clock,
        note: Note,
        rng: random.Random,
        entropy: Entropy,
        limits: Limits | None = None,
    ) -> None:
        self._node = node
        self._view = view
        self._handler = handler
        self._required = required
        self._monotonic = clock.monotonic
        self._note = note
        self._keyring = Keyring(
            network,
            node_id,
            life,
            readers=lambda group: self._readers(group).peers,
            entropy=entropy,
            rng=rng,
            limits=limits or Limits(),
        )
        # As long as nothing changes; one entry for each group published to.
        self._known_readers: dict[str, Readers] = {}
        self._links: dict[Peer, Link] = {}
        # What found no room on a link, or no keys yet; at most WAITING_MAX each, and a task that sends it.
        self._waiting: dict[Link, list[bytes]] = {}
        self._all_said = asyncio.Event()
        self._all_said.set()
        self._scope = TaskScope("sealing for many")
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._log_refused_at = self._log_unable_at = -math.inf
        self.counters: dict[str, int] = {"in_the_clear": 0, "unable": 0}

    # --- publishing ---------------------------------------------------------------------------------------------

    def readers_changed(self) -> None:
        """Members came, went or restarted, or subscriptions changed."""
        self._known_readers.clear()
        self._keyring.readers_changed()

    def _readers(self, group: str) -> Readers:
        readers = self._known_readers.get(group)
        if readers is None:
            readers = self._known_readers[group] = self._view.readers(group)
        return readers

    def seal(self, group: str, payload: bytes) -> bytes:
        """What is to be given to gossip for ``payload``.

        It is sealed unless neither this node nor any of those who may read it demands that.
        """
        if not self._required and not self._readers(group).demanded:
            self.counters["in_the_clear"] += 1
            return payload
        self._count_unable(group)
        sealed = self._keyring.seal(group, payload, self._links, self._monotonic())
        self._flush()
        if self._sweep_timer is None:
            self._schedule_sweep()
        return sealed

    def _count_unable(self, group: str) -> None:
        """Say that some will not be able to read: what is demanded is never quietly left off for them."""
        now = self._monotonic()
        if now < self._log_unable_at:
            return
        self._log_unable_at = now + _LOG_S
        self.counters["unable"] = unable = self._readers(group).unable
        if unable:
            log.warning("members cannot open what is sealed for many", members=unable, group=group)

    # --- hearing ------------------------------------------------------------------------------------------------

    def received(self, group: str, origin: str, life: int, payload: bytes) -> None:
        """Gossip brought a payload: open it and pass it on, or keep it until there is a key."""
        try:
            body = self._open(group, Peer(origin, life), payload)
        except SealRefused as error:
            self._refuse(origin, error)
            return
        if body is not None:
            self._node.opened(group, origin, life, body)

    def _open(self, group: str, origin: Peer, payload: bytes) -> bytes | None:
        if not is_sealed(payload):
            if self._required or self._view.demands_sealed(origin.node_id):
                raise refused(Reason.CLEAR, f"payload in the clear in the name of {origin.node_id}")
            return payload
        spread_s = 0.0 if origin in self._links else SPREAD_S * len(self._readers(EVERYBODY).peers)
        body = self._keyring.open(group, origin, payload, spread_s, self._monotonic())
        if body is None:
            self._flush()
        return body

    def _refuse(self, origin: str, error: SealRefused) -> None:
        """Count and put on record; whoever passed it on may be as innocent as the origin that it names."""
        name = f"refused_{error.reason}"
        self.counters[name] = self.counters.get(name, 0) + 1
        self._note("group refusal", origin=origin, reason=error.reason, text=error.message)
        now = self._monotonic()
        if now >= self._log_refused_at:
            self._log_refused_at = now + 1.0
            log.warning("sealed payload refused", origin=origin, reason=error.reason, text=error.message)

    # --- what links tell (LinkHandler) --------------------------------------------------------------------------

    def link_opened(self, link: Link) -> None:
        """See :class:`transport.link.LinkHandler`."""
        peer = _peer_of(link)
        self._links[peer] = link
        self._handler.link_opened(link)
        if self._keyring.is_waiting:
            self._keyring.linked(peer, self._monotonic())
            self._flush()

    def link_closed(self, link: Link, reason: CloseReason, detail: str) -> None:
        """See :class:`transport.link.LinkHandler`."""
        peer = _peer_of(link)
        if self._links.get(peer) is link:
            del self._links[peer]
        self._forget_waiting(link)
        self._handler.link_closed(link, reason, detail)

    def envelopes_received(self, link: Link, envelopes: Sequence[Envelope]) -> None:
        """See :class:`transport.link.LinkHandler`.

        Raises:
            RemoteProtocolError: One is not allowed; the link is closed.
        """
        if all(envelope.kind != Kind.GRANTS for envelope in envelopes):
            self._handler.envelopes_received(link, envelopes)
            return
        for envelope in envelopes:
            if envelope.kind == Kind.GRANTS:
                self._said(_peer_of(link), envelope.body)
        others = [envelope for envelope in envelopes if envelope.kind != Kind.GRANTS]
        if others:
            self._handler.envelopes_received(link, others)

    def _said(self, peer: Peer, body: bytes) -> None:
        for group, origin, payload in self._keyring.received(peer, body, self._node.hears, self._monotonic()):
            self._node.opened(group, *origin, payload)
        refusals, self._keyring.refusals = self._keyring.refusals, []
        for origin, error in refusals:
            self._refuse(origin.node_id, error)
        if self._sweep_timer is None:
            self._schedule_sweep()
        self._flush()

    def is_using(self, link: Link) -> bool:
        """Whether something waits to be said on a link, which should therefore not be closed as idle."""
        return link in self._waiting

    # --- saying -------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Send what the keyring wants sent, and see to it that it is woken in time."""
        keyring = self._keyring
        outgoing, keyring.outgoing = keyring.outgoing, []
        for peer, body in outgoing:
            link = self._links.get(peer)
            if link is None:
                self._node.want_link(NodeId(peer.node_id))
            else:
                self._say(link, body)
        if keyring.is_waiting and (due_at := keyring.due_at()) < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            delay_s = max(_TICK_S, due_at - self._monotonic())
            self._timer_at = due_at
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self._keyring.tick(self._monotonic())
        self._flush()

    def _say(self, link: Link, body: bytes) -> None:
        waiting = self._waiting.get(link)
        if waiting is not None:
            if len(waiting) < WAITING_MAX:
                waiting.append(body)
        elif link.send(Envelope(Kind.GRANTS, 1, None, None, body), Lane.CONTROL) is SendOutcome.FULL:
            self._waiting[link] = [body]
            self._all_said.clear()
            self._scope.spawn(self._say_later(link), name=f"grants for {link.peer.node_id}")

    async def _say_later(self, link: Link) -> None:
        """Send what waits for a link, once there are keys for it and room."""
        # Whoever still lacks a key when the link is gone asks again.
        with contextlib.suppress(LinkClosed):
            while self._waiting.get(link):
                await link.wait_writable(Lane.CONTROL)
                waiting = self._waiting.get(link, [])
                while waiting:
                    outcome = link.send(Envelope(Kind.GRANTS, 1, None, None, waiting[0]), Lane.CONTROL)
                    if outcome is SendOutcome.FULL:
                        break
                    waiting.pop(0)
        self._forget_waiting(link)

    def _forget_waiting(self, link: Link) -> None:
        self._waiting.pop(link, None)
        if not self._waiting:
            self._all_said.set()

    async def drain(self, timeout_s: float) -> None:
        """The node leaves: give out first what keys it owes for what it said last, as nobody can ask for them later.

        Args:
            timeout_s: How long that may take.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._all_said.wait()

    # --- time ---------------------------------------------------------------------------------------------------

    def _schedule_sweep(self) -> None:
        self._sweep_timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._keyring.sweep(self._monotonic())
        self._schedule_sweep()

    async def close(self) -> None:
        """Stop, and forget all keys."""
        for timer in (self._timer, self._sweep_timer):
            if timer is not None:
                timer.cancel()
        await self._scope.close()
        self._keyring.clear()

    def statistics(self) -> dict[str, int]:
        """Counters since the start, refusals by reason among them, and what there is now."""
        return {**self.counters, **self._keyring.statistics()}


def _peer_of(link: Link) -> Peer:
    return Peer(link.peer.node_id, life_of(link.peer.incarnation))
