"""What an application observes: ``async for event in net.events()``."""

from __future__ import annotations

from dataclasses import dataclass

from .types import AgentInfo, AgentNode


@dataclass(frozen=True, slots=True)
class NodeJoined:
    """A node joined, or came back after it had failed or left."""

    node: AgentNode


@dataclass(frozen=True, slots=True)
class NodeLeft:
    """A node left in order."""

    node: AgentNode


@dataclass(frozen=True, slots=True)
class NodeSuspected:
    """A node stopped answering; it may still refute."""

    node: AgentNode


@dataclass(frozen=True, slots=True)
class NodeFailed:
    """A node was suspected and did not refute in time."""

    node: AgentNode


@dataclass(frozen=True, slots=True)
class NodeUpdated:
    """A node's status, metadata, address or agents changed."""

    node: AgentNode


@dataclass(frozen=True, slots=True)
class AgentJoined:
    """An agent was registered somewhere in the network."""

    agent: AgentInfo


@dataclass(frozen=True, slots=True)
class AgentLeft:
    """An agent was deregistered, or its node failed or left."""

    agent: AgentInfo


@dataclass(frozen=True, slots=True)
class PartitionDetected:
    """At least a fifth of the nodes were lost at once: the network is split, or part of it is gone.

    Both are node ids, sorted: ``lost`` stopped answering together, ``present`` are believed alive, this node included.
    """

    lost: tuple[str, ...]
    present: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PartitionHealed:
    """At least half of the nodes that were lost together are back; ``missing`` are not."""

    returned: tuple[str, ...]
    missing: tuple[str, ...]
    present: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BroadcastsMissed:
    """``count`` broadcasts of ``node_id`` went round without reaching this node, and nobody has them any more."""

    node_id: str
    count: int


@dataclass(frozen=True, slots=True)
class EventsLost:
    """The consumer was too slow: ``count`` events were dropped here; read ``net.members()`` afresh."""

    count: int


MeshEvent = (
    NodeJoined
    | NodeLeft
    | NodeSuspected
    | NodeFailed
    | NodeUpdated
    | AgentJoined
    | AgentLeft
    | PartitionDetected
    | PartitionHealed
    | BroadcastsMissed
    | EventsLost
)
