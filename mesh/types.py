"""The values users hold: messages, nodes, receipts.

Field names are promises (see ``CHANGELOG.md`` for any change).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from transport.types import Priority

if TYPE_CHECKING:
    from state.guards.values import Value

__all__ = [
    "AgentInfo",
    "AgentMessage",
    "AgentNode",
    "ConsistencyLevel",
    "DeadLetter",
    "DeliveryStatus",
    "DistributedState",
    "MessageType",
    "NodeStatus",
    "Priority",
    "Receipt",
]

#: Hops a message may take when nothing else is said.
DEFAULT_TTL = 8
#: The same for a broadcast, which travels along a tree that is deeper than the network is wide.
BROADCAST_TTL = 64


class MessageType(enum.IntEnum):
    """What a message is for.  The numbers are the wire's."""

    STATE_SYNC = 0
    COMMAND = 1
    QUERY = 2
    RESPONSE = 3
    HEARTBEAT = 4
    BROADCAST = 5


class NodeStatus(enum.Enum):
    """How a node is doing, as this node knows it."""

    ACTIVE = "active"
    INACTIVE = "inactive"
    """Suspected: it stopped answering and may still refute."""
    DISCONNECTED = "disconnected"
    """Failed, or left in order."""
    MAINTENANCE = "maintenance"
    """Alive, and asking for no new work."""


class ConsistencyLevel(enum.Enum):
    """What an operation on replicated state promises.  Only EVENTUAL is supported yet."""

    EVENTUAL = "eventual"
    """Replicas that can talk come to hold the same; reads and writes never wait for others."""
    SESSION = "session"
    """One reads what one wrote, and never something older than one has read."""
    CAUSAL = "causal"
    """What one reads never lacks what it was written in view of."""
    QUORUM = "quorum"
    """A write is on several replicas before it is acknowledged."""
    STRONG = "strong"
    """As if there were one copy."""


class DeliveryStatus(enum.Enum):
    """How far a sent message has come."""

    SENT = "sent"
    """Accepted by this node for the link to the receiver's node."""
    DELIVERED = "delivered"
    """Handed to the receiving agent: its handler was called, or it is in its inbox."""
    QUEUED = "queued"
    """Of a broadcast: no neighbour took it yet.  It is kept for half a minute, for neighbours that come back."""
    DROPPED = "dropped"
    """Of a broadcast: this node was leaving, and nobody will get it."""
    STORED = "stored"
    """On this node's disk; it is sent until the receiving agent has handled it, or its deadline comes."""


@dataclass(slots=True)
class AgentMessage:
    """One message between agents.

    Attributes:
        from_agent: The sending agent's id.
        to_agent: The receiving agent's id; ``None`` for a broadcast.
        message_type: What it is for.
        payload: The content, at most ``MeshConfig.message_bytes_max`` bytes.
        message_id: Unique in the network: sending node, its incarnation and a sequence number.  Assigned when
            the message is sent; leave it empty.
        timestamp: When it was sent, milliseconds since the Unix epoch by the sender's clock.  0: now.
        ttl: Hops it may take between nodes.
        priority: A higher one overtakes a lower one.
        group: The multicast group it was published to, if any.
        headers: Small key-value extras for the application.
        from_node: The node that sent it, as authenticated; empty on a message not yet sent.
    """

    from_agent: int
    to_agent: int | None
    message_type: MessageType = MessageType.COMMAND
    payload: bytes = b""
    message_id: str = ""
    timestamp: int = 0
    ttl: int = DEFAULT_TTL
    priority: Priority = Priority.NORMAL
    group: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    from_node: str = ""


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """An agent as the network knows it."""

    agent_id: int
    node_id: str
    capabilities: tuple[str, ...] = ()
    name: str = ""
    tags: tuple[str, ...] = ()
    version: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AgentNode:
    """A node as this node knows it, a snapshot.

    Attributes:
        node_id: Its name.
        agent_ids: The agents that run on it.
        address: Host where it can be dialled; empty if it cannot.
        port: TCP port.
        capabilities: Of all its agents, sorted, each once.
        status: How it is doing.
        last_heartbeat: When this node last heard from it, milliseconds since the Unix epoch; 0: only by hearsay.
        metadata: What the node says of itself.
        incarnation: Grows with every restart and every refuted suspicion.
    """

    node_id: str
    agent_ids: tuple[int, ...] = ()
    address: str = ""
    port: int = 0
    capabilities: tuple[str, ...] = ()
    status: NodeStatus = NodeStatus.ACTIVE
    last_heartbeat: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    incarnation: int = 0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A durable message that was given up, kept by the node that sent it.

    Attributes:
        letter_id: Under which it is replayed or dropped.
        reason: ``"expired"``: its deadline came first; ``"failed"``: the handler raised, once too often.
        detail: More for people: what the handler raised, say.
        failures: How often the handler raised.
        died_at: When it was given up, milliseconds since the Unix epoch.
        is_uncertain: Whether it was sent and nobody answered: then its agent may have handled it all the same.
        message: The message.
    """

    letter_id: int
    reason: str
    detail: str
    failures: int
    died_at: int
    is_uncertain: bool
    message: AgentMessage


@dataclass(slots=True)
class DistributedState:
    """A replicated map of an agent, a snapshot.

    Attributes:
        state_id: Its name.
        agent_id: The agent that wrote it last; 0: none.
        data: Values by key; each key merges by itself.
        version: How many transactions are in it; set by the network.
        vector_clock: How many of each writer (``node/life``); set by the network.  Hand back what was read.
        replicas: The other nodes that are known to hold it; set by the network.
        consistency_level: What is asked of the operation.
    """

    state_id: str
    agent_id: int = 0
    data: Mapping[str, Value] = field(default_factory=dict)
    version: int = 0
    vector_clock: Mapping[str, int] = field(default_factory=dict)
    replicas: tuple[str, ...] = ()
    consistency_level: ConsistencyLevel = ConsistencyLevel.EVENTUAL


class Receipt(NamedTuple):
    """What became of a message that was sent.

    A named tuple, because one is made for every message.

    Attributes:
        message_id: The id it was given.
        status: How far it has come.
        node_id: The node it went to; for a broadcast, empty.
        nodes: For a broadcast, how many neighbours took it or were told of it; they pass it on.
    """

    message_id: str
    status: DeliveryStatus
    node_id: str = ""
    nodes: int = 1
