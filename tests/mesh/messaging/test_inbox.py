"""The inbox core, and both cores together under crashes at every step."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.messaging.inbox import (
    CLOCKS_DIFFER_MS,
    STREAMS_PER_ORIGIN_MAX,
    Inbox,
    InboxKey,
    Mark,
    Verdict,
    decode_mark,
    encode_key,
    encode_mark,
)
from mesh.messaging.outbox import (
    Died,
    Failed,
    Letter,
    Next,
    Outbox,
    OutboxConfig,
    OutboxEvent,
    StreamKey,
    decode_letter,
    encode_letter,
)
from transport.errors import RemoteProtocolError
from transport.wire import pack

KEY = InboxKey("a", 1, 7, 1)
OTHER = InboxKey("z", 1, 7, 1)


def receive(inbox: Inbox[str], sequence: int, previous: int = 0, *, key: InboxKey = KEY) -> Verdict:
    """A message arrives; what is kept with it is its number as text."""
    return inbox.receive(key, sequence, previous, str(sequence))


def write(inbox: Inbox[str]) -> list[str]:
    """Write the marks; returns what agents get for it."""
    return inbox.recorded(inbox.take_marks())


def test_messages_are_handed_over_one_after_the_other() -> None:
    """The next when the one before it has been handled."""
    inbox: Inbox[str] = Inbox(10)
    assert [receive(inbox, 1), receive(inbox, 2, 1), receive(inbox, 5, 2)] == [Verdict.HAND, *[Verdict.WAITS] * 2]
    assert [inbox.finish(KEY, number, 0) for number in (1, 2, 5)] == ["2", "5", None]
    assert receive(inbox, 6, 5) is Verdict.HAND


def test_repetitions_are_recognised() -> None:
    """While it waits, while it is handled, before and after its mark is written, and by the next process."""
    inbox: Inbox[str] = Inbox(10)
    receive(inbox, 1)
    receive(inbox, 2, 1)
    assert [receive(inbox, 1), receive(inbox, 2)] == [Verdict.REPEATED] * 2
    inbox.finish(KEY, 1, 77)
    assert receive(inbox, 1) is Verdict.REPEATED
    assert inbox.recorded_of(KEY) == 0
    (mark,) = inbox.take_marks()
    inbox.recorded([mark])
    assert receive(inbox, 1) is Verdict.HANDLED
    assert inbox.recorded_of(KEY) == 1

    later: Inbox[str] = Inbox(10)
    later.restore(decode_mark(encode_key(mark.key), encode_mark(mark)))
    assert receive(later, 1) is Verdict.HANDLED
    assert receive(later, 2) is Verdict.HAND


def test_a_message_behind_one_that_was_given_back_is_not_taken() -> None:
    """Its sender begins again with the one before; then both are taken."""
    inbox: Inbox[str] = Inbox(10)
    receive(inbox, 1)
    receive(inbox, 2, 1)
    receive(inbox, 3, 2)
    assert inbox.give_back(KEY, 1) == ["2", "3"]
    assert receive(inbox, 4, 3) is Verdict.GAP
    assert [receive(inbox, 1), receive(inbox, 2, 1)] == [Verdict.HAND, Verdict.WAITS]


def test_what_an_agent_does_not_have_cannot_be_finished() -> None:
    """A handler that outlived its agent, or a stream that is not there."""
    inbox: Inbox[str] = Inbox(10)
    receive(inbox, 1)
    inbox.give_back(KEY, 1)
    assert inbox.finish(KEY, 1, 0) is None
    assert inbox.skip(KEY, 1) is None
    assert inbox.give_back(KEY, 1) is None
    assert inbox.finish(OTHER, 1, 0) is None
    assert inbox.skip(OTHER, 1) is None
    assert inbox.give_back(OTHER, 1) is None
    assert inbox.take_marks() == []


def test_handlers_run_a_bounded_way_ahead_of_the_disk() -> None:
    """So many messages at most are handled twice after a crash; writing lets the next one through."""
    inbox: Inbox[str] = Inbox(2)
    for number in range(1, 5):
        receive(inbox, number, number - 1)
    assert inbox.finish(KEY, 1, 0) == "2"
    assert inbox.finish(KEY, 2, 0) is None
    assert receive(inbox, 5, 4) is Verdict.WAITS
    assert not inbox.is_settled(KEY)

    assert write(inbox) == ["3"]
    assert inbox.is_settled(KEY)
    assert inbox.finish(KEY, 3, 0) == "4"


def test_marks_are_written_for_what_was_handled_until_then() -> None:
    """What is handled while a mark is being written belongs to the next."""
    inbox: Inbox[str] = Inbox(10)
    for number in range(1, 4):
        receive(inbox, number, number - 1)
    inbox.finish(KEY, 1, 50)
    first = inbox.take_marks()
    inbox.finish(KEY, 2, 40)

    assert first == [Mark(KEY, 1, 50, 1)]
    assert inbox.recorded(first) == []
    assert inbox.take_marks() == [Mark(KEY, 2, 50, 1)]


def test_a_mark_that_was_not_written_is_written_later() -> None:
    """With whatever was handled meanwhile."""
    inbox: Inbox[str] = Inbox(10)
    receive(inbox, 1)
    receive(inbox, 2, 1)
    inbox.finish(KEY, 1, 0)
    inbox.not_recorded(inbox.take_marks())
    inbox.finish(KEY, 2, 0)

    assert inbox.take_marks() == [Mark(KEY, 2, 0, 2)]


def test_what_is_too_late_is_passed_over() -> None:
    """No mark covers it; should its sender see that otherwise, it is taken when it comes again."""
    inbox: Inbox[str] = Inbox(10)
    receive(inbox, 1)
    receive(inbox, 2, 1)
    assert inbox.skip(KEY, 1) == "2"
    assert inbox.skip(KEY, 2) is None
    assert inbox.take_marks() == []
    assert inbox.lose_link("a") == []
    assert receive(inbox, 1) is Verdict.HAND


def test_a_lost_link_gives_back_what_waits() -> None:
    """The one that its agent has stays; other senders' are not touched."""
    inbox: Inbox[str] = Inbox(10)
    receive(inbox, 1)
    receive(inbox, 2, 1)
    receive(inbox, 1, key=OTHER)
    receive(inbox, 2, 1, key=OTHER)

    assert inbox.lose_link("a") == ["2"]
    assert receive(inbox, 1) is Verdict.REPEATED
    assert receive(inbox, 2, 1) is Verdict.WAITS
    assert receive(inbox, 2, 1, key=OTHER) is Verdict.REPEATED


