"""Events are plain values that applications match on."""

from __future__ import annotations

import typing

from mesh import events as m
from mesh.types import AgentInfo, AgentNode


def test_the_union_names_each_event() -> None:
    """MeshEvent lists every event of the module, so that a match over it can be complete."""
    classes = {value for value in vars(m).values() if isinstance(value, type) and value.__module__ == m.__name__}

    assert set(typing.get_args(m.MeshEvent)) == classes


def test_events_can_be_matched() -> None:
    """An application tells events apart by class and takes what they are about by position."""

    def about(event: m.MeshEvent) -> object:
        match event:
            case m.AgentJoined(agent) | m.AgentLeft(agent):
                return agent.agent_id
            case m.EventsLost(count):
                return count
            case m.BroadcastsMissed(node_id):
                return node_id
            case m.PartitionDetected(lost) | m.PartitionHealed(lost):
                return lost
            case _:
                return event.node.node_id

    node = AgentNode("a")
    assert [about(event) for event in (m.AgentLeft(AgentInfo(7, "a")), m.EventsLost(3), m.NodeFailed(node))] == [
        7,
        3,
        "a",
    ]
    assert about(m.BroadcastsMissed("a", 2)) == "a"
    assert about(m.PartitionDetected(("b", "c"), ("a",))) == about(m.PartitionHealed(("b", "c"), (), ("a",)))
