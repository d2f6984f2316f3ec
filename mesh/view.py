"""The network as this node shows it to its user: nodes, agents, and the events between two states of them.

Core: no I/O.  Gossip says how one member's record changed; the view answers with what an application should hear
of it, and keeps the profiles and the agent directory in step.  Every transition of a node's status is one row of
:data:`_EVENT_OF`, so that none is forgotten.
"""
# core: no I/O

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from gossip.events import Member, MemberState
from gossip.incarnation import life_of
from transport.errors import RemoteProtocolError

from .directory import AgentDirectory
from .events import (
    AgentJoined,
    AgentLeft,
    MeshEvent,
    NodeFailed,
    NodeJoined,
    NodeLeft,
    NodeSuspected,
    NodeUpdated,
)
from .profile import NodeProfile, decode_profile
from .sealing.handshake import Peer
from .sealing.keyring import EVERYBODY, Readers
from .types import AgentInfo, AgentNode, NodeStatus

_GONE: Final = (MemberState.DEAD, MemberState.LEFT)

_NodeEvent = Callable[[AgentNode], MeshEvent]

# (state before, state after) -> what the application hears.  ``None`` before: the member is new here.  A pair that
# is not listed says nothing by itself: a member first heard of as dead is no news.
_EVENT_OF: Final[Mapping[tuple[MemberState | None, MemberState], _NodeEvent]] = {
    (None, MemberState.ALIVE): NodeJoined,
    (None, MemberState.SUSPECT): NodeJoined,
    (MemberState.ALIVE, MemberState.SUSPECT): NodeSuspected,
    (MemberState.ALIVE, MemberState.DEAD): NodeFailed,
    (MemberState.ALIVE, MemberState.LEFT): NodeLeft,
    (MemberState.SUSPECT, MemberState.ALIVE): NodeUpdated,
    (MemberState.SUSPECT, MemberState.DEAD): NodeFailed,
    (MemberState.SUSPECT, MemberState.LEFT): NodeLeft,
    (MemberState.DEAD, MemberState.ALIVE): NodeJoined,
    (MemberState.DEAD, MemberState.SUSPECT): NodeJoined,
    (MemberState.LEFT, MemberState.ALIVE): NodeJoined,
    (MemberState.LEFT, MemberState.SUSPECT): NodeJoined,
}


