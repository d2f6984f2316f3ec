from __future__ import annotations

import random
import socket

import pytest
from support import eventually

from gossip.discovery.advertise import Adapter
from gossip.discovery.base import Announcement
from gossip.discovery.responder import ZeroconfResponder, _choose
from gossip.discovery.txt import SERVICE_TYPE, decode, label
from transport.types import Address, NetworkName, NodeId

_LO = Adapter("lo", 1, ("127.0.0.1", "::1"))


def _announcement(node: str, life: int = 1) -> Announcement:
    network = NetworkName(f"pytest-{random.randrange(10**9)}")
    return Announcement(network, NodeId(node), life, 7946, (Address("127.0.0.1", 7946),), "ab" * 32)


async def test_what_one_announces_another_resolves() -> None:
    """The records cross a real socket with properties, address and port intact, and the goodbye is seen."""
    speaker, listener = await ZeroconfResponder.open([_LO]), await ZeroconfResponder.open([_LO])
    changes: list[tuple[str, bool]] = []
    listener.browse(lambda name, present: changes.append((name, present)))
    announcement = _announcement("a")
    name = f"{label(announcement)}.{SERVICE_TYPE}"
    try:
        assert speaker.sockets == 1
        await speaker.announce(announcement)
        await eventually(lambda: (name, True) in changes)
        service = await listener.resolve(name, 2.0)
        assert service is not None
        assert service.addresses == ("127.0.0.1",)
        assert decode(service.properties, service.port).node_id == "a"
        assert listener.cached(name) == service
        assert listener.cached(f"nobody.{SERVICE_TYPE}") is None
        changes.clear()
        listener.browse(lambda name, present: changes.append((name, present)))
        await eventually(lambda: (name, True) in changes, what="a new browser tells what is known already")
    finally:
        await speaker.close()
        await eventually(lambda: (name, False) in changes)
        await listener.close()


async def test_a_name_that_nobody_answers_for_is_none() -> None:
    """A service that went meanwhile costs the time-out and nothing else."""
    responder = await ZeroconfResponder.open([_LO])
    try:
        assert await responder.resolve(f"nobody-{random.randrange(10**9)}.{SERVICE_TYPE}", 0.1) is None
    finally:
        await responder.close()


@pytest.mark.parametrize("adapters", [[], [Adapter("odd", 7, ())]])
async def test_no_usable_adapter_is_an_os_error(adapters: list[Adapter]) -> None:
    """Neither opening nor moving to nothing works, and the error says what is missing."""
    with pytest.raises(OSError, match="no network adapter"):
        await ZeroconfResponder.open(adapters)
    responder = await ZeroconfResponder.open([_LO])
    try:
        with pytest.raises(OSError, match="no network adapter"):
            await responder.use(adapters)
        await responder.use([_LO])
        assert responder.sockets == 1
    finally:
        await responder.close()


async def test_an_adapter_that_vanished_does_not_cost_the_others() -> None:
    """Adapters may go between reading and binding; the rest is used."""
    gone = Adapter("gone", 0, ("192.0.2.77",))
    with pytest.raises(OSError, match="multicast"):
        await ZeroconfResponder.open([gone])
    responder = await ZeroconfResponder.open([gone, _LO])
    try:
        assert responder.sockets == 1
        await responder.use([_LO, gone])
        assert responder.sockets == 1
    finally:
        await responder.close()


async def test_one_adapter_with_two_addresses_joins_once() -> None:
    """An alias on the same adapter is not a failure."""
    responder = await ZeroconfResponder.open([_LO, Adapter("lo:1", 1, ("127.0.0.2",))])
    assert responder.sockets >= 1
    await responder.close()


async def test_ipv6_that_cannot_be_used_does_not_cost_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without IPv6 still finds its neighbours."""
    real = socket.socket

    def without_ipv6(family: int = -1, *arguments: int, **named: object) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return real(family, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("socket.socket", without_ipv6)
    two = [Adapter("lo", 1, ("127.0.0.1",)), Adapter("v6", 1, ("fe80::1",))]
    try:
        responder = await ZeroconfResponder.open(two)
    finally:
        monkeypatch.undo()
    assert responder.sockets == 1
    await responder.close()


async def test_a_packet_filter_that_forbids_multicast_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """zeroconf would go on as if it were heard; any other trouble with one packet is left to it."""

    class Filtered(socket.socket):
        error: OSError = PermissionError(1, "Operation not permitted")

        def sendto(self, *arguments: object) -> int:
            raise self.error

    both = [Adapter("lo", 1, ("127.0.0.1",)), Adapter("v6", 1, ("fe80::1",))]
    with monkeypatch.context() as patched:
        patched.setattr("socket.socket", Filtered)
        with pytest.raises(OSError, match="packet filter"):
            _choose(both)
        Filtered.error = BlockingIOError()
        assert _choose(both)[0][0] == "127.0.0.1"
