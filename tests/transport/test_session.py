"""The session of one link: the table in its docstring, row by row, and both ends against each other."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from transport.config import LinkConfig
from transport.link import CloseReason
from transport.session import (
    MEASURE_INTERVALS,
    Abort,
    Admitted,
    Close,
    CloseWanted,
    ConnectionLost,
    Effect,
    Event,
    Judge,
    Open,
    Received,
    Send,
    Session,
    SessionState,
    Started,
    Ticked,
)
from transport.types import network_name, node_id
from transport.wire import Envelope, Hello, Kind, decode_bye, encode_bye, encode_hello

CONFIG = LinkConfig()
A, B = Hello(network_name("net"), node_id("a"), 1 << 16), Hello(network_name("net"), node_id("b"), 1 << 16)
ACCEPT = Envelope(Kind.ACCEPT, 0, None, None, b"")


def _session(ours: Hello = A, theirs: Hello = B, **more: object) -> Session:
    return Session(ours, theirs.node_id, more.get("expected"), CONFIG, 0.0)  # type: ignore[arg-type]  # node id or None


def _hello(hello: Hello) -> Received:
    return Received(encode_hello(hello))


def _sent(effects: list[Effect]) -> list[int]:
    return [effect.envelope.kind for effect in effects if isinstance(effect, Send)]


def _open() -> Session:
    session = _session()
    session.handle(Started(), 0.0)
    session.handle(_hello(B), 0.0)
    session.handle(Received(ACCEPT), 0.0)
    session.handle(Admitted(), 0.0)
    session.handle(Received(Envelope(Kind.PONG, 0, None, None, (1).to_bytes(8, "big"))), 0.25)
    assert session.state is SessionState.OPEN
    return session


# --- opening ----------------------------------------------------------------------------------------------------


def test_the_arbiter_decides_last() -> None:
    """The node with the smaller id waits for the follower's ACCEPT, judges, and opens with its own."""
    session = _session(A, B)

    assert _sent(session.handle(Started(), 0.0)) == [Kind.HELLO]
    assert session.is_arbiter
    assert session.handle(_hello(B), 0.1) == []
    assert session.handle(Received(ACCEPT), 0.2) == [Judge()]
    effects = session.handle(Admitted(), 0.3)

    assert _sent(effects) == [Kind.ACCEPT, Kind.PING]
    assert effects.index(Open()) == 1
    assert session.state is SessionState.OPEN
    assert session.hello == B
    assert session.version == (1, 0)


def test_the_follower_agrees_first_and_opens_when_told() -> None:
    """The other judges on the hello, says ACCEPT, and opens on the arbiter's."""
    session = _session(B, A)
    session.handle(Started(), 0.0)

    assert not session.is_arbiter
    assert session.handle(_hello(A), 0.1) == [Judge()]
    assert _sent(session.handle(Admitted(), 0.2)) == [Kind.ACCEPT]
    assert session.state is SessionState.ACCEPTED
    assert session.handle(Received(ACCEPT), 0.3)[0] == Open()


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        (replace(B, network=network_name("other")), CloseReason.WRONG_NETWORK),
        (replace(B, node_id=node_id("c")), CloseReason.IDENTITY_MISMATCH),
        (replace(B, version_min=2, version_max=3), CloseReason.UNSUPPORTED_VERSION),
    ],
)
def test_a_wrong_hello_closes_with_its_code(hello: Hello, code: CloseReason) -> None:
    """The peer is told why before the connection closes."""
    session = _session()
    effects = session.handle(_hello(hello), 0.0)

    assert _sent(effects) == [Kind.BYE]
    assert isinstance(effects[-1], Close)
    assert effects[-1].code == code
    assert session.state is SessionState.CLOSING


def test_another_node_than_expected_is_refused() -> None:
    """Also where TLS was asked for any node of the network."""
    session = _session(A, B, expected="c")
    effects = session.handle(_hello(B), 0.0)
    assert isinstance(effects[-1], Close)
    assert effects[-1].code == CloseReason.IDENTITY_MISMATCH


@pytest.mark.parametrize(("life", "code"), [(1, CloseReason.SELF), (2, CloseReason.DUPLICATE_NODE)])
def test_our_own_name_is_ourselves_or_a_second_process(life: int, code: CloseReason) -> None:
    """The life in the incarnation tells a dial to oneself from another process with our identity."""
    session = _session(A, A)
    effects = session.handle(_hello(replace(A, incarnation=life << 16 | 5)), 0.0)
    assert isinstance(effects[-1], Close)
    assert effects[-1].code == code


