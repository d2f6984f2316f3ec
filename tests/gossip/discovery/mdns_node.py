"""A program for the tests: announces a node by mDNS and prints what it sees, one JSON object per line.

Usage: mdns_node.py NODE_ID.  Ends on SIGTERM with a goodbye.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys

from gossip.discovery.advertise import Interfaces, advertise_addresses
from gossip.discovery.base import Announcement, Sighting
from gossip.discovery.interfaces import InterfaceWatcher
from gossip.discovery.mdns import MdnsConfig, MdnsDiscovery
from transport.types import Address, NodeId, network_name, node_id

_LISTEN = Address("0.0.0.0", 7946)


def say(event: str, **fields: object) -> None:
    """Print one event."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


class Sink:
    """Prints sightings."""

    def found(self, sighting: Sighting) -> None:
        """See DiscoverySink."""
        say("found", node=sighting.node_id, addresses=[str(address) for address in sighting.addresses])

    def lost(self, node_id: NodeId, source: str) -> None:
        """See DiscoverySink."""
        say("lost", node=node_id)


class Handler(logging.Handler):
    """Prints log records."""

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        say("log", level=record.levelname, text=record.getMessage())


async def main(name: str) -> None:
    """Run until SIGTERM."""
    logging.getLogger("mesh").addHandler(Handler())
    watcher = InterfaceWatcher(interval_s=0.2, settle_s=0.1)
    await watcher.start()
    discovery = MdnsDiscovery(watcher, config=MdnsConfig(retry_initial_s=0.2, retry_max_s=0.5))
    updates: set[asyncio.Task[None]] = set()

    def announcement(interfaces: Interfaces) -> Announcement:
        addresses = advertise_addresses(_LISTEN, interfaces)
        return Announcement(network_name("lan"), node_id(name), 1, 7946, addresses, "ab" * 32, listens_on_all=True)

    def moved(interfaces: Interfaces) -> None:
        task = asyncio.create_task(discovery.update(announcement(interfaces)))
        updates.add(task)
        task.add_done_callback(updates.discard)

    watcher.subscribe(moved)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await discovery.start(announcement(watcher.interfaces), Sink())
    while not stopped.is_set():
        statistics = discovery.statistics()
        say("statistics", available=statistics["available"], sockets=statistics["sockets"])
        try:
            async with asyncio.timeout(0.2):
                await stopped.wait()
        except TimeoutError:
            continue
    await discovery.close()
    await watcher.close()
    say("closed")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
