"""Bodies: what is written is read again, and what cannot be used is refused."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.messaging import body as m
from mesh.types import MessageType, Priority
from transport.errors import RemoteProtocolError
from transport.wire import ARRAY_ITEMS_MAX, BODY_BYTES_MAX, pack

COUNTS = st.integers(0, 2**63 - 1)
AGENTS = st.integers(0, m.AGENT_ID_MAX)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
HEADERS = st.none() | st.dictionaries(TEXTS, TEXTS, max_size=4)
GROUPS = st.none() | TEXTS
PLAIN = st.tuples(
    COUNTS, st.sampled_from([int(kind) for kind in MessageType]), AGENTS, AGENTS, st.integers(0, 3),
    st.binary(max_size=50), st.integers(-(2**40), 2**40),
).map(list)  # fmt: skip
EXTRAS: st.SearchStrategy[list[Any]] = st.one_of(
    st.just([]),
    st.tuples(st.none() | COUNTS).map(list),
    st.tuples(st.none() | COUNTS, HEADERS).map(list),
    st.tuples(st.none() | COUNTS, HEADERS, GROUPS).map(list),
)
MESSAGES = st.builds(lambda plain, extras: [*plain, *extras], PLAIN, EXTRAS)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=8) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=12,
)

GOOD: list[Any] = [5, 1, 42, 7, 0, b"payload", -3]


def _batch_of(*messages: Any) -> bytes:
    return m.encode_batch(9, 1_000, Priority.HIGH, messages)


@given(COUNTS, COUNTS, st.sampled_from(Priority), st.lists(MESSAGES, max_size=8))
def test_a_batch_is_read_as_written(life: int, base_ms: int, priority: Priority, messages: list[m.Message]) -> None:
    """Every batch that can be written is read again unchanged."""
    batch = m.decode_batch(m.encode_batch(life, base_ms, priority, messages))

    assert batch == m.Batch(life, base_ms, priority, messages)


@given(st.lists(st.tuples(AGENTS.filter(lambda a: a < 2**63), COUNTS), max_size=8), st.lists(st.tuples(COUNTS, COUNTS)))
def test_acknowledgements_are_read_as_written(limits: list[tuple[int, int]], runs: list[tuple[int, int]]) -> None:
    """Every body of acknowledgements is read again unchanged."""
    acks = m.Acks(limits, runs, runs[:3])

    assert m.decode_acks(m.encode_acks(acks)) == acks


@given(st.integers(0, 9), st.text(max_size=300), st.text(max_size=3_000))
def test_any_error_can_be_told(code: int, kind: str, text: str) -> None:
    """Whatever an exception's text holds, lone surrogates included, arrives, cut to its bound."""
    told = m.decode_error(m.encode_error(code, kind, text))

    assert told[0] == code
    assert len(told[1]) <= 200
    assert len(told[2]) == min(len(text), m.ERROR_CHARS_MAX)


@given(MESSAGES, COUNTS, st.sampled_from(Priority))
def test_a_broadcast_is_read_as_written(message: m.Message, timestamp_ms: int, priority: Priority) -> None:
    """A broadcast's payload is read as a batch of one."""
    batch = m.decode_broadcast(m.encode_broadcast(message, timestamp_ms, priority), 6)

    assert batch == m.Batch(6, timestamp_ms, priority, [message])


DECODERS: list[Callable[[bytes], object]] = [
    m.decode_batch,
    m.decode_acks,
    m.decode_error,
    lambda data: m.decode_broadcast(data, 1),
]


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_read_or_refused(data: bytes) -> None:
    """No decoder raises anything but RemoteProtocolError, whatever the bytes."""
    for decode in DECODERS:
        try:
            assert decode(data) is not None
        except RemoteProtocolError:
            continue


@given(JUNK | st.lists(JUNK, min_size=3, max_size=5), JUNK)
def test_arbitrary_values_are_read_or_refused(value: object, message: object) -> None:
    """The same for values that are MessagePack, but not what was expected."""
    bodies = [pack(value), pack([1, 1, 1, [message]]), pack([1, 1, 1, [[*GOOD, message]]]), pack([1, 1, message])]
    for data in bodies:
        for decode in DECODERS:
            try:
                assert decode(data) is not None
            except RemoteProtocolError:
                continue