@pytest.mark.parametrize("kind", [Kind.PING, Kind.ACCEPT, Kind.MESSAGES, Kind.HELLO, 14])
def test_nothing_else_may_come_before_the_link_is_open(kind: int) -> None:
    """In each state before OPEN, any envelope but the one expected breaks the protocol."""
    for arbiter in (True, False):
        ours, theirs = (A, B) if arbiter else (B, A)
        for steps in range(3):
            session = _session(ours, theirs)
            script: list[Event] = [_hello(theirs), Received(ACCEPT)] if arbiter else [_hello(theirs), Admitted()]
            for event in script[:steps]:
                session.handle(event, 0.0)
            expected = {SessionState.HELLO: Kind.HELLO, SessionState.FOLLOWED: Kind.ACCEPT}
            if kind == expected.get(session.state) or (kind == Kind.ACCEPT and session.state is SessionState.ACCEPTED):
                continue
            effects = session.handle(Received(Envelope(kind, 0, None, None, b"")), 0.0)
            assert isinstance(effects[-1], Close), (session.state, kind)
            assert effects[-1].code == CloseReason.PROTOCOL_ERROR


def test_a_refusal_by_the_endpoint_is_said_and_a_late_admission_ignored() -> None:
    """CloseWanted while judging closes; Admitted after it changes nothing."""
    session = _session(B, A)
    session.handle(_hello(A), 0.0)

    effects = session.handle(CloseWanted(CloseReason.OVERLOADED, "full"), 0.0)

    assert effects[-1] == Close(CloseReason.OVERLOADED, "full")
    assert session.handle(Admitted(), 0.0) == []
    assert session.handle(CloseWanted(CloseReason.NORMAL), 0.0) == []


def test_a_refusal_by_the_peer_is_remembered() -> None:
    """A goodbye before the link opened tells why; it may even be the first envelope."""
    session = _session()
    assert session.handle(Received(encode_bye(4409, "full")), 0.0) == []
    assert session.bye == (4409, "full")


def test_a_handshake_that_takes_too_long_is_cut() -> None:
    """In any state before OPEN."""
    for steps in range(3):
        session = _session(B, A)
        for event in (_hello(A), Admitted())[:steps]:
            session.handle(event, 0.0)
        assert session.handle(Ticked(), CONFIG.handshake_timeout_s - 0.1) == []
        effects = session.handle(Ticked(), CONFIG.handshake_timeout_s)
        assert isinstance(effects[0], Abort)
        assert effects[0].code == CloseReason.TIMED_OUT
        assert session.state is SessionState.CLOSED
        assert session.handle(Started(), 99.0) == []


# --- open -------------------------------------------------------------------------------------------------------


def test_a_ping_is_answered_with_the_same_nonce() -> None:
    """And a nonce that is too long is refused."""
    session = _open()
    ping = Envelope(Kind.PING, 0, None, None, b"nonce")
    assert session.handle(Received(ping), 1.0) == [Send(ping._replace(kind=Kind.PONG))]

    effects = session.handle(Received(ping._replace(body=bytes(65))), 1.0)
    assert isinstance(effects[-1], Close)


def test_the_round_trip_is_measured_by_the_latest_ping_only() -> None:
    """A pong that answers nothing, or an old ping, is ignored."""
    session = _open()
    assert session.rtt_s == 0.25
    session.handle(Received(Envelope(Kind.PONG, 0, None, None, b"?")), 3.0)
    assert session.rtt_s == 0.25
    effects = session.ping(4.0)
    assert isinstance(effects[0], Send)
    session.handle(Received(effects[0].envelope._replace(kind=Kind.PONG)), 4.5)
    assert session.rtt_s == 0.5


def test_a_ping_goes_out_when_either_direction_is_silent() -> None:
    """Not while both carry traffic, and not more than one per interval."""
    session = _open()
    interval_s = CONFIG.keepalive_interval_s
    session.heard(0.7 * interval_s)
    session.sent(0.7 * interval_s)
    assert session.handle(Ticked(), 1.2 * interval_s) == []
    session.heard(1.75 * interval_s)
    assert _sent(session.handle(Ticked(), 1.75 * interval_s)) == [Kind.PING]  # nothing sent since 0.7
    session.heard(2 * interval_s)
    assert session.handle(Ticked(), 2 * interval_s) == []
    session.sent(3 * interval_s)
    session.heard(2.05 * interval_s)
    assert _sent(session.handle(Ticked(), 3.1 * interval_s)) == [Kind.PING]  # nothing heard since 2.05


def test_a_busy_link_is_measured_now_and_then() -> None:
    """With traffic both ways a ping still goes out every few intervals."""
    session = _open()
    pings = 0
    for tick in range(1, 10 * MEASURE_INTERVALS):
        now = tick * CONFIG.keepalive_interval_s / 2
        session.heard(now)
        session.sent(now)
        pings += len(_sent(session.handle(Ticked(), now)))
    assert pings == 4


def test_silence_is_death_unless_it_was_ours() -> None:
    """Nothing heard for the timeout cuts the link; time in which this process did not run does not count."""
    session = _open()
    session.heard(10.0)
    assert isinstance(session.handle(Ticked(), 10.0 + CONFIG.keepalive_timeout_s)[0], Abort)

    session = _open()
    session.heard(10.0)
    assert _sent(session.handle(Ticked(excused_s=60.0), 70.0)) == [Kind.PING]
    assert session.state is SessionState.OPEN
    assert isinstance(session.handle(Ticked(), 70.0 + CONFIG.keepalive_timeout_s)[0], Abort)


