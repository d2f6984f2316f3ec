"""The outbox core: order, windows, answers, retries, moves, deadlines.  With the inbox, under crashes: `test_inbox`."""

from __future__ import annotations

import math
import random

import pytest

from mesh.messaging.outbox import (
    IN_FLIGHT_MAX,
    LETTER_OVERHEAD_BYTES,
    Died,
    Failed,
    Handled,
    Letter,
    Next,
    Outbox,
    OutboxConfig,
    OutboxEvent,
    Reason,
    RetryBudget,
    StreamKey,
    decode_letter,
    encode_letter,
    first_sequence,
)
from transport.errors import RemoteProtocolError
from transport.wire import pack

KEY = StreamKey(1, 7, 1)
NEVER = 10**15


def make_letter(
    sequence: int, *, to: int = 7, sender: int = 1, priority: int = 1, deadline_ms: int = NEVER, payload: bytes = b""
) -> Letter:
    """A letter of agent 1 to agent 7."""
    return Letter(sequence, sender, to, 1, priority, 8, payload, 5, deadline_ms)


def make_outbox(*letters: Letter, config: OutboxConfig | None = None) -> Outbox:
    """An outbox that holds these."""
    outbox = Outbox(config or OutboxConfig(), random.Random(1))
    for letter in letters:
        outbox.reserve(letter.size_bytes)
        outbox.add(letter)
    return outbox


def send(outbox: Outbox, *, node: str = "b", agent: int = 7, now: float = 0.0, linked: str = "bc") -> list[int]:
    """Send all that can go; returns the numbers."""
    sent = []
    while (step := following(outbox, node=node, agent=agent, now=now, linked=linked)) is not None:
        outbox.sent(step)
        sent.append(step.letter.sequence)
    return sent


def following(outbox: Outbox, *, node: str = "b", agent: int = 7, now: float = 0.0, linked: str = "bc") -> Next | None:
    """What should go next."""
    return outbox.next_for(agent, node, now, linked.__contains__)


def handled(events: list[OutboxEvent]) -> list[int]:
    """The numbers of letters that were handled."""
    return [event.letter.sequence for event in events if isinstance(event, Handled)]


# --- order and windows ------------------------------------------------------------------------------------------


def test_each_letter_names_the_one_before_it() -> None:
    """The first of a stream names none; other streams do not matter."""
    outbox = make_outbox(make_letter(1), make_letter(2, sender=5), make_letter(4), make_letter(9))
    steps = []
    while (step := following(outbox)) is not None:
        outbox.sent(step)
        steps.append((step.letter.sequence, step.previous))

    assert sorted(steps) == [(1, 0), (2, 0), (4, 1), (9, 4)]


def test_higher_priorities_go_first() -> None:
    """Urgent letters do not wait for bulk that was stored before them."""
    outbox = make_outbox(make_letter(1, priority=0), make_letter(2, priority=3), make_letter(3, priority=1))

    assert send(outbox) == [2, 3, 1]


def test_a_window_of_letters_is_under_way() -> None:
    """More go when some of them have been handled."""
    outbox = make_outbox(*(make_letter(number) for number in range(1, IN_FLIGHT_MAX + 11)))

    assert len(send(outbox)) == IN_FLIGHT_MAX
    assert len(handled(outbox.handled("b", KEY, 4))) == 4
    assert len(send(outbox)) == 4


def test_agents_with_letters_are_known() -> None:
    """An agent is forgotten with its last letter."""
    outbox = make_outbox(make_letter(1), make_letter(2, to=8))
    assert outbox.agents() == [7, 8]
    send(outbox)
    outbox.handled("b", KEY, 1)

    assert outbox.agents() == [8]
    assert following(outbox) is None
    assert outbox.count == 1