@pytest.mark.parametrize(
    "data",
    [
        pack([1, 1, 1, [[[]] * 4_000] * 16]),
        pack([1, 1, 1, [[*GOOD, None, None, None, *[[]] * 4_000]] * 200]),
        b"\xdd\xff\xff\xff\xff" * 10,
        pack([[[1, 1]] * 4_096] * 3),
        b"\x91" * 60_000,
        pack([1, 1, 1, [[*GOOD, None, {str(i): "" for i in range(4_000)}]] * 40]),
    ],
)
def test_memory_stays_bounded(data: bytes) -> None:
    """Bodies made to grow when decoded take at most some megabytes more than their size."""
    for decode in DECODERS:
        tracemalloc.start()
        try:
            decode(data)
        except RemoteProtocolError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < len(data) + (16 << 20)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        [],
        [1, 1, 1],
        [-1, 1, 1, []],
        [True, 1, 1, []],
        [1, -1, 1, []],
        [1, "1", 1, []],
        [1, 1, 4, []],
        [1, 1, -1, []],
        [1, 1, True, []],
        [1, 1, 1, {}],
        [1, 1, 1, [GOOD] * 4_097],
    ],
)
def test_a_batch_with_a_wrong_field_is_refused(fields: Any) -> None:
    """Life and base time are counts, priority one of four, and messages a list within its bound."""
    with pytest.raises(RemoteProtocolError):
        m.decode_batch(pack(fields))


def _with_field(position: int, value: Any) -> list[Any]:
    changed = [*GOOD, None, None, None]
    changed[position] = value
    return changed


@pytest.mark.parametrize(
    "message",
    [
        {},
        None,
        GOOD[:6],
        [],
        _with_field(m.F_SEQUENCE, -1),
        _with_field(m.F_SEQUENCE, True),
        _with_field(m.F_TYPE, 6),
        _with_field(m.F_TYPE, -1),
        _with_field(m.F_FROM, -1),
        _with_field(m.F_FROM, "1"),
        _with_field(m.F_TO, -1),
        _with_field(m.F_TO, None),
        _with_field(m.F_FLAGS, b""),
        _with_field(m.F_PAYLOAD, "text"),
        _with_field(m.F_OFFSET, 1.5),
        _with_field(m.F_OFFSET, 2**63),
        _with_field(m.F_CORRELATION, -1),
        _with_field(m.F_CORRELATION, "x"),
        _with_field(m.F_CORRELATION, 2**63),
        _with_field(m.F_HEADERS, []),
        _with_field(m.F_HEADERS, {"k": 1}),
        _with_field(m.F_HEADERS, {b"k": "v"}),
        _with_field(m.F_HEADERS, {"k": "v" * 1_024}),
        _with_field(m.F_HEADERS, {str(i): "" for i in range(m.HEADERS_MAX + 1)}),
        _with_field(m.F_GROUP, 1),
        _with_field(m.F_GROUP, "g" * (m.GROUP_CHARS_MAX + 1)),
    ],
)
def test_a_message_with_a_wrong_field_is_refused(message: Any) -> None:
    """A field of the wrong type or out of range is refused, in a batch and in a broadcast."""
    with pytest.raises(RemoteProtocolError):
        m.decode_batch(pack([1, 1, 1, [GOOD, message]]))
    with pytest.raises(RemoteProtocolError):
        m.decode_broadcast(pack([1, 1, message]), 1)


@pytest.mark.parametrize("correlations", [(None, None), (5, None), (5, 6), (2**63 - 1, 0)])
@pytest.mark.parametrize("flags", [0, m.FLAG_STREAM, m.FLAG_END | 1 << 40])
def test_correlations_and_flags_are_kept(correlations: tuple[int | None, int | None], flags: int) -> None:
    """Whichever way a batch is checked: with a correlation each, or with nil in between."""
    messages = [[1, 3, 7, 1, flags, b"x", 0, correlation] for correlation in correlations]

    assert m.decode_batch(m.encode_batch(1, 1, Priority.NORMAL, messages)).messages == messages


@pytest.mark.parametrize("correlation", [-1, 2**63, "1", 1.5])
def test_a_correlation_that_is_no_count_is_refused(correlation: object) -> None:
    """In a batch that is otherwise plain."""
    messages = [[1, 3, 7, 1, 0, b"x", 0, 4], [1, 3, 7, 1, 0, b"x", 0, correlation]]
    with pytest.raises(RemoteProtocolError, match="correlation"):
        m.decode_batch(pack([1, 1, 1, messages]))


