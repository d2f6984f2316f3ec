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
class EventsLost:
    """The consumer was too slow: ``count`` events were dropped here; read ``net.members()`` afresh."""

    count: int


MeshEvent = NodeJoined | NodeLeft | NodeSuspected | NodeFailed | NodeUpdated | AgentJoined | AgentLeft | EventsLost
