"""Every error a user can meet, in one tree under :class:`MeshError`.

::

    MeshError
    ├── (names, identity, transport, protocol: drawn in transport/errors.py, re-exported here)
    ├── NetworkClosed                    this node has left the network
    ├── Superseded                       another process took over this node's id
    ├── InvalidMessage                   an argument of a send cannot be used
    │   └── PayloadTooLarge
    ├── AgentError
    │   ├── UnknownAgent                 nobody registered this agent id
    │   ├── AgentIdInUse                 this node already runs an agent of that id
    │   └── RegistrationTooLarge         this node's agents do not fit what it may say of itself
    ├── UnknownNode                      no member of that name
    ├── DeliveryError
    │   ├── NotDelivered                 the receiver's node refused the message or was not reached
    │   │   └── StreamsUnsupported       its software is too old to answer with a stream
    │   ├── OutboxFull                   too many durable messages wait already
    │   └── DeliveryUncertain            it may or may not have arrived: the link broke, or time ran out
    │       ├── DeliveryTimeout          no acknowledgement in time
    │       └── RequestTimeout           no response in time: the request may have been carried out
    ├── UnknownLetter                    no dead letter has that id
    ├── RemoteError                      the receiving agent's handler raised
    │   └── StreamExpected               the agent answers with a stream, and a single response was asked for
    ├── SealRefused                      a peer sealed or said about keys what does not hold (a RemoteProtocolError)
    ├── StorageError                     the disk did not do what it must: drawn in state/errors.py
    │   └── StorageFull                  there is no room on it
    ├── StateError                       replicated state: clocks and documents
    │   ├── ClockDrift                   a timestamp too far in the future
    │   ├── EpochUnknown                 a membership epoch not known yet, or no longer
    │   ├── DivergentHistory             two histories under one name
    │   ├── TooManyWriters               more processes wrote a document than it can know
    │   ├── ValueRefused                 a document cannot hold that value
    │   ├── UnknownState                 nobody has written a state of that id
    │   ├── UnknownKey                   a document has no such key
    │   ├── ConsistencyUnsupported       a consistency level that is not built yet
    │   ├── TransactionTooLarge
    │   └── TransactionConflict          somebody else's change came in between
    ├── UpdateRefused                    bytes that no document may take (a RemoteProtocolError)
    ├── RaftMessageRefused               what no correct member of a consensus group would say (a RemoteProtocolError)
    │   └── NotInGroup                   from a node that has no say in the group
    ├── ConfigError                      a setting cannot be used
    └── ControlError                     the running node's control socket
        ├── NodeNotRunning
        └── AmbiguousNode

Each says what failed, whether anything changed, and what to do next.
"""

from __future__ import annotations

from state.errors import (
    ClockDrift,
    DivergentHistory,
    EpochUnknown,
    NotInGroup,
    RaftMessageRefused,
    StateError,
    StorageError,
    StorageFull,
    TooManyWriters,
    TransactionConflict,
    TransactionTooLarge,
    UpdateRefused,
    ValueRefused,
)
from transport.errors import (
    CertificateRejected,
    DataDirectoryError,
    DialError,
    EnrolmentRefused,
    HandshakeFailed,
    IdentityError,
    InsecureKeyFile,
    InvalidAddress,
    InvalidName,
    LinkClosed,
    ListenError,
    LocalProtocolError,
    MeshError,
    NodeIdInUse,
    PeerRefused,
    PeerUnreachable,
    ProtocolError,
    RemoteProtocolError,
    TokenError,
    TokenExpired,
    TokenMalformed,
    TokenUnknown,
    TokenUsed,
    TokenWrongNetwork,
    TransportError,
)

