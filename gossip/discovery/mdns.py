"""Finding nodes on the local network by multicast DNS (RFC 6762, RFC 6763), with no server and no list.

Each node announces the service ``_peermesh._tcp.local.`` and watches for others; :mod:`.txt` says what is in it and
:mod:`.responder` speaks to zeroconf.  This module decides: when to announce, on which adapters, what to believe, and
what to do when there is no multicast, which is usual in clouds and containers and never an error.

mDNS finds nodes; it never tells that one died.  A crashed node stays announced for up to 19 minutes, and anybody
can withdraw anybody's announcement, so :meth:`DiscoverySink.lost` is a hint here more than anywhere.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from transport.backoff import Backoff
from transport.clock import Clock, SystemClock
from transport.logs import get_logger
from transport.tasks import TaskScope
from transport.types import NodeId

from .advertise import Adapter, Interfaces, multicast_adapters
from .base import Announcement, DiscoverySink, Sighting
from .interfaces import InterfaceWatcher
from .txt import SERVICE_TYPE, BadAnnouncement, Claim, authority_prefix, decode, dialable

if TYPE_CHECKING:
    from .responder import Service

_log = get_logger("mesh.discovery")

# Whoever can send packets on the local network can announce as many nodes as they like.
_RESOLVING_MAX: Final = 64
"""Names whose records are being asked for at once; more are dropped, and seen again when the browser is renewed."""
_KNOWN_MAX: Final = 4096
"""Names remembered, oldest dropped first: about 0.5 MB, four times the networks we are made for."""
_FOREIGN_MAX: Final = 64
"""Other authorities under our network's name that are reported one by one."""
_NAME_CHARACTERS_MAX: Final = 255
_RESOLVE_TIMEOUT_S: Final = 2.0
_CLOSE_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class MdnsConfig:
    """How mDNS is used.  The defaults suit a LAN of up to a thousand nodes."""

    renew_initial_s: float = 5.0
    """How soon the browser is renewed while peers are missing; doubles with each renewal up to ``renew_max_s``."""
    renew_max_s: float = 60.0
    """How long a neighbour that we could not hear when it announced itself may stay unnoticed."""
    retry_initial_s: float = 2.0
    """First pause after mDNS could not be used at all (no adapter, port taken)."""
    retry_max_s: float = 60.0


class Responder(Protocol):
    """What :class:`gossip.discovery.responder.ZeroconfResponder` is to this module."""

    @property
    def sockets(self) -> int: ...  # noqa: D102 - described there
    async def announce(self, announcement: Announcement) -> None: ...  # noqa: D102
    def browse(self, changed: Callable[[str, bool], None]) -> None: ...  # noqa: D102
    def cached(self, name: str) -> Service | None: ...  # noqa: D102
    async def resolve(self, name: str, timeout_s: float) -> Service | None: ...  # noqa: D102
    async def use(self, adapters: Sequence[Adapter]) -> None: ...  # noqa: D102
    async def close(self) -> None: ...  # noqa: D102


async def open_responder(adapters: Sequence[Adapter]) -> Responder:
    """Import zeroconf in a thread, then open its sockets on the loop.

    Raises:
        OSError: There is no multicast here.
    """
    responder = await asyncio.to_thread(_import_responder)
    return await responder.open(adapters)


def _import_responder() -> type[ZeroconfResponder]:
    from .responder import ZeroconfResponder  # 50 ms and 6 MB that a node without mDNS does not pay

    return ZeroconfResponder


if TYPE_CHECKING:
    from .responder import ZeroconfResponder