def test_a_sender_has_a_bounded_number_of_streams() -> None:
    """Invented agents harm their inventor only; a stream that came to nothing leaves nothing."""
    inbox: Inbox[str] = Inbox(10)
    for number in range(STREAMS_PER_ORIGIN_MAX):
        receive(inbox, 1, key=InboxKey("a", number, 7, 1))
    assert receive(inbox, 1, key=InboxKey("a", 10**6, 7, 1)) is Verdict.TOO_MANY
    assert receive(inbox, 1, key=OTHER) is Verdict.HAND

    inbox.give_back(InboxKey("a", 3, 7, 1), 1)
    assert receive(inbox, 1, key=InboxKey("a", 10**6, 7, 1)) is Verdict.HAND


def test_marks_are_forgotten_when_no_sender_can_need_them() -> None:
    """After the latest deadline among what they cover, and an hour for clocks that differ."""
    inbox: Inbox[str] = Inbox(10)
    receive(inbox, 1)
    inbox.finish(KEY, 1, 1_000)
    assert inbox.prune(10**12) == []  # it is not on disk yet
    write(inbox)
    receive(inbox, 1, key=OTHER)

    assert inbox.prune(1_000 + CLOCKS_DIFFER_MS) == []
    assert inbox.prune(1_001 + CLOCKS_DIFFER_MS) == [KEY]
    assert len(inbox) == 1
    assert inbox.is_settled(KEY)
    assert inbox.recorded_of(KEY) == 0


@pytest.mark.parametrize(("key", "body"), [(b"", b""), (pack([1]), pack([1, 2])), (pack(list(KEY)), pack([1]))])
def test_what_is_no_mark_is_refused(key: bytes, body: bytes) -> None:
    """A later version's, perhaps."""
    with pytest.raises(RemoteProtocolError):
        decode_mark(key, body)


# --- both cores, and everything that can happen to them ----------------------------------------------------------


@dataclass
class Place:
    """A node that can run the agent: its inbox, and what is on its disk."""

    name: str
    inbox: Inbox[int] = field(default_factory=lambda: Inbox[int](3))
    disk: dict[bytes, bytes] = field(default_factory=dict)
    writing: list[Mark] | None = None
    at_work: dict[InboxKey, int] = field(default_factory=dict)
    """What the agent's handler has."""
    unwritten: set[int] = field(default_factory=set)
    """Handled by the running process, and not on disk."""
    to_here: deque[tuple[Letter, int]] = field(default_factory=deque)
    to_sender: deque[tuple[str, StreamKey, int]] = field(default_factory=deque)
    linked: bool = True


