"""Streams over a path that loses, doubles and reorders."""

from __future__ import annotations

import heapq
import itertools
import random
from math import inf

import pytest

from gossip.config import GossipConfig
from gossip.relay_codec import PIECE_BYTES_MAX, WINDOW, Accept, Ack, Data, Fin, Open, Reset, Segment
from gossip.relay_stream import Effect, Ended, FrameArrived, Opened, RelayStream, Transmit, WaySuspected
from transport.errors import RemoteProtocolError
from transport.link import CloseReason
from transport.wire import FRAME_BYTES_MAX

CONFIG = GossipConfig()
NUMBER = 7
DELAY_S = 0.01


def transmitted(effects: list[Effect]) -> list[Segment]:
    """What is sent to the other side."""
    return [effect.segment for effect in effects if isinstance(effect, Transmit)]


def data(sequence: int, piece: bytes = b"x", *, more: bool = False, ack: int = 0, bits: int = 0) -> Data:
    """A piece as it arrives."""
    return Data(NUMBER, sequence, ack, bits, more, piece)


def opened() -> RelayStream:
    """The side that was opened, which may send at once."""
    return RelayStream(NUMBER, CONFIG, 0.0, opening=False)


class Path:
    """Two streams, and segments on their way between them.

    Args:
        seed: Of what is lost, doubled and delayed.
        loss: Which part is lost.
        jitter_s: Up to so much is added to the delay of each segment.
    """

    def __init__(self, seed: int = 1, *, loss: float = 0.0, double: float = 0.0, jitter_s: float = 0.0) -> None:
        self.now = 0.0
        self.ends = [RelayStream(NUMBER, CONFIG, 0.0, opening=side == 0) for side in (0, 1)]
        self.frames: list[list[bytes]] = [[], []]
        self.ended: list[Ended | None] = [None, None]
        self.suspected = [0, 0]
        self.cut = False
        self.most_under_way = 0
        self._rng = random.Random(seed)
        self._loss, self._double, self._jitter_s = loss, double, jitter_s
        self._flying: list[tuple[float, int, int, Segment]] = []
        self._order = itertools.count()

    def run(self, side: int, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Transmit(segment):
                    self._transmit(1 - side, segment)
                case FrameArrived(frame):
                    self.frames[side].append(frame)
                case WaySuspected():
                    self.suspected[side] += 1
                case Ended():
                    assert self.ended[side] is None
                    self.ended[side] = effect
                case Opened():
                    assert self.ends[side].is_open

    def _transmit(self, target: int, segment: Segment) -> None:
        for _ in range(1 + (self._rng.random() < self._double)):
            if not self.cut and self._rng.random() >= self._loss:
                at = self.now + DELAY_S + self._rng.uniform(0, self._jitter_s)
                heapq.heappush(self._flying, (at, next(self._order), target, segment))
        under_way = sum(isinstance(segment, Data) for _, _, _, segment in self._flying)
        self.most_under_way = max(self.most_under_way, under_way)

    def until(self, until: float) -> None:
        """Let time pass."""
        while True:
            dues = [end.due for end in self.ends]
            arrival = self._flying[0][0] if self._flying else inf
            at = min(arrival, *dues)
            if at > until:
                break
            self.now = max(self.now, at)
            if arrival <= min(dues):
                _, _, side, segment = heapq.heappop(self._flying)
                self.run(side, self.ends[side].received(segment, self.now))
            else:
                side = dues.index(min(dues))
                self.run(side, self.ends[side].tick(self.now))
        self.now = until

    def open(self) -> None:
        self.run(0, self.ends[0].start(self.now))
        self.until(self.now + 10.0)
        assert self.ends[0].is_open

    def give(self, side: int, frame: bytes) -> None:
        self.run(side, self.ends[side].give(frame, self.now))


def test_frames_arrive_whole_and_in_order_both_ways() -> None:
    """Small ones, empty ones excepted, which no link sends, and ones of many pieces."""
    path = Path()
    path.open()
    there = [b"a", bytes(PIECE_BYTES_MAX), b"b" * (PIECE_BYTES_MAX + 1), bytes(1_000_000), b"c"]

    for frame in there:
        path.give(0, frame)
    path.give(1, b"back")
    path.until(20.0)

    assert path.frames == [[b"back"], there]
    assert path.ends[0].is_idle
    assert path.ends[0].has_room
    assert path.ends[0].counters["pieces_sent_again"] == 0
    assert path.ends[0].due == path.ends[1].due == inf


@pytest.mark.parametrize("seed", range(20))
def test_what_is_lost_doubled_and_reordered_arrives_once_and_in_order(seed: int) -> None:
    """A fifth lost, a fifth doubled, and overtaken by what was sent later."""
    path = Path(seed, loss=0.2, double=0.2, jitter_s=0.02)
    path.open()
    there = [b"%d" % n * (n * 200) for n in range(1, 40)]
    back = [b"%d" % n for n in range(200)]

    for frame in there:
        path.give(0, frame)
    for frame in back:
        path.give(1, frame)
    path.run(0, path.ends[0].close(4411, "not needed", path.now))
    path.until(120.0)

    assert path.frames[1] == there
    assert path.ended[1] == Ended(4411, "not needed", by_peer=True)
    # The other direction goes until the end arrived, which may be before all was sent; the link above waits for that.
    assert path.frames[0] == back[: len(path.frames[0])]
    assert path.ends[0].counters["pieces_sent_again"] > 0


def test_no_more_is_under_way_than_the_window() -> None:
    """Neither pieces nor what the receiver holds grows with what is given."""
    path = Path()
    path.open()

    for _ in range(20):
        path.give(0, bytes(20 * PIECE_BYTES_MAX))
    assert not path.ends[0].has_room
    path.until(30.0)

    assert len(path.frames[1]) == 20
    assert path.most_under_way <= WINDOW
    assert path.ends[0].has_room


def test_loss_slows_the_sender_down_once_for_each_time_it_is_noticed() -> None:
    """Pieces lost together halve what may be under way once."""
    stream = opened()
    sent = transmitted(stream.give(bytes(30 * PIECE_BYTES_MAX), 0.0))
    assert len(sent) == 10

    # The first two are lost, the next six arrive: two more places each for what arrived, in slow start.
    effects = stream.received(Ack(NUMBER, 0, 0b11111100), 0.05)

    again = transmitted(effects)
    assert [segment.sequence for segment in again if isinstance(segment, Data)][:2] == [1, 2]
    # 10, and 6 that arrived, halved: 8, of which two were still under way.
    assert len(again) == 6


def test_an_open_that_is_not_answered_is_repeated() -> None:
    """Until the peer accepts, or for so long that the way is suspected, and then given up."""
    stream = RelayStream(NUMBER, CONFIG, 0.0, opening=True)
    assert transmitted(stream.start(0.0)) == [Open(NUMBER)]
    times, effects = [], []
    while not stream.is_over:
        times.append(stream.due)
        effects.append(stream.tick(stream.due))

    assert transmitted(effects[0]) == [Open(NUMBER)]
    assert WaySuspected() not in effects[0]
    assert effects[1][0] == WaySuspected()
    assert times[1] - times[0] > times[0]
    assert CONFIG.relay_silence_s <= times[-1] <= CONFIG.relay_silence_s + CONFIG.relay_rto_s_max
    assert effects[-1] == [Ended(CloseReason.CONNECTION_LOST, "nothing arrived through any relay", by_peer=False)]
    assert stream.due == inf
    assert stream.received(Accept(NUMBER), times[-1]) == []


def test_an_open_that_comes_again_is_accepted_again() -> None:
    """The acceptance was lost."""
    stream = opened()
    assert transmitted(stream.start(0.0)) == [Accept(NUMBER)]
    assert transmitted(stream.received(Open(NUMBER), 1.0)) == [Accept(NUMBER)]


def test_data_before_the_acceptance_accepts() -> None:
    """What the other side sends shows that it is open; what was given meanwhile goes out."""
    stream = RelayStream(NUMBER, CONFIG, 0.0, opening=True)
    stream.start(0.0)
    assert stream.give(b"early", 0.0) == []
    assert not stream.has_room

    effects = stream.received(data(1, b"hello"), 0.1)

    assert effects[0] == Opened()
    assert [type(segment) for segment in transmitted(effects)] == [Data]
    assert FrameArrived(b"hello") in effects


def test_an_open_stream_repeats_its_open_when_its_way_was_lost_before() -> None:
    """There was no way yet, or another one."""
    stream = RelayStream(NUMBER, CONFIG, 0.0, opening=True)
    stream.start(0.0)
    assert transmitted(stream.way_lost(0.1)) == [Open(NUMBER)]


def test_what_was_under_way_is_sent_again_when_the_way_is_lost() -> None:
    """At once, and before what was not sent yet; with nothing under way there is nothing to repeat."""
    stream = opened()
    assert stream.way_lost(0.0) == []
    first = transmitted(stream.give(bytes(15 * PIECE_BYTES_MAX), 0.0))
    again = transmitted(stream.way_lost(0.05))

    assert [segment.sequence for segment in first if isinstance(segment, Data)] == list(range(1, 11))
    assert [segment.sequence for segment in again if isinstance(segment, Data)] == list(range(1, 11))


def test_a_path_that_is_cut_for_a_while_loses_nothing() -> None:
    """Timeouts double, the way is suspected, and all goes on when it is back."""
    path = Path()
    path.open()
    path.give(0, b"1")
    path.until(path.now + 1.0)
    path.cut = True
    path.give(0, b"2")
    path.until(path.now + 6.0)
    assert path.suspected[0] > 0
    path.cut = False
    path.until(path.now + 5.0)

    assert path.frames[1] == [b"1", b"2"]
    assert path.ended == [None, None]


def test_silence_ends_the_stream() -> None:
    """When nothing is acknowledged for relay_silence_s, however often it is sent."""
    path = Path()
    path.open()
    path.until(100.0)  # silence counts from when there is something to hear of
    path.cut = True
    path.give(0, b"lost")
    path.until(100.0 + CONFIG.relay_silence_s - 1)
    assert path.ended == [None, None]
    path.until(100.0 + CONFIG.relay_silence_s + CONFIG.relay_rto_s_max)

    assert path.ended[0] is not None
    assert path.ended[0].code == CloseReason.CONNECTION_LOST


def test_closing_comes_after_what_was_given_and_is_answered() -> None:
    """The peer has it all and ends; then this side does."""
    path = Path()
    path.open()
    path.give(0, b"last words")
    path.run(0, path.ends[0].close(4411, "not needed", path.now))
    path.until(path.now + 1.0)

    assert path.frames[1] == [b"last words"]
    assert path.ended == [Ended(4411, "not needed", by_peer=False), Ended(4411, "not needed", by_peer=True)]
    assert path.ends[0].way_lost(path.now) == []


def test_an_abort_tells_the_peer_at_once() -> None:
    """Both ends are over, without waiting for anything."""
    stream = opened()
    stream.give(b"lost", 0.0)
    assert transmitted(stream.abort()) == [Reset(NUMBER)]
    assert stream.abort() == []
    assert stream.received(data(1), 0.1) == []

    other = opened()
    assert other.received(Reset(NUMBER), 0.0) == [Ended(CloseReason.CONNECTION_LOST, "", by_peer=True)]


def test_acknowledgements_wait_for_company() -> None:
    """One piece is acknowledged after a moment, several at once, and with data if there is some to send."""
    stream = opened()
    assert transmitted(stream.received(data(1), 0.0)) == []
    assert stream.due == pytest.approx(0.01)
    assert transmitted(stream.tick(0.01)) == [Ack(NUMBER, 1, 0)]
    assert stream.due == inf

    for sequence in (2, 3, 4):
        assert transmitted(stream.received(data(sequence), 1.0)) == []
    assert transmitted(stream.received(data(5), 1.0)) == [Ack(NUMBER, 5, 0)]

    stream.received(data(6), 2.0)
    assert transmitted(stream.give(b"y", 2.0)) == [Data(NUMBER, 1, 6, 0, more=False, piece=b"y")]
    assert stream.tick(2.005) == []


def test_a_gap_is_told_at_once() -> None:
    """Bit by bit; what comes twice, or lies beyond the window, is not taken."""
    stream = opened()
    assert transmitted(stream.received(data(2), 0.0)) == [Ack(NUMBER, 0, 0b10)]
    assert transmitted(stream.received(data(WINDOW), 0.0)) == [Ack(NUMBER, 0, 0b10 | 1 << (WINDOW - 1))]
    assert stream.received(data(WINDOW + 1), 0.0) == []
    assert transmitted(stream.received(data(2), 0.0)) == [Ack(NUMBER, 0, 0b10 | 1 << (WINDOW - 1))]
    effects = stream.received(data(1), 0.0)
    assert [effect for effect in effects if isinstance(effect, FrameArrived)] == [FrameArrived(b"x")] * 2
    assert transmitted(stream.received(data(1), 0.0)) == [Ack(NUMBER, 2, 1 << (WINDOW - 3))]
    assert stream.counters["pieces_twice"] == 2


def test_a_frame_larger_than_frames_may_be_is_refused() -> None:
    """What is collected stays bounded, however many pieces say that more comes."""
    stream = opened()
    piece = bytes(PIECE_BYTES_MAX)
    count = FRAME_BYTES_MAX // PIECE_BYTES_MAX
    for sequence in range(1, count + 1):
        stream.received(data(sequence, piece, more=True), 0.0)
    with pytest.raises(RemoteProtocolError, match="exceeds"):
        stream.received(data(count + 1, piece, more=True), 0.0)


def test_an_acknowledgement_of_what_was_never_sent_changes_nothing() -> None:
    """A peer that makes things up cannot end or open anything."""
    stream = opened()
    stream.give(b"x", 0.0)
    assert stream.received(Ack(NUMBER, 0, 0), 0.1) == []
    states = [stream.is_idle]
    stream.received(Ack(NUMBER, 1000, 2**WINDOW - 1), 0.1)
    states.append(stream.is_idle)
    stream.give(b"y", 0.2)
    states.append(stream.is_idle)
    assert states == [False, True, False]


def test_an_end_with_data_before_it_and_an_acknowledgement_in_it() -> None:
    """FIN is taken in order like data."""
    stream = opened()
    stream.give(b"x", 0.0)
    assert transmitted(stream.received(Fin(NUMBER, 2, 1, 0, 1000, ""), 0.1)) == [Ack(NUMBER, 0, 0b10)]
    effects = stream.received(data(1), 0.2)
    assert effects == [FrameArrived(b"x"), Transmit(Ack(NUMBER, 2, 0)), Ended(1000, "", by_peer=True)]


def test_a_timeout_with_an_acknowledgement_waiting_does_both() -> None:
    """One tick may find several things due."""
    stream = opened()
    stream.give(b"x", 0.0)
    stream.received(data(1), 0.0)
    segments = transmitted(stream.tick(10.0))
    assert segments[0] == Ack(NUMBER, 1, 0)
    assert isinstance(segments[1], Data)