@pytest.mark.parametrize(
    ("position", "value", "is_kept"),
    [
        (m.F_SEQUENCE, -1, False),
        (m.F_SEQUENCE, 8, True),
        (m.F_TYPE, len(m.TYPES), False),
        (m.F_FROM, -1, False),
        (m.F_FLAGS, -2, False),
        (m.F_FLAGS, m.FLAG_DURABLE, False),
        (m.F_FLAGS, m.FLAG_ACK, True),
        (m.F_PAYLOAD, "text", False),
        (m.F_CORRELATION, -1, False),
        (m.F_CORRELATION, 6, True),
    ],
)
def test_many_messages_are_judged_as_a_single_one_is(position: int, value: object, is_kept: bool) -> None:
    """A batch of many is checked by its columns, and comes to the same."""
    good = [*GOOD, 5] if position == m.F_CORRELATION else GOOD
    judged = [*good]
    judged[position] = value

    for companions in (0, 30):
        messages = [*[good] * companions, judged, *[good] * companions]
        if is_kept:
            assert m.decode_batch(pack([9, 1_000, 1, messages])).messages == messages
        else:
            with pytest.raises(RemoteProtocolError):
                m.decode_batch(pack([9, 1_000, 1, messages]))


def test_unknown_trailing_fields_are_forgotten() -> None:
    """A later version's fields are ignored, and do not wait in memory with a message that nobody weighed them for."""
    batch = m.decode_batch(pack([9, 1_000, 1, [[*GOOD, 3, None, "g", "later" * 1_000, [1]]], "later"]))

    assert batch.messages == [[*GOOD, 3, None, "g"]]


@pytest.mark.parametrize(
    "fields", [1, [[], []], [{}, [], []], [[], [[1]], []], [[], [[1, -1]], []], [[["a", 1]], [], []], [[], [], [3]]]
)
def test_acknowledgements_with_a_wrong_field_are_refused(fields: Any) -> None:
    """Each column is a list of pairs of counts."""
    with pytest.raises(RemoteProtocolError):
        m.decode_acks(pack(fields))


@pytest.mark.parametrize("fields", [[], [1, "kind"], ["1", "kind", "text"], [1, b"", "text"], [1, "kind", None]])
def test_an_error_with_a_wrong_field_is_refused(fields: Any) -> None:
    """An error is a code and two texts."""
    with pytest.raises(RemoteProtocolError):
        m.decode_error(pack(fields))


@pytest.mark.parametrize("fields", [[1, 1], [-1, 1, GOOD], [1, 4, GOOD], [1, -1, GOOD], [1, True, GOOD], 7])
def test_a_broadcast_with_a_wrong_field_is_refused(fields: Any) -> None:
    """A broadcast names a time, a priority and one message."""
    with pytest.raises(RemoteProtocolError):
        m.decode_broadcast(pack(fields), 1)


def test_the_user_sees_every_field() -> None:
    """A message with all fields becomes an AgentMessage with all fields."""
    batch = m.decode_batch(_batch_of([*GOOD, None, {"k": "v"}, "group"]))

    seen = m.to_agent_message(batch.messages[0], batch, "node-b", 3, m.message_id_prefix("node-b", batch.life))

    assert (seen.from_agent, seen.to_agent, seen.message_type) == (42, 7, MessageType.COMMAND)
    assert (seen.payload, seen.message_id, seen.timestamp) == (b"payload", "node-b/9/5", 997)
    assert (seen.ttl, seen.priority, seen.group, seen.headers) == (3, Priority.HIGH, "group", {"k": "v"})
    assert seen.from_node == "node-b"


@pytest.mark.parametrize("extras", [[], [None], [None, None], [None, {}, None]])
def test_absent_extras_are_empty_and_nobody_elses(extras: list[Any]) -> None:
    """Without headers and group the user sees an empty mapping of its own, and no group."""
    batch = m.decode_batch(_batch_of([*GOOD, *extras], [*GOOD, *extras]))

    first, second = (m.to_agent_message(message, batch, "b", 1, "b/9/") for message in batch.messages)

    assert first.headers == {}
    assert first.group is None
    assert first.headers is not second.headers


