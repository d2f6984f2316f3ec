"""peermesh: a peer-to-peer mesh for software agents.

::

    from mesh import join_network

    async with join_network() as net:
        await net.register_agent(42, ["summarize"], handler=handle)
        reply = await net.request(7, b"hello", from_agent=42)

This package is the public one; ``transport``, ``gossip``, ``state`` and ``chaos`` are internal.  Names are imported
when they are first used, so that ``mesh version`` need not load a TLS stack.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .agents import AgentHandle, Handler
    from .config import MeshConfig
    from .documents.shared import (
        ArrayContainer,
        Change,
        ChangesLost,
        Counter,
        DocumentEvent,
        MapContainer,
        Register,
        SetContainer,
        SharedDocument,
        TextContainer,
        Value,
    )
    from .errors import (
        AgentError,
        AgentIdInUse,
        ConfigError,
        ConsistencyUnsupported,
        DeliveryError,
        DeliveryTimeout,
        DeliveryUncertain,
        IdentityError,
        InvalidMessage,
        MeshError,
        NetworkClosed,
        NotDelivered,
        OutboxFull,
        PayloadTooLarge,
        RegistrationTooLarge,
        RemoteError,
        RequestTimeout,
        StateError,
        StorageError,
        StorageFull,
        StreamExpected,
        StreamsUnsupported,
        Superseded,
        TokenError,
        TransactionConflict,
        TransactionTooLarge,
        TransportError,
        UnknownAgent,
        UnknownKey,
        UnknownLetter,
        UnknownNode,
        UnknownState,
        ValueRefused,
    )
    from .events import (
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
    from .join import Joining, join_network
    from .manager import AgentNetworkManager
    from .messaging.deadlines import remaining_s, without_deadline
    from .messaging.groups import Subscription
    from .messaging.replies import ReplyStream
    from .types import (
        AgentInfo,
        AgentMessage,
        AgentNode,
        ConsistencyLevel,
        DeadLetter,
        DeliveryStatus,
        DistributedState,
        MessageType,
        NodeStatus,
        Priority,
        Receipt,
    )

    __version__: str

__all__ = [
    "AgentError",
    "AgentHandle",
    "AgentIdInUse",
    "AgentInfo",
    "AgentJoined",
    "AgentLeft",
    "AgentMessage",
    "AgentNetworkManager",
    "AgentNode",
    "ArrayContainer",
    "BroadcastsMissed",
    "Change",
    "ChangesLost",
    "ConfigError",
    "ConsistencyLevel",
    "ConsistencyUnsupported",
    "Counter",
    "DeadLetter",
    "DeliveryError",
    "DeliveryStatus",
    "DeliveryTimeout",
    "DeliveryUncertain",
    "DistributedState",
    "DocumentEvent",
    "EventsLost",
    "Handler",
    "IdentityError",
    "InvalidMessage",
    "Joining",
    "MapContainer",
    "MeshConfig",
    "MeshError",
    "MeshEvent",
    "MessageType",
    "NetworkClosed",
    "NodeFailed",
    "NodeJoined",
    "NodeLeft",
    "NodeStatus",
    "NodeSuspected",
    "NodeUpdated",
    "NotDelivered",
    "OutboxFull",
    "PartitionDetected",
    "PartitionHealed",
    "PayloadTooLarge",
    "Priority",
    "Receipt",
    "Register",
    "RegistrationTooLarge",
    "RemoteError",
    "ReplyStream",
    "RequestTimeout",
    "SetContainer",
    "SharedDocument",
    "StateError",
    "StorageError",
    "StorageFull",
    "StreamExpected",
    "StreamsUnsupported",
    "Subscription",
    "Superseded",
    "TextContainer",
    "TokenError",
    "TransactionConflict",
    "TransactionTooLarge",
    "TransportError",
    "UnknownAgent",
    "UnknownKey",
    "UnknownLetter",
    "UnknownNode",
    "UnknownState",
    "Value",
    "ValueRefused",
    "__version__",
    "join_network",
    "remaining_s",
    "without_deadline",
]

_HOMES = {
    "agents": ("AgentHandle", "Handler"),
    "config": ("MeshConfig",),
    "documents.shared": (
        *("ArrayContainer", "Change", "ChangesLost", "Counter", "DocumentEvent", "MapContainer", "Register"),
        *("SetContainer", "SharedDocument", "TextContainer", "Value"),
    ),
    "errors": (
        *("AgentError", "AgentIdInUse", "ConfigError", "DeliveryError", "DeliveryTimeout", "DeliveryUncertain"),
        *(
            "IdentityError",
            "InvalidMessage",
            "MeshError",
            "NetworkClosed",
            "NotDelivered",
            "OutboxFull",
            "PayloadTooLarge",
        ),
        *(
            "RegistrationTooLarge",
            "RemoteError",
            "RequestTimeout",
            "StorageError",
            "StorageFull",
            "StreamExpected",
            "StreamsUnsupported",
            "Superseded",
            "TokenError",
        ),
        *("TransportError", "UnknownAgent", "UnknownLetter", "UnknownNode", "UnknownState", "ValueRefused"),
        *("ConsistencyUnsupported", "UnknownKey", "StateError", "TransactionConflict", "TransactionTooLarge"),
    ),
    "events": (
        *("AgentJoined", "AgentLeft", "BroadcastsMissed", "EventsLost", "MeshEvent", "NodeFailed", "NodeJoined"),
        *("NodeLeft", "NodeSuspected", "NodeUpdated", "PartitionDetected", "PartitionHealed"),
    ),
    "join": ("Joining", "join_network"),
    "manager": ("AgentNetworkManager",),
    "messaging.deadlines": ("remaining_s", "without_deadline"),
    "messaging.groups": ("Subscription",),
    "messaging.replies": ("ReplyStream",),
    "types": (
        *("AgentInfo", "AgentMessage", "AgentNode", "DeadLetter", "DeliveryStatus", "MessageType", "NodeStatus"),
        *("ConsistencyLevel", "DistributedState", "Priority", "Receipt"),
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("peermesh")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'mesh' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _refuse_strangers() -> None:
    """Say in one sentence that another distribution's package stands in the place of one of ours."""
    ours = Path(__file__).parent.parent
    for name in ("transport", "gossip", "state"):
        spec = importlib.util.find_spec(name)
        places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
        if not any(place.parent == ours for place in places):
            found = places[0] if places else "nothing"
            raise ImportError(
                f"peermesh needs its own package {name!r} ({ours / name}) but Python finds {found}; "
                "uninstall the distribution that owns it, or install peermesh in an environment of its own"
            )


_refuse_strangers()
