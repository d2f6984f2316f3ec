"""The only module that touches zeroconf: one mDNS socket set, one announced service, one browser.

Imported late and in a thread by :mod:`.mdns`, because it costs about 50 ms and 6 MB, and because ifaddr looks for the
C library while it is imported, which may start a process.  It knows nothing of nodes; it makes up for these properties
of zeroconf 0.15x (each measured, see docs/discovery.md):

- A constructor that fails leaves its sockets to the garbage collector, so port and adapters are tried first.
- A browser asks at about 0.1, 1, 5 and 14 s and then only to refresh what it has: who announced itself while we were
  cut off is never found until the browser is made anew.
- What it cannot send, because a packet filter forbids it, it says in its own log only, so sending is tried first too.
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
_MDNS_GROUP = "224.0.0.251"
_MDNS_GROUP_V6 = "ff02::fb"
_EMPTY_QUERY = bytes(12)
"""A DNS header with nothing behind it: a question to nobody, which every responder passes over."""

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
        choice, version = _choose(adapters)
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
        choice, version = _choose(adapters)
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


def _choose(adapters: Sequence[Adapter]) -> tuple[list[str | int], IPVersion]:
    """What zeroconf calls interfaces: an IPv4 address each, and an index for IPv6.

    Everything is tried on a socket of our own first: one adapter that vanished since it was read would make zeroconf
    fail as a whole, and leave its sockets open until they are collected.

    Raises:
        OSError: Nothing is left, or somebody else has the port and does not share it.
    """
    v4: list[str | int] = []
    v6: list[str | int] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.setblocking(False)
        probe.bind(("", _MDNS_PORT))
        ipv6 = _has_ipv6()
        for adapter in adapters[:_ADAPTERS_MAX]:
            first_v4 = next((address for address in adapter.addresses if ":" not in address), "")
            if first_v4 and _joins(probe, first_v4) and _sends(probe, first_v4):
                v4.append(first_v4)
            # zeroconf cannot speak IPv6 on loopback.
            if ipv6 and adapter.index and not first_v4.startswith("127.") and any(":" in a for a in adapter.addresses):
                v6 += [adapter.index] if _sends_ipv6(adapter.index) else []
    if not v4 and not v6:
        raise OSError(errno.ENODEV, "no network adapter takes part in multicast, or a packet filter forbids it")
    if not v6:
        return v4, IPVersion.V4Only
    return [*v4, *v6], IPVersion.All if v4 else IPVersion.V6Only


def _joins(probe: socket.socket, address: str) -> bool:
    membership = socket.inet_aton(_MDNS_GROUP) + socket.inet_aton(address)
    try:
        probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    except OSError as error:
        return error.errno == errno.EADDRINUSE  # another address of an adapter that has joined
    return True


def _sends(probe: socket.socket, address: str) -> bool:
    try:
        probe.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        probe.sendto(_EMPTY_QUERY, (_MDNS_GROUP, _MDNS_PORT))
    except OSError as error:
        return not isinstance(error, PermissionError)  # a full queue or a lost carrier passes
    return True


def _sends_ipv6(index: int) -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.setblocking(False)
            probe.sendto(_EMPTY_QUERY, (_MDNS_GROUP_V6, _MDNS_PORT, 0, index))
    except OSError as error:
        return not isinstance(error, PermissionError)  # an address that is new cannot be used for a second or two
    return True


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    except OSError:
        return False
    return True


def _service(info: AsyncServiceInfo) -> Service:
    return Service(info.name, info.properties, tuple(info.parsed_scoped_addresses()), info.port)
