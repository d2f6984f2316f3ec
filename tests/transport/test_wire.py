"""Frames, bodies and hellos: what comes back, what is refused, and what refusing costs."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from transport import wire
from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.types import Address, network_name, node_id
from transport.wire import Envelope, Hello, Kind

_IDS = st.none() | st.from_regex(r"\A[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?\Z")
_ENVELOPES = st.builds(Envelope, st.integers(0, 255), st.integers(0, 255), _IDS, _IDS, st.binary(max_size=200))
_SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
_VALUES = st.recursive(
    _SCALARS | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=15,
)

ENVELOPE = Envelope(Kind.MESSAGES, 3, "a", None, b"body")
HELLO = Hello(network_name("net"), node_id("a"), 65536, (Address("10.0.0.1", 7946), Address("fe80::1%eth0", 1)))


# --- frames -----------------------------------------------------------------------------------------------------


@given(st.lists(_ENVELOPES, min_size=1, max_size=20))
def test_frames_come_back_as_they_were(envelopes: list[Envelope]) -> None:
    """decode_frame inverts encode_frame."""
    decoded = wire.decode_frame(wire.encode_frame(envelopes))
    assert decoded == envelopes
    assert all(type(envelope) is Envelope for envelope in decoded)


@given(st.binary(max_size=400) | _VALUES.map(msgpack.packb))
@example(b"\xdc\x04\x00" * 2000)
@example(b"\xd6\xff\x00\x00\x00\x00")
@example(b"\xc7\x0c\xff" + b"\xff" * 12)
@example(b"\x91" * 3000)
def test_any_bytes_are_a_frame_or_a_remote_protocol_error(data: bytes) -> None:
    """Nothing that a peer sends raises anything else, in a frame or in a body."""
    try:
        assert wire.decode_frame(data)
    except RemoteProtocolError as error:
        assert error.code in {4400, 1009}  # noqa: PT017 - either outcome is right
    try:
        wire.unpack_body(data)
    except RemoteProtocolError:
        pass


@given(st.lists(_ENVELOPES, min_size=1, max_size=5), st.data())
def test_a_damaged_frame_is_decoded_or_refused(envelopes: list[Envelope], data: st.DataObject) -> None:
    """One flipped, missing or added byte never raises anything but RemoteProtocolError."""
    frame = bytearray(wire.encode_frame(envelopes))
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at : at + data.draw(st.integers(0, 1))] = data.draw(st.binary(max_size=2))
    try:
        assert wire.decode_frame(bytes(frame))
    except RemoteProtocolError as error:
        assert error.code == 4400  # noqa: PT017 - either outcome is right


_MIB = 1 << 20


@pytest.mark.parametrize(
    "frame",
    [
        b"\x91" * _MIB,
        b"\xdc\x04\x00" * (_MIB // 3),
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdc\x04\x00" + (b"\xdc\x04\x00" + b"\x91\xc0" * 1024) * 500,
        b"\xdc\x04\x00" + b"\x90" * _MIB,
        b"\xdc\x04\x00" + b"\x80" * _MIB,
        b"\xdc\x04\x00" + (b"\xdc\x04\x00" + b"\x80" * 1024) * 1000,
    ],
    ids=["nesting", "nested long arrays", "array", "map", "bin", "small arrays", "empty arrays", "maps", "maps inside"],
)
def test_a_bomb_costs_little(frame: bytes) -> None:
    """A frame of at most a megabyte allocates a bounded amount before it is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            wire.decode_frame(frame)
        assert tracemalloc.get_traced_memory()[1] < 10 * _MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "frame",
    [
        [],
        [[]],
        None,
        5,
        [1, 2, 3, 4, 5],
        list(ENVELOPE),
        [[1, 2, None, None]],
        [[*ENVELOPE] + [0] * 12],
        [[*ENVELOPE, []]],
        [[*ENVELOPE, list(ENVELOPE)]],
        [[*ENVELOPE, [list(ENVELOPE)]]],
        [[list(ENVELOPE)]],
        [list(ENVELOPE), 5],
        [list(ENVELOPE), None],
        [{}],
        [["1", 0, None, None, b""]],
        [[True, 0, None, None, b""]],
        [[1.0, 0, None, None, b""]],
        [[-1, 0, None, None, b""]],
        [[256, 0, None, None, b""]],
        [[1, -1, None, None, b""]],
        [[1, 256, None, None, b""]],
        [[1, None, None, None, b""]],
        [[1, 0, "", None, b""]],
        [[1, 0, "x" * 64, None, b""]],
        [[1, 0, b"a", None, b""]],
        [[1, 0, None, 7, b""]],
        [[1, 0, None, "x" * 64, b""]],
        [[1, 0, None, None, "text"]],
        [[1, 0, None, None, None]],
        [[1, 0, None, None, bytes(wire.BODY_BYTES_MAX + 1)]],
    ],
)
def test_what_is_not_a_list_of_envelopes_is_refused(frame: object) -> None:
    """Each field has its type and range; a frame holds at least one envelope and nothing else."""
    with pytest.raises(RemoteProtocolError):
        wire.decode_frame(msgpack.packb(frame))


