"""The root of the error tree, and the errors of this layer.

::

    MeshError
    ├── InvalidName, InvalidAddress          an argument cannot be used
    ├── IdentityError                        keys, certificates, the data directory
    │   ├── InsecureKeyFile                  a private key that others can read
    │   ├── DataDirectoryError               unwritable, corrupt, or in use by another process
    │   │   └── NodeIdInUse
    │   ├── CertificateRejected              chain, network, node id, validity
    │   └── TokenError
    │       ├── TokenMalformed, TokenExpired, TokenUsed, TokenWrongNetwork, TokenUnknown
    │       └── EnrolmentRefused
    ├── TransportError
    │   ├── ListenError                      the port cannot be bound
    │   ├── DialError                        nobody there, or not who was expected
    │   │   ├── PeerUnreachable
    │   │   ├── HandshakeFailed
    │   │   └── PeerRefused                  the peer answered and said why not
    │   └── LinkClosed
    └── ProtocolError
        ├── LocalProtocolError               we tried to send what may not be sent
        └── RemoteProtocolError              the peer sent what may not be sent

Each error says what failed, whether anything changed (``changed``), and what to do next (``hint``).
"Local" and "remote" protocol errors are different types because they have different culprits: the first is a
bug or bad argument on this side, the second has a consequence for the peer (after h11's ``_util.py``).
"""

from __future__ import annotations


class MeshError(Exception):
    """Base of every error that peermesh raises on purpose.

    Attributes:
        message: What failed, naming the offending input or peer.
        hint: What to do about it; empty where there is nothing to do.
        changed: Whether the failed call left anything changed.  ``False`` unless the text says otherwise.
    """

    changed: bool = False

    def __init__(self, message: str, *, hint: str = "", changed: bool | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if changed is not None:
            self.changed = changed

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidName(MeshError, ValueError):
    """A node id or network name that cannot be used."""


class InvalidAddress(MeshError, ValueError):
    """An address that cannot be read."""


class IdentityError(MeshError):
    """Something about keys, certificates or the data directory."""


class InsecureKeyFile(IdentityError):
    """A private key file that somebody else can read."""


class DataDirectoryError(IdentityError):
    """The data directory cannot be written, is corrupt, or belongs to somebody else."""


class NodeIdInUse(DataDirectoryError):
    """Another process already runs this node."""


class CertificateRejected(IdentityError):
    """A certificate that does not prove what it must: chain, network, node id or validity."""


class TokenError(IdentityError):
    """A join token that cannot be used."""


class TokenMalformed(TokenError):
    """The token is damaged or is not a peermesh token."""


class TokenExpired(TokenError):
    """The token's time has run out."""


class TokenUsed(TokenError):
    """The token was already used as often as it allows."""


class TokenWrongNetwork(TokenError):
    """The token belongs to another network."""


class TokenUnknown(TokenError):
    """The issuing node does not know this token."""


class EnrolmentRefused(TokenError):
    """The issuing node refused the certificate request itself."""


class TransportError(MeshError):
    """Something about connections between nodes."""


class ListenError(TransportError):
    """The listening address cannot be bound."""


class DialError(TransportError):
    """A connection to a peer could not be made."""


class PeerUnreachable(DialError):
    """Nobody answered at the address."""


class HandshakeFailed(DialError):
    """Somebody answered, but TLS, WebSocket or hello failed."""


class PeerRefused(DialError):
    """The peer answered and refused the link.

    Attributes:
        code: The close code it gave (see ``docs/protocol/wire.md``).
    """

    def __init__(self, message: str, *, code: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class LinkClosed(TransportError):
    """The link is closed; what was sent on it may or may not have arrived."""

    changed = True


class ProtocolError(MeshError):
    """A message that the protocol does not allow."""


class LocalProtocolError(ProtocolError):
    """We tried to send what may not be sent; nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what may not be sent; the link is closed with ``code``."""

    def __init__(self, message: str, *, code: int = 4400) -> None:
        super().__init__(message)
        self.code = code
