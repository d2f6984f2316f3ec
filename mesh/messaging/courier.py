"""The shell that carries messages: from a call to a dialogue, and from a link to an agent.

One courier a node.  Outgoing: find the agent's node, wait for a dialogue and for credit, post, and flush all
dialogues once at the end of the loop's turn.  Incoming: decode, hand to agents, settle calls.  No task, queue hop
or lock for a message on either path; only what must wait costs a future.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from gossip.service import BroadcastOutcome
from mesh.agents import Delivery, LocalAgent
from mesh.errors import (
    DeliveryTimeout,
    DeliveryUncertain,
    NetworkClosed,
    NotDelivered,
    RequestTimeout,
    StreamsUnsupported,
    UnknownAgent,
)
from mesh.types import DEFAULT_TTL, AgentMessage, DeliveryStatus, MessageType, Receipt
from transport.clock import Clock
from transport.errors import LinkClosed
from transport.link import CloseReason, Link
from transport.logs import get_logger
from transport.tasks import TaskScope
from transport.types import Priority
from transport.wire import Envelope, Kind

from .answers import Answering
from .body import (
    ERROR_UNKNOWN_AGENT,
    F_CORRELATION,
    F_DURABLE,
    F_FLAGS,
    F_FROM,
    F_HEADERS,
    F_SEQUENCE,
    F_TO,
    F_TYPE,
    FLAG_ACK,
    FLAG_DURABLE,
    FLAG_STREAM,
    OVERHEAD_BYTES,
    REFUSED,
    REFUSED_UNKNOWN_AGENT,
    TYPES,
    Batch,
    Message,
    decode_acks,
    decode_batch,
    decode_broadcast,
    decode_settled,
    encode_broadcast,
    extras_weight,
    message_id_prefix,
    to_agent_message,
)
from .calls import Calls
from .deadlines import bounded, left_ms
from .dialogue import Dialogue, IncomingFlow
from .flow import SendWindow
from .loopback import LoopbackLink
from .moves import Kept, MovesConfig, Unhandled
from .moving import Moving
from .notices import GivenUp, Notices, decode_notices
from .parcel import Parcel
from .replies import Replies, Reply, ReplyStream
from .streams import FEATURE
from .turns import Turns

log = get_logger("mesh.messaging")

# A sender that never has to wait gives way to the loop after this much, so that links and handlers run and the
# bodies that it fills leave while it fills the next.
BURST_BYTES: Final = 128 * 1024

# How often a waiting sender asks for a link again.
LINK_RETRY_S: Final = 1.0

# What a named tuple's own constructor calls in the end; half its price, for every message.
_new_tuple: Final = tuple.__new__

_RESPONSE: Final = int(MessageType.RESPONSE)
_QUERY: Final = int(MessageType.QUERY)
_PLAIN_FIELDS: Final = F_CORRELATION + 1
_COMMAND: Final = int(MessageType.COMMAND)


class Route:
    """The way to one agent: its node's dialogue, the credit there, and what is kept in case the agent moves."""

    __slots__ = ("dialogue", "flow", "kept", "window")

    def __init__(self, dialogue: Dialogue, window: SendWindow, flow: Kept) -> None:
        self.dialogue = dialogue
        self.window = window
        self.flow = flow
        self.kept = flow.by_priority

    @property
    def is_clear(self) -> bool:
        """Whether a message could be posted this instant."""
        window = self.window
        return window.sent_bytes < window.limit_bytes and not self.dialogue.is_congested