def test_a_frame_above_the_limit_is_refused_unread() -> None:
    """The size is checked before anything is decoded."""
    with pytest.raises(RemoteProtocolError, match="exceeds") as refusal:
        wire.decode_frame(bytes(wire.FRAME_BYTES_MAX + 1))
    assert refusal.value.code == 1009


def test_fields_of_a_later_version_are_ignored() -> None:
    """Scalars after the fifth field do not matter, up to the sixteenth."""
    assert wire.decode_frame(msgpack.packb([[*ENVELOPE, None, 1, "x", b"y", 2.5, True]])) == [ENVELOPE]
    assert wire.decode_frame(msgpack.packb([[*ENVELOPE] + [0] * 11])) == [ENVELOPE]


@pytest.mark.parametrize(
    "envelope",
    [
        ENVELOPE._replace(body=bytes(wire.BODY_BYTES_MAX + 1)),
        ENVELOPE._replace(body="text"),  # type: ignore[arg-type]  # the mistake under test
        ENVELOPE._replace(kind=256),
        ENVELOPE._replace(kind=-1),
        ENVELOPE._replace(ttl=256),
        ENVELOPE._replace(source="x" * 64),
        ENVELOPE._replace(target="x" * 64),
    ],
)
def test_what_the_peer_would_refuse_is_not_sent(envelope: Envelope) -> None:
    """check_sendable finds the caller's mistakes before they become the peer's problem."""
    with pytest.raises(LocalProtocolError):
        wire.check_sendable(envelope)


@given(_ENVELOPES)
def test_the_size_estimate_is_an_upper_bound(envelope: Envelope) -> None:
    """What check_sendable returns is at least what the envelope takes."""
    assert wire.check_sendable(envelope) >= len(wire.encode_frame([envelope])) - 1


def test_frames_that_are_empty_too_long_or_too_large_are_not_made() -> None:
    """encode_frame keeps to the limits that decode_frame enforces."""
    for envelopes in ([], [ENVELOPE] * (wire.ENVELOPES_MAX + 1), [ENVELOPE._replace(body=bytes(600_000))] * 2):
        with pytest.raises(LocalProtocolError):
            wire.encode_frame(envelopes)


# --- bodies -----------------------------------------------------------------------------------------------------


@given(_VALUES)
def test_bodies_come_back_as_they_were(value: object) -> None:
    """unpack_body inverts pack, and counting does not change the result."""
    data = wire.pack(value)
    assert wire.unpack_body(data) == value
    assert wire.unpack_body(data, nodes_max=max(1, len(data) - 1), depth_max=None) == value


def test_what_messagepack_cannot_carry_is_a_local_error() -> None:
    """An object, or an integer beyond 64 bits, cannot be packed; the packer stays usable."""
    for value in (object(), 2**64, [1, object()]):
        with pytest.raises(LocalProtocolError):
            wire.pack(value)
    assert wire.pack(1) == b"\x01"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\x82\xa1a\x01\xa1a\x02", "duplicate"),
        (b"\xd4\x05\x00", "extension"),
        (b"\x81\x01\x02", "MessagePack"),
        (b"\x91" * 40 + b"\xc0", "deeper"),
        (b"\x81\xa1a" * 40 + b"\xc0", "deeper"),
        (b"\x01\x01", "MessagePack"),
        (b"\xa2\xff\xff", "MessagePack"),
        (b"", "MessagePack"),
    ],
)
def test_bodies_that_lie_or_nest_are_refused(data: bytes, what: str) -> None:
    """Each with a text that says what is wrong."""
    with pytest.raises(RemoteProtocolError, match=what):
        wire.unpack_body(data)


def test_the_node_budget_stops_a_bomb_while_it_is_decoded() -> None:
    """246 KB of small maps would become 18 MB; the budget ends it early, for arrays and for maps."""
    bomb = b"\xdc\x00\x3c" + (b"\xdc\x0f\xff" + b"\x80" * 4095) * 60
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError, match="too many"):
            wire.unpack_body(bomb)
        assert tracemalloc.get_traced_memory()[1] < 2 * _MIB
    finally:
        tracemalloc.stop()
    with pytest.raises(RemoteProtocolError, match="too many"):
        wire.unpack_body(b"\x92\x91\xc0\x91\xc0", nodes_max=3)
    with pytest.raises(RemoteProtocolError, match="too many"):
        wire.unpack_body(b"\x82\xa1a\xc0\xa1b\xc0", nodes_max=3)
    assert wire.unpack_body(b"\x82\xa1a\xc0\xa1b\xc0", nodes_max=4) == {"a": None, "b": None}