class Crashes:
    """One sender, an agent that moves between two nodes, links that break, and processes that die at any moment.

    At each step: whatever is handled is handled in its order, and a second time only if the first had not been
    written when its process died.  In the end, when nothing breaks any more, all that was accepted has been handled.
    """

    def __init__(self) -> None:
        self.rng = random.Random(5)
        self.now = 0.0
        self.sequence = 0
        self.disk: dict[int, bytes] = {}
        self.outbox = self._outbox()
        self.places = {name: Place(name) for name in "bc"}
        self.home = "b"
        self.has_moved = False
        self.accepted: list[int] = []
        self.handled: list[int] = []
        self.may_repeat: set[int] = set()
        self.dead: set[int] = set()

    def _outbox(self) -> Outbox:
        return Outbox(OutboxConfig(attempts=3, retry_s=0.1, move_grace_s=5.0), self.rng)

    # --- what the sender does

    def send(self, sender: int) -> None:
        """A message is accepted: it is on disk."""
        self.sequence += 1
        letter = Letter(self.sequence, sender, 7, 1, 1, 8, b"", 0, 10**12)
        self.disk[letter.sequence] = encode_letter(letter)
        self.outbox.reserve(letter.size_bytes)
        self.outbox.add(letter)
        self.accepted.append(letter.sequence)

    def transmit(self, count: int) -> None:
        """Letters go to whoever should have them."""
        for _ in range(count):
            step = self.outbox.next_for(7, self.home, self.now, lambda node: self.places[node].linked)
            if step is None or not self.places[step.node_id].linked:
                return
            self._post(step)

    def _post(self, step: Next) -> None:
        self.places[step.node_id].to_here.append((step.letter, step.previous))
        self.outbox.sent(step)

    def hear(self, name: str) -> None:
        """One answer reaches the sender."""
        place = self.places[name]
        if place.to_sender:
            what, key, sequence = place.to_sender.popleft()
            if what == "handled":
                self._apply(self.outbox.handled(name, key, sequence))
            elif what == "failed":
                self._apply(self.outbox.failed(name, key, sequence, "no", self.now))
            else:
                self.outbox.refused(name, key, self.now)

    def _apply(self, events: list[OutboxEvent]) -> None:
        for event in events:
            if isinstance(event, Failed):
                self.disk[event.letter.sequence] = encode_letter(event.letter)
                continue
            del self.disk[event.letter.sequence]
            if isinstance(event, Died):
                self.dead.add(event.letter.sequence)

    def sender_dies(self) -> None:
        """The next process has what is on disk."""
        for place in self.places.values():
            self._break(place)
        self.outbox = self._outbox()
        for sequence in sorted(self.disk):
            letter = decode_letter(sequence, self.disk[sequence])
            self.outbox.reserve(letter.size_bytes)
            self.outbox.add(letter)
        self._old_places_may_be_forgotten()

    # --- what the receivers do

    def arrive(self, name: str) -> None:
        """One letter reaches its node."""
        place = self.places[name]
        if not place.to_here:
            return
        letter, previous = place.to_here.popleft()
        key = InboxKey("a", letter.from_agent, 7, 1)
        if name != self.home:
            self._refuse(place, key)
            return
        verdict = place.inbox.receive(key, letter.sequence, previous, letter.sequence)
        if verdict is Verdict.HAND:
            place.at_work[key] = letter.sequence
        elif verdict is Verdict.HANDLED:
            self._answer(place, "handled", key, place.inbox.recorded_of(key))

    def _refuse(self, place: Place, key: InboxKey) -> None:
        """Not before what was handled is on disk and said."""
        while not place.inbox.is_settled(key):
            self._write(place)
        self._answer(place, "handled", key, place.inbox.recorded_of(key))
        self._answer(place, "refused", key, 0)

    def _answer(self, place: Place, what: str, key: InboxKey, sequence: int) -> None:
        if place.linked:
            place.to_sender.append((what, StreamKey(key.from_agent, key.to_agent, key.priority), sequence))

    def handler_fails(self, name: str) -> None:
        """The handler raises."""
        place = self.places[name]
        if place.at_work:
            key, sequence = place.at_work.popitem()
            assert place.inbox.give_back(key, sequence) is not None
            self._answer(place, "failed", key, sequence)

    def handle(self, name: str) -> None:
        """The handler ends."""
        place = self.places[name]
        if not place.at_work:
            return
        key, sequence = place.at_work.popitem()
        assert sequence not in self.handled or sequence in self.may_repeat, f"{sequence} was handled twice"
        self._check_order(key, sequence)
        self.handled.append(sequence)
        place.unwritten.add(sequence)
        following = place.inbox.finish(key, sequence, 10**12)
        if following is not None:
            place.at_work[key] = following

    def _check_order(self, key: InboxKey, sequence: int) -> None:
        """All that was accepted before it in its stream has been handled, or given up."""
        before = [
            number
            for number in self.accepted
            if number < sequence
            and number in self.disk
            and decode_letter(number, self.disk[number]).from_agent == key.from_agent
        ]
        assert set(before) <= set(self.handled), f"{sequence} overtook {set(before) - set(self.handled)}"

    def write(self, name: str) -> None:
        """Marks begin to be written, or are on disk."""
        self._write(self.places[name])

    def _write(self, place: Place) -> None:
        if place.writing is None:
            place.writing = place.inbox.take_marks()
            return
        marks, place.writing = place.writing, None
        for mark in marks:
            place.disk[encode_key(mark.key)] = encode_mark(mark)
        place.unwritten = {number for number in place.unwritten if not self._is_written(place, number)}
        for sequence in place.inbox.recorded(marks):
            key = next(InboxKey("a", sender, 7, 1) for sender in (1, 2) if self._sender_of(sequence) == sender)
            place.at_work[key] = sequence
        for mark in marks:
            self._answer(place, "handled", mark.key, mark.sequence)

    def _sender_of(self, sequence: int) -> int:
        return decode_letter(sequence, self.disk[sequence]).from_agent

    def _is_written(self, place: Place, sequence: int) -> bool:
        body = self.disk.get(sequence)
        if body is None:
            return True
        key = InboxKey("a", decode_letter(sequence, body).from_agent, 7, 1)
        mark = place.disk.get(encode_key(key))
        return mark is not None and decode_mark(encode_key(key), mark).sequence >= sequence

    def writing_fails(self, name: str) -> None:
        """The disk refuses."""
        place = self.places[name]
        if place.writing is not None:
            place.inbox.not_recorded(place.writing)
            place.writing = None

    def receiver_dies(self, name: str) -> None:
        """What was handled and not written will be handled again; the next process has the marks."""
        place = self.places[name]
        self._break(place)
        self.may_repeat |= place.unwritten
        fresh = Place(name, disk=place.disk, linked=False)
        for key, body in place.disk.items():
            fresh.inbox.restore(decode_mark(key, body))
        self.places[name] = fresh

    # --- what happens between them

    def break_link(self, name: str) -> None:
        """Both ends notice."""
        self._break(self.places[name])

    def _break(self, place: Place) -> None:
        if place.linked:
            place.linked = False
            place.to_here.clear()
            place.to_sender.clear()
            self.outbox.link_lost(place.name)
            place.inbox.lose_link("a")

    def link(self, name: str) -> None:
        """There is a link again."""
        self.places[name].linked = True

    def move(self) -> None:
        """The agent goes to the other node; what its handler had is given back."""
        place = self.places[self.home]
        self.home = "c" if self.home == "b" else "b"
        self.has_moved = True
        for key, sequence in place.at_work.items():
            place.inbox.give_back(key, sequence)
            self._refuse(place, key)
        place.at_work.clear()

    def wait(self, wait_s: float) -> None:
        """Time passes: what was under doubt for long is sent elsewhere, and may be handled there once more."""
        self.now += wait_s
        if wait_s > 5.0:
            self._old_places_may_be_forgotten()

    def _old_places_may_be_forgotten(self) -> None:
        """What the agent handled before it moved, and could not say, may be handled again at its new place."""
        if self.has_moved:
            self.may_repeat |= set(self.handled)

    def check_disk(self) -> None:
        """Nothing that waits would be lost with the process."""
        assert self.outbox.count == len(self.disk)

    def check_end(self) -> None:
        """When nothing breaks any more, everything is handled or given up, soon."""
        for _ in range(400):
            if not self.disk:
                break
            self.now += 100.0
            self._old_places_may_be_forgotten()
            for name in "bc":
                self.link(name)
                self.transmit(20)
                for _ in range(20):
                    self.arrive(name)
                    self.handle(name)
                    self.write(name)
                    self.hear(name)
        assert self.disk == {}, f"{list(self.disk)} never arrived"
        assert set(self.accepted) == set(self.handled) | self.dead


#: What happens, as often as it stands here; ``b`` and ``c`` are the nodes that it happens to.
ACTIONS = [
    *[("send", 1), ("send", 2)] * 2,
    *[("transmit", 3)] * 4,
    *[(step, name) for step in ("arrive", "handle", "write", "hear") for name in "bbc"] * 3,
    *[(fault, name) for fault in ("handler_fails", "writing_fails", "receiver_dies", "break_link") for name in "bc"],
    *[("link", "b"), ("link", "c")] * 2,
    *[("sender_dies", None), ("move", None), ("wait", 0.1), ("wait", 6.0)],
]


@settings(max_examples=200)
@given(st.lists(st.sampled_from(ACTIONS), min_size=80, max_size=200))
def test_whatever_breaks_all_is_handled_in_order_and_once(actions: list[tuple[str, object]]) -> None:
    """See :class:`Crashes`."""
    world = Crashes()
    world.send(1)
    for name, argument in actions:
        act = getattr(world, name)
        act() if argument is None else act(argument)
        world.check_disk()
    world.check_end()
