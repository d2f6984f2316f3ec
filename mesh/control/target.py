"""What the control server needs of a running node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from mesh.events import MeshEvent
from mesh.types import AgentInfo, AgentMessage, AgentNode, DeadLetter, Receipt
from state.guards.values import Value


class Registration(Protocol):
    """A registered agent."""

    @property
    def agent_id(self) -> int:
        """Its id."""
        ...

    async def deregister(self) -> None:
        """Take it away again."""
        ...


class Parts(Protocol):
    """An answer in parts."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None:
        """Give up what has not come."""
        ...


class Ending(Protocol):
    """A subscription."""

    async def unsubscribe(self) -> None:
        """Hear no more."""
        ...


class ControlDocument(Protocol):
    """The part of :class:`mesh.SharedDocument` that commands use; see there for what each does."""

    @property
    def replicas(self) -> Sequence[str]:
        """The other nodes that replicate it."""
        ...

    def __setitem__(self, key: str, value: Value, /) -> None: ...

    def __delitem__(self, key: str, /) -> None: ...

    def to_dict(self) -> Mapping[str, Value]:
        """A copy of its own map."""
        ...

    async def saved(self) -> None:
        """Return when everything written is on disk."""
        ...

    async def synced(self, *, timeout: float = 10.0) -> None:
        """Return when it has what others have."""
        ...


class ControlTarget(Protocol):
    """The part of :class:`mesh.AgentNetworkManager` that commands use; see there for what each does."""

    @property
    def node(self) -> AgentNode:
        """This node."""
        ...

    def members(self) -> Sequence[AgentNode]:
        """All nodes, as this one knows them."""
        ...

    def agents(self) -> Sequence[AgentInfo]:
        """All agents, as this node knows them."""
        ...

    def stats(self) -> Mapping[str, Any]:
        """Counters and latencies."""
        ...

    def events(self) -> AsyncIterator[MeshEvent]:
        """What happens from now on."""
        ...

    async def register_agent(
        self,
        agent_id: int,
        capabilities: Sequence[str] = (),
        *,
        name: str = "",
        handler: Callable[[AgentMessage], Awaitable[bytes | None]] | None = None,
    ) -> Registration:
        """Run an agent here."""
        ...

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
        """Send one message."""
        ...

    def dead_letters(self) -> Sequence[DeadLetter]:
        """Durable messages of this node that were given up."""
        ...

    async def replay(self, letter_id: int, *, deadline: float | None = None, timeout: float | None = None) -> Receipt:
        """Send one of them once more."""
        ...

    async def drop(self, letter_id: int) -> None:
        """Forget one of them."""
        ...

    async def request(
        self, to_agent: int, payload: bytes, *, from_agent: int = 0, timeout: float | None = None
    ) -> bytes:
        """Send a query and wait for its response."""
        ...

    def stream(self, to_agent: int, payload: bytes, *, from_agent: int = 0, idle_timeout: float | None = None) -> Parts:
        """Send a query whose answer comes in parts."""
        ...

    async def broadcast_message(self, payload: bytes, *, from_agent: int = 0) -> Receipt:
        """Send to every agent of every node."""
        ...

    async def publish(
        self, group: str, payload: bytes, *, from_agent: int = 0, timeout: float | None = None
    ) -> Receipt:
        """Send to the subscribers of a group."""
        ...

    async def subscribe(
        self,
        group: str,
        handler: Callable[[AgentMessage], Awaitable[bytes | None]] | None = None,
        *,
        queue: str | None = None,
    ) -> Ending:
        """Hear what is published to a group."""
        ...

    def documents(self) -> Sequence[str]:
        """The documents that are open here."""
        ...

    async def document(self, name: str) -> ControlDocument:
        """Open one."""
        ...

    async def invite(self, *, ttl_s: float = 600.0, uses: int = 1) -> str:
        """Make a join token."""
        ...

    async def leave_network(self, *, timeout_s: float = 5.0) -> None:
        """Leave in order."""
        ...