class MdnsDiscovery:
    """A :class:`~gossip.discovery.base.Discovery` for the local network.

    A node that announces only loopback addresses speaks and listens on the loopback adapter alone, so that tests and
    the demo leave no trace on the network.  A node that listens everywhere while no adapter but loopback is up does
    the same, warns, and counts as not ``available``; it goes on to the network as soon as there is one.
    """

    name = "mdns"

    def __init__(
        self,
        watcher: InterfaceWatcher,
        *,
        peers_missing: Callable[[], bool] | None = None,
        config: MdnsConfig | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        open_responder: Callable[[Sequence[Adapter]], Awaitable[Responder]] = open_responder,
    ) -> None:
        """Prepare; nothing is sent before :meth:`start`.

        Args:
            watcher: Says which adapters there are.  The node's own, started and closed by it.
            peers_missing: Whether fewer peers are linked than known, so that it is worth asking the network again.
                Default: while nobody was ever seen.
            config: How eagerly.
            clock: Where the time comes from.
            rng: Jitter.
            open_responder: Opens the mDNS sockets; replaceable for tests.
        """
        self._watcher = watcher
        self._peers_missing = peers_missing or (lambda: not self._known)
        self._config = config or MdnsConfig()
        self._clock: Clock = clock or SystemClock()
        self._rng = rng or random.Random()  # noqa: S311 - jitter
        self._open_responder = open_responder
        self._backoff = Backoff(self._rng, first_s=self._config.retry_initial_s, max_s=self._config.retry_max_s)
        self._announcement: Announcement | None = None
        self._sink: DiscoverySink | None = None
        self._scope: TaskScope | None = None
        self._responder: Responder | None = None
        self._unsubscribe: Callable[[], None] = lambda: None
        self._wake = asyncio.Event()
        self._adapters_changed = False
        self._failing = ""
        self._cut_off = False
        self._known: dict[str, NodeId] = {}
        self._resolving: dict[str, None] = {}
        self._foreign: dict[str, None] = {}
        self._counts: Counter[str] = Counter()

    # --- the Discovery protocol ---------------------------------------------------------------------------------

    async def start(self, announcement: Announcement, sink: DiscoverySink) -> None:
        """See :meth:`~gossip.discovery.base.Discovery.start`."""
        if self._scope is not None:
            return
        self._announcement, self._sink = announcement, sink
        self._scope = TaskScope("mdns")
        self._unsubscribe = self._watcher.subscribe(self._on_adapters)
        self._scope.spawn(self._run(), name="run")

    async def update(self, announcement: Announcement) -> None:
        """See :meth:`~gossip.discovery.base.Discovery.update`."""
        if announcement != self._announcement:
            self._announcement = announcement
            self._wake.set()

    async def close(self) -> None:
        """See :meth:`~gossip.discovery.base.Discovery.close`."""
        self._unsubscribe()
        scope, self._scope = self._scope, None
        if scope is not None:
            await scope.close()
        await self._drop_responder()

    def statistics(self) -> dict[str, int]:
        """Counters.

        ``available``: other machines can be found; ``sockets``: adapters in use, per IP version; ``known``: nodes seen;
        ``found``, ``lost``: reports; ``renewals``: browsers made anew; ``failures``: attempts that failed;
        and what was not believed: ``malformed``, ``other_network``, ``other_authority``, ``dropped`` (too many).
        """
        names = ("found", "lost", "renewals", "failures", "malformed", "other_network", "other_authority", "dropped")
        sockets = self._responder.sockets if self._responder is not None else 0
        return {
            "available": int(sockets > 0 and not self._cut_off),
            "sockets": sockets,
            "known": len(self._known),
            **{name: self._counts[name] for name in names},
        }

    # --- keeping the responder going ----------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            try:
                await self._serve()
            except Exception as error:  # noqa: BLE001 - zeroconf runs on other people's packets; see _unavailable
                self._unavailable(error)
            await self._drop_responder()
            self._wake.clear()
            await self._pause(self._backoff.next_s())

    async def _serve(self) -> None:
        """Announce and browse until something fails, which is the only way out."""
        announced = self._current()
        adapters = self._choose_adapters(announced)
        self._adapters_changed = False
        self._responder = responder = await self._open_responder(adapters)
        responder.browse(self._on_service)
        await responder.announce(announced)
        self._available()
        renew_s = self._config.renew_initial_s
        while True:
            if await self._pause(renew_s * self._rng.uniform(0.75, 1.25)):
                renew_s = self._config.renew_initial_s  # something changed: look round again soon
                self._wake.clear()
            else:
                renew_s = min(2 * renew_s, self._config.renew_max_s)
            chosen = self._choose_adapters(self._current())
            moved, self._adapters_changed = self._adapters_changed or chosen != adapters, False
            await responder.use(chosen)
            adapters = chosen
            if self._current() != announced:
                announced = self._current()
                await responder.announce(announced)
            if moved or self._peers_missing():
                self._counts["renewals"] += 1
                responder.browse(self._on_service)

    async def _pause(self, delay_s: float) -> bool:
        """Wait; whether something changed meanwhile."""
        try:
            async with asyncio.timeout(delay_s):
                await self._wake.wait()
        except TimeoutError:
            return False
        return True

    async def _drop_responder(self) -> None:
        responder, self._responder = self._responder, None
        if responder is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await responder.close()
        except Exception as error:  # noqa: BLE001 - a goodbye that cannot be sent changes nothing
            _log.debug("mdns goodbye not sent", cause=str(error))

    def _current(self) -> Announcement:
        assert self._announcement is not None, "start() comes first"
        return self._announcement

    def _choose_adapters(self, announcement: Announcement) -> tuple[Adapter, ...]:
        chosen = multicast_adapters(self._watcher.interfaces, loopback_only=announcement.loopback_only)
        cut_off = not announcement.loopback_only and all("127.0.0.1" in adapter.addresses for adapter in chosen)
        if chosen and cut_off and not self._cut_off:
            _log.warning(
                "mdns reaches this machine only",
                cause="no network adapter but loopback is up",
                effect="nodes elsewhere are found through the bootstrap list; tried again when adapters change",
            )
        self._cut_off = cut_off
        return chosen

    def _on_adapters(self, interfaces: Interfaces) -> None:
        del interfaces
        self._adapters_changed = True
        self._wake.set()

    def _available(self) -> None:
        self._backoff.reset()
        if self._failing:
            _log.info("mdns works again")
        self._failing = ""

    def _unavailable(self, error: Exception) -> None:
        """Say once that mDNS does not work; the same cause again is not news.

        Nothing that goes wrong here may reach the node: no multicast is normal in clouds and containers, and beyond
        that zeroconf parses what anybody on the network sends.  An error that is not about the network is a bug, and
        is logged with its traceback.
        """
        self._counts["failures"] += 1
        if self._failing:
            return
        self._failing = str(error) or repr(error)
        _log.warning(
            "mdns unavailable",
            cause=self._failing,
            effect="nodes are found through the bootstrap list only; mdns is tried again in the background",
            exc_info=not isinstance(error, (OSError, RuntimeError)),
        )

    # --- what neighbours say --------------------------------------------------------------------------------------

    def _on_service(self, name: str, present: bool) -> None:  # noqa: FBT001 - a callback
        """A service appeared, changed or went; called by zeroconf, so nothing may escape."""
        if len(name) > _NAME_CHARACTERS_MAX or not name.endswith(SERVICE_TYPE):
            self._counts["malformed"] += 1
            return
        if not present:
            node = self._known.pop(name, None)
            if node is not None and self._sink is not None:
                self._counts["lost"] += 1
                self._sink.lost(node, self.name)
            return
        responder, scope = self._responder, self._scope
        if responder is None or scope is None:
            return
        try:
            service = responder.cached(name)
        except (ValueError, RuntimeError, OSError):
            self._counts["malformed"] += 1
            return
        if service is not None:
            self._on_resolved(service)
        elif name in self._resolving:
            return  # asked already; the answer will have the news
        elif len(self._resolving) >= _RESOLVING_MAX:
            self._counts["dropped"] += 1
        else:
            self._resolving[name] = None
            scope.spawn(self._resolve(responder, name), name="resolve")

    async def _resolve(self, responder: Responder, name: str) -> None:
        try:
            service = await responder.resolve(name, _RESOLVE_TIMEOUT_S)
        except Exception as error:  # noqa: BLE001 - one service's records must not hide the others
            self._counts["malformed"] += 1
            _log.debug("mdns service not resolved", cause=str(error))
            return
        finally:
            self._resolving.pop(name, None)
        if service is not None:
            self._on_resolved(service)

    def _on_resolved(self, service: Service) -> None:
        ours = self._current()
        try:
            claim = decode(service.properties, service.port)
        except BadAnnouncement as error:
            self._counts["malformed"] += 1
            _log.debug("mdns service ignored", name=service.name[:_NAME_CHARACTERS_MAX], cause=str(error))
            return
        if claim.network != ours.network:
            self._counts["other_network"] += 1
        elif claim.authority != authority_prefix(ours.authority):
            self._on_foreign(claim)
        elif claim.node_id != ours.node_id:
            self._on_neighbour(service, claim, loopback=ours.loopback_only or self._cut_off)

    def _on_foreign(self, claim: Claim) -> None:
        self._counts["other_authority"] += 1
        if claim.authority in self._foreign or len(self._foreign) >= _FOREIGN_MAX:
            return
        self._foreign[claim.authority] = None
        _log.warning(
            "another network with the same name but another authority",
            network=claim.network,
            seen_node=claim.node_id,
            authority=claim.authority,
            hint="to join it, get a token with `mesh invite` there; to stay apart, choose another network name",
        )

    def _on_neighbour(self, service: Service, claim: Claim, *, loopback: bool) -> None:
        addresses = dialable(claim, service.addresses, loopback=loopback)
        if not addresses:
            self._counts["malformed"] += 1
            return
        self._known.pop(service.name, None)
        while len(self._known) >= _KNOWN_MAX:
            del self._known[next(iter(self._known))]
        self._known[service.name] = claim.node_id
        self._counts["found"] += 1
        if self._sink is not None:
            self._sink.found(Sighting(self.name, addresses, claim.node_id, claim.incarnation))
