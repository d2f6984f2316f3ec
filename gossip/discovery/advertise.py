"""Which addresses a node tells others to dial.

A pure function over the machine's adapters, so that the rule can be read and tested as a table:

- An override wins, as it is: only its owner knows what a port mapping or a load balancer looks like from outside.
- Listening on one address: that address.  Loopback is advertised only if it is what we listen on; a name is advertised
  as the name.
- Listening on every address (``0.0.0.0``, ``::``): the unicast addresses of the adapters that are up, the source
  address of the default route first, because it is the one most likely to be reachable; then global IPv4, private
  IPv4 and IPv6; last those of bridges that container engines make, whose addresses are the same on every machine
  (172.17.0.1) and lead a remote peer to itself.
- Link-local addresses (169.254/16, fe80::/10) only if there is nothing better, and loopback only if there is nothing
  at all: then there is no remote peer either, and two nodes on a laptop without a network still meet.
"""

# core: no I/O

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from transport.types import Address

#: Of one node; equals what a hello may carry (:data:`transport.wire.ADDRESSES_MAX`).
ADVERTISED_MAX: Final = 16

#: Name prefixes of the adapters that container engines and hypervisors make for themselves.
_ENGINE_PREFIXES: Final = (
    *("docker", "br-", "veth", "virbr", "cni", "flannel", "cali", "lxcbr", "lxdbr", "incusbr", "podman", "vmnet"),
    *("vboxnet", "kube", "nerdctl", "cbr", "weave", "bridge100"),
)

_UNSHAREABLE_V6: Final = ipaddress.IPv6Network("fec0::/10")  # site-local, deprecated by RFC 3879
_BENCHMARK_OR_FUTURE: Final = ipaddress.IPv4Network("240.0.0.0/4")

_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True, order=True)
class Adapter:
    """One network adapter of this machine, as far as addresses go."""

    name: str
    index: int
    """The system's number of it; joins IPv6 multicast groups and scopes link-local addresses."""
    addresses: tuple[str, ...]
    """Literal IP addresses without scope or prefix length."""
    is_up: bool = True


@dataclass(frozen=True, slots=True)
class Interfaces:
    """All adapters at one moment."""

    adapters: tuple[Adapter, ...]
    default_sources: tuple[str, ...] = ()
    """The addresses that packets to the rest of the world leave from, if there is a route to it."""


def advertise_addresses(
    listen: Address, interfaces: Interfaces, override: Sequence[Address] = ()
) -> tuple[Address, ...]:
    """Pick what a node that listens on ``listen`` tells others to dial, best first.

    Args:
        listen: With the port that is really bound.
        interfaces: The machine's adapters.
        override: If given, exactly this; a port 0 in it stands for the bound port.

    Returns:
        At most :data:`ADVERTISED_MAX` addresses; empty if no adapter has any.
    """
    if override:
        chosen = [Address(address.host, address.port or listen.port) for address in override]
        return tuple(dict.fromkeys(chosen))[:ADVERTISED_MAX]
    wildcard = _wildcard_versions(listen.host)
    if not wildcard:
        return (listen,)
    hosts = _ranked(interfaces, wildcard)
    return tuple(Address(host, listen.port) for host in hosts[:ADVERTISED_MAX])


def multicast_adapters(interfaces: Interfaces, *, loopback_only: bool = False) -> tuple[Adapter, ...]:
    """The adapters on which to look for neighbours, most promising first: up, with an address, not loopback.

    With ``loopback_only``, or if nothing else is up, the loopback adapter alone.
    """
    usable = [adapter for adapter in interfaces.adapters if adapter.is_up and adapter.addresses]
    loopback = tuple(adapter for adapter in usable if "127.0.0.1" in adapter.addresses)
    others = [adapter for adapter in usable if not all(_parse(a).is_loopback for a in adapter.addresses)]
    if loopback_only or not others:
        return loopback
    defaults = interfaces.default_sources
    others.sort(key=lambda adapter: (not any(a in defaults for a in adapter.addresses), _is_engine(adapter.name)))
    return tuple(others)


def _wildcard_versions(host: str) -> tuple[int, ...]:
    """Which IP versions listening on ``host`` covers if it means "every address", else nothing."""
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return () if host else (4, 6)
    if not ip.is_unspecified:
        return ()
    # Linux, macOS and Windows differ in whether :: takes IPv4 as well; asyncio sets V6ONLY, so it does not.
    return (ip.version,)


def _ranked(interfaces: Interfaces, versions: Sequence[int]) -> list[str]:
    ranked: list[tuple[int, int, int, str]] = []
    for position, adapter in enumerate(interfaces.adapters):
        if not adapter.is_up:
            continue
        for literal in adapter.addresses:
            ip = _parse(literal)
            if ip.version not in versions or not _is_unicast(ip):
                continue
            tier = _tier(ip, adapter, interfaces.default_sources)
            host = f"{literal}%{adapter.index}" if tier == _LINK_LOCAL and ip.version == 6 else literal
            ranked.append((tier, ip.version, position, host))
    best = [entry for entry in ranked if entry[0] < _LINK_LOCAL]
    second = [entry for entry in ranked if entry[0] == _LINK_LOCAL]
    chosen = best or second or ranked
    return list(dict.fromkeys(host for _tier_, _version, _position, host in sorted(chosen, key=_without_host)))


def _without_host(entry: tuple[int, int, int, str]) -> tuple[int, int, int]:
    # The order in which an adapter lists its addresses is kept: its first one is its primary one.
    return entry[:3]


_DEFAULT_ROUTE, _GLOBAL, _PRIVATE, _ENGINE, _LINK_LOCAL, _LOOPBACK = range(6)


def _tier(ip: _Ip, adapter: Adapter, default_sources: Iterable[str]) -> int:
    if ip.is_loopback:
        return _LOOPBACK
    if ip.is_link_local:
        return _LINK_LOCAL
    if any(ip == _parse(source) for source in default_sources):
        return _DEFAULT_ROUTE
    if _is_engine(adapter.name):
        return _ENGINE
    return _GLOBAL if ip.is_global else _PRIVATE


def _is_engine(name: str) -> bool:
    return name.startswith(_ENGINE_PREFIXES)


def _is_unicast(ip: _Ip) -> bool:
    if ip.is_multicast or ip.is_unspecified:
        return False
    return ip not in (_BENCHMARK_OR_FUTURE if ip.version == 4 else _UNSHAREABLE_V6)


def _parse(literal: str) -> _Ip:
    return ipaddress.ip_address(literal.partition("%")[0])