class Courier(Answering):
    """Carries messages between the agents of this node and those of others.

    Args:
        node_id: This node.
        life: Its life (see :mod:`gossip.incarnation`); with the sequence it makes message ids unique.
        clock: For timestamps.
        window_bytes: How far a sender may run ahead of each of our agents.
        locate: The node that an agent runs on, ``None`` if unknown.
        broadcast: Hands a payload to gossip for every other node.
        want_link: Asks gossip for a link to a node that has none.
        moves: What is kept and waited for when agents move.
    """

    def __init__(
        self,
        node_id: str,
        life: int,
        *,
        clock: Clock,
        window_bytes: int,
        locate: Callable[[int], str | None],
        broadcast: Callable[[bytes, int], BroadcastOutcome],
        want_link: Callable[[str], None] = lambda _: None,
        moves: MovesConfig = MovesConfig(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(clock)
        self.node_id = node_id
        self.life = life
        self._window_bytes = window_bytes
        self._locate = locate
        self._broadcast = broadcast
        self._want_link = want_link
        self._dialogues: dict[str, Dialogue] = {}
        self._by_link: dict[Link, Dialogue] = {}
        self._dirty: list[Dialogue] = []
        self._burst_bytes = 0
        self._id_prefix = message_id_prefix(node_id, life)
        self._calls = Calls()
        self._replies = Replies()
        self._routes: dict[int, Route] = {}
        self._turns = Turns()
        self._stopped: list[LocalAgent] = []
        # Who waits for an agent to be located or a node to be linked; woken at every change of either.
        self._news: list[asyncio.Future[None]] = []
        self._scope = TaskScope("courier")
        self._closed = False
        self._log_unknown_at = -math.inf
        self.counters |= dict.fromkeys(
            ("received", "broadcasts_sent", "broadcasts_received", "dropped_unknown_agent",
             "dropped_late_response", "requests_given_up"), 0
        )  # fmt: skip
        self._moving = Moving(
            moves,
            self.counters,
            way=self._way,
            wait_link=self._wait_link,
            tell_news=self.news,
            dialogues=self._by_link.values,
        )
        self._loopback = LoopbackLink(node_id, life, self.envelopes_received)
        self.link_opened(self._loopback)

    # --- links --------------------------------------------------------------------------------------------------

    def link_opened(self, link: Link) -> None:
        """A link is up: messages can flow."""
        dialogue = Dialogue(
            link, life=self.life, now_ms=self._now_ms, dirty=self._mark_dirty, window_bytes=self._window_bytes
        )
        dialogue.fill = functools.partial(self._fill, dialogue)
        dialogue.handled = lambda flow: self._moving.handled(flow, self.agents.get(flow.agent_id))
        self._by_link[link] = dialogue
        self._dialogues[dialogue.node_id] = dialogue
        self.news()

    def link_closed(self, link: Link, reason: CloseReason, detail: str) -> None:
        """A link is gone: everything that waited for it learns so."""
        dialogue = self._by_link.pop(link, None)
        if dialogue is None:
            return
        if self._dialogues.get(dialogue.node_id) is dialogue:
            del self._dialogues[dialogue.node_id]
        dialogue.close()
        self._moving.dialogue_closed(dialogue)
        if self.durable is not None:
            self.durable.link_closed(dialogue.node_id)
        self.news()
        text = (
            f"the link to {dialogue.node_id} broke ({reason.name.lower()}{': ' if detail else ''}{detail}) "
            "before all of its answer had come; the request may have been carried out"
        )
        self._calls.fail(lambda: DeliveryUncertain(text), dialogue)
        self._replies.fail(lambda: DeliveryUncertain(text), dialogue)
        self._streams_lost(dialogue)

    def hold_link(self, link: Link) -> bool:
        """Send nothing on ``link`` for now; ``False``: a call waits for something to come over it."""
        dialogue = self._by_link.get(link)
        if dialogue is None:
            return True
        if self._calls.wait_for(dialogue) or self._replies.wait_for(dialogue) or self._answers_over(dialogue):
            return False
        return not (self.durable is not None and self.durable.is_waiting_for(dialogue.node_id)) and dialogue.hold()

    def release_link(self, link: Link) -> None:
        """Go on sending on ``link``."""
        if (dialogue := self._by_link.get(link)) is not None:
            dialogue.release()
            if self.durable is not None:
                self.durable.news()

    def _now_ms(self) -> int:
        return int(self._clock.wall() * 1000)

    def news(self) -> None:
        """Links or agents' places changed: routes are found afresh, and who waits for one looks again."""
        self._routes.clear()
        waiters, self._news = self._news, []
        for future in waiters:
            if not future.done():
                future.set_result(None)
        if self.durable is not None:
            self.durable.news()

    def dialogue(self, node_id: str) -> Dialogue | None:
        """The dialogue with a node, if there is a link to it."""
        return self._dialogues.get(node_id)

    def want_link(self, node_id: str) -> None:
        """Ask for a link to a node that has none."""
        self._want_link(node_id)

    # --- sending ------------------------------------------------------------------------------------------------

    async def send(self, parcel: Parcel, *, ack: bool, timeout_s: float) -> Receipt:
        """Send one message.

        Returns at once when it was accepted for the link, or with ``ack`` when the agent has it.

        Raises:
            UnknownAgent, NotDelivered, DeliveryTimeout, DeliveryUncertain, NetworkClosed: See each.
        """
        route = self._routes.get(parcel.to_agent)
        if route is None or not route.is_clear:
            route, timeout_s = await self._wait_route(parcel.to_agent, timeout_s)
        if ack:
            return await self._send_acked(route, parcel, self._next_sequence(), timeout_s)
        receipt = self._send_now(route, parcel)
        if self.burst_is_over:
            await asyncio.sleep(0)
        return receipt

    def try_send(
        self,
        to_agent: int,
        from_agent: int,
        payload: bytes,
        priority: Priority,
        ttl: int,
        headers: Mapping[str, str] | None = None,
    ) -> Receipt | None:
        """Send one command if that needs no waiting; ``None``: nothing was sent, use :meth:`send`.

        The path that every message takes under load, so it is written out: no parcel, no calls but one.  After
        calling this, give way to the loop when :attr:`burst_is_over`.
        """
        route = self._routes.get(to_agent)
        if route is None:
            return None
        window, dialogue = route.window, route.dialogue
        if window.sent_bytes >= window.limit_bytes or dialogue.is_congested:
            return None
        self._sequence = sequence = self._sequence + 1
        message: Message = [sequence, _COMMAND, from_agent, to_agent, 0, payload, 0]
        if headers:
            message += [None, dict(headers)]
        route.kept[priority].append(message)
        if ttl != DEFAULT_TTL:
            route.flow.note(Unhandled(message, priority, ttl))
        cost = dialogue.post(message, priority, ttl)
        window.sent_bytes += cost
        self._burst_bytes += cost
        return _new_tuple(Receipt, (f"{self._id_prefix}{sequence:x}", DeliveryStatus.SENT, dialogue.node_id, 1))

    @property
    def burst_is_over(self) -> bool:
        """Whether so much was sent in this turn of the loop that others should come up."""
        return self._burst_bytes >= BURST_BYTES

    def _send_now(self, route: Route, parcel: Parcel) -> Receipt:
        self._sequence = sequence = self._sequence + 1
        self._post(route, parcel, sequence, 0)
        return _new_tuple(Receipt, (f"{self._id_prefix}{sequence:x}", DeliveryStatus.SENT, route.dialogue.node_id, 1))

    async def _send_acked(self, route: Route, parcel: Parcel, sequence: int, timeout_s: float) -> Receipt:
        loop = asyncio.get_running_loop()
        dialogue = route.dialogue
        future: asyncio.Future[int] = loop.create_future()
        dialogue.unacked[sequence] = future
        timer = loop.call_later(timeout_s, _expire, future)
        try:
            self._post(route, parcel, sequence, FLAG_ACK)
            code = await future
        except TimeoutError:
            if self._moving.is_pending(sequence):
                raise self._why_no_route(parcel.to_agent, timeout_s) from None
            raise DeliveryTimeout(
                f"agent {parcel.to_agent} on {dialogue.node_id} did not take the message within {timeout_s:.3g} s; "
                "it may still do so",
                hint="send again only if the agent can take it twice, or give it more time",
            ) from None
        except LinkClosed as error:
            raise DeliveryUncertain(error.message) from error
        finally:
            timer.cancel()
            node_id = self._moving.ended(sequence, dialogue)
        if code:
            text = REFUSED.get(code, f"refused with code {code}")
            raise NotDelivered(f"agent {parcel.to_agent} on {node_id} was not reached: {text}")
        return Receipt(f"{self._id_prefix}{sequence:x}", DeliveryStatus.DELIVERED, node_id)

    async def request(self, parcel: Parcel, *, timeout_s: float) -> bytes:
        """Send a query and return the response's payload.

        It takes no longer than there is time for what it is made for (:func:`.deadlines.bounded`).  Whoever stops
        waiting, by the time or by cancellation, has the receiver told.

        Raises:
            UnknownAgent, NotDelivered, RequestTimeout, DeliveryUncertain, RemoteError, NetworkClosed: See each.
        """
        timeout_s = bounded(timeout_s)
        route = self._routes.get(parcel.to_agent)
        if route is None or not route.is_clear:
            route, timeout_s = await self._wait_route(parcel.to_agent, timeout_s)
        dialogue = route.dialogue
        sequence = self._next_sequence()
        future = self._calls.add(sequence, dialogue, timeout_s)
        try:
            self._post_query(route, parcel, sequence, 0, timeout_s)
            return await future
        except TimeoutError:
            self._give_up(dialogue, parcel, sequence)
            raise RequestTimeout(
                f"agent {parcel.to_agent} on {dialogue.node_id} did not respond within {timeout_s:.3g} s; "
                "the request may have been carried out",
                hint="give it more time, or look at that node's handler",
            ) from None
        except asyncio.CancelledError:
            self._give_up(dialogue, parcel, sequence)
            raise
        finally:
            del self._calls[sequence]

    def _post_query(self, route: Route, parcel: Parcel, sequence: int, flags: int, timeout_s: float) -> None:
        dialogue = route.dialogue
        message = parcel.message(sequence, flags, dialogue.base_ms if parcel.timestamp_ms else 0)
        if timeout_s < math.inf:
            if len(message) > F_CORRELATION:
                message[F_CORRELATION] = left_ms(timeout_s)
            else:
                message.append(left_ms(timeout_s))
        route.window.sent_bytes += dialogue.post(message, parcel.priority, parcel.ttl)

    def _give_up(self, dialogue: Dialogue, parcel: Parcel, sequence: int) -> None:
        self.counters["requests_given_up"] += 1
        dialogue.owe_given_up(parcel.priority, GivenUp(sequence, parcel.from_agent, parcel.to_agent))

    def stream(self, parcel: Parcel, *, idle_s: float, timeout_s: float) -> ReplyStream:
        """The parts of the answer to a query; it is asked when they are first iterated over."""
        return ReplyStream(functools.partial(self._ask_stream, parcel), idle_s=idle_s, timeout_s=timeout_s)

    async def _ask_stream(self, parcel: Parcel, begin_s: float, timeout_s: float) -> Reply:
        """Ask for a stream.

        Args:
            parcel: The query.
            begin_s: How long there may be no way to the agent.
            timeout_s: How long all of it may take.

        Raises:
            UnknownAgent, NotDelivered, RequestTimeout, NetworkClosed: See each.
        """
        started = asyncio.get_running_loop().time()
        route = self._routes.get(parcel.to_agent)
        if route is None or not route.is_clear:
            route, _ = await self._wait_route(parcel.to_agent, begin_s)
        dialogue = route.dialogue
        if FEATURE not in dialogue.link.peer.features:
            raise StreamsUnsupported(
                f"{dialogue.node_id}, which runs agent {parcel.to_agent}, does not know streams; nothing was sent",
                hint="upgrade that node, or use request()",
            )
        left_s = timeout_s - (asyncio.get_running_loop().time() - started)
        sequence = self._next_sequence()
        given_up = GivenUp(sequence, parcel.from_agent, parcel.to_agent)
        reply = self._replies.add(dialogue, given_up, parcel.priority)
        self._post_query(route, parcel, sequence, FLAG_STREAM, max(left_s, 0.0))
        return reply

    def broadcast(self, parcel: Parcel) -> Receipt:
        """Send one message to every agent of every node; gossip carries it."""
        receipt, payload = self.launch(parcel, self._broadcast)
        # Our own agents hear it as well, the sender excepted; decoded afresh so that nobody shares our objects.
        self.broadcast_received(self.node_id, self.life, payload)
        return receipt

    def launch(self, parcel: Parcel, carry: Callable[[bytes, int], BroadcastOutcome]) -> tuple[Receipt, bytes]:
        """Have ``carry`` take one message to many nodes; returns its receipt, and it as it travels."""
        self._check_open()
        sequence = self._next_sequence()
        now_ms = self._now_ms()
        message = parcel.message(sequence, 0, now_ms)
        payload = encode_broadcast(message, now_ms, parcel.priority)
        outcome = carry(payload, parcel.ttl)
        self.counters["broadcasts_sent"] += 1
        nodes = outcome.sent + outcome.announced
        status = DeliveryStatus.SENT if nodes else DeliveryStatus.QUEUED
        if outcome.dropped:
            status = DeliveryStatus.DROPPED
        return Receipt(f"{self._id_prefix}{sequence:x}", status, "", nodes), payload

    def respond(self, node_id: str, life: int, query_sequence: int, parcel: Parcel) -> bool:
        """Send the response to a query of that life of a node; ``False`` if it cannot be reached any more."""
        dialogue = self._dialogues.get(node_id)
        if dialogue is None or dialogue.peer_life != life:
            self.counters["dropped_no_link"] += 1
            return False
        return self._respond(dialogue, query_sequence, parcel, 0)

    async def wait_room(self, node_id: str) -> None:
        """Return when the link to ``node_id`` has room, or there is none.  For who responds in a loop."""
        dialogue = self._dialogues.get(node_id)
        if dialogue is not None:
            await dialogue.wait_room()

    def _post(self, route: Route, parcel: Parcel, sequence: int, flags: int) -> None:
        message = parcel.message(sequence, flags, route.dialogue.base_ms if parcel.timestamp_ms else 0)
        if parcel.group is None:
            route.kept[parcel.priority].append(message)
            if parcel.timestamp_ms or parcel.ttl != DEFAULT_TTL:
                route.flow.note(Unhandled(message, parcel.priority, parcel.ttl, parcel.timestamp_ms))
        cost = route.dialogue.post(message, parcel.priority, parcel.ttl)
        route.window.sent_bytes += cost
        self._burst_bytes += cost

    def _find_route(self, agent_id: int) -> Route | None:
        """The way to ``agent_id`` as things are; remembered until anything changes that it depends on."""
        if self._closed:
            raise NetworkClosed("this node has left the network", hint="join again")
        node_id = self.node_of(agent_id)
        dialogue = self._dialogues.get(node_id) if node_id is not None else None
        if dialogue is None or (flow := self._moving.flow(agent_id, dialogue)) is None:
            return None
        route = self._routes[agent_id] = Route(dialogue, dialogue.window(agent_id), flow)
        return route

    def _way(self, agent_id: int) -> Dialogue | None:
        """Where messages that were sent to the agent before should go now."""
        # An agent of ours has been stopped if we are about to leave.
        node_id = self._locate(agent_id) if self._closed else self.node_of(agent_id)
        return (
            self._dialogues.get(node_id)
            if node_id is not None and not (self._closed and node_id == self.node_id)
            else None
        )

    def node_of(self, agent_id: int) -> str | None:
        """The node that runs an agent; ``None``: nobody knows."""
        return self.node_id if agent_id in self.agents else self._locate(agent_id)

    async def _wait_route(self, agent_id: int, timeout_s: float) -> tuple[Route, float]:
        """Wait until a message to the agent can be posted; returns the way and what is left of the time."""
        now = asyncio.get_running_loop().time
        started = now()
        self._routes.pop(agent_id, None)  # whoever comes now comes behind us, as long as we wait
        try:
            async with asyncio.timeout(timeout_s), self._turns.take(agent_id):
                route = self._find_route(agent_id)
                while route is None or not route.is_clear:
                    self._routes.pop(agent_id, None)
                    if route is None:
                        await self._wait_link(agent_id)
                    else:
                        # When the link closes meanwhile, another may come up before the time is over.
                        with contextlib.suppress(LinkClosed):
                            await route.dialogue.wait_ready(agent_id)
                    route = self._find_route(agent_id)
        except TimeoutError:
            raise self._why_no_route(agent_id, timeout_s) from None
        if self._turns.is_wanted(agent_id):
            self._routes.pop(agent_id, None)
        return route, max(0.0, timeout_s - (now() - started))

    def _why_no_route(self, agent_id: int, timeout_s: float) -> Exception:
        node_id = self.node_of(agent_id)
        if node_id is None:
            return UnknownAgent(
                f"no node of the network runs agent {agent_id}",
                hint="`mesh agents` lists those that this node knows of",
            )
        if node_id not in self._dialogues:
            return NotDelivered(f"agent {agent_id} is on {node_id}, and there was no link to it for {timeout_s:.3g} s")
        return NotDelivered(
            f"agent {agent_id} on {node_id} takes messages too slowly: no room for another within {timeout_s:.3g} s",
            hint="send less, wait longer, or give the agent more concurrency",
        )

    async def _wait_link(self, agent_id: int) -> None:
        """Ask for a link to the agent's node, if it is known, and wait for any news."""
        node_id = self.node_of(agent_id)
        if node_id is not None:
            self._want_link(node_id)
        # A dial that failed is no news, so it is asked for again after a while.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINK_RETRY_S):
                await self._wait_news()

    async def _wait_news(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._news.append(future)
        try:
            await future
        finally:
            if future in self._news:
                self._news.remove(future)

    def _check_open(self) -> None:
        if self._closed:
            raise NetworkClosed("this node has left the network", hint="join again")

    # --- flushing -----------------------------------------------------------------------------------------------

    def _mark_dirty(self, dialogue: Dialogue) -> None:
        if dialogue.link.ask_turn(dialogue.fill):
            return
        if not self._dirty:
            asyncio.get_running_loop().call_soon(self._flush_dirty)
        self._dirty.append(dialogue)

    def _flush_dirty(self) -> None:
        dirty, self._dirty = self._dirty, []
        for dialogue in dirty:
            self._fill(dialogue)

    def flush(self) -> None:
        """Hand what waits in all dialogues to their links, now."""
        for dialogue in list(self._dialogues.values()):
            self._fill(dialogue)

    def _fill(self, dialogue: Dialogue) -> None:
        """Hand what waits in one dialogue to its link; the link calls this when it is about to send."""
        self._moving.sent(self._burst_bytes)
        self._burst_bytes = 0
        dialogue.flush()
        if dialogue.is_congested and not dialogue.unsticking:
            dialogue.unsticking = True
            self._scope.spawn(self._unstick(dialogue), name=f"wait for room to {dialogue.node_id}")

    async def _unstick(self, dialogue: Dialogue) -> None:
        try:
            while dialogue.link.is_open and (lane := dialogue.stuck_lane) is not None:
                await dialogue.link.wait_writable(lane)
                dialogue.unstick()
        except LinkClosed:
            pass  # the link's end is told to everybody by link_closed
        finally:
            dialogue.unsticking = False

    # --- receiving ----------------------------------------------------------------------------------------------

    def envelopes_received(self, link: Link, envelopes: Sequence[Envelope]) -> None:
        """Envelopes that are not gossip's arrived on ``link``.

        Raises:
            RemoteProtocolError: One of them is not allowed; the link is closed.
        """
        dialogue = self._by_link.get(link)
        if dialogue is None:
            return
        for envelope in envelopes:
            if envelope.kind == Kind.MESSAGES:
                self._messages_received(dialogue, decode_batch(envelope.body), envelope.ttl)
            elif envelope.kind == Kind.ACKS:
                dialogue.handle_acks(decode_acks(envelope.body))
            elif envelope.kind == Kind.SETTLED and self.durable is not None:
                self.durable.settled(dialogue.node_id, decode_settled(envelope.body))
            elif envelope.kind == Kind.CALLS:
                self._notices_received(dialogue, decode_notices(envelope.body))

    def _notices_received(self, dialogue: Dialogue, notices: Notices) -> None:
        """What askers there say of their requests; what is not here any more was answered."""
        for sequence, from_agent, to_agent in notices.given_up:
            if (answer := self._answers.get((dialogue, sequence))) is not None:
                answer.give_up()
                self.given_up(begun=True)
            elif (agent := self.agents.get(to_agent)) is not None:
                agent.give_up((dialogue.node_id, from_agent, sequence), dialogue)
        for credit in notices.credit:
            if (answer := self._answers.get((dialogue, credit.sequence))) is not None:
                answer.extend(credit)
        self._moving.received(dialogue, notices)

    # For agents, when they are stopped.
    def leaving(self, agent: LocalAgent) -> None:
        """See :class:`mesh.agents.Outcomes`."""
        self._moving.leaving(agent)

    def waited(self, agent: LocalAgent, delivery: Delivery) -> bool:
        """See :class:`mesh.agents.Outcomes`."""
        return self._moving.waited(agent, delivery)

    def left(self, agent: LocalAgent) -> None:
        """See :class:`mesh.agents.Outcomes`."""
        self._moving.left(agent)
        if self.agents.get(agent.agent_id) is agent:  # we are about to leave, and it must not get what comes back
            del self.agents[agent.agent_id]
            self._stopped.append(agent)

    def _messages_received(self, dialogue: Dialogue, batch: Batch, ttl: int) -> None:
        origin = dialogue.node_id
        prefix = message_id_prefix(origin, batch.life)
        base_ms, priority = batch.base_ms, batch.priority
        dialogue.peer_life = batch.life
        self.counters["received"] += len(batch.messages)
        now = asyncio.get_running_loop().time
        flow: IncomingFlow | None = None
        agent: LocalAgent | None = None
        sender = -1
        barred = False
        # Neighbours in a batch are mostly from one agent to another: they are handed over as one run.
        run: list[Delivery] = []
        for message in batch.messages:
            sequence, kind, from_agent, to_agent, _, payload, offset = message[:7]
            if kind == _RESPONSE:
                self._response_received(dialogue, message)
                continue
            if flow is None or to_agent != flow.agent_id or from_agent != sender:
                if run and agent is not None and flow is not None:
                    flow.arrivals.marks[priority] = run[-1].raw[F_SEQUENCE]
                    agent.deliver_run(run)
                    run = []
                sender = from_agent
                flow = dialogue.incoming(to_agent)
                agent = self.agents.get(to_agent)
                barred = agent is None or not flow.arrivals.takes(priority)
            cost = len(payload) + OVERHEAD_BYTES
            if len(message) > F_HEADERS:
                cost += extras_weight(message)
            window = flow.window
            # As ReceiveWindow.receive, without the call.
            if window.received_bytes >= window.limit_bytes:
                window.receive(cost)
            window.received_bytes += cost
            if barred and self._moving.refused(flow, message, cost):
                if agent is None:
                    self._moving.not_here(flow)
                continue
            if agent is None:
                self._refuse(flow, message, cost, priority)
                continue
            if len(message) <= _PLAIN_FIELDS:
                # As to_agent_message, without the call.
                name, sent_ms = f"{prefix}{sequence:x}", base_ms + offset
                what = TYPES[kind]
                seen = AgentMessage(from_agent, to_agent, what, payload, name, sent_ms, ttl, priority, None, {}, origin)
            else:
                seen = to_agent_message(message, batch, origin, ttl, prefix)
                if len(message) > F_DURABLE and self.durable is not None:
                    self.durable.received(flow, message, seen, cost)
                    continue
            if kind != _QUERY:
                run.append(_new_tuple(Delivery, (seen, message, flow, cost, None)))
                continue
            if run:
                flow.arrivals.marks[priority] = run[-1].raw[F_SEQUENCE]
                agent.deliver_run(run)
                run = []
            left = message[F_CORRELATION] if len(message) > F_CORRELATION else None
            deadline = None if left is None else now() + left / 1000
            agent.deliver(_new_tuple(Delivery, (seen, message, flow, cost, deadline)))
        if run and agent is not None and flow is not None:
            flow.arrivals.marks[priority] = run[-1].raw[F_SEQUENCE]
            agent.deliver_run(run)

    def _refuse(self, flow: IncomingFlow, message: Message, cost: int, priority: Priority) -> None:
        """Nobody here has that agent id: say so to whoever waits to hear."""
        flow.taken(cost)
        self.counters["dropped_unknown_agent"] += 1
        waits = False
        if message[F_FLAGS] & FLAG_DURABLE and self.durable is not None:
            self.durable.refused(flow, message, priority)
            waits = True
        if message[F_FLAGS] & FLAG_ACK:
            flow.dialogue.owe_refused(message[F_SEQUENCE], REFUSED_UNKNOWN_AGENT)
            waits = True
        if message[F_TYPE] == _QUERY:
            text = f"node {self.node_id} runs no agent {message[F_TO]}"
            self._respond_error(flow.dialogue, message, ERROR_UNKNOWN_AGENT, "", text, priority)
            waits = True
        now = self._clock.monotonic()
        if not waits and now >= self._log_unknown_at:
            # A stream of them must not become a stream of log lines; the counter has them all.
            self._log_unknown_at = now + 1.0
            log.info("message for an agent that is not here", agent=message[F_TO], peer=flow.dialogue.node_id)

    def _response_received(self, dialogue: Dialogue, message: Message) -> None:
        if not self._calls.settle(dialogue, message) and not self._replies.received(dialogue, message):
            self.counters["dropped_late_response"] += 1

    def broadcast_received(self, origin: str, life: int, payload: bytes) -> None:
        """A broadcast arrived for every agent here.

        Raises:
            RemoteProtocolError: Its payload is not a message.
        """
        batch = decode_broadcast(payload, life)
        message = batch.messages[0]
        self.counters["broadcasts_received"] += 1
        prefix = message_id_prefix(origin, life)
        for agent in self.agents.values():
            if origin == self.node_id and agent.agent_id == message[F_FROM]:
                continue
            seen = to_agent_message(message, batch, origin, 0, prefix)
            seen.to_agent = None
            seen.headers = dict(seen.headers)
            agent.deliver(Delivery(seen, message, None))

    # --- end ----------------------------------------------------------------------------------------------------

    async def close(self, *, drain_s: float = 0.0) -> None:
        """Stop taking messages, flush what was accepted, and tell everybody who waits.

        Args:
            drain_s: How long links without room may take to get some; what then still waits is lost.
        """
        self.flush()
        self._closed = True
        caller = asyncio.current_task()
        await asyncio.gather(*(agent.close(spare=caller) for agent in self.agents.values()))
        if self.durable is not None:
            await self.durable.drain()
        self.flush()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self._moving.drain()
        await self._moving.close()
        self.flush()
        # What found no room at its link yet was accepted all the same.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                for dialogue in list(self._dialogues.values()):
                    await dialogue.wait_room()
        self._calls.fail(lambda: NetworkClosed("this node left the network before the response came"))
        self._replies.fail(lambda: NetworkClosed("this node left the network before the stream was over"))
        self._calls.close()
        self.news()
        for dialogue in list(self._dialogues.values()):
            dialogue.close()
        await self._scope.close()

    def statistics(self) -> dict[str, int]:
        """Counters since the start, and what waits now."""
        return {
            **self.counters,
            **self._moving.statistics(),
            "sent": self._sequence,
            "handled": sum(agent.handled for agent in (*self.agents.values(), *self._stopped)),
            "waiting": sum(agent.waiting for agent in self.agents.values()),
            "broadcasts_dropped": sum(agent.broadcasts_dropped for agent in self.agents.values()),
            "calls_waiting": len(self._calls),
            "streams_given_up": self._replies.given_up,
            "streams_read": len(self._replies),
            "streams_sent": len(self._answers),
            "dialogues": len(self._dialogues) - 1,
        }


def _expire(future: asyncio.Future[int]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())
