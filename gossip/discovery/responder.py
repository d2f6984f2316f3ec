"""The only module that touches zeroconf: one mDNS socket set, one announced service, one browser.

Imported late and in a thread by :mod:`.mdns`, because it costs about 50 ms and 6 MB, and because ifaddr looks for the
C library while it is imported, which may start a process.  It knows nothing of nodes; it makes up for these properties
of zeroconf 0.15x (each measured, see docs/discovery.md):

- A constructor that fails leaves its sockets to the garbage collector, so the port is tried first.
- A browser asks at about 0.1, 1, 5 and 14 s and then only to refresh what it has: who announced itself while we were
  cut off is never found until the browser is made anew.
- With ``cooperating_responders`` registering takes 0.45 s instead of 1.65 s; right for names that contain an id.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from zeroconf import Error as ZeroconfError
from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from .advertise import Adapter
from .base import Announcement
from .txt import SERVICE_TYPE, encode, label, record_addresses

_MDNS_PORT = 5353

#: Linux lets one socket join 20 groups (net.ipv4.igmp_max_memberships); a host rarely needs more than two.
_ADAPTERS_MAX = 16

#: What zeroconf raises when the network is not as it wishes; callers catch exactly these.
FAILURES: tuple[type[Exception], ...] = (OSError, RuntimeError, ZeroconfError, ValueError)


@dataclass(frozen=True, slots=True)
class Service:
    """One resolved service, unchecked."""

    name: str
    properties: Mapping[bytes, bytes | None]
    addresses: tuple[str, ...]
    port: int | None


class ZeroconfResponder:
    """Announces one service and watches for others on the given adapters."""

    def __init__(self, zeroconf: AsyncZeroconf) -> None:
        """Use :meth:`open`."""
        self._zeroconf = zeroconf
        self._browser: AsyncServiceBrowser | None = None
        self._info: AsyncServiceInfo | None = None

    @classmethod
    async def open(cls, adapters: Sequence[Adapter]) -> ZeroconfResponder:
        """Bind the sockets.

        Raises:
            OSError: There is no multicast here, or port 5353 is taken by a program that does not share it.
        """
        choice, version = _choice(adapters)
        try:
            return await cls._open(choice, version)
        except OSError:
            if version is IPVersion.V4Only:
                raise
            # Kernels without IPv6, or with it switched off on every adapter.
            return await cls._open([c for c in choice if isinstance(c, str)], IPVersion.V4Only)

    @classmethod
    async def _open(cls, choice: list[str | int], version: IPVersion) -> ZeroconfResponder:
        if not choice:
            raise OSError(errno.ENODEV, "no network adapter with an address is up")
        _try_port()
        responder = cls(AsyncZeroconf(interfaces=choice, ip_version=version))
        try:
            await responder._zeroconf.zeroconf.async_wait_for_start()
            if not responder.sockets:
                raise OSError(errno.ENODEV, "no network adapter takes part in multicast")
        except BaseException:  # also when cancelled: the sockets are open already
            await responder._zeroconf.async_close()
            raise
        return responder

    @property
    def sockets(self) -> int:
        """On how many adapters (counted per IP version) it takes part."""
        return len(self._zeroconf.zeroconf.engine.senders)

    async def announce(self, announcement: Announcement) -> None:
        """Announce this node, or replace what was announced; returns when neighbours have been told (0.5 s).

        Raises:
            One of :data:`FAILURES`.
        """
        name = label(announcement)
        info = AsyncServiceInfo(
            SERVICE_TYPE,
            f"{name}.{SERVICE_TYPE}",
            port=announcement.port,
            properties=encode(announcement),
            server=f"{name}.local.",
            parsed_addresses=record_addresses(announcement),
        )
        if self._info is None:
            sent = await self._zeroconf.async_register_service(info, cooperating_responders=True)
        else:
            sent = await self._zeroconf.async_update_service(info)
        self._info = info
        await sent

    def browse(self, changed: Callable[[str, bool], None]) -> None:
        """Watch for services, beginning anew if already watching.

        Args:
            changed: Called on the loop with a service's name and whether it is there (or changed), else gone.  What
                is known already is told again.
        """

        def handler(
            zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
        ) -> None:  # the names are zeroconf's: it calls with keywords
            del zeroconf, service_type
            changed(name, state_change is not ServiceStateChange.Removed)

        self._stop_browsing()
        self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE_TYPE, handlers=[handler])

    def cached(self, name: str) -> Service | None:
        """The service of that name if its records are known already."""
        info = AsyncServiceInfo(SERVICE_TYPE, name)
        return _service(info) if info.load_from_cache(self._zeroconf.zeroconf) else None

    async def resolve(self, name: str, timeout_s: float) -> Service | None:
        """Ask for the records of a service; ``None`` if nobody answers in time.

        Raises:
            One of :data:`FAILURES`.
        """
        info = AsyncServiceInfo(SERVICE_TYPE, name)
        found = await info.async_request(self._zeroconf.zeroconf, timeout_s * 1000)
        return _service(info) if found else None

    async def use(self, adapters: Sequence[Adapter]) -> None:
        """Take part on these adapters from now on.

        Costs little when nothing changed, and is worth repeating: an IPv6 address cannot be bound in its first second
        or two, while the system makes sure that nobody else has it.

        Raises:
            One of :data:`FAILURES`.
        """
        choice, version = _choice(adapters)
        if not choice:
            raise OSError(errno.ENODEV, "no network adapter with an address is up")
        await self._zeroconf.async_update_interfaces(choice, version)
        if not self.sockets:
            raise OSError(errno.ENODEV, "no network adapter takes part in multicast")

    async def close(self) -> None:
        """Say goodbye to the neighbours (0.25 s) and close the sockets.

        Raises:
            One of :data:`FAILURES`; the sockets are closed all the same.
        """
        self._stop_browsing()
        await self._zeroconf.async_close()

    def _stop_browsing(self) -> None:
        browser, self._browser = self._browser, None
        if browser is not None:
            browser._async_cancel()  # the same as async_cancel(), which awaits nothing


def _choice(adapters: Sequence[Adapter]) -> tuple[list[str | int], IPVersion]:
    """What zeroconf calls interfaces: an IPv4 address each, and an index for IPv6."""
    v4: list[str | int] = []
    v6: list[str | int] = []
    for adapter in adapters[:_ADAPTERS_MAX]:
        first_v4 = next((address for address in adapter.addresses if ":" not in address), None)
        loopback = first_v4 is not None and first_v4.startswith("127.")
        if first_v4 is not None:
            v4.append(first_v4)
        if not loopback and any(":" in address for address in adapter.addresses) and adapter.index:
            v6.append(adapter.index)
    if v6:
        return [*v4, *v6], IPVersion.All if v4 else IPVersion.V6Only
    return v4, IPVersion.V4Only


def _try_port() -> None:
    """Bind the mDNS port for a moment, sharing it as zeroconf does.

    Raises:
        OSError: Somebody else has it and does not share.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.bind(("", _MDNS_PORT))


def _service(info: AsyncServiceInfo) -> Service:
    return Service(info.name, info.properties, tuple(info.parsed_scoped_addresses()), info.port)
