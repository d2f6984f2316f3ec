"""The shell around :mod:`.moves`: what a courier does when agents move, its own and others'.

Its own: it tells each peer that sent to the agent what had not been handled.  Others': it sends that again, one task
for each agent for which something waits, at the pace of the new place's credit.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Final

from mesh.agents import Delivery, LocalAgent
from mesh.errors import NetworkClosed
from mesh.types import DEFAULT_TTL, Priority
from transport.errors import LinkClosed
from transport.logs import get_logger
from transport.tasks import TaskScope

from .body import F_FLAGS, F_OFFSET, F_SEQUENCE, FLAG_ACK, Message
from .dialogue import Dialogue, IncomingFlow, runs_of
from .moves import Kept, Moves, MovesConfig, Unhandled, is_kept
from .notices import Gone, Handled, Notices, Waiting

log = get_logger("mesh.messaging")

# A task that sends again gives way to the loop after this many messages.
_TURN_MESSAGES: Final = 256

# How often it looks whether something has waited too long, or an unknown place is known, seconds.
_LOOK_AGAIN_S: Final = 1.0

# How much may be sent between two looks at what all flows keep.
_LIMIT_EVERY_BYTES: Final = 4 * 1024 * 1024


@dataclass(slots=True)
class _Acked:
    """A message whose sender waits for its acknowledgement, and that moved; ``dialogue``: where it went since."""

    future: asyncio.Future[int]
    dialogue: Dialogue | None = None


class _Leaving:
    """An agent of ours that is being stopped: its flows as they were, and what is found to have waited in each."""

    def __init__(self) -> None:
        self.marks: dict[IncomingFlow, list[int]] = {}
        self.waiting: dict[IncomingFlow, list[int]] = {}


class Moving:
    """Moves of agents, for one courier.

    Args:
        config: Times and bounds.
        counters: The courier's.
        way: The dialogue with the node that runs an agent; ``None``: there is none now.
        wait_link: Asks for a link to an agent's node, and returns at any change of links or places, or after a while.
        tell_news: Says that such a thing changed, here: that newer messages may be sent to an agent again.
        dialogues: All dialogues.
    """

    def __init__(
        self,
        config: MovesConfig,
        counters: dict[str, int],
        *,
        way: Callable[[int], Dialogue | None],
        wait_link: Callable[[int], Coroutine[Any, Any, None]],
        tell_news: Callable[[], None],
        dialogues: Callable[[], Iterable[Dialogue]],
    ) -> None:
        self._moves: Moves[Dialogue] = Moves(config, DEFAULT_TTL)
        self._counters = counters
        counters |= dict.fromkeys(("moved_sent_again", "moved_returned", "moved_lost", "moved_dropped"), 0)
        self._way = way
        self._wait_link = wait_link
        self._tell_news = tell_news
        self._dialogues = dialogues
        self._scope = TaskScope("moving agents")
        self._tasks: dict[int, asyncio.Task[Any]] = {}
        self._acked: dict[int, _Acked] = {}
        self._leaving: dict[LocalAgent, _Leaving] = {}
        self._sent_bytes = 0
        self._log_at = -math.inf

    # --- sending ------------------------------------------------------------------------------------------------

    def flow(self, agent_id: int, dialogue: Dialogue) -> Kept | None:
        """What is kept of the messages to an agent over a dialogue; ``None``: nothing newer may be sent there yet."""
        now = asyncio.get_running_loop().time()
        if not self._moves.may_send(agent_id, dialogue.node_id, now):
            return None
        return self._flow(agent_id, dialogue)

    def _flow(self, agent_id: int, dialogue: Dialogue) -> Kept:
        return self._moves.flow(agent_id, dialogue, dialogue.node_id, remembers=dialogue.knows_moves)

    def sent(self, size_bytes: int) -> None:
        """So much was handed to links."""
        self._sent_bytes += size_bytes
        if self._sent_bytes >= _LIMIT_EVERY_BYTES:
            self._sent_bytes = 0
            self._moves.limit(lambda dialogue, agent_id: dialogue.window(agent_id).sent_bytes)

    def is_pending(self, sequence: int) -> bool:
        """Whether a message whose sender waits for its acknowledgement is in nobody's hands."""
        acked = self._acked.get(sequence)
        return acked is not None and acked.dialogue is None

    def ended(self, sequence: int, dialogue: Dialogue) -> str:
        """Nobody waits for this acknowledgement any more; returns the node that the message went to last."""
        if self.is_pending(sequence):
            return dialogue.node_id  # what waits must not be sent any more: it is remembered until its turn comes
        acked = self._acked.pop(sequence, None)
        last = (acked.dialogue if acked is not None else None) or dialogue
        last.unacked.pop(sequence, None)
        return last.node_id

    def dialogue_closed(self, dialogue: Dialogue) -> None:
        """A link is gone, and with it what was kept."""
        self._moves.closed(dialogue)

    # --- what peers say -----------------------------------------------------------------------------------------

    def received(self, dialogue: Dialogue, notices: Notices) -> None:
        """A peer has news of agents that were there, or has heard ours.

        Raises:
            RemoteProtocolError: It cannot be true.
        """
        for agent_id, *marks in notices.handled:
            if (flow := self._moves.known_flow(agent_id, dialogue)) is not None:
                flow.handled(marks, dialogue.window(agent_id).sent_bytes)
                if self._moves.is_awaited(agent_id) and flow.is_empty:
                    self._tell_news()
        for waiting in notices.waiting:
            if (flow := self._moves.known_flow(waiting.agent_id, dialogue)) is not None:
                flow.waited(range(waiting.first, waiting.first + waiting.messages))
        for gone in notices.gone:
            self._gone(dialogue, gone)
        for agent_id, number, priority in notices.heard:
            dialogue.incoming(agent_id).arrivals.heard(number, Priority(priority))

    def _gone(self, dialogue: Dialogue, gone: Gone) -> None:
        agent_id, number, *marks = gone
        now = asyncio.get_running_loop().time()
        if dialogue.has_sent_to(agent_id):
            self._flow(agent_id, dialogue)  # there is none yet if it was sent queries and durable messages only
        returned = self._moves.gone(agent_id, dialogue, number, marks, now)
        dialogue.heard_gone(agent_id, number)
        self._counters["moved_returned"] += len(returned)
        for one in returned:
            sequence = one.message[F_SEQUENCE]
            future = dialogue.unacked.pop(sequence, None) if one.message[F_FLAGS] & FLAG_ACK else None
            if future is not None:
                self._acked[sequence] = _Acked(future)
        if self._moves.next_pending(agent_id) is not None and agent_id not in self._tasks:
            task = self._scope.spawn(self._send_again(agent_id), name=f"send again to agent {agent_id}")
            if task is not None:
                self._tasks[agent_id] = task
        # Routes to it are not what they were.
        self._tell_news()

    # --- sending again ------------------------------------------------------------------------------------------

    async def _send_again(self, agent_id: int) -> None:
        now = asyncio.get_running_loop().time
        try:
            while self._moves.next_pending(agent_id) is not None:
                dialogue = self._way(agent_id)
                wait_s = _LOOK_AGAIN_S
                if dialogue is not None:
                    wait_s = self._moves.ready_at(agent_id, dialogue.node_id) - now()
                    if wait_s <= 0:
                        await self._send_some(agent_id, dialogue)
                        continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(wait_s, _LOOK_AGAIN_S)):
                        await self._wait_link(agent_id)
                self._give_up(agent_id)
        finally:
            del self._tasks[agent_id]
            self._tell_news()

    async def _send_some(self, agent_id: int, dialogue: Dialogue) -> None:
        """Send again what there is credit for, or wait until there is some."""
        window = dialogue.window(agent_id)
        left = _TURN_MESSAGES
        while left and window.is_open and not dialogue.is_congested:
            one = self._moves.next_pending(agent_id)
            if one is None:
                return
            self._moves.sent_again(agent_id, asyncio.get_running_loop().time())
            acked = self._acked.get(one.message[F_SEQUENCE])
            if acked is not None and acked.future.done():
                del self._acked[one.message[F_SEQUENCE]]  # its sender was told that it was not delivered
            else:
                window.sent_bytes += self._post(agent_id, dialogue, one, acked)
            left -= 1
        if left:
            with contextlib.suppress(LinkClosed, TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await dialogue.wait_ready(agent_id)
            self._give_up(agent_id)
        else:
            await asyncio.sleep(0)

    def _post(self, agent_id: int, dialogue: Dialogue, one: Unhandled, acked: _Acked | None) -> int:
        message: Message = one.message
        sequence = message[F_SEQUENCE]
        message[F_OFFSET] = one.timestamp_ms - dialogue.base_ms if one.timestamp_ms else 0
        flow = self._flow(agent_id, dialogue)
        flow.by_priority[one.priority].append(message)
        flow.note(one)
        if acked is not None:
            acked.dialogue = dialogue
            dialogue.unacked[sequence] = acked.future
        self._counters["moved_sent_again"] += 1
        return dialogue.post(message, one.priority, one.ttl)

    def _give_up(self, agent_id: int) -> None:
        now = asyncio.get_running_loop().time()
        lost = 0
        for one in self._moves.give_up(agent_id, now, self._is_awaited):
            lost += self._acked.pop(one.message[F_SEQUENCE], None) is None  # else its sender knows
        self._counters["moved_lost"] += lost
        if lost and now >= self._log_at:
            self._log_at = now + 1.0
            log.warning("messages dropped: their agent was not to be found", agent=agent_id, messages=lost)

    def _is_awaited(self, one: Unhandled) -> bool:
        acked = self._acked.get(one.message[F_SEQUENCE])
        return acked is not None and not acked.future.done()

    # --- our own agents -----------------------------------------------------------------------------------------

    def leaving(self, agent: LocalAgent) -> None:
        """An agent of ours is about to be stopped: from now on nothing that comes is for it."""
        record = self._leaving[agent] = _Leaving()
        for dialogue in self._dialogues():
            flow = dialogue.known_incoming(agent.agent_id) if dialogue.knows_moves else None
            if flow is not None and (marks := flow.arrivals.leave()) is not None:
                record.marks[flow] = marks

    def waited(self, agent: LocalAgent, delivery: Delivery) -> bool:
        """A message waited for it to the end; ``False``: nobody will send it again."""
        record, flow = self._leaving.get(agent), delivery.flow
        if record is None or flow is None or flow not in record.marks or not is_kept(delivery.raw):
            return False
        record.waiting.setdefault(flow, []).append(delivery.raw[F_SEQUENCE])
        return True

    def left(self, agent: LocalAgent) -> None:
        """It has been stopped: its senders learn what became of their messages."""
        record = self._leaving.pop(agent)
        for flow, marks in record.marks.items():
            runs = runs_of(sorted(record.waiting.get(flow, ())))
            self._owe_gone(flow, marks, [Waiting(flow.agent_id, first, count) for first, count in runs])

    def _owe_gone(self, flow: IncomingFlow, marks: list[int], waiting: list[Waiting]) -> None:
        if flow.dialogue.is_open:
            flow.dialogue.owe_gone(waiting, Gone(flow.agent_id, flow.arrivals.number, *marks))

    def refused(self, flow: IncomingFlow, message: Message, cost: int) -> bool:
        """A message came for an agent that is not here, or from before it was here: ``True`` if that is all.

        Then its sender knows, or will, and sends it again.
        """
        if not flow.dialogue.knows_moves or not is_kept(message):
            return False
        flow.taken(cost)
        self._counters["moved_dropped"] += 1
        return True

    def not_here(self, flow: IncomingFlow) -> None:
        """Something came for an agent that nobody here knows."""
        if (marks := flow.arrivals.leave()) is not None:
            self._owe_gone(flow, marks, [])

    def handled(self, flow: IncomingFlow, agent: LocalAgent | None) -> Handled | None:
        """How far our agent has handled what came by a flow."""
        if agent is None or not any(flow.arrivals.marks):
            return None
        waiting = agent.first_waiting(flow, sum(map(bool, flow.arrivals.marks)))
        return Handled(flow.agent_id, *flow.arrivals.handled(waiting))

    # --- end ----------------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Return when nothing is left that could be sent again now."""
        while tasks := [task for agent_id, task in self._tasks.items() if self._way(agent_id) is not None]:
            await asyncio.wait(tasks, timeout=0.05)

    async def close(self) -> None:
        """Send nothing more."""
        await self._scope.close()
        self._counters["moved_lost"] += self._moves.pending_count()
        for acked in self._acked.values():
            if not acked.future.done():
                acked.future.set_exception(NetworkClosed("this node left the network before the message had gone out"))

    def statistics(self) -> dict[str, int]:
        """What waits now, and what was forgotten."""
        return {"moved_waiting": self._moves.pending_count(), "moved_forgotten": self._moves.forgotten}
