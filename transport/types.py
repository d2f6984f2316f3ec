"""The vocabulary every layer shares: names, addresses, priorities.

Pure values and their validation; no I/O.  Node and network names are DNS labels because they become part of
the certificate's DNS name, which lets TLS itself check that the expected peer answered.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from dataclasses import dataclass
from typing import Final, NewType
from urllib.parse import urlsplit

from .errors import InvalidAddress, InvalidName

#: Present so that :mod:`mesh` can tell its own ``transport`` package from a stranger's of the same name.
DISTRIBUTION: Final = "peermesh"

#: The port that a node listens on unless told otherwise.
DEFAULT_PORT: Final = 7946

NodeId = NewType("NodeId", str)
"""The name of a node: one DNS label, unique within its network."""

NetworkName = NewType("NetworkName", str)
"""The name of a network: one DNS label."""

# A DNS label (RFC 1123 section 2.1): at most 63 octets, so that it fits a certificate's DNS name.
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")


def node_id(text: str) -> NodeId:
    """Check that ``text`` can name a node and return it typed.

    Raises:
        InvalidName: It is not a DNS label; the error names the text and the rule.
    """
    return NodeId(_label("node id", text))


def network_name(text: str) -> NetworkName:
    """Check that ``text`` can name a network and return it typed.

    Raises:
        InvalidName: It is not a DNS label; the error names the text and the rule.
    """
    return NetworkName(_label("network name", text))


def _label(what: str, text: object) -> str:
    if not isinstance(text, str) or not _LABEL.match(text):
        raise InvalidName(
            f"{what} {text!r} is not valid",
            hint="use 1 to 63 characters: lower-case letters, digits and inner hyphens",
        )
    return text


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """Where a node can be dialled: a host name or literal IP address, and a TCP port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, *, default_port: int = DEFAULT_PORT) -> Address:
        """Read ``wss://host:port``, ``host:port``, ``[v6]:port`` or a bare host.

        Raises:
            InvalidAddress: The text is none of these, names another scheme, or its port is out of range.
        """
        given: object = text
        if not isinstance(given, str):
            raise InvalidAddress(f"address {given!r} is not text", hint=_ADDRESS_HINT)
        candidate = text.strip()
        if "://" not in candidate:
            candidate = f"wss://{_bracketed(candidate)}"
        try:
            parts = urlsplit(candidate)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise InvalidAddress(f"address {text!r} cannot be read: {error}", hint=_ADDRESS_HINT) from error
        if parts.scheme != "wss":
            raise InvalidAddress(
                f"address {text!r} uses {parts.scheme}://, and peermesh speaks only wss:// (TLS)", hint=_ADDRESS_HINT
            )
        extra = parts.path.strip("/") or parts.query or parts.fragment or parts.username
        if not host or extra or any(c.isspace() for c in host):
            raise InvalidAddress(f"address {text!r} cannot be read", hint=_ADDRESS_HINT)
        return cls(host, default_port if port is None else port)

    @property
    def url(self) -> str:
        """The address as a WebSocket URL."""
        return f"wss://{self}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


_ADDRESS_HINT: Final = "write wss://host:port or host:port, an IPv6 address in brackets"


def _bracketed(text: str) -> str:
    """Put brackets round a bare IPv6 literal so that its last group is not taken for a port."""
    try:
        ipaddress.IPv6Address(text.partition("%")[0])
    except ValueError:
        return text
    return f"[{text}]"


class Priority(enum.IntEnum):
    """How urgent a message is; a higher one overtakes a lower one wherever messages queue."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    URGENT = 3


class Lane(enum.IntEnum):
    """The queues of one link, most urgent first.

    The mesh's own traffic (keepalive, membership, acknowledgements) has a lane above the four that users
    can reach, so that no amount of urgent user data can make a healthy node look dead.
    """

    CONTROL = 0
    URGENT = 1
    HIGH = 2
    NORMAL = 3
    LOW = 4

    @classmethod
    def of(cls, priority: Priority) -> Lane:
        """The lane that carries user messages of ``priority``."""
        return cls(4 - priority)