def test_room_is_counted_from_before_the_disk() -> None:
    """A letter on its way to the disk has its place; a single one always has."""
    outbox = make_outbox(config=OutboxConfig(bytes_max=1_000))
    assert outbox.has_room(5_000)
    outbox.reserve(900)
    assert not outbox.has_room(200)
    outbox.release(900)
    assert outbox.has_room(200)
    assert make_letter(1, payload=b"abc").size_bytes == LETTER_OVERHEAD_BYTES + 3


# --- answers ----------------------------------------------------------------------------------------------------


def test_an_answer_settles_all_up_to_it() -> None:
    """What was not sent cannot have been handled, whatever a peer says."""
    outbox = make_outbox(*(make_letter(number) for number in (1, 2, 3)))
    for _ in range(2):
        step = following(outbox)
        assert step is not None
        outbox.sent(step)

    assert handled(outbox.handled("b", KEY, 99)) == [1, 2]
    assert outbox.handled("b", KEY, 99) == []
    assert send(outbox) == [3]
    assert outbox.size_bytes == LETTER_OVERHEAD_BYTES


def test_only_who_has_the_letters_can_answer() -> None:
    """Another node's word for them counts for nothing, nor one about a stream that is not there."""
    outbox = make_outbox(make_letter(1))
    send(outbox)

    assert outbox.handled("c", KEY, 1) == []
    assert outbox.failed("c", KEY, 1, "no", 0.0) == []
    assert outbox.expired("c", KEY, 1) == []
    outbox.refused("c", KEY, 0.0)
    assert outbox.handled("b", StreamKey(9, 9, 1), 1) == []
    assert handled(outbox.handled("b", KEY, 1)) == [1]


def test_a_failed_letter_is_tried_again_from_there() -> None:
    """After a wait that grows; the letters behind it follow it again, and nothing overtakes it."""
    outbox = make_outbox(*(make_letter(number) for number in (1, 2, 3)))
    send(outbox)
    outbox.handled("b", KEY, 1)

    events = outbox.failed("b", KEY, 2, "ValueError", 100.0)

    assert [type(event) for event in events] == [Failed]
    assert events[0].letter.failures == 1
    assert send(outbox, now=100.0) == []
    wake = outbox.wake_at(7, 100.0)
    assert 100.1 <= wake <= 100.3
    assert send(outbox, now=wake) == [2, 3]


def test_a_letter_that_fails_too_often_dies() -> None:
    """The one behind it begins the stream."""
    outbox = make_outbox(make_letter(1), make_letter(2), config=OutboxConfig(attempts=2))
    send(outbox)
    outbox.failed("b", KEY, 1, "first", 0.0)
    assert send(outbox, now=10.0) == [1, 2]

    (event,) = outbox.failed("b", KEY, 1, "second", 10.0)

    assert isinstance(event, Died)
    assert (event.reason, event.detail, event.letter.failures) == (Reason.FAILED, "second", 2)
    step = following(outbox, now=10.0)
    assert step is not None
    assert (step.letter.sequence, step.previous) == (2, 0)


def test_answers_about_letters_that_are_not_there_change_nothing() -> None:
    """A late or wrong answer: the letter is gone, not yet sent, or between two others."""
    outbox = make_outbox(make_letter(1), make_letter(5))
    step = following(outbox)
    assert step is not None
    outbox.sent(step)
    for sequence in (0, 3, 5, 9):
        assert outbox.failed("b", KEY, sequence, "no", 0.0) == []
        assert outbox.expired("b", KEY, sequence) == []
    assert send(outbox) == [5]


def test_a_letter_can_expire_at_its_receiver() -> None:
    """It dies, and the others go on as they were."""
    outbox = make_outbox(make_letter(1), make_letter(2), make_letter(3))
    send(outbox)

    (event,) = outbox.expired("b", KEY, 2)

    assert isinstance(event, Died)
    assert event.reason is Reason.EXPIRED
    assert handled(outbox.handled("b", KEY, 3)) == [1, 3]


