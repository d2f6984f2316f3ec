"""What certificates call a node: the URI that names it, and the DNS names that let TLS check it by itself.

OpenSSL's host name check never looks at URI names, so a leaf carries both: the URI is what this code judges, the DNS
names make the handshake itself fail when the wrong node answers.  ``.internal`` is reserved for private use, so these
names can never collide with a public certificate.  Pure functions.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from transport.errors import InvalidName
from transport.types import NetworkName, NodeId, network_name, node_id

#: The application protocol that both ends must select during the TLS handshake.
ALPN: Final = "peermesh/1"

_SCHEME: Final = "spiffe://"
_DOMAIN: Final = "peermesh.internal"


class Role(enum.Enum):
    """What the holder of a certificate may do, as its URI says; the value is the URI's first path segment."""

    NODE = "node"
    """Be a member: the certificate comes from the network's authority."""
    INVITE = "invite"
    """Ask once for a certificate: the certificate comes from the authority derived from a token."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a certificate names.

    Attributes:
        network: The network it is valid in.
        role: What its holder may do there.
        name: The node id, or the id of the invite.
    """

    network: NetworkName
    role: Role
    name: str

    @property
    def uri(self) -> str:
        """The subject alternative name that says it: ``spiffe://<network>/<role>/<name>``."""
        return f"{_SCHEME}{self.network}/{self.role.value}/{self.name}"

    @classmethod
    def parse(cls, uri: str) -> Subject:
        """Read the URI of a certificate.

        Raises:
            InvalidName: It is not exactly of the form above.
        """
        rest = uri.removeprefix(_SCHEME)
        parts = rest.split("/")
        if rest == uri or len(parts) != 3:
            raise InvalidName(f"certificate name {uri!r} is not spiffe://<network>/<role>/<name>")
        try:
            role = Role(parts[1])
        except ValueError:
            raise InvalidName(f"certificate name {uri!r} has an unknown role") from None
        # Node ids and invite ids obey the same rule (one DNS label), so one check serves both.
        return cls(network_name(parts[0]), role, str(node_id(parts[2])))


def node_subject(network: NetworkName, node: NodeId) -> Subject:
    """The subject of a node's certificate."""
    return Subject(network, Role.NODE, node)


def server_name(network: NetworkName, node: NodeId | None = None) -> str:
    """The name a dialler demands of the other end: of that very node, or of any node of the network."""
    return f"{network}.{_DOMAIN}" if node is None else f"{node}.{network}.{_DOMAIN}"
