from __future__ import annotations

import pytest

from gossip.discovery.advertise import (
    ADVERTISED_MAX,
    Adapter,
    Interfaces,
    advertise_addresses,
    multicast_adapters,
)
from transport.types import Address

_LO = Adapter("lo", 1, ("127.0.0.1", "::1"))
_ETH = Adapter("eth0", 2, ("192.168.1.5", "2001:db9::5", "fe80::5"))
_WIFI = Adapter("wlan0", 3, ("10.20.0.7", "fe80::7"))
_DOCKER = Adapter("docker0", 4, ("172.17.0.1",))
_DOWN = Adapter("eth9", 9, ("10.99.0.1",), is_up=False)
_ALL = Interfaces((_LO, _DOCKER, _ETH, _WIFI, _DOWN), ("10.20.0.7", "2001:db9::5"))


def _hosts(listen: str, interfaces: Interfaces = _ALL) -> list[str]:
    addresses = advertise_addresses(Address(listen, 7946), interfaces)
    assert all(address.port == 7946 for address in addresses)
    return [address.host for address in addresses]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "10.20.0.7", "node.example", "fe80::7%3"])
def test_a_chosen_listen_address_is_advertised_as_it_is(host: str) -> None:
    """Who listens on one address is found at that address, and at loopback only if it is loopback."""
    assert _hosts(host) == [host]


def test_listening_everywhere_advertises_the_default_route_first_and_container_bridges_last() -> None:
    """Others try the likeliest address first; 172.17.0.1 is somebody else on each machine."""
    assert _hosts("0.0.0.0") == ["10.20.0.7", "192.168.1.5", "172.17.0.1"]


def test_adapters_that_are_down_are_not_advertised() -> None:
    """An address on a dead cable is no address."""
    assert "10.99.0.1" not in _hosts("0.0.0.0")


def test_listening_on_all_of_ipv6_advertises_ipv6_only() -> None:
    """asyncio binds :: to IPv6 alone, so IPv4 addresses would not be answered."""
    assert _hosts("::") == ["2001:db9::5"]


def test_an_empty_listen_host_covers_both_versions() -> None:
    """asyncio takes an empty host for both wildcards; v4 goes first at equal rank."""
    assert _hosts("") == ["10.20.0.7", "2001:db9::5", "192.168.1.5", "172.17.0.1"]


def test_global_addresses_go_before_private_ones() -> None:
    """Away from the default route, an address that the world can reach is the better one."""
    interfaces = Interfaces((Adapter("a", 1, ("10.0.0.1",)), Adapter("b", 2, ("8.8.4.4",))))
    assert _hosts("0.0.0.0", interfaces) == ["8.8.4.4", "10.0.0.1"]


def test_link_local_addresses_are_the_second_last_resort() -> None:
    """Two machines on one cable without DHCP still find each other; IPv6 needs the scope of the adapter."""
    interfaces = Interfaces((_LO, Adapter("eth0", 2, ("169.254.3.4", "fe80::5"))))
    assert _hosts("", interfaces) == ["169.254.3.4", "fe80::5%2"]


def test_loopback_is_advertised_for_lack_of_anything_else() -> None:
    """A laptop without a network has no remote peers, and its nodes still find each other."""
    assert _hosts("0.0.0.0", Interfaces((_LO, _DOWN))) == ["127.0.0.1"]


def test_no_adapters_no_addresses() -> None:
    """Nothing is made up."""
    assert _hosts("0.0.0.0", Interfaces(())) == []


def test_addresses_that_nobody_can_dial_are_left_out() -> None:
    """Multicast, reserved and site-local addresses are not advertised even if an adapter has them."""
    odd = Adapter("odd", 5, ("224.1.2.3", "240.0.0.1", "0.0.0.0", "fec0::1", "10.0.0.9"))
    assert _hosts("", Interfaces((odd,))) == ["10.0.0.9"]


def test_an_override_wins_and_may_borrow_the_bound_port() -> None:
    """Behind a port mapping only the owner knows the address; port 0 means the one that the system picked."""
    override = (Address("edge.example", 443), Address("10.1.1.1", 0), Address("edge.example", 443))
    assert advertise_addresses(Address("0.0.0.0", 7946), _ALL, override) == (
        Address("edge.example", 443),
        Address("10.1.1.1", 7946),
    )


def test_a_host_with_a_hundred_addresses_advertises_a_few() -> None:
    """A hello carries a bounded number of addresses."""
    many = Adapter("eth0", 2, tuple(f"10.0.0.{number}" for number in range(1, 101)))
    assert _hosts("0.0.0.0", Interfaces((many,))) == [f"10.0.0.{number}" for number in range(1, ADVERTISED_MAX + 1)]


def test_neighbours_are_looked_for_on_real_adapters_likeliest_first() -> None:
    """mDNS joins every adapter that is up but loopback; container bridges come last and fall to the bound first."""
    # Both have a default route, one of each IP version, and keep the system's order.
    assert [adapter.name for adapter in multicast_adapters(_ALL)] == ["eth0", "wlan0", "docker0"]


def test_neighbours_are_looked_for_on_loopback_only_if_asked_or_alone() -> None:
    """Tests and the demo stay on the machine; so does a machine without a network."""
    assert multicast_adapters(_ALL, loopback_only=True) == (_LO,)
    assert multicast_adapters(Interfaces((_LO, _DOWN))) == (_LO,)
    assert multicast_adapters(Interfaces(())) == ()
