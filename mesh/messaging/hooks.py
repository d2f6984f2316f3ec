"""What a courier asks of others that it does not know: who they are is decided where a node is put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mesh.agents import Delivery
from mesh.types import AgentMessage, Priority

from .body import Message, Settled
from .dialogue import IncomingFlow


class DurableMessages(Protocol):
    """Who keeps what must outlive this process; :class:`mesh.messaging.durable.DurableCourier`."""

    def received(self, flow: IncomingFlow, message: Message, seen: AgentMessage, cost: int) -> None:
        """A durable message arrived for an agent of this node."""
        ...

    def refused(self, flow: IncomingFlow, message: Message, priority: Priority) -> None:
        """One arrived for an agent that is not here."""
        ...

    def handled(self, delivery: Delivery) -> None:
        """Its agent has handled it."""
        ...

    def raised(self, delivery: Delivery, error: BaseException) -> None:
        """Its agent's handler raised."""
        ...

    def dropped(self, delivery: Delivery) -> None:
        """Its agent was stopped before it had handled it."""
        ...

    def settled(self, node_id: str, entries: Sequence[Settled]) -> None:
        """A peer says what became of messages of ours."""
        ...

    def is_waiting_for(self, node_id: str) -> bool:
        """Whether a node is to say what became of messages of ours."""
        ...

    def link_closed(self, node_id: str) -> None:
        """There is no link to that node any more."""
        ...

    def news(self) -> None:
        """Links or agents' places changed."""
        ...

    async def drain(self) -> None:
        """The node leaves and its agents have been stopped: finish what is under way."""
        ...

    def statistics(self) -> dict[str, int]:
        """Counters since the start, and what waits now."""
        ...