class NetworkView:
    """Members as nodes, and where agents run."""

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        self._profiles: dict[str, NodeProfile] = {}
        self.directory = AgentDirectory()
        self._groups: dict[str, dict[str, None]] = {}
        # What the last applied record changed of them: group, node, whether it subscribes now.
        self.group_changes: list[tuple[str, str, bool]] = []
        self.profiles_refused = 0

    def apply(self, after: Member) -> list[MeshEvent]:
        """Take a member's new record and return what the application should hear, in order."""
        node_id = after.node_id
        before = self._members.get(node_id)
        self._members[node_id] = after
        profile_is_new = before is None or before.meta != after.meta
        if profile_is_new:
            self._profiles[node_id] = self._profile(after)
        agents = () if after.state in _GONE else self._profiles[node_id].agents
        joined, left = self.directory.replace(node_id, agents)
        self._regroup(node_id, () if after.state in _GONE else self._profiles[node_id].groups)
        node = self.node(node_id)
        events: list[MeshEvent] = []
        news = _EVENT_OF.get((before.state if before else None, after.state))
        if news is not None:
            events.append(news(node))
        elif before is not None and before.state == after.state and _shows(before) != _shows(after):
            events.append(NodeUpdated(node))
        events += [AgentLeft(agent) for agent in left]
        events += [AgentJoined(agent) for agent in joined]
        return events

    def subscribers(self, group: str) -> list[str]:
        """The nodes that subscribe to a multicast group, in the order in which that was heard."""
        return list(self._groups.get(group, ()))

    def readers(self, group: str) -> Readers:
        """Who may read what is published to a group, or broadcast to everybody: live members that subscribe."""
        names = self._members if group == EVERYBODY else self._groups.get(group, ())
        live = [node_id for node_id in names if self._members[node_id].state not in _GONE]
        # Of a member that was met this moment only its name is known; what it can do comes with its profile.
        profiles = [self._profiles[node_id] for node_id in live if self._members[node_id].meta]
        return Readers(
            [Peer(node_id, life_of(self._members[node_id].incarnation)) for node_id in live],
            demanded=any(profile.demands_sealed for profile in profiles),
            unable=sum(not profile.opens_sealed for profile in profiles),
        )

    def demands_sealed(self, node_id: str) -> bool:
        """Whether a node says that it sends and takes nothing for many in the clear."""
        profile = self._profiles.get(node_id)
        return profile is not None and profile.demands_sealed

    def _regroup(self, node_id: str, groups: Sequence[str]) -> None:
        before = [group for group, nodes in self._groups.items() if node_id in nodes] if self._groups else []
        self.group_changes = [(group, node_id, False) for group in before if group not in groups]
        self.group_changes += [(group, node_id, True) for group in groups if group not in before]
        for group, _, subscribed in self.group_changes:
            if subscribed:
                self._groups.setdefault(group, {})[node_id] = None
            else:
                del self._groups[group][node_id]
                if not self._groups[group]:
                    del self._groups[group]

    def _profile(self, member: Member) -> NodeProfile:
        try:
            return decode_profile(member.meta, member.node_id)
        except RemoteProtocolError:
            # A node whose profile we cannot read is still a member: it may be of a later version.
            self.profiles_refused += 1
            return NodeProfile()

    def forget(self, node_id: str) -> None:
        """Drop what is known of a member that gossip has dropped."""
        self._members.pop(node_id, None)
        self._profiles.pop(node_id, None)
        self.directory.replace(node_id, ())
        self._regroup(node_id, ())

    def node(self, node_id: str, last_heartbeat_ms: int = 0) -> AgentNode:
        """A snapshot of one node.

        Raises:
            KeyError: It is not a member.
        """
        agents = self.directory.on_node(node_id)
        return _node(self._members[node_id], self._profiles[node_id], agents, last_heartbeat_ms)

    def describe(self, member: Member) -> AgentNode:
        """A node that need not be in this view, as its record describes it."""
        profile = self._profile(member)
        return _node(member, profile, profile.agents, 0)

    def node_ids(self) -> list[str]:
        """Every known member, sorted."""
        return sorted(self._members)

    def issuers(self) -> list[str]:
        """Live members that can renew certificates, sorted."""
        return [
            node_id
            for node_id in self.node_ids()
            if self._profiles[node_id].can_issue and self._members[node_id].state is MemberState.ALIVE
        ]


def _node(member: Member, profile: NodeProfile, agents: Sequence[AgentInfo], last_heartbeat_ms: int) -> AgentNode:
    address = member.addresses[0] if member.addresses else None
    return AgentNode(
        node_id=member.node_id,
        agent_ids=tuple(agent.agent_id for agent in agents),
        address=address.host if address else "",
        port=address.port if address else 0,
        capabilities=tuple(sorted({name for agent in agents for name in agent.capabilities})),
        status=_status(member.state, profile),
        last_heartbeat=last_heartbeat_ms,
        metadata=dict(profile.metadata),
        incarnation=member.incarnation,
    )


def _shows(member: Member) -> tuple[object, ...]:
    """What of a record its user can see, beside the state."""
    return member.incarnation, member.addresses, member.meta


def _status(state: MemberState, profile: NodeProfile) -> NodeStatus:
    if state in _GONE:
        return NodeStatus.DISCONNECTED
    if state is MemberState.SUSPECT:
        return NodeStatus.INACTIVE
    return NodeStatus.MAINTENANCE if profile.maintenance else NodeStatus.ACTIVE
