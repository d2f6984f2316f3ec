"""The link from a node to itself, so that messages between its own agents take the same path as all others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from transport.link import CloseReason, Link, PeerInfo, SendOutcome
from transport.types import Address, Lane, NodeId
from transport.wire import Envelope

from .moves import FEATURE as MOVES
from .streams import FEATURE


class LoopbackLink:
    """A link whose other end is this node; what is sent arrives in the loop's next turn."""

    def __init__(self, node_id: str, incarnation: int, receive: Callable[[Link, Sequence[Envelope]], None]) -> None:
        self.peer = PeerInfo(NodeId(node_id), incarnation, (), (1, 0), {FEATURE: True, MOVES: True})
        self.dialled = True
        self.is_relayed = False
        self.remote_address = Address("localhost", 0)
        self.is_open = True
        self.rtt_s: float | None = 0.0
        self._receive = receive
        self._waiting: list[Envelope] = []

    @property
    def queued(self) -> int:
        """See :class:`transport.link.Link`."""
        return len(self._waiting)

    def send(self, envelope: Envelope, lane: Lane, *, key: str | None = None) -> SendOutcome:  # noqa: ARG002 - protocol
        """See :meth:`transport.link.Link.send`.  Never full: credit bounds what agents send each other."""
        if not self.is_open:
            return SendOutcome.CLOSED
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._arrive)
        self._waiting.append(envelope)
        return SendOutcome.ACCEPTED

    def _arrive(self) -> None:
        envelopes, self._waiting = self._waiting, []
        if self.is_open:
            self._receive(self, envelopes)

    def ask_turn(self, fill: Callable[[], None]) -> bool:  # noqa: ARG002 - protocol
        """See :meth:`transport.link.Link.ask_turn`: there is no sender here to ask."""
        return False

    async def wait_writable(self, lane: Lane) -> None:
        """See :meth:`transport.link.Link.wait_writable`; returns at once."""

    def close(self, reason: CloseReason = CloseReason.NORMAL, detail: str = "") -> None:  # noqa: ARG002 - protocol
        """See :meth:`transport.link.Link.close`."""
        self.is_open = False

    def statistics(self) -> dict[str, int | float]:
        """See :meth:`transport.link.Link.statistics`."""
        return {"waiting": len(self._waiting)}
