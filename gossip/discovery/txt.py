"""What a node writes into its mDNS service, and how what others wrote is read.

RFC 6763 section 6: a service has a TXT record of ``key=value`` strings of at most 255 bytes each; ours is about 140
bytes in all, so that the answers of several nodes fit one packet.  Keys:

====== ================================================================================================
``v``   version of this layout, ``1``; others are ignored, so that a later version may mean something else
``net`` network name
``id``  node id
``inc`` incarnation, decimal
``fp``  the first 32 hexadecimal digits of the authority certificate's SHA-256
``port`` the TCP port, equal to the one in the SRV record
``at``  only if needed: further ``host:port`` addresses, comma separated, that A and AAAA records cannot say
        (a host name, or a port that is mapped to another one)
====== ================================================================================================

Unknown keys are ignored.  Anybody on the local network can write anything here, so each field is checked against
the rule of its type before it is used for anything, and the result is still a hint.

The instance name and the host name both contain node id and network: zeroconf resolves name conflicts of instances
only, and two nodes with one host name would each resolve to the addresses of both (measured).  A short hash over
network, node id and authority keeps cut-off names apart (a DNS label holds 63 bytes, and ids may be that long).
"""

# core: no I/O

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from transport.errors import InvalidAddress, InvalidName
from transport.types import Address, NetworkName, NodeId, network_name, node_id

from .base import Announcement

#: RFC 6335 registers service names of at most 15 characters; this one is ours.
SERVICE_TYPE: Final = "_peermesh._tcp.local."

VERSION: Final = "1"
AUTHORITY_DIGITS: Final = 32
"""128 bits of the fingerprint: nobody will find another authority with the same by chance."""
INCARNATION_MAX: Final = 2**53 - 1
"""The wire's bound (:data:`transport.wire.INCARNATION_MAX`), repeated to keep this module free of msgpack."""
ADDRESSES_MAX: Final = 16
"""Of one announcement; a host with more is either a router or a forger."""
_VALUE_BYTES_MAX: Final = 255
_LABEL_BYTES_MAX: Final = 63
_NAME_PART_MAX: Final = 24
_DIGITS: Final = re.compile(r"[0-9]{1,16}\Z")
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{32}\Z")


class BadAnnouncement(ValueError):
    """An mDNS service that is not a node of ours: damaged, forged, or of another program.  Never shown to users."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a TXT record claims, each field valid by itself."""

    network: NetworkName
    node_id: NodeId
    incarnation: int
    authority: str
    """The first :data:`AUTHORITY_DIGITS` digits only."""
    port: int
    further_addresses: tuple[Address, ...] = ()


def authority_prefix(fingerprint: str) -> str:
    """The part of an authority's fingerprint that is announced."""
    return fingerprint[:AUTHORITY_DIGITS]


def label(announcement: Announcement) -> str:
    """The DNS label, at most 63 bytes, that is both the instance name and the host name of a node's service.

    It has no dots, although RFC 6763 allows them in instance names: zeroconf would write them as separate labels, and
    avahi ignores such a service (measured).

    Returns:
        For example ``planner-1-default-0f3a9c21d4e5``.
    """
    node, network = announcement.node_id, announcement.network
    identity = f"{network}/{node}/{announcement.authority}"
    tag = hashlib.sha256(identity.encode()).hexdigest()[:12]
    if len(node) + len(network) + len(tag) + 2 > _LABEL_BYTES_MAX:
        node, network = NodeId(node[:_NAME_PART_MAX]), NetworkName(network[:_NAME_PART_MAX])
    return f"{node}-{network}-{tag}"


def encode(announcement: Announcement) -> dict[str, str]:
    """The TXT properties of ``announcement``."""
    properties = {
        "v": VERSION,
        "net": announcement.network,
        "id": announcement.node_id,
        "inc": str(announcement.incarnation),
        "fp": authority_prefix(announcement.authority),
        "port": str(announcement.port),
    }
    further = ""
    for address in announcement.addresses:
        if _is_record(address, announcement.port):
            continue
        longer = f"{further},{address}" if further else str(address)
        if len(f"at={longer}".encode()) > _VALUE_BYTES_MAX:
            break  # best first: what does not fit is what would be tried last
        further = longer
    if further:
        properties["at"] = further
    return properties


