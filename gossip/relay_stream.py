"""Whole frames, in order, once each, between two nodes whose envelopes pass through others: a small TCP.

What carries the pieces of a frame may lose, double or reorder them: a relay whose link is full drops, a relay that
dies takes with it what was under way.  So pieces are numbered, acknowledged and sent again, by another way if the one
they took is gone; the stream itself knows no ways.

After TCP and QUIC: an acknowledgement says what arrived, bit by bit (RFC 2018); a piece is lost when one that was sent
three places later has arrived (RFC 9002 section 6.1), or when nothing arrives for a timeout taken from the round trips
(RFC 6298), which doubles until a round trip is measured again (Karn); loss halves what may be under way, at most once
for what was sent before it was noticed.  The window is fixed: the receiver hands frames up as they come, and how far
senders may run ahead of a slow agent is decided above.  Frames that were given but not sent are the stream's only
queue, and ``has_room`` keeps it short, so that which frame comes next is decided as late as possible.
"""

# core: no I/O

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import inf
from typing import Final

from transport.errors import RemoteProtocolError
from transport.link import CloseReason
from transport.wire import FRAME_BYTES_MAX

from .config import GossipConfig
from .relay_codec import PIECE_BYTES_MAX, WINDOW, Accept, Ack, Data, Fin, Open, Reset, Segment

#: What may be under way at first, and at least.
_FLIGHT_FIRST: Final = 10.0
_FLIGHT_LEAST: Final = 2.0
#: A piece is lost when one that was sent so many places later arrived.
_REORDER: Final = 3
#: The first timeout, before any round trip was measured.
_RTO_FIRST_S: Final = 0.5
#: How long an acknowledgement waits for data to travel with, and for how many pieces; below any timeout.
_ACK_DELAY_S: Final = 0.01
_ACK_PIECES: Final = 4
#: After so many timeouts in a row the way is suspected.
_SUSPECT_TIMEOUTS: Final = 2


# --- effects --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Transmit:
    """Send this to the other node."""

    segment: Segment


@dataclass(frozen=True, slots=True)
class Opened:
    """The other node accepted."""


@dataclass(frozen=True, slots=True)
class FrameArrived:
    """The next frame."""

    frame: bytes


@dataclass(frozen=True, slots=True)
class WaySuspected:
    """Nothing arrives the way that is taken."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The stream is over; nothing follows.  ``by_peer``: the other node said so."""

    code: int
    text: str
    by_peer: bool


Effect = Transmit | Opened | FrameArrived | WaySuspected | Ended


@dataclass(slots=True)
class _Piece:
    """One sequence: a piece of a frame, or the end."""

    piece: bytes = b""
    more: bool = False
    end: tuple[int, str] | None = None
    sent_at: float = 0.0
    order: int = 0
    """Which transmission it was, of all."""
    tries: int = 0
    lost: bool = False


