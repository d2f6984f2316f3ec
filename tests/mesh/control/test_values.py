"""Events, nodes and payloads as the JSON of the control socket and of ``--json``."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from mesh.control.values import dead_letter_document, event_document, value_document
from mesh.events import (
    AgentJoined,
    AgentLeft,
    BroadcastsMissed,
    EventsLost,
    MeshEvent,
    NodeFailed,
    NodeJoined,
    NodeLeft,
    NodeSuspected,
    NodeUpdated,
    PartitionDetected,
    PartitionHealed,
)
from mesh.types import AgentInfo, AgentMessage, AgentNode, DeadLetter, NodeStatus
from state.guards.values import Value

_NODE = AgentNode("n1", (7,), "127.0.0.1", 7946, ("work",), NodeStatus.ACTIVE, 5, {"zone": "eu"}, 3)
_AGENT = AgentInfo(7, "n1", ("work",), name="worker")

_EVENTS: dict[str, MeshEvent] = {
    "node_joined": NodeJoined(_NODE),
    "node_left": NodeLeft(_NODE),
    "node_suspected": NodeSuspected(_NODE),
    "node_failed": NodeFailed(_NODE),
    "node_updated": NodeUpdated(_NODE),
    "agent_joined": AgentJoined(_AGENT),
    "agent_left": AgentLeft(_AGENT),
    "partition_detected": PartitionDetected(("n2",), ("n1",)),
    "broadcasts_missed": BroadcastsMissed("n1", 3),
    "partition_healed": PartitionHealed(("n2",), (), ("n1",)),
    "events_lost": EventsLost(4),
}


def test_every_event_has_its_document() -> None:
    """No kind of event is missing here, and so none is missing in the function."""
    assert {type(found) for found in _EVENTS.values()} == set(get_args(MeshEvent))


@pytest.mark.parametrize("name", _EVENTS)
def test_an_event_is_json_under_its_name(name: str) -> None:
    """The document says which event it is, survives JSON unchanged, and carries what the event is about."""
    document = event_document(_EVENTS[name])

    assert document["event"] == name
    assert json.loads(json.dumps(document)) == document
    if name.startswith("node_"):
        assert document["node"]["node_id"] == "n1"
    elif name.startswith("agent_"):
        assert document["agent"]["agent_id"] == 7
    else:
        assert len(document) > 1


def test_a_dead_letter() -> None:
    """Its id is text, which no reader of JSON rounds; its message is shown as any other."""
    letter = DeadLetter(2**60 + 1, "failed", "ValueError: no", 5, 9, False, AgentMessage(1, 7, payload=b"x"))

    document = dead_letter_document(letter)

    assert (document["letter_id"], document["reason"], document["failures"]) == (str(2**60 + 1), "failed", 5)
    assert document["message"]["text"] == "x"


def test_values_of_documents_become_json() -> None:
    """What JSON lacks is an object that says what it is."""
    value: Value = {"a": [1, 1.5, True, None, "x"], "b": b"\xff", "c": float("inf")}
    assert value_document(value) == {
        "a": [1, 1.5, True, None, "x"],
        "b": {"base64": "/w=="},
        "c": {"float": "inf"},
    }
