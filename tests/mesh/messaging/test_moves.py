"""What becomes of messages to an agent that moves: exactly once, in order, whatever comes late."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.messaging.body import FLAG_DURABLE, OVERHEAD_BYTES, Message
from mesh.messaging.moves import Arrivals, Kept, Moves, MovesConfig, Unhandled, is_kept
from mesh.types import MessageType, Priority
from transport.errors import RemoteProtocolError

LOW, NORMAL, HIGH, URGENT = Priority
AGENT = 7
TTL = 8


def message(
    sequence: int, sender: int = 1, *, payload: bytes = b"", kind: MessageType = MessageType.COMMAND
) -> Message:
    """A message to the agent, in wire order."""
    return [sequence, int(kind), sender, AGENT, 0, payload, 0]


def flow_of(*sequences: int, priority: Priority = NORMAL) -> Kept:
    """A flow that keeps messages with these sequences."""
    kept = Kept("a", remembers=True)
    kept.by_priority[priority].extend(message(sequence) for sequence in sequences)
    return kept


def sequences(unhandled: list[Unhandled]) -> list[int]:
    """Theirs."""
    return [one.message[0] for one in unhandled]


# --- what is kept -----------------------------------------------------------------------------------------------


def test_only_messages_that_nobody_else_looks_after_are_kept() -> None:
    """Queries and responses have callers, durable messages an outbox, and a queue group's are sent to another."""
    durable = message(1)
    durable[4] = FLAG_DURABLE
    in_group = [*message(1), None, None, "group"]

    assert is_kept(message(1))
    assert is_kept([*message(1), None, {"k": "v"}])
    assert is_kept([*message(1), None, None, None])
    assert not is_kept(durable)
    assert not is_kept(in_group)
    assert not is_kept(message(1, kind=MessageType.QUERY))
    assert not is_kept(message(1, kind=MessageType.RESPONSE))


def test_a_flow_forgets_what_is_handled() -> None:
    """Up to the mark of each priority, and what it knows of these beside."""
    kept = flow_of(1, 3, 5)
    kept.by_priority[URGENT].extend([message(2), message(4)])
    kept.note(Unhandled(kept.by_priority[URGENT][1], URGENT, 3, 99))

    kept.handled([0, 3, 0, 2], 5 * OVERHEAD_BYTES)

    assert [[one[0] for one in messages] for messages in kept.by_priority] == [[], [5], [], [4]]
    assert kept.oldest == 4
    assert kept.weight_bytes(5 * OVERHEAD_BYTES) == 2 * OVERHEAD_BYTES
    kept.handled([0, 5, 0, 4], 5 * OVERHEAD_BYTES)
    assert kept.is_empty
    assert kept.weight_bytes(5 * OVERHEAD_BYTES) == 0
    assert kept._odd == {}, "or it would grow for ever"


def test_a_flow_to_a_node_that_says_nothing_keeps_nothing() -> None:
    """Its lists take messages like any other's, so that whoever sends need not ask."""
    kept = Kept("a", remembers=False)
    kept.by_priority[LOW].append(message(1))
    kept.note(Unhandled(message(1), LOW, 3))

    assert kept.is_empty
    kept.handled([9, 9, 9, 9], 100)
    assert kept.gone(1, [0, 0, 0, 0], TTL, 0.0) == []


def test_what_waited_or_had_not_come_is_unhandled() -> None:
    """Messages up to the mark were handled unless they are said to have waited."""
    kept = flow_of(1, 3, 5, 7, 9)
    kept.note(Unhandled(kept.by_priority[NORMAL][4], NORMAL, 3, 99))
    kept.waited(range(5, 6))
    kept.waited(range(2, 4))
    kept.waited(range(100, 200))

    unhandled = kept.gone(1, [0, 7, 0, 0], TTL, 10.0)

    assert sequences(unhandled) == [3, 5, 9]
    assert unhandled[0][1:] == (NORMAL, TTL, 0, 10.0)
    assert unhandled[2][1:] == (NORMAL, 3, 99, 10.0)
    assert kept.is_empty


def test_a_message_that_comes_back_again_is_as_old_as_it_is() -> None:
    """So that no row of refusals keeps it for ever."""
    kept = flow_of(1)
    kept.note(Unhandled(kept.by_priority[NORMAL][0], NORMAL, TTL, 0, 4.0))

    assert kept.gone(1, [0] * 4, TTL, 10.0)[0].since == 4.0


