"""A node without a network, for tests of what commands a running one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from mesh.errors import AgentIdInUse, RequestTimeout, UnknownAgent, UnknownLetter
from mesh.events import MeshEvent, NodeJoined
from mesh.types import AgentInfo, AgentMessage, AgentNode, DeadLetter, DeliveryStatus, MessageType, NodeStatus, Receipt

Handler = Callable[[AgentMessage], Awaitable[bytes | None]]


class FakeRegistration:
    """An agent of a :class:`FakeNode`."""

    def __init__(self, node: FakeNode, agent_id: int) -> None:
        self._node = node
        self._agent_id = agent_id

    @property
    def agent_id(self) -> int:
        return self._agent_id

    async def deregister(self) -> None:
        self._node.handlers.pop(self._agent_id, None)


class FakeSubscription:
    """A subscription of a :class:`FakeNode`."""

    def __init__(self, subscribed: dict[str, dict[str | None, Handler]], group: str) -> None:
        self._subscribed = subscribed
        self._group = group

    async def unsubscribe(self) -> None:
        self._subscribed.pop(self._group, None)


class FakeDocument(dict[str, Any]):
    """A document of a :class:`FakeNode`; one that is named ``alone`` cannot reach its replicas."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.replicas = ["n2"]
        self.saves = 0

    def to_dict(self) -> Mapping[str, Any]:
        return dict(self)

    async def saved(self) -> None:
        self.saves += 1

    async def synced(self, *, timeout: float = 10.0) -> None:
        if self.name == "alone":
            raise TimeoutError


class FakeNode:
    """Does what commands ask for, to itself."""

    def __init__(self, node_id: str = "n1") -> None:
        self.handlers: dict[int, Handler] = {}
        self.subscribed: dict[str, dict[str | None, Handler]] = {}
        self.letters: dict[int, AgentMessage] = {}
        self.shared: dict[str, FakeDocument] = {}
        self.infos: list[AgentInfo] = []
        self.happened: asyncio.Queue[MeshEvent] = asyncio.Queue()
        self.left = 0
        self.registered = threading.Event()  # for tests on other threads
        self.asked: list[str] = []
        self.other = AgentNode("n2", address="10.0.0.2", port=7946, status=NodeStatus.INACTIVE)
        self._node_id = node_id

    @property
    def node(self) -> AgentNode:
        return AgentNode(self._node_id, tuple(self.handlers), "127.0.0.1", 7946, incarnation=1 << 16)

    def members(self) -> Sequence[AgentNode]:
        return [self.other, self.node]

    def agents(self) -> Sequence[AgentInfo]:
        return self.infos

    def stats(self) -> Mapping[str, Any]:
        return {"links": {"open": 1}, "sent": 3}

    async def events(self) -> AsyncIterator[MeshEvent]:
        yield NodeJoined(self.other)
        while True:
            yield await self.happened.get()

    async def register_agent(
        self, agent_id: int, capabilities: Sequence[str] = (), *, name: str = "", handler: Handler | None = None
    ) -> FakeRegistration:
        if agent_id in self.handlers:
            raise AgentIdInUse(f"agent {agent_id} runs already", hint="deregister it first")
        assert handler is not None
        self.handlers[agent_id] = handler
        self.infos.append(AgentInfo(agent_id, self._node_id, tuple(capabilities), name))
        self.registered.set()
        return FakeRegistration(self, agent_id)

    def _message(self, to_agent: int | None, kind: MessageType, payload: bytes, from_agent: int) -> AgentMessage:
        return AgentMessage(from_agent, to_agent, kind, payload, message_id="n1/1/1", from_node=self._node_id)

    def _handler(self, agent_id: int) -> Handler:
        if agent_id not in self.handlers:
            raise UnknownAgent(f"nobody registered agent {agent_id}", hint="`mesh agents` lists them")
        return self.handlers[agent_id]

    async def send(
        self,
        to_agent: int,
        payload: bytes,
        *,
        from_agent: int = 0,
        ack: bool = False,
        durable: bool = False,
        deadline: float | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        message = self._message(to_agent, MessageType.COMMAND, payload, from_agent)
        if durable:
            self.letters[2**60 + len(self.letters)] = message
            return Receipt(f"n1/durable/{deadline}", DeliveryStatus.STORED, self._node_id)
        await self._handler(to_agent)(message)
        return Receipt("n1/1/1", DeliveryStatus.DELIVERED if ack else DeliveryStatus.SENT, self._node_id)

    def dead_letters(self) -> Sequence[DeadLetter]:
        return [
            DeadLetter(letter_id, "failed", "ValueError: no", 5, 9, False, message)
            for letter_id, message in self.letters.items()
        ]

    async def replay(self, letter_id: int, *, deadline: float | None = None, timeout: float | None = None) -> Receipt:
        await self.drop(letter_id)
        return Receipt(f"n1/durable/{deadline}", DeliveryStatus.STORED, self._node_id)

    async def drop(self, letter_id: int) -> None:
        if self.letters.pop(letter_id, None) is None:
            raise UnknownLetter(f"no dead letter {letter_id}")

    async def request(
        self, to_agent: int, payload: bytes, *, from_agent: int = 0, timeout: float | None = None
    ) -> bytes:
        if payload == b"hang":
            await asyncio.sleep(timeout or 0)
            raise RequestTimeout("no answer in time")
        if payload == b"bug":
            raise ZeroDivisionError("inside")
        reply = await self._handler(to_agent)(self._message(to_agent, MessageType.QUERY, payload, from_agent))
        return reply or b""

    async def stream(
        self, to_agent: int, payload: bytes, *, from_agent: int = 0, idle_timeout: float | None = None
    ) -> AsyncGenerator[bytes, None]:
        try:
            for part in payload.split():
                yield part
                self.asked.append(part.decode())
            if payload == b"hang":
                await asyncio.sleep(3600 if idle_timeout is None else idle_timeout)
                raise RequestTimeout("no further part in time")
        finally:
            self.asked.append("closed")

    async def broadcast_message(self, payload: bytes, *, from_agent: int = 0) -> Receipt:
        for handler in list(self.handlers.values()):
            await handler(self._message(None, MessageType.BROADCAST, payload, from_agent))
        return Receipt("n1/1/2", DeliveryStatus.SENT, "", nodes=1)

    async def publish(
        self, group: str, payload: bytes, *, from_agent: int = 0, timeout: float | None = None
    ) -> Receipt:
        for handler in list(self.subscribed.get(group, {}).values()):
            await handler(self._message(None, MessageType.BROADCAST, payload, from_agent))
        return Receipt("n1/1/3", DeliveryStatus.SENT, "", nodes=len(self.subscribed.get(group, ())))

    async def subscribe(
        self, group: str, handler: Handler | None = None, *, queue: str | None = None
    ) -> FakeSubscription:
        assert handler is not None
        self.subscribed.setdefault(group, {})[queue] = handler
        self.registered.set()
        return FakeSubscription(self.subscribed, group)

    def documents(self) -> Sequence[str]:
        return sorted(self.shared)

    async def document(self, name: str) -> FakeDocument:
        return self.shared.setdefault(name, FakeDocument(name))

    async def invite(self, *, ttl_s: float = 600.0, uses: int = 1) -> str:
        return f"pm1.{ttl_s:g}.{uses}"

    async def leave_network(self, *, timeout_s: float = 5.0) -> None:
        self.left += 1