def test_depth_is_counted_from_the_outermost_value() -> None:
    """depth_max levels of arrays pass, one more does not."""
    assert wire.unpack_body(b"\x91" * 3 + b"\xc0", depth_max=3) == [[[None]]]
    with pytest.raises(RemoteProtocolError, match="deeper than 2"):
        wire.unpack_body(b"\x91" * 3 + b"\xc0", depth_max=2)


# --- hello ------------------------------------------------------------------------------------------------------


def test_a_hello_comes_back_as_it_was() -> None:
    """decode_hello inverts encode_hello."""
    hello = replace(HELLO, features=("relay",), software="peermesh 1", version_minor=4)
    assert wire.decode_hello(wire.encode_hello(hello)) == hello


def _hello(**changes: object) -> Envelope:
    body = wire.unpack_body(wire.encode_hello(HELLO).body)
    body.update(changes)
    return Envelope(Kind.HELLO, 0, None, None, msgpack.packb({k: v for k, v in body.items() if v is not ...}))


def test_unknown_keys_of_a_hello_are_ignored_and_optional_ones_may_be_missing() -> None:
    """A later version may say more; addresses, features and software may be left out."""
    assert wire.decode_hello(_hello(colour=[1, {"a": 2}])) == HELLO
    short = wire.decode_hello(_hello(addresses=..., features=..., software=...))
    assert short == replace(HELLO, addresses=(), software="")


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": ...},
        {"protocol": [1, 1]},
        {"protocol": [0, 1, 0]},
        {"protocol": [2, 1, 0]},
        {"protocol": [1, 1, -1]},
        {"protocol": [1, 1, True]},
        {"network": "Not A Label"},
        {"network": 5},
        {"node_id": ...},
        {"node_id": "a" * 64},
        {"incarnation": -1},
        {"incarnation": 2**53},
        {"incarnation": True},
        {"addresses": [["h", 1]] * 17},
        {"addresses": "h:1"},
        {"addresses": [["h"]]},
        {"addresses": [["h", 0]]},
        {"addresses": [["h", True]]},
        {"addresses": [["h x", 1]]},
        {"addresses": [["", 1]]},
        {"frame_bytes_max": 10},
        {"features": [1]},
        {"features": ["x" * 200]},
        {"software": None},
    ],
)
def test_a_hello_with_a_field_that_cannot_be_is_refused(changes: dict[str, object]) -> None:
    """Every field is checked for type and range."""
    with pytest.raises(RemoteProtocolError, match="hello"):
        wire.decode_hello(_hello(**changes))


def test_what_is_not_a_hello_is_refused() -> None:
    """Another kind, another shape, too large."""
    for envelope in (
        ENVELOPE,
        Envelope(Kind.HELLO, 0, None, None, b"\x90"),
        Envelope(Kind.HELLO, 0, None, None, bytes(wire.HELLO_BYTES_MAX + 1)),
    ):
        with pytest.raises(RemoteProtocolError):
            wire.decode_hello(envelope)


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"),
    [((1, 1, 0), (1, 1, 0), (1, 0)), ((1, 2, 5), (1, 3, 9), (2, 5)), ((1, 3, 2), (2, 3, 1), (3, 1))],
)
def test_the_highest_common_version_is_chosen(
    ours: tuple[int, int, int], theirs: tuple[int, int, int], agreed: tuple[int, int]
) -> None:
    """Major: the highest both speak; minor: the lower of those that belong to it; from either side."""
    a, b = (replace(HELLO, version_min=low, version_max=high, version_minor=n) for low, high, n in (ours, theirs))
    assert wire.negotiate(a, b) == agreed
    assert wire.negotiate(b, a) == agreed


def test_no_common_version_is_refused_naming_both() -> None:
    """The code is UNSUPPORTED_VERSION."""
    with pytest.raises(RemoteProtocolError, match=r"1 to 1.*5 to 6") as refusal:
        wire.negotiate(HELLO, replace(HELLO, version_min=5, version_max=6))
    assert refusal.value.code == 4403


def test_a_goodbye_comes_back_shortened_or_is_refused() -> None:
    """Codes are WebSocket close codes; the text is cut to what a peer accepts."""
    assert wire.decode_bye(wire.encode_bye(1001, "x" * 500)) == (1001, "x" * 128)
    for body in (b"\xc0", msgpack.packb([5, "x"]), msgpack.packb([1000, "x" * 200]), msgpack.packb([5000, ""])):
        with pytest.raises(RemoteProtocolError):
            wire.decode_bye(Envelope(Kind.BYE, 0, None, None, body))