def test_a_peer_cannot_claim_without_bound_or_out_of_turn() -> None:
    """It may name as many runs as there are messages, and the next number only."""
    kept = flow_of(1, 2)
    kept.waited(range(1, 2))
    kept.waited(range(2, 3))
    with pytest.raises(RemoteProtocolError, match="more runs"):
        kept.waited(range(1, 3))
    for number in (0, 2):
        with pytest.raises(RemoteProtocolError, match="for time"):
            kept.gone(number, [0] * 4, TTL, 0.0)


# --- what has come ----------------------------------------------------------------------------------------------


def test_after_its_agent_went_a_flow_takes_nothing_until_the_sender_has_heard() -> None:
    """In each priority's lane by itself; marks begin afresh."""
    arrivals = Arrivals()
    arrivals.marks[NORMAL] = 5

    assert arrivals.leave() == [0, 5, 0, 0]
    assert not any(arrivals.takes(priority) for priority in Priority)
    assert arrivals.leave() is None
    arrivals.heard(1, NORMAL)
    assert [arrivals.takes(priority) for priority in Priority] == [False, True, False, False]
    arrivals.marks[NORMAL] = 9
    assert arrivals.leave() == [0, 9, 0, 0]
    assert arrivals.number == 2


def test_nobody_hears_what_was_not_said() -> None:
    """Nor the same twice."""
    arrivals = Arrivals()
    with pytest.raises(RemoteProtocolError, match="never said"):
        arrivals.heard(1, NORMAL)
    arrivals.leave()
    arrivals.heard(1, NORMAL)
    with pytest.raises(RemoteProtocolError, match="never said"):
        arrivals.heard(1, NORMAL)


def test_handled_ends_before_what_waits() -> None:
    """The first of each priority, whichever sender's it is."""
    arrivals = Arrivals()
    arrivals.marks = [0, 20, 0, 21]

    assert arrivals.handled([(NORMAL, 9), (NORMAL, 7)]) == [0, 6, 0, 21]


# --- all flows --------------------------------------------------------------------------------------------------


def moves(**config: float) -> Moves[str]:
    """With flows named as their nodes."""
    return Moves(MovesConfig(**config), TTL)  # type: ignore[arg-type]


def keep(core: Moves[str], node: str, *numbers: int) -> Kept:
    """Send the agent messages over the flow to a node."""
    flow = core.flow(AGENT, node, node, remembers=True)
    flow.by_priority[NORMAL].extend(message(number) for number in numbers)
    return flow


def test_newer_messages_wait_for_the_old_node_for_a_time() -> None:
    """Unless everything there was handled; then what it keeps is forgotten, and counted."""
    core = moves(wait_gone_s=5)
    assert core.may_send(AGENT, "a", 0)
    keep(core, "a", 1, 2)

    assert core.may_send(AGENT, "a", 0)
    assert not core.is_awaited(AGENT)
    assert not core.may_send(AGENT, "b", 10)
    assert core.is_awaited(AGENT)
    assert not core.may_send(AGENT, "b", 14)
    assert core.may_send(AGENT, "b", 15)
    assert core.forgotten == 2
    assert core.may_send(AGENT, "b", 15)
    assert not core.is_awaited(AGENT)


def test_messages_go_again_in_order_before_newer_ones() -> None:
    """What came back from several places is one queue."""
    core = moves()
    keep(core, "a", 1, 4)
    keep(core, "b", 2, 3)

    assert sequences(core.gone(AGENT, "a", 1, [0] * 4, 0)) == [1, 4]
    core.gone(AGENT, "b", 1, [0, 2, 0, 0], 0)

    assert not core.may_send(AGENT, "c", 0)
    assert core.pending() == [AGENT]
    assert core.pending_count() == 3
    order = []
    while (one := core.next_pending(AGENT)) is not None:
        order.append(one.message[0])
        core.sent_again(AGENT, 0)
    assert order == [1, 3, 4]
    assert core.may_send(AGENT, "c", 0)
    assert core.pending() == []


def test_a_node_that_refuses_in_a_row_is_asked_less_and_less() -> None:
    """Another is asked at once; and whoever took messages for a while is asked soon again."""
    core = moves(retry_s=0.1, retry_s_max=0.3, wait_gone_s=5)
    keep(core, "a", 1)

    waits = []
    for number in range(1, 5):
        core.gone(AGENT, "a", number, [0] * 4, 100)
        waits.append(core.ready_at(AGENT, "a") - 100)
        core.sent_again(AGENT, 100)
        keep(core, "a", number + 1)
    assert waits == pytest.approx([0.1, 0.2, 0.3, 0.3])
    core.gone(AGENT, "a", 5, [0] * 4, 106)
    assert core.ready_at(AGENT, "a") == pytest.approx(106.1)
    assert core.ready_at(AGENT, "b") < 0
    keep(core, "b", 9)
    core.gone(AGENT, "b", 1, [0] * 4, 106)
    assert core.ready_at(AGENT, "b") == pytest.approx(106.1)


