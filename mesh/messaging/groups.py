"""Multicast groups as applications see them: subscriptions of this node, publications, and queues.

A plain subscription hears everything that is published to its group; gossip carries it along a tree of the group's
subscribers (:mod:`gossip.groups`).  Subscriptions that name the same *queue* share the work instead: each publication
goes to one of them, chosen at random and asked to acknowledge; only if it certainly did not get it, another is tried.
Behind a queue's subscription is an agent with an id that nobody uses, found by its tag like any other.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Final, Protocol

from gossip.service import BroadcastOutcome
from mesh.agents import Delivery, Handler, LocalAgent
from mesh.errors import NotDelivered, RegistrationTooLarge, UnknownAgent
from mesh.events import AgentJoined, AgentLeft, MeshEvent
from mesh.types import AgentInfo, AgentMessage, MessageType, Receipt
from transport.logs import get_logger
from transport.types import NodeId

from .body import F_GROUP, decode_broadcast, message_id_prefix, to_agent_message
from .courier import Courier
from .parcel import Parcel

log = get_logger("mesh.messaging")

#: Agents behind queues have ids from here on, drawn at random.
QUEUE_AGENT_ID_MIN: Final = 1 << 63
_QUEUE_TAG: Final = "queue:"
#: Members of a queue that are tried, one after the other.
_TRIES: Final = 3


class GroupCarrier(Protocol):
    """What carries publications: the gossip service."""

    def open_group(self, group: str, subscribers: Iterable[NodeId], *, member: bool) -> None:
        """See :meth:`gossip.service.GossipService.open_group`."""
        ...

    def publish(self, group: str, payload: bytes, ttl: int) -> BroadcastOutcome:
        """See :meth:`gossip.service.GossipService.publish`."""
        ...


def queue_tag(group: str) -> str:
    """What marks the agents behind the queues of a group."""
    return f"{_QUEUE_TAG}{group}"


class Subscription:
    """One subscription, to be ended by :meth:`unsubscribe` or ``async with``."""

    def __init__(self, group: str, queue: str | None, agent: LocalAgent, end: Callable[[], Awaitable[None]]) -> None:
        self.group = group
        self.queue = queue
        self._agent = agent
        self._end = end

    def messages(self) -> AsyncIterator[AgentMessage]:
        """What is published, as it comes; for a subscription without a handler."""
        return self._agent.messages()

    async def unsubscribe(self) -> None:
        """Hear no more; harmless when done before."""
        await self._end()

    async def __aenter__(self) -> Subscription:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.unsubscribe()


class Groups:
    """The groups of one node.

    Args:
        courier: Carries what goes to queues, and is told how handlers end.
        carrier: Carries what goes to plain subscriptions.
        subscribers: The nodes that are known to subscribe to a group.
        announce: Tells the network to which groups this node subscribes.
        rng: Picks members of queues.
    """

    def __init__(
        self,
        courier: Courier,
        carrier: GroupCarrier,
        *,
        subscribers: Callable[[str], Sequence[str]],
        announce: Callable[[tuple[str, ...]], None],
        rng: random.Random,
    ) -> None:
        self._courier = courier
        self._carrier = carrier
        self._subscribers = subscribers
        self._announce = announce
        self._rng = rng
        self._subscriptions: dict[str, list[LocalAgent]] = {}
        # Members of queues by group, queue and agent id.
        self._queues: dict[str, dict[str, dict[int, None]]] = {}
        self.counters = {"published": 0, "received": 0, "refused": 0, "queue_retries": 0, "queue_failures": 0}

    # --- subscribing --------------------------------------------------------------------------------------------

    def subscribe(self, group: str, handler: Handler | None, *, concurrency: int) -> Subscription:
        """Hear what is published to ``group`` from now on.

        Raises:
            LocalProtocolError, RegistrationTooLarge: There are too many groups; nothing changed.
        """
        courier = self._courier
        info = AgentInfo(0, courier.node_id, name=group)
        agent = LocalAgent(info, handler, concurrency=concurrency, outcomes=courier)
        if group not in self._subscriptions:
            self._carrier.open_group(group, map(NodeId, self._subscribers(group)), member=True)
            try:
                self._announce((*self._subscriptions, group))
            except RegistrationTooLarge:
                self._carrier.open_group(group, (), member=False)
                raise
        self._subscriptions.setdefault(group, []).append(agent)

        async def end() -> None:
            await self._unsubscribe(group, agent)

        return Subscription(group, None, agent, end)

    async def _unsubscribe(self, group: str, agent: LocalAgent) -> None:
        agents = self._subscriptions.get(group, [])
        if agent in agents:
            agents.remove(agent)
            if not agents:
                del self._subscriptions[group]
                self._announce(tuple(self._subscriptions))
                self._carrier.open_group(group, (), member=False)
        await agent.close()

    def queue_member(self, group: str, queue: str) -> AgentInfo:
        """The agent to register for a subscription that shares its work with others of the same queue."""
        agent_id = QUEUE_AGENT_ID_MIN + self._rng.getrandbits(63)
        return AgentInfo(agent_id, self._courier.node_id, name=queue, tags=(queue_tag(group),))

    def heard(self, events: Iterable[MeshEvent]) -> None:
        """Keep the index of queues' members in step with the agents of the network."""
        for event in events:
            if isinstance(event, AgentJoined | AgentLeft):
                agent = event.agent
                for tag in agent.tags:
                    if tag.startswith(_QUEUE_TAG) and agent.agent_id >= QUEUE_AGENT_ID_MIN:
                        self._note(tag.removeprefix(_QUEUE_TAG), agent, joined=isinstance(event, AgentJoined))

    def _note(self, group: str, agent: AgentInfo, *, joined: bool) -> None:
        queues = self._queues.setdefault(group, {})
        members = queues.setdefault(agent.name, {})
        if joined:
            members[agent.agent_id] = None
            return
        members.pop(agent.agent_id, None)
        if not members:
            del queues[agent.name]
        if not queues:
            del self._queues[group]

    # --- publishing ---------------------------------------------------------------------------------------------

    async def publish(self, parcel: Parcel, *, timeout_s: float) -> Receipt:
        """Send to every plain subscription of ``parcel.group``, and to one member of each of its queues.

        Raises:
            NotDelivered: A queue has members, and none of those that were tried took it; the others have it.
            DeliveryTimeout, DeliveryUncertain: No word from a queue's member: it may have it.
            LocalProtocolError: Too many groups, or too much waits for a first link; nothing was sent.
        """
        group = parcel.group
        assert group is not None
        if group not in self._subscriptions:
            self._carrier.open_group(group, map(NodeId, self._subscribers(group)), member=False)
        receipt, payload = self._courier.launch(parcel, lambda data, ttl: self._carrier.publish(group, data, ttl))
        self.counters["published"] += 1
        if group in self._subscriptions:
            self._hand_out(group, payload, self._courier.node_id, self._courier.life)
        for queue in list(self._queues.get(group, ())):
            await self._enqueue(group, queue, parcel, timeout_s)
        return receipt

    async def _enqueue(self, group: str, queue: str, parcel: Parcel, timeout_s: float) -> None:
        tried: dict[int, None] = {}
        for _ in range(_TRIES):
            members = [name for name in self._queues.get(group, {}).get(queue, ()) if name not in tried]
            if not members:
                break
            chosen = self._rng.choice(members)
            tried[chosen] = None
            addressed = parcel._replace(to_agent=chosen, kind=MessageType.COMMAND)
            try:
                await self._courier.send(addressed, ack=True, timeout_s=timeout_s / _TRIES)
            except (NotDelivered, UnknownAgent):
                self.counters["queue_retries"] += 1
            else:
                return
        self.counters["queue_failures"] += 1
        raise NotDelivered(
            f"no member of queue {queue!r} of group {group!r} took the message ({len(tried)} tried)",
            hint="other subscribers have it already; publish again only if they can take it twice",
        )

    # --- receiving ----------------------------------------------------------------------------------------------

    def received(self, group: str, payload: bytes, origin: str, life: int) -> None:
        """A publication of another node arrived.

        Raises:
            RemoteProtocolError: Its payload is not a message of the group.
        """
        self._hand_out(group, payload, origin, life)
        self.counters["received"] += 1

    def _hand_out(self, group: str, payload: bytes, origin: str, life: int) -> None:
        batch = decode_broadcast(payload, life)
        message = batch.messages[0]
        if len(message) <= F_GROUP or message[F_GROUP] != group:
            self.counters["refused"] += 1
            log.warning("publication of another group refused", group=group, origin=origin)
            return
        prefix = message_id_prefix(origin, life)
        for agent in self._subscriptions.get(group, ()):
            seen = to_agent_message(message, batch, origin, 0, prefix)
            seen.to_agent = None
            seen.headers = dict(seen.headers)
            agent.deliver(Delivery(seen, message, None))

    # --- end ----------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Stop every subscription's handlers."""
        subscriptions, self._subscriptions = self._subscriptions, {}
        for agents in subscriptions.values():
            for agent in agents:
                await agent.close()

    def statistics(self) -> dict[str, int]:
        """Counters since the start, and sizes."""
        agents = [agent for agents in self._subscriptions.values() for agent in agents]
        return {
            **self.counters,
            "subscriptions": len(agents),
            "handled": sum(agent.handled for agent in agents),
            "dropped": sum(agent.broadcasts_dropped for agent in agents),
        }
