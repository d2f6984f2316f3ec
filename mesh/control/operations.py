"""What each control request does with the node: arguments checked, answers as plain JSON values.

A new command is one method here, one line in :data:`CALLS` or :data:`STREAMS`, and one in ``mesh/cli``.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

from mesh.errors import InvalidMessage, UnknownKey
from mesh.types import AgentInfo, AgentMessage, MessageType
from state.guards.values import Value

from .target import ControlDocument, ControlTarget
from .values import (
    Json,
    agent_document,
    dead_letter_document,
    event_document,
    message_document,
    node_document,
    payload_bytes,
    payload_document,
    receipt_document,
    value_document,
)

#: Messages received by one `mesh listen` that its client has not read yet.  Beyond it the handler waits, and so
#: in the end does the sender: that is the backpressure every agent has.
LISTEN_MESSAGES_MAX: Final = 1_000

#: Ids that `mesh listen` without --agent takes: above any that people choose, and inside 53 bits for JSON.
_TEMPORARY_AGENT_BASE: Final = 1 << 48

_AGENT_ID_MAX: Final = (1 << 64) - 1

_LETTER_DIGITS_MAX: Final = 20


class Arguments:
    """The arguments of one request, each read once with its type and bounds."""

    def __init__(self, values: Mapping[str, Any], timeout_s: float) -> None:
        self._values = values
        self.timeout_s = timeout_s

    def payload(self) -> bytes:
        """The content to send."""
        return payload_bytes(dict(self._values))

    def agent(self, key: str) -> int:
        """An agent id that must be given."""
        return self._integer(key, None, 0, _AGENT_ID_MAX)

    def agent_or(self, key: str, default: int) -> int:
        """An agent id that may be given."""
        return self._integer(key, default, 0, _AGENT_ID_MAX)

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """A whole number within bounds."""
        return self._integer(key, default, low, high)

    def seconds(self, key: str, default: float, low: float, high: float) -> float:
        """A duration within bounds."""
        value = self._values.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise InvalidMessage(f"{key} must be between {low:g} and {high:g} seconds, not {value!r}")
        return float(value)

    def seconds_or_none(self, key: str) -> float | None:
        """A duration that may be given; its bounds are the node's business."""
        value = self._values.get(key)
        return None if value is None else self.seconds(key, 0.0, 0.0, math.inf)

    def letter(self) -> int:
        """The id of a dead letter, as text: it is beyond what a JSON number holds exactly."""
        text = self.text("letter") or ""
        if not text.isascii() or not text.isdigit() or len(text) > _LETTER_DIGITS_MAX:
            raise InvalidMessage(f"letter must be the id of a dead letter, not {text!r}")
        return int(text)

    def flag(self, key: str) -> bool:
        """A yes or no; no if not given."""
        return self._values.get(key) is True

    def text(self, key: str) -> str | None:
        """A text; ``None`` if not given."""
        value = self._values.get(key)
        if value is not None and not isinstance(value, str):
            raise InvalidMessage(f"{key} must be text, not {value!r}")
        return value

    def value(self, key: str) -> Value:
        """Any value of JSON."""
        value: Value = self._values.get(key)
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Several texts; empty if not given."""
        value = self._values.get(key) or ()
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise InvalidMessage(f"{key} must be a list of texts, not {value!r}")
        return tuple(value)

    def _integer(self, key: str, default: int | None, low: int, high: int) -> int:
        value = self._values.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidMessage(f"{key} must be a whole number between {low} and {high}, not {value!r}")
        return value


async def _ping(target: ControlTarget, arguments: Arguments) -> Json:
    del arguments
    return {"node_id": target.node.node_id, "pid": os.getpid()}


async def _members(target: ControlTarget, arguments: Arguments) -> list[Json]:
    del arguments
    return [node_document(node) for node in sorted(target.members(), key=lambda node: node.node_id)]


async def _agents(target: ControlTarget, arguments: Arguments) -> list[Json]:
    capabilities, tags, name = arguments.texts("capabilities"), arguments.texts("tags"), arguments.text("name")

    def wanted(agent: AgentInfo) -> bool:
        return (
            all(capability in agent.capabilities for capability in capabilities)
            and all(tag in agent.tags for tag in tags)
            and (name is None or agent.name == name)
        )

    return [agent_document(agent) for agent in sorted(target.agents(), key=lambda a: a.agent_id) if wanted(agent)]


async def _status(target: ControlTarget, arguments: Arguments) -> Json:
    del arguments
    members = target.members()
    counts: dict[str, int] = {}
    for node in members:
        counts[node.status.value] = counts.get(node.status.value, 0) + 1
    return {
        "node": node_document(target.node),
        "pid": os.getpid(),
        "nodes": dict(sorted(counts.items())),
        "agents": len(target.agents()),
        "stats": dict(target.stats()),
    }


async def _send(target: ControlTarget, arguments: Arguments) -> Json:
    receipt = await target.send(
        arguments.agent("agent"),
        arguments.payload(),
        from_agent=arguments.agent_or("from_agent", 0),
        ack=arguments.flag("ack"),
        durable=arguments.flag("durable"),
        deadline=arguments.seconds_or_none("deadline_s"),
        timeout=arguments.timeout_s,
    )
    return receipt_document(receipt)


async def _dead_letters(target: ControlTarget, arguments: Arguments) -> AsyncIterator[Json]:
    """A stream, because all of them would not fit a line."""
    del arguments
    for letter in target.dead_letters():
        yield dead_letter_document(letter)


async def _replay(target: ControlTarget, arguments: Arguments) -> Json:
    receipt = await target.replay(
        arguments.letter(), deadline=arguments.seconds_or_none("deadline_s"), timeout=arguments.timeout_s
    )
    return receipt_document(receipt)


async def _drop(target: ControlTarget, arguments: Arguments) -> Json:
    letter_id = arguments.letter()
    await target.drop(letter_id)
    return {"dropped": str(letter_id)}


async def _request(target: ControlTarget, arguments: Arguments) -> Json:
    agent = arguments.agent("agent")
    reply = await target.request(
        agent, arguments.payload(), from_agent=arguments.agent_or("from_agent", 0), timeout=arguments.timeout_s
    )
    return {"agent_id": agent, **payload_document(reply)}


async def _request_parts(target: ControlTarget, arguments: Arguments) -> AsyncIterator[Json]:
    """A stream of its own, so that a client that goes away gives it up."""
    agent = arguments.agent("agent")
    parts = target.stream(
        agent,
        arguments.payload(),
        from_agent=arguments.agent_or("from_agent", 0),
        idle_timeout=arguments.seconds_or_none("idle_s"),
    )
    async with contextlib.aclosing(parts):
        async for part in parts:
            yield {"agent_id": agent, **payload_document(part)}


async def _broadcast(target: ControlTarget, arguments: Arguments) -> Json:
    receipt = await target.broadcast_message(arguments.payload(), from_agent=arguments.agent_or("from_agent", 0))
    return receipt_document(receipt)


async def _publish(target: ControlTarget, arguments: Arguments) -> Json:
    receipt = await target.publish(
        arguments.text("group") or "",
        arguments.payload(),
        from_agent=arguments.agent_or("from_agent", 0),
        timeout=arguments.timeout_s,
    )
    return receipt_document(receipt)


async def _documents(target: ControlTarget, arguments: Arguments) -> list[Json]:
    del arguments
    return [_document_shown(name, await target.document(name)) for name in target.documents()]


async def _document_get(target: ControlTarget, arguments: Arguments) -> Json:
    name, key, document = await _document(target, arguments)
    content = document.to_dict()
    if key is None:
        values = {key: value_document(value) for key, value in content.items()}
        return {**_document_shown(name, document), "values": values}
    if key not in content:
        raise UnknownKey(f"document {name!r} has no key {key!r}")
    return {"document": name, "key": key, "value": value_document(content[key])}


async def _document_set(target: ControlTarget, arguments: Arguments) -> Json:
    name, key, document = await _document(target, arguments)
    value = arguments.value("value")
    document[key or ""] = value
    await document.saved()
    return {"document": name, "key": key or "", "value": value_document(value)}


async def _document_delete(target: ControlTarget, arguments: Arguments) -> Json:
    name, key, document = await _document(target, arguments)
    try:
        del document[key or ""]
    except KeyError:
        raise UnknownKey(f"document {name!r} has no key {key!r}") from None
    await document.saved()
    return {"document": name, "key": key or ""}


async def _document(target: ControlTarget, arguments: Arguments) -> tuple[str, str | None, ControlDocument]:
    """The document that is meant, with what other nodes have, if they can be reached in time."""
    name = arguments.text("document") or ""
    document = await target.document(name)
    with contextlib.suppress(TimeoutError):
        await document.synced(timeout=arguments.timeout_s)
    return name, arguments.text("key"), document


def _document_shown(name: str, document: ControlDocument) -> Json:
    return {"document": name, "entries": len(document.to_dict()), "replicas": list(document.replicas)}


async def _invite(target: ControlTarget, arguments: Arguments) -> Json:
    ttl_s = arguments.seconds("ttl_s", 600.0, 1.0, 30 * 86_400.0)
    uses = arguments.integer("uses", 1, 1, 10_000)
    return {"token": await target.invite(ttl_s=ttl_s, uses=uses), "ttl_s": ttl_s, "uses": uses}


async def _events(target: ControlTarget, arguments: Arguments) -> AsyncIterator[Json]:
    del arguments
    async for event in target.events():
        yield event_document(event)


async def _listen(target: ControlTarget, arguments: Arguments) -> AsyncIterator[Json]:
    """Run a temporary agent, or subscribe; the first item says to what, the others are what was received."""
    agent_id = arguments.agent_or("agent", 0) or _temporary_agent_id(target)
    reply = arguments.text("reply")
    waiting: asyncio.Queue[AgentMessage] = asyncio.Queue(LISTEN_MESSAGES_MAX)

    async def receive(message: AgentMessage) -> bytes | None:
        await waiting.put(message)
        answers = message.message_type is MessageType.QUERY and reply is not None
        return reply.encode("utf-8", "surrogateescape") if answers and reply is not None else None

    group = arguments.text("group")
    if group is not None:
        subscription = await target.subscribe(group, receive, queue=arguments.text("queue"))
        end = subscription.unsubscribe
    else:
        registration = await target.register_agent(
            agent_id, arguments.texts("capabilities"), name=arguments.text("name") or "", handler=receive
        )
        end = registration.deregister
    try:
        yield {"listening": agent_id if group is None else group, "node_id": target.node.node_id}
        while True:
            yield message_document(await waiting.get())
    finally:
        await end()


def _temporary_agent_id(target: ControlTarget) -> int:
    """An id that is free on this node and that no other node takes for itself."""
    node = target.node
    own = set(node.agent_ids)
    # The incarnation differs between nodes that started at different times; the process id between the others.
    candidate = _TEMPORARY_AGENT_BASE + (hash((node.node_id, node.incarnation, os.getpid())) & 0xFFFF_FFFF)
    while candidate in own:
        candidate += 1
    return candidate


Call = Callable[[ControlTarget, Arguments], Awaitable[Any]]
Stream = Callable[[ControlTarget, Arguments], AsyncIterator[Json]]

#: Requests with one answer.  ``leave`` is the server's own, because the socket goes with the node.
CALLS: Final[Mapping[str, Call]] = {
    "ping": _ping,
    "members": _members,
    "agents": _agents,
    "status": _status,
    "send": _send,
    "request": _request,
    "broadcast": _broadcast,
    "publish": _publish,
    "invite": _invite,
    "documents": _documents,
    "document_get": _document_get,
    "document_set": _document_set,
    "document_delete": _document_delete,
    "replay": _replay,
    "drop": _drop,
}

#: Requests with answers until the client goes away.
STREAMS: Final[Mapping[str, Stream]] = {
    "events": _events,
    "listen": _listen,
    "dead_letters": _dead_letters,
    "request_parts": _request_parts,
}
