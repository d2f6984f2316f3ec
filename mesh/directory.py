"""Where each agent runs, as gossip tells it.

Core: no I/O.  The directory is a pure function of the members' profiles: it is rebuilt by difference whenever a
member changes, so it cannot drift from the member table.  Two nodes may claim one agent id (the user's mistake,
or an agent that moves); all nodes then agree on one of them, the smallest node id, and the clash is reported.
"""
# core: no I/O

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .types import AgentInfo


class AgentDirectory:
    """Agents by id and by node."""

    def __init__(self) -> None:
        # Per agent id: its claimants by node id.  Nearly always one.
        self._claims: dict[int, dict[str, AgentInfo]] = {}
        self._by_node: dict[str, dict[int, AgentInfo]] = {}

    def replace(self, node_id: str, agents: Sequence[AgentInfo]) -> tuple[list[AgentInfo], list[AgentInfo]]:
        """Set what runs on ``node_id``; an empty sequence when it failed or left.

        Returns:
            ``(joined, left)``: agents that are new or changed there, and agents that are gone from there.
        """
        before = self._by_node.get(node_id, {})
        after = {agent.agent_id: agent for agent in agents}
        joined = [agent for agent_id, agent in after.items() if before.get(agent_id) != agent]
        left = [agent for agent_id, agent in before.items() if agent_id not in after]
        for agent in left:
            claimants = self._claims[agent.agent_id]
            del claimants[node_id]
            if not claimants:
                del self._claims[agent.agent_id]
        for agent in joined:
            self._claims.setdefault(agent.agent_id, {})[node_id] = agent
        if after:
            self._by_node[node_id] = after
        else:
            self._by_node.pop(node_id, None)
        return joined, left

    def locate(self, agent_id: int) -> str | None:
        """The node to send to for ``agent_id``; ``None`` if nobody claims it."""
        claimants = self._claims.get(agent_id)
        if claimants is None:
            return None
        return next(iter(claimants)) if len(claimants) == 1 else min(claimants)

    def claimants(self, agent_id: int) -> list[str]:
        """Every node that claims ``agent_id``, sorted."""
        return sorted(self._claims.get(agent_id, ()))

    def on_node(self, node_id: str) -> tuple[AgentInfo, ...]:
        """The agents that run on ``node_id``, in the order it registered them."""
        return tuple(self._by_node.get(node_id, {}).values())

    def agents(self) -> list[AgentInfo]:
        """Every agent of the network, by agent id; a contested id once for each claimant."""
        return [claimants[node] for _, claimants in sorted(self._claims.items()) for node in sorted(claimants)]

    def find(
        self, *, capability: str | None = None, tag: str | None = None, name: str | None = None
    ) -> Iterable[AgentInfo]:
        """Agents that have all of what is given."""
        for agent in self.agents():
            if (
                (capability is None or capability in agent.capabilities)
                and (tag is None or tag in agent.tags)
                and (name is None or name == agent.name)
            ):
                yield agent
