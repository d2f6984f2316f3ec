"""The handle of a joined network: what ``join_network`` gives.

Thin on purpose: it checks arguments, and hands over to the courier (messages), the view (who is where) and the
runtime (starting and stopping).  All methods belong to the event loop on which the node was started.
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final

from state.replication.groups import PREFIX as DOCUMENT_GROUP_PREFIX
from transport.types import Address, Priority

from .agents import AgentHandle, Handler, LocalAgent
from .config import MeshConfig
from .documents.states import HoldsState
from .errors import (
    AgentIdInUse,
    InvalidMessage,
    NetworkClosed,
    NotDelivered,
    PayloadTooLarge,
    UnknownAgent,
    UnknownNode,
)
from .events import MeshEvent
from .messaging.body import AGENT_ID_MAX, GROUP_CHARS_MAX, HEADER_CHARS_MAX, HEADERS_MAX, PAYLOAD_BYTES_MAX
from .messaging.groups import Subscription
from .messaging.parcel import Parcel
from .messaging.replies import ReplyStream
from .profile import AGENT_FIELD_CHARS_MAX, AGENT_LIST_MAX
from .runtime import Runtime
from .types import (
    BROADCAST_TTL,
    DEFAULT_TTL,
    AgentInfo,
    AgentMessage,
    AgentNode,
    DeadLetter,
    MessageType,
    NodeStatus,
    Receipt,
)

#: The agent id of messages that no agent sent: the node itself, or a command line.
NODE_ITSELF: Final = 0

_TTL_MAX: Final = 64

_NEVER_DURABLE: Final = (MessageType.QUERY, MessageType.BROADCAST)

#: The longest that a durable message may wait, seconds: 30 days.  Its receiver remembers it for as long.
DEADLINE_S_MAX: Final = 30 * 86_400.0

# The year 287396; beyond it a timestamp is no longer exact in JSON.
#: Less than what a tag may have, which the members of queues are found by.
GROUP_NAME_CHARS_MAX: Final = 200
_TIMESTAMP_MAX: Final = 2**53 - 1


class AgentNetworkManager(HoldsState):
    """One node of a network, from joining to leaving.

    Args:
        config: What to run.
        admit: See :func:`mesh.join_network`.
    """

    def __init__(self, config: MeshConfig, *, admit: Callable[[AgentNode], bool] | None = None) -> None:
        self._config = config
        self._runtime = Runtime(config, admit=admit)
        self._bytes_max = config.message_bytes_max
        self._timeout_s = config.messages.request_timeout_s

    # --- joining and leaving ------------------------------------------------------------------------------------

    async def start(self) -> AgentNetworkManager:
        """Start the node and return the manager; usually called by ``join_network``.

        Returns when the node listens; others are found in the background (:meth:`wait_for_members`).

        Raises:
            MeshError: The node cannot run: data directory, keys, token, port.  Nothing is left running.
        """
        await self._runtime.start(self)
        return self

    async def leave_network(self, *, timeout_s: float = 5.0) -> None:
        """Leave in order: flush what was accepted, tell the others, close every link.  Harmless when done before.

        Args:
            timeout_s: How long flushing and telling may take in all.
        """
        await self._runtime.stop(timeout_s=timeout_s)

    async def wait_closed(self) -> None:
        """Return when the node has left, or raise why it had to.

        Raises:
            Superseded: Another process took over this node's id.
        """
        await self._runtime.wait_closed()

    async def __aenter__(self) -> AgentNetworkManager:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.leave_network()

    # --- who is there -------------------------------------------------------------------------------------------

    @property
    def node(self) -> AgentNode:
        """This node."""
        return self._runtime.node(self._runtime.node_id)

    @property
    def network(self) -> str:
        """The network's name."""
        return self._config.network

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where this node tells its peers to dial it, best first."""
        return self._runtime.addresses

    def members(self) -> list[AgentNode]:
        """Every node known, this one included, by node id; failed and departed ones stay for a while."""
        return [self._runtime.node(node_id) for node_id in self._runtime.up_to_date_view().node_ids()]

    def member(self, node_id: str) -> AgentNode:
        """One node.

        Raises:
            UnknownNode: No member has that name.
        """
        try:
            return self._runtime.node(node_id)
        except KeyError:
            raise UnknownNode(
                f"no node {node_id!r} in network {self.network!r}", hint="`mesh members` lists them"
            ) from None

    def agents(self) -> list[AgentInfo]:
        """Every agent of the network as this node knows it, by agent id."""
        return self._runtime.up_to_date_view().directory.agents()

    def find_agents(
        self, *, capability: str | None = None, tag: str | None = None, name: str | None = None
    ) -> list[AgentInfo]:
        """The agents that have all of what is given."""
        return list(self._runtime.up_to_date_view().directory.find(capability=capability, tag=tag, name=name))

    def events(self) -> AsyncIterator[MeshEvent]:
        """Events from now on; the iterator ends when the node leaves.  Each caller has its own."""
        return self._runtime.observers.subscribe()

    async def wait_for_members(self, count: int, *, timeout_s: float = 10.0) -> list[AgentNode]:
        """Return the active members once there are at least ``count``, this node included.

        Raises:
            TimeoutError: There were not that many in time.
        """
        events = self.events()
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    active = [node for node in self.members() if node.status is NodeStatus.ACTIVE]
                    if len(active) >= count:
                        return active
                    if await anext(events, None) is None:
                        raise NetworkClosed("this node left the network while it waited for members")
        except TimeoutError:
            have = sum(1 for node in self.members() if node.status is NodeStatus.ACTIVE)
            raise TimeoutError(f"{have} of {count} members after {timeout_s:.3g} s") from None
        finally:
            await events.aclose()  # type: ignore[attr-defined]

    async def wait_for_agent(self, agent_id: int, *, timeout_s: float = 10.0) -> AgentInfo:
        """Return where an agent runs once this node knows it.

        Raises:
            UnknownAgent: Nobody registered it in time.
        """
        events = self.events()
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    for agent in self.agents():
                        if agent.agent_id == agent_id:
                            return agent
                    if await anext(events, None) is None:
                        raise NetworkClosed("this node left the network while it waited for an agent")
        except TimeoutError:
            raise UnknownAgent(f"nobody registered agent {agent_id} within {timeout_s:.3g} s") from None
        finally:
            await events.aclose()  # type: ignore[attr-defined]

    # --- agents -------------------------------------------------------------------------------------------------

    async def register_agent(
        self,
        agent_id: int,
        capabilities: Sequence[str] = (),
        *,
        name: str = "",
        tags: Sequence[str] = (),
        version: str = "",
        metadata: Mapping[str, str] | None = None,
        handler: Handler | None = None,
        concurrency: int | None = None,
    ) -> AgentHandle:
        """Run an agent on this node and let the network know.

        Args:
            agent_id: 1 to 2**64 - 1, unique in the network.
            capabilities: What it can do; others find it by them.
            name: For people and lookups; need not be unique.
            tags: More to find it by.
            version: Of the agent's software.
            metadata: Free text by key.
            handler: Called with each message.  For a query, what it returns is the response, and what it yields if
                it is an async generator are the parts of one (:meth:`stream`).  It is cancelled when nobody waits for
                the answer any more.  Messages of one sender are handled one after the other; queries and other
                senders concurrently.  ``None``: read them with :meth:`messages`.
            concurrency: Handler calls under way at once; default ``messages.handler_concurrency``.

        Raises:
            AgentIdInUse: This node runs an agent of that id already.
            RegistrationTooLarge: This node's agents would not fit what it may say of itself.
            InvalidMessage: An argument has the wrong type or size.
        """
        self._runtime.check_running()
        _check_agent_id(agent_id, least=1)
        info = AgentInfo(
            agent_id=agent_id,
            node_id=self._runtime.node_id,
            capabilities=_texts("capabilities", capabilities),
            name=_text("name", name),
            tags=_texts("tags", tags),
            version=_text("version", version),
            metadata=_text_map("metadata", metadata or {}),
        )
        agent = self._add_agent(info, handler, concurrency)
        return AgentHandle(info, functools.partial(self._runtime.remove_agent, agent))

    def _add_agent(self, info: AgentInfo, handler: Handler | None, concurrency: int | None) -> LocalAgent:
        handler, limit = self._checked(handler, concurrency)
        courier = self._runtime.courier
        if info.agent_id in courier.agents:
            raise AgentIdInUse(
                f"node {self._runtime.node_id} already runs agent {info.agent_id}", hint="deregister it first"
            )
        agent = LocalAgent(info, handler, concurrency=limit, outcomes=courier)
        self._runtime.add_agent(agent)
        return agent

    def _checked(self, handler: Handler | None, concurrency: int | None) -> tuple[Handler | None, int]:
        limit = concurrency if concurrency is not None else self._config.messages.handler_concurrency
        if type(limit) is not int or limit < 1:
            raise InvalidMessage(f"concurrency {limit!r} is not a whole number from 1")
        if handler is not None and not callable(handler):
            raise InvalidMessage(f"handler {handler!r:.80} cannot be called", hint="pass an async function")
        return handler, limit

    def messages(self, agent_id: int) -> AsyncIterator[AgentMessage]:
        """The messages for an agent of this node that has no handler, as they come.

        Raises:
            UnknownAgent: This node runs no such agent.
        """
        return self._local_agent(agent_id).messages()

    def _local_agent(self, agent_id: int) -> LocalAgent:
        agent = self._runtime.courier.agents.get(agent_id)
        if agent is None:
            raise UnknownAgent(
                f"node {self._runtime.node_id} runs no agent {agent_id}", hint="register it with register_agent"
            )
        return agent

    # --- messages -----------------------------------------------------------------------------------------------

    async def send(
        self,
        to_agent: int,
        payload: bytes,
        *,
        from_agent: int = NODE_ITSELF,
        ack: bool = False,
        durable: bool = False,
        deadline: float | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
        ttl: int = DEFAULT_TTL,
        headers: Mapping[str, str] | None = None,
    ) -> Receipt:
        """Send a command to an agent, wherever it runs.

        Returns when the message is accepted for the link, or with ``ack`` when the agent has it.  Waits while the
        agent is unknown, unreachable or has no room, up to ``timeout`` seconds.

        With ``durable`` it returns when the message is on this node's disk.  From then on it survives crashes of
        every node; it is sent until the agent, which nobody need know yet, has handled it, or until ``deadline``
        seconds from now (default ``messages.durable_deadline_s``).  ``docs/durable.md`` says what is promised.

        Raises:
            OutboxFull, StorageError: The disk or the outbox has no room; nothing is stored (only with ``durable``).
            UnknownAgent: Nobody has registered that agent.
            NotDelivered: It could not be reached, or refused.
            DeliveryTimeout, DeliveryUncertain: No word: it may have arrived (only with ``ack``).
            PayloadTooLarge, InvalidMessage: An argument cannot be used.
            NetworkClosed: This node has left.
        """
        if (
            type(payload) is not bytes
            or len(payload) > self._bytes_max
            or type(ttl) is not int
            or not 0 < ttl <= _TTL_MAX
            or type(to_agent) is not int
            or type(from_agent) is not int
            or not 0 <= from_agent <= AGENT_ID_MAX
            or type(priority) is not Priority
        ):
            self._refuse(to_agent, from_agent, payload, ttl, priority)
        if headers:
            self._check_headers(headers, payload)
        if durable or deadline is not None:
            parcel = Parcel(to_agent, from_agent, MessageType.COMMAND, payload, priority, ttl, 0, headers)
            return await self._send_durable(parcel, ack=ack, durable=durable, deadline=deadline, timeout=timeout)
        courier = self._runtime.courier
        if not ack:
            receipt = courier.try_send(to_agent, from_agent, payload, priority, ttl, headers)
            if receipt is not None:
                if courier.burst_is_over:
                    await asyncio.sleep(0)
                return receipt
        _check_agent_id(to_agent)  # only now: there was no way to one that cannot be
        parcel = Parcel(to_agent, from_agent, MessageType.COMMAND, payload, priority, ttl, 0, headers)
        return await courier.send(parcel, ack=ack, timeout_s=self._timeout_s if timeout is None else timeout)

    async def send_message(
        self,
        message: AgentMessage,
        *,
        ack: bool = False,
        durable: bool = False,
        deadline: float | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """Send a message with every field given.  A ``to_agent`` of ``None`` broadcasts it.

        A query sent this way expects no response here: use :meth:`request`.

        Raises:
            As :meth:`send`.
        """
        if durable or deadline is not None:
            parcel = self._parcel(message)
            if message.to_agent is None or parcel.kind in _NEVER_DURABLE:
                raise InvalidMessage("a query or a broadcast cannot be durable")
            return await self._send_durable(parcel, ack=ack, durable=durable, deadline=deadline, timeout=timeout)
        if message.to_agent is None:
            return await self._broadcast(message)
        return await self._runtime.courier.send(
            self._parcel(message), ack=ack, timeout_s=self._timeout_s if timeout is None else timeout
        )

    async def _send_durable(
        self, parcel: Parcel, *, ack: bool, durable: bool, deadline: float | None, timeout: float | None
    ) -> Receipt:
        if ack or not durable:
            raise InvalidMessage("a durable message has a deadline, and no acknowledgement to wait for")
        _check_agent_id(parcel.to_agent)
        return await self._runtime.durable.send(
            parcel,
            deadline_s=self._deadline_s(deadline),
            timeout_s=self._timeout_s if timeout is None else timeout,
        )

    def _deadline_s(self, deadline: float | None) -> float:
        if deadline is None:
            return self._config.messages.durable_deadline_s
        if type(deadline) not in {int, float} or not 0 < deadline <= DEADLINE_S_MAX:
            raise InvalidMessage(f"deadline {deadline!r} is not above 0 s and at most {DEADLINE_S_MAX:g} s")
        return float(deadline)

    def dead_letters(self) -> list[DeadLetter]:
        """The durable messages of this node that were given up, the oldest first."""
        return self._runtime.durable.dead_letters()

    async def replay(self, letter_id: int, *, deadline: float | None = None, timeout: float | None = None) -> Receipt:
        """Send a dead letter once more, as a new durable message.

        Raises:
            UnknownLetter: There is none of that id.
            OutboxFull, StorageError, NetworkClosed: As :meth:`send`; it stays a dead letter.
        """
        return await self._runtime.durable.replay(
            letter_id,
            deadline_s=self._deadline_s(deadline),
            timeout_s=self._timeout_s if timeout is None else timeout,
        )

    async def drop(self, letter_id: int) -> None:
        """Forget a dead letter.

        Raises:
            UnknownLetter: There is none of that id.
            StorageError: The disk did not take it; it is still there.
        """
        await self._runtime.durable.drop(letter_id)

    async def request(
        self,
        to_agent: int,
        payload: bytes,
        *,
        from_agent: int = NODE_ITSELF,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
        ttl: int = DEFAULT_TTL,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """Send a query and return the payload of its response.

        The time that is left travels with it: once it is over, or the caller is cancelled, the handler is too.  Made
        inside a handler, it takes no longer than that handler's own asker waits (``mesh.without_deadline`` lifts that).

        Raises:
            UnknownAgent: Nobody has registered that agent.
            NotDelivered: It could not be reached.
            RequestTimeout, DeliveryUncertain: No response: it may have been carried out.
            RemoteError: The agent's handler raised.
            StreamExpected: It answers with a stream: use :meth:`stream`.
            PayloadTooLarge, InvalidMessage, NetworkClosed: As :meth:`send`.
        """
        if (
            type(payload) is not bytes
            or len(payload) > self._bytes_max
            or type(ttl) is not int
            or not 0 < ttl <= _TTL_MAX
            or type(to_agent) is not int
            or type(from_agent) is not int
            or not 0 <= from_agent <= AGENT_ID_MAX
            or type(priority) is not Priority
        ):
            self._refuse(to_agent, from_agent, payload, ttl, priority)
        _check_agent_id(to_agent)
        if headers:
            self._check_headers(headers, payload)
        parcel = Parcel(to_agent, from_agent, MessageType.QUERY, payload, priority, ttl, 0, headers)
        return await self._runtime.courier.request(parcel, timeout_s=self._timeout_s if timeout is None else timeout)

    def stream(
        self,
        to_agent: int,
        payload: bytes,
        *,
        from_agent: int = NODE_ITSELF,
        idle_timeout: float | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
        ttl: int = DEFAULT_TTL,
        headers: Mapping[str, str] | None = None,
    ) -> ReplyStream:
        """Send a query whose answer comes in parts: ``async for part in net.stream(7, b"...")``.

        The handler runs no further ahead than its parts are read here.  Leaving the loop cancels it; ``async with``
        around the loop does so at a certain point.  A handler that returns a plain response makes a stream of one part.

        The next part may take ``idle_timeout`` seconds (default ``messages.request_timeout_s``), all of it ``timeout``
        from the first iteration (default: as long as it goes on).

        Raises:
            PayloadTooLarge, InvalidMessage: As :meth:`send`, here; everything else while it is iterated over, behind
                the parts that came before:
            UnknownAgent, NotDelivered, NetworkClosed: As :meth:`request`.
            StreamsUnsupported: The agent's node runs software that is too old.
            RequestTimeout: The next part or the end took too long.
            DeliveryUncertain: The link broke.
            RemoteError: The agent's handler raised, perhaps in the middle.
        """
        self._refuse(to_agent, from_agent, payload, ttl, priority)
        if headers:
            self._check_headers(headers, payload)
        parcel = Parcel(to_agent, from_agent, MessageType.QUERY, payload, priority, ttl, 0, headers)
        return self._runtime.courier.stream(
            parcel,
            idle_s=self._timeout_s if idle_timeout is None else idle_timeout,
            timeout_s=math.inf if timeout is None else timeout,
        )

    async def reply(self, query: AgentMessage, payload: bytes) -> None:
        """Answer a query that was read with :meth:`messages` (a handler just returns its answer).

        Raises:
            InvalidMessage: ``query`` is not a query that arrived here.
            NotDelivered: Its asker cannot be reached any more.
        """
        if query.message_type is not MessageType.QUERY or not query.from_node:
            raise InvalidMessage("only a query that arrived here can be replied to")
        try:
            _, life, sequence = query.message_id.rsplit("/", 2)
            life_of_asker, asked = int(life, 16), int(sequence, 16)
        except ValueError:
            raise InvalidMessage(f"message id {query.message_id!r} is not one that a query arrived with") from None
        self._check_payload(payload)
        parcel = Parcel(
            query.from_agent, query.to_agent or 0, MessageType.RESPONSE, payload, query.priority, DEFAULT_TTL
        )
        courier = self._runtime.courier
        if not courier.respond(query.from_node, life_of_asker, asked, parcel):
            raise NotDelivered(f"the asker's node {query.from_node} is no longer linked, or started anew since")
        await courier.wait_room(query.from_node)

    async def broadcast_message(
        self,
        payload: bytes,
        *,
        from_agent: int = NODE_ITSELF,
        priority: Priority = Priority.NORMAL,
        ttl: int = BROADCAST_TTL,
        headers: Mapping[str, str] | None = None,
    ) -> Receipt:
        """Send a message to every agent on every node, the sending agent excepted.

        Neighbours pass it on, and nodes that miss it fetch it from them for half a minute; nobody acknowledges it.
        It is sealed for the members of this moment (``messages.end_to_end``): who joins later cannot read it, and after
        the first one of a node, or when another has left, those that are not linked with it ask it for the key.  So who
        broadcasts and leaves at once may be heard by its neighbours only.

        The receipt's status is ``SENT`` if a neighbour took it or was told of it, ``QUEUED`` if there is none at the
        moment, ``DROPPED`` if this node is leaving.

        Raises:
            PayloadTooLarge, InvalidMessage, NetworkClosed: As :meth:`send`.
        """
        return await self._broadcast(
            AgentMessage(
                from_agent,
                None,
                MessageType.BROADCAST,
                payload,
                ttl=ttl,
                priority=priority,
                headers=headers or {},
            )
        )

    async def subscribe(
        self,
        group: str,
        handler: Handler | None = None,
        *,
        queue: str | None = None,
        concurrency: int | None = None,
    ) -> Subscription:
        """Hear what is published to a multicast group from now on.

        Args:
            group: Its name: 1 to 200 characters.  Groups need not be created.
            handler: Called with each message.  ``None``: read them with :meth:`Subscription.messages`.
            queue: Subscriptions to one group that name the same queue share the work: each message goes to one of
                them.  ``None``: this one hears everything.
            concurrency: Handler calls under way at once; default ``messages.handler_concurrency``.

        Raises:
            RegistrationTooLarge: This node's groups would not fit what it may say of itself.
            InvalidMessage, NetworkClosed: As :meth:`register_agent`.
        """
        self._runtime.check_running()
        _group(group)
        groups = self._runtime.groups
        if queue is None:
            handler, limit = self._checked(handler, concurrency)
            return groups.subscribe(group, handler, concurrency=limit)
        if not _text("queue", queue):
            raise InvalidMessage("a queue's name must not be empty")
        agent = self._add_agent(groups.queue_member(group, queue), handler, concurrency)
        return Subscription(group, queue, agent, functools.partial(self._runtime.remove_agent, agent))

    async def publish(
        self,
        group: str,
        payload: bytes,
        *,
        from_agent: int = NODE_ITSELF,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
        ttl: int = BROADCAST_TTL,
        headers: Mapping[str, str] | None = None,
    ) -> Receipt:
        """Send a message to every subscription of a group, and to one of each queue.

        For plain subscriptions the status is as for :meth:`broadcast_message`; a queue's member acknowledges.

        Raises:
            NotDelivered: A queue has members, and none took it; all others have it.
            DeliveryTimeout, DeliveryUncertain: No word from a queue's member: it may have it.
            PayloadTooLarge, InvalidMessage, NetworkClosed: As :meth:`send`.
        """
        kind = MessageType.BROADCAST
        message = AgentMessage(from_agent, None, kind, payload, ttl=ttl, priority=priority, headers=headers or {})
        parcel = self._parcel(message)._replace(group=_group(group))
        timeout_s = self._timeout_s if timeout is None else timeout
        receipt = await self._runtime.groups.publish(parcel, timeout_s=timeout_s)
        await asyncio.sleep(0)  # as for broadcasts
        return receipt

    async def _broadcast(self, message: AgentMessage) -> Receipt:
        receipt = self._runtime.courier.broadcast(self._parcel(message))
        await asyncio.sleep(0)  # a caller that broadcasts in a loop must not keep the node from sending
        return receipt

    def _parcel(self, message: AgentMessage) -> Parcel:
        to_agent = 0 if message.to_agent is None else message.to_agent
        kind, priority = _message_type(message.message_type), _priority(message.priority)
        self._refuse(to_agent, message.from_agent, message.payload, message.ttl, priority)
        if message.headers:
            self._check_headers(message.headers, message.payload)
        if message.group is not None:
            _text("group", message.group, GROUP_CHARS_MAX)
        if type(message.timestamp) is not int or not 0 <= message.timestamp <= _TIMESTAMP_MAX:
            raise InvalidMessage(f"timestamp {message.timestamp!r} is not a count of milliseconds since the epoch")
        return Parcel(
            to_agent,
            message.from_agent,
            kind,
            message.payload,
            priority,
            message.ttl,
            message.timestamp,
            message.headers,
            message.group,
        )

    def _check_payload(self, payload: object) -> None:
        if not isinstance(payload, bytes):
            raise InvalidMessage(
                f"payload is {type(payload).__name__}, not bytes", hint="encode it, for example text.encode()"
            )
        if len(payload) > self._bytes_max:
            raise PayloadTooLarge(
                f"payload of {len(payload)} bytes is above the limit of {self._bytes_max}",
                hint="send it in parts, or raise messages.message_bytes_max",
            )

    @staticmethod
    def _refuse_ttl(ttl: object) -> None:
        if type(ttl) is not int or not 0 < ttl <= _TTL_MAX:
            raise InvalidMessage(f"ttl {ttl!r} is not between 1 and {_TTL_MAX}: the message could not leave this node")

    def _refuse(self, to_agent: object, from_agent: object, payload: object, ttl: object, priority: object) -> None:
        """Say what is wrong with these.

        Everything has to be checked here: a peer that meets the wrong type in a body closes the link.
        """
        _check_agent_id(to_agent)
        _check_agent_id(from_agent)
        self._check_payload(payload)
        self._refuse_ttl(ttl)
        if not isinstance(priority, Priority):
            raise InvalidMessage(f"priority {priority!r} is not a mesh.Priority")

    def _check_headers(self, headers: Mapping[Any, Any], payload: bytes) -> None:
        if type(headers) is not dict and not isinstance(headers, Mapping):
            raise InvalidMessage(f"headers {headers!r:.80} are not a map of texts")
        if len(headers) > HEADERS_MAX:
            raise InvalidMessage(f"{len(headers)} headers are above the limit of {HEADERS_MAX}")
        size_bytes = len(payload)
        for key, value in headers.items():
            if not isinstance(key, str) or not isinstance(value, str) or len(key) + len(value) > HEADER_CHARS_MAX:
                raise InvalidMessage(f"header {key!r} is not text of at most {HEADER_CHARS_MAX} characters")
            size_bytes += _utf8_bytes("header", key) + _utf8_bytes("header", value)
        if size_bytes > PAYLOAD_BYTES_MAX:
            raise PayloadTooLarge(
                f"payload and headers of {size_bytes} bytes are above the limit of {PAYLOAD_BYTES_MAX}"
            )

    # --- running it ---------------------------------------------------------------------------------------------

    async def invite(self, *, ttl_s: float = 600.0, uses: int = 1) -> str:
        """Make a token that lets a node on another machine join.

        Args:
            ttl_s: How long it can be used, seconds.
            uses: How many nodes may use it.

        Raises:
            IdentityError: This node does not hold the network's authority key.
        """
        return await self._runtime.invite(ttl_s=ttl_s, uses=uses)

    async def set_metadata(self, metadata: Mapping[str, str]) -> None:
        """Replace what this node says of itself.

        Raises:
            RegistrationTooLarge, InvalidMessage: It cannot be used.
        """
        self._runtime.set_metadata(_text_map("metadata", metadata))

    async def set_maintenance(self, *, on: bool) -> None:
        """Ask for no new work (``NodeStatus.MAINTENANCE``), or take work again."""
        self._runtime.set_maintenance(on=on)

    def stats(self) -> dict[str, Any]:
        """Counters and gauges by layer: plain dictionaries of numbers and text."""
        return self._runtime.statistics()


def _check_agent_id(agent_id: object, *, least: int = 0) -> None:
    if type(agent_id) is not int or not least <= agent_id <= AGENT_ID_MAX:
        raise InvalidMessage(f"agent id {agent_id!r} is not a whole number from {least} to 2**64 - 1")


def _group(name: object) -> str:
    group = _text("group", name, GROUP_NAME_CHARS_MAX)
    if not group:
        raise InvalidMessage("a group's name must not be empty")
    if group.startswith(DOCUMENT_GROUP_PREFIX):
        raise InvalidMessage(f"groups that begin with {DOCUMENT_GROUP_PREFIX!r} are those of documents")
    return group


def _message_type(value: Any) -> MessageType:
    """The type of a message that may be sent."""
    if value == MessageType.RESPONSE:
        raise InvalidMessage(
            "a response cannot be sent by itself: it belongs to its query",
            hint="return it from the handler, or use reply()",
        )
    try:
        return MessageType(value)
    except ValueError:
        raise InvalidMessage(f"message type {value!r} is not a mesh.MessageType") from None


def _priority(value: Any) -> Priority:
    try:
        return Priority(value)
    except ValueError:
        raise InvalidMessage(f"priority {value!r} is not a mesh.Priority") from None


def _text(what: str, value: object, chars_max: int = AGENT_FIELD_CHARS_MAX) -> str:
    if not isinstance(value, str) or len(value) > chars_max:
        raise InvalidMessage(f"{what} {value!r:.80} is not text of at most {chars_max} characters")
    _utf8_bytes(what, value)
    return value


def _utf8_bytes(what: str, text: str) -> int:
    """How long it is on the wire; text with lone surrogates cannot go there."""
    try:
        return len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        raise InvalidMessage(f"{what} {text!r:.80} cannot be encoded as UTF-8") from None


def _texts(what: str, values: Iterable[str]) -> tuple[str, ...]:
    if isinstance(values, str):
        raise InvalidMessage(f"{what} is one text {values!r}, not a list of texts", hint=f"write [{values!r}]")
    if not isinstance(values, Iterable):
        raise InvalidMessage(f"{what} {values!r:.80} is not a list of texts")
    texts = tuple(_text(what, value) for value in values)
    if len(texts) > AGENT_LIST_MAX:
        raise InvalidMessage(f"{len(texts)} {what} are above the limit of {AGENT_LIST_MAX}")
    return texts


def _text_map(what: str, values: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(values, Mapping):
        raise InvalidMessage(f"{what} {values!r:.80} is not a map of texts")
    if len(values) > AGENT_LIST_MAX:
        raise InvalidMessage(f"{len(values)} entries of {what} are above the limit of {AGENT_LIST_MAX}")
    return {_text(what, key): _text(what, value) for key, value in values.items()}