def record_addresses(announcement: Announcement) -> list[str]:
    """The literal IP addresses that become A and AAAA records, without scopes (which mean nothing elsewhere)."""
    literals = [a.host.partition("%")[0] for a in announcement.addresses if _is_record(a, announcement.port)]
    return list(dict.fromkeys(literals))[:ADDRESSES_MAX]


def decode(properties: Mapping[bytes, bytes | None], service_port: int | None) -> Claim:
    """Read the TXT properties of somebody's service.

    Args:
        properties: As they came; nothing is assumed of them.
        service_port: The port of the SRV record, ``None`` if there was none.

    Raises:
        BadAnnouncement: Any field is missing, too long, not text, or breaks its rule; the text names the field.
    """
    version = _text(properties, "v")
    if version != VERSION:
        raise BadAnnouncement(f"v: {version!r} is not {VERSION!r}")
    try:
        network, node = network_name(_text(properties, "net")), node_id(_text(properties, "id"))
    except InvalidName as error:
        raise BadAnnouncement(f"net or id: {error.message}") from error
    authority = _text(properties, "fp")
    if not _FINGERPRINT.match(authority):
        raise BadAnnouncement("fp: not 32 hexadecimal digits")
    port = _number(properties, "port", 65535)
    if port == 0 or port != service_port:
        raise BadAnnouncement(f"port: {port} in TXT, {service_port} in SRV")
    further = _addresses(_text(properties, "at")) if properties.get(b"at") else ()
    return Claim(network, node, _number(properties, "inc", INCARNATION_MAX), authority, port, further)


def dialable(claim: Claim, literals: Sequence[str], *, loopback: bool) -> tuple[Address, ...]:
    """The addresses of a service worth dialling, in the order they came, without repetitions.

    Args:
        claim: From its TXT record.
        literals: From its A and AAAA records, IPv6 perhaps with a scope of this machine (``fe80::1%2``).
        loopback: Whether loopback addresses make sense, that is, whether we look for nodes on this machine only.
            Otherwise a neighbour that says "dial 127.0.0.1" would make us dial ourselves.
    """
    addresses = [Address(literal, claim.port) for literal in literals[:ADDRESSES_MAX]]
    addresses.extend(claim.further_addresses)
    kept = [address for address in addresses if _is_dialable(address, loopback=loopback)]
    return tuple(dict.fromkeys(kept))[:ADDRESSES_MAX]


def _is_record(address: Address, port: int) -> bool:
    try:
        ipaddress.ip_address(address.host.partition("%")[0])
    except ValueError:
        return False
    return address.port == port


def _is_dialable(address: Address, *, loopback: bool) -> bool:
    if address.is_loopback:
        return loopback
    literal, percent, scope = address.host.partition("%")
    if percent and not scope.isalnum():
        return False
    try:
        ip = ipaddress.ip_address(literal)
    except ValueError:
        return not percent  # a host name; resolving it is the dialler's business
    return not (ip.is_multicast or ip.is_unspecified or ip == _BROADCAST)


_BROADCAST: Final = ipaddress.IPv4Address("255.255.255.255")


def _text(properties: Mapping[bytes, bytes | None], key: str) -> str:
    value = properties.get(key.encode())
    if value is None or len(value) > _VALUE_BYTES_MAX:
        raise BadAnnouncement(f"{key}: {'missing' if value is None else 'too long'}")
    try:
        return value.decode("ascii")
    except UnicodeDecodeError as error:
        raise BadAnnouncement(f"{key}: not ASCII") from error


def _number(properties: Mapping[bytes, bytes | None], key: str, greatest: int) -> int:
    text = _text(properties, key)
    if not _DIGITS.match(text) or int(text) > greatest:
        raise BadAnnouncement(f"{key}: not a number up to {greatest}")
    return int(text)


def _addresses(text: str) -> tuple[Address, ...]:
    try:
        return tuple(Address.parse(part) for part in text.split(",")[:ADDRESSES_MAX])
    except InvalidAddress as error:
        raise BadAnnouncement(f"at: {error.message}") from error
