"""An agent that moves: which of its messages have to be sent again, and when newer ones may follow.

Core: no I/O.  A *flow* is what one node sends to one agent over one dialogue.  The sender keeps the messages of a flow
until its receiver says that they are handled, which it does whenever it gives credit; so what is kept is bounded by
the credit.  When the agent is gone, its node says how far messages had come and which of them still waited there.  All
others that had come were handled.  The sender takes the rest to the agent's new place, in the order of their sequences,
and nothing newer goes there before.

Three things make that exact.

*Handled* is a mark for each priority: consumption in bytes would not do, because an agent handles its senders'
messages side by side and priorities overtake each other, so that many bytes handled do not say which.

*A barrier* in each priority's lane.  What is still under way when the agent goes is dropped at its old node without a
word, and the sender, which hears that the agent is gone, sends it again.  Only behind the word that it has heard does
the old node believe that a message is meant anew; so an agent may be back at once, or go and come faster than notices.
Both sides count these words, and marks begin afresh with each.

*One flow at a time* is open to an agent.  When gossip tells of the new place first, newer messages wait until the old
node has spoken, its link is gone, or ``wait_gone_s`` is over.

A node that gets a message for an agent it does not run says the same: gone, nothing handled.  Gossip that lags thus
costs a round trip and nothing else.  Whoever says so again and again is asked with growing pauses, and after
``wait_place_s`` messages that nobody waits for are given up.

Queries, responses, durable messages and those of queue groups are left out: their senders learn by other ways what
became of them.  The scheme is the redirecting of a mailbox as in Erlang's process migration or Orleans' grain
directory, with the messages kept at their senders, because a node must not be trusted to pass on what others wrote.
"""
# core: no I/O

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Final, Generic, NamedTuple, TypeVar

from mesh.types import MessageType, Priority
from transport.errors import RemoteProtocolError

from .body import F_FLAGS, F_GROUP, F_SEQUENCE, F_TYPE, FLAG_DURABLE, Message

#: What a node that says what became of its agents' messages says in its hello.
FEATURE: Final = "moves"

_PRIORITIES: Final = tuple(Priority)
_sequence_of: Final = itemgetter(F_SEQUENCE)
_NEVER: Final = frozenset({int(MessageType.QUERY), int(MessageType.RESPONSE)})

K = TypeVar("K", bound=Hashable)


def is_kept(message: Message) -> bool:
    """Whether a message is one that moves with its agent."""
    if message[F_TYPE] in _NEVER or message[F_FLAGS] & FLAG_DURABLE:
        return False
    return len(message) <= F_GROUP or message[F_GROUP] is None


@dataclass(frozen=True, slots=True, kw_only=True)
class MovesConfig:
    """How long is waited for agents that move, and how much is kept for it.

    Attributes:
        wait_gone_s: How long newer messages wait for the old node's word.
        wait_place_s: How long messages wait for the agent's new place.
        retry_s: The pause before a node is asked again that has just said that the agent is not there; doubled ...
        retry_s_max: ... up to this.
        kept_bytes_max: What all flows may keep.  Beyond it the flow with the oldest message forgets.
    """

    wait_gone_s: float = 5.0
    wait_place_s: float = 30.0
    retry_s: float = 0.05
    retry_s_max: float = 1.0
    kept_bytes_max: int = 64 * 1024 * 1024


class Unhandled(NamedTuple):
    """A message to send again.

    ``timestamp_ms`` is 0 if its sender gave it none, ``since`` when it first came back.
    """

    message: Message
    priority: Priority
    ttl: int
    timestamp_ms: int = 0
    since: float = math.inf