def test_what_waits_too_long_is_given_up_unless_somebody_waits_for_it() -> None:
    """Each by its own time."""
    core = moves(wait_place_s=30)
    keep(core, "a", 1, 2)
    core.gone(AGENT, "a", 1, [0] * 4, 0)
    keep(core, "b", 3)
    core.gone(AGENT, "b", 1, [0] * 4, 10)

    assert core.give_up(AGENT, 29, lambda _: False) == []
    assert sequences(core.give_up(AGENT, 30, lambda one: one.message[0] == 1)) == [2]
    assert core.pending_count() == 2
    assert core.give_up(8, 30, lambda _: False) == []


def test_nothing_comes_back_of_what_was_handled() -> None:
    """Newer messages may go on at once."""
    core = moves()
    keep(core, "a", 1, 2)

    assert core.gone(AGENT, "a", 1, [0, 2, 0, 0], 0) == []
    assert core.may_send(AGENT, "b", 0)


def test_only_what_was_sent_to_can_be_gone() -> None:
    """Whatever else a peer says of agents is refused."""
    core = moves()
    with pytest.raises(RemoteProtocolError, match="nothing was sent"):
        core.gone(AGENT, "a", 1, [0] * 4, 0)
    keep(core, "a", 1)
    with pytest.raises(RemoteProtocolError, match="nothing was sent"):
        core.gone(AGENT, "b", 1, [0] * 4, 0)
    assert core.known_flow(AGENT, "a") is not None
    assert core.known_flow(8, "a") is None


def test_a_closed_dialogue_takes_its_flows_along() -> None:
    """What came back before stays."""
    core = moves()
    keep(core, "a", 1)
    keep(core, "b", 2)
    core.flow(8, "c", "c", remembers=True)
    core.gone(AGENT, "a", 1, [0] * 4, 0)

    core.closed("b")
    core.closed("a")

    assert core.pending_count() == 1
    assert core.known_flow(AGENT, "a") is None
    core.closed("c")
    assert core.known_flow(8, "c") is None


def test_all_flows_together_keep_a_bounded_amount() -> None:
    """The oldest are forgotten first, and no more than needed; those that keep nothing do not count."""
    core = moves(kept_bytes_max=250)
    oldest, newest = keep(core, "b", 1), keep(core, "a", 5)
    middle = keep(core, "c", 3)
    core.flow(AGENT, "d", "d", remembers=True)

    core.limit(lambda *_: 50)
    assert core.forgotten == 0
    core.limit(lambda *_: 100)
    assert (oldest.is_empty, middle.is_empty, newest.is_empty) == (True, False, False)
    core.limit(lambda *_: 300)
    assert (middle.is_empty, newest.is_empty) == (True, True)
    assert core.forgotten == 3


# --- any interleaving -------------------------------------------------------------------------------------------

NODES = ("a", "b", "c")


