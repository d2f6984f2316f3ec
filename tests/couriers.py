"""Couriers linked in memory: whole nodes' messaging without sockets, for tests of ``mesh.messaging`` and agents."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol

from gossip.service import BroadcastOutcome
from mesh.agents import Handler, LocalAgent
from mesh.messaging.courier import Courier
from mesh.messaging.moves import MovesConfig
from mesh.messaging.parcel import Parcel
from mesh.messaging.streams import FEATURE
from mesh.types import AgentInfo, AgentMessage, MessageType
from transport.errors import LinkClosed, RemoteProtocolError
from transport.link import CloseReason, Link, PeerInfo, SendOutcome
from transport.types import Address, Lane, NodeId, Priority
from transport.wire import Envelope, check_sendable

WALL_S = 1_700_000_000.0


class FixedClock:
    """A clock whose hands the test moves."""

    def __init__(self) -> None:
        self.monotonic_s = 0.0
        self.wall_s = WALL_S

    def monotonic(self) -> float:
        """See :class:`transport.clock.Clock`."""
        return self.monotonic_s

    def wall(self) -> float:
        """See :class:`transport.clock.Clock`."""
        return self.wall_s


class Owner(Protocol):
    """Whose link it is."""

    def envelopes_received(self, link: Link, envelopes: Sequence[Envelope]) -> None:
        """See :class:`transport.link.LinkHandler`."""
        ...

    def link_closed(self, link: Link, reason: CloseReason, detail: str) -> None:
        """See :class:`transport.link.LinkHandler`."""
        ...


class FakeLink:
    """One end of a link in memory.  ``held`` stops what it sends on the way; ``capacity`` makes it full."""

    def __init__(self, peer: str, capacity: int, features: Sequence[str] = (FEATURE,)) -> None:
        self.peer = PeerInfo(NodeId(peer), 1 << 16, (), (1, 0), dict.fromkeys(features, True))
        self.dialled = True
        self.is_relayed = False
        self.remote_address = Address("localhost", 1)
        self.is_open = True
        self.rtt_s: float | None = None
        self.capacity = capacity
        self.held = False
        self.refusal: RemoteProtocolError | None = None
        self.closed_as: CloseReason | None = None
        self.kinds_sent: list[int] = []
        self._queue: list[Envelope] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._pumping = False
        self.other: FakeLink
        self.owner: Owner

    @property
    def queued(self) -> int:
        """See :class:`transport.link.Link`."""
        return len(self._queue)

    def send(self, envelope: Envelope, lane: Lane, *, key: str | None = None) -> SendOutcome:
        """See :class:`transport.link.Link`; the control lane is never full, as in practice."""
        if not self.is_open:
            return SendOutcome.CLOSED
        check_sendable(envelope)
        if len(self._queue) >= self.capacity and lane is not Lane.CONTROL:
            return SendOutcome.FULL
        self.kinds_sent.append(envelope.kind)
        self._queue.append(envelope)
        self._schedule()
        return SendOutcome.ACCEPTED

    def _schedule(self) -> None:
        if not self._pumping and not self.held:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        if self.held:
            return
        envelopes, self._queue = self._queue, []
        if envelopes and self.is_open:
            self.other.receive(envelopes)
        self._wake()

    def receive(self, envelopes: Sequence[Envelope]) -> None:
        """Hand what arrived to the courier; a refusal breaks the link, as in the transport."""
        try:
            self.owner.envelopes_received(self, envelopes)
        except RemoteProtocolError as error:
            self.refusal = error
            self.cut(CloseReason.PROTOCOL_ERROR)

    def hold(self) -> None:
        """Let nothing through until :meth:`release`."""
        self.held = True

    def release(self) -> None:
        """Let everything through again."""
        self.held = False
        self._schedule()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def ask_turn(self, fill: Callable[[], None]) -> bool:
        """See :class:`transport.link.Link`: this one has no sender of its own."""
        return False

    async def wait_writable(self, lane: Lane) -> None:
        """See :class:`transport.link.Link`."""
        while self.is_open and len(self._queue) >= self.capacity:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future
        if not self.is_open:
            raise LinkClosed("closed")

    def close(self, reason: CloseReason = CloseReason.NORMAL, detail: str = "") -> None:
        """See :class:`transport.link.Link`: from now on nothing is taken; the end is told later."""
        if self.is_open:
            self.is_open = False
            self.closed_as = reason
            asyncio.get_running_loop().call_soon(self._end_both, reason, detail)

    def cut(self, reason: CloseReason = CloseReason.CONNECTION_LOST, detail: str = "") -> None:
        """Break the link now, at both ends."""
        self.is_open = False
        self.closed_as = reason
        self._end_both(reason, detail)

    def _end_both(self, reason: CloseReason, detail: str) -> None:
        for end in (self, self.other):
            end.is_open = False
            end._queue.clear()
            end._wake()
            end.owner.link_closed(end, reason, detail)

    def statistics(self) -> dict[str, int | float]:
        """See :class:`transport.link.Link`."""
        return {}


def link_pair(
    a: str, b: str, owner_a: Owner, owner_b: Owner, *, capacity: int = 1_000, features: Sequence[str] = (FEATURE,)
) -> tuple[FakeLink, FakeLink]:
    """Both ends of a link, the one at ``a`` first; nobody is told yet."""
    here, there = FakeLink(b, capacity, features), FakeLink(a, capacity, features)
    here.other, there.other = there, here
    here.owner, there.owner = owner_a, owner_b
    return here, there


class World:
    """Several nodes' couriers, agents placed by the test, and links between them."""

    def __init__(
        self,
        *names: str,
        window_bytes: int = 1 << 20,
        capacity: int = 1_000,
        features: Sequence[str] = (FEATURE,),
        moves: MovesConfig | None = None,
    ) -> None:
        self._features = features
        self._moves = moves or MovesConfig()
        self.places: dict[int, str] = {}
        self.clock = FixedClock()
        self.capacity = capacity
        self.broadcasts: list[tuple[str, bytes, int]] = []
        self.couriers: dict[str, Courier] = {}
        self.links: dict[tuple[str, str], FakeLink] = {}
        self._names = names or ("a", "b")
        self._window_bytes = window_bytes

    async def __aenter__(self) -> World:
        for name in self._names:
            self.couriers[name] = self.make_courier(name)
        for name in self._names:
            for other in self._names:
                if name < other:
                    self.link(name, other)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for courier in self.couriers.values():
            await courier.close()

    def __getitem__(self, name: str) -> Courier:
        return self.couriers[name]

    def make_courier(self, name: str, life: int = 1) -> Courier:
        """A courier of this world that is not linked yet."""

        def broadcast(payload: bytes, ttl: int) -> BroadcastOutcome:
            self.broadcasts.append((name, payload, ttl))
            for other in list(self.couriers.values()):
                if other.node_id != name:
                    asyncio.get_running_loop().call_soon(other.broadcast_received, name, life, payload)
            return BroadcastOutcome(len(self.couriers) - 1, 0)

        return Courier(
            name,
            life,
            clock=self.clock,
            window_bytes=self._window_bytes,
            locate=self.places.get,
            broadcast=broadcast,
            moves=self._moves,
        )

    def link(self, a: str, b: str) -> FakeLink:
        """Link two nodes; returns the end at ``a``."""
        here, there = link_pair(
            a, b, self.couriers[a], self.couriers[b], capacity=self.capacity, features=self._features
        )
        self.links[a, b], self.links[b, a] = here, there
        self.couriers[a].link_opened(here)
        self.couriers[b].link_opened(there)
        return here

    def agent(self, node: str, agent_id: int, handler: Handler | None = None, *, concurrency: int = 64) -> LocalAgent:
        """Run an agent on a node, and let all nodes know."""
        courier = self.couriers[node]
        agent = LocalAgent(AgentInfo(agent_id, node), handler, concurrency=concurrency, outcomes=courier)
        courier.agents[agent_id] = agent
        self.places[agent_id] = node
        for each in self.couriers.values():
            each.news()
        return agent

    async def remove(self, agent: LocalAgent, *, forget: bool = True) -> None:
        """Stop an agent; unless ``forget``, the other nodes go on believing in it."""
        del self.couriers[agent.info.node_id].agents[agent.agent_id]
        if forget:
            del self.places[agent.agent_id]
        for each in self.couriers.values():
            each.news()
        await agent.close()


