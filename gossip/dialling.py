"""Dials for the gossip shell: many peers, several addresses each, bounded in number and rate.

A peer's addresses are tried one after the other, the next as soon as one fails or :data:`STAGGER_S` passed without an
answer; the first link wins and the other attempts are dropped (after "happy eyeballs", RFC 8305).  When to dial
again is the overlay core's decision; here a request has exactly one result.

The nodes of one event loop share its time, so they also share how many handshakes it has under way.  Without that a
hundred nodes that start together dial so much that no handshake ends before it is given up, and all is dialled again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol
from weakref import WeakKeyDictionary

from transport.errors import DialError, LinkClosed, PeerRefused
from transport.link import CloseReason, Endpoint, Link
from transport.logs import get_logger
from transport.tasks import TaskScope
from transport.types import Address, NodeId

log = get_logger("mesh.gossip")

#: How long an address may stay silent before the next is tried as well (RFC 8305 section 5).
STAGGER_S: Final = 0.25
#: Dials under way at once: enough to join 64 nodes in a second, too few for handshakes to starve the loop.
CONCURRENT_MAX: Final = 16
#: A dial that takes longer waits for its peer, not for this loop, and no longer counts for the loop's other nodes.
SLOW_S: Final = 2.0
#: Dials started per second, which is what a handshake's CPU (about 4 ms) allows beside other work.
RATE_PER_S: Final = 64.0
#: Requests that wait; the cores ask once per peer, so this is a bound against a flood of discoveries.
WAITING_MAX: Final = 4096


class DialResults(Protocol):
    """Who is told how a dial ended."""

    def dial_done(self, peer: NodeId | None, link: Link | None, *, refused: bool) -> None:
        """A request ended: with a link, or ``refused`` if every address answered that nobody listens there."""
        ...

    def node_id_taken(self, detail: str) -> None:
        """A peer refused us because another live process uses our node id."""
        ...


class _Turn:
    """One of the dials that an event loop may have under way; given back once."""

    def __init__(self, turns: _Turns) -> None:
        self._turns: _Turns | None = turns
        self._slow = asyncio.get_running_loop().call_later(SLOW_S, self.give_back)

    def give_back(self) -> None:
        """Let another dial begin; harmless when it was given back before."""
        turns, self._turns = self._turns, None
        self._slow.cancel()
        if turns is not None:
            turns.given_back()


class _Turns:
    """The dials of one event loop, whichever of its nodes they are for."""

    def __init__(self) -> None:
        self._taken = 0
        # Who asked in vain, in that order; at most one entry for each node of this loop.
        self._waiting: dict[Callable[[], None], None] = {}

    def take(self, wake: Callable[[], None]) -> _Turn | None:
        """A turn; or ``None``, and ``wake`` is called when it is worth to ask again."""
        if self._taken >= CONCURRENT_MAX:
            self._waiting[wake] = None
            return None
        self._taken += 1
        return _Turn(self)

    def given_back(self) -> None:
        self._taken -= 1
        while self._waiting and self._taken < CONCURRENT_MAX:
            wake = next(iter(self._waiting))
            del self._waiting[wake]
            wake()

    def forget(self, wake: Callable[[], None]) -> None:
        self._waiting.pop(wake, None)


_turns: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns]] = WeakKeyDictionary()


class Dialler:
    """Works off dial requests.  Made on the loop where it dials.

    Args:
        endpoint: Where links come from.
        results: Who is told.
        scope: Owns the tasks.
        now: A clock for the rate limit, in seconds.
    """

    def __init__(self, endpoint: Endpoint, results: DialResults, scope: TaskScope, now: Callable[[], float]) -> None:
        self._endpoint = endpoint
        self._results = results
        self._scope = scope
        self._now = now
        self._waiting: dict[NodeId | tuple[Address, ...], tuple[NodeId | None, tuple[Address, ...]]] = {}
        self._active = 0
        self._allowance = RATE_PER_S
        self._counted_at = now()
        self._wake: asyncio.TimerHandle | None = None
        self._turns = _turns.setdefault(asyncio.get_running_loop(), _Turns())
        self.counters = {"dial_attempts": 0, "dial_attempts_failed": 0, "dial_requests_dropped": 0}

    def request(self, peer: NodeId | None, addresses: tuple[Address, ...]) -> None:
        """Ask for a link to ``peer`` (``None``: to whoever answers); the result comes later."""
        if len(self._waiting) >= WAITING_MAX:
            self.counters["dial_requests_dropped"] += 1
            # Not from within the caller, who is executing effects.
            asyncio.get_running_loop().call_soon(lambda: self._results.dial_done(peer, None, refused=False))
            return
        self._waiting[addresses if peer is None else peer] = peer, addresses
        self._pump()

    def close(self) -> None:
        """Forget what waits; running dials end with the scope."""
        self._waiting.clear()
        self._turns.forget(self._pump)
        if self._wake is not None:
            self._wake.cancel()

    def _pump(self) -> None:
        now = self._now()
        self._allowance = min(RATE_PER_S, self._allowance + (now - self._counted_at) * RATE_PER_S)
        self._counted_at = now
        while self._waiting and self._active < CONCURRENT_MAX and self._allowance >= 1:
            turn = self._turns.take(self._pump)
            if turn is None:
                return
            key = next(iter(self._waiting))
            peer, addresses = self._waiting.pop(key)
            self._allowance -= 1
            self._active += 1
            if self._scope.spawn(self._dial(peer, addresses, turn), name=f"dial {peer or addresses[0]}") is None:
                turn.give_back()  # the scope is closed, and this dialler about to be
        if self._waiting and self._active < CONCURRENT_MAX and self._wake is None:
            self._wake = asyncio.get_running_loop().call_later(1 / RATE_PER_S, self._woken)

    def _woken(self) -> None:
        self._wake = None
        self._pump()

    async def _dial(self, peer: NodeId | None, addresses: tuple[Address, ...], turn: _Turn) -> None:
        link, refused = None, False
        try:
            own = self._endpoint.addresses
            # Two machines may both call themselves 127.0.0.1:7946, so only exact matches are certainly ourselves.
            foreign = [address for address in addresses if address not in own]
            link = self._endpoint.links.get(peer) if peer is not None else None
            if link is None and foreign:
                link, refused = await self._first(peer, foreign)
        finally:
            self._active -= 1
            turn.give_back()
            self._pump()
        self._results.dial_done(peer, link, refused=refused)

    async def _first(self, peer: NodeId | None, addresses: list[Address]) -> tuple[Link | None, bool]:
        """Try all addresses, staggered; return the first link, or whether all were refused."""
        running: dict[asyncio.Task[Link], Address] = {}
        waiting = list(addresses)
        refused = True
        try:
            while waiting or running:
                if waiting:
                    address = waiting.pop(0)
                    self.counters["dial_attempts"] += 1
                    running[asyncio.ensure_future(self._endpoint.dial(address, peer))] = address
                timeout_s = STAGGER_S if waiting else None
                done, _ = await asyncio.wait(running, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                for task in list(running):
                    if task not in done:
                        continue
                    address = running.pop(task)
                    error = None if task.cancelled() else task.exception()
                    if error is None and not task.cancelled():
                        return task.result(), False
                    refused &= self._failed(peer, address, error)
            return None, refused
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _failed(self, peer: NodeId | None, address: Address, error: BaseException | None) -> bool:
        """Note one failed attempt (``None``: it was cancelled); return whether nobody listens there."""
        self.counters["dial_attempts_failed"] += 1
        if isinstance(error, PeerRefused) and error.code == CloseReason.DUPLICATE_NODE:
            self._results.node_id_taken(str(error))
        if error is None or isinstance(error, DialError | LinkClosed):
            log.debug("dial failed", peer=peer, address=str(address), error=str(error))
        else:
            # A mistake in the transport must not leave the overlay waiting for this dial's end.
            log.error("dial failed unexpectedly", peer=peer, address=str(address), error=repr(error))
        return error is not None and isinstance(error.__cause__, ConnectionRefusedError)
