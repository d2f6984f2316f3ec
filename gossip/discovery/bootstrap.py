"""The bootstrap list: dials the addresses it was given until somebody answers, and keeps an eye on them.

The shell of :mod:`.bootstrap_plan`.  It resolves names without blocking the loop, dials through a function it is
given (so that a link made here is like any other link), and knows from the error what happened.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from gossip.events import SetTimer, Started, TimerFired
from transport.clock import Clock, SystemClock
from transport.errors import DialError, MeshError, PeerRefused
from transport.link import CloseReason
from transport.logs import get_logger
from transport.tasks import TaskScope
from transport.types import Address

from .base import Announcement, DiscoverySink
from .bootstrap_plan import (
    RESULTS_MAX,
    SEEDS_MAX,
    BootstrapConfig,
    BootstrapPlan,
    Dialled,
    DialSeed,
    Effect,
    Event,
    Outcome,
    OwnAddresses,
    Resolve,
    Resolved,
    SeedChanged,
    SeedState,
)

_log = get_logger("mesh.discovery")

# All seeds are tried at once, but a list of names with 32 results each must not open thousands of sockets.
_PARALLEL_DIALS_MAX = 64

# A seed that fails in the same way says so once; a new way of failing is said again.
_TEXT_LENGTH_MAX = 200


class BootstrapDiscovery:
    """A :class:`~gossip.discovery.base.Discovery` over a fixed list of addresses.

    It announces nothing and reports nothing to the sink: a dial that succeeds already is a link, over which
    membership introduces everybody else.
    """

    name = "bootstrap"

    def __init__(
        self,
        seeds: Sequence[Address],
        dial: Callable[[Address], Awaitable[object]],
        *,
        linked: Callable[[Address], bool] | None = None,
        config: BootstrapConfig | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Prepare; nothing is dialled before :meth:`start`.

        Args:
            seeds: Host names or literal addresses.  This node's own may be among them, so that one list serves all.
            dial: Opens a link to whoever answers, or raises :class:`~transport.errors.DialError`.  It is cancelled
                after ``config.dial_timeout_s``.
            linked: Whether the node that last answered at an address still has a link; saves the watch a handshake.
                Without it each watch dials.
            config: How eagerly.
            clock: Where the time comes from.
            rng: Jitter.
        """
        self._config = config or BootstrapConfig()
        self._clock: Clock = clock or SystemClock()
        self._dial = dial
        self._linked = linked
        self._plan = BootstrapPlan(seeds, self._config, rng=rng or random.Random())  # noqa: S311
        self._ignored = max(0, len(dict.fromkeys(seeds)) - SEEDS_MAX)
        self._dials = asyncio.Semaphore(_PARALLEL_DIALS_MAX)
        self._counts: Counter[str] = Counter()
        self._causes: dict[Address, str] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._scope: TaskScope | None = None

    # --- the Discovery protocol ---------------------------------------------------------------------------------

    async def start(self, announcement: Announcement, sink: DiscoverySink) -> None:
        """See :meth:`~gossip.discovery.base.Discovery.start`."""
        del sink
        if self._scope is not None:
            return
        if self._ignored:
            _log.warning("bootstrap list too long", used=SEEDS_MAX, ignored=self._ignored)
        self._plan.handle(OwnAddresses(announcement.addresses), self._clock.monotonic())
        self._scope = TaskScope("bootstrap")
        self._handle(Started())

    async def update(self, announcement: Announcement) -> None:
        """See :meth:`~gossip.discovery.base.Discovery.update`."""
        self._handle(OwnAddresses(announcement.addresses))

    async def close(self) -> None:
        """See :meth:`~gossip.discovery.base.Discovery.close`."""
        scope, self._scope = self._scope, None
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if scope is not None:
            await scope.close()

    def statistics(self) -> dict[str, int]:
        """Counters, and how many seeds are in which state."""
        states = Counter(self._plan.states.values())
        return {
            "available": int(self._scope is not None),
            "seeds": len(self._plan.states),
            "linked": states[SeedState.LINKED],
            "own": states[SeedState.OWN],
            "seeking": states[SeedState.SEEKING] + states[None],
            "dials": self._counts["dials"],
            "dials_failed": self._counts["dials_failed"],
            "resolves": self._counts["resolves"],
            "resolves_failed": self._counts["resolves_failed"],
        }

    def causes(self) -> dict[Address, str]:
        """Why each seed that nobody answers at was not reached the last time, for people."""
        return dict(self._causes)

    # --- running the plan ---------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        effects = self._plan.handle(event, self._clock.monotonic())
        if self._scope is not None:
            for effect in effects:
                self._execute(effect, self._scope)

    def _execute(self, effect: Effect, scope: TaskScope) -> None:
        if isinstance(effect, Resolve):
            scope.spawn(self._resolve(effect.seed), name=f"resolve {effect.seed.host}")
        elif isinstance(effect, DialSeed):
            scope.spawn(self._dial_seed(effect.seed, effect.address), name=f"dial {effect.address}")
        elif isinstance(effect, SetTimer):
            loop = asyncio.get_running_loop()
            self._timers[effect.token] = loop.call_later(effect.delay_s, self._timer_fired, effect.token)
        else:
            self._report(effect)

    def _timer_fired(self, token: int) -> None:
        self._timers.pop(token, None)
        self._handle(TimerFired(token))

    async def _resolve(self, seed: Address) -> None:
        self._counts["resolves"] += 1
        results: list[Address] = []
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._config.resolve_timeout_s):
                found = await loop.getaddrinfo(seed.host, seed.port, type=socket.SOCK_STREAM)
            for family, _type, _proto, _name, address in found[:RESULTS_MAX]:
                if family in (socket.AF_INET, socket.AF_INET6):
                    results.append(Address(str(address[0]), seed.port))
        except (OSError, UnicodeError, TimeoutError) as error:  # UnicodeError: a label that IDNA refuses
            self._counts["resolves_failed"] += 1
            self._failed(seed, f"{seed.host} does not resolve: {str(error) or 'timed out'}")
        self._handle(Resolved(seed, tuple(results)))

    async def _dial_seed(self, seed: Address, address: Address) -> None:
        outcome = Outcome.LINKED
        if self._linked is None or not self._linked(address):
            outcome = await self._dial_once(seed, address)
        if outcome is Outcome.LINKED:
            self._causes.pop(seed, None)
        self._handle(Dialled(seed, address, outcome))

    async def _dial_once(self, seed: Address, address: Address) -> Outcome:
        cause = ""
        try:
            async with self._dials, asyncio.timeout(self._config.dial_timeout_s):
                self._counts["dials"] += 1
                await self._dial(address)
            return Outcome.LINKED
        except PeerRefused as error:
            if error.code == CloseReason.SELF:
                return Outcome.OWN
            if error.code == CloseReason.DUPLICATE_LINK:
                return Outcome.LINKED  # the other link between us was kept
            cause = str(error)
        except TimeoutError:
            cause = f"no answer within {self._config.dial_timeout_s:g} s"
        except (DialError, MeshError, OSError) as error:
            cause = str(error)
        except Exception as error:  # noqa: BLE001 - a bug in one dial must not end the search for everybody else
            _log.exception("dialling a seed raised", address=str(address))
            cause = repr(error)
        self._counts["dials_failed"] += 1
        self._failed(seed, f"{address}: {cause}")
        return Outcome.FAILED

    # --- telling people -----------------------------------------------------------------------------------------

    def _failed(self, seed: Address, cause: str) -> None:
        cause = cause[:_TEXT_LENGTH_MAX]
        if self._causes.get(seed) != cause:
            self._causes[seed] = cause
            _log.debug("seed not reached", seed=str(seed), cause=cause)

    def _report(self, change: SeedChanged) -> None:
        if change.state is SeedState.LINKED:
            _log.info("seed reached", seed=str(change.seed))
        elif change.state is SeedState.OWN:
            _log.info("seed is this node itself", seed=str(change.seed))
        else:
            cause = self._causes.get(change.seed, "no address")
            _log.warning("seed not reached, trying for ever", seed=str(change.seed), cause=cause)
