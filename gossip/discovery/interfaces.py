"""Reading the machine's network adapters, and noticing that they changed.

The shell beside :mod:`.advertise`.  There is no portable way to be told of a change, so adapters are read every few
seconds in a thread (0.3 ms on Linux); a change is reported only once two readings in a row agree, because an adapter
that comes up gets its addresses one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import ClassVar, Final

from transport.logs import get_logger

from .advertise import Adapter, Interfaces

_log = get_logger("mesh.discovery")

# Documentation addresses (RFC 5737, RFC 3849).  Connecting a UDP socket sends nothing; it only asks the kernel which
# source address it would use.
_FAR_AWAY: Final = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))

# The nodes of one process take each other's readings when they are no older.  Below the usual ``settle_s``, so that two
# readings in a row are two.
_RECENT_S: Final = 0.5


def read_interfaces() -> Interfaces:
    """Read all adapters.  Blocks for less than a millisecond: call it in a thread.

    The first call also imports ifaddr and psutil.

    Raises:
        OSError: The system refuses.
    """
    import ifaddr  # here: its import looks for the C library, which may start a process
    import psutil

    up = {name: status.isup for name, status in psutil.net_if_stats().items()}
    adapters = []
    for found in ifaddr.get_adapters():
        literals = dict.fromkeys(ip.ip if isinstance(ip.ip, str) else ip.ip[0] for ip in found.ips)
        name = str(found.name)
        # An alias such as eth0:1 has no state of its own.
        is_up = up.get(name, up.get(name.partition(":")[0], True))
        adapters.append(Adapter(name, found.index or 0, tuple(literals), is_up))
    return Interfaces(tuple(adapters), _default_sources())


def _default_sources() -> tuple[str, ...]:
    sources = []
    for family, far_away in _FAR_AWAY:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((far_away, 9))
                sources.append(str(probe.getsockname()[0]))
        except OSError:
            continue  # no route, or no such family here
    return tuple(sources)


class InterfaceWatcher:
    """Keeps the latest reading and tells its subscribers when it changed.

    One per node: the node re-advertises itself, mDNS follows with its sockets.  After :meth:`start`,
    :attr:`interfaces` is always there.  A failing reading keeps the previous one.
    """

    _latest: ClassVar[tuple[float, Interfaces] | None] = None
    """When this process last called :func:`read_interfaces`, for whichever node, and what came of it."""

    def __init__(
        self,
        *,
        interval_s: float = 5.0,
        settle_s: float = 1.0,
        read: Callable[[], Interfaces] = read_interfaces,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            interval_s: Between two looks.
            settle_s: A change is believed when it reads the same again after this long.
            read: Called in a thread; replaceable for tests.
        """
        self._interval_s = interval_s
        self._settle_s = settle_s
        self._read = read
        self._interfaces = Interfaces(())
        self._subscribers: list[Callable[[Interfaces], None]] = []
        self._task: asyncio.Task[None] | None = None
        self._readings = 0
        self._changes = 0
        self._failures = 0

    @property
    def interfaces(self) -> Interfaces:
        """The latest settled reading."""
        return self._interfaces

    def subscribe(self, changed: Callable[[Interfaces], None]) -> Callable[[], None]:
        """Call ``changed`` on the loop after each change; it must not block.

        Returns:
            A function that ends the subscription; harmless to call twice.
        """
        self._subscribers.append(changed)

        def unsubscribe() -> None:
            if changed in self._subscribers:
                self._subscribers.remove(changed)

        return unsubscribe

    async def start(self) -> None:
        """Take the first reading, then watch in the background until :meth:`close`.  Starting twice is harmless."""
        if self._task is not None:
            return
        first = await self._reading()
        self._interfaces = first if first is not None else self._interfaces
        self._task = asyncio.create_task(self._watch(), name="interface watcher")

    async def close(self) -> None:
        """Stop watching.  Safe to call twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def statistics(self) -> dict[str, int]:
        """Counters: readings, changes, failures; and how many adapters there are."""
        return {
            "readings": self._readings,
            "changes": self._changes,
            "failures": self._failures,
            "adapters": len(self._interfaces.adapters),
        }

    async def _watch(self) -> None:
        candidate: Interfaces | None = None
        while True:
            await asyncio.sleep(self._interval_s if candidate is None else self._settle_s)
            reading = await self._reading()
            if reading is None or reading == self._interfaces:
                candidate = None
            elif reading == candidate:
                candidate = None
                self._settled(reading)
            else:
                candidate = reading

    async def _reading(self) -> Interfaces | None:
        self._readings += 1
        now = asyncio.get_running_loop().time()
        shares = self._read is read_interfaces
        if shares and self._latest is not None and now - self._latest[0] < _RECENT_S:
            return self._latest[1]
        try:
            reading = await asyncio.to_thread(self._read)
        except (OSError, ValueError) as error:
            self._failures += 1
            if self._failures == 1:
                _log.warning("network adapters cannot be read", error=str(error))
            return None
        if shares:
            InterfaceWatcher._latest = now, reading
        return reading

    def _settled(self, reading: Interfaces) -> None:
        self._interfaces = reading
        self._changes += 1
        addresses = sorted(address for adapter in reading.adapters for address in adapter.addresses)
        _log.info("network adapters changed", addresses=addresses)
        for changed in tuple(self._subscribers):
            try:
                changed(reading)
            except Exception:  # noqa: BLE001 - one subscriber's bug must not blind the others
                _log.exception("a subscriber to adapter changes failed")