@pytest.mark.parametrize(
    ("extras", "weight"),
    [
        ([], 0),
        ([None, None], 0),
        ([None, {"ab": "cde"}], 69),
        ([None, {"a": "b", "c": ""}, None], 131),
        ([None, None, "group"], 5),
    ],
)
def test_headers_and_group_weigh(extras: list[Any], weight: int) -> None:
    """Each header weighs 64 bytes and its characters, a group its characters."""
    assert m.extras_weight([*GOOD, *extras]) == weight


def test_the_largest_message_fits_an_envelope() -> None:
    """A body with one message of the largest payload, and largest numbers, is within what an envelope carries."""
    message = [2**63 - 1, 1, 2**64 - 1, 2**64 - 1, 3, bytes(m.PAYLOAD_BYTES_MAX), -(2**63), 2**63 - 1]

    assert len(m.encode_batch(2**63 - 1, 2**63 - 1, Priority.LOW, [message])) <= BODY_BYTES_MAX


def test_the_longest_acknowledgements_can_be_read() -> None:
    """As many entries as an array may have are read."""
    full = [(2**40 + 2 * i, 1) for i in range(ARRAY_ITEMS_MAX)]

    assert m.decode_acks(m.encode_acks(m.Acks(full, full, full))).delivered == full


# --- durable messages -------------------------------------------------------------------------------------------

DURABLE: list[Any] = [5, 1, 42, 7, m.FLAG_DURABLE, b"payload", -3, None, None, None, [9, 8, 1_000, 2]]


def test_a_durable_message_is_read_as_written() -> None:
    """With its four numbers, and without what a later version may add to them."""
    (message,) = m.decode_batch(_batch_of(DURABLE)).messages
    (newer,) = m.decode_batch(_batch_of([*DURABLE[:-1], [*DURABLE[-1], "more"], "more"])).messages

    assert message == newer == DURABLE
    assert m.message_of_durable(message) == m.Durable(9, 8, 1_000, 2)
    assert m.durable_id("a", 255) == "a/durable/ff"


@pytest.mark.parametrize(
    "message",
    [
        [*GOOD[:4], m.FLAG_DURABLE, b"", 0],
        [*GOOD[:4], -4, b"", 0],
        [*DURABLE[:-1], None],
        [*DURABLE[:-1], [1, 2, 3]],
        [*DURABLE[:-1], [1, 2, 3, -1]],
        [5, int(MessageType.QUERY), *DURABLE[2:]],
        [5, int(MessageType.RESPONSE), *DURABLE[2:]],
    ],
)
def test_a_durable_message_with_a_wrong_field_is_refused(message: Any) -> None:
    """The flag without the numbers, numbers that are none, or a type that cannot be durable."""
    with pytest.raises(RemoteProtocolError):
        m.decode_batch(_batch_of(message))


def test_the_numbers_mean_nothing_without_the_flag() -> None:
    """They are dropped, so that nobody takes the message for durable."""
    plain = [*DURABLE[:4], 0, *DURABLE[5:]]

    assert m.decode_batch(_batch_of(plain)).messages == [plain[:-1]]


def test_a_broadcast_cannot_be_durable() -> None:
    """It has no one receiver that could answer."""
    with pytest.raises(RemoteProtocolError, match="one receiver"):
        m.decode_broadcast(m.encode_broadcast(DURABLE, 1, Priority.NORMAL), 1)


def test_what_became_of_durable_messages_is_read_as_written() -> None:
    """Text that cannot be encoded, or is endless, is cut to what can be sent."""
    settled = [m.Settled(1, 2**64 - 1, 3, m.SETTLED_FAILED, 5, "why"), m.Settled(1, 2, 0, m.SETTLED_HANDLED, 2**63 - 1)]

    assert m.decode_settled(m.encode_settled(settled)) == settled
    (odd,) = m.decode_settled(m.encode_settled([m.Settled(1, 2, 3, 2, 5, "\ud800" + "x" * 10_000)]))
    assert odd.text == "?" + "x" * (m.ERROR_CHARS_MAX - 1)


@pytest.mark.parametrize(
    "value",
    [None, {}, [1], [[1, 2, 3, 4, 5]], [[1, 2, 3, 4, "5", ""]], [[1, 2, 3, 4, -5, ""]], [[1, 2, 3, 0, 5, ""]] * 1_025],
)
def test_wrong_words_about_durable_messages_are_refused(value: Any) -> None:
    """Not a list, too few fields, wrong types, or too many."""
    with pytest.raises(RemoteProtocolError):
        m.decode_settled(pack(value))