__all__ = [
    "AgentError",
    "AgentIdInUse",
    "AmbiguousNode",
    "CertificateRejected",
    "ClockDrift",
    "ConfigError",
    "ConsistencyUnsupported",
    "ControlError",
    "DataDirectoryError",
    "DeliveryError",
    "DeliveryTimeout",
    "DeliveryUncertain",
    "DialError",
    "DivergentHistory",
    "EnrolmentRefused",
    "EpochUnknown",
    "HandshakeFailed",
    "IdentityError",
    "InsecureKeyFile",
    "InvalidAddress",
    "InvalidMessage",
    "InvalidName",
    "LinkClosed",
    "ListenError",
    "LocalProtocolError",
    "MeshError",
    "NetworkClosed",
    "NodeIdInUse",
    "NodeNotRunning",
    "NotDelivered",
    "NotInGroup",
    "OutboxFull",
    "PayloadTooLarge",
    "PeerRefused",
    "PeerUnreachable",
    "ProtocolError",
    "RaftMessageRefused",
    "RegistrationTooLarge",
    "RemoteError",
    "RemoteProtocolError",
    "RequestTimeout",
    "SealRefused",
    "StateError",
    "StorageError",
    "StorageFull",
    "StreamExpected",
    "StreamsUnsupported",
    "Superseded",
    "TokenError",
    "TokenExpired",
    "TokenMalformed",
    "TokenUnknown",
    "TokenUsed",
    "TokenWrongNetwork",
    "TooManyWriters",
    "TransactionConflict",
    "TransactionTooLarge",
    "TransportError",
    "UnknownAgent",
    "UnknownKey",
    "UnknownLetter",
    "UnknownNode",
    "UnknownState",
    "UpdateRefused",
    "ValueRefused",
]


class NetworkClosed(MeshError):
    """This node has left the network, or has not joined it yet."""


class Superseded(MeshError):
    """Another process runs under this node's id and is newer; this one has left the network."""


class InvalidMessage(MeshError, ValueError):
    """An argument of a send cannot be used; nothing was sent."""


class PayloadTooLarge(InvalidMessage):
    """The payload is above ``messages.bytes_max``; nothing was sent."""


class AgentError(MeshError):
    """Something about an agent id."""


class UnknownAgent(AgentError, LookupError):
    """Nobody in the network registered this agent id, as far as this node knows."""


class AgentIdInUse(AgentError):
    """This node already runs an agent of that id."""


class RegistrationTooLarge(AgentError):
    """What this node says of itself and its agents would not fit its bound."""


class UnknownNode(MeshError, LookupError):
    """No member of the network has that name."""


class DeliveryError(MeshError):
    """A message did not arrive, or nobody said that it did."""


class NotDelivered(DeliveryError):
    """The message was not handed to the agent, and will not be."""


class StreamsUnsupported(NotDelivered):
    """The agent's node runs software that cannot answer with a stream; nothing was sent."""


class OutboxFull(DeliveryError):
    """Durable messages of this node weigh as much as ``messages.outbox_bytes_max`` already; this one is not stored."""


class DeliveryUncertain(DeliveryError):
    """The message may or may not have been handed to the agent: the link broke before anybody could tell."""

    changed = True


class DeliveryTimeout(DeliveryUncertain, TimeoutError):
    """No acknowledgement in time: the message may or may not have been handed to the agent."""


class RequestTimeout(DeliveryUncertain, TimeoutError):
    """No response in time: the request may have been carried out."""


class UnknownLetter(MeshError, LookupError):
    """No dead letter of this node has that id: it was replayed, dropped, or too old to be kept."""


class UnknownState(StateError, LookupError):
    """Nobody has written a state of that id, as far as this node knows."""


class UnknownKey(StateError, LookupError):
    """A document has no such key."""


class ConsistencyUnsupported(StateError):
    """A consistency level that is not built yet; nothing was done."""


class RemoteError(MeshError):
    """The receiving agent's handler raised.

    Attributes:
        kind: The name of the exception class it raised.
    """

    changed = True

    def __init__(self, message: str, *, kind: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class StreamExpected(RemoteError):
    """The agent answers with a stream, and a single response was asked for; nothing of the stream was run."""


class SealRefused(RemoteProtocolError):
    """What a peer sealed, or said about keys, does not prove what it must; nothing of it was used.

    Attributes:
        reason: One of :class:`mesh.sealing.reasons.Reason`.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ConfigError(MeshError, ValueError):
    """A setting cannot be used."""


class ControlError(MeshError):
    """The control socket of a running node could not be used."""


class NodeNotRunning(ControlError):
    """No node runs in this data directory."""


class AmbiguousNode(ControlError):
    """Several nodes run in this data directory and none was named."""