def as_link(link: FakeLink) -> Link:
    """The fake as its protocol: mypy checks here that it is one."""
    return link


def command(
    to_agent: int,
    payload: bytes = b"",
    *,
    from_agent: int = 1,
    priority: Priority = Priority.NORMAL,
    ttl: int = 8,
    kind: MessageType = MessageType.COMMAND,
    headers: dict[str, str] | None = None,
) -> Parcel:
    """A message as the manager would hand it over."""
    return Parcel(to_agent, from_agent, kind, payload, priority, ttl, 0, headers)


def query(to_agent: int, payload: bytes = b"", *, from_agent: int = 1) -> Parcel:
    """A query as the manager would hand it over."""
    return command(to_agent, payload, from_agent=from_agent, kind=MessageType.QUERY)


async def echo(message: AgentMessage) -> bytes:
    """A handler that answers with what it was asked."""
    return message.payload


def ignore(_: AgentMessage) -> asyncio.Future[bytes | None]:
    """A handler that never ends."""
    return asyncio.get_running_loop().create_future()


def nothing_waits(world: World) -> bool:
    """Whether no courier of the world keeps anything for anybody."""
    for courier in world.couriers.values():
        assert courier._calls == {}
        assert courier._replies == {}
        assert courier._answers == {}
        assert courier._news == []
        for dialogue in courier._by_link.values():
            assert dialogue.unacked == {}
            assert not any(dialogue._credit_waiters.values())
            assert dialogue._room_waiters == []
    return True


class Inbox:
    """A handler that keeps what it is given."""

    def __init__(self) -> None:
        self.seen: list[AgentMessage] = []

    async def __call__(self, message: AgentMessage) -> None:
        self.seen.append(message)

    @property
    def payloads(self) -> list[bytes]:
        """Of the messages so far, in order."""
        return [message.payload for message in self.seen]