class Model:
    """One sending node, three that an agent wanders between, lanes and gossip that are as late as they like."""

    def __init__(self) -> None:
        self.core = moves(wait_gone_s=1e9, wait_place_s=1e9)
        self.now = 0.0
        self.sequence = 0
        self.place: str | None = "a"
        self.known: str | None = "a"
        self.gossip: deque[str | None] = deque()
        self.up: dict[tuple[str, Priority], deque[Message | int]] = {(n, p): deque() for n in NODES for p in Priority}
        self.down: dict[str, deque[tuple[str, list[int]]]] = {node: deque() for node in NODES}
        self.arrivals = {node: Arrivals() for node in NODES}
        self.reached: list[str] = []
        self.lanes: dict[int, deque[tuple[Priority, int]]] = {}
        self.sent: list[tuple[int, Priority, int]] = []
        self.handled: list[tuple[int, Priority, int]] = []

    def send(self, sender: int, priority: Priority) -> None:
        """Post a message if one may be."""
        if self.known is not None and self.core.may_send(AGENT, self.known, self.now):
            self.sequence += 1
            self.sent.append((sender, priority, self.sequence))
            self.post(Unhandled(message(self.sequence, sender), priority, TTL))

    def post(self, one: Unhandled) -> None:
        """Put a message on its way."""
        assert self.known is not None
        flow = self.core.flow(AGENT, self.known, self.known, remembers=True)
        flow.by_priority[one.priority].append(one.message)
        self.up[self.known, one.priority].append(one.message)

    def send_again(self) -> None:
        """Post the next that came back."""
        self.now += 2
        one = self.core.next_pending(AGENT)
        if one is not None and self.known is not None and self.core.ready_at(AGENT, self.known) <= self.now:
            self.core.sent_again(AGENT, self.now)
            self.post(one)

    def arrive(self, node: str, priority: Priority) -> None:
        """Let the next of a lane come to its node."""
        if not self.up[node, priority]:
            return
        self.reached.append(node)
        item, arrivals = self.up[node, priority].popleft(), self.arrivals[node]
        if isinstance(item, int):
            arrivals.heard(item, priority)
        elif arrivals.takes(priority):
            if self.place == node:
                arrivals.marks[priority] = item[0]
                self.lanes.setdefault(item[2], deque()).append((priority, item[0]))
            else:
                self.say_gone(node, [])

    def say_gone(self, node: str, waiting: list[int]) -> None:
        """Tell the sender, if there is something to tell."""
        marks = self.arrivals[node].leave()
        if marks is None:
            assert waiting == []
            return
        self.down[node].extend(("waited", [sequence]) for sequence in waiting)
        self.down[node].append(("gone", [self.arrivals[node].number, *marks]))

    def handle(self, sender: int) -> None:
        """Let the agent handle the next of a sender."""
        if self.lanes.get(sender):
            self.handled.append((sender, *self.lanes[sender].popleft()))

    def grant(self) -> None:
        """Let the agent's node say how far it is."""
        if self.place is not None:
            waiting = [one for lane in self.lanes.values() for one in lane]
            self.down[self.place].append(("handled", self.arrivals[self.place].handled(waiting)))

    def hear(self, node: str) -> None:
        """Let the next word of a node come to the sender."""
        if not self.down[node]:
            return
        what, values = self.down[node].popleft()
        flow = self.core.known_flow(AGENT, node)
        if what == "gone":
            self.core.gone(AGENT, node, values[0], values[1:], self.now)
            for priority in Priority:
                self.up[node, priority].append(values[0])
        elif flow is not None and what == "waited":
            flow.waited(range(values[0], values[0] + 1))
        elif flow is not None:
            flow.handled(values, 0)

    def move(self, node: str | None) -> None:
        """Stop the agent, and run it elsewhere, or there again."""
        if self.place is not None:
            waiting = sorted(sequence for lane in self.lanes.values() for _, sequence in lane)
            self.lanes.clear()
            if self.place in self.reached:
                self.say_gone(self.place, waiting)
        self.place = node
        self.gossip.append(node)

    def learn(self) -> None:
        """Let gossip come to the sender."""
        if self.gossip:
            self.known = self.gossip.popleft()

    def settle(self) -> None:
        """Let everything come to its end."""
        if self.place is None:
            self.move("b")
        while self.gossip:
            self.learn()
        for _ in range(10 * len(self.sent) + 50):
            for node in NODES:
                for priority in Priority:
                    self.arrive(node, priority)
                self.hear(node)
            self.send_again()
            self.handle(1)
            self.handle(2)


STEPS = st.one_of(
    st.tuples(st.just("send"), st.sampled_from([1, 2]), st.sampled_from([NORMAL, NORMAL, URGENT])),
    st.tuples(st.just("arrive"), st.sampled_from(NODES), st.sampled_from([NORMAL, NORMAL, URGENT])),
    st.tuples(st.just("handle"), st.sampled_from([1, 2])),
    st.tuples(st.just("hear"), st.sampled_from(NODES)),
    st.tuples(st.just("move"), st.sampled_from([*NODES, None])),
    st.sampled_from([("learn",), ("grant",), ("send_again",)]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, min_size=10, max_size=120))
def test_every_message_is_handled_once_and_in_order(steps: list[tuple[object, ...]]) -> None:
    """However sends, moves, gossip, notices and credit interleave."""
    model = Model()
    for name, *arguments in steps:
        getattr(model, str(name))(*arguments)
    model.settle()

    for sender in (1, 2):
        for priority in (NORMAL, URGENT):
            handled = [one for one in model.handled if one[:2] == (sender, priority)]
            assert handled == [one for one in model.sent if one[:2] == (sender, priority)]
