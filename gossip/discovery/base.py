"""What a way of finding nodes is: the protocol that mDNS and the bootstrap list implement, open to others.

An implementation (etcd, Consul, DNS SRV ...) announces this node somewhere and reports other nodes' addresses to a
:class:`DiscoverySink`.  Its rules:

- It reports *hints*.  Nothing it says is trusted: a wrong address costs one failed TLS handshake.
- It never reports a death.  :meth:`DiscoverySink.lost` says that an announcement was withdrawn or ran out,
  which happens to live nodes as well (a cable, a restarted registry); membership decides who is alive.
- It never fails the node.  A registry that cannot be reached is one logged warning, ``available`` 0 in the
  statistics, and a retry in the background.
- It is bounded: however many announcements there are, true or forged, memory stays limited.

``docs/discovery.md`` has an example.
"""

# core: no I/O

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from transport.types import Address, NetworkName, NodeId


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a node tells others so that they can find it."""

    network: NetworkName
    node_id: NodeId
    incarnation: int
    port: int
    """The TCP port that it really listens on (never 0)."""
    addresses: tuple[Address, ...]
    """Where it can be dialled, best first; their ports may differ from ``port`` behind a port mapping."""
    authority: str
    """SHA-256 of the network's authority certificate (DER), in lower-case hexadecimal: tells two networks of one
    name apart before a handshake is wasted on them."""

    listens_on_all: bool = False
    """Whether it listens on every address (``0.0.0.0``, ``::``), so that having only loopback is a lack, not a wish."""

    @property
    def loopback_only(self) -> bool:
        """Whether only this machine is meant to reach the node, so that nothing about it may leave the machine."""
        loopback = bool(self.addresses) and all(address.is_loopback for address in self.addresses)
        return loopback and not self.listens_on_all


@dataclass(frozen=True, slots=True)
class Sighting:
    """Somebody says that a node of our network can be dialled at ``addresses``."""

    source: str
    """The ``name`` of the discovery that says so."""
    addresses: tuple[Address, ...]
    node_id: NodeId | None = None
    """Whom to expect there; ``None`` if the source does not know."""
    incarnation: int | None = None


class DiscoverySink(Protocol):
    """Who is told.  Plain functions, called on the event loop; they must not block."""

    def found(self, sighting: Sighting) -> None:
        """A node was announced, changed its announcement, or is still announced."""
        ...

    def lost(self, node_id: NodeId, source: str) -> None:
        """The announcement of ``node_id`` was withdrawn or ran out: a hint, never a verdict."""
        ...


class Discovery(Protocol):
    """One way of finding nodes."""

    @property
    def name(self) -> str:
        """What it is called in logs, statistics and :attr:`Sighting.source`."""
        ...

    async def start(self, announcement: Announcement, sink: DiscoverySink) -> None:
        """Announce this node and begin to report others.

        Returns at once; the work goes on in the background until :meth:`close`.  Raises nothing.
        """
        ...

    async def update(self, announcement: Announcement) -> None:
        """Announce this instead: addresses, port or incarnation changed."""
        ...

    async def close(self) -> None:
        """Withdraw the announcement and stop.  Safe to call twice, and without :meth:`start`."""
        ...

    def statistics(self) -> dict[str, int]:
        """Counters for ``mesh status``; ``available`` is 1 while it can find nodes, else 0."""
        ...
