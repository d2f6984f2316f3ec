"""The directory of agents, held against the obvious one."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.directory import AgentDirectory
from mesh.types import AgentInfo

NODES = st.sampled_from(["a", "b", "c"])
IDS = st.integers(1, 5)


def test_an_unknown_agent_is_nowhere() -> None:
    """An id that nobody claims has no node and no claimants."""
    directory = AgentDirectory()

    assert directory.locate(1) is None
    assert directory.claimants(1) == []
    assert directory.on_node("a") == ()


def test_a_contested_agent_is_on_the_smallest_node() -> None:
    """All nodes agree on one of several claimants, and go on to the next when it leaves."""
    directory = AgentDirectory()
    for node in ("c", "a", "b"):
        directory.replace(node, [AgentInfo(7, node)])

    assert directory.locate(7) == "a"
    assert directory.claimants(7) == ["a", "b", "c"]
    directory.replace("a", ())
    assert directory.locate(7) == "b"


def test_what_changed_is_told() -> None:
    """New and changed agents have joined, missing ones have left, unchanged ones are not mentioned."""
    directory = AgentDirectory()
    one, two, three = AgentInfo(1, "a"), AgentInfo(2, "a"), AgentInfo(3, "a")
    directory.replace("a", [one, two])
    newer = AgentInfo(2, "a", version="2")

    assert directory.replace("a", [three, newer, one]) != ([], [])
    assert directory.replace("a", [three, newer]) == ([], [one])
    assert directory.replace("a", [three, newer]) == ([], [])
    assert directory.replace("a", [three, two]) == ([two], [])


def test_agents_are_kept_in_the_order_of_registration() -> None:
    """What runs on a node is listed as the node lists it."""
    directory = AgentDirectory()
    agents = tuple(AgentInfo(i, "a") for i in (3, 1, 2))
    directory.replace("a", agents)

    assert directory.on_node("a") == agents


def test_agents_are_found_by_all_that_is_given() -> None:
    """Capability, tag and name each narrow the choice; nothing given means all."""
    directory = AgentDirectory()
    gpu = AgentInfo(1, "a", ("sum", "sort"), "one", ("gpu",))
    cpu = AgentInfo(2, "a", ("sum",), "two", ("cpu",))
    directory.replace("a", [gpu, cpu])

    assert list(directory.find()) == [gpu, cpu]
    assert list(directory.find(capability="sum")) == [gpu, cpu]
    assert list(directory.find(capability="sort")) == [gpu]
    assert list(directory.find(capability="sum", tag="cpu")) == [cpu]
    assert list(directory.find(tag="gpu", name="two")) == []
    assert list(directory.find(name="two")) == [cpu]
    assert list(directory.find(capability="none")) == []


class Directory(RuleBasedStateMachine):
    """The directory beside a plain list of (node, agent)."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = AgentDirectory()
        self.twin: dict[str, tuple[AgentInfo, ...]] = {}

    @rule(node=NODES, agents=st.lists(st.tuples(IDS, st.sampled_from("xy")), max_size=5, unique_by=lambda a: a[0]))
    def replace(self, node: str, agents: list[tuple[int, str]]) -> None:
        after = tuple(AgentInfo(agent_id, node, name=name) for agent_id, name in agents)
        before = self.twin.get(node, ())
        joined, left = self.directory.replace(node, after)
        self.twin[node] = after
        assert joined == [agent for agent in after if agent not in before]
        assert left == [agent for agent in before if all(agent.agent_id != other.agent_id for other in after)]

    @invariant()
    def both_say_the_same(self) -> None:
        for agent_id in range(1, 6):
            claimants = sorted(n for n, agents in self.twin.items() if any(a.agent_id == agent_id for a in agents))
            assert self.directory.claimants(agent_id) == claimants
            assert self.directory.locate(agent_id) == (claimants[0] if claimants else None)
        everyone = [agent for agents in self.twin.values() for agent in agents]
        assert self.directory.agents() == sorted(everyone, key=lambda agent: (agent.agent_id, agent.node_id))
        for node, agents in self.twin.items():
            assert self.directory.on_node(node) == agents


TestDirectory = Directory.TestCase
