"""The lanes of one link: order, bounds, fairness, replacement."""

from __future__ import annotations

from collections import Counter, deque

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from transport.queues import QUANTA_BYTES, LaneQueues
from transport.types import Lane
from transport.wire import ENVELOPE_OVERHEAD_BYTES, Envelope, Kind

USER_LANES = (Lane.URGENT, Lane.HIGH, Lane.NORMAL, Lane.LOW)


def _envelope(body: bytes = b"") -> Envelope:
    return Envelope(Kind.MESSAGES, 0, None, None, body)


def _bodies(envelopes: list[Envelope]) -> list[bytes]:
    return [envelope.body for envelope in envelopes]


def test_lanes_are_served_most_urgent_first() -> None:
    """One small envelope in each lane: the frame has them in order of urgency, control first."""
    queues = LaneQueues(10, 1 << 20)
    for lane in reversed(Lane):
        queues.put(_envelope(lane.name.encode()), lane)

    assert _bodies(queues.take(256, 65536)) == [b"CONTROL", b"URGENT", b"HIGH", b"NORMAL", b"LOW"]
    assert queues.take(256, 65536) == []
    assert queues.length == 0


def test_a_storm_of_control_leaves_users_an_eighth() -> None:
    """Control goes first and fills frames, but not the last part of them while users wait; the reverse never."""
    queues = LaneQueues(1000, 1 << 20)
    for _ in range(100):
        queues.put(_envelope(b"control"), Lane.CONTROL)
    assert _bodies(queues.take(16, 65536)) == [b"control"] * 16
    for lane in (Lane.LOW, Lane.URGENT, Lane.URGENT):
        queues.put(_envelope(lane.name.encode()), lane)

    assert _bodies(queues.take(16, 65536)) == [b"control"] * 14 + [b"URGENT"] * 2
    assert _bodies(queues.take(3, 65536)) == [b"control"] * 2 + [b"LOW"]
    size = len(b"control") + ENVELOPE_OVERHEAD_BYTES
    queues.put(_envelope(bytes(3 * size)), Lane.HIGH)
    assert _bodies(queues.take(256, 16 * size)) == [b"control"] * 14
    queues.put(_envelope(b"1"), Lane.HIGH)
    frame = _bodies(queues.take(256, 160 * size))
    assert frame[:54] == [b"control"] * 54
    assert frame[54:] == [bytes(3 * size), b"1"]


def test_a_full_lane_refuses_and_others_do_not() -> None:
    """The bounds are per lane, in envelopes and in bytes; has_room asks for some slack."""
    queues = LaneQueues(4, 3000)
    assert [queues.put(_envelope(), Lane.LOW) for _ in range(5)] == [True] * 4 + [False]
    assert not queues.has_room(Lane.LOW)
    assert queues.put(_envelope(bytes(2000)), Lane.HIGH)
    assert not queues.put(_envelope(bytes(2000)), Lane.HIGH)
    assert queues.refused == 2
    assert queues.has_room(Lane.NORMAL)
    assert queues.lengths() == (0, 0, 1, 0, 4)

    queues.take(2, 65536)
    assert queues.has_room(Lane.HIGH)
    assert queues.has_room(Lane.LOW)


def test_an_envelope_larger_than_a_lane_or_a_frame_goes_alone() -> None:
    """An empty lane takes one envelope of any size, and a frame carries it by itself."""
    queues = LaneQueues(10, 1000)
    big = bytes(100_000)
    assert queues.put(_envelope(big), Lane.NORMAL)
    assert not queues.put(_envelope(), Lane.NORMAL)
    queues.put(_envelope(b"small"), Lane.CONTROL)

    assert _bodies(queues.take(256, 65536)) == [b"small"]
    assert _bodies(queues.take(256, 65536)) == [big]


def test_a_large_envelope_among_several_lanes_gets_its_turn() -> None:
    """Deficits grow until the large one fits, and it then goes in a frame of its own."""
    queues = LaneQueues(10_000, 1 << 30)
    queues.put(_envelope(bytes(200_000)), Lane.LOW)
    for _ in range(8000):
        queues.put(_envelope(bytes(1000)), Lane.URGENT)

    frames = 0
    while queues.lengths()[Lane.LOW]:
        queues.take(256, 65536)
        frames += 1
    # 200 kB at 4 KiB a round, while URGENT gets 32 KiB a round: 49 rounds of half a frame.
    assert frames < 60


