"""What a node says of itself and its agents: the content of gossip's opaque metadata.

Core: no I/O.  One MessagePack array: ``[status, metadata, agents, features, groups, sealing]`` with each agent as
``[id, name, capabilities, tags, version, metadata]``; specified in ``docs/protocol/messages.md``.
"""
# core: no I/O

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from transport.errors import RemoteProtocolError
from transport.wire import ARRAY_ITEMS_MAX, pack, unpack_body

from .errors import RegistrationTooLarge
from .types import AgentInfo

#: What gossip carries of one node.  At about 80 bytes an agent this is some 3,000 agents a node.
PROFILE_BYTES_MAX: Final = 256 * 1024

#: No decoder reads a longer array.
AGENTS_MAX: Final = ARRAY_ITEMS_MAX

# Bounds on one agent, so that one registration cannot take the node's whole profile.
AGENT_FIELD_CHARS_MAX: Final = 256
AGENT_LIST_MAX: Final = 64

_OPENS: Final = 1
_DEMANDS: Final = 2


@dataclass(frozen=True, slots=True)
class NodeProfile:
    """What one node says of itself.

    Attributes:
        maintenance: It asks for no new work.
        metadata: Free key-value text.
        agents: What runs on it.
        can_issue: It holds the network's authority key, so others can ask it to renew a certificate.
        groups: The multicast groups to which it subscribes.
        opens_sealed: It can open what is sealed for many.
        demands_sealed: It sends and takes no broadcast and no publication in the clear.
    """

    maintenance: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    agents: tuple[AgentInfo, ...] = ()
    can_issue: bool = False
    groups: tuple[str, ...] = ()
    opens_sealed: bool = False
    demands_sealed: bool = False


def encode_profile(profile: NodeProfile) -> bytes:
    """Write a profile.

    Raises:
        RegistrationTooLarge: It does not fit :data:`PROFILE_BYTES_MAX`, or has more than :data:`AGENTS_MAX` agents.
    """
    if len(profile.agents) > AGENTS_MAX:
        raise RegistrationTooLarge(
            f"this node would run {len(profile.agents)} agents, and at most {AGENTS_MAX} are allowed",
            hint="spread agents over more nodes",
        )
    agents = [
        [a.agent_id, a.name, list(a.capabilities), list(a.tags), a.version, dict(a.metadata)] for a in profile.agents
    ]
    sealing = profile.opens_sealed * _OPENS | profile.demands_sealed * _DEMANDS
    fields = [int(profile.maintenance), dict(profile.metadata), agents, int(profile.can_issue), list(profile.groups)]
    data = pack([*fields, sealing])
    if len(data) > PROFILE_BYTES_MAX:
        raise RegistrationTooLarge(
            f"this node's {len(agents)} agents and metadata take {len(data)} bytes of gossip, "
            f"and at most {PROFILE_BYTES_MAX} are allowed",
            hint="use shorter names, fewer capabilities and less metadata, or spread agents over more nodes",
        )
    return data


def decode_profile(data: bytes, node_id: str) -> NodeProfile:
    """Read the profile of ``node_id``; empty data is an empty profile.

    Raises:
        RemoteProtocolError: It is not a profile.
    """
    if not data:
        return NodeProfile()
    fields = unpack_body(data, nodes_max=PROFILE_BYTES_MAX)
    if type(fields) is not list or len(fields) < 4 or type(fields[2]) is not list:
        raise RemoteProtocolError(f"profile of {node_id}: not an array of four fields")
    sealing = fields[5] if len(fields) > 5 and type(fields[5]) is int else 0
    return NodeProfile(
        maintenance=bool(fields[0]),
        metadata=_text_map(fields[1], node_id),
        agents=tuple(_agent(entry, node_id) for entry in fields[2]),
        can_issue=bool(fields[3]),
        groups=_texts(fields[4], node_id) if len(fields) > 4 else (),
        opens_sealed=bool(sealing & _OPENS),
        demands_sealed=bool(sealing & _DEMANDS),
    )


def _agent(entry: Any, node_id: str) -> AgentInfo:
    if type(entry) is not list or len(entry) < 6 or type(entry[0]) is not int:
        raise RemoteProtocolError(f"profile of {node_id}: not an agent")
    agent_id, name, capabilities, tags, version, metadata = entry[:6]
    if type(name) is not str or type(version) is not str:
        raise RemoteProtocolError(f"profile of {node_id}: agent {agent_id}: name and version must be text")
    return AgentInfo(
        agent_id=agent_id,
        node_id=node_id,
        capabilities=_texts(capabilities, node_id),
        name=name,
        tags=_texts(tags, node_id),
        version=version,
        metadata=_text_map(metadata, node_id),
    )


def _texts(value: Any, node_id: str) -> tuple[str, ...]:
    if type(value) is not list or any(type(text) is not str for text in value):
        raise RemoteProtocolError(f"profile of {node_id}: not a list of texts")
    return tuple(value)


def _text_map(value: Any, node_id: str) -> dict[str, str]:
    if type(value) is not dict or any(type(k) is not str or type(v) is not str for k, v in value.items()):
        raise RemoteProtocolError(f"profile of {node_id}: not a map of texts")
    return value