def test_a_letter_can_expire_at_its_receiver_after_its_link_was_lost() -> None:
    """The answer came over the next link: it is no longer counted as under way."""
    outbox = make_outbox(make_letter(1), make_letter(2))
    send(outbox)
    outbox.link_lost("b")

    assert len(outbox.expired("b", KEY, 1)) == 1
    assert send(outbox) == [2]


# --- links and moves --------------------------------------------------------------------------------------------


def test_a_lost_link_starts_the_stream_again() -> None:
    """All that was not answered is sent again over the next one; other nodes' letters are not."""
    outbox = make_outbox(make_letter(1), make_letter(2), make_letter(3, to=8))
    send(outbox)
    send(outbox, agent=8, node="c")
    outbox.handled("b", KEY, 1)
    outbox.link_lost("b")

    step = following(outbox)
    assert step is not None
    assert (step.letter.sequence, step.previous, step.letter.sent) == (2, 0, 1)
    assert send(outbox) == [2]
    assert send(outbox, agent=8, node="c") == []


def test_an_answer_over_the_next_link_counts() -> None:
    """The receiver handled them while the link was down."""
    outbox = make_outbox(make_letter(1), make_letter(2))
    send(outbox)
    outbox.link_lost("b")

    assert handled(outbox.handled("b", KEY, 2)) == [1, 2]


def test_a_refusing_node_is_asked_again_after_a_while() -> None:
    """The agent may come back to it; a new place need not wait."""
    outbox = make_outbox(make_letter(1))
    send(outbox)
    outbox.refused("b", KEY, 5.0)
    assert following(outbox, now=5.0) is None
    wake = outbox.wake_at(7, 5.0)
    assert 5.05 <= wake <= 5.15
    assert following(outbox, now=wake) is not None

    assert send(outbox, node="c", now=5.0) == [1]
    outbox.refused("c", KEY, 6.0)
    outbox.handled("c", KEY, 0)
    assert send(outbox, node="b", now=6.0) == [1]


def test_a_moved_agents_letters_wait_for_the_old_place_to_answer() -> None:
    """While it has them in its hands nobody else gets any: order is kept, and nothing is handled twice."""
    outbox = make_outbox(make_letter(1), make_letter(2), make_letter(3))
    send(outbox, node="b")
    assert following(outbox, node="c") is None
    outbox.handled("b", KEY, 1)
    outbox.refused("b", KEY, 0.0)

    assert send(outbox, node="c") == [2, 3]


def test_a_moved_agents_old_place_is_asked_first_when_its_link_broke() -> None:
    """It may have handled letters and not have said so."""
    outbox = make_outbox(make_letter(1), make_letter(2))
    send(outbox, node="b")
    outbox.link_lost("b")

    step = following(outbox, node="c", linked="bc")
    assert step is not None
    assert (step.node_id, step.letter.sequence) == ("b", 1)
    outbox.sent(step)
    outbox.handled("b", KEY, 1)
    outbox.refused("b", KEY, 0.0)
    assert send(outbox, node="c") == [2]


def test_a_moved_agents_old_place_is_waited_for_and_then_given_up() -> None:
    """Its letters go to the new place, which is told that they were sent before."""
    outbox = make_outbox(make_letter(1), config=OutboxConfig(move_grace_s=10.0))
    send(outbox, node="b")
    outbox.link_lost("b")

    assert following(outbox, node="c", now=100.0, linked="c") is None
    assert following(outbox, node="c", now=105.0, linked="c") is None
    assert outbox.wake_at(7, 105.0) == 110.0
    step = following(outbox, node="c", now=110.0, linked="c")
    assert step is not None
    assert (step.node_id, step.letter.sent) == ("c", 1)


def test_nothing_wakes_what_only_an_answer_can() -> None:
    """Letters under way, or free to go: no time will change that."""
    outbox = make_outbox(make_letter(1))
    assert outbox.wake_at(7, 0.0) == math.inf
    send(outbox)
    assert outbox.wake_at(7, 0.0) == math.inf
    assert outbox.wake_at(99, 0.0) == math.inf


