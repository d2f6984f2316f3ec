"""The values users hold keep the promises of their names."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest

from mesh import types as m
from mesh.types import AgentInfo, AgentMessage, AgentNode, DeliveryStatus, MessageType, NodeStatus, Priority, Receipt


def test_field_names_are_promises() -> None:
    """The fields of the public values, in order; a change needs a line in the changelog."""
    assert {
        kind.__name__: [field.name for field in dataclasses.fields(kind)] for kind in (AgentMessage, AgentNode)
    } == {
        "AgentMessage": [
            *("from_agent", "to_agent", "message_type", "payload", "message_id", "timestamp", "ttl", "priority"),
            *("group", "headers", "from_node"),
        ],
        "AgentNode": [
            *("node_id", "agent_ids", "address", "port", "capabilities", "status", "last_heartbeat", "metadata"),
            "incarnation",
        ],
    }


def test_numbers_are_the_wires() -> None:
    """Message types and priorities have the numbers that the protocol gives them."""
    assert {kind.name: kind.value for kind in MessageType} == {
        "STATE_SYNC": 0, "COMMAND": 1, "QUERY": 2, "RESPONSE": 3, "HEARTBEAT": 4, "BROADCAST": 5
    }  # fmt: skip
    assert [priority.value for priority in Priority] == [0, 1, 2, 3]
    assert {status.name for status in NodeStatus} == {"ACTIVE", "INACTIVE", "DISCONNECTED", "MAINTENANCE"}


def test_a_message_needs_only_its_ends() -> None:
    """Everything but sender and receiver has a default."""
    message = AgentMessage(1, None)

    assert (message.message_type, message.payload, message.ttl) == (MessageType.COMMAND, b"", m.DEFAULT_TTL)
    assert AgentMessage(1, None).headers is not message.headers


@pytest.mark.parametrize(
    "value",
    [AgentMessage(1, 2, headers={"k": "v"}), AgentNode("a"), AgentInfo(1, "a"), Receipt("a/1/1", DeliveryStatus.SENT)],
)
def test_values_can_be_copied_and_pickled(value: object) -> None:
    """Users may copy them, or hand them to another process."""
    assert copy.deepcopy(value) == value
    assert pickle.loads(pickle.dumps(value)) == value


def test_snapshots_cannot_be_changed() -> None:
    """A node, an agent and a receipt are frozen: nobody's change is taken for the network's."""
    for value, name in (
        (AgentNode("a"), "status"),
        (AgentInfo(1, "a"), "name"),
        (Receipt("", DeliveryStatus.SENT), "status"),
    ):
        with pytest.raises(AttributeError):
            setattr(value, name, None)


def test_everything_public_is_listed() -> None:
    """Each name in __all__ exists."""
    assert [name for name in m.__all__ if not hasattr(m, name)] == []