def test_hello_and_accept_do_not_come_twice() -> None:
    """On an open link they break the protocol; session kinds of a later version are ignored."""
    for kind in (Kind.HELLO, Kind.ACCEPT):
        effects = _open().handle(Received(Envelope(kind, 0, None, None, b"")), 1.0)
        assert isinstance(effects[-1], Close)
    assert _open().handle(Received(Envelope(9, 0, None, None, b"")), 1.0) == []


# --- closing ----------------------------------------------------------------------------------------------------


def test_closing_says_goodbye_first_and_does_not_wait_for_ever() -> None:
    """BYE, then Close; what comes meanwhile is ignored; after the close timeout the connection is cut."""
    session = _open()
    effects = session.handle(CloseWanted(CloseReason.LEAVING, "bye"), 5.0)

    assert isinstance(effects[0], Send)
    assert decode_bye(effects[0].envelope) == (CloseReason.LEAVING, "bye")
    assert effects[1] == Close(CloseReason.LEAVING, "bye")
    assert session.handle(Received(ACCEPT), 5.1) == []
    assert session.handle(Ticked(), 5.5) == []
    assert isinstance(session.handle(Ticked(), 5.0 + CONFIG.close_timeout_s)[0], Abort)


def test_a_goodbye_on_an_open_link_is_remembered_and_a_bad_one_refused() -> None:
    """The close that follows has the reason that the peer gave."""
    session = _open()
    assert session.handle(Received(encode_bye(1001, "leaving")), 1.0) == []
    assert session.bye == (1001, "leaving")
    assert isinstance(session.handle(Received(Envelope(Kind.BYE, 0, None, None, b"")), 1.0)[-1], Close)


def test_a_lost_connection_ends_the_session() -> None:
    """Whatever comes after it has no effect."""
    session = _open()
    assert session.handle(ConnectionLost(1006), 1.0) == []
    assert session.state is SessionState.CLOSED
    assert session.handle(Ticked(), 100.0) == []


# --- both ends ----------------------------------------------------------------------------------------------------


class TwoEnds(RuleBasedStateMachine):
    """Two sessions over an ordered wire that may break: they agree, and nobody acts before both did."""

    @initialize()
    def connect(self) -> None:
        """Both ends start."""
        self.now = 0.0
        self.ends = [_session(A, B), _session(B, A)]
        self.wires: list[deque[Envelope]] = [deque(), deque()]
        self.judging = [False, False]
        self.opened = [False, False]
        self.over = [False, False]
        for side in (0, 1):
            self._do(side, self.ends[side].handle(Started(), 0.0))

    def _do(self, side: int, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(envelope):
                    self.wires[side].append(envelope)
                case Judge():
                    assert not self.judging[side]
                    self.judging[side] = True
                case Open():
                    assert not self.opened[side]
                    self.opened[side] = True
                    if side == 1:
                        assert self.opened[0], "the follower opened before the arbiter decided"
                case Close() | Abort():
                    assert not (self.over[side] and isinstance(effect, Close))
                    self.over[side] = True

    @rule(side=st.sampled_from([0, 1]))
    def deliver(self, side: int) -> None:
        """The next envelope of one direction arrives."""
        if self.wires[side]:
            other = self.ends[1 - side]
            other.heard(self.now)
            self._do(1 - side, other.handle(Received(self.wires[side].popleft()), self.now))

    @rule(side=st.sampled_from([0, 1]), admit=st.integers(0, 5))
    def judge(self, side: int, admit: int) -> None:
        """The endpoint answers, mostly with yes."""
        if self.judging[side]:
            self.judging[side] = False
            answer = Admitted() if admit else CloseWanted(CloseReason.DUPLICATE_LINK)
            self._do(side, self.ends[side].handle(answer, self.now))

    @rule(seconds=st.floats(0.05, 2.0))
    def wait(self, seconds: float) -> None:
        """Time passes on both sides."""
        self.now += seconds
        for side in (0, 1):
            self._do(side, self.ends[side].handle(Ticked(), self.now))

    @rule(side=st.sampled_from([0, 1]))
    def close(self, side: int) -> None:
        """One side wants to end it."""
        self._do(side, self.ends[side].handle(CloseWanted(CloseReason.IDLE), self.now))

    @invariant()
    def no_honest_peer_is_accused(self) -> None:
        """Neither end ever finds that the other broke the protocol."""
        for side in (0, 1):
            for envelope in self.wires[side]:
                if envelope.kind == Kind.BYE:
                    assert decode_bye(envelope)[0] != CloseReason.PROTOCOL_ERROR

    @invariant()
    def an_open_end_knows_its_peer(self) -> None:
        """OPEN implies a checked hello."""
        for session in self.ends:
            if session.state is SessionState.OPEN:
                assert session.hello is not None


TestTwoEnds = TwoEnds.TestCase