class Kept:
    """The sending half of a flow: its messages that are not known to be handled, by priority, in order.

    ``by_priority`` is for whoever sends: a plain append there is all that a message costs.

    Args:
        node_id: Where the flow goes.
        remembers: Whether its node will ever say anything; else nothing is kept.
    """

    __slots__ = ("_below_bytes", "_odd", "_waiting", "by_priority", "node_id", "number")

    def __init__(self, node_id: str, *, remembers: bool) -> None:
        self.node_id = node_id
        # How often the agent was gone.
        self.number = 0
        self.by_priority: list[list[Message] | deque[Message]] = [
            [] if remembers else deque(maxlen=0) for _ in _PRIORITIES
        ]
        # Those of which the message does not hold everything.
        self._odd: dict[int, Unhandled] = {}
        # What the peer has said to have waited for an agent of which it is about to say that it is gone.
        self._waiting: list[range] = []
        # What had been sent when the oldest that is kept was.
        self._below_bytes = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing is kept."""
        return not any(self.by_priority)

    @property
    def oldest(self) -> float:
        """The lowest sequence that is kept."""
        return min((kept[0][F_SEQUENCE] for kept in self.by_priority if kept), default=math.inf)

    def note(self, one: Unhandled) -> None:
        """Remember what a message that is being kept does not hold itself: if its ttl is unusual, or it came back."""
        if type(self.by_priority[0]) is list:
            self._odd[one.message[F_SEQUENCE]] = one

    def weight_bytes(self, sent_bytes: int) -> int:
        """About what is kept, when ``sent_bytes`` were sent in all."""
        return 0 if self.is_empty else sent_bytes - self._below_bytes

    def handled(self, marks: Sequence[int], sent_bytes: int) -> None:
        """All up to these marks, one for each priority, are handled."""
        count = sum(map(len, self.by_priority))
        gone = 0
        for kept, mark in zip(self.by_priority, marks, strict=True):
            if kept and kept[0][F_SEQUENCE] <= mark and type(kept) is list:
                end = bisect_right(kept, mark, key=_sequence_of)
                del kept[:end]
                gone += end
        if self._odd:
            self._odd = {number: one for number, one in self._odd.items() if number > marks[one.priority]}
        if gone == count:
            self._below_bytes = sent_bytes
        else:
            # Looking at each message again would cost more than keeping it.
            self._below_bytes += (sent_bytes - self._below_bytes) * gone // count

    def forget(self) -> int:
        """Keep nothing of what was sent so far; returns how many messages that were."""
        count = sum(map(len, self.by_priority))
        for kept in self.by_priority:
            kept.clear()
        self._odd.clear()
        self._waiting.clear()
        return count

    def waited(self, run: range) -> None:
        """Messages with these sequences waited for an agent that is gone: said ahead of :meth:`gone`.

        Raises:
            RemoteProtocolError: These are more runs than there can be.
        """
        count = 0
        is_kept_here = False
        for kept in self.by_priority:
            count += len(kept)
            at = bisect_left(kept, run.start, key=_sequence_of)
            is_kept_here = is_kept_here or (at < len(kept) and kept[at][F_SEQUENCE] in run)
        if is_kept_here:
            if len(self._waiting) >= count:
                raise RemoteProtocolError("peer says of more runs of messages that they waited than were sent")
            self._waiting.append(run)

    def gone(self, number: int, marks: Sequence[int], ttl: int, now: float) -> list[Unhandled]:
        """The agent is gone: what of it was not handled; nothing is kept any more.

        Args:
            number: The how-manieth time this is.
            marks: Up to where messages had come, for each priority.
            ttl: Of messages that have no other.
            now: The time.

        Raises:
            RemoteProtocolError: It is not the next number.
        """
        if number != self.number + 1:
            raise RemoteProtocolError(f"peer says that an agent is gone for time {number} after time {self.number}")
        self.number = number
        unhandled: list[Unhandled] = []
        runs = sorted(self._waiting, key=lambda run: run.start)
        starts = [run.start for run in runs]
        for priority, kept, mark in zip(_PRIORITIES, self.by_priority, marks, strict=True):
            for message in kept:
                sequence = message[F_SEQUENCE]
                if sequence <= mark:
                    at = bisect_right(starts, sequence) - 1
                    if at < 0 or sequence not in runs[at]:
                        continue
                one = self._odd.get(sequence) or Unhandled(message, priority, ttl)
                unhandled.append(one if one.since <= now else one._replace(since=now))
        self.forget()
        return unhandled


class Arrivals:
    """The receiving half of a flow: how far messages have come, and which of them are meant for the agent of now.

    ``marks`` is for whoever receives: the last sequence of each priority, of messages that are kept (:func:`is_kept`).
    """

    __slots__ = ("_heard", "marks", "number")

    def __init__(self) -> None:
        self.marks = [0] * len(_PRIORITIES)
        # How often the agent was gone, and of how many of these the sender had heard in each priority's lane.
        self.number = 0
        self._heard = [0] * len(_PRIORITIES)

    def takes(self, priority: Priority) -> bool:
        """Whether what comes now was sent by somebody who knew of the last time that the agent was gone."""
        return self._heard[priority] == self.number

    def leave(self) -> list[int] | None:
        """The agent is gone: returns the marks to tell; ``None`` if that was told and nothing has come since."""
        if self.number not in self._heard:
            return None
        marks = [mark if self.takes(priority) else 0 for priority, mark in zip(_PRIORITIES, self.marks, strict=True)]
        self.marks = [0] * len(_PRIORITIES)
        self.number += 1
        return marks

    def heard(self, number: int, priority: Priority) -> None:
        """The sender has heard that the agent was gone that many times; what follows is meant anew.

        Raises:
            RemoteProtocolError: It cannot have heard that.
        """
        if not self._heard[priority] < number <= self.number:
            raise RemoteProtocolError("peer has heard of an agent's going what was never said")
        self._heard[priority] = number

    def handled(self, waiting: Iterable[tuple[Priority, int]]) -> list[int]:
        """Up to where all messages are handled, by priority.

        Args:
            waiting: Those that are not, at least the first of each priority, in the order they came.
        """
        marks = list(self.marks)
        for priority, sequence in waiting:
            marks[priority] = min(marks[priority], sequence - 1)
        return marks


class _Agent(Generic[K]):
    """What is known of one agent: the flows to it, and what waits for its place."""

    __slots__ = ("drained_at", "flows", "gone_from", "pending", "retry_at", "retry_s", "wait_until")

    def __init__(self) -> None:
        self.flows: dict[K, Kept] = {}
        # Sorted by sequence; bounded by what flows keep, since nothing newer is sent meanwhile.
        self.pending: deque[Unhandled] = deque()
        # When something was last sent again.
        self.drained_at = -math.inf
        # Until when newer messages wait for the old node's word.
        self.wait_until: float | None = None
        self.gone_from = ""
        self.retry_at = -math.inf
        self.retry_s = 0.0


class Moves(Generic[K]):
    """All flows of a node to agents, and what waits for agents that are gone.

    ``K`` is whatever the shell calls a dialogue.

    Args:
        config: Times and bounds.
        ttl: Of messages that have no other.
    """

    def __init__(self, config: MovesConfig, ttl: int) -> None:
        self._config = config
        self._ttl = ttl
        self._agents: dict[int, _Agent[K]] = {}
        # Messages that were forgotten before their agents were known to have handled them; most will have.
        self.forgotten = 0

    # --- flows --------------------------------------------------------------------------------------------------

    def flow(self, agent_id: int, key: K, node_id: str, *, remembers: bool) -> Kept:
        """The flow to an agent over a dialogue."""
        agent = self._agents.get(agent_id)
        if agent is None:
            agent = self._agents[agent_id] = _Agent()
        flow = agent.flows.get(key)
        if flow is None:
            flow = agent.flows[key] = Kept(node_id, remembers=remembers)
        return flow

    def known_flow(self, agent_id: int, key: K) -> Kept | None:
        """The same, if there is one."""
        agent = self._agents.get(agent_id)
        return agent.flows.get(key) if agent is not None else None

    def closed(self, key: K) -> None:
        """A dialogue is over: what its flows kept is uncertain for ever."""
        for agent_id, agent in list(self._agents.items()):
            flow = agent.flows.pop(key, None)
            if flow is not None and not agent.flows and not agent.pending:
                del self._agents[agent_id]

    def may_send(self, agent_id: int, node_id: str, now: float) -> bool:
        """Whether a newer message may go to the agent at that node; if not, ask again at any news."""
        agent = self._agents.get(agent_id)
        if agent is None:
            return True
        if agent.pending:
            return False
        others = [flow for flow in agent.flows.values() if flow.node_id != node_id and not flow.is_empty]
        if not others:
            agent.wait_until = None
            return True
        if agent.wait_until is None:
            agent.wait_until = now + self._config.wait_gone_s
        if now < agent.wait_until:
            return False
        agent.wait_until = None
        self.forgotten += sum(flow.forget() for flow in others)
        return True

    def is_awaited(self, agent_id: int) -> bool:
        """Whether somebody waits for news of where the agent was."""
        agent = self._agents.get(agent_id)
        return agent is not None and agent.wait_until is not None

    def limit(self, weights: Callable[[K, int], int]) -> None:
        """Forget the oldest if all flows keep too much.

        Args:
            weights: What was sent in all over a dialogue to an agent, bytes.
        """
        flows = [
            (flow.oldest, flow.weight_bytes(weights(key, agent_id)), number, flow)
            for agent_id, agent in self._agents.items()
            for number, (key, flow) in enumerate(agent.flows.items())
            if not flow.is_empty
        ]
        excess = sum(flow[1] for flow in flows) - self._config.kept_bytes_max
        flows.sort(key=itemgetter(0), reverse=True)
        while excess > 0:
            _, weight, _, flow = flows.pop()
            self.forgotten += flow.forget()
            excess -= weight

    # --- agents that are gone -----------------------------------------------------------------------------------

    def gone(self, agent_id: int, key: K, number: int, marks: Sequence[int], now: float) -> list[Unhandled]:
        """An agent's node says that it is gone; returns what has come back by that.

        Raises:
            RemoteProtocolError: Nothing was sent to it there, or it is the wrong number.
        """
        agent = self._agents.get(agent_id)
        flow = agent.flows.get(key) if agent is not None else None
        if agent is None or flow is None:
            raise RemoteProtocolError("peer says that an agent is gone to which nothing was sent")
        unhandled = flow.gone(number, marks, self._ttl, now)
        config = self._config
        if agent.gone_from != flow.node_id or now - agent.drained_at > config.wait_gone_s:
            agent.retry_s = config.retry_s  # not one of a row of refusals
        agent.gone_from, agent.retry_at = flow.node_id, now + agent.retry_s
        agent.retry_s = min(agent.retry_s * 2, config.retry_s_max)
        agent.wait_until = None
        if unhandled:
            agent.pending = deque(sorted((*agent.pending, *unhandled), key=lambda one: one.message[F_SEQUENCE]))
        return unhandled

    def pending(self) -> list[int]:
        """The agents for which something waits to be sent again."""
        return [agent_id for agent_id, agent in self._agents.items() if agent.pending]

    def pending_count(self) -> int:
        """How many messages wait to be sent again."""
        return sum(len(agent.pending) for agent in self._agents.values())

    def ready_at(self, agent_id: int, node_id: str) -> float:
        """From when on what waits may be sent to that node."""
        agent = self._agents[agent_id]
        return agent.retry_at if agent.gone_from == node_id else -math.inf

    def next_pending(self, agent_id: int) -> Unhandled | None:
        """The message that should be sent again next."""
        agent = self._agents.get(agent_id)
        return agent.pending[0] if agent is not None and agent.pending else None

    def sent_again(self, agent_id: int, now: float) -> None:
        """It was, or need not be."""
        agent = self._agents[agent_id]
        agent.pending.popleft()
        agent.drained_at = now

    def give_up(self, agent_id: int, now: float, is_awaited: Callable[[Unhandled], bool]) -> list[Unhandled]:
        """Drop what has waited too long for its agent's place, and return it.

        Args:
            agent_id: The agent.
            now: The time.
            is_awaited: Whether somebody waits for a message's acknowledgement: such a one has a time of its own.
        """
        agent = self._agents.get(agent_id)
        if agent is None:
            return []
        latest = now - self._config.wait_place_s
        dropped = [one for one in agent.pending if one.since <= latest and not is_awaited(one)]
        if dropped:
            agent.pending = deque(one for one in agent.pending if one.since > latest or is_awaited(one))
        return dropped