@pytest.mark.parametrize("size", [100, 1000, 9000])
def test_under_overload_each_user_lane_gets_its_share(size: int) -> None:
    """Bytes are served 8 : 4 : 2 : 1, whatever the size of envelopes."""
    queues = LaneQueues(100_000, 1 << 30)
    for lane in USER_LANES:
        for _ in range(4_000_000 // size):
            queues.put(_envelope(bytes([lane]) * size), lane)

    served: Counter[int] = Counter()
    while sum(served.values()) < 3_000_000:
        for envelope in queues.take(256, 65536):
            served[envelope.body[0]] += len(envelope.body) + ENVELOPE_OVERHEAD_BYTES
    total = sum(served.values())
    for lane in USER_LANES:
        assert served[lane] / total == pytest.approx(QUANTA_BYTES[lane] / sum(QUANTA_BYTES), rel=0.15)


def test_a_later_value_with_the_same_key_takes_the_place() -> None:
    """Order is kept, only the content changes; keys are per lane and end when the envelope is sent."""
    queues = LaneQueues(3, 1 << 20)
    queues.put(_envelope(b"load 1"), Lane.NORMAL, "load")
    queues.put(_envelope(b"other"), Lane.NORMAL)
    queues.put(_envelope(b"load 2"), Lane.NORMAL, "load")
    queues.put(_envelope(b"low"), Lane.LOW, "load")

    assert queues.replaced == 1
    assert _bodies(queues.take(256, 65536)) == [b"load 2", b"other", b"low"]
    queues.put(_envelope(b"load 3"), Lane.NORMAL, "load")
    assert queues.replaced == 1
    assert _bodies(queues.take(256, 65536)) == [b"load 3"]


def test_a_replacement_is_held_to_the_byte_bound_too() -> None:
    """A value that grew beyond the lane is refused unless it is alone, and the old one stays."""
    queues = LaneQueues(10, 2000)
    queues.put(_envelope(b"a"), Lane.LOW, "k")
    assert queues.put(_envelope(bytes(5000)), Lane.LOW, "k")
    assert queues.put(_envelope(b"a"), Lane.LOW, "k")
    queues.put(_envelope(bytes(1000)), Lane.LOW)
    assert not queues.put(_envelope(bytes(1500)), Lane.LOW, "k")
    assert queues.refused == 1
    assert _bodies(queues.take(1, 65536)) == [b"a"]


def test_dropping_keeps_control() -> None:
    """drop throws the user lanes away, counts them, and leaves the control lane."""
    queues = LaneQueues(10, 1 << 20)
    for lane in (Lane.CONTROL, Lane.URGENT, Lane.LOW, Lane.LOW):
        queues.put(_envelope(lane.name.encode()), lane, None)

    assert queues.drop() == 3
    assert queues.dropped == 3
    assert _bodies(queues.take(256, 65536)) == [b"CONTROL"]


class LanesMachine(RuleBasedStateMachine):
    """Against the obvious model: five plain lists."""

    def __init__(self) -> None:
        super().__init__()
        self.queues = LaneQueues(6, 4000)
        self.model: dict[Lane, deque[tuple[str | None, bytes]]] = {lane: deque() for lane in Lane}
        self.serial = 0

    @rule(
        lane=st.sampled_from(Lane),
        size=st.integers(0, 3000),
        key=st.none() | st.sampled_from(["x", "y"]),
    )
    def put(self, lane: Lane, size: int, key: str | None) -> None:
        """Taken if it replaces within the bounds, or if there is room."""
        self.serial += 1
        body = self.serial.to_bytes(4, "big") + bytes(size)
        waiting = self.model[lane]
        used = sum(len(other) + ENVELOPE_OVERHEAD_BYTES for _, other in waiting)
        place = next((i for i, (other, _) in enumerate(waiting) if key is not None and other == key), None)
        if place is not None:
            grown = used + len(body) - len(waiting[place][1])
            expected = grown <= 4000 or len(waiting) == 1
            if expected:
                waiting[place] = (key, body)
        else:
            fits = len(waiting) < 6 and used + len(body) + ENVELOPE_OVERHEAD_BYTES <= 4000
            expected = not waiting or fits
            if expected:
                waiting.append((key, body))
        assert self.queues.put(_envelope(body), lane, key) is expected

    @rule(envelopes_max=st.integers(1, 8), bytes_max=st.integers(200, 8000))
    def take(self, envelopes_max: int, bytes_max: int) -> None:
        """Each lane in order, control before the rest, within the frame's limits, something if there is something."""
        had = any(self.model.values())
        frame = self.queues.take(envelopes_max, bytes_max)
        assert bool(frame) is had
        assert len(frame) <= envelopes_max
        size = sum(len(envelope.body) + ENVELOPE_OVERHEAD_BYTES for envelope in frame)
        assert size <= bytes_max or len(frame) == 1
        user_seen = False
        for envelope in frame:
            lane = next(lane for lane in Lane if self.model[lane] and self.model[lane][0][1] == envelope.body)
            assert not (lane is Lane.CONTROL and user_seen)
            user_seen = user_seen or lane is not Lane.CONTROL
            self.model[lane].popleft()
        assert not (user_seen and self.model[Lane.CONTROL])

    @rule()
    def drop(self) -> None:
        """Only control is left."""
        assert self.queues.drop() == sum(len(self.model[lane]) for lane in USER_LANES)
        for lane in USER_LANES:
            self.model[lane].clear()

    @invariant()
    def lengths_agree(self) -> None:
        """The counters are right at all times."""
        assert self.queues.lengths() == tuple(len(self.model[lane]) for lane in Lane)
        assert self.queues.length == sum(self.queues.lengths())


TestLanes = LanesMachine.TestCase