class RelayStream:
    """One end of a stream.

    Every method returns effects, to be executed in order; ``due`` says when to call :meth:`tick` next.

    Args:
        number: The stream's, chosen by who opens it.
        config: Times.
        now: Seconds on any clock that never goes back.
        opening: Whether this side opens it; else the other one did.
    """

    def __init__(self, number: int, config: GossipConfig, now: float, *, opening: bool) -> None:
        self._number = number
        self._config = config
        self.is_open = not opening
        self.is_over = False
        # What is to be sent: given but not sent yet, and sent but not acknowledged, by sequence.
        self._waiting: deque[_Piece] = deque()
        self._flight: dict[int, _Piece] = {}
        self._end_arrived: tuple[int, str] | None = None
        self._next_sequence = 1
        self._order = 0
        self._acked_order = 0
        self._halved_order = 0
        self._flight_max = _FLIGHT_FIRST
        self._slow_start_until = inf
        # Round trips, and the timeout that follows from them.
        self._srtt_s: float | None = None
        self._rttvar_s = 0.0
        self._timeouts = 0
        self._backoff = 0
        self._rto_at = inf
        self._progress_at = now
        # What arrived: all up to here, pieces beyond (fewer than WINDOW), the frame so far.
        self._arrived = 0
        self._held: dict[int, Data | Fin] = {}
        self._frame: list[bytes] = []
        self._frame_bytes = 0
        self._ack_at = inf
        self._unacked_pieces = 0
        self.counters = {"pieces_sent": 0, "pieces_sent_again": 0, "pieces_twice": 0}

    @property
    def due(self) -> float:
        """When to call :meth:`tick`; infinite: not."""
        return inf if self.is_over else min(self._rto_at, self._ack_at)

    @property
    def has_room(self) -> bool:
        """Whether all that was given was sent at least once."""
        return not self._waiting

    @property
    def is_idle(self) -> bool:
        """Whether all that was given arrived."""
        return not self._waiting and not self._flight

    # --- what this side does ----------------------------------------------------------------------------------

    def start(self, now: float) -> list[Effect]:
        """Open the stream, or say that it is."""
        if self.is_open:
            return [Transmit(Accept(self._number))]
        self._rto_at = now + self._rto_s
        return [Transmit(Open(self._number))]

    def give(self, frame: bytes, now: float) -> list[Effect]:
        """Send ``frame``; call it only while the stream is open and not over."""
        for begin in range(0, len(frame), PIECE_BYTES_MAX):
            end = begin + PIECE_BYTES_MAX
            self._waiting.append(_Piece(frame[begin:end], more=end < len(frame)))
        return self._pump(now)

    def close(self, code: int, text: str, now: float) -> list[Effect]:
        """End the stream after what was given; ``Ended`` follows when the other side has it all."""
        self._waiting.append(_Piece(end=(code, text)))
        return self._pump(now)

    def abort(self) -> list[Effect]:
        """End the stream now."""
        if self.is_over:
            return []
        self.is_over = True
        return [Transmit(Reset(self._number))]

    def way_lost(self, now: float) -> list[Effect]:
        """The way that was taken is gone, with what was under way; there is another one."""
        if not self.is_open:
            return self.start(now)
        if self._flight:
            self._flight_max = min(self._flight_max, _FLIGHT_FIRST)
            self._timeouts = self._backoff = 0
            self._all_lost(now)
        return self._pump(now)

    def tick(self, now: float) -> list[Effect]:
        """Time passed."""
        effects: list[Effect] = []
        if self._ack_at <= now:
            effects.append(self._ack())
        if self._rto_at <= now:
            self._timed_out(effects, now)
        return effects

    # --- what arrives -----------------------------------------------------------------------------------------

    def received(self, segment: Segment, now: float) -> list[Effect]:
        """Take what came from the other side.

        Raises:
            RemoteProtocolError: A frame is larger than frames may be; the stream is of no more use.
        """
        if self.is_over:
            return []
        effects: list[Effect] = []
        match segment:
            case Open():
                effects.append(Transmit(Accept(self._number)))
            case Reset():
                self._end(effects, CloseReason.CONNECTION_LOST, "", by_peer=True)
            case _:
                if not self.is_open:
                    self._opened(effects, now)
                if isinstance(segment, Data | Fin):
                    self._take(segment, effects)
                if isinstance(segment, Data | Fin | Ack):
                    self._acknowledged(segment, effects, now)
        return effects

    def _opened(self, effects: list[Effect], now: float) -> None:
        """The peer accepted, or sends already: its acceptance got lost, or comes late."""
        self.is_open = True
        self._timeouts = self._backoff = 0
        self._progress_at = now
        self._rto_at = inf
        effects.append(Opened())
        effects.extend(self._pump(now))

    def _take(self, segment: Data | Fin, effects: list[Effect]) -> None:
        sequence = segment.sequence
        if sequence <= self._arrived or sequence in self._held:
            self.counters["pieces_twice"] += 1
            effects.append(self._ack())  # the one before was lost
            return
        if sequence > self._arrived + WINDOW:
            return  # more than may be under way
        self._held[sequence] = segment
        self._unacked_pieces += 1
        while (following := self._held.pop(self._arrived + 1, None)) is not None:
            self._arrived += 1
            if isinstance(following, Fin):
                effects.append(self._ack())
                self._end(effects, following.code, following.text, by_peer=True)
                return
            self._collect(following, effects)
        if self._held or self._unacked_pieces >= _ACK_PIECES:
            effects.append(self._ack())

    def _collect(self, data: Data, effects: list[Effect]) -> None:
        self._frame.append(data.piece)
        self._frame_bytes += len(data.piece)
        if self._frame_bytes > FRAME_BYTES_MAX:
            raise RemoteProtocolError(
                f"relayed frame exceeds {FRAME_BYTES_MAX} bytes", code=CloseReason.MESSAGE_TOO_BIG
            )
        if not data.more:
            effects.append(FrameArrived(b"".join(self._frame)))
            self._frame, self._frame_bytes = [], 0

    # --- acknowledgements -------------------------------------------------------------------------------------

    def _state(self) -> tuple[int, int]:
        """What arrived, as an acknowledgement says it; whoever asks sends it."""
        self._ack_at, self._unacked_pieces = inf, 0
        return self._arrived, sum(1 << (sequence - self._arrived - 1) for sequence in self._held)

    def _ack(self) -> Effect:
        return Transmit(Ack(self._number, *self._state()))

    def _acknowledged(self, segment: Data | Fin | Ack, effects: list[Effect], now: float) -> None:
        if self.is_over:
            return
        ack, bits = segment.ack, segment.bits
        news = [
            sequence
            for sequence in self._flight
            if sequence <= ack or (sequence - ack <= WINDOW and bits >> (sequence - ack - 1) & 1)
        ]
        for sequence in news:
            piece = self._flight.pop(sequence)
            self._acked_order = max(self._acked_order, piece.order)
            if piece.tries == 1:
                self._measure(now - piece.sent_at)
            self._end_arrived = self._end_arrived or piece.end
        if self._end_arrived is not None and not self._flight:
            self._end(effects, *self._end_arrived, by_peer=False)
        elif news:
            self._progress(len(news), now)
            self._find_lost()
            effects.extend(self._pump(now))
        if self._unacked_pieces and self._ack_at == inf:
            self._ack_at = now + _ACK_DELAY_S

    def _progress(self, count: int, now: float) -> None:
        self._progress_at = now
        self._timeouts = 0
        self._rto_at = now + self._rto_s if self._flight else inf
        growth = count if self._flight_max < self._slow_start_until else count / self._flight_max
        self._flight_max = min(float(WINDOW), self._flight_max + growth)

    def _measure(self, rtt_s: float) -> None:
        self._backoff = 0
        if self._srtt_s is None:
            self._srtt_s, self._rttvar_s = rtt_s, rtt_s / 2
        else:
            self._rttvar_s += (abs(rtt_s - self._srtt_s) - self._rttvar_s) / 4
            self._srtt_s += (rtt_s - self._srtt_s) / 8

    @property
    def _rto_s(self) -> float:
        measured = _RTO_FIRST_S if self._srtt_s is None else self._srtt_s + 4 * self._rttvar_s + _ACK_DELAY_S
        least, most = self._config.relay_rto_s_min, self._config.relay_rto_s_max
        return min(most, max(least, measured) * 2.0 ** min(self._backoff, 16))

    # --- sending ----------------------------------------------------------------------------------------------

    def _find_lost(self) -> None:
        for piece in self._flight.values():
            if not piece.lost and piece.order + _REORDER <= self._acked_order:
                piece.lost = True
                self._halve(piece.order)

    def _halve(self, order: int) -> None:
        """Send less at a time: once for all that was under way when it was noticed."""
        if order > self._halved_order:
            self._halved_order = self._order
            self._flight_max = self._slow_start_until = max(_FLIGHT_LEAST, self._flight_max / 2)

    def _all_lost(self, now: float) -> None:
        for piece in self._flight.values():
            piece.lost = True
        self._rto_at = now + self._rto_s

    def _timed_out(self, effects: list[Effect], now: float) -> None:
        if now - self._progress_at >= self._config.relay_silence_s:
            self._end(effects, CloseReason.CONNECTION_LOST, "nothing arrived through any relay", by_peer=False)
            return
        self._timeouts += 1
        self._backoff += 1
        if self._timeouts >= _SUSPECT_TIMEOUTS:
            effects.append(WaySuspected())
        if not self.is_open:
            effects.extend(self.start(now))
            return
        self._halve(self._order)
        self._flight_max = _FLIGHT_LEAST
        self._all_lost(now)
        effects.extend(self._pump(now))

    def _pump(self, now: float) -> list[Effect]:
        """Send what may be sent: first again what was lost."""
        effects: list[Effect] = []
        if not self.is_open or self.is_over:
            return effects
        under_way = sum(1 for piece in self._flight.values() if not piece.lost)
        for sequence, piece in self._flight.items():
            if under_way >= self._flight_max:
                return effects
            if piece.lost:
                self.counters["pieces_sent_again"] += 1
                self._transmit(sequence, piece, effects, now)
                under_way += 1
        oldest = next(iter(self._flight), self._next_sequence)
        while self._waiting and under_way < self._flight_max and self._next_sequence < oldest + WINDOW:
            if not self._flight:
                # Silence counts from here: before there was nothing to hear of.
                self._progress_at = max(self._progress_at, now)
                self._rto_at = now + self._rto_s
            piece = self._flight[self._next_sequence] = self._waiting.popleft()
            self._transmit(self._next_sequence, piece, effects, now)
            self._next_sequence += 1
            under_way += 1
        return effects

    def _transmit(self, sequence: int, piece: _Piece, effects: list[Effect], now: float) -> None:
        self._order += 1
        piece.order, piece.sent_at, piece.lost = self._order, now, False
        piece.tries += 1
        self.counters["pieces_sent"] += 1
        if piece.end is None:
            effects.append(Transmit(Data(self._number, sequence, *self._state(), piece.more, piece.piece)))
        else:
            effects.append(Transmit(Fin(self._number, sequence, *self._state(), *piece.end)))

    def _end(self, effects: list[Effect], code: int, text: str, *, by_peer: bool) -> None:
        self.is_over = True
        effects.append(Ended(code, text, by_peer))
