"""What users see, as JSON: nodes, agents, messages, receipts, events.  The shapes are promises (docs/cli.md)."""
# core: no I/O

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any, assert_never

from mesh.errors import InvalidMessage
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
from mesh.types import AgentInfo, AgentMessage, AgentNode, DeadLetter, Receipt
from state.guards.values import Value

Json = dict[str, Any]


def node_document(node: AgentNode) -> Json:
    """A node."""
    return {
        "node_id": node.node_id,
        "status": node.status.value,
        "address": node.address,
        "port": node.port,
        "agent_ids": list(node.agent_ids),
        "capabilities": list(node.capabilities),
        "last_heartbeat": node.last_heartbeat,
        "incarnation": node.incarnation,
        "metadata": dict(node.metadata),
    }


def agent_document(agent: AgentInfo) -> Json:
    """An agent."""
    return {
        "agent_id": agent.agent_id,
        "node_id": agent.node_id,
        "name": agent.name,
        "capabilities": list(agent.capabilities),
        "tags": list(agent.tags),
        "version": agent.version,
        "metadata": dict(agent.metadata),
    }


def value_document(value: Value) -> Any:
    """A document's value: what JSON does not have is an object of one key, ``base64`` or ``float``."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, Mapping):
        return {key: value_document(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [value_document(item) for item in value]
    return value


def receipt_document(receipt: Receipt) -> Json:
    """What became of a sent message."""
    return {
        "message_id": receipt.message_id,
        "status": receipt.status.value,
        "node_id": receipt.node_id,
        "nodes": receipt.nodes,
    }


def dead_letter_document(letter: DeadLetter) -> Json:
    """A durable message that was given up.  Its id is text: it is beyond what a JSON number holds exactly."""
    return {
        "letter_id": str(letter.letter_id),
        "reason": letter.reason,
        "detail": letter.detail,
        "failures": letter.failures,
        "died_at": letter.died_at,
        "is_uncertain": letter.is_uncertain,
        "message": message_document(letter.message),
    }


def message_document(message: AgentMessage) -> Json:
    """A received message; its payload as in :func:`payload_document`."""
    return {
        "message_id": message.message_id,
        "from_agent": message.from_agent,
        "to_agent": message.to_agent,
        "from_node": message.from_node,
        "message_type": message.message_type.name.lower(),
        "priority": message.priority.name.lower(),
        "timestamp": message.timestamp,
        "ttl": message.ttl,
        "group": message.group,
        "headers": dict(message.headers),
        **payload_document(message.payload),
    }


def payload_document(payload: bytes) -> Json:
    """``text`` if the bytes are UTF-8, ``base64`` if they are not."""
    try:
        return {"text": payload.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(payload).decode("ascii")}


def payload_bytes(document: Json) -> bytes:
    """The inverse of :func:`payload_document`.

    Raises:
        InvalidMessage: There is neither ``text`` nor valid ``base64``.
    """
    text, encoded = document.get("text"), document.get("base64")
    if isinstance(text, str):
        return text.encode("utf-8", "surrogateescape")
    if isinstance(encoded, str):
        try:
            return base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidMessage("the payload is not valid base64") from error
    raise InvalidMessage("the payload is missing")


def event_document(event: MeshEvent) -> Json:
    """An event: its name under ``event``, then what it is about."""
    match event:
        case NodeJoined(node):
            return {"event": "node_joined", "node": node_document(node)}
        case NodeLeft(node):
            return {"event": "node_left", "node": node_document(node)}
        case NodeSuspected(node):
            return {"event": "node_suspected", "node": node_document(node)}
        case NodeFailed(node):
            return {"event": "node_failed", "node": node_document(node)}
        case NodeUpdated(node):
            return {"event": "node_updated", "node": node_document(node)}
        case AgentJoined(agent):
            return {"event": "agent_joined", "agent": agent_document(agent)}
        case AgentLeft(agent):
            return {"event": "agent_left", "agent": agent_document(agent)}
        case PartitionDetected(lost, present):
            return {"event": "partition_detected", "lost": list(lost), "present": list(present)}
        case PartitionHealed(returned, missing, present):
            return {
                "event": "partition_healed",
                "returned": list(returned),
                "missing": list(missing),
                "present": list(present),
            }
        case BroadcastsMissed(node_id, count):
            return {"event": "broadcasts_missed", "node_id": node_id, "count": count}
        case EventsLost(count):
            return {"event": "events_lost", "count": count}
        case _:
            assert_never(event)