# --- deadlines --------------------------------------------------------------------------------------------------


def test_letters_expire() -> None:
    """One that was never sent was not handled; one whose link was lost may have been."""
    outbox = make_outbox(make_letter(1, deadline_ms=100), make_letter(2, to=8, deadline_ms=50))
    send(outbox)
    outbox.link_lost("b")
    assert outbox.next_deadline_ms() == 50

    first, second = (*outbox.expire(50), *outbox.expire(200))

    assert isinstance(first, Died)
    assert isinstance(second, Died)
    assert (first.letter.sequence, first.detail) == (2, "its agent was not reached in time")
    assert (second.letter.sequence, second.detail) == (1, "it may have been handled: no answer came")
    assert outbox.next_deadline_ms() == math.inf


def test_a_letter_under_way_does_not_expire() -> None:
    """Whoever has it will say what became of it; one behind it that was not sent does expire."""
    outbox = make_outbox(make_letter(1, deadline_ms=100), make_letter(2, deadline_ms=100), make_letter(3, to=8))
    step = following(outbox)
    assert step is not None
    outbox.sent(step)

    assert [event.letter.sequence for event in outbox.expire(100)] == [2]
    assert outbox.expire(5_000) == []
    outbox.link_lost("b")
    assert [event.letter.sequence for event in outbox.expire(10_000)] == [1]


def test_the_deadline_of_what_was_handled_means_nothing() -> None:
    """It passes, and nobody dies."""
    outbox = make_outbox(make_letter(1, deadline_ms=100), make_letter(2, to=8))
    send(outbox)
    outbox.handled("b", KEY, 1)

    assert outbox.expire(1_000) == []


# --- retries ----------------------------------------------------------------------------------------------------


def test_retries_beyond_the_budget_wait() -> None:
    """Ten seconds' worth at once; then as many a second as were promised, and more for what succeeds."""
    budget = RetryBudget(per_s=1.0, ratio=0.5)
    assert [budget.withdraw_s(0.0) for _ in range(10)] == [0.0] * 10
    assert budget.withdraw_s(0.0) == 1.0
    assert budget.withdraw_s(0.0) == 2.0
    for _ in range(4):
        budget.deposit()
    assert budget.withdraw_s(0.0) == 1.0
    assert budget.withdraw_s(100.0) == 0.0


# --- records ----------------------------------------------------------------------------------------------------


def test_a_record_is_read_as_it_was_written() -> None:
    """What comes from disk counts as sent: an earlier process may have done so."""
    letter = Letter(9, 1, 7, 1, 2, 8, b"x", 5, 6, {"k": "v"}, "g", failures=2, sent=1)

    assert decode_letter(9, encode_letter(letter)) == letter
    letter.sent = 0
    assert decode_letter(9, encode_letter(letter)).sent == 1


@pytest.mark.parametrize("body", [b"", pack([1, 2]), pack({})])
def test_what_is_no_record_is_refused(body: bytes) -> None:
    """A later version's, perhaps."""
    with pytest.raises(RemoteProtocolError):
        decode_letter(7, body)


def test_numbers_grow_over_lives() -> None:
    """A later life begins beyond all that an earlier one used, and beyond what is on disk."""
    assert first_sequence(5, 0) == (5 << 26) + 1
    assert first_sequence(5, 6 << 26) == (6 << 26) + 1
    assert first_sequence(2**37 - 1, 0) < 2**63


def test_the_outbox_knows_of_whom_it_waits_for_word() -> None:
    """Of the node that has letters in its hands, until it has handled them or its link is lost."""
    outbox = make_outbox(make_letter(1))
    assert not outbox.is_waiting_for("b")
    assert send(outbox) == [1]
    assert outbox.is_waiting_for("b")
    assert not outbox.is_waiting_for("c")
    outbox.link_lost("b")
    assert not outbox.is_waiting_for("b")
